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
/* A tensor that the network has no use for, if the file holds it: it does not count as left over. */
void qd_weight_source_drop(qd_weight_source *s, const char *name);
/* Is there a file? Then its tensors by the names they have there; NULL when there is no such tensor. */
bool qd_weight_source_is_file(const qd_weight_source *s);
const qd_tensor *qd_weight_source_peek(const qd_weight_source *s, const char *file_name);

#define QD_NN_NAME 160 /* longest node name and its NUL */

/* Where a file with names of its own keeps a tensor. */
typedef struct qd_weight_place {
    char name[QD_NN_NAME]; /* there */
    int64_t heads;         /* 0 = the whole tensor; else it holds three of them as rows [heads, 3, rows / heads] */
    int part;              /* 0..2, which of the three */
} qd_weight_place;
/* Builders ask for diffusers names; `locate` says where the file keeps them, false when it has no word for one. A tensor found
 * that way may have trailing dims of 1 more than asked for. Tensors of the file whose names do not begin with `scope` may be left
 * over. ctx must live until building ends, when locate goes back to NULL (names as they are) and the scope stays. */
typedef bool (*qd_weight_locate)(const void *ctx, const char *name, qd_weight_place *out);
void qd_weight_source_rename(qd_weight_source *s, qd_weight_locate locate, const void *ctx, const char *scope);

/* Beginnings of names, ours and a file's; ends with NULL. */
typedef struct qd_rename_row {
    const char *ours, *theirs;
} qd_rename_row;
/* "<before><theirs><what follows ours>" by the first row that `name` begins with; false when there is none, or no room. */
bool qd_rename_by(const qd_rename_row *rows, const char *before, const char *name, char out[QD_NN_NAME]);

/* --- ddpm_names.c: names of the original DDPM code, which the first stages of latent diffusion use too --- */
typedef struct qd_ddpm_names {
    char prefix[32];
    int levels;
} qd_ddpm_names;
/* If the file holds `probe` under such a prefix, builders find its tensors until _done, and *n must live till then. */
void qd_ddpm_names_use(qd_ddpm_names *n, qd_weight_source *s, const char *probe, int levels);
void qd_ddpm_names_done(const qd_ddpm_names *n, qd_weight_source *s);

/* --- keys.c: what several networks read from their configs --- */

#define QD_NN_MAX_LEVELS 11 /* 2^10 divides no image side above 1024 more often */
#define QD_NN_MAX_LAYERS 64
#define QD_NN_MAX_CHANNELS 8192
#define QD_NN_MAX_SIDE 1024

/* Keys that mean nothing to the class go to run's warn. known ends with NULL; keys with '_' in front are the writer's notes. */
void qd_keys_warn(const qd_config *c, const char *class_name, const char *const *known, const qd_run *run);
/* Present and null, which for some keys differs from absent. */
bool qd_keys_null(const qd_config *c, const char *key);
/* One of `names` (NULL-terminated): its index. *out is the default. */
qd_status qd_keys_choice(const qd_config *c, const char *key, const char *const *names, int *out, qd_err *err);
/* Activation "silu", "swish", "relu" or "gelu". *out is the default. */
qd_status qd_keys_act(const qd_config *c, const char *key, const qd_op **out, qd_err *err);
/* Refuses the first of the keys (NULL-terminated) that asks for something: is there, not null, not false. */
qd_status qd_keys_refuse(const qd_config *c, const char *const *keys, qd_err *err);
/* A number for each of `levels`, or one for all. out holds the defaults. */
qd_status qd_keys_per_level(const qd_config *c, const char *key, int64_t min, int64_t max, int64_t *out, int levels,
                            qd_err *err);
/* sample_size, one or two numbers; both sides multiples of 2^(levels - 1). fallback 0 = the key must be there. */
qd_status qd_keys_size(const qd_config *c, int levels, int64_t fallback, int64_t *height, int64_t *width, qd_err *err);
/* norm_num_groups must divide all channels; words for a norm that cannot be, with the key at fault. */
qd_status qd_keys_check_groups(int64_t groups, const int64_t *channels, int levels, qd_err *err);

