/* unet2d.c - UNet2DModel: the unconditional and class-conditional diffusion U-Net (diffusion_models.md 3). */
#include "graph/op.h"
#include "nn/nn_int.h"

static const qd_block_kind block_kinds[] = {
    { .name = "DownBlock2D" },
    { .name = "AttnDownBlock2D", .attend = QD_ATTEND_SPATIAL },
    { .name = "ResnetDownsampleBlock2D", .resnet_resampling = true },
    { .name = "UpBlock2D", .up = true },
    { .name = "AttnUpBlock2D", .up = true, .attend = QD_ATTEND_SPATIAL },
    { .name = "ResnetUpsampleBlock2D", .up = true, .resnet_resampling = true },
    { .name = NULL },
};

/* Every key of the class; a config may hold others, which get a warning. */
static const char *const known_keys[] = {
    "sample_size",
    "in_channels",
    "out_channels",
    "center_input_sample",
    "time_embedding_type",
    "time_embedding_dim",
    "freq_shift",
    "flip_sin_to_cos",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "downsample_padding",
    "downsample_type",
    "upsample_type",
    "dropout",
    "act_fn",
    "attention_head_dim",
    "norm_num_groups",
    "attn_norm_num_groups",
    "norm_eps",
    "resnet_time_scale_shift",
    "add_attention",
    "class_embed_type",
    "num_class_embeds",
    "num_train_timesteps",
    NULL,
};

static qd_status read_levels(const qd_config *c, qd_unet *u, qd_err *err)
{
    static const char *const resampling[] = { "conv", "resnet", NULL };
    int down = 0, up = 0;
    int64_t layers = 2;
    qd_levels l = {
        .n = 4,
        .down_names = { "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D" },
        .up_names = { "AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D" },
        .channels = { 224, 448, 672, 896 },
    };
    qd_status st = qd_keys_levels(c, block_kinds, &l, err);
    if (!st)
        st = qd_keys_choice(c, "downsample_type", resampling, &down, err);
    if (!st)
        st = qd_keys_choice(c, "upsample_type", resampling, &up, err);
    if (!st)
        st = qd_config_int(c, "layers_per_block", 1, QD_NN_MAX_LAYERS, &layers, err);
    if (st)
        return st;
    u->levels = l.n;
    for (int k = 0; k < l.n; k++) {
        /* downsample_type and upsample_type speak to the blocks with attention only. */
        u->down[k] =
            (qd_unet_block){ .attend = l.down[k]->attend,
                             .resnet_resampling = l.down[k]->resnet_resampling || (l.down[k]->attend && down == 1),
                             .channels = l.channels[k],
                             .layers = layers };
        u->up[k] = (qd_unet_block){ .attend = l.up[k]->attend,
                                    .resnet_resampling = l.up[k]->resnet_resampling || (l.up[k]->attend && up == 1),
                                    .channels = l.channels[l.n - 1 - k],
                                    .layers = layers + 1 };
    }
    return QD_OK;
}

static qd_status read_time_type(const qd_config *c, qd_unet *u, qd_err *err)
{
    static const char *const types[] = { "positional", "learned", NULL };
    int type = 0;
    qd_status st = qd_keys_choice(c, "time_embedding_type", types, &type, err);
    if (!st)
        st = qd_config_int(c, "num_train_timesteps", 1, 1000000, &u->time_rows, err);
    if (st)
        return st;
    u->learned_time = type == 1;
    if (u->learned_time && !u->time_rows)
        return qd_fail(err, QD_E_INVALID,
                       "config key 'num_train_timesteps' is missing, which time_embedding_type 'learned' needs");
    return QD_OK;
}

