/* onnx_ops.c - the table of ONNX operators we read, and those that work element by element. */
#include "model/onnx_int.h"

#include <math.h>
#include <string.h>

/* --- one value in, one of the same shape out --- */

static const struct {
    const char *name;
    const qd_op *op;
} unaries[] = {
    { "Relu", &qd_op_relu }, { "Sigmoid", &qd_op_sigmoid }, { "Tanh", &qd_op_tanh }, { "Sqrt", &qd_op_sqrt },
    { "Exp", &qd_op_exp },   { "Log", &qd_op_log },         { "Abs", &qd_op_abs },   { "Erf", &qd_op_erf },
    { "Sin", &qd_op_sin },   { "Cos", &qd_op_cos },
};

static qd_status read_unary(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_op *op = NULL;
    for (size_t k = 0; k < sizeof(unaries) / sizeof(unaries[0]); k++)
        if (strcmp(unaries[k].name, n->op) == 0)
            op = unaries[k].op;
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, op, QD_IN(x), QD_NO_ATTRS), err);
}

qd_node_id qd_onnx_one(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_op *op, qd_node_id x)
{
    return qd_onnx_add(r, n, suffix, op, QD_IN(x), QD_NO_ATTRS);
}

qd_node_id qd_onnx_affine(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x, double mul,
                          double add)
{
    return qd_onnx_add(r, n, suffix, &qd_op_affine, QD_IN(x), QD_ATTRS(QD_FLOAT("mul", mul), QD_FLOAT("add", add)));
}

qd_node_id qd_onnx_held(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x, double lo,
                        double hi)
{
    return qd_onnx_add(r, n, suffix, &qd_op_clip, QD_IN(x), QD_ATTRS(QD_FLOAT("lo", lo), QD_FLOAT("hi", hi)));
}

qd_node_id qd_onnx_two(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_op *op, qd_node_id a,
                       qd_node_id b)
{
    return qd_onnx_add(r, n, suffix, op, QD_IN(a, b), QD_NO_ATTRS);
}

static qd_status read_neg(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    return qd_onnx_set(r, n, 0, qd_onnx_affine(r, n, NULL, qd_onnx_node_of(r, n, 0), -1.0, 0.0), err);
}

qd_node_id qd_onnx_number_const(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, float v)
{
    qd_tensor t = { 0 };
    qd_err err = { 0 };
    const qd_shape scalar = { 0 };
    const qd_status st = qd_tensor_init(&t, QD_F32, &scalar, r->budget, &err);
    if (st) {
        qd_graph_fail(r->graph, st, "%s", err.text);
        return -1;
    }
    *qd_f32(&t) = v;
    const qd_node_id id = qd_onnx_const(r, n, suffix, &t);
    qd_tensor_clear(&t);
    return id;
}

qd_node_id qd_onnx_floats(qd_onnx_reader *r, const qd_onnx_node *n, int k)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, k);
    if (v && v->constant && v->dtype != QD_F32 && qd_onnx_number_fixed(v)) {
        qd_tensor t = { 0 };
        qd_err err = { 0 };
        const qd_status st = qd_tensor_cast(&t, &v->t[0], QD_F32, r->budget, &err);
        if (st) {
            qd_graph_fail(r->graph, st, "%s", err.text);
            return -1;
        }
        const qd_node_id id = qd_onnx_const(r, n, "float", &t);
        qd_tensor_clear(&t);
        return id;
    }
    const qd_node_id id = qd_onnx_node_of(r, n, k);
    if (id < 0 || qd_graph_node(r->graph, id)->dtype == QD_F32)
        return id;
    return qd_onnx_one(r, n, "float", &qd_op_cast, id);
}

static qd_status read_reciprocal(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0), one = qd_onnx_number_const(r, n, "one", 1.0f);
    return qd_onnx_set(r, n, 0, qd_onnx_two(r, n, NULL, &qd_op_div, one, x), err);
}

/* --- two values --- */

static const struct {
    const char *name;
    const qd_op *op;
} binaries[] = {
    { "Add", &qd_op_add }, { "Sub", &qd_op_sub }, { "Mul", &qd_op_mul }, { "Div", &qd_op_div },  { "Pow", &qd_op_pow },
    { "Min", &qd_op_min }, { "Max", &qd_op_max }, { "Sum", &qd_op_add }, { "Mean", &qd_op_add },
};

static const qd_op *binary_op(const char *name)
{
    for (size_t k = 0; k < sizeof(binaries) / sizeof(binaries[0]); k++)
        if (strcmp(binaries[k].name, name) == 0)
            return binaries[k].op;
    return NULL;
}

/* Input k as one number that does not widen the other's shape. */
static bool is_number(const qd_onnx_reader *r, const qd_onnx_node *n, int k, double *value)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, k), *other = qd_onnx_in(r, n, 1 - k);
    if (!v || !other || !v->constant || v->dtype != QD_F32 || !qd_onnx_number_fixed(v) ||
        qd_tensor_count(&v->t[0]) != 1 || v->t[0].shape.rank > qd_onnx_shape_of(other, 0)->rank)
        return false;
    *value = *qd_f32(&v->t[0]);
    return isfinite(*value);
}

