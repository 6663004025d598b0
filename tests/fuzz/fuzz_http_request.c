/* fuzz_http_request.c - any bytes as a request's target and fields: refused in words, or what comes out keeps its promises.
 *
 * Lines of the input: target, Range, If-None-Match, Accept, Prefer, Host, Origin, Sec-WebSocket-Key. */
#include "fuzz.h"

#include <string.h>

#include "base/mem.h"
#include "http/http_int.h"

static void try_target(const char *line)
{
    sv_target t = { 0 };
    qd_err err = { 0 };
    const char *captures[2];
    char allow[64];
    sv_problem problem;
    const qd_status st = sv_target_parse(line, &t, &err);
    if (st) {
        must(!t.memory && err.text[0] && (st == QD_E_INVALID || st == QD_E_LIMIT));
        return;
    }
    must(t.path[0] == '/' && t.segment_count >= 0 && t.segment_count <= SV_MAX_SEGMENTS + 1);
    for (int i = 0; i < t.segment_count && i < SV_MAX_SEGMENTS; i++)
        must(!strpbrk(t.segments[i], "/\\\n\r") && strcmp(t.segments[i], "..") && strcmp(t.segments[i], "."));
    must(t.query_count <= SV_MAX_QUERY);
    for (int i = 0; i < t.query_count; i++)
        must(t.query[i].name && t.query[i].value && sv_target_query(&t, t.query[i].name) == t.query[i].value);
    const sv_route *r = sv_route_find("GET", &t, captures, &problem, allow);
    must(r || problem == SV_P_NOT_FOUND ||
         (problem == SV_P_METHOD_NOT_ALLOWED && allow[0] && strlen(allow) < sizeof allow));
    sv_target_clear(&t);
}

static void try_fields(char *const line[8])
{
    static const char *const offered[] = { "application/json", "text/event-stream", "application/x-ndjson" };
    static const uint64_t sizes[] = { 0, 1, 10, UINT64_MAX };
    for (int i = 0; i < 4; i++) {
        uint64_t first = 0, length = 0;
        if (sv_range_parse(line[1], sizes[i], &first, &length) == SV_RANGE_ONE)
            must(length > 0 && first < sizes[i] && length <= sizes[i] - first);
    }
    sv_etag_in(line[2], "\"0123\"");
    const int kind = sv_accept_pick(line[3], offered, 3);
    must(kind >= -1 && kind < 3);
    const int seconds = sv_prefer_wait(line[4]);
    must(seconds >= -1 && seconds <= 30);
    if (sv_host_allowed(line[5], "127.0.0.1"))
        must(!strpbrk(line[5], "/@ "));
    if (sv_origin_matches(line[6], line[5]))
        must(!strncasecmp(line[6], "http", 4));
    if (sv_ws_key_ok(line[7])) {
        char accept[29];
        sv_ws_accept(line[7], accept);
        must(strlen(accept) == 28);
    }
    for (int i = 0; i < 8; i++) {
        int64_t v = 5;
        if (sv_parse_int64(line[i], -3, 7, &v))
            must(v >= -3 && v <= 7);
        else
            must(v == 5);
        sv_list_has(line[i], "quantd.v1");
        sv_content_type_is(line[i], "application/json");
        sv_upload_name_ok(line[i]);
        sv_json_depth_ok(line[i], strlen(line[i]), 3);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *copy = qd_strndup((const char *)data, size), *line[8];
    char *rest = copy;
    if (!copy)
        return 0;
    for (int i = 0; i < 8; i++) {
        char *end = strchr(rest, '\n');
        line[i] = rest;
        rest = end ? end + 1 : rest + strlen(rest);
        if (end)
            *end = '\0';
    }
    try_target(line[0]);
    try_fields(line);
    qd_free(copy);
    return 0;
}
