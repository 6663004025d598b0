/* ops.c - the table of operators, and the checks their shape rules share. */
#include "graph/op_int.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Where graphs begin: neither computes anything. */
const qd_op qd_op_input = { .name = "input",
                            .summary = "A value given from outside at every call.",
                            .no_gradient = "has no inputs" };
const qd_op qd_op_const = { .name = "const", .summary = "A stored tensor.", .no_gradient = "has no inputs" };

/* clang-format off */
const qd_op *const qd_ops[] = {
    &qd_op_input, &qd_op_const,
    &qd_op_add, &qd_op_sub, &qd_op_mul, &qd_op_div, &qd_op_affine,
    &qd_op_silu, &qd_op_relu, &qd_op_gelu, &qd_op_sigmoid, &qd_op_tanh, &qd_op_clip,
    &qd_op_pow, &qd_op_min, &qd_op_max,
    &qd_op_sqrt, &qd_op_exp, &qd_op_log, &qd_op_abs, &qd_op_erf, &qd_op_sin, &qd_op_cos, &qd_op_leaky_relu, &qd_op_cast, &qd_op_where,
    &qd_op_mean, &qd_op_sum,
    &qd_op_softmax, &qd_op_log_softmax, &qd_op_matmul, &qd_op_linear, &qd_op_attention, &qd_op_timestep, &qd_op_embedding, &qd_op_codebook,
    &qd_op_conv2d, &qd_op_conv_transpose2d, &qd_op_upsample, &qd_op_avg_pool, &qd_op_max_pool, &qd_op_global_avg_pool,
    &qd_op_group_norm, &qd_op_layer_norm, &qd_op_batch_norm,
    &qd_op_reshape, &qd_op_permute, &qd_op_concat, &qd_op_slice, &qd_op_gather, &qd_op_expand, &qd_op_pad,
    &qd_op_quantize, &qd_op_dequantize, &qd_op_fake_quant, &qd_op_qconv2d, &qd_op_qlinear, &qd_op_qattention, &qd_op_fake_attention,
    &qd_op_batch_norm_stats, &qd_op_batch_norm_train, &qd_op_learned_quant, &qd_op_soft_round, &qd_op_detach,
    &qd_op_less, &qd_op_unary_grad, &qd_op_clip_grad, &qd_op_leaky_relu_grad, &qd_op_softmax_grad, &qd_op_log_softmax_grad,
    &qd_op_linear_grad_input, &qd_op_linear_grad_weight, &qd_op_sum_like, &qd_op_reshape_like, &qd_op_reduce_grad,
    &qd_op_slice_grad, &qd_op_gather_grad, &qd_op_concat_grad, &qd_op_pad_grad,
    &qd_op_conv2d_grad_input, &qd_op_conv2d_grad_weight, &qd_op_avg_pool_grad, &qd_op_max_pool_grad,
    &qd_op_group_norm_grad, &qd_op_group_norm_grad_weight, &qd_op_layer_norm_grad, &qd_op_layer_norm_grad_weight,
    &qd_op_batch_norm_stats_grad, &qd_op_batch_norm_train_grad, &qd_op_batch_norm_train_sums, &qd_op_batch_norm_sums,
    &qd_op_learned_quant_grad, &qd_op_learned_quant_grad_scale, &qd_op_soft_round_grad, &qd_op_fake_quant_grad,
    NULL,
};
/* clang-format on */

const qd_op *qd_op_find(const char *name)
{
    for (int k = 0; qd_ops[k]; k++)
        if (strcmp(qd_ops[k]->name, name) == 0)
            return qd_ops[k];
    return NULL;
}

qd_status qd_op_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    const qd_op *op = n->op;
    qd_dtype made = QD_F32;
    qd_shape result = { .rank = -1 };
    qd_status st = QD_OK;

    if (!op->infer)
        st = qd_fail(err, QD_E_INVALID, "makes no value out of others");
    else if (n->n_inputs < op->min_inputs || n->n_inputs > op->max_inputs)
        st = qd_fail(err, QD_E_INVALID, "has %d inputs, takes %d to %d", n->n_inputs, op->min_inputs, op->max_inputs);
    for (int k = 0; !st && k < op->min_inputs; k++)
        if (in[k].shape.rank < 0)
            st = qd_fail(err, QD_E_INVALID, "input %d is missing", k);
    if (!st)
        st = op->infer(n, in, &made, &result, err);
    if (st)
        return qd_fail_in(err, st, "node '%s' (%s)", n->name, op->name);
    *dtype = made;
    *shape = result;
    return QD_OK;
}

