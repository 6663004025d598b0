/* ldm.c - UNetModel: the U-Net of CompVis latent diffusion under its own names (diffusion_models.md 3.3, 6).
 *
 * The config holds what the network's yaml holds under unet_config.params, as JSON, with "_class_name": "UNetModel". Keys that the
 * shapes of the file decide may be left out; image_size and the number of heads cannot be seen in any shape. */
#include "nn/ldm_int.h"

#include <stdio.h>
#include <string.h>

#include "graph/op.h"

#define MAX_CONTEXT 65536
#define GROUPS 32 /* of all its norms */
#define TEXT_TOKENS 77

/* Every key of the class and three of ours: context_length, how many tokens a context has; use_ema, whether to prefer the averaged
 * copies in a file that has both; scale_factor, of the latents (first_stage.c). */
static const char *const known_keys[] = {
    "image_size",
    "in_channels",
    "model_channels",
    "out_channels",
    "num_res_blocks",
    "attention_resolutions",
    "dropout",
    "channel_mult",
    "conv_resample",
    "dims",
    "num_classes",
    "use_checkpoint",
    "use_fp16",
    "num_heads",
    "num_head_channels",
    "num_heads_upsample",
    "use_scale_shift_norm",
    "resblock_updown",
    "use_new_attention_order",
    "use_spatial_transformer",
    "transformer_depth",
    "context_dim",
    "n_embed",
    "legacy",
    "use_linear_in_transformer",
    "context_length",
    "use_ema",
    "scale_factor",
    NULL,
};

/* Present, neither null nor the class's own word for "not given". */
static bool given(const qd_config *c, const char *key)
{
    int64_t v = 0;
    return qd_config_has(c, key) && (qd_config_int(c, key, -1, INT32_MAX, &v, NULL) || v != -1);
}

static qd_status read_heads(const qd_config *c, qd_ldm *l, qd_err *err)
{
    qd_status st = QD_OK;
    if (given(c, "num_head_channels"))
        st = qd_config_int(c, "num_head_channels", 1, QD_NN_MAX_CHANNELS, &l->head_dim, err);
    else if (given(c, "num_heads"))
        st = qd_config_int(c, "num_heads", 1, QD_NN_MAX_CHANNELS, &l->heads, err);
    else
        st = qd_fail(err, QD_E_INVALID,
                     "config keys 'num_heads' and 'num_head_channels' are missing: no shape tells the number of heads");
    if (!st && l->heads && given(c, "num_heads_upsample")) {
        int64_t upsample = 0;
        st = qd_config_int(c, "num_heads_upsample", 1, QD_NN_MAX_CHANNELS, &upsample, err);
        if (!st && upsample != l->heads)
            st = qd_fail(err, QD_E_UNSUPPORTED, "config key 'num_heads_upsample' differs from 'num_heads'");
    }
    return st;
}

/* channel_mult and attention_resolutions (factors by which the image is smaller) where they are given. */
static qd_status read_levels(const qd_config *c, qd_ldm *l, qd_err *err)
{
    int64_t mult[QD_NN_MAX_LEVELS] = { 1, 2, 4, 8 }, factors[QD_NN_MAX_LEVELS];
    int n = 4, n_factors = 0;
    qd_status st = qd_config_ints(c, "channel_mult", 1, QD_NN_MAX_CHANNELS, mult, QD_NN_MAX_LEVELS, &n, err);
    if (st)
        return st;
    if (n < 1)
        return qd_fail(err, QD_E_INVALID, "config key 'channel_mult' is empty");
    if (qd_config_has(c, "channel_mult") || !l->levels) {
        l->levels = n;
        for (int k = 0; k < n; k++)
            l->channels[k] = mult[k] * l->model_channels;
    }
    if (!qd_config_has(c, "attention_resolutions"))
        return QD_OK;
    st = qd_config_ints(c, "attention_resolutions", 1, 1 << QD_NN_MAX_LEVELS, factors, QD_NN_MAX_LEVELS, &n_factors,
                        err);
    for (int k = 0; k < l->levels && !st; k++) {
        l->attention[k] = false;
        for (int j = 0; j < n_factors; j++)
            l->attention[k] |= factors[j] == 1ll << k;
    }
    return st;
}

