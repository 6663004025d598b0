/* onnx_fold_math.c - arithmetic of constants in an ONNX graph: element by element with broadcasting, and sums (Operators.md). */
#include "model/onnx_fold.h"

#include <math.h>
#include <string.h>

static int64_t *whole(const qd_onnx_world *w)
{
    return w->out->data;
}

qd_status qd_fold_cast(qd_onnx_world *w, qd_err *err)
{
    const int to = (int)qd_onnx_attr_int(w->n, "to", 0);
    const qd_tensor *x = w->in[0];
    qd_dtype kept;
    if (!qd_onnx_type_kept(to, &kept))
        return qd_fail(err, QD_E_UNSUPPORTED, "a constant as %s (type %d)", qd_onnx_type_name(to), to);
    int64_t lo, hi;
    const bool truth = to == QD_ONNX_TYPE_BOOL, codes = qd_onnx_type_range(to, &lo, &hi);
    qd_status st = qd_fold_make(w, kept, &x->shape, err);
    for (int64_t k = 0; !st && k < qd_tensor_count(w->out); k++) {
        const double real = qd_fold_real(x, k);
        if (kept == QD_F32) {
            qd_f32(w->out)[k] = (float)real;
            continue;
        }
        int64_t v = truth ? real != 0.0 : x->dtype == QD_F32 ? qd_fold_to_whole(real) : qd_fold_whole(x, k);
        if (kept == QD_I64) {
            whole(w)[k] = v;
            continue;
        }
        if (codes)
            v = v < lo ? lo : v > hi ? hi : v;
        ((uint8_t *)w->out->data)[k] = (uint8_t)v; /* of I8 too: two's complement */
    }
    return st;
}

typedef enum binary {
    ADD,
    SUB,
    MUL,
    DIV,
    MOD,
    POW,
    MIN,
    MAX,
    EQUAL,
    GREATER,
    LESS,
    GREATER_EQUAL,
    LESS_EQUAL,
    AND,
    OR,
    XOR
} binary;

static const char *const binary_names[] = { "Add",         "Sub", "Mul",   "Div",     "Mod",  "Pow",
                                            "Min",         "Max", "Equal", "Greater", "Less", "GreaterOrEqual",
                                            "LessOrEqual", "And", "Or",    "Xor" };

static int64_t whole_binary(binary op, int64_t a, int64_t b)
{
    const uint64_t ua = (uint64_t)a, ub = (uint64_t)b;
    switch (op) {
    case ADD:
        return (int64_t)(ua + ub);
    case SUB:
        return (int64_t)(ua - ub);
    case MUL:
        return (int64_t)(ua * ub);
    case DIV:
        return b == 0 ? 0 : b == -1 ? (int64_t)(0 - ua) : a / b;
    case MOD: /* the sign of the divisor, as in Python */
        return b == 0 || b == -1 ? 0 : (a % b + b) % b;
    case POW:
        return qd_fold_to_whole(pow((double)a, (double)b));
    case MIN:
        return a < b ? a : b;
    case MAX:
        return a > b ? a : b;
    case EQUAL:
        return a == b;
    case GREATER:
        return a > b;
    case LESS:
        return a < b;
    case GREATER_EQUAL:
        return a >= b;
    case LESS_EQUAL:
        return a <= b;
    case AND:
        return a && b;
    case OR:
        return a || b;
    case XOR:
        break;
    }
    return !a != !b;
}

static double real_binary(binary op, double a, double b)
{
    switch (op) {
    case ADD:
        return a + b;
    case SUB:
        return a - b;
    case MUL:
        return a * b;
    case DIV:
        return a / b;
    case MOD:
        return fmod(a, b);
    case POW:
        return pow(a, b);
    case MIN:
        return fmin(a, b);
    case MAX:
        return fmax(a, b);
    case EQUAL:
        return a == b;
    case GREATER:
        return a > b;
    case LESS:
        return a < b;
    case GREATER_EQUAL:
        return a >= b;
    case LESS_EQUAL:
        return a <= b;
    case AND:
        return a != 0.0 && b != 0.0;
    case OR:
        return a != 0.0 || b != 0.0;
    case XOR:
        break;
    }
    return (a != 0.0) != (b != 0.0);
}

