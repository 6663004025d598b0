/* test_correction.c - the probe, the paired table and what they do to a sampler (qncd.md 8, 12.7 to 12.12, 12.14). */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
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

/* eps = slope[t] x + bias on images of side x side. */
static qd_graph *linear_model(const float *slope, int train_steps, float bias, int64_t side)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, 1, side, side), time = QD_SHAPE(-1);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &image), t = qd_graph_input(g, "timestep", QD_F32, &time);
    const qd_node_id rows = constant(g, "table", QD_SHAPE(train_steps, 1), slope);
    qd_node_id e = qd_graph_add(g, &qd_op_embedding, "e", QD_IN(t, rows), QD_NO_ATTRS);
    e = qd_graph_add(g, &qd_op_reshape, "e4", QD_IN(e),
                     QD_ATTRS(qd_attr_ints("shape", 4, (const int64_t[]){ 0, 1, 1, 1 })));
    e = qd_graph_add(g, &qd_op_mul, "scaled", QD_IN(x, e), QD_NO_ATTRS);
    e = qd_graph_add(g, &qd_op_affine, "biased", QD_IN(e), QD_ATTRS(QD_FLOAT("mul", 1), QD_FLOAT("add", bias)));
    qd_graph_output(g, "eps", e);
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

/* --- 12.8: the toy whose every number is known --- */

static qd_schedule *sd_schedule(void)
{
    qd_err err = { 0 };
    qd_schedule *s = NULL;
    check_ok(qd_schedule_make("scaled_linear", 0.00085, 0.012, 1000, &s, &err), &err);
    s->steps_offset = 1;
    s->set_alpha_to_one = false;
    s->clip_sample = false;
    return s;
}

typedef struct watch {
    const float *slope;
    double mu[50]; /* what was taken off eps at each step */
} watch;

static qd_status see(void *ctx, int step, int t, int t_prev, const float *x, float *eps, double *sigma, qd_err *err)
{
    watch *w = ctx;
    w->mu[step] = (double)w->slope[t] * x[0] + 0.03 - eps[0];
    return QD_OK;
}

/* A correction whose probe reference is exactly zero and never gated, as the toy's table was made. */
static qd_correction *toy_correction(int interval, bool paper, double bias)
{
    qd_correction *c = qd_calloc(1, sizeof *c);
    strcpy(c->sampler, "ddim");
    c->steps = 50;
    c->channels = 1;
    c->interval = interval;
    c->paper_offset = paper;
    c->mu_max = 10;
    c->probe = qd_calloc(1, sizeof *c->probe);
    c->n_probe = 1;
    c->probe[0].m = qd_calloc(2, sizeof(double));
    c->probe[0].v = qd_calloc(2, sizeof(double));
    c->probe[0].s = qd_calloc(2, sizeof(double));
    c->table = qd_calloc(1, sizeof *c->table);
    c->n_table = 1;
    c->table[0].channel = qd_calloc(1, sizeof *c->table[0].channel);
    c->table[0].channel[0] = (qd_noise_sums){ .n = 4,
                                              .e = 0,
                                              .q = 4 * bias,
                                              .d = 4 * bias,
                                              .dd = 4 * bias * bias,
                                              .qd = 4 * bias * bias,
                                              .qq = 4 * bias * bias };
    return c;
}

