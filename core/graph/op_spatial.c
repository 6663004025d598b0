/* op_spatial.c - operators on pictures: convolution, pooling, upsampling. The shape rules of windows are shared with op_quant.c. */
#include "graph/op_int.h"

#include <math.h>
#include <string.h>

/* Outputs along one axis; a window larger than the padded picture is refused. */
static qd_status window_out(const char *axis, int64_t size, int64_t before, int64_t after, int64_t kernel,
                            int64_t dilation, int64_t stride, int64_t *out, qd_err *err)
{
    const int64_t padded = size + before + after, extent = dilation * (kernel - 1) + 1;
    if (extent > padded)
        return qd_fail(err, QD_E_INVALID,
                       "a window of %s %lld (kernel %lld, dilation %lld) does not fit into %lld + padding %lld", axis,
                       (long long)extent, (long long)kernel, (long long)dilation, (long long)size,
                       (long long)(before + after));
    *out = (padded - extent) / stride + 1;
    return QD_OK;
}

qd_status qd_infer_window(const qd_node *n, const qd_shape *x, int64_t channels, int64_t kh, int64_t kw, bool dilated,
                          qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_ints(n, "stride", 1, QD_MAX_WINDOW, err);
    if (!st)
        st = qd_infer_ints(n, "pads", 0, QD_MAX_WINDOW, err);
    if (!st && dilated)
        st = qd_infer_ints(n, "dilation", 1, QD_MAX_WINDOW, err);
    if (!st && (kh > QD_MAX_WINDOW || kw > QD_MAX_WINDOW))
        st = qd_fail(err, QD_E_INVALID, "the window is %lld x %lld, at most %d", (long long)kh, (long long)kw,
                     QD_MAX_WINDOW);
    if (st)
        return st;
    const int64_t *stride = qd_node_ints(n, "stride")->ints, *pads = qd_node_ints(n, "pads")->ints;
    const int64_t *dilation = dilated ? qd_node_ints(n, "dilation")->ints : (const int64_t[]){ 1, 1 };
    qd_shape r = QD_SHAPE(x->dim[0], channels, 0, 0);
    st = window_out("height", x->dim[2], pads[0], pads[2], kh, dilation[0], stride[0], &r.dim[2], err);
    if (!st)
        st = window_out("width", x->dim[3], pads[1], pads[3], kw, dilation[1], stride[1], &r.dim[3], err);
    if (!st)
        st = qd_infer_result(&r, err);
    if (!st)
        *shape = r;
    return st;
}

/* Whether the op's row has that attribute. */
static bool has_attr(const qd_op *op, const char *name)
{
    for (const qd_op_attr *a = op->attrs; a && a->name; a++)
        if (strcmp(a->name, name) == 0)
            return true;
    return false;
}

qd_conv_shape qd_node_conv_shape(const qd_node *n, const qd_shape *x, const qd_shape *weight, const qd_shape *out)
{
    const int64_t *stride = qd_node_ints(n, "stride")->ints, *pads = qd_node_ints(n, "pads")->ints;
    const int64_t *dilation =
        has_attr(n->op, "dilation") ? qd_node_ints(n, "dilation")->ints : (const int64_t[]){ 1, 1 };
    const int64_t *kernel = weight ? weight->dim + 2 : qd_node_ints(n, "kernel")->ints;
    return (qd_conv_shape){
        .n = x->dim[0],
        .c = x->dim[1],
        .h = x->dim[2],
        .w = x->dim[3],
        .o = out->dim[1],
        .oh = out->dim[2],
        .ow = out->dim[3],
        .kh = kernel[0],
        .kw = kernel[1],
        .stride_h = stride[0],
        .stride_w = stride[1],
        .pad_t = pads[0],
        .pad_l = pads[1],
        .pad_b = pads[2],
        .pad_r = pads[3],
        .dil_h = dilation[0],
        .dil_w = dilation[1],
        .groups = weight ? qd_node_int(n, "groups") : 1,
    };
}

