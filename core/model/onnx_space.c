/* onnx_space.c - ONNX operators on planes and axes: windows, pools, reductions, resizing, borders, channels as space. */
#include "model/onnx_int.h"

#include <math.h>
#include <string.h>

#define MAX_WINDOW 65535

/* --- windows --- */

/* An attribute of one number for each axis of space, into the last `rank` of two. */
static qd_status per_axis(const qd_onnx_node *n, const char *name, int rank, int64_t lo, int64_t out[2], qd_err *err)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(n, name);
    if (!a)
        return QD_OK;
    if (a->kind != QD_ONNX_INTS || a->n != (size_t)rank)
        return qd_fail(err, QD_E_FORMAT, "%s must have %d values", name, rank);
    for (int k = 0; k < rank; k++) {
        if (a->ints[k] < lo || a->ints[k] > MAX_WINDOW)
            return qd_fail(err, QD_E_FORMAT, "%s[%d] must be %lld..%d, got %lld", name, k, (long long)lo, MAX_WINDOW,
                           (long long)a->ints[k]);
        out[2 - rank + k] = a->ints[k];
    }
    return QD_OK;
}

qd_status qd_onnx_window_of(const qd_onnx_node *n, const qd_shape *x, const int64_t *kernel, qd_onnx_window *w,
                            qd_err *err)
{
    const char *pad = qd_onnx_attr_string(n, "auto_pad", "NOTSET");
    const qd_onnx_attr *pads = qd_onnx_attr_find(n, "pads");
    *w = (qd_onnx_window){ .rank = x->rank - 2, .kernel = { 1, 1 }, .stride = { 1, 1 }, .dilation = { 1, 1 } };
    if (w->rank < 1 || w->rank > 2)
        return qd_fail(err, QD_E_UNSUPPORTED, "windows over a value of rank %d", x->rank);
    qd_status st = kernel ? QD_OK : per_axis(n, "kernel_shape", w->rank, 1, w->kernel, err);
    for (int k = 0; kernel && k < w->rank; k++)
        w->kernel[2 - w->rank + k] = kernel[k];
    if (!st)
        st = per_axis(n, "strides", w->rank, 1, w->stride, err);
    if (!st)
        st = per_axis(n, "dilations", w->rank, 1, w->dilation, err);
    if (st)
        return st;
    if (strcmp(pad, "NOTSET") == 0 && pads) {
        if (pads->kind != QD_ONNX_INTS || pads->n != 2 * (size_t)w->rank)
            return qd_fail(err, QD_E_FORMAT, "pads must have %d values", 2 * w->rank);
        for (int k = 0; k < 2 * w->rank; k++) {
            if (pads->ints[k] < 0 || pads->ints[k] > MAX_WINDOW)
                return qd_fail(err, QD_E_UNSUPPORTED, "pads[%d] must be 0..%d, got %lld", k, MAX_WINDOW,
                               (long long)pads->ints[k]);
            w->pads[k / w->rank * 2 + 2 - w->rank + k % w->rank] = pads->ints[k];
        }
    } else if (strncmp(pad, "SAME_", 5) == 0) {
        for (int k = 0; k < w->rank; k++) {
            const int at = 2 - w->rank + k;
            const int64_t d = x->dim[2 + k], s = w->stride[at];
            const int64_t need = ((d + s - 1) / s - 1) * s + (w->kernel[at] - 1) * w->dilation[at] + 1 - d;
            const int64_t total = need > 0 ? need : 0, less = total / 2;
            w->pads[at] = strcmp(pad, "SAME_LOWER") == 0 ? total - less : less;
            w->pads[2 + at] = total - w->pads[at];
        }
    } else if (strcmp(pad, "NOTSET") != 0 && strcmp(pad, "VALID") != 0) {
        return qd_fail(err, QD_E_FORMAT, "auto_pad '%.40s'", pad);
    }
    return QD_OK;
}

