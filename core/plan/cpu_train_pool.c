/* cpu_train_pool.c - pools back to what they read, channels last, all channels of a window's place at once. */
#include <string.h>

#include "base/par.h"
#include "plan/cpu_train.h"

#define WORK_PER_ELEMENT 30.0

typedef struct pool_state {
    const qd_map_simd *simd;
    qd_conv_shape s;
    bool count_pad;
    qd_value_id from[2];
    const float *dy, *x;
    float *dst;
    float *best; // [n][channels], and as many int32_t behind
} pool_state;

/* Rows (or columns) of a window that are in the image. */
static void inside(int64_t at, int64_t stride, int64_t pad, int64_t kernel, int64_t size, int64_t *from, int64_t *to)
{
    *from = at * stride - pad;
    *to = *from + kernel < size ? *from + kernel : size;
    *from = *from > 0 ? *from : 0;
}

/* To the first of the largest of a window. */
static void max_window(const pool_state *w, int64_t sample, const float *dy, const int64_t rows[2],
                       const int64_t columns[2])
{
    const qd_conv_shape *s = &w->s;
    const float *image = w->x + sample * s->h * s->w * s->c;
    float *dst = w->dst + sample * s->h * s->w * s->c, *best = w->best + sample * 2 * s->c;
    int32_t *from = (int32_t *)(best + s->c), tap = 0;
    memcpy(best, image + (rows[0] * s->w + columns[0]) * s->c, (size_t)s->c * sizeof(float));
    memset(from, 0, (size_t)s->c * sizeof *from);
    for (int64_t y = rows[0]; y < rows[1]; y++)
        for (int64_t x = columns[0]; x < columns[1]; x++, tap++)
            if (tap)
                w->simd->keep_larger(best, from, image + (y * s->w + x) * s->c, tap, s->c);
    tap = 0;
    for (int64_t y = rows[0]; y < rows[1]; y++)
        for (int64_t x = columns[0]; x < columns[1]; x++, tap++)
            w->simd->add_where(dst + (y * s->w + x) * s->c, dy, from, tap, s->c);
}

static void mean_window(const pool_state *w, int64_t sample, const float *dy, const int64_t rows[2],
                        const int64_t columns[2])
{
    const qd_conv_shape *s = &w->s;
    float *dst = w->dst + sample * s->h * s->w * s->c;
    const int64_t taps = w->count_pad ? s->kh * s->kw : (rows[1] - rows[0]) * (columns[1] - columns[0]);
    const float scale = 1.0f / (float)taps;
    for (int64_t y = rows[0]; y < rows[1]; y++)
        for (int64_t x = columns[0]; x < columns[1]; x++)
            w->simd->add_scaled(dst + (y * s->w + x) * s->c, dy, scale, s->c);
}

static void sample_piece(void *ctx, int64_t sample)
{
    const pool_state *w = ctx;
    const qd_conv_shape *s = &w->s;
    int64_t rows[2], columns[2];
    memset(w->dst + sample * s->h * s->w * s->c, 0, (size_t)(s->h * s->w * s->c) * sizeof(float));
    for (int64_t oy = 0; oy < s->oh; oy++) {
        inside(oy, s->stride_h, s->pad_t, s->kh, s->h, &rows[0], &rows[1]);
        for (int64_t ox = 0; ox < s->ow; ox++) {
            const float *dy = w->dy + ((sample * s->oh + oy) * s->ow + ox) * s->c;
            inside(ox, s->stride_w, s->pad_l, s->kw, s->w, &columns[0], &columns[1]);
            (w->x ? max_window : mean_window)(w, sample, dy, rows, columns);
        }
    }
}

static qd_status run(qd_plan *p, qd_step *s, qd_err *err)
{
    pool_state *w = s->state;
    w->dy = qd_plan_data(p, w->from[0]);
    w->x = w->from[1] < 0 ? NULL : qd_plan_data(p, w->from[1]);
    w->dst = qd_plan_data(p, s->out);
    w->best = qd_plan_scratch(p, s);
    qd_par_for(s->threads, w->s.n, sample_piece, w);
    return QD_OK;
}

qd_status qd_add_pool_grad_step(qd_plan *p, const char *name, const qd_conv_shape *shape, bool count_pad,
                                qd_value_id dy, qd_value_id x, qd_value_id out, qd_err *err)
{
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(pool_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, name, x < 0 ? "mean pool back" : "max pool back", out, &s, err);
    if (st)
        return st;
    pool_state *w = memory;
    *w = (pool_state){ .simd = qd_map_simd_get(), .s = *shape, .count_pad = count_pad, .from = { dy, x } };
    s->state = w;
    s->run = run;
    s->impl = qd_train_simd_get()->name;
    s->threads = qd_threads_for(p, (double)(shape->n * shape->oh * shape->ow * shape->c) *
                                       (double)(shape->kh * shape->kw) * WORK_PER_ELEMENT);
    qd_step_reads(s, dy);
    qd_step_reads(s, x);
    return x < 0 ? QD_OK : qd_plan_add_scratch(p, s, (size_t)(shape->n * shape->c) * 2 * sizeof(float), err);
}
