/* qncd_int.h - the parts of QNCD: blocks of a denoiser, smoothing, rounding that learns, paired noise statistics, corrections. */
#ifndef QD_QUANT_QNCD_INT_H
#define QD_QUANT_QNCD_INT_H

#include "quant/quant_int.h"

/* --- few.c: a few items of a calibration set, of every stored step, as inputs of a network --- */
typedef struct qd_few {
    qd_node_id sample; /* the input that takes the image */
    int64_t items, per_step;
    int64_t batch; /* of a call; divides items */
    int *step;     // [items]: number of the stored step
    int n_inputs;
    qd_shape shapes[QD_MAX_INPUTS]; /* of a call */
    qd_tensor value[QD_MAX_INPUTS]; // [items, ..]
    size_t one_bytes[QD_MAX_INPUTS];
} qd_few;
qd_status qd_few_init(qd_few *f, const qd_graph *g, qd_node_id sample, const qd_calibration_set *set, int64_t per_step,
                      const qd_run *run, qd_err *err);
void qd_few_bind(const qd_few *f, int64_t first, const void **in); /* in[n_inputs]: the call from item `first` on */
void qd_few_clear(qd_few *f);

/* --- resblock.c: residual blocks with a time embedding, found by the form of the graph, whatever the names (qncd.md 7.1) --- */
typedef struct qd_resblock {
    qd_node_id conv2;     /* the layer that reads `hidden` */
    qd_node_id hidden;    /* act(..), what conv2 reads; [N, C, H, W] */
    qd_node_id norm2;     /* the group_norm between the two convolutions */
    qd_node_id embedding; /* additive: the summand that depends on the time step alone, C values a sample; else -1 */
    qd_node_id film;      /* FiLM: s of (1 + s), C values a sample; else -1 */
    int64_t channels;     /* C, of hidden */
    int64_t groups;       /* of norm2 */
} qd_resblock;
/* In graph order; *out is freed with qd_free. A network without such blocks has *n = 0. */
qd_status qd_resblocks_find(const qd_graph *g, qd_resblock **out, int *n, qd_err *err);

/* --- smooth.c: embedding-derived feature smoothing (qncd.md 7) --- */
typedef struct qd_smooth_options {
    bool gamma; /* S_c also has |gamma_c| of norm2 */
    bool pow2;  /* S rounded to powers of two: the float network keeps its bits */
} qd_smooth_options;

/* One factor vector. Division stands in the graph as a `div` node "<layer>.smooth" of (value, S [1, C, 1, 1] or [C]); quantizers of
 * such a layer take S as their divisor (layout.c), so that it costs nothing at run time. */
typedef struct qd_smooth_layer {
    qd_node_id layer; /* of the graph given: conv2d or linear */
    int64_t channels;
    float *factor; // [channels], > 0
    /* Balanced: a norm's own weight and bias take 1 / S, which costs nothing; all who read it are here, with the same factors. */
    bool in_norm;
    qd_node_id norm;
} qd_smooth_layer;
typedef struct qd_smoothing {
    qd_smooth_layer *layers;
    int n;
} qd_smoothing;
void qd_smoothing_clear(qd_smoothing *s);

/* S of every residual block over these time steps, from the embeddings alone: no data (qncd.md 7.2 to 7.4). */
qd_status qd_smoothing_of_embeddings(const qd_graph *g, const int *t, int n_t, const qd_smooth_options *o,
                                     const qd_run *run, qd_smoothing *out, qd_err *err);
/* The same function with layers reading value / S and weights W S; the new float reference. New constants draw from run's budget.
 * QD_E_INVALID when a layer is smoothed already (7.5). */
qd_status qd_smooth_fold(const qd_graph *g, const qd_smoothing *s, const qd_run *run, qd_graph **out, qd_err *err);
/* --- smooth_units.c --- */
/* Layers that read one value and get the same factors. */
typedef struct qd_smooth_unit {
    qd_node_id read; /* what they read */
    int axis;        /* of its channels */
    int64_t channels;
    qd_node_id norm; /* takes the factors itself; -1 = a division on the way into codes, for one layer */
    int *layer;      // [n], numbers in the layout
    int n;
} qd_smooth_unit;
/* Every quantized layer behind a norm, or behind the activation of one. shapes: of l's graph with batch 1. All in the arena. */
qd_status qd_smooth_units_find(const qd_layout *l, const qd_shape *shapes, qd_arena *arena, qd_smooth_unit **out,
                               int *n, qd_err *err);

