/* onnx_write_quant.c - codes as QuantizeLinear and DequantizeLinear around float layers (QDQ): what runs in integers is up to the
 * reader. Weights keep their codes: s8 for each output channel, or blocks of s4 in opset 21. */
#include <math.h>
#include <string.h>

#include "model/onnx_write.h"

enum { UINT8 = 2, INT8 = 3 }; /* TensorProto.DataType */

/* Scale and zero of a map of codes, as constants. */
static void map_of(qd_onnx_writer *w, const char *scale_attr, const char *zero_attr, qd_dtype codes, const char **scale,
                   const char **zero)
{
    const uint8_t code = (uint8_t)qd_node_int(w->n, zero_attr); /* of I8 codes too: two's complement */
    *scale = qd_out_float(w, "scale", qd_node_float(w->n, scale_attr));
    *zero = qd_out_fresh(w, "zero");
    qd_onnx_put_tensor(&w->put, *zero, codes == QD_I8 ? INT8 : UINT8, &(qd_shape){ 0 }, &code, 1, false);
}

/* x over its divisor, held in the range of the codes where they do not fill their type. */
static const char *held(qd_onnx_writer *w)
{
    const char *x = qd_out_in(w, 0);
    const qd_node *divisor = qd_out_operand(w, 1);
    const int rank = qd_out_shape(w, 0)->rank;
    if (divisor) {
        int64_t dims[QD_MAX_RANK];
        for (int k = 0; k < rank - 1; k++)
            dims[k] = k ? 1 : qd_out_shape(w, 1)->dim[0];
        const char *d = qd_out_reshape(w, "divisor", qd_out_in(w, 1), rank - 1, dims);
        x = qd_out_emit(w, "Div", "divided", QD_ONNX_IN(x, d), QD_ONNX_NONE);
    }
    if (qd_node_int(w->n, "bits") < 8) {
        const double scale = (float)qd_node_float(w->n, "scale");
        const int64_t zero = qd_node_int(w->n, "zero");
        int32_t qmin, qmax;
        qd_node_code_range(w->n, &qmin, &qmax);
        const char *lo = qd_out_float(w, "lo", (double)(qmin - zero) * scale);
        const char *hi = qd_out_float(w, "hi", (double)(qmax - zero) * scale);
        x = qd_out_emit(w, "Clip", "held", QD_ONNX_IN(x, lo, hi), QD_ONNX_NONE);
    }
    return x;
}

static const char *quantized(qd_onnx_writer *w, const char *suffix, const char *scale, const char *zero)
{
    return qd_out_emit(w, "QuantizeLinear", suffix, QD_ONNX_IN(held(w), scale, zero), QD_ONNX_NONE);
}

void qd_onnx_write_quantize(qd_onnx_writer *w)
{
    const char *scale, *zero;
    map_of(w, "scale", "zero", w->n->dtype, &scale, &zero);
    quantized(w, NULL, scale, zero);
}

void qd_onnx_write_dequantize(qd_onnx_writer *w)
{
    const char *scale, *zero;
    map_of(w, "scale", "zero", qd_out_operand(w, 0)->dtype, &scale, &zero);
    qd_out_emit(w, "DequantizeLinear", NULL, QD_ONNX_IN(qd_out_in(w, 0), scale, zero), QD_ONNX_NONE);
}

void qd_onnx_write_fake_quant(qd_onnx_writer *w)
{
    const char *scale, *zero;
    if (qd_node_int(w->n, "bits") > 8 || qd_out_operand(w, 1)) {
        qd_onnx_put_fail(&w->put, QD_E_UNSUPPORTED, "'%s' imitates codes of %d bits%s, which we do not write as ONNX",
                         w->n->name, (int)qd_node_int(w->n, "bits"), qd_out_operand(w, 1) ? " with divisors" : "");
        return;
    }
    map_of(w, "scale", "zero", qd_node_int(w->n, "symmetric") ? QD_I8 : QD_U8, &scale, &zero);
    const char *q = quantized(w, "codes", scale, zero);
    qd_out_emit(w, "DequantizeLinear", NULL, QD_ONNX_IN(q, scale, zero), QD_ONNX_NONE);
}

/* --- weights --- */

/* wscale [O, G] for each group of `group` channels, once for every place of the kernel: the shape that blocks of axis 1 want, or with
 * `spread` one for each channel. */
