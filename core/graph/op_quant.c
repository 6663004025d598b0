/* op_quant.c - operators on integer codes (qncd.md 3.1): quantize, dequantize, their composition, and layers that sum codes. */
#include "graph/op_int.h"

#include <math.h>

void qd_node_code_range(const qd_node *n, int32_t *qmin, int32_t *qmax)
{
    const int bits = (int)qd_node_int(n, "bits");
    const bool symmetric = qd_node_int(n, "symmetric");
    *qmin = symmetric ? -(1 << (bits - 1)) : 0;
    *qmax = symmetric ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
}

/* Every value of a constant is finite, and > 0 where asked. Values that are not constants are not known yet. */
static qd_status check_values(const qd_operand *in, int k, const char *what, bool positive, qd_err *err)
{
    if (in[k].shape.rank < 0 || !in[k].value)
        return QD_OK;
    const float *v = qd_f32(in[k].value);
    for (int64_t i = 0; i < qd_tensor_count(in[k].value); i++)
        if (!isfinite(v[i]) || (positive && !(v[i] > 0.0f)))
            return qd_fail(err, QD_E_INVALID, "%s[%lld] must be finite%s, got %g", what, (long long)i,
                           positive ? " and > 0" : "", (double)v[i]);
    return QD_OK;
}

/* x, the divisor along axis 1, and a map whose zero is one of its codes. */
static qd_status map_infer(const qd_node *n, const qd_operand *in, int most_bits, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 0, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_positive(n, "scale", err);
    if (!st && !isfinite(1.0f / (float)qd_node_float(n, "scale")))
        st = qd_fail(err, QD_E_INVALID, "scale %g has no finite reciprocal", qd_node_float(n, "scale"));
    if (!st)
        st = qd_infer_int(n, "bits", 2, most_bits, err);
    if (!st)
        st = qd_infer_int(n, "symmetric", 0, 1, err);
    if (st)
        return st;
    int32_t qmin, qmax;
    qd_node_code_range(n, &qmin, &qmax);
    st = qd_infer_int(n, "zero", qmin, qmax, err);
    if (st || in[1].shape.rank < 0)
        return st;
    if (in[0].shape.rank < 2)
        return qd_fail(err, QD_E_INVALID, "a divisor goes along axis 1, x has rank %d", in[0].shape.rank);
    st = qd_infer_vector(in, 1, "divisor", in[0].shape.dim[1], err);
    return st ? st : check_values(in, 1, "divisor", true, err);
}

/* Calls body with one run of src that shares one divisor: from, count, 1 / divisor (NULL without). Kernels have no memory of their
 * own for the reciprocals. */
typedef void map_body(const qd_node *n, qd_tensor *out, const float *src, int64_t from, int64_t count,
                      const float *inv_div);

static void for_each_run(const qd_node *n, const qd_tensor *const *in, qd_tensor *out, map_body *body)
{
    const qd_shape *x = &in[0]->shape;
    const float *src = qd_f32(in[0]);
    if (!in[1]) {
        body(n, out, src, 0, qd_tensor_count(out), NULL);
        return;
    }
    const int64_t channels = x->dim[1], inner = qd_dims(x, 2, x->rank);
    for (int64_t p = 0; p < x->dim[0] * channels; p++) {
        const float inv_div = 1.0f / qd_f32(in[1])[p % channels];
        body(n, out, src + p * inner, p * inner, inner, &inv_div);
    }
}

static qd_status quantize_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = map_infer(n, in, 8, err);
    if (!st) {
        *shape = in[0].shape;
        *dtype = qd_node_int(n, "symmetric") ? QD_I8 : QD_U8;
    }
    return st;
}

static void quantize_body(const qd_node *n, qd_tensor *out, const float *src, int64_t from, int64_t count,
                          const float *inv_div)
{
    int32_t qmin, qmax;
    qd_node_code_range(n, &qmin, &qmax);
    qd_k_quantize((char *)out->data + from, src, count, 1.0f / (float)qd_node_float(n, "scale"),
                  (int32_t)qd_node_int(n, "zero"), qmin, qmax, out->dtype == QD_I8, inv_div, 1, count);
}

static void quantize_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    for_each_run(n, in, out, quantize_body);
}

#define MAP_ATTRS(bits_)                                                                                               \
    (const qd_op_attr[])                                                                                               \
    {                                                                                                                  \
        { "scale", QD_ATTR_FLOAT, NAN, 0, "real units of one step, > 0" },                                             \
            { "zero", QD_ATTR_INT, 0, 0, "the code of 0.0" }, { "bits", QD_ATTR_INT, 8, 0, bits_ },                    \
            { "symmetric", QD_ATTR_INT, 0, 0, "1: two's complement codes, 0: 0..2^bits-1" },                           \
        {                                                                                                              \
            NULL                                                                                                       \
        }                                                                                                              \
    }

