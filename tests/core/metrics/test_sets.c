/* test_sets.c - distances and neighbourhoods of sets of features, and scores of answers, against numpy. */
#include "feature_nets.h"

#include <math.h>
#include <stdlib.h>

#include "golden/metrics/metrics_golden.h"

static const qd_run one_thread = { .threads = 1 }, three_threads = { .threads = 3 };

static void close_to(double have, double want, double tolerance)
{
    if (!(fabs(have - want) <= tolerance * fmax(1.0, fabs(want))))
        fail_msg("%.17g, wanted %.17g", have, want);
}

/* The rows of golden_a less 100, as the script has them. */
static void centred(float *dst, const float *src, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        dst[k] = src[k] - 100.0f;
}

/* --- kernel distance --- */

static void kernel_distance_is_numpys(void **state)
{
    qd_err err = { 0 };
    qd_kid kid;
    static float a[GOLDEN_A * GOLDEN_DIM], b[GOLDEN_B * GOLDEN_DIM];
    centred(a, golden_a, GOLDEN_A * GOLDEN_DIM);
    centred(b, golden_b, GOLDEN_B * GOLDEN_DIM);
    check_ok(qd_kid_of(a, GOLDEN_B, b, GOLDEN_B, GOLDEN_DIM, 10, 1000, 1, &one_thread, &kid, &err), &err);
    close_to(kid.mean, golden_mmd[1], 1e-9);
    assert_int_equal(kid.subsets, 1); /* of all there is only one */
    assert_int_equal(kid.size, GOLDEN_B);
    assert_true(isnan(kid.error));

    /* Subsets scatter around the figure of all, which they estimate without bias. */
    check_ok(qd_kid_of(a, GOLDEN_A, b, GOLDEN_B, GOLDEN_DIM, 400, 40, 1, &one_thread, &kid, &err), &err);
    assert_int_equal(kid.subsets, 400);
    assert_true(kid.error > 0 && fabs(kid.error - kid.std / 20) < 1e-12);
    assert_true(fabs(kid.mean - golden_mmd[0]) < 4 * kid.error);
}

static void seeds_and_threads(void **state)
{
    qd_err err = { 0 };
    qd_kid one, two, other;
    check_ok(qd_kid_of(golden_a, GOLDEN_A, golden_b, GOLDEN_B, GOLDEN_DIM, 5, 60, 3, &one_thread, &one, &err), &err);
    check_ok(qd_kid_of(golden_a, GOLDEN_A, golden_b, GOLDEN_B, GOLDEN_DIM, 5, 60, 3, &three_threads, &two, &err), &err);
    check_ok(qd_kid_of(golden_a, GOLDEN_A, golden_b, GOLDEN_B, GOLDEN_DIM, 5, 60, 4, &one_thread, &other, &err), &err);
    assert_true(one.mean == two.mean && one.std == two.std);
    assert_true(one.mean != other.mean);
}

/* --- neighbours --- */

static void neighbours_are_numpys(void **state)
{
    static const int ks[] = { 3, 5 };
    const double *const want[] = { golden_manifold_3, golden_manifold_5 };
    for (int i = 0; i < 2; i++)
        for (int threads = 1; threads <= 3; threads += 2) {
            qd_err err = { 0 };
            qd_manifold m;
            const qd_run run = { .threads = threads };
            check_ok(qd_manifold_of(golden_a, GOLDEN_A, golden_b, GOLDEN_B, GOLDEN_DIM, ks[i], &run, &m, &err), &err);
            close_to(m.precision, want[i][0], 1e-12);
            close_to(m.recall, want[i][1], 1e-12);
            close_to(m.density, want[i][2], 1e-12);
            close_to(m.coverage, want[i][3], 1e-12);
        }
}

static void a_set_is_its_own_neighbour_and_not_that_of_a_far_one(void **state)
{
    qd_err err = { 0 };
    qd_manifold m;
    float far[GOLDEN_A * GOLDEN_DIM];
    for (int k = 0; k < GOLDEN_A * GOLDEN_DIM; k++)
        far[k] = golden_a[k] + 1000.0f;
    check_ok(qd_manifold_of(golden_a, GOLDEN_A, golden_a, GOLDEN_A, GOLDEN_DIM, 3, NULL, &m, &err), &err);
    assert_true(m.precision == 1 && m.recall == 1 && m.coverage == 1);
    check_ok(qd_manifold_of(far, GOLDEN_A, golden_a, GOLDEN_A, GOLDEN_DIM, 3, NULL, &m, &err), &err);
    assert_true(m.precision == 0 && m.recall == 0 && m.density == 0 && m.coverage == 0);
}

