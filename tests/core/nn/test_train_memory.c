/* test_train_memory.c - what training takes: made again instead of kept, within a budget that is never passed, refused with what would fit. */
#include "harness/harness.h"

#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fs.h"
#include "graph/op.h"
#include "nn/nn.h"
#include "plan/plan.h"

enum { BLOCKS = 8, CHANNELS = 32, SIDE = 16, CLASSES = 4, BATCH = 24 };

static qd_node_id constant(qd_graph *g, const char *name, const char *part, qd_shape shape, float scale, float offset)
{
    char full[64];
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    snprintf(full, sizeof full, "%s.%s", name, part);
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    harness_normal(qd_f32(&t), qd_tensor_count(&t), (uint64_t)qd_graph_size(g), scale);
    for (int64_t i = 0; i < qd_tensor_count(&t); i++)
        qd_f32(&t)[i] += offset;
    const qd_node_id id = qd_graph_const(g, full, &t);
    qd_tensor_clear(&t);
    return id;
}

static qd_node_id conv_norm(qd_graph *g, const char *name, qd_node_id x, int64_t in)
{
    char norm[64];
    const int64_t pads[4] = { 1, 1, 1, 1 };
    x = qd_graph_add(
        g, &qd_op_conv2d, name,
        QD_IN(x, constant(g, name, "weight", QD_SHAPE(CHANNELS, in, 3, 3), sqrtf(2.0f / (9.0f * CHANNELS)), 0.0f)),
        QD_ATTRS(qd_attr_ints("pads", 4, pads)));
    snprintf(norm, sizeof norm, "%s.bn", name);
    return qd_graph_add(g, &qd_op_batch_norm, norm,
                        QD_IN(x, constant(g, norm, "weight", QD_SHAPE(CHANNELS), 0.0f, 1.0f),
                              constant(g, norm, "bias", QD_SHAPE(CHANNELS), 0.0f, 0.0f),
                              constant(g, norm, "mean", QD_SHAPE(CHANNELS), 0.0f, 0.0f),
                              constant(g, norm, "var", QD_SHAPE(CHANNELS), 0.0f, 1.0f)),
                        QD_NO_ATTRS);
}

/* Residual blocks, whose ends are named "end.<number>". */
static qd_graph *network(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    const qd_shape in = QD_SHAPE(-1, 3, SIDE, SIDE);
    const int64_t flat[2] = { 0, -1 };
    check_ok(qd_graph_new(&g, &err), &err);
    qd_node_id x = conv_norm(g, "stem", qd_graph_input(g, "x", QD_F32, &in), 3);
    for (int k = 0; k < BLOCKS; k++) {
        char a[32], b[32], relu[32], sum[32], end[32];
        snprintf(a, sizeof a, "b%d.conv1", k);
        snprintf(b, sizeof b, "b%d.conv2", k);
        snprintf(relu, sizeof relu, "b%d.relu", k);
        snprintf(sum, sizeof sum, "b%d.sum", k);
        snprintf(end, sizeof end, "end.%d", k);
        qd_node_id y = qd_graph_add(g, &qd_op_relu, relu, QD_IN(conv_norm(g, a, x, CHANNELS)), QD_NO_ATTRS);
        y = qd_graph_add(g, &qd_op_add, sum, QD_IN(x, conv_norm(g, b, y, CHANNELS)), QD_NO_ATTRS);
        x = qd_graph_add(g, &qd_op_relu, end, QD_IN(y), QD_NO_ATTRS);
    }
    x = qd_graph_add(g, &qd_op_global_avg_pool, "pool", QD_IN(x), QD_NO_ATTRS);
    x = qd_graph_add(g, &qd_op_reshape, "flat", QD_IN(x), QD_ATTRS(qd_attr_ints("shape", 2, flat)));
    x = qd_graph_add(g, &qd_op_linear, "fc",
                     QD_IN(x, constant(g, "fc", "weight", QD_SHAPE(CLASSES, CHANNELS), 0.1f, 0.0f)), QD_NO_ATTRS);
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
    const int64_t n = *(const int64_t *)ctx;
    for (int64_t i = 0; i < n * 3 * SIDE * SIDE; i++)
        ((float *)inputs[0])[i] = qd_rng_uniform(rng) - 0.5f;
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < CLASSES; c++)
            ((float *)inputs[1])[i * CLASSES + c] = c == i % CLASSES;
    return QD_OK;
}

static bool is_end(void *ctx, const char *name)
{
    return strncmp(name, "end.", 4) == 0;
}

