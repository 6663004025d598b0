/* test_stats_file.c - statistics that are kept: nothing lost on the way, NumPy's arrays read, what is neither refused. */
#include "feature_nets.h"

#include <math.h>
#include <stdio.h>

#include "base/fs.h"
#include "golden/metrics/metrics_golden.h"
#include "model/model.h"

static qd_feature_stats *open_stats(const char *path, qd_meta *meta)
{
    qd_err err = { 0 };
    qd_feature_stats *s = NULL;
    check_ok(qd_feature_stats_open(path, NULL, &s, meta, &err), &err);
    return s;
}

static void nothing_is_lost(void **state)
{
    qd_err err = { 0 };
    qd_meta *meta = NULL, *back = NULL;
    qd_inception_score before, after;
    double want, have;
    int64_t n;
    char path[256], again[300];
    snprintf(path, sizeof path, "%s/stats.safetensors", harness_tmp());
    snprintf(again, sizeof again, "%s.again", path);
    qd_feature_stats *a = stats_of_rows(golden_a, GOLDEN_A, GOLDEN_DIM, 70, 40, NULL);
    qd_feature_stats *b = stats_of_rows(golden_b, GOLDEN_B, GOLDEN_DIM, 0, 0, NULL);
    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_meta_new(&back, &err), &err);
    check_ok(qd_meta_set(meta, "network", "abc", &err), &err);
    check_ok(qd_feature_stats_save(a, path, meta, 1, &err), &err);
    qd_feature_stats *read = open_stats(path, back);
    assert_string_equal(qd_meta_find(back, "network"), "abc");
    assert_int_equal(qd_feature_stats_count(read), GOLDEN_A);
    assert_int_equal(qd_feature_stats_dim(read), GOLDEN_DIM);
    assert_false(qd_feature_stats_has_spatial(read));
    const float *rows = qd_feature_stats_rows(read, &n);
    assert_int_equal(n, 70);
    assert_memory_equal(rows, qd_feature_stats_rows(a, &n), 70 * GOLDEN_DIM * sizeof *rows);
    check_ok(qd_fid(a, b, 1, &want, &err), &err);
    check_ok(qd_fid(read, b, 1, &have, &err), &err);
    assert_true(want == have);
    check_ok(qd_inception_score_of(a, &before, &err), &err);
    check_ok(qd_inception_score_of(read, &after, &err), &err);
    assert_true(before.mean == after.mean && before.std == after.std && before.chunks == after.chunks);
    check_fails(qd_sfid(read, b, 1, &have, &err), QD_E_INVALID, "no spatial features", &err);

    /* What was read, written again, is the same file; and nothing can be added to it. */
    char first[QD_SHA256_HEX], second[QD_SHA256_HEX];
    check_ok(qd_feature_stats_save(read, again, meta, 1, &err), &err);
    check_ok(qd_fs_sha256(path, first, &err), &err);
    check_ok(qd_fs_sha256(again, second, &err), &err);
    assert_string_equal(first, second);
    qd_features *f = NULL;
    qd_graph *g = identity_net(GOLDEN_DIM);
    check_ok(qd_features_new(g, &as_they_are, NULL, &f, &err), &err);
    check_fails(qd_feature_stats_add(read, f, golden_a, 1, 1, 1, GOLDEN_DIM, NULL, &err), QD_E_INVALID,
                "read from a file", &err);
    qd_features_free(f);
    qd_graph_free(g);
    qd_meta_free(meta);
    qd_meta_free(back);
    qd_feature_stats_free(a);
    qd_feature_stats_free(b);
    qd_feature_stats_free(read);
}

/* --- NumPy's --- */

static void write_npy(const char *folder, const char *name, const char *dict, const void *data, size_t size)
{
    qd_err err = { 0 };
    char path[300], bytes[4096] = "\x93NUMPY\x01";
    const size_t length = strlen(dict);
    bytes[8] = (char)length;
    memcpy(bytes + 10, dict, length);
    memcpy(bytes + 10 + length, data, size);
    snprintf(path, sizeof path, "%s/%s.npy", folder, name);
    check_ok(qd_fs_write(path, bytes, 10 + length + size, &err), &err);
}

static void arrays_of_numpy_are_read(void **state)
{
    qd_err err = { 0 };
    const char *folder = harness_tmp();
    const double mean[2] = { 1, 2 }, cov[4] = { 2, 0.5, 0.5, 3 };
    const float narrow[4] = { 2, 0.5, 0.5, 3 };
    double d = -1;
    write_npy(folder, "mu", "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n", mean, sizeof mean);
    write_npy(folder, "sigma", "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }\n", narrow, sizeof narrow);
    qd_feature_stats *a = open_stats(folder, NULL);
    assert_int_equal(qd_feature_stats_dim(a), 2);
    assert_int_equal(qd_feature_stats_count(a), 0);
    write_npy(folder, "mu_s", "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n", mean, sizeof mean);
    write_npy(folder, "sigma_s", "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }\n", cov, sizeof cov);
    qd_feature_stats *b = open_stats(folder, NULL);
    assert_true(qd_feature_stats_has_spatial(b));
    check_ok(qd_fid(a, b, 1, &d, &err), &err);
    assert_true(fabs(d) < 1e-12);
    qd_feature_stats_free(a);
    qd_feature_stats_free(b);
}

