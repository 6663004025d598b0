/* cpu_train_map.c - training steps of elements on their own and of rows: derivatives of activations and quantizers, softmax, layer norm.
 *
 * Pieces are cut by shape alone, and what they sum is added up in their order: threads do not matter. */
#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "base/par.h"
#include "plan/cpu_train.h"

#define PIECE_ELEMENTS 16384
#define SUM_ELEMENTS 4096     /* summed in float before double takes over */
#define WORK_PER_ELEMENT 30.0 /* in multiply-adds of a convolution */
#define WORK_OF_PLAIN 300.0

const qd_map_simd *qd_map_simd_get(void)
{
#if defined(__x86_64__)
    switch (qd_cpu_isa()) {
    case QD_ISA_AVX512:
        return &qd_map_simd_avx512;
    case QD_ISA_AVX2:
        return &qd_map_simd_avx2;
    case QD_ISA_BASE:
        break;
    }
#endif
    return &qd_map_simd_base;
}

static void *data_of(const qd_plan *p, qd_value_id v)
{
    return v < 0 ? NULL : qd_plan_data(p, v);
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* --- elements --- */

typedef struct map_state {
    const qd_map_simd *simd;
    qd_map_step m;
    int64_t per_piece, pieces; /* elements of a row and its pieces, or rows of a piece */
    bool whole_rows;           /* a piece is some rows, not part of one */
    const float *a, *b, *scale;
    float *dst, *scratch;
} map_state;

/* fn on some elements of row r. */
static void each_part(const map_state *w, int64_t i,
                      void (*fn)(const map_state *w, int64_t i, int64_t at, int64_t n, float scale))
{
    const qd_map_step *m = &w->m;
    const int64_t row = w->whole_rows ? i * w->per_piece : i / w->pieces;
    const int64_t rows = w->whole_rows ? least(w->per_piece, m->rows - row) : 1;
    const int64_t first = w->whole_rows ? 0 : i % w->pieces * w->per_piece;
    const int64_t n = w->whole_rows ? m->width : least(w->per_piece, m->width - first);
    for (int64_t r = row; r < row + rows; r++)
        fn(w, i, r * m->width + first, n, w->scale ? w->scale[r % m->scales] : m->p[0]);
}

static void map_part(const map_state *w, int64_t i, int64_t at, int64_t n, float scale)
{
    const float p[4] = { scale, w->m.p[1], w->m.p[2], w->m.p[3] };
    w->simd->map(w->m.map, w->dst + at, w->a + at, w->b ? w->b + at : NULL, n, p);
}

static void map_piece(void *ctx, int64_t i)
{
    each_part(ctx, i, map_part);
}

static void slope_part(const map_state *w, int64_t i, int64_t at, int64_t n, float scale)
{
    w->scratch[i] = w->simd->learned_quant_slope(w->a + at, w->b + at, n, scale, w->m.p[1], w->m.p[2]);
}

static void slope_piece(void *ctx, int64_t i)
{
    each_part(ctx, i, slope_part);
}

static void resolve_map(qd_plan *p, qd_step *s)
{
    map_state *w = s->state;
    w->a = data_of(p, w->m.a);
    w->b = data_of(p, w->m.b);
    w->scale = data_of(p, w->m.scale);
    w->dst = qd_plan_data(p, s->out);
    w->scratch = qd_plan_scratch(p, s);
}

static qd_status run_map(qd_plan *p, qd_step *s, qd_err *err)
{
    map_state *w = s->state;
    resolve_map(p, s);
    const int64_t n = w->whole_rows ? (w->m.rows + w->per_piece - 1) / w->per_piece : w->m.rows * w->pieces;
    qd_par_for(s->threads, n, map_piece, w);
    return QD_OK;
}

static qd_status run_scale_grad(qd_plan *p, qd_step *s, qd_err *err)
{
    map_state *w = s->state;
    resolve_map(p, s);
    qd_par_for(s->threads, w->m.rows * w->pieces, slope_piece, w);
    for (int64_t c = 0; c < w->m.scales; c++) {
        double sum = 0.0;
        for (int64_t r = c; r < w->m.rows; r += w->m.scales)
            for (int64_t k = 0; k < w->pieces; k++)
                sum += w->scratch[r * w->pieces + k];
        w->dst[c] = (float)sum;
    }
    return QD_OK;
}

static qd_status add_map(qd_plan *p, const qd_map_step *m, int64_t per_piece,
                         qd_status (*run)(qd_plan *, qd_step *, qd_err *), qd_step **step, qd_err *err)
{
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(map_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, m->name, m->kind, m->out, step, err);
    if (st)
        return st;
    map_state *w = memory;
    *w = (map_state){ .simd = qd_map_simd_get(), .m = *m, .per_piece = per_piece };
    w->pieces = (m->width + per_piece - 1) / per_piece;
    qd_step *s = *step;
    s->state = w;
    s->run = run;
    s->impl = qd_train_simd_get()->name;
    s->threads = qd_threads_for(p, (double)m->rows * (double)m->width * WORK_PER_ELEMENT);
    qd_step_reads(s, m->a);
    qd_step_reads(s, m->b);
    qd_step_reads(s, m->scale);
    return QD_OK;
}

qd_status qd_add_map_step(qd_plan *p, const qd_map_step *m, qd_err *err)
{
    qd_step *s;
    qd_status st = add_map(p, m, PIECE_ELEMENTS, run_map, &s, err);
    if (st)
        return st;
    map_state *w = s->state;
    s->inplace = 0;
    w->whole_rows = m->width < PIECE_ELEMENTS;
    if (w->whole_rows)
        w->per_piece = PIECE_ELEMENTS / m->width;
    return QD_OK;
}

qd_status qd_add_scale_grad_step(qd_plan *p, const qd_map_step *m, qd_err *err)
{
    qd_step *s;
    qd_status st = add_map(p, m, SUM_ELEMENTS, run_scale_grad, &s, err);
    if (st)
        return st;
    const map_state *w = s->state;
    return qd_plan_add_scratch(p, s, (size_t)(m->rows * w->pieces) * sizeof(float), err);
}

/* --- elements by the plain loops --- */

typedef struct pieces_state {
    const qd_node *node;
    qd_value_id from[QD_MAX_INPUTS];
    char *in[QD_MAX_INPUTS], *dst;
    int64_t count;
} pieces_state;

static void plain_piece(void *ctx, int64_t i)
{
    const pieces_state *w = ctx;
    const int64_t first = i * PIECE_ELEMENTS, n = least(PIECE_ELEMENTS, w->count - first);
    const size_t at = (size_t)first * sizeof(float);
    qd_tensor from[QD_MAX_INPUTS], to = { .dtype = QD_F32, .shape = QD_SHAPE(n), .data = w->dst + at };
    const qd_tensor *in[QD_MAX_INPUTS] = { NULL };
    for (int k = 0; k < w->node->n_inputs; k++)
        if (w->in[k]) {
            from[k] = (qd_tensor){ .dtype = QD_F32, .shape = QD_SHAPE(n), .data = w->in[k] + at };
            in[k] = &from[k];
        }
    w->node->op->forward(w->node, in, &to);
}

static qd_status run_pieces(qd_plan *p, qd_step *s, qd_err *err)
{
    pieces_state *w = s->state;
    for (int k = 0; k < w->node->n_inputs; k++)
        w->in[k] = data_of(p, w->from[k]);
    w->dst = qd_plan_data(p, s->out);
    qd_par_for(s->threads, (w->count + PIECE_ELEMENTS - 1) / PIECE_ELEMENTS, plain_piece, w);
    return QD_OK;
}

qd_status qd_add_pieces_step(qd_plan *p, const qd_node *n, const qd_value_id *in, qd_value_id out, int64_t count,
                             qd_err *err)
{
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(pieces_state), &memory, err);
    if (st)
        return st;
    pieces_state *w = memory;
    st = qd_plan_keep_node(p, n, &w->node, err);
    if (!st)
        st = qd_plan_add_step(p, n->name, n->op->name, out, &s, err);
    if (st)
        return st;
    w->count = count;
    s->state = w;
    s->run = run_pieces;
    s->impl = "plain loops";
    s->threads = qd_threads_for(p, (double)count * WORK_OF_PLAIN);
    for (int k = 0; k < n->n_inputs; k++) {
        w->from[k] = in[k];
        qd_step_reads(s, in[k]);
    }
    return QD_OK;
}

