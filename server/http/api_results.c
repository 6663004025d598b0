/* api_results.c - what a job said and made: attempts, events, curves, layers, images, files. */
#include "http/http_int.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

static json_t *time_json(int64_t ms)
{
    char text[32];
    return ms ? json_string(sv_time_text(ms, text)) : json_null();
}

static json_t *read_json(const char *text)
{
    json_t *value = text && *text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
    return value ? value : json_null();
}

void sv_get_attempts(sv_request *q)
{
    sv_job_row job = { 0 };
    sv_attempt_row *rows = NULL;
    qd_err err = { 0 };
    int n = 0;
    if (!sv_find_job(q, q->captures[0], &job))
        return;
    const qd_status st = sv_attempts_list(q->http->o.store, job.id, &rows, &n, &err);
    if (st) {
        sv_reply_error(q, st, &err, NULL);
    } else {
        json_t *data = json_array();
        for (int i = 0; i < n; i++)
            json_array_append_new(data, json_pack("{si so so ss so so}", "attempt", rows[i].attempt, "started_at",
                                                  time_json(rows[i].started_ms), "finished_at",
                                                  time_json(rows[i].finished_ms), "worker", rows[i].worker, "outcome",
                                                  *rows[i].outcome ? json_string(rows[i].outcome) : json_null(),
                                                  "error", read_json(rows[i].error)));
        sv_reply_json(q, 200, sv_list_json(data, false, NULL));
    }
    sv_attempt_rows_free(rows, n);
    sv_job_row_clear(&job);
}

/* --- events --- */

static void list_events(sv_request *q, const char *job_id, int64_t after)
{
    sv_event_row *rows = NULL;
    qd_err err = { 0 };
    int64_t limit;
    int n = 0;
    char cursor[24] = "";
    if (!sv_request_int(q, "limit", 1, 1000, 100, &limit))
        return;
    const qd_status st = sv_events_read(q->http->o.store, job_id, after, NULL, (int)limit + 1, &rows, &n, &err);
    if (st) {
        sv_reply_error(q, st, &err, NULL);
        return;
    }
    json_t *data = json_array();
    for (int i = 0; i < n && i < limit; i++) {
        char *envelope = sv_envelope(job_id, rows[i].seq, rows[i].ts_ms, rows[i].attempt, rows[i].type, rows[i].data);
        json_array_append_new(data, read_json(envelope));
        qd_free(envelope);
        snprintf(cursor, sizeof cursor, "%lld", (long long)rows[i].seq);
    }
    sv_reply_json(q, 200, sv_list_json(data, n > limit, cursor));
    sv_event_rows_free(rows, n);
}

void sv_get_events(sv_request *q)
{
    static const char *const offered[] = { "application/json", "text/event-stream", "application/x-ndjson" };
    const int kind = sv_accept_pick(sv_request_field(q, "Accept"), offered, 3);
    const char *last = sv_request_field(q, "Last-Event-ID");
    sv_job_row job = { 0 };
    int64_t after = 0;
    if (kind < 0) {
        sv_reply_problem(q, SV_P_NOT_ACCEPTABLE, NULL,
                         "events come as application/json, text/event-stream or application/x-ndjson");
        return;
    }
    if (!sv_request_int(q, "after", 0, INT64_MAX, 0, &after))
        return;
    /* A browser that reconnects sends the old address and the newer number. */
    if (last && *last && !sv_parse_int64(last, 0, INT64_MAX, &after)) {
        sv_reply_problem(q, SV_P_BAD_REQUEST, NULL, "Last-Event-ID must be the number of an event, got '%.40s'", last);
        return;
    }
    if (!sv_find_job(q, q->captures[0], &job))
        return;
    sv_reply_field(q, "Vary", "Accept");
    if (kind == 0)
        list_events(q, job.id, after);
    else
        sv_reply_stream(q, job.id, after, kind == 1);
    sv_job_row_clear(&job);
}

