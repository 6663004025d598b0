/* cpu_int.h - the fast backend's own: what fuse.c decides, and the steps that cpu_*.c make for lower.c. */
#ifndef QD_PLAN_CPU_INT_H
#define QD_PLAN_CPU_INT_H

#include "plan/backend.h"
#include "plan/simd.h"

/* --- fuse.c: which nodes become one step --- */

#define QD_MAX_PARTS 5 /* a value read in parts */

typedef enum qd_group_kind {
    QD_GROUP_PASS,
    QD_GROUP_CONV,
    QD_GROUP_LINEAR,
    QD_GROUP_ATTENTION,
    QD_GROUP_TRAIN_NORM
} qd_group_kind;

/* Nodes that run as one step, at the place of the last of them. -1 = absent.
 * PASS: source (+ time) -> norm -> act -> up -> quant.   CONV, LINEAR: main -> bn -> (+ residual) -> act.
 * ATTENTION: linears that read the same -> quantize -> main, for q, k and v.
 * TRAIN_NORM: main (batch_norm_train) -> (+ residual) -> act (relu). */
typedef struct qd_group {
    qd_group_kind kind;
    qd_node_id main, end;
    qd_node_id source;   /* PASS: what is read */
    qd_node_id time;     /* PASS: [N or 1, C, 1, 1] added before the norm */
    qd_node_id norm;     /* PASS: group_norm, batch_norm or affine */
    qd_node_id up;       /* PASS: upsample */
    qd_node_id quant;    /* PASS: quantize or fake_quant */
    qd_node_id bn;       /* CONV: batch_norm folded into the weights */
    qd_node_id residual; /* CONV, LINEAR: the other operand of the add */
    qd_node_id act;
    qd_node_id code[3];   /* ATTENTION: the quantize nodes that make q, k, v */
    qd_node_id linear[3]; /* ATTENTION: the linears run as one product; those of k and v alone, or of all three */
} qd_group;

typedef struct qd_node_info {
    qd_node_id same; /* the first node that computes the same; itself if none */
    bool live;       /* some output or observed value needs it */
    bool fixed;      /* is an output or observed: must be made as it is */
    bool view;       /* same bytes as its first input */
    bool split;      /* concat or slice that is never made: readers take the parts */
    qd_layout layout;
    int uses, consumers;  /* live readers, and where their list begins in qd_fused.consumer */
    int group;            /* -1 = on its own */
    qd_tensor folded;     /* data != NULL: known while compiling */
    qd_value_id value[2]; /* made so far, by layout */
} qd_node_info;

typedef struct qd_fused {
    const qd_graph *g;
    const qd_shape *shapes;
    int n;
    qd_node_info *info;
    qd_node_id *consumer;
    qd_group *groups;
    int n_groups;
} qd_fused;

/* --- analyse.c: what is known of each node before that --- */

/* Fills same, live, fixed, view, layout, uses, consumers and folded. */
qd_status qd_analyse(qd_fused *f, const qd_plan_options *o, qd_err *err);
/* Input k of a node by its representative; -1 when left out. */
qd_node_id qd_fused_input(const qd_fused *f, qd_node_id id, int k);
const qd_op *qd_fused_op(const qd_fused *f, qd_node_id id);
bool qd_act_of(const qd_op *op, qd_act *act);
bool qd_is_act(const qd_op *op);
bool qd_is_quant(const qd_op *op);

/* --- fuse.c --- */

qd_status qd_fuse(const qd_graph *g, const qd_shape *shapes, const qd_plan_options *o, qd_fused *out, qd_err *err);
void qd_fused_clear(qd_fused *f);

/* Where a value is found: a range of channels of a value that is made. */
typedef struct qd_part {
    qd_node_id node;
    int64_t begin, count; // channels
} qd_part;
/* Attention with the nodes that make its operands alone; before other groups are made. */
void qd_fuse_attention(qd_fused *f, qd_node_id id);
/* Can the fast backend run this conv or linear, of floats or codes? */
bool qd_fused_is_product(const qd_fused *f, qd_node_id id);
/* The parts of a value, in order; returns how many (1 for a value that is made), of which QD_MAX_PARTS at most are filled in.
 * open: take a concat or slice apart even when it is made. */
int qd_fused_parts(const qd_fused *f, qd_node_id id, bool open, qd_part parts[QD_MAX_PARTS]);
/* The codes' border that all readers of a quantize node want; zeros when they differ. */
void qd_fused_border(const qd_fused *f, qd_node_id codes, int32_t border[4]);

