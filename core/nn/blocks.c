/* blocks.c - layers and blocks of diffusion U-Nets as functions that add nodes (diffusion_models.md 2).
 *
 * The plan's fuser knows these forms (group_norm -> silu -> conv, concat -> group_norm, conv -> add), so each block is written
 * in one way only. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "graph/op.h"
#include "nn/nn_int.h"

static const qd_feature FAILED = { .id = -1 };

/* "<prefix><suffix>" in buf. Both are ours and short. */
static const char *join(char buf[QD_NN_NAME], const char *prefix, const char *suffix)
{
    const size_t n = strlen(prefix), m = strlen(suffix);
    assert(n + m < QD_NN_NAME);
    memcpy(buf, prefix, n);
    memcpy(buf + n, suffix, m + 1);
    return buf;
}

qd_node_id qd_net_constant(qd_net *net, const char *name, const char *file, const char *suffix, qd_shape shape,
                           qd_init init, int64_t fan_in)
{
    char node[QD_NN_NAME], tensor[QD_NN_NAME];
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    qd_status st =
        qd_weight_source_take(net->weights, join(tensor, file ? file : name, suffix), &shape, init, fan_in, &t, &err);
    if (st) {
        qd_graph_fail(net->graph, st, "%s", err.text);
        return -1;
    }
    const qd_node_id id = qd_graph_const(net->graph, join(node, name, suffix), &t);
    qd_tensor_clear(&t);
    return id;
}

static qd_node_id unary(qd_net *net, const qd_op *op, const char *prefix, const char *suffix, qd_node_id x)
{
    char name[QD_NN_NAME];
    return qd_graph_add(net->graph, op, join(name, prefix, suffix), QD_IN(x), QD_NO_ATTRS);
}

qd_node_id qd_net_linear(qd_net *net, const char *name, const char *file, qd_node_id x, int64_t in, int64_t out)
{
    if (x < 0)
        return -1;
    const qd_node_id w = qd_net_constant(net, name, file, ".weight", QD_SHAPE(out, in), QD_INIT_UNIFORM, in);
    if (w < 0)
        return -1;
    const qd_node_id b = qd_net_constant(net, name, file, ".bias", QD_SHAPE(out), QD_INIT_UNIFORM, in);
    if (b < 0)
        return -1;
    return qd_graph_add(net->graph, &qd_op_linear, name, QD_IN(x, w, b), QD_NO_ATTRS);
}

qd_node_id qd_net_matrix(qd_net *net, const char *name, qd_node_id x, int64_t in, int64_t out)
{
    if (x < 0)
        return -1;
    const qd_node_id w = qd_net_constant(net, name, NULL, ".weight", QD_SHAPE(out, in), QD_INIT_UNIFORM, in);
    return w < 0 ? -1 : qd_graph_add(net->graph, &qd_op_linear, name, QD_IN(x, w), QD_NO_ATTRS);
}

qd_node_id qd_net_layer_norm(qd_net *net, const char *name, qd_node_id x, int64_t width)
{
    if (x < 0)
        return -1;
    const qd_node_id w = qd_net_constant(net, name, NULL, ".weight", QD_SHAPE(width), QD_INIT_ONE, 1);
    if (w < 0)
        return -1;
    const qd_node_id b = qd_net_constant(net, name, NULL, ".bias", QD_SHAPE(width), QD_INIT_ZERO, 1);
    if (b < 0)
        return -1;
    return qd_graph_add(net->graph, &qd_op_layer_norm, name, QD_IN(x, w, b),
                        QD_ATTRS(QD_INT("axes", 1), QD_FLOAT("eps", 1e-5)));
}

qd_feature qd_net_conv(qd_net *net, const char *name, qd_feature x, int64_t out, int64_t kernel, int64_t stride,
                       const int64_t pads[4])
{
    if (x.id < 0)
        return FAILED;
    const int64_t fan_in = x.channels * kernel * kernel;
    const qd_node_id w =
        qd_net_constant(net, name, NULL, ".weight", QD_SHAPE(out, x.channels, kernel, kernel), QD_INIT_UNIFORM, fan_in);
    if (w < 0)
        return FAILED;
    const qd_node_id b = qd_net_constant(net, name, NULL, ".bias", QD_SHAPE(out), QD_INIT_UNIFORM, fan_in);
    if (b < 0)
        return FAILED;
    const int64_t strides[2] = { stride, stride };
    const qd_node_id id = qd_graph_add(net->graph, &qd_op_conv2d, name, QD_IN(x.id, w, b),
                                       QD_ATTRS(qd_attr_ints("stride", 2, strides), qd_attr_ints("pads", 4, pads)));
    return (qd_feature){ .id = id,
                         .channels = out,
                         .height = (x.height + pads[0] + pads[2] - kernel) / stride + 1,
                         .width = (x.width + pads[1] + pads[3] - kernel) / stride + 1 };
}

