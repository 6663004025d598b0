/* api_jobs.c - jobs: submit, wait, list, cancel, try again, forget. What a job said and made is in api_results.c. */
#include "http/http_int.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "log.h"

bool sv_job_over(const sv_job_row *j)
{
    static const char *const final[] = { "succeeded", "failed", "canceled", "dead" };
    for (size_t i = 0; i < sizeof final / sizeof final[0]; i++)
        if (!strcmp(j->status, final[i]))
            return true;
    return false;
}

bool sv_find_job(sv_request *q, const char *id, sv_job_row *out)
{
    qd_err err = { 0 };
    const qd_status st = sv_jobs_get(q->http->o.store, id, out, &err);
    if (st == QD_E_NOT_FOUND && sv_jobs_pruned(q->http->o.store, id))
        sv_reply_problem(q, SV_P_PRUNED, NULL, "job '%.64s' existed and was deleted", id);
    else if (st == QD_E_NOT_FOUND)
        sv_reply_problem(q, SV_P_NOT_FOUND, NULL, "there is no job '%.64s'", id);
    else if (st)
        sv_reply_error(q, st, &err, NULL);
    return st == QD_OK;
}

/* --- submit --- */

/* A submission that waits for its job's end (Prefer: wait=N). */
typedef struct waiter {
    sv_http *http;
    sv_listener *listener;
    char id[40];
    int64_t deadline_ms; // monotonic
    int seconds;
} waiter;

static void waiter_free(void *state)
{
    waiter *w = state;
    if (w->listener)
        sv_bus_unlisten(w->http->o.bus, w->listener);
    qd_free(w);
}

static void on_message(void *ctx, const sv_message *m)
{
    if (!strcmp(m->type, "state") || !strcmp(m->type, "end"))
        sv_park_wake(ctx);
}

static void reply_job(sv_request *q, const sv_job_row *job)
{
    sv_reply_field(q, "Location", "/v1/jobs/%s", job->id);
    sv_reply_json(q, sv_job_over(job) ? 200 : 202, sv_job_json(q->http->o.store, job));
}

static void wait_on(sv_request *q)
{
    waiter *w = q->state;
    while (!q->parked) {
        sv_job_row job = { 0 };
        if (!sv_find_job(q, w->id, &job))
            return;
        const bool answer = sv_job_over(&job) || sv_mono_ms() >= w->deadline_ms || atomic_load(&q->http->stopping);
        if (answer) {
            sv_reply_field(q, "Preference-Applied", "wait=%d", w->seconds);
            reply_job(q, &job);
        }
        sv_job_row_clear(&job);
        if (answer)
            return;
        q->parked = sv_park_wait(&q->park, w->deadline_ms);
    }
}

static bool wait_begin(sv_request *q, const sv_job_row *job, int seconds)
{
    waiter *w = qd_calloc(1, sizeof *w);
    if (!w)
        return false;
    w->http = q->http;
    w->seconds = seconds;
    w->deadline_ms = sv_mono_ms() + seconds * 1000;
    snprintf(w->id, sizeof w->id, "%s", job->id);
    /* Listening before the row is looked at again: an end in between is not missed. */
    w->listener = sv_bus_listen(q->http->o.bus, w->id, on_message, &q->park);
    if (!w->listener) {
        qd_free(w);
        return false;
    }
    q->state = w;
    q->state_free = waiter_free;
    wait_on(q);
    return true;
}

/* A new row: listeners hear of it, and a worker looks. */
static void announce(sv_http *h, const sv_job_row *job)
{
    sv_publish_since(h->o.store, h->o.bus, job->id, 0);
    if (h->o.workers)
        sv_workers_wake(h->o.workers);
}

static bool client_id_ok(const char *id)
{
    const size_t n = strlen(id);
    return n > 0 && n < 40 && strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == n;
}

static bool key_ok(const char *key)
{
    const size_t n = strlen(key);
    for (size_t i = 0; i < n; i++)
        if (key[i] < 0x21 || key[i] > 0x7e)
            return false;
    return n > 0 && n <= 255;
}

/* A refused row: which of the ways to be refused was it? */
static void reply_refused(sv_request *q, qd_status st, const qd_err *err, const char *client_id, const char *key)
{
    if (st == QD_E_CONFLICT && client_id && sv_jobs_pruned(q->http->o.store, client_id))
        sv_reply_problem(q, SV_P_PRUNED, NULL, "%s", err->text);
    else if (st == QD_E_CONFLICT && key && !client_id)
        sv_reply_problem(q, SV_P_KEY_REUSED, NULL, "%s", err->text);
    else if (st == QD_E_NOT_FOUND)
        sv_reply_problem(q, SV_P_INVALID_PARAM, "/model", "%s", err->text);
    else
        sv_reply_error(q, st, err, NULL);
}

