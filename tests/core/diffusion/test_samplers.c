/* test_samplers.c - every sampler of the table on predictors whose answer is known (diffusion_models.md 9.6 to 9.8). */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "diffusion/diffusion.h"

#define SIDE 16
#define BATCH 4
#define PER (2 * SIDE * SIDE)
#define N (BATCH * PER)
#define TAPE 128

/* A network that knows the truth. */
typedef struct oracle {
    const qd_schedule *s;
    float target[PER]; // point: where every sample must go
    double std;        // gauss: of the data
    int calls;
    double t[64]; // of the first calls
    bool broken;  // answers NaN
    int n;        // elements of a batch
} oracle;

/* What the schedule's network would say for this eps. */
static void answer(const oracle *q, double abar, float x, double eps, float *out)
{
    const double a = sqrt(abar), s = sqrt(1.0 - abar);
    const double x0 = (x - s * eps) / a;
    *out = (float)(q->s->prediction == QD_PREDICT_V        ? a * eps - s * x0
                   : q->s->prediction == QD_PREDICT_SAMPLE ? x0
                                                           : eps);
}

static void note_call(oracle *q, double t)
{
    if (q->calls < 64)
        q->t[q->calls] = t;
    q->calls++;
}

static qd_status point(void *ctx, const qd_run *run, const float *x, double t, float *out, qd_err *err)
{
    oracle *q = ctx;
    const double abar = q->s->alpha_bar[(int)t];
    note_call(q, t);
    for (int k = 0; k < q->n; k++)
        answer(q, abar, x[k], (x[k] - sqrt(abar) * q->target[k % PER]) / sqrt(1.0 - abar), &out[k]);
    return QD_OK;
}

static qd_status gauss(void *ctx, const qd_run *run, const float *x, double t, float *out, qd_err *err)
{
    oracle *q = ctx;
    const double abar = q->s->alpha_bar[(int)t], var = q->std * q->std;
    note_call(q, t);
    for (int k = 0; k < q->n; k++)
        answer(q, abar, x[k], sqrt(1.0 - abar) / (abar * var + 1.0 - abar) * x[k], &out[k]);
    if (q->broken)
        out[PER + 3] = NAN;
    return QD_OK;
}

/* The same eps whatever x and t: multistep methods have nothing to extrapolate. */
static qd_status constant(void *ctx, const qd_run *run, const float *x, double t, float *out, qd_err *err)
{
    oracle *q = ctx;
    note_call(q, t);
    for (int k = 0; k < q->n; k++)
        out[k] = q->target[k % PER];
    return QD_OK;
}

typedef qd_status predict_fn(void *ctx, const qd_run *run, const float *x, double t, float *out, qd_err *err);

static qd_predictor predictor(oracle *q, predict_fn *f)
{
    return (qd_predictor){ .ctx = q, .predict = f, .batch = BATCH, .channels = 2, .height = SIDE, .width = SIDE };
}

static oracle new_oracle(const qd_schedule *s)
{
    oracle q = { .s = s, .std = 0.5, .n = N };
    harness_normal(q.target, PER, 77, 0.4f);
    return q;
}

static qd_schedule *new_schedule(void)
{
    qd_err err = { 0 };
    qd_schedule *s = NULL;
    check_ok(qd_schedule_make("linear", 1e-4, 0.02, 1000, &s, &err), &err);
    s->clip_sample = false;
    return s;
}

static void sample(const qd_sampler *sampler, const qd_schedule *s, const qd_sample_options *o, const qd_predictor *p,
                   const qd_sampler_hook *hook, float *x)
{
    qd_err err = { 0 };
    qd_sample_noise(x, p->batch, PER, o->seed, o->first_sample);
    check_ok(sampler->run(s, o, p, hook, NULL, x, &err), &err);
}

static double rms(const float *x, const float *target)
{
    double sum = 0.0;
    for (int k = 0; k < N; k++)
        sum += pow(x[k] - target[k % PER], 2);
    return sqrt(sum / N);
}

