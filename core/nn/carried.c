/* carried.c - graphs that come with the model (ONNX files, bundles): what they are for, told by their inputs and outputs. */
#include <string.h>

#include "graph/op.h"
#include "nn/nn_int.h"

/* Inputs by what they look like: a picture [N, C, H, W] f32, one number for each sample [N]; -1 = none, -2 = several. */
typedef struct looks {
    qd_node_id picture, time;
} looks;

static looks look_at(const qd_graph *g)
{
    looks l = { -1, -1 };
    for (int k = 0; k < qd_graph_inputs(g); k++) {
        const qd_node_id id = qd_graph_input_at(g, k);
        const qd_node *n = qd_graph_node(g, id);
        if (n->shape.rank == 4 && n->dtype == QD_F32)
            l.picture = l.picture == -1 ? id : -2;
        else if (n->shape.rank == 1 && (n->dtype == QD_F32 || n->dtype == QD_I64))
            l.time = l.time == -1 ? id : -2;
    }
    return l;
}

/* Shape of the only output for one sample; rank -1 when there are several. */
static qd_status output_shape(const qd_graph *g, qd_shape *out, qd_err *err)
{
    const int n = qd_graph_inputs(g);
    out->rank = -1;
    if (qd_graph_outputs(g) != 1)
        return QD_OK;
    qd_shape *in = qd_calloc((size_t)n, sizeof(*in)), *all = qd_calloc((size_t)qd_graph_size(g), sizeof(*all));
    qd_status st = in && all ? QD_OK : qd_fail(err, QD_E_NOMEM, "out of memory for %d shapes", qd_graph_size(g));
    for (int k = 0; k < n && !st; k++) {
        in[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        if (in[k].rank && in[k].dim[0] == -1)
            in[k].dim[0] = 1;
    }
    if (!st)
        st = qd_graph_shapes(g, in, n, all, err);
    if (!st)
        *out = all[qd_graph_output_at(g, 0)];
    qd_free(in);
    qd_free(all);
    return st;
}

/* The same graph with the names every denoiser of the house has. */
static qd_status named_as_denoiser(const qd_graph *g, looks l, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(g);
    qd_graph *dst = NULL;
    qd_node_id *map = qd_alloc((size_t)n * sizeof(*map));
    qd_status st = map ? qd_graph_new(&dst, err) : qd_fail(err, QD_E_NOMEM, "out of memory for %d nodes", n);
    for (qd_node_id id = 0; id < n && !st; id++) {
        const qd_node *node = qd_graph_node(g, id);
        if (id == l.picture || id == l.time)
            map[id] = qd_graph_input(dst, id == l.picture ? "sample" : "timestep", node->dtype, &node->shape);
        else
            qd_graph_copy_node(dst, g, id, map);
    }
    if (!st) {
        qd_graph_output(dst, "eps", map[qd_graph_output_at(g, 0)]);
        st = qd_graph_verify(dst, err);
    }
    if (!st) {
        *out = dst;
        dst = NULL;
    }
    qd_graph_free(dst);
    qd_free(map);
    return st;
}

qd_status qd_carried_graph(const qd_graph *g, qd_graph **out, qd_role *role, qd_err *err)
{
    qd_graph *pruned = NULL;
    qd_shape made;
    qd_status st = qd_graph_prune(g, &pruned, err);
    if (!st)
        st = output_shape(pruned, &made, err);
    if (st)
        goto out;
    const looks l = look_at(pruned);
    const qd_shape *picture = l.picture >= 0 ? &qd_graph_node(pruned, l.picture)->shape : NULL;
    const bool answers_in_kind =
        picture && made.rank == 4 && memcmp(made.dim + 1, picture->dim + 1, 3 * sizeof(*made.dim)) == 0;
    const bool named = qd_graph_find(pruned, "sample") >= 0 && qd_graph_find(pruned, "timestep") >= 0;
    if (named && l.picture >= 0) {
        *role = QD_ROLE_DENOISER;
    } else if (answers_in_kind && l.time >= 0 && qd_graph_inputs(pruned) == 2) {
        st = named_as_denoiser(pruned, l, out, err);
        if (!st)
            *role = QD_ROLE_DENOISER;
        goto out;
    } else {
        *role = picture && qd_graph_inputs(pruned) == 1 && !answers_in_kind ? QD_ROLE_CLASSIFIER : QD_ROLE_OTHER;
    }
    *out = pruned;
    pruned = NULL; /* it is the caller's now */
out:
    qd_graph_free(pruned);
    return st;
}
