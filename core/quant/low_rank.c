/* low_rank.c - a low-rank branch beside layers of few bits: W = L1 L2 + R, only R in few bits (SVDQuant, qncd.md 11.2).
 *
 * The network is rewritten before it is quantized, so that the float network stays what it was: the layer keeps R under the name
 * "<layer>.rest", L2 (rank x what the layer reads) and L1 (1 x 1) follow as layers of their own, and their sum takes the layer's name.
 * L1 and L2 hold values that 8 bits for each output channel mean exactly, which is how they are kept.
 *
 * Which L leaves the least of W when R is rounded: L = the largest singular vectors of W, and then, for a few rounds, of W - Q(R), the
 * best of all being kept (LoftQ, Li et al. 2023). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/qncd_int.h"

enum { ROUNDS = 4, BRANCH_BITS = 8 };
#define NAME_BYTES (QD_MAX_NAME + 32)

static const char down_suffix[] = ".low_rank.down", up_suffix[] = ".low_rank.up";
const char qd_low_rank_rest[] = ".rest";

typedef struct branching {
    const qd_layout *l;
    const qd_low_rank_options *o;
    const qd_run *run;
    qd_graph *to;
    qd_node_id *map; // [nodes]
    qd_low_rank_report *report;
} branching;

/* One layer's matrices; of W [m, n], rows are output channels. */
typedef struct factors {
    int64_t m, n;
    int rank;
    const float *by;          // [channels] what a smoothed layer's input is divided by; NULL = nothing
    int64_t taps;             /* columns of a channel */
    float *u, *s, *v;         // [m, rank], [rank], [rank, n]
    float *target;            // [m, n]: what the singular vectors are of
    float *meant;             // [m, n]: what the codes of the rest mean
    qd_tensor up, down, rest; // [m, rank ..], [rank, ..], like W
    qd_tensor best_up, best_down, best_rest;
} factors;

void qd_low_rank_report_clear(qd_low_rank_report *r)
{
    qd_free(r->rows);
    *r = (qd_low_rank_report){ 0 };
}

static bool ends_with(const char *name, const char *suffix)
{
    const size_t a = strlen(name), b = strlen(suffix);
    return a > b && strcmp(name + a - b, suffix) == 0;
}

bool qd_low_rank_is_branch(const qd_node *n)
{
    return ends_with(n->name, down_suffix) || ends_with(n->name, up_suffix);
}

bool qd_low_rank_is_sum(const qd_graph *g, qd_node_id id)
{
    const qd_node *n = qd_graph_node(g, id);
    return n->op == &qd_op_add && ends_with(qd_graph_node(g, n->input[1])->name, up_suffix);
}

/* --- the split of one weight --- */

/* Rows become what so many bits of them mean. */
static qd_status round_rows(qd_tensor *t, qd_err *err)
{
    const int64_t rows = t->shape.dim[0], length = qd_tensor_count(t) / rows;
    for (int64_t o = 0; o < rows; o++) {
        float *w = qd_f32(t) + o * length, lo, hi;
        qd_affine map;
        if (!qd_min_max(w, length, &lo, &hi))
            return qd_fail(err, QD_E_NUMERIC, "a branch is not finite");
        const qd_status st = qd_affine_fit(lo, hi, BRANCH_BITS, true, &map, err);
        if (st)
            return st;
        for (int64_t k = 0; k < length; k++)
            w[k] = qd_affine_fake(w[k], &map);
    }
    return QD_OK;
}

