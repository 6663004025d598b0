/* back_math.c - backward rules of elementwise operators, products, sums, and of those that move elements. */
#include <math.h>

#include "graph/op_int.h"

#define ADD(op, ...) qd_back_add(b, &qd_op_##op, QD_IN(__VA_ARGS__), QD_NO_ATTRS)

static qd_node_id input(const qd_backward *b, int k)
{
    return b->node->input[k];
}

/* v has the shape of the result; what belongs to input k, which may have been broadcast. */
static qd_node_id shrink(qd_backward *b, qd_node_id v, int k)
{
    if (qd_back_same_shape(b, input(b, k), b->id))
        return v;
    return ADD(sum_like, v, input(b, k));
}

static qd_node_id scaled(qd_backward *b, qd_node_id v, double mul)
{
    return mul == 1.0 ? v : qd_back_add(b, &qd_op_affine, QD_IN(v), QD_ATTRS(QD_FLOAT("mul", mul)));
}

/* --- two operands --- */

void qd_back_binary(qd_backward *b)
{
    const qd_op *op = b->node->op;
    const qd_node_id x = input(b, 0), y = input(b, 1), dy = b->dy;
    qd_node_id dx[2] = { -1, -1 };
    if (op == &qd_op_add || op == &qd_op_sub) {
        dx[0] = dy;
        dx[1] = b->want[1] ? scaled(b, dy, op == &qd_op_add ? 1.0 : -1.0) : -1;
    } else if (op == &qd_op_mul) {
        dx[0] = b->want[0] ? ADD(mul, dy, y) : -1;
        dx[1] = b->want[1] ? ADD(mul, dy, x) : -1;
    } else if (op == &qd_op_div) {
        dx[0] = ADD(div, dy, y);
        dx[1] = b->want[1] ? scaled(b, ADD(mul, dx[0], b->id), -1.0) : -1;
    } else if (op == &qd_op_pow) {
        if (b->want[0]) /* dy y x^(y - 1) */
            dx[0] = ADD(mul, ADD(mul, dy, y),
                        ADD(pow, x, qd_back_add(b, &qd_op_affine, QD_IN(y), QD_ATTRS(QD_FLOAT("add", -1.0)))));
        if (b->want[1])
            dx[1] = ADD(mul, ADD(mul, dy, b->id), ADD(log, x));
    } else { /* min and max: to the one taken, half to each of equals */
        const bool min = op == &qd_op_min;
        dx[0] = b->want[0] ? ADD(mul, dy, min ? ADD(less, x, y) : ADD(less, y, x)) : -1;
        dx[1] = b->want[1] ? ADD(mul, dy, min ? ADD(less, y, x) : ADD(less, x, y)) : -1;
    }
    for (int k = 0; k < 2; k++)
        if (b->want[k])
            b->dx[k] = shrink(b, dx[k], k);
}

/* To the one taken. */
void qd_back_where(qd_backward *b)
{
    const qd_node_id condition = input(b, 0), dy = b->dy;
    const qd_node_id none = qd_back_add(b, &qd_op_affine, QD_IN(dy), QD_ATTRS(QD_FLOAT("mul", 0.0)));
    if (b->want[1])
        b->dx[1] = shrink(b, ADD(where, condition, dy, none), 1);
    if (b->want[2])
        b->dx[2] = shrink(b, ADD(where, condition, none, dy), 2);
}

/* --- one operand --- */

void qd_back_unary(qd_backward *b)
{
    static const struct {
        const qd_op *op;
        qd_unary f;
    } rows[] = {
        { &qd_op_silu, QD_SILU }, { &qd_op_relu, QD_RELU }, { &qd_op_gelu, QD_GELU }, { &qd_op_sigmoid, QD_SIGMOID },
        { &qd_op_tanh, QD_TANH }, { &qd_op_sqrt, QD_SQRT }, { &qd_op_exp, QD_EXP },   { &qd_op_log, QD_LOG },
        { &qd_op_abs, QD_ABS },   { &qd_op_erf, QD_ERF },   { &qd_op_sin, QD_SIN },   { &qd_op_cos, QD_COS },
    };
    int k = 0;
    while (rows[k].op != b->node->op)
        k++;
    /* ReLU by its result, which is positive where x is: then x need not be kept. */
    const qd_node_id at = b->node->op == &qd_op_relu ? b->id : input(b, 0);
    b->dx[0] = qd_back_add(b, &qd_op_unary_grad, QD_IN(b->dy, at), QD_ATTRS(QD_INT("of", rows[k].f)));
}

void qd_back_affine(qd_backward *b)
{
    b->dx[0] = scaled(b, b->dy, qd_node_float(b->node, "mul"));
}

