/* test_classifiers.c - classifiers built from tensors alone: small ones of each naming against PyTorch, the trained ones against the
 * vectors and counts they came with, through ONNX and through safetensors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "data/data.h"
#include "graph/op.h"
#include "metrics/metrics.h"
#include "run_graph.h"

static void count_warning(void *ctx, const char *text)
{
    print_message("  warning: %s\n", text);
    ++*(int *)ctx;
}

/* The graph of a model; config NULL = what the file says, or nothing. */
static qd_graph *open_graph(const char *path, const char *config, qd_role want, int *warnings)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_role role = QD_ROLE_OTHER;
    int ignored = 0;
    const qd_run run = { .ctx = warnings ? warnings : &ignored, .warn = count_warning };
    check_ok(qd_model_open(path, NULL, &m, &err), &err);
    if (config) {
        assert_null(m->config);
        m->config = parse_config(config);
    }
    check_ok(qd_zoo_build(m, &run, &g, &role, &err), &err);
    assert_int_equal(role, want);
    qd_model_free(m); /* the graph keeps what it needs */
    return g;
}

static qd_weights *open_golden(const char *path)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    check_ok(qd_safetensors_open(path, &w, NULL, &err), &err);
    return w;
}

static const qd_tensor *stored(const qd_weights *w, const char *before, const char *name)
{
    char text[100];
    snprintf(text, sizeof(text), "%s%s", before, name);
    const qd_tensor *t = qd_weights_find(w, text);
    if (!t)
        fail_msg("no tensor '%s' in the golden file", text);
    return t;
}

/* Every output of the graph for "<before>input" on each backend, within `tolerance` of the largest. */
static void check_answers(const qd_graph *g, const qd_weights *w, const char *before, double tolerance)
{
    const qd_tensor *x = stored(w, before, "input");
    const int n = qd_graph_outputs(g);
    void *outs[2] = { NULL };
    assert_true(n <= 2);
    for (int b = 0; qd_backends[b]; b++) {
        for (int k = 0; k < n; k++)
            outs[k] = qd_alloc_aligned(qd_tensor_bytes(stored(w, before, qd_graph_output_name(g, k))));
        run_graph_many(g, qd_backends[b], x->shape.dim[0], (const void *[]){ x->data }, outs, NULL, 0);
        for (int k = 0; k < n; k++) {
            const qd_tensor *want = stored(w, before, qd_graph_output_name(g, k));
            check_close((const float *)outs[k], qd_f32(want), qd_tensor_count(want), 0.0, tolerance);
            qd_free(outs[k]);
        }
    }
}

#define SMALL "tests/golden/nn/classifiers/"

/* Sums of some hundred products in another order than PyTorch's: 1e-5 of the largest answer. */
static void small_ones(void **state)
{
    static const struct {
        const char *name, *config;
        bool found; /* without any config */
    } rows[] = { { "option_a", NULL, true },
                 { "option_b", NULL, true },
                 { "torchvision", "{\"_class_name\":\"ResNet\",\"image_size\":32,\"num_classes\":7}", false },
                 { "bottleneck", "{\"image_size\":32}", true }, /* a config without a class: the tensors tell */
                 { "pytorchcv", NULL, true },
                 { "dwnet", NULL, true },
                 { "dwnet", "{\"_class_name\":\"DWNet\",\"strides\":[1,2,1,2]}", false } };
    qd_weights *w = open_golden(harness_source(SMALL "golden.safetensors"));
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        char path[100], before[40];
        print_message("  %s\n", rows[k].name);
        snprintf(path, sizeof(path), SMALL "%s.pth", rows[k].name);
        snprintf(before, sizeof(before), "%s.", rows[k].name);
        qd_graph *g = open_graph(harness_source(path), rows[k].config, QD_ROLE_CLASSIFIER, NULL);
        check_answers(g, w, before, 1e-5);
        qd_graph_free(g);
    }
    qd_weights_free(w);
}

/* Without a word about it, a 7x7 stem is for pictures of 224. */
static void the_stem_tells_the_size(void **state)
{
    qd_graph *g = open_graph(harness_source(SMALL "torchvision.pth"), NULL, QD_ROLE_CLASSIFIER, NULL);
    const qd_shape *s = &qd_graph_node(g, qd_graph_input_at(g, 0))->shape;
    assert_true(s->rank == 4 && s->dim[0] == -1 && s->dim[1] == 3 && s->dim[2] == 224 && s->dim[3] == 224);
    qd_graph_free(g);
}

/* Parameters as published, running statistics beside them: two to each norm's two. */
static void depths(void **state)
{
    static const struct {
        int depth;
        int64_t params;
    } rows[] = { { 20, 269722 },   { 32, 464154 },   { 44, 658586 },   { 56, 853018 },
                 { 110, 1727962 }, { 18, 11689512 }, { 34, 21797672 }, { 50, 25557032 } };
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        char config[160];
        int64_t n = 0;
        snprintf(config, sizeof(config), "{\"_class_name\":\"ResNet\",\"depth\":%d}", rows[k].depth);
        qd_graph *g = blank_graph(config);
        for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
            const qd_node *node = qd_graph_node(g, id);
            if (node->op == &qd_op_const && !strstr(node->name, ".running_"))
                n += qd_tensor_count(&node->value);
        }
        print_message("  ResNet-%d: %lld\n", rows[k].depth, (long long)n);
        assert_int_equal(n, rows[k].params);
        qd_graph_free(g);
    }
}

