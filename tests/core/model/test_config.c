/* test_config.c - typed getters: defaults stay, wrong types are named, canonical text is stable. */
#include "harness/harness.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/model.h"

static qd_config *parse(const char *text)
{
    qd_err err = { 0 };
    qd_config *c = NULL;

    check_ok(qd_config_parse(text, strlen(text), "config.json", &c, &err), &err);
    return c;
}

static void refuse(const char *text, qd_status status, const char *words)
{
    qd_err err = { 0 };
    qd_config *c = NULL;

    check_fails(qd_config_parse(text, strlen(text), "config.json", &c, &err), status, words, &err);
    assert_null(c);
}

static void single_values(void **state)
{
    qd_err err = { 0 };
    qd_config *c =
        parse("{\"n\": 7, \"whole\": 7.0, \"x\": 1e-6, \"yes\": true, \"s\": \"silu\", \"none\": null, \"a\": [1]}");
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;

    check_ok(qd_config_int(c, "n", 0, 7, &i, &err), &err);
    assert_int_equal(i, 7);
    i = 0;
    check_ok(qd_config_int(c, "whole", 0, 7, &i, &err), &err);
    assert_int_equal(i, 7);
    check_ok(qd_config_number(c, "x", &d, &err), &err);
    assert_true(d == 1e-6);
    check_ok(qd_config_number(c, "n", &d, &err), &err);
    assert_true(d == 7.0);
    check_ok(qd_config_bool(c, "yes", &b, &err), &err);
    assert_true(b);
    check_ok(qd_config_string(c, "s", &s, &err), &err);
    assert_string_equal(s, "silu");

    /* Absent or null: the default put there stays. */
    i = -5, d = 2.5, s = "kept";
    check_ok(qd_config_int(c, "absent", 0, 1, &i, &err), &err);
    check_ok(qd_config_int(c, "none", 0, 1, &i, &err), &err);
    check_ok(qd_config_number(c, "none", &d, &err), &err);
    check_ok(qd_config_bool(c, "none", &b, &err), &err);
    check_ok(qd_config_string(c, "none", &s, &err), &err);
    assert_int_equal(i, -5);
    assert_true(d == 2.5 && b);
    assert_string_equal(s, "kept");
    assert_true(qd_config_has(c, "n"));
    assert_false(qd_config_has(c, "none"));
    assert_false(qd_config_has(c, "absent"));

    /* Wrong: named, with what stands there; outputs untouched. */
    check_fails(qd_config_int(c, "n", 0, 6, &i, &err), QD_E_FORMAT, "config.json: 'n' is 7, want 0..6", &err);
    check_fails(qd_config_int(c, "n", 8, 9, &i, &err), QD_E_FORMAT, "want 8..9", &err);
    check_fails(qd_config_int(c, "x", 0, 6, &i, &err), QD_E_FORMAT, "'x' is 1e-06, want a whole number", &err);
    check_fails(qd_config_int(c, "s", 0, 6, &i, &err), QD_E_FORMAT, "'s' is \"silu\", want a whole number", &err);
    check_fails(qd_config_int(c, "yes", 0, 6, &i, &err), QD_E_FORMAT, "'yes' is true", &err);
    check_fails(qd_config_number(c, "yes", &d, &err), QD_E_FORMAT, "'yes' is true, want a number", &err);
    check_fails(qd_config_bool(c, "n", &b, &err), QD_E_FORMAT, "want true or false", &err);
    check_fails(qd_config_string(c, "a", &s, &err), QD_E_FORMAT, "'a' is [1], want a string", &err);
    assert_int_equal(i, -5);
    assert_string_equal(s, "kept");
    qd_config_free(c);
    qd_config_free(NULL);
}

static void integers_at_the_edge(void **state)
{
    qd_err err = { 0 };
    qd_config *c =
        parse("{\"min\": -9223372036854775808, \"max\": 9223372036854775807, \"huge\": 1e19, \"half\": 0.5}");
    int64_t i = 0;

    check_ok(qd_config_int(c, "min", INT64_MIN, INT64_MAX, &i, &err), &err);
    assert_true(i == INT64_MIN);
    check_ok(qd_config_int(c, "max", INT64_MIN, INT64_MAX, &i, &err), &err);
    assert_true(i == INT64_MAX);
    check_fails(qd_config_int(c, "huge", INT64_MIN, INT64_MAX, &i, &err), QD_E_FORMAT, "whole number", &err);
    check_fails(qd_config_int(c, "half", INT64_MIN, INT64_MAX, &i, &err), QD_E_FORMAT, "whole number", &err);
    qd_config_free(c);
}

