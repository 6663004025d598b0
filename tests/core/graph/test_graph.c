/* test_graph.c - building: ids, names, attributes, and the first failure that sticks. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "graph/graph.h"
#include "graph/op.h"

static qd_graph *fresh(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    return g;
}

static qd_tensor floats(qd_shape shape)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    return t;
}

static qd_node_id image(qd_graph *g, const char *name)
{
    const qd_shape shape = QD_SHAPE(-1, 4, 8, 8);
    return qd_graph_input(g, name, QD_F32, &shape);
}

static void builds_and_finds(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = fresh();
    qd_tensor w = floats(QD_SHAPE(6, 4, 3, 3));
    const qd_node_id x = image(g, "x");
    const qd_node_id weight = qd_graph_const(g, "conv.weight", &w);
    const int64_t stride[2] = { 2, 1 };
    const qd_node_id conv =
        qd_graph_add(g, &qd_op_conv2d, "conv", QD_IN(x, weight, -1), QD_ATTRS(qd_attr_ints("stride", 2, stride)));
    const qd_node_id affine =
        qd_graph_add(g, &qd_op_affine, "half", QD_IN(conv), QD_ATTRS(QD_INT("mul", 2), QD_FLOAT("add", 0.5)));
    qd_graph_output(g, "y", affine);
    qd_graph_output(g, "features", conv);
    qd_tensor_clear(&w); /* the graph has its own reference */
    check_ok(qd_graph_verify(g, &err), &err);

    assert_int_equal(qd_graph_size(g), 4);
    assert_int_equal(qd_graph_find(g, "conv"), conv);
    assert_int_equal(qd_graph_find(g, "conv.weight"), weight);
    assert_int_equal(qd_graph_find(g, "con"), -1);
    assert_int_equal(qd_graph_inputs(g), 1);
    assert_int_equal(qd_graph_input_at(g, 0), x);
    assert_int_equal(qd_graph_outputs(g), 2);
    assert_int_equal(qd_graph_output_at(g, 1), conv);
    assert_string_equal(qd_graph_output_name(g, 1), "features");

    const qd_node *n = qd_graph_node(g, conv);
    assert_ptr_equal(n->op, &qd_op_conv2d);
    assert_int_equal(n->n_inputs, 3);
    assert_int_equal(n->input[2], -1);
    assert_int_equal(n->n_attrs, 4);
    assert_int_equal(qd_node_ints(n, "stride")->ints[0], 2);
    assert_int_equal(qd_node_ints(n, "stride")->ints[1], 1);
    assert_int_equal(qd_node_ints(n, "pads")->n, 4);
    assert_int_equal(qd_node_ints(n, "pads")->ints[3], 0);
    assert_int_equal(qd_node_ints(n, "dilation")->ints[1], 1); /* one default, repeated */
    assert_int_equal(qd_node_int(n, "groups"), 1);
    assert_int_equal(n->shape.rank, -1);
    assert_true(qd_node_float(qd_graph_node(g, affine), "mul") == 2.0); /* an INT given where a FLOAT is declared */
    assert_int_equal(qd_graph_node(g, x)->shape.dim[0], -1);
    assert_non_null(qd_graph_node(g, weight)->value.data);
    assert_int_equal(qd_graph_node(g, weight)->value.dtype, QD_F32);
    qd_graph_free(g);
}

/* Ten thousand names: the table grows, every name is found again, lent nodes stay where they are. */
static void many_names(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = fresh();
    qd_node_id id = image(g, "x");
    const qd_node *first = qd_graph_node(g, id);
    for (int k = 0; k < 10000; k++) {
        char name[32];
        snprintf(name, sizeof name, "block.%d.act", k);
        id = qd_graph_add(g, &qd_op_relu, name, QD_IN(id), QD_NO_ATTRS);
    }
    qd_graph_output(g, "y", id);
    check_ok(qd_graph_verify(g, &err), &err);
    for (int k = 0; k < 10000; k++) {
        char name[32];
        snprintf(name, sizeof name, "block.%d.act", k);
        assert_int_equal(qd_graph_find(g, name), k + 1);
    }
    assert_ptr_equal(qd_graph_node(g, 0), first);
    assert_string_equal(first->name, "x");
    qd_graph_free(g);
}