static qd_status read_config(const qd_config *c, qd_ldm *l, qd_err *err)
{
    static const char *const refused[] = { "n_embed", NULL };
    int64_t dims = 2;
    bool conv_resample = true;
    qd_status st = qd_keys_refuse(c, refused, err);
    if (!st)
        st = qd_config_int(c, "dims", 2, 2, &dims, err);
    if (!st)
        st = qd_config_bool(c, "conv_resample", &conv_resample, err);
    if (!st && !conv_resample)
        st = qd_fail(err, QD_E_UNSUPPORTED, "config key 'conv_resample' is false, which is not supported");
    if (!st)
        st = qd_config_int(c, "image_size", 1, QD_NN_MAX_SIDE, &l->image_size, err);
    if (!st && !l->image_size)
        st = qd_fail(err, QD_E_INVALID,
                     "config key 'image_size' is missing: no shape tells the size of the images (or latents)");
    if (!st)
        st = read_heads(c, l, err);
    if (!st)
        st = qd_config_int(c, "model_channels", 1, QD_NN_MAX_CHANNELS, &l->model_channels, err);
    if (!st && !l->model_channels)
        st = qd_fail(err, QD_E_INVALID, "config key 'model_channels' is missing, and there is no file to see it in");
    if (!st)
        st = qd_config_int(c, "in_channels", 1, QD_NN_MAX_CHANNELS, &l->in_channels, err);
    if (!st)
        st = qd_config_int(c, "out_channels", 1, QD_NN_MAX_CHANNELS, &l->out_channels, err);
    if (!st)
        st = qd_config_int(c, "num_res_blocks", 1, QD_NN_MAX_LAYERS, &l->blocks, err);
    if (!st)
        st = read_levels(c, l, err);
    if (!st)
        st = qd_config_int(c, "num_classes", 1, 1000000, &l->classes, err);
    if (!st)
        st = qd_config_bool(c, "use_scale_shift_norm", &l->scale_shift, err);
    if (!st)
        st = qd_config_bool(c, "resblock_updown", &l->resnet_resampling, err);
    if (!st)
        st = qd_config_bool(c, "use_new_attention_order", &l->qkv_split_first, err);
    if (!st)
        st = qd_config_bool(c, "use_spatial_transformer", &l->transformer, err);
    if (!st)
        st = qd_config_bool(c, "use_linear_in_transformer", &l->linear_projection, err);
    if (!st)
        st = qd_config_int(c, "transformer_depth", 1, QD_NN_MAX_LAYERS, &l->depth, err);
    if (!st)
        st = qd_config_int(c, "context_dim", 1, MAX_CONTEXT, &l->context_dim, err);
    if (!st)
        st = qd_config_int(c, "context_length", 1, MAX_CONTEXT, &l->context_length, err);
    if (!st && l->transformer && !l->context_dim)
        st = qd_fail(err, QD_E_INVALID, "config key 'context_dim' is missing, which use_spatial_transformer needs");
    return st;
}

static qd_status check(const qd_ldm *l, qd_err *err)
{
    if (l->image_size % (1ll << (l->levels - 1)))
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "config key 'image_size' is %lld; with %d levels it must be a multiple of %lld",
                       (long long)l->image_size, l->levels, 1ll << (l->levels - 1));
    if (l->channels[0] != l->model_channels)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "the first level has %lld channels, config key 'model_channels' is %lld; they must be the same",
                       (long long)l->channels[0], (long long)l->model_channels);
    const int64_t ends[2] = { l->in_channels, l->out_channels };
    for (int k = 0; k < 2; k++)
        if (ends[k] < 1 || ends[k] > QD_NN_MAX_CHANNELS)
            return qd_fail(err, QD_E_LIMIT, "the network has %lld %s channels; they must be 1..%d", (long long)ends[k],
                           k ? "output" : "input", QD_NN_MAX_CHANNELS);
    for (int k = 0; k < l->levels; k++) {
        const int64_t c = l->channels[k];
        if (c < 1 || c > QD_NN_MAX_CHANNELS)
            return qd_fail(err, QD_E_LIMIT, "level %d has %lld channels; it must have 1..%d", k, (long long)c,
                           QD_NN_MAX_CHANNELS);
        if (c % GROUPS)
            return qd_fail(err, QD_E_INVALID,
                           "level %d has %lld channels, which the %d groups of its norms do not divide", k,
                           (long long)c, GROUPS);
        const bool attends = l->attention[k] || k == l->levels - 1; /* the middle always does */
        if (attends && (l->heads ? c % l->heads : c % l->head_dim))
            return qd_fail(err, QD_E_INVALID,
                           "config key '%s' is %lld, which does not divide the %lld channels of level %d",
                           l->heads ? "num_heads" : "num_head_channels", (long long)(l->heads ? l->heads : l->head_dim),
                           (long long)c, k);
    }
    return QD_OK;
}

