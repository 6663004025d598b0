/* train_nets.c - what is trained in benchmarks: ResNets, the generator of ris.md before its teacher, a student of few bits, a U-Net. */
#include "bench/train_nets.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "harness/harness.h"

enum { CLASSES = 10, SIDE = 32, LATENT = 100 };

bool train_net_trains(void *ctx, const char *constant)
{
    return strncmp(constant, "frozen.", 7) != 0;
}

/* --- layers --- */

static qd_node_id weight(qd_graph *g, const char *name, const char *part, qd_shape shape, float scale, float offset)
{
    char full[128];
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    snprintf(full, sizeof full, "%s.%s", name, part);
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    harness_normal(qd_f32(&t), qd_tensor_count(&t), (uint64_t)qd_graph_size(g), scale);
    for (int64_t i = 0; i < qd_tensor_count(&t); i++)
        qd_f32(&t)[i] += offset;
    const qd_node_id id = qd_graph_const(g, full, &t);
    qd_tensor_clear(&t);
    return id;
}

static qd_node_id filter(qd_graph *g, const char *name, int64_t in, int64_t out, int64_t kernel)
{
    return weight(g, name, "weight", QD_SHAPE(out, in, kernel, kernel), sqrtf(2.0f / (float)(out * kernel * kernel)),
                  0.0f);
}

static qd_node_id conv(qd_graph *g, const char *name, qd_node_id x, qd_node_id w, qd_node_id bias, int64_t kernel,
                       int64_t stride)
{
    const int64_t pad = kernel / 2, pads[4] = { pad, pad, pad, pad }, strides[2] = { stride, stride };
    return qd_graph_add(g, &qd_op_conv2d, name, (qd_node_id[]){ x, w, bias }, bias < 0 ? 2 : 3,
                        QD_ATTRS(qd_attr_ints("pads", 4, pads), qd_attr_ints("stride", 2, strides)));
}

static qd_node_id batch_norm(qd_graph *g, const char *name, qd_node_id x, int64_t channels, double eps)
{
    return qd_graph_add(g, &qd_op_batch_norm, name,
                        QD_IN(x, weight(g, name, "weight", QD_SHAPE(channels), 0.0f, 1.0f),
                              weight(g, name, "bias", QD_SHAPE(channels), 0.0f, 0.0f),
                              weight(g, name, "mean", QD_SHAPE(channels), 0.0f, 0.0f),
                              weight(g, name, "var", QD_SHAPE(channels), 0.0f, 1.0f)),
                        QD_ATTRS(QD_FLOAT("eps", eps)));
}

static qd_node_id unary(qd_graph *g, const qd_op *op, const char *of, qd_node_id x)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", of, op->name);
    return qd_graph_add(g, op, full, QD_IN(x), QD_NO_ATTRS);
}

static qd_node_id linear(qd_graph *g, const char *name, qd_node_id x, int64_t in, int64_t out)
{
    return qd_graph_add(g, &qd_op_linear, name,
                        QD_IN(x, weight(g, name, "weight", QD_SHAPE(out, in), 1.0f / sqrtf((float)in), 0.0f),
                              weight(g, name, "bias", QD_SHAPE(out), 0.0f, 0.0f)),
                        QD_NO_ATTRS);
}

/* --- ResNets of basic blocks, CIFAR stem --- */

typedef struct resnet {
    int stages, blocks, width;
    bool few_bits;        /* weights and activations through quantizers (ris.md 2.2) */
    const char *prefix;   /* of all names */
    qd_node_id norms[64]; /* what enters each batch norm, and the norm */
    qd_node_id entered[64];
    int n_norms;
} resnet;

