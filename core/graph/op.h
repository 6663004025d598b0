/* op.h - operators: the table and what a row says. One value out of up to QD_MAX_INPUTS values.
 *
 * Notation: N batch, C channels, H W space, T tokens, O output features. All images NCHW, weights as PyTorch stores them. */
#ifndef QD_GRAPH_OP_H
#define QD_GRAPH_OP_H

#include "graph/graph.h"
#include "tensor/kernels.h"

typedef struct qd_op_attr {
    const char *name;
    qd_attr_kind kind;
    double fallback; /* INT and FLOAT default; NAN = must be given */
    int n;           /* INTS: how many values (0 = any up to QD_MAX_RANK) */
    const char *summary;
} qd_op_attr;

/* What the shape rule sees of one input. value is set for constants only. */
typedef struct qd_operand {
    qd_dtype dtype;
    qd_shape shape;
    const qd_tensor *value;
} qd_operand;

/* What a backward rule is given and gives: it adds nodes to `graph` (qd_back_add of op_int.h names them) that make the derivative of
 * the loss by each input that is wanted, out of that by the node's value, dy. */
typedef struct qd_backward {
    qd_graph *graph;
    const qd_node *node;
    qd_node_id id, dy;            /* the node's value; the derivative of the loss by it, of the same shape */
    bool want[QD_MAX_INPUTS];     /* that input is f32 and leads to something asked for */
    qd_node_id dx[QD_MAX_INPUTS]; /* out, of the shape of that input; -1 (as it comes) = zero */
    const qd_shape *doubled;      /* shapes of the nodes before it for batch 2; NULL when there are none */
} qd_backward;

struct qd_op {
    const char *name; /* "conv2d"; also in bundles: never renamed */
    const char *summary;
    const qd_op_attr *attrs;    /* ends with name NULL; may be NULL */
    int min_inputs, max_inputs; /* those past min may be -1 or left out */

    /* Shape and dtype of the result. in has max_inputs entries, shape.rank < 0 for one left out. All dims are known here (no -1).
     * Accepts hostile attributes and operands: every inconsistency is a QD_E_INVALID that names the value, a value of more than
     * QD_MAX_ELEMENTS a QD_E_LIMIT. NULL for input and const. */
    qd_status (*infer)(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err);

    /* Plain forward: out is allocated with the inferred shape; in has max_inputs entries, NULL for one left out. Row-major,
     * cannot fail. */
    void (*forward)(const qd_node *n, const qd_tensor *const *in, qd_tensor *out);

    /* Multiply-adds of one call, for operands that infer accepted; INT64_MAX when there are more. NULL counts as 0. */
    int64_t (*macs)(const qd_node *n, const qd_operand *in, const qd_shape *out);

    /* Derivatives as nodes (autograd.c); a failure sticks to the graph. NULL where `no_gradient` says why there is none. */
    void (*backward)(qd_backward *b);
    const char *no_gradient;
};

extern const qd_op *const qd_ops[]; /* NULL-terminated: the table */
const qd_op *qd_op_find(const char *name);

#define QD_MAX_ELEMENTS ((int64_t)1 << 40) /* of one value: bytes and sums of dims stay far from overflow */

/* Checks arity, then asks the row's shape rule; the words begin with the node's name. in has op->max_inputs entries. */
qd_status qd_op_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err);

/* The window of a conv2d, qconv2d, avg_pool or max_pool node as the kernels want it. weight NULL for pools. */
qd_conv_shape qd_node_conv_shape(const qd_node *n, const qd_shape *x, const qd_shape *weight, const qd_shape *out);
/* The codes of a quantize or fake_quant node: 0..2^bits-1, or two's complement when symmetric. */
void qd_node_code_range(const qd_node *n, int32_t *qmin, int32_t *qmax);
/* The factor of an attention node's scores on q of so many channels; of a qattention's, what one step of a score of codes means. */
float qd_node_attention_scale(const qd_node *n, int64_t channels);
float qd_node_score_step(const qd_node *n, int64_t channels);

