/* train_plan.c - from a network that is trained to the plan of one step: its derivatives, what is made again instead of kept, the bytes it
 * takes, and what to say when they are too many. */
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "nn/train_int.h"

static size_t count_of(const qd_shape *s)
{
    size_t n = 1;
    for (int k = 0; k < s->rank; k++)
        n *= (size_t)s->dim[k];
    return n;
}

void qd_train_inputs(const qd_trainable *t, int64_t batch, qd_shape *given)
{
    for (int k = 0; k < qd_graph_inputs(t->graph); k++) {
        given[k] = qd_graph_node(t->graph, qd_graph_input_at(t->graph, k))->shape;
        if (given[k].rank > 0 && given[k].dim[0] == -1)
            given[k].dim[0] = batch;
    }
}

/* The values that are kept: those the caller names, or where the least has to be. */
static qd_status choose(const qd_trainable *t, const qd_trainer_options *o, const qd_shape *shapes, bool *keep,
                        qd_err *err)
{
    if (!o->keeps)
        return qd_graph_keep_choice(t->graph, shapes, keep, err);
    for (qd_node_id id = 0; id < qd_graph_size(t->graph); id++)
        keep[id] = o->keeps(o->ctx, qd_graph_node(t->graph, id)->name);
    return QD_OK;
}

static qd_status differentiate(const qd_trainable *t, const qd_trainer_options *o, const qd_shape *shapes,
                               qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(t->graph);
    qd_graph *g = NULL;
    bool *keep = NULL;
    qd_node_id *wrt = qd_alloc(((size_t)t->n_params + 1) * sizeof *wrt);
    qd_status st = wrt ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %d parameters", t->n_params);
    for (int k = 0; k < t->n_params && wrt; k++)
        wrt[k] = t->params[k].id;
    if (!st)
        st = qd_graph_gradient(t->graph, t->loss, wrt, t->n_params, &g, err);
    if (!st && o->recompute) {
        keep = qd_calloc((size_t)n + 1, sizeof *keep);
        st =
            keep ? choose(t, o, shapes, keep, err) : qd_fail(err, QD_E_NOMEM, "no memory to choose among %d values", n);
        if (!st)
            st = qd_graph_recompute(g, n, keep, out, err);
    } else if (!st) {
        *out = g;
        g = NULL;
    }
    qd_graph_free(g);
    qd_free(keep);
    qd_free(wrt);
    return st;
}

qd_status qd_train_compile(const qd_trainable *t, const qd_trainer_options *o, const qd_run *run, size_t *needs,
                           qd_plan **out, qd_err *err)
{
    const int n_inputs = qd_graph_inputs(t->graph), n = qd_graph_size(t->graph);
    qd_graph *g = NULL;
    /* While the plan is made: the derivatives, about three times the network, perhaps rewritten with the network once more. */
    size_t nodes = 8 * (size_t)n * sizeof(qd_node);
    qd_shape *given = qd_calloc((size_t)n_inputs + 1, sizeof *given), *all = qd_calloc((size_t)n + 1, sizeof *all);
    qd_status st = qd_budget_draw(qd_run_budget(run), nodes, "the graph of a training step", err);
    if (st)
        nodes = 0;
    else if (!given || !all)
        st = qd_fail(err, QD_E_NOMEM, "no memory for %d shapes", n);
    if (st)
        goto out;
    qd_train_inputs(t, o->batch_size, given);
    st = qd_graph_shapes(t->graph, given, n_inputs, all, err);
    if (!st)
        st = differentiate(t, o, all, &g, err);
    if (st)
        goto out;
    const qd_plan_options options = { .input_shapes = given,
                                      .n_inputs = n_inputs,
                                      .threads = qd_run_threads(run),
                                      .backend = o->backend,
                                      .budget = qd_run_budget(run),
                                      .needs_bytes = needs,
                                      .profile = o->profile };
    st = qd_plan_compile(g, &options, out, err);
    if (!st && needs)
        *needs += nodes;
out:
    qd_budget_give(qd_run_budget(run), nodes);
    qd_graph_free(g);
    qd_free(all);
    qd_free(given);
    return st;
}

