/* cpu_train.h - the fast backend's steps for training, whose weights change from run to run. */
#ifndef QD_PLAN_CPU_TRAIN_H
#define QD_PLAN_CPU_TRAIN_H

#include "plan/cpu_int.h"
#include "plan/lower_int.h"
#include "plan/train_simd.h"

/* --- cpu_grad.c: our own loops; images are [pixels][channels], the batch among the pixels --- */

typedef enum qd_train_kind {
    QD_TRAIN_STATS,      /* (x) -> [2, channels] */
    QD_TRAIN_STATS_GRAD, /* (dstats, x, stats) */
    QD_TRAIN_SUMS,       /* (dy, x, stats; or mean, var) -> [2, channels] */
    QD_TRAIN_NORM,       /* (x, weight, bias, stats, side or -1, -1; or mean for stats, and var last), relu */
    QD_TRAIN_NORM_GRAD,  /* (dy, x, weight, stats, sums) */
    QD_TRAIN_MASK,       /* (dy, y) */
} qd_train_kind;

typedef struct qd_train_step {
    const char *name, *kind_text; /* NULL = the kind's own */
    qd_train_kind kind;
    int n_in;
    qd_value_id in[QD_STEP_INPUTS], out;
    int64_t pixels, channels; /* pixels: of all samples */
    float eps;
    bool relu;
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

/* --- cpu_winograd.c: the same for 3 x 3 windows that move by one pixel --- */

bool qd_winograd_fits(const qd_conv_train_step *c);
qd_status qd_add_winograd_step(qd_plan *p, const qd_conv_train_step *c, qd_err *err);

/* --- cpu_gemm_train.c: products with any side transposed --- */

typedef struct qd_product_step {
    const char *name, *kind;
    qd_value_id a, b, bias, out; /* bias [n] added to every row; -1 = none */
    int64_t batch, m, n, k;
    bool trans_a, trans_b;
    float alpha;
} qd_product_step;
qd_status qd_add_product_step(qd_plan *p, const qd_product_step *s, qd_err *err);

/* --- cpu_train_map.c --- */

/* Rows of `width` elements; row r has scale [r % scales], which is p[0]. */
typedef struct qd_map_step {
    const char *name, *kind;
    qd_map map;
    qd_value_id a, b, scale, out; /* -1 = none */
    int64_t rows, width, scales;
    float p[4];
} qd_map_step;
qd_status qd_add_map_step(qd_plan *p, const qd_map_step *m, qd_err *err);
/* The derivative of a learned_quant by its scales [scales], out of rows as above: a is dy, b is x. */
qd_status qd_add_scale_grad_step(qd_plan *p, const qd_map_step *m, qd_err *err);
/* An operator on elements of their own, by its plain forward on pieces; every value of n elements in one layout. */
qd_status qd_add_pieces_step(qd_plan *p, const qd_node *n, const qd_value_id *in, qd_value_id out, int64_t count,
                             qd_err *err);

typedef enum qd_row_kind {
    QD_ROW_SOFTMAX_GRAD,     /* (dy, y) */
    QD_ROW_LOG_SOFTMAX_GRAD, /* (dy, y) */
    QD_ROW_LOG_SOFTMAX,      /* (x) */
    QD_ROW_NORM,             /* (x, weight?, bias?) */
    QD_ROW_NORM_GRAD,        /* (dy, x, weight?) */
    QD_ROW_NORM_GRAD_WEIGHT, /* (dy, x) -> [width] */
} qd_row_kind;
typedef struct qd_row_step {
    const char *name;
    qd_row_kind kind;
    qd_value_id in[3], out; /* -1 = none */
    int64_t rows, width;
    float eps;
} qd_row_step;
qd_status qd_add_row_step(qd_plan *p, const qd_row_step *r, qd_err *err);

/* --- cpu_train_reduce.c --- */

/* [outer][middle][inner] -> factor times the sums over the middle [outer][inner]; and each of those repeated there. */
typedef struct qd_reduce_step {
    const char *name, *kind;
    qd_value_id from, out;
    int64_t outer, middle, inner;
    float factor;
} qd_reduce_step;
qd_status qd_add_reduce_step(qd_plan *p, const qd_reduce_step *r, qd_err *err);
qd_status qd_add_repeat_step(qd_plan *p, const qd_reduce_step *r, qd_err *err);

/* --- cpu_train_norm.c: group norm over images that lie channels last, its weights being values --- */

typedef enum qd_group_norm_kind {
    QD_GROUP_NORM_FORWARD,    /* (x, weight?, bias?) */
    QD_GROUP_NORM_BACK,       /* (dy, x, weight?) */
    QD_GROUP_NORM_BACK_WEIGHT /* (dy, x) -> [channels] */
} qd_group_norm_kind;
typedef struct qd_group_norm_step {
    const char *name;
    qd_group_norm_kind kind;
    qd_value_id in[3], out;                    /* -1 = none */
    int64_t samples, pixels, channels, groups; /* pixels of a sample */
    float eps;
} qd_group_norm_step;
qd_status qd_add_group_norm_step(qd_plan *p, const qd_group_norm_step *g, qd_err *err);

/* --- cpu_train_pool.c: channels last --- */

/* x -1: of a mean, over taps in the image, or with count_pad over all. */
qd_status qd_add_pool_grad_step(qd_plan *p, const char *name, const qd_conv_shape *s, bool count_pad, qd_value_id dy,
                                qd_value_id x, qd_value_id out, qd_err *err);

/* --- cpu_train_move.c --- */

/* Every element of `out` from its place in `from`; places of negative index are zero. Axes outermost first, as out lies. */
typedef struct qd_move_step {
    const char *name, *kind;
    qd_value_id from, out;
    int rank;
    int64_t dim[QD_MAX_RANK], stride[QD_MAX_RANK], offset; /* of `from`, in elements */
    /* Along this axis of out only [begin, end) comes from `from`, the rest is zero; axis -1 = all does. */
    int axis;
    int64_t begin, end, step;
} qd_move_step;
qd_status qd_add_move_step(qd_plan *p, const qd_move_step *m, qd_err *err);

/* --- lower_train_elem.c --- */

/* Is this made of elements on their own, of one shape? Then it lies as they do. */
bool qd_train_is_map(const qd_fused *f, qd_node_id id);
qd_status qd_lower_train_elem(qd_lower *l, qd_node_id id, bool *done, qd_err *err);

/* --- lower_train_layers.c --- */

qd_status qd_lower_train_layers(qd_lower *l, qd_node_id id, bool *done, qd_err *err);

/* --- lower_train.c --- */

const qd_shape *qd_train_shape(const qd_lower *l, qd_node_id id, int k);
/* Input k in a layout; -1 when it is left out. */
qd_status qd_train_want(qd_lower *l, qd_node_id id, int k, qd_layout layout, qd_value_id *out, qd_err *err);

/* Steps for a node that only training has (or whose weights are not constants); *done says whether there are any. */
qd_status qd_lower_train(qd_lower *l, qd_node_id id, bool *done, qd_err *err);
/* A batch_norm_train, or a frozen batch_norm whose weights are values, with what follows it. */
qd_status qd_lower_train_norm(qd_lower *l, const qd_group *gr, qd_err *err);
/* The result's size is what the window makes of x: only a transposed convolution and its derivative may ask for less. */
bool qd_train_window_fits(const qd_conv_shape *c);
/* Does this become the weight of a convolution? */
bool qd_train_is_weight(const qd_fused *f, qd_node_id id);
/* Is this its first input as it is: a sum over nothing, detached, shaped as it was? */
bool qd_train_keeps(const qd_fused *f, qd_node_id id);
/* Do images of this operator lie channels last? For operators that training adds. */
bool qd_train_lays_last(const qd_fused *f, qd_node_id id);

#endif
