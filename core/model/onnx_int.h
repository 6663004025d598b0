/* onnx_int.h - what the ONNX files of this room share: the file as plain structs, values while a graph is being read. */
#ifndef QD_MODEL_ONNX_INT_H
#define QD_MODEL_ONNX_INT_H

#include "graph/op.h"
#include "model/model_int.h"

#define QD_ONNX_OPSET_MIN 7
#define QD_ONNX_OPSET_MAX 21

/* TensorProto.DataType */
typedef enum qd_onnx_type {
    QD_ONNX_TYPE_FLOAT = 1,
    QD_ONNX_TYPE_UINT8,
    QD_ONNX_TYPE_INT8,
    QD_ONNX_TYPE_UINT16,
    QD_ONNX_TYPE_INT16,
    QD_ONNX_TYPE_INT32,
    QD_ONNX_TYPE_INT64,
    QD_ONNX_TYPE_STRING,
    QD_ONNX_TYPE_BOOL,
    QD_ONNX_TYPE_FLOAT16,
    QD_ONNX_TYPE_DOUBLE,
    QD_ONNX_TYPE_UINT32,
    QD_ONNX_TYPE_UINT64,
    QD_ONNX_TYPE_COMPLEX64,
    QD_ONNX_TYPE_COMPLEX128,
    QD_ONNX_TYPE_BFLOAT16,
    QD_ONNX_TYPE_UINT4 = 21,
    QD_ONNX_TYPE_INT4,
} qd_onnx_type;

/* --- onnx_wire.c: bytes to structs; every string and array is lent by the file --- */

typedef enum qd_onnx_kind {
    QD_ONNX_INT,
    QD_ONNX_FLOAT,
    QD_ONNX_STRING,
    QD_ONNX_INTS,
    QD_ONNX_FLOATS,
    QD_ONNX_TENSOR,
    QD_ONNX_GRAPH, /* a subgraph; only that it is there */
    QD_ONNX_OTHER, /* strings, sparse tensors, types */
} qd_onnx_kind;

typedef struct qd_onnx_attr {
    const char *name;
    qd_onnx_kind kind;
    int64_t i;
    float f;
    const char *s;
    const int64_t *ints;
    const float *floats;
    size_t n; // of ints or floats
    qd_tensor t;
    int elem_type; /* of t */
} qd_onnx_attr;

typedef struct qd_onnx_node {
    const char *name, *op, *domain; /* "" where absent; domain "" is ONNX's own */
    const char *const *input;       /* "" = left out */
    const char *const *output;
    int n_inputs, n_outputs;
    qd_onnx_attr *attr;
    int n_attrs;
} qd_onnx_node;

/* A graph input or output as declared. */
typedef struct qd_onnx_value {
    const char *name;
    int elem_type;            // TensorProto.DataType; 0 = not a tensor
    int rank;                 // -1 = not told
    int64_t dim[QD_MAX_RANK]; // -1 = named or not told
    const char *dim_name[QD_MAX_RANK];
} qd_onnx_value;

typedef struct qd_onnx_file {
    int64_t opset;
    qd_onnx_node *node;
    int n_nodes;
    qd_meta *meta; /* metadata_props */
    qd_weights
        *initializers;     /* F32 for every float type, I8 and U8 for codes, I64 for every other whole one and bool */
    int *initializer_type; // [initializers]
    qd_onnx_value *input;  /* without those that are initializers */
    qd_onnx_value *output;
    int n_inputs, n_outputs;
    qd_arena arena;
    struct qd_onnx_message *message; /* onnx_wire.c's own */
} qd_onnx_file;

/* Reads and checks bytes that outlive the call only. folder: where external data may lie, NULL = nowhere. Memory is
 * drawn from budget (may be NULL). QD_E_FORMAT, QD_E_LIMIT, QD_E_UNSUPPORTED name the node or tensor. */
qd_status qd_onnx_parse(const void *data, size_t size, const char *folder, qd_budget *budget, qd_onnx_file **out,
                        qd_err *err);
void qd_onnx_free(qd_onnx_file *f);
/* Do the first bytes look like a ModelProto? */
bool qd_onnx_looks_like(const void *data, size_t size);
/* "float", "int64", "float16", ...: of TensorProto.DataType. */
const char *qd_onnx_type_name(int elem_type);
/* F32, I8, U8 or I64, as initializers are kept; false for what is neither (strings, complex, unknown). */
bool qd_onnx_type_kept(int elem_type, qd_dtype *out);
/* The codes of a type of 8 or 4 bits; false for any other. */
bool qd_onnx_type_range(int elem_type, int64_t *lo, int64_t *hi);

