/* mhd.c - the door to libmicrohttpd: threads, limits, bodies in and out, suspended and upgraded connections. */
#include "http/http_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "log.h"

enum {
    JSON_BODY_LIMIT = 1 << 20,     // bytes
    SWALLOW_LIMIT = 8 << 20,       // bytes of an unwanted body read so that the answer arrives
    CONNECTION_LIMIT = 512,        // open connections
    CONNECTION_MEMORY = 128 << 10, // bytes for header and buffers of one
    FIELDS_LIMIT = 32 << 10,       // bytes of names and values
    IDLE_TIMEOUT_S = 30,
    HEADER_TIMEOUT_MS = 20000, // from accept to a complete header
    KEEP_ALIVE_MS = 75000,     // from an answer to the next complete header
    STREAM_BLOCK = 16 << 10,   // bytes
};

const char *const sv_method_names[8] = { "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "OTHER" };

void sv_mhd_suspend(void *connection)
{
    MHD_suspend_connection(connection);
}

void sv_mhd_resume(void *connection)
{
    MHD_resume_connection(connection);
}

int sv_mhd_fd(void *connection)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

const char *sv_request_field(const sv_request *q, const char *name)
{
    return MHD_lookup_connection_value(q->connection, MHD_HEADER_KIND, name);
}

/* --- the life of a request --- */

/* Called with the raw target as soon as the request line is read; what it returns is the request's context. */
static void *request_new(void *cls, const char *uri, struct MHD_Connection *connection)
{
    sv_http *h = cls;
    sv_request *q = qd_calloc(1, sizeof *q);
    if (!q)
        return NULL;
    q->http = h;
    q->connection = connection;
    q->raw_target = qd_strdup(uri);
    sv_id_new(q->id, "req_");
    sv_reply_init(&q->reply);
    qd_buf_init(&q->body, JSON_BODY_LIMIT);
    sv_park_open(&q->park, h, connection);
    atomic_fetch_add(&h->requests_open, 1);
    return q;
}

static void request_free(sv_request *q)
{
    sv_http *h = q->http;
    if (q->state_free)
        q->state_free(q->state);
    sv_park_close(&q->park);
    sv_upload_free(q->upload);
    sv_reply_clear(&q->reply);
    qd_buf_clear(&q->body);
    sv_target_clear(&q->target);
    qd_free(q->raw_target);
    qd_free(q);
    atomic_fetch_sub(&h->requests_open, 1);
}

static sv_peer *peer_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode why)
{
    sv_http *h = cls;
    sv_peer *peer = peer_of(connection);
    if (*context)
        request_free(*context);
    *context = NULL;
    if (peer)
        sv_peer_due(h, peer, sv_mono_ms() + KEEP_ALIVE_MS);
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    sv_http *h = cls;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        sv_peer *peer = qd_calloc(1, sizeof *peer);
        *context = peer;
        if (!peer)
            return;
        peer->fd = info->connect_fd;
        peer->due_ms = sv_mono_ms() + HEADER_TIMEOUT_MS;
        sv_peer_add(h, peer);
    } else if (*context) {
        sv_peer_remove(h, *context);
        qd_free(*context);
        *context = NULL;
    }
}

/* --- answering --- */

static ssize_t stream_read(void *cls, uint64_t pos, char *buf, size_t max)
{
    const long n = sv_stream_read(cls, buf, max);
    return n < 0 ? MHD_CONTENT_READER_END_OF_STREAM : n;
}

static void stream_free(void *cls)
{
    sv_stream_free(cls);
}

typedef struct socket_hand {
    sv_http *http;
    struct MHD_UpgradeResponseHandle *urh;
    int fd;
} socket_hand;

static void socket_close(void *handle)
{
    socket_hand *s = handle;
    sv_http *h = s->http;
    MHD_upgrade_action(s->urh, MHD_UPGRADE_ACTION_CLOSE);
    qd_free(s);
    atomic_fetch_sub(&h->sockets_open, 1);
}

