/* unet2d.c - UNet2DModel: the unconditional and class-conditional diffusion U-Net (diffusion_models.md 3). */
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "nn/nn_int.h"

#define MAX_LEVELS 11 /* 2^10 divides no image side above 1024 more often */
#define MAX_LAYERS 64
#define MAX_CHANNELS 8192
#define MAX_SIDE 1024
#define MAX_SKIPS (1 + MAX_LEVELS * (MAX_LAYERS + 1))
#define NO_HEAD_DIM 0

typedef enum class_embed { CLASS_NONE, CLASS_TABLE, CLASS_TIMESTEP, CLASS_IDENTITY } class_embed;

/* A row for each kind of down and up block. */
typedef struct block_kind {
    const char *name;
    bool up, attention, resnet_resampling;
} block_kind;

static const block_kind block_kinds[] = {
    { .name = "DownBlock2D" },
    { .name = "AttnDownBlock2D", .attention = true },
    { .name = "ResnetDownsampleBlock2D", .resnet_resampling = true },
    { .name = "UpBlock2D", .up = true },
    { .name = "AttnUpBlock2D", .up = true, .attention = true },
    { .name = "ResnetUpsampleBlock2D", .up = true, .resnet_resampling = true },
};

typedef struct unet_config {
    int64_t height, width, in_channels, out_channels;
    bool center_input;
    bool learned_time; /* a table of time steps instead of sines */
    int64_t time_rows;
    double freq_shift;
    bool flip_sin_to_cos;
    int64_t time_dim; // temb width
    int levels;
    const block_kind *down[MAX_LEVELS], *up[MAX_LEVELS];
    bool mid, mid_attention;
    int64_t channels[MAX_LEVELS];
    int64_t layers;
    double mid_scale;
    int64_t downsample_padding;
    bool resnet_downsample, resnet_upsample; /* of the blocks with attention */
    const qd_op *act;
    int64_t head_dim; // NO_HEAD_DIM = one head as wide as the layer
    int64_t groups, attn_groups;
    double eps;
    bool scale_shift;
    class_embed classes;
    int64_t class_rows;
} unet_config;

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

static void warn_unknown_keys(const qd_config *c, const qd_run *run)
{
    for (int k = 0; k < qd_config_count(c); k++) {
        const char *key = qd_config_key(c, k);
        bool known = key[0] == '_'; /* notes of the writer: _class_name, _diffusers_version */
        for (int j = 0; known_keys[j] && !known; j++)
            known = strcmp(known_keys[j], key) == 0;
        if (!known)
            qd_run_warn(run, "config key '%s' means nothing to UNet2DModel and is ignored", key);
    }
}

/* Present and null, which for some keys differs from absent. */
static bool is_null(const qd_config *c, const char *key)
{
    for (int k = 0; k < qd_config_count(c); k++)
        if (strcmp(qd_config_key(c, k), key) == 0)
            return !qd_config_has(c, key);
    return false;
}

/* One of `names`: its index. */
static qd_status read_choice(const qd_config *c, const char *key, const char *const *names, int *out, qd_err *err)
{
    const char *text = names[*out];
    qd_status st = qd_config_string(c, key, &text, err);
    if (st)
        return st;
    for (int k = 0; names[k]; k++)
        if (strcmp(text, names[k]) == 0) {
            *out = k;
            return QD_OK;
        }
    return qd_fail(err, QD_E_UNSUPPORTED, "config key '%s' is '%s', which is not supported", key, text);
}

static qd_status read_blocks(const qd_config *c, const char *key, bool up, const char *const *fallback, int n_fallback,
                             const block_kind **out, int *n, qd_err *err)
{
    const char *names[MAX_LEVELS];
    for (int k = 0; k < n_fallback; k++)
        names[k] = fallback[k];
    *n = n_fallback;
    qd_status st = qd_config_strings(c, key, names, MAX_LEVELS, n, err);
    if (st)
        return st;
    for (int k = 0; k < *n; k++) {
        const char *name = strncmp(names[k], "UNetRes", 7) == 0 ? names[k] + 7 : names[k]; /* legacy prefix */
        out[k] = NULL;
        for (size_t j = 0; j < sizeof(block_kinds) / sizeof(block_kinds[0]); j++)
            if (block_kinds[j].up == up && strcmp(block_kinds[j].name, name) == 0)
                out[k] = &block_kinds[j];
        if (!out[k])
            return qd_fail(err, QD_E_UNSUPPORTED, "config key '%s' names block '%s', which is not supported there", key,
                           names[k]);
    }
    return QD_OK;
}

