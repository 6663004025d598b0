/* test_err.c - words are kept, cut and prefixed safely. */
#include "harness/harness.h"

#include <string.h>

static void words_and_status(void **state)
{
    qd_err err = { 0 };
    assert_int_equal(qd_fail(&err, QD_E_LIMIT, "tensor '%s' has %d bytes", "a", 3), QD_E_LIMIT);
    assert_int_equal(err.status, QD_E_LIMIT);
    assert_string_equal(err.text, "tensor 'a' has 3 bytes");
    assert_int_equal(qd_fail(NULL, QD_E_IO, "nobody listens"), QD_E_IO);
}

static void too_long_is_cut(void **state)
{
    qd_err err = { 0 };
    char big[2000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    qd_fail(&err, QD_E_IO, "%s", big);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);

    /* A prefix keeps the front of the old words and the end stays terminated. */
    qd_fail_in(&err, QD_E_IO, "where");
    assert_int_equal(strncmp(err.text, "where: xxx", 10), 0);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    qd_fail_in(&err, QD_E_IO, "%s", big);
    assert_true(strlen(err.text) < sizeof err.text);
}

static void prefix(void **state)
{
    qd_err err = { 0 };
    qd_fail(&err, QD_E_FORMAT, "byte 3");
    assert_int_equal(qd_fail_in(&err, QD_E_IO, "file '%s'", "m"), QD_E_FORMAT);
    assert_string_equal(err.text, "file 'm': byte 3");
    assert_int_equal(qd_fail_in(NULL, QD_E_IO, "x"), QD_E_IO);
}

static void own_text_as_argument(void **state)
{
    qd_err err = { 0 };
    qd_fail(&err, QD_E_IO, "inner");
    qd_fail(&err, QD_E_INVALID, "outer (%s)", err.text);
    assert_string_equal(err.text, "outer (inner)");
}

static void names(void **state)
{
    for (int s = QD_OK; s >= QD_E_INTERNAL; s--)
        for (int t = QD_OK; t > s; t--)
            assert_string_not_equal(qd_status_name((qd_status)s), qd_status_name((qd_status)t));
    assert_string_equal(qd_status_name((qd_status)77), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_and_status),     cmocka_unit_test(too_long_is_cut), cmocka_unit_test(prefix),
        cmocka_unit_test(own_text_as_argument), cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