/* What follows each resnet of a block. */
typedef enum qd_attend { QD_ATTEND_NONE, QD_ATTEND_SPATIAL, QD_ATTEND_TRANSFORMER } qd_attend;

/* A row for each kind of down and up block a class knows; the table ends with name NULL. */
typedef struct qd_block_kind {
    const char *name;
    bool up, resnet_resampling;
    qd_attend attend;
} qd_block_kind;

/* down_block_types, up_block_types and block_out_channels, which must agree in length. The arrays hold *levels defaults. */
typedef struct qd_levels {
    int n;
    const char *down_names[QD_NN_MAX_LEVELS], *up_names[QD_NN_MAX_LEVELS];
    const qd_block_kind *down[QD_NN_MAX_LEVELS], *up[QD_NN_MAX_LEVELS];
    int64_t channels[QD_NN_MAX_LEVELS];
} qd_levels;
qd_status qd_keys_levels(const qd_config *c, const qd_block_kind *kinds, qd_levels *l, qd_err *err);

/* --- carried.c --- */

/* A copy of a graph that came with the model, without what no output needs, and what it is for. A denoiser's inputs and output get the
 * names of nn.h. */
qd_status qd_carried_graph(const qd_graph *g, qd_graph **out, qd_role *role, qd_err *err);

/* --- blocks.c --- */

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

/* The constant "<name><suffix>", in the file "<file><suffix>" (file NULL: the same). -1 when it cannot be had. */
qd_node_id qd_net_constant(qd_net *net, const char *name, const char *file, const char *suffix, qd_shape shape,
                           qd_init init, int64_t fan_in);
/* Layers. Node name = name; constants "<file>.weight" and "<file>.bias", where file is the prefix in the weight file (and
 * name when NULL), stored under the node's name. */
qd_node_id qd_net_linear(qd_net *net, const char *name, const char *file, qd_node_id x, int64_t in, int64_t out);
qd_node_id qd_net_matrix(qd_net *net, const char *name, qd_node_id x, int64_t in, int64_t out); /* no bias */
qd_node_id qd_net_layer_norm(qd_net *net, const char *name, qd_node_id x, int64_t width);
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
/* linear_1, act, linear_2 below `name`. */
qd_node_id qd_net_time_mlp(qd_net *net, const char *name, const qd_op *act, qd_node_id x, int64_t in, int64_t width);
/* [N, C, H, W] to [N, HW, C] under "<name>.tokens" and back under "<name>.image". */
qd_node_id qd_net_to_tokens(qd_net *net, const char *name, qd_feature x);
qd_feature qd_net_to_image(qd_net *net, const char *name, qd_node_id tokens, qd_feature like);

/* --- transformer.c --- */

typedef struct qd_transformer {
    int64_t heads;      /* each channels / heads wide */
    int64_t depth;      /* basic blocks */
    bool linear;        /* projections are linear layers instead of 1x1 convolutions */
    bool only_cross;    /* the first attention looks at the context too */
    qd_node_id context; /* [N, S, context_dim] */
    int64_t context_dim;
} qd_transformer;
/* 2.6. Its input norm has eps 1e-6 whatever the network's is. */
qd_feature qd_net_transformer(qd_net *net, const char *name, qd_feature x, const qd_transformer *t);

/* --- unet.c: the skeleton all denoising U-Nets share --- */

typedef enum qd_class_embed {
    QD_CLASS_NONE,
    QD_CLASS_TABLE,
    QD_CLASS_TIMESTEP,   /* sines and an MLP of its own */
    QD_CLASS_IDENTITY,   /* [N, time_dim], added as it is */
    QD_CLASS_PROJECTION, /* [N, class_width] through an MLP */
    QD_CLASS_LINEAR,     /* [N, class_width] through one layer */
} qd_class_embed;

