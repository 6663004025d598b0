/* test_jobs_api.c - jobs over HTTP: submit once, wait, list, forget; events from any number on, live too; files in pieces. */
#include "http_common.h"

#define GOOD "{\"kind\":\"sample\",\"model\":\"den\",\"params\":{\"steps\":5,\"seed\":%d}}"

/* A model by its row alone: nothing here runs. */
static void add_model(const server *s)
{
    qd_err err = { 0 };
    bool existing;
    const sv_model_row row = { .name = W("den"),
                               .sha256 = W("00"),
                               .path = W("models/none"),
                               .format = W("diffusers"),
                               .role = W("denoiser"),
                               .summary = W("{}"),
                               .job_id = W(""),
                               .created_ms = 1000 };
    sv_model_row out = { 0 };
    check_ok(sv_models_add(s->store, &row, &out, &existing, &err), &err);
    sv_model_row_clear(&out);
}

static const char *submit(const server *s, int seed)
{
    static char ids[8][64];
    static int at;
    char body[256];
    at = (at + 1) % 8;
    snprintf(body, sizeof body, GOOD, seed);
    answer a = post_json(s, "POST", "/v1/jobs", NULL, body);
    if (a.status != 202)
        fail_msg("%d: %s", a.status, a.body.data);
    snprintf(ids[at], sizeof ids[at], "%s", text_of(&a, "id"));
    answer_clear(&a);
    return ids[at];
}

/* Take the next job as a worker would; its fence. */
static int64_t claim(const server *s, const char *id)
{
    qd_err err = { 0 };
    sv_job_row job = { 0 };
    check_ok(sv_jobs_claim(s->store, "test", sv_now_ms(), 60000, &job, &err), &err);
    assert_string_equal(job.id, id);
    const int64_t fence = job.fence;
    sv_job_row_clear(&job);
    return fence;
}

static void add_event(const server *s, const char *id, int64_t fence, const char *type, const char *data)
{
    qd_err err = { 0 };
    int64_t seq;
    check_ok(sv_events_add(s->store, id, fence, 1, type, data, sv_now_ms(), &seq, &err), &err);
    sv_publish_since(s->store, s->bus, id, seq - 1);
}

static void finish(const server *s, const char *id, int64_t fence)
{
    qd_err err = { 0 };
    int64_t seq;
    check_ok(sv_jobs_finish(s->store, id, fence, "succeeded", "", "{\"images\":1}", sv_now_ms(), &seq, &err), &err);
    sv_publish_since(s->store, s->bus, id, seq - 2);
}

static void submitted_once(void **state)
{
    server s;
    char path[200], id[64], body[256];
    server_start(&s, 1 << 20);
    add_model(&s);
    snprintf(body, sizeof body, GOOD, 1);
    answer a = post_json(&s, "POST", "/v1/jobs", "Idempotency-Key: k1\r\n", body);
    assert_int_equal(a.status, 202);
    snprintf(id, sizeof id, "%s", text_of(&a, "id"));
    snprintf(path, sizeof path, "/v1/jobs/%s", id);
    assert_string_equal(field(&a, "Location"), path);
    assert_string_equal(text_of(&a, "status"), "queued");
    assert_null(field(&a, "Idempotency-Replayed"));
    answer_clear(&a);

    a = post_json(&s, "POST", "/v1/jobs", "Idempotency-Key: k1\r\n", body);
    assert_int_equal(a.status, 202);
    assert_string_equal(text_of(&a, "id"), id);
    assert_string_equal(field(&a, "Idempotency-Replayed"), "true");
    answer_clear(&a);
    snprintf(body, sizeof body, GOOD, 2);
    check_problem(post_json(&s, "POST", "/v1/jobs", "Idempotency-Key: k1\r\n", body), 422, "idempotency_key_reused",
                  "k1");
    check_problem(post_json(&s, "POST", "/v1/jobs", "Idempotency-Key: a b\r\n", body), 400, "bad_request",
                  "Idempotency-Key");

    /* By an id of the client's own. */
    a = post_json(&s, "PUT", "/v1/jobs/mine-1", NULL, body);
    assert_int_equal(a.status, 202);
    assert_string_equal(text_of(&a, "id"), "mine-1");
    answer_clear(&a);
    check_status(post_json(&s, "PUT", "/v1/jobs/mine-1", NULL, body), 202);
    snprintf(body, sizeof body, GOOD, 3);
    check_problem(post_json(&s, "PUT", "/v1/jobs/mine-1", NULL, body), 409, "conflict", "mine-1");
    check_problem(post_json(&s, "PUT", "/v1/jobs/a%20b", NULL, body), 422, "invalid_param", "a b");
    check_problem(post_json(&s, "PUT", "/v1/jobs/0123456789012345678901234567890123456789", NULL, body), 422,
                  "invalid_param", NULL);

    a = post_json(&s, "POST", "/v1/jobs", NULL, "{\"kind\":\"sample\",\"model\":\"none\",\"params\":{}}");
    assert_string_equal(text_of(&a, "param"), "/model");
    check_problem(a, 422, "invalid_param", "none");
    a = post_json(&s, "POST", "/v1/jobs", NULL, "{\"kind\":\"sample\",\"model\":\"den\",\"params\":{\"stpes\":1}}");
    assert_string_equal(text_of(&a, "param"), "/params/stpes");
    check_problem(a, 422, "invalid_param", "stpes");

    a = ask(&s, "GET", "/v1/jobs", NULL);
    json_t *o = json_of(&a);
    assert_int_equal(json_array_size(json_object_get(o, "data")), 2);
    json_decref(o);
    answer_clear(&a);
    server_stop(&s);
}

