/* test_adaround.c - rounding that learns: goldens of qncd.md 6.1, derivatives against differences, b, the regulariser, codes. */
#include "harness/harness.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/recon_int.h"

/* One linear layer of `rows` x `columns` weights, as a layout with codes. */
typedef struct layer {
    qd_graph *graph;
    qd_layout layout;
    qd_quant_layer layer;
    qd_quantizer quantizer;
    qd_budget budget;
} layer;

static void tensor(qd_tensor *t, qd_dtype dtype, qd_shape shape)
{
    qd_err err = { 0 };
    check_ok(qd_tensor_init(t, dtype, &shape, NULL, &err), &err);
}

/* Weights and scales as given; group: columns that share a scale, 0 = all. Codes are those of round to nearest. */
static void layer_make(layer *l, const float *weight, int64_t rows, int64_t columns, const float *scale, int64_t group,
                       int bits)
{
    qd_err err = { 0 };
    qd_tensor w = { 0 }, codes = { 0 };
    *l = (layer){ .layout = { .n_layers = 1 } };
    check_ok(qd_graph_new(&l->graph, &err), &err);
    const qd_shape in = QD_SHAPE(-1, columns);
    tensor(&w, QD_F32, QD_SHAPE(rows, columns));
    memcpy(w.data, weight, (size_t)(rows * columns) * sizeof *weight);
    const qd_node_id x = qd_graph_input(l->graph, "sample", QD_F32, &in), c = qd_graph_const(l->graph, "w", &w);
    l->layer.id = qd_graph_add(l->graph, &qd_op_linear, "layer", QD_IN(x, c), QD_NO_ATTRS);
    l->layout.graph = l->graph;
    l->layout.layers = &l->layer;
    l->layer.n_parts = 1;
    qd_part *p = &l->layer.part[0];
    const int64_t scales = qd_k_scales(columns, group);
    *p = (qd_part){ .channels = columns, .group_size = group };
    tensor(&p->wscale, QD_F32, group ? QD_SHAPE(rows, scales) : QD_SHAPE(rows));
    memcpy(p->wscale.data, scale, (size_t)(rows * scales) * sizeof *scale);
    tensor(&codes, QD_I8, QD_SHAPE(rows, columns));
    const int most = (1 << (bits - 1)) - 1;
    for (int64_t i = 0; i < rows * columns; i++) {
        const float step = scale[i / columns * scales + (group ? i % columns / group : 0)];
        qd_i8(&codes)[i] = (int8_t)fmin(fmax(nearbyint(weight[i] / (double)step), -most - 1), most);
    }
    if (bits == 8)
        qd_tensor_share(&p->codes, &codes);
    else
        check_ok(qd_tensor_pack(&p->codes, &codes, bits == 4 ? QD_I4 : QD_I6, NULL, &err), &err);
    qd_tensor_clear(&codes);
    qd_tensor_clear(&w);
}

static void layer_clear(layer *l)
{
    qd_tensor_clear(&l->layer.part[0].codes);
    qd_tensor_clear(&l->layer.part[0].wscale);
    qd_graph_free(l->graph);
}

static void round_make(qd_round *r, layer *l)
{
    qd_err err = { 0 };
    *r = (qd_round){ 0 };
    check_ok(qd_round_init(r, &l->layout, &l->layer, &l->budget, &err), &err);
}

/* qncd.md 6.1: r = 0, 0.25, 0.5, 0.99. */
static void first_values(void **state)
{
    const float weight[] = { 2.0f, 2.25f, 2.5f, 2.99f, -1.75f, -2.01f }, scale[] = { 1.0f };
    const float v0[] = { -2.397895f, -0.887303f, 0.0f, 2.293453f, -0.887303f, 2.293453f };
    layer l;
    qd_round r;
    float soft[6], hard[6];
    int8_t codes[6];
    layer_make(&l, weight, 1, 6, scale, 0, 4);
    round_make(&r, &l);
    check_close(r.v, v0, 6, 2e-5, 0); /* weights are floats: 2.99 - 2 has 6 digits */
    qd_round_weight(&r, false, soft, 1);
    check_close(soft, weight, 6, 1e-6, 0);
    /* Hard at the start is round half up. */
    qd_round_weight(&r, true, hard, 1);
    qd_round_codes(&r, codes);
    const int8_t half_up[] = { 2, 2, 3, 3, -2, -2 };
    for (int k = 0; k < 6; k++) {
        assert_int_equal(codes[k], half_up[k]);
        assert_true(hard[k] == half_up[k]);
    }
    qd_round_clear(&r, &l.budget);
    assert_int_equal(l.budget.used_bytes, 0);
    layer_clear(&l);
}

