/* op_trials.c - makers of random nodes, one for each kind of row. */
#include "prop/op_trials.h"

#include <math.h>
#include <string.h>

#include "harness/harness.h"

int64_t pick(qd_rng *r, int64_t lo, int64_t hi)
{
    return lo + (int64_t)qd_rng_below(r, (uint32_t)(hi - lo + 1));
}

static qd_shape any_shape(qd_rng *r, int lo, int hi)
{
    qd_shape s = { .rank = (int)pick(r, lo, hi) };
    for (int k = 0; k < s.rank; k++)
        s.dim[k] = pick(r, 1, 4);
    return s;
}

static void put(trial *t, qd_dtype dtype, qd_shape shape)
{
    t->in[t->node.n_inputs++] = (qd_operand){ .dtype = dtype, .shape = shape };
}

/* Puts the operand, or leaves it out. */
static void maybe(trial *t, qd_rng *r, qd_dtype dtype, qd_shape shape)
{
    if (pick(r, 0, 2))
        put(t, dtype, shape);
    else
        put(t, dtype, (qd_shape){ .rank = -1 });
}

static qd_attr *attr(trial *t, const char *name)
{
    for (int k = 0; k < t->node.n_attrs; k++)
        if (strcmp(t->node.attr[k].name, name) == 0)
            return &t->node.attr[k];
    fail_msg("operator '%s' has no attribute '%s'", t->node.op->name, name);
    return NULL;
}

static void set_ints(trial *t, qd_rng *r, const char *name, int64_t lo, int64_t hi)
{
    qd_attr *a = attr(t, name);
    for (int k = 0; k < a->n; k++)
        a->ints[k] = pick(r, lo, hi);
}

/* --- one maker for each kind of row: operands and attributes that infer must accept --- */

static void make_unary(trial *t, qd_rng *r)
{
    put(t, QD_F32, any_shape(r, 0, 5));
}

static void make_binary(trial *t, qd_rng *r)
{
    const qd_shape full = any_shape(r, 0, 5);
    qd_shape side[2] = { full, full };
    for (int k = 0; k < full.rank; k++)
        if (pick(r, 0, 1))
            side[pick(r, 0, 1)].dim[k] = 1;
    qd_shape *shorter = &side[pick(r, 0, 1)];
    const int drop = (int)pick(r, 0, full.rank);
    *shorter = qd_shape_of(full.rank - drop, shorter->dim + drop);
    put(t, QD_F32, side[0]);
    put(t, QD_F32, side[1]);
}

static void make_where(trial *t, qd_rng *r)
{
    make_binary(t, r);
    put(t, QD_F32, t->in[pick(r, 0, 1)].shape);
}

static void make_softmax(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 1, 5);
    put(t, QD_F32, x);
    attr(t, "axis")->i = pick(r, -x.rank, x.rank - 1);
}

static void make_matmul(trial *t, qd_rng *r)
{
    trial lead = *t; /* the axes before the last two broadcast as elementwise ones do */
    make_binary(&lead, r);
    const int64_t m = pick(r, 1, 5), n = pick(r, 1, 20), k = pick(r, 1, 5), ta = pick(r, 0, 1), tb = pick(r, 0, 1);
    for (int side = 0; side < 2; side++) {
        qd_shape s = lead.in[side].shape;
        const bool turned = side ? tb : ta;
        const int64_t rows = side ? k : m, cols = side ? n : k;
        s.dim[s.rank++] = turned ? cols : rows;
        s.dim[s.rank++] = turned ? rows : cols;
        put(t, QD_F32, s);
    }
    attr(t, "trans_a")->i = ta;
    attr(t, "trans_b")->i = tb;
}

