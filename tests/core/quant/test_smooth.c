/* test_smooth.c - blocks found by form, factors from embeddings alone, a fold that changes nothing (qncd.md 7, 12.1, 12.2). */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/qncd_int.h"

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

enum { C = 4, SIDE = 5, STEPS = 2 };

/* One block with the embedding e[t], additive or FiLM; norm2 of one group, gamma as given. */
static qd_graph *block(const float e[STEPS][C], const float *gamma, bool film)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    float w[C * C * 9], beta[C];
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, C, SIDE, SIDE), time = QD_SHAPE(-1);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &image), t = qd_graph_input(g, "timestep", QD_I64, &time);
    harness_normal(w, C * C * 9, 3, 0.3f);
    harness_normal(beta, C, 4, 0.5f);
    const qd_node_id rows = constant(g, "table", QD_SHAPE(STEPS, C), e[0]);
    qd_node_id share = qd_graph_add(g, &qd_op_embedding, "e", QD_IN(t, rows), QD_NO_ATTRS);
    share = qd_graph_add(g, &qd_op_reshape, "e4", QD_IN(share),
                         QD_ATTRS(qd_attr_ints("shape", 4, (const int64_t[]){ 0, C, 1, 1 })));
    const qd_attr pads = qd_attr_ints("pads", 4, (const int64_t[]){ 1, 1, 1, 1 });
    const qd_node_id w1 = constant(g, "first.weight", QD_SHAPE(C, C, 3, 3), w);
    const qd_node_id ga = constant(g, "norm.weight", QD_SHAPE(C), gamma),
                     be = constant(g, "norm.bias", QD_SHAPE(C), beta);
    qd_node_id h = qd_graph_add(g, &qd_op_conv2d, "first", QD_IN(x, w1), &pads, 1);
    const qd_attr norm[] = { QD_INT("groups", 1), QD_FLOAT("eps", 1e-6) };
    if (film) {
        h = qd_graph_add(g, &qd_op_group_norm, "norm", QD_IN(h, ga, be), norm, 2);
        const qd_node_id gain =
            qd_graph_add(g, &qd_op_affine, "gain", QD_IN(share), QD_ATTRS(QD_FLOAT("mul", 1), QD_FLOAT("add", 1)));
        h = qd_graph_add(g, &qd_op_mul, "scaled", QD_IN(h, gain), QD_NO_ATTRS);
        h = qd_graph_add(g, &qd_op_add, "shifted", QD_IN(h, share), QD_NO_ATTRS);
    } else {
        h = qd_graph_add(g, &qd_op_add, "sum", QD_IN(share, h), QD_NO_ATTRS); /* the embedding first: order is free */
        h = qd_graph_add(g, &qd_op_group_norm, "norm", QD_IN(h, ga, be), norm, 2);
    }
    h = qd_graph_add(g, &qd_op_silu, "act", QD_IN(h), QD_NO_ATTRS);
    harness_normal(w, C * C * 9, 5, 0.3f);
    const qd_node_id w2 = constant(g, "second.weight", QD_SHAPE(C, C, 3, 3), w);
    const qd_node_id bias = constant(g, "second.bias", QD_SHAPE(C), beta);
    h = qd_graph_add(g, &qd_op_conv2d, "second", QD_IN(h, w2, bias), &pads, 1);
    qd_graph_output(g, "eps", qd_graph_add(g, &qd_op_add, "out", QD_IN(x, h), QD_NO_ATTRS));
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static const float ones[C] = { 1, 1, 1, 1 };
static const int both[] = { 0, 1 };

static void smoothing(const qd_graph *g, const int *t, int n, bool gamma, qd_smoothing *out)
{
    qd_err err = { 0 };
    const qd_smooth_options o = { .gamma = gamma };
    check_ok(qd_smoothing_of_embeddings(g, t, n, &o, NULL, out, &err), &err);
}

/* qncd.md 7.2: e = (0, 0, 0, 4) gives S0 = (1, 1, 1, 1.732050); with a second time step whose E_4 is 0.5, S0_4 = 1.366025. The
 * factors are S0 over its geometric mean. */
