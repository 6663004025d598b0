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

static qd_node_id affine(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x, double mul,
                         double add)
{
    return qd_onnx_add(r, n, suffix, &qd_op_affine, QD_IN(x), QD_ATTRS(QD_FLOAT("mul", mul), QD_FLOAT("add", add)));
}

static qd_node_id clip(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x, double lo, double hi)
{
    return qd_onnx_add(r, n, suffix, &qd_op_clip, QD_IN(x), QD_ATTRS(QD_FLOAT("lo", lo), QD_FLOAT("hi", hi)));
}

static qd_node_id two(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_op *op, qd_node_id a,
                      qd_node_id b)
{
    return qd_onnx_add(r, n, suffix, op, QD_IN(a, b), QD_NO_ATTRS);
}

static qd_status read_neg(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    return qd_onnx_set(r, n, 0, affine(r, n, NULL, qd_onnx_node_of(r, n, 0), -1.0, 0.0), err);
}

static qd_status read_reciprocal(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    qd_tensor one = { 0 };
    const qd_shape scalar = { 0 };
    qd_status st = qd_tensor_init(&one, QD_F32, &scalar, r->budget, err);
    if (st)
        return st;
    *qd_f32(&one) = 1.0f;
    const qd_node_id x = qd_onnx_node_of(r, n, 0), c = qd_onnx_const(r, n, "one", &one);
    qd_tensor_clear(&one);
    return qd_onnx_set(r, n, 0, two(r, n, NULL, &qd_op_div, c, x), err);
}

static qd_status read_hard_sigmoid(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const double alpha = qd_onnx_attr_float(n, "alpha", 0.2f), beta = qd_onnx_attr_float(n, "beta", 0.5f);
    const qd_node_id line = affine(r, n, "line", qd_onnx_node_of(r, n, 0), alpha, beta);
    return qd_onnx_set(r, n, 0, clip(r, n, NULL, line, 0.0, 1.0), err);
}

static qd_status read_hard_swish(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    const qd_node_id gate = clip(r, n, "gate", affine(r, n, "line", x, 1.0 / 6.0, 0.5), 0.0, 1.0);
    return qd_onnx_set(r, n, 0, two(r, n, NULL, &qd_op_mul, x, gate), err);
}

static qd_status read_leaky_relu(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    return qd_onnx_set(r, n, 0,
                       qd_onnx_add(r, n, NULL, &qd_op_leaky_relu, QD_IN(x),
                                   QD_ATTRS(QD_FLOAT("slope", qd_onnx_attr_float(n, "alpha", 0.01f)))),
                       err);
}

/* max(x, 0) - slope max(-x, 0). The slope may have one dim for each channel and 1 for space. */
static qd_status read_prelu(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0), slope = qd_onnx_node_of(r, n, 1);
    const qd_node_id up = qd_onnx_add(r, n, "positive", &qd_op_relu, QD_IN(x), QD_NO_ATTRS);
    const qd_node_id minus = affine(r, n, "minus", x, -1.0, 0.0);
    const qd_node_id down = qd_onnx_add(r, n, "negative", &qd_op_relu, QD_IN(minus), QD_NO_ATTRS);
    return qd_onnx_set(r, n, 0, two(r, n, NULL, &qd_op_sub, up, two(r, n, "sloped", &qd_op_mul, down, slope)), err);
}

static qd_status read_gelu(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    if (strcmp(qd_onnx_attr_string(n, "approximate", "none"), "tanh") != 0)
        return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_gelu, QD_IN(x), QD_NO_ATTRS), err);
    /* 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
    const qd_node_id square = two(r, n, "square", &qd_op_mul, x, x);
    const qd_node_id inner =
        two(r, n, "inner", &qd_op_mul, x, affine(r, n, "poly", square, 0.044715 * sqrt(M_2_PI), sqrt(M_2_PI)));
    const qd_node_id t = qd_onnx_add(r, n, "tanh", &qd_op_tanh, QD_IN(inner), QD_NO_ATTRS);
    return qd_onnx_set(r, n, 0, two(r, n, NULL, &qd_op_mul, x, affine(r, n, "half", t, 0.5, 0.5)), err);
}

/* A bound of Clip: an attribute up to opset 10, a constant input since. */
static qd_status bound(const qd_onnx_reader *r, const qd_onnx_node *n, const char *name, int k, float *v, qd_err *err)
{
    const qd_tensor *t;
    qd_status st = qd_onnx_fixed(r, n, k, &t, err);
    if (st)
        return st;
    if (t && (t->dtype != QD_F32 || qd_tensor_count(t) != 1))
        return qd_fail(err, QD_E_UNSUPPORTED, "%s must be one float", name);
    *v = t ? *qd_f32(t) : qd_onnx_attr_float(n, name, *v);
    return QD_OK;
}

static qd_status read_clip(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    float lo = -INFINITY, hi = INFINITY;
    qd_status st = bound(r, n, "min", 1, &lo, err);
    if (!st)
        st = bound(r, n, "max", 2, &hi, err);
    return st ? st : qd_onnx_set(r, n, 0, clip(r, n, NULL, qd_onnx_node_of(r, n, 0), lo, hi), err);
}

