/* test_fuse.c - every chain that becomes one step computes what its nodes compute, and really becomes one step. */
#include "core/plan/plan_case.h"

#define FLOAT_TOL 1e-5   /* sums of a few thousand products in float against double, of the largest value */
#define FLIP_TOL 2e-2    /* a code on the edge may fall to either side: one step of one product of a sum */
#define INTEGER_TOL 1e-5 /* exact sums, scaled in float */

static void test_conv(void **state)
{
    static const int64_t channels[] = { 1, 3, 16, 20, 48 };
    for (int a = 0; a < 5; a++)
        for (int b = 0; b < 5; b++)
            for (int64_t variant = 0; variant < 4; variant++) {
                plan_case c = case_new((uint64_t)(a * 100 + b * 10 + variant));
                const qd_node_id x = case_input(&c, QD_SHAPE(1 + (a + b) % 3, channels[a], 9, 7));
                const case_conv_shape shapes[] = {
                    { .in = channels[a], .out = channels[b], .kernel = 3, .pads = { 1, 1, 1, 1 } },
                    { .in = channels[a], .out = channels[b], .kernel = 3, .stride = 2, .pads = { 0, 0, 1, 1 } },
                    { .in = channels[a], .out = channels[b], .kernel = 1, .no_bias = true },
                    { .in = channels[a],
                      .out = channels[a],
                      .kernel = 3,
                      .groups = channels[a],
                      .pads = { 1, 1, 1, 1 } },
                };
                case_output(&c, case_conv(&c, x, shapes[variant]));
                case_check(&c, FLOAT_TOL);
            }
}

static void test_conv_acts(void **state)
{
    const qd_op *const acts[] = { &qd_op_relu, &qd_op_silu, &qd_op_gelu, &qd_op_sigmoid, &qd_op_tanh };
    for (int k = 0; k < 5; k++) {
        plan_case c = case_new((uint64_t)k);
        qd_plan *p;
        char kind[32];
        const qd_node_id x = case_input(&c, QD_SHAPE(2, 16, 8, 8));
        case_output(
            &c, case_unary(
                    &c, acts[k],
                    case_conv(&c, x, (case_conv_shape){ .in = 16, .out = 24, .kernel = 3, .pads = { 1, 1, 1, 1 } })));
        case_check_plan(&c, FLOAT_TOL, &p);
        snprintf(kind, sizeof(kind), "conv2d+%s", acts[k]->name);
        assert_int_equal(case_steps(p, kind), 1);
        assert_int_equal(qd_plan_steps(p), 1);
        qd_plan_free(p);
    }
}

/* The addend may die in the sum, live on, be the conv's own input, or be another conv. */
static void test_residual(void **state)
{
    for (int variant = 0; variant < 5; variant++) {
        plan_case c = case_new((uint64_t)variant);
        qd_plan *p;
        const case_conv_shape same = { .in = 20, .out = 20, .kernel = 3, .pads = { 1, 1, 1, 1 } };
        const qd_node_id x = case_unary(&c, &qd_op_silu, case_input(&c, QD_SHAPE(2, 20, 6, 6)));
        qd_node_id y;
        switch (variant) {
        case 0:
            y = case_binary(&c, &qd_op_add, x, case_conv(&c, case_norm(&c, x, 20, 4), same));
            break;
        case 1:
            y = case_binary(&c, &qd_op_add, case_conv(&c, case_norm(&c, x, 20, 4), same), x);
            y = case_binary(&c, &qd_op_mul, y, x);
            break;
        case 2:
            y = case_binary(&c, &qd_op_add, case_conv(&c, x, same), x);
            break;
        case 3:
            y = case_binary(&c, &qd_op_add, case_conv(&c, x, same), case_conv(&c, x, same));
            break;
        default:
            y = case_unary(&c, &qd_op_relu, case_binary(&c, &qd_op_add, case_conv(&c, x, same), x));
            break;
        }
        case_output(&c, y);
        case_check_plan(&c, FLOAT_TOL, &p);
        assert_int_equal(case_steps(p, "add"), 0);
        assert_int_equal(case_steps(p, "conv2d+add") + case_steps(p, "conv2d+add+relu"), 1);
        qd_plan_free(p);
    }
}

static qd_node_id add_batch_norm(plan_case *c, qd_node_id x, int64_t channels)
{
    return qd_graph_add(c->g, &qd_op_batch_norm, case_name(c),
                        QD_IN(x, case_const(c, QD_SHAPE(channels), 1.0f, 0.2f),
                              case_const(c, QD_SHAPE(channels), 0.0f, 0.5f),
                              case_const(c, QD_SHAPE(channels), 0.3f, 0.2f), case_positive(c, channels)),
                        QD_ATTRS(QD_FLOAT("eps", 1e-5)));
}

