/* quant.h - fewer bits: the affine map, range search, calibration, and the table of methods (qncd.md 3 to 5). */
#ifndef QD_QUANT_QUANT_H
#define QD_QUANT_QUANT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/param.h"
#include "base/run.h"
#include "data/data.h"
#include "diffusion/diffusion.h"
#include "graph/graph.h"
#include "model/model.h"
#include "nn/nn.h"

/* --- scheme.c --- */

/* A straight line between real x and code q: q = clamp(rne(x * (1/scale)) + zero, qmin, qmax), x^ = (q - zero) * scale. */
typedef struct qd_affine {
    float scale;        // real units per step; finite, > 0
    int32_t zero;       // the code that means exactly 0.0; in [qmin, qmax]
    int32_t qmin, qmax; // inclusive
    int bits;
    bool symmetric; // two's complement codes around zero 0; else 0..2^bits-1
} qd_affine;

/* Min-max fit, widened so that 0.0 is exact. lo, hi finite, lo <= hi; bits 2..8 (2..16 for fake quant). An all-zero range gets
 * scale 1, so it still decodes to zeros; no scale is below 1e-8. Fails with QD_E_INVALID, leaving `out` untouched. */
qd_status qd_affine_fit(float lo, float hi, int bits, bool symmetric, qd_affine *out, qd_err *err);
int32_t qd_affine_encode(float x, const qd_affine *map); /* the code of x, half to even; NaN gives zero's */
float qd_affine_fake(float x, const qd_affine *map);     /* dequantize(quantize(x)) */

/* The 80-candidate search of qncd.md 3.2: both ends shrink together, score mean |x - x^|^2.4, ties keep the wider range. On the
 * data itself, or on a histogram (each bin at its centre). QD_E_NUMERIC when a value is not finite. */
qd_status qd_affine_search(const float *x, int64_t n, int bits, bool symmetric, qd_affine *out, qd_err *err);

/* --- calibrate.c --- */

/* Exact min and max and a 2048-bin histogram of everything shown to it. The histogram widens (by doubling bins) as the range
 * grows, so one pass over the data is enough; the result does not depend on the order of the data. */
typedef struct qd_histogram qd_histogram;
qd_status qd_histogram_new(qd_histogram **out, qd_err *err);
void qd_histogram_free(qd_histogram *h);
void qd_histogram_add(qd_histogram *h, const float *x, int64_t n);
void qd_histogram_range(const qd_histogram *h, float *lo, float *hi);
int64_t qd_histogram_count(const qd_histogram *h);
qd_status qd_histogram_search(const qd_histogram *h, int bits, bool symmetric, qd_affine *out, qd_err *err);
qd_status qd_histogram_fit(const qd_histogram *h, int bits, bool symmetric, qd_affine *out, qd_err *err); /* min-max */
/* From the (100 - percentile)-th to the percentile-th percentile of what was seen, zero included; percentile 50..100. */
qd_status qd_histogram_percentile(const qd_histogram *h, double percentile, int bits, bool symmetric, qd_affine *out,
                                  qd_err *err);
/* SQNR of what was seen under a map, each bin taken as evenly filled. */
double qd_histogram_sqnr_db(const qd_histogram *h, const qd_affine *map);

/* --- methods.c --- */

typedef enum qd_needs { QD_NEEDS_NOTHING = 0, QD_NEEDS_DATA = 1, QD_NEEDS_DENOISER = 2 } qd_needs;

/* One quantized layer, as reported. */
typedef struct qd_layer_report {
    char name[QD_MAX_NAME + 8];       /* of the layer; with ".split0", ".split1" for the halves of a split one */
    const char *op;                   /* "conv2d", "linear"; "attention": a row for each of ".q", ".k", ".v" on codes */
    int weight_bits, activation_bits; /* 0 = left in float; weights alone in codes: computed in float */
    int softmax_bits;                 /* of attention on codes; 0 = none */
    int64_t group_size;               /* input channels that share a scale of the weights; 0 = all */
    float scale;                      // of the activation
    int32_t zero;
    float lo, hi;          // seen range of the activation
    double weight_sqnr_db; /* dequantized weight against float weight */
    double input_sqnr_db;  /* quantized input against float input, over the calibration set */
    int64_t macs, weights;
    const char *note; /* why it stayed in float, or "" */
    /* What the network loses when this layer alone is quantized; only where the method was asked to find out. */
    bool alone;
    double alone_sqnr_db;   /* of the logits */
    double alone_agreement; /* share of pictures with the same answer, 0..1 */
} qd_layer_report;

/* --- correction.c, corrector.c: what a sampler does about the noise a quantized denoiser adds (qncd.md 8, 11) --- */

