/* live_common.h - a store, a bus and a running loop; and a WebSocket client at the other end of a socket pair. */
#ifndef TESTS_LIVE_COMMON_H
#define TESTS_LIVE_COMMON_H

#include "harness/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <wslay/wslay.h>

#include "base/mem.h"
#include "live/live_int.h"
#include "store/store.h"

/* --- server side --- */

typedef struct live {
    char path[512];
    sv_store *store;
    sv_bus *bus;
    sv_loop *loop;
    pthread_t thread;
    bool running;
} live;

static void *live_thread(void *p)
{
    sv_loop_run(((live *)p)->loop);
    return NULL;
}

/* Default numbers, with a quick tick. */
static inline sv_tuning live_tuning(void)
{
    sv_tuning t = sv_tuning_default;
    t.tick_ms = 10;
    t.close_ms = 500;
    return t;
}

static inline void live_start(live *l, const sv_tuning *tuning, sv_loop_options more)
{
    qd_err err = { 0 };
    const sv_tuning usual = live_tuning();

    memset(l, 0, sizeof *l);
    snprintf(l->path, sizeof l->path, "%s/quantd.db", harness_tmp());
    check_ok(sv_store_open(l->path, &l->store, &err), &err);
    check_ok(sv_bus_new(&l->bus, &err), &err);
    more.store = l->store;
    more.bus = l->bus;
    check_ok(sv_loop_new_tuned(&more, tuning ? tuning : &usual, &l->loop, &err), &err);
    assert_int_equal(pthread_create(&l->thread, NULL, live_thread, l), 0);
    l->running = true;
}

static inline void live_stop(live *l)
{
    if (!l->running)
        return;
    sv_loop_stop(l->loop);
    pthread_join(l->thread, NULL);
    l->running = false;
}

static inline void live_end(live *l)
{
    live_stop(l);
    sv_loop_free(l->loop);
    sv_bus_free(l->bus);
    sv_store_close(l->store);
}

/* A job that runs, with the fence of its holder. */
static inline int64_t live_job(live *l, const char *id)
{
    qd_err err = { 0 };
    sv_job_row in = { .id = (char *)id,
                      .kind = (char *)"sample",
                      .method = (char *)"ddim",
                      .body = (char *)"{}",
                      .max_attempts = 1,
                      .created_ms = 1000,
                      .time_limit_s = 60 };
    sv_job_row row = { 0 };

    check_ok(sv_jobs_add(l->store, &in, NULL, &row, NULL, &err), &err);
    sv_job_row_clear(&row);
    check_ok(sv_jobs_claim(l->store, "w", sv_now_ms(), 3600000, &row, &err), &err);
    assert_string_equal(row.id, id);
    const int64_t fence = row.fence;
    sv_job_row_clear(&row);
    return fence;
}

static inline void live_publish(live *l, const char *job, int64_t seq, const char *type, const char *data,
                                const char *frame)
{
    char *envelope = sv_envelope(job, seq, 2000, 1, type, data);

    sv_bus_publish(l->bus, job, seq, type, envelope, frame, frame ? strlen(frame) : 0);
    qd_free(envelope);
}

/* Store and publish, as a worker does. Returns the number. */
static inline int64_t live_say(live *l, const char *job, int64_t fence, const char *type, const char *data,
                               const char *frame)
{
    qd_err err = { 0 };
    int64_t seq = 0;

    check_ok(sv_events_add(l->store, job, fence, 1, type, data, 2000, &seq, &err), &err);
    live_publish(l, job, seq, type, data, frame);
    return seq;
}

static inline void live_finish(live *l, const char *job, int64_t fence)
{
    qd_err err = { 0 };
    int64_t seq = 0;

    check_ok(sv_jobs_finish(l->store, job, fence, "succeeded", NULL, "{\"x\":1}", sv_now_ms(), &seq, &err), &err);
    live_publish(l, job, seq - 1, "state", "{\"status\":\"succeeded\"}", NULL);
    live_publish(l, job, seq, "end", "{\"status\":\"succeeded\"}", NULL);
}

static inline void sleep_ms(int ms)
{
    const struct timespec t = { ms / 1000, ms % 1000 * 1000000L };
    nanosleep(&t, NULL);
}

/* --- client side --- */