static void make_linear(trial *t, qd_rng *r)
{
    const bool codes = t->node.op == &qd_op_qlinear;
    const qd_shape x = any_shape(r, 1, 4);
    const int64_t out = pick(r, 1, 20);
    put(t, codes ? pick(r, 0, 1) ? QD_U8 : QD_I8 : QD_F32, x);
    put(t, codes ? QD_I8 : QD_F32, QD_SHAPE(out, x.dim[x.rank - 1]));
    if (codes) {
        put(t, QD_F32, QD_SHAPE(out));
        attr(t, "x_scale")->f = 0.1;
        attr(t, "x_zero")->i = pick(r, 0, 127);
    }
    maybe(t, r, QD_F32, QD_SHAPE(out));
}

static void make_attention(trial *t, qd_rng *r)
{
    const int64_t n = pick(r, 1, 2), heads = pick(r, 1, 3), c = heads * pick(r, 1, 4), keys = pick(r, 1, 5);
    const bool codes = t->node.op == &qd_op_qattention;
    static const char *const maps[3][2] = { { "q_scale", "q_zero" }, { "k_scale", "k_zero" }, { "v_scale", "v_zero" } };
    for (int k = 0; k < 3; k++) {
        put(t, !codes ? QD_F32 : pick(r, 0, 1) ? QD_U8 : QD_I8, QD_SHAPE(n, k ? keys : pick(r, 1, 5), c));
        if (codes) {
            attr(t, maps[k][0])->f = 0.1;
            attr(t, maps[k][1])->i = pick(r, 0, 127);
        }
    }
    if (t->node.op != &qd_op_attention)
        attr(t, "softmax_bits")->i = pick(r, 0, 1) ? 8 : 16;
    attr(t, "heads")->i = heads;
}

static void make_timestep(trial *t, qd_rng *r)
{
    put(t, pick(r, 0, 1) ? QD_I64 : QD_F32, QD_SHAPE(pick(r, 1, 4)));
    attr(t, "dim")->i = pick(r, 2, 9);
    attr(t, "flip_sin_to_cos")->i = pick(r, 0, 1);
}

static void make_codebook(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 2, 5);
    put(t, QD_F32, x);
    put(t, QD_F32, QD_SHAPE(pick(r, 1, 9), x.dim[1]));
}

static void make_embedding(trial *t, qd_rng *r)
{
    put(t, pick(r, 0, 1) ? QD_I64 : QD_F32, QD_SHAPE(pick(r, 1, 4)));
    put(t, QD_F32, QD_SHAPE(pick(r, 1, 6), pick(r, 1, 6)));
}

static void make_conv(trial *t, qd_rng *r)
{
    const bool codes = t->node.op == &qd_op_qconv2d;
    const int64_t groups = pick(r, 1, 2), in = pick(r, 1, 2), out = groups * pick(r, 1, 3);
    put(t, codes ? pick(r, 0, 1) ? QD_U8 : QD_I8 : QD_F32,
        QD_SHAPE(pick(r, 1, 2), groups * in, pick(r, 5, 8), pick(r, 5, 8)));
    put(t, codes ? QD_I8 : QD_F32, QD_SHAPE(out, in, pick(r, 1, 3), pick(r, 1, 3)));
    if (codes) {
        put(t, QD_F32, QD_SHAPE(out));
        attr(t, "x_scale")->f = 0.1;
        attr(t, "x_zero")->i = pick(r, 0, 127);
    }
    maybe(t, r, QD_F32, QD_SHAPE(out));
    attr(t, "groups")->i = groups;
    set_ints(t, r, "stride", 1, 3);
    set_ints(t, r, "pads", 0, 4);
    set_ints(t, r, "dilation", 1, 2);
}

static void make_conv_transpose(trial *t, qd_rng *r)
{
    const int64_t groups = pick(r, 1, 2), in = groups * pick(r, 1, 2), out = pick(r, 1, 3);
    put(t, QD_F32, QD_SHAPE(pick(r, 1, 2), in, pick(r, 3, 5), pick(r, 3, 5)));
    put(t, QD_F32, QD_SHAPE(in, out, pick(r, 1, 3), pick(r, 1, 3)));
    maybe(t, r, QD_F32, QD_SHAPE(out * groups));
    attr(t, "groups")->i = groups;
    set_ints(t, r, "stride", 1, 3);
    set_ints(t, r, "pads", 0, 1);
    set_ints(t, r, "dilation", 1, 2);
    set_ints(t, r, "output_pad", 0, 2);
}

