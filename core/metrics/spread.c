/* spread.c - how sure a FID is: resamples with return for its error, fewer pictures for where it would end with endless ones. */
#include <math.h>

#include "base/mem.h"
#include "base/rng.h"
#include "metrics/stats_int.h"

/* Chong and Forsyth 2020 fit 15 sizes; the smallest here is a quarter of all, and it must still span the features. */
enum { SIZES = 15, SMALLEST = 4, PORTION = 64 };

typedef struct spread {
    const float *rows; // [n, dim]
    int64_t n, dim;
    qd_frechet_base base;
    int64_t *order; // [n]
    float *portion; // [PORTION, dim]
    const qd_run *run;
} spread;

/* The distance of the rows order[0..count-1]. */
static qd_status distance_of(spread *s, int64_t count, double *out, qd_err *err)
{
    qd_moments *m = NULL;
    qd_gauss g = { 0 };
    qd_status st = qd_moments_new(s->dim, qd_run_budget(s->run), &m, err);
    for (int64_t first = 0; first < count && !st; first += PORTION) {
        const int64_t n = count - first < PORTION ? count - first : PORTION;
        for (int64_t k = 0; k < n; k++)
            for (int64_t c = 0; c < s->dim; c++)
                s->portion[k * s->dim + c] = s->rows[s->order[first + k] * s->dim + c];
        st = qd_moments_add(m, s->portion, n, qd_run_threads(s->run), err);
    }
    if (!st)
        st = qd_moments_gauss(m, qd_run_threads(s->run), &g, err);
    if (!st)
        st = qd_run_check(s->run, err);
    if (!st)
        st = qd_frechet_to(&s->base, &g, out, err);
    qd_gauss_clear(&g);
    qd_moments_free(m);
    return st;
}

static qd_status standard_error(spread *s, int resamples, uint64_t seed, double *out, qd_err *err)
{
    double mean = 0.0, squares = 0.0; /* Welford's */
    for (int k = 0; k < resamples; k++) {
        qd_rng rng;
        double fid;
        qd_rng_init(&rng, seed, QD_STREAM_SHUFFLE | 1ull << 32 | (uint64_t)k);
        for (int64_t i = 0; i < s->n; i++)
            s->order[i] = (int64_t)qd_rng_below(&rng, (uint32_t)s->n);
        const qd_status st = distance_of(s, s->n, &fid, err);
        if (st)
            return st;
        const double d = fid - mean;
        mean += d / (k + 1);
        squares += d * (fid - mean);
        qd_run_progress(s->run, "resamples", NULL, k + 1, resamples);
    }
    *out = resamples > 1 ? sqrt(squares / (resamples - 1)) : NAN;
    return QD_OK;
}

/* Least squares of FID over 1/N; its value at 0. */
static qd_status at_infinity(spread *s, uint64_t seed, double *out, qd_err *err)
{
    double sx = 0, sy = 0, sxx = 0, sxy = 0;
    const int64_t least = s->n / SMALLEST;
    *out = NAN;
    if (least <= s->dim)
        return QD_OK;
    for (int k = 0; k < SIZES; k++) {
        const int64_t count = least + (s->n - least) * k / (SIZES - 1);
        qd_rng rng;
        double fid;
        qd_rng_init(&rng, seed, QD_STREAM_SHUFFLE | 2ull << 32 | (uint64_t)k);
        for (int64_t i = 0; i < s->n; i++)
            s->order[i] = i;
        for (int64_t i = 0; i < count; i++) {
            const int64_t other = i + (int64_t)qd_rng_below(&rng, (uint32_t)(s->n - i)), row = s->order[other];
            s->order[other] = s->order[i];
            s->order[i] = row;
        }
        const qd_status st = distance_of(s, count, &fid, err);
        if (st)
            return st;
        const double x = 1.0 / (double)count;
        sx += x;
        sy += fid;
        sxx += x * x;
        sxy += x * fid;
        qd_run_progress(s->run, "extrapolation", NULL, k + 1, SIZES);
    }
    const double slope = (SIZES * sxy - sx * sy) / (SIZES * sxx - sx * sx);
    *out = (sy - slope * sx) / SIZES;
    return QD_OK;
}

qd_status qd_fid_spread_of(const qd_feature_stats *generated, const qd_feature_stats *reference, int resamples,
                           uint64_t seed, const qd_run *run, qd_fid_spread *out, qd_err *err)
{
    spread s = { .rows = generated->rows, .n = generated->kept, .dim = generated->dim, .run = run };
    qd_fid_spread f = { NAN, NAN };
    qd_gauss made = { 0 };
    const qd_gauss *g = NULL;
    qd_status st;

    if (s.n < 2 || s.n > UINT32_MAX)
        return qd_fail(err, QD_E_INVALID, "%lld rows of features are kept, 2..%u can be resampled", (long long)s.n,
                       UINT32_MAX);
    st = qd_stats_gauss(reference, false, qd_run_threads(run), &made, &g, err);
    if (!st)
        st = qd_frechet_base_init(&s.base, g, err);
    if (st)
        goto out;
    s.order = qd_calloc((size_t)s.n, sizeof *s.order);
    s.portion = qd_calloc((size_t)s.dim, PORTION * sizeof *s.portion);
    if (!s.order || !s.portion) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for resamples of %lld pictures", (long long)s.n);
        goto out;
    }
    if ((st = standard_error(&s, resamples, seed, &f.std, err)) || (st = at_infinity(&s, seed, &f.infinity, err)))
        goto out;
    *out = f;
out:
    qd_frechet_base_clear(&s.base);
    qd_gauss_clear(&made);
    qd_free(s.order);
    qd_free(s.portion);
    return st;
}
