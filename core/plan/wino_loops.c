/* wino_loops.c - 3 x 3 convolutions by Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2016, 4.2): tiles and weights there and back, and the products
 * between; compiled for each instruction set with QD_SIMD its name.
 *
 * Images and tiles lie channels last; LANES divides their number of channels. The 36 values of a tile are `plane` floats apart. */
#include "plan/simd_vec.h"
#include "plan/wino_simd.h"

#define PASTE(a, b) a##b
#define NAME(prefix, isa) PASTE(prefix, isa)
#define TEXT(x) #x
#define STRING(x) TEXT(x)

/* Along one axis: B^T d, A^T m, A y, G w, G^T u of the paper. stride: of both. */
INLINE void tile_in(vec *d, int stride)
{
    const vec d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride], d5 = d[5 * stride];
    const vec four = vec_all(4.0f), minus5 = vec_all(-5.0f), minus4 = vec_all(-4.0f), two = vec_all(2.0f);
    const vec even = vec_fma(minus4, d2, d4), odd = vec_fma(minus4, d1, d3), e = d4 - d2, o = two * (d3 - d1);
    d[0] = vec_fma(four, d0, vec_fma(minus5, d2, d4));
    d[stride] = even + odd;
    d[2 * stride] = even - odd;
    d[3 * stride] = e + o;
    d[4 * stride] = e - o;
    d[5 * stride] = vec_fma(four, d1, vec_fma(minus5, d3, d5));
}

INLINE void tile_out(vec y[4], const vec *m, int stride)
{
    const vec s = m[stride] + m[2 * stride], t = m[stride] - m[2 * stride];
    const vec u = m[3 * stride] + m[4 * stride], v = m[3 * stride] - m[4 * stride];
    y[0] = m[0] + s + u;
    y[1] = vec_fma(vec_all(2.0f), v, t);
    y[2] = vec_fma(vec_all(4.0f), u, s);
    y[3] = vec_fma(vec_all(8.0f), v, t) + m[5 * stride];
}

INLINE void tile_spread(vec *m, int stride, vec y0, vec y1, vec y2, vec y3)
{
    const vec s = y0 + y2, t = y1 + y3, u = vec_fma(vec_all(4.0f), y2, y0);
    const vec v = vec_fma(vec_all(8.0f), y3, y1 + y1);
    m[0] = y0;
    m[stride] = s + t;
    m[2 * stride] = s - t;
    m[3 * stride] = u + v;
    m[4 * stride] = u - v;
    m[5 * stride] = y3;
}

INLINE void weight_in(vec *u, int stride, vec w0, vec w1, vec w2)
{
    const vec s = (w0 + w2) * vec_all(-1.0f / 6.0f), t = w1 * vec_all(-1.0f / 6.0f);
    const vec e = vec_fma(vec_all(4.0f), w2, w0) * vec_all(1.0f / 24.0f), o = w1 * vec_all(1.0f / 12.0f);
    u[0] = w0 * vec_all(0.25f);
    u[stride] = s + t;
    u[2 * stride] = s - t;
    u[3 * stride] = e + o;
    u[4 * stride] = e - o;
    u[5 * stride] = w2;
}

INLINE void weight_out(vec w[3], const vec *u, int stride)
{
    const vec s = (u[stride] + u[2 * stride]) * vec_all(-1.0f / 6.0f), e = u[3 * stride] + u[4 * stride];
    const vec t = (u[2 * stride] - u[stride]) * vec_all(1.0f / 6.0f), o = u[3 * stride] - u[4 * stride];
    w[0] = vec_fma(u[0], vec_all(0.25f), vec_fma(e, vec_all(1.0f / 24.0f), s));
    w[1] = vec_fma(o, vec_all(1.0f / 12.0f), t);
    w[2] = vec_fma(e, vec_all(1.0f / 6.0f), s) + u[5 * stride];
}

/* --- tiles --- */

