/* test_onnx_families.c - the families of networks that people export (golden/onnx/make_families.py) against PyTorch, for a batch of three
 * and sample by sample, and what must be recognised in each. */
#include "onnx_run.h"

#include "base/fs.h"

#define BATCH 3
#define TOLERANCE 1e-4 /* of the largest output: sums of some hundred products in another order, through ten layers */

/* How many rows of each kind there must be; -1 = any. */
typedef struct family {
    const char *name;
    int conv2d, linear, attention, group_norm, layer_norm, silu, gelu;
} family;

static const family families[] = {
    { "resnet_basic_op9", 9, 1, 0, 0, 0, 0, 0 },
    { "resnet_bottleneck_op11", 12, 1, 0, 0, 0, 0, 0 },
    { "resnet_bottleneck_op17", 12, 1, 0, 0, 0, 0, 0 },
    { "resnext_dilated_op16", 8, 1, 0, 0, 0, 0, 0 },
    { "mobilenet_v2_op9", 13, 1, 0, 0, 0, 0, 0 },
    { "mobilenet_v2_op16", 13, 1, 0, 0, 0, 0, 0 },
    { "mobilenet_v3_op14", 19, 2, 0, 0, 0, 0, 0 },
    { "efficientnet_op13", 16, 1, 0, 0, 0, 10, 0 },
    { "vgg_op9", 6, 3, 0, 0, 0, 0, 0 },
    { "densenet_op16", 17, 1, 0, 0, 0, 0, 0 },
    { "googlenet_op17", 15, 1, 0, 0, 0, 0, 0 },
    { "inception_v3_op11", 41, 1, 0, 0, 0, 0, 0 },
    { "shufflenet_v2_op11", 18, 1, 0, 0, 0, 0, 0 },
    { "squeezenet_op9", 11, 0, 0, 0, 0, 0, 0 },
    { "squeezenet_op16", 11, 0, 0, 0, 0, 0, 0 },
    { "convnext_op11", 4, 5, 0, 0, 5, 0, 2 },
    { "convnext_op17", 4, 5, 0, 0, 5, 0, 2 },
    { "vit_op11", 1, -1, 2, 0, 5, 0, 2 },
    { "vit_op17", 1, -1, 2, 0, 5, 0, 2 },
    { "swin_op13", 1, -1, 0, 0, 4, 0, 0 },
    { "unet_op13", -1, -1, 2, 6, 3, -1, 1 },
};
enum { FAMILIES = sizeof(families) / sizeof(families[0]) };

static qd_model *open_family(const char *name)
{
    char path[120];
    qd_err err = { 0 };
    qd_model *m = NULL;
    snprintf(path, sizeof(path), "tests/golden/onnx/family_%s.onnx", name);
    check_ok(qd_model_open(harness_source(path), NULL, &m, &err), &err);
    assert_string_equal(m->format, "onnx");
    check_ok(qd_graph_verify(m->graph, &err), &err);
    return m;
}

/* The numbers of make_families.py, samples [first, first + batch). */
static float *input_of(const qd_node *n, int64_t first, int64_t batch, qd_shape *shape)
{
    int64_t each = 1;
    *shape = n->shape;
    assert_int_equal(shape->dim[0], -1);
    shape->dim[0] = batch;
    for (int k = 1; k < shape->rank; k++)
        each *= shape->dim[k];
    float *v = malloc((size_t)(batch * each) * sizeof(*v));
    assert_non_null(v);
    for (int64_t i = 0; i < batch * each; i++) {
        const int64_t at = first * each + i;
        v[i] = shape->rank == 1 ? (float)(37 * at + 5) : (float)((double)((at * 7919 + 13) % 1009) / 504.5 - 1.0);
    }
    return v;
}

static void run_family(const qd_graph *g, const qd_backend *backend, int64_t first, int64_t batch, const float *want,
                       int64_t each)
{
    qd_err err = { 0 };
    qd_plan *plan = NULL;
    qd_shape shapes[QD_MAX_INPUTS];
    float *in[QD_MAX_INPUTS], *out = malloc((size_t)(batch * each) * sizeof(*out));
    const int n = qd_graph_inputs(g);
    assert_true(out && n <= QD_MAX_INPUTS && qd_graph_outputs(g) == 1);
    for (int k = 0; k < n; k++)
        in[k] = input_of(qd_graph_node(g, qd_graph_input_at(g, k)), first, batch, &shapes[k]);
    const qd_plan_options o = { .input_shapes = shapes, .n_inputs = n, .threads = 1, .backend = backend };
    check_ok(qd_plan_compile(g, &o, &plan, &err), &err);
    check_ok(qd_plan_run(plan, NULL, (const void *const *)in, (void *const[]){ out }, &err), &err);
    check_close(out, want + first * each, batch * each, 0.0, TOLERANCE);
    qd_plan_free(plan);
    for (int k = 0; k < n; k++)
        free(in[k]);
    free(out);
}

static void agree_with_pytorch(const qd_backend *backend)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    check_ok(qd_safetensors_open(harness_source("tests/golden/onnx/families.safetensors"), &w, NULL, &err), &err);
    assert_int_equal(qd_weights_count(w), FAMILIES);
    for (int k = 0; k < FAMILIES; k++) {
        char name[120];
        snprintf(name, sizeof(name), "family_%s/out/output", families[k].name);
        const qd_tensor *want = qd_weights_find(w, name);
        if (!want)
            fail_msg("no golden '%s'", name);
        print_message("%s\n", families[k].name);
        qd_model *m = open_family(families[k].name);
        const int64_t each = qd_tensor_count(want) / BATCH;
        run_family(m->graph, backend, 0, BATCH, qd_f32(want), each);
        for (int64_t sample = 0; sample < BATCH; sample++)
            run_family(m->graph, backend, sample, 1, qd_f32(want), each);
        qd_model_free(m);
    }
    qd_weights_free(w);
}

static void plain_loops_agree_with_pytorch(void **state)
{
    agree_with_pytorch(qd_backend_find("ref"));
}

static void fast_backend_agrees_with_pytorch(void **state)
{
    agree_with_pytorch(NULL);
}

static void count(const family *f, const qd_graph *g, const qd_op *op, int want)
{
    const int have = count_rows(g, op);
    if (want >= 0 && have != want)
        fail_msg("%s: %d nodes are %s, must be %d", f->name, have, op->name, want);
}

static void small_rows_are_recognised(void **state)
{
    for (int k = 0; k < FAMILIES; k++) {
        const family *f = &families[k];
        qd_model *m = open_family(f->name);
        count(f, m->graph, &qd_op_conv2d, f->conv2d);
        count(f, m->graph, &qd_op_linear, f->linear);
        count(f, m->graph, &qd_op_attention, f->attention);
        count(f, m->graph, &qd_op_group_norm, f->group_norm);
        count(f, m->graph, &qd_op_layer_norm, f->layer_norm);
        count(f, m->graph, &qd_op_silu, f->silu);
        count(f, m->graph, &qd_op_gelu, f->gelu);
        qd_model_free(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_loops_agree_with_pytorch),
        cmocka_unit_test(fast_backend_agrees_with_pytorch),
        cmocka_unit_test(small_rows_are_recognised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
