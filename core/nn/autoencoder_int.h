/* autoencoder_int.h - what the two first stages of latent diffusion share: encoder and decoder (diffusion_models.md 5). */
#ifndef QD_NN_AUTOENCODER_INT_H
#define QD_NN_AUTOENCODER_INT_H

#include "nn/nn_int.h"

typedef struct qd_autoencoder {
    int64_t height, width; // of images
    int64_t in_channels, out_channels, latent_channels;
    int levels;
    int64_t channels[QD_NN_MAX_LEVELS];
    bool down_attention[QD_NN_MAX_LEVELS], up_attention[QD_NN_MAX_LEVELS]; /* up in order of use */
    bool mid_attention;
    int64_t layers; // resnets of an encoder's level; the decoder has one more
    const qd_op *act;
    int64_t groups;
    double scaling; // latents outside are this times those inside
} qd_autoencoder;

/* The keys both classes share; *a is filled but for `scaling`, which holds its default, and latent_channels, which does too. */
qd_status qd_autoencoder_read(const qd_config *c, qd_autoencoder *a, qd_err *err);

/* A new graph made by add(net, ctx), of blocks without a time embedding; names as the file has them. */
qd_status qd_autoencoder_build(const qd_autoencoder *a, void (*add)(qd_net *net, const void *ctx), const void *ctx,
                               qd_weight_source *weights, const qd_run *run, qd_graph **out, qd_err *err);
/* From the new input "sample", images in [-1, 1], to `out` channels below "encoder". */
qd_feature qd_autoencoder_encode(qd_net *net, const qd_autoencoder *a, int64_t out);
/* The new input "latent" of that many channels, divided by the scaling, plus shift. */
qd_feature qd_autoencoder_latent(qd_net *net, const qd_autoencoder *a, int64_t channels, double shift);
/* From x to the output "image", about [-1, 1], below "decoder". */
void qd_autoencoder_decode(qd_net *net, const qd_autoencoder *a, qd_feature x);
qd_feature qd_autoencoder_conv1(qd_net *net, const char *name, qd_feature x, int64_t out);
/* x * mul + add under that name. */
qd_node_id qd_autoencoder_affine(qd_net *net, const char *name, qd_node_id x, double mul, double add);

#endif