enum { ROWS = 3, COLUMNS = 37 };

/* Random weights with scales so tight that some are out of reach of the codes. */
static void make_random(layer *l, int64_t group, int bits, float weight[ROWS * COLUMNS])
{
    float scale[ROWS * 8];
    harness_normal(weight, ROWS * COLUMNS, 11, 1.0f);
    for (int k = 0; k < ROWS * 8; k++)
        scale[k] = (bits == 4 ? 0.23f : 0.02f) + 0.01f * (float)(k % 5);
    layer_make(l, weight, ROWS, COLUMNS, scale, group, bits);
}

/* At the start the soft weight is the float weight wherever codes reach it, and the end of their range elsewhere. */
static void soft_is_float_at_first(void **state)
{
    float weight[ROWS * COLUMNS], soft[ROWS * COLUMNS];
    for (int bits = 4; bits <= 8; bits += 2)
        for (int64_t group = 0; group <= 16; group += 16) {
            layer l;
            qd_round r;
            int held = 0;
            make_random(&l, group, bits, weight);
            round_make(&r, &l);
            qd_round_weight(&r, false, soft, 2);
            const int64_t scales = qd_k_scales(COLUMNS, group);
            const float *scale = qd_f32(&l.layer.part[0].wscale);
            const float most = (float)((1 << (bits - 1)) - 1);
            for (int i = 0; i < ROWS * COLUMNS; i++) {
                const float step = scale[i / COLUMNS * scales + (group ? i % COLUMNS / group : 0)];
                const float want = fminf(fmaxf(weight[i], -(most + 1) * step), most * step);
                held += want != weight[i];
                assert_true(fabsf(soft[i] - want) <= 2e-6f * fmaxf(1.0f, fabsf(want)));
            }
            assert_true(bits > 4 || held > 0);
            qd_round_clear(&r, &l.budget);
            layer_clear(&l);
        }
}

/* Half of sum (w~ - target)^2 in double, its derivative by w~, and the regulariser. */
static double loss_at(const qd_round *r, const float *scale, const double *v, const float *target, double lambda,
                      double b)
{
    double sum = 0.0;
    for (int64_t i = 0; i < r->rows * r->columns; i++) {
        const double h = fmin(fmax(1.2 / (1.0 + exp(-v[i])) - 0.1, 0.0), 1.0);
        const double q = fmin(fmax(r->floor[i] + h, r->qmin), r->qmax), d = q * scale[i / r->columns] - target[i];
        sum += 0.5 * d * d + lambda * (1.0 - pow(fabs(2.0 * h - 1.0), b));
    }
    return sum;
}