/* --- cpu_dnnl.c: one convolution primitive, its packed weights and memory --- */

void qd_dnnl_stream_free(void *stream); /* NULL is fine */

typedef struct qd_conv_spec {
    const char *name;
    qd_conv_shape shape;
    bool codes;         /* U8 source and I8 weights: dst = scale[o] * (sum + bias[o]); else f32: dst = sum + bias[o] */
    bool nibbles;       /* codes: keep the weights, which are all in -8..7, in 4 bits and spell them out for each run */
    const void *weight; // [o, c / groups, kh, kw]
    const float *bias;  // [o] or NULL
    const float *scale; // [o]; codes only
    bool sum;           /* dst += result */
    qd_act act;         /* of the sum */
    float clip_lo, clip_hi;
    int threads;
} qd_conv_spec;

typedef struct qd_conv qd_conv;
qd_status qd_conv_new(qd_plan *p, const qd_conv_spec *spec, qd_conv **out, qd_err *err);
void qd_conv_free(qd_conv *c);
size_t qd_conv_scratch_bytes(const qd_conv *c);
const char *qd_conv_impl(const qd_conv *c);
size_t qd_conv_weight_bytes(const qd_conv *c); /* packed */
int qd_conv_threads(const qd_conv *c);
qd_status qd_conv_bind(qd_conv *c, void *src, void *dst, void *scratch, qd_err *err);
qd_status qd_conv_run(qd_plan *p, qd_conv *c, qd_err *err);
/* Does u8 x s8 add up exactly here? Without VNNI pairs of products saturate in 16 bits unless |weight| <= 64. */
bool qd_dnnl_exact_int8(void);
/* The engine, once the plan has a stream. */
qd_status qd_dnnl_engine(qd_plan *p, void **out, qd_err *err);
/* OpenBLAS runs each product on the thread that asks for it. */
void qd_blas_one_thread(void);
/* The kernels OpenBLAS has chosen: "SkylakeX", "Haswell", ... */
const char *qd_blas_core(void);
/* Threads worth waking for that many multiply-adds of f32 (or float-sized elementary operations). */
int qd_threads_for(const qd_plan *p, double work);

/* --- cpu_conv.c, cpu_int8.c: steps of one to several convolutions that add up --- */

typedef struct qd_conv_step {
    const char *name;
    const char *kind;
    int64_t macs;
    qd_conv_spec spec; /* of the whole; c is the sum over sources, weight plain */
    int n_sources;
    qd_value_id source[QD_MAX_PARTS];
    int64_t channels[QD_MAX_PARTS]; // of each source
    qd_value_id residual, out;
} qd_conv_step;
/* Float: each source is read by a convolution of its own slice of the weights. */
qd_status qd_add_conv_step(qd_plan *p, const qd_conv_step *c, qd_err *err);
/* Float, 3 x 3, by Winograd: where that pays. */
bool qd_wino_conv_fits(const qd_conv_step *c);
qd_status qd_add_wino_conv_step(qd_plan *p, const qd_conv_step *c, qd_err *err);
/* Integer: one source of U8 codes (or I8 + 128, `shifted`) with the border already around it; spec.bias real, spec.weight unused.
 * With a group_size each run of so many input channels is a convolution of its own, and they add up. */
typedef struct qd_qconv_step {
    const qd_tensor *weight; // I8, I6 or I4 [o, c / groups, kh, kw] or [o, c]
    const float *wscale;     // [o] or [o, scales]
    int64_t group_size;      /* 0 = a scale for all input channels; else groups is 1 */
    float x_scale;
    int32_t x_zero;
    bool shifted;
} qd_qconv_step;
qd_status qd_add_qconv_step(qd_plan *p, const qd_conv_step *c, const qd_qconv_step *q, qd_err *err);
/* Can the integer step express these scales [o, scales]? They divide the bias. */
bool qd_qconv_fits(const float *wscale, const float *bias, int64_t o, int64_t scales, float x_scale);

/* --- cpu_norm.c: one pass over an image, perhaps after taking its statistics --- */