const qd_op qd_op_quantize = {
    .name = "quantize",
    .summary = "The nearest code, half to even.",
    .attrs = MAP_ATTRS("2..8"),
    .min_inputs = 1,
    .max_inputs = 2,
    .infer = quantize_infer,
    .forward = quantize_forward,
    .no_gradient = "codes are whole numbers",
};

static qd_status fake_quant_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = map_infer(n, in, 16, err);
    if (!st)
        *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void fake_quant_body(const qd_node *n, qd_tensor *out, const float *src, int64_t from, int64_t count,
                            const float *inv_div)
{
    int32_t qmin, qmax;
    qd_node_code_range(n, &qmin, &qmax);
    qd_k_fake_quant(qd_f32(out) + from, src, count, (float)qd_node_float(n, "scale"), (int32_t)qd_node_int(n, "zero"),
                    qmin, qmax, inv_div, 1, count);
}

static void fake_quant_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    for_each_run(n, in, out, fake_quant_body);
}

const qd_op qd_op_fake_quant = {
    .name = "fake_quant",
    .summary = "The value of the nearest code, in float.",
    .attrs = MAP_ATTRS("2..16"),
    .min_inputs = 1,
    .max_inputs = 2,
    .infer = fake_quant_infer,
    .forward = fake_quant_forward,
    .backward = qd_back_fake_quant,
};

/* Operand 0 holds codes, U8 or I8, and the attributes give their map; zero is one of the codes the dtype has. */
static qd_status codes_infer(const qd_node *n, const qd_operand *in, const char *scale, const char *zero, int lo,
                             int hi, qd_err *err)
{
    const bool is_signed = in[0].shape.rank >= 0 && in[0].dtype == QD_I8;
    qd_status st = qd_infer_operand(in, 0, "codes", is_signed ? QD_I8 : QD_U8, lo, hi, err);
    if (!st)
        st = qd_infer_positive(n, scale, err);
    if (!st)
        st = qd_infer_int(n, zero, is_signed ? -128 : 0, is_signed ? 127 : 255, err);
    return st;
}

static qd_status dequantize_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = codes_infer(n, in, "scale", "zero", 0, QD_MAX_RANK, err);
    if (!st)
        *shape = in[0].shape;
    *dtype = QD_F32;
    return st;
}

static void dequantize_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    qd_k_dequantize(qd_f32(out), in[0]->data, in[0]->dtype == QD_I8, qd_tensor_count(out),
                    (float)qd_node_float(n, "scale"), (int32_t)qd_node_int(n, "zero"));
}

const qd_op qd_op_dequantize = {
    .name = "dequantize",
    .summary = "(code - zero) * scale.",
    .attrs = (const qd_op_attr[]){ { "scale", QD_ATTR_FLOAT, NAN, 0, "real units of one step, > 0" },
                                   { "zero", QD_ATTR_INT, 0, 0, "the code of 0.0" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = dequantize_infer,
    .forward = dequantize_forward,
    .no_gradient = "codes are whole numbers: nothing flows into them",
};

/* The dtype a weight of codes may have as it is. */
static qd_dtype weight_dtype(const qd_operand *in)
{
    return in[1].shape.rank >= 0 && qd_dtype_is_codes(in[1].dtype) ? in[1].dtype : QD_I8;
}

/* What qconv2d and qlinear have beside their shapes: scales, a bias, and sums that fit an int32. */
static qd_status layer_infer(const qd_node *n, const qd_operand *in, int64_t outputs, int64_t channels,
                             int64_t products, qd_err *err)
{
    qd_status st = qd_infer_int(n, "group_size", 0, QD_K_MAX_PRODUCTS, err);
    if (st)
        return st;
    const int64_t group = qd_node_int(n, "group_size");
    if (group) {
        const qd_shape want = QD_SHAPE(outputs, qd_k_scales(channels, group));
        char text[2][64];
        st = qd_infer_operand(in, 2, "wscale", QD_F32, 2, 2, err);
        if (!st && !qd_shape_equal(&in[2].shape, &want))
            st = qd_fail(err, QD_E_INVALID, "wscale is %s, must be %s: a scale for each %lld of %lld channels",
                         qd_shape_text(&in[2].shape, text[0], sizeof text[0]),
                         qd_shape_text(&want, text[1], sizeof text[1]), (long long)group, (long long)channels);
    } else {
        st = qd_infer_vector(in, 2, "wscale", outputs, err);
    }
    if (!st)
        st = check_values(in, 2, "wscale", false, err);
    if (!st)
        st = qd_infer_optional(in, 3, "bias", outputs, err);
    if (!st && products > QD_K_MAX_PRODUCTS)
        st = qd_fail(err, QD_E_LIMIT, "a sum of %lld products may overflow 32 bits, at most %d", (long long)products,
                     QD_K_MAX_PRODUCTS);
    return st;
}

static qd_status qconv2d_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = codes_infer(n, in, "x_scale", "x_zero", 4, 4, err);
    if (!st)
        st = qd_infer_conv(n, in, weight_dtype(in), shape, err);
    if (!st) {
        const int64_t *w = in[1].shape.dim;
        st = layer_infer(n, in, w[0], w[1], w[1] * w[2] * w[3], err);
    }
    *dtype = QD_F32;
    return st;
}

static qd_k_codes weight_of(const qd_node *n, const qd_tensor *const *in)
{
    return (qd_k_codes){ .codes = in[1]->data,
                         .bits = (int)qd_dtype_bits(in[1]->dtype),
                         .group = qd_node_int(n, "group_size"),
                         .wscale = qd_f32(in[2]) };
}

static void qconv2d_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_conv_shape s = qd_node_conv_shape(n, &in[0]->shape, &in[1]->shape, &out->shape);
    const qd_k_codes weight = weight_of(n, in);
    qd_k_qconv2d(qd_f32(out), in[0]->data, in[0]->dtype == QD_I8, &weight, in[3] ? qd_f32(in[3]) : NULL,
                 (float)qd_node_float(n, "x_scale"), (int32_t)qd_node_int(n, "x_zero"), &s);
}

