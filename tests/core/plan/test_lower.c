/* test_lower.c - nodes on their own: broadcasting, pools, rows, products, moves of axes, and all that only plain loops know. */
#include "core/plan/plan_case.h"

#define FLOAT_TOL 1e-5

static void test_arith(void **state)
{
    static const qd_op *const ops[] = { &qd_op_add, &qd_op_sub, &qd_op_mul, &qd_op_div };
    for (int k = 0; k < 4; k++)
        for (int variant = 0; variant < 7; variant++) {
            plan_case c = case_new((uint64_t)(k * 10 + variant));
            const qd_node_id y = case_unary(&c, &qd_op_sigmoid,
                                            case_conv(&c, case_input(&c, QD_SHAPE(3, 5, 6, 7)),
                                                      (case_conv_shape){ .in = 5, .out = 10, .kernel = 1 }));
            const qd_node_id x = qd_graph_add(c.g, &qd_op_affine, case_name(&c), QD_IN(y),
                                              QD_ATTRS(QD_FLOAT("mul", 1.0), QD_FLOAT("add", 0.5)));
            const qd_shape shapes[] = { QD_SHAPE(3, 10, 6, 7), QD_SHAPE(1),           QD_SHAPE(3, 10, 1, 1),
                                        QD_SHAPE(10, 1, 1),    QD_SHAPE(1, 10, 6, 7), QD_SHAPE(6, 7),
                                        QD_SHAPE(1, 1, 1, 1) };
            const qd_node_id e = case_const(&c, shapes[variant], 3.0f, 0.3f);
            case_output(&c, case_binary(&c, ops[k], x, e));
            case_output(&c, case_binary(&c, ops[k], e, x));
            case_check(&c, FLOAT_TOL);
        }
}

static void test_arith_on_rows(void **state)
{
    plan_case c = case_new(1);
    const qd_node_id t = case_input(&c, QD_SHAPE(2, 5, 12)), e = case_const(&c, QD_SHAPE(12), 2.0f, 0.3f);
    case_output(&c, case_binary(&c, &qd_op_add, t, e));
    case_output(&c, case_binary(&c, &qd_op_mul, t, t));
    case_output(&c, case_binary(&c, &qd_op_sub, t, case_const(&c, QD_SHAPE(5, 1), 1.0f, 1.0f)));
    case_output(&c, case_binary(&c, &qd_op_add, case_input(&c, QD_SHAPE(2, 12)), e));
    case_check(&c, FLOAT_TOL);
}

static void test_elementwise(void **state)
{
    static const qd_op *const ops[] = { &qd_op_silu, &qd_op_relu, &qd_op_gelu, &qd_op_sigmoid, &qd_op_tanh };
    const qd_shape shapes[] = { QD_SHAPE(3, 7), QD_SHAPE(2, 5, 9), QD_SHAPE(1, 3, 33, 17), QD_SHAPE(2, 160, 12, 12) };
    for (int s = 0; s < 4; s++) {
        plan_case c = case_new((uint64_t)s);
        const qd_node_id x = case_input(&c, shapes[s]);
        for (int k = 0; k < 5; k++)
            case_output(&c, case_unary(&c, ops[k], x));
        case_output(&c, qd_graph_add(c.g, &qd_op_clip, case_name(&c), QD_IN(x),
                                     QD_ATTRS(QD_FLOAT("lo", -0.5), QD_FLOAT("hi", 1.25))));
        case_output(&c, qd_graph_add(c.g, &qd_op_affine, case_name(&c), QD_IN(x),
                                     QD_ATTRS(QD_FLOAT("mul", -1.5), QD_FLOAT("add", 0.25))));
        case_check(&c, FLOAT_TOL);
    }
}

