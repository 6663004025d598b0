/* test_graph_check.c - shapes for a batch, uses, cost, size, and the listing. */
#include "harness/harness.h"

#include <string.h>

#include "base/bytes.h"
#include "graph/graph.h"
#include "graph/op.h"

/* x [-1, 4, 8, 8] -> conv 4 -> 6, 3x3, stride 2, pad 1 -> silu -> residual sum with itself -> tokens -> attention -> output */
typedef struct small {
    qd_graph *g;
    qd_node_id x, weight, bias, conv, act, sum, tokens, turned, attention;
} small;

static small build(void)
{
    qd_err err = { 0 };
    small s = { 0 };
    check_ok(qd_graph_new(&s.g, &err), &err);
    qd_tensor w = { 0 }, b = { 0 };
    check_ok(qd_tensor_init(&w, QD_F32, &(qd_shape){ 4, { 6, 4, 3, 3 } }, NULL, &err), &err);
    check_ok(qd_tensor_init(&b, QD_F32, &(qd_shape){ 1, { 6 } }, NULL, &err), &err);
    const int64_t two[2] = { 2, 2 }, ones[4] = { 1, 1, 1, 1 }, to[3] = { 0, 0, -1 }, perm[3] = { 0, 2, 1 };
    s.x = qd_graph_input(s.g, "x", QD_F32, &(qd_shape){ 4, { -1, 4, 8, 8 } });
    s.weight = qd_graph_const(s.g, "conv.weight", &w);
    s.bias = qd_graph_const(s.g, "conv.bias", &b);
    s.conv = qd_graph_add(s.g, &qd_op_conv2d, "conv", QD_IN(s.x, s.weight, s.bias),
                          QD_ATTRS(qd_attr_ints("stride", 2, two), qd_attr_ints("pads", 4, ones)));
    s.act = qd_graph_add(s.g, &qd_op_silu, "act", QD_IN(s.conv), QD_NO_ATTRS);
    s.sum = qd_graph_add(s.g, &qd_op_add, "sum", QD_IN(s.act, s.conv), QD_NO_ATTRS);
    s.tokens = qd_graph_add(s.g, &qd_op_reshape, "tokens", QD_IN(s.sum), QD_ATTRS(qd_attr_ints("shape", 3, to)));
    s.turned = qd_graph_add(s.g, &qd_op_permute, "turned", QD_IN(s.tokens), QD_ATTRS(qd_attr_ints("perm", 3, perm)));
    s.attention = qd_graph_add(s.g, &qd_op_attention, "attention", QD_IN(s.turned, s.turned, s.turned),
                               QD_ATTRS(QD_INT("heads", 2)));
    qd_graph_output(s.g, "y", s.attention);
    qd_graph_output(s.g, "features", s.sum);
    qd_tensor_clear(&w);
    qd_tensor_clear(&b);
    check_ok(qd_graph_verify(s.g, &err), &err);
    return s;
}

static void shapes_for_a_batch(void **state)
{
    qd_err err = { 0 };
    small s = build();
    qd_shape shapes[16];
    check_ok(qd_graph_shapes(s.g, &(qd_shape){ 4, { 5, 4, 8, 8 } }, 1, shapes, &err), &err);
    assert_true(qd_shape_equal(&shapes[s.conv], &(qd_shape){ 4, { 5, 6, 4, 4 } }));
    assert_true(qd_shape_equal(&shapes[s.tokens], &(qd_shape){ 3, { 5, 6, 16 } }));
    assert_true(qd_shape_equal(&shapes[s.attention], &(qd_shape){ 3, { 5, 16, 6 } }));
    assert_true(qd_shape_equal(&shapes[s.bias], &(qd_shape){ 1, { 6 } }));

    check_fails(qd_graph_shapes(s.g, &(qd_shape){ 4, { 5, 4, 8, 9 } }, 1, shapes, &err), QD_E_INVALID,
                "input 'x' has shape [-1, 4, 8, 8], cannot take [5, 4, 8, 9]", &err);
    check_fails(qd_graph_shapes(s.g, &(qd_shape){ 4, { 0, 4, 8, 8 } }, 1, shapes, &err), QD_E_INVALID, "cannot take",
                &err);
    check_fails(qd_graph_shapes(s.g, &(qd_shape){ 99, { 5 } }, 1, shapes, &err), QD_E_INVALID, "one without rank",
                &err);
    check_fails(qd_graph_shapes(s.g, NULL, 0, shapes, &err), QD_E_INVALID,
                "the graph has 1 inputs, 0 shapes were given", &err);
    check_fails(qd_graph_shapes(s.g, &(qd_shape){ 4, { 1ll << 36, 4, 8, 8 } }, 1, shapes, &err), QD_E_LIMIT,
                "node 'conv' (conv2d)", &err);
    qd_graph_free(s.g);
}

