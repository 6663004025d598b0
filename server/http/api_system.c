/* api_system.c - the daemon about itself: discovery, dashboard, health, figures, kinds of job. */
#include "http/http_int.h"

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/mem.h"
#include "web/web.h"

/* --- the front page --- */

void sv_get_asset(sv_request *q)
{
    const sv_asset *a = sv_asset_find(q->target.path);
    sv_reply_asset(q, a->type, a->etag, a->data, a->size);
}

void sv_get_root(sv_request *q)
{
    static const char *const offered[] = { "application/json", "text/html" };
    const sv_asset *page = sv_asset_find("/index.html");
    const int kind = sv_accept_pick(sv_request_field(q, "Accept"), offered, page ? 2 : 1);
    sv_reply_field(q, "Vary", "Accept");
    if (kind == 1) {
        sv_reply_asset(q, page->type, page->etag, page->data, page->size);
        return;
    }
    if (kind < 0) {
        sv_reply_problem(q, SV_P_NOT_ACCEPTABLE, NULL, "this page comes as application/json or text/html");
        return;
    }
    json_t *links = json_object();
    for (const sv_route *r = sv_routes; r->method; r++)
        if (!strcmp(r->method, "GET") && !strchr(r->pattern, '{') && strcmp(r->pattern, "/"))
            json_object_set_new(links, r->operation, json_string(r->pattern));
    sv_reply_json(q, 200,
                  json_pack("{ss ss ss ss so}", "object", "discovery", "name", "quantd", "version", SV_VERSION,
                            "documentation", "/openapi.json", "links", links));
}

void sv_get_openapi(sv_request *q)
{
    char *text = sv_openapi_text();
    if (!text) {
        qd_err err = { 0 };
        qd_fail(&err, QD_E_NOMEM, "no memory for the document");
        sv_reply_error(q, QD_E_NOMEM, &err, NULL);
        return;
    }
    sv_reply_text(q, 200, "application/json", text, strlen(text));
}

/* --- health --- */

typedef struct tally {
    qd_buf *text; /* Prometheus lines, or NULL */
    int64_t queued;
} tally;

static void add_count(void *ctx, const char *kind, const char *status, int64_t n)
{
    tally *t = ctx;
    if (!strcmp(status, "queued"))
        t->queued += n;
    if (t->text)
        qd_buf_addf(t->text, "quantd_jobs_total{kind=\"%s\",status=\"%s\"} %lld\n", kind, status, (long long)n);
}

static int busy(const sv_http *h)
{
    return h->o.workers ? sv_workers_busy(h->o.workers) : 0;
}

static int worker_count(const sv_http *h)
{
    return h->o.workers ? sv_workers_count(h->o.workers) : 0;
}

void sv_get_healthz(sv_request *q)
{
    sv_reply_json(q, 200,
                  json_pack("{ss ss sI}", "status", "ok", "version", SV_VERSION, "uptime_s",
                            (json_int_t)((sv_now_ms() - q->http->o.started_ms) / 1000)));
}

void sv_get_readyz(sv_request *q)
{
    sv_http *h = q->http;
    const char *state = "READY";
    char reason[256] = "";
    tally t = { 0 };
    qd_err err = { 0 };
    struct statvfs disk;
    const qd_status st = sv_jobs_counts(h->o.store, add_count, &t, &err);
    const bool disk_known = !statvfs(h->o.settings->data_dir, &disk);
    if (atomic_load(&h->draining)) {
        state = "DRAINING";
        snprintf(reason, sizeof reason, "the daemon is shutting down");
    } else if (st) {
        state = "DEGRADED";
        snprintf(reason, sizeof reason, "the store does not answer (%s)", qd_status_name(st));
    } else if (!disk_known || (double)disk.f_bavail * (double)disk.f_frsize < 64.0 * 1024 * 1024 ||
               access(h->o.settings->data_dir, W_OK)) {
        state = "DEGRADED";
        snprintf(reason, sizeof reason, "the data folder is not writable or has less than 64 MiB left");
    } else if (worker_count(h) > 0 && busy(h) >= worker_count(h) && t.queued > 0) {
        state = "BUSY";
        snprintf(reason, sizeof reason, "all %d workers are busy and %lld jobs wait", worker_count(h),
                 (long long)t.queued);
    }
    const bool takes_work = !strcmp(state, "READY") || !strcmp(state, "BUSY");
    if (!takes_work)
        sv_reply_field(q, "Retry-After", "10");
    sv_reply_json(q, takes_work ? 200 : 503,
                  json_pack("{ss ss si si sI}", "status", state, "reason", reason, "workers", worker_count(h),
                            "running", busy(h), "queued", (json_int_t)t.queued));
}

/* --- figures --- */

