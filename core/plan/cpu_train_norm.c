/* cpu_train_norm.c - group norm in training, over images that lie channels last: forward with weights that are values, and back.
 *
 * Sums of every channel of a sample are taken over fixed pieces in float, about the image's first pixel so that they do not cancel, and
 * added up in double in the order of the pieces. Derivatives are diffusion_models.md 2.2's norm differentiated:
 *   dx = r (g - S / m - u P / m),  g = dy weight,  u = (x - mean) r,  S = sum g,  P = sum g u over the m values of the group. */
#include <math.h>

#include "base/par.h"
#include "plan/cpu_train.h"

#define SUM_PIXELS 128
#define PIECE_ELEMENTS 16384
#define WORK_PER_ELEMENT 40.0

enum { X, XX, DY, DYX, ROWS }; /* sums of x - pivot, of its square, of dy, of dy (x - pivot) */

typedef struct norm_state {
    const qd_train_simd *simd;
    qd_group_norm_step g;
    int64_t chunks;            /* of the sums, per sample */
    int64_t per_piece, pieces; /* pixels of a piece of the pass; pieces of a sample */
    const float *dy, *x, *weight, *bias;
    float *dst;
    float *sums;   // [samples][chunks][ROWS][channels]
    float *affine; // [samples][3][channels]
} norm_state;

static bool is_back(const norm_state *w)
{
    return w->g.kind != QD_GROUP_NORM_FORWARD;
}

static void sums_piece(void *ctx, int64_t i)
{
    const norm_state *w = ctx;
    const int64_t sample = i / w->chunks, first = i % w->chunks * SUM_PIXELS, c = w->g.channels;
    const int64_t pixels = w->g.pixels - first < SUM_PIXELS ? w->g.pixels - first : SUM_PIXELS;
    const int64_t image = sample * w->g.pixels * c, at = image + first * c;
    float *sums = w->sums + i * ROWS * c;
    w->simd->moments(sums + X * c, sums + XX * c, w->x + at, w->x + image, pixels, c);
    if (is_back(w))
        w->simd->sums(sums + DY * c, sums + DYX * c, w->dy + at, w->x + at, w->x + image, pixels, c);
}

static double total(const norm_state *w, int64_t sample, int row, int64_t c)
{
    double sum = 0.0;
    for (int64_t k = 0; k < w->chunks; k++)
        sum += w->sums[((sample * w->chunks + k) * ROWS + row) * w->g.channels + c];
    return sum;
}

/* Mean and 1 / sqrt(var + eps) of a group of a sample. */
static void moments_of(const norm_state *w, int64_t sample, int64_t group, double *mean, double *rstd)
{
    const int64_t per_group = w->g.channels / w->g.groups, first = group * per_group;
    const float *pivot = w->x + sample * w->g.pixels * w->g.channels;
    const double base = pivot[first], space = (double)w->g.pixels;
    double sum = 0.0, square = 0.0;
    for (int64_t c = first; c < first + per_group; c++) {
        const double shift = pivot[c] - base, s = total(w, sample, X, c) / space;
        sum += s + shift;
        square += total(w, sample, XX, c) / space + 2.0 * s * shift + shift * shift;
    }
    sum /= (double)per_group;
    square /= (double)per_group;
    *mean = base + sum;
    *rstd = 1.0 / sqrt(fmax(square - sum * sum, 0.0) + (double)w->g.eps);
}

/* Sum over the pixels of a sample of dy (x - mean) for one channel. */
static double product_of(const norm_state *w, int64_t sample, int64_t c, double mean)
{
    const float *pivot = w->x + sample * w->g.pixels * w->g.channels;
    return total(w, sample, DYX, c) + total(w, sample, DY, c) * (pivot[c] - mean);
}

static double weight_of(const norm_state *w, int64_t c)
{
    return w->weight ? (double)w->weight[c] : 1.0;
}

