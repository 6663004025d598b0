/* ws_feed.c - what a socket follows: the stored log in pieces, then the bus; thinned, in order, never without end.
 *
 * A track reads the log until it has caught up, then lives on the bus, and goes back to the log when it sees a gap. A client that
 * takes its bytes too slowly gets nothing for a while and then one "reset" with the job as it is now. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "live/live_int.h"
#include "store/store.h"

/* --- tracks --- */

sv_track *sv_feed_find(sv_peer *p, const char *job)
{
    for (sv_track *t = p->tracks; t; t = t->next)
        if (strcmp(t->job, job) == 0)
            return t;
    return NULL;
}

static sv_track *track_by_id(sv_peer *p, uint64_t id)
{
    for (sv_track *t = p->tracks; t; t = t->next)
        if (t->id == id)
            return t;
    return NULL;
}

static void held_drop(sv_track *t)
{
    for (int i = 0; i < 2; i++) {
        sv_message_unref(t->slow[i].held);
        t->slow[i].held = NULL;
    }
}

static void track_remove(sv_peer *p, sv_track *gone)
{
    for (sv_track **at = &p->tracks; *at; at = &(*at)->next) {
        if (*at == gone) {
            *at = gone->next;
            break;
        }
    }
    p->n_tracks--;
    atomic_fetch_sub(&p->loop->followers, 1);
    held_drop(gone);
    qd_free(gone);
}

/* Its end is sent. Under "*" copies of its events may still be on their way from the bus: they are recognised by the number. */
static void track_end(sv_peer *p, sv_track *t)
{
    if (!p->all) {
        track_remove(p, t);
        return;
    }
    held_drop(t);
    t->by_name = false;
    t->over = true;
    t->mode = SV_LIVE;
}

/* Room for one more: of the jobs seen only through "*" the longest quiet one is forgotten, and found again when it speaks. */
static bool track_make_room(sv_peer *p)
{
    sv_track *oldest = NULL;

    if (p->n_tracks < p->loop->t.tracks_max)
        return true;
    for (sv_track *t = p->tracks; t; t = t->next)
        if (!t->by_name && (!oldest || t->quiet_ms < oldest->quiet_ms))
            oldest = t;
    if (oldest)
        track_remove(p, oldest);
    return oldest != NULL;
}

static sv_track *track_add(sv_peer *p, const char *job, int64_t last)
{
    const int64_t now = sv_loop_now(p->loop);
    sv_track *t = track_make_room(p) ? qd_calloc(1, sizeof(*t)) : NULL;

    if (!t)
        return NULL;
    t->id = ++p->loop->track_ids;
    snprintf(t->job, sizeof(t->job), "%s", job);
    t->last = last;
    t->quiet_ms = now;
    for (int i = 0; i < 2; i++)
        t->slow[i].sent_ms[0] = t->slow[i].sent_ms[1] = now - p->loop->t.slow_ms;
    t->next = p->tracks;
    p->tracks = t;
    p->n_tracks++;
    atomic_fetch_add(&p->loop->followers, 1);
    return t;
}

void sv_feed_clear(sv_peer *p)
{
    while (p->tracks)
        track_remove(p, p->tracks);
    if (p->all)
        atomic_fetch_sub(&p->loop->followers, 1);
    p->all = false;
    p->n_window = 0;
}

/* --- sending --- */

/* {"op":OP, and the envelope's own fields. */
static void send_envelope(sv_peer *p, const char *op, const char *envelope)
{
    qd_buf b;

    qd_buf_init(&b, 0);
    qd_buf_addf(&b, "{\"op\":\"%s\",", op);
    qd_buf_adds(&b, envelope[0] == '{' ? envelope + 1 : "}");
    if (!b.failed)
        sv_ws_send(p->ws, false, b.data, b.size);
    qd_buf_clear(&b);
}

static void send_event(sv_peer *p, const char *type, const char *envelope)
{
    send_envelope(p, strcmp(type, "end") == 0 ? "end" : "event", envelope);
}

/* An end that the log has no row for below this number: the job is over and the client knows all of it. */
static void send_end(sv_peer *p, const sv_track *t)
{
    char *text = qd_asprintf("{\"op\":\"end\",\"job\":\"%s\",\"seq\":%lld}", t->job, (long long)t->last);

    if (text)
        sv_ws_send(p->ws, false, text, strlen(text));
    qd_free(text);
}

static bool is_full(const sv_peer *p, size_t more)
{
    return sv_ws_queued(p->ws) + more > p->loop->t.queue_max;
}

/* --- reading the log, on the pool --- */

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

