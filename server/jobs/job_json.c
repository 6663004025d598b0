/* job_json.c - jobs and models as the API shows them, and small JSON parts of this room. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"

json_t *sv_json_number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

char *sv_json_text(const json_t *o)
{
    const size_t flags = JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY;
    const size_t n = json_dumpb(o, NULL, 0, flags);
    char *text = qd_alloc(n + 1);
    if (!text)
        return NULL;
    json_dumpb(o, text, n, flags);
    text[n] = '\0';
    return text;
}

json_t *sv_json_read(const char *text)
{
    json_t *o = text && text[0] ? json_loads(text, 0, NULL) : NULL;
    return o ? o : json_null();
}

static json_t *time_json(int64_t ms)
{
    char text[32];
    return ms > 0 ? json_string(sv_time_text(ms, text)) : json_null();
}

static json_t *link_json(const char *id, const char *tail)
{
    return json_sprintf("/v1/jobs/%s%s", id, tail);
}

/* When it may start and end, judged by earlier jobs of the kind; null when nothing like it has ever finished. */
static json_t *eta_json(sv_store *store, const sv_job_row *j, int64_t position)
{
    double seconds50, seconds90;
    int jobs;
    const int64_t now = sv_now_ms();
    if (!store || !sv_estimate_seconds(store, j, &seconds50, &seconds90, &jobs))
        return json_null();
    const int64_t p50 = (int64_t)(seconds50 * 1000), p90 = (int64_t)(seconds90 * 1000);
    int64_t start = j->started_ms;
    if (position >= 0)
        start = (j->run_at_ms > now ? j->run_at_ms : now) + position * p50;
    const int64_t soon = start + p50 > now ? start + p50 : now, late = start + p90 > now ? start + p90 : now;
    return json_pack("{s:o, s:o, s:o}", "start", time_json(start), "finish_p50", time_json(soon), "finish_p90",
                     time_json(late));
}

json_t *sv_job_json(sv_store *store, const sv_job_row *j)
{
    int64_t position = -1;
    const bool waiting = strcmp(j->status, "queued") == 0, running = strcmp(j->status, "running") == 0;
    if (store && waiting && sv_jobs_position(store, j->id, &position, NULL))
        position = -1;

    json_t *body = sv_json_read(j->body);
    json_t *progress = json_pack("{s:s, s:I, s:I}", "phase", j->phase[0] ? j->phase : j->status, "done",
                                 (json_int_t)j->done, "total", (json_int_t)j->total);
    if (j->item[0])
        json_object_set_new(progress, "layer", json_string(j->item));
    json_t *links =
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "self", link_json(j->id, ""), "events", link_json(j->id, "/events"),
                  "cancel", link_json(j->id, "/cancel"), "retry", link_json(j->id, "/retry"), "samples",
                  link_json(j->id, "/samples"), "artifacts", link_json(j->id, "/artifacts"));

    json_t *o = json_object();
    json_object_set_new(o, "id", json_string(j->id));
    json_object_set_new(o, "object", json_string("job"));
    json_object_set_new(o, "kind", json_string(j->kind));
    json_object_set_new(o, "method", json_string(j->method));
    json_object_set_new(o, "status", json_string(j->status));
    json_object_set_new(o, "model", json_string(j->model_id));
    json_object_set_new(o, "dataset", j->dataset_id[0] ? json_string(j->dataset_id) : json_null());
    json_object_set_new(o, "params", sv_json_read(j->params));
    json_object_set_new(o, "metadata", sv_json_read(j->metadata));
    json_object_set_new(o, "retry_of", j->retry_of && j->retry_of[0] ? json_string(j->retry_of) : json_null());
    json_t *drop = json_object_get(body, "max_drop");
    if (json_is_object(drop))
        json_object_set(o, "max_drop", drop);
    json_object_set_new(o, "estimate", sv_json_read(j->estimate));
    json_object_set_new(o, "priority", json_integer(j->priority));
    json_object_set_new(o, "position", position >= 0 ? json_integer(position) : json_null());
    json_object_set_new(o, "eta", waiting || running ? eta_json(store, j, position) : json_null());
    json_object_set_new(o, "attempt", json_integer(j->attempt));
    json_object_set_new(o, "max_attempts", json_integer(j->max_attempts));
    json_object_set_new(o, "time_limit_s", json_integer(j->time_limit_s));
    json_object_set_new(o, "created_at", time_json(j->created_ms));
    json_object_set_new(o, "run_at", time_json(j->run_at_ms));
    json_object_set_new(o, "started_at", time_json(j->started_ms));
    json_object_set_new(o, "finished_at", time_json(j->finished_ms));
    json_object_set_new(o, "cancel_requested_at", time_json(j->cancel_requested_ms));
    json_object_set_new(o, "progress", progress);
    json_object_set_new(o, "last_seq", json_integer(j->last_seq));
    json_object_set_new(o, "error", sv_json_read(j->error));
    json_object_set_new(o, "result", sv_json_read(j->result));
    json_object_set_new(o, "links", links);
    json_decref(body);
    return o;
}

