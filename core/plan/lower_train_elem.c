/* lower_train_elem.c - training nodes of elements on their own, of rows and of sums as steps. */
#include <string.h>

#include "plan/cpu_train.h"

/* --- elements on their own --- */

/* Operators whose plain forward works on any stretch of elements; the others of qd_train_is_map have loops of their own. */
static bool is_plain_map(const qd_op *op)
{
    static const qd_op *const ops[] = { &qd_op_sqrt, &qd_op_exp, &qd_op_log,  &qd_op_abs, &qd_op_erf,
                                        &qd_op_sin,  &qd_op_cos, &qd_op_less, &qd_op_pow, &qd_op_min,
                                        &qd_op_max,  &qd_op_add, &qd_op_sub,  &qd_op_mul, &qd_op_div };
    for (size_t k = 0; k < sizeof ops / sizeof *ops; k++)
        if (ops[k] == op)
            return true;
    return false;
}

bool qd_train_is_map(const qd_fused *f, qd_node_id id)
{
    const qd_node *n = qd_graph_node(f->g, id);
    const qd_op *op = n->op;
    if (n->dtype != QD_F32)
        return false;
    const bool quant = op == &qd_op_learned_quant || op == &qd_op_learned_quant_grad;
    if (op != &qd_op_unary_grad && op != &qd_op_leaky_relu && op != &qd_op_leaky_relu_grad && op != &qd_op_clip_grad &&
        op != &qd_op_soft_round && op != &qd_op_soft_round_grad && op != &qd_op_fake_quant_grad && !quant &&
        !is_plain_map(op))
        return false;
    for (int k = 0; k < n->n_inputs; k++) {
        const qd_node_id x = qd_fused_input(f, id, k);
        if (quant && k == n->n_inputs - 1) /* the scale: one for all, or rows */
            return f->shapes[x].dim[0] == 1;
        if (x < 0 || !qd_shape_equal(&f->shapes[x], &f->shapes[id]))
            return x < 0 && k > 0;
    }
    return true;
}

static bool map_of(const qd_node *n, qd_map *map, float p[4])
{
    static const struct {
        const qd_op *op;
        qd_map map;
        const char *p[2]; /* attributes */
    } rows[] = { { &qd_op_leaky_relu, QD_MAP_LEAKY, { "slope" } },
                 { &qd_op_leaky_relu_grad, QD_MAP_LEAKY_GRAD, { "slope" } },
                 { &qd_op_clip_grad, QD_MAP_CLIP_GRAD, { "lo", "hi" } },
                 { &qd_op_soft_round, QD_MAP_SOFT_ROUND, { "lo", "hi" } },
                 { &qd_op_soft_round_grad, QD_MAP_SOFT_ROUND_GRAD, { "lo", "hi" } } };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
        if (rows[k].op == n->op) {
            *map = rows[k].map;
            for (int j = 0; j < 2 && rows[k].p[j]; j++)
                p[j] = (float)qd_node_float(n, rows[k].p[j]);
            return true;
        }
    if (n->op == &qd_op_unary_grad)
        switch ((qd_unary)qd_node_int(n, "of")) {
        case QD_SILU:
            *map = QD_MAP_SILU_GRAD;
            return true;
        case QD_GELU:
            *map = QD_MAP_GELU_GRAD;
            return true;
        case QD_SIGMOID:
            *map = QD_MAP_SIGMOID_GRAD;
            return true;
        case QD_TANH:
            *map = QD_MAP_TANH_GRAD;
            return true;
        default:
            return false;
        }
    if (n->op == &qd_op_fake_quant_grad) {
        int32_t qmin, qmax;
        const int64_t zero = qd_node_int(n, "zero");
        qd_node_code_range(n, &qmin, &qmax);
        *map = QD_MAP_FAKE_QUANT_GRAD;
        p[0] = (float)qd_node_float(n, "scale");
        p[1] = (float)(qmin - zero);
        p[2] = (float)(qmax - zero);
        return true;
    }
    return false;
}

static qd_status lower_map(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const qd_layout layout = l->f.info[id].layout;
    const int64_t count = qd_count_of(&l->shapes[id]);
    qd_value_id in[QD_MAX_INPUTS] = { -1, -1, -1 }, out;
    qd_map_step m = {
        .name = n->name, .kind = n->op->name, .a = -1, .b = -1, .scale = -1, .rows = 1, .width = count, .scales = 1
    };
    qd_status st = QD_OK;
    for (int k = 0; k < n->n_inputs && !st; k++)
        st = qd_train_want(l, id, k, layout, &in[k], err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &out, err);
    if (st)
        return st;
    if (!map_of(n, &m.map, m.p))
        return qd_add_pieces_step(l->p, n, in, out, count, err);
    m.a = in[0];
    m.b = in[1];
    m.out = out;
    return qd_add_map_step(l->p, &m, err);
}

