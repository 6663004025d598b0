/* lower_train.c - nodes of training as steps: layers whose weights are values, and the derivatives that have fast loops. The rest runs
 * by its plain forward. */
#include <string.h>

#include "plan/cpu_train.h"

const qd_shape *qd_train_shape(const qd_lower *l, qd_node_id id, int k)
{
    return &l->shapes[qd_fused_input(&l->f, id, k)];
}

qd_status qd_train_want(qd_lower *l, qd_node_id id, int k, qd_layout layout, qd_value_id *out, qd_err *err)
{
    const qd_node_id x = qd_fused_input(&l->f, id, k);
    *out = -1;
    return x < 0 ? QD_OK : qd_lower_want(l, x, layout, out, err);
}

/* Axes 2 and 3 of four, and nothing else? */
static bool over_space(const qd_node *n, const qd_shape *x)
{
    const qd_attr *axes = qd_node_ints(n, "axes");
    unsigned seen = 0;
    for (int k = 0; k < axes->n; k++)
        seen |= 1u << (axes->ints[k] < 0 ? axes->ints[k] + x->rank : axes->ints[k]);
    return x->rank == 4 && seen == 12;
}

bool qd_train_lays_last(const qd_fused *f, qd_node_id id)
{
    const qd_node *n = qd_graph_node(f->g, id);
    const qd_op *op = n->op;
    static const qd_op *const images[] = { &qd_op_conv2d_grad_input,     &qd_op_conv_transpose2d,
                                           &qd_op_batch_norm_train,      &qd_op_batch_norm_train_grad,
                                           &qd_op_batch_norm_stats_grad, &qd_op_group_norm_grad,
                                           &qd_op_max_pool_grad,         &qd_op_avg_pool_grad };
    for (size_t k = 0; k < sizeof images / sizeof *images; k++)
        if (images[k] == op)
            return true;
    if (op == &qd_op_reduce_grad)
        return over_space(n, &f->shapes[id]);
    if ((op == &qd_op_concat_grad || op == &qd_op_slice_grad) && qd_node_int(n, "axis") == 1)
        return f->info[qd_fused_input(f, id, 0)].layout == QD_LAYOUT_LAST;
    for (int k = 0; qd_train_is_map(f, id) && k < n->n_inputs; k++) {
        const qd_node_id x = qd_fused_input(f, id, k);
        if (x >= 0 && f->info[x].layout == QD_LAYOUT_LAST && qd_shape_equal(&f->shapes[x], &f->shapes[id]) &&
            !qd_layout_same(&f->shapes[x], QD_LAYOUT_LAST, QD_LAYOUT_ROW))
            return true;
    }
    return false;
}

bool qd_train_keeps(const qd_fused *f, qd_node_id id)
{
    const qd_op *op = qd_fused_op(f, id);
    return (op == &qd_op_sum_like || op == &qd_op_reshape_like || op == &qd_op_detach) &&
           qd_shape_equal(&f->shapes[id], &f->shapes[qd_fused_input(f, id, 0)]);
}

/* Directly, or by way of what keeps its shape: a quantizer of weights, a sum with what is learned beside them. */
static bool leads_to_weight(const qd_fused *f, qd_node_id id, int steps)
{
    for (int k = 0; k < f->info[id].uses; k++) {
        const qd_node_id reader = f->consumer[f->info[id].consumers + k];
        const qd_op *op = qd_fused_op(f, reader);
        if (op == &qd_op_conv2d || op == &qd_op_conv_transpose2d || op == &qd_op_conv2d_grad_input) {
            if (qd_fused_input(f, reader, 1) == id)
                return true;
        } else if (steps > 0 && qd_shape_equal(&f->shapes[reader], &f->shapes[id]) &&
                   leads_to_weight(f, reader, steps - 1)) {
            return true;
        }
    }
    return false;
}

bool qd_train_is_weight(const qd_fused *f, qd_node_id id)
{
    return leads_to_weight(f, id, 6);
}

/* --- convolution --- */

bool qd_train_window_fits(const qd_conv_shape *c)
{
    const int64_t high = (c->h + c->pad_t + c->pad_b - (c->kh - 1) * c->dil_h - 1) / c->stride_h + 1;
    const int64_t wide = (c->w + c->pad_l + c->pad_r - (c->kw - 1) * c->dil_w - 1) / c->stride_w + 1;
    return high == c->oh && wide == c->ow;
}

