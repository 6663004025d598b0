/* op_grad_spatial.c - operators that differentiation makes of layers on pictures: convolution, pools, norms. */
#include <math.h>

#include "graph/op_int.h"

/* --- convolution --- */

#define CONV_ATTRS                                                                                                     \
    (const qd_op_attr[])                                                                                               \
    {                                                                                                                  \
        { "stride", QD_ATTR_INTS, 1, 2, "down, across" },                                                              \
            { "pads", QD_ATTR_INTS, 0, 4, "zeros at the top, left, bottom, right" },                                   \
            { "dilation", QD_ATTR_INTS, 1, 2, "distance of the taps, down, across" },                                  \
            { "groups", QD_ATTR_INT, 1, 0, "channels are split into so many groups" },                                 \
        {                                                                                                              \
            NULL                                                                                                       \
        }                                                                                                              \
    }

/* The convolution of x by weight has a result of the shape of dy. A transposed one may leave rows of its result unread: then dy may
 * be that much smaller. */
static qd_status conv_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    const bool weight = n->op == &qd_op_conv2d_grad_weight;
    const qd_operand forward[2] = { in[weight ? 1 : 2], in[weight ? 2 : 1] };
    qd_shape want;
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 4, 4, err);
    if (!st)
        st = qd_infer_operand(forward, 0, "x", QD_F32, 4, 4, err);
    if (!st)
        st = qd_infer_conv(n, forward, QD_F32, &want, err);
    if (st)
        return st;
    for (int k = 2; k < 4; k++)
        if (in[0].shape.dim[k] < want.dim[k])
            want.dim[k] = in[0].shape.dim[k];
    st = qd_infer_matches(in, 0, "dy", &want, err);
    *shape = forward[weight].shape;
    *dtype = QD_F32;
    return st;
}

static void conv_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    if (n->op == &qd_op_conv2d_grad_weight) {
        const qd_conv_shape s = qd_node_conv_shape(n, &in[1]->shape, &out->shape, &in[0]->shape);
        qd_k_conv2d_grad_weight(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), &s);
    } else {
        const qd_conv_shape s = qd_node_conv_shape(n, &out->shape, &in[1]->shape, &in[0]->shape);
        qd_k_conv2d_grad_input(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), &s);
    }
}

static int64_t conv_grad_macs(const qd_node *n, const qd_operand *in, const qd_shape *out)
{
    const int64_t *w = n->op == &qd_op_conv2d_grad_weight ? out->dim : in[1].shape.dim;
    return qd_sat_mul(qd_dims(&in[0].shape, 0, 4), w[1] * w[2] * w[3]);
}

const qd_op qd_op_conv2d_grad_input = {
    .name = "conv2d_grad_input",
    .summary = "(dy, weight, like x): the derivative by x of a conv2d.",
    .attrs = CONV_ATTRS,
    .min_inputs = 3,
    .max_inputs = 3,
    .infer = conv_grad_infer,
    .forward = conv_grad_forward,
    .macs = conv_grad_macs,
    .no_gradient = qd_no_second,
};

const qd_op qd_op_conv2d_grad_weight = {
    .name = "conv2d_grad_weight",
    .summary = "(dy, x, like weight): the derivative by weight of a conv2d.",
    .attrs = CONV_ATTRS,
    .min_inputs = 3,
    .max_inputs = 3,
    .infer = conv_grad_infer,
    .forward = conv_grad_forward,
    .macs = conv_grad_macs,
    .no_gradient = qd_no_second,
};

/* --- pools --- */

static qd_status pool_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_shape want;
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 4, 4, err);
    if (!st)
        st = qd_infer_operand(in, 1, "x", QD_F32, 4, 4, err);
    if (!st && n->op == &qd_op_avg_pool_grad)
        st = qd_infer_int(n, "count_pad", 0, 1, err);
    if (!st)
        st = qd_infer_pool(n, &in[1].shape, &want, err);
    if (!st)
        st = qd_infer_matches(in, 0, "dy", &want, err);
    *shape = in[1].shape;
    *dtype = QD_F32;
    return st;
}

