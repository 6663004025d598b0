/* reply.c - replies as data: JSON, text, problems (RFC 9457), and the one table from failure to HTTP code. */
#include "http/http_int.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "log.h"

typedef struct problem_row {
    int status;
    const char *code, *title;
    bool retryable;
} problem_row;

static const problem_row problems[] = {
    [SV_P_BAD_REQUEST] = { 400, "bad_request", "Malformed request", false },
    [SV_P_MALFORMED_JSON] = { 400, "malformed_json", "Malformed JSON", false },
    [SV_P_INVALID_QUERY] = { 400, "invalid_query", "Invalid query parameter", false },
    [SV_P_FORBIDDEN_HOST] = { 403, "host_not_allowed", "Host not allowed", false },
    [SV_P_FORBIDDEN_ORIGIN] = { 403, "origin_not_allowed", "Origin not allowed", false },
    [SV_P_NOT_FOUND] = { 404, "not_found", "Not found", false },
    [SV_P_METHOD_NOT_ALLOWED] = { 405, "method_not_allowed", "Method not allowed", false },
    [SV_P_NOT_ACCEPTABLE] = { 406, "not_acceptable", "Not acceptable", false },
    [SV_P_CONFLICT] = { 409, "conflict", "Conflict", false },
    [SV_P_PRUNED] = { 410, "pruned", "Pruned", false },
    [SV_P_TOO_LARGE] = { 413, "too_large", "Content too large", false },
    [SV_P_TARGET_TOO_LONG] = { 414, "target_too_long", "Request target too long", false },
    [SV_P_UNSUPPORTED_TYPE] = { 415, "unsupported_media_type", "Unsupported media type", false },
    [SV_P_RANGE] = { 416, "range_not_satisfiable", "Range not satisfiable", false },
    [SV_P_INVALID_PARAM] = { 422, "invalid_param", "Invalid parameter", false },
    [SV_P_INVALID_MODEL] = { 422, "invalid_model", "Model cannot be read", false },
    [SV_P_INVALID_DATASET] = { 422, "invalid_dataset", "Data set cannot be read", false },
    [SV_P_KEY_REUSED] = { 422, "idempotency_key_reused", "Idempotency key reused", false },
    [SV_P_UPGRADE_REQUIRED] = { 426, "upgrade_required", "Upgrade required", false },
    [SV_P_FIELDS_TOO_LARGE] = { 431, "fields_too_large", "Request header fields too large", false },
    [SV_P_DRAINING] = { 503, "draining", "Draining", true },
    [SV_P_OVERLOADED] = { 503, "overloaded", "Too busy", true },
    [SV_P_STORAGE_FULL] = { 507, "storage_full", "No room on disk", true },
    [SV_P_INTERNAL] = { 500, "internal", "Internal error", true },
};

/* What a failed call means to a client. hide: the words may name files of ours, so they go to the log. */
typedef struct status_row {
    qd_status status;
    int http;
    const char *code, *title;
    bool retryable, hide;
} status_row;

static const status_row statuses[] = {
    { QD_E_INVALID, 422, "invalid_param", "Invalid parameter", false, false },
    { QD_E_FORMAT, 422, "bad_format", "Bytes do not follow their format", false, false },
    { QD_E_UNSUPPORTED, 422, "unsupported", "Not supported", false, false },
    { QD_E_LIMIT, 422, "limit_exceeded", "Larger than a limit", false, false },
    { QD_E_NOMEM, 503, "out_of_memory", "Out of memory", true, false },
    { QD_E_IO, 500, "io_error", "Storage failed", true, true },
    { QD_E_NOT_FOUND, 404, "not_found", "Not found", false, false },
    { QD_E_CONFLICT, 409, "conflict", "Conflict", false, false },
    { QD_E_CANCELLED, 409, "canceled", "Canceled", true, false },
    { QD_E_NUMERIC, 422, "numeric", "Not a number", false, false },
    { QD_E_INTERNAL, 500, "internal", "Internal error", true, true },
};

void sv_reply_init(sv_reply *r)
{
    *r = (sv_reply){ .fd = -1 };
}

