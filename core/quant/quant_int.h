/* quant_int.h - what the files of this room share: layers and their quantizers, trajectories of the float model. */
#ifndef QD_QUANT_QUANT_INT_H
#define QD_QUANT_QUANT_INT_H

#include "quant/quant.h"

/* --- scheme.c --- */
/* The 80 candidates on [lo, hi], scored on x[n] with weights w[n] (NULL = ones). */
qd_status qd_affine_search_range(const float *x, const double *w, int64_t n, float lo, float hi, int bits,
                                 bool symmetric, qd_affine *out, qd_err *err);
/* False when n is 0 or a value is not finite. */
bool qd_min_max(const float *x, int64_t n, float *lo, float *hi);

/* --- layout.c: which layers are quantized, and the values they read --- */

/* One value of the float graph that is turned into codes, once for all layers that read it. */
typedef struct qd_quantizer {
    qd_node_id value;
    int axis; /* of the channels */
    int64_t channels;
    qd_histogram *seen;
    double *sum;            // [channels], of everything seen; NULL unless qd_layout_watch_means was asked for it
    int64_t summed;         /* values in each of them */
    qd_histogram **seen_in; // [groups of the layout], the same by groups of time steps; NULL when there are none
    int bits;               /* 0 = as asked of all */
    qd_affine map;
    double sqnr_db; /* of the codes against what was seen */
} qd_quantizer;

/* A layer, or one half of a split one: its share of the input channels. */
typedef struct qd_part {
    int quantizer;
    int64_t first, channels;
    qd_tensor codes;    // I8, I6 or I4 [O, channels / groups, kh, kw] or [O, channels]
    qd_tensor wscale;   // F32 [O], or [O, scales] with a group_size
    int64_t group_size; /* input channels that share a scale; 0 = all of them */
    double sqnr_db;     /* of the weights */
} qd_part;

typedef struct qd_quant_layer {
    qd_node_id id;
    const char *note; /* why it computes in float; NULL when it is quantized */
    int weight_bits;  /* 0 = as asked of all */
    bool weight_only; /* it computes in float, with its weights kept in 8 bits: part[0] without a quantizer */
    int n_parts;      /* 1; 2 when split (qncd.md 4.1) */
    qd_part part[2];
    qd_tensor bias; // F32 [O]; empty = the float graph's
} qd_quant_layer;

/* Attention whose products run on codes of q, k and v and of its softmax (qncd.md 4.2). */
typedef struct qd_quant_attention {
    qd_node_id id;
    const char *note; /* why it computes in float; NULL when it does not */
    int quantizer[3]; /* of q, k, v */
    int softmax_bits;
} qd_quant_attention;

typedef struct qd_layout {
    const qd_graph *graph; /* float, lent */
    qd_node_id input;      /* takes the image */
    qd_quant_layer *layers;
    int n_layers;
    qd_quant_attention *attentions;
    int n_attentions;
    qd_quantizer *quantizers;
    int n_quantizers;
    int64_t group_size; /* asked for; layers too narrow for two groups have one scale for each output */
    int n_groups;       /* of time steps; 0 = ranges hold for all of them */
    int *group_until;   // [n_groups], falling: group k is t >= group_until[k]
} qd_layout;

/* What of the transformer part runs on codes: layers of tokens, and the products of attention (qncd.md 4.2). */
typedef enum qd_transformer_policy {
    QD_TRANSFORMER_LINEAR, /* the layers as all others, the products in float */
    QD_TRANSFORMER_FLOAT,  /* nothing */
    QD_TRANSFORMER_W8A8,   /* both in 8 bits, whatever the bits of other layers */
    QD_TRANSFORMER_SAME,   /* both in the bits asked for */
} qd_transformer_policy;

