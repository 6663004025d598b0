/* conv_bn.c - what convolutional classifiers are made of: convolution, batch norm, activation; the mean over space. */
#include <stdarg.h>
#include <stdio.h>

#include "graph/op.h"
#include "nn/nn_int.h"

static const qd_feature FAILED = { .id = -1 };

/* The norm's four vectors, each [channels]. */
static qd_node_id batch_norm(qd_net *net, const char *name, qd_node_id x, int64_t channels)
{
    static const struct {
        const char *suffix;
        qd_init init;
    } rows[4] = { { ".weight", QD_INIT_ONE },
                  { ".bias", QD_INIT_ZERO },
                  { ".running_mean", QD_INIT_ZERO },
                  { ".running_var", QD_INIT_ONE } };
    char counter[QD_NN_NAME + 24];
    qd_node_id v[4];
    for (int k = 0; k < 4; k++) {
        v[k] = qd_net_constant(net, name, NULL, rows[k].suffix, QD_SHAPE(channels), rows[k].init, 1);
        if (v[k] < 0)
            return -1;
    }
    snprintf(counter, sizeof(counter), "%s.num_batches_tracked", name);
    qd_weight_source_drop(net->weights, counter);
    return qd_graph_add(net->graph, &qd_op_batch_norm, name, QD_IN(x, v[0], v[1], v[2], v[3]),
                        QD_ATTRS(QD_FLOAT("eps", 1e-5)));
}

qd_feature qd_net_conv_bn(qd_net *net, const char *conv, const char *bn, qd_feature x, const qd_conv_bn *c)
{
    const int64_t pad = c->kernel / 2, strides[2] = { c->stride, c->stride }, pads[4] = { pad, pad, pad, pad };
    char act[QD_NN_NAME + 8];
    if (x.id < 0)
        return FAILED;
    if (c->groups < 1 || x.channels % c->groups || c->out % c->groups) {
        qd_graph_fail(net->graph, QD_E_INVALID, "'%s': %lld groups do not divide %lld and %lld channels", conv,
                      (long long)c->groups, (long long)x.channels, (long long)c->out);
        return FAILED;
    }
    const int64_t in = x.channels / c->groups;
    const qd_node_id w = qd_net_constant(net, conv, NULL, ".weight", QD_SHAPE(c->out, in, c->kernel, c->kernel),
                                         QD_INIT_UNIFORM, in * c->kernel * c->kernel);
    if (w < 0)
        return FAILED;
    qd_node_id id = qd_graph_add(
        net->graph, &qd_op_conv2d, conv, QD_IN(x.id, w),
        QD_ATTRS(qd_attr_ints("stride", 2, strides), qd_attr_ints("pads", 4, pads), QD_INT("groups", c->groups)));
    id = batch_norm(net, bn, id, c->out);
    if (id < 0)
        return FAILED;
    snprintf(act, sizeof(act), "%s.act", bn);
    if (c->act == &qd_op_clip)
        id = qd_graph_add(net->graph, c->act, act, QD_IN(id), QD_ATTRS(QD_FLOAT("lo", 0.0), QD_FLOAT("hi", 6.0)));
    else if (c->act)
        id = qd_graph_add(net->graph, c->act, act, QD_IN(id), QD_NO_ATTRS);
    return (qd_feature){ .id = id,
                         .channels = c->out,
                         .height = (x.height + 2 * pad - c->kernel) / c->stride + 1,
                         .width = (x.width + 2 * pad - c->kernel) / c->stride + 1 };
}

qd_node_id qd_net_mean(qd_net *net, const char *name, qd_feature x)
{
    char pooled[QD_NN_NAME];
    if (x.id < 0)
        return -1;
    snprintf(pooled, sizeof(pooled), "%s.mean", name);
    const qd_node_id mean = qd_graph_add(net->graph, &qd_op_global_avg_pool, pooled, QD_IN(x.id), QD_NO_ATTRS);
    return qd_graph_add(net->graph, &qd_op_reshape, name, QD_IN(mean),
                        QD_ATTRS(qd_attr_ints("shape", 2, (const int64_t[]){ 0, x.channels })));
}

qd_feature qd_net_picture(qd_net *net, int64_t channels, int64_t side)
{
    const qd_shape shape = QD_SHAPE(-1, channels, side, side);
    return (qd_feature){
        .id = qd_graph_input(net->graph, "input", QD_F32, &shape), .channels = channels, .height = side, .width = side
    };
}

qd_shape qd_net_shape_of(const qd_weight_source *s, const char *fmt, ...)
{
    char name[QD_NN_NAME];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof(name), fmt, args);
    va_end(args);
    const qd_tensor *t = qd_weight_source_peek(s, name);
    return t ? t->shape : (qd_shape){ .rank = -1 };
}
