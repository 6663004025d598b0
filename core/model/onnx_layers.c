/* onnx_layers.c - ONNX operators with weights: convolutions, Gemm and MatMul, the normalisations. */
#include "model/onnx_codes.h"

#include <string.h>

/* --- constants that change before they become nodes --- */

/* A constant input as a const node under another shape of as many elements; -1 with *st set, or left out. */
static qd_node_id const_shaped(qd_onnx_reader *r, const qd_onnx_node *n, int k, const char *suffix,
                               const qd_shape *shape, qd_status *st, qd_err *err)
{
    const qd_tensor *t;
    int64_t count = 0;
    *st = qd_onnx_fixed(r, n, k, &t, err);
    if (*st || !t)
        return -1;
    *st = qd_shape_count(shape, &count, err);
    if (*st)
        return -1;
    if (t->dtype != QD_F32 || qd_tensor_count(t) != count) {
        char text[160];
        *st = qd_fail(err, QD_E_FORMAT, "input %d ('%.100s') has %lld elements, must be floats of shape %s", k,
                      n->input[k], (long long)qd_tensor_count(t), qd_shape_text(shape, text, sizeof(text)));
        return -1;
    }
    if (qd_shape_equal(&t->shape, shape))
        return qd_onnx_node_of(r, n, k);
    qd_tensor view;
    qd_tensor_share(&view, t);
    view.shape = *shape;
    const qd_node_id id = qd_onnx_const(r, n, suffix, &view);
    qd_tensor_clear(&view);
    return id;
}

/* --- convolutions --- */

/* [O, I, k] as [O, I, 1, k]. */
static qd_node_id plane_weight(qd_onnx_reader *r, const qd_onnx_node *n, const qd_shape *w, qd_status *st, qd_err *err)
{
    const qd_shape plane = QD_SHAPE(w->dim[0], w->dim[1], 1, w->dim[2]);
    return const_shaped(r, n, 1, "weight", &plane, st, err);
}

/* What both convolutions begin with: x and the weight over planes, and the window. */
static qd_status conv_begin(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id *x, qd_node_id *weight,
                            qd_onnx_window *window, qd_err *err)
{
    const qd_shape *s = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0), *w = qd_onnx_shape_of(qd_onnx_in(r, n, 1), 0);
    if ((s->rank != 3 && s->rank != 4) || w->rank != s->rank)
        return qd_fail(err, QD_E_UNSUPPORTED, "a convolution of a value of rank %d with a weight of rank %d", s->rank,
                       w->rank);
    qd_status st = qd_onnx_window_of(n, s, w->dim + 2, window, err);
    if (st)
        return st;
    *x = qd_onnx_node_of(r, n, 0);
    *weight = s->rank == 4 ? qd_onnx_node_of(r, n, 1) : plane_weight(r, n, w, &st, err);
    if (s->rank == 3)
        *x = qd_onnx_to_plane(r, n, *x);
    return st;
}

static qd_status conv_end(qd_onnx_reader *r, const qd_onnx_node *n, const qd_onnx_window *window, qd_node_id made,
                          qd_err *err)
{
    return qd_onnx_set(r, n, 0, window->rank == 1 ? qd_onnx_from_plane(r, n, made) : made, err);
}

/* The floats of a coded weight, after nothing could be made of its codes. */
static qd_status spell_weight(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    return qd_onnx_spell(r, &r->value[qd_onnx_in(r, n, 1) - r->value], err);
}

qd_status qd_onnx_conv(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    qd_onnx_window w;
    qd_node_id x, weight;
    qd_status st = QD_OK;
    if (qd_onnx_coded_in(r, n, 1)) {
        st = qd_onnx_conv_of_codes(r, n, &x, err);
        if (st || x >= 0)
            return st ? st : qd_onnx_set(r, n, 0, x, err);
        st = spell_weight(r, n, err);
    }
    if (!st)
        st = conv_begin(r, n, &x, &weight, &w, err);
    if (st)
        return st;
    const qd_node_id bias = qd_onnx_node_of(r, n, 2);
    const qd_node_id made = qd_onnx_add(r, n, NULL, &qd_op_conv2d, (qd_node_id[]){ x, weight, bias }, bias < 0 ? 2 : 3,
                                        QD_ATTRS(qd_attr_ints("stride", 2, w.stride), qd_attr_ints("pads", 4, w.pads),
                                                 qd_attr_ints("dilation", 2, w.dilation),
                                                 QD_INT("groups", qd_onnx_attr_int(n, "group", 1))));
    return conv_end(r, n, &w, made, err);
}

