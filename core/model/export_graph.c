/* export_graph.c - a graph with its weights taken from a file for others: what a reader of that file computes, in floats. */
#include "model/export.h"

#include <stdio.h>
#include <string.h>

/* One walk from the graph to its float twin. */
typedef struct walk {
    const qd_export *e;
    const qd_weights *weights;
    qd_budget *budget;
    qd_graph *to;
    qd_node_id *map; // [nodes]
    int *tensor;     // [nodes] 1 + index of the exported tensor a node is the first part of, 0 = none
} walk;

/* Tensor k of the export as the weights have it, as floats where it was. */
static qd_status take(const walk *w, int k, qd_tensor *out, qd_err *err)
{
    const qd_export_tensor *t = &w->e->tensor[k];
    const qd_node *n = qd_graph_node(w->e->graph, t->part[0]);
    const qd_tensor *have = qd_weights_find(w->weights, t->name);
    if (!have)
        return qd_fail(err, QD_E_FORMAT, "there is no tensor '%.200s'", t->name);
    if (n->op == &qd_op_const && n->dtype != QD_F32 && have->dtype == n->dtype) {
        qd_tensor_share(out, have);
        return QD_OK;
    }
    return qd_tensor_cast(out, have, n->op == &qd_op_const ? n->dtype : QD_F32, w->budget, err);
}

/* Input channels [first, first + shape.dim[1]) of a weight, under `name`. */
static qd_node_id add_part(walk *w, const char *name, const qd_tensor *whole, const qd_shape *shape, int64_t first,
                           qd_status *st, qd_err *err)
{
    qd_tensor part = { 0 };
    int64_t inner = 1;
    if (whole->shape.rank != shape->rank || whole->shape.dim[0] != shape->dim[0] ||
        whole->shape.dim[1] < first + shape->dim[1]) {
        *st = qd_fail(err, QD_E_FORMAT, "tensor '%.200s' has another shape", name);
        return -1;
    }
    for (int k = 2; k < shape->rank; k++) {
        inner *= shape->dim[k];
        if (whole->shape.dim[k] != shape->dim[k]) {
            *st = qd_fail(err, QD_E_FORMAT, "tensor '%.200s' has another shape", name);
            return -1;
        }
    }
    *st = qd_tensor_init(&part, QD_F32, shape, w->budget, err);
    if (*st)
        return -1;
    const int64_t row = shape->dim[1] * inner, all = whole->shape.dim[1] * inner;
    for (int64_t o = 0; o < shape->dim[0]; o++)
        memcpy(qd_f32(&part) + o * row, qd_f32(whole) + o * all + first * inner, (size_t)row * sizeof(float));
    const qd_node_id id = qd_graph_const(w->to, name, &part);
    qd_tensor_clear(&part);
    return id;
}

/* The float twin of an integer layer: its codes spelled out, its weight from the file. Halves of a split layer share a tensor. */
static qd_status add_layer(walk *w, qd_node_id id, qd_err *err)
{
    const qd_graph *g = w->e->graph;
    const qd_node *n = qd_graph_node(g, id);
    const qd_shape *shape = &qd_graph_node(g, n->input[1])->shape;
    const bool conv = n->op == &qd_op_qconv2d;
    qd_tensor whole = { 0 };
    qd_attr attrs[4];
    char name[QD_MAX_NAME + 1];
    int64_t first = 0;
    int k = w->tensor[id] - 1, n_attrs = 0;
    for (int j = 0; k < 0 && j < w->e->n; j++)
        if (w->e->tensor[j].part[1] == id) {
            k = j;
            first = qd_graph_node(g, qd_graph_node(g, w->e->tensor[j].part[0])->input[1])->shape.dim[1];
        }
    if (k < 0)
        return qd_fail(err, QD_E_INTERNAL, "'%s' gives no tensor", n->name);
    qd_status st = take(w, k, &whole, err);
    if (st)
        return st;
    snprintf(name, sizeof(name), "%.180s.from_file", n->name);
    const qd_node_id weight = add_part(w, name, &whole, shape, first, &st, err);
    qd_tensor_clear(&whole);
    if (st)
        return st;
    snprintf(name, sizeof(name), "%.180s.spelled_out", n->name);
    const qd_node_id x = qd_graph_add(
        w->to, &qd_op_dequantize, name, QD_IN(w->map[n->input[0]]),
        QD_ATTRS(QD_FLOAT("scale", qd_node_float(n, "x_scale")), QD_INT("zero", qd_node_int(n, "x_zero"))));
    static const char *const window[] = { "stride", "pads", "dilation", "groups" };
    for (int a = 0; conv && a < n->n_attrs; a++)
        for (size_t j = 0; j < sizeof(window) / sizeof(window[0]); j++)
            if (strcmp(n->attr[a].name, window[j]) == 0)
                attrs[n_attrs++] = n->attr[a];
    const qd_node_id bias = n->n_inputs > 3 && n->input[3] >= 0 ? w->map[n->input[3]] : -1;
    w->map[id] = qd_graph_add(w->to, conv ? &qd_op_conv2d : &qd_op_linear, n->name, (qd_node_id[]){ x, weight, bias },
                              bias < 0 ? 2 : 3, attrs, n_attrs);
    return QD_OK;
}

static qd_status add_const(walk *w, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_graph_node(w->e->graph, id);
    qd_tensor t = { 0 };
    qd_status st = take(w, w->tensor[id] - 1, &t, err);
    if (!st && n->op == &qd_op_const && !qd_shape_equal(&t.shape, &n->shape))
        st = qd_fail(err, QD_E_FORMAT, "tensor '%.200s' has another shape", w->e->tensor[w->tensor[id] - 1].name);
    if (!st)
        w->map[id] = qd_graph_const(w->to, n->name, &t);
    qd_tensor_clear(&t);
    return st;
}

static qd_status add_all(walk *w, qd_err *err)
{
    const qd_graph *g = w->e->graph;
    qd_status st = QD_OK;
    for (int k = 0; k < w->e->n; k++)
        w->tensor[w->e->tensor[k].part[0]] = k + 1;
    for (qd_node_id id = 0; id < qd_graph_size(g) && !st; id++) {
        const qd_node *n = qd_graph_node(g, id);
        if (n->op == &qd_op_qconv2d || n->op == &qd_op_qlinear)
            st = add_layer(w, id, err);
        else if (w->tensor[id])
            st = add_const(w, id, err);
        else
            qd_graph_copy_node(w->to, g, id, w->map);
    }
    if (st)
        return st;
    qd_graph_copy_outputs(w->to, g, w->map);
    return qd_graph_verify(w->to, err);
}

qd_status qd_graph_with_weights(const qd_graph *g, const qd_weights *weights, qd_budget *budget, qd_graph **out,
                                qd_err *err)
{
    const size_t n = (size_t)qd_graph_size(g);
    qd_export e;
    walk w = { .e = &e, .weights = weights, .budget = budget };
    qd_status st = qd_export_init(&e, g, err);
    if (st)
        return st;
    w.map = qd_calloc(n, sizeof(*w.map));
    w.tensor = qd_calloc(n, sizeof(*w.tensor));
    st = w.map && w.tensor ? qd_graph_new(&w.to, err) : qd_fail(err, QD_E_NOMEM, "out of memory for %zu nodes", n);
    if (!st)
        st = add_all(&w, err);
    if (!st)
        st = qd_graph_prune(w.to, out, err);
    qd_graph_free(w.to);
    qd_free(w.tensor);
    qd_free(w.map);
    qd_export_clear(&e);
    return st;
}
