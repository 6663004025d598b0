/* test_recon.c - learned rounding of whole layouts: goldens of a block and of GPTQ, never worse than nearest, the same bytes on any
 * number of threads and after being taken up again, stopping, budgets. */
#include "harness/harness.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../golden/quant/recon_golden.h"
#include "base/fs.h"
#include "base/mem.h"
#include "graph/op.h"
#include "nn/nn.h"
#include "quant/recon_int.h"

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

/* --- what a run tells --- */

typedef struct told {
    int losses, warnings, progresses;
    double loss[4096];
    char warning[512];
    atomic_bool cancel;
    const char *cancel_at; /* block at whose first progress the flag goes up */
} told;

static void on_metric(void *ctx, const char *name, int64_t step, double value)
{
    told *t = ctx;
    if (strcmp(name, "recon_loss") == 0 && t->losses < (int)COUNT(t->loss))
        t->loss[t->losses++] = value;
}

static void on_warn(void *ctx, const char *text)
{
    told *t = ctx;
    t->warnings++;
    snprintf(t->warning, sizeof t->warning, "%s", text);
}

static void on_progress(void *ctx, const char *phase, const char *item, int64_t done, int64_t total)
{
    told *t = ctx;
    assert_string_equal(phase, "reconstruct");
    assert_in_range(done, 0, total);
    t->progresses++;
    if (t->cancel_at && item && strcmp(item, t->cancel_at) == 0)
        atomic_store(&t->cancel, true);
}

static qd_run run_of(told *t, int threads)
{
    *t = (told){ 0 };
    return (qd_run){ .ctx = t,
                     .metric = on_metric,
                     .warn = on_warn,
                     .progress = on_progress,
                     .cancel = &t->cancel,
                     .seed = 5,
                     .threads = threads };
}

/* --- small graphs --- */

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

static qd_layout *layout_of(const qd_graph *g, int bits, int64_t group)
{
    qd_err err = { 0 };
    qd_layout *l = NULL;
    const qd_layout_options o = { .skip = "", .split_shortcut = true, .group_size = group };
    check_ok(qd_layout_new(g, &o, &l, &err), &err);
    check_ok(qd_layout_quantize_weights(l, bits, false, NULL, &err), &err);
    return l;
}

/* All at one time step. */
static qd_calibration_set set_of(const float *x, qd_shape shape)
{
    static int t = 0;
    qd_err err = { 0 };
    qd_calibration_set s = { .steps = 1, .t = &t, .samples = shape.dim[1] };
    check_ok(qd_tensor_init(&s.x, QD_F32, &shape, NULL, &err), &err);
    memcpy(s.x.data, x, qd_tensor_bytes(&s.x));
    return s;
}

static void codes_of(const qd_layout *l, int layer, int8_t *codes)
{
    qd_err err = { 0 };
    check_ok(qd_layer_get_codes(l, &l->layers[layer], codes, &err), &err);
}

/* --- goldens --- */

enum { C = 4, SIDE = 5, N = 6 };

static qd_graph *golden_block(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, C, SIDE, SIDE);
    const qd_attr pads = qd_attr_ints("pads", 4, (const int64_t[]){ 1, 1, 1, 1 });
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &image);
    const qd_node_id ga = constant(g, "ga", QD_SHAPE(C), block_gamma), be = constant(g, "be", QD_SHAPE(C), block_beta);
    qd_node_id h = qd_graph_add(g, &qd_op_group_norm, "norm", QD_IN(x, ga, be),
                                QD_ATTRS(QD_INT("groups", 2), QD_FLOAT("eps", 1e-6)));
    h = qd_graph_add(g, &qd_op_silu, "act1", QD_IN(h), QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_conv2d, "conv1", QD_IN(h, constant(g, "w1", QD_SHAPE(C, C, 3, 3), block_w0)), &pads, 1);
    h = qd_graph_add(g, &qd_op_silu, "act2", QD_IN(h), QD_NO_ATTRS);
    const qd_node_id w2 = constant(g, "w2", QD_SHAPE(C, C, 3, 3), block_w1),
                     bias = constant(g, "b2", QD_SHAPE(C), block_bias);
    h = qd_graph_add(g, &qd_op_conv2d, "conv2", QD_IN(h, w2, bias), &pads, 1);
    qd_graph_output(g, "eps", qd_graph_add(g, &qd_op_add, "block", QD_IN(x, h), QD_NO_ATTRS));
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

