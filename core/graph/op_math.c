/* op_math.c - operators: elementwise arithmetic, activations, softmax, products, embeddings. */
#include "graph/op_int.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* --- two operands, broadcast as numpy does --- */

/* Dims of the result for axes [0, rank - keep) of both, the shorter shape extended to the left; the last `keep` axes are not
 * looked at. */
static qd_status broadcast(const qd_shape *a, const qd_shape *b, int keep, qd_shape *out, qd_err *err)
{
    const int rank = a->rank > b->rank ? a->rank : b->rank;
    qd_shape r = { .rank = rank };
    for (int k = 0; k < rank - keep; k++) {
        const int ka = k - (rank - a->rank), kb = k - (rank - b->rank);
        const int64_t da = ka < 0 ? 1 : a->dim[ka], db = kb < 0 ? 1 : b->dim[kb];
        if (da != db && da != 1 && db != 1) {
            char ta[160], tb[160];
            return qd_fail(err, QD_E_INVALID, "shapes %s and %s do not broadcast: %lld against %lld",
                           qd_shape_text(a, ta, sizeof ta), qd_shape_text(b, tb, sizeof tb), (long long)da,
                           (long long)db);
        }
        r.dim[k] = da == 1 ? db : da;
    }
    *out = r;
    return QD_OK;
}

/* Elements to step in `in` for one step along each axis of out; 0 where it is broadcast. `unit` elements make one step along
 * the last axis looked at. */
static void broadcast_strides(const qd_shape *in, const qd_shape *out, int keep, int64_t unit,
                              int64_t stride[QD_MAX_RANK])
{
    int64_t step = unit;
    for (int k = out->rank - 1 - keep; k >= 0; k--) {
        const int ki = k - (out->rank - in->rank);
        const int64_t d = ki < 0 ? 1 : in->dim[ki];
        stride[k] = d == 1 ? 0 : step;
        step *= d;
    }
}

/* The next index in row-major order over axes [0, axes), moving both offsets along. */
static void advance(int64_t *index, const qd_shape *out, int axes, const int64_t *sa, const int64_t *sb, int64_t *a,
                    int64_t *b)
{
    for (int k = axes - 1; k >= 0; k--) {
        *a += sa[k];
        *b += sb[k];
        if (++index[k] < out->dim[k])
            return;
        *a -= sa[k] * out->dim[k];
        *b -= sb[k] * out->dim[k];
        index[k] = 0;
    }
}

static qd_status binary_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "a", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "b", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        st = broadcast(&in[0].shape, &in[1].shape, 0, shape, err);
    if (!st)
        st = qd_infer_result(shape, err);
    *dtype = QD_F32;
    return st;
}

/* min and max give NaN where one side is NaN, as PyTorch does. */
static float rarer(const qd_op *op, float x, float y)
{
    if (op == &qd_op_less)
        return x < y ? 1.0f : x == y ? 0.5f : 0.0f;
    if (op == &qd_op_pow)
        return (float)pow(x, y);
    if (isnan(x) || isnan(y))
        return NAN;
    return (op == &qd_op_min) == (x < y) ? x : y;
}

static void binary_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const int rank = out->shape.rank, outer = rank ? rank - 1 : 0;
    const int64_t width = rank ? out->shape.dim[rank - 1] : 1;
    int64_t sa[QD_MAX_RANK] = { 0 }, sb[QD_MAX_RANK] = { 0 }, index[QD_MAX_RANK] = { 0 };
    int64_t a = 0, b = 0;
    broadcast_strides(&in[0]->shape, &out->shape, 0, 1, sa);
    broadcast_strides(&in[1]->shape, &out->shape, 0, 1, sb);
    const int64_t step_a = rank ? sa[rank - 1] : 0, step_b = rank ? sb[rank - 1] : 0;

    float *dst = qd_f32(out);
    for (int64_t rows = qd_dims(&out->shape, 0, outer); rows > 0; rows--) {
        const float *x = qd_f32(in[0]) + a, *y = qd_f32(in[1]) + b;
        if (n->op == &qd_op_add)
            for (int64_t i = 0; i < width; i++)
                dst[i] = x[i * step_a] + y[i * step_b];
        else if (n->op == &qd_op_sub)
            for (int64_t i = 0; i < width; i++)
                dst[i] = x[i * step_a] - y[i * step_b];
        else if (n->op == &qd_op_mul)
            for (int64_t i = 0; i < width; i++)
                dst[i] = x[i * step_a] * y[i * step_b];
        else if (n->op == &qd_op_div)
            for (int64_t i = 0; i < width; i++)
                dst[i] = x[i * step_a] / y[i * step_b];
        else
            for (int64_t i = 0; i < width; i++)
                dst[i] = rarer(n->op, x[i * step_a], y[i * step_b]);
        dst += width;
        advance(index, &out->shape, outer, sa, sb, &a, &b);
    }
}