static void tables(void **state)
{
    assert_ptr_equal(qd_sampler_find("ddim"), qd_samplers[1]);
    assert_null(qd_sampler_find("euler"));
    for (int k = 0; qd_samplers[k]; k++) {
        qd_err err = { 0 };
        qd_params *p = NULL;
        qd_sample_options o = { .steps = 3, .clip = 1, .eta = 0.25, .spacing = QD_SPACING_QUAD };
        check_ok(qd_params_new(qd_samplers[k]->params, &p, &err), &err);
        check_ok(qd_params_check(p, &err), &err);
        check_ok(qd_params_set_int(p, "steps", 17, &err), &err);
        check_ok(qd_params_set_string(p, "spacing", "trailing", &err), &err);
        qd_sample_options_read(p, &o);
        assert_int_equal(o.steps, 17);
        assert_int_equal(o.spacing, QD_SPACING_TRAILING);
        if (qd_param_find(qd_samplers[k]->params, "clip")) {
            assert_int_equal(o.clip, -1);
            check_ok(qd_params_set_string(p, "clip", "off", &err), &err);
            qd_sample_options_read(p, &o);
            assert_int_equal(o.clip, 0);
        } else {
            assert_int_equal(o.clip, 1);
        }
        assert_true(o.eta == (qd_param_find(qd_samplers[k]->params, "eta") ? 0.0 : 0.25));
        qd_params_free(p);
    }
    qd_spacing spacing = QD_SPACING_LEADING;
    assert_true(qd_spacing_find("quad", &spacing));
    assert_int_equal(spacing, QD_SPACING_QUAD);
    assert_false(qd_spacing_find("log", &spacing));
}

/* 9.7, for every sampler, grid and kind of prediction. */
static void perfect_predictor(void **state)
{
    float x[N];
    qd_schedule *s = new_schedule();
    for (int k = 0; qd_samplers[k]; k++)
        for (int spacing = QD_SPACING_LEADING; spacing <= QD_SPACING_QUAD; spacing++)
            for (int prediction = QD_PREDICT_EPSILON; prediction <= QD_PREDICT_SAMPLE; prediction++) {
                oracle q = new_oracle(s);
                const qd_predictor p = predictor(&q, point);
                const qd_sample_options o = { .steps = 24, .spacing = (qd_spacing)spacing, .seed = 3, .clip = 0 };
                s->prediction = (qd_prediction)prediction;
                s->set_alpha_to_one = true;
                sample(qd_samplers[k], s, &o, &p, NULL, x);
                for (int b = 0; b < BATCH; b++)
                    check_close(x + b * PER, q.target, PER, 1e-4, 0.0);
                assert_int_equal(q.calls, qd_samplers[k]->calls(&o));

                if (strcmp(qd_samplers[k]->name, "ddpm") == 0)
                    continue; /* its past is always abar 1 */
                s->set_alpha_to_one = false;
                sample(qd_samplers[k], s, &o, &p, NULL, x);
                const double left = sqrt(1.0 - s->alpha_bar[0]), error = rms(x, q.target);
                assert_true(error < 1.2 * left && error > 0.5 * left); /* eps is about 1 */
            }
    qd_schedule_free(s);
}

/* 9.8: the flow is linear, so one ratio says all. */
static void gaussian_data(void **state)
{
    static const struct {
        const char *name;
        int steps;
    } rows[] = { { "ddim", 1000 }, { "plms", 100 }, { "dpmpp2m", 100 } };
    float x[N], x_init[N];
    qd_schedule *s = new_schedule();
    for (int k = 0; k < 3; k++) {
        oracle q = new_oracle(s);
        const qd_predictor p = predictor(&q, gauss);
        const qd_sample_options o = { .steps = rows[k].steps, .spacing = QD_SPACING_TRAILING, .seed = 5, .clip = 0 };
        qd_sample_noise(x_init, BATCH, PER, o.seed, 0);
        sample(qd_sampler_find(rows[k].name), s, &o, &p, NULL, x);
        const double ratio = x[0] / x_init[0];
        if (!(fabs(ratio / q.std - 1.0) < 0.01))
            fail_msg("%s: std %.5f, wanted %.5f", rows[k].name, ratio, q.std);
        for (int j = 0; j < N; j++)
            x_init[j] *= (float)ratio;
        check_close(x, x_init, N, 0.0, 1e-4);
    }
    qd_schedule_free(s);
}

