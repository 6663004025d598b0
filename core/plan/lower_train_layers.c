/* lower_train_layers.c - training nodes of images as steps: group norm, pools back, transposed convolution, elements that move. */
#include <string.h>

#include "plan/cpu_train.h"

/* --- group norm --- */

static qd_status lower_group_norm(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const bool forward = n->op == &qd_op_group_norm;
    const qd_shape *x = qd_train_shape(l, id, forward ? 0 : 1);
    qd_group_norm_step g = { .name = n->name,
                             .kind = forward                           ? QD_GROUP_NORM_FORWARD
                                     : n->op == &qd_op_group_norm_grad ? QD_GROUP_NORM_BACK
                                                                       : QD_GROUP_NORM_BACK_WEIGHT,
                             .in = { -1, -1, -1 },
                             .samples = x->dim[0],
                             .channels = x->dim[1],
                             .groups = qd_node_int(n, "groups"),
                             .eps = (float)qd_node_float(n, "eps") };
    g.pixels = qd_count_of(x) / g.samples / g.channels;
    const int images = forward ? 1 : 2; /* the first of the inputs */
    qd_status st = QD_OK;
    for (int k = 0; k < n->n_inputs && k < 3 && !st; k++)
        st = qd_train_want(l, id, k, k < images ? QD_LAYOUT_LAST : QD_LAYOUT_ROW, &g.in[k], err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &g.out, err);
    return st ? st : qd_add_group_norm_step(l->p, &g, err);
}

/* --- pools --- */

static qd_status lower_pool_grad(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const bool max = n->op == &qd_op_max_pool_grad;
    const qd_conv_shape s = qd_node_conv_shape(n, &l->shapes[id], NULL, qd_train_shape(l, id, 0));
    qd_value_id dy, x = -1, out;
    qd_status st = qd_train_want(l, id, 0, QD_LAYOUT_LAST, &dy, err);
    if (!st && max)
        st = qd_train_want(l, id, 1, QD_LAYOUT_LAST, &x, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &out, err);
    return st ? st
              : qd_add_pool_grad_step(l->p, n->name, &s, max ? false : qd_node_int(n, "count_pad") != 0, dy, x, out,
                                      err);
}

/* --- a transposed convolution is the derivative by input of the convolution from its result's side --- */

static qd_status lower_transposed(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const qd_node_id bias = qd_fused_input(&l->f, id, 2);
    qd_conv_train_step c = { .name = n->name, .pass = QD_CONV_BACK_INPUT, .bias = -1 };
    const qd_shape *self = &l->shapes[id];
    c.shape = qd_node_conv_shape(n, self, qd_train_shape(l, id, 1), qd_train_shape(l, id, 0));
    c.macs = qd_lower_macs(l, id);
    *done = qd_train_window_fits(&c.shape);
    if (!*done)
        return QD_OK;
    qd_status st = qd_train_want(l, id, 0, QD_LAYOUT_LAST, &c.image, err);
    if (!st)
        st = qd_train_want(l, id, 1, QD_LAYOUT_ROW, &c.second, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &c.out, err);
    if (!st)
        st = qd_add_conv_train_step(l->p, &c, err);
    if (st || bias < 0)
        return st;
    qd_value_id b, sum;
    st = qd_train_want(l, id, 2, QD_LAYOUT_ROW, &b, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &sum, err); /* what readers get from now on */
    return st ? st
              : qd_add_arith_step(l->p, n->name, QD_ARITH_ADD, c.out, b, sum, QD_SPREAD_CHANNEL, self->dim[0],
                                  self->dim[2] * self->dim[3], self->dim[1], false, err);
}

/* --- elements that move --- */

/* Axis k in the order in which a value lies. */
static int axis_at(int rank, qd_layout layout, int k)
{
    if (layout == QD_LAYOUT_ROW || rank < 3 || k == 0)
        return k;
    return k == rank - 1 ? 1 : k + 1;
}