static void test_batch_norm(void **state)
{
    plan_case c = case_new(5);
    qd_plan *p;
    const qd_node_id x = case_input(&c, QD_SHAPE(2, 16, 5, 6));
    qd_node_id y = case_conv(
        &c, x, (case_conv_shape){ .in = 16, .out = 12, .kernel = 3, .pads = { 1, 1, 1, 1 }, .no_bias = true });
    y = case_unary(&c, &qd_op_relu, add_batch_norm(&c, y, 12));
    case_output(&c, case_unary(&c, &qd_op_relu, add_batch_norm(&c, y, 12)));
    case_check_plan(&c, FLOAT_TOL, &p);
    assert_int_equal(case_steps(p, "conv2d+relu"), 1);
    assert_int_equal(case_steps(p, "affine+relu"), 1);
    qd_plan_free(p);
}

static void test_qconv(void **state)
{
    static const int64_t channels[] = { 1, 3, 16, 20, 48 };
    for (int a = 0; a < 5; a++)
        for (int variant = 0; variant < 8; variant++) {
            const bool symmetric = variant & 1;
            const int64_t zero = symmetric ? 0 : 3 + 40 * a, in = channels[a], out = channels[(a + variant) % 5];
            plan_case c = case_new((uint64_t)(a * 10 + variant));
            const case_conv_shape shapes[] = {
                { .in = in, .out = out, .kernel = 3, .pads = { 1, 1, 1, 1 } },
                { .in = in, .out = out, .kernel = 3, .stride = 2, .pads = { 0, 0, 1, 1 } },
                { .in = in, .out = out, .kernel = 1, .no_bias = true },
                { .in = in, .out = in, .kernel = 3, .groups = in, .pads = { 1, 1, 1, 1 } },
            };
            const qd_node_id x = case_input(&c, QD_SHAPE(1 + variant % 3, in, 7, 9));
            const qd_node_id divisor = variant & 4 ? case_positive(&c, in) : -1;
            case_output(&c, case_qconv(&c, case_quantize(&c, x, symmetric, zero, divisor), zero, shapes[variant / 2]));
            case_check(&c, INTEGER_TOL);
        }
}

/* One value of codes for a 3x3 with padding, a 1x1 and a downsampling conv; a residual; relu. */
static void test_qconv_shared_codes(void **state)
{
    plan_case c = case_new(8);
    const qd_node_id x = case_input(&c, QD_SHAPE(2, 20, 8, 8));
    const qd_node_id q = case_quantize(&c, x, false, 77, -1), again = case_quantize(&c, x, false, 77, -1);
    const qd_node_id a =
        case_qconv(&c, q, 77, (case_conv_shape){ .in = 20, .out = 24, .kernel = 3, .pads = { 1, 1, 1, 1 } });
    const qd_node_id b = case_qconv(&c, again, 77, (case_conv_shape){ .in = 20, .out = 24, .kernel = 1 });
    const qd_node_id d = case_qconv(
        &c, q, 77, (case_conv_shape){ .in = 20, .out = 8, .kernel = 3, .stride = 2, .pads = { 0, 0, 1, 1 } });
    qd_plan *p;
    case_output(&c, case_unary(&c, &qd_op_relu, case_binary(&c, &qd_op_add, a, b)));
    case_output(&c, d);
    case_check_plan(&c, INTEGER_TOL, &p);
    assert_int_equal(case_steps(p, "quantize"), 1); /* equal nodes run once */
    assert_int_equal(case_steps(p, "qconv2d+add+relu"), 1);
    qd_plan_free(p);
}

static void test_norm_chains(void **state)
{
    static const int64_t channels[] = { 6, 16, 20, 48, 144 };
    for (int a = 0; a < 5; a++)
        for (int variant = 0; variant < 8; variant++) {
            plan_case c = case_new((uint64_t)(a * 10 + variant));
            const int64_t n = 1 + variant % 3, k = channels[a];
            qd_plan *p;
            qd_node_id x = case_input(&c, QD_SHAPE(n, k, 13, 11));
            if (variant & 1) {
                const qd_node_id t = case_linear(&c, case_input(&c, QD_SHAPE(n, 10)), 10, k);
                x = case_binary(&c, &qd_op_add, x, case_ints(&c, &qd_op_reshape, t, "shape", CASE_DIMS(0, k, 1, 1)));
            }
            qd_node_id y = case_norm(&c, x, k, k % 4 ? 3 : 4);
            if (variant & 2)
                y = case_unary(&c, &qd_op_silu, y);
            if (variant & 4)
                y = case_qconv(&c, case_quantize(&c, y, false, 60, a & 1 ? case_positive(&c, k) : -1), 60,
                               (case_conv_shape){ .in = k, .out = 8, .kernel = 3, .pads = { 1, 1, 1, 1 } });
            case_output(&c, y);
            case_check_plan(&c, variant & 4 ? FLIP_TOL : FLOAT_TOL, &p);
            assert_int_equal(case_steps(p, "add"), 0);
            assert_int_equal(qd_plan_steps(p), 1 + (variant & 1) + (variant >> 2));
            qd_plan_free(p);
        }
}

