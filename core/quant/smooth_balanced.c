/* smooth_balanced.c - balanced smoothing (qncd.md 7.6): for every layer behind a norm the factors that leave the least error in its
 * output in codes, out of none, QNCD's own, and S_c = max|h_c|^alpha / max|W_:c|^(1 - alpha) for eleven alphas.
 *
 * What a layer reads is kept for a few items of every stored time step, layers at a time, so that memory does not grow with the network. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/qncd_int.h"

#define FACTOR_MIN 0x1p-4
#define FACTOR_MAX 0x1p+4
#define KEEP_BYTES ((size_t)256 << 20) /* of what layers read, at a time */
enum { ALPHAS = 11, CANDIDATES = ALPHAS + 2, ITEMS_WANTED = 16 };

typedef struct unit {
    qd_smooth_unit is;
    const float *own;  // [channels] or NULL: QNCD's factors
    qd_tensor h;       // [items, ..]: what its layers read, while its wave is tried
    float *factor;     // [channels]: chosen
    qd_smooth_row row; /* of each of its layers, but for the name */
} unit;

typedef struct balancing {
    const qd_layout *l;
    const qd_balance_options *o;
    const qd_run *run;
    qd_shape *shapes; // [nodes], batch 1
    unit *units;
    int n_units;
    qd_few few;
    const qd_calibration_set *set;
    qd_arena arena;
} balancing;

void qd_smooth_report_clear(qd_smooth_report *r)
{
    qd_free(r->rows);
    *r = (qd_smooth_report){ 0 };
}

/* --- what they read --- */

typedef struct watching {
    balancing *b;
    int first, end; /* units of this wave */
    int64_t item;   /* first of the call */
} watching;

static void keep(void *ctx, qd_node_id id, const float *data, const qd_shape *shape)
{
    const watching *w = ctx;
    int64_t n = 1;
    for (int k = 0; k < shape->rank; k++)
        n *= shape->dim[k];
    for (int k = w->first; k < w->end; k++)
        if (w->b->units[k].is.read == id)
            memcpy(qd_f32(&w->b->units[k].h) + n / w->b->few.batch * w->item, data, (size_t)n * sizeof *data);
}

/* Runs the network once over all items, and keeps what the units first..end-1 read. */
static qd_status watch(balancing *b, int first, int end, qd_err *err)
{
    const qd_graph *g = b->l->graph;
    const int n_out = qd_graph_outputs(g), nodes = qd_graph_size(g);
    watching w = { .b = b, .first = first, .end = end };
    qd_plan *plan = NULL;
    qd_arena a;
    qd_arena_init(&a);
    qd_status st = QD_E_NOMEM;
    qd_shape *all = qd_arena_alloc(&a, (size_t)nodes * sizeof *all);
    qd_node_id *observed = qd_arena_alloc(&a, (size_t)(end - first) * sizeof *observed);
    void **out = qd_arena_alloc(&a, (size_t)n_out * sizeof *out);
    if (!all || !observed || !out) {
        qd_fail(err, st, "no memory to watch %d values", end - first);
        goto out;
    }
    st = qd_graph_shapes(g, b->few.shapes, b->few.n_inputs, all, err);
    int n = 0;
    for (int k = first; k < end && !st; k++) {
        unit *u = &b->units[k];
        qd_shape shape = all[u->is.read];
        if (shape.rank < 2 || shape.dim[0] != b->few.batch)
            st = qd_fail(err, QD_E_UNSUPPORTED, "the value '%s' does not hold its samples one after the other",
                         qd_graph_node(g, u->is.read)->name);
        shape.dim[0] = b->few.items;
        if (!st)
            st = qd_tensor_init(&u->h, QD_F32, &shape, qd_run_budget(b->run), err);
        bool listed = false;
        for (int j = 0; j < n; j++)
            listed |= observed[j] == u->is.read;
        if (!listed)
            observed[n++] = u->is.read;
    }
    for (int k = 0; k < n_out && !st; k++) {
        int64_t count;
        st = qd_shape_count(&all[qd_graph_output_at(g, k)], &count, err);
        if (!st && !(out[k] = qd_arena_alloc(&a, (size_t)count * sizeof(int64_t))))
            st = qd_fail(err, QD_E_NOMEM, "no memory for an output");
    }
    const qd_plan_options o = { .input_shapes = b->few.shapes,
                                .n_inputs = b->few.n_inputs,
                                .threads = qd_run_threads(b->run),
                                .budget = qd_run_budget(b->run),
                                .observed = observed,
                                .n_observed = n,
                                .observe = keep,
                                .observe_ctx = &w };
    if (!st)
        st = qd_plan_compile(g, &o, &plan, err);
    for (; w.item < b->few.items && !st; w.item += b->few.batch) {
        const void *in[QD_MAX_INPUTS];
        qd_few_bind(&b->few, w.item, in);
        st = qd_plan_run(plan, b->run, in, out, err);
    }
out:
    qd_plan_free(plan);
    qd_arena_clear(&a);
    return st;
}

