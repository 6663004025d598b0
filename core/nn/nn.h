/* nn.h - networks: building blocks, and the zoo that turns a config and its weights into a graph. */
#ifndef QD_NN_NN_H
#define QD_NN_NN_H

#include "base/err.h"
#include "base/rng.h"
#include "base/run.h"
#include "graph/graph.h"
#include "model/model.h"

typedef enum qd_role { QD_ROLE_DENOISER, QD_ROLE_CLASSIFIER, QD_ROLE_OTHER } qd_role;

/* Where a builder gets its tensors: from a file (each consumed exactly once, F16 and BF16 widened to F32, NaN and infinity
 * refused), or drawn at random for tests and benchmarks. */
typedef struct qd_weight_source qd_weight_source;
qd_status qd_weight_source_file(const qd_weights *w, qd_budget *budget, qd_weight_source **out, qd_err *err);
/* PyTorch's default initialisation bounds, from `seed`; norm weights 1, biases small. */
qd_status qd_weight_source_random(uint64_t seed, qd_budget *budget, qd_weight_source **out, qd_err *err);
/* All zeros, in pages nobody pays for until they are read: to count, print or plan a network without having it. */
qd_status qd_weight_source_blank(qd_weight_source **out, qd_err *err);
void qd_weight_source_free(qd_weight_source *s);
/* After building: QD_E_FORMAT naming the first tensor of the file that the builder did not ask for. */
qd_status qd_weight_source_used_up(const qd_weight_source *s, qd_err *err);

typedef struct qd_network_kind {
    const char *name; /* the `_class_name` of config.json: "UNet2DModel" */
    const char *summary;
    qd_role role;
    /* Do the tensors of a file that came without a config look like this kind, and say all it needs? NULL = never. */
    bool (*fits)(const qd_weight_source *weights);
    /* Denoisers: inputs "sample" [-1, C, H, W] f32 and "timestep" [-1] f32, then "encoder_hidden_states" [-1, S, D] when they look
     * at a context, then "class_labels" [-1] or [-1, D] when conditional; output "eps". First stages of latent diffusion: input
     * "sample", images in [-1, 1], to outputs "latent_mean" and "latent_std" (AutoencoderKL; draw mean + std N(0,1)) or "latent"
     * (VQModel); input "latent" to output "image", about [-1, 1] and not clamped. Latents have the units of the diffusion model:
     * scaling_factor is inside. Classifiers: input "input"
     * [-1, C, H, W], pixels scaled as in training, to output "logits" [-1, classes], and "features" [-1, D] where the row says so. Fails
     * naming the config key or the tensor. Config keys the kind does not know go to run's warn. */
    qd_status (*build)(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                       qd_err *err);
} qd_network_kind;
extern const qd_network_kind *const qd_network_kinds[]; /* NULL-terminated: zoo.c */

/* The graph of a model: built by its kind (by config `_class_name`, without one by what its tensors look like), or the one it carries. Every tensor of the file must be
 * consumed exactly once; leftovers are an error naming the first. The caller frees *graph. */
qd_status qd_zoo_build(const qd_model *m, const qd_run *run, qd_graph **graph, qd_role *role, qd_err *err);
/* A network of that config with random weights: for benchmarks and tests. */
qd_status qd_zoo_random(const char *config_json, uint64_t seed, qd_graph **graph, qd_err *err);
/* The row of that name, NULL when there is none. */
const qd_network_kind *qd_network_kind_find(const char *name);
/* The decoder a latent diffusion model came with: the first stage beside it or in the same file (first_stage_model.), or the model
 * itself when it is one. Input "latent" of the size and channels of the denoiser's `sample` (unet's shape [N, C, h, w]), output "image"
 * [N, K, H, W]. *out NULL when there is none: pictures come from the denoiser itself. */
qd_status qd_zoo_decoder(const qd_model *m, const qd_shape *sample, const qd_run *run, qd_graph **out, qd_err *err);
/* f32 [classes, width]: the table of a class-conditional latent diffusion model, whose context is one row of it ("cond_stage_model.
 * embedding.weight" of the file, or "class_table" of context.safetensors). Empty when there is none. */