/* Bytes of a step at that batch: what its inputs and its plan take. 0 when that cannot be said. */
static size_t bytes_at(const qd_trainable *t, const qd_trainer_options *o, const qd_run *run, int64_t batch,
                       bool recompute)
{
    qd_trainer_options other = *o;
    qd_plan *none = NULL;
    size_t bytes = 0;
    other.batch_size = batch;
    other.recompute = recompute;
    if (qd_train_compile(t, &other, run, &bytes, &none, NULL))
        return 0;
    return bytes + qd_train_data_bytes(t, batch);
}

size_t qd_train_data_bytes(const qd_trainable *t, int64_t batch)
{
    size_t bytes = 0;
    for (int k = 0, param = 0; k < qd_graph_inputs(t->graph); k++) {
        const qd_node_id id = qd_graph_input_at(t->graph, k);
        const qd_node *n = qd_graph_node(t->graph, id);
        qd_shape s = n->shape;
        if (param < t->n_params && t->params[param].id == id) {
            param++;
            continue;
        }
        if (s.rank > 0 && s.dim[0] == -1)
            s.dim[0] = batch;
        bytes += count_of(&s) * qd_dtype_bits(n->dtype) / 8;
    }
    return bytes;
}

/* The largest batch below `batch` whose step takes `room` bytes at most; 0 = none. */
static int64_t largest_batch(const qd_trainable *t, const qd_trainer_options *o, const qd_run *run, bool recompute,
                             size_t room)
{
    int64_t fits = 0, too_large = o->batch_size;
    while (too_large - fits > 1) {
        const int64_t at = fits + (too_large - fits) / 2;
        const size_t bytes = bytes_at(t, o, run, at, recompute);
        if (bytes && bytes <= room)
            fits = at;
        else
            too_large = at;
    }
    return fits;
}

qd_status qd_train_refuse(const qd_trainable *t, const qd_trainer_options *o, const qd_run *run, size_t arrays,
                          qd_err *err)
{
    const qd_budget *b = qd_run_budget(run);
    const size_t others = b->used_bytes, free_bytes = b->limit_bytes > others ? b->limit_bytes - others : 0;
    char advice[256];
    if (arrays >= free_bytes)
        return qd_fail(
            err, QD_E_LIMIT,
            "training needs %zu bytes for parameters, gradients and the optimizer's state alone; this job may "
            "use %zu bytes, of which %zu are in use: no batch fits",
            arrays, b->limit_bytes, others);
    const size_t room = free_bytes - arrays;
    const size_t wanted = bytes_at(t, o, run, o->batch_size, o->recompute);
    const size_t again = o->recompute ? 0 : bytes_at(t, o, run, o->batch_size, true);
    const int64_t batch = largest_batch(t, o, run, o->recompute, room);
    if (again && again <= room && batch)
        snprintf(advice, sizeof advice, "a batch of %lld fits, or with recompute this batch does (%zu bytes)",
                 (long long)batch, arrays + again);
    else if (again && again <= room)
        snprintf(advice, sizeof advice, "with recompute this batch fits (%zu bytes)", arrays + again);
    else if (batch)
        snprintf(advice, sizeof advice, "a batch of %lld fits", (long long)batch);
    else {
        const int64_t smaller = o->recompute ? 0 : largest_batch(t, o, run, true, room);
        if (smaller)
            snprintf(advice, sizeof advice, "with recompute a batch of %lld fits", (long long)smaller);
        else
            snprintf(advice, sizeof advice, "no batch fits");
    }
    if (!wanted)
        return qd_fail(
            err, QD_E_LIMIT,
            "training with a batch of %lld does not fit into the %zu bytes this job may use, of which %zu are "
            "in use: %s",
            (long long)o->batch_size, b->limit_bytes, others, advice);
    return qd_fail(
        err, QD_E_LIMIT,
        "training with a batch of %lld needs %zu bytes; this job may use %zu bytes, of which %zu are in use: %s",
        (long long)o->batch_size, arrays + wanted, b->limit_bytes, others, advice);
}
