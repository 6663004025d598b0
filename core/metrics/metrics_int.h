/* metrics_int.h - what the files of this room share: products and eigenvalues by OpenBLAS, blocks of scalar products, the view of a graph. */
#ifndef QD_METRICS_METRICS_INT_H
#define QD_METRICS_METRICS_INT_H

#include "metrics/metrics.h"

/* --- lapack.c: on one thread, so that results do not depend on how many there are; row-major --- */

/* dst [m, n] = a [m, k] b^T, b [n, k]. */
void qd_dgemm_nt(double *dst, const double *a, const double *b, int64_t m, int64_t n, int64_t k);
/* Eigenvalues of a symmetric matrix a [n, n] in rising order; with `vectors`, row i of a becomes the vector of value[i], else a is
 * destroyed. QD_E_NUMERIC when it does not come to an end. */
qd_status qd_eigen(double *a, int64_t n, bool vectors, double *value, qd_err *err);

/* --- pairwise.c --- */

/* Calls fn(ctx, i, products) for rows i = 0..na-1 of a [na, dim]: their scalar products with all of b, [nb], on up to run's threads at
 * once. What fn sees does not depend on them; it must write nothing another row writes. */
qd_status qd_each_row(const double *a, int64_t na, const double *b, int64_t nb, int64_t dim,
                      void (*fn)(void *ctx, int64_t i, const double *products), void *ctx, const qd_run *run,
                      qd_err *err);
/* Zeroed memory drawn from the run's budget, to be given back with the same size (NULL is fine). Where *st has failed already nothing is
 * taken, so that several may follow each other and be checked once. */
void *qd_metric_take(const qd_run *run, size_t count, size_t size, const char *what, qd_status *st, qd_err *err);
void qd_metric_give(const qd_run *run, void *p, size_t count, size_t size);
/* Rows as doubles, the same way. */
double *qd_metric_widen(const qd_run *run, const float *rows, int64_t n, int64_t dim, qd_status *st, qd_err *err);
void qd_metric_give_wide(const qd_run *run, double *wide, int64_t n, int64_t dim);

/* --- frechet.c --- */

/* One of the two distributions taken apart, for many distances from it. g is lent to it. */
typedef struct qd_frechet_base {
    int64_t dim;
    double *mean;        // [dim]; lent
    double *root;        // [dim, dim]: row i is sqrt(l_i) v_i^T of the covariance
    double trace, shift; /* what was added to the diagonal, as it is to the other's */
} qd_frechet_base;
qd_status qd_frechet_base_init(qd_frechet_base *f, const qd_gauss *g, qd_err *err);
void qd_frechet_base_clear(qd_frechet_base *f);
qd_status qd_frechet_to(const qd_frechet_base *f, const qd_gauss *g, double *out, qd_err *err);

/* --- view.c: the parts of a network that are looked at --- */

typedef struct qd_feature_view {
    qd_graph *graph; /* outputs: features; then spatial and answers, where there are any */
    char name[QD_MAX_NAME + 1];
    int at_spatial, at_answers; /* places among the outputs; -1 = none */
    bool softmaxed;             /* the answers are probabilities already */
    int channels, height, width;
} qd_feature_view;
qd_status qd_feature_view_open(const qd_graph *g, const char *features, const char *spatial, qd_feature_view *out,
                               qd_err *err);
void qd_feature_view_clear(qd_feature_view *v);

#endif
