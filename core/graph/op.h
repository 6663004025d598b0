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
    qd_op_attention,   /* (q [N, T, C], k [N, S, C], v [N, S, C]); attrs heads, scale (0 = 1 / sqrt(C / heads)): softmax(q k^T scale) v per
                          head -> [N, T, C] */
    qd_op_timestep,    /* (t [N] f32 or i64) -> [N, dim] f32; attrs dim, flip_sin_to_cos, freq_shift, max_period: diffusion_models.md 2.1 */
    qd_op_embedding,   /* (index [N] i64 or f32, table [V, D]) -> [N, D]; an index outside 0..V-1 is held at the nearer end, NaN at 0 */
    /* op_func.c: functions of one value */
    qd_op_sqrt, qd_op_exp, qd_op_log, qd_op_abs, qd_op_erf, qd_op_sin, qd_op_cos,
    qd_op_leaky_relu,  /* attr slope of the negative side */
    qd_op_cast,        /* any of f32, i64, i32, u8, i8, bool -> f32 */
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
    qd_op_qconv2d,     /* (codes, weight I8 [O, C/g, kh, kw], wscale [O], bias?) -> f32: (x_scale * wscale_o) * sum (q - x_zero) w + bias;
                          attrs of conv2d and x_scale, x_zero; padding means real zero; at most QD_K_MAX_PRODUCTS products in a sum */
    qd_op_qlinear;     /* (codes [.., I], weight I8 [O, I], wscale [O], bias?) -> f32; attrs x_scale, x_zero; I <= QD_K_MAX_PRODUCTS */
/* clang-format on */

#endif