/* The row's own attributes go to the operator of the derivative, which has the same. */
static qd_node_id with_attrs(qd_backward *b, const qd_op *op, const qd_node_id *in, int n_in)
{
    return qd_back_add(b, op, in, n_in, b->node->attr, b->node->n_attrs);
}

void qd_back_clip(qd_backward *b)
{
    b->dx[0] = with_attrs(b, &qd_op_clip_grad, QD_IN(b->dy, input(b, 0)));
}

void qd_back_leaky_relu(qd_backward *b)
{
    b->dx[0] = with_attrs(b, &qd_op_leaky_relu_grad, QD_IN(b->dy, input(b, 0)));
}

void qd_back_softmax(qd_backward *b)
{
    b->dx[0] = with_attrs(b, b->node->op == &qd_op_softmax ? &qd_op_softmax_grad : &qd_op_log_softmax_grad,
                          QD_IN(b->dy, b->id));
}

void qd_back_copy(qd_backward *b) /* cast of an f32 */
{
    b->dx[0] = b->dy;
}

void qd_back_reduce(qd_backward *b)
{
    b->dx[0] = qd_back_add(b, &qd_op_reduce_grad, QD_IN(b->dy, input(b, 0)),
                           QD_ATTRS(*qd_node_ints(b->node, "axes"), QD_INT("mean", b->node->op == &qd_op_mean)));
}

void qd_back_soft_round(qd_backward *b)
{
    b->dx[0] = with_attrs(b, &qd_op_soft_round_grad, QD_IN(b->dy, input(b, 0)));
}

/* --- products --- */

static qd_node_id product(qd_backward *b, qd_node_id x, bool trans_x, qd_node_id y, bool trans_y)
{
    return qd_back_add(b, &qd_op_matmul, QD_IN(x, y),
                       QD_ATTRS(QD_INT("trans_a", trans_x), QD_INT("trans_b", trans_y),
                                QD_FLOAT("alpha", qd_node_float(b->node, "alpha"))));
}

/* A derivative of matmul has the axes before the last two of the result, input k perhaps fewer or smaller ones. */
static qd_node_id shrink_rows(qd_backward *b, qd_node_id v, int k)
{
    const qd_shape *x = qd_back_shape(b, input(b, k)), *y = qd_back_shape(b, b->id);
    bool same = x->rank == y->rank && (b->doubled || x->rank == 2);
    for (int d = 0; same && d < x->rank - 2; d++)
        same = x->dim[d] == y->dim[d] && b->doubled[input(b, k)].dim[d] == b->doubled[b->id].dim[d];
    return same ? v : ADD(sum_like, v, input(b, k));
}

void qd_back_matmul(qd_backward *b)
{
    const bool ta = qd_node_int(b->node, "trans_a"), tb = qd_node_int(b->node, "trans_b");
    const qd_node_id x = input(b, 0), y = input(b, 1);
    if (b->want[0])
        b->dx[0] = shrink_rows(b, ta ? product(b, y, tb, b->dy, true) : product(b, b->dy, false, y, !tb), 0);
    if (b->want[1])
        b->dx[1] = shrink_rows(b, tb ? product(b, b->dy, true, x, ta) : product(b, x, !ta, b->dy, false), 1);
}

void qd_back_linear(qd_backward *b)
{
    if (b->want[0])
        b->dx[0] = ADD(linear_grad_input, b->dy, input(b, 1));
    if (b->want[1])
        b->dx[1] = ADD(linear_grad_weight, b->dy, input(b, 0));
    if (b->want[2])
        b->dx[2] = ADD(sum_like, b->dy, input(b, 2));
}

/* [N, T, C] -> [N, heads, T, C / heads], and back. */
static qd_node_id split_heads(qd_backward *b, qd_node_id x, int64_t heads)
{
    const int64_t *s = qd_back_shape(b, x)->dim;
    const int64_t shape[4] = { 0, s[1], heads, s[2] / heads }, perm[4] = { 0, 2, 1, 3 };
    const qd_node_id apart = qd_back_add(b, &qd_op_reshape, QD_IN(x), QD_ATTRS(qd_attr_ints("shape", 4, shape)));
    return qd_back_add(b, &qd_op_permute, QD_IN(apart), QD_ATTRS(qd_attr_ints("perm", 4, perm)));
}

static qd_node_id join_heads(qd_backward *b, qd_node_id x, qd_node_id like)
{
    const int64_t perm[4] = { 0, 2, 1, 3 };
    const qd_node_id apart = qd_back_add(b, &qd_op_permute, QD_IN(x), QD_ATTRS(qd_attr_ints("perm", 4, perm)));
    return ADD(reshape_like, apart, like);
}

static qd_node_id times(qd_backward *b, qd_node_id x, bool trans_x, qd_node_id y, bool trans_y, double alpha)
{
    return qd_back_add(b, &qd_op_matmul, QD_IN(x, y),
                       QD_ATTRS(QD_INT("trans_a", trans_x), QD_INT("trans_b", trans_y), QD_FLOAT("alpha", alpha)));
}

