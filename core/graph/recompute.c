/* recompute.c - less memory for more work (Chen et al. 2016): the backward pass makes values of the forward pass again instead of having them
 * kept since.
 *
 * Kept values are read through a `detach`, so that nothing takes a value made again for the one made before. A value is made again
 * where the backward pass first wants it, with all that lies between it and the kept ones: a block at a time. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "graph/graph_int.h"

#define MOST_SEGMENTS 64

typedef struct again {
    const qd_graph *g;
    qd_graph *to;
    int forward;
    bool *keep;          /* of forward nodes */
    qd_node_id *map;     /* of g's nodes in `to` */
    qd_node_id *copy;    /* of forward nodes: made again; -1 = not yet */
    qd_node_id *through; /* of forward nodes: their detach; -1 = none */
    qd_node_id *stack;
} again;

/* Operands of which backward nodes read the shape alone. */
static bool shape_alone(const qd_node *n, int k)
{
    static const struct {
        const qd_op *op;
        int first, last;
    } rows[] = { { &qd_op_conv2d_grad_input, 2, 2 }, { &qd_op_conv2d_grad_weight, 2, 2 },
                 { &qd_op_sum_like, 1, 1 },          { &qd_op_reshape_like, 1, 1 },
                 { &qd_op_reduce_grad, 1, 1 },       { &qd_op_slice_grad, 1, 1 },
                 { &qd_op_gather_grad, 2, 2 },       { &qd_op_concat_grad, 1, QD_MAX_INPUTS },
                 { &qd_op_avg_pool_grad, 1, 1 } };
    for (size_t j = 0; j < sizeof rows / sizeof *rows; j++)
        if (rows[j].op == n->op)
            return k >= rows[j].first && k <= rows[j].last;
    return false;
}

/* Is it there anyway, or to be kept? */
static bool is_kept(const again *a, qd_node_id id)
{
    const qd_node *n = a->g->entries[id].node;
    if (n->n_inputs == 0 || a->keep[id] || n->dtype != QD_F32)
        return true;
    for (int k = 0; k < n->n_inputs; k++) /* something of it must be f32 to be read anew */
        if (n->input[k] >= 0 && a->g->entries[n->input[k]].node->dtype == QD_F32 &&
            a->g->entries[n->input[k]].node->op != &qd_op_const)
            return false;
    return true;
}

/* A kept value as those see it that are made again. */
static qd_node_id seen_again(again *a, qd_node_id id)
{
    const qd_node *n = a->g->entries[id].node;
    char name[QD_MAX_NAME + 1];
    if (n->op == &qd_op_const || n->dtype != QD_F32)
        return a->map[id];
    if (a->through[id] < 0) {
        snprintf(name, sizeof name, "kept.%d:%.*s", (int)id, QD_MAX_NAME - 20, n->name);
        a->through[id] = qd_graph_add(a->to, &qd_op_detach, name, QD_IN(a->map[id]), QD_NO_ATTRS);
    }
    return a->through[id];
}

/* Make forward value `id` again, and what it needs; a stack in place of recursion, for graphs are deep. */
static void make_again(again *a, qd_node_id id)
{
    int depth = 0;
    a->stack[depth++] = id;
    while (depth > 0) {
        const qd_node_id at = a->stack[depth - 1];
        const qd_node *n = a->g->entries[at].node;
        qd_node_id in[QD_MAX_INPUTS];
        bool ready = true;
        for (int k = 0; k < n->n_inputs && ready; k++) {
            const qd_node_id x = n->input[k];
            in[k] = -1;
            if (x >= 0 && !is_kept(a, x) && a->copy[x] < 0) {
                a->stack[depth++] = x;
                ready = false;
            } else if (x >= 0) {
                in[k] = is_kept(a, x) ? seen_again(a, x) : a->copy[x];
            }
        }
        if (!ready)
            continue;
        char name[QD_MAX_NAME + 1];
        snprintf(name, sizeof name, "again.%d:%.*s", (int)at, QD_MAX_NAME - 20, n->name);
        a->copy[at] = qd_graph_add(a->to, n->op, name, in, n->n_inputs, n->attr, n->n_attrs);
        depth--;
        if (a->to->failure.status)
            return;
    }
}

static void copy_backward(again *a, qd_node_id id)
{
    const qd_node *n = a->g->entries[id].node;
    qd_node_id in[QD_MAX_INPUTS];
    if (n->n_inputs == 0) {
        qd_graph_copy_node(a->to, a->g, id, a->map);
        return;
    }
    for (int k = 0; k < n->n_inputs; k++) {
        const qd_node_id x = n->input[k];
        in[k] = x < 0 ? -1 : a->map[x];
        if (x < 0 || x >= a->forward || is_kept(a, x) || shape_alone(n, k))
            continue;
        if (a->copy[x] < 0)
            make_again(a, x);
        in[k] = a->copy[x];
    }
    a->map[id] = qd_graph_add(a->to, n->op, n->name, in, n->n_inputs, n->attr, n->n_attrs);
}

