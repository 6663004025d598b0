/* unet.c - the skeleton all denoising U-Nets share: embeddings, the way down, the middle, the way up (diffusion_models.md 3, 4).
 *
 * Readers of configs fill a qd_unet; this file turns it into nodes under diffusers' names. */
#include <stdio.h>

#include "graph/op.h"
#include "nn/nn_int.h"

#define MAX_SKIPS (1 + QD_NN_MAX_LEVELS * (QD_NN_MAX_LAYERS + 1))

qd_status qd_unet_read(const qd_config *c, qd_unet *u, qd_err *err)
{
    static const char *const shifts[] = { "default", "scale_shift", NULL };
    int shift = 0;
    qd_status st = qd_config_int(c, "in_channels", 1, QD_NN_MAX_CHANNELS, &u->in_channels, err);
    if (!st)
        st = qd_config_int(c, "out_channels", 1, QD_NN_MAX_CHANNELS, &u->out_channels, err);
    if (!st)
        st = qd_config_bool(c, "center_input_sample", &u->center_input, err);
    if (!st)
        st = qd_keys_size(c, u->levels, 0, &u->height, &u->width, err);
    if (!st)
        st = qd_config_number(c, "freq_shift", &u->freq_shift, err);
    if (!st)
        st = qd_config_bool(c, "flip_sin_to_cos", &u->flip_sin_to_cos, err);
    u->time_dim = 4 * u->down[0].channels;
    if (!st)
        st = qd_config_int(c, "time_embedding_dim", 1, 4 * QD_NN_MAX_CHANNELS, &u->time_dim, err);
    if (!st)
        st = qd_keys_act(c, "act_fn", &u->act, err);
    if (!st)
        st = qd_keys_choice(c, "resnet_time_scale_shift", shifts, &shift, err);
    if (!st)
        st = qd_config_int(c, "norm_num_groups", 1, QD_NN_MAX_CHANNELS, &u->groups, err);
    if (!st)
        st = qd_config_number(c, "norm_eps", &u->eps, err);
    if (!st)
        st = qd_config_number(c, "mid_block_scale_factor", &u->mid_scale, err);
    if (!st)
        st = qd_config_int(c, "downsample_padding", 0, 1, &u->downsample_padding, err);
    if (st)
        return st;
    u->scale_shift = shift == 1;

    const int64_t first = u->down[0].channels;
    if (!u->learned_time && !((double)(first / 2) - u->freq_shift > 0.0))
        return qd_fail(err, QD_E_INVALID,
                       "config key 'freq_shift' is %g; with block_out_channels[0] = %lld it must be below %lld",
                       u->freq_shift, (long long)first, (long long)(first / 2));
    if (!(u->eps > 0.0 && u->eps < 1.0))
        return qd_fail(err, QD_E_INVALID, "config key 'norm_eps' is %g; it must be above 0 and below 1", u->eps);
    if (!(u->mid_scale > 0.0 && u->mid_scale < 1e6))
        return qd_fail(err, QD_E_INVALID, "config key 'mid_block_scale_factor' is %g; it must be above 0 and below 1e6",
                       u->mid_scale);
    int64_t channels[QD_NN_MAX_LEVELS];
    for (int k = 0; k < u->levels; k++)
        channels[k] = u->down[k].channels;
    return qd_keys_check_groups(u->groups, channels, u->levels, err);
}

/* [N] -> [N, c0]: sines and cosines of the time step. */
static qd_node_id sinusoid(qd_net *net, const qd_unet *u, const char *name, qd_node_id t)
{
    return qd_graph_add(net->graph, &qd_op_timestep, name, QD_IN(t),
                        QD_ATTRS(QD_INT("dim", u->down[0].channels), QD_INT("flip_sin_to_cos", u->flip_sin_to_cos),
                                 QD_FLOAT("freq_shift", u->freq_shift)));
}