static void make_image(trial *t, qd_rng *r)
{
    put(t, QD_F32, QD_SHAPE(pick(r, 1, 2), pick(r, 1, 3), pick(r, 3, 6), pick(r, 3, 6)));
}

static void make_upsample(trial *t, qd_rng *r)
{
    make_image(t, r);
    set_ints(t, r, "factor", 1, 3);
}

static void make_pool(trial *t, qd_rng *r)
{
    make_image(t, r);
    set_ints(t, r, "kernel", 1, 3);
    set_ints(t, r, "stride", 1, 3);
    for (int k = 0; k < 4; k++)
        attr(t, "pads")->ints[k] = pick(r, 0, attr(t, "kernel")->ints[k % 2] - 1);
    if (t->node.op == &qd_op_avg_pool)
        attr(t, "count_pad")->i = pick(r, 0, 1);
}

static void make_group_norm(trial *t, qd_rng *r)
{
    qd_shape x = any_shape(r, 2, 5);
    const int64_t groups = pick(r, 1, 3);
    x.dim[1] = groups * pick(r, 1, 3);
    put(t, QD_F32, x);
    maybe(t, r, QD_F32, QD_SHAPE(x.dim[1]));
    maybe(t, r, QD_F32, QD_SHAPE(x.dim[1]));
    attr(t, "groups")->i = groups;
}

static void make_layer_norm(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 1, 5);
    const int axes = (int)pick(r, 1, x.rank);
    put(t, QD_F32, x);
    maybe(t, r, QD_F32, qd_shape_of(axes, x.dim + x.rank - axes));
    maybe(t, r, QD_F32, qd_shape_of(axes, x.dim + x.rank - axes));
    attr(t, "axes")->i = axes;
}

static void make_batch_norm(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 2, 5);
    put(t, QD_F32, x);
    for (int k = 0; k < 4; k++)
        put(t, QD_F32, QD_SHAPE(x.dim[1]));
}

static qd_dtype any_whole(qd_rng *r)
{
    static const qd_dtype all[] = { QD_F32, QD_F16, QD_BF16, QD_F64, QD_I64, QD_I32, QD_I16, QD_I8, QD_U8, QD_BOOL };
    return all[pick(r, 0, 9)];
}

static void make_reshape(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 0, 5);
    qd_attr *to = attr(t, "shape");
    put(t, any_whole(r), x);
    to->n = x.rank; /* the dims reversed, one of them to be computed, some kept where they are the same */
    for (int k = 0; k < x.rank; k++)
        to->ints[k] = x.dim[x.rank - 1 - k];
    for (int k = 0; k < x.rank; k++)
        if (to->ints[k] == x.dim[k] && pick(r, 0, 1))
            to->ints[k] = 0;
    if (x.rank)
        to->ints[pick(r, 0, x.rank - 1)] = -1;
}

static void make_permute(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 1, 5);
    qd_attr *perm = attr(t, "perm");
    put(t, any_whole(r), x);
    perm->n = x.rank;
    for (int k = 0; k < x.rank; k++) {
        const int64_t j = pick(r, 0, k);
        perm->ints[k] = perm->ints[j];
        perm->ints[j] = k;
    }
}

static void make_concat(trial *t, qd_rng *r)
{
    qd_shape x = any_shape(r, 1, 4);
    const qd_dtype dtype = any_whole(r);
    const int64_t axis = pick(r, 0, x.rank - 1);
    for (int64_t k = pick(r, 1, QD_MAX_INPUTS); k > 0; k--) {
        x.dim[axis] = pick(r, 1, 3);
        put(t, dtype, x);
    }
    attr(t, "axis")->i = axis - (pick(r, 0, 1) ? x.rank : 0);
}