#define BINARY(op, summary_)                                                                                           \
    const qd_op qd_op_##op = { .name = #op,                                                                            \
                               .summary = summary_,                                                                    \
                               .min_inputs = 2,                                                                        \
                               .max_inputs = 2,                                                                        \
                               .infer = binary_infer,                                                                  \
                               .forward = binary_forward,                                                              \
                               .backward = qd_back_binary }
BINARY(add, "Sum of two values, broadcast.");
BINARY(sub, "Difference of two values, broadcast.");
BINARY(mul, "Product of two values, broadcast.");
BINARY(div, "Quotient of two values, broadcast.");
BINARY(pow, "The first value to the power of the second, broadcast.");
BINARY(min, "The lesser of two values, broadcast.");
BINARY(max, "The greater of two values, broadcast.");

const qd_op qd_op_less = {
    .name = "less",
    .summary = "1 where the first value is less than the second, 1/2 where they are equal, else 0; broadcast.",
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = binary_infer,
    .forward = binary_forward,
    .no_gradient = "is a step: its derivative is zero wherever it exists",
};

/* --- one operand, same shape --- */

static qd_status same_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void unary_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_unary f = n->op == &qd_op_silu      ? QD_SILU
                       : n->op == &qd_op_relu    ? QD_RELU
                       : n->op == &qd_op_gelu    ? QD_GELU
                       : n->op == &qd_op_sigmoid ? QD_SIGMOID
                                                 : QD_TANH;
    qd_k_unary(qd_f32(out), qd_f32(in[0]), qd_tensor_count(out), f);
}

#define UNARY(op, summary_)                                                                                            \
    const qd_op qd_op_##op = { .name = #op,                                                                            \
                               .summary = summary_,                                                                    \
                               .min_inputs = 1,                                                                        \
                               .max_inputs = 1,                                                                        \
                               .infer = same_infer,                                                                    \
                               .forward = unary_forward,                                                               \
                               .backward = qd_back_unary }
UNARY(silu, "x * sigmoid(x).");
UNARY(relu, "The positive part.");
UNARY(gelu, "x times the normal distribution function of x, the exact (erf) form.");
UNARY(sigmoid, "1 / (1 + exp(-x)).");
UNARY(tanh, "Hyperbolic tangent.");

static qd_status affine_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_finite(n, "mul", err);
    if (!st)
        st = qd_infer_finite(n, "add", err);
    return st ? st : same_infer(n, in, dtype, shape, err);
}

static void affine_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const float mul = (float)qd_node_float(n, "mul"), add = (float)qd_node_float(n, "add");
    const float *x = qd_f32(in[0]);
    float *y = qd_f32(out);
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++)
        y[i] = x[i] * mul + add;
}

const qd_op qd_op_affine = {
    .name = "affine",
    .summary = "x * mul + add with two numbers.",
    .attrs = (const qd_op_attr[]){ { "mul", QD_ATTR_FLOAT, 1.0, 0, "factor" },
                                   { "add", QD_ATTR_FLOAT, 0.0, 0, "term" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = affine_infer,
    .forward = affine_forward,
    .backward = qd_back_affine,
};

static qd_status clip_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    const double lo = qd_node_float(n, "lo"), hi = qd_node_float(n, "hi");
    if (!(lo <= hi))
        return qd_fail(err, QD_E_INVALID, "lo must be <= hi, got %g and %g", lo, hi);
    return same_infer(n, in, dtype, shape, err);
}

static void clip_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    qd_k_clip(qd_f32(out), qd_f32(in[0]), qd_tensor_count(out), (float)qd_node_float(n, "lo"),
              (float)qd_node_float(n, "hi"));
}

