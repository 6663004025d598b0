/* attn_loops.c - attention, its inner loops; compiled for each instruction set with QD_SIMD set to its name. */
#include <string.h>

#include "plan/attn_simd.h"
#include "plan/simd_int.h"
#include "plan/simd_vec.h"

#define PASTE(a, b) a##b
#define NAME(prefix, isa) PASTE(prefix, isa)
#define TEXT(x) #x
#define STRING(x) TEXT(x)

#define PANEL_BYTES ((int64_t)4 * QD_PANEL) /* of one quad */

/* --- products of floats --- */

#if defined(__AVX512F__)
#define FLOAT_ROWS 6
#define FLOAT_PANELS 4
#else
#define FLOAT_ROWS 4
#define FLOAT_PANELS 2
#endif

INLINE void float_tile(float *dst, size_t dst_stride, const float *a, size_t a_stride, const float *b, int64_t depth,
                       float alpha, int rows, int panels)
{
    vec acc[FLOAT_ROWS][FLOAT_PANELS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++)
            acc[r][p] = vec_all(0.0f);
    for (int64_t k = 0; k < depth; k++) {
        vec w[FLOAT_PANELS];
        for (int p = 0; p < panels; p++)
            w[p] = vec_load(b + (p * depth + k) * LANES);
        for (int r = 0; r < rows; r++) {
            const float one = a[(size_t)r * a_stride + (size_t)k];
            const vec x = vec_all(one);
            for (int p = 0; p < panels; p++)
                acc[r][p] = vec_fma(x, w[p], acc[r][p]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++)
            vec_store(dst + (size_t)r * dst_stride + p * LANES, acc[r][p] * vec_all(alpha));
}

INLINE void float_strip(float *dst, size_t dst_stride, const float *a, size_t a_stride, const float *b, int64_t rows,
                        int64_t depth, float alpha, int panels)
{
    int64_t r = 0;
    for (; r + FLOAT_ROWS <= rows; r += FLOAT_ROWS)
        float_tile(dst + (size_t)r * dst_stride, dst_stride, a + (size_t)r * a_stride, a_stride, b, depth, alpha,
                   FLOAT_ROWS, panels);
    for (; r + 2 <= rows; r += 2)
        float_tile(dst + (size_t)r * dst_stride, dst_stride, a + (size_t)r * a_stride, a_stride, b, depth, alpha, 2,
                   panels);
    if (r < rows)
        float_tile(dst + (size_t)r * dst_stride, dst_stride, a + (size_t)r * a_stride, a_stride, b, depth, alpha, 1,
                   panels);
}

static void products(float *dst, size_t dst_stride, const float *a, size_t a_stride, const float *b, int64_t rows,
                     int64_t panels, int64_t depth, float alpha)
{
    int64_t p = 0;
    for (; p + FLOAT_PANELS <= panels; p += FLOAT_PANELS)
        float_strip(dst + p * LANES, dst_stride, a, a_stride, b + p * depth * LANES, rows, depth, alpha, FLOAT_PANELS);
    switch (panels - p) {
#if FLOAT_PANELS > 2
    case 3:
        float_strip(dst + p * LANES, dst_stride, a, a_stride, b + p * depth * LANES, rows, depth, alpha, 3);
        break;
    case 2:
        float_strip(dst + p * LANES, dst_stride, a, a_stride, b + p * depth * LANES, rows, depth, alpha, 2);
        break;
#endif
    case 1:
        float_strip(dst + p * LANES, dst_stride, a, a_stride, b + p * depth * LANES, rows, depth, alpha, 1);
        break;
    }
}

static void pack_rows(float *b, const float *src, size_t stride, int64_t n, int64_t width)
{
    for (int64_t o = 0; o < n; o += LANES)
        for (int64_t l = 0; l < LANES; l++) {
            float *to = b + o * width + l;
            const float *from = src + (size_t)(o + l) * stride;
            for (int64_t k = 0; k < width; k++)
                to[k * LANES] = o + l < n ? from[k] : 0.0f;
        }
}

static void pack_columns(float *b, const float *src, size_t stride, int64_t n, int64_t width)
{
    for (int64_t c = 0; c < width; c += LANES)
        for (int64_t k = 0; k < n; k++) {
            const float *from = src + (size_t)k * stride + c;
            vec_store(b + (c * n + k * LANES), c + LANES <= width ? vec_load(from) : vec_load_some(from, width - c));
        }
}

static float exps(float *row, int64_t n)
{
    const int64_t whole = n - n % LANES;
    float lane[LANES], top = row[0];
    vec t = vec_all(top), sum = vec_all(0.0f);
    for (int64_t k = 0; k < whole; k += LANES)
        t = vec_max(t, vec_load(row + k));
    vec_store(lane, t);
    for (int k = 0; k < LANES; k++)
        top = lane[k] > top ? lane[k] : top;
    for (int64_t k = whole; k < n; k++)
        top = row[k] > top ? row[k] : top;
    t = vec_all(top);
    for (int64_t k = 0; k < whole; k += LANES) {
        const vec e = vec_exp(vec_load(row + k) - t);
        vec_store(row + k, e);
        sum = sum + e;
    }
    if (whole < n) {
        float rest[LANES];
        vec_store(rest, vec_exp(vec_load_some(row + whole, n - whole) - t));
        memset(rest + (n - whole), 0, (size_t)(LANES - (n - whole)) * sizeof(float));
        memcpy(row + whole, rest, (size_t)(n - whole) * sizeof(float));
        sum = sum + vec_load(rest);
    }
    return vec_sum(sum);
}

/* --- sums of products --- */

#if defined(__AVX512VNNI__) || defined(__AVX2__)
INLINE int32_t quad_of(const uint8_t *a)
{
    int32_t x;
    memcpy(&x, a, sizeof(x));
    return x;
}
#endif

#if defined(__AVX512VNNI__)

#define TILE_ROWS 4
#define TILE_PANELS 4

INLINE void tile(int32_t *dst, size_t dst_stride, const uint8_t *a, size_t a_stride, const int8_t *b, int64_t quads,
                 int rows, int panels)
{
    __m512i acc[TILE_ROWS][TILE_PANELS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++)
            acc[r][p] = _mm512_setzero_si512();
    for (int64_t k = 0; k < quads; k++) {
        __m512i w[TILE_PANELS];
        for (int p = 0; p < panels; p++)
            w[p] = _mm512_loadu_si512(b + (p * quads + k) * PANEL_BYTES);
        for (int r = 0; r < rows; r++) {
            const __m512i x = _mm512_set1_epi32(quad_of(a + (size_t)r * a_stride + 4 * k));
            for (int p = 0; p < panels; p++)
                acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], x, w[p]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++)
            _mm512_storeu_si512(dst + (size_t)r * dst_stride + p * QD_PANEL, acc[r][p]);
}

#elif defined(__AVX2__)

#define TILE_ROWS 2
#define TILE_PANELS 1

/* Bytes become 16 bits, and pairs of products are added in 32: each output has two sums, which are added at the end. */
INLINE void tile(int32_t *dst, size_t dst_stride, const uint8_t *a, size_t a_stride, const int8_t *b, int64_t quads,
                 int rows, int panels)
{
    __m256i acc[TILE_ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 4; j++)
            acc[r][j] = _mm256_setzero_si256();
    for (int64_t k = 0; k < quads; k++) {
        __m256i w[4];
        for (int j = 0; j < 4; j++)
            w[j] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + k * PANEL_BYTES + 16 * j)));
        for (int r = 0; r < rows; r++) {
            const __m128i four = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(quad_of(a + (size_t)r * a_stride + 4 * k)));
            const __m256i x = _mm256_broadcastq_epi64(four);
            for (int j = 0; j < 4; j++)
                acc[r][j] = _mm256_add_epi32(acc[r][j], _mm256_madd_epi16(x, w[j]));
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 4; j += 2) {
            const __m256i sum = _mm256_hadd_epi32(acc[r][j], acc[r][j + 1]);
            _mm256_storeu_si256((__m256i *)(dst + (size_t)r * dst_stride + 4 * j), _mm256_permute4x64_epi64(sum, 0xd8));
        }
}

