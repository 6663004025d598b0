/* cpu_norm.c - one pass over an image: (group norm) (activation) (quantize) (upsample), read in parts, written as the reader wants.
 *
 * Statistics are shifted by the image's first pixel so that they do not cancel: for every channel sum and square over a fixed
 * number of pixels in float, then everything in double, in an order that does not depend on threads. */
#include <math.h>
#include <string.h>

#include "base/par.h"
#include "plan/cpu_int.h"

#define MOMENT_PIXELS 128     /* pixels summed in float before double takes over */
#define PIECE_ELEMENTS 16384  /* of the pass: large enough to be worth a hand-over, small enough to share */
#define WORK_PER_ELEMENT 40.0 /* an element of a pass in multiply-adds of a convolution: 0.5 ns against 60 a ns */

typedef struct pass_state {
    qd_pass_step s; /* its pointers lead to copies in the plan's arena */
    const qd_simd *simd;
    int64_t stride[QD_MAX_PARTS]; /* channels of the value that holds each source */
    int64_t chunks;               /* of the moments, per sample */
    int64_t rows_per_piece, pieces;
    int64_t out_width, out_row, out_image; /* in elements, with border */
    int32_t border[4];
    int32_t border_code;
    /* while running */
    const float *src[QD_MAX_PARTS];
    const float *time;
    void *dst;
    float *moments; // [n][chunks][2][channels]
    float *affine;  // [n][2][channels]
} pass_state;

static size_t out_bytes(const pass_state *w)
{
    return w->s.math.out == QD_PASS_CODES ? 1 : sizeof(float);
}

/* --- statistics --- */

static void moments_piece(void *ctx, int64_t i)
{
    const pass_state *w = ctx;
    const qd_pass_step *s = &w->s;
    const int64_t sample = i / w->chunks, chunk = i % w->chunks, space = s->height * s->width;
    const int64_t first = chunk * MOMENT_PIXELS;
    const int64_t pixels = space - first < MOMENT_PIXELS ? space - first : MOMENT_PIXELS;
    float *sum = w->moments + i * 2 * s->channels, *square = sum + s->channels;
    for (int k = 0, c = 0; k < s->n_sources; c += (int)s->count[k++]) {
        const float *image = w->src[k] + sample * space * w->stride[k] + s->begin[k];
        w->simd->moments(sum + c, square + c, image + first * w->stride[k], (size_t)w->stride[k], image, pixels,
                         s->count[k]);
    }
}

/* First pixel of channel c of a sample: the pivot. */
static double pivot_of(const pass_state *w, int64_t sample, int64_t c)
{
    int k = 0;
    for (; c >= w->s.count[k]; k++)
        c -= w->s.count[k];
    return w->src[k][sample * w->s.height * w->s.width * w->stride[k] + w->s.begin[k] + c];
}

/* mul and add of every channel of one sample from the moments of its groups (diffusion_models.md 2.2). */
static void coefficients(const pass_state *w, int64_t sample)
{
    const qd_pass_step *s = &w->s;
    const int64_t space = s->height * s->width, per_group = s->channels / s->groups;
    float *mul = w->affine + sample * 2 * s->channels, *add = mul + s->channels;
    const float *moments = w->moments + sample * w->chunks * 2 * s->channels;
    const float *time = w->time ? w->time + (s->time_per_sample ? sample * s->channels : 0) : NULL;

    for (int64_t g = 0; g < s->groups; g++) {
        /* mean and mean square about the group's first pivot */
        const double base = pivot_of(w, sample, g * per_group) + (time ? time[g * per_group] : 0.0f);
        double mean = 0.0, square = 0.0;
        for (int64_t c = g * per_group; c < (g + 1) * per_group; c++) {
            double sum = 0.0, sq = 0.0;
            for (int64_t k = 0; k < w->chunks; k++) {
                sum += moments[k * 2 * s->channels + c];
                sq += moments[(k * 2 + 1) * s->channels + c];
            }
            sum /= (double)space;
            sq /= (double)space;
            const double shift = pivot_of(w, sample, c) + (time ? time[c] : 0.0f) - base;
            mean += sum + shift;
            square += sq + 2.0 * sum * shift + shift * shift;
        }
        mean /= (double)per_group;
        square /= (double)per_group;
        const double var = fmax(square - mean * mean, 0.0), inv = 1.0 / sqrt(var + (double)s->eps);
        for (int64_t c = g * per_group; c < (g + 1) * per_group; c++) {
            const double m = inv * (s->weight ? s->weight[c] : 1.0f);
            mul[c] = (float)m;
            add[c] = (float)(((time ? time[c] : 0.0f) - (base + mean)) * m + (s->bias ? s->bias[c] : 0.0f));
        }
    }
}

