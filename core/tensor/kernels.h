/* kernels.h - plain loops over row-major float arrays. They cannot fail and are the judge of every fast path: clarity over speed,
 * sums in double where a sum has more than a handful of terms. dst = f(src, sizes, options); no overlap unless said. */
#ifndef QD_TENSOR_KERNELS_H
#define QD_TENSOR_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The shape of a 2-D convolution or pooling window. Output sizes are oh, ow. */
typedef struct qd_conv_shape {
    int64_t n, c, h, w; /* input */
    int64_t o, oh, ow;  /* output channels and size */
    int64_t kh, kw;
    int64_t stride_h, stride_w;
    int64_t pad_t, pad_l, pad_b, pad_r;
    int64_t dil_h, dil_w;
    int64_t groups;
} qd_conv_shape;

/* k_conv.c */
void qd_k_conv2d(float *dst, const float *src, const float *weight, const float *bias, const qd_conv_shape *s);
/* Integer: acc = sum (q - x_zero) * w in int32, exact for up to QD_K_MAX_PRODUCTS products with x_zero a code itself;
 * dst = (float)acc * (x_scale * wscale[o]) + bias[o]. codes U8 or I8 by is_signed.
 *
 * Weights have 4, 6 or 8 bits, a row for each output (tensor.h). wscale [o, n], n = qd_k_scales(c / groups, group): one scale for every
 * `group` input channels, the last perhaps for fewer; group 0: one for all. Several are summed in double and rounded once. */
#define QD_K_MAX_PRODUCTS 65536 /* x 255 x 128 < 2^31 */
typedef struct qd_k_codes {
    const void *codes;
    int bits;
    int64_t group;
    const float *wscale;
} qd_k_codes;
int64_t qd_k_scales(int64_t channels, int64_t group);
void qd_k_qconv2d(float *dst, const void *codes, bool is_signed, const qd_k_codes *weight, const float *bias,
                  float x_scale, int32_t x_zero, const qd_conv_shape *s);
/* The transposed convolution: s->c, h, w of src, s->o, oh, ow of dst, weight [c, o / groups, kh, kw]; pads are cut from the result. */
void qd_k_conv_transpose2d(float *dst, const float *src, const float *weight, const float *bias,
                           const qd_conv_shape *s);
void qd_k_upsample(float *dst, const float *src, int64_t planes, int64_t h, int64_t w, int64_t fh, int64_t fw);
void qd_k_avg_pool(float *dst, const float *src, const qd_conv_shape *s, bool count_pad);
void qd_k_max_pool(float *dst, const float *src, const qd_conv_shape *s);

/* k_gemm.c */
/* dst [m, n] = alpha * a [m, k] b [k, n]; trans_a: a is [k, m]; trans_b: b is [n, k]. */
void qd_k_gemm(float *dst, const float *a, const float *b, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b,
               float alpha);
void qd_k_linear(float *dst, const float *src, const float *weight, const float *bias, int64_t rows, int64_t in,
                 int64_t out);
void qd_k_qlinear(float *dst, const void *codes, bool is_signed, const qd_k_codes *weight, const float *bias,
                  float x_scale, int32_t x_zero, int64_t rows, int64_t in, int64_t out);

/* k_norm.c */
void qd_k_group_norm(float *dst, const float *src, const float *weight, const float *bias, int64_t n, int64_t c,
                     int64_t space, int64_t groups, float eps);
void qd_k_layer_norm(float *dst, const float *src, const float *weight, const float *bias, int64_t rows, int64_t width,
                     float eps);
void qd_k_batch_norm(float *dst, const float *src, const float *weight, const float *bias, const float *mean,
                     const float *var, int64_t n, int64_t c, int64_t space, float eps);

/* k_attn.c */
void qd_k_softmax(float *dst, const float *src, int64_t outer, int64_t axis, int64_t inner);
void qd_k_log_softmax(float *dst, const float *src, int64_t outer, int64_t axis, int64_t inner);
/* q [n, t, c], k and v [n, s, c]; head h owns channels [h c/heads, (h+1) c/heads). scale is used as it is. */
void qd_k_attention(float *dst, const float *q, const float *k, const float *v, int64_t n, int64_t t, int64_t s,
                    int64_t c, int64_t heads, float scale);
/* Attention on codes (qncd.md 4.2). Each weight of the softmax is itself a code, with zero point 0 and the largest weight of its query as
 * the largest code: with a_ij = sum_c (q_ic - q_zero) (k_jc - k_zero), exact,
 *   p_ij = rne(exp((float)(a_ij - max_j a_ij) * score_step) * (2^softmax_bits - 1))
 *   dst_i = v_scale * sum_j p_ij (v_j - v_zero) / sum_j p_ij, both sums exact.
 * At most 16384 channels to a head and QD_K_MAX_PRODUCTS tokens s. */
typedef struct qd_k_head_codes {
    const void *q, *k, *v;
    bool q_signed, k_signed, v_signed;
    int32_t q_zero, k_zero, v_zero;
    float score_step; /* q_scale * k_scale * scale */
    float v_scale;
    int softmax_bits;
} qd_k_head_codes;
void qd_k_qattention(float *dst, const qd_k_head_codes *a, int64_t n, int64_t t, int64_t s, int64_t c, int64_t heads);
/* The same on floats that may be values of codes: only the weights are rounded. */
void qd_k_fake_attention(float *dst, const float *q, const float *k, const float *v, int64_t n, int64_t t, int64_t s,
                         int64_t c, int64_t heads, float scale, int softmax_bits);

