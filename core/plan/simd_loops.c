/* simd_loops.c - the inner loops, written for the vectoriser; compiled for each instruction set with QD_SIMD set to its name. */
#include <math.h>
#include <string.h>

#include "plan/simd.h"
#include "plan/simd_int.h"

#define PASTE(a, b) a##b
#define NAME(prefix, isa) PASTE(prefix, isa)
#define TEXT(x) #x
#define STRING(x) TEXT(x)

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias)); /* may lie anywhere */

/* Where there is no fused multiply-add, the library's would be a call. */
#if defined(__FMA__)
#define FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#define INLINE static inline __attribute__((always_inline))

#define ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds |x| < 2^22 to an integer, ties to even */

/* e^x, worst error 2 ulp over [-87, 88], held at the ends. Cephes' expf: range reduction by ln 2 in two parts. */
INLINE float exp_of(float x)
{
    x = x < -87.33654f ? -87.33654f : x;
    x = x > 88.37626f ? 88.37626f : x;
    const float t = FMA(x, 1.44269504f, ROUND), n = t - ROUND;
    float r = FMA(n, -0.693359375f, x);
    r = FMA(n, 2.12194440e-4f, r);
    float y = FMA(r, 1.9875691500e-4f, 1.3981999507e-3f);
    y = FMA(r, y, 8.3334519073e-3f);
    y = FMA(r, y, 4.1665795894e-2f);
    y = FMA(r, y, 1.6666665459e-1f);
    y = FMA(r, y, 5.0000001201e-1f);
    y = FMA(r * r, y, r) + 1.0f;
    const int32_t power = (int32_t)n + 127;
    const union {
        int32_t i;
        float f;
    } two = { .i = power << 23 };
    return y * two.f;
}

INLINE float act_of(float x, qd_act act, const qd_pass_math *m)
{
    switch (act) {
    case QD_ACT_NONE:
        return x;
    case QD_ACT_SILU:
        return x / (1.0f + exp_of(-x));
    case QD_ACT_RELU:
        return x < 0.0f ? 0.0f : x;
    case QD_ACT_CLIP:
        return x < m->clip_lo ? m->clip_lo : x > m->clip_hi ? m->clip_hi : x;
    case QD_ACT_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case QD_ACT_SIGMOID:
        return 1.0f / (1.0f + exp_of(-x));
    case QD_ACT_TANH:
        return tanhf(x);
    }
    return x;
}

/* One element on its way: see qd_pass_math. */
INLINE float value_of(float x, int64_t c, const float *mul, const float *add, const qd_pass_math *m, bool affine,
                      qd_act act)
{
    return act_of(affine ? FMA(mul[c], x, add[c]) : x, act, m);
}

INLINE float code_of(float x, int64_t c, const float *inv_div, const qd_pass_math *m, bool divided)
{
    if (divided)
        x *= inv_div[c];
    x *= m->inv_scale;
    x = x != x ? 0.0f : x;
    x = x < m->lo ? m->lo : x;
    x = x > m->hi ? m->hi : x;
    return (x + ROUND) - ROUND;
}

#define PASS_LOOP                                                                                                      \
    for (int64_t c = 0; c < n; c++) {                                                                                  \
        float x = value_of(src[c], c, mul, add, &m, affine, act);                                                      \
        if (out != QD_PASS_F32)                                                                                        \
            x = code_of(x, c, inv_div, &m, divided);                                                                   \
        if (out == QD_PASS_CODES)                                                                                      \
            u[c] = (uint8_t)((int32_t)x + m.zero);                                                                     \
        else                                                                                                           \
            f[c] = out == QD_PASS_FAKE ? x * m.scale : x;                                                              \
    }

INLINE void pass_run(void *dst, const float *src, int64_t n, const float *mul, const float *add, const float *inv_div,
                     const qd_pass_math *math, bool affine, qd_act act, qd_pass_out out, bool divided)
{
    const qd_pass_math m = *math; /* a copy, which stores through dst cannot change */
    float *f = dst;
    uint8_t *u = dst;
    if (act == QD_ACT_GELU || act == QD_ACT_TANH) { /* a call for each element */
        PASS_LOOP
    } else {
        _Pragma("omp simd") PASS_LOOP
    }
}

/* One loop over pixels for each combination, so that all choices are made outside of it. */
INLINE void pass_rows(void *dst, size_t dst_stride, const float *src, size_t src_stride, int64_t pixels,
                      int64_t channels, const float *mul, const float *add, const float *inv_div, const qd_pass_math *m,
                      bool affine, qd_act act, qd_pass_out out, bool divided)
{
    const size_t size = out == QD_PASS_CODES ? 1 : 4;
    if (!affine && !divided && dst_stride == (size_t)channels && src_stride == (size_t)channels) {
        channels *= pixels;
        pixels = 1;
    }
    for (int64_t i = 0; i < pixels; i++)
        pass_run((char *)dst + (size_t)i * dst_stride * size, src + (size_t)i * src_stride, channels, mul, add, inv_div,
                 m, affine, act, out, divided);
}

