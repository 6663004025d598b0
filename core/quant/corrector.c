/* corrector.c - sampling with a correction: eps is corrected before the sampler, its history or anybody else sees it (qncd.md 8.5).
 *
 * All state belongs to one sample and one run, so an image depends neither on its batch nor on what was drawn before. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "quant/qncd_int.h"

/* One table entry, ready for use. */
typedef struct entry {
    int t;
    double k, var, beta;
    double *bias, *mean_d, *mean_q; // [channels]
} entry;

struct qd_corrected {
    qd_corrected_options o;
    qd_grouped *denoiser;
    qd_predictor predictor;
    int64_t channels, space, per_sample;
    entry *table;
    int n_table;
    entry now; /* at the current time step */
    /* of the current run: */
    const qd_sampler_hook *then;
    const qd_run *run;
    qd_probe probe;
    double *mu;         // [batch, channels]
    double *excess;     // [batch], variance that quantization adds to eps
    double *mean, *var; // [1 + channels]
};

static bool has_table(qd_correction_mode m)
{
    return m == QD_CORRECT_TABLE || m == QD_CORRECT_CONDITIONAL || m == QD_CORRECT_BOTH;
}

static bool has_probe(qd_correction_mode m)
{
    return m == QD_CORRECT_COMPAT || m == QD_CORRECT_PROBE || m == QD_CORRECT_BOTH;
}

/* --- the table --- */

static void entry_clear(entry *e)
{
    qd_free(e->bias);
    qd_free(e->mean_d);
    qd_free(e->mean_q);
}

static qd_status entry_init(entry *e, int64_t channels, qd_err *err)
{
    e->bias = qd_calloc((size_t)channels, sizeof(double));
    e->mean_d = qd_calloc((size_t)channels, sizeof(double));
    e->mean_q = qd_calloc((size_t)channels, sizeof(double));
    return e->bias && e->mean_d && e->mean_q
               ? QD_OK
               : qd_fail(err, QD_E_NOMEM, "no memory for the figures of %lld channels", (long long)channels);
}

static void entry_read(entry *e, const qd_noise_step *s, int64_t channels)
{
    const qd_noise_figures f = qd_noise_figures_of(s, channels);
    const double residual = f.sigma / (1.0 + f.k);
    e->t = s->t;
    e->k = f.k;
    e->beta = f.beta;
    e->var = residual * residual;
    for (int64_t c = 0; c < channels; c++) {
        const qd_noise_sums *m = &s->channel[c];
        e->mean_d[c] = m->d / m->n;
        e->mean_q[c] = m->q / m->n;
        e->bias[c] = (m->d - f.k * m->e) / m->n;
    }
}

static double between(double a, double b, double at)
{
    return a + (b - a) * at;
}

/* c->now = the table at t: linear between its time steps, held at its ends. */
static void look_up(qd_corrected *c, int t)
{
    int k = 0;
    while (k + 1 < c->n_table && c->table[k + 1].t >= t)
        k++;
    const entry *a = &c->table[k], *b = k + 1 < c->n_table ? &c->table[k + 1] : a;
    const double at = a->t > b->t ? fmin(fmax((double)(a->t - t) / (a->t - b->t), 0.0), 1.0) : 0.0;
    c->now.t = t;
    c->now.k = between(a->k, b->k, at);
    c->now.var = between(a->var, b->var, at);
    c->now.beta = between(a->beta, b->beta, at);
    for (int64_t i = 0; i < c->channels; i++) {
        c->now.bias[i] = between(a->bias[i], b->bias[i], at);
        c->now.mean_d[i] = between(a->mean_d[i], b->mean_d[i], at);
        c->now.mean_q[i] = between(a->mean_q[i], b->mean_q[i], at);
    }
}

