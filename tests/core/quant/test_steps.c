/* test_steps.c - steps of activations that learn (qncd.md 6.5): the derivative of LSQ, nothing gets worse, threads, refusals. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "nn/nn.h"
#include "quant/recon_int.h"

enum { SAMPLES = 24, TOKENS = 5, WIDTH = 6, COUNT = SAMPLES * TOKENS * WIDTH };

static qd_node_id constant(qd_graph *g, const char *name, qd_shape shape, const float *values)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    memcpy(t.data, values, qd_tensor_bytes(&t));
    const qd_node_id id = qd_graph_const(g, name, &t);
    qd_tensor_clear(&t);
    return id;
}

/* A layer that hands its input on: 127 codes of 1 / 127 to each weight on the diagonal. */
static qd_graph *identity(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    float w[WIDTH * WIDTH] = { 0 };
    for (int k = 0; k < WIDTH; k++)
        w[k * WIDTH + k] = 1.0f;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape shape = QD_SHAPE(-1, TOKENS, WIDTH);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &shape);
    qd_graph_output(
        g, "eps",
        qd_graph_add(g, &qd_op_linear, "layer", QD_IN(x, constant(g, "w", QD_SHAPE(WIDTH, WIDTH), w)), QD_NO_ATTRS));
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static qd_calibration_set set_of(const float *x)
{
    static int t = 0;
    qd_err err = { 0 };
    const qd_shape shape = QD_SHAPE(1, SAMPLES, TOKENS, WIDTH);
    qd_calibration_set s = { .steps = 1, .t = &t, .samples = SAMPLES };
    check_ok(qd_tensor_init(&s.x, QD_F32, &shape, NULL, &err), &err);
    memcpy(s.x.data, x, qd_tensor_bytes(&s.x));
    return s;
}

static qd_layout *layout_of(const qd_graph *g, int bits)
{
    qd_err err = { 0 };
    qd_layout *l = NULL;
    const qd_layout_options o = { .skip = "", .split_shortcut = true };
    check_ok(qd_layout_new(g, &o, &l, &err), &err);
    check_ok(qd_layout_quantize_weights(l, bits, false, NULL, &err), &err);
    return l;
}

/* The loss over all items and its derivative by the step, both as 6.5 writes them. */
static double loss_at(const float *x, const qd_affine *map, double power, double *by_step)
{
    double sum = 0.0;
    *by_step = 0.0;
    for (int i = 0; i < COUNT; i++) {
        const double r = x[i] / (double)map->scale;
        double q = nearbyint(r) + map->zero, slope = q - map->zero - r;
        if (q < map->qmin || q > map->qmax) {
            q = q < map->qmin ? map->qmin : map->qmax;
            slope = q - map->zero;
        }
        const double d = (q - map->zero) * map->scale - x[i];
        sum += pow(fabs(d), power) / (SAMPLES * TOKENS);
        *by_step += power * pow(fabs(d), power - 1) * (d < 0 ? -1 : 1) * slope / (SAMPLES * TOKENS);
    }
    return sum;
}