typedef enum qd_correction_mode {
    QD_CORRECT_NONE,
    QD_CORRECT_COMPAT, /* the published probe, bit for bit (8.2): trigger set, no reference, one mean for the whole batch */
    QD_CORRECT_PROBE, /* the probe against the float model's own, gated, per request (8.4) */
    QD_CORRECT_TABLE, /* the paired table: slope, bias by channel, residual deviation (PTQD, 11.1); no further calls */
    QD_CORRECT_CONDITIONAL, /* the paired table as D2-DPM reads it: the expected noise given eps_hat (11.1) */
    QD_CORRECT_BOTH,        /* the table, and the gated probe for what it leaves */
} qd_correction_mode;

/* What travels with a quantized denoiser beside its graph: paired statistics by time step, the probe's references, ranges of
 * activations by groups of time steps. Made by quantization, kept in the bundle's metadata under "correction". */
typedef struct qd_correction qd_correction;
void qd_correction_free(qd_correction *c);
/* JSON, appended; the same correction gives the same bytes, and parse gives back every bit. */
qd_status qd_correction_text(const qd_correction *c, qd_buf *b, qd_err *err);
/* A stranger's text: every table checked; QD_E_FORMAT names the entry. */
qd_status qd_correction_parse(const char *text, size_t size, qd_correction **out, qd_err *err);
qd_correction_mode qd_correction_default(const qd_correction *c);
/* "none", "compat", "probe", "table", "conditional", "both"; -1 when there is no such mode. */
int qd_correction_mode_find(const char *name);
const char *qd_correction_mode_name(qd_correction_mode mode);

/* A denoiser ready to sample with its correction: plans of the graph (one for each group of time steps), and the correction in the
 * sampler's hook. Table entries between the time steps of the grid they were made on are interpolated in t. */
typedef struct qd_corrected qd_corrected;
typedef struct qd_corrected_options {
    const qd_graph *graph;
    const qd_correction *correction; /* NULL: none, as for a float model; lent as long as the object lives */
    qd_correction_mode mode;
    const qd_schedule *schedule;
    const qd_sampler *sampler;
    const qd_condition *condition; /* NULL for a network that takes none */
    int64_t batch;
    int threads;
    const struct qd_backend *backend;
    qd_budget *budget;
    qd_graph *take; /* the graph itself, to be taken apart where one plan is enough; NULL = leave it whole */
} qd_corrected_options;
/* QD_E_INVALID when the mode needs what the correction does not have. */
qd_status qd_corrected_new(const qd_corrected_options *o, qd_corrected **out, qd_err *err);
void qd_corrected_free(qd_corrected *c);
qd_predictor qd_corrected_predictor(qd_corrected *c);
/* One batch from noise x [batch, C, H, W] to images. State is fresh at every call, so no request sees another (D11). `then` (may be
 * NULL) sees eps as corrected. */
qd_status qd_corrected_run(qd_corrected *c, const qd_sample_options *o, const qd_sampler_hook *then, const qd_run *run,
                           float *x, qd_err *err);
/* Calls of the network that a run with these options makes: the sampler's and the probe's (8.6). */
int qd_corrected_calls(const qd_corrected *c, const qd_sample_options *o, int *probes);

/* --- recon.c --- */
/* What became of one block. */
typedef struct qd_recon_block {
    char name[QD_MAX_NAME + 8];
    const char *kind;                /* "resblock", "attention", "transformer", "layer" */
    int layers, iterations;          /* iterations made */
    double mse_nearest, mse_learned; /* of the block's output on the calibration set, rounded hard */
    double settled;                  /* share of h near 0 or 1 at the end */
    bool kept_nearest;               /* learning did not help: codes rounded to nearest stayed (12.6) */
    const char *note;                /* GPTQ: why a layer was left as it was; else "". Static */
} qd_recon_block;
typedef struct qd_recon_report {
    qd_recon_block *blocks;
    int n;
} qd_recon_report;
void qd_recon_report_clear(qd_recon_report *r);
/* --- smooth_balanced.c: the factors a layer got, by the error of its output in codes on a few items (mean square) --- */
typedef struct qd_smooth_row {
    char name[QD_MAX_NAME + 8];
    const char *chosen;            /* "none", "embedding" (QNCD's own factors) or "balanced". Static */
    double alpha;                  /* balanced: the exponent; else NAN */
    double mse_none, mse_own, mse; /* without factors, with QNCD's own (NAN where it has none), as chosen */
    bool in_norm;                  /* the norm before it takes the factors; else they are part of the way into codes */
} qd_smooth_row;
typedef struct qd_smooth_report {
    qd_smooth_row *rows;
    int n;
} qd_smooth_report;