/* Codes must be the same codes, whatever path makes them. */
static void test_codes_exactly(void **state)
{
    for (int variant = 0; variant < 8; variant++) {
        plan_case c = case_new((uint64_t)variant);
        const bool symmetric = variant & 1;
        const qd_node_id x = variant & 2 ? case_input(&c, QD_SHAPE(2, 21, 9, 5)) : case_input(&c, QD_SHAPE(2, 9, 37));
        const qd_node_id d = variant & 4 ? case_positive(&c, variant & 2 ? 21 : 9) : -1;
        const qd_node_id q = case_quantize(&c, x, symmetric, 200, d);
        case_output(&c, qd_graph_add(c.g, &qd_op_dequantize, case_name(&c), QD_IN(q),
                                     QD_ATTRS(QD_FLOAT("scale", 0.03), QD_INT("zero", symmetric ? 0 : 200))));
        case_output(&c, qd_graph_add(c.g, &qd_op_fake_quant, case_name(&c), (qd_node_id[]){ x, d }, d < 0 ? 1 : 2,
                                     QD_ATTRS(QD_FLOAT("scale", 0.01), QD_INT("zero", symmetric ? 0 : 11),
                                              QD_INT("bits", 12), QD_INT("symmetric", symmetric))));
        case_check(&c, 0.0);
    }
}

static void test_pools(void **state)
{
    for (int variant = 0; variant < 3; variant++) {
        plan_case c = case_new((uint64_t)variant);
        const qd_node_id x = case_input(&c, QD_SHAPE(2, 19, 9, 8));
        const int64_t pad = variant == 0 ? 0 : 1, stride = 1 + variant;
        const qd_attr attrs[] = { qd_attr_ints("kernel", 2, (const int64_t[]){ 3, 2 }),
                                  qd_attr_ints("stride", 2, (const int64_t[]){ stride, stride }),
                                  qd_attr_ints("pads", 4, (const int64_t[]){ pad, pad, pad, 0 }),
                                  QD_INT("count_pad", variant == 1) };
        case_output(&c, qd_graph_add(c.g, &qd_op_max_pool, case_name(&c), QD_IN(x), attrs, 3));
        case_output(&c, qd_graph_add(c.g, &qd_op_avg_pool, case_name(&c), QD_IN(x), attrs, 4));
        case_output(&c, case_unary(&c, &qd_op_global_avg_pool, x));
        case_check(&c, FLOAT_TOL);
    }
}

static void test_rows(void **state)
{
    plan_case c = case_new(2);
    const qd_node_id t = case_input(&c, QD_SHAPE(2, 9, 37)), image = case_input(&c, QD_SHAPE(2, 3, 6, 5));
    for (int k = 0; k < 2; k++) {
        const qd_shape shape = k ? QD_SHAPE(3, 6, 5) : QD_SHAPE(37);
        case_output(&c,
                    qd_graph_add(c.g, &qd_op_layer_norm, case_name(&c),
                                 QD_IN(k ? image : t, case_const(&c, shape, 1, 0.3f), case_const(&c, shape, 0, 0.3f)),
                                 QD_ATTRS(QD_INT("axes", k ? 3 : 1), QD_FLOAT("eps", 1e-5))));
        case_output(&c, qd_graph_add(c.g, &qd_op_softmax, case_name(&c), QD_IN(k ? image : t),
                                     QD_ATTRS(QD_INT("axis", k ? 1 : -1))));
    }
    case_output(&c, qd_graph_add(c.g, &qd_op_layer_norm, case_name(&c), QD_IN(t),
                                 QD_ATTRS(QD_INT("axes", 1), QD_FLOAT("eps", 1e-5))));
    case_check(&c, FLOAT_TOL);
}

static void test_products(void **state)
{
    plan_case c = case_new(3);
    const qd_node_id a = case_input(&c, QD_SHAPE(2, 7, 19)), b = case_input(&c, QD_SHAPE(2, 19, 11)),
                     d = case_input(&c, QD_SHAPE(2, 11, 19));
    case_output(&c, qd_graph_add(c.g, &qd_op_matmul, case_name(&c), QD_IN(a, b), QD_ATTRS(QD_FLOAT("alpha", 0.5))));
    case_output(&c, qd_graph_add(c.g, &qd_op_matmul, case_name(&c), QD_IN(a, d), QD_ATTRS(QD_INT("trans_b", 1))));
    case_output(&c, qd_graph_add(c.g, &qd_op_matmul, case_name(&c), QD_IN(b, a),
                                 QD_ATTRS(QD_INT("trans_a", 1), QD_INT("trans_b", 1))));
    case_output(&c, case_linear(&c, a, 19, 33));
    case_output(&c, case_unary(&c, &qd_op_silu, case_linear(&c, case_input(&c, QD_SHAPE(3, 45)), 45, 50)));
    case_check(&c, FLOAT_TOL);
}

