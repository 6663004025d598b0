/* bench_train.c - training steps of ResNet-20 (CIFAR, batch 200) in images a second, ours and PyTorch's beside it.
 *
 * bench_train [--torch] [--profile] [--batch N]: with --torch the same steps are run by bench_train_torch.py (PyTorch must be there)
 * and the ratio is printed. One JSON line for each number of threads; medians of STEPS steps after WARM, by the
 * clock and of the processor (on a busy machine the second says more of one thread). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/cpu.h"
#include "graph/op.h"
#include "harness/harness.h"
#include "nn/nn.h"
#include "plan/plan.h"

enum { WARM = 3, STEPS = 12, CLASSES = 10 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- the network --- */

static qd_node_id weight(qd_graph *g, const char *name, const char *part, qd_shape shape, float scale, float offset)
{
    char full[128];
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    snprintf(full, sizeof full, "%s.%s", name, part);
    if (qd_tensor_init(&t, QD_F32, &shape, NULL, &err))
        return -1;
    harness_normal(qd_f32(&t), qd_tensor_count(&t), (uint64_t)qd_graph_size(g), scale);
    for (int64_t i = 0; i < qd_tensor_count(&t); i++)
        qd_f32(&t)[i] += offset;
    const qd_node_id id = qd_graph_const(g, full, &t);
    qd_tensor_clear(&t);
    return id;
}

static qd_node_id conv_norm(qd_graph *g, const char *name, qd_node_id x, int64_t in, int64_t out, int64_t kernel,
                            int64_t stride)
{
    char norm[128];
    const int64_t pad = kernel / 2, pads[4] = { pad, pad, pad, pad }, strides[2] = { stride, stride };
    const float scale = sqrtf(2.0f / (float)(out * kernel * kernel));
    x = qd_graph_add(g, &qd_op_conv2d, name,
                     QD_IN(x, weight(g, name, "weight", QD_SHAPE(out, in, kernel, kernel), scale, 0.0f)),
                     QD_ATTRS(qd_attr_ints("pads", 4, pads), qd_attr_ints("stride", 2, strides)));
    snprintf(norm, sizeof norm, "%s.bn", name);
    return qd_graph_add(g, &qd_op_batch_norm, norm,
                        QD_IN(x, weight(g, norm, "weight", QD_SHAPE(out), 0.0f, 1.0f),
                              weight(g, norm, "bias", QD_SHAPE(out), 0.0f, 0.0f),
                              weight(g, norm, "mean", QD_SHAPE(out), 0.0f, 0.0f),
                              weight(g, norm, "var", QD_SHAPE(out), 0.0f, 1.0f)),
                        QD_NO_ATTRS);
}

static qd_node_id relu(qd_graph *g, const char *name, qd_node_id x)
{
    char full[128];
    snprintf(full, sizeof full, "%s.relu", name);
    return qd_graph_add(g, &qd_op_relu, full, QD_IN(x), QD_NO_ATTRS);
}

static qd_graph *resnet20(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    const qd_shape input = QD_SHAPE(-1, 3, 32, 32);
    if (qd_graph_new(&g, &err))
        return NULL;
    qd_node_id x = qd_graph_input(g, "x", QD_F32, &input);
    x = relu(g, "stem", conv_norm(g, "stem", x, 3, 16, 3, 1));
    int64_t in = 16;
    for (int stage = 0; stage < 3; stage++)
        for (int block = 0; block < 3; block++) {
            const int64_t out = 16 << stage, stride = stage && !block ? 2 : 1;
            char a[64], b[64], c[64], sum[64];
            snprintf(a, sizeof a, "s%d.b%d.conv1", stage, block);
            snprintf(b, sizeof b, "s%d.b%d.conv2", stage, block);
            snprintf(c, sizeof c, "s%d.b%d.short", stage, block);
            snprintf(sum, sizeof sum, "s%d.b%d.sum", stage, block);
            const qd_node_id side = in == out ? x : conv_norm(g, c, x, in, out, 1, stride);
            qd_node_id y = relu(g, a, conv_norm(g, a, x, in, out, 3, stride));
            y = conv_norm(g, b, y, out, out, 3, 1);
            x = relu(g, sum, qd_graph_add(g, &qd_op_add, sum, QD_IN(y, side), QD_NO_ATTRS));
            in = out;
        }
    const int64_t flat[2] = { 0, -1 };
    x = qd_graph_add(g, &qd_op_global_avg_pool, "pool", QD_IN(x), QD_NO_ATTRS);
    x = qd_graph_add(g, &qd_op_reshape, "flat", QD_IN(x), QD_ATTRS(qd_attr_ints("shape", 2, flat)));
    x = qd_graph_add(g, &qd_op_linear, "fc",
                     QD_IN(x, weight(g, "fc", "weight", QD_SHAPE(CLASSES, 64), 0.1f, 0.0f),
                           weight(g, "fc", "bias", QD_SHAPE(CLASSES), 0.0f, 0.0f)),
                     QD_NO_ATTRS);
    qd_graph_output(g, "logits", x);
    return g;
}

