/* op.h - operators: the table and what a row says. One value out of up to QD_MAX_INPUTS values.
 *
 * Notation: N batch, C channels, H W space, T tokens, O output features. All images NCHW, weights as PyTorch stores them. */
#ifndef QD_GRAPH_OP_H
#define QD_GRAPH_OP_H

#include "graph/graph.h"

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

    /* Shape and dtype of the result. in[k].shape.rank < 0 for an input left out. All dims are known here (no -1). Must accept
     * hostile attributes: every inconsistency is a QD_E_INVALID that names the value. NULL for input and const. */
    qd_status (*infer)(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err);

    /* Plain forward: out is allocated with the inferred shape; in[k] NULL for an input left out. Row-major, cannot fail. */
    void (*forward)(const qd_node *n, const qd_tensor *const *in, qd_tensor *out);

    /* Multiply-adds of one call. NULL counts as 0. */
    int64_t (*macs)(const qd_node *n, const qd_operand *in, const qd_shape *out);
};

extern const qd_op *const qd_ops[]; /* NULL-terminated: the table */
const qd_op *qd_op_find(const char *name);

/* clang-format off */
extern const qd_op
    qd_op_input, qd_op_const,
    /* op_math.c: elementwise with numpy broadcasting; unary; products */
    qd_op_add, qd_op_sub, qd_op_mul, qd_op_div,   /* (a, b) */
    qd_op_affine,      /* x * mul + add; attrs mul, add */
    qd_op_silu, qd_op_relu, qd_op_gelu, qd_op_sigmoid, qd_op_tanh, qd_op_clip, /* clip: attrs lo, hi */
    qd_op_softmax,     /* attr axis (may be negative) */
    qd_op_matmul,      /* (a [.., M, K], b [.., K, N]) batched with broadcasting; attrs trans_a, trans_b, alpha */
    qd_op_linear,      /* (x [.., I], weight [O, I], bias? [O]) -> [.., O] */
    qd_op_attention,   /* (q [N, T, C], k [N, S, C], v [N, S, C]); attrs heads, scale: softmax(q k^T scale) v per head -> [N, T, C] */
    qd_op_timestep,    /* (t [N]) -> [N, dim] f32; attrs dim, flip_sin_to_cos, freq_shift, max_period: diffusion_models 2.1 */
    qd_op_embedding,   /* (index [N] i64 or f32, table [V, D]) -> [N, D] */
    /* op_spatial.c */
    qd_op_conv2d,      /* (x, weight [O, C/groups, kh, kw], bias?); attrs stride INTS 2, pads INTS 4 (top, left, bottom, right), dilation INTS 2, groups */
    qd_op_upsample,    /* nearest, integer factor; attr factor INTS 2 */
    qd_op_avg_pool, qd_op_max_pool, /* attrs kernel, stride INTS 2, pads INTS 4 */
    qd_op_global_avg_pool, /* [N, C, H, W] -> [N, C, 1, 1] */
    /* op_norm.c */
    qd_op_group_norm,  /* (x [N, C, ..], weight? [C], bias? [C]); attrs groups, eps */
    qd_op_layer_norm,  /* (x, weight?, bias?) over the last `axes` axes; attrs axes, eps */
    qd_op_batch_norm,  /* (x, weight, bias, mean, var), frozen; attr eps */
    /* op_shape.c */
    qd_op_reshape,     /* attr shape INTS: 0 keeps that dim, one -1 is computed */
    qd_op_permute,     /* attr perm INTS */
    qd_op_concat,      /* (a, b, ...); attr axis */
    qd_op_slice,       /* attrs axis, start, length, step */
    qd_op_pad,         /* constant; attrs pads INTS (before per axis, then after per axis), value */
    /* op_quant.c: codes are U8 (asymmetric, 0..2^bits-1) or I8 (symmetric, two's complement) */
    qd_op_quantize,    /* (x, divisor? [C]) -> codes: q = clamp(rne(x / divisor_c * (1/scale)) + zero); attrs scale, zero, bits, symmetric */
    qd_op_dequantize,  /* (codes) -> f32: (q - zero) * scale; attrs scale, zero */
    qd_op_fake_quant,  /* (x, divisor?) -> f32: dequantize(quantize(x)); attrs as quantize */
    qd_op_qconv2d,     /* (codes, weight I8 [O, C/g, kh, kw], wscale [O], bias?) -> f32: x_scale*wscale_o*sum (q - x_zero) w + bias; attrs of
                          conv2d and x_scale, x_zero; padding means real zero */
    qd_op_qlinear;     /* (codes [.., I], weight I8 [O, I], wscale [O], bias?) -> f32; attrs x_scale, x_zero */
/* clang-format on */

#endif
