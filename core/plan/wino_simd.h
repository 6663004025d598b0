/* wino_simd.h - inner loops of Winograd's convolutions, compiled for each instruction set from wino_loops.c. */
#ifndef QD_PLAN_WINO_SIMD_H
#define QD_PLAN_WINO_SIMD_H

#include <stdbool.h>
#include <stdint.h>

#define QD_WINO_PANEL 32 /* columns of a product at a time; rows come in fours, channels in sixteens */

/* A tile of an image [h][w][c]: its upper left corner, which for what is read may lie outside. */
typedef struct qd_wino_tile {
    int64_t h, w, c, y, x;
} qd_wino_tile;

typedef struct qd_wino_simd {
    const char *name; /* "winograd:avx512" */
    /* v = B^T d B of 6 x 6 pixels, zero outside; image = A^T m A (+ bias [c] or NULL), 4 x 4 pixels; m = A d A^T of 4 x 4 pixels */
    void (*input)(float *v, int64_t plane, const float *image, const qd_wino_tile *t);
    void (*output)(float *image, const float *m, int64_t plane, const float *bias, const qd_wino_tile *t);
    void (*spread)(float *m, int64_t plane, const float *image, const qd_wino_tile *t);
    /* image = A^T m A (+ bias) + side, which lies as the image does and may be it */
    void (*output_sum)(float *image, const float *side, const float *m, int64_t plane, const float *bias,
                       const qd_wino_tile *t);
    /* u[36 planes][c][QD_WINO_PANEL] = G w G^T of packed filters w [c][9][QD_WINO_PANEL] */
    void (*filters)(float *u, int64_t plane, const float *w, int64_t c);
    /* u = G w G^T of `lanes` filters of nine, lane_stride apart, the rest of a panel zero; turned: by 180 degrees. w = G^T u G. */
    void (*weight)(float *u, int64_t plane, const float *w, int64_t lane_stride, bool turned, int64_t lanes);
    void (*unweight)(float *w, int64_t lane_stride, const float *u, int64_t plane, int64_t lanes);
    /* dst[i][j] (+)= sum_k a[i row + k step] b[k b_stride + j], j < QD_WINO_PANEL; rows a multiple of 4 */
    void (*product)(float *dst, int64_t dst_stride, const float *a, int64_t row, int64_t step, const float *b,
                    int64_t b_stride, int64_t rows, int64_t depth, bool add);
} qd_wino_simd;

const qd_wino_simd *qd_wino_simd_get(void); /* by qd_cpu_isa() */

extern const qd_wino_simd qd_wino_simd_base, qd_wino_simd_avx2, qd_wino_simd_avx512;

#endif
