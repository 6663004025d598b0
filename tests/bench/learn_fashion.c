/* learn_fashion.c - the proof that training trains: a small network on Fashion-MNIST, from random weights to test accuracy.
 *
 * learn_fashion [STEPS]: 400 by default, batch 128, Adam with a cosine schedule. One JSON line; exit status 1 when the test accuracy is
 * not above 85 %. Prints "skipped: .." and leaves with 77 when the data set is not there. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "data/data.h"
#include "graph/op.h"
#include "harness/harness.h"
#include "nn/nn.h"
#include "plan/plan.h"

enum { BATCH = 128, CLASSES = 10, SIDE = 28, PIXELS = SIDE * SIDE };

static const qd_pixel_scale scale = { .channels = 1, .mean = { 0.2860f }, .std = { 0.3530f } };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static qd_node_id weight(qd_graph *g, const char *name, const char *part, qd_shape shape, float spread, float offset)
{
    char full[128];
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    snprintf(full, sizeof full, "%s.%s", name, part);
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    harness_normal(qd_f32(&t), qd_tensor_count(&t), (uint64_t)qd_graph_size(g), spread);
    for (int64_t i = 0; i < qd_tensor_count(&t); i++)
        qd_f32(&t)[i] += offset;
    const qd_node_id id = qd_graph_const(g, full, &t);
    qd_tensor_clear(&t);
    return id;
}

/* conv 3x3, batch norm, ReLU, then pooled by two. */
static qd_node_id stage(qd_graph *g, const char *name, qd_node_id x, int64_t in, int64_t out)
{
    char part[3][32];
    const int64_t pads[4] = { 1, 1, 1, 1 }, two[2] = { 2, 2 };
    snprintf(part[0], sizeof part[0], "%s.bn", name);
    snprintf(part[1], sizeof part[1], "%s.relu", name);
    snprintf(part[2], sizeof part[2], "%s.pool", name);
    x = qd_graph_add(g, &qd_op_conv2d, name,
                     QD_IN(x, weight(g, name, "weight", QD_SHAPE(out, in, 3, 3), sqrtf(2.0f / (float)(in * 9)), 0.0f)),
                     QD_ATTRS(qd_attr_ints("pads", 4, pads)));
    x = qd_graph_add(g, &qd_op_batch_norm, part[0],
                     QD_IN(x, weight(g, part[0], "weight", QD_SHAPE(out), 0.0f, 1.0f),
                           weight(g, part[0], "bias", QD_SHAPE(out), 0.0f, 0.0f),
                           weight(g, part[0], "mean", QD_SHAPE(out), 0.0f, 0.0f),
                           weight(g, part[0], "var", QD_SHAPE(out), 0.0f, 1.0f)),
                     QD_NO_ATTRS);
    x = qd_graph_add(g, &qd_op_relu, part[1], QD_IN(x), QD_NO_ATTRS);
    return qd_graph_add(g, &qd_op_max_pool, part[2], QD_IN(x),
                        QD_ATTRS(qd_attr_ints("kernel", 2, two), qd_attr_ints("stride", 2, two)));
}

