/* test_scheme.c - the affine map: goldens of qncd.md 12.3, ties, edges, the search. */
#include "harness/harness.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "metrics/metrics.h"
#include "quant/quant.h"
#include "tensor/kernels.h"

#define N 65536

static float x[N], y[N];

static void fake_all(float *dst, const float *src, int64_t n, const qd_affine *map)
{
    for (int64_t k = 0; k < n; k++)
        dst[k] = qd_affine_fake(src[k], map);
}

static void golden(void **state)
{
    qd_err err = { 0 };
    qd_affine m;
    const float in[] = { -1, -0.5f, 0, 0.2f, 1.5f }, want[] = { -1, -0.5f, 0, 1 / 6.0f, 1.5f };
    const int32_t codes[] = { 0, 3, 6, 7, 15 };
    check_ok(qd_affine_fit(-1, 1.5f, 4, false, &m, &err), &err);
    assert_true(m.scale == (float)(2.5 / 15));
    assert_int_equal(m.zero, 6);
    assert_int_equal(m.qmin, 0);
    assert_int_equal(m.qmax, 15);
    for (int k = 0; k < 5; k++)
        assert_int_equal(qd_affine_encode(in[k], &m), codes[k]);
    fake_all(y, in, 5, &m);
    check_close(y, want, 5, 1e-6, 0); /* one rounding of the scale, times at most 9 steps */
}

static void ties_go_to_even_before_the_zero_is_added(void **state)
{
    /* d = 0.5, as qncd.md 12.3; with an odd zero, rounding x/d + z instead would give the other neighbour. */
    const qd_affine m = { .scale = 0.5f, .zero = 3, .qmin = 0, .qmax = 255, .bits = 8 };
    assert_true(qd_affine_fake(0.25f, &m) == 0.0f);
    assert_true(qd_affine_fake(0.75f, &m) == 1.0f);
    assert_true(qd_affine_fake(1.25f, &m) == 1.0f);
    assert_true(qd_affine_fake(-0.25f, &m) == 0.0f);
    assert_true(qd_affine_fake(-0.75f, &m) == -1.0f);
}

static void codes_equal_the_kernels(void **state)
{
    qd_err err = { 0 };
    static uint8_t u[N];
    static int8_t s[N];
    harness_normal(x, N, 11, 3);
    x[0] = NAN;
    x[1] = 1e30f;
    x[2] = -1e30f;
    x[3] = INFINITY;
    for (int bits = 2; bits <= 8; bits++) {
        qd_affine m;
        check_ok(qd_affine_fit(-2.3f, 4.1f, bits, false, &m, &err), &err);
        qd_k_quantize(u, x, N, 1 / m.scale, m.zero, m.qmin, m.qmax, false, NULL, 1, 1);
        for (int k = 0; k < N; k++)
            assert_int_equal(qd_affine_encode(x[k], &m), u[k]);
        check_ok(qd_affine_fit(-2.3f, 4.1f, bits, true, &m, &err), &err);
        qd_k_quantize(s, x, N, 1 / m.scale, m.zero, m.qmin, m.qmax, true, NULL, 1, 1);
        for (int k = 0; k < N; k++)
            assert_int_equal(qd_affine_encode(x[k], &m), s[k]);
    }
}

static void laws(void **state)
{
    /* In range: within half a step (and a rounding of x/d); encoding what was decoded changes nothing; zero is exact. */
    qd_err err = { 0 };
    static const float ranges[][2] = { { -1, 1 },     { 0, 5 },          { 2, 7 }, { -9, -3 },        { -0.001f, 1000 },
                                       { 0, 1e-12f }, { -1e38f, 1e38f }, { 0, 0 }, { 1e-30f, 2e-30f } };
    for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
        for (int bits = 2; bits <= 8; bits++) {
            for (int symmetric = 0; symmetric < 2; symmetric++) {
                const float lo = ranges[r][0], hi = ranges[r][1];
                qd_affine m;
                check_ok(qd_affine_fit(lo, hi, bits, symmetric, &m, &err), &err);
                assert_true(isfinite(m.scale) && m.scale >= 1e-8f && isfinite(1 / m.scale));
                assert_in_range(m.zero - m.qmin, 0, m.qmax - m.qmin);
                assert_true(qd_affine_fake(0, &m) == 0);
                if (symmetric)
                    assert_int_equal(m.zero, 0);
                for (int k = 0; k <= 100; k++) {
                    const float v = (float)(lo + ((double)hi - lo) * k / 100), back = qd_affine_fake(v, &m);
                    assert_true(fabs((double)v - back) <= m.scale * 0.501 + fabs(v) * 1e-5);
                    assert_true(qd_affine_fake(back, &m) == back);
                }
            }
        }
    }
}

