/* test_validate.c - every bad body gets a pointer and words; a good one is filled in. */
#include "jobs_common.h"

typedef struct bad {
    const char *what, *body; /* %s = the model's id */
    const char *pointer, *words;
} bad;

static const bad table[] = {
    { "no object", "[1]", "", "a job is a JSON object" },
    { "no kind", "{\"model\":\"%s\"}", "/kind", "kind must be one of quantize, sample" },
    { "unknown kind", "{\"kind\":\"magic\",\"model\":\"%s\"}", "/kind", "magic" },
    { "kind is a number", "{\"kind\":3,\"model\":\"%s\"}", "/kind", "kind must be" },
    { "unknown field", "{\"kind\":\"sample\",\"model\":\"%s\",\"parms\":{}}", "/parms", "'parms' is not a field" },
    { "no model", "{\"kind\":\"sample\"}", "/model", "model must be the id" },
    { "model does not exist", "{\"kind\":\"sample\",\"model\":\"mdl_none\"}", "/model", "mdl_none" },
    { "model is a number", "{\"kind\":\"sample\",\"model\":5}", "/model", "model must be" },
    { "dataset", "{\"kind\":\"sample\",\"model\":\"%s\",\"dataset\":\"dst_1\"}", "/dataset", "takes no dataset" },
    { "params is a list", "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":[]}", "/params", "must be an object" },
    { "unknown method", "{\"kind\":\"quantize\",\"model\":\"%s\",\"params\":{\"method\":\"magic\"}}", "/params/method",
      "magic" },
    { "method is a number", "{\"kind\":\"quantize\",\"model\":\"%s\",\"params\":{\"method\":1}}", "/params/method",
      "text" },
    { "unknown param", "{\"kind\":\"quantize\",\"model\":\"%s\",\"params\":{\"wieght_bits\":8}}", "/params/wieght_bits",
      "wieght_bits" },
    { "unknown param, null", "{\"kind\":\"quantize\",\"model\":\"%s\",\"params\":{\"bits\":null}}", "/params/bits",
      "bits" },
    { "param with a slash", "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"a/b~c\":1}}", "/params/a~1b~0c",
      "a/b~c" },
    { "value not allowed", "{\"kind\":\"quantize\",\"model\":\"%s\",\"params\":{\"weight_bits\":5}}",
      "/params/weight_bits", "weight_bits" },
    { "text for a number", "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"steps\":\"many\"}}", "/params/steps",
      "many" },
    { "below the range", "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"steps\":0}}", "/params/steps", "got 0" },
    { "above the range", "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"count\":4097}}", "/params/count",
      "4097" },
    { "half a picture", "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"count\":1.5}}", "/params/count", "1.5" },
    { "list for a number", "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"count\":[1]}}", "/params/count",
      "array" },
    { "bool for a number", "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"count\":true}}", "/params/count",
      "count" },
    { "unknown preset", "{\"kind\":\"quantize\",\"model\":\"%s\",\"params\":{\"preset\":\"best\"}}", "/params/preset",
      "best" },
    { "priority", "{\"kind\":\"sample\",\"model\":\"%s\",\"priority\":5000}", "/priority", "-1000..1000" },
    { "priority is text", "{\"kind\":\"sample\",\"model\":\"%s\",\"priority\":\"high\"}", "/priority", "whole number" },
    { "time limit", "{\"kind\":\"sample\",\"model\":\"%s\",\"time_limit_s\":0}", "/time_limit_s", "got 0" },
    { "run_at", "{\"kind\":\"sample\",\"model\":\"%s\",\"run_at\":\"tomorrow\"}", "/run_at", "RFC 3339" },
    { "run_at, no such day", "{\"kind\":\"sample\",\"model\":\"%s\",\"run_at\":\"2026-02-30T00:00:00Z\"}", "/run_at",
      "RFC 3339" },
    { "run_at, too far", "{\"kind\":\"sample\",\"model\":\"%s\",\"run_at\":\"2999-01-01T00:00:00Z\"}", "/run_at",
      "a year" },
    { "max_drop where none is", "{\"kind\":\"sample\",\"model\":\"%s\",\"max_drop\":{}}", "/max_drop",
      "takes no max_drop" },
    { "max_drop, metric", "{\"kind\":\"quantize\",\"model\":\"%s\",\"max_drop\":{\"metric\":\"fid\",\"value\":1}}",
      "/max_drop/metric", "sqnr_db, psnr_db" },
    { "max_drop, value", "{\"kind\":\"quantize\",\"model\":\"%s\",\"max_drop\":{\"metric\":\"sqnr_db\"}}",
      "/max_drop/value", "dB" },
    { "max_drop, more",
      "{\"kind\":\"quantize\",\"model\":\"%s\",\"max_drop\":{\"metric\":\"sqnr_db\",\"value\":1,\"x\":1}}", "/max_drop",
      "nothing else" },
    { "metadata", "{\"kind\":\"sample\",\"model\":\"%s\",\"metadata\":7}", "/metadata", "object" },
};

static void each_bad_body_is_explained(void **state)
{
    place p;
    place_open(&p);
    if (!p.model[0])
        skip();
    for (size_t k = 0; k < sizeof table / sizeof table[0]; k++) {
        char text[512], pointer[128] = "unset";
        sv_job_row row = { 0 };
        qd_err err = { 0 };
        const char *at = strstr(table[k].body, "%s");
        snprintf(text, sizeof text, "%.*s%s%s", at ? (int)(at - table[k].body) : (int)strlen(table[k].body),
                 table[k].body, at ? p.model : "", at ? at + 2 : "");
        json_t *body = json_of(text);
        const qd_status st = sv_job_parse(p.store, body, &row, pointer, &err);
        json_decref(body);
        if (st != QD_E_INVALID || strcmp(pointer, table[k].pointer) != 0 || !strstr(err.text, table[k].words))
            fail_msg("%s: status %d, pointer '%s' (want '%s'), words '%s' (want '%s')", table[k].what, (int)st, pointer,
                     table[k].pointer, err.text, table[k].words);
    }
    place_close(&p);
}

