/* ref.c - the backend of plain loops: every node on its own, by the forward of its op's row. The judge of the other. */
#include <string.h>

#include "plan/backend.h"

typedef struct forward_state {
    const qd_node *node;
    qd_value_id from[QD_MAX_INPUTS];
    qd_tensor in[QD_MAX_INPUTS], out; /* views of the arena */
} forward_state;

static qd_status wrap(const qd_plan *p, qd_value_id v, qd_tensor *t, qd_err *err)
{
    const qd_value *value = &p->values[v];
    return qd_tensor_wrap(t, value->dtype, &value->shape, qd_plan_data(p, v), NULL, NULL, err);
}

static qd_status bind_forward(qd_plan *p, qd_step *s, qd_err *err)
{
    forward_state *f = s->state;
    qd_status st = wrap(p, s->out, &f->out, err);
    for (int k = 0; k < QD_MAX_INPUTS && !st; k++)
        if (f->from[k] >= 0)
            st = wrap(p, f->from[k], &f->in[k], err);
    return st;
}

static qd_status run_forward(qd_plan *p, qd_step *s, qd_err *err)
{
    forward_state *f = s->state;
    const qd_tensor *in[QD_MAX_INPUTS];
    for (int k = 0; k < QD_MAX_INPUTS; k++)
        in[k] = f->from[k] >= 0 ? &f->in[k] : NULL;
    f->node->op->forward(f->node, in, &f->out);
    return QD_OK;
}

static void free_forward(void *state)
{
    forward_state *f = state;
    for (int k = 0; k < QD_MAX_INPUTS; k++)
        qd_tensor_clear(&f->in[k]);
    qd_tensor_clear(&f->out);
}

qd_status qd_plan_add_forward(qd_plan *p, const qd_node *n, const qd_value_id *in, qd_value_id out, int64_t macs,
                              qd_err *err)
{
    qd_step *s;
    forward_state *f;
    void *state;
    qd_status st = qd_plan_small(p, sizeof(*f), &state, err);
    if (st)
        return st;
    f = state;
    st = qd_plan_keep_node(p, n, &f->node, err);
    if (st)
        return st;
    st = qd_plan_add_step(p, n->name, n->op->name, out, &s, err);
    if (st)
        return st;
    for (int k = 0; k < QD_MAX_INPUTS; k++) {
        f->from[k] = k < n->n_inputs ? in[k] : -1;
        qd_step_reads(s, f->from[k]);
    }
    s->impl = "plain loops";
    s->macs = macs;
    s->state = f;
    s->bind = bind_forward;
    s->run = run_forward;
    s->free = free_forward;
    return QD_OK;
}

static int64_t macs_of(const qd_graph *g, qd_node_id id, const qd_shape *shapes)
{
    const qd_node *n = qd_graph_node(g, id);
    qd_operand in[QD_MAX_INPUTS];
    if (!n->op->macs)
        return 0;
    for (int k = 0; k < QD_MAX_INPUTS; k++) {
        const qd_node_id x = k < n->n_inputs ? n->input[k] : -1;
        in[k] = (qd_operand){ .shape = { .rank = -1 } };
        if (x >= 0)
            in[k] = (qd_operand){ .dtype = qd_graph_node(g, x)->dtype, .shape = shapes[x] };
    }
    return n->op->macs(n, in, &shapes[id]);
}

static qd_status lower_node(qd_plan *p, const qd_graph *g, const qd_shape *shapes, qd_node_id id, qd_value_id *values,
                            qd_err *err)
{
    const qd_node *n = qd_graph_node(g, id);
    if (n->op == &qd_op_const)
        return qd_plan_add_constant(p, NULL, &n->value, &values[id], err);

    const qd_value like = { .dtype = n->dtype, .shape = shapes[id] };
    qd_status st = qd_plan_add_value(p, &like, &values[id], err);
    if (st || n->op == &qd_op_input)
        return st;
    qd_value_id in[QD_MAX_INPUTS];
    for (int k = 0; k < n->n_inputs; k++)
        in[k] = n->input[k] >= 0 ? values[n->input[k]] : -1;
    return qd_plan_add_forward(p, n, in, values[id], macs_of(g, id, shapes), err);
}

static qd_status lower(qd_plan *p, const qd_graph *g, const qd_shape *shapes, const qd_plan_options *o, qd_err *err)
{
    const int n = qd_graph_size(g);
    qd_status st = QD_OK;
    void *inputs, *outputs;
    qd_value_id *values = qd_alloc(((size_t)n + 1) * sizeof(*values));
    if (!values)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d values", n);

    st = qd_plan_small(p, (size_t)qd_graph_inputs(g) * sizeof(qd_value_id), &inputs, err);
    if (!st)
        st = qd_plan_small(p, (size_t)qd_graph_outputs(g) * sizeof(qd_value_id), &outputs, err);
    /* Inputs come first, so that those shown are shown before the first step. */
    for (qd_node_id id = 0; id < n && !st; id++)
        if (qd_graph_node(g, id)->op == &qd_op_input)
            st = lower_node(p, g, shapes, id, values, err);
    for (qd_node_id id = 0; id < n && !st; id++) {
        if (qd_graph_node(g, id)->op != &qd_op_input)
            st = lower_node(p, g, shapes, id, values, err);
        for (int k = 0; k < o->n_observed && !st; k++)
            if (o->observed[k] == id)
                st = qd_plan_watch(p, id, values[id], err);
    }
    if (!st) {
        p->inputs = inputs;
        p->outputs = outputs;
        p->n_inputs = qd_graph_inputs(g);
        p->n_outputs = qd_graph_outputs(g);
        for (int k = 0; k < p->n_inputs; k++)
            p->inputs[k] = values[qd_graph_input_at(g, k)];
        for (int k = 0; k < p->n_outputs; k++)
            p->outputs[k] = values[qd_graph_output_at(g, k)];
    }
    qd_free(values);
    return st;
}

const qd_backend qd_backend_ref = {
    .name = "ref",
    .summary = "Plain loops, node by node.",
    .lower = lower,
};
