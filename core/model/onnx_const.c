/* onnx_const.c - constants of an ONNX graph worked out while reading: numbers in two worlds, and the table of what can be. */
#include "model/onnx_fold.h"

#include <math.h>
#include <string.h>

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
    return v->constant && v->t[0].dtype == v->t[1].dtype && qd_shape_equal(&v->t[0].shape, &v->t[1].shape) &&
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

int64_t qd_fold_whole(const qd_tensor *t, int64_t k)
{
    switch (t->dtype) {
    case QD_I8:
        return ((const int8_t *)t->data)[k];
    case QD_U8:
        return ((const uint8_t *)t->data)[k];
    default:
        return ((const int64_t *)t->data)[k];
    }
}

double qd_fold_real(const qd_tensor *t, int64_t k)
{
    return t->dtype == QD_F32 ? (double)qd_f32(t)[k] : (double)qd_fold_whole(t, k);
}

int64_t qd_fold_to_whole(double v)
{
    return isnan(v) ? 0 : v >= 9.2e18 ? INT64_MAX : v <= -9.2e18 ? INT64_MIN : (int64_t)v;
}

int64_t qd_fold_count(const qd_shape *s)
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

qd_status qd_fold_make(qd_onnx_world *w, qd_dtype dtype, const qd_shape *shape, qd_err *err)
{
    int64_t most = QD_FOLD_GROWN;
    for (int k = 0; k < w->n_in; k++)
        if (w->in[k] && qd_tensor_count(w->in[k]) > most)
            most = qd_tensor_count(w->in[k]);
    if (qd_fold_count(shape) > most)
        return qd_fail(err, QD_E_LIMIT, "the constant has more than %lld elements", (long long)most);
    return qd_tensor_init(w->out, dtype, shape, w->budget, err);
}

qd_status qd_fold_list_in(const qd_onnx_world *w, int k, const int64_t **list, int64_t *n, qd_err *err)
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

qd_status qd_fold_list(const qd_onnx_world *w, const char *name, int k, const int64_t **list, int64_t *n, qd_err *err)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(w->n, name);
    if (!a || a->kind != QD_ONNX_INTS)
        return qd_fold_list_in(w, k, list, n, err);
    *list = a->ints;
    *n = (int64_t)a->n;
    return QD_OK;
}

qd_status qd_fold_shape_in(const qd_onnx_world *w, int k, qd_shape *s, qd_err *err)
{
    const int64_t *list;
    int64_t n;
    qd_status st = qd_fold_list_in(w, k, &list, &n, err);
    if (st)
        return st;
    if (n < 0 || n > QD_MAX_RANK)
        return qd_fail(err, QD_E_FORMAT, "the target shape has %lld dimensions", (long long)n);
    *s = (qd_shape){ .rank = (int)n };
    for (int j = 0; j < s->rank; j++) {
        if (list[j] < 0)
            return qd_fail(err, QD_E_FORMAT, "the target shape has %lld at %d", (long long)list[j], j);
        s->dim[j] = list[j];
    }
    return QD_OK;
}

qd_status qd_fold_axis(int64_t given, int rank, int *axis, qd_err *err)
{
    if (given < -rank || given >= rank)
        return qd_fail(err, QD_E_FORMAT, "axis %lld is not one of a value of rank %d", (long long)given, rank);
    *axis = (int)(given < 0 ? given + rank : given);
    return QD_OK;
}

void qd_fold_strides(const qd_shape *s, int64_t *stride)
{
    int64_t step = 1;
    for (int k = s->rank - 1; k >= 0; k--) {
        stride[k] = step;
        step *= s->dim[k];
    }
}

bool qd_fold_broadcast_strides(const qd_shape *in, const qd_shape *out, int64_t *stride)
{
    int64_t own[QD_MAX_RANK];
    if (in->rank > out->rank)
        return false;
    qd_fold_strides(in, own);
    for (int k = 0; k < out->rank; k++) {
        const int from = k - (out->rank - in->rank);
        stride[k] = from < 0 || in->dim[from] == 1 ? 0 : own[from];
        if (from >= 0 && in->dim[from] != 1 && in->dim[from] != out->dim[k])
            return false;
    }
    return true;
}

qd_status qd_fold_broadcast(const qd_shape *a, const qd_shape *b, qd_shape *out, qd_err *err)
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

bool qd_fold_next(const qd_shape *s, int64_t *index, int n, int64_t *at, const int64_t (*stride)[QD_MAX_RANK])
{
    for (int k = s->rank - 1; k >= 0; k--) {
        for (int j = 0; j < n; j++)
            at[j] += stride[j][k];
        if (++index[k] < s->dim[k])
            return true;
        for (int j = 0; j < n; j++)
            at[j] -= stride[j][k] * s->dim[k];
        index[k] = 0;
    }
    return false;
}

/* --- the table --- */

/* How the type of the result is known: as in the file for what only moves; else by its dtype alone. */
typedef enum kept { PLAIN, AS_FIRST } kept;

