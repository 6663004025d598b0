/* test_worker.c - real jobs through store and workers: quantize, then sample the result; cancel, stop, limits, lost daemons. */
#include "jobs_common.h"

#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "data/data.h"
#include "model/model.h"

/* Pictures of 1000 steps, one after the other: longer than any test waits. */
#define LONG "{\"method\":\"ddpm\",\"steps\":1000,\"count\":4096,\"batch\":1}"

static json_t *result_of(const sv_job_row *job)
{
    if (strcmp(job->status, "succeeded") != 0)
        fail_msg("job %s %s: %s", job->id, job->status, job->error);
    return json_of(job->result);
}

static double figure(const json_t *result, const char *name)
{
    const json_t *v = json_object_get(result, name);
    if (!json_is_number(v))
        fail_msg("the result has no figure '%s'", name);
    return json_number_value(v);
}

static void check_gap_free(place *p, const char *id)
{
    sv_event_row *rows = NULL;
    int n = 0, ends = 0;
    qd_err err = { 0 };
    check_ok(sv_events_read(p->store, id, 0, NULL, 1000, &rows, &n, &err), &err);
    for (int k = 0; k < n; k++) {
        assert_int_equal(rows[k].seq, k + 1);
        ends += strcmp(rows[k].type, "end") == 0;
    }
    assert_int_equal(ends, 1);
    assert_string_equal(rows[n - 1].type, "end");
    sv_event_rows_free(rows, n);
}

static int count_events(place *p, const char *id, const char *type)
{
    sv_event_row *rows = NULL;
    int n = 0;
    qd_err err = { 0 };
    check_ok(sv_events_read(p->store, id, 0, type, 1000, &rows, &n, &err), &err);
    sv_event_rows_free(rows, n);
    return n;
}

/* Bytes of an artifact, whose hash is the one in its row. */
static char *artifact(place *p, const char *id, const char *name, size_t *size)
{
    sv_artifact_row row = { 0 };
    char hash[QD_SHA256_HEX], *data = NULL;
    qd_err err = { 0 };
    check_ok(sv_artifacts_get(p->store, id, name, &row, &err), &err);
    char *path = qd_fs_join(p->data, row.path);
    check_ok(qd_fs_take(path, 1 << 28, &data, size, &err), &err);
    qd_sha256(data, *size, hash);
    assert_string_equal(hash, row.sha256);
    assert_int_equal(*size, row.size_bytes);
    qd_free(path);
    sv_artifact_row_clear(&row);
    return data;
}

static bool is_empty(place *p, const char *folder)
{
    char *path = qd_fs_join(p->data, folder);
    DIR *dir = opendir(path);
    int n = 0;
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir))
        n += e->d_name[0] != '.';
    if (dir)
        closedir(dir);
    qd_free(path);
    return n == 0;
}

static void check_samples(place *p, const char *id, const char *kind, int want)
{
    sv_sample_row *rows = NULL;
    int n = 0;
    qd_err err = { 0 };
    check_ok(sv_samples_list(p->store, id, &rows, &n, &err), &err);
    assert_int_equal(n, want);
    for (int k = 0; k < n; k++) {
        char *path = qd_fs_join(p->data, rows[k].path), *png = NULL;
        size_t size;
        qd_image im = { 0 };
        assert_string_equal(rows[k].kind, kind);
        assert_int_equal(rows[k].n, k);
        check_ok(qd_fs_take(path, 1 << 24, &png, &size, &err), &err);
        check_ok(qd_png_decode(png, size, 1 << 24, &im, &err), &err);
        assert_int_equal(im.width, rows[k].width);
        assert_int_equal(im.height, rows[k].height);
        if (strcmp(kind, "pair") == 0)
            assert_true(rows[k].psnr_db > 10);
        qd_image_clear(&im);
        qd_free(png);
        qd_free(path);
    }
    sv_sample_rows_free(rows, n);
}

