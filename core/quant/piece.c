/* piece.c - a piece of a network as a graph of its own: values given come in as inputs, weights as floats, codes or inputs. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/recon_int.h"

qd_status qd_layer_restore(const qd_layout *l, const qd_quant_layer *layer, float *weight, qd_err *err)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const qd_shape *shape = &qd_graph_node(l->graph, n->input[1])->value.shape;
    const int64_t inner = shape->rank == 4 ? shape->dim[2] * shape->dim[3] : 1, columns = shape->dim[1] * inner;
    for (int k = 0; k < layer->n_parts; k++) {
        const qd_part *p = &layer->part[k];
        const int64_t channels = p->codes.shape.dim[1], scales = qd_k_scales(channels, p->group_size);
        const int64_t length = channels * inner, group = p->group_size ? p->group_size * inner : length;
        qd_tensor codes = { 0 };
        const qd_status st = qd_tensor_unpack(&codes, &p->codes, NULL, err);
        if (st)
            return st;
        for (int64_t o = 0; o < shape->dim[0]; o++)
            for (int64_t c = 0; c < length; c++)
                weight[o * columns + p->first * inner + c] =
                    (float)qd_i8(&codes)[o * length + c] * qd_f32(&p->wscale)[o * scales + c / group];
        qd_tensor_clear(&codes);
    }
    return QD_OK;
}

/* --- cutting --- */

typedef struct cutter {
    const qd_piece_spec *s;
    const qd_graph *from;
    qd_budget *budget;
    qd_piece *out;
    bool *given, *needed; // [nodes]
    int *layer_of;        // [nodes]: number in the layout of a layer with codes, -1 = none
    qd_err *err;
} cutter;

static bool is_own(const cutter *c, int layer)
{
    const qd_block *b = c->s->block;
    for (int k = 0; c->s->weights == QD_PIECE_INPUTS && k < b->n_layers; k++)
        if (b->layers[k] == layer)
            return true;
    return false;
}

static void mark_needed(cutter *c)
{
    for (int k = 0; k < c->s->n_given; k++)
        c->given[c->s->given[k]] = true;
    for (int k = 0; k < c->s->n_wanted; k++)
        c->needed[c->s->wanted[k]] = true;
    for (qd_node_id id = qd_graph_size(c->from) - 1; id >= 0; id--) {
        const qd_node *n = qd_graph_node(c->from, id);
        for (int k = 0; c->needed[id] && !c->given[id] && k < n->n_inputs; k++)
            if (n->input[k] >= 0)
                c->needed[n->input[k]] = true;
    }
}

static qd_node_id take(cutter *c, qd_node_id id)
{
    /* Constants come along with their reader: float weights nobody reads stay behind. */
    if (id >= 0 && c->out->id[id] < 0)
        qd_graph_copy_node(c->out->graph, c->from, id, c->out->id);
    return id < 0 ? -1 : c->out->id[id];
}

static qd_status add_weight(cutter *c, int number, qd_node_id *id)
{
    const qd_layout *l = c->s->layout;
    const qd_quant_layer *layer = &l->layers[number];
    const qd_node *n = qd_graph_node(c->from, layer->id);
    const qd_tensor *w = &qd_graph_node(c->from, n->input[1])->value;
    char name[32];
    qd_tensor t = { 0 };
    snprintf(name, sizeof name, "recon.weight.%d", number);
    if (is_own(c, number)) {
        *id = qd_graph_input(c->out->graph, name, QD_F32, &w->shape);
        return QD_OK;
    }
    qd_status st = qd_tensor_init(&t, QD_F32, &w->shape, c->budget, c->err);
    if (!st)
        st = qd_layer_restore(l, layer, qd_f32(&t), c->err);
    if (!st)
        *id = qd_graph_const(c->out->graph, name, &t);
    qd_tensor_clear(&t);
    return st;
}

static qd_status add_layer(cutter *c, qd_node_id id)
{
    const int number = c->layer_of[id];
    const qd_quant_layer *layer = &c->s->layout->layers[number];
    const qd_node *n = qd_graph_node(c->from, id);
    char name[32];
    qd_node_id in[3] = { take(c, n->input[0]), -1, -1 };
    const qd_status st = add_weight(c, number, &in[1]);
    if (st)
        return st;
    if (layer->bias.data) {
        snprintf(name, sizeof name, "recon.bias.%d", number);
        in[2] = qd_graph_const(c->out->graph, name, &layer->bias);
    } else if (n->n_inputs > 2) {
        in[2] = take(c, n->input[2]);
    }
    c->out->id[id] = qd_graph_add(c->out->graph, n->op, n->name, in, in[2] < 0 ? 2 : 3, n->attr, n->n_attrs);
    return QD_OK;
}

