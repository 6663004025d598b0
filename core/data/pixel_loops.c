/* pixel_loops.c - the loops of pixel.h, written for the vectoriser; compiled for each instruction set with QD_SIMD set to its name. */
#include "data/pixel.h"

#include <string.h>

#define PASTE(a, b) a##b
#define NAME(prefix, isa) PASTE(prefix, isa)

enum { BLOCK = 64, TILE = 8 };

static inline uint8_t clip(int v)
{
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* --- resampling (Pillow's Resample.c, 8 bits per channel) --- */

static void weigh_block(uint8_t *restrict dst, const uint8_t *restrict src, size_t stride,
                        const int32_t *restrict weight, int taps, int n)
{
    int32_t sum[BLOCK];
    for (int i = 0; i < n; i++)
        sum[i] = 1 << (QD_PIXEL_BITS - 1);
    for (int t = 0; t < taps; t++) {
        const int32_t w = weight[t];
        const uint8_t *p = src + (size_t)t * stride;
        for (int i = 0; i < n; i++)
            sum[i] += w * p[i];
    }
    for (int i = 0; i < n; i++)
        dst[i] = clip(sum[i] >> QD_PIXEL_BITS);
}

static void weigh(uint8_t *dst, const uint8_t *src, size_t stride, const int32_t *weight, int taps, size_t n)
{
    size_t i = 0;
    /* A count the compiler knows keeps the sums in registers. */
    for (; i + BLOCK <= n; i += BLOCK)
        weigh_block(dst + i, src + i, stride, weight, taps, BLOCK);
    for (; i + BLOCK / 4 <= n; i += BLOCK / 4)
        weigh_block(dst + i, src + i, stride, weight, taps, BLOCK / 4);
    if (i < n)
        weigh_block(dst + i, src + i, stride, weight, taps, (int)(n - i));
}

/* Eight rows of eight bytes as words: swap halves of ever smaller blocks (Warren, Hacker's Delight, 7-3, with bytes for bits). */
static void turn_tile(uint8_t *dst, size_t dst_stride, const uint8_t *src, size_t src_stride)
{
    uint64_t row[TILE];
    for (int k = 0; k < TILE; k++)
        memcpy(&row[k], src + (size_t)k * src_stride, sizeof row[k]);
    static const uint64_t keep[] = { 0x00000000ffffffffu, 0x0000ffff0000ffffu, 0x00ff00ff00ff00ffu };
    for (int level = 0; level < 3; level++) {
        const int step = 4 >> level, bits = 32 >> level;
        for (int k = 0; k < TILE; k++) {
            if (k & step)
                continue;
            const uint64_t swap = ((row[k] >> bits) ^ row[k + step]) & keep[level];
            row[k + step] ^= swap;
            row[k] ^= swap << bits;
        }
    }
    for (int k = 0; k < TILE; k++)
        memcpy(dst + (size_t)k * dst_stride, &row[k], sizeof row[k]);
}

static void turn(uint8_t *dst, size_t dst_stride, const uint8_t *src, size_t src_stride, int rows, int columns)
{
    /* Bytes of a word lie the other way round on big-endian machines. */
    const int tile = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? TILE : 1 << 30;
    for (int y = 0; y < rows; y += TILE)
        for (int x = 0; x < columns; x += TILE) {
            if (y + tile <= rows && x + tile <= columns) {
                turn_tile(dst + (size_t)x * dst_stride + y, dst_stride, src + (size_t)y * src_stride + x, src_stride);
                continue;
            }
            for (int j = y; j < rows && j < y + TILE; j++)
                for (int i = x; i < columns && i < x + TILE; i++)
                    dst[(size_t)i * dst_stride + j] = src[(size_t)j * src_stride + i];
        }
}

/* --- colour (Pillow's Blend.c and Convert.c) --- */

static inline uint8_t mix(int from, int to, float factor)
{
    const float v = (float)from + factor * (float)(to - from);
    return (uint8_t)(int)(v <= 0.0f ? 0.0f : v >= 255.0f ? 255.0f : v);
}

static void blend_value(uint8_t *px, int from, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++)
        px[i] = mix(from, px[i], factor);
}

static void blend(uint8_t *restrict px, const uint8_t *restrict from, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++)
        px[i] = mix(from[i], px[i], factor);
}

static void grey(uint8_t *restrict dst, const uint8_t *restrict r, const uint8_t *restrict g, const uint8_t *restrict b,
                 size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = (uint8_t)((r[i] * 19595u + g[i] * 38470u + b[i] * 7471u + 0x8000u) >> 16);
}

