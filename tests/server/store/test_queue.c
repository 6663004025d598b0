/* test_queue.c - how a job moves: order, leases, fences, cancel, retry, and that nothing ever leaves its states. */
#include "store_common.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

static qd_status claim(sv_store *s, int64_t now, sv_job_row *out, qd_err *err)
{
    memset(out, 0, sizeof *out);
    return sv_jobs_claim(s, "worker-1", now, 1000, out, err);
}

static void claim_is(sv_store *s, int64_t now, const char *id)
{
    qd_err err = { 0 };
    sv_job_row row;

    check_ok(claim(s, now, &row, &err), &err);
    assert_string_equal(row.id, id);
    assert_string_equal(row.status, "running");
    sv_job_row_clear(&row);
}

static void served_by_priority_then_age(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row row;
    int64_t position = -2;

    job_add(s, "job_c", 5);
    job_add(s, "job_a", 0);
    job_add(s, "job_b", 0);
    job_add(s, "job_d", -1);
    check_ok(sv_jobs_position(s, "job_c", &position, &err), &err);
    assert_int_equal(position, 3);
    check_ok(sv_jobs_position(s, "job_d", &position, &err), &err);
    assert_int_equal(position, 0);
    claim_is(s, 2000, "job_d");
    check_ok(sv_jobs_position(s, "job_d", &position, &err), &err);
    assert_int_equal(position, -1);
    claim_is(s, 2000, "job_a");
    claim_is(s, 2000, "job_b");
    claim_is(s, 2000, "job_c");
    check_fails(claim(s, 2000, &row, &err), QD_E_NOT_FOUND, "empty", &err);
    check_fails(sv_jobs_position(s, "job_x", &position, &err), QD_E_NOT_FOUND, "job_x", &err);
    sv_store_close(s);
}

static void a_scheduled_job_waits_for_its_time(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row in = job_words("job_later", "{}"), row;

    in.run_at_ms = 5000;
    check_ok(sv_jobs_add(s, &in, NULL, &row, NULL, &err), &err);
    assert_string_equal(row.status, "scheduled");
    sv_job_row_clear(&row);
    check_fails(claim(s, 4999, &row, &err), QD_E_NOT_FOUND, NULL, &err);
    claim_is(s, 5000, "job_later");
    sv_store_close(s);
}

