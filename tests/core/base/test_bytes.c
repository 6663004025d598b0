/* test_bytes.c - reading stops at the end, growing stops at the ceiling, JSON text survives strange bytes. */
#include "harness/harness.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

static void reader_orders(void **state)
{
    const uint8_t data[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21 };
    qd_reader r;
    qd_reader_init(&r, data, sizeof data);
    assert_int_equal(qd_read_u8(&r), 1);
    assert_int_equal(qd_read_u16be(&r), 0x0203);
    assert_int_equal(qd_read_u16le(&r), 0x0504);
    assert_int_equal(qd_read_u32be(&r), 0x06070809);
    assert_int_equal(qd_read_u32le(&r), 0x0d0c0b0a);
    assert_true(qd_read_u64le(&r) == 0x1514131211100f0eull);
    assert_int_equal(qd_reader_left(&r), 0);
    assert_false(r.failed);
}

static void reader_never_leaves(void **state)
{
    /* Each width against each length: exactly long enough reads, one short fails for good and gives 0. */
    uint8_t *data = qd_alloc(8);
    for (size_t n = 0; n <= 8; n++) {
        uint8_t *exact = qd_realloc(data, n ? n : 1); /* so that a sanitizer sees the edge */
        memset(exact, 0xff, n);
        data = exact;
        qd_reader r;
        qd_reader_init(&r, data, n);
        assert_int_equal(qd_read_u64le(&r) != 0, n >= 8);
        assert_int_equal(r.failed, n < 8);
        if (n < 8)
            assert_int_equal(qd_read_u8(&r), 0); /* even though a byte is there */
        qd_reader_init(&r, data, n);
        assert_int_equal(qd_read_u32be(&r) != 0, n >= 4);
        qd_reader_init(&r, data, n);
        assert_int_equal(qd_read_u16be(&r) != 0, n >= 2);
        qd_reader_init(&r, data, n);
        assert_null(qd_read_bytes(&r, n + 1));
        assert_true(r.failed);
        qd_reader_init(&r, data, n);
        assert_null(qd_read_bytes(&r, SIZE_MAX));
    }
    qd_free(data);
}

static void buffer_grows_to_its_ceiling(void **state)
{
    qd_buf b;
    qd_buf_init(&b, 10);
    assert_true(qd_buf_adds(&b, "01234"));
    assert_true(qd_buf_addf(&b, "%d", 56789));
    assert_string_equal(b.data, "0123456789");
    assert_false(qd_buf_adds(&b, "x"));
    assert_true(b.failed);
    assert_string_equal(b.data, "0123456789");
    assert_false(qd_buf_add(&b, "", 0)); /* stays failed */
    qd_buf_clear(&b);
    assert_int_equal(b.ceiling, 10);
    assert_true(qd_buf_add_u32be(&b, 0x41424344));
    size_t n;
    char *taken = qd_buf_take(&b, &n);
    assert_string_equal(taken, "ABCD");
    assert_int_equal(n, 4);
    assert_null(b.data);
    qd_free(taken);
    taken = qd_buf_take(&b, &n); /* an empty buffer is an empty string */
    assert_string_equal(taken, "");
    assert_int_equal(n, 0);
    qd_free(taken);
}

static void buffer_out_of_memory(void **state)
{
    qd_buf b;
    qd_buf_init(&b, 0);
    qd_buf_adds(&b, "kept");
    char big[1000] = { 0 };
    memset(big, 'x', sizeof big - 1);
    qd_mem_fault_set(0);
    assert_false(qd_buf_adds(&b, big));
    qd_mem_fault_set(-1);
    assert_string_equal(b.data, "kept");
    assert_int_equal(b.size, 4);
    qd_buf_clear(&b);
}

static void json_strings(void **state)
{
    static const char *const rows[][2] = {
        { "plain", "\"plain\"" },
        { "q\"b\\n\nt\t\x01", "\"q\\\"b\\\\n\\nt\\u0009\\u0001\"" },
        { "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\"" },
        { "\xff", "\"\xef\xbf\xbd\"" },
        { "\xc0\xaf", "\"\xef\xbf\xbd\xef\xbf\xbd\"" },                                 /* overlong */
        { "\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" },                 /* a surrogate */
        { "\xf4\x90\x80\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" }, /* past U+10FFFF */
        { "\xe2\x82", "\"\xef\xbf\xbd\xef\xbf\xbd\"" },                                 /* cut short */
        { "", "\"\"" },
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        qd_buf b;
        qd_buf_init(&b, 0);
        char *exact = qd_strdup(rows[k][0]);
        assert_true(qd_buf_add_json_string(&b, exact));
        assert_string_equal(b.data, rows[k][1]);
        qd_free(exact);
        qd_buf_clear(&b);
    }
    qd_buf b;
    qd_buf_init(&b, 6);
    qd_buf_adds(&b, "[");
    assert_false(qd_buf_add_json_string(&b, "too long"));
    assert_string_equal(b.data, "["); /* all or nothing */
    qd_buf_clear(&b);
}

static void json_numbers(void **state)
{
    static const struct {
        double v;
        const char *text;
    } rows[] = {
        { 0, "0" },
        { 100, "100" },
        { -3, "-3" },
        { 0.1, "0.1" },
        { 1e15, "1e+15" },
        { 1.0 / 3, "0.3333333333333333" },
        { 5e-324, "5e-324" },
        { DBL_MAX, "1.7976931348623157e+308" },
        { NAN, "null" },
        { INFINITY, "null" },
        { -INFINITY, "null" },
        { 0.1 + 0.2, "0.30000000000000004" },
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        qd_buf b;
        qd_buf_init(&b, 0);
        qd_buf_add_json_number(&b, rows[k].v);
        assert_string_equal(b.data, rows[k].text);
        qd_buf_clear(&b);
    }
    qd_rng r;
    qd_rng_init(&r, 5, 0);
    for (int k = 0; k < 2000; k++) {
        const uint64_t bits = qd_rng_u64(&r);
        double v;
        memcpy(&v, &bits, sizeof v);
        if (!isfinite(v))
            continue;
        qd_buf b;
        qd_buf_init(&b, 0);
        qd_buf_add_json_number(&b, v);
        assert_true(strtod(b.data, NULL) == v);
        qd_buf_clear(&b);
    }
}

static void hex(void **state)
{
    char text[7];
    qd_hex(text, (const uint8_t[]){ 0x00, 0xaf, 0xff }, 3);
    assert_string_equal(text, "00afff");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reader_orders),
        cmocka_unit_test(reader_never_leaves),
        cmocka_unit_test(buffer_grows_to_its_ceiling),
        cmocka_unit_test(buffer_out_of_memory),
        cmocka_unit_test(json_strings),
        cmocka_unit_test(json_numbers),
        cmocka_unit_test(hex),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