/* Steps of 0.6 of what they are, and codes to nearest of these. */
static void shrink_steps(qd_layout *l)
{
    qd_err err = { 0 };
    for (int k = 0; k < l->n_layers; k++) {
        int8_t codes[C * C * 9];
        qd_part *p = &l->layers[k].part[0];
        const float *w = qd_f32(&qd_graph_node(l->graph, qd_graph_node(l->graph, l->layers[k].id)->input[1])->value);
        for (int o = 0; o < C; o++) {
            qd_f32(&p->wscale)[o] *= 0.6f;
            for (int i = o * C * 9; i < (o + 1) * C * 9; i++)
                codes[i] = (int8_t)fmin(fmax(nearbyint((double)w[i] / qd_f32(&p->wscale)[o]), -8), 7);
        }
        check_ok(qd_layer_set_codes(l, &l->layers[k], codes, NULL, &err), &err);
    }
}

/* The whole of qncd.md 6.1 to 6.3 against autograd: 60 steps of Adam with all samples in each, the loss before every step. */
static void block_as_autograd_has_it(void **state)
{
    qd_err err = { 0 };
    told t;
    const qd_run run = run_of(&t, 2);
    qd_graph *g = golden_block();
    qd_layout *l = layout_of(g, 4, 0);
    qd_calibration_set set = set_of(block_x, QD_SHAPE(1, N, C, SIDE, SIDE));
    const qd_recon_options o = {
        .iterations = 60, .batch = N, .lr = 0.02, .lambda = 0.01, .b_start = 20, .b_end = 2, .warmup = 0.2, .settled = 1
    };
    qd_recon_report r = { 0 };
    shrink_steps(l);
    check_ok(qd_layout_reconstruct(l, &set, &o, &run, &r, &err), &err);
    assert_int_equal(t.losses, 60);
    float got[60];
    for (int k = 0; k < 60; k++)
        got[k] = (float)t.loss[k];
    check_close(got, block_loss, 60, 0, 1e-5); /* ours in single precision, over 60 steps */
    int8_t codes[C * C * 9];
    codes_of(l, 0, codes);
    assert_memory_equal(codes, block_codes0, sizeof codes);
    codes_of(l, 1, codes);
    assert_memory_equal(codes, block_codes1, sizeof codes);
    assert_int_equal(r.n, 1);
    assert_string_equal(r.blocks[0].name, "block");
    assert_string_equal(r.blocks[0].kind, "resblock");
    assert_int_equal(r.blocks[0].layers, 2);
    assert_int_equal(r.blocks[0].iterations, 60);
    assert_true(fabs(r.blocks[0].mse_nearest / block_mse[0] - 1) < 1e-4);
    assert_true(fabs(r.blocks[0].mse_learned / block_mse[1] - 1) < 1e-4);
    assert_false(r.blocks[0].kept_nearest);
    qd_recon_report_clear(&r);
    qd_tensor_clear(&set.x);
    qd_layout_free(l);
    qd_graph_free(g);
}

