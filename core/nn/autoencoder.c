/* autoencoder.c - encoder and decoder of latent diffusion's first stages (diffusion_models.md 5). */
#include "nn/autoencoder_int.h"

#include <math.h>
#include <stdio.h>

#include "graph/op.h"

static const qd_block_kind block_kinds[] = {
    { .name = "DownEncoderBlock2D" },
    { .name = "AttnDownEncoderBlock2D", .attend = QD_ATTEND_SPATIAL },
    { .name = "UpDecoderBlock2D", .up = true },
    { .name = "AttnUpDecoderBlock2D", .up = true, .attend = QD_ATTEND_SPATIAL },
    { .name = NULL },
};

qd_status qd_autoencoder_read(const qd_config *c, qd_autoencoder *a, qd_err *err)
{
    qd_levels l = {
        .n = 1, .down_names = { "DownEncoderBlock2D" }, .up_names = { "UpDecoderBlock2D" }, .channels = { 64 }
    };
    a->in_channels = a->out_channels = 3;
    a->layers = 1;
    a->groups = 32;
    a->act = &qd_op_silu;
    a->mid_attention = true;
    qd_status st = qd_keys_levels(c, block_kinds, &l, err);
    if (!st)
        st = qd_keys_size(c, l.n, 32, &a->height, &a->width, err);
    if (!st)
        st = qd_config_int(c, "in_channels", 1, QD_NN_MAX_CHANNELS, &a->in_channels, err);
    if (!st)
        st = qd_config_int(c, "out_channels", 1, QD_NN_MAX_CHANNELS, &a->out_channels, err);
    if (!st)
        st = qd_config_int(c, "latent_channels", 1, QD_NN_MAX_CHANNELS, &a->latent_channels, err);
    if (!st)
        st = qd_config_int(c, "layers_per_block", 1, QD_NN_MAX_LAYERS, &a->layers, err);
    if (!st)
        st = qd_config_int(c, "norm_num_groups", 1, QD_NN_MAX_CHANNELS, &a->groups, err);
    if (!st)
        st = qd_keys_act(c, "act_fn", &a->act, err);
    if (!st)
        st = qd_config_bool(c, "mid_block_add_attention", &a->mid_attention, err);
    if (!st)
        st = qd_config_number(c, "scaling_factor", &a->scaling, err);
    if (st)
        return st;
    if (!(a->scaling > 1e-6 && a->scaling < 1e6))
        return qd_fail(err, QD_E_INVALID, "config key 'scaling_factor' is %g; it must be above 1e-6 and below 1e6",
                       a->scaling);
    a->levels = l.n;
    for (int k = 0; k < l.n; k++) {
        a->channels[k] = l.channels[k];
        a->down_attention[k] = l.down[k]->attend != QD_ATTEND_NONE;
        a->up_attention[k] = l.up[k]->attend != QD_ATTEND_NONE;
    }
    return qd_keys_check_groups(a->groups, a->channels, a->levels, err);
}

qd_status qd_autoencoder_build(const qd_autoencoder *a, void (*add)(qd_net *net, const void *ctx), const void *ctx,
                               qd_weight_source *weights, const qd_run *run, qd_graph **out, qd_err *err)
{
    qd_graph *g = NULL;
    qd_ddpm_names names;
    qd_status st = qd_run_check(run, err);
    if (!st)
        st = qd_graph_new(&g, err);
    if (st)
        return st;
    qd_net net = { .graph = g, .weights = weights, .act = a->act, .groups = a->groups, .eps = 1e-6, .temb = -1 };
    qd_ddpm_names_use(&names, weights, "encoder.mid.block_1.norm1.weight", a->levels);
    add(&net, ctx);
    qd_ddpm_names_done(&names, weights);
    st = qd_graph_verify(g, err);
    if (st) {
        qd_graph_free(g);
        return st;
    }
    *out = g;
    return QD_OK;
}

qd_feature qd_autoencoder_conv1(qd_net *net, const char *name, qd_feature x, int64_t out)
{
    return qd_net_conv(net, name, x, out, 1, 1, (const int64_t[]){ 0, 0, 0, 0 });
}

qd_node_id qd_autoencoder_affine(qd_net *net, const char *name, qd_node_id x, double mul, double add)
{
    return x < 0 ? -1
                 : qd_graph_add(net->graph, &qd_op_affine, name, QD_IN(x),
                                QD_ATTRS(QD_FLOAT("mul", mul), QD_FLOAT("add", add)));
}

static qd_feature conv3(qd_net *net, const char *name, qd_feature x, int64_t out)
{
    return qd_net_conv(net, name, x, out, 3, 1, (const int64_t[]){ 1, 1, 1, 1 });
}

