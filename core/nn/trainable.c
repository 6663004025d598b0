/* trainable.c - a network for inference rewritten for training: constants that learn become inputs, batch norms take the
 * statistics of their batch; and back, with what was learned. */
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "nn/train_int.h"

/* Which operands of an operator are weights. */
static const struct {
    const qd_op *op;
    unsigned operands; /* bits */
} weighted[] = {
    { &qd_op_conv2d, 6 },     { &qd_op_conv_transpose2d, 6 }, { &qd_op_linear, 6 },     { &qd_op_matmul, 3 },
    { &qd_op_group_norm, 6 }, { &qd_op_layer_norm, 6 },       { &qd_op_batch_norm, 6 }, { &qd_op_embedding, 2 },
    { &qd_op_fake_quant, 1 }, { &qd_op_learned_quant, 3 },
};

/* Marks the constants that node n reads as weights. */
static void mark(const qd_graph *g, const qd_node *n, bool *learns)
{
    for (size_t k = 0; k < sizeof weighted / sizeof *weighted; k++)
        for (int i = 0; weighted[k].op == n->op && i < n->n_inputs; i++)
            if (weighted[k].operands >> i & 1 && n->input[i] >= 0) {
                const qd_node *c = qd_graph_node(g, n->input[i]);
                learns[n->input[i]] |= c->op == &qd_op_const && c->dtype == QD_F32;
            }
}

static bool is_const(const qd_graph *g, qd_node_id id)
{
    return id >= 0 && qd_graph_node(g, id)->op == &qd_op_const;
}

static qd_status add_slot(qd_learned **rows, int *n, qd_node_id from, qd_node_id id, qd_err *err)
{
    qd_learned *more = qd_realloc(*rows, ((size_t)*n + 1) * sizeof **rows);
    if (!more)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d parameters", *n + 1);
    *rows = more;
    more[(*n)++] = (qd_learned){ .from = from, .id = id };
    return QD_OK;
}

/* batch_norm -> batch_norm_train, with the statistics as a value of their own. */
static qd_status train_norm(qd_trainable *t, const qd_graph *g, qd_node_id id, qd_node_id *map, qd_err *err)
{
    const qd_node *n = qd_graph_node(g, id);
    char name[QD_MAX_NAME + 1];
    if (snprintf(name, sizeof name, "%s.stats", n->name) >= (int)sizeof name)
        return qd_fail(err, QD_E_LIMIT, "the name of batch norm '%s' is too long for its statistics'", n->name);
    const qd_node_id x = map[n->input[0]];
    const qd_node_id stats = qd_graph_add(t->graph, &qd_op_batch_norm_stats, name, QD_IN(x), QD_NO_ATTRS);
    map[id] =
        qd_graph_add(t->graph, &qd_op_batch_norm_train, n->name, QD_IN(x, map[n->input[1]], map[n->input[2]], stats),
                     QD_ATTRS(QD_FLOAT("eps", qd_node_float(n, "eps"))));
    return add_slot(&t->norms, &t->n_norms, id, stats, err);
}

qd_status qd_trainable_make(const qd_trainer_options *o, qd_trainable *t, qd_err *err)
{
    const qd_graph *g = o->network;
    const int n = qd_graph_size(g);
    bool *learns = qd_calloc((size_t)n + 1, sizeof *learns);
    qd_node_id *map = qd_alloc(((size_t)n + 1) * sizeof *map), outputs[QD_MAX_OUTPUTS];
    qd_status st = learns && map ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory to prepare %d nodes for training", n);
    if (!st)
        st = qd_graph_verify(g, err);
    if (!st)
        st = qd_graph_new(&t->graph, err);
    if (st)
        goto out;
    for (qd_node_id id = 0; id < n; id++)
        mark(g, qd_graph_node(g, id), learns);
    for (qd_node_id id = 0; id < n && !st; id++) {
        const qd_node *node = qd_graph_node(g, id);
        if (learns[id] && (!o->trains || o->trains(o->ctx, node->name))) {
            map[id] = qd_graph_input(t->graph, node->name, QD_F32, &node->shape);
            st = add_slot(&t->params, &t->n_params, id, map[id], err);
        } else if (node->op == &qd_op_batch_norm && o->batch_norm == QD_BN_TRAIN && is_const(g, node->input[3]) &&
                   is_const(g, node->input[4])) {
            st = train_norm(t, g, id, map, err);
        } else {
            qd_graph_copy_node(t->graph, g, id, map);
        }
    }
    if (!st && t->n_params == 0)
        st = qd_fail(err, QD_E_INVALID, "the network has no weights to train");
    for (int k = 0; k < qd_graph_outputs(g); k++)
        outputs[k] = map[qd_graph_output_at(g, k)];
    if (!st)
        st = o->loss(o->ctx, t->graph, outputs, qd_graph_outputs(g), &t->loss, err);
    if (!st)
        qd_graph_output(t->graph, "loss", t->loss);
    if (!st)
        st = qd_graph_verify(t->graph, err);
    for (int k = 0; k < t->n_norms && !st; k++)
        qd_graph_output(t->graph, qd_graph_node(t->graph, t->norms[k].id)->name, t->norms[k].id);
    if (!st)
        st = qd_graph_verify(t->graph, err);
out:
    qd_free(map);
    qd_free(learns);
    return st;
}

void qd_trainable_clear(qd_trainable *t)
{
    qd_graph_free(t->graph);
    qd_free(t->params);
    qd_free(t->norms);
    *t = (qd_trainable){ 0 };
}

qd_status qd_trainable_finish(const qd_graph *network, const float *(*learned)(const void *ctx, qd_node_id id),
                              const void *ctx, qd_budget *budget, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(network);
    qd_graph *g = NULL;
    qd_node_id *map = qd_alloc(((size_t)n + 1) * sizeof *map);
    qd_status st = map ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory to copy %d nodes", n);
    if (!st)
        st = qd_graph_new(&g, err);
    for (qd_node_id id = 0; id < n && !st; id++) {
        const qd_node *node = qd_graph_node(network, id);
        const float *data = node->op == &qd_op_const ? learned(ctx, id) : NULL;
        if (!data) {
            qd_graph_copy_node(g, network, id, map);
            continue;
        }
        qd_tensor value = { 0 };
        st = qd_tensor_init(&value, QD_F32, &node->shape, budget, err);
        if (!st) {
            memcpy(value.data, data, qd_tensor_bytes(&value));
            map[id] = qd_graph_const(g, node->name, &value);
        }
        qd_tensor_clear(&value);
    }
    if (!st) {
        qd_graph_copy_outputs(g, network, map);
        st = qd_graph_verify(g, err);
    }
    if (!st) {
        *out = g;
        g = NULL;
    }
    qd_graph_free(g);
    qd_free(map);
    return st;
}