typedef struct told {
    int opcode; /* WSLAY_TEXT_FRAME, WSLAY_BINARY_FRAME, or WSLAY_CONNECTION_CLOSE */
    int code;   /* of a close */
    char *text;
    size_t size;
    struct told *next;
} told;

typedef struct client {
    int fd;
    wslay_event_context_ptr ctx;
    told *first, **last;
    bool ended; /* the server's end is closed */
    told *now;  /* the one lent out */
} client;

typedef struct given {
    int fd;
    atomic_int closed;
} given;

static void given_close(void *p)
{
    given *g = p;
    close(g->fd);
    atomic_fetch_add(&g->closed, 1);
}

static ssize_t client_recv(wslay_event_context_ptr ctx, uint8_t *data, size_t n, int flags, void *user)
{
    client *c = user;
    const ssize_t got = recv(c->fd, data, n, MSG_DONTWAIT);

    if (got > 0)
        return got;
    c->ended = got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
    wslay_event_set_error(ctx, c->ended ? WSLAY_ERR_CALLBACK_FAILURE : WSLAY_ERR_WOULDBLOCK);
    return -1;
}

static ssize_t client_write(wslay_event_context_ptr ctx, const uint8_t *data, size_t n, int flags, void *user)
{
    client *c = user;
    const ssize_t sent = send(c->fd, data, n, MSG_NOSIGNAL);

    if (sent < 0)
        wslay_event_set_error(ctx, WSLAY_ERR_CALLBACK_FAILURE);
    return sent;
}

static int client_mask(wslay_event_context_ptr ctx, uint8_t *data, size_t n, void *user)
{
    for (size_t i = 0; i < n; i++)
        data[i] = (uint8_t)(0x5a + i);
    return 0;
}

static void client_message(wslay_event_context_ptr ctx, const struct wslay_event_on_msg_recv_arg *m, void *user)
{
    client *c = user;
    told *t = calloc(1, sizeof *t);

    if (m->opcode == WSLAY_PING || m->opcode == WSLAY_PONG) {
        free(t);
        return;
    }
    t->opcode = m->opcode;
    t->code = m->status_code;
    t->text = malloc(m->msg_length + 1);
    if (m->msg_length)
        memcpy(t->text, m->msg, m->msg_length);
    t->text[m->msg_length] = '\0';
    t->size = m->msg_length;
    *c->last = t;
    c->last = &t->next;
}

/* Connects through a socket pair; `g` sees how the server gives its end back. */
static inline void client_open(client *c, live *l, given *g, const void *extra, size_t extra_size)
{
    static const struct wslay_event_callbacks calls = { .recv_callback = client_recv,
                                                        .send_callback = client_write,
                                                        .genmask_callback = client_mask,
                                                        .on_msg_recv_callback = client_message };
    int pair[2];

    memset(c, 0, sizeof *c);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    c->fd = pair[0];
    c->last = &c->first;
    g->fd = pair[1];
    atomic_init(&g->closed, 0);
    assert_int_equal(wslay_event_context_client_init(&c->ctx, &calls, c), 0);
    sv_loop_adopt(l->loop, pair[1], extra, extra_size, given_close, g);
}

static inline void client_free(client *c)
{
    while (c->first) {
        told *t = c->first;
        c->first = t->next;
        free(t->text);
        free(t);
    }
    if (c->now) {
        free(c->now->text);
        free(c->now);
    }
    wslay_event_context_free(c->ctx);
    close(c->fd);
}

static inline void client_send_as(client *c, int opcode, const void *data, size_t n)
{
    const struct wslay_event_msg m = { .opcode = (uint8_t)opcode, .msg = data, .msg_length = n };
    assert_int_equal(wslay_event_queue_msg(c->ctx, &m), 0);
    assert_int_equal(wslay_event_send(c->ctx), 0);
}

static inline void client_say(client *c, const char *text)
{
    client_send_as(c, WSLAY_TEXT_FRAME, text, strlen(text));
}

