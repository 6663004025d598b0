/* unet2d_condition.c - UNet2DConditionModel: the diffusion U-Net that looks at a context, such as a text's tokens
 * (diffusion_models.md 4). */
#include "graph/op.h"
#include "nn/nn_int.h"

#define MAX_DEPTH 64
#define MAX_CONTEXT 65536
#define TEXT_TOKENS 77 /* of CLIP, which most of these networks read */

static const qd_block_kind block_kinds[] = {
    { .name = "DownBlock2D" },
    { .name = "CrossAttnDownBlock2D", .attend = QD_ATTEND_TRANSFORMER },
    { .name = "ResnetDownsampleBlock2D", .resnet_resampling = true },
    { .name = "UpBlock2D", .up = true },
    { .name = "CrossAttnUpBlock2D", .up = true, .attend = QD_ATTEND_TRANSFORMER },
    { .name = "ResnetUpsampleBlock2D", .up = true, .resnet_resampling = true },
    { .name = NULL },
};

/* Every key of the class, and context_length, which is ours: how many tokens the context has (the class leaves it open). */
static const char *const known_keys[] = {
    "sample_size",
    "in_channels",
    "out_channels",
    "center_input_sample",
    "flip_sin_to_cos",
    "freq_shift",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "only_cross_attention",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "mid_block_scale_factor",
    "dropout",
    "act_fn",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "attention_head_dim",
    "num_attention_heads",
    "dual_cross_attention",
    "use_linear_projection",
    "class_embed_type",
    "addition_embed_type",
    "addition_time_embed_dim",
    "num_class_embeds",
    "upcast_attention",
    "resnet_time_scale_shift",
    "resnet_skip_time_act",
    "resnet_out_scale_factor",
    "time_embedding_type",
    "time_embedding_dim",
    "time_embedding_act_fn",
    "timestep_post_act",
    "time_cond_proj_dim",
    "conv_in_kernel",
    "conv_out_kernel",
    "projection_class_embeddings_input_dim",
    "attention_type",
    "class_embeddings_concat",
    "mid_block_only_cross_attention",
    "cross_attention_norm",
    "addition_embed_type_num_heads",
    "context_length",
    NULL,
};

/* Other inputs and other arithmetic: SDXL's sizes, image prompts, two transformers, consistency models. num_attention_heads is
 * refused by the class itself. */
static const char *const refused_keys[] = {
    "addition_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "dual_cross_attention",
    "resnet_skip_time_act",
    "time_embedding_act_fn",
    "timestep_post_act",
    "time_cond_proj_dim",
    "cross_attention_norm",
    "num_attention_heads",
    NULL,
};

static qd_status read_fixed(const qd_config *c, qd_err *err)
{
    static const char *const times[] = { "positional", NULL };
    static const char *const attentions[] = { "default", NULL };
    int only = 0;
    double scale = 1.0;
    qd_status st = qd_keys_refuse(c, refused_keys, err);
    if (!st)
        st = qd_keys_choice(c, "time_embedding_type", times, &only, err);
    if (!st)
        st = qd_keys_choice(c, "attention_type", attentions, &only, err);
    if (!st)
        st = qd_config_number(c, "resnet_out_scale_factor", &scale, err);
    if (!st && scale != 1.0)
        st = qd_fail(err, QD_E_UNSUPPORTED, "config key 'resnet_out_scale_factor' is %g; only 1 is supported", scale);
    if (!st && qd_keys_null(c, "norm_num_groups"))
        st = qd_fail(err, QD_E_UNSUPPORTED,
                     "config key 'norm_num_groups' is null: networks without norms are not supported");
    return st;
}

static qd_status read_kernel(const qd_config *c, const char *key, int64_t *out, qd_err *err)
{
    qd_status st = qd_config_int(c, key, 1, 15, out, err);
    if (!st && *out % 2 == 0)
        st = qd_fail(err, QD_E_INVALID, "config key '%s' is %lld; it must be odd", key, (long long)*out);
    return st;
}

/* What a block's transformers need; `level` counts from the widest image. */
typedef struct per_level {
    int64_t layers[QD_NN_MAX_LEVELS], heads[QD_NN_MAX_LEVELS], depth[QD_NN_MAX_LEVELS], context[QD_NN_MAX_LEVELS];
    bool only_cross;
} per_level;

static qd_unet_block block_of(const qd_levels *l, const qd_block_kind *kind, const per_level *p, int level)
{
    return (qd_unet_block){ .attend = kind->attend,
                            .resnet_resampling = kind->resnet_resampling,
                            .channels = l->channels[level],
                            .layers = p->layers[level],
                            .heads = p->heads[level],
                            .depth = p->depth[level],
                            .only_cross = p->only_cross };
}

/* All transformers read the same context, so where there is one its width must be the same. */
static qd_status take_context(qd_unet *u, const qd_unet_block *b, int64_t width, qd_err *err)
{
    if (b->attend != QD_ATTEND_TRANSFORMER)
        return QD_OK;
    if (u->context_dim && u->context_dim != width)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "config key 'cross_attention_dim' asks for contexts %lld and %lld wide; only one is supported",
                       (long long)u->context_dim, (long long)width);
    u->context_dim = width;
    return QD_OK;
}

