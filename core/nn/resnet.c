/* resnet.c - ResNet (He et al. 2015, arXiv:1512.03385): the CIFAR family (6 n + 2 layers, three levels) and the ImageNet family.
 *
 * A file says by its names and shapes how many levels and blocks there are, how wide they are, whether blocks have a bottleneck and how
 * their shortcuts change shape: by a 1x1 convolution (option B), or, where there is none, by every second pixel and zeros for the new
 * channels, half in front and half behind (option A, section 4.2). A config is needed for random weights, and for pictures of another
 * size than the stem was made for: 224 for a 7x7 stem, 32 for a 3x3 one. */
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "nn/nn_int.h"

enum { MAX_LEVELS = 4, MAX_BLOCKS = 200 };

static const char *const known_keys[] = { "depth", "image_size", "in_channels", "num_classes", NULL };

/* How writers name the same tensors. Blocks are "<level>1<unit>0". */
typedef struct dialect {
    const char *stem_conv, *stem_bn, *level, *unit;
    int first_unit;
    const char *body, *conv_end, *bn, *bn_end; /* "<block><body>1<conv_end>", "<block><bn>1<bn_end>" */
    const char *short_conv, *short_bn, *fc;
} dialect;

static const dialect dialects[] = {
    /* torchvision */
    { "conv1", "bn1", "layer", ".", 0, ".conv", "", ".bn", "", ".downsample.0", ".downsample.1", "fc" },
    /* CIFAR-10 as most trained it: akamaster/pytorch_resnet_cifar10 (option A), kuangliu/pytorch-cifar */
    { "conv1", "bn1", "layer", ".", 0, ".conv", "", ".bn", "", ".shortcut.0", ".shortcut.1", "linear" },
    /* pytorchcv */
    { "features.init_block.conv", "features.init_block.bn", "features.stage", ".unit", 1, ".body.conv", ".conv",
      ".body.conv", ".bn", ".identity_conv.conv", ".identity_conv.bn", "output" },
};
enum { TORCHVISION, CIFAR, PYTORCHCV, N_DIALECTS };

typedef struct resnet {
    const dialect *names;
    int64_t side, in_channels, classes;
    int64_t stem, stem_kernel; // channels and side of the first convolution; 7 = with stride 2 and a pool
    int levels, blocks[MAX_LEVELS];
    bool bottleneck, option_a;
    int64_t inner[MAX_LEVELS], outer[MAX_LEVELS]; // channels of 3x3 convolutions and of blocks
    int64_t groups;
} resnet;

static void block_name(char out[QD_NN_NAME], const dialect *d, int level, int block)
{
    snprintf(out, QD_NN_NAME, "%s%d%s%d", d->level, level + 1, d->unit, block + d->first_unit);
}

static qd_shape conv_shape(const qd_weight_source *s, const dialect *d, int level, int block, int conv)
{
    char name[QD_NN_NAME];
    block_name(name, d, level, block);
    return qd_net_shape_of(s, "%.100s%s%d%s.weight", name, d->body, conv, d->conv_end);
}

static const dialect *find_dialect(const qd_weight_source *s)
{
    for (int k = 0; k < N_DIALECTS; k++)
        if (qd_net_shape_of(s, "%s.weight", dialects[k].stem_conv).rank == 4 &&
            qd_net_shape_of(s, "%s.weight", dialects[k].fc).rank == 2 && conv_shape(s, &dialects[k], 0, 0, 1).rank == 4)
            return &dialects[k];
    return NULL;
}

static bool resnet_fits(const qd_weight_source *s)
{
    return find_dialect(s) != NULL;
}

/* --- what the shapes of a file say --- */