static void listed_in_pages(void **state)
{
    server s;
    char path[200], cursor[64] = "";
    int seen = 0, pages = 0;
    server_start(&s, 1 << 20);
    add_model(&s);
    for (int i = 0; i < 5; i++)
        submit(&s, i);
    do {
        snprintf(path, sizeof path, "/v1/jobs?limit=2&order=asc&status=queued,running&kind=sample%s%s",
                 *cursor ? "&after=" : "", cursor);
        answer a = ask(&s, "GET", path, NULL);
        json_t *o = json_of(&a);
        const size_t n = json_array_size(json_object_get(o, "data"));
        for (size_t i = 0; i < n; i++, seen++) {
            json_t *params = json_object_get(json_array_get(json_object_get(o, "data"), i), "params");
            assert_int_equal(json_integer_value(json_object_get(params, "seed")), seen);
        }
        const char *next = json_string_value(json_object_get(o, "next_cursor"));
        assert_int_equal(json_is_true(json_object_get(o, "has_more")), next != NULL);
        snprintf(cursor, sizeof cursor, "%s", next ? next : "");
        json_decref(o);
        answer_clear(&a);
        pages++;
    } while (*cursor);
    assert_int_equal(seen, 5);
    assert_int_equal(pages, 3);
    server_stop(&s);
}

static void cancelled_and_forgotten(void **state)
{
    server s;
    char path[200], folder[700];
    qd_err err = { 0 };
    server_start(&s, 1 << 20);
    add_model(&s);
    const char *id = submit(&s, 1);
    snprintf(path, sizeof path, "/v1/jobs/%s", id);
    check_problem(ask(&s, "DELETE", path, NULL), 409, "conflict", NULL);
    snprintf(path, sizeof path, "/v1/jobs/%s/cancel", id);
    for (int i = 0; i < 2; i++) {
        answer a = ask(&s, "POST", path, "Content-Length: 0\r\n");
        assert_int_equal(a.status, 200);
        json_t *o = json_of(&a);
        assert_int_equal(json_is_true(json_object_get(o, "canceled")), i == 0);
        json_decref(o);
        assert_string_equal(text_of(&a, "status"), "canceled");
        answer_clear(&a);
    }
    snprintf(folder, sizeof folder, "%s/jobs/%s/artifacts", s.dir, id);
    check_ok(qd_fs_mkdirs(folder, &err), &err);
    snprintf(path, sizeof path, "/v1/jobs/%s", id);
    check_status(ask(&s, "DELETE", path, NULL), 204);
    snprintf(folder, sizeof folder, "%s/jobs/%s", s.dir, id);
    assert_false(qd_fs_exists(folder));
    check_problem(ask(&s, "GET", path, NULL), 410, "pruned", id);
    check_problem(ask(&s, "DELETE", path, NULL), 410, "pruned", NULL);
    server_stop(&s);
}

