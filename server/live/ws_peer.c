/* ws_peer.c - a socket on the loop: reading, writing, watching, pinging, and the several ways to part. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "base/mem.h"
#include "live/live_int.h"
#include "log.h"

#define TURN_BYTES 65536 /* read from one socket before the others get their turn */

/* --- bytes --- */

static ssize_t socket_read(void *ctx, uint8_t *data, size_t n)
{
    sv_peer *p = ctx;

    if (p->extra_at < p->extra_size) {
        const size_t left = p->extra_size - p->extra_at;
        n = n < left ? n : left;
        memcpy(data, p->extra + p->extra_at, n);
        p->extra_at += n;
        return (ssize_t)n;
    }
    if (p->turn_bytes >= TURN_BYTES)
        return SV_WS_AGAIN; /* poll is level-triggered: it will call again */
    const ssize_t got = recv(p->fd, data, n, MSG_DONTWAIT);
    if (got > 0) {
        p->turn_bytes += (size_t)got;
        p->heard_ms = sv_loop_now(p->loop);
        return got;
    }
    return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) ? SV_WS_AGAIN : SV_WS_BROKEN;
}

static ssize_t socket_write(void *ctx, const uint8_t *data, size_t n)
{
    sv_peer *p = ctx;
    const ssize_t sent = send(p->fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent >= 0)
        return sent;
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? SV_WS_AGAIN : SV_WS_BROKEN;
}

static void on_message(void *ctx, bool binary, const uint8_t *data, size_t n)
{
    sv_peer *p = ctx;

    if (p->state == SV_OPEN)
        sv_ops_message(p, binary, data, n);
}

/* --- life --- */

bool sv_peer_ref(sv_peer *p)
{
    if (p->refs > p->loop->t.tracks_max + 16)
        return false;
    p->refs++;
    return true;
}

void sv_peer_unref(sv_peer *p)
{
    if (--p->refs)
        return;
    sv_ws_free(p->ws);
    qd_free(p->extra);
    qd_free(p);
}

static void on_poll_closed(uv_handle_t *handle)
{
    sv_peer *p = handle->data;

    p->give_back(p->handle);
    sv_peer_unref(p);
}

void sv_peer_drop(sv_peer *p)
{
    sv_loop *l = p->loop;

    if (p->state == SV_GONE)
        return;
    p->state = SV_GONE;
    sv_feed_clear(p);
    if (p->prev)
        p->prev->next = p->next;
    else
        l->peers = p->next;
    if (p->next)
        p->next->prev = p->prev;
    atomic_fetch_sub(&l->sockets, 1);
    uv_close((uv_handle_t *)&p->poll, on_poll_closed);
    sv_loop_peer_gone(l);
}

void sv_peer_close(sv_peer *p, int code, const char *reason)
{
    if (p->state != SV_OPEN)
        return;
    sv_ws_close(p->ws, code, reason);
    p->state = SV_CLOSING;
    p->deadline_ms = sv_loop_now(p->loop) + p->loop->t.close_ms;
    sv_feed_clear(p);
}

/* All frames are exchanged. Closing now could throw away the last ones on their way, if bytes we never read are waiting: say that
 * we are done and read on until the other side is done too. */
static void linger(sv_peer *p)
{
    shutdown(p->fd, SHUT_WR);
    sv_feed_clear(p);
    p->state = SV_LINGERING;
    p->deadline_ms = sv_loop_now(p->loop) + p->loop->t.close_ms;
}

static bool linger_read(sv_peer *p)
{
    uint8_t waste[4096];

    for (int i = 0; i < TURN_BYTES / (int)sizeof(waste); i++) {
        const ssize_t got = recv(p->fd, waste, sizeof(waste), MSG_DONTWAIT);
        if (got > 0)
            continue;
        return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
    }
    return true;
}

static void on_poll(uv_poll_t *poll, int status, int events);