qd_status qd_graph_recompute(const qd_graph *g, int forward, const bool *keep, qd_graph **out, qd_err *err)
{
    const size_t n = (size_t)g->n_nodes + 1;
    again a = { .g = g, .forward = forward };
    qd_status st = qd_graph_verify(g, err);
    if (!st && (forward < 0 || forward > g->n_nodes))
        st = qd_fail(err, QD_E_INVALID, "the forward pass has %d nodes of %d", forward, g->n_nodes);
    if (st)
        return st;
    a.map = qd_alloc(n * 4 * sizeof *a.map);
    a.keep = qd_calloc(n, sizeof *a.keep);
    if (!a.map || !a.keep) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory to rewrite %d nodes", g->n_nodes);
        goto out;
    }
    memset(a.map, 0xff, n * 4 * sizeof *a.map); /* -1 */
    for (int k = 0; k < forward; k++)
        a.keep[k] = keep[k];
    for (int k = 0; k < g->n_outputs; k++)
        a.keep[g->outputs[k].id] = true;
    a.copy = a.map + n;
    a.through = a.copy + n;
    a.stack = a.through + n;
    st = qd_graph_new(&a.to, err);
    for (qd_node_id id = 0; !st && id < g->n_nodes && !a.to->failure.status; id++)
        if (id < forward)
            qd_graph_copy_node(a.to, g, id, a.map);
        else
            copy_backward(&a, id);
    if (!st) {
        qd_graph_copy_outputs(a.to, g, a.map);
        st = qd_graph_verify(a.to, err);
    }
    if (!st) {
        *out = a.to;
        a.to = NULL; /* it is the caller's now */
    }
out:
    qd_graph_free(a.to);
    qd_free(a.keep);
    qd_free(a.map);
    return st;
}

/* --- what to keep --- */

typedef struct choice {
    const qd_graph *g;
    double *bytes;    /* of each value; 0 for those that lie in another's place, or outside */
    qd_node_id *last; /* the last that reads it; -1 = nobody */
    double *crossing; /* bytes made by then and read later */
    qd_node_id *cuts; /* [MOST_SEGMENTS] */
} choice;

static double bytes_of(const qd_graph *g, qd_node_id id, const qd_shape *shapes)
{
    const qd_node *n = g->entries[id].node;
    double bytes = (double)qd_dtype_bits(n->dtype) / 8.0;
    if (n->n_inputs == 0 || n->op == &qd_op_reshape || n->op == &qd_op_detach || n->op == &qd_op_reshape_like)
        return 0.0;
    for (int k = 0; k < shapes[id].rank; k++)
        bytes *= (double)shapes[id].dim[k];
    return bytes;
}

static void measure(const choice *c, const qd_shape *shapes)
{
    const int n = c->g->n_nodes;
    for (qd_node_id id = 0; id < n; id++) {
        c->bytes[id] = bytes_of(c->g, id, shapes);
        c->last[id] = -1;
        c->crossing[id] = 0.0;
        for (int k = 0; k < c->g->entries[id].node->n_inputs; k++)
            if (c->g->entries[id].node->input[k] >= 0)
                c->last[c->g->entries[id].node->input[k]] = id;
    }
    for (qd_node_id id = 0; id < n; id++) /* what begins to cross, less what ends, then summed up */
        if (c->last[id] > id) {
            c->crossing[id] += c->bytes[id];
            c->crossing[c->last[id]] -= c->bytes[id];
        }
    for (qd_node_id id = 1; id < n; id++)
        c->crossing[id] += c->crossing[id - 1];
}

/* Cuts about `most` bytes apart, each where least crosses it; returns how many. */
static int cut(const choice *c, double most)
{
    int n = 0;
    qd_node_id first = 0;
    while (n < MOST_SEGMENTS) {
        double made = 0.0;
        qd_node_id best = -1, id = first;
        for (; id < c->g->n_nodes && made <= most; id++) {
            made += c->bytes[id];
            if (made > most * 0.5 && c->bytes[id] > 0.0 && (best < 0 || c->crossing[id] <= c->crossing[best]))
                best = id;
        }
        if (id == c->g->n_nodes || best < 0)
            break;
        c->cuts[n++] = best;
        first = best + 1;
    }
    return n;
}

/* Marks what crosses the cuts, and all behind the last, where the backward pass begins; returns the bytes of what crosses and of the largest
 * segment, which are held at once. */
static double weigh(const choice *c, int n_cuts, bool *keep)
{
    double kept = 0.0, largest = 0.0, segment = 0.0;
    int next = 0;
    for (qd_node_id id = 0; id < c->g->n_nodes; id++) {
        bool crosses = false;
        for (int k = 0; k < n_cuts; k++)
            crosses |= id <= c->cuts[k] && c->last[id] > c->cuts[k];
        keep[id] = crosses || next == n_cuts;
        *(crosses ? &kept : &segment) += c->bytes[id];
        if (next < n_cuts && c->cuts[next] == id) {
            next++;
            largest = fmax(largest, segment);
            segment = 0.0;
        }
    }
    return kept + fmax(largest, segment);
}

qd_status qd_graph_keep_choice(const qd_graph *g, const qd_shape *shapes, bool *keep, qd_err *err)
{
    const size_t n = (size_t)g->n_nodes + 1;
    qd_node_id cuts[MOST_SEGMENTS];
    choice c = { .g = g, .cuts = cuts };
    double total = 0.0, best = INFINITY;
    int best_parts = 2;
    c.bytes = qd_alloc(n * 2 * sizeof *c.bytes);
    c.last = qd_alloc(n * sizeof *c.last);
    if (!c.bytes || !c.last) {
        qd_free(c.bytes);
        qd_free(c.last);
        return qd_fail(err, QD_E_NOMEM, "out of memory to choose among %d values", g->n_nodes);
    }
    c.crossing = c.bytes + n;
    measure(&c, shapes);
    for (qd_node_id id = 0; id < g->n_nodes; id++)
        total += c.bytes[id];
    for (int parts = 2; parts < MOST_SEGMENTS; parts++) {
        const double held = weigh(&c, cut(&c, total / parts), keep);
        if (held < best) {
            best = held;
            best_parts = parts;
        }
    }
    weigh(&c, cut(&c, total / best_parts), keep);
    qd_free(c.bytes);
    qd_free(c.last);
    return QD_OK;
}