static void avg_pool_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_conv_shape s = qd_node_conv_shape(n, &out->shape, NULL, &in[0]->shape);
    qd_k_avg_pool_grad(qd_f32(out), qd_f32(in[0]), &s, qd_node_int(n, "count_pad"));
}

const qd_op qd_op_avg_pool_grad = {
    .name = "avg_pool_grad",
    .summary = "(dy, like x): the derivative of an avg_pool.",
    .attrs = (const qd_op_attr[]){ { "kernel", QD_ATTR_INTS, NAN, 2, "height, width of the window" },
                                   { "stride", QD_ATTR_INTS, NAN, 2, "down, across" },
                                   { "pads", QD_ATTR_INTS, 0, 4, "at the top, left, bottom, right" },
                                   { "count_pad", QD_ATTR_INT, 1, 0, "1: the padding counts as zeros in the mean" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = pool_grad_infer,
    .forward = avg_pool_grad_forward,
    .no_gradient = qd_no_second,
};

static void max_pool_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_conv_shape s = qd_node_conv_shape(n, &out->shape, NULL, &in[0]->shape);
    qd_k_max_pool_grad(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), &s);
}

const qd_op qd_op_max_pool_grad = {
    .name = "max_pool_grad",
    .summary = "(dy, x): the derivative of a max_pool, to the first of equal maxima.",
    .attrs = (const qd_op_attr[]){ { "kernel", QD_ATTR_INTS, NAN, 2, "height, width of the window" },
                                   { "stride", QD_ATTR_INTS, NAN, 2, "down, across" },
                                   { "pads", QD_ATTR_INTS, 0, 4, "at the top, left, bottom, right" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = pool_grad_infer,
    .forward = max_pool_grad_forward,
    .no_gradient = qd_no_second,
};

/* --- group and layer norm --- */

static qd_status norm_pair_infer(const qd_operand *in, int lo, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, lo, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "x", QD_F32, lo, QD_MAX_RANK, err);
    return st ? st : qd_infer_same(in, 0, "dy", 1, "x", err);
}

static qd_status group_norm_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                       qd_err *err)
{
    const bool weight = n->op == &qd_op_group_norm_grad_weight;
    qd_status st = norm_pair_infer(in, 2, err);
    if (st)
        return st;
    const int64_t channels = in[1].shape.dim[1];
    st = qd_infer_int(n, "groups", 1, channels, err);
    if (!st && channels % qd_node_int(n, "groups"))
        st = qd_fail(err, QD_E_INVALID, "%lld groups do not divide %lld channels", (long long)qd_node_int(n, "groups"),
                     (long long)channels);
    if (!st && !weight)
        st = qd_infer_optional(in, 2, "weight", channels, err);
    if (!st)
        st = qd_infer_positive(n, "eps", err);
    *shape = weight ? QD_SHAPE(channels) : in[1].shape;
    *dtype = QD_F32;
    return st;
}

static void group_norm_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[1]->shape;
    const int64_t groups = qd_node_int(n, "groups"), space = qd_dims(x, 2, x->rank);
    const float eps = (float)qd_node_float(n, "eps");
    if (n->op == &qd_op_group_norm_grad_weight)
        qd_k_norm_grad_weight(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), x->dim[0] * groups, x->dim[1] / groups * space,
                              groups, space, eps);
    else
        qd_k_norm_grad(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), in[2] ? qd_f32(in[2]) : NULL, x->dim[0] * groups,
                       x->dim[1] / groups * space, groups, space, eps);
}

