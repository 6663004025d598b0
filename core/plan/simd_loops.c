/* simd_loops.c - the inner loops, written for the vectoriser; compiled for each instruction set with QD_SIMD set to its name. */
#include <math.h>
#include <string.h>

#include "plan/simd.h"
#include "plan/simd_int.h"
#include "plan/simd_vec.h"

#define PASTE(a, b) a##b
#define NAME(prefix, isa) PASTE(prefix, isa)
#define TEXT(x) #x
#define STRING(x) TEXT(x)

/* --- the pass --- */

/* A call for each lane: rare in the networks we run. */
INLINE vec by_lane(vec x, qd_act act)
{
    float y[LANES];
    vec_store(y, x);
    for (int k = 0; k < LANES; k++)
        y[k] = act == QD_ACT_TANH ? tanhf(y[k]) : 0.5f * y[k] * (1.0f + erff(y[k] * 0.70710678f));
    return vec_load(y);
}

INLINE vec act_of(vec x, qd_act act, const qd_pass_math *m)
{
    switch (act) {
    case QD_ACT_NONE:
        return x;
    case QD_ACT_SILU:
        return x * vec_inverse(vec_all(1.0f) + vec_exp(vec_all(0.0f) - x));
    case QD_ACT_RELU:
        return vec_max(vec_all(0.0f), x);
    case QD_ACT_CLIP:
        return vec_min(vec_all(m->clip_hi), vec_max(vec_all(m->clip_lo), x));
    case QD_ACT_SIGMOID:
        return vec_inverse(vec_all(1.0f) + vec_exp(vec_all(0.0f) - x));
    case QD_ACT_GELU:
    case QD_ACT_TANH:
        return by_lane(x, act);
    }
    return x;
}

/* The code less zero, as a float that is not rounded yet. */
INLINE vec code_of(vec x, vec inv_div, const qd_pass_math *m, bool divided)
{
    if (divided)
        x = x * inv_div;
    return vec_clamp_nan_zero(x * vec_all(m->inv_scale), vec_all(m->lo), vec_all(m->hi));
}

INLINE vec fake_of(vec code, const qd_pass_math *m)
{
    return ((code + vec_all(VEC_ROUND)) - vec_all(VEC_ROUND)) * vec_all(m->scale);
}