static int64_t resident_bytes(void)
{
    long long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f)
        return 0;
    if (fscanf(f, "%lld %lld", &pages, &resident) != 2)
        resident = 0;
    fclose(f);
    return resident * sysconf(_SC_PAGESIZE);
}

static void add_figure(qd_buf *b, const char *name, const char *type, const char *help, double value)
{
    qd_buf_addf(b, "# HELP %s %s\n# TYPE %s %s\n%s %.15g\n", name, help, name, type, name, value);
}

static void add_seconds(void *ctx, const sv_seconds_row *r)
{
    qd_buf *b = ctx;
    int64_t n = 0;
    for (int k = 0; k < SV_SECONDS_LIMITS; k++) {
        n += r->jobs[k];
        qd_buf_addf(b, "quantd_job_seconds_bucket{kind=\"%s\",method=\"%s\",le=\"%d\"} %lld\n", r->kind, r->method,
                    sv_job_seconds_limits[k], (long long)n);
    }
    n += r->jobs[SV_SECONDS_LIMITS];
    qd_buf_addf(b, "quantd_job_seconds_bucket{kind=\"%s\",method=\"%s\",le=\"+Inf\"} %lld\n", r->kind, r->method,
                (long long)n);
    qd_buf_addf(b, "quantd_job_seconds_sum{kind=\"%s\",method=\"%s\"} %.3f\n", r->kind, r->method,
                (double)r->total_ms / 1000.0);
    qd_buf_addf(b, "quantd_job_seconds_count{kind=\"%s\",method=\"%s\"} %lld\n", r->kind, r->method, (long long)n);
}

void sv_get_metrics(sv_request *q)
{
    sv_http *h = q->http;
    qd_buf b;
    qd_err err = { 0 };
    tally t = { .text = &b };
    qd_buf_init(&b, 0);
    qd_buf_adds(&b, "# HELP quantd_jobs_total Jobs known, by kind and state.\n# TYPE quantd_jobs_total gauge\n");
    qd_status st = sv_jobs_counts(h->o.store, add_count, &t, &err);
    qd_buf_adds(&b, "# HELP quantd_job_seconds Running time of jobs that succeeded, by kind and method.\n"
                    "# TYPE quantd_job_seconds histogram\n");
    if (!st)
        st = sv_jobs_seconds(h->o.store, add_seconds, &b, &err);
    if (st) {
        qd_buf_clear(&b);
        sv_reply_error(q, st, &err, NULL);
        return;
    }
    add_figure(&b, "quantd_queue_depth", "gauge", "Jobs waiting for a worker.", (double)t.queued);
    add_figure(&b, "quantd_jobs_running", "gauge", "Jobs running in this process.", busy(h));
    add_figure(&b, "quantd_workers", "gauge", "Worker threads.", worker_count(h));
    add_figure(&b, "quantd_websockets", "gauge", "Open WebSockets.", h->o.loop ? sv_loop_sockets(h->o.loop) : 0);
    qd_buf_adds(&b, "# HELP quantd_http_requests_total Requests answered, by method and code.\n"
                    "# TYPE quantd_http_requests_total counter\n");
    for (int m = 0; m < 8; m++)
        for (int code = 0; code < 600; code++) {
            const unsigned long long n = atomic_load(&h->requests[m][code]);
            if (n)
                qd_buf_addf(&b, "quantd_http_requests_total{method=\"%s\",code=\"%d\"} %llu\n", sv_method_names[m],
                            code, n);
        }
    add_figure(&b, "quantd_uptime_seconds", "gauge", "Seconds since the start.",
               (double)(sv_now_ms() - h->o.started_ms) / 1000.0);
    add_figure(&b, "process_resident_memory_bytes", "gauge", "Resident memory of the process.",
               (double)resident_bytes());
    size_t size = 0;
    char *text = b.failed ? NULL : qd_buf_take(&b, &size);
    if (!text) {
        qd_buf_clear(&b);
        qd_fail(&err, QD_E_NOMEM, "no memory for the figures");
        sv_reply_error(q, QD_E_NOMEM, &err, NULL);
        return;
    }
    sv_reply_text(q, 200, "text/plain; version=0.0.4; charset=utf-8", text, size);
}

/* --- kinds --- */

void sv_get_kinds(sv_request *q)
{
    json_t *data = json_array();
    for (int i = 0; sv_kinds[i]; i++)
        json_array_append_new(data, sv_kind_schema(sv_kinds[i]));
    sv_reply_json(q, 200, sv_list_json(data, false, NULL));
}

void sv_get_kind(sv_request *q)
{
    const sv_kind *k = sv_kind_find(q->captures[0]);
    if (k)
        sv_reply_json(q, 200, sv_kind_schema(k));
    else
        sv_reply_problem(q, SV_P_NOT_FOUND, NULL, "there is no kind of job '%.60s'; GET /v1/kinds lists them",
                         q->captures[0]);
}
