/* onnx_fold_move.c - ONNX operators that move the elements of constants: reshape and its kin, slices, copies (Operators.md). */
#include "model/onnx_fold.h"

#include <string.h>

/* out[i] = in[offset + sum index_k * stride_k]; out is made with `shape`. */
static qd_status move(qd_onnx_world *w, const qd_tensor *in, const qd_shape *shape, int64_t offset,
                      const int64_t *stride, qd_err *err)
{
    qd_status st = qd_fold_make(w, in->dtype, shape, err);
    if (st)
        return st;
    const size_t bytes = qd_dtype_bits(in->dtype) / 8;
    int64_t index[QD_MAX_RANK] = { 0 }, at = offset;
    char *dst = w->out->data;
    for (int64_t left = qd_tensor_count(w->out); left > 0; left--) {
        memcpy(dst, (const char *)in->data + (size_t)at * bytes, bytes);
        dst += bytes;
        for (int k = shape->rank - 1; k >= 0; k--) {
            at += stride[k];
            if (++index[k] < shape->dim[k])
                break;
            at -= stride[k] * shape->dim[k];
            index[k] = 0;
        }
    }
    return QD_OK;
}

/* The same elements under another shape. */
static qd_status reshaped(qd_onnx_world *w, const qd_shape *shape, qd_err *err)
{
    if (qd_fold_count(shape) != qd_tensor_count(w->in[0]))
        return qd_fail(err, QD_E_FORMAT, "a constant of %lld elements cannot take a shape of %lld",
                       (long long)qd_tensor_count(w->in[0]), (long long)qd_fold_count(shape));
    int64_t stride[QD_MAX_RANK];
    qd_fold_strides(shape, stride);
    return move(w, w->in[0], shape, 0, stride, err);
}

qd_status qd_fold_reshape(qd_onnx_world *w, qd_err *err)
{
    const int64_t *list;
    int64_t n, known = 1;
    qd_status st = qd_fold_list_in(w, 1, &list, &n, err);
    if (st)
        return st;
    if (n < 0 || n > QD_MAX_RANK)
        return qd_fail(err, QD_E_FORMAT, "the target shape has %lld dimensions", (long long)n);
    qd_shape s = { .rank = (int)n };
    int open = -1;
    for (int k = 0; k < s.rank; k++) {
        s.dim[k] = list[k] == 0 && k < w->in[0]->shape.rank && !qd_onnx_attr_int(w->n, "allowzero", 0)
                       ? w->in[0]->shape.dim[k]
                       : list[k];
        if (s.dim[k] == -1 && open < 0)
            open = k;
        else if (s.dim[k] < 0 || __builtin_mul_overflow(known, s.dim[k], &known))
            return qd_fail(err, QD_E_FORMAT, "the target shape has %lld at %d", (long long)s.dim[k], k);
    }
    if (open >= 0)
        s.dim[open] = known > 0 ? qd_tensor_count(w->in[0]) / known : 0;
    return reshaped(w, &s, err);
}

qd_status qd_fold_flatten(qd_onnx_world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    const int64_t given = qd_onnx_attr_int(w->n, "axis", 1), axis = given < 0 ? given + x->rank : given;
    qd_shape s = QD_SHAPE(1, 1);
    if (axis < 0 || axis > x->rank)
        return qd_fail(err, QD_E_FORMAT, "axis %lld is not one of a value of rank %d", (long long)given, x->rank);
    for (int k = 0; k < x->rank; k++)
        s.dim[k >= axis] *= x->dim[k];
    return reshaped(w, &s, err);
}

