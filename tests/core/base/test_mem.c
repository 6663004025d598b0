/* test_mem.c - the fault switch fires once and where asked, sizes do not wrap, arenas align, budgets hold. */
#include "harness/harness.h"

#include <string.h>

#include "base/mem.h"
#include "base/par.h"

static void fault_hits_the_kth(void **state)
{
    qd_mem_fault_set(2);
    void *a = qd_alloc(1), *b = qd_calloc(2, 2), *c = qd_alloc_aligned(8), *d = qd_alloc(8);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(c);
    assert_true(qd_mem_fault_hit());
    assert_non_null(d);
    qd_mem_fault_set(-1);
    assert_false(qd_mem_fault_hit());
    qd_free(a);
    qd_free(b);
    qd_free(d);
}

static void realloc_failure_keeps_the_block(void **state)
{
    char *p = qd_strdup("kept");
    qd_mem_fault_set(0);
    assert_null(qd_realloc(p, 100));
    qd_mem_fault_set(-1);
    assert_string_equal(p, "kept");
    qd_free(p);
}

static void sizes(void **state)
{
    size_t n;
    assert_null(qd_calloc(SIZE_MAX / 2, 3));
    assert_false(qd_mul_size(SIZE_MAX, 2, &n));
    assert_false(qd_add_size(SIZE_MAX, 1, &n));
    assert_true(qd_mul_size(3, 4, &n));
    assert_int_equal(n, 12);
    void *p = qd_alloc(0), *q = qd_alloc_aligned(3);
    assert_non_null(p);
    assert_int_equal((uintptr_t)q % 64, 0);
    qd_free(p);
    qd_free(q);
    qd_free(NULL);
}

static void strings(void **state)
{
    char *a = qd_strndup("abcdef", 3), *b = qd_asprintf("%s-%d", a, 7);
    assert_string_equal(a, "abc");
    assert_string_equal(b, "abc-7");
    qd_free(a);
    qd_free(b);
}

static void arena(void **state)
{
    qd_arena a;
    qd_arena_init(&a);
    size_t asked = 0;
    char *first = qd_arena_alloc(&a, 3);
    memset(first, 7, 3);
    for (size_t k = 0; k < 3000; k++) {
        const size_t n = k % 97 == 0 ? 20000 : k % 61;
        unsigned char *p = qd_arena_alloc(&a, n);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(p[i], 0);
        memset(p, 0xee, n);
        asked += n;
    }
    assert_int_equal(first[2], 7);
    assert_int_equal(a.used_bytes, asked + 3);
    assert_string_equal(qd_arena_strdup(&a, "text"), "text");
    assert_null(qd_arena_alloc(&a, SIZE_MAX - 3));
    qd_arena_clear(&a);
    assert_null(a.head);
}

static void budget(void **state)
{
    qd_err err = { 0 };
    qd_budget b;
    qd_budget_init(&b, 100);
    check_ok(qd_budget_draw(&b, 60, "a", &err), &err);
    check_fails(qd_budget_draw(&b, 41, "tensor 'big'", &err), QD_E_LIMIT, "tensor 'big' needs 41 bytes; 60 are in use",
                &err);
    check_fails(qd_budget_draw(&b, SIZE_MAX, "wrap", &err), QD_E_LIMIT, "wrap", &err);
    check_ok(qd_budget_draw(&b, 40, "b", &err), &err);
    qd_budget_give(&b, 100);
    assert_int_equal(b.used_bytes, 0);
    assert_int_equal(b.peak_bytes, 100);

    qd_budget_init(&b, 0);
    check_ok(qd_budget_draw(&b, SIZE_MAX / 2, "no limit", &err), &err);
    check_ok(qd_budget_draw(NULL, 5, "no budget", &err), &err);
    qd_budget_give(NULL, 5);
}

static void draw_and_give(void *ctx, int64_t i)
{
    qd_budget *b = ctx;
    for (int k = 0; k < 1000; k++)
        if (qd_budget_draw(b, 30, "x", NULL) == QD_OK)
            qd_budget_give(b, 30);
}

static void budget_from_many_threads(void **state)
{
    qd_budget b;
    qd_budget_init(&b, 100);
    qd_par_for(4, 16, draw_and_give, &b);
    assert_int_equal(b.used_bytes, 0);
    assert_in_range(b.peak_bytes, 30, 90);
}

static qd_status makes_three(void *ctx, qd_err *err)
{
    int *cleaned = ctx;
    qd_status st = QD_OK;
    char *p[3] = { 0 };
    for (int k = 0; k < 3; k++) {
        p[k] = qd_strdup("x");
        if (!p[k]) {
            st = qd_fail(err, QD_E_NOMEM, "string %d", k);
            break;
        }
    }
    for (int k = 0; k < 3; k++)
        qd_free(p[k]);
    (*cleaned)++;
    return st;
}

static void harness_counts_allocations(void **state)
{
    int cleaned = 0;
    assert_int_equal(harness_run_each_alloc(makes_three, &cleaned, 10), 3);
    assert_int_equal(cleaned, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fault_hits_the_kth),
        cmocka_unit_test(realloc_failure_keeps_the_block),
        cmocka_unit_test(sizes),
        cmocka_unit_test(strings),
        cmocka_unit_test(arena),
        cmocka_unit_test(budget),
        cmocka_unit_test(budget_from_many_threads),
        cmocka_unit_test(harness_counts_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