qd_status qd_onnx_conv_transpose(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    qd_onnx_window w;
    qd_node_id x, weight;
    int64_t list[QD_ONNX_LIST], extra[2] = { 0, 0 };
    int count;
    if (qd_onnx_attr_find(n, "output_shape") || strncmp(qd_onnx_attr_string(n, "auto_pad", "NOTSET"), "SAME", 4) == 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "output_shape and auto_pad %s of a transposed convolution",
                       qd_onnx_attr_string(n, "auto_pad", "NOTSET"));
    qd_status st = conv_begin(r, n, &x, &weight, &w, err);
    if (!st)
        st = qd_onnx_list(r, n, "output_padding", -1, 0, list, &count, err);
    if (st)
        return st;
    if (count >= 0 && count != w.rank)
        return qd_fail(err, QD_E_FORMAT, "output_padding has %d values, must have %d", count, w.rank);
    for (int k = 0; k < count; k++)
        extra[2 - w.rank + k] = list[k];
    const qd_node_id bias = qd_onnx_node_of(r, n, 2);
    const qd_node_id made =
        qd_onnx_add(r, n, NULL, &qd_op_conv_transpose2d, (qd_node_id[]){ x, weight, bias }, bias < 0 ? 2 : 3,
                    QD_ATTRS(qd_attr_ints("stride", 2, w.stride), qd_attr_ints("pads", 4, w.pads),
                             qd_attr_ints("dilation", 2, w.dilation), QD_INT("groups", qd_onnx_attr_int(n, "group", 1)),
                             qd_attr_ints("output_pad", 2, extra)));
    return conv_end(r, n, &w, made, err);
}

/* --- products --- */

/* weight [O, I] of a linear row from b, [I, O] or (turned) [O, I], times `factor`. */
static qd_node_id linear_weight(qd_onnx_reader *r, const qd_onnx_node *n, const qd_tensor *b, bool turned, float factor,
                                qd_status *st, qd_err *err)
{
    if (turned && factor == 1.0f)
        return qd_onnx_node_of(r, n, 1);
    const int64_t out = b->shape.dim[turned ? 0 : 1], in = b->shape.dim[turned ? 1 : 0];
    const qd_shape shape = QD_SHAPE(out, in);
    qd_tensor t = { 0 };
    *st = qd_tensor_init(&t, QD_F32, &shape, r->budget, err);
    if (*st)
        return -1;
    for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++)
            qd_f32(&t)[o * in + i] = factor * qd_f32(b)[turned ? o * in + i : i * out + o];
    const qd_node_id id = qd_onnx_const(r, n, "weight", &t);
    qd_tensor_clear(&t);
    return id;
}

/* Is input k a fixed float constant of rank 2? */
static bool is_matrix(const qd_onnx_reader *r, const qd_onnx_node *n, int k)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, k);
    return v && v->constant && v->dtype == QD_F32 && v->t[0].shape.rank == 2 && qd_onnx_number_fixed(v);
}

qd_status qd_onnx_matmul(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    if (qd_onnx_coded_in(r, n, 1)) {
        qd_node_id made;
        qd_status st = qd_onnx_linear_of_codes(r, n, NULL, false, -1, &made, err);
        if (!st && made >= 0)
            return qd_onnx_set(r, n, 0, made, err);
        if (!st)
            st = spell_weight(r, n, err);
        if (st)
            return st;
    }
    const qd_node_id a = qd_onnx_node_of(r, n, 0);
    if (is_matrix(r, n, 1) && !qd_onnx_in(r, n, 0)->constant) {
        qd_status st = QD_OK;
        const qd_node_id w = linear_weight(r, n, &qd_onnx_in(r, n, 1)->t[0], false, 1.0f, &st, err);
        return st ? st : qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_linear, QD_IN(a, w), QD_NO_ATTRS), err);
    }
    const qd_node_id b = qd_onnx_node_of(r, n, 1);
    return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_matmul, QD_IN(a, b), QD_NO_ATTRS), err);
}

