/* autograd.c - reverse mode: a graph in, the same graph with its derivatives as further nodes out.
 *
 * Nodes are visited from the loss back. Each has at most one derivative, the sum of what its readers gave; the rule of its row turns
 * it into derivatives of its inputs. Only nodes between what is asked for and the loss are visited. */
#include <stdio.h>
#include <string.h>

#include "graph/graph_int.h"
#include "graph/op_int.h"

typedef struct tape {
    const qd_graph *from;
    qd_graph *g;       /* nodes of `from` have the same ids here */
    qd_shape *doubled; /* of the nodes of `from`, for batch 2; NULL when a shape rule knows batch 1 alone */
    bool *needed;      /* leads from something asked for */
    qd_node_id *grad;  /* -1 = none yet */
    qd_node_id *map;
} tape;

/* Names of derivatives: "grad.<number>:<node>", unique by the number. */
static void grad_name(const qd_graph *g, const char *of, char name[QD_MAX_NAME + 1])
{
    snprintf(name, QD_MAX_NAME + 1, "grad.%d:%.*s", qd_graph_size(g), QD_MAX_NAME - 20, of);
}

qd_node_id qd_back_add(qd_backward *b, const qd_op *op, const qd_node_id *inputs, int n_inputs, const qd_attr *attrs,
                       int n_attrs)
{
    char name[QD_MAX_NAME + 1];
    grad_name(b->graph, b->node->name, name);
    return qd_graph_add(b->graph, op, name, inputs, n_inputs, attrs, n_attrs);
}

const qd_shape *qd_back_shape(const qd_backward *b, qd_node_id id)
{
    static const qd_shape none = { .rank = 0 };
    return id < 0 ? &none : &b->graph->entries[id].probe;
}

bool qd_back_same_shape(const qd_backward *b, qd_node_id x, qd_node_id y)
{
    return qd_shape_equal(qd_back_shape(b, x), qd_back_shape(b, y)) && b->doubled &&
           qd_shape_equal(&b->doubled[x], &b->doubled[y]);
}

/* Shapes for batch 2: what is equal for both is equal for every batch. */
static qd_status double_batch(tape *t, qd_err *err)
{
    const int n_inputs = qd_graph_inputs(t->from);
    qd_shape *given = qd_alloc(((size_t)n_inputs + 1) * sizeof *given);
    t->doubled = qd_alloc(((size_t)t->from->n_nodes + 1) * sizeof *t->doubled);
    if (!given || !t->doubled) {
        qd_free(given);
        return qd_fail(err, QD_E_NOMEM, "out of memory for the shapes of %d nodes", t->from->n_nodes);
    }
    for (int k = 0; k < n_inputs; k++) {
        given[k] = qd_graph_node(t->from, qd_graph_input_at(t->from, k))->shape;
        if (given[k].rank > 0 && given[k].dim[0] == -1)
            given[k].dim[0] = 2;
    }
    if (qd_graph_shapes(t->from, given, n_inputs, t->doubled, NULL)) {
        qd_free(t->doubled);
        t->doubled = NULL;
    }
    qd_free(given);
    return QD_OK;
}

static void accumulate(tape *t, qd_node_id id, qd_node_id part)
{
    char name[QD_MAX_NAME + 1];
    if (part < 0)
        return;
    if (t->grad[id] >= 0) {
        grad_name(t->g, qd_graph_node(t->g, id)->name, name);
        part = qd_graph_add(t->g, &qd_op_add, name, QD_IN(t->grad[id], part), QD_NO_ATTRS);
    }
    t->grad[id] = part;
}

/* Derivatives of the inputs of one node. */
static void visit(tape *t, qd_node_id id)
{
    const qd_node *n = qd_graph_node(t->g, id);
    qd_backward b = { .graph = t->g, .node = n, .id = id, .dy = t->grad[id], .doubled = t->doubled };
    bool any = false;
    for (int k = 0; k < QD_MAX_INPUTS; k++) {
        b.dx[k] = -1;
        b.want[k] = k < n->n_inputs && n->input[k] >= 0 && t->needed[n->input[k]] &&
                    qd_graph_node(t->g, n->input[k])->dtype == QD_F32;
        any |= b.want[k];
    }
    if (!any)
        return;
    if (!n->op->backward) {
        qd_graph_fail(t->g, QD_E_UNSUPPORTED, "node '%s' (%s) cannot be differentiated: %s", n->name, n->op->name,
                      n->op->no_gradient);
        return;
    }
    n->op->backward(&b);
    for (int k = 0; k < n->n_inputs && !t->g->failure.status; k++)
        if (b.want[k])
            accumulate(t, n->input[k], b.dx[k]);
}