static qd_feature conv3(qd_net *net, const char *name, qd_feature x, int64_t out)
{
    return qd_net_conv(net, name, x, out, 3, 1, (const int64_t[]){ 1, 1, 1, 1 });
}

qd_feature qd_net_group_norm(qd_net *net, const char *name, qd_feature x, int64_t groups)
{
    if (x.id < 0)
        return FAILED;
    if (x.channels % groups) {
        qd_graph_fail(net->graph, QD_E_INVALID, "'%s' has %lld channels, which %lld groups do not divide", name,
                      (long long)x.channels, (long long)groups);
        return FAILED;
    }
    const qd_node_id w = qd_net_constant(net, name, NULL, ".weight", QD_SHAPE(x.channels), QD_INIT_ONE, 1);
    if (w < 0)
        return FAILED;
    const qd_node_id b = qd_net_constant(net, name, NULL, ".bias", QD_SHAPE(x.channels), QD_INIT_ZERO, 1);
    if (b < 0)
        return FAILED;
    x.id = qd_graph_add(net->graph, &qd_op_group_norm, name, QD_IN(x.id, w, b),
                        QD_ATTRS(QD_INT("groups", groups), QD_FLOAT("eps", net->eps)));
    return x;
}

qd_node_id qd_net_embedding(qd_net *net, const char *name, qd_node_id index, int64_t rows, int64_t width)
{
    if (index < 0)
        return -1;
    const qd_node_id table = qd_net_constant(net, name, NULL, ".weight", QD_SHAPE(rows, width), QD_INIT_NORMAL, 1);
    if (table < 0)
        return -1;
    return qd_graph_add(net->graph, &qd_op_embedding, name, QD_IN(index, table), QD_NO_ATTRS);
}

qd_node_id qd_net_time_mlp(qd_net *net, const char *name, const qd_op *act, qd_node_id x, int64_t in, int64_t width)
{
    char n1[QD_NN_NAME], n2[QD_NN_NAME];
    qd_node_id h = qd_net_linear(net, join(n1, name, ".linear_1"), NULL, x, in, width);
    h = h < 0 ? -1 : unary(net, act, name, ".act", h);
    return qd_net_linear(net, join(n2, name, ".linear_2"), NULL, h, width, width);
}

static qd_feature double_size(qd_net *net, const char *prefix, const char *suffix, qd_feature x)
{
    char name[QD_NN_NAME];
    if (x.id < 0)
        return FAILED;
    x.id = qd_graph_add(net->graph, &qd_op_upsample, join(name, prefix, suffix), QD_IN(x.id),
                        QD_ATTRS(qd_attr_ints("factor", 2, (const int64_t[]){ 2, 2 })));
    x.height *= 2;
    x.width *= 2;
    return x;
}

static qd_feature halve_size(qd_net *net, const char *prefix, const char *suffix, qd_feature x)
{
    char name[QD_NN_NAME];
    if (x.id < 0)
        return FAILED;
    const int64_t two[2] = { 2, 2 };
    x.id = qd_graph_add(net->graph, &qd_op_avg_pool, join(name, prefix, suffix), QD_IN(x.id),
                        QD_ATTRS(qd_attr_ints("kernel", 2, two), qd_attr_ints("stride", 2, two)));
    x.height /= 2;
    x.width /= 2;
    return x;
}

static qd_feature resample(qd_net *net, const char *prefix, const char *suffix, qd_feature x, qd_resample how)
{
    return how == QD_RESAMPLE_UP     ? double_size(net, prefix, suffix, x)
           : how == QD_RESAMPLE_DOWN ? halve_size(net, prefix, suffix, x)
                                     : x;
}

/* (a + b) / scale under the block's own name. */
static qd_node_id residual(qd_net *net, const char *name, qd_node_id a, qd_node_id b, double scale)
{
    char sum[QD_NN_NAME];
    if (a < 0 || b < 0)
        return -1;
    if (scale == 1.0)
        return qd_graph_add(net->graph, &qd_op_add, name, QD_IN(a, b), QD_NO_ATTRS);
    const qd_node_id s = qd_graph_add(net->graph, &qd_op_add, join(sum, name, ".sum"), QD_IN(a, b), QD_NO_ATTRS);
    return qd_graph_add(net->graph, &qd_op_affine, name, QD_IN(s), QD_ATTRS(QD_FLOAT("mul", 1.0 / scale)));
}