static void make_slice(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 1, 4);
    const int64_t axis = pick(r, 0, x.rank - 1), dim = x.dim[axis], start = pick(r, 0, dim - 1), step = pick(r, 1, 3);
    put(t, any_whole(r), x);
    attr(t, "axis")->i = axis;
    attr(t, "start")->i = pick(r, 0, 1) ? start : start - dim;
    attr(t, "step")->i = step;
    attr(t, "length")->i = pick(r, 0, 1) ? -1 : pick(r, 1, (dim - 1 - start) / step + 1);
}

static void make_gather(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 1, 4);
    put(t, any_whole(r), x);
    put(t, QD_I64, QD_SHAPE(pick(r, 1, 5)));
    attr(t, "axis")->i = pick(r, -x.rank, x.rank - 1);
}

static void make_expand(trial *t, qd_rng *r)
{
    const qd_shape full = any_shape(r, 1, 5);
    qd_attr *to = attr(t, "shape");
    const int drop = (int)pick(r, 0, full.rank);
    qd_shape x = qd_shape_of(full.rank - drop, full.dim + drop);
    for (int k = 0; k < x.rank; k++)
        if (pick(r, 0, 1))
            x.dim[k] = 1;
    put(t, QD_F32, x);
    to->n = full.rank;
    for (int k = 0; k < full.rank; k++)
        to->ints[k] = full.dim[k];
    if (pick(r, 0, 1)) {
        put(t, any_whole(r), QD_SHAPE(full.dim[0], 2));
        to->ints[0] = 0;
    }
}

static void make_reduce(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 1, 5);
    qd_attr *axes = attr(t, "axes");
    put(t, QD_F32, x);
    for (int k = 0; k < x.rank; k++)
        if (pick(r, 0, 1))
            axes->ints[axes->n++] = pick(r, 0, 1) ? k : k - x.rank;
    attr(t, "keep")->i = pick(r, 0, 1);
}

static void make_cast(trial *t, qd_rng *r)
{
    static const qd_dtype dtypes[] = { QD_F32, QD_I64, QD_I32, QD_I8, QD_U8, QD_BOOL };
    put(t, dtypes[pick(r, 0, 5)], any_shape(r, 0, 5));
}

static void make_pad(trial *t, qd_rng *r)
{
    static const qd_dtype dtypes[] = { QD_F32, QD_U8, QD_I8 };
    const qd_shape x = any_shape(r, 1, 4);
    put(t, dtypes[pick(r, 0, 2)], x);
    attr(t, "pads")->n = 2 * x.rank;
    set_ints(t, r, "pads", 0, 2);
    attr(t, "value")->f = (double)pick(r, 0, 100);
}

static void make_map(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 2, 5);
    put(t, QD_F32, x);
    maybe(t, r, QD_F32, QD_SHAPE(x.dim[1]));
    attr(t, "scale")->f = 0.05;
    attr(t, "bits")->i = pick(r, 2, t->node.op == &qd_op_quantize ? 8 : 16);
    attr(t, "symmetric")->i = pick(r, 0, 1);
    attr(t, "zero")->i = pick(r, 0, 1);
}

static void make_dequantize(trial *t, qd_rng *r)
{
    put(t, pick(r, 0, 1) ? QD_U8 : QD_I8, any_shape(r, 0, 5));
    attr(t, "scale")->f = 0.05;
    attr(t, "zero")->i = pick(r, 0, 127);
}

/* --- rows made by differentiation: operands as the forward node has them --- */

/* The trial of the forward row, the shape of its result and so of dy; attributes of the same name are taken over. */
static qd_shape forward_of(trial *t, const qd_op *op, trial *forward, qd_rng *r)
{
    qd_err err = { 0 };
    qd_dtype dtype;
    qd_shape dy = { 0 };
    trial_make(forward, op, r);
    if (qd_op_infer(&forward->node, forward->in, &dtype, &dy, &err))
        fail_msg("%s", err.text);
    for (int k = 0; k < t->node.n_attrs; k++)
        for (int j = 0; j < forward->node.n_attrs; j++)
            if (strcmp(t->node.attr[k].name, forward->node.attr[j].name) == 0)
                t->node.attr[k] = forward->node.attr[j];
    return dy;
}

