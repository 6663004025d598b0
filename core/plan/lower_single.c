/* lower_single.c - the fast backend: nodes that no group took. */
#include <string.h>

#include "plan/cpu_train.h"
#include "plan/lower_int.h"

static qd_status lower_forward(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    qd_value_id in[QD_MAX_INPUTS], out;
    qd_status st = QD_OK;
    for (int k = 0; k < n->n_inputs && !st; k++) {
        const qd_node_id x = qd_fused_input(&l->f, id, k);
        in[k] = -1;
        if (x >= 0)
            st = qd_lower_want(l, x, QD_LAYOUT_ROW, &in[k], err);
    }
    /* Plain loops make rows; readers were promised the layout chosen before. */
    const qd_layout promised = l->f.info[id].layout;
    l->f.info[id].layout = QD_LAYOUT_ROW;
    if (!st)
        st = qd_lower_value(l, id, NULL, &out, err);
    if (!st)
        st = qd_plan_add_forward(l->p, n, in, out, qd_lower_macs(l, id), err);
    if (!st)
        st = qd_lower_want(l, id, promised, &out, err);
    l->f.info[id].layout = promised;
    return st;
}

/* Codes that get a border are read by nothing but convolutions (qd_fused_border), so no view sees one. */
static qd_status lower_view(qd_lower *l, qd_node_id id, qd_err *err)
{
    qd_node_info *info = &l->f.info[id];
    qd_value_id v;
    const qd_node_id x = qd_fused_input(&l->f, id, 0);
    qd_status st = qd_lower_native(l, x, &v, err);
    if (st)
        return st;
    return qd_plan_add_view(l->p, v, &l->shapes[id], info->layout, &info->value[info->layout], err);
}

/* A reshape that needs plain order first. */
static qd_status lower_reshape(qd_lower *l, qd_node_id id, qd_err *err)
{
    qd_node_info *info = &l->f.info[id];
    qd_value_id v;
    qd_status st = qd_lower_want(l, qd_fused_input(&l->f, id, 0), QD_LAYOUT_ROW, &v, err);
    if (st)
        return st;
    info->layout = QD_LAYOUT_ROW;
    return qd_plan_add_view(l->p, v, &l->shapes[id], QD_LAYOUT_ROW, &info->value[QD_LAYOUT_ROW], err);
}

/* How operand x lies against the result; false when only the plain loops know. */
static bool spread_of(const qd_lower *l, qd_node_id x, qd_node_id out, qd_spread *spread, bool *per_sample)
{
    const qd_shape *a = &l->shapes[x], *b = &l->shapes[out];
    *per_sample = false;
    if (qd_shape_equal(a, b)) {
        *spread = QD_SPREAD_FULL;
        return true;
    }
    if (qd_count_of(a) == 1) {
        *spread = QD_SPREAD_SCALAR;
        return true;
    }
    *spread = QD_SPREAD_CHANNEL;
    if (l->f.info[out].layout == QD_LAYOUT_LAST) { /* [n or 1, C, 1, 1], leading ones may be missing */
        int64_t dim[QD_MAX_RANK];
        for (int k = 0; k < b->rank; k++)
            dim[k] = k < b->rank - a->rank ? 1 : a->dim[k - (b->rank - a->rank)];
        for (int k = 2; k < b->rank; k++)
            if (dim[k] != 1)
                return false;
        *per_sample = dim[0] > 1;
        return dim[1] == b->dim[1] && (dim[0] == 1 || dim[0] == b->dim[0]);
    }
    return qd_count_of(a) == qd_last_dim(b) && qd_last_dim(a) == qd_last_dim(b);
}

static qd_status lower_arith(qd_lower *l, qd_node_id id, qd_arith op, bool *done, qd_err *err)
{
    qd_node_id a = qd_fused_input(&l->f, id, 0), b = qd_fused_input(&l->f, id, 1);
    const qd_shape *s = &l->shapes[id];
    const qd_layout layout = l->f.info[id].layout;
    qd_spread spread;
    bool per_sample;
    *done = false;
    if (!qd_shape_equal(&l->shapes[a], s) && (op == QD_ARITH_ADD || op == QD_ARITH_MUL)) {
        const qd_node_id swap = a;
        a = b;
        b = swap;
    }
    if (qd_lower_node_of(l, id)->dtype != QD_F32 || !qd_shape_equal(&l->shapes[a], s) ||
        !spread_of(l, b, id, &spread, &per_sample))
        return QD_OK;

    qd_value_id va, vb, out;
    qd_status st = qd_lower_want(l, a, layout, &va, err);
    if (!st)
        st = qd_lower_want(l, b, spread == QD_SPREAD_FULL ? layout : QD_LAYOUT_ROW, &vb, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &out, err);
    if (st)
        return st;
    *done = true;
    const int64_t n = layout == QD_LAYOUT_LAST ? s->dim[0] : 1;
    const int64_t channels = layout == QD_LAYOUT_LAST ? s->dim[1] : qd_last_dim(s);
    return qd_add_arith_step(l->p, qd_lower_node_of(l, id)->name, op, va, vb, out, spread, n,
                             qd_count_of(s) / n / channels, channels, per_sample, err);
}

