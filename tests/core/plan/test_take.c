/* test_take.c - a plan that takes its graph apart: the same answers, and the network never in memory twice. */
#include "harness/harness.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "nn/nn.h"
#include "plan/plan.h"

/* Transformers, split shortcuts, time layers: every kind of step that holds weights. Channels fill oneDNN's blocks. */
static const char config[] =
    "{\"_class_name\":\"UNet2DConditionModel\",\"sample_size\":8,\"in_channels\":4,\"out_channels\":4,"
    "\"block_out_channels\":[64,128],\"layers_per_block\":2,\"norm_num_groups\":32,\"attention_head_dim\":4,"
    "\"cross_attention_dim\":64,\"context_length\":16,\"down_block_types\":[\"CrossAttnDownBlock2D\",\"DownBlock2D\"],"
    "\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\"]}";

typedef struct outcome {
    float out[2 * 256];
    size_t parameters, held, peak, packed, arena; // bytes
} outcome;

static qd_graph *build(qd_budget *budget)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_config *c = NULL;
    qd_weight_source *w = NULL;
    check_ok(qd_config_parse(config, strlen(config), "config", &c, &err), &err);
    check_ok(qd_weight_source_random(3, budget, &w, &err), &err);
    check_ok(qd_network_kind_find("UNet2DConditionModel")->build(c, w, NULL, &g, &err), &err);
    qd_weight_source_free(w);
    qd_config_free(c);
    return g;
}

static void run(const qd_backend *backend, bool take, outcome *o)
{
    static float x[2 * 256], context[2 * 16 * 64];
    const float t[2] = { 10, 700 };
    const void *in[3] = { x, t, context };
    void *out[1] = { o->out };
    const qd_shape shapes[3] = { QD_SHAPE(2, 4, 8, 8), QD_SHAPE(2), QD_SHAPE(2, 16, 64) };
    qd_err err = { 0 };
    qd_budget budget;
    qd_plan *plan = NULL;
    qd_budget_init(&budget, 0);
    qd_graph *g = build(&budget);
    o->parameters = budget.used_bytes;
    assert_int_equal(o->parameters, qd_graph_param_bytes(g));
    const qd_plan_options options = { .input_shapes = shapes,
                                      .n_inputs = 3,
                                      .threads = 1,
                                      .backend = backend,
                                      .budget = &budget,
                                      .take = take ? g : NULL };
    check_ok(qd_plan_compile(g, &options, &plan, &err), &err);
    o->held = budget.used_bytes;
    o->peak = budget.peak_bytes;
    o->packed = qd_plan_weight_bytes(plan);
    o->arena = qd_plan_arena_bytes(plan);
    qd_graph_free(g);
    harness_normal(x, 2 * 256, 1, 1.0f);
    harness_normal(context, 2 * 16 * 64, 2, 1.0f);
    check_ok(qd_plan_run(plan, NULL, in, out, &err), &err);
    qd_plan_free(plan);
    assert_int_equal(budget.used_bytes, 0);
}

static void weights_are_let_go(void **state)
{
    static outcome whole, taken;
    run(&qd_backend_cpu, false, &whole);
    run(&qd_backend_cpu, true, &taken);
    print_message("parameters %zu bytes, packed %zu, arena %zu; peak %zu, %zu when taken\n", whole.parameters,
                  whole.packed, whole.arena, whole.peak, taken.peak);
    assert_memory_equal(whole.out, taken.out, sizeof(whole.out));
    assert_int_equal(whole.held, whole.parameters + whole.packed + whole.arena);
    assert_true(whole.packed > whole.parameters * 8 / 10); /* else there is nothing to save */
    /* What is left of the graph is what steps read as it is: time layers, norms, biases. */
    assert_true(taken.held < taken.packed + taken.arena + taken.parameters / 5);
    assert_true(taken.peak < whole.peak - whole.parameters * 6 / 10);
}

/* The plain loops read constants where they lie, and keep them. */
static void plain_loops_keep_theirs(void **state)
{
    static outcome whole, taken;
    run(&qd_backend_ref, false, &whole);
    run(&qd_backend_ref, true, &taken);
    assert_memory_equal(whole.out, taken.out, sizeof(whole.out));
}

static qd_status compile_once(void *ctx, qd_err *err)
{
    const qd_shape shapes[3] = { QD_SHAPE(1, 4, 8, 8), QD_SHAPE(1), QD_SHAPE(1, 16, 64) };
    qd_plan *plan = NULL;
    qd_mem_fault_set(-1); /* building is not what is tested */
    qd_graph *g = build(NULL);
    qd_mem_fault_set(*(long *)ctx);
    const qd_plan_options options = { .input_shapes = shapes, .n_inputs = 3, .backend = &qd_backend_cpu, .take = g };
    const qd_status st = qd_plan_compile(g, &options, &plan, err);
    const bool hit = qd_mem_fault_hit();
    qd_mem_fault_set(-1);
    *(long *)ctx = hit ? *(long *)ctx : -1;
    qd_plan_free(plan);
    qd_graph_free(g);
    return st;
}

/* Some hundred places, spread over all of compiling. */
static void allocations_fail(void **state)
{
    for (long k = 0;; k = k < 40 ? k + 1 : k + 1 + k / 8) {
        qd_err err = { 0 };
        long at = k;
        const qd_status st = compile_once(&at, &err);
        if (at < 0) {
            check_ok(st, &err);
            assert_true(k > 100);
            break;
        }
        check_fails(st, QD_E_NOMEM, NULL, &err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_let_go),
        cmocka_unit_test(plain_loops_keep_theirs),
        cmocka_unit_test(allocations_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
