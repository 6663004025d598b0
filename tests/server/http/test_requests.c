/* test_requests.c - the door itself: what every answer carries, what is refused and how, framing, draining, the handshake. */
#include "http_common.h"

static void front_page_by_accept(void **state)
{
    server s;
    server_start(&s, 1 << 20);
    answer a = ask(&s, "GET", "/", NULL);
    assert_int_equal(a.status, 200);
    assert_string_equal(text_of(&a, "object"), "discovery");
    assert_string_equal(field(&a, "Vary"), "Accept");
    answer_clear(&a);

    a = ask(&s, "GET", "/", "Accept: text/html,*/*;q=0.8\r\n");
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(field(&a, "Content-Type"), "text/html"));
    assert_non_null(strstr(a.body.data, "<!doctype html>"));
    char condition[200];
    snprintf(condition, sizeof condition, "Accept: text/html\r\nIf-None-Match: %s\r\n", field(&a, "ETag"));
    answer_clear(&a);
    a = ask(&s, "GET", "/", condition);
    assert_int_equal(a.status, 304);
    assert_null(field(&a, "Content-Type"));
    answer_clear(&a);

    a = ask(&s, "GET", "/style.css", NULL);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(field(&a, "Content-Type"), "text/css"));
    answer_clear(&a);
    check_problem(ask(&s, "GET", "/", "Accept: image/png\r\n"), 406, "not_acceptable", NULL);
    server_stop(&s);
}

static void every_answer_is_guarded(void **state)
{
    static const char *const paths[] = { "/",         "/healthz", "/readyz",    "/metrics",   "/openapi.json",
                                         "/v1/kinds", "/v1/jobs", "/v1/models", "/style.css", "/nothing" };
    server s;
    server_start(&s, 1 << 20);
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        answer a = ask(&s, "GET", paths[i], NULL), h = ask(&s, "HEAD", paths[i], NULL);
        assert_int_equal(a.status, strcmp(paths[i], "/nothing") ? 200 : 404);
        assert_int_equal(h.status, a.status);
        assert_true(strncmp(field(&a, "X-Request-Id"), "req_", 4) == 0);
        assert_string_not_equal(field(&a, "X-Request-Id"), field(&h, "X-Request-Id"));
        assert_string_equal(field(&a, "X-Content-Type-Options"), "nosniff");
        assert_string_equal(field(&a, "Referrer-Policy"), "no-referrer");
        assert_non_null(strstr(field(&a, "Content-Security-Policy"), "default-src 'none'; script-src 'self'"));
        assert_non_null(strstr(field(&a, "Content-Security-Policy"), "frame-ancestors 'none'"));
        assert_non_null(field(&a, "Cache-Control"));
        assert_null(field(&a, "Server"));
        assert_null(field(&a, "Access-Control-Allow-Origin"));
        if (strcmp(paths[i], "/metrics") && strcmp(paths[i], "/readyz") && strcmp(paths[i], "/healthz"))
            assert_string_equal(field(&a, "Content-Length"), field(&h, "Content-Length"));
        answer_clear(&a);
        answer_clear(&h);
    }
    server_stop(&s);
}

static void figures(void **state)
{
    server s;
    server_start(&s, 1 << 20);
    check_status(ask(&s, "GET", "/nothing", NULL), 404);
    answer a = ask(&s, "GET", "/metrics", NULL);
    assert_non_null(strstr(field(&a, "Content-Type"), "text/plain; version=0.0.4"));
    assert_non_null(strstr(a.body.data, "quantd_http_requests_total{method=\"GET\",code=\"404\"} 1\n"));
    assert_non_null(strstr(a.body.data, "\nquantd_queue_depth 0\n"));
    assert_non_null(strstr(a.body.data, "\nquantd_workers 0\n"));
    assert_non_null(strstr(a.body.data, "\nquantd_websockets 0\n"));
    assert_non_null(strstr(a.body.data, "# TYPE quantd_jobs_total"));
    assert_non_null(strstr(a.body.data, "\nprocess_resident_memory_bytes "));
    answer_clear(&a);
    server_stop(&s);
}

