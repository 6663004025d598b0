/* test_smooth_balanced.c - factors tried layer by layer: never worse than QNCD's own, free where a norm takes them (qncd.md 7.6). */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/qncd_int.h"

enum { STEPS = 5, SAMPLES = 2, SIZE = 28 * 28 };

typedef struct shipped {
    qd_model *model;
    qd_graph *graph;
    qd_schedule *schedule;
    qd_calibration_set set;
    qd_smoothing own;
    int t[STEPS];
} shipped;

static int open_shipped(void **state)
{
    qd_err err = { 0 };
    qd_role role;
    shipped *s = qd_calloc(1, sizeof *s);
    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &s->model, &err), &err);
    check_ok(qd_zoo_build(s->model, NULL, &s->graph, &role, &err), &err);
    check_ok(qd_schedule_open(s->model->scheduler, &s->schedule, &err), &err);
    check_ok(qd_timesteps(s->schedule, QD_SPACING_LEADING, STEPS, s->t, &err), &err);
    const qd_trajectories j = { .graph = s->graph,
                                .schedule = s->schedule,
                                .sampler = qd_sampler_find("ddim"),
                                .options = { .steps = STEPS, .clip = -1, .seed = 3 },
                                .samples = SAMPLES,
                                .phase = "trajectories" };
    check_ok(qd_calibration_set_make(&j, STEPS, NULL, &s->set, &err), &err);
    const qd_smooth_options o = { .gamma = true };
    check_ok(qd_smoothing_of_embeddings(s->graph, s->t, STEPS, &o, NULL, &s->own, &err), &err);
    *state = s;
    return 0;
}

static int close_shipped(void **state)
{
    shipped *s = *state;
    qd_smoothing_clear(&s->own);
    qd_calibration_set_clear(&s->set);
    qd_schedule_free(s->schedule);
    qd_graph_free(s->graph);
    qd_model_free(s->model);
    qd_free(s);
    return 0;
}

static qd_layout *lay_out(const shipped *s)
{
    qd_err err = { 0 };
    qd_layout *l = NULL;
    const qd_layout_options o = { .skip = "", .split_shortcut = true, .float_edges = true, .softmax_bits = 16 };
    check_ok(qd_layout_new(s->graph, &o, &l, &err), &err);
    return l;
}

static const qd_balance_options w4a6 = { .weight_bits = 4, .range = { .how = QD_RANGE_MINMAX, .bits = 6 } };

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

static bool is_division(const qd_graph *g, const char *layer)
{
    qd_node_id value, factor;
    return qd_smooth_is(g, qd_graph_node(g, qd_graph_find(g, layer))->input[0], &value, &factor);
}

/* 7.6: never worse than QNCD's own factors or none by the error that is measured, better somewhere; the float network stays. */
static void never_worse(void **state)
{
    const shipped *s = *state;
    qd_err err = { 0 };
    qd_smoothing made = { 0 };
    qd_smooth_report r = { 0 };
    qd_graph *folded = NULL;
    qd_layout *l = lay_out(s);
    check_ok(qd_smoothing_balanced(l, &s->set, &s->own, &w4a6, NULL, &made, &r, &err), &err);

    int with_own = 0, better = 0, in_norm = 0, conv1 = 0;
    for (int k = 0; k < r.n; k++) {
        const qd_smooth_row *row = &r.rows[k];
        assert_true(isfinite(row->mse) && row->mse <= row->mse_none);
        if (!isnan(row->mse_own)) {
            with_own++;
            assert_true(row->mse <= row->mse_own);
            better += row->mse < row->mse_own;
        }
        assert_int_equal(isnan(row->alpha), strcmp(row->chosen, "balanced") != 0);
        conv1 += strstr(row->name, ".conv1") != NULL;
        in_norm += row->in_norm;
    }
    assert_int_equal(with_own, s->own.n);
    assert_int_equal(conv1, s->own.n); /* the other convolution of each block has its turn, too */
    assert_true(better > 0);
    /* q, k and v of four attention blocks share the norm before them. */
    assert_int_equal(in_norm, 12);
    print_message("%d layers, %d of them by their norm; better than QNCD's own factors in %d of %d\n", r.n, in_norm,
                  better, with_own);

    check_ok(qd_smooth_fold(s->graph, &made, NULL, &folded, &err), &err);
    static float want[2 * SIZE], got[2 * SIZE];
    eps_of(s->graph, 500, want);
    eps_of(folded, 500, got);
    check_close(got, want, 2 * SIZE, 0, 1e-4);
    for (int k = 0; k < r.n; k++)
        assert_int_equal(is_division(folded, r.rows[k].name),
                         !r.rows[k].in_norm && strcmp(r.rows[k].chosen, "none") != 0);
    for (int k = 0; k < made.n; k++)
        for (int64_t c = 0; c < made.layers[k].channels; c++)
            assert_true(made.layers[k].factor[c] >= 0.0625f && made.layers[k].factor[c] <= 16.0f);
    qd_smooth_report_clear(&r);
    qd_smoothing_clear(&made);
    qd_graph_free(folded);
    qd_layout_free(l);
}

