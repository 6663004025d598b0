/* train_maps.c - derivatives of elements on their own and of rows, written for the vectoriser; compiled for each instruction set with
 * QD_SIMD its name.
 *
 * Sums of a row are taken in LANE_SUMS running sums that are added up in order, whatever the width of a vector. */
#include <math.h>

#include "plan/simd_vec.h"
#include "plan/train_simd.h"

#define PASTE(a, b) a##b
#define NAME(prefix, isa) PASTE(prefix, isa)

enum { LANE_SUMS = 16 };

/* --- elements on their own --- */

INLINE vec sigmoid(vec x)
{
    return vec_inverse(vec_all(1.0f) + vec_exp(vec_all(0.0f) - x));
}

INLINE vec size_of(vec x)
{
    return vec_max(x, vec_all(0.0f) - x);
}

/* e^-|x| / (1 + e^-|x|)^2, which does not cancel far from zero. */
INLINE vec bell(vec x)
{
    const vec e = vec_exp(vec_all(0.0f) - size_of(x)), r = vec_inverse(vec_all(1.0f) + e);
    return e * r * r;
}

/* phi(x) = e^(-x^2 / 2) / sqrt(2 pi) and Phi(x) by Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7). */
INLINE vec gelu_slope(vec x)
{
    const vec one = vec_all(1.0f), size = size_of(x);
    const vec e = vec_exp(vec_all(-0.5f) * x * x);
    const vec t = vec_inverse(vec_fma(vec_all(0.3275911f * 0.70710678f), size, one));
    vec poly = vec_fma(t, vec_all(1.061405429f), vec_all(-1.453152027f));
    poly = vec_fma(poly, t, vec_all(1.421413741f));
    poly = vec_fma(poly, t, vec_all(-0.284496736f));
    poly = vec_fma(poly, t, vec_all(0.254829592f));
    const vec half = vec_all(0.5f) * poly * t * e; /* 1 - Phi(|x|) */
    /* |x| + x is 0 on the negative side: 1 where it is positive */
    const vec side = vec_min(one, (size + x) * vec_all(1e30f));
    const vec above = side * (one - half) + (one - side) * half;
    return vec_fma(x * e, vec_all(0.39894228f), above);
}

INLINE vec slope(vec x, qd_map f)
{
    if (f == QD_MAP_SILU_GRAD) {
        const vec s = sigmoid(x);
        return s * vec_fma(x, vec_all(1.0f) - s, vec_all(1.0f));
    }
    if (f == QD_MAP_SIGMOID_GRAD)
        return bell(x);
    if (f == QD_MAP_TANH_GRAD)
        return vec_all(4.0f) * bell(x + x);
    return gelu_slope(x);
}

INLINE void slopes(float *dst, const float *dy, const float *x, int64_t n, qd_map f)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vec_store(dst + i, vec_load(dy + i) * slope(vec_load(x + i), f));
    if (i < n)
        vec_store_some(dst + i, vec_load_some(dy + i, n - i) * slope(vec_load_some(x + i, n - i), f), n - i);
}

/* h(v) = clamp(sigmoid(v) (hi - lo) + lo, 0, 1) and its slope, qncd.md 6.1 */
INLINE vec soft(vec v, vec lo, vec span)
{
    return vec_min(vec_all(1.0f), vec_max(vec_all(0.0f), vec_fma(sigmoid(v), span, lo)));
}

static void soft_round(float *dst, const float *v, int64_t n, float lo, float hi)
{
    const vec l = vec_all(lo), span = vec_all(hi - lo);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vec_store(dst + i, soft(vec_load(v + i), l, span));
    if (i < n)
        vec_store_some(dst + i, soft(vec_load_some(v + i, n - i), l, span), n - i);
}

static void soft_round_grad(float *dst, const float *dy, const float *v, int64_t n, float lo, float hi)
{
    enum { AT_ONCE = 64 };
    float s[AT_ONCE];
    for (int64_t first = 0; first < n; first += AT_ONCE) {
        const int64_t m = n - first < AT_ONCE ? n - first : AT_ONCE;
        for (int64_t i = 0; i < m; i += LANES)
            vec_store(s + i, sigmoid(m - i < LANES ? vec_load_some(v + first + i, m - i) : vec_load(v + first + i)));
#pragma omp simd
        for (int64_t i = 0; i < m; i++) {
            const float h = s[i] * (hi - lo) + lo, d = dy[first + i] * s[i] * (1.0f - s[i]) * (hi - lo);
            dst[first + i] = h > 0.0f && h < 1.0f ? d : 0.0f;
        }
    }
}

