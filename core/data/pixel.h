/* pixel.h - inner loops over 8-bit pixels, compiled once for each instruction set from pixel_loops.c and chosen while running.
 *
 * All follow Pillow 9.4 to the bit: integers where it has integers, float and double where it has those. None contracts, so every
 * instruction set gives the same bytes. */
#ifndef QD_DATA_PIXEL_H
#define QD_DATA_PIXEL_H

#include <stddef.h>
#include <stdint.h>

#define QD_PIXEL_BITS 22 /* fraction bits of resampling weights: Pillow's 32 - 8 - 2 */

typedef struct qd_pixel_loops {
    /* dst[i] = clip((2^21 + sum_t weight[t] src[t stride + i]) >> 22), i < n. */
    void (*weigh)(uint8_t *dst, const uint8_t *src, size_t stride, const int32_t *weight, int taps, size_t n);
    /* dst[x][y] = src[y][x]: rows of src, strides in bytes. */
    void (*turn)(uint8_t *dst, size_t dst_stride, const uint8_t *src, size_t src_stride, int rows, int columns);
    /* px[i] = from + factor (px[i] - from), cut off and held in 0..255. */
    void (*blend_value)(uint8_t *px, int from, float factor, size_t n);
    /* The same with from[i]. */
    void (*blend)(uint8_t *px, const uint8_t *from, float factor, size_t n);
    /* dst = (19595 r + 38470 g + 7471 b + 32768) >> 16 */
    void (*grey)(uint8_t *dst, const uint8_t *r, const uint8_t *g, const uint8_t *b, size_t n);
    uint64_t (*sum)(const uint8_t *px, size_t n);
    /* To 8-bit hue, saturation, value; hue += shift mod 256; and back. */
    void (*hue)(uint8_t *r, uint8_t *g, uint8_t *b, int shift, size_t n);
    /* dst[i] = sum_t weight[t] src[t stride + i] */
    void (*weigh_floats)(float *dst, const float *src, size_t stride, const float *weight, int taps, size_t n);
} qd_pixel_loops;

const qd_pixel_loops *qd_pixel_loops_get(void);

extern const qd_pixel_loops qd_pixel_loops_base, qd_pixel_loops_avx2;

#endif
