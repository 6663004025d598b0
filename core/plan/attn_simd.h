/* attn_simd.h - inner loops of attention, in float and on codes, compiled once for each instruction set from attn_loops.c.
 *
 * Sums of codes are exact everywhere: by VNNI (u8 x s8, four at a time) where the processor has it, else in pairs of 16 bits. */
#ifndef QD_PLAN_ATTN_SIMD_H
#define QD_PLAN_ATTN_SIMD_H

#include <stddef.h>
#include <stdint.h>

#define QD_PANEL 16 /* outputs of a panel; its bytes: [quads][QD_PANEL][4] */

typedef struct qd_attn_simd {
    const char *name;

    /* --- in float: panels of `lanes` outputs, [depth][lanes] each --- */
    int64_t lanes;
    /* dst[r][o] = alpha sum_k a[r][k] b[o][k], k < depth, o < lanes panels. */
    void (*products)(float *dst, size_t dst_stride, const float *a, size_t a_stride, const float *b, int64_t rows,
                     int64_t panels, int64_t depth, float alpha);
    /* Panels of rows [n][width]: output o is row o, or channel o; zeros beyond. */
    void (*pack_rows)(float *b, const float *src, size_t stride, int64_t n, int64_t width);
    void (*pack_columns)(float *b, const float *src, size_t stride, int64_t n, int64_t width);
    /* row[k] = exp(row[k] - the largest); returns their sum. */
    float (*exps)(float *row, int64_t n);

    /* --- on codes --- */

    /* dst[r][o] = sum_k a[r][k] b[o][k], k < 4 quads, o < QD_PANEL panels. Rows of a may hold anything where b is zero. */
    void (*dots)(int32_t *dst, size_t dst_stride, const uint8_t *a, size_t a_stride, const int8_t *b, int64_t rows,
                 int64_t panels, int64_t quads);

    /* Panels of keys: output o is row o of codes [n][width], code - 128 as s8; zeros beyond. sum[o]: of its bytes, o < QD_PANEL
     * panels. */
    void (*pack_keys)(int8_t *b, int32_t *sum, const uint8_t *codes, size_t stride, int64_t n, int64_t width);

    /* Panels of values: output o is channel o, its bytes are codes - 128 of all rows; zeros beyond. */
    void (*pack_values)(int8_t *b, const uint8_t *codes, size_t stride, int64_t n, int64_t width);

    /* Weights of one query: p = rne(exp((float)(score + bias - top) factor) most), most 255 (high NULL) or 65535, top the largest
     * score + bias; low and high bytes to [n]. Returns their sum. score is overwritten. */
    int64_t (*weights)(uint8_t *low, uint8_t *high, int32_t *score, const int32_t *bias, int64_t n, float factor);
} qd_attn_simd;

/* By qd_cpu_isa() and VNNI. */
const qd_attn_simd *qd_attn_simd_get(void);

static inline int64_t qd_float_panels(const qd_attn_simd *s, int64_t n)
{
    return (n + s->lanes - 1) / s->lanes;
}

static inline int64_t qd_panels(int64_t n)
{
    return (n + QD_PANEL - 1) / QD_PANEL;
}

static inline int64_t qd_quads(int64_t n)
{
    return (n + 3) / 4;
}

#endif