static int binary_row(const char *op)
{
    for (size_t k = 0; k < sizeof(binary_names) / sizeof(binary_names[0]); k++)
        if (strcmp(binary_names[k], op) == 0)
            return (int)k;
    return -1;
}

bool qd_fold_is_binary(const char *op)
{
    return binary_row(op) >= 0;
}

qd_status qd_fold_binary(qd_onnx_world *w, qd_err *err)
{
    const binary op = (binary)binary_row(w->n->op);
    const qd_tensor *a = w->in[0], *b = w->in[1];
    const bool is_whole = a->dtype != QD_F32 && b->dtype != QD_F32;
    int64_t stride[2][QD_MAX_RANK], at[2] = { 0 }, index[QD_MAX_RANK] = { 0 }, i = 0;
    qd_shape s;
    qd_status st = qd_fold_broadcast(&a->shape, &b->shape, &s, err);
    if (!st)
        st = qd_fold_make(w, is_whole || op >= EQUAL ? QD_I64 : QD_F32, &s, err);
    if (st || qd_fold_count(&s) == 0)
        return st;
    qd_fold_broadcast_strides(&a->shape, &s, stride[0]);
    qd_fold_broadcast_strides(&b->shape, &s, stride[1]);
    do {
        if (is_whole)
            whole(w)[i] = whole_binary(op, qd_fold_whole(a, at[0]), qd_fold_whole(b, at[1]));
        else if (op >= EQUAL)
            whole(w)[i] = real_binary(op, qd_fold_real(a, at[0]), qd_fold_real(b, at[1])) != 0.0;
        else
            qd_f32(w->out)[i] = (float)real_binary(op, qd_fold_real(a, at[0]), qd_fold_real(b, at[1]));
        i++;
    } while (qd_fold_next(&s, index, 2, at, (const int64_t(*)[QD_MAX_RANK])stride));
    return QD_OK;
}

qd_status qd_fold_where(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *c = w->in[0], *x = w->in[1], *y = w->in[2];
    int64_t stride[3][QD_MAX_RANK], at[3] = { 0 }, index[QD_MAX_RANK] = { 0 };
    qd_shape s;
    if (c->dtype == QD_F32 || x->dtype != y->dtype)
        return qd_fail(err, QD_E_FORMAT, "a choice between constants of different kinds");
    qd_status st = qd_fold_broadcast(&c->shape, &x->shape, &s, err);
    if (!st)
        st = qd_fold_broadcast(&s, &y->shape, &s, err);
    if (!st)
        st = qd_fold_make(w, x->dtype, &s, err);
    if (st || qd_fold_count(&s) == 0)
        return st;
    for (int k = 0; k < 3; k++)
        qd_fold_broadcast_strides(&w->in[k]->shape, &s, stride[k]);
    const size_t bytes = qd_dtype_bits(x->dtype) / 8;
    char *dst = w->out->data;
    do {
        const int side = qd_fold_whole(c, at[0]) ? 1 : 2;
        memcpy(dst, (const char *)w->in[side]->data + (size_t)at[side] * bytes, bytes);
        dst += bytes;
    } while (qd_fold_next(&s, index, 3, at, (const int64_t(*)[QD_MAX_RANK])stride));
    return QD_OK;
}