static qd_status read_levels(const qd_config *c, unet_config *u, qd_err *err)
{
    static const char *const down[] = { "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D" };
    static const char *const up[] = { "AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D" };
    static const int64_t channels[] = { 224, 448, 672, 896 };
    int n_down, n_up;
    qd_status st = read_blocks(c, "down_block_types", false, down, 4, u->down, &n_down, err);
    if (st)
        return st;
    st = read_blocks(c, "up_block_types", true, up, 4, u->up, &n_up, err);
    if (st)
        return st;
    memcpy(u->channels, channels, sizeof(channels));
    u->levels = 4;
    st = qd_config_ints(c, "block_out_channels", 1, MAX_CHANNELS, u->channels, MAX_LEVELS, &u->levels, err);
    if (st)
        return st;
    if (u->levels < 1)
        return qd_fail(err, QD_E_INVALID, "config key 'block_out_channels' is empty");
    if (n_down != u->levels || n_up != u->levels)
        return qd_fail(
            err, QD_E_INVALID,
            "config keys disagree: 'block_out_channels' has %d entries, 'down_block_types' %d, 'up_block_types' %d",
            u->levels, n_down, n_up);
    return QD_OK;
}

static qd_status read_size(const qd_config *c, unet_config *u, qd_err *err)
{
    int64_t size[2];
    int n = 0;
    qd_status st = qd_config_ints(c, "sample_size", 1, MAX_SIDE, size, 2, &n, err);
    if (st)
        return st;
    if (n == 0)
        return qd_fail(err, QD_E_INVALID, "config key 'sample_size' is missing: the image size cannot be guessed");
    u->height = size[0];
    u->width = n == 2 ? size[1] : size[0];
    const int64_t step = 1ll << (u->levels - 1);
    if (u->height % step || u->width % step)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "config key 'sample_size' is %lldx%lld; with %d levels both sides must be multiples of %lld",
                       (long long)u->height, (long long)u->width, u->levels, (long long)step);
    return QD_OK;
}

static qd_status read_time(const qd_config *c, unet_config *u, qd_err *err)
{
    static const char *const types[] = { "positional", "learned", NULL };
    int type = 0;
    qd_status st = read_choice(c, "time_embedding_type", types, &type, err);
    if (!st)
        st = qd_config_number(c, "freq_shift", &u->freq_shift, err);
    if (!st)
        st = qd_config_bool(c, "flip_sin_to_cos", &u->flip_sin_to_cos, err);
    if (!st)
        st = qd_config_int(c, "num_train_timesteps", 1, 1000000, &u->time_rows, err);
    u->time_dim = 4 * u->channels[0];
    if (!st)
        st = qd_config_int(c, "time_embedding_dim", 1, 4 * MAX_CHANNELS, &u->time_dim, err);
    if (st)
        return st;
    u->learned_time = type == 1;
    if (u->learned_time && !u->time_rows)
        return qd_fail(err, QD_E_INVALID,
                       "config key 'num_train_timesteps' is missing, which time_embedding_type 'learned' needs");
    const int64_t half = u->channels[0] / 2;
    if (!u->learned_time && !((double)half - u->freq_shift > 0.0))
        return qd_fail(err, QD_E_INVALID,
                       "config key 'freq_shift' is %g; with block_out_channels[0] = %lld it must be below %lld",
                       u->freq_shift, (long long)u->channels[0], (long long)half);
    return QD_OK;
}

static qd_status read_classes(const qd_config *c, unet_config *u, qd_err *err)
{
    static const char *const types[] = { "timestep", "identity",
                                         NULL }; /* a table is asked for by num_class_embeds alone */
    static const class_embed kinds[] = { CLASS_TIMESTEP, CLASS_IDENTITY };
    qd_status st = qd_config_int(c, "num_class_embeds", 1, 1000000, &u->class_rows, err);
    if (st)
        return st;
    u->classes = u->class_rows ? CLASS_TABLE : CLASS_NONE;
    if (!qd_config_has(c, "class_embed_type"))
        return QD_OK;
    int type = 0;
    st = read_choice(c, "class_embed_type", types, &type, err);
    if (st)
        return st;
    u->classes = kinds[type];
    if (u->classes == CLASS_TIMESTEP && u->learned_time)
        return qd_fail(
            err, QD_E_UNSUPPORTED,
            "config key 'class_embed_type' is 'timestep', which time_embedding_type 'learned' does not support");
    return QD_OK;
}

