/* park.c - connections that wait without holding a thread, the ticker that wakes them, and peers that dribble. */
#include "http/http_int.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

int64_t sv_mono_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void sv_park_open(sv_park *p, sv_http *h, void *connection)
{
    *p = (sv_park){ .http = h, .connection = connection, .due_ms = INT64_MAX, .listed = true };
    pthread_mutex_lock(&h->park_lock);
    p->next = h->parks;
    if (p->next)
        p->next->prev = p;
    h->parks = p;
    pthread_mutex_unlock(&h->park_lock);
}

void sv_park_close(sv_park *p)
{
    sv_http *h = p->http;
    if (!p->listed)
        return;
    pthread_mutex_lock(&h->park_lock);
    if (p->prev)
        p->prev->next = p->next;
    else
        h->parks = p->next;
    if (p->next)
        p->next->prev = p->prev;
    p->listed = false;
    pthread_mutex_unlock(&h->park_lock);
}

static void wake_locked(sv_park *p)
{
    p->woken = true;
    if (p->suspended) {
        p->suspended = false;
        sv_mhd_resume(p->connection);
    }
}

bool sv_park_wait(sv_park *p, int64_t due_ms)
{
    sv_http *h = p->http;
    pthread_mutex_lock(&h->park_lock);
    const bool wait = !p->woken;
    p->woken = false;
    if (wait) {
        p->due_ms = due_ms;
        p->suspended = true;
        sv_mhd_suspend(p->connection);
        pthread_cond_signal(&h->park_cond);
    }
    pthread_mutex_unlock(&h->park_lock);
    return wait;
}

void sv_park_wake(sv_park *p)
{
    pthread_mutex_lock(&p->http->park_lock);
    wake_locked(p);
    pthread_mutex_unlock(&p->http->park_lock);
}

void sv_park_wake_at(sv_park *p, int64_t when_ms)
{
    pthread_mutex_lock(&p->http->park_lock);
    if (when_ms < p->due_ms) {
        p->due_ms = when_ms;
        pthread_cond_signal(&p->http->park_cond);
    }
    if (!p->suspended)
        p->woken = true; /* it is just deciding whether to wait */
    pthread_mutex_unlock(&p->http->park_lock);
}

void sv_parks_wake_all(sv_http *h)
{
    pthread_mutex_lock(&h->park_lock);
    for (sv_park *p = h->parks; p; p = p->next)
        wake_locked(p);
    pthread_mutex_unlock(&h->park_lock);
}

static void *ticker(void *arg)
{
    sv_http *h = arg;
    pthread_mutex_lock(&h->park_lock);
    while (h->park_running) {
        const int64_t now = sv_mono_ms();
        int64_t next = now + 1000; /* peers are looked at once a second */
        for (sv_park *p = h->parks; p; p = p->next) {
            if (!p->suspended)
                continue;
            if (p->due_ms <= now)
                wake_locked(p);
            else if (p->due_ms < next)
                next = p->due_ms;
        }
        for (sv_peer *p = h->peers; p; p = p->next)
            if (p->due_ms && p->due_ms <= now) {
                shutdown(p->fd, SHUT_RDWR); /* its pool thread sees the end and cleans up */
                p->due_ms = 0;
            }
        struct timespec until = { .tv_sec = next / 1000, .tv_nsec = next % 1000 * 1000000 };
        pthread_cond_timedwait(&h->park_cond, &h->park_lock, &until);
    }
    pthread_mutex_unlock(&h->park_lock);
    return NULL;
}

qd_status sv_parks_start(sv_http *h, qd_err *err)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&h->park_lock, NULL);
    pthread_cond_init(&h->park_cond, &attr);
    pthread_condattr_destroy(&attr);
    h->park_running = true;
    const int rc = pthread_create(&h->park_thread, NULL, ticker, h);
    if (rc) {
        h->park_running = false;
        pthread_cond_destroy(&h->park_cond);
        pthread_mutex_destroy(&h->park_lock);
        return qd_fail(err, QD_E_INTERNAL, "cannot start the ticker thread: %s", strerror(rc));
    }
    return QD_OK;
}

void sv_parks_stop(sv_http *h)
{
    if (!h->park_running)
        return;
    pthread_mutex_lock(&h->park_lock);
    h->park_running = false;
    pthread_cond_signal(&h->park_cond);
    pthread_mutex_unlock(&h->park_lock);
    pthread_join(h->park_thread, NULL);
    pthread_cond_destroy(&h->park_cond);
    pthread_mutex_destroy(&h->park_lock);
}

void sv_peer_add(sv_http *h, sv_peer *p)
{
    pthread_mutex_lock(&h->park_lock);
    p->prev = NULL;
    p->next = h->peers;
    if (p->next)
        p->next->prev = p;
    h->peers = p;
    pthread_mutex_unlock(&h->park_lock);
}

void sv_peer_remove(sv_http *h, sv_peer *p)
{
    pthread_mutex_lock(&h->park_lock);
    if (p->prev)
        p->prev->next = p->next;
    else
        h->peers = p->next;
    if (p->next)
        p->next->prev = p->prev;
    pthread_mutex_unlock(&h->park_lock);
}

void sv_peer_due(sv_http *h, sv_peer *p, int64_t due_ms)
{
    pthread_mutex_lock(&h->park_lock);
    p->due_ms = due_ms;
    pthread_mutex_unlock(&h->park_lock);
}
