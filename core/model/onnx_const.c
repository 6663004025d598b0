/* onnx_const.c - constants of an ONNX graph worked out while reading: shape arithmetic, masks, tables (onnx Operators.md). */
#include "model/onnx_int.h"

#include <math.h>
#include <string.h>

#define MAX_GROWN ((int64_t)1 << 24) /* elements of a constant that is larger than what it is made of */

const int64_t qd_onnx_batch[QD_ONNX_WORLDS] = { 3, 7 };

void qd_onnx_number_clear(qd_onnx_number *v)
{
    for (int w = 0; w < QD_ONNX_WORLDS; w++)
        qd_tensor_clear(&v->t[w]);
    *v = (qd_onnx_number){ .id = -1 };
}

void qd_onnx_number_share(qd_onnx_number *dst, const qd_onnx_number *src)
{
    *dst = *src;
    for (int w = 0; w < QD_ONNX_WORLDS; w++)
        if (src->constant)
            qd_tensor_share(&dst->t[w], &src->t[w]);
}

bool qd_onnx_number_fixed(const qd_onnx_number *v)
{
    return v->constant && qd_shape_equal(&v->t[0].shape, &v->t[1].shape) &&
           (v->t[0].data == v->t[1].data || memcmp(v->t[0].data, v->t[1].data, qd_tensor_bytes(&v->t[0])) == 0);
}

int64_t qd_onnx_symbol(int64_t a, int64_t b, int64_t *times)
{
    *times = 0;
    if (a == b)
        return a;
    if (a > 0 && b > 0 && a % qd_onnx_batch[0] == 0 && b % qd_onnx_batch[1] == 0 &&
        a / qd_onnx_batch[0] == b / qd_onnx_batch[1]) {
        *times = a / qd_onnx_batch[0];
        return -1;
    }
    return -2;
}

/* --- one world --- */

/* What an op is worked out from and into, all constants of one batch size. */
typedef struct world {
    const qd_onnx_node *n;
    int64_t opset;
    const qd_tensor *in[QD_MAX_INPUTS]; /* NULL = left out */
    int n_in;
    const qd_shape *shape; /* of the first input, for Shape and Size */
    qd_budget *budget;
    qd_tensor *out;
} world;

static int64_t i64_at(const qd_tensor *t, int64_t k)
{
    return ((const int64_t *)t->data)[k];
}

/* Elements; too many when the dims other than 0 multiply to more than QD_MAX_ELEMENTS, so that products of some of them fit. */
static int64_t count_of(const qd_shape *s)
{
    int64_t n = 1;
    bool empty = false;
    for (int k = 0; k < s->rank; k++) {
        empty = empty || s->dim[k] == 0;
        if (s->dim[k] && (__builtin_mul_overflow(n, s->dim[k], &n) || n > QD_MAX_ELEMENTS))
            return QD_MAX_ELEMENTS + 1;
    }
    return empty ? 0 : n;
}

static qd_status make(world *w, qd_dtype dtype, const qd_shape *shape, qd_err *err)
{
    int64_t most = MAX_GROWN;
    for (int k = 0; k < w->n_in; k++)
        if (w->in[k] && qd_tensor_count(w->in[k]) > most)
            most = qd_tensor_count(w->in[k]);
    if (count_of(shape) > most)
        return qd_fail(err, QD_E_LIMIT, "the constant has more than %lld elements", (long long)most);
    return qd_tensor_init(w->out, dtype, shape, w->budget, err);
}

/* A list of whole numbers in input k. */
static qd_status list_in(const world *w, int k, const int64_t **list, int64_t *n, qd_err *err)
{
    const qd_tensor *t = k < w->n_in ? w->in[k] : NULL;
    *list = NULL;
    *n = -1;
    if (!t)
        return QD_OK;
    if (t->dtype != QD_I64 || t->shape.rank > 1)
        return qd_fail(err, QD_E_FORMAT, "input %d must be a list of whole numbers", k);
    *list = t->data;
    *n = qd_tensor_count(t);
    return QD_OK;
}

