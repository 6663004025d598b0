/* test_par.c - loops on threads: every piece once, and each thread knows its number, in a loop within a loop too. */
#include "harness/harness.h"

#include <stdatomic.h>
#include <string.h>

#include "base/par.h"

enum { PIECES = 64, THREADS = 3 };

static void count(void *ctx, int64_t i)
{
    atomic_int *seen = ctx;
    assert_in_range(qd_par_thread(), 0, THREADS - 1);
    atomic_fetch_add(&seen[i], 1);
}

static void every_piece_once(void **state)
{
    for (int threads = 0; threads <= THREADS; threads++) {
        atomic_int seen[PIECES] = { 0 };
        qd_par_for(threads, PIECES, count, seen);
        for (int i = 0; i < PIECES; i++)
            assert_int_equal(seen[i], 1);
        assert_int_equal(qd_par_thread(), 0);
    }
    qd_par_for(2, 0, count, NULL);
}

/* What outer piece i saw: its number, that of a loop of one thread within it, and its own again. */
typedef struct nested {
    int before[PIECES], inside[PIECES], after[PIECES];
} nested;

typedef struct piece {
    nested *n;
    int64_t i;
} piece;

static void inner(void *ctx, int64_t k)
{
    const piece *p = ctx;
    if (qd_par_thread() > p->n->inside[p->i])
        p->n->inside[p->i] = qd_par_thread();
}

static void outer(void *ctx, int64_t i)
{
    nested *n = ctx;
    piece p = { n, i };
    n->before[i] = qd_par_thread();
    qd_par_for(1, 5, inner, &p);
    qd_par_for(THREADS, 5, inner, &p);
    n->after[i] = qd_par_thread();
}

/* Scratch of a loop of one thread has room for one, whatever the thread that runs it. */
static void numbers_of_nested_loops(void **state)
{
    static nested n;
    int highest = 0;
    memset(&n, 0, sizeof n);
    qd_par_for(THREADS, PIECES, outer, &n);
    for (int i = 0; i < PIECES; i++) {
        assert_int_equal(n.inside[i], 0);
        assert_int_equal(n.before[i], n.after[i]);
        highest = n.before[i] > highest ? n.before[i] : highest;
    }
    assert_int_equal(highest, THREADS - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_piece_once),
        cmocka_unit_test(numbers_of_nested_loops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
