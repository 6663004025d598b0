/* test_export.c - a model written in every other format, float and quantized, and what the job says of reading it back. */
#include "jobs_common.h"

#include <math.h>

#include "model/model.h"

static const char shipped[] = "deploy/models/fmnist-ddpm-unet";

/* Runs one job on a model; its result (new reference) and the folder with its files. */
static json_t *run_job(const char *kind, const char *model, const char *params, char folder[512])
{
    const sv_settings s = { .data_dir = (char *)"unused",
                            .workers = 1,
                            .threads = 1,
                            .lease_ms = 60000,
                            .heartbeat_ms = 1000,
                            .job_memory_bytes = 1 << 30 };
    char body[2048], path[600];
    qd_err err = { 0 };
    json_error_t where;
    snprintf(folder, 512, "%s", harness_tmp());
    snprintf(path, sizeof path, "%s/job.in", folder);
    snprintf(body, sizeof body, "{\"kind\":\"%s\",\"model\":\"%s\",\"params\":%s}", kind, model, params);
    check_ok(qd_fs_write(path, body, strlen(body), &err), &err);
    check_ok(sv_run_once(&s, path, folder, &err), &err);
    snprintf(path, sizeof path, "%s/job.json", folder);
    json_t *job = json_load_file(path, 0, &where);
    assert_non_null(job);
    json_t *result = json_incref(json_object_get(job, "result"));
    json_decref(job);
    assert_true(json_is_object(result));
    return result;
}

typedef struct expected {
    const char *params, *file, *compared;
    double least_db;   /* INFINITY = identical */
    double most_bytes; /* of the file, for each byte of the model's constants */
    double outputs_db; /* least, of the outputs on seeded inputs, where they are not identical */
    bool of_codes;     /* layers of codes are written and read */
} expected;

static void check_export(const char *model, const expected *e)
{
    char folder[512];
    json_t *r = run_job("export", model, e->params, folder), *back = json_object_get(r, "read_back");
    char *path = qd_fs_join(folder, e->file);
    assert_true(qd_fs_exists(path));
    qd_free(path);
    assert_string_equal(json_string_value(json_object_get(r, "artifact")), e->file);
    const double bytes = (double)json_integer_value(json_object_get(r, "bytes"));
    const double had = (double)json_integer_value(json_object_get(r, "parameter_bytes"));
    if (!(bytes > 0 && bytes < had * e->most_bytes))
        fail_msg("%s: %.0f bytes of a model of %.0f", e->params, bytes, had);
    assert_string_equal(json_string_value(json_object_get(back, "compared")), e->compared);
    assert_true(json_integer_value(json_object_get(back, "values")) > 0);
    const json_t *db = json_object_get(back, "sqnr_db"), *outputs = json_object_get(back, "outputs");
    const json_t *codes = json_object_get(back, "codes"), *exact = json_object_get(back, "identical");
    print_message("%s %s: worst %g, %g dB; of outputs %g dB; %.0f bytes\n", e->file, e->params,
                  json_number_value(json_object_get(back, "max_abs_difference")), json_number_value(db),
                  json_number_value(json_object_get(outputs, "sqnr_db")), bytes);
    assert_true(json_is_true(exact) || (!isinf(e->least_db) && json_number_value(db) > e->least_db));
    /* Bytes are bytes; all else is also run on the job's seeded inputs. */
    assert_int_equal(outputs != NULL, strcmp(e->compared, "bytes") != 0);
    if (outputs) {
        assert_true(json_integer_value(json_object_get(outputs, "values")) > 0);
        assert_true(json_is_true(json_object_get(outputs, "identical")) ||
                    json_number_value(json_object_get(outputs, "sqnr_db")) > e->outputs_db);
    }
    assert_int_equal(codes != NULL, strcmp(e->file, "model.onnx") == 0);
    if (codes) {
        assert_true(json_is_true(json_object_get(codes, "identical")));
        assert_int_equal(json_integer_value(json_object_get(codes, "layers")) > 0, e->of_codes);
    }
    json_decref(r);
}

static void of_floats(void **state)
{
    static const expected all[] = {
        { "{}", "model.onnx", "outputs", 100, 1.1, 100, false },
        { "{\"method\":\"onnx\",\"opset\":21}", "model.onnx", "outputs", 100, 1.1, 100, false },
        { "{\"method\":\"safetensors\"}", "weights.safetensors", "weights", INFINITY, 1.02, INFINITY, false },
        { "{\"method\":\"safetensors\",\"contents\":\"codes\"}", "weights.safetensors", "bytes", INFINITY, 1.02, 0,
          false },
        { "{\"method\":\"gguf\"}", "model.gguf", "weights", 40, 0.34, 30, false },
        { "{\"method\":\"gguf\",\"block_type\":\"q4_0\"}", "model.gguf", "weights", 20, 0.22, 8, false },
    };
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++)
        check_export(harness_source(shipped), &all[k]);
}

static void of_codes(void **state)
{
    static const expected all[] = {
        { "{\"method\":\"onnx\"}", "model.onnx", "outputs", INFINITY, 2.5, INFINITY, true },
        { "{\"method\":\"onnx\",\"opset\":21}", "model.onnx", "outputs", INFINITY, 1.6, INFINITY, true },
        { "{\"method\":\"safetensors\"}", "weights.safetensors", "weights", INFINITY, 7.5, 30, false },
        { "{\"method\":\"safetensors\",\"contents\":\"codes\"}", "weights.safetensors", "bytes", INFINITY, 1.2, 0,
          false },
        { "{\"method\":\"gguf\"}", "model.gguf", "weights", 45, 1.6, 15, false },
    };
    char folder[512];
    json_decref(
        run_job("quantize", harness_source(shipped),
                "{\"method\":\"minmax\",\"preset\":\"fast\",\"steps\":2,\"calibration_steps\":2,\"measure_samples\":1,"
                "\"weight_bits\":4,\"pairs\":0}",
                folder));
    char *bundle = qd_fs_join(folder, "model.safetensors");
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++)
        check_export(bundle, &all[k]);
    qd_free(bundle);
}

/* The floats of a quantized model under the names of the float one: opened like any other weight file. */
static void names_are_kept(void **state)
{
    char folder[512];
    qd_err err = { 0 };
    qd_model *m = NULL, *back = NULL;
    json_decref(
        run_job("quantize", harness_source(shipped),
                "{\"method\":\"minmax\",\"preset\":\"fast\",\"steps\":2,\"calibration_steps\":2,\"measure_samples\":1,"
                "\"pairs\":0}",
                folder));
    char *bundle = qd_fs_join(folder, "model.safetensors");
    json_decref(run_job("export", bundle, "{\"method\":\"safetensors\"}", folder));
    char *file = qd_fs_join(folder, "weights.safetensors");
    check_ok(qd_model_open(harness_source(shipped), NULL, &m, &err), &err);
    check_ok(qd_model_open(file, NULL, &back, &err), &err);
    assert_true(qd_weights_count(m->weights) > 50);
    for (int k = 0; k < qd_weights_count(m->weights); k++) {
        const qd_tensor *t = qd_weights_find(back->weights, qd_weights_name(m->weights, k));
        if (!t)
            fail_msg("'%s' is not in the file", qd_weights_name(m->weights, k));
        assert_true(qd_shape_equal(&t->shape, &qd_weights_at(m->weights, k)->shape));
    }
    qd_model_free(back);
    qd_model_free(m);
    qd_free(file);
    qd_free(bundle);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_floats),
        cmocka_unit_test(of_codes),
        cmocka_unit_test(names_are_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
