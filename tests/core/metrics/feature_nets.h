/* feature_nets.h - networks small enough to know what they give, and sets of pictures for them. */
#ifndef FEATURE_NETS_H
#define FEATURE_NETS_H

#include "harness/harness.h"

#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "metrics/metrics.h"

/* Pictures of one row of `dim` pixels; the linear layer before the answers is the identity, so features and answers are the pixels. */
static inline qd_graph *identity_net(int dim)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_tensor w = { 0 };
    const qd_shape image = QD_SHAPE(-1, 1, 1, dim), square = QD_SHAPE(dim, dim);
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id x = qd_graph_input(g, "x", QD_F32, &image);
    check_ok(qd_tensor_init(&w, QD_F32, &square, NULL, &err), &err);
    for (int k = 0; k < dim; k++)
        qd_f32(&w)[k * dim + k] = 1.0f;
    const qd_node_id flat = qd_graph_add(g, &qd_op_reshape, "flat", QD_IN(x),
                                         QD_ATTRS(qd_attr_ints("shape", 2, (const int64_t[]){ 0, -1 })));
    qd_graph_output(g, "logits",
                    qd_graph_add(g, &qd_op_linear, "fc", QD_IN(flat, qd_graph_const(g, "fc.weight", &w)), QD_NO_ATTRS));
    check_ok(qd_graph_verify(g, &err), &err);
    qd_tensor_clear(&w);
    return g;
}

/* Such a network reads samples as they are: (x / 2 + 1/2 - 1/2) / (1/2). */
static const qd_feature_options as_they_are = { .pixels = QD_PIXEL_FLOAT, .mean = "0.5", .std = "0.5", .batch = 16 };

/* Statistics of rows [n, dim]. */
static inline qd_feature_stats *stats_of_rows(const float *rows, int64_t n, int dim, int64_t keep, int64_t chunk,
                                              const qd_run *run)
{
    qd_err err = { 0 };
    qd_features *f = NULL;
    qd_feature_stats *s = NULL;
    qd_graph *g = identity_net(dim);
    check_ok(qd_features_new(g, &as_they_are, run, &f, &err), &err);
    check_ok(qd_feature_stats_new(f, keep, chunk, NULL, &s, &err), &err);
    check_ok(qd_feature_stats_add(s, f, rows, n, 1, 1, dim, run, &err), &err);
    qd_features_free(f);
    qd_graph_free(g);
    return s;
}

#endif
