/* noise.c - what a correction is made of: paired statistics of float and quantized network along the quantized network's own
 * trajectories, and what the probe shows on a healthy network (qncd.md 8.4, 11.1). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "quant/qncd_int.h"

#define FIRST_SAMPLE ((int64_t)1 << 30) /* far from those that calibrate, measure or are shown */

/* --- the paired table --- */

typedef struct pairing {
    qd_correction *to;
    const qd_graph *reference;
    const qd_trajectories *j;
    const qd_run *run;
    qd_grouped *d; /* of the float network; made once the batch is known */
    float *eps;
} pairing;

static void add_channel(qd_noise_sums *s, const float *e, const float *q, int64_t n)
{
    for (int64_t k = 0; k < n; k++) {
        const double a = e[k], b = q[k], d = b - a;
        s->e += a;
        s->q += b;
        s->d += d;
        s->ed += a * d;
        s->qd += b * d;
        s->ee += a * a;
        s->qq += b * b;
        s->dd += d * d;
    }
    s->n += (double)n;
}

static qd_status pair_up(void *ctx, const qd_predictor *p, int step, int t, int64_t first, int64_t n, const float *x,
                         const float *said, qd_err *err)
{
    pairing *w = ctx;
    qd_noise_step *s = &w->to->table[step];
    const int64_t space = p->height * p->width, size = p->channels * space;
    qd_status st = QD_OK;
    if (!w->d) {
        st = qd_trajectories_denoiser(w->j, w->reference, NULL, p->batch, w->run, &w->d, err);
        if (st)
            return st;
        w->eps = qd_alloc_aligned((size_t)(p->batch * size) * sizeof(float));
        if (!w->eps)
            return qd_fail(err, QD_E_NOMEM, "no memory for the answers of %lld samples", (long long)p->batch);
    }
    /* plms asks twice in its first step; the table holds the grid's own time steps. */
    if (s->t >= 0 && s->t != t)
        return QD_OK;
    if (!s->channel) {
        s->channel = qd_calloc((size_t)p->channels, sizeof *s->channel);
        if (!s->channel)
            return qd_fail(err, QD_E_NOMEM, "no memory for the sums of %lld channels", (long long)p->channels);
        s->t = t;
        w->to->channels = p->channels;
    }
    const qd_predictor q = qd_grouped_predictor(w->d);
    qd_predictor_seat(&q, w->j->options.first_sample + first);
    st = q.predict(q.ctx, w->run, x, t, w->eps, err);
    for (int64_t k = 0; k < n && !st; k++)
        for (int64_t c = 0; c < p->channels; c++)
            add_channel(&s->channel[c], w->eps + k * size + c * space, said + k * size + c * space, space);
    return st;
}

static qd_status collect_table(qd_correction *c, const qd_graph *reference, const qd_trajectories *j, const qd_run *run,
                               qd_err *err)
{
    pairing w = { .to = c, .reference = reference, .j = j, .run = run };
    qd_trajectories mine = *j;
    c->table = qd_calloc((size_t)j->options.steps, sizeof *c->table);
    if (!c->table)
        return qd_fail(err, QD_E_NOMEM, "no memory for a table of %d steps", j->options.steps);
    c->n_table = j->options.steps;
    for (int k = 0; k < c->n_table; k++)
        c->table[k].t = -1;
    mine.phase = "noise";
    mine.look = pair_up;
    mine.ctx = &w;
    qd_status st = qd_trajectories_run(&mine, run, err);
    for (int k = 0; k < c->n_table && !st; k++) {
        const qd_noise_figures f = qd_noise_figures_of(&c->table[k], c->channels);
        qd_run_metric(run, "noise_slope", c->table[k].t, f.k);
        qd_run_metric(run, "noise_sigma", c->table[k].t, f.sigma);
    }
    qd_free(w.eps);
    qd_grouped_free(w.d);
    return st;
}

/* --- the float network's own probe --- */

typedef struct probing {
    qd_correction *to;
    const qd_run *run;
    qd_probe probe;
    int64_t batch, channels, valid;
    double *mean, *var; // [1 + channels]
    int64_t seen;       /* trajectories before this batch */
    int at;             /* which trigger comes next */
    int64_t done, total;
} probing;

/* Welford over trajectories, for every figure of one trigger step: m and s of the means, v the mean of the variances. */
static void add_trajectory(qd_probe_reference *r, const double *mean, const double *var, int64_t n_figures, double n)
{
    for (int64_t k = 0; k < n_figures; k++) {
        const double delta = mean[k] - r->m[k];
        r->m[k] += delta / n;
        r->s[k] += delta * (mean[k] - r->m[k]);
        r->v[k] += (var[k] - r->v[k]) / n;
    }
}

static qd_status on_step(void *ctx, const qd_sampler_step *step, qd_err *err)
{
    probing *w = ctx;
    qd_status st = qd_run_check(w->run, err);
    if (st)
        return st;
    qd_run_progress(w->run, "probe", NULL, ++w->done, w->total);
    if (step->again || !qd_probe_triggers(step->step, w->to->interval, w->to->paper_offset))
        return QD_OK;
    qd_probe_reference *r = &w->to->probe[w->at++];
    r->t = step->t;
    st = qd_probe_ask(&w->probe, step, step->eps, w->run, err);
    for (int64_t k = 0; k < w->valid && !st; k++) {
        qd_probe_moments(w->probe.d + k * w->probe.per_sample, w->channels, w->probe.per_sample / w->channels, w->mean,
                         w->var);
        add_trajectory(r, w->mean, w->var, 1 + w->channels, (double)(w->seen + k + 1));
    }
    return st;
}

