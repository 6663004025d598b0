/* onnx_write.c - our graph as an ONNX file: opset 13, or 21 where weights of 4 bits shall stay such. */
#include "model/onnx_write.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { FLOAT = 1, INT64 = 7 }; /* TensorProto.DataType */

/* --- names and steps --- */

const qd_node *qd_out_operand(const qd_onnx_writer *w, int k)
{
    return k < w->n->n_inputs && w->n->input[k] >= 0 ? qd_graph_node(w->g, w->n->input[k]) : NULL;
}

const qd_shape *qd_out_shape(const qd_onnx_writer *w, int k)
{
    return &w->shapes[k < 0 ? w->id : w->n->input[k]];
}

/* Codes of 6 bits have no type in ONNX, those of 4 only since opset 21: they travel in 8. */
static void write_const(qd_onnx_writer *w, qd_node_id id)
{
    const qd_node *n = qd_graph_node(w->g, id);
    qd_tensor plain = { 0 };

    if (w->written[id])
        return;
    w->written[id] = true;
    if (qd_dtype_bits(n->dtype) >= 8) {
        qd_onnx_put_tensor(&w->put, w->value[id], qd_onnx_put_type(n->dtype), &n->shape, n->value.data,
                           qd_tensor_bytes(&n->value), true);
        return;
    }
    if (qd_tensor_unpack(&plain, &n->value, NULL, w->put.err)) {
        qd_onnx_put_fail(&w->put, QD_E_NOMEM, "out of memory for the codes of '%s'", n->name);
        return;
    }
    const int64_t count = qd_tensor_count(&plain);
    if (n->dtype == QD_I4 && w->put.opset >= 21) {
        /* ONNX packs the whole tensor as one row, in place here: byte k only holds codes from 2 k on. */
        uint8_t *to = plain.data;
        for (int64_t k = 0; k < count; k += 2)
            to[k / 2] = (uint8_t)((to[k] & 15) | (k + 1 < count ? to[k + 1] << 4 : 0));
        qd_onnx_put_tensor(&w->put, w->value[id], qd_onnx_put_type(QD_I4), &n->shape, to, (size_t)(count + 1) / 2,
                           false);
    } else {
        qd_onnx_put_tensor(&w->put, w->value[id], qd_onnx_put_type(QD_I8), &n->shape, plain.data, (size_t)count, false);
    }
    qd_tensor_clear(&plain);
}

const char *qd_out_in(qd_onnx_writer *w, int k)
{
    const qd_node *x = qd_out_operand(w, k);
    if (!x)
        return NULL;
    if (x->op == &qd_op_const)
        write_const(w, w->n->input[k]);
    return w->value[w->n->input[k]];
}

const char *qd_out_fresh(qd_onnx_writer *w, const char *suffix)
{
    const char *name = qd_onnx_put_name(&w->put, "%s/%s", w->n->name, suffix);
    while (*name && qd_graph_find(w->g, name) >= 0)
        name = qd_onnx_put_name(&w->put, "%s_", name);
    return name;
}

const char *qd_out_emit(qd_onnx_writer *w, const char *op, const char *suffix, const char *const *in, int n_in,
                        const qd_onnx_put_attr *attrs, int n_attrs)
{
    const char *out = suffix ? qd_out_fresh(w, suffix) : w->value[w->id];
    qd_onnx_put_node(&w->put, op, in, n_in, out, attrs, n_attrs);
    return out;
}

const char *qd_out_floats(qd_onnx_writer *w, const char *suffix, const qd_shape *shape, const float *v)
{
    const char *name = qd_out_fresh(w, suffix);
    int64_t count = 1;
    for (int k = 0; k < shape->rank; k++)
        count *= shape->dim[k];
    qd_onnx_put_tensor(&w->put, name, FLOAT, shape, v, (size_t)count * sizeof(float), false);
    return name;
}

const char *qd_out_float(qd_onnx_writer *w, const char *suffix, double v)
{
    const float f = (float)v;
    return qd_out_floats(w, suffix, &(qd_shape){ 0 }, &f);
}

