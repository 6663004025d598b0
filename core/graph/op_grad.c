/* op_grad.c - operators that differentiation makes: derivatives of elementwise functions, products, and adjoints of moving elements.
 *
 * `like` operands give a shape alone: their values are not read, so that graphs stay right for every batch. */
#include <math.h>
#include <string.h>

#include "graph/op_int.h"

const char qd_no_second[] = "made by differentiation; second derivatives are not taken";

qd_status qd_infer_same(const qd_operand *in, int a, const char *what_a, int b, const char *what_b, qd_err *err)
{
    char ta[160], tb[160];
    if (qd_shape_equal(&in[a].shape, &in[b].shape))
        return QD_OK;
    return qd_fail(err, QD_E_INVALID, "%s has shape %s, %s has %s", what_a, qd_shape_text(&in[a].shape, ta, sizeof ta),
                   what_b, qd_shape_text(&in[b].shape, tb, sizeof tb));
}

qd_status qd_infer_matches(const qd_operand *in, int k, const char *what, const qd_shape *want, qd_err *err)
{
    char ta[160], tb[160];
    if (qd_shape_equal(&in[k].shape, want))
        return QD_OK;
    return qd_fail(err, QD_E_INVALID, "%s has shape %s, must have %s", what, qd_shape_text(&in[k].shape, ta, sizeof ta),
                   qd_shape_text(want, tb, sizeof tb));
}

/* dy and x (or y): f32 of one shape, which the result has too. */
static qd_status pair_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "x", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_same(in, 0, "dy", 1, "x", err);
    if (!st)
        *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static qd_status unary_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_int(n, "of", 0, QD_COS, err);
    return st ? st : pair_infer(n, in, dtype, shape, err);
}

static void unary_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    qd_k_unary_grad(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_tensor_count(out), (qd_unary)qd_node_int(n, "of"));
}

const qd_op qd_op_unary_grad = {
    .name = "unary_grad",
    .summary = "dy f'(x) for a function of one value.",
    .attrs = (const qd_op_attr[]){ { "of", QD_ATTR_INT, NAN, 0, "the function: its number in qd_unary (kernels.h)" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = unary_grad_infer,
    .forward = unary_grad_forward,
    .no_gradient = qd_no_second,
};

static qd_status clip_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    const double lo = qd_node_float(n, "lo"), hi = qd_node_float(n, "hi");
    if (!(lo <= hi))
        return qd_fail(err, QD_E_INVALID, "lo must be <= hi, got %g and %g", lo, hi);
    return pair_infer(n, in, dtype, shape, err);
}

static void clip_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const float lo = (float)qd_node_float(n, "lo"), hi = (float)qd_node_float(n, "hi");
    const float *dy = qd_f32(in[0]), *x = qd_f32(in[1]);
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++)
        qd_f32(out)[i] = x[i] >= lo && x[i] <= hi ? dy[i] : 0.0f;
}

const qd_op qd_op_clip_grad = {
    .name = "clip_grad",
    .summary = "dy where lo <= x <= hi, else 0.",
    .attrs = (const qd_op_attr[]){ { "lo", QD_ATTR_FLOAT, -INFINITY, 0, "least value" },
                                   { "hi", QD_ATTR_FLOAT, INFINITY, 0, "greatest value" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = clip_grad_infer,
    .forward = clip_grad_forward,
    .no_gradient = qd_no_second,
};

static qd_status leaky_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_finite(n, "slope", err);
    return st ? st : pair_infer(n, in, dtype, shape, err);
}

static void leaky_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const float slope = (float)qd_node_float(n, "slope");
    const float *dy = qd_f32(in[0]), *x = qd_f32(in[1]);
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++)
        qd_f32(out)[i] = x[i] > 0.0f ? dy[i] : dy[i] * slope;
}

const qd_op qd_op_leaky_relu_grad = {
    .name = "leaky_relu_grad",
    .summary = "dy, times the slope where x is not positive.",
    .attrs = (const qd_op_attr[]){ { "slope", QD_ATTR_FLOAT, 0.01, 0, "of the negative side" }, { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = leaky_grad_infer,
    .forward = leaky_grad_forward,
    .no_gradient = qd_no_second,
};

static qd_status softmax_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                    qd_err *err)
{
    int axis;
    qd_status st = pair_infer(n, in, dtype, shape, err);
    if (!st && in[0].shape.rank == 0)
        st = qd_fail(err, QD_E_INVALID, "dy has no axis");
    return st ? st : qd_infer_axis(n, "axis", in[0].shape.rank, &axis, err);
}

static void softmax_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *s = &out->shape;
    const int axis = qd_node_axis(n, "axis", s->rank);
    (n->op == &qd_op_softmax_grad ? qd_k_softmax_grad : qd_k_log_softmax_grad)(
        qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_dims(s, 0, axis), s->dim[axis], qd_dims(s, axis + 1, s->rank));
}

