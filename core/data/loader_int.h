/* loader_int.h - what a loader is made of. */
#ifndef QD_DATA_LOADER_INT_H
#define QD_DATA_LOADER_INT_H

#include <pthread.h>

#include "data/data_int.h"

/* What is chosen of one part of the union. */
typedef struct qd_share {
    const qd_samples *samples;
    int64_t count, base; // base: its sample 0 in the numbering of all parts
    int64_t *chosen;     // [n]; NULL = all
    double *sums;        // [count], running sums of weights; NULL = not drawn by weight
    int64_t n;           // samples of an epoch
    size_t bytes;        // drawn for the two
} qd_share;

typedef struct qd_slot {
    float *x;
    int32_t *label, *part;
    int64_t *sample;
    int done;       // pieces
    int64_t failed; // the first picture of the batch that failed; -1 = none
    qd_err err;
} qd_slot;

/* What each thread has for itself. */
typedef struct qd_hand {
    pthread_t thread;
    qd_loader *loader;
    qd_view_room *room;
    qd_image hold;
    bool started;
} qd_hand;

struct qd_loader {
    qd_share part[QD_LOADER_PARTS];
    int parts;
    qd_augment augment;
    qd_loader_options o;
    const qd_run *run;
    qd_budget *budget;
    int channels, height, width;
    size_t fixed_bytes, order_bytes;

    /* the epoch: written while no piece is under way */
    int64_t epoch, n; // n = samples in the order
    int64_t *order;   // [n], numbers over all parts
    int64_t batches;

    int slots, hands;
    qd_slot *slot;
    qd_hand *hand;

    pthread_mutex_t mutex;
    pthread_cond_t work, ready; /* pieces may be taken; one is done */
    bool made, running, quit;
    atomic_bool halt;    /* pieces under way are not wanted any more */
    int64_t next, end;   // pieces: the next to take, one past the last
    int64_t given, lent; // batches: the next to give, and those still with the caller (given - lent are free again)
    int active;          // pieces under way
};

/* --- loader_order.c --- */
int64_t qd_loader_samples(const qd_loader *l); /* of an epoch, as now chosen */
/* l->order of an epoch of n samples instead of what was there; NULL on failure. No piece is under way. */
qd_status qd_loader_order(qd_loader *l, int64_t epoch, int64_t n, qd_err *err);

#endif