qd_status qd_infer_conv(const qd_node *n, const qd_operand *in, qd_dtype weight, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 1, "weight", weight, 4, 4, err);
    if (st)
        return st;
    const int64_t *x = in[0].shape.dim, *w = in[1].shape.dim;
    st = qd_infer_int(n, "groups", 1, x[1], err);
    if (st)
        return st;
    const int64_t groups = qd_node_int(n, "groups");
    if (x[1] % groups || w[0] % groups)
        return qd_fail(err, QD_E_INVALID, "%lld groups do not divide %lld input and %lld output channels",
                       (long long)groups, (long long)x[1], (long long)w[0]);
    if (w[1] != x[1] / groups)
        return qd_fail(err, QD_E_INVALID, "weight wants %lld channels in a group, x has %lld in %lld groups",
                       (long long)w[1], (long long)x[1], (long long)groups);
    return qd_infer_window(n, &in[0].shape, w[0], w[2], w[3], true, shape, err);
}

int64_t qd_macs_conv(const qd_node *n, const qd_operand *in, const qd_shape *out)
{
    const int64_t *w = in[1].shape.dim;
    return qd_sat_mul(qd_dims(out, 0, 4), w[1] * w[2] * w[3]);
}

static qd_status conv2d_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 4, 4, err);
    if (!st)
        st = qd_infer_conv(n, in, QD_F32, shape, err);
    if (!st)
        st = qd_infer_optional(in, 2, "bias", in[1].shape.dim[0], err);
    *dtype = QD_F32;
    return st;
}

static void conv2d_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_conv_shape s = qd_node_conv_shape(n, &in[0]->shape, &in[1]->shape, &out->shape);
    qd_k_conv2d(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), in[2] ? qd_f32(in[2]) : NULL, &s);
}

const qd_op qd_op_conv2d = {
    .name = "conv2d",
    .summary = "2-D convolution (cross-correlation, as in PyTorch).",
    .attrs = (const qd_op_attr[]){ { "stride", QD_ATTR_INTS, 1, 2, "down, across" },
                                   { "pads", QD_ATTR_INTS, 0, 4, "zeros at the top, left, bottom, right" },
                                   { "dilation", QD_ATTR_INTS, 1, 2, "distance of the taps, down, across" },
                                   { "groups", QD_ATTR_INT, 1, 0, "channels are split into so many groups" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 3,
    .infer = conv2d_infer,
    .forward = conv2d_forward,
    .macs = qd_macs_conv,
    .backward = qd_back_conv2d,
};

/* Rows or columns of a transposed convolution's result. Everything is at most QD_MAX_WINDOW or QD_MAX_ELEMENTS: no overflow. */
static qd_status transposed_out(const char *axis, int64_t size, int64_t kernel, int64_t stride, int64_t dilation,
                                int64_t pads, int64_t extra, int64_t *out, qd_err *err)
{
    *out = (size - 1) * stride + dilation * (kernel - 1) + 1 - pads + extra;
    if (*out < 1)
        return qd_fail(err, QD_E_INVALID, "pads cut %lld from a result of %s %lld", (long long)pads, axis,
                       (long long)(*out + pads));
    return QD_OK;
}

static qd_status conv_transpose2d_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                        qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 4, 4, err);
    if (!st)
        st = qd_infer_operand(in, 1, "weight", QD_F32, 4, 4, err);
    if (st)
        return st;
    const int64_t *x = in[0].shape.dim, *w = in[1].shape.dim;
    st = qd_infer_int(n, "groups", 1, x[1], err);
    if (!st)
        st = qd_infer_ints(n, "stride", 1, QD_MAX_WINDOW, err);
    if (!st)
        st = qd_infer_ints(n, "pads", 0, QD_MAX_WINDOW, err);
    if (!st)
        st = qd_infer_ints(n, "dilation", 1, QD_MAX_WINDOW, err);
    if (!st)
        st = qd_infer_ints(n, "output_pad", 0, QD_MAX_WINDOW, err);
    if (!st && (w[2] > QD_MAX_WINDOW || w[3] > QD_MAX_WINDOW))
        st = qd_fail(err, QD_E_INVALID, "the window is %lld x %lld, at most %d", (long long)w[2], (long long)w[3],
                     QD_MAX_WINDOW);
    if (st)
        return st;
    const int64_t groups = qd_node_int(n, "groups");
    if (x[1] % groups || w[0] != x[1])
        return qd_fail(err, QD_E_INVALID, "x has %lld channels, weight wants %lld in %lld groups", (long long)x[1],
                       (long long)w[0], (long long)groups);
    const int64_t *stride = qd_node_ints(n, "stride")->ints, *pads = qd_node_ints(n, "pads")->ints;
    const int64_t *dilation = qd_node_ints(n, "dilation")->ints, *extra = qd_node_ints(n, "output_pad")->ints;
    qd_shape r = QD_SHAPE(x[0], qd_sat_mul(w[1], groups), 0, 0);
    st = transposed_out("height", x[2], w[2], stride[0], dilation[0], pads[0] + pads[2], extra[0], &r.dim[2], err);
    if (!st)
        st = transposed_out("width", x[3], w[3], stride[1], dilation[1], pads[1] + pads[3], extra[1], &r.dim[3], err);
    if (!st)
        st = qd_infer_result(&r, err);
    if (!st)
        st = qd_infer_optional(in, 2, "bias", r.dim[1], err);
    *shape = r;
    *dtype = QD_F32;
    return st;
}