static qd_status copy_forward(tape *t, const qd_node_id *wrt, int n_wrt, qd_err *err)
{
    const int n = t->from->n_nodes;
    for (qd_node_id id = 0; id < n; id++) {
        const qd_node *node = t->from->entries[id].node;
        qd_graph_copy_node(t->g, t->from, id, t->map);
        t->grad[id] = -1;
        t->needed[id] = false;
        for (int k = 0; k < node->n_inputs; k++)
            t->needed[id] |= node->input[k] >= 0 && t->needed[node->input[k]];
        for (int k = 0; k < n_wrt; k++)
            t->needed[id] |= wrt[k] == id;
    }
    qd_graph_copy_outputs(t->g, t->from, t->map);
    return t->g->failure.status ? qd_graph_verify(t->g, err) : QD_OK;
}

static void add_outputs(tape *t, const qd_node_id *wrt, int n_wrt)
{
    for (int k = 0; k < n_wrt && !t->g->failure.status; k++) {
        char name[QD_MAX_NAME + 1];
        const qd_node *n = qd_graph_node(t->g, wrt[k]);
        if (t->grad[wrt[k]] < 0) { /* the loss does not depend on it */
            grad_name(t->g, n->name, name);
            t->grad[wrt[k]] = qd_graph_add(t->g, &qd_op_affine, name, QD_IN(wrt[k]), QD_ATTRS(QD_FLOAT("mul", 0.0)));
        }
        if (snprintf(name, sizeof name, QD_GRADIENT_PREFIX "%s", n->name) >= (int)sizeof name)
            qd_graph_fail(t->g, QD_E_LIMIT, "the name of '%s' is too long for its gradient's", n->name);
        qd_graph_output(t->g, name, t->grad[wrt[k]]);
    }
}

static qd_status check_question(const qd_graph *g, qd_node_id loss, const qd_node_id *wrt, int n_wrt, qd_err *err)
{
    char text[160];
    if (g->failure.status)
        return qd_fail(err, g->failure.status, "%s", g->failure.text);
    if (loss < 0 || loss >= g->n_nodes)
        return qd_fail(err, QD_E_INVALID, "the loss is node %d of %d", loss, g->n_nodes);
    const qd_node *n = g->entries[loss].node;
    if (n->dtype != QD_F32 || g->entries[loss].probe.rank != 0)
        return qd_fail(err, QD_E_INVALID, "the loss '%s' is %s %s, must be one f32 without axes", n->name,
                       qd_dtype_name(n->dtype), qd_shape_text(&g->entries[loss].probe, text, sizeof text));
    for (int k = 0; k < n_wrt; k++) {
        if (wrt[k] < 0 || wrt[k] >= g->n_nodes)
            return qd_fail(err, QD_E_INVALID, "a gradient is asked for by node %d of %d", wrt[k], g->n_nodes);
        if (g->entries[wrt[k]].node->dtype != QD_F32)
            return qd_fail(err, QD_E_INVALID, "a gradient is asked for by '%s', which is %s",
                           g->entries[wrt[k]].node->name, qd_dtype_name(g->entries[wrt[k]].node->dtype));
    }
    return QD_OK;
}

qd_status qd_graph_gradient(const qd_graph *g, qd_node_id loss, const qd_node_id *wrt, int n_wrt, qd_graph **out,
                            qd_err *err)
{
    const qd_shape scalar = { .rank = 0 };
    tape t = { .from = g };
    qd_tensor seed = { 0 };
    qd_status st = check_question(g, loss, wrt, n_wrt, err);
    if (st)
        return st;
    t.needed = qd_calloc((size_t)g->n_nodes + 1, sizeof *t.needed);
    t.grad = qd_alloc(((size_t)g->n_nodes + 1) * sizeof *t.grad);
    t.map = qd_alloc(((size_t)g->n_nodes + 1) * sizeof *t.map);
    if (!t.needed || !t.grad || !t.map) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory to differentiate %d nodes", g->n_nodes);
        goto out;
    }
    st = qd_graph_new(&t.g, err);
    if (st)
        goto out;
    st = copy_forward(&t, wrt, n_wrt, err);
    if (st)
        goto out;
    st = double_batch(&t, err);
    if (st)
        goto out;
    st = qd_tensor_init(&seed, QD_F32, &scalar, NULL, err);
    if (st)
        goto out;
    *qd_f32(&seed) = 1.0f;

    t.grad[loss] = qd_graph_const(t.g, "grad.seed", &seed);
    for (qd_node_id id = loss; id >= 0 && !t.g->failure.status; id--)
        if (t.grad[id] >= 0 && t.needed[id] && qd_graph_node(t.g, id)->n_inputs > 0)
            visit(&t, id);
    add_outputs(&t, wrt, n_wrt);
    st = qd_graph_verify(t.g, err);
    if (st)
        goto out;
    *out = t.g;
    t.g = NULL; /* it is the caller's now */
out:
    qd_tensor_clear(&seed);
    qd_graph_free(t.g);
    qd_free(t.doubled);
    qd_free(t.map);
    qd_free(t.grad);
    qd_free(t.needed);
    return st;
}
