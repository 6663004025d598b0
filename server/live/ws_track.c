/* ws_track.c - the jobs a socket follows, one track each, and what is sent for them. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "live/live_int.h"

sv_track *sv_feed_find(sv_peer *p, const char *job)
{
    for (sv_track *t = p->tracks; t; t = t->next)
        if (strcmp(t->job, job) == 0)
            return t;
    return NULL;
}

sv_track *sv_track_by_id(sv_peer *p, uint64_t id)
{
    for (sv_track *t = p->tracks; t; t = t->next)
        if (t->id == id)
            return t;
    return NULL;
}

void sv_track_drop_held(sv_track *t)
{
    for (int i = 0; i < 2; i++) {
        sv_message_unref(t->slow[i].held);
        t->slow[i].held = NULL;
    }
}

void sv_track_drop_early(sv_track *t)
{
    while (t->n_early)
        sv_message_unref(t->early[--t->n_early]);
}

void sv_track_remove(sv_peer *p, sv_track *gone)
{
    for (sv_track **at = &p->tracks; *at; at = &(*at)->next) {
        if (*at == gone) {
            *at = gone->next;
            break;
        }
    }
    p->n_tracks--;
    atomic_fetch_sub(&p->loop->followers, 1);
    sv_track_drop_held(gone);
    sv_track_drop_early(gone);
    qd_free(gone);
}

/* Its end is sent. Under "*" copies of its events may still be on their way from the bus: they are recognised by the number. */
void sv_track_end(sv_peer *p, sv_track *t)
{
    if (!p->all) {
        sv_track_remove(p, t);
        return;
    }
    sv_track_drop_held(t);
    sv_track_drop_early(t);
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
        sv_track_remove(p, oldest);
    return oldest != NULL;
}

sv_track *sv_track_add(sv_peer *p, const char *job, int64_t last)
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
        sv_track_remove(p, p->tracks);
    if (p->all)
        atomic_fetch_sub(&p->loop->followers, 1);
    p->all = false;
    p->n_window = 0;
}

/* --- sending --- */

/* {"op":OP, and the envelope's own fields. */
void sv_send_envelope(sv_peer *p, const char *op, const char *envelope)
{
    qd_buf b;

    qd_buf_init(&b, 0);
    qd_buf_addf(&b, "{\"op\":\"%s\",", op);
    qd_buf_adds(&b, envelope[0] == '{' ? envelope + 1 : "}");
    if (!b.failed)
        sv_ws_send(p->ws, false, b.data, b.size);
    qd_buf_clear(&b);
}

void sv_send_event(sv_peer *p, const char *type, const char *envelope)
{
    sv_send_envelope(p, strcmp(type, "end") == 0 ? "end" : "event", envelope);
}

/* An end that the log has no row for below this number: the job is over and the client knows all of it. */
void sv_send_end(sv_peer *p, const sv_track *t)
{
    char *text = qd_asprintf("{\"op\":\"end\",\"job\":\"%s\",\"seq\":%lld}", t->job, (long long)t->last);

    if (text)
        sv_ws_send(p->ws, false, text, strlen(text));
    qd_free(text);
}

bool sv_peer_is_full(const sv_peer *p, size_t more)
{
    return sv_ws_queued(p->ws) + more > p->loop->t.queue_max;
}

/* Samples are the one thing that may be dropped: without room in the window or the queue they are, and the event that carries
 * their address has gone out all the same. */
void sv_send_frame(sv_peer *p, const sv_message *m)
{
    if (!p->binary || p->n_window >= p->loop->t.window || sv_peer_is_full(p, m->frame_size))
        return;
    if (!sv_ws_send(p->ws, true, m->frame, m->frame_size))
        return;
    snprintf(p->window[p->n_window].job, sizeof(p->window[0].job), "%s", m->job_id);
    p->window[p->n_window++].seq = m->seq;
}

/* A picture whose event is still to be read waits for it, so that a gap in the bus costs no picture. */
void sv_track_add_early(sv_peer *p, sv_track *t, const sv_message *m)
{
    if (p->binary && t->n_early < SV_EARLY_MAX)
        t->early[t->n_early++] = sv_message_ref(m);
}

/* Events up to t->last are sent: so may their pictures be. */
void sv_track_send_early(sv_peer *p, sv_track *t)
{
    int kept = 0;

    for (int i = 0; i < t->n_early; i++) {
        const sv_message *m = t->early[i];
        if (m->seq > t->last) {
            t->early[kept++] = m;
            continue;
        }
        sv_send_frame(p, m);
        sv_message_unref(m);
    }
    t->n_early = kept;
}