/* Bounds are attributes up to opset 10. */
qd_status qd_fold_clip(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0];
    double lo = qd_onnx_attr_float(w->n, "min", -INFINITY), hi = qd_onnx_attr_float(w->n, "max", INFINITY);
    for (int k = 1; k < w->n_in; k++) {
        if (!w->in[k])
            continue;
        if (qd_tensor_count(w->in[k]) != 1)
            return qd_fail(err, QD_E_FORMAT, "a bound must be one number");
        *(k == 1 ? &lo : &hi) = qd_fold_real(w->in[k], 0);
    }
    qd_status st = qd_fold_make(w, x->dtype == QD_F32 ? QD_F32 : QD_I64, &x->shape, err);
    for (int64_t k = 0; !st && k < qd_tensor_count(x); k++)
        if (x->dtype == QD_F32) {
            const double v = qd_fold_real(x, k), up = v < lo ? lo : v;
            qd_f32(w->out)[k] = (float)(up > hi ? hi : up);
        } else {
            const int64_t v = qd_fold_whole(x, k), up = (double)v < lo ? qd_fold_to_whole(lo) : v;
            whole(w)[k] = (double)up > hi ? qd_fold_to_whole(hi) : up;
        }
    return st;
}

static double negate(double x)
{
    return -x;
}
static double reciprocal(double x)
{
    return 1.0 / x;
}
static double is_zero(double x)
{
    return x == 0.0;
}
static double sign(double x)
{
    return (x > 0.0) - (x < 0.0);
}
static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}
static double relu(double x)
{
    return x < 0.0 ? 0.0 : x;
}

static const struct {
    const char *name;
    double (*f)(double);
} unaries[] = {
    { "Neg", negate },  { "Abs", fabs },    { "Sqrt", sqrt },       { "Exp", exp },
    { "Log", log },     { "Floor", floor }, { "Ceil", ceil },       { "Round", rint },
    { "Sin", sin },     { "Cos", cos },     { "Erf", erf },         { "Tanh", tanh },
    { "Sign", sign },   { "Relu", relu },   { "Sigmoid", sigmoid }, { "Reciprocal", reciprocal },
    { "Not", is_zero },
};

static int unary_row(const char *op)
{
    for (size_t k = 0; k < sizeof(unaries) / sizeof(unaries[0]); k++)
        if (strcmp(unaries[k].name, op) == 0)
            return (int)k;
    return -1;
}

bool qd_fold_is_unary(const char *op)
{
    return unary_row(op) >= 0;
}

qd_status qd_fold_unary(qd_onnx_world *w, qd_err *err)
{
    double (*f)(double) = unaries[unary_row(w->n->op)].f;
    const qd_tensor *x = w->in[0];
    qd_status st = qd_fold_make(w, x->dtype == QD_F32 ? QD_F32 : QD_I64, &x->shape, err);
    for (int64_t k = 0; !st && k < qd_tensor_count(x); k++)
        if (x->dtype == QD_F32)
            qd_f32(w->out)[k] = (float)f(qd_f32(x)[k]);
        else
            whole(w)[k] = qd_fold_to_whole(f((double)qd_fold_whole(x, k)));
    return st;
}

/* --- along axes --- */

typedef enum reduction { SUM, PRODUCT, MEAN, LEAST, MOST } reduction;

static double reduced(reduction how, double a, double b)
{
    return how == PRODUCT ? a * b : how == LEAST ? fmin(a, b) : how == MOST ? fmax(a, b) : a + b;
}

static int64_t reduced_whole(reduction how, int64_t a, int64_t b)
{
    return whole_binary(how == PRODUCT ? MUL : how == LEAST ? MIN : how == MOST ? MAX : ADD, a, b);
}

/* Which axes go: those named, or all. False flags stay with noop_with_empty_axes. */
static qd_status axes_of(const qd_onnx_world *w, int rank, bool gone[QD_MAX_RANK], qd_err *err)
{
    const int64_t *axes;
    int64_t n;
    qd_status st = qd_fold_list(w, "axes", 1, &axes, &n, err);
    for (int k = 0; k < QD_MAX_RANK; k++)
        gone[k] = n <= 0 && !qd_onnx_attr_int(w->n, "noop_with_empty_axes", 0);
    for (int64_t k = 0; k < n && !st; k++) {
        int axis = 0;
        st = qd_fold_axis(axes[k], rank, &axis, err);
        if (!st)
            gone[axis] = true;
    }
    return st;
}

