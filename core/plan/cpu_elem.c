/* cpu_elem.c - the simple steps: arithmetic with broadcasting, layout changes, pooling, rows. */
#include <math.h>
#include <string.h>

#include "base/par.h"
#include "plan/cpu_int.h"

#define PIECE_ELEMENTS 16384
#define WORK_PER_ELEMENT 20.0 /* in multiply-adds of a convolution */

/* A step with two operands at most, and what its loops need. */
typedef struct elem_state {
    const qd_simd *simd;
    qd_value_id va, vb;
    const float *a, *b;
    float *dst;
    int64_t n, pixels, channels; /* arith: [n][pixels][channels]; rows: n rows of `channels` */
    int64_t per_piece, pieces;   /* pixels or rows of a piece; pieces of a sample */
    qd_arith op;
    qd_spread spread;
    bool per_sample;
    const float *weight, *bias;
    float eps;
    qd_pool pool;
    qd_conv_shape window;
    int32_t border_code;
} elem_state;

static qd_status add_step(qd_plan *p, const char *name, const char *kind, qd_value_id a, qd_value_id b, qd_value_id out,
                          const elem_state *like, qd_status (*run)(qd_plan *, qd_step *, qd_err *), qd_step **step,
                          qd_err *err)
{
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(elem_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, name, kind, out, step, err);
    if (st)
        return st;
    elem_state *w = memory;
    *w = *like;
    w->simd = qd_simd_get();
    w->va = a;
    w->vb = b;
    (*step)->state = w;
    (*step)->run = run;
    (*step)->impl = w->simd->name;
    qd_step_reads(*step, a);
    qd_step_reads(*step, b);
    return QD_OK;
}

static int64_t per_piece(int64_t each)
{
    return each < PIECE_ELEMENTS ? PIECE_ELEMENTS / each : 1;
}

static elem_state *resolve(qd_plan *p, qd_step *s)
{
    elem_state *w = s->state;
    w->a = qd_plan_data(p, w->va);
    w->b = w->vb >= 0 ? qd_plan_data(p, w->vb) : NULL;
    w->dst = qd_plan_data(p, s->out);
    return w;
}

/* --- arithmetic --- */

static void arith_piece(void *ctx, int64_t i)
{
    const elem_state *w = ctx;
    const int64_t sample = i / w->pieces, first = i % w->pieces * w->per_piece;
    const int64_t pixels = w->pixels - first < w->per_piece ? w->pixels - first : w->per_piece;
    const int64_t at = (sample * w->pixels + first) * w->channels;
    if (w->spread == QD_SPREAD_CHANNEL) {
        const float *b = w->b + (w->per_sample ? sample * w->channels : 0);
        for (int64_t k = 0; k < pixels; k++)
            w->simd->arith(w->dst + at + k * w->channels, w->a + at + k * w->channels, b, 1, w->channels, w->op);
    } else if (w->spread == QD_SPREAD_SCALAR) {
        w->simd->arith(w->dst + at, w->a + at, w->b, 0, pixels * w->channels, w->op);
    } else {
        w->simd->arith(w->dst + at, w->a + at, w->b + at, 1, pixels * w->channels, w->op);
    }
}

static qd_status run_arith(qd_plan *p, qd_step *s, qd_err *err)
{
    elem_state *w = resolve(p, s);
    qd_par_for(s->threads, w->n * w->pieces, arith_piece, w);
    return QD_OK;
}

qd_status qd_add_arith_step(qd_plan *p, const char *name, qd_arith op, qd_value_id a, qd_value_id b, qd_value_id out,
                            qd_spread spread, int64_t n, int64_t pixels, int64_t channels, bool per_sample, qd_err *err)
{
    static const char *const names[] = { "add", "sub", "mul", "div", "max" };
    elem_state w = {
        .n = n, .pixels = pixels, .channels = channels, .op = op, .spread = spread, .per_sample = per_sample
    };
    qd_step *s;
    w.per_piece = per_piece(channels);
    w.pieces = (pixels + w.per_piece - 1) / w.per_piece;
    qd_status st = add_step(p, name, names[op], a, b, out, &w, run_arith, &s, err);
    if (st)
        return st;
    s->inplace = 0;
    s->threads = qd_threads_for(p, (double)n * (double)pixels * (double)channels * WORK_PER_ELEMENT);
    return QD_OK;
}

/* --- layout changes --- */

static qd_status run_convert(qd_plan *p, qd_step *s, qd_err *err)
{
    const elem_state *w = resolve(p, s);
    qd_value_convert(&p->values[s->out], qd_plan_data(p, s->out), &p->values[w->va], w->a, w->border_code);
    return QD_OK;
}

qd_status qd_add_convert_step(qd_plan *p, const char *name, qd_value_id from, qd_value_id to, int32_t border_code,
                              qd_err *err)
{
    const elem_state w = { .border_code = border_code };
    qd_step *s;
    return add_step(p, name, "convert", from, -1, to, &w, run_convert, &s, err);
}

