/* op_shape.c - operators that move elements without computing: reshape, permute, concat, slice, pad. */
#include "graph/op_int.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static size_t element_bytes(const qd_tensor *t)
{
    return qd_dtype_bits(t->dtype) / 8;
}

/* dst[i * dst_step] = src[i * src_step] for count elements of `bytes`, steps in elements. */
static void copy_strided(char *dst, int64_t dst_step, const char *src, int64_t src_step, int64_t count, size_t bytes)
{
    const int64_t size = (int64_t)bytes;
    if (dst_step == 1 && src_step == 1) {
        memcpy(dst, src, (size_t)count * bytes);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        memcpy(dst + i * dst_step * size, src + i * src_step * size, bytes);
}

static qd_status reshape_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_INFER_ANY, 0, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_ints(n, "shape", -1, QD_MAX_ELEMENTS, err);
    if (st)
        return st;

    const qd_shape *x = &in[0].shape;
    const qd_attr *want = qd_node_ints(n, "shape");
    const int64_t count = qd_dims(x, 0, x->rank);
    qd_shape r = { .rank = want->n };
    int64_t known = 1;
    int open = -1;
    for (int k = 0; k < r.rank; k++) {
        r.dim[k] = want->ints[k];
        if (r.dim[k] == -1) {
            if (open >= 0)
                return qd_fail(err, QD_E_INVALID, "shape has -1 at %d and at %d, only one can be computed", open, k);
            open = k;
            r.dim[k] = 1;
        } else if (r.dim[k] == 0) {
            if (k >= x->rank)
                return qd_fail(err, QD_E_INVALID, "shape[%d] = 0 keeps a dim that x of rank %d does not have", k,
                               x->rank);
            r.dim[k] = x->dim[k];
        }
        known = qd_sat_mul(known, r.dim[k]);
    }
    if (open >= 0 ? count % known != 0 : count != known) {
        char a[160], b[160];
        const qd_shape asked = qd_shape_of(want->n, want->ints);
        return qd_fail(err, QD_E_INVALID, "x of shape %s cannot take shape %s", qd_shape_text(x, a, sizeof a),
                       qd_shape_text(&asked, b, sizeof b));
    }
    if (open >= 0)
        r.dim[open] = count / known;
    *shape = r;
    *dtype = in[0].dtype;
    return QD_OK;
}

static void reshape_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    memcpy(out->data, in[0]->data, qd_tensor_bytes(out));
}

const qd_op qd_op_reshape = {
    .name = "reshape",
    .summary = "The same elements in the same order under another shape.",
    .attrs = (const qd_op_attr[]){ { "shape", QD_ATTR_INTS, NAN, 0, "dims; 0 keeps that dim, one -1 is computed" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = reshape_infer,
    .forward = reshape_forward,
    .backward = qd_back_reshape,
};

static qd_status permute_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_INFER_ANY, 1, QD_MAX_RANK, err);
    if (st)
        return st;
    const qd_shape *x = &in[0].shape;
    st = qd_infer_ints(n, "perm", 0, x->rank - 1, err);
    if (st)
        return st;
    const qd_attr *perm = qd_node_ints(n, "perm");
    if (perm->n != x->rank)
        return qd_fail(err, QD_E_INVALID, "perm has %d values, x has rank %d", perm->n, x->rank);
    qd_shape r = { .rank = x->rank };
    unsigned seen = 0;
    for (int k = 0; k < x->rank; k++) {
        if (seen & 1u << perm->ints[k])
            return qd_fail(err, QD_E_INVALID, "perm names axis %d twice", (int)perm->ints[k]);
        seen |= 1u << perm->ints[k];
        r.dim[k] = x->dim[perm->ints[k]];
    }
    *shape = r;
    *dtype = in[0].dtype;
    return QD_OK;
}

static void permute_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape, *o = &out->shape;
    const int64_t *perm = qd_node_ints(n, "perm")->ints;
    const int last = o->rank - 1;
    const int64_t bytes = (int64_t)element_bytes(out);
    int64_t stride[QD_MAX_RANK], index[QD_MAX_RANK] = { 0 }, at = 0;
    for (int k = 0; k < o->rank; k++)
        stride[k] = qd_dims(x, (int)perm[k] + 1, x->rank);

    char *dst = out->data;
    for (int64_t rows = qd_dims(o, 0, last); rows > 0; rows--) {
        copy_strided(dst, 1, (const char *)in[0]->data + at * bytes, stride[last], o->dim[last], (size_t)bytes);
        dst += o->dim[last] * bytes;
        for (int k = last - 1; k >= 0; k--) {
            at += stride[k];
            if (++index[k] < o->dim[k])
                break;
            at -= stride[k] * o->dim[k];
            index[k] = 0;
        }
    }
}