static void conv_transpose2d_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_conv_shape s = qd_node_conv_shape(n, &in[0]->shape, &in[1]->shape, &out->shape);
    qd_k_conv_transpose2d(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), in[2] ? qd_f32(in[2]) : NULL, &s);
}

static int64_t conv_transpose2d_macs(const qd_node *n, const qd_operand *in, const qd_shape *out)
{
    const int64_t *w = in[1].shape.dim;
    return qd_sat_mul(qd_dims(&in[0].shape, 0, 4), w[1] * w[2] * w[3]);
}

const qd_op qd_op_conv_transpose2d = {
    .name = "conv_transpose2d",
    .summary = "2-D transposed convolution, as in PyTorch.",
    .attrs =
        (const qd_op_attr[]){ { "stride", QD_ATTR_INTS, 1, 2, "down, across" },
                              { "pads", QD_ATTR_INTS, 0, 4, "cut at the top, left, bottom, right of the result" },
                              { "dilation", QD_ATTR_INTS, 1, 2, "distance of the taps, down, across" },
                              { "groups", QD_ATTR_INT, 1, 0, "channels are split into so many groups" },
                              { "output_pad", QD_ATTR_INTS, 0, 2, "more rows at the bottom, columns at the right" },
                              { NULL } },
    .min_inputs = 2,
    .max_inputs = 3,
    .infer = conv_transpose2d_infer,
    .forward = conv_transpose2d_forward,
    .macs = conv_transpose2d_macs,
    .backward = qd_back_conv_transpose2d,
};

static qd_status upsample_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 4, 4, err);
    if (!st)
        st = qd_infer_ints(n, "factor", 1, QD_MAX_WINDOW, err);
    if (st)
        return st;
    const int64_t *x = in[0].shape.dim, *factor = qd_node_ints(n, "factor")->ints;
    *shape = QD_SHAPE(x[0], x[1], x[2] * factor[0], x[3] * factor[1]);
    *dtype = QD_F32;
    return qd_infer_result(shape, err);
}

static void upsample_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const int64_t *x = in[0]->shape.dim, *factor = qd_node_ints(n, "factor")->ints;
    qd_k_upsample(qd_f32(out), qd_f32(in[0]), x[0] * x[1], x[2], x[3], factor[0], factor[1]);
}

