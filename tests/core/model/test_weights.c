/* test_weights.c - names stay in order and unique, storage is shared and counted. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/model.h"

static int released;
static void on_release(void *owner)
{
    ++*(int *)owner;
}

static void order_and_uniqueness(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    char name[32];

    check_ok(qd_weights_new(&w, &err), &err);
    assert_null(qd_weights_find(w, "t0"));
    for (int k = 0; k < 1000; k++) {
        qd_tensor t = { 0 };
        const qd_shape shape = QD_SHAPE(k);

        snprintf(name, sizeof(name), "t%d", (k * 7919) % 1000);
        check_ok(qd_tensor_init(&t, QD_U8, &shape, NULL, &err), &err);
        check_ok(qd_weights_add(w, name, &t, &err), &err);
        qd_tensor_clear(&t);
    }
    assert_int_equal(qd_weights_count(w), 1000);
    for (int k = 0; k < 1000; k++) {
        snprintf(name, sizeof(name), "t%d", (k * 7919) % 1000);
        assert_string_equal(qd_weights_name(w, k), name);
        assert_ptr_equal(qd_weights_find(w, name), qd_weights_at(w, k));
        assert_int_equal(qd_weights_at(w, k)->shape.dim[0], k);
    }
    assert_null(qd_weights_find(w, "t1000"));
    check_fails(qd_weights_add(w, "t7", qd_weights_at(w, 0), &err), QD_E_CONFLICT, "'t7'", &err);
    assert_int_equal(qd_weights_count(w), 1000);
    qd_weights_free(w);
    qd_weights_free(NULL);
}

static void storage_lives_as_long_as_anyone_holds_it(void **state)
{
    static const float data[4] = { 1, 2, 3, 4 };
    const qd_shape shape = QD_SHAPE(2, 2);
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_tensor t = { 0 };

    released = 0;
    check_ok(qd_weights_new(&w, &err), &err);
    check_ok(qd_tensor_wrap(&t, QD_F32, &shape, data, &released, on_release, &err), &err);
    check_ok(qd_weights_add(w, "a", &t, &err), &err);
    qd_tensor_clear(&t);
    assert_int_equal(released, 0);
    qd_tensor_share(&t, qd_weights_find(w, "a"));
    qd_weights_free(w);
    assert_int_equal(released, 0);
    assert_true(qd_f32(&t)[3] == 4.0f);
    qd_tensor_clear(&t);
    assert_int_equal(released, 1);
}

static void every_allocation_may_fail(void **state)
{
    const qd_shape shape = QD_SHAPE(1);
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    char name[16];

    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    for (long k = 0;; k++) {
        qd_weights *w = NULL;
        qd_status st;

        qd_mem_fault_set(k);
        st = qd_weights_new(&w, &err);
        for (int j = 0; !st && j < 40; j++) {
            snprintf(name, sizeof(name), "n%d", j);
            st = qd_weights_add(w, name, &t, &err);
            if (st) /* what failed left nothing behind, and can be done again */
                assert_null(qd_weights_find(w, name));
        }
        if (st && w) {
            const int n = qd_weights_count(w);

            check_ok(qd_weights_add(w, "again", &t, &err), &err);
            assert_int_equal(qd_weights_count(w), n + 1);
        }
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        qd_weights_free(w);
        if (!hit) {
            assert_int_equal(st, QD_OK);
            break;
        }
        assert_int_equal(st, QD_E_NOMEM);
    }
    qd_tensor_clear(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_and_uniqueness),
        cmocka_unit_test(storage_lives_as_long_as_anyone_holds_it),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
