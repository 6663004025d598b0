/* mixed.c - bits of weights layer by layer: as few as a budget of bytes asks for, where they harm eps least (qncd.md 11.3; MixDQ, 11.2).
 *
 * The harm of a choice is measured, not guessed: the mean square by which eps changes over one item of every stored time step when one
 * layer alone has its weights in so many bits. Harms are taken to add up. The choice of the least sum is exact (dynamic programming over
 * sizes), but for sizes being rounded up to 1 / 65536 of what there is to share out. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/qncd_int.h"

enum { CELLS = 65536, MOST_CELLS = 1 << 26 };
static const int choices[QD_MIXED_CHOICES] = { 4, 6, 8 };

typedef struct entry {
    int layer;                      /* number in the layout */
    int input;                      /* of the trial's graph: its weight */
    size_t bytes[QD_MIXED_CHOICES]; /* codes and scales */
    double harm[QD_MIXED_CHOICES];
    int chosen;
} entry;

typedef struct mixing {
    qd_layout *l;
    const qd_mixed_options *o;
    const qd_run *run;
    int from, to; /* choices allowed */
    entry *entries;
    int n;
    uint64_t fixed_bytes; /* everything else in the result */
    qd_few few;
    qd_graph *trial; /* the network with these weights as inputs, after its own */
    qd_plan *plan;
    int own[QD_MAX_INPUTS]; /* which inputs of the trial are the network's own */
    const void **in;        // [inputs] of the trial
    void **out;             // [outputs]
    float *eps, *eps0;      // [items, each]
    int64_t each;
    double signal;
    qd_arena arena;
} mixing;

void qd_mixed_report_clear(qd_mixed_report *r)
{
    qd_free(r->rows);
    *r = (qd_mixed_report){ 0 };
}

/* --- sizes --- */

/* Constants the result keeps as they are: all but weights that become codes. */
static qd_status count_fixed(mixing *m, qd_err *err)
{
    const qd_layout *l = m->l;
    const qd_graph *g = l->graph;
    bool *kept = qd_arena_alloc(&m->arena, (size_t)qd_graph_size(g) * sizeof *kept);
    if (!kept)
        return qd_fail(err, QD_E_NOMEM, "no memory to look through %d nodes", qd_graph_size(g));
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        int layer = -1;
        for (int k = 0; k < l->n_layers; k++)
            if (l->layers[k].id == id && (!l->layers[k].note || l->layers[k].weight_only))
                layer = k;
        for (int k = 0; k < n->n_inputs; k++)
            if (n->input[k] >= 0 && (k != 1 || layer < 0))
                kept[n->input[k]] = true;
    }
    for (int k = 0; k < qd_graph_outputs(g); k++)
        kept[qd_graph_output_at(g, k)] = true;
    for (qd_node_id id = 0; id < qd_graph_size(g); id++)
        if (kept[id] && qd_graph_node(g, id)->op == &qd_op_const)
            m->fixed_bytes += qd_tensor_bytes(&qd_graph_node(g, id)->value);
    return QD_OK;
}

/* Layers whose bits are free, and the bytes of all others. */
static qd_status list_layers(mixing *m, qd_err *err)
{
    const qd_layout *l = m->l;
    m->entries = qd_arena_alloc(&m->arena, (size_t)l->n_layers * sizeof *m->entries);
    if (!m->entries)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d layers", l->n_layers);
    qd_status st = count_fixed(m, err);
    for (int k = 0; k < l->n_layers && !st; k++) {
        const qd_quant_layer *layer = &l->layers[k];
        if (layer->note && !layer->weight_only)
            continue;
        size_t bytes = 0;
        const qd_tensor *weight = &qd_graph_node(l->graph, qd_graph_node(l->graph, layer->id)->input[1])->value;
        const bool is_free = !layer->note && !layer->weight_bits;
        if (is_free)
            m->entries[m->n++] = (entry){ .layer = k };
        for (int c = m->from; c <= m->to && is_free && !st; c++)
            st = qd_layout_try_weight(l, layer, weight, choices[c], false, m->run, NULL, &m->entries[m->n - 1].bytes[c],
                                      err);
        if (!is_free)
            st = qd_layout_try_weight(l, layer, weight, layer->weight_only ? 8 : layer->weight_bits, false, m->run,
                                      NULL, &bytes, err);
        m->fixed_bytes += bytes;
    }
    if (!st && m->n == 0)
        st = qd_fail(err, QD_E_INVALID, "there is no layer whose bits could be chosen");
    return st;
}