/* One layer: tokens [5, 20] to 12, or an image [4, 6, 6] to 6 channels in two groups. */
static qd_graph *golden_layer(bool conv)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape tokens = QD_SHAPE(-1, 5, 20), image = QD_SHAPE(-1, 4, 6, 6);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, conv ? &image : &tokens);
    const int64_t two[] = { 2, 2 }, pads[] = { 1, 1, 1, 1 };
    const qd_node_id w = constant(g, "w", conv ? QD_SHAPE(6, 2, 3, 3) : QD_SHAPE(12, 20), conv ? conv_w : linear_w);
    const qd_node_id y =
        conv
            ? qd_graph_add(g, &qd_op_conv2d, "layer", QD_IN(x, w),
                           QD_ATTRS(qd_attr_ints("stride", 2, two), qd_attr_ints("pads", 4, pads), QD_INT("groups", 2)))
            : qd_graph_add(g, &qd_op_linear, "layer", QD_IN(x, w), QD_NO_ATTRS);
    qd_graph_output(g, "eps", y);
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static void check_gptq(bool conv, bool ordered, const int8_t *want, size_t n)
{
    qd_err err = { 0 };
    told t;
    const qd_run run = run_of(&t, 2);
    qd_graph *g = golden_layer(conv);
    qd_layout *l = layout_of(g, 4, 0);
    qd_calibration_set set = conv ? set_of(conv_x, QD_SHAPE(1, 30, 4, 6, 6)) : set_of(linear_x, QD_SHAPE(1, 40, 5, 20));
    const qd_recon_options o = { .how = QD_RECON_GPTQ, .damping = conv ? 0.02 : 0, .act_order = ordered };
    qd_recon_report r = { 0 };
    int8_t codes[256];
    check_ok(qd_layout_reconstruct(l, &set, &o, &run, &r, &err), &err);
    codes_of(l, 0, codes);
    assert_int_equal(qd_layer_weights(l, &l->layers[0]), n);
    assert_memory_equal(codes, want, n);
    assert_false(r.blocks[0].kept_nearest);
    print_message("mse %.4g to nearest, %.4g by gptq\n", r.blocks[0].mse_nearest, r.blocks[0].mse_learned);
    assert_true(r.blocks[0].mse_learned < 0.9 * r.blocks[0].mse_nearest);
    assert_string_equal(r.blocks[0].note, "");
    assert_true(isnan(r.blocks[0].settled));
    qd_recon_report_clear(&r);
    qd_tensor_clear(&set.x);
    qd_layout_free(l);
    qd_graph_free(g);
}

static void gptq_as_its_paper_has_it(void **state)
{
    check_gptq(false, false, linear_codes, sizeof linear_codes);
    check_gptq(false, true, linear_ordered, sizeof linear_ordered);
    check_gptq(true, false, conv_codes, sizeof conv_codes);
}

/* Layers it cannot do stay as they were and say why. */
static void gptq_says_what_it_left(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = golden_layer(false);
    qd_layout *l = layout_of(g, 4, 0);
    static const float zeros[40 * 100];
    qd_calibration_set set = set_of(zeros, QD_SHAPE(1, 40, 5, 20));
    const qd_recon_options o = { .how = QD_RECON_GPTQ };
    qd_recon_report r = { 0 };
    int8_t before[240], after[240];
    codes_of(l, 0, before);
    check_ok(qd_layout_reconstruct(l, &set, &o, NULL, &r, &err), &err);
    codes_of(l, 0, after);
    assert_memory_equal(before, after, sizeof before);
    assert_true(r.blocks[0].kept_nearest);
    assert_non_null(strstr(r.blocks[0].note, "does not determine"));
    assert_string_equal(qd_gptq_note(r.blocks[0].note), r.blocks[0].note);
    assert_string_equal(qd_gptq_note("anything else"), "");
    qd_recon_report_clear(&r);
    qd_tensor_clear(&set.x);
    qd_layout_free(l);
    qd_graph_free(g);
}

/* --- a small U-Net --- */

#define UNET                                                                                                           \
    "{\"_class_name\":\"UNet2DModel\",\"sample_size\":8,\"in_channels\":1,\"out_channels\":1,"                         \
    "\"block_out_channels\":[8,16],\"norm_num_groups\":4,\"layers_per_block\":1,\"attention_head_dim\":8,"             \
    "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\"],\"up_block_types\":[\"AttnUpBlock2D\",\"UpBlock2D\"]}"

enum { STEPS = 3, SAMPLES = 4 };

typedef struct unet {
    qd_graph *g;
    qd_layout *l;
    qd_calibration_set set;
    int t[STEPS];
} unet;

static void unet_open(unet *u, int64_t group)
{
    qd_err err = { 0 };
    const qd_shape shape = QD_SHAPE(STEPS, SAMPLES, 1, 8, 8);
    const qd_layout_options o = {
        .skip = "", .split_shortcut = true, .float_edges = true, .w8_edges = true, .w8_time = true, .group_size = group
    };
    *u = (unet){ .t = { 900, 500, 100 } };
    check_ok(qd_zoo_random(UNET, 5, &u->g, &err), &err);
    check_ok(qd_layout_new(u->g, &o, &u->l, &err), &err);
    check_ok(qd_layout_quantize_weights(u->l, 4, true, NULL, &err), &err);
    u->set = (qd_calibration_set){ .steps = STEPS, .t = u->t, .samples = SAMPLES };
    check_ok(qd_tensor_init(&u->set.x, QD_F32, &shape, NULL, &err), &err);
    harness_normal(qd_f32(&u->set.x), STEPS * SAMPLES * 64, 3, 1.0f);
}

