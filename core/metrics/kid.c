/* kid.c - kernel distance of two sets of features: unbiased MMD^2 under a cubic kernel, over random subsets (Binkowski 2018). */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "metrics/metrics_int.h"

/* Sums of the kernel over the rows of one product. */
typedef struct sums {
    double *row;  // [size]
    int64_t size; /* rows of either set */
    int64_t dim;
    bool own; /* both sets are one: a row with itself does not count */
} sums;

static void sum_row(void *ctx, int64_t i, const double *products)
{
    const sums *s = ctx;
    double sum = 0.0;
    for (int64_t j = 0; j < s->size; j++) {
        const double v = products[j] / (double)s->dim + 1.0;
        sum += s->own && j == i ? 0.0 : v * v * v;
    }
    s->row[i] = sum;
}

/* Mean of the kernel over pairs of a and b, or of a with itself. */
static qd_status mean_kernel(const double *a, const double *b, sums *s, const qd_run *run, double *out, qd_err *err)
{
    double sum = 0.0;
    s->own = a == b;
    const qd_status st = qd_each_row(a, s->size, b, s->size, s->dim, sum_row, s, run, err);
    for (int64_t i = 0; i < s->size; i++)
        sum += s->row[i];
    *out = sum / (double)s->size / (double)(s->own ? s->size - 1 : s->size);
    return st;
}

/* dst gets `size` rows drawn without return: the first places of a shuffle. order [n] is left a permutation. */
static void draw_rows(double *dst, const float *rows, int64_t n, int64_t size, int64_t dim, int64_t *order, qd_rng *rng)
{
    for (int64_t k = 0; k < n; k++)
        order[k] = k;
    for (int64_t k = 0; k < size; k++) {
        const int64_t other = k + (int64_t)qd_rng_below(rng, (uint32_t)(n - k)), row = order[other];
        order[other] = order[k];
        order[k] = row;
        for (int64_t c = 0; c < dim; c++)
            dst[k * dim + c] = rows[row * dim + c];
    }
}

static qd_status check_sets(int64_t na, int64_t nb, qd_err *err)
{
    if (na < 2 || nb < 2)
        return qd_fail(err, QD_E_INVALID, "a kernel distance needs two pictures of each kind, there are %lld and %lld",
                       (long long)na, (long long)nb);
    if (na > UINT32_MAX || nb > UINT32_MAX)
        return qd_fail(err, QD_E_LIMIT, "a kernel distance of more than %u pictures", UINT32_MAX);
    return QD_OK;
}

qd_status qd_kid_of(const float *a, int64_t na, const float *b, int64_t nb, int64_t dim, int subsets, int64_t size,
                    uint64_t seed, const qd_run *run, qd_kid *out, qd_err *err)
{
    double *x = NULL, *y = NULL, *row = NULL, *value = NULL, sum = 0.0, squares = 0.0;
    int64_t *order = NULL;
    const int64_t most = na > nb ? na : nb;
    qd_status st = check_sets(na, nb, err);

    if (st)
        return st;
    size = size < na ? size : na;
    size = size < nb ? size : nb;
    size = size < 2 ? 2 : size;
    if (size == na && size == nb)
        subsets = 1; /* there is only one */
    subsets = subsets < 1 ? 1 : subsets;
    const size_t width = (size_t)dim * sizeof(double);
    x = qd_metric_take(run, (size_t)size, width, "features", &st, err);
    y = qd_metric_take(run, (size_t)size, width, "features", &st, err);
    order = qd_metric_take(run, (size_t)most, sizeof *order, "an order of pictures", &st, err);
    if (st)
        goto out;
    row = qd_calloc((size_t)size, sizeof *row);
    value = qd_calloc((size_t)subsets, sizeof *value);
    if (!row || !value) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a kernel distance");
        goto out;
    }
    sums s = { .row = row, .size = size, .dim = dim };
    for (int k = 0; k < subsets; k++) {
        double xx, yy, xy;
        qd_rng rng;
        qd_rng_init(&rng, seed, QD_STREAM_SHUFFLE | (uint64_t)k);
        draw_rows(x, a, na, size, dim, order, &rng);
        draw_rows(y, b, nb, size, dim, order, &rng);
        if ((st = mean_kernel(x, x, &s, run, &xx, err)) || (st = mean_kernel(y, y, &s, run, &yy, err)) ||
            (st = mean_kernel(x, y, &s, run, &xy, err)))
            goto out;
        value[k] = xx + yy - 2.0 * xy;
        sum += value[k];
        qd_run_progress(run, "kernel distance", NULL, k + 1, subsets);
    }
    const double mean = sum / subsets;
    for (int k = 0; k < subsets; k++)
        squares += (value[k] - mean) * (value[k] - mean);
    if (!isfinite(mean)) {
        st = qd_fail(err, QD_E_NUMERIC, "the kernel distance is %g", mean);
        goto out;
    }
    *out = (qd_kid){ .mean = mean, .std = NAN, .error = NAN, .subsets = subsets, .size = size };
    if (subsets > 1) {
        out->std = sqrt(squares / subsets);
        out->error = out->std / sqrt((double)subsets);
    }
out:
    qd_metric_give(run, x, (size_t)size, width);
    qd_metric_give(run, y, (size_t)size, width);
    qd_metric_give(run, order, (size_t)most, sizeof *order);
    qd_free(row);
    qd_free(value);
    return st;
}