/* Values of 1000 +- 1: the variance must not drown in the mean. */
static void test_norm_offset(void **state)
{
    plan_case c = case_new(3);
    const qd_node_id x = case_input(&c, QD_SHAPE(2, 32, 16, 16));
    const qd_node_id far = case_binary(&c, &qd_op_add, x, case_const(&c, QD_SHAPE(1, 32, 1, 1), 1000.0f, 10.0f));
    const qd_node_id kept = qd_graph_add(c.g, &qd_op_affine, case_name(&c), QD_IN(far),
                                         QD_ATTRS(QD_FLOAT("mul", 1.0), QD_FLOAT("add", 0.0)));
    case_output(&c, case_norm(&c, kept, 32, 32));
    case_check(&c, 2e-4); /* the values themselves have a spacing of 6e-5 */
}

static void test_concat_vanishes(void **state)
{
    for (int variant = 0; variant < 4; variant++) {
        plan_case c = case_new((uint64_t)variant);
        qd_plan *p;
        const qd_node_id a = case_unary(&c, &qd_op_silu, case_input(&c, QD_SHAPE(2, 20, 6, 5)));
        const qd_node_id b = case_unary(&c, &qd_op_relu, case_input(&c, QD_SHAPE(2, 12, 6, 5)));
        const qd_node_id x = case_concat(&c, a, b);
        const case_conv_shape wide = { .in = 16, .out = 16, .kernel = 3, .pads = { 1, 1, 1, 1 } };
        qd_node_id h = case_unary(&c, &qd_op_silu, case_norm(&c, x, 32, 8)); /* a group spans both */
        h = case_conv(&c, h, (case_conv_shape){ .in = 32, .out = 16, .kernel = 3, .pads = { 1, 1, 1, 1 } });
        h = case_conv(&c, h, wide);
        qd_node_id s;
        if (variant == 0) {
            s = case_conv(&c, x, (case_conv_shape){ .in = 32, .out = 16, .kernel = 1 });
        } else if (variant == 1) { /* split shortcut: halves of the concat, coded apart */
            qd_node_id half[2];
            for (int k = 0; k < 2; k++) {
                half[k] =
                    qd_graph_add(c.g, &qd_op_slice, case_name(&c), QD_IN(x),
                                 QD_ATTRS(QD_INT("axis", 1), QD_INT("start", k * 20), QD_INT("length", k ? 12 : 20)));
                half[k] = case_qconv(&c, case_quantize(&c, half[k], false, 50 + k, -1), 50 + k,
                                     (case_conv_shape){ .in = k ? 12 : 20, .out = 16, .kernel = 1 });
            }
            s = case_binary(&c, &qd_op_add, half[0], half[1]);
        } else if (variant == 2) {
            s = case_qconv(&c, case_quantize(&c, x, true, 0, -1), 0,
                           (case_conv_shape){ .in = 32, .out = 16, .kernel = 1 });
        } else { /* a 3x3 wants the whole */
            s = case_conv(&c, x, (case_conv_shape){ .in = 32, .out = 16, .kernel = 3, .pads = { 1, 1, 1, 1 } });
        }
        case_output(&c, case_binary(&c, &qd_op_add, s, h));
        case_check_plan(&c, FLOAT_TOL, &p);
        assert_int_equal(case_steps(p, "concat"), variant == 3);
        assert_int_equal(case_steps(p, "slice"), 0);
        assert_int_equal(case_steps(p, "add"), 0);
        qd_plan_free(p);
    }
}

static void test_slices(void **state)
{
    plan_case c = case_new(1);
    const qd_node_id x = case_input(&c, QD_SHAPE(2, 20, 4, 6));
    const qd_node_id middle = qd_graph_add(c.g, &qd_op_slice, case_name(&c), QD_IN(x),
                                           QD_ATTRS(QD_INT("axis", -3), QD_INT("start", -15), QD_INT("length", 7)));
    case_output(&c, case_norm(&c, middle, 7, 7));
    case_output(&c, case_conv(&c, middle, (case_conv_shape){ .in = 7, .out = 5, .kernel = 3 }));
    case_output(&c, qd_graph_add(c.g, &qd_op_slice, case_name(&c), QD_IN(x),
                                 QD_ATTRS(QD_INT("axis", 2), QD_INT("start", 1), QD_INT("length", 2))));
    case_check(&c, FLOAT_TOL);
}