const char *qd_out_ints(qd_onnx_writer *w, const char *suffix, int n, const int64_t *v)
{
    const char *name = qd_out_fresh(w, suffix);
    const qd_shape shape = QD_SHAPE(n);
    qd_onnx_put_tensor(&w->put, name, INT64, &shape, v, (size_t)n * sizeof(int64_t), false);
    return name;
}

const char *qd_out_transpose(qd_onnx_writer *w, const char *suffix, const char *x, int rank, const int64_t *perm)
{
    return qd_out_emit(w, "Transpose", suffix, QD_ONNX_IN(x), QD_ONNX_ATTRS(QD_PUT_V("perm", rank, perm)));
}

const char *qd_out_reshape(qd_onnx_writer *w, const char *suffix, const char *x, int rank, const int64_t *dims)
{
    char target[64];
    snprintf(target, sizeof(target), "shape%s%.50s", suffix ? "_" : "", suffix ? suffix : "");
    const char *to = qd_out_ints(w, target, rank, dims);
    return qd_out_emit(w, "Reshape", suffix, QD_ONNX_IN(x, to), QD_ONNX_NONE);
}

qd_shape qd_out_open_shape(qd_onnx_writer *w)
{
    qd_shape s = w->shapes[w->id];
    for (int k = 0; k < s.rank; k++)
        if (s.dim[k] != w->other[w->id].dim[k]) {
            if (k > 0)
                qd_onnx_put_fail(&w->put, QD_E_UNSUPPORTED, "'%s': dim %d of its value depends on the batch",
                                 w->n->name, k);
            s.dim[k] = 0;
        }
    return s;
}

/* --- one value in, one out --- */

static void write_named(qd_onnx_writer *w)
{
    static const struct {
        const qd_op *op;
        const char *onnx;
    } names[] = {
        { &qd_op_add, "Add" },         { &qd_op_sub, "Sub" },   { &qd_op_mul, "Mul" },
        { &qd_op_div, "Div" },         { &qd_op_pow, "Pow" },   { &qd_op_min, "Min" },
        { &qd_op_max, "Max" },         { &qd_op_relu, "Relu" }, { &qd_op_tanh, "Tanh" },
        { &qd_op_sigmoid, "Sigmoid" }, { &qd_op_sqrt, "Sqrt" }, { &qd_op_exp, "Exp" },
        { &qd_op_log, "Log" },         { &qd_op_abs, "Abs" },   { &qd_op_erf, "Erf" },
        { &qd_op_sin, "Sin" },         { &qd_op_cos, "Cos" },   { &qd_op_global_avg_pool, "GlobalAveragePool" },
        { &qd_op_detach, "Identity" },
    };
    const char *in[2];
    for (int k = 0; k < w->n->n_inputs && k < 2; k++)
        in[k] = qd_out_in(w, k);
    for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++)
        if (names[k].op == w->n->op)
            qd_out_emit(w, names[k].onnx, NULL, in, w->n->n_inputs, QD_ONNX_NONE);
}

static void write_silu(qd_onnx_writer *w)
{
    const char *x = qd_out_in(w, 0);
    const char *s = qd_out_emit(w, "Sigmoid", "sigmoid", QD_ONNX_IN(x), QD_ONNX_NONE);
    qd_out_emit(w, "Mul", NULL, QD_ONNX_IN(x, s), QD_ONNX_NONE);
}

static void write_gelu(qd_onnx_writer *w)
{
    const char *x = qd_out_in(w, 0);
    const char *y = qd_out_emit(w, "Div", "div", QD_ONNX_IN(x, qd_out_float(w, "sqrt2", sqrt(2.0))), QD_ONNX_NONE);
    y = qd_out_emit(w, "Erf", "erf", QD_ONNX_IN(y), QD_ONNX_NONE);
    y = qd_out_emit(w, "Add", "add", QD_ONNX_IN(y, qd_out_float(w, "one", 1.0)), QD_ONNX_NONE);
    y = qd_out_emit(w, "Mul", "mul", QD_ONNX_IN(x, y), QD_ONNX_NONE);
    qd_out_emit(w, "Mul", NULL, QD_ONNX_IN(y, qd_out_float(w, "half", 0.5)), QD_ONNX_NONE);
}

