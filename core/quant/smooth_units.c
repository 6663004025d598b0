/* smooth_units.c - which layers can be smoothed: those behind a norm, alone by a division, together where the norm takes the factors. */
#include "base/mem.h"
#include "graph/op.h"
#include "quant/qncd_int.h"

typedef struct finder {
    const qd_layout *l;
    const qd_shape *shapes; // [nodes], batch 1
    int *uses;              // [nodes]
    qd_arena *arena;
    qd_smooth_unit *units;
    int n_units;
} finder;

static bool is_norm(const qd_node *n)
{
    return n->op == &qd_op_group_norm || n->op == &qd_op_layer_norm;
}

/* Where a movement takes axis a of its operand; -1 when it takes it apart. */
static int moved_axis(const finder *b, const qd_node *n, qd_node_id id, int a)
{
    const qd_shape *from = &b->shapes[n->input[0]], *to = &b->shapes[id];
    if (n->op == &qd_op_permute) {
        const int64_t *perm = qd_node_ints(n, "perm")->ints;
        for (int k = 0; k < to->rank; k++)
            if (perm[k] == a)
                return k;
        return -1;
    }
    int64_t before = 1, now = 1;
    for (int k = 0; k < a; k++)
        before *= from->dim[k];
    for (int k = 0; k < to->rank; now *= to->dim[k++])
        if (now == before && to->dim[k] == from->dim[a])
            return k;
    return -1;
}

/* The norm whose value, moved but not changed, is `read`, and read by nobody on the way; *axis is where its channels are. -1 = none. */
static qd_node_id norm_moved(const finder *b, qd_node_id read, int *axis)
{
    qd_node_id way[8];
    int n = 0;
    qd_node_id id = read;
    for (; n < 8; id = qd_graph_node(b->l->graph, id)->input[0]) {
        const qd_node *node = qd_graph_node(b->l->graph, id);
        if (id != read && b->uses[id] != 1)
            return -1;
        if (is_norm(node))
            break;
        if (node->op != &qd_op_reshape && node->op != &qd_op_permute)
            return -1;
        way[n++] = id;
    }
    const qd_node *norm = qd_graph_node(b->l->graph, id);
    if (!is_norm(norm) || norm->n_inputs < 3 || norm->input[1] < 0 || norm->input[2] < 0)
        return -1;
    for (int k = 1; k < 3; k++) {
        const qd_node *c = qd_graph_node(b->l->graph, norm->input[k]);
        if (c->op != &qd_op_const || c->dtype != QD_F32 || c->shape.rank != 1)
            return -1;
    }
    int a = norm->op == &qd_op_group_norm ? 1 : b->shapes[id].rank - 1;
    while (n > 0 && a >= 0) {
        n--;
        a = moved_axis(b, qd_graph_node(b->l->graph, way[n]), way[n], a);
    }
    *axis = a;
    return a < 0 ? -1 : id;
}

/* An activation of a norm, perhaps scaled and shifted by the time embedding in between (FiLM). */
static bool is_behind_norm(const qd_graph *g, qd_node_id id)
{
    const qd_node *n = qd_graph_node(g, id);
    if (n->op != &qd_op_silu && n->op != &qd_op_gelu && n->op != &qd_op_relu)
        return false;
    n = qd_graph_node(g, n->input[0]);
    for (int depth = 0; depth < 2 && (n->op == &qd_op_add || n->op == &qd_op_mul); depth++) {
        const qd_node *x = qd_graph_node(g, n->input[0]), *y = qd_graph_node(g, n->input[1]);
        n = is_norm(y) || y->op == &qd_op_mul ? y : x;
    }
    return is_norm(n);
}

static bool is_fit(const qd_quant_layer *layer)
{
    return !layer->note && layer->n_parts == 1;
}

static qd_status add_unit(finder *b, int number, qd_node_id norm, int axis, qd_err *err)
{
    const qd_layout *l = b->l;
    const qd_node_id read = qd_graph_node(l->graph, l->layers[number].id)->input[0];
    qd_smooth_unit *u = &b->units[b->n_units];
    *u = (qd_smooth_unit){ .read = read, .axis = axis, .norm = norm, .channels = b->shapes[read].dim[axis] };
    int readers = 0;
    for (int k = number; k < l->n_layers; k++)
        readers += is_fit(&l->layers[k]) && qd_graph_node(l->graph, l->layers[k].id)->input[0] == read;
    u->layer = qd_arena_alloc(b->arena, (size_t)readers * sizeof *u->layer);
    if (!u->layer)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d layers", readers);
    b->n_units++;
    for (int k = number; k < (norm < 0 ? number + 1 : l->n_layers); k++)
        if (is_fit(&l->layers[k]) && qd_graph_node(l->graph, l->layers[k].id)->input[0] == read)
            u->layer[u->n++] = k;
    return QD_OK;
}

static qd_status find_units(finder *b, qd_err *err)
{
    const qd_layout *l = b->l;
    const qd_graph *g = l->graph;
    for (int k = 0; k < l->n_layers; k++) {
        const qd_node *n = qd_graph_node(g, l->layers[k].id);
        bool known = !is_fit(&l->layers[k]);
        for (int i = 0; i < b->n_units && !known; i++)
            known = b->units[i].norm >= 0 && b->units[i].read == n->input[0];
        if (known)
            continue;
        const bool conv = n->op == &qd_op_conv2d;
        int axis = 0, readers = 0;
        const qd_node_id norm = norm_moved(b, n->input[0], &axis);
        for (int j = k; j < l->n_layers; j++)
            readers += is_fit(&l->layers[j]) && qd_graph_node(g, l->layers[j].id)->input[0] == n->input[0];
        qd_status st = QD_OK;
        /* Every reader of the norm must be here, and read channels where it has them. */
        if (norm >= 0 && readers == b->uses[n->input[0]] && axis == (conv ? 1 : b->shapes[n->input[0]].rank - 1))
            st = add_unit(b, k, norm, axis, err);
        else if (conv && is_behind_norm(g, n->input[0]))
            st = add_unit(b, k, -1, 1, err);
        if (st)
            return st;
    }
    return QD_OK;
}

qd_status qd_smooth_units_find(const qd_layout *l, const qd_shape *shapes, qd_arena *arena, qd_smooth_unit **out,
                               int *n, qd_err *err)
{
    finder f = { .l = l, .shapes = shapes, .arena = arena };
    f.uses = qd_arena_alloc(arena, (size_t)qd_graph_size(l->graph) * sizeof *f.uses);
    f.units = qd_arena_alloc(arena, ((size_t)l->n_layers + 1) * sizeof *f.units);
    if (!f.uses || !f.units)
        return qd_fail(err, QD_E_NOMEM, "no memory to look through %d nodes", qd_graph_size(l->graph));
    qd_graph_uses(l->graph, f.uses);
    const qd_status st = find_units(&f, err);
    if (st)
        return st;
    *out = f.units;
    *n = f.n_units;
    return QD_OK;
}
