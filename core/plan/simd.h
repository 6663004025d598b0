/* simd.h - our own inner loops, compiled once for each instruction set from simd_loops.c and chosen while running.
 *
 * All are pure, and sum in an order that depends on the instruction set alone, never on threads. */
#ifndef QD_PLAN_SIMD_H
#define QD_PLAN_SIMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum qd_act {
    QD_ACT_NONE,
    QD_ACT_SILU,
    QD_ACT_RELU,
    QD_ACT_CLIP,
    QD_ACT_GELU,
    QD_ACT_SIGMOID,
    QD_ACT_TANH
} qd_act;
typedef enum qd_arith { QD_ARITH_ADD, QD_ARITH_SUB, QD_ARITH_MUL, QD_ARITH_DIV, QD_ARITH_MAX } qd_arith;
typedef enum qd_pass_out { QD_PASS_F32, QD_PASS_CODES, QD_PASS_FAKE } qd_pass_out;

/* What happens to one element on its way: y = act(mul[c] x + add[c]), then perhaps
 * q = clamp(rne((y inv_div[c]) inv_scale), lo, hi) + zero, NaN giving zero (op.h, quantize). */
typedef struct qd_pass_math {
    bool affine; /* mul and add are given */
    qd_act act;
    float clip_lo, clip_hi;
    qd_pass_out out; /* F32: y; CODES: q as u8; FAKE: (q - zero) * scale as f32 */
    bool divided;    /* inv_div is given */
    float inv_scale, scale;
    float lo, hi; // qmin - zero, qmax - zero
    int32_t zero; // added to the code as it is stored
} qd_pass_math;

#define QD_NIBBLE_BLOCK 128 /* codes */

typedef struct qd_simd {
    const char *name;

    /* dst[i][c] = pass(src[i][c]), i < pixels, c < channels; strides in elements. mul, add, inv_div: [channels] or NULL.
     * dst is float or uint8_t by math->out; it may be src when both are float. */
    void (*pass)(void *dst, size_t dst_stride, const float *src, size_t src_stride, int64_t pixels, int64_t channels,
                 const float *mul, const float *add, const float *inv_div, const qd_pass_math *math);

    /* sum[c] = sum_i (src[i][c] - pivot[c]), square[c] = sum_i (src[i][c] - pivot[c])^2 */
    void (*moments)(float *sum, float *square, const float *src, size_t src_stride, const float *pivot, int64_t pixels,
                    int64_t channels);

    /* dst = a op b, elementwise; b_step 0 uses b[0] throughout. dst may be a or b. */
    void (*arith)(float *dst, const float *a, const float *b, int b_step, int64_t n, qd_arith op);

    /* dst = softmax of each row in place. */
    void (*softmax)(float *rows, int64_t n_rows, int64_t width, size_t stride);

    /* dst[r][o] = src[r] . weight[o] + bias[o] for o in [begin, end): few rows, weights as they are. bias may be NULL. */
    void (*dots)(float *dst, const float *src, const float *weight, const float *bias, int64_t rows, int64_t in,
                 int64_t out, int64_t begin, int64_t end);

    /* Codes of 4 bits spelled out: byte j < QD_NIBBLE_BLOCK / 2 of a block has code j low and code j + QD_NIBBLE_BLOCK / 2 high. */
    void (*nibbles)(int8_t *dst, const uint8_t *src, int64_t blocks);

    /* dst = (src - mean) / sqrt(var + eps) * weight + bias over each row. weight, bias: [width] or NULL. */
    void (*layer_norm)(float *dst, const float *src, const float *weight, const float *bias, int64_t rows,
                       int64_t width, float eps);
} qd_simd;

/* By qd_cpu_isa(). */
const qd_simd *qd_simd_get(void);

#endif