/* --- quantizers that learn their step --- */

static void learned_range(const qd_node *n, float p[4])
{
    const int bits = (int)qd_node_int(n, "bits");
    const bool is_signed = qd_node_int(n, "symmetric");
    p[1] = (float)(is_signed ? -(1 << (bits - 1)) : 0);
    p[2] = (float)(is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1);
}

/* (x, scale), (dy, x, scale) -> like x, or -> like scale. */
static qd_status lower_learned(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const bool by_scale = n->op == &qd_op_learned_quant_grad_scale, forward = n->op == &qd_op_learned_quant;
    const int at = n->n_inputs - 2; /* of x */
    const qd_shape *x = qd_train_shape(l, id, at);
    qd_map_step m = { .name = n->name,
                      .kind = forward    ? "learned_quant"
                              : by_scale ? "learned_quant back to scale"
                                         : "learned_quant back",
                      .map = forward ? QD_MAP_LEARNED_QUANT : QD_MAP_LEARNED_QUANT_GRAD,
                      .b = -1,
                      .scales = qd_train_shape(l, id, at + 1)->dim[0],
                      .width = 1 };
    const int64_t axis = qd_node_int(n, "axis");
    learned_range(n, m.p);
    for (int k = (int)(axis < 0 ? axis + x->rank : axis) + 1; k < x->rank; k++)
        m.width *= x->dim[k];
    if (m.scales == 1)
        m.width = qd_count_of(x);
    m.rows = qd_count_of(x) / m.width;
    /* One scale for all: as x lies, which its gradient does too. */
    const qd_layout layout = m.scales > 1 ? QD_LAYOUT_ROW : l->f.info[qd_fused_input(&l->f, id, at)].layout;
    const qd_layout to = by_scale ? QD_LAYOUT_ROW : l->f.info[id].layout;
    qd_status st = qd_train_want(l, id, 0, by_scale ? layout : to, &m.a, err);
    if (!st && !forward)
        st = qd_train_want(l, id, 1, by_scale ? layout : to, &m.b, err);
    if (!st)
        st = qd_train_want(l, id, at + 1, QD_LAYOUT_ROW, &m.scale, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &m.out, err);
    if (st)
        return st;
    return by_scale ? qd_add_scale_grad_step(l->p, &m, err) : qd_add_map_step(l->p, &m, err);
}

/* --- rows of the last axes --- */

static qd_status lower_rows(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    static const struct {
        const qd_op *op;
        qd_row_kind kind;
        int x; /* the operand whose rows they are */
    } rows[] = {
        { &qd_op_softmax_grad, QD_ROW_SOFTMAX_GRAD, 0 }, { &qd_op_log_softmax_grad, QD_ROW_LOG_SOFTMAX_GRAD, 0 },
        { &qd_op_log_softmax, QD_ROW_LOG_SOFTMAX, 0 },   { &qd_op_layer_norm, QD_ROW_NORM, 0 },
        { &qd_op_layer_norm_grad, QD_ROW_NORM_GRAD, 1 }, { &qd_op_layer_norm_grad_weight, QD_ROW_NORM_GRAD_WEIGHT, 1 }
    };
    const qd_node *n = qd_lower_node_of(l, id);
    size_t k = 0;
    while (k < sizeof rows / sizeof *rows && rows[k].op != n->op)
        k++;
    if (k == sizeof rows / sizeof *rows)
        return QD_OK;
    const qd_shape *x = qd_train_shape(l, id, rows[k].x);
    qd_row_step r = { .name = n->name, .kind = rows[k].kind, .in = { -1, -1, -1 }, .width = 1 };
    int64_t axes = 1;
    if (r.kind >= QD_ROW_NORM) {
        axes = qd_node_int(n, "axes");
        r.eps = (float)qd_node_float(n, "eps");
    } else {
        const int64_t axis = qd_node_int(n, "axis");
        if ((axis < 0 ? axis + x->rank : axis) != x->rank - 1)
            return QD_OK;
    }
    for (int64_t j = 0; j < axes; j++)
        r.width *= x->dim[x->rank - 1 - j];
    r.rows = qd_count_of(x) / r.width;
    *done = true;
    qd_status st = QD_OK;
    for (int j = 0; j < n->n_inputs && j < 3 && !st; j++)
        st = qd_train_want(l, id, j, QD_LAYOUT_ROW, &r.in[j], err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &r.out, err);
    return st ? st : qd_add_row_step(l->p, &r, err);
}