static qd_status read_levels(const qd_config *c, qd_unet *u, qd_err *err)
{
    static const char *const mids[] = { "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", NULL };
    int mid = 0;
    per_level p = { 0 };
    qd_levels l = {
        .n = 4,
        .down_names = { "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D" },
        .up_names = { "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D" },
        .channels = { 320, 640, 1280, 1280 },
    };
    for (int k = 0; k < QD_NN_MAX_LEVELS; k++) {
        p.layers[k] = 2;
        p.heads[k] = 8;
        p.depth[k] = 1;
        p.context[k] = 1280;
    }
    qd_status st = qd_keys_levels(c, block_kinds, &l, err);
    if (!st)
        st = qd_keys_per_level(c, "layers_per_block", 1, QD_NN_MAX_LAYERS, p.layers, l.n, err);
    if (!st) /* the NUMBER of heads: a historical misnomer (2.6) */
        st = qd_keys_per_level(c, "attention_head_dim", 1, QD_NN_MAX_CHANNELS, p.heads, l.n, err);
    if (!st)
        st = qd_keys_per_level(c, "transformer_layers_per_block", 1, MAX_DEPTH, p.depth, l.n, err);
    if (!st)
        st = qd_keys_per_level(c, "cross_attention_dim", 1, MAX_CONTEXT, p.context, l.n, err);
    if (!st)
        st = qd_config_bool(c, "only_cross_attention", &p.only_cross, err);
    if (!st)
        st = qd_keys_choice(c, "mid_block_type", mids, &mid, err);
    if (st)
        return st;

    u->levels = l.n;
    const int last = l.n - 1;
    for (int k = 0; k < l.n; k++) {
        u->down[k] = block_of(&l, l.down[k], &p, k);
        u->up[k] = block_of(&l, l.up[k], &p, last - k);
        u->up[k].layers++;
    }
    const qd_block_kind middle = { .attend = mid == 0 ? QD_ATTEND_TRANSFORMER : QD_ATTEND_NONE };
    u->mid = block_of(&l, &middle, &p, last);
    u->mid.only_cross = false; /* the class does not hand it on to this block */
    u->mid.layers = mid == 0 ? 2 : 1;
    if (qd_keys_null(c, "mid_block_type"))
        u->mid = (qd_unet_block){ .layers = 0 };

    st = take_context(u, &u->mid, p.context[last], err);
    for (int k = 0; k < l.n && !st; k++) {
        st = take_context(u, &u->down[k], p.context[k], err);
        if (!st)
            st = take_context(u, &u->up[k], p.context[last - k], err);
    }
    if (st)
        return st;
    /* A depth of the up blocks' own, in their order. */
    if (qd_config_has(c, "reverse_transformer_layers_per_block")) {
        int64_t depth[QD_NN_MAX_LEVELS];
        st = qd_keys_per_level(c, "reverse_transformer_layers_per_block", 1, MAX_DEPTH, depth, l.n, err);
        for (int k = 0; k < l.n && !st; k++)
            u->up[k].depth = depth[k];
    }
    return st;
}

static qd_status read_classes(const qd_config *c, qd_unet *u, qd_err *err)
{
    static const char *const types[] = { "timestep", "identity", "projection", "simple_projection", NULL };
    static const qd_class_embed kinds[] = { QD_CLASS_TIMESTEP, QD_CLASS_IDENTITY, QD_CLASS_PROJECTION,
                                            QD_CLASS_LINEAR };
    int type = 0;
    qd_status st = qd_config_int(c, "num_class_embeds", 1, 1000000, &u->class_rows, err);
    if (!st)
        st = qd_config_int(c, "projection_class_embeddings_input_dim", 1, MAX_CONTEXT, &u->class_width, err);
    if (!st)
        st = qd_config_bool(c, "class_embeddings_concat", &u->class_concat, err);
    if (!st && qd_config_has(c, "class_embed_type"))
        st = qd_keys_choice(c, "class_embed_type", types, &type, err);
    if (st)
        return st;
    u->classes = qd_config_has(c, "class_embed_type") ? kinds[type] : u->class_rows ? QD_CLASS_TABLE : QD_CLASS_NONE;
    if ((u->classes == QD_CLASS_PROJECTION || u->classes == QD_CLASS_LINEAR) && !u->class_width)
        return qd_fail(
            err, QD_E_INVALID,
            "config key 'projection_class_embeddings_input_dim' is missing, which class_embed_type '%s' needs",
            types[type]);
    if (u->classes == QD_CLASS_NONE && u->class_concat)
        return qd_fail(err, QD_E_INVALID, "config key 'class_embeddings_concat' is true, but there are no classes");
    return QD_OK;
}

static qd_status condition_build(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                                 qd_err *err)
{
    qd_unet u = { .in_channels = 4,
                  .out_channels = 4,
                  .kernel_in = 3,
                  .kernel_out = 3,
                  .flip_sin_to_cos = true,
                  .mid_scale = 1.0,
                  .downsample_padding = 1,
                  .act = &qd_op_silu,
                  .groups = 32,
                  .eps = 1e-5 };
    qd_status st = read_fixed(config, err);
    if (!st)
        st = read_levels(config, &u, err);
    if (!st)
        st = qd_unet_read(config, &u, err);
    if (!st)
        st = read_kernel(config, "conv_in_kernel", &u.kernel_in, err);
    if (!st)
        st = read_kernel(config, "conv_out_kernel", &u.kernel_out, err);
    if (!st)
        st = qd_config_bool(config, "use_linear_projection", &u.linear_projection, err);
    if (!st)
        st = read_classes(config, &u, err);
    u.context_length = TEXT_TOKENS;
    if (!st)
        st = qd_config_int(config, "context_length", 1, MAX_CONTEXT, &u.context_length, err);
    if (st)
        return st;
    u.time_act = u.out_act = u.act;
    qd_keys_warn(config, "UNet2DConditionModel", known_keys, run);
    return qd_unet_build(&u, weights, run, out, err);
}

const qd_network_kind qd_kind_unet2d_condition = {
    .name = "UNet2DConditionModel",
    .summary =
        "Diffusion U-Net with transformers that look at a context (Stable Diffusion 1 and 2, class-conditional LDM).",
    .role = QD_ROLE_DENOISER,
    .build = condition_build,
};
