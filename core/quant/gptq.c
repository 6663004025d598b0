/* gptq.c - rounding column by column, each error made good by the columns that follow (Frantar et al., ICLR 2023; qncd.md 6.4 b).
 *
 * With H = X X^T of what the layer reads in the network in codes (a convolution's patches), and H^-1 = U^T U, column j is rounded and
 * w_k -= (w_j - q_j) U_jk / U_jj for all k > j. X is all the places of all items, or so many drawn at random that H is well known. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/par.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/recon_int.h"

enum { MAX_COLUMNS = 4096, PLACES = 32768, CHUNK = 1024, ROWS = 16, AT_ONCE = 16, TRIES = 4 };

static const char note_columns[] = "more than 4096 products to an output: rounded to nearest";
static const char note_inputs[] = "what it reads over the calibration set does not determine it: rounded to nearest";

const char *qd_gptq_note(const char *text)
{
    return strcmp(text, note_columns) == 0 ? note_columns : strcmp(text, note_inputs) == 0 ? note_inputs : "";
}

typedef struct gptq {
    const qd_recon_work *w;
    const qd_quant_layer *layer;
    const qd_tensor *weight; /* float */
    const float *x;          /* what it reads, over all items */
    bool conv;
    qd_conv_shape s; /* of one item; linear layers: c features of h places */
    int64_t rows, columns, groups, places;
    int group;
    int64_t begin;  /* place of the chunk */
    bool all;       /* every place is taken once */
    float *chunk;   // [CHUNK, columns]
    float *product; // [columns, columns]
    double *h, *u;  // [columns, columns]
    int64_t *order; // [columns]: which column comes when
    int *part;      // [columns]
    int64_t *scale; // [columns]
    int8_t *codes;
    int64_t first; /* piece of the call */
} gptq;

/* --- what the layer reads --- */

static void patch(const gptq *g, float *dst, int64_t item, int64_t place)
{
    const qd_conv_shape *s = &g->s;
    if (!g->conv) {
        memcpy(dst, g->x + (item * s->h + place) * s->c, (size_t)s->c * sizeof *dst);
        return;
    }
    const int64_t channels = s->c / s->groups, y0 = place / s->ow * s->stride_h - s->pad_t,
                  x0 = place % s->ow * s->stride_w - s->pad_l;
    const float *src = g->x + (item * s->c + g->group * channels) * s->h * s->w;
    for (int64_t c = 0; c < channels; c++, src += s->h * s->w)
        for (int64_t ky = 0; ky < s->kh; ky++)
            for (int64_t kx = 0; kx < s->kw; kx++) {
                const int64_t y = y0 + ky * s->dil_h, x = x0 + kx * s->dil_w;
                *dst++ = y >= 0 && y < s->h && x >= 0 && x < s->w ? src[y * s->w + x] : 0.0f;
            }
}

/* Any place of any item is a pure function of its number. */
static void chunk_row(void *ctx, int64_t k)
{
    const gptq *g = ctx;
    const int64_t items = g->w->kept->items, number = g->begin + k;
    float *dst = g->chunk + k * g->columns;
    if (g->all) {
        if (number < items * g->places)
            patch(g, dst, number / g->places, number % g->places);
        else
            memset(dst, 0, (size_t)g->columns * sizeof *dst);
        return;
    }
    qd_rng rng;
    qd_rng_init(&rng, g->w->run ? g->w->run->seed : 0,
                QD_STREAM_SHUFFLE | (uint64_t)(g->w->number + 1) << 32 | (uint64_t)number);
    const int64_t item = qd_rng_below(&rng, (uint32_t)items);
    patch(g, dst, item, qd_rng_below(&rng, (uint32_t)g->places));
}

static void add_row(void *ctx, int64_t i)
{
    const gptq *g = ctx;
    double *h = g->h + i * g->columns;
    const float *p = g->product + i * g->columns;
    for (int64_t j = 0; j < g->columns; j++)
        h[j] += (double)p[j];
}

static qd_status compile_product(const gptq *g, qd_plan **plan, qd_err *err)
{
    const qd_shape shape = QD_SHAPE(CHUNK, g->columns);
    qd_graph *net = NULL;
    qd_status st = qd_graph_new(&net, err);
    if (st)
        return st;
    const qd_node_id x = qd_graph_input(net, "x", QD_F32, &shape);
    qd_graph_output(net, "h",
                    qd_graph_add(net, &qd_op_matmul, "h", QD_IN(x, x),
                                 QD_ATTRS(QD_INT("trans_a", 1), QD_INT("trans_b", 0), QD_FLOAT("alpha", 1.0))));
    const qd_plan_options o = {
        .input_shapes = &shape, .n_inputs = 1, .threads = qd_run_threads(g->w->run), .budget = qd_run_budget(g->w->run)
    };
    st = qd_graph_verify(net, err);
    if (!st)
        st = qd_plan_compile(net, &o, plan, err);
    qd_graph_free(net);
    return st;
}