static qd_graph *network(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    const qd_shape input = QD_SHAPE(-1, 1, SIDE, SIDE);
    const int64_t flat[2] = { 0, -1 };
    check_ok(qd_graph_new(&g, &err), &err);
    qd_node_id x = qd_graph_input(g, "x", QD_F32, &input);
    x = stage(g, "c3", stage(g, "c2", stage(g, "c1", x, 1, 16), 16, 32), 32, 64);
    x = qd_graph_add(g, &qd_op_reshape, "flat", QD_IN(x), QD_ATTRS(qd_attr_ints("shape", 2, flat)));
    x = qd_graph_add(g, &qd_op_linear, "fc",
                     QD_IN(x, weight(g, "fc", "weight", QD_SHAPE(CLASSES, 64 * 9), 0.03f, 0.0f),
                           weight(g, "fc", "bias", QD_SHAPE(CLASSES), 0.0f, 0.0f)),
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

static qd_status batch(void *ctx, qd_rng *rng, int64_t step, void *const *inputs, qd_err *err)
{
    const qd_dataset *d = ctx;
    int64_t image[BATCH];
    int32_t labels[BATCH];
    for (int i = 0; i < BATCH; i++) {
        image[i] = qd_rng_below(rng, (uint32_t)d->count);
        labels[i] = qd_dataset_label(d, image[i]);
    }
    qd_dataset_floats(inputs[0], d, image, 0, BATCH, &scale);
    qd_one_hot(inputs[1], labels, BATCH, CLASSES);
    return QD_OK;
}

static double accuracy(const qd_graph *g, const qd_dataset *d)
{
    enum { N = 200 };
    static float x[N * PIXELS], logits[N * CLASSES];
    qd_err err = { 0 };
    qd_plan *p = NULL;
    int64_t right = 0;
    const qd_shape shape = QD_SHAPE(N, 1, SIDE, SIDE);
    const qd_plan_options o = { .input_shapes = &shape, .n_inputs = 1, .threads = 2 };
    check_ok(qd_plan_compile(g, &o, &p, &err), &err);
    for (int64_t first = 0; first + N <= d->count; first += N) {
        qd_dataset_floats(x, d, NULL, first, N, &scale);
        check_ok(qd_plan_run(p, NULL, (const void *[]){ x }, (void *[]){ logits }, &err), &err);
        for (int64_t i = 0; i < N; i++) {
            int best = 0;
            for (int c = 1; c < CLASSES; c++)
                best = logits[i * CLASSES + c] > logits[i * CLASSES + best] ? c : best;
            right += best == qd_dataset_label(d, first + i);
        }
    }
    qd_plan_free(p);
    return (double)right / (double)(d->count / N * N);
}

static qd_dataset *open_set(const char *name)
{
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    const qd_data_limits limits = { .max_bytes = 256u << 20, .max_count = 100000 };
    char relative[128];
    snprintf(relative, sizeof relative, "datasets/fashion-mnist/%s-images-idx3-ubyte.gz", name);
    const char *path = harness_data(relative);
    if (!path)
        exit(77);
    check_ok(qd_dataset_open(path, &limits, NULL, &d, &err), &err);
    return d;
}

int main(int argc, char **argv)
{
    qd_cpu_prepare(argv); /* as the daemon does: the libraries read their settings while they are loaded */
    qd_err err = { 0 };
    const int64_t steps = argc > 1 ? atoll(argv[1]) : 400;
    qd_dataset *train = open_set("train"), *test = open_set("t10k");
    qd_graph *g = network(), *after = NULL;
    qd_trainer *t = NULL;
    const qd_run run = { .seed = 1, .threads = 2 };
    qd_trainer_options o = { .network = g,
                             .loss = classify,
                             .batch = batch,
                             .ctx = train,
                             .batch_size = BATCH,
                             .optim = qd_optim_adam.defaults,
                             .schedule = { QD_LR_COSINE, .lr = 3e-3, .warmup = steps / 20, .total = steps } };
    check_ok(qd_trainer_new(&o, &run, &t, &err), &err);
    const double start = now();
    check_ok(qd_trainer_run(t, &run, steps, &err), &err);
    const double seconds = now() - start;
    check_ok(qd_trainer_network(t, false, &after, &err), &err);
    const double before = accuracy(g, test), score = accuracy(after, test);
    printf(
        "{\"bench\":\"learn_fashion\",\"steps\":%lld,\"batch\":%d,\"seconds\":%.1f,\"loss\":%.4f,\"accuracy_before\":%.4f,"
        "\"accuracy\":%.4f}\n",
        (long long)steps, BATCH, seconds, qd_trainer_loss(t), before, score);
    qd_graph_free(after);
    qd_trainer_free(t);
    qd_graph_free(g);
    qd_dataset_free(test);
    qd_dataset_free(train);
    return score > 0.85 ? 0 : 1;
}
