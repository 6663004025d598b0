/* test_schedule.c - noise levels and grids against diffusion_models.md 7, and what a scheduler's config may say. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "diffusion/diffusion.h"

static qd_schedule *make(const char *name, double lo, double hi)
{
    qd_err err = { 0 };
    qd_schedule *s = NULL;
    check_ok(qd_schedule_make(name, lo, hi, 1000, &s, &err), &err);
    return s;
}

static void golden_levels(void **state)
{
    static const int t[8] = { 0, 1, 20, 250, 500, 750, 980, 999 };
    static const struct {
        const char *name;
        double lo, hi, abar[8]; // 0 = not given
    } rows[] = {
        { "linear",
          1e-4,
          0.02,
          { 0.9999, 0.999780092, 0.993735429, 0.521423031, 0.0777966584, 0.00330015836, 5.90375e-05, 4.03583e-05 } },
        { "scaled_linear",
          0.00085,
          0.012,
          { 0.99915, 0.998296028, 0.981314362, 0.673792625, 0.276332684, 0.056169848, 0.00584378332, 0.00466009851 } },
        { "scaled_linear",
          0.0015,
          0.0195,
          { 0.9985, 0.996994427, 0.96734635, 0.50842433, 0.114922001, 0.00833413595, 2.05867e-04, 1.42304e-04 } },
        { "scaled_linear",
          0.0015,
          0.0155,
          { 0.9985, 0.996995602, 0.967593167, 0.535476001, 0.150070051, 0.017394474, 8.96405e-04, 6.68665e-04 } },
        { "squaredcos_cap_v2", 0, 0, { 0.999958716, 0, 0, 0.845887986, 0.492285172, 0.143178646, 0, 2.42877e-09 } },
    };
    for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
        qd_schedule *s = make(rows[r].name, rows[r].lo, rows[r].hi);
        for (int k = 0; k < 8; k++) {
            const double want = rows[r].abar[k], have = s->alpha_bar[t[k]];
            if (want != 0.0 && !(fabs(have - want) <= 3e-6 * want)) /* six digits are printed of the small ones */
                fail_msg("%s row %zu: abar[%d] = %.12g, wanted %.12g", rows[r].name, r, t[k], have, want);
        }
        qd_schedule_free(s);
    }
}

static void check_grid(const qd_schedule *s, qd_spacing spacing, int steps, const int *head, int n_head,
                       const int *tail, int n_tail)
{
    qd_err err = { 0 };
    int t[1000];
    check_ok(qd_timesteps(s, spacing, steps, t, &err), &err);
    for (int k = 0; k < n_head; k++)
        assert_int_equal(t[k], head[k]);
    for (int k = 0; k < n_tail; k++)
        assert_int_equal(t[steps - n_tail + k], tail[k]);
    for (int k = 1; k < steps; k++)
        assert_true(t[k] <= t[k - 1]);
}

static void golden_grids(void **state)
{
    qd_schedule *s = make("linear", 1e-4, 0.02);
    check_grid(s, QD_SPACING_LEADING, 100, (const int[]){ 990, 980 }, 2, (const int[]){ 10, 0 }, 2);
    check_grid(s, QD_SPACING_LEADING, 3, (const int[]){ 666, 333, 0 }, 3, NULL, 0);
    check_grid(s, QD_SPACING_LEADING, 1000, (const int[]){ 999, 998 }, 2, (const int[]){ 1, 0 }, 2);
    check_grid(s, QD_SPACING_TRAILING, 50, (const int[]){ 999, 979 }, 2, (const int[]){ 39, 19 }, 2);
    check_grid(s, QD_SPACING_TRAILING, 1, (const int[]){ 999 }, 1, NULL, 0);
    check_grid(s, QD_SPACING_TRAILING, 3, (const int[]){ 999, 666, 332 }, 3, NULL,
               0); /* round(666.67), round(333.33) */
    check_grid(s, QD_SPACING_LINSPACE, 5, (const int[]){ 999, 749, 500, 250, 0 }, 5, NULL, 0);
    check_grid(s, QD_SPACING_QUAD, 100, (const int[]){ 800, 783, 768, 752 }, 4,
               (const int[]){ 13, 11, 9, 8, 6, 5, 3, 2, 2, 1, 0, 0, 0, 0 }, 14);
    int t[100], distinct = 1;
    qd_err err = { 0 };
    check_ok(qd_timesteps(s, QD_SPACING_QUAD, 100, t, &err), &err);
    for (int k = 1; k < 100; k++)
        distinct += t[k] != t[k - 1];
    assert_int_equal(distinct, 96);

    s->steps_offset = 1;
    check_grid(s, QD_SPACING_LEADING, 50, (const int[]){ 981, 961, 941 }, 3, (const int[]){ 21, 1 }, 2);
    check_fails(qd_timesteps(s, QD_SPACING_LEADING, 1000, t, &err), QD_E_INVALID, "steps_offset 1", &err);
    check_fails(qd_timesteps(s, QD_SPACING_LEADING, 0, t, &err), QD_E_INVALID, "1..1000", &err);
    check_fails(qd_timesteps(s, QD_SPACING_QUAD, 1001, t, &err), QD_E_INVALID, "got 1001", &err);
    qd_schedule_free(s);
}

