/* test_ptq_data.c - classifiers in integers: folding and equalizing change nothing, the integer path is its fake twin, and the published
 * network keeps its answers. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "metrics/metrics.h"
#include "quant/quant_int.h"

/* --- a small network with everything the passes look for --- */

static qd_node_id constant(qd_graph *g, const char *name, qd_shape shape, uint64_t seed, float scale, float offset)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    harness_normal(qd_f32(&t), qd_tensor_count(&t), seed, scale);
    for (int64_t k = 0; k < qd_tensor_count(&t); k++)
        qd_f32(&t)[k] = offset ? fabsf(qd_f32(&t)[k]) + offset : qd_f32(&t)[k];
    const qd_node_id id = qd_graph_const(g, name, &t);
    qd_tensor_clear(&t);
    return id;
}

static qd_node_id norm(qd_graph *g, const char *name, qd_node_id x, int64_t channels, uint64_t seed)
{
    char part[4][64];
    static const char *const what[] = { "weight", "bias", "running_mean", "running_var" };
    for (int k = 0; k < 4; k++)
        snprintf(part[k], sizeof part[k], "%s.%s", name, what[k]);
    const qd_shape c = QD_SHAPE(channels);
    return qd_graph_add(g, &qd_op_batch_norm, name,
                        QD_IN(x, constant(g, part[0], c, seed, 1.5f, 0), constant(g, part[1], c, seed + 1, 0.3f, 0),
                              constant(g, part[2], c, seed + 2, 0.3f, 0), constant(g, part[3], c, seed + 3, 1, 0.05f)),
                        QD_ATTRS(QD_FLOAT("eps", 1e-5)));
}

/* conv bn relu; depthwise bn relu; conv + shortcut relu; pool; conv read twice, so its norm stays; mean; linear bn; linear. */
static qd_graph *small_net(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    const int64_t ones[] = { 1, 1, 1, 1 }, two[] = { 2, 2 };
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, 3, 8, 8);
    const qd_node_id x = qd_graph_input(g, "image", QD_F32, &image);
    qd_node_id h =
        qd_graph_add(g, &qd_op_conv2d, "c1", QD_IN(x, constant(g, "c1.weight", QD_SHAPE(6, 3, 3, 3), 1, 0.4f, 0)),
                     QD_ATTRS(qd_attr_ints("pads", 4, ones)));
    h = qd_graph_add(g, &qd_op_relu, "r1", QD_IN(norm(g, "n1", h, 6, 10)), QD_NO_ATTRS);
    const qd_node_id left = h;
    h = qd_graph_add(g, &qd_op_conv2d, "dw",
                     QD_IN(h, constant(g, "dw.weight", QD_SHAPE(6, 1, 3, 3), 2, 0.4f, 0),
                           constant(g, "dw.bias", QD_SHAPE(6), 3, 0.2f, 0)),
                     QD_ATTRS(qd_attr_ints("pads", 4, ones), QD_INT("groups", 6)));
    h = qd_graph_add(g, &qd_op_relu, "r2", QD_IN(norm(g, "n2", h, 6, 20)), QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_conv2d, "c2", QD_IN(h, constant(g, "c2.weight", QD_SHAPE(6, 6, 1, 1), 4, 0.5f, 0)),
                     QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_add, "sum", QD_IN(norm(g, "n3", h, 6, 30), left), QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_max_pool, "pool", QD_IN(h),
                     QD_ATTRS(qd_attr_ints("kernel", 2, two), qd_attr_ints("stride", 2, two)));
    h = qd_graph_add(g, &qd_op_conv2d, "c3", QD_IN(h, constant(g, "c3.weight", QD_SHAPE(4, 6, 1, 1), 5, 0.5f, 0)),
                     QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_add, "twice", QD_IN(norm(g, "n4", h, 4, 40), h), QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_global_avg_pool, "mean", QD_IN(h), QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_reshape, "flat", QD_IN(h),
                     QD_ATTRS(qd_attr_ints("shape", 2, (const int64_t[]){ 0, -1 })));
    h = qd_graph_add(g, &qd_op_linear, "f1", QD_IN(h, constant(g, "f1.weight", QD_SHAPE(7, 4), 6, 0.7f, 0)),
                     QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_relu, "r3", QD_IN(norm(g, "n5", h, 7, 50)), QD_NO_ATTRS);
    h = qd_graph_add(
        g, &qd_op_linear, "f2",
        QD_IN(h, constant(g, "f2.weight", QD_SHAPE(5, 7), 7, 0.7f, 0), constant(g, "f2.bias", QD_SHAPE(5), 8, 0.5f, 0)),
        QD_NO_ATTRS);
    qd_graph_output(g, "logits", h);
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static qd_dataset *noise(int64_t count, int side)
{
    qd_err err = { 0 };
    qd_tensor images = { 0 };
    qd_dataset *d = NULL;
    const qd_shape shape = QD_SHAPE(count, 3, side, side);
    qd_rng rng;
    check_ok(qd_tensor_init(&images, QD_U8, &shape, NULL, &err), &err);
    qd_rng_init(&rng, 5, 0);
    for (int64_t k = 0; k < qd_tensor_count(&images); k++)
        qd_u8(&images)[k] = (uint8_t)qd_rng_below(&rng, 256);
    check_ok(qd_dataset_wrap(&images, NULL, NULL, &d, &err), &err);
    qd_tensor_clear(&images);
    return d;
}

