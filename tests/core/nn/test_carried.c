/* test_carried.c - graphs that come with a model: what they are taken for, and under which names they go on. */
#include "harness/harness.h"

#include <string.h>

#include "graph/op.h"
#include "nn/nn.h"

static qd_graph *graph_new(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    return g;
}

static qd_node_id input(qd_graph *g, const char *name, qd_dtype dtype, qd_shape shape)
{
    return qd_graph_input(g, name, dtype, &shape);
}

/* What zoo makes of it; frees g. */
static qd_graph *build(qd_graph *g, qd_role *role)
{
    qd_err err = { 0 };
    qd_model m = { .format = "onnx", .graph = g };
    qd_graph *built = NULL;
    check_ok(qd_zoo_build(&m, NULL, &built, role, &err), &err);
    qd_graph_free(g);
    return built;
}

/* x [N, 2, 4, 4] plus something of t [N], given back in x's shape. */
static qd_graph *denoiser(const char *x_name, const char *t_name, qd_dtype time)
{
    qd_graph *g = graph_new();
    const qd_node_id x = input(g, x_name, QD_F32, QD_SHAPE(-1, 2, 4, 4)), t = input(g, t_name, time, QD_SHAPE(-1));
    const qd_node_id f = qd_graph_add(g, &qd_op_cast, "cast", QD_IN(t), QD_NO_ATTRS);
    const int64_t shape[4] = { 0, 1, 1, 1 };
    const qd_node_id s = qd_graph_add(g, &qd_op_reshape, "shaped", QD_IN(f), QD_ATTRS(qd_attr_ints("shape", 4, shape)));
    qd_graph_output(g, "noise", qd_graph_add(g, &qd_op_add, "sum", QD_IN(x, s), QD_NO_ATTRS));
    return g;
}

static void a_picture_and_a_time_are_a_denoiser(void **state)
{
    for (int k = 0; k < 2; k++) {
        qd_role role = QD_ROLE_OTHER;
        qd_graph *g = build(denoiser("x", "t", k ? QD_F32 : QD_I64), &role);
        assert_int_equal(role, QD_ROLE_DENOISER);
        assert_int_equal(qd_graph_inputs(g), 2);
        assert_string_equal(qd_graph_node(g, qd_graph_input_at(g, 0))->name, "sample");
        assert_string_equal(qd_graph_node(g, qd_graph_input_at(g, 1))->name, "timestep");
        assert_string_equal(qd_graph_output_name(g, 0), "eps");
        assert_int_equal(qd_graph_node(g, qd_graph_find(g, "sample"))->shape.dim[0], -1);
        assert_true(qd_graph_find(g, "sum") >= 0);
        qd_graph_free(g);
    }
}

static void names_of_the_house_stay(void **state)
{
    qd_role role = QD_ROLE_OTHER;
    qd_graph *g = build(denoiser("sample", "timestep", QD_F32), &role);
    assert_int_equal(role, QD_ROLE_DENOISER);
    assert_string_equal(qd_graph_output_name(g, 0), "noise");
    qd_graph_free(g);
}

/* One picture in, `shape` of it out. */
static qd_role role_of_one_picture(bool answer_is_picture)
{
    qd_role role = QD_ROLE_DENOISER;
    qd_graph *g = graph_new();
    const qd_node_id x = input(g, "image", QD_F32, QD_SHAPE(-1, 3, 4, 4));
    const qd_op *op = answer_is_picture ? &qd_op_relu : &qd_op_global_avg_pool;
    qd_graph_output(g, "out", qd_graph_add(g, op, "node", QD_IN(x), QD_NO_ATTRS));
    qd_graph_free(build(g, &role));
    return role;
}

static void a_picture_alone_is_a_classifier(void **state)
{
    assert_int_equal(role_of_one_picture(false), QD_ROLE_CLASSIFIER);
    assert_int_equal(role_of_one_picture(true), QD_ROLE_OTHER); /* pictures to pictures, without a time: no classes */
}

static void other_inputs_are_something_else(void **state)
{
    qd_role role = QD_ROLE_DENOISER;
    qd_graph *g = graph_new();
    const qd_node_id x = input(g, "x", QD_F32, QD_SHAPE(-1, 7));
    qd_graph_output(g, "out", qd_graph_add(g, &qd_op_relu, "node", QD_IN(x), QD_NO_ATTRS));
    qd_graph_free(build(g, &role));
    assert_int_equal(role, QD_ROLE_OTHER);
}

static void what_no_output_needs_is_left_out(void **state)
{
    qd_role role;
    qd_graph *g = denoiser("x", "t", QD_F32);
    qd_graph_add(g, &qd_op_relu, "idle", QD_IN(0), QD_NO_ATTRS);
    g = build(g, &role);
    assert_true(qd_graph_find(g, "idle") < 0);
    qd_graph_free(g);
}

static qd_status build_once(void *ctx, qd_err *err)
{
    const qd_model m = { .format = "onnx", .graph = ctx };
    qd_graph *built = NULL;
    qd_role role;
    const qd_status st = qd_zoo_build(&m, NULL, &built, &role, err);
    qd_graph_free(built);
    return st;
}

static void every_allocation_may_fail(void **state)
{
    qd_graph *g = denoiser("x", "t", QD_F32);
    assert_true(harness_run_each_alloc(build_once, g, 200) > 5);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_picture_and_a_time_are_a_denoiser), cmocka_unit_test(names_of_the_house_stay),
        cmocka_unit_test(a_picture_alone_is_a_classifier),     cmocka_unit_test(other_inputs_are_something_else),
        cmocka_unit_test(what_no_output_needs_is_left_out),    cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