/* The last entry of a quad grid must not lose one to rounding, whatever T. */
static void quad_ends_where_it_should(void **state)
{
    qd_err err = { 0 };
    for (int train = 10; train <= 4000; train += 10) {
        qd_schedule *s = NULL;
        int t[10];
        check_ok(qd_schedule_make("linear", 1e-4, 0.02, train, &s, &err), &err);
        check_ok(qd_timesteps(s, QD_SPACING_QUAD, 10, t, &err), &err);
        assert_int_equal(t[0], train * 8 / 10);
        assert_int_equal(t[9], 0);
        qd_schedule_free(s);
    }
}

static qd_status open_text(const char *text, qd_schedule **out, qd_err *err)
{
    qd_config *c = NULL;
    qd_status st = qd_config_parse(text, strlen(text), "scheduler", &c, err);
    if (!st)
        st = qd_schedule_open(c, out, err);
    qd_config_free(c);
    return st;
}

static void configs(void **state)
{
    qd_err err = { 0 };
    qd_schedule *s = NULL, *linear = make("linear", 1e-4, 0.02);

    check_ok(qd_schedule_open(NULL, &s, &err), &err);
    assert_int_equal(s->train_steps, 1000);
    assert_memory_equal(s->alpha_bar, linear->alpha_bar, 1000 * sizeof(double));
    qd_schedule_free(s);

    check_ok(open_text("{}", &s, &err), &err);
    assert_memory_equal(s->alpha_bar, linear->alpha_bar, 1000 * sizeof(double));
    assert_true(s->clip_sample && s->set_alpha_to_one && s->clip_range == 1.0);
    assert_int_equal(s->prediction, QD_PREDICT_EPSILON);
    assert_int_equal(s->variance, QD_VAR_FIXED_SMALL);
    assert_int_equal(s->spacing, QD_SPACING_LEADING);
    assert_int_equal(s->steps_offset, 0);
    qd_schedule_free(s);

    /* SD 1 */
    check_ok(
        open_text(
            "{\"_class_name\":\"PNDMScheduler\",\"beta_start\":0.00085,\"beta_end\":0.012,\"beta_schedule\":\"scaled_linear\","
            "\"skip_prk_steps\":true,\"set_alpha_to_one\":false,\"steps_offset\":1,\"trained_betas\":null}",
            &s, &err),
        &err);
    assert_true(fabs(s->alpha_bar[999] - 0.00466009851) < 1e-9);
    assert_false(s->clip_sample || s->set_alpha_to_one);
    assert_int_equal(s->steps_offset, 1);
    qd_schedule_free(s);

    check_ok(
        open_text("{\"_class_name\":\"DPMSolverMultistepScheduler\",\"prediction_type\":\"v_prediction\"}", &s, &err),
        &err);
    assert_int_equal(s->prediction, QD_PREDICT_V);
    assert_int_equal(s->spacing, QD_SPACING_LINSPACE);
    assert_true(!s->clip_sample && s->set_alpha_to_one);
    qd_schedule_free(s);

    check_ok(
        open_text(
            "{\"prediction_type\":\"sample\",\"variance_type\":\"fixed_large\",\"clip_sample\":false,\"clip_sample_range\":2,"
            "\"timestep_spacing\":\"trailing\",\"num_train_timesteps\":3,\"trained_betas\":[0.5,0.5,0.2]}",
            &s, &err),
        &err);
    assert_int_equal(s->train_steps, 3);
    assert_true(s->alpha_bar[0] == 0.5 && s->alpha_bar[1] == 0.25 && fabs(s->alpha_bar[2] - 0.2) < 1e-15);
    assert_int_equal(s->prediction, QD_PREDICT_SAMPLE);
    assert_int_equal(s->variance, QD_VAR_FIXED_LARGE);
    assert_int_equal(s->spacing, QD_SPACING_TRAILING);
    assert_true(!s->clip_sample && s->clip_range == 2.0);
    qd_schedule_free(s);
    qd_schedule_free(linear);
}