static qd_status make_room(qd_correction *c, int triggers, qd_err *err)
{
    c->probe = qd_calloc((size_t)triggers, sizeof *c->probe);
    if (!c->probe)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d probes", triggers);
    c->n_probe = triggers;
    for (int k = 0; k < triggers; k++) {
        qd_probe_reference *p = &c->probe[k];
        p->m = qd_calloc((size_t)(1 + c->channels), sizeof *p->m);
        p->v = qd_calloc((size_t)(1 + c->channels), sizeof *p->v);
        p->s = qd_calloc((size_t)(1 + c->channels), sizeof *p->s);
        if (!p->m || !p->v || !p->s)
            return qd_fail(err, QD_E_NOMEM, "no memory for the figures of %lld channels", (long long)c->channels);
    }
    return QD_OK;
}

static qd_status probe_batches(probing *w, const qd_trajectories *j, const qd_predictor *p, float *x, qd_err *err)
{
    const qd_sampler_hook hook = { .ctx = w, .correct = on_step };
    qd_run quiet = w->run ? *w->run : (qd_run){ 0 };
    qd_status st = QD_OK;
    quiet.progress = NULL;
    for (w->seen = 0; w->seen < j->samples && !st; w->seen += w->batch) {
        qd_sample_options o = j->options;
        o.first_sample += w->seen;
        w->valid = j->samples - w->seen < w->batch ? j->samples - w->seen : w->batch;
        w->at = 0;
        w->probe.first_sample = o.first_sample;
        qd_sample_noise(x, w->batch, w->probe.per_sample, o.seed, o.first_sample);
        st = j->sampler->run(j->schedule, &o, p, &hook, &quiet, x, err);
    }
    return st;
}

static qd_status collect_probe(qd_correction *c, const qd_trajectories *j, const qd_run *run, qd_err *err)
{
    probing w = { .to = c, .run = run, .batch = qd_trajectory_batch(j->samples) };
    qd_grouped *d = NULL;
    qd_tensor x = { 0 };
    int triggers = 0;
    qd_status st = qd_trajectories_denoiser(j, j->graph, NULL, w.batch, run, &d, err);
    if (st)
        return st;
    const qd_predictor p = qd_grouped_predictor(d);
    c->channels = w.channels = p.channels;
    for (int k = 0; k < j->options.steps; k++)
        triggers += qd_probe_triggers(k, c->interval, c->paper_offset);
    w.total = (j->samples + w.batch - 1) / w.batch * j->sampler->calls(&j->options);
    w.mean = qd_calloc((size_t)(1 + p.channels), sizeof *w.mean);
    w.var = qd_calloc((size_t)(1 + p.channels), sizeof *w.var);
    if (!w.mean || !w.var) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the figures of %lld channels", (long long)p.channels);
        goto out;
    }
    const qd_shape shape = QD_SHAPE(p.batch, p.channels, p.height, p.width);
    if ((st = make_room(c, triggers, err)) ||
        (st = qd_probe_open(&w.probe, &p, j->schedule, j->options.seed, qd_run_budget(run), err)) ||
        (st = qd_tensor_init(&x, QD_F32, &shape, qd_run_budget(run), err)))
        goto out;
    st = probe_batches(&w, j, &p, qd_f32(&x), err);
    for (int k = 0; k < triggers && !st; k++)
        for (int64_t i = 0; i <= c->channels; i++)
            c->probe[k].s[i] = j->samples > 1 ? sqrt(c->probe[k].s[i] / (double)(j->samples - 1)) : 0.0;
out:
    qd_tensor_clear(&x);
    qd_probe_close(&w.probe);
    qd_free(w.var);
    qd_free(w.mean);
    qd_grouped_free(d);
    return st;
}

qd_status qd_correction_new(const qd_noise_options *o, qd_correction_mode mode, const qd_trajectories *j,
                            qd_correction **out, qd_err *err)
{
    qd_correction *c = qd_calloc(1, sizeof *c);
    if (!c)
        return qd_fail(err, QD_E_NOMEM, "no memory for a correction");
    snprintf(c->sampler, sizeof c->sampler, "%s", j->sampler->name);
    c->steps = j->options.steps;
    c->mode = mode;
    c->channels = 1;
    c->interval = o->interval > 0 ? o->interval : 10;
    c->paper_offset = o->paper_offset || mode == QD_CORRECT_COMPAT;
    c->by_channel = o->by_channel;
    c->kappa = o->kappa;
    c->mu_max = o->mu_max;
    *out = c;
    return QD_OK;
}

qd_status qd_noise_collect(qd_correction *c, const qd_noise_options *o, const qd_trajectories *j,
                           const qd_graph *quantized, const qd_run *run, qd_err *err)
{
    qd_trajectories mine = *j, theirs;
    if (c->mode == QD_CORRECT_NONE || c->mode == QD_CORRECT_COMPAT)
        return QD_OK;
    mine.options.first_sample = FIRST_SAMPLE;
    mine.samples = o->samples;
    theirs = mine;
    theirs.graph = quantized;
    theirs.groups = c;
    const qd_status st = collect_table(c, j->graph, &theirs, run, err);
    return st ? st : collect_probe(c, &mine, run, err);
}
