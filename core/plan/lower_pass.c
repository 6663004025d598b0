/* lower_pass.c - the fast backend: a norm, an activation, a change of size and codes as one pass over the pixels. */
#include <math.h>
#include <stdio.h>

#include "plan/lower_int.h"

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
qd_status qd_lower_batch_norm(qd_lower *l, qd_node_id id, float **mul, float **add, qd_err *err)
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
        st = qd_lower_batch_norm(l, gr->norm, &mul, &add, err);
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

qd_status qd_lower_pass(qd_lower *l, const qd_group *gr, qd_err *err)
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
