/* lower.c - the fast backend: turn groups into steps, in the graph's order; nodes on their own are lower_single.c's. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "plan/cpu_train.h"
#include "plan/lower_int.h"

/* A product of so few rows for each sample is bound by reading its weights: no packing, our own dots. The batch has no say in it, so that
 * a sample's bytes do not depend on the others. */
#define FEW_ROWS 8

const qd_node *qd_lower_node_of(const qd_lower *l, qd_node_id id)
{
    return qd_graph_node(l->g, id);
}

int64_t qd_last_dim(const qd_shape *s)
{
    return s->rank ? s->dim[s->rank - 1] : 1;
}

int64_t qd_count_of(const qd_shape *s)
{
    int64_t n = 1;
    for (int k = 0; k < s->rank; k++)
        n *= s->dim[k];
    return n;
}

int64_t qd_lower_macs(const qd_lower *l, qd_node_id id)
{
    const qd_node *n = qd_lower_node_of(l, id);
    qd_operand in[QD_MAX_INPUTS];
    if (!n->op->macs)
        return 0;
    for (int k = 0; k < QD_MAX_INPUTS; k++) {
        const qd_node_id x = qd_fused_input(&l->f, id, k);
        in[k] = (qd_operand){ .shape = { .rank = -1 } };
        if (x >= 0)
            in[k] = (qd_operand){ .dtype = qd_lower_node_of(l, x)->dtype, .shape = l->shapes[x] };
    }
    return n->op->macs(n, in, &l->shapes[id]);
}

/* The floats of a constant input, NULL when it is left out. */
const float *qd_lower_known(const qd_lower *l, qd_node_id id, int k)
{
    const qd_node_id x = qd_fused_input(&l->f, id, k);
    return x < 0 ? NULL : qd_f32(&l->f.info[x].folded);
}

/* --- values --- */

qd_status qd_lower_value(qd_lower *l, qd_node_id id, const int32_t border[4], qd_value_id *out, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    qd_value v = { .dtype = n->dtype, .shape = l->shapes[id], .layout = l->f.info[id].layout };
    if (border) {
        v.shifted = n->dtype == QD_I8;
        memcpy(v.border, border, sizeof(v.border));
    }
    qd_status st = qd_plan_add_value(l->p, &v, out, err);
    if (!st)
        l->f.info[id].value[v.layout] = *out;
    return st;
}

/* A value as its step made it. */
qd_status qd_lower_native(qd_lower *l, qd_node_id id, qd_value_id *out, qd_err *err)
{
    qd_node_info *info = &l->f.info[id];
    if (info->value[info->layout] < 0) {
        assert(info->folded.data);
        info->layout = QD_LAYOUT_ROW;
        qd_status st = qd_plan_add_constant(l->p, NULL, &info->folded, &info->value[QD_LAYOUT_ROW], err);
        if (st)
            return st;
    }
    *out = info->value[info->layout];
    return QD_OK;
}

static bool is_plain(const qd_value *v)
{
    return !v->shifted && !v->border[0] && !v->border[1] && !v->border[2] && !v->border[3];
}

/* A value in a layout, without border or shift; converted at most once. */
qd_status qd_lower_want(qd_lower *l, qd_node_id id, qd_layout layout, qd_value_id *out, qd_err *err)
{
    qd_node_info *info = &l->f.info[id];
    qd_value_id v;
    qd_status st = qd_lower_native(l, id, &v, err);
    if (st)
        return st;
    if (info->layout == layout && is_plain(&l->p->values[v])) {
        *out = v;
        return QD_OK;
    }
    if (info->layout != layout && info->value[layout] >= 0) {
        *out = info->value[layout];
        return QD_OK;
    }
    if (is_plain(&l->p->values[v]) && qd_layout_same(&l->shapes[id], layout, info->layout)) {
        st = qd_plan_add_view(l->p, v, &l->shapes[id], layout, out, err);
    } else {
        const qd_value like = { .dtype = qd_lower_node_of(l, id)->dtype, .shape = l->shapes[id], .layout = layout };
        st = qd_plan_add_value(l->p, &like, out, err);
        if (!st)
            st = qd_add_convert_step(l->p, qd_lower_node_of(l, id)->name, v, *out, 0, err);
    }
    if (!st && info->layout != layout)
        info->value[layout] = *out;
    return st;
}