/* With ceil_mode a last window may reach past the padding, if it starts before that. Returns what must be added below. */
static int64_t ceil_extra(int64_t d, int64_t kernel, int64_t stride, int64_t before, int64_t after)
{
    const int64_t room = d + before + after - kernel;
    if (room < 0)
        return 0;
    int64_t windows = (room + stride - 1) / stride + 1;
    if ((windows - 1) * stride >= d + before)
        windows--;
    const int64_t extra = (windows - 1) * stride + kernel - (d + before + after);
    return extra > 0 ? extra : 0;
}

qd_status qd_onnx_pool(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const bool average = strcmp(n->op, "AveragePool") == 0;
    const qd_shape *s = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0);
    bool counted = average && qd_onnx_attr_int(n, "count_include_pad", 0) != 0;
    qd_onnx_window w;
    qd_status st = qd_onnx_window_of(n, s, NULL, &w, err);
    if (st)
        return st;
    if (w.dilation[0] != 1 || w.dilation[1] != 1)
        return qd_fail(err, QD_E_UNSUPPORTED, "a pool with dilation");
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    if (w.rank == 1)
        x = qd_onnx_to_plane(r, n, x);
    if (qd_onnx_attr_int(n, "ceil_mode", 0) && x >= 0) {
        int64_t extra[2];
        for (int k = 0; k < 2; k++)
            extra[k] =
                ceil_extra(qd_onnx_node_shape(r, x, 0)->dim[2 + k], w.kernel[k], w.stride[k], w.pads[k], w.pads[2 + k]);
        /* What reaches past the padding never counts; where the padding does, it becomes part of the picture first. */
        if (counted && (extra[0] || extra[1])) {
            const int64_t pads[8] = { 0, 0, w.pads[0], w.pads[1], 0, 0, w.pads[2], w.pads[3] };
            if (w.pads[0] || w.pads[1] || w.pads[2] || w.pads[3])
                x = qd_onnx_add(r, n, "pad", &qd_op_pad, QD_IN(x), QD_ATTRS(qd_attr_ints("pads", 8, pads)));
            memset(w.pads, 0, sizeof(w.pads));
            counted = false;
        }
        w.pads[2] += extra[0];
        w.pads[3] += extra[1];
    }
    const qd_attr attrs[] = { qd_attr_ints("kernel", 2, w.kernel), qd_attr_ints("stride", 2, w.stride),
                              qd_attr_ints("pads", 4, w.pads), QD_INT("count_pad", counted) };
    x = qd_onnx_add(r, n, NULL, average ? &qd_op_avg_pool : &qd_op_max_pool, QD_IN(x), attrs, average ? 4 : 3);
    return qd_onnx_set(r, n, 0, w.rank == 1 ? qd_onnx_from_plane(r, n, x) : x, err);
}

qd_status qd_onnx_global_pool(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_shape *s = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0);
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    if (strcmp(n->op, "GlobalMaxPool") == 0) {
        if (s->rank != 4)
            return qd_fail(err, QD_E_UNSUPPORTED, "a value of rank %d", s->rank);
        const int64_t step[2] = { 1, 1 };
        return qd_onnx_set(
            r, n, 0,
            qd_onnx_add(r, n, NULL, &qd_op_max_pool, QD_IN(x),
                        QD_ATTRS(qd_attr_ints("kernel", 2, s->dim + 2), qd_attr_ints("stride", 2, step))),
            err);
    }
    if (s->rank == 4)
        return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_global_avg_pool, QD_IN(x), QD_NO_ATTRS), err);
    if (s->rank < 3)
        return qd_fail(err, QD_E_FORMAT, "a value of rank %d has no space", s->rank);
    int64_t axes[QD_MAX_RANK];
    for (int k = 2; k < s->rank; k++)
        axes[k - 2] = k;
    return qd_onnx_set(
        r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_mean, QD_IN(x), QD_ATTRS(qd_attr_ints("axes", s->rank - 2, axes))),
        err);
}

/* --- reductions --- */