/* --- harm --- */

/* Constants come along with their reader: weights that became inputs stay behind. */
static qd_node_id take(mixing *m, qd_node_id *map, qd_node_id id)
{
    if (id >= 0 && map[id] < 0)
        qd_graph_copy_node(m->trial, m->l->graph, id, map);
    return id < 0 ? -1 : map[id];
}

static void add_entry(mixing *m, qd_node_id *map, int k)
{
    const qd_node_id id = m->l->layers[m->entries[k].layer].id;
    const qd_node *n = qd_graph_node(m->l->graph, id);
    char name[32];
    snprintf(name, sizeof name, "mixed.weight.%d", k);
    m->entries[k].input = qd_graph_inputs(m->trial);
    const qd_node_id w = qd_graph_input(m->trial, name, QD_F32, &qd_graph_node(m->l->graph, n->input[1])->shape);
    const qd_node_id in[3] = { take(m, map, n->input[0]), w, n->n_inputs > 2 ? take(m, map, n->input[2]) : -1 };
    map[id] = qd_graph_add(m->trial, n->op, n->name, in, in[2] < 0 ? 2 : 3, n->attr, n->n_attrs);
}

static qd_status make_trial(mixing *m, qd_err *err)
{
    const qd_graph *g = m->l->graph;
    const int n = qd_graph_size(g);
    qd_node_id *map = qd_arena_alloc(&m->arena, (size_t)n * sizeof *map);
    qd_status st = map ? qd_graph_new(&m->trial, err) : qd_fail(err, QD_E_NOMEM, "no memory to copy %d nodes", n);
    if (st)
        return st;
    for (int k = 0; k < n; k++)
        map[k] = -1;
    int next = 0, own = 0; /* entries are in graph order */
    for (qd_node_id id = 0; id < n; id++) {
        const qd_node *node = qd_graph_node(g, id);
        if (node->op == &qd_op_input)
            m->own[own++] = qd_graph_inputs(m->trial);
        if (next < m->n && m->l->layers[m->entries[next].layer].id == id) {
            add_entry(m, map, next++);
        } else if (node->op != &qd_op_const) {
            for (int k = 0; k < node->n_inputs; k++)
                take(m, map, node->input[k]);
            take(m, map, id);
        }
    }
    qd_graph_copy_outputs(m->trial, g, map);
    return qd_graph_verify(m->trial, err);
}

/* Shapes, plan and room for a call of the trial. */
static qd_status compile(mixing *m, qd_err *err)
{
    const qd_graph *g = m->trial;
    const int n_in = qd_graph_inputs(g), n_out = qd_graph_outputs(g);
    qd_shape *given = qd_arena_alloc(&m->arena, (size_t)n_in * sizeof *given);
    qd_shape *shapes = qd_arena_alloc(&m->arena, (size_t)qd_graph_size(g) * sizeof *shapes);
    m->in = qd_arena_alloc(&m->arena, (size_t)n_in * sizeof *m->in);
    m->out = qd_arena_alloc(&m->arena, (size_t)n_out * sizeof *m->out);
    if (!given || !shapes || !m->in || !m->out)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d inputs", n_in);
    for (int k = 0; k < m->few.n_inputs; k++)
        given[m->own[k]] = m->few.shapes[k];
    for (int k = 0; k < m->n; k++) {
        const qd_node *layer = qd_graph_node(m->l->graph, m->l->layers[m->entries[k].layer].id);
        const qd_tensor *weight = &qd_graph_node(m->l->graph, layer->input[1])->value;
        given[m->entries[k].input] = weight->shape;
        m->in[m->entries[k].input] = weight->data;
    }
    qd_status st = qd_graph_shapes(g, given, n_in, shapes, err);
    for (int k = 0; k < n_out && !st; k++) {
        int64_t count;
        st = qd_shape_count(&shapes[qd_graph_output_at(g, k)], &count, err);
        if (!st && k == 0)
            m->each = count / m->few.batch;
        if (!st && !(m->out[k] = qd_arena_alloc(&m->arena, (size_t)count * sizeof(int64_t))))
            st = qd_fail(err, QD_E_NOMEM, "no memory for an output");
    }
    const qd_node *eps = qd_graph_node(g, qd_graph_output_at(g, 0));
    if (!st && eps->dtype != QD_F32)
        st = qd_fail(err, QD_E_UNSUPPORTED, "the output '%s' is no f32", eps->name);
    const qd_plan_options o = {
        .input_shapes = given, .n_inputs = n_in, .threads = qd_run_threads(m->run), .budget = qd_run_budget(m->run)
    };
    if (!st)
        st = qd_plan_compile(g, &o, &m->plan, err);
    if (st)
        return st;
    m->eps = qd_arena_alloc(&m->arena, (size_t)(m->few.items * m->each) * sizeof *m->eps);
    m->eps0 = qd_arena_alloc(&m->arena, (size_t)(m->few.items * m->each) * sizeof *m->eps0);
    return m->eps && m->eps0 ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for the answers");
}

