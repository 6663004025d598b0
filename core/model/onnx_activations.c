/* onnx_activations.c - ONNX functions of one value that are no row of ours: made of those that are (Operators.md). */
#include "model/onnx_int.h"

#include <math.h>
#include <string.h>

qd_status qd_onnx_hard_sigmoid(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const double alpha = qd_onnx_attr_float(n, "alpha", 0.2f), beta = qd_onnx_attr_float(n, "beta", 0.5f);
    const qd_node_id line = qd_onnx_affine(r, n, "line", qd_onnx_node_of(r, n, 0), alpha, beta);
    return qd_onnx_set(r, n, 0, qd_onnx_held(r, n, NULL, line, 0.0, 1.0), err);
}

qd_status qd_onnx_hard_swish(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    const qd_node_id gate = qd_onnx_held(r, n, "gate", qd_onnx_affine(r, n, "line", x, 1.0 / 6.0, 0.5), 0.0, 1.0);
    return qd_onnx_set(r, n, 0, qd_onnx_two(r, n, NULL, &qd_op_mul, x, gate), err);
}

qd_status qd_onnx_leaky_relu(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    return qd_onnx_set(r, n, 0,
                       qd_onnx_add(r, n, NULL, &qd_op_leaky_relu, QD_IN(x),
                                   QD_ATTRS(QD_FLOAT("slope", qd_onnx_attr_float(n, "alpha", 0.01f)))),
                       err);
}

/* max(x, 0) - slope max(-x, 0). The slope may have one dim for each channel and 1 for space. */
qd_status qd_onnx_prelu(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0), slope = qd_onnx_node_of(r, n, 1);
    const qd_node_id up = qd_onnx_add(r, n, "positive", &qd_op_relu, QD_IN(x), QD_NO_ATTRS);
    const qd_node_id minus = qd_onnx_affine(r, n, "minus", x, -1.0, 0.0);
    const qd_node_id down = qd_onnx_add(r, n, "negative", &qd_op_relu, QD_IN(minus), QD_NO_ATTRS);
    return qd_onnx_set(
        r, n, 0, qd_onnx_two(r, n, NULL, &qd_op_sub, up, qd_onnx_two(r, n, "sloped", &qd_op_mul, down, slope)), err);
}