/* y = mul x + add, or dx = a dy + b x + k, for every channel of a sample. */
static void coefficients(void *ctx, int64_t sample)
{
    const norm_state *w = ctx;
    const int64_t channels = w->g.channels, per_group = channels / w->g.groups;
    const double count = (double)(per_group * w->g.pixels);
    float *to = w->affine + sample * 3 * channels;
    for (int64_t group = 0; group < w->g.groups; group++) {
        const int64_t first = group * per_group;
        double mean, rstd, s = 0.0, p = 0.0;
        moments_of(w, sample, group, &mean, &rstd);
        for (int64_t c = first; is_back(w) && c < first + per_group; c++) {
            s += weight_of(w, c) * total(w, sample, DY, c);
            p += weight_of(w, c) * product_of(w, sample, c, mean) * rstd;
        }
        const double tilt = -rstd * rstd * p / count;
        for (int64_t c = first; c < first + per_group; c++) {
            const double gain = rstd * weight_of(w, c);
            to[c] = (float)gain;
            to[channels + c] = (float)(is_back(w) ? tilt : (w->bias ? (double)w->bias[c] : 0.0) - mean * gain);
            to[2 * channels + c] = (float)(-rstd * s / count - tilt * mean);
        }
    }
}

static void pass_piece(void *ctx, int64_t i)
{
    const norm_state *w = ctx;
    const int64_t sample = i / w->pieces, first = i % w->pieces * w->per_piece, c = w->g.channels;
    const int64_t pixels = w->g.pixels - first < w->per_piece ? w->g.pixels - first : w->per_piece;
    const int64_t at = (sample * w->g.pixels + first) * c;
    const float *k = w->affine + sample * 3 * c;
    if (is_back(w))
        w->simd->combine(w->dst + at, w->dy + at, w->x + at, k, k + c, k + 2 * c, pixels, c);
    else
        w->simd->norm(w->dst + at, w->x + at, NULL, k, k + c, -INFINITY, pixels, c);
}

/* Sum over samples of dy u. */
static void weight_sums(const norm_state *w)
{
    const int64_t per_group = w->g.channels / w->g.groups;
    for (int64_t group = 0; group < w->g.groups; group++)
        for (int64_t sample = 0; sample < w->g.samples; sample++) {
            double mean, rstd;
            moments_of(w, sample, group, &mean, &rstd);
            for (int64_t c = group * per_group; c < (group + 1) * per_group; c++)
                w->dst[c] = (sample ? w->dst[c] : 0.0f) + (float)(product_of(w, sample, c, mean) * rstd);
        }
}

static qd_status run(qd_plan *p, qd_step *s, qd_err *err)
{
    norm_state *w = s->state;
    const float *in[3];
    for (int k = 0; k < 3; k++)
        in[k] = w->g.in[k] < 0 ? NULL : qd_plan_data(p, w->g.in[k]);
    w->dy = is_back(w) ? in[0] : NULL;
    w->x = is_back(w) ? in[1] : in[0];
    w->weight = is_back(w) ? in[2] : in[1];
    w->bias = is_back(w) ? NULL : in[2];
    w->dst = qd_plan_data(p, s->out);
    w->sums = qd_plan_scratch(p, s);
    w->affine = w->sums + w->g.samples * w->chunks * ROWS * w->g.channels;
    qd_par_for(s->threads, w->g.samples * w->chunks, sums_piece, w);
    if (w->g.kind == QD_GROUP_NORM_BACK_WEIGHT) {
        weight_sums(w);
        return QD_OK;
    }
    qd_par_for(s->threads, w->g.samples, coefficients, w);
    qd_par_for(s->threads, w->g.samples * w->pieces, pass_piece, w);
    return QD_OK;
}

qd_status qd_add_group_norm_step(qd_plan *p, const qd_group_norm_step *g, qd_err *err)
{
    static const char *const kinds[] = { "group norm", "group norm back", "group norm back to weight" };
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(norm_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, g->name, kinds[g->kind], g->out, &s, err);
    if (st)
        return st;
    norm_state *w = memory;
    *w = (norm_state){ .simd = qd_train_simd_get(), .g = *g };
    w->chunks = (g->pixels + SUM_PIXELS - 1) / SUM_PIXELS;
    w->per_piece = g->channels < PIECE_ELEMENTS ? PIECE_ELEMENTS / g->channels : 1;
    w->pieces = (g->pixels + w->per_piece - 1) / w->per_piece;
    s->state = w;
    s->run = run;
    s->impl = w->simd->name;
    s->threads = qd_threads_for(p, (double)(g->samples * g->pixels) * (double)g->channels * WORK_PER_ELEMENT);
    for (int k = 0; k < 3; k++)
        qd_step_reads(s, g->in[k]);
    return qd_plan_add_scratch(p, s, (size_t)(g->samples * (w->chunks * ROWS + 3) * g->channels) * sizeof(float), err);
}
