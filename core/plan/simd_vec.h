/* simd_vec.h - one vector of floats, as wide as the instruction set this file is compiled for: included by simd_loops.c and train_*.c alone. */
#ifndef QD_PLAN_SIMD_VEC_H
#define QD_PLAN_SIMD_VEC_H

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

#define LANES 16
typedef __m512 vec;
#define vec_load(p) _mm512_loadu_ps(p)
#define vec_store(p, x) _mm512_storeu_ps(p, x)
#define vec_all(x) _mm512_set1_ps(x)
#define vec_max(a, b) _mm512_max_ps(a, b) /* b where either is NaN: put the constant first and NaN stays */
#define vec_min(a, b) _mm512_min_ps(a, b)
#define vec_fma(a, b, c) _mm512_fmadd_ps(a, b, c)

/* x held in [lo, hi], which holds 0; NaN gives 0. */
INLINE vec vec_clamp_nan_zero(vec x, vec lo, vec hi)
{
    return _mm512_min_ps(hi, _mm512_maskz_max_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), lo, x));
}

/* x 2^n for integral n */
INLINE vec vec_scale(vec x, vec n)
{
    return _mm512_scalef_ps(x, n);
}

/* 1 / x for x >= 1: 14 bits, doubled by one step of Newton. */
INLINE vec vec_inverse(vec x)
{
    const vec r = _mm512_rcp14_ps(x);
    return r * _mm512_fnmadd_ps(x, r, vec_all(2.0f));
}

/* x to the nearest integer, ties to even, + zero, which is in 0..255: as bytes. */
INLINE void vec_store_codes(uint8_t *p, vec x, int32_t zero)
{
    const __m512i i = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(zero));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(i));
}

#elif defined(__AVX2__)

#define LANES 8
typedef __m256 vec;
#define vec_load(p) _mm256_loadu_ps(p)
#define vec_store(p, x) _mm256_storeu_ps(p, x)
#define vec_all(x) _mm256_set1_ps(x)
#define vec_max(a, b) _mm256_max_ps(a, b)
#define vec_min(a, b) _mm256_min_ps(a, b)
#define vec_fma(a, b, c) _mm256_fmadd_ps(a, b, c)

INLINE vec vec_clamp_nan_zero(vec x, vec lo, vec hi)
{
    x = _mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q));
    return vec_min(hi, vec_max(lo, x));
}

INLINE vec vec_scale(vec x, vec n)
{
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}

INLINE vec vec_inverse(vec x)
{
    return _mm256_div_ps(vec_all(1.0f), x);
}

INLINE void vec_store_codes(uint8_t *p, vec x, int32_t zero)
{
    const __m256i i = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(zero));
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(half, half));
}

#elif defined(__SSE2__)

#define LANES 4
typedef __m128 vec;
#define vec_load(p) _mm_loadu_ps(p)
#define vec_store(p, x) _mm_storeu_ps(p, x)
#define vec_all(x) _mm_set1_ps(x)
#define vec_max(a, b) _mm_max_ps(a, b)
#define vec_min(a, b) _mm_min_ps(a, b)
#define vec_fma(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)

INLINE vec vec_clamp_nan_zero(vec x, vec lo, vec hi)
{
    x = _mm_and_ps(x, _mm_cmpord_ps(x, x));
    return vec_min(hi, vec_max(lo, x));
}

INLINE vec vec_scale(vec x, vec n)
{
    const __m128i e = _mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127));
    return x * _mm_castsi128_ps(_mm_slli_epi32(e, 23));
}

INLINE vec vec_inverse(vec x)
{
    return _mm_div_ps(vec_all(1.0f), x);
}

INLINE void vec_store_codes(uint8_t *p, vec x, int32_t zero)
{
    const __m128i i = _mm_add_epi32(_mm_cvtps_epi32(x), _mm_set1_epi32(zero));
    const __m128i half = _mm_packs_epi32(i, i);
    const int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(half, half));
    memcpy(p, &four, sizeof(four));
}

#else /* any other processor: the compiler's vectors, lane by lane where they have no word for it */

#define LANES 4
typedef float vec __attribute__((vector_size(16)));

INLINE vec vec_load(const float *p)
{
    vec x;
    memcpy(&x, p, sizeof(x));
    return x;
}

INLINE void vec_store(float *p, vec x)
{
    memcpy(p, &x, sizeof(x));
}

#define vec_all(x) ((vec){ (x), (x), (x), (x) })
#define vec_fma(a, b, c) ((a) * (b) + (c))
#define VEC_EACH(name, expression)                                                                                     \
    INLINE vec name(vec a, vec b)                                                                                      \
    {                                                                                                                  \
        vec y;                                                                                                         \
        for (int k = 0; k < LANES; k++)                                                                                \
            y[k] = expression;                                                                                         \
        return y;                                                                                                      \
    }
VEC_EACH(vec_max, a[k] > b[k] ? a[k] : b[k])
VEC_EACH(vec_min, a[k] < b[k] ? a[k] : b[k])
VEC_EACH(vec_scale, __builtin_ldexpf(a[k], (int)b[k]))

INLINE vec vec_clamp_nan_zero(vec x, vec lo, vec hi)
{
    for (int k = 0; k < LANES; k++)
        x[k] = x[k] != x[k] ? 0.0f : x[k] < lo[k] ? lo[k] : x[k] > hi[k] ? hi[k] : x[k];
    return x;
}

INLINE vec vec_inverse(vec x)
{
    return vec_all(1.0f) / x;
}

INLINE void vec_store_codes(uint8_t *p, vec x, int32_t zero)
{
    for (int k = 0; k < LANES; k++)
        p[k] = (uint8_t)((int32_t)__builtin_rintf(x[k]) + zero);
}

#endif

/* The first n < LANES floats, zeros after them. */
INLINE vec vec_load_some(const float *p, int64_t n)
{
    float x[LANES] = { 0 };
    memcpy(x, p, (size_t)n * sizeof(float));
    return vec_load(x);
}

INLINE void vec_store_some(float *p, vec x, int64_t n)
{
    float y[LANES];
    vec_store(y, x);
    memcpy(p, y, (size_t)n * sizeof(float));
}

/* Lanes are added in index order. */
INLINE float vec_sum(vec x)
{
    float y[LANES], s = 0.0f;
    vec_store(y, x);
    for (int k = 0; k < LANES; k++)
        s += y[k];
    return s;
}

#define VEC_ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds |x| < 2^22 to an integer, ties to even */

/* e^x, worst error 2 ulp over [-87, 88], held at the ends. Cephes' expf: range reduction by ln 2 in two parts. */
INLINE vec vec_exp(vec x)
{
    x = vec_max(vec_all(-87.33654f), x);
    x = vec_min(vec_all(88.37626f), x);
    const vec n = vec_fma(x, vec_all(1.44269504f), vec_all(VEC_ROUND)) - vec_all(VEC_ROUND);
    vec r = vec_fma(n, vec_all(-0.693359375f), x);
    r = vec_fma(n, vec_all(2.12194440e-4f), r);
    vec y = vec_fma(r, vec_all(1.9875691500e-4f), vec_all(1.3981999507e-3f));
    y = vec_fma(r, y, vec_all(8.3334519073e-3f));
    y = vec_fma(r, y, vec_all(4.1665795894e-2f));
    y = vec_fma(r, y, vec_all(1.6666665459e-1f));
    y = vec_fma(r, y, vec_all(5.0000001201e-1f));
    y = vec_fma(r * r, y, r) + vec_all(1.0f);
    return vec_scale(y, n);
}

#endif
