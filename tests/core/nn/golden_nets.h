/* golden_nets.h - for tests of networks: the weights of the golden networks, and building from them. */
#ifndef GOLDEN_NETS_H
#define GOLDEN_NETS_H

#include <math.h>
#include <stdio.h>

#include "graph/op.h"
#include "run_graph.h"

/* The weights of the golden networks: fill() of make_unet.py. */
static inline void fill(const char *name, const qd_tensor *t)
{
    uint32_t h = 2166136261u;
    for (const char *c = name; *c; c++)
        h = (h ^ (uint8_t)*c) * 16777619u;
    const size_t length = strlen(name);
    const bool weight = length > 7 && strcmp(name + length - 7, ".weight") == 0;
    const int64_t n = qd_tensor_count(t);
    double scale = 1.0;
    if (t->shape.rank > 1)
        scale = 1.7 / sqrt((double)(n / t->shape.dim[0]));
    for (int64_t k = 0; k < n; k++) {
        uint32_t v = h + (uint32_t)k * 2654435761u;
        v ^= v >> 16;
        v *= 0x7FEB352Du;
        v ^= v >> 15;
        v *= 0x846CA68Bu;
        v ^= v >> 16;
        const double u = v / 2147483648.0 - 1.0;
        qd_f32(t)[k] = (float)(t->shape.rank > 1 ? u * scale : weight ? 1.0 + 0.3 * u : 0.2 * u);
    }
}

/* A weight file for that config: the names and shapes the builder asks a blank source for. */
static inline qd_weights *filled_weights(const char *config)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_graph *g = blank_graph(config);
    check_ok(qd_weights_new(&w, &err), &err);
    for (int k = 0; k < qd_graph_size(g); k++) {
        const qd_node *n = qd_graph_node(g, k);
        if (n->op != &qd_op_const)
            continue;
        qd_tensor t = { 0 };
        check_ok(qd_tensor_init(&t, QD_F32, &n->shape, NULL, &err), &err);
        fill(n->name, &t);
        check_ok(qd_weights_add(w, n->name, &t, &err), &err);
        qd_tensor_clear(&t);
    }
    qd_graph_free(g);
    return w;
}

static inline qd_status build_status(const char *config, const qd_weights *w, const qd_run *run, qd_graph **g,
                                     qd_err *err)
{
    qd_config *c = parse_config(config);
    const qd_model m = { .weights = (qd_weights *)w, .config = c };
    qd_role role = QD_ROLE_CLASSIFIER;
    qd_status st = qd_zoo_build(&m, run, g, &role, err);
    if (!st) {
        const char *name = NULL;
        check_ok(qd_config_string(c, "_class_name", &name, err), err);
        assert_int_equal(role, qd_network_kind_find(name)->role);
    }
    qd_config_free(c);
    return st;
}

/* Each allocation of building `config` from `w` fails in turn: always words, never a leak, never half a graph. */
static inline void build_allocations_fail(const char *config, const qd_weights *w)
{
    long k = 0;
    for (;; k++) {
        qd_err err = { 0 };
        qd_graph *g = NULL;
        qd_role role = QD_ROLE_OTHER;
        qd_config *c = parse_config(config);
        const qd_model m = { .weights = (qd_weights *)w, .config = c };
        qd_mem_fault_set(k);
        const qd_status st = qd_zoo_build(&m, NULL, &g, &role, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        qd_config_free(c);
        if (!hit) {
            check_ok(st, &err);
            qd_graph_free(g);
            break;
        }
        check_fails(st, QD_E_NOMEM, NULL, &err);
        assert_null(g);
    }
    assert_true(k > 10);
}

#endif
