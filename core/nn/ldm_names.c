/* ldm_names.c - the names of CompVis latent diffusion (diffusion_models.md 6), read in the builder's direction, and what the
 * shapes of such a file tell about its network. */
#include "nn/ldm_int.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define EMA_PREFIX "model_ema.diffusion_model"

static const char *const prefixes[] = { "model.diffusion_model.", "diffusion_model.", "" };

bool qd_ldm_find_prefix(const qd_weight_source *s, char *prefix, size_t size)
{
    char name[QD_NN_NAME];
    for (size_t k = 0; k < sizeof(prefixes) / sizeof(prefixes[0]); k++) {
        snprintf(name, sizeof(name), "%sinput_blocks.0.0.weight", prefixes[k]);
        if (!qd_weight_source_peek(s, name))
            continue;
        snprintf(prefix, size, "%s", prefixes[k]);
        return true;
    }
    return false;
}

/* The averaged copy of `name`: the name in its own module with its dots removed. */
static void ema_name(char out[QD_NN_NAME], const char *name)
{
    size_t n = (size_t)snprintf(out, QD_NN_NAME, "%s", EMA_PREFIX);
    for (; *name && n < QD_NN_NAME - 1; name++)
        if (*name != '.')
            out[n++] = *name;
    out[n] = '\0';
}

bool qd_ldm_has_ema(const qd_weight_source *s, const qd_ldm *l)
{
    char name[QD_NN_NAME];
    ema_name(name, "input_blocks.0.0.weight");
    return strcmp(l->prefix, prefixes[0]) == 0 && qd_weight_source_peek(s, name);
}

const char *qd_ldm_scope(const qd_ldm *l)
{
    return l->ema ? EMA_PREFIX : l->prefix;
}

/* --- from diffusers names to theirs --- */

static const qd_rename_row top_rows[] = {
    { "conv_in.", "input_blocks.0.0." },
    { "time_embedding.linear_1.", "time_embed.0." },
    { "time_embedding.linear_2.", "time_embed.2." },
    { "class_embedding.", "label_emb." },
    { "conv_norm_out.", "out.0." },
    { "conv_out.", "out.2." },
    { NULL, NULL },
};

static const qd_rename_row resnet_rows[] = {
    { "norm1.", "in_layers.0." },
    { "conv1.", "in_layers.2." },
    { "norm2.", "out_layers.0." },
    { "conv2.", "out_layers.3." },
    { "conv_shortcut.", "skip_connection." },
    { "time_emb_proj.", "emb_layers.1." },
    { NULL, NULL },
};

static const qd_rename_row attention_rows[] = {
    { "group_norm.", "norm." }, { "to_q.", "qkv." },          { "to_k.", "qkv." },
    { "to_v.", "qkv." },        { "to_out.0.", "proj_out." }, { NULL, NULL },
};

/* The inside of a block: a resnet, or an attention. */
static bool place_inside(const qd_ldm *l, const char *before, bool attention, const char *rest, qd_weight_place *out)
{
    if (!attention)
        return qd_rename_by(resnet_rows, before, rest, out->name);
    if (l->transformer) /* whose names coincide */
        return snprintf(out->name, sizeof(out->name), "%s%s", before, rest) < (int)sizeof(out->name);
    if (!qd_rename_by(attention_rows, before, rest, out->name))
        return false;
    const char *part = strncmp(rest, "to_", 3) == 0 ? strchr("qkv", rest[3]) : NULL;
    if (part && rest[3]) {
        out->part = (int)(part - "qkv");
        out->heads = -1; /* as many as the layer has; the caller knows its width */
    }
    return true;
}

/* Heads of attention on `channels`. */
static int64_t heads_of(const qd_ldm *l, int64_t channels)
{
    return l->heads ? l->heads : channels / l->head_dim;
}

/* Blocks are counted through all levels; a level of input_blocks is `blocks` layers and the way down, one of output_blocks is
 * blocks + 1 layers, the last of which holds the way up too. */
static bool place_block(const qd_ldm *l, const char *name, qd_weight_place *out, int64_t *channels)
{
    char before[QD_NN_NAME];
    int i = 0, j = 0, n = 0;
    const int per_level = (int)l->blocks + 1;
    const bool up = name[0] == 'u';
    char part[16] = "";

    if (sscanf(name, "mid_block.%15[a-z].%d.%n", part, &j, &n) == 2 && n) {
        const bool attention = strcmp(part, "attentions") == 0;
        *channels = l->channels[l->levels - 1];
        snprintf(before, sizeof(before), "middle_block.%d.", attention ? 1 : 2 * j);
        return place_inside(l, before, attention, name + n, out);
    }
    if (sscanf(name, up ? "up_blocks.%d.%15[a-z].%d.%n" : "down_blocks.%d.%15[a-z].%d.%n", &i, part, &j, &n) != 3 || !n)
        return false;
    if (i < 0 || i >= l->levels)
        return false;
    const int level = up ? l->levels - 1 - i : i;
    *channels = l->channels[level];
    const bool attention = strcmp(part, "attentions") == 0;
    if (attention || strcmp(part, "resnets") == 0) {
        snprintf(before, sizeof(before), "%s_blocks.%d.%d.", up ? "output" : "input", i * per_level + j + (up ? 0 : 1),
                 attention ? 1 : 0);
        return place_inside(l, before, attention, name + n, out);
    }
    if (up)
        snprintf(before, sizeof(before), "output_blocks.%d.%d.", i * per_level + per_level - 1,
                 l->attention[level] ? 2 : 1);
    else
        snprintf(before, sizeof(before), "input_blocks.%d.0.", (i + 1) * per_level);
    if (l->resnet_resampling)
        return place_inside(l, before, false, name + n, out);
    if (strncmp(name + n, "conv.", 5) != 0)
        return false;
    return snprintf(out->name, sizeof(out->name), "%s%s%s", before, up ? "conv." : "op.", name + n + 5) <
           (int)sizeof(out->name);
}