/* For N(0, 1) data the reverse process is exactly fixed_large's: every x_t has variance 1. */
static void ancestral_sampling_keeps_variance(void **state)
{
    float x[N];
    double square = 0.0, small = 0.0;
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    const qd_predictor p = predictor(&q, gauss);
    const qd_sample_options o = { .steps = 200, .seed = 9, .clip = 0 };
    q.std = 1.0;
    s->variance = QD_VAR_FIXED_LARGE;
    sample(qd_sampler_find("ddpm"), s, &o, &p, NULL, x);
    for (int k = 0; k < N; k++)
        square += (double)x[k] * x[k];
    /* 4 standard errors; the last step, to abar 1, adds no noise and loses 1 - abar_0 = 1e-4. */
    assert_true(fabs(square / N - 1.0) < 4.0 * sqrt(2.0 / N));
    s->variance = QD_VAR_FIXED_SMALL;
    sample(qd_sampler_find("ddpm"), s, &o, &p, NULL, x);
    for (int k = 0; k < N; k++)
        small += (double)x[k] * x[k];
    assert_true(small / N < 0.98);
    qd_schedule_free(s);
}

typedef struct tape {
    int n;
    float x[TAPE][N];
    double sigma[TAPE];
    int t[TAPE], t_prev[TAPE], step[TAPE], hooked;
    bool mute;  // sets sigma to 0
    double add; // to eps
    qd_status stop;
} tape;

static qd_status tape_eps(void *ctx, int step, int t, int t_prev, const float *x, float *eps, double *sigma,
                          qd_err *err)
{
    tape *p = ctx;
    if (p->hooked < TAPE) {
        p->sigma[p->hooked] = *sigma;
        p->t[p->hooked] = t;
        p->t_prev[p->hooked] = t_prev;
        p->step[p->hooked] = step;
    }
    p->hooked++;
    if (p->mute)
        *sigma = 0.0;
    if (p->add != 0.0)
        for (int k = 0; k < N; k++)
            eps[k] = (float)(eps[k] + p->add);
    return p->stop ? qd_fail(err, p->stop, "the hook says no") : QD_OK;
}

static qd_status tape_stepped(void *ctx, int step, int steps, int t, const float *x, qd_err *err)
{
    tape *p = ctx;
    assert_int_equal(step, p->n);
    if (p->n < TAPE)
        memcpy(p->x[p->n], x, sizeof(p->x[0]));
    p->n++;
    return QD_OK;
}

static tape first, second;
static const qd_sampler_hook first_hook = { .ctx = &first, .eps = tape_eps, .stepped = tape_stepped };
static const qd_sampler_hook second_hook = { .ctx = &second, .eps = tape_eps, .stepped = tape_stepped };

static void check_same_path(double tolerance)
{
    assert_int_equal(first.n, second.n);
    for (int k = 0; k < first.n; k++)
        check_close(first.x[k], second.x[k], N, tolerance, tolerance);
}

/* 9.6: DDIM with eta 1 is DDPM with fixed_small, noise by noise. */
static void ddim_eta_one_is_ddpm(void **state)
{
    float x[N];
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    const qd_predictor p = predictor(&q, gauss);
    const qd_sample_options o = { .steps = 40, .eta = 1.0, .seed = 21, .clip = 0 };
    memset(&first, 0, sizeof(first));
    memset(&second, 0, sizeof(second));
    sample(qd_sampler_find("ddim"), s, &o, &p, &first_hook, x);
    sample(qd_sampler_find("ddpm"), s, &o, &p, &second_hook, x);
    check_same_path(2e-6);
    for (int k = 0; k < 40; k++)
        assert_true(fabs(first.sigma[k] - second.sigma[k]) < 1e-9);
    qd_schedule_free(s);
}

/* 9.6: without anything to extrapolate PLMS is DDIM; DPM++ is DDIM where the image seen does not change, and in its first step. */
static void multistep_methods_start_from_ddim(void **state)
{
    float x[N];
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    qd_sample_options o = { .steps = 25, .spacing = QD_SPACING_TRAILING, .seed = 4, .clip = 0 };
    const struct {
        const char *name;
        predict_fn *f;
        int steps;
    } rows[] = { { "plms", constant, 25 }, { "dpmpp2m", point, 25 }, { "dpmpp2m", gauss, 1 } };
    for (int k = 0; k < 3; k++) {
        const qd_predictor p = predictor(&q, rows[k].f);
        o.steps = rows[k].steps;
        memset(&first, 0, sizeof(first));
        memset(&second, 0, sizeof(second));
        sample(qd_sampler_find("ddim"), s, &o, &p, &first_hook, x);
        sample(qd_sampler_find(rows[k].name), s, &o, &p, &second_hook, x);
        check_same_path(5e-6);
    }
    qd_schedule_free(s);
}