/* Arithmetic with one number is an affine map; *done when it was. */
static qd_status read_with_number(qd_onnx_reader *r, const qd_onnx_node *n, const qd_op *op, bool *done, qd_err *err)
{
    double c, mul = 1.0, add = 0.0;
    int side = 0;
    *done = false;
    if (is_number(r, n, 1, &c)) {
        if (op == &qd_op_add)
            add = c;
        else if (op == &qd_op_sub)
            add = -c;
        else if (op == &qd_op_mul)
            mul = c;
        else if (op == &qd_op_div && isfinite((float)(1.0 / c)))
            mul = 1.0 / c;
        else
            return QD_OK;
    } else if (is_number(r, n, 0, &c)) {
        side = 1;
        if (op == &qd_op_add)
            add = c;
        else if (op == &qd_op_sub) {
            mul = -1.0;
            add = c;
        } else if (op == &qd_op_mul)
            mul = c;
        else
            return QD_OK;
    } else {
        return QD_OK;
    }
    if (qd_onnx_in(r, n, side)->dtype != QD_F32)
        return QD_OK;
    *done = true;
    return qd_onnx_set(r, n, 0, qd_onnx_affine(r, n, NULL, qd_onnx_node_of(r, n, side), mul, add), err);
}

/* Whole powers by products, the root by its own row; *done when it was one of them. */
static qd_status read_power(qd_onnx_reader *r, const qd_onnx_node *n, bool *done, qd_err *err)
{
    double e;
    *done = false;
    if (!is_number(r, n, 1, &e) || (e != 1.0 && e != 2.0 && e != 3.0 && e != 0.5))
        return QD_OK;
    *done = true;
    if (e == 1.0)
        return qd_onnx_alias(r, n, 0, qd_onnx_in(r, n, 0), err);
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    if (e == 0.5)
        return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_sqrt, QD_IN(x), QD_NO_ATTRS), err);
    const qd_node_id square = qd_onnx_two(r, n, e == 2.0 ? NULL : "square", &qd_op_mul, x, x);
    return qd_onnx_set(r, n, 0, e == 2.0 ? square : qd_onnx_two(r, n, NULL, &qd_op_mul, square, x), err);
}

static qd_status read_binary(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_op *op = binary_op(n->op);
    bool done;
    qd_status st = read_with_number(r, n, op, &done, err);
    if (!st && !done && op == &qd_op_pow)
        st = read_power(r, n, &done, err);
    if (st || done)
        return st;
    const qd_node_id a = qd_onnx_node_of(r, n, 0), b = qd_onnx_node_of(r, n, 1);
    return qd_onnx_set(r, n, 0, qd_onnx_two(r, n, NULL, op, a, b), err);
}

/* Min, Max, Sum and Mean of any number of values. */
static qd_status read_variadic(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_op *op = binary_op(n->op);
    const bool mean = strcmp(n->op, "Mean") == 0;
    if (n->n_inputs == 1)
        return qd_onnx_alias(r, n, 0, qd_onnx_in(r, n, 0), err);
    qd_node_id sum = qd_onnx_node_of(r, n, 0);
    for (int k = 1; k < n->n_inputs; k++)
        sum = qd_onnx_two(r, n, k + 1 < n->n_inputs || mean ? "part" : NULL, op, sum, qd_onnx_node_of(r, n, k));
    if (mean)
        sum = qd_onnx_affine(r, n, NULL, sum, 1.0 / n->n_inputs, 0.0);
    return qd_onnx_set(r, n, 0, sum, err);
}

/* --- the table --- */