/* --- one layer alone, trying --- */

/* One layer of a unit as a network: x and weight in, what it makes out; no bias, which no candidate changes. */
typedef struct trial {
    const unit *u;
    const qd_quant_layer *layer;
    const qd_node *node;
    const qd_tensor *weight;
    qd_plan *plan;
    qd_tensor scaled, meant; /* the weight under factors; what its codes mean */
    qd_tensor y, y0;         // [items, ..]
    int64_t out_each;        /* elements of one item */
} trial;

static void trial_close(trial *t)
{
    qd_plan_free(t->plan);
    qd_tensor_clear(&t->scaled);
    qd_tensor_clear(&t->meant);
    qd_tensor_clear(&t->y);
    qd_tensor_clear(&t->y0);
}

static qd_status run_trial(const balancing *b, const trial *t, const qd_tensor *x, const qd_tensor *weight,
                           qd_tensor *y, qd_err *err)
{
    const int64_t in_each = qd_tensor_count(x) / b->few.items;
    qd_status st = QD_OK;
    for (int64_t i = 0; i < b->few.items && !st; i += b->few.batch) {
        const void *in[2] = { qd_f32(x) + i * in_each, weight->data };
        void *out[1] = { qd_f32(y) + i * t->out_each };
        st = qd_plan_run(t->plan, b->run, in, out, err);
    }
    return st;
}

static qd_status trial_open(const balancing *b, const unit *u, int number, trial *t, qd_err *err)
{
    const qd_layout *l = b->l;
    qd_graph *g = NULL;
    *t = (trial){ .u = u, .layer = &l->layers[number], .node = qd_graph_node(l->graph, l->layers[number].id) };
    t->weight = &qd_graph_node(l->graph, t->node->input[1])->value;
    qd_shape in[2] = { u->h.shape, t->weight->shape };
    qd_shape all[4];
    in[0].dim[0] = b->few.batch;
    qd_status st = qd_graph_new(&g, err);
    if (st)
        return st;
    const qd_node_id x = qd_graph_input(g, "x", QD_F32, &in[0]), w = qd_graph_input(g, "weight", QD_F32, &in[1]);
    const qd_node_id y = qd_graph_add(g, t->node->op, "y", QD_IN(x, w), t->node->attr, t->node->n_attrs);
    qd_graph_output(g, "y", y);
    st = qd_graph_verify(g, err);
    if (!st)
        st = qd_graph_shapes(g, in, 2, all, err);
    if (st)
        goto out;
    const qd_plan_options o = {
        .input_shapes = in, .n_inputs = 2, .threads = qd_run_threads(b->run), .budget = qd_run_budget(b->run)
    };
    st = qd_plan_compile(g, &o, &t->plan, err);
    all[y].dim[0] = b->few.items;
    if (!st)
        st = qd_tensor_init(&t->y, QD_F32, &all[y], qd_run_budget(b->run), err);
    if (!st)
        st = qd_tensor_init(&t->y0, QD_F32, &all[y], qd_run_budget(b->run), err);
    if (!st)
        st = qd_tensor_init(&t->scaled, QD_F32, &t->weight->shape, qd_run_budget(b->run), err);
    if (!st)
        st = qd_tensor_init(&t->meant, QD_F32, &t->weight->shape, qd_run_budget(b->run), err);
    if (st)
        goto out;
    t->out_each = qd_tensor_count(&t->y) / b->few.items;
    st = run_trial(b, t, &u->h, t->weight, &t->y0, err);
out:
    qd_graph_free(g);
    if (st)
        trial_close(t);
    return st;
}

