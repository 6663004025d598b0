/* cpu_int8.c - integer convolutions and linears: U8 codes times I8 weights, exact in int32, scaled to float.
 *
 * qconv2d asks for y_o = s_o sum (q - z) w + bias_o with s_o = x_scale wscale_o. Padding is already in the codes, so z comes out
 * of the sum: y_o = s_o (sum q w + b'_o), b'_o = bias_o / s_o - z sum w. That is what oneDNN's output scales compute.
 *
 * Weights of 4 bits stay in 4 bits: each run spells out one layer at a time, into scratch that all layers share. */
#include <math.h>
#include <string.h>

#include "plan/cpu_steps.h"

#define SAFE_WEIGHT 64 /* 2 * 255 * 64 < 2^15: two products fit in 16 bits */

bool qd_qconv_fits(const float *wscale, const float *bias, int64_t o, int64_t scales, float x_scale)
{
    for (int64_t k = 0; k < o * scales; k++) {
        const float s = x_scale * wscale[k];
        if (!(s >= 1e-30f && s <= 1e30f) || (bias && k % scales == 0 && !(fabsf(bias[k / scales]) / s < 1e30f)))
            return false;
    }
    return true;
}

/* Without VNNI pairs of products are added in 16 bits with saturation; weights within +-64 never reach it. Larger ones are cut
 * in two: w = held + rest, both within. */
static bool cut_weight(int8_t *held, int8_t *rest, const int8_t *weight, int64_t n)
{
    bool any = false;
    for (int64_t k = 0; k < n; k++) {
        const int8_t w = weight[k]; /* held may be weight */
        held[k] = w > SAFE_WEIGHT ? SAFE_WEIGHT : w < -SAFE_WEIGHT ? -SAFE_WEIGHT : w;
        rest[k] = (int8_t)(w - held[k]);
        any |= rest[k] != 0;
    }
    return any;
}

/* What a step is made of while it is made: input channels [begin, begin + count) under one scale. */
typedef struct making {
    const qd_conv_step *c;
    const qd_qconv_step *q;
    qd_conv_list *list;
    qd_conv_spec spec;
    const int8_t *weight; // [o, c / groups, kh, kw], spelled out
    int64_t scales;
    float *numbers; // [2 o]: biases and scales
    int8_t *slice;  // [2, o, c / groups, kh, kw]: the weights of a run of channels, and what cutting them left
} making;

static void make_bias(const making *m, const int8_t *weight, int64_t each, int64_t scale_at)
{
    const int32_t zero = m->q->shifted ? m->q->x_zero + 128 : m->q->x_zero;
    float *bias = m->numbers, *scale = m->numbers + m->spec.shape.o;
    for (int64_t o = 0; o < m->spec.shape.o; o++) {
        int64_t sum = 0;
        for (int64_t k = 0; k < each; k++)
            sum += weight[o * each + k];
        scale[o] = m->q->x_scale * m->q->wscale[o * m->scales + scale_at];
        const bool real = m->c->spec.bias && scale_at == 0;
        bias[o] = (float)((real ? (double)m->c->spec.bias[o] / scale[o] : 0.0) - (double)zero * (double)sum);
    }
}

static qd_status add_one(qd_plan *p, making *m, const qd_conv_spec *spec, int64_t begin, int64_t channels, qd_err *err)
{
    qd_status st = qd_conv_list_add(p, m->list, spec, 0, err);
    if (!st && spec->shape.c < channels)
        qd_conv_list_slice(m->list, spec, begin, channels);
    return st;
}

/* The convolution of one run of channels; the first carries the bias, the last the activation. */
static qd_status add_run(qd_plan *p, making *m, int64_t scale_at, qd_err *err)
{
    const int64_t all = m->spec.shape.c, kernel = m->spec.shape.kh * m->spec.shape.kw;
    const int64_t begin = scale_at * m->q->group_size, left = all - begin;
    const int64_t count = m->scales > 1 && left > m->q->group_size ? m->q->group_size : left;
    const int64_t each = count / m->spec.shape.groups * kernel, n = m->spec.shape.o * each;
    const int8_t *weight = m->weight;
    qd_conv_spec spec = m->spec;

    if (m->scales > 1) {
        for (int64_t o = 0; o < spec.shape.o; o++)
            memcpy(m->slice + o * each, m->weight + (o * all + begin) * kernel, (size_t)each);
        weight = m->slice;
    }
    make_bias(m, weight, each, scale_at);
    spec.shape.c = count;
    spec.weight = weight;
    spec.sum = scale_at > 0 || m->c->residual >= 0;
    spec.act = scale_at == m->scales - 1 ? m->c->spec.act : QD_ACT_NONE;

    int8_t *rest = m->slice ? m->slice + m->spec.shape.o * (all / spec.shape.groups) * kernel : NULL;
    if (qd_dnnl_exact_int8() || !cut_weight(m->slice, rest, weight, n))
        return add_one(p, m, &spec, begin, all, err);
    spec.weight = m->slice;
    spec.act = QD_ACT_NONE;
    qd_status st = add_one(p, m, &spec, begin, all, err);
    spec.weight = rest;
    spec.bias = NULL;
    spec.sum = true;
    spec.act = scale_at == m->scales - 1 ? m->c->spec.act : QD_ACT_NONE;
    return st ? st : add_one(p, m, &spec, begin, all, err);
}

qd_status qd_add_qconv_step(qd_plan *p, const qd_conv_step *c, const qd_qconv_step *q, qd_err *err)
{
    const qd_conv_shape *s = &c->spec.shape;
    const size_t n = (size_t)(s->o * (s->c / s->groups) * s->kh * s->kw);
    qd_tensor codes = { 0 };
    making m = { .c = c, .q = q, .spec = c->spec, .scales = qd_k_scales(s->c / s->groups, q->group_size) };
    qd_status st = qd_tensor_unpack(&codes, q->weight, p->budget, err);
    if (st)
        return st;
    st = qd_conv_list_new(c->name, &m.list, err);
    if (st)
        goto out;
    m.numbers = qd_alloc((size_t)s->o * 2 * sizeof(float));
    if (m.scales > 1 || !qd_dnnl_exact_int8())
        m.slice = qd_alloc(n * 2);
    if (!m.numbers || ((m.scales > 1 || !qd_dnnl_exact_int8()) && !m.slice)) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the scales and weights of '%s'", c->name);
        goto out;
    }
    m.weight = qd_i8(&codes);
    m.spec.name = c->name;
    m.spec.nibbles = q->weight->dtype == QD_I4;
    m.spec.shape.h += s->pad_t + s->pad_b;
    m.spec.shape.w += s->pad_l + s->pad_r;
    m.spec.shape.pad_t = m.spec.shape.pad_l = m.spec.shape.pad_b = m.spec.shape.pad_r = 0;
    m.spec.threads = qd_threads_for(p, (double)c->macs * 0.25);
    m.spec.bias = m.numbers;
    m.spec.scale = m.numbers + s->o;
    for (int64_t k = 0; k < m.scales && !st; k++)
        st = add_run(p, &m, k, err);
    if (!st) {
        st = qd_add_conv_list_step(p, c, m.list, err);
        m.list = NULL;
    }
out:
    if (m.list)
        qd_conv_list_free(m.list);
    qd_free(m.slice);
    qd_free(m.numbers);
    qd_tensor_clear(&codes);
    return st;
}
