/* run_graph.h - for tests of networks: run a graph once on a backend, look at a value inside. */
#ifndef RUN_GRAPH_H
#define RUN_GRAPH_H

#include <string.h>

#include "base/mem.h"
#include "harness/harness.h"
#include "model/model.h"
#include "nn/nn.h"
#include "plan/plan.h"

typedef struct peek {
    float *data; // filled with the value's first elements
    int64_t n;   // how many are wanted; set to what was there
} peek;

static inline void peek_at(void *ctx, qd_node_id id, const float *data, const qd_shape *shape)
{
    peek *p = ctx;
    int64_t n = 0;
    (void)id;
    check_ok(qd_shape_count(shape, &n, NULL), NULL);
    if (n < p->n)
        p->n = n;
    memcpy(p->data, data, (size_t)p->n * sizeof(float));
}

/* The graph's only output for `batch` samples; inputs f32 in the graph's order. inside/p: a node to look at, or NULL. */
static inline void run_graph(const qd_graph *g, const qd_backend *backend, int64_t batch, const void *const *inputs,
                             float *out, const char *inside, peek *p)
{
    qd_err err = { 0 };
    qd_plan *plan = NULL;
    qd_shape shapes[QD_MAX_INPUTS];
    const int n = qd_graph_inputs(g);
    for (int k = 0; k < n; k++) {
        shapes[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        shapes[k].dim[0] = batch;
    }
    qd_plan_options o = { .input_shapes = shapes, .n_inputs = n, .threads = 1, .backend = backend };
    const qd_node_id seen = inside ? qd_graph_find(g, inside) : -1;
    if (inside) {
        assert_true(seen >= 0);
        o.observed = &seen;
        o.n_observed = 1;
        o.observe = peek_at;
        o.observe_ctx = p;
    }
    check_ok(qd_plan_compile(g, &o, &plan, &err), &err);
    check_ok(qd_plan_run(plan, NULL, inputs, (void *[]){ out }, &err), &err);
    qd_plan_free(plan);
}

static inline qd_config *parse_config(const char *text)
{
    qd_err err = { 0 };
    qd_config *c = NULL;
    check_ok(qd_config_parse(text, strlen(text), "test", &c, &err), &err);
    return c;
}

/* The network of that config with every weight zero. */
static inline qd_graph *blank_graph(const char *config)
{
    qd_err err = { 0 };
    qd_weight_source *s = NULL;
    qd_graph *g = NULL;
    qd_config *c = parse_config(config);
    check_ok(qd_weight_source_blank(&s, &err), &err);
    check_ok(qd_network_kind_find("UNet2DModel")->build(c, s, NULL, &g, &err), &err);
    qd_weight_source_free(s);
    qd_config_free(c);
    return g;
}

#endif