/* --- smooth_balanced.c: factors that share the trouble out between activations and weights, tried layer by layer (qncd.md 7.6) --- */
typedef struct qd_balance_options {
    int weight_bits;
    bool search_weights;
    qd_range_rule range; /* of activations */
    bool pow2;
} qd_balance_options;
/* For every quantized layer of l behind a norm the best of S = 1, `own` (may hold none) and S(alpha), alpha = 0, 0.1 .. 1, by the error
 * of its output in codes over a few items of every step of the set; ranges by l's groups of time steps when it has them. */
qd_status qd_smoothing_balanced(const qd_layout *l, const qd_calibration_set *set, const qd_smoothing *own,
                                const qd_balance_options *o, const qd_run *run, qd_smoothing *out,
                                qd_smooth_report *report, qd_err *err);
void qd_smooth_report_clear(qd_smooth_report *r);

/* Is this node such a division? *factor, *value: its operands. */
bool qd_smooth_is(const qd_graph *g, qd_node_id id, qd_node_id *value, qd_node_id *factor);

/* --- mixed.c: bits of weights layer by layer under a budget of bytes (qncd.md 11.3, 6) --- */
typedef struct qd_mixed_options {
    uint64_t budget_bytes;  /* of all constants of the result */
    int min_bits, max_bits; /* 4, 6 or 8 */
    bool search_weights;
} qd_mixed_options;
/* Chooses weight_bits of every quantized layer that has none of its own yet, so that the summed harm is the least there is in the budget.
 * QD_E_INVALID with the least share that would do when min_bits everywhere is too much. */
qd_status qd_layout_choose_bits(qd_layout *l, const qd_calibration_set *set, const qd_mixed_options *o,
                                const qd_run *run, qd_mixed_report *report, qd_err *err);
void qd_mixed_report_clear(qd_mixed_report *r);

/* --- svd.c --- */
/* The `rank` largest singular values s [rank], falling, of a [m, n], with u [m, rank] and v [rank, n]: a ~ u diag(s) v. */
qd_status qd_svd_top(const float *a, int64_t m, int64_t n, int rank, const qd_run *run, float *u, float *s, float *v,
                     qd_err *err);

/* --- low_rank.c: W = L1 L2 + R, only R in few bits (SVDQuant, qncd.md 11.2) --- */
typedef struct qd_low_rank_options {
    int rank, weight_bits;
    bool search_weights;
} qd_low_rank_options;
extern const char qd_low_rank_rest[]; /* what the name of a layer that kept R ends with */
/* The same function with a branch beside every quantized layer of 4 bits or fewer that is wide enough. New constants draw from run's
 * budget. QD_E_INVALID when no layer is. */
qd_status qd_low_rank_branch(const qd_layout *l, const qd_low_rank_options *o, const qd_run *run, qd_graph **out,
                             qd_low_rank_report *report, qd_err *err);
void qd_low_rank_report_clear(qd_low_rank_report *r);
bool qd_low_rank_is_branch(const qd_node *n);              /* L1 or L2? */
bool qd_low_rank_is_sum(const qd_graph *g, qd_node_id id); /* of R's layer and its branch? */

/* --- recon.c, adaround.c: rounding that learns, block by block (qncd.md 6); gptq.c: closed-form error compensation --- */
typedef struct qd_recon_options {
    enum { QD_RECON_BLOCK, QD_RECON_LAYER, QD_RECON_GPTQ } how;
    int iterations, batch;
    double lr; /* 0: 20 / iterations, as the paper's 20000 of 1e-3, at most 0.1 */
    double lambda;
    double b_start, b_end; /* 20 to 2 */
    double warmup;         /* share of the iterations without regulariser, at b_start */
    double settled;        /* stop early when this share of h is within 0.05 of 0 or 1; 1 = never */
    const char
        *checkpoint; /* a folder of the caller's for finished blocks, so that a killed job goes on there; NULL = none */
    double damping;  /* GPTQ: share of the mean of H's diagonal that is added to it; 0 counts as 0.01 */
    bool act_order;  /* GPTQ: columns by falling H_jj instead of as they stand */
} qd_recon_options;
/* Codes of all quantized layers of a layout whose weights are quantized (round to nearest) learned anew in place; scales stay. The
 * layout's graph is the float reference, smoothing folded. */