qd_status qd_onnx_gelu(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    if (strcmp(qd_onnx_attr_string(n, "approximate", "none"), "tanh") != 0)
        return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_gelu, QD_IN(x), QD_NO_ATTRS), err);
    /* 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
    const qd_node_id square = qd_onnx_two(r, n, "square", &qd_op_mul, x, x);
    const qd_node_id inner = qd_onnx_two(r, n, "inner", &qd_op_mul, x,
                                         qd_onnx_affine(r, n, "poly", square, 0.044715 * sqrt(M_2_PI), sqrt(M_2_PI)));
    const qd_node_id t = qd_onnx_add(r, n, "tanh", &qd_op_tanh, QD_IN(inner), QD_NO_ATTRS);
    return qd_onnx_set(r, n, 0, qd_onnx_two(r, n, NULL, &qd_op_mul, x, qd_onnx_affine(r, n, "half", t, 0.5, 0.5)), err);
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

qd_status qd_onnx_clip(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    float lo = -INFINITY, hi = INFINITY;
    qd_status st = bound(r, n, "min", 1, &lo, err);
    if (!st)
        st = bound(r, n, "max", 2, &hi, err);
    return st ? st : qd_onnx_set(r, n, 0, qd_onnx_held(r, n, NULL, qd_onnx_node_of(r, n, 0), lo, hi), err);
}

/* Up to opset 12 the axes from `axis` on were one. */
qd_status qd_onnx_softmax(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
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

/* max(x, 0) and min(x, 0) by themselves: no infinity of the one side may meet a zero of the other. */
static qd_node_id above(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x)
{
    return qd_onnx_one(r, n, "above", &qd_op_relu, x);
}

static qd_node_id below(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x)
{
    return qd_onnx_held(r, n, "below", x, -INFINITY, 0.0);
}

/* gamma max(x, 0) + gamma alpha (exp(min(x, 0) / width) - 1): Elu, Selu, Celu. */
qd_status qd_onnx_elu(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const bool selu = strcmp(n->op, "Selu") == 0, celu = strcmp(n->op, "Celu") == 0;
    const double alpha = qd_onnx_attr_float(n, "alpha", selu ? 1.67326319217681884765625f : 1.0f);
    const double gamma = selu ? qd_onnx_attr_float(n, "gamma", 1.05070102214813232421875f) : 1.0;
    if (celu && !(alpha > 0.0))
        return qd_fail(err, QD_E_FORMAT, "alpha must be > 0, got %g", alpha);
    const qd_node_id x = qd_onnx_floats(r, n, 0);
    qd_node_id down = below(r, n, x), up = above(r, n, x);
    if (celu)
        down = qd_onnx_affine(r, n, "width", down, 1.0 / alpha, 0.0);
    down = qd_onnx_affine(r, n, "negative", qd_onnx_one(r, n, "exp", &qd_op_exp, down), gamma * alpha, -gamma * alpha);
    if (gamma != 1.0)
        up = qd_onnx_affine(r, n, "positive", up, gamma, 0.0);
    return qd_onnx_set(r, n, 0, qd_onnx_two(r, n, NULL, &qd_op_add, up, down), err);
}

/* max(x, 0) + log(1 + exp(-|x|)), which never overflows. */
static qd_node_id softplus(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x)
{
    qd_node_id y = qd_onnx_affine(r, n, "minus", qd_onnx_one(r, n, "abs", &qd_op_abs, x), -1.0, 0.0);
    y = qd_onnx_affine(r, n, "plus_one", qd_onnx_one(r, n, "exp", &qd_op_exp, y), 1.0, 1.0);
    return qd_onnx_two(r, n, suffix, &qd_op_add, above(r, n, x), qd_onnx_one(r, n, "log", &qd_op_log, y));
}

qd_status qd_onnx_softplus(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    return qd_onnx_set(r, n, 0, softplus(r, n, NULL, qd_onnx_floats(r, n, 0)), err);
}

qd_status qd_onnx_mish(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_floats(r, n, 0);
    const qd_node_id t = qd_onnx_one(r, n, "tanh", &qd_op_tanh, softplus(r, n, "softplus", x));
    return qd_onnx_set(r, n, 0, qd_onnx_two(r, n, NULL, &qd_op_mul, x, t), err);
}

qd_status qd_onnx_softsign(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_floats(r, n, 0);
    const qd_node_id size = qd_onnx_affine(r, n, "size", qd_onnx_one(r, n, "abs", &qd_op_abs, x), 1.0, 1.0);
    return qd_onnx_set(r, n, 0, qd_onnx_two(r, n, NULL, &qd_op_div, x, size), err);
}

/* x where it is above alpha, else 0. */
qd_status qd_onnx_thresholded_relu(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id x = qd_onnx_floats(r, n, 0);
    const qd_node_id more = qd_onnx_affine(r, n, "more", x, 1.0, -(double)qd_onnx_attr_float(n, "alpha", 1.0f));
    const qd_node_id zero = qd_onnx_number_const(r, n, "zero", 0.0f);
    return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_where, QD_IN(more, x, zero), QD_NO_ATTRS), err);
}

/* x over its length along an axis (of two: the root of the sum of squares; of one: the sum of sizes). */
qd_status qd_onnx_lp_norm(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const int64_t p = qd_onnx_attr_int(n, "p", 2), axis = qd_onnx_attr_int(n, "axis", -1);
    const qd_node_id x = qd_onnx_floats(r, n, 0);
    if (p != 1 && p != 2)
        return qd_fail(err, QD_E_UNSUPPORTED, "p %lld", (long long)p);
    qd_node_id size = p == 1 ? qd_onnx_one(r, n, "abs", &qd_op_abs, x) : qd_onnx_two(r, n, "square", &qd_op_mul, x, x);
    size =
        qd_onnx_add(r, n, "sum", &qd_op_sum, QD_IN(size), QD_ATTRS(qd_attr_ints("axes", 1, &axis), QD_INT("keep", 1)));
    if (p == 2)
        size = qd_onnx_one(r, n, "length", &qd_op_sqrt, size);
    return qd_onnx_set(r, n, 0, qd_onnx_two(r, n, NULL, &qd_op_div, x, size), err);
}
