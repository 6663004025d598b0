/* cpu_qattention.c - attention on codes: u8 x s8 with int32 sums, exact as qd_k_qattention says.
 *
 * Keys and values of each head are packed once as s8 (code - 128); then some queries at a time. With k' = k - 128 the score is
 *   sum (q - zq)(k - zk) = sum q k' - zq sum k' + what is the same for all keys of a query,
 * which drops out of the softmax. Softmax weights of 16 bits are two planes of bytes, each multiplied by the values and added up as
 * 256 high + low: as many instructions as pairs of 16 bits would take, and no sum can overflow. */
#include <string.h>

#include "base/par.h"
#include "plan/attn_simd.h"
#include "plan/cpu_int.h"

#define MOST_QUERIES 64
#define FEWEST_QUERIES 8
#define SCORES 65536 /* of a piece */

typedef struct qattention_state {
    qd_qattention_step q;
    const qd_attn_simd *loops;
    const qd_simd *simd;
    const void *in[3];
    float *dst;
    int64_t width, queries, chunks;
    int planes; /* of bytes of a softmax weight */
    /* The scratch: for each head of each sample, then for each thread; offsets in bytes. */
    char *heads, *threads;
    size_t head_bytes, values_at, bias_at;
    size_t thread_bytes, q_at, scores_at, weights_at, sums_at;
} qattention_state;

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Rows [first, first + rows) of operand k of one head as codes: where they lie and how far apart, or copied to `room` in rows of
 * `stride` bytes. */
static const uint8_t *codes_of(const qattention_state *w, int k, int64_t sample, int64_t head, int64_t first,
                               int64_t rows, uint8_t *room, size_t *stride)
{
    const qd_heads *h = &w->q.a.in[k];
    const int64_t at = (sample * (k ? w->q.a.s : w->q.a.t) + first) * h->stride + h->begin + head * w->width;
    if (w->q.map[k].coded) {
        *stride = (size_t)h->stride;
        return (const uint8_t *)w->in[k] + at;
    }
    const qd_pass_math math = { .out = QD_PASS_CODES,
                                .inv_scale = 1.0f / w->q.map[k].made_scale,
                                .lo = w->q.map[k].lo,
                                .hi = w->q.map[k].hi,
                                .zero = w->q.map[k].made_zero };
    w->simd->pass(room, *stride, (const float *)w->in[k] + at, (size_t)h->stride, rows, w->width, NULL, NULL, NULL,
                  &math);
    return room;
}

static char *thread_room(const qattention_state *w)
{
    return w->threads + (size_t)qd_par_thread() * w->thread_bytes;
}

static void pack_piece(void *ctx, int64_t i)
{
    const qattention_state *w = ctx;
    const int64_t sample = i / w->q.a.heads, head = i % w->q.a.heads, keys = w->q.a.s;
    char *to = w->heads + (size_t)i * w->head_bytes;
    int32_t *bias = (int32_t *)(void *)(to + w->bias_at);
    uint8_t *room = (uint8_t *)thread_room(w);
    size_t stride = (size_t)w->width;
    const uint8_t *codes = codes_of(w, 1, sample, head, 0, keys, room, &stride);
    w->loops->pack_keys((int8_t *)to, bias, codes, stride, keys, w->width);
    for (int64_t k = 0; k < keys; k++)
        bias[k] *= -w->q.map[0].zero;
    stride = (size_t)w->width;
    codes = codes_of(w, 2, sample, head, 0, keys, room, &stride);
    w->loops->pack_values((int8_t *)to + w->values_at, codes, stride, keys, w->width);
}

/* One query: its sums of planes to floats. */
static void finish(const qattention_state *w, float *dst, const int32_t *low, const int32_t *high, int64_t sum)
{
    /* Single precision: off by a part in 2^23 of 128 codes. */
    const float each = 1.0f / (float)sum, scale = w->q.map[2].scale, shift = (float)(w->q.map[2].zero - 128);
    if (high) {
#pragma omp simd
        for (int64_t c = 0; c < w->width; c++)
            dst[c] = ((256.0f * (float)high[c] + (float)low[c]) * each - shift) * scale;
    } else {
#pragma omp simd
        for (int64_t c = 0; c < w->width; c++)
            dst[c] = ((float)low[c] * each - shift) * scale;
    }
}