/* Adam written out, with that derivative: the same step after 25 iterations, codes with and without a zero, and signed ones. */
static void as_written_out(void **state)
{
    qd_err err = { 0 };
    const qd_affine maps[] = { { .scale = 0.2f, .zero = 6, .qmax = 15, .bits = 4 },
                               { .scale = 0.6f, .zero = 9, .qmax = 15, .bits = 4 },
                               { .scale = 0.3f, .zero = 0, .qmax = 15, .bits = 4 },
                               { .scale = 0.5f, .zero = 0, .qmin = -4, .qmax = 3, .bits = 3, .symmetric = true } };
    for (int k = 0; k < 4; k++) {
        float x[COUNT];
        harness_normal(x, COUNT, 31 + (uint64_t)k, 1.0f);
        qd_graph *g = identity();
        qd_layout *l = layout_of(g, 8);
        qd_calibration_set set = set_of(x);
        qd_recon_report r = { 0 };
        const qd_steps_options o = { .iterations = 25, .batch = SAMPLES, .lr = 0.004, .power = 2.4 };
        l->quantizers[0].map = maps[k];
        qd_histogram_add(l->quantizers[0].seen, x, COUNT);
        check_ok(qd_layout_learn_steps(l, &set, &o, NULL, &r, &err), &err);

        qd_affine want = maps[k];
        double m = 0, v = 0, slope, d = want.scale;
        const double before = loss_at(x, &want, 2.0, &slope);
        for (int i = 1; i <= 25; i++) {
            (void)loss_at(x, &want, 2.4, &slope);
            m = 0.9 * m + 0.1 * slope;
            v = 0.999 * v + 0.001 * slope * slope;
            const double lr = 0.004 * 0.5 * (1 + cos(M_PI * (i - 1) / 25));
            d -= lr * (m / (1 - pow(0.9, i))) / (sqrt(v / (1 - pow(0.999, i))) + 1e-8);
            want.scale = (float)d;
        }
        const double after = loss_at(x, &want, 2.0, &slope);
        print_message("step %.5f to %.5f (written out %.5f), square %.5f to %.5f\n", (double)maps[k].scale,
                      (double)l->quantizers[0].map.scale, d, before, after);
        assert_int_equal(r.n, 1);
        assert_true(fabs(r.blocks[0].mse_nearest * WIDTH - before) < 1e-4 * before);
        assert_true(fabs(r.blocks[0].mse_learned * WIDTH - after) < 2e-3 * after);
        /* In single precision some values near a tie fall the other way, which 25 steps add up. */
        if (after < before)
            assert_true(fabs(l->quantizers[0].map.scale - d) < 1e-3 * d);
        else
            assert_true(l->quantizers[0].map.scale == maps[k].scale && r.blocks[0].kept_nearest);
        assert_int_equal(l->quantizers[0].map.zero, maps[k].zero);
        assert_true(l->quantizers[0].sqnr_db == qd_histogram_sqnr_db(l->quantizers[0].seen, &l->quantizers[0].map));
        qd_recon_report_clear(&r);
        qd_tensor_clear(&set.x);
        qd_layout_free(l);
        qd_graph_free(g);
    }
}

#define UNET                                                                                                           \
    "{\"_class_name\":\"UNet2DModel\",\"sample_size\":8,\"in_channels\":1,\"out_channels\":1,"                         \
    "\"block_out_channels\":[8,16],\"norm_num_groups\":4,\"layers_per_block\":1,\"attention_head_dim\":8,"             \
    "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\"],\"up_block_types\":[\"AttnUpBlock2D\",\"UpBlock2D\"]}"

/* Every quantizer's step after learning, activations of 4 bits, attention on codes. */
static int learn_unet(int threads, float *steps, int most)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_layout *l = NULL;
    qd_recon_report r = { 0 };
    qd_budget budget;
    qd_budget_init(&budget, 64 << 20);
    const qd_run run = { .seed = 3, .threads = threads, .budget = &budget };
    const qd_layout_options lo = { .skip = "",
                                   .split_shortcut = true,
                                   .float_edges = true,
                                   .w8_time = true,
                                   .transformer = QD_TRANSFORMER_SAME,
                                   .softmax_bits = 8 };
    const qd_range_rule rule = { .how = QD_RANGE_MINMAX, .bits = 4 };
    const qd_shape shape = QD_SHAPE(2, 6, 1, 8, 8);
    int t[] = { 800, 200 };
    qd_calibration_set set = { .steps = 2, .t = t, .samples = 6 };
    check_ok(qd_tensor_init(&set.x, QD_F32, &shape, NULL, &err), &err);
    harness_normal(qd_f32(&set.x), qd_tensor_count(&set.x), 3, 1.0f);
    check_ok(qd_zoo_random(UNET, 5, &g, &err), &err);
    check_ok(qd_layout_new(g, &lo, &l, &err), &err);
    check_ok(qd_layout_quantize_weights(l, 8, true, NULL, &err), &err);
    check_ok(qd_layout_observe(l, &set, NULL, &err), &err);
    check_ok(qd_layout_choose_maps(l, &rule, NULL, &err), &err);
    float before[256];
    assert_true(l->n_quantizers <= most && most <= 256);
    for (int k = 0; k < l->n_quantizers; k++)
        before[k] = l->quantizers[k].map.scale;

    const qd_steps_options o = { .iterations = 20, .batch = 8, .lr = 0.01, .power = 2.4 };
    check_ok(qd_layout_learn_steps(l, &set, &o, &run, &r, &err), &err);
    int learned = 0, better = 0, moved = 0;
    double gain = 0;
    for (int k = 0; k < r.n; k++) {
        const qd_recon_block *b = &r.blocks[k];
        learned += b->layers;
        better += !b->kept_nearest;
        assert_true(b->kept_nearest == !(b->mse_learned < b->mse_nearest));
        gain += 10 * log10(b->mse_nearest / (b->kept_nearest ? b->mse_nearest : b->mse_learned));
    }
    for (int k = 0; k < l->n_quantizers; k++) {
        steps[k] = l->quantizers[k].map.scale;
        moved += steps[k] != before[k];
    }
    print_message("%d of %d blocks better, %.2f dB on average, %d of %d steps moved\n", better, r.n, gain / r.n, moved,
                  l->n_quantizers);
    assert_int_equal(learned, l->n_quantizers); /* each in one block */
    assert_true(better > r.n / 2 && gain / r.n > 0.3);
    const int n = l->n_quantizers;
    qd_recon_report_clear(&r);
    qd_layout_free(l);
    qd_graph_free(g);
    qd_tensor_clear(&set.x);
    assert_int_equal(budget.used_bytes, 0);
    return n;
}