/* 12.6: analytic against central differences in double, below 1e-4 relative, with and without the regulariser. */
static void derivatives(void **state)
{
    enum { N = ROWS * COLUMNS };
    float weight[N], soft[N], target[N], half[2][N], dv[N];
    double v[N];
    layer l;
    qd_round r;
    make_random(&l, 0, 4, weight);
    round_make(&r, &l);
    harness_normal(target, N, 5, 1.0f);
    qd_round_weight(&r, false, soft, 1);
    const float *scale = qd_f32(&l.layer.part[0].wscale);
    /* The derivative by the soft weight comes in two halves, which are to be added up and doubled. */
    for (int i = 0; i < N; i++) {
        v[i] = r.v[i];
        half[0][i] = 0.3f * (soft[i] - target[i]);
        half[1][i] = 0.2f * (soft[i] - target[i]);
    }
    const double bs[] = { 0, 2, 3.7, 11, 20 };
    for (int k = 0; k < 5; k++) {
        const float *const grad[2] = { half[0], half[1] };
        const qd_round_step s = { .lambda = bs[k] > 0 ? 0.05 : 0, .b = bs[k], .grad = grad, .n_grad = 2, .scale = 2.0 };
        qd_round_gradient(&r, &s, dv, 2);
        double worst = 0.0, largest = 0.0;
        for (int i = 0; i < N; i++) {
            const double at = v[i], e = 1e-5;
            const double h = fmin(fmax(1.2 / (1.0 + exp(-at)) - 0.1, 0.0), 1.0);
            if (h < 1e-3 || h > 1.0 - 1e-3)
                continue; /* a corner: there is no derivative */
            v[i] = at + e;
            const double up = loss_at(&r, scale, v, target, s.lambda, s.b);
            v[i] = at - e;
            const double down = loss_at(&r, scale, v, target, s.lambda, s.b);
            v[i] = at;
            const double numeric = (up - down) / (2 * e);
            worst = fmax(worst, fabs(numeric - dv[i]));
            largest = fmax(largest, fabs(numeric));
        }
        print_message("b %4.1f: worst difference %.2g of %.2g\n", bs[k], worst, largest);
        assert_true(largest > 0.05 && worst < 1e-4 * largest);
    }
    qd_round_clear(&r, &l.budget);
    layer_clear(&l);
}

/* A step of Adam as its paper has it, h and the soft weight following; threads share rows. */
static void a_step(void **state)
{
    enum { N = ROWS * COLUMNS };
    float weight[N], grad[N], dv[N], out[2][N], v[2][N];
    harness_normal(grad, N, 9, 1.0f);
    const float *const grads[1] = { grad };
    for (int t = 0; t < 2; t++) {
        layer l;
        qd_round r;
        make_random(&l, 16, 4, weight);
        round_make(&r, &l);
        float before[N];
        memcpy(before, r.v, sizeof before);
        const qd_round_step s = { .lr = 0.01, .step = 1, .grad = grads, .n_grad = 1, .scale = 1.0 };
        qd_round_gradient(&r, &s, dv, 1);
        qd_round_learn(&r, &s, out[t], t + 1);
        memcpy(v[t], r.v, sizeof v[t]);
        for (int i = 0; i < N; i++) {
            /* The first step goes 0.01 against the sign of the derivative: eps matters for the smallest alone. */
            const float want = before[i] - 0.01f * dv[i] / (fabsf(dv[i]) + 1e-8f);
            assert_true(fabsf(r.v[i] - want) < 1e-5f);
        }
        qd_round_weight(&r, false, dv, 1);
        assert_memory_equal(dv, out[t], sizeof dv);
        qd_round_clear(&r, &l.budget);
        layer_clear(&l);
    }
    assert_memory_equal(v[0], v[1], sizeof v[0]);
    assert_memory_equal(out[0], out[1], sizeof out[0]);
}

/* 12.6: 0 when all h are 0 or 1, the count at h = 1/2; 2 h - 1 = 1/2 gives 1 - 2^-b. */
static void regulariser(void **state)
{
    float weight[ROWS * COLUMNS];
    layer l;
    qd_round r;
    make_random(&l, 0, 4, weight);
    round_make(&r, &l);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        r.h[i] = (float)(i % 2);
    assert_true(fabs(qd_round_regulariser(&r, 20)) < 1e-5);
    assert_int_equal(qd_round_settled(&r), ROWS * COLUMNS);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        r.h[i] = 0.5f;
    assert_true(fabs(qd_round_regulariser(&r, 2) - ROWS * COLUMNS) < 1e-5);
    assert_int_equal(qd_round_settled(&r), 0);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        r.h[i] = i % 2 ? 0.25f : 0.75f;
    for (int b = 2; b <= 20; b += 6)
        assert_true(fabs(qd_round_regulariser(&r, b) - ROWS * COLUMNS * (1.0 - pow(0.5, b))) < 1e-4);
    r.h[0] = 0.96f;
    r.h[1] = 0.04f;
    assert_int_equal(qd_round_settled(&r), 2);
    qd_round_clear(&r, &l.budget);
    layer_clear(&l);
}

