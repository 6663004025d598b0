/* test_parse.c - everything read from strangers before a handler sees it: targets, ranges, tags, Accept, hosts, the handshake. */
#include "harness/harness.h"

#include <string.h>

#include "http/http_int.h"

static void sha1_known_answers(void **state)
{
    /* FIPS 180-4 examples; a million 'a's; and lengths around the padding's edges, from coreutils. */
    static const struct {
        const char *text;
        size_t repeat;
        const char *hex;
    } rows[] = {
        { "", 1, "da39a3ee5e6b4b0d3255bfef95601890afd80709" },
        { "abc", 1, "a9993e364706816aba3e25717850c26c9cd0d89d" },
        { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1, "84983e441c3bd26ebaae4aa1f95129e5e54670f1" },
        { "a", 55, "c1c8bbdc22796e28c0e15163d20899b65621d65a" },
        { "a", 56, "c2db330f6083854c99d4b5bfb6e8f29f201be699" },
        { "a", 64, "0098ba824b5c16427bd7a1122a5a442a25ec644d" },
        { "a", 1000000, "34aa973cd4c4daa4f61eeb2bdbad27316534016f" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        qd_buf b;
        uint8_t digest[20];
        char hex[41];
        qd_buf_init(&b, 0);
        for (size_t k = 0; k < rows[i].repeat; k++)
            qd_buf_adds(&b, rows[i].text);
        sv_sha1(b.data ? b.data : "", b.size, digest);
        qd_hex(hex, digest, 20);
        assert_string_equal(hex, rows[i].hex);
        qd_buf_clear(&b);
    }
}

static void websocket_accept(void **state)
{
    char accept[29];
    sv_ws_accept("dGhlIHNhbXBsZSBub25jZQ==", accept); /* RFC 6455 1.3 */
    assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_true(sv_ws_key_ok("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_false(sv_ws_key_ok(NULL));
    assert_false(sv_ws_key_ok(""));
    assert_false(sv_ws_key_ok("dGhlIHNhbXBsZSBub25jZQ="));
    assert_false(sv_ws_key_ok("dGhlIHNhbXBsZSBub25jZQ==="));
    assert_false(sv_ws_key_ok("dGhlIHNhbXBs\x01SBub25jZQ=="));
}

static void ranges(void **state)
{
    static const struct {
        const char *field;
        uint64_t size;
        sv_range_kind kind;
        uint64_t first, length;
    } rows[] = {
        { NULL, 10, SV_RANGE_NONE, 0, 0 },
        { "bytes=0-0", 10, SV_RANGE_ONE, 0, 1 },
        { "bytes=0-9", 10, SV_RANGE_ONE, 0, 10 },
        { "bytes=0-10", 10, SV_RANGE_ONE, 0, 10 },
        { "bytes=9-", 10, SV_RANGE_ONE, 9, 1 },
        { "bytes=3-5", 10, SV_RANGE_ONE, 3, 3 },
        { "BYTES = 3-5 ", 10, SV_RANGE_ONE, 3, 3 },
        { "bytes=-1", 10, SV_RANGE_ONE, 9, 1 },
        { "bytes=-10", 10, SV_RANGE_ONE, 0, 10 },
        { "bytes=-11", 10, SV_RANGE_ONE, 0, 10 },
        { "bytes=-99999999999999999999999", 10, SV_RANGE_ONE, 0, 10 },
        { "bytes=0-99999999999999999999999", 10, SV_RANGE_ONE, 0, 10 },
        { "bytes=10-", 10, SV_RANGE_UNSATISFIABLE, 0, 0 },
        { "bytes=10-20", 10, SV_RANGE_UNSATISFIABLE, 0, 0 },
        { "bytes=18446744073709551615-", 10, SV_RANGE_UNSATISFIABLE, 0, 0 },
        { "bytes=99999999999999999999999-", 10, SV_RANGE_UNSATISFIABLE, 0, 0 },
        { "bytes=-0", 10, SV_RANGE_UNSATISFIABLE, 0, 0 },
        { "bytes=0-", 0, SV_RANGE_UNSATISFIABLE, 0, 0 },
        { "bytes=-5", 0, SV_RANGE_UNSATISFIABLE, 0, 0 },
        { "bytes=5-3", 10, SV_RANGE_NONE, 0, 0 },
        { "bytes=", 10, SV_RANGE_NONE, 0, 0 },
        { "bytes=-", 10, SV_RANGE_NONE, 0, 0 },
        { "bytes=a-b", 10, SV_RANGE_NONE, 0, 0 },
        { "bytes=0x1-2", 10, SV_RANGE_NONE, 0, 0 },
        { "bytes=+1-2", 10, SV_RANGE_NONE, 0, 0 },
        { "bytes=1-2-3", 10, SV_RANGE_NONE, 0, 0 },
        { "bytes=0-1,3-4", 10, SV_RANGE_NONE, 0, 0 },
        { "items=0-1", 10, SV_RANGE_NONE, 0, 0 },
        { "bytes", 10, SV_RANGE_NONE, 0, 0 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint64_t first = 0, length = 0;
        const sv_range_kind kind = sv_range_parse(rows[i].field, rows[i].size, &first, &length);
        if (kind != rows[i].kind || (kind == SV_RANGE_ONE && (first != rows[i].first || length != rows[i].length)))
            fail_msg("'%s' of %llu: kind %d, first %llu, length %llu", rows[i].field, (unsigned long long)rows[i].size,
                     kind, (unsigned long long)first, (unsigned long long)length);
    }
}

static void entity_tags(void **state)
{
    assert_true(sv_etag_in("\"a\"", "\"a\""));
    assert_true(sv_etag_in("W/\"a\"", "\"a\""));
    assert_true(sv_etag_in("\"b\", \"a\"", "\"a\""));
    assert_true(sv_etag_in(" \"b\" ,\t\"a\" ", "\"a\""));
    assert_true(sv_etag_in("*", "\"a\""));
    assert_false(sv_etag_in(NULL, "\"a\""));
    assert_false(sv_etag_in("", "\"a\""));
    assert_false(sv_etag_in("a", "\"a\""));
    assert_false(sv_etag_in("\"ab\"", "\"a\""));
    assert_false(sv_etag_in("\"a", "\"a\""));
    assert_false(sv_etag_in("\"b\" \"a\"", "\"a\""));
}

static void accept_negotiation(void **state)
{
    static const char *const offered[] = { "application/json", "text/html" };
    assert_int_equal(sv_accept_pick(NULL, offered, 2), 0);
    assert_int_equal(sv_accept_pick("", offered, 2), 0);
    assert_int_equal(sv_accept_pick("*/*", offered, 2), 0);
    assert_int_equal(sv_accept_pick("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", offered, 2), 1);
    assert_int_equal(sv_accept_pick("TEXT/HTML", offered, 2), 1);
    assert_int_equal(sv_accept_pick("text/*", offered, 2), 1);
    assert_int_equal(sv_accept_pick("application/json;q=0.5, text/html;q=0.51", offered, 2), 1);
    assert_int_equal(sv_accept_pick("application/json;q=0, */*", offered, 2), 1); /* the more specific one decides */
    assert_int_equal(sv_accept_pick("image/png", offered, 2), -1);
    assert_int_equal(sv_accept_pick("*/*;q=0", offered, 2), -1);
    assert_int_equal(sv_accept_pick("application/json; charset=utf-8; q=1.000", offered, 2), 0);
    assert_int_equal(sv_accept_pick(",,;q=,", offered, 2), -1);
}

static void preferences_and_lists(void **state)
{
    assert_int_equal(sv_prefer_wait(NULL), -1);
    assert_int_equal(sv_prefer_wait("respond-async"), -1);
    assert_int_equal(sv_prefer_wait("wait=5"), 5);
    assert_int_equal(sv_prefer_wait("respond-async, wait=10"), 10);
    assert_int_equal(sv_prefer_wait("wait=300"), 30);
    assert_int_equal(sv_prefer_wait("wait=99999999999999999999"), 30);
    assert_int_equal(sv_prefer_wait("wait=-1"), -1);
    assert_int_equal(sv_prefer_wait("wait=x"), -1);
    assert_true(sv_list_has("keep-alive, Upgrade", "upgrade"));
    assert_true(sv_list_has("upgrade", "upgrade"));
    assert_false(sv_list_has("upgraded", "upgrade"));
    assert_false(sv_list_has(NULL, "upgrade"));
    assert_true(sv_content_type_is("application/json; charset=utf-8", "application/json"));
    assert_true(sv_content_type_is(" Application/JSON", "application/json"));
    assert_false(sv_content_type_is("application/jsonp", "application/json"));
    assert_false(sv_content_type_is(NULL, "application/json"));
}

static void whole_numbers(void **state)
{
    int64_t v = 7;
    assert_true(sv_parse_int64("0", 0, 10, &v) && v == 0);
    assert_true(sv_parse_int64("-3", -5, 10, &v) && v == -3);
    assert_true(sv_parse_int64("9223372036854775807", 0, INT64_MAX, &v) && v == INT64_MAX);
    v = 7;
    assert_false(sv_parse_int64("9223372036854775808", 0, INT64_MAX, &v));
    assert_false(sv_parse_int64("", 0, 10, &v));
    assert_false(sv_parse_int64("-", -5, 10, &v));
    assert_false(sv_parse_int64("+1", 0, 10, &v));
    assert_false(sv_parse_int64(" 1", 0, 10, &v));
    assert_false(sv_parse_int64("1 ", 0, 10, &v));
    assert_false(sv_parse_int64("0x1", 0, 10, &v));
    assert_false(sv_parse_int64("11", 0, 10, &v));
    assert_false(sv_parse_int64(NULL, 0, 10, &v));
    assert_int_equal(v, 7);
}

static void json_depth(void **state)
{
    assert_true(sv_json_depth_ok("[[]]", 4, 2));
    assert_false(sv_json_depth_ok("[[[]]]", 6, 2));
    assert_true(sv_json_depth_ok("[\"[[[[\"]", 8, 1));
    assert_true(sv_json_depth_ok("[\"\\\"[[\"]", 8, 1));
    assert_true(sv_json_depth_ok("[],[],[]", 8, 1));
    assert_true(sv_json_depth_ok("", 0, 1));
    assert_true(sv_json_depth_ok("[\"\\", 3, 1)); /* ends inside an escape */
}

static void targets(void **state)
{
    qd_err err = { 0 };
    sv_target t = { 0 };
    check_ok(sv_target_parse("/v1/jobs/a%20b?limit=5&name=x+y%26z&flag", &t, &err), &err);
    assert_string_equal(t.path, "/v1/jobs/a b");
    assert_int_equal(t.segment_count, 3);
    assert_string_equal(t.segments[2], "a b");
    assert_string_equal(sv_target_query(&t, "limit"), "5");
    assert_string_equal(sv_target_query(&t, "name"), "x y&z");
    assert_string_equal(sv_target_query(&t, "flag"), "");
    assert_null(sv_target_query(&t, "other"));
    sv_target_clear(&t);

    check_ok(sv_target_parse("/", &t, &err), &err);
    assert_int_equal(t.segment_count, 0);
    sv_target_clear(&t);

    check_ok(sv_target_parse("http://localhost:8420/v1/jobs?x=1", &t, &err), &err);
    assert_string_equal(t.authority, "localhost:8420");
    assert_int_equal(t.segment_count, 2);
    sv_target_clear(&t);

    check_ok(sv_target_parse("http://localhost", &t, &err), &err);
    assert_string_equal(t.path, "/");
    sv_target_clear(&t);

    /* Once: what looks like an escape afterwards stays text. */
    check_ok(sv_target_parse("/a%252fb/%252e%252e", &t, &err), &err);
    assert_string_equal(t.segments[0], "a%2fb");
    assert_string_equal(t.segments[1], "%2e%2e");
    sv_target_clear(&t);

    check_ok(sv_target_parse("/1/2/3/4/5/6/7/8/9/10", &t, &err), &err);
    assert_int_equal(t.segment_count, SV_MAX_SEGMENTS + 1);
    sv_target_clear(&t);
}

static void bad_targets(void **state)
{
    static const char *const bad[] = {
        "",           "*",         "v1/jobs",    "/a#b",          "/%",          "/%4",
        "/%zz",       "/%00",      "/a%0ab",     "/a%2fb",        "/a%2Fb",      "/a%5cb",
        "/a\\b",      "/..",       "/.",         "/a/../b",       "/%2e%2e/etc", "/a/.%2e",
        "/%ff",       "/%c0%af",   "/%ed%a0%80", "/%f4%90%80%80", "/a?b=%00",    "/a?b=%",
        "/a?b=1&b=2", "ftp://x/y",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        qd_err err = { 0 };
        sv_target t = { 0 };
        if (sv_target_parse(bad[i], &t, &err) != QD_E_INVALID)
            fail_msg("'%s' was taken", bad[i]);
        assert_null(t.memory);
    }
    static char longest[SV_MAX_TARGET_BYTES + 2];
    qd_err err = { 0 };
    sv_target t = { 0 };
    memset(longest, 'a', sizeof longest - 1);
    longest[0] = '/';
    check_fails(sv_target_parse(longest, &t, &err), QD_E_LIMIT, "8192", &err);
    longest[SV_MAX_TARGET_BYTES] = '\0';
    check_ok(sv_target_parse(longest, &t, &err), &err);
    sv_target_clear(&t);
    check_fails(sv_target_parse("/?a&b&c&d&e&f&g&h&i&j&k&l&m&n&o&p&q", &t, &err), QD_E_LIMIT, "16", &err);
}

static void patterns(void **state)
{
    static const struct {
        const char *pattern, *target;
        bool fits;
        const char *first, *second;
    } rows[] = {
        { "/", "/", true, NULL, NULL },
        { "/v1/jobs", "/v1/jobs", true, NULL, NULL },
        { "/v1/jobs", "/v1/jobs/", false, NULL, NULL },
        { "/v1/jobs", "//v1/jobs", false, NULL, NULL },
        { "/v1/jobs", "/v1/Jobs", false, NULL, NULL },
        { "/v1/jobs/{id}", "/v1/jobs/job_1", true, "job_1", NULL },
        { "/v1/jobs/{id}", "/v1/jobs/", false, NULL, NULL },
        { "/v1/jobs/{id}", "/v1/jobs", false, NULL, NULL },
        { "/v1/jobs/{id}", "/v1/jobs/a/b", false, NULL, NULL },
        { "/v1/jobs/{id}/samples/{n}", "/v1/jobs/j/samples/3", true, "j", "3" },
        { "/v1/blobs/sha256:{hex}", "/v1/blobs/sha256:ab", true, "ab", NULL },
        { "/v1/blobs/sha256:{hex}", "/v1/blobs/sha256:", false, NULL, NULL },
        { "/v1/blobs/sha256:{hex}", "/v1/blobs/md5:ab", false, NULL, NULL },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        qd_err err = { 0 };
        sv_target t = { 0 };
        const char *captures[2] = { NULL, NULL };
        check_ok(sv_target_parse(rows[i].target, &t, &err), &err);
        if (sv_path_match(rows[i].pattern, &t, captures) != rows[i].fits)
            fail_msg("%s against %s", rows[i].target, rows[i].pattern);
        if (rows[i].first)
            assert_string_equal(captures[0], rows[i].first);
        if (rows[i].second)
            assert_string_equal(captures[1], rows[i].second);
        sv_target_clear(&t);
    }
}

static void hosts(void **state)
{
    static const struct {
        const char *host, *listen;
        bool fine;
    } rows[] = {
        { "localhost", "127.0.0.1", true },
        { "LOCALHOST:8420", "127.0.0.1", true },
        { "127.0.0.1", "127.0.0.1", true },
        { "127.8.8.8:1", "127.0.0.1", true },
        { "[::1]:8420", "127.0.0.1", true },
        { "evil.example", "127.0.0.1", false },
        { "localhost.evil.example", "127.0.0.1", false },
        { "127.0.0.1.evil.example", "127.0.0.1", false },
        { "127.0.0.1@evil.example", "127.0.0.1", false },
        { "evil.example:127", "127.0.0.1", false },
        { "10.0.0.7", "127.0.0.1", false },
        { "[::1", "127.0.0.1", false },
        { "", "127.0.0.1", false },
        { ":80", "127.0.0.1", false },
        { "localhost:", "127.0.0.1", false },
        { "localhost:99999", "127.0.0.1", false },
        { "localhost:8420x", "127.0.0.1", false },
        { NULL, "127.0.0.1", false },
        { "box.lan:8420", "box.lan", true },
        { "other.lan:8420", "box.lan", false },
        { "10.0.0.7:8420", "0.0.0.0", true },
        { "[fd00::7]:8420", "::", true },
        { "evil.example", "0.0.0.0", false },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (sv_host_allowed(rows[i].host, rows[i].listen) != rows[i].fine)
            fail_msg("Host '%s' while listening on %s", rows[i].host, rows[i].listen);
}

static void origins(void **state)
{
    static const struct {
        const char *origin, *host;
        bool fine;
    } rows[] = {
        { "http://localhost:8420", "localhost:8420", true },
        { "http://LOCALHOST:8420", "localhost:8420", true },
        { "http://localhost", "localhost", true },
        { "http://localhost", "localhost:80", true },
        { "https://box.lan", "box.lan:443", true },
        { "http://[::1]:8420", "[::1]:8420", true },
        { "http://localhost:8421", "localhost:8420", false },
        { "http://127.0.0.1:8420", "localhost:8420", false },
        { "http://evil.example", "localhost:8420", false },
        { "http://localhost:8420.evil.example", "localhost:8420", false },
        { "null", "localhost:8420", false },
        { "", "localhost:8420", false },
        { "file://", "localhost:8420", false },
        { "http://localhost:8420", NULL, false },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (sv_origin_matches(rows[i].origin, rows[i].host) != rows[i].fine)
            fail_msg("Origin '%s', Host '%s'", rows[i].origin, rows[i].host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha1_known_answers),
        cmocka_unit_test(websocket_accept),
        cmocka_unit_test(ranges),
        cmocka_unit_test(entity_tags),
        cmocka_unit_test(accept_negotiation),
        cmocka_unit_test(preferences_and_lists),
        cmocka_unit_test(whole_numbers),
        cmocka_unit_test(json_depth),
        cmocka_unit_test(targets),
        cmocka_unit_test(bad_targets),
        cmocka_unit_test(patterns),
        cmocka_unit_test(hosts),
        cmocka_unit_test(origins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
