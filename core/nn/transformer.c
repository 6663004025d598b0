/* transformer.c - Transformer2DModel: attention over an image's own tokens and over a context (diffusion_models.md 2.6). */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "nn/nn_int.h"

static const qd_feature FAILED = { .id = -1 };

/* Names are the builder's own, and short. */
static const char *join(char buf[QD_NN_NAME], const char *prefix, const char *suffix)
{
    const size_t n = strlen(prefix), more = strlen(suffix);
    assert(n + more < QD_NN_NAME);
    memcpy(buf, prefix, n);
    memcpy(buf + n, suffix, more + 1);
    return buf;
}

static qd_node_id sum(qd_net *net, const char *prefix, const char *suffix, qd_node_id a, qd_node_id b)
{
    char n[QD_NN_NAME];
    if (a < 0 || b < 0)
        return -1;
    return qd_graph_add(net->graph, &qd_op_add, join(n, prefix, suffix), QD_IN(a, b), QD_NO_ATTRS);
}

/* Multi-head attention of x [N, T, width] over y [N, S, y_width]. */
static qd_node_id attend(qd_net *net, const char *name, qd_node_id x, int64_t width, qd_node_id y, int64_t y_width,
                         int64_t heads)
{
    char n[QD_NN_NAME];
    const qd_node_id q = qd_net_matrix(net, join(n, name, ".to_q"), x, width, width);
    const qd_node_id k = qd_net_matrix(net, join(n, name, ".to_k"), y, y_width, width);
    const qd_node_id v = qd_net_matrix(net, join(n, name, ".to_v"), y, y_width, width);
    if (q < 0 || k < 0 || v < 0)
        return -1;
    const double scale = 1.0 / sqrt((double)(width / heads));
    const qd_node_id a = qd_graph_add(net->graph, &qd_op_attention, join(n, name, ".attention"), QD_IN(q, k, v),
                                      QD_ATTRS(QD_INT("heads", heads), QD_FLOAT("scale", scale)));
    return qd_net_linear(net, join(n, name, ".to_out.0"), NULL, a, width, width);
}

static qd_node_id half(qd_net *net, const char *prefix, const char *suffix, qd_node_id x, int64_t start, int64_t length)
{
    char n[QD_NN_NAME];
    return qd_graph_add(
        net->graph, &qd_op_slice, join(n, prefix, suffix), QD_IN(x),
        QD_ATTRS(QD_INT("axis", 2), QD_INT("start", start), QD_INT("length", length), QD_INT("step", 1)));
}

/* GEGLU: one half of the wide layer, gated by the GELU of the other. */
static qd_node_id feed_forward(qd_net *net, const char *name, qd_node_id x, int64_t width)
{
    char n[QD_NN_NAME];
    const int64_t wide = 4 * width;
    const qd_node_id h = qd_net_linear(net, join(n, name, ".net.0.proj"), NULL, x, width, 2 * wide);
    if (h < 0)
        return -1;
    const qd_node_id a = half(net, name, ".net.0.value", h, 0, wide);
    const qd_node_id g = half(net, name, ".net.0.gate", h, wide, wide);
    const qd_node_id gate = qd_graph_add(net->graph, &qd_op_gelu, join(n, name, ".net.0.gelu"), QD_IN(g), QD_NO_ATTRS);
    const qd_node_id y = qd_graph_add(net->graph, &qd_op_mul, join(n, name, ".net.0"), QD_IN(a, gate), QD_NO_ATTRS);
    return qd_net_linear(net, join(n, name, ".net.2"), NULL, y, wide, width);
}

/* BasicTransformerBlock of tokens x [N, T, width]. */
static qd_node_id basic_block(qd_net *net, const char *name, qd_node_id x, int64_t width, const qd_transformer *t)
{
    char n[QD_NN_NAME];
    qd_node_id h = qd_net_layer_norm(net, join(n, name, ".norm1"), x, width);
    h = attend(net, join(n, name, ".attn1"), h, width, t->only_cross ? t->context : h,
               t->only_cross ? t->context_dim : width, t->heads);
    x = sum(net, name, ".attn1", h, x);
    h = qd_net_layer_norm(net, join(n, name, ".norm2"), x, width);
    h = attend(net, join(n, name, ".attn2"), h, width, t->context, t->context_dim, t->heads);
    x = sum(net, name, ".attn2", h, x);
    h = qd_net_layer_norm(net, join(n, name, ".norm3"), x, width);
    h = feed_forward(net, join(n, name, ".ff"), h, width);
    return sum(net, name, "", h, x);
}

qd_feature qd_net_transformer(qd_net *net, const char *name, qd_feature x, const qd_transformer *t)
{
    static const int64_t no_pads[4] = { 0 };
    char n[QD_NN_NAME], block[QD_NN_NAME];
    if (x.id < 0)
        return FAILED;
    if (t->heads > x.channels) {
        qd_graph_fail(net->graph, QD_E_INVALID, "attention_head_dim asks for %lld heads of the %lld channels of '%s'",
                      (long long)t->heads, (long long)x.channels, name);
        return FAILED;
    }
    const int64_t width = x.channels / t->heads * t->heads;
    qd_net own = *net; /* same graph and weights */
    own.eps = 1e-6;
    qd_feature h = qd_net_group_norm(&own, join(n, name, ".norm"), x, net->groups);
    if (!t->linear)
        h = qd_net_conv(net, join(n, name, ".proj_in"), h, width, 1, 1, no_pads);
    qd_node_id tokens = qd_net_to_tokens(net, name, h);
    if (t->linear)
        tokens = qd_net_linear(net, join(n, name, ".proj_in"), NULL, tokens, x.channels, width);
    for (int64_t k = 0; k < t->depth; k++) {
        snprintf(block, sizeof(block), "%s.transformer_blocks.%lld", name, (long long)k);
        tokens = basic_block(net, block, tokens, width, t);
    }
    if (t->linear)
        tokens = qd_net_linear(net, join(n, name, ".proj_out"), NULL, tokens, width, x.channels);
    h.channels = t->linear ? x.channels : width;
    h = qd_net_to_image(net, name, tokens, h);
    if (!t->linear)
        h = qd_net_conv(net, join(n, name, ".proj_out"), h, x.channels, 1, 1, no_pads);
    x.id = sum(net, name, "", h.id, x.id);
    return x;
}