/* --- rows --- */

typedef struct row_state {
    const qd_map_simd *simd;
    const qd_simd *plain;
    qd_row_step r;
    int64_t per_piece, pieces; /* rows */
    const float *in[3];
    float *dst, *scratch;
} row_state;

static void row_piece(void *ctx, int64_t i)
{
    const row_state *w = ctx;
    const int64_t width = w->r.width, first = i * w->per_piece, rows = least(w->per_piece, w->r.rows - first);
    const float *a = w->in[0] + first * width, *b = w->in[1] ? w->in[1] + first * width : NULL;
    float *dst = w->dst + first * width;
    switch (w->r.kind) {
    case QD_ROW_SOFTMAX_GRAD:
        w->simd->softmax_grad(dst, a, b, rows, width);
        break;
    case QD_ROW_LOG_SOFTMAX_GRAD:
        w->simd->log_softmax_grad(dst, a, b, rows, width);
        break;
    case QD_ROW_LOG_SOFTMAX:
        w->simd->log_softmax(dst, a, rows, width);
        break;
    case QD_ROW_NORM:
        w->plain->layer_norm(dst, a, w->in[1], w->in[2], rows, width, w->r.eps);
        break;
    case QD_ROW_NORM_GRAD:
        w->simd->layer_norm_grad(dst, a, b, w->in[2], rows, width, w->r.eps);
        break;
    case QD_ROW_NORM_GRAD_WEIGHT:
        memset(w->scratch + i * width, 0, (size_t)width * sizeof(float));
        w->simd->layer_norm_grad_weight(w->scratch + i * width, a, b, rows, width, w->r.eps);
        break;
    }
}

