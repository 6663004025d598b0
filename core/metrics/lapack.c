/* lapack.c - the door to OpenBLAS and the LAPACK it carries: products, eigenvalues. */
#include "metrics/metrics_int.h"

#include <limits.h>
#include <pthread.h>

#include "base/mem.h"

/* Fortran's, as OpenBLAS exports them: all by address, column-major. The lengths of texts go last, one for each. */
extern void dgemm_(const char *transa, const char *transb, const int *m, const int *n, const int *k,
                   const double *alpha, const double *a, const int *lda, const double *b, const int *ldb,
                   const double *beta, double *c, const int *ldc, size_t len_a, size_t len_b);
extern void dsyevd_(const char *jobz, const char *uplo, const int *n, double *a, const int *lda, double *w,
                    double *work, const int *lwork, int *iwork, const int *liwork, int *info, size_t len_jobz,
                    size_t len_uplo);
extern void openblas_set_num_threads(int n);

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_single(void)
{
    openblas_set_num_threads(1);
}

void qd_dgemm_nt(double *dst, const double *a, const double *b, int64_t m, int64_t n, int64_t k)
{
    const int mi = (int)m, ni = (int)n, ki = (int)k;
    const double one = 1.0, zero = 0.0;
    pthread_once(&once, make_single);
    /* Row-major dst is column-major dst^T [n, m] = b a^T, and there b lies as b^T, a^T as a. */
    dgemm_("T", "N", &ni, &mi, &ki, &one, b, &ki, a, &ki, &zero, dst, &ni, 1, 1);
}

qd_status qd_eigen(double *a, int64_t n, bool vectors, double *value, qd_err *err)
{
    const int ni = (int)n, ask = -1;
    int info = 0, iwork_size = 0;
    double work_size = 0;
    double *work = NULL;
    int *iwork = NULL;
    qd_status st = QD_OK;

    pthread_once(&once, make_single);
    dsyevd_(vectors ? "V" : "N", "U", &ni, a, &ni, value, &work_size, &ask, &iwork_size, &ask, &info, 1, 1);
    if (info || work_size > INT_MAX)
        return qd_fail(err, QD_E_LIMIT, "eigenvalues of a matrix of %lld rows are more than LAPACK does", (long long)n);
    const int lwork = (int)work_size;
    work = qd_calloc((size_t)lwork, sizeof *work);
    iwork = qd_calloc((size_t)iwork_size, sizeof *iwork);
    if (!work || !iwork) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the eigenvalues of a matrix of %lld rows", (long long)n);
        goto out;
    }
    /* Symmetric, so that row-major and column-major are one; a vector is a column there, a row here. */
    dsyevd_(vectors ? "V" : "N", "U", &ni, a, &ni, value, work, &lwork, iwork, &iwork_size, &info, 1, 1);
    if (info)
        st = qd_fail(err, QD_E_NUMERIC, "the eigenvalues of a matrix of %lld rows do not converge (LAPACK %d)",
                     (long long)n, info);
out:
    qd_free(work);
    qd_free(iwork);
    return st;
}