static void quantize_then_sample(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 };
    qd_err err = { 0 };
    char id[40], again[40], sample[40], copy[40];
    size_t size, other_size;
    place_open(&p);
    if (!p.model[0])
        skip();
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    assert_int_equal(sv_workers_count(w), 1);
    submit(&p, "quantize", p.model, QUICK, ",\"max_drop\":{\"metric\":\"sqnr_db\",\"value\":10}", id);
    sv_workers_wake(w);
    wait_for(&p, id, false, &job);
    json_t *r = result_of(&job);
    assert_int_equal(job.attempt, 1);
    assert_true(figure(r, "float_bytes") > 3 * figure(r, "quantized_bytes"));
    assert_true(figure(r, "eps_sqnr_db") > 10 && figure(r, "psnr_db_mean") > 10);
    assert_true(figure(r, "psnr_db_min") <= figure(r, "psnr_db_mean"));
    assert_true(figure(r, "seconds_per_image_float") > 0 && figure(r, "seconds_per_image_int8") > 0);
    assert_true(figure(r, "layers_quantized") > 10);
    assert_int_equal(figure(r, "pairs"), 2);
    assert_int_equal(json_array_size(json_object_get(r, "eps_sqnr_by_step")), 6);
    const char *model = json_string_value(json_object_get(r, "model"));
    assert_non_null(model);
    check_gap_free(&p, id);
    check_samples(&p, id, "pair", 2);
    assert_int_equal(count_events(&p, id, "artifact"), 4);
    assert_true(count_events(&p, id, "layer") > 10 && count_events(&p, id, "metric") >= 6);
    assert_true(is_empty(&p, "tmp"));

    /* The report is JSON with the layers; the registered model is quantized and knows where it comes from. */
    char *text = artifact(&p, id, "report.json", &size);
    json_t *report = json_of(text);
    assert_true(json_array_size(json_object_get(report, "layers")) > 10);
    assert_int_equal(json_array_size(json_object_get(report, "pair_psnr_db")), 2);
    json_decref(report);
    qd_free(text);
    sv_model_row row = { 0 };
    check_ok(sv_models_get(p.store, model, &row, &err), &err);
    assert_string_equal(row.format, "bundle");
    assert_string_equal(row.role, "denoiser");
    assert_string_equal(row.job_id, id);
    json_t *summary = json_of(row.summary);
    assert_true(json_is_true(json_object_get(summary, "quantized")));
    assert_int_equal(json_integer_value(json_object_get(summary, "weight_bits")), 8);
    assert_int_equal(json_integer_value(json_object_get(summary, "activation_bits")), 8);
    const json_t *manifest = json_object_get(summary, "manifest");
    assert_string_equal(json_string_value(json_object_get(manifest, "method")), "mse");
    assert_int_equal(json_integer_value(json_object_get(manifest, "seed")), 7);
    assert_null(json_object_get(manifest, "layers")); /* in the bundle, and too long for a summary */
    json_decref(summary);
    sv_model_row_clear(&row);

    /* The same job again gives the same bytes, on two threads, and the same model. */
    sv_workers_stop(w);
    p.settings.threads = 2;
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    submit(&p, "quantize", p.model, QUICK, "", again);
    sv_workers_wake(w);
    wait_for(&p, again, false, &job);
    json_t *r2 = result_of(&job);
    assert_string_equal(json_string_value(json_object_get(r2, "model")), model);
    static const char *const names[] = { "model.safetensors", "samples.png" };
    for (int k = 0; k < 2; k++) {
        char *a = artifact(&p, id, names[k], &size), *b = artifact(&p, again, names[k], &other_size);
        assert_int_equal(size, other_size);
        assert_memory_equal(a, b, size);
        qd_free(a);
        qd_free(b);
    }
    json_decref(r2);

    /* It can be sampled, whatever the batch, and cannot be quantized once more. */
    submit(&p, "sample", model, "{\"steps\":4,\"count\":5,\"batch\":2,\"seed\":3,\"preview_every\":0}", "", sample);
    submit(&p, "sample", model, "{\"steps\":4,\"count\":5,\"batch\":5,\"seed\":3}", "", copy);
    sv_workers_wake(w);
    wait_for(&p, sample, false, &job);
    json_t *s = result_of(&job);
    assert_int_equal(figure(s, "images"), 5);
    assert_true(figure(s, "seconds_per_image") > 0);
    assert_true(json_is_true(json_object_get(s, "quantized")));
    json_decref(s);
    check_samples(&p, sample, "sample", 5);
    wait_for(&p, copy, false, &job);
    assert_string_equal(job.status, "succeeded");
    char *a = artifact(&p, sample, "samples.png", &size), *b = artifact(&p, copy, "samples.png", &other_size);
    assert_int_equal(size, other_size);
    assert_memory_equal(a, b, size);
    qd_free(a);
    qd_free(b);
    a = artifact(&p, sample, "samples.safetensors", &size);
    qd_weights *weights = NULL;
    check_ok(qd_safetensors_parse(a, size, &weights, NULL, &err), &err);
    const qd_tensor *t = qd_weights_find(weights, "samples");
    assert_non_null(t);
    assert_int_equal(t->shape.dim[0], 5);
    for (int64_t k = 0; k < qd_tensor_count(t); k++)
        assert_true(isfinite(((const float *)t->data)[k]));
    qd_weights_free(weights);
    qd_free(a);

    json_t *body = body_of("quantize", model, "{}", "");
    sv_job_row parsed = { 0 };
    char pointer[128];
    check_fails(sv_job_parse(p.store, body, &parsed, pointer, &err), QD_E_INVALID, "quantized already", &err);
    assert_string_equal(pointer, "/model");
    json_decref(body);
    json_decref(r);
    sv_job_row_clear(&job);
    sv_workers_stop(w);
    place_close(&p);
}