/* A list from an attribute or, since some opset, from input k. */
static qd_status list_of(const world *w, const char *name, int k, const int64_t **list, int64_t *n, qd_err *err)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(w->n, name);
    if (!a || a->kind != QD_ONNX_INTS)
        return list_in(w, k, list, n, err);
    *list = a->ints;
    *n = (int64_t)a->n;
    return QD_OK;
}

static qd_status axis_of(int64_t given, int rank, int *axis, qd_err *err)
{
    if (given < -rank || given >= rank)
        return qd_fail(err, QD_E_FORMAT, "axis %lld is not one of a value of rank %d", (long long)given, rank);
    *axis = (int)(given < 0 ? given + rank : given);
    return QD_OK;
}

/* --- moving elements --- */

/* out[i] = in[offset + sum index_k * stride_k]; out is made with `shape`. */
static qd_status move(world *w, const qd_tensor *in, const qd_shape *shape, int64_t offset, const int64_t *stride,
                      qd_err *err)
{
    qd_status st = make(w, in->dtype, shape, err);
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

static void strides_of(const qd_shape *s, int64_t *stride)
{
    int64_t step = 1;
    for (int k = s->rank - 1; k >= 0; k--) {
        stride[k] = step;
        step *= s->dim[k];
    }
}

/* Strides of `in` broadcast to `out`: 0 where repeated. */
static bool broadcast_strides(const qd_shape *in, const qd_shape *out, int64_t *stride)
{
    int64_t own[QD_MAX_RANK];
    if (in->rank > out->rank)
        return false;
    strides_of(in, own);
    for (int k = 0; k < out->rank; k++) {
        const int from = k - (out->rank - in->rank);
        stride[k] = from < 0 || in->dim[from] == 1 ? 0 : own[from];
        if (from >= 0 && in->dim[from] != 1 && in->dim[from] != out->dim[k])
            return false;
    }
    return true;
}

static qd_status broadcast_shape(const qd_shape *a, const qd_shape *b, qd_shape *out, qd_err *err)
{
    const int rank = a->rank > b->rank ? a->rank : b->rank;
    qd_shape r = { .rank = rank };
    for (int k = 0; k < rank; k++) {
        const int ka = k - (rank - a->rank), kb = k - (rank - b->rank);
        const int64_t da = ka < 0 ? 1 : a->dim[ka], db = kb < 0 ? 1 : b->dim[kb];
        if (da != db && da != 1 && db != 1)
            return qd_fail(err, QD_E_FORMAT, "constants of %lld and %lld elements along one axis do not broadcast",
                           (long long)da, (long long)db);
        r.dim[k] = da == 1 ? db : da;
    }
    *out = r;
    return QD_OK;
}

/* The same elements under another shape. */
static qd_status reshaped(world *w, const qd_shape *shape, qd_err *err)
{
    if (count_of(shape) != qd_tensor_count(w->in[0]))
        return qd_fail(err, QD_E_FORMAT, "a constant of %lld elements cannot take a shape of %lld",
                       (long long)qd_tensor_count(w->in[0]), (long long)count_of(shape));
    int64_t stride[QD_MAX_RANK];
    strides_of(shape, stride);
    return move(w, w->in[0], shape, 0, stride, err);
}

static qd_status fold_reshape(world *w, qd_err *err)
{
    const int64_t *list;
    int64_t n, known = 1;
    qd_status st = list_in(w, 1, &list, &n, err);
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

static qd_status fold_squeeze(world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    const int64_t *axes;
    int64_t n;
    bool gone[QD_MAX_RANK] = { false };
    qd_status st = list_of(w, "axes", 1, &axes, &n, err);
    for (int64_t k = 0; k < n && !st; k++) {
        int axis = 0;
        st = axis_of(axes[k], x->rank, &axis, err);
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

static qd_status fold_unsqueeze(world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    const int64_t *axes;
    int64_t n;
    bool fresh[QD_MAX_RANK] = { false };
    qd_status st = list_of(w, "axes", 1, &axes, &n, err);
    if (st)
        return st;
    if (n < 0 || n + x->rank > QD_MAX_RANK)
        return qd_fail(err, QD_E_LIMIT, "a constant of rank %d with %lld more axes", x->rank, (long long)n);
    qd_shape s = { .rank = x->rank + (int)n };
    for (int64_t k = 0; k < n && !st; k++) {
        int axis = 0;
        st = axis_of(axes[k], s.rank, &axis, err);
        if (!st)
            fresh[axis] = true;
    }
    if (st)
        return st;
    for (int k = 0, from = 0; k < s.rank; k++)
        s.dim[k] = fresh[k] || from >= x->rank ? 1 : x->dim[from++];
    return reshaped(w, &s, err);
}

static qd_status fold_transpose(world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    const qd_onnx_attr *perm = qd_onnx_attr_find(w->n, "perm");
    int64_t own[QD_MAX_RANK], stride[QD_MAX_RANK];
    qd_shape s = { .rank = x->rank };
    unsigned seen = 0;
    strides_of(x, own);
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

static qd_status fold_expand(world *w, qd_err *err)
{
    const int64_t *list;
    int64_t n, stride[QD_MAX_RANK];
    qd_shape s = { 0 }, r;
    qd_status st = list_in(w, 1, &list, &n, err);
    if (st)
        return st;
    if (n < 0 || n > QD_MAX_RANK)
        return qd_fail(err, QD_E_FORMAT, "the target shape has %lld dimensions", (long long)n);
    for (s.rank = 0; s.rank < n; s.rank++) {
        s.dim[s.rank] = list[s.rank];
        if (list[s.rank] < 0)
            return qd_fail(err, QD_E_FORMAT, "the target shape has %lld at %d", (long long)list[s.rank], s.rank);
    }
    st = broadcast_shape(&w->in[0]->shape, &s, &r, err);
    if (st)
        return st;
    broadcast_strides(&w->in[0]->shape, &r, stride);
    return move(w, w->in[0], &r, 0, stride, err);
}

static qd_status fold_slice(world *w, qd_err *err)
{
    const qd_shape *x = &w->in[0]->shape;
    const int64_t *starts, *ends, *axes, *steps;
    int64_t n, n_ends, n_axes, n_steps, stride[QD_MAX_RANK], offset = 0;
    qd_status st = list_of(w, "starts", 1, &starts, &n, err);
    if (!st)
        st = list_of(w, "ends", 2, &ends, &n_ends, err);
    if (!st)
        st = list_of(w, "axes", 3, &axes, &n_axes, err);
    if (!st)
        st = list_in(w, 4, &steps, &n_steps, err);
    if (st)
        return st;
    if (n < 0 || n_ends != n || (axes && n_axes != n) || (steps && n_steps != n) || (!axes && n > x->rank))
        return qd_fail(err, QD_E_FORMAT, "starts, ends, axes and steps differ in length");
    qd_shape s = *x;
    strides_of(x, stride);
    for (int64_t k = 0; k < n; k++) {
        int axis = 0;
        st = axis_of(axes ? axes[k] : k, x->rank, &axis, err);
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

static qd_status fold_gather(world *w, qd_err *err)
{
    const qd_tensor *x = w->in[0], *index = w->in[1];
    int axis = 0;
    qd_status st = axis_of(qd_onnx_attr_int(w->n, "axis", 0), x->shape.rank, &axis, err);
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
    st = make(w, x->dtype, &s, err);
    if (st || count_of(&s) == 0)
        return st;
    const int64_t d = x->shape.dim[axis], n = qd_tensor_count(index);
    const size_t bytes = (size_t)inner * (qd_dtype_bits(x->dtype) / 8);
    char *dst = w->out->data;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t k = 0; k < n; k++) {
            const int64_t given = i64_at(index, k), at = given < 0 ? given + d : given;
            if (at < 0 || at >= d)
                return qd_fail(err, QD_E_FORMAT, "index %lld is outside 0..%lld", (long long)given, (long long)d - 1);
            memcpy(dst, (const char *)x->data + (size_t)(o * d + at) * bytes, bytes);
            dst += bytes;
        }
    return QD_OK;
}

static qd_status fold_concat(world *w, qd_err *err)
{
    int axis = 0;
    qd_shape s = w->in[0]->shape;
    qd_status st = axis_of(qd_onnx_attr_int(w->n, "axis", 0), s.rank, &axis, err);
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
    st = make(w, w->in[0]->dtype, &s, err);
    if (st || count_of(&s) == 0)
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

/* --- making --- */

static qd_status fold_shape(world *w, qd_err *err)
{
    const int64_t rank = w->shape->rank;
    int64_t from = qd_onnx_attr_int(w->n, "start", 0), to = qd_onnx_attr_int(w->n, "end", rank);
    from = from < -rank ? 0 : from < 0 ? from + rank : from > rank ? rank : from;
    to = to < -rank ? 0 : to < 0 ? to + rank : to > rank ? rank : to;
    const qd_shape s = QD_SHAPE(to > from ? to - from : 0);
    qd_status st = make(w, QD_I64, &s, err);
    for (int64_t k = from; k < to && !st; k++)
        ((int64_t *)w->out->data)[k - from] = w->shape->dim[k];
    return st;
}

static qd_status fold_size(world *w, qd_err *err)
{
    qd_status st = make(w, QD_I64, &(qd_shape){ 0 }, err);
    if (!st)
        *(int64_t *)w->out->data = count_of(w->shape);
    return st;
}

static qd_status fold_constant(world *w, qd_err *err)
{
    const qd_onnx_attr *a = w->n->n_attrs ? &w->n->attr[0] : NULL;
    qd_status st = QD_OK;
    if (a && a->kind == QD_ONNX_TENSOR) {
        qd_tensor_share(w->out, &a->t);
    } else if (a && (a->kind == QD_ONNX_FLOAT || a->kind == QD_ONNX_INT)) {
        st = make(w, a->kind == QD_ONNX_FLOAT ? QD_F32 : QD_I64, &(qd_shape){ 0 }, err);
        if (!st && a->kind == QD_ONNX_FLOAT)
            *qd_f32(w->out) = a->f;
        else if (!st)
            *(int64_t *)w->out->data = a->i;
    } else if (a && (a->kind == QD_ONNX_FLOATS || a->kind == QD_ONNX_INTS)) {
        st = make(w, a->kind == QD_ONNX_FLOATS ? QD_F32 : QD_I64, &(qd_shape){ .rank = 1, .dim = { (int64_t)a->n } },
                  err);
        if (!st && a->n)
            memcpy(w->out->data, a->kind == QD_ONNX_FLOATS ? (const void *)a->floats : (const void *)a->ints,
                   qd_tensor_bytes(w->out));
    } else {
        st = qd_fail(err, QD_E_UNSUPPORTED, "a constant that is neither a tensor nor numbers");
    }
    return st;
}

static qd_status fold_constant_of_shape(world *w, qd_err *err)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(w->n, "value");
    const int64_t *list;
    int64_t n;
    qd_shape s = { 0 };
    qd_status st = list_in(w, 0, &list, &n, err);
    if (st)
        return st;
    if (n < 0 || n > QD_MAX_RANK || (a && (a->kind != QD_ONNX_TENSOR || qd_tensor_count(&a->t) != 1)))
        return qd_fail(err, QD_E_FORMAT, "%lld dimensions, or a value that is not one number", (long long)n);
    for (s.rank = 0; s.rank < n; s.rank++) {
        s.dim[s.rank] = list[s.rank];
        if (list[s.rank] < 0)
            return qd_fail(err, QD_E_FORMAT, "the shape has %lld at %d", (long long)list[s.rank], s.rank);
    }
    st = make(w, a ? a->t.dtype : QD_F32, &s, err);
    for (int64_t k = 0; a && !st && k < qd_tensor_count(w->out); k++)
        if (a->t.dtype == QD_F32)
            qd_f32(w->out)[k] = *qd_f32(&a->t);
        else
            ((int64_t *)w->out->data)[k] = i64_at(&a->t, 0);
    return st;
}

static qd_status fold_range(world *w, qd_err *err)
{
    double v[3];
    for (int k = 0; k < 3; k++) {
        if (!w->in[k] || qd_tensor_count(w->in[k]) != 1 || w->in[k]->dtype != w->in[0]->dtype)
            return qd_fail(err, QD_E_FORMAT, "start, limit and delta must be one number each, of one kind");
        v[k] = w->in[k]->dtype == QD_F32 ? *qd_f32(w->in[k]) : (double)i64_at(w->in[k], 0);
    }
    const double n = ceil((v[1] - v[0]) / v[2]);
    if (!isfinite(n) || n > (double)MAX_GROWN)
        return qd_fail(err, QD_E_LIMIT, "from %g to %g by %g", v[0], v[1], v[2]);
    const qd_shape s = QD_SHAPE(n > 0 ? (int64_t)n : 0);
    qd_status st = make(w, w->in[0]->dtype, &s, err);
    for (int64_t k = 0; k < s.dim[0] && !st; k++)
        if (w->out->dtype == QD_F32)
            qd_f32(w->out)[k] = (float)(v[0] + (double)k * v[2]);
        else
            ((int64_t *)w->out->data)[k] = (int64_t)(v[0] + (double)k * v[2]);
    return st;
}

/* --- arithmetic --- */

static int64_t to_i64(double v)
{
    return isnan(v) ? 0 : v >= 9.2e18 ? INT64_MAX : v <= -9.2e18 ? INT64_MIN : (int64_t)v;
}

static qd_status fold_cast(world *w, qd_err *err)
{
    const int to = (int)qd_onnx_attr_int(w->n, "to", 0);
    qd_dtype kept;
    if (!qd_onnx_type_kept(to, &kept))
        return qd_fail(err, QD_E_UNSUPPORTED, "a constant as %s (type %d)", qd_onnx_type_name(to), to);
    const bool truth = strcmp(qd_onnx_type_name(to), "bool") == 0;
    qd_status st = make(w, kept, &w->in[0]->shape, err);
    for (int64_t k = 0; !st && k < qd_tensor_count(w->out); k++) {
        const bool real = w->in[0]->dtype == QD_F32;
        if (kept == QD_F32)
            qd_f32(w->out)[k] = real ? qd_f32(w->in[0])[k] : (float)i64_at(w->in[0], k);
        else if (truth)
            ((int64_t *)w->out->data)[k] = real ? qd_f32(w->in[0])[k] != 0.0f : i64_at(w->in[0], k) != 0;
        else
            ((int64_t *)w->out->data)[k] = real ? to_i64(qd_f32(w->in[0])[k]) : i64_at(w->in[0], k);
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
        return to_i64(pow((double)a, (double)b));
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

static qd_status fold_binary(world *w, binary op, qd_err *err)
{
    const qd_tensor *a = w->in[0], *b = w->in[1];
    int64_t sa[QD_MAX_RANK], sb[QD_MAX_RANK], index[QD_MAX_RANK] = { 0 }, ia = 0, ib = 0;
    qd_shape s;
    qd_status st = broadcast_shape(&a->shape, &b->shape, &s, err);
    const bool whole = a->dtype == QD_I64 && b->dtype == QD_I64;
    if (!st)
        st = make(w, whole || op >= EQUAL ? QD_I64 : QD_F32, &s, err);
    if (st)
        return st;
    broadcast_strides(&a->shape, &s, sa);
    broadcast_strides(&b->shape, &s, sb);
    for (int64_t i = 0; i < qd_tensor_count(w->out); i++) {
        if (whole) {
            ((int64_t *)w->out->data)[i] = whole_binary(op, i64_at(a, ia), i64_at(b, ib));
        } else {
            const double x = a->dtype == QD_F32 ? qd_f32(a)[ia] : (double)i64_at(a, ia);
            const double y = b->dtype == QD_F32 ? qd_f32(b)[ib] : (double)i64_at(b, ib);
            const double v = real_binary(op, x, y);
            if (op >= EQUAL)
                ((int64_t *)w->out->data)[i] = v != 0.0;
            else
                qd_f32(w->out)[i] = (float)v;
        }
        for (int k = s.rank - 1; k >= 0; k--) {
            ia += sa[k];
            ib += sb[k];
            if (++index[k] < s.dim[k])
                break;
            ia -= sa[k] * s.dim[k];
            ib -= sb[k] * s.dim[k];
            index[k] = 0;
        }
    }
    return QD_OK;
}

static qd_status fold_where(world *w, qd_err *err)
{
    const qd_tensor *c = w->in[0], *x = w->in[1], *y = w->in[2];
    int64_t stride[3][QD_MAX_RANK], at[3] = { 0 }, index[QD_MAX_RANK] = { 0 };
    qd_shape s;
    if (c->dtype != QD_I64 || x->dtype != y->dtype)
        return qd_fail(err, QD_E_FORMAT, "a choice between constants of different kinds");
    qd_status st = broadcast_shape(&c->shape, &x->shape, &s, err);
    if (!st)
        st = broadcast_shape(&s, &y->shape, &s, err);
    if (!st)
        st = make(w, x->dtype, &s, err);
    if (st)
        return st;
    for (int k = 0; k < 3; k++)
        broadcast_strides(&w->in[k]->shape, &s, stride[k]);
    const size_t bytes = qd_dtype_bits(x->dtype) / 8;
    for (int64_t i = 0; i < qd_tensor_count(w->out); i++) {
        const int side = i64_at(c, at[0]) ? 1 : 2;
        memcpy((char *)w->out->data + (size_t)i * bytes, (const char *)w->in[side]->data + (size_t)at[side] * bytes,
               bytes);
        for (int k = s.rank - 1; k >= 0; k--) {
            for (int j = 0; j < 3; j++)
                at[j] += stride[j][k];
            if (++index[k] < s.dim[k])
                break;
            for (int j = 0; j < 3; j++)
                at[j] -= stride[j][k] * s.dim[k];
            index[k] = 0;
        }
    }
    return QD_OK;
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

static const struct {
    const char *name;
    double (*f)(double);
} unaries[] = {
    { "Neg", negate },
    { "Abs", fabs },
    { "Sqrt", sqrt },
    { "Exp", exp },
    { "Log", log },
    { "Floor", floor },
    { "Ceil", ceil },
    { "Round", rint },
    { "Sin", sin },
    { "Cos", cos },
    { "Erf", erf },
    { "Tanh", tanh },
    { "Reciprocal", reciprocal },
    { "Not", is_zero },
};

static qd_status fold_unary(world *w, double (*f)(double), qd_err *err)
{
    const qd_tensor *x = w->in[0];
    qd_status st = make(w, x->dtype, &x->shape, err);
    for (int64_t k = 0; !st && k < qd_tensor_count(x); k++)
        if (x->dtype == QD_F32)
            qd_f32(w->out)[k] = (float)f(qd_f32(x)[k]);
        else
            ((int64_t *)w->out->data)[k] = to_i64(f((double)i64_at(x, k)));
    return st;
}

/* Products and sums of whole numbers over everything, as shape arithmetic has them. */
static qd_status fold_reduce(world *w, bool product, qd_err *err)
{
    const qd_tensor *x = w->in[0];
    int64_t r = product;
    for (int64_t k = 0; k < qd_tensor_count(x); k++)
        r = whole_binary(product ? MUL : ADD, r, i64_at(x, k));
    const qd_shape one = QD_SHAPE(1);
    qd_status st = make(w, QD_I64, qd_onnx_attr_int(w->n, "keepdims", 1) ? &one : &(qd_shape){ 0 }, err);
    if (!st)
        *(int64_t *)w->out->data = r;
    return st;
}

/* --- the table --- */

static const struct {
    const char *name;
    int min_inputs, max_inputs;
    qd_status (*fold)(world *w, qd_err *err);
} folds[] = {
    { "Shape", 1, 1, fold_shape },         { "Size", 1, 1, fold_size },
    { "Constant", 0, 0, fold_constant },   { "ConstantOfShape", 1, 1, fold_constant_of_shape },
    { "Range", 3, 3, fold_range },         { "Cast", 1, 1, fold_cast },
    { "Reshape", 2, 2, fold_reshape },     { "Squeeze", 1, 2, fold_squeeze },
    { "Unsqueeze", 1, 2, fold_unsqueeze }, { "Transpose", 1, 1, fold_transpose },
    { "Expand", 2, 2, fold_expand },       { "Slice", 1, 5, fold_slice },
    { "Gather", 2, 2, fold_gather },       { "Concat", 1, QD_MAX_INPUTS, fold_concat },
    { "Where", 3, 3, fold_where },
};

static qd_status fold_one(world *w, bool *done, qd_err *err)
{
    const char *op = w->n->op;
    *done = true;
    for (size_t k = 0; k < sizeof(folds) / sizeof(folds[0]); k++)
        if (strcmp(folds[k].name, op) == 0) {
            if (w->n_in < folds[k].min_inputs || w->n_in > folds[k].max_inputs)
                return qd_fail(err, QD_E_FORMAT, "%d inputs, takes %d to %d", w->n_in, folds[k].min_inputs,
                               folds[k].max_inputs);
            for (int j = 0; j < folds[k].min_inputs; j++)
                if (!w->in[j] && !w->shape)
                    return qd_fail(err, QD_E_FORMAT, "input %d is missing", j);
            return folds[k].fold(w, err);
        }
    for (size_t k = 0; k < sizeof(binary_names) / sizeof(binary_names[0]); k++)
        if (strcmp(binary_names[k], op) == 0 && w->n_in == 2 && w->in[0] && w->in[1])
            return fold_binary(w, (binary)k, err);
    for (size_t k = 0; k < sizeof(unaries) / sizeof(unaries[0]); k++)
        if (strcmp(unaries[k].name, op) == 0 && w->n_in == 1 && w->in[0])
            return fold_unary(w, unaries[k].f, err);
    const bool product = strcmp(op, "ReduceProd") == 0;
    if ((product || strcmp(op, "ReduceSum") == 0) && w->n_in >= 1 && w->in[0] && w->in[0]->dtype == QD_I64 &&
        w->in[0]->shape.rank == 1)
        return fold_reduce(w, product, err);
    *done = false;
    return QD_OK;
}

bool qd_onnx_folds(const char *op)
{
    for (size_t k = 0; k < sizeof(folds) / sizeof(folds[0]); k++)
        if (strcmp(folds[k].name, op) == 0)
            return true;
    for (size_t k = 0; k < sizeof(binary_names) / sizeof(binary_names[0]); k++)
        if (strcmp(binary_names[k], op) == 0)
            return true;
    for (size_t k = 0; k < sizeof(unaries) / sizeof(unaries[0]); k++)
        if (strcmp(unaries[k].name, op) == 0)
            return true;
    return strcmp(op, "ReduceProd") == 0;
}

qd_status qd_onnx_fold(const qd_onnx_node *n, int64_t opset, const qd_onnx_number *const *in, int n_in,
                       qd_budget *budget, qd_onnx_number *out, bool *done, qd_err *err)
{
    const bool asks_shape = strcmp(n->op, "Shape") == 0 || strcmp(n->op, "Size") == 0;
    qd_onnx_number made = { .constant = true, .id = -1 };
    bool same = true;
    qd_status st = QD_OK;

    *done = false;
    if (n_in > QD_MAX_INPUTS || (asks_shape && (n_in != 1 || !in[0])))
        return QD_OK;
    for (int k = 0; k < n_in; k++) {
        if (in[k] && !in[k]->constant && !asks_shape)
            return QD_OK;
        same = same && (!in[k] || (in[k]->constant && in[k]->t[0].data == in[k]->t[1].data));
    }
    for (int k = 0; k < (same ? 1 : QD_ONNX_WORLDS) && !st; k++) {
        world w = { .n = n, .opset = opset, .n_in = n_in, .budget = budget, .out = &made.t[k] };
        for (int j = 0; j < n_in; j++)
            w.in[j] = in[j] && in[j]->constant ? &in[j]->t[k] : NULL;
        if (asks_shape)
            w.shape = in[0]->constant ? &in[0]->t[k].shape : &in[0]->shape[k];
        st = fold_one(&w, done, err);
        if (!*done)
            break;
    }
    if (!st && *done && same)
        qd_tensor_share(&made.t[1], &made.t[0]);
    if (st || !*done) {
        qd_onnx_number_clear(&made);
        return st;
    }
    /* What came out equal is one tensor from here on. */
    if (!same && made.t[0].dtype == made.t[1].dtype && qd_onnx_number_fixed(&made)) {
        qd_tensor_clear(&made.t[1]);
        qd_tensor_share(&made.t[1], &made.t[0]);
    }
    made.dtype = made.t[0].dtype;
    *out = made;
    return QD_OK;
}