static void extreme_ranges(void **state)
{
    qd_err err = { 0 };
    qd_affine m;
    check_ok(qd_affine_fit(-FLT_MAX, FLT_MAX, 4, false, &m, &err), &err); /* nothing decodes to infinity */
    assert_true(isfinite(qd_affine_fake(-FLT_MAX, &m)) && isfinite(qd_affine_fake(FLT_MAX, &m)));
    check_ok(qd_affine_fit(0, 0, 8, true, &m, &err), &err);
    assert_true(m.scale == 1.0f);
    check_ok(qd_affine_fit(3, 3, 8, false, &m, &err), &err); /* widened to [0, 3] */
    assert_int_equal(m.zero, 0);
    assert_true(fabsf(qd_affine_fake(3, &m) - 3) < 1e-6f);
}

static void refusals_leave_out_alone(void **state)
{
    qd_err err = { 0 };
    qd_affine m = { .scale = 42 };
    check_fails(qd_affine_fit(0, 1, 1, false, &m, &err), QD_E_INVALID, "bits must be 2..16, got 1", &err);
    check_fails(qd_affine_fit(0, 1, 17, false, &m, &err), QD_E_INVALID, "got 17", &err);
    check_fails(qd_affine_fit(1, 0, 8, false, &m, &err), QD_E_INVALID, "range [1, 0]", &err);
    check_fails(qd_affine_fit(NAN, 0, 8, false, &m, &err), QD_E_INVALID, "not finite", &err);
    check_fails(qd_affine_fit(0, INFINITY, 8, false, &m, &err), QD_E_INVALID, "not finite", &err);
    check_fails(qd_affine_search(x, 0, 8, false, &m, &err), QD_E_INVALID, "no values", &err);
    const float bad[] = { 1, NAN };
    check_fails(qd_affine_search(bad, 2, 8, false, &m, &err), QD_E_NUMERIC, "not finite", &err);
    assert_true(m.scale == 42);
}

static double norm24(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t k = 0; k < n; k++)
        sum += pow(fabs((double)a[k] - b[k]), 2.4);
    return sum / (double)n;
}

static void search_never_loses_to_min_max(void **state)
{
    qd_err err = { 0 };
    for (uint64_t seed = 0; seed < 20; seed++) {
        const int n = 2000, bits = 2 + (int)(seed % 7);
        harness_normal(x, n, seed, 1);
        for (int k = 0; k < n; k++)
            x[k] = seed % 2 ? x[k] * x[k] * x[k] : fabsf(x[k]); /* long tails; one-sided */
        float lo = 0, hi = 0;
        for (int k = 0; k < n; k++) {
            lo = fminf(lo, x[k]);
            hi = fmaxf(hi, x[k]);
        }
        qd_affine wide, best;
        check_ok(qd_affine_fit(lo, hi, bits, seed % 3 == 0, &wide, &err), &err);
        check_ok(qd_affine_search(x, n, bits, seed % 3 == 0, &best, &err), &err);
        fake_all(y, x, n, &wide);
        const double plain = norm24(x, y, n);
        fake_all(y, x, n, &best);
        assert_true(norm24(x, y, n) <= plain * (1 + 1e-6));
        assert_true(best.scale <= wide.scale);
    }
}

static void ties_keep_the_wider_range(void **state)
{
    /* Exact under every candidate would need scale 0; instead all candidates of a zero tensor tie, and of {0, hi} none wins over
     * the first, where hi is exact. */
    qd_err err = { 0 };
    const float two[] = { 0, 1.5f };
    qd_affine m, wide;
    check_ok(qd_affine_search(two, 2, 8, false, &m, &err), &err);
    check_ok(qd_affine_fit(0, 1.5f, 8, false, &wide, &err), &err);
    assert_true(m.scale == wide.scale);
}

static void sqnr_of_normals(void **state)
{
    qd_err err = { 0 };
    harness_normal(x, N, 3, 1);
    static const struct {
        int bits;
        double lo, hi;
    } rows[] = { { 8, 38.5, 41.5 }, { 4, 18, 20.5 } }; /* qncd.md 12.3: about 40 and about 19 dB */
    for (int k = 0; k < 2; k++) {
        for (int symmetric = 0; symmetric < 2; symmetric++) {
            qd_affine m;
            check_ok(qd_affine_search(x, N, rows[k].bits, symmetric, &m, &err), &err);
            fake_all(y, x, N, &m);
            const double db = qd_sqnr_db(x, y, N);
            print_message("N(0,1), %d bits%s: %.2f dB\n", rows[k].bits, symmetric ? ", symmetric" : "", db);
            assert_true(db > rows[k].lo && db < rows[k].hi);
        }
    }
    qd_affine m;
    check_ok(qd_affine_search(x, N, 16, false, &m, &err), &err);
    fake_all(y, x, N, &m);
    assert_true(qd_sqnr_db(x, y, N) > 80);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(ties_go_to_even_before_the_zero_is_added),
        cmocka_unit_test(codes_equal_the_kernels),
        cmocka_unit_test(laws),
        cmocka_unit_test(extreme_ranges),
        cmocka_unit_test(refusals_leave_out_alone),
        cmocka_unit_test(search_never_loses_to_min_max),
        cmocka_unit_test(ties_keep_the_wider_range),
        cmocka_unit_test(sqnr_of_normals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
