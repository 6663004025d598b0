/* test_job_json.c - jobs and models as the API shows them. */
#include "jobs_common.h"

#include <math.h>

#include "jobs/jobs_int.h"

static const char *text_at(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    if (!text)
        fail_msg("no text under '%s'", key);
    return text;
}

static json_t *shown(place *p, const char *id)
{
    sv_job_row row = { 0 };
    qd_err err = { 0 };
    check_ok(sv_jobs_get(p->store, id, &row, &err), &err);
    json_t *o = sv_job_json(p->store, &row);
    sv_job_row_clear(&row);
    return o;
}

static void a_job_from_queue_to_end(void **state)
{
    place p;
    sv_job_row claimed = { 0 };
    qd_err err = { 0 };
    char first[40], second[40], link[96];
    int64_t seq;
    place_open(&p);
    if (!p.model[0])
        skip();
    submit(&p, "sample", p.model, "{\"steps\":5}", ",\"metadata\":{\"team\":\"a\"}", first);
    submit(&p, "sample", p.model, "{\"steps\":5}", "", second);

    json_t *o = shown(&p, second);
    assert_string_equal(text_at(o, "object"), "job");
    assert_string_equal(text_at(o, "status"), "queued");
    assert_int_equal(json_integer_value(json_object_get(o, "position")), 1);
    assert_string_equal(text_at(json_object_get(o, "progress"), "phase"), "queued");
    assert_true(json_is_null(json_object_get(o, "eta"))); /* nothing like it has ever finished */
    assert_true(json_is_null(json_object_get(o, "started_at")) && json_is_null(json_object_get(o, "finished_at")));
    assert_true(json_is_null(json_object_get(o, "error")) && json_is_null(json_object_get(o, "result")));
    snprintf(link, sizeof link, "/v1/jobs/%s/events", second);
    assert_string_equal(text_at(json_object_get(o, "links"), "events"), link);
    json_decref(o);

    check_ok(sv_jobs_claim(p.store, "test", sv_now_ms(), 60000, &claimed, &err), &err);
    check_ok(sv_jobs_progress(p.store, first, claimed.fence, "sample", "layer.x", 3, 10, &err), &err);
    o = shown(&p, first);
    assert_string_equal(text_at(o, "status"), "running");
    assert_true(json_is_null(json_object_get(o, "position")));
    assert_string_equal(text_at(json_object_get(o, "progress"), "layer"), "layer.x");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "progress"), "done")), 3);
    assert_string_equal(text_at(json_object_get(o, "metadata"), "team"), "a");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "params"), "steps")), 5);
    assert_int_equal(json_integer_value(json_object_get(o, "attempt")), 1);
    json_decref(o);

    check_ok(sv_jobs_finish(p.store, first, claimed.fence, "succeeded", "", "{\"images\":3}", claimed.started_ms + 4000,
                            &seq, &err),
             &err);
    o = shown(&p, first);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "result"), "images")), 3);
    assert_true(json_is_null(json_object_get(o, "eta")));
    assert_int_equal(json_integer_value(json_object_get(o, "last_seq")), seq);
    json_decref(o);

    /* The next of its kind now has an estimate: four seconds after its turn comes. */
    o = shown(&p, second);
    assert_int_equal(json_integer_value(json_object_get(o, "position")), 0);
    assert_true(strcmp(text_at(json_object_get(o, "eta"), "start"), text_at(json_object_get(o, "eta"), "finish_p50")) <
                0);
    json_decref(o);
    sv_job_row_clear(&claimed);
    place_close(&p);
}

static void a_model(void **state)
{
    place p;
    sv_model_row row = { 0 };
    qd_err err = { 0 };
    place_open(&p);
    if (!p.model[0])
        skip();
    check_ok(sv_models_get(p.store, p.model, &row, &err), &err);
    json_t *o = sv_model_json(&row);
    assert_string_equal(text_at(o, "id"), p.model);
    assert_string_equal(text_at(o, "name"), "shipped");
    assert_string_equal(text_at(o, "role"), "denoiser");
    assert_true(json_is_null(json_object_get(o, "job")));
    assert_true(json_is_object(json_object_get(o, "summary")));
    assert_null(json_object_get(o, "path")); /* where it lies is nobody's business */
    json_decref(o);
    sv_model_row_clear(&row);
    place_close(&p);
}

static void small_parts(void **state)
{
    json_t *o = json_pack("{s:o, s:o, s:i}", "b", sv_json_number((double)INFINITY), "a", sv_json_number(0.5), "c", 3);
    char *text = sv_json_text(o);
    assert_string_equal(text, "{\"a\":0.5,\"b\":null,\"c\":3}");
    qd_free(text);
    json_decref(o);
    o = sv_json_read("");
    assert_true(json_is_null(o));
    json_decref(o);
    o = sv_json_read("{\"a\":");
    assert_true(json_is_null(o));
    json_decref(o);
    o = sv_json_read("{\"a\":1}");
    assert_true(json_is_object(o));
    json_decref(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_from_queue_to_end),
        cmocka_unit_test(a_model),
        cmocka_unit_test(small_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
