/* time_table.c - what depends on the time step alone, as a table made once by the float network (qncd.md 11.1: TFMQ-DM's cache).
 *
 * Time MLP and embedding projections leave the network, and their quantization error with them. Between the time steps of the table
 * a value is the mixture of its neighbours; on them it is the float network's, bit for bit. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/qncd_int.h"

#define NAME_BYTES (QD_MAX_NAME + 32)

typedef struct tabling {
    const qd_graph *from;
    const qd_schedule *schedule;
    const int *t; // [n_t], falling
    int n_t;
    bool *timed;       // [nodes]: made of the time step and constants alone
    qd_node_id *root;  // [n_roots]: such values that anything else reads
    qd_shape *shape;   // [n_roots], batch 1
    int64_t *elements; // [n_roots], of one sample
    int n_roots;
    int64_t width;    /* of a row: all roots */
    qd_tensor rows;   // [n_t, width]
    qd_tensor lo, hi; // [train_steps, 1]: rows that stand around a time step
    qd_tensor part;   // [train_steps, 1]: how far it is from the first to the second
    qd_graph *to;
    qd_node_id *map; // [nodes]
} tabling;

static void tabling_clear(tabling *w)
{
    qd_tensor_clear(&w->rows);
    qd_tensor_clear(&w->lo);
    qd_tensor_clear(&w->hi);
    qd_tensor_clear(&w->part);
    qd_graph_free(w->to);
    qd_free(w->timed);
    qd_free(w->root);
    qd_free(w->shape);
    qd_free(w->elements);
    qd_free(w->map);
}

/* Fills timed and the roots. */
static qd_status find_roots(tabling *w, qd_err *err)
{
    const qd_graph *g = w->from;
    const int n = qd_graph_size(g);
    const qd_node_id time = qd_graph_find(g, "timestep");
    qd_shape *shapes = qd_calloc((size_t)n, sizeof *shapes);
    bool *read = qd_calloc((size_t)n, sizeof *read);
    qd_status st = shapes && read ? qd_layout_shapes(g, shapes, err)
                                  : qd_fail(err, QD_E_NOMEM, "no memory to look through %d nodes", n);
    for (qd_node_id id = 0; id < n && !st; id++) {
        const qd_node *node = qd_graph_node(g, id);
        bool all = node->n_inputs > 0, any = false;
        for (int k = 0; k < node->n_inputs; k++) {
            const qd_node_id in = node->input[k];
            if (in < 0)
                continue;
            any |= w->timed[in];
            all &= w->timed[in] || qd_graph_node(g, in)->op == &qd_op_const;
        }
        w->timed[id] = id == time || (all && any);
        for (int k = 0; k < node->n_inputs && !w->timed[id]; k++)
            if (node->input[k] >= 0 && w->timed[node->input[k]])
                read[node->input[k]] = true;
    }
    for (qd_node_id id = 0; id < n && !st; id++) {
        const qd_node *node = qd_graph_node(g, id);
        if (!read[id] || id == time || node->dtype != QD_F32)
            continue;
        int64_t elements = 1;
        for (int k = 0; k < shapes[id].rank; k++)
            elements *= shapes[id].dim[k];
        w->root[w->n_roots] = id;
        w->shape[w->n_roots] = shapes[id];
        w->elements[w->n_roots++] = elements;
        w->width += elements;
    }
    qd_free(read);
    qd_free(shapes);
    if (!st && w->n_roots == 0)
        st = qd_fail(err, QD_E_INVALID, "nothing in this model depends on the time step alone");
    return st;
}