/* p = softmax(scale q k^T), y = p v:  dv = p^T dy,  ds = softmax'(dy v^T),  dq = scale ds k,  dk = scale ds^T q. */
void qd_back_attention(qd_backward *b)
{
    const int64_t heads = qd_node_int(b->node, "heads"), channels = qd_back_shape(b, b->id)->dim[2];
    const double given = qd_node_float(b->node, "scale");
    const double scale = given != 0.0 ? given : 1.0 / sqrt((double)channels / (double)heads);
    const qd_node_id q = split_heads(b, input(b, 0), heads), k = split_heads(b, input(b, 1), heads);
    const qd_node_id v = split_heads(b, input(b, 2), heads), dy = split_heads(b, b->dy, heads);
    const qd_node_id p = ADD(softmax, times(b, q, false, k, true, scale));
    if (b->want[2])
        b->dx[2] = join_heads(b, times(b, p, true, dy, false, 1.0), input(b, 2));
    if (!b->want[0] && !b->want[1])
        return;
    const qd_node_id ds = ADD(softmax_grad, times(b, dy, false, v, true, 1.0), p);
    if (b->want[0])
        b->dx[0] = join_heads(b, times(b, ds, false, k, false, scale), input(b, 0));
    if (b->want[1])
        b->dx[1] = join_heads(b, times(b, ds, true, q, false, scale), input(b, 1));
}

void qd_back_embedding(qd_backward *b)
{
    if (b->want[1]) /* the index is piecewise constant */
        b->dx[1] =
            qd_back_add(b, &qd_op_gather_grad, QD_IN(b->dy, input(b, 0), input(b, 1)), QD_ATTRS(QD_INT("axis", 0)));
}

/* --- moved elements --- */

void qd_back_reshape(qd_backward *b)
{
    if (b->want[0])
        b->dx[0] = ADD(reshape_like, b->dy, input(b, 0));
}

void qd_back_permute(qd_backward *b)
{
    const qd_attr *perm = qd_node_ints(b->node, "perm");
    int64_t back[QD_MAX_RANK];
    for (int k = 0; k < perm->n; k++)
        back[perm->ints[k]] = k;
    b->dx[0] = qd_back_add(b, &qd_op_permute, QD_IN(b->dy), QD_ATTRS(qd_attr_ints("perm", perm->n, back)));
}

/* By the parts themselves, so that it holds for every batch; the eighth of eight by its fixed size. */
void qd_back_concat(qd_backward *b)
{
    const qd_node *n = b->node;
    for (int k = 0; k < n->n_inputs; k++) {
        qd_node_id in[QD_MAX_INPUTS] = { b->dy };
        const int64_t axis = qd_node_int(n, "axis");
        if (!b->want[k])
            continue;
        if (k + 2 > QD_MAX_INPUTS) {
            const qd_shape *part = qd_back_shape(b, n->input[k]);
            if (qd_node_axis(n, "axis", part->rank) == 0)
                qd_graph_fail(b->graph, QD_E_UNSUPPORTED,
                              "node '%s' (concat) of %d parts along the batch cannot be differentiated by the last",
                              n->name, n->n_inputs);
            const int64_t length = part->dim[qd_node_axis(n, "axis", part->rank)];
            b->dx[k] =
                qd_back_add(b, &qd_op_slice, QD_IN(b->dy), QD_ATTRS(QD_INT("axis", axis), QD_INT("start", -length)));
            continue;
        }
        for (int j = 0; j <= k; j++)
            in[j + 1] = n->input[j];
        b->dx[k] = qd_back_add(b, &qd_op_concat_grad, in, k + 2, QD_ATTRS(QD_INT("axis", axis)));
    }
}

void qd_back_slice(qd_backward *b)
{
    b->dx[0] = qd_back_add(b, &qd_op_slice_grad, QD_IN(b->dy, input(b, 0)),
                           QD_ATTRS(QD_INT("axis", qd_node_int(b->node, "axis")),
                                    QD_INT("start", qd_node_int(b->node, "start")),
                                    QD_INT("step", qd_node_int(b->node, "step"))));
}

void qd_back_gather(qd_backward *b)
{
    b->dx[0] = with_attrs(b, &qd_op_gather_grad, QD_IN(b->dy, input(b, 1), input(b, 0)));
}

void qd_back_expand(qd_backward *b)
{
    if (b->want[0])
        b->dx[0] = ADD(sum_like, b->dy, input(b, 0));
}

void qd_back_pad(qd_backward *b)
{
    b->dx[0] = qd_back_add(b, &qd_op_pad_grad, QD_IN(b->dy), QD_ATTRS(*qd_node_ints(b->node, "pads")));
}