static qd_status infer(const qd_weight_source *s, resnet *r, qd_err *err)
{
    r->names = find_dialect(s);
    if (!r->names)
        return qd_fail(err, QD_E_FORMAT,
                       "the file has no ResNet: its first convolution, first block or last layer is missing");
    const qd_shape stem = qd_net_shape_of(s, "%s.weight", r->names->stem_conv);
    const qd_shape last = qd_net_shape_of(s, "%s.weight", r->names->fc);
    r->stem = stem.dim[0];
    r->in_channels = stem.dim[1];
    r->stem_kernel = stem.dim[2];
    r->classes = last.dim[0];
    if (r->stem_kernel != 3 && r->stem_kernel != 7)
        return qd_fail(err, QD_E_UNSUPPORTED, "the ResNet begins with a convolution of side %lld; 3 and 7 are known",
                       (long long)r->stem_kernel);
    r->bottleneck = conv_shape(s, r->names, 0, 0, 3).rank == 4;
    if (r->bottleneck && r->names == &dialects[PYTORCHCV])
        return qd_fail(err, QD_E_UNSUPPORTED, "pytorchcv's bottleneck blocks are not known");
    r->option_a = true;
    for (r->levels = 0; r->levels < MAX_LEVELS; r->levels++) {
        const int l = r->levels, widest = r->bottleneck ? 3 : 2;
        const qd_shape conv2 = conv_shape(s, r->names, l, 0, 2), end = conv_shape(s, r->names, l, 0, widest);
        char name[QD_NN_NAME];
        if (conv2.rank != 4 || end.rank != 4)
            break;
        r->inner[l] = conv2.dim[0];
        r->outer[l] = end.dim[0];
        if (l == 0 && conv2.dim[1] > 0)
            r->groups = r->inner[0] / conv2.dim[1];
        block_name(name, r->names, l, 0);
        if (qd_net_shape_of(s, "%.100s%s.weight", name, r->names->short_conv).rank == 4)
            r->option_a = false;
        for (r->blocks[l] = 1; r->blocks[l] <= MAX_BLOCKS; r->blocks[l]++)
            if (conv_shape(s, r->names, l, r->blocks[l], 1).rank != 4)
                break;
    }
    if (!r->levels || r->groups < 1)
        return qd_fail(err, QD_E_FORMAT, "the ResNet of the file has no second convolution in its first block");
    return QD_OK;
}

/* --- what the depth says --- */

static qd_status from_depth(int64_t depth, resnet *r, qd_err *err)
{
    static const struct {
        int depth, blocks[MAX_LEVELS];
        bool bottleneck;
    } table[] = { { 18, { 2, 2, 2, 2 }, false },
                  { 34, { 3, 4, 6, 3 }, false },
                  { 50, { 3, 4, 6, 3 }, true },
                  { 101, { 3, 4, 23, 3 }, true },
                  { 152, { 3, 8, 36, 3 }, true } };
    *r = (resnet){
        .names = &dialects[TORCHVISION], .in_channels = 3, .classes = 1000, .stem = 64, .stem_kernel = 7, .groups = 1
    };
    for (size_t k = 0; k < sizeof(table) / sizeof(table[0]); k++) {
        if (table[k].depth != depth)
            continue;
        r->levels = 4;
        r->bottleneck = table[k].bottleneck;
        for (int l = 0; l < 4; l++) {
            r->blocks[l] = table[k].blocks[l];
            r->inner[l] = 64ll << l;
            r->outer[l] = r->inner[l] * (r->bottleneck ? 4 : 1);
        }
        return QD_OK;
    }
    if (depth < 8 || depth > 1202 || (depth - 2) % 6)
        return qd_fail(
            err, QD_E_INVALID,
            "config key 'depth' is %lld; it must be 18, 34, 50, 101, 152, or 6 n + 2 for CIFAR (20, 32, 44, 56, 110, ..)",
            (long long)depth);
    *r = (resnet){
        .names = &dialects[CIFAR], .in_channels = 3, .classes = 10, .stem = 16, .stem_kernel = 3, .groups = 1
    };
    r->levels = 3;
    r->option_a = true;
    for (int l = 0; l < 3; l++) {
        r->blocks[l] = (int)(depth - 2) / 6;
        r->inner[l] = r->outer[l] = 16ll << l;
    }
    return QD_OK;
}

static int64_t depth_of(const resnet *r)
{
    int64_t n = 2;
    for (int l = 0; l < r->levels; l++)
        n += r->blocks[l] * (r->bottleneck ? 3 : 2);
    return n;
}