static void previews_come_while_it_draws(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 };
    qd_err err = { 0 };
    char id[40];
    place_open(&p);
    if (!p.model[0])
        skip();
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    submit(&p, "sample", p.model, "{\"steps\":6,\"count\":2,\"preview_every\":3}", "", id);
    sv_workers_wake(w);
    wait_for(&p, id, false, &job);
    assert_string_equal(job.status, "succeeded");
    check_samples(&p, id, "sample", 4); /* steps 0 and 3 of the first picture, and both pictures */
    sv_job_row_clear(&job);
    sv_workers_stop(w);
    place_close(&p);
}

static void what_is_not_good_enough_fails(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 };
    sv_model_row *models = NULL;
    qd_err err = { 0 };
    char id[40];
    int n;
    bool more;
    place_open(&p);
    if (!p.model[0])
        skip();
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    submit(&p, "quantize", p.model, QUICK, ",\"max_drop\":{\"metric\":\"sqnr_db\",\"value\":200}", id);
    sv_workers_wake(w);
    wait_for(&p, id, false, &job);
    assert_string_equal(job.status, "failed");
    json_t *e = json_of(job.error);
    assert_string_equal(json_string_value(json_object_get(e, "code")), "max_drop_exceeded");
    assert_non_null(strstr(json_string_value(json_object_get(e, "message")), "200.00 dB"));
    assert_true(json_is_false(json_object_get(e, "retryable")));
    assert_true(json_is_number(json_object_get(json_object_get(e, "figures"), "eps_sqnr_db")));
    json_decref(e);
    /* The report is there, the model is not. */
    assert_int_equal(count_events(&p, id, "artifact"), 3);
    const sv_list_query q = { .limit = 10 };
    check_ok(sv_models_list(p.store, &q, &models, &n, &more, &err), &err);
    assert_int_equal(n, 1);
    sv_model_rows_free(models, n);
    sv_job_row_clear(&job);
    sv_workers_stop(w);
    place_close(&p);
}