qd_status qd_zoo_class_table(const qd_model *m, qd_budget *budget, qd_tensor *out, qd_err *err);
/* What depends on the input of that name, and what that needs: of a first stage, "sample" gives the encoder, "latent" the decoder.
 * Shares constants. QD_E_NOT_FOUND when there is no such input, or no output depends on it. */
qd_status qd_zoo_part(const qd_graph *g, const char *input, qd_graph **out, qd_err *err);

/* --- losses (loss.c): nodes added to a graph; each gives one f32 without axes. `name` begins the names of the nodes. A failure
 * sticks to the graph. --- */

/* Mean over rows of -sum target log softmax(logits); logits, target [N, C], rows of target sum to 1 (one-hot or soft). */
qd_node_id qd_loss_cross_entropy(qd_graph *g, const char *name, qd_node_id logits, qd_node_id target);
/* T^2 sum p log(p / q) / N, p = softmax(teacher / T), q = softmax(student / T), both [N, C]; per_class divides by C too (ris.md 2.5). */
qd_node_id qd_loss_kl(qd_graph *g, const char *name, qd_node_id student, qd_node_id teacher, double temperature,
                      bool per_class);
/* Means over all elements of (a - b)^2 and |a - b|; mean over rows of 1 - cos(a, b), a and b [N, D]. */
qd_node_id qd_loss_mse(qd_graph *g, const char *name, qd_node_id a, qd_node_id b);
qd_node_id qd_loss_l1(qd_graph *g, const char *name, qd_node_id a, qd_node_id b);
qd_node_id qd_loss_cosine(qd_graph *g, const char *name, qd_node_id a, qd_node_id b);
/* Contrast (colt.md 4): with u the rows of z [N, D] at length 1 and s = u u^T, the mean over i of
 *   log sum_{a != i} exp(s_ia / tau) - sum_j target_ij s_ij / tau.
 * target and self [N, N] are inputs filled by the functions below. */
qd_node_id qd_loss_contrast(qd_graph *g, const char *name, qd_node_id z, qd_node_id target, qd_node_id self,
                            double tau);
/* Rows of x [N, D] at length 1. */
qd_node_id qd_unit_rows(qd_graph *g, const char *name, qd_node_id x);

void qd_one_hot(float *dst, const int32_t *label, int64_t n, int64_t classes); // dst [n, classes]
void qd_contrast_self(float *self, int64_t n);                                 // [n, n]
/* NT-Xent: row i and row i + n / 2 are two views of one image. SupCon: rows of one label, 1 / their number each. */
void qd_contrast_pairs(float *target, int64_t n);
void qd_contrast_labels(float *target, const int32_t *label, int64_t n);

/* --- optimizers (optim.c): rows of a table, each a rule for one tensor --- */

typedef struct qd_optim_options {
    const struct qd_optim *rule;
    double momentum;     /* sgd, lars */
    bool nesterov;       /* sgd */
    double beta1, beta2; /* adam, adamw */
    double eps;          /* adam, adamw */
    double weight_decay; /* added to the gradient; adamw: w shrinks by lr decay */
    double trust;        /* lars: eta */
} qd_optim_options;

typedef struct qd_optim {
    const char *name, *summary;
    qd_optim_options defaults;
    int slots;      /* arrays of state beside each tensor, zero at first */
    bool by_tensor; /* looks at whole tensors; else elements go alone, and 0 without gradient stays 0 */
    /* Step number `step` (from 1) on w [n]. Pure; the same bytes whatever runs beside it. */
    void (*apply)(const qd_optim_options *o, int64_t step, double lr, float *w, const float *grad, float *const *slot,
                  int64_t n);
} qd_optim;
extern const qd_optim qd_optim_sgd, qd_optim_adam, qd_optim_adamw, qd_optim_lars;
extern const qd_optim *const qd_optims[]; /* NULL-terminated */
const qd_optim *qd_optim_find(const char *name);

