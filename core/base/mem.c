/* mem.c - the heap behind a fault switch, arenas, budgets. */
#include "base/mem.h"

#include <assert.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_BLOCK_BYTES ((size_t)16384)
#define ARENA_ALIGN ((size_t)16)

/* The one piece of process-wide state of core: tests alone write it. */
static atomic_long fault_in = -1;
static atomic_bool fault_hit;

void qd_mem_fault_set(long k)
{
    atomic_store(&fault_hit, false);
    atomic_store(&fault_in, k);
}

bool qd_mem_fault_hit(void)
{
    return atomic_load(&fault_hit);
}

static bool fault_now(void)
{
    if (atomic_load_explicit(&fault_in, memory_order_relaxed) < 0)
        return false;
    if (atomic_fetch_sub(&fault_in, 1) != 0)
        return false;
    atomic_store(&fault_hit, true);
    return true;
}

void *qd_alloc(size_t n)
{
    if (fault_now())
        return NULL;
    return malloc(n ? n : 1);
}

void *qd_calloc(size_t count, size_t size)
{
    size_t n;
    if (!qd_mul_size(count, size, &n) || fault_now())
        return NULL;
    return calloc(1, n ? n : 1);
}

void *qd_realloc(void *p, size_t n)
{
    if (fault_now())
        return NULL;
    return realloc(p, n ? n : 1);
}

void *qd_alloc_aligned(size_t n)
{
    void *p = NULL;
    if (fault_now())
        return NULL;
    return posix_memalign(&p, 64, n ? n : 1) == 0 ? p : NULL;
}

void qd_mem_give_back(void)
{
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
}

void qd_free(void *p)
{
    free(p);
}

char *qd_strndup(const char *s, size_t n)
{
    const size_t len = strnlen(s, n);
    char *copy = qd_alloc(len + 1);
    if (!copy)
        return NULL;
    memcpy(copy, s, len);
    copy[len] = '\0';
    return copy;
}

char *qd_strdup(const char *s)
{
    return qd_strndup(s, strlen(s));
}

char *qd_asprintf(const char *fmt, ...)
{
    va_list ap, again;
    char *text = NULL;

    va_start(ap, fmt);
    va_copy(again, ap);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    if (n >= 0)
        text = qd_alloc((size_t)n + 1);
    if (text)
        vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(ap);
    return text;
}

typedef struct qd_arena_block {
    struct qd_arena_block *next;
    size_t size, used; /* bytes after the head */
} qd_arena_block;

#define BLOCK_HEAD ((sizeof(qd_arena_block) + ARENA_ALIGN - 1) & ~(ARENA_ALIGN - 1))

void qd_arena_init(qd_arena *a)
{
    *a = (qd_arena){ 0 };
}

void qd_arena_clear(qd_arena *a)
{
    for (qd_arena_block *b = a->head; b;) {
        qd_arena_block *next = b->next;
        qd_free(b);
        b = next;
    }
    *a = (qd_arena){ 0 };
}

void *qd_arena_alloc(qd_arena *a, size_t n)
{
    size_t want;
    if (!qd_add_size(n ? n : 1, ARENA_ALIGN - 1, &want))
        return NULL;
    want &= ~(ARENA_ALIGN - 1);

    qd_arena_block *b = a->head;
    if (!b || b->size - b->used < want) {
        const size_t room = want > ARENA_BLOCK_BYTES ? want : ARENA_BLOCK_BYTES;
        size_t total;
        if (!qd_add_size(room, BLOCK_HEAD, &total))
            return NULL;
        b = qd_alloc(total);
        if (!b)
            return NULL;
        *b = (qd_arena_block){ .size = room };
        /* A block made for one large thing goes behind the head, so that the head's room is not lost. */
        if (a->head && want > ARENA_BLOCK_BYTES / 2) {
            b->next = a->head->next;
            a->head->next = b;
        } else {
            b->next = a->head;
            a->head = b;
        }
    }
    void *p = (char *)b + BLOCK_HEAD + b->used;
    b->used += want;
    a->used_bytes += n;
    memset(p, 0, want);
    return p;
}

char *qd_arena_strdup(qd_arena *a, const char *s)
{
    const size_t n = strlen(s) + 1;
    char *copy = qd_arena_alloc(a, n);
    if (copy)
        memcpy(copy, s, n);
    return copy;
}

void qd_budget_init(qd_budget *b, size_t limit_bytes)
{
    b->limit_bytes = limit_bytes;
    atomic_init(&b->used_bytes, 0);
    atomic_init(&b->peak_bytes, 0);
}

qd_status qd_budget_draw(qd_budget *b, size_t n, const char *what, qd_err *err)
{
    if (!b)
        return QD_OK;

    size_t used = atomic_load(&b->used_bytes), now;
    do {
        if (!qd_add_size(used, n, &now) || (b->limit_bytes && now > b->limit_bytes))
            return qd_fail(err, QD_E_LIMIT, "%s needs %zu bytes; %zu are in use and the limit of this job is %zu", what,
                           n, used, b->limit_bytes);
    } while (!atomic_compare_exchange_weak(&b->used_bytes, &used, now));

    size_t peak = atomic_load(&b->peak_bytes);
    while (peak < now && !atomic_compare_exchange_weak(&b->peak_bytes, &peak, now))
        ;
    return QD_OK;
}

void qd_budget_give(qd_budget *b, size_t n)
{
    if (!b)
        return;
    const size_t before = atomic_fetch_sub(&b->used_bytes, n);
    assert(before >= n);
    (void)before;
}