const qd_op qd_op_clip = {
    .name = "clip",
    .summary = "Held in [lo, hi]; NaN stays NaN.",
    .attrs = (const qd_op_attr[]){ { "lo", QD_ATTR_FLOAT, -INFINITY, 0, "least value" },
                                   { "hi", QD_ATTR_FLOAT, INFINITY, 0, "greatest value" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = clip_infer,
    .forward = clip_forward,
    .backward = qd_back_clip,
};

static qd_status softmax_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    int axis;
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_axis(n, "axis", in[0].shape.rank, &axis, err);
    if (!st)
        *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void softmax_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *s = &in[0]->shape;
    const int axis = qd_node_axis(n, "axis", s->rank);
    (n->op == &qd_op_softmax ? qd_k_softmax : qd_k_log_softmax)(qd_f32(out), qd_f32(in[0]), qd_dims(s, 0, axis),
                                                                s->dim[axis], qd_dims(s, axis + 1, s->rank));
}

const qd_op qd_op_softmax = {
    .name = "softmax",
    .summary = "exp(x) over its sum along one axis.",
    .attrs = (const qd_op_attr[]){ { "axis", QD_ATTR_INT, -1, 0, "axis, negative from the end" }, { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = softmax_infer,
    .forward = softmax_forward,
    .backward = qd_back_softmax,
};

const qd_op qd_op_log_softmax = {
    .name = "log_softmax",
    .summary = "Logarithm of the softmax along one axis.",
    .attrs = (const qd_op_attr[]){ { "axis", QD_ATTR_INT, -1, 0, "axis, negative from the end" }, { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = softmax_infer,
    .forward = softmax_forward,
    .backward = qd_back_softmax,
};

/* --- products --- */

static qd_status matmul_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "a", QD_F32, 2, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "b", QD_F32, 2, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_int(n, "trans_a", 0, 1, err);
    if (!st)
        st = qd_infer_int(n, "trans_b", 0, 1, err);
    if (!st)
        st = qd_infer_finite(n, "alpha", err);
    if (st)
        return st;

    const qd_shape *a = &in[0].shape, *b = &in[1].shape;
    const int64_t ta = qd_node_int(n, "trans_a"), tb = qd_node_int(n, "trans_b");
    const int64_t ka = a->dim[a->rank - (ta ? 2 : 1)], kb = b->dim[b->rank - (tb ? 1 : 2)];
    if (ka != kb)
        return qd_fail(err, QD_E_INVALID, "a has %lld columns, b has %lld rows", (long long)ka, (long long)kb);
    qd_shape r;
    st = broadcast(a, b, 2, &r, err);
    if (st)
        return st;
    r.dim[r.rank - 2] = a->dim[a->rank - (ta ? 1 : 2)];
    r.dim[r.rank - 1] = b->dim[b->rank - (tb ? 2 : 1)];
    st = qd_infer_result(&r, err);
    *shape = r;
    *dtype = QD_F32;
    return st;
}

static void matmul_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const bool ta = qd_node_int(n, "trans_a"), tb = qd_node_int(n, "trans_b");
    const float alpha = (float)qd_node_float(n, "alpha");
    const qd_shape *a = &in[0]->shape, *b = &in[1]->shape, *o = &out->shape;
    const int64_t rows = o->dim[o->rank - 2], cols = o->dim[o->rank - 1], k = a->dim[a->rank - (ta ? 2 : 1)];
    int64_t sa[QD_MAX_RANK] = { 0 }, sb[QD_MAX_RANK] = { 0 }, index[QD_MAX_RANK] = { 0 };
    int64_t at_a = 0, at_b = 0;
    broadcast_strides(a, o, 2, rows * k, sa);
    broadcast_strides(b, o, 2, k * cols, sb);

    float *dst = qd_f32(out);
    for (int64_t batch = qd_dims(o, 0, o->rank - 2); batch > 0; batch--) {
        qd_k_gemm(dst, qd_f32(in[0]) + at_a, qd_f32(in[1]) + at_b, rows, cols, k, ta, tb, alpha);
        dst += rows * cols;
        advance(index, o, o->rank - 2, sa, sb, &at_a, &at_b);
    }
}

static int64_t matmul_macs(const qd_node *n, const qd_operand *in, const qd_shape *out)
{
    const qd_shape *a = &in[0].shape;
    return qd_sat_mul(qd_dims(out, 0, out->rank), a->dim[a->rank - (qd_node_int(n, "trans_a") ? 2 : 1)]);
}

const qd_op qd_op_matmul = {
    .name = "matmul",
    .summary = "alpha times the matrix product over the last two axes, the others broadcast.",
    .attrs = (const qd_op_attr[]){ { "trans_a", QD_ATTR_INT, 0, 0, "1: a is [.., K, M]" },
                                   { "trans_b", QD_ATTR_INT, 0, 0, "1: b is [.., N, K]" },
                                   { "alpha", QD_ATTR_FLOAT, 1.0, 0, "factor" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = matmul_infer,
    .forward = matmul_forward,
    .macs = matmul_macs,
    .backward = qd_back_matmul,
};

static qd_status linear_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "weight", QD_F32, 2, 2, err);
    if (st)
        return st;
    qd_shape r = in[0].shape;
    const int64_t features = in[1].shape.dim[1];
    if (r.dim[r.rank - 1] != features)
        return qd_fail(err, QD_E_INVALID, "x has %lld features, weight wants %lld", (long long)r.dim[r.rank - 1],
                       (long long)features);
    r.dim[r.rank - 1] = in[1].shape.dim[0];
    st = qd_infer_optional(in, 2, "bias", in[1].shape.dim[0], err);
    if (!st)
        st = qd_infer_result(&r, err);
    *shape = r;
    *dtype = QD_F32;
    return st;
}

static void linear_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *w = &in[1]->shape;
    qd_k_linear(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), in[2] ? qd_f32(in[2]) : NULL,
                qd_dims(&out->shape, 0, out->shape.rank - 1), w->dim[1], w->dim[0]);
}

int64_t qd_macs_linear(const qd_node *n, const qd_operand *in, const qd_shape *out)
{
    return qd_sat_mul(qd_dims(out, 0, out->rank), in[1].shape.dim[1]);
}

const qd_op qd_op_linear = {
    .name = "linear",
    .summary = "x W^T + bias over the last axis.",
    .min_inputs = 2,
    .max_inputs = 3,
    .infer = linear_infer,
    .forward = linear_forward,
    .macs = qd_macs_linear,
    .backward = qd_back_linear,
};

/* --- embeddings --- */

/* A list of times or indices: rank 1, f32 or i64. */
static qd_status list_infer(const qd_operand *in, const char *what, qd_err *err)
{
    const bool wide = in[0].shape.rank >= 0 && in[0].dtype == QD_I64;
    return qd_infer_operand(in, 0, what, wide ? QD_I64 : QD_F32, 1, 1, err);
}

/* Mapped files hand out i64 at any byte. */
static int64_t i64_at(const qd_tensor *t, int64_t i)
{
    int64_t v;
    memcpy(&v, (const char *)t->data + i * 8, sizeof v);
    return v;
}

static qd_status timestep_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = list_infer(in, "t", err);
    if (!st)
        st = qd_infer_int(n, "dim", 2, 65536, err);
    if (!st)
        st = qd_infer_int(n, "flip_sin_to_cos", 0, 1, err);
    if (!st)
        st = qd_infer_finite(n, "freq_shift", err);
    if (!st)
        st = qd_infer_positive(n, "max_period", err);
    if (st)
        return st;
    const int64_t dim = qd_node_int(n, "dim");
    const float shift = (float)qd_node_float(n, "freq_shift");
    if (!((float)(dim / 2) - shift > 0.0f))
        return qd_fail(err, QD_E_INVALID, "freq_shift must be below dim / 2 = %lld, got %g", (long long)(dim / 2),
                       (double)shift);
    *shape = QD_SHAPE(in[0].shape.dim[0], dim);
    *dtype = QD_F32;
    return qd_infer_result(shape, err);
}