typedef struct finisher {
    const server *s;
    const char *id;
    int64_t fence;
    int after_ms;
} finisher;

static void *finish_later(void *arg)
{
    const finisher *f = arg;
    nap_ms(f->after_ms);
    finish(f->s, f->id, f->fence);
    return NULL;
}

static void waits_without_a_thread(void **state)
{
    enum { N = 6 };
    server s; /* with two threads */
    char body[256], lines[100];
    pthread_t thread;
    int fds[N];
    server_start(&s, 1 << 20);
    add_model(&s);
    const char *id = submit(&s, 1);
    const int64_t fence = claim(&s, id);
    snprintf(body, sizeof body, GOOD, 1);

    /* The same submission again by its key is a way to wait: several at once, and the server still answers others. */
    for (int i = 0; i < N; i++) {
        qd_buf b;
        qd_buf_init(&b, 0);
        qd_buf_addf(
            &b,
            "PUT /v1/jobs/%s HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=10\r\nContent-Type: application/json\r\n"
            "Content-Length: %zu\r\n\r\n%s",
            id, strlen(body), body);
        fds[i] = dial(&s);
        say(fds[i], b.data, b.size);
        qd_buf_clear(&b);
    }
    nap_ms(100);
    int64_t start = clock_ms();
    check_status(ask(&s, "GET", "/healthz", NULL), 200);
    assert_true(clock_ms() - start < 1000);
    finisher f = { .s = &s, .id = id, .fence = fence, .after_ms = 200 };
    pthread_create(&thread, NULL, finish_later, &f);
    start = clock_ms();
    for (int i = 0; i < N; i++) {
        answer a = hear(fds[i], false, NULL);
        assert_int_equal(a.status, 200);
        assert_string_equal(text_of(&a, "status"), "succeeded");
        assert_string_equal(field(&a, "Preference-Applied"), "wait=10");
        answer_clear(&a);
        close(fds[i]);
    }
    assert_true(clock_ms() - start < 5000);
    pthread_join(thread, NULL);

    /* One that does not end in time. */
    snprintf(body, sizeof body, GOOD, 2);
    start = clock_ms();
    answer a = post_json(&s, "POST", "/v1/jobs", "Prefer: wait=1\r\n", body);
    assert_int_equal(a.status, 202);
    assert_true(clock_ms() - start >= 990 && clock_ms() - start < 5000);
    answer_clear(&a);

    /* The server stops while somebody waits: an answer with what is known. */
    const int fd = dial(&s);
    qd_buf b;
    qd_buf_init(&b, 0);
    snprintf(body, sizeof body, GOOD, 3);
    snprintf(lines, sizeof lines, "Content-Length: %zu\r\n\r\n", strlen(body));
    qd_buf_addf(
        &b, "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=30\r\nContent-Type: application/json\r\n%s%s",
        lines, body);
    say(fd, b.data, b.size);
    qd_buf_clear(&b);
    nap_ms(200);
    start = clock_ms();
    server_stop(&s);
    assert_true(clock_ms() - start < 3000);
    check_status(hear(fd, false, NULL), 202);
    close(fd);
}

/* Numbers of the `id:` lines, "3,4,5". */
static void ids_of(const qd_buf *b, char out[256])
{
    size_t n = 0;
    out[0] = '\0';
    for (const char *p = b->data; p && (p = strstr(p, "id: ")); p += 4)
        if (p == b->data || p[-1] == '\n')
            n += (size_t)snprintf(out + n, 256 - n, "%s%d", n ? "," : "", atoi(p + 4));
}

