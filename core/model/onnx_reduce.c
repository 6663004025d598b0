/* onnx_reduce.c - ONNX operators that make one number out of many along axes. */
#include "model/onnx_int.h"

#include <string.h>

#define MAX_WINDOW 65535

/* The shape of x without the axes in `gone`, or with 1 in their place. */
static void reduced_shape(const qd_shape *x, const bool *gone, bool keep, qd_shape *s)
{
    *s = (qd_shape){ 0 };
    for (int k = 0; k < x->rank; k++)
        if (!gone[k] || keep)
            s->dim[s->rank++] = gone[k] ? 1 : x->dim[k];
}

/* Those axes go last, become one, and the largest of a window that holds it all is taken. */
qd_node_id qd_onnx_largest(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x,
                           const bool gone[QD_MAX_RANK], bool keep)
{
    static const int64_t step[2] = { 1, 1 };
    qd_shape plane[QD_ONNX_WORLDS], made[QD_ONNX_WORLDS];
    int64_t perm[QD_MAX_RANK];
    int at = 0;
    if (x < 0)
        return -1;
    const int rank = qd_onnx_node_shape(r, x, 0)->rank;
    bool still = true;
    for (int last = 0; last < 2; last++)
        for (int k = 0; k < rank; k++)
            if (gone[k] == (bool)last)
                perm[at++] = k;
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *s = qd_onnx_node_shape(r, x, w);
        plane[w] = QD_SHAPE(1, 1, 1, 1);
        reduced_shape(s, gone, keep, &made[w]);
        for (int k = 0, before = 0; k < rank; k++)
            plane[w].dim[gone[k] ? 2 : before++ > 0] *= s->dim[k];
    }
    if (plane[0].dim[2] != plane[1].dim[2] || plane[0].dim[2] > MAX_WINDOW) {
        qd_graph_fail(r->graph, QD_E_UNSUPPORTED, "the largest of %lld values, or along the batch",
                      (long long)plane[0].dim[2]);
        return -1;
    }
    for (int k = 0; k < rank; k++)
        still = still && perm[k] == k;
    if (!still)
        x = qd_onnx_add(r, n, "last", &qd_op_permute, QD_IN(x), QD_ATTRS(qd_attr_ints("perm", rank, perm)));
    x = qd_onnx_reshape(r, n, "plane", x, plane);
    const int64_t kernel[2] = { plane[0].dim[2], 1 };
    const bool done =
        qd_shape_equal(&made[0], &(qd_shape){ .rank = 4, .dim = { plane[0].dim[0], plane[0].dim[1], 1, 1 } });
    x = qd_onnx_add(r, n, done ? suffix : "largest", &qd_op_max_pool, QD_IN(x),
                    QD_ATTRS(qd_attr_ints("kernel", 2, kernel), qd_attr_ints("stride", 2, step)));
    return qd_onnx_reshape(r, n, suffix, x, made);
}

/* The axes to reduce: *count < 0 when nothing is to be done. */
static qd_status axes_of(const qd_onnx_reader *r, const qd_onnx_node *n, int rank, int64_t axes[QD_ONNX_LIST],
                         bool on[QD_MAX_RANK], int *count, qd_err *err)
{
    qd_status st = qd_onnx_list(r, n, "axes", 1, 0, axes, count, err);
    memset(on, 0, QD_MAX_RANK * sizeof(*on));
    if (st)
        return st;
    if (*count <= 0) {
        if (qd_onnx_attr_int(n, "noop_with_empty_axes", 0)) {
            *count = -1;
            return QD_OK;
        }
        for (*count = 0; *count < rank; ++*count)
            axes[*count] = *count;
    }
    if (*count > rank)
        return qd_fail(err, QD_E_FORMAT, "%d axes of a value of rank %d", *count, rank);
    for (int k = 0; k < *count; k++) {
        axes[k] += axes[k] < 0 ? rank : 0;
        if (axes[k] < 0 || axes[k] >= rank || on[axes[k]])
            return qd_fail(err, QD_E_FORMAT, "axis %lld of a value of rank %d", (long long)axes[k], rank);
        on[axes[k]] = true;
    }
    return QD_OK;
}

