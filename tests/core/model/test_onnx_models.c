/* test_onnx_models.c - small ONNX files (golden/onnx/make_onnx.py) against PyTorch: tiny blocks of the networks people export, opsets 7
 * to 21, and what must be recognised in them. */
#include "onnx_run.h"

#include "base/fs.h"

/* How many rows of each kind must be found; 0 = do not ask. */
typedef struct model_case {
    const char *name;
    double tolerance; /* of the largest value: sums run in another order than PyTorch's */
    int conv2d, linear, group_norm, layer_norm, silu, gelu, attention;
} model_case;

static const model_case cases[] = {
    { "resnet", 2e-6, .conv2d = 5, .linear = 1 },
    { "resnet_op9", 2e-6, .conv2d = 5, .linear = 1 },
    { "mobilenet", 2e-6, .conv2d = 9, .linear = 2 },
    { "mobilenet_op11", 2e-6, .conv2d = 9, .linear = 2 },
    { "shufflenet", 2e-6, .conv2d = 4 },
    { "shufflenet_op7", 2e-6, .conv2d = 4 },
    { "densenet", 2e-6, .conv2d = 8, .linear = 1 },
    { "inception", 2e-6, .conv2d = 5 },
    { "squeezenet", 2e-6, .conv2d = 5 },
    { "vgg", 2e-6, .conv2d = 2, .linear = 2 },
    { "vit", 1e-5, .conv2d = 1, .linear = 9, .layer_norm = 5, .gelu = 2, .attention = 2 },
    { "vit_op17", 1e-5, .conv2d = 1, .linear = 9, .layer_norm = 5, .gelu = 2, .attention = 2 },
    { "vit_op9", 1e-5, .conv2d = 1, .linear = 9, .layer_norm = 5, .gelu = 2, .attention = 2 },
    { "mha", 1e-5, .linear = 3, .layer_norm = 1, .attention = 1 },
    { "unet", 1e-5, .conv2d = 6, .linear = 7, .group_norm = 4, .silu = 5, .attention = 1 },
    { "unet_op9", 1e-5, .conv2d = 6, .linear = 7, .group_norm = 4, .silu = 5, .attention = 1 },
    { "windows", 1e-5, .conv2d = 1, .group_norm = 2 },
    { "elementwise", 1e-5, .gelu = 1 },
    { "shapes", 1e-5 },
    { "table", 2e-6, .linear = 2 },
    { "fixed_batch", 2e-6, .conv2d = 5, .linear = 1 },
    { "op_opset21", 1e-5, .group_norm = 1 },
    { "op_opset18", 1e-5, .group_norm = 1 },
    { "op_types_raw", 1e-6 },
    { "op_types_typed", 1e-6 },
    { "op_same_pads", 2e-6, .conv2d = 1 },
    { "op_gemm", 1e-5, .linear = 1 },
};
enum { N_CASES = sizeof(cases) / sizeof(cases[0]) };

static qd_model *open_case(const char *name)
{
    char path[120];
    qd_err err = { 0 };
    qd_model *m = NULL;
    snprintf(path, sizeof(path), "tests/golden/onnx/%s.onnx", name);
    check_ok(qd_model_open(harness_source(path), NULL, &m, &err), &err);
    assert_string_equal(m->format, "onnx");
    assert_non_null(m->graph);
    check_ok(qd_graph_verify(m->graph, &err), &err);
    return m;
}

