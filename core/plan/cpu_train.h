/* cpu_train.h - the fast backend's steps for training, whose weights change from run to run. */
#ifndef QD_PLAN_CPU_TRAIN_H
#define QD_PLAN_CPU_TRAIN_H

#include "plan/cpu_int.h"
#include "plan/lower_int.h"

/* --- cpu_grad.c: our own loops; images are [pixels][channels], the batch among the pixels --- */

typedef enum qd_train_kind {
    QD_TRAIN_STATS,       /* (x) -> [2, channels] */
    QD_TRAIN_SUMS,        /* (dy, x, stats) -> [2, channels] */
    QD_TRAIN_CHANNEL_SUM, /* (dy) -> [channels] */
    QD_TRAIN_NORM,        /* (x, weight, bias, stats, side or -1), relu */
    QD_TRAIN_NORM_GRAD,   /* (dy, x, weight, stats, sums) */
    QD_TRAIN_MASK,        /* (dy, y) */
    QD_TRAIN_SPREAD,      /* (dy [samples, channels]), mean */
} qd_train_kind;

typedef struct qd_train_step {
    const char *name, *kind_text; /* NULL = the kind's own */
    qd_train_kind kind;
    int n_in;
    qd_value_id in[QD_STEP_INPUTS], out;
    int64_t samples, pixels, channels; /* pixels: of all samples */
    float eps;
    bool relu, mean;
} qd_train_step;
qd_status qd_add_train_step(qd_plan *p, const qd_train_step *t, qd_err *err);

/* --- cpu_conv_grad.c: convolutions whose weights are values (row-major, packed at every run) --- */

typedef enum qd_conv_pass { QD_CONV_FORWARD, QD_CONV_BACK_INPUT, QD_CONV_BACK_WEIGHT } qd_conv_pass;
typedef struct qd_conv_train_step {
    const char *name;
    qd_conv_pass pass;
    int64_t macs;
    qd_conv_shape shape;
    qd_value_id image;  /* channels last: x forward and by weight, dy by input */
    qd_value_id second; /* weight (ROW) forward and by input; dy (channels last) by weight */
    qd_value_id bias;   /* forward; -1 = none */
    qd_value_id out;    /* channels last; by weight ROW */
} qd_conv_train_step;
qd_status qd_add_conv_train_step(qd_plan *p, const qd_conv_train_step *c, qd_err *err);

/* --- cpu_gemm_train.c: products with any side transposed --- */

typedef struct qd_product_step {
    const char *name, *kind;
    qd_value_id a, b, bias, out; /* bias [n] added to every row; -1 = none */
    int64_t batch, m, n, k;
    bool trans_a, trans_b;
    float alpha;
} qd_product_step;
qd_status qd_add_product_step(qd_plan *p, const qd_product_step *s, qd_err *err);

/* --- lower_train.c --- */

/* Steps for a node that only training has (or whose weights are not constants); *done says whether there are any. */
qd_status qd_lower_train(qd_lower *l, qd_node_id id, bool *done, qd_err *err);
/* A batch_norm_train with what follows it. */
qd_status qd_lower_train_norm(qd_lower *l, const qd_group *gr, qd_err *err);
/* Is this the weight of a convolution? */
bool qd_train_is_weight(const qd_fused *f, qd_node_id id);
/* Is this its first input as it is: a sum over nothing, detached, shaped as it was? */
bool qd_train_keeps(const qd_fused *f, qd_node_id id);
/* Do images of this operator lie channels last? For operators that training adds. */
bool qd_train_lays_last(const qd_fused *f, qd_node_id id);

#endif
