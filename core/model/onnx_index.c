/* onnx_index.c - ONNX operators that pick by index or repeat: gather, expand, tile. */
#include "model/onnx_int.h"

#include <string.h>

/* Rows of a constant table by a computed index of any shape. */
static qd_status gather_rows(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *table = qd_onnx_in(r, n, 0), *index = qd_onnx_in(r, n, 1);
    if (!qd_onnx_number_fixed(table) || table->t[0].shape.rank != 2 || qd_onnx_attr_int(n, "axis", 0) != 0 ||
        qd_onnx_shape_of(index, 0)->rank >= QD_MAX_RANK)
        return qd_fail(err, QD_E_UNSUPPORTED, "a computed index is read for the rows of a constant table only");
    qd_shape flat[QD_ONNX_WORLDS], back[QD_ONNX_WORLDS];
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *s = qd_onnx_shape_of(index, w);
        int64_t count = 1;
        for (int k = 0; k < s->rank; k++)
            count *= s->dim[k]; /* of a value that exists: fits */
        flat[w] = (qd_shape){ .rank = 1, .dim = { count } };
        back[w] = *s;
        back[w].dim[back[w].rank++] = table->t[0].shape.dim[1];
    }
    const qd_node_id weight = qd_onnx_node_of(r, n, 0);
    const qd_node_id rows = qd_onnx_reshape(r, n, "index", qd_onnx_node_of(r, n, 1), flat);
    const bool last = back[0].rank == 2;
    const qd_node_id made = qd_onnx_add(r, n, last ? NULL : "rows", &qd_op_embedding, QD_IN(rows, weight), QD_NO_ATTRS);
    return qd_onnx_set(r, n, 0, last ? made : qd_onnx_reshape(r, n, NULL, made, back), err);
}

/* Constant indices: one is a slice without its axis, neighbours are a slice, others are looked up. */
qd_status qd_onnx_gather(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, 0), *which = qd_onnx_in(r, n, 1);
    const qd_shape *x = qd_onnx_shape_of(v, 0);
    const qd_tensor *index;
    int axis = 0;
    if (!which->constant)
        return gather_rows(r, n, err);
    qd_status st = qd_onnx_fixed(r, n, 1, &index, err);
    if (!st)
        st = qd_onnx_axis(qd_onnx_attr_int(n, "axis", 0), x->rank, &axis, err);
    if (st)
        return st;
    const int64_t count = qd_tensor_count(index), d = x->dim[axis];
    if (index->dtype != QD_I64 || index->shape.rank > 1 || count < 1 || d != qd_onnx_shape_of(v, 1)->dim[axis])
        return qd_fail(err, QD_E_UNSUPPORTED, "the index must be a list of at most one axis, not along the batch");
    qd_tensor list = { 0 };
    st = qd_tensor_copy(&list, index, r->budget, err);
    if (st)
        return st;
    int64_t *at = list.data;
    bool neighbours = true;
    for (int64_t k = 0; k < count && !st; k++) {
        if (at[k] < -d || at[k] >= d)
            st = qd_fail(err, QD_E_FORMAT, "index %lld is outside 0..%lld", (long long)at[k], (long long)d - 1);
        at[k] += at[k] < 0 ? d : 0;
        neighbours = neighbours && at[k] == at[0] + k;
    }
    const qd_node_id id = qd_onnx_node_of(r, n, 0);
    qd_node_id made = -1;
    if (!st && neighbours)
        made = qd_onnx_cut(r, n, index->shape.rank ? NULL : "slice", id, axis, at[0], count, 1);
    else if (!st)
        made = qd_onnx_add(r, n, NULL, &qd_op_gather, QD_IN(id, qd_onnx_const(r, n, "index", &list)),
                           QD_ATTRS(QD_INT("axis", axis)));
    qd_tensor_clear(&list);
    if (st)
        return st;
    if (made >= 0 && index->shape.rank == 0) {
        qd_shape target[QD_ONNX_WORLDS];
        for (int w = 0; w < QD_ONNX_WORLDS; w++) {
            target[w] = (qd_shape){ 0 };
            for (int k = 0; k < x->rank; k++)
                if (k != axis)
                    target[w].dim[target[w].rank++] = qd_onnx_shape_of(v, w)->dim[k];
        }
        made = qd_onnx_reshape(r, n, NULL, made, target);
    }
    return qd_onnx_set(r, n, 0, made, err);
}

