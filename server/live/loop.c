/* loop.c - the loop thread: signals, the tick, sockets and messages handed over by other threads, and an orderly end. */
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "base/mem.h"
#include "live/live_int.h"
#include "store/store.h"

const sv_tuning sv_tuning_default = {
    .tick_ms = 100,
    .ping_ms = 20000,
    .silent_ms = 60000,
    .close_ms = 2000,
    .slow_ms = 1000,
    .check_ms = 5000,
    .window = 8,
    .rows = 200,
    .sockets_max = 256,
    .tracks_max = 256,
    .message_max = 65536,
    .queue_max = 4u << 20,
    .queue_resume = 1u << 20,
    .inbox_max = 16u << 20,
};

int64_t sv_loop_now(const sv_loop *l)
{
    return (int64_t)uv_now(&l->uv);
}

/* --- the end --- */

static void handle_close(uv_handle_t *h)
{
    if (!uv_is_closing(h))
        uv_close(h, NULL);
}

/* No sockets are left (or nobody ever came): close what keeps the loop alive. */
static void end(sv_loop *l)
{
    sv_adoption *late;

    sv_bus_unlisten(l->o.bus, l->listener); /* not under our lock: a publisher may hold the bus's and wait for ours */
    l->listener = NULL;
    pthread_mutex_lock(&l->lock);
    l->ended = true;
    late = l->adoptions;
    l->adoptions = NULL;
    pthread_mutex_unlock(&l->lock);
    while (late) {
        sv_adoption *a = late;
        late = a->next;
        a->give_back(a->handle);
        qd_free(a->extra);
        qd_free(a);
    }
    handle_close((uv_handle_t *)&l->wake);
    handle_close((uv_handle_t *)&l->tick);
    for (int i = 0; i < 2; i++)
        handle_close((uv_handle_t *)&l->signals[i]);
}

void sv_loop_peer_gone(sv_loop *l)
{
    if (l->peers)
        return;
    if (l->stopping)
        end(l);
    else
        uv_timer_stop(&l->tick);
}

static void stop_begin(sv_loop *l)
{
    sv_peer *next;

    if (l->stopping)
        return;
    l->stopping = true;
    l->stop_ms = sv_loop_now(l);
    if (!l->peers) {
        end(l);
        return;
    }
    for (sv_peer *p = l->peers; p; p = next) {
        next = p->next;
        sv_peer_close(p, 1001, "shutting down");
        sv_peer_flush(p);
    }
}

/* --- callbacks of the loop --- */

static void on_tick(uv_timer_t *tick)
{
    sv_loop *l = tick->data;
    const int64_t now = sv_loop_now(l);
    sv_peer *next;

    for (sv_peer *p = l->peers; p; p = next) {
        next = p->next;
        if (l->stopping && now - l->stop_ms >= l->t.close_ms)
            sv_peer_drop(p);
        else
            sv_peer_tick(p, now);
    }
}

static void deliver(sv_loop *l, sv_note *notes)
{
    sv_peer *next;

    while (notes) {
        sv_note *n = notes;
        notes = n->next;
        for (sv_peer *p = l->peers; p; p = p->next)
            sv_feed_message(p, n->message);
        sv_message_unref(n->message);
        qd_free(n);
    }
    for (sv_peer *p = l->peers; p; p = next) {
        next = p->next;
        if (p->state == SV_OPEN && sv_ws_wants_write(p->ws))
            sv_peer_flush(p);
    }
}

static void on_wake(uv_async_t *wake)
{
    sv_loop *l = wake->data;

    for (;;) {
        pthread_mutex_lock(&l->lock);
        sv_adoption *adoptions = l->adoptions;
        sv_note *notes = l->first;
        const bool stop = l->stop_asked;
        l->adoptions = NULL;
        l->first = NULL;
        l->last = &l->first;
        l->inbox_bytes = 0;
        pthread_mutex_unlock(&l->lock);

        if (adoptions && !uv_is_active((uv_handle_t *)&l->tick) && !uv_is_closing((uv_handle_t *)&l->tick))
            uv_timer_start(&l->tick, on_tick, (uint64_t)l->t.tick_ms, (uint64_t)l->t.tick_ms);
        const bool work = adoptions || notes;
        while (adoptions) {
            sv_adoption *a = adoptions;
            adoptions = a->next;
            sv_peer_adopt(l, a);
        }
        if (!l->peers && !l->stopping)
            uv_timer_stop(&l->tick);
        deliver(l, notes);
        if (stop)
            stop_begin(l);
        if (!work)
            return;
    }
}

static void on_signal(uv_signal_t *handle, int signum)
{
    sv_loop *l = handle->data;
    l->o.on_signal(l->o.ctx, signum);
}

/* --- from other threads --- */

