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
} qd_train_simd;

const qd_train_simd *qd_train_simd_get(void); /* by qd_cpu_isa() */

extern const qd_train_simd qd_train_simd_base, qd_train_simd_avx2, qd_train_simd_avx512;

#endif