static void on_upgrade(void *cls, struct MHD_Connection *connection, void *context, const char *extra,
                       size_t extra_size, MHD_socket fd, struct MHD_UpgradeResponseHandle *urh)
{
    sv_http *h = cls;
    sv_peer *peer = peer_of(connection);
    socket_hand *s = qd_calloc(1, sizeof *s);
    if (peer)
        sv_peer_due(h, peer, 0);
    if (!s) {
        MHD_upgrade_action(urh, MHD_UPGRADE_ACTION_CLOSE);
        return;
    }
    *s = (socket_hand){ .http = h, .urh = urh, .fd = fd };
    const int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    atomic_fetch_add(&h->sockets_open, 1);
    sv_loop_adopt(h->o.loop, fd, extra, extra_size, socket_close, s);
}

/* The reply as libmicrohttpd wants it; takes the body out of it. */
static struct MHD_Response *make_response(sv_request *q)
{
    sv_reply *r = &q->reply;
    struct MHD_Response *m = NULL;
    switch (r->kind) {
    case SV_BODY_NONE:
        m = MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
        break;
    case SV_BODY_BYTES:
        m = MHD_create_response_from_buffer_with_free_callback(r->size, r->bytes, qd_free);
        if (m)
            r->bytes = NULL;
        break;
    case SV_BODY_LENT:
        m = MHD_create_response_from_buffer(r->size, (void *)r->lent, MHD_RESPMEM_PERSISTENT);
        break;
    case SV_BODY_FILE:
        m = MHD_create_response_from_fd_at_offset64(r->size, r->fd, r->offset);
        if (m)
            r->fd = -1;
        break;
    case SV_BODY_STREAM:
        m = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, stream_read, r->stream, stream_free);
        if (m)
            r->stream = NULL;
        break;
    case SV_BODY_SOCKET:
        m = MHD_create_response_for_upgrade(on_upgrade, q->http);
        break;
    }
    return m;
}

static void count(sv_http *h, const char *method, int status)
{
    int k = 0;
    while (k < 7 && strcmp(method, sv_method_names[k]))
        k++;
    atomic_fetch_add(&h->requests[k][status >= 0 && status < 600 ? status : 0], 1);
}

static bool has_field(const sv_reply *r, const char *name)
{
    for (int i = 0; i < r->field_count; i++)
        if (!strcasecmp(r->fields[i].name, name))
            return true;
    return false;
}

static enum MHD_Result answer(sv_request *q)
{
    static const char *const always[][2] = {
        { "X-Content-Type-Options", "nosniff" },
        { "Referrer-Policy", "no-referrer" },
        { "X-Frame-Options", "DENY" },
        { "Cross-Origin-Resource-Policy", "same-origin" },
        { "Content-Security-Policy",
          "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
          "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'" },
    };
    sv_reply *r = &q->reply;
    struct MHD_Response *m = make_response(q);
    if (!m)
        return MHD_NO;
    MHD_add_response_header(m, "X-Request-Id", q->id);
    for (size_t i = 0; i < sizeof always / sizeof always[0]; i++)
        if (!has_field(r, always[i][0]))
            MHD_add_response_header(m, always[i][0], always[i][1]);
    if (!r->cache_decided)
        MHD_add_response_header(m, "Cache-Control", "no-store");
    if (r->close)
        MHD_add_response_header(m, "Connection", "close");
    for (int i = 0; i < r->field_count; i++)
        MHD_add_response_header(m, r->fields[i].name, r->fields[i].value);
    count(q->http, q->method, r->status);
    const enum MHD_Result rc = MHD_queue_response(q->connection, (unsigned)r->status, m);
    MHD_destroy_response(m);
    return rc;
}

/* --- checks before a body is read --- */

typedef struct field_census {
    int hosts, lengths, codings, expects;
    size_t bytes;
    bool bad;
    const char *coding, *length, *expect, *host;
} field_census;

