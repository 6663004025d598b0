/* op_reduce.c - operators that add up along axes. */
#include "graph/op_int.h"

#include <math.h>

/* reduced[k]: is axis k one of `axes`? */
static qd_status reduced_axes(const qd_node *n, int rank, bool reduced[QD_MAX_RANK], qd_err *err)
{
    const qd_attr *axes = qd_node_ints(n, "axes");
    qd_status st = qd_infer_ints(n, "axes", -rank, rank - 1, err);
    for (int k = 0; k < QD_MAX_RANK; k++)
        reduced[k] = false;
    for (int k = 0; !st && k < axes->n; k++) {
        const int64_t axis = axes->ints[k] < 0 ? axes->ints[k] + rank : axes->ints[k];
        if (reduced[axis])
            st = qd_fail(err, QD_E_INVALID, "axes names axis %lld twice", (long long)axis);
        reduced[axis] = true;
    }
    return st;
}

static qd_status reduce_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    bool reduced[QD_MAX_RANK];
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_int(n, "keep", 0, 1, err);
    if (!st)
        st = reduced_axes(n, in[0].shape.rank, reduced, err);
    if (st)
        return st;
    qd_shape r = { .rank = 0 };
    for (int k = 0; k < in[0].shape.rank; k++) {
        if (!reduced[k])
            r.dim[r.rank++] = in[0].shape.dim[k];
        else if (qd_node_int(n, "keep"))
            r.dim[r.rank++] = 1;
    }
    *shape = r;
    *dtype = QD_F32;
    return QD_OK;
}

/* Steps index over the axes where on[k] is as asked, in row-major order; `at` follows in x. False after the last. */
static bool next(int64_t *index, const qd_shape *x, const bool *reduced, bool on, int64_t *at)
{
    int64_t step = 1;
    for (int k = x->rank - 1; k >= 0; k--) {
        if (reduced[k] == on) {
            *at += step;
            if (++index[k] < x->dim[k])
                return true;
            *at -= step * x->dim[k];
            index[k] = 0;
        }
        step *= x->dim[k];
    }
    return false;
}

static void reduce_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape;
    int64_t index[QD_MAX_RANK] = { 0 }, first = 0;
    bool reduced[QD_MAX_RANK];
    reduced_axes(n, x->rank, reduced, NULL);
    const double each = (double)qd_tensor_count(in[0]) / (double)qd_tensor_count(out);
    float *dst = qd_f32(out);
    do {
        double sum = 0.0;
        int64_t at = first;
        do {
            sum += qd_f32(in[0])[at];
        } while (next(index, x, reduced, true, &at));
        *dst++ = (float)(n->op == &qd_op_mean ? sum / each : sum);
    } while (next(index, x, reduced, false, &first));
}

#define REDUCE(op, summary_)                                                                                           \
    const qd_op qd_op_##op = {                                                                                         \
        .name = #op,                                                                                                   \
        .summary = summary_,                                                                                           \
        .attrs = (const qd_op_attr[]){ { "axes", QD_ATTR_INTS, NAN, 0, "distinct axes, negative from the end" },       \
                                       { "keep", QD_ATTR_INT, 1, 0, "1: they stay, of size 1" },                       \
                                       { NULL } },                                                                     \
        .min_inputs = 1,                                                                                               \
        .max_inputs = 1,                                                                                               \
        .infer = reduce_infer,                                                                                         \
        .forward = reduce_forward,                                                                                     \
        .backward = qd_back_reduce                                                                                     \
    }
REDUCE(mean, "Mean along axes.");
REDUCE(sum, "Sum along axes.");
