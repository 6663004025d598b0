/* nn_int.h - the room's own: taking weights, and the blocks of diffusion_models.md 2 as functions that add nodes. */
#ifndef QD_NN_NN_INT_H
#define QD_NN_NN_INT_H

#include "nn/nn.h"

/* --- weights.c --- */

/* How a tensor is filled when there is no file. */
typedef enum qd_init {
    QD_INIT_ZERO,
    QD_INIT_ONE,
    QD_INIT_UNIFORM, /* U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for linear and conv, weight and bias */
    QD_INIT_NORMAL,  /* N(0, 1): PyTorch's default for embeddings */
} qd_init;

/* The tensor `name` as F32 of exactly `shape`. Words name the tensor and, for a wrong shape, both shapes. */
qd_status qd_weight_source_take(qd_weight_source *s, const char *name, const qd_shape *shape, qd_init init,
                                int64_t fan_in, qd_tensor *out, qd_err *err);
/* Does the file hold it? Always false for sources without a file. */
bool qd_weight_source_has(const qd_weight_source *s, const char *name);

/* --- blocks.c --- */

#define QD_NN_NAME 160 /* longest node name and its NUL */

/* An image value on its way through the network: [N, channels, height, width]. id -1 = building has failed. */
typedef struct qd_feature {
    qd_node_id id;
    int64_t channels, height, width;
} qd_feature;

/* What all blocks of one network share. */
typedef struct qd_net {
    qd_graph *graph;
    qd_weight_source *weights;
    const qd_op *act; /* of the resnets */
    int64_t groups;   /* of their norms */
    double eps;       /* of all norms */
    bool scale_shift; /* the time embedding scales and shifts norm2's result instead of being added before it */
    qd_node_id temb;  /* act(time embedding) [N, temb_channels], made once; -1 = none */
    int64_t temb_channels;
} qd_net;

typedef enum qd_resample { QD_RESAMPLE_NONE, QD_RESAMPLE_DOWN, QD_RESAMPLE_UP } qd_resample;

/* Layers. Node name = name; constants "<file>.weight" and "<file>.bias", where file is the prefix in the weight file (and
 * name when NULL), stored under the node's name. */
qd_node_id qd_net_linear(qd_net *net, const char *name, const char *file, qd_node_id x, int64_t in, int64_t out);
qd_feature qd_net_conv(qd_net *net, const char *name, qd_feature x, int64_t out, int64_t kernel, int64_t stride,
                       const int64_t pads[4]);
qd_feature qd_net_group_norm(qd_net *net, const char *name, qd_feature x, int64_t groups);
qd_node_id qd_net_embedding(qd_net *net, const char *name, qd_node_id index, int64_t rows, int64_t width);

/* 2.3. The value's name is the block's. scale: output_scale_factor. */
qd_feature qd_net_resnet(qd_net *net, const char *name, qd_feature x, int64_t out, qd_resample resample, double scale);
/* 2.5. groups 0 = no group_norm. head_dim: width of a head; C / head_dim heads. Takes old key names too. */
qd_feature qd_net_attention(qd_net *net, const char *name, qd_feature x, int64_t head_dim, int64_t groups,
                            double scale);
/* 2.4. padding 0 = one zero at the right and the bottom, 1 = one all around. Conv at "<name>.conv". */
qd_feature qd_net_downsample(qd_net *net, const char *name, qd_feature x, int64_t padding);
qd_feature qd_net_upsample(qd_net *net, const char *name, qd_feature x);
qd_feature qd_net_concat(qd_net *net, const char *name, qd_feature a, qd_feature b);
/* linear_1, SiLU, linear_2 below `name`. */
qd_node_id qd_net_time_mlp(qd_net *net, const char *name, qd_node_id x, int64_t in, int64_t width);

/* --- unet2d.c --- */
extern const qd_network_kind qd_kind_unet2d;

#endif