const qd_op qd_op_permute = {
    .name = "permute",
    .summary = "Axes in another order.",
    .attrs =
        (const qd_op_attr[]){ { "perm", QD_ATTR_INTS, NAN, 0, "axis k of the result is axis perm[k] of x" }, { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = permute_infer,
    .forward = permute_forward,
    .backward = qd_back_permute,
};

static qd_status concat_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "input 0", QD_INFER_ANY, 1, QD_MAX_RANK, err);
    int axis;
    if (!st)
        st = qd_infer_axis(n, "axis", in[0].shape.rank, &axis, err);
    if (st)
        return st;
    qd_shape r = in[0].shape;
    for (int k = 1; k < n->n_inputs; k++) {
        char what[32];
        snprintf(what, sizeof what, "input %d", k);
        st = qd_infer_operand(in, k, what, in[0].dtype, r.rank, r.rank, err);
        if (st)
            return st;
        for (int d = 0; d < r.rank; d++)
            if (d != axis && in[k].shape.dim[d] != r.dim[d]) {
                char a[160], b[160];
                return qd_fail(err, QD_E_INVALID, "%s has shape %s, input 0 has %s: they may differ in axis %d only",
                               what, qd_shape_text(&in[k].shape, a, sizeof a), qd_shape_text(&in[0].shape, b, sizeof b),
                               axis);
            }
        r.dim[axis] += in[k].shape.dim[axis];
    }
    *shape = r;
    *dtype = in[0].dtype;
    return qd_infer_result(&r, err);
}

static void concat_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const int axis = qd_node_axis(n, "axis", out->shape.rank);
    const size_t bytes = element_bytes(out);
    char *dst = out->data;
    for (int64_t outer = 0; outer < qd_dims(&out->shape, 0, axis); outer++)
        for (int k = 0; k < n->n_inputs; k++) {
            const size_t block = (size_t)qd_dims(&in[k]->shape, axis, out->shape.rank) * bytes;
            memcpy(dst, (const char *)in[k]->data + (size_t)outer * block, block);
            dst += block;
        }
}

const qd_op qd_op_concat = {
    .name = "concat",
    .summary = "Values one after the other along an axis.",
    .attrs = (const qd_op_attr[]){ { "axis", QD_ATTR_INT, 1, 0, "axis, negative from the end" }, { NULL } },
    .min_inputs = 1,
    .max_inputs = QD_MAX_INPUTS,
    .infer = concat_infer,
    .forward = concat_forward,
    .backward = qd_back_concat,
};

static qd_status slice_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_INFER_ANY, 1, QD_MAX_RANK, err);
    int axis;
    if (!st)
        st = qd_infer_axis(n, "axis", in[0].shape.rank, &axis, err);
    if (st)
        return st;
    const int64_t dim = in[0].shape.dim[axis];
    st = qd_infer_int(n, "start", -dim, dim - 1, err);
    if (!st)
        st = qd_infer_int(n, "length", -1, dim, err);
    if (!st)
        st = qd_infer_int(n, "step", 1, QD_MAX_ELEMENTS, err);
    if (st)
        return st;
    const int64_t given = qd_node_int(n, "start"), start = given < 0 ? given + dim : given;
    const int64_t most = (dim - 1 - start) / qd_node_int(n, "step") + 1;
    const int64_t asked = qd_node_int(n, "length"), length = asked < 0 ? most : asked;
    if (length < 1 || length > most)
        return qd_fail(err, QD_E_INVALID, "length must be 1..%lld for axis %d of size %lld from %lld by %lld, got %lld",
                       (long long)most, axis, (long long)dim, (long long)start, (long long)qd_node_int(n, "step"),
                       (long long)asked);
    *shape = in[0].shape;
    shape->dim[axis] = length;
    *dtype = in[0].dtype;
    return QD_OK;
}