static int group_at(const balancing *b, int64_t item)
{
    int group = 0;
    while (group + 1 < b->l->n_groups && b->set->t[b->few.step[item]] < b->l->group_until[group])
        group++;
    return group;
}

/* x = what the codes of h / S mean, ranges by groups of time steps as the network will have them. */
static qd_status quantize_input(const balancing *b, const unit *u, const float *factor, qd_tensor *x, qd_err *err)
{
    const int64_t each = qd_tensor_count(&u->h) / b->few.items;
    const int groups = b->l->n_groups ? b->l->n_groups : 1;
    qd_quantizer q = b->l->quantizers[b->l->layers[u->is.layer[0]].part[0].quantizer];
    int64_t inner = 1;
    for (int k = u->is.axis + 1; k < u->h.shape.rank; k++)
        inner *= u->h.shape.dim[k];
    const float *h = qd_f32(&u->h);
    float *to = qd_f32(x);
    for (int64_t i = 0; i < b->few.items * each; i += inner) {
        const float by = 1.0f / factor[i / inner % u->is.channels];
        for (int64_t k = 0; k < inner; k++)
            to[i + k] = h[i + k] * by;
    }
    for (int g = 0; g < groups; g++) {
        qd_histogram *seen = NULL;
        qd_affine map;
        qd_status st = qd_histogram_new(&seen, err);
        for (int64_t i = 0; i < b->few.items && !st; i++)
            if (group_at(b, i) == g)
                qd_histogram_add(seen, to + i * each, each);
        const bool any = !st && qd_histogram_count(seen) > 0;
        if (any)
            st = qd_range_choose(&b->o->range, &q, seen, &map, err);
        qd_histogram_free(seen);
        if (st)
            return qd_fail_in(err, st, "value '%s' over a few items", qd_graph_node(b->l->graph, u->is.read)->name);
        for (int64_t i = 0; i < b->few.items && any; i++)
            for (int64_t k = 0; k < each && group_at(b, i) == g; k++) {
                const int64_t at = i * each + k;
                to[at] = qd_affine_fake(to[at], &map) * factor[at / inner % u->is.channels];
            }
    }
    return QD_OK;
}

/* The channel of the layer's input that column c of output o reads. */
static int64_t channel_of(const trial *t, int64_t o, int64_t c)
{
    const int64_t groups = t->node->op == &qd_op_conv2d ? qd_node_int(t->node, "groups") : 1;
    return o / (t->weight->shape.dim[0] / groups) * t->weight->shape.dim[1] + c;
}

/* Weights under factors, through codes, and back: the factors are taken off again, since x has them on. */
static qd_status quantize_weight(const balancing *b, trial *t, const float *factor, qd_err *err)
{
    const qd_shape *s = &t->weight->shape;
    const int64_t taps = s->rank == 4 ? s->dim[2] * s->dim[3] : 1;
    const int bits = t->layer->weight_bits ? t->layer->weight_bits : b->o->weight_bits;
    const float *w = qd_f32(t->weight);
    float *scaled = qd_f32(&t->scaled), *meant = qd_f32(&t->meant);
    for (int64_t o = 0; o < s->dim[0]; o++)
        for (int64_t c = 0; c < s->dim[1]; c++)
            for (int64_t k = 0; k < taps; k++) {
                const int64_t at = (o * s->dim[1] + c) * taps + k;
                scaled[at] = w[at] * factor[channel_of(t, o, c)];
            }
    const qd_status st =
        qd_layout_try_weight(b->l, t->layer, &t->scaled, bits, b->o->search_weights, b->run, meant, NULL, err);
    for (int64_t o = 0; o < s->dim[0] && !st; o++)
        for (int64_t c = 0; c < s->dim[1]; c++)
            for (int64_t k = 0; k < taps; k++)
                meant[(o * s->dim[1] + c) * taps + k] /= factor[channel_of(t, o, c)];
    return st;
}