static void write_affine(qd_onnx_writer *w)
{
    const char *mul = qd_out_float(w, "mul", qd_node_float(w->n, "mul"));
    const char *add = qd_out_float(w, "add", qd_node_float(w->n, "add"));
    const char *y = qd_out_emit(w, "Mul", "scaled", QD_ONNX_IN(qd_out_in(w, 0), mul), QD_ONNX_NONE);
    qd_out_emit(w, "Add", NULL, QD_ONNX_IN(y, add), QD_ONNX_NONE);
}

static void write_clip(qd_onnx_writer *w)
{
    const double lo = qd_node_float(w->n, "lo"), hi = qd_node_float(w->n, "hi");
    const char *least = isinf(lo) ? NULL : qd_out_float(w, "lo", lo);
    const char *most = isinf(hi) ? NULL : qd_out_float(w, "hi", hi);
    qd_out_emit(w, "Clip", NULL, QD_ONNX_IN(qd_out_in(w, 0), least, most), QD_ONNX_NONE);
}

static void write_leaky_relu(qd_onnx_writer *w)
{
    qd_out_emit(w, "LeakyRelu", NULL, QD_ONNX_IN(qd_out_in(w, 0)),
                QD_ONNX_ATTRS(QD_PUT_F("alpha", qd_node_float(w->n, "slope"))));
}

static void write_softmax(qd_onnx_writer *w)
{
    qd_out_emit(w, w->n->op == &qd_op_softmax ? "Softmax" : "LogSoftmax", NULL, QD_ONNX_IN(qd_out_in(w, 0)),
                QD_ONNX_ATTRS(QD_PUT_I("axis", qd_node_int(w->n, "axis"))));
}

/* ONNX asks truth, we ask whether it is above 0. */
static void write_where(qd_onnx_writer *w)
{
    const char *above =
        qd_out_emit(w, "Greater", "above", QD_ONNX_IN(qd_out_in(w, 0), qd_out_float(w, "zero", 0.0)), QD_ONNX_NONE);
    qd_out_emit(w, "Where", NULL, QD_ONNX_IN(above, qd_out_in(w, 1), qd_out_in(w, 2)), QD_ONNX_NONE);
}

/* 1, 1/2 where equal, 0: the mean of two comparisons. */
static void write_less(qd_onnx_writer *w)
{
    static const char *const ops[2] = { "Less", "LessOrEqual" };
    const char *part[2], *a = qd_out_in(w, 0), *b = qd_out_in(w, 1);
    for (int k = 0; k < 2; k++) {
        const char *truth = qd_out_emit(w, ops[k], k ? "at_most" : "below", QD_ONNX_IN(a, b), QD_ONNX_NONE);
        part[k] = qd_out_emit(w, "Cast", k ? "at_most_1" : "below_1", QD_ONNX_IN(truth),
                              QD_ONNX_ATTRS(QD_PUT_I("to", FLOAT)));
    }
    const char *sum = qd_out_emit(w, "Add", "sum", QD_ONNX_IN(part[0], part[1]), QD_ONNX_NONE);
    qd_out_emit(w, "Mul", NULL, QD_ONNX_IN(sum, qd_out_float(w, "half", 0.5)), QD_ONNX_NONE);
}

static void write_cast(qd_onnx_writer *w)
{
    qd_out_emit(w, "Cast", NULL, QD_ONNX_IN(qd_out_in(w, 0)), QD_ONNX_ATTRS(QD_PUT_I("to", FLOAT)));
}

/* Axes are an attribute of ReduceMean until opset 17, an input of both after. */
static void write_reduce(qd_onnx_writer *w)
{
    const bool mean = w->n->op == &qd_op_mean;
    const qd_attr *axes = qd_node_ints(w->n, "axes");
    const qd_onnx_put_attr keep = QD_PUT_I("keepdims", qd_node_int(w->n, "keep"));
    const char *x = qd_out_in(w, 0);
    if (mean && w->put.opset < 18)
        qd_out_emit(w, "ReduceMean", NULL, QD_ONNX_IN(x), QD_ONNX_ATTRS(keep, QD_PUT_V("axes", axes->n, axes->ints)));
    else
        qd_out_emit(w, mean ? "ReduceMean" : "ReduceSum", NULL,
                    QD_ONNX_IN(x, qd_out_ints(w, "axes", axes->n, axes->ints)), QD_ONNX_ATTRS(keep));
}

