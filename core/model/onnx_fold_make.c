/* onnx_fold_make.c - ONNX operators that make constants: shapes of values, ranges, tables (Operators.md). */
#include "model/onnx_fold.h"

#include <math.h>
#include <string.h>

qd_status qd_fold_shape(qd_onnx_world *w, qd_err *err)
{
    const int64_t rank = w->shape->rank;
    int64_t from = qd_onnx_attr_int(w->n, "start", 0), to = qd_onnx_attr_int(w->n, "end", rank);
    from = from < -rank ? 0 : from < 0 ? from + rank : from > rank ? rank : from;
    to = to < -rank ? 0 : to < 0 ? to + rank : to > rank ? rank : to;
    const qd_shape s = QD_SHAPE(to > from ? to - from : 0);
    qd_status st = qd_fold_make(w, QD_I64, &s, err);
    for (int64_t k = from; k < to && !st; k++)
        ((int64_t *)w->out->data)[k - from] = w->shape->dim[k];
    return st;
}

qd_status qd_fold_size(qd_onnx_world *w, qd_err *err)
{
    qd_status st = qd_fold_make(w, QD_I64, &(qd_shape){ 0 }, err);
    if (!st)
        *(int64_t *)w->out->data = qd_fold_count(w->shape);
    return st;
}

qd_status qd_fold_constant(qd_onnx_world *w, qd_err *err)
{
    const qd_onnx_attr *a = w->n->n_attrs ? &w->n->attr[0] : NULL;
    qd_status st = QD_OK;
    if (a && a->kind == QD_ONNX_TENSOR) {
        qd_tensor_share(w->out, &a->t);
    } else if (a && (a->kind == QD_ONNX_FLOAT || a->kind == QD_ONNX_INT)) {
        st = qd_fold_make(w, a->kind == QD_ONNX_FLOAT ? QD_F32 : QD_I64, &(qd_shape){ 0 }, err);
        if (!st && a->kind == QD_ONNX_FLOAT)
            *qd_f32(w->out) = a->f;
        else if (!st)
            *(int64_t *)w->out->data = a->i;
    } else if (a && (a->kind == QD_ONNX_FLOATS || a->kind == QD_ONNX_INTS)) {
        st = qd_fold_make(w, a->kind == QD_ONNX_FLOATS ? QD_F32 : QD_I64,
                          &(qd_shape){ .rank = 1, .dim = { (int64_t)a->n } }, err);
        if (!st && a->n)
            memcpy(w->out->data, a->kind == QD_ONNX_FLOATS ? (const void *)a->floats : (const void *)a->ints,
                   qd_tensor_bytes(w->out));
    } else {
        st = qd_fail(err, QD_E_UNSUPPORTED, "a constant that is neither a tensor nor numbers");
    }
    return st;
}

qd_status qd_fold_constant_of_shape(qd_onnx_world *w, qd_err *err)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(w->n, "value");
    qd_shape s;
    qd_status st = qd_fold_shape_in(w, 0, &s, err);
    if (!st && a && (a->kind != QD_ONNX_TENSOR || qd_tensor_count(&a->t) != 1))
        st = qd_fail(err, QD_E_FORMAT, "the value is not one number");
    if (!st)
        st = qd_fold_make(w, a ? a->t.dtype : QD_F32, &s, err);
    if (st || !a)
        return st;
    const size_t one = qd_dtype_bits(a->t.dtype) / 8;
    for (int64_t k = 0; k < qd_tensor_count(w->out); k++)
        memcpy((char *)w->out->data + (size_t)k * one, a->t.data, one);
    return QD_OK;
}

qd_status qd_fold_range(qd_onnx_world *w, qd_err *err)
{
    double v[3];
    for (int k = 0; k < 3; k++) {
        if (!w->in[k] || qd_tensor_count(w->in[k]) != 1 || w->in[k]->dtype != w->in[0]->dtype)
            return qd_fail(err, QD_E_FORMAT, "start, limit and delta must be one number each, of one kind");
        v[k] = qd_fold_real(w->in[k], 0);
    }
    const double n = ceil((v[1] - v[0]) / v[2]);
    if (!isfinite(n) || n > (double)QD_FOLD_GROWN)
        return qd_fail(err, QD_E_LIMIT, "from %g to %g by %g", v[0], v[1], v[2]);
    const qd_shape s = QD_SHAPE(n > 0 ? (int64_t)n : 0);
    qd_status st = qd_fold_make(w, w->in[0]->dtype == QD_F32 ? QD_F32 : QD_I64, &s, err);
    for (int64_t k = 0; k < s.dim[0] && !st; k++)
        if (w->out->dtype == QD_F32)
            qd_f32(w->out)[k] = (float)(v[0] + (double)k * v[2]);
        else
            ((int64_t *)w->out->data)[k] = (int64_t)(v[0] + (double)k * v[2]);
    return st;
}

