/* train_int.h - the inside of training, for the files of this room. */
#ifndef QD_NN_TRAIN_INT_H
#define QD_NN_TRAIN_INT_H

#include "nn/nn.h"
#include "plan/plan.h"

/* A constant of the network and the input it became; a batch norm of the network and the node of its statistics. */
typedef struct qd_learned {
    qd_node_id from, id;
} qd_learned;

/* The network as it is trained: its inputs are those of the network, the parameters and what the loss asks for; its outputs the
 * loss, then the statistics of each batch norm. */
typedef struct qd_trainable {
    qd_graph *graph;
    qd_node_id loss;
    qd_learned *params, *norms;
    int n_params, n_norms;
} qd_trainable;

/* t is zeroed before; clear it after success and failure alike. */
qd_status qd_trainable_make(const qd_trainer_options *o, qd_trainable *t, qd_err *err);
void qd_trainable_clear(qd_trainable *t);
/* The network with the constants for which learned() gives data replaced; new ones are drawn from the budget. */
qd_status qd_trainable_finish(const qd_graph *network, const float *(*learned)(const void *ctx, qd_node_id id),
                              const void *ctx, qd_budget *budget, qd_graph **out, qd_err *err);

/* --- train_plan.c --- */

/* Shapes of the inputs for that batch: given [inputs]. */
void qd_train_inputs(const qd_trainable *t, int64_t batch, qd_shape *given);
/* Bytes of the inputs that are not parameters. */
size_t qd_train_data_bytes(const qd_trainable *t, int64_t batch);
/* The plan of loss, statistics and derivatives; with `needs` only the bytes that making it would take at most. */
qd_status qd_train_compile(const qd_trainable *t, const qd_trainer_options *o, const qd_run *run, size_t *needs,
                           qd_plan **out, qd_err *err);
/* Always QD_E_LIMIT, in words that say what would fit. arrays: the bytes that do not depend on the batch; nothing of this training is
 * drawn when it is called. */
qd_status qd_train_refuse(const qd_trainable *t, const qd_trainer_options *o, const qd_run *run, size_t arrays,
                          qd_err *err);

/* One tensor that a checkpoint holds. */
typedef struct qd_kept {
    char name[QD_MAX_NAME + 16];
    qd_shape shape;
    float *data;
} qd_kept;

/* checkpoint.c: n tensors, and what the run depends on beside them. Loading changes nothing unless all of it fits. */
typedef struct qd_checkpoint {
    const char *optimizer;
    uint64_t seed;
    int64_t step;
    const qd_kept *kept;
    int n;
} qd_checkpoint;
qd_status qd_checkpoint_save(const qd_checkpoint *c, const char *path, qd_err *err);
qd_status qd_checkpoint_load(qd_checkpoint *c, const char *path, qd_err *err);

#endif
