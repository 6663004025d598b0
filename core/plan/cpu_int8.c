/* cpu_int8.c - integer convolutions and linears: U8 codes times I8 weights, exact in int32, scaled to float.
 *
 * qconv2d asks for y_o = s_o sum (q - z) w + bias_o with s_o = x_scale wscale_o. Padding is already in the codes, so z comes out
 * of the sum: y_o = s_o (sum q w + b'_o), b'_o = bias_o / s_o - z sum w. That is what oneDNN's output scales compute. */
#include <math.h>
#include <string.h>

#include "plan/cpu_steps.h"

#define SAFE_WEIGHT 64 /* 2 * 255 * 64 < 2^15: two products fit in 16 bits */

bool qd_qconv_fits(const float *wscale, const float *bias, int64_t n, float x_scale)
{
    for (int64_t o = 0; o < n; o++) {
        const float s = x_scale * wscale[o];
        if (!(s >= 1e-30f && s <= 1e30f) || (bias && !(fabsf(bias[o]) / s < 1e30f)))
            return false;
    }
    return true;
}

static void make_bias(float *dst, float *scale, const qd_conv_step *c, const int8_t *weight, const float *wscale,
                      float x_scale, int32_t zero)
{
    const qd_conv_shape *s = &c->spec.shape;
    const int64_t each = s->c / s->groups * s->kh * s->kw;
    for (int64_t o = 0; o < s->o; o++) {
        int64_t sum = 0;
        for (int64_t k = 0; k < each; k++)
            sum += weight[o * each + k];
        scale[o] = x_scale * wscale[o];
        dst[o] = (float)((c->spec.bias ? (double)c->spec.bias[o] / scale[o] : 0.0) - (double)zero * (double)sum);
    }
}

/* Without VNNI pairs of products are added in 16 bits with saturation; weights within +-64 never reach it. Larger ones are cut
 * in two: w = held + rest, both within. */
static bool cut_weight(int8_t *held, int8_t *rest, const int8_t *weight, int64_t n)
{
    bool any = false;
    for (int64_t k = 0; k < n; k++) {
        held[k] = weight[k] > SAFE_WEIGHT ? SAFE_WEIGHT : weight[k] < -SAFE_WEIGHT ? -SAFE_WEIGHT : weight[k];
        rest[k] = (int8_t)(weight[k] - held[k]);
        any |= rest[k] != 0;
    }
    return any;
}

qd_status qd_add_qconv_step(qd_plan *p, const qd_conv_step *c, const float *wscale, float x_scale, int32_t x_zero,
                            bool shifted, qd_err *err)
{
    const qd_conv_shape *s = &c->spec.shape;
    const int64_t n = s->o * (s->c / s->groups) * s->kh * s->kw;
    qd_conv_list *list = NULL;
    float *numbers = qd_alloc((size_t)s->o * 2 * sizeof(float));
    int8_t *cut = NULL;
    qd_status st = numbers ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for the scales of '%s'", c->name);
    if (!st)
        st = qd_conv_list_new(c->name, &list, err);
    if (st)
        goto out;

    qd_conv_spec spec = c->spec;
    spec.name = c->name;
    spec.shape.h += s->pad_t + s->pad_b;
    spec.shape.w += s->pad_l + s->pad_r;
    spec.shape.pad_t = spec.shape.pad_l = spec.shape.pad_b = spec.shape.pad_r = 0;
    spec.threads = qd_threads_for(p, (double)c->macs * 0.25);
    spec.bias = numbers;
    spec.scale = numbers + s->o;
    spec.sum = c->residual >= 0;
    make_bias(numbers, numbers + s->o, c, c->spec.weight, wscale, x_scale, shifted ? x_zero + 128 : x_zero);

    bool two = false;
    if (!qd_dnnl_exact_int8()) {
        cut = qd_alloc((size_t)n * 2);
        if (!cut) {
            st = qd_fail(err, QD_E_NOMEM, "no memory to cut the weights of '%s'", c->name);
            goto out;
        }
        two = cut_weight(cut, cut + n, c->spec.weight, n);
        if (two) {
            spec.weight = cut;
            spec.act = QD_ACT_NONE;
        }
    }
    st = qd_conv_list_add(p, list, &spec, 0, err);
    if (!st && two) {
        spec.weight = cut + n;
        spec.bias = NULL;
        spec.sum = true;
        spec.act = c->spec.act;
        st = qd_conv_list_add(p, list, &spec, 0, err);
    }
    if (!st) {
        st = qd_add_conv_list_step(p, c, list, err);
        list = NULL;
    }
out:
    if (list)
        qd_conv_list_free(list);
    qd_free(cut);
    qd_free(numbers);
    return st;
}
