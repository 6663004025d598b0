/* test_autograd.c - differentiating whole graphs: sums over readers, any batch, what is refused and how. */
#include "harness/harness.h"

#include <math.h>
#include <string.h>

#include "graph/graph.h"
#include "graph/op.h"
#include "plan/plan.h"

static qd_graph *fresh(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    return g;
}

static qd_node_id input(qd_graph *g, const char *name, qd_shape shape)
{
    return qd_graph_input(g, name, QD_F32, &shape);
}

/* mean over everything of ((x w) + x[.., :2]) (x w), x [-1, 3], w [3, 2] as linear weight [2, 3]. */
static qd_node_id small_loss(qd_graph *g, qd_node_id wrt[2])
{
    wrt[0] = input(g, "x", QD_SHAPE(-1, 3));
    wrt[1] = input(g, "w", QD_SHAPE(2, 3));
    const qd_node_id xw = qd_graph_add(g, &qd_op_linear, "xw", QD_IN(wrt[0], wrt[1]), QD_NO_ATTRS);
    const qd_node_id part =
        qd_graph_add(g, &qd_op_slice, "part", QD_IN(wrt[0]), QD_ATTRS(QD_INT("axis", 1), QD_INT("length", 2)));
    const qd_node_id sum = qd_graph_add(g, &qd_op_add, "sum", QD_IN(xw, part), QD_NO_ATTRS);
    const qd_node_id product = qd_graph_add(g, &qd_op_mul, "product", QD_IN(sum, xw), QD_NO_ATTRS);
    const int64_t axes[2] = { 0, 1 };
    return qd_graph_add(g, &qd_op_mean, "loss", QD_IN(product),
                        QD_ATTRS(qd_attr_ints("axes", 2, axes), QD_INT("keep", 0)));
}

static double small_loss_by_hand(const float *x, const float *w, int64_t batch)
{
    double sum = 0.0;
    for (int64_t i = 0; i < batch; i++)
        for (int o = 0; o < 2; o++) {
            double xw = 0.0;
            for (int k = 0; k < 3; k++)
                xw += (double)x[i * 3 + k] * w[o * 3 + k];
            sum += (xw + x[i * 3 + o]) * xw;
        }
    return sum / (double)(2 * batch);
}

static void check_batch(const qd_graph *g, int64_t batch, const qd_backend *backend)
{
    qd_err err = { 0 };
    qd_plan *p = NULL;
    float x[15], w[6], loss, dx[15], dw[6];
    harness_normal(x, 15, 1, 1.0f);
    harness_normal(w, 6, 2, 1.0f);
    const qd_shape shapes[2] = { QD_SHAPE(batch, 3), QD_SHAPE(2, 3) };
    const qd_plan_options o = { .input_shapes = shapes, .n_inputs = 2, .backend = backend };
    check_ok(qd_plan_compile(g, &o, &p, &err), &err);
    check_ok(qd_plan_run(p, NULL, (const void *[]){ x, w }, (void *[]){ &loss, dx, dw }, &err), &err);
    assert_true(fabs(loss - small_loss_by_hand(x, w, batch)) < 1e-5);
    for (int k = 0; k < batch * 3 + 6; k++) {
        float *at = k < batch * 3 ? &x[k] : &w[k - batch * 3];
        const float keep = *at;
        *at = keep + 0.01f;
        const double more = small_loss_by_hand(x, w, batch);
        *at = keep - 0.01f;
        const double less = small_loss_by_hand(x, w, batch);
        *at = keep;
        const double got = k < batch * 3 ? dx[k] : dw[k - batch * 3];
        if (!(fabs(got - (more - less) / 0.02) < 1e-3))
            fail_msg("batch %lld, element %d: %g, difference %g", (long long)batch, k, got, (more - less) / 0.02);
    }
    qd_plan_free(p);
}

static void one_gradient_graph_serves_every_batch(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = fresh(), *d = NULL;
    qd_node_id wrt[2];
    const qd_node_id loss = small_loss(g, wrt);
    qd_graph_output(g, "loss", loss);
    check_ok(qd_graph_gradient(g, loss, wrt, 2, &d, &err), &err);
    assert_int_equal(qd_graph_outputs(d), 3);
    assert_string_equal(qd_graph_output_name(d, 1), "d.x");
    assert_string_equal(qd_graph_output_name(d, 2), "d.w");
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) /* ids stay */
        assert_string_equal(qd_graph_node(g, id)->name, qd_graph_node(d, id)->name);
    for (int64_t batch = 1; batch <= 5; batch += 2) {
        check_batch(d, batch, &qd_backend_ref);
        check_batch(d, batch, &qd_backend_cpu);
    }
    qd_graph_free(d);
    qd_graph_free(g);
}