static qd_status collect(gptq *g, qd_plan *plan, qd_err *err)
{
    const int threads = qd_run_threads(g->w->run);
    const int64_t all = g->w->kept->items * g->places, wanted = all < PLACES ? all : PLACES;
    const void *const in[1] = { g->chunk };
    void *const out[1] = { g->product };
    g->all = wanted == all;
    memset(g->h, 0, (size_t)(g->columns * g->columns) * sizeof *g->h);
    for (g->begin = 0; g->begin < wanted; g->begin += CHUNK) {
        qd_par_for(threads, CHUNK, chunk_row, g);
        const qd_status st = qd_plan_run(plan, g->w->run, in, out, err);
        if (st)
            return st;
        qd_par_for(threads, g->columns, add_row, g);
    }
    return QD_OK;
}

/* --- the factor --- */

typedef struct ranked {
    double size;
    int64_t column;
} ranked;

static int by_size(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->size != y->size)
        return x->size > y->size ? -1 : 1;
    return x->column < y->column ? -1 : x->column > y->column;
}

static qd_status choose_order(gptq *g, qd_err *err)
{
    for (int64_t j = 0; j < g->columns; j++)
        g->order[j] = j;
    if (!g->w->options->act_order)
        return QD_OK;
    ranked *r = qd_alloc((size_t)g->columns * sizeof *r);
    if (!r)
        return qd_fail(err, QD_E_NOMEM, "no memory to order %lld columns", (long long)g->columns);
    for (int64_t j = 0; j < g->columns; j++)
        r[j] = (ranked){ g->h[j * g->columns + j], j };
    qsort(r, (size_t)g->columns, sizeof *r, by_size);
    for (int64_t j = 0; j < g->columns; j++)
        g->order[j] = r[j].column;
    qd_free(r);
    return QD_OK;
}

/* U of the damped H in order; tried with ten times the damping where that is not positive definite. */
static qd_status factorize(gptq *g, double *work, bool *known, qd_err *err)
{
    const int64_t n = g->columns;
    double mean = 0.0, damping = g->w->options->damping > 0.0 ? g->w->options->damping : 0.01;
    for (int64_t j = 0; j < n; j++)
        mean += g->h[j * n + j] / (double)n;
    *known = false;
    if (!(mean > 0.0) || !isfinite(mean))
        return QD_OK;
    for (int k = 0; k < TRIES && !*known; k++, damping *= 10.0) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = i; j < n; j++) {
                const int64_t a = g->order[i], b = g->order[j];
                /* One half of a product is as good as the other, but not the same to the last bit. */
                work[i * n + j] = g->h[(a < b ? a : b) * n + (a < b ? b : a)] + (i == j ? damping * mean : 0.0);
            }
        const qd_status st = qd_inverse_factor(work, g->u, n, g->w->run, known, err);
        if (st)
            return st;
    }
    return QD_OK;
}

/* --- rounding --- */

static void round_rows(void *ctx, int64_t piece)
{
    const gptq *g = ctx;
    const int64_t n = g->columns, per_group = g->rows / g->groups, r0 = (g->first + piece) * ROWS;
    const int64_t r1 = r0 + ROWS < per_group ? r0 + ROWS : per_group;
    double *rest = (double *)g->product; /* done with: room for some rows of doubles for each piece */
    rest += piece * ROWS * n;
    for (int64_t r = r0; r < r1; r++)
        for (int64_t j = 0; j < n; j++)
            rest[(r - r0) * n + j] = qd_f32(g->weight)[(g->group * per_group + r) * n + g->order[j]];
    for (int64_t j = 0; j < n; j++) {
        const double *u = g->u + j * n;
        const int64_t column = g->order[j];
        const qd_part *p = &g->layer->part[g->part[column]];
        const int64_t scales = p->wscale.shape.rank > 1 ? p->wscale.shape.dim[1] : 1;
        const int bits = (int)qd_dtype_bits(p->codes.dtype);
        const double most = (1 << (bits - 1)) - 1;
        for (int64_t r = r0; r < r1; r++) {
            const int64_t row = g->group * per_group + r;
            const double step = qd_f32(&p->wscale)[row * scales + g->scale[column]];
            double *restrict w = rest + (r - r0) * n;
            const double q = fmin(fmax(nearbyint(w[j] / step), -most - 1.0), most), off = (w[j] - q * step) / u[j];
            g->codes[row * n + column] = (int8_t)q;
            for (int64_t k = j + 1; k < n; k++)
                w[k] -= off * u[k];
        }
    }
}

