/* autoencoder_kl.c - AutoencoderKL: the variational first stage of latent diffusion (diffusion_models.md 5.1). */
#include "graph/op.h"
#include "nn/autoencoder_int.h"

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
    "norm_num_groups",
    "sample_size",
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
    "force_upcast",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
    NULL,
};

typedef struct kl {
    qd_autoencoder a;
    double shift; // latents outside are scaling * (those inside - shift)
    bool quant_conv, post_quant_conv;
} kl;

static qd_status read_config(const qd_config *c, kl *k, qd_err *err)
{
    static const char *const refused[] = { "latents_mean", "latents_std", NULL };
    *k = (kl){ .a = { .latent_channels = 4, .scaling = 0.18215 }, .quant_conv = true, .post_quant_conv = true };
    qd_status st = qd_autoencoder_read(c, &k->a, err);
    if (!st)
        st = qd_config_number(c, "shift_factor", &k->shift, err);
    if (!st)
        st = qd_config_bool(c, "use_quant_conv", &k->quant_conv, err);
    if (!st)
        st = qd_config_bool(c, "use_post_quant_conv", &k->post_quant_conv, err);
    if (!st)
        st = qd_keys_refuse(c, refused, err);
    if (!st && !(k->shift > -1e6 && k->shift < 1e6))
        st = qd_fail(err, QD_E_INVALID, "config key 'shift_factor' is %g; it must lie between -1e6 and 1e6", k->shift);
    return st;
}

static qd_node_id half(qd_net *net, const char *name, qd_feature x, int64_t start)
{
    return qd_graph_add(
        net->graph, &qd_op_slice, name, QD_IN(x.id),
        QD_ATTRS(QD_INT("axis", 1), QD_INT("start", start), QD_INT("length", x.channels / 2), QD_INT("step", 1)));
}

/* Mean and standard deviation, in the units of the latents outside. */
static void add_encoder(qd_net *net, const kl *k)
{
    const int64_t z = k->a.latent_channels;
    qd_feature x = qd_autoencoder_encode(net, &k->a, 2 * z);
    if (k->quant_conv)
        x = qd_autoencoder_conv1(net, "quant_conv", x, 2 * z);
    if (x.id < 0)
        return;
    const qd_node_id mean = half(net, "latent.mean", x, 0), logvar = half(net, "latent.logvar", x, z);
    const qd_node_id held = qd_graph_add(net->graph, &qd_op_clip, "latent.logvar_held", QD_IN(logvar),
                                         QD_ATTRS(QD_FLOAT("lo", -30.0), QD_FLOAT("hi", 20.0)));
    const qd_node_id logstd = qd_autoencoder_affine(net, "latent.logstd", held, 0.5, 0.0);
    const qd_node_id std = qd_graph_add(net->graph, &qd_op_exp, "latent.std", QD_IN(logstd), QD_NO_ATTRS);
    qd_graph_output(net->graph, "latent_mean",
                    qd_autoencoder_affine(net, "latent.scaled_mean", mean, k->a.scaling, -k->a.scaling * k->shift));
    qd_graph_output(net->graph, "latent_std", qd_autoencoder_affine(net, "latent.scaled_std", std, k->a.scaling, 0.0));
}

static void add_decoder(qd_net *net, const kl *k)
{
    const int64_t z = k->a.latent_channels;
    qd_feature x = qd_autoencoder_latent(net, &k->a, z, k->shift);
    if (k->post_quant_conv)
        x = qd_autoencoder_conv1(net, "post_quant_conv", x, z);
    qd_autoencoder_decode(net, &k->a, x);
}

static void add_both(qd_net *net, const void *ctx)
{
    add_encoder(net, ctx);
    add_decoder(net, ctx);
}

static qd_status kl_build(const qd_config *config, qd_weight_source *weights, const qd_run *run, qd_graph **out,
                          qd_err *err)
{
    kl k;
    const qd_status st = read_config(config, &k, err);
    if (st)
        return st;
    qd_keys_warn(config, "AutoencoderKL", known_keys, run);
    return qd_autoencoder_build(&k.a, add_both, &k, weights, run, out, err);
}

const qd_network_kind qd_kind_autoencoder_kl = {
    .name = "AutoencoderKL",
    .summary = "First stage of latent diffusion with a Gaussian code (Stable Diffusion, KL-f8).",
    .role = QD_ROLE_OTHER,
    .build = kl_build,
};
