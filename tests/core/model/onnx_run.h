/* onnx_run.h - for tests of ONNX models: run the graph of a file on a backend and compare with what PyTorch gave. */
#ifndef ONNX_RUN_H
#define ONNX_RUN_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/op.h"
#include "harness/harness.h"
#include "model/model.h"
#include "plan/plan.h"

/* A stored tensor as the graph's input wants it (qd_tensor_clear). */
static inline void as_input(qd_tensor *out, const qd_tensor *stored, qd_dtype dtype)
{
    qd_err err = { 0 };
    if (stored->dtype == dtype)
        qd_tensor_share(out, stored);
    else
        check_ok(qd_tensor_cast(out, stored, dtype, NULL, &err), &err);
}

/* The tensor of w called `name`, with `prefix` in front where there is one. */
static inline const qd_tensor *stored_tensor(const qd_weights *w, const char *prefix, const char *name)
{
    char text[300];
    snprintf(text, sizeof(text), "%s%s", prefix ? prefix : "", name);
    const qd_tensor *t = qd_weights_find(w, text);
    if (!t)
        fail_msg("no tensor '%s' in the golden file", text);
    return t;
}

/* Runs g with inputs in_prefix + name and compares all outputs with out_prefix + name, by `tolerance` of the largest. */
static inline void check_graph(const qd_graph *g, const qd_backend *backend, const qd_weights *w, const char *in_prefix,
                               const char *out_prefix, double tolerance)
{
    qd_err err = { 0 };
    qd_plan *plan = NULL;
    qd_shape shapes[QD_MAX_INPUTS];
    qd_tensor in[QD_MAX_INPUTS] = { 0 };
    const void *inputs[QD_MAX_INPUTS];
    enum { OUTPUTS = 32 };
    void *outputs[OUTPUTS];
    const int n = qd_graph_inputs(g), n_out = qd_graph_outputs(g);
    assert_true(n <= QD_MAX_INPUTS && n_out <= OUTPUTS);
    for (int k = 0; k < n; k++) {
        const qd_node *node = qd_graph_node(g, qd_graph_input_at(g, k));
        as_input(&in[k], stored_tensor(w, in_prefix, node->name), node->dtype);
        shapes[k] = in[k].shape;
        inputs[k] = in[k].data;
    }
    for (int k = 0; k < n_out; k++)
        outputs[k] = malloc(qd_tensor_bytes(stored_tensor(w, out_prefix, qd_graph_output_name(g, k))));
    const qd_plan_options o = { .input_shapes = shapes, .n_inputs = n, .threads = 1, .backend = backend };
    check_ok(qd_plan_compile(g, &o, &plan, &err), &err);
    check_ok(qd_plan_run(plan, NULL, inputs, outputs, &err), &err);
    for (int k = 0; k < n_out; k++) {
        const qd_tensor *want = stored_tensor(w, out_prefix, qd_graph_output_name(g, k));
        check_close((const float *)outputs[k], qd_f32(want), qd_tensor_count(want), 0.0, tolerance);
        free(outputs[k]);
    }
    for (int k = 0; k < n; k++)
        qd_tensor_clear(&in[k]);
    qd_plan_free(plan);
}

/* How many nodes are of that row. */
static inline int count_rows(const qd_graph *g, const qd_op *op)
{
    int n = 0;
    for (qd_node_id id = 0; id < qd_graph_size(g); id++)
        n += qd_graph_node(g, id)->op == op;
    return n;
}

#endif
