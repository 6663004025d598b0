/* lower_int.h - what the files of lowering share: the graph, what was decided about it, and values by node. */
#ifndef QD_PLAN_LOWER_INT_H
#define QD_PLAN_LOWER_INT_H

#include "plan/cpu_int.h"

typedef struct qd_lower {
    qd_plan *p;
    const qd_graph *g;
    const qd_shape *shapes;
    qd_fused f;
} qd_lower;

/* --- lower.c --- */

const qd_node *qd_lower_node_of(const qd_lower *l, qd_node_id id);
int64_t qd_last_dim(const qd_shape *s);
int64_t qd_count_of(const qd_shape *s);
int64_t qd_lower_macs(const qd_lower *l, qd_node_id id);
/* The floats of a constant input, NULL when it is left out. */
const float *qd_lower_known(const qd_lower *l, qd_node_id id, int k);
/* A new value for a node in its layout; with a border when it is codes (border NULL: neither border nor shift). */
qd_status qd_lower_value(qd_lower *l, qd_node_id id, const int32_t border[4], qd_value_id *out, qd_err *err);
/* A value as its step made it. */
qd_status qd_lower_native(qd_lower *l, qd_node_id id, qd_value_id *out, qd_err *err);
/* A value in a layout, without border or shift; converted at most once. */
qd_status qd_lower_want(qd_lower *l, qd_node_id id, qd_layout layout, qd_value_id *out, qd_err *err);

/* U8 codes (I8 ones shifted) in a layout, with that border of the zero code. */
qd_status qd_lower_want_codes(qd_lower *l, qd_node_id id, qd_layout layout, const int32_t border[4], int32_t zero_code,
                              qd_value_id *out, qd_err *err);

/* --- lower_pass.c --- */

/* The frozen batch norm `id` as mul x + add, [channels] each, in the plan's memory. */
qd_status qd_lower_batch_norm(qd_lower *l, qd_node_id id, float **mul, float **add, qd_err *err);
qd_status qd_lower_pass(qd_lower *l, const qd_group *gr, qd_err *err);

/* --- lower_product.c --- */

/* Rows of a linear are the pixels of a 1 x 1 convolution. */
qd_conv_shape qd_linear_shape(int64_t rows, int64_t in, int64_t out);
qd_status qd_lower_product(qd_lower *l, const qd_group *gr, qd_err *err);

/* --- lower_attention.c --- */

qd_status qd_lower_attention(qd_lower *l, const qd_group *gr, qd_err *err);

/* --- lower_single.c --- */

qd_status qd_lower_single(qd_lower *l, qd_node_id id, qd_err *err);

#endif
