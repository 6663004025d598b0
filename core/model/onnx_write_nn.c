/* onnx_write_nn.c - layers, norms and embeddings as operators of ONNX opset 13. */
#include <math.h>
#include <stdio.h>

#include "model/onnx_write.h"

enum { INT64 = 7, FLOAT = 1 }; /* TensorProto.DataType */

/* --- windows --- */

void qd_out_conv(qd_onnx_writer *w, const char *op, const char *x, const char *weight, const char *bias,
                 bool output_pad)
{
    const qd_attr *stride = qd_node_ints(w->n, "stride"), *pads = qd_node_ints(w->n, "pads");
    const qd_attr *dilation = qd_node_ints(w->n, "dilation");
    const qd_attr *extra = output_pad ? qd_node_ints(w->n, "output_pad") : NULL;
    const int64_t *kernel = qd_out_shape(w, 1)->dim + 2;
    const qd_onnx_put_attr attrs[] = { QD_PUT_V("kernel_shape", 2, kernel),
                                       QD_PUT_V("strides", 2, stride->ints),
                                       QD_PUT_V("pads", 4, pads->ints), /* top, left, bottom, right, as ours */
                                       QD_PUT_V("dilations", 2, dilation->ints),
                                       QD_PUT_I("group", qd_node_int(w->n, "groups")),
                                       QD_PUT_V("output_padding", 2, extra ? extra->ints : NULL) };
    qd_out_emit(w, op, NULL, (const char *[]){ x, weight, bias }, bias ? 3 : 2, attrs, output_pad ? 6 : 5);
}

void qd_onnx_write_conv(qd_onnx_writer *w)
{
    qd_out_conv(w, "Conv", qd_out_in(w, 0), qd_out_in(w, 1), qd_out_in(w, 2), false);
}

void qd_onnx_write_conv_transpose(qd_onnx_writer *w)
{
    qd_out_conv(w, "ConvTranspose", qd_out_in(w, 0), qd_out_in(w, 1), qd_out_in(w, 2), true);
}

void qd_onnx_write_pool(qd_onnx_writer *w)
{
    const bool mean = w->n->op == &qd_op_avg_pool;
    const qd_onnx_put_attr attrs[] = { QD_PUT_V("kernel_shape", 2, qd_node_ints(w->n, "kernel")->ints),
                                       QD_PUT_V("strides", 2, qd_node_ints(w->n, "stride")->ints),
                                       QD_PUT_V("pads", 4, qd_node_ints(w->n, "pads")->ints),
                                       QD_PUT_I("count_include_pad", mean ? qd_node_int(w->n, "count_pad") : 0) };
    qd_out_emit(w, mean ? "AveragePool" : "MaxPool", NULL, QD_ONNX_IN(qd_out_in(w, 0)), attrs, mean ? 4 : 3);
}

void qd_onnx_write_upsample(qd_onnx_writer *w)
{
    const int64_t *factor = qd_node_ints(w->n, "factor")->ints;
    const float scales[4] = { 1.0f, 1.0f, (float)factor[0], (float)factor[1] };
    const qd_shape four = QD_SHAPE(4);
    const char *by = qd_out_floats(w, "scales", &four, scales);
    qd_out_emit(w, "Resize", NULL, QD_ONNX_IN(qd_out_in(w, 0), NULL, by),
                QD_ONNX_ATTRS(QD_PUT_S("mode", "nearest"), QD_PUT_S("coordinate_transformation_mode", "asymmetric"),
                              QD_PUT_S("nearest_mode", "floor")));
}

/* --- products --- */

void qd_out_linear(qd_onnx_writer *w, const char *x, const char *weight, const char *bias, bool transposed)
{
    static const int64_t swap[2] = { 1, 0 };
    if (qd_out_shape(w, 0)->rank == 2) {
        qd_out_emit(w, "Gemm", NULL, (const char *[]){ x, weight, bias }, bias ? 3 : 2,
                    QD_ONNX_ATTRS(QD_PUT_I("transB", !transposed)));
        return;
    }
    if (!transposed)
        weight = qd_out_transpose(w, "weight_t", weight, 2, swap);
    const char *y = qd_out_emit(w, "MatMul", bias ? "product" : NULL, QD_ONNX_IN(x, weight), QD_ONNX_NONE);
    if (bias)
        qd_out_emit(w, "Add", NULL, QD_ONNX_IN(y, bias), QD_ONNX_NONE);
}

void qd_onnx_write_linear(qd_onnx_writer *w)
{
    qd_out_linear(w, qd_out_in(w, 0), qd_out_in(w, 1), qd_out_in(w, 2), false);
}