/* Mean square error of what the unit's layers make, over all of them. x is scratch. */
static qd_status try_factors(const balancing *b, const unit *u, trial *trials, const float *factor, qd_tensor *x,
                             double *mse, qd_err *err)
{
    double sum = 0.0;
    int64_t values = 0;
    qd_status st = qd_run_check(b->run, err);
    if (!st)
        st = quantize_input(b, u, factor, x, err);
    for (int k = 0; k < u->is.n && !st; k++) {
        trial *t = &trials[k];
        st = quantize_weight(b, t, factor, err);
        if (!st)
            st = run_trial(b, t, x, &t->meant, &t->y, err);
        const int64_t n = qd_tensor_count(&t->y);
        for (int64_t i = 0; i < n && !st; i++) {
            const double d = (double)qd_f32(&t->y)[i] - (double)qd_f32(&t->y0)[i];
            sum += d * d;
        }
        values += n;
    }
    *mse = sum / (double)values;
    return st;
}

/* --- candidates --- */

/* most_h [channels], most_w [channels]: the largest sizes of what is read, and of the weights that read it. */
static void measure_sizes(const unit *u, const trial *trials, double *most_h, double *most_w)
{
    int64_t inner = 1;
    for (int k = u->is.axis + 1; k < u->h.shape.rank; k++)
        inner *= u->h.shape.dim[k];
    for (int64_t c = 0; c < u->is.channels; c++)
        most_h[c] = most_w[c] = 0.0;
    for (int64_t i = 0; i < qd_tensor_count(&u->h); i++) {
        double *m = &most_h[i / inner % u->is.channels];
        *m = fmax(*m, fabs((double)qd_f32(&u->h)[i]));
    }
    for (int k = 0; k < u->is.n; k++) {
        const qd_tensor *w = trials[k].weight;
        const int64_t taps = w->shape.rank == 4 ? w->shape.dim[2] * w->shape.dim[3] : 1;
        for (int64_t o = 0; o < w->shape.dim[0]; o++)
            for (int64_t i = 0; i < w->shape.dim[1] * taps; i++) {
                double *m = &most_w[channel_of(&trials[k], o, i / taps)];
                *m = fmax(*m, fabs((double)qd_f32(w)[o * w->shape.dim[1] * taps + i]));
            }
    }
}

/* S(alpha) over its geometric mean, held in [1/16, 16]; 1 where a channel is silent or nobody reads it. */
static void balance(float *factor, const double *most_h, const double *most_w, int64_t channels, double alpha,
                    bool pow2)
{
    double logs = 0.0;
    int64_t counted = 0;
    for (int64_t c = 0; c < channels; c++)
        if (most_h[c] > 0.0 && most_w[c] > 0.0) {
            logs += alpha * log(most_h[c]) - (1.0 - alpha) * log(most_w[c]);
            counted++;
        }
    const double mean = counted ? logs / (double)counted : 0.0;
    for (int64_t c = 0; c < channels; c++) {
        double s = 1.0;
        if (most_h[c] > 0.0 && most_w[c] > 0.0)
            s = exp(alpha * log(most_h[c]) - (1.0 - alpha) * log(most_w[c]) - mean);
        s = fmin(fmax(s, FACTOR_MIN), FACTOR_MAX);
        factor[c] = (float)(pow2 ? exp2(nearbyint(log2(s))) : s);
    }
}

