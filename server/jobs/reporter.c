/* reporter.c - everything an attempt says: stored first, then published, in one order.
 *
 * One mutex covers "add to the log, then to the bus", so that listeners see numbers in order although the job's own thread and
 * the timer thread both speak. Progress is thinned here: at most two a second, but always the first and the last of a phase. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"
#include "log.h"

enum { PROGRESS_MS = 500, QUIET_MS = 1000, PUBLISH_CHUNK = 100 };

struct sv_reporter {
    sv_store *store;
    sv_bus *bus;
    sv_stop *stop;
    char job_id[40];
    int64_t fence;
    int attempt;
    int64_t samples; /* the number the next sample gets */

    pthread_mutex_t lock; /* everything below, and the order of the log */
    bool lost;            /* the lease is gone: say nothing more */
    int64_t last_seq;     /* what listeners have been told up to */
    char phase[64], item[160];
    int64_t done, total, first_done;
    bool waiting;                  /* a progress call not sent yet */
    bool ended;                    /* the last of this phase was sent */
    int64_t phase_ms;              /* when the phase began */
    int64_t progress_ms, spoke_ms; /* when progress, anything was last sent */
};

void sv_stop_init(sv_stop *s)
{
    atomic_init(&s->flag, false);
    atomic_init(&s->why, SV_STOP_NONE);
}

void sv_stop_raise(sv_stop *s, sv_stop_why why)
{
    int none = SV_STOP_NONE;
    atomic_compare_exchange_strong(&s->why, &none, (int)why);
    atomic_store(&s->flag, true);
}

/* Returns the last number published. */
static int64_t publish_since(sv_store *store, sv_bus *bus, const char *job_id, int64_t after)
{
    for (;;) {
        sv_event_row *rows = NULL;
        int n = 0;
        if (sv_events_read(store, job_id, after, NULL, PUBLISH_CHUNK, &rows, &n, NULL))
            return after;
        for (int k = 0; k < n; k++) {
            const sv_event_row *e = &rows[k];
            char *text = sv_envelope(e->job_id, e->seq, e->ts_ms, e->attempt, e->type, e->data);
            if (text)
                sv_bus_publish(bus, e->job_id, e->seq, e->type, text, NULL, 0);
            qd_free(text);
            after = e->seq;
        }
        sv_event_rows_free(rows, n);
        if (n < PUBLISH_CHUNK)
            return after;
    }
}

void sv_publish_since(sv_store *store, sv_bus *bus, const char *job_id, int64_t after)
{
    publish_since(store, bus, job_id, after);
}

qd_status sv_reporter_new(sv_store *store, sv_bus *bus, const sv_job_row *job, sv_stop *stop, sv_reporter **out,
                          qd_err *err)
{
    sv_reporter *r = qd_calloc(1, sizeof *r);
    if (!r)
        return qd_fail(err, QD_E_NOMEM, "no memory for the reporter of %s", job->id);
    r->store = store;
    r->bus = bus;
    r->stop = stop;
    snprintf(r->job_id, sizeof r->job_id, "%s", job->id);
    r->fence = job->fence;
    r->attempt = job->attempt;
    r->last_seq = job->last_seq - 1; /* the claim's own "state" is still to be told */
    r->spoke_ms = sv_now_ms();
    pthread_mutex_init(&r->lock, NULL);
    *out = r;
    return QD_OK;
}

void sv_reporter_free(sv_reporter *r)
{
    if (!r)
        return;
    pthread_mutex_destroy(&r->lock);
    qd_free(r);
}

/* A write was refused: with CONFLICT somebody else holds the job now. Everything else is the store's trouble; the log line says
 * so, and the job goes on, because a lost progress line is no reason to lose hours of work. */
static void refused(sv_reporter *r, qd_status st, const qd_err *err)
{
    if (st == QD_E_CONFLICT || st == QD_E_NOT_FOUND) {
        r->lost = true;
        sv_stop_raise(r->stop, SV_STOP_LOST);
    } else {
        sv_log(SV_ERROR, "event_not_stored", "job", r->job_id, "error", err->text, NULL);
    }
}

