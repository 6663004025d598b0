/* test_meta.c - text in order, replaced in place, copied. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/model.h"

static void order_and_replacement(void **state)
{
    qd_err err = { 0 };
    qd_meta *m = NULL, *copy = NULL;
    const char *key, *value;

    check_ok(qd_meta_new(&m, &err), &err);
    assert_int_equal(qd_meta_count(m), 0);
    assert_null(qd_meta_find(m, "a"));
    check_ok(qd_meta_set(m, "b", "1", &err), &err);
    check_ok(qd_meta_set(m, "a", "2", &err), &err);
    check_ok(qd_meta_set(m, "", "empty key", &err), &err);
    check_ok(qd_meta_set(m, "b", "{\"x\": 3}", &err), &err);
    assert_int_equal(qd_meta_count(m), 3);
    qd_meta_at(m, 0, &key, &value);
    assert_string_equal(key, "b");
    assert_string_equal(value, "{\"x\": 3}");
    assert_string_equal(qd_meta_find(m, ""), "empty key");

    check_ok(qd_meta_new(&copy, &err), &err);
    check_ok(qd_meta_set(copy, "a", "old", &err), &err);
    check_ok(qd_meta_copy(copy, m, &err), &err);
    assert_int_equal(qd_meta_count(copy), 3);
    qd_meta_at(copy, 0, &key, &value); /* replaced where it stood */
    assert_string_equal(key, "a");
    assert_string_equal(value, "2");
    qd_meta_free(m);
    assert_string_equal(qd_meta_find(copy, "b"), "{\"x\": 3}");
    qd_meta_free(copy);
    qd_meta_free(NULL);
}

static void every_allocation_may_fail(void **state)
{
    qd_err err = { 0 };
    char key[16];

    for (long k = 0;; k++) {
        qd_meta *m = NULL;
        qd_status st;

        qd_mem_fault_set(k);
        st = qd_meta_new(&m, &err);
        for (int j = 0; !st && j < 20; j++) {
            snprintf(key, sizeof(key), "%d", j % 15);
            st = qd_meta_set(m, key, "value", &err);
        }
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        qd_meta_free(m);
        if (!hit)
            break;
        assert_int_equal(st, QD_E_NOMEM);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_and_replacement),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