static void golden_factors(void **state)
{
    const float e[STEPS][C] = { { 0, 0, 0, 4 }, { 1.0f, 0.1513878f, -1.6513878f, 0.5f } };
    qd_graph *g = block(e, ones, false);
    qd_smoothing s = { 0 };
    smoothing(g, both, 1, false, &s);
    assert_int_equal(s.n, 1);
    assert_string_equal(qd_graph_node(g, s.layers[0].layer)->name, "second");
    const float *f = s.layers[0].factor;
    assert_float_equal(f[3] / f[0], 1.732050f, 2e-6f);
    assert_float_equal(f[0] * f[1] * f[2] * f[3], 1.0f, 1e-5f);
    qd_smoothing_clear(&s);

    smoothing(g, both, 2, false, &s);
    assert_float_equal(s.layers[0].factor[3] / s.layers[0].factor[1], 1.366025f, 2e-6f);
    qd_smoothing other = { 0 };
    smoothing(g, (const int[]){ 1, 0 }, 2, false, &other);
    check_close(s.layers[0].factor, other.layers[0].factor, C, 1e-6, 0); /* the order of time steps does not matter */
    qd_smoothing_clear(&other);
    qd_smoothing_clear(&s);
    qd_graph_free(g);

    /* gamma counts without its sign; a channel that gamma silences is held at the lower end. */
    const float gamma[C] = { -2, 1, 0, 0.5f };
    g = block(e, gamma, false);
    smoothing(g, both, 1, true, &s);
    f = s.layers[0].factor;
    assert_float_equal(f[0] / f[1], 2.0f, 1e-5f);
    assert_float_equal(f[3] / f[1], 0.5f * 1.732050f, 1e-5f);
    assert_float_equal(f[2], 0.0625f, 0.0f);
    qd_smoothing_clear(&s);
    qd_graph_free(g);

    /* FiLM: S0 = mean max(1, |1 + s|) (7.3). */
    const float scale[STEPS][C] = { { 0, 1, -4, -0.5f }, { 0, 3, 0, 0 } };
    g = block(scale, ones, true);
    smoothing(g, both, 2, false, &s);
    f = s.layers[0].factor;
    assert_float_equal(f[1] / f[0], 3.0f, 1e-5f);
    assert_float_equal(f[2] / f[0], 2.0f, 1e-5f);
    assert_float_equal(f[3] / f[0], 1.0f, 1e-6f);
    qd_smoothing_clear(&s);
    qd_graph_free(g);
}

/* eps of a graph on some noise, by the plain loops or the fast ones. */
static void eps_of(const qd_graph *g, int64_t t, bool plain, float *out)
{
    qd_err err = { 0 };
    qd_denoiser *d = NULL;
    check_ok(qd_denoiser_new(g, 2, 1, plain ? &qd_backend_ref : NULL, NULL, &d, &err), &err);
    const qd_predictor p = qd_denoiser_predictor(d);
    const int64_t n = 2 * p.channels * p.height * p.width;
    float *x = qd_calloc((size_t)n, sizeof *x);
    harness_normal(x, n, 11, 1);
    check_ok(p.predict(p.ctx, NULL, x, (double)t, out, &err), &err);
    qd_free(x);
    qd_denoiser_free(d);
}