/* "<side>.<what>_blocks.<level>.<part>.<k>" */
static const char *part_name(char buf[QD_NN_NAME], const char *side, int level, const char *part, int64_t k)
{
    snprintf(buf, QD_NN_NAME, "%s_blocks.%d.%s.%lld", side, level, part, (long long)k);
    return buf;
}

static qd_feature layers(qd_net *net, const char *side, int level, qd_feature x, int64_t channels, int64_t n,
                         bool attention)
{
    char name[QD_NN_NAME];
    for (int64_t j = 0; j < n; j++) {
        x = qd_net_resnet(net, part_name(name, side, level, "resnets", j), x, channels, QD_RESAMPLE_NONE, 1.0);
        if (attention) /* one head as wide as the layer */
            x = qd_net_attention(net, part_name(name, side, level, "attentions", j), x, channels, net->groups, 1.0);
    }
    return x;
}

static qd_feature middle(qd_net *net, const char *side, qd_feature x, bool attention)
{
    char name[QD_NN_NAME];
    snprintf(name, sizeof(name), "%s.mid_block.resnets.0", side);
    x = qd_net_resnet(net, name, x, x.channels, QD_RESAMPLE_NONE, 1.0);
    snprintf(name, sizeof(name), "%s.mid_block.attentions.0", side);
    if (attention)
        x = qd_net_attention(net, name, x, x.channels, net->groups, 1.0);
    snprintf(name, sizeof(name), "%s.mid_block.resnets.1", side);
    return qd_net_resnet(net, name, x, x.channels, QD_RESAMPLE_NONE, 1.0);
}

static qd_feature finish(qd_net *net, const char *side, qd_feature x, int64_t out)
{
    char name[QD_NN_NAME];
    snprintf(name, sizeof(name), "%s.conv_norm_out", side);
    x = qd_net_group_norm(net, name, x, net->groups);
    snprintf(name, sizeof(name), "%s.conv_act", side);
    if (x.id >= 0) /* SiLU here, whatever act_fn says */
        x.id = qd_graph_add(net->graph, &qd_op_silu, name, QD_IN(x.id), QD_NO_ATTRS);
    snprintf(name, sizeof(name), "%s.conv_out", side);
    return conv3(net, name, x, out);
}

qd_feature qd_autoencoder_encode(qd_net *net, const qd_autoencoder *a, int64_t out)
{
    char name[QD_NN_NAME];
    const qd_shape images = QD_SHAPE(-1, a->in_channels, a->height, a->width);
    qd_feature x = { .channels = a->in_channels, .height = a->height, .width = a->width };
    x.id = qd_graph_input(net->graph, "sample", QD_F32, &images);
    x = conv3(net, "encoder.conv_in", x, a->channels[0]);
    for (int i = 0; i < a->levels; i++) {
        x = layers(net, "encoder.down", i, x, a->channels[i], a->layers, a->down_attention[i]);
        if (i < a->levels - 1)
            x = qd_net_downsample(net, part_name(name, "encoder.down", i, "downsamplers", 0), x, 0);
    }
    x = middle(net, "encoder", x, a->mid_attention);
    return finish(net, "encoder", x, out);
}

qd_feature qd_autoencoder_latent(qd_net *net, const qd_autoencoder *a, int64_t channels, double shift)
{
    qd_feature x = { .channels = channels,
                     .height = a->height >> (a->levels - 1),
                     .width = a->width >> (a->levels - 1) };
    const qd_shape latents = QD_SHAPE(-1, channels, x.height, x.width);
    x.id = qd_graph_input(net->graph, "latent", QD_F32, &latents);
    if (a->scaling != 1.0 || shift != 0.0)
        x.id = qd_autoencoder_affine(net, "latent.unscaled", x.id, 1.0 / a->scaling, shift);
    return x;
}

void qd_autoencoder_decode(qd_net *net, const qd_autoencoder *a, qd_feature x)
{
    char name[QD_NN_NAME];
    const int last = a->levels - 1;
    x = conv3(net, "decoder.conv_in", x, a->channels[last]);
    x = middle(net, "decoder", x, a->mid_attention);
    for (int i = 0; i < a->levels; i++) {
        x = layers(net, "decoder.up", i, x, a->channels[last - i], a->layers + 1, a->up_attention[i]);
        if (i < last)
            x = qd_net_upsample(net, part_name(name, "decoder.up", i, "upsamplers", 0), x);
    }
    x = finish(net, "decoder", x, a->out_channels);
    if (x.id >= 0)
        qd_graph_output(net->graph, "image", x.id);
}