/* The body as a row for the store; false with a problem made. */
static bool parse_job(sv_request *q, sv_job_row *out)
{
    char pointer[128] = "";
    qd_err err = { 0 };
    json_t *body = sv_request_json(q);
    if (!body)
        return false;
    const qd_status st = sv_job_parse(q->http->o.store, body, out, pointer, &err);
    json_decref(body);
    if (st == QD_E_NOT_FOUND)
        sv_reply_problem(q, SV_P_INVALID_PARAM, pointer, "%s", err.text);
    else if (st)
        sv_reply_error(q, st, &err, pointer);
    return st == QD_OK;
}

/* Kept with the job, to be compared with what came out. A job without one is a job all the same. */
static char *estimate_text(const sv_http *h, const sv_job_row *row)
{
    json_t *o = NULL;
    if (sv_job_estimate(h->o.store, h->o.settings, row, &o, NULL))
        return NULL;
    qd_buf text;
    const bool ok = sv_json_dump(o, &text);
    json_decref(o);
    return ok ? qd_buf_take(&text, NULL) : NULL;
}

void sv_post_estimate(sv_request *q)
{
    sv_job_row row = { 0 };
    qd_err err = { 0 };
    json_t *o = NULL;
    if (!parse_job(q, &row))
        return;
    const qd_status st = sv_job_estimate(q->http->o.store, q->http->o.settings, &row, &o, &err);
    if (st)
        sv_reply_error(q, st, &err, NULL);
    else
        sv_reply_json(q, 200, o);
    sv_job_row_clear(&row);
}

static void submit(sv_request *q, const char *client_id)
{
    sv_http *h = q->http;
    const char *key = sv_request_field(q, "Idempotency-Key");
    const int seconds = sv_prefer_wait(sv_request_field(q, "Prefer"));
    sv_job_row row = { 0 }, job = { 0 };
    qd_err err = { 0 };
    bool existing = false;

    if (q->state) {
        wait_on(q);
        return;
    }
    if (key && !key_ok(key)) {
        sv_reply_problem(q, SV_P_BAD_REQUEST, NULL, "Idempotency-Key must be 1 to 255 visible ASCII characters");
        return;
    }
    qd_status st;
    if (!parse_job(q, &row))
        return;
    row.estimate = estimate_text(h, &row);
    if (client_id) {
        qd_free(row.id);
        row.id = qd_strdup(client_id);
    }
    st = row.id ? sv_jobs_add(h->o.store, &row, key, &job, &existing, &err)
                : qd_fail(&err, QD_E_NOMEM, "no memory for a job");
    if (st) {
        reply_refused(q, st, &err, client_id, key);
        goto out;
    }
    if (existing) {
        sv_reply_field(q, "Idempotency-Replayed", "true");
    } else {
        sv_log(SV_INFO, "job_added", "request", q->id, "job", job.id, "kind", job.kind, "method", job.method, NULL);
        announce(h, &job);
    }
    if (seconds < 0 || sv_job_over(&job) || !wait_begin(q, &job, seconds))
        reply_job(q, &job);
out:
    sv_job_row_clear(&row);
    sv_job_row_clear(&job);
}

void sv_post_job(sv_request *q)
{
    submit(q, NULL);
}

void sv_put_job(sv_request *q)
{
    if (client_id_ok(q->captures[0]))
        submit(q, q->captures[0]);
    else
        sv_reply_problem(q, SV_P_INVALID_PARAM, "client_id",
                         "a client's id has 1 to 39 letters, digits, '_' and '-'; got '%.60s'", q->captures[0]);
}

/* --- look at, stop, forget --- */

static const char *const job_states[] = { "scheduled", "queued", "running", "paused",   "retry_wait",
                                          "succeeded", "failed", "dead",    "canceled", NULL };

/* Every name of a comma-separated list is a state. */
static bool states_ok(sv_request *q, const char *list)
{
    for (const char *p = list; *p;) {
        const size_t n = strcspn(p, ",");
        int k = 0;
        while (job_states[k] && (strlen(job_states[k]) != n || strncmp(job_states[k], p, n)))
            k++;
        if (!job_states[k]) {
            sv_reply_problem(
                q, SV_P_INVALID_QUERY, "status",
                "'%.*s' is not a state; known: scheduled, queued, running, paused, retry_wait, succeeded, failed, dead, canceled",
                (int)(n < 40 ? n : 40), p);
            return false;
        }
        p += n + (p[n] == ',');
    }
    return true;
}

