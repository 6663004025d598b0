/* run_graph.h - for tests of networks: run a graph once on a backend, look at a value inside. */
#ifndef RUN_GRAPH_H
#define RUN_GRAPH_H

#include <string.h>

#include "base/mem.h"
#include "harness/harness.h"
#include "model/model.h"
#include "nn/nn.h"
#include "plan/plan.h"

/* A value inside to be looked at. */
typedef struct peek {
    const char *name;  // of the node
    const float *want; // its first n elements
    int64_t n;
    double tolerance; // absolute
    qd_node_id id;
    int seen;
} peek;

#define MAX_PEEKS 8
typedef struct peeks {
    peek *at;
    int n;
} peeks;

static inline void look(void *ctx, qd_node_id id, const float *data, const qd_shape *shape)
{
    const peeks *p = ctx;
    for (int k = 0; k < p->n; k++) {
        int64_t n = 0;
        if (p->at[k].id != id)
            continue;
        check_ok(qd_shape_count(shape, &n, NULL), NULL);
        assert_true(n >= p->at[k].n);
        check_close(data, p->at[k].want, p->at[k].n, p->at[k].tolerance, 0.0);
        p->at[k].seen++;
    }
}

/* The graph's outputs for `batch` samples; inputs f32 in the graph's order. Values inside are compared on the way. */
static inline void run_graph_many(const qd_graph *g, const qd_backend *backend, int64_t batch,
                                  const void *const *inputs, void *const *outs, peek *inside, int n_inside)
{
    qd_err err = { 0 };
    qd_plan *plan = NULL;
    qd_shape shapes[QD_MAX_INPUTS];
    qd_node_id ids[MAX_PEEKS];
    peeks all = { .at = inside, .n = n_inside };
    const int n = qd_graph_inputs(g);
    assert_true(n_inside <= MAX_PEEKS);
    for (int k = 0; k < n; k++) {
        shapes[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        shapes[k].dim[0] = batch;
    }
    for (int k = 0; k < n_inside; k++) {
        inside[k].seen = 0;
        ids[k] = inside[k].id = qd_graph_find(g, inside[k].name);
        assert_true(ids[k] >= 0);
    }
    const qd_plan_options o = { .input_shapes = shapes,
                                .n_inputs = n,
                                .threads = 1,
                                .backend = backend,
                                .observed = ids,
                                .n_observed = n_inside,
                                .observe = look,
                                .observe_ctx = &all };
    check_ok(qd_plan_compile(g, &o, &plan, &err), &err);
    check_ok(qd_plan_run(plan, NULL, inputs, outs, &err), &err);
    qd_plan_free(plan);
    for (int k = 0; k < n_inside; k++)
        assert_int_equal(inside[k].seen, 1);
}

/* Of a graph with one output. */
static inline void run_graph(const qd_graph *g, const qd_backend *backend, int64_t batch, const void *const *inputs,
                             float *out, peek *inside, int n_inside)
{
    assert_int_equal(qd_graph_outputs(g), 1);
    run_graph_many(g, backend, batch, inputs, (void *[]){ out }, inside, n_inside);
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
    const char *name = NULL;
    check_ok(qd_weight_source_blank(&s, &err), &err);
    check_ok(qd_config_string(c, "_class_name", &name, &err), &err);
    assert_non_null(qd_network_kind_find(name));
    check_ok(qd_network_kind_find(name)->build(c, s, NULL, &g, &err), &err);
    qd_weight_source_free(s);
    qd_config_free(c);
    return g;
}

#endif