const qd_op qd_op_qconv2d = {
    .name = "qconv2d",
    .summary = "conv2d on codes with integer sums, result in float.",
    .attrs = (const qd_op_attr[]){ { "stride", QD_ATTR_INTS, 1, 2, "down, across" },
                                   { "pads", QD_ATTR_INTS, 0, 4, "real zeros at the top, left, bottom, right" },
                                   { "dilation", QD_ATTR_INTS, 1, 2, "distance of the taps, down, across" },
                                   { "groups", QD_ATTR_INT, 1, 0, "channels are split into so many groups" },
                                   { "x_scale", QD_ATTR_FLOAT, NAN, 0, "real units of one step of the codes, > 0" },
                                   { "x_zero", QD_ATTR_INT, 0, 0, "the code of 0.0" },
                                   { "group_size", QD_ATTR_INT, 0, 0, "input channels that share a scale; 0 = all" },
                                   { NULL } },
    .min_inputs = 3,
    .max_inputs = 4,
    .infer = qconv2d_infer,
    .forward = qconv2d_forward,
    .macs = qd_macs_conv,
    .no_gradient = "codes are whole numbers: nothing flows into them",
};

static qd_status qlinear_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = codes_infer(n, in, "x_scale", "x_zero", 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "weight", weight_dtype(in), 2, 2, err);
    if (st)
        return st;
    qd_shape r = in[0].shape;
    const int64_t outputs = in[1].shape.dim[0], features = in[1].shape.dim[1];
    if (r.dim[r.rank - 1] != features)
        return qd_fail(err, QD_E_INVALID, "codes have %lld features, weight wants %lld", (long long)r.dim[r.rank - 1],
                       (long long)features);
    r.dim[r.rank - 1] = outputs;
    st = layer_infer(n, in, outputs, features, features, err);
    if (!st)
        st = qd_infer_result(&r, err);
    *shape = r;
    *dtype = QD_F32;
    return st;
}

static void qlinear_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *w = &in[1]->shape;
    const qd_k_codes weight = weight_of(n, in);
    qd_k_qlinear(qd_f32(out), in[0]->data, in[0]->dtype == QD_I8, &weight, in[3] ? qd_f32(in[3]) : NULL,
                 (float)qd_node_float(n, "x_scale"), (int32_t)qd_node_int(n, "x_zero"),
                 qd_dims(&out->shape, 0, out->shape.rank - 1), w->dim[1], w->dim[0]);
}

const qd_op qd_op_qlinear = {
    .name = "qlinear",
    .summary = "linear on codes with integer sums, result in float.",
    .attrs = (const qd_op_attr[]){ { "x_scale", QD_ATTR_FLOAT, NAN, 0, "real units of one step of the codes, > 0" },
                                   { "x_zero", QD_ATTR_INT, 0, 0, "the code of 0.0" },
                                   { "group_size", QD_ATTR_INT, 0, 0, "input channels that share a scale; 0 = all" },
                                   { NULL } },
    .min_inputs = 3,
    .max_inputs = 4,
    .infer = qlinear_infer,
    .forward = qlinear_forward,
    .macs = qd_macs_linear,
    .no_gradient = "codes are whole numbers: nothing flows into them",
};