static qd_status read_attention(const qd_config *c, unet_config *u, qd_err *err)
{
    u->head_dim = is_null(c, "attention_head_dim") ? NO_HEAD_DIM : 8;
    qd_status st = qd_config_int(c, "attention_head_dim", 1, MAX_CHANNELS, &u->head_dim, err);
    u->mid_attention = true;
    if (!st)
        st = qd_config_bool(c, "add_attention", &u->mid_attention, err);
    /* Without groups of its own the middle attention shares the resnets' groups, or with scale_shift has no norm at all. */
    u->attn_groups = u->scale_shift ? 0 : u->groups;
    if (!st)
        st = qd_config_int(c, "attn_norm_num_groups", 1, MAX_CHANNELS, &u->attn_groups, err);
    return st;
}

static qd_status read_resnets(const qd_config *c, unet_config *u, qd_err *err)
{
    static const char *const acts[] = { "silu", "swish", "relu", "gelu", NULL };
    static const qd_op *const ops[] = { &qd_op_silu, &qd_op_silu, &qd_op_relu, &qd_op_gelu };
    static const char *const shifts[] = { "default", "scale_shift", NULL };
    static const char *const resampling[] = { "conv", "resnet", NULL };
    int act = 0, shift = 0, down = 0, up = 0;
    u->groups = 32;
    u->eps = 1e-5;
    u->mid_scale = 1.0;
    u->downsample_padding = 1;
    u->layers = 2;
    qd_status st = read_choice(c, "act_fn", acts, &act, err);
    if (!st)
        st = read_choice(c, "resnet_time_scale_shift", shifts, &shift, err);
    if (!st)
        st = read_choice(c, "downsample_type", resampling, &down, err);
    if (!st)
        st = read_choice(c, "upsample_type", resampling, &up, err);
    if (!st)
        st = qd_config_int(c, "norm_num_groups", 1, MAX_CHANNELS, &u->groups, err);
    if (!st)
        st = qd_config_number(c, "norm_eps", &u->eps, err);
    if (!st)
        st = qd_config_number(c, "mid_block_scale_factor", &u->mid_scale, err);
    if (!st)
        st = qd_config_int(c, "downsample_padding", 0, 1, &u->downsample_padding, err);
    if (!st)
        st = qd_config_int(c, "layers_per_block", 1, MAX_LAYERS, &u->layers, err);
    if (st)
        return st;
    if (!(u->eps > 0.0 && u->eps < 1.0))
        return qd_fail(err, QD_E_INVALID, "config key 'norm_eps' is %g; it must be above 0 and below 1", u->eps);
    if (!(u->mid_scale > 0.0 && u->mid_scale < 1e6))
        return qd_fail(err, QD_E_INVALID, "config key 'mid_block_scale_factor' is %g; it must be above 0 and below 1e6",
                       u->mid_scale);
    u->act = ops[act];
    u->scale_shift = shift == 1;
    u->resnet_downsample = down == 1;
    u->resnet_upsample = up == 1;
    return QD_OK;
}

/* Words for a norm that cannot be, with the key at fault (the blocks only know their own names). */
static qd_status check_groups(const unet_config *u, qd_err *err)
{
    for (int k = 0; k < u->levels; k++)
        if (u->channels[k] % u->groups)
            return qd_fail(err, QD_E_INVALID,
                           "config key 'norm_num_groups' is %lld, which does not divide block_out_channels[%d] = %lld",
                           (long long)u->groups, k, (long long)u->channels[k]);
    const int64_t last = u->channels[u->levels - 1];
    if (u->mid && u->mid_attention && u->attn_groups && last % u->attn_groups)
        return qd_fail(
            err, QD_E_INVALID,
            "config key 'attn_norm_num_groups' is %lld, which does not divide the last of block_out_channels, %lld",
            (long long)u->attn_groups, (long long)last);
    return QD_OK;
}

