/* cpu_attention.c - attention in float: some queries of one head at a time, so that their scores stay in the cache.
 *
 * Keys and values of each head are packed once into panels as wide as a vector; our own products on them take from a half to a third
 * of the time of OpenBLAS on heads of 40 to 160 channels. Weights are divided by their sum at the end, in the result.
 *
 * Work is cut into pieces by shape alone; threads only share the pieces out, so results do not depend on their number. */
#include "base/par.h"
#include "plan/attn_simd.h"
#include "plan/cpu_int.h"

#define MOST_QUERIES 48   /* of a piece */
#define FEWEST_QUERIES 12 /* unless there are no more: two tiles */
#define SCORES 65536      /* of a piece, as long as that leaves enough queries: 256 KiB */

typedef struct attention_state {
    qd_attention_step a;
    const qd_attn_simd *loops;
    const float *in[3];
    float *dst;
    int64_t width, queries, chunks;
    /* The scratch, in floats: for each head of each sample its keys and values; for each thread scores and sums. */
    float *heads, *threads;
    int64_t keys_size, head_size, score_stride, out_stride, thread_size;
} attention_state;

static const float *operand(const attention_state *w, int k, int64_t sample, int64_t head)
{
    const qd_heads *h = &w->a.in[k];
    return w->in[k] + sample * (k ? w->a.s : w->a.t) * h->stride + h->begin + head * w->width;
}

static void pack_piece(void *ctx, int64_t i)
{
    const attention_state *w = ctx;
    const int64_t sample = i / w->a.heads, head = i % w->a.heads;
    float *to = w->heads + i * w->head_size;
    w->loops->pack_rows(to, operand(w, 1, sample, head), (size_t)w->a.in[1].stride, w->a.s, w->width);
    w->loops->pack_columns(to + w->keys_size, operand(w, 2, sample, head), (size_t)w->a.in[2].stride, w->a.s, w->width);
}

static void attend_piece(void *ctx, int64_t i)
{
    const attention_state *w = ctx;
    const qd_attention_step *a = &w->a;
    const int64_t chunk = i % w->chunks, head = i / w->chunks % a->heads, sample = i / w->chunks / a->heads;
    const int64_t first = chunk * w->queries;
    const int64_t queries = a->t - first < w->queries ? a->t - first : w->queries;
    const float *packed = w->heads + (sample * a->heads + head) * w->head_size;
    const float *q = operand(w, 0, sample, head) + first * a->in[0].stride;
    float *scores = w->threads + (int64_t)qd_par_thread() * w->thread_size;
    float *out = scores + w->queries * w->score_stride, sum[MOST_QUERIES];

    w->loops->products(scores, (size_t)w->score_stride, q, (size_t)a->in[0].stride, packed, queries,
                       qd_float_panels(w->loops, a->s), w->width, a->scale);
    for (int64_t r = 0; r < queries; r++)
        sum[r] = w->loops->exps(scores + r * w->score_stride, a->s);
    w->loops->products(out, (size_t)w->out_stride, scores, (size_t)w->score_stride, packed + w->keys_size, queries,
                       qd_float_panels(w->loops, w->width), a->s, 1.0f);
    for (int64_t r = 0; r < queries; r++) {
        float *dst = w->dst + (sample * a->t + first + r) * a->c + head * w->width;
        const float *from = out + r * w->out_stride, inv = 1.0f / sum[r];
#pragma omp simd
        for (int64_t c = 0; c < w->width; c++)
            dst[c] = from[c] * inv;
    }
}

static qd_status run_attention(qd_plan *p, qd_step *s, qd_err *err)
{
    attention_state *w = s->state;
    for (int k = 0; k < 3; k++)
        w->in[k] = qd_plan_data(p, w->a.in[k].value);
    w->dst = qd_plan_data(p, s->out);
    w->heads = qd_plan_scratch(p, s);
    w->threads = w->heads + w->a.n * w->a.heads * w->head_size;
    qd_par_for(s->threads, w->a.n * w->a.heads, pack_piece, w);
    qd_par_for(s->threads, w->a.n * w->a.heads * w->chunks, attend_piece, w);
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
    w->loops = qd_attn_simd_get();
    w->width = a->c / a->heads;
    w->queries = SCORES / a->s;
    w->queries = w->queries > MOST_QUERIES ? MOST_QUERIES : w->queries < FEWEST_QUERIES ? FEWEST_QUERIES : w->queries;
    w->queries = w->queries < a->t ? w->queries : a->t;
    w->chunks = (a->t + w->queries - 1) / w->queries;
    w->score_stride = qd_float_panels(w->loops, a->s) * w->loops->lanes;
    w->out_stride = qd_float_panels(w->loops, w->width) * w->loops->lanes;
    w->keys_size = w->score_stride * w->width;
    w->head_size = w->keys_size + a->s * w->out_stride;
    w->thread_size = (w->queries * (w->score_stride + w->out_stride) + 15) / 16 * 16;
    s->state = w;
    s->run = run_attention;
    s->impl = w->loops->name;
    s->macs = a->macs;
    s->threads = qd_threads_for(p, (double)a->macs);
    for (int k = 0; k < 3; k++)
        qd_step_reads(s, a->in[k].value);
    return qd_plan_add_scratch(
        p, s, (size_t)(a->n * a->heads * w->head_size + s->threads * w->thread_size) * sizeof(float), err);
}