#define GROUP_NORM_GRAD(op, summary_, most)                                                                            \
    const qd_op qd_op_##op = {                                                                                         \
        .name = #op,                                                                                                   \
        .summary = summary_,                                                                                           \
        .attrs = (const qd_op_attr[]){ { "groups", QD_ATTR_INT, NAN, 0, "number of groups" },                          \
                                       { "eps", QD_ATTR_FLOAT, 1e-5, 0, "added to the variance" },                     \
                                       { NULL } },                                                                     \
        .min_inputs = 2,                                                                                               \
        .max_inputs = most,                                                                                            \
        .infer = group_norm_grad_infer,                                                                                \
        .forward = group_norm_grad_forward,                                                                            \
        .no_gradient = qd_no_second,                                                                                   \
    }
GROUP_NORM_GRAD(group_norm_grad, "(dy, x, weight?): the derivative by x of a group_norm.", 3);
GROUP_NORM_GRAD(group_norm_grad_weight, "(dy, x): the derivative by weight of a group_norm.", 2);

static qd_status layer_norm_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                       qd_err *err)
{
    const bool weight = n->op == &qd_op_layer_norm_grad_weight;
    qd_status st = norm_pair_infer(in, 1, err);
    if (!st)
        st = qd_infer_int(n, "axes", 1, in[1].shape.rank, err);
    if (!st)
        st = qd_infer_positive(n, "eps", err);
    if (st)
        return st;
    const qd_shape *x = &in[1].shape;
    const int axes = (int)qd_node_int(n, "axes");
    const qd_shape last = qd_shape_of(axes, x->dim + x->rank - axes);
    if (!weight && in[2].shape.rank >= 0) {
        st = qd_infer_operand(in, 2, "weight", QD_F32, axes, axes, err);
        if (!st)
            st = qd_infer_matches(in, 2, "weight", &last, err);
    }
    *shape = weight ? last : *x;
    *dtype = QD_F32;
    return st;
}

static void layer_norm_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[1]->shape;
    const int split = x->rank - (int)qd_node_int(n, "axes");
    const int64_t rows = qd_dims(x, 0, split), width = qd_dims(x, split, x->rank);
    const float eps = (float)qd_node_float(n, "eps");
    if (n->op == &qd_op_layer_norm_grad_weight)
        qd_k_norm_grad_weight(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), rows, width, 1, 1, eps);
    else
        qd_k_norm_grad(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), in[2] ? qd_f32(in[2]) : NULL, rows, width, 1, 1, eps);
}

#define LAYER_NORM_GRAD(op, summary_, most)                                                                            \
    const qd_op qd_op_##op = {                                                                                         \
        .name = #op,                                                                                                   \
        .summary = summary_,                                                                                           \
        .attrs = (const qd_op_attr[]){ { "axes", QD_ATTR_INT, 1, 0, "how many of the last axes" },                     \
                                       { "eps", QD_ATTR_FLOAT, 1e-5, 0, "added to the variance" },                     \
                                       { NULL } },                                                                     \
        .min_inputs = 2,                                                                                               \
        .max_inputs = most,                                                                                            \
        .infer = layer_norm_grad_infer,                                                                                \
        .forward = layer_norm_grad_forward,                                                                            \
        .no_gradient = qd_no_second,                                                                                   \
    }
LAYER_NORM_GRAD(layer_norm_grad, "(dy, x, weight?): the derivative by x of a layer_norm.", 3);
LAYER_NORM_GRAD(layer_norm_grad_weight, "(dy, x): the derivative by weight of a layer_norm.", 2);

/* --- batch norm --- */

/* dy, x, then per-channel vectors [C], or [2, C] where `two` has the bit. */
static qd_status batch_infer(const qd_operand *in, int first, int end, unsigned two, const char *const *what,
                             qd_err *err)
{
    const int64_t channels = in[first - 1].shape.dim[1];
    qd_status st = QD_OK;
    for (int k = first; !st && k < end; k++) {
        const qd_shape want = QD_SHAPE(2, channels);
        if (two >> k & 1) {
            st = qd_infer_operand(in, k, what[k], QD_F32, 2, 2, err);
            if (!st)
                st = qd_infer_matches(in, k, what[k], &want, err);
        } else {
            st = qd_infer_vector(in, k, what[k], channels, err);
        }
    }
    return st;
}