/* --- shapes --- */

static void write_reshape(qd_onnx_writer *w)
{
    const qd_attr *a = qd_node_ints(w->n, "shape");
    qd_out_reshape(w, NULL, qd_out_in(w, 0), a->n, a->ints);
}

static void write_permute(qd_onnx_writer *w)
{
    const qd_attr *a = qd_node_ints(w->n, "perm");
    qd_out_transpose(w, NULL, qd_out_in(w, 0), a->n, a->ints);
}

static void write_concat(qd_onnx_writer *w)
{
    const char *in[QD_MAX_INPUTS];
    for (int k = 0; k < w->n->n_inputs; k++)
        in[k] = qd_out_in(w, k);
    qd_out_emit(w, "Concat", NULL, in, w->n->n_inputs, QD_ONNX_ATTRS(QD_PUT_I("axis", qd_node_int(w->n, "axis"))));
}

static void write_slice(qd_onnx_writer *w)
{
    const int64_t axis = qd_node_int(w->n, "axis"), start = qd_node_int(w->n, "start");
    const int64_t length = qd_node_int(w->n, "length"), step = qd_node_int(w->n, "step");
    int64_t end = length < 0 ? INT64_MAX : start + (length - 1) * step + 1;
    if (start < 0 && end >= 0)
        end = INT64_MAX; /* up to the last, which has no number counted from the end */
    const char *from = qd_out_ints(w, "start", 1, &start), *to = qd_out_ints(w, "end", 1, &end);
    const char *along = qd_out_ints(w, "axis", 1, &axis), *by = qd_out_ints(w, "step", 1, &step);
    qd_out_emit(w, "Slice", NULL, QD_ONNX_IN(qd_out_in(w, 0), from, to, along, by), QD_ONNX_NONE);
}

static void write_gather(qd_onnx_writer *w)
{
    qd_out_emit(w, "Gather", NULL, QD_ONNX_IN(qd_out_in(w, 0), qd_out_in(w, 1)),
                QD_ONNX_ATTRS(QD_PUT_I("axis", qd_node_int(w->n, "axis"))));
}

static void write_expand(qd_onnx_writer *w)
{
    const qd_attr *a = qd_node_ints(w->n, "shape");
    const char *like = qd_out_in(w, 1), *part[QD_MAX_RANK];
    const int64_t zero = 0, one = 1;
    const char *batch = NULL;
    for (int k = 0; k < a->n; k++) {
        char suffix[16] = "dim0";
        suffix[3] = (char)('0' + k);
        if (a->ints[k]) {
            part[k] = qd_out_ints(w, suffix, 1, &a->ints[k]);
            continue;
        }
        if (!batch) {
            const char *all = qd_out_emit(w, "Shape", "like", QD_ONNX_IN(like), QD_ONNX_NONE);
            const char *from = qd_out_ints(w, "from", 1, &zero), *to = qd_out_ints(w, "to", 1, &one);
            batch = qd_out_emit(w, "Slice", "batch", QD_ONNX_IN(all, from, to), QD_ONNX_NONE);
        }
        part[k] = batch;
    }
    const char *shape = qd_out_emit(w, "Concat", "shape", part, a->n, QD_ONNX_ATTRS(QD_PUT_I("axis", 0)));
    qd_out_emit(w, "Expand", NULL, QD_ONNX_IN(qd_out_in(w, 0), shape), QD_ONNX_NONE);
}

static void write_pad(qd_onnx_writer *w)
{
    const qd_attr *a = qd_node_ints(w->n, "pads");
    if (w->n->dtype != QD_F32) {
        qd_onnx_put_fail(&w->put, QD_E_UNSUPPORTED, "'%s' pads codes, which ONNX does not", w->n->name);
        return;
    }
    const char *pads = qd_out_ints(w, "pads", a->n, a->ints);
    const char *value = qd_out_float(w, "value", qd_node_float(w->n, "value"));
    qd_out_emit(w, "Pad", NULL, QD_ONNX_IN(qd_out_in(w, 0), pads, value), QD_ONNX_NONE);
}