/* Relative error against the exact flow of Gaussian data from t = 999 to 199, where the grids of 25, 50 and 100 steps all pass. */
static double flow_error(const char *name, const qd_schedule *s, int steps)
{
    static float x[N], x_init[N];
    oracle q = new_oracle(s);
    const qd_predictor p = predictor(&q, gauss);
    const qd_sample_options o = { .steps = steps, .spacing = QD_SPACING_TRAILING, .seed = 4, .clip = 0 };
    int t[TAPE], at = 0;
    qd_err err = { 0 };
    check_ok(qd_timesteps(s, o.spacing, steps, t, &err), &err);
    while (t[at] != 199)
        at++;
    memset(&first, 0, sizeof(first));
    qd_sample_noise(x_init, BATCH, PER, o.seed, 0);
    sample(qd_sampler_find(name), s, &o, &p, &first_hook, x);
    const double var = q.std * q.std, from = s->alpha_bar[999], to = s->alpha_bar[199];
    const double exact = sqrt((to * var + 1.0 - to) / (from * var + 1.0 - from));
    return fabs(first.x[at - 1][0] / x_init[0] / exact - 1.0);
}

/* Halving the step divides the error by 2^order: DDIM has order 1, DPM++(2M) order 2. PLMS follows with order 4 what its first
 * step began with order 2; its error over 25 steps, 1.7506e-4, is that of the formulas of 8.3 in NumPy (float64). */
static void orders_of_convergence(void **state)
{
    qd_schedule *s = new_schedule();
    const double ddim = flow_error("ddim", s, 50) / flow_error("ddim", s, 25);
    const double dpm = flow_error("dpmpp2m", s, 50) / flow_error("dpmpp2m", s, 25);
    const double plms = flow_error("plms", s, 100) / flow_error("plms", s, 50);
    print_message("  error over error of twice the step: ddim %.3f dpmpp2m %.3f plms %.3f\n", ddim, dpm, plms);
    assert_true(ddim > 0.45 && ddim < 0.55);
    assert_true(dpm > 0.2 && dpm < 0.3);
    assert_true(plms > 0.2 && plms < 0.35);
    assert_true(fabs(flow_error("plms", s, 25) - 1.7506e-4) < 2e-6); /* of values of order 1, in float */
    qd_schedule_free(s);
}

static void what_is_predicted_does_not_matter(void **state)
{
    float eps[N], other[N];
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    const qd_predictor p = predictor(&q, gauss);
    const qd_sample_options o = { .steps = 20, .eta = 0.5, .seed = 8, .clip = 0 };
    for (int k = 0; qd_samplers[k]; k++) {
        s->prediction = QD_PREDICT_EPSILON;
        sample(qd_samplers[k], s, &o, &p, NULL, eps);
        for (int prediction = QD_PREDICT_V; prediction <= QD_PREDICT_SAMPLE; prediction++) {
            s->prediction = (qd_prediction)prediction;
            sample(qd_samplers[k], s, &o, &p, NULL, other);
            check_close(other, eps, N, 2e-4, 0.0); /* x - a x0 cancels near the image */
        }
    }
    qd_schedule_free(s);
}

