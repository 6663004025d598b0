/* ws_read.c - a track's pieces of the stored log, and its resets, read on libuv's pool and sent on the loop. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "live/live_int.h"
#include "store/store.h"

typedef struct read_work {
    uv_work_t req;
    sv_peer *peer;
    uint64_t track;
    bool snapshot; /* make a reset instead of reading events */
    char job[40];
    int64_t after;
    sv_loop *loop;

    qd_status st;
    qd_err err;
    bool pruned, over; /* over: in a final state when read */
    int64_t last_seq;
    sv_event_row *rows;
    int n;
    char *reset; /* envelope */
} read_work;

static bool is_over(const sv_job_row *j)
{
    return j->finished_ms != 0;
}

/* The main fields of a row, for a loop that was given no better way to show a job. */
static char *snapshot_plain(const sv_job_row *j)
{
    json_t *error = json_loads(j->error, 0, NULL), *result = json_loads(j->result, 0, NULL);
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:i, s:{s:s, s:s, s:I, s:I}, s:o, s:o}", "id", j->id, "object", "job",
                          "kind", j->kind, "status", j->status, "attempt", j->attempt, "progress", "phase", j->phase,
                          "item", j->item, "done", (json_int_t)j->done, "total", (json_int_t)j->total, "error",
                          error ? error : json_null(), "result", result ? result : json_null());
    char *made = o ? json_dumps(o, JSON_COMPACT) : NULL;
    char *text = made ? qd_strdup(made) : NULL;

    free(made);
    json_decref(o);
    return text;
}

static void read_snapshot(read_work *w, const sv_job_row *j)
{
    char *data = w->loop->o.snapshot ? w->loop->o.snapshot(w->loop->o.ctx, j) : snapshot_plain(j);

    if (data)
        w->reset = sv_envelope(w->job, j->last_seq, sv_now_ms(), j->attempt, "reset", data);
    qd_free(data);
    if (!w->reset)
        w->st = qd_fail(&w->err, QD_E_NOMEM, "out of memory while showing job '%s'", w->job);
}

static void read_run(uv_work_t *req)
{
    read_work *w = req->data;
    sv_job_row job = { 0 };

    /* The row before the events: what happens between the two is in the events, and never missing from both. */
    w->st = sv_jobs_get(w->loop->o.store, w->job, &job, &w->err);
    if (w->st) {
        w->pruned = w->st == QD_E_NOT_FOUND && sv_jobs_pruned(w->loop->o.store, w->job);
        return;
    }
    w->last_seq = job.last_seq;
    w->over = is_over(&job);
    /* A number that the log never gave out is of another life of this database: show the present instead. */
    if (w->snapshot || w->after > job.last_seq)
        read_snapshot(w, &job);
    else
        w->st = sv_events_read(w->loop->o.store, w->job, w->after, NULL, w->loop->t.rows, &w->rows, &w->n, &w->err);
    sv_job_row_clear(&job);
}

/* A job that is not there ends the track. Other trouble is the answer to a new subscription; an older one tries again, at the next
 * message or check. */
static void read_failed(sv_peer *p, sv_track *t, const read_work *w)
{
    if (w->st != QD_E_NOT_FOUND && !t->fresh) {
        t->mode = SV_LIVE;
        return;
    }
    if (w->pruned && t->by_name)
        sv_ops_error(p, 410, "gone", "Gone", w->err.text, t->job);
    else if (t->by_name)
        sv_ops_fail(p, &w->err, t->job);
    sv_track_remove(p, t);
}

/* true: the end was among them. */
static bool read_events(sv_peer *p, sv_track *t, const read_work *w)
{
    for (int i = 0; i < w->n; i++) {
        const sv_event_row *e = &w->rows[i];
        char *envelope;
        if (e->seq <= t->last)
            continue; /* the bus was faster */
        envelope = sv_envelope(e->job_id, e->seq, e->ts_ms, e->attempt, e->type, e->data);
        if (!envelope)
            return false; /* read again later */
        sv_track_drop_held(t);
        sv_send_event(p, e->type, envelope);
        qd_free(envelope);
        t->last = e->seq;
        sv_track_send_early(p, t);
        if (strcmp(e->type, "end") == 0) {
            sv_track_end(p, t);
            return true;
        }
    }
    return false;
}

static void read_take(sv_peer *p, sv_track *t, const read_work *w)
{
    t->working = false;
    t->quiet_ms = sv_loop_now(p->loop);
    if (w->st) {
        read_failed(p, t, w);
        return;
    }
    t->fresh = false;
    if (w->reset) {
        sv_track_drop_held(t);
        sv_send_envelope(p, "event", w->reset);
        t->last = w->last_seq;
        sv_track_drop_early(t);
        t->mode = SV_READING;
    } else if (read_events(p, t, w)) {
        return;
    }
    if (w->over && t->last >= w->last_seq && !t->over) {
        sv_send_end(p, t);
        sv_track_end(p, t);
        return;
    }
    if (t->mode != SV_READING)
        return;
    if (w->n == p->loop->t.rows || (t->known > t->last && (w->n || w->reset))) {
        sv_read_start(p, t);
    } else {
        /* A known number that the log does not have was never stored; there is nothing to wait for. */
        t->mode = SV_LIVE;
    }
}

static void read_done(uv_work_t *req, int status)
{
    read_work *w = req->data;
    sv_peer *p = w->peer;

    if (p->state == SV_OPEN) {
        sv_track *t = sv_track_by_id(p, w->track);
        if (t)
            read_take(p, t, w);
        sv_peer_flush(p);
    }
    sv_event_rows_free(w->rows, w->n);
    qd_free(w->reset);
    qd_free(w);
    sv_peer_unref(p);
}

/* Ask the pool for the next piece, or for a snapshot when behind; nothing while the queue to the client is full. */
void sv_read_start(sv_peer *p, sv_track *t)
{
    read_work *w;

    if (t->working || sv_ws_queued(p->ws) > p->loop->t.queue_resume || !sv_peer_ref(p))
        return;
    w = qd_calloc(1, sizeof(*w));
    if (!w) {
        sv_peer_unref(p);
        return;
    }
    w->req.data = w;
    w->peer = p;
    w->loop = p->loop;
    w->track = t->id;
    w->snapshot = t->mode == SV_BEHIND;
    w->after = t->last;
    snprintf(w->job, sizeof(w->job), "%s", t->job);
    if (uv_queue_work(&p->loop->uv, &w->req, read_run, read_done)) {
        qd_free(w);
        sv_peer_unref(p);
        return;
    }
    t->working = true;
}