static void one_life_from_queue_to_end(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row row;
    sv_attempt_row *attempts = NULL;
    int n = 0;
    int64_t seq = 0;
    bool cancel = true;

    job_add(s, "job_1", 0);
    check_ok(claim(s, 2000, &row, &err), &err);
    assert_int_equal(row.attempt, 1);
    assert_int_equal(row.started_ms, 2000);
    assert_int_equal(row.lease_until_ms, 3000);
    assert_int_equal(row.last_seq, 2);
    check_ok(sv_jobs_heartbeat(s, "job_1", row.fence, 9000, &cancel, &err), &err);
    assert_false(cancel);
    check_ok(sv_jobs_progress(s, "job_1", row.fence, "calibrate", "conv1", 3, 7, &err), &err);
    check_ok(sv_events_add(s, "job_1", row.fence, 1, "progress", "{\"done\":3}", 2500, &seq, &err), &err);
    assert_int_equal(seq, 3);
    check_ok(sv_jobs_finish(s, "job_1", row.fence, "succeeded", NULL, "{\"sqnr_db\":31.5}", 4000, &seq, &err), &err);
    assert_int_equal(seq, 5);
    const int64_t fence = row.fence;
    sv_job_row_clear(&row);

    check_ok(sv_jobs_get(s, "job_1", &row, &err), &err);
    assert_string_equal(row.status, "succeeded");
    assert_string_equal(row.result, "{\"sqnr_db\":31.5}");
    assert_string_equal(row.error, "");
    assert_string_equal(row.phase, "calibrate");
    assert_string_equal(row.item, "conv1");
    assert_int_equal(row.done, 3);
    assert_int_equal(row.total, 7);
    assert_int_equal(row.finished_ms, 4000);
    assert_int_equal(row.last_seq, 5);
    sv_job_row_clear(&row);
    assert_string_equal(job_log(s, "job_1"), "state:queued state:running progress: state:succeeded end:succeeded");
    check_ok(sv_attempts_list(s, "job_1", &attempts, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_string_equal(attempts[0].outcome, "succeeded");
    assert_string_equal(attempts[0].worker, "worker-1");
    assert_int_equal(attempts[0].started_ms, 2000);
    assert_int_equal(attempts[0].finished_ms, 4000);
    sv_attempt_rows_free(attempts, n);

    /* A final state never changes. */
    check_fails(sv_jobs_finish(s, "job_1", fence, "failed", "{}", NULL, 5000, &seq, &err), QD_E_CONFLICT, "succeeded",
                &err);
    check_fails(sv_jobs_requeue(s, "job_1", fence, NULL, 5000, &err), QD_E_CONFLICT, "job_1", &err);
    check_fails(sv_events_add(s, "job_1", -1, 1, "log", "{}", 5000, &seq, &err), QD_E_CONFLICT, "succeeded", &err);
    assert_string_equal(job_status(s, "job_1"), "succeeded");
    sv_store_close(s);
}

static void an_expired_lease_goes_back_then_fails(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row first, second, row;
    int64_t seq;
    sv_attempt_row *attempts = NULL;
    int n = 0;

    job_add(s, "job_1", 0); /* two attempts */
    check_ok(claim(s, 2000, &first, &err), &err);
    sv_sample_row sample = { .job_id = W("job_1"), .kind = W("sample"), .path = W("p"), .mime = W("image/png") };
    check_ok(sv_samples_add(s, first.fence, 1, &sample, "{}", 1, NULL, &seq, &err), &err);
    check_fails(claim(s, 3000, &row, &err), QD_E_NOT_FOUND, NULL, &err); /* the lease holds to its last millisecond */
    check_ok(claim(s, 3001, &second, &err), &err);
    assert_string_equal(second.id, "job_1");
    assert_int_equal(second.attempt, 2);
    assert_true(second.fence > first.fence);

    /* The lost attempt's picture is not the job's any more: the second attempt draws it again, under the same number. */
    sv_sample_row *samples = NULL;
    int64_t number = -1;
    check_ok(sv_samples_list(s, "job_1", &samples, &n, &err), &err);
    assert_int_equal(n, 0);
    sv_sample_rows_free(samples, n);
    check_ok(sv_samples_add(s, second.fence, 2, &sample, "{}", 1, &number, &seq, &err), &err);
    assert_int_equal(number, 0);

    /* The first holder wakes up: everything it tries is refused, the second holder's work is untouched. */
    bool cancel;
    check_fails(sv_jobs_heartbeat(s, "job_1", first.fence, 9999, &cancel, &err), QD_E_CONFLICT, "no longer ours", &err);
    check_fails(sv_jobs_progress(s, "job_1", first.fence, "x", "", 1, 1, &err), QD_E_CONFLICT, "no longer ours", &err);
    check_fails(sv_events_add(s, "job_1", first.fence, 1, "log", "{}", 1, &seq, &err), QD_E_CONFLICT, "no longer ours",
                &err);
    check_fails(sv_samples_add(s, first.fence, 1, &sample, "{}", 1, NULL, &seq, &err), QD_E_CONFLICT, "no longer ours",
                &err);
    sv_artifact_row artifact = {
        .job_id = W("job_1"), .name = W("a"), .mime = W("b"), .sha256 = W("c"), .path = W("d")
    };
    check_fails(sv_artifacts_add(s, first.fence, 1, &artifact, &seq, &err), QD_E_CONFLICT, "no longer ours", &err);
    check_fails(sv_jobs_finish(s, "job_1", first.fence, "succeeded", NULL, NULL, 1, &seq, &err), QD_E_CONFLICT,
                "no longer ours", &err);
    check_fails(sv_jobs_requeue(s, "job_1", first.fence, NULL, 1, &err), QD_E_CONFLICT, "no longer ours", &err);
    check_ok(sv_jobs_heartbeat(s, "job_1", second.fence, 4001, NULL, &err), &err);

    /* Lost a second time: no attempts are left. */
    check_fails(claim(s, 4002, &row, &err), QD_E_NOT_FOUND, NULL, &err);
    check_ok(sv_jobs_get(s, "job_1", &row, &err), &err);
    assert_string_equal(row.status, "failed");
    assert_string_equal(row.error,
                        "{\"code\":\"worker_lost\",\"message\":\"attempt 2 stopped reporting and its lease ran "
                        "out\",\"retryable\":true}");
    assert_int_equal(row.finished_ms, 4002);
    sv_job_row_clear(&row);
    check_fails(sv_jobs_finish(s, "job_1", second.fence, "succeeded", NULL, NULL, 1, &seq, &err), QD_E_CONFLICT,
                "failed", &err);
    assert_string_equal(
        job_log(s, "job_1"),
        "state:queued state:running sample: state:queued state:running sample: state:failed end:failed");
    check_ok(sv_attempts_list(s, "job_1", &attempts, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_string_equal(attempts[0].outcome, "worker_lost");
    assert_string_equal(attempts[1].outcome, "worker_lost");
    sv_attempt_rows_free(attempts, n);
    sv_job_row_clear(&first);
    sv_job_row_clear(&second);
    sv_store_close(s);
}

static void the_watcher_hears_of_lost_jobs(void *ctx, const sv_event_row *e)
{
    char *text = ctx;
    snprintf(text + strlen(text), 256 - strlen(text), "%s/%d/%s ", e->job_id, (int)e->seq, e->type);
}

static void lost_jobs_are_told(void **state)
{
    char path[512], heard[256] = "";
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row row;

    sv_store_watch(s, the_watcher_hears_of_lost_jobs, heard);
    job_add(s, "job_1", 0);
    claim_is(s, 1000, "job_1");
    claim_is(s, 5000, "job_1");
    assert_string_equal(heard, "job_1/3/state ");
    check_fails(claim(s, 9000, &row, &err), QD_E_NOT_FOUND, NULL, &err);
    assert_string_equal(heard, "job_1/3/state job_1/5/state job_1/6/end ");
    sv_store_close(s);
}

static void shutdown_gives_the_attempt_back(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row row;

    job_add(s, "job_1", 0); /* two attempts, yet ten restarts do it no harm */
    for (int i = 1; i <= 10; i++) {
        check_ok(claim(s, i * 100, &row, &err), &err);
        assert_int_equal(row.attempt, i);
        check_ok(sv_jobs_requeue(s, "job_1", row.fence, NULL, i * 100 + 50, &err), &err);
        sv_job_row_clear(&row);
        assert_string_equal(job_status(s, "job_1"), "queued");
    }
    sv_store_close(s);
}

static void an_error_waits_then_is_dead(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row row;

    job_add(s, "job_1", 0);
    check_ok(claim(s, 2000, &row, &err), &err);
    check_ok(sv_jobs_requeue(s, "job_1", row.fence, "{\"code\":\"io\"}", 2500, &err), &err);
    sv_job_row_clear(&row);
    assert_string_equal(job_status(s, "job_1"), "retry_wait");
    check_fails(claim(s, 3499, &row, &err), QD_E_NOT_FOUND, NULL, &err);
    check_ok(claim(s, 3500, &row, &err), &err);
    assert_string_equal(row.error, ""); /* a new attempt starts clean; attempts keep the old words */
    check_ok(sv_jobs_requeue(s, "job_1", row.fence, "{\"code\":\"io\"}", 4000, &err), &err);
    sv_job_row_clear(&row);
    check_ok(sv_jobs_get(s, "job_1", &row, &err), &err);
    assert_string_equal(row.status, "dead");
    assert_string_equal(row.error, "{\"code\":\"io\"}");
    sv_job_row_clear(&row);
    assert_string_equal(job_log(s, "job_1"),
                        "state:queued state:running state:retry_wait state:running state:dead end:dead");
    sv_store_close(s);
}

/* Every state against cancel: waiting ones end at once, a running one is asked, an ended one stays. */
static void cancel_in_every_state(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row row, in;
    bool cancel = false;

    check_fails(sv_jobs_cancel(s, "job_x", 10, &row, &err), QD_E_NOT_FOUND, "job_x", &err);

    job_add(s, "job_queued", 0);
    check_ok(sv_jobs_cancel(s, "job_queued", 1500, &row, &err), &err);
    assert_string_equal(row.status, "canceled");
    assert_int_equal(row.finished_ms, 1500);
    assert_int_equal(row.last_seq, 3);
    sv_job_row_clear(&row);
    assert_string_equal(job_log(s, "job_queued"), "state:queued state:canceled end:canceled");
    check_ok(sv_jobs_cancel(s, "job_queued", 1600, &row, &err), &err); /* again: the same answer, nothing new */
    assert_string_equal(row.status, "canceled");
    assert_int_equal(row.finished_ms, 1500);
    assert_int_equal(row.last_seq, 3);
    sv_job_row_clear(&row);

    in = job_words("job_scheduled", "{}");
    in.run_at_ms = 1000000;
    check_ok(sv_jobs_add(s, &in, NULL, &row, NULL, &err), &err);
    sv_job_row_clear(&row);
    check_ok(sv_jobs_cancel(s, "job_scheduled", 1500, &row, &err), &err);
    assert_string_equal(row.status, "canceled");
    sv_job_row_clear(&row);

    job_add(s, "job_retry", 0);
    check_ok(claim(s, 2000, &row, &err), &err);
    check_ok(sv_jobs_requeue(s, "job_retry", row.fence, "{\"code\":\"io\"}", 2000, &err), &err);
    sv_job_row_clear(&row);
    check_ok(sv_jobs_cancel(s, "job_retry", 2100, &row, &err), &err);
    assert_string_equal(row.status, "canceled");
    sv_job_row_clear(&row);

    job_add(s, "job_running", 0);
    check_ok(claim(s, 3000, &row, &err), &err);
    const int64_t fence = row.fence;
    sv_job_row_clear(&row);
    check_ok(sv_jobs_cancel(s, "job_running", 3100, &row, &err), &err);
    assert_string_equal(row.status, "running");
    assert_int_equal(row.cancel_requested_ms, 3100);
    sv_job_row_clear(&row);
    check_ok(sv_jobs_cancel(s, "job_running", 3200, &row, &err), &err);
    assert_int_equal(row.cancel_requested_ms, 3100); /* the first request counts */
    sv_job_row_clear(&row);
    check_ok(sv_jobs_heartbeat(s, "job_running", fence, 9000, &cancel, &err), &err);
    assert_true(cancel);
    check_ok(sv_jobs_finish(s, "job_running", fence, "canceled", NULL, NULL, 3300, NULL, &err), &err);
    check_ok(sv_jobs_cancel(s, "job_running", 3400, &row, &err), &err);
    assert_string_equal(row.status, "canceled");
    assert_int_equal(row.finished_ms, 3300);
    sv_job_row_clear(&row);

    /* Asked to stop, then given back or lost: canceled, not run again. */
    job_add(s, "job_back", 0);
    check_ok(claim(s, 4000, &row, &err), &err);
    const int64_t back = row.fence;
    sv_job_row_clear(&row);
    check_ok(sv_jobs_cancel(s, "job_back", 4100, &row, &err), &err);
    sv_job_row_clear(&row);
    check_ok(sv_jobs_requeue(s, "job_back", back, NULL, 4200, &err), &err);
    assert_string_equal(job_status(s, "job_back"), "canceled");
    job_add(s, "job_gone", 0);
    check_ok(claim(s, 5000, &row, &err), &err);
    sv_job_row_clear(&row);
    check_ok(sv_jobs_cancel(s, "job_gone", 5100, &row, &err), &err);
    sv_job_row_clear(&row);
    check_fails(claim(s, 6001, &row, &err), QD_E_NOT_FOUND, NULL, &err);
    assert_string_equal(job_status(s, "job_gone"), "canceled");
    sv_store_close(s);
}

static void finish_wants_a_final_state(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row row;

    job_add(s, "job_1", 0);
    check_ok(claim(s, 2000, &row, &err), &err);
    check_fails(sv_jobs_finish(s, "job_1", row.fence, "running", NULL, NULL, 1, NULL, &err), QD_E_INVALID, "running",
                &err);
    check_fails(sv_jobs_finish(s, "job_1", row.fence, "failed", "not json", NULL, 1, NULL, &err), QD_E_INVALID, NULL,
                &err);
    assert_string_equal(job_status(s, "job_1"), "running");
    assert_string_equal(job_log(s, "job_1"), "state:queued state:running"); /* nothing of the failed writes stayed */
    check_fails(sv_jobs_finish(s, "job_2", 1, "failed", NULL, NULL, 1, NULL, &err), QD_E_NOT_FOUND, "job_2", &err);
    sv_job_row_clear(&row);
    sv_store_close(s);
}

/* --- many threads --- */

enum { JOBS = 60, CLAIMERS = 4 };

typedef struct crowd {
    sv_store *store;
    atomic_int claims[JOBS];
    atomic_int failures;
} crowd;

static void *claimer(void *p)
{
    crowd *c = p;
    qd_err err = { 0 };
    sv_job_row row = { 0 };
    qd_status st;

    while ((st = sv_jobs_claim(c->store, "w", 2000, 1000, &row, &err)) == QD_OK) {
        atomic_fetch_add(&c->claims[atoi(row.id + 4)], 1);
        if (sv_jobs_finish(c->store, row.id, row.fence, "succeeded", NULL, NULL, 2000, NULL, &err))
            atomic_fetch_add(&c->failures, 1);
        sv_job_row_clear(&row);
    }
    if (st != QD_E_NOT_FOUND)
        atomic_fetch_add(&c->failures, 1);
    return NULL;
}

static void no_job_is_claimed_twice(void **state)
{
    char path[512], id[40];
    crowd c = { .store = store_fresh(path) };
    pthread_t threads[CLAIMERS];

    for (int i = 0; i < JOBS; i++) {
        snprintf(id, sizeof id, "job_%d", i);
        job_add(c.store, id, i % 3);
    }
    for (int i = 0; i < CLAIMERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, claimer, &c), 0);
    for (int i = 0; i < CLAIMERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(c.failures, 0);
    for (int i = 0; i < JOBS; i++)
        assert_int_equal(c.claims[i], 1);
    sv_store_close(c.store);
}

/* Adds a claimed job of this name and lets it end so. */
static void run_to(sv_store *s, const char *id, const char *status)
{
    qd_err err = { 0 };
    sv_job_row row = { 0 };

    check_ok(claim(s, 2000, &row, &err), &err);
    assert_string_equal(row.id, id);
    check_ok(sv_jobs_finish(s, id, row.fence, status, "{\"code\":\"x\"}", NULL, 3000, NULL, &err), &err);
    sv_job_row_clear(&row);
}

static void tried_again_as_another_job(void **state)
{
    static const char *const ends[] = { "failed", "dead", "canceled" };
    char path[512], id[40], second[40];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);

    for (int k = 0; k < 3; k++) {
        sv_job_row old = { 0 }, row = { 0 }, again = { 0 };
        bool existing = true;
        snprintf(id, sizeof id, "job_%d", k);
        sv_job_row in = job_words(id, "{\"kind\":\"sample\"}");
        in.priority = 3;
        check_ok(sv_jobs_add(s, &in, "key", &row, &existing, &err), &err);
        sv_job_row_clear(&row);
        check_fails(sv_jobs_retry(s, id, 1500, &row, &existing, &err), QD_E_CONFLICT, "is queued", &err);
        run_to(s, id, ends[k]);

        check_ok(sv_jobs_retry(s, id, 4000, &row, &existing, &err), &err);
        assert_false(existing);
        assert_string_equal(row.status, "queued");
        assert_string_equal(row.retry_of, id);
        assert_string_equal(row.body, "{\"kind\":\"sample\"}");
        assert_string_equal(row.params, "{\"steps\":5}");
        assert_int_equal(row.priority, 3);
        assert_int_equal(row.attempt, 0);
        assert_int_equal(row.created_ms, 4000);
        assert_string_equal(job_log(s, row.id), "state:queued");
        snprintf(second, sizeof second, "%s", row.id);

        /* Once more while it waits or runs: the same. The old one is as it was. */
        check_ok(sv_jobs_retry(s, id, 4001, &again, &existing, &err), &err);
        assert_true(existing);
        assert_string_equal(again.id, second);
        sv_job_row_clear(&again);
        check_ok(sv_jobs_get(s, id, &old, &err), &err);
        assert_string_equal(old.status, ends[k]);
        assert_int_equal(old.finished_ms, 3000);
        assert_string_equal(old.retry_of, "");

        run_to(s, second, "succeeded");
        check_fails(sv_jobs_retry(s, second, 4002, &again, &existing, &err), QD_E_CONFLICT, "succeeded", &err);
        check_ok(sv_jobs_retry(s, id, 4003, &again, &existing, &err), &err);
        assert_false(existing);
        assert_string_not_equal(again.id, second);
        run_to(s, again.id, "failed");
        check_ok(sv_jobs_delete(s, again.id, &err), &err);
        check_ok(sv_jobs_delete(s, second, &err), &err);
        check_ok(sv_jobs_delete(s, id, &err), &err);
        sv_job_row_clear(&old);
        sv_job_row_clear(&row);
        sv_job_row_clear(&again);
    }
    check_fails(sv_jobs_retry(s, "job_9", 1, NULL, NULL, &err), QD_E_NOT_FOUND, "job_9", &err);
    sv_store_close(s);
}

static void no_retry_without_its_model(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row in = job_words("job_1", "{}"), row = { 0 };
    bool existing;
    const sv_model_row model = { .id = W("mdl_1"),
                                 .name = W("m"),
                                 .sha256 = W("00"),
                                 .path = W("p"),
                                 .format = W("f"),
                                 .role = W("denoiser"),
                                 .summary = W("{}"),
                                 .job_id = W(""),
                                 .created_ms = 1 };
    sv_model_row added = { 0 };

    check_ok(sv_models_add(s, &model, &added, &existing, &err), &err);
    sv_model_row_clear(&added);
    in.model_id = W("mdl_1");
    check_ok(sv_jobs_add(s, &in, NULL, &row, &existing, &err), &err);
    sv_job_row_clear(&row);
    run_to(s, "job_1", "failed");
    check_ok(sv_models_delete(s, "mdl_1", NULL, NULL, &err), &err);
    check_fails(sv_jobs_retry(s, "job_1", 4000, &row, &existing, &err), QD_E_CONFLICT, "model or data set is gone",
                &err);
    assert_null(row.id);
    sv_store_close(s);
}

static void on_seconds(void *ctx, const sv_seconds_row *row)
{
    char *text = ctx;
    size_t used = strlen(text);
    used += (size_t)snprintf(text + used, 256 - used, "%s %s %d ms:", row->kind, row->method, (int)row->total_ms);
    for (int k = 0; k <= SV_SECONDS_LIMITS; k++)
        used += (size_t)snprintf(text + used, 256 - used, " %d", (int)row->jobs[k]);
    snprintf(text + used, 256 - used, "\n");
}

/* Times on a limit and past the last one; a failure does not count; a deleted job still does. */
static void running_times_are_counted(void **state)
{
    static const struct {
        const char *method, *status;
        int64_t ms;
    } runs[] = { { "a", "succeeded", 1000 }, { "a", "succeeded", 1001 }, { "a", "succeeded", 90000000 },
                 { "a", "failed", 5 },       { "b", "succeeded", 0 },    { "b", "succeeded", -1 } };
    char path[512], id[40], text[256] = "";
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);

    check_ok(sv_jobs_seconds(s, on_seconds, text, &err), &err);
    assert_string_equal(text, "");
    for (size_t k = 0; k < sizeof runs / sizeof runs[0]; k++) {
        sv_job_row row = { 0 };
        bool existing;
        snprintf(id, sizeof id, "job_%zu", k);
        sv_job_row in = job_words(id, "{}");
        in.method = W(runs[k].method);
        check_ok(sv_jobs_add(s, &in, NULL, &row, &existing, &err), &err);
        sv_job_row_clear(&row);
        check_ok(claim(s, 2000, &row, &err), &err);
        check_ok(sv_jobs_finish(s, id, row.fence, runs[k].status, NULL, NULL, 2000 + runs[k].ms, NULL, &err), &err);
        check_ok(sv_jobs_delete(s, id, &err), &err);
        sv_job_row_clear(&row);
    }
    check_ok(sv_jobs_seconds(s, on_seconds, text, &err), &err);
    assert_string_equal(text, "sample a 90002001 ms: 1 1 0 0 0 0 0 0 0 1\nsample b 0 ms: 1 0 0 0 0 0 0 0 0 0\n");
    sv_store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(served_by_priority_then_age), cmocka_unit_test(a_scheduled_job_waits_for_its_time),
        cmocka_unit_test(one_life_from_queue_to_end),  cmocka_unit_test(an_expired_lease_goes_back_then_fails),
        cmocka_unit_test(lost_jobs_are_told),          cmocka_unit_test(shutdown_gives_the_attempt_back),
        cmocka_unit_test(an_error_waits_then_is_dead), cmocka_unit_test(cancel_in_every_state),
        cmocka_unit_test(finish_wants_a_final_state),  cmocka_unit_test(no_job_is_claimed_twice),
        cmocka_unit_test(tried_again_as_another_job),  cmocka_unit_test(no_retry_without_its_model),
        cmocka_unit_test(running_times_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