/* What the network answers to all items with the weights that are bound now. */
static qd_status answer(mixing *m, float *eps, qd_err *err)
{
    qd_status st = QD_OK;
    for (int64_t i = 0; i < m->few.items && !st; i += m->few.batch) {
        const void *own[QD_MAX_INPUTS];
        qd_few_bind(&m->few, i, own);
        for (int k = 0; k < m->few.n_inputs; k++)
            m->in[m->own[k]] = own[k];
        st = qd_run_check(m->run, err);
        if (!st)
            st = qd_plan_run(m->plan, m->run, m->in, m->out, err);
        memcpy(eps + i * m->each, m->out[0], (size_t)(m->few.batch * m->each) * sizeof *eps);
    }
    return st;
}

static double mean_square(const float *a, const float *b, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (b ? (double)b[i] : 0.0);
        sum += d * d;
    }
    return sum / (double)n;
}

static qd_status measure_layer(mixing *m, entry *e, qd_err *err)
{
    const qd_layout *l = m->l;
    const qd_quant_layer *layer = &l->layers[e->layer];
    const qd_tensor *weight = &qd_graph_node(l->graph, qd_graph_node(l->graph, layer->id)->input[1])->value;
    qd_tensor meant = { 0 };
    qd_status st = qd_tensor_init(&meant, QD_F32, &weight->shape, qd_run_budget(m->run), err);
    for (int c = m->from; c <= m->to && !st; c++) {
        st =
            qd_layout_try_weight(l, layer, weight, choices[c], m->o->search_weights, m->run, qd_f32(&meant), NULL, err);
        m->in[e->input] = meant.data;
        if (!st)
            st = answer(m, m->eps, err);
        if (!st)
            e->harm[c] = mean_square(m->eps, m->eps0, m->few.items * m->each);
        if (!st && !isfinite(e->harm[c]))
            st = qd_fail(err, QD_E_NUMERIC, "eps is not finite with '%s' in %d bits",
                         qd_graph_node(l->graph, layer->id)->name, choices[c]);
    }
    m->in[e->input] = weight->data;
    qd_tensor_clear(&meant);
    return st;
}

static qd_status measure(mixing *m, qd_err *err)
{
    qd_status st = answer(m, m->eps0, err);
    if (!st)
        m->signal = mean_square(m->eps0, NULL, m->few.items * m->each);
    for (int k = 0; k < m->n && !st; k++) {
        st = measure_layer(m, &m->entries[k], err);
        qd_run_progress(m->run, "sensitivity", qd_graph_node(m->l->graph, m->l->layers[m->entries[k].layer].id)->name,
                        k + 1, m->n);
    }
    return st;
}

/* --- the choice --- */

/* The least sum of harms within `room` bytes. least[c] is that of the layers so far within c cells; row k of `taken` says what layer k
 * takes there. */
