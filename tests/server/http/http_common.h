/* http_common.h - a whole server on a free port inside the test, and a client that speaks raw bytes. */
#ifndef TESTS_HTTP_COMMON_H
#define TESTS_HTTP_COMMON_H

#include "harness/harness.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fs.h"
#include "base/mem.h"
#include "http/http.h"
#include "log.h"

#define W(text) ((char *)(text))

typedef struct server {
    char dir[512];
    sv_settings settings;
    sv_store *store;
    sv_bus *bus;
    sv_loop *loop;
    pthread_t loop_thread;
    sv_http *http;
    int port;
} server;

static void *run_loop(void *arg)
{
    sv_loop_run(arg);
    return NULL;
}

static inline void server_start(server *s, int64_t max_upload)
{
    qd_err err = { 0 };
    char path[600];
    memset(s, 0, sizeof *s);
    sv_log_level(SV_ERROR);
    snprintf(s->dir, sizeof s->dir, "%s", harness_tmp());
    s->settings = (sv_settings){ .listen_host = W("127.0.0.1"),
                                 .data_dir = s->dir,
                                 .http_threads = 2,
                                 .max_upload_bytes = max_upload,
                                 .max_unpacked_bytes = 64 << 20,
                                 .job_memory_bytes = 1 << 30,
                                 .lease_ms = 60000,
                                 .heartbeat_ms = 15000,
                                 .log_level = W("error") };
    snprintf(path, sizeof path, "%s/db.sqlite3", s->dir);
    check_ok(sv_store_open(path, &s->store, &err), &err);
    check_ok(sv_bus_new(&s->bus, &err), &err);
    check_ok(sv_loop_new(&(sv_loop_options){ .bus = s->bus, .store = s->store }, &s->loop, &err), &err);
    assert_int_equal(pthread_create(&s->loop_thread, NULL, run_loop, s->loop), 0);
    check_ok(sv_http_start(&(sv_http_options){ .settings = &s->settings,
                                               .store = s->store,
                                               .bus = s->bus,
                                               .loop = s->loop,
                                               .started_ms = sv_now_ms() },
                           &s->http, &err),
             &err);
    s->port = sv_http_port(s->http);
}

static inline void server_stop(server *s)
{
    sv_loop_stop(s->loop);
    pthread_join(s->loop_thread, NULL);
    sv_http_stop(s->http);
    sv_loop_free(s->loop);
    sv_bus_free(s->bus);
    sv_store_close(s->store);
}

/* --- a client --- */