/* Everything but the fields: some, like Allow, are set before the problem that needs them. */
static void clear_body(sv_reply *r)
{
    qd_free(r->bytes);
    if (r->fd >= 0)
        close(r->fd);
    sv_stream_free(r->stream);
    r->bytes = NULL;
    r->lent = NULL;
    r->fd = -1;
    r->stream = NULL;
    r->kind = SV_BODY_NONE;
    r->size = r->offset = 0;
}

void sv_reply_clear(sv_reply *r)
{
    clear_body(r);
    for (int i = 0; i < r->field_count; i++) {
        qd_free(r->fields[i].name);
        qd_free(r->fields[i].value);
    }
    sv_reply_init(r);
}

void sv_reply_field(sv_request *q, const char *name, const char *fmt, ...)
{
    sv_reply *r = &q->reply;
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof text || r->field_count == (int)(sizeof r->fields / sizeof r->fields[0]))
        return;
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = ' '; /* a header is one line, whatever a name in it says */
    sv_field f = { .name = qd_strdup(name), .value = qd_strdup(text) };
    if (!f.name || !f.value) {
        qd_free(f.name);
        qd_free(f.value);
        return;
    }
    if (!strcmp(name, "Cache-Control"))
        r->cache_decided = true;
    r->fields[r->field_count++] = f;
}

void sv_reply_text(sv_request *q, int status, const char *type, char *text, size_t size)
{
    sv_reply *r = &q->reply;
    clear_body(r);
    r->status = status;
    r->kind = SV_BODY_BYTES;
    r->bytes = text;
    r->size = size;
    sv_reply_field(q, "Content-Type", "%s", type);
}

void sv_reply_lent(sv_request *q, int status, const char *type, const void *data, size_t size)
{
    sv_reply *r = &q->reply;
    clear_body(r);
    r->status = status;
    r->kind = SV_BODY_LENT;
    r->lent = data;
    r->size = size;
    sv_reply_field(q, "Content-Type", "%s", type);
}

void sv_reply_empty(sv_request *q, int status)
{
    clear_body(&q->reply);
    q->reply.status = status;
    q->reply.kind = SV_BODY_NONE;
}

static int dump_piece(const char *data, size_t n, void *ctx)
{
    return qd_buf_add(ctx, data, n) ? 0 : -1;
}

/* jansson's own dumps would come from its heap and count nowhere. */
bool sv_json_dump(const json_t *body, qd_buf *out)
{
    qd_buf_init(out, 0);
    if (body && !json_dump_callback(body, dump_piece, out, JSON_COMPACT | JSON_ENCODE_ANY) && qd_buf_adds(out, "\n"))
        return true;
    qd_buf_clear(out);
    return false;
}

/* The last resort, when there is no memory to say anything better: a constant. */
static void reply_no_memory(sv_request *q)
{
    static const char text[] =
        "{\"type\":\"https://quantd.dev/problems/out-of-memory\",\"title\":\"Out of memory\",\"status\":503,"
        "\"code\":\"out_of_memory\",\"detail\":\"the daemon is out of memory\",\"retryable\":true}\n";
    sv_reply_lent(q, 503, "application/problem+json", text, sizeof text - 1);
}

void sv_reply_json(sv_request *q, int status, json_t *body)
{
    qd_buf text;
    const bool ok = sv_json_dump(body, &text);
    json_decref(body);
    if (!ok) {
        reply_no_memory(q);
        return;
    }
    size_t size = 0;
    char *bytes = qd_buf_take(&text, &size);
    sv_reply_text(q, status, "application/json", bytes, size);
}

/* Text from outside may end anywhere; JSON wants UTF-8. Bytes that are not are shown as '?'. */
static json_t *safe_string(const char *text)
{
    json_t *s = json_string(text);
    if (s)
        return s;
    char *copy = qd_strdup(text);
    if (!copy)
        return NULL;
    for (char *p = copy; *p; p++)
        if ((unsigned char)*p >= 0x80)
            *p = '?';
    s = json_string(copy);
    qd_free(copy);
    return s;
}

static void drop_field(sv_reply *r, const char *name)
{
    for (int i = 0; i < r->field_count;) {
        if (strcmp(r->fields[i].name, name)) {
            i++;
            continue;
        }
        qd_free(r->fields[i].name);
        qd_free(r->fields[i].value);
        r->fields[i] = r->fields[--r->field_count];
    }
}

