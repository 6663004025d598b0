/* ldm_int.h - U-Nets as CompVis latent diffusion writes them: what shapes say, and where the file keeps each tensor. */
#ifndef QD_NN_LDM_INT_H
#define QD_NN_LDM_INT_H

#include "nn/nn_int.h"

typedef struct qd_ldm {
    int64_t image_size;
    int64_t in_channels, out_channels, model_channels;
    int levels;
    int64_t channels[QD_NN_MAX_LEVELS];
    bool attention[QD_NN_MAX_LEVELS];
    int64_t blocks;             // num_res_blocks
    int64_t heads, head_dim;    // one of them > 0
    bool qkv_split_first;       /* use_new_attention_order: q, k, v, then heads, instead of heads first */
    bool scale_shift;           /* use_scale_shift_norm */
    bool resnet_resampling;     /* resblock_updown */
    bool transformer;           /* use_spatial_transformer */
    bool linear_projection;     /* use_linear_in_transformer */
    int64_t depth, context_dim; // of its transformers
    int64_t context_length;     // tokens, ours
    int64_t classes;            // num_classes; 0 = none
    char prefix[32];            /* of the network's tensors in the file */
    bool ema;                   /* take the averaged copies */
} qd_ldm;

/* Fills in what the shapes of a file say: everything but image_size, heads, head_dim, qkv_split_first and context_length. */
qd_status qd_ldm_infer(const qd_weight_source *s, qd_ldm *l, qd_err *err);
/* A qd_weight_locate for a qd_ldm: diffusion_models.md 6 read backwards. */
bool qd_ldm_locate(const void *ldm, const char *name, qd_weight_place *out);
/* Names of the file begin with this where they are the network's. */
const char *qd_ldm_scope(const qd_ldm *l);
/* Does the file hold averaged copies? */
bool qd_ldm_has_ema(const qd_weight_source *s, const qd_ldm *l);
/* Where the network's names begin; false when the file holds no such network. */
bool qd_ldm_find_prefix(const qd_weight_source *s, char *prefix, size_t size);

#endif