static void toy_of_the_paper(void **state)
{
    static const struct {
        qd_correction_mode mode;
        int interval;
        bool paper;
        double final;
        int n;
        double mu[5];
    } rows[] = {
        { QD_CORRECT_NONE, 10, false, -0.083514, 0, { 0 } },
        { QD_CORRECT_PROBE, 10, true, -0.106165, 5, { 0.008683, -0.007544, -0.024914, -0.031745, -0.007244 } },
        { QD_CORRECT_PROBE, 10, false, -0.020088, 5, { 0.026710, 0.024346, 0.021179, 0.018468, 0.019000 } },
        { QD_CORRECT_PROBE, 50, false, -0.009160, 1, { 0.026710 } },
        { QD_CORRECT_PROBE, 1, false, -0.029531, 3, { 0.026710, 0.026439, 0.026147 } },
        { QD_CORRECT_TABLE, 10, false, 0, 0, { 0 } },
    };
    qd_err err = { 0 };
    qd_schedule *s = sd_schedule();
    static float slope[1000];
    for (int t = 0; t < 1000; t++)
        slope[t] = (float)(sqrt(1 - s->alpha_bar[t]) / (0.64 * s->alpha_bar[t] + 1 - s->alpha_bar[t]));
    qd_graph *g = linear_model(slope, 1000, 0.03f, 1);
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        qd_correction *r = toy_correction(rows[k].interval, rows[k].paper, 0.03);
        qd_corrected *c = NULL;
        watch w = { .slope = slope };
        const qd_sampler_hook then = { .ctx = &w, .eps = see };
        const qd_corrected_options o = { .graph = g,
                                         .correction = r,
                                         .mode = rows[k].mode,
                                         .schedule = s,
                                         .sampler = qd_sampler_find("ddim"),
                                         .batch = 1 };
        const qd_sample_options ask = { .steps = 50, .spacing = QD_SPACING_LEADING };
        float m = 0;
        int probes = 0, calls;
        check_ok(qd_corrected_new(&o, &c, &err), &err);
        check_ok(qd_corrected_run(c, &ask, &then, NULL, &m, &err), &err);
        calls = qd_corrected_calls(c, &ask, &probes);
        print_message("%s every %d%s: final m %.6f, %d calls\n", qd_correction_mode_name(rows[k].mode),
                      rows[k].interval, rows[k].paper ? " as published" : "", (double)m, calls);
        assert_float_equal(m, rows[k].final, 2e-5f);
        assert_int_equal(probes, rows[k].mode == QD_CORRECT_PROBE ? 50 / rows[k].interval : 0);
        assert_int_equal(calls, 50 + probes);
        for (int i = 0; i < rows[k].n; i++) {
            const int at = (rows[k].paper ? 6 : 0) + i * rows[k].interval;
            assert_float_equal(w.mu[at], rows[k].mu[i], 2e-5);
        }
        if (rows[k].paper)
            assert_float_equal(w.mu[5], 0, 1e-6); /* nothing before the first estimate */
        /* D11: a second run starts from nothing again. */
        float again = 0;
        check_ok(qd_corrected_run(c, &ask, NULL, NULL, &again, &err), &err);
        assert_memory_equal(&again, &m, sizeof m);
        qd_corrected_free(c);
        qd_correction_free(r);
    }
    qd_graph_free(g);
    qd_schedule_free(s);
}

/* --- 12.9, 12.10: what the probe measures on a predictor that is always right (all images are black) --- */

typedef struct oracle {
    const qd_schedule *s;
    double mean, var, rho, c;
} oracle;

static qd_status oracle_predict(void *ctx, const qd_run *run, const float *x, double t, float *out, qd_err *err)
{
    const oracle *o = ctx;
    for (int k = 0; k < 4 * 64 * 64; k++)
        out[k] = (float)(x[k] / sqrt(1 - o->s->alpha_bar[(int)t]));
    return QD_OK;
}

static qd_status oracle_step(void *ctx, const qd_sampler_step *step, qd_err *err)
{
    oracle *o = ctx;
    qd_probe b;
    const qd_predictor p = {
        .ctx = o, .predict = oracle_predict, .batch = 1, .channels = 4, .height = 64, .width = 64
    };
    double mean[5], var[5];
    check_ok(qd_probe_open(&b, &p, o->s, 5, NULL, err), err);
    check_ok(qd_probe_ask(&b, step, step->eps, NULL, err), err);
    for (int c = 0; c < 4; c++) {
        double sum = 0;
        for (int k = 0; k < 64 * 64; k++)
            sum += b.z[c * 64 * 64 + k];
        assert_float_equal(sum / (64 * 64), 0, 1e-6); /* z is centred */
    }
    qd_probe_moments(b.d, 4, 64 * 64, mean, var);
    const double abar = o->s->alpha_bar[step->t], next = qd_schedule_level(o->s, step->t_prev), a = abar / next;
    const double rho = sqrt((1 - a) / (1 - abar)), c = sqrt(a * (1 - next) / (1 - abar));
    assert_float_equal(rho * rho + c * c, 1, 1e-9); /* 8.3 */
    /* d = c n + (rho - 1) z: 3 standard errors of the mean, 1 % of the deviation (few per cent of 16384 numbers). */
    assert_true(fabs(mean[0]) < 3 * sqrt(var[0] / (4 * 64 * 64)));
    assert_float_equal(sqrt(var[0]) / sqrt(2 - 2 * rho), 1, 0.02);
    qd_probe_close(&b);
    return QD_OK;
}

