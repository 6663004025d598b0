/* test_classify.c - classifiers over data sets: exact counts of right answers of three published networks, and the counting itself. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "metrics/metrics.h"
#include "nn/nn.h"

/* --- oracles --- */

typedef struct oracle {
    const char *model, *data, *mean, *std;
    int64_t count, right;
} oracle;

/* As measured by the authors of the data: ../weights of the shared folder. */
static const oracle oracles[] = {
    { "weights/cifar10-resnet20/resnet20.onnx", "datasets/cifar10/test-1000.bin.gz", "0.485, 0.456, 0.406",
      "0.229, 0.224, 0.225", 1000, 915 },
    { "weights/cifar10-resnet32/resnet32.onnx", "datasets/cifar10/test-1000.bin.gz", "0.485, 0.456, 0.406",
      "0.229, 0.224, 0.225", 1000, 928 },
    { "weights/fmnist-dwnet/dwnet.onnx", "datasets/fashion-mnist/t10k-images-idx3-ubyte.gz", "0.2860", "0.3530", 10000,
      9162 },
};

static qd_graph *open_graph(const char *path)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_role role;
    check_ok(qd_model_open(path, NULL, &m, &err), &err);
    check_ok(qd_zoo_build(m, NULL, &g, &role, &err), &err);
    assert_int_equal(role, QD_ROLE_CLASSIFIER);
    qd_model_free(m);
    return g;
}

static qd_dataset *open_data(const char *path)
{
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    const qd_data_limits limits = { .max_bytes = 1u << 28, .max_count = 100000 };
    check_ok(qd_dataset_open(path, &limits, NULL, &d, &err), &err);
    return d;
}

static void right_answers_are_those_of_the_authors(void **state)
{
    for (size_t k = 0; k < sizeof oracles / sizeof oracles[0]; k++) {
        const oracle *o = &oracles[k];
        qd_err err = { 0 };
        qd_classifier c;
        qd_pixel_scale scale;
        const char *path = harness_data(o->model);
        qd_graph *g = path ? open_graph(path) : NULL;
        path = harness_data(o->data);
        if (!g || !path) {
            qd_graph_free(g);
            skip();
        }
        qd_dataset *d = open_data(path);
        check_ok(qd_classifier_of(g, &c, &err), &err);
        assert_int_equal(c.classes, 10);
        check_ok(qd_classifier_fits(&c, d, true, &err), &err);
        check_ok(qd_pixel_scale_parse(o->mean, o->std, d->channels, &scale, &err), &err);
        float *logits = calloc((size_t)(o->count * 10), sizeof *logits);
        const qd_classify_job job = { .data = d, .count = o->count, .batch = 64, .scale = &scale };
        const qd_run run = { .threads = 2 };
        double seconds = -1;
        check_ok(qd_classify(&c, &job, &run, logits, &seconds, &err), &err);
        int64_t right = 0, among_five = 0;
        for (int64_t i = 0; i < o->count; i++) {
            const int label = qd_dataset_label(d, i);
            right += qd_top1(logits + i * 10, 10) == label;
            among_five += qd_rank(logits + i * 10, 10, label) < 5;
        }
        printf("%s: %lld of %lld right, %lld among five, %.0f images/s\n", o->model, (long long)right,
               (long long)o->count, (long long)among_five, (double)o->count / seconds);
        assert_int_equal(right, o->right);
        assert_in_range(among_five, right, o->count);
        assert_true(seconds > 0);
        free(logits);
        qd_dataset_free(d);
        qd_graph_free(g);
    }
}

/* --- a network small enough to know --- */

/* logits_k = sum of pixels * k - 3 for one channel of 1 x 2; a second output beside. */
static qd_graph *tiny(const char *name)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_tensor w = { 0 };
    const qd_shape image = QD_SHAPE(-1, 1, 1, 2), ws = QD_SHAPE(3, 2);
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id x = qd_graph_input(g, "x", QD_F32, &image);
    check_ok(qd_tensor_init(&w, QD_F32, &ws, NULL, &err), &err);
    for (int k = 0; k < 6; k++)
        qd_f32(&w)[k] = (float)(k / 2);
    const qd_node_id flat = qd_graph_add(g, &qd_op_reshape, "flat", QD_IN(x),
                                         QD_ATTRS(qd_attr_ints("shape", 2, (const int64_t[]){ 0, -1 })));
    const qd_node_id fc = qd_graph_add(g, &qd_op_linear, "fc", QD_IN(flat, qd_graph_const(g, "w", &w)), QD_NO_ATTRS);
    qd_graph_output(g, "flat", flat);
    qd_graph_output(g, name, fc);
    check_ok(qd_graph_verify(g, &err), &err);
    qd_tensor_clear(&w);
    return g;
}

