/* export.c - the tensors of a graph for others: under the names they had before anything was quantized, as floats. */
#include "model/export.h"

#include <string.h>

static bool ends_with(const char *s, const char *tail)
{
    const size_t n = strlen(s), m = strlen(tail);
    return n > m && strcmp(s + n - m, tail) == 0;
}

static qd_status add(qd_export *e, const qd_export_tensor *t, qd_err *err)
{
    if (qd_names_find(&e->names, t->name) >= 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "two tensors would be called '%.200s'", t->name);
    qd_status st = qd_names_add(&e->names, t->name, err);
    if (st)
        return st;
    e->tensor[e->n] = *t;
    e->tensor[e->n].name = e->names.name[e->n];
    e->n++;
    return QD_OK;
}

static bool is_integer_layer(const qd_node *n)
{
    return n->op == &qd_op_qconv2d || n->op == &qd_op_qlinear;
}

/* An integer layer gives its weight, for both halves of a split one at the first, and its bias. */
static qd_status add_layer(qd_export *e, qd_node_id id, bool *taken, qd_err *err)
{
    const qd_node *n = qd_graph_node(e->graph, id);
    const bool first = ends_with(n->name, ".split0"), second = ends_with(n->name, ".split1");
    const size_t length = strlen(n->name) - (first || second ? strlen(".split0") : 0);
    qd_export_tensor t = { .part = { id, -1 }, .layer = true };
    char name[QD_MAX_NAME + 32];
    qd_status st = QD_OK;

    for (int k = 1; k < n->n_inputs; k++)
        if (n->input[k] >= 0) {
            if (qd_graph_node(e->graph, n->input[k])->op != &qd_op_const)
                return qd_fail(err, QD_E_UNSUPPORTED, "operand %d of '%s' is not a constant", k, n->name);
            taken[n->input[k]] = true;
        }
    if (first) {
        char other[QD_MAX_NAME + 8];
        snprintf(other, sizeof(other), "%.*s.split1", (int)length, n->name);
        t.part[1] = qd_graph_find(e->graph, other);
        if (t.part[1] < 0 || qd_graph_node(e->graph, t.part[1])->op != n->op)
            return qd_fail(err, QD_E_UNSUPPORTED, "'%s' has no other half", n->name);
    }
    if (!second) {
        snprintf(name, sizeof(name), "%.*s.weight", (int)length, n->name);
        t.name = name;
        st = add(e, &t, err);
    }
    if (!st && n->n_inputs > 3 && n->input[3] >= 0) {
        snprintf(name, sizeof(name), "%.*s.bias", (int)length, n->name);
        st = add(e, &(qd_export_tensor){ .name = name, .part = { n->input[3], -1 } }, err);
    }
    return st;
}

/* Weights of a float layer that are kept in codes: dequantize, then times their scales. */
static bool is_spelled_out(const qd_graph *g, const qd_node *n)
{
    if (n->op != &qd_op_mul)
        return false;
    const qd_node *d = qd_graph_node(g, n->input[0]), *scale = qd_graph_node(g, n->input[1]);
    return d->op == &qd_op_dequantize && qd_node_float(d, "scale") == 1.0 && !qd_node_int(d, "zero") &&
           scale->op == &qd_op_const && scale->dtype == QD_F32 && qd_graph_node(g, d->input[0])->op == &qd_op_const &&
           qd_tensor_count(&scale->value) == qd_graph_node(g, d->input[0])->shape.dim[0];
}

static qd_status list_all(qd_export *e, bool *taken, bool *weight, qd_err *err)
{
    const qd_graph *g = e->graph;
    qd_status st = QD_OK;
    for (qd_node_id id = 0; id < qd_graph_size(g) && !st; id++) {
        const qd_node *n = qd_graph_node(g, id);
        if ((n->op == &qd_op_conv2d || n->op == &qd_op_linear) && n->input[1] >= 0)
            weight[n->input[1]] = true;
        if (is_integer_layer(n)) {
            st = add_layer(e, id, taken, err);
        } else if (is_spelled_out(g, n)) {
            const qd_node_id codes = qd_graph_node(g, n->input[0])->input[0];
            taken[codes] = taken[n->input[1]] = true;
            st = add(e, &(qd_export_tensor){ .name = qd_graph_node(g, codes)->name, .part = { id, -1 }, .layer = true },
                     err);
        }
    }
    for (qd_node_id id = 0; id < qd_graph_size(g) && !st; id++)
        if (qd_graph_node(g, id)->op == &qd_op_const && !taken[id])
            st = add(e,
                     &(qd_export_tensor){ .name = qd_graph_node(g, id)->name, .part = { id, -1 }, .layer = weight[id] },
                     err);
    return st;
}