/* Logits of the first n pictures; free. */
static float *logits_of(const qd_graph *g, const qd_dataset *d, int64_t n, const char *mean, const char *std)
{
    qd_err err = { 0 };
    qd_classifier c;
    qd_pixel_scale scale;
    check_ok(qd_classifier_of(g, &c, &err), &err);
    check_ok(qd_pixel_scale_parse(mean, std, d->channels, &scale, &err), &err);
    float *out = calloc((size_t)(n * c.classes), sizeof *out);
    const qd_classify_job job = { .data = d, .count = n, .batch = 50, .scale = &scale };
    check_ok(qd_classify(&c, &job, NULL, out, NULL, &err), &err);
    return out;
}

static int count_ops(const qd_graph *g, const qd_op *op)
{
    int n = 0;
    for (int k = 0; k < qd_graph_size(g); k++)
        n += qd_graph_node(g, k)->op == op;
    return n;
}

/* --- passes --- */

static void folding_changes_nothing(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = small_net(), *folded = NULL;
    qd_dataset *d = noise(20, 8);
    int n = 0;
    check_ok(qd_fold_norms(g, NULL, &n, &folded, &err), &err);
    assert_int_equal(n, 4);
    assert_int_equal(count_ops(folded, &qd_op_batch_norm), 1); /* its layer has another reader */
    assert_true(qd_graph_find(folded, "c1") >= 0 && qd_graph_find(folded, "n1") < 0 &&
                qd_graph_find(folded, "n4") >= 0);
    float *a = logits_of(g, d, 20, "0.5", "0.25"), *b = logits_of(folded, d, 20, "0.5", "0.25");
    check_close(b, a, 100, 0, 1e-5); /* rounding of weights scaled by g / sqrt(var) */
    free(a);
    free(b);
    qd_dataset_free(d);
    qd_graph_free(folded);
    qd_graph_free(g);
}

/* The ratio of the largest to the smallest largest weight of a row. */
static double spread(const qd_graph *g, const char *weight)
{
    const qd_node *w = qd_graph_node(g, qd_graph_find(g, weight));
    const int64_t rows = w->shape.dim[0], row = qd_tensor_count(&w->value) / rows;
    double lo = INFINITY, hi = 0;
    for (int64_t o = 0; o < rows; o++) {
        double m = 0;
        for (int64_t k = 0; k < row; k++)
            m = fmax(m, fabs((double)qd_f32(&w->value)[o * row + k]));
        lo = fmin(lo, m);
        hi = fmax(hi, m);
    }
    return hi / lo;
}