qd_status qd_onnx_reduce(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, 0);
    const int rank = qd_onnx_shape_of(v, 0)->rank;
    const bool keep = qd_onnx_attr_int(n, "keepdims", 1) != 0;
    int64_t axes[QD_ONNX_LIST];
    bool on[QD_MAX_RANK] = { false };
    int count;
    qd_status st = qd_onnx_list(r, n, "axes", 1, 0, axes, &count, err);
    if (st)
        return st;
    if (count <= 0) {
        if (qd_onnx_attr_int(n, "noop_with_empty_axes", 0))
            return qd_onnx_alias(r, n, 0, v, err);
        for (count = 0; count < rank; count++)
            axes[count] = count;
    }
    if (count > rank)
        return qd_fail(err, QD_E_FORMAT, "%d axes of a value of rank %d", count, rank);
    for (int k = 0; k < count; k++) {
        axes[k] += axes[k] < 0 ? rank : 0;
        if (axes[k] < 0 || axes[k] >= rank || on[axes[k]])
            return qd_fail(err, QD_E_FORMAT, "axis %lld of a value of rank %d", (long long)axes[k], rank);
        on[axes[k]] = true;
    }
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    if (strcmp(n->op, "ReduceMean") == 0 && rank == 4 && count == 2 && on[2] && on[3]) {
        x = qd_onnx_add(r, n, keep ? NULL : "pool", &qd_op_global_avg_pool, QD_IN(x), QD_NO_ATTRS);
        if (!keep) {
            qd_shape flat[QD_ONNX_WORLDS];
            for (int w = 0; w < QD_ONNX_WORLDS; w++)
                flat[w] = qd_shape_of(2, qd_onnx_shape_of(v, w)->dim);
            x = qd_onnx_reshape(r, n, NULL, x, flat);
        }
        return qd_onnx_set(r, n, 0, x, err);
    }
    const bool root = strcmp(n->op, "ReduceL2") == 0;
    if (root)
        x = qd_onnx_add(r, n, "square", &qd_op_mul, QD_IN(x, x), QD_NO_ATTRS);
    x = qd_onnx_add(r, n, root ? "sum" : NULL, strcmp(n->op, "ReduceMean") == 0 ? &qd_op_mean : &qd_op_sum, QD_IN(x),
                    QD_ATTRS(qd_attr_ints("axes", count, axes), QD_INT("keep", keep)));
    if (root)
        x = qd_onnx_add(r, n, NULL, &qd_op_sqrt, QD_IN(x), QD_NO_ATTRS);
    return qd_onnx_set(r, n, 0, x, err);
}

/* --- resizing --- */

/* Where output y of a plane axis is read from, in input pixels. */
static double coordinate(const char *mode, double y, double in, double out, double scale)
{
    if (strcmp(mode, "asymmetric") == 0)
        return y / scale;
    if (strcmp(mode, "align_corners") == 0)
        return out > 1 ? y * (in - 1) / (out - 1) : 0.0;
    if (strcmp(mode, "pytorch_half_pixel") == 0 && out <= 1)
        return 0.0;
    return (y + 0.5) / scale - 0.5;
}

static int64_t nearest(const char *how, double x, int64_t d)
{
    const double v = strcmp(how, "floor") == 0               ? floor(x)
                     : strcmp(how, "ceil") == 0              ? ceil(x)
                     : strcmp(how, "round_prefer_ceil") == 0 ? floor(x + 0.5)
                                                             : ceil(x - 0.5);
    return v < 0 ? 0 : v > (double)(d - 1) ? d - 1 : (int64_t)v;
}

/* How one axis is resized. */
typedef struct axis_plan {
    int64_t in, out;
    double scale;
    const char *mode, *how; /* how NULL = linear */
} axis_plan;