/* One step by hand: with clipping x0 is held, eps stays as it was. */
static void clipping(void **state)
{
    float x[N], x_init[N];
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    const qd_predictor p = predictor(&q, constant);
    qd_sample_options o = { .steps = 2, .spacing = QD_SPACING_TRAILING, .seed = 31, .clip = 1 };
    const double a = s->alpha_bar[999], b = s->alpha_bar[499];
    s->clip_range = 0.75;
    qd_sample_noise(x_init, BATCH, PER, o.seed, 0);
    memset(&first, 0, sizeof(first));
    sample(qd_sampler_find("ddim"), s, &o, &p, &first_hook, x);
    int held = 0;
    for (int k = 0; k < N; k++) {
        const double e = q.target[k % PER], x0 = (x_init[k] - sqrt(1.0 - a) * e) / sqrt(a);
        const double want = sqrt(b) * fmax(-0.75, fmin(0.75, x0)) + sqrt(1.0 - b) * e;
        held += fabs(x0) > 0.75;
        if (!(fabs(first.x[0][k] - want) < 1e-5))
            fail_msg("x[%d] = %g, wanted %g", k, first.x[0][k], want);
        assert_true(fabs(x[k]) <= 0.75);
    }
    assert_true(held > N / 2);

    for (int k = 0; k < 2; k++) { /* ddpm and ddim; -1 asks the schedule */
        o.clip = -1;
        s->clip_sample = true;
        sample(qd_samplers[k], s, &o, &p, NULL, x);
        double most = 0.0;
        for (int j = 0; j < N; j++)
            most = fmax(most, fabs(x[j]));
        assert_true(most <= 0.75f + 1e-6);
        s->clip_sample = false;
        sample(qd_samplers[k], s, &o, &p, NULL, x);
        for (int j = 0; j < N; j++)
            most = fmax(most, fabs(x[j]));
        assert_true(most > 1.0);
    }
    qd_schedule_free(s);
}

/* sigma as 8.1 and 8.2 say, seen through the hook. */
static void variances(void **state)
{
    float x[N];
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    const qd_predictor p = predictor(&q, gauss);
    const qd_sample_options o = { .steps = 4, .eta = 0.5, .seed = 2, .clip = 0 };
    for (int large = 0; large < 2; large++) {
        s->variance = large ? QD_VAR_FIXED_LARGE : QD_VAR_FIXED_SMALL;
        memset(&first, 0, sizeof(first));
        memset(&second, 0, sizeof(second));
        sample(qd_sampler_find("ddpm"), s, &o, &p, &first_hook, x);
        sample(qd_sampler_find("ddim"), s, &o, &p, &second_hook, x);
        for (int k = 0; k < 4; k++) {
            const int t = 750 - 250 * k;
            const double abar = s->alpha_bar[t], next = k < 3 ? s->alpha_bar[t - 250] : 1.0;
            const double b = 1.0 - abar / next, small = (1.0 - next) / (1.0 - abar) * b;
            assert_int_equal(first.t[k], t);
            assert_int_equal(first.t_prev[k], k < 3 ? t - 250 : -1);
            assert_int_equal(first.step[k], k);
            assert_true(fabs(first.sigma[k] - (t == 0 ? 0.0 : sqrt(large ? b : small))) < 1e-12);
            assert_true(fabs(second.sigma[k] - 0.5 * sqrt(small)) < 1e-12);
        }
    }
    qd_schedule_free(s);
}

/* A hook that does nothing changes nothing, bit for bit; one that changes something is heard. */
static void hooks(void **state)
{
    float plain[N], hooked[N];
    qd_err err = { 0 };
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    const qd_predictor p = predictor(&q, gauss);
    const qd_sample_options o = { .steps = 12, .eta = 0.7, .seed = 13, .clip = 0 };
    for (int k = 0; qd_samplers[k]; k++) {
        const bool stochastic = k < 2;
        sample(qd_samplers[k], s, &o, &p, NULL, plain);
        memset(&first, 0, sizeof(first));
        sample(qd_samplers[k], s, &o, &p, &first_hook, hooked);
        assert_memory_equal(plain, hooked, sizeof(plain));
        assert_int_equal(first.n, 12);
        assert_int_equal(first.hooked, qd_samplers[k]->calls(&o));
        assert_memory_equal(first.x[11], hooked, sizeof(hooked));
        const qd_sampler_hook empty = { 0 };
        sample(qd_samplers[k], s, &o, &p, &empty, hooked);
        assert_memory_equal(plain, hooked, sizeof(plain));

        memset(&first, 0, sizeof(first));
        first.mute = true;
        sample(qd_samplers[k], s, &o, &p, &first_hook, hooked);
        assert_true((memcmp(plain, hooked, sizeof(plain)) != 0) == stochastic);

        memset(&first, 0, sizeof(first));
        first.add = 0.01;
        sample(qd_samplers[k], s, &o, &p, &first_hook, hooked);
        assert_memory_not_equal(plain, hooked, sizeof(plain));

        memset(&first, 0, sizeof(first));
        first.stop = QD_E_CONFLICT;
        check_fails(qd_samplers[k]->run(s, &o, &p, &first_hook, NULL, hooked, &err), QD_E_CONFLICT, "the hook says no",
                    &err);
        assert_int_equal(first.hooked, 1);
    }

    /* The second call of plms belongs to step 0 and looks at the next entry. */
    memset(&first, 0, sizeof(first));
    sample(qd_sampler_find("plms"), s, &o, &p, &first_hook, hooked);
    assert_int_equal(first.step[0], 0);
    assert_int_equal(first.step[1], 0);
    assert_int_equal(first.step[2], 1);
    assert_int_equal(first.t[1], first.t_prev[0]);
    assert_int_equal(first.t[1], first.t[2]);
    qd_schedule_free(s);
}