/* The block's share of the time embedding, [N, rows, 1, 1]. */
static qd_node_id time_share(qd_net *net, const char *name, int64_t rows)
{
    char layer[QD_NN_NAME], shaped[QD_NN_NAME];
    const qd_node_id e =
        qd_net_linear(net, join(layer, name, ".time_emb_proj"), NULL, net->temb, net->temb_channels, rows);
    if (e < 0)
        return -1;
    return qd_graph_add(net->graph, &qd_op_reshape, join(shaped, name, ".temb"), QD_IN(e),
                        QD_ATTRS(qd_attr_ints("shape", 4, (const int64_t[]){ 0, rows, 1, 1 })));
}

static qd_node_id time_slice(qd_net *net, const char *name, const char *suffix, qd_node_id e, int64_t start,
                             int64_t length)
{
    char sliced[QD_NN_NAME];
    return qd_graph_add(
        net->graph, &qd_op_slice, join(sliced, name, suffix), QD_IN(e),
        QD_ATTRS(QD_INT("axis", 1), QD_INT("start", start), QD_INT("length", length), QD_INT("step", 1)));
}

static qd_feature timed_norm2(qd_net *net, const char *name, qd_feature h)
{
    char norm[QD_NN_NAME], a[QD_NN_NAME];
    join(norm, name, ".norm2");
    if (h.id < 0 || net->temb < 0)
        return qd_net_group_norm(net, norm, h, net->groups);
    if (!net->scale_shift) {
        const qd_node_id e = time_share(net, name, h.channels);
        if (e < 0)
            return FAILED;
        h.id = qd_graph_add(net->graph, &qd_op_add, join(a, name, ".add_temb"), QD_IN(h.id, e), QD_NO_ATTRS);
        return qd_net_group_norm(net, norm, h, net->groups);
    }
    const qd_node_id e = time_share(net, name, 2 * h.channels);
    h = qd_net_group_norm(net, norm, h, net->groups);
    if (e < 0 || h.id < 0)
        return FAILED;
    const qd_node_id scale = time_slice(net, name, ".scale", e, 0, h.channels);
    const qd_node_id shift = time_slice(net, name, ".shift", e, h.channels, h.channels);
    const qd_node_id gain = qd_graph_add(net->graph, &qd_op_affine, join(a, name, ".gain"), QD_IN(scale),
                                         QD_ATTRS(QD_FLOAT("mul", 1.0), QD_FLOAT("add", 1.0)));
    h.id = qd_graph_add(net->graph, &qd_op_mul, join(a, name, ".scaled"), QD_IN(h.id, gain), QD_NO_ATTRS);
    h.id = qd_graph_add(net->graph, &qd_op_add, join(a, name, ".shifted"), QD_IN(h.id, shift), QD_NO_ATTRS);
    return h;
}

qd_feature qd_net_resnet(qd_net *net, const char *name, qd_feature x, int64_t out, qd_resample how, double scale)
{
    char n[QD_NN_NAME];
    qd_feature h = qd_net_group_norm(net, join(n, name, ".norm1"), x, net->groups);
    if (h.id < 0)
        return FAILED;
    h.id = unary(net, net->act, name, ".act1", h.id);
    h = resample(net, name, ".resample_h", h, how);
    h = conv3(net, join(n, name, ".conv1"), h, out);
    h = timed_norm2(net, name, h);
    if (h.id < 0)
        return FAILED;
    h.id = unary(net, net->act, name, ".act2", h.id);
    h = conv3(net, join(n, name, ".conv2"), h, out);

    x = resample(net, name, ".resample_x", x, how);
    if (x.channels != out)
        x = qd_net_conv(net, join(n, name, ".conv_shortcut"), x, out, 1, 1, (const int64_t[]){ 0, 0, 0, 0 });
    h.id = residual(net, name, x.id, h.id, scale);
    return h;
}

/* Names of the four projections, new and old. */
static const char *const attention_keys[4][2] = {
    { ".to_q", ".query" }, { ".to_k", ".key" }, { ".to_v", ".value" }, { ".to_out.0", ".proj_attn" }
};