/* --- the table --- */

static const struct {
    const qd_op *op;
    qd_onnx_row_writer *write;
} rows[] = {
    { &qd_op_add, write_named },
    { &qd_op_sub, write_named },
    { &qd_op_mul, write_named },
    { &qd_op_div, write_named },
    { &qd_op_pow, write_named },
    { &qd_op_min, write_named },
    { &qd_op_max, write_named },
    { &qd_op_relu, write_named },
    { &qd_op_tanh, write_named },
    { &qd_op_sigmoid, write_named },
    { &qd_op_sqrt, write_named },
    { &qd_op_exp, write_named },
    { &qd_op_log, write_named },
    { &qd_op_abs, write_named },
    { &qd_op_erf, write_named },
    { &qd_op_sin, write_named },
    { &qd_op_cos, write_named },
    { &qd_op_detach, write_named },
    { &qd_op_global_avg_pool, write_named },
    { &qd_op_silu, write_silu },
    { &qd_op_gelu, write_gelu },
    { &qd_op_affine, write_affine },
    { &qd_op_clip, write_clip },
    { &qd_op_leaky_relu, write_leaky_relu },
    { &qd_op_softmax, write_softmax },
    { &qd_op_log_softmax, write_softmax },
    { &qd_op_cast, write_cast },
    { &qd_op_where, write_where },
    { &qd_op_less, write_less },
    { &qd_op_mean, write_reduce },
    { &qd_op_sum, write_reduce },
    { &qd_op_reshape, write_reshape },
    { &qd_op_permute, write_permute },
    { &qd_op_concat, write_concat },
    { &qd_op_slice, write_slice },
    { &qd_op_gather, write_gather },
    { &qd_op_expand, write_expand },
    { &qd_op_pad, write_pad },
    { &qd_op_matmul, qd_onnx_write_matmul },
    { &qd_op_linear, qd_onnx_write_linear },
    { &qd_op_attention, qd_onnx_write_attention },
    { &qd_op_qattention, qd_onnx_write_attention },
    { &qd_op_fake_attention, qd_onnx_write_attention },
    { &qd_op_timestep, qd_onnx_write_timestep },
    { &qd_op_embedding, qd_onnx_write_embedding },
    { &qd_op_conv2d, qd_onnx_write_conv },
    { &qd_op_conv_transpose2d, qd_onnx_write_conv_transpose },
    { &qd_op_upsample, qd_onnx_write_upsample },
    { &qd_op_avg_pool, qd_onnx_write_pool },
    { &qd_op_max_pool, qd_onnx_write_pool },
    { &qd_op_group_norm, qd_onnx_write_group_norm },
    { &qd_op_layer_norm, qd_onnx_write_layer_norm },
    { &qd_op_batch_norm, qd_onnx_write_batch_norm },
    { &qd_op_quantize, qd_onnx_write_quantize },
    { &qd_op_dequantize, qd_onnx_write_dequantize },
    { &qd_op_fake_quant, qd_onnx_write_fake_quant },
    { &qd_op_qconv2d, qd_onnx_write_qlayer },
    { &qd_op_qlinear, qd_onnx_write_qlayer },
};

static void write_node(qd_onnx_writer *w)
{
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++)
        if (rows[k].op == w->n->op) {
            rows[k].write(w);
            return;
        }
    qd_onnx_put_fail(&w->put, QD_E_UNSUPPORTED, "'%s' is a %s, which we do not write as ONNX", w->n->name,
                     w->n->op->name);
}

/* --- the graph --- */