static qd_status batch_norm_stats_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                        qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 2, QD_MAX_RANK, err);
    *dtype = QD_F32;
    if (st)
        return st;
    *shape = QD_SHAPE(2, in[0].shape.dim[1]);
    return qd_infer_result(shape, err);
}

static void batch_norm_stats_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape;
    qd_k_batch_stats(qd_f32(out), qd_f32(in[0]), x->dim[0], x->dim[1], qd_dims(x, 2, x->rank));
}

const qd_op qd_op_batch_norm_stats = {
    .name = "batch_norm_stats",
    .summary = "Mean and biased variance of every channel over batch and space.",
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = batch_norm_stats_infer,
    .forward = batch_norm_stats_forward,
    .backward = qd_back_batch_norm_stats,
};

static qd_status batch_norm_stats_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                             qd_err *err)
{
    static const char *const what[3] = { "dstats", "x", "stats" };
    const qd_operand order[4] = { in[1], in[1], in[0], in[2] };
    static const char *const names[4] = { "x", "x", "dstats", "stats" };
    qd_status st = qd_infer_operand(in, 1, what[1], QD_F32, 2, QD_MAX_RANK, err);
    if (!st)
        st = batch_infer(order, 2, 4, 12, names, err);
    *shape = in[1].shape;
    *dtype = QD_F32;
    return st;
}

static void batch_norm_stats_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &out->shape;
    const int64_t c = x->dim[1], space = qd_dims(x, 2, x->rank);
    const double count = (double)(x->dim[0] * space);
    const float *d = qd_f32(in[0]), *src = qd_f32(in[1]), *stats = qd_f32(in[2]);
    for (int64_t p = 0; p < x->dim[0] * c; p++) {
        const int64_t k = p % c;
        for (int64_t i = p * space; i < (p + 1) * space; i++)
            qd_f32(out)[i] = (float)(d[k] / count + 2.0 * d[c + k] / count * (src[i] - (double)stats[k]));
    }
}

const qd_op qd_op_batch_norm_stats_grad = {
    .name = "batch_norm_stats_grad",
    .summary = "(dstats [2, C], x, stats [2, C]): the derivative of batch_norm_stats.",
    .min_inputs = 3,
    .max_inputs = 3,
    .infer = batch_norm_stats_grad_infer,
    .forward = batch_norm_stats_grad_forward,
    .no_gradient = qd_no_second,
};

static qd_status batch_norm_train_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                        qd_err *err)
{
    static const char *const what[4] = { "x", "weight", "bias", "stats" };
    qd_status st = qd_infer_operand(in, 0, what[0], QD_F32, 2, QD_MAX_RANK, err);
    if (!st)
        st = batch_infer(in, 1, 4, 8, what, err);
    if (!st)
        st = qd_infer_positive(n, "eps", err);
    *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void batch_norm_train_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape;
    const float *stats = qd_f32(in[3]);
    qd_k_batch_norm(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_f32(in[2]), stats, stats + x->dim[1], x->dim[0],
                    x->dim[1], qd_dims(x, 2, x->rank), (float)qd_node_float(n, "eps"));
}

#define EPS_ATTRS                                                                                                      \
    (const qd_op_attr[])                                                                                               \
    {                                                                                                                  \
        { "eps", QD_ATTR_FLOAT, 1e-5, 0, "added to the variance" },                                                    \
        {                                                                                                              \
            NULL                                                                                                       \
        }                                                                                                              \
    }

const qd_op qd_op_batch_norm_train = {
    .name = "batch_norm_train",
    .summary = "Normalised by the statistics of this batch, then weight and bias.",
    .attrs = EPS_ATTRS,
    .min_inputs = 4,
    .max_inputs = 4,
    .infer = batch_norm_train_infer,
    .forward = batch_norm_train_forward,
    .backward = qd_back_batch_norm_train,
};

