/* onnx_write.h - what the files share that turn our graph into ONNX nodes. */
#ifndef QD_MODEL_ONNX_WRITE_H
#define QD_MODEL_ONNX_WRITE_H

#include "graph/op.h"
#include "model/model_int.h"
#include "model/onnx_put.h"

typedef struct qd_onnx_writer {
    qd_onnx_put put;
    const qd_graph *g;
    const qd_shape *shapes, *other; /* of all nodes, for batch 1 and for batch 2 */
    const char **value;             /* what each node's value is called in the file */
    bool *written;                  /* constants */
    const qd_node *n;               /* the node being written */
    qd_node_id id;
} qd_onnx_writer;

typedef void qd_onnx_row_writer(qd_onnx_writer *w);

/* --- onnx_write.c --- */

/* Operand k of the node as it is called in the file (a constant is written when it is first read); NULL when left out. */
const char *qd_out_in(qd_onnx_writer *w, int k);
const qd_node *qd_out_operand(const qd_onnx_writer *w, int k);
const qd_shape *qd_out_shape(const qd_onnx_writer *w, int k); /* with batch 1; -1 = the node's own */
/* A name of our own below the node's. */
const char *qd_out_fresh(qd_onnx_writer *w, const char *suffix);
/* A node that makes the node's value (suffix NULL) or a step on the way; returns what it made. */
const char *qd_out_emit(qd_onnx_writer *w, const char *op, const char *suffix, const char *const *in, int n_in,
                        const qd_onnx_put_attr *attrs, int n_attrs);
#define QD_ONNX_IN(...) (const char *[]){ __VA_ARGS__ }, (int)(sizeof((const char *[]){ __VA_ARGS__ }) / sizeof(char *))
#define QD_ONNX_ATTRS(...)                                                                                             \
    (qd_onnx_put_attr[]){ __VA_ARGS__ }, (int)(sizeof((qd_onnx_put_attr[]){ __VA_ARGS__ }) / sizeof(qd_onnx_put_attr))
#define QD_ONNX_NONE NULL, 0
/* Constants of our own. */
const char *qd_out_float(qd_onnx_writer *w, const char *suffix, double v);
const char *qd_out_floats(qd_onnx_writer *w, const char *suffix, const qd_shape *shape, const float *v);
const char *qd_out_ints(qd_onnx_writer *w, const char *suffix, int n, const int64_t *v);
/* x with these axes in this order; a Reshape (0 = as in x, -1 = the rest). */
const char *qd_out_transpose(qd_onnx_writer *w, const char *suffix, const char *x, int rank, const int64_t *perm);
const char *qd_out_reshape(qd_onnx_writer *w, const char *suffix, const char *x, int rank, const int64_t *dims);
/* The node's shape for Reshape: 0 for the batch. Fails where another dim depends on the batch. */
qd_shape qd_out_open_shape(qd_onnx_writer *w);

/* --- onnx_write_nn.c: layers, norms; onnx_write_attention.c; onnx_write_quant.c: codes --- */

extern qd_onnx_row_writer qd_onnx_write_conv, qd_onnx_write_conv_transpose, qd_onnx_write_linear, qd_onnx_write_matmul,
    qd_onnx_write_attention, qd_onnx_write_group_norm, qd_onnx_write_layer_norm, qd_onnx_write_batch_norm,
    qd_onnx_write_pool, qd_onnx_write_upsample, qd_onnx_write_timestep, qd_onnx_write_embedding;
extern qd_onnx_row_writer qd_onnx_write_quantize, qd_onnx_write_dequantize, qd_onnx_write_fake_quant,
    qd_onnx_write_qlayer;
/* MatMul by the transpose of weight [O, I] and a bias, or Gemm where x has two axes. */
void qd_out_linear(qd_onnx_writer *w, const char *x, const char *weight, const char *bias, bool transposed);
/* Conv with the node's window. */
void qd_out_conv(qd_onnx_writer *w, const char *op, const char *x, const char *weight, const char *bias,
                 bool output_pad);

#endif