static const char *group_scales(qd_onnx_writer *w, const qd_shape *weight, int64_t group, bool spread)
{
    const float *scale = qd_f32(&qd_out_operand(w, 2)->value);
    const int64_t scales = qd_k_scales(weight->dim[1], group);
    qd_shape shape = *weight;
    int64_t inner = 1;
    if (spread)
        for (int k = 2; k < shape.rank; k++)
            shape.dim[k] = 1;
    else
        shape.dim[1] = scales;
    for (int k = 2; k < shape.rank; k++)
        inner *= shape.dim[k];
    const int64_t row = shape.dim[1] * inner, count = shape.dim[0] * row;
    float *v = qd_alloc((size_t)count * sizeof(float));
    if (!v) {
        qd_onnx_put_fail(&w->put, QD_E_NOMEM, "out of memory for the scales of '%s'", w->n->name);
        return "";
    }
    for (int64_t k = 0; k < count; k++)
        v[k] = scale[k / row * scales + k % row / inner / (spread ? group : 1)];
    const char *name = qd_out_floats(w, "wscale", &shape, v);
    qd_free(v);
    return name;
}

/* Zeros for the codes of O outputs, as QDQ likes to see them. */
static const char *zeros_of(qd_onnx_writer *w, int64_t outputs)
{
    const qd_shape shape = QD_SHAPE(outputs);
    const char *name = qd_out_fresh(w, "wzero");
    void *zeros = qd_calloc((size_t)outputs, 1);
    if (zeros)
        qd_onnx_put_tensor(&w->put, name, INT8, &shape, zeros, (size_t)outputs, false);
    else
        qd_onnx_put_fail(&w->put, QD_E_NOMEM, "out of memory for the zeros of '%s'", w->n->name);
    qd_free(zeros);
    return name;
}

static const char *weight_of(qd_onnx_writer *w)
{
    const qd_shape *shape = qd_out_shape(w, 1);
    const int64_t group = qd_node_int(w->n, "group_size");
    const char *codes = qd_out_in(w, 1);
    const bool four = qd_out_operand(w, 1)->dtype == QD_I4 && w->put.opset >= 21;
    const qd_onnx_put_attr axis = QD_PUT_I("axis", group ? 1 : 0);
    /* Blocks must divide the axis. */
    if (group && four && shape->dim[1] % group == 0)
        return qd_out_emit(w, "DequantizeLinear", "weight", QD_ONNX_IN(codes, group_scales(w, shape, group, false)),
                           QD_ONNX_ATTRS(axis, QD_PUT_I("block_size", group)));
    if (group) {
        const char *x =
            qd_out_emit(w, "DequantizeLinear", "codes", QD_ONNX_IN(codes, qd_out_float(w, "one", 1.0)), QD_ONNX_NONE);
        return qd_out_emit(w, "Mul", "weight", QD_ONNX_IN(x, group_scales(w, shape, group, true)), QD_ONNX_NONE);
    }
    const char *zero = four ? NULL : zeros_of(w, shape->dim[0]);
    return qd_out_emit(w, "DequantizeLinear", "weight", (const char *[]){ codes, qd_out_in(w, 2), zero }, zero ? 3 : 2,
                       QD_ONNX_ATTRS(axis));
}

void qd_onnx_write_qlayer(qd_onnx_writer *w)
{
    const char *scale, *zero;
    if (qd_out_operand(w, 1)->op != &qd_op_const || qd_out_operand(w, 2)->op != &qd_op_const) {
        qd_onnx_put_fail(&w->put, QD_E_UNSUPPORTED, "the weight of '%s' is not a constant", w->n->name);
        return;
    }
    map_of(w, "x_scale", "x_zero", qd_out_operand(w, 0)->dtype, &scale, &zero);
    const char *x = qd_out_emit(w, "DequantizeLinear", "x", QD_ONNX_IN(qd_out_in(w, 0), scale, zero), QD_ONNX_NONE);
    const char *weight = weight_of(w), *bias = qd_out_in(w, 3);
    if (w->n->op == &qd_op_qconv2d)
        qd_out_conv(w, "Conv", x, weight, bias, false);
    else
        qd_out_linear(w, x, weight, bias, false);
}
