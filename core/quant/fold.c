/* fold.c - batch norms into the layers before them: W' = W g / sqrt(var + eps), b' = (b - mean) g / sqrt(var + eps) + beta. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/quant_int.h"

typedef struct fold {
    const qd_graph *from;
    qd_graph *to;
    qd_node_id *map;  // [nodes]
    int *uses;        // [nodes]
    qd_node_id *norm; // [nodes]: the norm that swallows this layer, -1 = none
    qd_shape *shapes; // [nodes], batch 1
    qd_budget *budget;
    int folded;
} fold;

static bool is_constant(const qd_graph *g, qd_node_id id)
{
    const qd_node *n = id < 0 ? NULL : qd_graph_node(g, id);
    return n && n->op == &qd_op_const && n->dtype == QD_F32;
}

/* The layer whose value this norm alone reads, when both are made of constants; -1 = none. */
static qd_node_id layer_of(const fold *f, qd_node_id id)
{
    const qd_node *b = qd_graph_node(f->from, id);
    const qd_node_id x = b->input[0];
    const qd_node *n = qd_graph_node(f->from, x);
    if ((n->op != &qd_op_conv2d && n->op != &qd_op_linear) || f->uses[x] != 1)
        return -1;
    if (n->op == &qd_op_linear && f->shapes[x].rank != 2)
        return -1; /* the norm's channels are not the layer's outputs */
    for (int k = 1; k < 5; k++)
        if (!is_constant(f->from, b->input[k]))
            return -1;
    return is_constant(f->from, n->input[1]) &&
                   (n->n_inputs < 3 || n->input[2] < 0 || is_constant(f->from, n->input[2]))
               ? x
               : -1;
}

static qd_node_id take(fold *f, qd_node_id id)
{
    if (id < 0)
        return -1;
    if (f->map[id] < 0)
        qd_graph_copy_node(f->to, f->from, id, f->map);
    return f->map[id];
}

/* A name for a new constant: the old one's when nobody else reads that, else one nobody has. */
static void name_constant(const fold *f, qd_node_id old, const char *layer, const char *what,
                          char out[QD_MAX_NAME + 32])
{
    if (old >= 0 && f->uses[old] == 1) {
        snprintf(out, QD_MAX_NAME + 32, "%s", qd_graph_node(f->from, old)->name);
        return;
    }
    snprintf(out, QD_MAX_NAME + 32, "%s.%s", layer, what);
    if (qd_graph_find(f->from, out) >= 0)
        snprintf(out, QD_MAX_NAME + 32, "%s.folded_%s", layer, what);
}

static qd_status add_folded(fold *f, qd_node_id layer, qd_node_id norm, qd_err *err)
{
    const qd_graph *g = f->from;
    const qd_node *n = qd_graph_node(g, layer), *b = qd_graph_node(g, norm);
    const qd_node *w = qd_graph_node(g, n->input[1]);
    const qd_node_id old_bias = n->n_inputs > 2 ? n->input[2] : -1;
    const float *gamma = qd_f32(&qd_graph_node(g, b->input[1])->value),
                *beta = qd_f32(&qd_graph_node(g, b->input[2])->value),
                *mean = qd_f32(&qd_graph_node(g, b->input[3])->value),
                *var = qd_f32(&qd_graph_node(g, b->input[4])->value);
    const double eps = qd_node_float(b, "eps");
    const int64_t out = w->shape.dim[0], row = out ? qd_tensor_count(&w->value) / out : 0;
    const qd_shape channels = QD_SHAPE(out);
    char name[QD_MAX_NAME + 32];
    qd_tensor weight = { 0 }, bias = { 0 };

    qd_status st = qd_tensor_init(&weight, QD_F32, &w->shape, f->budget, err);
    if (!st)
        st = qd_tensor_init(&bias, QD_F32, &channels, f->budget, err);
    if (st)
        goto out;
    for (int64_t o = 0; o < out; o++) {
        const double s = gamma[o] / sqrt((double)var[o] + eps);
        const double b0 = old_bias >= 0 ? qd_f32(&qd_graph_node(g, old_bias)->value)[o] : 0.0;
        for (int64_t k = o * row; k < (o + 1) * row; k++)
            qd_f32(&weight)[k] = (float)(qd_f32(&w->value)[k] * s);
        qd_f32(&bias)[o] = (float)((b0 - mean[o]) * s + beta[o]);
    }
    name_constant(f, n->input[1], n->name, "weight", name);
    const qd_node_id wid = qd_graph_const(f->to, name, &weight);
    name_constant(f, old_bias, n->name, "bias", name);
    const qd_node_id bid = qd_graph_const(f->to, name, &bias);
    f->map[norm] = qd_graph_add(f->to, n->op, n->name, QD_IN(take(f, n->input[0]), wid, bid), n->attr, n->n_attrs);
    f->folded++;
out:
    qd_tensor_clear(&bias);
    qd_tensor_clear(&weight);
    return st;
}

static qd_status add_node(fold *f, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_graph_node(f->from, id);
    if (n->op == &qd_op_const || f->norm[id] >= 0)
        return QD_OK; /* comes along with its reader, or inside its norm */
    if (n->op == &qd_op_batch_norm && f->norm[n->input[0]] == id)
        return add_folded(f, n->input[0], id, err);
    for (int k = 0; k < n->n_inputs; k++)
        take(f, n->input[k]);
    take(f, id);
    return QD_OK;
}

qd_status qd_fold_norms(const qd_graph *g, qd_budget *budget, int *folded, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(g);
    fold f = { .from = g, .budget = budget };
    qd_status st = QD_E_NOMEM;
    f.map = qd_alloc((size_t)n * sizeof *f.map);
    f.norm = qd_alloc((size_t)n * sizeof *f.norm);
    f.uses = qd_calloc((size_t)n, sizeof *f.uses);
    f.shapes = qd_calloc((size_t)n, sizeof *f.shapes);
    if (!f.map || !f.norm || !f.uses || !f.shapes) {
        qd_fail(err, st, "no memory to fold the norms of %d nodes", n);
        goto out;
    }
    for (int k = 0; k < n; k++)
        f.map[k] = f.norm[k] = -1;
    qd_graph_uses(g, f.uses);
    if ((st = qd_layout_shapes(g, f.shapes, err)) || (st = qd_graph_new(&f.to, err)))
        goto out;
    for (qd_node_id id = 0; id < n; id++) {
        const qd_node_id layer = qd_graph_node(g, id)->op == &qd_op_batch_norm ? layer_of(&f, id) : -1;
        if (layer >= 0)
            f.norm[layer] = id;
    }
    for (qd_node_id id = 0; id < n && !st; id++)
        st = add_node(&f, id, err);
    if (st)
        goto out;
    qd_graph_copy_outputs(f.to, g, f.map);
    st = qd_graph_verify(f.to, err);
    if (st)
        goto out;
    *folded = f.folded;
    *out = f.to;
    f.to = NULL;
out:
    qd_graph_free(f.to);
    qd_free(f.shapes);
    qd_free(f.uses);
    qd_free(f.norm);
    qd_free(f.map);
    return st;
}
