/* weigh.c - what a network weighs, for estimates: its weights by what quantizers do with them, and its activations. */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "jobs/jobs_int.h"

/* Methods decide by these: the layers that read the picture, those that make an output, those that see the time step alone
 * (qncd.md 3.6), and all others. */
enum { FIRST, LAST, TIME, INNER, GROUPS };
static const char *const group_names[GROUPS] = { "first", "last", "time", "inner" };

static bool is_layer(const qd_graph *g, const qd_node *n)
{
    if (n->op != &qd_op_conv2d && n->op != &qd_op_linear)
        return false;
    const qd_node *w = qd_graph_node(g, n->input[1]);
    return w->op == &qd_op_const && w->dtype == QD_F32;
}

static bool is_picture(const qd_node *n)
{
    return n->op == &qd_op_input && n->dtype == QD_F32 && n->shape.rank > 1;
}

static int group_of(const qd_graph *g, qd_node_id id, const bool *on_picture)
{
    const qd_node *x = qd_graph_node(g, qd_graph_node(g, id)->input[0]);
    if (!on_picture[qd_graph_node(g, id)->input[0]])
        return TIME;
    while (x->op == &qd_op_affine)
        x = qd_graph_node(g, x->input[0]);
    if (x->op == &qd_op_input)
        return FIRST;
    for (int k = 0; k < qd_graph_outputs(g); k++)
        if (qd_graph_output_at(g, k) == id)
            return LAST;
    return INNER;
}

static json_t *weights_json(const qd_graph *g, const bool *on_picture)
{
    int64_t elements[GROUPS] = { 0 }, rows[GROUPS] = { 0 }, all = 0;
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        if (!is_layer(g, n))
            continue;
        const qd_node *w = qd_graph_node(g, n->input[1]);
        const int group = group_of(g, id, on_picture);
        elements[group] += qd_tensor_count(&w->value);
        rows[group] += w->shape.dim[0];
        all += qd_tensor_count(&w->value);
    }
    json_t *o = json_object();
    for (int k = 0; k < GROUPS; k++)
        json_object_set_new(o, group_names[k],
                            json_pack("{s:I, s:I}", "elements", (json_int_t)elements[k], "rows", (json_int_t)rows[k]));
    json_object_set_new(o, "other_bytes", json_integer((json_int_t)qd_graph_param_bytes(g) - 4 * (json_int_t)all));
    return o;
}

/* The most that is alive at once when the nodes run in order and every value is let go after its last reader. */
static qd_status live_bytes(const qd_graph *g, const qd_shape *shapes, int64_t *most, qd_err *err)
{
    const int n = qd_graph_size(g);
    int64_t *bytes = qd_calloc((size_t)n, sizeof *bytes), now = 0, count;
    int *left = qd_calloc((size_t)n, sizeof *left);
    qd_status st = QD_OK;

    if (!bytes || !left) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to weigh %d nodes", n);
        goto out;
    }
    qd_graph_uses(g, left);
    *most = 0;
    for (qd_node_id id = 0; id < n && !st; id++) {
        const qd_node *node = qd_graph_node(g, id);
        if (node->op == &qd_op_const)
            continue;
        st = qd_shape_count(&shapes[id], &count, err);
        if (st)
            break;
        bytes[id] = count * (int64_t)((qd_dtype_bits(node->dtype) + 7) / 8);
        now += bytes[id];
        if (now > *most)
            *most = now;
        for (int k = 0; k < node->n_inputs; k++)
            if (node->input[k] >= 0 && --left[node->input[k]] == 0)
                now -= bytes[node->input[k]];
    }
out:
    qd_free(left);
    qd_free(bytes);
    return st;
}

/* All that layers make: what is kept where they are compared one by one. */
static int64_t layer_bytes(const qd_graph *g, const qd_shape *shapes)
{
    int64_t sum = 0, count;
    for (qd_node_id id = 0; id < qd_graph_size(g); id++)
        if (is_layer(g, qd_graph_node(g, id)) && !qd_shape_count(&shapes[id], &count, NULL))
            sum += count * (int64_t)sizeof(float);
    return sum;
}

qd_status sv_weigh(const qd_graph *g, const qd_shape *inputs, int n_inputs, json_t *o, qd_err *err)
{
    const int n = qd_graph_size(g);
    qd_shape *shapes = qd_calloc((size_t)n, sizeof *shapes);
    bool *on_picture = qd_calloc((size_t)n, sizeof *on_picture);
    int64_t most = 0;
    qd_status st;

    if (!shapes || !on_picture) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to weigh %d nodes", n);
        goto out;
    }
    st = qd_graph_shapes(g, inputs, n_inputs, shapes, err);
    if (!st)
        st = live_bytes(g, shapes, &most, err);
    if (st)
        goto out;
    for (qd_node_id id = 0; id < n; id++) {
        const qd_node *node = qd_graph_node(g, id);
        on_picture[id] = is_picture(node);
        for (int k = 0; k < node->n_inputs; k++)
            if (node->input[k] >= 0 && on_picture[node->input[k]])
                on_picture[id] = true;
    }
    json_object_set_new(o, "weights", weights_json(g, on_picture));
    json_object_set_new(o, "activation_bytes", json_integer(most));
    json_object_set_new(o, "layer_bytes", json_integer(layer_bytes(g, shapes)));
out:
    qd_free(on_picture);
    qd_free(shapes);
    return st;
}
