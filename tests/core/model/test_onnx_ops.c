/* test_onnx_ops.c - operators one by one, and files of codes as others write them (golden/onnx/make_ops.py), against PyTorch. */
#include "onnx_run.h"

/* How many rows of codes there must be; the tolerance is of the largest output. */
typedef struct ops_case {
    const char *name;
    double tolerance;
    int qconv2d, qlinear, quantize, fake_quant;
} ops_case;

/* Integer sums are exact and scaled once, in floats: what is left is rounding. */
static const ops_case cases[] = {
    { "ops_functions", 2e-6, 0, 0, 0, 0 }, { "ops_truth", 1e-6, 0, 0, 0, 0 },     { "ops_reduce", 5e-6, 0, 0, 0, 0 },
    { "ops_resize", 5e-6, 0, 0, 0, 0 },    { "ops_einsum", 2e-6, 0, 0, 0, 0 },    { "ops_places", 5e-6, 0, 0, 0, 0 },
    { "qdq_static", 2e-6, 2, 1, 3, 2 },    { "qdq_matmul", 2e-6, 0, 3, 1, 0 },    { "qdq_aware", 2e-6, 1, 0, 1, 1 },
    { "qdq_blocks", 2e-6, 0, 2, 1, 1 },    { "qdq_operators", 2e-6, 2, 2, 2, 1 },
};
enum { N_CASES = sizeof(cases) / sizeof(cases[0]) };

static qd_model *open_case(const char *name)
{
    char path[120];
    qd_err err = { 0 };
    qd_model *m = NULL;
    snprintf(path, sizeof(path), "tests/golden/onnx/%s.onnx", name);
    check_ok(qd_model_open(harness_source(path), NULL, &m, &err), &err);
    check_ok(qd_graph_verify(m->graph, &err), &err);
    return m;
}

static void agree_with_pytorch(const qd_backend *backend)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    check_ok(qd_safetensors_open(harness_source("tests/golden/onnx/ops.safetensors"), &w, NULL, &err), &err);
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
    check_ok(qd_safetensors_open(harness_source("tests/golden/onnx/ops.safetensors"), &w, NULL, &err), &err);
    for (int k = 0; k < qd_weights_count(w); k++) {
        const char *name = qd_weights_name(w, k);
        bool known = false;
        for (int c = 0; c < N_CASES; c++)
            known = known ||
                    (strncmp(name, cases[c].name, strlen(cases[c].name)) == 0 && name[strlen(cases[c].name)] == '/');
        if (!known)
            fail_msg("'%s' belongs to no case", name);
    }
    qd_weights_free(w);
}

static void count(const ops_case *c, const qd_graph *g, const qd_op *op, int want)
{
    const int have = count_rows(g, op);
    if (have != want)
        fail_msg("%s: %d nodes are %s, must be %d", c->name, have, op->name, want);
}

/* Layers between codes are made with integers; where a weight less its zero does not fit 8 bits, or x is floats, they are not. */
static void codes_become_integer_layers(void **state)
{
    for (int k = 0; k < N_CASES; k++) {
        const ops_case *c = &cases[k];
        qd_model *m = open_case(c->name);
        count(c, m->graph, &qd_op_qconv2d, c->qconv2d);
        count(c, m->graph, &qd_op_qlinear, c->qlinear);
        count(c, m->graph, &qd_op_quantize, c->quantize);
        count(c, m->graph, &qd_op_fake_quant, c->fake_quant);
        qd_model_free(m);
    }
}

/* Codes of 4 bits stay in 4 bits, with the scales of their blocks. */
static void blocks_become_groups(void **state)
{
    qd_model *m = open_case("qdq_blocks");
    int seen = 0;
    for (qd_node_id id = 0; id < qd_graph_size(m->graph); id++) {
        const qd_node *n = qd_graph_node(m->graph, id);
        if (n->op != &qd_op_qlinear)
            continue;
        assert_int_equal(qd_graph_node(m->graph, n->input[1])->dtype,
                         seen ? QD_I8 : QD_I4); /* 15 - 7 needs five bits */
        assert_int_equal(qd_node_int(n, "group_size"), seen ? 8 : 16);
        seen++;
    }
    assert_int_equal(seen, 2);
    qd_model_free(m);
}

/* Every allocation failing in turn while codes are read. */
static qd_status read_once(void *ctx, qd_err *err)
{
    qd_model *m = NULL;
    const qd_status st = qd_model_open(ctx, NULL, &m, err);
    qd_model_free(m);
    return st;
}

static void every_allocation_may_fail(void **state)
{
    static const char *const names[] = { "qdq_static", "qdq_blocks", "qdq_operators", "ops_einsum" };
    for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++) {
        char path[1024], relative[100];
        snprintf(relative, sizeof(relative), "tests/golden/onnx/%s.onnx", names[k]);
        snprintf(path, sizeof(path), "%s", harness_source(relative));
        assert_true(harness_run_each_alloc(read_once, path, 20000) > 300);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_loops_agree_with_pytorch), cmocka_unit_test(fast_backend_agrees_with_pytorch),
        cmocka_unit_test(every_golden_is_a_case),         cmocka_unit_test(codes_become_integer_layers),
        cmocka_unit_test(blocks_become_groups),           cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