#else

#define TILE_ROWS 1
#define TILE_PANELS 1

INLINE void tile(int32_t *dst, size_t dst_stride, const uint8_t *a, size_t a_stride, const int8_t *b, int64_t quads,
                 int rows, int panels)
{
    int32_t acc[QD_PANEL] = { 0 };
    for (int64_t k = 0; k < quads; k++)
        for (int o = 0; o < QD_PANEL; o++)
            for (int j = 0; j < 4; j++)
                acc[o] += a[4 * k + j] * b[k * PANEL_BYTES + 4 * o + j];
    memcpy(dst, acc, sizeof(acc));
}

#endif

/* A strip of panels for all rows. */
INLINE void strip(int32_t *dst, size_t dst_stride, const uint8_t *a, size_t a_stride, const int8_t *b, int64_t rows,
                  int64_t quads, int panels)
{
    int64_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        tile(dst + (size_t)r * dst_stride, dst_stride, a + (size_t)r * a_stride, a_stride, b, quads, TILE_ROWS, panels);
    for (; r < rows; r++)
        tile(dst + (size_t)r * dst_stride, dst_stride, a + (size_t)r * a_stride, a_stride, b, quads, 1, panels);
}

static void dots(int32_t *dst, size_t dst_stride, const uint8_t *a, size_t a_stride, const int8_t *b, int64_t rows,
                 int64_t panels, int64_t quads)
{
    int64_t p = 0;
    for (; p + TILE_PANELS <= panels; p += TILE_PANELS)
        strip(dst + p * QD_PANEL, dst_stride, a, a_stride, b + p * quads * PANEL_BYTES, rows, quads, TILE_PANELS);
#if TILE_PANELS > 1
    switch (panels - p) {
    case 3:
        strip(dst + p * QD_PANEL, dst_stride, a, a_stride, b + p * quads * PANEL_BYTES, rows, quads, 3);
        break;
    case 2:
        strip(dst + p * QD_PANEL, dst_stride, a, a_stride, b + p * quads * PANEL_BYTES, rows, quads, 2);
        break;
    case 1:
        strip(dst + p * QD_PANEL, dst_stride, a, a_stride, b + p * quads * PANEL_BYTES, rows, quads, 1);
        break;
    }
#endif
}