/* up and down of the singular vectors, rounded, and rest = W - up down (under the smoothing factors). */
static qd_status split(factors *f, const float *w, const qd_run *run, qd_err *err)
{
    qd_status st = qd_svd_top(f->target, f->m, f->n, f->rank, run, f->u, f->s, f->v, err);
    if (st)
        return st;
    float *up = qd_f32(&f->up), *down = qd_f32(&f->down), *rest = qd_f32(&f->rest);
    for (int k = 0; k < f->rank; k++) {
        const float root = sqrtf(f->s[k]);
        for (int64_t i = 0; i < f->m; i++)
            up[i * f->rank + k] = f->u[i * f->rank + k] * root;
        for (int64_t j = 0; j < f->n; j++)
            down[k * f->n + j] = f->v[k * f->n + j] * root / (f->by ? f->by[j / f->taps] : 1.0f);
    }
    st = round_rows(&f->up, err);
    if (!st)
        st = round_rows(&f->down, err);
    for (int64_t i = 0; i < f->m && !st; i++)
        for (int64_t j = 0; j < f->n; j++) {
            double sum = 0.0;
            for (int k = 0; k < f->rank; k++)
                sum += (double)up[i * f->rank + k] * (double)down[k * f->n + j];
            rest[i * f->n + j] = (float)((double)w[i * f->n + j] - sum * (f->by ? (double)f->by[j / f->taps] : 1.0));
        }
    return st;
}

static void keep_copy(qd_tensor *to, const qd_tensor *from)
{
    memcpy(to->data, from->data, qd_tensor_bytes(from));
}

/* Square error of what the codes of a weight mean. */
static qd_status lost(const branching *b, const qd_quant_layer *layer, const qd_tensor *weight, factors *f, double *sum,
                      qd_err *err)
{
    const qd_status st =
        qd_layout_try_weight(b->l, layer, weight, b->o->weight_bits, b->o->search_weights, b->run, f->meant, NULL, err);
    *sum = 0.0;
    for (int64_t k = 0; k < f->m * f->n && !st; k++) {
        const double d = (double)qd_f32(weight)[k] - (double)f->meant[k];
        *sum += d * d;
    }
    return st;
}

static qd_status factorize(const branching *b, const qd_quant_layer *layer, const qd_tensor *w, factors *f,
                           qd_low_rank_row *row, qd_err *err)
{
    double power = 0.0, least = INFINITY, plain;
    for (int64_t k = 0; k < f->m * f->n; k++)
        power += (double)qd_f32(w)[k] * (double)qd_f32(w)[k];
    qd_status st = lost(b, layer, w, f, &plain, err);
    memcpy(f->target, w->data, qd_tensor_bytes(w));
    for (int round = 0; round < ROUNDS && !st; round++) {
        double now;
        st = split(f, qd_f32(w), b->run, err);
        if (!st)
            st = lost(b, layer, &f->rest, f, &now, err);
        if (st)
            break;
        if (now < least) {
            least = now;
            keep_copy(&f->best_up, &f->up);
            keep_copy(&f->best_down, &f->down);
            keep_copy(&f->best_rest, &f->rest);
        }
        for (int64_t k = 0; k < f->m * f->n; k++)
            f->target[k] = qd_f32(w)[k] - f->meant[k];
    }
    row->weight_sqnr_db_without = 10.0 * log10(power / plain);
    row->weight_sqnr_db = 10.0 * log10(power / least);
    return st;
}

/* --- the network --- */

static qd_node_id take(branching *b, qd_node_id id)
{
    if (id >= 0 && b->map[id] < 0)
        qd_graph_copy_node(b->to, b->l->graph, id, b->map);
    return id < 0 ? -1 : b->map[id];
}

static bool is_fit(const branching *b, const qd_quant_layer *layer)
{
    const qd_node *n = qd_graph_node(b->l->graph, layer->id);
    if (layer->note || (layer->weight_bits && layer->weight_bits > 4))
        return false;
    const qd_tensor *w = &qd_graph_node(b->l->graph, n->input[1])->value;
    const int64_t rows = w->shape.dim[0], columns = rows ? qd_tensor_count(w) / rows : 0;
    /* A branch as wide as half the layer is no saving any more. */
    return 2ll * b->o->rank <= (rows < columns ? rows : columns) &&
           (n->op != &qd_op_conv2d || qd_node_int(n, "groups") == 1);
}

