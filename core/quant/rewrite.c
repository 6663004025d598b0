/* rewrite.c - the float graph with its layers replaced: x -> quantize -> qconv2d, qlinear or qattention. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/qncd_int.h"

#define NAME_BYTES (QD_MAX_NAME + 32) /* room for suffixes: the graph refuses names over its own limit */

typedef struct rewrite {
    const qd_layout *layout;
    const qd_graph *from;
    qd_graph *to;
    qd_node_id *map;   // [nodes of from]
    qd_node_id *codes; // [quantizers]
} rewrite;

/* Constants come along with the first node that needs them, so that float weights nobody reads any more stay behind. */
static qd_node_id take(rewrite *w, qd_node_id id)
{
    if (id < 0)
        return -1;
    if (w->map[id] < 0)
        qd_graph_copy_node(w->to, w->from, id, w->map);
    return w->map[id];
}

/* A smoothed value is divided on its way into codes: the division itself is not computed (qncd.md 7.1). */
static qd_node_id add_divisor(rewrite *w, const char *layer, qd_node_id factor)
{
    char name[NAME_BYTES];
    qd_tensor divisor = qd_graph_node(w->from, factor)->value;
    divisor.shape = QD_SHAPE(qd_tensor_count(&divisor));
    snprintf(name, sizeof name, "%s.divisor", layer);
    return qd_graph_const(w->to, name, &divisor);
}

static qd_node_id add_codes(rewrite *w, const char *layer, int quantizer)
{
    char name[NAME_BYTES];
    const qd_quantizer *q = &w->layout->quantizers[quantizer];
    if (w->codes[quantizer] < 0) {
        qd_node_id value, factor, in[2] = { -1, -1 };
        if (q->axis == 1 && qd_smooth_is(w->from, q->value, &value, &factor)) {
            in[0] = take(w, value);
            in[1] = add_divisor(w, layer, factor);
        } else {
            in[0] = take(w, q->value);
        }
        snprintf(name, sizeof name, "%s.quantize", layer);
        w->codes[quantizer] =
            qd_graph_add(w->to, &qd_op_quantize, name, in, in[1] < 0 ? 1 : 2,
                         QD_ATTRS(QD_FLOAT("scale", q->map.scale), QD_INT("zero", q->map.zero),
                                  QD_INT("bits", q->map.bits), QD_INT("symmetric", q->map.symmetric)));
    }
    return w->codes[quantizer];
}

/* One part under `name`; bias -1 for none. */
static qd_node_id add_part(rewrite *w, const qd_node *n, const char *name, const qd_part *p, qd_node_id bias)
{
    char weight[NAME_BYTES], wscale[NAME_BYTES];
    qd_attr attrs[QD_MAX_ATTRS];
    const qd_affine *map = &w->layout->quantizers[p->quantizer].map;
    int n_attrs = 0;
    for (; n_attrs < n->n_attrs; n_attrs++)
        attrs[n_attrs] = n->attr[n_attrs];
    attrs[n_attrs++] = QD_FLOAT("x_scale", map->scale);
    attrs[n_attrs++] = QD_INT("x_zero", map->zero);
    attrs[n_attrs++] = QD_INT("group_size", p->group_size);

    snprintf(weight, sizeof weight, "%s.weight", name);
    snprintf(wscale, sizeof wscale, "%s.wscale", name);
    const qd_node_id inputs[4] = { add_codes(w, name, p->quantizer), qd_graph_const(w->to, weight, &p->codes),
                                   qd_graph_const(w->to, wscale, &p->wscale), bias };
    const qd_op *op = n->op == &qd_op_conv2d ? &qd_op_qconv2d : &qd_op_qlinear;
    return qd_graph_add(w->to, op, name, inputs, bias < 0 ? 3 : 4, attrs, n_attrs);
}

/* The layer as it was, its weight spelled out from codes and scales: a plan does so once, when it is compiled. */
static qd_node_id add_weight_only(rewrite *w, const qd_node *n, const qd_part *p, qd_node_id bias)
{
    char name[NAME_BYTES];
    qd_tensor wscale = p->wscale;
    for (int k = 1; k < p->codes.shape.rank; k++)
        wscale.shape.dim[wscale.shape.rank++] = 1;

    snprintf(name, sizeof name, "%s.weight", n->name);
    qd_node_id weight = qd_graph_const(w->to, name, &p->codes);
    snprintf(name, sizeof name, "%s.wscale", n->name);
    const qd_node_id scale = qd_graph_const(w->to, name, &wscale);
    snprintf(name, sizeof name, "%s.weight.dequantize", n->name);
    weight = qd_graph_add(w->to, &qd_op_dequantize, name, QD_IN(weight), QD_ATTRS(QD_FLOAT("scale", 1)));
    snprintf(name, sizeof name, "%s.weight.scaled", n->name);
    weight = qd_graph_add(w->to, &qd_op_mul, name, QD_IN(weight, scale), QD_NO_ATTRS);
    const qd_node_id inputs[3] = { take(w, n->input[0]), weight, bias };
    return qd_graph_add(w->to, n->op, n->name, inputs, bias < 0 ? 2 : 3, n->attr, n->n_attrs);
}

