/* test_loss.c - every loss and its derivative against PyTorch, and what losses promise. */
#include "harness/harness.h"

#include <math.h>
#include <string.h>

#include "golden/nn/train_golden.h"
#include "graph/op.h"
#include "nn/nn.h"
#include "plan/plan.h"

typedef qd_node_id build_fn(qd_graph *g, qd_node_id a, qd_node_id b);

static qd_node_id ce(qd_graph *g, qd_node_id a, qd_node_id b)
{
    return qd_loss_cross_entropy(g, "loss", a, b);
}

static qd_node_id kl(qd_graph *g, qd_node_id a, qd_node_id b)
{
    return qd_loss_kl(g, "loss", a, b, 4.0, false);
}

static qd_node_id kl_mean(qd_graph *g, qd_node_id a, qd_node_id b)
{
    return qd_loss_kl(g, "loss", a, b, 20.0, true);
}

static qd_node_id mse(qd_graph *g, qd_node_id a, qd_node_id b)
{
    return qd_loss_mse(g, "loss", a, b);
}

static qd_node_id l1(qd_graph *g, qd_node_id a, qd_node_id b)
{
    return qd_loss_l1(g, "loss", a, b);
}

static qd_node_id cosine(qd_graph *g, qd_node_id a, qd_node_id b)
{
    return qd_loss_cosine(g, "loss", a, b);
}

/* Value and derivative by the first input; rows declared -1, so that the loss is right for any batch. */
static float evaluate(build_fn *build, const float *a, const float *b, int64_t rows, int64_t columns, float *grad)
{
    qd_err err = { 0 };
    qd_graph *g = NULL, *d = NULL;
    qd_plan *p = NULL;
    float value;
    const qd_shape open = QD_SHAPE(-1, columns), given[2] = { QD_SHAPE(rows, columns), QD_SHAPE(rows, columns) };
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id ia = qd_graph_input(g, "a", QD_F32, &open), ib = qd_graph_input(g, "b", QD_F32, &open);
    const qd_node_id loss = build(g, ia, ib);
    qd_graph_output(g, "value", loss);
    check_ok(qd_graph_gradient(g, loss, &ia, 1, &d, &err), &err);
    const qd_plan_options o = { .input_shapes = given, .n_inputs = 2 };
    check_ok(qd_plan_compile(d, &o, &p, &err), &err);
    check_ok(qd_plan_run(p, NULL, (const void *[]){ a, b }, (void *[]){ &value, grad }, &err), &err);
    qd_plan_free(p);
    qd_graph_free(d);
    qd_graph_free(g);
    return value;
}

/* Single precision through exponentials of arguments up to about 10. */
static void check_loss(build_fn *build, const float *a, const float *b, const float *value, const float *want)
{
    float grad[20];
    const float got = evaluate(build, a, b, 4, 5, grad);
    check_close(&got, value, 1, 0.0, 2e-6);
    check_close(grad, want, 20, 0.0, 1e-5);
}

static void losses_agree_with_pytorch(void **state)
{
    check_loss(ce, ce_0, ce_1, ce_value, ce_grad);
    check_loss(ce, soft_ce_0, soft_ce_1, soft_ce_value, soft_ce_grad);
    check_loss(kl, kl_0, kl_1, kl_value, kl_grad);
    check_loss(mse, mse_0, mse_1, mse_value, mse_grad);
    check_loss(l1, l1_0, l1_1, l1_value, l1_grad);
    check_loss(cosine, cosine_0, cosine_1, cosine_value, cosine_grad);
}

/* At T = 20 logarithms of nearly equal numbers are subtracted and multiplied by 400. */
static void warm_distillation_agrees(void **state)
{
    float grad[20];
    const float got = evaluate(kl_mean, kl_mean_0, kl_mean_1, 4, 5, grad);
    check_close(&got, kl_mean_value, 1, 0.0, 1e-4);
    check_close(grad, kl_mean_grad, 20, 0.0, 1e-4);
}

/* --- contrast --- */

enum { N = 8, D = 3 };

static float contrast(const float *z, const float *target, float *grad)
{
    qd_err err = { 0 };
    qd_graph *g = NULL, *d = NULL;
    qd_plan *p = NULL;
    float value, self[N * N];
    const qd_shape given[3] = { QD_SHAPE(N, D), QD_SHAPE(N, N), QD_SHAPE(N, N) };
    qd_contrast_self(self, N);
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id iz = qd_graph_input(g, "z", QD_F32, &given[0]), it = qd_graph_input(g, "t", QD_F32, &given[1]);
    const qd_node_id is = qd_graph_input(g, "s", QD_F32, &given[2]);
    const qd_node_id loss = qd_loss_contrast(g, "loss", iz, it, is, 0.2);
    qd_graph_output(g, "value", loss);
    check_ok(qd_graph_gradient(g, loss, &iz, 1, &d, &err), &err);
    const qd_plan_options o = { .input_shapes = given, .n_inputs = 3 };
    check_ok(qd_plan_compile(d, &o, &p, &err), &err);
    check_ok(qd_plan_run(p, NULL, (const void *[]){ z, target, self }, (void *[]){ &value, grad }, &err), &err);
    qd_plan_free(p);
    qd_graph_free(d);
    qd_graph_free(g);
    return value;
}

static void contrast_agrees_with_pytorch_and_colt_4_4(void **state)
{
    float target[N * N], grad[N * D];
    const int32_t domain[N] = { 0, 0, 1, 1, 0, 0, 1, 1 };
    const float published[2] = { 8.2582522044f, 6.7902069677f };
    qd_contrast_pairs(target, N);
    float got = contrast(nt_xent_0, target, grad);
    check_close(&got, nt_xent_value, 1, 0.0, 2e-6);
    check_close(&got, &published[0], 1, 0.0, 2e-6);
    check_close(grad, nt_xent_grad, N * D, 0.0, 1e-5);
    for (int i = 0; i < N; i++) { /* moving along z changes nothing */
        double along = 0.0;
        for (int c = 0; c < D; c++)
            along += (double)grad[i * D + c] * nt_xent_0[i * D + c];
        assert_true(fabs(along) < 1e-5);
    }
    qd_contrast_labels(target, domain, N);
    got = contrast(supcon_0, target, grad);
    check_close(&got, supcon_value, 1, 0.0, 2e-6);
    check_close(&got, &published[1], 1, 0.0, 2e-6);
    check_close(grad, supcon_grad, N * D, 0.0, 1e-5);
}

static void equal_rows_give_the_logarithm_of_the_others(void **state)
{
    float z[N * D], target[N * N], grad[N * D];
    for (int i = 0; i < N * D; i++)
        z[i] = (float)(i / D + 1) * (float)(i % D + 1); /* one direction, many lengths */
    qd_contrast_pairs(target, N);
    assert_true(fabs(contrast(z, target, grad) - log(N - 1)) < 1e-5);
}

static void zero_rows_stay_finite(void **state)
{
    const float a[6] = { 0, 0, 0, 1, 2, 3 }, b[6] = { 1, 1, 1, 0, 0, 0 };
    float grad[6];
    const float value = evaluate(cosine, a, b, 2, 3, grad);
    assert_true(value == 1.0f);
    for (int k = 0; k < 6; k++)
        assert_true(isfinite(grad[k]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_agree_with_pytorch),
        cmocka_unit_test(warm_distillation_agrees),
        cmocka_unit_test(contrast_agrees_with_pytorch_and_colt_4_4),
        cmocka_unit_test(equal_rows_give_the_logarithm_of_the_others),
        cmocka_unit_test(zero_rows_stay_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
