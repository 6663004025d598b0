/* cpu_gemm_train.c - matrix products whose sides are values, either of them transposed: linear layers and their derivatives. */
#include <string.h>

#include <cblas.h>

#include "base/par.h"
#include "plan/cpu_train.h"

#define ROWS_PER_PIECE 64

typedef struct product_state {
    qd_product_step s;
    const float *a, *b, *bias;
    float *dst;
    int64_t chunks;
} product_state;

/* Some rows of one product. */
static void product_piece(void *ctx, int64_t i)
{
    const product_state *w = ctx;
    const qd_product_step *s = &w->s;
    const int64_t batch = i / w->chunks, first = i % w->chunks * ROWS_PER_PIECE;
    const int64_t rows = s->m - first < ROWS_PER_PIECE ? s->m - first : ROWS_PER_PIECE;
    const float *a = w->a + batch * s->m * s->k + (s->trans_a ? first : first * s->k);
    float *dst = w->dst + (batch * s->m + first) * s->n;
    for (int64_t r = 0; w->bias && r < rows; r++)
        memcpy(dst + r * s->n, w->bias, (size_t)s->n * sizeof(float));
    cblas_sgemm(CblasRowMajor, s->trans_a ? CblasTrans : CblasNoTrans, s->trans_b ? CblasTrans : CblasNoTrans,
                (blasint)rows, (blasint)s->n, (blasint)s->k, s->alpha, a, (blasint)(s->trans_a ? s->m : s->k),
                w->b + batch * s->k * s->n, (blasint)(s->trans_b ? s->k : s->n), w->bias ? 1.0f : 0.0f, dst,
                (blasint)s->n);
}

static qd_status run_product(qd_plan *p, qd_step *step, qd_err *err)
{
    product_state *w = step->state;
    w->a = qd_plan_data(p, w->s.a);
    w->b = qd_plan_data(p, w->s.b);
    w->bias = w->s.bias < 0 ? NULL : qd_plan_data(p, w->s.bias);
    w->dst = qd_plan_data(p, step->out);
    qd_blas_one_thread(); /* each product on the thread of its piece */
    qd_par_for(step->threads, w->s.batch * w->chunks, product_piece, w);
    return QD_OK;
}

qd_status qd_add_product_step(qd_plan *p, const qd_product_step *s, qd_err *err)
{
    qd_step *step;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(product_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, s->name, s->kind, s->out, &step, err);
    if (st)
        return st;
    product_state *w = memory;
    w->s = *s;
    w->chunks = (s->m + ROWS_PER_PIECE - 1) / ROWS_PER_PIECE;
    step->state = w;
    step->run = run_product;
    step->impl = "sgemm";
    step->macs = s->batch * s->m * s->n * s->k;
    step->threads = qd_threads_for(p, (double)step->macs);
    qd_step_reads(step, s->a);
    qd_step_reads(step, s->b);
    qd_step_reads(step, s->bias);
    return QD_OK;
}
