/* test_dtype.c - half formats: every f16, rounding to even checked against exact arithmetic. */
#include "harness/harness.h"

#include <math.h>
#include <string.h>

#include "tensor/tensor.h"

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* What an f16 means, from the definition: (-1)^s 2^(e-15) (1 + f/1024), and 2^-14 f/1024 when e is 0. */
static double f16_value(uint16_t h)
{
    const int s = h >> 15, e = h >> 10 & 31, f = h & 1023;
    const double magnitude = e == 31 ? (f ? NAN : INFINITY)
                             : e     ? ldexp(1 + f / 1024.0, e - 15)
                                     : ldexp(f / 1024.0, -14);
    return s ? -magnitude : magnitude;
}

static void every_f16(void **state)
{
    for (uint32_t h = 0; h <= 0xffff; h++) {
        const float f = qd_f16_to_f32((uint16_t)h);
        const double want = f16_value((uint16_t)h);
        if (isnan(want)) {
            assert_true(isnan(f));
            assert_true(isnan(qd_f16_to_f32(qd_f32_to_f16(f))));
            assert_int_equal(qd_f32_to_f16(f) >> 15, h >> 15);
            continue;
        }
        assert_true((double)f == want);
        assert_int_equal(signbit(f) != 0, h >> 15);
        assert_int_equal(qd_f32_to_f16(f), h);
    }
}

static void f16_rounds_to_even(void **state)
{
    /* Around each positive f16: the midpoint to its neighbour goes to the even one, a hair to either side to the near one. */
    for (uint32_t h = 0; h < 0x7bff; h++) {
        const float a = qd_f16_to_f32((uint16_t)h), b = qd_f16_to_f32((uint16_t)(h + 1));
        const float mid = (float)(((double)a + b) / 2); /* exact: one more fraction bit */
        assert_int_equal(qd_f32_to_f16(mid), h & 1 ? h + 1 : h);
        assert_int_equal(qd_f32_to_f16(-mid), 0x8000 | (h & 1 ? h + 1 : h));
        assert_int_equal(qd_f32_to_f16(nextafterf(mid, INFINITY)), h + 1);
        assert_int_equal(qd_f32_to_f16(nextafterf(mid, 0)), h);
    }
    assert_int_equal(qd_f32_to_f16(65504), 0x7bff);
    assert_int_equal(qd_f32_to_f16(nextafterf(65520, 0)), 0x7bff);
    assert_int_equal(qd_f32_to_f16(65520), 0x7c00);
    assert_int_equal(qd_f32_to_f16(3e38f), 0x7c00);
    assert_int_equal(qd_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(qd_f32_to_f16(0x1p-149f), 0);
    assert_int_equal(qd_f32_to_f16(-0.0f), 0x8000);
    assert_int_equal(qd_f32_to_f16(0x1p-25f), 0); /* tie to even zero */
    assert_int_equal(qd_f32_to_f16(nextafterf(0x1p-25f, 1)), 1);
}

static void bf16(void **state)
{
    for (uint32_t h = 0; h <= 0xffff; h++) {
        const float f = qd_bf16_to_f32((uint16_t)h);
        assert_int_equal(bits_of(f), h << 16);
        if (isnan(f)) {
            assert_true(isnan(qd_bf16_to_f32(qd_f32_to_bf16(f))));
            continue;
        }
        assert_int_equal(qd_f32_to_bf16(f), h);
        if ((h & 0x7fff) >= 0x7f80)
            continue;
        /* The same three probes, as bit patterns: half a step is 0x8000. */
        float mid, low, high;
        const uint32_t m = h << 16 | 0x8000, l = m - 1, g = m + 1;
        memcpy(&mid, &m, 4);
        memcpy(&low, &l, 4);
        memcpy(&high, &g, 4);
        assert_int_equal(qd_f32_to_bf16(mid), h & 1 ? h + 1 : h);
        assert_int_equal(qd_f32_to_bf16(low), h);
        assert_int_equal(qd_f32_to_bf16(high), h + 1);
    }
    /* A NaN whose payload lies in the lost bits must not become infinity. */
    const uint32_t quiet = 0x7f800001;
    float f;
    memcpy(&f, &quiet, 4);
    assert_true(isnan(qd_bf16_to_f32(qd_f32_to_bf16(f))));
    assert_true(isnan(qd_f16_to_f32(qd_f32_to_f16(f))));
}

static void names(void **state)
{
    for (int t = 0; t < QD_DTYPE_COUNT; t++) {
        qd_dtype back;
        assert_true(qd_dtype_find(qd_dtype_name((qd_dtype)t), &back));
        assert_int_equal(back, t);
        assert_true(qd_dtype_bits((qd_dtype)t) >= 4);
    }
    qd_dtype t = QD_I8;
    assert_false(qd_dtype_find("f8", &t));
    assert_int_equal(t, QD_I8);
    assert_string_equal(qd_dtype_name((qd_dtype)99), "unknown");
    assert_int_equal(qd_dtype_bits(QD_I4), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16),
        cmocka_unit_test(f16_rounds_to_even),
        cmocka_unit_test(bf16),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
