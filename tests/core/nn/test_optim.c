/* test_optim.c - optimizers against PyTorch, schedules against colt.md 7.1, and what is done beside. */
#include "harness/harness.h"

#include <math.h>
#include <string.h>

#include "nn/nn.h"

#include "golden/nn/train_golden.h"

/* The rest of the golden belongs to the tests beside this one. */
#pragma GCC diagnostic ignored "-Wunused-const-variable"

static void check_rule(const qd_optim_options *o, double lr, const float *want)
{
    float w[6], slots[2][6] = { { 0 } };
    float *const slot[2] = { slots[0], slots[1] };
    memcpy(w, optim_w, sizeof w);
    for (int k = 0; k < 5; k++)
        o->rule->apply(o, k + 1, lr, w, optim_g + 6 * k, slot, 6);
    check_close(w, want, 6, 0.0, 1e-6); /* five steps in single precision */
}

static void rules_agree_with_pytorch(void **state)
{
    qd_optim_options o = qd_optim_sgd.defaults;
    o.weight_decay = 0.01;
    check_rule(&o, 0.1, optim_sgd);
    o.nesterov = true;
    check_rule(&o, 0.1, optim_nesterov);
    o = qd_optim_adam.defaults;
    o.beta1 = 0.5;
    o.beta2 = 0.99;
    o.weight_decay = 0.01;
    check_rule(&o, 0.05, optim_adam);
    o = qd_optim_adamw.defaults;
    o.weight_decay = 0.1;
    check_rule(&o, 0.05, optim_adamw);
}

/* One step by hand: colt.md 7.1. */
static void lars_moves_in_proportion_to_length(void **state)
{
    qd_optim_options o = qd_optim_lars.defaults;
    o.weight_decay = 0.5;
    float w[2] = { 3.0f, 4.0f }, v[2] = { 1.0f, 0.0f };
    float *const slot[2] = { v, NULL };
    const float grad[2] = { 0.0f, 10.0f };
    const double trust = 1e-3 * 5.0 / (10.0 + 0.5 * 5.0);
    o.rule->apply(&o, 1, 2.0, w, grad, slot, 2);
    const float want_v[2] = { (float)(0.9 + 2.0 * trust * 1.5), (float)(2.0 * trust * 12.0) };
    const float want[2] = { 3.0f - want_v[0], 4.0f - want_v[1] };
    check_close(v, want_v, 2, 0.0, 1e-6);
    check_close(w, want, 2, 0.0, 1e-6);

    float zero[2] = { 0.0f, 0.0f }, fresh[2] = { 0.0f, 0.0f };
    float *const slot2[2] = { fresh, NULL };
    o.rule->apply(&o, 1, 2.0, zero, grad, slot2, 2); /* a length vanishes: trust 1 */
    assert_true(zero[1] == -20.0f);
}

static void tables_find_their_rows(void **state)
{
    for (int k = 0; qd_optims[k]; k++) {
        assert_ptr_equal(qd_optim_find(qd_optims[k]->name), qd_optims[k]);
        assert_ptr_equal(qd_optims[k]->defaults.rule, qd_optims[k]);
        assert_true(qd_optims[k]->slots >= 0 && qd_optims[k]->slots <= 2);
    }
    assert_null(qd_optim_find("none"));
}

static void check_lr(const qd_lr_schedule *s, int64_t step, double want)
{
    const double got = qd_lr_at(s, step);
    if (!(fabs(got - want) <= 5e-7))
        fail_msg("step %lld: %.9g, must be %.9g", (long long)step, got, want);
}

static void schedules_follow_their_shapes(void **state)
{
    const qd_lr_schedule cosine = { QD_LR_COSINE, .lr = 0.5, .lr_min = 1e-6, .warmup = 200, .total = 78000 };
    check_lr(&cosine, 0, 0.0); /* colt.md 7.1's goldens */
    check_lr(&cosine, 1, 0.0025);
    check_lr(&cosine, 100, 0.25);
    check_lr(&cosine, 200, 0.5);
    check_lr(&cosine, 20000, 0.424261);
    check_lr(&cosine, 78000, 1e-6);
    check_lr(&cosine, 99000, 1e-6);
    const qd_lr_schedule steps = { QD_LR_STEPS, .lr = 0.1, .factor = 0.1, .n_at = 2, .at = { 10, 20 } };
    check_lr(&steps, 9, 0.1);
    check_lr(&steps, 10, 0.01);
    check_lr(&steps, 25, 0.001);
    const qd_lr_schedule constant = { QD_LR_CONSTANT, .lr = 0.3, .warmup = 3 };
    check_lr(&constant, 1, 0.1);
    check_lr(&constant, 1000, 0.3);
}

static void clipping_and_averages(void **state)
{
    float g[2] = { 3.0f, -4.0f };
    const float half[2] = { 1.5f, -2.0f };
    assert_true(qd_clip_norm(g, 2, 10.0) == 5.0 && g[0] == 3.0f);
    assert_true(qd_clip_norm(g, 2, 2.5) == 5.0);
    check_close(g, half, 2, 0.0, 1e-7);
    float average[1] = { 1.0f };
    const float w[1] = { 3.0f }, want[1] = { 1.5f };
    qd_ema_update(average, w, 1, 0.75);
    check_close(average, want, 1, 0.0, 1e-7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_agree_with_pytorch), cmocka_unit_test(lars_moves_in_proportion_to_length),
        cmocka_unit_test(tables_find_their_rows),   cmocka_unit_test(schedules_follow_their_shapes),
        cmocka_unit_test(clipping_and_averages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
