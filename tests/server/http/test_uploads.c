/* test_uploads.c - strangers' files: what is refused leaves nothing, what is taken is there once, and can be had back in pieces. */
#include "http_common.h"

/* One ustar entry: header, bytes, padding. */
static void add_tar(qd_buf *b, const char *name, const void *data, size_t size)
{
    static const char zeros[1024];
    char h[512] = { 0 };
    unsigned sum = 0;
    snprintf(h, 100, "%s", name);
    memcpy(h + 100, "0000644", 8);
    memcpy(h + 108, "0000000", 8);
    memcpy(h + 116, "0000000", 8);
    snprintf(h + 124, 12, "%011zo", size);
    memcpy(h + 136, "00000000000", 12);
    memset(h + 148, ' ', 8);
    h[156] = '0';
    memcpy(h + 257, "ustar\00000", 8);
    for (int i = 0; i < 512; i++)
        sum += (unsigned char)h[i];
    snprintf(h + 148, 8, "%06o", sum);
    qd_buf_add(b, h, 512);
    qd_buf_add(b, data, size);
    qd_buf_add(b, zeros, (512 - size % 512) % 512);
}

/* The model that ships, as a tar. `extra` goes into a file of its own, so that archives differ. */
static void shipped(qd_buf *b, const char *extra)
{
    static const char *const names[] = { "config.json", "scheduler_config.json",
                                         "diffusion_pytorch_model.safetensors" };
    static const char zeros[1024];
    qd_err err = { 0 };
    qd_buf_init(b, 0);
    for (int i = 0; i < 3; i++) {
        char path[200], inside[200];
        char *data;
        size_t size;
        snprintf(path, sizeof path, "deploy/models/fmnist-ddpm-unet/%s", names[i]);
        snprintf(inside, sizeof inside, "wrap/%s", names[i]);
        check_ok(qd_fs_take(harness_source(path), 1 << 24, &data, &size, &err), &err);
        add_tar(b, inside, data, size);
        qd_free(data);
    }
    if (extra)
        add_tar(b, "wrap/README.md", extra, strlen(extra));
    qd_buf_add(b, zeros, 1024);
}

/* Up to five seconds for something (or nothing) of an upload to be on disk: files go a moment after the answer. */
static void wait_on_disk(const server *s, bool something)
{
    for (int k = 0; k < 500 && (left_on_disk(s) > 0) != something; k++)
        nap_ms(10);
    assert_int_equal(left_on_disk(s) > 0, something);
}

static void bad_files_leave_nothing(void **state)
{
    server s;
    server_start(&s, 1 << 20);
    check_problem(ask_with(&s, "PUT", "/v1/models/m", NULL, "", 0), 422, "invalid_model", "empty");
    check_problem(ask_with(&s, "PUT", "/v1/models/m", NULL, "hello", 5), 422, "invalid_model", NULL);
    check_problem(ask_with(&s, "POST", "/v1/models", NULL, "hello", 5), 422, "invalid_model", NULL);
    check_problem(ask_with(&s, "POST", "/v1/models?name=.x", NULL, "hello", 5), 422, "invalid_param", "'.x'");
    check_problem(ask_with(&s, "PUT", "/v1/models/mdl_x", NULL, "hello", 5), 422, "invalid_param", NULL);
    check_problem(ask_with(&s, "PUT", "/v1/models/a%20b", NULL, "hello", 5), 422, "invalid_param", NULL);
    check_problem(ask_with(&s, "POST", "/v1/models", "Content-Type: multipart/form-data; boundary=x\r\n", "hello", 5),
                  415, "unsupported_media_type", "curl -T");
    qd_buf b;
    qd_buf_init(&b, 0);
    add_tar(&b, "../evil", "x", 1);
    answer a = ask_with(&s, "PUT", "/v1/models/m", NULL, b.data, b.size);
    /* The words name the entry and none of our folders. */
    assert_non_null(strstr(text_of(&a, "detail"), "evil"));
    assert_null(strstr(text_of(&a, "detail"), s.dir));
    check_problem(a, 422, "invalid_model", NULL);
    qd_buf_clear(&b);
    assert_int_equal(left_on_disk(&s), 0);
    a = ask(&s, "GET", "/v1/models", NULL);
    json_t *o = json_of(&a);
    assert_int_equal(json_array_size(json_object_get(o, "data")), 0);
    json_decref(o);
    answer_clear(&a);
    server_stop(&s);
}