/* --- values while reading: onnx_const.c ---
 *
 * Shapes are worked out for two batch sizes side by side ("worlds"): what is equal in both does not depend on the batch, and a
 * number that is QD_ONNX_BATCH[w] times the same in both is a multiple of it. So Shape -> Gather -> Concat -> Reshape folds by
 * ordinary arithmetic, and only a reshape's target has to be told apart in the end. */
#define QD_ONNX_WORLDS 2
extern const int64_t qd_onnx_batch[QD_ONNX_WORLDS]; /* two primes */

typedef struct qd_onnx_number {
    bool constant;
    int coded; /* constant: 1 + index of the reader's `coded` that it is made of, 0 = none; then t has no data until it is spelled out */
    int elem_type;               /* constant: as in the file, 0 = no more known than its dtype */
    qd_tensor t[QD_ONNX_WORLDS]; /* constant: F32, I64, or codes in I8, U8; they share storage when equal */
    qd_node_id id;               /* else */
    qd_dtype dtype;
    qd_shape shape[QD_ONNX_WORLDS];
} qd_onnx_number;

void qd_onnx_number_clear(qd_onnx_number *v);
void qd_onnx_number_share(qd_onnx_number *dst, const qd_onnx_number *src);
/* Is it a constant, the same for every batch? */
bool qd_onnx_number_fixed(const qd_onnx_number *v);
/* -1 when `a` and `b` (the same quantity in both worlds) are a multiple of the batch, and *times says which; the number itself when
 * they are equal; -2 when neither. */
int64_t qd_onnx_symbol(int64_t a, int64_t b, int64_t *times);

/* Is it an op that can be worked out on constants? */
bool qd_onnx_folds(const char *op);
/* The op on constants: *done when this file knows it. Words without the node's name. in[k] NULL = left out. */
qd_status qd_onnx_fold(const qd_onnx_node *n, int64_t opset, const qd_onnx_number *const *in, int n_in,
                       qd_budget *budget, qd_onnx_number *out, bool *done, qd_err *err);

/* --- onnx_ops.c: one row for each ONNX operator that becomes rows of ours --- */

typedef struct qd_onnx_reader qd_onnx_reader;
typedef struct qd_onnx_coded qd_onnx_coded; /* onnx_codes.h */

typedef struct qd_onnx_op {
    const char *name;
    int min_inputs, max_inputs;
    qd_status (*read)(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err);
} qd_onnx_op;
const qd_onnx_op *qd_onnx_op_find(const char *name);

typedef qd_status qd_onnx_row(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err);
/* onnx_ops.c: one node of ours under n's name: of one value, of two, x * mul + add, x held in [lo, hi], a number; and input k as floats,
 * whatever it is */
qd_node_id qd_onnx_one(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_op *op, qd_node_id x);
qd_node_id qd_onnx_two(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_op *op, qd_node_id a,
                       qd_node_id b);
qd_node_id qd_onnx_affine(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x, double mul,
                          double add);
qd_node_id qd_onnx_held(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x, double lo,
                        double hi);
qd_node_id qd_onnx_number_const(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, float v);
qd_node_id qd_onnx_floats(qd_onnx_reader *r, const qd_onnx_node *n, int k);
/* onnx_activations.c */
qd_onnx_row qd_onnx_hard_sigmoid, qd_onnx_hard_swish, qd_onnx_leaky_relu, qd_onnx_prelu, qd_onnx_gelu, qd_onnx_clip,
    qd_onnx_softmax, qd_onnx_elu, qd_onnx_softplus, qd_onnx_softsign, qd_onnx_mish, qd_onnx_thresholded_relu,
    qd_onnx_lp_norm;
/* onnx_select.c: truth */
qd_onnx_row qd_onnx_compare, qd_onnx_logic, qd_onnx_where, qd_onnx_sign, qd_onnx_cast, qd_onnx_triangle;
/* onnx_einsum.c */
qd_onnx_row qd_onnx_einsum;
/* onnx_layers.c: layers with weights, norms */
qd_onnx_row qd_onnx_conv, qd_onnx_conv_transpose, qd_onnx_gemm, qd_onnx_matmul, qd_onnx_batch_norm,
    qd_onnx_instance_norm, qd_onnx_group_norm, qd_onnx_layer_norm;
/* onnx_codes.c, onnx_qlayers.c */
qd_onnx_row qd_onnx_quantize, qd_onnx_dequantize, qd_onnx_qlinear_conv, qd_onnx_qlinear_matmul, qd_onnx_conv_integer,
    qd_onnx_matmul_integer;