static uint64_t sum(const uint8_t *px, size_t n)
{
    uint64_t total = 0;
    for (size_t i = 0; i < n;) {
        const size_t end = n - i > (1u << 20) ? i + (1u << 20) : n;
        uint32_t part = 0;
        for (; i < end; i++)
            part += px[i];
        total += part;
    }
    return total;
}

/* rgb2hsv_row and hsv2rgb of Convert.c, without branches. Where Pillow's types are float, so are ours; where a double constant
 * makes an expression double, so is it here. fmod(x, 1) of x in [5/6, 11/6] is a subtraction, and round(x) of what occurs here is
 * (int)(x + 0.5): test_augment.c compares both with Pillow over all 2^24 colours. */
static void hue_block(uint8_t *restrict red, uint8_t *restrict green, uint8_t *restrict blue, int shift, int n)
{
    int32_t hue8[BLOCK], sat8[BLOCK];
    for (int i = 0; i < n; i++) {
        const int r = red[i], g = green[i], b = blue[i];
        const int hi = r > g ? (r > b ? r : b) : (g > b ? g : b), lo = r < g ? (r < b ? r : b) : (g < b ? g : b);
        const int range = hi - lo;
        const float cr = (float)(range ? range : 1), sat = (float)range / (float)(hi ? hi : 1);
        const int is_r = r == hi, is_g = g == hi;
        /* h = base + (hi - plus) / cr - (hi - minus) / cr */
        const int plus = is_r ? b : is_g ? r : g, minus = is_r ? g : is_g ? b : r;
        const double base = is_r ? 0.0 : is_g ? 2.0 : 4.0;
        const float h = (float)(base + (double)((float)(hi - plus) / cr) - (double)((float)(hi - minus) / cr));
        double turn6 = (double)h / 6.0 + 1.0;
        turn6 -= turn6 >= 1.0 ? 1.0 : 0.0;
        const int h8 = (int)((double)(float)turn6 * 255.0);
        hue8[i] = ((range ? h8 : 0) + shift) & 255;
        sat8[i] = range ? (int)((double)sat * 255.0) : 0;
    }
    for (int i = 0; i < n; i++) {
        const int r = red[i], g = green[i], b = blue[i];
        const int value = r > g ? (r > b ? r : b) : (g > b ? g : b);
        const double at = (double)hue8[i] * 6.0 / 255.0, v = value;
        const int sector = (int)at;
        const float f = (float)(at - (double)sector), fs = (float)((double)sat8[i] / 255.0);
        const int p = (int)(v * (1.0 - (double)fs) + 0.5), q = (int)(v * (1.0 - (double)(fs * f)) + 0.5),
                  t = (int)(v * (1.0 - (double)fs * (1.0 - (double)f)) + 0.5);
        const int s = sector == 6 ? 0 : sector;
        /* v t p | q v p | p v t | p q v | t p v | v p q; without saturation all three come out as v. */
        const int nr = s == 0 || s == 5 ? value : s == 1 ? q : s == 4 ? t : p;
        const int ng = s == 1 || s == 2 ? value : s == 0 ? t : s == 3 ? q : p;
        const int nb = s == 3 || s == 4 ? value : s == 2 ? t : s == 5 ? q : p;
        red[i] = (uint8_t)nr;
        green[i] = (uint8_t)ng;
        blue[i] = (uint8_t)nb;
    }
}

static void hue(uint8_t *r, uint8_t *g, uint8_t *b, int shift, size_t n)
{
    size_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK)
        hue_block(r + i, g + i, b + i, shift, BLOCK);
    if (i < n)
        hue_block(r + i, g + i, b + i, shift, (int)(n - i));
}

/* --- blur --- */

static void weigh_floats(float *restrict dst, const float *restrict src, size_t stride, const float *restrict weight,
                         int taps, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = weight[0] * src[i];
    for (int t = 1; t < taps; t++)
        for (size_t i = 0; i < n; i++)
            dst[i] += weight[t] * src[(size_t)t * stride + i];
}

const qd_pixel_loops NAME(qd_pixel_loops_, QD_SIMD) = {
    .weigh = weigh,
    .turn = turn,
    .blend_value = blend_value,
    .blend = blend,
    .grey = grey,
    .sum = sum,
    .hue = hue,
    .weigh_floats = weigh_floats,
};
