/* test_score.c - figures of merit against hand arithmetic. */
#include "harness/harness.h"

#include <math.h>

#include "metrics/metrics.h"

static void sqnr(void **state)
{
    const float x[] = { 3, -4, 0, 5 }, y[] = { 3, -4.5f, 0, 5 };
    /* 50 / 0.25 = 200 -> 23.0103 dB */
    assert_true(fabs(qd_sqnr_db(x, y, 4) - 10 * log10(200)) < 1e-12);
    assert_true(isinf(qd_sqnr_db(x, x, 4)));

    qd_sqnr s = { 0 };
    qd_sqnr_add(&s, x, y, 2);
    qd_sqnr_add(&s, x + 2, y + 2, 2);
    assert_true(qd_sqnr_value_db(&s) == qd_sqnr_db(x, y, 4));

    const float zero[] = { 0, 0 }, one[] = { 1, 1 };
    assert_true(qd_sqnr_db(zero, one, 2) == -INFINITY);
}

static void uniform_step_is_six_db_a_bit(void **state)
{
    /* x uniform over whole periods, step d: noise d^2 / 12, so 20 log10(range / d) for a range centred on zero. */
    enum { N = 1 << 16 };
    static float x[N], y[N];
    for (int bits = 4; bits <= 10; bits++) {
        const double d = 2.0 / (1 << bits);
        for (int k = 0; k < N; k++) {
            x[k] = (float)((k + 0.5) / N * 2 - 1);
            y[k] = (float)((floor(x[k] / d) + 0.5) * d);
        }
        assert_true(fabs(qd_sqnr_db(x, y, N) - 20 * log10(1 << bits)) < 0.01);
    }
}

static void cosine(void **state)
{
    const float a[] = { 1, 0, 2 }, b[] = { 2, 0, 4 }, c[] = { 0, 3, 0 }, zero[] = { 0, 0, 0 };
    assert_true(fabs(qd_cosine(a, b, 3) - 1) < 1e-15);
    assert_true(qd_cosine(a, c, 3) == 0);
    const float minus[] = { -1, 0, -2 };
    assert_true(fabs(qd_cosine(a, minus, 3) + 1) < 1e-15);
    assert_true(qd_cosine(a, zero, 3) == 0);
    assert_true(qd_cosine(zero, zero, 3) == 1);
    const float big[] = { 1e30f, 1e30f }; /* squares would overflow a float */
    assert_true(fabs(qd_cosine(big, big, 2) - 1) < 1e-15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sqnr),
        cmocka_unit_test(uniform_step_is_six_db_a_bit),
        cmocka_unit_test(cosine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
