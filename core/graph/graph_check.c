/* graph_check.c - questions about a whole graph: is it sound, which shapes, what does it cost, how does it read. */
#include "graph/graph_int.h"

#include "base/bytes.h"

#include <math.h>
#include <string.h>

qd_status qd_graph_verify(const qd_graph *g, qd_err *err)
{
    if (g->failure.status)
        return qd_fail(err, g->failure.status, "%s", g->failure.text);
    if (!g->n_outputs)
        return qd_fail(err, QD_E_INVALID, "the graph has no output");
    return QD_OK;
}

/* The shapes given fit the inputs as declared: same rank, same dims, any batch where the declaration has -1. */
static qd_status check_inputs(const qd_graph *g, const qd_shape *input_shapes, int n_inputs, qd_err *err)
{
    if (n_inputs != g->n_inputs)
        return qd_fail(err, QD_E_INVALID, "the graph has %d inputs, %d shapes were given", g->n_inputs, n_inputs);
    for (int k = 0; k < n_inputs; k++) {
        const qd_node *n = g->entries[g->inputs[k]].node;
        const qd_shape *got = &input_shapes[k];
        bool same = got->rank == n->shape.rank;
        for (int d = 0; same && d < got->rank; d++)
            same = n->shape.dim[d] == -1 ? got->dim[d] >= 1 : got->dim[d] == n->shape.dim[d];
        if (!same) {
            char a[160], b[160];
            return qd_fail(err, QD_E_INVALID, "input '%s' has shape %s, cannot take %s", n->name,
                           qd_shape_text(&n->shape, a, sizeof a),
                           got->rank >= 0 && got->rank <= QD_MAX_RANK ? qd_shape_text(got, b, sizeof b)
                                                                      : "one without rank");
        }
    }
    return QD_OK;
}

qd_status qd_graph_shapes(const qd_graph *g, const qd_shape *input_shapes, int n_inputs, qd_shape *shapes, qd_err *err)
{
    if (g->failure.status)
        return qd_fail(err, g->failure.status, "%s", g->failure.text);
    qd_status st = check_inputs(g, input_shapes, n_inputs, err);
    int next = 0;
    for (qd_node_id id = 0; !st && id < g->n_nodes; id++) {
        const qd_node *n = g->entries[id].node;
        if (n->op == &qd_op_input) {
            shapes[id] = input_shapes[next++];
        } else if (n->op == &qd_op_const) {
            shapes[id] = n->shape;
        } else {
            qd_operand in[QD_MAX_INPUTS];
            qd_dtype dtype;
            qd_graph_operands(g, n, shapes, in);
            st = qd_op_infer(n, in, &dtype, &shapes[id], err);
        }
    }
    return st;
}

void qd_graph_uses(const qd_graph *g, int *uses)
{
    for (int k = 0; k < g->n_nodes; k++)
        uses[k] = 0;
    for (int k = 0; k < g->n_nodes; k++)
        for (int i = 0; i < g->entries[k].node->n_inputs; i++)
            if (g->entries[k].node->input[i] >= 0)
                uses[g->entries[k].node->input[i]]++;
    for (int k = 0; k < g->n_outputs; k++)
        uses[g->outputs[k].id]++;
}

qd_status qd_graph_cost(const qd_graph *g, const qd_shape *input_shapes, int n_inputs, int64_t *macs, qd_err *err)
{
    qd_shape *shapes = qd_calloc((size_t)g->n_nodes + 1, sizeof *shapes);
    if (!shapes)
        return qd_fail(err, QD_E_NOMEM, "out of memory for %d shapes", g->n_nodes);
    qd_status st = qd_graph_shapes(g, input_shapes, n_inputs, shapes, err);
    int64_t sum = 0;
    for (qd_node_id id = 0; !st && id < g->n_nodes; id++) {
        const qd_node *n = g->entries[id].node;
        qd_operand in[QD_MAX_INPUTS];
        if (!n->op->macs)
            continue;
        qd_graph_operands(g, n, shapes, in);
        if (__builtin_add_overflow(sum, n->op->macs(n, in, &shapes[id]), &sum))
            sum = INT64_MAX;
    }
    if (!st)
        *macs = sum;
    qd_free(shapes);
    return st;
}

int64_t qd_graph_param_count(const qd_graph *g)
{
    int64_t sum = 0;
    for (int k = 0; k < g->n_nodes; k++)
        if (g->entries[k].node->op == &qd_op_const)
            sum += qd_tensor_count(&g->entries[k].node->value);
    return sum;
}

size_t qd_graph_param_bytes(const qd_graph *g)
{
    size_t sum = 0;
    for (int k = 0; k < g->n_nodes; k++)
        if (g->entries[k].node->op == &qd_op_const)
            sum += qd_tensor_bytes(&g->entries[k].node->value);
    return sum;
}

/* Attributes that differ from the default, " stride=2,2 groups=4". */
static void print_attrs(const qd_node *n, qd_buf *b)
{
    for (int k = 0; k < n->n_attrs; k++) {
        const qd_op_attr *row = &n->op->attrs[k];
        const qd_attr *a = &n->attr[k];
        bool usual = a->kind != QD_ATTR_INTS || row->n;
        if (a->kind == QD_ATTR_INT)
            usual = (double)a->i == row->fallback;
        else if (a->kind == QD_ATTR_FLOAT)
            usual = a->f == row->fallback;
        for (int i = 0; a->kind == QD_ATTR_INTS && i < a->n; i++)
            usual = usual && (double)a->ints[i] == row->fallback;
        if (usual)
            continue;
        if (a->kind == QD_ATTR_INT)
            qd_buf_addf(b, " %s=%lld", a->name, (long long)a->i);
        else if (a->kind == QD_ATTR_FLOAT)
            qd_buf_addf(b, " %s=%.9g", a->name, a->f);
        else
            qd_buf_addf(b, " %s=", a->name);
        for (int i = 0; a->kind == QD_ATTR_INTS && i < a->n; i++)
            qd_buf_addf(b, "%s%lld", i ? "," : "", (long long)a->ints[i]);
    }
}

void qd_graph_print(const qd_graph *g, struct qd_buf *b)
{
    char text[160];
    for (qd_node_id id = 0; id < g->n_nodes; id++) {
        const qd_node *n = g->entries[id].node;
        qd_buf_addf(b, "%5d  %s = %s", id, n->name, n->op->name);
        if (n->n_inputs) {
            qd_buf_adds(b, "(");
            for (int k = 0; k < n->n_inputs; k++)
                qd_buf_addf(b, "%s%s", k ? ", " : "", n->input[k] < 0 ? "-" : g->entries[n->input[k]].node->name);
            qd_buf_adds(b, ")");
        }
        print_attrs(n, b);
        const qd_shape *shape = n->op == &qd_op_input ? &n->shape : &g->entries[id].probe;
        qd_buf_addf(b, " -> %s %s\n", qd_dtype_name(n->dtype), qd_shape_text(shape, text, sizeof text));
    }
    for (int k = 0; k < g->n_outputs; k++)
        qd_buf_addf(b, "output %s = %s\n", g->outputs[k].name, g->entries[g->outputs[k].id].node->name);
}