static json_t *file_json(const sv_model_row *m, const char *object, const char *folder)
{
    json_t *o = json_object();
    json_object_set_new(o, "id", json_string(m->id));
    json_object_set_new(o, "object", json_string(object));
    json_object_set_new(o, "name", m->name[0] ? json_string(m->name) : json_null());
    json_object_set_new(o, "sha256", json_string(m->sha256));
    json_object_set_new(o, "size_bytes", json_integer(m->size_bytes));
    json_object_set_new(o, "format", json_string(m->format));
    json_object_set_new(o, "role", json_string(m->role));
    json_object_set_new(o, "summary", sv_json_read(m->summary));
    json_object_set_new(o, "job", m->job_id[0] ? json_string(m->job_id) : json_null());
    json_object_set_new(o, "created_at", time_json(m->created_ms));
    json_object_set_new(o, "links",
                        json_pack("{s:o, s:o}", "self", json_sprintf("/v1/%s/%s", folder, m->id), "content",
                                  json_sprintf("/v1/%s/%s/content", folder, m->id)));
    return o;
}

json_t *sv_model_json(const sv_model_row *m)
{
    return file_json(m, "model", "models");
}

json_t *sv_dataset_json(const sv_dataset_row *d)
{
    return file_json(d, "dataset", "datasets");
}

static bool is_final(const char *status)
{
    static const char *const final[] = { "succeeded", "failed", "canceled", "dead" };
    for (size_t k = 0; k < sizeof final / sizeof final[0]; k++)
        if (strcmp(status, final[k]) == 0)
            return true;
    return false;
}

qd_status sv_jobs_request_cancel(sv_store *store, sv_workers *w, sv_bus *bus, const char *id, json_t **reply,
                                 int *http_status, qd_err *err)
{
    sv_job_row before = { 0 }, after = { 0 };
    qd_status st;

    st = sv_jobs_get(store, id, &before, err);
    if (st)
        goto out;
    st = sv_jobs_cancel(store, id, sv_now_ms(), &after, err);
    if (st)
        goto out;

    const bool over = is_final(after.status);
    if (!over && w)
        sv_workers_cancel(w, id);
    if (bus)
        sv_publish_since(store, bus, id, before.last_seq);
    json_t *o = json_pack("{s:b, s:s}", "canceled", strcmp(after.status, "canceled") == 0 && !is_final(before.status),
                          "status", after.status);
    if (!over)
        json_object_set_new(o, "cancel_requested_at", time_json(after.cancel_requested_ms));
    *reply = o;
    *http_status = over ? 200 : 202;
out:
    sv_job_row_clear(&before);
    sv_job_row_clear(&after);
    return st;
}