static void schedule_of_b(void **state)
{
    const qd_recon_options o = { .iterations = 1000, .b_start = 20, .b_end = 2, .warmup = 0.2 };
    const struct {
        int64_t at;
        double b;
    } want[] = { { 0, 20 }, { 100, 20 }, { 200, 20 }, { 600, 11 }, { 1000, 2 }, { 5000, 2 } };
    for (int k = 0; k < 6; k++)
        assert_true(fabs(qd_recon_b(&o, want[k].at) - want[k].b) < 1e-12);
    const qd_recon_options cold = { .iterations = 10, .b_start = 8, .b_end = 4, .warmup = 0 };
    assert_true(qd_recon_b(&cold, 5) == 6.0);
}

/* Codes differ from the floor by 0 or 1 whatever was learned, go into the layer as they were packed, and its SQNR follows. */
static void codes_go_into_the_layer(void **state)
{
    enum { N = ROWS * COLUMNS };
    float weight[N], restored[N], up[N], noise[N];
    int8_t codes[N], back[N];
    for (int bits = 4; bits <= 8; bits += 2) {
        qd_err err = { 0 };
        layer l;
        qd_round r;
        make_random(&l, 16, bits, weight);
        const qd_dtype dtype = l.layer.part[0].codes.dtype;
        round_make(&r, &l);
        harness_normal(noise, N, 77, 2.0f);
        memcpy(r.v, noise, sizeof noise);
        qd_round_codes(&r, codes);
        int ups = 0;
        for (int i = 0; i < N; i++) {
            const int rise = codes[i] - r.floor[i];
            const bool reach = r.floor[i] >= r.qmin && r.floor[i] < r.qmax;
            assert_true(!reach || rise == (noise[i] >= 0));
            ups += reach && rise;
        }
        assert_true(ups > N / 8);
        qd_round_weight(&r, true, up, 1);
        check_ok(qd_layer_set_codes(&l.layout, &l.layer, codes, NULL, &err), &err);
        assert_int_equal(l.layer.part[0].codes.dtype, dtype);
        check_ok(qd_layer_get_codes(&l.layout, &l.layer, back, &err), &err);
        assert_memory_equal(codes, back, sizeof codes);
        check_ok(qd_layer_restore(&l.layout, &l.layer, restored, &err), &err);
        assert_memory_equal(restored, up, sizeof up);
        double signal = 0, off = 0;
        for (int i = 0; i < N; i++) {
            signal += (double)weight[i] * weight[i];
            off += ((double)weight[i] - restored[i]) * ((double)weight[i] - restored[i]);
        }
        assert_true(fabs(l.layer.part[0].sqnr_db - 10 * log10(signal / off)) < 1e-4);
        qd_round_clear(&r, &l.budget);
        layer_clear(&l);
    }
}

static qd_status each_alloc(void *ctx, qd_err *err)
{
    layer *l = ctx;
    qd_round r = { 0 };
    int8_t codes[ROWS * COLUMNS];
    qd_status st = qd_round_init(&r, &l->layout, &l->layer, &l->budget, err);
    if (!st) {
        qd_round_codes(&r, codes);
        st = qd_layer_set_codes(&l->layout, &l->layer, codes, NULL, err);
    }
    qd_round_clear(&r, &l->budget);
    assert_int_equal(l->budget.used_bytes, 0);
    return st;
}

static void without_memory(void **state)
{
    qd_err err = { 0 };
    float weight[ROWS * COLUMNS];
    layer l;
    qd_round r = { 0 };
    make_random(&l, 16, 4, weight);
    assert_true(harness_run_each_alloc(each_alloc, &l, 100) > 5);
    qd_budget_init(&l.budget, 1000);
    check_fails(qd_round_init(&r, &l.layout, &l.layer, &l.budget, &err), QD_E_LIMIT, "rounding", &err);
    qd_round_clear(&r, &l.budget);
    layer_clear(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_values),
        cmocka_unit_test(soft_is_float_at_first),
        cmocka_unit_test(derivatives),
        cmocka_unit_test(a_step),
        cmocka_unit_test(regulariser),
        cmocka_unit_test(schedule_of_b),
        cmocka_unit_test(codes_go_into_the_layer),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
