/* onnx_shape.c - ONNX operators that move elements: reshape and its kin, transpose, concat, split, slice. */
#include "model/onnx_int.h"

#include <string.h>

/* --- under another shape --- */

static qd_status set_reshaped(qd_onnx_reader *r, const qd_onnx_node *n, const qd_shape target[QD_ONNX_WORLDS],
                              qd_err *err)
{
    const qd_onnx_number *x = qd_onnx_in(r, n, 0);
    const qd_node_id id = qd_onnx_node_of(r, n, 0), made = qd_onnx_reshape(r, n, NULL, id, target);
    return made == id && id >= 0 ? qd_onnx_alias(r, n, 0, x, err) : qd_onnx_set(r, n, 0, made, err);
}

static int64_t count_of(const qd_shape *s)
{
    int64_t n = 1;
    for (int k = 0; k < s->rank; k++)
        n *= s->dim[k]; /* of a value that exists: fits */
    return n;
}

static qd_status reshape_target(const qd_onnx_node *n, const qd_shape *x, const int64_t *list, int count, qd_shape *out,
                                qd_err *err)
{
    int64_t known = 1;
    int open = -1;
    *out = (qd_shape){ .rank = count };
    for (int k = 0; k < count; k++) {
        int64_t d = list[k];
        if (d == 0 && !qd_onnx_attr_int(n, "allowzero", 0)) {
            if (k >= x->rank)
                return qd_fail(err, QD_E_FORMAT, "the target keeps dimension %d of a value of rank %d", k, x->rank);
            d = x->dim[k];
        }
        if (d == -1 && open < 0) {
            open = k;
            d = 1;
        }
        if (d < 1 || __builtin_mul_overflow(known, d, &known) || known > QD_MAX_ELEMENTS)
            return qd_fail(err, QD_E_FORMAT, "the target has %lld at %d", (long long)list[k], k);
        out->dim[k] = d;
    }
    if (open >= 0 ? count_of(x) % known != 0 : count_of(x) != known)
        return qd_fail(err, QD_E_FORMAT, "%lld elements cannot take a shape of %s%lld", (long long)count_of(x),
                       open >= 0 ? "a multiple of " : "", (long long)known);
    if (open >= 0)
        out->dim[open] = count_of(x) / known;
    return QD_OK;
}

qd_status qd_onnx_reshape_row(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    qd_shape target[QD_ONNX_WORLDS];
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        int64_t list[QD_ONNX_LIST];
        int count;
        qd_status st = qd_onnx_list(r, n, NULL, 1, w, list, &count, err);
        if (!st && (count < 0 || count > QD_MAX_RANK))
            st = qd_fail(err, QD_E_LIMIT, "the target has %d dimensions, the limit is %d", count, QD_MAX_RANK);
        if (!st)
            st = reshape_target(n, qd_onnx_shape_of(qd_onnx_in(r, n, 0), w), list, count, &target[w], err);
        if (st)
            return qd_fail_in(err, st, "with a batch of %lld", (long long)qd_onnx_batch[w]);
    }
    if (target[0].rank != target[1].rank)
        return qd_fail(err, QD_E_UNSUPPORTED, "the rank of the target depends on the batch");
    return set_reshaped(r, n, target, err);
}

qd_status qd_onnx_flatten(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    qd_shape target[QD_ONNX_WORLDS];
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), w);
        const int64_t given = qd_onnx_attr_int(n, "axis", 1), axis = given < 0 ? given + x->rank : given;
        if (axis < 0 || axis > x->rank)
            return qd_fail(err, QD_E_FORMAT, "axis %lld is not one of a value of rank %d", (long long)given, x->rank);
        target[w] = (qd_shape){ .rank = 2, .dim = { 1, 1 } };
        for (int k = 0; k < x->rank; k++)
            target[w].dim[k >= axis] *= x->dim[k];
    }
    return set_reshaped(r, n, target, err);
}

