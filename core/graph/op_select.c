/* op_select.c - the operator that takes elements from one of two values, by a third. */
#include "graph/op_int.h"

enum { CONDITION, A, B, OPERANDS };

static qd_status where_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    static const char *const names[OPERANDS] = { "condition", "a", "b" };
    qd_shape r = { .rank = 0 };
    qd_status st = QD_OK;
    for (int k = 0; k < OPERANDS && !st; k++) {
        st = qd_infer_operand(in, k, names[k], QD_F32, 0, QD_MAX_RANK, err);
        r.rank = in[k].shape.rank > r.rank ? in[k].shape.rank : r.rank;
    }
    if (st)
        return st;
    for (int axis = 0; axis < r.rank; axis++) {
        r.dim[axis] = 1;
        for (int k = 0; k < OPERANDS; k++) {
            const int own = axis - (r.rank - in[k].shape.rank);
            const int64_t d = own < 0 ? 1 : in[k].shape.dim[own];
            if (d != 1 && r.dim[axis] != 1 && d != r.dim[axis])
                return qd_fail(err, QD_E_INVALID, "%s has %lld along axis %d of the result, another operand %lld",
                               names[k], (long long)d, axis, (long long)r.dim[axis]);
            r.dim[axis] = d == 1 ? r.dim[axis] : d;
        }
    }
    *shape = r;
    *dtype = QD_F32;
    return qd_infer_result(&r, err);
}

static void where_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *s = &out->shape;
    int64_t stride[OPERANDS][QD_MAX_RANK], at[OPERANDS] = { 0 }, index[QD_MAX_RANK] = { 0 };
    for (int k = 0; k < OPERANDS; k++) {
        int64_t step = 1;
        for (int axis = s->rank - 1; axis >= 0; axis--) {
            const int own = axis - (s->rank - in[k]->shape.rank);
            const int64_t d = own < 0 ? 1 : in[k]->shape.dim[own];
            stride[k][axis] = d == 1 ? 0 : step;
            step *= d;
        }
    }
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++) {
        const int side = qd_f32(in[CONDITION])[at[CONDITION]] > 0.0f ? A : B;
        qd_f32(out)[i] = qd_f32(in[side])[at[side]];
        for (int axis = s->rank - 1; axis >= 0; axis--) {
            for (int k = 0; k < OPERANDS; k++)
                at[k] += stride[k][axis];
            if (++index[axis] < s->dim[axis])
                break;
            for (int k = 0; k < OPERANDS; k++)
                at[k] -= stride[k][axis] * s->dim[axis];
            index[axis] = 0;
        }
    }
}

const qd_op qd_op_where = {
    .name = "where",
    .summary = "a where the condition is above 0, else b; broadcast.",
    .min_inputs = OPERANDS,
    .max_inputs = OPERANDS,
    .infer = where_infer,
    .forward = where_forward,
    .backward = qd_back_where,
};
