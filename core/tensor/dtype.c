/* dtype.c - element types: names, widths, and the exact way between f32 and the half formats. */
#include "tensor/tensor.h"

#include <assert.h>
#include <string.h>

static const struct {
    const char *name;
    size_t bits;
} types[QD_DTYPE_COUNT] = {
    [QD_F32] = { "f32", 32 }, [QD_F16] = { "f16", 16 },  [QD_BF16] = { "bf16", 16 }, [QD_F64] = { "f64", 64 },
    [QD_I64] = { "i64", 64 }, [QD_I32] = { "i32", 32 },  [QD_I16] = { "i16", 16 },   [QD_I8] = { "i8", 8 },
    [QD_U8] = { "u8", 8 },    [QD_BOOL] = { "bool", 8 }, [QD_I4] = { "i4", 4 },      [QD_I6] = { "i6", 6 },
};

const char *qd_dtype_name(qd_dtype t)
{
    return (unsigned)t < QD_DTYPE_COUNT ? types[t].name : "unknown";
}

bool qd_dtype_find(const char *name, qd_dtype *out)
{
    for (int t = 0; t < QD_DTYPE_COUNT; t++) {
        if (strcmp(types[t].name, name) == 0) {
            *out = (qd_dtype)t;
            return true;
        }
    }
    return false;
}

size_t qd_dtype_bits(qd_dtype t)
{
    assert((unsigned)t < QD_DTYPE_COUNT);
    return types[t].bits;
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits. */
float qd_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u;
    const uint32_t fraction = h & 0x3ffu;

    if (exponent == 31)
        return float_of(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) /* zero and subnormals: an exact multiple of 2^-24 */
        return float_of(bits_of((float)fraction * 0x1p-24f) | sign);
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t qd_f32_to_f16(float f)
{
    const uint32_t u = bits_of(f);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
    const uint32_t magnitude = u & 0x7fffffffu;

    if (magnitude > 0x7f800000u) /* NaN: keep what fits of the payload, stay quiet */
        return sign | 0x7e00u | (uint16_t)(magnitude >> 13 & 0x1ffu);
    if (magnitude >= 0x477ff000u) /* 65520, half a step past the largest, and up: infinity */
        return sign | 0x7c00u;
    if (magnitude < 0x38800000u) {
        /* Below 2^-14: adding 0.5 puts the unit of the sum at 2^-24, and the addition rounds to even for us. */
        return sign | (uint16_t)(bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u);
    }
    const uint32_t odd = magnitude >> 13 & 1u;
    return sign | (uint16_t)((magnitude + 0xfffu + odd - (112u << 23)) >> 13);
}

float qd_bf16_to_f32(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

uint16_t qd_f32_to_bf16(float f)
{
    const uint32_t u = bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

bool qd_dtype_is_codes(qd_dtype t)
{
    return t == QD_I8 || t == QD_I6 || t == QD_I4;
}

size_t qd_codes_row_bytes(int64_t row, int bits)
{
    return (size_t)row / 8 * (size_t)bits + ((size_t)row % 8 * (size_t)bits + 7) / 8;
}

void qd_codes_read(int8_t *dst, const void *rows, int64_t k, int64_t row, int bits)
{
    const uint8_t *src = (const uint8_t *)rows + (size_t)k * qd_codes_row_bytes(row, bits);
    const unsigned sign = 1u << (bits - 1), mask = (1u << bits) - 1u;
    unsigned held = 0;
    int have = 0;
    for (int64_t i = 0; i < row; i++) {
        if (have < bits) {
            held |= (unsigned)*src++ << have;
            have += 8;
        }
        dst[i] = (int8_t)((int)((held & mask) ^ sign) - (int)sign);
        held >>= bits;
        have -= bits;
    }
}

void qd_codes_write(void *rows, const int8_t *src, int64_t k, int64_t row, int bits)
{
    uint8_t *dst = (uint8_t *)rows + (size_t)k * qd_codes_row_bytes(row, bits);
    const unsigned mask = (1u << bits) - 1u;
    unsigned held = 0;
    int have = 0;
    for (int64_t i = 0; i < row; i++) {
        held |= ((unsigned)src[i] & mask) << have;
        have += bits;
        if (have >= 8) {
            *dst++ = (uint8_t)held;
            held >>= 8;
            have -= 8;
        }
    }
    if (have)
        *dst = (uint8_t)held;
}