static qd_status lower_conv(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    qd_conv_train_step c = { .name = n->name, .macs = qd_lower_macs(l, id), .bias = -1 };
    const qd_shape *self = &l->shapes[id];
    qd_status st;
    if (n->op == &qd_op_conv2d) {
        c.pass = QD_CONV_FORWARD;
        c.shape = qd_node_conv_shape(n, qd_train_shape(l, id, 0), qd_train_shape(l, id, 1), self);
    } else if (n->op == &qd_op_conv2d_grad_input) {
        c.pass = QD_CONV_BACK_INPUT;
        c.shape = qd_node_conv_shape(n, self, qd_train_shape(l, id, 1), qd_train_shape(l, id, 0));
    } else {
        c.pass = QD_CONV_BACK_WEIGHT;
        c.shape = qd_node_conv_shape(n, qd_train_shape(l, id, 1), self, qd_train_shape(l, id, 0));
    }
    *done = qd_train_window_fits(&c.shape);
    if (!*done)
        return QD_OK;
    const bool by_weight = c.pass == QD_CONV_BACK_WEIGHT;
    st = qd_train_want(l, id, by_weight ? 1 : 0, QD_LAYOUT_LAST, &c.image, err);
    if (!st)
        st = qd_train_want(l, id, by_weight ? 0 : 1, by_weight ? QD_LAYOUT_LAST : QD_LAYOUT_ROW, &c.second, err);
    if (!st && c.pass == QD_CONV_FORWARD)
        st = qd_train_want(l, id, 2, QD_LAYOUT_ROW, &c.bias, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &c.out, err);
    if (st)
        return st;
    return qd_winograd_fits(&c) ? qd_add_winograd_step(l->p, &c, err) : qd_add_conv_train_step(l->p, &c, err);
}

/* --- batch norm --- */

/* Pixels and channels of an image that lies channels last (or has none but channels). */
static void geometry(const qd_shape *x, qd_train_step *t)
{
    t->channels = x->dim[1];
    t->pixels = qd_count_of(x) / t->channels;
}

static qd_status add_step(qd_lower *l, qd_node_id id, qd_train_step *t, unsigned images, int n_in, qd_err *err)
{
    qd_status st = QD_OK;
    t->name = qd_lower_node_of(l, id)->name;
    for (; t->n_in < n_in && !st; t->n_in++)
        st =
            qd_train_want(l, id, t->n_in, images >> t->n_in & 1 ? QD_LAYOUT_LAST : QD_LAYOUT_ROW, &t->in[t->n_in], err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &t->out, err);
    return st ? st : qd_add_train_step(l->p, t, err);
}

static qd_status lower_norm(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    qd_train_step t = { .kind = QD_TRAIN_STATS };
    if (n->op != &qd_op_batch_norm_stats && n->op != &qd_op_batch_norm_stats_grad)
        t.eps = (float)qd_node_float(n, "eps");
    if (n->op == &qd_op_batch_norm_stats_grad)
        t.kind = QD_TRAIN_STATS_GRAD;
    else if (n->op == &qd_op_batch_norm_train_sums || n->op == &qd_op_batch_norm_sums)
        t.kind = QD_TRAIN_SUMS;
    else if (n->op == &qd_op_batch_norm_train_grad)
        t.kind = QD_TRAIN_NORM_GRAD;
    const unsigned images = t.kind == QD_TRAIN_STATS ? 1 : t.kind == QD_TRAIN_STATS_GRAD ? 2 : 3;
    geometry(qd_train_shape(l, id, t.kind == QD_TRAIN_STATS ? 0 : 1), &t);
    return add_step(l, id, &t, images, n->n_inputs, err);
}

qd_status qd_lower_train_norm(qd_lower *l, const qd_group *gr, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, gr->main);
    qd_train_step t = { .kind = QD_TRAIN_NORM,
                        .name = qd_lower_node_of(l, gr->end)->name,
                        .relu = gr->act >= 0,
                        .eps = (float)qd_node_float(n, "eps"),
                        .n_in = 6 };
    t.kind_text = gr->residual >= 0 ? (t.relu ? "batch norm+add+relu" : "batch norm+add")
                  : t.relu          ? "batch norm+relu"
                                    : NULL;
    geometry(&l->shapes[gr->main], &t);
    qd_status st = QD_OK;
    for (int k = 0; k < 4 && !st; k++)
        st = qd_train_want(l, gr->main, k, k ? QD_LAYOUT_ROW : QD_LAYOUT_LAST, &t.in[k], err);
    t.in[4] = t.in[5] = -1;
    if (!st && gr->residual >= 0)
        st = qd_lower_want(l, gr->residual, QD_LAYOUT_LAST, &t.in[4], err);
    if (!st && n->op == &qd_op_batch_norm)
        st = qd_train_want(l, gr->main, 4, QD_LAYOUT_ROW, &t.in[5], err);
    if (!st)
        st = qd_lower_value(l, gr->end, NULL, &t.out, err);
    return st ? st : qd_add_train_step(l->p, &t, err);
}