qd_status qd_layout_reconstruct(qd_layout *l, const qd_calibration_set *set, const qd_recon_options *o,
                                const qd_run *run, qd_recon_report *report, qd_err *err);

/* --- steps.c: steps of activations learned block by block (qncd.md 6.5) --- */
typedef struct qd_steps_options {
    int iterations, batch;
    double lr;    /* falls as a cosine to 0 */
    double power; /* of the loss: 2.4 */
} qd_steps_options;
/* Scales of all quantizers whose maps are chosen learned anew in place, zeros stay; weights are those the codes mean. A block keeps its
 * scales where learning does not make its output better over the set. QD_E_INVALID for ranges by groups of time steps. */
qd_status qd_layout_learn_steps(qd_layout *l, const qd_calibration_set *set, const qd_steps_options *o,
                                const qd_run *run, qd_recon_report *report, qd_err *err);

/* --- noise_table.c: what the quantized network adds, step by step (qncd.md 8.4, 11.1) --- */

/* Sums over samples and space of eps and eps_hat of one step and channel; D = eps_hat - eps. */
typedef struct qd_noise_sums {
    double n, e, q, d, ed, qd, ee, qq, dd;
} qd_noise_sums;
typedef struct qd_noise_step {
    int t;
    qd_noise_sums *channel; // [channels]
} qd_noise_step;
/* What the re-noise probe shows on the float network at a trigger step (8.4). [0] is over the whole picture, [1 + c] channel c. */
typedef struct qd_probe_reference {
    int t;
    double *m, *v, *s; // [1 + channels] each: mean and variance of d, deviation of the per-trajectory means
} qd_probe_reference;

/* Everything the paired table says about one step. eps_hat = eps + D, D = k eps + r (PTQD); beta is the slope of D on eps_hat within a
 * channel (D2-DPM). */
typedef struct qd_noise_figures {
    double k;     /* >= 0, pooled over channels */
    double sigma; /* deviation of r */
    double beta;
} qd_noise_figures;
qd_noise_figures qd_noise_figures_of(const qd_noise_step *s, int64_t channels);

/* --- correction.c: qd_correction and its text form --- */
struct qd_correction {
    char sampler[16];
    int steps;               /* of the grid the tables were made on */
    qd_correction_mode mode; /* what sampling does by default */
    int64_t channels;
    qd_noise_step *table; // [n_table], t falling
    int n_table;
    qd_probe_reference *probe; // [n_probe], t falling
    int n_probe;
    int interval; /* steps between probes */
    bool paper_offset, by_channel;
    double kappa, mu_max;
    /* Ranges of activations by groups of time steps (11.3): quantizer k of the graph in group g has map[g * n_maps + k]. */
    int n_groups;     /* 0 = the maps of the graph hold everywhere */
    int *group_until; // [n_groups], falling: group g is t >= group_until[g]
    int n_maps;
    char (*map_name)[QD_MAX_NAME + 8]; // [n_maps], names of quantize nodes
    float *map_scale;                  // [n_groups, n_maps]
    int32_t *map_zero;                 // [n_groups, n_maps]
};

/* --- probe.c: one step back up to level t with known noise, and what the network says of it (8.2) --- */
typedef struct qd_probe {
    const qd_predictor *predictor;
    const qd_schedule *schedule;
    uint64_t seed;
    int64_t first_sample;
    bool centred; /* z has mean zero in each sample and channel */
    int64_t n, per_sample;
    float *block, *z, *x, *d; // [n] each
    size_t drawn_bytes;
    qd_budget *budget;
} qd_probe;
qd_status qd_probe_open(qd_probe *b, const qd_predictor *p, const qd_schedule *s, uint64_t seed, qd_budget *budget,
                        qd_err *err);