/* The forward row, and which of its operands come after dy. An operand that is left out stays left out. */
static const struct {
    const qd_op *op, *forward;
    int operand[4]; /* -1 ends; 9: the result */
} derivatives[] = {
    { &qd_op_clip_grad, &qd_op_clip, { 0, -1 } },
    { &qd_op_leaky_relu_grad, &qd_op_leaky_relu, { 0, -1 } },
    { &qd_op_softmax_grad, &qd_op_softmax, { 0, -1 } },
    { &qd_op_log_softmax_grad, &qd_op_log_softmax, { 0, -1 } },
    { &qd_op_linear_grad_input, &qd_op_linear, { 1, -1 } },
    { &qd_op_linear_grad_weight, &qd_op_linear, { 0, -1 } },
    { &qd_op_sum_like, &qd_op_add, { 0, -1 } },
    { &qd_op_reduce_grad, &qd_op_mean, { 0, -1 } },
    { &qd_op_conv2d_grad_input, &qd_op_conv2d, { 1, 0, -1 } },
    { &qd_op_conv2d_grad_weight, &qd_op_conv2d, { 0, 1, -1 } },
    { &qd_op_avg_pool_grad, &qd_op_avg_pool, { 0, -1 } },
    { &qd_op_max_pool_grad, &qd_op_max_pool, { 0, -1 } },
    { &qd_op_group_norm_grad, &qd_op_group_norm, { 0, 1, -1 } },
    { &qd_op_group_norm_grad_weight, &qd_op_group_norm, { 0, -1 } },
    { &qd_op_layer_norm_grad, &qd_op_layer_norm, { 0, 1, -1 } },
    { &qd_op_layer_norm_grad_weight, &qd_op_layer_norm, { 0, -1 } },
    { &qd_op_batch_norm_sums, &qd_op_batch_norm, { 0, 3, 4, -1 } },
    { &qd_op_batch_norm_train_sums, &qd_op_batch_norm_train, { 0, 3, -1 } },
    { &qd_op_batch_norm_stats_grad, &qd_op_batch_norm_stats, { 0, 9, -1 } },
    { &qd_op_learned_quant_grad, &qd_op_learned_quant, { 0, 1, -1 } },
    { &qd_op_learned_quant_grad_scale, &qd_op_learned_quant, { 0, 1, -1 } },
    { &qd_op_soft_round_grad, &qd_op_soft_round, { 0, -1 } },
    { &qd_op_fake_quant_grad, &qd_op_fake_quant, { 0, 1, -1 } },
    { &qd_op_pad_grad, &qd_op_pad, { -1 } },
};

static void make_derivative(trial *t, qd_rng *r)
{
    trial f;
    for (size_t k = 0; k < sizeof derivatives / sizeof *derivatives; k++) {
        if (derivatives[k].op != t->node.op)
            continue;
        const qd_shape dy = forward_of(t, derivatives[k].forward, &f, r);
        put(t, QD_F32, dy);
        for (const int *i = derivatives[k].operand; *i >= 0; i++)
            put(t, QD_F32, *i == 9 ? dy : f.in[*i].shape);
    }
}

static void make_unary_grad(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 0, 5);
    put(t, QD_F32, x);
    put(t, QD_F32, x);
    attr(t, "of")->i = pick(r, 0, QD_COS);
}

static void make_reshape_like(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 0, 5);
    qd_shape like = x;
    for (int k = 0; k < x.rank; k++)
        like.dim[k] = x.dim[x.rank - 1 - k];
    put(t, QD_F32, x);
    put(t, QD_F32, like);
}

static void make_slice_grad(trial *t, qd_rng *r)
{
    trial f;
    const qd_shape dy = forward_of(t, &qd_op_slice, &f, r);
    put(t, QD_F32, dy);
    put(t, QD_F32, f.in[0].shape);
}