static void what_is_not_there(void **state)
{
    server s;
    server_start(&s, 1 << 20);
    check_problem(ask(&s, "GET", "/nothing", NULL), 404, "not_found", "/nothing");
    check_problem(ask(&s, "GET", "/v1/jobs/", NULL), 404, "not_found", NULL);
    check_problem(ask(&s, "GET", "/v1/jobs/job_none", NULL), 404, "not_found", "job_none");
    check_problem(ask(&s, "GET", "/v1/models/mdl_none", NULL), 404, "not_found", "mdl_none");
    check_problem(ask(&s, "GET", "/v1/kinds/magic", NULL), 404, "not_found", "magic");
    check_problem(ask(&s, "POST", "/v1/jobs/job_none/cancel", NULL), 404, "not_found", NULL);
    check_problem(ask(&s, "GET", "/v1/jobs/job_none/events", NULL), 404, "not_found", NULL);
    check_problem(ask(&s, "GET", "/v1/jobs/a%2fb", NULL), 400, "bad_request", "slash");
    check_problem(ask(&s, "GET", "/%00", NULL), 400, "bad_request", "control");
    check_problem(ask(&s, "GET", "/v1/../v1/jobs", NULL), 400, "bad_request", "'..'");
    check_problem(ask(&s, "GET", "/v1/jobs?limti=5", NULL), 400, "invalid_query",
                  "known: status, kind, limit, after, order");
    check_problem(ask(&s, "GET", "/v1/jobs?limit=101", NULL), 400, "invalid_query", "1 to 100");
    check_problem(ask(&s, "GET", "/v1/jobs?status=happy", NULL), 400, "invalid_query", "happy");
    check_problem(ask(&s, "GET", "/v1/jobs?kind=magic", NULL), 400, "invalid_query", "magic");
    check_problem(ask(&s, "GET", "/v1/jobs?order=up", NULL), 400, "invalid_query", "up");
    check_problem(ask(&s, "GET", "/v1/jobs?after=job_none", NULL), 400, "invalid_query", NULL);

    answer a = ask(&s, "DELETE", "/v1/jobs", NULL);
    assert_string_equal(field(&a, "Allow"), "POST, GET, HEAD, OPTIONS");
    check_problem(a, 405, "method_not_allowed", "DELETE");
    a = ask(&s, "PATCH", "/style.css", NULL);
    assert_string_equal(field(&a, "Allow"), "GET, HEAD, OPTIONS");
    check_problem(a, 405, "method_not_allowed", NULL);
    a = ask(&s, "OPTIONS", "/v1/jobs/x/cancel", NULL);
    assert_string_equal(field(&a, "Allow"), "POST, OPTIONS");
    check_status(a, 204);
    server_stop(&s);
}

static void bodies_that_are_not_json(void **state)
{
    server s;
    char *deep = qd_alloc(200), *large = qd_alloc((1 << 20) + 2);
    server_start(&s, 1 << 20);
    check_problem(post_json(&s, "POST", "/v1/jobs", NULL, "{"), 400, "malformed_json", "line 1");
    check_problem(post_json(&s, "POST", "/v1/jobs", NULL, ""), 400, "malformed_json", NULL);
    check_problem(post_json(&s, "POST", "/v1/jobs", NULL, "[]"), 400, "malformed_json", "object");
    check_problem(post_json(&s, "POST", "/v1/jobs", NULL, "{\"kind\":1,\"kind\":2}"), 400, "malformed_json",
                  "duplicate");
    check_problem(post_json(&s, "POST", "/v1/jobs", NULL, "{} {}"), 400, "malformed_json", NULL);
    check_problem(post_json(&s, "POST", "/v1/jobs", NULL, "{\"a\":\"\xff\"}"), 400, "malformed_json", NULL);
    check_problem(post_json(&s, "POST", "/v1/jobs", NULL, "{\"a\":1e999}"), 400, "malformed_json", NULL);
    memset(deep, '[', 199);
    deep[199] = '\0';
    check_problem(post_json(&s, "POST", "/v1/jobs", NULL, deep), 400, "malformed_json", "deeper than 32");
    check_problem(ask_with(&s, "POST", "/v1/jobs", "Content-Type: text/plain\r\n", "{}", 2), 415,
                  "unsupported_media_type", "text/plain");
    check_problem(ask_with(&s, "POST", "/v1/jobs", NULL, "{}", 2), 415, "unsupported_media_type", NULL);
    memset(large, ' ', (1 << 20) + 1);
    large[(1 << 20) + 1] = '\0';
    check_problem(post_json(&s, "POST", "/v1/jobs", NULL, large), 413, "too_large", "1048576");
    /* The pointer says where. */
    answer a = post_json(&s, "POST", "/v1/jobs", NULL, "{\"kind\":\"magic\"}");
    assert_string_equal(text_of(&a, "param"), "/kind");
    check_problem(a, 422, "invalid_param", "magic");
    qd_free(deep);
    qd_free(large);
    server_stop(&s);
}

