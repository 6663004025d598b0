/* recon_int.h - the inside of reconstruction: blocks, pieces of a network, values kept over a calibration set, soft rounding. */
#ifndef QD_QUANT_RECON_INT_H
#define QD_QUANT_RECON_INT_H

#include "base/fs.h"
#include "quant/qncd_int.h"

/* --- blocks.c: what is reconstructed together (qncd.md 4.3) --- */

/* A part of the network with one value that leaves it. Reconstruction stores the values blocks make ("cuts") over the calibration
 * set; whatever lies between cuts belongs to the block that reads it. */
typedef struct qd_block {
    char name[QD_MAX_NAME + 8];
    const char *kind; /* "resblock", "attention", "transformer", "layer"; "float" when it holds no quantized layer */
    qd_node_id out;   /* the value it makes */
    int *layers;      // [n_layers], numbers of quantized layers in the layout, rising
    int n_layers;
    qd_node_id *feeds; // [n_feeds]: cuts and inputs of the graph that it is computed from
    int n_feeds;
    qd_node_id
        *entry; // [n_entry]: what crosses its boundary: feeds, values of the time step, what a single layer reads
    int n_entry;
} qd_block;

typedef struct qd_blocks {
    qd_block *block; // [n], forward order: what a block reads is made by those before it
    int n;
    bool *cut; // [nodes]: made by a block, or an input of the graph
    qd_arena arena;
} qd_blocks;

/* Residual blocks, attention, transformer blocks by the form of the graph; every other layer alone. single: every layer alone.
 * Each quantized layer of the layout is in exactly one block. Zero *out before; clear it after success and failure alike. */
qd_status qd_blocks_find(const qd_layout *l, bool single, qd_blocks *out, qd_err *err);
void qd_blocks_clear(qd_blocks *b);

/* --- piece.c: a piece of a network, between values given and values wanted --- */

typedef enum qd_piece_weights {
    QD_PIECE_FLOAT,  /* as the graph has them */
    QD_PIECE_CODES,  /* what the layout's codes mean, weight-only layers and biases too */
    QD_PIECE_INPUTS, /* codes, but the block's own layers take theirs as inputs */
} qd_piece_weights;

typedef struct qd_piece_spec {
    const qd_layout *layout;
    const qd_shape *shapes;  // [nodes], for the batch it runs with
    const qd_node_id *given; /* values it is given, where they are needed; inputs of the graph always are */
    int n_given;
    const qd_node_id *wanted;
    int n_wanted;
    qd_piece_weights weights;
    const qd_block *block; /* INPUTS: whose layers */
} qd_piece_spec;

typedef struct qd_piece {
    qd_graph *graph;
    qd_node_id *input; // [n_inputs]: the node whose value each input of the graph takes; then, for INPUTS, the layers
    int n_inputs;      /* without the weights */
    qd_node_id *id;    // [nodes]: where a node of the network is in the piece; -1 = it is not
} qd_piece;
/* Outputs of the piece are the wanted values in their order, under their names; no output is added for INPUTS, whose caller does. */
qd_status qd_piece_cut(const qd_piece_spec *s, qd_budget *budget, qd_piece *out, qd_err *err);
void qd_piece_clear(qd_piece *p);
/* A plan of a graph whose inputs have the shapes they are to be run with. */
struct qd_plan;
qd_status qd_piece_compile(const qd_graph *g, int threads, qd_budget *budget, struct qd_plan **plan, qd_err *err);

/* The weight that a layer's codes mean, as many floats as the float one has. */
qd_status qd_layer_restore(const qd_layout *l, const qd_quant_layer *layer, float *weight, qd_err *err);

/* --- kept.c: values of both networks over the items of a calibration set --- */

/* An item is one sample at one stored time step, told its condition or told nothing: first all steps one way, then the other. */
typedef struct qd_kept_values {
    const qd_layout *layout;
    const qd_blocks *blocks;
    const qd_run *run;
    int64_t items, per_step;
    int64_t batch;    /* items in a call */
    qd_shape *one;    // [nodes], batch 1
    qd_shape *shapes; // [nodes], batch
    qd_tensor
        *value[2]; // [nodes] each: [items * one] of the float network and of the one in codes; empty where not kept
} qd_kept_values;

typedef enum qd_net { QD_NET_FLOAT, QD_NET_CODES } qd_net;

