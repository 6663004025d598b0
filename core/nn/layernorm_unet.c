/* layernorm_unet.c - a denoiser of plain convolution blocks under LayerNorm over [C, H, W], as published with niuwengang/mnist_ddpm.
 *
 * Three levels of three blocks on the way down, three in the middle, three levels up; time goes through a table and an MLP for each level
 * and is added once. All tensors lie below "network.". The picture's side is 4 s with s odd: the middle has (s - 1) / 2. */
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "nn/nn_int.h"

#define PREFIX "network."

static const char *const known_keys[] = { "sample_size",         "channels", "in_channels", "time_dim",
                                          "num_train_timesteps", NULL };

typedef struct layer_unet {
    int64_t side, in_channels;
    int64_t channels[3];
    int64_t time_rows, time_dim;
} layer_unet;

static bool layer_fits(const qd_weight_source *s)
{
    return qd_net_shape_of(s, PREFIX "time_embed.weight").rank == 2 &&
           qd_net_shape_of(s, PREFIX "b1.0.ln.weight").rank == 3 &&
           qd_net_shape_of(s, PREFIX "b1.0.conv1.weight").rank == 4 &&
           qd_net_shape_of(s, PREFIX "b2.0.conv1.weight").rank == 4 &&
           qd_net_shape_of(s, PREFIX "b3.0.conv1.weight").rank == 4;
}

static qd_status read_unet(const qd_config *c, const qd_weight_source *s, layer_unet *u, qd_err *err)
{
    int n = 3;
    *u = (layer_unet){ .side = 28, .in_channels = 1, .channels = { 10, 20, 40 }, .time_rows = 1000, .time_dim = 100 };
    if (qd_weight_source_is_file(s)) {
        if (!layer_fits(s))
            return qd_fail(err, QD_E_FORMAT,
                           "the file has no LayerNormUNet: its time table or first blocks are missing");
        const qd_shape table = qd_net_shape_of(s, PREFIX "time_embed.weight"),
                       first = qd_net_shape_of(s, PREFIX "b1.0.ln.weight");
        u->time_rows = table.dim[0];
        u->time_dim = table.dim[1];
        u->in_channels = first.dim[0];
        u->side = first.dim[1];
        for (int k = 0; k < 3; k++)
            u->channels[k] = qd_net_shape_of(s, PREFIX "b%d.0.conv1.weight", k + 1).dim[0];
    } else {
        qd_status st = qd_config_int(c, "sample_size", 1, QD_NN_MAX_SIDE, &u->side, err);
        if (!st)
            st = qd_config_int(c, "in_channels", 1, QD_NN_MAX_CHANNELS, &u->in_channels, err);
        if (!st)
            st = qd_config_ints(c, "channels", 2, QD_NN_MAX_CHANNELS, u->channels, 3, &n, err);
        if (!st)
            st = qd_config_int(c, "num_train_timesteps", 1, 1000000, &u->time_rows, err);
        if (!st)
            st = qd_config_int(c, "time_dim", 1, QD_NN_MAX_CHANNELS, &u->time_dim, err);
        if (!st && n != 3)
            st = qd_fail(err, QD_E_INVALID, "config key 'channels' has %d entries, must have 3", n);
        if (st)
            return st;
    }
    if (u->side < 12 || u->side > QD_NN_MAX_SIDE || u->side % 4 || u->side / 4 % 2 == 0)
        return qd_fail(err, QD_E_INVALID, "a LayerNormUNet of side %lld; it must be 4 times an odd number, 12..%d",
                       (long long)u->side, QD_NN_MAX_SIDE);
    for (int k = 0; k < 3; k++)
        if (u->channels[k] < 2 || u->channels[k] % 2 || u->channels[k] > QD_NN_MAX_CHANNELS)
            return qd_fail(err, QD_E_INVALID, "level %d of a LayerNormUNet has %lld channels; they must be even, 2..%d",
                           k, (long long)u->channels[k], QD_NN_MAX_CHANNELS);
    return QD_OK;
}

/* --- building --- */

static qd_feature silu(qd_net *net, const char *prefix, const char *suffix, qd_feature x)
{
    char name[QD_NN_NAME + 8];
    if (x.id < 0)
        return x;
    snprintf(name, sizeof(name), "%s%s", prefix, suffix);
    x.id = qd_graph_add(net->graph, &qd_op_silu, name, QD_IN(x.id), QD_NO_ATTRS);
    return x;
}