/* --- the pass --- */

/* Pixels [x, x + pixels) of the source, as if all rows were one, to dst. */
static void pass_pixels(const pass_state *w, int64_t sample, int64_t x, int64_t pixels, char *dst, int64_t dst_stride)
{
    const qd_pass_step *s = &w->s;
    const float *mul = s->mul, *add = s->add;
    if (s->groups) {
        mul = w->affine + sample * 2 * s->channels;
        add = mul + s->channels;
    }
    for (int64_t k = 0, c = 0; k < s->n_sources; c += s->count[k++]) {
        const float *src = w->src[k] + (sample * s->height * s->width + x) * w->stride[k] + s->begin[k];
        w->simd->pass(dst + (size_t)c * out_bytes(w), (size_t)dst_stride, src, (size_t)w->stride[k], pixels,
                      s->count[k], mul ? mul + c : NULL, add ? add + c : NULL, s->divisor ? s->divisor + c : NULL,
                      &s->math);
    }
}

/* One row of the source: its border left and right, its copies when upsampling. */
static void pass_row(const pass_state *w, int64_t sample, int64_t y)
{
    const qd_pass_step *s = &w->s;
    const size_t pixel = (size_t)s->channels * out_bytes(w), row_bytes = (size_t)w->out_row * out_bytes(w);
    char *row = (char *)w->dst + (size_t)(sample * w->out_image) * out_bytes(w) +
                (size_t)(y * s->up_h + w->border[0]) * row_bytes;
    char *first = row + (size_t)w->border[1] * pixel;

    pass_pixels(w, sample, y * s->width, s->width, first, s->channels * s->up_w);
    if (s->up_w > 1)
        for (int64_t x = 0; x < s->width; x++) {
            char *from = first + (size_t)(x * s->up_w) * pixel;
            for (int64_t k = 1; k < s->up_w; k++)
                memcpy(from + (size_t)k * pixel, from, pixel);
        }
    memset(row, w->border_code, (size_t)w->border[1] * pixel);
    memset(first + (size_t)(s->width * s->up_w) * pixel, w->border_code, (size_t)w->border[3] * pixel);
    for (int64_t k = 1; k < s->up_h; k++)
        memcpy(row + (size_t)k * row_bytes, row, row_bytes);
}

static void pass_piece(void *ctx, int64_t i)
{
    const pass_state *w = ctx;
    const qd_pass_step *s = &w->s;
    const int64_t per_sample = w->pieces / s->n, sample = i / per_sample, first = i % per_sample * w->rows_per_piece;
    const int64_t rows = s->height - first < w->rows_per_piece ? s->height - first : w->rows_per_piece;
    const bool plain = w->out_row == s->width * s->channels && w->out_image == s->height * w->out_row;

    if (plain) {
        char *dst = (char *)w->dst + (size_t)(sample * w->out_image + first * w->out_row) * out_bytes(w);
        pass_pixels(w, sample, first * s->width, rows * s->width, dst, s->channels);
        return;
    }
    const size_t row_bytes = (size_t)w->out_row * out_bytes(w);
    char *image = (char *)w->dst + (size_t)(sample * w->out_image) * out_bytes(w);
    if (first == 0)
        memset(image, w->border_code, (size_t)w->border[0] * row_bytes);
    for (int64_t y = first; y < first + rows; y++)
        pass_row(w, sample, y);
    if (first + rows == s->height)
        memset(image + (size_t)(s->height * s->up_h + w->border[0]) * row_bytes, w->border_code,
               (size_t)w->border[2] * row_bytes);
}

