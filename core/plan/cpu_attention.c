/* cpu_attention.c - attention in float: some queries of one head at a time, so that their scores stay in the cache.
 *
 * Work is cut into pieces by shape alone; threads only share the pieces out, so results do not depend on their number. */
#include "base/par.h"
#include "plan/cpu_int.h"

#define MOST_QUERIES 64   /* of a piece */
#define FEWEST_QUERIES 16 /* unless there are no more: a product of fewer rows is slow */
#define SCORES 65536      /* of a piece, as long as that leaves enough queries: 256 KiB */

typedef struct attention_state {
    qd_attention_step a;
    const qd_simd *simd;
    const float *in[3];
    float *dst, *scores; // [threads][queries][s]
    int64_t queries, chunks;
} attention_state;

static void attention_piece(void *ctx, int64_t i)
{
    const attention_state *w = ctx;
    const qd_attention_step *a = &w->a;
    const int64_t chunk = i % w->chunks, head = i / w->chunks % a->heads, sample = i / w->chunks / a->heads;
    const int64_t width = a->c / a->heads, first = chunk * w->queries;
    const int64_t queries = a->t - first < w->queries ? a->t - first : w->queries;
    const float *x[3];
    for (int k = 0; k < 3; k++)
        x[k] = w->in[k] + sample * (k ? a->s : a->t) * a->in[k].stride + a->in[k].begin + head * width;
    float *scores = w->scores + (int64_t)qd_par_thread() * w->queries * a->s;

    qd_blas_product(scores, x[0] + first * a->in[0].stride, x[1], queries, a->s, width, a->s, a->in[0].stride,
                    a->in[1].stride, true, a->scale);
    w->simd->softmax(scores, queries, a->s, (size_t)a->s);
    qd_blas_product(w->dst + (sample * a->t + first) * a->c + head * width, scores, x[2], queries, width, a->s, a->c,
                    a->s, a->in[2].stride, false, 1.0f);
}

static qd_status run_attention(qd_plan *p, qd_step *s, qd_err *err)
{
    attention_state *w = s->state;
    for (int k = 0; k < 3; k++)
        w->in[k] = qd_plan_data(p, w->a.in[k].value);
    w->dst = qd_plan_data(p, s->out);
    w->scores = qd_plan_scratch(p, s);
    qd_blas_one_thread();
    qd_par_for(s->threads, w->a.n * w->a.heads * w->chunks, attention_piece, w);
    return QD_OK;
}

qd_status qd_add_attention_step(qd_plan *p, const qd_attention_step *a, qd_err *err)
{
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(attention_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, a->name, "attention", a->out, &s, err);
    if (st)
        return st;
    attention_state *w = memory;
    w->a = *a;
    w->simd = qd_simd_get();
    w->queries = SCORES / a->s;
    w->queries = w->queries > MOST_QUERIES ? MOST_QUERIES : w->queries < FEWEST_QUERIES ? FEWEST_QUERIES : w->queries;
    w->queries = w->queries < a->t ? w->queries : a->t;
    w->chunks = (a->t + w->queries - 1) / w->queries;
    s->state = w;
    s->run = run_attention;
    s->impl = "openblas";
    s->macs = a->macs;
    s->threads = qd_threads_for(p, (double)a->macs);
    for (int k = 0; k < 3; k++)
        qd_step_reads(s, a->in[k].value);
    return qd_plan_add_scratch(p, s, (size_t)(s->threads * w->queries * a->s) * sizeof(float), err);
}
