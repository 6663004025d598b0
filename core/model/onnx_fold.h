/* onnx_fold.h - working out an ONNX operator on constants: what the rows of that table share. Constants are F32, I64 (whole numbers
 * and truth), or I8 and U8 as they came. */
#ifndef QD_MODEL_ONNX_FOLD_H
#define QD_MODEL_ONNX_FOLD_H

#include "model/onnx_int.h"

#define QD_FOLD_GROWN ((int64_t)1 << 24) /* elements of a constant that is larger than what it is made of */

/* What an op is worked out from and into, all constants of one batch size. */
typedef struct qd_onnx_world {
    const qd_onnx_node *n;
    int64_t opset;
    const qd_tensor *in[QD_MAX_INPUTS]; /* NULL = left out */
    int n_in;
    const qd_shape *shape; /* of the first input, for Shape and Size */
    qd_budget *budget;
    qd_tensor *out;
} qd_onnx_world;

typedef qd_status qd_onnx_fold_row(qd_onnx_world *w, qd_err *err);
/* onnx_fold_make.c */
qd_onnx_fold_row qd_fold_shape, qd_fold_size, qd_fold_constant, qd_fold_constant_of_shape, qd_fold_range, qd_fold_eye,
    qd_fold_one_hot, qd_fold_non_zero;
/* onnx_fold_move.c */
qd_onnx_fold_row qd_fold_reshape, qd_fold_flatten, qd_fold_squeeze, qd_fold_unsqueeze, qd_fold_transpose,
    qd_fold_expand, qd_fold_tile, qd_fold_slice, qd_fold_concat;
/* onnx_fold_index.c */
qd_onnx_fold_row qd_fold_gather, qd_fold_gather_nd, qd_fold_gather_elements, qd_fold_scatter_nd, qd_fold_triangle;
/* onnx_fold_math.c: element by element, by the op's name; and sums */
qd_onnx_fold_row qd_fold_cast, qd_fold_where, qd_fold_clip, qd_fold_binary, qd_fold_unary, qd_fold_reduce,
    qd_fold_cumulative;
bool qd_fold_is_binary(const char *op), qd_fold_is_unary(const char *op);

/* --- onnx_const.c --- */

/* Element k as a whole number (of I64, I8, U8) or as a double. */
int64_t qd_fold_whole(const qd_tensor *t, int64_t k);
double qd_fold_real(const qd_tensor *t, int64_t k);
int64_t qd_fold_to_whole(double v);
/* Elements; too many when the dims other than 0 multiply to more than QD_MAX_ELEMENTS, so that products of some of them fit. */
int64_t qd_fold_count(const qd_shape *s);
/* w->out of that shape, if that is no more than QD_FOLD_GROWN elements or than an input has. */
qd_status qd_fold_make(qd_onnx_world *w, qd_dtype dtype, const qd_shape *shape, qd_err *err);
/* A list of whole numbers in input k; n -1 when it is left out. From attribute `name` or else from input k. */
qd_status qd_fold_list_in(const qd_onnx_world *w, int k, const int64_t **list, int64_t *n, qd_err *err);
qd_status qd_fold_list(const qd_onnx_world *w, const char *name, int k, const int64_t **list, int64_t *n, qd_err *err);
/* The same list as a shape: every dim >= 0. */
qd_status qd_fold_shape_in(const qd_onnx_world *w, int k, qd_shape *s, qd_err *err);
qd_status qd_fold_axis(int64_t given, int rank, int *axis, qd_err *err);
/* Row-major strides; those of `in` broadcast to `out`, 0 where repeated; the shape two broadcast to. */
void qd_fold_strides(const qd_shape *s, int64_t *stride);
bool qd_fold_broadcast_strides(const qd_shape *in, const qd_shape *out, int64_t *stride);
qd_status qd_fold_broadcast(const qd_shape *a, const qd_shape *b, qd_shape *out, qd_err *err);
/* index over s, row-major; each at[j] follows by stride[j]. False after the last. */
bool qd_fold_next(const qd_shape *s, int64_t *index, int n, int64_t *at, const int64_t (*stride)[QD_MAX_RANK]);

#endif