static void too_few_and_cancelled(void **state)
{
    qd_err err = { 0 };
    qd_manifold m = { .recall = -3 };
    qd_kid kid = { .mean = -3 };
    const atomic_bool stop = true;
    const qd_run run = { .cancel = &stop };
    check_fails(qd_manifold_of(golden_a, 3, golden_b, 9, GOLDEN_DIM, 3, NULL, &m, &err), QD_E_INVALID,
                "3 and 9 pictures have no 3 neighbours", &err);
    check_fails(qd_manifold_of(golden_a, 9, golden_b, 9, GOLDEN_DIM, 65, NULL, &m, &err), QD_E_INVALID, "1..64", &err);
    check_fails(qd_manifold_of(golden_a, 9, golden_b, 9, GOLDEN_DIM, 3, &run, &m, &err), QD_E_CANCELLED, NULL, &err);
    check_fails(qd_kid_of(golden_a, 1, golden_b, 9, GOLDEN_DIM, 3, 5, 0, NULL, &kid, &err), QD_E_INVALID,
                "there are 1 and 9", &err);
    check_fails(qd_kid_of(golden_a, 9, golden_b, 9, GOLDEN_DIM, 3, 5, 0, &run, &kid, &err), QD_E_CANCELLED, NULL, &err);
    assert_true(m.recall == -3 && kid.mean == -3);
}

/* --- answers --- */

static void inception_scores_are_numpys(void **state)
{
    static const struct {
        int64_t chunk;
        const double *want;
    } cases[] = { { 0, golden_inception_all }, { 20, golden_inception_chunks }, { 50, golden_inception_all } };
    for (int k = 0; k < 3; k++) {
        qd_err err = { 0 };
        qd_inception_score is;
        qd_feature_stats *s =
            stats_of_rows(golden_logits, GOLDEN_ANSWERS, GOLDEN_CLASSES, 0, cases[k].chunk, &one_thread);
        check_ok(qd_inception_score_of(s, &is, &err), &err);
        close_to(is.mean, cases[k].want[0], 1e-6); /* probabilities are floats */
        close_to(is.std, cases[k].want[1], 1e-6);
        assert_int_equal(is.chunks, (int64_t)cases[k].want[2]);
        qd_feature_stats_free(s);
    }
}

/* --- how sure --- */

/* Pictures of one normal distribution against its true parameters as the reference: FID falls like 1/N towards zero. */
static void spread_of_a_distance(void **state)
{
    enum { N = 600, D = 6 };
    static float rows[N * D], other[40 * N * D];
    qd_err err = { 0 };
    qd_fid_spread one, two;
    double fid;
    harness_normal(rows, N * D, 11, 1.0f);
    harness_normal(other, 40 * N * D, 12, 1.0f);
    qd_feature_stats *s = stats_of_rows(rows, N, D, N, 0, &one_thread);
    qd_feature_stats *reference = stats_of_rows(other, 40 * N, D, 0, 0, &one_thread);
    check_ok(qd_fid(s, reference, 1, &fid, &err), &err);
    check_ok(qd_fid_spread_of(s, reference, 60, 5, &one_thread, &one, &err), &err);
    check_ok(qd_fid_spread_of(s, reference, 60, 5, &three_threads, &two, &err), &err);
    assert_true(one.std == two.std && one.infinity == two.infinity);
    /* E |m1 - m2|^2 = D / N alone is 0.01; the covariance gives about D (D + 1) / (4 N). */
    assert_true(fid > 0.01 && fid < 0.06);
    assert_true(one.std > 0.001 && one.std < 0.02);
    assert_true(fabs(one.infinity) < fid / 2);
    qd_feature_stats_free(s);
    s = stats_of_rows(rows, 20, D, 20, 0, &one_thread);
    check_ok(qd_fid_spread_of(s, reference, 5, 5, NULL, &one, &err), &err);
    assert_true(isnan(one.infinity)); /* five pictures do not span six features */
    check_fails(qd_fid_spread_of(reference, s, 5, 5, NULL, &one, &err), QD_E_INVALID, "0 rows of features", &err);
    qd_feature_stats_free(s);
    qd_feature_stats_free(reference);
}

static qd_status sets_of(void *ctx, qd_err *err)
{
    qd_kid kid;
    qd_manifold m;
    qd_fid_spread spread;
    const qd_feature_stats *s = ctx;
    qd_status st = qd_kid_of(golden_a, 20, golden_b, 20, GOLDEN_DIM, 2, 5, 0, NULL, &kid, err);
    if (!st)
        st = qd_manifold_of(golden_a, 20, golden_b, 20, GOLDEN_DIM, 3, NULL, &m, err);
    if (!st)
        st = qd_fid_spread_of(s, s, 2, 0, NULL, &spread, err);
    return st;
}

static void memory_may_run_out_anywhere(void **state)
{
    qd_feature_stats *s = stats_of_rows(golden_a, 40, GOLDEN_DIM, 40, 0, &one_thread);
    assert_in_range(harness_run_each_alloc(sets_of, s, 2000), 40, 1999);
    qd_feature_stats_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernel_distance_is_numpys),
        cmocka_unit_test(seeds_and_threads),
        cmocka_unit_test(neighbours_are_numpys),
        cmocka_unit_test(a_set_is_its_own_neighbour_and_not_that_of_a_far_one),
        cmocka_unit_test(too_few_and_cancelled),
        cmocka_unit_test(inception_scores_are_numpys),
        cmocka_unit_test(spread_of_a_distance),
        cmocka_unit_test(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