static qd_status round_all(gptq *g, qd_err *err)
{
    const int64_t pieces = (g->rows / g->groups + ROWS - 1) / ROWS;
    for (g->first = 0; g->first < pieces; g->first += AT_ONCE) {
        const qd_status st = qd_run_check(g->w->run, err);
        if (st)
            return st;
        qd_par_for(qd_run_threads(g->w->run), pieces - g->first < AT_ONCE ? pieces - g->first : AT_ONCE, round_rows, g);
    }
    return QD_OK;
}

/* --- the whole --- */

static void describe(gptq *g, const qd_recon_work *w)
{
    const qd_graph *graph = w->layout->graph;
    const qd_node *n = qd_graph_node(graph, g->layer->id);
    const qd_shape *x = &w->kept->one[n->input[0]], *out = &w->kept->one[g->layer->id];
    g->weight = &qd_graph_node(graph, n->input[1])->value;
    g->conv = n->op == &qd_op_conv2d;
    g->rows = g->weight->shape.dim[0];
    g->columns = qd_tensor_count(g->weight) / g->rows;
    if (g->conv) {
        g->s = qd_node_conv_shape(n, x, &g->weight->shape, out);
        g->groups = g->s.groups;
        g->places = g->s.oh * g->s.ow;
    } else {
        g->s = (qd_conv_shape){ .c = g->columns, .h = qd_kept_count(w->kept, n->input[0]) / g->columns };
        g->groups = 1;
        g->places = g->s.h;
    }
    for (int k = 0; k < w->block->n_entry; k++)
        if (w->block->entry[k] == n->input[0])
            g->x = qd_f32(&w->entry[k]);
}

static void place_scales(gptq *g)
{
    const int64_t inner = g->weight->shape.rank == 4 ? g->weight->shape.dim[2] * g->weight->shape.dim[3] : 1;
    for (int k = 0; k < g->layer->n_parts; k++) {
        const qd_part *p = &g->layer->part[k];
        for (int64_t c = 0; c < p->codes.shape.dim[1] * inner; c++) {
            g->part[p->first * inner + c] = k;
            g->scale[p->first * inner + c] = p->group_size ? c / inner / p->group_size : 0;
        }
    }
}

static qd_status learn(gptq *g, double *work, const char **note, qd_err *err)
{
    qd_plan *plan = NULL;
    bool known = true;
    qd_status st = compile_product(g, &plan, err);
    for (g->group = 0; g->group < g->groups && !st && known; g->group++) {
        st = collect(g, plan, err);
        if (!st)
            st = choose_order(g, err);
        if (!st)
            st = factorize(g, work, &known, err);
        if (!st && known)
            st = round_all(g, err);
    }
    if (!known)
        *note = note_inputs;
    qd_plan_free(plan);
    return st;
}

qd_status qd_gptq_learn(const qd_recon_work *w, int8_t *codes, const char **note, qd_err *err)
{
    gptq g = { .w = w, .layer = &w->layout->layers[w->block->layers[0]], .codes = codes };
    qd_budget *budget = qd_run_budget(w->run);
    qd_tensor chunk = { 0 }, product = { 0 }, matrices = { 0 };
    qd_status st;
    describe(&g, w);
    if (g.columns > MAX_COLUMNS) {
        *note = note_columns;
        return QD_OK;
    }
    const int64_t n = g.columns, rest = 2 * AT_ONCE * ROWS * n; /* in floats: the rows that are rounded at a time */
    const qd_shape rows = QD_SHAPE(CHUNK, n), room = QD_SHAPE(n * n > rest ? n * n : rest), three = QD_SHAPE(3, n, n);
    g.order = qd_calloc((size_t)n, sizeof *g.order);
    g.part = qd_calloc((size_t)n, sizeof *g.part);
    g.scale = qd_calloc((size_t)n, sizeof *g.scale);
    st = g.order && g.part && g.scale ? qd_tensor_init(&chunk, QD_F32, &rows, budget, err)
                                      : qd_fail(err, QD_E_NOMEM, "no memory for %lld columns", (long long)n);
    if (!st)
        st = qd_tensor_init(&product, QD_F32, &room, budget, err);
    if (!st)
        st = qd_tensor_init(&matrices, QD_F64, &three, budget, err);
    if (st)
        goto out;
    g.chunk = qd_f32(&chunk);
    g.product = qd_f32(&product);
    g.h = matrices.data;
    g.u = g.h + n * n;
    place_scales(&g);
    st = learn(&g, g.u + n * n, note, err);
out:
    qd_tensor_clear(&matrices);
    qd_tensor_clear(&product);
    qd_tensor_clear(&chunk);
    qd_free(g.scale);
    qd_free(g.part);
    qd_free(g.order);
    return st;
}
