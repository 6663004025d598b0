/* kept.c - values of the float network and of the one in codes over a calibration set: computed block by block, each value kept for as
 * long as a later block is computed from it, so that both networks are run once in all. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/recon_int.h"

enum { BATCH = 16 };
#define SHARE 0.5              /* of what the budget has left; the rest is for plans and weights */
#define ROOM_BYTES (2ll << 30) /* where there is no ceiling */

static int64_t count_of(const qd_shape *s)
{
    int64_t n = 1;
    for (int k = 0; k < s->rank; k++)
        n *= s->dim[k];
    return n;
}

int64_t qd_kept_count(const qd_kept_values *k, qd_node_id id)
{
    return count_of(&k->one[id]);
}

size_t qd_kept_bytes(const qd_kept_values *k, qd_node_id id)
{
    return (size_t)count_of(&k->one[id]) * (qd_dtype_bits(qd_graph_node(k->layout->graph, id)->dtype) / 8);
}

static int64_t bytes_of(const qd_kept_values *k, qd_node_id id)
{
    return (int64_t)qd_kept_bytes(k, id);
}

/* The last block computed from a value; -1 = none. */
static int last_use(const qd_blocks *b, qd_node_id id)
{
    for (int k = b->n - 1; k >= 0; k--)
        for (int j = 0; j < b->block[k].n_feeds; j++)
            if (b->block[k].feeds[j] == id)
                return k;
    return -1;
}

/* Most bytes of one item held at a time; *at is where. */
static int64_t peak_of(const qd_kept_values *k, int *at)
{
    const qd_blocks *b = k->blocks;
    int64_t held = 0, peak = 0;
    *at = 0;
    for (int i = 0; i < qd_graph_inputs(k->layout->graph); i++)
        held += bytes_of(k, qd_graph_input_at(k->layout->graph, i));
    for (int i = 0; i < b->n; i++) {
        const qd_block *block = &b->block[i];
        int64_t now = held + 2 * bytes_of(k, block->out);
        for (int j = 0; j < block->n_entry; j++)
            now += b->cut[block->entry[j]] ? 0 : bytes_of(k, block->entry[j]);
        if (now > peak) {
            peak = now;
            *at = i;
        }
        if (last_use(b, block->out) > i)
            held += 2 * bytes_of(k, block->out);
        for (int j = 0; j < block->n_feeds; j++)
            if (last_use(b, block->feeds[j]) == i)
                held -= (qd_graph_node(k->layout->graph, block->feeds[j])->op == &qd_op_input ? 1 : 2) *
                        bytes_of(k, block->feeds[j]);
    }
    return peak;
}

/* Every sample is seen as sampling shows it: with its condition, without it, or, guided, both ways (qncd.md 5). */
static bool is_seen(const qd_calibration_set *set, bool with)
{
    const double w = set->condition ? set->condition->guidance : 1.0;
    return with ? w != 0.0 : w != 1.0;
}

/* How many samples of each step to take: all, or as many as there is room for. */
static qd_status choose_items(qd_kept_values *k, const qd_calibration_set *set, int64_t most, qd_err *err)
{
    int at;
    const int64_t wanted = most > 0 && most < set->samples ? most : set->samples;
    const int64_t groups = (int64_t)set->steps * (is_seen(set, true) + is_seen(set, false));
    const qd_budget *b = qd_run_budget(k->run);
    const int64_t peak = peak_of(k, &at);
    const size_t used = b ? b->used_bytes : 0;
    double room = ROOM_BYTES;
    if (b && b->limit_bytes)
        room = SHARE * (double)(b->limit_bytes > used ? b->limit_bytes - used : 0);
    const double fits = room / ((double)peak * (double)groups);
    if (fits < 1.0)
        return qd_fail(
            err, QD_E_LIMIT,
            "block '%s' needs %lld bytes for its inputs and targets of one sample at %d time steps; %.0f may be kept",
            k->blocks->block[at].name, (long long)peak * set->steps, set->steps, room);
    k->per_step = fits < (double)wanted ? (int64_t)fits : wanted;
    k->items = k->per_step * groups;
    k->batch = k->items < BATCH ? k->items : BATCH;
    return QD_OK;
}