static void replayed_from_any_number(void **state)
{
    server s;
    char path[200], lines[100], ids[256];
    server_start(&s, 1 << 20);
    add_model(&s);
    const char *id = submit(&s, 1);
    const int64_t fence = claim(&s, id); /* events 1 and 2 */
    for (int i = 0; i < 3; i++)
        add_event(&s, id, fence, "progress", i < 2 ? "{\"phase\":\"a\",\"done\":1,\"total\":2}" : "{\"phase\":\"b\"}");
    finish(&s, id, fence); /* 6 and 7 */
    snprintf(path, sizeof path, "/v1/jobs/%s/events", id);

    answer a = ask(&s, "GET", path, "Accept: text/event-stream\r\n");
    assert_int_equal(a.status, 200);
    assert_true(a.complete);
    assert_string_equal(field(&a, "Content-Type"), "text/event-stream");
    assert_true(strncmp(a.body.data, "retry: 2000\n\n", 13) == 0);
    ids_of(&a.body, ids);
    assert_string_equal(ids, "1,2,3,4,5,6,7");
    assert_non_null(strstr(a.body.data, "event: end\ndata: {"));
    answer_clear(&a);
    static const char *const want[] = {
        "1,2,3,4,5,6,7", "2,3,4,5,6,7", "3,4,5,6,7", "4,5,6,7", "5,6,7", "6,7", "7", ""
    };
    for (int after = 0; after <= 7; after++) {
        snprintf(lines, sizeof lines, "Accept: text/event-stream\r\nLast-Event-ID: %d\r\n", after);
        a = ask(&s, "GET", path, lines);
        ids_of(&a.body, ids);
        assert_string_equal(ids, want[after]);
        answer_clear(&a);
    }
    /* A number this log never had. */
    a = ask(&s, "GET", path, "Accept: text/event-stream\r\nLast-Event-ID: 99\r\n");
    assert_non_null(strstr(a.body.data, "event: reset\n"));
    assert_non_null(strstr(a.body.data, "\"succeeded\""));
    assert_true(a.complete);
    answer_clear(&a);
    check_problem(ask(&s, "GET", path, "Accept: text/event-stream\r\nLast-Event-ID: x\r\n"), 400, "bad_request",
                  "Last-Event-ID");
    check_problem(ask(&s, "GET", path, "Accept: image/png\r\n"), 406, "not_acceptable", NULL);

    char page[300];
    snprintf(page, sizeof page, "%s?after=5", path);
    a = ask(&s, "GET", page, "Accept: application/x-ndjson\r\n");
    char *second = strchr(a.body.data, '\n') + 1;
    json_t *o = json_loads(second, JSON_DISABLE_EOF_CHECK, NULL);
    assert_int_equal(json_integer_value(json_object_get(o, "seq")), 7);
    assert_string_equal(json_string_value(json_object_get(o, "type")), "end");
    json_decref(o);
    answer_clear(&a);

    snprintf(page, sizeof page, "%s?after=2&limit=2", path);
    a = ask(&s, "GET", page, NULL);
    o = json_of(&a);
    assert_int_equal(json_array_size(json_object_get(o, "data")), 2);
    assert_true(json_is_true(json_object_get(o, "has_more")));
    assert_string_equal(json_string_value(json_object_get(o, "next_cursor")), "4");
    json_decref(o);
    answer_clear(&a);
    server_stop(&s);
}

/* Read until the text is there; what was read stays in b. */
static void read_until(int fd, qd_buf *b, const char *text)
{
    char block[4096];
    while (!b->data || !strstr(b->data, text)) {
        const ssize_t k = recv(fd, block, sizeof block, 0);
        if (k <= 0)
            fail_msg("the stream ended before '%s': %s", text, b->data);
        qd_buf_add(b, block, (size_t)k);
    }
}