static void a_perfect_predictor(void **state)
{
    qd_err err = { 0 };
    qd_schedule *s = sd_schedule();
    oracle o = { .s = s };
    static float x[4 * 64 * 64];
    const qd_predictor p = {
        .ctx = &o, .predict = oracle_predict, .batch = 1, .channels = 4, .height = 64, .width = 64
    };
    const qd_sampler_hook hook = { .ctx = &o, .correct = oracle_step };
    const qd_sample_options ask = { .steps = 10, .spacing = QD_SPACING_LEADING };
    for (const qd_sampler *const *sampler = qd_samplers; *sampler; sampler++) {
        qd_sample_noise(x, 1, 4 * 64 * 64, 3, 0);
        /* The x0 of a black image is 0 up to the noise of float: every sampler keeps n. */
        check_ok((*sampler)->run(s, &ask, &p, strcmp((*sampler)->name, "ddpm") ? &hook : NULL, NULL, x, &err), &err);
    }
    qd_schedule_free(s);
}

/* --- 12.11: slope, bias and residual of synthetic noise are found again --- */

static void synthetic_noise(void **state)
{
    enum { N = 200000 };
    float *e = qd_calloc(N, sizeof *e), *r = qd_calloc(N, sizeof *r);
    qd_noise_sums sums[2] = { { 0 } };
    harness_normal(e, N, 1, 1);
    harness_normal(r, N, 2, 0.05f);
    for (int k = 0; k < N; k++) {
        qd_noise_sums *s = &sums[k % 2];
        const double bias = k % 2 ? 0.02 : -0.01, d = 0.1 * e[k] + bias + r[k], q = e[k] + d;
        s->n++;
        s->e += e[k];
        s->q += q;
        s->d += d;
        s->ed += e[k] * d;
        s->qd += q * d;
        s->ee += (double)e[k] * e[k];
        s->qq += q * q;
        s->dd += d * d;
    }
    const qd_noise_step step = { .channel = sums };
    const qd_noise_figures f = qd_noise_figures_of(&step, 2);
    assert_float_equal(f.k, 0.1, 0.002);
    assert_float_equal(f.sigma, 0.05, 0.001);
    for (int c = 0; c < 2; c++) {
        const double b = (sums[c].d - f.k * sums[c].e) / sums[c].n;
        assert_float_equal(b, c ? 0.02 : -0.01, 0.0004);
        /* (q - b) / (1 + k) has the mean of e. */
        assert_float_equal((sums[c].q / sums[c].n - b) / (1 + f.k), sums[c].e / sums[c].n, 1e-12);
    }
    /* D on eps_hat: cov(D, q) / var(q) = (0.11 + s^2) / (1.21 + s^2). */
    assert_float_equal(f.beta, 0.1125 / 1.2125, 0.002);
    qd_free(e);
    qd_free(r);
}

/* --- the shipped model --- */

typedef struct shipped {
    qd_model *model;
    qd_graph *graph, *quantized;
    qd_schedule *schedule;
    qd_correction *correction;
} shipped;

static int open_shipped(void **state)
{
    qd_err err = { 0 };
    qd_role role;
    shipped *s = qd_calloc(1, sizeof *s);
    qd_params *p = NULL;
    const qd_method *m = qd_method_find("mse");
    qd_quant_report r = { 0 };
    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &s->model, &err), &err);
    check_ok(qd_zoo_build(s->model, NULL, &s->graph, &role, &err), &err);
    check_ok(qd_schedule_open(s->model->scheduler, &s->schedule, &err), &err);
    check_ok(qd_params_new(m->params, &p, &err), &err);
    static const char *const pairs[][2] = {
        { "weight_bits", "4" },          { "activation_bits", "6" },   { "steps", "10" },
        { "calibration_samples", "16" }, { "calibration_steps", "5" }, { "measure_samples", "1" },
    };
    for (size_t k = 0; k < sizeof pairs / sizeof *pairs; k++)
        check_ok(qd_params_set_text(p, pairs[k][0], pairs[k][1], &err), &err);
    const qd_quant_task task = { .graph = s->graph, .role = role, .schedule = s->schedule, .params = p };
    check_ok(m->run(&task, NULL, &s->quantized, &r, &err), &err);
    const qd_trajectories j = { .graph = s->graph,
                                .schedule = s->schedule,
                                .sampler = qd_sampler_find("ddim"),
                                .options = { .steps = 10, .clip = -1, .seed = 3 },
                                .samples = 4 };
    const qd_noise_options o = { .samples = 12, .interval = 3, .kappa = 1, .mu_max = 0.05 };
    check_ok(qd_correction_new(&o, QD_CORRECT_BOTH, &j, &s->correction, &err), &err);
    check_ok(qd_noise_collect(s->correction, &o, &j, s->quantized, NULL, &err), &err);
    qd_quant_report_clear(&r);
    qd_params_free(p);
    *state = s;
    return 0;
}

