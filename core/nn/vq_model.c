/* vq_model.c - VQModel: the vector-quantized first stage of latent diffusion (diffusion_models.md 5.2). */
#include "graph/op.h"
#include "nn/autoencoder_int.h"

#define MAX_CODES (1 << 20)

/* Every key of the class; a config may hold others, which get a warning. */
static const char *const known_keys[] = {
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "act_fn",
    "latent_channels",
    "sample_size",
    "num_vq_embeddings",
    "norm_num_groups",
    "vq_embed_dim",
    "scaling_factor",
    "norm_type",
    "mid_block_add_attention",
    "lookup_from_codebook",
    "force_upcast",
    NULL,
};

typedef struct vq {
    qd_autoencoder a;
    int64_t codes, width; // rows of the codebook and their width, which is the latent's
} vq;

static qd_status read_config(const qd_config *c, vq *v, qd_err *err)
{
    static const char *const norms[] = { "group", NULL };
    static const char *const refused[] = { "lookup_from_codebook", NULL };
    int norm = 0;
    /* Trap: the class says 0.18215 for a missing scaling_factor, the networks that leave it out were trained with 1. */
    *v = (vq){ .a = { .latent_channels = 3, .scaling = 1.0 }, .codes = 256 };
    qd_status st = qd_autoencoder_read(c, &v->a, err);
    v->width = v->a.latent_channels;
    if (!st)
        st = qd_config_int(c, "num_vq_embeddings", 1, MAX_CODES, &v->codes, err);
    if (!st)
        st = qd_config_int(c, "vq_embed_dim", 1, QD_NN_MAX_CHANNELS, &v->width, err);
    if (!st)
        st = qd_keys_choice(c, "norm_type", norms, &norm, err);
    if (!st)
        st = qd_keys_refuse(c, refused, err);
    return st;
}

/* The code before the codebook: while sampling latents are continuous. */
static void add_encoder(qd_net *net, const vq *v)
{
    qd_feature x = qd_autoencoder_encode(net, &v->a, v->a.latent_channels);
    x = qd_autoencoder_conv1(net, "quant_conv", x, v->width);
    if (x.id >= 0 && v->a.scaling != 1.0)
        x.id = qd_autoencoder_affine(net, "latent.scaled", x.id, v->a.scaling, 0.0);
    if (x.id >= 0)
        qd_graph_output(net->graph, "latent", x.id);
}

static qd_feature nearest_codes(qd_net *net, const vq *v, qd_feature x)
{
    const qd_shape shape = QD_SHAPE(v->codes, v->width);
    qd_err err = { 0 };
    qd_tensor table = { 0 };
    qd_status st =
        qd_weight_source_take(net->weights, "quantize.embedding.weight", &shape, QD_INIT_NORMAL, 1, &table, &err);
    if (st) {
        qd_graph_fail(net->graph, st, "%s", err.text);
        return (qd_feature){ .id = -1 };
    }
    const qd_node_id rows = qd_graph_const(net->graph, "quantize.embedding.weight", &table);
    qd_tensor_clear(&table);
    x.id = qd_graph_add(net->graph, &qd_op_codebook, "quantize.embedding", QD_IN(x.id, rows), QD_NO_ATTRS);
    return x;
}

static void add_decoder(qd_net *net, const vq *v)
{
    qd_feature x = qd_autoencoder_latent(net, &v->a, v->width, 0.0);
    x = nearest_codes(net, v, x);
    x = qd_autoencoder_conv1(net, "post_quant_conv", x, v->a.latent_channels);
    qd_autoencoder_decode(net, &v->a, x);
}

static void add_both(qd_net *net, const void *ctx)
{
    add_encoder(net, ctx);
    add_decoder(net, ctx);
}

static qd_status vq_build(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                          qd_err *err)
{
    vq v;
    const qd_status st = read_config(config, &v, err);
    if (st)
        return st;
    qd_keys_warn(config, "VQModel", known_keys, run);
    return qd_autoencoder_build(&v.a, add_both, &v, weights, run, out, err);
}

const qd_network_kind qd_kind_vq_model = {
    .name = "VQModel",
    .summary = "First stage of latent diffusion with a codebook (VQ-f4, VQ-f8).",
    .role = QD_ROLE_OTHER,
    .build = vq_build,
};