static void unet_close(unet *u)
{
    qd_tensor_clear(&u->set.x);
    qd_layout_free(u->l);
    qd_graph_free(u->g);
}

static const qd_recon_options quick = {
    .iterations = 40, .batch = 4, .lr = 0.03, .lambda = 0.01, .b_start = 20, .b_end = 2, .warmup = 0.2, .settled = 1
};

/* All codes of a layout in one line. */
static void digest(const qd_layout *l, char hex[QD_SHA256_HEX])
{
    qd_buf b;
    qd_buf_init(&b, 0);
    for (int k = 0; k < l->n_layers; k++)
        for (int p = 0; p < l->layers[k].n_parts; p++)
            qd_buf_add(&b, l->layers[k].part[p].codes.data, qd_tensor_bytes(&l->layers[k].part[p].codes));
    assert_false(b.failed);
    qd_sha256(b.data, b.size, hex);
    qd_buf_clear(&b);
}

static void reconstruct(const qd_recon_options *o, const qd_run *run, int64_t group, char hex[QD_SHA256_HEX],
                        qd_recon_report *r)
{
    qd_err err = { 0 };
    unet u;
    unet_open(&u, group);
    check_ok(qd_layout_reconstruct(u.l, &u.set, o, run, r, &err), &err);
    digest(u.l, hex);
    unet_close(&u);
}

/* 12.6: learned codes are within one of the floor and no block is worse than to nearest. */
static void no_block_is_worse(void **state)
{
    for (int how = QD_RECON_BLOCK; how <= QD_RECON_GPTQ; how++)
        for (int64_t group = how == QD_RECON_LAYER ? 8 : 0; group <= (how == QD_RECON_BLOCK ? 0 : 8); group += 8) {
            qd_err err = { 0 };
            unet u, before;
            told t;
            const qd_run run = run_of(&t, 2);
            qd_recon_options o = quick;
            qd_recon_report r = { 0 };
            o.how = how;
            unet_open(&u, group);
            unet_open(&before, group);
            check_ok(qd_layout_reconstruct(u.l, &u.set, &o, &run, &r, &err), &err);
            int layers = 0, quantized = 0, moved = 0, better = 0;
            double gain = 0;
            for (int k = 0; k < r.n; k++) {
                const qd_recon_block *b = &r.blocks[k];
                layers += b->layers;
                assert_true(isfinite(b->mse_nearest) && b->mse_nearest > 0);
                assert_true(b->kept_nearest == !(b->mse_learned < b->mse_nearest));
                better += !b->kept_nearest;
                gain += 10 * log10(b->mse_nearest / (b->kept_nearest ? b->mse_nearest : b->mse_learned));
            }
            for (int k = 0; k < u.l->n_layers; k++) {
                const qd_quant_layer *layer = &u.l->layers[k];
                const int64_t n = qd_layer_weights(u.l, layer);
                int8_t *a = qd_alloc((size_t)n), *b = qd_alloc((size_t)n);
                quantized += !layer->note;
                if (layer->n_parts) {
                    codes_of(u.l, k, a);
                    codes_of(before.l, k, b);
                }
                for (int64_t i = 0; i < n && layer->n_parts; i++) {
                    moved += a[i] != b[i];
                    assert_true(!layer->note || a[i] == b[i]); /* 8-bit weights beside are not touched */
                    assert_true(how == QD_RECON_GPTQ || abs(a[i] - b[i]) <= 1);
                }
                qd_free(a);
                qd_free(b);
            }
            print_message("how %d, group %d: %d of %d blocks better, %.2f dB on average, %d codes moved\n", how,
                          (int)group, better, r.n, gain / r.n, moved);
            assert_int_equal(layers, quantized);
            assert_int_equal(r.n, how == QD_RECON_BLOCK ? 14 : quantized);
            assert_true(better > r.n / 2 && gain / r.n > 0.3 && moved > 100);
            assert_true(t.progresses > 0 && t.warnings == 0);
            qd_recon_report_clear(&r);
            unet_close(&before);
            unet_close(&u);
        }
}

