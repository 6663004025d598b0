/* test_fid_fashion.c - distances that others measured, in the features of a published-with-the-data network: real pictures. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "metrics/metrics.h"
#include "nn/nn.h"

static qd_graph *network;
static qd_feature_stats *reference; /* the 10,000 test images */
static const qd_run two_threads = { .threads = 2 };
static const qd_feature_options options = { .mean = "0.2860", .std = "0.3530" };

static qd_dataset *open_data(const char *relative)
{
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    const qd_data_limits limits = { .max_bytes = 1u << 28, .max_count = 100000 };
    const char *path = harness_data(relative);
    if (path)
        check_ok(qd_dataset_open(path, &limits, NULL, &d, &err), &err);
    return d;
}

static qd_feature_stats *new_stats(int64_t keep, int threads, int64_t batch)
{
    qd_err err = { 0 };
    qd_features *f = NULL;
    qd_feature_stats *s = NULL;
    qd_feature_options o = options;
    const qd_run run = { .threads = threads };
    o.batch = batch;
    check_ok(qd_features_new(network, &o, &run, &f, &err), &err);
    check_ok(qd_feature_stats_new(f, keep, 0, NULL, &s, &err), &err);
    qd_features_free(f);
    return s;
}

static int open_all(void **state)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_features *f = NULL;
    qd_role role;
    const char *path = harness_data("weights/fmnist-dwnet/dwnet.onnx");
    qd_dataset *d = path ? open_data("datasets/fashion-mnist/t10k-images-idx3-ubyte.gz") : NULL;
    if (!d)
        return 0;
    check_ok(qd_model_open(harness_data("weights/fmnist-dwnet/dwnet.onnx"), NULL, &m, &err), &err);
    check_ok(qd_zoo_build(m, NULL, &network, &role, &err), &err);
    qd_model_free(m);
    check_ok(qd_features_new(network, &options, &two_threads, &f, &err), &err);
    reference = new_stats(2000, 2, 64);
    check_ok(qd_feature_stats_add_dataset(reference, f, d, NULL, d->count, "reference", &two_threads, &err), &err);
    assert_int_equal(qd_feature_stats_count(reference), 10000);
    qd_features_free(f);
    qd_dataset_free(d);
    return 0;
}

static int close_all(void **state)
{
    qd_feature_stats_free(reference);
    qd_graph_free(network);
    return 0;
}

/* Pictures from..count of a set are added; the README of the weights has six digits of the distance, a difference of traces near 30. */
static void add_and_compare(qd_feature_stats *s, const char *data, int64_t from, int64_t count, double want)
{
    qd_err err = { 0 };
    qd_features *f = NULL;
    double fid = NAN;
    int64_t image[10000];
    qd_dataset *d = open_data(data);
    if (!d)
        skip();
    for (int64_t k = from; k < count; k++)
        image[k - from] = k;
    check_ok(qd_features_new(network, &options, &two_threads, &f, &err), &err);
    check_ok(qd_feature_stats_add_dataset(s, f, d, image, count - from, "features", &two_threads, &err), &err);
    check_ok(qd_fid(s, reference, 2, &fid, &err), &err);
    printf("%s, %lld pictures: %.7f (want %.7g)\n", data, (long long)count, fid, want);
    assert_true(fabs(fid - want) <= 1e-7 + 1e-5 * want);
    qd_features_free(f);
    qd_dataset_free(d);
}

static void distances_are_those_of_the_authors(void **state)
{
    if (!reference)
        skip();
    qd_feature_stats *train = new_stats(0, 2, 64), *letters = new_stats(0, 2, 64);
    add_and_compare(train, "datasets/fashion-mnist/train-images-idx3-ubyte.gz", 0, 2000, 0.0267528);
    add_and_compare(train, "datasets/fashion-mnist/train-images-idx3-ubyte.gz", 2000, 10000, 0.0057088);
    add_and_compare(letters, "datasets/notmnist/t10k-images-idx3-ubyte.gz", 0, 10000, 10.7253);
    qd_feature_stats_free(train);
    qd_feature_stats_free(letters);
}

/* Threads are one, two or three, pictures come 64 or 50 at a time: the statistics are the same bytes. */
static void threads_and_batches_change_no_byte(void **state)
{
    static const struct {
        int threads;
        int64_t batch;
    } cases[] = { { 1, 64 }, { 2, 64 }, { 3, 50 } };
    char hash[3][QD_SHA256_HEX];
    qd_dataset *d = reference ? open_data("datasets/fashion-mnist/t10k-images-idx3-ubyte.gz") : NULL;
    if (!d)
        skip();
    for (int k = 0; k < 3; k++) {
        qd_err err = { 0 };
        qd_features *f = NULL;
        char path[256];
        const qd_run run = { .threads = cases[k].threads };
        qd_feature_options o = options;
        o.batch = cases[k].batch;
        snprintf(path, sizeof path, "%s/stats.safetensors", harness_tmp());
        qd_feature_stats *s = new_stats(100, cases[k].threads, cases[k].batch);
        check_ok(qd_features_new(network, &o, &run, &f, &err), &err);
        check_ok(qd_feature_stats_add_dataset(s, f, d, NULL, 333, "features", &run, &err), &err);
        check_ok(qd_feature_stats_save(s, path, NULL, cases[k].threads, &err), &err);
        check_ok(qd_fs_sha256(path, hash[k], &err), &err);
        qd_features_free(f);
        qd_feature_stats_free(s);
    }
    qd_dataset_free(d);
    assert_string_equal(hash[0], hash[1]);
    assert_string_equal(hash[0], hash[2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances_are_those_of_the_authors),
        cmocka_unit_test(threads_and_batches_change_no_byte),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
