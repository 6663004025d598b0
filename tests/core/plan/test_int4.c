/* test_int4.c - integer layers with packed weights and with scales for groups of channels: against the plain loops, and what they keep. */
#include "core/plan/plan_case.h"

/* A layer on codes of scale 0.03: conv on [n, in, h, w], or (kernel 0) linear on [n, rows, in]. */
static qd_node_id packed_layer(plan_case *c, qd_node_id codes, int64_t zero, case_conv_shape s, qd_dtype dtype,
                               int64_t group)
{
    qd_err err = { 0 };
    qd_tensor plain, packed, scale;
    const int64_t groups = s.groups ? s.groups : 1, channels = s.in / groups;
    const qd_shape shape = s.kernel ? QD_SHAPE(s.out, channels, s.kernel, s.kernel) : QD_SHAPE(s.out, channels);
    const qd_shape scales = group ? QD_SHAPE(s.out, qd_k_scales(channels, group)) : QD_SHAPE(s.out);
    const int64_t most = (1 << (qd_dtype_bits(dtype) - 1)) - 1;
    check_ok(qd_tensor_init(&plain, QD_I8, &shape, NULL, &err), &err);
    check_ok(qd_tensor_init(&scale, QD_F32, &scales, NULL, &err), &err);
    for (int64_t k = 0; k < qd_tensor_count(&plain); k++)
        qd_i8(&plain)[k] = (int8_t)case_pick(c, -most - 1, most);
    for (int64_t k = 0; k < qd_tensor_count(&scale); k++)
        qd_f32(&scale)[k] = 0.25f + qd_rng_uniform(&c->rng);
    if (dtype == QD_I8)
        qd_tensor_share(&packed, &plain);
    else
        check_ok(qd_tensor_pack(&packed, &plain, dtype, NULL, &err), &err);
    const qd_node_id w = qd_graph_const(c->g, case_name(c), &packed), ws = qd_graph_const(c->g, case_name(c), &scale);
    const qd_node_id b = s.no_bias ? -1 : case_const(c, QD_SHAPE(s.out), 0.0f, 3.0f);
    qd_tensor_clear(&plain);
    qd_tensor_clear(&packed);
    qd_tensor_clear(&scale);
    const qd_attr map[] = { QD_FLOAT("x_scale", 0.03), QD_INT("x_zero", zero), QD_INT("group_size", group) };
    if (!s.kernel)
        return qd_graph_add(c->g, &qd_op_qlinear, case_name(c), (qd_node_id[]){ codes, w, ws, b }, b < 0 ? 3 : 4, map,
                            3);
    return qd_graph_add(c->g, &qd_op_qconv2d, case_name(c), (qd_node_id[]){ codes, w, ws, b }, b < 0 ? 3 : 4,
                        QD_ATTRS(CASE_CONV_ATTRS(s), map[0], map[1], map[2]));
}

static const struct {
    case_conv_shape s;
    int64_t group;
} convs[] = {
    { { .in = 20, .out = 24, .kernel = 3, .pads = { 1, 1, 1, 1 } }, 0 },
    { { .in = 17, .out = 5, .kernel = 3, .stride = 2, .pads = { 0, 1, 2, 1 } }, 0 },
    { { .in = 33, .out = 19, .kernel = 1, .no_bias = true }, 0 },
    { { .in = 64, .out = 32, .kernel = 3, .pads = { 1, 1, 1, 1 } }, 32 },
    { { .in = 70, .out = 9, .kernel = 3, .pads = { 1, 1, 1, 1 } }, 32 }, /* the last group has six */
    { { .in = 7, .out = 3, .kernel = 1, .no_bias = true }, 2 },
    { { .in = 12, .out = 8, .kernel = 3, .groups = 4, .pads = { 1, 1, 1, 1 } }, 0 },
    { { .in = 12, .out = 8, .kernel = 3, .groups = 2, .pads = { 1, 1, 1, 1 } }, 4 }, /* left to the plain loops */
    { { .in = 40, .out = 40, .kernel = 5, .pads = { 2, 2, 2, 2 } }, 40 },
};
static const qd_dtype dtypes[] = { QD_I4, QD_I6, QD_I8 };

static void convolutions(void **state)
{
    for (size_t k = 0; k < sizeof(convs) / sizeof(convs[0]); k++)
        for (int t = 0; t < 3; t++)
            for (int symmetric = 0; symmetric < 2; symmetric++) {
                plan_case c = case_new(10 * k + (uint64_t)t);
                const qd_node_id x = case_input(&c, QD_SHAPE(2, convs[k].s.in, 9, 7));
                const int64_t zero = symmetric ? 0 : 77;
                case_output(&c, packed_layer(&c, case_quantize(&c, x, symmetric, zero, -1), zero, convs[k].s, dtypes[t],
                                             convs[k].group));
                case_check(&c, 1e-5);
            }
}