static void threads_do_not_matter(void **state)
{
    for (int how = QD_RECON_BLOCK; how <= QD_RECON_GPTQ; how++) {
        char hex[2][QD_SHA256_HEX];
        qd_recon_options o = quick;
        o.how = how;
        o.iterations = 5;
        for (int k = 0; k < 2; k++) {
            told t;
            const qd_run run = run_of(&t, k ? 3 : 1);
            qd_recon_report r = { 0 };
            reconstruct(&o, &run, 0, hex[k], &r);
            qd_recon_report_clear(&r);
        }
        assert_string_equal(hex[0], hex[1]);
    }
}

/* Stopped in the middle and taken up again: finished blocks are not learned again, and the bytes are those of a run that never stopped. */
static void taken_up_again(void **state)
{
    for (int how = QD_RECON_BLOCK; how <= QD_RECON_GPTQ; how += QD_RECON_GPTQ - QD_RECON_BLOCK) {
        qd_err err = { 0 };
        char want[QD_SHA256_HEX], got[QD_SHA256_HEX];
        told t;
        qd_run run = run_of(&t, 2);
        qd_recon_report whole = { 0 }, r = { 0 };
        qd_recon_options o = quick;
        o.how = how;
        o.iterations = 4;
        reconstruct(&o, &run, 0, want, &whole);
        const int all = t.losses;

        unet u;
        unet_open(&u, 0);
        o.checkpoint = harness_tmp();
        run = run_of(&t, 2);
        t.cancel_at = how == QD_RECON_BLOCK ? "mid_block.attentions.0" : "mid_block.attentions.0.to_q";
        check_fails(qd_layout_reconstruct(u.l, &u.set, &o, &run, &r, &err), QD_E_CANCELLED, NULL, &err);
        assert_null(r.blocks);
        unet_close(&u);
        const int before = t.losses;
        assert_true(how == QD_RECON_GPTQ || (before > 0 && before < all));

        run = run_of(&t, 1);
        reconstruct(&o, &run, 0, got, &r);
        assert_string_equal(got, want);
        assert_true(how == QD_RECON_GPTQ || (t.losses < all && t.losses + before >= all));
        assert_int_equal(t.warnings, 0);
        assert_int_equal(r.n, whole.n);
        for (int k = 0; k < r.n; k++) {
            assert_string_equal(r.blocks[k].name, whole.blocks[k].name);
            assert_true(r.blocks[k].mse_nearest == whole.blocks[k].mse_nearest);
            assert_true(r.blocks[k].mse_learned == whole.blocks[k].mse_learned);
            assert_int_equal(r.blocks[k].kept_nearest, whole.blocks[k].kept_nearest);
            assert_int_equal(r.blocks[k].iterations, whole.blocks[k].iterations);
        }
        qd_recon_report_clear(&whole);
        qd_recon_report_clear(&r);
    }
}

/* Checkpoints of another seed, and damaged ones, are learned anew with a warning; those of this run are not. */
static void foreign_checkpoints(void **state)
{
    qd_err err = { 0 };
    char want[QD_SHA256_HEX], got[QD_SHA256_HEX];
    told t;
    qd_run run = run_of(&t, 2);
    qd_recon_report r = { 0 };
    qd_recon_options o = quick;
    o.iterations = 2;
    o.checkpoint = harness_tmp();
    reconstruct(&o, &run, 0, want, &r);
    assert_int_equal(t.losses, 2 * r.n);
    run = run_of(&t, 2);
    run.seed = 6;
    reconstruct(&o, &run, 0, got, &r);
    assert_string_not_equal(got, want);
    assert_int_equal(t.warnings, r.n);
    assert_int_equal(t.losses, 2 * r.n);
    assert_non_null(strstr(t.warning, "another network, data or options"));

    char *path = qd_fs_join(o.checkpoint, "recon-0003.safetensors");
    assert_true(qd_fs_exists(path));
    check_ok(qd_fs_write(path, "not a checkpoint", 16, &err), &err);
    qd_free(path);
    strcpy(want, got);
    run = run_of(&t, 2);
    run.seed = 6;
    reconstruct(&o, &run, 0, got, &r);
    assert_string_equal(got, want);
    assert_int_equal(t.warnings, 1);
    assert_int_equal(t.losses, 2);
    qd_recon_report_clear(&r);
}