static int close_shipped(void **state)
{
    shipped *s = *state;
    qd_correction_free(s->correction);
    qd_graph_free(s->quantized);
    qd_schedule_free(s->schedule);
    qd_graph_free(s->graph);
    qd_model_free(s->model);
    qd_free(s);
    return 0;
}

enum { SIZE = 28 * 28 };

static void draw(const shipped *s, const qd_graph *g, const qd_correction *r, qd_correction_mode mode,
                 const char *sampler, double eta, int64_t batch, int64_t first, float *x)
{
    qd_err err = { 0 };
    qd_corrected *c = NULL;
    const qd_corrected_options o = { .graph = g,
                                     .correction = r,
                                     .mode = mode,
                                     .schedule = s->schedule,
                                     .sampler = qd_sampler_find(sampler),
                                     .batch = batch };
    const qd_sample_options ask = { .steps = 10,
                                    .clip = -1,
                                    .eta = eta,
                                    .seed = 9,
                                    .first_sample = first,
                                    .spacing = strcmp(sampler, "dpmpp2m") ? QD_SPACING_LEADING : QD_SPACING_LINSPACE };
    check_ok(qd_corrected_new(&o, &c, &err), &err);
    qd_sample_noise(x, batch, SIZE, ask.seed, first);
    check_ok(qd_corrected_run(c, &ask, NULL, NULL, x, &err), &err);
    qd_corrected_free(c);
}

static const struct {
    const char *name;
    double eta;
} samplers[] = { { "ddim", 0 }, { "ddim", 1 }, { "ddpm", 0 }, { "plms", 0 }, { "dpmpp2m", 0 } };

/* 12.7: a correction that corrects nothing leaves every bit of every sampler; the probe's noise is its own. */
static void neutral_corrections(void **state)
{
    shipped *s = *state;
    static float want[2 * SIZE], got[2 * SIZE];
    const double mu_max = s->correction->mu_max;
    for (size_t k = 0; k < sizeof samplers / sizeof *samplers; k++) {
        draw(s, s->quantized, NULL, QD_CORRECT_NONE, samplers[k].name, samplers[k].eta, 2, 0, want);
        s->correction->mu_max = 0;
        const bool noisy = samplers[k].eta > 0 || strcmp(samplers[k].name, "ddpm") == 0;
        double v[16] = { 0 };
        for (int i = 0; i < s->correction->n_probe; i++) {
            v[i] = s->correction->probe[i].v[0];
            s->correction->probe[i].v[0] = noisy ? 1e9 : v[i]; /* no excess of variance either */
        }
        draw(s, s->quantized, s->correction, QD_CORRECT_PROBE, samplers[k].name, samplers[k].eta, 2, 0, got);
        for (int i = 0; i < s->correction->n_probe; i++)
            s->correction->probe[i].v[0] = v[i];
        s->correction->mu_max = mu_max;
        assert_memory_equal(got, want, sizeof want);
    }
}

/* 12.12: alone or among others, the same bytes; and each mode does something. */
static void alone_or_in_a_batch(void **state)
{
    shipped *s = *state;
    static float many[8 * SIZE], one[SIZE], plain[8 * SIZE];
    static const qd_correction_mode modes[] = { QD_CORRECT_PROBE, QD_CORRECT_TABLE, QD_CORRECT_CONDITIONAL,
                                                QD_CORRECT_BOTH };
    for (size_t k = 0; k < sizeof samplers / sizeof *samplers; k++) {
        draw(s, s->quantized, NULL, QD_CORRECT_NONE, samplers[k].name, samplers[k].eta, 8, 0, plain);
        for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
            draw(s, s->quantized, s->correction, modes[m], samplers[k].name, samplers[k].eta, 8, 0, many);
            assert_memory_not_equal(many, plain, sizeof many);
            draw(s, s->quantized, s->correction, modes[m], samplers[k].name, samplers[k].eta, 1, 5, one);
            assert_memory_equal(one, many + 5 * SIZE, sizeof one);
        }
    }
    /* The published form is what it is: its estimate is over the batch. */
    draw(s, s->quantized, s->correction, QD_CORRECT_COMPAT, "plms", 0, 8, 0, many);
    assert_memory_not_equal(many, plain, sizeof many);
}