static void bad_configs(void **state)
{
    static const struct {
        qd_status status;
        const char *text, *words;
    } rows[] = {
        { QD_E_UNSUPPORTED, "{\"beta_schedule\":\"sigmoid\"}", "'sigmoid'" },
        { QD_E_FORMAT, "{\"beta_schedule\":3}", "beta_schedule" },
        { QD_E_INVALID, "{\"beta_start\":0}", "beta_start 0" },
        { QD_E_INVALID, "{\"beta_start\":0.5,\"beta_end\":0.1}", "beta_end 0.1" },
        { QD_E_INVALID, "{\"beta_end\":1}", "beta_end 1" },
        { QD_E_FORMAT, "{\"num_train_timesteps\":0}", "num_train_timesteps" },
        { QD_E_FORMAT, "{\"num_train_timesteps\":10001}", "num_train_timesteps" },
        { QD_E_INVALID, "{\"trained_betas\":[0.1,0.2]}", "'trained_betas' has 2 entries" },
        { QD_E_INVALID, "{\"num_train_timesteps\":2,\"trained_betas\":[0.1,1.0]}", "'trained_betas' holds 1 at 1" },
        { QD_E_FORMAT, "{\"trained_betas\":[\"x\"]}", "trained_betas" },
        { QD_E_UNSUPPORTED, "{\"prediction_type\":\"flow\"}", "'prediction_type' is 'flow'" },
        { QD_E_UNSUPPORTED, "{\"variance_type\":\"learned_range\"}", "'variance_type' is 'learned_range'" },
        { QD_E_UNSUPPORTED, "{\"timestep_spacing\":\"log\"}", "'timestep_spacing' is 'log'" },
        { QD_E_UNSUPPORTED, "{\"thresholding\":true}", "'thresholding'" },
        { QD_E_UNSUPPORTED, "{\"rescale_betas_zero_snr\":true}", "'rescale_betas_zero_snr'" },
        { QD_E_FORMAT, "{\"clip_sample\":\"no\"}", "clip_sample" },
        { QD_E_INVALID, "{\"clip_sample_range\":0}", "clip_sample_range" },
        { QD_E_FORMAT, "{\"steps_offset\":-1}", "steps_offset" },
    };
    qd_err err = { 0 };
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        qd_schedule *s = NULL;
        check_fails(open_text(rows[k].text, &s, &err), rows[k].status, rows[k].words, &err);
        assert_null(s);
    }
}

/* The delivered model's own table, if it is here. */
static void delivered_levels(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    const char *path = harness_data("weights/fmnist-ddpm-unet/golden.safetensors");
    if (!path)
        skip();
    check_ok(qd_safetensors_open(path, &w, NULL, &err), &err);
    qd_schedule *s = make("linear", 1e-4, 0.02);
    qd_tensor t = { 0 };
    check_ok(qd_tensor_cast(&t, qd_weights_find(w, "alpha_bar"), QD_F64, NULL, &err), &err);
    for (int k = 0; k < 1000; k++)
        assert_true(fabs(((const double *)t.data)[k] - s->alpha_bar[k]) <= 1e-5 * s->alpha_bar[k]);
    qd_tensor_clear(&t);
    qd_schedule_free(s);
    qd_weights_free(w);
}

static void allocations_fail(void **state)
{
    static const char *const texts[] = { "{}", "{\"num_train_timesteps\":1,\"trained_betas\":[0.1]}" };
    for (int which = 0; which < 2; which++) {
        qd_config *c = NULL;
        qd_err err = { 0 };
        check_ok(qd_config_parse(texts[which], strlen(texts[which]), "scheduler", &c, &err), &err);
        for (long k = 0;; k++) {
            qd_schedule *s = NULL;
            qd_mem_fault_set(k);
            const qd_status st = qd_schedule_open(c, &s, &err);
            const bool hit = qd_mem_fault_hit();
            qd_mem_fault_set(-1);
            if (!hit) {
                check_ok(st, &err);
                assert_true(k >= 2);
                qd_schedule_free(s);
                break;
            }
            check_fails(st, QD_E_NOMEM, NULL, &err);
            assert_null(s);
        }
        qd_config_free(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_levels),    cmocka_unit_test(golden_grids), cmocka_unit_test(quad_ends_where_it_should),
        cmocka_unit_test(configs),          cmocka_unit_test(bad_configs),  cmocka_unit_test(delivered_levels),
        cmocka_unit_test(allocations_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
