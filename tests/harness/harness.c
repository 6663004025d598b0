/* harness.c - checks that print both sides, data that may be absent, folders that vanish, allocations that fail in turn. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"

#define RING 4
#define PATH_BYTES 1024
#define MAX_TMP 256

static uint64_t last_seed; /* of harness_normal in this test program */

void harness_check_ok(qd_status st, const qd_err *err, const char *what, const char *file, int line)
{
    if (st == QD_OK)
        return;
    print_error("%s\n    gave %s: %s\n", what, qd_status_name(st), err && err->text[0] ? err->text : "(no words)");
    _fail(file, line);
}

void harness_check_fails(qd_status st, qd_status want, const char *text, qd_err *err, const char *what,
                         const char *file, int line)
{
    const char *words = err ? err->text : "";
    if (st != want) {
        print_error("%s\n    gave %s (%s), wanted %s\n", what, qd_status_name(st), words, qd_status_name(want));
        _fail(file, line);
    }
    if (text && !strstr(words, text)) {
        print_error("%s\n    said \"%s\",\n    wanted words with \"%s\"\n", what, words, text);
        _fail(file, line);
    }
    if (err)
        *err = (qd_err){ 0 };
}

double harness_check_close(const float *a, const float *b, int64_t n, double abs_tol, double rel_tol, const char *what,
                           const char *file, int line)
{
    double largest = 0.0, worst = -1.0;
    int64_t at = 0;
    for (int64_t k = 0; k < n; k++)
        if (isfinite(b[k]))
            largest = fmax(largest, fabs((double)b[k]));
    for (int64_t k = 0; k < n; k++) {
        double d = fabs((double)a[k] - (double)b[k]);
        if (isnan(d)) /* equal infinities agree, a NaN agrees with nothing */
            d = a[k] == b[k] ? 0.0 : INFINITY;
        if (d > worst) {
            worst = d;
            at = k;
        }
    }
    const double limit = abs_tol + rel_tol * largest;
    if (worst > limit) {
        print_error("%s\n    worst of %lld at [%lld]: %.9g against %.9g, off by %.3g; allowed %.3g (max |b| = %.3g)\n",
                    what, (long long)n, (long long)at, a[at], b[at], worst, limit, largest);
        print_error("    last seed drawn: %llu\n", (unsigned long long)last_seed);
        _fail(file, line);
    }
    if (worst <= 0.0)
        return 0.0;
    return largest > 0.0 ? worst / largest : worst;
}

const char *harness_source(const char *relative)
{
    static char ring[RING][PATH_BYTES];
    static int next;
    const char *root = getenv("QUANTD_SOURCE");
    char *path = ring[next++ % RING];
    const int n = snprintf(path, PATH_BYTES, "%s/%s", root ? root : ".", relative);
    assert_in_range(n, 1, PATH_BYTES - 1);
    return path;
}

const char *harness_data(const char *relative)
{
    static char path[PATH_BYTES];
    const char *root = getenv("QUANTD_TEST_DATA");
    int n;
    if (root)
        n = snprintf(path, sizeof path, "%s/%s", root, relative);
    else
        n = snprintf(path, sizeof path, "%s/%s", harness_source("../shared/data"), relative);
    assert_in_range(n, 1, PATH_BYTES - 1);
    if (qd_fs_exists(path))
        return path;
    print_message("skipped: no data at %s\n", path);
    return NULL;
}

static char made[MAX_TMP][PATH_BYTES];
static int n_made;
static pid_t maker;

static void remove_made(void)
{
    if (getpid() != maker)
        return; /* a forked child must not take its parent's folders away */
    qd_mem_fault_set(-1);
    for (int k = 0; k < n_made; k++)
        qd_fs_remove_tree(made[k], NULL);
}

const char *harness_tmp(void)
{
    const char *base = getenv("TMPDIR");
    assert_true(n_made < MAX_TMP);
    if (n_made == 0) {
        maker = getpid();
        atexit(remove_made);
    }
    char *path = made[n_made];
    const int n = snprintf(path, PATH_BYTES, "%s/quantd-test-XXXXXX", base ? base : "/tmp");
    assert_in_range(n, 1, PATH_BYTES - 1);
    assert_non_null(mkdtemp(path));
    n_made++;
    return path;
}

void harness_normal(float *dst, int64_t n, uint64_t seed, float scale)
{
    last_seed = seed;
    qd_rng_normal(dst, (size_t)n, seed, QD_STREAM_WEIGHTS, 0);
    for (int64_t k = 0; k < n; k++)
        dst[k] *= scale;
}

long harness_run_each_alloc(qd_status (*fn)(void *ctx, qd_err *err), void *ctx, long limit)
{
    for (long k = 0; k < limit; k++) {
        qd_err err = { 0 };
        qd_mem_fault_set(k);
        const qd_status st = fn(ctx, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);

        if (!hit) {
            if (st != QD_OK)
                fail_msg("with all allocations working it gave %s: %s", qd_status_name(st), err.text);
            return k;
        }
        if (st != QD_OK && st != QD_E_NOMEM)
            fail_msg("failing allocation %ld gave %s: %s", k, qd_status_name(st), err.text);
        if (st == QD_E_NOMEM && err.text[0] == '\0')
            fail_msg("failing allocation %ld gave nomem without words", k);
    }
    fail_msg("more than %ld allocations", limit);
    return limit;
}
