/* onnx_resize.c - ONNX operators that change the size of pictures: nearest by lookup, linear and cubic by products with the weights of
 * each output pixel (Operators.md, Resize 10 to 19). */
#include "model/onnx_int.h"

#include <math.h>
#include <string.h>

#define MAX_SIZE (1 << 20)

typedef enum kernel { NEAREST, LINEAR, CUBIC } kernel;

/* How one axis is resized. */
typedef struct axis_plan {
    int64_t in, out;
    double scale;
} axis_plan;

/* How the picture is. */
typedef struct plan {
    axis_plan axis[2]; // rows, columns
    kernel kernel;
    const char *coordinates, *nearest; /* modes by their names in the file */
    double cubic;                      /* a of the cubic kernel (Keys 1981) */
    bool exclude_outside;              /* pixels beyond the edge get no weight */
    bool line;                         /* [N, C, L] as [N, C, 1, L] */
} plan;

/* Where output y of an axis is read from, in input pixels. */
static double coordinate(const plan *p, const axis_plan *a, double y)
{
    const double in = (double)a->in, out = (double)a->out;
    const char *mode = p->coordinates;
    if (strcmp(mode, "asymmetric") == 0)
        return y / a->scale;
    if (strcmp(mode, "align_corners") == 0)
        return out > 1 ? y * (in - 1) / (out - 1) : 0.0;
    if (strcmp(mode, "pytorch_half_pixel") == 0 && out <= 1)
        return 0.0;
    if (strcmp(mode, "tf_half_pixel_for_nn") == 0)
        return (y + 0.5) / a->scale;
    const double x = (y + 0.5) / a->scale - 0.5;
    if (strcmp(mode, "half_pixel_symmetric") == 0)
        return x + in / 2.0 * (1.0 - out / (a->scale * in));
    return x;
}

static int64_t held(double v, int64_t d)
{
    return v < 0 ? 0 : v > (double)(d - 1) ? d - 1 : (int64_t)v;
}

static int64_t nearest(const plan *p, const axis_plan *a, int64_t y)
{
    const double x = coordinate(p, a, (double)y);
    const double v = strcmp(p->nearest, "floor") == 0               ? floor(x)
                     : strcmp(p->nearest, "ceil") == 0              ? ceil(x)
                     : strcmp(p->nearest, "round_prefer_ceil") == 0 ? floor(x + 0.5)
                                                                    : ceil(x - 0.5);
    return held(v, a->in);
}

/* One axis by lookup. */
static qd_node_id resize_nearest(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x, int axis, const plan *p,
                                 qd_status *st, qd_err *err)
{
    const axis_plan *a = &p->axis[axis - 2];
    qd_tensor index = { 0 };
    const qd_shape s = QD_SHAPE(a->out);
    *st = qd_tensor_init(&index, QD_I64, &s, r->budget, err);
    if (*st)
        return -1;
    for (int64_t y = 0; y < a->out; y++)
        ((int64_t *)index.data)[y] = nearest(p, a, y);
    const qd_node_id which = qd_onnx_const(r, n, axis == 2 ? "rows" : "columns", &index);
    qd_tensor_clear(&index);
    return qd_onnx_add(r, n, axis == 2 ? "taller" : "wider", &qd_op_gather, QD_IN(x, which),
                       QD_ATTRS(QD_INT("axis", axis)));
}

/* Weights of up to four input pixels from `first` on that make output y. */
static int weights_of(const plan *p, const axis_plan *a, int64_t y, int64_t *first, double weight[4])
{
    double x = coordinate(p, a, (double)y);
    if (p->kernel == LINEAR) {
        x = x < 0 ? 0 : x > (double)(a->in - 1) ? (double)(a->in - 1) : x;
        *first = (int64_t)x;
        weight[1] = x - (double)*first;
        weight[0] = 1.0 - weight[1];
        return 2;
    }
    const double c = p->cubic, t = x - floor(x), u = 1.0 - t;
    *first = (int64_t)floor(x) - 1;
    weight[0] = ((c * (t + 1) - 5 * c) * (t + 1) + 8 * c) * (t + 1) - 4 * c;
    weight[1] = ((c + 2) * t - (c + 3)) * t * t + 1;
    weight[2] = ((c + 2) * u - (c + 3)) * u * u + 1;
    weight[3] = ((c * (u + 1) - 5 * c) * (u + 1) + 8 * c) * (u + 1) - 4 * c;
    double sum = 0.0;
    for (int k = 0; k < 4; k++) {
        if (p->exclude_outside && (*first + k < 0 || *first + k >= a->in))
            weight[k] = 0.0;
        sum += weight[k];
    }
    for (int k = 0; k < 4 && p->exclude_outside; k++)
        weight[k] /= sum;
    return 4;
}