static void read_start(sv_peer *p, sv_track *t);

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
    track_remove(p, t);
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
        held_drop(t);
        send_event(p, e->type, envelope);
        qd_free(envelope);
        t->last = e->seq;
        if (strcmp(e->type, "end") == 0) {
            track_end(p, t);
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
        held_drop(t);
        send_envelope(p, "event", w->reset);
        t->last = w->last_seq;
        t->mode = SV_READING;
    } else if (read_events(p, t, w)) {
        return;
    }
    if (w->over && t->last >= w->last_seq && !t->over) {
        send_end(p, t);
        track_end(p, t);
        return;
    }
    if (t->mode != SV_READING)
        return;
    if (w->n == p->loop->t.rows || (t->known > t->last && (w->n || w->reset))) {
        read_start(p, t);
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
        sv_track *t = track_by_id(p, w->track);
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
static void read_start(sv_peer *p, sv_track *t)
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

/* --- following --- */

void sv_feed_follow(sv_peer *p, const char *job, int64_t after)
{
    sv_track *t;

    if (strcmp(job, "*") == 0) {
        if (!p->all)
            atomic_fetch_add(&p->loop->followers, 1);
        p->all = true;
        return;
    }
    t = sv_feed_find(p, job);
    if (t)
        track_remove(p, t); /* again: from the new number */
    t = track_add(p, job, after);
    if (!t) {
        sv_ops_error(p, 429, "too_many_subscriptions", "Too many subscriptions",
                     "unsubscribe from a job first, or subscribe to \"*\"", job);
        return;
    }
    t->by_name = t->fresh = true;
    t->mode = SV_READING;
    read_start(p, t);
}

void sv_feed_unfollow(sv_peer *p, const char *job)
{
    sv_track *t;

    if (strcmp(job, "*") != 0) {
        t = sv_feed_find(p, job);
        if (t && p->all)
            t->by_name = false;
        else if (t)
            track_remove(p, t);
        return;
    }
    if (p->all)
        atomic_fetch_sub(&p->loop->followers, 1);
    p->all = false;
    for (sv_track *next = p->tracks; (t = next) != NULL;) {
        next = t->next;
        if (!t->by_name)
            track_remove(p, t);
    }
}

/* --- live --- */

static int slow_kind(const char *type)
{
    return strcmp(type, "progress") == 0 ? 0 : strcmp(type, "metric") == 0 ? 1 : -1;
}

static bool slow_may(const sv_peer *p, const sv_track *t, int kind, int64_t now_ms)
{
    return now_ms - t->slow[kind].sent_ms[0] >= p->loop->t.slow_ms;
}

static void slow_sent(sv_track *t, int kind, int64_t now_ms)
{
    t->slow[kind].sent_ms[0] = t->slow[kind].sent_ms[1];
    t->slow[kind].sent_ms[1] = now_ms;
}

static void live_event(sv_peer *p, sv_track *t, const sv_message *m)
{
    const int64_t now = sv_loop_now(p->loop);
    const int kind = slow_kind(m->type);

    if (kind < 0) {
        held_drop(t); /* older, and numbers only go up */
    } else if (!slow_may(p, t, kind, now)) {
        sv_message_unref(t->slow[kind].held);
        t->slow[kind].held = sv_message_ref(m);
        return;
    } else {
        held_drop(t);
        slow_sent(t, kind, now);
    }
    send_event(p, m->type, m->envelope);
}

/* Samples are the one thing that may be dropped: without room in the window or the queue they are, and the event that carries
 * their address has gone out all the same. */
static void live_frame(sv_peer *p, const sv_message *m)
{
    if (!p->binary || p->n_window >= p->loop->t.window || is_full(p, m->frame_size))
        return;
    if (!sv_ws_send(p->ws, true, m->frame, m->frame_size))
        return;
    snprintf(p->window[p->n_window].job, sizeof(p->window[0].job), "%s", m->job_id);
    p->window[p->n_window++].seq = m->seq;
}

void sv_feed_message(sv_peer *p, const sv_message *m)
{
    sv_track *t = sv_feed_find(p, m->job_id);

    if (p->state != SV_OPEN || (!t && !p->all))
        return;
    if (m->seq == 0) { /* not in the log: only for those who happen to listen */
        if (!is_full(p, strlen(m->envelope)) && (!t || t->mode == SV_LIVE))
            send_event(p, m->type, m->envelope);
        return;
    }
    if (!t) {
        t = track_add(p, m->job_id, m->seq - 1);
        if (!t)
            return;
        t->mode = SV_LIVE;
    }
    if (m->seq > t->known)
        t->known = m->seq;
    if (t->mode != SV_LIVE || m->seq <= t->last)
        return;
    if (is_full(p, strlen(m->envelope))) {
        held_drop(t);
        t->mode = SV_BEHIND;
        return;
    }
    if (m->seq != t->last + 1) { /* a gap: the log has what is missing, and this one too */
        t->mode = SV_READING;
        read_start(p, t);
        return;
    }
    t->last = m->seq;
    t->quiet_ms = sv_loop_now(p->loop);
    live_event(p, t, m);
    if (m->frame)
        live_frame(p, m);
    if (strcmp(m->type, "end") == 0)
        track_end(p, t);
}

void sv_feed_ack(sv_peer *p, const char *job, int64_t seq)
{
    int kept = 0;

    for (int i = 0; i < p->n_window; i++)
        if (p->window[i].seq > seq || strcmp(p->window[i].job, job) != 0)
            p->window[kept++] = p->window[i];
    p->n_window = kept;
}

void sv_feed_tick(sv_peer *p, int64_t now_ms)
{
    sv_track *next;

    for (sv_track *t = p->tracks; t; t = next) {
        next = t->next;
        for (int kind = 0; kind < 2; kind++) {
            const sv_message *m = t->slow[kind].held;
            if (!m || !slow_may(p, t, kind, now_ms) || (t->slow[!kind].held && t->slow[!kind].held->seq < m->seq))
                continue; /* the older one of the two goes first */
            t->slow[kind].held = NULL;
            slow_sent(t, kind, now_ms);
            send_event(p, m->type, m->envelope);
            sv_message_unref(m);
        }
        if (t->mode == SV_LIVE && !t->over && now_ms - t->quiet_ms >= p->loop->t.check_ms)
            read_start(p, t);
    }
}

void sv_feed_drained(sv_peer *p)
{
    for (sv_track *t = p->tracks; t; t = t->next)
        if (t->mode != SV_LIVE)
            read_start(p, t);
}
