/* nn.h - networks: building blocks, and the zoo that turns a config and its weights into a graph. */
#ifndef QD_NN_NN_H
#define QD_NN_NN_H

#include "base/err.h"
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
    /* Denoisers: inputs "sample" [-1, C, H, W] f32 and "timestep" [-1] f32, then "encoder_hidden_states" [-1, S, D] when they look
     * at a context, then "class_labels" [-1] or [-1, D] when conditional; output "eps". First stages of latent diffusion: input
     * "sample", images in [-1, 1], to outputs "latent_mean" and "latent_std" (AutoencoderKL; draw mean + std N(0,1)) or "latent"
     * (VQModel); input "latent" to output "image", about [-1, 1] and not clamped. Latents have the units of the diffusion model:
     * scaling_factor is inside. Fails naming the config key or the tensor. Config keys the kind does not know go to run's warn. */
    qd_status (*build)(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                       qd_err *err);
} qd_network_kind;
extern const qd_network_kind *const qd_network_kinds[]; /* NULL-terminated: zoo.c */

/* The graph of a model: built by its kind (by config `_class_name`), or the one it carries. Every tensor of the file must be
 * consumed exactly once; leftovers are an error naming the first. The caller frees *graph. */
qd_status qd_zoo_build(const qd_model *m, const qd_run *run, qd_graph **graph, qd_role *role, qd_err *err);
/* A network of that config with random weights: for benchmarks and tests. */
qd_status qd_zoo_random(const char *config_json, uint64_t seed, qd_graph **graph, qd_err *err);
/* The row of that name, NULL when there is none. */
const qd_network_kind *qd_network_kind_find(const char *name);
/* What depends on the input of that name, and what that needs: of a first stage, "sample" gives the encoder, "latent" the decoder.
 * Shares constants. QD_E_NOT_FOUND when there is no such input, or no output depends on it. */
qd_status qd_zoo_part(const qd_graph *g, const char *input, qd_graph **out, qd_err *err);

#endif
