/* pairwise.c - scalar products of every row of one set with every row of another, a few rows at a time. */
#include "base/mem.h"
#include "base/par.h"
#include "metrics/metrics_int.h"

/* A piece is one product; pieces, not threads, decide its arithmetic. Between blocks there is time to be cancelled. */
enum { PIECE = 32, BLOCK = 4 * PIECE };

typedef struct block {
    const double *a, *b;
    int64_t first, rows, nb, dim; /* rows first.. of a */
    double *products;             // [BLOCK, nb]
    void (*fn)(void *ctx, int64_t i, const double *products);
    void *ctx;
} block;

static void one_piece(void *ctx, int64_t piece)
{
    const block *o = ctx;
    const int64_t begin = piece * PIECE, rows = o->rows - begin < PIECE ? o->rows - begin : PIECE;
    double *products = o->products + begin * o->nb;
    qd_dgemm_nt(products, o->a + (o->first + begin) * o->dim, o->b, rows, o->nb, o->dim);
    for (int64_t k = 0; k < rows; k++)
        o->fn(o->ctx, o->first + begin + k, products + k * o->nb);
}

qd_status qd_each_row(const double *a, int64_t na, const double *b, int64_t nb, int64_t dim,
                      void (*fn)(void *ctx, int64_t i, const double *products), void *ctx, const qd_run *run,
                      qd_err *err)
{
    block o = { .a = a, .b = b, .nb = nb, .dim = dim, .fn = fn, .ctx = ctx };
    qd_status st = QD_OK;
    o.products = qd_metric_take(run, (size_t)nb, BLOCK * sizeof(double), "products of features", &st, err);
    for (; o.first < na && !st; o.first += BLOCK) {
        o.rows = na - o.first < BLOCK ? na - o.first : BLOCK;
        qd_par_for(qd_run_threads(run), (o.rows + PIECE - 1) / PIECE, one_piece, &o);
        st = qd_run_check(run, err);
    }
    qd_metric_give(run, o.products, (size_t)nb, BLOCK * sizeof(double));
    return st;
}

void *qd_metric_take(const qd_run *run, size_t count, size_t size, const char *what, qd_status *st, qd_err *err)
{
    size_t bytes;
    void *p = NULL;
    if (*st)
        return NULL;
    if (!qd_mul_size(count, size, &bytes))
        *st = qd_fail(err, QD_E_LIMIT, "%zu times %zu bytes of %s are too many", count, size, what);
    else
        *st = qd_budget_draw(qd_run_budget(run), bytes, what, err);
    if (*st)
        return NULL;
    p = qd_calloc(1, bytes);
    if (!p) {
        qd_budget_give(qd_run_budget(run), bytes);
        *st = qd_fail(err, QD_E_NOMEM, "no memory for %zu bytes of %s", bytes, what);
    }
    return p;
}

void qd_metric_give(const qd_run *run, void *p, size_t count, size_t size)
{
    if (p)
        qd_budget_give(qd_run_budget(run), count * size);
    qd_free(p);
}

double *qd_metric_widen(const qd_run *run, const float *rows, int64_t n, int64_t dim, qd_status *st, qd_err *err)
{
    double *wide = qd_metric_take(run, (size_t)n, (size_t)dim * sizeof *wide, "features", st, err);
    for (int64_t k = 0; wide && k < n * dim; k++)
        wide[k] = rows[k];
    return wide;
}

void qd_metric_give_wide(const qd_run *run, double *wide, int64_t n, int64_t dim)
{
    qd_metric_give(run, wide, (size_t)n, (size_t)dim * sizeof *wide);
}
