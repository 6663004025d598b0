/* test_mixed.c - bits of weights chosen layer by layer: within the budget, the least harm there is, better than the same everywhere. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/qncd_int.h"

typedef struct shipped {
    qd_model *model;
    qd_graph *graph;
    qd_schedule *schedule;
} shipped;

static int open_shipped(void **state)
{
    qd_err err = { 0 };
    qd_role role;
    shipped *s = qd_calloc(1, sizeof *s);
    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &s->model, &err), &err);
    check_ok(qd_zoo_build(s->model, NULL, &s->graph, &role, &err), &err);
    check_ok(qd_schedule_open(s->model->scheduler, &s->schedule, &err), &err);
    *state = s;
    return 0;
}

static int close_shipped(void **state)
{
    shipped *s = *state;
    qd_schedule_free(s->schedule);
    qd_graph_free(s->graph);
    qd_model_free(s->model);
    qd_free(s);
    return 0;
}

static qd_status quantize(const shipped *s, const char *bits, const char *budget, qd_graph **out, qd_quant_report *r,
                          qd_err *err)
{
    qd_params *p = NULL;
    const qd_method *m = qd_method_find("qncd-plus");
    const char *const rows[][2] = {
        { "weight_bits", bits },         { "activation_bits", "8" },   { "steps", "4" },
        { "calibration_samples", "16" }, { "calibration_steps", "4" }, { "measure_samples", "1" },
        { "reference_samples", "2" },    { "activation_groups", "1" }, { "rounding", "nearest" },
        { "smoothing", "embedding" },    { "weight_range", "minmax" }, { "activation_range", "minmax" },
        { "noise_map_steps", "0" },      { "size_budget", budget }
    };
    check_ok(qd_params_new(m->params, &p, err), err);
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
        check_ok(qd_params_set_text(p, rows[k][0], rows[k][1], err), err);
    const qd_run run = { .seed = 3 };
    const qd_quant_task task = { .graph = s->graph, .role = QD_ROLE_DENOISER, .schedule = s->schedule, .params = p };
    const qd_status st = m->run(&task, &run, out, r, err);
    qd_params_free(p);
    return st;
}

/* Fewer bytes than 6 bits everywhere, and far better than 4 bits everywhere; the bytes are what was planned, to the last one. */
static void within_the_budget(void **state)
{
    const shipped *s = *state;
    qd_err err = { 0 };
    qd_graph *g[3] = { NULL };
    qd_quant_report four = { 0 }, six = { 0 }, mixed = { 0 };
    check_ok(quantize(s, "4", "0", &g[0], &four, &err), &err);
    check_ok(quantize(s, "6", "0", &g[1], &six, &err), &err);
    check_ok(quantize(s, "4", "0.19", &g[2], &mixed, &err), &err);
    print_message("4 bits %.2f dB in %llu bytes, 6 bits %.2f dB in %llu, chosen %.2f dB in %llu\n",
                  four.eps_sqnr_mean_db, (unsigned long long)four.quantized_bytes, six.eps_sqnr_mean_db,
                  (unsigned long long)six.quantized_bytes, mixed.eps_sqnr_mean_db,
                  (unsigned long long)mixed.quantized_bytes);
    assert_int_equal(four.mixed.n, 0);
    assert_true((double)mixed.quantized_bytes <= 0.19 * (double)mixed.float_bytes);
    assert_true(mixed.quantized_bytes == mixed.mixed.planned_bytes);
    assert_true(mixed.quantized_bytes < six.quantized_bytes);
    assert_true((double)mixed.quantized_bytes > 0.185 * (double)mixed.float_bytes); /* and it is made use of */
    assert_true(mixed.eps_sqnr_mean_db > four.eps_sqnr_mean_db + 3);
    assert_true(mixed.eps_sqnr_mean_db > six.eps_sqnr_mean_db);

    /* Each layer has its bits, in the table and in its codes. */
    int seen[9] = { 0 };
    for (int k = 0; k < mixed.mixed.n; k++) {
        const qd_mixed_row *row = &mixed.mixed.rows[k];
        char name[QD_MAX_NAME + 32];
        int rows = 0;
        seen[row->bits]++;
        assert_true(row->harm[0] > row->harm[2]);
        for (int j = 0; j < mixed.n_layers; j++) {
            const qd_layer_report *l = &mixed.layers[j];
            const size_t n = strlen(row->name);
            if (strncmp(l->name, row->name, n) != 0 || (l->name[n] && strncmp(l->name + n, ".split", 6) != 0))
                continue;
            rows++;
            assert_int_equal(l->weight_bits, row->bits);
            snprintf(name, sizeof name, "%s.weight", l->name);
            assert_int_equal(qd_dtype_bits(qd_graph_node(g[2], qd_graph_find(g[2], name))->dtype), row->bits);
        }
        assert_true(rows == 1 || rows == 2);
    }
    assert_true(seen[4] && seen[8]);

    qd_quant_report_clear(&four);
    qd_quant_report_clear(&six);
    qd_quant_report_clear(&mixed);
    for (int k = 0; k < 3; k++)
        qd_graph_free(g[k]);
}

