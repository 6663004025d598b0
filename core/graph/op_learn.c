/* op_learn.c - operators for learning quantizers: a step size that is learned (LSQ), and AdaRound's soft rounding (qncd.md 6.1). */
#include <math.h>

#include "graph/op_int.h"

static void code_range(const qd_node *n, int32_t *qmin, int32_t *qmax)
{
    const int bits = (int)qd_node_int(n, "bits");
    const bool is_signed = qd_node_int(n, "symmetric");
    *qmin = is_signed ? -(1 << (bits - 1)) : 0;
    *qmax = is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
}

/* x and scale: [1], or one for each place along `axis` of x. */
static qd_status learned_infer(const qd_node *n, const qd_operand *in, int x, int scale, qd_err *err)
{
    int axis;
    qd_status st = qd_infer_operand(in, x, "x", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, scale, "scale", QD_F32, 1, 1, err);
    if (!st)
        st = qd_infer_int(n, "bits", 2, 16, err);
    if (!st)
        st = qd_infer_int(n, "symmetric", 0, 1, err);
    if (!st)
        st = qd_infer_axis(n, "axis", in[x].shape.rank, &axis, err);
    if (!st && in[scale].shape.dim[0] != 1)
        st = qd_infer_vector(in, scale, "scale", in[x].shape.dim[axis], err);
    return st;
}

static int64_t inner_of(const qd_node *n, const qd_tensor *x, const qd_tensor *scale)
{
    return scale->shape.dim[0] == 1 ? qd_tensor_count(x)
                                    : qd_dims(&x->shape, qd_node_axis(n, "axis", x->shape.rank) + 1, x->shape.rank);
}

static qd_status learned_quant_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                     qd_err *err)
{
    qd_status st = learned_infer(n, in, 0, 1, err);
    if (!st)
        st = qd_infer_int(n, "pass_all", 0, 1, err);
    *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void learned_quant_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    int32_t qmin, qmax;
    code_range(n, &qmin, &qmax);
    qd_k_learned_quant(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_tensor_count(out), in[1]->shape.dim[0],
                       inner_of(n, in[0], in[1]), qmin, qmax);
}

#define LEARNED_ATTRS                                                                                                  \
    { "bits", QD_ATTR_INT, 8, 0, "2..16" },                                                                            \
        { "symmetric", QD_ATTR_INT, 1, 0, "1: two's complement codes, 0: from 0" },                                    \
    {                                                                                                                  \
        "axis", QD_ATTR_INT, 0, 0, "of x, along which the scales lie"                                                  \
    }

const qd_op qd_op_learned_quant = {
    .name = "learned_quant",
    .summary = "(x, scale [1] or [C]): the value of the nearest code, the step given as a value (LSQ).",
    .attrs = (const qd_op_attr[]){ LEARNED_ATTRS,
                                   { "pass_all", QD_ATTR_INT, 0, 0, "1: the gradient passes outside the range too" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = learned_quant_infer,
    .forward = learned_quant_forward,
    .backward = qd_back_learned_quant,
};

static qd_status learned_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                    qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = learned_infer(n, in, 1, 2, err);
    if (!st)
        st = qd_infer_same(in, 0, "dy", 1, "x", err);
    *shape = in[n->op == &qd_op_learned_quant_grad_scale ? 2 : 1].shape;
    *dtype = QD_F32;
    return st;
}

static void learned_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    int32_t qmin, qmax;
    code_range(n, &qmin, &qmax);
    (n->op == &qd_op_learned_quant_grad_scale ? qd_k_learned_quant_grad_scale : qd_k_learned_quant_grad)(
        qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_f32(in[2]), qd_tensor_count(in[1]), in[2]->shape.dim[0],
        inner_of(n, in[1], in[2]), qmin, qmax);
}

#define LEARNED_GRAD(op, summary_)                                                                                     \
    const qd_op qd_op_##op = {                                                                                         \
        .name = #op,                                                                                                   \
        .summary = summary_,                                                                                           \
        .attrs = (const qd_op_attr[]){ LEARNED_ATTRS, { NULL } },                                                      \
        .min_inputs = 3,                                                                                               \
        .max_inputs = 3,                                                                                               \
        .infer = learned_grad_infer,                                                                                   \
        .forward = learned_grad_forward,                                                                               \
        .no_gradient = qd_no_second,                                                                                   \
    }