static const qd_onnx_op ops[] = {
    { "Relu", 1, 1, read_unary },
    { "Sigmoid", 1, 1, read_unary },
    { "Tanh", 1, 1, read_unary },
    { "Sqrt", 1, 1, read_unary },
    { "Exp", 1, 1, read_unary },
    { "Log", 1, 1, read_unary },
    { "Abs", 1, 1, read_unary },
    { "Erf", 1, 1, read_unary },
    { "Sin", 1, 1, read_unary },
    { "Cos", 1, 1, read_unary },
    { "Neg", 1, 1, read_neg },
    { "Reciprocal", 1, 1, read_reciprocal },
    { "HardSigmoid", 1, 1, qd_onnx_hard_sigmoid },
    { "HardSwish", 1, 1, qd_onnx_hard_swish },
    { "LeakyRelu", 1, 1, qd_onnx_leaky_relu },
    { "PRelu", 2, 2, qd_onnx_prelu },
    { "Gelu", 1, 1, qd_onnx_gelu },
    { "Elu", 1, 1, qd_onnx_elu },
    { "Selu", 1, 1, qd_onnx_elu },
    { "Celu", 1, 1, qd_onnx_elu },
    { "Softplus", 1, 1, qd_onnx_softplus },
    { "Softsign", 1, 1, qd_onnx_softsign },
    { "Mish", 1, 1, qd_onnx_mish },
    { "ThresholdedRelu", 1, 1, qd_onnx_thresholded_relu },
    { "LpNormalization", 1, 1, qd_onnx_lp_norm },
    { "Sign", 1, 1, qd_onnx_sign },
    { "Clip", 1, 3, qd_onnx_clip },
    { "Softmax", 1, 1, qd_onnx_softmax },
    { "LogSoftmax", 1, 1, qd_onnx_softmax },
    { "Cast", 1, 1, qd_onnx_cast },
    { "Add", 2, 2, read_binary },
    { "Sub", 2, 2, read_binary },
    { "Mul", 2, 2, read_binary },
    { "Div", 2, 2, read_binary },
    { "Pow", 2, 2, read_binary },
    { "Min", 1, QD_MAX_NODES, read_variadic },
    { "Max", 1, QD_MAX_NODES, read_variadic },
    { "Sum", 1, QD_MAX_NODES, read_variadic },
    { "Mean", 1, QD_MAX_NODES, read_variadic },
    { "Less", 2, 2, qd_onnx_compare },
    { "LessOrEqual", 2, 2, qd_onnx_compare },
    { "Greater", 2, 2, qd_onnx_compare },
    { "GreaterOrEqual", 2, 2, qd_onnx_compare },
    { "Equal", 2, 2, qd_onnx_compare },
    { "And", 2, 2, qd_onnx_logic },
    { "Or", 2, 2, qd_onnx_logic },
    { "Xor", 2, 2, qd_onnx_logic },
    { "Not", 1, 1, qd_onnx_logic },
    { "Where", 3, 3, qd_onnx_where },
    { "Trilu", 1, 2, qd_onnx_triangle },
    { "Einsum", 1, 2, qd_onnx_einsum },
    { "QuantizeLinear", 2, 3, qd_onnx_quantize },
    { "DequantizeLinear", 2, 3, qd_onnx_dequantize },
    { "QLinearConv", 8, 9, qd_onnx_qlinear_conv },
    { "QLinearMatMul", 8, 8, qd_onnx_qlinear_matmul },
    { "ConvInteger", 2, 4, qd_onnx_conv_integer },
    { "MatMulInteger", 2, 4, qd_onnx_matmul_integer },
    { "Conv", 2, 3, qd_onnx_conv },
    { "ConvTranspose", 2, 3, qd_onnx_conv_transpose },
    { "Gemm", 2, 3, qd_onnx_gemm },
    { "MatMul", 2, 2, qd_onnx_matmul },
    { "BatchNormalization", 5, 5, qd_onnx_batch_norm },
    { "InstanceNormalization", 3, 3, qd_onnx_instance_norm },
    { "GroupNormalization", 3, 3, qd_onnx_group_norm },
    { "LayerNormalization", 2, 3, qd_onnx_layer_norm },
    { "MaxPool", 1, 1, qd_onnx_pool },
    { "AveragePool", 1, 1, qd_onnx_pool },
    { "GlobalAveragePool", 1, 1, qd_onnx_global_pool },
    { "GlobalMaxPool", 1, 1, qd_onnx_global_pool },
    { "LRN", 1, 1, qd_onnx_lrn },
    { "ReduceMean", 1, 2, qd_onnx_reduce },
    { "ReduceSum", 1, 2, qd_onnx_reduce },
    { "ReduceL1", 1, 2, qd_onnx_reduce },
    { "ReduceL2", 1, 2, qd_onnx_reduce },
    { "ReduceSumSquare", 1, 2, qd_onnx_reduce },
    { "ReduceLogSum", 1, 2, qd_onnx_reduce },
    { "ReduceLogSumExp", 1, 2, qd_onnx_reduce },
    { "ReduceMax", 1, 2, qd_onnx_reduce },
    { "ReduceMin", 1, 2, qd_onnx_reduce },
    { "Resize", 1, 4, qd_onnx_resize },
    { "Upsample", 1, 2, qd_onnx_upsample },
    { "Pad", 1, 4, qd_onnx_pad },
    { "DepthToSpace", 1, 1, qd_onnx_depth_to_space },
    { "SpaceToDepth", 1, 1, qd_onnx_depth_to_space },
    { "Concat", 1, QD_MAX_NODES, qd_onnx_concat },
    { "Split", 1, 2, qd_onnx_split },
    { "Slice", 1, 5, qd_onnx_slice },
    { "Gather", 2, 2, qd_onnx_gather },
    { "Transpose", 1, 1, qd_onnx_transpose },
    { "Reshape", 2, 2, qd_onnx_reshape_row },
    { "Flatten", 1, 1, qd_onnx_flatten },
    { "Squeeze", 1, 2, qd_onnx_squeeze },
    { "Unsqueeze", 1, 2, qd_onnx_unsqueeze },
    { "Expand", 2, 2, qd_onnx_expand },
    { "Tile", 2, 2, qd_onnx_tile },
};

const qd_onnx_op *qd_onnx_op_find(const char *name)
{
    for (size_t k = 0; k < sizeof(ops) / sizeof(ops[0]); k++)
        if (strcmp(ops[k].name, name) == 0)
            return &ops[k];
    return NULL;
}
