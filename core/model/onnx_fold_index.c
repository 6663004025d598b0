/* onnx_fold_index.c - ONNX operators that pick elements of constants by index, or by where they lie (Operators.md). */
#include "model/onnx_fold.h"

#include <string.h>

qd_status qd_fold_gather(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0], *index = w->in[1];
    int axis = 0;
    qd_status st = qd_fold_axis(qd_onnx_attr_int(w->n, "axis", 0), x->shape.rank, &axis, err);
    if (st)
        return st;
    if (index->dtype != QD_I64 || x->shape.rank - 1 + index->shape.rank > QD_MAX_RANK)
        return qd_fail(err, QD_E_FORMAT, "the index must be whole numbers, the result of at most %d dimensions",
                       QD_MAX_RANK);
    qd_shape s = { 0 };
    int64_t outer = 1, inner = 1;
    for (int k = 0; k < x->shape.rank; k++) {
        if (k == axis) {
            for (int j = 0; j < index->shape.rank; j++)
                s.dim[s.rank++] = index->shape.dim[j];
            continue;
        }
        s.dim[s.rank++] = x->shape.dim[k];
        if (k < axis)
            outer *= x->shape.dim[k];
        else
            inner *= x->shape.dim[k];
    }
    st = qd_fold_make(w, x->dtype, &s, err);
    if (st || qd_fold_count(&s) == 0)
        return st;
    const int64_t d = x->shape.dim[axis], n = qd_tensor_count(index);
    const size_t bytes = (size_t)inner * (qd_dtype_bits(x->dtype) / 8);
    char *dst = w->out->data;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t k = 0; k < n; k++) {
            const int64_t given = qd_fold_whole(index, k), at = given < 0 ? given + d : given;
            if (at < 0 || at >= d)
                return qd_fail(err, QD_E_FORMAT, "index %lld is outside 0..%lld", (long long)given, (long long)d - 1);
            memcpy(dst, (const char *)x->data + (size_t)(o * d + at) * bytes, bytes);
            dst += bytes;
        }
    return QD_OK;
}

static qd_status held(int64_t given, int64_t d, int64_t *at, qd_err *err)
{
    *at = given < 0 ? given + d : given;
    if (*at < 0 || *at >= d)
        return qd_fail(err, QD_E_FORMAT, "index %lld is outside 0..%lld", (long long)given, (long long)d - 1);
    return QD_OK;
}

/* Rows of index (its last axis) say where in x, each naming a block of `inner` elements. */
typedef struct rows {
    int64_t count, depth, inner;
} rows;

static qd_status rows_of(const qd_tensor *x, const qd_tensor *index, rows *r, qd_err *err)
{
    const int rank = index->shape.rank;
    if (index->dtype != QD_I64 || rank < 1 || index->shape.dim[rank - 1] < 1 ||
        index->shape.dim[rank - 1] > x->shape.rank)
        return qd_fail(err, QD_E_FORMAT, "the index must be rows of at most %d whole numbers", x->shape.rank);
    *r = (rows){ .count = qd_tensor_count(index) / index->shape.dim[rank - 1],
                 .depth = index->shape.dim[rank - 1],
                 .inner = 1 };
    for (int k = (int)r->depth; k < x->shape.rank; k++)
        r->inner *= x->shape.dim[k];
    return QD_OK;
}

/* First element of the block that row k names. */
static qd_status block_at(const qd_tensor *x, const qd_tensor *index, const rows *r, int64_t k, int64_t *at,
                          qd_err *err)
{
    *at = 0;
    for (int64_t j = 0; j < r->depth; j++) {
        int64_t i;
        qd_status st = held(qd_fold_whole(index, k * r->depth + j), x->shape.dim[j], &i, err);
        if (st)
            return st;
        *at = *at * x->shape.dim[j] + i;
    }
    *at *= r->inner;
    return QD_OK;
}

qd_status qd_fold_gather_nd(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0], *index = w->in[1];
    rows r = { 0 };
    qd_status st = rows_of(x, index, &r, err);
    if (!st && qd_onnx_attr_int(w->n, "batch_dims", 0))
        st = qd_fail(err, QD_E_UNSUPPORTED, "batch_dims");
    if (st)
        return st;
    qd_shape s = { 0 };
    if (index->shape.rank - 1 + x->shape.rank - r.depth > QD_MAX_RANK)
        return qd_fail(err, QD_E_LIMIT, "a result of more than %d dimensions", QD_MAX_RANK);
    for (int k = 0; k + 1 < index->shape.rank; k++)
        s.dim[s.rank++] = index->shape.dim[k];
    for (int k = (int)r.depth; k < x->shape.rank; k++)
        s.dim[s.rank++] = x->shape.dim[k];
    st = qd_fold_make(w, x->dtype, &s, err);
    if (st || qd_tensor_count(w->out) == 0)
        return st;
    const size_t bytes = (size_t)r.inner * (qd_dtype_bits(x->dtype) / 8), one = qd_dtype_bits(x->dtype) / 8;
    for (int64_t k = 0; k < r.count; k++) {
        int64_t at;
        st = block_at(x, index, &r, k, &at, err);
        if (st)
            return st;
        memcpy((char *)w->out->data + (size_t)k * bytes, (const char *)x->data + (size_t)at * one, bytes);
    }
    return QD_OK;
}

