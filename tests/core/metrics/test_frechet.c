/* test_frechet.c - moments and the distances made of them, against numpy and scipy; the same bytes whatever the threads and portions. */
#include "harness/harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "golden/metrics/metrics_golden.h"
#include "metrics/metrics.h"

#define COUNT(x) ((int64_t)(sizeof(x) / sizeof(x)[0]))

static void close_doubles(const double *have, const double *want, int64_t n, double tolerance)
{
    for (int64_t k = 0; k < n; k++)
        if (!(fabs(have[k] - want[k]) <= tolerance * fmax(1.0, fabs(want[k]))))
            fail_msg("number %lld is %.17g, wanted %.17g", (long long)k, have[k], want[k]);
}

/* Rows dealt out in portions of `portion`. */
static qd_gauss gauss_of(const float *rows, int64_t n, int64_t dim, int64_t portion, int threads)
{
    qd_err err = { 0 };
    qd_moments *m = NULL;
    qd_gauss g = { 0 };
    check_ok(qd_moments_new(dim, NULL, &m, &err), &err);
    for (int64_t first = 0; first < n; first += portion)
        check_ok(qd_moments_add(m, rows + first * dim, n - first < portion ? n - first : portion, threads, &err), &err);
    check_ok(qd_moments_gauss(m, threads, &g, &err), &err);
    qd_moments_free(m);
    return g;
}

/* The rows lie near 100 with a spread near 2: sums of squares would lose four digits, these lose none. */
static void moments_are_numpys(void **state)
{
    qd_gauss g = gauss_of(golden_a, GOLDEN_A, GOLDEN_DIM, GOLDEN_A, 1);
    assert_int_equal(g.count, GOLDEN_A);
    close_doubles(g.mean, golden_mean_a, COUNT(golden_mean_a), 1e-14);
    close_doubles(g.cov, golden_cov_a, COUNT(golden_cov_a), 1e-12);
    qd_gauss_clear(&g);
}

static void portions_and_threads_change_no_byte(void **state)
{
    enum { N = 331, D = 75 };
    static float rows[N * D];
    harness_normal(rows, N * D, 5, 3.0f);
    qd_gauss want = gauss_of(rows, N, D, N, 1);
    static const int64_t portions[] = { 1, 7, 64, 100, 330 };
    for (int k = 0; k < 5; k++)
        for (int threads = 1; threads <= 3; threads++) {
            qd_gauss g = gauss_of(rows, N, D, portions[k], threads);
            assert_memory_equal(g.mean, want.mean, D * sizeof(double));
            assert_memory_equal(g.cov, want.cov, D * D * sizeof(double));
            qd_gauss_clear(&g);
        }
    qd_gauss_clear(&want);
}

static double distance(const qd_gauss *a, const qd_gauss *b)
{
    qd_err err = { 0 };
    double d = NAN;
    check_ok(qd_frechet(a, b, &d, &err), &err);
    return d;
}

/* The square root by Schur's method agrees to about 1e-8; of a set with itself the roots of rounding errors remain. */
static void distances_are_scipys(void **state)
{
    qd_gauss a = gauss_of(golden_a, GOLDEN_A, GOLDEN_DIM, 20, 1), b = gauss_of(golden_b, GOLDEN_B, GOLDEN_DIM, 20, 1);
    const double have[] = { distance(&a, &b), distance(&b, &a), distance(&a, &a) };
    close_doubles(have, golden_frechet, 3, 1e-9);
    qd_gauss_clear(&a);
    qd_gauss_clear(&b);
    a = gauss_of(golden_few_a, GOLDEN_FEW, GOLDEN_WIDE, 5, 1);
    b = gauss_of(golden_few_b, GOLDEN_FEW, GOLDEN_WIDE, 5, 1);
    const double few[] = { distance(&a, &b) };
    close_doubles(few, golden_frechet_few, 1, 1e-6); /* roots of eigenvalues that are zero but for rounding */
    qd_gauss_clear(&a);
    qd_gauss_clear(&b);
}

/* Two normal distributions of diagonal covariances have a distance in closed form. */
static void diagonal_ones_have_a_closed_form(void **state)
{
    double ma[3] = { 1, 2, 3 }, mb[3] = { 1, 0, 4 }, ca[9] = { 4, 0, 0, 0, 9, 0, 0, 0, 0 },
           cb[9] = { 1, 0, 0, 0, 9, 0, 0, 0, 16 };
    const qd_gauss a = { .dim = 3, .mean = ma, .cov = ca }, b = { .dim = 3, .mean = mb, .cov = cb };
    assert_true(fabs(distance(&a, &b) - (4 + 1 + 1 + 0 + 16)) < 1e-12); /* |m|^2 + sum (s1 - s2)^2 */
    assert_true(fabs(distance(&a, &a)) < 1e-12);
}

