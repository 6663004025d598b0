/* moments.c - mean and covariance of rows that come one after another, the same bytes whatever the threads and portions. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/par.h"
#include "metrics/metrics.h"

/* Rows wait until so many are there: portions of another size would be summed in another order. */
enum { BLOCK = 64, COLUMNS = 32, DIM_MAX = 16384 };

/* Sums of x - s and of their products, s being the mean of the first block: little is lost when means are large. */
struct qd_moments {
    qd_budget *budget;
    size_t drawn_bytes;
    int64_t dim, count; /* count: rows in sums and block together */
    int64_t waiting;    /* rows in block */
    bool shifted;       /* shift is known */
    double *shift;      // [dim]
    double *sum;        // [dim]
    double *products;   // [dim, dim], on and above the diagonal
    double *block;      // [BLOCK, dim]
};

void qd_moments_free(qd_moments *m)
{
    if (!m)
        return;
    qd_free(m->shift);
    qd_free(m->sum);
    qd_free(m->products);
    qd_free(m->block);
    qd_budget_give(m->budget, m->drawn_bytes);
    qd_free(m);
}

qd_status qd_moments_new(int64_t dim, qd_budget *budget, qd_moments **out, qd_err *err)
{
    qd_moments *m = NULL;
    if (dim < 1 || dim > DIM_MAX)
        return qd_fail(err, QD_E_LIMIT, "a covariance of %lld features; 1..%d are done", (long long)dim, DIM_MAX);
    const size_t n = (size_t)dim, bytes = (n * n + (BLOCK + 2) * n) * sizeof(double);
    m = qd_calloc(1, sizeof *m);
    if (!m)
        return qd_fail(err, QD_E_NOMEM, "no memory for moments");
    qd_status st = qd_budget_draw(budget, bytes, "a covariance of features", err);
    if (st)
        goto out;
    m->budget = budget;
    m->drawn_bytes = bytes;
    m->dim = dim;
    m->shift = qd_calloc(n, sizeof(double));
    m->sum = qd_calloc(n, sizeof(double));
    m->products = qd_calloc(n * n, sizeof(double));
    m->block = qd_calloc(BLOCK * n, sizeof(double));
    if (!m->shift || !m->sum || !m->products || !m->block) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a covariance of %lld features", (long long)dim);
        goto out;
    }
    *out = m;
    m = NULL;
out:
    qd_moments_free(m);
    return st;
}

/* --- a block --- */

/* dst[j] += a[r] x[r][j] for r = 0..rows-1 in this order, j = from..n-1; four rows at a time only to spare memory. */
static void add_products(double *dst, const double *x, const double *a, int64_t rows, int64_t stride, int64_t from,
                         int64_t n)
{
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const double *x0 = x + r * stride, *x1 = x0 + stride, *x2 = x1 + stride, *x3 = x2 + stride;
        const double a0 = a[r * stride], a1 = a[(r + 1) * stride], a2 = a[(r + 2) * stride], a3 = a[(r + 3) * stride];
        for (int64_t j = from; j < n; j++) {
            double v = dst[j];
            v += a0 * x0[j];
            v += a1 * x1[j];
            v += a2 * x2[j];
            v += a3 * x3[j];
            dst[j] = v;
        }
    }
    for (; r < rows; r++)
        for (int64_t j = from; j < n; j++)
            dst[j] += a[r * stride] * x[r * stride + j];
}

typedef struct flush {
    double *sum, *products;
    const double *block;
    int64_t dim, rows;
} flush;

static void flush_piece(void *ctx, int64_t piece)
{
    const flush *f = ctx;
    const int64_t end = (piece + 1) * COLUMNS < f->dim ? (piece + 1) * COLUMNS : f->dim;
    for (int64_t i = piece * COLUMNS; i < end; i++) {
        add_products(f->products + i * f->dim, f->block, f->block + i, f->rows, f->dim, i, f->dim);
        for (int64_t r = 0; r < f->rows; r++)
            f->sum[i] += f->block[r * f->dim + i];
    }
}