qd_status qd_fold_scatter_nd(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0], *index = w->in[1], *updates = w->in[2];
    rows r = { 0 };
    qd_status st = rows_of(x, index, &r, err);
    if (!st && strcmp(qd_onnx_attr_string(w->n, "reduction", "none"), "none") != 0)
        st = qd_fail(err, QD_E_UNSUPPORTED, "reduction '%.40s'", qd_onnx_attr_string(w->n, "reduction", ""));
    int64_t want = 0;
    if (!st && (updates->dtype != x->dtype || __builtin_mul_overflow(r.count, r.inner, &want) ||
                qd_tensor_count(updates) != want))
        st = qd_fail(err, QD_E_FORMAT, "%lld updates for %lld blocks", (long long)qd_tensor_count(updates),
                     (long long)r.count);
    if (!st)
        st = qd_fold_make(w, x->dtype, &x->shape, err);
    if (st)
        return st;
    const size_t one = qd_dtype_bits(x->dtype) / 8, bytes = (size_t)r.inner * one;
    if (qd_tensor_bytes(x))
        memcpy(w->out->data, x->data, qd_tensor_bytes(x));
    for (int64_t k = 0; k < r.count && bytes; k++) {
        int64_t at;
        st = block_at(x, index, &r, k, &at, err);
        if (st)
            return st;
        memcpy((char *)w->out->data + (size_t)at * one, (const char *)updates->data + (size_t)k * bytes, bytes);
    }
    return QD_OK;
}

qd_status qd_fold_gather_elements(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0], *index = w->in[1];
    int64_t stride[2][QD_MAX_RANK], at[2] = { 0 }, place[QD_MAX_RANK] = { 0 };
    int axis = 0;
    qd_status st = qd_fold_axis(qd_onnx_attr_int(w->n, "axis", 0), x->shape.rank, &axis, err);
    if (st)
        return st;
    if (index->dtype != QD_I64 || index->shape.rank != x->shape.rank)
        return qd_fail(err, QD_E_FORMAT, "the index must be whole numbers, of rank %d", x->shape.rank);
    for (int k = 0; k < x->shape.rank; k++)
        if (k != axis && index->shape.dim[k] > x->shape.dim[k])
            return qd_fail(err, QD_E_FORMAT, "the index has %lld elements along axis %d of size %lld",
                           (long long)index->shape.dim[k], k, (long long)x->shape.dim[k]);
    st = qd_fold_make(w, x->dtype, &index->shape, err);
    if (st || qd_tensor_count(w->out) == 0)
        return st;
    qd_fold_strides(&x->shape, stride[0]);
    qd_fold_strides(&index->shape, stride[1]);
    const int64_t along = stride[0][axis];
    const size_t one = qd_dtype_bits(x->dtype) / 8;
    stride[0][axis] = 0;
    do {
        int64_t i;
        st = held(qd_fold_whole(index, at[1]), x->shape.dim[axis], &i, err);
        if (st)
            return st;
        memcpy((char *)w->out->data + (size_t)at[1] * one, (const char *)x->data + (size_t)(at[0] + i * along) * one,
               one);
    } while (qd_fold_next(&index->shape, place, 2, at, (const int64_t(*)[QD_MAX_RANK])stride));
    return QD_OK;
}

/* Trilu: what lies above diagonal k, or below it, of the last two axes. */
qd_status qd_fold_triangle(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0];
    const bool upper = qd_onnx_attr_int(w->n, "upper", 1) != 0;
    const int64_t *list;
    int64_t n, diagonal = 0;
    qd_status st = qd_fold_list_in(w, 1, &list, &n, err);
    if (!st && (x->shape.rank < 2 || (list && n != 1)))
        st = qd_fail(err, QD_E_FORMAT, "a triangle of a value of rank %d", x->shape.rank);
    if (!st)
        st = qd_fold_make(w, x->dtype, &x->shape, err);
    if (st)
        return st;
    if (list)
        diagonal = list[0] < -QD_MAX_ELEMENTS  ? -QD_MAX_ELEMENTS
                   : list[0] > QD_MAX_ELEMENTS ? QD_MAX_ELEMENTS
                                               : list[0];
    const int64_t height = x->shape.dim[x->shape.rank - 2], columns = x->shape.dim[x->shape.rank - 1];
    const size_t one = qd_dtype_bits(x->dtype) / 8;
    for (int64_t k = 0, count = qd_tensor_count(x); k < count; k++) {
        const int64_t column = k % columns, row = k / columns % height;
        if (upper ? column - row >= diagonal : column - row <= diagonal)
            memcpy((char *)w->out->data + (size_t)k * one, (const char *)x->data + (size_t)k * one, one);
    }
    return QD_OK;
}