/* [N, time_dim] of the input class_labels. */
static qd_node_id class_embedding(qd_net *net, const qd_unet *u)
{
    static const char name[] = "class_embedding";
    const int64_t per_sample = u->classes == QD_CLASS_IDENTITY ? u->time_dim : u->class_width;
    const bool numbers = u->classes == QD_CLASS_TABLE || u->classes == QD_CLASS_TIMESTEP;
    const qd_shape shape = numbers ? QD_SHAPE(-1) : QD_SHAPE(-1, per_sample);
    const qd_node_id labels = qd_graph_input(net->graph, "class_labels", QD_F32, &shape);
    switch (u->classes) {
    case QD_CLASS_TABLE:
        return qd_net_embedding(net, name, labels, u->class_rows, u->time_dim);
    case QD_CLASS_TIMESTEP:
        return qd_net_time_mlp(net, name, u->time_act, sinusoid(net, u, "class_proj", labels), u->down[0].channels,
                               u->time_dim);
    case QD_CLASS_PROJECTION:
        return qd_net_time_mlp(net, name, &qd_op_silu, labels, u->class_width, u->time_dim);
    case QD_CLASS_LINEAR:
        return qd_net_linear(net, name, NULL, labels, u->class_width, u->time_dim);
    case QD_CLASS_NONE:
    case QD_CLASS_IDENTITY:
        break;
    }
    return labels;
}

static void time_embedding(qd_net *net, const qd_unet *u, qd_node_id timestep)
{
    const int64_t width = u->down[0].channels;
    const qd_node_id v = u->learned_time ? qd_net_embedding(net, "time_proj", timestep, u->time_rows, width)
                                         : sinusoid(net, u, "time_proj", timestep);
    qd_node_id temb = qd_net_time_mlp(net, "time_embedding", u->time_act, v, width, u->time_dim);
    net->temb_channels = u->time_dim;
    if (u->classes != QD_CLASS_NONE) {
        const qd_node_id c = class_embedding(net, u);
        if (u->class_concat) {
            temb = qd_graph_add(net->graph, &qd_op_concat, "time_embedding.with_class", QD_IN(temb, c),
                                QD_ATTRS(QD_INT("axis", 1)));
            net->temb_channels = 2 * u->time_dim;
        } else {
            temb = qd_graph_add(net->graph, &qd_op_add, "time_embedding.with_class", QD_IN(temb, c), QD_NO_ATTRS);
        }
    }
    net->temb = qd_graph_add(net->graph, net->act, "time_embedding.out_act", QD_IN(temb), QD_NO_ATTRS);
}

static qd_feature attend(qd_net *net, const qd_unet *u, const qd_unet_block *b, qd_node_id context, const char *name,
                         qd_feature x, int64_t groups, double scale)
{
    if (b->attend == QD_ATTEND_SPATIAL)
        return qd_net_attention(net, name, x, b->head_dim, groups, scale);
    if (b->attend == QD_ATTEND_NONE)
        return x;
    const qd_transformer t = { .heads = b->heads,
                               .depth = b->depth,
                               .linear = u->linear_projection,
                               .only_cross = b->only_cross,
                               .context = context,
                               .context_dim = u->context_dim };
    return qd_net_transformer(net, name, x, &t);
}

static qd_feature down_blocks(qd_net *net, const qd_unet *u, qd_node_id context, qd_feature x, qd_feature *skips,
                              int *n_skips)
{
    char name[QD_NN_NAME];
    for (int i = 0; i < u->levels; i++) {
        const qd_unet_block *b = &u->down[i];
        for (int j = 0; j < b->layers; j++) {
            snprintf(name, sizeof(name), "down_blocks.%d.resnets.%d", i, j);
            x = qd_net_resnet(net, name, x, b->channels, QD_RESAMPLE_NONE, 1.0);
            snprintf(name, sizeof(name), "down_blocks.%d.attentions.%d", i, j);
            x = attend(net, u, b, context, name, x, net->groups, 1.0);
            skips[(*n_skips)++] = x;
        }
        if (i == u->levels - 1)
            break;
        snprintf(name, sizeof(name), "down_blocks.%d.downsamplers.0", i);
        if (b->resnet_resampling)
            x = qd_net_resnet(net, name, x, b->channels, QD_RESAMPLE_DOWN, 1.0);
        else
            x = qd_net_downsample(net, name, x, u->downsample_padding);
        skips[(*n_skips)++] = x;
    }
    return x;
}

/* A resnet, then attention and another resnet for each further layer. */
static qd_feature mid_block(qd_net *net, const qd_unet *u, qd_node_id context, qd_feature x)
{
    char name[QD_NN_NAME];
    for (int j = 0; j < u->mid.layers; j++) {
        snprintf(name, sizeof(name), "mid_block.attentions.%d", j - 1);
        if (j > 0)
            x = attend(net, u, &u->mid, context, name, x, u->mid_groups, u->mid_scale);
        snprintf(name, sizeof(name), "mid_block.resnets.%d", j);
        x = qd_net_resnet(net, name, x, x.channels, QD_RESAMPLE_NONE, u->mid_scale);
    }
    return x;
}