static enum MHD_Result take_census(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_size,
                                   const char *value, size_t value_size)
{
    static const char marks[] = "!#$%&'*+-.^_`|~";
    field_census *c = cls;
    c->bytes += name_size + value_size;
    if (!name_size)
        c->bad = true;
    for (size_t i = 0; i < name_size; i++) {
        const char ch = name[i];
        const bool token = (ch >= '0' && ch <= '9') || (ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z') ||
                           (ch && strchr(marks, ch));
        c->bad |= !token;
    }
    for (size_t i = 0; i < value_size; i++)
        c->bad |= ((unsigned char)value[i] < 0x20 && value[i] != '\t') || value[i] == 0x7f;
    if (!value)
        value = "";
    if (!strcasecmp(name, "Host")) {
        c->hosts++;
        c->host = value;
    } else if (!strcasecmp(name, "Content-Length")) {
        c->lengths++;
        c->length = value;
    } else if (!strcasecmp(name, "Transfer-Encoding")) {
        c->codings++;
        c->coding = value;
    } else if (!strcasecmp(name, "Expect")) {
        c->expects++;
        c->expect = value;
    }
    return MHD_YES;
}

/* What two readers of one connection could understand differently is refused, and the connection ends. */
static bool check_framing(sv_request *q, const char *version, const field_census *c)
{
    const char *wrong = NULL;
    if (c->bad)
        wrong = "a header field has a name or value with bytes that must not be there";
    else if (c->hosts != 1)
        wrong = c->hosts ? "the Host field is given twice" : "the Host field is missing";
    else if (c->codings && c->lengths)
        wrong = "both Content-Length and Transfer-Encoding are given";
    else if (c->lengths > 1 || c->codings > 1)
        wrong = "the length of the body is given twice";
    else if (c->codings && (strcasecmp(c->coding, "chunked") || strcmp(version, "HTTP/1.1")))
        wrong = "the only Transfer-Encoding is chunked, in HTTP/1.1";
    else if (c->lengths && !sv_parse_int64(c->length, 0, INT64_MAX, &q->content_length))
        wrong = "Content-Length must be a whole number";
    else if (c->expects > 1 || (c->expects && strcasecmp(c->expect, "100-continue")))
        wrong = "the only Expect is 100-continue";
    if (wrong) {
        q->reply.close = true;
        sv_reply_problem(q, SV_P_BAD_REQUEST, NULL, "%s", wrong);
        return false;
    }
    if (c->bytes > FIELDS_LIMIT) {
        q->reply.close = true;
        sv_reply_problem(q, SV_P_FIELDS_TOO_LARGE, NULL, "the header fields take %zu bytes, the limit is %d", c->bytes,
                         FIELDS_LIMIT);
        return false;
    }
    q->has_body = c->codings || q->content_length > 0;
    q->expects_continue = c->expects > 0;
    return true;
}

static bool changes_state(const char *method)
{
    return strcmp(method, "GET") && strcmp(method, "HEAD") && strcmp(method, "OPTIONS");
}

static bool check_visitor(sv_request *q, const field_census *c)
{
    const char *listen_host = q->http->o.settings->listen_host;
    const char *origin = sv_request_field(q, "Origin");
    if (!sv_host_allowed(c->host, listen_host) ||
        (q->target.authority && !sv_host_allowed(q->target.authority, listen_host))) {
        sv_reply_problem(q, SV_P_FORBIDDEN_HOST, NULL, "this daemon does not answer to the host '%.100s'", c->host);
        return false;
    }
    const bool upgrade = sv_request_field(q, "Upgrade") != NULL;
    if (origin && (changes_state(q->method) || upgrade) && !sv_origin_matches(origin, c->host)) {
        sv_reply_problem(q, SV_P_FORBIDDEN_ORIGIN, NULL, "pages of '%.100s' may not do this", origin);
        return false;
    }
    return true;
}

static bool check_query(sv_request *q)
{
    const sv_query_row *rows = q->route->query;
    if (q->route->flags & SV_ANY_QUERY)
        return true;
    for (int i = 0; i < q->target.query_count; i++) {
        const char *name = q->target.query[i].name;
        const sv_query_row *row = rows;
        while (row && row->name && strcmp(row->name, name))
            row++;
        if (row && row->name)
            continue;
        char known[256] = "none";
        size_t n = 0;
        for (row = rows; row && row->name && n < sizeof known; row++)
            n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", row->name);
        sv_reply_problem(q, SV_P_INVALID_QUERY, name, "'%.64s' is not a parameter here; known: %s", name, known);
        return false;
    }
    return true;
}

static void begin_request(sv_request *q, const char *version)
{
    field_census census = { 0 };
    qd_err err = { 0 };
    sv_problem problem;
    char allow[64] = "";
    q->content_length = -1;
    MHD_get_connection_values_n(q->connection, MHD_HEADER_KIND, take_census, &census);
    if (!check_framing(q, version, &census))
        return;
    const qd_status st = sv_target_parse(q->raw_target, &q->target, &err);
    if (st) {
        sv_reply_problem(q, st == QD_E_LIMIT ? SV_P_TARGET_TOO_LONG : SV_P_BAD_REQUEST, NULL, "%s", err.text);
        return;
    }
    if (!check_visitor(q, &census))
        return;
    q->head = !strcmp(q->method, "HEAD");
    q->route = sv_route_find(q->method, &q->target, q->captures, &problem, allow);
    if (!q->route && problem == SV_P_METHOD_NOT_ALLOWED) {
        sv_reply_field(q, "Allow", "%s", allow);
        if (!strcmp(q->method, "OPTIONS"))
            sv_reply_empty(q, 204);
        else
            sv_reply_problem(q, problem, NULL, "%.16s is not possible here; possible: %s", q->method, allow);
        return;
    }
    if (!q->route) {
        sv_reply_problem(q, problem, NULL, "there is nothing at %.200s", q->target.path);
        return;
    }
    if (!check_query(q))
        return;
    if ((q->route->flags & SV_NOT_DRAINING) && atomic_load(&q->http->draining)) {
        sv_reply_problem(q, SV_P_DRAINING, NULL, "the daemon is shutting down and takes no new work");
        return;
    }
    if (q->route->flags & SV_TAKES_FILE &&
        !sv_content_type_is(sv_request_field(q, "Content-Type"), "application/json")) {
        if (sv_content_type_is(sv_request_field(q, "Content-Type"), "multipart/form-data"))
            sv_reply_problem(q, SV_P_UNSUPPORTED_TYPE, NULL,
                             "the body is the file itself (curl -T FILE URL), not a form");
        else
            sv_upload_begin(q);
    } else if (q->content_length > JSON_BODY_LIMIT) {
        sv_reply_problem(q, SV_P_TOO_LARGE, NULL, "the body has %lld bytes, the limit here is %d",
                         (long long)q->content_length, JSON_BODY_LIMIT);
    }
}

/* A refused body that is small is read to its end, so that the connection lives on and the answer is not lost in a reset. */
static bool may_swallow(const sv_request *q)
{
    return !q->expects_continue && q->content_length <= SWALLOW_LIMIT;
}

static void take_data(sv_request *q, const char *data, size_t n)
{
    if (q->reply.status) {
        q->swallowed += n;
        return;
    }
    if (q->upload)
        sv_upload_data(q, data, n);
    else if (!qd_buf_add(&q->body, data, n))
        sv_reply_problem(q, SV_P_TOO_LARGE, NULL, "the body has more than the %d bytes allowed here", JSON_BODY_LIMIT);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *data, size_t *data_size, void **context)
{
    sv_request *q = *context;
    if (!q || !q->raw_target)
        return MHD_NO; /* no memory for a request: the connection ends */
    q->method = method;
    if (!q->begun) {
        q->begun = true;
        sv_peer *peer = peer_of(connection);
        if (peer)
            sv_peer_due(q->http, peer, 0);
        begin_request(q, version);
        if (q->reply.status && (q->reply.close || (q->has_body && !may_swallow(q)))) {
            q->reply.close = true;
            return answer(q);
        }
        return MHD_YES;
    }
    if (*data_size) {
        take_data(q, data, *data_size);
        *data_size = 0;
        return q->swallowed > SWALLOW_LIMIT ? MHD_NO : MHD_YES;
    }
    if (!q->reply.status || q->parked) {
        q->parked = false;
        q->route->handle(q);
        if (q->parked)
            return MHD_YES; /* called again when somebody wakes it */
    }
    return answer(q);
}

/* --- the daemon --- */

/* Targets are decoded by target.c; here they stay as they came. */
static size_t leave_escaped(void *cls, struct MHD_Connection *connection, char *text)
{
    return strlen(text);
}

static void on_log(void *cls, const char *fmt, va_list ap)
{
    char text[256];
    vsnprintf(text, sizeof text, fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    sv_log(SV_DEBUG, "http_library", "words", text, NULL);
}

static qd_status listen_on(sv_http *h, int *family, qd_err *err)
{
    const sv_settings *s = h->o.settings;
    struct addrinfo hints = { .ai_family = AF_UNSPEC,
                              .ai_socktype = SOCK_STREAM,
                              .ai_flags = AI_PASSIVE | AI_NUMERICSERV };
    struct addrinfo *list = NULL;
    char port[16];
    snprintf(port, sizeof port, "%d", s->listen_port);
    const int rc = getaddrinfo(s->listen_host, port, &hints, &list);
    if (rc)
        return qd_fail(err, QD_E_INVALID, "listen address '%s': %s", s->listen_host, gai_strerror(rc));

    qd_status st = QD_OK;
    const int on = 1;
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    const int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, 256) ||
        getsockname(fd, (struct sockaddr *)&bound, &size)) {
        st = qd_fail(err, QD_E_IO, "cannot listen on %s:%d: %s", s->listen_host, s->listen_port, strerror(errno));
        if (fd >= 0)
            close(fd);
        goto out;
    }
    h->listen_fd = fd;
    h->port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                : ((struct sockaddr_in *)&bound)->sin_port);
    *family = list->ai_family;
