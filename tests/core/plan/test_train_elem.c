/* test_train_elem.c - fast steps of training over elements, rows, sums and images agree with the plain loops on odd shapes, and do not depend
 * on the number of threads. */
#include "core/plan/train_case.h"

static qd_node_id add(net *t, const qd_op *op, const char *name, const qd_node_id *in, int n, const qd_attr *attrs,
                      int n_attrs)
{
    return qd_graph_add(t->g, op, name, in, n, attrs, n_attrs);
}
#define ADD(op, name, ...) qd_graph_add(t.g, &qd_op_##op, name, __VA_ARGS__)

/* An image that lies channels last: what a convolution made. */
static qd_node_id image(net *t, qd_shape shape)
{
    const int64_t c = shape.dim[1];
    const qd_node_id x = input(t, shape), w = input(t, QD_SHAPE(c, 1, 1, 1));
    return add(t, &qd_op_conv2d, "made", QD_IN(x, w), QD_ATTRS(QD_INT("groups", c)));
}

static void activations(void **state)
{
    static const struct {
        const qd_op *op;
        const char *kind;
        qd_attr attr[2];
        int n_attrs;
    } rows[] = {
        { &qd_op_silu, "unary_grad", { { 0 } }, 0 },
        { &qd_op_gelu, "unary_grad", { { 0 } }, 0 },
        { &qd_op_sigmoid, "unary_grad", { { 0 } }, 0 },
        { &qd_op_tanh, "unary_grad", { { 0 } }, 0 },
        { &qd_op_leaky_relu, "leaky_relu_grad", { QD_FLOAT("slope", 0.2) }, 1 },
        { &qd_op_clip, "clip_grad", { QD_FLOAT("lo", -0.4), QD_FLOAT("hi", 0.5) }, 2 },
        { &qd_op_soft_round, "soft_round_grad", { { 0 } }, 0 },
        { &qd_op_fake_quant, "fake_quant_grad", { QD_FLOAT("scale", 0.15), QD_INT("bits", 3) }, 2 },
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        net t = fresh();
        const qd_node_id x = input(&t, QD_SHAPE(3, 7, 37, 41)); /* more than a piece, no multiple of a vector */
        check_exact(&t, add(&t, rows[k].op, "act", QD_IN(x), rows[k].attr, rows[k].n_attrs), 4, KINDS(rows[k].kind));
        t = fresh();
        check_exact(&t, add(&t, rows[k].op, "act", QD_IN(input(&t, QD_SHAPE(5, 3))), rows[k].attr, rows[k].n_attrs), 2,
                    KINDS(rows[k].kind));
    }
}

/* Far from zero, where exponentials end. */
static void slopes_far_out(void **state)
{
    static const qd_op *const ops[] = { &qd_op_silu, &qd_op_gelu, &qd_op_sigmoid, &qd_op_tanh };
    for (size_t k = 0; k < sizeof ops / sizeof *ops; k++) {
        net t = fresh();
        const qd_node_id x = input(&t, QD_SHAPE(1001));
        const qd_node_id wide = ADD(affine, "wide", QD_IN(x), QD_ATTRS(QD_FLOAT("mul", 60.0)));
        const qd_node_id y = ADD(tanh, "bound", QD_IN(add(&t, ops[k], "act", QD_IN(wide), QD_NO_ATTRS)), QD_NO_ATTRS);
        check_exact(&t, y, 1, KINDS("unary_grad"));
    }
}