static void test_upsample(void **state)
{
    for (int variant = 0; variant < 3; variant++) {
        plan_case c = case_new((uint64_t)variant);
        qd_plan *p;
        const qd_node_id x = case_input(&c, QD_SHAPE(2, 20, 5, 4));
        qd_node_id y = case_ints(&c, &qd_op_upsample, x, "factor", CASE_DIMS(2, variant == 2 ? 3 : 2));
        if (variant)
            y = case_qconv(&c, case_quantize(&c, y, variant == 2, 9, -1), variant == 2 ? 0 : 9,
                           (case_conv_shape){ .in = 20, .out = 16, .kernel = 3, .pads = { 1, 1, 1, 1 } });
        else
            y = case_conv(&c, y, (case_conv_shape){ .in = 20, .out = 16, .kernel = 3, .pads = { 1, 1, 1, 1 } });
        case_output(&c, y);
        case_check_plan(&c, FLOAT_TOL, &p);
        assert_int_equal(qd_plan_steps(p), 2);
        qd_plan_free(p);
    }
}

/* With one channel rows and images lie the same; upsampling and divisors must still see the image. */
static void test_one_channel(void **state)
{
    plan_case c = case_new(12);
    const qd_node_id x = case_input(&c, QD_SHAPE(3, 1, 6, 5));
    const qd_node_id sum = case_binary(&c, &qd_op_add, x, case_unary(&c, &qd_op_silu, x));
    case_output(&c, case_ints(&c, &qd_op_upsample, case_unary(&c, &qd_op_relu, sum), "factor", CASE_DIMS(2, 2)));
    const qd_node_id codes = case_quantize(&c, case_unary(&c, &qd_op_sigmoid, sum), false, 90, case_positive(&c, 1));
    case_output(&c,
                case_qconv(&c, codes, 90, (case_conv_shape){ .in = 1, .out = 5, .kernel = 3, .pads = { 1, 1, 1, 1 } }));
    case_check(&c, FLIP_TOL);
}

/* diffusion_models.md 2.5: tokens are views of the image, the residual is summed inside the last projection. */
static void test_attention_block(void **state)
{
    for (int variant = 0; variant < 4; variant++) {
        const bool integer = variant & 1;
        const int64_t n = 1 + variant, channels = 48, h = 9, w = 8, heads = variant < 2 ? 1 : 3;
        plan_case c = case_new((uint64_t)variant);
        qd_plan *p;
        const qd_node_id x = case_unary(&c, &qd_op_silu, case_input(&c, QD_SHAPE(n, channels, h, w)));
        qd_node_id t = case_ints(&c, &qd_op_permute, case_norm(&c, x, channels, 8), "perm", CASE_DIMS(0, 2, 3, 1));
        t = case_ints(&c, &qd_op_reshape, t, "shape", CASE_DIMS(0, h * w, channels));
        qd_node_id qkv[3];
        for (int k = 0; k < 3; k++)
            qkv[k] = integer
                         ? qd_graph_add(c.g, &qd_op_qlinear, case_name(&c),
                                        QD_IN(case_quantize(&c, t, false, 100, -1),
                                              case_codes(&c, QD_SHAPE(channels, channels)), case_positive(&c, channels),
                                              case_const(&c, QD_SHAPE(channels), 0, 1)),
                                        QD_ATTRS(QD_FLOAT("x_scale", 3e-5), QD_INT("x_zero", 100)))
                         : case_linear(&c, t, channels, channels);
        t = qd_graph_add(c.g, &qd_op_attention, case_name(&c), QD_IN(qkv[0], qkv[1], qkv[2]),
                         QD_ATTRS(QD_INT("heads", heads), QD_FLOAT("scale", 0.2)));
        t = case_linear(&c, t, channels, channels);
        t = case_ints(&c, &qd_op_reshape, t, "shape", CASE_DIMS(0, h, w, channels));
        t = case_ints(&c, &qd_op_permute, t, "perm", CASE_DIMS(0, 3, 1, 2));
        case_output(&c, case_binary(&c, &qd_op_add, t, x));
        case_check_plan(&c, integer ? FLIP_TOL : FLOAT_TOL, &p);
        assert_int_equal(qd_plan_steps(p), 5); /* silu, norm (+ quantize), q and k and v, attention, projection + add */
        assert_int_equal(case_steps(p, integer ? "qlinear x3" : "linear x3"), 1);
        assert_int_equal(case_steps(p, "linear+add"), 1);
        qd_plan_free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv),
        cmocka_unit_test(test_conv_acts),
        cmocka_unit_test(test_residual),
        cmocka_unit_test(test_batch_norm),
        cmocka_unit_test(test_qconv),
        cmocka_unit_test(test_qconv_shared_codes),
        cmocka_unit_test(test_norm_chains),
        cmocka_unit_test(test_norm_offset),
        cmocka_unit_test(test_concat_vanishes),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_upsample),
        cmocka_unit_test(test_one_channel),
        cmocka_unit_test(test_attention_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
