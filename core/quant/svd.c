/* svd.c - the largest singular values and vectors of a matrix: block power iteration with a few vectors more than are asked for
 * (Halko, Martinsson, Tropp 2011, 4.4 and 4.5), in double, orthogonal anew in every round; the small problem left by Jacobi's method.
 * Every sum is taken in one order, so the result does not depend on the number of threads. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/par.h"
#include "base/rng.h"
#include "quant/qncd_int.h"

enum { EXTRA = 8, MOST_ROUNDS = 200, SWEEPS = 60, CHUNK = 16 };
#define SETTLED 1e-12 /* relative change of a squared singular value in a round */

typedef struct work {
    const float *a; // [m, n]
    int64_t m, n;
    int p;       /* vectors */
    double *q;   // [m, p], orthonormal columns
    double *z;   // [n, p]: a^T q
    double *y;   // [m, p]: a z
    double *g;   // [p, p]: z^T z
    double *e;   // [p, p]: its eigenvectors, in columns
    double *was; // [p]
} work;

static void rows_of_z(void *ctx, int64_t piece)
{
    const work *w = ctx;
    const int64_t j0 = piece * CHUNK, j1 = j0 + CHUNK < w->n ? j0 + CHUNK : w->n;
    memset(w->z + j0 * w->p, 0, (size_t)((j1 - j0) * w->p) * sizeof *w->z);
    for (int64_t i = 0; i < w->m; i++)
        for (int64_t j = j0; j < j1; j++) {
            const double a = w->a[i * w->n + j];
            for (int k = 0; k < w->p; k++)
                w->z[j * w->p + k] += a * w->q[i * w->p + k];
        }
}

static void rows_of_y(void *ctx, int64_t i)
{
    const work *w = ctx;
    double *y = w->y + i * w->p;
    memset(y, 0, (size_t)w->p * sizeof *y);
    for (int64_t j = 0; j < w->n; j++) {
        const double a = w->a[i * w->n + j];
        for (int k = 0; k < w->p; k++)
            y[k] += a * w->z[j * w->p + k];
    }
}

/* Columns of v [rows, p] orthonormal, each twice against those before it; one that depends on them becomes zero. */
static void orthonormalize(double *v, int64_t rows, int p)
{
    for (int k = 0; k < p; k++) {
        double before = 0.0, after = 0.0;
        for (int64_t i = 0; i < rows; i++)
            before += v[i * p + k] * v[i * p + k];
        for (int round = 0; round < 2; round++)
            for (int j = 0; j < k; j++) {
                double dot = 0.0;
                for (int64_t i = 0; i < rows; i++)
                    dot += v[i * p + k] * v[i * p + j];
                for (int64_t i = 0; i < rows; i++)
                    v[i * p + k] -= dot * v[i * p + j];
            }
        for (int64_t i = 0; i < rows; i++)
            after += v[i * p + k] * v[i * p + k];
        const double by = after > 1e-24 * before && after > 0.0 ? 1.0 / sqrt(after) : 0.0;
        for (int64_t i = 0; i < rows; i++)
            v[i * p + k] *= by;
    }
}

/* Eigenvalues of g [p, p], symmetric, on its diagonal afterwards, vectors in the columns of e: cyclic Jacobi rotations. */
static void jacobi(double *g, double *e, int p)
{
    for (int i = 0; i < p * p; i++)
        e[i] = i % (p + 1) == 0;
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        double off = 0.0, all = 0.0;
        for (int i = 0; i < p; i++)
            for (int j = 0; j < p; j++) {
                all += g[i * p + j] * g[i * p + j];
                off += i == j ? 0.0 : g[i * p + j] * g[i * p + j];
            }
        if (off <= 1e-30 * all)
            return;
        for (int i = 0; i < p; i++)
            for (int j = i + 1; j < p; j++) {
                if (g[i * p + j] == 0.0)
                    continue;
                const double theta = (g[j * p + j] - g[i * p + i]) / (2.0 * g[i * p + j]);
                const double t = copysign(1.0, theta) / (fabs(theta) + hypot(theta, 1.0));
                const double c = 1.0 / hypot(t, 1.0), s = t * c;
                for (int k = 0; k < p; k++) {
                    const double x = g[k * p + i], y = g[k * p + j];
                    g[k * p + i] = c * x - s * y;
                    g[k * p + j] = s * x + c * y;
                }
                for (int k = 0; k < p; k++) {
                    const double x = g[i * p + k], y = g[j * p + k];
                    g[i * p + k] = c * x - s * y;
                    g[j * p + k] = s * x + c * y;
                }
                for (int k = 0; k < p; k++) {
                    const double x = e[k * p + i], y = e[k * p + j];
                    e[k * p + i] = c * x - s * y;
                    e[k * p + j] = s * x + c * y;
                }
            }
    }
}