static void build_fails(const char *config, qd_status status, const char *words)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_fails(qd_zoo_random(config, 1, &g, &err), status, words, &err);
    assert_null(g);
}

static void file_fails(const char *file, const char *config, qd_status status, const char *words)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_role role;
    char path[100];
    snprintf(path, sizeof(path), SMALL "%s", file);
    check_ok(qd_model_open(harness_source(path), NULL, &m, &err), &err);
    m->config = config ? parse_config(config) : NULL;
    check_fails(qd_zoo_build(m, NULL, &g, &role, &err), status, words, &err);
    assert_null(g);
    qd_model_free(m);
}

static void what_does_not_fit(void **state)
{
    build_fails("{\"_class_name\":\"ResNet\"}", QD_E_INVALID, "'depth' is missing");
    build_fails("{\"_class_name\":\"ResNet\",\"depth\":21}", QD_E_INVALID, "'depth' is 21");
    build_fails("{\"_class_name\":\"ResNet\",\"depth\":20,\"image_size\":4}", QD_E_FORMAT, "'image_size'");
    build_fails("{\"_class_name\":\"DWNet\",\"strides\":[1]}", QD_E_INVALID, "'strides' has 1 entries for 5 blocks");
    build_fails("{\"_class_name\":\"LayerNormUNet\",\"sample_size\":32}", QD_E_INVALID, "of side 32");
    file_fails("option_a.pth", "{\"_class_name\":\"ResNet\",\"depth\":20}", QD_E_INVALID,
               "'depth' is 20, the tensors of the file say 10");
    file_fails("option_a.pth", "{\"num_classes\":10}", QD_E_INVALID,
               "'num_classes' is 10, the tensors of the file say 7");
    file_fails("option_a.pth", "{\"_class_name\":\"DWNet\"}", QD_E_FORMAT, "no DWNet");
    file_fails("dwnet.pth", "{\"_class_name\":\"ResNet\"}", QD_E_FORMAT, "no ResNet");
    file_fails("dwnet.pth", "{\"_class_name\":\"LayerNormUNet\"}", QD_E_FORMAT, "no LayerNormUNet");
}

static void random_ones_run(void **state)
{
    static const char *const configs[] = {
        "{\"_class_name\":\"ResNet\",\"depth\":8,\"image_size\":16}",
        "{\"_class_name\":\"ResNet\",\"depth\":18,\"image_size\":64,\"num_classes\":10}", "{\"_class_name\":\"DWNet\"}"
    };
    for (int k = 0; k < 3; k++) {
        qd_err err = { 0 };
        qd_graph *g = NULL;
        check_ok(qd_zoo_random(configs[k], 3, &g, &err), &err);
        const qd_shape *s = &qd_graph_node(g, qd_graph_input_at(g, 0))->shape;
        const int64_t n = s->dim[1] * s->dim[2] * s->dim[3];
        float *x = qd_alloc_aligned((size_t)n * sizeof(*x)), logits[10], features[128];
        harness_normal(x, n, 5, 1.0f);
        run_graph_many(g, NULL, 1, (const void *[]){ x }, (void *[]){ logits, features }, NULL, 0);
        for (int j = 0; j < 10; j++)
            assert_true(isfinite(logits[j]) && logits[j] != logits[(j + 1) % 10]);
        qd_free(x);
        qd_graph_free(g);
    }
}

/* What lies in a checkpoint beside the weights is told. */
static void the_choice_is_told(void **state)
{
    int warnings = 0;
    qd_graph_free(open_graph(harness_source(SMALL "option_a.pth"), NULL, QD_ROLE_CLASSIFIER, &warnings));
    assert_int_equal(warnings, 1);
    qd_graph_free(open_graph(harness_source(SMALL "option_b.pth"), NULL, QD_ROLE_CLASSIFIER, &warnings));
    assert_int_equal(warnings, 1); /* nothing but the network in there */
}

/* --- the trained networks --- */

/* One network by both ways: the golden vectors at 1e-5 of the largest, where its README expects 1e-4 absolute. */
static void check_both_ways(const char *folder, const char *name)
{
    static const char *const ways[] = { "onnx", "safetensors" };
    char path[200];
    snprintf(path, sizeof(path), "weights/%s/golden.safetensors", folder);
    if (!harness_data(path))
        skip();
    qd_weights *w = open_golden(harness_data(path));
    for (int k = 0; k < 2; k++) {
        snprintf(path, sizeof(path), "weights/%s/%s.%s", folder, name, ways[k]);
        qd_graph *g = open_graph(harness_data(path), NULL, QD_ROLE_CLASSIFIER, NULL);
        check_answers(g, w, "", 1e-5);
        qd_graph_free(g);
    }
    qd_weights_free(w);
}