qd_status qd_onnx_expand(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, 0);
    qd_shape made[QD_ONNX_WORLDS];
    bool same = true, batch = false;
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *x = qd_onnx_shape_of(v, w);
        int64_t list[QD_ONNX_LIST];
        int count;
        qd_status st = qd_onnx_list(r, n, NULL, 1, w, list, &count, err);
        if (st)
            return st;
        if (count < 0 || count > QD_MAX_RANK)
            return qd_fail(err, QD_E_LIMIT, "the target has %d dimensions, the limit is %d", count, QD_MAX_RANK);
        made[w].rank = count > x->rank ? count : x->rank;
        for (int k = 0; k < made[w].rank; k++) {
            const int a = k - (made[w].rank - x->rank), b = k - (made[w].rank - count);
            const int64_t da = a < 0 ? 1 : x->dim[a], db = b < 0 ? 1 : list[b];
            if (db < 1 || (da != db && da != 1 && db != 1))
                return qd_fail(err, QD_E_FORMAT, "axis %d of size %lld cannot become %lld", k, (long long)da,
                               (long long)db);
            made[w].dim[k] = da == 1 ? db : da;
        }
        same = same && qd_shape_equal(&made[w], x);
    }
    if (same)
        return qd_onnx_alias(r, n, 0, v, err);
    int64_t dims[QD_MAX_RANK], times;
    for (int k = 0; k < made[0].rank; k++) {
        dims[k] = qd_onnx_symbol(made[0].dim[k], made[1].dim[k], &times);
        if (dims[k] < 0 && (dims[k] != -1 || times != 1 || r->batch_of < 0))
            return qd_fail(err, QD_E_UNSUPPORTED, "dimension %d depends on the batch in a way we cannot express", k);
        batch = batch || dims[k] == -1;
        dims[k] = dims[k] == -1 ? 0 : dims[k];
    }
    const qd_node_id id = qd_onnx_node_of(r, n, 0);
    return qd_onnx_set(r, n, 0,
                       qd_onnx_add(r, n, NULL, &qd_op_expand, (qd_node_id[]){ id, r->batch_of }, batch ? 2 : 1,
                                   QD_ATTRS(qd_attr_ints("shape", made[0].rank, dims))),
                       err);
}

#define MAX_GROWN ((int64_t)1 << 24) /* elements of an axis */

/* Each axis is looked up again and again. */
qd_status qd_onnx_tile(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, 0);
    const int rank = qd_onnx_shape_of(v, 0)->rank;
    int64_t repeats[QD_ONNX_WORLDS][QD_ONNX_LIST];
    int count[QD_ONNX_WORLDS];
    qd_status st = QD_OK;
    for (int w = 0; w < QD_ONNX_WORLDS && !st; w++)
        st = qd_onnx_list(r, n, NULL, 1, w, repeats[w], &count[w], err);
    if (st)
        return st;
    if (count[0] != rank || count[1] != rank)
        return qd_fail(err, QD_E_FORMAT, "%d repeats of a value of rank %d", count[0], rank);
    qd_node_id x = qd_onnx_node_of(r, n, 0);
    bool same = true;
    for (int axis = 0; axis < rank && x >= 0; axis++) {
        const int64_t d = qd_onnx_node_shape(r, x, 0)->dim[axis], times = repeats[0][axis];
        if (times == 1 && repeats[1][axis] == 1)
            continue;
        if (times < 1 || times > MAX_GROWN || times != repeats[1][axis] ||
            d != qd_onnx_node_shape(r, x, 1)->dim[axis] || d > MAX_GROWN / times)
            return qd_fail(err, QD_E_UNSUPPORTED, "%lld repeats of axis %d", (long long)times, axis);
        same = false;
        qd_tensor index = { 0 };
        const qd_shape s = QD_SHAPE(d * times);
        st = qd_tensor_init(&index, QD_I64, &s, r->budget, err);
        if (st)
            return st;
        for (int64_t k = 0; k < d * times; k++)
            ((int64_t *)index.data)[k] = k % d;
        const qd_node_id which = qd_onnx_const(r, n, "index", &index);
        qd_tensor_clear(&index);
        x = qd_onnx_add(r, n, "axis", &qd_op_gather, QD_IN(x, which), QD_ATTRS(QD_INT("axis", axis)));
    }
    return same && x >= 0 ? qd_onnx_alias(r, n, 0, v, err) : qd_onnx_set(r, n, 0, x, err);
}
