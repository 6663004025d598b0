/* test_low_rank.c - singular vectors as PyTorch has them; branches that leave the float network as it is and the codes less to carry. */
#include "harness/harness.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "golden/quant/svd_golden.h"
#include "quant/recon_int.h"

static void as_torch(void **state)
{
    qd_err err = { 0 };
    float a[SVD_M * SVD_N], u[SVD_M * SVD_RANK], s[SVD_RANK], v[SVD_RANK * SVD_N];
    for (int i = 0; i < SVD_M; i++)
        for (int j = 0; j < SVD_N; j++)
            a[i * SVD_N + j] = (float)((i * 37 + j * 101 + i * j * 13) % 97 - 48) / 64.0f;
    for (int threads = 1; threads <= 2; threads++) {
        float u2[SVD_M * SVD_RANK], v2[SVD_RANK * SVD_N];
        const qd_run run = { .threads = threads };
        check_ok(qd_svd_top(a, SVD_M, SVD_N, SVD_RANK, &run, u2, s, v2, &err), &err);
        if (threads > 1) {
            assert_memory_equal(u, u2, sizeof u);
            assert_memory_equal(v, v2, sizeof v);
        }
        memcpy(u, u2, sizeof u);
        memcpy(v, v2, sizeof v);
    }
    double error = 0;
    for (int k = 0; k < SVD_RANK; k++)
        assert_true(fabs(s[k] - svd_values[k]) < 1e-6 * svd_values[0]); /* rounded to float */
    for (int i = 0; i < SVD_M; i++)
        for (int j = 0; j < SVD_N; j++) {
            double low = 0;
            for (int k = 0; k < SVD_RANK; k++)
                low += (double)u[i * SVD_RANK + k] * s[k] * v[k * SVD_N + j];
            error += (a[i * SVD_N + j] - low) * (a[i * SVD_N + j] - low);
            if (i == 0)
                assert_true(fabs(low - svd_first_row[j]) < 2e-6);
            if (i == SVD_M - 1)
                assert_true(fabs(low - svd_last_row[j]) < 2e-6);
        }
    assert_true(fabs(error - svd_error) < 1e-5 * svd_error);

    /* Tall instead of wide; of lower rank than asked for; all zeros. */
    float t[SVD_N * SVD_M], ut[SVD_N * SVD_RANK], st[SVD_RANK], vt[SVD_RANK * SVD_M];
    for (int i = 0; i < SVD_M; i++)
        for (int j = 0; j < SVD_N; j++)
            t[j * SVD_M + i] = a[i * SVD_N + j];
    check_ok(qd_svd_top(t, SVD_N, SVD_M, SVD_RANK, NULL, ut, st, vt, &err), &err);
    check_close(st, s, SVD_RANK, 0, 1e-6);
    for (int i = 0; i < SVD_M * SVD_N; i++)
        a[i] = (float)((i / SVD_N % 3 + 1) * (i % SVD_N + 1)) / 64.0f; /* an outer product */
    check_ok(qd_svd_top(a, SVD_M, SVD_N, SVD_RANK, NULL, u, s, v, &err), &err);
    assert_true(s[0] > 1 && s[1] < 1e-5f * s[0]);
    for (int i = 0; i < SVD_M * SVD_N; i++)
        assert_true(fabsf(u[i / SVD_N * SVD_RANK] * s[0] * v[i % SVD_N] - a[i]) < 1e-6f * s[0]);
    memset(a, 0, sizeof a);
    check_ok(qd_svd_top(a, SVD_M, SVD_N, SVD_RANK, NULL, u, s, v, &err), &err);
    for (int k = 0; k < SVD_RANK; k++)
        assert_true(s[k] == 0 && isfinite(u[k]) && v[k] == 0);

    atomic_bool stop = true;
    const qd_run stopped = { .cancel = &stop };
    check_fails(qd_svd_top(a, SVD_M, SVD_N, SVD_RANK, &stopped, u, s, v, &err), QD_E_CANCELLED, NULL, &err);
    a[3] = NAN;
    check_fails(qd_svd_top(a, SVD_M, SVD_N, SVD_RANK, NULL, u, s, v, &err), QD_E_NUMERIC, "element 3", &err);
    check_fails(qd_svd_top(a, SVD_M, SVD_N, SVD_M + 1, NULL, u, s, v, &err), QD_E_INVALID, "rank 25", &err);
}

enum { SIZE = 28 * 28 };

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

