/* cpu_train_reduce.c - sums over the middle of three axes, and the way back: broadcasting undone, means, biases.
 *
 * Sums are taken over fixed pieces in float and added up in double in the order of the pieces. */
#include <string.h>

#include "base/par.h"
#include "plan/cpu_train.h"

#define SUM_PIXELS 256    /* of columns, summed in float */
#define SUM_ELEMENTS 4096 /* of a row */
#define PIECE_ELEMENTS 16384
#define WORK_PER_ELEMENT 30.0

typedef struct reduce_state {
    const qd_train_simd *simd;
    const qd_map_simd *maps;
    qd_reduce_step r;
    int64_t per_piece, pieces; /* of the middle of one outer */
    const float *src;
    float *dst, *scratch; // [outer][pieces][inner]
} reduce_state;

static void sum_piece(void *ctx, int64_t i)
{
    const reduce_state *w = ctx;
    const int64_t outer = i / w->pieces, first = i % w->pieces * w->per_piece;
    const int64_t n = w->r.middle - first < w->per_piece ? w->r.middle - first : w->per_piece;
    const float *src = w->src + (outer * w->r.middle + first) * w->r.inner;
    if (w->r.inner == 1)
        w->scratch[i] = w->maps->sum(src, n);
    else
        w->simd->columns(w->scratch + i * w->r.inner, src, n, w->r.inner);
}

static qd_status run_reduce(qd_plan *p, qd_step *s, qd_err *err)
{
    reduce_state *w = s->state;
    const int64_t inner = w->r.inner;
    w->src = qd_plan_data(p, w->r.from);
    w->dst = qd_plan_data(p, s->out);
    w->scratch = qd_plan_scratch(p, s);
    qd_par_for(s->threads, w->r.outer * w->pieces, sum_piece, w);
    for (int64_t o = 0; o < w->r.outer; o++)
        for (int64_t c = 0; c < inner; c++) {
            double sum = 0.0;
            for (int64_t k = 0; k < w->pieces; k++)
                sum += w->scratch[(o * w->pieces + k) * inner + c];
            w->dst[o * inner + c] = (float)(sum * (double)w->r.factor);
        }
    return QD_OK;
}

static void repeat_piece(void *ctx, int64_t i)
{
    const reduce_state *w = ctx;
    const int64_t outer = i / w->pieces, first = i % w->pieces * w->per_piece, inner = w->r.inner;
    const int64_t n = w->r.middle - first < w->per_piece ? w->r.middle - first : w->per_piece;
    const float *src = w->src + outer * inner;
    float *dst = w->dst + (outer * w->r.middle + first) * inner;
    if (inner == 1) {
        for (int64_t k = 0; k < n; k++)
            dst[k] = *src * w->r.factor;
        return;
    }
    for (int64_t c = 0; c < inner; c++)
        dst[c] = src[c] * w->r.factor;
    for (int64_t k = 1; k < n; k++)
        memcpy(dst + k * inner, dst, (size_t)inner * sizeof(float));
}

static qd_status run_repeat(qd_plan *p, qd_step *s, qd_err *err)
{
    reduce_state *w = s->state;
    w->src = qd_plan_data(p, w->r.from);
    w->dst = qd_plan_data(p, s->out);
    qd_par_for(s->threads, w->r.outer * w->pieces, repeat_piece, w);
    return QD_OK;
}

static qd_status add_step(qd_plan *p, const qd_reduce_step *r, int64_t per_piece,
                          qd_status (*run)(qd_plan *, qd_step *, qd_err *), qd_step **step, qd_err *err)
{
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(reduce_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, r->name, r->kind, r->out, step, err);
    if (st)
        return st;
    reduce_state *w = memory;
    *w = (reduce_state){ .simd = qd_train_simd_get(), .maps = qd_map_simd_get(), .r = *r, .per_piece = per_piece };
    w->pieces = (r->middle + per_piece - 1) / per_piece;
    (*step)->state = w;
    (*step)->run = run;
    (*step)->impl = w->simd->name;
    (*step)->threads = qd_threads_for(p, (double)(r->outer * r->middle) * (double)r->inner * WORK_PER_ELEMENT);
    qd_step_reads(*step, r->from);
    return QD_OK;
}

qd_status qd_add_reduce_step(qd_plan *p, const qd_reduce_step *r, qd_err *err)
{
    qd_step *s;
    qd_status st = add_step(p, r, r->inner == 1 ? SUM_ELEMENTS : SUM_PIXELS, run_reduce, &s, err);
    if (st)
        return st;
    const reduce_state *w = s->state;
    return qd_plan_add_scratch(p, s, (size_t)(r->outer * w->pieces * r->inner) * sizeof(float), err);
}

qd_status qd_add_repeat_step(qd_plan *p, const qd_reduce_step *r, qd_err *err)
{
    qd_step *s;
    return add_step(p, r, r->inner < PIECE_ELEMENTS ? PIECE_ELEMENTS / r->inner : 1, run_repeat, &s, err);
}
