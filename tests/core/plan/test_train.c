/* test_train.c - what training adds to the fast backend agrees with the plain loops: layers whose weights are inputs, and derivatives. */
#include "core/plan/train_case.h"

static void convolutions(void **state)
{
    static const struct {
        int64_t n, c, h, w, o, k, stride, pad, dilation, groups;
        bool bias;
    } cases[] = {
        { 3, 3, 11, 9, 16, 3, 1, 1, 1, 1, false }, { 2, 16, 8, 8, 16, 3, 1, 1, 1, 1, true },
        { 2, 16, 9, 9, 32, 3, 2, 1, 1, 1, false }, { 2, 16, 8, 8, 32, 1, 2, 0, 1, 1, true },
        { 2, 8, 9, 7, 8, 3, 1, 2, 2, 4, true },    { 2, 12, 8, 8, 12, 3, 1, 1, 1, 12, false },
        { 1, 5, 10, 10, 7, 5, 3, 2, 1, 1, true },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        net t = fresh();
        const int64_t s[2] = { cases[k].stride, cases[k].stride }, d[2] = { cases[k].dilation, cases[k].dilation };
        const int64_t pad = cases[k].pad, pads[4] = { pad, pad, pad, pad };
        const qd_node_id x = input(&t, QD_SHAPE(cases[k].n, cases[k].c, cases[k].h, cases[k].w));
        const qd_node_id w = input(&t, QD_SHAPE(cases[k].o, cases[k].c / cases[k].groups, cases[k].k, cases[k].k));
        const qd_node_id b = cases[k].bias ? input(&t, QD_SHAPE(cases[k].o)) : -1;
        const qd_node_id y = qd_graph_add(t.g, &qd_op_conv2d, "conv", (qd_node_id[]){ x, w, b }, cases[k].bias ? 3 : 2,
                                          QD_ATTRS(qd_attr_ints("stride", 2, s), qd_attr_ints("dilation", 2, d),
                                                   qd_attr_ints("pads", 4, pads), QD_INT("groups", cases[k].groups)));
        check_net(&t, y, 4,
                  cases[k].bias ? KINDS("conv", "conv back to input", "conv back to weight", "channel sum")
                                : KINDS("conv", "conv back to input", "conv back to weight"));
    }
}

/* Tiles that stick out, one image of one tile, few and many channels, panels that are not full, every padding. */
static void convolutions_by_winograd(void **state)
{
    static const struct {
        int64_t n, c, h, w, o, pads[4];
        bool bias;
    } cases[] = {
        { 3, 32, 13, 10, 48, { 1, 1, 1, 1 }, true },  { 2, 48, 8, 8, 32, { 1, 1, 1, 1 }, false },
        { 5, 32, 4, 4, 64, { 1, 1, 1, 1 }, false },   { 1, 80, 14, 18, 32, { 0, 0, 0, 0 }, true },
        { 2, 32, 11, 7, 96, { 2, 2, 2, 2 }, false },  { 2, 64, 15, 15, 64, { 0, 2, 1, 1 }, true },
        { 20, 32, 16, 16, 32, { 1, 1, 1, 1 }, true }, { 1, 272, 8, 8, 288, { 1, 1, 1, 1 }, false },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        net t = fresh();
        const qd_node_id x = input(&t, QD_SHAPE(cases[k].n, cases[k].c, cases[k].h, cases[k].w));
        const qd_node_id w = input(&t, QD_SHAPE(cases[k].o, cases[k].c, 3, 3));
        const qd_node_id b = cases[k].bias ? input(&t, QD_SHAPE(cases[k].o)) : -1;
        const qd_node_id wide = qd_graph_add(t.g, &qd_op_conv2d, "conv", (qd_node_id[]){ x, w, b },
                                             cases[k].bias ? 3 : 2, QD_ATTRS(qd_attr_ints("pads", 4, cases[k].pads)));
        const qd_node_id y = qd_graph_add(t.g, &qd_op_affine, "small", QD_IN(wide), QD_ATTRS(QD_FLOAT("mul", 0.1)));
        t.impl = "winograd";
        check_exact(&t, y, 4, KINDS("conv", "conv back to input", "conv back to weight"));
    }
}

static void transposed_convolutions(void **state)
{
    for (int extra = 0; extra < 3; extra++) {
        net t = fresh();
        const int64_t s[2] = { 2, 2 }, pads[4] = { 1, 1, 1, 1 }, more[2] = { extra, extra };
        const qd_node_id x = input(&t, QD_SHAPE(2, 4, 5, 5)), w = input(&t, QD_SHAPE(4, 6, 3, 3));
        const qd_node_id y = qd_graph_add(
            t.g, &qd_op_conv_transpose2d, "up", QD_IN(x, w),
            QD_ATTRS(qd_attr_ints("stride", 2, s), qd_attr_ints("pads", 4, pads), qd_attr_ints("output_pad", 2, more)));
        check_net(&t, y, 4, KINDS("conv"));
    }
}

static qd_node_id norm(net *t, const char *name, qd_node_id x, int64_t channels)
{
    char stats[32];
    snprintf(stats, sizeof stats, "%s.stats", name);
    const qd_node_id s = qd_graph_add(t->g, &qd_op_batch_norm_stats, stats, QD_IN(x), QD_NO_ATTRS);
    return qd_graph_add(t->g, &qd_op_batch_norm_train, name,
                        QD_IN(x, input(t, QD_SHAPE(channels)), input(t, QD_SHAPE(channels)), s), QD_NO_ATTRS);
}