/* A value that is an output bears the output's name; whoever had that name before steps aside. */
static void name_values(qd_onnx_writer *w)
{
    for (qd_node_id id = 0; id < qd_graph_size(w->g); id++)
        w->value[id] = qd_graph_node(w->g, id)->name;
    for (int k = 0; k < qd_graph_outputs(w->g); k++) {
        const qd_node_id id = qd_graph_output_at(w->g, k);
        const char *name = qd_graph_output_name(w->g, k);
        const qd_node_id taken = qd_graph_find(w->g, name);
        const qd_node *n = qd_graph_node(w->g, id);
        if (taken >= 0 && taken != id) {
            w->id = taken;
            w->n = qd_graph_node(w->g, taken);
            if (w->n->op == &qd_op_input)
                qd_onnx_put_fail(&w->put, QD_E_UNSUPPORTED, "output '%s' has the name of an input", name);
            if (w->value[taken] == w->n->name)
                w->value[taken] = qd_out_fresh(w, "value");
        }
        if (n->op != &qd_op_input && n->op != &qd_op_const && w->value[id] == n->name)
            w->value[id] = name;
    }
}

static void write_outputs(qd_onnx_writer *w)
{
    for (int k = 0; k < qd_graph_outputs(w->g); k++) {
        const qd_node_id id = qd_graph_output_at(w->g, k);
        const char *name = qd_graph_output_name(w->g, k);
        w->id = id;
        w->n = qd_graph_node(w->g, id);
        if (w->n->op == &qd_op_const)
            write_const(w, id);
        if (strcmp(w->value[id], name) != 0)
            qd_onnx_put_node(&w->put, "Identity", QD_ONNX_IN(w->value[id]), name, QD_ONNX_NONE);
        qd_shape shape = w->shapes[id];
        for (int j = 0; j < shape.rank; j++)
            if (shape.dim[j] != w->other[id].dim[j])
                shape.dim[j] = -1;
        qd_onnx_put_value(&w->put, true, name, qd_onnx_put_type(w->n->dtype), &shape);
    }
}

static qd_status shapes_for(const qd_graph *g, int64_t batch, qd_shape *shapes, qd_err *err)
{
    qd_shape in[64];
    const int n = qd_graph_inputs(g);
    if (n > (int)(sizeof(in) / sizeof(in[0])))
        return qd_fail(err, QD_E_UNSUPPORTED, "a graph of %d inputs", n);
    for (int k = 0; k < n; k++) {
        in[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        for (int j = 0; j < in[k].rank; j++)
            in[k].dim[j] = in[k].dim[j] < 0 ? batch : in[k].dim[j];
    }
    return qd_graph_shapes(g, in, n, shapes, err);
}

qd_status qd_onnx_save(const char *path, const qd_graph *g, const char *name, int opset, char *sha256_hex, qd_err *err)
{
    const size_t n = (size_t)qd_graph_size(g);
    qd_onnx_writer w = { .g = g };
    qd_shape *shapes = NULL;
    qd_status st;

    if (opset != 13 && opset != 21)
        return qd_fail(err, QD_E_INVALID, "opset must be 13 or 21, got %d", opset);
    qd_onnx_put_init(&w.put, opset, err);
    st = qd_graph_verify(g, err);
    if (st)
        goto out;
    shapes = qd_calloc(2 * n, sizeof(*shapes));
    w.value = qd_calloc(n, sizeof(*w.value));
    w.written = qd_calloc(n, sizeof(*w.written));
    if (!shapes || !w.value || !w.written) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory to write %zu nodes", n);
        goto out;
    }
    w.shapes = shapes;
    w.other = shapes + n;
    st = shapes_for(g, 1, shapes, err);
    if (!st)
        st = shapes_for(g, 2, shapes + n, err);
    if (st)
        goto out;
    name_values(&w);
    for (qd_node_id id = 0; id < (qd_node_id)n && !w.put.status; id++) {
        w.id = id;
        w.n = qd_graph_node(g, id);
        if (w.n->op == &qd_op_input)
            qd_onnx_put_value(&w.put, false, w.n->name, qd_onnx_put_type(w.n->dtype), &w.n->shape);
        else if (w.n->op != &qd_op_const)
            write_node(&w);
    }
    if (!w.put.status)
        write_outputs(&w);
    st = qd_onnx_put_save(&w.put, path, name, sha256_hex);
out:
    qd_onnx_put_clear(&w.put);
    qd_free(w.written);
    qd_free(w.value);
    qd_free(shapes);
    return st;
}