/* Up to opset 12 the axes from `axis` on were one. */
static qd_status read_softmax(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const bool flat = r->file->opset < 13;
    const qd_op *op = strcmp(n->op, "Softmax") == 0 ? &qd_op_softmax : &qd_op_log_softmax;
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    const qd_onnx_number *v = qd_onnx_in(r, n, 0);
    const int rank = qd_onnx_shape_of(v, 0)->rank;
    int64_t axis = qd_onnx_attr_int(n, "axis", flat ? 1 : -1);
    if (axis < -rank || axis >= rank)
        return qd_fail(err, QD_E_FORMAT, "axis %lld is not one of a value of rank %d", (long long)axis, rank);
    axis += axis < 0 ? rank : 0;
    if (!flat || axis == rank - 1)
        return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, op, QD_IN(x), QD_ATTRS(QD_INT("axis", axis))), err);
    qd_shape rows[QD_ONNX_WORLDS], back[QD_ONNX_WORLDS];
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        back[w] = *qd_onnx_shape_of(v, w);
        rows[w] = (qd_shape){ .rank = 2, .dim = { 1, 1 } };
        for (int k = 0; k < rank; k++)
            rows[w].dim[k >= axis] *= back[w].dim[k];
    }
    x = qd_onnx_reshape(r, n, "rows", x, rows);
    x = qd_onnx_add(r, n, "flat", op, QD_IN(x), QD_NO_ATTRS);
    return qd_onnx_set(r, n, 0, qd_onnx_reshape(r, n, NULL, x, back), err);
}

static qd_status read_cast(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const int to = (int)qd_onnx_attr_int(n, "to", 0);
    const qd_onnx_number *x = qd_onnx_in(r, n, 0);
    qd_dtype kept;
    if (!qd_onnx_type_kept(to, &kept) || strcmp(qd_onnx_type_name(to), "bool") == 0 ||
        (kept != QD_F32 && x->dtype != kept))
        return qd_fail(err, QD_E_UNSUPPORTED, "a computed value as %s (type %d)", qd_onnx_type_name(to), to);
    if (kept == x->dtype)
        return qd_onnx_alias(r, n, 0, x, err);
    const qd_node_id id = qd_onnx_node_of(r, n, 0);
    return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_cast, QD_IN(id), QD_NO_ATTRS), err);
}

/* --- two values --- */

static const struct {
    const char *name;
    const qd_op *op;
} binaries[] = {
    { "Add", &qd_op_add }, { "Sub", &qd_op_sub }, { "Mul", &qd_op_mul }, { "Div", &qd_op_div },
    { "Pow", &qd_op_pow }, { "Min", &qd_op_min }, { "Max", &qd_op_max }, { "Sum", &qd_op_add },
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
    return qd_onnx_set(r, n, 0, affine(r, n, NULL, qd_onnx_node_of(r, n, side), mul, add), err);
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
    const qd_node_id square = two(r, n, e == 2.0 ? NULL : "square", &qd_op_mul, x, x);
    return qd_onnx_set(r, n, 0, e == 2.0 ? square : two(r, n, NULL, &qd_op_mul, square, x), err);
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
    return qd_onnx_set(r, n, 0, two(r, n, NULL, op, a, b), err);
}

/* Min, Max and Sum of any number of values. */
static qd_status read_variadic(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_op *op = binary_op(n->op);
    if (n->n_inputs == 1)
        return qd_onnx_alias(r, n, 0, qd_onnx_in(r, n, 0), err);
    qd_node_id sum = qd_onnx_node_of(r, n, 0);
    for (int k = 1; k < n->n_inputs; k++)
        sum = two(r, n, k + 1 < n->n_inputs ? "part" : NULL, op, sum, qd_onnx_node_of(r, n, k));
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
    { "HardSigmoid", 1, 1, read_hard_sigmoid },
    { "HardSwish", 1, 1, read_hard_swish },
    { "LeakyRelu", 1, 1, read_leaky_relu },
    { "PRelu", 2, 2, read_prelu },
    { "Gelu", 1, 1, read_gelu },
    { "Clip", 1, 3, read_clip },
    { "Softmax", 1, 1, read_softmax },
    { "LogSoftmax", 1, 1, read_softmax },
    { "Cast", 1, 1, read_cast },
    { "Add", 2, 2, read_binary },
    { "Sub", 2, 2, read_binary },
    { "Mul", 2, 2, read_binary },
    { "Div", 2, 2, read_binary },
    { "Pow", 2, 2, read_binary },
    { "Min", 1, QD_MAX_NODES, read_variadic },
    { "Max", 1, QD_MAX_NODES, read_variadic },
    { "Sum", 1, QD_MAX_NODES, read_variadic },
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
    { "ReduceMean", 1, 2, qd_onnx_reduce },
    { "ReduceSum", 1, 2, qd_onnx_reduce },
    { "ReduceL2", 1, 2, qd_onnx_reduce },
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
};

const qd_onnx_op *qd_onnx_op_find(const char *name)
{
    for (size_t k = 0; k < sizeof(ops) / sizeof(ops[0]); k++)
        if (strcmp(ops[k].name, name) == 0)
            return &ops[k];
    return NULL;
}