static void trained_resnet20(void **state)
{
    check_both_ways("cifar10-resnet20", "resnet20");
}

static void trained_resnet32(void **state)
{
    check_both_ways("cifar10-resnet32", "resnet32");
}

static void trained_dwnet(void **state)
{
    check_both_ways("fmnist-dwnet", "dwnet");
}

static void check_count(const char *folder, const char *name, int64_t want)
{
    static const char *const ways[] = { "onnx", "safetensors" };
    const qd_data_limits limits = { .max_bytes = 1u << 30, .max_count = 1 << 20 };
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    qd_pixel_scale scale;
    const char *data = harness_data("datasets/cifar10/test-1000.bin.gz");
    if (!data)
        skip();
    check_ok(qd_dataset_open(data, &limits, NULL, &d, &err), &err);
    assert_int_equal(d->count, 1000);
    check_ok(qd_pixel_scale_parse("0.485, 0.456, 0.406", "0.229, 0.224, 0.225", 3, &scale, &err), &err);
    for (int k = 0; k < 2; k++) {
        char path[200];
        qd_classifier c;
        int64_t right = 0;
        snprintf(path, sizeof(path), "weights/%s/%s.%s", folder, name, ways[k]);
        qd_graph *g = open_graph(harness_data(path), NULL, QD_ROLE_CLASSIFIER, NULL);
        check_ok(qd_classifier_of(g, &c, &err), &err);
        float *logits = qd_calloc(1000, (size_t)c.classes * sizeof(*logits));
        const qd_classify_job job = { .data = d, .count = 1000, .batch = 50, .scale = &scale, .phase = "test" };
        const qd_run run = { .threads = 1 };
        check_ok(qd_classify(&c, &job, &run, logits, NULL, &err), &err);
        for (int64_t j = 0; j < 1000; j++)
            right += qd_top1(logits + j * c.classes, c.classes) == qd_dataset_label(d, j);
        print_message("  %s: %lld of 1000\n", path, (long long)right);
        assert_int_equal(right, want);
        qd_free(logits);
        qd_graph_free(g);
    }
    qd_dataset_free(d);
}

/* As counted by PyTorch when the weights were put into both forms. */
static void right_answers(void **state)
{
    check_count("cifar10-resnet20", "resnet20", 915);
    check_count("cifar10-resnet32", "resnet32", 928);
}

static void trained_layer_norm_unet(void **state)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    const char *path = harness_data("weights/mnist-ddpm-layernorm-unet/golden.safetensors");
    if (!path)
        skip();
    qd_weights *w = open_golden(path);
    qd_graph *g = open_graph(harness_data("weights/mnist-ddpm-layernorm-unet/ddpm_mnist.safetensors"), NULL,
                             QD_ROLE_DENOISER, NULL);
    const qd_tensor *x = stored(w, "", "x"), *eps = stored(w, "", "eps");
    check_ok(qd_tensor_cast(&t, stored(w, "", "t"), QD_F32, NULL, &err), &err);
    float *out = qd_alloc_aligned(qd_tensor_bytes(eps));
    for (int b = 0; qd_backends[b]; b++) {
        run_graph(g, qd_backends[b], x->shape.dim[0], (const void *[]){ x->data, t.data }, out, NULL, 0);
        check_close(out, qd_f32(eps), qd_tensor_count(eps), 0.0, 1e-4); /* its README expects 1e-3 */
    }
    qd_free(out);
    qd_tensor_clear(&t);
    qd_graph_free(g);
    qd_weights_free(w);
}

/* --- memory, cancelling --- */

static qd_status build_small(void *ctx, qd_err *err)
{
    qd_graph *g = NULL;
    qd_role role;
    const qd_status st = qd_zoo_build(ctx, NULL, &g, &role, err);
    qd_graph_free(g);
    return st;
}

static void allocations_fail(void **state)
{
    static const char *const files[] = { "option_a.pth", "bottleneck.pth", "dwnet.pth" };
    for (int k = 0; k < 3; k++) {
        qd_err err = { 0 };
        qd_model *m = NULL;
        char path[100];
        snprintf(path, sizeof(path), SMALL "%s", files[k]);
        check_ok(qd_model_open(harness_source(path), NULL, &m, &err), &err);
        assert_true(harness_run_each_alloc(build_small, m, 5000) > 10);
        qd_model_free(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_ones),
        cmocka_unit_test(the_stem_tells_the_size),
        cmocka_unit_test(depths),
        cmocka_unit_test(what_does_not_fit),
        cmocka_unit_test(random_ones_run),
        cmocka_unit_test(the_choice_is_told),
        cmocka_unit_test(trained_resnet20),
        cmocka_unit_test(trained_resnet32),
        cmocka_unit_test(trained_dwnet),
        cmocka_unit_test(right_answers),
        cmocka_unit_test(trained_layer_norm_unet),
        cmocka_unit_test(allocations_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
