/* test_simd.c - our inner loops of every instruction set this processor has, against double arithmetic. */
#include "core/plan/plan_case.h"

#include "base/cpu.h"
#include "plan/simd_int.h"

static const qd_simd *set_of(int k)
{
#if defined(__x86_64__)
    const qd_simd *const sets[] = { &qd_simd_base, &qd_simd_avx2, &qd_simd_avx512 };
    return sets[k];
#else
    return &qd_simd_base;
#endif
}

#define FOR_EACH_SET(s)                                                                                                \
    for (int set_ = 0; set_ <= (int)qd_cpu_isa(); set_++)                                                              \
        for (const qd_simd *s = set_of(set_); s; s = NULL)

/* Relative to the value: the polynomial is good to 2 ulp, the division and the addition add one. */
static void test_silu_everywhere(void **state)
{
    enum { N = 4099 };
    static float x[N], y[N];
    for (int k = 0; k < N; k++)
        x[k] = -95.0f + 190.0f * (float)k / (N - 1);
    x[7] = 0.0f;
    FOR_EACH_SET(s)
    {
        const qd_pass_math m = { .act = QD_ACT_SILU };
        s->pass(y, N, x, N, 1, N, NULL, NULL, NULL, &m);
        for (int k = 0; k < N; k++) {
            const double want = x[k] / (1.0 + exp(-(double)x[k]));
            /* past e^88 the exponential is held: the result is then below 1e-36 */
            if (fabs(y[k] - want) > 3e-7 * fabs(want) + 1e-36)
                fail_msg("%s: silu(%g) = %.9g, expected %.9g", s->name, x[k], y[k], want);
        }
    }
}

static void test_nan_and_ends_become_codes(void **state)
{
    const float x[6] = { NAN, INFINITY, -INFINITY, 1e30f, -1e30f, 2.5f };
    const uint8_t want[6] = { 10, 255, 0, 255, 0, 12 }; /* 2.5 to the even 2 */
    FOR_EACH_SET(s)
    {
        uint8_t q[6];
        const qd_pass_math m = { .out = QD_PASS_CODES, .inv_scale = 1.0f, .lo = -10.0f, .hi = 245.0f, .zero = 10 };
        s->pass(q, 6, x, 6, 1, 6, NULL, NULL, NULL, &m);
        assert_memory_equal(q, want, 6);
    }
}

static void test_moments(void **state)
{
    FOR_EACH_SET(s)
    for (int64_t c = 1; c < 100; c += 13) {
        enum { PIXELS = 37, STRIDE = 101 };
        static float x[PIXELS * STRIDE];
        float sum[128], square[128];
        harness_normal(x, PIXELS * STRIDE, 5, 1.0f);
        s->moments(sum, square, x, STRIDE, x, PIXELS, c);
        for (int64_t k = 0; k < c; k++) {
            double a = 0.0, b = 0.0;
            for (int i = 0; i < PIXELS; i++) {
                const double d = (double)x[i * STRIDE + k] - x[k];
                a += d;
                b += d * d;
            }
            assert_true(fabs(sum[k] - a) < 1e-4 && fabs(square[k] - b) < 1e-4 * (1.0 + b));
        }
    }
}

static void test_softmax_sums_to_one(void **state)
{
    FOR_EACH_SET(s)
    for (int64_t n = 1; n < 70; n += 11) {
        float x[70], y[70];
        double total = 0.0, want = 0.0;
        harness_normal(x, n, (uint64_t)n, 20.0f);
        x[n / 2] = 300.0f; /* exponentials alone would overflow */
        memcpy(y, x, sizeof(x));
        s->softmax(y, 1, n, (size_t)n);
        for (int64_t k = 0; k < n; k++)
            want += exp((double)x[k] - 300.0);
        for (int64_t k = 0; k < n; k++) {
            total += y[k];
            assert_true(fabs(y[k] - exp((double)x[k] - 300.0) / want) < 1e-6);
        }
        assert_true(fabs(total - 1.0) < 1e-6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_silu_everywhere),
        cmocka_unit_test(test_nan_and_ends_become_codes),
        cmocka_unit_test(test_moments),
        cmocka_unit_test(test_softmax_sums_to_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