/* --- sums, and repeating --- */

/* The axes of x in the order they lie in, those of `gone` (bits) apart, as outer, middle, inner; false when they take turns more often,
 * or when what is kept would not lie row-major. */
static bool three_axes(const qd_shape *x, unsigned gone, qd_layout layout, qd_reduce_step *r)
{
    int phase = 0, before = -1; /* 0 outer, 1 middle, 2 inner */
    r->outer = r->middle = r->inner = 1;
    for (int k = 0; k < x->rank; k++) {
        const bool last = layout == QD_LAYOUT_LAST && x->rank >= 3;
        const int axis = !last || k == 0 ? k : k == x->rank - 1 ? 1 : k + 1;
        if (x->dim[axis] == 1)
            continue;
        if (gone >> axis & 1) {
            if (phase == 2)
                return false;
            phase = 1;
            r->middle *= x->dim[axis];
            continue;
        }
        if (axis < before)
            return false;
        before = axis;
        if (phase == 1)
            phase = 2;
        *(phase ? &r->inner : &r->outer) *= x->dim[axis];
    }
    return true;
}

static unsigned axes_of(const qd_node *n, int rank)
{
    const qd_attr *axes = qd_node_ints(n, "axes");
    unsigned gone = 0;
    for (int k = 0; k < axes->n; k++)
        gone |= 1u << (axes->ints[k] < 0 ? axes->ints[k] + rank : axes->ints[k]);
    return gone;
}

static qd_status lower_sum(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const qd_shape *x = qd_train_shape(l, id, 0), *o = &l->shapes[id];
    qd_reduce_step r = { .name = n->name, .factor = 1.0f };
    unsigned gone = 0;
    if (n->op == &qd_op_sum_like) {
        for (int k = 0; k < x->rank; k++) {
            const int j = k - (x->rank - o->rank);
            gone |= j < 0 || o->dim[j] != x->dim[k] ? 1u << k : 0;
        }
    } else {
        gone = axes_of(n, x->rank);
    }
    qd_layout layout = l->f.info[qd_fused_input(&l->f, id, 0)].layout;
    if (!three_axes(x, gone, layout, &r)) {
        layout = layout == QD_LAYOUT_ROW ? QD_LAYOUT_LAST : QD_LAYOUT_ROW;
        if (!three_axes(x, gone, layout, &r))
            return QD_OK;
    }
    *done = true;
    if (n->op == &qd_op_mean)
        r.factor = 1.0f / (float)r.middle;
    r.kind = r.inner > 1 ? "channel sum" : "sum";
    qd_status st = qd_train_want(l, id, 0, layout, &r.from, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &r.out, err);
    return st ? st : qd_add_reduce_step(l->p, &r, err);
}

static qd_status lower_repeat(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    qd_reduce_step r = { .name = n->name, .kind = "mean back", .factor = 1.0f };
    *done = three_axes(&l->shapes[id], axes_of(n, l->shapes[id].rank), l->f.info[id].layout, &r);
    if (!*done)
        return QD_OK;
    if (qd_node_int(n, "mean"))
        r.factor = 1.0f / (float)r.middle;
    qd_status st = qd_train_want(l, id, 0, QD_LAYOUT_ROW, &r.from, err);
    if (!st)
        st = qd_lower_value(l, id, NULL, &r.out, err);
    return st ? st : qd_add_repeat_step(l->p, &r, err);
}

qd_status qd_lower_train_elem(qd_lower *l, qd_node_id id, bool *done, qd_err *err)
{
    const qd_op *op = qd_lower_node_of(l, id)->op;
    if (op == &qd_op_sum || op == &qd_op_mean || op == &qd_op_sum_like)
        return lower_sum(l, id, done, err);
    if (op == &qd_op_reduce_grad)
        return lower_repeat(l, id, done, err);
    *done = true;
    if (op == &qd_op_learned_quant || op == &qd_op_learned_quant_grad || op == &qd_op_learned_quant_grad_scale)
        return lower_learned(l, id, err);
    if (qd_train_is_map(&l->f, id))
        return lower_map(l, id, err);
    *done = false;
    return lower_rows(l, id, done, err);
}
