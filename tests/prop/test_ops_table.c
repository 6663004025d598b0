/* test_ops_table.c - laws of every row of the operator table: forward writes exactly what infer says, the whole of it and nothing
 * else; and no attribute or shape a stranger may send makes infer crash, or accept what forward cannot do. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph.h"
#include "graph/op.h"
#include "prop/op_trials.h"

#define SEED 20240607u

/* --- running it between guards --- */

enum { GUARD = 64 };

/* A tensor over a block of its very own size, so that a sanitizer sees the first byte read too far. */
static void *input_tensor(qd_tensor *t, const qd_operand *in, qd_rng *r, qd_err *err)
{
    int64_t count = 0;
    check_ok(qd_shape_count(&in->shape, &count, err), err);
    const int bits = (int)qd_dtype_bits(in->dtype);
    /* Packed codes fill whole bytes for each row of the first axis. */
    const int64_t rows = bits < 8 && in->shape.rank > 1 ? in->shape.dim[0] : 1;
    const size_t bytes = (size_t)rows * qd_codes_row_bytes(count / rows, bits);
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
            if (!trial_make(&t, qd_ops[k], &r))
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
            if (!trial_make(&t, qd_ops[k], &r))
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