static void arrays(void **state)
{
    qd_err err = { 0 };
    qd_config *c = parse("{\"ch\": [16, 32, 64], \"one\": 8, \"e\": [], \"mixed\": [1, \"a\"], \"f\": [0.5, 1],"
                         " \"names\": [\"DownBlock2D\", \"Attn\"], \"word\": \"solo\", \"none\": null}");
    int64_t v[3] = { -1, -1, -1 };
    double d[2] = { 0 };
    const char *s[2] = { NULL, NULL };
    int n = 99;

    check_ok(qd_config_ints(c, "ch", 1, 64, v, 3, &n, &err), &err);
    assert_int_equal(n, 3);
    assert_int_equal(v[2], 64);
    check_ok(qd_config_ints(c, "one", 1, 64, v, 3, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_int_equal(v[0], 8);
    check_ok(qd_config_ints(c, "e", 1, 64, v, 3, &n, &err), &err);
    assert_int_equal(n, 0);
    check_ok(qd_config_numbers(c, "f", d, 2, &n, &err), &err);
    assert_true(n == 2 && d[0] == 0.5 && d[1] == 1.0);
    check_ok(qd_config_strings(c, "names", s, 2, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_string_equal(s[1], "Attn");
    check_ok(qd_config_strings(c, "word", s, 2, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_string_equal(s[0], "solo");

    n = 42;
    check_ok(qd_config_ints(c, "none", 1, 64, v, 3, &n, &err), &err);
    check_ok(qd_config_numbers(c, "absent", d, 2, &n, &err), &err);
    check_ok(qd_config_strings(c, "absent", s, 2, &n, &err), &err);
    check_fails(qd_config_ints(c, "ch", 1, 64, v, 2, &n, &err), QD_E_FORMAT, "'ch' has 3 entries, at most 2", &err);
    v[0] = -7;
    check_fails(qd_config_ints(c, "ch", 1, 63, v, 3, &n, &err), QD_E_FORMAT, "'ch' is 64, want 1..63", &err);
    check_fails(qd_config_ints(c, "mixed", 0, 9, v, 3, &n, &err), QD_E_FORMAT, "'mixed' is \"a\"", &err);
    check_fails(qd_config_numbers(c, "mixed", d, 2, &n, &err), QD_E_FORMAT, "want a number", &err);
    check_fails(qd_config_strings(c, "mixed", s, 2, &n, &err), QD_E_FORMAT, "'mixed' is 1, want a string", &err);
    assert_int_equal(v[0], -7); /* not half written */
    assert_int_equal(n, 42);
    qd_config_free(c);
}

static void texts_that_are_refused(void **state)
{
    char deep[64];

    refuse("", QD_E_FORMAT, "config.json: not JSON");
    refuse("[1]", QD_E_FORMAT, "not an object");
    refuse("{\"a\": NaN}", QD_E_FORMAT, "not JSON");
    refuse("{\"a\": 1,}", QD_E_FORMAT, "not JSON");
    refuse("{\"a\": 1} trailing", QD_E_FORMAT, "not JSON");
    refuse("{\"a\": 1, \"a\": 2}", QD_E_FORMAT, "duplicate");
    refuse("{\"a\": \"\\u0000\"}", QD_E_FORMAT, "not JSON");
    refuse("{\"a\": 1e999}", QD_E_FORMAT, "not JSON");
    memset(deep, '[', sizeof(deep) - 1);
    deep[sizeof(deep) - 1] = '\0';
    refuse(deep, QD_E_LIMIT, "nested deeper than 16 levels at byte 16");

    /* Brackets inside strings are no nesting, escaped quotes do not end them. */
    qd_config_free(parse("{\"\\\"[[[[[[[[[[[[[[[[[[[[[\": \"}}}}}}}}}{{{{{{{{{{{{{{{{{{{{\\\\\"}"));
}

static void size_is_limited(void **state)
{
    const size_t n = (8u << 20) + 1;
    char *text = malloc(n);
    qd_err err = { 0 };
    qd_config *c = NULL;

    memset(text, ' ', n);
    text[0] = '{';
    text[1] = '}';
    check_fails(qd_config_parse(text, n, "big.json", &c, &err), QD_E_LIMIT, "big.json: 8388609 bytes", &err);
    check_ok(qd_config_parse(text, n - 1, "big.json", &c, &err), &err);
    assert_string_equal(qd_config_text(c), "{}");
    qd_config_free(c);
    free(text);
}

static void canonical_text_is_stable(void **state)
{
    qd_config *c =
        parse("{ \"z\": [1, 2.50, -0.0, true, null], \"a\": {\"y\": \"\\u00e9\\n\", \"x\": 1e-06},\n \"m\": 0.1 }");
    qd_config *again;

    assert_string_equal(qd_config_text(c),
                        "{\"a\":{\"x\":1e-06,\"y\":\"\xc3\xa9\\n\"},\"m\":0.1,\"z\":[1,2.5,0,true,null]}");
    again = parse(qd_config_text(c));
    assert_string_equal(qd_config_text(again), qd_config_text(c));
    assert_int_equal(qd_config_count(c), 3);
    assert_string_equal(qd_config_key(c, 0), "z"); /* keys in the file's order */
    assert_string_equal(qd_config_key(c, 2), "m");
    assert_string_equal(qd_config_key(again, 0), "a");
    qd_config_free(again);
    qd_config_free(c);
}

static void every_allocation_may_fail(void **state)
{
    static const char text[] = "{\"b\": [1, {\"c\": 2.5}], \"a\": \"text\"}";
    long k = 0;

    for (int with_json = 0; with_json < 2; with_json++) {
        if (with_json)
            json_set_alloc_funcs(qd_alloc, qd_free);
        for (k = 0;; k++) {
            qd_err err = { 0 };
            qd_config *c = NULL;

            qd_mem_fault_set(k);
            const qd_status st = qd_config_parse(text, sizeof(text) - 1, "config.json", &c, &err);
            const bool hit = qd_mem_fault_hit();
            qd_mem_fault_set(-1);
            if (!hit) {
                check_ok(st, &err);
                qd_config_free(c);
                break;
            }
            if (with_json) { /* the library may call it a syntax error, or get over it: nothing may leak or crash */
                qd_config_free(c);
                continue;
            }
            assert_int_equal(st, QD_E_NOMEM);
            assert_null(c);
        }
    }
    json_set_alloc_funcs(malloc, free);
    assert_true(k > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(single_values),
        cmocka_unit_test(integers_at_the_edge),
        cmocka_unit_test(arrays),
        cmocka_unit_test(texts_that_are_refused),
        cmocka_unit_test(size_is_limited),
        cmocka_unit_test(canonical_text_is_stable),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
