/* onnx_put.h - an ONNX file being written: protobuf's wire format, nodes, initializers that are not copied.
 *
 * The first failure sticks (qd_onnx_put_fail, memory); the rest does nothing and qd_onnx_put_save reports it. Text and data of
 * calls are copied unless said. */
#ifndef QD_MODEL_ONNX_PUT_H
#define QD_MODEL_ONNX_PUT_H

#include "base/bytes.h"
#include "base/fs.h"
#include "base/mem.h"
#include "graph/graph.h"

typedef struct qd_onnx_splice {
    size_t at; // in body
    const void *data;
    size_t bytes;
} qd_onnx_splice;

typedef struct qd_onnx_put {
    int opset;
    qd_buf body; /* fields of the GraphProto, without the spliced bytes */
    qd_onnx_splice *splice;
    int n_splices, room;
    uint64_t spliced_bytes;
    qd_arena names;
    qd_status status;
    qd_err *err; /* takes the words of the first failure */
} qd_onnx_put;

typedef struct qd_onnx_put_attr {
    const char *name;
    enum { QD_PUT_INT, QD_PUT_FLOAT, QD_PUT_STRING, QD_PUT_INTS } kind;
    int64_t i;
    float f;
    const char *s;
    const int64_t *ints;
    int n;
} qd_onnx_put_attr;
#define QD_PUT_I(name_, v) ((qd_onnx_put_attr){ .name = (name_), .kind = QD_PUT_INT, .i = (v) })
#define QD_PUT_F(name_, v) ((qd_onnx_put_attr){ .name = (name_), .kind = QD_PUT_FLOAT, .f = (float)(v) })
#define QD_PUT_S(name_, v) ((qd_onnx_put_attr){ .name = (name_), .kind = QD_PUT_STRING, .s = (v) })
#define QD_PUT_V(name_, n_, v) ((qd_onnx_put_attr){ .name = (name_), .kind = QD_PUT_INTS, .ints = (v), .n = (n_) })

/* TensorProto.DataType of what we write; 0 for a dtype ONNX has no word for (I6). */
int qd_onnx_put_type(qd_dtype t);

void qd_onnx_put_init(qd_onnx_put *p, int opset, qd_err *err);
void qd_onnx_put_clear(qd_onnx_put *p);
void qd_onnx_put_fail(qd_onnx_put *p, qd_status st, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* A name kept as long as p; "" when out of memory. */
const char *qd_onnx_put_name(qd_onnx_put *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Inputs: NULL or "" = left out. */
void qd_onnx_put_node(qd_onnx_put *p, const char *op, const char *const *in, int n_in, const char *out,
                      const qd_onnx_put_attr *attrs, int n_attrs);
/* borrowed: the bytes stay where they are and outlive p. type: TensorProto.DataType. */
void qd_onnx_put_tensor(qd_onnx_put *p, const char *name, int type, const qd_shape *shape, const void *data,
                        size_t bytes, bool borrowed);
/* A graph input or output; -1 is the batch, called "batch". */
void qd_onnx_put_value(qd_onnx_put *p, bool is_output, const char *name, int type, const qd_shape *shape);
qd_status qd_onnx_put_save(qd_onnx_put *p, const char *path, const char *graph_name, char *sha256_hex);

#endif
