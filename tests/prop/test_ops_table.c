/* test_ops_table.c - laws of every row of the operator table: forward writes exactly what infer says, the whole of it and nothing
 * else; and no attribute or shape a stranger may send makes infer crash, or accept what forward cannot do. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph.h"
#include "graph/op.h"

#define SEED 20240607u

/* One node with what it is given; operands with rank < 0 are left out. */
typedef struct trial {
    qd_node node;
    qd_operand in[QD_MAX_INPUTS];
} trial;

static int64_t pick(qd_rng *r, int64_t lo, int64_t hi)
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
    put(t, QD_F32, QD_SHAPE(n, pick(r, 1, 5), c));
    put(t, QD_F32, QD_SHAPE(n, keys, c));
    put(t, QD_F32, QD_SHAPE(n, keys, c));
    attr(t, "heads")->i = heads;
}

static void make_timestep(trial *t, qd_rng *r)
{
    put(t, pick(r, 0, 1) ? QD_I64 : QD_F32, QD_SHAPE(pick(r, 1, 4)));
    attr(t, "dim")->i = pick(r, 2, 9);
    attr(t, "flip_sin_to_cos")->i = pick(r, 0, 1);
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
    { &qd_op_cast, make_cast },
    { &qd_op_mean, make_reduce },
    { &qd_op_sum, make_reduce },
    { &qd_op_softmax, make_softmax },
    { &qd_op_log_softmax, make_softmax },
    { &qd_op_matmul, make_matmul },
    { &qd_op_linear, make_linear },
    { &qd_op_attention, make_attention },
    { &qd_op_timestep, make_timestep },
    { &qd_op_embedding, make_embedding },
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
};

/* A valid trial for the row; false for input and const, which compute nothing. A row without a maker fails the test: whoever adds
 * an operator adds its line here. */
static bool make(trial *t, const qd_op *op, qd_rng *r)
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

/* --- running it between guards --- */

enum { GUARD = 64 };

/* A tensor over a block of its very own size, so that a sanitizer sees the first byte read too far. */
static void *input_tensor(qd_tensor *t, const qd_operand *in, qd_rng *r, qd_err *err)
{
    int64_t count = 0;
    check_ok(qd_shape_count(&in->shape, &count, err), err);
    const size_t bytes = (size_t)count * qd_dtype_bits(in->dtype) / 8;
    void *data = malloc(bytes);
    assert_non_null(data);
    for (size_t k = 0; k < bytes; k++)
        ((uint8_t *)data)[k] = (uint8_t)qd_rng_below(r, 256);
    if (in->dtype == QD_F32) /* positive: variances and divisors are */
        for (int64_t k = 0; k < count; k++)
            ((float *)data)[k] = 0.1f + 3.0f * qd_rng_uniform(r);
    check_ok(qd_tensor_wrap(t, in->dtype, &in->shape, data, data, free, err), err);
    return data;
}

/* forward into a block prefilled with `fill`, guards around it; gives the block (free it). */
static uint8_t *forward_guarded(const trial *t, const qd_tensor *const *in, qd_dtype dtype, const qd_shape *shape,
                                size_t bytes, int fill)
{
    qd_err err = { 0 };
    qd_tensor out = { 0 };
    uint8_t *block = malloc(bytes + 2 * GUARD);
    assert_non_null(block);
    memset(block, 0xa5, bytes + 2 * GUARD);
    memset(block + GUARD, fill, bytes);
    check_ok(qd_tensor_wrap(&out, dtype, shape, block + GUARD, NULL, NULL, &err), &err);
    t->node.op->forward(&t->node, in, &out);
    qd_tensor_clear(&out);
    for (int k = 0; k < GUARD; k++)
        if (block[k] != 0xa5 || block[GUARD + bytes + (size_t)k] != 0xa5)
            fail_msg("%s wrote outside its result", t->node.op->name);
    return block;
}

/* The laws of one accepted trial. */
static void run(const trial *t, qd_dtype dtype, const qd_shape *shape, qd_rng *r)
{
    qd_err err = { 0 };
    qd_tensor value[QD_MAX_INPUTS] = { 0 };
    const qd_tensor *in[QD_MAX_INPUTS] = { 0 };
    int64_t count = 0;
    check_ok(qd_shape_count(shape, &count, &err), &err);
    const size_t bytes = (size_t)count * qd_dtype_bits(dtype) / 8;
    for (int k = 0; k < t->node.op->max_inputs; k++)
        if (t->in[k].shape.rank >= 0) {
            input_tensor(&value[k], &t->in[k], r, &err);
            in[k] = &value[k];
        }
    uint8_t *first = forward_guarded(t, in, dtype, shape, bytes, 0x00);
    uint8_t *second = forward_guarded(t, in, dtype, shape, bytes, 0xff);
    if (memcmp(first, second, bytes + 2 * GUARD) != 0)
        fail_msg("%s left part of its result unwritten, or gave two answers", t->node.op->name);
    free(first);
    free(second);
    for (int k = 0; k < QD_MAX_INPUTS; k++)
        qd_tensor_clear(&value[k]);
}

/* What infer accepted is a shape that can exist. */
static void check_accepted(const trial *t, qd_dtype dtype, const qd_shape *shape)
{
    char text[200];
    bool sound = (unsigned)dtype < QD_DTYPE_COUNT && shape->rank >= 0 && shape->rank <= QD_MAX_RANK;
    int64_t count = 1;
    for (int k = 0; sound && k < shape->rank; k++) {
        sound = shape->dim[k] >= 1 && shape->dim[k] <= QD_MAX_ELEMENTS / count;
        count *= sound ? shape->dim[k] : 1;
    }
    if (!sound)
        fail_msg("%s gave %s", t->node.op->name,
                 shape->rank >= 0 && shape->rank <= QD_MAX_RANK ? qd_shape_text(shape, text, sizeof text) : "no rank");
    if (t->node.op->macs && t->node.op->macs(&t->node, t->in, shape) < 0)
        fail_msg("%s costs less than nothing", t->node.op->name);
}