static void broken_off_uploads_leave_nothing(void **state)
{
    static const char sized[] = "PUT /v1/models/m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhello";
    static const char chunked[] =
        "PUT /v1/models/m HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    static const char broken[] =
        "PUT /v1/models/m HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n";
    server s;
    server_start(&s, 1 << 20);
    const char *const rows[] = { sized, chunked, broken };
    for (int i = 0; i < 3; i++) {
        const int fd = dial(&s);
        say(fd, rows[i], strlen(rows[i]));
        for (int k = 0; k < 100 && i < 2 && !left_on_disk(&s); k++)
            nap_ms(10);
        if (i < 2)
            assert_int_not_equal(left_on_disk(&s), 0); /* it had begun */
        close(fd);
        wait_on_disk(&s, false);
    }
    server_stop(&s);

    /* The server itself goes away while one arrives. */
    server_start(&s, 1 << 20);
    const int fd = dial(&s);
    say(fd, sized, sizeof sized - 1);
    for (int k = 0; k < 100 && !left_on_disk(&s); k++)
        nap_ms(10);
    server_stop(&s);
    assert_int_equal(left_on_disk(&s), 0);
    close(fd);
}

static void too_large(void **state)
{
    server s;
    server_start(&s, 10000);
    char *body = qd_calloc(1, 20000);

    /* By its length: before a byte of it was asked for. */
    static const char announced[] =
        "PUT /v1/models/m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10001\r\nExpect: 100-continue\r\n\r\n";
    int fd = dial(&s), continues = 0;
    say(fd, announced, sizeof announced - 1);
    check_problem(hear(fd, false, &continues), 413, "too_large", "10001");
    assert_int_equal(continues, 0);
    close(fd);
    /* One that does not ask first hears the answer all the same. */
    check_problem(ask_with(&s, "PUT", "/v1/models/m", NULL, body, 20000), 413, "too_large", "10000");
    wait_on_disk(&s, false);
    /* In chunks: as soon as it passes the limit. */
    fd = dial(&s);
    static const char head[] = "PUT /v1/models/m HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    say(fd, head, sizeof head - 1);
    for (int i = 0; i < 3; i++) {
        say(fd, "fa0\r\n", 5);
        say(fd, body, 4000);
        say(fd, "\r\n", 2);
        if (i == 0)
            wait_on_disk(&s, true); /* on its way: only now can it be seen to go */
    }
    wait_on_disk(&s, false); /* gone before the end has come */
    say(fd, "0\r\n\r\n", 5);
    check_problem(hear(fd, false, NULL), 413, "too_large", "10000");
    close(fd);
    qd_free(body);
    assert_int_equal(left_on_disk(&s), 0);
    server_stop(&s);
}