/* The axes of Squeeze and Unsqueeze as flags over `rank` axes; *given false = none told. */
static qd_status axes_of(const qd_onnx_reader *r, const qd_onnx_node *n, int rank, int more, bool on[QD_MAX_RANK],
                         int *count, qd_err *err)
{
    int64_t axes[QD_ONNX_LIST];
    qd_status st = qd_onnx_list(r, n, "axes", 1, 0, axes, count, err);
    memset(on, 0, QD_MAX_RANK * sizeof(*on));
    if (st)
        return st;
    if (more)
        rank += *count > 0 ? *count : 0;
    if (rank > QD_MAX_RANK)
        return qd_fail(err, QD_E_LIMIT, "the result has %d dimensions, the limit is %d", rank, QD_MAX_RANK);
    for (int k = 0; k < *count; k++) {
        const int64_t axis = axes[k] < 0 ? axes[k] + rank : axes[k];
        if (axis < 0 || axis >= rank || on[axis])
            return qd_fail(err, QD_E_FORMAT, "axis %lld of a value of rank %d", (long long)axes[k], rank);
        on[axis] = true;
    }
    return QD_OK;
}

qd_status qd_onnx_squeeze(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    qd_shape target[QD_ONNX_WORLDS];
    bool gone[QD_MAX_RANK];
    int count;
    const qd_onnx_number *v = qd_onnx_in(r, n, 0);
    qd_status st = axes_of(r, n, qd_onnx_shape_of(v, 0)->rank, false, gone, &count, err);
    if (st)
        return st;
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *x = qd_onnx_shape_of(v, w);
        target[w] = (qd_shape){ 0 };
        for (int k = 0; k < x->rank; k++) {
            if (count >= 0 && gone[k] && x->dim[k] != 1)
                return qd_fail(err, QD_E_FORMAT, "axis %d has size %lld, only 1 can be taken away", k,
                               (long long)x->dim[k]);
            if (count < 0 ? x->dim[k] != 1 : !gone[k])
                target[w].dim[target[w].rank++] = x->dim[k];
        }
    }
    return set_reshaped(r, n, target, err);
}

qd_status qd_onnx_unsqueeze(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    qd_shape target[QD_ONNX_WORLDS];
    bool fresh[QD_MAX_RANK];
    int count;
    const qd_onnx_number *v = qd_onnx_in(r, n, 0);
    qd_status st = axes_of(r, n, qd_onnx_shape_of(v, 0)->rank, true, fresh, &count, err);
    if (!st && count < 0)
        st = qd_fail(err, QD_E_FORMAT, "no axes are given");
    if (st)
        return st;
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *x = qd_onnx_shape_of(v, w);
        target[w] = (qd_shape){ .rank = x->rank + count };
        for (int k = 0, from = 0; k < target[w].rank; k++)
            target[w].dim[k] = fresh[k] ? 1 : x->dim[from++];
    }
    return set_reshaped(r, n, target, err);
}

static qd_node_id plane(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x, int rank)
{
    qd_shape target[QD_ONNX_WORLDS];
    if (x < 0)
        return -1;
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *s = qd_onnx_node_shape(r, x, w);
        target[w] = (qd_shape){ .rank = rank, .dim = { s->dim[0], s->dim[1], 1, 1 } };
        target[w].dim[rank - 1] = s->dim[s->rank - 1];
    }
    return qd_onnx_reshape(r, n, suffix, x, target);
}

qd_node_id qd_onnx_to_plane(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x)
{
    return plane(r, n, "plane", x, 4);
}

qd_node_id qd_onnx_from_plane(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x)
{
    return plane(r, n, "line", x, 3);
}

/* --- axes, parts --- */

qd_status qd_onnx_axis(int64_t given, int rank, int *axis, qd_err *err)
{
    if (given < -rank || given >= rank)
        return qd_fail(err, QD_E_FORMAT, "axis %lld is not one of a value of rank %d", (long long)given, rank);
    *axis = (int)(given < 0 ? given + rank : given);
    return QD_OK;
}