/* On the publisher's thread. With too much waiting the message is let go: its followers will see the gap and read the log. */
static void on_message(void *ctx, const sv_message *m)
{
    sv_loop *l = ctx;
    const size_t bytes = sizeof(sv_note) + sizeof(*m) + m->frame_size + strlen(m->envelope);
    sv_note *n;

    if (atomic_load(&l->followers) == 0)
        return;
    n = qd_calloc(1, sizeof(*n));
    if (!n)
        return;
    n->message = sv_message_ref(m);
    pthread_mutex_lock(&l->lock);
    if (!l->ended && l->inbox_bytes + bytes <= l->t.inbox_max) {
        l->inbox_bytes += bytes;
        *l->last = n;
        l->last = &n->next;
        n = NULL;
        uv_async_send(&l->wake);
    }
    pthread_mutex_unlock(&l->lock);
    if (n) {
        sv_message_unref(n->message);
        qd_free(n);
    }
}

void sv_loop_adopt(sv_loop *l, int fd, const void *extra, size_t extra_size, void (*close)(void *handle), void *handle)
{
    sv_adoption *a = qd_calloc(1, sizeof(*a));
    uint8_t *copy = NULL;
    bool taken = false;

    if (a && extra_size)
        copy = qd_alloc(extra_size);
    if (a && (copy || !extra_size)) {
        if (copy)
            memcpy(copy, extra, extra_size);
        *a = (sv_adoption){ .fd = fd, .extra = copy, .extra_size = extra_size, .give_back = close, .handle = handle };
        pthread_mutex_lock(&l->lock);
        if (!l->ended) {
            a->next = l->adoptions;
            l->adoptions = a;
            taken = true;
            uv_async_send(&l->wake);
        }
        pthread_mutex_unlock(&l->lock);
    }
    if (!taken) {
        close(handle);
        qd_free(copy);
        qd_free(a);
    }
}

void sv_loop_stop(sv_loop *l)
{
    pthread_mutex_lock(&l->lock);
    l->stop_asked = true;
    if (!l->ended)
        uv_async_send(&l->wake);
    pthread_mutex_unlock(&l->lock);
}

int sv_loop_sockets(const sv_loop *l)
{
    return atomic_load(&l->sockets);
}

/* --- making and taking down --- */

qd_status sv_loop_new_tuned(const sv_loop_options *o, const sv_tuning *t, sv_loop **out, qd_err *err)
{
    static const int signums[] = { SIGTERM, SIGINT };
    sv_loop *l = qd_calloc(1, sizeof(*l));
    int rc;

    if (!l)
        return qd_fail(err, QD_E_NOMEM, "out of memory while making the event loop");
    l->o = *o;
    l->t = *t;
    l->last = &l->first;
    sv_id_new(l->generation, "gen_");
    rc = uv_loop_init(&l->uv);
    if (!rc) {
        rc = uv_async_init(&l->uv, &l->wake, on_wake);
        if (rc)
            uv_loop_close(&l->uv);
    }
    if (rc) {
        qd_free(l);
        return qd_fail(err, QD_E_IO, "the event loop cannot be made: %s", uv_strerror(rc));
    }
    pthread_mutex_init(&l->lock, NULL);
    uv_timer_init(&l->uv, &l->tick);
    l->wake.data = l->tick.data = l;
    for (int i = 0; i < 2; i++) {
        uv_signal_init(&l->uv, &l->signals[i]);
        l->signals[i].data = l;
        if (!rc && o->on_signal)
            rc = uv_signal_start(&l->signals[i], on_signal, signums[i]);
    }
    l->listener = sv_bus_listen(o->bus, NULL, on_message, l);
    if (rc || !l->listener) {
        sv_loop_free(l);
        return rc ? qd_fail(err, QD_E_IO, "signals cannot be watched: %s", uv_strerror(rc))
                  : qd_fail(err, QD_E_NOMEM, "out of memory while making the event loop");
    }
    *out = l;
    return QD_OK;
}

qd_status sv_loop_new(const sv_loop_options *o, sv_loop **out, qd_err *err)
{
    return sv_loop_new_tuned(o, &sv_tuning_default, out, err);
}

void sv_loop_run(sv_loop *l)
{
    uv_run(&l->uv, UV_RUN_DEFAULT);
}

void sv_loop_free(sv_loop *l)
{
    if (!l)
        return;
    if (!l->ended) { /* never run, or left in the middle */
        l->stopping = true;
        while (l->peers)
            sv_peer_drop(l->peers);
        if (!l->ended)
            end(l);
        uv_run(&l->uv, UV_RUN_DEFAULT);
    }
    uv_loop_close(&l->uv);
    while (l->first) {
        sv_note *n = l->first;
        l->first = n->next;
        sv_message_unref(n->message);
        qd_free(n);
    }
    pthread_mutex_destroy(&l->lock);
    qd_free(l);
}