static void live_stream(void **state)
{
    enum { N = 5 };
    server s; /* with two threads */
    int fds[N];
    qd_buf bufs[N];
    char request[300];
    server_start(&s, 1 << 20);
    add_model(&s);
    const char *id = submit(&s, 1);
    const int64_t fence = claim(&s, id);
    for (int i = 0; i < N; i++) {
        const int n =
            snprintf(request, sizeof request,
                     "GET /v1/jobs/%s/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n", id);
        qd_buf_init(&bufs[i], 0);
        fds[i] = dial(&s);
        say(fds[i], request, (size_t)n);
        read_until(fds[i], &bufs[i], "id: 2\n");
    }
    check_status(ask(&s, "GET", "/healthz", NULL), 200);

    /* A warning is told at once. */
    add_event(&s, id, fence, "warning", "{\"message\":\"w\"}");
    int64_t start = clock_ms();
    for (int i = 0; i < N; i++)
        read_until(fds[i], &bufs[i], "id: 3\n");
    assert_true(clock_ms() - start < 400);

    /* Of many progress lines in a moment a live reader gets the last, and soon. */
    for (int i = 0; i < 20; i++)
        add_event(&s, id, fence, "progress", "{\"phase\":\"a\"}");
    for (int i = 0; i < N; i++)
        read_until(fds[i], &bufs[i], "id: 23\n");
    assert_true(clock_ms() - start < 3000);
    char ids[256];
    ids_of(&bufs[0], ids);
    assert_true(strlen(ids) < strlen("1,2,3,4,5,6,7,8,9,10,11,12"));

    /* One reader leaves; the others do not mind, and get the end. */
    close(fds[0]);
    finish(&s, id, fence);
    for (int i = 1; i < N; i++) {
        read_until(fds[i], &bufs[i], "event: end");
        read_until(fds[i], &bufs[i], "0\r\n\r\n");
        close(fds[i]);
    }
    for (int i = 0; i < N; i++)
        qd_buf_clear(&bufs[i]);

    /* A stream of a job that does not end ends with the server. */
    id = submit(&s, 2);
    const int n =
        snprintf(request, sizeof request,
                 "GET /v1/jobs/%s/events HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n", id);
    const int fd = dial(&s);
    say(fd, request, (size_t)n);
    qd_buf_init(&bufs[0], 0);
    read_until(fd, &bufs[0], "\"seq\":1,");
    start = clock_ms();
    server_stop(&s);
    assert_true(clock_ms() - start < 3000);
    read_until(fd, &bufs[0], "0\r\n\r\n");
    qd_buf_clear(&bufs[0]);
    close(fd);
}

static void curves_and_layers(void **state)
{
    server s;
    char path[200];
    server_start(&s, 1 << 20);
    add_model(&s);
    const char *id = submit(&s, 1);
    const int64_t fence = claim(&s, id);
    for (int i = 0; i < 4; i++) {
        char data[100];
        snprintf(data, sizeof data, "{\"name\":\"%s\",\"step\":%d,\"value\":0.5}", i % 2 ? "loss" : "rate", i);
        add_event(&s, id, fence, "metric", data);
    }
    add_event(&s, id, fence, "layer", "{\"name\":\"conv\",\"weight_bits\":8}");
    snprintf(path, sizeof path, "/v1/jobs/%s/metrics?name=loss&limit=1", id);
    answer a = ask(&s, "GET", path, NULL);
    json_t *o = json_of(&a), *row = json_array_get(json_object_get(o, "data"), 0);
    assert_int_equal(json_array_size(json_object_get(o, "data")), 1);
    assert_true(json_is_true(json_object_get(o, "has_more")));
    assert_int_equal(json_integer_value(json_object_get(row, "step")), 1);
    assert_int_equal(json_integer_value(json_object_get(row, "seq")), 4);
    snprintf(path, sizeof path, "/v1/jobs/%s/metrics?name=loss&limit=1&after=%s", id,
             json_string_value(json_object_get(o, "next_cursor")));
    json_decref(o);
    answer_clear(&a);
    a = ask(&s, "GET", path, NULL);
    o = json_of(&a);
    row = json_array_get(json_object_get(o, "data"), 0);
    assert_int_equal(json_integer_value(json_object_get(row, "step")), 3);
    assert_false(json_is_true(json_object_get(o, "has_more")));
    json_decref(o);
    answer_clear(&a);

    snprintf(path, sizeof path, "/v1/jobs/%s/layers", id);
    a = ask(&s, "GET", path, NULL);
    o = json_of(&a);
    row = json_array_get(json_object_get(o, "data"), 0);
    assert_string_equal(json_string_value(json_object_get(row, "name")), "conv");
    json_decref(o);
    answer_clear(&a);

    snprintf(path, sizeof path, "/v1/jobs/%s/attempts", id);
    a = ask(&s, "GET", path, NULL);
    o = json_of(&a);
    row = json_array_get(json_object_get(o, "data"), 0);
    assert_int_equal(json_integer_value(json_object_get(row, "attempt")), 1);
    assert_true(json_is_null(json_object_get(row, "finished_at")));
    json_decref(o);
    answer_clear(&a);
    server_stop(&s);
}