/* bias [O] of a linear row from C of a Gemm times beta; -1 when it is no such vector. */
static qd_node_id linear_bias(qd_onnx_reader *r, const qd_onnx_node *n, int64_t out, float beta, qd_status *st,
                              qd_err *err)
{
    const qd_onnx_number *c = qd_onnx_in(r, n, 2);
    const qd_shape shape = QD_SHAPE(out);
    if (!c || !c->constant || c->dtype != QD_F32 || !qd_onnx_number_fixed(c) || qd_tensor_count(&c->t[0]) != out)
        return -1;
    for (int k = 0; k + 1 < c->t[0].shape.rank; k++)
        if (c->t[0].shape.dim[k] != 1)
            return -1;
    if (beta == 1.0f)
        return const_shaped(r, n, 2, "bias", &shape, st, err);
    qd_tensor t = { 0 };
    *st = qd_tensor_init(&t, QD_F32, &shape, r->budget, err);
    if (*st)
        return -1;
    for (int64_t k = 0; k < out; k++)
        qd_f32(&t)[k] = beta * qd_f32(&c->t[0])[k];
    const qd_node_id id = qd_onnx_const(r, n, "bias", &t);
    qd_tensor_clear(&t);
    return id;
}

static qd_node_id scaled(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x, float beta)
{
    return beta == 1.0f ? x : qd_onnx_add(r, n, "beta", &qd_op_affine, QD_IN(x), QD_ATTRS(QD_FLOAT("mul", beta)));
}

/* A Gemm by a coded weight, whose C is a vector or nothing; *done when it was one. */
static qd_status gemm_of_codes(qd_onnx_reader *r, const qd_onnx_node *n, bool turned, float beta, bool *done,
                               qd_err *err)
{
    const qd_shape *w = qd_onnx_shape_of(qd_onnx_in(r, n, 1), 0);
    qd_status st = QD_OK;
    if (w->rank != 2)
        return QD_OK;
    const qd_node_id bias = linear_bias(r, n, w->dim[turned ? 0 : 1], beta, &st, err);
    if (st || (bias < 0 && qd_onnx_in(r, n, 2)))
        return st;
    qd_node_id made;
    st = qd_onnx_linear_of_codes(r, n, NULL, turned, bias, &made, err);
    *done = !st && made >= 0;
    return *done ? qd_onnx_set(r, n, 0, made, err) : st;
}

qd_status qd_onnx_gemm(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const float alpha = qd_onnx_attr_float(n, "alpha", 1.0f), beta = qd_onnx_attr_float(n, "beta", 1.0f);
    const bool ta = qd_onnx_attr_int(n, "transA", 0) != 0, tb = qd_onnx_attr_int(n, "transB", 0) != 0;
    const bool has_c = qd_onnx_in(r, n, 2) != NULL;
    qd_node_id a, made;
    qd_status st = QD_OK;
    if (qd_onnx_coded_in(r, n, 1)) {
        bool done = false;
        if (!ta && alpha == 1.0f)
            st = gemm_of_codes(r, n, tb, beta, &done, err);
        if (st || done)
            return st;
        st = spell_weight(r, n, err);
        if (st)
            return st;
    }
    a = qd_onnx_node_of(r, n, 0);
    if (is_matrix(r, n, 1) && !ta && !qd_onnx_in(r, n, 0)->constant) {
        const qd_tensor *b = &qd_onnx_in(r, n, 1)->t[0];
        const qd_node_id w = linear_weight(r, n, b, tb, alpha, &st, err);
        const qd_node_id bias = st ? -1 : linear_bias(r, n, b->shape.dim[tb ? 0 : 1], beta, &st, err);
        if (st)
            return st;
        const bool more = has_c && bias < 0;
        made = qd_onnx_add(r, n, more ? "product" : NULL, &qd_op_linear, (qd_node_id[]){ a, w, bias }, bias < 0 ? 2 : 3,
                           QD_NO_ATTRS);
        if (!more)
            return qd_onnx_set(r, n, 0, made, err);
    } else {
        const qd_node_id b = qd_onnx_node_of(r, n, 1);
        made = qd_onnx_add(r, n, has_c ? "product" : NULL, &qd_op_matmul, QD_IN(a, b),
                           QD_ATTRS(QD_INT("trans_a", ta), QD_INT("trans_b", tb), QD_FLOAT("alpha", alpha)));
    }
    if (has_c) {
        const qd_node_id c = scaled(r, n, qd_onnx_node_of(r, n, 2), beta);
        made = qd_onnx_add(r, n, NULL, &qd_op_add, QD_IN(made, c), QD_NO_ATTRS);
    }
    return qd_onnx_set(r, n, 0, made, err);
}

/* --- normalisations --- */

