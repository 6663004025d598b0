/* ws_ops.c - what a client may say: the operations of API.md 4, one row each. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "live/live_int.h"
#include "log.h"
#include "store/store.h"

#define TITLE_MAX_BYTES 64

static void send_json(sv_peer *p, json_t *o)
{
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

    if (text)
        sv_ws_send(p->ws, false, text, strlen(text));
    free(text);
    json_decref(o);
}

/* --- errors --- */

void sv_ops_error(sv_peer *p, int http_status, const char *code, const char *title, const char *detail, const char *job)
{
    char type[128];
    size_t n = (size_t)snprintf(type, sizeof(type), "https://quantd.dev/problems/%s", code);
    json_t *o;

    for (size_t i = 0; i < n && i < sizeof(type) - 1; i++)
        if (type[i] == '_')
            type[i] = '-';
    o = json_pack("{s:s, s:s, s:s, s:i, s:s, s:s, s:b}", "op", "error", "type", type, "title", title, "status",
                  http_status, "code", code, "detail", detail, "retryable", http_status == 429 || http_status >= 500);
    if (o && job)
        json_object_set_new(o, "job", json_string(job));
    send_json(p, o);
}

void sv_ops_fail(sv_peer *p, const qd_err *err, const char *job)
{
    switch (err->status) {
    case QD_E_NOT_FOUND:
        sv_ops_error(p, 404, "not_found", "Not found", err->text, job);
        break;
    case QD_E_CONFLICT:
        sv_ops_error(p, 409, "conflict", "Conflict", err->text, job);
        break;
    case QD_E_INVALID:
    case QD_E_FORMAT:
    case QD_E_UNSUPPORTED:
        sv_ops_error(p, 422, "invalid_param", "Invalid parameter", err->text, job);
        break;
    default:
        sv_log(SV_ERROR, "websocket_op_failed", "job", job ? job : "", "status", qd_status_name(err->status), "error",
               err->text, NULL);
        sv_ops_error(p, 503, "unavailable", "Not possible now", "the daemon could not do it now; its log says why",
                     job);
        break;
    }
}

static void malformed(sv_peer *p, const char *detail)
{
    sv_ops_error(p, 400, "malformed", "Malformed message", detail, NULL);
}

/* --- fields --- */

/* The field "job" of a message; NULL after an error was sent. */
static const char *job_field(sv_peer *p, const json_t *o)
{
    const char *job = json_string_value(json_object_get(o, "job"));

    if (!job || !job[0] || strlen(job) >= sizeof(((sv_track *)0)->job)) {
        malformed(p, "\"job\" must be a job's id");
        return NULL;
    }
    return job;
}

/* A number from 0 up, or `fallback` when the field is not there. */
static bool seq_field(sv_peer *p, const json_t *o, const char *name, int64_t fallback, int64_t *out)
{
    const json_t *v = json_object_get(o, name);
    char words[TITLE_MAX_BYTES];

    *out = fallback;
    if (!v || json_is_null(v))
        return true;
    if (json_is_integer(v) && json_integer_value(v) >= 0) {
        *out = json_integer_value(v);
        return true;
    }
    snprintf(words, sizeof(words), "\"%s\" must be a whole number from 0 up", name);
    malformed(p, words);
    return false;
}

/* --- operations --- */

static void op_hello(sv_peer *p, const json_t *o)
{
    const json_t *features = json_object_get(o, "features"), *token = json_object_get(o, "token"), *feature;
    json_t *taken;
    char session[40];
    size_t i;

    if ((features && !json_is_array(features)) || (token && !json_is_string(token) && !json_is_null(token))) {
        malformed(p, "\"features\" must be a list of names, \"token\" a text");
        return;
    }
    if (p->loop->o.allow && !p->loop->o.allow(p->loop->o.ctx, json_string_value(token))) {
        sv_peer_close(p, 1008, "this token may not come in");
        return;
    }
    p->hello = true;
    p->binary = false;
    taken = json_array();
    json_array_foreach(features, i, feature)
    {
        static const char *const known[] = { "binary_samples", "layers" };
        const char *name = json_string_value(feature);
        for (size_t k = 0; name && k < sizeof(known) / sizeof(known[0]); k++)
            if (strcmp(name, known[k]) == 0)
                json_array_append_new(taken, json_string(name));
        if (name && strcmp(name, known[0]) == 0)
            p->binary = true;
        if (json_array_size(taken) >= 8) /* names may repeat; the answer need not */
            break;
    }
    sv_id_new(session, "ses_");
    send_json(p, json_pack("{s:s, s:s, s:s, s:o}", "op", "hello", "session", session, "generation", p->loop->generation,
                           "features", taken));
}