typedef struct qd_layout_options {
    const char *input;   /* the graph's input that takes the image; NULL = "sample" */
    const char *skip;    /* names of layers left in float, with commas between */
    bool split_shortcut; /* qncd.md 4.1 */
    bool float_edges;    /* leave the layers in float that read the sample itself or make an output */
    bool w8_edges;       /* with float_edges: but keep their weights in 8 bits (qncd.md 3.6) */
    bool w8_time;        /* keep the weights of layers that depend on the time step only in 8 bits */
    int64_t group_size;
    qd_transformer_policy transformer;
    int softmax_bits; /* 8 or 16, where products run on codes */
} qd_layout_options;

/* Every conv2d and linear in graph order. Those that do not depend on the input "sample" depend on the time step only and stay in
 * float (qncd.md 3.6), as do those the options name. */
qd_status qd_layout_new(const qd_graph *g, const qd_layout_options *o, qd_layout **out, qd_err *err);
void qd_layout_free(qd_layout *l);
/* The quantizer of a value, made when there is none; the layout has room for it. */
int qd_layout_quantizer(qd_layout *l, qd_node_id value, int axis, int64_t channels);
/* Shapes of all nodes of a graph with batch 1. */
qd_status qd_layout_shapes(const qd_graph *g, qd_shape *shapes, qd_err *err);

/* --- attention.c --- */
/* "linear", "fp", "w8a8", "wXaY"; -1 when there is no such policy. */
int qd_transformer_policy_find(const char *name);
/* A linear over tokens [N, T, C]? */
bool qd_is_token_layer(const qd_graph *g, qd_node_id id, const qd_shape *shapes);
/* Every attention of the graph, with quantizers where its products shall run on codes. */
qd_status qd_layout_find_attention(qd_layout *l, const qd_shape *shapes, const bool *on_sample,
                                   const qd_layout_options *o, qd_err *err);

/* --- weights.c --- */
/* Codes and scales of all weights: symmetric for each output channel or group of the layout, half to even; packed where `bits` allow
 * (up to 4: I4, up to 6: I6). Weight-only layers get 8 bits over their whole range. */
qd_status qd_layout_quantize_weights(qd_layout *l, int bits, bool search, const qd_run *run, qd_err *err);
/* What the codes of a weight of that layer's shape would mean, as many floats, and the bytes of codes and scales (either may be NULL);
 * the layer keeps what it has. */
qd_status qd_layout_try_weight(const qd_layout *l, const qd_quant_layer *layer, const qd_tensor *weight, int bits,
                               bool search, const qd_run *run, float *meant, size_t *bytes, qd_err *err);

/* --- rewrite.c --- */
/* What the quantize node of a quantizer will be called. */
void qd_layout_codes_name(const qd_layout *l, int quantizer, char *name, size_t size);
/* The float graph with its layers replaced. Every map and weight must be there. */
qd_status qd_layout_apply(const qd_layout *l, qd_graph **out, qd_err *err);

/* A denoiser whose ranges of activations may follow the time step: groups.c, qncd_int.h. */
typedef struct qd_grouped qd_grouped;

/* --- trajectory.c --- */

/* Float trajectories of `samples` samples, looked at before each step. */
typedef struct qd_trajectories {
    const qd_graph *graph;
    const qd_schedule *schedule;
    const qd_sampler *sampler;
    qd_sample_options options;
    int64_t samples;
    const char *phase;           /* of the progress it reports */
    const qd_correction *groups; /* whose ranges by time steps the graph has; NULL = none */
    /* x, eps: [batch, C, H, W] of which the first n are samples first..first+n-1, the rest is filling. */
    qd_status (*look)(void *ctx, const qd_predictor *p, int step, int t, int64_t first, int64_t n, const float *x,
                      const float *eps, qd_err *err);
    void *ctx;
} qd_trajectories;
/* How many samples share a call. */
int64_t qd_trajectory_batch(int64_t samples);
qd_status qd_trajectories_run(const qd_trajectories *j, const qd_run *run, qd_err *err);
/* A denoiser of g (j's graph or another that answers the same question), told what j's options say. */
qd_status qd_trajectories_denoiser(const qd_trajectories *j, const qd_graph *g, const qd_correction *groups,
                                   int64_t batch, const qd_run *run, qd_grouped **out, qd_err *err);