/* onnx_space.c: windows, borders, channels as space; onnx_resize.c; onnx_reduce.c */
qd_onnx_row qd_onnx_pool, qd_onnx_global_pool, qd_onnx_lrn, qd_onnx_pad, qd_onnx_depth_to_space;
qd_onnx_row qd_onnx_resize, qd_onnx_upsample;
qd_onnx_row qd_onnx_reduce;
/* onnx_reduce.c: the largest of x along the axes in `gone`, which stay as 1 or go. */
qd_node_id qd_onnx_largest(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x,
                           const bool gone[QD_MAX_RANK], bool keep);
/* onnx_shape.c: under another shape, in another order, parts; onnx_index.c: by index, repeated */
qd_onnx_row qd_onnx_concat, qd_onnx_split, qd_onnx_slice, qd_onnx_transpose, qd_onnx_reshape_row, qd_onnx_flatten,
    qd_onnx_squeeze, qd_onnx_unsqueeze;
qd_onnx_row qd_onnx_gather, qd_onnx_expand, qd_onnx_tile;
/* onnx_space.c: windows of a layer over [N, C, H, W] or [N, C, L], as a row of ours wants them; padded by auto_pad. */
typedef struct qd_onnx_window {
    int rank; // of space: 1 or 2; for 1 the first axis has kernel 1
    int64_t kernel[2], stride[2], dilation[2], pads[4];
} qd_onnx_window;
qd_status qd_onnx_window_of(const qd_onnx_node *n, const qd_shape *x, const int64_t *kernel, qd_onnx_window *w,
                            qd_err *err);
/* onnx_shape.c: `length` elements (-1 = to the end) of an axis, from `start`, every `step`; an axis by its number in the file. */
qd_node_id qd_onnx_cut(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x, int axis,
                       int64_t start, int64_t length, int64_t step);
qd_status qd_onnx_axis(int64_t given, int rank, int *axis, qd_err *err);
/* onnx_shape.c: [N, C, L] as [N, C, 1, L], and back. */
qd_node_id qd_onnx_to_plane(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x);
qd_node_id qd_onnx_from_plane(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id x);

/* --- onnx_read.c: what the rows use --- */

const qd_onnx_attr *qd_onnx_attr_find(const qd_onnx_node *n, const char *name); /* NULL when absent */
int64_t qd_onnx_attr_int(const qd_onnx_node *n, const char *name, int64_t fallback);
float qd_onnx_attr_float(const qd_onnx_node *n, const char *name, float fallback);
const char *qd_onnx_attr_string(const qd_onnx_node *n, const char *name, const char *fallback);

struct qd_onnx_reader {
    const qd_onnx_file *file;
    qd_graph *graph;
    qd_budget *budget;
    qd_names names; /* ONNX value names, in the order of `value` */
    qd_onnx_number *value;
    int value_room;
    qd_shape *shape; // [nodes of the graph][QD_ONNX_WORLDS]
    int n_shapes, shape_room;
    qd_onnx_coded *coded; // [coded_room]
    int n_coded, coded_room;
    bool keeps_codes;    /* the file quantizes values: weights that are codes stay such in float layers too */
    qd_node_id batch_of; /* an input whose first dim is the batch; -1 = none */
};

/* A new value under an ONNX name; takes v, also on failure. */
qd_status qd_onnx_value_add(qd_onnx_reader *r, const char *name, qd_onnx_number *v, qd_err *err);
/* A value as a node of the graph: a constant becomes one, once. -1 = the builder failed, and remembers why. */
qd_node_id qd_onnx_number_node(qd_onnx_reader *r, const char *name, qd_onnx_number *v);
/* Remembers the shapes of the graph's newest node in both worlds. */
void qd_onnx_shapes_push(qd_onnx_reader *r, qd_node_id id, const qd_shape given[QD_ONNX_WORLDS]);
/* The builder's sticky failure as the caller's. */
qd_status qd_onnx_graph_words(const qd_onnx_reader *r, qd_err *err);
/* The value of input k; NULL when left out. */
const qd_onnx_number *qd_onnx_in(const qd_onnx_reader *r, const qd_onnx_node *n, int k);
/* It as a node of the graph: constants become const nodes, once. -1 = left out, or the builder failed. */
qd_node_id qd_onnx_node_of(qd_onnx_reader *r, const qd_onnx_node *n, int k);
/* Its shape in a world. */
const qd_shape *qd_onnx_shape_of(const qd_onnx_number *v, int world);
/* A constant input that is the same for every batch; fails naming it otherwise. *out NULL when left out. */
qd_status qd_onnx_fixed(const qd_onnx_reader *r, const qd_onnx_node *n, int k, const qd_tensor **out, qd_err *err);
/* A list of whole numbers in one world, from attribute `name` (may be NULL) or else from constant input k (-1 = none). *n_out -1
 * when there is neither. */