static void learned_steps(void **state)
{
    static const struct {
        qd_shape x;
        int64_t scales, axis, bits;
        bool symmetric, pass_all;
    } cases[] = {
        { { 4, { 9, 5, 3, 3 } }, 9, 0, 4, true, true },      { { 4, { 9, 5, 3, 3 } }, 1, 0, 3, true, false },
        { { 4, { 2, 11, 40, 60 } }, 1, 0, 4, false, false }, { { 2, { 6, 5001 } }, 6, 0, 4, true, false },
        { { 3, { 2, 5, 7 } }, 5, 1, 2, false, false },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        net t = fresh();
        const qd_node_id x = input(&t, cases[k].x), s = input(&t, QD_SHAPE(cases[k].scales));
        t.positive[1] = true;
        const qd_node_id y = ADD(learned_quant, "quant", QD_IN(x, s),
                                 QD_ATTRS(QD_INT("bits", cases[k].bits), QD_INT("symmetric", cases[k].symmetric),
                                          QD_INT("axis", cases[k].axis), QD_INT("pass_all", cases[k].pass_all)));
        check_exact(&t, y, cases[k].x.rank,
                    cases[k].pass_all ? KINDS("learned_quant", "learned_quant back to scale")
                                      : KINDS("learned_quant", "learned_quant back", "learned_quant back to scale"));
    }
}

/* The weight of a convolution stays row-major on its way through a quantizer, and so do its derivatives. */
static qd_node_id quantized_conv(net *t)
{
    const qd_node_id x = input(t, QD_SHAPE(2, 6, 9, 7)), w = input(t, QD_SHAPE(10, 6, 3, 3));
    const qd_node_id s = input(t, QD_SHAPE(10));
    t->positive[2] = true;
    const qd_node_id q = add(t, &qd_op_learned_quant, "quant", QD_IN(w, s), QD_ATTRS(QD_INT("bits", 4)));
    return add(t, &qd_op_conv2d, "conv", QD_IN(x, q), QD_NO_ATTRS);
}

static void quantized_weights_are_not_turned(void **state)
{
    net t = fresh();
    qd_err err = { 0 };
    qd_plan *p = NULL;
    qd_graph_output(t.g, "y", quantized_conv(&t));
    const qd_plan_options o = { .input_shapes = t.shapes, .n_inputs = t.n, .backend = &qd_backend_cpu };
    check_ok(qd_plan_compile(t.g, &o, &p, &err), &err);
    for (int k = 0; k < qd_plan_steps(p); k++) {
        qd_plan_step step;
        qd_plan_step_at(p, k, &step);
        assert_string_not_equal(step.kind, "convert");
    }
    qd_plan_free(p);
    qd_graph_free(t.g);
    t = fresh();
    check_net(&t, quantized_conv(&t), 4, KINDS("learned_quant", "conv back to weight", "learned_quant back to scale"));
}

static void rows(void **state)
{
    static const int64_t widths[] = { 1, 10, 77, 1000 };
    for (size_t k = 0; k < sizeof widths / sizeof *widths; k++) {
        net t = fresh();
        const qd_node_id x = input(&t, QD_SHAPE(3, 23, widths[k]));
        check_exact(&t, ADD(softmax, "y", QD_IN(x), QD_NO_ATTRS), 3, KINDS("softmax", "softmax back"));
        t = fresh();
        check_exact(&t, ADD(log_softmax, "y", QD_IN(input(&t, QD_SHAPE(23, widths[k]))), QD_NO_ATTRS), 2,
                    KINDS("log softmax", "log softmax back"));
    }
    for (int axes = 1; axes < 3; axes++) {
        net t = fresh();
        const int64_t width[2] = { 13, 21 };
        const qd_node_id x = input(&t, QD_SHAPE(40, 13, 21)), w = input(&t, qd_shape_of(axes, width + 2 - axes));
        const qd_node_id b = input(&t, qd_shape_of(axes, width + 2 - axes));
        check_exact(&t, ADD(layer_norm, "y", QD_IN(x, w, b), QD_ATTRS(QD_INT("axes", axes))), 3,
                    KINDS("layer norm", "layer norm back", "layer norm back to weight", "channel sum"));
    }
    net t = fresh();
    check_exact(&t, ADD(layer_norm, "y", QD_IN(input(&t, QD_SHAPE(300, 70))), QD_NO_ATTRS), 2,
                KINDS("layer norm back"));
}