static qd_status read_classes(const qd_config *c, qd_unet *u, qd_err *err)
{
    static const char *const types[] = { "timestep", "identity",
                                         NULL }; /* a table is asked for by num_class_embeds alone */
    static const qd_class_embed kinds[] = { QD_CLASS_TIMESTEP, QD_CLASS_IDENTITY };
    qd_status st = qd_config_int(c, "num_class_embeds", 1, 1000000, &u->class_rows, err);
    if (st)
        return st;
    u->classes = u->class_rows ? QD_CLASS_TABLE : QD_CLASS_NONE;
    if (!qd_config_has(c, "class_embed_type"))
        return QD_OK;
    int type = 0;
    st = qd_keys_choice(c, "class_embed_type", types, &type, err);
    if (st)
        return st;
    u->classes = kinds[type];
    if (u->classes == QD_CLASS_TIMESTEP && u->learned_time)
        return qd_fail(
            err, QD_E_UNSUPPORTED,
            "config key 'class_embed_type' is 'timestep', which time_embedding_type 'learned' does not support");
    return QD_OK;
}

static qd_status read_attention(const qd_config *c, qd_unet *u, qd_err *err)
{
    static const char *const mids[] = { "UNetMidBlock2D", NULL };
    int mid = 0;
    bool mid_attention = true;
    int64_t head_dim = qd_keys_null(c, "attention_head_dim") ? 0 : 8; /* null: one head as wide as the layer */
    qd_status st = qd_config_int(c, "attention_head_dim", 1, QD_NN_MAX_CHANNELS, &head_dim, err);
    if (!st)
        st = qd_keys_choice(c, "mid_block_type", mids, &mid, err);
    if (!st)
        st = qd_config_bool(c, "add_attention", &mid_attention, err);
    /* Without groups of its own the middle attention shares the resnets' groups, or with scale_shift has no norm at all. */
    u->mid_groups = u->scale_shift ? 0 : u->groups;
    if (!st)
        st = qd_config_int(c, "attn_norm_num_groups", 1, QD_NN_MAX_CHANNELS, &u->mid_groups, err);
    if (st)
        return st;

    u->mid = (qd_unet_block){ .attend = mid_attention ? QD_ATTEND_SPATIAL : QD_ATTEND_NONE,
                              .channels = u->down[u->levels - 1].channels,
                              .layers = qd_keys_null(c, "mid_block_type") ? 0 : 2 };
    u->mid.head_dim = head_dim ? head_dim : u->mid.channels;
    for (int k = 0; k < u->levels; k++) {
        u->down[k].head_dim = head_dim ? head_dim : u->down[k].channels;
        u->up[k].head_dim = head_dim ? head_dim : u->up[k].channels;
    }
    if (u->mid.layers && mid_attention && u->mid_groups && u->mid.channels % u->mid_groups)
        return qd_fail(
            err, QD_E_INVALID,
            "config key 'attn_norm_num_groups' is %lld, which does not divide the last of block_out_channels, %lld",
            (long long)u->mid_groups, (long long)u->mid.channels);
    return QD_OK;
}

static qd_status unet2d_build(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                              qd_err *err)
{
    qd_unet u = { .in_channels = 3,
                  .out_channels = 3,
                  .kernel_in = 3,
                  .kernel_out = 3,
                  .flip_sin_to_cos = true,
                  .mid_scale = 1.0,
                  .downsample_padding = 1,
                  .act = &qd_op_silu,
                  .time_act = &qd_op_silu, /* these two whatever act_fn says */
                  .out_act = &qd_op_silu,
                  .groups = 32,
                  .eps = 1e-5 };
    qd_status st = read_levels(config, &u, err);
    if (!st)
        st = read_time_type(config, &u, err);
    if (!st)
        st = qd_unet_read(config, &u, err);
    if (!st)
        st = read_attention(config, &u, err);
    if (!st)
        st = read_classes(config, &u, err);
    if (st)
        return st;
    qd_keys_warn(config, "UNet2DModel", known_keys, run);
    qd_ddpm_names names;
    qd_ddpm_names_use(&names, weights, "temb.dense.0.weight", u.levels);
    st = qd_unet_build(&u, weights, run, out, err);
    qd_ddpm_names_done(&names, weights);
    return st;
}

const qd_network_kind qd_kind_unet2d = {
    .name = "UNet2DModel",
    .summary = "Diffusion U-Net with residual blocks, group norm and self-attention (DDPM, unconditional LDM).",
    .role = QD_ROLE_DENOISER,
    .build = unet2d_build,
};
