/* lower_product.c - the fast backend: convolutions and linear layers, with what is added to them and their activation. */
#include <stdio.h>

#include "plan/lower_int.h"

/* A product of so few rows for each sample is bound by reading its weights: no packing, our own dots. The batch has no say in it, so that
 * a sample's bytes do not depend on the others. */
#define FEW_ROWS 8

static void conv_kind(const qd_lower *l, const qd_group *gr, char *text, size_t n)
{
    snprintf(text, n, "%s%s%s%s", qd_lower_node_of(l, gr->main)->op->name, gr->residual >= 0 ? "+add" : "",
             gr->act >= 0 ? "+" : "", gr->act >= 0 ? qd_lower_node_of(l, gr->act)->op->name : "");
}

static void set_act(const qd_lower *l, const qd_group *gr, qd_conv_spec *spec)
{
    if (gr->act < 0)
        return;
    qd_act_of(qd_lower_node_of(l, gr->act)->op, &spec->act);
    if (spec->act == QD_ACT_CLIP) {
        spec->clip_lo = (float)qd_node_float(qd_lower_node_of(l, gr->act), "lo");
        spec->clip_hi = (float)qd_node_float(qd_lower_node_of(l, gr->act), "hi");
    }
}

/* conv then norm is one conv: w' = mul w, b' = mul b + add. The copies live until the weights are packed. */
static qd_status fold_batch_norm(qd_lower *l, const qd_group *gr, qd_conv_spec *spec, float **memory, qd_err *err)
{
    float *mul, *add;
    qd_status st = qd_lower_batch_norm(l, gr->bn, &mul, &add, err);
    if (st)
        return st;
    const int64_t o = spec->shape.o, each = spec->shape.c / spec->shape.groups * spec->shape.kh * spec->shape.kw;
    *memory = qd_alloc((size_t)(o * each + o) * sizeof(float));
    if (!*memory)
        return qd_fail(err, QD_E_NOMEM, "no memory to fold '%s'", qd_lower_node_of(l, gr->bn)->name);
    float *bias = *memory + o * each;
    const float *w = spec->weight;
    for (int64_t k = 0; k < o; k++) {
        for (int64_t j = 0; j < each; j++)
            (*memory)[k * each + j] = w[k * each + j] * mul[k];
        bias[k] = (spec->bias ? spec->bias[k] * mul[k] : 0.0f) + add[k];
    }
    spec->weight = *memory;
    spec->bias = bias;
    return QD_OK;
}

/* Rows of a linear are the pixels of a 1 x 1 convolution. */
qd_conv_shape qd_linear_shape(int64_t rows, int64_t in, int64_t out)
{
    return (qd_conv_shape){ .n = 1,
                            .c = in,
                            .h = 1,
                            .w = rows,
                            .o = out,
                            .oh = 1,
                            .ow = rows,
                            .kh = 1,
                            .kw = 1,
                            .stride_h = 1,
                            .stride_w = 1,
                            .dil_h = 1,
                            .dil_w = 1,
                            .groups = 1 };
}

static qd_status lower_integer_product(qd_lower *l, const qd_group *gr, qd_conv_step *c, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, gr->main);
    const bool conv = gr->kind == QD_GROUP_CONV;
    const qd_node_id codes = qd_fused_input(&l->f, gr->main, 0);
    const bool shifted = qd_lower_node_of(l, codes)->dtype == QD_I8;
    const int32_t zero = (int32_t)qd_node_int(n, "x_zero"), zero_code = shifted ? zero + 128 : zero;
    int32_t border[4] = { 0 };
    if (conv)
        for (int k = 0; k < 4; k++)
            border[k] = (int32_t)qd_node_ints(n, "pads")->ints[k];
    c->spec.codes = true;
    c->spec.bias = qd_lower_known(l, gr->main, 3);
    qd_status st =
        qd_lower_want_codes(l, codes, conv ? QD_LAYOUT_LAST : QD_LAYOUT_ROW, border, zero_code, &c->source[0], err);
    const qd_qconv_step q = { .weight = &l->f.info[qd_fused_input(&l->f, gr->main, 1)].folded,
                              .wscale = qd_lower_known(l, gr->main, 2),
                              .group_size = qd_node_int(n, "group_size"),
                              .x_scale = (float)qd_node_float(n, "x_scale"),
                              .x_zero = zero,
                              .shifted = shifted };
    return st ? st : qd_add_qconv_step(l->p, c, &q, err);
}