/* PTQD: e = (eps_hat - b) / (1 + k). D2-DPM: e = eps_hat - E[D | eps_hat]. */
static void apply_table(const qd_corrected *c, float *eps)
{
    const entry *e = &c->now;
    for (int64_t p = 0; p < c->o.batch * c->channels; p++) {
        const int64_t i = p % c->channels;
        double keep = 1.0 / (1.0 + e->k), take = e->bias[i] / (1.0 + e->k);
        if (c->o.mode == QD_CORRECT_CONDITIONAL) {
            keep = 1.0 - e->beta;
            take = e->mean_d[i] - e->beta * e->mean_q[i];
        }
        float *v = eps + p * c->space;
        for (int64_t k = 0; k < c->space; k++)
            v[k] = (float)(keep * v[k] - take);
    }
}

/* --- the probe --- */

static const qd_probe_reference *reference_at(const qd_correction *r, int t)
{
    const qd_probe_reference *best = &r->probe[0];
    for (int k = 1; k < r->n_probe; k++)
        if (abs(r->probe[k].t - t) < abs(best->t - t))
            best = &r->probe[k];
    return best;
}

/* m over its reference, when it is far enough from it to mean something (8.4). n: how many values it is the mean of. */
static double gated(const qd_correction *r, const qd_probe_reference *ref, int64_t at, double mean, double var,
                    int64_t n)
{
    const double m = mean - ref->m[at];
    const double error = ref->s[at] > 0 ? ref->s[at] : sqrt(var / (double)n);
    return fabs(m) < r->kappa * error ? 0.0 : fmin(fmax(m, -r->mu_max), r->mu_max);
}

static void estimate_each(qd_corrected *c, const qd_sampler_step *step)
{
    const qd_correction *r = c->o.correction;
    const qd_probe_reference *ref = reference_at(r, step->t);
    for (int64_t b = 0; b < c->o.batch; b++) {
        qd_probe_moments(c->probe.d + b * c->per_sample, c->channels, c->space, c->mean, c->var);
        for (int64_t i = 0; i < c->channels; i++) {
            const int64_t at = r->by_channel ? 1 + i : 0;
            c->mu[b * c->channels + i] =
                gated(r, ref, at, c->mean[at], c->var[at], r->by_channel ? c->space : c->per_sample);
        }
        c->excess[b] = fmax(0.0, c->var[0] - ref->v[0]);
    }
}

/* As published: one mean over everything, no reference, no gate, no variance (8.2). */
static void estimate_all(qd_corrected *c)
{
    double sum = 0;
    for (int64_t k = 0; k < c->probe.n; k++)
        sum += c->probe.d[k];
    for (int64_t k = 0; k < c->o.batch * c->channels; k++)
        c->mu[k] = sum / (double)c->probe.n;
}

static qd_status estimate(qd_corrected *c, const qd_sampler_step *step, qd_err *err)
{
    qd_status st = qd_probe_ask(&c->probe, step, step->eps, c->run, err);
    if (st)
        return st;
    if (c->o.mode == QD_CORRECT_BOTH) {
        for (int64_t k = 0; k < c->probe.n; k++)
            c->probe.d[k] += c->probe.z[k];
        apply_table(c, c->probe.d);
        for (int64_t k = 0; k < c->probe.n; k++)
            c->probe.d[k] -= c->probe.z[k];
    }
    if (c->o.mode == QD_CORRECT_COMPAT)
        estimate_all(c);
    else
        estimate_each(c, step);
    return QD_OK;
}

static void subtract(const qd_corrected *c, float *eps)
{
    for (int64_t p = 0; p < c->o.batch * c->channels; p++) {
        if (c->mu[p] == 0.0)
            continue;
        float *v = eps + p * c->space;
        for (int64_t k = 0; k < c->space; k++)
            v[k] = (float)(v[k] - c->mu[p]);
    }
}

/* --- the hook --- */