/* One axis by lookup. */
static qd_node_id resize_nearest(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x, int axis, const axis_plan *p,
                                 qd_status *st, qd_err *err)
{
    qd_tensor index = { 0 };
    const qd_shape s = QD_SHAPE(p->out);
    *st = qd_tensor_init(&index, QD_I64, &s, r->budget, err);
    if (*st)
        return -1;
    for (int64_t y = 0; y < p->out; y++)
        ((int64_t *)index.data)[y] =
            nearest(p->how, coordinate(p->mode, (double)y, (double)p->in, (double)p->out, p->scale), p->in);
    const qd_node_id which = qd_onnx_const(r, n, axis == 2 ? "rows" : "columns", &index);
    qd_tensor_clear(&index);
    return qd_onnx_add(r, n, axis == 2 ? "taller" : "wider", &qd_op_gather, QD_IN(x, which),
                       QD_ATTRS(QD_INT("axis", axis)));
}

/* One axis by a product with the weights of its two neighbours: x W for columns [in, out], W^T x for rows. */
static qd_node_id resize_linear(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x, int axis, const axis_plan *p,
                                qd_status *st, qd_err *err)
{
    const bool rows = axis == 2;
    qd_tensor weight = { 0 };
    const qd_shape s = rows ? QD_SHAPE(p->out, p->in) : QD_SHAPE(p->in, p->out);
    *st = qd_tensor_init(&weight, QD_F32, &s, r->budget, err);
    if (*st)
        return -1;
    for (int64_t y = 0; y < p->out; y++) {
        double at = coordinate(p->mode, (double)y, (double)p->in, (double)p->out, p->scale);
        at = at < 0 ? 0 : at > (double)(p->in - 1) ? (double)(p->in - 1) : at;
        const int64_t lo = (int64_t)at, hi = lo + 1 < p->in ? lo + 1 : lo;
        const double part = at - (double)lo;
        qd_f32(&weight)[rows ? y * p->in + lo : lo * p->out + y] += (float)(1.0 - part);
        qd_f32(&weight)[rows ? y * p->in + hi : hi * p->out + y] += (float)part;
    }
    const qd_node_id w = qd_onnx_const(r, n, rows ? "rows" : "columns", &weight);
    qd_tensor_clear(&weight);
    return qd_onnx_add(r, n, rows ? "taller" : "wider", &qd_op_matmul, (qd_node_id[]){ rows ? w : x, rows ? x : w }, 2,
                       QD_NO_ATTRS);
}

/* Is every output pixel y a copy of input pixel y / factor? */
static bool is_repetition(const axis_plan *p)
{
    if (!p->how || p->out % p->in)
        return false;
    for (int64_t y = 0; y < p->out; y++)
        if (nearest(p->how, coordinate(p->mode, (double)y, (double)p->in, (double)p->out, p->scale), p->in) !=
            y / (p->out / p->in))
            return false;
    return true;
}

static qd_status resize(qd_onnx_reader *r, const qd_onnx_node *n, const axis_plan plan[2], qd_err *err)
{
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    qd_status st = QD_OK;
    if (plan[0].out == plan[0].in && plan[1].out == plan[1].in)
        return qd_onnx_alias(r, n, 0, qd_onnx_in(r, n, 0), err);
    if (is_repetition(&plan[0]) && is_repetition(&plan[1])) {
        const int64_t factor[2] = { plan[0].out / plan[0].in, plan[1].out / plan[1].in };
        return qd_onnx_set(
            r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_upsample, QD_IN(x), QD_ATTRS(qd_attr_ints("factor", 2, factor))),
            err);
    }
    for (int k = 0; k < 2 && !st; k++)
        if (plan[k].out != plan[k].in)
            x = plan[k].how ? resize_nearest(r, n, x, 2 + k, &plan[k], &st, err)
                            : resize_linear(r, n, x, 2 + k, &plan[k], &st, err);
    return st ? st : qd_onnx_set(r, n, 0, x, err);
}

