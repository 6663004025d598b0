/* test_fid_fashion.c - distances that others measured, in the features of a published-with-the-data network: real pictures. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

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

static qd_feature_stats *stats_of(const qd_dataset *d, int64_t count, int64_t keep, int threads, int64_t batch)
{
    qd_err err = { 0 };
    qd_features *f = NULL;
    qd_feature_stats *s = NULL;
    qd_feature_options o = options;
    const qd_run run = { .threads = threads };
    o.batch = batch;
    check_ok(qd_features_new(network, &o, &run, &f, &err), &err);
    check_ok(qd_feature_stats_new(f, keep, 0, NULL, &s, &err), &err);
    check_ok(qd_feature_stats_add_dataset(s, f, d, NULL, count, "features", &run, &err), &err);
    assert_int_equal(qd_feature_stats_count(s), count);
    qd_features_free(f);
    return s;
}

static int open_all(void **state)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_role role;
    const char *path = harness_data("weights/fmnist-dwnet/dwnet.onnx");
    qd_dataset *d = path ? open_data("datasets/fashion-mnist/t10k-images-idx3-ubyte.gz") : NULL;
    if (!d)
        return 0;
    check_ok(qd_model_open(harness_data("weights/fmnist-dwnet/dwnet.onnx"), NULL, &m, &err), &err);
    check_ok(qd_zoo_build(m, NULL, &network, &role, &err), &err);
    qd_model_free(m);
    reference = stats_of(d, d->count, 2000, 2, 64);
    qd_dataset_free(d);
    return 0;
}

static int close_all(void **state)
{
    qd_feature_stats_free(reference);
    qd_graph_free(network);
    return 0;
}

/* The README of the weights, six digits: features agree to about 1e-6 of their size, the distance is a difference of traces near 30. */
static void distances_are_those_of_the_authors(void **state)
{
    static const struct {
        const char *data;
        int64_t count;
        double fid;
    } oracles[] = {
        { "datasets/fashion-mnist/train-images-idx3-ubyte.gz", 2000, 0.0267528 },
        { "datasets/fashion-mnist/train-images-idx3-ubyte.gz", 10000, 0.0057088 },
        { "datasets/notmnist/t10k-images-idx3-ubyte.gz", 10000, 10.7253 },
        { "datasets/mnist/t10k-images-idx3-ubyte.gz", 10000, 20.3404 },
    };
    if (!reference)
        skip();
    for (size_t k = 0; k < sizeof oracles / sizeof oracles[0]; k++) {
        qd_err err = { 0 };
        double fid;
        qd_dataset *d = open_data(oracles[k].data);
        if (!d)
            skip();
        qd_feature_stats *s = stats_of(d, oracles[k].count, 0, 2, 64);
        check_ok(qd_fid(s, reference, 2, &fid, &err), &err);
        printf("%s, %lld pictures: %.7f (want %.7g)\n", oracles[k].data, (long long)oracles[k].count, fid,
               oracles[k].fid);
        assert_true(fabs(fid - oracles[k].fid) <= 2e-6 + 1e-5 * oracles[k].fid);
        qd_feature_stats_free(s);
        qd_dataset_free(d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances_are_those_of_the_authors),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