#define EACH(expression)                                                                                               \
    do {                                                                                                               \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) dst[i] = (expression);                                     \
    } while (0)

static void map(qd_map f, float *dst, const float *a, const float *b, int64_t n, const float p[4])
{
    const float p0 = p[0], p1 = p[1], p2 = p[2];
    switch (f) {
    case QD_MAP_LEAKY:
        EACH(a[i] < 0.0f ? p0 * a[i] : a[i]);
        break;
    case QD_MAP_LEAKY_GRAD:
        EACH(b[i] > 0.0f ? a[i] : p0 * a[i]);
        break;
    case QD_MAP_CLIP_GRAD:
        EACH(((b[i] >= p0) & (b[i] <= p1)) ? a[i] : 0.0f);
        break;
    case QD_MAP_SILU_GRAD:
        slopes(dst, a, b, n, QD_MAP_SILU_GRAD);
        break;
    case QD_MAP_GELU_GRAD:
        slopes(dst, a, b, n, QD_MAP_GELU_GRAD);
        break;
    case QD_MAP_SIGMOID_GRAD:
        slopes(dst, a, b, n, QD_MAP_SIGMOID_GRAD);
        break;
    case QD_MAP_TANH_GRAD:
        slopes(dst, a, b, n, QD_MAP_TANH_GRAD);
        break;
    case QD_MAP_FAKE_QUANT_GRAD:
    case QD_MAP_LEARNED_QUANT_GRAD:
        EACH(((b[i] / p0 >= p1) & (b[i] / p0 <= p2)) ? a[i] : 0.0f);
        break;
    case QD_MAP_LEARNED_QUANT:
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            const float q = rintf(a[i] / p0), up = q < p1 ? p1 : q;
            dst[i] = (up > p2 ? p2 : up) * p0;
        }
        break;
    case QD_MAP_SOFT_ROUND:
        soft_round(dst, a, n, p0, p1);
        break;
    case QD_MAP_SOFT_ROUND_GRAD:
        soft_round_grad(dst, a, b, n, p0, p1);
        break;
    }
}

/* --- sums --- */

/* Running sums of `expression` over i < n, k its lane. */
#define LANE_SUM(s, n, expression)                                                                                     \
    do {                                                                                                               \
        int64_t first_ = 0;                                                                                            \
        for (; first_ + LANE_SUMS <= (n); first_ += LANE_SUMS)                                                         \
            _Pragma("omp simd") for (int k = 0; k < LANE_SUMS; k++)                                                    \
            {                                                                                                          \
                const int64_t i = first_ + k;                                                                          \
                (s)[k] += (expression);                                                                                \
            }                                                                                                          \
        for (int k = 0; first_ + k < (n); k++) {                                                                       \
            const int64_t i = first_ + k;                                                                              \
            (s)[k] += (expression);                                                                                    \
        }                                                                                                              \
    } while (0)

INLINE double added(const float s[LANE_SUMS])
{
    double sum = 0.0;
    for (int k = 0; k < LANE_SUMS; k++)
        sum += (double)s[k];
    return sum;
}

static float learned_quant_slope(const float *dy, const float *x, int64_t n, float scale, float lo, float hi)
{
    float s[LANE_SUMS] = { 0 };
    LANE_SUM(s, n, dy[i] * (x[i] / scale < lo ? lo : x[i] / scale > hi ? hi : rintf(x[i] / scale) - x[i] / scale));
    return (float)added(s);
}

static float sum(const float *a, int64_t n)
{
    float s[LANE_SUMS] = { 0 };
    LANE_SUM(s, n, a[i]);
    return (float)added(s);
}

/* --- rows --- */

static void softmax_grad(float *dx, const float *dy, const float *y, int64_t rows, int64_t width)
{
    for (int64_t r = 0; r < rows; r++, dx += width, dy += width, y += width) {
        float s[LANE_SUMS] = { 0 };
        LANE_SUM(s, width, dy[i] * y[i]);
        const float both = (float)added(s);
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            dx[i] = y[i] * (dy[i] - both);
    }
}

static void log_softmax_grad(float *dx, const float *dy, const float *y, int64_t rows, int64_t width)
{
    for (int64_t r = 0; r < rows; r++, dx += width, dy += width, y += width) {
        const vec all = vec_all(0.0f) - vec_all(sum(dy, width));
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES)
            vec_store(dx + i, vec_fma(vec_exp(vec_load(y + i)), all, vec_load(dy + i)));
        if (i < width)
            vec_store_some(dx + i,
                           vec_fma(vec_exp(vec_load_some(y + i, width - i)), all, vec_load_some(dy + i, width - i)),
                           width - i);
    }
}