static qd_feature up_blocks(qd_net *net, const qd_unet *u, qd_node_id context, qd_feature x, const qd_feature *skips,
                            int n_skips)
{
    char name[QD_NN_NAME];
    for (int i = 0; i < u->levels; i++) {
        const qd_unet_block *b = &u->up[i];
        for (int j = 0; j < b->layers; j++) {
            snprintf(name, sizeof(name), "up_blocks.%d.resnets.%d.concat", i, j);
            x = qd_net_concat(net, name, x, skips[--n_skips]);
            snprintf(name, sizeof(name), "up_blocks.%d.resnets.%d", i, j);
            x = qd_net_resnet(net, name, x, b->channels, QD_RESAMPLE_NONE, 1.0);
            snprintf(name, sizeof(name), "up_blocks.%d.attentions.%d", i, j);
            x = attend(net, u, b, context, name, x, net->groups, 1.0);
        }
        if (i == u->levels - 1)
            break;
        snprintf(name, sizeof(name), "up_blocks.%d.upsamplers.0", i);
        if (b->resnet_resampling)
            x = qd_net_resnet(net, name, x, b->channels, QD_RESAMPLE_UP, 1.0);
        else
            x = qd_net_upsample(net, name, x);
    }
    return x;
}

static qd_feature conv_around(qd_net *net, const char *name, qd_feature x, int64_t out, int64_t kernel)
{
    const int64_t pad = kernel / 2;
    return qd_net_conv(net, name, x, out, kernel, 1, (const int64_t[]){ pad, pad, pad, pad });
}

static void add_network(qd_net *net, const qd_unet *u)
{
    qd_feature skips[MAX_SKIPS];
    int n_skips = 0;
    qd_node_id context = -1;
    qd_feature x = { .channels = u->in_channels, .height = u->height, .width = u->width };
    const qd_shape images = QD_SHAPE(-1, u->in_channels, u->height, u->width), times = QD_SHAPE(-1);
    x.id = qd_graph_input(net->graph, "sample", QD_F32, &images);
    const qd_node_id t = qd_graph_input(net->graph, "timestep", QD_F32, &times);
    if (u->context_dim) {
        const qd_shape tokens = QD_SHAPE(-1, u->context_length, u->context_dim);
        context = qd_graph_input(net->graph, "encoder_hidden_states", QD_F32, &tokens);
    }

    time_embedding(net, u, t);
    if (u->center_input)
        x.id = qd_graph_add(net->graph, &qd_op_affine, "center_input", QD_IN(x.id),
                            QD_ATTRS(QD_FLOAT("mul", 2.0), QD_FLOAT("add", -1.0)));
    x = conv_around(net, "conv_in", x, u->down[0].channels, u->kernel_in);
    skips[n_skips++] = x;
    x = down_blocks(net, u, context, x, skips, &n_skips);
    x = mid_block(net, u, context, x);
    x = up_blocks(net, u, context, x, skips, n_skips);
    x = qd_net_group_norm(net, "conv_norm_out", x, u->groups);
    if (x.id >= 0)
        x.id = qd_graph_add(net->graph, u->out_act, "conv_act", QD_IN(x.id), QD_NO_ATTRS);
    x = conv_around(net, "conv_out", x, u->out_channels, u->kernel_out);
    if (x.id >= 0)
        qd_graph_output(net->graph, "eps", x.id);
}

qd_status qd_unet_build(const qd_unet *u, qd_weight_source *weights, const qd_run *run, qd_graph **out, qd_err *err)
{
    qd_graph *g = NULL;
    qd_status st = qd_run_check(run, err);
    if (st)
        return st;
    st = qd_graph_new(&g, err);
    if (st)
        return st;
    qd_net net = { .graph = g,
                   .weights = weights,
                   .act = u->act,
                   .groups = u->groups,
                   .eps = u->eps,
                   .scale_shift = u->scale_shift,
                   .temb = -1 };
    add_network(&net, u);
    st = qd_graph_verify(g, err);
    if (st) {
        qd_graph_free(g);
        return st;
    }
    *out = g;
    return QD_OK;
}