static qd_status run_rows(qd_plan *p, qd_step *s, qd_err *err)
{
    row_state *w = s->state;
    for (int k = 0; k < 3; k++)
        w->in[k] = data_of(p, w->r.in[k]);
    w->dst = qd_plan_data(p, s->out);
    w->scratch = qd_plan_scratch(p, s);
    qd_par_for(s->threads, w->pieces, row_piece, w);
    for (int64_t c = 0; w->r.kind == QD_ROW_NORM_GRAD_WEIGHT && c < w->r.width; c++) {
        double sum = 0.0;
        for (int64_t k = 0; k < w->pieces; k++)
            sum += w->scratch[k * w->r.width + c];
        w->dst[c] = (float)sum;
    }
    return QD_OK;
}

qd_status qd_add_row_step(qd_plan *p, const qd_row_step *r, qd_err *err)
{
    static const char *const kinds[] = {
        [QD_ROW_SOFTMAX_GRAD] = "softmax back", [QD_ROW_LOG_SOFTMAX_GRAD] = "log softmax back",
        [QD_ROW_LOG_SOFTMAX] = "log softmax",   [QD_ROW_NORM] = "layer norm",
        [QD_ROW_NORM_GRAD] = "layer norm back", [QD_ROW_NORM_GRAD_WEIGHT] = "layer norm back to weight"
    };
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(row_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, r->name, kinds[r->kind], r->out, &s, err);
    if (st)
        return st;
    row_state *w = memory;
    *w = (row_state){ .simd = qd_map_simd_get(), .plain = qd_simd_get(), .r = *r };
    w->per_piece = r->width < PIECE_ELEMENTS ? PIECE_ELEMENTS / r->width : 1;
    w->pieces = (r->rows + w->per_piece - 1) / w->per_piece;
    s->state = w;
    s->run = run_rows;
    s->impl = qd_train_simd_get()->name;
    s->inplace = r->kind == QD_ROW_NORM_GRAD_WEIGHT ? -1 : 0;
    s->threads = qd_threads_for(p, (double)r->rows * (double)r->width * WORK_PER_ELEMENT);
    for (int k = 0; k < 3; k++)
        qd_step_reads(s, r->in[k]);
    return r->kind == QD_ROW_NORM_GRAD_WEIGHT
               ? qd_plan_add_scratch(p, s, (size_t)(w->pieces * r->width) * sizeof(float), err)
               : QD_OK;
}