/* A second output that somebody reads will be missed by name; training itself is refused here. */
qd_status qd_onnx_batch_norm(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    if (qd_onnx_attr_int(n, "training_mode", 0) || qd_onnx_attr_int(n, "spatial", 1) != 1)
        return qd_fail(err, QD_E_UNSUPPORTED, "training mode and statistics for each place are not read");
    qd_node_id in[5];
    for (int k = 0; k < 5; k++)
        in[k] = qd_onnx_node_of(r, n, k);
    return qd_onnx_set(r, n, 0,
                       qd_onnx_add(r, n, NULL, &qd_op_batch_norm, in, 5,
                                   QD_ATTRS(QD_FLOAT("eps", qd_onnx_attr_float(n, "epsilon", 1e-5f)))),
                       err);
}

static qd_status group_norm(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id weight, qd_node_id bias,
                            int64_t groups, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    return qd_onnx_set(
        r, n, 0,
        qd_onnx_add(r, n, NULL, &qd_op_group_norm, QD_IN(x, weight, bias),
                    QD_ATTRS(QD_INT("groups", groups), QD_FLOAT("eps", qd_onnx_attr_float(n, "epsilon", 1e-5f)))),
        err);
}

qd_status qd_onnx_instance_norm(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0);
    if (x->rank < 2)
        return qd_fail(err, QD_E_FORMAT, "a value of rank %d has no channels", x->rank);
    return group_norm(r, n, qd_onnx_node_of(r, n, 1), qd_onnx_node_of(r, n, 2), x->dim[1], err);
}

/* Up to opset 20 weight and bias have one number for each group. */
static qd_node_id each_channel(qd_onnx_reader *r, const qd_onnx_node *n, int k, int64_t groups, int64_t channels,
                               qd_status *st, qd_err *err)
{
    const qd_shape per_channel = QD_SHAPE(channels);
    const qd_tensor *t;
    *st = qd_onnx_fixed(r, n, k, &t, err);
    if (*st)
        return -1;
    if (qd_tensor_count(t) == channels || qd_tensor_count(t) != groups || t->dtype != QD_F32)
        return const_shaped(r, n, k, k == 1 ? "weight" : "bias", &per_channel, st, err);
    qd_tensor wide = { 0 };
    *st = qd_tensor_init(&wide, QD_F32, &per_channel, r->budget, err);
    if (*st)
        return -1;
    for (int64_t c = 0; c < channels; c++)
        qd_f32(&wide)[c] = qd_f32(t)[c / (channels / groups)];
    const qd_node_id id = qd_onnx_const(r, n, k == 1 ? "weight" : "bias", &wide);
    qd_tensor_clear(&wide);
    return id;
}

qd_status qd_onnx_group_norm(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0);
    const int64_t groups = qd_onnx_attr_int(n, "num_groups", 0);
    qd_status st = QD_OK;
    if (x->rank < 2 || groups < 1 || x->dim[1] % groups)
        return qd_fail(err, QD_E_FORMAT, "%lld groups do not divide the channels", (long long)groups);
    const qd_node_id weight = each_channel(r, n, 1, groups, x->dim[1], &st, err);
    const qd_node_id bias = st ? -1 : each_channel(r, n, 2, groups, x->dim[1], &st, err);
    return st ? st : group_norm(r, n, weight, bias, groups, err);
}

qd_status qd_onnx_layer_norm(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0), *again = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 1);
    const int64_t given = qd_onnx_attr_int(n, "axis", -1), axis = given < 0 ? given + x->rank : given;
    qd_status st = QD_OK;
    if (axis < 0 || axis >= x->rank)
        return qd_fail(err, QD_E_FORMAT, "axis %lld is not one of a value of rank %d", (long long)given, x->rank);
    const qd_shape tail = qd_shape_of(x->rank - (int)axis, x->dim + axis);
    for (int64_t k = axis; k < x->rank; k++)
        if (x->dim[k] != again->dim[k])
            return qd_fail(err, QD_E_UNSUPPORTED, "the batch is normalised");
    const qd_node_id weight = const_shaped(r, n, 1, "weight", &tail, &st, err);
    const qd_node_id bias = st ? -1 : const_shaped(r, n, 2, "bias", &tail, &st, err);
    if (st)
        return st;
    const qd_node_id id = qd_onnx_node_of(r, n, 0);
    return qd_onnx_set(
        r, n, 0,
        qd_onnx_add(r, n, NULL, &qd_op_layer_norm, (qd_node_id[]){ id, weight, bias }, bias < 0 ? 2 : 3,
                    QD_ATTRS(QD_INT("axes", tail.rank), QD_FLOAT("eps", qd_onnx_attr_float(n, "epsilon", 1e-5f)))),
        err);
}