static void equalizing_changes_nothing(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = small_net(), *folded = NULL, *equal = NULL;
    qd_dataset *d = noise(20, 8);
    int n = 0;
    check_ok(qd_fold_norms(g, NULL, &n, &folded, &err), &err);
    check_ok(qd_equalize(folded, NULL, &n, &equal, &err), &err);
    assert_int_equal(n, 2); /* dw - c2, f1 - f2; c1 is read by the shortcut too, c3 twice */
    float *a = logits_of(g, d, 20, "0.5", "0.25"), *b = logits_of(equal, d, 20, "0.5", "0.25");
    check_close(b, a, 100, 0, 1e-4);
    assert_true(spread(equal, "dw.weight") < 0.7 * spread(folded, "dw.weight"));
    assert_float_equal(spread(equal, "c1.weight"), spread(folded, "c1.weight"), 0);
    free(a);
    free(b);
    qd_dataset_free(d);
    qd_graph_free(equal);
    qd_graph_free(folded);
    qd_graph_free(g);
}

/* Channels of a pair end with equal ranges: the fixed point of eq. 11. */
static void equalized_channels_have_equal_ranges(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = small_net(), *equal = NULL;
    int n = 0;
    check_ok(qd_equalize(g, NULL, &n, &equal, &err), &err);
    assert_int_equal(n, 0); /* norms stand between */
    qd_graph_free(equal);
    qd_graph *folded = NULL;
    equal = NULL;
    check_ok(qd_fold_norms(g, NULL, &n, &folded, &err), &err);
    check_ok(qd_equalize(folded, NULL, &n, &equal, &err), &err);
    const qd_node *a = qd_graph_node(equal, qd_graph_find(equal, "f1.weight")),
                  *b = qd_graph_node(equal, qd_graph_find(equal, "f2.weight"));
    for (int i = 0; i < 7; i++) {
        double r1 = 0, r2 = 0;
        for (int k = 0; k < 4; k++)
            r1 = fmax(r1, fabs((double)qd_f32(&a->value)[i * 4 + k]));
        for (int o = 0; o < 5; o++)
            r2 = fmax(r2, fabs((double)qd_f32(&b->value)[o * 7 + i]));
        assert_true(fabs(r1 / r2 - 1) < 5e-3);
    }
    qd_graph_free(equal);
    qd_graph_free(folded);
    qd_graph_free(g);
}

/* --- percentiles --- */

static void percentiles_cut_the_tails(void **state)
{
    qd_err err = { 0 };
    qd_histogram *h = NULL;
    qd_affine m;
    float x[10001];
    for (int k = 0; k < 10000; k++)
        x[k] = (float)k / 10000;
    x[10000] = 1000; /* one outlier */
    check_ok(qd_histogram_new(&h, &err), &err);
    qd_histogram_add(h, x, 10001);
    check_ok(qd_histogram_percentile(h, 100, 8, false, &m, &err), &err);
    assert_float_equal(m.scale, 1000.0f / 255, 1e-3);
    check_ok(qd_histogram_percentile(h, 99.9, 8, false, &m, &err), &err);
    assert_true(m.scale * 255 > 0.9 && m.scale * 255 < 1.1);
    check_fails(qd_histogram_percentile(h, 49, 8, false, &m, &err), QD_E_INVALID, "50..100", &err);
    qd_histogram_free(h);
}

/* --- the method --- */

static qd_params *params(const char *const *pairs)
{
    qd_err err = { 0 };
    qd_params *p = NULL;
    check_ok(qd_params_new(qd_method_find("ptq")->params, &p, &err), &err);
    for (; pairs && *pairs; pairs += 2)
        check_ok(qd_params_set_text(p, pairs[0], pairs[1], &err), &err);
    return p;
}

static qd_graph *quantize(const qd_graph *g, const qd_dataset *d, const char *const *pairs, int threads,
                          qd_quant_report *r)
{
    qd_err err = { 0 };
    qd_params *p = params(pairs);
    qd_graph *out = NULL;
    const qd_run run = { .seed = 1, .threads = threads };
    const qd_quant_task task = { .graph = g, .role = QD_ROLE_CLASSIFIER, .data = d, .params = p };
    check_ok(qd_method_find("ptq")->run(&task, &run, &out, r, &err), &err);
    qd_params_free(p);
    return out;
}