qd_status qd_onnx_transpose(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const int rank = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0)->rank;
    const qd_onnx_attr *a = qd_onnx_attr_find(n, "perm");
    int64_t perm[QD_MAX_RANK];
    bool still = true;
    if (a && (a->kind != QD_ONNX_INTS || a->n != (size_t)rank))
        return qd_fail(err, QD_E_FORMAT, "perm is no permutation of %d axes", rank);
    for (int k = 0; k < rank; k++) {
        perm[k] = a ? a->ints[k] : rank - 1 - k;
        still = still && perm[k] == k;
    }
    if (still)
        return qd_onnx_alias(r, n, 0, qd_onnx_in(r, n, 0), err);
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    return qd_onnx_set(
        r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_permute, QD_IN(x), QD_ATTRS(qd_attr_ints("perm", rank, perm))), err);
}

/* More values than a node of ours takes are put together in steps. */
qd_status qd_onnx_concat(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    qd_node_id part[QD_MAX_INPUTS];
    int have = 0, axis = 0;
    if (n->n_inputs == 1)
        return qd_onnx_alias(r, n, 0, qd_onnx_in(r, n, 0), err);
    for (int k = 0; k < n->n_inputs; k++)
        if (!qd_onnx_in(r, n, k))
            return qd_fail(err, QD_E_FORMAT, "input %d is left out", k);
    qd_status st =
        qd_onnx_axis(qd_onnx_attr_int(n, "axis", 1), qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0)->rank, &axis, err);
    if (st)
        return st;
    for (int k = 0; k < n->n_inputs; k++) {
        part[have++] = qd_onnx_node_of(r, n, k);
        if (k + 1 < n->n_inputs && have == QD_MAX_INPUTS) {
            part[0] = qd_onnx_add(r, n, "part", &qd_op_concat, part, have, QD_ATTRS(QD_INT("axis", axis)));
            have = 1;
        }
    }
    return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_concat, part, have, QD_ATTRS(QD_INT("axis", axis))),
                       err);
}

qd_node_id qd_onnx_cut(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x, int axis,
                       int64_t start, int64_t length, int64_t step)
{
    return qd_onnx_add(
        r, n, suffix, &qd_op_slice, QD_IN(x),
        QD_ATTRS(QD_INT("axis", axis), QD_INT("start", start), QD_INT("length", length), QD_INT("step", step)));
}

qd_status qd_onnx_split(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0), *again = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 1);
    int64_t sizes[QD_ONNX_LIST], start = 0;
    int axis = 0, count;
    qd_status st = qd_onnx_axis(qd_onnx_attr_int(n, "axis", 0), x->rank, &axis, err);
    if (!st)
        st = qd_onnx_list(r, n, "split", 1, 0, sizes, &count, err);
    if (st)
        return st;
    const int64_t d = x->dim[axis];
    if (d != again->dim[axis])
        return qd_fail(err, QD_E_UNSUPPORTED, "the batch is split");
    if (count >= 0 ? count != n->n_outputs : n->n_outputs < 1 || n->n_outputs > QD_ONNX_LIST)
        return qd_fail(err, QD_E_FORMAT, "%d sizes for %d outputs", count, n->n_outputs);
    const int64_t each = (d + n->n_outputs - 1) / n->n_outputs; /* the last may be smaller */
    for (int k = 0; k < n->n_outputs; k++) {
        const int64_t size = count >= 0 ? sizes[k] : each < d - start ? each : d - start;
        if (size < 1 || size > d - start)
            return qd_fail(err, QD_E_FORMAT, "part %d of %lld elements does not fit into %lld", k, (long long)size,
                           (long long)d);
        const qd_node_id id = qd_onnx_node_of(r, n, 0);
        st = size == d ? qd_onnx_alias(r, n, k, qd_onnx_in(r, n, 0), err)
                       : qd_onnx_set(r, n, k, qd_onnx_cut(r, n, NULL, id, axis, start, size, 1), err);
        if (st)
            return st;
        start += size;
    }
    return QD_OK;
}

