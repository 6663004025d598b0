/* onnx_space.c - ONNX operators on planes: windows, pools, neighbouring channels, borders, channels as space. */
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
    if (s->rank >= 3 && strcmp(n->op, "GlobalMaxPool") == 0) {
        bool space[QD_MAX_RANK] = { false };
        for (int k = 2; k < s->rank; k++)
            space[k] = true;
        return qd_onnx_set(r, n, 0, qd_onnx_largest(r, n, NULL, x, space, true), err);
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

/* x / (bias + alpha / size * sum of squares over `size` neighbouring channels)^beta: the sum is a mean over windows of [N, 1, C, HW]. */
qd_status qd_onnx_lrn(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, 0);
    const int64_t size = qd_onnx_attr_int(n, "size", 0), step[2] = { 1, 1 }, kernel[2] = { size, 1 };
    const int64_t pads[4] = { (size - 1) / 2, 0, size / 2, 0 };
    qd_shape flat[QD_ONNX_WORLDS], back[QD_ONNX_WORLDS];
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *x = qd_onnx_shape_of(v, w);
        if (x->rank < 3 || size < 1 || size > x->dim[1])
            return qd_fail(err, QD_E_UNSUPPORTED, "%lld channels of a value of rank %d", (long long)size, x->rank);
        back[w] = *x;
        flat[w] = QD_SHAPE(x->dim[0], 1, x->dim[1], 1);
        for (int k = 2; k < x->rank; k++)
            flat[w].dim[3] *= x->dim[k];
    }
    const qd_node_id x = qd_onnx_floats(r, n, 0);
    qd_node_id y = qd_onnx_reshape(r, n, "flat", qd_onnx_two(r, n, "square", &qd_op_mul, x, x), flat);
    y = qd_onnx_add(r, n, "mean", &qd_op_avg_pool, QD_IN(y),
                    QD_ATTRS(qd_attr_ints("kernel", 2, kernel), qd_attr_ints("stride", 2, step),
                             qd_attr_ints("pads", 4, pads), QD_INT("count_pad", 1)));
    y = qd_onnx_affine(r, n, "sum", qd_onnx_reshape(r, n, "back", y, back), qd_onnx_attr_float(n, "alpha", 1e-4f),
                       qd_onnx_attr_float(n, "bias", 1.0f));
    y = qd_onnx_two(r, n, "power", &qd_op_pow, y,
                    qd_onnx_number_const(r, n, "beta", qd_onnx_attr_float(n, "beta", 0.75f)));
    return qd_onnx_set(r, n, 0, qd_onnx_two(r, n, NULL, &qd_op_div, x, y), err);
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

typedef enum border { MIRROR, EDGE, WRAP } border;

/* Which element lies at place k, perhaps outside 0..d-1: mirrored without the edge, the edge itself, or from the other side. */
static int64_t source_of(border how, int64_t k, int64_t d)
{
    if (k >= 0 && k < d)
        return k;
    if (how == WRAP)
        return (k % d + d) % d;
    if (how == EDGE)
        return k < 0 ? 0 : d - 1;
    return k < 0 ? -k : 2 * (d - 1) - k;
}

/* Borders copied from the picture, one axis at a time. */
static qd_status pad_copied(qd_onnx_reader *r, const qd_onnx_node *n, border how, int rank, const int64_t *before,
                            const int64_t *after, qd_err *err)
{
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    for (int axis = 0; axis < rank && x >= 0; axis++) {
        const int64_t d = qd_onnx_node_shape(r, x, 0)->dim[axis];
        if (!before[axis] && !after[axis])
            continue;
        if (d != qd_onnx_node_shape(r, x, 1)->dim[axis] || before[axis] < 0 || after[axis] < 0 ||
            (how == MIRROR && (before[axis] >= d || after[axis] >= d)))
            return qd_fail(err, QD_E_UNSUPPORTED, "a border of %lld and %lld copied along axis %d of size %lld",
                           (long long)before[axis], (long long)after[axis], axis, (long long)d);
        const qd_shape s = QD_SHAPE(before[axis] + d + after[axis]);
        qd_tensor index = { 0 };
        qd_status st = qd_tensor_init(&index, QD_I64, &s, r->budget, err);
        if (st)
            return st;
        for (int64_t k = 0; k < s.dim[0]; k++)
            ((int64_t *)index.data)[k] = source_of(how, k - before[axis], d);
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
    static const char *const copied[] = { [MIRROR] = "reflect", [EDGE] = "edge", [WRAP] = "wrap" };
    for (int how = MIRROR; how <= WRAP; how++)
        if (strcmp(mode, copied[how]) == 0)
            return pad_copied(r, n, (border)how, rank, before, after, err);
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