static void asked_before_sending(void **state)
{
    static const char head[] =
        "PUT /v1/models/m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    static const char wrong[] =
        "PUT /v1/models/m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 200-ok\r\n\r\n";
    server s;
    char line[25] = "";
    server_start(&s, 1 << 20);
    int fd = dial(&s);
    say(fd, head, sizeof head - 1);
    assert_int_equal(recv(fd, line, 25, MSG_WAITALL), 25); /* it comes before the body is sent */
    assert_memory_equal(line, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    say(fd, "hello", 5);
    check_problem(hear(fd, false, NULL), 422, "invalid_model", NULL);
    close(fd);
    fd = dial(&s);
    say(fd, wrong, sizeof wrong - 1);
    check_problem(hear(fd, false, NULL), 400, "bad_request", "Expect");
    close(fd);
    server_stop(&s);
}

static void taken_and_had_back(void **state)
{
    server s;
    qd_buf tar;
    char sha256[QD_SHA256_HEX], path[300], lines[300];
    server_start(&s, 64 << 20);
    shipped(&tar, NULL);
    qd_sha256(tar.data, tar.size, sha256);
    snprintf(path, sizeof path, "/v1/blobs/sha256:%s", sha256);
    check_status(ask(&s, "HEAD", path, NULL), 404);

    answer a = ask_with(&s, "PUT", "/v1/models/fmnist", NULL, tar.data, tar.size);
    assert_int_equal(a.status, 201);
    char id[64];
    snprintf(id, sizeof id, "%s", text_of(&a, "id"));
    assert_true(strncmp(id, "mdl_", 4) == 0);
    snprintf(lines, sizeof lines, "/v1/models/%s", id);
    assert_string_equal(field(&a, "Location"), lines);
    assert_string_equal(text_of(&a, "sha256"), sha256);
    assert_string_equal(text_of(&a, "name"), "fmnist");
    assert_string_equal(text_of(&a, "role"), "denoiser");
    answer_clear(&a);

    /* The same bytes under the same name are the same model; in chunks too. */
    const int fd = dial(&s);
    qd_buf raw;
    qd_buf_init(&raw, 0);
    qd_buf_adds(&raw, "PUT /v1/models/fmnist HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (size_t at = 0; at < tar.size; at += 100000) {
        const size_t n = tar.size - at < 100000 ? tar.size - at : 100000;
        qd_buf_addf(&raw, "%zx;note=x\r\n", n);
        qd_buf_add(&raw, tar.data + at, n);
        qd_buf_adds(&raw, "\r\n");
    }
    qd_buf_adds(&raw, "0\r\n\r\n");
    say(fd, raw.data, raw.size);
    qd_buf_clear(&raw);
    a = hear(fd, false, NULL);
    close(fd);
    assert_int_equal(a.status, 200);
    assert_string_equal(text_of(&a, "id"), id);
    answer_clear(&a);

    /* By hash, without sending them. */
    char reference[200];
    snprintf(reference, sizeof reference, "{\"blob\":\"sha256:%s\",\"name\":\"other\"}", sha256);
    a = post_json(&s, "POST", "/v1/models", NULL, reference);
    assert_int_equal(a.status, 201);
    char other[64];
    snprintf(other, sizeof other, "%s", text_of(&a, "id"));
    assert_string_not_equal(other, id);
    answer_clear(&a);
    check_problem(post_json(&s, "POST", "/v1/models", NULL, "{\"blob\":\"sha256:xyz\"}"), 422, "invalid_param",
                  "64 hex");
    check_problem(post_json(&s, "POST", "/v1/models", NULL, "{\"blbo\":\"x\"}"), 422, "invalid_param", "blbo");
    memset(reference + 16, '0', 64);
    check_problem(post_json(&s, "POST", "/v1/models", NULL, reference), 404, "not_found", "0000");

    check_status(ask(&s, "HEAD", path, NULL), 200);
    check_status(ask(&s, "GET", "/v1/models/fmnist", NULL), 200);

    snprintf(path, sizeof path, "/v1/models/%s/content", id);
    a = ask(&s, "GET", path, NULL);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.body.size, tar.size);
    assert_memory_equal(a.body.data, tar.data, tar.size);
    assert_string_equal(field(&a, "Content-Disposition"), "attachment; filename=\"fmnist\"");
    answer_clear(&a);

    /* The bytes go with the last row that uses them. */
    snprintf(path, sizeof path, "/v1/models/%s", other);
    check_status(ask(&s, "DELETE", path, NULL), 204);
    assert_int_not_equal(left_on_disk(&s), 0);
    check_problem(ask(&s, "GET", path, NULL), 410, "pruned", NULL);
    snprintf(path, sizeof path, "/v1/models/%s", id);
    check_status(ask(&s, "DELETE", path, NULL), 204);
    assert_int_equal(left_on_disk(&s), 0);
    check_problem(ask(&s, "DELETE", path, NULL), 410, "pruned", NULL);
    qd_buf_clear(&tar);
    server_stop(&s);
}

typedef struct upload_thread {
    const server *s;
    const qd_buf *tar;
    int status;
    char id[64];
} upload_thread;

static void *upload_one(void *arg)
{
    upload_thread *t = arg;
    answer a = ask_with(t->s, "PUT", "/v1/models/same", NULL, t->tar->data, t->tar->size);
    t->status = a.status;
    if (a.status == 200 || a.status == 201)
        snprintf(t->id, sizeof t->id, "%s", text_of(&a, "id"));
    answer_clear(&a);
    return NULL;
}

static void the_same_bytes_at_once(void **state)
{
    enum { N = 6 };
    server s;
    qd_buf tar;
    upload_thread t[N];
    pthread_t threads[N];
    int made = 0;
    server_start(&s, 64 << 20);
    shipped(&tar, "at once");
    for (int i = 0; i < N; i++) {
        t[i] = (upload_thread){ .s = &s, .tar = &tar };
        pthread_create(&threads[i], NULL, upload_one, &t[i]);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        assert_true(t[i].status == 200 || t[i].status == 201);
        assert_string_equal(t[i].id, t[0].id);
        made += t[i].status == 201;
    }
    assert_int_equal(made, 1);
    char path[600];
    snprintf(path, sizeof path, "%s/tmp", s.dir);
    assert_int_equal(count_below(path), 0);
    snprintf(path, sizeof path, "%s/blobs", s.dir);
    assert_int_equal(count_below(path), 1);
    qd_buf_clear(&tar);
    server_stop(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_files_leave_nothing),
        cmocka_unit_test(broken_off_uploads_leave_nothing),
        cmocka_unit_test(too_large),
        cmocka_unit_test(asked_before_sending),
        cmocka_unit_test(taken_and_had_back),
        cmocka_unit_test(the_same_bytes_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