static void strange_hosts_and_origins(void **state)
{
    server s;
    char lines[200];
    server_start(&s, 1 << 20);
    static const struct {
        const char *method, *host, *origin;
        int status;
    } rows[] = {
        { "GET", "localhost", NULL, 200 },
        { "GET", "[::1]:1", NULL, 200 },
        { "GET", "evil.example", NULL, 403 },
        { "GET", "evil.example:8420", "http://evil.example:8420", 403 },
        { "GET", "localhost", "http://evil", 200 },
        { "POST", "localhost", "http://evil", 403 },
        { "POST", "localhost", "null", 403 },
        { "POST", "localhost", "http://localhost", 415 },
        { "POST", "localhost:99", "http://localhost", 403 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const int fd = dial(&s);
        const int n = snprintf(lines, sizeof lines, "%s /v1/jobs HTTP/1.1\r\nHost: %s\r\n%s%s%s%s\r\n", rows[i].method,
                               rows[i].host, rows[i].origin ? "Origin: " : "", rows[i].origin ? rows[i].origin : "",
                               rows[i].origin ? "\r\n" : "", *rows[i].method == 'P' ? "Content-Length: 0\r\n" : "");
        say(fd, lines, (size_t)n);
        answer a = hear(fd, false, NULL);
        if (a.status != rows[i].status)
            fail_msg("%s to %s from %s: %d", rows[i].method, rows[i].host, rows[i].origin, a.status);
        answer_clear(&a);
        close(fd);
    }
    /* An absolute target names a host too. */
    check_problem(ask(&s, "GET", "http://evil.example/v1/jobs", NULL), 403, "host_not_allowed", NULL);
    check_status(ask(&s, "GET", "http://localhost/v1/jobs", NULL), 200);
    server_stop(&s);
}

/* Whatever two readers of a connection could understand differently: refused, and nothing after it is answered. */
static void framing_that_can_be_read_twice(void **state)
{
    static const char *const rows[] = {
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\n{}",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0, 2\r\n\r\n{}",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: +2\r\n\r\n{}",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x2\r\n\r\n{}",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{}",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n{}",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/jobs HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length : 2\r\n\r\n{}",
        "GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        "GET /v1/jobs HTTP/1.1\r\n\r\n",
        "GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-A\x01: b\r\n\r\n",
    };
    server s;
    server_start(&s, 1 << 20);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        static const char next[] = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        const int fd = dial(&s);
        say(fd, rows[i], strlen(rows[i]));
        say(fd, next, sizeof next - 1);
        answer a = hear(fd, false, NULL);
        if (a.status != 400)
            fail_msg("%s: %d", rows[i], a.status);
        answer_clear(&a);
        a = hear(fd, false, NULL);
        if (a.status != 0 || a.timed_out)
            fail_msg("%s: the connection lives on, the next answer is %d", rows[i], a.status);
        answer_clear(&a);
        close(fd);
    }
    /* Header fields without end. */
    qd_buf b;
    qd_buf_init(&b, 0);
    qd_buf_adds(&b, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n");
    for (int i = 0; i < 600; i++)
        qd_buf_addf(&b, "X-%d: %0100d\r\n", i, i);
    qd_buf_adds(&b, "\r\n");
    const int fd = dial(&s);
    say(fd, b.data, b.size);
    answer a = hear(fd, false, NULL);
    assert_int_equal(a.status, 431);
    answer_clear(&a);
    close(fd);
    qd_buf_clear(&b);
    check_status(ask(&s, "GET", "/healthz", NULL), 200);
    server_stop(&s);
}

static void keep_alive_and_pipelines(void **state)
{
    static const char two[] =
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n";
    static const char refused[] = "POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
                                  "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    server s;
    server_start(&s, 1 << 20);
    const int fd = dial(&s);
    say(fd, two, sizeof two - 1);
    check_status(hear(fd, false, NULL), 200);
    check_status(hear(fd, false, NULL), 404);
    /* A small body that nobody wants is read to its end, and the connection goes on. */
    say(fd, refused, sizeof refused - 1);
    check_status(hear(fd, false, NULL), 404);
    check_status(hear(fd, false, NULL), 200);
    close(fd);
    server_stop(&s);
}

static void draining(void **state)
{
    server s;
    server_start(&s, 1 << 20);
    sv_http_drain(s.http);
    answer a = post_json(&s, "POST", "/v1/jobs", NULL, "{}");
    assert_string_equal(field(&a, "Retry-After"), "10");
    check_problem(a, 503, "draining", NULL);
    check_problem(ask_with(&s, "PUT", "/v1/models/m", NULL, "x", 1), 503, "draining", NULL);
    a = ask(&s, "GET", "/readyz", NULL);
    assert_int_equal(a.status, 503);
    assert_string_equal(text_of(&a, "status"), "DRAINING");
    answer_clear(&a);
    check_status(ask(&s, "GET", "/healthz", NULL), 200);
    check_status(ask(&s, "GET", "/v1/jobs", NULL), 200);
    assert_int_equal(left_on_disk(&s), 0);
    server_stop(&s);
}

static void websocket_handshake(void **state)
{
    static const char good[] =
        "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: other, quantd.v1\r\n";
    char lines[600];
    server s;
    server_start(&s, 1 << 20);
    answer a = ask(&s, "GET", "/v1/ws", good);
    assert_int_equal(a.status, 101);
    assert_string_equal(field(&a, "Sec-WebSocket-Accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_string_equal(field(&a, "Sec-WebSocket-Protocol"), "quantd.v1");
    answer_clear(&a);

    check_problem(ask(&s, "GET", "/v1/ws", NULL), 426, "upgrade_required", NULL);
    check_problem(ask(&s, "GET", "/v1/ws", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n"),
                  426, "upgrade_required", "13");
    check_problem(
        ask(&s, "GET", "/v1/ws", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"), 400,
        "bad_request", "Key");
    snprintf(lines, sizeof lines, "Origin: http://evil.example\r\n%s", good);
    check_problem(ask(&s, "GET", "/v1/ws", lines), 403, "origin_not_allowed", "evil.example");
    snprintf(lines, sizeof lines, "Origin: http://127.0.0.1:%d\r\n%s", s.port, good);
    check_status(ask(&s, "GET", "/v1/ws", lines), 101);

    /* One that stays open while the server stops gets 1001 and is given back. */
    const int fd = dial(&s);
    const int n = snprintf(lines, sizeof lines, "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\n%s\r\n", good);
    say(fd, lines, (size_t)n);
    check_status(hear(fd, false, NULL), 101);
    const int64_t start = clock_ms();
    server_stop(&s);
    assert_true(clock_ms() - start < 5000);
    unsigned char end[4];
    assert_int_equal(recv(fd, end, sizeof end, MSG_WAITALL), 4);
    assert_int_equal(end[0], 0x88);
    assert_int_equal(end[2] << 8 | end[3], 1001);
    close(fd);
}

static void documents_fit_the_table(void **state)
{
    char *text = sv_openapi_text(), *events = sv_events_schema_text(), *again = sv_openapi_text();
    assert_non_null(text);
    assert_string_equal(text, again);
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, NULL), *e = json_loads(events, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(o);
    assert_non_null(e);
    assert_string_equal(json_string_value(json_object_get(o, "openapi")), "3.1.0");
    json_t *paths = json_object_get(o, "paths");
    assert_non_null(json_object_get(json_object_get(paths, "/v1/jobs/{id}/events"), "get"));
    assert_non_null(json_object_get(json_object_get(paths, "/v1/models/{name}"), "put"));
    assert_non_null(json_object_get(json_object_get(paths, "/v1/blobs/sha256:{hex}"), "head"));
    /* Every reference leads somewhere. */
    json_t *schemas = json_object_get(json_object_get(o, "components"), "schemas");
    for (const char *p = text; (p = strstr(p, "#/components/schemas/")); p++) {
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(p + 21, "\""), p + 21);
        if (!json_object_get(schemas, name))
            fail_msg("no schema '%s'", name);
    }
    const char *const types[] = { "state",    "progress", "metric",  "layer", "sample",
                                  "artifact", "log",      "warning", "reset", "end" };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        assert_non_null(strstr(events, types[i]));
    json_decref(o);
    json_decref(e);
    qd_free(text);
    qd_free(again);
    qd_free(events);
}

static void strangers_cannot_listen(void **state)
{
    qd_err err = { 0 };
    sv_http *h = NULL;
    sv_settings settings = { .listen_host = W("0.0.0.0"), .data_dir = W("/nonexistent"), .http_threads = 1 };
    check_fails(sv_http_start(&(sv_http_options){ .settings = &settings }, &h, &err), QD_E_INVALID, "--insecure", &err);
    assert_null(h);
}

/* Every allocation of a request fails once, in turn: an answer or a closed connection, never a crash, and the next one works. */
static void out_of_memory_in_turn(void **state)
{
    static const char *const requests[] = {
        "GET /v1/jobs?limit=5 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /style.css HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"kind\":\"magic\"",
        "PUT /v1/models/m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
        "PUT /v1/models/m HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    };
    server s;
    server_start(&s, 1 << 20);
    for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++) {
        bool hit = true;
        for (long k = 0; hit && k < 200; k++) {
            const int fd = dial(&s);
            nap_ms(2); /* accepted; what fails belongs to the request */
            qd_mem_fault_set(k);
            say(fd, requests[i], strlen(requests[i]));
            shutdown(fd, SHUT_WR);
            char status[13] = "";
            const ssize_t n = recv(fd, status, 12, MSG_WAITALL);
            hit = qd_mem_fault_hit();
            qd_mem_fault_set(-1);
            if (n > 0 && (n < 12 || strncmp(status, "HTTP/1.1 ", 9)))
                fail_msg("allocation %ld of request %zu: '%s'", k, i, status);
            close(fd);
        }
        assert_false(hit); /* all of them had their turn */
        check_status(ask(&s, "GET", "/healthz", NULL), 200);
    }
    for (int i = 0; i < 200 && left_on_disk(&s); i++)
        nap_ms(10);
    assert_int_equal(left_on_disk(&s), 0);
    server_stop(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(front_page_by_accept),
        cmocka_unit_test(every_answer_is_guarded),
        cmocka_unit_test(figures),
        cmocka_unit_test(what_is_not_there),
        cmocka_unit_test(bodies_that_are_not_json),
        cmocka_unit_test(strange_hosts_and_origins),
        cmocka_unit_test(framing_that_can_be_read_twice),
        cmocka_unit_test(keep_alive_and_pipelines),
        cmocka_unit_test(draining),
        cmocka_unit_test(websocket_handshake),
        cmocka_unit_test(documents_fit_the_table),
        cmocka_unit_test(strangers_cannot_listen),
        cmocka_unit_test(out_of_memory_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