static qd_unet_block block_of(const qd_ldm *l, int level, bool attention, int64_t layers)
{
    const int64_t c = l->channels[level];
    const int64_t heads = l->heads ? l->heads : attention ? c / l->head_dim : 1;
    return (qd_unet_block){ .attend = !attention       ? QD_ATTEND_NONE
                                      : l->transformer ? QD_ATTEND_TRANSFORMER
                                                       : QD_ATTEND_SPATIAL,
                            .resnet_resampling = l->resnet_resampling,
                            .channels = c,
                            .layers = layers,
                            .head_dim = c / heads,
                            .heads = heads,
                            .depth = l->depth };
}

static qd_unet unet_of(const qd_ldm *l)
{
    const int last = l->levels - 1;
    qd_unet u = { .height = l->image_size,
                  .width = l->image_size,
                  .in_channels = l->in_channels,
                  .out_channels = l->out_channels,
                  .kernel_in = 3,
                  .kernel_out = 3,
                  .flip_sin_to_cos = true,
                  .time_dim = 4 * l->model_channels,
                  .classes = l->classes ? QD_CLASS_TABLE : QD_CLASS_NONE,
                  .class_rows = l->classes,
                  .levels = l->levels,
                  .mid_scale = 1.0,
                  .mid_groups = GROUPS,
                  .downsample_padding = 1,
                  .linear_projection = l->linear_projection,
                  .context_length = l->context_length,
                  .context_dim = l->transformer ? l->context_dim : 0,
                  .act = &qd_op_silu,
                  .time_act = &qd_op_silu,
                  .out_act = &qd_op_silu,
                  .groups = GROUPS,
                  .eps = 1e-5,
                  .scale_shift = l->scale_shift };
    u.mid = block_of(l, last, true, 2);
    for (int k = 0; k < l->levels; k++) {
        u.down[k] = block_of(l, k, l->attention[k], l->blocks);
        u.up[last - k] = block_of(l, k, l->attention[k], l->blocks + 1);
    }
    return u;
}

/* Without a file: the defaults of the class. With one: what its shapes say, and whether to read the averaged copies. */
static qd_status start(const qd_config *c, const qd_weight_source *weights, qd_ldm *l, qd_err *err)
{
    *l = (qd_ldm){ .blocks = 2, .in_channels = 3, .out_channels = 3, .depth = 1, .context_length = TEXT_TOKENS };
    if (!qd_weight_source_is_file(weights))
        return QD_OK;
    if (!qd_ldm_find_prefix(weights, l->prefix, sizeof(l->prefix)))
        return qd_fail(err, QD_E_FORMAT,
                       "the file has no tensor 'input_blocks.0.0.weight': it is no latent diffusion U-Net");
    if (qd_weight_source_peek(weights, QD_LDM_CLASS_TABLE))
        l->context_length = 1; /* the class's row, and nothing else */
    l->ema = true;
    qd_status st = qd_config_bool(c, "use_ema", &l->ema, err);
    if (!st && l->ema && !qd_ldm_has_ema(weights, l)) {
        if (qd_config_has(c, "use_ema"))
            st = qd_fail(err, QD_E_INVALID, "config key 'use_ema' is true, but the file has no averaged copies");
        l->ema = false;
    }
    if (!st)
        st = qd_ldm_infer(weights, l, err);
    return st;
}

static qd_status ldm_build(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                           qd_err *err)
{
    qd_ldm l;
    qd_status st = start(config, weights, &l, err);
    if (!st)
        st = read_config(config, &l, err);
    if (!st)
        st = check(&l, err);
    if (st)
        return st;
    qd_keys_warn(config, "UNetModel", known_keys, run);
    const qd_unet u = unet_of(&l);
    if (qd_weight_source_is_file(weights))
        qd_weight_source_rename(weights, qd_ldm_locate, &l, qd_ldm_scope(&l));
    st = qd_unet_build(&u, weights, run, out, err);
    if (qd_weight_source_is_file(weights))
        qd_weight_source_rename(weights, NULL, NULL, qd_ldm_scope(&l));
    return st;
}

const qd_network_kind qd_kind_ldm = {
    .name = "UNetModel",
    .summary = "Diffusion U-Net of CompVis latent diffusion and Stable Diffusion checkpoints, under their own names.",
    .role = QD_ROLE_DENOISER,
    .build = ldm_build,
};