static void eps_of(const qd_graph *g, int64_t t, float *out)
{
    qd_err err = { 0 };
    qd_denoiser *d = NULL;
    static float x[2 * SIZE];
    harness_normal(x, 2 * SIZE, 11, 1);
    check_ok(qd_denoiser_new(g, 2, 1, NULL, NULL, &d, &err), &err);
    const qd_predictor p = qd_denoiser_predictor(d);
    check_ok(p.predict(p.ctx, NULL, x, (double)t, out, &err), &err);
    qd_denoiser_free(d);
}

/* The same function, smoothed layers too; blocks are still found whole; what is left for the codes is carried more closely. */
static void the_same_network(void **state)
{
    const shipped *s = *state;
    qd_err err = { 0 };
    const int t[2] = { 0, 500 };
    const qd_smooth_options so = { .gamma = true };
    const qd_layout_options lo = { .skip = "", .split_shortcut = true, .float_edges = true, .softmax_bits = 16 };
    const qd_low_rank_options o = { .rank = 8, .weight_bits = 4 };
    qd_smoothing factors = { 0 };
    qd_graph *smoothed = NULL, *g = NULL;
    qd_layout *l = NULL, *after = NULL;
    qd_low_rank_report r = { 0 };
    qd_blocks before_blocks = { 0 }, blocks = { 0 };
    check_ok(qd_smoothing_of_embeddings(s->graph, t, 2, &so, NULL, &factors, &err), &err);
    check_ok(qd_smooth_fold(s->graph, &factors, NULL, &smoothed, &err), &err);
    check_ok(qd_layout_new(smoothed, &lo, &l, &err), &err);
    check_ok(qd_low_rank_branch(l, &o, NULL, &g, &r, &err), &err);
    static float want[2 * SIZE], got[2 * SIZE];
    eps_of(s->graph, 500, want);
    eps_of(g, 500, got);
    check_close(got, want, 2 * SIZE, 0, 1e-4);
    assert_true(r.n > 30 && r.macs > 0 && r.macs < r.layer_macs);
    for (int k = 0; k < r.n; k++)
        assert_true(r.rows[k].weight_sqnr_db > r.rows[k].weight_sqnr_db_without + 1);

    /* Quantized are the rests; branches keep 8 bits, and lose nothing by it. */
    check_ok(qd_layout_new(g, &lo, &after, &err), &err);
    check_ok(qd_layout_quantize_weights(after, 4, false, NULL, &err), &err);
    int rests = 0, branches = 0;
    size_t bytes = 0;
    for (int k = 0; k < after->n_layers; k++) {
        const qd_quant_layer *layer = &after->layers[k];
        const qd_node *n = qd_graph_node(g, layer->id);
        rests += !layer->note && strstr(n->name, ".rest") != NULL;
        if (!qd_low_rank_is_branch(n))
            continue;
        branches++;
        assert_true(layer->weight_only);
        assert_true(layer->part[0].sqnr_db > 90); /* exact but for the scale's last bit */
        bytes += qd_tensor_bytes(&layer->part[0].codes) + qd_tensor_bytes(&layer->part[0].wscale);
    }
    assert_int_equal(rests, r.n);
    assert_int_equal(branches, 2 * r.n);
    assert_true(bytes == r.bytes);
    check_ok(qd_blocks_find(l, false, &before_blocks, &err), &err);
    check_ok(qd_blocks_find(after, false, &blocks, &err), &err);
    int whole[2] = { 0 };
    for (int k = 0; k < before_blocks.n; k++)
        whole[0] += strcmp(before_blocks.block[k].kind, "resblock") == 0;
    for (int k = 0; k < blocks.n; k++)
        whole[1] += strcmp(blocks.block[k].kind, "resblock") == 0;
    assert_int_equal(whole[0], 11);
    assert_int_equal(whole[1], 11);

    const qd_low_rank_options wide = { .rank = 64, .weight_bits = 4 };
    qd_graph *none = NULL;
    check_fails(qd_low_rank_branch(l, &wide, NULL, &none, &r, &err), QD_E_INVALID, "no branch would save", &err);
    qd_blocks_clear(&before_blocks);
    qd_blocks_clear(&blocks);
    qd_low_rank_report_clear(&r);
    qd_layout_free(after);
    qd_layout_free(l);
    qd_graph_free(g);
    qd_graph_free(smoothed);
    qd_smoothing_clear(&factors);
}