/* Ones on a diagonal of zeros, of the first input's shape. */
qd_status qd_fold_eye(qd_onnx_world *w, qd_err *err)
{
    const int64_t diagonal = qd_onnx_attr_int(w->n, "k", 0);
    qd_dtype dtype = QD_F32;
    if (w->shape->rank != 2 || diagonal < -QD_MAX_ELEMENTS || diagonal > QD_MAX_ELEMENTS ||
        !qd_onnx_type_kept((int)qd_onnx_attr_int(w->n, "dtype", QD_ONNX_TYPE_FLOAT), &dtype) ||
        (dtype != QD_F32 && dtype != QD_I64))
        return qd_fail(err, QD_E_UNSUPPORTED, "ones on diagonal %lld of a value of rank %d, or of another type",
                       (long long)diagonal, w->shape->rank);
    qd_status st = qd_fold_make(w, dtype, w->shape, err);
    for (int64_t k = 0; !st && k < w->shape->dim[0]; k++) {
        const int64_t column = k + diagonal, at = k * w->shape->dim[1] + column;
        if (column < 0 || column >= w->shape->dim[1])
            continue;
        if (dtype == QD_F32)
            qd_f32(w->out)[at] = 1.0f;
        else
            ((int64_t *)w->out->data)[at] = 1;
    }
    return st;
}

/* values[1] where the index says, else values[0], along a new axis of that depth. */
qd_status qd_fold_one_hot(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *index = w->in[0], *depth = w->in[1], *values = w->in[2];
    const int rank = index->shape.rank + 1;
    int axis = 0;
    if (rank > QD_MAX_RANK || qd_tensor_count(depth) != 1 || qd_tensor_count(values) != 2)
        return qd_fail(err, QD_E_FORMAT, "one depth and two values are read, and at most %d axes", QD_MAX_RANK);
    const int64_t d = qd_fold_to_whole(qd_fold_real(depth, 0));
    qd_status st = qd_fold_axis(qd_onnx_attr_int(w->n, "axis", -1), rank, &axis, err);
    if (!st && d < 0)
        st = qd_fail(err, QD_E_FORMAT, "depth %lld", (long long)d);
    if (st)
        return st;
    qd_shape s = { .rank = rank };
    int64_t inner = 1;
    for (int k = 0, from = 0; k < rank; k++) {
        s.dim[k] = k == axis ? d : index->shape.dim[from++];
        inner *= k > axis ? s.dim[k] : 1;
    }
    st = qd_fold_make(w, values->dtype, &s, err);
    const size_t one = qd_dtype_bits(values->dtype) / 8;
    for (int64_t k = 0; !st && k < qd_tensor_count(w->out); k++) {
        const int64_t at = k / (inner * d) * inner + k % inner;
        const int64_t given = qd_fold_to_whole(qd_fold_real(index, at)), hot = given < 0 ? given + d : given;
        memcpy((char *)w->out->data + (size_t)k * one, (const char *)values->data + (k / inner % d == hot ? one : 0),
               one);
    }
    return st;
}

/* Where a constant is not zero: one column for each element, one row for each axis. */
qd_status qd_fold_non_zero(qd_onnx_world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0];
    int64_t found = 0;
    for (int64_t k = 0; k < qd_tensor_count(x); k++)
        found += qd_fold_real(x, k) != 0.0;
    const qd_shape s = QD_SHAPE(x->shape.rank, found);
    qd_status st = qd_fold_make(w, QD_I64, &s, err);
    for (int64_t k = 0, at = 0; !st && k < qd_tensor_count(x); k++) {
        if (qd_fold_real(x, k) == 0.0)
            continue;
        int64_t rest = k;
        for (int j = x->shape.rank - 1; j >= 0; j--) {
            ((int64_t *)w->out->data)[j * found + at] = rest % x->shape.dim[j];
            rest /= x->shape.dim[j];
        }
        at++;
    }
    return st;
}
