/* test_winograd.c - 3 x 3 convolutions of inference by Winograd: against the plain loops, with all that is fused to them; which go that way;
 * and that a sample's bytes do not depend on what else is in the batch. */
#include "core/plan/plan_case.h"

/* Rounding is some ten times that of direct sums: the paper's transforms have constants from 1/24 to 8. */
#define TOL 3e-5

static const struct {
    int64_t n, c, h, w, o;
    int64_t pads[4];
    bool no_bias;
} shapes[] = {
    { 1, 32, 16, 16, 64, { 1, 1, 1, 1 }, false },  { 2, 48, 13, 17, 48, { 1, 1, 1, 1 }, false },
    { 1, 64, 14, 14, 80, { 0, 0, 0, 0 }, true },   { 3, 32, 20, 9, 112, { 2, 0, 1, 2 }, false },
    { 1, 272, 12, 12, 32, { 1, 1, 1, 1 }, false }, { 1, 96, 11, 12, 32, { 2, 2, 2, 2 }, true },
};

static bool by_winograd(const qd_plan *p)
{
    for (int k = 0; k < qd_plan_steps(p); k++) {
        qd_plan_step s;
        qd_plan_step_at(p, k, &s);
        if (strncmp(s.impl, "winograd:", 9) == 0)
            return true;
    }
    return false;
}

static case_conv_shape conv_of(size_t k)
{
    case_conv_shape s = { .in = shapes[k].c, .out = shapes[k].o, .kernel = 3, .no_bias = shapes[k].no_bias };
    memcpy(s.pads, shapes[k].pads, sizeof(s.pads));
    return s;
}

static void convolutions(void **state)
{
    for (size_t k = 0; k < sizeof(shapes) / sizeof(*shapes); k++) {
        plan_case c = case_new(k);
        qd_plan *p;
        const qd_node_id x = case_input(&c, QD_SHAPE(shapes[k].n, shapes[k].c, shapes[k].h, shapes[k].w));
        case_output(&c, case_conv(&c, x, conv_of(k)));
        case_check_plan(&c, TOL, &p);
        if (!by_winograd(p))
            fail_msg("shape %d does not go by Winograd", (int)k);
        qd_plan_free(p);
    }
}

/* What is added to them, which may be what they read; the activation after it; batch norm in the weights. */
static void fused(void **state)
{
    static const qd_op *const acts[] = { NULL, &qd_op_relu, &qd_op_silu, &qd_op_sigmoid };
    for (int variant = 0; variant < 8; variant++) {
        plan_case c = case_new((uint64_t)variant);
        qd_plan *p;
        const case_conv_shape s = { .in = 48, .out = 48, .kernel = 3, .pads = { 1, 1, 1, 1 } };
        const qd_node_id x = case_unary(&c, &qd_op_silu, case_input(&c, QD_SHAPE(2, 48, 16, 13)));
        const qd_node_id other = case_unary(&c, &qd_op_silu, case_input(&c, QD_SHAPE(2, 48, 16, 13)));
        qd_node_id y = case_conv(&c, x, s);
        if (variant & 1)
            y = qd_graph_add(c.g, &qd_op_batch_norm, case_name(&c),
                             QD_IN(y, case_const(&c, QD_SHAPE(48), 1, 0.2f), case_const(&c, QD_SHAPE(48), 0, 0.2f),
                                   case_const(&c, QD_SHAPE(48), 0, 0.2f), case_positive(&c, 48)),
                             QD_NO_ATTRS);
        if (variant & 2)
            y = case_binary(&c, &qd_op_add, y, variant & 4 ? x : other);
        if (acts[variant / 2])
            y = case_unary(&c, acts[variant / 2], y);
        case_output(&c, y);
        case_check_plan(&c, TOL, &p);
        assert_true(by_winograd(p));
        qd_plan_free(p);
    }
}

/* More tiles than are taken at once. */
static void in_parts(void **state)
{
    plan_case c = case_new(3);
    qd_plan *p;
    const qd_node_id x = case_input(&c, QD_SHAPE(3, 288, 24, 24));
    case_output(&c, case_conv(&c, x, (case_conv_shape){ .in = 288, .out = 32, .kernel = 3, .pads = { 1, 1, 1, 1 } }));
    case_check_plan(&c, TOL, &p);
    assert_true(by_winograd(p));
    qd_plan_free(p);
}

static void who_does_not(void **state)
{
    static const struct {
        int64_t c, side, o, stride, groups;
    } others[] = { { 128, 4, 256, 1, 1 }, /* too few tiles */
                   { 32, 12, 32, 1, 1 },  /* too little work */
                   { 24, 32, 48, 1, 1 },  /* channels that do not fill vectors */
                   { 64, 32, 64, 2, 1 },  /* steps of two */
                   { 128, 32, 128, 1, 2 } };
    for (size_t k = 0; k < sizeof(others) / sizeof(*others); k++) {
        plan_case c = case_new(k);
        const case_conv_shape s = { .in = others[k].c,
                                    .out = others[k].o,
                                    .kernel = 3,
                                    .stride = others[k].stride,
                                    .groups = others[k].groups,
                                    .pads = { 1, 1, 1, 1 } };
        case_output(&c, case_conv(&c, case_input(&c, QD_SHAPE(1, others[k].c, others[k].side, others[k].side)), s));
        qd_plan *p = case_compile(&c, &qd_backend_cpu, 1);
        if (by_winograd(p))
            fail_msg("shape %d goes by Winograd", (int)k);
        qd_plan_free(p);
        qd_graph_free(c.g);
    }
}

static void a_sample_alone(void **state)
{
    enum { N = 5, IN = 32 * 16 * 16, OUT = 64 * 16 * 16 };
    static float x[N * IN], all[N * OUT], one[OUT];
    qd_err err = { 0 };
    plan_case c = case_new(7);
    case_output(&c, case_conv(&c, case_input(&c, QD_SHAPE(N, 32, 16, 16)), conv_of(0)));
    harness_normal(x, N * IN, 5, 1.0f);
    qd_plan *together = case_compile(&c, &qd_backend_cpu, 2);
    check_ok(qd_plan_run(together, NULL, (const void *[]){ x }, (void *[]){ all }, &err), &err);
    c.inputs[0].dim[0] = 1;
    qd_plan *alone = case_compile(&c, &qd_backend_cpu, 1);
    for (int k = 0; k < N; k++) {
        check_ok(qd_plan_run(alone, NULL, (const void *[]){ x + k * IN }, (void *[]){ one }, &err), &err);
        assert_memory_equal(one, all + k * OUT, sizeof(one));
    }
    qd_plan_free(together);
    qd_plan_free(alone);
    qd_graph_free(c.g);
}

static qd_status compile_case(void *ctx, qd_err *err)
{
    const plan_case *c = ctx;
    qd_plan *p = NULL;
    const qd_plan_options o = {
        .input_shapes = c->inputs, .n_inputs = c->n_inputs, .threads = 1, .backend = &qd_backend_cpu
    };
    const qd_status st = qd_plan_compile(c->g, &o, &p, err);
    qd_plan_free(p);
    return st;
}

static void out_of_memory(void **state)
{
    plan_case c = case_new(8);
    case_output(&c, case_conv(&c, case_input(&c, QD_SHAPE(1, 32, 16, 16)), conv_of(0)));
    print_message("%ld allocations, each failed once\n", harness_run_each_alloc(compile_case, &c, 5000));
    qd_graph_free(c.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions), cmocka_unit_test(fused),          cmocka_unit_test(in_parts),
        cmocka_unit_test(who_does_not), cmocka_unit_test(a_sample_alone), cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