#define SOFTMAX_GRAD(op, summary_)                                                                                     \
    const qd_op qd_op_##op = {                                                                                         \
        .name = #op,                                                                                                   \
        .summary = summary_,                                                                                           \
        .attrs = (const qd_op_attr[]){ { "axis", QD_ATTR_INT, -1, 0, "axis, negative from the end" }, { NULL } },      \
        .min_inputs = 2,                                                                                               \
        .max_inputs = 2,                                                                                               \
        .infer = softmax_grad_infer,                                                                                   \
        .forward = softmax_grad_forward,                                                                               \
        .no_gradient = qd_no_second,                                                                                   \
    }
SOFTMAX_GRAD(softmax_grad, "(dy, y): y (dy - sum of dy y), y being the softmax.");
SOFTMAX_GRAD(log_softmax_grad, "(dy, y): dy - exp(y) times the sum of dy, y being the log_softmax.");

/* --- linear --- */

static qd_status linear_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                   qd_err *err)
{
    const bool weight = n->op == &qd_op_linear_grad_weight;
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, weight ? "x" : "weight", QD_F32, weight ? 1 : 2, weight ? QD_MAX_RANK : 2, err);
    if (st)
        return st;
    const qd_shape *dy = &in[0].shape, *b = &in[1].shape;
    qd_shape r = *dy;
    if (weight) {
        qd_shape want = *dy;
        want.dim[want.rank - 1] = b->dim[b->rank - 1];
        st = qd_infer_matches(in, 1, "x", &want, err);
        r = QD_SHAPE(dy->dim[dy->rank - 1], b->dim[b->rank - 1]);
    } else if (dy->dim[dy->rank - 1] != b->dim[0]) {
        st = qd_fail(err, QD_E_INVALID, "dy has %lld features, weight makes %lld", (long long)dy->dim[dy->rank - 1],
                     (long long)b->dim[0]);
    } else {
        r.dim[r.rank - 1] = b->dim[1];
    }
    if (!st)
        st = qd_infer_result(&r, err);
    *shape = r;
    *dtype = QD_F32;
    return st;
}

static void linear_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *dy = &in[0]->shape;
    const int64_t o = dy->dim[dy->rank - 1], rows = qd_dims(dy, 0, dy->rank - 1);
    if (n->op == &qd_op_linear_grad_weight)
        qd_k_gemm(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), o, out->shape.dim[1], rows, true, false, 1.0f);
    else
        qd_k_gemm(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), rows, in[1]->shape.dim[1], o, false, false, 1.0f);
}

static int64_t linear_grad_macs(const qd_node *n, const qd_operand *in, const qd_shape *out)
{
    const qd_shape *dy = &in[0].shape;
    const int64_t width = n->op == &qd_op_linear_grad_weight ? out->dim[1] : in[1].shape.dim[1];
    return qd_sat_mul(qd_dims(dy, 0, dy->rank), width);
}

#define LINEAR_GRAD(op, summary_)                                                                                      \
    const qd_op qd_op_##op = {                                                                                         \
        .name = #op,                                                                                                   \
        .summary = summary_,                                                                                           \
        .min_inputs = 2,                                                                                               \
        .max_inputs = 2,                                                                                               \
        .infer = linear_grad_infer,                                                                                    \
        .forward = linear_grad_forward,                                                                                \
        .macs = linear_grad_macs,                                                                                      \
        .no_gradient = qd_no_second,                                                                                   \
    }
LINEAR_GRAD(linear_grad_input, "(dy [.., O], weight [O, I]): dy weight.");
LINEAR_GRAD(linear_grad_weight, "(dy [.., O], x [.., I]): dy^T x over all rows.");

/* --- adjoints --- */

/* Does `small` broadcast to `large`? */
static bool broadcasts_to(const qd_shape *small, const qd_shape *large)
{
    if (small->rank > large->rank)
        return false;
    for (int k = 0; k < small->rank; k++)
        if (small->dim[k] != 1 && small->dim[k] != large->dim[k + large->rank - small->rank])
            return false;
    return true;
}

static qd_status sum_like_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    char a[160], b[160];
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "like", QD_F32, 0, QD_MAX_RANK, err);
    if (!st && !broadcasts_to(&in[1].shape, &in[0].shape))
        st = qd_fail(err, QD_E_INVALID, "like of shape %s does not broadcast to dy of shape %s",
                     qd_shape_text(&in[1].shape, a, sizeof a), qd_shape_text(&in[0].shape, b, sizeof b));
    *shape = in[1].shape;
    *dtype = QD_F32;
    return st;
}