/* How many samples of each step there is room for: half of what the budget has left, and words that say what is wanted. */
static void samples_by_budget(void **state)
{
    qd_err err = { 0 };
    unet u;
    qd_blocks b = { 0 };
    qd_kept_values k;
    qd_budget budget;
    int seen[SAMPLES + 1] = { 0 };
    unet_open(&u, 0);
    check_ok(qd_blocks_find(u.l, false, &b, &err), &err);
    for (size_t limit = 10 << 10; limit < 2 << 20; limit += 10 << 10) {
        qd_budget_init(&budget, limit);
        const qd_run run = { .budget = &budget };
        const qd_status st = qd_kept_init(&k, u.l, &b, &u.set, 0, &run, &err);
        if (st) {
            assert_int_equal(seen[1], 0); /* the least limits alone fail */
            assert_true(budget.used_bytes == 0);
            check_fails(st, QD_E_LIMIT, "one sample at 3 time steps", &err);
            continue;
        }
        seen[k.per_step]++;
        assert_int_equal(k.items, k.per_step * STEPS);
        for (int i = 0; i < STEPS; i++) /* the first samples of each step */
            assert_memory_equal(qd_f32(&k.value[QD_NET_FLOAT][u.l->input]) + i * k.per_step * 64,
                                qd_f32(&u.set.x) + i * SAMPLES * 64, (size_t)k.per_step * 64 * sizeof(float));
        /* All values of both networks, block after block: what is kept stays within the half it was given. */
        size_t most = 0;
        for (int i = 0; i < b.n; i++) {
            qd_tensor y[2];
            for (int net = 0; net < 2; net++)
                check_ok(qd_kept_compute(&k, net, &b.block[i].out, 1, &y[net], &err), &err);
            if (budget.used_bytes > most)
                most = budget.used_bytes;
            for (int net = 0; net < 2; net++)
                k.value[net][b.block[i].out] = y[net];
            qd_kept_drop(&k, i);
            if (limit % (40 << 10))
                break; /* the whole way now and then */
        }
        assert_true(most <= limit / 2);
        qd_kept_clear(&k);
        assert_int_equal(budget.used_bytes, 0);
    }
    for (int n = 1; n <= SAMPLES; n++)
        assert_true(seen[n] > 0);
    qd_blocks_clear(&b);
    unet_close(&u);
}

/* A run tells when it goes by fewer samples; whatever happens the budget gets all back. */
static void budgets(void **state)
{
    qd_err err = { 0 };
    qd_budget budget;
    told t;
    unet u;
    qd_recon_report r = { 0 };
    qd_recon_options o = quick;
    o.how = QD_RECON_GPTQ;
    const size_t limits[] = { 64 << 20, 100 << 10 };
    for (int k = 0; k < 2; k++) {
        qd_run run = run_of(&t, 2);
        unet_open(&u, 0);
        qd_budget_init(&budget, limits[k]);
        run.budget = &budget;
        if (k == 0)
            check_ok(qd_layout_reconstruct(u.l, &u.set, &o, &run, &r, &err), &err);
        else
            check_fails(qd_layout_reconstruct(u.l, &u.set, &o, &run, &r, &err), QD_E_LIMIT, NULL, &err);
        unet_close(&u);
        assert_int_equal(budget.used_bytes, 0); /* codes are drawn from it, and went with the layout */
    }
    qd_recon_report_clear(&r);
}

/* What comes of the flag, at once: in the middle of the iterations of one block. */
static void cancelled(void **state)
{
    qd_err err = { 0 };
    told t;
    unet u;
    qd_recon_report r = { 0 };
    for (int how = QD_RECON_BLOCK; how <= QD_RECON_GPTQ; how++) {
        qd_run run = run_of(&t, 2);
        qd_recon_options o = quick;
        o.how = how;
        o.iterations = 1000000;
        unet_open(&u, 0);
        t.cancel_at = how == QD_RECON_BLOCK ? "down_blocks.0.resnets.0" : "down_blocks.0.resnets.0.conv1";
        check_fails(qd_layout_reconstruct(u.l, &u.set, &o, &run, &r, &err), QD_E_CANCELLED, NULL, &err);
        assert_int_equal(t.progresses, 1);
        unet_close(&u);
    }
}