/* 12.1: any factors, also negative ones, leave the float network what it is; powers of two leave its bits. */
static void the_fold_changes_nothing(void **state)
{
    qd_err err = { 0 };
    const float e[STEPS][C] = { { 0, 0, 0, 4 }, { 1, 2, 3, 4 } };
    qd_graph *g = block(e, ones, false);
    enum { N = 2 * C * SIDE * SIDE };
    float want[N], got[N];
    eps_of(g, 1, true, want);
    for (int round = 0; round < 3; round++) {
        float factor[C] = { 0.25f, 4, 0.5f, 2 };
        if (round) {
            harness_normal(factor, C, 20 + (uint64_t)round, 1);
            for (int c = 0; c < C; c++)
                factor[c] = copysignf(0.25f + fminf(fabsf(factor[c]), 3.75f), factor[c]);
        }
        qd_smooth_layer layer = { .layer = qd_graph_find(g, "second"), .channels = C, .factor = factor };
        const qd_smoothing s = { .layers = &layer, .n = 1 };
        qd_graph *folded = NULL, *again = NULL;
        check_ok(qd_smooth_fold(g, &s, NULL, &folded, &err), &err);
        eps_of(folded, 1, true, got);
        if (round == 0)
            assert_memory_equal(got, want, sizeof want);
        else
            check_close(got, want, N, 0, 1e-5);

        /* Still found as a block, and refused a second time (7.5). */
        qd_resblock *b = NULL;
        int n = 0;
        check_ok(qd_resblocks_find(folded, &b, &n, &err), &err);
        assert_int_equal(n, 1);
        layer.layer = b[0].conv2;
        qd_free(b);
        check_fails(qd_smooth_fold(folded, &s, NULL, &again, &err), QD_E_INVALID, "smoothed already", &err);
        qd_graph_free(folded);
    }
    qd_graph_free(g);
}

typedef struct shipped {
    qd_model *model;
    qd_graph *graph;
} shipped;

static void shipped_open(shipped *s)
{
    qd_err err = { 0 };
    qd_role role;
    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &s->model, &err), &err);
    check_ok(qd_zoo_build(s->model, NULL, &s->graph, &role, &err), &err);
}

static void the_shipped_model(void **state)
{
    qd_err err = { 0 };
    shipped m = { 0 };
    shipped_open(&m);
    int t[50];
    for (int k = 0; k < 50; k++)
        t[k] = 20 * k;
    enum { N = 2 * 28 * 28 };
    static float want[N], got[N];
    for (int pow2 = 0; pow2 < 2; pow2++) {
        const qd_smooth_options o = { .gamma = true, .pow2 = pow2 };
        qd_smoothing s = { 0 };
        qd_graph *folded = NULL;
        check_ok(qd_smoothing_of_embeddings(m.graph, t, 50, &o, NULL, &s, &err), &err);
        assert_int_equal(s.n, 11); /* 3 on the way down, 2 in the middle, 6 on the way up */
        for (int k = 0; k < s.n; k++)
            assert_non_null(strstr(qd_graph_node(m.graph, s.layers[k].layer)->name, ".conv2"));
        check_ok(qd_smooth_fold(m.graph, &s, NULL, &folded, &err), &err);
        for (int plain = 0; plain < 2; plain++) {
            eps_of(m.graph, 500, plain, want);
            eps_of(folded, 500, plain, got);
            if (pow2 && plain)
                assert_memory_equal(got, want, sizeof want);
            else
                check_close(got, want, N, 0, 1e-4);
        }
        qd_graph_free(folded);
        qd_smoothing_clear(&s);
    }

    /* 12.2: 1 <= S0 <= sqrt(n_g - 1), so no two factors of a block are further apart. */
    const qd_smooth_options plain = { .gamma = false };
    qd_smoothing s = { 0 };
    check_ok(qd_smoothing_of_embeddings(m.graph, t, 50, &plain, NULL, &s, &err), &err);
    double widest = 1;
    for (int k = 0; k < s.n; k++) {
        float lo = INFINITY, hi = 0;
        for (int64_t c = 0; c < s.layers[k].channels; c++) {
            lo = fminf(lo, s.layers[k].factor[c]);
            hi = fmaxf(hi, s.layers[k].factor[c]);
        }
        const double most = sqrt((double)s.layers[k].channels / 8 - 1);
        assert_true(hi / lo <= fmax(most, 1) + 1e-5);
        widest = fmax(widest, hi / lo);
    }
    assert_true(widest > 1.05);
    print_message("factors of a block differ by up to %.3f without gamma\n", widest);
    qd_smoothing_clear(&s);
    qd_graph_free(m.graph);
    qd_model_free(m.model);
}