static qd_node_id conv_norm(qd_graph *g, resnet *r, const char *part, qd_node_id x, int64_t in, int64_t out,
                            int64_t kernel, int64_t stride)
{
    char name[64], norm[80], quant[80];
    snprintf(name, sizeof name, "%s%s", r->prefix, part);
    snprintf(norm, sizeof norm, "%s.bn", name);
    snprintf(quant, sizeof quant, "%s.quant", name);
    qd_node_id w = filter(g, name, in, out, kernel);
    if (r->few_bits)
        w = qd_graph_add(g, &qd_op_learned_quant, quant,
                         QD_IN(w, weight(g, quant, "scale", QD_SHAPE(out), 0.0f, 0.05f)),
                         QD_ATTRS(QD_INT("bits", 4), QD_INT("pass_all", 1)));
    const qd_node_id y = conv(g, name, x, w, -1, kernel, stride);
    r->entered[r->n_norms] = y;
    return r->norms[r->n_norms++] = batch_norm(g, norm, y, out, 1e-5);
}

static qd_node_id relu(qd_graph *g, const resnet *r, const char *of, qd_node_id x)
{
    char name[80];
    snprintf(name, sizeof name, "%s%s", r->prefix, of);
    x = unary(g, &qd_op_relu, name, x);
    if (!r->few_bits)
        return x;
    snprintf(name, sizeof name, "%s%s.act", r->prefix, of);
    return qd_graph_add(g, &qd_op_fake_quant, name, QD_IN(x),
                        QD_ATTRS(QD_FLOAT("scale", 0.2), QD_INT("zero", 0), QD_INT("bits", 4)));
}

/* Images to logits. */
static qd_node_id add_resnet(qd_graph *g, resnet *r, qd_node_id x)
{
    const int64_t flat[2] = { 0, -1 };
    char name[96];
    int64_t in = r->width;
    x = relu(g, r, "stem", conv_norm(g, r, "stem", x, 3, in, 3, 1));
    for (int stage = 0; stage < r->stages; stage++)
        for (int block = 0; block < r->blocks; block++) {
            const int64_t out = (int64_t)r->width << stage, stride = stage && !block ? 2 : 1;
            char a[32], b[32], c[32], sum[32];
            snprintf(a, sizeof a, "s%d.b%d.conv1", stage, block);
            snprintf(b, sizeof b, "s%d.b%d.conv2", stage, block);
            snprintf(c, sizeof c, "s%d.b%d.short", stage, block);
            snprintf(sum, sizeof sum, "s%d.b%d.sum", stage, block);
            snprintf(name, sizeof name, "%s%s.add", r->prefix, sum);
            const qd_node_id side = in == out ? x : conv_norm(g, r, c, x, in, out, 1, stride);
            qd_node_id y = relu(g, r, a, conv_norm(g, r, a, x, in, out, 3, stride));
            y = conv_norm(g, r, b, y, out, out, 3, 1);
            x = relu(g, r, sum, qd_graph_add(g, &qd_op_add, name, QD_IN(y, side), QD_NO_ATTRS));
            in = out;
        }
    snprintf(name, sizeof name, "%sfc", r->prefix);
    x = unary(g, &qd_op_global_avg_pool, name, x);
    snprintf(name, sizeof name, "%sflat", r->prefix);
    x = qd_graph_add(g, &qd_op_reshape, name, QD_IN(x), QD_ATTRS(qd_attr_ints("shape", 2, flat)));
    snprintf(name, sizeof name, "%sfc", r->prefix);
    return linear(g, name, x, in, CLASSES);
}

static qd_graph *make_resnet(resnet r)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    const qd_shape input = QD_SHAPE(-1, 3, SIDE, SIDE);
    check_ok(qd_graph_new(&g, &err), &err);
    qd_graph_output(g, "logits", add_resnet(g, &r, qd_graph_input(g, "x", QD_F32, &input)));
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static qd_graph *make_resnet20(void)
{
    return make_resnet((resnet){ .stages = 3, .blocks = 3, .width = 16, .prefix = "" });
}

static qd_graph *make_resnet18(void)
{
    return make_resnet((resnet){ .stages = 4, .blocks = 2, .width = 64, .prefix = "" });
}

static qd_graph *make_student(void)
{
    return make_resnet((resnet){ .stages = 3, .blocks = 3, .width = 16, .prefix = "", .few_bits = true });
}