/* The last two axes the other way round. */
static const char *turn(qd_onnx_writer *w, const char *suffix, const char *x, int rank)
{
    int64_t perm[QD_MAX_RANK];
    for (int k = 0; k < rank; k++)
        perm[k] = k;
    perm[rank - 2] = rank - 1;
    perm[rank - 1] = rank - 2;
    return qd_out_transpose(w, suffix, x, rank, perm);
}

void qd_onnx_write_matmul(qd_onnx_writer *w)
{
    const double alpha = qd_node_float(w->n, "alpha");
    const char *a = qd_out_in(w, 0), *b = qd_out_in(w, 1);
    if (qd_node_int(w->n, "trans_a"))
        a = turn(w, "a_t", a, qd_out_shape(w, 0)->rank);
    if (qd_node_int(w->n, "trans_b"))
        b = turn(w, "b_t", b, qd_out_shape(w, 1)->rank);
    const char *y = qd_out_emit(w, "MatMul", alpha != 1.0 ? "product" : NULL, QD_ONNX_IN(a, b), QD_ONNX_NONE);
    if (alpha != 1.0)
        qd_out_emit(w, "Mul", NULL, QD_ONNX_IN(y, qd_out_float(w, "alpha", alpha)), QD_ONNX_NONE);
}

/* --- norms --- */

/* y * weight + bias, each [C] along axis 1 of a value of that rank; the last step makes the node's value. */
static void scale_and_shift(qd_onnx_writer *w, const char *y, int64_t channels, int rank)
{
    int64_t dims[QD_MAX_RANK];
    const char *part[2] = { qd_out_in(w, 1), qd_out_in(w, 2) };
    for (int k = 0; k < rank - 1; k++)
        dims[k] = k ? 1 : channels;
    for (int k = 0; k < 2; k++) {
        if (!part[k])
            continue;
        const bool last = k == 1 || !part[1];
        const char *p = qd_out_reshape(w, k ? "bias" : "weight", part[k], rank - 1, dims);
        y = qd_out_emit(w, k ? "Add" : "Mul", last ? NULL : "scaled", QD_ONNX_IN(y, p), QD_ONNX_NONE);
    }
}

/* Group norm is instance norm of the groups laid out as channels. */
void qd_onnx_write_group_norm(qd_onnx_writer *w)
{
    const qd_shape *x = qd_out_shape(w, 0);
    const int64_t groups = qd_node_int(w->n, "groups"), flat[3] = { 0, groups, -1 };
    const qd_shape vector = QD_SHAPE(groups), open = qd_out_open_shape(w);
    float *ones = qd_alloc((size_t)groups * 2 * sizeof(float));
    if (!ones) {
        qd_onnx_put_fail(&w->put, QD_E_NOMEM, "out of memory for %lld groups", (long long)groups);
        return;
    }
    for (int64_t k = 0; k < groups; k++) {
        ones[k] = 1.0f;
        ones[groups + k] = 0.0f;
    }
    const char *one = qd_out_floats(w, "ones", &vector, ones);
    const char *zero = qd_out_floats(w, "zeros", &vector, ones + groups);
    const char *y = qd_out_reshape(w, "groups", qd_out_in(w, 0), 3, flat);
    y = qd_out_emit(w, "InstanceNormalization", "norm", QD_ONNX_IN(y, one, zero),
                    QD_ONNX_ATTRS(QD_PUT_F("epsilon", qd_node_float(w->n, "eps"))));
    const bool plain = !qd_out_operand(w, 1) && !qd_out_operand(w, 2);
    y = qd_out_reshape(w, plain ? NULL : "channels", y, open.rank, open.dim);
    scale_and_shift(w, y, x->dim[1], x->rank);
    qd_free(ones);
}

/* Written out: LayerNormalization came with opset 17. */
void qd_onnx_write_layer_norm(qd_onnx_writer *w)
{
    const int64_t axes = qd_node_int(w->n, "axes");
    int64_t axis[QD_MAX_RANK];
    for (int64_t k = 0; k < axes; k++)
        axis[k] = k - axes;
    const char *x = qd_out_in(w, 0), *along = w->put.opset >= 18 ? qd_out_ints(w, "axes", (int)axes, axis) : NULL;
    const qd_onnx_put_attr attr = QD_PUT_V("axes", (int)axes, axis);
    const int n_in = along ? 2 : 1, n_attrs = along ? 0 : 1;
    const char *y = qd_out_emit(w, "ReduceMean", "mean", (const char *[]){ x, along }, n_in, &attr, n_attrs);
    const char *d = qd_out_emit(w, "Sub", "centred", QD_ONNX_IN(x, y), QD_ONNX_NONE);
    y = qd_out_emit(w, "Mul", "squares", QD_ONNX_IN(d, d), QD_ONNX_NONE);
    y = qd_out_emit(w, "ReduceMean", "variance", (const char *[]){ y, along }, n_in, &attr, n_attrs);
    y = qd_out_emit(w, "Add", "stable", QD_ONNX_IN(y, qd_out_float(w, "eps", qd_node_float(w->n, "eps"))),
                    QD_ONNX_NONE);
    y = qd_out_emit(w, "Sqrt", "deviation", QD_ONNX_IN(y), QD_ONNX_NONE);
    const char *weight = qd_out_in(w, 1), *bias = qd_out_in(w, 2);
    y = qd_out_emit(w, "Div", weight || bias ? "norm" : NULL, QD_ONNX_IN(d, y), QD_ONNX_NONE);
    if (weight)
        y = qd_out_emit(w, "Mul", bias ? "scaled" : NULL, QD_ONNX_IN(y, weight), QD_ONNX_NONE);
    if (bias)
        qd_out_emit(w, "Add", NULL, QD_ONNX_IN(y, bias), QD_ONNX_NONE);
}