bool sv_request_order(sv_request *q, bool *ascending)
{
    const char *order = sv_target_query(&q->target, "order");
    *ascending = order && !strcmp(order, "asc");
    if (!order || *ascending || !strcmp(order, "desc"))
        return true;
    sv_reply_problem(q, SV_P_INVALID_QUERY, "order", "order must be asc or desc, got '%.40s'", order);
    return false;
}

void sv_reply_list_error(sv_request *q, qd_status st, const qd_err *err)
{
    if (st == QD_E_INVALID || st == QD_E_NOT_FOUND)
        sv_reply_problem(q, SV_P_INVALID_QUERY, "after", "%s", err->text);
    else
        sv_reply_error(q, st, err, NULL);
}

void sv_list_jobs(sv_request *q)
{
    const char *status = sv_target_query(&q->target, "status"), *kind = sv_target_query(&q->target, "kind");
    sv_job_row *rows = NULL;
    qd_err err = { 0 };
    int64_t limit;
    int n = 0;
    bool more = false, ascending;
    if (!sv_request_int(q, "limit", 1, 100, 50, &limit) || !sv_request_order(q, &ascending) ||
        (status && !states_ok(q, status)))
        return;
    if (kind && !sv_kind_find(kind)) {
        sv_reply_problem(q, SV_P_INVALID_QUERY, "kind", "'%.40s' is not a kind of job; GET /v1/kinds lists them", kind);
        return;
    }
    const sv_list_query query = { .status = status && *status ? status : NULL,
                                  .kind = kind,
                                  .after = sv_target_query(&q->target, "after"),
                                  .limit = (int)limit,
                                  .ascending = ascending };
    const qd_status st = sv_jobs_list(q->http->o.store, &query, &rows, &n, &more, &err);
    if (st) {
        sv_reply_list_error(q, st, &err);
        return;
    }
    json_t *data = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(data, sv_job_json(q->http->o.store, &rows[i]));
    sv_reply_json(q, 200, sv_list_json(data, more, n ? rows[n - 1].id : NULL));
    sv_job_rows_free(rows, n);
}

void sv_get_job(sv_request *q)
{
    sv_job_row job = { 0 };
    if (!sv_find_job(q, q->captures[0], &job))
        return;
    sv_reply_json(q, 200, sv_job_json(q->http->o.store, &job));
    sv_job_row_clear(&job);
}

void sv_cancel_job(sv_request *q)
{
    sv_http *h = q->http;
    sv_job_row job = { 0 };
    qd_err err = { 0 };
    json_t *reply = NULL;
    int status = 0;
    if (!sv_find_job(q, q->captures[0], &job))
        return;
    const qd_status st = sv_jobs_request_cancel(h->o.store, h->o.workers, h->o.bus, job.id, &reply, &status, &err);
    if (st) {
        sv_reply_error(q, st, &err, NULL);
    } else {
        sv_log(SV_INFO, "cancel_requested", "request", q->id, "job", job.id, NULL);
        sv_reply_json(q, status, reply);
    }
    sv_job_row_clear(&job);
}

void sv_retry_job(sv_request *q)
{
    sv_http *h = q->http;
    sv_job_row old = { 0 }, job = { 0 };
    qd_err err = { 0 };
    bool existing = false;
    if (!sv_find_job(q, q->captures[0], &old))
        return;
    const qd_status st = sv_jobs_retry(h->o.store, old.id, sv_now_ms(), &job, &existing, &err);
    if (st) {
        sv_reply_error(q, st, &err, NULL);
        goto out;
    }
    if (!existing) {
        sv_log(SV_INFO, "job_retried", "request", q->id, "job", job.id, "retry_of", old.id, NULL);
        announce(h, &job);
    }
    reply_job(q, &job);
out:
    sv_job_row_clear(&old);
    sv_job_row_clear(&job);
}

void sv_delete_job(sv_request *q)
{
    sv_http *h = q->http;
    sv_job_row job = { 0 };
    qd_err err = { 0 };
    char *files = NULL;
    if (!sv_find_job(q, q->captures[0], &job))
        return;
    qd_status st = sv_jobs_delete(h->o.store, job.id, &err);
    if (st) {
        sv_reply_error(q, st, &err, NULL);
        goto out;
    }
    /* The rows are gone, so nobody is led to the files any more; models made of them have a name of their own. */
    files = sv_http_path(h, "jobs", job.id);
    st = files ? qd_fs_remove_tree(files, &err) : QD_E_NOMEM;
    if (st)
        sv_log(SV_WARN, "job_files_left", "job", job.id, "words", err.text, NULL);
    sv_log(SV_INFO, "job_deleted", "request", q->id, "job", job.id, NULL);
    sv_reply_empty(q, 204);
out:
    qd_free(files);
    sv_job_row_clear(&job);
}
