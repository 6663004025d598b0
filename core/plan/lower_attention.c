/* lower_attention.c - the fast backend: attention in float or on codes, and the linears before it as one product. */
#include <stdio.h>
#include <string.h>

#include "plan/lower_int.h"

/* What several linears become: rows of all their weights. */
typedef struct merged {
    qd_tensor weight; // F32 or I8 [sum of outputs, in]
    float *numbers;   // [2 sum of outputs]: biases, scales
    int64_t in, out, rows;
} merged;

static void merged_clear(merged *m)
{
    qd_tensor_clear(&m->weight);
    qd_free(m->numbers);
}

static qd_status merge(const qd_lower *l, const qd_group *gr, merged *m, bool *biased, qd_err *err)
{
    int64_t at = 0;
    const int bias_at = qd_lower_node_of(l, gr->linear[2])->op == &qd_op_qlinear ? 3 : 2;
    qd_dtype dtype = QD_F32;
    for (int k = 0; k < 3; k++) {
        if (gr->linear[k] < 0)
            continue;
        const qd_tensor *w = &l->f.info[qd_fused_input(&l->f, gr->linear[k], 1)].folded;
        m->out += w->shape.dim[0];
        m->in = w->shape.dim[1];
        dtype = w->dtype;
    }
    m->rows = qd_count_of(&l->shapes[gr->linear[2]]) / qd_last_dim(&l->shapes[gr->linear[2]]);
    m->numbers = qd_calloc((size_t)m->out * 2, sizeof(float));
    if (!m->numbers)
        return qd_fail(err, QD_E_NOMEM, "no memory to merge the layers before '%s'",
                       qd_lower_node_of(l, gr->main)->name);
    const qd_shape shape = QD_SHAPE(m->out, m->in);
    qd_status st = qd_tensor_init(&m->weight, dtype, &shape, l->p->budget, err);
    if (st)
        return st;
    *biased = false;
    for (int k = 0; k < 3; k++) {
        if (gr->linear[k] < 0)
            continue;
        const qd_tensor *w = &l->f.info[qd_fused_input(&l->f, gr->linear[k], 1)].folded;
        const int64_t outs = w->shape.dim[0];
        const size_t row = (size_t)m->in * qd_dtype_bits(dtype) / 8;
        const float *bias = qd_lower_known(l, gr->linear[k], bias_at);
        memcpy((char *)m->weight.data + (size_t)at * row, w->data, (size_t)outs * row);
        if (bias) {
            *biased = true;
            memcpy(m->numbers + at, bias, (size_t)outs * sizeof(float));
        }
        if (dtype == QD_I8)
            memcpy(m->numbers + m->out + at, qd_lower_known(l, gr->linear[k], 2), (size_t)outs * sizeof(float));
        at += outs;
    }
    return QD_OK;
}

/* One product for all merged linears; in[k] is told where its share lies. */
static qd_status lower_merged(qd_lower *l, const qd_group *gr, qd_heads in[3], qd_err *err)
{
    static const int32_t no_border[4] = { 0 };
    merged m = { .out = 0 };
    char kind[32];
    bool biased = false;
    int64_t macs = 0, at = 0;
    int parts = 0;
    const qd_node *n = qd_lower_node_of(l, gr->linear[2]);
    const bool codes = n->op == &qd_op_qlinear;
    qd_status st = merge(l, gr, &m, &biased, err);
    if (st)
        goto out;
    for (int k = 0; k < 3; k++)
        if (gr->linear[k] >= 0) {
            macs += qd_lower_macs(l, gr->linear[k]);
            parts++;
        }
    snprintf(kind, sizeof(kind), "%s x%d", n->op->name, parts);
    qd_value made = { .dtype = QD_F32, .shape = l->shapes[gr->linear[2]] };
    made.shape.dim[made.shape.rank - 1] = m.out;
    qd_conv_step c = { .name = qd_lower_node_of(l, gr->linear[parts == 3 ? 0 : 1])->name,
                       .kind = kind,
                       .macs = macs,
                       .n_sources = 1,
                       .channels = { m.in },
                       .residual = -1,
                       .spec = { .shape = qd_linear_shape(m.rows, m.in, m.out), .bias = biased ? m.numbers : NULL } };
    const qd_node_id x = qd_fused_input(&l->f, gr->linear[2], 0);
    st = qd_plan_add_value(l->p, &made, &c.out, err);
    if (st)
        goto out;
    if (codes) {
        const bool shifted = qd_lower_node_of(l, x)->dtype == QD_I8;
        const int32_t zero = (int32_t)qd_node_int(n, "x_zero");
        c.spec.codes = true;
        st = qd_lower_want_codes(l, x, QD_LAYOUT_ROW, no_border, 0, &c.source[0], err);
        const qd_qconv_step q = { .weight = &m.weight,
                                  .wscale = m.numbers + m.out,
                                  .x_scale = (float)qd_node_float(n, "x_scale"),
                                  .x_zero = zero,
                                  .shifted = shifted };
        if (!st)
            st = qd_add_qconv_step(l->p, &c, &q, err);
    } else {
        c.spec.weight = qd_f32(&m.weight);
        st = qd_lower_want(l, x, QD_LAYOUT_ROW, &c.source[0], err);
        if (!st)
            st = qd_add_conv_step(l->p, &c, err);
    }
    for (int k = 0; k < 3; k++)
        if (gr->linear[k] >= 0) {
            in[k] = (qd_heads){ .value = c.out, .begin = at, .stride = m.out };
            at += qd_last_dim(&l->shapes[gr->linear[k]]);
        }
out:
    merged_clear(&m);
    return st;
}