static void op_subscribe(sv_peer *p, const json_t *o)
{
    const char *job = job_field(p, o);
    int64_t after;

    if (job && seq_field(p, o, "after_seq", 0, &after))
        sv_feed_follow(p, job, after);
}

static void op_unsubscribe(sv_peer *p, const json_t *o)
{
    const char *job = job_field(p, o);

    if (job)
        sv_feed_unfollow(p, job);
}

static void op_ack(sv_peer *p, const json_t *o)
{
    const char *job = job_field(p, o);
    int64_t seq;

    if (job && seq_field(p, o, "seq", 0, &seq))
        sv_feed_ack(p, job, seq);
}

static void op_ping(sv_peer *p, const json_t *o)
{
    send_json(p, json_pack("{s:s}", "op", "pong"));
}

/* Cancel asks the store, so it runs on the pool. */
typedef struct cancel_work {
    uv_work_t req;
    sv_peer *peer;
    sv_loop_options o;
    char job[40];
    char *reply;
    qd_status st;
    qd_err err;
} cancel_work;

static void cancel_run(uv_work_t *req)
{
    cancel_work *w = req->data;
    w->st = w->o.cancel(w->o.ctx, w->job, &w->reply, &w->err);
}

static void cancel_done(uv_work_t *req, int status)
{
    cancel_work *w = req->data;
    sv_peer *p = w->peer;

    if (p->state == SV_OPEN) {
        json_t *o = w->st || !w->reply ? NULL : json_loads(w->reply, 0, NULL);
        if (json_is_object(o)) {
            json_object_set_new(o, "op", json_string("cancel"));
            json_object_set_new(o, "job", json_string(w->job));
            send_json(p, json_incref(o));
        } else {
            sv_ops_fail(p, &w->err, w->job);
        }
        json_decref(o);
        sv_peer_flush(p);
    }
    qd_free(w->reply);
    qd_free(w);
    sv_peer_unref(p);
}

static void op_cancel(sv_peer *p, const json_t *o)
{
    const char *job = job_field(p, o);
    cancel_work *w;

    if (!job)
        return;
    if (!p->loop->o.cancel) {
        sv_ops_error(p, 422, "unsupported", "Not supported", "jobs cannot be canceled here", job);
        return;
    }
    if (!sv_peer_ref(p)) {
        sv_ops_error(p, 429, "too_many_requests", "Too many requests", "wait for the answers of the earlier operations",
                     job);
        return;
    }
    w = qd_calloc(1, sizeof(*w));
    if (!w) {
        sv_peer_unref(p);
        return;
    }
    w->req.data = w;
    w->peer = p;
    w->o = p->loop->o;
    snprintf(w->job, sizeof(w->job), "%s", job);
    if (uv_queue_work(&p->loop->uv, &w->req, cancel_run, cancel_done)) {
        qd_free(w);
        sv_peer_unref(p);
    }
}

static const struct {
    const char *name;
    void (*run)(sv_peer *p, const json_t *o);
    bool any_time; /* before hello too */
} ops[] = {
    { "hello", op_hello, true },       { "ping", op_ping, true }, { "subscribe", op_subscribe },
    { "unsubscribe", op_unsubscribe }, { "ack", op_ack },         { "cancel", op_cancel },
};

void sv_ops_message(sv_peer *p, bool binary, const uint8_t *data, size_t n)
{
    json_error_t why;
    json_t *o = binary ? NULL : json_loadb((const char *)data, n, JSON_REJECT_DUPLICATES, &why);
    const char *name = json_string_value(json_object_get(o, "op"));
    char words[256];

    if (binary) {
        malformed(p, "operations are text messages");
    } else if (!o) {
        snprintf(words, sizeof(words), "not JSON: %.160s at byte %d", why.text, why.position);
        malformed(p, words);
    } else if (!name) {
        malformed(p, "an operation is an object with a text \"op\"");
    } else {
        size_t i = 0;
        while (i < sizeof(ops) / sizeof(ops[0]) && strcmp(ops[i].name, name) != 0)
            i++;
        if (i == sizeof(ops) / sizeof(ops[0]))
            malformed(p, "\"op\" must be hello, subscribe, unsubscribe, ack, cancel or ping");
        else if (!p->hello && !ops[i].any_time)
            sv_ops_error(p, 401, "hello_first", "Say hello first", "the first operation is {\"op\":\"hello\"}", NULL);
        else
            ops[i].run(p, o);
    }
    json_decref(o);
}