qd_status qd_lower_product(qd_lower *l, const qd_group *gr, qd_err *err)
{
    char kind[64];
    const qd_node *n = qd_lower_node_of(l, gr->main);
    const bool conv = gr->kind == QD_GROUP_CONV, codes = n->op == &qd_op_qconv2d || n->op == &qd_op_qlinear;
    const qd_node_id x = qd_fused_input(&l->f, gr->main, 0), w = qd_fused_input(&l->f, gr->main, 1);
    const qd_shape *in = &l->shapes[x];
    float *folded = NULL;
    qd_conv_step c = { .name = qd_lower_node_of(l, gr->end)->name,
                       .kind = kind,
                       .macs = qd_lower_macs(l, gr->main),
                       .n_sources = 1,
                       .residual = -1 };
    conv_kind(l, gr, kind, sizeof(kind));
    c.spec.shape = conv ? qd_node_conv_shape(n, in, &l->shapes[w], &l->shapes[gr->main])
                        : qd_linear_shape(qd_count_of(in) / qd_last_dim(in), qd_last_dim(in), l->shapes[w].dim[0]);
    c.channels[0] = c.spec.shape.c;
    set_act(l, gr, &c.spec);
    qd_status st = QD_OK;

    if (!codes && !conv && c.spec.shape.w <= FEW_ROWS * in->dim[0] && gr->residual < 0 && gr->act < 0) {
        qd_value_id src;
        st = qd_lower_want(l, x, QD_LAYOUT_ROW, &src, err);
        if (!st)
            st = qd_lower_value(l, gr->end, NULL, &c.out, err);
        if (!st)
            st =
                qd_plan_add_constant(l->p, NULL, &l->f.info[w].folded, &c.source[0], err); /* keeps the weights alive */
        const qd_node_id b = qd_fused_input(&l->f, gr->main, 2);
        if (!st && b >= 0)
            st = qd_plan_add_constant(l->p, NULL, &l->f.info[b].folded, &c.source[1], err);
        return st ? st
                  : qd_add_dots_step(l->p, c.name, src, qd_lower_known(l, gr->main, 1), qd_lower_known(l, gr->main, 2),
                                     c.spec.shape.w, c.spec.shape.c, c.spec.shape.o, c.out, err);
    }
    if (gr->residual >= 0)
        st = qd_lower_want(l, gr->residual, l->f.info[gr->end].layout, &c.residual, err);
    if (!st)
        st = qd_lower_value(l, gr->end, NULL, &c.out, err);
    if (st)
        return st;
    if (codes)
        return lower_integer_product(l, gr, &c, err);

    c.spec.weight = qd_lower_known(l, gr->main, 1);
    c.spec.bias = qd_lower_known(l, gr->main, 2);
    if (gr->bn >= 0)
        st = fold_batch_norm(l, gr, &c.spec, &folded, err);
    if (!st && conv) {
        qd_part parts[QD_MAX_PARTS];
        c.n_sources = qd_fused_parts(&l->f, x, false, parts);
        for (int k = 0; k < c.n_sources && !st; k++) {
            c.channels[k] = parts[k].count;
            st = qd_lower_want(l, parts[k].node, QD_LAYOUT_LAST, &c.source[k], err);
        }
    } else if (!st) {
        st = qd_lower_want(l, x, QD_LAYOUT_ROW, &c.source[0], err);
    }
    if (!st)
        st = qd_wino_conv_fits(&c) ? qd_add_wino_conv_step(l->p, &c, err) : qd_add_conv_step(l->p, &c, err);
    qd_free(folded);
    return st;
}