static qd_status read_config(const qd_config *c, unet_config *u, qd_err *err)
{
    static const char *const mids[] = { "UNetMidBlock2D", NULL };
    int mid = 0;
    *u = (unet_config){ .in_channels = 3, .out_channels = 3, .flip_sin_to_cos = true };
    qd_status st = qd_config_int(c, "in_channels", 1, MAX_CHANNELS, &u->in_channels, err);
    if (!st)
        st = qd_config_int(c, "out_channels", 1, MAX_CHANNELS, &u->out_channels, err);
    if (!st)
        st = qd_config_bool(c, "center_input_sample", &u->center_input, err);
    if (!st)
        st = read_choice(c, "mid_block_type", mids, &mid, err);
    u->mid = !is_null(c, "mid_block_type");
    if (!st)
        st = read_levels(c, u, err);
    if (!st)
        st = read_size(c, u, err);
    if (!st)
        st = read_time(c, u, err);
    if (!st)
        st = read_resnets(c, u, err);
    if (!st)
        st = read_attention(c, u, err);
    if (!st)
        st = read_classes(c, u, err);
    if (!st)
        st = check_groups(u, err);
    return st;
}

static int64_t head_dim(const unet_config *u, int64_t channels)
{
    return u->head_dim == NO_HEAD_DIM ? channels : u->head_dim;
}

/* [N] -> [N, c0]: sines and cosines of the time step. */
static qd_node_id sinusoid(qd_net *net, const unet_config *u, const char *name, qd_node_id t)
{
    return qd_graph_add(net->graph, &qd_op_timestep, name, QD_IN(t),
                        QD_ATTRS(QD_INT("dim", u->channels[0]), QD_INT("flip_sin_to_cos", u->flip_sin_to_cos),
                                 QD_FLOAT("freq_shift", u->freq_shift)));
}

static qd_node_id class_embedding(qd_net *net, const unet_config *u)
{
    const qd_shape shape = u->classes == CLASS_IDENTITY ? QD_SHAPE(-1, u->time_dim) : QD_SHAPE(-1);
    const qd_node_id labels = qd_graph_input(net->graph, "class_labels", QD_F32, &shape);
    if (u->classes == CLASS_IDENTITY)
        return labels;
    if (u->classes == CLASS_TABLE)
        return qd_net_embedding(net, "class_embedding", labels, u->class_rows, u->time_dim);
    return qd_net_time_mlp(net, "class_embedding", sinusoid(net, u, "class_proj", labels), u->channels[0], u->time_dim);
}

static void time_embedding(qd_net *net, const unet_config *u, qd_node_id timestep)
{
    const qd_node_id v = u->learned_time ? qd_net_embedding(net, "time_proj", timestep, u->time_rows, u->channels[0])
                                         : sinusoid(net, u, "time_proj", timestep);
    qd_node_id temb = qd_net_time_mlp(net, "time_embedding", v, u->channels[0], u->time_dim);
    if (u->classes != CLASS_NONE) {
        const qd_node_id c = class_embedding(net, u);
        temb = qd_graph_add(net->graph, &qd_op_add, "time_embedding.with_class", QD_IN(temb, c), QD_NO_ATTRS);
    }
    net->temb = qd_graph_add(net->graph, net->act, "time_embedding.out_act", QD_IN(temb), QD_NO_ATTRS);
    net->temb_channels = u->time_dim;
}

static qd_feature down_blocks(qd_net *net, const unet_config *u, qd_feature x, qd_feature *skips, int *n_skips)
{
    char name[QD_NN_NAME];
    for (int i = 0; i < u->levels; i++) {
        const block_kind *kind = u->down[i];
        const int64_t c = u->channels[i];
        for (int j = 0; j < u->layers; j++) {
            snprintf(name, sizeof(name), "down_blocks.%d.resnets.%d", i, j);
            x = qd_net_resnet(net, name, x, c, QD_RESAMPLE_NONE, 1.0);
            snprintf(name, sizeof(name), "down_blocks.%d.attentions.%d", i, j);
            if (kind->attention)
                x = qd_net_attention(net, name, x, head_dim(u, c), net->groups, 1.0);
            skips[(*n_skips)++] = x;
        }
        if (i == u->levels - 1)
            break;
        snprintf(name, sizeof(name), "down_blocks.%d.downsamplers.0", i);
        if (kind->resnet_resampling || (kind->attention && u->resnet_downsample))
            x = qd_net_resnet(net, name, x, c, QD_RESAMPLE_DOWN, 1.0);
        else
            x = qd_net_downsample(net, name, x, u->downsample_padding);
        skips[(*n_skips)++] = x;
    }
    return x;
}