/* The error told is the error made: what the table says of one layer without factors is what this layer alone does, in codes. */
static void the_error_is_real(void **state)
{
    const shipped *s = *state;
    qd_err err = { 0 };
    static const char name[] = "down_blocks.0.resnets.0.conv1";
    qd_smoothing made = { 0 };
    qd_smooth_report r = { 0 };
    qd_layout *l = lay_out(s);
    check_ok(qd_layout_watch_groups(l, &s->set, STEPS, &err), &err);
    check_ok(qd_smoothing_balanced(l, &s->set, &s->own, &w4a6, NULL, &made, &r, &err), &err);
    double by_steps = NAN, by_one = NAN;
    for (int k = 0; k < r.n; k++)
        if (strcmp(r.rows[k].name, name) == 0)
            by_steps = r.rows[k].mse_none;
    qd_smooth_report_clear(&r);
    qd_smoothing_clear(&made);
    qd_layout_free(l);

    l = lay_out(s);
    check_ok(qd_smoothing_balanced(l, &s->set, &s->own, &w4a6, NULL, &made, &r, &err), &err);
    for (int k = 0; k < r.n; k++)
        if (strcmp(r.rows[k].name, name) == 0)
            by_one = r.rows[k].mse_none;
    assert_true(by_steps < by_one); /* a range for each step is a finer one */

    /* By hand, with one range: x to codes and back, the weight to codes and back. */
    qd_quant_layer *layer = NULL;
    for (int k = 0; k < l->n_layers; k++)
        if (strcmp(qd_graph_node(l->graph, l->layers[k].id)->name, name) == 0)
            layer = &l->layers[k];
    assert_non_null(layer);
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    qd_layout only = *l;
    qd_quantizer q = l->quantizers[layer->part[0].quantizer];
    only.quantizers = &q;
    only.n_quantizers = 1;
    check_ok(qd_layout_observe(&only, &s->set, NULL, &err), &err);
    check_ok(qd_layout_choose_maps(&only, &w4a6.range, NULL, &err), &err);
    qd_tensor meant = { 0 };
    const qd_tensor *w = &qd_graph_node(l->graph, n->input[1])->value;
    check_ok(qd_tensor_init(&meant, QD_F32, &w->shape, NULL, &err), &err);
    check_ok(qd_layout_try_weight(l, layer, w, 4, false, NULL, qd_f32(&meant), NULL, &err), &err);

    /* The layer in codes beside the layer in float, both within the network; the error is summed by the harness of plans. */
    qd_graph *g = NULL;
    const int nodes = qd_graph_size(l->graph);
    qd_node_id *map = qd_calloc((size_t)nodes, sizeof *map);
    check_ok(qd_graph_new(&g, &err), &err);
    for (qd_node_id id = 0; id <= layer->id; id++)
        qd_graph_copy_node(g, l->graph, id, map);
    const qd_node_id x = qd_graph_add(g, &qd_op_fake_quant, "x", QD_IN(map[n->input[0]]),
                                      QD_ATTRS(QD_FLOAT("scale", q.map.scale), QD_INT("zero", q.map.zero),
                                               QD_INT("bits", 6), QD_INT("symmetric", 0)));
    const qd_node_id in[3] = { x, qd_graph_const(g, "meant", &meant), map[n->input[2]] };
    const qd_node_id y = qd_graph_add(g, &qd_op_conv2d, "y", in, 3, n->attr, n->n_attrs);
    qd_node_id d = qd_graph_add(g, &qd_op_sub, "d", QD_IN(y, map[layer->id]), QD_NO_ATTRS);
    d = qd_graph_add(g, &qd_op_mul, "d2", QD_IN(d, d), QD_NO_ATTRS);
    d = qd_graph_add(g, &qd_op_mean, "mean", QD_IN(d),
                     QD_ATTRS(qd_attr_ints("axes", 4, (const int64_t[]){ 0, 1, 2, 3 }), QD_INT("keep", 0)));
    qd_graph_output(g, "mse", d);
    check_ok(qd_graph_verify(g, &err), &err);
    qd_few few = { 0 };
    check_ok(qd_few_init(&few, g, qd_graph_find(g, "sample"), &s->set, SAMPLES, NULL, &err), &err);
    assert_int_equal(few.items, STEPS * SAMPLES);
    qd_plan *plan = NULL;
    const qd_plan_options o = { .input_shapes = few.shapes, .n_inputs = few.n_inputs };
    check_ok(qd_plan_compile(g, &o, &plan, &err), &err);
    double mse = 0;
    for (int64_t i = 0; i < few.items; i += few.batch) {
        const void *inputs[QD_MAX_INPUTS];
        float one;
        qd_few_bind(&few, i, inputs);
        check_ok(qd_plan_run(plan, NULL, inputs, (void *[]){ &one }, &err), &err);
        mse += (double)one * (double)few.batch / (double)few.items;
    }
    print_message("'%s' in codes: %.5g, as told %.5g\n", name, mse, by_one);
    assert_true(fabs(mse - by_one) < 1e-3 * by_one); /* sums in float here, in double there */
    qd_plan_free(plan);
    qd_few_clear(&few);
    qd_graph_free(g);
    qd_free(map);
    qd_tensor_clear(&meant);
    qd_smooth_report_clear(&r);
    qd_smoothing_clear(&made);
    qd_layout_free(l);
}