/* The waiting rows, less the shift, into sum and products. */
static void add_block(const qd_moments *m, const double *shift, double *block, double *sum, double *products,
                      int threads)
{
    for (int64_t r = 0; r < m->waiting; r++)
        for (int64_t j = 0; j < m->dim; j++)
            block[r * m->dim + j] -= shift[j];
    flush f = { .sum = sum, .products = products, .block = block, .dim = m->dim, .rows = m->waiting };
    qd_par_for(threads, (m->dim + COLUMNS - 1) / COLUMNS, flush_piece, &f);
}

static void mean_of_block(const qd_moments *m, double *mean)
{
    for (int64_t j = 0; j < m->dim; j++) {
        double sum = 0.0;
        for (int64_t r = 0; r < m->waiting; r++)
            sum += m->block[r * m->dim + j];
        mean[j] = sum / (double)m->waiting;
    }
}

qd_status qd_moments_add(qd_moments *m, const float *rows, int64_t n, int threads, qd_err *err)
{
    for (int64_t k = 0; k < n * m->dim; k++)
        if (!isfinite(rows[k]))
            return qd_fail(err, QD_E_NUMERIC, "feature %lld of picture %lld is %g", (long long)(k % m->dim),
                           (long long)(m->count + k / m->dim), (double)rows[k]);
    for (int64_t r = 0; r < n; r++) {
        for (int64_t j = 0; j < m->dim; j++)
            m->block[m->waiting * m->dim + j] = rows[r * m->dim + j];
        m->count++;
        if (++m->waiting < BLOCK)
            continue;
        if (!m->shifted)
            mean_of_block(m, m->shift);
        m->shifted = true;
        add_block(m, m->shift, m->block, m->sum, m->products, threads);
        m->waiting = 0;
    }
    return QD_OK;
}

/* --- what they make --- */

qd_status qd_moments_gauss(const qd_moments *m, int threads, qd_gauss *out, qd_err *err)
{
    const size_t n = (size_t)m->dim;
    qd_gauss g = { .count = m->count, .dim = m->dim };
    double *shift = NULL, *block = NULL;
    qd_status st = QD_OK;

    if (m->count < 2)
        return qd_fail(err, QD_E_INVALID, "%lld pictures have no covariance; 2 are the least", (long long)m->count);
    g.mean = qd_calloc(n, sizeof(double));
    g.cov = qd_calloc(n * n, sizeof(double));
    shift = qd_calloc(n, sizeof(double));
    block = qd_calloc(BLOCK * n, sizeof(double));
    if (!g.mean || !g.cov || !shift || !block) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a covariance of %lld features", (long long)m->dim);
        goto out;
    }
    memcpy(g.mean, m->sum, n * sizeof(double));
    memcpy(g.cov, m->products, n * n * sizeof(double));
    memcpy(block, m->block, BLOCK * n * sizeof(double));
    if (m->shifted)
        memcpy(shift, m->shift, n * sizeof(double));
    else
        mean_of_block(m, shift);
    add_block(m, shift, block, g.mean, g.cov, threads);
    /* cov = (sum of products - sum sum^T / n) / (n - 1); here mean still holds the sums. */
    for (size_t i = 0; i < n; i++)
        for (size_t j = i; j < n; j++)
            g.cov[i * n + j] = g.cov[j * n + i] =
                (g.cov[i * n + j] - g.mean[i] * g.mean[j] / (double)m->count) / (double)(m->count - 1);
    for (size_t i = 0; i < n; i++)
        g.mean[i] = shift[i] + g.mean[i] / (double)m->count;
    *out = g;
    memset(&g, 0, sizeof g);
out:
    qd_gauss_clear(&g);
    qd_free(shift);
    qd_free(block);
    return st;
}
