/* inverse.c - the upper factor U of an inverse, H^-1 = U^T U, for H symmetric and positive definite, in double and in blocks.
 *
 * With H = R R^T, R upper (Cholesky's method from the last row up), U = R^-1: no inverse is formed. Blocks are pieces for threads and
 * fit caches; every sum is taken in one order. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/par.h"
#include "quant/recon_int.h"

enum { BLOCK = 64, DEPTH = 256, ROWS = 16, AT_ONCE = 8 };

typedef struct factor {
    double *a; // [n, n]: H, then R in its upper half
    double *u; // [n, n]
    int64_t n, j0, j1;
    int64_t first; /* piece of the call */
} factor;

/* Rows of columns j0..j1-1 of H less what later columns of R account for. */
static void update_rows(void *ctx, int64_t piece)
{
    const factor *f = ctx;
    const int64_t i0 = piece * ROWS, i1 = i0 + ROWS < f->j1 ? i0 + ROWS : f->j1;
    for (int64_t k0 = f->j1; k0 < f->n; k0 += DEPTH) {
        const int64_t k1 = k0 + DEPTH < f->n ? k0 + DEPTH : f->n;
        for (int64_t j = f->j0; j < f->j1; j++) {
            const double *rj = f->a + j * f->n;
            for (int64_t i = i0; i < i1 && i <= j; i++) {
                const double *ri = f->a + i * f->n;
                double s[4] = { 0 };
                int64_t k = k0;
                for (; k + 4 <= k1; k += 4)
                    for (int x = 0; x < 4; x++)
                        s[x] += ri[k + x] * rj[k + x];
                for (; k < k1; k++)
                    s[0] += ri[k] * rj[k];
                f->a[i * f->n + j] -= (s[0] + s[1]) + (s[2] + s[3]);
            }
        }
    }
}

/* The block on the diagonal; false when H is not positive definite. */
static bool factor_block(const factor *f)
{
    const int64_t n = f->n;
    for (int64_t j = f->j1 - 1; j >= f->j0; j--) {
        double *rj = f->a + j * n;
        double d = rj[j];
        for (int64_t k = j + 1; k < f->j1; k++)
            d -= rj[k] * rj[k];
        if (!(d > 0.0) || !isfinite(d))
            return false;
        rj[j] = sqrt(d);
        for (int64_t i = f->j0; i < j; i++) {
            double *ri = f->a + i * n, s = ri[j];
            for (int64_t k = j + 1; k < f->j1; k++)
                s -= ri[k] * rj[k];
            ri[j] = s / rj[j];
        }
    }
    return true;
}

/* Rows above the block. */
static void solve_rows(void *ctx, int64_t piece)
{
    const factor *f = ctx;
    const int64_t i0 = piece * ROWS, i1 = i0 + ROWS < f->j0 ? i0 + ROWS : f->j0;
    for (int64_t i = i0; i < i1; i++) {
        double *ri = f->a + i * f->n;
        for (int64_t j = f->j1 - 1; j >= f->j0; j--) {
            const double *rj = f->a + j * f->n;
            double s = ri[j];
            for (int64_t k = j + 1; k < f->j1; k++)
                s -= ri[k] * rj[k];
            ri[j] = s / rj[j];
        }
    }
}

/* Columns of U by substitution from the last row up. */
static void invert_columns(void *ctx, int64_t piece)
{
    const factor *f = ctx;
    const int64_t n = f->n, c0 = (f->first + piece) * BLOCK, c1 = c0 + BLOCK < n ? c0 + BLOCK : n;
    for (int64_t j = c1 - 1; j >= 0; j--) {
        const double *rj = f->a + j * n;
        double *uj = f->u + j * n, sum[BLOCK] = { 0 };
        for (int64_t m = j + 1; m < c1; m++) {
            const double *um = f->u + m * n + c0, r = rj[m];
            for (int64_t c = 0; c < c1 - c0; c++)
                sum[c] += r * um[c];
        }
        for (int64_t c = c0; c < c1; c++)
            uj[c] = ((c == j ? 1.0 : 0.0) - sum[c - c0]) / rj[j];
    }
}

qd_status qd_inverse_factor(double *h, double *u, int64_t n, const qd_run *run, bool *positive, qd_err *err)
{
    factor f = { .a = h, .u = u, .n = n };
    const int threads = qd_run_threads(run);
    *positive = true;
    for (f.j1 = n; f.j1 > 0; f.j1 = f.j0) {
        const qd_status st = qd_run_check(run, err);
        if (st)
            return st;
        f.j0 = f.j1 > BLOCK ? f.j1 - BLOCK : 0;
        qd_par_for(threads, (f.j1 + ROWS - 1) / ROWS, update_rows, &f);
        *positive = factor_block(&f);
        if (!*positive)
            return QD_OK;
        qd_par_for(threads, (f.j0 + ROWS - 1) / ROWS, solve_rows, &f);
    }
    memset(u, 0, (size_t)(n * n) * sizeof *u);
    const int64_t pieces = (n + BLOCK - 1) / BLOCK;
    for (f.first = 0; f.first < pieces; f.first += AT_ONCE) {
        const qd_status st = qd_run_check(run, err);
        if (st)
            return st;
        qd_par_for(threads, pieces - f.first < AT_ONCE ? pieces - f.first : AT_ONCE, invert_columns, &f);
    }
    return QD_OK;
}
