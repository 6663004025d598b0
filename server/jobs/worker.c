/* worker.c - the pool: threads that claim and run, and one timer thread that keeps leases, limits and silence in check.
 *
 * What another thread may touch of a running job - its stop flag and its reporter - hangs in a slot. The timer thread pins the slot
 * while it talks to the store, so that a worker does not tear it down meanwhile; no lock is held across a store call. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"
#include "log.h"

enum { POLL_MS = 1000, TICK_MS = 200, RECLAIM_CHUNK = 100 };

typedef struct slot {
    bool running;
    int pins;
    char job_id[40];
    int64_t fence, deadline_ms, beat_ms; /* beat_ms: when the next heartbeat is due */
    sv_stop stop;
    sv_reporter *reporter;
} slot;

typedef struct worker {
    sv_workers *pool;
    pthread_t thread;
    char name[64];
    slot slot;
} worker;

struct sv_workers {
    const sv_settings *settings;
    sv_store *store;
    sv_bus *bus;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* a job may be waiting, or stop */
    pthread_cond_t unpinned;
    pthread_cond_t tick; /* stop, for the timer thread */
    uint64_t wakes;      /* counts, so that no wake between a claim and a wait is lost */
    bool stopping, timer_on, timer_stop;
    pthread_t timer;
    int n, started;
    atomic_int busy;
    worker workers[];
};

/* cond waits count on the monotonic clock: a clock set by hand must not stall the queue. */
static struct timespec in_ms(int ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += (ms % 1000) * 1000000L;
    if (t.tv_nsec >= 1000000000L) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000L;
    }
    return t;
}

/* --- one job --- */

static void slot_open(worker *w, const sv_job_row *job, sv_reporter *reporter)
{
    sv_workers *p = w->pool;
    const int64_t now = sv_now_ms();
    pthread_mutex_lock(&p->lock);
    slot *s = &w->slot;
    snprintf(s->job_id, sizeof s->job_id, "%s", job->id);
    s->fence = job->fence;
    s->deadline_ms = job->time_limit_s > 0 ? now + job->time_limit_s * 1000 : INT64_MAX;
    s->beat_ms = now + p->settings->heartbeat_ms;
    s->reporter = reporter;
    s->running = true;
    if (p->stopping)
        sv_stop_raise(&s->stop, SV_STOP_SHUTDOWN);
    pthread_mutex_unlock(&p->lock);
}

static void slot_close(worker *w)
{
    sv_workers *p = w->pool;
    pthread_mutex_lock(&p->lock);
    w->slot.running = false;
    while (w->slot.pins > 0)
        pthread_cond_wait(&p->unpinned, &p->lock);
    w->slot.reporter = NULL;
    pthread_mutex_unlock(&p->lock);
}

static void run_job(worker *w, const sv_job_row *job)
{
    sv_workers *p = w->pool;
    sv_reporter *reporter = NULL;
    qd_err err = { 0 };

    sv_log(SV_INFO, "attempt_started", "job", job->id, "kind", job->kind, "method", job->method, "worker", w->name,
           NULL);
    sv_stop_init(&w->slot.stop);
    if (sv_reporter_new(p->store, p->bus, job, &w->slot.stop, &reporter, &err)) {
        sv_log(SV_ERROR, "attempt_not_started", "job", job->id, "error", err.text, NULL);
        sv_jobs_requeue(p->store, job->id, job->fence, "{\"code\":\"internal\",\"retryable\":true}", sv_now_ms(), NULL);
        return;
    }
    atomic_fetch_add(&p->busy, 1);
    slot_open(w, job, reporter);
    sv_attempt_run(&(sv_attempt){
        .settings = p->settings, .store = p->store, .job = job, .stop = &w->slot.stop, .reporter = reporter });
    slot_close(w);
    sv_reporter_free(reporter);
    atomic_fetch_sub(&p->busy, 1);
}