static qd_status classify(void *ctx, qd_graph *g, const qd_node_id *outputs, int n, qd_node_id *loss, qd_err *err)
{
    const qd_shape target = QD_SHAPE(-1, CLASSES);
    *loss = qd_loss_cross_entropy(g, "ce", outputs[0], qd_graph_input(g, "target", QD_F32, &target));
    return QD_OK;
}

static void fill_targets(int64_t n, float *target)
{
    for (int64_t i = 0; i < n; i++)
        target[i * CLASSES + i % CLASSES] = 1.0f;
}

static void fill_images(int64_t n, void *const *inputs)
{
    harness_normal(inputs[0], n * 3 * SIDE * SIDE, 5, 1.0f);
    fill_targets(n, inputs[1]);
}

/* --- the generator of ris.md 2.4 (CIFAR form), behind which its teacher, a frozen ResNet-20, judges what it made --- */

static qd_node_id widen(qd_graph *g, const char *name, qd_node_id x, int64_t in, int64_t out, bool act)
{
    char part[64];
    const int64_t two[2] = { 2, 2 };
    snprintf(part, sizeof part, "%s.up", name);
    if (act)
        x = qd_graph_add(g, &qd_op_upsample, part, QD_IN(x), QD_ATTRS(qd_attr_ints("factor", 2, two)));
    x = conv(g, name, x, filter(g, name, in, out, 3), weight(g, name, "bias", QD_SHAPE(out), 0.0f, 0.0f), 3, 1);
    if (!act)
        return x;
    snprintf(part, sizeof part, "%s.bn", name);
    x = batch_norm(g, part, x, out, 0.8);
    snprintf(part, sizeof part, "%s.act", name);
    return qd_graph_add(g, &qd_op_leaky_relu, part, QD_IN(x), QD_ATTRS(QD_FLOAT("slope", 0.2)));
}

