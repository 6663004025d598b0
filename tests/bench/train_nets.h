/* train_nets.h - the networks whose training steps are measured; train_nets.py has the same in PyTorch. */
#ifndef TRAIN_NETS_H
#define TRAIN_NETS_H

#include "nn/nn.h"

typedef struct train_net {
    const char *name, *summary;
    int64_t batch;
    bool in_torch; /* train_nets.py knows it */
    /* Random weights; constants named "frozen.*" do not train. */
    qd_graph *(*make)(void);
    qd_status (*loss)(void *ctx, qd_graph *g, const qd_node_id *outputs, int n, qd_node_id *loss, qd_err *err);
    void (*fill)(int64_t n, void *const *inputs); /* of a batch of n */
    const qd_optim *optim;
    double lr;
    qd_bn_mode batch_norm;
} train_net;

extern const train_net train_nets[]; /* ends with name NULL */
bool train_net_trains(void *ctx, const char *constant);

#endif