static void blocks_get_better(void **state)
{
    float one[256], three[256];
    const int n = learn_unet(1, one, 256);
    assert_int_equal(learn_unet(3, three, 256), n);
    assert_memory_equal(one, three, (size_t)n * sizeof *one); /* whatever the number of threads */
}

static void refused(void **state)
{
    qd_err err = { 0 };
    float x[COUNT] = { 0 };
    qd_graph *g = identity();
    qd_layout *l = layout_of(g, 8);
    qd_calibration_set set = set_of(x);
    qd_recon_report r = { 0 };
    qd_steps_options o = { .iterations = 5, .batch = 4, .lr = 0.01, .power = 2.4 };
    check_fails(qd_layout_learn_steps(l, &set, &o, NULL, &r, &err), QD_E_INVALID, "no range yet", &err);
    l->quantizers[0].map = (qd_affine){ .scale = 0.1f, .qmax = 255, .bits = 8 };
    o.power = 0;
    check_fails(qd_layout_learn_steps(l, &set, &o, NULL, &r, &err), QD_E_INVALID, "a power of 1 to 8", &err);
    o.power = 2.4;
    l->n_groups = 2;
    check_fails(qd_layout_learn_steps(l, &set, &o, NULL, &r, &err), QD_E_INVALID, "groups", &err);
    l->n_groups = 0;
    const atomic_bool up = true;
    const qd_run run = { .cancel = &up };
    check_fails(qd_layout_learn_steps(l, &set, &o, &run, &r, &err), QD_E_CANCELLED, NULL, &err);
    qd_tensor_clear(&set.x);
    qd_layout_free(l);
    qd_graph_free(g);
}

typedef struct alloc_case {
    qd_graph *g;
    qd_calibration_set set;
    const float *x;
} alloc_case;

static qd_status once(void *ctx, qd_err *err)
{
    alloc_case *c = ctx;
    qd_layout *l = NULL;
    qd_recon_report r = { 0 };
    const qd_layout_options lo = { .skip = "" };
    const qd_steps_options o = { .iterations = 1, .batch = 4, .lr = 0.01, .power = 2.4 };
    qd_status st = qd_layout_new(c->g, &lo, &l, err);
    if (!st)
        st = qd_layout_quantize_weights(l, 8, false, NULL, err);
    if (!st) {
        l->quantizers[0].map = (qd_affine){ .scale = 0.1f, .zero = 100, .qmax = 255, .bits = 8 };
        qd_histogram_add(l->quantizers[0].seen, c->x, COUNT);
        st = qd_layout_learn_steps(l, &c->set, &o, NULL, &r, err);
    }
    qd_recon_report_clear(&r);
    qd_layout_free(l);
    return st;
}

static void without_memory(void **state)
{
    float x[COUNT];
    harness_normal(x, COUNT, 1, 1.0f);
    alloc_case c = { .g = identity(), .set = set_of(x), .x = x };
    print_message("%ld allocations, each failed once\n", harness_run_each_alloc(once, &c, 20000));
    qd_tensor_clear(&c.set.x);
    qd_graph_free(c.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_written_out),
        cmocka_unit_test(blocks_get_better),
        cmocka_unit_test(refused),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