/* log(sum(exp(x))) with the largest taken out first, so that nothing overflows. */
static qd_node_id log_sum_exp(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x, const bool *on, int count,
                              const int64_t *axes, bool keep)
{
    const qd_node_id most = qd_onnx_largest(r, n, "most", x, on, true);
    qd_node_id y = qd_onnx_one(r, n, "exp", &qd_op_exp, qd_onnx_two(r, n, "below", &qd_op_sub, x, most));
    y = qd_onnx_add(r, n, "sum", &qd_op_sum, QD_IN(y), QD_ATTRS(qd_attr_ints("axes", count, axes), QD_INT("keep", 1)));
    y = qd_onnx_two(r, n, keep ? NULL : "sum_log", &qd_op_add, qd_onnx_one(r, n, "log", &qd_op_log, y), most);
    if (keep || y < 0)
        return y;
    qd_shape made[QD_ONNX_WORLDS];
    for (int w = 0; w < QD_ONNX_WORLDS; w++)
        reduced_shape(qd_onnx_node_shape(r, x, w), on, false, &made[w]);
    return qd_onnx_reshape(r, n, NULL, y, made);
}

/* The mean over a picture's space has a row of its own. */
static qd_node_id space_mean(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x, bool keep)
{
    x = qd_onnx_one(r, n, keep ? NULL : "pool", &qd_op_global_avg_pool, x);
    if (keep || x < 0)
        return x;
    qd_shape flat[QD_ONNX_WORLDS];
    for (int w = 0; w < QD_ONNX_WORLDS; w++)
        flat[w] = qd_shape_of(2, qd_onnx_node_shape(r, x, w)->dim);
    return qd_onnx_reshape(r, n, NULL, x, flat);
}

/* Sums and means by what is done to each element before and to the sum after. */
static const struct {
    const char *name;
    enum { AS_IT_IS, SIZE, SQUARE } before;
    enum { NOTHING, ROOT, LOG } after;
} sums[] = {
    { "ReduceSum", AS_IT_IS, NOTHING },     { "ReduceMean", AS_IT_IS, NOTHING }, { "ReduceL1", SIZE, NOTHING },
    { "ReduceSumSquare", SQUARE, NOTHING }, { "ReduceL2", SQUARE, ROOT },        { "ReduceLogSum", AS_IT_IS, LOG },
};

static qd_node_id sum_of(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x, int count, const int64_t *axes,
                         bool keep)
{
    size_t row = 0;
    while (strcmp(sums[row].name, n->op) != 0)
        row++;
    if (sums[row].before == SIZE)
        x = qd_onnx_one(r, n, "size", &qd_op_abs, x);
    else if (sums[row].before == SQUARE)
        x = qd_onnx_two(r, n, "square", &qd_op_mul, x, x);
    x = qd_onnx_add(r, n, sums[row].after != NOTHING ? "sum" : NULL,
                    strcmp(n->op, "ReduceMean") == 0 ? &qd_op_mean : &qd_op_sum, QD_IN(x),
                    QD_ATTRS(qd_attr_ints("axes", count, axes), QD_INT("keep", keep)));
    if (sums[row].after == NOTHING)
        return x;
    return qd_onnx_one(r, n, NULL, sums[row].after == ROOT ? &qd_op_sqrt : &qd_op_log, x);
}

qd_status qd_onnx_reduce(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, 0);
    const int rank = qd_onnx_shape_of(v, 0)->rank;
    const bool keep = qd_onnx_attr_int(n, "keepdims", 1) != 0;
    int64_t axes[QD_ONNX_LIST];
    bool on[QD_MAX_RANK];
    int count;
    qd_status st = axes_of(r, n, rank, axes, on, &count, err);
    if (st)
        return st;
    if (count < 0)
        return qd_onnx_alias(r, n, 0, v, err);
    const qd_node_id x = qd_onnx_floats(r, n, 0);
    qd_node_id made;
    if (strcmp(n->op, "ReduceMean") == 0 && rank == 4 && count == 2 && on[2] && on[3])
        made = space_mean(r, n, x, keep);
    else if (strcmp(n->op, "ReduceMax") == 0)
        made = qd_onnx_largest(r, n, NULL, x, on, keep);
    else if (strcmp(n->op, "ReduceMin") == 0)
        made = qd_onnx_affine(r, n, NULL,
                              qd_onnx_largest(r, n, "turned", qd_onnx_affine(r, n, "minus", x, -1.0, 0.0), on, keep),
                              -1.0, 0.0);
    else if (strcmp(n->op, "ReduceLogSumExp") == 0)
        made = log_sum_exp(r, n, x, on, count, axes, keep);
    else
        made = sum_of(r, n, x, count, axes, keep);
    return qd_onnx_set(r, n, 0, made, err);
}
