/* stream.c - a job's events as a stream: server-sent events or NDJSON, from any number on, without holding a thread. */
#include "http/http_int.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

enum { PING_MS = 15000, PACE_MS = 500, BATCH = 128 };

struct sv_stream {
    sv_http *http;
    sv_park park;
    sv_listener *listener;
    char job_id[40];
    int64_t after;         // number of the last event sent or passed over
    bool sse, live, ended; /* live: it has caught up once */
    atomic_bool urgent;    /* something came that is never held back */
    atomic_llong paced_ms; // monotonic: before this, progress and metrics wait
    int64_t ping_ms;       // monotonic
    qd_buf out;
    size_t sent; // bytes of out
};

/* On the publisher's thread. The log is the truth: this only says that it has grown. */
static void on_message(void *ctx, const sv_message *m)
{
    sv_stream *s = ctx;
    if (m->seq == 0)
        return;
    if (strcmp(m->type, "progress") && strcmp(m->type, "metric")) {
        atomic_store(&s->urgent, true);
        sv_park_wake(&s->park);
    } else {
        sv_park_wake_at(&s->park, atomic_load(&s->paced_ms));
    }
}

static void add_line(sv_stream *s, int64_t seq, const char *type, const char *envelope)
{
    /* One event, one line: white space between tokens is all a JSON text can have of line ends. */
    char *line = qd_strdup(envelope);
    if (!line) {
        s->out.failed = true;
        return;
    }
    for (char *p = line; *p; p++)
        if (*p == '\n' || *p == '\r')
            *p = ' ';
    if (s->sse)
        qd_buf_addf(&s->out, "id: %lld\nevent: %s\ndata: ", (long long)seq, type);
    qd_buf_adds(&s->out, line);
    qd_buf_adds(&s->out, s->sse ? "\n\n" : "\n");
    qd_free(line);
}

static json_t *metric_name(const sv_event_row *row)
{
    json_t *data = json_loads(row->data, 0, NULL);
    json_t *name = data ? json_incref(json_object_get(data, "name")) : NULL;
    json_decref(data);
    return name;
}

/* A live reader gets progress and each curve at most once in a batch: is there a newer one of the same further on? */
static bool superseded(const sv_event_row *rows, int n, int i)
{
    const char *type = rows[i].type;
    const bool progress = !strcmp(type, "progress");
    if (!progress && strcmp(type, "metric"))
        return false;
    json_t *name = progress ? NULL : metric_name(&rows[i]);
    bool found = false;
    for (int k = i + 1; k < n && !found; k++) {
        if (strcmp(rows[k].type, type))
            continue;
        json_t *other = progress ? NULL : metric_name(&rows[k]);
        found = progress || (name && other && json_equal(name, other));
        json_decref(other);
    }
    json_decref(name);
    return found;
}

/* The state of things in one event, for a reader whose number the log does not have. */
static void add_reset(sv_stream *s, const sv_job_row *job)
{
    qd_buf data;
    json_t *snapshot = sv_job_json(s->http->o.store, job);
    char *envelope = NULL;
    if (sv_json_dump(snapshot, &data)) {
        envelope = sv_envelope(s->job_id, job->last_seq, sv_now_ms(), job->attempt, "reset", data.data);
        qd_buf_clear(&data);
    }
    if (envelope)
        add_line(s, job->last_seq, "reset", envelope);
    qd_free(envelope);
    json_decref(snapshot);
}

