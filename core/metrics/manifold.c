/* manifold.c - precision, recall, density, coverage: who lies in whose neighbourhood (Kynkaanniemi 2019, Naeem 2020). */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "metrics/metrics_int.h"

enum { K_MAX = 64 };

/* Rows of a set, their squared lengths and how far their balls reach. */
typedef struct cloud {
    double *rows;   // [n, dim]
    double *length; // [n], squared
    double *reach;  // [n], squared distance to the k-th neighbour
    int64_t n;
} cloud;

static void cloud_clear(cloud *c, int64_t dim, const qd_run *run)
{
    qd_metric_give_wide(run, c->rows, c->n, dim);
    qd_free(c->length);
    qd_free(c->reach);
}

/* --- reach --- */

typedef struct search {
    const cloud *c;
    int k;
} search;

/* Never below zero: what is equal has no distance. */
static inline double distance2(double a, double b, double product)
{
    return fmax(a + b - 2.0 * product, 0.0);
}

static void find_reach(void *ctx, int64_t i, const double *products)
{
    const search *s = ctx;
    double nearest[K_MAX];
    int n = 0;
    for (int64_t j = 0; j < s->c->n; j++) {
        if (j == i)
            continue;
        const double d = distance2(s->c->length[i], s->c->length[j], products[j]);
        if (n == s->k && d >= nearest[n - 1])
            continue;
        int at = n < s->k ? n++ : n - 1;
        for (; at > 0 && nearest[at - 1] > d; at--)
            nearest[at] = nearest[at - 1];
        nearest[at] = d;
    }
    s->c->reach[i] = nearest[n - 1];
}

static qd_status cloud_init(cloud *c, const float *rows, int64_t n, int64_t dim, int k, const qd_run *run, qd_err *err)
{
    qd_status st = QD_OK;
    c->rows = qd_metric_widen(run, rows, n, dim, &st, err);
    if (st)
        return st;
    c->n = n;
    c->length = qd_calloc((size_t)n, sizeof *c->length);
    c->reach = qd_calloc((size_t)n, sizeof *c->reach);
    if (!c->length || !c->reach)
        return qd_fail(err, QD_E_NOMEM, "no memory for the neighbours of %lld pictures", (long long)n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < dim; j++)
            c->length[i] += c->rows[i * dim + j] * c->rows[i * dim + j];
    const search s = { .c = c, .k = k };
    return qd_each_row(c->rows, n, c->rows, n, dim, find_reach, (void *)&s, run, err);
}

/* --- who is in whose ball --- */

typedef struct visit {
    const cloud *from, *to;
    int64_t *balls; // [from->n]: how many balls of `to` hold row i
    bool *reached;  // [from->n]: does the ball of row i hold anything of `to`? NULL = not asked
} visit;

static void look_around(void *ctx, int64_t i, const double *products)
{
    const visit *v = ctx;
    for (int64_t j = 0; j < v->to->n; j++) {
        const double d = distance2(v->from->length[i], v->to->length[j], products[j]);
        v->balls[i] += d <= v->to->reach[j];
        if (v->reached)
            v->reached[i] = v->reached[i] || d <= v->from->reach[i];
    }
}

/* Share of rows of `from` in a ball of `to`; mean number of such balls; share of balls of `from` that hold a row of `to`. */
typedef struct seen {
    double inside, balls, reached;
} seen;

static qd_status look(const cloud *from, const cloud *to, int64_t dim, const qd_run *run, seen *out, qd_err *err)
{
    visit v = { .from = from, .to = to };
    int64_t inside = 0, balls = 0, reached = 0;
    qd_status st = QD_OK;
    v.balls = qd_calloc((size_t)from->n, sizeof *v.balls);
    v.reached = qd_calloc((size_t)from->n, sizeof *v.reached);
    if (!v.balls || !v.reached)
        st = qd_fail(err, QD_E_NOMEM, "no memory for the neighbours of %lld pictures", (long long)from->n);
    if (!st)
        st = qd_each_row(from->rows, from->n, to->rows, to->n, dim, look_around, &v, run, err);
    for (int64_t i = 0; i < from->n && !st; i++) {
        inside += v.balls[i] > 0;
        balls += v.balls[i];
        reached += v.reached[i];
    }
    qd_free(v.balls);
    qd_free(v.reached);
    const double n = (double)from->n;
    *out = (seen){ (double)inside / n, (double)balls / n, (double)reached / n };
    return st;
}

qd_status qd_manifold_of(const float *generated, int64_t n_generated, const float *real, int64_t n_real, int64_t dim,
                         int k, const qd_run *run, qd_manifold *out, qd_err *err)
{
    cloud g = { 0 }, r = { 0 };
    seen of_generated, of_real;
    qd_status st;

    if (k < 1 || k > K_MAX)
        return qd_fail(err, QD_E_INVALID, "neighbours must be 1..%d, got %d", K_MAX, k);
    if (n_generated <= k || n_real <= k)
        return qd_fail(err, QD_E_INVALID, "%lld and %lld pictures have no %d neighbours each", (long long)n_generated,
                       (long long)n_real, k);
    qd_run_progress(run, "neighbours", NULL, 0, 4);
    st = cloud_init(&g, generated, n_generated, dim, k, run, err);
    qd_run_progress(run, "neighbours", NULL, 1, 4);
    if (!st)
        st = cloud_init(&r, real, n_real, dim, k, run, err);
    qd_run_progress(run, "neighbours", NULL, 2, 4);
    if (!st)
        st = look(&g, &r, dim, run, &of_generated, err);
    qd_run_progress(run, "neighbours", NULL, 3, 4);
    if (!st)
        st = look(&r, &g, dim, run, &of_real, err);
    qd_run_progress(run, "neighbours", NULL, 4, 4);
    if (!st)
        *out = (qd_manifold){ .precision = of_generated.inside,
                              .recall = of_real.inside,
                              .density = of_generated.balls / k,
                              .coverage = of_real.reached };
    cloud_clear(&g, dim, run);
    cloud_clear(&r, dim, run);
    return st;
}