/* --- panels --- */

static void pack_keys(int8_t *b, int32_t *sum, const uint8_t *codes, size_t stride, int64_t n, int64_t width)
{
    const int64_t quads = qd_quads(width), whole = width / 4;
    for (int64_t o = 0; o < QD_PANEL * qd_panels(n); o++) {
        int8_t *to = b + (o / QD_PANEL * quads) * PANEL_BYTES + o % QD_PANEL * 4;
        int32_t total = 0;
        if (o >= n) {
            for (int64_t k = 0; k < quads; k++)
                memset(to + k * PANEL_BYTES, 0, 4);
            sum[o] = 0;
            continue;
        }
        const uint8_t *from = codes + (size_t)o * stride;
        for (int64_t k = 0; k < whole; k++) {
            uint32_t four;
            memcpy(&four, from + 4 * k, sizeof(four));
            four ^= 0x80808080u;
            memcpy(to + k * PANEL_BYTES, &four, sizeof(four));
        }
        if (whole < quads)
            for (int64_t k = 4 * whole; k < 4 * quads; k++)
                to[whole * PANEL_BYTES + k % 4] = k < width ? (int8_t)(from[k] ^ 0x80) : 0;
        for (int64_t k = 0; k < width; k++)
            total += from[k];
        sum[o] = total - 128 * (int32_t)width;
    }
}

/* Four rows of 16 bytes become 16 quads. */
INLINE void turn(int8_t *to, const uint8_t *const row[4])
{
#if defined(__SSE2__)
    __m128i x[4], y[4];
    for (int j = 0; j < 4; j++)
        x[j] = _mm_xor_si128(_mm_loadu_si128((const __m128i *)row[j]), _mm_set1_epi8((char)0x80));
    y[0] = _mm_unpacklo_epi8(x[0], x[1]);
    y[1] = _mm_unpackhi_epi8(x[0], x[1]);
    y[2] = _mm_unpacklo_epi8(x[2], x[3]);
    y[3] = _mm_unpackhi_epi8(x[2], x[3]);
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi16(y[0], y[2]));
    _mm_storeu_si128((__m128i *)(to + 16), _mm_unpackhi_epi16(y[0], y[2]));
    _mm_storeu_si128((__m128i *)(to + 32), _mm_unpacklo_epi16(y[1], y[3]));
    _mm_storeu_si128((__m128i *)(to + 48), _mm_unpackhi_epi16(y[1], y[3]));