INLINE void pass_run(void *dst, const float *src, int64_t n, const float *mul, const float *add, const float *inv_div,
                     const qd_pass_math *math, bool affine, qd_act act, qd_pass_out out, bool divided)
{
    const qd_pass_math m = *math; /* a copy, which stores through dst cannot change */
    float *f = dst;
    uint8_t *u = dst;
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES) {
        vec x = vec_load(src + c);
        if (affine)
            x = vec_fma(vec_load(mul + c), x, vec_load(add + c));
        x = act_of(x, act, &m);
        if (out != QD_PASS_F32)
            x = code_of(x, divided ? vec_load(inv_div + c) : vec_all(1.0f), &m, divided);
        if (out == QD_PASS_CODES) {
            vec_store_codes(u + c, x, m.zero);
        } else {
            if (out == QD_PASS_FAKE)
                x = fake_of(x, &m);
            vec_store(f + c, x);
        }
    }
    const int64_t left = n - c;
    if (left == 0)
        return;
    vec x = vec_load_some(src + c, left);
    if (affine)
        x = vec_fma(vec_load_some(mul + c, left), x, vec_load_some(add + c, left));
    x = act_of(x, act, &m);
    if (out != QD_PASS_F32)
        x = code_of(x, divided ? vec_load_some(inv_div + c, left) : vec_all(1.0f), &m, divided);
    if (out == QD_PASS_CODES) {
        uint8_t codes[LANES];
        vec_store_codes(codes, x, m.zero);
        memcpy(u + c, codes, (size_t)left);
    } else {
        if (out == QD_PASS_FAKE)
            x = fake_of(x, &m);
        vec_store_some(f + c, x, left);
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

/* --- statistics --- */

/* Vectors of channels stay in registers while the pixels go by. */
INLINE void moments_block(float *sum, float *square, const float *src, size_t stride, const float *pivot,
                          int64_t pixels, int vectors)
{
    vec s[4], q[4], p[4];
    for (int k = 0; k < vectors; k++) {
        s[k] = q[k] = vec_all(0.0f);
        p[k] = vec_load(pivot + k * LANES);
    }
    for (int64_t i = 0; i < pixels; i++)
        for (int k = 0; k < vectors; k++) {
            const vec d = vec_load(src + (size_t)i * stride + k * LANES) - p[k];
            s[k] = s[k] + d;
            q[k] = vec_fma(d, d, q[k]);
        }
    for (int k = 0; k < vectors; k++) {
        vec_store(sum + k * LANES, s[k]);
        vec_store(square + k * LANES, q[k]);
    }
}

static void moments(float *sum, float *square, const float *src, size_t src_stride, const float *pivot, int64_t pixels,
                    int64_t channels)
{
    int64_t c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES)
        moments_block(sum + c, square + c, src + c, src_stride, pivot + c, pixels, 4);
    for (; c + LANES <= channels; c += LANES)
        moments_block(sum + c, square + c, src + c, src_stride, pivot + c, pixels, 1);
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

/* --- arithmetic --- */

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

/* --- rows --- */

INLINE float larger(float a, float b)
{
    return a < b ? b : a;
}

INLINE float largest(const float *x, int64_t n)
{
    float lane[LANES], top = x[0];
    vec t = vec_all(top);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        t = vec_max(t, vec_load(x + i));
    for (; i < n; i++)
        top = larger(top, x[i]);
    vec_store(lane, t);
    for (int k = 0; k < LANES; k++)
        top = larger(top, lane[k]);
    return top;
}

static void softmax(float *rows, int64_t n_rows, int64_t width, size_t stride)
{
    for (int64_t r = 0; r < n_rows; r++) {
        float *row = rows + (size_t)r * stride;
        const vec top = vec_all(largest(row, width));
        const int64_t whole = width - width % LANES;
        vec sum = vec_all(0.0f);
        float tail[LANES] = { 0 };
        for (int64_t i = 0; i < whole; i += LANES) {
            const vec e = vec_exp(vec_load(row + i) - top);
            vec_store(row + i, e);
            sum = sum + e;
        }
        if (whole < width) {
            vec_store(tail, vec_exp(vec_load_some(row + whole, width - whole) - top));
            memset(tail + (width - whole), 0, (size_t)(LANES - (width - whole)) * sizeof(float));
            sum = sum + vec_load(tail);
            memcpy(row + whole, tail, (size_t)(width - whole) * sizeof(float));
        }
        const float inv = 1.0f / vec_sum(sum);
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            row[i] *= inv;
    }
}

#define ROWS 4

/* Up to ROWS rows against one row of weights, which is read once for all of them. */
INLINE void dot_rows(float *dst, const float *src, const float *w, float bias, int rows, int64_t in, int64_t out)
{
    vec acc[ROWS][2];
    for (int r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = vec_all(0.0f);
    int64_t i = 0;
    for (; i + 2 * LANES <= in; i += 2 * LANES) {
        const vec w0 = vec_load(w + i), w1 = vec_load(w + i + LANES);
        for (int r = 0; r < rows; r++) {
            acc[r][0] = vec_fma(vec_load(src + r * in + i), w0, acc[r][0]);
            acc[r][1] = vec_fma(vec_load(src + r * in + i + LANES), w1, acc[r][1]);
        }
    }
    for (int r = 0; r < rows; r++) {
        float tail = 0.0f;
        for (int64_t k = i; k < in; k++)
            tail += src[r * in + k] * w[k];
        dst[r * out] = vec_sum(acc[r][0] + acc[r][1]) + tail + bias;
    }
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

static void nibbles(int8_t *restrict dst, const uint8_t *restrict src, int64_t blocks)
{
    enum { HALF = QD_NIBBLE_BLOCK / 2 };
    for (int64_t k = 0; k < blocks; k++) {
        for (int j = 0; j < HALF; j++) {
            dst[j] = (int8_t)((src[j] & 15) ^ 8) - 8;
            dst[j + HALF] = (int8_t)((src[j] >> 4) ^ 8) - 8;
        }
        dst += QD_NIBBLE_BLOCK;
        src += HALF;
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
    .nibbles = nibbles,
    .layer_norm = layer_norm,
};
