/* test_calibrate.c - histograms: exact ends, no dependence on order, a search as good as on the data itself. */
#include "harness/harness.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "metrics/metrics.h"
#include "quant/quant.h"

#define N 40000

static float x[N], y[N];

static qd_histogram *histogram(const float *data, int64_t n, int64_t piece)
{
    qd_err err = { 0 };
    qd_histogram *h = NULL;
    check_ok(qd_histogram_new(&h, &err), &err);
    for (int64_t k = 0; k < n; k += piece)
        qd_histogram_add(h, data + k, n - k < piece ? n - k : piece);
    return h;
}

static void same_map(const qd_histogram *a, const qd_histogram *b)
{
    qd_err err = { 0 };
    for (int bits = 2; bits <= 8; bits++) {
        qd_affine p, q;
        check_ok(qd_histogram_search(a, bits, false, &p, &err), &err);
        check_ok(qd_histogram_search(b, bits, false, &q, &err), &err);
        assert_memory_equal(&p.scale, &q.scale, sizeof p.scale);
        assert_int_equal(p.zero, q.zero);
        assert_true(qd_histogram_sqnr_db(a, &p) == qd_histogram_sqnr_db(b, &q));
    }
}

static void order_does_not_matter(void **state)
{
    harness_normal(x, N, 5, 2);
    for (int k = 0; k < N; k++)
        x[k] *= expf((float)k / N * 12); /* grows: the histogram must widen again and again */
    qd_histogram *whole = histogram(x, N, N), *pieces = histogram(x, N, 7), *ones = histogram(x, N, 1);
    for (int k = 0; k < N; k++)
        y[k] = x[N - 1 - k];
    qd_histogram *back = histogram(y, N, 13);
    same_map(whole, pieces);
    same_map(whole, ones);
    same_map(whole, back);

    float lo, hi, want_lo = x[0], want_hi = x[0];
    for (int k = 0; k < N; k++) {
        want_lo = fminf(want_lo, x[k]);
        want_hi = fmaxf(want_hi, x[k]);
    }
    qd_histogram_range(back, &lo, &hi);
    assert_true(lo == want_lo && hi == want_hi);
    assert_int_equal(qd_histogram_count(back), N);
    qd_histogram_free(whole);
    qd_histogram_free(pieces);
    qd_histogram_free(ones);
    qd_histogram_free(back);
}

static double fake_db(const float *data, int64_t n, const qd_affine *m)
{
    for (int64_t k = 0; k < n; k++)
        y[k] = qd_affine_fake(data[k], m);
    return qd_sqnr_db(data, y, n);
}

static void as_good_as_the_data(void **state)
{
    qd_err err = { 0 };
    for (int shape = 0; shape < 4; shape++) {
        harness_normal(x, N, 100 + (uint64_t)shape, 1);
        for (int k = 0; k < N; k++) {
            if (shape == 1)
                x[k] = x[k] / (1 + expf(-x[k])); /* SiLU */
            else if (shape == 2)
                x[k] = x[k] * x[k] * x[k];
            else if (shape == 3)
                x[k] = fmaxf(x[k], 0); /* half of it exactly zero */
        }
        qd_histogram *h = histogram(x, N, 1000);
        for (int bits = 4; bits <= 8; bits += 2) {
            qd_affine on_data, on_bins, wide;
            check_ok(qd_affine_search(x, N, bits, false, &on_data, &err), &err);
            check_ok(qd_histogram_search(h, bits, false, &on_bins, &err), &err);
            check_ok(qd_histogram_fit(h, bits, false, &wide, &err), &err);
            const double a = fake_db(x, N, &on_data), b = fake_db(x, N, &on_bins);
            const double guess = qd_histogram_sqnr_db(h, &on_bins);
            print_message("shape %d, %d bits: data %.2f dB, histogram %.2f dB (said %.2f), min-max %.2f dB\n", shape,
                          bits, a, b, guess, fake_db(x, N, &wide));
            assert_true(fabs(a - b) < 0.3); /* a neighbouring candidate or two of the flat optimum */
            /* Bins are taken as evenly filled: true but for the lone zeros of a ReLU, which are exact. */
            assert_true(shape == 3 ? guess < b + 0.3 : fabs(guess - b) < 0.3);
        }
        qd_histogram_free(h);
    }
}

static void min_max_is_exact(void **state)
{
    qd_err err = { 0 };
    const float data[] = { -0.3f, 12.7f, 0.1f };
    qd_histogram *h = histogram(data, 3, 1);
    qd_affine a, b;
    check_ok(qd_histogram_fit(h, 8, false, &a, &err), &err);
    check_ok(qd_affine_fit(-0.3f, 12.7f, 8, false, &b, &err), &err);
    assert_true(a.scale == b.scale && a.zero == b.zero);
    qd_histogram_free(h);
}

static void strange_data(void **state)
{
    qd_err err = { 0 };
    qd_affine m;
    qd_histogram *h = NULL;
    check_ok(qd_histogram_new(&h, &err), &err);
    check_fails(qd_histogram_search(h, 8, false, &m, &err), QD_E_INVALID, "nothing", &err);
    check_fails(qd_histogram_fit(h, 8, false, &m, &err), QD_E_INVALID, "nothing", &err);
    const float zeros[3] = { 0 };
    qd_histogram_add(h, zeros, 3);
    check_ok(qd_histogram_search(h, 8, false, &m, &err), &err);
    assert_true(m.scale == 1);
    /* From nothing to everything in one step, and the smallest next to the largest. */
    const float wild[] = { FLT_MAX, -FLT_MAX, 1e-45f, -1e-45f, 1 };
    qd_histogram_add(h, wild, 5);
    check_ok(qd_histogram_search(h, 8, false, &m, &err), &err);
    assert_true(isfinite(m.scale));
    const float nan[] = { 1, NAN, INFINITY };
    qd_histogram_add(h, nan, 3);
    check_fails(qd_histogram_search(h, 8, false, &m, &err), QD_E_NUMERIC, "2 of 11 values are not finite", &err);
    qd_histogram_free(h);

    const float same[] = { 5, 5, 5 };
    h = histogram(same, 3, 1);
    check_ok(qd_histogram_search(h, 8, false, &m, &err), &err);
    assert_true(fabsf(qd_affine_fake(5, &m) - 5) <= m.scale);
    qd_histogram_free(h);
    const float tiny[] = { 1e-40f, -3e-41f, 2e-45f };
    h = histogram(tiny, 3, 1);
    check_ok(qd_histogram_search(h, 8, true, &m, &err), &err);
    qd_histogram_free(h);
    qd_histogram_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_does_not_matter),
        cmocka_unit_test(as_good_as_the_data),
        cmocka_unit_test(min_max_is_exact),
        cmocka_unit_test(strange_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