#define PASS_OUT(affine, act)                                                                                          \
    do {                                                                                                               \
        if (math->out == QD_PASS_F32)                                                                                  \
            pass_rows(dst, dst_stride, src, src_stride, pixels, channels, mul, add, inv_div, math, affine, act,        \
                      QD_PASS_F32, false);                                                                             \
        else if (math->out == QD_PASS_CODES && math->divided)                                                          \
            pass_rows(dst, dst_stride, src, src_stride, pixels, channels, mul, add, inv_div, math, affine, act,        \
                      QD_PASS_CODES, true);                                                                            \
        else if (math->out == QD_PASS_CODES)                                                                           \
            pass_rows(dst, dst_stride, src, src_stride, pixels, channels, mul, add, inv_div, math, affine, act,        \
                      QD_PASS_CODES, false);                                                                           \
        else if (math->divided)                                                                                        \
            pass_rows(dst, dst_stride, src, src_stride, pixels, channels, mul, add, inv_div, math, affine, act,        \
                      QD_PASS_FAKE, true);                                                                             \
        else                                                                                                           \
            pass_rows(dst, dst_stride, src, src_stride, pixels, channels, mul, add, inv_div, math, affine, act,        \
                      QD_PASS_FAKE, false);                                                                            \
    } while (0)

#define PASS_ACT(act)                                                                                                  \
    case act:                                                                                                          \
        if (math->affine)                                                                                              \
            PASS_OUT(true, act);                                                                                       \
        else                                                                                                           \
            PASS_OUT(false, act);                                                                                      \
        break;

static void pass(void *dst, size_t dst_stride, const float *src, size_t src_stride, int64_t pixels, int64_t channels,
                 const float *mul, const float *add, const float *inv_div, const qd_pass_math *math)
{
    switch (math->act) {
        PASS_ACT(QD_ACT_NONE)
        PASS_ACT(QD_ACT_SILU)
        PASS_ACT(QD_ACT_RELU)
        PASS_ACT(QD_ACT_CLIP)
        PASS_ACT(QD_ACT_GELU)
        PASS_ACT(QD_ACT_SIGMOID)
        PASS_ACT(QD_ACT_TANH)
    }
}

/* Four vectors of channels at a time stay in registers while the pixels go by. */
static void moments(float *sum, float *square, const float *src, size_t src_stride, const float *pivot, int64_t pixels,
                    int64_t channels)
{
    int64_t c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES) {
        vec s[4] = { 0 }, q[4] = { 0 }, p[4];
        for (int k = 0; k < 4; k++)
            p[k] = *(const vec *)(pivot + c + k * LANES);
        for (int64_t i = 0; i < pixels; i++)
            for (int k = 0; k < 4; k++) {
                const vec d = *(const vec *)(src + (size_t)i * src_stride + c + k * LANES) - p[k];
                s[k] += d;
                q[k] += d * d;
            }
        for (int k = 0; k < 4; k++) {
            *(vec *)(sum + c + k * LANES) = s[k];
            *(vec *)(square + c + k * LANES) = q[k];
        }
    }
    for (; c + LANES <= channels; c += LANES) {
        const vec p = *(const vec *)(pivot + c);
        vec s[2] = { 0 }, q[2] = { 0 };
        int64_t i = 0;
        for (; i + 2 <= pixels; i += 2)
            for (int k = 0; k < 2; k++) {
                const vec d = *(const vec *)(src + (size_t)(i + k) * src_stride + c) - p;
                s[k] += d;
                q[k] += d * d;
            }
        if (i < pixels) {
            const vec d = *(const vec *)(src + (size_t)i * src_stride + c) - p;
            s[0] += d;
            q[0] += d * d;
        }
        *(vec *)(sum + c) = s[0] + s[1];
        *(vec *)(square + c) = q[0] + q[1];
    }
    for (; c < channels; c++) {
        float s = 0.0f, q = 0.0f;
        for (int64_t i = 0; i < pixels; i++) {
            const float d = src[(size_t)i * src_stride + c] - pivot[c];
            s += d;
            q += d * d;
        }
        sum[c] = s;
        square[c] = q;
    }
}

