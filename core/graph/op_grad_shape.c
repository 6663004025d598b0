/* op_grad_shape.c - adjoints of the operators that pick elements: what was read from a place is added back there. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "graph/op_int.h"

static int64_t index_at(const qd_tensor *t, int64_t i, int64_t last)
{
    int64_t row;
    if (t->dtype == QD_I64) {
        memcpy(&row, (const char *)t->data + i * 8, sizeof row); /* mapped files hand out i64 at any byte */
    } else {
        const float v = qd_f32(t)[i];
        row = v >= (float)last ? last : v > 0.0f ? (int64_t)v : 0;
    }
    return row < 0 ? 0 : row > last ? last : row;
}

static void clear(qd_tensor *t)
{
    memset(t->data, 0, qd_tensor_bytes(t));
}

static qd_status slice_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    int axis;
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "like", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_axis(n, "axis", in[1].shape.rank, &axis, err);
    if (st)
        return st;
    const qd_shape *x = &in[1].shape;
    const int64_t dim = x->dim[axis];
    st = qd_infer_int(n, "start", -dim, dim - 1, err);
    if (!st)
        st = qd_infer_int(n, "step", 1, QD_MAX_ELEMENTS, err);
    if (st)
        return st;
    qd_shape want = *x;
    want.dim[axis] = in[0].shape.rank == x->rank ? in[0].shape.dim[axis] : 0;
    st = qd_infer_matches(in, 0, "dy", &want, err);
    const int64_t given = qd_node_int(n, "start"), start = given < 0 ? given + dim : given;
    if (!st && want.dim[axis] > (dim - 1 - start) / qd_node_int(n, "step") + 1)
        st = qd_fail(err, QD_E_INVALID, "%lld elements from %lld by %lld do not fit an axis of %lld",
                     (long long)want.dim[axis], (long long)start, (long long)qd_node_int(n, "step"), (long long)dim);
    *shape = *x;
    *dtype = QD_F32;
    return st;
}

static void slice_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &out->shape, *dy = &in[0]->shape;
    const int axis = qd_node_axis(n, "axis", x->rank);
    const int64_t given = qd_node_int(n, "start"), start = given < 0 ? given + x->dim[axis] : given;
    const int64_t step = qd_node_int(n, "step"), inner = qd_dims(x, axis + 1, x->rank);
    const float *src = qd_f32(in[0]);
    clear(out);
    for (int64_t outer = 0; outer < qd_dims(x, 0, axis); outer++)
        for (int64_t k = 0; k < dy->dim[axis]; k++, src += inner)
            memcpy(qd_f32(out) + (outer * x->dim[axis] + start + k * step) * inner, src, (size_t)inner * sizeof(float));
}

const qd_op qd_op_slice_grad = {
    .name = "slice_grad",
    .summary = "Zeros of the shape of `like` with dy where the slice was taken.",
    .attrs = (const qd_op_attr[]){ { "axis", QD_ATTR_INT, NAN, 0, "axis, negative from the end" },
                                   { "start", QD_ATTR_INT, 0, 0, "first element, negative from the end" },
                                   { "step", QD_ATTR_INT, 1, 0, "distance of the elements taken, >= 1" },
                                   { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = slice_grad_infer,
    .forward = slice_grad_forward,
    .no_gradient = qd_no_second,
};

static qd_status gather_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                   qd_err *err)
{
    int axis;
    const bool wide = in[1].shape.rank >= 0 && in[1].dtype == QD_I64;
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "index", wide ? QD_I64 : QD_F32, 1, 1, err);
    if (!st)
        st = qd_infer_operand(in, 2, "like", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_axis(n, "axis", in[2].shape.rank, &axis, err);
    if (st)
        return st;
    qd_shape want = in[2].shape;
    want.dim[axis] = in[1].shape.dim[0];
    st = qd_infer_matches(in, 0, "dy", &want, err);
    *shape = in[2].shape;
    *dtype = QD_F32;
    return st;
}

static void gather_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &out->shape;
    const int axis = qd_node_axis(n, "axis", x->rank);
    const int64_t inner = qd_dims(x, axis + 1, x->rank), count = in[1]->shape.dim[0];
    const float *src = qd_f32(in[0]);
    clear(out);
    for (int64_t outer = 0; outer < qd_dims(x, 0, axis); outer++)
        for (int64_t k = 0; k < count; k++, src += inner) {
            float *dst = qd_f32(out) + (outer * x->dim[axis] + index_at(in[1], k, x->dim[axis] - 1)) * inner;
            for (int64_t i = 0; i < inner; i++)
                dst[i] += src[i];
        }
}