static void strides_of(const qd_shape *s, qd_layout layout, int64_t stride[QD_MAX_RANK])
{
    int64_t step = 1;
    for (int k = s->rank - 1; k >= 0; k--) {
        const int axis = axis_at(s->rank, layout, k);
        stride[axis] = step;
        step *= s->dim[axis];
    }
}

/* stride[axis of the result] -> m, in the order the result lies in; `cut` the axis that is put back among zeros, -1 = none. */
static qd_status add_move(qd_lower *l, qd_node_id id, qd_move_step *m, const int64_t stride[QD_MAX_RANK], int cut,
                          qd_err *err)
{
    const qd_shape *o = &l->shapes[id];
    m->name = qd_lower_node_of(l, id)->name;
    m->kind = qd_lower_node_of(l, id)->op->name;
    m->rank = o->rank;
    m->axis = -1;
    for (int k = 0; k < o->rank; k++) {
        const int axis = axis_at(o->rank, l->f.info[id].layout, k);
        m->dim[k] = o->dim[axis];
        m->stride[k] = stride[axis];
        if (axis == cut)
            m->axis = k;
    }
    qd_status st = qd_lower_value(l, id, NULL, &m->out, err);
    return st ? st : qd_add_move_step(l->p, m, err);
}

static int64_t axis_of(const qd_node *n, int rank)
{
    const int64_t axis = qd_node_int(n, "axis");
    return axis < 0 ? axis + rank : axis;
}

static qd_status lower_move(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const qd_node_id x = qd_fused_input(&l->f, id, 0);
    const qd_shape *in = &l->shapes[x];
    int64_t from[QD_MAX_RANK], to[QD_MAX_RANK];
    int cut = -1;
    qd_move_step m = { .step = 1 };
    qd_status st = qd_lower_native(l, x, &m.from, err); /* which may change the layout of a constant */
    if (st)
        return st;
    strides_of(in, l->f.info[x].layout, from);
    memcpy(to, from, sizeof to);
    if (n->op == &qd_op_permute) {
        const int64_t *perm = qd_node_ints(n, "perm")->ints;
        for (int k = 0; k < in->rank; k++)
            to[k] = from[perm[k]];
    } else if (n->op == &qd_op_concat_grad) {
        const int64_t axis = axis_of(n, in->rank);
        for (int k = 1; k < n->n_inputs - 1; k++)
            m.offset += qd_train_shape(l, id, k)->dim[axis] * from[axis];
    } else {
        const int64_t axis = axis_of(n, in->rank), step = qd_node_int(n, "step");
        const int64_t size = n->op == &qd_op_slice ? in->dim[axis] : l->shapes[id].dim[axis];
        const int64_t given = qd_node_int(n, "start"), start = given < 0 ? given + size : given;
        if (n->op == &qd_op_slice) {
            m.offset = start * from[axis];
            to[axis] = step * from[axis];
        } else {
            cut = (int)axis;
            m.begin = start;
            m.end = start + (in->dim[axis] - 1) * step + 1;
            m.step = step;
        }
    }
    return add_move(l, id, &m, to, cut, err);
}

qd_status qd_lower_train_layers(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const qd_op *op = n->op;
    if (op == &qd_op_conv_transpose2d)
        return lower_transposed(l, id, done, err);
    *done = true;
    if (op == &qd_op_group_norm || op == &qd_op_group_norm_grad || op == &qd_op_group_norm_grad_weight)
        return lower_group_norm(l, id, err);
    if (op == &qd_op_max_pool_grad || op == &qd_op_avg_pool_grad)
        return lower_pool_grad(l, id, err);
    if (n->dtype == QD_F32 &&
        (op == &qd_op_permute || op == &qd_op_slice || op == &qd_op_slice_grad || op == &qd_op_concat_grad))
        return lower_move(l, id, err);
    *done = false;
    return QD_OK;
}