/* Sizes and scales of both axes of space from a list of scales or sizes of all four. */
static qd_status plan_axes(const qd_onnx_node *n, const qd_shape *x, const float *scales, const int64_t *sizes,
                           const char *mode, const char *coordinates, const char *how, axis_plan plan[2], qd_err *err)
{
    for (int k = 0; k < 4; k++) {
        const double scale = scales ? scales[k] : (double)sizes[k] / (double)x->dim[k];
        const double out = scales ? floor((double)x->dim[k] * scale) : (double)sizes[k];
        if (!(out >= 1.0 && out <= 1 << 20) || (k < 2 && scale != 1.0))
            return qd_fail(err, QD_E_UNSUPPORTED, "axis %d of size %lld becomes %g", k, (long long)x->dim[k], out);
        if (k >= 2)
            plan[k - 2] =
                (axis_plan){ .in = x->dim[k], .out = (int64_t)out, .scale = scale, .mode = coordinates, .how = how };
    }
    if (strcmp(mode, "linear") == 0)
        plan[0].how = plan[1].how = NULL;
    else if (strcmp(mode, "nearest") != 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "mode '%.40s', we read nearest and linear", mode);
    return QD_OK;
}

qd_status qd_onnx_resize(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const bool old = r->file->opset < 11;
    const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0);
    const char *mode = qd_onnx_attr_string(n, "mode", "nearest");
    const char *coordinates =
        qd_onnx_attr_string(n, "coordinate_transformation_mode", old ? "asymmetric" : "half_pixel");
    const char *how = qd_onnx_attr_string(n, "nearest_mode", old ? "floor" : "round_prefer_floor");
    const qd_tensor *scales, *sizes = NULL;
    static const char *const known[] = { "asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel" };
    bool is_known = false;
    for (size_t k = 0; k < sizeof(known) / sizeof(known[0]); k++)
        is_known = is_known || strcmp(known[k], coordinates) == 0;
    if (!is_known || qd_onnx_attr_int(n, "antialias", 0) || qd_onnx_attr_find(n, "axes"))
        return qd_fail(err, QD_E_UNSUPPORTED, "coordinate mode '%.40s', antialias or axes", coordinates);
    qd_status st = qd_onnx_fixed(r, n, old ? 1 : 2, &scales, err);
    if (st)
        return st;
    axis_plan plan[2];
    if (x->rank != 4)
        return qd_fail(err, QD_E_UNSUPPORTED, "a value of rank %d, we read 4", x->rank);
    if (scales && qd_tensor_count(scales) == 4 && scales->dtype == QD_F32)
        return (st = plan_axes(n, x, qd_f32(scales), NULL, mode, coordinates, how, plan, err))
                   ? st
                   : resize(r, n, plan, err);
    /* Sizes hold the batch too, which may be open: they are read in one world. */
    int64_t list[QD_ONNX_LIST], again[QD_ONNX_LIST];
    int count, count_again;
    st = qd_onnx_list(r, n, NULL, 3, 0, list, &count, err);
    if (!st)
        st = qd_onnx_list(r, n, NULL, 3, 1, again, &count_again, err);
    if (st)
        return st;
    if (sizes || count != 4 || count_again != 4 || list[2] != again[2] || list[3] != again[3])
        return qd_fail(err, QD_E_UNSUPPORTED, "scales or sizes of four axes must be constant");
    st = plan_axes(n, x, NULL, list, mode, coordinates, how, plan, err);
    return st ? st : resize(r, n, plan, err);
}

qd_status qd_onnx_upsample(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(n, "scales");
    const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0);
    const qd_tensor *t;
    qd_status st = qd_onnx_fixed(r, n, 1, &t, err);
    if (st)
        return st;
    const float *scales = a && a->kind == QD_ONNX_FLOATS && a->n == 4          ? a->floats
                          : t && t->dtype == QD_F32 && qd_tensor_count(t) == 4 ? qd_f32(t)
                                                                               : NULL;
    if (x->rank != 4 || !scales)
        return qd_fail(err, QD_E_UNSUPPORTED, "a value of rank 4 and four constant scales are read");
    axis_plan plan[2];
    st = plan_axes(n, x, scales, NULL, qd_onnx_attr_string(n, "mode", "nearest"), "asymmetric", "floor", plan, err);
    return st ? st : resize(r, n, plan, err);
}

/* --- borders --- */