static qd_status choose(mixing *m, uint64_t room, qd_err *err)
{
    const int64_t most = MOST_CELLS / m->n < CELLS ? MOST_CELLS / m->n : CELLS;
    const uint64_t unit = room / (uint64_t)most + 1;
    const int64_t cells = (int64_t)(room / unit);
    const size_t width = (size_t)cells + 1;
    double *least = qd_alloc(2 * width * sizeof *least);
    unsigned char *taken = qd_calloc((size_t)m->n, width);
    if (!least || !taken) {
        qd_free(taken);
        qd_free(least);
        return qd_fail(err, QD_E_NOMEM, "no memory to choose the bits of %d layers", m->n);
    }
    double *now = least, *next = least + width;
    for (size_t c = 0; c < width; c++)
        now[c] = 0.0;
    for (int k = 0; k < m->n; k++) {
        const entry *e = &m->entries[k];
        for (int64_t c = 0; c <= cells; c++) {
            next[c] = INFINITY;
            for (int i = m->from; i <= m->to; i++) {
                const int64_t cost = (int64_t)((e->bytes[i] + unit - 1) / unit);
                if (cost <= c && now[c - cost] + e->harm[i] < next[c]) { /* ties keep fewer bits */
                    next[c] = now[c - cost] + e->harm[i];
                    taken[(size_t)k * width + (size_t)c] = (unsigned char)i;
                }
            }
        }
        double *swap = now;
        now = next;
        next = swap;
    }
    /* Rounding sizes up may leave nothing where the fewest bits just fit. */
    const bool fits = isfinite(now[cells]);
    int64_t c = cells;
    for (int k = m->n - 1; k >= 0; k--) {
        entry *e = &m->entries[k];
        e->chosen = fits ? taken[(size_t)k * width + (size_t)c] : m->from;
        if (fits)
            c -= (int64_t)((e->bytes[e->chosen] + unit - 1) / unit);
    }
    qd_free(taken);
    qd_free(least);
    return QD_OK;
}

static qd_status check_room(const mixing *m, uint64_t *room, qd_err *err)
{
    uint64_t least = m->fixed_bytes;
    for (int k = 0; k < m->n; k++)
        least += m->entries[k].bytes[m->from];
    if (least > m->o->budget_bytes)
        return qd_fail(
            err, QD_E_INVALID,
            "a result of %llu bytes is asked for (params.size_budget), but with %d bits everywhere it takes %llu, "
            "%llu of them for what is not quantized",
            (unsigned long long)m->o->budget_bytes, choices[m->from], (unsigned long long)least,
            (unsigned long long)m->fixed_bytes);
    *room = m->o->budget_bytes - m->fixed_bytes;
    return QD_OK;
}

static qd_status tell(const mixing *m, qd_mixed_report *out, qd_err *err)
{
    qd_mixed_report r = { .signal = m->signal, .budget_bytes = m->o->budget_bytes, .planned_bytes = m->fixed_bytes };
    r.rows = qd_calloc((size_t)m->n, sizeof *r.rows);
    if (!r.rows)
        return qd_fail(err, QD_E_NOMEM, "no memory for a report of %d layers", m->n);
    for (int k = 0; k < m->n; k++) {
        const entry *e = &m->entries[k];
        qd_mixed_row *row = &r.rows[r.n++];
        snprintf(row->name, sizeof row->name, "%s", qd_graph_node(m->l->graph, m->l->layers[e->layer].id)->name);
        row->bits = choices[e->chosen];
        for (int c = 0; c < QD_MIXED_CHOICES; c++)
            row->harm[c] = c >= m->from && c <= m->to ? e->harm[c] : (double)NAN;
        r.harm += e->harm[e->chosen];
        r.planned_bytes += e->bytes[e->chosen];
    }
    *out = r;
    return QD_OK;
}

qd_status qd_layout_choose_bits(qd_layout *l, const qd_calibration_set *set, const qd_mixed_options *o,
                                const qd_run *run, qd_mixed_report *report, qd_err *err)
{
    mixing m = { .l = l, .o = o, .run = run, .to = QD_MIXED_CHOICES - 1 };
    uint64_t room = 0;
    if (o->min_bits > o->max_bits)
        return qd_fail(err, QD_E_INVALID, "params.min_bits is %d, more than params.max_bits, %d", o->min_bits,
                       o->max_bits);
    qd_arena_init(&m.arena);
    while (choices[m.from] < o->min_bits)
        m.from++;
    while (choices[m.to] > o->max_bits)
        m.to--;
    qd_status st = list_layers(&m, err);
    if (!st)
        st = check_room(&m, &room, err);
    if (!st)
        st = qd_few_init(&m.few, l->graph, l->input, set, 1, run, err);
    if (!st)
        st = make_trial(&m, err);
    if (!st)
        st = compile(&m, err);
    if (!st)
        st = measure(&m, err);
    if (!st)
        st = choose(&m, room, err);
    if (!st)
        st = tell(&m, report, err);
    for (int k = 0; k < m.n && !st; k++)
        l->layers[m.entries[k].layer].weight_bits = choices[m.entries[k].chosen];
    qd_plan_free(m.plan);
    qd_graph_free(m.trial);
    qd_few_clear(&m.few);
    qd_arena_clear(&m.arena);
    return st;
}