static qd_trainer_options options(const qd_graph *g, int64_t *n)
{
    return (qd_trainer_options){ .network = g,
                                 .loss = classify,
                                 .batch = batch,
                                 .ctx = n,
                                 .batch_size = *n,
                                 .optim = qd_optim_adam.defaults,
                                 .schedule = { .lr = 1e-3 },
                                 .ema_decay = 0.9 };
}

/* --- made again --- */

static void recompute_learns_the_same_bytes(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = network();
    char hash[3][QD_SHA256_HEX], path[512];
    size_t arena[3];
    int64_t n = 6;
    for (int k = 0; k < 3; k++) {
        qd_trainer *t = NULL;
        qd_trainer_options o = options(g, &n);
        o.recompute = k > 0;
        o.keeps = k == 2 ? is_end : NULL;
        check_ok(qd_trainer_new(&o, NULL, &t, &err), &err);
        check_ok(qd_trainer_run(t, NULL, 3, &err), &err);
        snprintf(path, sizeof path, "%s/run.safetensors", harness_tmp());
        check_ok(qd_trainer_save(t, path, &err), &err);
        check_ok(qd_fs_sha256(path, hash[k], &err), &err);
        arena[k] = qd_plan_arena_bytes(qd_trainer_plan(t));
        qd_trainer_free(t);
    }
    print_message("activations: %zu bytes; recompute %zu (%.2f), block ends kept %zu (%.2f)\n", arena[0], arena[1],
                  (double)arena[1] / (double)arena[0], arena[2], (double)arena[2] / (double)arena[0]);
    assert_string_equal(hash[0], hash[1]);
    assert_string_equal(hash[0], hash[2]);
    assert_true((double)arena[1] < 0.6 * (double)arena[0]);
    assert_true((double)arena[2] < 0.6 * (double)arena[0]);
    qd_graph_free(g);
}

/* --- a ceiling --- */

static size_t peak_of(int64_t n, bool recompute)
{
    qd_err err = { 0 };
    qd_graph *g = network();
    qd_trainer *t = NULL;
    qd_budget budget;
    qd_budget_init(&budget, 0);
    const qd_run run = { .budget = &budget };
    qd_trainer_options o = options(g, &n);
    o.recompute = recompute;
    check_ok(qd_trainer_new(&o, &run, &t, &err), &err);
    check_ok(qd_trainer_run(t, &run, 1, &err), &err);
    const size_t peak = budget.peak_bytes;
    qd_graph *after = NULL;
    check_ok(qd_trainer_network(t, false, &after, &err), &err);
    qd_trainer_free(t);
    assert_true(budget.used_bytes >= qd_graph_param_bytes(g)); /* what was learned is drawn too, until it goes */
    qd_graph_free(after);
    assert_int_equal(budget.used_bytes, 0);
    qd_graph_free(g);
    return peak;
}

/* The budget's peak is exactly what it takes: with that ceiling training runs, with one byte less it is refused. */
static void the_ceiling_is_what_it_takes(void **state)
{
    for (int recompute = 0; recompute < 2; recompute++) {
        qd_err err = { 0 };
        qd_graph *g = network();
        const size_t peak = peak_of(BATCH, recompute);
        for (int less = 0; less < 2; less++) {
            qd_trainer *t = NULL;
            int64_t n = BATCH;
            qd_budget budget;
            qd_budget_init(&budget, peak - (size_t)less);
            const qd_run run = { .budget = &budget };
            qd_trainer_options o = options(g, &n);
            o.recompute = recompute;
            if (less)
                check_fails(qd_trainer_new(&o, &run, &t, &err), QD_E_LIMIT, "training with a batch of 24 needs", &err);
            else
                check_ok(qd_trainer_new(&o, &run, &t, &err), &err);
            qd_trainer_free(t);
            assert_int_equal(budget.used_bytes, 0);
            assert_true(budget.peak_bytes <= budget.limit_bytes);
        }
        qd_graph_free(g);
    }
}

/* The number behind `before` in the words. */
static int64_t said(const qd_err *err, const char *before)
{
    const char *at = strstr(err->text, before);
    if (!at)
        fail_msg("no '%s' in: %s", before, err->text);
    return atoll(at + strlen(before));
}