qd_status qd_export_init(qd_export *e, const qd_graph *g, qd_err *err)
{
    const size_t n = (size_t)qd_graph_size(g);
    bool *taken = qd_calloc(2 * n, sizeof(*taken)); /* and the weights of float layers */
    *e = (qd_export){ .graph = g };
    e->tensor = qd_calloc(2 * n, sizeof(*e->tensor)); /* a layer gives two at most */
    qd_status st = taken && e->tensor ? QD_OK : qd_fail(err, QD_E_NOMEM, "out of memory for %zu tensors", n);
    if (!st)
        st = list_all(e, taken, taken + n, err);
    qd_free(taken);
    if (st)
        qd_export_clear(e);
    return st;
}

void qd_export_clear(qd_export *e)
{
    qd_names_clear(&e->names);
    qd_free(e->tensor);
    *e = (qd_export){ 0 };
}

/* Codes, scales and the step between two of them for one half. */
typedef struct half {
    qd_tensor codes; // I8
    const float *scale;
    int64_t scales, share; /* of a row; codes of a row under one */
    int bits;
} half;

static qd_status half_of(const qd_graph *g, qd_node_id id, half *h, qd_err *err)
{
    const qd_node *n = qd_graph_node(g, id);
    const bool integer = is_integer_layer(n);
    const qd_node *codes = qd_graph_node(g, integer ? n->input[1] : qd_graph_node(g, n->input[0])->input[0]);
    const int64_t group = integer ? qd_node_int(n, "group_size") : 0;
    int64_t kernel = 1;
    for (int k = 2; k < codes->shape.rank; k++)
        kernel *= codes->shape.dim[k];
    *h = (half){ .scale = qd_f32(&qd_graph_node(g, n->input[integer ? 2 : 1])->value),
                 .scales = qd_k_scales(codes->shape.dim[1], group),
                 .share = (group ? group : codes->shape.dim[1]) * kernel,
                 .bits = (int)qd_dtype_bits(codes->dtype) };
    return qd_tensor_unpack(&h->codes, &codes->value, NULL, err);
}

qd_status qd_export_make(const qd_export *e, int k, qd_budget *budget, qd_tensor *out, float **steps, int *bits,
                         qd_err *err)
{
    const qd_export_tensor *t = &e->tensor[k];
    const qd_node *n = qd_graph_node(e->graph, t->part[0]);
    half h[2] = { 0 };
    qd_tensor whole = { 0 };
    float *step = NULL;
    qd_status st = QD_OK;

    if (n->op == &qd_op_const) {
        if (n->dtype == QD_F32 || n->dtype == QD_I64 || n->dtype == QD_I32)
            qd_tensor_share(out, &n->value);
        else
            st = qd_tensor_cast(out, &n->value, QD_F32, budget, err);
        if (!st && bits)
            *bits = 0;
        return st;
    }
    const int halves = t->part[1] >= 0 ? 2 : 1;
    for (int j = 0; j < halves && !st; j++)
        st = half_of(e->graph, t->part[j], &h[j], err);
    if (st)
        goto out;
    qd_shape shape = h[0].codes.shape;
    if (halves > 1)
        shape.dim[1] += h[1].codes.shape.dim[1];
    st = qd_tensor_init(&whole, QD_F32, &shape, budget, err);
    if (st)
        goto out;
    const int64_t count = qd_tensor_count(&whole), row = shape.dim[0] ? count / shape.dim[0] : 0;
    if (steps) {
        step = qd_alloc((size_t)(count ? count : 1) * sizeof(float));
        if (!step) {
            st = qd_fail(err, QD_E_NOMEM, "out of memory for the steps of '%s'", t->name);
            goto out;
        }
    }
    for (int64_t o = 0; o < shape.dim[0]; o++) {
        int64_t at = o * row;
        for (int j = 0; j < halves; j++) {
            const int64_t each = qd_tensor_count(&h[j].codes) / shape.dim[0];
            for (int64_t i = 0; i < each; i++, at++) {
                const float s = h[j].scale[o * h[j].scales + i / h[j].share];
                qd_f32(&whole)[at] = (float)qd_i8(&h[j].codes)[o * each + i] * s;
                if (step)
                    step[at] = s;
            }
        }
    }
    *out = whole;
    if (steps)
        *steps = step;
    if (bits)
        *bits = h[0].bits;
    step = NULL;
    whole = (qd_tensor){ 0 };
out:
    qd_free(step);
    qd_tensor_clear(&whole);
    qd_tensor_clear(&h[0].codes);
    qd_tensor_clear(&h[1].codes);
    return st;
}

qd_status qd_graph_float_weights(const qd_graph *g, qd_budget *budget, qd_weights **out, qd_err *err)
{
    qd_export e;
    qd_weights *w = NULL;
    qd_status st = qd_export_init(&e, g, err);
    if (st)
        return st;
    st = qd_weights_new(&w, err);
    for (int k = 0; k < e.n && !st; k++) {
        qd_tensor t = { 0 };
        st = qd_export_make(&e, k, budget, &t, NULL, NULL, err);
        if (!st)
            st = qd_weights_add(w, e.tensor[k].name, &t, err);
        qd_tensor_clear(&t);
    }
    qd_export_clear(&e);
    if (st)
        qd_weights_free(w);
    else
        *out = w;
    return st;
}