/* --- what moves between --- */

static qd_status lower_mask(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_layout layout = l->f.info[id].layout;
    const qd_shape *s = &l->shapes[id];
    qd_train_step t = { .kind = QD_TRAIN_MASK, .pixels = qd_count_of(s), .channels = 1 };
    *done = true;
    return add_step(l, id, &t, layout == QD_LAYOUT_LAST ? 3 : 0, 2, err);
}

/* --- products --- */

static qd_status lower_product(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const qd_shape *a = qd_train_shape(l, id, 0), *b = qd_train_shape(l, id, 1), *o = &l->shapes[id];
    qd_product_step s = { .name = n->name, .kind = n->op->name, .bias = -1, .batch = 1, .alpha = 1.0f };
    if (n->op == &qd_op_matmul) {
        if (a->rank != b->rank)
            return QD_OK;
        for (int k = 0; k < a->rank - 2; k++) {
            if (a->dim[k] != b->dim[k])
                return QD_OK;
            s.batch *= a->dim[k];
        }
        s.trans_a = qd_node_int(n, "trans_a");
        s.trans_b = qd_node_int(n, "trans_b");
        s.alpha = (float)qd_node_float(n, "alpha");
        s.m = o->dim[o->rank - 2];
        s.n = o->dim[o->rank - 1];
        s.k = a->dim[a->rank - (s.trans_a ? 2 : 1)];
    } else if (n->op == &qd_op_linear_grad_weight) { /* dy^T x */
        s.trans_a = true;
        s.m = o->dim[0];
        s.n = o->dim[1];
        s.k = qd_count_of(a) / s.m;
    } else {
        s.trans_b = n->op == &qd_op_linear;
        s.k = a->dim[a->rank - 1];
        s.n = o->dim[o->rank - 1];
        s.m = qd_count_of(o) / s.n;
    }
    *done = true;
    qd_status st = qd_train_want(l, id, 0, QD_LAYOUT_ROW, &s.a, err);
    if (!st)
        st = qd_train_want(l, id, 1, QD_LAYOUT_ROW, &s.b, err);
    if (!st && n->op == &qd_op_linear)
        st = qd_train_want(l, id, 2, QD_LAYOUT_ROW, &s.bias, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &s.out, err);
    return st ? st : qd_add_product_step(l->p, &s, err);
}

/* The same bytes under another shape. */
static qd_status lower_like(qd_lower *l, qd_node_id id, qd_err *err)
{
    qd_value_id v;
    qd_status st = qd_train_want(l, id, 0, QD_LAYOUT_ROW, &v, err);
    l->f.info[id].layout = QD_LAYOUT_ROW;
    return st ? st : qd_plan_add_view(l->p, v, &l->shapes[id], QD_LAYOUT_ROW, &l->f.info[id].value[QD_LAYOUT_ROW], err);
}

qd_status qd_lower_train(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_op *op = qd_lower_node_of(l, id)->op;
    *done = false;
    if (op == &qd_op_conv2d || op == &qd_op_conv2d_grad_input || op == &qd_op_conv2d_grad_weight)
        return lower_conv(l, id, done, err);
    if (op == &qd_op_linear || op == &qd_op_linear_grad_input || op == &qd_op_linear_grad_weight || op == &qd_op_matmul)
        return lower_product(l, id, done, err);
    if (op == &qd_op_unary_grad && qd_node_int(qd_lower_node_of(l, id), "of") == QD_RELU)
        return lower_mask(l, id, done, err);
    *done = true;
    if (op == &qd_op_batch_norm_stats || op == &qd_op_batch_norm_stats_grad || op == &qd_op_batch_norm_train_sums ||
        op == &qd_op_batch_norm_sums || op == &qd_op_batch_norm_train_grad)
        return lower_norm(l, id, err);
    if (op == &qd_op_reshape_like || op == &qd_op_detach)
        return lower_like(l, id, err);
    *done = false;
    qd_status st = qd_lower_train_elem(l, id, done, err);
    return st || *done ? st : qd_lower_train_layers(l, id, done, err);
}