out:
    freeaddrinfo(list);
    return st;
}

static void http_free(sv_http *h)
{
    sv_intake_free(h);
    sv_parks_stop(h);
    if (h->listen_fd >= 0)
        close(h->listen_fd);
    pthread_mutex_destroy(&h->files_lock);
    qd_free(h);
}

qd_status sv_http_start(const sv_http_options *o, sv_http **out, qd_err *err)
{
    int family = AF_INET;
    qd_status st;
    if (!o->settings->insecure && !sv_is_loopback(o->settings->listen_host))
        return qd_fail(
            err, QD_E_INVALID,
            "listening on '%s' would let everybody in: there are no keys yet; use a loopback address or --insecure",
            o->settings->listen_host);
    sv_http *h = qd_calloc(1, sizeof *h);
    if (!h)
        return qd_fail(err, QD_E_NOMEM, "no memory for the HTTP server");
    h->o = *o;
    h->listen_fd = -1;
    pthread_mutex_init(&h->files_lock, NULL);
    st = sv_parks_start(h, err);
    if (st)
        goto out;
    st = sv_intake_start(h, err);
    if (st)
        goto out;
    st = listen_on(h, &family, err);
    if (st)
        goto out;

    const unsigned flags = MHD_USE_EPOLL | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_ERROR_LOG | MHD_ALLOW_UPGRADE |
                           MHD_ALLOW_SUSPEND_RESUME | (family == AF_INET6 ? MHD_USE_IPv6 : 0);
    /* The logger first: it also gets the words about the options after it. */
    h->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, h, MHD_OPTION_LISTEN_SOCKET,
        h->listen_fd, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)o->settings->http_threads, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)CONNECTION_LIMIT, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_TIMEOUT_S, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_URI_LOG_CALLBACK, request_new, h, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_UNESCAPE_CALLBACK, leave_escaped, h, MHD_OPTION_END);
    if (!h->daemon) {
        st = qd_fail(err, QD_E_INTERNAL, "libmicrohttpd did not start on port %d", h->port);
        goto out;
    }
    *out = h;
    h = NULL;