static void integers_are_their_fake_twin(void **state)
{
    static const char *const ways[][7] = { { NULL },
                                           { "activation_range", "percentile", "equalize", "true" },
                                           { "activation_range", "minmax", "symmetric_activations", "true" },
                                           { "weight_bits", "4", "first_layer", "w8", "last_layer", "float" } };
    qd_err err = { 0 };
    qd_graph *g = small_net();
    qd_dataset *d = noise(100, 8);
    float *want = logits_of(g, d, 100, "0", "1");
    for (size_t k = 0; k < sizeof ways / sizeof ways[0]; k++) {
        qd_quant_report r = { 0 };
        qd_graph *q = quantize(g, d, ways[k], 1, &r), *twin = NULL, *again = quantize(g, d, ways[k], 2, &r);
        check_ok(qd_quant_fake_twin(q, &twin, &err), &err);
        float *a = logits_of(q, d, 100, "0", "1"), *b = logits_of(twin, d, 100, "0", "1"),
              *c = logits_of(again, d, 100, "0", "1");
        /* Sums in another order, which now and then moves one code by one step. */
        assert_true(qd_sqnr_db(a, b, 500) > 45);
        assert_memory_equal(a, c, 500 * sizeof *a); /* one thread or two: the same bytes */
        const double db = qd_sqnr_db(want, a, 500);
        assert_true(db > (k == 3 ? 12 : 25));
        assert_int_equal(r.norms_folded, 4);
        assert_int_equal(r.pairs_equalized, k == 1 ? 2 : 0);
        assert_int_equal(r.n_layers, 6);
        assert_int_equal(r.biases_corrected, k == 3 ? 4 : 6);
        assert_int_equal(r.layers[0].activation_bits, k == 3 ? 0 : 8);
        assert_int_equal(r.layers[0].weight_bits, 8);
        assert_int_equal(r.layers[5].weight_bits, k == 3 ? 0 : 8);
        free(a);
        free(b);
        free(c);
        qd_quant_report_clear(&r);
        qd_graph_free(twin);
        qd_graph_free(again);
        qd_graph_free(q);
    }
    free(want);
    qd_dataset_free(d);
    qd_graph_free(g);
}

/* What rounding weights adds to the mean of a layer's output is gone, up to what the borders' zeros change. */
static void corrected_biases_keep_means(void **state)
{
    qd_graph *g = small_net();
    qd_dataset *d = noise(400, 8);
    float *want = logits_of(g, d, 400, "0", "1");
    double off[2] = { 0, 0 };
    for (int k = 0; k < 2; k++) {
        const char *const way[] = { "weight_bits", "4", "bias_correction", k ? "true" : "false", "calibration_samples",
                                    "400",         NULL };
        qd_quant_report r = { 0 };
        qd_graph *q = quantize(g, d, way, 1, &r);
        float *a = logits_of(q, d, 400, "0", "1");
        for (int c = 0; c < 5; c++) {
            double sum = 0;
            for (int i = 0; i < 400; i++)
                sum += (double)a[i * 5 + c] - (double)want[i * 5 + c];
            off[k] += fabs(sum / 400);
        }
        free(a);
        qd_quant_report_clear(&r);
        qd_graph_free(q);
    }
    printf("mean logit off by %.4f without correction, %.4f with it\n", off[0] / 5, off[1] / 5);
    assert_true(off[1] < 0.5 * off[0]);
    free(want);
    qd_dataset_free(d);
    qd_graph_free(g);
}