void qd_onnx_write_batch_norm(qd_onnx_writer *w)
{
    qd_out_emit(w, "BatchNormalization", NULL,
                QD_ONNX_IN(qd_out_in(w, 0), qd_out_in(w, 1), qd_out_in(w, 2), qd_out_in(w, 3), qd_out_in(w, 4)),
                QD_ONNX_ATTRS(QD_PUT_F("epsilon", qd_node_float(w->n, "eps"))));
}

/* --- embeddings --- */

/* t * frequencies, sines and cosines side by side (diffusion_models.md 2.1). */
void qd_onnx_write_timestep(qd_onnx_writer *w)
{
    const int64_t dim = qd_node_int(w->n, "dim"), half = dim / 2, one = 1;
    const double period = log(qd_node_float(w->n, "max_period")), shift = qd_node_float(w->n, "freq_shift");
    const qd_shape row = QD_SHAPE(1, half);
    float *freq = qd_alloc((size_t)(half ? half : 1) * sizeof(float));
    if (!freq || dim % 2) {
        qd_onnx_put_fail(&w->put, freq ? QD_E_UNSUPPORTED : QD_E_NOMEM,
                         "'%s' has %lld channels, which we do not write as ONNX", w->n->name, (long long)dim);
        qd_free(freq);
        return;
    }
    for (int64_t k = 0; k < half; k++) {
        const float exponent = (float)-period * (float)k / ((float)half - (float)shift);
        freq[k] = (float)exp((double)exponent);
    }
    const char *t = qd_out_in(w, 0);
    if (qd_out_operand(w, 0)->dtype != QD_F32)
        t = qd_out_emit(w, "Cast", "float", QD_ONNX_IN(t), QD_ONNX_ATTRS(QD_PUT_I("to", FLOAT)));
    t = qd_out_emit(w, "Unsqueeze", "column", QD_ONNX_IN(t, qd_out_ints(w, "axis", 1, &one)), QD_ONNX_NONE);
    t = qd_out_emit(w, "Mul", "angle", QD_ONNX_IN(t, qd_out_floats(w, "frequencies", &row, freq)), QD_ONNX_NONE);
    const char *s = qd_out_emit(w, "Sin", "sin", QD_ONNX_IN(t), QD_ONNX_NONE);
    const char *c = qd_out_emit(w, "Cos", "cos", QD_ONNX_IN(t), QD_ONNX_NONE);
    const bool flip = qd_node_int(w->n, "flip_sin_to_cos");
    qd_out_emit(w, "Concat", NULL, QD_ONNX_IN(flip ? c : s, flip ? s : c), QD_ONNX_ATTRS(QD_PUT_I("axis", -1)));
    qd_free(freq);
}

/* An index outside the table is held at the nearer end. */
void qd_onnx_write_embedding(qd_onnx_writer *w)
{
    const char *index = qd_out_in(w, 0);
    const int64_t last = qd_out_shape(w, 1)->dim[0] - 1;
    if (qd_out_operand(w, 0)->dtype != QD_F32)
        index = qd_out_emit(w, "Cast", "float", QD_ONNX_IN(index), QD_ONNX_ATTRS(QD_PUT_I("to", FLOAT)));
    const char *lo = qd_out_float(w, "first", 0.0), *hi = qd_out_float(w, "last", (double)last);
    index = qd_out_emit(w, "Clip", "held", QD_ONNX_IN(index, lo, hi), QD_ONNX_NONE);
    index = qd_out_emit(w, "Cast", "index", QD_ONNX_IN(index), QD_ONNX_ATTRS(QD_PUT_I("to", INT64)));
    qd_out_emit(w, "Gather", NULL, QD_ONNX_IN(qd_out_in(w, 1), index), QD_ONNX_ATTRS(QD_PUT_I("axis", 0)));
}