out:
    if (h)
        http_free(h);
    return st;
}

int sv_http_port(const sv_http *h)
{
    return h->port;
}

void sv_http_drain(sv_http *h)
{
    atomic_store(&h->draining, true);
}

static void nap(int ms)
{
    const struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l };
    nanosleep(&t, NULL);
}

void sv_http_stop(sv_http *h)
{
    if (!h)
        return;
    sv_http_drain(h);
    atomic_store(&h->stopping, true);
    MHD_quiesce_daemon(h->daemon); /* the socket is ours again: http_free closes it */

    /* Streams end, waits answer with what they have; libmicrohttpd must not be stopped with a suspended connection. Idle
     * keep-alive connections hold no request. */
    for (int waited = 0; atomic_load(&h->requests_open) > atomic_load(&h->sockets_open) && waited < 2000;
         waited += 10) {
        sv_parks_wake_all(h);
        nap(10);
    }
    sv_intake_stop(h);
    sv_parks_wake_all(h);
    /* WebSockets are the loop's to close; it does so when it stops, which the application does before. */
    for (int waited = 0; atomic_load(&h->sockets_open) > 0 && waited < 3000; waited += 10)
        nap(10);
    if (atomic_load(&h->sockets_open) > 0) {
        sv_log(SV_ERROR, "http_sockets_left", "what", "the event loop did not give back its sockets", NULL);
        return; /* libmicrohttpd aborts the process when stopped now; what is left ends with it */
    }
    MHD_stop_daemon(h->daemon);
    http_free(h);
}