static qd_node_id projection(qd_net *net, const char *block, int which, qd_node_id x, int64_t in, int64_t out)
{
    char name[QD_NN_NAME], old[QD_NN_NAME], probe[QD_NN_NAME];
    join(name, block, attention_keys[which][0]);
    join(old, block, attention_keys[which][1]);
    const bool is_old = qd_weight_source_has(net->weights, join(probe, old, ".weight"));
    return qd_net_linear(net, name, is_old ? old : NULL, x, in, out);
}

qd_node_id qd_net_to_tokens(qd_net *net, const char *name, qd_feature x)
{
    char n[QD_NN_NAME];
    if (x.id < 0)
        return -1;
    const qd_node_id t = qd_graph_add(net->graph, &qd_op_permute, join(n, name, ".to_tokens"), QD_IN(x.id),
                                      QD_ATTRS(qd_attr_ints("perm", 4, (const int64_t[]){ 0, 2, 3, 1 })));
    return qd_graph_add(net->graph, &qd_op_reshape, join(n, name, ".tokens"), QD_IN(t),
                        QD_ATTRS(qd_attr_ints("shape", 3, (const int64_t[]){ 0, x.height * x.width, x.channels })));
}

qd_feature qd_net_to_image(qd_net *net, const char *name, qd_node_id tokens, qd_feature like)
{
    char n[QD_NN_NAME];
    if (tokens < 0)
        return FAILED;
    const qd_node_id t = qd_graph_add(
        net->graph, &qd_op_reshape, join(n, name, ".from_tokens"), QD_IN(tokens),
        QD_ATTRS(qd_attr_ints("shape", 4, (const int64_t[]){ 0, like.height, like.width, like.channels })));
    like.id = qd_graph_add(net->graph, &qd_op_permute, join(n, name, ".image"), QD_IN(t),
                           QD_ATTRS(qd_attr_ints("perm", 4, (const int64_t[]){ 0, 3, 1, 2 })));
    return like;
}

qd_feature qd_net_attention(qd_net *net, const char *name, qd_feature x, int64_t head_dim, int64_t groups, double scale)
{
    char n[QD_NN_NAME];
    if (x.id < 0)
        return FAILED;
    const int64_t c = x.channels, heads = c / head_dim;
    if (heads < 1) {
        qd_graph_fail(net->graph, QD_E_INVALID, "attention_head_dim %lld is wider than the %lld channels of '%s'",
                      (long long)head_dim, (long long)c, name);
        return FAILED;
    }
    const int64_t inner = heads * head_dim; /* differs from c when head_dim does not divide it */

    qd_feature h = x;
    if (groups)
        h = qd_net_group_norm(net, join(n, name, ".group_norm"), x, groups);
    qd_node_id t = qd_net_to_tokens(net, name, h);
    const qd_node_id q = projection(net, name, 0, t, c, inner);
    const qd_node_id k = projection(net, name, 1, t, c, inner);
    const qd_node_id v = projection(net, name, 2, t, c, inner);
    if (q < 0 || k < 0 || v < 0)
        return FAILED;
    t = qd_graph_add(net->graph, &qd_op_attention, join(n, name, ".attention"), QD_IN(q, k, v),
                     QD_ATTRS(QD_INT("heads", heads), QD_FLOAT("scale", 1.0 / sqrt((double)head_dim))));
    t = projection(net, name, 3, t, inner, c);
    h = qd_net_to_image(net, name, t, x);
    x.id = residual(net, name, h.id, x.id, scale);
    return x;
}

qd_feature qd_net_downsample(qd_net *net, const char *name, qd_feature x, int64_t padding)
{
    char n[QD_NN_NAME];
    return qd_net_conv(net, join(n, name, ".conv"), x, x.channels, 3, 2, (const int64_t[]){ padding, padding, 1, 1 });
}

qd_feature qd_net_upsample(qd_net *net, const char *name, qd_feature x)
{
    char n[QD_NN_NAME];
    x = double_size(net, name, ".double", x);
    return conv3(net, join(n, name, ".conv"), x, x.channels);
}

qd_feature qd_net_concat(qd_net *net, const char *name, qd_feature a, qd_feature b)
{
    if (a.id < 0 || b.id < 0)
        return FAILED;
    a.id = qd_graph_add(net->graph, &qd_op_concat, name, QD_IN(a.id, b.id), QD_ATTRS(QD_INT("axis", 1)));
    a.channels += b.channels;
    return a;
}