/* U8 codes (I8 ones shifted) in a layout, with that border of the zero code. */
static qd_status want_codes(qd_lower *l, qd_node_id id, qd_layout layout, const int32_t border[4], int32_t zero_code,
                            qd_value_id *out, qd_err *err)
{
    qd_value_id v;
    qd_status st = qd_lower_native(l, id, &v, err);
    if (st)
        return st;
    const bool shifted = qd_lower_node_of(l, id)->dtype == QD_I8;
    qd_value like = {
        .dtype = qd_lower_node_of(l, id)->dtype, .shape = l->shapes[id], .layout = layout, .shifted = shifted
    };
    memcpy(like.border, border, sizeof(like.border));
    const qd_value *have = &l->p->values[v];
    if (have->shifted == shifted && memcmp(have->border, border, sizeof(have->border)) == 0 &&
        qd_layout_same(&l->shapes[id], layout, l->f.info[id].layout)) {
        *out = v;
        return QD_OK;
    }
    st = qd_plan_add_value(l->p, &like, out, err);
    return st ? st : qd_add_convert_step(l->p, qd_lower_node_of(l, id)->name, v, *out, zero_code, err);
}

/* --- passes --- */

/* What a pass sees: images channels last, or rows of the last axis. */
static void pass_geometry(const qd_lower *l, qd_node_id source, qd_layout layout, qd_pass_step *s)
{
    const qd_shape *shape = &l->shapes[source];
    s->n = s->height = s->width = s->channels = 1;
    if (layout == QD_LAYOUT_LAST || shape->rank == 2) {
        s->n = shape->dim[0];
        s->channels = shape->dim[1];
        for (int k = 2; k < shape->rank - 1; k++)
            s->height *= shape->dim[k];
        if (shape->rank > 2)
            s->width = shape->dim[shape->rank - 1];
    } else {
        s->channels = qd_last_dim(shape);
        s->width = qd_count_of(shape) / s->channels;
    }
}

/* y = (x - mean) / sqrt(var + eps) * w + b, written as mul x + add. */
static qd_status batch_norm_affine(qd_lower *l, qd_node_id id, float **mul, float **add, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    const int64_t c = l->shapes[id].dim[1];
    const float *w = qd_lower_known(l, id, 1), *b = qd_lower_known(l, id, 2), *mean = qd_lower_known(l, id, 3),
                *var = qd_lower_known(l, id, 4);
    const double eps = qd_node_float(n, "eps");
    void *memory;
    qd_status st = qd_plan_small(l->p, (size_t)c * 2 * sizeof(float), &memory, err);
    if (st)
        return st;
    *mul = memory;
    *add = *mul + c;
    for (int64_t k = 0; k < c; k++) {
        const double m = (w ? w[k] : 1.0) / sqrt((double)var[k] + eps);
        (*mul)[k] = (float)m;
        (*add)[k] = (float)((b ? b[k] : 0.0) - mean[k] * m);
    }
    return QD_OK;
}

static qd_status pass_norm(qd_lower *l, const qd_group *gr, qd_pass_step *s, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, gr->norm);
    if (n->op == &qd_op_group_norm) {
        s->groups = qd_node_int(n, "groups");
        s->eps = (float)qd_node_float(n, "eps");
        s->weight = qd_lower_known(l, gr->norm, 1);
        s->bias = qd_lower_known(l, gr->norm, 2);
        return QD_OK;
    }
    float *mul, *add;
    qd_status st;
    if (n->op == &qd_op_batch_norm) {
        st = batch_norm_affine(l, gr->norm, &mul, &add, err);
        if (st)
            return st;
    } else {
        void *memory;
        st = qd_plan_small(l->p, (size_t)s->channels * 2 * sizeof(float), &memory, err);
        if (st)
            return st;
        mul = memory;
        add = mul + s->channels;
        for (int64_t k = 0; k < s->channels; k++) {
            mul[k] = (float)qd_node_float(n, "mul");
            add[k] = (float)qd_node_float(n, "add");
        }
    }
    s->mul = mul;
    s->add = add;
    return QD_OK;
}