const qd_op qd_op_upsample = {
    .name = "upsample",
    .summary = "Every pixel repeated (nearest neighbour, whole factors).",
    .attrs = (const qd_op_attr[]){ { "factor", QD_ATTR_INTS, 2, 2, "down, across" }, { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = upsample_infer,
    .forward = upsample_forward,
    .backward = qd_back_upsample,
};

qd_status qd_infer_pool(const qd_node *n, const qd_shape *x, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_ints(n, "kernel", 1, QD_MAX_WINDOW, err);
    if (!st)
        st = qd_infer_ints(n, "pads", 0, QD_MAX_WINDOW, err);
    if (st)
        return st;
    /* Then every window holds at least one pixel: a mean over none and a maximum of none do not exist. */
    const int64_t *kernel = qd_node_ints(n, "kernel")->ints, *pads = qd_node_ints(n, "pads")->ints;
    for (int k = 0; k < 4; k++)
        if (pads[k] >= kernel[k % 2])
            return qd_fail(err, QD_E_INVALID, "pads[%d] must be smaller than the kernel's %lld, got %lld", k,
                           (long long)kernel[k % 2], (long long)pads[k]);
    return qd_infer_window(n, x, x->dim[1], kernel[0], kernel[1], false, shape, err);
}

static qd_status pool_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 4, 4, err);
    if (!st && n->op == &qd_op_avg_pool)
        st = qd_infer_int(n, "count_pad", 0, 1, err);
    *dtype = QD_F32;
    return st ? st : qd_infer_pool(n, &in[0].shape, shape, err);
}

static void avg_pool_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_conv_shape s = qd_node_conv_shape(n, &in[0]->shape, NULL, &out->shape);
    qd_k_avg_pool(qd_f32(out), qd_f32(in[0]), &s, qd_node_int(n, "count_pad"));
}

const qd_op qd_op_avg_pool = {
    .name = "avg_pool",
    .summary = "Mean over a moving window.",
    .attrs = (const qd_op_attr[]){ { "kernel", QD_ATTR_INTS, NAN, 2, "height, width of the window" },
                                   { "stride", QD_ATTR_INTS, NAN, 2, "down, across" },
                                   { "pads", QD_ATTR_INTS, 0, 4, "at the top, left, bottom, right" },
                                   { "count_pad", QD_ATTR_INT, 1, 0, "1: the padding counts as zeros in the mean" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = pool_infer,
    .forward = avg_pool_forward,
    .backward = qd_back_pool,
};

static void max_pool_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_conv_shape s = qd_node_conv_shape(n, &in[0]->shape, NULL, &out->shape);
    qd_k_max_pool(qd_f32(out), qd_f32(in[0]), &s);
}

const qd_op qd_op_max_pool = {
    .name = "max_pool",
    .summary = "Maximum over a moving window; the padding does not count.",
    .attrs = (const qd_op_attr[]){ { "kernel", QD_ATTR_INTS, NAN, 2, "height, width of the window" },
                                   { "stride", QD_ATTR_INTS, NAN, 2, "down, across" },
                                   { "pads", QD_ATTR_INTS, 0, 4, "at the top, left, bottom, right" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = pool_infer,
    .forward = max_pool_forward,
    .backward = qd_back_pool,
};

static qd_status global_avg_pool_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                       qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 4, 4, err);
    if (!st)
        *shape = QD_SHAPE(in[0].shape.dim[0], in[0].shape.dim[1], 1, 1);
    *dtype = QD_F32;
    return st;
}

static void global_avg_pool_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const int64_t *x = in[0]->shape.dim;
    const qd_conv_shape s = { .n = x[0],
                              .c = x[1],
                              .h = x[2],
                              .w = x[3],
                              .o = x[1],
                              .oh = 1,
                              .ow = 1,
                              .kh = x[2],
                              .kw = x[3],
                              .stride_h = 1,
                              .stride_w = 1,
                              .dil_h = 1,
                              .dil_w = 1,
                              .groups = 1 };
    qd_k_avg_pool(qd_f32(out), qd_f32(in[0]), &s, true);
}

const qd_op qd_op_global_avg_pool = {
    .name = "global_avg_pool",
    .summary = "Mean over the whole picture.",
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = global_avg_pool_infer,
    .forward = global_avg_pool_forward,
    .backward = qd_back_global_avg_pool,
};