/* Learning rate of a step (from 0). Linear from 0 over `warmup` steps, then the shape. */
typedef enum qd_lr_shape { QD_LR_CONSTANT, QD_LR_STEPS, QD_LR_COSINE } qd_lr_shape;
typedef struct qd_lr_schedule {
    qd_lr_shape shape;
    double lr, lr_min; /* cosine ends at lr_min */
    int64_t warmup, total;
    double factor; /* steps: lr is multiplied by it at each of `at` */
    int n_at;
    int64_t at[8];
} qd_lr_schedule;
double qd_lr_at(const qd_lr_schedule *s, int64_t step);

/* Scale all n values so that their length is at most `most`; returns the length before. */
double qd_clip_norm(float *grad, int64_t n, double most);
/* average = decay average + (1 - decay) w */
void qd_ema_update(float *average, const float *w, int64_t n, double decay);

/* --- training (trainer.c) --- */

typedef enum qd_bn_mode {
    QD_BN_TRAIN, /* statistics of the batch; running ones follow */
    QD_BN_FROZEN /* running statistics as they are; weight and bias learn */
} qd_bn_mode;

typedef struct qd_trainer_options {
    /* The network as for inference: float constants that are weights, biases, norm parameters or tables become parameters. */
    const qd_graph *network;
    bool (*trains)(void *ctx, const char *constant); /* NULL: all of them */
    qd_bn_mode batch_norm;
    double bn_momentum; /* of running statistics, PyTorch's sense; 0 counts as 0.1 */
    /* Adds inputs of its own (targets) and the loss. outputs are those of the network. */
    qd_status (*loss)(void *ctx, qd_graph *g, const qd_node_id *outputs, int n_outputs, qd_node_id *loss, qd_err *err);
    /* Fills the inputs that are not parameters, in the order in which they were added, for one step. All chance comes from rng,
     * which depends on the seed and the step alone. */
    qd_status (*batch)(void *ctx, qd_rng *rng, int64_t step, void *const *inputs, qd_err *err);
    void *ctx;

    int64_t batch_size; /* for the -1 of inputs */
    qd_optim_options optim;
    qd_lr_schedule schedule;
    double clip_norm; /* 0 = off */
    double ema_decay; /* 0 = no average is kept */
    /* Make values of the forward pass again in the backward pass instead of keeping all: the same gradients, byte for byte, in less memory for
     * about a third more work. Kept are the values of nodes of the network for which keeps() says so (the ends of its blocks); NULL: a
     * choice that needs few bytes. */
    bool recompute;
    bool (*keeps)(void *ctx, const char *node);
    const struct qd_backend *backend; /* NULL = the default */
    bool profile;                     /* of the plan */
} qd_trainer_options;

typedef struct qd_trainer qd_trainer;
/* run: threads, seed, budget. The network may be freed when the trainer is. All arrays are drawn from the budget before they are made;
 * where it refuses, QD_E_LIMIT with the bytes needed and what would fit: a smaller batch, or recompute. */
qd_status qd_trainer_new(const qd_trainer_options *o, const qd_run *run, qd_trainer **out, qd_err *err);
void qd_trainer_free(qd_trainer *t);
/* Steps until `until` have been made since the start; reports the metrics "loss" and "lr". QD_E_NUMERIC when the loss is not finite.
 * Cancelled between or within steps, parameters are those of the last whole step. */
qd_status qd_trainer_run(qd_trainer *t, const qd_run *run, int64_t until, qd_err *err);
int64_t qd_trainer_step(const qd_trainer *t); /* made so far */
double qd_trainer_loss(const qd_trainer *t);  /* of the last */
/* All that the next steps depend on, as a safetensors file; continuing from it gives the bytes of a run that never stopped (on the
 * same kind of CPU, with as many threads). load refuses a checkpoint of another network, optimizer or seed. */
qd_status qd_trainer_save(const qd_trainer *t, const char *path, qd_err *err);
qd_status qd_trainer_load(qd_trainer *t, const char *path, qd_err *err);
/* The network with what was learned in place of its constants, drawn from the budget of the run the trainer was made with, which must
 * outlive it; averaged: the moving average. */
qd_status qd_trainer_network(const qd_trainer *t, bool averaged, qd_graph **out, qd_err *err);
/* The compiled step, for benchmarks and profiles. Lent. */
struct qd_plan *qd_trainer_plan(const qd_trainer *t);

#endif