static void files_in_pieces(void **state)
{
    static const char bytes[] = "0123456789";
    server s;
    qd_err err = { 0 };
    char folder[700], path[800], relative[300], sha256[QD_SHA256_HEX], etag[80], lines[300];
    server_start(&s, 1 << 20);
    add_model(&s);
    const char *id = submit(&s, 1);
    const int64_t fence = claim(&s, id);
    snprintf(folder, sizeof folder, "%s/jobs/%s", s.dir, id);
    check_ok(qd_fs_mkdirs(folder, &err), &err);
    snprintf(path, sizeof path, "%s/file", folder);
    check_ok(qd_fs_write(path, bytes, 10, &err), &err);
    qd_sha256(bytes, 10, sha256);
    snprintf(relative, sizeof relative, "jobs/%s/file", id);
    int64_t seq, n;
    check_ok(sv_artifacts_add(s.store, fence, 1,
                              &(sv_artifact_row){ .id = W("art_1"),
                                                  .job_id = W(id),
                                                  .name = W("r\xc3\xa9sum\xc3\xa9 1.bin"),
                                                  .mime = W("application/octet-stream"),
                                                  .sha256 = sha256,
                                                  .path = relative,
                                                  .size_bytes = 10,
                                                  .created_ms = 1 },
                              &seq, &err),
             &err);
    check_ok(sv_samples_add(s.store, fence, 1,
                            &(sv_sample_row){ .job_id = W(id),
                                              .kind = W("sample"),
                                              .path = relative,
                                              .mime = W("image/png"),
                                              .width = 1,
                                              .height = 1,
                                              .psnr_db = 3.0 },
                            "{}", 1, &n, &seq, &err),
             &err);
    snprintf(etag, sizeof etag, "\"%s\"", sha256);
    snprintf(path, sizeof path, "/v1/jobs/%s/artifacts/r%%C3%%A9sum%%C3%%A9%%201.bin", id);

    answer a = ask(&s, "GET", path, NULL);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body.data, bytes);
    assert_string_equal(field(&a, "ETag"), etag);
    assert_string_equal(field(&a, "Accept-Ranges"), "bytes");
    assert_string_equal(field(&a, "Repr-Digest"), "sha-256=:hNiYd/DUBB77a/kaFvAkjy/Vc+avBcGflr7bn4gveII=:");
    assert_string_equal(field(&a, "Content-Disposition"),
                        "attachment; filename=\"r__sum__ 1.bin\"; filename*=UTF-8''r%C3%A9sum%C3%A9%201.bin");
    answer_clear(&a);

    static const struct {
        const char *range;
        int status;
        const char *content_range, *body;
    } rows[] = {
        { "bytes=0-0", 206, "bytes 0-0/10", "0" },  { "bytes=2-4", 206, "bytes 2-4/10", "234" },
        { "bytes=7-", 206, "bytes 7-9/10", "789" }, { "bytes=7-99", 206, "bytes 7-9/10", "789" },
        { "bytes=-3", 206, "bytes 7-9/10", "789" }, { "bytes=-99", 206, "bytes 0-9/10", bytes },
        { "bytes=10-", 416, "bytes */10", NULL },   { "bytes=-0", 416, "bytes */10", NULL },
        { "bytes=0-1,3-4", 200, NULL, bytes },      { "bytes=4-2", 200, NULL, bytes },
        { "lines=0-1", 200, NULL, bytes },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (int head = 0; head < 2; head++) {
            snprintf(lines, sizeof lines, "Range: %s\r\n", rows[i].range);
            a = ask(&s, head ? "HEAD" : "GET", path, lines);
            if (a.status != rows[i].status)
                fail_msg("%s: %d", rows[i].range, a.status);
            if (rows[i].content_range)
                assert_string_equal(field(&a, "Content-Range"), rows[i].content_range);
            else
                assert_null(field(&a, "Content-Range"));
            if (rows[i].body) {
                char length[24];
                snprintf(length, sizeof length, "%zu", strlen(rows[i].body));
                assert_string_equal(field(&a, "Content-Length"), length);
                if (!head)
                    assert_string_equal(a.body.data, rows[i].body);
            } else if (!head) {
                check_problem(a, 416, "range_not_satisfiable", "10 bytes");
                continue;
            }
            answer_clear(&a);
        }
    }
    snprintf(lines, sizeof lines, "Range: bytes=0-1\r\nIf-Range: %s\r\n", etag);
    check_status(ask(&s, "GET", path, lines), 206);
    check_status(ask(&s, "GET", path, "Range: bytes=0-1\r\nIf-Range: \"other\"\r\n"), 200);
    check_status(ask(&s, "GET", path, "Range: bytes=0-1\r\nIf-Range: Mon, 23 Nov 2026 15:00:00 GMT\r\n"), 200);
    snprintf(lines, sizeof lines, "If-None-Match: \"x\", W/%s\r\nRange: bytes=0-1\r\n", etag);
    a = ask(&s, "GET", path, lines);
    assert_int_equal(a.status, 304);
    assert_string_equal(field(&a, "ETag"), etag);
    answer_clear(&a);

    snprintf(path, sizeof path, "/v1/jobs/%s/samples/0", id);
    a = ask(&s, "GET", path, NULL);
    assert_int_equal(a.status, 200);
    assert_string_equal(field(&a, "Content-Type"), "image/png");
    assert_string_equal(a.body.data, bytes);
    answer_clear(&a);
    snprintf(path, sizeof path, "/v1/jobs/%s/samples/1", id);
    check_problem(ask(&s, "GET", path, NULL), 404, "not_found", "sample 1");
    snprintf(path, sizeof path, "/v1/jobs/%s/samples/-1", id);
    check_problem(ask(&s, "GET", path, NULL), 404, "not_found", NULL);
    snprintf(path, sizeof path, "/v1/jobs/%s/samples", id);
    a = ask(&s, "GET", path, NULL);
    assert_non_null(strstr(a.body.data, "\"psnr_db\":3.0"));
    answer_clear(&a);
    snprintf(path, sizeof path, "/v1/jobs/%s/artifacts/none", id);
    check_problem(ask(&s, "GET", path, NULL), 404, "not_found", "none");
    snprintf(path, sizeof path, "/v1/jobs/%s/artifacts", id);
    a = ask(&s, "GET", path, NULL);
    assert_non_null(strstr(a.body.data, sha256));
    answer_clear(&a);

    /* Rows whose bytes were taken away say so. */
    snprintf(path, sizeof path, "%s/file", folder);
    unlink(path);
    snprintf(path, sizeof path, "/v1/jobs/%s/samples/0", id);
    check_problem(ask(&s, "GET", path, NULL), 410, "pruned", NULL);
    server_stop(&s);
}