static void make_gather_grad(trial *t, qd_rng *r)
{
    trial f;
    const qd_shape dy = forward_of(t, &qd_op_gather, &f, r);
    put(t, QD_F32, dy);
    put(t, pick(r, 0, 1) ? QD_I64 : QD_F32, f.in[1].shape);
    put(t, QD_F32, f.in[0].shape);
}

static void make_concat_grad(trial *t, qd_rng *r)
{
    trial f;
    const qd_shape dy = forward_of(t, &qd_op_concat, &f, r);
    put(t, QD_F32, dy);
    const int most = f.node.n_inputs < QD_MAX_INPUTS ? f.node.n_inputs : QD_MAX_INPUTS - 1;
    for (int64_t k = 0, count = pick(r, 1, most); k < count; k++)
        put(t, QD_F32, f.in[k].shape);
}

static void make_batch_train(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 2, 5);
    const bool grad = t->node.op == &qd_op_batch_norm_train_grad;
    if (grad)
        put(t, QD_F32, x);
    put(t, QD_F32, x);
    put(t, QD_F32, QD_SHAPE(x.dim[1]));
    put(t, QD_F32, grad ? QD_SHAPE(2, x.dim[1]) : QD_SHAPE(x.dim[1]));
    put(t, QD_F32, QD_SHAPE(2, x.dim[1]));
}

static void make_batch_stats(trial *t, qd_rng *r)
{
    put(t, QD_F32, any_shape(r, 2, 5));
}

static void make_learned_quant(trial *t, qd_rng *r)
{
    const qd_shape x = any_shape(r, 1, 4);
    const int64_t axis = pick(r, 0, x.rank - 1);
    put(t, QD_F32, x);
    put(t, QD_F32, pick(r, 0, 1) ? QD_SHAPE(1) : QD_SHAPE(x.dim[axis]));
    attr(t, "axis")->i = axis;
    attr(t, "bits")->i = pick(r, 2, 8);
    attr(t, "symmetric")->i = pick(r, 0, 1);
    attr(t, "pass_all")->i = pick(r, 0, 1);
}