static void slice_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape;
    const int axis = qd_node_axis(n, "axis", x->rank);
    const int64_t dim = x->dim[axis], given = qd_node_int(n, "start"), start = given < 0 ? given + dim : given;
    const int64_t step = qd_node_int(n, "step"), length = out->shape.dim[axis];
    const int64_t inner = qd_dims(x, axis + 1, x->rank) * (int64_t)element_bytes(out);
    char *dst = out->data;
    for (int64_t outer = 0; outer < qd_dims(x, 0, axis); outer++) {
        const char *src = (const char *)in[0]->data + (outer * dim + start) * inner;
        copy_strided(dst, 1, src, step, length, (size_t)inner);
        dst += length * inner;
    }
}

const qd_op qd_op_slice = {
    .name = "slice",
    .summary = "Part of one axis.",
    .attrs = (const qd_op_attr[]){ { "axis", QD_ATTR_INT, NAN, 0, "axis, negative from the end" },
                                   { "start", QD_ATTR_INT, 0, 0, "first element, negative from the end" },
                                   { "length", QD_ATTR_INT, -1, 0, "elements of the result; -1 = to the end" },
                                   { "step", QD_ATTR_INT, 1, 0, "distance of the elements taken, >= 1" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = slice_infer,
    .forward = slice_forward,
    .backward = qd_back_slice,
};

static qd_status gather_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_INFER_ANY, 1, QD_MAX_RANK, err);
    int axis;
    if (!st)
        st = qd_infer_operand(in, 1, "index", QD_I64, 1, 1, err);
    if (!st)
        st = qd_infer_axis(n, "axis", in[0].shape.rank, &axis, err);
    if (st)
        return st;
    qd_shape r = in[0].shape;
    r.dim[axis] = in[1].shape.dim[0];
    *shape = r;
    *dtype = in[0].dtype;
    return qd_infer_result(&r, err);
}

static void gather_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape;
    const int axis = qd_node_axis(n, "axis", x->rank);
    const size_t inner = (size_t)qd_dims(x, axis + 1, x->rank) * element_bytes(out);
    const char *src = in[0]->data;
    char *dst = out->data;
    for (int64_t outer = qd_dims(x, 0, axis); outer > 0; outer--) {
        for (int64_t k = 0; k < in[1]->shape.dim[0]; k++) {
            int64_t at;
            memcpy(&at, (const char *)in[1]->data + k * 8, sizeof at); /* mapped files hand out i64 at any byte */
            at = at < 0 ? 0 : at >= x->dim[axis] ? x->dim[axis] - 1 : at;
            memcpy(dst, src + (size_t)at * inner, inner);
            dst += inner;
        }
        src += (size_t)x->dim[axis] * inner;
    }
}

const qd_op qd_op_gather = {
    .name = "gather",
    .summary = "Slices along an axis by index.",
    .attrs = (const qd_op_attr[]){ { "axis", QD_ATTR_INT, NAN, 0, "axis, negative from the end" }, { NULL } },
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = gather_infer,
    .forward = gather_forward,
    .backward = qd_back_gather,
};

static qd_status expand_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 0, QD_MAX_RANK, err);
    if (!st && in[1].shape.rank >= 0)
        st = qd_infer_operand(in, 1, "like", QD_INFER_ANY, 1, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_ints(n, "shape", 0, QD_MAX_ELEMENTS, err);
    if (st)
        return st;
    const qd_shape *x = &in[0].shape;
    const qd_attr *want = qd_node_ints(n, "shape");
    qd_shape r = qd_shape_of(want->n, want->ints);
    for (int k = 0; k < r.rank; k++) {
        const int from = k - (r.rank - x->rank);
        if (r.dim[k] == 0 && in[1].shape.rank < 0)
            return qd_fail(err, QD_E_INVALID, "shape[%d] = 0 asks for the first dim of `like`, which is missing", k);
        if (r.dim[k] == 0)
            r.dim[k] = in[1].shape.dim[0];
        if (from >= 0 && x->dim[from] != 1 && x->dim[from] != r.dim[k])
            return qd_fail(err, QD_E_INVALID, "axis %d of size %lld cannot become %lld", from, (long long)x->dim[from],
                           (long long)r.dim[k]);
    }
    if (r.rank < x->rank)
        return qd_fail(err, QD_E_INVALID, "x has rank %d, shape only %d", x->rank, r.rank);
    *shape = r;
    *dtype = QD_F32;
    return qd_infer_result(&r, err);
}

