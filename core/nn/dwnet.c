/* dwnet.c - a small MobileNet (Sandler et al. 2018, arXiv:1801.04381): inverted residuals with depthwise convolutions and ReLU6.
 *
 * Tensors: stem, blocks.K.{expand, dw, project} and head, each {0: convolution, 1: batch norm}, then fc. Shapes say all but the strides:
 * a config lists them, else a block halves the picture where it has more channels than the one before. */
#include <stdio.h>

#include "graph/op.h"
#include "nn/nn_int.h"

enum { MAX_BLOCKS = 64 };

static const char *const known_keys[] = { "blocks",     "strides",     "expansion",   "stem", "head",
                                          "image_size", "in_channels", "num_classes", NULL };

typedef struct dwnet {
    int64_t side, in_channels, classes, stem, head;
    int n;
    int64_t inner[MAX_BLOCKS], outer[MAX_BLOCKS], stride[MAX_BLOCKS];
} dwnet;

static bool dwnet_fits(const qd_weight_source *s)
{
    return qd_net_shape_of(s, "stem.0.weight").rank == 4 && qd_net_shape_of(s, "blocks.0.dw.0.weight").rank == 4 &&
           qd_net_shape_of(s, "head.0.weight").rank == 4 && qd_net_shape_of(s, "fc.weight").rank == 2;
}

static qd_status infer(const qd_weight_source *s, dwnet *d, qd_err *err)
{
    if (!dwnet_fits(s))
        return qd_fail(err, QD_E_FORMAT, "the file has no DWNet: stem, first block, head or fc is missing");
    const qd_shape stem = qd_net_shape_of(s, "stem.0.weight");
    d->stem = stem.dim[0];
    d->in_channels = stem.dim[1];
    d->head = qd_net_shape_of(s, "head.0.weight").dim[0];
    d->classes = qd_net_shape_of(s, "fc.weight").dim[0];
    for (d->n = 0; d->n < MAX_BLOCKS; d->n++) {
        const qd_shape dw = qd_net_shape_of(s, "blocks.%d.dw.0.weight", d->n);
        const qd_shape project = qd_net_shape_of(s, "blocks.%d.project.0.weight", d->n);
        if (dw.rank != 4 || project.rank != 4)
            break;
        d->inner[d->n] = dw.dim[0];
        d->outer[d->n] = project.dim[0];
    }
    return QD_OK;
}

static qd_status from_config(const qd_config *c, dwnet *d, qd_err *err)
{
    int64_t expansion = 3;
    *d = (dwnet){ .in_channels = 1, .classes = 10, .stem = 16, .head = 128, .n = 5, .outer = { 16, 32, 32, 64, 64 } };
    qd_status st = qd_config_int(c, "in_channels", 1, QD_NN_MAX_CHANNELS, &d->in_channels, err);
    if (!st)
        st = qd_config_int(c, "num_classes", 1, 1000000, &d->classes, err);
    if (!st)
        st = qd_config_int(c, "stem", 1, QD_NN_MAX_CHANNELS, &d->stem, err);
    if (!st)
        st = qd_config_int(c, "head", 1, QD_NN_MAX_CHANNELS, &d->head, err);
    if (!st)
        st = qd_config_int(c, "expansion", 1, 64, &expansion, err);
    if (!st)
        st = qd_config_ints(c, "blocks", 1, QD_NN_MAX_CHANNELS, d->outer, MAX_BLOCKS, &d->n, err);
    for (int k = 0; k < d->n; k++)
        d->inner[k] = expansion * (k ? d->outer[k - 1] : d->stem);
    return st;
}

static qd_status read_dwnet(const qd_config *c, const qd_weight_source *s, dwnet *d, qd_err *err)
{
    int n;
    qd_status st = qd_weight_source_is_file(s) ? infer(s, d, err) : from_config(c, d, err);
    if (st)
        return st;
    for (int k = 0; k < d->n; k++)
        d->stride[k] = d->outer[k] > (k ? d->outer[k - 1] : d->stem) ? 2 : 1;
    n = d->n;
    st = qd_config_ints(c, "strides", 1, 2, d->stride, MAX_BLOCKS, &n, err);
    if (!st && n != d->n)
        st = qd_fail(err, QD_E_INVALID, "config key 'strides' has %d entries for %d blocks", n, d->n);
    d->side = d->in_channels == 1 ? 28 : 32;
    return st ? st : qd_config_int(c, "image_size", 2, QD_NN_MAX_SIDE, &d->side, err);
}

static qd_feature part(qd_net *net, const char *name, qd_feature x, const qd_conv_bn *c)
{
    char conv[QD_NN_NAME], bn[QD_NN_NAME];
    snprintf(conv, sizeof(conv), "%s.0", name);
    snprintf(bn, sizeof(bn), "%s.1", name);
    return qd_net_conv_bn(net, conv, bn, x, c);
}

static qd_feature add_block(qd_net *net, const dwnet *d, int k, qd_feature x)
{
    char name[64];
    qd_feature h = x;
    snprintf(name, sizeof(name), "blocks.%d.expand", k);
    h = part(net, name, h, &(qd_conv_bn){ d->inner[k], 1, 1, 1, &qd_op_clip });
    snprintf(name, sizeof(name), "blocks.%d.dw", k);
    h = part(net, name, h, &(qd_conv_bn){ d->inner[k], 3, d->stride[k], d->inner[k], &qd_op_clip });
    snprintf(name, sizeof(name), "blocks.%d.project", k);
    h = part(net, name, h, &(qd_conv_bn){ d->outer[k], 1, 1, 1, NULL });
    snprintf(name, sizeof(name), "blocks.%d", k);
    if (h.id >= 0 && d->stride[k] == 1 && x.channels == h.channels)
        h.id = qd_graph_add(net->graph, &qd_op_add, name, QD_IN(h.id, x.id), QD_NO_ATTRS);
    return h;
}

static qd_status dwnet_build(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                             qd_err *err)
{
    dwnet d = { 0 };
    qd_graph *g = NULL;
    qd_status st = read_dwnet(config, weights, &d, err);
    if (st)
        return st;
    qd_keys_warn(config, "DWNet", known_keys, run);
    st = qd_graph_new(&g, err);
    if (st)
        return st;
    qd_net net = { .graph = g, .weights = weights };
    qd_feature x = qd_net_picture(&net, d.in_channels, d.side);
    x = part(&net, "stem", x, &(qd_conv_bn){ d.stem, 3, 1, 1, &qd_op_clip });
    for (int k = 0; k < d.n && !st; k++) {
        st = qd_run_check(run, err);
        x = add_block(&net, &d, k, x);
    }
    x = part(&net, "head", x, &(qd_conv_bn){ d.head, 1, 1, 1, &qd_op_clip });
    const qd_node_id features = qd_net_mean(&net, "features", x);
    qd_graph_output(g, "logits", qd_net_linear(&net, "fc", NULL, features, x.channels, d.classes));
    qd_graph_output(g, "features", features);
    if (!st)
        st = qd_graph_verify(g, err);
    if (st)
        qd_graph_free(g);
    else
        *out = g;
    return st;
}

const qd_network_kind qd_kind_dwnet = {
    .name = "DWNet",
    .summary = "Small MobileNet: inverted residuals with depthwise convolutions and ReLU6; also gives its features.",
    .role = QD_ROLE_CLASSIFIER,
    .fits = dwnet_fits,
    .build = dwnet_build,
};