static void cancel_in_every_state(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 };
    json_t *reply = NULL;
    qd_err err = { 0 };
    char running[40], queued[40];
    int status;
    place_open(&p);
    if (!p.model[0])
        skip();
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    submit(&p, "sample", p.model, LONG, "", running);
    submit(&p, "sample", p.model, LONG, "", queued);
    sv_workers_wake(w);
    wait_for(&p, running, true, &job);
    assert_string_equal(job.status, "running");
    assert_int_equal(sv_workers_busy(w), 1);

    check_ok(sv_jobs_request_cancel(p.store, w, p.bus, queued, &reply, &status, &err), &err);
    json_t *want = json_of("{\"canceled\":true,\"status\":\"canceled\"}");
    assert_int_equal(status, 200);
    assert_true(json_equal(reply, want));
    json_decref(reply);
    json_decref(want);

    const int64_t start = sv_now_ms();
    check_ok(sv_jobs_request_cancel(p.store, w, p.bus, running, &reply, &status, &err), &err);
    assert_int_equal(status, 202);
    assert_true(json_is_string(json_object_get(reply, "cancel_requested_at")));
    json_decref(reply);
    wait_for(&p, running, false, &job);
    assert_string_equal(job.status, "canceled");
    assert_true(sv_now_ms() - start < 2000);
    check_gap_free(&p, running);
    check_gap_free(&p, queued);

    check_ok(sv_jobs_request_cancel(p.store, w, p.bus, running, &reply, &status, &err), &err);
    assert_int_equal(status, 200);
    assert_true(json_is_false(json_object_get(reply, "canceled")));
    json_decref(reply);
    check_fails(sv_jobs_request_cancel(p.store, w, p.bus, "job_none", &reply, &status, &err), QD_E_NOT_FOUND, NULL,
                &err);
    sv_job_row_clear(&job);
    sv_workers_stop(w);
    assert_true(is_empty(&p, "tmp"));
    place_close(&p);
}

/* Only the store knows of the cancel, as when another process asks: the next heartbeat brings it. */
static void cancel_by_heartbeat(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 }, after = { 0 };
    qd_err err = { 0 };
    char id[40];
    place_open(&p);
    if (!p.model[0])
        skip();
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    submit(&p, "sample", p.model, LONG, "", id);
    sv_workers_wake(w);
    wait_for(&p, id, true, &job);
    check_ok(sv_jobs_cancel(p.store, id, sv_now_ms(), &after, &err), &err);
    const int64_t start = sv_now_ms();
    wait_for(&p, id, false, &job);
    assert_string_equal(job.status, "canceled");
    assert_true(sv_now_ms() - start < 2000);
    sv_job_row_clear(&after);
    sv_job_row_clear(&job);
    sv_workers_stop(w);
    place_close(&p);
}

static void stop_puts_the_job_back(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 };
    sv_attempt_row *attempts = NULL;
    qd_err err = { 0 };
    char id[40];
    int n;
    place_open(&p);
    if (!p.model[0])
        skip();
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    submit(&p, "sample", p.model, LONG, "", id);
    sv_workers_wake(w);
    wait_for(&p, id, true, &job);
    const int64_t start = sv_now_ms();
    sv_workers_stop(w);
    assert_true(sv_now_ms() - start < 2000);
    sv_job_row_clear(&job);
    check_ok(sv_jobs_get(p.store, id, &job, &err), &err);
    assert_string_equal(job.status, "queued");
    check_ok(sv_attempts_list(p.store, id, &attempts, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_string_equal(attempts[0].outcome, "released");
    sv_attempt_rows_free(attempts, n);
    assert_true(is_empty(&p, "tmp"));
    sv_job_row_clear(&job);
    place_close(&p);
}

static void time_is_up(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 };
    qd_err err = { 0 };
    char id[40];
    place_open(&p);
    if (!p.model[0])
        skip();
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    submit(&p, "sample", p.model, LONG, ",\"time_limit_s\":1", id);
    sv_workers_wake(w);
    wait_for(&p, id, false, &job);
    assert_string_equal(job.status, "failed");
    assert_non_null(strstr(job.error, "\"time_limit\""));
    assert_in_range(job.finished_ms - job.started_ms, 1000, 3000);
    sv_job_row_clear(&job);
    sv_workers_stop(w);
    place_close(&p);
}

static void too_large_fails_and_the_next_one_runs(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 };
    qd_err err = { 0 };
    char large[40], small[40];
    place_open(&p);
    if (!p.model[0])
        skip();
    p.settings.job_memory_bytes = 24 << 20;
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    submit(&p, "sample", p.model, "{\"count\":4096,\"batch\":256,\"steps\":2}", "", large);
    submit(&p, "sample", p.model, "{\"count\":1,\"batch\":1,\"steps\":2}", "", small);
    sv_workers_wake(w);
    wait_for(&p, large, false, &job);
    assert_string_equal(job.status, "failed");
    assert_non_null(strstr(job.error, "\"limit_exceeded\""));
    wait_for(&p, small, false, &job);
    assert_string_equal(job.status, "succeeded");
    sv_job_row_clear(&job);
    sv_workers_stop(w);
    place_close(&p);
}