typedef struct qd_unet_block {
    qd_attend attend;
    bool resnet_resampling; /* into the next block: by a resnet instead of a convolution */
    int64_t channels;
    int64_t layers;   // resnets
    int64_t head_dim; // SPATIAL: width of a head
    int64_t heads;    // TRANSFORMER
    int64_t depth;    // TRANSFORMER: basic blocks
    bool only_cross;  // TRANSFORMER
} qd_unet_block;

/* What the readers of configs fill in. */
typedef struct qd_unet {
    int64_t height, width, in_channels, out_channels;
    int64_t kernel_in, kernel_out; // of conv_in and conv_out, odd
    bool center_input;
    bool learned_time; /* a table of time steps instead of sines */
    int64_t time_rows;
    double freq_shift;
    bool flip_sin_to_cos;
    int64_t time_dim; // width of the time embedding
    qd_class_embed classes;
    int64_t class_rows, class_width;
    bool class_concat; /* beside the time embedding instead of added to it */
    int levels;
    qd_unet_block down[QD_NN_MAX_LEVELS], mid, up[QD_NN_MAX_LEVELS]; /* up in order of use; mid.layers 0 = no middle */
    double mid_scale;
    int64_t mid_groups; // of a SPATIAL middle; 0 = no norm
    int64_t downsample_padding;
    bool linear_projection;
    int64_t context_length, context_dim; // [N, S, D]; 0 = takes no context
    const qd_op *act;                    /* of resnets */
    const qd_op *time_act, *out_act;     /* of the embeddings' MLPs; before conv_out */
    int64_t groups;
    double eps;
    bool scale_shift;
} qd_unet;

/* Inputs sample, timestep, then encoder_hidden_states when there is a context, then class_labels when there are classes. */
qd_status qd_unet_build(const qd_unet *u, qd_weight_source *weights, const qd_run *run, qd_graph **out, qd_err *err);
/* The keys UNet2DModel and UNet2DConditionModel read alike; u->levels and channels are set, the rest holds defaults. */
qd_status qd_unet_read(const qd_config *c, qd_unet *u, qd_err *err);

/* Where class-conditional latent diffusion keeps the table of contexts. */
#define QD_LDM_CLASS_TABLE "cond_stage_model.embedding.weight"

/* --- conv_bn.c: what convolutional classifiers are made of --- */

typedef struct qd_conv_bn {
    int64_t out, kernel, stride, groups; // square, half a kernel of padding
    const qd_op *act;                    /* &qd_op_relu, &qd_op_clip for ReLU6, NULL = none */
} qd_conv_bn;
/* Convolution without bias, batch norm (eps 1e-5, running statistics), activation, under the names they have in the file; the
 * activation is "<bn>.act". The counter of batches that training leaves beside a norm is dropped. */
qd_feature qd_net_conv_bn(qd_net *net, const char *conv, const char *bn, qd_feature x, const qd_conv_bn *c);
/* Mean over space: [N, C, H, W] to [N, C]. */
qd_node_id qd_net_mean(qd_net *net, const char *name, qd_feature x);
/* Input "input" [-1, channels, side, side] f32, unless building has failed. */
qd_feature qd_net_picture(qd_net *net, int64_t channels, int64_t side);
/* The shape of a tensor of the file, its name put together; rank -1 when there is none. */
qd_shape qd_net_shape_of(const qd_weight_source *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* --- one row each: unet2d.c, unet2d_condition.c, ldm.c, autoencoder_kl.c, vq_model.c, resnet.c, dwnet.c, layernorm_unet.c --- */
extern const qd_network_kind qd_kind_unet2d, qd_kind_unet2d_condition, qd_kind_ldm, qd_kind_autoencoder_kl,
    qd_kind_vq_model, qd_kind_resnet, qd_kind_dwnet, qd_kind_layernorm_unet;

#endif