static void sums(void **state)
{
    static const struct {
        qd_shape x;
        int n;
        int64_t axes[3];
        bool last; /* x lies channels last */
        const char *kind;
    } cases[] = {
        { { 4, { 3, 5, 17, 19 } }, 2, { 2, 3 }, true, "channel sum" },
        { { 4, { 3, 5, 17, 19 } }, 2, { 2, 3 }, false, "sum" },
        { { 4, { 3, 5, 17, 19 } }, 3, { 0, 2, 3 }, false, "channel sum" },
        { { 2, { 700, 9 } }, 1, { 0 }, false, "channel sum" },
        { { 2, { 9, 5000 } }, 1, { -1 }, false, "sum" },
        { { 3, { 6, 50, 7 } }, 1, { 1 }, false, "channel sum" },
        { { 4, { 2, 3, 5, 7 } }, 1, { 1 }, true, "sum" },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        for (int keep = 0; keep < 2; keep++) {
            net t = fresh();
            const qd_node_id x = cases[k].last ? image(&t, cases[k].x) : input(&t, cases[k].x);
            const qd_attr axes = qd_attr_ints("axes", cases[k].n, cases[k].axes);
            const qd_node_id y =
                add(&t, keep ? &qd_op_mean : &qd_op_sum, "y", QD_IN(x), QD_ATTRS(axes, QD_INT("keep", keep)));
            /* y sin(y) of a large y would magnify what sums are off by */
            const qd_node_id small = ADD(affine, "small", QD_IN(y), QD_ATTRS(QD_FLOAT("mul", keep ? 1.0 : 0.02)));
            const int rank = keep ? cases[k].x.rank : cases[k].x.rank - cases[k].n;
            judge_net(&t, small, rank, KINDS(cases[k].kind), !cases[k].last);
        }
}

/* What was broadcast is summed: a bias, a number for each sample and channel, for each channel, one for all. */
static void broadcast(void **state)
{
    static const qd_op *const ops[] = { &qd_op_add, &qd_op_mul, &qd_op_sub, &qd_op_div };
    const qd_shape others[] = { QD_SHAPE(3, 6, 1, 1), QD_SHAPE(1, 6, 1, 1), QD_SHAPE(6, 1, 1), QD_SHAPE(1, 1, 1, 1),
                                QD_SHAPE(1),          QD_SHAPE(9),          QD_SHAPE(11, 9),   QD_SHAPE(3, 1, 11, 9) };
    for (size_t k = 0; k < sizeof ops / sizeof *ops; k++)
        for (size_t j = 0; j < sizeof others / sizeof *others; j++)
            for (int made = 0; made < 2; made++) {
                net t = fresh();
                const qd_node_id x = made ? image(&t, QD_SHAPE(3, 6, 11, 9)) : input(&t, QD_SHAPE(3, 6, 11, 9));
                const qd_node_id b = input(&t, others[j]);
                t.positive[t.n - 1] = true;
                judge_net(&t, add(&t, ops[k], "y", QD_IN(x, b), QD_NO_ATTRS), 4, KINDS(NULL), !made);
            }
}

static void group_norms(void **state)
{
    static const struct {
        qd_shape x;
        int64_t groups;
        int weights;
    } cases[] = {
        { { 4, { 3, 12, 13, 11 } }, 4, 2 }, { { 4, { 2, 35, 5, 29 } }, 5, 2 }, { { 4, { 1, 6, 1, 1 } }, 2, 0 },
        { { 3, { 2, 10, 33 } }, 10, 2 },    { { 2, { 40, 8 } }, 2, 1 },        { { 5, { 2, 6, 3, 5, 7 } }, 1, 2 },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        net t = fresh();
        const int64_t c = cases[k].x.dim[1];
        qd_node_id in[3] = { input(&t, cases[k].x) };
        for (int j = 0; j < cases[k].weights; j++)
            in[j + 1] = input(&t, QD_SHAPE(c));
        const qd_node_id y =
            add(&t, &qd_op_group_norm, "norm", in, 1 + cases[k].weights, QD_ATTRS(QD_INT("groups", cases[k].groups)));
        check_exact(&t, y, cases[k].x.rank,
                    cases[k].weights ? KINDS("group norm", "group norm back", "group norm back to weight")
                                     : KINDS("group norm back"));
    }
}

static void frozen_batch_norm(void **state)
{
    for (int fused = 0; fused < 2; fused++) {
        net t = fresh();
        const qd_node_id x = image(&t, QD_SHAPE(3, 17, 9, 7)), w = input(&t, QD_SHAPE(17)), b = input(&t, QD_SHAPE(17));
        const qd_node_id mean = input(&t, QD_SHAPE(17)), var = input(&t, QD_SHAPE(17));
        t.positive[t.n - 1] = true;
        qd_node_id y = ADD(batch_norm, "norm", QD_IN(x, w, b, mean, var), QD_NO_ATTRS);
        if (fused) {
            y = ADD(add, "sum", QD_IN(y, input(&t, QD_SHAPE(3, 17, 9, 7))), QD_NO_ATTRS);
            y = ADD(relu, "relu", QD_IN(y), QD_NO_ATTRS);
        }
        check_net(&t, y, 4, fused ? KINDS("batch norm+add+relu", "batch sums") : KINDS("batch norm", "batch sums"));
    }
}

/* ris.md 2.5: the statistics themselves are what is learned from. */
static void statistics(void **state)
{
    for (int rank = 2; rank < 5; rank++) {
        static const int64_t dims[4] = { 30, 11, 5, 9 };
        net t = fresh();
        const qd_node_id x = input(&t, qd_shape_of(rank, dims));
        check_exact(&t, ADD(batch_norm_stats, "y", QD_IN(x), QD_NO_ATTRS), 2, KINDS("batch stats", "batch stats back"));
    }
}

static void pools(void **state)
{
    static const struct {
        int64_t h, w, kernel, stride, pad;
    } cases[] = { { 12, 10, 3, 2, 1 }, { 8, 8, 2, 2, 0 }, { 7, 9, 3, 1, 1 }, { 9, 7, 2, 3, 0 } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        for (int kind = 0; kind < 3; kind++) {
            net t = fresh();
            const int64_t kernel[2] = { cases[k].kernel, cases[k].kernel },
                          stride[2] = { cases[k].stride, cases[k].stride };
            const int64_t pad = cases[k].pad, pads[4] = { pad, pad, 0, pad };
            const qd_node_id x = input(&t, QD_SHAPE(5, 19, cases[k].h, cases[k].w));
            const qd_attr window[] = { qd_attr_ints("kernel", 2, kernel), qd_attr_ints("stride", 2, stride),
                                       qd_attr_ints("pads", 4, pads), QD_INT("count_pad", kind == 1) };
            const qd_node_id y =
                add(&t, kind == 2 ? &qd_op_max_pool : &qd_op_avg_pool, "pool", QD_IN(x), window, kind == 2 ? 3 : 4);
            check_exact(&t, y, 4, kind == 2 ? KINDS("max_pool", "max pool back") : KINDS("avg_pool", "mean pool back"));
        }
    net t = fresh(); /* equal maxima: the first has it all */
    const qd_node_id x = ADD(relu, "r", QD_IN(input(&t, QD_SHAPE(2, 5, 6, 6))), QD_NO_ATTRS);
    const int64_t two[2] = { 2, 2 };
    const qd_node_id y =
        ADD(max_pool, "pool", QD_IN(x), QD_ATTRS(qd_attr_ints("kernel", 2, two), qd_attr_ints("stride", 2, two)));
    check_exact(&t, y, 4, KINDS("max pool back"));
    t = fresh();
    const int64_t factor[2] = { 2, 3 };
    check_exact(
        &t, ADD(upsample, "up", QD_IN(input(&t, QD_SHAPE(2, 5, 7, 6))), QD_ATTRS(qd_attr_ints("factor", 2, factor))), 4,
        KINDS("upsample", "avg_pool"));
}

static void transposed(void **state)
{
    static const struct {
        int64_t stride, pad, groups, more;
        bool bias;
    } cases[] = { { 2, 1, 1, 1, true }, { 1, 1, 1, 0, false }, { 2, 0, 2, 0, true }, { 3, 1, 4, 2, false } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        net t = fresh();
        const int64_t s[2] = { cases[k].stride, cases[k].stride }, more[2] = { cases[k].more, cases[k].more };
        const int64_t pad = cases[k].pad, pads[4] = { pad, pad, pad, pad };
        const qd_node_id x = input(&t, QD_SHAPE(2, 8, 5, 7)), w = input(&t, QD_SHAPE(8, 6, 3, 3));
        const qd_node_id b = cases[k].bias ? input(&t, QD_SHAPE(6 * cases[k].groups)) : -1;
        const qd_node_id y = add(&t, &qd_op_conv_transpose2d, "up", (qd_node_id[]){ x, w, b }, cases[k].bias ? 3 : 2,
                                 QD_ATTRS(qd_attr_ints("stride", 2, s), qd_attr_ints("pads", 4, pads),
                                          qd_attr_ints("output_pad", 2, more), QD_INT("groups", cases[k].groups)));
        check_net(&t, y, 4, KINDS("conv back to input", "conv back to weight"));
    }
}

static void moved(void **state)
{
    for (int made = 0; made < 2; made++) {
        for (int axis = 0; axis < 4; axis++) {
            net t = fresh();
            qd_shape half = QD_SHAPE(2, 4, 5, 6);
            half.dim[axis] = 3;
            const qd_node_id a = made ? image(&t, QD_SHAPE(2, 4, 5, 6)) : input(&t, QD_SHAPE(2, 4, 5, 6));
            const qd_node_id b = input(&t, half);
            judge_net(&t, ADD(concat, "y", QD_IN(a, b), QD_ATTRS(QD_INT("axis", axis))), 4, KINDS("concat_grad"),
                      !made);
            for (int step = 1; step < 3; step++) {
                t = fresh();
                const qd_node_id x = made ? image(&t, QD_SHAPE(3, 7, 5, 6)) : input(&t, QD_SHAPE(3, 7, 5, 6));
                const qd_node_id y = ADD(slice, "y", QD_IN(x),
                                         QD_ATTRS(QD_INT("axis", axis), QD_INT("start", 1), QD_INT("step", step),
                                                  QD_INT("length", step == 1 ? 2 : -1)));
                judge_net(&t, y, 4, KINDS("slice_grad"), !made);
            }
        }
        static const int64_t perms[][4] = { { 3, 1, 0, 2 }, { 0, 2, 1, 3 }, { 1, 0, 2, 3 }, { 3, 2, 1, 0 } };
        for (size_t k = 0; k < sizeof perms / sizeof *perms; k++) {
            net t = fresh();
            const qd_node_id x = made ? image(&t, QD_SHAPE(3, 7, 5, 6)) : input(&t, QD_SHAPE(3, 7, 5, 6));
            judge_net(&t, ADD(permute, "y", QD_IN(x), QD_ATTRS(qd_attr_ints("perm", 4, perms[k]))), 4, KINDS("permute"),
                      !made);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(activations),
        cmocka_unit_test(slopes_far_out),
        cmocka_unit_test(learned_steps),
        cmocka_unit_test(quantized_weights_are_not_turned),
        cmocka_unit_test(rows),
        cmocka_unit_test(sums),
        cmocka_unit_test(broadcast),
        cmocka_unit_test(group_norms),
        cmocka_unit_test(frozen_batch_norm),
        cmocka_unit_test(statistics),
        cmocka_unit_test(pools),
        cmocka_unit_test(transposed),
        cmocka_unit_test(moved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