static void batch_norms_with_what_follows(void **state)
{
    net t = fresh(); /* both branches of a residual sum are norms */
    qd_node_id a = norm(&t, "a", input(&t, QD_SHAPE(3, 17, 9, 7)), 17);
    a = qd_graph_add(t.g, &qd_op_relu, "a.relu", QD_IN(a), QD_NO_ATTRS);
    const qd_node_id b = norm(&t, "b", a, 17), c = norm(&t, "c", input(&t, QD_SHAPE(3, 17, 9, 7)), 17);
    qd_node_id y = qd_graph_add(t.g, &qd_op_add, "sum", QD_IN(b, c), QD_NO_ATTRS);
    y = qd_graph_add(t.g, &qd_op_relu, "sum.relu", QD_IN(y), QD_NO_ATTRS);
    y = qd_graph_add(t.g, &qd_op_global_avg_pool, "pool", QD_IN(y), QD_NO_ATTRS);
    check_net(&t, y, 4,
              KINDS("batch norm+relu", "batch norm+add+relu", "batch stats", "batch sums", "batch norm back",
                    "relu back", "mean back"));
    t = fresh(); /* nothing follows; rank 2 */
    y = norm(&t, "a", input(&t, QD_SHAPE(40, 6)), 6);
    check_net(&t, y, 2, KINDS("batch norm", "batch norm back"));
    t = fresh(); /* the result is read twice: nothing is fused that others need */
    a = norm(&t, "a", input(&t, QD_SHAPE(4, 16, 5, 5)), 16);
    y = qd_graph_add(t.g, &qd_op_mul, "twice", QD_IN(a, qd_graph_add(t.g, &qd_op_relu, "r", QD_IN(a), QD_NO_ATTRS)),
                     QD_NO_ATTRS);
    check_net(&t, y, 4, KINDS("batch norm"));
}

static void products(void **state)
{
    net t = fresh();
    const qd_node_id x = input(&t, QD_SHAPE(5, 30, 12)), w = input(&t, QD_SHAPE(70, 12)), b = input(&t, QD_SHAPE(70));
    qd_node_id y = qd_graph_add(t.g, &qd_op_linear, "fc", QD_IN(x, w, b), QD_NO_ATTRS);
    check_net(&t, y, 3, KINDS("linear", "linear_grad_input", "linear_grad_weight"));
    for (int turned = 0; turned < 4; turned++) {
        const bool ta = turned & 1, tb = turned & 2;
        t = fresh();
        const qd_node_id p = input(&t, ta ? QD_SHAPE(2, 3, 8, 65) : QD_SHAPE(2, 3, 65, 8));
        const qd_node_id q = input(&t, tb ? QD_SHAPE(2, 3, 10, 8) : QD_SHAPE(2, 3, 8, 10));
        y = qd_graph_add(t.g, &qd_op_matmul, "product", QD_IN(p, q),
                         QD_ATTRS(QD_INT("trans_a", ta), QD_INT("trans_b", tb), QD_FLOAT("alpha", 0.5)));
        check_net(&t, y, 4, KINDS("matmul"));
    }
    t = fresh();
    const qd_node_id q = input(&t, QD_SHAPE(2, 9, 12)), k = input(&t, QD_SHAPE(2, 7, 12)),
                     v = input(&t, QD_SHAPE(2, 7, 12));
    y = qd_graph_add(t.g, &qd_op_attention, "attention", QD_IN(q, k, v), QD_ATTRS(QD_INT("heads", 3)));
    check_net(&t, y, 3, KINDS("attention", "matmul"));
}

static void statistics_far_from_zero_do_not_cancel(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_plan *p = NULL;
    const qd_shape shape = QD_SHAPE(4, 16, 32, 32);
    float *x = malloc(4 * 16 * 1024 * sizeof *x), stats[2][32];
    assert_non_null(x);
    harness_normal(x, 4 * 16 * 1024, 3, 1.0f);
    for (int64_t i = 0; i < 4 * 16 * 1024; i++)
        x[i] += 3000.0f;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id in = qd_graph_input(g, "x", QD_F32, &shape);
    qd_graph_output(g, "stats", qd_graph_add(g, &qd_op_batch_norm_stats, "stats", QD_IN(in), QD_NO_ATTRS));
    for (int b = 0; b < 2; b++) {
        const qd_plan_options o = { .input_shapes = &shape,
                                    .n_inputs = 1,
                                    .backend = b ? &qd_backend_cpu : &qd_backend_ref };
        check_ok(qd_plan_compile(g, &o, &p, &err), &err);
        check_ok(qd_plan_run(p, NULL, (const void *[]){ x }, (void *[]){ stats[b] }, &err), &err);
        qd_plan_free(p);
    }
    check_close(stats[1], stats[0], 16, 0.0, 1e-6);
    check_close(stats[1] + 16, stats[0] + 16, 16, 0.0, 1e-4);
    qd_graph_free(g);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions),
        cmocka_unit_test(convolutions_by_winograd),
        cmocka_unit_test(transposed_convolutions),
        cmocka_unit_test(batch_norms_with_what_follows),
        cmocka_unit_test(products),
        cmocka_unit_test(statistics_far_from_zero_do_not_cancel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