static void pass_quant(qd_lower *l, const qd_group *gr, qd_pass_step *s)
{
    const qd_node *n = qd_lower_node_of(l, gr->quant);
    int32_t qmin, qmax;
    qd_node_code_range(n, &qmin, &qmax);
    const int32_t zero = (int32_t)qd_node_int(n, "zero");
    s->math.scale = (float)qd_node_float(n, "scale");
    s->math.inv_scale = 1.0f / s->math.scale;
    s->math.lo = (float)(qmin - zero);
    s->math.hi = (float)(qmax - zero);
    s->math.zero = n->dtype == QD_I8 ? zero + 128 : zero;
    s->math.out = n->op == &qd_op_quantize ? QD_PASS_CODES : QD_PASS_FAKE;
    s->divisor = qd_lower_known(l, gr->quant, 1);
}

static const char *pass_kind(const qd_group *gr, const qd_lower *l, char *text, size_t n)
{
    const char *norm = gr->norm < 0 ? "" : qd_lower_node_of(l, gr->norm)->op == &qd_op_group_norm ? "norm+" : "affine+";
    const int len =
        snprintf(text, n, "%s%s%s%s%s%s", gr->time >= 0 ? "add+" : "", norm,
                 gr->act >= 0 ? qd_lower_node_of(l, gr->act)->op->name : "", gr->act >= 0 ? "+" : "",
                 gr->up >= 0 ? "upsample+" : "", gr->quant >= 0 ? qd_lower_node_of(l, gr->quant)->op->name : "");
    if (len > 0 && text[len - 1] == '+')
        text[len - 1] = '\0';
    return *text ? text : qd_lower_node_of(l, gr->main)->op->name;
}

static qd_status lower_pass(qd_lower *l, const qd_group *gr, qd_err *err)
{
    char kind[64];
    qd_part parts[QD_MAX_PARTS];
    int32_t border[4] = { 0 };
    const bool open = gr->source == gr->main; /* a concat or slice being made */
    /* With one channel a value counts as rows and as an image; these want it as an image. */
    const bool image = open || l->f.info[gr->main].layout == QD_LAYOUT_LAST || gr->up >= 0 ||
                       (gr->quant >= 0 && qd_lower_known(l, gr->quant, 1));
    qd_layout layout = image ? QD_LAYOUT_LAST : QD_LAYOUT_ROW;
    qd_pass_step s = { .name = qd_lower_node_of(l, gr->end)->name,
                       .kind = pass_kind(gr, l, kind, sizeof(kind)),
                       .time = -1,
                       .up_h = 1,
                       .up_w = 1 };
    qd_status st = QD_OK;

    pass_geometry(l, gr->source, layout, &s);
    s.n_sources = qd_fused_parts(&l->f, gr->source, open, parts);
    for (int k = 0; k < s.n_sources && !st; k++) {
        s.begin[k] = parts[k].begin;
        s.count[k] = s.n_sources == 1 && !open && !l->f.info[gr->source].split ? s.channels : parts[k].count;
        st = qd_lower_want(l, parts[k].node, layout, &s.source[k], err);
    }
    if (!st && gr->time >= 0) {
        s.time_per_sample = l->shapes[gr->time].dim[0] > 1 || s.n == 1;
        st = qd_lower_want(l, gr->time, QD_LAYOUT_ROW, &s.time, err);
    }
    if (!st && gr->norm >= 0)
        st = pass_norm(l, gr, &s, err);
    if (st)
        return st;
    if (gr->act >= 0) {
        qd_act_of(qd_lower_node_of(l, gr->act)->op, &s.math.act);
        if (s.math.act == QD_ACT_CLIP) {
            s.math.clip_lo = (float)qd_node_float(qd_lower_node_of(l, gr->act), "lo");
            s.math.clip_hi = (float)qd_node_float(qd_lower_node_of(l, gr->act), "hi");
        }
    }
    if (gr->up >= 0) {
        const int64_t *factor = qd_node_ints(qd_lower_node_of(l, gr->up), "factor")->ints;
        s.up_h = factor[0];
        s.up_w = factor[1];
    }
    if (gr->quant >= 0) {
        pass_quant(l, gr, &s);
        qd_fused_border(&l->f, gr->end, border);
    }
    st = qd_lower_value(l, gr->end, s.math.out == QD_PASS_CODES ? border : NULL, &s.out, err);
    return st ? st : qd_add_pass_step(l->p, &s, err);
}