/* As numpy.savez_compressed writes them: the file that users of pytorch-fid have. */
static void an_npz_file_is_read(void **state)
{
    qd_err err = { 0 };
    double d = -1;
    qd_feature_stats *a = open_stats(harness_source("tests/golden/metrics/stats.npz"), NULL);
    qd_feature_stats *b = stats_of_rows(golden_b, GOLDEN_B, GOLDEN_DIM, 0, 0, NULL);
    check_ok(qd_fid(a, b, 1, &d, &err), &err);
    /* 1e-5: the pictures of b went through (x / 2 + 1/2 - 1/2) 2 in float */
    assert_true(fabs(d - golden_frechet[0]) < 1e-5 * golden_frechet[0]);
    assert_true(qd_feature_stats_sniff(harness_source("tests/golden/metrics/stats.npz"), NULL));
    assert_false(qd_feature_stats_sniff(harness_source("tests/golden/metrics/make_metrics.py"), NULL));
    assert_false(qd_feature_stats_sniff(harness_source("tests/golden/metrics"), NULL));
    qd_feature_stats_free(a);
    qd_feature_stats_free(b);
}

static void what_is_no_statistics_is_refused(void **state)
{
    const double v[4] = { 1, 2, 2, -1 }, wild[2] = { 1, NAN };
    static const struct {
        const char *name, *dict;
        size_t size;
        qd_status st;
        const char *words;
    } cases[] = {
        { "mu", "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", 8, QD_E_FORMAT, NULL },
        { "mu", "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }", 16, QD_E_FORMAT, "f32 or f64" },
        { "mu", "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1, 1), }", 16, QD_E_FORMAT, "f32 or f64" },
        { "mu", "{'descr': '<f8', 'fortran_order': False, 'shape': (0,), }", 0, QD_E_LIMIT, "0 in axis 0" },
        { "mu", "{'descr': '<f8', 'fortran_order': False, 'shape': (90000,), }", 16, QD_E_FORMAT, NULL },
        { "mu", "{'descr': '<f8', 'fortran_order': False, 'shape': (-2,), }", 16, QD_E_FORMAT, NULL },
        { "mu", "{'descr': '<f8', 'shape': (2,), }", 16, QD_E_UNSUPPORTED, NULL },
        { "mu", "{'descr': '<f8', 'fortran_order': False, 'shape': (), }", 8, QD_E_FORMAT, "f32 or f64" },
        { "sigma", "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }", 32, QD_E_FORMAT, "no covariance" },
        { "sigma", "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2), }", 16, QD_E_FORMAT,
          "a square of as many" },
    };
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        qd_err err = { 0 };
        qd_feature_stats *s = NULL;
        const char *folder = harness_tmp();
        if (strcmp(cases[k].name, "sigma") == 0)
            write_npy(folder, "mu", "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", v, 16);
        write_npy(folder, cases[k].name, cases[k].dict, v, cases[k].size);
        check_fails(qd_feature_stats_open(folder, NULL, &s, NULL, &err), cases[k].st, cases[k].words, &err);
        assert_null(s);
    }
    qd_err err = { 0 };
    qd_feature_stats *s = NULL;
    char path[300];
    const char *folder = harness_tmp();
    check_fails(qd_feature_stats_open(folder, NULL, &s, NULL, &err), QD_E_FORMAT, "'mu' and 'sigma' are not there",
                &err);
    snprintf(path, sizeof path, "%s/mu.npy", folder);
    check_ok(qd_fs_write(path, "\x93NUMPY\x01\0\xff\xff{", 11, &err), &err);
    check_fails(qd_feature_stats_open(folder, NULL, &s, NULL, &err), QD_E_FORMAT, "mu.npy", &err);
    write_npy(folder, "mu", "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", wild, 16);
    write_npy(folder, "sigma", "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }", v, 32);
    check_fails(qd_feature_stats_open(folder, NULL, &s, NULL, &err), QD_E_FORMAT, "number 1 of 'mu' is nan", &err);
}

static qd_status save_and_open(void *ctx, qd_err *err)
{
    const char *path = ctx;
    qd_feature_stats *s = NULL, *again = NULL;
    char other[300];
    snprintf(other, sizeof other, "%s.other", path);
    qd_status st = qd_feature_stats_open(path, NULL, &s, NULL, err);
    if (!st)
        st = qd_feature_stats_save(s, other, NULL, 1, err);
    if (!st)
        st = qd_feature_stats_open(other, NULL, &again, NULL, err);
    qd_feature_stats_free(s);
    qd_feature_stats_free(again);
    return st;
}

static void memory_may_run_out_anywhere(void **state)
{
    qd_err err = { 0 };
    char path[256];
    snprintf(path, sizeof path, "%s/stats.safetensors", harness_tmp());
    qd_feature_stats *a = stats_of_rows(golden_a, 20, GOLDEN_DIM, 7, 0, NULL);
    check_ok(qd_feature_stats_save(a, path, NULL, 1, &err), &err);
    assert_in_range(harness_run_each_alloc(save_and_open, path, 2000), 30, 1999);
    qd_feature_stats_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_lost),
        cmocka_unit_test(arrays_of_numpy_are_read),
        cmocka_unit_test(an_npz_file_is_read),
        cmocka_unit_test(what_is_no_statistics_is_refused),
        cmocka_unit_test(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