/* Elements before and after each axis. */
static qd_status read_pads(const qd_onnx_reader *r, const qd_onnx_node *n, int rank, int64_t before[QD_MAX_RANK],
                           int64_t after[QD_MAX_RANK], qd_err *err)
{
    int64_t list[QD_ONNX_LIST], axes[QD_ONNX_LIST];
    int count, n_axes;
    qd_status st = qd_onnx_list(r, n, "pads", 1, 0, list, &count, err);
    if (!st)
        st = qd_onnx_list(r, n, NULL, 3, 0, axes, &n_axes, err);
    if (st)
        return st;
    const int n_on = n_axes < 0 ? rank : n_axes;
    if (count != 2 * n_on || n_on > rank)
        return qd_fail(err, QD_E_FORMAT, "%d pads for %d axes", count, n_on);
    for (int k = 0; k < rank; k++)
        before[k] = after[k] = 0;
    for (int k = 0; k < n_on; k++) {
        const int64_t axis = n_axes < 0 ? k : axes[k] < 0 ? axes[k] + rank : axes[k];
        if (axis < 0 || axis >= rank)
            return qd_fail(err, QD_E_FORMAT, "axis %lld of a value of rank %d", (long long)axes[k], rank);
        if (list[k] < -MAX_WINDOW || list[k] > MAX_WINDOW || list[n_on + k] < -MAX_WINDOW ||
            list[n_on + k] > MAX_WINDOW)
            return qd_fail(err, QD_E_UNSUPPORTED, "pads %lld and %lld of axis %lld", (long long)list[k],
                           (long long)list[n_on + k], (long long)axis);
        before[axis] = list[k];
        after[axis] = list[n_on + k];
    }
    return QD_OK;
}

/* Borders copied from the picture, one axis at a time: mirrored without the edge, or the edge itself. */
static qd_status pad_copied(qd_onnx_reader *r, const qd_onnx_node *n, bool mirror, int rank, const int64_t *before,
                            const int64_t *after, qd_err *err)
{
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    for (int axis = 0; axis < rank && x >= 0; axis++) {
        const int64_t d = qd_onnx_node_shape(r, x, 0)->dim[axis];
        if (!before[axis] && !after[axis])
            continue;
        if (d != qd_onnx_node_shape(r, x, 1)->dim[axis] || before[axis] < 0 || after[axis] < 0 ||
            (mirror && (before[axis] >= d || after[axis] >= d)))
            return qd_fail(err, QD_E_UNSUPPORTED, "a border of %lld and %lld copied along axis %d of size %lld",
                           (long long)before[axis], (long long)after[axis], axis, (long long)d);
        const qd_shape s = QD_SHAPE(before[axis] + d + after[axis]);
        qd_tensor index = { 0 };
        qd_status st = qd_tensor_init(&index, QD_I64, &s, r->budget, err);
        if (st)
            return st;
        for (int64_t k = 0; k < s.dim[0]; k++) {
            const int64_t at = k - before[axis];
            ((int64_t *)index.data)[k] = at < 0    ? (mirror ? -at : 0)
                                         : at >= d ? (mirror ? 2 * (d - 1) - at : d - 1)
                                                   : at;
        }
        const qd_node_id which = qd_onnx_const(r, n, "index", &index);
        qd_tensor_clear(&index);
        x = qd_onnx_add(r, n, "axis", &qd_op_gather, QD_IN(x, which), QD_ATTRS(QD_INT("axis", axis)));
    }
    return qd_onnx_set(r, n, 0, x, err);
}