static void sum_like_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape, *o = &out->shape;
    const float *dy = qd_f32(in[0]);
    int64_t stride[QD_MAX_RANK] = { 0 }, extent[QD_MAX_RANK];
    /* Row-major over the result, and for each element over the axes summed away. */
    for (int k = x->rank - 1, j = o->rank - 1; k >= 0; k--, j--)
        extent[k] = j >= 0 && o->dim[j] == x->dim[k] ? 1 : x->dim[k];
    for (int k = 0; k < x->rank; k++)
        stride[k] = qd_dims(x, k + 1, x->rank);
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++) {
        int64_t base = 0, rest = i, inner = 1;
        for (int j = o->rank - 1; j >= 0; j--) {
            base += rest % o->dim[j] * stride[j + x->rank - o->rank];
            rest /= o->dim[j];
        }
        for (int k = 0; k < x->rank; k++)
            inner *= extent[k];
        double sum = 0.0;
        for (int64_t e = 0; e < inner; e++) {
            int64_t at = base, left = e;
            for (int k = x->rank - 1; k >= 0; k--) {
                at += left % extent[k] * stride[k];
                left /= extent[k];
            }
            sum += dy[at];
        }
        qd_f32(out)[i] = (float)sum;
    }
}

const qd_op qd_op_sum_like = {
    .name = "sum_like",
    .summary = "Summed over the axes along which `like` was broadcast to this shape.",
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = sum_like_infer,
    .forward = sum_like_forward,
    .no_gradient = qd_no_second,
};

static qd_status reshape_like_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                    qd_err *err)
{
    char a[160], b[160];
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "like", QD_F32, 0, QD_MAX_RANK, err);
    if (!st && qd_dims(&in[0].shape, 0, in[0].shape.rank) != qd_dims(&in[1].shape, 0, in[1].shape.rank))
        st = qd_fail(err, QD_E_INVALID, "x of shape %s cannot take shape %s", qd_shape_text(&in[0].shape, a, sizeof a),
                     qd_shape_text(&in[1].shape, b, sizeof b));
    *shape = in[1].shape;
    *dtype = QD_F32;
    return st;
}

static void copy_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    memcpy(out->data, in[0]->data, qd_tensor_bytes(out));
}

const qd_op qd_op_reshape_like = {
    .name = "reshape_like",
    .summary = "The same elements under the shape of `like`.",
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = reshape_like_infer,
    .forward = copy_forward,
    .backward = qd_back_reshape,
};

/* --- sums and means --- */

static qd_status reduce_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                   qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "like", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_ints(n, "axes", -in[1].shape.rank, in[1].shape.rank - 1, err);
    if (!st)
        st = qd_infer_int(n, "mean", 0, 1, err);
    if (st)
        return st;
    const qd_shape *x = &in[1].shape;
    const qd_attr *axes = qd_node_ints(n, "axes");
    qd_shape kept = *x;
    for (int k = 0; k < axes->n; k++)
        kept.dim[axes->ints[k] < 0 ? axes->ints[k] + x->rank : axes->ints[k]] = 1;
    if (qd_dims(&in[0].shape, 0, in[0].shape.rank) != qd_dims(&kept, 0, kept.rank))
        return qd_infer_matches(in, 0, "dy", &kept, err);
    *shape = *x;
    *dtype = QD_F32;
    return QD_OK;
}

static void reduce_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &out->shape;
    const qd_attr *axes = qd_node_ints(n, "axes");
    int64_t stride[QD_MAX_RANK], step = 1; /* in dy; 0 along the axes that were reduced */
    qd_shape kept = *x;
    for (int k = 0; k < axes->n; k++)
        kept.dim[axes->ints[k] < 0 ? axes->ints[k] + x->rank : axes->ints[k]] = 1;
    for (int k = x->rank - 1; k >= 0; k--) {
        stride[k] = kept.dim[k] == x->dim[k] ? step : 0;
        step *= kept.dim[k];
    }
    const double each = (double)qd_tensor_count(out) / (double)qd_tensor_count(in[0]);
    const float factor = qd_node_int(n, "mean") ? (float)(1.0 / each) : 1.0f;
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++) {
        int64_t at = 0, rest = i;
        for (int k = x->rank - 1; k >= 0; k--) {
            at += rest % x->dim[k] * stride[k];
            rest /= x->dim[k];
        }
        qd_f32(out)[i] = qd_f32(in[0])[at] * factor;
    }
}

const qd_op qd_op_reduce_grad = {
    .name = "reduce_grad",
    .summary = "dy repeated along the axes that were summed away from `like`, over their number for a mean.",
    .attrs = (const qd_op_attr[]){ { "axes", QD_ATTR_INTS, NAN, 0, "that were reduced, negative from the end" },
                                   { "mean", QD_ATTR_INT, 0, 0, "1: of a mean" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = reduce_grad_infer,
    .forward = reduce_grad_forward,
    .no_gradient = qd_no_second,
};

/* --- detach --- */

static qd_status detach_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void detach_backward(qd_backward *b)
{
    b->dx[0] = -1;
}

const qd_op qd_op_detach = {
    .name = "detach",
    .summary = "The value itself, through which no gradient flows.",
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = detach_infer,
    .forward = copy_forward,
    .backward = detach_backward,
};
