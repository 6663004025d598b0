/* ws_feed.c - what a socket follows: the stored log in pieces, then the bus; thinned, in order, never without end.
 *
 * A track reads the log until it has caught up, then lives on the bus, and goes back to the log when it sees a gap. A client that
 * takes its bytes too slowly gets nothing for a while and then one "reset" with the job as it is now. */
#include <string.h>

#include "live/live_int.h"

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
        sv_track_remove(p, t); /* again: from the new number */
    t = sv_track_add(p, job, after);
    if (!t) {
        sv_ops_error(p, 429, "too_many_subscriptions", "Too many subscriptions",
                     "unsubscribe from a job first, or subscribe to \"*\"", job);
        return;
    }
    t->by_name = t->fresh = true;
    t->mode = SV_READING;
    sv_read_start(p, t);
}

void sv_feed_unfollow(sv_peer *p, const char *job)
{
    sv_track *t;

    if (strcmp(job, "*") != 0) {
        t = sv_feed_find(p, job);
        if (t && p->all)
            t->by_name = false;
        else if (t)
            sv_track_remove(p, t);
        return;
    }
    if (p->all)
        atomic_fetch_sub(&p->loop->followers, 1);
    p->all = false;
    for (sv_track *next = p->tracks; (t = next) != NULL;) {
        next = t->next;
        if (!t->by_name)
            sv_track_remove(p, t);
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
        sv_track_drop_held(t); /* older, and numbers only go up */
    } else if (!slow_may(p, t, kind, now)) {
        sv_message_unref(t->slow[kind].held);
        t->slow[kind].held = sv_message_ref(m);
        return;
    } else {
        sv_track_drop_held(t);
        slow_sent(t, kind, now);
    }
    sv_send_event(p, m->type, m->envelope);
}

void sv_feed_message(sv_peer *p, const sv_message *m)
{
    sv_track *t = sv_feed_find(p, m->job_id);

    if (p->state != SV_OPEN || (!t && !p->all))
        return;
    if (m->seq == 0) { /* not in the log: only for those who happen to listen */
        if (!sv_peer_is_full(p, strlen(m->envelope)) && (!t || t->mode == SV_LIVE))
            sv_send_event(p, m->type, m->envelope);
        return;
    }
    if (!t) {
        t = sv_track_add(p, m->job_id, m->seq - 1);
        if (!t)
            return;
        t->mode = SV_LIVE;
    }
    if (m->seq > t->known)
        t->known = m->seq;
    if (m->seq <= t->last) { /* the log was faster, but only the bus has the picture */
        if (m->frame && t->mode != SV_BEHIND)
            sv_send_frame(p, m);
        return;
    }
    if (t->mode != SV_LIVE) {
        if (m->frame && t->mode == SV_READING)
            sv_track_add_early(p, t, m);
        return;
    }
    if (sv_peer_is_full(p, strlen(m->envelope))) {
        sv_track_drop_held(t);
        t->mode = SV_BEHIND;
        return;
    }
    if (m->seq != t->last + 1) { /* a gap: the log has what is missing, and this one too */
        t->mode = SV_READING;
        if (m->frame)
            sv_track_add_early(p, t, m);
        sv_read_start(p, t);
        return;
    }
    t->last = m->seq;
    t->quiet_ms = sv_loop_now(p->loop);
    live_event(p, t, m);
    if (m->frame)
        sv_send_frame(p, m);
    if (strcmp(m->type, "end") == 0)
        sv_track_end(p, t);
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
            sv_send_event(p, m->type, m->envelope);
            sv_message_unref(m);
        }
        if (t->mode == SV_LIVE && !t->over && now_ms - t->quiet_ms >= p->loop->t.check_ms)
            sv_read_start(p, t);
    }
}

void sv_feed_drained(sv_peer *p)
{
    for (sv_track *t = p->tracks; t; t = t->next)
        if (t->mode != SV_LIVE)
            sv_read_start(p, t);
}