typedef struct tiny {
    const qd_graph *graph;
    const qd_calibration_set *set;
} tiny;

static qd_status each_alloc(void *ctx, qd_err *err)
{
    const tiny *t = ctx;
    const qd_layout_options lo = { .skip = "", .softmax_bits = 16 };
    const qd_mixed_options o = { .budget_bytes = 1100, .min_bits = 4, .max_bits = 8 };
    qd_layout *l = NULL;
    qd_mixed_report r = { 0 };
    qd_status st = qd_layout_new(t->graph, &lo, &l, err);
    if (!st)
        st = qd_layout_choose_bits(l, t->set, &o, NULL, &r, err);
    qd_mixed_report_clear(&r);
    qd_layout_free(l);
    return st;
}

/* A network of three layers in a row, every choice of bits tried: none within the budget has a smaller sum of harms. */
static void the_best_there_is(void **state)
{
    enum { C = 8, SIDE = 4, LAYERS = 3 };
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, C, SIDE, SIDE);
    qd_node_id h = qd_graph_input(g, "sample", QD_F32, &image);
    for (int k = 0; k < LAYERS; k++) {
        static float w[4 * C * C * 9];
        char name[16], weight[24];
        const qd_shape kernel = k == 1 ? QD_SHAPE(C, C, 1, 1) : QD_SHAPE(C, C, 3, 3);
        qd_tensor t = { 0 };
        check_ok(qd_tensor_init(&t, QD_F32, &kernel, NULL, &err), &err);
        harness_normal(w, C * C * 9, 30 + (uint64_t)k, k == 2 ? 0.05f : 0.3f);
        memcpy(t.data, w, qd_tensor_bytes(&t));
        snprintf(name, sizeof name, "l%d", k);
        snprintf(weight, sizeof weight, "l%d.weight", k);
        const int64_t p = k == 1 ? 0 : 1;
        const qd_attr pads = qd_attr_ints("pads", 4, (const int64_t[]){ p, p, p, p });
        h = qd_graph_add(g, &qd_op_conv2d, name, QD_IN(h, qd_graph_const(g, weight, &t)), &pads, 1);
        snprintf(name, sizeof name, "a%d", k);
        h = qd_graph_add(g, &qd_op_silu, name, QD_IN(h), QD_NO_ATTRS);
        qd_tensor_clear(&t);
    }
    qd_graph_output(g, "eps", h);
    check_ok(qd_graph_verify(g, &err), &err);
    const qd_shape all = QD_SHAPE(2, 2, C, SIDE, SIDE);
    int steps[2] = { 1, 0 };
    qd_calibration_set set = { .steps = 2, .t = steps, .samples = 2 };
    check_ok(qd_tensor_init(&set.x, QD_F32, &all, NULL, &err), &err);
    harness_normal(qd_f32(&set.x), qd_tensor_count(&set.x), 9, 1);

    static const int bits[QD_MIXED_CHOICES] = { 4, 6, 8 };
    static const int64_t count[LAYERS] = { C * C * 9, C * C, C * C * 9 };
    const uint64_t scales = LAYERS * C * sizeof(float);
    int different = 0, last = -1;
    for (uint64_t budget = scales + 620; budget <= scales + 1240; budget += 62) {
        qd_layout *l = NULL;
        qd_mixed_report r = { 0 };
        const qd_layout_options lo = { .skip = "", .softmax_bits = 16 };
        const qd_mixed_options o = { .budget_bytes = budget, .min_bits = 4, .max_bits = 8 };
        check_ok(qd_layout_new(g, &lo, &l, &err), &err);
        check_ok(qd_layout_choose_bits(l, &set, &o, NULL, &r, &err), &err);
        double best = INFINITY;
        for (int k = 0; k < 27; k++) {
            const int pick[LAYERS] = { k % 3, k / 3 % 3, k / 9 };
            uint64_t bytes = scales;
            double harm = 0;
            for (int i = 0; i < LAYERS; i++) {
                bytes += (uint64_t)(count[i] * bits[pick[i]] / 8);
                harm += r.rows[i].harm[pick[i]];
            }
            if (bytes <= budget)
                best = fmin(best, harm);
        }
        assert_true(r.planned_bytes <= budget);
        assert_true(fabs(r.harm - best) <= 1e-12 * best);
        const int code = r.rows[0].bits * 100 + r.rows[1].bits * 10 + r.rows[2].bits;
        different += code != last;
        last = code;
        for (int i = 0; i < LAYERS; i++)
            assert_int_equal(l->layers[i].weight_bits, r.rows[i].bits);
        qd_mixed_report_clear(&r);
        qd_layout_free(l);
    }
    assert_true(different >= 4);

    /* On two threads the same, bit for bit; within narrower bounds; and what there is no room for. */
    qd_layout *l = NULL;
    qd_mixed_report one = { 0 }, two = { 0 };
    const qd_layout_options lo = { .skip = "", .softmax_bits = 16 };
    const qd_run run = { .threads = 2 };
    qd_mixed_options o = { .budget_bytes = 4096, .min_bits = 4, .max_bits = 6, .search_weights = true };
    for (int threads = 1; threads <= 2; threads++) {
        check_ok(qd_layout_new(g, &lo, &l, &err), &err);
        check_ok(qd_layout_choose_bits(l, &set, &o, threads > 1 ? &run : NULL, threads > 1 ? &two : &one, &err), &err);
        qd_layout_free(l);
    }
    for (int i = 0; i < LAYERS; i++) {
        assert_memory_equal(one.rows[i].harm, two.rows[i].harm, 2 * sizeof(double));
        assert_int_equal(one.rows[i].bits, 6); /* there is room for the most */
        assert_true(isnan(one.rows[i].harm[2]));
    }
    qd_mixed_report_clear(&one);
    qd_mixed_report_clear(&two);
    check_ok(qd_layout_new(g, &lo, &l, &err), &err);
    o.budget_bytes = 500;
    check_fails(qd_layout_choose_bits(l, &set, &o, NULL, &one, &err), QD_E_INVALID, "with 4 bits everywhere it takes",
                &err);
    o.min_bits = 8;
    check_fails(qd_layout_choose_bits(l, &set, &o, NULL, &one, &err), QD_E_INVALID, "more than params.max_bits", &err);
    qd_layout_free(l);
    tiny t = { .graph = g, .set = &set };
    harness_run_each_alloc(each_alloc, &t, 20000);
    qd_tensor_clear(&set.x);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(within_the_budget),
        cmocka_unit_test(the_best_there_is),
    };
    return cmocka_run_group_tests(tests, open_shipped, close_shipped);
}