static void each_layer_alone_is_measured(void **state)
{
    static const char *const way[] = { "sensitivity_samples", "60", "first_layer", "float", "weight_bits", "4", NULL };
    qd_graph *g = small_net();
    qd_dataset *d = noise(100, 8);
    qd_quant_report r = { 0 };
    qd_err err = { 0 };
    qd_buf b;
    qd_graph *q = quantize(g, d, way, 1, &r);
    assert_int_equal(r.n_layers, 6);
    for (int k = 0; k < 6; k++) {
        assert_int_equal(r.layers[k].alone, k > 0);
        if (k == 0)
            continue;
        assert_true(r.layers[k].alone_sqnr_db > 5 && r.layers[k].alone_sqnr_db < 80);
        assert_true(r.layers[k].alone_agreement > 0.3 && r.layers[k].alone_agreement <= 1);
    }
    qd_buf_init(&b, 0);
    check_ok(qd_quant_report_json(&r, &b, &err), &err);
    assert_non_null(strstr(b.data, "\"alone_agreement\":"));
    qd_buf_clear(&b);
    qd_quant_report_clear(&r);
    qd_graph_free(q);
    qd_dataset_free(d);
    qd_graph_free(g);
}

static void wrong_tasks_are_refused(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = small_net(), *out = NULL;
    qd_dataset *d = noise(10, 8), *large = noise(10, 9);
    qd_quant_report r = { 0 };
    qd_params *p = params(NULL);
    const qd_method *m = qd_method_find("ptq");
    qd_quant_task task = { .graph = g, .role = QD_ROLE_CLASSIFIER, .params = p };
    check_fails(m->run(&task, NULL, &out, &r, &err), QD_E_INVALID, "a classifier and a data set", &err);
    task.data = large;
    check_fails(m->run(&task, NULL, &out, &r, &err), QD_E_INVALID, "3 x 9 x 9, the model takes 3 x 8 x 8", &err);
    task.data = d;
    check_ok(qd_params_set_text(p, "mean", "1,2", &err), &err);
    check_fails(m->run(&task, NULL, &out, &r, &err), QD_E_INVALID, "params.mean has 2 numbers", &err);
    check_ok(qd_params_set_text(p, "mean", "0", &err), &err);
    check_ok(qd_params_set_text(p, "skip_layers", "nosuch", &err), &err);
    check_fails(m->run(&task, NULL, &out, &r, &err), QD_E_INVALID, "'nosuch'", &err);
    check_ok(qd_params_set_text(p, "skip_layers", "c1,dw,c2,c3,f1,f2", &err), &err);
    check_fails(m->run(&task, NULL, &out, &r, &err), QD_E_INVALID, "no layer left", &err);
    check_ok(qd_params_set_text(p, "skip_layers", "", &err), &err);
    atomic_bool stop = true;
    const qd_run stopped = { .cancel = &stop };
    check_fails(m->run(&task, &stopped, &out, &r, &err), QD_E_CANCELLED, "", &err);
    qd_graph *q = quantize(g, d, NULL, 1, &r);
    task.graph = q;
    check_fails(m->run(&task, NULL, &out, &r, &err), QD_E_INVALID, "quantized already", &err);
    assert_null(out);
    qd_quant_report_clear(&r);
    qd_graph_free(q);
    qd_params_free(p);
    qd_dataset_free(large);
    qd_dataset_free(d);
    qd_graph_free(g);
}

typedef struct setup {
    qd_graph *g;
    qd_dataset *d;
    qd_params *p;
} setup;

static qd_status run_once(void *ctx, qd_err *err)
{
    const setup *s = ctx;
    qd_graph *out = NULL;
    qd_quant_report r = { 0 };
    const qd_quant_task task = { .graph = s->g, .role = QD_ROLE_CLASSIFIER, .data = s->d, .params = s->p };
    const qd_status st = qd_method_find("ptq")->run(&task, NULL, &out, &r, err);
    qd_quant_report_clear(&r);
    qd_graph_free(out);
    return st;
}

static void every_failing_allocation_is_survived(void **state)
{
    static const char *const way[] = { "equalize", "true", "sensitivity_samples", "2", "first_layer", "w8", NULL };
    setup s = { small_net(), noise(3, 8), params(way) };
    harness_run_each_alloc(run_once, &s, 20000);
    qd_params_free(s.p);
    qd_dataset_free(s.d);
    qd_graph_free(s.g);
}

