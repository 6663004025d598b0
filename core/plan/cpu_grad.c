/* cpu_grad.c - training steps of our own over images that lie channels last: batch norm forward and back, ReLU back.
 *
 * Sums are taken over fixed pieces in float and added up in double in the order of the pieces: threads do not matter. */
#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "base/par.h"
#include "plan/cpu_train.h"
#include "plan/train_simd.h"

#define PIECE_ELEMENTS 16384
#define SUM_PIXELS 256        /* summed in float before double takes over */
#define WORK_PER_ELEMENT 30.0 /* in multiply-adds of a convolution */

const qd_train_simd *qd_train_simd_get(void)
{
#if defined(__x86_64__)
    switch (qd_cpu_isa()) {
    case QD_ISA_AVX512:
        return &qd_train_simd_avx512;
    case QD_ISA_AVX2:
        return &qd_train_simd_avx2;
    case QD_ISA_BASE:
        break;
    }
#endif
    return &qd_train_simd_base;
}

typedef struct grad_state {
    const qd_train_simd *simd;
    qd_train_step t;
    int64_t pieces, per_piece; /* of pixels */
    const float *in[QD_STEP_INPUTS];
    float *dst;
    float *scratch;     /* sums of pieces, or coefficients [3, channels] */
    const float *pivot; // [channels]
} grad_state;

static int64_t begin_of(const grad_state *w, int64_t i, int64_t *pixels)
{
    const int64_t first = i * w->per_piece;
    *pixels = w->t.pixels - first < w->per_piece ? w->t.pixels - first : w->per_piece;
    return first * w->t.channels;
}

static void resolve(qd_plan *p, qd_step *s, grad_state *w)
{
    for (int k = 0; k < w->t.n_in; k++)
        w->in[k] = w->t.in[k] < 0 ? NULL : qd_plan_data(p, w->t.in[k]);
    w->dst = qd_plan_data(p, s->out);
    w->scratch = qd_plan_scratch(p, s);
}

/* --- sums over all pixels --- */

static void moments_piece(void *ctx, int64_t i)
{
    const grad_state *w = ctx;
    int64_t pixels;
    const int64_t at = begin_of(w, i, &pixels), c = w->t.channels;
    w->simd->moments(w->scratch + i * 2 * c, w->scratch + (i * 2 + 1) * c, w->in[0] + at, w->in[0], pixels, c);
}

static void sums_piece(void *ctx, int64_t i)
{
    const grad_state *w = ctx;
    int64_t pixels;
    const int64_t at = begin_of(w, i, &pixels), c = w->t.channels;
    w->simd->sums(w->scratch + i * 2 * c, w->scratch + (i * 2 + 1) * c, w->in[0] + at, w->in[1] + at, w->pivot, pixels,
                  c);
}

static double total(const grad_state *w, int64_t row, int64_t c)
{
    double sum = 0.0;
    for (int64_t i = 0; i < w->pieces; i++)
        sum += w->scratch[(i * 2 + row) * w->t.channels + c];
    return sum;
}

/* (x) -> mean, biased variance; about the first pixel, so that they do not cancel. */
static qd_status run_stats(qd_plan *p, qd_step *s, qd_err *err)
{
    grad_state *w = s->state;
    resolve(p, s, w);
    qd_par_for(s->threads, w->pieces, moments_piece, w);
    const double count = (double)w->t.pixels;
    for (int64_t c = 0; c < w->t.channels; c++) {
        const double mean = total(w, 0, c) / count, square = total(w, 1, c) / count;
        w->dst[c] = (float)(mean + w->in[0][c]);
        w->dst[w->t.channels + c] = (float)fmax(square - mean * mean, 0.0);
    }
    return QD_OK;
}

/* (dy, x, stats; or mean, var) -> sum dy, sum dy (x - mean) / sqrt(var + eps). */
static qd_status run_sums(qd_plan *p, qd_step *s, qd_err *err)
{
    grad_state *w = s->state;
    resolve(p, s, w);
    w->pivot = w->in[2];
    const float *var = w->t.n_in > 3 ? w->in[3] : w->in[2] + w->t.channels;
    qd_par_for(s->threads, w->pieces, sums_piece, w);
    for (int64_t c = 0; c < w->t.channels; c++) {
        w->dst[c] = (float)total(w, 0, c);
        w->dst[w->t.channels + c] = (float)(total(w, 1, c) / sqrt((double)var[c] + (double)w->t.eps));
    }
    return QD_OK;
}

/* --- every pixel on its own --- */

static void norm_piece(void *ctx, int64_t i)
{
    const grad_state *w = ctx;
    int64_t pixels;
    const int64_t at = begin_of(w, i, &pixels), c = w->t.channels;
    w->simd->norm(w->dst + at, w->in[0] + at, w->in[4] ? w->in[4] + at : NULL, w->scratch, w->scratch + c,
                  w->t.relu ? 0.0f : -INFINITY, pixels, c);
}

/* (x, weight, bias, stats, side?) -> (x - mean) / sqrt(var + eps) weight + bias (+ side), perhaps its positive part. */
static qd_status run_norm(qd_plan *p, qd_step *s, qd_err *err)
{
    grad_state *w = s->state;
    const int64_t channels = w->t.channels;
    resolve(p, s, w);
    const float *var = w->in[5] ? w->in[5] : w->in[3] + channels;
    for (int64_t c = 0; c < channels; c++) {
        const double gain = w->in[1][c] / sqrt((double)var[c] + (double)w->t.eps);
        w->scratch[c] = (float)gain;
        w->scratch[channels + c] = (float)(w->in[2][c] - w->in[3][c] * gain);
    }
    qd_par_for(s->threads, w->pieces, norm_piece, w);
    return QD_OK;
}