/* diffusion_models.md 7 and 8.3: which time steps the network is asked about. */
static void time_steps_asked(void **state)
{
    float x[N];
    qd_err err = { 0 };
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    const qd_predictor p = predictor(&q, gauss);
    qd_sample_options o = { .steps = 50, .clip = 0 };
    s->steps_offset = 1;
    sample(qd_sampler_find("plms"), s, &o, &p, NULL, x);
    assert_int_equal(q.calls, 51);
    assert_true(q.t[0] == 981 && q.t[1] == 961 && q.t[2] == 961 && q.t[3] == 941 && q.t[50] == 1);

    q = new_oracle(s);
    o.steps = 20;
    sample(qd_sampler_find("dpmpp2m"), s, &o, &p, NULL, x);
    assert_true(q.calls == 20 && q.t[0] == 941 && q.t[1] == 894 && q.t[18] == 95 && q.t[19] == 48);
    q = new_oracle(s);
    o.spacing = QD_SPACING_LINSPACE;
    sample(qd_sampler_find("dpmpp2m"), s, &o, &p, NULL, x);
    assert_true(q.calls == 20 && q.t[0] == 999 && q.t[1] == 949 && q.t[2] == 899 && q.t[18] == 100 && q.t[19] == 50);
    o.steps = 1000;
    check_fails(qd_sampler_find("dpmpp2m")->run(s, &o, &p, NULL, NULL, x, &err), QD_E_INVALID, "1..999", &err);
    s->steps_offset = 600;
    o = (qd_sample_options){ .steps = 2, .spacing = QD_SPACING_TRAILING };
    o.spacing = QD_SPACING_LEADING;
    o.steps = 1;
    check_fails(qd_sampler_find("dpmpp2m")->run(s, &o, &p, NULL, NULL, x, &err), QD_E_INVALID, "steps_offset 600",
                &err);
    qd_schedule_free(s);
}

/* An image depends on its number alone, not on its neighbours in the batch. */
static void alone_or_in_a_batch(void **state)
{
    float batch[N], alone[N];
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    qd_predictor p = predictor(&q, gauss);
    for (int k = 0; qd_samplers[k]; k++) {
        qd_sample_options o = { .steps = 10, .eta = 1.0, .seed = 99, .first_sample = 1000, .clip = 0 };
        p.batch = BATCH;
        sample(qd_samplers[k], s, &o, &p, NULL, batch);
        for (int b = 0; b < BATCH; b++) {
            o.first_sample = 1000 + b;
            p.batch = 1;
            q.n = PER;
            sample(qd_samplers[k], s, &o, &p, NULL, alone);
            assert_memory_equal(alone, batch + b * PER, PER * sizeof(float));
        }
        p.batch = BATCH;
        q.n = N;
        o.first_sample = 1000;
        o.seed = 98;
        sample(qd_samplers[k], s, &o, &p, NULL, alone);
        assert_memory_not_equal(alone, batch, sizeof(batch));
    }
    qd_schedule_free(s);
}

