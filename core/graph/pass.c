/* pass.c - rewriting: a pass walks one graph and writes another, node by node through a map of ids. */
#include "graph/graph_int.h"

qd_node_id qd_graph_copy_node(qd_graph *dst, const qd_graph *src, qd_node_id id, qd_node_id *map)
{
    const qd_node *n = qd_graph_node(src, id);
    if (n->op == &qd_op_input)
        return map[id] = qd_graph_input(dst, n->name, n->dtype, &n->shape);
    if (n->op == &qd_op_const)
        return map[id] = qd_graph_const(dst, n->name, &n->value);

    qd_node_id inputs[QD_MAX_INPUTS];
    for (int k = 0; k < n->n_inputs; k++) {
        inputs[k] = n->input[k] < 0 ? -1 : map[n->input[k]];
        if (n->input[k] >= 0 && inputs[k] < 0)
            qd_graph_fail(dst, QD_E_INTERNAL, "node '%s' (%s) is copied before its input '%s'", n->name, n->op->name,
                          qd_graph_node(src, n->input[k])->name);
    }
    return map[id] = qd_graph_add(dst, n->op, n->name, inputs, n->n_inputs, n->attr, n->n_attrs);
}

void qd_graph_copy_outputs(qd_graph *dst, const qd_graph *src, const qd_node_id *map)
{
    for (int k = 0; k < src->n_outputs; k++)
        qd_graph_output(dst, src->outputs[k].name, map[src->outputs[k].id]);
}

qd_status qd_graph_prune(const qd_graph *g, qd_graph **out, qd_err *err)
{
    qd_graph *pruned = NULL;
    const size_t n_nodes = (size_t)g->n_nodes;
    qd_node_id *map = qd_alloc(n_nodes * sizeof *map);
    bool *live = qd_calloc(n_nodes + 1, sizeof *live);
    qd_status st = map && live ? QD_OK : qd_fail(err, QD_E_NOMEM, "out of memory to prune %d nodes", g->n_nodes);
    if (st)
        goto out;
    st = qd_graph_verify(g, err);
    if (st)
        goto out;
    st = qd_graph_new(&pruned, err);
    if (st)
        goto out;

    for (int k = 0; k < g->n_outputs; k++)
        live[g->outputs[k].id] = true;
    for (qd_node_id id = g->n_nodes - 1; id >= 0; id--) {
        const qd_node *n = g->entries[id].node;
        live[id] = live[id] || n->op == &qd_op_input;
        for (int k = 0; live[id] && k < n->n_inputs; k++)
            if (n->input[k] >= 0)
                live[n->input[k]] = true;
    }
    for (qd_node_id id = 0; id < g->n_nodes; id++) {
        map[id] = -1;
        if (live[id])
            qd_graph_copy_node(pruned, g, id, map);
    }
    qd_graph_copy_outputs(pruned, g, map);
    st = qd_graph_verify(pruned, err);
    if (st)
        goto out;
    *out = pruned;
    pruned = NULL; /* it is the caller's now */
out:
    qd_graph_free(pruned);
    qd_free(live);
    qd_free(map);
    return st;
}