/* Lock held. */
static void send(sv_reporter *r, const char *type, const json_t *data)
{
    qd_err err = { 0 };
    int64_t seq = 0;
    const int64_t now = sv_now_ms();
    char *text = r->lost ? NULL : sv_json_text(data);
    if (!text)
        return;
    const qd_status st = sv_events_add(r->store, r->job_id, r->fence, r->attempt, type, text, now, &seq, &err);
    if (st) {
        refused(r, st, &err);
    } else {
        char *envelope = sv_envelope(r->job_id, seq, now, r->attempt, type, text);
        if (envelope)
            sv_bus_publish(r->bus, r->job_id, seq, type, envelope, NULL, 0);
        qd_free(envelope);
        r->spoke_ms = now;
        r->last_seq = seq;
    }
    qd_free(text);
}

void sv_reporter_event(sv_reporter *r, const char *type, json_t *data)
{
    pthread_mutex_lock(&r->lock);
    send(r, type, data);
    pthread_mutex_unlock(&r->lock);
    json_decref(data);
}

/* Lock held: the progress as it stands, into the row of the job and into the log. */
static void send_progress(sv_reporter *r)
{
    const int64_t now = sv_now_ms();
    qd_err err = { 0 };
    if (r->lost)
        return;
    const qd_status st = sv_jobs_progress(r->store, r->job_id, r->fence, r->phase, r->item, r->done, r->total, &err);
    if (st)
        refused(r, st, &err);

    json_t *data =
        json_pack("{s:s, s:I, s:I}", "phase", r->phase, "done", (json_int_t)r->done, "total", (json_int_t)r->total);
    if (r->item[0])
        json_object_set_new(data, "layer", json_string(r->item));
    const int64_t made = r->done - r->first_done;
    if (made > 0 && r->total > r->done) {
        const double left_s = (double)(now - r->phase_ms) / 1000.0 / (double)made * (double)(r->total - r->done);
        json_object_set_new(data, "eta_s", json_real(round(left_s * 10.0) / 10.0));
    } else if (r->total > 0 && r->done >= r->total) {
        json_object_set_new(data, "eta_s", json_integer(0));
    }
    send(r, "progress", data);
    json_decref(data);
    r->waiting = false;
    r->progress_ms = now;
}

static void on_progress(void *ctx, const char *phase, const char *item, int64_t done, int64_t total)
{
    sv_reporter *r = ctx;
    const int64_t now = sv_now_ms();
    pthread_mutex_lock(&r->lock);
    const bool first = strncmp(r->phase, phase, sizeof r->phase - 1) != 0 || (r->ended && done < r->done);
    if (first) {
        if (r->waiting)
            send_progress(r);
        snprintf(r->phase, sizeof r->phase, "%s", phase);
        r->phase_ms = now;
        r->first_done = done;
        r->ended = false;
    }
    snprintf(r->item, sizeof r->item, "%s", item ? item : "");
    r->done = done;
    r->total = total;
    const bool last = total > 0 && done >= total && !r->ended;
    r->ended |= last;
    r->waiting = true;
    if (first || last || now - r->progress_ms >= PROGRESS_MS)
        send_progress(r);
    pthread_mutex_unlock(&r->lock);
}

static void on_metric(void *ctx, const char *name, int64_t step, double value)
{
    sv_reporter_event(
        ctx, "metric",
        json_pack("{s:s, s:I, s:o}", "name", name, "step", (json_int_t)step, "value", sv_json_number(value)));
}

static void on_layer(void *ctx, const char *name, int64_t step, int weight_bits, int activation_bits, double sqnr_db,
                     double lo, double hi)
{
    json_t *data = json_pack("{s:s, s:i, s:i, s:i, s:o, s:o, s:o}", "name", name, "bits", weight_bits, "weight_bits",
                             weight_bits, "activation_bits", activation_bits, "sqnr_db", sv_json_number(sqnr_db), "lo",
                             sv_json_number(lo), "hi", sv_json_number(hi));
    json_object_set_new(data, "step", step >= 0 ? json_integer(step) : json_null());
    sv_reporter_event(ctx, "layer", data);
}