#define ARITH(expression)                                                                                              \
    if (b_step) {                                                                                                      \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++)                                                            \
        {                                                                                                              \
            const float x = a[i], y = b[i];                                                                            \
            dst[i] = expression;                                                                                       \
        }                                                                                                              \
    } else {                                                                                                           \
        const float y = b[0];                                                                                          \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++)                                                            \
        {                                                                                                              \
            const float x = a[i];                                                                                      \
            dst[i] = expression;                                                                                       \
        }                                                                                                              \
    }

static void arith(float *dst, const float *a, const float *b, int b_step, int64_t n, qd_arith op)
{
    switch (op) {
    case QD_ARITH_ADD:
        ARITH(x + y)
        break;
    case QD_ARITH_SUB:
        ARITH(x - y)
        break;
    case QD_ARITH_MUL:
        ARITH(x * y)
        break;
    case QD_ARITH_DIV:
        ARITH(x / y)
        break;
    case QD_ARITH_MAX:
        ARITH(x < y ? y : x)
        break;
    }
}

/* Lanes are added in index order. */
INLINE float total(vec v)
{
    float s = 0.0f;
    for (int k = 0; k < LANES; k++)
        s += v[k];
    return s;
}

INLINE float larger(float a, float b)
{
    return a < b ? b : a;
}

INLINE float largest(const float *x, int64_t n)
{
    float lane[LANES], top = x[0];
    for (int k = 0; k < LANES; k++)
        lane[k] = top;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++)
            lane[k] = larger(lane[k], x[i + k]);
    for (; i < n; i++)
        top = larger(top, x[i]);
    for (int k = 0; k < LANES; k++)
        top = larger(top, lane[k]);
    return top;
}

static void softmax(float *rows, int64_t n_rows, int64_t width, size_t stride)
{
    for (int64_t r = 0; r < n_rows; r++) {
        float *row = rows + (size_t)r * stride;
        const float top = largest(row, width);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) {
            const float e = exp_of(row[i] - top);
            row[i] = e;
            sum += e;
        }
        const float inv = 1.0f / sum;
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            row[i] *= inv;
    }
}

#define ROWS 4

/* Up to ROWS rows against one row of weights, which is read once for all of them. */
INLINE void dot_rows(float *dst, const float *src, const float *w, float bias, int rows, int64_t in, int64_t out)
{
    vec acc[ROWS][2] = { 0 };
    float tail[ROWS] = { 0 };
    int64_t i = 0;
    for (; i + 2 * LANES <= in; i += 2 * LANES) {
        const vec w0 = *(const vec *)(w + i), w1 = *(const vec *)(w + i + LANES);
        for (int r = 0; r < rows; r++) {
            acc[r][0] += *(const vec *)(src + r * in + i) * w0;
            acc[r][1] += *(const vec *)(src + r * in + i + LANES) * w1;
        }
    }
    for (; i < in; i++)
        for (int r = 0; r < rows; r++)
            tail[r] += src[r * in + i] * w[i];
    for (int r = 0; r < rows; r++)
        dst[r * out] = total(acc[r][0] + acc[r][1]) + tail[r] + bias;
}

static void dots(float *dst, const float *src, const float *weight, const float *bias, int64_t rows, int64_t in,
                 int64_t out, int64_t begin, int64_t end)
{
    for (int64_t o = begin; o < end; o++) {
        const float *w = weight + o * in;
        const float b = bias ? bias[o] : 0.0f;
        int64_t r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            dot_rows(dst + r * out + o, src + r * in, w, b, ROWS, in, out);
        for (; r < rows; r++)
            dot_rows(dst + r * out + o, src + r * in, w, b, 1, in, out);
    }
}

static void layer_norm(float *dst, const float *src, const float *weight, const float *bias, int64_t rows,
                       int64_t width, float eps)
{
    for (int64_t r = 0; r < rows; r++) {
        const float *x = src + r * width;
        float *y = dst + r * width;
        const float pivot = x[0];
        double sum = 0.0, square = 0.0;
#pragma omp simd reduction(+ : sum, square)
        for (int64_t i = 0; i < width; i++) {
            const double d = (double)(x[i] - pivot);
            sum += d;
            square += d * d;
        }
        const double shift = sum / (double)width, var = fmax(square / (double)width - shift * shift, 0.0);
        const float mean = (float)(pivot + shift), inv = (float)(1.0 / sqrt(var + (double)eps));
        if (weight && bias) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                y[i] = (x[i] - mean) * inv * weight[i] + bias[i];
        } else {
            for (int64_t i = 0; i < width; i++)
                y[i] = (x[i] - mean) * inv * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f);
        }
    }
}

const qd_simd NAME(qd_simd_, QD_SIMD) = {
    .name = STRING(QD_SIMD),
    .pass = pass,
    .moments = moments,
    .arith = arith,
    .softmax = softmax,
    .dots = dots,
    .layer_norm = layer_norm,
};
