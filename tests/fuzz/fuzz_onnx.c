/* fuzz_onnx.c - any bytes as an ONNX file: refused in words, or a graph that verifies, whose shapes can be worked out for two
 * batches. Whatever is drawn from the budget is given back. */
#include "fuzz.h"

#include "model/model.h"

#define BUDGET_BYTES ((size_t)48 << 20)

/* The shapes of all nodes for a batch; a graph may fit one batch and not another, but must not fall over. */
static void ask_shapes(const qd_graph *g, int64_t batch)
{
    const int n = qd_graph_inputs(g);
    qd_shape *in = calloc((size_t)n + 1, sizeof(*in)), *all = calloc((size_t)qd_graph_size(g) + 1, sizeof(*all));
    qd_err err = { 0 };
    int64_t macs = 0;

    must(in && all);
    for (int k = 0; k < n; k++) {
        in[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        if (in[k].rank && in[k].dim[0] == -1)
            in[k].dim[0] = batch;
    }
    if (qd_graph_shapes(g, in, n, all, &err) == QD_OK)
        qd_graph_cost(g, in, n, &macs, &err);
    else
        must(err.text[0] && batch != 1);
    free(in);
    free(all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qd_budget budget;
    qd_graph *g = NULL;
    qd_err err = { 0 };

    qd_budget_init(&budget, BUDGET_BYTES);
    if (qd_onnx_read(data, size, &budget, &g, &err)) {
        must(!g && err.text[0]);
    } else {
        must(qd_graph_verify(g, &err) == QD_OK);
        ask_shapes(g, 1);
        ask_shapes(g, 5);
    }
    qd_graph_free(g);
    must(budget.used_bytes == 0);
    return 0;
}