static void first_failure_sticks(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = fresh();
    const qd_node_id x = image(g, "x");
    const qd_node_id bad = qd_graph_add(g, &qd_op_softmax, "soft", QD_IN(x), QD_ATTRS(QD_INT("axis", 9)));
    assert_int_equal(bad, -1);
    assert_int_equal(qd_graph_add(g, &qd_op_relu, "act", QD_IN(x), QD_NO_ATTRS), -1);
    assert_int_equal(image(g, "z"), -1);
    qd_graph_output(g, "y", x);
    qd_graph_fail(g, QD_E_FORMAT, "later");
    check_fails(qd_graph_verify(g, &err), QD_E_INVALID, "node 'soft' (softmax): axis must be -4..3, got 9", &err);
    assert_int_equal(qd_graph_size(g), 1);
    qd_shape shapes[4];
    check_fails(qd_graph_shapes(g, &(qd_shape){ 4, { 1, 4, 8, 8 } }, 1, shapes, &err), QD_E_INVALID, "'soft'", &err);
    qd_graph_free(g);

    g = fresh();
    qd_graph_fail(g, QD_E_NOT_FOUND, "tensor '%s' is not in the file", "a.weight");
    assert_int_equal(image(g, "x"), -1);
    check_fails(qd_graph_verify(g, &err), QD_E_NOT_FOUND, "tensor 'a.weight' is not in the file", &err);
    qd_graph_free(g);
}

/* Builds x -> one node with the given op, name, inputs and attributes, and gives what verify says. */
static qd_status one_node(const qd_op *op, const char *name, const qd_node_id *in, int n_in, const qd_attr *attrs,
                          int n_attrs, qd_err *err)
{
    qd_graph *g = fresh();
    image(g, "x");
    qd_graph_output(g, "y", qd_graph_add(g, op, name, in, n_in, attrs, n_attrs));
    const qd_status st = qd_graph_verify(g, err);
    qd_graph_free(g);
    return st;
}

static void refuses_wiring(void **state)
{
    qd_err err = { 0 };
    char name[300];
    memset(name, 'a', sizeof name);
    name[200] = 0;
    check_ok(one_node(&qd_op_relu, name, QD_IN(0), QD_NO_ATTRS, &err), &err);
    name[200] = 'a';
    name[201] = 0;
    check_fails(one_node(&qd_op_relu, name, QD_IN(0), QD_NO_ATTRS, &err), QD_E_INVALID, "longer than 200 bytes", &err);
    check_fails(one_node(&qd_op_relu, "", QD_IN(0), QD_NO_ATTRS, &err), QD_E_INVALID, "is empty", &err);
    check_fails(one_node(&qd_op_relu, "a\nb", QD_IN(0), QD_NO_ATTRS, &err), QD_E_INVALID, "control character", &err);
    check_fails(one_node(&qd_op_relu, "x", QD_IN(0), QD_NO_ATTRS, &err), QD_E_INVALID,
                "the name is taken by node 0 (input)", &err);
    check_fails(one_node(&qd_op_relu, "n", QD_IN(1), QD_NO_ATTRS, &err), QD_E_INVALID,
                "input 0 is node 1, there are 1 nodes before it", &err);
    check_fails(one_node(&qd_op_relu, "n", QD_IN(-2), QD_NO_ATTRS, &err), QD_E_INVALID, "input 0 is node -2", &err);
    check_fails(one_node(&qd_op_relu, "n", QD_IN(-1), QD_NO_ATTRS, &err), QD_E_INVALID, "input 0 is missing", &err);
    check_fails(one_node(&qd_op_relu, "n", QD_IN(0, 0), QD_NO_ATTRS, &err), QD_E_INVALID, "has 2 inputs, takes 1 to 1",
                &err);
    check_fails(one_node(&qd_op_add, "n", QD_IN(0), QD_NO_ATTRS, &err), QD_E_INVALID, "has 1 inputs, takes 2 to 2",
                &err);
    check_fails(one_node(&qd_op_const, "n", NULL, 0, QD_NO_ATTRS, &err), QD_E_INVALID, "(const)", &err);
    check_fails(one_node(&qd_op_group_norm, "n", QD_IN(0), QD_NO_ATTRS, &err), QD_E_INVALID,
                "attribute groups must be given", &err);
    check_fails(one_node(&qd_op_softmax, "n", QD_IN(0), QD_ATTRS(QD_INT("axes", 1)), &err), QD_E_INVALID,
                "there is no attribute 'axes'", &err);
    check_fails(one_node(&qd_op_softmax, "n", QD_IN(0), QD_ATTRS(QD_FLOAT("axis", 1)), &err), QD_E_INVALID,
                "axis is of another kind", &err);
    check_fails(one_node(&qd_op_softmax, "n", QD_IN(0), QD_ATTRS(QD_INT("axis", 1), QD_INT("axis", 1)), &err),
                QD_E_INVALID, "axis is given twice", &err);
    check_fails(one_node(&qd_op_reshape, "n", QD_IN(0),
                         QD_ATTRS((qd_attr){ .name = "shape", .kind = QD_ATTR_INTS, .n = 9 }), &err),
                QD_E_INVALID, "shape has 9 values, must have at most 8", &err);
}