/* A job whose daemon died is held by a lease of an hour; the next daemon takes it at once. */
static void a_dead_daemons_job_goes_on(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 }, dead = { 0 };
    qd_err err = { 0 };
    char id[40];
    int reclaimed = -1;
    place_open(&p);
    if (!p.model[0])
        skip();
    submit(&p, "sample", p.model, "{\"count\":1,\"steps\":2}", "", id);
    check_ok(sv_jobs_claim(p.store, "dead", sv_now_ms(), 3600 * 1000, &dead, &err), &err);
    /* It died between a file and its row. */
    char folder[700], orphan[800];
    snprintf(folder, sizeof folder, "%s/jobs/%s/artifacts", p.data, id);
    snprintf(orphan, sizeof orphan, "%s/leftover", folder);
    check_ok(qd_fs_mkdirs(folder, &err), &err);
    check_ok(qd_fs_write(orphan, "x", 1, &err), &err);
    check_ok(sv_workers_reclaim(p.store, &reclaimed, &err), &err);
    assert_int_equal(reclaimed, 1);
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    wait_for(&p, id, false, &job);
    assert_string_equal(job.status, "succeeded");
    assert_int_equal(job.attempt, 2);
    assert_false(qd_fs_exists(orphan));
    size_t size;
    qd_free(artifact(&p, id, "samples.png", &size)); /* what has a row is still there */
    /* The dead one may say nothing any more. */
    check_fails(sv_jobs_finish(p.store, id, dead.fence, "failed", "", "", sv_now_ms(), NULL, &err), QD_E_CONFLICT, NULL,
                &err);
    check_ok(sv_workers_reclaim(p.store, &reclaimed, &err), &err);
    assert_int_equal(reclaimed, 0);
    sv_job_row_clear(&dead);
    sv_job_row_clear(&job);
    sv_workers_stop(w);
    place_close(&p);
}

/* The model's file is gone: trouble of the machine is tried again after a while, not at once and not never. */
static void trouble_of_the_machine_is_tried_again(void **state)
{
    place p;
    sv_workers *w = NULL;
    sv_job_row job = { 0 };
    qd_err err = { 0 };
    char id[40];
    place_open(&p);
    if (!p.model[0])
        skip();
    char *jobs = qd_fs_join(p.data, "tmp");
    check_ok(qd_fs_write(jobs, "a file where a folder should be", 31, &err), &err);
    check_ok(sv_workers_start(&p.settings, p.store, p.bus, &w, &err), &err);
    submit(&p, "sample", p.model, "{\"count\":1,\"steps\":2}", "", id);
    sv_workers_wake(w);
    for (int k = 0; k < 500; k++) {
        sv_job_row_clear(&job);
        check_ok(sv_jobs_get(p.store, id, &job, &err), &err);
        if (strcmp(job.status, "retry_wait") == 0)
            break;
        nap_ms(20);
    }
    assert_string_equal(job.status, "retry_wait");
    assert_non_null(strstr(job.error, "\"retryable\":true"));
    assert_true(job.run_at_ms > sv_now_ms());
    sv_job_row_clear(&job);
    sv_workers_stop(w);
    qd_free(jobs);
    place_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantize_then_sample),
        cmocka_unit_test(previews_come_while_it_draws),
        cmocka_unit_test(what_is_not_good_enough_fails),
        cmocka_unit_test(cancel_in_every_state),
        cmocka_unit_test(cancel_by_heartbeat),
        cmocka_unit_test(stop_puts_the_job_back),
        cmocka_unit_test(time_is_up),
        cmocka_unit_test(too_large_fails_and_the_next_one_runs),
        cmocka_unit_test(a_dead_daemons_job_goes_on),
        cmocka_unit_test(trouble_of_the_machine_is_tried_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