static void tried_again(void **state)
{
    server s;
    char path[200], id[64], location[200];
    qd_err err = { 0 };
    server_start(&s, 1 << 20);
    add_model(&s);
    snprintf(id, sizeof id, "%s", submit(&s, 1));
    snprintf(path, sizeof path, "/v1/jobs/%s/retry", id);
    check_problem(ask(&s, "POST", path, NULL), 409, "conflict", "queued");
    const int64_t fence = claim(&s, id);
    check_problem(ask(&s, "POST", path, NULL), 409, "conflict", "running");
    check_ok(sv_jobs_finish(s.store, id, fence, "failed", "{\"code\":\"x\"}", "", sv_now_ms(), NULL, &err), &err);

    answer a = ask(&s, "POST", path, NULL);
    assert_int_equal(a.status, 202);
    assert_string_equal(text_of(&a, "status"), "queued");
    assert_string_equal(text_of(&a, "retry_of"), id);
    char second[64];
    snprintf(second, sizeof second, "%s", text_of(&a, "id"));
    assert_string_not_equal(second, id);
    snprintf(location, sizeof location, "/v1/jobs/%s", second);
    assert_string_equal(field(&a, "Location"), location);
    json_t *o = json_of(&a);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "params"), "seed")), 1);
    json_decref(o);
    answer_clear(&a);
    a = ask(&s, "POST", path, NULL);
    assert_int_equal(a.status, 202);
    assert_string_equal(text_of(&a, "id"), second);
    answer_clear(&a);

    finish(&s, second, claim(&s, second));
    snprintf(path, sizeof path, "/v1/jobs/%s/retry", second);
    check_problem(ask(&s, "POST", path, NULL), 409, "conflict", "succeeded");
    check_problem(ask(&s, "POST", "/v1/jobs/none/retry", NULL), 404, "not_found", "none");
    check_problem(ask(&s, "GET", path, NULL), 405, "method_not_allowed", NULL);
    server_stop(&s);
}

