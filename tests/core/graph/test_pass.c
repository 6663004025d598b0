/* test_pass.c - rewriting one graph into another: copying with a replacement, pruning. */
#include "harness/harness.h"

#include "graph/graph.h"
#include "graph/op.h"

/* x, y -> a = x * w; b = relu(a); c = silu(y) (not needed); output b */
static qd_graph *build(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_tensor w = { 0 }, unused = { 0 };
    check_ok(qd_graph_new(&g, &err), &err);
    check_ok(qd_tensor_init(&w, QD_F32, &(qd_shape){ 1, { 3 } }, NULL, &err), &err);
    check_ok(qd_tensor_init(&unused, QD_F32, &(qd_shape){ 1, { 3 } }, NULL, &err), &err);
    const qd_node_id x = qd_graph_input(g, "x", QD_F32, &(qd_shape){ 2, { -1, 3 } });
    const qd_node_id y = qd_graph_input(g, "y", QD_F32, &(qd_shape){ 2, { -1, 3 } });
    const qd_node_id u = qd_graph_const(g, "unused", &unused);
    const qd_node_id k = qd_graph_const(g, "w", &w);
    const qd_node_id c = qd_graph_add(g, &qd_op_mul, "c", QD_IN(y, u), QD_NO_ATTRS);
    const qd_node_id a = qd_graph_add(g, &qd_op_mul, "a", QD_IN(x, k), QD_NO_ATTRS);
    qd_graph_output(g, "out", qd_graph_add(g, &qd_op_clip, "b", QD_IN(a), QD_ATTRS(QD_FLOAT("hi", 6))));
    qd_graph_add(g, &qd_op_silu, "d", QD_IN(c), QD_NO_ATTRS);
    qd_tensor_clear(&w);
    qd_tensor_clear(&unused);
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static void prune_keeps_inputs_and_needs(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = build(), *pruned = NULL;
    const void *shared = qd_graph_node(g, qd_graph_find(g, "w"))->value.data;
    check_ok(qd_graph_prune(g, &pruned, &err), &err);
    qd_graph_free(g); /* the pruned one stands alone */

    assert_int_equal(qd_graph_size(pruned), 5);
    assert_int_equal(qd_graph_inputs(pruned), 2);
    assert_int_equal(qd_graph_find(pruned, "unused"), -1);
    assert_int_equal(qd_graph_find(pruned, "c"), -1);
    assert_ptr_equal(qd_graph_node(pruned, qd_graph_find(pruned, "w"))->value.data, shared);
    assert_string_equal(qd_graph_output_name(pruned, 0), "out");
    const qd_node *b = qd_graph_node(pruned, qd_graph_output_at(pruned, 0));
    assert_string_equal(b->name, "b");
    assert_true(qd_node_float(b, "hi") == 6.0);
    qd_graph_free(pruned);
}

static void prune_refuses_a_failed_graph(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = build(), *pruned = NULL;
    qd_graph_fail(g, QD_E_FORMAT, "broken");
    check_fails(qd_graph_prune(g, &pruned, &err), QD_E_FORMAT, "broken", &err);
    assert_null(pruned);
    qd_graph_free(g);
}

/* A pass that puts a node behind "a": copy the others, redirect the map. */
static void copy_with_a_replacement(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = build(), *copy = NULL;
    qd_node_id map[16];
    check_ok(qd_graph_new(&copy, &err), &err);
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_node_id made = qd_graph_copy_node(copy, g, id, map);
        assert_int_equal(made, map[id]);
        if (id == qd_graph_find(g, "a"))
            map[id] = qd_graph_add(copy, &qd_op_relu, "a.relu", QD_IN(made), QD_NO_ATTRS);
    }
    qd_graph_copy_outputs(copy, g, map);
    check_ok(qd_graph_verify(copy, &err), &err);
    assert_int_equal(qd_graph_size(copy), qd_graph_size(g) + 1);
    const qd_node *b = qd_graph_node(copy, qd_graph_find(copy, "b"));
    assert_string_equal(qd_graph_node(copy, b->input[0])->name, "a.relu");
    qd_graph_free(copy);
    qd_graph_free(g);
}

static void copy_before_its_input_fails(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = build(), *copy = NULL;
    qd_node_id map[16];
    for (int k = 0; k < 16; k++)
        map[k] = -1;
    check_ok(qd_graph_new(&copy, &err), &err);
    assert_int_equal(qd_graph_copy_node(copy, g, qd_graph_find(g, "b"), map), -1);
    check_fails(qd_graph_verify(copy, &err), QD_E_INTERNAL, "node 'b' (clip) is copied before its input 'a'", &err);
    qd_graph_free(copy);
    qd_graph_free(g);
}

static qd_status prune_once(void *ctx, qd_err *err)
{
    qd_graph *pruned = NULL;
    const qd_status st = qd_graph_prune(ctx, &pruned, err);
    qd_graph_free(pruned);
    return st;
}

static void prune_survives_every_failed_allocation(void **state)
{
    qd_graph *g = build();
    assert_true(harness_run_each_alloc(prune_once, g, 100) > 5);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prune_keeps_inputs_and_needs),
        cmocka_unit_test(prune_refuses_a_failed_graph),
        cmocka_unit_test(copy_with_a_replacement),
        cmocka_unit_test(copy_before_its_input_fails),
        cmocka_unit_test(prune_survives_every_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