static void on_warn(void *ctx, const char *text)
{
    sv_reporter_event(ctx, "warning", json_pack("{s:s}", "message", text));
}

void sv_reporter_attach(sv_reporter *r, qd_run *run)
{
    run->ctx = r;
    run->progress = on_progress;
    run->metric = on_metric;
    run->layer = on_layer;
    run->warn = on_warn;
    run->cancel = &r->stop->flag;
}

void sv_reporter_tick(sv_reporter *r, int64_t now_ms)
{
    pthread_mutex_lock(&r->lock);
    if (r->phase[0] && (now_ms - r->spoke_ms >= QUIET_MS || (r->waiting && now_ms - r->progress_ms >= PROGRESS_MS)))
        send_progress(r);
    pthread_mutex_unlock(&r->lock);
}

void sv_reporter_flush(sv_reporter *r)
{
    pthread_mutex_lock(&r->lock);
    if (r->waiting)
        send_progress(r);
    pthread_mutex_unlock(&r->lock);
}

/* The data of the event and, with seq, the header of the frame: the same words. */
static json_t *sample_data(const sv_reporter *r, const sv_sample_row *row)
{
    return json_pack("{s:I, s:I, s:s, s:s, s:o, s:i, s:i, s:o}", "index", (json_int_t)row->index, "step",
                     (json_int_t)row->step, "kind", row->kind, "mime", row->mime, "psnr_db",
                     sv_json_number(row->psnr_db), "width", row->width, "height", row->height, "url",
                     json_sprintf("/v1/jobs/%s/samples/%lld", r->job_id, (long long)r->samples));
}

qd_status sv_reporter_sample(sv_reporter *r, uint32_t frame_kind, sv_sample_row *row, const void *png, size_t size,
                             qd_err *err)
{
    char *text = NULL, *envelope = NULL, *header = NULL;
    uint8_t *frame = NULL;
    size_t frame_size = 0;
    int64_t seq = 0, n = 0;
    const int64_t now = sv_now_ms();
    qd_status st;

    pthread_mutex_lock(&r->lock);
    json_t *data = sample_data(r, row);
    text = sv_json_text(data);
    if (!text) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a sample event");
        goto out;
    }
    row->n = r->samples;
    st = sv_samples_add(r->store, r->fence, r->attempt, row, text, now, &n, &seq, err);
    if (st) {
        r->lost |= st == QD_E_CONFLICT;
        goto out;
    }
    r->samples = n + 1;
    r->spoke_ms = now;
    r->last_seq = seq;

    json_object_set_new(data, "seq", json_integer(seq));
    json_object_set_new(data, "job", json_string(r->job_id));
    header = sv_json_text(data);
    envelope = sv_envelope(r->job_id, seq, now, r->attempt, "sample", text);
    if (header && envelope) {
        frame = sv_frame_make(frame_kind, header, png, size, &frame_size);
        sv_bus_publish(r->bus, r->job_id, seq, "sample", envelope, frame, frame ? frame_size : 0);
    }
out:
    pthread_mutex_unlock(&r->lock);
    json_decref(data);
    qd_free(frame);
    qd_free(envelope);
    qd_free(header);
    qd_free(text);
    return st;
}

qd_status sv_reporter_artifact(sv_reporter *r, const sv_artifact_row *row, qd_err *err)
{
    int64_t seq = 0;
    pthread_mutex_lock(&r->lock);
    const qd_status st = sv_artifacts_add(r->store, r->fence, r->attempt, row, &seq, err);
    if (!st) {
        r->last_seq = publish_since(r->store, r->bus, r->job_id, r->last_seq);
        r->spoke_ms = sv_now_ms();
    }
    pthread_mutex_unlock(&r->lock);
    return st;
}

void sv_reporter_catch_up(sv_reporter *r)
{
    pthread_mutex_lock(&r->lock);
    r->last_seq = publish_since(r->store, r->bus, r->job_id, r->last_seq);
    pthread_mutex_unlock(&r->lock);
}