/* Networks of others: as many blocks as qncd.md 7.1 counts. */
static void published_networks(void **state)
{
    static const struct {
        const char *kind, *config;
        int blocks;
    } rows[] = {
        { "UNet2DModel",
          "{\"_class_name\":\"UNet2DModel\",\"sample_size\":32,\"in_channels\":3,\"out_channels\":3,"
          "\"block_out_channels\":[128,256,256,256],\"layers_per_block\":2,\"downsample_padding\":0,"
          "\"flip_sin_to_cos\":false,\"freq_shift\":1,\"norm_eps\":1e-6,\"attention_head_dim\":null,"
          "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\",\"DownBlock2D\",\"DownBlock2D\"],"
          "\"up_block_types\":[\"UpBlock2D\",\"UpBlock2D\",\"AttnUpBlock2D\",\"UpBlock2D\"]}",
          22 },
        { "UNet2DConditionModel",
          "{\"_class_name\":\"UNet2DConditionModel\",\"sample_size\":64,\"cross_attention_dim\":768,"
          "\"attention_head_dim\":8}",
          22 },
        { "UNetModel",
          "{\"_class_name\":\"UNetModel\",\"image_size\":32,\"in_channels\":4,\"out_channels\":4,"
          "\"model_channels\":192,\"attention_resolutions\":[1,2,4,8],\"num_res_blocks\":2,"
          "\"channel_mult\":[1,2,2,4,4],\"num_heads\":8,\"use_scale_shift_norm\":true,\"resblock_updown\":true}",
          35 },
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        qd_err err = { 0 };
        qd_config *c = NULL;
        qd_weight_source *w = NULL;
        qd_graph *g = NULL;
        qd_resblock *b = NULL;
        int n = 0, film = 0;
        check_ok(qd_config_parse(rows[k].config, strlen(rows[k].config), "config", &c, &err), &err);
        check_ok(qd_weight_source_blank(&w, &err), &err);
        check_ok(qd_network_kind_find(rows[k].kind)->build(c, w, NULL, &g, &err), &err);
        check_ok(qd_resblocks_find(g, &b, &n, &err), &err);
        for (int i = 0; i < n; i++)
            film += b[i].film >= 0;
        print_message("%s: %d blocks, %d of them FiLM\n", rows[k].kind, n, film);
        assert_int_equal(n, rows[k].blocks);
        assert_int_equal(film, k == 2 ? n : 0);
        qd_free(b);
        qd_graph_free(g);
        qd_weight_source_free(w);
        qd_config_free(c);
    }
}

/* A network without such blocks is told so. */
static void nothing_to_smooth(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_smoothing s = { 0 };
    const qd_smooth_options o = { .gamma = true };
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, 1, 4, 4), time = QD_SHAPE(-1);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &image);
    qd_graph_input(g, "timestep", QD_F32, &time);
    qd_graph_output(g, "eps", qd_graph_add(g, &qd_op_silu, "act", QD_IN(x), QD_NO_ATTRS));
    check_fails(qd_smoothing_of_embeddings(g, both, 2, &o, NULL, &s, &err), QD_E_INVALID, "no residual block", &err);
    qd_graph_free(g);
}

static qd_status each_alloc(void *ctx, qd_err *err)
{
    const qd_graph *g = ctx;
    const qd_smooth_options o = { .gamma = true };
    qd_smoothing s = { 0 };
    qd_graph *folded = NULL;
    qd_status st = qd_smoothing_of_embeddings(g, both, 2, &o, NULL, &s, err);
    if (!st)
        st = qd_smooth_fold(g, &s, NULL, &folded, err);
    qd_graph_free(folded);
    qd_smoothing_clear(&s);
    return st;
}

static void failing_allocations(void **state)
{
    const float e[STEPS][C] = { { 0, 0, 0, 4 }, { 1, 2, 3, 4 } };
    qd_graph *g = block(e, ones, false);
    harness_run_each_alloc(each_alloc, g, 20000);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_factors),    cmocka_unit_test(the_fold_changes_nothing),
        cmocka_unit_test(the_shipped_model), cmocka_unit_test(published_networks),
        cmocka_unit_test(nothing_to_smooth), cmocka_unit_test(failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
