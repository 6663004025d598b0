/* test_inspect.c - what a model says of itself once it was opened and built. */
#include "jobs_common.h"

#include "graph/op.h"
#include "model/model.h"

static const sv_settings settings = { .job_memory_bytes = 256 << 20 };

static void the_model_that_ships(void **state)
{
    const char *path = harness_source("deploy/models/fmnist-ddpm-unet");
    char *format = NULL, *role = NULL, *summary = NULL;
    qd_err err = { 0 };
    if (!qd_fs_exists(path))
        skip();
    check_ok(sv_model_inspect(path, &settings, &format, &role, &summary, &err), &err);
    assert_string_equal(format, "diffusers");
    assert_string_equal(role, "denoiser");
    json_t *o = json_of(summary);
    assert_string_equal(json_string_value(json_object_get(o, "class")), "UNet2DModel");
    assert_int_equal(json_integer_value(json_object_get(o, "parameters")), 686769);
    assert_int_equal(json_integer_value(json_object_get(o, "parameter_bytes")), 4 * 686769);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "ops"), "conv2d")), 36);
    assert_int_equal(json_integer_value(json_object_get(o, "layers")), 36 + 29);
    assert_true(json_is_false(json_object_get(o, "quantized")));
    assert_true(json_integer_value(json_object_get(o, "macs")) > 10 * 1000 * 1000);
    const json_t *shape = json_object_get(json_object_get(json_object_get(o, "inputs"), "sample"), "shape");
    json_t *want = json_of("[null,1,28,28]");
    assert_true(json_equal(shape, want));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "scheduler"), "num_train_timesteps")), 1000);
    json_decref(want);
    json_decref(o);
    qd_free(format);
    qd_free(role);
    qd_free(summary);
}

static void what_is_no_model_is_refused(void **state)
{
    char *format = NULL, *role = NULL, *summary = NULL;
    qd_err err = { 0 };
    char *path = qd_fs_join(harness_tmp(), "junk.safetensors");
    check_ok(qd_fs_write(path, "hello, I am not a model", 23, &err), &err);
    check_fails(sv_model_inspect(path, &settings, &format, &role, &summary, &err), QD_E_UNSUPPORTED, "junk.safetensors",
                &err);
    check_fails(sv_model_inspect("/nowhere", &settings, &format, &role, &summary, &err), QD_E_NOT_FOUND, "/nowhere",
                &err);
    assert_null(format);
    assert_null(role);
    assert_null(summary);
    qd_free(path);
}

/* A schedule that cannot be followed is found when the model is looked at, not when a job has waited for it. */
static void a_bad_schedule_is_refused(void **state)
{
    static const char *const files[] = { "config.json", "diffusion_pytorch_model.safetensors" };
    static const char bad[] = "{\"beta_schedule\":\"wavy\"}";
    char *format = NULL, *role = NULL, *summary = NULL;
    qd_err err = { 0 };
    char folder[512];
    if (!qd_fs_exists(harness_source("deploy/models/fmnist-ddpm-unet")))
        skip();
    snprintf(folder, sizeof folder, "%s", harness_tmp());
    for (int k = 0; k < 2; k++) {
        char from[600], *data = NULL, *to = qd_fs_join(folder, files[k]);
        size_t size;
        snprintf(from, sizeof from, "%s/%s", harness_source("deploy/models/fmnist-ddpm-unet"), files[k]);
        check_ok(qd_fs_take(from, 1 << 24, &data, &size, &err), &err);
        check_ok(qd_fs_write(to, data, size, &err), &err);
        qd_free(data);
        qd_free(to);
    }
    char *schedule = qd_fs_join(folder, "scheduler_config.json");
    check_ok(qd_fs_write(schedule, bad, sizeof bad - 1, &err), &err);
    const qd_status st = sv_model_inspect(folder, &settings, &format, &role, &summary, &err);
    assert_true(st != QD_OK);
    assert_non_null(strstr(err.text, "wavy"));
    assert_null(summary);
    qd_free(schedule);
}

/* A bundle may claim anything in its manifest; figures come from the graph. */
static void a_bundles_claims_are_not_believed(void **state)
{
    qd_graph *g = NULL;
    qd_meta *meta = NULL;
    qd_err err = { 0 };
    char *format = NULL, *role = NULL, *summary = NULL;
    char *path = qd_fs_join(harness_tmp(), "claims.safetensors");
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape shape = QD_SHAPE(-1, 4);
    const qd_node_id x = qd_graph_input(g, "x", QD_F32, &shape);
    qd_graph_output(g, "y", qd_graph_add(g, &qd_op_relu, "relu", QD_IN(x), QD_NO_ATTRS));
    check_ok(qd_graph_verify(g, &err), &err);
    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_meta_set(meta, "manifest", "{\"params\":{\"weight_bits\":4}}", &err), &err);
    check_ok(qd_meta_set(meta, "role", "denoiser", &err), &err);
    check_ok(qd_bundle_save(path, g, meta, NULL, &err), &err);
    check_ok(sv_model_inspect(path, &settings, &format, &role, &summary, &err), &err);
    assert_string_equal(format, "bundle");
    assert_string_equal(role, "other");
    json_t *o = json_of(summary);
    assert_true(json_is_false(json_object_get(o, "quantized")));
    assert_null(json_object_get(o, "weight_bits"));
    json_decref(o);
    qd_free(format);
    qd_free(role);
    qd_free(summary);
    qd_meta_free(meta);
    qd_graph_free(g);
    qd_free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_model_that_ships),
        cmocka_unit_test(what_is_no_model_is_refused),
        cmocka_unit_test(a_bad_schedule_is_refused),
        cmocka_unit_test(a_bundles_claims_are_not_believed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