/* Rows of one type as flat objects: what the event says, with its number, time and attempt. name NULL = all. */
static void list_of_type(sv_request *q, const char *type, const char *name)
{
    enum { PAGE = 512 };
    sv_job_row job = { 0 };
    qd_err err = { 0 };
    int64_t after, limit;
    bool more = false, end = false;
    char cursor[24] = "";
    qd_status st = QD_OK;
    if (!sv_request_int(q, "after", 0, INT64_MAX, 0, &after) || !sv_request_int(q, "limit", 1, 1000, 1000, &limit) ||
        !sv_find_job(q, q->captures[0], &job))
        return;
    json_t *data = json_array();
    while (!st && !more && !end) {
        sv_event_row *rows = NULL;
        int n = 0;
        st = sv_events_read(q->http->o.store, job.id, after, type, PAGE, &rows, &n, &err);
        end = n < PAGE;
        for (int i = 0; i < n && !more; i++) {
            json_t *row = read_json(rows[i].data);
            const char *its = json_string_value(json_object_get(row, "name"));
            after = rows[i].seq;
            if (name && (!its || strcmp(its, name))) {
                json_decref(row);
                continue;
            }
            if ((int64_t)json_array_size(data) == limit) {
                more = true;
                json_decref(row);
                continue;
            }
            json_object_set_new(row, "seq", json_integer(rows[i].seq));
            json_object_set_new(row, "ts", time_json(rows[i].ts_ms));
            json_object_set_new(row, "attempt", json_integer(rows[i].attempt));
            json_array_append_new(data, row);
            snprintf(cursor, sizeof cursor, "%lld", (long long)rows[i].seq);
        }
        sv_event_rows_free(rows, n);
    }
    if (st) {
        json_decref(data);
        sv_reply_error(q, st, &err, NULL);
    } else {
        sv_reply_json(q, 200, sv_list_json(data, more, cursor));
    }
    sv_job_row_clear(&job);
}

void sv_get_job_metrics(sv_request *q)
{
    list_of_type(q, "metric", sv_target_query(&q->target, "name"));
}

void sv_get_layers(sv_request *q)
{
    list_of_type(q, "layer", NULL);
}

/* --- images --- */

void sv_list_samples(sv_request *q)
{
    sv_job_row job = { 0 };
    sv_sample_row *rows = NULL;
    qd_err err = { 0 };
    int n = 0;
    if (!sv_find_job(q, q->captures[0], &job))
        return;
    const qd_status st = sv_samples_list(q->http->o.store, job.id, &rows, &n, &err);
    if (st) {
        sv_reply_error(q, st, &err, NULL);
    } else {
        json_t *data = json_array();
        for (int i = 0; i < n; i++)
            json_array_append_new(
                data,
                json_pack("{sI ss sI sI si si so ss so}", "n", (json_int_t)rows[i].n, "kind", rows[i].kind, "step",
                          (json_int_t)rows[i].step, "index", (json_int_t)rows[i].index, "width", rows[i].width,
                          "height", rows[i].height, "psnr_db",
                          isfinite(rows[i].psnr_db) ? json_real(rows[i].psnr_db) : json_null(), "mime", rows[i].mime,
                          "url", json_sprintf("/v1/jobs/%s/samples/%lld", job.id, (long long)rows[i].n)));
        sv_reply_json(q, 200, sv_list_json(data, false, NULL));
    }
    sv_sample_rows_free(rows, n);
    sv_job_row_clear(&job);
}

/* A path below the data folder, as a reply. */
static void reply_stored(sv_request *q, const char *relative, sv_file_reply f)
{
    char *path = sv_http_path(q->http, relative, NULL);
    f.path = path;
    if (path) {
        sv_reply_file(q, &f);
    } else {
        qd_err err = { 0 };
        qd_fail(&err, QD_E_NOMEM, "no memory for a path");
        sv_reply_error(q, QD_E_NOMEM, &err, NULL);
    }
    qd_free(path);
}