static void metadata_has_a_limit(void **state)
{
    place p;
    place_open(&p);
    if (!p.model[0])
        skip();
    char *big = qd_alloc(20001);
    memset(big, 'x', 20000);
    big[20000] = '\0';
    json_t *body = body_of("sample", p.model, "{}", "");
    json_object_set_new(body, "metadata", json_pack("{s:s}", "a", big));
    sv_job_row row = { 0 };
    char pointer[128];
    qd_err err = { 0 };
    check_fails(sv_job_parse(p.store, body, &row, pointer, &err), QD_E_INVALID, "16384", &err);
    assert_string_equal(pointer, "/metadata");
    json_decref(body);
    qd_free(big);
    place_close(&p);
}

static void a_good_body_is_filled_in(void **state)
{
    place p;
    place_open(&p);
    if (!p.model[0])
        skip();
    json_t *body =
        body_of("quantize", p.model, "{\"preset\":\"fast\",\"calibration_steps\":7,\"steps\":20.0,\"seed\":null}",
                ",\"priority\":-3,\"time_limit_s\":60,\"run_at\":\"2020-01-01T01:00:00.250+01:00\","
                "\"metadata\":{\"team\":\"a\"},\"dataset\":null,\"max_drop\":null");
    sv_job_row row = { 0 };
    char pointer[128];
    qd_err err = { 0 };
    check_ok(sv_job_parse(p.store, body, &row, pointer, &err), &err);
    assert_string_equal(pointer, "");
    assert_string_equal(row.kind, "quantize");
    assert_string_equal(row.method, "mse");
    assert_string_equal(row.status, "queued");
    assert_string_equal(row.model_id, p.model);
    assert_int_equal(row.priority, -3);
    assert_int_equal(row.time_limit_s, 60);
    assert_int_equal(row.max_attempts, 3);
    assert_int_equal(row.run_at_ms, 1577836800250ll);
    assert_string_equal(row.metadata, "{\"team\":\"a\"}");

    json_t *params = json_of(row.params);
    assert_string_equal(json_string_value(json_object_get(params, "method")), "mse");
    assert_int_equal(json_integer_value(json_object_get(params, "calibration_steps")),
                     7); /* given wins over the preset */
    assert_int_equal(json_integer_value(json_object_get(params, "calibration_samples")), 16); /* the preset's */
    assert_int_equal(json_integer_value(json_object_get(params, "steps")), 20);
    assert_int_equal(json_integer_value(json_object_get(params, "seed")), 0);
    assert_int_equal(json_integer_value(json_object_get(params, "pairs")), 8);
    json_decref(params);

    /* The canonical body does not depend on the order of the fields. */
    json_t *again = json_object();
    const char *names[] = { "metadata", "run_at",       "params",   "model",  "kind",
                            "priority", "time_limit_s", "max_drop", "dataset" };
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++)
        json_object_set(again, names[k], json_object_get(body, names[k]));
    sv_job_row other = { 0 };
    check_ok(sv_job_parse(p.store, again, &other, pointer, &err), &err);
    assert_string_equal(row.body, other.body);
    assert_string_not_equal(row.id, other.id);
    sv_job_row_clear(&other);
    sv_job_row_clear(&row);
    json_decref(again);
    json_decref(body);

    body = body_of("sample", "shipped", "{}", ",\"run_at\":null");
    check_ok(sv_job_parse(p.store, body, &row, pointer, &err), &err);
    assert_string_equal(row.model_id, p.model); /* by name */
    assert_string_equal(row.method, "ddim");
    sv_job_row_clear(&row);
    json_decref(body);
    place_close(&p);
}

static void a_later_time_is_scheduled(void **state)
{
    place p;
    place_open(&p);
    if (!p.model[0])
        skip();
    char text[64], more[96];
    sv_job_row row = { 0 };
    char pointer[128];
    qd_err err = { 0 };
    snprintf(more, sizeof more, ",\"run_at\":\"%s\"", sv_time_text(sv_now_ms() + 3600 * 1000, text));
    json_t *body = body_of("sample", p.model, "{}", more);
    check_ok(sv_job_parse(p.store, body, &row, pointer, &err), &err);
    assert_string_equal(row.status, "scheduled");
    sv_job_row_clear(&row);
    json_decref(body);
    place_close(&p);
}

/* Every allocation of the house's heap fails once: an error comes back, nothing leaks, the output stays untouched. */
static void memory_may_run_out_anywhere(void **state)
{
    place p;
    place_open(&p);
    if (!p.model[0])
        skip();
    json_t *body = body_of("quantize", p.model, QUICK, "");
    bool hit = true;
    for (long k = 0; hit && k < 1000; k++) {
        sv_job_row row = { 0 };
        char pointer[128];
        qd_err err = { 0 };
        qd_mem_fault_set(k);
        const qd_status st = sv_job_parse(p.store, body, &row, pointer, &err);
        hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        if (hit && st == QD_OK)
            fail_msg("allocation %ld failed and the job was accepted", k);
        if (st)
            assert_null(row.id);
        sv_job_row_clear(&row);
    }
    assert_false(hit);
    json_decref(body);
    place_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_bad_body_is_explained),  cmocka_unit_test(metadata_has_a_limit),
        cmocka_unit_test(a_good_body_is_filled_in),    cmocka_unit_test(a_later_time_is_scheduled),
        cmocka_unit_test(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