static const struct {
    const char *name;
    int min_inputs, max_inputs;
    qd_onnx_fold_row *fold;
    kept type;
} folds[] = {
    { "Shape", 1, 1, qd_fold_shape, PLAIN },
    { "Size", 1, 1, qd_fold_size, PLAIN },
    { "Constant", 0, 0, qd_fold_constant, PLAIN },
    { "ConstantOfShape", 1, 1, qd_fold_constant_of_shape, PLAIN },
    { "Range", 3, 3, qd_fold_range, PLAIN },
    { "EyeLike", 1, 1, qd_fold_eye, PLAIN },
    { "OneHot", 3, 3, qd_fold_one_hot, PLAIN },
    { "NonZero", 1, 1, qd_fold_non_zero, PLAIN },
    { "Cast", 1, 1, qd_fold_cast, PLAIN },
    { "Reshape", 2, 2, qd_fold_reshape, AS_FIRST },
    { "Flatten", 1, 1, qd_fold_flatten, AS_FIRST },
    { "Squeeze", 1, 2, qd_fold_squeeze, AS_FIRST },
    { "Unsqueeze", 1, 2, qd_fold_unsqueeze, AS_FIRST },
    { "Transpose", 1, 1, qd_fold_transpose, AS_FIRST },
    { "Expand", 2, 2, qd_fold_expand, AS_FIRST },
    { "Tile", 2, 2, qd_fold_tile, AS_FIRST },
    { "Slice", 1, 5, qd_fold_slice, AS_FIRST },
    { "Concat", 1, QD_MAX_INPUTS, qd_fold_concat, AS_FIRST },
    { "Gather", 2, 2, qd_fold_gather, AS_FIRST },
    { "GatherND", 2, 2, qd_fold_gather_nd, AS_FIRST },
    { "GatherElements", 2, 2, qd_fold_gather_elements, AS_FIRST },
    { "ScatterND", 3, 3, qd_fold_scatter_nd, AS_FIRST },
    { "Trilu", 1, 2, qd_fold_triangle, AS_FIRST },
    { "Where", 3, 3, qd_fold_where, PLAIN },
    { "Clip", 1, 3, qd_fold_clip, PLAIN },
    { "CumSum", 2, 2, qd_fold_cumulative, PLAIN },
    { "ReduceProd", 1, 2, qd_fold_reduce, PLAIN },
    { "ReduceSum", 1, 2, qd_fold_reduce, PLAIN },
    { "ReduceMax", 1, 2, qd_fold_reduce, PLAIN },
    { "ReduceMin", 1, 2, qd_fold_reduce, PLAIN },
    { "ReduceMean", 1, 2, qd_fold_reduce, PLAIN },
};
enum { N_FOLDS = sizeof(folds) / sizeof(folds[0]) };

static int fold_row(const char *op)
{
    for (int k = 0; k < N_FOLDS; k++)
        if (strcmp(folds[k].name, op) == 0)
            return k;
    return -1;
}

static qd_status fold_one(qd_onnx_world *w, bool *done, qd_err *err)
{
    const int row = fold_row(w->n->op);
    *done = true;
    if (row >= 0) {
        if (w->n_in < folds[row].min_inputs || w->n_in > folds[row].max_inputs)
            return qd_fail(err, QD_E_FORMAT, "%d inputs, takes %d to %d", w->n_in, folds[row].min_inputs,
                           folds[row].max_inputs);
        for (int j = 0; j < folds[row].min_inputs; j++)
            if (!w->in[j] && !w->shape)
                return qd_fail(err, QD_E_FORMAT, "input %d is missing", j);
        return folds[row].fold(w, err);
    }
    if (qd_fold_is_binary(w->n->op) && w->n_in == 2 && w->in[0] && w->in[1])
        return qd_fold_binary(w, err);
    if (qd_fold_is_unary(w->n->op) && w->n_in == 1 && w->in[0])
        return qd_fold_unary(w, err);
    *done = false;
    return QD_OK;
}

bool qd_onnx_folds(const char *op)
{
    return fold_row(op) >= 0 || qd_fold_is_binary(op) || qd_fold_is_unary(op);
}

/* The type of what came out, as in the file; 0 = nothing beyond its dtype. */
static int type_of(const qd_onnx_node *n, const qd_onnx_number *const *in, int n_in)
{
    const int row = fold_row(n->op);
    if (row >= 0 && folds[row].type == AS_FIRST)
        return n_in > 0 && in[0] ? in[0]->elem_type : 0;
    if (strcmp(n->op, "Constant") == 0 && n->n_attrs && n->attr[0].kind == QD_ONNX_TENSOR)
        return n->attr[0].elem_type;
    return strcmp(n->op, "Cast") == 0 ? (int)qd_onnx_attr_int(n, "to", 0) : 0;
}

qd_status qd_onnx_fold(const qd_onnx_node *n, int64_t opset, const qd_onnx_number *const *in, int n_in,
                       qd_budget *budget, qd_onnx_number *out, bool *done, qd_err *err)
{
    const bool asks_shape = strcmp(n->op, "Shape") == 0 || strcmp(n->op, "Size") == 0 || strcmp(n->op, "EyeLike") == 0;
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
        qd_onnx_world w = { .n = n, .opset = opset, .n_in = n_in, .budget = budget, .out = &made.t[k] };
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
    made.elem_type = type_of(n, in, n_in);
    *out = made;
    return QD_OK;
}
