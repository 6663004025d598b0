/* graph.h - a network as a list of nodes, each making exactly one value, in an order in which inputs come first.
 *
 * A node is known by its index (qd_node_id); inputs and constants are nodes too. Logical layout of images is NCHW. The batch is
 * -1 in the shapes of inputs and gets its number when the graph is compiled (plan.h). Nodes, names and attributes live in the
 * graph's arena and die with it; constants share counted tensor storage. */
#ifndef QD_GRAPH_GRAPH_H
#define QD_GRAPH_GRAPH_H

#include "base/err.h"
#include "base/mem.h"
#include "tensor/tensor.h"

typedef int32_t qd_node_id; /* -1 = none: an optional input left out */
#define QD_MAX_INPUTS 8
#define QD_MAX_ATTRS 16
#define QD_MAX_NAME 200    /* bytes of a node's or output's name */
#define QD_MAX_NODES 65536 /* of one graph */
#define QD_MAX_OUTPUTS 4096

typedef struct qd_op qd_op;
typedef struct qd_graph qd_graph;

typedef enum qd_attr_kind { QD_ATTR_INT, QD_ATTR_FLOAT, QD_ATTR_INTS } qd_attr_kind;

/* One attribute value; the op's table row declares name and kind (op.h). */
typedef struct qd_attr {
    const char *name;
    qd_attr_kind kind;
    int64_t i;
    double f;
    int n; /* INTS: how many */
    int64_t ints[QD_MAX_RANK];
} qd_attr;
#define QD_INT(name_, v) ((qd_attr){ .name = (name_), .kind = QD_ATTR_INT, .i = (v) })
#define QD_FLOAT(name_, v) ((qd_attr){ .name = (name_), .kind = QD_ATTR_FLOAT, .f = (v) })
qd_attr qd_attr_ints(const char *name, int n, const int64_t *v);

typedef struct qd_node {
    const qd_op *op;  /* &qd_op_input, &qd_op_const, &qd_op_conv2d, ... */
    const char *name; /* unique in the graph; for layers the weight's prefix, "down_blocks.0.resnets.0.conv1" */
    int n_inputs;
    qd_node_id input[QD_MAX_INPUTS]; /* -1 past n_inputs */
    int n_attrs;                     /* = the op's, in the op's order, defaults filled in */
    qd_attr attr[QD_MAX_ATTRS];
    qd_dtype dtype;  /* of the value it makes */
    qd_shape shape;  /* declared shape of inputs (-1 = batch) and shape of constants; else rank -1 */
    qd_tensor value; /* constants only */
} qd_node;

qd_status qd_graph_new(qd_graph **out, qd_err *err);
void qd_graph_free(qd_graph *g);

/* Building. The first failure sticks: later calls return -1 at once and qd_graph_verify reports it, so builders need not check
 * each line. A const shares the tensor's storage. Attributes left out take the op's default; an INT is accepted where a FLOAT is
 * declared. Names must be unique, 1..QD_MAX_NAME bytes without control characters. Only the first dim of an input may be -1. Each
 * node is put to its op's shape rule at once, with batch 1. */
qd_node_id qd_graph_input(qd_graph *g, const char *name, qd_dtype dtype, const qd_shape *shape);
qd_node_id qd_graph_const(qd_graph *g, const char *name, const qd_tensor *value);
qd_node_id qd_graph_add(qd_graph *g, const qd_op *op, const char *name, const qd_node_id *inputs, int n_inputs,
                        const qd_attr *attrs, int n_attrs);