/* An operand that no merged product makes. */
static qd_status want_operand(qd_lower *l, const qd_group *gr, int k, qd_heads *in, qd_err *err)
{
    static const int32_t no_border[4] = { 0 };
    const qd_node_id made = qd_fused_input(&l->f, gr->main, k);
    in->begin = 0;
    in->stride = qd_last_dim(&l->shapes[made]);
    if (gr->code[k] >= 0)
        return qd_lower_want(l, qd_fused_input(&l->f, gr->code[k], 0), QD_LAYOUT_ROW, &in->value, err);
    if (qd_lower_node_of(l, gr->main)->op == &qd_op_attention)
        return qd_lower_want(l, made, QD_LAYOUT_ROW, &in->value, err);
    return qd_lower_want_codes(l, made, QD_LAYOUT_ROW, no_border, 0, &in->value, err);
}

/* How operand k of attention on codes is read: the map that makes its codes, which need not be the one that spells them out. */
static void set_map(const qd_lower *l, const qd_group *gr, int k, qd_qattention_step *q)
{
    static const char *const scales[3] = { "q_scale", "k_scale", "v_scale" };
    static const char *const zeros[3] = { "q_zero", "k_zero", "v_zero" };
    const qd_node *n = qd_lower_node_of(l, gr->main);
    const bool shifted = qd_lower_node_of(l, qd_fused_input(&l->f, gr->main, k))->dtype == QD_I8;
    q->map[k].coded = gr->code[k] < 0;
    q->map[k].zero = (int32_t)qd_node_int(n, zeros[k]) + (shifted ? 128 : 0);
    q->map[k].scale = (float)qd_node_float(n, scales[k]);
    if (gr->code[k] < 0)
        return;
    int32_t qmin, qmax;
    const qd_node *maker = qd_lower_node_of(l, gr->code[k]);
    const int32_t zero = (int32_t)qd_node_int(maker, "zero");
    qd_node_code_range(maker, &qmin, &qmax);
    q->map[k].made_scale = (float)qd_node_float(maker, "scale");
    q->map[k].made_zero = zero + (shifted ? 128 : 0);
    q->map[k].lo = (float)(qmin - zero);
    q->map[k].hi = (float)(qmax - zero);
}

qd_status qd_lower_attention(qd_lower *l, const qd_group *gr, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, gr->main);
    const qd_shape *q = &l->shapes[qd_fused_input(&l->f, gr->main, 0)],
                   *k = &l->shapes[qd_fused_input(&l->f, gr->main, 1)];
    qd_qattention_step s = { .a = { .name = n->name,
                                    .macs = qd_lower_macs(l, gr->main),
                                    .n = q->dim[0],
                                    .t = q->dim[1],
                                    .s = k->dim[1],
                                    .c = q->dim[2],
                                    .heads = qd_node_int(n, "heads"),
                                    .scale = qd_node_attention_scale(n, q->dim[2]) } };
    qd_status st = gr->linear[2] >= 0 ? lower_merged(l, gr, s.a.in, err) : QD_OK;
    for (int j = 0; j < 3 && !st; j++)
        if (gr->linear[j] < 0)
            st = want_operand(l, gr, j, &s.a.in[j], err);
    if (!st)
        st = qd_lower_value(l, gr->main, NULL, &s.a.out, err);
    if (st || n->op == &qd_op_attention)
        return st ? st : qd_add_attention_step(l->p, &s.a, err);
    for (int j = 0; j < 3; j++)
        set_map(l, gr, j, &s);
    s.score_step = qd_node_score_step(n, q->dim[2]);
    s.softmax_bits = (int)qd_node_int(n, "softmax_bits");
    return qd_add_qattention_step(l->p, &s, err);
}