qd_status qd_fold_squeeze(qd_onnx_world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    const int64_t *axes;
    int64_t n;
    bool gone[QD_MAX_RANK] = { false };
    qd_status st = qd_fold_list(w, "axes", 1, &axes, &n, err);
    for (int64_t k = 0; k < n && !st; k++) {
        int axis = 0;
        st = qd_fold_axis(axes[k], x->rank, &axis, err);
        if (!st)
            gone[axis] = true;
    }
    if (st)
        return st;
    qd_shape s = { 0 };
    for (int k = 0; k < x->rank; k++)
        if (n < 0 ? x->dim[k] != 1 : !gone[k])
            s.dim[s.rank++] = x->dim[k];
    return reshaped(w, &s, err);
}

qd_status qd_fold_unsqueeze(qd_onnx_world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    const int64_t *axes;
    int64_t n;
    bool fresh[QD_MAX_RANK] = { false };
    qd_status st = qd_fold_list(w, "axes", 1, &axes, &n, err);
    if (st)
        return st;
    if (n < 0 || n + x->rank > QD_MAX_RANK)
        return qd_fail(err, QD_E_LIMIT, "a constant of rank %d with %lld more axes", x->rank, (long long)n);
    qd_shape s = { .rank = x->rank + (int)n };
    for (int64_t k = 0; k < n && !st; k++) {
        int axis = 0;
        st = qd_fold_axis(axes[k], s.rank, &axis, err);
        if (!st)
            fresh[axis] = true;
    }
    if (st)
        return st;
    for (int k = 0, from = 0; k < s.rank; k++)
        s.dim[k] = fresh[k] || from >= x->rank ? 1 : x->dim[from++];
    return reshaped(w, &s, err);
}

qd_status qd_fold_transpose(qd_onnx_world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    const qd_onnx_attr *perm = qd_onnx_attr_find(w->n, "perm");
    int64_t own[QD_MAX_RANK], stride[QD_MAX_RANK];
    qd_shape s = { .rank = x->rank };
    unsigned seen = 0;
    qd_fold_strides(x, own);
    for (int k = 0; k < x->rank; k++) {
        const int64_t from =
            perm && perm->kind == QD_ONNX_INTS && perm->n == (size_t)x->rank ? perm->ints[k] : x->rank - 1 - k;
        if (from < 0 || from >= x->rank || seen & 1u << from)
            return qd_fail(err, QD_E_FORMAT, "perm is no permutation of %d axes", x->rank);
        seen |= 1u << from;
        s.dim[k] = x->dim[from];
        stride[k] = own[from];
    }
    return move(w, w->in[0], &s, 0, stride, err);
}

qd_status qd_fold_expand(qd_onnx_world *w, qd_err *err)
{
    int64_t stride[QD_MAX_RANK];
    qd_shape s, r;
    qd_status st = qd_fold_shape_in(w, 1, &s, err);
    if (!st)
        st = qd_fold_broadcast(&w->in[0]->shape, &s, &r, err);
    if (st)
        return st;
    qd_fold_broadcast_strides(&w->in[0]->shape, &r, stride);
    return move(w, w->in[0], &r, 0, stride, err);
}

/* Axis k of size d repeated r times is [r, d] with a stride of 0 first. */
qd_status qd_fold_tile(qd_onnx_world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    qd_shape repeats, whole = *x, pairs = { .rank = 2 * x->rank };
    int64_t own[QD_MAX_RANK], stride[QD_MAX_RANK];
    qd_status st = qd_fold_shape_in(w, 1, &repeats, err);
    if (st)
        return st;
    if (repeats.rank != x->rank || 2 * x->rank > QD_MAX_RANK)
        return qd_fail(err, QD_E_UNSUPPORTED, "%d repeats of a value of rank %d", repeats.rank, x->rank);
    qd_fold_strides(x, own);
    for (int k = 0; k < x->rank; k++) {
        pairs.dim[2 * k] = repeats.dim[k];
        pairs.dim[2 * k + 1] = x->dim[k];
        stride[2 * k] = 0;
        stride[2 * k + 1] = own[k];
        if (__builtin_mul_overflow(x->dim[k], repeats.dim[k], &whole.dim[k]))
            return qd_fail(err, QD_E_LIMIT, "%lld repeats of axis %d", (long long)repeats.dim[k], k);
    }
    st = move(w, w->in[0], &pairs, 0, stride, err);
    if (!st)
        w->out->shape = whole;
    return st;
}

