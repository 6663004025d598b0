/* cpu_gemm.c - products of matrices: few rows against large weights, batched matmul.
 *
 * Work is cut into pieces by shape alone; threads only share the pieces out, so results do not depend on their number. */
#include <cblas.h>
#include <pthread.h>
#include <string.h>

#include "base/par.h"
#include "plan/cpu_int.h"

#define OUTPUTS_PER_PIECE 32
#define ROWS_PER_PIECE 128

static pthread_once_t blas_once = PTHREAD_ONCE_INIT;

/* Each product runs on the thread of its piece. */
static void make_blas_single(void)
{
    openblas_set_num_threads(1);
}

void qd_blas_one_thread(void)
{
    pthread_once(&blas_once, make_blas_single);
}

const char *qd_blas_core(void)
{
    return openblas_get_corename();
}

/* OpenBLAS: on the small shapes of attention it is up to 1.4 times as fast as oneDNN's sgemm, on large ones they are equal within a
 * tenth. */
void qd_blas_product(float *dst, const float *a, const float *b, int64_t m, int64_t n, int64_t k, int64_t stride_dst,
                     int64_t stride_a, int64_t stride_b, bool trans_b, float alpha)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, (blasint)m, (blasint)n, (blasint)k,
                alpha, a, (blasint)stride_a, b, (blasint)stride_b, 0.0f, dst, (blasint)stride_dst);
}

/* --- few rows --- */

typedef struct dots_state {
    const qd_simd *simd;
    const float *weight, *bias, *src;
    float *dst;
    qd_value_id from;
    int64_t rows, in, out;
} dots_state;

static void dots_piece(void *ctx, int64_t i)
{
    const dots_state *d = ctx;
    const int64_t begin = i * OUTPUTS_PER_PIECE;
    const int64_t end = begin + OUTPUTS_PER_PIECE < d->out ? begin + OUTPUTS_PER_PIECE : d->out;
    d->simd->dots(d->dst, d->src, d->weight, d->bias, d->rows, d->in, d->out, begin, end);
}

static qd_status run_dots(qd_plan *p, qd_step *s, qd_err *err)
{
    dots_state *d = s->state;
    d->src = qd_plan_data(p, d->from);
    d->dst = qd_plan_data(p, s->out);
    qd_par_for(s->threads, (d->out + OUTPUTS_PER_PIECE - 1) / OUTPUTS_PER_PIECE, dots_piece, d);
    return QD_OK;
}

qd_status qd_add_dots_step(qd_plan *p, const char *name, qd_value_id src, const float *weight, const float *bias,
                           int64_t rows, int64_t in, int64_t n_out, qd_value_id out, qd_err *err)
{
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(dots_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, name, "linear", out, &s, err);
    if (st)
        return st;
    dots_state *d = memory;
    *d = (dots_state){
        .simd = qd_simd_get(), .weight = weight, .bias = bias, .from = src, .rows = rows, .in = in, .out = n_out
    };
    s->state = d;
    s->run = run_dots;
    s->impl = d->simd->name;
    s->macs = rows * in * n_out;
    s->weight_bytes = (size_t)(in * n_out) * sizeof(float);
    s->threads = qd_threads_for(p, (double)s->macs * 4.0); /* bound by memory */
    qd_step_reads(s, src);
    return QD_OK;
}

/* --- batched matmul --- */

typedef struct matmul_state {
    qd_value_id va, vb;
    const float *a, *b;
    float *dst;
    int64_t batch, m, n, k, chunks;
    bool trans_b;
    float alpha;
} matmul_state;

static void matmul_piece(void *ctx, int64_t i)
{
    matmul_state *w = ctx;
    const int64_t b = i / w->chunks, first = i % w->chunks * ROWS_PER_PIECE;
    const int64_t rows = w->m - first < ROWS_PER_PIECE ? w->m - first : ROWS_PER_PIECE;
    qd_blas_product(w->dst + (b * w->m + first) * w->n, w->a + (b * w->m + first) * w->k, w->b + b * w->k * w->n, rows,
                    w->n, w->k, w->n, w->k, w->trans_b ? w->k : w->n, w->trans_b, w->alpha);
}

static qd_status run_matmul(qd_plan *p, qd_step *s, qd_err *err)
{
    matmul_state *w = s->state;
    w->a = qd_plan_data(p, w->va);
    w->b = qd_plan_data(p, w->vb);
    w->dst = qd_plan_data(p, s->out);
    qd_blas_one_thread();
    qd_par_for(s->threads, w->batch * w->chunks, matmul_piece, w);
    return QD_OK;
}

qd_status qd_add_matmul_step(qd_plan *p, const char *name, qd_value_id a, qd_value_id b, qd_value_id out, int64_t batch,
                             int64_t m, int64_t n, int64_t k, bool trans_b, float alpha, qd_err *err)
{
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(matmul_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, name, "matmul", out, &s, err);
    if (st)
        return st;
    matmul_state *w = memory;
    *w = (matmul_state){ .va = a, .vb = b, .batch = batch, .m = m, .n = n, .k = k, .trans_b = trans_b, .alpha = alpha };
    w->chunks = (m + ROWS_PER_PIECE - 1) / ROWS_PER_PIECE;
    s->state = w;
    s->run = run_matmul;
    s->impl = "openblas";
    s->macs = batch * m * n * k;
    s->threads = qd_threads_for(p, (double)s->macs);
    qd_step_reads(s, a);
    qd_step_reads(s, b);
    return QD_OK;
}