/* As many samples of each step, up to `most` (0 = all), as `share` of what the budget has left holds, with all that has to be kept at a time; QD_E_LIMIT with the
 * room one sample takes when not even that fits. */
qd_status qd_kept_init(qd_kept_values *k, const qd_layout *l, const qd_blocks *b, const qd_calibration_set *set,
                       int64_t most, const qd_run *run, qd_err *err);
void qd_kept_clear(qd_kept_values *k);
/* Values of one network over all items, from what is kept of it; out[k] is new, [items * one]. */
qd_status qd_kept_compute(qd_kept_values *k, qd_net net, const qd_node_id *wanted, int n, qd_tensor *out, qd_err *err);
/* Shapes of all nodes with a batch of `batch`. */
qd_status qd_kept_shapes(const qd_graph *g, int64_t batch, qd_shape *shapes, qd_err *err);
int64_t qd_kept_count(const qd_kept_values *k, qd_node_id id); /* elements of one item */
size_t qd_kept_bytes(const qd_kept_values *k, qd_node_id id);  /* of one item */
/* Drop what no block after number `block` is computed from. */
void qd_kept_drop(qd_kept_values *k, int block);

/* --- adaround.c: soft rounding of one layer's weights (qncd.md 6.1 to 6.3) --- */

/* Weights of a row that share a step. */
typedef struct qd_round_run {
    int64_t begin, length; // columns
    int part;
    int64_t scale; /* of that part's row of scales */
} qd_round_run;

typedef struct qd_round {
    const qd_quant_layer *layer;
    int64_t rows, columns;
    qd_round_run *runs; // [n_runs], the same for every row
    int n_runs;
    int32_t qmin, qmax;
    int16_t *floor; // [rows, columns]: floor(w / step), held in [qmin - 1, qmax], beyond which it makes no difference
    float *v, *h;   // [rows, columns]: what is learned, and h(v)
    float *m, *s;   // [rows, columns]: Adam's moments
    bool drawn;     /* from the budget */
} qd_round;
/* v0 with h(v0) = w / step - floor(w / step), so that the soft weight is the float weight where codes reach it. r is zeroed before;
 * clear it after success and failure alike. */
qd_status qd_round_init(qd_round *r, const qd_layout *l, const qd_quant_layer *layer, qd_budget *budget, qd_err *err);
void qd_round_clear(qd_round *r, qd_budget *budget);
/* clamp(floor + h, qmin, qmax) step, [rows, columns]; hard: [v >= 0] for h. */
void qd_round_weight(const qd_round *r, bool hard, float *weight, int threads);

typedef struct qd_round_step {
    double lambda, b; /* of the regulariser lambda sum (1 - |2 h - 1|^b); lambda 0: none */
    double lr;
    int64_t step; // from 1
    const float *const
        *grad; // [n_grad] of [rows, columns], by the soft weight: summed in their order, multiplied by scale
    int n_grad;
    double scale;
} qd_round_step;
/* The derivative by v of loss and regulariser, [rows, columns]. */
void qd_round_gradient(const qd_round *r, const qd_round_step *s, float *dv, int threads);
/* A step of Adam on v; h follows, and the soft weight. */
void qd_round_learn(qd_round *r, const qd_round_step *s, float *weight, int threads);
double qd_round_regulariser(const qd_round *r, double b); /* sum of 1 - |2 h - 1|^b */
int64_t qd_round_settled(const qd_round *r);              /* h within 0.05 of 0 or 1 */
void qd_round_codes(const qd_round *r, int8_t *codes);    // hard ones, [rows, columns]

/* Codes of a layer, one int8 in the place of each weight; parts keep their packing, and their SQNR follows. */
qd_status qd_layer_get_codes(const qd_layout *l, const qd_quant_layer *layer, int8_t *codes, qd_err *err);
qd_status qd_layer_set_codes(const qd_layout *l, qd_quant_layer *layer, const int8_t *codes, qd_budget *budget,
                             qd_err *err);
int64_t qd_layer_weights(const qd_layout *l, const qd_quant_layer *layer); /* how many */

/* b of an iteration (from 0): held through the warm-up, then linear (6.2). */
double qd_recon_b(const qd_recon_options *o, int64_t iteration);

/* --- replicas.c: a loss and its gradient over a batch of items --- */