LEARNED_GRAD(learned_quant_grad, "(dy, x, scale): dy where x is in range.");
LEARNED_GRAD(learned_quant_grad_scale, "(dy, x, scale): the derivative by scale of a learned_quant.");

static qd_status soft_round_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    const bool grad = n->op == &qd_op_soft_round_grad;
    qd_status st = qd_infer_finite(n, "lo", err);
    if (!st)
        st = qd_infer_finite(n, "hi", err);
    if (!st && !(qd_node_float(n, "lo") < qd_node_float(n, "hi")))
        st = qd_fail(err, QD_E_INVALID, "lo must be < hi, got %g and %g", qd_node_float(n, "lo"),
                     qd_node_float(n, "hi"));
    for (int k = 0; !st && k <= grad; k++)
        st = qd_infer_operand(in, k, k == grad ? "v" : "dy", QD_F32, 0, QD_MAX_RANK, err);
    if (!st && grad)
        st = qd_infer_same(in, 0, "dy", 1, "v", err);
    *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void soft_round_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const float lo = (float)qd_node_float(n, "lo"), hi = (float)qd_node_float(n, "hi");
    if (n->op == &qd_op_soft_round_grad)
        qd_k_soft_round_grad(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_tensor_count(out), lo, hi);
    else
        qd_k_soft_round(qd_f32(out), qd_f32(in[0]), qd_tensor_count(out), lo, hi);
}

#define SOFT_ATTRS                                                                                                     \
    (const qd_op_attr[])                                                                                               \
    {                                                                                                                  \
        { "lo", QD_ATTR_FLOAT, -0.1, 0, "gamma: where the sigmoid begins" },                                           \
            { "hi", QD_ATTR_FLOAT, 1.1, 0, "zeta: where it ends" },                                                    \
        {                                                                                                              \
            NULL                                                                                                       \
        }                                                                                                              \
    }

const qd_op qd_op_soft_round = {
    .name = "soft_round",
    .summary = "AdaRound's h(v): a sigmoid stretched from lo to hi, held in [0, 1].",
    .attrs = SOFT_ATTRS,
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = soft_round_infer,
    .forward = soft_round_forward,
    .backward = qd_back_soft_round,
};

const qd_op qd_op_soft_round_grad = {
    .name = "soft_round_grad",
    .summary = "(dy, v): dy h'(v).",
    .attrs = SOFT_ATTRS,
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = soft_round_infer,
    .forward = soft_round_forward,
    .no_gradient = qd_no_second,
};

/* --- the straight-through derivative of fake_quant: qncd.md 3.1's map, held range --- */

static qd_status fake_quant_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                       qd_err *err)
{
    const qd_operand forward[2] = { in[1], in[2] };
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        st = qd_op_fake_quant.infer(n, forward, dtype, shape, err);
    if (!st)
        st = qd_infer_same(in, 0, "dy", 1, "x", err);
    return st;
}

static void fake_quant_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[1]->shape;
    const float scale = (float)qd_node_float(n, "scale");
    const int64_t zero = qd_node_int(n, "zero");
    const int64_t channels = in[2] ? x->dim[1] : 1, inner = in[2] ? qd_dims(x, 2, x->rank) : qd_tensor_count(out);
    int32_t qmin, qmax;
    qd_node_code_range(n, &qmin, &qmax);
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++) {
        const float divisor = in[2] ? qd_f32(in[2])[i / inner % channels] : 1.0f,
                    r = qd_f32(in[1])[i] / divisor / scale;
        /* dequantizing does not multiply by the divisor: 1 / divisor stays in the slope */
        qd_f32(out)[i] = r >= (float)(qmin - zero) && r <= (float)(qmax - zero) ? qd_f32(in[0])[i] / divisor : 0.0f;
    }
}

const qd_op qd_op_fake_quant_grad = {
    .name = "fake_quant_grad",
    .summary = "(dy, x, divisor?): dy (over the divisor) where x is in range.",
    .attrs = (const qd_op_attr[]){ { "scale", QD_ATTR_FLOAT, NAN, 0, "real units of one step, > 0" },
                                   { "zero", QD_ATTR_INT, 0, 0, "the code of 0.0" },
                                   { "bits", QD_ATTR_INT, 8, 0, "2..16" },
                                   { "symmetric", QD_ATTR_INT, 0, 0, "1: two's complement codes, 0: 0..2^bits-1" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 3,
    .infer = fake_quant_grad_infer,
    .forward = fake_quant_grad_forward,
    .no_gradient = qd_no_second,
};