void sv_get_sample(sv_request *q)
{
    sv_job_row job = { 0 };
    sv_sample_row *rows = NULL;
    qd_err err = { 0 };
    int64_t wanted;
    int n = 0;
    bool found = false;
    if (!sv_parse_int64(q->captures[1], 0, INT64_MAX, &wanted)) {
        sv_reply_problem(q, SV_P_NOT_FOUND, NULL, "samples have numbers, not '%.40s'", q->captures[1]);
        return;
    }
    if (!sv_find_job(q, q->captures[0], &job))
        return;
    const qd_status st = sv_samples_list(q->http->o.store, job.id, &rows, &n, &err);
    for (int i = 0; i < n && !found; i++) {
        char filename[96];
        if (rows[i].n != wanted)
            continue;
        found = true;
        snprintf(filename, sizeof filename, "%s-%lld.png", job.id, (long long)wanted);
        reply_stored(q, rows[i].path,
                     (sv_file_reply){ .mime = rows[i].mime, .filename = filename, .inline_view = true });
    }
    if (st)
        sv_reply_error(q, st, &err, NULL);
    else if (!found)
        sv_reply_problem(q, SV_P_NOT_FOUND, NULL, "job '%s' has no sample %lld", job.id, (long long)wanted);
    sv_sample_rows_free(rows, n);
    sv_job_row_clear(&job);
}

/* --- files --- */

void sv_list_artifacts(sv_request *q)
{
    sv_job_row job = { 0 };
    sv_artifact_row *rows = NULL;
    qd_err err = { 0 };
    int n = 0;
    if (!sv_find_job(q, q->captures[0], &job))
        return;
    const qd_status st = sv_artifacts_list(q->http->o.store, job.id, &rows, &n, &err);
    if (st) {
        sv_reply_error(q, st, &err, NULL);
    } else {
        json_t *data = json_array();
        for (int i = 0; i < n; i++)
            json_array_append_new(data,
                                  json_pack("{ss ss ss ss ss sI so so}", "id", rows[i].id, "object", "artifact", "name",
                                            rows[i].name, "mime", rows[i].mime, "sha256", rows[i].sha256, "size_bytes",
                                            (json_int_t)rows[i].size_bytes, "created_at", time_json(rows[i].created_ms),
                                            "url", json_sprintf("/v1/jobs/%s/artifacts/%s", job.id, rows[i].name)));
        sv_reply_json(q, 200, sv_list_json(data, false, NULL));
    }
    sv_artifact_rows_free(rows, n);
    sv_job_row_clear(&job);
}

/* A page to read has its styles and pictures in itself. It is looked at apart from everything else here: no scripts, no requests, an
 * origin of its own. */
static void reply_artifact(sv_request *q, const sv_artifact_row *row)
{
    const bool page = !strncmp(row->mime, "text/html", 9);
    if (page)
        sv_reply_field(q, "Content-Security-Policy", "%s",
                       "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
                       "base-uri 'none'; frame-ancestors 'none'");
    const bool view = page || !strcmp(row->mime, "image/png") || !strcmp(row->mime, "application/json");
    reply_stored(
        q, row->path,
        (sv_file_reply){ .mime = row->mime, .filename = row->name, .sha256 = row->sha256, .inline_view = view });
}

void sv_get_artifact(sv_request *q)
{
    sv_job_row job = { 0 };
    sv_artifact_row row = { 0 };
    qd_err err = { 0 };
    if (!sv_find_job(q, q->captures[0], &job))
        return;
    const qd_status st = sv_artifacts_get(q->http->o.store, job.id, q->captures[1], &row, &err);
    if (st == QD_E_NOT_FOUND)
        sv_reply_problem(q, SV_P_NOT_FOUND, NULL, "job '%s' has no artifact '%.100s'", job.id, q->captures[1]);
    else if (st)
        sv_reply_error(q, st, &err, NULL);
    else
        reply_artifact(q, &row);
    sv_artifact_row_clear(&row);
    sv_job_row_clear(&job);
}