static const struct {
    const qd_op *op;
    void (*make)(trial *t, qd_rng *r);
} makers[] = {
    { &qd_op_add, make_binary },
    { &qd_op_sub, make_binary },
    { &qd_op_mul, make_binary },
    { &qd_op_div, make_binary },
    { &qd_op_affine, make_unary },
    { &qd_op_silu, make_unary },
    { &qd_op_relu, make_unary },
    { &qd_op_gelu, make_unary },
    { &qd_op_sigmoid, make_unary },
    { &qd_op_tanh, make_unary },
    { &qd_op_clip, make_unary },
    { &qd_op_pow, make_binary },
    { &qd_op_min, make_binary },
    { &qd_op_max, make_binary },
    { &qd_op_sqrt, make_unary },
    { &qd_op_exp, make_unary },
    { &qd_op_log, make_unary },
    { &qd_op_abs, make_unary },
    { &qd_op_erf, make_unary },
    { &qd_op_sin, make_unary },
    { &qd_op_cos, make_unary },
    { &qd_op_leaky_relu, make_unary },
    { &qd_op_where, make_where },
    { &qd_op_cast, make_cast },
    { &qd_op_mean, make_reduce },
    { &qd_op_sum, make_reduce },
    { &qd_op_softmax, make_softmax },
    { &qd_op_log_softmax, make_softmax },
    { &qd_op_matmul, make_matmul },
    { &qd_op_linear, make_linear },
    { &qd_op_attention, make_attention },
    { &qd_op_qattention, make_attention },
    { &qd_op_fake_attention, make_attention },
    { &qd_op_timestep, make_timestep },
    { &qd_op_embedding, make_embedding },
    { &qd_op_codebook, make_codebook },
    { &qd_op_conv2d, make_conv },
    { &qd_op_conv_transpose2d, make_conv_transpose },
    { &qd_op_upsample, make_upsample },
    { &qd_op_avg_pool, make_pool },
    { &qd_op_max_pool, make_pool },
    { &qd_op_global_avg_pool, make_image },
    { &qd_op_group_norm, make_group_norm },
    { &qd_op_layer_norm, make_layer_norm },
    { &qd_op_batch_norm, make_batch_norm },
    { &qd_op_reshape, make_reshape },
    { &qd_op_permute, make_permute },
    { &qd_op_concat, make_concat },
    { &qd_op_slice, make_slice },
    { &qd_op_gather, make_gather },
    { &qd_op_expand, make_expand },
    { &qd_op_pad, make_pad },
    { &qd_op_quantize, make_map },
    { &qd_op_dequantize, make_dequantize },
    { &qd_op_fake_quant, make_map },
    { &qd_op_qconv2d, make_conv },
    { &qd_op_qlinear, make_linear },
    { &qd_op_less, make_binary },
    { &qd_op_detach, make_unary },
    { &qd_op_soft_round, make_unary },
    { &qd_op_batch_norm_stats, make_batch_stats },
    { &qd_op_batch_norm_train, make_batch_train },
    { &qd_op_batch_norm_train_grad, make_batch_train },
    { &qd_op_learned_quant, make_learned_quant },
    { &qd_op_unary_grad, make_unary_grad },
    { &qd_op_reshape_like, make_reshape_like },
    { &qd_op_slice_grad, make_slice_grad },
    { &qd_op_gather_grad, make_gather_grad },
    { &qd_op_concat_grad, make_concat_grad },
    { &qd_op_clip_grad, make_derivative },
    { &qd_op_leaky_relu_grad, make_derivative },
    { &qd_op_softmax_grad, make_derivative },
    { &qd_op_log_softmax_grad, make_derivative },
    { &qd_op_linear_grad_input, make_derivative },
    { &qd_op_linear_grad_weight, make_derivative },
    { &qd_op_sum_like, make_derivative },
    { &qd_op_reduce_grad, make_derivative },
    { &qd_op_conv2d_grad_input, make_derivative },
    { &qd_op_conv2d_grad_weight, make_derivative },
    { &qd_op_avg_pool_grad, make_derivative },
    { &qd_op_max_pool_grad, make_derivative },
    { &qd_op_group_norm_grad, make_derivative },
    { &qd_op_group_norm_grad_weight, make_derivative },
    { &qd_op_layer_norm_grad, make_derivative },
    { &qd_op_layer_norm_grad_weight, make_derivative },
    { &qd_op_batch_norm_sums, make_derivative },
    { &qd_op_batch_norm_train_sums, make_derivative },
    { &qd_op_batch_norm_stats_grad, make_derivative },
    { &qd_op_learned_quant_grad, make_derivative },
    { &qd_op_learned_quant_grad_scale, make_derivative },
    { &qd_op_soft_round_grad, make_derivative },
    { &qd_op_fake_quant_grad, make_derivative },
    { &qd_op_pad_grad, make_derivative },
};

bool trial_make(trial *t, const qd_op *op, qd_rng *r)
{
    if (!op->infer)
        return false;
    *t = (trial){ .node = { .op = op, .name = "node" } };
    for (int k = 0; k < QD_MAX_INPUTS; k++)
        t->in[k].shape.rank = -1;
    for (const qd_op_attr *row = op->attrs; row && row->name; row++) {
        qd_attr *a = &t->node.attr[t->node.n_attrs++];
        *a = (qd_attr){ .name = row->name, .kind = row->kind, .n = row->kind == QD_ATTR_INTS ? row->n : 0 };
        if (isnan(row->fallback))
            continue;
        a->f = row->fallback;
        if (row->kind != QD_ATTR_FLOAT)
            a->i = (int64_t)row->fallback;
        for (int k = 0; k < a->n; k++)
            a->ints[k] = a->i;
    }
    for (size_t k = 0; k < sizeof makers / sizeof *makers; k++)
        if (makers[k].op == op) {
            makers[k].make(t, r);
            return true;
        }
    fail_msg("no maker for operator '%s'", op->name);
    return false;
}
