/* op_int.h - what the shape rules share: checks of operands and attributes, each with its words. */
#ifndef QD_GRAPH_OP_INT_H
#define QD_GRAPH_OP_INT_H

#include "graph/op.h"

#define QD_INFER_ANY QD_DTYPE_COUNT /* any dtype of whole bytes */
#define QD_MAX_WINDOW 65535 /* kernels, strides, dilations, pads, factors: times QD_MAX_ELEMENTS still fits an int64 */

/* Operand k is there, of that dtype and of rank lo..hi, every dim at least 1, not over QD_MAX_ELEMENTS. */
qd_status qd_infer_operand(const qd_operand *in, int k, const char *what, qd_dtype dtype, int lo, int hi, qd_err *err);
/* Operand k is f32 [len]. The optional one may be left out. */
qd_status qd_infer_vector(const qd_operand *in, int k, const char *what, int64_t len, qd_err *err);
qd_status qd_infer_optional(const qd_operand *in, int k, const char *what, int64_t len, qd_err *err);
/* A result of this shape is not over QD_MAX_ELEMENTS. */
qd_status qd_infer_result(const qd_shape *shape, qd_err *err);

/* Attribute in lo..hi; all values of an INTS, and as many as the row says. */
qd_status qd_infer_int(const qd_node *n, const char *name, int64_t lo, int64_t hi, qd_err *err);
qd_status qd_infer_ints(const qd_node *n, const char *name, int64_t lo, int64_t hi, qd_err *err);
/* Attribute that is finite as a float; and > 0 as a float. */
qd_status qd_infer_finite(const qd_node *n, const char *name, qd_err *err);
qd_status qd_infer_positive(const qd_node *n, const char *name, qd_err *err);
/* Attribute naming an axis of a value of that rank, negative from the end. */
qd_status qd_infer_axis(const qd_node *n, const char *name, int rank, int *axis, qd_err *err);
/* The axis again, once infer has accepted it. */
int qd_node_axis(const qd_node *n, const char *name, int rank);

/* stride, pads, dilation and window of a convolution or pool over x [N, C, H, W] give [N, channels, oh, ow]. dilation may be
 * absent from the row. */
qd_status qd_infer_window(const qd_node *n, const qd_shape *x, int64_t channels, int64_t kh, int64_t kw, bool dilated,
                          qd_shape *shape, qd_err *err);
/* conv2d and qconv2d: operands 0 and 1 of these dtypes, groups and window. */
qd_status qd_infer_conv(const qd_node *n, const qd_operand *in, qd_dtype weight, qd_shape *shape, qd_err *err);
/* max_pool, avg_pool: kernel, pads, stride over x [N, C, H, W]; every window holds at least one pixel. */
qd_status qd_infer_pool(const qd_node *n, const qd_shape *x, qd_shape *shape, qd_err *err);
/* Operands a and b have one shape; operand k has that shape. */
qd_status qd_infer_same(const qd_operand *in, int a, const char *what_a, int b, const char *what_b, qd_err *err);
qd_status qd_infer_matches(const qd_operand *in, int k, const char *what, const qd_shape *want, qd_err *err);
/* Multiply-adds of a convolution, linear layer. */
int64_t qd_macs_conv(const qd_node *n, const qd_operand *in, const qd_shape *out);
int64_t qd_macs_linear(const qd_node *n, const qd_operand *in, const qd_shape *out);

/* Product of dim[from..to), which infer has shown to fit. */
int64_t qd_dims(const qd_shape *s, int from, int to);

/* --- backward rules (autograd.c, back_math.c, back_layers.c) --- */

/* A node of the backward pass under a name of its own; -1 after a failure. */
qd_node_id qd_back_add(qd_backward *b, const qd_op *op, const qd_node_id *inputs, int n_inputs, const qd_attr *attrs,
                       int n_attrs);
/* The shape of a value for batch 1: its rank, and dims that do not depend on the batch. */
const qd_shape *qd_back_shape(const qd_backward *b, qd_node_id id);

/* Do two nodes of the forward pass have one shape whatever the batch? */
bool qd_back_same_shape(const qd_backward *b, qd_node_id x, qd_node_id y);

extern const char qd_no_second[]; /* why operators made by differentiation have no rule */

void qd_back_binary(qd_backward *b), qd_back_unary(qd_backward *b), qd_back_affine(qd_backward *b);
void qd_back_clip(qd_backward *b), qd_back_leaky_relu(qd_backward *b), qd_back_softmax(qd_backward *b);
void qd_back_copy(qd_backward *b), qd_back_reduce(qd_backward *b), qd_back_soft_round(qd_backward *b);
void qd_back_matmul(qd_backward *b), qd_back_linear(qd_backward *b), qd_back_attention(qd_backward *b);
void qd_back_embedding(qd_backward *b), qd_back_reshape(qd_backward *b), qd_back_permute(qd_backward *b);
void qd_back_concat(qd_backward *b), qd_back_slice(qd_backward *b), qd_back_gather(qd_backward *b);
void qd_back_expand(qd_backward *b), qd_back_pad(qd_backward *b);
void qd_back_conv2d(qd_backward *b), qd_back_conv_transpose2d(qd_backward *b), qd_back_upsample(qd_backward *b);
void qd_back_pool(qd_backward *b), qd_back_global_avg_pool(qd_backward *b), qd_back_group_norm(qd_backward *b);
void qd_back_layer_norm(qd_backward *b), qd_back_batch_norm(qd_backward *b), qd_back_batch_norm_stats(qd_backward *b);
void qd_back_batch_norm_train(qd_backward *b), qd_back_fake_quant(qd_backward *b);
void qd_back_learned_quant(qd_backward *b), qd_back_where(qd_backward *b);

/* a * b, at most INT64_MAX; both >= 0. */
static inline int64_t qd_sat_mul(int64_t a, int64_t b)
{
    int64_t r;
    return __builtin_mul_overflow(a, b, &r) ? INT64_MAX : r;
}

#endif
