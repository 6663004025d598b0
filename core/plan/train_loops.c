/* train_loops.c - the inner loops of training, written for the vectoriser; compiled for each instruction set with QD_SIMD its name.
 *
 * Channels are taken BLOCK at a time so that sums stay in registers; images of fewer channels are padded by none: the rest of a
 * block is a plain loop. */
#include <math.h>

#include "plan/train_simd.h"

#define PASTE(a, b) a##b
#define NAME(prefix, isa) PASTE(prefix, isa)
#define TEXT(x) #x
#define STRING(x) TEXT(x)

enum { BLOCK = 16 };

/* Body once for whole blocks, whose width the compiler knows, and once for what is left. */
#define BY_BLOCKS(call_block, call_rest)                                                                               \
    int64_t c = 0;                                                                                                     \
    for (; c + BLOCK <= channels; c += BLOCK)                                                                          \
        call_block;                                                                                                    \
    if (c < channels)                                                                                                  \
    call_rest

static inline __attribute__((always_inline)) void moments_width(float *restrict sum, float *restrict square,
                                                                const float *restrict a, const float *restrict pivot,
                                                                int64_t pixels, int64_t stride, int width)
{
    float s[BLOCK] = { 0 }, q[BLOCK] = { 0 };
    for (int64_t i = 0; i < pixels; i++)
#pragma omp simd
        for (int k = 0; k < width; k++) {
            const float d = a[i * stride + k] - pivot[k];
            s[k] += d;
            q[k] += d * d;
        }
    for (int k = 0; k < width; k++) {
        sum[k] = s[k];
        square[k] = q[k];
    }
}

static void moments(float *sum, float *square, const float *a, const float *pivot, int64_t pixels, int64_t channels)
{
    BY_BLOCKS(moments_width(sum + c, square + c, a + c, pivot + c, pixels, channels, BLOCK),
              moments_width(sum + c, square + c, a + c, pivot + c, pixels, channels, (int)(channels - c)));
}

static inline __attribute__((always_inline)) void sums_width(float *restrict sum, float *restrict product,
                                                             const float *restrict dy, const float *restrict x,
                                                             const float *restrict mean, int64_t pixels, int64_t stride,
                                                             int width)
{
    float s[BLOCK] = { 0 }, q[BLOCK] = { 0 };
    for (int64_t i = 0; i < pixels; i++)
#pragma omp simd
        for (int k = 0; k < width; k++) {
            s[k] += dy[i * stride + k];
            q[k] += dy[i * stride + k] * (x[i * stride + k] - mean[k]);
        }
    for (int k = 0; k < width; k++) {
        sum[k] = s[k];
        product[k] = q[k];
    }
}

static void sums(float *sum, float *product, const float *dy, const float *x, const float *mean, int64_t pixels,
                 int64_t channels)
{
    BY_BLOCKS(sums_width(sum + c, product + c, dy + c, x + c, mean + c, pixels, channels, BLOCK),
              sums_width(sum + c, product + c, dy + c, x + c, mean + c, pixels, channels, (int)(channels - c)));
}

static inline __attribute__((always_inline)) void columns_width(float *restrict sum, const float *restrict a,
                                                                int64_t pixels, int64_t stride, int width)
{
    float s[BLOCK] = { 0 };
    for (int64_t i = 0; i < pixels; i++)
#pragma omp simd
        for (int k = 0; k < width; k++)
            s[k] += a[i * stride + k];
    for (int k = 0; k < width; k++)
        sum[k] = s[k];
}

static void columns(float *sum, const float *a, int64_t pixels, int64_t channels)
{
    BY_BLOCKS(columns_width(sum + c, a + c, pixels, channels, BLOCK),
              columns_width(sum + c, a + c, pixels, channels, (int)(channels - c)));
}

static void combine(float *dx, const float *dy, const float *x, const float *a, const float *b, const float *k,
                    int64_t pixels, int64_t channels)
{
    for (int64_t i = 0; i < pixels; i++, dx += channels, dy += channels, x += channels)
#pragma omp simd
        for (int64_t c = 0; c < channels; c++)
            dx[c] = a[c] * dy[c] + (b[c] * x[c] + k[c]);
}

static void mask(float *dx, const float *dy, const float *y, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        dx[i] = y[i] > 0.0f ? dy[i] : 0.0f;
}

static void norm(float *dst, const float *x, const float *side, const float *mul, const float *add, float floor,
                 int64_t pixels, int64_t channels)
{
    for (int64_t i = 0; i < pixels; i++, dst += channels, x += channels) {
        if (side) {
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) {
                const float y = mul[c] * x[c] + add[c] + side[c];
                dst[c] = y < floor ? floor : y;
            }
            side += channels;
        } else {
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) {
                const float y = mul[c] * x[c] + add[c];
                dst[c] = y < floor ? floor : y;
            }
        }
    }
}

const qd_train_simd NAME(qd_train_simd_, QD_SIMD) = {
    .name = STRING(QD_SIMD),
    .moments = moments,
    .sums = sums,
    .combine = combine,
    .mask = mask,
    .norm = norm,
    .columns = columns,
};