/* The table makes eps better where it was made to: the error of eps on the quantized trajectories. */
static void the_table_helps(void **state)
{
    const shipped *s = *state;
    double before = 0, after = 0, conditional = 0;
    for (int k = 0; k < s->correction->n_table; k++) {
        const qd_noise_sums *m = &s->correction->table[k].channel[0];
        const qd_noise_figures f = qd_noise_figures_of(&s->correction->table[k], 1);
        before += m->dd / m->n;
        after += pow(f.sigma / (1 + f.k), 2);
        conditional += (m->dd - m->d * m->d / m->n - f.beta * (m->qd - m->q * m->d / m->n)) / m->n;
    }
    print_message("mean squared error of eps at W4A6: %.3e as it is, %.3e with slope and bias, %.3e conditional\n",
                  before, after, conditional);
    assert_true(after < before && conditional <= before);
}

/* 12.14: text and back gives every bit, and the same text. */
static void text_round_trip(void **state)
{
    const shipped *s = *state;
    qd_err err = { 0 };
    qd_buf a, b;
    qd_correction *back = NULL;
    qd_buf_init(&a, 0);
    qd_buf_init(&b, 0);
    check_ok(qd_correction_text(s->correction, &a, &err), &err);
    check_ok(qd_correction_parse(a.data, a.size, &back, &err), &err);
    check_ok(qd_correction_text(back, &b, &err), &err);
    assert_string_equal(a.data, b.data);
    static float want[SIZE], got[SIZE];
    draw(s, s->quantized, s->correction, QD_CORRECT_BOTH, "ddim", 1, 1, 2, want);
    draw(s, s->quantized, back, QD_CORRECT_BOTH, "ddim", 1, 1, 2, got);
    assert_memory_equal(got, want, sizeof want);
    qd_correction_free(back);

    /* Hostile texts. */
    static const struct {
        const char *from, *to, *words;
    } wrong[] = {
        { "quantd-correction-1", "quantd-correction-9", "format" },
        { "\"sampler\":\"ddim\"", "\"sampler\":\"warp\"", "no sampler 'warp'" },
        { "\"mode\":\"both\"", "\"mode\":\"wild\"", "no mode 'wild'" },
        { "\"channels\":1", "\"channels\":0", "channels" },
        { "\"channels\":1", "\"channels\":3", "'sums.0' has 9 numbers, 27 are wanted" },
        { "\"t\":[900,", "\"t\":[9,", "'t' must fall" },
        { "\"t\":[900,", "\"t\":[900,-800,", "t" },
        { "\"sums.3\":[", "\"sums.3\":[0,", "sums.3" },
        { "\"probe_v.0\":[", "\"probe_w.0\":[", "probe_v.0" },
        { "\"interval\":3", "\"interval\":0", "interval" },
    };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        const char *at = strstr(a.data, wrong[k].from);
        assert_non_null(at);
        char *text = qd_asprintf("%.*s%s%s", (int)(at - a.data), a.data, wrong[k].to, at + strlen(wrong[k].from));
        check_fails(qd_correction_parse(text, strlen(text), &back, &err), QD_E_FORMAT, wrong[k].words, &err);
        qd_free(text);
    }
    qd_buf_clear(&a);
    qd_buf_clear(&b);
}

/* A mode that needs what the model does not carry. */
static void missing_parts(void **state)
{
    const shipped *s = *state;
    qd_err err = { 0 };
    qd_corrected *c = NULL;
    qd_correction bare = { .sampler = "ddim", .steps = 10, .channels = 1, .interval = 10 };
    qd_corrected_options o = { .graph = s->quantized,
                               .mode = QD_CORRECT_TABLE,
                               .schedule = s->schedule,
                               .sampler = qd_sampler_find("ddim"),
                               .batch = 1 };
    check_fails(qd_corrected_new(&o, &c, &err), QD_E_INVALID, "quantized with one", &err);
    o.correction = &bare;
    check_fails(qd_corrected_new(&o, &c, &err), QD_E_INVALID, "paired statistics", &err);
    o.mode = QD_CORRECT_PROBE;
    check_fails(qd_corrected_new(&o, &c, &err), QD_E_INVALID, "own probes", &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(toy_of_the_paper),    cmocka_unit_test(a_perfect_predictor), cmocka_unit_test(synthetic_noise),
        cmocka_unit_test(neutral_corrections), cmocka_unit_test(alone_or_in_a_batch), cmocka_unit_test(the_table_helps),
        cmocka_unit_test(text_round_trip),     cmocka_unit_test(missing_parts),
    };
    return cmocka_run_group_tests(tests, open_shipped, close_shipped);
}
