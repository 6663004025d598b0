/* onnx_write_attention.c - attention as operators of ONNX opset 13: in float, on codes, and the float that imitates codes. */
#include <math.h>
#include <stdio.h>

#include "model/onnx_write.h"

enum { UINT8 = 2, INT8 = 3 }; /* TensorProto.DataType */

/* x [N, T, C] to [N, heads, T, C / heads], or for `keys` to [N, heads, C / heads, T]. */
static const char *heads_of(qd_onnx_writer *w, const char *x, const char *what, int64_t heads, int64_t width, bool keys)
{
    static const int64_t plain[4] = { 0, 2, 1, 3 }, turned[4] = { 0, 2, 3, 1 };
    const int64_t dims[4] = { 0, 0, heads, width };
    char suffix[2][24];
    snprintf(suffix[0], sizeof(suffix[0]), "%s_heads", what);
    snprintf(suffix[1], sizeof(suffix[1]), "%s_turned", what);
    x = qd_out_reshape(w, suffix[0], x, 4, dims);
    return qd_out_transpose(w, suffix[1], x, 4, keys ? turned : plain);
}

/* Softmax weights held in 8 bits against the largest of their query; *sum: what they add up to. */
static const char *coded_weights(qd_onnx_writer *w, const char *s, const char **sum)
{
    static const int64_t last[1] = { -1 };
    static const uint8_t zero_code = 0;
    const qd_onnx_put_attr keep = QD_PUT_I("keepdims", 1);
    const char *axis = qd_out_ints(w, "last", 1, last);
    const char *top =
        w->put.opset >= 18
            ? qd_out_emit(w, "ReduceMax", "largest", QD_ONNX_IN(s, axis), QD_ONNX_ATTRS(keep))
            : qd_out_emit(w, "ReduceMax", "largest", QD_ONNX_IN(s), QD_ONNX_ATTRS(keep, QD_PUT_V("axes", 1, last)));
    s = qd_out_emit(w, "Div", "relative", QD_ONNX_IN(s, top), QD_ONNX_NONE);
    const char *scale = qd_out_float(w, "code", 1.0 / 255.0), *zero = qd_out_fresh(w, "no_zero");
    qd_onnx_put_tensor(&w->put, zero, UINT8, &(qd_shape){ 0 }, &zero_code, 1, false);
    s = qd_out_emit(w, "QuantizeLinear", "weight_codes", QD_ONNX_IN(s, scale, zero), QD_ONNX_NONE);
    s = qd_out_emit(w, "DequantizeLinear", "weights", QD_ONNX_IN(s, scale, zero), QD_ONNX_NONE);
    *sum = qd_out_emit(w, "ReduceSum", "sum", QD_ONNX_IN(s, axis), QD_ONNX_ATTRS(keep));
    return s;
}

/* Operand k as floats: codes are spelled out. */
static const char *operand(qd_onnx_writer *w, int k, const char *what)
{
    char name[24];
    const qd_dtype dtype = qd_out_operand(w, k)->dtype;
    if (dtype != QD_U8 && dtype != QD_I8)
        return qd_out_in(w, k);
    snprintf(name, sizeof(name), "%s_scale", what);
    const char *scale = qd_out_float(w, name, qd_node_float(w->n, name));
    snprintf(name, sizeof(name), "%s_zero", what);
    const uint8_t code = (uint8_t)qd_node_int(w->n, name); /* of I8 codes too: two's complement */
    const char *zero = qd_out_fresh(w, name);
    qd_onnx_put_tensor(&w->put, zero, dtype == QD_I8 ? INT8 : UINT8, &(qd_shape){ 0 }, &code, 1, false);
    return qd_out_emit(w, "DequantizeLinear", what, QD_ONNX_IN(qd_out_in(w, k), scale, zero), QD_ONNX_NONE);
}

/* Weights of 16 bits are written as the floats they are nearly: 16 bits hold them to a part in 65535. */
void qd_onnx_write_attention(qd_onnx_writer *w)
{
    static const int64_t back[4] = { 0, 2, 1, 3 };
    const int64_t channels = qd_out_shape(w, 0)->dim[2], heads = qd_node_int(w->n, "heads"), width = channels / heads;
    const bool coded = w->n->op != &qd_op_attention && qd_node_int(w->n, "softmax_bits") == 8;
    const int64_t dims[3] = { 0, 0, channels };
    const char *sum = NULL;
    const char *q = heads_of(w, operand(w, 0, "q"), "q", heads, width, false);
    const char *k = heads_of(w, operand(w, 1, "k"), "k", heads, width, true);
    const char *v = heads_of(w, operand(w, 2, "v"), "v", heads, width, false);
    const double given = qd_node_float(w->n, "scale"), scale = given != 0.0 ? given : 1.0 / sqrt((double)width);
    const char *s = qd_out_emit(w, "MatMul", "scores", QD_ONNX_IN(q, k), QD_ONNX_NONE);
    s = qd_out_emit(w, "Mul", "scaled", QD_ONNX_IN(s, qd_out_float(w, "scale", scale)), QD_ONNX_NONE);
    s = qd_out_emit(w, "Softmax", "softmax", QD_ONNX_IN(s), QD_ONNX_ATTRS(QD_PUT_I("axis", -1)));
    if (coded)
        s = coded_weights(w, s, &sum);
    s = qd_out_emit(w, "MatMul", "mixed", QD_ONNX_IN(s, v), QD_ONNX_NONE);
    if (coded)
        s = qd_out_emit(w, "Div", "mean", QD_ONNX_IN(s, sum), QD_ONNX_NONE);
    s = qd_out_transpose(w, "joined", s, 4, back);
    qd_out_reshape(w, NULL, s, 3, dims);
}
