/* attention.c - what of attention runs on codes: the policy `transformer`, and the quantizers of q, k and v (qncd.md 4.2). */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/quant_int.h"

static const char note_off[] = "its products are left in float";
static const char note_time[] = "depends on the time step only: computed in float";
static const char note_scale[] = "a negative factor of the scores: computed in float";
static const char note_keys[] = "more tokens than sums in int32 hold for certain";

int qd_transformer_policy_find(const char *name)
{
    static const char *const names[] = { "linear", "fp", "w8a8", "wXaY" };
    for (int k = 0; k < (int)(sizeof names / sizeof *names); k++)
        if (strcmp(name, names[k]) == 0)
            return k;
    return -1;
}

bool qd_is_token_layer(const qd_graph *g, qd_node_id id, const qd_shape *shapes)
{
    const qd_node *n = qd_graph_node(g, id);
    return n->op == &qd_op_linear && shapes[n->input[0]].rank == 3;
}

static const char *note_of(const qd_graph *g, qd_node_id id, const qd_shape *shapes, const bool *on_sample,
                           const qd_layout_options *o)
{
    const qd_node *n = qd_graph_node(g, id);
    if (o->transformer != QD_TRANSFORMER_W8A8 && o->transformer != QD_TRANSFORMER_SAME)
        return note_off;
    if (!on_sample[id])
        return note_time;
    if (qd_node_float(n, "scale") < 0.0)
        return note_scale;
    return shapes[n->input[1]].dim[1] > QD_K_MAX_PRODUCTS ? note_keys : NULL;
}

qd_status qd_layout_find_attention(qd_layout *l, const qd_shape *shapes, const bool *on_sample,
                                   const qd_layout_options *o, qd_err *err)
{
    int found = 0;
    for (qd_node_id id = 0; id < qd_graph_size(l->graph); id++)
        found += qd_graph_node(l->graph, id)->op == &qd_op_attention;
    if (!found)
        return QD_OK;
    l->attentions = qd_calloc((size_t)found, sizeof *l->attentions);
    qd_quantizer *more = qd_realloc(l->quantizers, ((size_t)l->n_quantizers + 3 * (size_t)found) * sizeof *more);
    if (more)
        l->quantizers = more;
    if (!l->attentions || !more)
        return qd_fail(err, QD_E_NOMEM, "no memory to lay out %d attentions", found);
    for (qd_node_id id = 0; id < qd_graph_size(l->graph); id++) {
        const qd_node *n = qd_graph_node(l->graph, id);
        if (n->op != &qd_op_attention)
            continue;
        qd_quant_attention *a = &l->attentions[l->n_attentions++];
        *a = (qd_quant_attention){ .id = id, .softmax_bits = o->softmax_bits };
        a->note = note_of(l->graph, id, shapes, on_sample, o);
        for (int k = 0; k < 3 && !a->note; k++) {
            a->quantizer[k] = qd_layout_quantizer(l, n->input[k], 2, shapes[n->input[k]].dim[2]);
            if (o->transformer == QD_TRANSFORMER_W8A8)
                l->quantizers[a->quantizer[k]].bits = 8;
        }
    }
    return QD_OK;
}
