/* op_trials.h - for every row of the operator table a random node that its shape rule must accept. */
#ifndef PROP_OP_TRIALS_H
#define PROP_OP_TRIALS_H

#include "base/rng.h"
#include "graph/op.h"

/* One node with what it is given; operands with rank < 0 are left out. */
typedef struct trial {
    qd_node node;
    qd_operand in[QD_MAX_INPUTS];
} trial;

/* A valid trial for the row; false for input and const, which compute nothing. A row without a maker fails the test: whoever adds
 * an operator adds its line to op_trials.c. */
bool trial_make(trial *t, const qd_op *op, qd_rng *r);

/* Uniform in lo..hi. */
int64_t pick(qd_rng *r, int64_t lo, int64_t hi);

#endif