static void *work(void *arg)
{
    worker *w = arg;
    sv_workers *p = w->pool;

    pthread_mutex_lock(&p->lock);
    while (!p->stopping) {
        const uint64_t wakes = p->wakes;
        pthread_mutex_unlock(&p->lock);

        sv_job_row job = { 0 };
        qd_err err = { 0 };
        const qd_status st = sv_jobs_claim(p->store, w->name, sv_now_ms(), p->settings->lease_ms, &job, &err);
        if (!st)
            run_job(w, &job);
        else if (st != QD_E_NOT_FOUND)
            sv_log(SV_ERROR, "claim_failed", "worker", w->name, "error", err.text, NULL);
        sv_job_row_clear(&job);

        pthread_mutex_lock(&p->lock);
        if (st && !p->stopping && wakes == p->wakes) {
            const struct timespec until = in_ms(POLL_MS);
            pthread_cond_timedwait(&p->wake, &p->lock, &until);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* --- the timer thread --- */

/* Slot pinned, no lock held: everything that is due for one running job. */
static void look_after(sv_workers *p, worker *w, bool beat)
{
    slot *s = &w->slot;
    const int64_t now = sv_now_ms();
    qd_err err = { 0 };
    bool cancel = false;

    if (now > s->deadline_ms)
        sv_stop_raise(&s->stop, SV_STOP_TIME);
    if (beat) {
        const qd_status st =
            sv_jobs_heartbeat(p->store, s->job_id, s->fence, now + p->settings->lease_ms, &cancel, &err);
        if (st == QD_E_CONFLICT || st == QD_E_NOT_FOUND)
            sv_stop_raise(&s->stop, SV_STOP_LOST);
        else if (st)
            sv_log(SV_ERROR, "heartbeat_failed", "job", s->job_id, "error", err.text, NULL);
        else if (cancel)
            sv_stop_raise(&s->stop, SV_STOP_CANCEL);
    }
    sv_reporter_tick(s->reporter, now);
}

static void *keep_time(void *arg)
{
    sv_workers *p = arg;

    pthread_mutex_lock(&p->lock);
    while (!p->timer_stop) {
        for (int k = 0; k < p->n; k++) {
            worker *w = &p->workers[k];
            if (!w->slot.running)
                continue;
            const int64_t now = sv_now_ms();
            const bool beat = now >= w->slot.beat_ms;
            if (beat)
                w->slot.beat_ms = now + p->settings->heartbeat_ms;
            w->slot.pins++;
            pthread_mutex_unlock(&p->lock);
            look_after(p, w, beat);
            pthread_mutex_lock(&p->lock);
            if (--w->slot.pins == 0)
                pthread_cond_broadcast(&p->unpinned);
        }
        const struct timespec until = in_ms(TICK_MS);
        if (!p->timer_stop)
            pthread_cond_timedwait(&p->tick, &p->lock, &until);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* --- the pool --- */

/* Events that a claim stored for other jobs. */
static void on_settled(void *ctx, const sv_event_row *e)
{
    sv_workers *p = ctx;
    char *text = sv_envelope(e->job_id, e->seq, e->ts_ms, e->attempt, e->type, e->data);
    if (text)
        sv_bus_publish(p->bus, e->job_id, e->seq, e->type, text, NULL, 0);
    qd_free(text);
}

static void cond_init(pthread_cond_t *c)
{
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(c, &a);
    pthread_condattr_destroy(&a);
}

qd_status sv_workers_start(const sv_settings *settings, sv_store *store, sv_bus *bus, sv_workers **out, qd_err *err)
{
    const int n = settings->workers;
    sv_workers *p = qd_calloc(1, sizeof *p + (size_t)n * sizeof p->workers[0]);
    if (!p)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d workers", n);
    p->settings = settings;
    p->store = store;
    p->bus = bus;
    p->n = n;
    pthread_mutex_init(&p->lock, NULL);
    cond_init(&p->wake);
    cond_init(&p->unpinned);
    cond_init(&p->tick);
    atomic_init(&p->busy, 0);
    sv_store_watch(store, on_settled, p);

    int rc = 0;
    for (int k = 0; k < n; k++) {
        p->workers[k].pool = p;
        snprintf(p->workers[k].name, sizeof p->workers[k].name, "embedded-%d-%d", (int)getpid(), k);
    }
    for (int k = 0; k < n && !rc; k++) {
        rc = pthread_create(&p->workers[k].thread, NULL, work, &p->workers[k]);
        p->started += !rc;
    }
    if (n > 0 && !rc) {
        rc = pthread_create(&p->timer, NULL, keep_time, p);
        p->timer_on = !rc;
    }
    if (rc) {
        sv_workers_stop(p);
        return qd_fail(err, QD_E_IO, "worker threads cannot be started: %s", strerror(rc));
    }
    *out = p;
    return QD_OK;
}

void sv_workers_wake(sv_workers *w)
{
    pthread_mutex_lock(&w->lock);
    w->wakes++;
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

void sv_workers_cancel(sv_workers *w, const char *job_id)
{
    pthread_mutex_lock(&w->lock);
    for (int k = 0; k < w->n; k++)
        if (w->workers[k].slot.running && strcmp(w->workers[k].slot.job_id, job_id) == 0)
            sv_stop_raise(&w->workers[k].slot.stop, SV_STOP_CANCEL);
    pthread_mutex_unlock(&w->lock);
}

void sv_workers_drain(sv_workers *w)
{
    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    for (int k = 0; k < w->n; k++)
        if (w->workers[k].slot.running)
            sv_stop_raise(&w->workers[k].slot.stop, SV_STOP_SHUTDOWN);
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

void sv_workers_stop(sv_workers *w)
{
    if (!w)
        return;
    sv_workers_drain(w);
    for (int k = 0; k < w->started; k++)
        pthread_join(w->workers[k].thread, NULL);
    /* The timer last: leases are kept until the last job is put back. */
    pthread_mutex_lock(&w->lock);
    w->timer_stop = true;
    pthread_cond_broadcast(&w->tick);
    pthread_mutex_unlock(&w->lock);
    if (w->timer_on)
        pthread_join(w->timer, NULL);
    sv_store_watch(w->store, NULL, NULL);
    pthread_cond_destroy(&w->wake);
    pthread_cond_destroy(&w->unpinned);
    pthread_cond_destroy(&w->tick);
    pthread_mutex_destroy(&w->lock);
    qd_free(w);
}

int sv_workers_busy(const sv_workers *w)
{
    return w ? atomic_load(&((sv_workers *)w)->busy) : 0;
}

int sv_workers_count(const sv_workers *w)
{
    return w ? w->n : 0;
}

qd_status sv_workers_reclaim(sv_store *store, int *reclaimed, qd_err *err)
{
    const sv_list_query q = { .status = "running", .limit = RECLAIM_CHUNK, .ascending = true };
    sv_job_row *rows = NULL;
    char *after = NULL;
    int n = 0, total = 0;
    bool more = true, cancel;
    qd_status st = QD_OK;

    while (more && !st) {
        sv_list_query page = q;
        page.after = after;
        st = sv_jobs_list(store, &page, &rows, &n, &more, err);
        if (st)
            break;
        for (int k = 0; k < n && !st; k++) {
            st = sv_jobs_heartbeat(store, rows[k].id, rows[k].fence, 1, &cancel, err);
            total += !st;
        }
        qd_free(after);
        after = more && n > 0 ? qd_strdup(rows[n - 1].id) : NULL;
        if (more && !after && !st)
            st = qd_fail(err, QD_E_NOMEM, "no memory for a cursor");
        sv_job_rows_free(rows, n);
    }
    qd_free(after);
    if (reclaimed)
        *reclaimed = total;
    return st;
}
