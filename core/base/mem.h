/* mem.h - heap with a fault switch for tests, sizes that cannot overflow, arenas, budgets. */
#ifndef QD_BASE_MEM_H
#define QD_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* The house's heap. Return NULL when memory is out (or when a test said so). n == 0 gives a valid pointer. */
void *qd_alloc(size_t n);
void *qd_calloc(size_t count, size_t size); /* zeroed; overflow of count * size gives NULL */
void *qd_realloc(void *p, size_t n);        /* on NULL the old block is untouched */
void *qd_alloc_aligned(size_t n);           /* 64-byte aligned, for tensors; free with qd_free */
void qd_free(void *p);                      /* NULL is fine */
char *qd_strdup(const char *s);
char *qd_strndup(const char *s, size_t n);
char *qd_asprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* NULL when out of memory */

/* For main(), before threads start: large blocks go back to the system as soon as they are freed. Left alone, the C library keeps blocks of
 * up to 32 MB once it has freed one of that size, and a daemon would sit on the weights of its last job. */
void qd_mem_give_back(void);

/* Tests: let the k-th allocation from now on fail once (0 = the next); negative switches it off.
 * qd_mem_fault_hit tells whether it has fired. Process-wide. */
void qd_mem_fault_set(long k);
bool qd_mem_fault_hit(void);

/* *out = a * b, a + b; false when it does not fit. */
static inline bool qd_mul_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool qd_add_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* Many small things that die together. */
typedef struct qd_arena {
    struct qd_arena_block *head;
    size_t used_bytes;
} qd_arena;

void qd_arena_init(qd_arena *a);
void qd_arena_clear(qd_arena *a);
void *qd_arena_alloc(qd_arena *a, size_t n); /* 16-byte aligned, zeroed; NULL when out of memory */
char *qd_arena_strdup(qd_arena *a, const char *s);

/* A ceiling shared by everything one job allocates for tensors. Thread-safe. limit 0 means none. */
typedef struct qd_budget {
    size_t limit_bytes;
    _Atomic size_t used_bytes;
    _Atomic size_t peak_bytes;
} qd_budget;

void qd_budget_init(qd_budget *b, size_t limit_bytes);
/* Draw n bytes; QD_E_LIMIT (words name `what`, the ask, what is in use and the limit) when it would pass. b may be NULL. */
qd_status qd_budget_draw(qd_budget *b, size_t n, const char *what, qd_err *err);
void qd_budget_give(qd_budget *b, size_t n);

#endif