static void forward_writes_what_infer_says(void **state)
{
    qd_rng r;
    qd_rng_init(&r, SEED, 1);
    for (int k = 0; qd_ops[k]; k++)
        for (int again = 0; again < 60; again++) {
            trial t;
            qd_err err = { 0 };
            qd_dtype dtype = QD_F32;
            qd_shape shape = { 0 };
            if (!make(&t, qd_ops[k], &r))
                continue;
            check_ok(qd_op_infer(&t.node, t.in, &dtype, &shape, &err), &err);
            check_accepted(&t, dtype, &shape);
            run(&t, dtype, &shape, &r);
        }
}

/* --- hostile --- */

static int64_t hostile_int(qd_rng *r)
{
    static const int64_t evil[] = { 0,
                                    -1,
                                    1,
                                    2,
                                    3,
                                    -2,
                                    7,
                                    255,
                                    256,
                                    65535,
                                    65536,
                                    1 << 20,
                                    INT32_MAX,
                                    INT32_MIN,
                                    1ll << 32,
                                    1ll << 40,
                                    (1ll << 40) + 1,
                                    1ll << 62,
                                    INT64_MAX,
                                    INT64_MIN,
                                    -(1ll << 40) };
    return pick(r, 0, 2) ? evil[pick(r, 0, sizeof evil / sizeof *evil - 1)] : pick(r, -9, 9);
}

static double hostile_float(qd_rng *r)
{
    static const double evil[] = { 0.0,    -0.0,  -1.0,  NAN,    INFINITY, -INFINITY, 1e300, -1e300,
                                   1e-300, 1e-45, 1e-39, 3.4e38, 1e39,     0.5,       128.0 };
    return evil[pick(r, 0, sizeof evil / sizeof *evil - 1)];
}

/* Spoils one to three things of a valid trial. */
static void spoil(trial *t, qd_rng *r)
{
    for (int64_t times = pick(r, 1, 3); times > 0; times--) {
        qd_operand *in = &t->in[pick(r, 0, t->node.op->max_inputs - 1)];
        switch (pick(r, 0, t->node.n_attrs ? 8 : 4)) {
        case 0:
            in->shape.rank = (int)pick(r, -2, 12);
            break;
        case 1:
            in->dtype = (qd_dtype)pick(r, 0, QD_DTYPE_COUNT + 2);
            break;
        case 2:
        case 3:
            in->shape.dim[pick(r, 0, 3)] = hostile_int(r);
            break;
        case 4:
            t->node.n_inputs = (int)pick(r, 0, QD_MAX_INPUTS + 1);
            break;
        default: {
            qd_attr *a = &t->node.attr[pick(r, 0, t->node.n_attrs - 1)];
            a->i = hostile_int(r);
            a->f = hostile_float(r);
            a->ints[pick(r, 0, QD_MAX_RANK - 1)] = hostile_int(r);
            if (!pick(r, 0, 3))
                a->n = (int)pick(r, -1, QD_MAX_RANK + 2);
            break;
        }
        }
    }
    for (int k = t->node.n_inputs; k < QD_MAX_INPUTS; k++)
        t->in[k].shape.rank = -1; /* as every caller of infer has it */
}

/* Small enough to run: what infer accepts of a stranger, forward must be able to do. */
static bool small_enough(const trial *t, const qd_shape *shape)
{
    const qd_operand *in = t->in;
    int64_t largest = 1;
    for (int k = -1; k < t->node.op->max_inputs; k++) {
        const qd_shape *s = k < 0 ? shape : &in[k].shape;
        int64_t count = 1;
        for (int d = 0; d < s->rank; d++)
            count *= s->dim[d];
        largest = count > largest ? count : largest;
    }
    return largest <= 20000 && (!t->node.op->macs || t->node.op->macs(&t->node, in, shape) <= 200000);
}

static void infer_survives_strangers(void **state)
{
    qd_rng r;
    qd_rng_init(&r, SEED, 2);
    int accepted = 0, refused = 0, ran = 0;
    for (int k = 0; qd_ops[k]; k++)
        for (int again = 0; again < 10000; again++) {
            trial t;
            qd_err err = { 0 };
            qd_dtype dtype = QD_DTYPE_COUNT;
            qd_shape shape = { .rank = -7 };
            if (!make(&t, qd_ops[k], &r))
                break;
            spoil(&t, &r);
            const qd_status st = qd_op_infer(&t.node, t.in, &dtype, &shape, &err);
            if (st) {
                refused++;
                if ((st != QD_E_INVALID && st != QD_E_LIMIT) || strncmp(err.text, "node 'node' (", 13) != 0)
                    fail_msg("%s: %s: %s", t.node.op->name, qd_status_name(st), err.text);
                assert_int_equal(shape.rank, -7); /* untouched */
                continue;
            }
            accepted++;
            check_accepted(&t, dtype, &shape);
            if (small_enough(&t, &shape) && again % 4 == 0) {
                run(&t, dtype, &shape, &r);
                ran++;
            }
        }
    print_message("seed %u: refused %d, accepted %d, ran %d\n", SEED, refused, accepted, ran);
    assert_true(refused > 100000 && accepted > 10000 && ran > 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_writes_what_infer_says),
        cmocka_unit_test(infer_survives_strangers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