typedef struct tiny {
    const qd_layout *layout;
    const qd_calibration_set *set;
} tiny;

static qd_status each_alloc(void *ctx, qd_err *err)
{
    const tiny *t = ctx;
    const qd_smoothing none = { 0 };
    const qd_balance_options o = { .weight_bits = 8, .range = { .how = QD_RANGE_MINMAX, .bits = 4 } };
    qd_smoothing made = { 0 };
    qd_smooth_report r = { 0 };
    qd_graph *folded = NULL;
    qd_status st = qd_smoothing_balanced(t->layout, t->set, &none, &o, NULL, &made, &r, err);
    if (!st)
        st = qd_smooth_fold(t->layout->graph, &made, NULL, &folded, err);
    qd_graph_free(folded);
    qd_smoothing_clear(&made);
    qd_smooth_report_clear(&r);
    return st;
}

/* A layer with one loud channel: dividing it by what it is too loud must win, and by more than twofold. */
static void a_loud_channel(void **state)
{
    enum { C = 8, SIDE = 6 };
    qd_err err = { 0 };
    qd_graph *g = NULL;
    float w[C * C * 9], gamma[C], beta[C] = { 0 }, x[4 * C * SIDE * SIDE];
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, C, SIDE, SIDE), kernel = QD_SHAPE(C, C, 3, 3), row = QD_SHAPE(C);
    harness_normal(w, C * C * 9, 3, 0.3f);
    harness_normal(x, 4 * C * SIDE * SIDE, 4, 1.0f);
    for (int c = 0; c < C; c++)
        gamma[c] = c == 2 ? 12.0f : 1.0f;
    for (int o = 0; o < C; o++) /* and weights that do not make up for it */
        for (int k = 0; k < 9; k++)
            w[(o * C + 2) * 9 + k] *= 0.05f;
    qd_tensor t[4] = { { 0 } };
    const qd_shape *shapes[3] = { &kernel, &row, &row };
    const float *from[3] = { w, gamma, beta };
    for (int k = 0; k < 3; k++) {
        check_ok(qd_tensor_init(&t[k], QD_F32, shapes[k], NULL, &err), &err);
        memcpy(t[k].data, from[k], qd_tensor_bytes(&t[k]));
    }
    const qd_attr pads = qd_attr_ints("pads", 4, (const int64_t[]){ 1, 1, 1, 1 });
    const qd_node_id in = qd_graph_input(g, "sample", QD_F32, &image);
    qd_node_id h = qd_graph_add(g, &qd_op_group_norm, "norm",
                                QD_IN(in, qd_graph_const(g, "gamma", &t[1]), qd_graph_const(g, "beta", &t[2])),
                                QD_ATTRS(QD_INT("groups", 2), QD_FLOAT("eps", 1e-6)));
    h = qd_graph_add(g, &qd_op_silu, "act", QD_IN(h), QD_NO_ATTRS);
    h = qd_graph_add(g, &qd_op_conv2d, "conv", QD_IN(h, qd_graph_const(g, "conv.weight", &t[0])), &pads, 1);
    qd_graph_output(g, "eps", h);
    check_ok(qd_graph_verify(g, &err), &err);
    const qd_shape all = QD_SHAPE(2, 2, C, SIDE, SIDE);
    int steps[2] = { 1, 0 };
    qd_calibration_set set = { .steps = 2, .t = steps, .samples = 2 };
    check_ok(qd_tensor_init(&set.x, QD_F32, &all, NULL, &err), &err);
    memcpy(set.x.data, x, sizeof x);
    qd_layout *l = NULL;
    const qd_layout_options lo = { .skip = "", .softmax_bits = 16 };
    check_ok(qd_layout_new(g, &lo, &l, &err), &err);
    const qd_smoothing none = { 0 };
    for (int pow2 = 0; pow2 < 2; pow2++) {
        qd_smoothing made = { 0 };
        qd_smooth_report r = { 0 };
        const qd_balance_options o = { .weight_bits = 8, .range = { .how = QD_RANGE_MINMAX, .bits = 4 }, .pow2 = pow2 };
        check_ok(qd_smoothing_balanced(l, &set, &none, &o, NULL, &made, &r, &err), &err);
        assert_int_equal(r.n, 1);
        assert_string_equal(r.rows[0].chosen, "balanced");
        print_message("a loud channel: error %.4g without factors, %.4g with alpha %.1f\n", r.rows[0].mse_none,
                      r.rows[0].mse, r.rows[0].alpha);
        assert_true(r.rows[0].mse < 0.5 * r.rows[0].mse_none);
        for (int c = 0; c < C; c++) {
            assert_true(c == 2 || made.layers[0].factor[2] > made.layers[0].factor[c]);
            if (pow2) {
                int e;
                assert_true(frexpf(made.layers[0].factor[c], &e) == 0.5f);
            }
        }
        /* The same on two threads, bit for bit. */
        qd_smoothing again = { 0 };
        qd_smooth_report r2 = { 0 };
        const qd_run run = { .threads = 2 };
        check_ok(qd_smoothing_balanced(l, &set, &none, &o, &run, &again, &r2, &err), &err);
        assert_memory_equal(again.layers[0].factor, made.layers[0].factor, C * sizeof(float));
        assert_true(r2.rows[0].mse == r.rows[0].mse);
        qd_smooth_report_clear(&r2);
        qd_smoothing_clear(&again);
        qd_smooth_report_clear(&r);
        qd_smoothing_clear(&made);
    }
    tiny some = { .layout = l, .set = &set };
    setenv("QD_KERNELS", "ref", 1); /* plans are made hundreds of times: plain loops are made at once */
    harness_run_each_alloc(each_alloc, &some, 20000);
    unsetenv("QD_KERNELS");
    qd_layout_free(l);
    qd_tensor_clear(&set.x);
    for (int k = 0; k < 3; k++)
        qd_tensor_clear(&t[k]);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(never_worse),
        cmocka_unit_test(the_error_is_real),
        cmocka_unit_test(a_loud_channel),
    };
    return cmocka_run_group_tests(tests, open_shipped, close_shipped);
}