static qd_feature conv(qd_net *net, const char *name, qd_feature x, int64_t out, int64_t kernel, int64_t stride,
                       int64_t pad)
{
    return qd_net_conv(net, name, x, out, kernel, stride, (const int64_t[]){ pad, pad, pad, pad });
}

static qd_feature conv_transposed(qd_net *net, const char *name, qd_feature x, int64_t kernel, int64_t stride,
                                  int64_t pad)
{
    const int64_t strides[2] = { stride, stride }, pads[4] = { pad, pad, pad, pad };
    if (x.id < 0)
        return x;
    const int64_t fan_in = x.channels * kernel * kernel;
    const qd_node_id w = qd_net_constant(net, name, NULL, ".weight", QD_SHAPE(x.channels, x.channels, kernel, kernel),
                                         QD_INIT_UNIFORM, fan_in);
    const qd_node_id b =
        w < 0 ? -1 : qd_net_constant(net, name, NULL, ".bias", QD_SHAPE(x.channels), QD_INIT_UNIFORM, fan_in);
    x.id = b < 0 ? -1
                 : qd_graph_add(net->graph, &qd_op_conv_transpose2d, name, QD_IN(x.id, w, b),
                                QD_ATTRS(qd_attr_ints("stride", 2, strides), qd_attr_ints("pads", 4, pads)));
    x.height = (x.height - 1) * stride + kernel - 2 * pad;
    x.width = (x.width - 1) * stride + kernel - 2 * pad;
    return x;
}

static qd_feature norm(qd_net *net, const char *name, qd_feature x)
{
    const qd_shape shape = QD_SHAPE(x.channels, x.height, x.width);
    if (x.id < 0)
        return x;
    const qd_node_id w = qd_net_constant(net, name, NULL, ".weight", shape, QD_INIT_ONE, 1);
    const qd_node_id b = w < 0 ? -1 : qd_net_constant(net, name, NULL, ".bias", shape, QD_INIT_ZERO, 1);
    x.id = b < 0 ? -1
                 : qd_graph_add(net->graph, &qd_op_layer_norm, name, QD_IN(x.id, w, b),
                                QD_ATTRS(QD_INT("axes", 3), QD_FLOAT("eps", 1e-5)));
    return x;
}

/* Norm, two convolutions; the very last block goes without its norm, whose weights are in the file all the same. */
static qd_feature block(qd_net *net, const char *stage, int k, qd_feature x, int64_t out, bool normed)
{
    char name[QD_NN_NAME];
    snprintf(name, sizeof(name), "%s.%d.ln", stage, k);
    if (normed) {
        x = norm(net, name, x);
    } else {
        char unused[QD_NN_NAME + 8];
        snprintf(unused, sizeof(unused), "%s.weight", name);
        qd_weight_source_drop(net->weights, unused);
        snprintf(unused, sizeof(unused), "%s.bias", name);
        qd_weight_source_drop(net->weights, unused);
    }
    snprintf(name, sizeof(name), "%s.%d.conv1", stage, k);
    x = silu(net, name, ".act", conv(net, name, x, out, 3, 1, 1));
    snprintf(name, sizeof(name), "%s.%d.conv2", stage, k);
    return silu(net, name, ".act", conv(net, name, x, out, 3, 1, 1));
}

/* The level's share of the time, added; then its three blocks. */
static qd_feature stage(qd_net *net, const layer_unet *u, const char *name, const char *time, qd_feature x,
                        const int64_t channels[3], bool last)
{
    char n1[QD_NN_NAME], n2[QD_NN_NAME];
    if (x.id < 0)
        return x;
    snprintf(n1, sizeof(n1), "%s.0", time);
    qd_node_id t = qd_net_linear(net, n1, NULL, net->temb, u->time_dim, x.channels);
    if (t >= 0) {
        snprintf(n1, sizeof(n1), "%s.1", time);
        t = qd_graph_add(net->graph, &qd_op_silu, n1, QD_IN(t), QD_NO_ATTRS);
        snprintf(n1, sizeof(n1), "%s.2", time);
        t = qd_net_linear(net, n1, NULL, t, x.channels, x.channels);
    }
    if (t < 0)
        return (qd_feature){ .id = -1 };
    snprintf(n1, sizeof(n1), "%s.image", time);
    snprintf(n2, sizeof(n2), "%s.timed", name);
    t = qd_graph_add(net->graph, &qd_op_reshape, n1, QD_IN(t),
                     QD_ATTRS(qd_attr_ints("shape", 4, (const int64_t[]){ 0, x.channels, 1, 1 })));
    x.id = qd_graph_add(net->graph, &qd_op_add, n2, QD_IN(x.id, t), QD_NO_ATTRS);
    for (int k = 0; k < 3; k++)
        x = block(net, name, k, x, channels[k], !last || k < 2);
    return x;
}

