/* resblock.c - finds residual blocks with a time embedding by the form of the graph (qncd.md 7.1), whatever their names. */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/qncd_int.h"

/* What a value depends on. */
enum { ON_SAMPLE = 1, ON_TIME = 2 };

static bool is_activation(const qd_node *n)
{
    return n->op == &qd_op_silu || n->op == &qd_op_gelu || n->op == &qd_op_relu;
}

/* Class labels belong to the time embedding; anything else that is put in belongs to the image. */
static void mark(const qd_graph *g, unsigned char *on)
{
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        on[id] = 0;
        if (n->op == &qd_op_input)
            on[id] = strcmp(n->name, "timestep") == 0 ? ON_TIME : strcmp(n->name, "class_labels") == 0 ? 0 : ON_SAMPLE;
        for (int k = 0; k < n->n_inputs; k++)
            if (n->input[k] >= 0)
                on[id] |= on[n->input[k]];
    }
}

/* The operand of an add or mul that depends on the time step alone, the other one in *rest; -1 when there is none. */
static qd_node_id timed_operand(const qd_node *n, const unsigned char *on, qd_node_id *rest)
{
    for (int k = 0; k < 2; k++)
        if (on[n->input[k]] == ON_TIME && on[n->input[1 - k]] & ON_SAMPLE) {
            *rest = n->input[1 - k];
            return n->input[k];
        }
    return -1;
}

/* s of 1 + s; the node itself when it is not written like that: then the gain minus one is s only for the caller who knows. */
static qd_node_id without_one(const qd_graph *g, qd_node_id gain)
{
    const qd_node *n = qd_graph_node(g, gain);
    if (n->op == &qd_op_affine && qd_node_float(n, "mul") == 1.0 && qd_node_float(n, "add") == 1.0)
        return n->input[0];
    if (n->op != &qd_op_add)
        return -1;
    for (int k = 0; k < 2; k++) {
        const qd_node *one = qd_graph_node(g, n->input[k]);
        if (one->op == &qd_op_const && one->dtype == QD_F32 && qd_tensor_count(&one->value) == 1 &&
            qd_f32(&one->value)[0] == 1.0f)
            return n->input[1 - k];
    }
    return -1;
}

/* Fills b's norm2 and embedding or film from what the activation reads. */
static bool match(const qd_graph *g, const unsigned char *on, qd_node_id value, qd_resblock *b)
{
    const qd_node *n = qd_graph_node(g, value);
    qd_node_id rest = -1;
    b->embedding = b->film = -1;
    if (n->op == &qd_op_group_norm) {
        const qd_node *sum = qd_graph_node(g, n->input[0]);
        b->norm2 = value;
        if (sum->op == &qd_op_add)
            b->embedding = timed_operand(sum, on, &rest);
        return b->embedding >= 0;
    }
    if (n->op != &qd_op_add || timed_operand(n, on, &rest) < 0)
        return false;
    const qd_node *scaled = qd_graph_node(g, rest);
    if (scaled->op != &qd_op_mul)
        return false;
    const qd_node_id gain = timed_operand(scaled, on, &rest);
    if (gain < 0 || qd_graph_node(g, rest)->op != &qd_op_group_norm)
        return false;
    b->norm2 = rest;
    b->film = without_one(g, gain);
    return b->film >= 0;
}

qd_status qd_resblocks_find(const qd_graph *g, qd_resblock **out, int *n, qd_err *err)
{
    const int size = qd_graph_size(g);
    unsigned char *on = qd_calloc((size_t)size, sizeof *on);
    qd_shape *shapes = qd_calloc((size_t)size, sizeof *shapes);
    qd_resblock *list = qd_calloc((size_t)size, sizeof *list);
    int found = 0;
    qd_status st = QD_E_NOMEM;
    if (!on || !shapes || !list) {
        qd_fail(err, st, "no memory to look through %d nodes", size);
        goto out;
    }
    st = qd_layout_shapes(g, shapes, err);
    if (st)
        goto out;
    mark(g, on);
    for (qd_node_id id = 0; id < size; id++) {
        const qd_node *conv = qd_graph_node(g, id);
        if (conv->op != &qd_op_conv2d)
            continue;
        /* A smoothed block is still one. */
        qd_resblock b = { .conv2 = id, .hidden = conv->input[0] };
        qd_node_id value, factor;
        if (qd_smooth_is(g, b.hidden, &value, &factor))
            b.hidden = value;
        if (!is_activation(qd_graph_node(g, b.hidden)) || !match(g, on, qd_graph_node(g, b.hidden)->input[0], &b))
            continue;
        b.channels = shapes[b.hidden].dim[1];
        b.groups = qd_node_int(qd_graph_node(g, b.norm2), "groups");
        int64_t values = 1;
        const qd_shape *e = &shapes[b.embedding >= 0 ? b.embedding : b.film];
        for (int k = 0; k < e->rank; k++)
            values *= e->dim[k];
        if (values == b.channels && shapes[b.hidden].rank == 4)
            list[found++] = b;
    }
    *out = list;
    *n = found;
    list = NULL;
out:
    qd_free(list);
    qd_free(shapes);
    qd_free(on);
    return st;
}