static void log_softmax(float *dst, const float *src, int64_t rows, int64_t width)
{
    for (int64_t r = 0; r < rows; r++, dst += width, src += width) {
        float most = src[0], s[LANE_SUMS] = { 0 };
        for (int64_t i = 1; i < width; i++)
            most = src[i] > most ? src[i] : most;
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i;
            float e[LANES];
            vec_store(e, vec_exp((left < LANES ? vec_load_some(src + i, left) : vec_load(src + i)) - vec_all(most)));
            for (int64_t k = 0; k < LANES && k < left; k++)
                s[(i + k) % LANE_SUMS] += e[k];
        }
        const float shift = most + (float)log(added(s));
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            dst[i] = src[i] - shift;
    }
}

/* Mean and 1 / sqrt(var + eps) of a row; the variance about the mean, so that it does not cancel. */
INLINE void row_moments(const float *x, int64_t width, float eps, float *mean, float *rstd)
{
    float s[LANE_SUMS] = { 0 }, q[LANE_SUMS] = { 0 };
    const float pivot = x[0];
    LANE_SUM(s, width, x[i] - pivot);
    const float m = (float)((double)pivot + added(s) / (double)width);
    LANE_SUM(q, width, (x[i] - m) * (x[i] - m));
    *mean = m;
    *rstd = (float)(1.0 / sqrt(added(q) / (double)width + (double)eps));
}

static void layer_norm_grad(float *dx, const float *dy, const float *x, const float *weight, int64_t rows,
                            int64_t width, float eps)
{
    for (int64_t r = 0; r < rows; r++, dx += width, dy += width, x += width) {
        float mean, rstd, s[LANE_SUMS] = { 0 }, q[LANE_SUMS] = { 0 };
        row_moments(x, width, eps, &mean, &rstd);
        if (weight) {
            LANE_SUM(s, width, dy[i] * weight[i]);
            LANE_SUM(q, width, dy[i] * weight[i] * (x[i] - mean));
        } else {
            LANE_SUM(s, width, dy[i]);
            LANE_SUM(q, width, dy[i] * (x[i] - mean));
        }
        const float base = (float)(added(s) / (double)width);
        const float tilt = (float)(added(q) * (double)rstd * (double)rstd / (double)width);
        if (weight) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                dx[i] = rstd * (dy[i] * weight[i] - base - (x[i] - mean) * tilt);
        } else {
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                dx[i] = rstd * (dy[i] - base - (x[i] - mean) * tilt);
        }
    }
}

static void layer_norm_grad_weight(float *total, const float *dy, const float *x, int64_t rows, int64_t width,
                                   float eps)
{
    for (int64_t r = 0; r < rows; r++, dy += width, x += width) {
        float mean, rstd;
        row_moments(x, width, eps, &mean, &rstd);
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            total[i] += dy[i] * (x[i] - mean) * rstd;
    }
}

/* --- windows of pools, all channels at once --- */

static void keep_larger(float *best, int32_t *from, const float *x, int32_t tap, int64_t channels)
{
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
        from[c] = x[c] > best[c] ? tap : from[c];
        best[c] = x[c] > best[c] ? x[c] : best[c];
    }
}

static void add_where(float *dx, const float *dy, const int32_t *from, int32_t tap, int64_t channels)
{
#pragma omp simd
    for (int64_t c = 0; c < channels; c++)
        dx[c] += from[c] == tap ? dy[c] : 0.0f;
}

static void add_scaled(float *dx, const float *dy, float scale, int64_t channels)
{
#pragma omp simd
    for (int64_t c = 0; c < channels; c++)
        dx[c] += dy[c] * scale;
}

const qd_map_simd NAME(qd_map_simd_, QD_SIMD) = {
    .map = map,
    .learned_quant_slope = learned_quant_slope,
    .sum = sum,
    .softmax_grad = softmax_grad,
    .log_softmax_grad = log_softmax_grad,
    .log_softmax = log_softmax,
    .layer_norm_grad = layer_norm_grad,
    .layer_norm_grad_weight = layer_norm_grad_weight,
    .keep_larger = keep_larger,
    .add_where = add_where,
    .add_scaled = add_scaled,
};
