/* op_norm.c - operators: group, layer and frozen batch normalisation. */
#include "graph/op_int.h"

#include <math.h>

static qd_status group_norm_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 2, QD_MAX_RANK, err);
    if (st)
        return st;
    const int64_t channels = in[0].shape.dim[1];
    st = qd_infer_int(n, "groups", 1, channels, err);
    if (st)
        return st;
    if (channels % qd_node_int(n, "groups"))
        return qd_fail(err, QD_E_INVALID, "%lld groups do not divide %lld channels",
                       (long long)qd_node_int(n, "groups"), (long long)channels);
    st = qd_infer_optional(in, 1, "weight", channels, err);
    if (!st)
        st = qd_infer_optional(in, 2, "bias", channels, err);
    if (!st)
        st = qd_infer_positive(n, "eps", err);
    *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void group_norm_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape;
    qd_k_group_norm(qd_f32(out), qd_f32(in[0]), in[1] ? qd_f32(in[1]) : NULL, in[2] ? qd_f32(in[2]) : NULL, x->dim[0],
                    x->dim[1], qd_dims(x, 2, x->rank), qd_node_int(n, "groups"), (float)qd_node_float(n, "eps"));
}

const qd_op qd_op_group_norm = {
    .name = "group_norm",
    .summary = "Mean 0, variance 1 over groups of channels of one sample, then weight and bias.",
    .attrs = (const qd_op_attr[]){ { "groups", QD_ATTR_INT, NAN, 0, "number of groups" },
                                   { "eps", QD_ATTR_FLOAT, 1e-5, 0, "added to the variance" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 3,
    .infer = group_norm_infer,
    .forward = group_norm_forward,
    .backward = qd_back_group_norm,
};

static qd_status layer_norm_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 1, QD_MAX_RANK, err);
    if (st)
        return st;
    const qd_shape *x = &in[0].shape;
    st = qd_infer_int(n, "axes", 1, x->rank, err);
    if (!st)
        st = qd_infer_positive(n, "eps", err);
    if (st)
        return st;
    const int axes = (int)qd_node_int(n, "axes");
    const qd_shape want = qd_shape_of(axes, x->dim + x->rank - axes);
    for (int k = 1; k <= 2; k++) {
        const char *what = k == 1 ? "weight" : "bias";
        if (in[k].shape.rank < 0)
            continue;
        st = qd_infer_operand(in, k, what, QD_F32, axes, axes, err);
        if (!st && !qd_shape_equal(&in[k].shape, &want)) {
            char a[160], b[160];
            st = qd_fail(err, QD_E_INVALID, "%s has shape %s, must have %s", what,
                         qd_shape_text(&in[k].shape, a, sizeof a), qd_shape_text(&want, b, sizeof b));
        }
        if (st)
            return st;
    }
    *shape = *x;
    *dtype = QD_F32;
    return QD_OK;
}

static void layer_norm_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape;
    const int split = x->rank - (int)qd_node_int(n, "axes");
    qd_k_layer_norm(qd_f32(out), qd_f32(in[0]), in[1] ? qd_f32(in[1]) : NULL, in[2] ? qd_f32(in[2]) : NULL,
                    qd_dims(x, 0, split), qd_dims(x, split, x->rank), (float)qd_node_float(n, "eps"));
}

const qd_op qd_op_layer_norm = {
    .name = "layer_norm",
    .summary = "Mean 0, variance 1 over the last axes, then weight and bias.",
    .attrs = (const qd_op_attr[]){ { "axes", QD_ATTR_INT, 1, 0, "how many of the last axes" },
                                   { "eps", QD_ATTR_FLOAT, 1e-5, 0, "added to the variance" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 3,
    .infer = layer_norm_infer,
    .forward = layer_norm_forward,
    .backward = qd_back_layer_norm,
};

static qd_status batch_norm_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    static const char *const what[5] = { "x", "weight", "bias", "mean", "var" };
    qd_status st = qd_infer_operand(in, 0, what[0], QD_F32, 2, QD_MAX_RANK, err);
    for (int k = 1; !st && k < 5; k++)
        st = qd_infer_vector(in, k, what[k], in[0].shape.dim[1], err);
    if (!st)
        st = qd_infer_positive(n, "eps", err);
    if (!st)
        *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void batch_norm_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape;
    qd_k_batch_norm(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_f32(in[2]), qd_f32(in[3]), qd_f32(in[4]), x->dim[0],
                    x->dim[1], qd_dims(x, 2, x->rank), (float)qd_node_float(n, "eps"));
}

const qd_op qd_op_batch_norm = {
    .name = "batch_norm",
    .summary = "(x - mean) / sqrt(var + eps) * weight + bias with stored statistics.",
    .attrs = (const qd_op_attr[]){ { "eps", QD_ATTR_FLOAT, 1e-5, 0, "added to the variance" }, { NULL } },
    .min_inputs = 5,
    .max_inputs = 5,
    .infer = batch_norm_infer,
    .forward = batch_norm_forward,
    .backward = qd_back_batch_norm,
};