qd_status qd_onnx_pad(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const char *mode = qd_onnx_attr_string(n, "mode", "constant");
    const int rank = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0)->rank;
    int64_t before[QD_MAX_RANK], after[QD_MAX_RANK], pads[QD_MAX_RANK];
    const qd_tensor *t;
    bool none = true;
    qd_status st = read_pads(r, n, rank, before, after, err);
    if (!st)
        st = qd_onnx_fixed(r, n, 2, &t, err);
    if (st)
        return st;
    for (int k = 0; k < rank; k++)
        none = none && !before[k] && !after[k];
    if (none)
        return qd_onnx_alias(r, n, 0, qd_onnx_in(r, n, 0), err);
    if (strcmp(mode, "reflect") == 0 || strcmp(mode, "edge") == 0)
        return pad_copied(r, n, mode[0] == 'r', rank, before, after, err);
    if (strcmp(mode, "constant") != 0 || rank > QD_MAX_RANK / 2)
        return qd_fail(err, QD_E_UNSUPPORTED, "mode '%.40s' on a value of rank %d", mode, rank);
    if (t && (t->dtype != QD_F32 || qd_tensor_count(t) != 1))
        return qd_fail(err, QD_E_UNSUPPORTED, "the border must be one float");
    const double value = t ? *qd_f32(t) : qd_onnx_attr_float(n, "value", 0.0f);
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    none = true;
    for (int k = 0; k < rank && x >= 0; k++) {
        const int64_t d = qd_onnx_node_shape(r, x, 0)->dim[k];
        const int64_t from = before[k] < 0 ? -before[k] : 0, to = after[k] < 0 ? -after[k] : 0;
        if ((from || to) && d != qd_onnx_node_shape(r, x, 1)->dim[k])
            return qd_fail(err, QD_E_UNSUPPORTED, "the batch is cut");
        if (from + to >= d)
            return qd_fail(err, QD_E_FORMAT, "nothing is left of axis %d", k);
        if (from || to)
            x = qd_onnx_add(r, n, "cut", &qd_op_slice, QD_IN(x),
                            QD_ATTRS(QD_INT("axis", k), QD_INT("start", from), QD_INT("length", d - from - to)));
        pads[k] = before[k] > 0 ? before[k] : 0;
        pads[rank + k] = after[k] > 0 ? after[k] : 0;
        none = none && !pads[k] && !pads[rank + k];
    }
    if (!none)
        x = qd_onnx_add(r, n, NULL, &qd_op_pad, QD_IN(x),
                        QD_ATTRS(qd_attr_ints("pads", 2 * rank, pads), QD_FLOAT("value", value)));
    return qd_onnx_set(r, n, 0, x, err);
}

/* --- channels as space --- */

qd_status qd_onnx_depth_to_space(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const bool to_space = strcmp(n->op, "DepthToSpace") == 0;
    const bool crd = strcmp(qd_onnx_attr_string(n, "mode", "DCR"), "CRD") == 0;
    const int64_t b = qd_onnx_attr_int(n, "blocksize", 0);
    qd_shape split[QD_ONNX_WORLDS], joined[QD_ONNX_WORLDS];
    static const int64_t orders[3][6] = { { 0, 3, 4, 1, 5, 2 }, { 0, 1, 4, 2, 5, 3 }, { 0, 3, 5, 1, 2, 4 } };
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *s = qd_onnx_shape_of(qd_onnx_in(r, n, 0), w);
        const int64_t *x = s->dim;
        if (s->rank != 4 || b < 1 || b > MAX_WINDOW || (to_space ? x[1] % (b * b) : x[2] % b || x[3] % b))
            return qd_fail(err, QD_E_FORMAT, "blocks of %lld do not divide the value", (long long)b);
        if (to_space) {
            const int64_t c = x[1] / (b * b);
            split[w] = crd ? QD_SHAPE(x[0], c, b, b, x[2], x[3]) : QD_SHAPE(x[0], b, b, c, x[2], x[3]);
            joined[w] = QD_SHAPE(x[0], c, x[2] * b, x[3] * b);
        } else {
            split[w] = QD_SHAPE(x[0], x[1], x[2] / b, b, x[3] / b, b);
            joined[w] = QD_SHAPE(x[0], x[1] * b * b, x[2] / b, x[3] / b);
        }
    }
    qd_node_id x = qd_onnx_reshape(r, n, "split", qd_onnx_node_of(r, n, 0), split);
    x = qd_onnx_add(r, n, "order", &qd_op_permute, QD_IN(x),
                    QD_ATTRS(qd_attr_ints("perm", 6, orders[to_space ? crd : 2])));
    return qd_onnx_set(r, n, 0, qd_onnx_reshape(r, n, NULL, x, joined), err);
}