static void running_times_in_the_figures(void **state)
{
    server s;
    qd_err err = { 0 };
    server_start(&s, 1 << 20);
    add_model(&s);
    for (int k = 0; k < 2; k++) {
        sv_job_row job = { 0 };
        submit(&s, k);
        check_ok(sv_jobs_claim(s.store, "test", 5000, 60000, &job, &err), &err);
        check_ok(sv_jobs_finish(s.store, job.id, job.fence, "succeeded", "", "", 5000 + (k ? 7000 : 250), NULL, &err),
                 &err);
        sv_job_row_clear(&job);
    }
    answer a = ask(&s, "GET", "/metrics", NULL);
    assert_int_equal(a.status, 200);
    static const char *const lines[] = {
        "# TYPE quantd_job_seconds histogram\n",
        "quantd_job_seconds_bucket{kind=\"sample\",method=\"ddim\",le=\"1\"} 1\n",
        "quantd_job_seconds_bucket{kind=\"sample\",method=\"ddim\",le=\"5\"} 1\n",
        "quantd_job_seconds_bucket{kind=\"sample\",method=\"ddim\",le=\"15\"} 2\n",
        "quantd_job_seconds_bucket{kind=\"sample\",method=\"ddim\",le=\"+Inf\"} 2\n",
        "quantd_job_seconds_sum{kind=\"sample\",method=\"ddim\"} 7.250\n",
        "quantd_job_seconds_count{kind=\"sample\",method=\"ddim\"} 2\n",
    };
    for (size_t k = 0; k < sizeof lines / sizeof lines[0]; k++)
        if (!strstr(a.body.data, lines[k]))
            fail_msg("no line %s in\n%s", lines[k], a.body.data);
    answer_clear(&a);
    server_stop(&s);
}

/* The same body, the same refusals, and nothing in the queue. */
static void estimated_without_being_queued(void **state)
{
    server s;
    char body[256];
    server_start(&s, 1 << 20);
    add_model(&s);
    snprintf(body, sizeof body, GOOD, 1);
    answer a = post_json(&s, "POST", "/v1/estimates", NULL, body);
    assert_int_equal(a.status, 200);
    assert_string_equal(text_of(&a, "object"), "estimate");
    assert_string_equal(text_of(&a, "method"), "ddim");
    json_t *o = json_of(&a);
    /* This model's summary says nothing: neither do we. */
    assert_true(json_is_null(json_object_get(o, "seconds")) && json_is_null(json_object_get(o, "output")));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "memory"), "limit_bytes")), 1 << 30);
    json_decref(o);
    answer_clear(&a);
    a = post_json(&s, "POST", "/v1/estimates", NULL,
                  "{\"kind\":\"sample\",\"model\":\"den\",\"params\":{\"stpes\":1}}");
    assert_string_equal(text_of(&a, "param"), "/params/stpes");
    check_problem(a, 422, "invalid_param", "stpes");
    a = ask(&s, "GET", "/v1/jobs", NULL);
    o = json_of(&a);
    assert_int_equal(json_array_size(json_object_get(o, "data")), 0);
    json_decref(o);
    answer_clear(&a);

    /* A job keeps the estimate it was submitted with. */
    a = post_json(&s, "POST", "/v1/jobs", NULL, body);
    o = json_of(&a);
    assert_string_equal(json_string_value(json_object_get(json_object_get(o, "estimate"), "object")), "estimate");
    json_decref(o);
    answer_clear(&a);
    server_stop(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(submitted_once),
        cmocka_unit_test(listed_in_pages),
        cmocka_unit_test(cancelled_and_forgotten),
        cmocka_unit_test(waits_without_a_thread),
        cmocka_unit_test(replayed_from_any_number),
        cmocka_unit_test(live_stream),
        cmocka_unit_test(curves_and_layers),
        cmocka_unit_test(files_in_pieces),
        cmocka_unit_test(tried_again),
        cmocka_unit_test(running_times_in_the_figures),
        cmocka_unit_test(estimated_without_being_queued),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