qd_status qd_fold_reduce(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0];
    const char *op = w->n->op;
    const reduction how = strcmp(op, "ReduceProd") == 0   ? PRODUCT
                          : strcmp(op, "ReduceMax") == 0  ? MOST
                          : strcmp(op, "ReduceMin") == 0  ? LEAST
                          : strcmp(op, "ReduceMean") == 0 ? MEAN
                                                          : SUM;
    const bool keep = qd_onnx_attr_int(w->n, "keepdims", 1) != 0, real = x->dtype == QD_F32;
    int64_t stride[2][QD_MAX_RANK] = { { 0 } }, at[2] = { 0 }, index[QD_MAX_RANK] = { 0 };
    bool gone[QD_MAX_RANK];
    qd_shape kept = x->shape, s = { 0 };
    qd_status st = axes_of(w, x->shape.rank, gone, err);
    if (st)
        return st;
    for (int k = 0; k < x->shape.rank; k++) {
        kept.dim[k] = gone[k] ? 1 : x->shape.dim[k];
        if (!gone[k] || keep)
            s.dim[s.rank++] = kept.dim[k];
    }
    if (qd_tensor_count(x) == 0 && qd_fold_count(&s) > 0 && (how == LEAST || how == MOST || how == MEAN))
        return qd_fail(err, QD_E_FORMAT, "%s of no elements", op);
    st = qd_fold_make(w, real ? QD_F32 : QD_I64, &s, err);
    if (st)
        return st;
    const int64_t count = qd_tensor_count(w->out);
    for (int64_t k = 0; k < count; k++)
        if (real)
            qd_f32(w->out)[k] = how == PRODUCT ? 1.0f : how == LEAST ? INFINITY : how == MOST ? -INFINITY : 0.0f;
        else
            whole(w)[k] = how == PRODUCT ? 1 : how == LEAST ? INT64_MAX : how == MOST ? INT64_MIN : 0;
    if (qd_tensor_count(x) == 0)
        return QD_OK;
    qd_fold_strides(&x->shape, stride[0]);
    qd_fold_broadcast_strides(&kept, &x->shape, stride[1]);
    do {
        if (real)
            qd_f32(w->out)[at[1]] = (float)reduced(how, qd_f32(w->out)[at[1]], qd_f32(x)[at[0]]);
        else
            whole(w)[at[1]] = reduced_whole(how, whole(w)[at[1]], qd_fold_whole(x, at[0]));
    } while (qd_fold_next(&x->shape, index, 2, at, (const int64_t(*)[QD_MAX_RANK])stride));
    const int64_t each = qd_tensor_count(x) / count;
    for (int64_t k = 0; how == MEAN && k < count; k++)
        if (real)
            qd_f32(w->out)[k] /= (float)each;
        else
            whole(w)[k] /= each;
    return QD_OK;
}

/* CumSum: each element with those before it along the axis. */
qd_status qd_fold_cumulative(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0];
    const bool real = x->dtype == QD_F32;
    int axis = 0;
    if (qd_tensor_count(w->in[1]) != 1 || qd_onnx_attr_int(w->n, "exclusive", 0) ||
        qd_onnx_attr_int(w->n, "reverse", 0))
        return qd_fail(err, QD_E_UNSUPPORTED, "exclusive or reverse sums, or an axis that is not one number");
    qd_status st = qd_fold_axis(qd_fold_to_whole(qd_fold_real(w->in[1], 0)), x->shape.rank, &axis, err);
    if (!st)
        st = qd_fold_make(w, real ? QD_F32 : QD_I64, &x->shape, err);
    if (st)
        return st;
    int64_t inner = 1;
    for (int k = axis + 1; k < x->shape.rank; k++)
        inner *= x->shape.dim[k];
    for (int64_t k = 0; k < qd_tensor_count(x); k++) {
        const bool first = k / inner % x->shape.dim[axis] == 0;
        if (real)
            qd_f32(w->out)[k] = qd_f32(x)[k] + (first ? 0.0f : qd_f32(w->out)[k - inner]);
        else
            whole(w)[k] = whole_binary(ADD, qd_fold_whole(x, k), first ? 0 : whole(w)[k - inner]);
    }
    return QD_OK;
}