INLINE void input_channels(float *v, int64_t plane, const float *image, const qd_wino_tile *t, bool inside)
{
    for (int64_t c = 0; c < t->c; c += LANES) {
        vec d[36];
        for (int64_t y = 0; y < 6; y++)
            for (int64_t x = 0; x < 6; x++) {
                const int64_t at_y = t->y + y, at_x = t->x + x;
                const bool there = inside || (at_y >= 0 && at_y < t->h && at_x >= 0 && at_x < t->w);
                d[y * 6 + x] = there ? vec_load(image + (at_y * t->w + at_x) * t->c + c) : vec_all(0.0f);
            }
        for (int k = 0; k < 6; k++)
            tile_in(d + k, 6);
        for (int k = 0; k < 6; k++)
            tile_in(d + 6 * k, 1);
        for (int k = 0; k < 36; k++)
            vec_store(v + k * plane + c, d[k]);
    }
}

static void input(float *v, int64_t plane, const float *image, const qd_wino_tile *t)
{
    if (t->y >= 0 && t->x >= 0 && t->y + 6 <= t->h && t->x + 6 <= t->w)
        input_channels(v, plane, image, t, true);
    else
        input_channels(v, plane, image, t, false);
}

INLINE void output_channels(float *image, const float *side, const float *m, int64_t plane, const float *bias,
                            const qd_wino_tile *t, bool sums)
{
    for (int64_t c = 0; c < t->c; c += LANES) {
        vec rows[4][6], column[4], y[4];
        const vec base = bias ? vec_load(bias + c) : vec_all(0.0f);
        for (int k = 0; k < 6; k++) {
            vec d[6];
            for (int j = 0; j < 6; j++)
                d[j] = vec_load(m + (j * 6 + k) * plane + c);
            tile_out(column, d, 1);
            for (int j = 0; j < 4; j++)
                rows[j][k] = column[j];
        }
        for (int64_t j = 0; j < 4 && t->y + j < t->h; j++) {
            tile_out(y, rows[j], 1);
            for (int64_t x = 0; x < 4 && t->x + x < t->w; x++) {
                const int64_t at = ((t->y + j) * t->w + t->x + x) * t->c + c;
                vec_store(image + at, sums ? y[x] + base + vec_load(side + at) : y[x] + base);
            }
        }
    }
}

static void output(float *image, const float *m, int64_t plane, const float *bias, const qd_wino_tile *t)
{
    output_channels(image, image, m, plane, bias, t, false);
}

static void output_sum(float *image, const float *side, const float *m, int64_t plane, const float *bias,
                       const qd_wino_tile *t)
{
    output_channels(image, side, m, plane, bias, t, true);
}

static void spread(float *m, int64_t plane, const float *image, const qd_wino_tile *t)
{
    for (int64_t c = 0; c < t->c; c += LANES) {
        vec d[36];
        for (int64_t x = 0; x < 4; x++) {
            vec y[4];
            for (int64_t j = 0; j < 4; j++)
                y[j] = t->y + j < t->h && t->x + x < t->w ? vec_load(image + ((t->y + j) * t->w + t->x + x) * t->c + c)
                                                          : vec_all(0.0f);
            tile_spread(d + x, 6, y[0], y[1], y[2], y[3]);
        }
        for (int k = 0; k < 6; k++)
            tile_spread(d + 6 * k, 1, d[6 * k], d[6 * k + 1], d[6 * k + 2], d[6 * k + 3]);
        for (int k = 0; k < 36; k++)
            vec_store(m + k * plane + c, d[k]);
    }
}

/* --- weights --- */

static void weight(float *u, int64_t plane, const float *w, int64_t lane_stride, bool turned, int64_t lanes)
{
    for (int64_t first = 0; first < QD_WINO_PANEL; first += LANES) {
        vec g[9], d[36];
        for (int t = 0; t < 9; t++) {
            float each[LANES] = { 0 };
            for (int64_t k = 0; k < LANES && first + k < lanes; k++)
                each[k] = w[(first + k) * lane_stride + (turned ? 8 - t : t)];
            g[t] = vec_load(each);
        }
        for (int k = 0; k < 3; k++)
            weight_in(d + k, 6, g[k], g[3 + k], g[6 + k]);
        for (int k = 0; k < 6; k++)
            weight_in(d + 6 * k, 1, d[6 * k], d[6 * k + 1], d[6 * k + 2]);
        for (int k = 0; k < 36; k++)
            vec_store(u + k * plane + first, d[k]);
    }
}