enum { QD_REPLICAS = 4 };
#define QD_REPLICAS_WIDE (2ll << 20) /* weights from which each replica costs more than it gains */
/* How many replicas share a batch of items. */
int qd_replicas_count(int64_t batch, int64_t weights);

/* Where an input of the graph comes from: values of all items, of which a batch takes some; or, with item_bytes 0, the same for all of
 * them, read anew at every run. */
typedef struct qd_replica_input {
    const void *data;
    size_t item_bytes;
} qd_replica_input;
typedef struct qd_replica {
    struct qd_plan *plan;
    qd_tensor *buffer; // [n_inputs], of the items of a batch
    qd_tensor *grad;   // [n_grads]
    float loss;
    const void **in;
    void **out;
    qd_status st;
    qd_err err;
} qd_replica;
typedef struct qd_replicas {
    const qd_run *run;
    int n, n_inputs, n_grads;
    int64_t share; /* items of each */
    qd_replica_input *input;
    int64_t *item; // [n * share]
    qd_replica replica[QD_REPLICAS];
} qd_replicas;
/* g: outputs a loss that is a mean over its items, then gradients; shapes for batch / n items. Clear it after failure too. */
qd_status qd_replicas_init(qd_replicas *r, const qd_graph *g, const qd_replica_input *input, int n, int64_t batch,
                           const qd_run *run, qd_err *err);
void qd_replicas_clear(qd_replicas *r);
/* One batch of `items` drawn for a block's step. Gradients are in replica[].grad: their mean is that of the batch. QD_E_NUMERIC when the
 * loss is not finite. */
qd_status qd_replicas_run(qd_replicas *r, int64_t items, int number, int64_t step, double *loss, qd_err *err);

/* --- recon_block.c: one block as it is evaluated and trained --- */

typedef struct qd_recon_work {
    const qd_layout *layout;
    const qd_block *block;
    const qd_kept_values *kept;
    const qd_recon_options *options;
    const qd_run *run;
    const qd_tensor *entry; // [n_entry]: over all items, of the network in codes
    const float *target;    // [items * one]: of the float network
    int number;             /* of the block: its share of chance */
    int64_t done, total;    /* iterations of all blocks, for progress */
} qd_recon_work;
/* Mean square of the difference to the target over all items with the codes as they are; y (may be NULL) gets the block's value. */
qd_status qd_recon_evaluate(const qd_recon_work *w, float *y, double *mse, qd_err *err);
/* codes[k] [weights of layer k] learned; *iterations made, *settled share of h at the end. */
qd_status qd_recon_learn(const qd_recon_work *w, int8_t *const *codes, int *iterations, double *settled, qd_err *err);

/* --- gptq.c: rounding column by column, each error made good by the columns that follow (Frantar et al., ICLR 2023) --- */
/* Codes of the one layer of a block. *note says why when they are those it had. */
qd_status qd_gptq_learn(const qd_recon_work *w, int8_t *codes, const char **note, qd_err *err);
const char *qd_gptq_note(const char *text); /* that note, from a file; "" when it is none of ours */

/* --- inverse.c --- */
/* h [n, n], of which the upper half counts, is used up; u [n, n] becomes upper with H^-1 = U^T U. *positive: H is positive definite. */
qd_status qd_inverse_factor(double *h, double *u, int64_t n, const qd_run *run, bool *positive, qd_err *err);

/* --- recon_kept.c: finished blocks in a folder --- */
typedef struct qd_recon_store {
    const char *folder;
    char key[QD_SHA256_HEX]; /* of all that the codes depend on */
} qd_recon_store;
/* k: its inputs filled, nothing computed yet. */
qd_status qd_recon_store_init(qd_recon_store *s, const qd_kept_values *k, const qd_recon_options *o, qd_err *err);
/* *found: the block's codes are there, made from the same things, and are put into codes[k] and row. What is there but does not fit is
 * left alone with a warning. */
qd_status qd_recon_store_load(const qd_recon_store *s, const qd_layout *l, const qd_block *b, int number,
                              int8_t *const *codes, qd_recon_block *row, bool *found, const qd_run *run, qd_err *err);
qd_status qd_recon_store_save(const qd_recon_store *s, const qd_layout *l, const qd_block *b, int number,
                              int8_t *const *codes, const qd_recon_block *row, qd_err *err);

#endif