/* Config and file may both speak; where both do, they must agree. */
static qd_status agree(const qd_config *c, const char *key, int64_t max, bool file, int64_t *value, qd_err *err)
{
    int64_t wanted = *value;
    const qd_status st = qd_config_int(c, key, 1, max, &wanted, err);
    if (st)
        return st;
    if (file && wanted != *value)
        return qd_fail(err, QD_E_INVALID, "config key '%s' is %lld, the tensors of the file say %lld", key,
                       (long long)wanted, (long long)*value);
    *value = wanted;
    return QD_OK;
}

static qd_status read_resnet(const qd_config *c, const qd_weight_source *s, resnet *r, qd_err *err)
{
    const bool file = qd_weight_source_is_file(s);
    int64_t depth = 0;
    qd_status st = QD_OK;
    if (file) {
        st = infer(s, r, err);
        depth = st ? 0 : depth_of(r);
    } else if (!qd_config_has(c, "depth")) {
        st = qd_fail(err, QD_E_INVALID, "config key 'depth' is missing, and there is no file to see it in");
    }
    if (!st)
        st = agree(c, "depth", 2000, file, &depth, err);
    if (!st && !file)
        st = from_depth(depth, r, err);
    if (!st)
        st = agree(c, "in_channels", QD_NN_MAX_CHANNELS, file, &r->in_channels, err);
    if (!st)
        st = agree(c, "num_classes", 1000000, file, &r->classes, err);
    if (st)
        return st;
    r->side = r->stem_kernel == 7 ? 224 : 32;
    return qd_config_int(c, "image_size", 1 << r->levels, QD_NN_MAX_SIDE, &r->side, err);
}

/* --- building --- */

/* Every second pixel, and zeros for the new channels. */
static qd_feature option_a(qd_net *net, const char *name, qd_feature x, int64_t out, int64_t stride)
{
    static const char *const suffix[2] = { ".rows", ".columns" };
    char node[QD_NN_NAME + 16];
    if (x.id < 0)
        return x;
    for (int k = 0; k < 2 && stride > 1; k++) {
        snprintf(node, sizeof(node), "%s%s", name, suffix[k]);
        x.id = qd_graph_add(net->graph, &qd_op_slice, node, QD_IN(x.id),
                            QD_ATTRS(QD_INT("axis", 2 + k), QD_INT("step", stride)));
    }
    x.height = (x.height + stride - 1) / stride;
    x.width = (x.width + stride - 1) / stride;
    if (out < x.channels) {
        qd_graph_fail(net->graph, QD_E_FORMAT, "'%s': %lld channels become %lld, and there is no shortcut convolution",
                      name, (long long)x.channels, (long long)out);
        return (qd_feature){ .id = -1 };
    }
    if (out > x.channels) {
        const int64_t more = out - x.channels, pads[8] = { 0, more / 2, 0, 0, 0, more - more / 2, 0, 0 };
        snprintf(node, sizeof(node), "%s.padded", name);
        x.id = qd_graph_add(net->graph, &qd_op_pad, node, QD_IN(x.id), QD_ATTRS(qd_attr_ints("pads", 8, pads)));
        x.channels = out;
    }
    return x;
}

static qd_feature layer(qd_net *net, const dialect *d, const char *block, int which, qd_feature x, const qd_conv_bn *c)
{
    char conv[QD_NN_NAME + 32], bn[QD_NN_NAME + 32];
    snprintf(conv, sizeof(conv), "%s%s%d%s", block, d->body, which, d->conv_end);
    snprintf(bn, sizeof(bn), "%s%s%d%s", block, d->bn, which, d->bn_end);
    return qd_net_conv_bn(net, conv, bn, x, c);
}