static void add_branch(branching *b, const qd_node *n, const factors *f, qd_node_id id)
{
    char name[NAME_BYTES];
    const qd_graph *g = b->l->graph;
    const qd_node_id x = take(b, n->input[0]);
    qd_node_id value, factor, read = x;
    if (qd_smooth_is(g, n->input[0], &value, &factor))
        read = take(b, value);
    const bool conv = n->op == &qd_op_conv2d;

    snprintf(name, sizeof name, "%s%s", qd_graph_node(g, n->input[1])->name, qd_low_rank_rest);
    const qd_node_id weight = qd_graph_const(b->to, name, &f->best_rest);
    const qd_node_id bias = n->n_inputs > 2 ? take(b, n->input[2]) : -1;
    snprintf(name, sizeof name, "%s%s", n->name, qd_low_rank_rest);
    const qd_node_id in[3] = { x, weight, bias };
    const qd_node_id rest = qd_graph_add(b->to, n->op, name, in, bias < 0 ? 2 : 3, n->attr, n->n_attrs);

    snprintf(name, sizeof name, "%s%s.weight", n->name, down_suffix);
    const qd_node_id wd = qd_graph_const(b->to, name, &f->best_down);
    snprintf(name, sizeof name, "%s%s", n->name, down_suffix);
    const qd_node_id down = qd_graph_add(b->to, n->op, name, QD_IN(read, wd), n->attr, n->n_attrs);
    snprintf(name, sizeof name, "%s%s.weight", n->name, up_suffix);
    const qd_node_id wu = qd_graph_const(b->to, name, &f->best_up);
    snprintf(name, sizeof name, "%s%s", n->name, up_suffix);
    const qd_node_id up = qd_graph_add(b->to, conv ? &qd_op_conv2d : &qd_op_linear, name, QD_IN(down, wu), QD_NO_ATTRS);
    b->map[id] = qd_graph_add(b->to, &qd_op_add, n->name, QD_IN(rest, up), QD_NO_ATTRS);
}

static qd_status branch_off(branching *b, const qd_quant_layer *layer, qd_err *err)
{
    const qd_graph *g = b->l->graph;
    const qd_node *n = qd_graph_node(g, layer->id);
    const qd_tensor *w = &qd_graph_node(g, n->input[1])->value;
    qd_budget *budget = qd_run_budget(b->run);
    factors f = { .m = w->shape.dim[0], .rank = b->o->rank, .taps = 1 };
    qd_low_rank_row *row = &b->report->rows[b->report->n];
    qd_node_id value, factor;
    qd_arena a;
    qd_arena_init(&a);
    f.n = qd_tensor_count(w) / f.m;
    if (w->shape.rank == 4)
        f.taps = w->shape.dim[2] * w->shape.dim[3];
    if (qd_smooth_is(g, n->input[0], &value, &factor))
        f.by = qd_f32(&qd_graph_node(g, factor)->value);

    const size_t r = (size_t)f.rank, whole = (size_t)(f.m * f.n);
    qd_shape up = QD_SHAPE(f.m, f.rank), down = w->shape;
    if (w->shape.rank == 4)
        up = QD_SHAPE(f.m, f.rank, 1, 1);
    down.dim[0] = f.rank;
    qd_status st = QD_OK;
    f.u = qd_arena_alloc(&a, (size_t)f.m * r * sizeof(float));
    f.s = qd_arena_alloc(&a, r * sizeof(float));
    f.v = qd_arena_alloc(&a, (size_t)f.n * r * sizeof(float));
    f.target = qd_arena_alloc(&a, whole * sizeof(float));
    f.meant = qd_arena_alloc(&a, whole * sizeof(float));
    if (!f.u || !f.s || !f.v || !f.target || !f.meant)
        st = qd_fail(err, QD_E_NOMEM, "no memory for the branch of '%s'", n->name);
    qd_tensor *const made[6] = { &f.up, &f.down, &f.rest, &f.best_up, &f.best_down, &f.best_rest };
    const qd_shape *const shapes[3] = { &up, &down, &w->shape };
    for (int k = 0; k < 6 && !st; k++)
        st = qd_tensor_init(made[k], QD_F32, shapes[k % 3], budget, err);
    if (!st)
        st = factorize(b, layer, w, &f, row, err);
    if (st) {
        st = qd_fail_in(err, st, "the branch of '%s'", n->name);
        goto out;
    }
    snprintf(row->name, sizeof row->name, "%s", n->name);
    b->report->n++;
    b->report->bytes += (uint64_t)(f.rank * (f.m + f.n)) + sizeof(float) * (uint64_t)(f.m + f.rank);
    add_branch(b, n, &f, layer->id);
out:
    for (int k = 0; k < 6; k++)
        qd_tensor_clear(made[k]);
    qd_arena_clear(&a);
    return st;
}