static qd_status batch_norm_sums_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                       qd_err *err)
{
    static const char *const what[4] = { "dy", "x", "mean", "var" };
    qd_status st = norm_pair_infer(in, 2, err);
    if (!st)
        st = batch_infer(in, 2, 4, 0, what, err);
    if (!st)
        st = qd_infer_positive(n, "eps", err);
    *dtype = QD_F32;
    if (st)
        return st;
    *shape = QD_SHAPE(2, in[0].shape.dim[1]);
    return qd_infer_result(shape, err);
}

static void batch_norm_sums_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[1]->shape;
    qd_k_batch_sums(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_f32(in[2]), qd_f32(in[3]), x->dim[0], x->dim[1],
                    qd_dims(x, 2, x->rank), (float)qd_node_float(n, "eps"));
}

const qd_op qd_op_batch_norm_sums = {
    .name = "batch_norm_sums",
    .summary = "(dy, x, mean [C], var [C]): per channel the sums of dy and of dy (x - mean) / sqrt(var + eps).",
    .attrs = EPS_ATTRS,
    .min_inputs = 4,
    .max_inputs = 4,
    .infer = batch_norm_sums_infer,
    .forward = batch_norm_sums_forward,
    .no_gradient = qd_no_second,
};

static qd_status batch_norm_train_sums_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                             qd_err *err)
{
    static const char *const what[3] = { "dy", "x", "stats" };
    qd_status st = norm_pair_infer(in, 2, err);
    if (!st)
        st = batch_infer(in, 2, 3, 4, what, err);
    if (!st)
        st = qd_infer_positive(n, "eps", err);
    *dtype = QD_F32;
    if (st)
        return st;
    *shape = QD_SHAPE(2, in[0].shape.dim[1]);
    return qd_infer_result(shape, err);
}

static void batch_norm_train_sums_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[1]->shape;
    const float *stats = qd_f32(in[2]);
    qd_k_batch_sums(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), stats, stats + x->dim[1], x->dim[0], x->dim[1],
                    qd_dims(x, 2, x->rank), (float)qd_node_float(n, "eps"));
}

const qd_op qd_op_batch_norm_train_sums = {
    .name = "batch_norm_train_sums",
    .summary = "batch_norm_sums with the statistics of this batch: (dy, x, stats [2, C]).",
    .attrs = EPS_ATTRS,
    .min_inputs = 3,
    .max_inputs = 3,
    .infer = batch_norm_train_sums_infer,
    .forward = batch_norm_train_sums_forward,
    .no_gradient = qd_no_second,
};

static qd_status batch_norm_train_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                             qd_err *err)
{
    static const char *const what[5] = { "dy", "x", "weight", "stats", "sums" };
    qd_status st = norm_pair_infer(in, 2, err);
    if (!st)
        st = batch_infer(in, 2, 5, 24, what, err);
    if (!st)
        st = qd_infer_positive(n, "eps", err);
    *shape = in[1].shape;
    *dtype = QD_F32;
    return st;
}

static void batch_norm_train_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[1]->shape;
    qd_k_batch_norm_train_grad(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_f32(in[2]), qd_f32(in[3]), qd_f32(in[4]),
                               x->dim[0], x->dim[1], qd_dims(x, 2, x->rank), (float)qd_node_float(n, "eps"));
}

const qd_op qd_op_batch_norm_train_grad = {
    .name = "batch_norm_train_grad",
    .summary = "(dy, x, weight, stats, sums): the derivative by x of batch_norm_train, statistics included.",
    .attrs = EPS_ATTRS,
    .min_inputs = 5,
    .max_inputs = 5,
    .infer = batch_norm_train_grad_infer,
    .forward = batch_norm_train_grad_forward,
    .no_gradient = qd_no_second,
};