static void watch(sv_peer *p)
{
    int want = 0;

    if (p->state == SV_LINGERING) {
        want = UV_READABLE;
    } else {
        /* Who sends and never reads is not read either, so its pings cannot pile up pongs here. */
        if (sv_ws_wants_read(p->ws) && sv_ws_queued(p->ws) <= 2 * p->loop->t.queue_max)
            want |= UV_READABLE;
        if (sv_ws_wants_write(p->ws))
            want |= UV_WRITABLE;
    }
    if (want == p->watched)
        return;
    p->watched = want;
    if (want ? uv_poll_start(&p->poll, want, on_poll) : uv_poll_stop(&p->poll))
        sv_peer_drop(p);
}

void sv_peer_flush(sv_peer *p)
{
    if (p->state == SV_GONE)
        return;
    if (p->state != SV_LINGERING) {
        if (!sv_ws_write(p->ws)) {
            sv_peer_drop(p);
            return;
        }
        if (!sv_ws_wants_read(p->ws) && !sv_ws_wants_write(p->ws))
            linger(p);
        else if (p->state == SV_OPEN)
            sv_feed_drained(p);
    }
    watch(p);
}

static void peer_read(sv_peer *p)
{
    p->turn_bytes = 0;
    if (p->state == SV_LINGERING ? !linger_read(p) : !sv_ws_read(p->ws))
        sv_peer_drop(p);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    sv_peer *p = poll->data;

    if (status < 0) {
        sv_peer_drop(p);
        return;
    }
    if (events & UV_READABLE)
        peer_read(p);
    sv_peer_flush(p);
}

void sv_peer_tick(sv_peer *p, int64_t now_ms)
{
    const sv_tuning *t = &p->loop->t;

    if (p->state != SV_OPEN) {
        if (now_ms >= p->deadline_ms)
            sv_peer_drop(p);
        return;
    }
    if (now_ms - p->heard_ms >= t->silent_ms) {
        sv_peer_drop(p);
        return;
    }
    if (now_ms - p->pinged_ms >= t->ping_ms) {
        p->pinged_ms = now_ms;
        sv_ws_ping(p->ws);
    }
    sv_feed_tick(p, now_ms);
    sv_peer_flush(p);
}

void sv_peer_adopt(sv_loop *l, sv_adoption *a)
{
    sv_peer *p = l->ended ? NULL : qd_calloc(1, sizeof(*p));
    qd_err err = { 0 };

    if (!p) {
        a->give_back(a->handle);
        qd_free(a->extra);
        qd_free(a);
        return;
    }
    *p = (sv_peer){ .loop = l,
                    .fd = a->fd,
                    .give_back = a->give_back,
                    .handle = a->handle,
                    .extra = a->extra,
                    .extra_size = a->extra_size,
                    .refs = 1 };
    p->heard_ms = p->pinged_ms = sv_loop_now(l);
    p->poll.data = p;
    qd_free(a);
    fcntl(p->fd, F_SETFL, fcntl(p->fd, F_GETFL) | O_NONBLOCK);

    const sv_ws_io io = { .read = socket_read, .write = socket_write, .message = on_message, .ctx = p };
    const qd_status st = sv_ws_new(&io, l->t.message_max, &p->ws, &err);
    const int rc = st ? 0 : uv_poll_init_socket(&l->uv, &p->poll, p->fd);
    if (st || rc) {
        sv_log(SV_WARN, "websocket_not_opened", "error", st ? err.text : uv_strerror(rc), NULL);
        p->give_back(p->handle);
        sv_peer_unref(p);
        return;
    }
    p->next = l->peers;
    if (p->next)
        p->next->prev = p;
    l->peers = p;
    if (atomic_fetch_add(&l->sockets, 1) >= l->t.sockets_max)
        sv_peer_close(p, 1013, "too many sockets, try later");
    else if (l->stopping)
        sv_peer_close(p, 1001, "shutting down");
    if (p->extra_size)
        peer_read(p);
    sv_peer_flush(p);
}