static qd_status quantize(const shipped *s, const char *bits, const char *rank, qd_graph **out, qd_quant_report *r,
                          qd_err *err)
{
    qd_params *p = NULL;
    const qd_method *m = qd_method_find("qncd-plus");
    const char *const rows[][2] = {
        { "weight_bits", bits },         { "low_rank", rank },         { "steps", "4" },
        { "calibration_samples", "16" }, { "calibration_steps", "4" }, { "measure_samples", "1" },
        { "reference_samples", "2" },    { "activation_groups", "1" }, { "rounding", "nearest" },
        { "smoothing", "embedding" },    { "weight_range", "minmax" }, { "activation_range", "minmax" },
        { "noise_map_steps", "2" },
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

/* Through the whole pipeline: eps is far closer, and the table of noise still has every layer. */
static void closer(void **state)
{
    const shipped *s = *state;
    qd_err err = { 0 };
    qd_graph *g[2] = { NULL };
    qd_quant_report without = { 0 }, with = { 0 };
    check_ok(quantize(s, "4", "0", &g[0], &without, &err), &err);
    check_ok(quantize(s, "4", "8", &g[1], &with, &err), &err);
    print_message("4 bits: %.2f dB in %llu bytes; with branches of 8: %.2f dB in %llu, %.0f %% more multiply-adds\n",
                  without.eps_sqnr_mean_db, (unsigned long long)without.quantized_bytes, with.eps_sqnr_mean_db,
                  (unsigned long long)with.quantized_bytes,
                  100.0 * (double)with.low_rank.macs / (double)with.low_rank.layer_macs);
    assert_true(with.eps_sqnr_mean_db > without.eps_sqnr_mean_db + 3);
    assert_int_equal(with.map.n_layers, without.map.n_layers);
    for (int k = 0; k < with.map.n_layers; k++)
        assert_string_equal(with.map.layer[k], without.map.layer[k]);
    assert_int_equal(without.low_rank.n, 0);

    qd_graph *none = NULL;
    check_fails(quantize(s, "8", "8", &none, &without, &err), QD_E_INVALID, "low_rank is for weight_bits 4", &err);
    qd_quant_report_clear(&without);
    qd_quant_report_clear(&with);
    qd_graph_free(g[0]);
    qd_graph_free(g[1]);
}

static qd_status each_alloc(void *ctx, qd_err *err)
{
    const qd_layout_options lo = { .skip = "", .softmax_bits = 16 };
    const qd_low_rank_options o = { .rank = 4, .weight_bits = 4 };
    qd_layout *l = NULL;
    qd_graph *out = NULL;
    qd_low_rank_report r = { 0 };
    qd_status st = qd_layout_new(ctx, &lo, &l, err);
    if (!st)
        st = qd_low_rank_branch(l, &o, NULL, &out, &r, err);
    qd_low_rank_report_clear(&r);
    qd_graph_free(out);
    qd_layout_free(l);
    return st;
}

/* A linear layer and a convolution in a row, every allocation failing once. */
static void failing_allocations(void **state)
{
    enum { C = 8, SIDE = 3 };
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, C, SIDE, C), shapes[2] = { QD_SHAPE(C, C), QD_SHAPE(C, C, 1, 1) };
    qd_node_id w[2], h = qd_graph_input(g, "sample", QD_F32, &image);
    for (int k = 0; k < 2; k++) {
        qd_tensor t = { 0 };
        check_ok(qd_tensor_init(&t, QD_F32, &shapes[k], NULL, &err), &err);
        harness_normal(qd_f32(&t), C * C, 3 + (uint64_t)k, 0.3f);
        w[k] = qd_graph_const(g, k ? "conv.weight" : "fc.weight", &t);
        qd_tensor_clear(&t);
    }
    h = qd_graph_add(g, &qd_op_linear, "fc", QD_IN(h, w[0]), QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_silu, "act", QD_IN(h), QD_NO_ATTRS);
    qd_graph_output(g, "eps", qd_graph_add(g, &qd_op_conv2d, "conv", QD_IN(h, w[1]), QD_NO_ATTRS));
    check_ok(qd_graph_verify(g, &err), &err);
    harness_run_each_alloc(each_alloc, g, 20000);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_torch),
        cmocka_unit_test(the_same_network),
        cmocka_unit_test(closer),
        cmocka_unit_test(failing_allocations),
    };
    return cmocka_run_group_tests(tests, open_shipped, close_shipped);
}