static qd_status try_batch(int64_t n, bool recompute, size_t limit, qd_err *err)
{
    qd_graph *g = network();
    qd_trainer *t = NULL;
    qd_budget budget;
    qd_budget_init(&budget, limit);
    const qd_run run = { .budget = &budget };
    qd_trainer_options o = options(g, &n);
    o.recompute = recompute;
    qd_status st = qd_trainer_new(&o, &run, &t, err);
    if (!st)
        st = qd_trainer_run(t, &run, 1, err);
    qd_trainer_free(t);
    assert_int_equal(budget.used_bytes, 0);
    assert_true(budget.peak_bytes <= limit);
    qd_graph_free(g);
    return st;
}

/* What the refusal says would fit does fit, and a batch of one more does not. */
static void refusals_say_what_fits(void **state)
{
    qd_err err = { 0 }, unused = { 0 };
    const size_t plain = peak_of(BATCH, false), again = peak_of(BATCH, true);
    assert_true(again < plain);
    const size_t between = again + (plain - again) / 2;
    assert_int_equal(try_batch(BATCH, false, between, &err), QD_E_LIMIT);
    print_message("%s\n", err.text);
    const int64_t fits = said(&err, "a batch of "), batch_said = said(&err, ": a batch of ");
    assert_int_equal(fits, BATCH);
    assert_true(batch_said > 0 && batch_said < BATCH);
    assert_non_null(strstr(err.text, "or with recompute this batch does"));
    check_ok(try_batch(batch_said, false, between, &unused), &unused);
    assert_int_equal(try_batch(batch_said + 1, false, between, &unused), QD_E_LIMIT);
    check_ok(try_batch(BATCH, true, between, &unused), &unused);

    err = (qd_err){ 0 };
    assert_int_equal(try_batch(BATCH, true, again - again / 4, &err), QD_E_LIMIT);
    print_message("%s\n", err.text);
    const int64_t smaller = said(&err, ": a batch of ");
    check_ok(try_batch(smaller, true, again - again / 4, &unused), &unused);
    assert_int_equal(try_batch(smaller + 1, true, again - again / 4, &unused), QD_E_LIMIT);

    err = (qd_err){ 0 };
    assert_int_equal(try_batch(BATCH, false, 100000, &err), QD_E_LIMIT);
    print_message("%s\n", err.text);
    assert_non_null(strstr(err.text, "no batch fits"));
}

#ifndef __SANITIZE_ADDRESS__ /* whose own memory cannot be told from ours */

/* Kilobytes the process has had at most (VmHWM). */
static long high_water_kb(void)
{
    char line[256];
    long kb = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %ld kB", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return kb;
}

/* In a process of its own: what the system says was used beyond what a small training has left, against the budget's peak. */
static void the_system_agrees(void **state)
{
    mallopt(M_MMAP_THRESHOLD,
            1 << 17); /* what is freed goes back to the system, so that it is seen when it is taken again */
    for (int recompute = 0; recompute < 2; recompute++) {
        const size_t small = peak_of(1, recompute), large = peak_of(64, recompute);
        fflush(stdout);
        malloc_trim(0);
        const pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            qd_err err = { 0 };
            if (try_batch(1, recompute, small, &err)) /* libraries are set up, code is generated */
                _exit(2);
            const long before = high_water_kb();
            if (try_batch(64, recompute, large, &err))
                _exit(3);
            const long grown = high_water_kb() - before;
            /* The small one's memory may be used again; the library's code for other shapes is not ours to count. */
            printf("budget %zu kB at most, the process grew by %ld kB\n", large / 1024, grown);
            fflush(stdout);
            const bool good = before > 0 && grown * 1024 <= (long)large + (6 << 20) && grown * 1024 > (long)large / 2;
            _exit(good ? 0 : 4);
        }
        int how = 0;
        assert_int_equal(waitpid(pid, &how, 0), pid);
        assert_true(WIFEXITED(how));
        assert_int_equal(WEXITSTATUS(how), 0);
    }
}

#endif

static qd_status refuse_once(void *ctx, qd_err *err)
{
    qd_trainer *t = NULL;
    int64_t n = 2;
    qd_trainer_options o = options(ctx, &n);
    o.backend = &qd_backend_ref;
    o.recompute = true;
    qd_status st = qd_trainer_new(&o, NULL, &t, err);
    qd_trainer_free(t);
    return st;
}

static void memory_may_end_anywhere(void **state)
{
    qd_graph *g = network();
    assert_true(harness_run_each_alloc(refuse_once, g, 50000) > 10);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recompute_learns_the_same_bytes),
        cmocka_unit_test(the_ceiling_is_what_it_takes),
        cmocka_unit_test(refusals_say_what_fits),
#ifndef __SANITIZE_ADDRESS__
        cmocka_unit_test(the_system_agrees),
#endif
        cmocka_unit_test(memory_may_end_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