/* One axis by a product with the weights of its neighbours: x W for columns [in, out], W^T x for rows. */
static qd_node_id resize_smooth(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x, int axis, const plan *p,
                                qd_status *st, qd_err *err)
{
    const bool rows = axis == 2;
    const axis_plan *a = &p->axis[axis - 2];
    qd_tensor weight = { 0 };
    const qd_shape s = rows ? QD_SHAPE(a->out, a->in) : QD_SHAPE(a->in, a->out);
    *st = qd_tensor_init(&weight, QD_F32, &s, r->budget, err);
    if (*st)
        return -1;
    for (int64_t y = 0; y < a->out; y++) {
        double part[4];
        int64_t first;
        const int count = weights_of(p, a, y, &first, part);
        for (int k = 0; k < count; k++) {
            const int64_t at = held((double)(first + k), a->in);
            qd_f32(&weight)[rows ? y * a->in + at : at * a->out + y] += (float)part[k];
        }
    }
    const qd_node_id w = qd_onnx_const(r, n, rows ? "rows" : "columns", &weight);
    qd_tensor_clear(&weight);
    return qd_onnx_two(r, n, rows ? "taller" : "wider", &qd_op_matmul, rows ? w : x, rows ? x : w);
}

/* Is every output pixel y a copy of input pixel y / factor? */
static bool is_repetition(const plan *p, const axis_plan *a)
{
    if (p->kernel != NEAREST || a->out % a->in)
        return false;
    for (int64_t y = 0; y < a->out; y++)
        if (nearest(p, a, y) != y / (a->out / a->in))
            return false;
    return true;
}

static qd_status resize(qd_onnx_reader *r, const qd_onnx_node *n, const plan *p, qd_err *err)
{
    const axis_plan *a = p->axis;
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    qd_status st = QD_OK;
    if (a[0].out == a[0].in && a[1].out == a[1].in)
        return qd_onnx_alias(r, n, 0, qd_onnx_in(r, n, 0), err);
    if (p->line)
        x = qd_onnx_to_plane(r, n, x);
    if (is_repetition(p, &a[0]) && is_repetition(p, &a[1])) {
        const int64_t factor[2] = { a[0].out / a[0].in, a[1].out / a[1].in };
        x = qd_onnx_add(r, n, p->line ? "repeated" : NULL, &qd_op_upsample, QD_IN(x),
                        QD_ATTRS(qd_attr_ints("factor", 2, factor)));
    } else {
        for (int k = 0; k < 2 && !st; k++)
            if (a[k].out != a[k].in)
                x = p->kernel == NEAREST ? resize_nearest(r, n, x, 2 + k, p, &st, err)
                                         : resize_smooth(r, n, x, 2 + k, p, &st, err);
    }
    if (st)
        return st;
    return qd_onnx_set(r, n, 0, p->line ? qd_onnx_from_plane(r, n, x) : x, err);
}

/* Sizes and scales of both axes of space from scales or sizes of `count` axes; axes NULL = all of them. */
static qd_status plan_axes(const qd_shape *x, const float *scales, const int64_t *sizes, const int64_t *axes, int count,
                           plan *p, qd_err *err)
{
    p->line = x->rank == 3;
    if (x->rank != 3 && x->rank != 4)
        return qd_fail(err, QD_E_UNSUPPORTED, "a value of rank %d, we read 3 and 4", x->rank);
    for (int k = 0; k < 2; k++) {
        const int64_t d = p->line && k == 0 ? 1 : x->dim[x->rank - 2 + k];
        p->axis[k] = (axis_plan){ d, d, 1.0 };
    }
    for (int k = 0; k < count; k++) {
        const int64_t given = axes ? axes[k] : k, axis = given < 0 ? given + x->rank : given;
        if (axis < 0 || axis >= x->rank)
            return qd_fail(err, QD_E_FORMAT, "axis %lld of a value of rank %d", (long long)given, x->rank);
        const int64_t d = x->dim[axis];
        const double scale = scales ? scales[k] : (double)sizes[k] / (double)d;
        const double out = scales ? floor((double)d * scale) : (double)sizes[k];
        if (!(out >= 1.0 && out <= MAX_SIZE) || d > MAX_SIZE || (axis < 2 && scale != 1.0))
            return qd_fail(err, QD_E_UNSUPPORTED, "axis %lld of size %lld becomes %g", (long long)axis, (long long)d,
                           out);
        if (axis >= 2)
            p->axis[axis - x->rank + 2] = (axis_plan){ d, (int64_t)out, scale };
    }
    return QD_OK;
}