/* clang-format off */
extern const qd_op
    qd_op_input, qd_op_const,
    /* op_math.c: elementwise with numpy broadcasting; unary; products */
    qd_op_add, qd_op_sub, qd_op_mul, qd_op_div,   /* (a, b) */
    qd_op_affine,      /* x * mul + add; attrs mul, add */
    qd_op_silu, qd_op_relu, qd_op_gelu, qd_op_sigmoid, qd_op_tanh, qd_op_clip, /* clip: attrs lo, hi */
    qd_op_pow, qd_op_min, qd_op_max,              /* (a, b) */
    qd_op_softmax, qd_op_log_softmax, /* attr axis (may be negative; default last) */
    qd_op_matmul,      /* (a [.., M, K], b [.., K, N]) batched with broadcasting; attrs trans_a, trans_b, alpha */
    qd_op_linear,      /* (x [.., I], weight [O, I], bias? [O]) -> [.., O] */
    qd_op_timestep,    /* (t [N] f32 or i64) -> [N, dim] f32; attrs dim, flip_sin_to_cos, freq_shift, max_period: diffusion_models.md 2.1 */
    qd_op_embedding,   /* (index [N] i64 or f32, table [V, D]) -> [N, D]; an index outside 0..V-1 is held at the nearer end, NaN at 0 */
    /* op_attention.c */
    qd_op_attention,   /* (q [N, T, C], k [N, S, C], v [N, S, C]); attrs heads, scale (0 = 1 / sqrt(C / heads)): softmax(q k^T scale) v per
                          head -> [N, T, C] */
    qd_op_qattention,  /* (q, k, v codes); attrs heads, scale (>= 0), softmax_bits, {q,k,v}_{scale,zero}: see qd_k_qattention; at most
                          QD_K_MAX_PRODUCTS tokens to attend to */
    qd_op_fake_attention, /* (q, k, v); attrs heads, scale, softmax_bits: the same in float */
    /* op_codebook.c */
    qd_op_codebook,    /* (x [N, D, ..], table [V, D]) -> like x: at each place the row nearest in L2, the first of equals; for NaN row 0 */
    /* op_func.c: functions of one value */
    qd_op_sqrt, qd_op_exp, qd_op_log, qd_op_abs, qd_op_erf, qd_op_sin, qd_op_cos,
    qd_op_leaky_relu,  /* attr slope of the negative side */
    qd_op_cast,        /* any of f32, i64, i32, u8, i8, bool -> f32 */
    /* op_select.c */
    qd_op_where,       /* (condition, a, b) f32, broadcast: a where the condition is above 0, else b; no gradient flows into it */
    /* op_reduce.c */
    qd_op_mean, qd_op_sum, /* attrs axes INTS (distinct, may be negative), keep: 1 leaves them as 1 */
    /* op_spatial.c */
    qd_op_conv2d,      /* (x, weight [O, C/groups, kh, kw], bias?); attrs stride INTS 2, pads INTS 4 (top, left, bottom, right), dilation INTS 2, groups */
    qd_op_conv_transpose2d, /* (x [N, C, H, W], weight [C, O/groups, kh, kw], bias? [O]); attrs of conv2d, pads cut from the result, and
                          output_pad INTS 2 (rows below, columns right) */
    qd_op_upsample,    /* nearest, integer factor; attr factor INTS 2 (down, across) */
    qd_op_avg_pool, qd_op_max_pool, /* attrs kernel, stride INTS 2, pads INTS 4 (smaller than the kernel); avg_pool: count_pad, whether zeros
                          of the padding count in the mean (default 1, as in PyTorch) */
    qd_op_global_avg_pool, /* [N, C, H, W] -> [N, C, 1, 1] */
    /* op_norm.c */
    qd_op_group_norm,  /* (x [N, C, ..], weight? [C], bias? [C]); attrs groups, eps */
    qd_op_layer_norm,  /* (x, weight?, bias?) over the last `axes` axes, weight and bias of their shape; attrs axes, eps */
    qd_op_batch_norm,  /* (x [N, C, ..], weight, bias, mean, var [C]), frozen; attr eps */
    /* op_shape.c: any dtype of whole bytes, pad: f32 and codes */
    qd_op_reshape,     /* attr shape INTS: 0 keeps that dim, one -1 is computed */
    qd_op_permute,     /* attr perm INTS: axis k of the result is axis perm[k] of x */
    qd_op_concat,      /* (a, b, ...); attr axis (may be negative; default 1) */
    qd_op_slice,       /* attrs axis, start, length, step: elements start, start + step, ..; `length` of them (-1 = to the end); a
                          negative axis or start counts from the end */
    qd_op_gather,      /* (x, index i64 [K]); attr axis (may be negative): slices of x in that order; an index outside is held at the nearer end */
    qd_op_expand,      /* (x f32, like?) broadcast; attr shape INTS: dims of the result, 0 = the first dim of `like` */
    qd_op_pad,         /* constant; attrs pads INTS (before per axis, then after per axis; so rank <= 4), value */
    /* op_quant.c: codes are U8 (asymmetric, 0..2^bits-1) or I8 (symmetric, two's complement); see qncd.md 3.1 */
    qd_op_quantize,    /* (x, divisor? [C]) -> codes: q = clamp(rne((x * (1/divisor_c)) * (1/scale)) + zero), c along axis 1, NaN gives
                          zero; attrs scale, zero, bits 2..8, symmetric */
    qd_op_dequantize,  /* (codes) -> f32: (q - zero) * scale; attrs scale, zero */
    qd_op_fake_quant,  /* (x, divisor?) -> f32: dequantize(quantize(x)); attrs as quantize, bits 2..16 */
    qd_op_qconv2d,     /* (codes, weight I8, I6 or I4 [O, C/g, kh, kw], wscale, bias?) -> f32; attrs of conv2d and x_scale, x_zero, group_size.
                          group_size 0: wscale [O], (x_scale * wscale_o) * sum (q - x_zero) w + bias. Else wscale [O, ceil(C/g / group_size)]:
                          input channel c of a filter goes by scale c / group_size, the sums of each scale are exact and are added up as
                          floats. Padding means real zero; at most QD_K_MAX_PRODUCTS products to an output */
    qd_op_qlinear,     /* (codes [.., I], weight I8, I6 or I4 [O, I], wscale, bias?) -> f32; attrs x_scale, x_zero, group_size */
    /* op_grad_spatial.c: batch norm that learns */
    qd_op_batch_norm_stats, /* (x [N, C, ..]) -> [2, C]: mean and biased variance over batch and space */
    qd_op_batch_norm_train, /* (x, weight [C], bias [C], stats [2, C] = batch_norm_stats of this x); attr eps. Its derivative by x has
                          that through the statistics in it */
    /* op_learn.c: quantizers that learn */
    qd_op_learned_quant, /* (x, scale [1] or [C] > 0); attrs bits 2..16, symmetric, axis of the scales, pass_all: clamp(rne(x / s)) s. Straight
                          through by x in range (everywhere with pass_all), LSQ by scale */
    qd_op_soft_round,    /* (v): AdaRound's h(v) = clamp(sigmoid(v) (hi - lo) + lo, 0, 1); attrs lo, hi: qncd.md 6.1 */
    /* op_grad.c, op_grad_shape.c: what differentiation is made of. `like` operands give their shape alone. */
    qd_op_detach,      /* (x): x, through which no gradient flows */
    qd_op_less,        /* (a, b): 1 where a < b, 1/2 where equal, else 0 */
    qd_op_unary_grad,  /* (dy, x); attr of, a qd_unary: dy f'(x) */
    qd_op_clip_grad, qd_op_leaky_relu_grad,     /* (dy, x); attrs of clip, leaky_relu */
    qd_op_softmax_grad, qd_op_log_softmax_grad, /* (dy, y); attr axis */
    qd_op_linear_grad_input, qd_op_linear_grad_weight, /* (dy [.., O], weight [O, I]) -> [.., I]; (dy [.., O], x [.., I]) -> [O, I] */
    qd_op_sum_like,    /* (dy, like): summed to the shape of like, which broadcasts to dy's */
    qd_op_reshape_like, /* (x, like) */
    qd_op_reduce_grad, /* (dy, like); attrs axes, mean: dy repeated along axes to like's shape */
    qd_op_slice_grad, qd_op_gather_grad, qd_op_concat_grad, qd_op_pad_grad, /* (dy, like); (dy, index, like); (dy, parts .., part); (dy) */
    qd_op_conv2d_grad_input, qd_op_conv2d_grad_weight, /* (dy, weight, like x); (dy, x, like weight); attrs of conv2d */
    qd_op_avg_pool_grad, qd_op_max_pool_grad,   /* (dy, x); attrs of the pools */
    qd_op_group_norm_grad, qd_op_group_norm_grad_weight, /* (dy, x, weight?) by x; (dy, x) -> [C]; attrs of group_norm */
    qd_op_layer_norm_grad, qd_op_layer_norm_grad_weight, /* the same over the last axes */
    qd_op_batch_norm_stats_grad, /* (dstats, x, stats) */
    qd_op_batch_norm_train_grad, /* (dy, x, weight, stats, sums); attr eps */
    qd_op_batch_norm_train_sums, /* (dy, x, stats) -> [2, C]: sums of dy and of dy (x - mean) / sqrt(var + eps); attr eps */
    qd_op_batch_norm_sums,       /* the same by (dy, x, mean, var) */
    qd_op_learned_quant_grad, qd_op_learned_quant_grad_scale, /* (dy, x, scale); attrs bits, symmetric, axis */
    qd_op_soft_round_grad, qd_op_fake_quant_grad; /* (dy, v); (dy, x, divisor?) */
/* clang-format on */

#endif