static void agree_with_pytorch(const qd_backend *backend)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    check_ok(qd_safetensors_open(harness_source("tests/golden/onnx/golden.safetensors"), &w, NULL, &err), &err);
    for (int k = 0; k < N_CASES; k++) {
        char in[100], out[100];
        print_message("%s\n", cases[k].name);
        qd_model *m = open_case(cases[k].name);
        snprintf(in, sizeof(in), "%s/in/", cases[k].name);
        snprintf(out, sizeof(out), "%s/out/", cases[k].name);
        check_graph(m->graph, backend, w, in, out, cases[k].tolerance);
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

static void every_golden_is_a_case(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    check_ok(qd_safetensors_open(harness_source("tests/golden/onnx/golden.safetensors"), &w, NULL, &err), &err);
    for (int k = 0; k < qd_weights_count(w); k++) {
        const char *name = qd_weights_name(w, k);
        bool known = strncmp(name, "external/", 9) == 0; /* test_onnx_refuse.c */
        for (int c = 0; c < N_CASES; c++)
            known = known ||
                    (strncmp(name, cases[c].name, strlen(cases[c].name)) == 0 && name[strlen(cases[c].name)] == '/');
        if (!known)
            fail_msg("'%s' belongs to no case", name);
    }
    qd_weights_free(w);
}

static void count(const model_case *c, const qd_graph *g, const qd_op *op, int want)
{
    const int have = count_rows(g, op);
    if (want && have != want)
        fail_msg("%s: %d nodes are %s, must be %d", c->name, have, op->name, want);
}

static void small_rows_are_recognised(void **state)
{
    for (int k = 0; k < N_CASES; k++) {
        const model_case *c = &cases[k];
        qd_model *m = open_case(c->name);
        count(c, m->graph, &qd_op_conv2d, c->conv2d);
        count(c, m->graph, &qd_op_linear, c->linear);
        count(c, m->graph, &qd_op_group_norm, c->group_norm);
        count(c, m->graph, &qd_op_layer_norm, c->layer_norm);
        count(c, m->graph, &qd_op_silu, c->silu);
        count(c, m->graph, &qd_op_gelu, c->gelu);
        count(c, m->graph, &qd_op_attention, c->attention);
        if (c->attention) {
            assert_int_equal(count_rows(m->graph, &qd_op_softmax), 0);
            assert_int_equal(count_rows(m->graph, &qd_op_matmul), 0);
        }
        qd_model_free(m);
    }
}

static void layers_are_called_after_their_weights(void **state)
{
    qd_model *m = open_case("unet");
    static const char *const names[] = { "linear_1", "conv_in", "conv1", "time_emb_proj", "down", "up", "conv_out" };
    for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++) {
        const qd_node_id id = qd_graph_find(m->graph, names[k]);
        if (id < 0)
            fail_msg("no node is called '%s'", names[k]);
        const qd_op *op = qd_graph_node(m->graph, id)->op;
        assert_true(op == &qd_op_conv2d || op == &qd_op_linear);
    }
    assert_int_equal(qd_graph_node(m->graph, qd_graph_input_at(m->graph, 0))->shape.dim[0], -1);
    qd_model_free(m);
}

static void padding_goes_into_the_convolution(void **state)
{
    qd_model *m = open_case("unet");
    assert_int_equal(count_rows(m->graph, &qd_op_pad), 0);
    const int64_t *pads = qd_node_ints(qd_graph_node(m->graph, qd_graph_find(m->graph, "down")), "pads")->ints;
    assert_int_equal(pads[0], 0);
    assert_int_equal(pads[1], 0);
    assert_int_equal(pads[2], 1);
    assert_int_equal(pads[3], 1);
    qd_model_free(m);
}

/* Reading once, with every allocation failing in turn: the words are nomem's, and nothing is left behind. */
static qd_status read_once(void *ctx, qd_err *err)
{
    qd_model *m = NULL;
    const qd_status st = qd_model_open(ctx, NULL, &m, err);
    qd_model_free(m);
    return st;
}

static void every_allocation_may_fail(void **state)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s", harness_source("tests/golden/onnx/mha.onnx"));
    assert_true(harness_run_each_alloc(read_once, path, 20000) > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_loops_agree_with_pytorch),
        cmocka_unit_test(fast_backend_agrees_with_pytorch),
        cmocka_unit_test(every_golden_is_a_case),
        cmocka_unit_test(small_rows_are_recognised),
        cmocka_unit_test(layers_are_called_after_their_weights),
        cmocka_unit_test(padding_goes_into_the_convolution),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