static void uses_count_nodes_and_outputs(void **state)
{
    small s = build();
    int uses[16];
    qd_graph_uses(s.g, uses);
    assert_int_equal(uses[s.conv], 2);
    assert_int_equal(uses[s.act], 1);
    assert_int_equal(uses[s.sum], 2); /* tokens, and the output "features" */
    assert_int_equal(uses[s.turned], 3);
    assert_int_equal(uses[s.attention], 1);
    qd_graph_free(s.g);
}

static void cost_and_size(void **state)
{
    qd_err err = { 0 };
    small s = build();
    int64_t macs = 0;
    check_ok(qd_graph_cost(s.g, &(qd_shape){ 4, { 3, 4, 8, 8 } }, 1, &macs, &err), &err);
    /* conv: 3 x 6 x 4 x 4 outputs of 4 x 3 x 3 products; attention: q k^T and p v, 3 x 16 x 16 x 6 each */
    assert_int_equal(macs, 3 * 6 * 16 * 36 + 2 * 3 * 16 * 16 * 6);
    assert_int_equal(qd_graph_param_count(s.g), 6 * 4 * 9 + 6);
    assert_int_equal(qd_graph_param_bytes(s.g), 4 * (6 * 4 * 9 + 6));
    qd_graph_free(s.g);
}

/* 2^40 rows of 2^30 products are more than an int64 can say. */
static void cost_stops_at_the_largest_number(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    int64_t macs = 0;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id a = qd_graph_input(g, "a", QD_F32, &(qd_shape){ 2, { 1 << 20, 1 << 20 } });
    const qd_node_id b = qd_graph_add(g, &qd_op_matmul, "b", QD_IN(a, a), QD_NO_ATTRS);
    const qd_node_id c = qd_graph_add(g, &qd_op_matmul, "c", QD_IN(b, b), QD_NO_ATTRS);
    qd_graph_output(g, "y", c);
    for (int k = 0; k < 8; k++)
        qd_graph_add(g, &qd_op_matmul, (char[]){ (char)('d' + k), 0 }, QD_IN(c, c), QD_NO_ATTRS);
    check_ok(qd_graph_cost(g, &(qd_shape){ 2, { 1 << 20, 1 << 20 } }, 1, &macs, &err), &err);
    assert_true(macs == INT64_MAX);
    qd_graph_free(g);
}

static void reads_well(void **state)
{
    small s = build();
    qd_buf b;
    qd_buf_init(&b, 0);
    qd_graph_print(s.g, &b);
    assert_string_equal(b.data,
                        "    0  x = input -> f32 [-1, 4, 8, 8]\n"
                        "    1  conv.weight = const -> f32 [6, 4, 3, 3]\n"
                        "    2  conv.bias = const -> f32 [6]\n"
                        "    3  conv = conv2d(x, conv.weight, conv.bias) stride=2,2 pads=1,1,1,1 -> f32 [1, 6, 4, 4]\n"
                        "    4  act = silu(conv) -> f32 [1, 6, 4, 4]\n"
                        "    5  sum = add(act, conv) -> f32 [1, 6, 4, 4]\n"
                        "    6  tokens = reshape(sum) shape=0,0,-1 -> f32 [1, 6, 16]\n"
                        "    7  turned = permute(tokens) perm=0,2,1 -> f32 [1, 16, 6]\n"
                        "    8  attention = attention(turned, turned, turned) heads=2 -> f32 [1, 16, 6]\n"
                        "output y = attention\n"
                        "output features = sum\n");
    qd_buf_clear(&b);
    qd_graph_free(s.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_for_a_batch), cmocka_unit_test(uses_count_nodes_and_outputs),
        cmocka_unit_test(cost_and_size),      cmocka_unit_test(cost_stops_at_the_largest_number),
        cmocka_unit_test(reads_well),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