/* g = z^T z and its eigenvalues; true once the `rank` largest have settled. order [p]: where they are, falling. */
static bool solve_small(const work *w, int rank, int *order)
{
    const int p = w->p;
    memset(w->g, 0, (size_t)p * (size_t)p * sizeof *w->g);
    for (int64_t j = 0; j < w->n; j++)
        for (int a = 0; a < p; a++)
            for (int b = 0; b < p; b++)
                w->g[a * p + b] += w->z[j * p + a] * w->z[j * p + b];
    jacobi(w->g, w->e, p);
    for (int k = 0; k < p; k++) {
        int at = k; /* insertion: equal ones stay in order */
        while (at > 0 && w->g[order[at - 1] * (p + 1)] < w->g[k * (p + 1)]) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = k;
    }
    bool settled = true;
    for (int k = 0; k < p; k++) {
        const double now = fmax(w->g[order[k] * (p + 1)], 0.0);
        if (k < rank)
            settled = settled && fabs(now - w->was[k]) <= SETTLED * fmax(w->g[order[0] * (p + 1)], DBL_MIN);
        w->was[k] = now;
    }
    return settled;
}

qd_status qd_svd_top(const float *a, int64_t m, int64_t n, int rank, const qd_run *run, float *u, float *s, float *v,
                     qd_err *err)
{
    const int64_t least = m < n ? m : n;
    work w = { .a = a, .m = m, .n = n, .p = (int)(rank + EXTRA < least ? rank + EXTRA : least) };
    const size_t p = (size_t)w.p;
    qd_status st = QD_OK;
    qd_arena arena;
    if (rank < 1 || rank > least)
        return qd_fail(err, QD_E_INVALID, "rank %d of a matrix of %lld x %lld", rank, (long long)m, (long long)n);
    for (int64_t k = 0; k < m * n; k++)
        if (!isfinite(a[k]))
            return qd_fail(err, QD_E_NUMERIC, "element %lld of the matrix is not finite", (long long)k);
    qd_arena_init(&arena);
    w.q = qd_arena_alloc(&arena, (size_t)m * p * sizeof *w.q);
    w.y = qd_arena_alloc(&arena, (size_t)m * p * sizeof *w.y);
    w.z = qd_arena_alloc(&arena, (size_t)n * p * sizeof *w.z);
    w.g = qd_arena_alloc(&arena, p * p * sizeof *w.g);
    w.e = qd_arena_alloc(&arena, p * p * sizeof *w.e);
    w.was = qd_arena_alloc(&arena, p * sizeof *w.was);
    int *order = qd_arena_alloc(&arena, p * sizeof *order);
    float *start = qd_arena_alloc(&arena, (size_t)m * p * sizeof *start);
    if (!w.q || !w.y || !w.z || !w.g || !w.e || !w.was || !order || !start) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for %d vectors of %lld", w.p, (long long)(m + n));
        goto out;
    }
    qd_rng_normal(start, (size_t)m * p, 1, QD_STREAM_WEIGHTS, 0);
    for (size_t k = 0; k < (size_t)m * p; k++)
        w.q[k] = start[k];
    orthonormalize(w.q, m, w.p);
    for (int round = 0; round < MOST_ROUNDS && !st; round++) {
        st = qd_run_check(run, err);
        qd_par_for(qd_run_threads(run), (n + CHUNK - 1) / CHUNK, rows_of_z, &w);
        if (solve_small(&w, rank, order))
            break;
        qd_par_for(qd_run_threads(run), m, rows_of_y, &w);
        memcpy(w.q, w.y, (size_t)m * p * sizeof *w.q);
        orthonormalize(w.q, m, w.p);
    }
    /* The last round's q may be newer than its z: once more for both to belong together. */
    qd_par_for(qd_run_threads(run), (n + CHUNK - 1) / CHUNK, rows_of_z, &w);
    solve_small(&w, rank, order);
    for (int k = 0; k < rank && !st; k++) {
        const int c = order[k];
        const double sigma = sqrt(w.was[k]);
        s[k] = (float)sigma;
        for (int64_t i = 0; i < m; i++) {
            double x = 0.0;
            for (int j = 0; j < w.p; j++)
                x += w.q[i * w.p + j] * w.e[j * w.p + c];
            u[i * rank + k] = (float)x;
        }
        for (int64_t i = 0; i < n; i++) {
            double x = 0.0;
            for (int j = 0; j < w.p; j++)
                x += w.z[i * w.p + j] * w.e[j * w.p + c];
            v[k * n + i] = sigma > 0.0 ? (float)(x / sigma) : 0.0f;
        }
    }
out:
    qd_arena_clear(&arena);
    return st;
}