/* eps brings variance of its own: so much less is drawn (8.4). */
static void lower_sigma(const qd_corrected *c, const qd_sampler_step *s)
{
    const double abar = qd_schedule_level(c->o.schedule, s->t), next = qd_schedule_level(c->o.schedule, s->t_prev);
    const double g = sqrt(fmax(1.0 - next - s->sigma * s->sigma, 0.0)) - sqrt(next * (1.0 - abar) / abar);
    for (int64_t b = 0; b < c->o.batch; b++) {
        const double v = (c->o.mode == QD_CORRECT_TABLE || c->o.mode == QD_CORRECT_BOTH ? c->now.var : 0.0) +
                         (c->o.mode == QD_CORRECT_PROBE ? c->excess[b] : 0.0);
        s->share[b] = (float)sqrt(fmax(0.0, 1.0 - g * g * v / (s->sigma * s->sigma)));
    }
}

static qd_status correct(void *ctx, const qd_sampler_step *s, qd_err *err)
{
    qd_corrected *c = ctx;
    const qd_correction *r = c->o.correction;
    qd_status st = QD_OK;
    if (has_table(c->o.mode)) {
        look_up(c, s->t);
        apply_table(c, s->eps);
    }
    if (has_probe(c->o.mode)) {
        if (!s->again && qd_probe_triggers(s->step, r->interval, r->paper_offset))
            st = estimate(c, s, err);
        /* The published sampler leaves the second call of the first step alone. */
        if (!st && !(s->again && c->o.mode == QD_CORRECT_COMPAT))
            subtract(c, s->eps);
    }
    if (!st && s->sigma > 0 && c->o.mode != QD_CORRECT_COMPAT)
        lower_sigma(c, s);
    if (!st && c->then && c->then->correct)
        st = c->then->correct(c->then->ctx, s, err);
    return st;
}

static qd_status then_eps(void *ctx, int step, int t, int t_prev, const float *x, float *eps, double *sigma,
                          qd_err *err)
{
    const qd_corrected *c = ctx;
    return c->then && c->then->eps ? c->then->eps(c->then->ctx, step, t, t_prev, x, eps, sigma, err) : QD_OK;
}

static qd_status then_stepped(void *ctx, int step, int steps, int t, const float *x, qd_err *err)
{
    const qd_corrected *c = ctx;
    return c->then && c->then->stepped ? c->then->stepped(c->then->ctx, step, steps, t, x, err) : QD_OK;
}

/* --- the object --- */

static qd_status check(const qd_corrected_options *o, const qd_predictor *p, qd_err *err)
{
    const qd_correction *r = o->correction;
    const char *mode = qd_correction_mode_name(o->mode);
    if (o->mode == QD_CORRECT_NONE)
        return QD_OK;
    if (!r)
        return qd_fail(err, QD_E_INVALID, "correction '%s' needs a model that was quantized with one", mode);
    if (has_table(o->mode) && r->n_table < 1)
        return qd_fail(err, QD_E_INVALID, "correction '%s' needs paired statistics, which this model does not carry",
                       mode);
    if (has_probe(o->mode) && o->mode != QD_CORRECT_COMPAT && r->n_probe < 1)
        return qd_fail(err, QD_E_INVALID,
                       "correction '%s' needs the float network's own probes, which this model does not carry", mode);
    if (o->mode != QD_CORRECT_COMPAT && r->channels != p->channels)
        return qd_fail(err, QD_E_INVALID, "the correction is for %lld channels, the model has %lld",
                       (long long)r->channels, (long long)p->channels);
    return QD_OK;
}

static qd_status read_table(qd_corrected *c, qd_err *err)
{
    const qd_correction *r = c->o.correction;
    qd_status st = entry_init(&c->now, c->channels, err);
    if (st || !has_table(c->o.mode))
        return st;
    c->table = qd_calloc((size_t)r->n_table, sizeof *c->table);
    if (!c->table)
        return qd_fail(err, QD_E_NOMEM, "no memory for a table of %d steps", r->n_table);
    c->n_table = r->n_table;
    for (int k = 0; k < r->n_table && !st; k++) {
        st = entry_init(&c->table[k], c->channels, err);
        if (!st)
            entry_read(&c->table[k], &r->table[k], c->channels);
    }
    return st;
}

