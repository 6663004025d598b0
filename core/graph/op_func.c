/* op_func.c - operators: functions of one value that networks from outside are made of, and the way from whole numbers to floats. */
#include "graph/op_int.h"

#include <math.h>
#include <string.h>

static qd_status func_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void func_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_unary f = n->op == &qd_op_sqrt  ? QD_SQRT
                       : n->op == &qd_op_exp ? QD_EXP
                       : n->op == &qd_op_log ? QD_LOG
                       : n->op == &qd_op_abs ? QD_ABS
                       : n->op == &qd_op_erf ? QD_ERF
                       : n->op == &qd_op_sin ? QD_SIN
                                             : QD_COS;
    qd_k_unary(qd_f32(out), qd_f32(in[0]), qd_tensor_count(out), f);
}

#define FUNC(op, summary_)                                                                                             \
    const qd_op qd_op_##op = { .name = #op,                                                                            \
                               .summary = summary_,                                                                    \
                               .min_inputs = 1,                                                                        \
                               .max_inputs = 1,                                                                        \
                               .infer = func_infer,                                                                    \
                               .forward = func_forward,                                                                \
                               .backward = qd_back_unary }
FUNC(sqrt, "Square root; NaN below 0.");
FUNC(exp, "e to the power of x.");
FUNC(log, "Natural logarithm; NaN below 0.");
FUNC(abs, "Absolute value.");
FUNC(erf, "Error function.");
FUNC(sin, "Sine.");
FUNC(cos, "Cosine.");

static qd_status leaky_relu_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_finite(n, "slope", err);
    return st ? st : func_infer(n, in, dtype, shape, err);
}

static void leaky_relu_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const float slope = (float)qd_node_float(n, "slope");
    const float *x = qd_f32(in[0]);
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++)
        qd_f32(out)[i] = x[i] < 0.0f ? x[i] * slope : x[i];
}

const qd_op qd_op_leaky_relu = {
    .name = "leaky_relu",
    .summary = "x, times a slope where it is negative.",
    .attrs = (const qd_op_attr[]){ { "slope", QD_ATTR_FLOAT, 0.01, 0, "of the negative side" }, { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = leaky_relu_infer,
    .forward = leaky_relu_forward,
    .backward = qd_back_leaky_relu,
};

static qd_status cast_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_INFER_ANY, 0, QD_MAX_RANK, err);
    if (st)
        return st;
    switch (in[0].dtype) {
    case QD_F32:
    case QD_I64:
    case QD_I32:
    case QD_I8:
    case QD_U8:
    case QD_BOOL:
        break;
    default:
        return qd_fail(err, QD_E_INVALID, "x is %s, must be f32, i64, i32, i8, u8 or bool", qd_dtype_name(in[0].dtype));
    }
    *shape = in[0].shape;
    *dtype = QD_F32;
    return QD_OK;
}

/* Element i as the nearest float; i64 and i32 may lie at any byte of a mapped file. */
static float cast_one(const qd_tensor *x, int64_t i)
{
    int64_t wide;
    int32_t narrow;
    switch (x->dtype) {
    case QD_I64:
        memcpy(&wide, (const char *)x->data + i * 8, sizeof wide);
        return (float)wide;
    case QD_I32:
        memcpy(&narrow, (const char *)x->data + i * 4, sizeof narrow);
        return (float)narrow;
    case QD_I8:
        return ((const int8_t *)x->data)[i];
    case QD_U8:
        return ((const uint8_t *)x->data)[i];
    case QD_BOOL:
        return ((const uint8_t *)x->data)[i] ? 1.0f : 0.0f;
    default:
        return ((const float *)x->data)[i];
    }
}

static void cast_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++)
        qd_f32(out)[i] = cast_one(in[0], i);
}

const qd_op qd_op_cast = {
    .name = "cast",
    .summary = "Whole numbers as floats.",
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = cast_infer,
    .forward = cast_forward,
    .backward = qd_back_copy,
};