/* The float values of all roots at every time step of the table. */
static qd_status fill_rows(tabling *w, const qd_run *run, qd_err *err)
{
    qd_graph *all = NULL, *part = NULL;
    qd_plan *plan = NULL;
    const int n = qd_graph_size(w->from);
    qd_tensor in[QD_MAX_INPUTS] = { { 0 } };
    void **out = qd_calloc((size_t)w->n_roots, sizeof *out);
    qd_status st = out ? qd_graph_new(&all, err) : qd_fail(err, QD_E_NOMEM, "no memory for %d values", w->n_roots);
    if (st)
        goto out;
    for (qd_node_id id = 0; id < n; id++)
        qd_graph_copy_node(all, w->from, id, w->map);
    for (int k = 0; k < w->n_roots; k++) {
        char name[32];
        snprintf(name, sizeof name, "root.%d", k);
        qd_graph_output(all, name, w->map[w->root[k]]);
    }
    if ((st = qd_graph_verify(all, err)) || (st = qd_graph_prune(all, &part, err)))
        goto out;
    const int n_in = qd_graph_inputs(part);
    qd_shape shapes[QD_MAX_INPUTS];
    const void *values[QD_MAX_INPUTS];
    for (int k = 0; k < n_in && !st; k++) {
        const qd_node *node = qd_graph_node(part, qd_graph_input_at(part, k));
        shapes[k] = node->shape;
        shapes[k].dim[0] = 1;
        st = qd_tensor_init(&in[k], node->dtype, &shapes[k], qd_run_budget(run), err);
        values[k] = in[k].data;
    }
    const qd_plan_options o = {
        .input_shapes = shapes, .n_inputs = n_in, .threads = qd_run_threads(run), .budget = qd_run_budget(run)
    };
    if (!st)
        st = qd_plan_compile(part, &o, &plan, err);
    for (int i = 0; i < w->n_t && !st; i++) {
        float *row = qd_f32(&w->rows) + i * w->width;
        for (int k = 0; k < n_in; k++) {
            const qd_node *node = qd_graph_node(part, qd_graph_input_at(part, k));
            if (strcmp(node->name, "timestep") != 0)
                continue;
            if (node->dtype == QD_I64)
                *(int64_t *)in[k].data = w->t[i];
            else
                *(float *)in[k].data = (float)w->t[i];
        }
        for (int k = 0; k < w->n_roots; k++) {
            out[k] = row;
            row += w->elements[k];
        }
        st = qd_plan_run(plan, run, values, out, err);
    }
out:
    qd_plan_free(plan);
    for (int k = 0; k < QD_MAX_INPUTS; k++)
        qd_tensor_clear(&in[k]);
    qd_graph_free(part);
    qd_graph_free(all);
    qd_free(out);
    return st;
}

static void fill_places(tabling *w)
{
    for (int t = 0; t < w->schedule->train_steps; t++) {
        int k = 0;
        while (k + 1 < w->n_t && w->t[k + 1] >= t)
            k++;
        const int next = k + 1 < w->n_t && t < w->t[k] ? k + 1 : k;
        const float part = w->t[k] > w->t[next] ? (float)(w->t[k] - t) / (float)(w->t[k] - w->t[next]) : 0.0f;
        qd_f32(&w->lo)[t] = (float)k;
        qd_f32(&w->hi)[t] = (float)next;
        qd_f32(&w->part)[t] = part > 0 ? part : 0;
    }
}

/* [N, 1] of a table by time step, as [N]. */
static qd_node_id at_time(tabling *w, const char *name, const qd_tensor *table, qd_node_id time, bool flat)
{
    char part[NAME_BYTES];
    snprintf(part, sizeof part, "time_table.%s.table", name);
    const qd_node_id rows = qd_graph_const(w->to, part, table);
    snprintf(part, sizeof part, "time_table.%s", name);
    const qd_node_id v = qd_graph_add(w->to, &qd_op_embedding, part, QD_IN(time, rows), QD_NO_ATTRS);
    if (!flat)
        return v;
    snprintf(part, sizeof part, "time_table.%s.flat", name);
    return qd_graph_add(w->to, &qd_op_reshape, part, QD_IN(v),
                        QD_ATTRS(qd_attr_ints("shape", 1, (const int64_t[]){ 0 })));
}

