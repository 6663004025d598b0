/* twin.c - the fake-quant twin: the same network with every code spelled out as the float it means (qncd.md 12.4). */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/quant_int.h"

typedef struct twin {
    const qd_graph *from;
    qd_graph *to;
    qd_node_id *map;
} twin;

static qd_node_id take(twin *w, qd_node_id id)
{
    if (id < 0)
        return -1;
    if (w->map[id] < 0)
        qd_graph_copy_node(w->to, w->from, id, w->map);
    return w->map[id];
}

/* The quantize node behind a value of codes, seen through nodes that only move codes; NULL when there is none. */
static const qd_node *maker_of(const qd_graph *g, qd_node_id id)
{
    const qd_node *n = qd_graph_node(g, id);
    while (n->op == &qd_op_reshape || n->op == &qd_op_permute || n->op == &qd_op_slice)
        n = qd_graph_node(g, n->input[0]);
    return n->op == &qd_op_quantize ? n : NULL;
}

/* In the twin codes carry their own meaning, so a reader must mean the same. */
static qd_status check_reader(const qd_graph *g, const qd_node *n, int k, const char *scale, const char *zero,
                              qd_err *err)
{
    const qd_node *maker = maker_of(g, n->input[k]);
    if (!maker)
        return qd_fail(err, QD_E_UNSUPPORTED, "'%s' reads codes that no quantize node made", n->name);
    if ((float)qd_node_float(maker, "scale") != (float)qd_node_float(n, scale) ||
        qd_node_int(maker, "zero") != qd_node_int(n, zero))
        return qd_fail(err, QD_E_UNSUPPORTED, "'%s' reads the codes of '%s' with another scale or zero", n->name,
                       maker->name);
    return QD_OK;
}

/* The constant weight of a quantized layer as floats, under its own name. */
static qd_status add_weight(twin *w, const qd_node *n, qd_node_id *id, qd_err *err)
{
    const qd_node *codes = qd_graph_node(w->from, n->input[1]), *wscale = qd_graph_node(w->from, n->input[2]);
    qd_tensor t;
    if (codes->op != &qd_op_const || wscale->op != &qd_op_const)
        return qd_fail(err, QD_E_UNSUPPORTED, "the weight of '%s' is not a constant", n->name);
    if (w->map[n->input[1]] >= 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "the weight '%s' has two readers", codes->name);
    qd_tensor plain = { 0 };
    qd_status st = qd_tensor_unpack(&plain, &codes->value, NULL, err);
    if (!st)
        st = qd_tensor_init(&t, QD_F32, &codes->shape, NULL, err);
    if (st)
        goto out;
    const int64_t rows = codes->shape.dim[0], channels = codes->shape.dim[1], group = qd_node_int(n, "group_size");
    const int64_t scales = qd_k_scales(channels, group), row = rows ? qd_tensor_count(&t) / rows : 0;
    const int64_t share = group ? row / channels * group : row; /* weights of a row that share a scale */
    for (int64_t k = 0; k < rows * row; k++)
        qd_f32(&t)[k] = (float)qd_i8(&plain)[k] * qd_f32(&wscale->value)[k / row * scales + k % row / share];
    *id = w->map[n->input[1]] = qd_graph_const(w->to, codes->name, &t);
    qd_tensor_clear(&t);
out:
    qd_tensor_clear(&plain);
    return st;
}

static qd_status add_layer(twin *w, qd_node_id id, const qd_op *op, qd_err *err)
{
    const qd_node *n = qd_graph_node(w->from, id);
    qd_node_id weight = -1;
    qd_attr attrs[QD_MAX_ATTRS];
    int n_attrs = 0;
    qd_status st = check_reader(w->from, n, 0, "x_scale", "x_zero", err);
    if (!st)
        st = add_weight(w, n, &weight, err);
    if (st)
        return st;
    for (int k = 0; k < n->n_attrs; k++)
        if (strcmp(n->attr[k].name, "x_scale") != 0 && strcmp(n->attr[k].name, "x_zero") != 0 &&
            strcmp(n->attr[k].name, "group_size") != 0)
            attrs[n_attrs++] = n->attr[k];
    const qd_node_id bias = n->n_inputs > 3 ? take(w, n->input[3]) : -1;
    const qd_node_id inputs[3] = { take(w, n->input[0]), weight, bias };
    w->map[id] = qd_graph_add(w->to, op, n->name, inputs, bias < 0 ? 2 : 3, attrs, n_attrs);
    return QD_OK;
}

static qd_status add_attention(twin *w, qd_node_id id, qd_err *err)
{
    static const char *const scales[3] = { "q_scale", "k_scale", "v_scale" };
    static const char *const zeros[3] = { "q_zero", "k_zero", "v_zero" };
    const qd_node *n = qd_graph_node(w->from, id);
    qd_node_id inputs[3];
    qd_status st = QD_OK;
    for (int k = 0; k < 3 && !st; k++) {
        st = check_reader(w->from, n, k, scales[k], zeros[k], err);
        inputs[k] = take(w, n->input[k]);
    }
    if (!st)
        w->map[id] = qd_graph_add(w->to, &qd_op_fake_attention, n->name, inputs, 3,
                                  QD_ATTRS(QD_INT("heads", qd_node_int(n, "heads")),
                                           QD_FLOAT("scale", qd_node_float(n, "scale")),
                                           QD_INT("softmax_bits", qd_node_int(n, "softmax_bits"))));
    return st;
}

static qd_status add_node(twin *w, qd_node_id id, qd_err *err)
{
    const qd_node *n = qd_graph_node(w->from, id);
    if (n->op == &qd_op_const)
        return QD_OK; /* comes along with its reader */
    if (n->op == &qd_op_qconv2d)
        return add_layer(w, id, &qd_op_conv2d, err);
    if (n->op == &qd_op_qlinear)
        return add_layer(w, id, &qd_op_linear, err);
    if (n->op == &qd_op_qattention)
        return add_attention(w, id, err);
    /* Codes that are a constant are the weights of a layer that computes in float: the same in the twin. */
    if (n->op == &qd_op_dequantize && qd_graph_node(w->from, n->input[0])->op != &qd_op_const) {
        const qd_status st = check_reader(w->from, n, 0, "scale", "zero", err);
        w->map[id] = take(w, n->input[0]);
        return st;
    }

    qd_node_id inputs[QD_MAX_INPUTS];
    for (int k = 0; k < n->n_inputs; k++)
        inputs[k] = take(w, n->input[k]);
    if (n->op == &qd_op_quantize)
        w->map[id] = qd_graph_add(w->to, &qd_op_fake_quant, n->name, inputs, n->n_inputs, n->attr, n->n_attrs);
    else
        take(w, id);
    return QD_OK;
}

qd_status qd_quant_fake_twin(const qd_graph *quantized, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(quantized);
    twin w = { .from = quantized };
    w.map = qd_alloc((size_t)n * sizeof *w.map);
    if (!w.map)
        return qd_fail(err, QD_E_NOMEM, "no memory for a twin of %d nodes", n);
    for (int k = 0; k < n; k++)
        w.map[k] = -1;

    qd_status st = qd_graph_new(&w.to, err);
    for (qd_node_id id = 0; id < n && !st; id++)
        st = add_node(&w, id, err);
    if (st)
        goto out;
    qd_graph_copy_outputs(w.to, w.from, w.map);
    st = qd_graph_verify(w.to, err);
    if (st)
        goto out;
    *out = w.to;
    w.to = NULL;
out:
    qd_graph_free(w.to);
    qd_free(w.map);
    return st;
}