static qd_status run(qd_plan *p, qd_step *step, qd_err *err)
{
    pass_state *w = step->state;
    const qd_pass_step *s = &w->s;
    for (int k = 0; k < s->n_sources; k++)
        w->src[k] = qd_plan_data(p, s->source[k]);
    w->time = s->time >= 0 ? qd_plan_data(p, s->time) : NULL;
    w->dst = qd_plan_data(p, s->out);
    if (s->groups) {
        w->affine = qd_plan_scratch(p, step);
        w->moments = w->affine + s->n * 2 * s->channels;
        qd_par_for(step->threads, s->n * w->chunks, moments_piece, w);
        for (int64_t sample = 0; sample < s->n; sample++)
            coefficients(w, sample);
    }
    qd_par_for(step->threads, w->pieces, pass_piece, w);
    return QD_OK;
}

static qd_status keep_floats(qd_plan *p, const float **numbers, int64_t n, bool invert, qd_err *err)
{
    void *copy;
    if (!*numbers)
        return QD_OK;
    qd_status st = qd_plan_small(p, (size_t)n * sizeof(float), &copy, err);
    if (st)
        return st;
    for (int64_t k = 0; k < n; k++)
        ((float *)copy)[k] = invert ? 1.0f / (*numbers)[k] : (*numbers)[k];
    *numbers = copy;
    return QD_OK;
}

static void shape_pieces(pass_state *w)
{
    qd_pass_step *s = &w->s;
    const bool plain = s->up_h == 1 && s->up_w == 1 && !w->border[0] && !w->border[1] && !w->border[2] && !w->border[3];
    if (plain && !s->groups && !s->mul && !s->divisor && s->n_sources == 1 && w->stride[0] == s->channels) {
        /* nothing depends on the channel: one long row of elements, cut anywhere */
        s->width = s->channels * s->height * s->width * s->n;
        s->n = s->height = s->channels = s->count[0] = w->stride[0] = 1;
    }
    if (plain) {
        s->height *= s->width; /* every pixel its own row */
        s->width = 1;
    }
    w->out_width = s->width * s->up_w + w->border[1] + w->border[3];
    w->out_row = w->out_width * s->channels;
    w->out_image = (s->height * s->up_h + w->border[0] + w->border[2]) * w->out_row;
    w->rows_per_piece = PIECE_ELEMENTS / (s->width * s->channels);
    if (w->rows_per_piece < 1)
        w->rows_per_piece = 1;
    w->pieces = (s->height + w->rows_per_piece - 1) / w->rows_per_piece * s->n;
    w->chunks = (s->height * s->width + MOMENT_PIXELS - 1) / MOMENT_PIXELS;
}

qd_status qd_add_pass_step(qd_plan *p, const qd_pass_step *spec, qd_err *err)
{
    qd_step *step;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(pass_state), &memory, err);
    if (st)
        return st;
    pass_state *w = memory;
    w->s = *spec;
    qd_pass_step *s = &w->s;
    w->simd = qd_simd_get();
    st = keep_floats(p, &s->weight, s->channels, false, err);
    if (!st)
        st = keep_floats(p, &s->bias, s->channels, false, err);
    if (!st)
        st = keep_floats(p, &s->divisor, s->channels, true, err);
    if (!st)
        st = qd_plan_add_step(p, spec->name, spec->kind, spec->out, &step, err);
    if (st)
        return st;

    const qd_value *out = &p->values[s->out];
    memcpy(w->border, out->border, sizeof(w->border));
    w->border_code = s->math.zero;
    s->math.affine = s->groups || s->mul;
    s->math.divided = s->divisor != NULL;
    for (int k = 0; k < s->n_sources; k++) {
        const qd_value *v = &p->values[s->source[k]];
        w->stride[k] = v->layout == QD_LAYOUT_LAST || v->shape.rank == 2 ? v->shape.dim[1] : s->channels;
        qd_step_reads(step, s->source[k]);
    }
    qd_step_reads(step, s->time);
    const double elements = (double)s->n * (double)s->height * (double)s->width * (double)s->channels;
    step->threads = qd_threads_for(p, elements * WORK_PER_ELEMENT);
    step->state = w;
    step->run = run;
    step->impl = w->simd->name;
    if (s->n_sources == 1 && s->math.out != QD_PASS_CODES && s->up_h == 1 && s->up_w == 1 && !s->begin[0])
        step->inplace = 0;
    shape_pieces(w);
    if (!s->groups)
        return QD_OK;
    return qd_plan_add_scratch(p, step, (size_t)(s->n * 2 * s->channels * (1 + w->chunks)) * sizeof(float), err);
}