static qd_status kernel_of(const char *mode, plan *p, qd_err *err)
{
    static const char *const names[] = { [NEAREST] = "nearest", [LINEAR] = "linear", [CUBIC] = "cubic" };
    for (int k = NEAREST; k <= CUBIC; k++)
        if (strcmp(mode, names[k]) == 0) {
            p->kernel = (kernel)k;
            return QD_OK;
        }
    return qd_fail(err, QD_E_UNSUPPORTED, "mode '%.40s', we read nearest, linear and cubic", mode);
}

static qd_status plan_modes(const qd_onnx_node *n, bool old, plan *p, qd_err *err)
{
    static const char *const known[] = { "asymmetric",         "align_corners",        "half_pixel",
                                         "pytorch_half_pixel", "half_pixel_symmetric", "tf_half_pixel_for_nn" };
    bool is_known = false;
    p->coordinates = qd_onnx_attr_string(n, "coordinate_transformation_mode", old ? "asymmetric" : "half_pixel");
    p->nearest = qd_onnx_attr_string(n, "nearest_mode", old ? "floor" : "round_prefer_floor");
    p->cubic = qd_onnx_attr_float(n, "cubic_coeff_a", -0.75f);
    p->exclude_outside = qd_onnx_attr_int(n, "exclude_outside", 0) != 0;
    for (size_t k = 0; k < sizeof(known) / sizeof(known[0]); k++)
        is_known = is_known || strcmp(known[k], p->coordinates) == 0;
    const char *policy = qd_onnx_attr_string(n, "keep_aspect_ratio_policy", "stretch");
    if (!is_known || qd_onnx_attr_int(n, "antialias", 0) || strcmp(policy, "stretch") != 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "coordinate mode '%.40s', antialias or keeping '%.40s'", p->coordinates,
                       policy);
    return kernel_of(qd_onnx_attr_string(n, "mode", "nearest"), p, err);
}

qd_status qd_onnx_resize(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const bool old = r->file->opset < 11;
    const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0);
    int64_t list[QD_ONNX_LIST], again[QD_ONNX_LIST], axes[QD_ONNX_LIST];
    int count = 0, count_again, n_axes;
    const qd_tensor *scales;
    plan p = { 0 };
    qd_status st = plan_modes(n, old, &p, err);
    if (!st)
        st = qd_onnx_fixed(r, n, old ? 1 : 2, &scales, err);
    if (!st)
        st = qd_onnx_list(r, n, "axes", -1, 0, axes, &n_axes, err);
    if (st)
        return st;
    const int want = n_axes < 0 ? x->rank : n_axes;
    if (scales && scales->dtype == QD_F32 && qd_tensor_count(scales) == want) {
        st = plan_axes(x, qd_f32(scales), NULL, n_axes < 0 ? NULL : axes, want, &p, err);
        return st ? st : resize(r, n, &p, err);
    }
    /* Sizes hold the batch too, which may be open: they are read in one world. */
    st = qd_onnx_list(r, n, NULL, 3, 0, list, &count, err);
    if (!st)
        st = qd_onnx_list(r, n, NULL, 3, 1, again, &count_again, err);
    if (st)
        return st;
    bool fixed = count == want && count_again == want;
    for (int k = 0; fixed && k < want; k++)
        fixed = list[k] == again[k] || (n_axes < 0 ? k : axes[k]) == 0;
    if (!fixed)
        return qd_fail(err, QD_E_UNSUPPORTED, "scales or sizes of %d axes must be constant", want);
    st = plan_axes(x, NULL, list, n_axes < 0 ? NULL : axes, want, &p, err);
    return st ? st : resize(r, n, &p, err);
}

qd_status qd_onnx_upsample(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(n, "scales");
    const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0);
    plan p = { .coordinates = "asymmetric", .nearest = "floor" };
    const qd_tensor *t;
    qd_status st = qd_onnx_fixed(r, n, 1, &t, err);
    if (!st)
        st = kernel_of(qd_onnx_attr_string(n, "mode", "nearest"), &p, err);
    if (st)
        return st;
    const size_t want = (size_t)x->rank;
    const float *scales = a && a->kind == QD_ONNX_FLOATS && a->n == want                  ? a->floats
                          : t && t->dtype == QD_F32 && (size_t)qd_tensor_count(t) == want ? qd_f32(t)
                                                                                          : NULL;
    if (!scales)
        return qd_fail(err, QD_E_UNSUPPORTED, "%d constant scales are read", x->rank);
    st = plan_axes(x, scales, NULL, NULL, x->rank, &p, err);
    return st ? st : resize(r, n, &p, err);
}