qd_status qd_fold_slice(qd_onnx_world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    const int64_t *starts, *ends, *axes, *steps;
    int64_t n, n_ends, n_axes, n_steps, stride[QD_MAX_RANK], offset = 0;
    qd_status st = qd_fold_list(w, "starts", 1, &starts, &n, err);
    if (!st)
        st = qd_fold_list(w, "ends", 2, &ends, &n_ends, err);
    if (!st)
        st = qd_fold_list(w, "axes", 3, &axes, &n_axes, err);
    if (!st)
        st = qd_fold_list_in(w, 4, &steps, &n_steps, err);
    if (st)
        return st;
    if (n < 0 || n_ends != n || (axes && n_axes != n) || (steps && n_steps != n) || (!axes && n > x->rank))
        return qd_fail(err, QD_E_FORMAT, "starts, ends, axes and steps differ in length");
    qd_shape s = *x;
    qd_fold_strides(x, stride);
    for (int64_t k = 0; k < n; k++) {
        int axis = 0;
        st = qd_fold_axis(axes ? axes[k] : k, x->rank, &axis, err);
        if (st)
            return st;
        const int64_t d = s.dim[axis], step = steps ? steps[k] : 1;
        if (step == 0 || step == INT64_MIN)
            return qd_fail(err, QD_E_FORMAT, "step %lld", (long long)step);
        const int64_t lowest = step > 0 ? 0 : -1, highest = step > 0 ? d : d - 1;
        int64_t from = starts[k] < 0 ? starts[k] + d : starts[k], to = ends[k] < 0 ? ends[k] + d : ends[k];
        from = from < (step > 0 ? 0 : 0) ? 0 : from > highest ? highest : from;
        to = to < lowest ? lowest : to > highest ? (step > 0 ? d : d - 1) : to;
        const int64_t span = step > 0 ? to - from : from - to, size = step > 0 ? step : -step;
        s.dim[axis] = d > 0 && span > 0 ? (span - 1) / size + 1 : 0;
        offset += from * stride[axis];
        if (s.dim[axis] > 1)
            stride[axis] *= step;
    }
    return move(w, w->in[0], &s, offset, stride, err);
}

qd_status qd_fold_concat(qd_onnx_world *w, qd_err *err)
{
    int axis = 0;
    qd_shape s = w->in[0]->shape;
    qd_status st = qd_fold_axis(qd_onnx_attr_int(w->n, "axis", 0), s.rank, &axis, err);
    if (st)
        return st;
    for (int k = 1; k < w->n_in; k++) {
        if (!w->in[k] || w->in[k]->dtype != w->in[0]->dtype || w->in[k]->shape.rank != s.rank)
            return qd_fail(err, QD_E_FORMAT, "constants of different kinds are put together");
        for (int j = 0; j < s.rank; j++)
            if (j != axis && w->in[k]->shape.dim[j] != s.dim[j])
                return qd_fail(err, QD_E_FORMAT, "constants of different shapes are put together");
        s.dim[axis] += w->in[k]->shape.dim[axis];
    }
    st = qd_fold_make(w, w->in[0]->dtype, &s, err);
    if (st || qd_fold_count(&s) == 0)
        return st;
    int64_t outer = 1;
    for (int k = 0; k < axis; k++)
        outer *= s.dim[k];
    char *dst = w->out->data;
    for (int64_t o = 0; o < outer; o++)
        for (int k = 0; k < w->n_in; k++) {
            const size_t bytes = qd_tensor_bytes(w->in[k]) / (size_t)outer;
            memcpy(dst, (const char *)w->in[k]->data + (size_t)o * bytes, bytes);
            dst += bytes;
        }
    return QD_OK;
}