static qd_graph *make_generator(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    const qd_shape z_shape = QD_SHAPE(-1, LATENT), y_shape = QD_SHAPE(-1);
    const int64_t small[4] = { 0, 128, SIDE / 4, SIDE / 4 };
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id z = qd_graph_input(g, "z", QD_F32, &z_shape), y = qd_graph_input(g, "y", QD_I64, &y_shape);
    const qd_node_id e =
        qd_graph_add(g, &qd_op_embedding, "label",
                     QD_IN(y, weight(g, "label", "table", QD_SHAPE(CLASSES, LATENT), 1, 0)), QD_NO_ATTRS);
    qd_node_id x = qd_graph_add(g, &qd_op_mul, "latent", QD_IN(z, e), QD_NO_ATTRS);
    x = linear(g, "l1", x, LATENT, 128 * small[2] * small[3]);
    x = qd_graph_add(g, &qd_op_reshape, "image", QD_IN(x), QD_ATTRS(qd_attr_ints("shape", 4, small)));
    x = batch_norm(g, "b1", x, 128, 1e-5);
    x = widen(g, "c1", x, 128, 128, true);
    x = widen(g, "c2", x, 128, 64, true);
    x = unary(g, &qd_op_tanh, "c3", widen(g, "c3", x, 64, 3, false));
    qd_graph_output(g, "x", batch_norm(g, "frozen.out", x, 3, 1e-5));
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

/* ris.md 2.5: CE + 0.1 BNS, the mean over norms of the distances of means and of variances. */
static qd_status judge(void *ctx, qd_graph *g, const qd_node_id *outputs, int n, qd_node_id *loss, qd_err *err)
{
    const qd_shape target = QD_SHAPE(-1, CLASSES);
    resnet r = { .stages = 3, .blocks = 3, .width = 16, .prefix = "teacher." };
    const qd_node_id logits = add_resnet(g, &r, outputs[0]);
    qd_node_id total = qd_loss_cross_entropy(g, "ce", logits, qd_graph_input(g, "target", QD_F32, &target));
    for (int k = 0; k < r.n_norms; k++) {
        char name[4][32];
        snprintf(name[0], sizeof name[0], "bns%d.stats", k);
        snprintf(name[1], sizeof name[1], "bns%d.want", k);
        snprintf(name[2], sizeof name[2], "bns%d", k);
        snprintf(name[3], sizeof name[3], "bns%d.total", k);
        const int64_t channels = qd_graph_node(g, qd_graph_node(g, r.norms[k])->input[3])->shape.dim[0];
        const qd_node_id stats = qd_graph_add(g, &qd_op_batch_norm_stats, name[0], QD_IN(r.entered[k]), QD_NO_ATTRS);
        const qd_node_id distance =
            qd_loss_mse(g, name[2], stats, weight(g, name[1], "stats", QD_SHAPE(2, channels), 0.1f, 0.5f));
        char scaled[48];
        snprintf(scaled, sizeof scaled, "bns%d.scaled", k);
        const qd_node_id part = qd_graph_add(g, &qd_op_affine, scaled, QD_IN(distance),
                                             QD_ATTRS(QD_FLOAT("mul", 0.1 * 2.0 / (double)r.n_norms)));
        total = qd_graph_add(g, &qd_op_add, name[3], QD_IN(total, part), QD_NO_ATTRS);
    }
    *loss = total;
    return QD_OK;
}

static void fill_latents(int64_t n, void *const *inputs)
{
    harness_normal(inputs[0], n * LATENT, 5, 1.0f);
    for (int64_t i = 0; i < n; i++)
        ((int64_t *)inputs[1])[i] = i % CLASSES;
    fill_targets(n, inputs[2]);
}

/* --- a denoiser: group norm, SiLU, attention --- */

static qd_graph *make_unet(void)
{
    static const char config[] =
        "{\"_class_name\":\"UNet2DModel\",\"sample_size\":32,\"in_channels\":3,\"out_channels\":3,\"layers_per_block\":1,"
        "\"block_out_channels\":[64,128],\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\"],"
        "\"up_block_types\":[\"AttnUpBlock2D\",\"UpBlock2D\"],\"norm_num_groups\":32}";
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_zoo_random(config, 3, &g, &err), &err);
    return g;
}

static qd_status denoise(void *ctx, qd_graph *g, const qd_node_id *outputs, int n, qd_node_id *loss, qd_err *err)
{
    const qd_shape noise = QD_SHAPE(-1, 3, SIDE, SIDE);
    *loss = qd_loss_mse(g, "mse", outputs[0], qd_graph_input(g, "noise", QD_F32, &noise));
    return QD_OK;
}

static void fill_noise(int64_t n, void *const *inputs)
{
    harness_normal(inputs[0], n * 3 * SIDE * SIDE, 5, 1.0f);
    for (int64_t i = 0; i < n; i++)
        ((float *)inputs[1])[i] = (float)(i * 37 % 1000);
    harness_normal(inputs[2], n * 3 * SIDE * SIDE, 6, 1.0f);
}

const train_net train_nets[] = {
    { "resnet20", "ResNet-20 on 32 x 32 (ris.md 2.1)", 200, true, make_resnet20, classify, fill_images, &qd_optim_sgd,
      0.01 },
    { "resnet18", "ResNet-18 with the stem for 32 x 32 (colt.md)", 64, true, make_resnet18, classify, fill_images,
      &qd_optim_sgd, 0.01 },
    { "gdfq", "the generator before its teacher (ris.md 2.4)", 200, true, make_generator, judge, fill_latents,
      &qd_optim_adam, 1e-3 },
    { "student", "ResNet-20 with weights and activations of 4 bits", 200, false, make_student, classify, fill_images,
      &qd_optim_sgd, 1e-3, QD_BN_FROZEN },
    { "unet", "UNet2DModel of 64 and 128 channels", 8, false, make_unet, denoise, fill_noise, &qd_optim_adam, 1e-4 },
    { .name = NULL },
};