static qd_status check_elements(const qd_shape *s, const char *what, qd_err *err)
{
    char text[160];
    int64_t count = 1;
    for (int k = 0; k < s->rank; k++) {
        if (s->dim[k] < 1)
            return qd_fail(err, QD_E_INVALID, "%s has shape %s: every dim must be at least 1", what,
                           qd_shape_text(s, text, sizeof text));
        if (s->dim[k] > QD_MAX_ELEMENTS / count)
            return qd_fail(err, QD_E_LIMIT, "%s of shape %s has more than %lld elements", what,
                           qd_shape_text(s, text, sizeof text), (long long)QD_MAX_ELEMENTS);
        count *= s->dim[k];
    }
    return QD_OK;
}

qd_status qd_infer_operand(const qd_operand *in, int k, const char *what, qd_dtype dtype, int lo, int hi, qd_err *err)
{
    const qd_shape *s = &in[k].shape;
    if (s->rank < 0)
        return qd_fail(err, QD_E_INVALID, "%s is missing", what);
    if (dtype == QD_INFER_ANY ? (unsigned)in[k].dtype >= QD_DTYPE_COUNT || qd_dtype_bits(in[k].dtype) < 8
                              : in[k].dtype != dtype)
        return qd_fail(err, QD_E_INVALID, "%s is %s, must be %s", what,
                       (unsigned)in[k].dtype < QD_DTYPE_COUNT ? qd_dtype_name(in[k].dtype) : "of no known dtype",
                       dtype == QD_INFER_ANY ? "of whole bytes" : qd_dtype_name(dtype));
    if (s->rank < lo || s->rank > hi)
        return qd_fail(err, QD_E_INVALID, "%s has rank %d, must have %d to %d", what, s->rank, lo, hi);
    return check_elements(s, what, err);
}

qd_status qd_infer_vector(const qd_operand *in, int k, const char *what, int64_t len, qd_err *err)
{
    qd_status st = qd_infer_operand(in, k, what, QD_F32, 1, 1, err);
    if (!st && in[k].shape.dim[0] != len)
        st = qd_fail(err, QD_E_INVALID, "%s has %lld values, must have %lld", what, (long long)in[k].shape.dim[0],
                     (long long)len);
    return st;
}

qd_status qd_infer_optional(const qd_operand *in, int k, const char *what, int64_t len, qd_err *err)
{
    return in[k].shape.rank < 0 ? QD_OK : qd_infer_vector(in, k, what, len, err);
}

qd_status qd_infer_result(const qd_shape *shape, qd_err *err)
{
    return check_elements(shape, "the result", err);
}

qd_status qd_infer_int(const qd_node *n, const char *name, int64_t lo, int64_t hi, qd_err *err)
{
    const int64_t v = qd_node_int(n, name);
    if (v < lo || v > hi)
        return qd_fail(err, QD_E_INVALID, "%s must be %lld..%lld, got %lld", name, (long long)lo, (long long)hi,
                       (long long)v);
    return QD_OK;
}

qd_status qd_infer_ints(const qd_node *n, const char *name, int64_t lo, int64_t hi, qd_err *err)
{
    const qd_attr *a = qd_node_ints(n, name);
    const int want = n->op->attrs[a - n->attr].n;
    if (want ? a->n != want : a->n < 0 || a->n > QD_MAX_RANK)
        return qd_fail(err, QD_E_INVALID, "%s has %d values, must have %d", name, a->n, want ? want : QD_MAX_RANK);
    for (int k = 0; k < a->n; k++)
        if (a->ints[k] < lo || a->ints[k] > hi)
            return qd_fail(err, QD_E_INVALID, "%s[%d] must be %lld..%lld, got %lld", name, k, (long long)lo,
                           (long long)hi, (long long)a->ints[k]);
    return QD_OK;
}

qd_status qd_infer_finite(const qd_node *n, const char *name, qd_err *err)
{
    const double v = qd_node_float(n, name);
    if (!isfinite((float)v))
        return qd_fail(err, QD_E_INVALID, "%s must be finite in single precision, got %g", name, v);
    return QD_OK;
}

qd_status qd_infer_positive(const qd_node *n, const char *name, qd_err *err)
{
    const double v = qd_node_float(n, name);
    if (!isfinite((float)v) || !((float)v > 0.0f))
        return qd_fail(err, QD_E_INVALID, "%s must be finite and > 0 in single precision, got %g", name, v);
    return QD_OK;
}

qd_status qd_infer_axis(const qd_node *n, const char *name, int rank, int *axis, qd_err *err)
{
    qd_status st = qd_infer_int(n, name, -rank, rank - 1, err);
    if (!st)
        *axis = qd_node_axis(n, name, rank);
    return st;
}

int qd_node_axis(const qd_node *n, const char *name, int rank)
{
    const int64_t v = qd_node_int(n, name);
    return (int)(v < 0 ? v + rank : v);
}

int64_t qd_dims(const qd_shape *s, int from, int to)
{
    int64_t count = 1;
    for (int k = from; k < to; k++)
        count *= s->dim[k];
    return count;
}