typedef struct qd_pass_step {
    const char *name, *kind;
    int n_sources;
    qd_value_id source[QD_MAX_PARTS];
    int64_t begin[QD_MAX_PARTS], count[QD_MAX_PARTS]; // channels taken of each
    int64_t n, height, width, channels;               // of the value that is read
    int64_t groups;                                   /* 0 = no group norm */
    float eps;
    const float *weight, *bias; // [channels] or NULL: of the norm
    const float *mul, *add;     // [channels] or NULL: affine without statistics
    qd_value_id time;           // [n or 1][channels], -1 = none
    bool time_per_sample;
    const float *divisor; // [channels] or NULL
    qd_pass_math math;    /* affine, divided are filled in */
    int64_t up_h, up_w;   /* 1 = no upsampling */
    qd_value_id out;
} qd_pass_step;
qd_status qd_add_pass_step(qd_plan *p, const qd_pass_step *s, qd_err *err);

/* --- cpu_gemm.c --- */

qd_status qd_add_dots_step(qd_plan *p, const char *name, qd_value_id src, const float *weight, const float *bias,
                           int64_t rows, int64_t in, int64_t n_out, qd_value_id out, qd_err *err);
/* dst [m, n] = alpha a [m, k] b (b [k, n], or [n, k] when trans_b), row-major with strides, on this thread. */
void qd_blas_product(float *dst, const float *a, const float *b, int64_t m, int64_t n, int64_t k, int64_t stride_dst,
                     int64_t stride_a, int64_t stride_b, bool trans_b, float alpha);
/* Batches of a [m, k] b [k, n]; trans_b: b is [n, k]. */
qd_status qd_add_matmul_step(qd_plan *p, const char *name, qd_value_id a, qd_value_id b, qd_value_id out, int64_t batch,
                             int64_t m, int64_t n, int64_t k, bool trans_b, float alpha, qd_err *err);

/* --- cpu_attention.c, cpu_qattention.c --- */

/* Channels [begin, begin + c) of rows of `stride` elements: q, k or v, perhaps beside the others. */
typedef struct qd_heads {
    qd_value_id value;
    int64_t begin, stride;
} qd_heads;
typedef struct qd_attention_step {
    const char *name;
    int64_t macs;
    qd_heads in[3]; /* q [n, t], k and v [n, s] */
    qd_value_id out;
    int64_t n, t, s, c, heads;
    float scale;
} qd_attention_step;
qd_status qd_add_attention_step(qd_plan *p, const qd_attention_step *a, qd_err *err);

/* Operands are U8 codes (I8 + 128), or floats that are coded on the way in. */
typedef struct qd_qattention_step {
    qd_attention_step a; /* scale is not used */
    struct {
        bool coded;       /* the value holds codes already */
        int32_t zero;     /* of the U8 code */
        float scale;      /* real units of one step */
        float made_scale; /* the map by which floats are coded: scale and zero again, or what the graph says instead */
        int32_t made_zero;
        float lo, hi; /* smallest and largest code less made_zero */
    } map[3];
    float score_step; /* q_scale k_scale scale */
    int softmax_bits;
} qd_qattention_step;
qd_status qd_add_qattention_step(qd_plan *p, const qd_qattention_step *a, qd_err *err);

/* --- cpu_elem.c --- */

typedef enum qd_spread { QD_SPREAD_FULL, QD_SPREAD_SCALAR, QD_SPREAD_CHANNEL } qd_spread;
/* out = a op b. CHANNEL: b is [n or 1][channels] against [n][pixels][channels]. */
qd_status qd_add_arith_step(qd_plan *p, const char *name, qd_arith op, qd_value_id a, qd_value_id b, qd_value_id out,
                            qd_spread spread, int64_t n, int64_t pixels, int64_t channels, bool per_sample,
                            qd_err *err);
qd_status qd_add_convert_step(qd_plan *p, const char *name, qd_value_id from, qd_value_id to, int32_t border_code,
                              qd_err *err);
typedef enum qd_pool { QD_POOL_MAX, QD_POOL_AVG, QD_POOL_AVG_PADDED } qd_pool; /* PADDED: zeros count in the mean */
qd_status qd_add_pool_step(qd_plan *p, const char *name, qd_pool kind, const qd_conv_shape *s, qd_value_id from,
                           qd_value_id to, qd_err *err);
qd_status qd_add_layer_norm_step(qd_plan *p, const char *name, qd_value_id from, const float *weight, const float *bias,
                                 int64_t rows, int64_t width, float eps, qd_value_id to, qd_err *err);
qd_status qd_add_softmax_step(qd_plan *p, const char *name, qd_value_id from, int64_t rows, int64_t width,
                              qd_value_id to, qd_err *err);

#endif