#define QD_IN(...) (qd_node_id[]){ __VA_ARGS__ }, (int)(sizeof((qd_node_id[]){ __VA_ARGS__ }) / sizeof(qd_node_id))
#define QD_ATTRS(...) (qd_attr[]){ __VA_ARGS__ }, (int)(sizeof((qd_attr[]){ __VA_ARGS__ }) / sizeof(qd_attr))
#define QD_NO_ATTRS NULL, 0
void qd_graph_output(qd_graph *g, const char *name, qd_node_id id);
/* Make the builder fail from outside, keeping the first words. */
void qd_graph_fail(qd_graph *g, qd_status st, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The sticky failure if there is one; then at least one output. What was added without failure has unique names, inputs that exist
 * and come earlier, arity and attributes as the op's row says, dtypes and shapes accepted by every shape rule with batch 1. */
qd_status qd_graph_verify(const qd_graph *g, qd_err *err);

/* Shapes of all nodes for given input shapes: shapes[n_nodes], inputs in order of qd_graph_input_at. Dtypes do not depend on the
 * batch: they are in the nodes. */
qd_status qd_graph_shapes(const qd_graph *g, const qd_shape *input_shapes, int n_inputs, qd_shape *shapes, qd_err *err);

int qd_graph_size(const qd_graph *g); /* number of nodes */
const qd_node *qd_graph_node(const qd_graph *g, qd_node_id id);
qd_node_id qd_graph_find(const qd_graph *g, const char *name); /* -1 when there is none */
int qd_graph_inputs(const qd_graph *g);
qd_node_id qd_graph_input_at(const qd_graph *g, int k);
int qd_graph_outputs(const qd_graph *g);
qd_node_id qd_graph_output_at(const qd_graph *g, int k);
const char *qd_graph_output_name(const qd_graph *g, int k);

/* Attribute of a node by name; asserts that the op declares it. */
int64_t qd_node_int(const qd_node *n, const char *name);
double qd_node_float(const qd_node *n, const char *name);
const qd_attr *qd_node_ints(const qd_node *n, const char *name);

/* Gives back the storage of a constant nobody will read again (other owners keep theirs): the graph is then good for nothing but
 * qd_graph_free. */
void qd_graph_let_go(qd_graph *g, qd_node_id id);

/* How often each node's value is read by nodes and outputs: uses[n_nodes]. */
void qd_graph_uses(const qd_graph *g, int *uses);

/* Rewriting makes a new graph: copy_node copies node `id` of src into dst, inputs through map[] (src id -> dst id), and returns
 * the new id (also stored in map[id]). Constants share storage. */
qd_node_id qd_graph_copy_node(qd_graph *dst, const qd_graph *src, qd_node_id id, qd_node_id *map);
/* The outputs of src become outputs of dst under their names, through map[]. */
void qd_graph_copy_outputs(qd_graph *dst, const qd_graph *src, const qd_node_id *map);
/* Drop nodes that no output needs (inputs stay). */
qd_status qd_graph_prune(const qd_graph *g, qd_graph **out, qd_err *err);

/* Sum of multiply-adds of one call (from each op's cost rule), elements of constants, bytes of constants. */
qd_status qd_graph_cost(const qd_graph *g, const qd_shape *input_shapes, int n_inputs, int64_t *macs, qd_err *err);
int64_t qd_graph_param_count(const qd_graph *g);
size_t qd_graph_param_bytes(const qd_graph *g);

/* Reverse mode (autograd.c): a copy of g, every node under its id, followed by the nodes of the backward pass; the outputs of g,
 * followed by one for each of wrt, in that order, named QD_GRADIENT_PREFIX and the node's name: the derivative of `loss` (f32 without
 * axes) by that node, of its shape; zeros when the loss does not depend on it. g needs no output of its own.
 *
 * wrt may be any f32 nodes; parameters that are trained are inputs of the graph, given anew at every run of the plan, so that an
 * optimizer may change them in place between runs, while constants may be folded and packed and stay.
 *
 * QD_E_UNSUPPORTED naming the first node on the way that has no rule, with its reason. Holds for every batch. */
#define QD_GRADIENT_PREFIX "d."
qd_status qd_graph_gradient(const qd_graph *g, qd_node_id loss, const qd_node_id *wrt, int n_wrt, qd_graph **out,
                            qd_err *err);

/* The same function in less memory (recompute.c): of a graph of qd_graph_gradient, whose first `forward` nodes are the forward pass, the
 * backward pass reads anew made copies of forward values that `keep` [forward] does not mark; inputs and constants are always there.
 * Outputs are those of g, byte for byte. */
qd_status qd_graph_recompute(const qd_graph *g, int forward, const bool *keep, qd_graph **out, qd_err *err);
/* Which values of a forward pass to keep, so that these and the largest stretch between them take the least bytes: keep [nodes of
 * g], shapes as of qd_graph_shapes. */
qd_status qd_graph_keep_choice(const qd_graph *g, const qd_shape *shapes, bool *keep, qd_err *err);

/* A listing a person can read, one node a line, appended to b. */
struct qd_buf;
void qd_graph_print(const qd_graph *g, struct qd_buf *b);

#endif
