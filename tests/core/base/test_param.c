/* test_param.c - parameters are checked when set, and refusals name the parameter, the value and the limit. */
#include "harness/harness.h"

#include <math.h>

#include "base/param.h"

static const char *const searches[] = { "minmax", "mse", NULL };
static const char *const widths[] = { "4", "8", NULL };
static const qd_param rows[] = {
    { .name = "steps", .type = QD_PARAM_INT, .summary = "How many steps.", .fallback = "50", .min = 1, .max = 1000 },
    { .name = "bits", .type = QD_PARAM_INT, .summary = "Bits.", .fallback = "8", .choices = widths },
    { .name = "eta", .type = QD_PARAM_NUMBER, .summary = "Noise.", .fallback = "0.5", .min = 0, .max = 1 },
    { .name = "any", .type = QD_PARAM_NUMBER, .summary = "No bound.", .fallback = "-1e30" },
    { .name = "symmetric", .type = QD_PARAM_BOOL, .summary = "Symmetric.", .fallback = "true" },
    { .name = "search", .type = QD_PARAM_CHOICE, .summary = "Search.", .fallback = "mse", .choices = searches },
    { .name = "model", .type = QD_PARAM_STRING, .summary = "The model.", .max = 5 },
    { 0 },
};

static void defaults(void **state)
{
    qd_err err = { 0 };
    qd_params *p;
    check_ok(qd_params_new(rows, &p, &err), &err);
    assert_int_equal(qd_params_int(p, "steps"), 50);
    assert_true(qd_params_number(p, "eta") == 0.5);
    assert_true(qd_params_bool(p, "symmetric"));
    assert_string_equal(qd_params_string(p, "search"), "mse");
    assert_false(qd_params_given(p, "steps"));
    check_fails(qd_params_check(p, &err), QD_E_INVALID, "params.model must be given: The model.", &err);
    check_ok(qd_params_set_string(p, "model", "m", &err), &err);
    check_ok(qd_params_check(p, &err), &err);
    assert_true(qd_params_given(p, "model"));
    assert_ptr_equal(qd_params_rows(p), rows);
    qd_params_free(p);
    qd_params_free(NULL);
}

static void refusals(void **state)
{
    qd_err err = { 0 };
    qd_params *p;
    check_ok(qd_params_new(rows, &p, &err), &err);
    check_fails(qd_params_set_int(p, "foo", 1, &err), QD_E_INVALID,
                "params.foo is not a parameter here; known: steps, bits, eta, any, symmetric, search, model", &err);
    check_fails(qd_params_set_int(p, "steps", 1001, &err), QD_E_INVALID, "params.steps must be 1..1000, got 1001",
                &err);
    check_fails(qd_params_set_int(p, "bits", 6, &err), QD_E_INVALID, "params.bits must be one of 4, 8, got 6", &err);
    check_fails(qd_params_set_number(p, "steps", 2.5, &err), QD_E_INVALID,
                "params.steps must be a whole number, got 2.5", &err);
    check_fails(qd_params_set_number(p, "eta", 1.5, &err), QD_E_INVALID, "params.eta must be 0..1, got 1.5", &err);
    check_fails(qd_params_set_number(p, "eta", NAN, &err), QD_E_INVALID, "params.eta must be finite", &err);
    check_fails(qd_params_set_number(p, "any", INFINITY, &err), QD_E_INVALID, "params.any must be finite", &err);
    check_fails(qd_params_set_number(p, "steps", 1e300, &err), QD_E_INVALID, "params.steps must be a whole number",
                &err);
    check_fails(qd_params_set_bool(p, "steps", true, &err), QD_E_INVALID,
                "params.steps must be a whole number, got true", &err);
    check_fails(qd_params_set_int(p, "symmetric", 1, &err), QD_E_INVALID,
                "params.symmetric must be true or false, got 1", &err);
    check_fails(qd_params_set_string(p, "search", "best", &err), QD_E_INVALID,
                "params.search must be one of minmax, mse, got 'best'", &err);
    check_fails(qd_params_set_string(p, "model", "abcdef", &err), QD_E_INVALID, "params.model must be at most 5 bytes",
                &err);
    check_fails(qd_params_set_string(p, "eta", "x", &err), QD_E_INVALID,
                "params.eta must be a number, got the text 'x'", &err);
    /* Nothing of that left a trace. */
    assert_int_equal(qd_params_int(p, "steps"), 50);
    assert_string_equal(qd_params_string(p, "search"), "mse");
    qd_params_free(p);
}

static void conversions(void **state)
{
    qd_err err = { 0 };
    qd_params *p;
    check_ok(qd_params_new(rows, &p, &err), &err);
    check_ok(qd_params_set_number(p, "steps", 7.0, &err), &err);
    assert_int_equal(qd_params_int(p, "steps"), 7);
    check_ok(qd_params_set_int(p, "eta", 1, &err), &err);
    assert_true(qd_params_number(p, "eta") == 1.0);
    check_ok(qd_params_set_text(p, "steps", "12", &err), &err);
    check_ok(qd_params_set_text(p, "eta", "0.25", &err), &err);
    check_ok(qd_params_set_text(p, "symmetric", "false", &err), &err);
    check_ok(qd_params_set_text(p, "search", "minmax", &err), &err);
    assert_int_equal(qd_params_int(p, "steps"), 12);
    assert_true(qd_params_number(p, "eta") == 0.25);
    assert_false(qd_params_bool(p, "symmetric"));
    assert_string_equal(qd_params_string(p, "search"), "minmax");
    check_fails(qd_params_set_text(p, "steps", "12x", &err), QD_E_INVALID,
                "params.steps must be a whole number, got '12x'", &err);
    check_fails(qd_params_set_text(p, "steps", "99999999999999999999", &err), QD_E_INVALID, "params.steps", &err);
    check_fails(qd_params_set_text(p, "eta", "", &err), QD_E_INVALID, "params.eta", &err);
    check_fails(qd_params_set_text(p, "symmetric", "yes", &err), QD_E_INVALID, "params.symmetric must be true or false",
                &err);
    qd_params_free(p);
}

static qd_status make_and_set(void *ctx, qd_err *err)
{
    qd_params *p = NULL;
    qd_status st = qd_params_new(rows, &p, err);
    if (!st)
        st = qd_params_set_string(p, "model", "abc", err);
    if (!st)
        st = qd_params_set_string(p, "model", "def", err);
    qd_params_free(p);
    return st;
}

static void out_of_memory(void **state)
{
    assert_int_equal(harness_run_each_alloc(make_and_set, NULL, 20), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(refusals),
        cmocka_unit_test(conversions),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
