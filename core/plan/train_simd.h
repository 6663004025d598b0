/* train_simd.h - inner loops of training over [pixels][channels], compiled for each instruction set from train_loops.c. */
#ifndef QD_PLAN_TRAIN_SIMD_H
#define QD_PLAN_TRAIN_SIMD_H

#include <stddef.h>
#include <stdint.h>

typedef struct qd_train_simd {
    const char *name;

    /* sum[c] = sum_i (a[i][c] - pivot[c]), square[c] = sum_i (a[i][c] - pivot[c])^2; pivot [channels]. */
    void (*moments)(float *sum, float *square, const float *a, const float *pivot, int64_t pixels, int64_t channels);
    /* sum[c] = sum_i dy[i][c], product[c] = sum_i dy[i][c] (x[i][c] - mean[c]) */
    void (*sums)(float *sum, float *product, const float *dy, const float *x, const float *mean, int64_t pixels,
                 int64_t channels);
    /* dx[i][c] = a[c] dy[i][c] + b[c] x[i][c] + k[c]; dx may be dy or x. */
    void (*combine)(float *dx, const float *dy, const float *x, const float *a, const float *b, const float *k,
                    int64_t pixels, int64_t channels);
    /* dx = y > 0 ? dy : 0; dx may be dy. */
    void (*mask)(float *dx, const float *dy, const float *y, int64_t n);
    /* dst[i][c] = max(mul[c] x[i][c] + add[c] + side[i][c], floor); side may be NULL; floor 0 or -infinity. dst may be x or side. */
    void (*norm)(float *dst, const float *x, const float *side, const float *mul, const float *add, float floor,
                 int64_t pixels, int64_t channels);
    /* sum[c] = sum_i a[i][c] */
    void (*columns)(float *sum, const float *a, int64_t pixels, int64_t channels);
} qd_train_simd;

const qd_train_simd *qd_train_simd_get(void); /* by qd_cpu_isa() */

extern const qd_train_simd qd_train_simd_base, qd_train_simd_avx2, qd_train_simd_avx512;

/* --- train_maps.c: elements on their own, and rows --- */

/* Functions of (a) or (a, b), b the place of the forward pass where a is the derivative by the result. p: their numbers. */
typedef enum qd_map {
    QD_MAP_LEAKY,              /* (x); slope */
    QD_MAP_LEAKY_GRAD,         /* (dy, x); slope */
    QD_MAP_CLIP_GRAD,          /* (dy, x); lo, hi */
    QD_MAP_SILU_GRAD,          /* (dy, x) */
    QD_MAP_GELU_GRAD,          /* (dy, x) */
    QD_MAP_SIGMOID_GRAD,       /* (dy, x) */
    QD_MAP_TANH_GRAD,          /* (dy, x) */
    QD_MAP_FAKE_QUANT_GRAD,    /* (dy, x); scale, lo, hi: codes less zero */
    QD_MAP_LEARNED_QUANT,      /* (x); scale, lo, hi */
    QD_MAP_LEARNED_QUANT_GRAD, /* (dy, x); scale, lo, hi */
    QD_MAP_SOFT_ROUND,         /* (v); lo, hi */
    QD_MAP_SOFT_ROUND_GRAD,    /* (dy, v); lo, hi */
} qd_map;

typedef struct qd_map_simd {
    /* dst may be a or b. */
    void (*map)(qd_map f, float *dst, const float *a, const float *b, int64_t n, const float p[4]);
    /* sum of dy[i] by the slope of learned_quant by its scale at x[i]; n a few thousand at most */
    float (*learned_quant_slope)(const float *dy, const float *x, int64_t n, float scale, float lo, float hi);
    float (*sum)(const float *a, int64_t n); /* n a few thousand at most */

    /* Rows of `width`; dx may be dy or y. dx = y (dy - sum dy y), dx = dy - exp(y) sum dy */
    void (*softmax_grad)(float *dx, const float *dy, const float *y, int64_t rows, int64_t width);
    void (*log_softmax_grad)(float *dx, const float *dy, const float *y, int64_t rows, int64_t width);
    void (*log_softmax)(float *dst, const float *src, int64_t rows, int64_t width); /* dst may be src */
    /* weight [width] or NULL; dx may be dy. */
    void (*layer_norm_grad)(float *dx, const float *dy, const float *x, const float *weight, int64_t rows,
                            int64_t width, float eps);
    /* sum[k] += sum over rows of dy (x - mean) / sqrt(var + eps) */
    void (*layer_norm_grad_weight)(float *sum, const float *dy, const float *x, int64_t rows, int64_t width, float eps);

    /* best[c] = x[c], from[c] = tap where x[c] > best[c]; dx[c] += from[c] == tap ? dy[c] : 0 */
    void (*keep_larger)(float *best, int32_t *from, const float *x, int32_t tap, int64_t channels);
    void (*add_where)(float *dx, const float *dy, const int32_t *from, int32_t tap, int64_t channels);
    void (*add_scaled)(float *dx, const float *dy, float scale, int64_t channels);
} qd_map_simd;

const qd_map_simd *qd_map_simd_get(void);

extern const qd_map_simd qd_map_simd_base, qd_map_simd_avx2, qd_map_simd_avx512;

#endif