static inline int dial(const server *s)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct timeval limit = { .tv_sec = 20 };
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons((uint16_t)s->port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static inline bool say(int fd, const void *data, size_t n)
{
    for (const char *p = data; n;) {
        const ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

typedef struct answer {
    int status;
    qd_buf head, body; /* body without chunking */
    bool complete;     /* the end was where the framing says */
    bool timed_out;    /* nothing came and nobody hung up */
} answer;

static inline void answer_clear(answer *a)
{
    qd_buf_clear(&a->head);
    qd_buf_clear(&a->body);
    a->status = 0;
}

/* The value of a header field, in a ring of 8; NULL when absent. */
static inline const char *field(const answer *a, const char *name)
{
    static _Thread_local char ring[8][512];
    static _Thread_local int at;
    const size_t n = strlen(name);
    for (const char *p = strstr(a->head.data, "\r\n"); p && p[2]; p = strstr(p + 2, "\r\n")) {
        if (strncasecmp(p + 2, name, n) || p[2 + n] != ':')
            continue;
        at = (at + 1) % 8;
        const char *v = p + 3 + n + strspn(p + 3 + n, " ");
        snprintf(ring[at], sizeof ring[at], "%.*s", (int)strcspn(v, "\r"), v);
        return ring[at];
    }
    return NULL;
}

/* One response with its body, or status 0 when the connection ends without one. Interim 100s are counted and passed over. */
static inline answer hear(int fd, bool head_only, int *continues)
{
    answer a = { 0 };
    char c;
    qd_buf_init(&a.head, 0);
    qd_buf_init(&a.body, 0);
    for (;;) {
        a.head.size = 0;
        while (a.head.size < 4 || memcmp(a.head.data + a.head.size - 4, "\r\n\r\n", 4)) {
            const ssize_t k = recv(fd, &c, 1, 0);
            if (k != 1) {
                a.timed_out = k < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
                return a;
            }
            qd_buf_add(&a.head, &c, 1);
        }
        a.status = atoi(a.head.data + 9);
        if (a.status != 100)
            break;
        if (continues)
            ++*continues;
    }
    const char *length = field(&a, "Content-Length"), *coding = field(&a, "Transfer-Encoding");
    if (head_only || a.status == 204 || a.status == 304 || a.status == 101) {
        a.complete = true;
        return a;
    }
    if (coding) {
        for (;;) {
            char line[32];
            size_t n = 0;
            while (n < sizeof line - 1 && recv(fd, &c, 1, 0) == 1 && c != '\n')
                line[n++] = c;
            line[n] = '\0';
            size_t left = strtoul(line, NULL, 16);
            if (n == 0)
                return a;
            a.complete = left == 0;
            for (left += 2; left; left--) {
                if (recv(fd, &c, 1, 0) != 1)
                    return a;
                if (left > 2)
                    qd_buf_add(&a.body, &c, 1);
            }
            if (a.complete)
                return a;
        }
    }
    size_t left = length ? strtoul(length, NULL, 10) : SIZE_MAX;
    while (left) {
        char block[8192];
        const ssize_t k = recv(fd, block, left < sizeof block ? left : sizeof block, 0);
        if (k <= 0)
            break;
        qd_buf_add(&a.body, block, (size_t)k);
        left -= (size_t)k;
    }
    a.complete = left == 0 || !length;
    return a;
}

/* One request on a connection of its own. `more` are extra header lines, each with its CRLF. */
static inline answer ask_with(const server *s, const char *method, const char *path, const char *more, const void *body,
                              size_t size)
{
    qd_buf b;
    qd_buf_init(&b, 0);
    qd_buf_addf(&b, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s", method, path, s->port, more ? more : "");
    if (body)
        qd_buf_addf(&b, "Content-Length: %zu\r\n", size);
    qd_buf_adds(&b, "\r\n");
    if (body)
        qd_buf_add(&b, body, size);
    const int fd = dial(s);
    say(fd, b.data, b.size);
    answer a = hear(fd, !strcmp(method, "HEAD"), NULL);
    close(fd);
    qd_buf_clear(&b);
    return a;
}

static inline answer ask(const server *s, const char *method, const char *path, const char *more)
{
    return ask_with(s, method, path, more, NULL, 0);
}

static inline answer post_json(const server *s, const char *method, const char *path, const char *more,
                               const char *body)
{
    char lines[512];
    snprintf(lines, sizeof lines, "Content-Type: application/json\r\n%s", more ? more : "");
    return ask_with(s, method, path, lines, body, strlen(body));
}

static inline json_t *json_of(const answer *a)
{
    json_error_t e;
    json_t *o = json_loadb(a->body.data ? a->body.data : "", a->body.size, 0, &e);
    if (!o)
        fail_msg("not JSON (%s): %.300s", e.text, a->body.data);
    return o;
}

/* A text member, in a ring of 8. */
static inline const char *text_of(const answer *a, const char *key)
{
    static _Thread_local char ring[8][512];
    static _Thread_local int at;
    json_t *o = json_of(a);
    at = (at + 1) % 8;
    const char *text = json_string_value(json_object_get(o, key));
    snprintf(ring[at], sizeof ring[at], "%s", text ? text : "");
    json_decref(o);
    return ring[at];
}

/* Checks that it is a problem document with this status and code, then drops it. */
static inline void check_problem(answer a, int status, const char *code, const char *words)
{
    if (a.status != status)
        fail_msg("status %d, expected %d %s: %.300s", a.status, status, code, a.body.data ? a.body.data : "");
    assert_string_equal(field(&a, "Content-Type"), "application/problem+json");
    json_t *o = json_of(&a);
    assert_int_equal(json_integer_value(json_object_get(o, "status")), status);
    assert_string_equal(json_string_value(json_object_get(o, "code")), code);
    assert_string_equal(json_string_value(json_object_get(o, "request_id")), field(&a, "X-Request-Id"));
    assert_true(strncmp(json_string_value(json_object_get(o, "type")), "https://quantd.dev/problems/", 28) == 0);
    assert_true(json_is_string(json_object_get(o, "title")));
    assert_true(json_is_boolean(json_object_get(o, "retryable")));
    const char *detail = json_string_value(json_object_get(o, "detail"));
    if (words && !strstr(detail, words))
        fail_msg("'%s' is not in: %s", words, detail);
    json_decref(o);
    answer_clear(&a);
}

static inline void check_status(answer a, int status)
{
    if (a.status != status)
        fail_msg("status %d, expected %d: %.300s", a.status, status, a.body.data ? a.body.data : "");
    answer_clear(&a);
}

static inline int64_t clock_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static inline void nap_ms(int ms)
{
    nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l }, NULL);
}

/* How many files and folders lie below data_dir/part. */
static inline int count_below(const char *path)
{
    int n = 0;
    DIR *d = opendir(path);
    if (!d)
        return 0;
    for (struct dirent *e; (e = readdir(d));) {
        char below[4096];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        if ((size_t)snprintf(below, sizeof below, "%s/%s", path, e->d_name) >= sizeof below)
            return -1;
        n += 1 + (e->d_type == DT_DIR ? count_below(below) : 0);
    }
    closedir(d);
    return n;
}

static inline int left_on_disk(const server *s)
{
    static const char *const parts[] = { "tmp", "blobs", "models" };
    int n = 0;
    for (int i = 0; i < 3; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", s->dir, parts[i]);
        n += count_below(path);
    }
    return n;
}

#endif