static void add_nodes(qd_net *net, const layer_unet *u)
{
    const int64_t a = u->channels[0], b = u->channels[1], c = u->channels[2];
    const qd_shape picture = QD_SHAPE(-1, u->in_channels, u->side, u->side), one = QD_SHAPE(-1);
    qd_feature x = { .channels = u->in_channels, .height = u->side, .width = u->side };
    x.id = qd_graph_input(net->graph, "sample", QD_F32, &picture);
    net->temb = qd_net_embedding(net, PREFIX "time_embed", qd_graph_input(net->graph, "timestep", QD_F32, &one),
                                 u->time_rows, u->time_dim);
    if (net->temb < 0)
        return;
    const qd_feature d1 = stage(net, u, PREFIX "b1", PREFIX "te1", x, (const int64_t[]){ a, a, a }, false);
    x = conv(net, PREFIX "down1", d1, a, 4, 2, 1);
    const qd_feature d2 = stage(net, u, PREFIX "b2", PREFIX "te2", x, (const int64_t[]){ b, b, b }, false);
    x = conv(net, PREFIX "down2", d2, b, 4, 2, 1);
    const qd_feature d3 = stage(net, u, PREFIX "b3", PREFIX "te3", x, (const int64_t[]){ c, c, c }, false);
    x = silu(net, PREFIX "down3", ".1", conv(net, PREFIX "down3.0", d3, c, 2, 1, 0));
    x = conv(net, PREFIX "down3.2", x, c, 4, 2, 1);
    x = stage(net, u, PREFIX "b_mid", PREFIX "te_mid", x, (const int64_t[]){ b, b, c }, false);
    x = silu(net, PREFIX "up1", ".1", conv_transposed(net, PREFIX "up1.0", x, 4, 2, 1));
    x = conv_transposed(net, PREFIX "up1.2", x, 2, 1, 0);
    x = qd_net_concat(net, PREFIX "cat3", d3, x);
    x = stage(net, u, PREFIX "b4", PREFIX "te4", x, (const int64_t[]){ c, b, b }, false);
    x = qd_net_concat(net, PREFIX "cat2", d2, conv_transposed(net, PREFIX "up2", x, 4, 2, 1));
    x = stage(net, u, PREFIX "b5", PREFIX "te5", x, (const int64_t[]){ b, a, a }, false);
    x = qd_net_concat(net, PREFIX "cat1", d1, conv_transposed(net, PREFIX "up3", x, 4, 2, 1));
    x = stage(net, u, PREFIX "b_out", PREFIX "te_out", x, (const int64_t[]){ a, a, a }, true);
    qd_graph_output(net->graph, "eps", conv(net, PREFIX "conv_out", x, u->in_channels, 3, 1, 1).id);
}

static qd_status layer_build(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                             qd_err *err)
{
    layer_unet u;
    qd_graph *g = NULL;
    qd_status st = read_unet(config, weights, &u, err);
    if (!st)
        st = qd_run_check(run, err);
    if (st)
        return st;
    qd_keys_warn(config, "LayerNormUNet", known_keys, run);
    st = qd_graph_new(&g, err);
    if (st)
        return st;
    qd_net net = { .graph = g, .weights = weights, .act = &qd_op_silu, .temb = -1 };
    add_nodes(&net, &u);
    st = qd_graph_verify(g, err);
    if (st)
        qd_graph_free(g);
    else
        *out = g;
    return st;
}

const qd_network_kind qd_kind_layernorm_unet = {
    .name = "LayerNormUNet",
    .summary = "Small denoiser of plain convolutions under LayerNorm over [C, H, W], time added once for each level.",
    .role = QD_ROLE_DENOISER,
    .fits = layer_fits,
    .build = layer_build,
};