static void timestep_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const int64_t dim = out->shape.dim[1];
    for (int64_t i = 0; i < out->shape.dim[0]; i++) {
        const float t = in[0]->dtype == QD_I64 ? (float)i64_at(in[0], i) : qd_f32(in[0])[i];
        qd_k_timestep(qd_f32(out) + i * dim, &t, 1, dim, qd_node_int(n, "flip_sin_to_cos"),
                      (float)qd_node_float(n, "freq_shift"), (float)qd_node_float(n, "max_period"));
    }
}

const qd_op qd_op_timestep = {
    .name = "timestep",
    .summary = "Sines and cosines of a time at falling frequencies.",
    .attrs = (const qd_op_attr[]){ { "dim", QD_ATTR_INT, NAN, 0, "width of the result" },
                                   { "flip_sin_to_cos", QD_ATTR_INT, 0, 0, "1: cosines first" },
                                   { "freq_shift", QD_ATTR_FLOAT, 0.0, 0, "1 for DDPM models, 0 for latent diffusion" },
                                   { "max_period", QD_ATTR_FLOAT, 10000.0, 0, "slowest period over 2 pi" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = timestep_infer,
    .forward = timestep_forward,
    .no_gradient = "a time is data: what is learned begins after it",
};

static qd_status embedding_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = list_infer(in, "index", err);
    if (!st)
        st = qd_infer_operand(in, 1, "table", QD_F32, 2, 2, err);
    if (st)
        return st;
    *shape = QD_SHAPE(in[0].shape.dim[0], in[1].shape.dim[1]);
    *dtype = QD_F32;
    return qd_infer_result(shape, err);
}

static void embedding_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const int64_t last = in[1]->shape.dim[0] - 1, width = in[1]->shape.dim[1];
    for (int64_t i = 0; i < out->shape.dim[0]; i++) {
        int64_t row;
        if (in[0]->dtype == QD_I64) {
            row = i64_at(in[0], i);
        } else {
            const float v = qd_f32(in[0])[i];
            row = v >= (float)last ? last
                  : v > 0.0f       ? (int64_t)v
                                   : 0; /* compared first: a NaN or a huge float has no int64 */
        }
        row = row < 0 ? 0 : row > last ? last : row;
        memcpy(qd_f32(out) + i * width, qd_f32(in[1]) + row * width, (size_t)width * sizeof(float));
    }
}

const qd_op qd_op_embedding = {
    .name = "embedding",
    .summary = "Rows of a table by index.",
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = embedding_infer,
    .forward = embedding_forward,
    .backward = qd_back_embedding,
};
