/* test_trainer.c - the training loop: the steps PyTorch makes, learning that converges, and a run that was stopped and continued. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "graph/op.h"
#include "nn/nn.h"
#include "plan/plan.h"

#include "golden/nn/train_golden.h"

enum { BATCH = 4, CLASSES = 3, PIXELS = 2 * 6 * 6 };

static qd_node_id constant(qd_graph *g, const char *name, const float *data, qd_shape shape)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 }, own = { 0 };
    check_ok(qd_tensor_wrap(&t, QD_F32, &shape, data, NULL, NULL, &err), &err);
    check_ok(qd_tensor_copy(&own, &t, NULL, &err), &err);
    const qd_node_id id = qd_graph_const(g, name, &own);
    qd_tensor_clear(&own);
    qd_tensor_clear(&t);
    return id;
}

static qd_node_id batch_norm(qd_graph *g, const char *name, qd_node_id x, const float *w, const float *b)
{
    static const float zeros[4], ones[4] = { 1, 1, 1, 1 };
    char part[4][32];
    snprintf(part[0], sizeof part[0], "%s.weight", name);
    snprintf(part[1], sizeof part[1], "%s.bias", name);
    snprintf(part[2], sizeof part[2], "%s.mean", name);
    snprintf(part[3], sizeof part[3], "%s.var", name);
    return qd_graph_add(g, &qd_op_batch_norm, name,
                        QD_IN(x, constant(g, part[0], w, QD_SHAPE(4)), constant(g, part[1], b, QD_SHAPE(4)),
                              constant(g, part[2], zeros, QD_SHAPE(4)), constant(g, part[3], ones, QD_SHAPE(4))),
                        QD_NO_ATTRS);
}

/* The network of make_train.py, for inference. */
static qd_graph *network(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    const int64_t two[2] = { 2, 2 }, pads[4] = { 1, 1, 1, 1 };
    const qd_shape input = QD_SHAPE(-1, 2, 6, 6);
    check_ok(qd_graph_new(&g, &err), &err);
    qd_node_id x = qd_graph_input(g, "x", QD_F32, &input);
    x = qd_graph_add(g, &qd_op_conv2d, "c1", QD_IN(x, constant(g, "c1.weight", net_c1, QD_SHAPE(4, 2, 3, 3))),
                     QD_ATTRS(qd_attr_ints("pads", 4, pads)));
    x = qd_graph_add(g, &qd_op_relu, "r1", QD_IN(batch_norm(g, "b1", x, net_b1w, net_b1b)), QD_NO_ATTRS);
    const qd_node_id pooled = qd_graph_add(g, &qd_op_max_pool, "pool", QD_IN(x),
                                           QD_ATTRS(qd_attr_ints("kernel", 2, two), qd_attr_ints("stride", 2, two)));
    x = qd_graph_add(g, &qd_op_conv2d, "c2", QD_IN(pooled, constant(g, "c2.weight", net_c2, QD_SHAPE(4, 4, 3, 3))),
                     QD_ATTRS(qd_attr_ints("pads", 4, pads)));
    x = qd_graph_add(g, &qd_op_add, "sum", QD_IN(batch_norm(g, "b2", x, net_b2w, net_b2b), pooled), QD_NO_ATTRS);
    x = qd_graph_add(g, &qd_op_relu, "r2", QD_IN(x), QD_NO_ATTRS);
    x = qd_graph_add(g, &qd_op_global_avg_pool, "gap", QD_IN(x), QD_NO_ATTRS);
    const int64_t flat[2] = { 0, -1 };
    x = qd_graph_add(g, &qd_op_reshape, "flat", QD_IN(x), QD_ATTRS(qd_attr_ints("shape", 2, flat)));
    x = qd_graph_add(g, &qd_op_linear, "fc",
                     QD_IN(x, constant(g, "fc.weight", net_fw, QD_SHAPE(CLASSES, 4)),
                           constant(g, "fc.bias", net_fb, QD_SHAPE(CLASSES))),
                     QD_NO_ATTRS);
    qd_graph_output(g, "logits", x);
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static qd_status classify(void *ctx, qd_graph *g, const qd_node_id *outputs, int n, qd_node_id *loss, qd_err *err)
{
    const qd_shape target = QD_SHAPE(-1, CLASSES);
    *loss = qd_loss_cross_entropy(g, "ce", outputs[0], qd_graph_input(g, "target", QD_F32, &target));
    return QD_OK;
}

static qd_status golden_batch(void *ctx, qd_rng *rng, int64_t step, void *const *inputs, qd_err *err)
{
    int32_t labels[BATCH];
    for (int i = 0; i < BATCH; i++)
        labels[i] = (int32_t)net_labels[step * BATCH + i];
    memcpy(inputs[0], net_x + step * BATCH * PIXELS, BATCH * PIXELS * sizeof(float));
    qd_one_hot(inputs[1], labels, BATCH, CLASSES);
    return QD_OK;
}

/* Pictures whose class is which third of the brightness range they come from, hidden under noise. */
static qd_status synthetic_batch(void *ctx, qd_rng *rng, int64_t step, void *const *inputs, qd_err *err)
{
    int32_t labels[BATCH];
    for (int i = 0; i < BATCH; i++) {
        labels[i] = (int32_t)qd_rng_below(rng, CLASSES);
        for (int k = 0; k < PIXELS; k++)
            ((float *)inputs[0])[i * PIXELS + k] =
                (float)(labels[i] - 1) * (k / 36 ? 1.0f : -1.0f) + 2.0f * (qd_rng_uniform(rng) - 0.5f);
    }
    qd_one_hot(inputs[1], labels, BATCH, CLASSES);
    return QD_OK;
}

static qd_trainer_options options(const qd_graph *g)
{
    qd_trainer_options o = { .network = g,
                             .loss = classify,
                             .batch = golden_batch,
                             .batch_size = BATCH,
                             .optim = qd_optim_sgd.defaults,
                             .schedule = { .lr = 0.1 } };
    o.optim.nesterov = true;
    o.optim.weight_decay = 1e-3;
    return o;
}

static const float *value_of(const qd_graph *g, const char *name)
{
    return qd_f32(&qd_graph_node(g, qd_graph_find(g, name))->value);
}

static void check_golden_run(const qd_backend *backend)
{
    qd_err err = { 0 };
    qd_graph *g = network(), *after = NULL;
    qd_trainer *t = NULL;
    qd_trainer_options o = options(g);
    o.backend = backend;
    check_ok(qd_trainer_new(&o, NULL, &t, &err), &err);
    for (int k = 0; k < 5; k++) {
        check_ok(qd_trainer_run(t, NULL, k + 1, &err), &err);
        const float loss = (float)qd_trainer_loss(t);
        check_close(&loss, &net_losses[k], 1, 0.0, 1e-4); /* single precision through five steps of 1 / variance */
    }
    assert_int_equal(qd_trainer_step(t), 5);
    check_ok(qd_trainer_network(t, false, &after, &err), &err);
    check_close(value_of(after, "c1.weight"), net_c1_after, 72, 0.0, 1e-4);
    check_close(value_of(after, "fc.weight"), net_fw_after, 12, 0.0, 1e-4);
    check_close(value_of(after, "b2.weight"), net_b2w_after, 4, 0.0, 1e-4);
    check_close(value_of(after, "b2.mean"), net_mean_after, 4, 0.0, 1e-4);
    check_close(value_of(after, "b2.var"), net_var_after, 4, 0.0, 1e-4);
    qd_graph_free(after);
    qd_trainer_free(t);
    qd_graph_free(g);
}

static void steps_are_those_of_pytorch(void **state)
{
    check_golden_run(&qd_backend_ref);
    check_golden_run(&qd_backend_cpu);
}

static double accuracy(const qd_graph *g)
{
    qd_err err = { 0 };
    qd_plan *p = NULL;
    const qd_shape shape = QD_SHAPE(BATCH, 2, 6, 6);
    const qd_plan_options o = { .input_shapes = &shape, .n_inputs = 1 };
    float x[BATCH * PIXELS], target[BATCH * CLASSES], logits[BATCH * CLASSES];
    int right = 0;
    check_ok(qd_plan_compile(g, &o, &p, &err), &err);
    for (int k = 0; k < 50; k++) {
        qd_rng rng;
        qd_rng_init(&rng, 999, (uint64_t)k);
        check_ok(synthetic_batch(NULL, &rng, k, (void *[]){ x, target }, &err), &err);
        check_ok(qd_plan_run(p, NULL, (const void *[]){ x }, (void *[]){ logits }, &err), &err);
        for (int i = 0; i < BATCH; i++) {
            int best = 0;
            for (int c = 1; c < CLASSES; c++)
                best = logits[i * CLASSES + c] > logits[i * CLASSES + best] ? c : best;
            right += target[i * CLASSES + best] == 1.0f;
        }
    }
    qd_plan_free(p);
    return right / 200.0;
}

static void every_optimizer_learns(void **state)
{
    const double rates[] = { 0.02, 0.01, 0.01, 5.0 };
    for (int k = 0; qd_optims[k]; k++) {
        qd_err err = { 0 };
        qd_graph *g = network(), *after = NULL, *averaged = NULL;
        qd_trainer *t = NULL;
        qd_trainer_options o = options(g);
        o.batch = synthetic_batch;
        o.optim = qd_optims[k]->defaults;
        o.schedule = (qd_lr_schedule){ QD_LR_COSINE, .lr = rates[k], .warmup = 10, .total = 250 };
        o.clip_norm = 5.0;
        o.ema_decay = 0.9;
        check_ok(qd_trainer_new(&o, NULL, &t, &err), &err);
        check_ok(qd_trainer_run(t, NULL, 250, &err), &err);
        check_ok(qd_trainer_network(t, false, &after, &err), &err);
        check_ok(qd_trainer_network(t, true, &averaged, &err), &err);
        if (!(accuracy(g) < 0.7 && accuracy(after) > 0.9 && accuracy(averaged) > 0.9))
            fail_msg("%s: %.3f before, %.3f after, %.3f averaged", qd_optims[k]->name, accuracy(g), accuracy(after),
                     accuracy(averaged));
        qd_graph_free(averaged);
        qd_graph_free(after);
        qd_trainer_free(t);
        qd_graph_free(g);
    }
}

/* --- stopped and continued --- */

static void file_of_run(const char *path, const char *continue_from, int64_t until, const char *stop_at, bool frozen)
{
    qd_err err = { 0 };
    qd_graph *g = network();
    qd_trainer *t = NULL;
    const qd_run run = { .seed = 7 };
    qd_trainer_options o = options(g);
    o.batch = synthetic_batch;
    o.optim = qd_optim_adam.defaults;
    o.schedule.lr = 0.01;
    o.ema_decay = 0.99;
    o.batch_norm = frozen ? QD_BN_FROZEN : QD_BN_TRAIN;
    check_ok(qd_trainer_new(&o, &run, &t, &err), &err);
    if (continue_from)
        check_ok(qd_trainer_load(t, continue_from, &err), &err);
    if (stop_at) {
        check_ok(qd_trainer_run(t, &run, 13, &err), &err);
        check_ok(qd_trainer_save(t, stop_at, &err), &err);
    } else {
        check_ok(qd_trainer_run(t, &run, until, &err), &err);
        check_ok(qd_trainer_save(t, path, &err), &err);
    }
    qd_trainer_free(t);
    qd_graph_free(g);
}

static void continuing_gives_the_bytes_of_an_undisturbed_run(void **state)
{
    qd_err err = { 0 };
    for (int frozen = 0; frozen < 2; frozen++) {
        char whole[512], part[512], rest[512], a[QD_SHA256_HEX], b[QD_SHA256_HEX], c[QD_SHA256_HEX];
        const char *dir = harness_tmp();
        snprintf(whole, sizeof whole, "%s/whole.safetensors", dir);
        snprintf(part, sizeof part, "%s/part.safetensors", dir);
        snprintf(rest, sizeof rest, "%s/rest.safetensors", dir);
        file_of_run(whole, NULL, 31, NULL, frozen);
        file_of_run(NULL, NULL, 0, part, frozen);
        file_of_run(rest, part, 31, NULL, frozen);
        check_ok(qd_fs_sha256(whole, a, &err), &err);
        check_ok(qd_fs_sha256(rest, b, &err), &err);
        check_ok(qd_fs_sha256(part, c, &err), &err);
        assert_string_equal(a, b);
        assert_string_not_equal(a, c);
    }
}

static void strange_checkpoints_are_refused(void **state)
{
    qd_err err = { 0 };
    char part[512];
    qd_graph *g = network();
    qd_trainer *t = NULL;
    snprintf(part, sizeof part, "%s/part.safetensors", harness_tmp());
    file_of_run(NULL, NULL, 0, part, false);
    qd_trainer_options o = options(g);
    o.batch = synthetic_batch;
    check_ok(qd_trainer_new(&o, NULL, &t, &err), &err);
    check_fails(qd_trainer_load(t, part, &err), QD_E_CONFLICT, "optimizer 'adam', this run has 'sgd'", &err);
    qd_trainer_free(t);
    o.optim = qd_optim_adam.defaults;
    check_ok(qd_trainer_new(&o, NULL, &t, &err), &err);
    check_fails(qd_trainer_load(t, part, &err), QD_E_CONFLICT, "the seed 7, this run has 0", &err);
    qd_trainer_free(t);
    const qd_run run = { .seed = 7 };
    check_ok(qd_trainer_new(&o, &run, &t, &err), &err); /* without an average */
    check_fails(qd_trainer_load(t, part, &err), QD_E_CONFLICT, "tensors, this run has", &err);
    check_fails(qd_trainer_load(t, "/nowhere/file", &err), QD_E_NOT_FOUND, NULL, &err);
    assert_int_equal(qd_trainer_step(t), 0);
    qd_trainer_free(t);
    qd_graph_free(g);
}

/* --- what is refused, what is survived --- */

static qd_status bad_batch(void *ctx, qd_rng *rng, int64_t step, void *const *inputs, qd_err *err)
{
    qd_status st = synthetic_batch(ctx, rng, step, inputs, err);
    if (step == 3)
        ((float *)inputs[0])[5] = NAN;
    return st;
}

static void a_loss_that_is_no_number_stops_the_run(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = network();
    qd_trainer *t = NULL;
    qd_trainer_options o = options(g);
    o.batch = bad_batch;
    check_ok(qd_trainer_new(&o, NULL, &t, &err), &err);
    check_fails(qd_trainer_run(t, NULL, 9, &err), QD_E_NUMERIC, "step 3", &err);
    assert_int_equal(qd_trainer_step(t), 3);
    qd_trainer_free(t);
    o.batch_size = 0;
    check_fails(qd_trainer_new(&o, NULL, &t, &err), QD_E_INVALID, "batch must have", &err);
    o.batch_size = 2;
    o.optim.rule = NULL;
    check_fails(qd_trainer_new(&o, NULL, &t, &err), QD_E_INVALID, "optimizer", &err);
    qd_graph_free(g);
}

static bool nothing(void *ctx, const char *name)
{
    return false;
}

static bool only_fc(void *ctx, const char *name)
{
    return strncmp(name, "fc.", 3) == 0;
}

static void what_does_not_train_stays(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = network(), *after = NULL;
    qd_trainer *t = NULL;
    qd_trainer_options o = options(g);
    o.trains = nothing;
    check_fails(qd_trainer_new(&o, NULL, &t, &err), QD_E_INVALID, "no weights to train", &err);
    o.trains = only_fc;
    o.batch_norm = QD_BN_FROZEN;
    check_ok(qd_trainer_new(&o, NULL, &t, &err), &err);
    check_ok(qd_trainer_run(t, NULL, 3, &err), &err);
    check_ok(qd_trainer_network(t, false, &after, &err), &err);
    check_fails(qd_trainer_network(t, true, &after, &err), QD_E_INVALID, "ema_decay", &err);
    assert_memory_equal(value_of(after, "c1.weight"), net_c1, sizeof net_c1);
    assert_memory_equal(value_of(after, "b1.mean"), value_of(g, "b1.mean"), 16);
    assert_memory_not_equal(value_of(after, "fc.weight"), net_fw, sizeof net_fw);
    qd_graph_free(after);
    qd_trainer_free(t);
    qd_graph_free(g);
}

static qd_status make_and_step(void *ctx, qd_err *err)
{
    qd_trainer_options o = options(ctx);
    qd_trainer *t = NULL;
    o.backend = &qd_backend_ref;
    o.ema_decay = 0.9;
    qd_status st = qd_trainer_new(&o, NULL, &t, err);
    if (!st)
        st = qd_trainer_run(t, NULL, 1, err);
    qd_trainer_free(t);
    return st;
}

static void memory_may_end_anywhere(void **state)
{
    qd_graph *g = network();
    assert_true(harness_run_each_alloc(make_and_step, g, 5000) > 10);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_those_of_pytorch),
        cmocka_unit_test(every_optimizer_learns),
        cmocka_unit_test(continuing_gives_the_bytes_of_an_undisturbed_run),
        cmocka_unit_test(strange_checkpoints_are_refused),
        cmocka_unit_test(a_loss_that_is_no_number_stops_the_run),
        cmocka_unit_test(what_does_not_train_stays),
        cmocka_unit_test(memory_may_end_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