/* Inputs first, in rising order of the nodes they stand for; then those of the block's weights, as their layers come. */
static void add_inputs(cutter *c)
{
    for (qd_node_id id = 0; id < qd_graph_size(c->from); id++) {
        const qd_node *n = qd_graph_node(c->from, id);
        if (!c->needed[id] || !(c->given[id] || n->op == &qd_op_input))
            continue;
        c->out->id[id] = qd_graph_input(c->out->graph, n->name, n->dtype, &c->s->shapes[id]);
        c->out->input[c->out->n_inputs++] = id;
    }
}

static qd_status add_nodes(cutter *c)
{
    qd_status st = QD_OK;
    for (qd_node_id id = 0; id < qd_graph_size(c->from) && !st; id++) {
        const qd_node *n = qd_graph_node(c->from, id);
        if (!c->needed[id] || c->out->id[id] >= 0 || n->op == &qd_op_const)
            continue;
        if (c->layer_of[id] >= 0 && c->s->weights != QD_PIECE_FLOAT) {
            st = add_layer(c, id);
            continue;
        }
        for (int k = 0; k < n->n_inputs; k++)
            take(c, n->input[k]);
        take(c, id);
    }
    return st;
}

qd_status qd_piece_cut(const qd_piece_spec *s, qd_budget *budget, qd_piece *out, qd_err *err)
{
    cutter c = { .s = s, .from = s->layout->graph, .budget = budget, .out = out, .err = err };
    const size_t n = (size_t)qd_graph_size(c.from) + 1;
    qd_arena a;
    qd_arena_init(&a);
    *out = (qd_piece){ 0 };
    c.given = qd_arena_alloc(&a, n * sizeof *c.given);
    c.needed = qd_arena_alloc(&a, n * sizeof *c.needed);
    c.layer_of = qd_arena_alloc(&a, n * sizeof *c.layer_of);
    out->input = qd_calloc(n, sizeof *out->input);
    out->id = qd_calloc(n, sizeof *out->id);
    qd_status st = QD_E_NOMEM;
    if (!c.given || !c.needed || !c.layer_of || !out->input || !out->id) {
        qd_fail(err, st, "no memory for a piece of %d nodes", qd_graph_size(c.from));
        goto out;
    }
    for (size_t k = 0; k < n; k++)
        out->id[k] = c.layer_of[k] = -1;
    for (int k = 0; k < s->layout->n_layers; k++)
        if (s->layout->layers[k].n_parts)
            c.layer_of[s->layout->layers[k].id] = k;
    st = qd_graph_new(&out->graph, err);
    if (st)
        goto out;
    mark_needed(&c);
    add_inputs(&c);
    st = add_nodes(&c);
    if (st)
        goto out;
    for (int k = 0; k < s->n_wanted && s->weights != QD_PIECE_INPUTS; k++)
        qd_graph_output(out->graph, qd_graph_node(c.from, s->wanted[k])->name, out->id[s->wanted[k]]);
    if (s->weights != QD_PIECE_INPUTS)
        st = qd_graph_verify(out->graph, err);
out:
    qd_arena_clear(&a);
    if (st)
        qd_piece_clear(out);
    return st;
}

void qd_piece_clear(qd_piece *p)
{
    qd_graph_free(p->graph);
    qd_free(p->input);
    qd_free(p->id);
    *p = (qd_piece){ 0 };
}

qd_status qd_piece_compile(const qd_graph *g, int threads, qd_budget *budget, qd_plan **plan, qd_err *err)
{
    const int n = qd_graph_inputs(g);
    qd_shape *shapes = qd_calloc((size_t)n + 1, sizeof *shapes);
    if (!shapes)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d inputs", n);
    for (int k = 0; k < n; k++)
        shapes[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
    const qd_plan_options o = { .input_shapes = shapes, .n_inputs = n, .threads = threads, .budget = budget };
    const qd_status st = qd_plan_compile(g, &o, plan, err);
    qd_free(shapes);
    return st;
}