static qd_status branch_all(branching *b, qd_err *err)
{
    const qd_layout *l = b->l;
    int next = 0; /* layers are in graph order */
    for (qd_node_id id = 0; id < qd_graph_size(l->graph); id++) {
        const qd_node *n = qd_graph_node(l->graph, id);
        const qd_quant_layer *layer = next < l->n_layers && l->layers[next].id == id ? &l->layers[next++] : NULL;
        if (n->op == &qd_op_const)
            continue;
        if (layer && is_fit(b, layer)) {
            const qd_status st = branch_off(b, layer, err);
            if (st)
                return st;
            qd_run_progress(b->run, "low-rank", n->name, next, l->n_layers);
            continue;
        }
        for (int k = 0; k < n->n_inputs; k++)
            take(b, n->input[k]);
        take(b, id);
    }
    return b->report->n
               ? QD_OK
               : qd_fail(err, QD_E_INVALID,
                         "params.low_rank %d is half of every layer of 4 bits or more: no branch would save anything",
                         b->o->rank);
}

/* Multiply-adds of one image. */
static qd_status macs_of(const qd_graph *g, int64_t *macs, qd_err *err)
{
    qd_shape in[QD_MAX_INPUTS];
    for (int k = 0; k < qd_graph_inputs(g); k++) {
        in[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        for (int a = 0; a < in[k].rank; a++)
            in[k].dim[a] = in[k].dim[a] < 0 ? 1 : in[k].dim[a];
    }
    return qd_graph_cost(g, in, qd_graph_inputs(g), macs, err);
}

qd_status qd_low_rank_branch(const qd_layout *l, const qd_low_rank_options *o, const qd_run *run, qd_graph **out,
                             qd_low_rank_report *report, qd_err *err)
{
    const int n = qd_graph_size(l->graph);
    qd_low_rank_report told = { .rank = o->rank };
    branching b = { .l = l, .o = o, .run = run, .report = &told };
    qd_status st = QD_E_NOMEM;
    b.map = qd_alloc((size_t)n * sizeof *b.map);
    told.rows = qd_calloc((size_t)l->n_layers, sizeof *told.rows);
    if (!b.map || !told.rows) {
        qd_fail(err, st, "no memory to rewrite %d nodes", n);
        goto out;
    }
    for (int k = 0; k < n; k++)
        b.map[k] = -1;
    st = qd_graph_new(&b.to, err);
    if (!st)
        st = branch_all(&b, err);
    if (st)
        goto out;
    qd_graph_copy_outputs(b.to, l->graph, b.map);
    st = qd_graph_verify(b.to, err);
    if (!st)
        st = macs_of(l->graph, &told.layer_macs, err);
    if (!st)
        st = macs_of(b.to, &told.macs, err);
    if (st)
        goto out;
    told.macs -= told.layer_macs;
    *out = b.to;
    b.to = NULL;
    *report = told;
    told = (qd_low_rank_report){ 0 };
out:
    qd_low_rank_report_clear(&told);
    qd_graph_free(b.to);
    qd_free(b.map);
    return st;
}