static void attend_piece(void *ctx, int64_t i)
{
    const qattention_state *w = ctx;
    const qd_attention_step *a = &w->q.a;
    const int64_t chunk = i % w->chunks, head = i / w->chunks % a->heads, sample = i / w->chunks / a->heads;
    const int64_t first = chunk * w->queries;
    const int64_t queries = a->t - first < w->queries ? a->t - first : w->queries;
    const int64_t panels = qd_panels(a->s), outs = qd_panels(w->width) * QD_PANEL;
    const size_t row_bytes = (size_t)qd_quads(a->s) * 4;
    const char *packed = w->heads + (size_t)(sample * a->heads + head) * w->head_bytes;
    char *room = thread_room(w);
    uint8_t *q = (uint8_t *)room + w->q_at, *weights = (uint8_t *)room + w->weights_at;
    int32_t *scores = (int32_t *)(void *)(room + w->scores_at), *sums = (int32_t *)(void *)(room + w->sums_at);
    int64_t total[MOST_QUERIES];

    size_t stride = (size_t)qd_quads(w->width) * 4;
    const uint8_t *codes = codes_of(w, 0, sample, head, first, queries, q, &stride);
    if (codes != q) { /* the last quad may reach past the row: give it a row of its own */
        for (int64_t r = 0; r < queries; r++)
            memcpy(q + (size_t)(r * qd_quads(w->width) * 4), codes + (size_t)r * stride, (size_t)w->width);
        stride = (size_t)qd_quads(w->width) * 4;
    }
    w->loops->dots(scores, (size_t)(panels * QD_PANEL), q, stride, (const int8_t *)packed, queries, panels,
                   qd_quads(w->width));
    for (int64_t r = 0; r < queries; r++) {
        uint8_t *low = weights + (size_t)(r * w->planes) * row_bytes;
        total[r] = w->loops->weights(low, w->planes > 1 ? low + row_bytes : NULL, scores + r * panels * QD_PANEL,
                                     (const int32_t *)(const void *)(packed + w->bias_at), a->s, w->q.score_step);
    }
    w->loops->dots(sums, (size_t)outs, weights, row_bytes, (const int8_t *)packed + w->values_at, queries * w->planes,
                   outs / QD_PANEL, qd_quads(a->s));
    for (int64_t r = 0; r < queries; r++) {
        const int32_t *low = sums + r * w->planes * outs;
        finish(w, w->dst + (sample * a->t + first + r) * a->c + head * w->width, low, w->planes > 1 ? low + outs : NULL,
               total[r]);
    }
}

static qd_status run_qattention(qd_plan *p, qd_step *s, qd_err *err)
{
    qattention_state *w = s->state;
    const qd_attention_step *a = &w->q.a;
    for (int k = 0; k < 3; k++)
        w->in[k] = qd_plan_data(p, a->in[k].value);
    w->dst = qd_plan_data(p, s->out);
    w->heads = qd_plan_scratch(p, s);
    w->threads = w->heads + (size_t)(a->n * a->heads) * w->head_bytes;
    qd_par_for(s->threads, a->n * a->heads, pack_piece, w);
    qd_par_for(s->threads, a->n * a->heads * w->chunks, attend_piece, w);
    return QD_OK;
}

static void lay_scratch(qattention_state *w)
{
    const qd_attention_step *a = &w->q.a;
    const size_t panels = (size_t)qd_panels(a->s), outs = (size_t)qd_panels(w->width) * QD_PANEL;
    const size_t queries = (size_t)w->queries, planes = (size_t)w->planes, quads = (size_t)qd_quads(a->s);
    const size_t row = (size_t)qd_quads(w->width) * 4;
    w->values_at = aligned(panels * QD_PANEL * row);
    w->bias_at = w->values_at + aligned(outs * quads * 4);
    w->head_bytes = w->bias_at + aligned(panels * QD_PANEL * sizeof(int32_t));
    /* Codes of keys or values while they are packed; later, in the same place, what the queries need. */
    const size_t coding = w->q.map[1].coded && w->q.map[2].coded ? 0 : (size_t)(a->s * w->width);
    w->q_at = 0;
    w->scores_at = aligned(queries * row);
    w->weights_at = w->scores_at + aligned(queries * panels * QD_PANEL * sizeof(int32_t));
    w->sums_at = w->weights_at + aligned(queries * planes * quads * 4);
    const size_t end = w->sums_at + aligned(queries * planes * outs * sizeof(int32_t));
    w->thread_bytes = aligned(end > coding ? end : coding);
}

qd_status qd_add_qattention_step(qd_plan *p, const qd_qattention_step *q, qd_err *err)
{
    const qd_attention_step *a = &q->a;
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(qattention_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, a->name, "qattention", a->out, &s, err);
    if (st)
        return st;
    qattention_state *w = memory;
    w->q = *q;
    w->loops = qd_attn_simd_get();
    w->simd = qd_simd_get();
    w->width = a->c / a->heads;
    w->planes = q->softmax_bits / 8;
    w->queries = SCORES / a->s;
    w->queries = w->queries > MOST_QUERIES ? MOST_QUERIES : w->queries < FEWEST_QUERIES ? FEWEST_QUERIES : w->queries;
    w->queries = w->queries < a->t ? w->queries : a->t;
    w->chunks = (a->t + w->queries - 1) / w->queries;
    lay_scratch(w);
    s->state = w;
    s->run = run_qattention;
    s->impl = w->loops->name;
    s->macs = a->macs;
    s->integer = true;
    s->threads = qd_threads_for(p, (double)a->macs * 0.5);
    for (int k = 0; k < 3; k++)
        qd_step_reads(s, a->in[k].value);
    return qd_plan_add_scratch(p, s, (size_t)(a->n * a->heads) * w->head_bytes + (size_t)s->threads * w->thread_bytes,
                               err);
}