static void refuses_ends(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = fresh();
    image(g, "x");
    check_fails(qd_graph_verify(g, &err), QD_E_INVALID, "no output", &err);
    qd_graph_output(g, "y", 0);
    qd_graph_output(g, "y", 0);
    check_fails(qd_graph_verify(g, &err), QD_E_INVALID, "output 'y' is named twice", &err);
    qd_graph_free(g);

    g = fresh();
    image(g, "x");
    qd_graph_output(g, "y", 1);
    check_fails(qd_graph_verify(g, &err), QD_E_INVALID, "output 'y' is node 1 of 1", &err);
    qd_graph_free(g);

    const qd_shape bad[] = { { 2, { 3, -1 } }, { 2, { -1, 0 } }, { 2, { -2, 4 } },
                             { 9, { 1 } },     { -1, { 1 } },    { 2, { 1ll << 40, 2 } } };
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        g = fresh();
        qd_graph_input(g, "x", QD_F32, &bad[k]);
        check_fails(qd_graph_verify(g, &err), QD_E_INVALID, "input 'x' cannot have shape", &err);
        qd_graph_free(g);
    }
    g = fresh();
    qd_graph_input(g, "x", QD_I4, &(qd_shape){ 1, { 4 } });
    check_fails(qd_graph_verify(g, &err), QD_E_INVALID, "dtype of whole bytes", &err);
    qd_graph_free(g);
    g = fresh();
    qd_graph_const(g, "w", &(qd_tensor){ 0 });
    check_fails(qd_graph_verify(g, &err), QD_E_INVALID, "constant 'w' is empty", &err);
    qd_graph_free(g);
    qd_graph_free(NULL);
}

static void node_limit(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = fresh();
    qd_node_id id = image(g, "x");
    for (int k = 1; k <= QD_MAX_NODES; k++) {
        char name[32];
        snprintf(name, sizeof name, "%d", k);
        id = qd_graph_add(g, &qd_op_relu, name, QD_IN(id), QD_NO_ATTRS);
        assert_int_equal(id, k < QD_MAX_NODES ? k : -1);
    }
    check_fails(qd_graph_verify(g, &err), QD_E_LIMIT, "is one more than the 65536 a graph may have", &err);
    qd_graph_free(g);
}

static qd_status build_without_memory(void *ctx, qd_err *err)
{
    qd_graph *g = NULL;
    qd_status st = qd_graph_new(&g, err);
    if (st)
        return st;
    qd_node_id id = image(g, "x");
    for (int k = 0; k < 40; k++) {
        char name[32];
        snprintf(name, sizeof name, "act%d", k);
        id = qd_graph_add(g, k ? &qd_op_relu : &qd_op_add, name, (qd_node_id[]){ id, id }, k ? 1 : 2, QD_NO_ATTRS);
    }
    qd_graph_const(g, "w", ctx);
    qd_graph_output(g, "y", id);
    st = qd_graph_verify(g, err);
    qd_graph_free(g);
    return st;
}

static void survives_every_failed_allocation(void **state)
{
    qd_tensor w = floats(QD_SHAPE(3));
    assert_true(harness_run_each_alloc(build_without_memory, &w, 200) > 5);
    qd_tensor_clear(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(builds_and_finds),
        cmocka_unit_test(many_names),
        cmocka_unit_test(first_failure_sticks),
        cmocka_unit_test(refuses_wiring),
        cmocka_unit_test(refuses_ends),
        cmocka_unit_test(node_limit),
        cmocka_unit_test(survives_every_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
