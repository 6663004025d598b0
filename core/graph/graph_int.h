/* graph_int.h - the inside of a graph, for the files of this room. */
#ifndef QD_GRAPH_GRAPH_INT_H
#define QD_GRAPH_GRAPH_INT_H

#include "graph/graph.h"
#include "graph/op.h"

typedef struct qd_graph_entry {
    qd_node *node;  /* in the arena: lent pointers outlive growth */
    uint64_t hash;  /* of the name */
    qd_shape probe; /* of its value for batch 1 */
} qd_graph_entry;

typedef struct qd_graph_output_row {
    const char *name;
    qd_node_id id;
} qd_graph_output_row;

struct qd_graph {
    qd_arena arena;
    qd_graph_entry *entries; /* [n_nodes] */
    int n_nodes, node_room;
    qd_node_id *slots; /* [n_slots]: names by open addressing, -1 = free; a power of two, at most half full */
    int n_slots;
    qd_node_id *inputs;
    int n_inputs, input_room;
    qd_graph_output_row *outputs;
    int n_outputs, output_room;
    qd_err failure; /* the first one; status 0 = none */
};

/* What the shape rule of node n sees, given the shapes of all nodes before it: in has QD_MAX_INPUTS entries. */
void qd_graph_operands(const qd_graph *g, const qd_node *n, const qd_shape *shapes, qd_operand *in);

#endif