static qd_feature mid_block(qd_net *net, const unet_config *u, qd_feature x)
{
    x = qd_net_resnet(net, "mid_block.resnets.0", x, x.channels, QD_RESAMPLE_NONE, u->mid_scale);
    if (u->mid_attention)
        x = qd_net_attention(net, "mid_block.attentions.0", x, head_dim(u, x.channels), u->attn_groups, u->mid_scale);
    return qd_net_resnet(net, "mid_block.resnets.1", x, x.channels, QD_RESAMPLE_NONE, u->mid_scale);
}

static qd_feature up_blocks(qd_net *net, const unet_config *u, qd_feature x, const qd_feature *skips, int n_skips)
{
    char name[QD_NN_NAME];
    for (int i = 0; i < u->levels; i++) {
        const block_kind *kind = u->up[i];
        const int64_t c = u->channels[u->levels - 1 - i];
        for (int j = 0; j <= u->layers; j++) {
            snprintf(name, sizeof(name), "up_blocks.%d.resnets.%d.concat", i, j);
            x = qd_net_concat(net, name, x, skips[--n_skips]);
            snprintf(name, sizeof(name), "up_blocks.%d.resnets.%d", i, j);
            x = qd_net_resnet(net, name, x, c, QD_RESAMPLE_NONE, 1.0);
            snprintf(name, sizeof(name), "up_blocks.%d.attentions.%d", i, j);
            if (kind->attention)
                x = qd_net_attention(net, name, x, head_dim(u, c), net->groups, 1.0);
        }
        if (i == u->levels - 1)
            break;
        snprintf(name, sizeof(name), "up_blocks.%d.upsamplers.0", i);
        if (kind->resnet_resampling || (kind->attention && u->resnet_upsample))
            x = qd_net_resnet(net, name, x, c, QD_RESAMPLE_UP, 1.0);
        else
            x = qd_net_upsample(net, name, x);
    }
    return x;
}

static void add_network(qd_net *net, const unet_config *u)
{
    static const int64_t around[4] = { 1, 1, 1, 1 };
    qd_feature skips[MAX_SKIPS];
    int n_skips = 0;
    qd_feature x = { .channels = u->in_channels, .height = u->height, .width = u->width };
    const qd_shape images = QD_SHAPE(-1, u->in_channels, u->height, u->width), times = QD_SHAPE(-1);
    x.id = qd_graph_input(net->graph, "sample", QD_F32, &images);
    const qd_node_id t = qd_graph_input(net->graph, "timestep", QD_F32, &times);

    time_embedding(net, u, t);
    if (u->center_input)
        x.id = qd_graph_add(net->graph, &qd_op_affine, "center_input", QD_IN(x.id),
                            QD_ATTRS(QD_FLOAT("mul", 2.0), QD_FLOAT("add", -1.0)));
    x = qd_net_conv(net, "conv_in", x, u->channels[0], 3, 1, around);
    skips[n_skips++] = x;
    x = down_blocks(net, u, x, skips, &n_skips);
    if (u->mid)
        x = mid_block(net, u, x);
    x = up_blocks(net, u, x, skips, n_skips);
    x = qd_net_group_norm(net, "conv_norm_out", x, u->groups);
    if (x.id >= 0) /* SiLU here, whatever act_fn says */
        x.id = qd_graph_add(net->graph, &qd_op_silu, "conv_act", QD_IN(x.id), QD_NO_ATTRS);
    x = qd_net_conv(net, "conv_out", x, u->out_channels, 3, 1, around);
    if (x.id >= 0)
        qd_graph_output(net->graph, "eps", x.id);
}

static qd_status unet2d_build(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                              qd_err *err)
{
    qd_graph *g = NULL;
    unet_config u;
    qd_status st = read_config(config, &u, err);
    if (st)
        return st;
    warn_unknown_keys(config, run);
    st = qd_run_check(run, err);
    if (st)
        return st;

    st = qd_graph_new(&g, err);
    if (st)
        return st;
    qd_net net = { .graph = g,
                   .weights = weights,
                   .act = u.act,
                   .groups = u.groups,
                   .eps = u.eps,
                   .scale_shift = u.scale_shift,
                   .temb = -1 };
    add_network(&net, &u);
    st = qd_graph_verify(g, err);
    if (st) {
        qd_graph_free(g);
        return st;
    }
    *out = g;
    return QD_OK;
}

const qd_network_kind qd_kind_unet2d = {
    .name = "UNet2DModel",
    .summary = "Diffusion U-Net with residual blocks, group norm and self-attention (DDPM, unconditional LDM).",
    .role = QD_ROLE_DENOISER,
    .build = unet2d_build,
};