/* --- mixed.c: bits of weights layer by layer, by what each costs eps (mean square over a few items) when it alone has few bits --- */
#define QD_MIXED_CHOICES 3 /* 4, 6 and 8 bits */
typedef struct qd_mixed_row {
    char name[QD_MAX_NAME + 8];
    int bits;                      /* chosen */
    double harm[QD_MIXED_CHOICES]; // of 4, 6 and 8 bits
} qd_mixed_row;
typedef struct qd_mixed_report {
    qd_mixed_row *rows;
    int n;
    double signal;          /* mean square of eps itself */
    double harm;            /* sum over the layers as chosen */
    uint64_t budget_bytes;  /* of the whole result's constants */
    uint64_t planned_bytes; /* what they take */
} qd_mixed_report;

/* --- low_rank.c: branches beside layers of few bits --- */
typedef struct qd_low_rank_row {
    char name[QD_MAX_NAME + 8];
    double weight_sqnr_db_without, weight_sqnr_db; /* of the layer's weight in codes, alone and with its branch */
} qd_low_rank_row;
typedef struct qd_low_rank_report {
    int rank;
    qd_low_rank_row *rows;
    int n;
    uint64_t bytes;           /* of all branches */
    int64_t macs, layer_macs; /* multiply-adds of one image: of the branches, in float; of the network without them */
} qd_low_rank_report;

/* --- noise_map.c: where and when the quantized network differs, layer by layer and step by step --- */
typedef struct qd_noise_map {
    int n_layers, n_steps;
    char (*layer)[QD_MAX_NAME + 8]; // [n_layers], in graph order
    int *t;                         // [n_steps], falling
    float *sqnr_db, *cosine; // [n_layers, n_steps]: of what the layer makes, given the same x_t of the float trajectory
} qd_noise_map;

typedef struct qd_quant_report {
    qd_layer_report *layers;
    int n_layers;
    uint64_t float_bytes, quantized_bytes; /* of constants */
    int calibration_steps, calibration_samples;
    int norms_folded, pairs_equalized, biases_corrected;
    /* Denoisers: eps SQNR by time step on shared x_t of the float trajectory, [n_eps]. */
    int n_eps;
    int *eps_t;
    double *eps_sqnr_db;
    double eps_sqnr_mean_db;     /* of the pooled signal and noise */
    qd_recon_report recon;       /* blocks whose rounding was learned */
    qd_smooth_report smooth;     /* balanced smoothing; empty without it */
    qd_mixed_report mixed;       /* bits by layer; empty without a budget */
    qd_low_rank_report low_rank; /* branches; empty without */
    qd_noise_map map;            /* denoisers; empty when it was not asked for */
    qd_correction *correction;   /* goes with the graph; NULL when the method makes none. Owned by the report */
} qd_quant_report;
void qd_quant_report_clear(qd_quant_report *r);
/* The report as one JSON object. */
qd_status qd_quant_report_json(const qd_quant_report *r, qd_buf *b, qd_err *err);

typedef struct qd_quant_task {
    const qd_graph *graph; /* float */
    qd_role role;
    const qd_schedule *schedule; /* denoisers */
    const qd_condition
        *condition;          /* denoisers: what they are told while they calibrate and are measured; NULL = nothing */
    const qd_dataset *data;  /* methods that need data */
    const qd_params *params; /* by the method's rows */
} qd_quant_task;

typedef struct qd_method {
    const char *name, *summary;
    const qd_param *params;
    qd_needs needs;
    qd_role role;
    /* *out is a new graph with quantize/qconv2d/qlinear nodes; its new tensors draw from run's budget, which must outlive it.
     * Same task and seed, same bytes, whatever the number of threads. */
    qd_status (*run)(const qd_quant_task *task, const qd_run *run, qd_graph **out, qd_quant_report *report,
                     qd_err *err);
} qd_method;
extern const qd_method *const qd_methods[]; /* NULL-terminated: minmax, mse (diffusion) */
const qd_method *qd_method_find(const char *name);

/* The fake-quant twin of a quantized graph: quantize -> fake_quant, qconv2d -> conv2d with dequantized weights, and so on. The
 * judge of the integer path, and a way to run it in float. Node names stay. QD_E_UNSUPPORTED when a layer reads codes as another
 * scale or zero than they were made with. */
qd_status qd_quant_fake_twin(const qd_graph *quantized, qd_graph **out, qd_err *err);

/* eps SQNR by time step of `quantized` against `reference` on the reference's own DDIM trajectories: at every `every`-th step and
 * the last. Also as run metrics "eps_sqnr_db" by time step. Fills the eps_ fields of the report, replacing what was there. */
qd_status qd_quant_measure_eps(const qd_graph *reference, const qd_graph *quantized, const qd_schedule *schedule,
                               const qd_sample_options *o, int64_t samples, int every, const qd_run *run,
                               qd_quant_report *report, qd_err *err);

#endif