static void expand_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape, *o = &out->shape;
    int64_t stride[QD_MAX_RANK] = { 0 }, index[QD_MAX_RANK] = { 0 }, at = 0;
    for (int k = 0; k < x->rank; k++)
        if (x->dim[k] != 1)
            stride[k + o->rank - x->rank] = qd_dims(x, k + 1, x->rank);
    for (int64_t i = 0, count = qd_tensor_count(out); i < count; i++) {
        qd_f32(out)[i] = qd_f32(in[0])[at];
        for (int k = o->rank - 1; k >= 0; k--) {
            at += stride[k];
            if (++index[k] < o->dim[k])
                break;
            at -= stride[k] * o->dim[k];
            index[k] = 0;
        }
    }
}

const qd_op qd_op_expand = {
    .name = "expand",
    .summary = "A value repeated along axes of size 1.",
    .attrs = (const qd_op_attr[]){ { "shape", QD_ATTR_INTS, NAN, 0, "dims of the result; 0 = the first dim of `like`" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 2,
    .infer = expand_infer,
    .forward = expand_forward,
    .backward = qd_back_expand,
};

static qd_status pad_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    const bool codes = in[0].shape.rank >= 0 && (in[0].dtype == QD_U8 || in[0].dtype == QD_I8);
    qd_status st = qd_infer_operand(in, 0, "x", codes ? in[0].dtype : QD_F32, 1, QD_MAX_RANK / 2, err);
    if (!st)
        st = qd_infer_ints(n, "pads", 0, QD_MAX_ELEMENTS, err);
    if (!st)
        st = qd_infer_finite(n, "value", err);
    if (st)
        return st;
    const qd_attr *pads = qd_node_ints(n, "pads");
    const double value = qd_node_float(n, "value");
    const int lo = in[0].dtype == QD_I8 ? -128 : 0;
    if (codes && (value < lo || value > lo + 255 || value != floor(value)))
        return qd_fail(err, QD_E_INVALID, "value must be a whole number in %d..%d for %s, got %g", lo, lo + 255,
                       qd_dtype_name(in[0].dtype), value);
    qd_shape r = in[0].shape;
    if (pads->n != 2 * r.rank)
        return qd_fail(err, QD_E_INVALID, "pads has %d values, must have 2 x rank = %d", pads->n, 2 * r.rank);
    for (int k = 0; k < r.rank; k++)
        r.dim[k] += pads->ints[k] + pads->ints[r.rank + k];
    *shape = r;
    *dtype = in[0].dtype;
    return qd_infer_result(&r, err);
}

static void pad_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *x = &in[0]->shape, *o = &out->shape;
    const int64_t *pads = qd_node_ints(n, "pads")->ints;
    const int last = x->rank - 1;
    const int64_t bytes = (int64_t)element_bytes(out), count = qd_tensor_count(out);
    const double value = qd_node_float(n, "value");
    if (out->dtype == QD_F32)
        for (int64_t i = 0; i < count; i++)
            qd_f32(out)[i] = (float)value;
    else
        memset(out->data, (int)value, (size_t)count);

    int64_t index[QD_MAX_RANK] = { 0 };
    const char *src = in[0]->data;
    for (int64_t rows = qd_dims(x, 0, last); rows > 0; rows--) {
        int64_t at = 0;
        for (int k = 0; k < x->rank; k++)
            at = at * o->dim[k] + (k < last ? index[k] : 0) + pads[k];
        memcpy((char *)out->data + at * bytes, src, (size_t)(x->dim[last] * bytes));
        src += x->dim[last] * bytes;
        for (int k = last - 1; k >= 0; k--) {
            if (++index[k] < x->dim[k])
                break;
            index[k] = 0;
        }
    }
}

const qd_op qd_op_pad = {
    .name = "pad",
    .summary = "A border of one value.",
    .attrs = (const qd_op_attr[]){ { "pads", QD_ATTR_INTS, NAN, 0, "elements before each axis, then after each axis" },
                                   { "value", QD_ATTR_FLOAT, 0.0, 0, "what the border holds" },
                                   { NULL } },
    .min_inputs = 1,
    .max_inputs = 1,
    .infer = pad_infer,
    .forward = pad_forward,
    .backward = qd_back_pad,
};