static qd_status classify(void *ctx, qd_graph *g, const qd_node_id *outputs, int n, qd_node_id *loss, qd_err *err)
{
    const qd_shape target = QD_SHAPE(-1, CLASSES);
    *loss = qd_loss_cross_entropy(g, "ce", outputs[0], qd_graph_input(g, "target", QD_F32, &target));
    return QD_OK;
}

/* The same pictures every time: only the step is measured. */
static qd_status batch(void *ctx, qd_rng *rng, int64_t step, void *const *inputs, qd_err *err)
{
    const int64_t n = *(const int64_t *)ctx;
    if (step > 0)
        return QD_OK;
    harness_normal(inputs[0], n * 3 * 32 * 32, 5, 1.0f);
    for (int64_t i = 0; i < n; i++)
        ((float *)inputs[1])[i * CLASSES + i % CLASSES] = 1.0f;
    return QD_OK;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of this process, all threads together: what a busy machine leaves of one thread does not count. */
static double busy(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of PyTorch's step by the clock and of the processor, 0 when it cannot be asked. */
static double torch_step(int64_t n, int threads, double *cpu)
{
    char command[1024];
    double seconds = 0.0;
    snprintf(command, sizeof command, "/usr/bin/python3 '%s' %lld %d %d %d",
             harness_source("tests/bench/bench_train_torch.py"), (long long)n, threads, WARM, STEPS);
    FILE *f = popen(command, "r");
    if (f && fscanf(f, "%lf %lf", &seconds, cpu) != 2)
        seconds = *cpu = 0.0;
    if (f)
        pclose(f);
    return seconds;
}

static int measure(int64_t n, int threads, bool torch, bool profile)
{
    qd_err err = { 0 };
    qd_graph *g = resnet20();
    qd_trainer *t = NULL;
    double seconds[STEPS], cpu[STEPS];
    const qd_run run = { .threads = threads, .seed = 1 };
    qd_trainer_options o = { .network = g,
                             .loss = classify,
                             .batch = batch,
                             .ctx = &n,
                             .batch_size = n,
                             .optim = qd_optim_sgd.defaults,
                             .schedule = { .lr = 0.1 },
                             .profile = profile };
    o.optim.nesterov = true;
    o.optim.weight_decay = 1e-4;
    qd_status st = qd_trainer_new(&o, &run, &t, &err);
    if (!st)
        st = qd_trainer_run(t, &run, WARM, &err);
    for (int k = 0; k < STEPS && !st; k++) {
        const double start = now(), before = busy();
        st = qd_trainer_run(t, &run, WARM + k + 1, &err);
        seconds[k] = now() - start;
        cpu[k] = busy() - before;
    }
    if (st) {
        fprintf(stderr, "bench_train: %s\n", err.text);
    } else {
        qsort(seconds, STEPS, sizeof *seconds, compare);
        qsort(cpu, STEPS, sizeof *cpu, compare);
        double torch_cpu = 0.0;
        const double ours = seconds[STEPS / 2], theirs = torch ? torch_step(n, threads, &torch_cpu) : 0.0;
        printf("{\"bench\":\"train\",\"net\":\"resnet20\",\"batch\":%lld,\"threads\":%d,\"ms\":%.1f,\"cpu_ms\":%.1f,"
               "\"images_per_s\":%.0f,\"arena_mb\":%.0f",
               (long long)n, threads, ours * 1e3, cpu[STEPS / 2] * 1e3, (double)n / ours,
               (double)qd_plan_arena_bytes(qd_trainer_plan(t)) / 1048576.0);
        if (theirs > 0.0)
            printf(",\"torch_ms\":%.1f,\"torch_cpu_ms\":%.1f,\"ratio\":%.2f,\"cpu_ratio\":%.2f", theirs * 1e3,
                   torch_cpu * 1e3, theirs / ours, torch_cpu / cpu[STEPS / 2]);
        printf(",\"loss\":%.4f}\n", qd_trainer_loss(t));
        fflush(stdout);
    }
    if (!st && profile) {
        qd_buf b;
        qd_buf_init(&b, 1 << 22);
        qd_plan_print(qd_trainer_plan(t), &b);
        fwrite(b.data, 1, b.size, stdout);
        qd_buf_clear(&b);
    }
    qd_trainer_free(t);
    qd_graph_free(g);
    return st ? 1 : 0;
}

int main(int argc, char **argv)
{
    qd_cpu_prepare(argv); /* as the daemon does: the libraries read their settings while they are loaded */
    bool torch = false, profile = false;
    int64_t n = 200;
    for (int k = 1; k < argc; k++) {
        torch |= strcmp(argv[k], "--torch") == 0;
        profile |= strcmp(argv[k], "--profile") == 0;
        if (strcmp(argv[k], "--batch") == 0 && k + 1 < argc)
            n = atoll(argv[++k]);
    }
    if (n < 1)
        return 2;
    int bad = 0;
    for (int threads = 1; threads <= 2 && !bad; threads++)
        bad = measure(n, threads, torch, profile);
    return bad;
}