const qd_op qd_op_gather_grad = {
    .name = "gather_grad",
    .summary = "(dy, index, like): the slices of dy added up where they were gathered from.",
    .attrs = (const qd_op_attr[]){ { "axis", QD_ATTR_INT, NAN, 0, "axis, negative from the end" }, { NULL } },
    .min_inputs = 3,
    .max_inputs = 3,
    .infer = gather_grad_infer,
    .forward = gather_grad_forward,
    .no_gradient = qd_no_second,
};

/* The part of dy that the last operand became; those before it were put in front. */
static qd_status concat_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                   qd_err *err)
{
    int axis;
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_axis(n, "axis", in[0].shape.rank, &axis, err);
    if (st)
        return st;
    int64_t sum = 0;
    for (int k = 1; k < n->n_inputs; k++) {
        char what[32];
        snprintf(what, sizeof what, "input %d", k);
        st = qd_infer_operand(in, k, what, QD_F32, in[0].shape.rank, in[0].shape.rank, err);
        qd_shape want = in[0].shape;
        if (!st)
            want.dim[axis] = in[k].shape.dim[axis];
        if (!st)
            st = qd_infer_matches(in, k, what, &want, err);
        if (st)
            return st;
        sum += in[k].shape.dim[axis];
    }
    if (sum > in[0].shape.dim[axis])
        return qd_fail(err, QD_E_INVALID, "the parts have %lld of axis %d, dy only %lld", (long long)sum, axis,
                       (long long)in[0].shape.dim[axis]);
    *shape = in[n->n_inputs - 1].shape;
    *dtype = QD_F32;
    return QD_OK;
}

static void concat_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *dy = &in[0]->shape;
    const int axis = qd_node_axis(n, "axis", dy->rank);
    const int64_t block = qd_dims(&out->shape, axis, dy->rank), whole = qd_dims(dy, axis, dy->rank);
    int64_t before = 0;
    for (int k = 1; k < n->n_inputs - 1; k++)
        before += qd_dims(&in[k]->shape, axis, dy->rank);
    for (int64_t outer = 0; outer < qd_dims(dy, 0, axis); outer++)
        memcpy(qd_f32(out) + outer * block, qd_f32(in[0]) + outer * whole + before, (size_t)block * sizeof(float));
}

const qd_op qd_op_concat_grad = {
    .name = "concat_grad",
    .summary = "(dy, parts before .., part): what of dy belongs to the last part.",
    .attrs = (const qd_op_attr[]){ { "axis", QD_ATTR_INT, 1, 0, "axis, negative from the end" }, { NULL } },
    .min_inputs = 2,
    .max_inputs = QD_MAX_INPUTS,
    .infer = concat_grad_infer,
    .forward = concat_grad_forward,
    .no_gradient = qd_no_second,
};

static qd_status pad_grad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "dy", QD_F32, 1, QD_MAX_RANK / 2, err);
    if (!st)
        st = qd_infer_ints(n, "pads", 0, QD_MAX_ELEMENTS, err);
    if (st)
        return st;
    const qd_attr *pads = qd_node_ints(n, "pads");
    qd_shape r = in[0].shape;
    if (pads->n != 2 * r.rank)
        return qd_fail(err, QD_E_INVALID, "pads has %d values, must have 2 x rank = %d", pads->n, 2 * r.rank);
    for (int k = 0; k < r.rank; k++) {
        r.dim[k] -= pads->ints[k] + pads->ints[r.rank + k];
        if (r.dim[k] < 1)
            return qd_fail(err, QD_E_INVALID, "pads leave nothing of axis %d", k);
    }
    *shape = r;
    *dtype = QD_F32;
    return QD_OK;
}

static void pad_grad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *o = &out->shape, *dy = &in[0]->shape;
    const int64_t *pads = qd_node_ints(n, "pads")->ints, width = o->dim[o->rank - 1];
    for (int64_t row = 0; row < qd_dims(o, 0, o->rank - 1); row++) {
        int64_t at = pads[o->rank - 1], rest = row, stride = dy->dim[o->rank - 1];
        for (int k = o->rank - 2; k >= 0; k--) {
            at += (rest % o->dim[k] + pads[k]) * stride;
            rest /= o->dim[k];
            stride *= dy->dim[k];
        }
        memcpy(qd_f32(out) + row * width, qd_f32(in[0]) + at, (size_t)width * sizeof(float));
    }
}

const qd_op qd_op_pad_grad = {
    .name = "pad_grad",
    .summary = "dy without its border.",
    .attrs = (const qd_op_attr[]){ { "pads", QD_ATTR_INTS, NAN, 0, "elements before each axis, then after each axis" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = pad_grad_infer,
    .forward = pad_grad_forward,
    .no_gradient = qd_no_second,
};