/* starts, ends, axes, steps of Slice in one world. */
typedef struct cuts {
    int64_t start[QD_ONNX_LIST], end[QD_ONNX_LIST], axis[QD_ONNX_LIST], step[QD_ONNX_LIST];
    int n;
} cuts;

static qd_status read_cuts(const qd_onnx_reader *r, const qd_onnx_node *n, int world, cuts *c, qd_err *err)
{
    int n_end, n_axis, n_step;
    qd_status st = qd_onnx_list(r, n, "starts", 1, world, c->start, &c->n, err);
    if (!st)
        st = qd_onnx_list(r, n, "ends", 2, world, c->end, &n_end, err);
    if (!st)
        st = qd_onnx_list(r, n, "axes", 3, world, c->axis, &n_axis, err);
    if (!st)
        st = qd_onnx_list(r, n, NULL, 4, world, c->step, &n_step, err);
    if (st)
        return st;
    if (c->n < 0 || n_end != c->n || (n_axis >= 0 && n_axis != c->n) || (n_step >= 0 && n_step != c->n))
        return qd_fail(err, QD_E_FORMAT, "starts, ends, axes and steps differ in length");
    for (int k = 0; k < c->n; k++) {
        if (n_axis < 0)
            c->axis[k] = k;
        if (n_step < 0)
            c->step[k] = 1;
    }
    return QD_OK;
}

static int64_t within(int64_t v, int64_t d)
{
    v = v < 0 ? v + d : v;
    return v < 0 ? 0 : v > d ? d : v;
}

qd_status qd_onnx_slice(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    cuts c[QD_ONNX_WORLDS];
    qd_status st = QD_OK;
    for (int w = 0; w < QD_ONNX_WORLDS && !st; w++)
        st = read_cuts(r, n, w, &c[w], err);
    if (st)
        return st;
    if (c[0].n != c[1].n)
        return qd_fail(err, QD_E_UNSUPPORTED, "the number of axes depends on the batch");
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    bool cut = false;
    for (int k = 0; k < c[0].n && x >= 0; k++) {
        int64_t start[QD_ONNX_WORLDS], length[QD_ONNX_WORLDS];
        bool whole = true, to_end = true;
        int axis = 0;
        st = qd_onnx_axis(c[0].axis[k], qd_onnx_node_shape(r, x, 0)->rank, &axis, err);
        if (st)
            return st;
        const int64_t step = c[0].step[k];
        if (step < 1 || step > QD_MAX_ELEMENTS || c[1].step[k] != step || c[1].axis[k] != c[0].axis[k])
            return qd_fail(err, QD_E_UNSUPPORTED, "step %lld along axis %d", (long long)step, axis);
        for (int w = 0; w < QD_ONNX_WORLDS; w++) {
            const int64_t d = qd_onnx_node_shape(r, x, w)->dim[axis];
            start[w] = within(c[w].start[k], d);
            const int64_t end = within(c[w].end[k], d);
            if (end <= start[w])
                return qd_fail(err, QD_E_UNSUPPORTED, "nothing is left of axis %d", axis);
            length[w] = (end - start[w] - 1) / step + 1;
            to_end = to_end && end == d;
            whole = whole && start[w] == 0 && end == d && step == 1;
        }
        if (whole)
            continue;
        if (start[0] != start[1] || (!to_end && length[0] != length[1]))
            return qd_fail(err, QD_E_UNSUPPORTED, "the part of axis %d depends on the batch", axis);
        x = qd_onnx_cut(r, n, k + 1 < c[0].n ? "axis" : NULL, x, axis, start[0], to_end ? -1 : length[0], step);
        cut = true;
    }
    return cut || x < 0 ? qd_onnx_set(r, n, 0, x, err) : qd_onnx_alias(r, n, 0, qd_onnx_in(r, n, 0), err);
}