/* Candidate k: none, QNCD's own, then by alpha; false where there is none. */
static bool candidate(const balancing *b, const unit *u, int k, const double *most_h, const double *most_w,
                      float *factor)
{
    for (int64_t c = 0; c < u->is.channels; c++)
        factor[c] = k == 1 && u->own ? u->own[c] : 1.0f;
    if (k >= 2)
        balance(factor, most_h, most_w, u->is.channels, (k - 2) / (double)(ALPHAS - 1), b->o->pow2);
    return k != 1 || u->own;
}

static qd_status choose(const balancing *b, unit *u, qd_err *err)
{
    qd_status st = QD_E_NOMEM;
    qd_tensor x = { 0 };
    double best = INFINITY;
    int open = 0;
    trial *trials = qd_calloc((size_t)u->is.n, sizeof *trials);
    double *most = qd_calloc((size_t)u->is.channels * 2, sizeof *most);
    float *factor = qd_calloc((size_t)u->is.channels, sizeof *factor);
    if (!trials || !most || !factor) {
        qd_fail(err, st, "no memory for the factors of %lld channels", (long long)u->is.channels);
        goto out;
    }
    st = qd_tensor_init(&x, QD_F32, &u->h.shape, qd_run_budget(b->run), err);
    for (; open < u->is.n && !st; open += !st)
        st = trial_open(b, u, u->is.layer[open], &trials[open], err);
    if (st)
        goto out;
    measure_sizes(u, trials, most, most + u->is.channels);
    u->row = (qd_smooth_row){ .chosen = "none", .alpha = NAN, .mse_own = NAN, .in_norm = u->is.norm >= 0 };
    for (int k = 0; k < CANDIDATES && !st; k++) {
        double mse;
        if (!candidate(b, u, k, most, most + u->is.channels, factor))
            continue;
        st = try_factors(b, u, trials, factor, &x, &mse, err);
        if (st)
            goto out;
        if (k == 0)
            u->row.mse_none = mse;
        if (k == 1)
            u->row.mse_own = mse;
        if (!(mse < best)) /* ties keep the simpler one */
            continue;
        best = u->row.mse = mse;
        u->row.chosen = k == 0 ? "none" : k == 1 ? "embedding" : "balanced";
        u->row.alpha = k >= 2 ? (k - 2) / (double)(ALPHAS - 1) : NAN;
        memcpy(u->factor, factor, (size_t)u->is.channels * sizeof *factor);
    }
out:
    while (open > 0)
        trial_close(&trials[--open]);
    qd_tensor_clear(&x);
    qd_free(factor);
    qd_free(most);
    qd_free(trials);
    return st;
}

/* --- all --- */

static qd_status set_units(balancing *b, const qd_smoothing *own, qd_err *err)
{
    qd_smooth_unit *list = NULL;
    qd_status st = qd_smooth_units_find(b->l, b->shapes, &b->arena, &list, &b->n_units, err);
    if (st)
        return st;
    b->units = qd_arena_alloc(&b->arena, ((size_t)b->n_units + 1) * sizeof *b->units);
    for (int k = 0; b->units && k < b->n_units; k++) {
        unit *u = &b->units[k];
        u->is = list[k];
        u->factor = qd_arena_alloc(&b->arena, (size_t)u->is.channels * sizeof *u->factor);
        if (!u->factor)
            return qd_fail(err, QD_E_NOMEM, "no memory for the factors of %lld channels", (long long)u->is.channels);
        for (int j = 0; j < own->n && u->is.norm < 0; j++)
            if (own->layers[j].layer == b->l->layers[u->is.layer[0]].id && own->layers[j].channels == u->is.channels)
                u->own = own->layers[j].factor;
    }
    return b->units ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for the factors of %d layers", b->n_units);
}

static size_t bytes_of(const balancing *b, const unit *u)
{
    size_t n = sizeof(float) * (size_t)b->few.items;
    for (int k = 0; k < b->shapes[u->is.read].rank; k++)
        n *= (size_t)b->shapes[u->is.read].dim[k];
    return n;
}