static qd_status lower_pool(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const qd_node_id x = qd_fused_input(&l->f, id, 0);
    const qd_shape *in = &l->shapes[x], *to = &l->shapes[id];
    qd_pool kind = QD_POOL_MAX;
    qd_conv_shape s;
    qd_value_id from, out;
    if (n->op == &qd_op_global_avg_pool) {
        kind = QD_POOL_AVG;
        s = (qd_conv_shape){ .n = in->dim[0],
                             .c = in->dim[1],
                             .h = in->dim[2],
                             .w = in->dim[3],
                             .o = in->dim[1],
                             .oh = 1,
                             .ow = 1,
                             .kh = in->dim[2],
                             .kw = in->dim[3],
                             .stride_h = 1,
                             .stride_w = 1,
                             .dil_h = 1,
                             .dil_w = 1,
                             .groups = 1 };
    } else {
        s = qd_node_conv_shape(n, in, NULL, to);
        if (n->op == &qd_op_avg_pool)
            kind = qd_node_int(n, "count_pad") ? QD_POOL_AVG_PADDED : QD_POOL_AVG;
    }
    qd_status st = qd_lower_want(l, x, QD_LAYOUT_LAST, &from, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &out, err);
    return st ? st : qd_add_pool_step(l->p, n->name, kind, &s, from, out, err);
}

static qd_status lower_matmul(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const qd_node_id ia = qd_fused_input(&l->f, id, 0), ib = qd_fused_input(&l->f, id, 1);
    const qd_shape *a = &l->shapes[ia], *b = &l->shapes[ib], *o = &l->shapes[id];
    *done = false;
    if (a->rank < 2 || a->rank != b->rank || qd_node_int(n, "trans_a"))
        return QD_OK;
    int64_t batch = 1;
    for (int k = 0; k < a->rank - 2; k++) {
        if (a->dim[k] != b->dim[k])
            return QD_OK;
        batch *= a->dim[k];
    }
    qd_value_id va, vb, out;
    qd_status st = qd_lower_want(l, ia, QD_LAYOUT_ROW, &va, err);
    if (!st)
        st = qd_lower_want(l, ib, QD_LAYOUT_ROW, &vb, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &out, err);
    if (st)
        return st;
    *done = true;
    return qd_add_matmul_step(l->p, n->name, va, vb, out, batch, o->dim[o->rank - 2], o->dim[o->rank - 1],
                              a->dim[a->rank - 1], qd_node_int(n, "trans_b") != 0, (float)qd_node_float(n, "alpha"),
                              err);
}

static qd_status lower_rows(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const qd_shape *s = &l->shapes[id];
    const qd_node_id x = qd_fused_input(&l->f, id, 0);
    int64_t width = qd_last_dim(s);
    *done = false;
    if (n->op == &qd_op_softmax) {
        const int64_t axis = qd_node_int(n, "axis");
        if (s->rank == 0 || (axis < 0 ? axis + s->rank : axis) != s->rank - 1)
            return QD_OK;
    } else {
        for (int k = 1; k < 3; k++) {
            const qd_node_id parameter = qd_fused_input(&l->f, id, k);
            if (parameter >= 0 && !l->f.info[parameter].folded.data)
                return QD_OK;
        }
        width = 1;
        for (int64_t k = 0; k < qd_node_int(n, "axes"); k++)
            width *= s->dim[s->rank - 1 - k];
    }
    qd_value_id from, out, keep;
    qd_status st = qd_lower_want(l, x, QD_LAYOUT_ROW, &from, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &out, err);
    if (st)
        return st;
    *done = true;
    if (n->op == &qd_op_softmax)
        return qd_add_softmax_step(l->p, n->name, from, qd_count_of(s) / width, width, out, err);
    for (int k = 1; k < 3 && !st; k++)
        if (qd_lower_known(l, id, k))
            st = qd_plan_add_constant(l->p, NULL, &l->f.info[qd_fused_input(&l->f, id, k)].folded, &keep, err);
    return st ? st
              : qd_add_layer_norm_step(l->p, n->name, from, qd_lower_known(l, id, 1), qd_lower_known(l, id, 2),
                                       qd_count_of(s) / width, width, (float)qd_node_float(n, "eps"), out, err);
}

qd_status qd_lower_single(qd_lower *l, qd_node_id id, qd_err *err)
{
    static const struct {
        const qd_op *op;
        qd_arith arith;
    } ariths[] = { { &qd_op_add, QD_ARITH_ADD },
                   { &qd_op_sub, QD_ARITH_SUB },
                   { &qd_op_mul, QD_ARITH_MUL },
                   { &qd_op_div, QD_ARITH_DIV } };
    const qd_op *op = qd_lower_node_of(l, id)->op;
    bool done = false;
    qd_status st = QD_OK;
    if (l->f.info[id].view)
        return lower_view(l, id, err);
    if (op == &qd_op_reshape)
        return lower_reshape(l, id, err);
    if (op == &qd_op_avg_pool || op == &qd_op_max_pool || op == &qd_op_global_avg_pool) {
        if (qd_lower_node_of(l, id)->dtype == QD_F32)
            return lower_pool(l, id, err);
    } else if (op == &qd_op_matmul) {
        st = lower_matmul(l, id, &done, err);
    } else if (op == &qd_op_softmax || op == &qd_op_layer_norm) {
        st = lower_rows(l, id, &done, err);
    }
    for (size_t k = 0; k < sizeof(ariths) / sizeof(ariths[0]) && !done && !st; k++)
        if (ariths[k].op == op)
            st = lower_arith(l, id, ariths[k].arith, &done, err);
    if (!st && !done)
        st = qd_lower_train(l, id, &done, err);
    return st || done ? st : lower_forward(l, id, err);
}