/* (x_t, t) of the float model at some steps of the production schedule (qncd.md 5). */
typedef struct qd_calibration_set {
    int steps; /* stored */
    int *t;    // [steps]
    int64_t samples;
    int64_t batch; /* samples in a call; 0 = as trajectories have it */
    qd_tensor x;   // [steps, samples, C, H, W]
    /* What the network is told with x, lent; sample k of the set is number first_sample + k. Guided networks see every x twice: with
     * the condition and without (qd_condition_fill). */
    const qd_condition *condition;
    int64_t first_sample;
} qd_calibration_set;
/* `steps` of the schedule's steps, equally spaced from the first to the last. j's look and ctx are not used. */
qd_status qd_calibration_set_make(const qd_trajectories *j, int steps, const qd_run *run, qd_calibration_set *out,
                                  qd_err *err);
void qd_calibration_set_clear(qd_calibration_set *s);

/* --- observe.c --- */
/* Let every quantizer also sum its value by channel when it is shown. */
qd_status qd_layout_watch_means(qd_layout *l, qd_err *err);
/* Let every quantizer also keep its range by groups of neighbouring steps of the set; fewer when the set has fewer steps. */
qd_status qd_layout_watch_groups(qd_layout *l, const qd_calibration_set *set, int groups, qd_err *err);
/* Run the float graph over the whole set and show every quantizer its value. */
qd_status qd_layout_observe(qd_layout *l, const qd_calibration_set *set, const qd_run *run, qd_err *err);

/* How a range is chosen from what was seen. */
typedef struct qd_range_rule {
    enum { QD_RANGE_MINMAX, QD_RANGE_PERCENTILE, QD_RANGE_MSE } how;
    double percentile; /* 50..100: so much lies below the upper end, and above the lower one */
    int bits;
    bool symmetric;
} qd_range_rule;
/* The rule of a choice "minmax", "percentile" or "mse". */
qd_range_rule qd_range_rule_of(const char *choice);
/* One map by the rule. */
qd_status qd_range_choose(const qd_range_rule *rule, const qd_quantizer *q, const qd_histogram *seen, qd_affine *out,
                          qd_err *err);
/* The map of every quantizer. */
qd_status qd_layout_choose_maps(qd_layout *l, const qd_range_rule *rule, const qd_run *run, qd_err *err);

/* --- report.c --- */
/* Rows for all layers of a layout whose maps and weights are there; also as run's layer events. */
qd_status qd_layout_report(const qd_layout *l, int weight_bits, int activation_bits, const qd_run *run,
                           qd_quant_report *report, qd_err *err);

/* --- fold.c, equalize.c: the same function, easier to quantize; new constants draw from budget --- */
qd_status qd_fold_norms(const qd_graph *g, qd_budget *budget, int *folded, qd_graph **out, qd_err *err);
qd_status qd_equalize(const qd_graph *g, qd_budget *budget, int *pairs, qd_graph **out, qd_err *err);

/* --- correct.c --- */
/* Give every quantized layer a bias that takes away what rounding its weights adds on average; *corrected counts them. Needs means. */
qd_status qd_layout_correct_bias(qd_layout *l, const qd_run *run, int *corrected, qd_err *err);

/* --- measure.c --- */
/* groups: whose ranges by time steps the quantized graph has; NULL = none. */
qd_status qd_measure_eps(const qd_trajectories *j, const qd_graph *quantized, const qd_correction *groups, int every,
                         const qd_run *run, qd_quant_report *report, qd_err *err);

/* --- ptq.c, ptq_data.c --- */
extern const qd_method qd_method_minmax, qd_method_mse, qd_method_ptq;

#endif