/* More to send into `out`; false when there is nothing now. */
static bool fill(sv_stream *s)
{
    sv_event_row *rows = NULL;
    sv_job_row job = { 0 };
    int n = 0;
    s->out.size = s->sent = 0;
    atomic_store(&s->urgent, false);
    if (sv_events_read(s->http->o.store, s->job_id, s->after, NULL, BATCH, &rows, &n, NULL)) {
        s->ended = true;
        return false;
    }
    for (int i = 0; i < n; i++) {
        s->after = rows[i].seq;
        if (!strcmp(rows[i].type, "end"))
            s->ended = true;
        if (s->live && superseded(rows, n, i))
            continue;
        char *envelope =
            sv_envelope(s->job_id, rows[i].seq, rows[i].ts_ms, rows[i].attempt, rows[i].type, rows[i].data);
        if (envelope)
            add_line(s, rows[i].seq, rows[i].type, envelope);
        else
            s->out.failed = true;
        qd_free(envelope);
    }
    sv_event_rows_free(rows, n);
    if (n == 0) {
        /* Nothing new. A job that is over, or gone, has nothing to come; a number from elsewhere starts afresh. */
        if (sv_jobs_get(s->http->o.store, s->job_id, &job, NULL)) {
            s->ended = true;
        } else if (s->after > job.last_seq) {
            s->after = job.last_seq;
            add_reset(s, &job);
            s->ended = sv_job_over(&job);
        } else if (s->after == job.last_seq && sv_job_over(&job)) {
            s->ended = true;
        }
        sv_job_row_clear(&job);
        s->live = true;
    }
    if (s->out.failed)
        s->ended = true; /* no memory: the reader comes back with its last number */
    return s->out.size > 0;
}

static bool reader_left(const sv_stream *s)
{
    struct pollfd p = { .fd = sv_mhd_fd(s->park.connection), .events = POLLRDHUP };
    return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

long sv_stream_read(sv_stream *s, char *buf, size_t max)
{
    for (;;) {
        if (s->sent < s->out.size) {
            const size_t left = s->out.size - s->sent;
            const size_t n = left < max ? left : max;
            memcpy(buf, s->out.data + s->sent, n);
            s->sent += n;
            return (long)n;
        }
        const int64_t now = sv_mono_ms();
        if (s->ended || atomic_load(&s->http->stopping) || reader_left(s))
            return -1;
        const int64_t paced = atomic_load(&s->paced_ms);
        if ((!s->live || now >= paced || atomic_load(&s->urgent)) && fill(s)) {
            atomic_store(&s->paced_ms, now + PACE_MS);
            s->ping_ms = now + PING_MS;
            continue;
        }
        if (s->ended)
            return -1;
        if (now >= s->ping_ms) {
            s->ping_ms = now + PING_MS;
            s->out.size = s->sent = 0;
            if (s->sse)
                qd_buf_adds(&s->out, ": ping\n\n");
            continue;
        }
        if (sv_park_wait(&s->park, now < paced ? paced : s->ping_ms))
            return 0;
    }
}

void sv_stream_free(sv_stream *s)
{
    if (!s)
        return;
    sv_bus_unlisten(s->http->o.bus, s->listener);
    sv_park_close(&s->park);
    qd_buf_clear(&s->out);
    qd_free(s);
}

void sv_reply_stream(sv_request *q, const char *job_id, int64_t after, bool sse)
{
    qd_err err = { 0 };
    sv_stream *s = qd_calloc(1, sizeof *s);
    if (!s) {
        qd_fail(&err, QD_E_NOMEM, "no memory for a stream");
        sv_reply_error(q, QD_E_NOMEM, &err, NULL);
        return;
    }
    s->http = q->http;
    s->after = after;
    s->sse = sse;
    s->ping_ms = sv_mono_ms() + PING_MS;
    snprintf(s->job_id, sizeof s->job_id, "%s", job_id);
    qd_buf_init(&s->out, 0);
    if (sse)
        qd_buf_adds(&s->out, "retry: 2000\n\n");
    sv_park_open(&s->park, q->http, q->connection);
    s->listener = sv_bus_listen(q->http->o.bus, s->job_id, on_message, s);
    if (!s->listener) {
        sv_stream_free(s);
        qd_fail(&err, QD_E_NOMEM, "no memory for a stream");
        sv_reply_error(q, QD_E_NOMEM, &err, NULL);
        return;
    }
    sv_reply_field(q, "Content-Type", sse ? "text/event-stream" : "application/x-ndjson");
    sv_reply_field(q, "X-Accel-Buffering", "no"); /* a proxy in front passes events on at once */
    q->reply.status = 200;
    q->reply.kind = SV_BODY_STREAM;
    q->reply.stream = s;
}