static void what_the_loss_ignores_has_gradient_zero(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = fresh(), *d = NULL;
    const qd_node_id x = input(g, "x", QD_SHAPE(2)), y = input(g, "y", QD_SHAPE(2));
    const int64_t axes[1] = { 0 };
    const qd_node_id kept = qd_graph_add(g, &qd_op_detach, "kept", QD_IN(y), QD_NO_ATTRS);
    const qd_node_id xy = qd_graph_add(g, &qd_op_mul, "xy", QD_IN(x, kept), QD_NO_ATTRS);
    const qd_node_id loss =
        qd_graph_add(g, &qd_op_sum, "loss", QD_IN(xy), QD_ATTRS(qd_attr_ints("axes", 1, axes), QD_INT("keep", 0)));
    const qd_node_id wrt[2] = { x, y };
    check_ok(qd_graph_gradient(g, loss, wrt, 2, &d, &err), &err);

    qd_plan *p = NULL;
    const qd_shape shapes[2] = { QD_SHAPE(2), QD_SHAPE(2) };
    const qd_plan_options o = { .input_shapes = shapes, .n_inputs = 2 };
    const float in[2] = { 3.0f, -4.0f };
    float dx[2] = { 9.0f, 9.0f }, dy[2] = { 9.0f, 9.0f };
    check_ok(qd_plan_compile(d, &o, &p, &err), &err);
    check_ok(qd_plan_run(p, NULL, (const void *[]){ in, in }, (void *[]){ dx, dy }, &err), &err);
    assert_true(dx[0] == 3.0f && dx[1] == -4.0f && dy[0] == 0.0f && dy[1] == 0.0f);
    qd_plan_free(p);
    qd_graph_free(d);
    qd_graph_free(g);
}

static void refusals_name_the_thing(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = fresh(), *d = NULL;
    const qd_node_id x = input(g, "x", QD_SHAPE(-1, 4));
    const qd_node_id codes = qd_graph_add(g, &qd_op_quantize, "codes", QD_IN(x), QD_ATTRS(QD_FLOAT("scale", 0.1)));
    const qd_node_id back = qd_graph_add(g, &qd_op_dequantize, "back", QD_IN(codes), QD_ATTRS(QD_FLOAT("scale", 0.1)));
    const int64_t axes[2] = { 0, 1 };
    const qd_node_id loss =
        qd_graph_add(g, &qd_op_sum, "loss", QD_IN(back), QD_ATTRS(qd_attr_ints("axes", 2, axes), QD_INT("keep", 0)));
    check_fails(qd_graph_gradient(g, back, &x, 1, &d, &err), QD_E_INVALID, "'back' is f32 [1, 4]", &err);
    check_fails(qd_graph_gradient(g, loss, &codes, 1, &d, &err), QD_E_INVALID, "'codes', which is u8", &err);
    check_fails(qd_graph_gradient(g, 99, &x, 1, &d, &err), QD_E_INVALID, "node 99 of 4", &err);
    const qd_node_id far = 4;
    check_fails(qd_graph_gradient(g, loss, &far, 1, &d, &err), QD_E_INVALID, "node 4 of 4", &err);
    assert_null(d);
    qd_graph_free(g);

    g = fresh(); /* a step on the way */
    const qd_node_id a = input(g, "a", QD_SHAPE(3));
    const qd_node_id less = qd_graph_add(g, &qd_op_less, "which", QD_IN(a, a), QD_NO_ATTRS);
    const int64_t axis[1] = { 0 };
    const qd_node_id count =
        qd_graph_add(g, &qd_op_sum, "count", QD_IN(less), QD_ATTRS(qd_attr_ints("axes", 1, axis), QD_INT("keep", 0)));
    check_fails(qd_graph_gradient(g, count, &a, 1, &d, &err), QD_E_UNSUPPORTED,
                "node 'which' (less) cannot be differentiated: is a step", &err);
    qd_graph_free(g);

    g = fresh(); /* statistics of something else */
    const qd_node_id b = input(g, "b", QD_SHAPE(-1, 2)), w = input(g, "w", QD_SHAPE(2));
    const qd_node_id stats = input(g, "stats", QD_SHAPE(2, 2));
    const qd_node_id norm = qd_graph_add(g, &qd_op_batch_norm_train, "norm", QD_IN(b, w, w, stats), QD_NO_ATTRS);
    const qd_node_id total =
        qd_graph_add(g, &qd_op_sum, "total", QD_IN(norm), QD_ATTRS(qd_attr_ints("axes", 2, axes), QD_INT("keep", 0)));
    check_fails(qd_graph_gradient(g, total, &b, 1, &d, &err), QD_E_INVALID, "must be the batch_norm_stats of its x",
                &err);
    assert_null(d);
    qd_graph_free(g);
}

static qd_status differentiate(void *ctx, qd_err *err)
{
    qd_graph *g = NULL, *d = NULL;
    qd_node_id wrt[2];
    qd_status st = qd_graph_new(&g, err);
    if (!st) {
        const qd_node_id loss = small_loss(g, wrt);
        qd_graph_output(g, "loss", loss);
        st = qd_graph_verify(g, err);
        if (!st)
            st = qd_graph_gradient(g, loss, wrt, 2, &d, err);
    }
    qd_graph_free(d);
    qd_graph_free(g);
    return st;
}

static void memory_may_end_anywhere(void **state)
{
    assert_true(harness_run_each_alloc(differentiate, NULL, 1000) > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_gradient_graph_serves_every_batch),
        cmocka_unit_test(what_the_loss_ignores_has_gradient_zero),
        cmocka_unit_test(refusals_name_the_thing),
        cmocka_unit_test(memory_may_end_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