static void bad_asks(void **state)
{
    float x[N] = { 0 };
    qd_err err = { 0 };
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    qd_predictor p = predictor(&q, gauss);
    atomic_bool flag = true;
    qd_run run = { .cancel = &flag };
    qd_budget budget;
    for (int k = 0; qd_samplers[k]; k++) {
        qd_sample_options o = { .steps = 0 };
        check_fails(qd_samplers[k]->run(s, &o, &p, NULL, NULL, x, &err), QD_E_INVALID, "got 0", &err);
        o.steps = 1001;
        check_fails(qd_samplers[k]->run(s, &o, &p, NULL, NULL, x, &err), QD_E_INVALID, "got 1001", &err);
        o = (qd_sample_options){ .steps = 5, .eta = 1.5 };
        check_fails(qd_samplers[k]->run(s, &o, &p, NULL, NULL, x, &err), QD_E_INVALID, "eta", &err);
        o = (qd_sample_options){ .steps = 5, .first_sample = -1 };
        check_fails(qd_samplers[k]->run(s, &o, &p, NULL, NULL, x, &err), QD_E_LIMIT, "sample numbers -1", &err);
        o = (qd_sample_options){ .steps = 5 };
        p.batch = 0;
        check_fails(qd_samplers[k]->run(s, &o, &p, NULL, NULL, x, &err), QD_E_INVALID, "[0, 2, 16, 16]", &err);
        p.batch = BATCH;
        check_fails(qd_samplers[k]->run(s, &o, &p, NULL, &run, x, &err), QD_E_CANCELLED, NULL, &err);
        q.broken = true;
        check_fails(qd_samplers[k]->run(s, &o, &p, NULL, NULL, x, &err), QD_E_NUMERIC, "sample 1 is not finite", &err);
        q.broken = false;

        qd_budget_init(&budget, N * sizeof(float));
        const qd_run poor = { .budget = &budget };
        check_fails(qd_samplers[k]->run(s, &o, &p, NULL, &poor, x, &err), QD_E_LIMIT, NULL, &err);
        assert_int_equal(budget.used_bytes, 0);
    }
    qd_schedule_free(s);
}

static void allocations_fail(void **state)
{
    float x[N] = { 0 };
    qd_schedule *s = new_schedule();
    oracle q = new_oracle(s);
    const qd_predictor p = predictor(&q, gauss);
    const qd_sample_options o = { .steps = 2 };
    for (int which = 0; qd_samplers[which]; which++)
        for (long k = 0;; k++) {
            qd_err err = { 0 };
            qd_mem_fault_set(k);
            const qd_status st = qd_samplers[which]->run(s, &o, &p, NULL, NULL, x, &err);
            const bool hit = qd_mem_fault_hit();
            qd_mem_fault_set(-1);
            if (!hit) {
                check_ok(st, &err);
                assert_true(k >= 3);
                break;
            }
            check_fails(st, QD_E_NOMEM, NULL, &err);
        }
    qd_schedule_free(s);
}

static void noise_is_normal_and_numbered(void **state)
{
    enum { M = 40000 };
    static float x[M], y[M];
    double sum = 0.0, square = 0.0;
    qd_sample_noise(x, 4, M / 4, 1, 10);
    for (int k = 0; k < M; k++) {
        sum += x[k];
        square += (double)x[k] * x[k];
    }
    assert_true(fabs(sum / M) < 4.0 / sqrt(M));
    assert_true(fabs(square / M - 1.0) < 4.0 * sqrt(2.0 / M));
    qd_sample_noise(y, 2, M / 4, 1, 12);
    assert_memory_equal(y, x + M / 2, M / 2 * sizeof(float));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables),
        cmocka_unit_test(perfect_predictor),
        cmocka_unit_test(gaussian_data),
        cmocka_unit_test(ancestral_sampling_keeps_variance),
        cmocka_unit_test(ddim_eta_one_is_ddpm),
        cmocka_unit_test(multistep_methods_start_from_ddim),
        cmocka_unit_test(orders_of_convergence),
        cmocka_unit_test(what_is_predicted_does_not_matter),
        cmocka_unit_test(clipping),
        cmocka_unit_test(variances),
        cmocka_unit_test(hooks),
        cmocka_unit_test(time_steps_asked),
        cmocka_unit_test(alone_or_in_a_batch),
        cmocka_unit_test(bad_asks),
        cmocka_unit_test(allocations_fail),
        cmocka_unit_test(noise_is_normal_and_numbered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