static void test_few_and_many_rows(void **state)
{
    for (int64_t n = 1; n <= 20; n += n < 9 ? 1 : 11) {
        plan_case c = case_new((uint64_t)n);
        case_output(&c, case_linear(&c, case_input(&c, QD_SHAPE(n, 133)), 133, 77));
        case_check(&c, FLOAT_TOL);
    }
}

static void test_moves(void **state)
{
    plan_case c = case_new(4);
    const qd_node_id x =
        case_conv(&c, case_input(&c, QD_SHAPE(2, 6, 4, 5)), (case_conv_shape){ .in = 6, .out = 8, .kernel = 1 });
    static const int64_t perms[][4] = { { 0, 2, 3, 1 }, { 0, 3, 1, 2 }, { 0, 1, 3, 2 }, { 0, 1, 2, 3 } };
    for (int k = 0; k < 4; k++)
        case_output(&c, case_ints(&c, &qd_op_permute, x, "perm", 4, perms[k]));
    case_output(&c, case_ints(&c, &qd_op_reshape, x, "shape", CASE_DIMS(0, 8, 20)));
    case_output(&c, case_ints(&c, &qd_op_reshape, x, "shape", CASE_DIMS(0, 4, 40)));
    const qd_node_id flat = case_ints(&c, &qd_op_reshape, x, "shape", CASE_DIMS(0, 8, 20));
    case_output(&c, case_conv(&c, case_ints(&c, &qd_op_reshape, flat, "shape", CASE_DIMS(0, 8, 5, 4)),
                              (case_conv_shape){ .in = 8, .out = 3, .kernel = 3 }));
    case_output(&c, case_ints(&c, &qd_op_pad, x, "pads", CASE_DIMS(0, 0, 1, 2, 0, 0, 3, 0)));
    case_check(&c, FLOAT_TOL);
}

/* The result of one op read in both layouts, as codes in plain loops, and as output at once. */
static void test_many_readers(void **state)
{
    plan_case c = case_new(5);
    const qd_node_id x = case_input(&c, QD_SHAPE(2, 20, 6, 6));
    const qd_node_id q = case_quantize(&c, x, true, 0, -1);
    const qd_node_id y =
        case_qconv(&c, q, 0, (case_conv_shape){ .in = 20, .out = 16, .kernel = 3, .pads = { 1, 1, 1, 1 } });
    case_output(&c, y);
    case_output(&c, case_norm(&c, y, 16, 4));
    case_output(&c, qd_graph_add(c.g, &qd_op_softmax, case_name(&c), QD_IN(y), QD_ATTRS(QD_INT("axis", -1))));
    case_output(&c, qd_graph_add(c.g, &qd_op_dequantize, case_name(&c), QD_IN(q),
                                 QD_ATTRS(QD_FLOAT("scale", 0.03), QD_INT("zero", 0))));
    case_output(&c, case_concat(&c, y, y));
    case_check(&c, FLOAT_TOL);
}

/* Inputs and constants may be outputs; what depends on constants alone is computed while compiling. */
static void test_constants(void **state)
{
    plan_case c = case_new(6);
    qd_plan *p;
    const qd_node_id x = case_input(&c, QD_SHAPE(2, 4, 3, 3)), k = case_const(&c, QD_SHAPE(1, 4, 1, 1), 0, 1);
    const qd_node_id known = case_unary(&c, &qd_op_silu, case_binary(&c, &qd_op_add, k, k));
    case_output(&c, x);
    case_output(&c, k);
    case_output(&c, known);
    case_output(&c, case_binary(&c, &qd_op_mul, x, known));
    case_check_plan(&c, FLOAT_TOL, &p);
    assert_int_equal(qd_plan_steps(p), 1);
    qd_plan_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arith),       cmocka_unit_test(test_arith_on_rows),
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_codes_exactly),
        cmocka_unit_test(test_pools),       cmocka_unit_test(test_rows),
        cmocka_unit_test(test_products),    cmocka_unit_test(test_few_and_many_rows),
        cmocka_unit_test(test_moves),       cmocka_unit_test(test_many_readers),
        cmocka_unit_test(test_constants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