#define QD_ONNX_LIST (2 * QD_MAX_RANK)
qd_status qd_onnx_list(const qd_onnx_reader *r, const qd_onnx_node *n, const char *name, int k, int world,
                       int64_t out[QD_ONNX_LIST], int *n_out, qd_err *err);
/* One more node of ours, named after n and, unless NULL, a suffix. -1 = the builder failed, and remembers why. */
qd_node_id qd_onnx_add(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_op *op,
                       const qd_node_id *inputs, int n_inputs, const qd_attr *attrs, int n_attrs);
/* A constant of its own: "<name of n>.<suffix>". */
qd_node_id qd_onnx_const(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_tensor *t);
/* Output k of n is this node; -1 fails in the builder's words. */
qd_status qd_onnx_set(qd_onnx_reader *r, const qd_onnx_node *n, int k, qd_node_id id, qd_err *err);
/* Output k of n is the same value as v. */
qd_status qd_onnx_alias(qd_onnx_reader *r, const qd_onnx_node *n, int k, const qd_onnx_number *v, qd_err *err);
/* Shape of a node in a world; x must not be -1. */
const qd_shape *qd_onnx_node_shape(const qd_onnx_reader *r, qd_node_id x, int world);
/* x under the shape given for both worlds; x itself when it has it already. */
qd_node_id qd_onnx_reshape(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x,
                           const qd_shape target[QD_ONNX_WORLDS]);

/* --- onnx_graph.c --- */

/* A graph from a parsed file, which may go afterwards: tensors are counted. Refuses with a list of the nodes it does not know. */
qd_status qd_onnx_to_graph(const qd_onnx_file *f, qd_budget *budget, qd_graph **out, qd_err *err);

/* --- onnx_patterns.c, onnx_attention.c: small rows that are one of ours, graph to graph --- */

/* One walk over a graph, writing another. Whatever a pattern replaces is copied too where somebody else reads it: prune follows. */
typedef struct qd_onnx_pass {
    const qd_graph *g;
    qd_graph *out;
    qd_node_id *map; // [nodes of g]
    qd_shape *shape; // [nodes of g], for `batch` samples
    int64_t batch;   /* a prime that no other dim is likely to be */
} qd_onnx_pass;

/* visit gives the node that stands for `id`, or -2: copy it. */
qd_status qd_onnx_walk(const qd_graph *g, qd_node_id (*visit)(qd_onnx_pass *p, qd_node_id id, void *ctx), void *ctx,
                       qd_graph **out, qd_err *err);
/* A name not yet taken in p->out: `name`, with quotes after it while it is; qd_onnx_recognise takes them off in the end. */
const char *qd_onnx_fresh(const qd_onnx_pass *p, char text[QD_MAX_NAME + 1], const char *name, const char *suffix);
const qd_node *qd_onnx_node_at(const qd_onnx_pass *p, qd_node_id id);
/* Input k of node id, -1 = left out. */
qd_node_id qd_onnx_operand(const qd_onnx_pass *p, qd_node_id id, int k);
bool qd_onnx_is(const qd_onnx_pass *p, qd_node_id id, const qd_op *op);
/* A constant of p->g under another shape of as many elements, in p->out. */
qd_node_id qd_onnx_view_const(qd_onnx_pass *p, qd_node_id id, const qd_shape *shape, const char *name,
                              const char *suffix);

/* Norms, activations, biases, padding; then attention. Gives a new graph. */
qd_status qd_onnx_recognise(const qd_graph *g, qd_graph **out, qd_err *err);
/* onnx_qpatterns.c */
qd_status qd_onnx_find_codes(const qd_graph *g, qd_graph **out, qd_err *err);
/* onnx_attention.c: its two walks. */
qd_status qd_onnx_find_attention(const qd_graph *g, qd_graph **out, qd_err *err);
qd_status qd_onnx_tidy_views(const qd_graph *g, qd_graph **out, qd_err *err);

/* --- the rows of formats.c --- */
bool qd_onnx_sniff(const char *path);
qd_status qd_onnx_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err);
bool qd_onnx_folder_sniff(const char *path);
qd_status qd_onnx_folder_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err);

#endif