/* --- pooling, channels last --- */

/* One output row: windows are gathered tap by tap, all channels at once. */
static void pool_row(void *ctx, int64_t i)
{
    const elem_state *w = ctx;
    const qd_conv_shape *s = &w->window;
    const int64_t sample = i / s->oh, oy = i % s->oh;
    for (int64_t ox = 0; ox < s->ow; ox++) {
        float *dst = w->dst + ((sample * s->oh + oy) * s->ow + ox) * s->c;
        int64_t taps = 0, inside = 0;
        for (int64_t ky = 0; ky < s->kh; ky++)
            for (int64_t kx = 0; kx < s->kw; kx++) {
                const int64_t y = oy * s->stride_h - s->pad_t + ky * s->dil_h;
                const int64_t x = ox * s->stride_w - s->pad_l + kx * s->dil_w;
                inside += y < s->h + s->pad_b && x < s->w + s->pad_r;
                if (y < 0 || y >= s->h || x < 0 || x >= s->w)
                    continue;
                const float *src = w->a + ((sample * s->h + y) * s->w + x) * s->c;
                if (taps++ == 0)
                    memcpy(dst, src, (size_t)s->c * sizeof(float));
                else
                    w->simd->arith(dst, dst, src, 1, s->c, w->pool == QD_POOL_MAX ? QD_ARITH_MAX : QD_ARITH_ADD);
            }
        if (w->pool == QD_POOL_MAX)
            continue;
        const float inv = 1.0f / (float)(w->pool == QD_POOL_AVG_PADDED ? inside : taps);
        w->simd->arith(dst, dst, &inv, 0, s->c, QD_ARITH_MUL);
    }
}

static qd_status run_pool(qd_plan *p, qd_step *s, qd_err *err)
{
    elem_state *w = resolve(p, s);
    qd_par_for(s->threads, w->window.n * w->window.oh, pool_row, w);
    return QD_OK;
}

qd_status qd_add_pool_step(qd_plan *p, const char *name, qd_pool kind, const qd_conv_shape *shape, qd_value_id from,
                           qd_value_id to, qd_err *err)
{
    const elem_state w = { .pool = kind, .window = *shape };
    qd_step *s;
    qd_status st =
        add_step(p, name, kind == QD_POOL_MAX ? "max_pool" : "avg_pool", from, -1, to, &w, run_pool, &s, err);
    if (!st)
        s->threads = qd_threads_for(p, (double)(shape->n * shape->oh * shape->ow * shape->c * shape->kh * shape->kw) *
                                           WORK_PER_ELEMENT);
    return st;
}

/* --- rows --- */

static void rows_piece(void *ctx, int64_t i)
{
    const elem_state *w = ctx;
    const int64_t first = i * w->per_piece, rows = w->n - first < w->per_piece ? w->n - first : w->per_piece;
    const float *src = w->a + first * w->channels;
    float *dst = w->dst + first * w->channels;
    if (w->eps >= 0.0f) {
        w->simd->layer_norm(dst, src, w->weight, w->bias, rows, w->channels, w->eps);
    } else {
        if (dst != src)
            memcpy(dst, src, (size_t)(rows * w->channels) * sizeof(float));
        w->simd->softmax(dst, rows, w->channels, (size_t)w->channels);
    }
}

static qd_status run_rows(qd_plan *p, qd_step *s, qd_err *err)
{
    elem_state *w = resolve(p, s);
    qd_par_for(s->threads, w->pieces, rows_piece, w);
    return QD_OK;
}

static qd_status add_rows(qd_plan *p, const char *name, const char *kind, qd_value_id from, qd_value_id to,
                          elem_state *w, qd_err *err)
{
    qd_step *s;
    w->per_piece = per_piece(w->channels);
    w->pieces = (w->n + w->per_piece - 1) / w->per_piece;
    qd_status st = add_step(p, name, kind, from, -1, to, w, run_rows, &s, err);
    if (st)
        return st;
    s->inplace = 0;
    s->threads = qd_threads_for(p, (double)w->n * (double)w->channels * WORK_PER_ELEMENT);
    return QD_OK;
}

qd_status qd_add_layer_norm_step(qd_plan *p, const char *name, qd_value_id from, const float *weight, const float *bias,
                                 int64_t rows, int64_t width, float eps, qd_value_id to, qd_err *err)
{
    elem_state w = { .n = rows, .channels = width, .weight = weight, .bias = bias, .eps = eps };
    return add_rows(p, name, "layer_norm", from, to, &w, err);
}

qd_status qd_add_softmax_step(qd_plan *p, const char *name, qd_value_id from, int64_t rows, int64_t width,
                              qd_value_id to, qd_err *err)
{
    elem_state w = { .n = rows, .channels = width, .eps = -1.0f };
    return add_rows(p, name, "softmax", from, to, &w, err);
}