bool qd_ldm_locate(const void *ldm, const char *name, qd_weight_place *out)
{
    const qd_ldm *l = ldm;
    int64_t channels = 0;
    char inner[QD_NN_NAME];
    if (!qd_rename_by(top_rows, "", name, out->name) && !place_block(l, name, out, &channels))
        return false;
    if (out->heads)
        out->heads = l->qkv_split_first ? 1 : heads_of(l, channels);
    memcpy(inner, out->name, sizeof(inner));
    if (l->ema)
        ema_name(out->name, inner);
    else if (snprintf(out->name, sizeof(out->name), "%s%s", l->prefix, inner) >= (int)sizeof(out->name))
        return false;
    return true;
}

/* --- what shapes say --- */

/* The shape of a tensor of the network by its own name; rank -1 for a missing one. */
static qd_shape shape_of(const qd_weight_source *s, const qd_ldm *l, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static qd_shape shape_of(const qd_weight_source *s, const qd_ldm *l, const char *fmt, ...)
{
    char inner[QD_NN_NAME], name[2 * QD_NN_NAME];
    va_list args;
    va_start(args, fmt);
    vsnprintf(inner, sizeof(inner), fmt, args);
    va_end(args);
    snprintf(name, sizeof(name), "%s%s", l->prefix, inner);
    const qd_tensor *t = qd_weight_source_peek(s, name);
    return t ? t->shape : (qd_shape){ .rank = -1 };
}

static bool has(qd_shape shape)
{
    return shape.rank > 0;
}

static qd_status odd(qd_err *err, const char *what)
{
    return qd_fail(err, QD_E_FORMAT, "the file looks like a latent diffusion U-Net, but %s", what);
}

/* The number of output blocks, and the first that leads to a larger image: it ends the first level. */
static void walk_output(const qd_weight_source *s, qd_ldm *l, int *n_output, int *first_up)
{
    *first_up = -1;
    for (*n_output = 0; *n_output <= QD_NN_MAX_LEVELS * (QD_NN_MAX_LAYERS + 1); ++*n_output) {
        if (!has(shape_of(s, l, "output_blocks.%d.0.in_layers.0.weight", *n_output)))
            break;
        for (int j = 1; j <= 2 && *first_up < 0; j++) {
            const bool conv = has(shape_of(s, l, "output_blocks.%d.%d.conv.weight", *n_output, j));
            const bool resnet = has(shape_of(s, l, "output_blocks.%d.%d.in_layers.0.weight", *n_output, j));
            if (conv || resnet) {
                *first_up = *n_output;
                l->resnet_resampling = resnet;
            }
        }
    }
}

qd_status qd_ldm_infer(const qd_weight_source *s, qd_ldm *l, qd_err *err)
{
    int n_output, first_up;
    const qd_shape in = shape_of(s, l, "input_blocks.0.0.weight"), out = shape_of(s, l, "out.2.weight");
    if (in.rank != 4 || out.rank != 4)
        return odd(err, "its first or last convolution is missing");
    l->model_channels = in.dim[0];
    l->in_channels = in.dim[1];
    l->out_channels = out.dim[0];

    walk_output(s, l, &n_output, &first_up);
    if (n_output == 0)
        return odd(err, "it has no output_blocks");
    const int per_level = first_up < 0 ? n_output : first_up + 1; /* one level has no way up */
    if (per_level < 2 || n_output % per_level || n_output / per_level > QD_NN_MAX_LEVELS ||
        per_level > QD_NN_MAX_LAYERS + 1)
        return odd(err, "its output_blocks do not divide into levels");
    l->levels = n_output / per_level;
    l->blocks = per_level - 1;
    for (int k = 0; k < l->levels; k++) {
        const int first = k * per_level + 1;
        const qd_shape conv = shape_of(s, l, "input_blocks.%d.0.out_layers.3.weight", first);
        if (conv.rank != 4)
            return odd(err, "a level of its input_blocks begins without a residual block");
        l->channels[k] = conv.dim[0];
        l->attention[k] = has(shape_of(s, l, "input_blocks.%d.1.norm.weight", first));
    }
    const qd_shape emb = shape_of(s, l, "input_blocks.1.0.emb_layers.1.weight");
    l->scale_shift = emb.rank == 2 && emb.dim[0] == 2 * l->channels[0];
    const qd_shape labels = shape_of(s, l, "label_emb.weight");
    l->classes = labels.rank == 2 ? labels.dim[0] : 0;

    const qd_shape keys = shape_of(s, l, "middle_block.1.transformer_blocks.0.attn2.to_k.weight");
    l->transformer = keys.rank == 2;
    if (l->transformer) {
        l->context_dim = keys.dim[1];
        l->linear_projection = shape_of(s, l, "middle_block.1.proj_in.weight").rank == 2;
        for (l->depth = 1; l->depth < QD_NN_MAX_LAYERS; l->depth++)
            if (!has(shape_of(s, l, "middle_block.1.transformer_blocks.%d.norm1.weight", (int)l->depth)))
                break;
    }
    return QD_OK;
}