static void add_roots(tabling *w, qd_node_id time)
{
    qd_graph *g = w->to;
    const qd_node_id rows = qd_graph_const(g, "time_table.rows", &w->rows);
    const qd_node_id lo = at_time(w, "lo", &w->lo, time, true), hi = at_time(w, "hi", &w->hi, time, true);
    const qd_node_id part = at_time(w, "part", &w->part, time, false);
    const qd_node_id a = qd_graph_add(g, &qd_op_embedding, "time_table.a", QD_IN(lo, rows), QD_NO_ATTRS);
    const qd_node_id b = qd_graph_add(g, &qd_op_embedding, "time_table.b", QD_IN(hi, rows), QD_NO_ATTRS);
    qd_node_id v = qd_graph_add(g, &qd_op_sub, "time_table.way", QD_IN(b, a), QD_NO_ATTRS);
    v = qd_graph_add(g, &qd_op_mul, "time_table.step", QD_IN(v, part), QD_NO_ATTRS);
    v = qd_graph_add(g, &qd_op_add, "time_table.row", QD_IN(a, v), QD_NO_ATTRS);
    int64_t start = 0;
    for (int k = 0; k < w->n_roots; k++) {
        char name[NAME_BYTES];
        const qd_node *n = qd_graph_node(w->from, w->root[k]);
        int64_t dims[QD_MAX_RANK];
        snprintf(name, sizeof name, "%s.row", n->name);
        const qd_node_id cut = qd_graph_add(
            g, &qd_op_slice, name, QD_IN(v),
            QD_ATTRS(QD_INT("axis", 1), QD_INT("start", start), QD_INT("length", w->elements[k]), QD_INT("step", 1)));
        for (int i = 0; i < w->shape[k].rank; i++)
            dims[i] = i ? w->shape[k].dim[i] : 0;
        w->map[w->root[k]] = qd_graph_add(g, &qd_op_reshape, n->name, QD_IN(cut),
                                          QD_ATTRS(qd_attr_ints("shape", w->shape[k].rank, dims)));
        start += w->elements[k];
    }
}

static void rewrite(tabling *w)
{
    const qd_graph *g = w->from;
    for (qd_node_id id = 0; id < qd_graph_size(g); id++)
        w->map[id] = -1;
    for (int k = 0; k < qd_graph_inputs(g); k++)
        qd_graph_copy_node(w->to, g, qd_graph_input_at(g, k), w->map);
    add_roots(w, w->map[qd_graph_find(g, "timestep")]);
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        if (w->timed[id] || n->op == &qd_op_const || n->op == &qd_op_input)
            continue;
        for (int k = 0; k < n->n_inputs; k++)
            if (n->input[k] >= 0 && w->map[n->input[k]] < 0)
                qd_graph_copy_node(w->to, g, n->input[k], w->map);
        qd_graph_copy_node(w->to, g, id, w->map);
    }
    qd_graph_copy_outputs(w->to, g, w->map);
}

static qd_status make_room(tabling *w, qd_budget *budget, qd_err *err)
{
    const qd_shape rows = QD_SHAPE(w->n_t, w->width), place = QD_SHAPE(w->schedule->train_steps, 1);
    qd_status st = qd_tensor_init(&w->rows, QD_F32, &rows, budget, err);
    if (!st)
        st = qd_tensor_init(&w->lo, QD_F32, &place, budget, err);
    if (!st)
        st = qd_tensor_init(&w->hi, QD_F32, &place, budget, err);
    return st ? st : qd_tensor_init(&w->part, QD_F32, &place, budget, err);
}

qd_status qd_time_table(const qd_graph *g, const qd_schedule *schedule, const int *t, int n_t, const qd_run *run,
                        qd_graph **out, qd_err *err)
{
    tabling w = { .from = g, .schedule = schedule, .t = t, .n_t = n_t };
    const size_t n = (size_t)qd_graph_size(g);
    qd_status st = QD_OK;
    if (qd_graph_find(g, "timestep") < 0 || n_t < 1)
        return qd_fail(err, QD_E_INVALID, "a table of time steps needs an input 'timestep' and at least one time step");
    w.timed = qd_calloc(n, sizeof *w.timed);
    w.root = qd_calloc(n, sizeof *w.root);
    w.shape = qd_calloc(n, sizeof *w.shape);
    w.elements = qd_calloc(n, sizeof *w.elements);
    w.map = qd_calloc(n, sizeof *w.map);
    if (!w.timed || !w.root || !w.shape || !w.elements || !w.map) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a table of %d time steps", n_t);
        goto out;
    }
    if ((st = find_roots(&w, err)) || (st = make_room(&w, qd_run_budget(run), err)) || (st = fill_rows(&w, run, err)))
        goto out;
    fill_places(&w);
    st = qd_graph_new(&w.to, err);
    if (st)
        goto out;
    rewrite(&w);
    st = qd_graph_verify(w.to, err);
    if (st)
        goto out;
    *out = w.to;
    w.to = NULL;
out:
    tabling_clear(&w);
    return st;
}
