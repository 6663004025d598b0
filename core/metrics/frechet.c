/* frechet.c - the distance of two normal distributions (Frechet; Dowson and Landau 1982; Heusel 2017 for features). */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "metrics/metrics_int.h"

#define SHIFT 1e-6         /* added to both diagonals when there is no root: qncd.md 9.1 */
#define IMAGINARY_MAX 1e-3 /* of the root's diagonal: qncd.md 9.1 */

void qd_gauss_clear(qd_gauss *g)
{
    qd_free(g->mean);
    qd_free(g->cov);
    memset(g, 0, sizeof *g);
}

static qd_status check_finite(const qd_gauss *g, qd_err *err)
{
    for (int64_t k = 0; k < g->dim; k++)
        if (!isfinite(g->mean[k]))
            return qd_fail(err, QD_E_NUMERIC, "the mean of feature %lld is %g", (long long)k, g->mean[k]);
    for (int64_t k = 0; k < g->dim * g->dim; k++)
        if (!isfinite(g->cov[k]))
            return qd_fail(err, QD_E_NUMERIC, "the covariance of features %lld and %lld is %g", (long long)(k / g->dim),
                           (long long)(k % g->dim), g->cov[k]);
    return QD_OK;
}

static double trace_of(const double *a, int64_t n)
{
    double sum = 0.0;
    for (int64_t k = 0; k < n; k++)
        sum += a[k * n + k];
    return sum;
}

static double *square(int64_t n)
{
    size_t cells;
    return qd_mul_size((size_t)n, (size_t)n, &cells) ? qd_calloc(cells, sizeof(double)) : NULL;
}

/* C = V L V^T. What is below zero is rounding: a covariance has no such values. */
static qd_status take_root(qd_frechet_base *f, const double *cov, qd_err *err)
{
    const int64_t n = f->dim;
    double *value = qd_calloc((size_t)n, sizeof *value);
    if (!value)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld eigenvalues", (long long)n);
    memcpy(f->root, cov, (size_t)(n * n) * sizeof *cov);
    for (int64_t k = 0; k < n; k++)
        f->root[k * n + k] += f->shift;
    f->trace = trace_of(f->root, n);
    const qd_status st = qd_eigen(f->root, n, true, value, err);
    for (int64_t i = 0; i < n && !st; i++) {
        const double r = sqrt(fmax(value[i], 0.0));
        for (int64_t k = 0; k < n; k++)
            f->root[i * n + k] *= r;
    }
    qd_free(value);
    return st;
}

static qd_status base_make(qd_frechet_base *f, const qd_gauss *g, double shift, qd_err *err)
{
    qd_frechet_base b = { .dim = g->dim, .mean = g->mean, .shift = shift };
    if (g->dim < 1)
        return qd_fail(err, QD_E_INVALID, "a distribution of no features has no distance from another");
    qd_status st = check_finite(g, err);
    if (st)
        return st;
    b.root = square(g->dim);
    if (!b.root)
        return qd_fail(err, QD_E_NOMEM, "no memory for the covariance of %lld features", (long long)g->dim);
    st = take_root(&b, g->cov, err);
    if (st)
        qd_frechet_base_clear(&b);
    else
        *f = b;
    return st;
}

qd_status qd_frechet_base_init(qd_frechet_base *f, const qd_gauss *g, qd_err *err)
{
    const qd_status st = base_make(f, g, 0.0, err);
    return st == QD_E_NUMERIC ? base_make(f, g, SHIFT, err) : st;
}

void qd_frechet_base_clear(qd_frechet_base *f)
{
    qd_free(f->root);
    memset(f, 0, sizeof *f);
}

/* tr (C1 C)^(1/2) = sum of the roots of the eigenvalues of R C R^T with C1 = R^T R: that matrix has those of C1 C, and it is symmetric.
 * An eigenvalue below zero has an imaginary root. */
static qd_status trace_of_root(const qd_frechet_base *f, const double *cov, double *out, qd_err *err)
{
    const int64_t n = f->dim;
    double *moved = square(n), *half = square(n), *value = qd_calloc((size_t)n, sizeof *value);
    double real = 0.0, imaginary = 0.0;
    qd_status st = QD_OK;

    if (!moved || !half || !value) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the root of a covariance of %lld features", (long long)n);
        goto out;
    }
    memcpy(moved, cov, (size_t)(n * n) * sizeof *cov);
    for (int64_t k = 0; k < n; k++)
        moved[k * n + k] += f->shift;
    qd_dgemm_nt(half, f->root, moved, n, n, n); /* R C, which is symmetric */
    qd_dgemm_nt(moved, half, f->root, n, n, n);
    for (int64_t i = 0; i < n; i++) /* as symmetric as it is meant */
        for (int64_t k = 0; k < i; k++)
            moved[i * n + k] = moved[k * n + i] = 0.5 * (moved[i * n + k] + moved[k * n + i]);
    st = qd_eigen(moved, n, false, value, err);
    if (st)
        goto out;
    for (int64_t k = 0; k < n; k++) {
        if (value[k] >= 0.0)
            real += sqrt(value[k]);
        else
            imaginary = fmax(imaginary, sqrt(-value[k]));
    }
    if (!isfinite(real))
        st = qd_fail(err, QD_E_NUMERIC, "the root of the product of the covariances is not finite");
    else if (imaginary >= IMAGINARY_MAX * fmax(1.0, sqrt(fmax(value[n - 1], 0.0))))
        st = qd_fail(err, QD_E_NUMERIC, "the root of the product of the covariances has an imaginary part of %g",
                     imaginary);
    else
        *out = real;
out:
    qd_free(moved);
    qd_free(half);
    qd_free(value);
    return st;
}

static double distance2(const double *a, const double *b, int64_t n)
{
    double sum = 0.0;
    for (int64_t k = 0; k < n; k++)
        sum += (a[k] - b[k]) * (a[k] - b[k]);
    return sum;
}

qd_status qd_frechet_to(const qd_frechet_base *f, const qd_gauss *g, double *out, qd_err *err)
{
    double root = 0.0;
    if (f->dim != g->dim)
        return qd_fail(err, QD_E_INVALID, "one set has %lld features, the other %lld", (long long)f->dim,
                       (long long)g->dim);
    qd_status st = check_finite(g, err);
    if (!st)
        st = trace_of_root(f, g->cov, &root, err);
    if (!st)
        *out = distance2(f->mean, g->mean, f->dim) + f->trace + trace_of(g->cov, g->dim) + f->shift * (double)g->dim -
               2.0 * root;
    return st;
}

static qd_status shifted_frechet(const qd_gauss *a, const qd_gauss *b, double shift, double *out, qd_err *err)
{
    qd_frechet_base base = { 0 };
    qd_status st = base_make(&base, b, shift, err);
    if (!st)
        st = qd_frechet_to(&base, a, out, err);
    qd_frechet_base_clear(&base);
    return st;
}

qd_status qd_frechet(const qd_gauss *a, const qd_gauss *b, double *out, qd_err *err)
{
    const qd_status st = shifted_frechet(a, b, 0.0, out, err);
    return st == QD_E_NUMERIC ? shifted_frechet(a, b, SHIFT, out, err) : st;
}
