/* k_elem.c - elementwise kernels: activations, clipping, the quantizers, the time step embedding. */
#include "tensor/kernels.h"

#include <assert.h>
#include <math.h>

static float unary_one(float x, qd_unary f)
{
    switch (f) {
    case QD_SILU:
        return (float)(x / (1.0 + exp(-(double)x)));
    case QD_RELU:
        return x < 0.0f ? 0.0f : x; /* NaN stays NaN */
    case QD_GELU:
        return (float)(0.5 * x * (1.0 + erf(x * M_SQRT1_2)));
    case QD_SIGMOID:
        return (float)(1.0 / (1.0 + exp(-(double)x)));
    case QD_TANH:
        return (float)tanh(x);
    case QD_SQRT:
        return sqrtf(x);
    case QD_EXP:
        return (float)exp(x);
    case QD_LOG:
        return (float)log(x);
    case QD_ABS:
        return fabsf(x);
    case QD_ERF:
        return (float)erf(x);
    case QD_SIN:
        return (float)sin(x);
    case QD_COS:
        return (float)cos(x);
    }
    assert(false);
    return x;
}

void qd_k_unary(float *dst, const float *src, int64_t n, qd_unary f)
{
    for (int64_t i = 0; i < n; i++)
        dst[i] = unary_one(src[i], f);
}

void qd_k_clip(float *dst, const float *src, int64_t n, float lo, float hi)
{
    for (int64_t i = 0; i < n; i++)
        dst[i] = src[i] < lo ? lo : src[i] > hi ? hi : src[i];
}

/* qncd.md 3.1: round x/d first, half to even, and add the zero point afterwards. The products are floats in this order, so that
 * vector code which multiplies by the same reciprocals gives the same codes. */
static int32_t quantize_one(float x, float inv_div, float inv_scale, int32_t zero, int32_t qmin, int32_t qmax)
{
    const float scaled = x * inv_div;
    const float r = nearbyintf(scaled * inv_scale);
    if (isnan(r))
        return zero;
    const double q = (double)r + zero; /* double: r may be larger than any int32 */
    return q < qmin ? qmin : q > qmax ? qmax : (int32_t)q;
}

void qd_k_quantize(void *codes, const float *src, int64_t n, float inv_scale, int32_t zero, int32_t qmin, int32_t qmax,
                   bool is_signed, const float *inv_div, int64_t channels, int64_t inner)
{
    for (int64_t i = 0; i < n; i++) {
        const float div = inv_div ? inv_div[(i / inner) % channels] : 1.0f;
        const int32_t q = quantize_one(src[i], div, inv_scale, zero, qmin, qmax);
        if (is_signed)
            ((int8_t *)codes)[i] = (int8_t)q;
        else
            ((uint8_t *)codes)[i] = (uint8_t)q;
    }
}

void qd_k_dequantize(float *dst, const void *codes, bool is_signed, int64_t n, float scale, int32_t zero)
{
    for (int64_t i = 0; i < n; i++) {
        const int32_t q = is_signed ? ((const int8_t *)codes)[i] : ((const uint8_t *)codes)[i];
        dst[i] = (float)(q - zero) * scale;
    }
}

void qd_k_fake_quant(float *dst, const float *src, int64_t n, float scale, int32_t zero, int32_t qmin, int32_t qmax,
                     const float *inv_div, int64_t channels, int64_t inner)
{
    const float inv_scale = 1.0f / scale;
    for (int64_t i = 0; i < n; i++) {
        const float div = inv_div ? inv_div[(i / inner) % channels] : 1.0f;
        dst[i] = (float)(quantize_one(src[i], div, inv_scale, zero, qmin, qmax) - zero) * scale;
    }
}

/* diffusion_models.md 2.1. Every intermediate is rounded to float as the reference does, because t f_j reaches 1000 and the
 * rounding of f_j is then visible in the fourth digit of the sine. */
void qd_k_timestep(float *dst, const float *t, int64_t n, int64_t dim, bool flip_sin_to_cos, float freq_shift,
                   float max_period)
{
    const int64_t half = dim / 2;
    const float log_period = (float)-log((double)max_period);
    for (int64_t i = 0; i < n; i++) {
        float *row = dst + i * dim;
        float *sines = flip_sin_to_cos ? row + half : row;
        float *cosines = flip_sin_to_cos ? row : row + half;
        for (int64_t j = 0; j < half; j++) {
            const float exponent = log_period * (float)j / ((float)half - freq_shift);
            const float freq = (float)exp((double)exponent);
            const float angle = t[i] * freq;
            sines[j] = (float)sin((double)angle);
            cosines[j] = (float)cos((double)angle);
        }
        if (dim % 2)
            row[dim - 1] = 0.0f;
    }
}