static void what_is_no_distribution_is_refused(void **state)
{
    qd_err err = { 0 };
    qd_moments *m = NULL;
    qd_gauss g = { 0 };
    double d = -7, mean[2] = { 0, NAN }, cov[4] = { 1, 0, 0, 1 };
    float rows[6] = { 1, 2, 3, 4, INFINITY, 6 };
    check_fails(qd_moments_new(0, NULL, &m, &err), QD_E_LIMIT, "1..16384", &err);
    check_fails(qd_moments_new(16385, NULL, &m, &err), QD_E_LIMIT, "16385", &err);
    check_ok(qd_moments_new(2, NULL, &m, &err), &err);
    check_fails(qd_moments_gauss(m, 1, &g, &err), QD_E_INVALID, "0 pictures", &err);
    check_ok(qd_moments_add(m, rows, 1, 1, &err), &err);
    check_fails(qd_moments_gauss(m, 1, &g, &err), QD_E_INVALID, "1 pictures", &err);
    check_fails(qd_moments_add(m, rows + 2, 2, 1, &err), QD_E_NUMERIC, "feature 0 of picture 2 is inf", &err);
    check_ok(qd_moments_add(m, rows + 2, 1, 1, &err), &err); /* nothing of the refused rows stayed */
    check_ok(qd_moments_gauss(m, 1, &g, &err), &err);
    assert_true(g.mean[0] == 2 && g.mean[1] == 3 && g.cov[0] == 2 && g.cov[1] == 2);
    qd_moments_free(m);

    qd_gauss bad = { .dim = 2, .mean = mean, .cov = cov }, three = { .dim = 3, .mean = g.mean, .cov = g.cov };
    check_fails(qd_frechet(&bad, &g, &d, &err), QD_E_NUMERIC, "mean of feature 1", &err);
    check_fails(qd_frechet(&g, &bad, &d, &err), QD_E_NUMERIC, "mean of feature 1", &err);
    mean[1] = 0;
    cov[3] = INFINITY;
    check_fails(qd_frechet(&bad, &g, &d, &err), QD_E_NUMERIC, "features 1 and 1", &err);
    three.dim = 1;
    check_fails(qd_frechet(&three, &g, &d, &err), QD_E_INVALID, "one set has 2 features, the other 1", &err);
    three.dim = 0;
    check_fails(qd_frechet(&g, &three, &d, &err), QD_E_INVALID, "no features", &err);
    assert_true(d == -7);
    qd_gauss_clear(&g);
}

/* A covariance that is none: its root is imaginary, and that is told instead of dropped. */
static void imaginary_roots_are_told(void **state)
{
    qd_err err = { 0 };
    double mean[2] = { 0 }, cov[4] = { 1, 0, 0, 1 }, wrong[4] = { 1, 0, 0, -1 }, d;
    const qd_gauss a = { .dim = 2, .mean = mean, .cov = cov }, b = { .dim = 2, .mean = mean, .cov = wrong };
    check_fails(qd_frechet(&b, &a, &d, &err), QD_E_NUMERIC, "imaginary part of 1", &err); /* after 1e-6 was added */
}

static qd_status all_of_it(void *ctx, qd_err *err)
{
    qd_moments *m = NULL;
    qd_gauss g = { 0 };
    double d;
    qd_status st = qd_moments_new(GOLDEN_DIM, NULL, &m, err);
    if (!st)
        st = qd_moments_add(m, golden_a, GOLDEN_A, 1, err);
    if (!st)
        st = qd_moments_gauss(m, 1, &g, err);
    if (!st)
        st = qd_frechet(&g, &g, &d, err);
    qd_moments_free(m);
    qd_gauss_clear(&g);
    return st;
}

static void memory_may_run_out_anywhere(void **state)
{
    assert_in_range(harness_run_each_alloc(all_of_it, NULL, 100), 15, 99);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moments_are_numpys),
        cmocka_unit_test(portions_and_threads_change_no_byte),
        cmocka_unit_test(distances_are_scipys),
        cmocka_unit_test(diagonal_ones_have_a_closed_form),
        cmocka_unit_test(what_is_no_distribution_is_refused),
        cmocka_unit_test(imaginary_roots_are_told),
        cmocka_unit_test(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
