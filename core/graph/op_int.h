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
/* Multiply-adds of a convolution, linear layer. */
int64_t qd_macs_conv(const qd_node *n, const qd_operand *in, const qd_shape *out);
int64_t qd_macs_linear(const qd_node *n, const qd_operand *in, const qd_shape *out);

/* Product of dim[from..to), which infer has shown to fit. */
int64_t qd_dims(const qd_shape *s, int from, int to);

/* a * b, at most INT64_MAX; both >= 0. */
static inline int64_t qd_sat_mul(int64_t a, int64_t b)
{
    int64_t r;
    return __builtin_mul_overflow(a, b, &r) ? INT64_MAX : r;
}

#endif
