/* diffusion.h - noise schedules, time step grids, samplers (diffusion_models.md 7 and 8). */
#ifndef QD_DIFFUSION_DIFFUSION_H
#define QD_DIFFUSION_DIFFUSION_H

#include "base/err.h"
#include "base/param.h"
#include "base/run.h"
#include "model/model.h"

typedef enum qd_prediction { QD_PREDICT_EPSILON, QD_PREDICT_V, QD_PREDICT_SAMPLE } qd_prediction;
typedef enum qd_variance { QD_VAR_FIXED_SMALL, QD_VAR_FIXED_LARGE } qd_variance;
typedef enum qd_spacing { QD_SPACING_LEADING, QD_SPACING_TRAILING, QD_SPACING_LINSPACE, QD_SPACING_QUAD } qd_spacing;

/* The training-time noise process and a scheduler's habits. */
typedef struct qd_schedule {
    int train_steps;   /* T, 1..10000 */
    double *alpha_bar; /* [T], cumprod(1 - beta), double */
    qd_prediction prediction;
    qd_variance variance;
    bool clip_sample;
    double clip_range;
    int steps_offset;
    bool set_alpha_to_one; /* abar past the last step is 1, else abar_0 */
    qd_spacing spacing;    /* the grid the scheduler asks for; samplers go by their options */
} qd_schedule;

/* From scheduler_config.json (absent keys take the diffusers defaults of its _class_name; config NULL = DDPM linear 1e-4..0.02).
 * What we do not do (thresholding, learned variances, zero terminal SNR, other beta schedules) is refused by its key. */
qd_status qd_schedule_open(const qd_config *config, qd_schedule **out, qd_err *err);
void qd_schedule_free(qd_schedule *s);
/* beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2". */
qd_status qd_schedule_make(const char *beta_schedule, double beta_start, double beta_end, int train_steps,
                           qd_schedule **out, qd_err *err);

/* Descending time steps for `steps` sampling steps; t has room for `steps`. QD_E_INVALID when steps is not 1..T, or when the
 * schedule's steps_offset moves the first one past T - 1. Quad grids hold duplicates near 0. */
qd_status qd_timesteps(const qd_schedule *s, qd_spacing spacing, int steps, int *t, qd_err *err);

/* Predicts the noise of a batch that shares one time step. x, out: [batch, C, H, W]. */
typedef struct qd_predictor {
    void *ctx;
    qd_status (*predict)(void *ctx, const qd_run *run, const float *x, double t, float *out, qd_err *err);
    /* Item 0 of the batch is sample number first_sample from now on: what a sample is told depends on its number, not on its batch.
     * Samplers call it as they begin; whoever calls predict himself calls this first. NULL: all samples are alike. */
    void (*seat)(void *ctx, int64_t first_sample);
    int64_t batch, channels, height, width;
} qd_predictor;
void qd_predictor_seat(const qd_predictor *p, int64_t first_sample);

/* A look (and a hand) into each step, before the sampler uses eps: correction layers live here, samplers never learn about bits.
 * step 0..steps-1, t the time step, t_prev the next one (-1 past the end). May change eps and, for stochastic samplers, *sigma.
 * x is the current sample. Called once for every call of the predictor, with the logical step it belongs to: plms calls twice in
 * step 0, first with that step's t, then with its t_prev as t. */
typedef struct qd_sampler_step {
    int step, t, t_prev;
    bool again;     /* plms: the second call that belongs to this step */
    const float *x; // [batch, C, H, W], the current sample
    float *eps;     // the same, may be changed
    double sigma;   /* of the noise that the sampler is going to add; 0 for deterministic ones */
    float *share;   // [batch], 1: how much of it each sample gets; may be lowered
    /* xp = where the sampler would go along the noise e without drawing any (eta 0), leaving its state as it is (qncd.md 8.5). */
    void (*along)(const void *walk, const float *e, float *xp);
    const void *walk;
} qd_sampler_step;
typedef struct qd_sampler_hook {
    void *ctx;
    /* The hand: comes first. */
    qd_status (*correct)(void *ctx, const qd_sampler_step *step, qd_err *err);
    qd_status (*eps)(void *ctx, int step, int t, int t_prev, const float *x, float *eps, double *sigma, qd_err *err);
    /* After the step, with the new x; for previews and trajectories. Each of the three may be NULL. */
    qd_status (*stepped)(void *ctx, int step, int steps, int t, const float *x, qd_err *err);
} qd_sampler_hook;

typedef struct qd_sample_options {
    int steps;
    qd_spacing spacing;
    double eta; /* ddim */
    int clip;   /* 1 clip x0 to the schedule's range, 0 do not, -1 as the schedule says */
    uint64_t seed;
    int64_t
        first_sample; /* number of batch item 0: sample k draws from streams of its own, so that an image does not depend
                               on which others share its batch */
    const struct qd_condition
        *condition; /* what the denoiser is told, for whoever makes it; samplers do not look. NULL = nothing */
} qd_sample_options;

typedef struct qd_sampler {
    const char *name, *summary;
    const qd_param *params;                   /* steps, spacing, eta, clip: those it knows */
    int (*calls)(const qd_sample_options *o); /* predictor calls it will make */
    /* x: in N(0,1) noise (qd_sample_noise), out the image; [batch, C, H, W]. */
    qd_status (*run)(const qd_schedule *s, const qd_sample_options *o, const qd_predictor *p,
                     const qd_sampler_hook *hook, const qd_run *run, float *x, qd_err *err);
} qd_sampler;
extern const qd_sampler *const qd_samplers[]; /* NULL-terminated: samplers.c; ddpm, ddim, plms, dpmpp2m */
const qd_sampler *qd_sampler_find(const char *name);