qd_status qd_kept_shapes(const qd_graph *g, int64_t batch, qd_shape *shapes, qd_err *err)
{
    qd_shape in[QD_MAX_INPUTS];
    for (int k = 0; k < qd_graph_inputs(g); k++) {
        in[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        if (in[k].rank > 0 && in[k].dim[0] < 0)
            in[k].dim[0] = batch;
    }
    return qd_graph_shapes(g, in, qd_graph_inputs(g), shapes, err);
}

/* Items lie one after the other in every value that is given or wanted. */
static qd_status check_items(const qd_kept_values *k, qd_node_id id, qd_err *err)
{
    qd_shape whole = k->one[id];
    if (whole.rank > 0)
        whole.dim[0] *= k->batch;
    if (whole.rank == 0 || !qd_shape_equal(&whole, &k->shapes[id]))
        return qd_fail(err, QD_E_UNSUPPORTED, "the value '%s' does not hold its samples one after the other",
                       qd_graph_node(k->layout->graph, id)->name);
    return QD_OK;
}

static qd_status new_value(const qd_kept_values *k, qd_node_id id, qd_tensor *t, qd_err *err)
{
    const qd_shape shape = QD_SHAPE(k->items * count_of(&k->one[id]));
    const qd_status st =
        qd_tensor_init(t, qd_graph_node(k->layout->graph, id)->dtype, &shape, qd_run_budget(k->run), err);
    return st ? qd_fail_in(err, st, "'%s' over the calibration set", qd_graph_node(k->layout->graph, id)->name) : QD_OK;
}

/* What the items of one step, told one way, put into an input. */
static void fill_step(const qd_kept_values *k, const qd_calibration_set *set, qd_node_id id, bool with, int step,
                      char *to)
{
    const qd_node *n = qd_graph_node(k->layout->graph, id);
    const size_t bytes = qd_kept_bytes(k, id);
    if (id == k->layout->input) {
        memcpy(to, (const char *)set->x.data + (size_t)(step * set->samples) * bytes, (size_t)k->per_step * bytes);
        return;
    }
    if (strcmp(n->name, "timestep") != 0) {
        qd_condition_fill(set->condition, n, with, set->first_sample, k->per_step, to);
        return;
    }
    for (int64_t i = 0; i < k->per_step; i++)
        if (n->dtype == QD_I64)
            ((int64_t *)to)[i] = set->t[step];
        else
            ((float *)to)[i] = (float)set->t[step];
}

/* qd_layout_new has seen to it that there are no inputs but the image, the time step and what a condition fills. */
static qd_status fill_inputs(qd_kept_values *k, const qd_calibration_set *set, qd_err *err)
{
    static const qd_condition nothing = { .guidance = 1.0 };
    const qd_graph *g = k->layout->graph;
    for (int i = 0; i < qd_graph_inputs(g); i++) {
        const qd_node_id id = qd_graph_input_at(g, i);
        const qd_node *n = qd_graph_node(g, id);
        qd_tensor *t = &k->value[QD_NET_FLOAT][id];
        qd_status st = QD_OK;
        if (id != k->layout->input && strcmp(n->name, "timestep") != 0)
            st = qd_condition_check(set->condition ? set->condition : &nothing, n, err);
        if (!st)
            st = new_value(k, id, t, err);
        if (st)
            return st;
        char *to = t->data;
        for (int with = 1; with >= 0; with--)
            for (int step = 0; step < set->steps && is_seen(set, with); step++) {
                fill_step(k, set, id, with, step, to);
                to += (size_t)k->per_step * qd_kept_bytes(k, id);
            }
        qd_tensor_share(&k->value[QD_NET_CODES][id], t);
    }
    return QD_OK;
}

qd_status qd_kept_init(qd_kept_values *k, const qd_layout *l, const qd_blocks *b, const qd_calibration_set *set,
                       int64_t most, const qd_run *run, qd_err *err)
{
    const size_t n = (size_t)qd_graph_size(l->graph) + 1;
    *k = (qd_kept_values){ .layout = l, .blocks = b, .run = run };
    qd_status st = QD_E_NOMEM;
    k->one = qd_calloc(n, sizeof *k->one);
    k->shapes = qd_calloc(n, sizeof *k->shapes);
    k->value[0] = qd_calloc(n, sizeof *k->value[0]);
    k->value[1] = qd_calloc(n, sizeof *k->value[1]);
    if (!k->one || !k->shapes || !k->value[0] || !k->value[1]) {
        qd_fail(err, st, "no memory for the values of %d nodes", qd_graph_size(l->graph));
        goto out;
    }
    st = qd_layout_shapes(l->graph, k->one, err);
    if (!st)
        st = choose_items(k, set, most, err);
    if (!st)
        st = qd_kept_shapes(l->graph, k->batch, k->shapes, err);
    if (!st)
        st = fill_inputs(k, set, err);
out:
    if (st)
        qd_kept_clear(k);
    return st;
}

void qd_kept_clear(qd_kept_values *k)
{
    for (int net = 0; net < 2; net++) {
        for (int id = 0; k->value[net] && id < qd_graph_size(k->layout->graph); id++)
            qd_tensor_clear(&k->value[net][id]);
        qd_free(k->value[net]);
    }
    qd_free(k->shapes);
    qd_free(k->one);
    *k = (qd_kept_values){ 0 };
}

/* --- computing --- */

/* The last call starts earlier rather than running over the end: what it makes again is the same. */
static qd_status run_items(const qd_kept_values *k, qd_plan *plan, const qd_piece *piece, qd_net net,
                           const qd_node_id *wanted, int n, qd_tensor *out, qd_arena *a, qd_err *err)
{
    const void **in = qd_arena_alloc(a, ((size_t)piece->n_inputs + 1) * sizeof *in);
    void **results = qd_arena_alloc(a, (size_t)n * sizeof *results);
    if (!in || !results)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d values", piece->n_inputs + n);
    for (int64_t next = 0; next < k->items; next += k->batch) {
        const int64_t first = next + k->batch > k->items ? k->items - k->batch : next;
        for (int i = 0; i < piece->n_inputs; i++)
            in[i] = (const char *)k->value[net][piece->input[i]].data + first * bytes_of(k, piece->input[i]);
        for (int i = 0; i < n; i++)
            results[i] = (char *)out[i].data + first * bytes_of(k, wanted[i]);
        const qd_status st = qd_plan_run(plan, k->run, in, results, err);
        if (st)
            return st;
    }
    return QD_OK;
}

qd_status qd_kept_compute(qd_kept_values *k, qd_net net, const qd_node_id *wanted, int n, qd_tensor *out, qd_err *err)
{
    const int nodes = qd_graph_size(k->layout->graph);
    qd_budget *budget = qd_run_budget(k->run);
    qd_piece piece = { 0 };
    qd_plan *plan = NULL;
    qd_arena a;
    qd_status st = QD_E_NOMEM;
    int n_given = 0, made = 0;
    qd_arena_init(&a);
    qd_node_id *given = qd_arena_alloc(&a, (size_t)nodes * sizeof *given);
    qd_shape *shapes = qd_arena_alloc(&a, (size_t)nodes * sizeof *shapes);
    if (!given || !shapes) {
        qd_fail(err, st, "no memory for a piece of %d nodes", nodes);
        goto out;
    }
    for (qd_node_id id = 0; id < nodes; id++)
        if (k->value[net][id].data)
            given[n_given++] = id;
    const qd_piece_spec spec = { .layout = k->layout,
                                 .shapes = k->shapes,
                                 .given = given,
                                 .n_given = n_given,
                                 .wanted = wanted,
                                 .n_wanted = n,
                                 .weights = net == QD_NET_FLOAT ? QD_PIECE_FLOAT : QD_PIECE_CODES };
    st = qd_piece_cut(&spec, budget, &piece, err);
    for (int i = 0; i < piece.n_inputs && !st; i++) {
        shapes[i] = k->shapes[piece.input[i]];
        st = check_items(k, piece.input[i], err);
    }
    if (st)
        goto out;
    const qd_plan_options o = {
        .input_shapes = shapes, .n_inputs = piece.n_inputs, .threads = qd_run_threads(k->run), .budget = budget
    };
    st = qd_plan_compile(piece.graph, &o, &plan, err);
    for (; made < n && !st; made += !st) {
        st = check_items(k, wanted[made], err);
        if (!st)
            st = new_value(k, wanted[made], &out[made], err);
    }
    if (!st)
        st = run_items(k, plan, &piece, net, wanted, n, out, &a, err);
out:
    while (st && made > 0)
        qd_tensor_clear(&out[--made]);
    qd_plan_free(plan);
    qd_piece_clear(&piece);
    qd_arena_clear(&a);
    return st;
}

void qd_kept_drop(qd_kept_values *k, int block)
{
    for (int id = 0; id < qd_graph_size(k->layout->graph); id++) {
        if (!k->value[QD_NET_FLOAT][id].data || last_use(k->blocks, id) > block)
            continue;
        qd_tensor_clear(&k->value[QD_NET_FLOAT][id]);
        qd_tensor_clear(&k->value[QD_NET_CODES][id]);
    }
}