/* k_elem.c */
typedef enum qd_unary {
    QD_SILU,
    QD_RELU,
    QD_GELU,
    QD_SIGMOID,
    QD_TANH,
    QD_SQRT,
    QD_EXP,
    QD_LOG,
    QD_ABS,
    QD_ERF,
    QD_SIN,
    QD_COS,
} qd_unary;
void qd_k_unary(float *dst, const float *src, int64_t n, qd_unary f);
void qd_k_clip(float *dst, const float *src, int64_t n, float lo, float hi);
/* q = clamp(rne((x * inv_div[c]) * inv_scale) + zero, qmin, qmax); inv_div may be NULL; c = (i / inner) % channels; NaN -> zero. */
void qd_k_quantize(void *codes, const float *src, int64_t n, float inv_scale, int32_t zero, int32_t qmin, int32_t qmax,
                   bool is_signed, const float *inv_div, int64_t channels, int64_t inner);
/* dequantize(quantize(x)) without the codes between, so that up to 16 bits fit: dst = (q - zero) * scale, q as above with
 * inv_scale = 1 / scale. */
void qd_k_fake_quant(float *dst, const float *src, int64_t n, float scale, int32_t zero, int32_t qmin, int32_t qmax,
                     const float *inv_div, int64_t channels, int64_t inner);
void qd_k_dequantize(float *dst, const void *codes, bool is_signed, int64_t n, float scale, int32_t zero);
void qd_k_timestep(float *dst, const float *t, int64_t n, int64_t dim, bool flip_sin_to_cos, float freq_shift,
                   float max_period);

/* k_grad.c: derivatives of the above. ddst and dsrc are those by dst and src. */
void qd_k_unary_grad(float *dsrc, const float *ddst, const float *src, int64_t n, qd_unary f);
void qd_k_softmax_grad(float *dsrc, const float *ddst, const float *dst, int64_t outer, int64_t axis, int64_t inner);
void qd_k_log_softmax_grad(float *dsrc, const float *ddst, const float *dst, int64_t outer, int64_t axis,
                           int64_t inner);
void qd_k_conv2d_grad_input(float *dsrc, const float *ddst, const float *weight, const qd_conv_shape *s);
void qd_k_conv2d_grad_weight(float *dweight, const float *ddst, const float *src, const qd_conv_shape *s);
void qd_k_avg_pool_grad(float *dsrc, const float *ddst, const qd_conv_shape *s, bool count_pad);
void qd_k_max_pool_grad(float *dsrc, const float *ddst, const float *src,
                        const qd_conv_shape *s); /* to the first of equals */
/* Group and layer norm: every row of `width` has statistics of its own; element i of row r is scaled by weight number
 * r % period * (width / inner) + i / inner. weight may be NULL. */
void qd_k_norm_grad(float *dsrc, const float *ddst, const float *src, const float *weight, int64_t rows, int64_t width,
                    int64_t period, int64_t inner, float eps);
void qd_k_norm_grad_weight(float *dweight, const float *ddst, const float *src, int64_t rows, int64_t width,
                           int64_t period, int64_t inner, float eps);
/* Batch norm over [n, c, space]. stats [2, c]: mean and biased variance; sums [2, c]: of dy, and of dy (x - mean) / sqrt(var + eps). */
void qd_k_batch_stats(float *stats, const float *src, int64_t n, int64_t c, int64_t space);
void qd_k_batch_sums(float *sums, const float *ddst, const float *src, const float *mean, const float *var, int64_t n,
                     int64_t c, int64_t space, float eps);
void qd_k_batch_norm_train_grad(float *dsrc, const float *ddst, const float *src, const float *weight,
                                const float *stats, const float *sums, int64_t n, int64_t c, int64_t space, float eps);
/* clamp(rne(x / scale[c]), qmin, qmax) scale[c], c = (i / inner) % channels. Its derivatives are those of LSQ (Esser et al. 2020,
 * eq. 3 and 5): by x 1 in range and 0 outside; by scale rne(r) - r in range and the code it is held at outside, r = x / scale. */
void qd_k_learned_quant(float *dst, const float *src, const float *scale, int64_t n, int64_t channels, int64_t inner,
                        int32_t qmin, int32_t qmax);
void qd_k_learned_quant_grad(float *dsrc, const float *ddst, const float *src, const float *scale, int64_t n,
                             int64_t channels, int64_t inner, int32_t qmin, int32_t qmax);
void qd_k_learned_quant_grad_scale(float *dscale, const float *ddst, const float *src, const float *scale, int64_t n,
                                   int64_t channels, int64_t inner, int32_t qmin, int32_t qmax);
/* AdaRound's rectified sigmoid (qncd.md 6.1): clamp(sigmoid(v) (hi - lo) + lo, 0, 1). */
void qd_k_soft_round(float *dst, const float *src, int64_t n, float lo, float hi);
void qd_k_soft_round_grad(float *dsrc, const float *ddst, const float *src, int64_t n, float lo, float hi);

#endif