/* The next message within `ms`, lent until the next call; NULL = none came, or the end. Answers pings on the way. */
static inline const told *client_next_in(client *c, int ms)
{
    if (c->now) {
        free(c->now->text);
        free(c->now);
        c->now = NULL;
    }
    while (!c->first && !c->ended) {
        struct pollfd f = { .fd = c->fd, .events = POLLIN };
        if (poll(&f, 1, ms) <= 0)
            return NULL;
        char waste[256];
        if (wslay_event_get_read_enabled(c->ctx))
            wslay_event_recv(c->ctx);
        else /* after a close frame only the end is of interest */
            c->ended = recv(c->fd, waste, sizeof waste, MSG_DONTWAIT) == 0;
        wslay_event_send(c->ctx);
    }
    if (!c->first)
        return NULL;
    c->now = c->first;
    c->first = c->now->next;
    if (!c->first)
        c->last = &c->first;
    return c->now;
}

/* The next text message as JSON; fails the test when something else comes. */
static inline json_t *client_json(client *c)
{
    const told *t = client_next_in(c, 5000);
    json_t *o;

    if (!t)
        fail_msg("a message was expected, %s", c->ended ? "the socket ended" : "none came in 5 s");
    if (t->opcode != WSLAY_TEXT_FRAME)
        fail_msg("a text message was expected, opcode %d came (close code %d)", t->opcode, t->code);
    o = json_loads(t->text, 0, NULL);
    if (!o)
        fail_msg("not JSON: %s", t->text);
    return o;
}

static inline const char *json_text(const json_t *o, const char *name)
{
    const char *s = json_string_value(json_object_get(o, name));
    return s ? s : "";
}

/* Checks op, type, job and seq of the next message ("" or -1 = any), and hands out its seq. */
static inline int64_t client_expect(client *c, const char *op, const char *type, const char *job, int64_t seq)
{
    json_t *o = client_json(c);
    const int64_t got = json_integer_value(json_object_get(o, "seq"));

    if (strcmp(json_text(o, "op"), op) != 0 || (type[0] && strcmp(json_text(o, "type"), type) != 0) ||
        (job[0] && strcmp(json_text(o, "job"), job) != 0) || (seq >= 0 && got != seq)) {
        char *text = json_dumps(o, 0);
        fail_msg("expected %s %s %s %lld, got %s", op, type, job, (long long)seq, text);
    }
    json_decref(o);
    return got;
}

static inline void client_expect_close(client *c, int code)
{
    const told *t;

    while ((t = client_next_in(c, 5000)) && t->opcode != WSLAY_CONNECTION_CLOSE)
        ;
    if (!t)
        fail_msg("close %d was expected, %s", code, c->ended ? "the socket ended without one" : "nothing came in 5 s");
    assert_int_equal(t->code, code);
}

/* Nothing more for a little while: asked by a ping, whose answer must be the next message. */
static inline void client_expect_quiet(client *c)
{
    client_say(c, "{\"op\":\"ping\"}");
    client_expect(c, "pong", "", "", -1);
}

static inline void client_hello(client *c, const char *features)
{
    char text[128];

    snprintf(text, sizeof text, "{\"op\":\"hello\",\"features\":%s}", features);
    client_say(c, text);
    client_expect(c, "hello", "", "", -1);
}

/* An error with this code; its words must contain `text`. */
static inline void client_expect_error(client *c, const char *code, const char *text)
{
    json_t *o = client_json(c);
    char *all = json_dumps(o, 0);

    if (strcmp(json_text(o, "op"), "error") != 0 || strcmp(json_text(o, "code"), code) != 0 ||
        !strstr(json_text(o, "detail"), text))
        fail_msg("expected error %s \"%s\", got %s", code, text, all);
    assert_true(json_is_integer(json_object_get(o, "status")));
    assert_int_equal(strncmp(json_text(o, "type"), "https://quantd.dev/problems/", 28), 0);
    free(all);
    json_decref(o);
}

static inline void client_subscribe(client *c, const char *job, int64_t after)
{
    char text[128];

    snprintf(text, sizeof text, "{\"op\":\"subscribe\",\"job\":\"%s\",\"after_seq\":%lld}", job, (long long)after);
    client_say(c, text);
}

/* Subscribe to a job that has just begun to run, and wait until the log is read and the bus feeds us. */
static inline void client_follow(client *c, const char *job)
{
    client_subscribe(c, job, 1);
    client_expect(c, "event", "state", job, 2);
}

static inline void given_wait(given *g)
{
    for (int i = 0; i < 500 && !atomic_load(&g->closed); i++)
        sleep_ms(10);
    assert_int_equal(atomic_load(&g->closed), 1);
}

#endif