void qd_probe_close(qd_probe *b);
/* b->d = eps_hat(x_r, t) - z, x_r the sampler's next sample along e, noised again. */
qd_status qd_probe_ask(qd_probe *b, const qd_sampler_step *step, const float *e, const qd_run *run, qd_err *err);
/* Is step i a trigger? Every interval-th from 0; published: (i - 1) mod I = I / 2. */
bool qd_probe_triggers(int step, int interval, bool paper_offset);
/* abar after the step; the schedule's own end for t < 0. */
double qd_schedule_level(const qd_schedule *s, int t);
/* Mean and variance of one sample's d, [0] of the whole, [1 + c] of each channel; n_out is 1 or 1 + channels. */
void qd_probe_moments(const float *d, int64_t channels, int64_t space, double *mean, double *var);

/* --- time_table.c --- */
/* The network with all that depends on the time step alone replaced by a table over t [n_t], falling, of what it gives there; linear
 * between (11.1). QD_E_INVALID when nothing does. New constants draw from run's budget. */
qd_status qd_time_table(const qd_graph *g, const qd_schedule *schedule, const int *t, int n_t, const qd_run *run,
                        qd_graph **out, qd_err *err);

/* --- groups.c: ranges of activations by groups of time steps --- */
/* May the map of this quantize node be another in each group? Only layers on codes read it. */
bool qd_group_takes(const qd_graph *g, qd_node_id quantize);
/* The graph with the maps of one group. QD_E_FORMAT when the correction's maps are not this graph's. */
qd_status qd_group_graph(const qd_graph *g, const qd_correction *c, int group, qd_graph **out, qd_err *err);
/* A denoiser whose ranges follow the time step; without groups (c NULL, too) just a denoiser. g, c and o's condition are lent. */
qd_status qd_grouped_new(const qd_graph *g, const qd_correction *c, const qd_denoiser_options *o, qd_grouped **out,
                         qd_err *err);
void qd_grouped_free(qd_grouped *d);
qd_predictor qd_grouped_predictor(qd_grouped *d);
/* Fills the groups of a correction from what the layout saw in each (qd_layout_watch_groups). quantized: the layout applied. */
qd_status qd_layout_group_maps(const qd_layout *l, const qd_range_rule *rule, const qd_graph *quantized,
                               qd_correction *c, qd_err *err);

typedef struct qd_noise_options {
    int64_t samples;   /* trajectories, others than those that calibrated */
    int interval;      /* of the probe, in steps */
    bool paper_offset; /* first probe at step interval / 2 + 1, as published; else at step 0 */
    bool by_channel;   /* one estimate for each channel */
    double kappa, mu_max;
} qd_noise_options;

/* Empty, with what the options say. j: the sampler it is for. */
qd_status qd_correction_new(const qd_noise_options *o, qd_correction_mode mode, const qd_trajectories *j,
                            qd_correction **out, qd_err *err);
/* What a correction of its mode needs (stage 10), with options as j has them: the paired table from trajectories of the quantized
 * model, the float model asked at the same x; the float probe along float trajectories. Nothing for none and compat. */
qd_status qd_noise_collect(qd_correction *c, const qd_noise_options *o, const qd_trajectories *j,
                           const qd_graph *quantized, const qd_run *run, qd_err *err);

/* --- noise_map.c --- */
/* What every layer of the report makes, float against quantized, at up to `steps` of the sampler's steps on the first batch of j. Also as
 * run's layer events. QD_E_LIMIT where the budget does not hold a call's values: a map is worth less than a job. */
qd_status qd_noise_map_make(const qd_trajectories *j, const qd_graph *quantized, const qd_correction *groups, int steps,
                            const qd_run *run, const qd_quant_report *layers, qd_noise_map *out, qd_err *err);
void qd_noise_map_clear(qd_noise_map *m);

/* --- ptq.c: the pipeline; denoisers.c: its methods --- */
typedef struct qd_ptq_stages {
    bool smooth;
    qd_correction_mode correction;
} qd_ptq_stages;
qd_status qd_ptq_run(const qd_ptq_stages *stages, const qd_quant_task *task, const qd_run *run, qd_graph **out,
                     qd_quant_report *report, qd_err *err);
extern const qd_method qd_method_qdiff, qd_method_qncd_intra, qd_method_qncd_inter, qd_method_qncd,
    qd_method_qncd_compat, qd_method_qncd_plus;

#endif