static qd_status choose_all(balancing *b, qd_err *err)
{
    qd_status st = QD_OK;
    for (int first = 0, end; first < b->n_units && !st; first = end) {
        size_t bytes = bytes_of(b, &b->units[first]);
        for (end = first + 1; end < b->n_units && bytes + bytes_of(b, &b->units[end]) <= KEEP_BYTES; end++)
            bytes += bytes_of(b, &b->units[end]);
        st = watch(b, first, end, err);
        for (int k = first; k < end; k++) {
            if (!st)
                st = choose(b, &b->units[k], err);
            qd_tensor_clear(&b->units[k].h);
            qd_run_progress(b->run, "balance", qd_graph_node(b->l->graph, b->units[k].is.read)->name, k + 1,
                            b->n_units);
        }
    }
    return st;
}

/* One entry for each layer of each unit that got factors, one row for each layer. */
static qd_status tell(const balancing *b, qd_smoothing *s, qd_smooth_report *r, qd_err *err)
{
    int rows = 0;
    for (int k = 0; k < b->n_units; k++)
        rows += b->units[k].is.n;
    s->layers = qd_calloc((size_t)rows, sizeof *s->layers);
    r->rows = qd_calloc((size_t)rows, sizeof *r->rows);
    if (!s->layers || !r->rows)
        return qd_fail(err, QD_E_NOMEM, "no memory for the factors of %d layers", rows);
    for (int k = 0; k < b->n_units; k++) {
        const unit *u = &b->units[k];
        for (int j = 0; j < u->is.n; j++) {
            const qd_node_id id = b->l->layers[u->is.layer[j]].id;
            qd_smooth_row *row = &r->rows[r->n++];
            *row = u->row;
            snprintf(row->name, sizeof row->name, "%s", qd_graph_node(b->l->graph, id)->name);
            if (strcmp(row->chosen, "none") == 0)
                continue;
            float *factor = qd_alloc((size_t)u->is.channels * sizeof *factor);
            if (!factor)
                return qd_fail(err, QD_E_NOMEM, "no memory for the factors of '%s'", row->name);
            memcpy(factor, u->factor, (size_t)u->is.channels * sizeof *factor);
            s->layers[s->n++] = (qd_smooth_layer){ .layer = id,
                                                   .channels = u->is.channels,
                                                   .factor = factor,
                                                   .in_norm = u->is.norm >= 0,
                                                   .norm = u->is.norm };
        }
    }
    return QD_OK;
}

qd_status qd_smoothing_balanced(const qd_layout *l, const qd_calibration_set *set, const qd_smoothing *own,
                                const qd_balance_options *o, const qd_run *run, qd_smoothing *out,
                                qd_smooth_report *report, qd_err *err)
{
    const int nodes = qd_graph_size(l->graph);
    balancing b = { .l = l, .o = o, .run = run, .set = set };
    qd_smoothing s = { 0 };
    qd_smooth_report r = { 0 };
    qd_status st = QD_E_NOMEM;
    qd_arena_init(&b.arena);
    b.shapes = qd_arena_alloc(&b.arena, (size_t)nodes * sizeof *b.shapes);
    if (!b.shapes) {
        qd_fail(err, st, "no memory to look through %d nodes", nodes);
        goto out;
    }
    st = qd_layout_shapes(l->graph, b.shapes, err);
    if (!st)
        st = set_units(&b, own, err);
    if (!st)
        st = qd_few_init(&b.few, l->graph, l->input, set, (ITEMS_WANTED + set->steps - 1) / set->steps, run, err);
    if (!st)
        st = choose_all(&b, err);
    if (!st)
        st = tell(&b, &s, &r, err);
    if (st)
        goto out;
    *out = s;
    *report = r;
    s = (qd_smoothing){ 0 };
    r = (qd_smooth_report){ 0 };
out:
    for (int k = 0; b.units && k < b.n_units; k++)
        qd_tensor_clear(&b.units[k].h);
    qd_smooth_report_clear(&r);
    qd_smoothing_clear(&s);
    qd_few_clear(&b.few);
    qd_arena_clear(&b.arena);
    return st;
}