static void reply_problem(sv_request *q, int status, const char *code, const char *title, bool retryable,
                          const char *pointer, const char *detail)
{
    char type[96];
    snprintf(type, sizeof type, "https://quantd.dev/problems/%s", code);
    for (char *p = type; *p; p++)
        if (*p == '_')
            *p = '-';
    json_t *body = json_pack("{ss ss si ss so* ss sb}", "type", type, "title", title, "status", status, "code", code,
                             "detail", safe_string(detail), "request_id", q->id, "retryable", retryable);
    if (body && pointer && *pointer) {
        json_object_set_new(body, "param", safe_string(pointer));
        json_object_set_new(body, "errors",
                            json_pack("[{so* so*}]", "pointer", safe_string(pointer), "detail", safe_string(detail)));
    }
    qd_buf text;
    const bool ok = sv_json_dump(body, &text);
    json_decref(body);
    drop_field(&q->reply, "Content-Type");
    drop_field(&q->reply, "ETag");
    if (!ok) {
        reply_no_memory(q);
        return;
    }
    size_t size = 0;
    char *bytes = qd_buf_take(&text, &size);
    sv_reply_text(q, status, "application/problem+json", bytes, size);
    if (status == 503)
        sv_reply_field(q, "Retry-After", "%d", 10);
}

void sv_reply_problem(sv_request *q, sv_problem p, const char *pointer, const char *fmt, ...)
{
    char detail[768];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(detail, sizeof detail, fmt, ap);
    va_end(ap);
    const problem_row *row = &problems[p];
    reply_problem(q, row->status, row->code, row->title, row->retryable, pointer, detail);
}

void sv_reply_error(sv_request *q, qd_status st, const qd_err *err, const char *pointer)
{
    const status_row *row = &statuses[sizeof statuses / sizeof statuses[0] - 1];
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++)
        if (statuses[i].status == st)
            row = &statuses[i];
    if (row->hide)
        sv_log(SV_ERROR, "request_failed", "request", q->id, "status", qd_status_name(st), "words", err->text, NULL);
    reply_problem(q, row->http, row->code, row->title, row->retryable, pointer,
                  row->hide ? "the daemon could not do this; its log has the words under this request_id" : err->text);
}

json_t *sv_list_json(json_t *data, bool more, const char *cursor)
{
    json_t *list = json_pack("{ss so sb}", "object", "list", "data", data, "has_more", more);
    if (list)
        json_object_set_new(list, "next_cursor", more && cursor ? json_string(cursor) : json_null());
    return list;
}

json_t *sv_request_json(sv_request *q)
{
    const char *type = sv_request_field(q, "Content-Type");
    if (!sv_content_type_is(type, "application/json")) {
        sv_reply_problem(q, SV_P_UNSUPPORTED_TYPE, NULL, "the body must be application/json, not %.100s",
                         type ? type : "of no stated type");
        return NULL;
    }
    if (!sv_json_depth_ok(q->body.data ? q->body.data : "", q->body.size, 32)) {
        sv_reply_problem(q, SV_P_MALFORMED_JSON, NULL, "the body is nested deeper than 32 arrays and objects");
        return NULL;
    }
    json_error_t e;
    json_t *body = json_loadb(q->body.data ? q->body.data : "", q->body.size, JSON_REJECT_DUPLICATES, &e);
    if (!body) {
        sv_reply_problem(q, SV_P_MALFORMED_JSON, NULL, "line %d, column %d: %s", e.line, e.column, e.text);
        return NULL;
    }
    if (!json_is_object(body)) {
        json_decref(body);
        sv_reply_problem(q, SV_P_MALFORMED_JSON, NULL, "the body must be a JSON object");
        return NULL;
    }
    return body;
}

bool sv_request_int(sv_request *q, const char *name, int64_t min, int64_t max, int64_t fallback, int64_t *out)
{
    const char *text = sv_target_query(&q->target, name);
    *out = fallback;
    if (!text || sv_parse_int64(text, min, max, out))
        return true;
    sv_reply_problem(q, SV_P_INVALID_QUERY, name, "%s must be a whole number from %lld to %lld, got '%.40s'", name,
                     (long long)min, (long long)max, text);
    return false;
}