static qd_dataset *five_pictures(int channels, int label)
{
    qd_err err = { 0 };
    qd_tensor images = { 0 }, labels = { 0 };
    qd_dataset *d = NULL;
    const qd_shape shape = QD_SHAPE(5, channels, 1, 2), n = QD_SHAPE(5);
    check_ok(qd_tensor_init(&images, QD_U8, &shape, NULL, &err), &err);
    check_ok(qd_tensor_init(&labels, QD_U8, &n, NULL, &err), &err);
    for (int k = 0; k < 10 * channels; k++)
        qd_u8(&images)[k] = (uint8_t)(51 * (k / 2 % 5));
    qd_u8(&labels)[4] = (uint8_t)label;
    check_ok(qd_dataset_wrap(&images, label < 0 ? NULL : &labels, NULL, &d, &err), &err);
    qd_tensor_clear(&images);
    qd_tensor_clear(&labels);
    return d;
}

/* Whatever the batch, every picture's logits are its own; drawn pictures come in the order asked for. */
static void pictures_keep_their_places(void **state)
{
    qd_err err = { 0 };
    qd_classifier c;
    qd_pixel_scale scale;
    qd_graph *g = tiny("logits");
    qd_dataset *d = five_pictures(1, 2);
    check_ok(qd_classifier_of(g, &c, &err), &err);
    assert_int_equal(c.output, 1);
    assert_int_equal(c.classes, 3);
    check_ok(qd_pixel_scale_parse("0.5", "0.25", 1, &scale, &err), &err);
    for (int64_t batch = 1; batch <= 7; batch++) {
        float logits[15] = { 0 }, want[15];
        const int64_t order[] = { 4, 0, 3 };
        qd_classify_job job = { .data = d, .count = 5, .batch = batch, .scale = &scale };
        check_ok(qd_classify(&c, &job, NULL, logits, NULL, &err), &err);
        for (int k = 0; k < 15; k++)
            want[k] = 2 * ((float)(k / 3) / 5 - 0.5f) / 0.25f * (float)(k % 3);
        check_close(logits, want, 15, 1e-6, 0);
        job.image = order;
        job.count = 3;
        check_ok(qd_classify(&c, &job, NULL, logits, NULL, &err), &err);
        for (int k = 0; k < 3; k++)
            check_close(logits + 3 * k, want + 3 * order[k], 3, 1e-6, 0);
    }
    qd_dataset_free(d);
    qd_graph_free(g);
}

static void what_does_not_fit_is_told(void **state)
{
    qd_err err = { 0 };
    qd_classifier c;
    qd_graph *g = tiny("scores");
    check_ok(qd_classifier_of(g, &c, &err), &err);
    assert_int_equal(c.output, 0); /* none is called logits: the first with two axes */
    qd_graph_free(g);
    g = tiny("logits");
    check_ok(qd_classifier_of(g, &c, &err), &err);
    qd_dataset *d = five_pictures(3, 2);
    check_fails(qd_classifier_fits(&c, d, false, &err), QD_E_INVALID, "3 x 1 x 2, the model takes 1 x 1 x 2", &err);
    qd_dataset_free(d);
    d = five_pictures(1, 3);
    check_ok(qd_classifier_fits(&c, d, false, &err), &err);
    check_fails(qd_classifier_fits(&c, d, true, &err), QD_E_INVALID, "labels up to 3, the model tells 3", &err);
    qd_dataset_free(d);
    d = five_pictures(1, -1);
    check_fails(qd_classifier_fits(&c, d, true, &err), QD_E_INVALID, "no labels", &err);
    qd_dataset_free(d);
    qd_graph_free(g);
}

static void ranks_count_what_comes_before(void **state)
{
    const float x[] = { 1, 3, 3, NAN, -1 };
    assert_int_equal(qd_top1(x, 5), 1);
    static const int64_t rank[] = { 2, 0, 1, 4, 3 };
    for (int k = 0; k < 5; k++)
        assert_int_equal(qd_rank(x, 5, k), rank[k]);
    const float bad[] = { NAN, NAN, -5 };
    assert_int_equal(qd_top1(bad, 3), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_answers_are_those_of_the_authors),
        cmocka_unit_test(pictures_keep_their_places),
        cmocka_unit_test(what_does_not_fit_is_told),
        cmocka_unit_test(ranks_count_what_comes_before),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