qd_status qd_corrected_new(const qd_corrected_options *o, qd_corrected **out, qd_err *err)
{
    const qd_denoiser_options d = {
        .batch = o->batch,
        .threads = o->threads,
        .backend = o->backend,
        .budget = o->budget,
        .condition = o->condition,
        .take = o->take,
    };
    qd_corrected *c = qd_calloc(1, sizeof *c);
    if (!c)
        return qd_fail(err, QD_E_NOMEM, "no memory for a sampler");
    c->o = *o;
    qd_status st = qd_grouped_new(o->graph, o->correction, &d, &c->denoiser, err);
    if (st)
        goto out;
    c->predictor = qd_grouped_predictor(c->denoiser);
    c->channels = c->predictor.channels;
    c->space = c->predictor.height * c->predictor.width;
    c->per_sample = c->channels * c->space;
    if ((st = check(o, &c->predictor, err)) || (st = read_table(c, err)))
        goto out;
    c->mu = qd_calloc((size_t)(o->batch * c->channels), sizeof *c->mu);
    c->excess = qd_calloc((size_t)o->batch, sizeof *c->excess);
    c->mean = qd_calloc((size_t)(1 + c->channels), sizeof *c->mean);
    c->var = qd_calloc((size_t)(1 + c->channels), sizeof *c->var);
    if (!c->mu || !c->excess || !c->mean || !c->var) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the estimates of %lld samples", (long long)o->batch);
        goto out;
    }
    if (has_probe(o->mode)) {
        st = qd_probe_open(&c->probe, &c->predictor, o->schedule, 0, o->budget, err);
        if (st)
            goto out;
        c->probe.centred = o->mode != QD_CORRECT_COMPAT;
    }
    *out = c;
    c = NULL;
out:
    qd_corrected_free(c);
    return st;
}

void qd_corrected_free(qd_corrected *c)
{
    if (!c)
        return;
    if (has_probe(c->o.mode))
        qd_probe_close(&c->probe);
    for (int k = 0; k < c->n_table; k++)
        entry_clear(&c->table[k]);
    qd_free(c->table);
    entry_clear(&c->now);
    qd_free(c->mu);
    qd_free(c->excess);
    qd_free(c->mean);
    qd_free(c->var);
    qd_grouped_free(c->denoiser);
    qd_free(c);
}

qd_predictor qd_corrected_predictor(qd_corrected *c)
{
    return c->predictor;
}

qd_status qd_corrected_run(qd_corrected *c, const qd_sample_options *o, const qd_sampler_hook *then, const qd_run *run,
                           float *x, qd_err *err)
{
    const qd_sampler_hook hook = { .ctx = c,
                                   .correct = c->o.mode == QD_CORRECT_NONE && !(then && then->correct) ? NULL : correct,
                                   .eps = then_eps,
                                   .stepped = then_stepped };
    memset(c->mu, 0, (size_t)(c->o.batch * c->channels) * sizeof *c->mu);
    memset(c->excess, 0, (size_t)c->o.batch * sizeof *c->excess);
    c->then = then;
    c->run = run;
    c->probe.seed = o->seed;
    c->probe.first_sample = o->first_sample;
    return c->o.sampler->run(c->o.schedule, o, &c->predictor, &hook, run, x, err);
}

int qd_corrected_calls(const qd_corrected *c, const qd_sample_options *o, int *probes)
{
    int n = 0;
    for (int k = 0; has_probe(c->o.mode) && k < o->steps; k++)
        n += qd_probe_triggers(k, c->o.correction->interval, c->o.correction->paper_offset);
    if (probes)
        *probes = n;
    return c->o.sampler->calls(o) + n;
}