static void filters(float *u, int64_t plane, const float *w, int64_t c)
{
    for (int64_t k = 0; k < c; k++)
        for (int64_t first = 0; first < QD_WINO_PANEL; first += LANES) {
            const float *from = w + k * 9 * QD_WINO_PANEL + first;
            vec d[36];
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++)
                weight_in(d + j, 6, vec_load(from + j * QD_WINO_PANEL), vec_load(from + (3 + j) * QD_WINO_PANEL),
                          vec_load(from + (6 + j) * QD_WINO_PANEL));
#pragma GCC unroll 6
            for (int j = 0; j < 6; j++)
                weight_in(d + 6 * j, 1, d[6 * j], d[6 * j + 1], d[6 * j + 2]);
#pragma GCC unroll 36
            for (int j = 0; j < 36; j++)
                vec_store(u + j * plane + k * QD_WINO_PANEL + first, d[j]);
        }
}

static void unweight(float *w, int64_t lane_stride, const float *u, int64_t plane, int64_t lanes)
{
    for (int64_t first = 0; first < lanes; first += LANES) {
        vec rows[3][6], g[3];
        for (int k = 0; k < 6; k++) {
            vec d[6];
            for (int j = 0; j < 6; j++)
                d[j] = vec_load(u + (j * 6 + k) * plane + first);
            weight_out(g, d, 1);
            for (int j = 0; j < 3; j++)
                rows[j][k] = g[j];
        }
        for (int j = 0; j < 3; j++) {
            weight_out(g, rows[j], 1);
            for (int x = 0; x < 3; x++) {
                float each[LANES];
                vec_store(each, g[x]);
                for (int64_t k = 0; k < LANES && first + k < lanes; k++)
                    w[(first + k) * lane_stride + j * 3 + x] = each[k];
            }
        }
    }
}

/* --- products --- */

enum { WIDE = QD_WINO_PANEL / LANES }; /* vectors of a panel */

/* As many rows as registers hold with two vectors of the panel at a time. */
#if LANES == 16
#define ROWS 12
#elif LANES == 8
#define ROWS 4
#else
#define ROWS 4
#endif

INLINE void rows_of(float *dst, int64_t dst_stride, const float *a, int64_t row, int64_t step, const float *b,
                    int64_t b_stride, int64_t depth, bool add, const int rows)
{
    for (int half = 0; half < WIDE; half += 2) {
        vec sum[ROWS][2];
        float *to = dst + half * LANES;
        const float *from = b + half * LANES, *at = a;
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < 2; j++)
                sum[r][j] = add ? vec_load(to + r * dst_stride + j * LANES) : vec_all(0.0f);
        for (int64_t k = 0; k < depth; k++, from += b_stride, at += step) {
            const vec b0 = vec_load(from), b1 = vec_load(from + LANES);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                const vec x = vec_all(at[r * row]);
                sum[r][0] = vec_fma(x, b0, sum[r][0]);
                sum[r][1] = vec_fma(x, b1, sum[r][1]);
            }
        }
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < 2; j++)
                vec_store(to + r * dst_stride + j * LANES, sum[r][j]);
    }
}

static void product(float *dst, int64_t dst_stride, const float *a, int64_t row, int64_t step, const float *b,
                    int64_t b_stride, int64_t rows, int64_t depth, bool add)
{
#if ROWS > 4
    for (; rows >= ROWS; rows -= ROWS, dst += ROWS * dst_stride, a += ROWS * row)
        rows_of(dst, dst_stride, a, row, step, b, b_stride, depth, add, ROWS);
    for (; rows >= 8; rows -= 8, dst += 8 * dst_stride, a += 8 * row)
        rows_of(dst, dst_stride, a, row, step, b, b_stride, depth, add, 8);
#endif
    for (; rows > 0; rows -= 4, dst += 4 * dst_stride, a += 4 * row)
        rows_of(dst, dst_stride, a, row, step, b, b_stride, depth, add, 4);
}

const qd_wino_simd NAME(qd_wino_simd_, QD_SIMD) = {
    .name = "winograd:" STRING(QD_SIMD),
    .input = input,
    .output = output,
    .output_sum = output_sum,
    .filters = filters,
    .spread = spread,
    .weight = weight,
    .unweight = unweight,
    .product = product,
};