#else
    for (int o = 0; o < QD_PANEL; o++)
        for (int j = 0; j < 4; j++)
            to[4 * o + j] = (int8_t)(row[j][o] ^ 0x80);
#endif
}

static void pack_values(int8_t *b, const uint8_t *codes, size_t stride, int64_t n, int64_t width)
{
    uint8_t zero[QD_PANEL], edge[4][QD_PANEL];
    const int64_t quads = qd_quads(n);
    memset(zero, 0x80, sizeof(zero));
    for (int64_t p = 0; p < qd_panels(width); p++) {
        const int64_t left = width - p * QD_PANEL;
        for (int64_t k = 0; k < quads; k++) {
            const uint8_t *row[4];
            for (int j = 0; j < 4; j++) {
                row[j] = 4 * k + j < n ? codes + (size_t)(4 * k + j) * stride + p * QD_PANEL : zero;
                if (row[j] != zero && left < QD_PANEL) {
                    memset(edge[j], 0x80, sizeof(edge[j]));
                    memcpy(edge[j], row[j], (size_t)left);
                    row[j] = edge[j];
                }
            }
            turn(b + (p * quads + k) * PANEL_BYTES, row);
        }
    }
}

/* --- the softmax --- */

INLINE vec vec_of_ints(const int32_t *x)
{
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(x));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)x));
#elif defined(__SSE2__)
    return _mm_cvtepi32_ps(_mm_loadu_si128((const __m128i *)x));
#else
    float y[LANES];
    for (int k = 0; k < LANES; k++)
        y[k] = (float)x[k];
    return vec_load(y);
#endif
}

/* Low and high byte of p = 256 h + l, a whole number: p / 256 less 127.5 / 256 lies within half a step of h. */
INLINE void store_bytes(uint8_t *low, uint8_t *high, vec p)
{
    if (!high) {
        vec_store_codes(low, p, 0);
        return;
    }
    const vec h = (p * vec_all(1.0f / 256.0f) - vec_all(127.5f / 256.0f) + vec_all(VEC_ROUND)) - vec_all(VEC_ROUND);
    vec_store_codes(high, h, 0);
    vec_store_codes(low, p - h * vec_all(256.0f), 0);
}

INLINE int64_t sum_bytes(const uint8_t *x, int64_t n)
{
    uint32_t sum = 0; /* 65536 x 255 fit */
    for (int64_t k = 0; k < n; k++)
        sum += x[k];
    return sum;
}

static int64_t weights(uint8_t *low, uint8_t *high, int32_t *score, const int32_t *bias, int64_t n, float factor)
{
    const vec f = vec_all(factor), most = vec_all(high ? 65535.0f : 255.0f), round = vec_all(VEC_ROUND);
    int32_t top = score[0] + bias[0];
    for (int64_t k = 0; k < n; k++) {
        score[k] += bias[k];
        top = score[k] > top ? score[k] : top;
    }
    for (int64_t k = 0; k < n; k++)
        score[k] -= top;
    const int64_t whole = n - n % LANES;
    for (int64_t k = 0; k < whole; k += LANES) {
        const vec p = (vec_exp(vec_of_ints(score + k) * f) * most + round) - round;
        store_bytes(low + k, high ? high + k : NULL, p);
    }
    if (whole < n) {
        int32_t rest[LANES] = { 0 };
        uint8_t l[LANES], h[LANES];
        memcpy(rest, score + whole, (size_t)(n - whole) * sizeof(*rest));
        store_bytes(l, high ? h : NULL, (vec_exp(vec_of_ints(rest) * f) * most + round) - round);
        memcpy(low + whole, l, (size_t)(n - whole));
        if (high)
            memcpy(high + whole, h, (size_t)(n - whole));
    }
    return sum_bytes(low, n) + (high ? 256 * sum_bytes(high, n) : 0);
}

const qd_attn_simd NAME(qd_attn_simd_, QD_SIMD) = {
    .name = STRING(QD_SIMD),
    .lanes = LANES,
    .products = products,
    .pack_rows = pack_rows,
    .pack_columns = pack_columns,
    .exps = exps,
    .dots = dots,
    .pack_keys = pack_keys,
    .pack_values = pack_values,
    .weights = weights,
};