/* Sums and activations around several convolutions that add up: the bias once, the activation last. */
static void fused(void **state)
{
    for (int64_t group = 0; group <= 24; group += 12)
        for (int t = 0; t < 3; t++) {
            plan_case c = case_new(77);
            qd_plan *p;
            const case_conv_shape s = { .in = 30, .out = 30, .kernel = 3, .pads = { 1, 1, 1, 1 } };
            const qd_node_id x = case_input(&c, QD_SHAPE(1, 30, 8, 8));
            const qd_node_id y = packed_layer(&c, case_quantize(&c, x, false, 100, -1), 100, s, dtypes[t], group);
            case_output(&c, case_unary(&c, &qd_op_silu, case_binary(&c, &qd_op_add, y, x)));
            case_check_plan(&c, 1e-5, &p);
            assert_int_equal(case_steps(p, "qconv2d+add+silu"), 1);
            qd_plan_free(p);
        }
}

static void linears(void **state)
{
    for (int64_t group = 0; group <= 32; group += 16)
        for (int t = 0; t < 3; t++)
            for (int64_t rows = 1; rows < 20; rows += 9) {
                plan_case c = case_new((uint64_t)(rows + group));
                const qd_node_id x = case_input(&c, QD_SHAPE(2, rows, 75));
                const case_conv_shape s = { .in = 75, .out = 21 };
                case_output(&c, packed_layer(&c, case_quantize(&c, x, false, 50, -1), 50, s, dtypes[t], group));
                case_check(&c, 1e-5);
            }
}

/* The plan keeps half the bytes, not a spelled-out copy. */
static void bytes_kept(void **state)
{
    size_t bytes[3];
    for (int t = 0; t < 3; t++) {
        plan_case c = case_new(3);
        const case_conv_shape s = { .in = 128, .out = 128, .kernel = 3, .pads = { 1, 1, 1, 1 }, .no_bias = true };
        const qd_node_id x = case_input(&c, QD_SHAPE(1, 128, 8, 8));
        case_output(&c, packed_layer(&c, case_quantize(&c, x, false, 50, -1), 50, s, dtypes[t], 0));
        qd_plan *p = case_compile(&c, &qd_backend_cpu, 1);
        bytes[t] = qd_plan_weight_bytes(p);
        qd_plan_free(p);
        qd_graph_free(c.g);
    }
    const size_t weights = 128 * 128 * 9, scales = 128 * 4;
    assert_true(bytes[0] >= weights / 2 && bytes[0] <= weights / 2 + 2 * scales);
    assert_true(bytes[1] >= weights && bytes[2] == bytes[1]); /* six bits are spelled out when compiled */
}

/* What the shape rule refuses. */
static void refusals(void **state)
{
    static const struct {
        int64_t group, scales;
        const char *words;
    } cases[] = { { 8, 2, "wscale is [4, 2], must be [4, 3]: a scale for each 8 of 20 channels" },
                  { 20, 2, "must be [4, 1]" },
                  { -1, 1, "group_size must be 0.." },
                  { 0, 3, "wscale has rank 2" } };
    for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
        qd_err err = { 0 };
        plan_case c = case_new(1);
        const qd_node_id q = case_quantize(&c, case_input(&c, QD_SHAPE(1, 20, 4, 4)), false, 0, -1);
        const qd_node_id w = case_codes(&c, QD_SHAPE(4, 20, 1, 1)),
                         s = case_const(&c, QD_SHAPE(4, cases[k].scales), 1.0f, 0.1f);
        case_output(&c, qd_graph_add(c.g, &qd_op_qconv2d, "layer", QD_IN(q, w, s),
                                     QD_ATTRS(QD_FLOAT("x_scale", 1), QD_INT("group_size", cases[k].group))));
        check_fails(qd_graph_verify(c.g, &err), QD_E_INVALID, cases[k].words, &err);
        qd_graph_free(c.g);
    }
}

static qd_status compile_case(void *ctx, qd_err *err)
{
    plan_case *c = ctx;
    qd_plan *p = NULL;
    const qd_plan_options o = { .input_shapes = c->inputs, .n_inputs = 1, .threads = 1, .backend = &qd_backend_cpu };
    const qd_status st = qd_plan_compile(c->g, &o, &p, err);
    qd_plan_free(p);
    return st;
}

static void out_of_memory(void **state)
{
    plan_case c = case_new(5);
    const case_conv_shape s = { .in = 20, .out = 6, .kernel = 1 };
    const qd_node_id x = case_input(&c, QD_SHAPE(1, 20, 4, 4));
    case_output(&c, packed_layer(&c, case_quantize(&c, x, false, 9, -1), 9, s, QD_I4, 8));
    print_message("%ld allocations, each failed once\n", harness_run_each_alloc(compile_case, &c, 5000));
    qd_graph_free(c.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions), cmocka_unit_test(fused),    cmocka_unit_test(linears),
        cmocka_unit_test(bytes_kept),   cmocka_unit_test(refusals), cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