static qd_feature add_block(qd_net *net, const resnet *r, int level, int block, qd_feature x)
{
    const dialect *d = r->names;
    const int64_t stride = level > 0 && block == 0 ? 2 : 1, inner = r->inner[level], outer = r->outer[level];
    char name[QD_NN_NAME], n1[QD_NN_NAME + 32], n2[QD_NN_NAME + 32];
    qd_feature h, y = x;
    block_name(name, d, level, block);
    if (r->bottleneck) { /* the stride lies in the 3x3 convolution, as in torchvision */
        h = layer(net, d, name, 1, x, &(qd_conv_bn){ inner, 1, 1, 1, &qd_op_relu });
        h = layer(net, d, name, 2, h, &(qd_conv_bn){ inner, 3, stride, r->groups, &qd_op_relu });
        h = layer(net, d, name, 3, h, &(qd_conv_bn){ outer, 1, 1, 1, NULL });
    } else {
        h = layer(net, d, name, 1, x, &(qd_conv_bn){ inner, 3, stride, 1, &qd_op_relu });
        h = layer(net, d, name, 2, h, &(qd_conv_bn){ outer, 3, 1, 1, NULL });
    }
    snprintf(n1, sizeof(n1), "%s%s", name, d->short_conv);
    snprintf(n2, sizeof(n2), "%s%s", name, d->short_bn);
    if (block == 0 && (stride != 1 || x.channels != outer)) {
        if (r->option_a)
            y = option_a(net, name, x, outer, stride);
        else
            y = qd_net_conv_bn(net, n1, n2, x, &(qd_conv_bn){ outer, 1, stride, 1, NULL });
    }
    if (h.id < 0 || y.id < 0)
        return (qd_feature){ .id = -1 };
    snprintf(n1, sizeof(n1), "%s.sum", name);
    h.id = qd_graph_add(net->graph, &qd_op_add, n1, QD_IN(h.id, y.id), QD_NO_ATTRS);
    h.id = qd_graph_add(net->graph, &qd_op_relu, name, QD_IN(h.id), QD_NO_ATTRS);
    return h;
}

static qd_status resnet_build(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                              qd_err *err)
{
    resnet r = { 0 };
    qd_graph *g = NULL;
    qd_status st = read_resnet(config, weights, &r, err);
    if (st)
        return st;
    qd_keys_warn(config, "ResNet", known_keys, run);
    st = qd_graph_new(&g, err);
    if (st)
        return st;
    qd_net net = { .graph = g, .weights = weights };
    const bool large = r.stem_kernel == 7;
    qd_feature x = qd_net_picture(&net, r.in_channels, r.side);
    x = qd_net_conv_bn(&net, r.names->stem_conv, r.names->stem_bn, x,
                       &(qd_conv_bn){ r.stem, r.stem_kernel, large ? 2 : 1, 1, &qd_op_relu });
    if (large && x.id >= 0) {
        const int64_t three[2] = { 3, 3 }, two[2] = { 2, 2 }, one[4] = { 1, 1, 1, 1 };
        x.id = qd_graph_add(
            g, &qd_op_max_pool, "maxpool", QD_IN(x.id),
            QD_ATTRS(qd_attr_ints("kernel", 2, three), qd_attr_ints("stride", 2, two), qd_attr_ints("pads", 4, one)));
        x.height = (x.height - 1) / 2 + 1;
        x.width = (x.width - 1) / 2 + 1;
    }
    for (int l = 0; l < r.levels; l++)
        for (int b = 0; b < r.blocks[l] && !st; b++) {
            st = qd_run_check(run, err);
            x = add_block(&net, &r, l, b, x);
        }
    const qd_node_id mean = qd_net_mean(&net, "avgpool", x);
    const qd_node_id logits = qd_net_linear(&net, r.names->fc, NULL, mean, x.channels, r.classes);
    qd_graph_output(g, "logits", logits);
    if (!st)
        st = qd_graph_verify(g, err);
    if (st)
        qd_graph_free(g);
    else
        *out = g;
    return st;
}

const qd_network_kind qd_kind_resnet = {
    .name = "ResNet",
    .summary =
        "ResNet for CIFAR (20, 32, 44, 56, 110, ..) or ImageNet (18, 34, 50, ..), tensors as torchvision and others name them.",
    .role = QD_ROLE_CLASSIFIER,
    .fits = resnet_fits,
    .build = resnet_build,
};
