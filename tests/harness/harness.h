/* harness.h - what every test uses: cmocka, checks that print both sides, tensor comparison, paths of data that may be absent. */
#ifndef HARNESS_H
#define HARNESS_H

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */

#include <stdbool.h>

#include "base/err.h"
#include "base/rng.h"

/* Fails with the words in err. */
#define check_ok(expr, err) harness_check_ok((expr), (err), #expr, __FILE__, __LINE__)
/* Fails unless expr gives exactly `status` and the words contain `text` (NULL = anything). Clears err afterwards. */
#define check_fails(expr, status, text, err)                                                                           \
    harness_check_fails((expr), (status), (text), (err), #expr, __FILE__, __LINE__)
void harness_check_ok(qd_status st, const qd_err *err, const char *what, const char *file, int line);
void harness_check_fails(qd_status st, qd_status want, const char *text, qd_err *err, const char *what,
                         const char *file, int line);

/* |a - b| <= abs_tol + rel_tol * max|b| everywhere; otherwise fails with the worst place and both values. Returns the worst
 * absolute error over max|b| (0 when b is all zero and equal). */
#define check_close(a, b, n, abs_tol, rel_tol)                                                                         \
    harness_check_close((a), (b), (n), (abs_tol), (rel_tol), #a " vs " #b, __FILE__, __LINE__)
double harness_check_close(const float *a, const float *b, int64_t n, double abs_tol, double rel_tol, const char *what,
                           const char *file, int line);

/* A path below shared data ("weights/fmnist-ddpm-unet/golden.safetensors"), looked for in $QUANTD_TEST_DATA, then in
 * <source>/../shared/data; NULL and a printed "skipped: ..." line when it is absent. Static storage, valid until the next call. */
const char *harness_data(const char *relative);
/* A path inside the repository, from $QUANTD_SOURCE. Static storage (ring of 4). */
const char *harness_source(const char *relative);
/* A fresh folder under $TMPDIR, removed at exit. Static storage (ring of 4). */
const char *harness_tmp(void);

/* Random floats of N(0, scale^2) from a seed that is printed when a check fails. */
void harness_normal(float *dst, int64_t n, uint64_t seed, float scale);

/* Call fn(ctx, err) again and again, the k-th time with its k-th allocation failing, until a call needs no more than k. Each call
 * must give QD_E_NOMEM with words, or QD_OK where it can do without; it must clean up after itself both times (the leak checker of
 * a sanitizer build sees to that). Returns how many allocations a clean call makes; fails when there are `limit` or more. */
long harness_run_each_alloc(qd_status (*fn)(void *ctx, qd_err *err), void *ctx, long limit);

#endif