static void refused_options(void **state)
{
    qd_err err = { 0 };
    unet u;
    qd_recon_report r = { 0 };
    unet_open(&u, 0);
    qd_recon_options o = quick;
    o.iterations = 0;
    check_fails(qd_layout_reconstruct(u.l, &u.set, &o, NULL, &r, &err), QD_E_INVALID, "at least one iteration", &err);
    o = quick;
    o.lr = -1;
    check_fails(qd_layout_reconstruct(u.l, &u.set, &o, NULL, &r, &err), QD_E_INVALID, "lr must be", &err);
    o = quick;
    o.b_end = 30;
    check_fails(qd_layout_reconstruct(u.l, &u.set, &o, NULL, &r, &err), QD_E_INVALID, "b must fall", &err);
    o = quick;
    o.warmup = 1;
    check_fails(qd_layout_reconstruct(u.l, &u.set, &o, NULL, &r, &err), QD_E_INVALID, "warmup must be", &err);
    o = quick;
    o.how = QD_RECON_GPTQ;
    o.damping = -1;
    check_fails(qd_layout_reconstruct(u.l, &u.set, &o, NULL, &r, &err), QD_E_INVALID, "damping", &err);
    qd_layout_options lo = { .skip = "" };
    qd_layout *bare = NULL;
    check_ok(qd_layout_new(u.g, &lo, &bare, &err), &err);
    check_fails(qd_layout_reconstruct(bare, &u.set, &quick, NULL, &r, &err), QD_E_INVALID, "no codes yet", &err);
    qd_layout_free(bare);
    unet_close(&u);
}

/* Early stop: with the regulariser alone to speak of, everything settles. */
static void stops_when_settled(void **state)
{
    told t;
    const qd_run run = run_of(&t, 2);
    char hex[QD_SHA256_HEX];
    qd_recon_report r = { 0 };
    qd_recon_options o = quick;
    o.iterations = 1000;
    o.lr = 0.3;
    o.lambda = 10;
    o.warmup = 0;
    o.settled = 0.99;
    reconstruct(&o, &run, 0, hex, &r);
    for (int k = 0; k < r.n; k++) {
        assert_true(r.blocks[k].iterations < 1000);
        assert_true(r.blocks[k].settled >= 0.99);
    }
    qd_recon_report_clear(&r);
}

/* --- the model that ships --- */

typedef struct shipped {
    qd_model *m;
    qd_graph *g;
    qd_schedule *s;
    qd_calibration_set set;
} shipped;

/* eps SQNR of W4A8 in dB. */
static double shipped_sqnr(const shipped *x, const qd_recon_options *o)
{
    qd_err err = { 0 };
    qd_layout *l = NULL;
    qd_graph *q = NULL;
    qd_quant_report report = { 0 };
    qd_recon_report r = { 0 };
    const qd_run run = { .seed = 7, .threads = 2 };
    const qd_layout_options lo = { .skip = "", .split_shortcut = true, .float_edges = true, .w8_time = true };
    const qd_range_rule rule = { .how = QD_RANGE_MSE, .bits = 8 };
    const qd_sample_options so = { .steps = 8, .clip = -1, .seed = 7, .first_sample = 1000 };
    check_ok(qd_layout_new(x->g, &lo, &l, &err), &err);
    check_ok(qd_layout_quantize_weights(l, 4, true, &run, &err), &err);
    if (o) {
        check_ok(qd_layout_reconstruct(l, &x->set, o, &run, &r, &err), &err);
        for (int k = 0; k < r.n; k++)
            assert_true(r.blocks[k].mse_learned < r.blocks[k].mse_nearest);
    }
    check_ok(qd_layout_observe(l, &x->set, &run, &err), &err);
    check_ok(qd_layout_choose_maps(l, &rule, &run, &err), &err);
    check_ok(qd_layout_apply(l, &q, &err), &err);
    check_ok(qd_quant_measure_eps(x->g, q, x->s, &so, 2, 1, &run, &report, &err), &err);
    const double db = report.eps_sqnr_mean_db;
    qd_recon_report_clear(&r);
    qd_quant_report_clear(&report);
    qd_graph_free(q);
    qd_layout_free(l);
    return db;
}