static void add_attention(rewrite *w, const qd_quant_attention *a)
{
    static const char *const suffix[3] = { ".q", ".k", ".v" };
    static const char *const scales[3] = { "q_scale", "k_scale", "v_scale" };
    static const char *const zeros[3] = { "q_zero", "k_zero", "v_zero" };
    const qd_node *n = qd_graph_node(w->from, a->id);
    qd_attr attrs[9] = { QD_INT("heads", qd_node_int(n, "heads")), QD_FLOAT("scale", qd_node_float(n, "scale")),
                         QD_INT("softmax_bits", a->softmax_bits) };
    qd_node_id codes[3];
    for (int k = 0; k < 3; k++) {
        char name[NAME_BYTES];
        const qd_affine *map = &w->layout->quantizers[a->quantizer[k]].map;
        snprintf(name, sizeof name, "%s%s", n->name, suffix[k]);
        codes[k] = add_codes(w, name, a->quantizer[k]);
        attrs[3 + 2 * k] = QD_FLOAT(scales[k], map->scale);
        attrs[4 + 2 * k] = QD_INT(zeros[k], map->zero);
    }
    w->map[a->id] = qd_graph_add(w->to, &qd_op_qattention, n->name, codes, 3, attrs, 9);
}

static qd_node_id add_bias(rewrite *w, const qd_node *n, const qd_quant_layer *layer)
{
    char name[NAME_BYTES];
    if (!layer->bias.data)
        return n->n_inputs > 2 ? take(w, n->input[2]) : -1;
    snprintf(name, sizeof name, "%s.corrected_bias", n->name);
    return qd_graph_const(w->to, name, &layer->bias);
}

void qd_layout_codes_name(const qd_layout *l, int quantizer, char *name, size_t size)
{
    for (int k = 0; k < l->n_layers; k++) {
        const qd_quant_layer *layer = &l->layers[k];
        for (int p = 0; p < layer->n_parts; p++)
            if (layer->part[p].quantizer == quantizer) {
                snprintf(name, size, "%s%s.quantize", qd_graph_node(l->graph, layer->id)->name,
                         layer->n_parts == 1 ? ""
                         : p                 ? ".split1"
                                             : ".split0");
                return;
            }
    }
    for (int k = 0; k < l->n_attentions; k++)
        for (int j = 0; j < 3 && !l->attentions[k].note; j++)
            if (l->attentions[k].quantizer[j] == quantizer) {
                snprintf(name, size, "%s.%c.quantize", qd_graph_node(l->graph, l->attentions[k].id)->name, "qkv"[j]);
                return;
            }
    snprintf(name, size, "?");
}

static void add_layer(rewrite *w, const qd_quant_layer *layer)
{
    const qd_node *n = qd_graph_node(w->from, layer->id);
    const qd_node_id bias = add_bias(w, n, layer);
    if (layer->weight_only) {
        w->map[layer->id] = add_weight_only(w, n, &layer->part[0], bias);
        return;
    }
    if (layer->n_parts == 1) {
        w->map[layer->id] = add_part(w, n, n->name, &layer->part[0], bias);
        return;
    }
    qd_node_id half[2];
    for (int k = 0; k < 2; k++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, k ? "%s.split1" : "%s.split0", n->name);
        half[k] = add_part(w, n, name, &layer->part[k], k == 0 ? bias : -1);
    }
    w->map[layer->id] = qd_graph_add(w->to, &qd_op_add, n->name, QD_IN(half[0], half[1]), QD_NO_ATTRS);
}

static void add_all(rewrite *w)
{
    int next = 0, next_attention = 0; /* both are in graph order */
    for (qd_node_id id = 0; id < qd_graph_size(w->from); id++) {
        const qd_node *n = qd_graph_node(w->from, id);
        const qd_quant_layer *layer = NULL;
        if (next < w->layout->n_layers && w->layout->layers[next].id == id)
            layer = &w->layout->layers[next++];
        const qd_quant_attention *attention = NULL;
        if (next_attention < w->layout->n_attentions && w->layout->attentions[next_attention].id == id)
            attention = &w->layout->attentions[next_attention++];
        if (n->op == &qd_op_const)
            continue;
        if (attention && !attention->note) {
            add_attention(w, attention);
            continue;
        }
        if (layer && (!layer->note || layer->weight_only)) {
            add_layer(w, layer);
            continue;
        }
        for (int k = 0; k < n->n_inputs; k++)
            take(w, n->input[k]);
        take(w, id);
    }
}

qd_status qd_layout_apply(const qd_layout *l, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(l->graph);
    rewrite w = { .layout = l, .from = l->graph };
    qd_status st = QD_E_NOMEM;
    w.map = qd_alloc((size_t)n * sizeof *w.map);
    w.codes = qd_alloc((size_t)l->n_quantizers * sizeof *w.codes);
    if (!w.map || !w.codes) {
        qd_fail(err, st, "no memory to rewrite %d nodes", n);
        goto out;
    }
    for (int k = 0; k < n; k++)
        w.map[k] = -1;
    for (int k = 0; k < l->n_quantizers; k++)
        w.codes[k] = -1;

    st = qd_graph_new(&w.to, err);
    if (st)
        goto out;
    add_all(&w);
    qd_graph_copy_outputs(w.to, w.from, w.map);
    st = qd_graph_verify(w.to, err);
    if (st)
        goto out;
    /* A concat that only a split shortcut read is dead now, and so is a division that became a divisor. */
    st = qd_graph_prune(w.to, out, err);
out:
    qd_graph_free(w.to);
    qd_free(w.codes);
    qd_free(w.map);
    return st;
}