/* --- the published network --- */

/* W8A8 loses at most half a point of 91.5 on the 1,000 test pictures, calibrated on training pictures. */
static void resnet20_keeps_its_answers(void **state)
{
    static const char *const way[] = { "mean", "0.485,0.456,0.406", "std", "0.229,0.224,0.225", NULL };
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_graph *g = NULL, *twin = NULL;
    qd_dataset *train = NULL, *test = NULL;
    qd_role role;
    const qd_data_limits limits = { .max_bytes = 1u << 28, .max_count = 100000 };
    const char *path = harness_data("weights/cifar10-resnet20/resnet20.onnx");
    if (!path)
        skip();
    check_ok(qd_model_open(path, NULL, &m, &err), &err);
    check_ok(qd_zoo_build(m, NULL, &g, &role, &err), &err);
    qd_model_free(m);
    path = harness_data("datasets/cifar10/train-4000.bin.gz");
    if (path)
        check_ok(qd_dataset_open(path, &limits, NULL, &train, &err), &err);
    path = harness_data("datasets/cifar10/test-1000.bin.gz");
    if (path)
        check_ok(qd_dataset_open(path, &limits, NULL, &test, &err), &err);
    if (!train || !test) {
        qd_dataset_free(train);
        qd_dataset_free(test);
        qd_graph_free(g);
        skip();
    }
    qd_quant_report r = { 0 };
    qd_graph *q = quantize(g, train, way, 2, &r);
    assert_int_equal(r.norms_folded, 19);
    assert_int_equal(count_ops(q, &qd_op_batch_norm), 0);
    assert_int_equal(count_ops(q, &qd_op_qconv2d), 19);
    assert_int_equal(count_ops(q, &qd_op_qlinear), 1);
    check_ok(qd_quant_fake_twin(q, &twin, &err), &err);
    float *fp = logits_of(g, test, 1000, way[1], way[3]), *a = logits_of(q, test, 1000, way[1], way[3]),
          *b = logits_of(twin, test, 200, way[1], way[3]);
    int right = 0, was = 0, same = 0, twins = 0;
    for (int i = 0; i < 1000; i++) {
        const int64_t top = qd_top1(a + i * 10, 10);
        was += qd_top1(fp + i * 10, 10) == qd_dataset_label(test, i);
        right += top == qd_dataset_label(test, i);
        same += top == qd_top1(fp + i * 10, 10);
        twins += i < 200 && top == qd_top1(b + i * 10, 10);
    }
    printf(
        "ResNet-20: float %d, W8A8 %d of 1000 right, %d with the same answer; SQNR of logits %.1f dB, of the twin %.1f dB\n",
        was, right, same, qd_sqnr_db(fp, a, 10000), qd_sqnr_db(a, b, 2000));
    assert_int_equal(was, 915);
    assert_true(right >= 910);
    assert_true(same >= 980);
    assert_true(twins >= 199 && qd_sqnr_db(a, b, 2000) > 40);
    assert_true(r.quantized_bytes < r.float_bytes / 3);
    free(fp);
    free(a);
    free(b);
    qd_quant_report_clear(&r);
    qd_graph_free(twin);
    qd_graph_free(q);
    qd_graph_free(g);
    qd_dataset_free(train);
    qd_dataset_free(test);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folding_changes_nothing),
        cmocka_unit_test(equalizing_changes_nothing),
        cmocka_unit_test(equalized_channels_have_equal_ranges),
        cmocka_unit_test(percentiles_cut_the_tails),
        cmocka_unit_test(integers_are_their_fake_twin),
        cmocka_unit_test(corrected_biases_keep_means),
        cmocka_unit_test(each_layer_alone_is_measured),
        cmocka_unit_test(wrong_tasks_are_refused),
        cmocka_unit_test(every_failing_allocation_is_survived),
        cmocka_unit_test(resnet20_keeps_its_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