/* What it is all for: the integer network's noise on trajectories and time steps that were not learned on. */
static void the_model_that_ships(void **state)
{
    qd_err err = { 0 };
    qd_role role;
    shipped x = { 0 };
    const qd_run run = { .seed = 7, .threads = 2 };
    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &x.m, &err), &err);
    check_ok(qd_zoo_build(x.m, &run, &x.g, &role, &err), &err);
    check_ok(qd_schedule_open(x.m->scheduler, &x.s, &err), &err);
    const qd_trajectories j = { .graph = x.g,
                                .schedule = x.s,
                                .sampler = qd_sampler_find("ddim"),
                                .options = { .steps = 8, .clip = -1, .seed = 7 },
                                .samples = 8,
                                .phase = "trajectories" };
    check_ok(qd_calibration_set_make(&j, 4, &run, &x.set, &err), &err);
    qd_recon_options o = quick, gptq = { .how = QD_RECON_GPTQ };
    o.batch = 8;
    o.iterations = 15;
    o.lr = 0.06;
    const double nearest = shipped_sqnr(&x, NULL), block = shipped_sqnr(&x, &o), closed = shipped_sqnr(&x, &gptq);
    print_message("eps SQNR at W4A8: %.2f dB to nearest, %.2f learned in 15 steps a block, %.2f by gptq\n", nearest,
                  block, closed);
    assert_true(block > nearest + 1.0 && closed > nearest + 1.0);
    qd_calibration_set_clear(&x.set);
    qd_schedule_free(x.s);
    qd_graph_free(x.g);
    qd_model_free(x.m);
}

typedef struct alloc_case {
    qd_graph *g;
    qd_calibration_set set;
    int how;
    const char *folder;
} alloc_case;

static qd_status once(void *ctx, qd_err *err)
{
    alloc_case *c = ctx;
    qd_layout *l = NULL;
    qd_recon_report r = { 0 };
    qd_budget budget;
    qd_budget_init(&budget, 1 << 26);
    const qd_run run = { .budget = &budget };
    qd_recon_options o = quick;
    o.how = c->how;
    o.iterations = 1;
    o.checkpoint = c->folder;
    const qd_layout_options lo = { .skip = "" };
    qd_status st = qd_layout_new(c->g, &lo, &l, err);
    if (!st)
        st = qd_layout_quantize_weights(l, 4, false, &run, err);
    if (!st)
        st = qd_layout_reconstruct(l, &c->set, &o, &run, &r, err);
    qd_recon_report_clear(&r);
    qd_layout_free(l);
    assert_int_equal(budget.used_bytes, 0);
    return st;
}

static void without_memory(void **state)
{
    alloc_case c = { .g = golden_block(), .set = set_of(block_x, QD_SHAPE(1, N, C, SIDE, SIDE)) };
    for (c.how = QD_RECON_BLOCK; c.how <= QD_RECON_GPTQ; c.how += 2)
        print_message("%ld allocations, each failed once\n", harness_run_each_alloc(once, &c, 20000));
    c.how = QD_RECON_BLOCK;
    c.folder = harness_tmp();
    qd_err err = { 0 };
    check_ok(once(&c, &err), &err); /* loading what is there: checkpoints are written but once */
    print_message("%ld allocations, each failed once\n", harness_run_each_alloc(once, &c, 20000));
    qd_tensor_clear(&c.set.x);
    qd_graph_free(c.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(block_as_autograd_has_it),
        cmocka_unit_test(gptq_as_its_paper_has_it),
        cmocka_unit_test(gptq_says_what_it_left),
        cmocka_unit_test(no_block_is_worse),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(taken_up_again),
        cmocka_unit_test(foreign_checkpoints),
        cmocka_unit_test(samples_by_budget),
        cmocka_unit_test(budgets),
        cmocka_unit_test(cancelled),
        cmocka_unit_test(refused_options),
        cmocka_unit_test(stops_when_settled),
        cmocka_unit_test(the_model_that_ships),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