static void combine_piece(void *ctx, int64_t i)
{
    const grad_state *w = ctx;
    int64_t pixels;
    const int64_t at = begin_of(w, i, &pixels), c = w->t.channels;
    w->simd->combine(w->dst + at, w->in[0] + at, w->in[1] + at, w->scratch, w->scratch + c, w->scratch + 2 * c, pixels,
                     c);
}

/* (dy, x, weight, stats, sums): weight r (dy - s0 / m - (x - mean) r s1 / m) as a dy + b x + k. */
static qd_status run_norm_grad(qd_plan *p, qd_step *s, qd_err *err)
{
    grad_state *w = s->state;
    const int64_t channels = w->t.channels;
    const double count = (double)w->t.pixels;
    resolve(p, s, w);
    for (int64_t c = 0; c < channels; c++) {
        const double r = 1.0 / sqrt((double)w->in[3][channels + c] + (double)w->t.eps), gain = w->in[2][c] * r;
        const double slope = -gain * r * w->in[4][channels + c] / count;
        w->scratch[c] = (float)gain;
        w->scratch[channels + c] = (float)slope;
        w->scratch[2 * channels + c] = (float)(-gain * w->in[4][c] / count - slope * w->in[3][c]);
    }
    qd_par_for(s->threads, w->pieces, combine_piece, w);
    return QD_OK;
}

static void mask_piece(void *ctx, int64_t i)
{
    const grad_state *w = ctx;
    int64_t pixels;
    const int64_t at = begin_of(w, i, &pixels);
    w->simd->mask(w->dst + at, w->in[0] + at, w->in[1] + at, pixels * w->t.channels);
}

/* (dy, y): dy where y > 0. */
static qd_status run_mask(qd_plan *p, qd_step *s, qd_err *err)
{
    grad_state *w = s->state;
    resolve(p, s, w);
    qd_par_for(s->threads, w->pieces, mask_piece, w);
    return QD_OK;
}

static void tilt_piece(void *ctx, int64_t i)
{
    const grad_state *w = ctx;
    int64_t pixels;
    const int64_t at = begin_of(w, i, &pixels), c = w->t.channels;
    w->simd->norm(w->dst + at, w->in[1] + at, NULL, w->scratch, w->scratch + c, -INFINITY, pixels, c);
}

/* (dstats, x, stats): (dmean + 2 dvar (x - mean)) / m */
static qd_status run_stats_grad(qd_plan *p, qd_step *s, qd_err *err)
{
    grad_state *w = s->state;
    const int64_t channels = w->t.channels;
    const double count = (double)w->t.pixels;
    resolve(p, s, w);
    for (int64_t c = 0; c < channels; c++) {
        const double slope = 2.0 * w->in[0][channels + c] / count;
        w->scratch[c] = (float)slope;
        w->scratch[channels + c] = (float)(w->in[0][c] / count - slope * w->in[2][c]);
    }
    qd_par_for(s->threads, w->pieces, tilt_piece, w);
    return QD_OK;
}

qd_status qd_add_train_step(qd_plan *p, const qd_train_step *t, qd_err *err)
{
    static const struct {
        const char *kind;
        qd_status (*run)(qd_plan *p, qd_step *s, qd_err *err);
        int inplace; /* may take over that input's place */
        int scratch; /* vectors of [channels]; -1: two for each piece */
    } rows[] = {
        [QD_TRAIN_STATS] = { "batch stats", run_stats, -1, -1 },
        [QD_TRAIN_SUMS] = { "batch sums", run_sums, -1, -1 },
        [QD_TRAIN_STATS_GRAD] = { "batch stats back", run_stats_grad, -1, 2 },
        [QD_TRAIN_NORM] = { "batch norm", run_norm, -1, 2 },
        [QD_TRAIN_NORM_GRAD] = { "batch norm back", run_norm_grad, 0, 3 },
        [QD_TRAIN_MASK] = { "relu back", run_mask, 0, 0 },
    };
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(grad_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, t->name, t->kind_text ? t->kind_text : rows[t->kind].kind, t->out, &s, err);
    if (st)
        return st;
    grad_state *w = memory;
    w->t = *t;
    w->simd = qd_train_simd_get();
    const bool sums = rows[t->kind].scratch < 0;
    w->per_piece = sums ? SUM_PIXELS : t->channels < PIECE_ELEMENTS ? PIECE_ELEMENTS / t->channels : 1;
    w->pieces = (t->pixels + w->per_piece - 1) / w->per_piece;
    s->state = w;
    s->run = rows[t->kind].run;
    s->impl = w->simd->name;
    s->inplace = rows[t->kind].inplace;
    s->threads = qd_threads_for(p, (double)t->pixels * (double)t->channels * WORK_PER_ELEMENT);
    for (int k = 0; k < t->n_in; k++)
        qd_step_reads(s, t->in[k]);
    const int64_t vectors = sums ? 2 * w->pieces : rows[t->kind].scratch;
    return vectors ? qd_plan_add_scratch(p, s, (size_t)(vectors * t->channels) * sizeof(float), err) : QD_OK;
}