/* --- products --- */

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
    qd_status st = batch_norm_affine(l, gr->bn, &mul, &add, err);
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
static qd_conv_shape linear_shape(int64_t rows, int64_t in, int64_t out)
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
    qd_status st = want_codes(l, codes, conv ? QD_LAYOUT_LAST : QD_LAYOUT_ROW, border, zero_code, &c->source[0], err);
    const qd_qconv_step q = { .weight = &l->f.info[qd_fused_input(&l->f, gr->main, 1)].folded,
                              .wscale = qd_lower_known(l, gr->main, 2),
                              .group_size = qd_node_int(n, "group_size"),
                              .x_scale = (float)qd_node_float(n, "x_scale"),
                              .x_zero = zero,
                              .shifted = shifted };
    return st ? st : qd_add_qconv_step(l->p, c, &q, err);
}

static qd_status lower_product(qd_lower *l, const qd_group *gr, qd_err *err)
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
                        : linear_shape(qd_count_of(in) / qd_last_dim(in), qd_last_dim(in), l->shapes[w].dim[0]);
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
        st = qd_add_conv_step(l->p, &c, err);
    qd_free(folded);
    return st;
}

static qd_status watch(qd_lower *l, const qd_plan_options *o, qd_node_id id, qd_err *err)
{
    qd_status st = QD_OK;
    for (int k = 0; k < o->n_observed && !st; k++) {
        qd_value_id v;
        if (l->f.info[o->observed[k]].same != id)
            continue;
        st = qd_lower_native(l, id, &v, err);
        if (!st)
            st = qd_plan_watch(l->p, o->observed[k], v, err);
    }
    return st;
}

static qd_status lower_node(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node_info *info = &l->f.info[id];
    if (info->split)
        return QD_OK;
    if (info->group < 0)
        return qd_lower_single(l, id, err);
    const qd_group *gr = &l->f.groups[info->group];
    if (gr->end != id)
        return QD_OK;
    if (gr->kind == QD_GROUP_TRAIN_NORM)
        return qd_lower_train_norm(l, gr, err);
    return gr->kind == QD_GROUP_PASS ? lower_pass(l, gr, err) : lower_product(l, gr, err);
}

static qd_status lower_graph(qd_lower *l, const qd_plan_options *o, qd_err *err)
{
    qd_plan *p = l->p;
    void *inputs, *outputs;
    qd_status st = qd_plan_small(p, (size_t)qd_graph_inputs(l->g) * sizeof(qd_value_id), &inputs, err);
    if (!st)
        st = qd_plan_small(p, (size_t)qd_graph_outputs(l->g) * sizeof(qd_value_id), &outputs, err);
    if (st)
        return st;
    p->inputs = inputs;
    p->outputs = outputs;
    for (int k = 0; k < qd_graph_inputs(l->g) && !st; k++) {
        const qd_node_id id = qd_graph_input_at(l->g, k);
        l->f.info[id].layout =
            l->shapes[id].rank == 4 && qd_lower_node_of(l, id)->dtype == QD_F32 && !qd_train_is_weight(&l->f, id)
                ? QD_LAYOUT_LAST
                : QD_LAYOUT_ROW;
        st = qd_lower_value(l, id, NULL, &p->inputs[k], err);
        p->n_inputs = k + !st;
        if (!st)
            st = watch(l, o, id, err);
    }
    for (qd_node_id id = 0; id < l->f.n && !st; id++) {
        const qd_node_info *info = &l->f.info[id];
        if (!info->live || info->same != id || qd_lower_node_of(l, id)->op == &qd_op_input)
            continue;
        if (!info->folded.data)
            st = lower_node(l, id, err);
        if (!st && info->fixed)
            st = watch(l, o, id, err);
    }
    for (int k = 0; k < qd_graph_outputs(l->g) && !st; k++) {
        st = qd_lower_native(l, l->f.info[qd_graph_output_at(l->g, k)].same, &p->outputs[k], err);
        p->n_outputs = k + !st;
    }
    return st;
}

static qd_status lower_cpu(qd_plan *p, const qd_graph *g, const qd_shape *shapes, const qd_plan_options *o, qd_err *err)
{
    qd_lower l = { .p = p, .g = g, .shapes = shapes };
    qd_status st = qd_fuse(g, shapes, o, &l.f, err);
    if (!st)
        st = lower_graph(&l, o, err);
    qd_fused_clear(&l.f);
    return st;
}

const qd_backend qd_backend_cpu = {
    .name = "cpu",
    .summary = "oneDNN and our own fused loops, channels last.",
    .lower = lower_cpu,
};