/* "leading", "trailing", "linspace", "quad". */
bool qd_spacing_find(const char *name, qd_spacing *out);
/* What params says under the rows of samplers (steps, spacing, eta, clip); rows that params does not have leave the option as it
 * is. Put defaults into *o first. */
void qd_sample_options_read(const qd_params *params, qd_sample_options *o);

/* x_T of samples first..first+batch-1, each from QD_STREAM_INIT_NOISE | sample. */
void qd_sample_noise(float *x, int64_t batch, int64_t elements_per_sample, uint64_t seed, int64_t first_sample);

/* --- condition.c: what a conditional network is told beside sample and time step --- */

/* Sample number k takes row k mod n of whatever has n rows. A zeroed one tells nothing and asks for the answer without a condition;
 * qd_condition_init says guidance 1. Tensors are shared by whoever uses them. */
typedef struct qd_condition {
    qd_tensor context;      // f32 [n, tokens, width]: input "encoder_hidden_states"
    qd_tensor null_context; // f32 [1 or n, tokens, width]: the context of no condition; empty = zeros
    qd_tensor labels;       // i64 [n] or f32 [n, width]: input "class_labels"
    qd_tensor null_labels;  // the same of no condition; empty = zeros, for vectors only
    double
        guidance; /* w of eps_u + w (eps_c - eps_u) (diffusion_models.md 4.1): 1 = the conditional answer alone, 0 = the one
                               without, anything else asks the network for both in one call of twice the batch */
} qd_condition;
void qd_condition_init(qd_condition *c);
void qd_condition_clear(qd_condition *c);
void qd_condition_share(qd_condition *dst, const qd_condition *src); /* dst is overwritten, clear it first */
/* Does it say what this input of a network ("encoder_hidden_states" or "class_labels") must be told? QD_E_INVALID when not, or in another
 * shape ("this denoiser needs encoder_hidden_states [n, 77, 768]"). */
qd_status qd_condition_check(const qd_condition *c, const qd_node *input, qd_err *err);
/* What samples first..first+rows-1 are told there, with the condition or without: data [rows, ..] in the input's dtype. */
void qd_condition_fill(const qd_condition *c, const qd_node *input, bool with, int64_t first, int64_t rows, void *data);
/* What a file tells, f32, f16 or bf16: "context" (or "prompt_embeds", "encoder_hidden_states") [n, tokens, width] or [tokens, width], and
 * "null_context" (or "negative_prompt_embeds"); "class_labels" [n, width] or i64 [n], and "null_class_labels". What it does not say stays
 * as it is. QD_E_FORMAT when it tells nothing, QD_E_NUMERIC when that is not finite. */
bool qd_condition_in(const qd_weights *w);
qd_status qd_condition_read(qd_condition *c, const qd_weights *w, qd_budget *budget, qd_err *err);
/* How many classes a network knows: rows of the table that its class_labels choose from; 0 = no such table. */
int64_t qd_condition_classes(const qd_graph *g);
/* Fills labels, or context where `table` [classes, width] stands for classes (class-conditional latent diffusion); table NULL or
 * empty: the graph's own. label -1: sample k shows class k mod n of those that are left without the null class. null_label -1: the
 * last class when guidance needs one. Set guidance first. QD_E_INVALID names the number of classes. */
qd_status qd_condition_classify(qd_condition *c, const qd_graph *g, const qd_tensor *table, int64_t label,
                                int64_t null_label, qd_budget *budget, qd_err *err);

/* --- denoiser.c: a denoiser graph as predictor: compiles a plan of that batch. The predictor lends from the object. --- */
typedef struct qd_denoiser qd_denoiser;
struct qd_backend;
typedef struct qd_denoiser_options {
    int64_t batch;
    int threads;
    const struct qd_backend *backend; /* NULL = the default */
    qd_budget *budget;                /* may be NULL */
    const qd_condition *condition;    /* NULL for a network that takes none; shared, may go afterwards */
    qd_graph *take;                   /* the very graph, to be taken apart (plan.h); NULL = leave it whole */
    /* Values shown while it runs, as plan.h says. */
    const qd_node_id *observed;
    int n_observed;
    void (*observe)(void *ctx, qd_node_id id, const float *data, const qd_shape *shape);
    void *observe_ctx;
} qd_denoiser_options;
/* The predictor's eps is the guided one. QD_E_INVALID as qd_condition_check says. */
qd_status qd_denoiser_open(const qd_graph *g, const qd_denoiser_options *o, qd_denoiser **out, qd_err *err);
/* The same without a condition. */
qd_status qd_denoiser_new(const qd_graph *g, int64_t batch, int threads, const struct qd_backend *backend,
                          qd_budget *budget, qd_denoiser **out, qd_err *err);
void qd_denoiser_free(qd_denoiser *d);
qd_predictor qd_denoiser_predictor(qd_denoiser *d);

/* --- decoder.c: the second half of latent diffusion, one latent at a time, so that memory does not grow with the batch --- */
typedef struct qd_decoder qd_decoder;
/* g: input "latent" [-1, C, h, w] to output "image" [-1, K, H, W] (qd_zoo_decoder). The plan is compiled here. */
qd_status qd_decoder_new(const qd_graph *g, int threads, const struct qd_backend *backend, qd_budget *budget,
                         qd_decoder **out, qd_err *err);
void qd_decoder_free(qd_decoder *d);
qd_shape qd_decoder_image(const qd_decoder *d); // [K, H, W]
/* image [K, H, W], about [-1, 1], not clamped, of latent [C, h, w]. */
qd_status qd_decoder_run(qd_decoder *d, const qd_run *run, const float *latent, float *image, qd_err *err);

#endif
