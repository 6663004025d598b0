/* walk.c - what every sampler does: lay out the grid, ask the network, show the hook, draw noise. */
#include <math.h>

#include "base/rng.h"
#include "diffusion/sampler_int.h"

#define STEP_BITS 24 /* of a noise stream's low 56 bits; the rest numbers the sample */
#define MAX_SAMPLES (1ll << (56 - STEP_BITS))

static qd_status check_ask(const qd_sample_options *o, const qd_predictor *p, qd_err *err)
{
    if (!(o->eta >= 0.0 && o->eta <= 1.0))
        return qd_fail(err, QD_E_INVALID, "eta must be 0..1, got %g", o->eta);
    if (p->batch < 1 || p->channels < 1 || p->height < 1 || p->width < 1)
        return qd_fail(err, QD_E_INVALID, "a predictor of shape [%lld, %lld, %lld, %lld] makes no images",
                       (long long)p->batch, (long long)p->channels, (long long)p->height, (long long)p->width);
    if (o->first_sample < 0 || o->first_sample > MAX_SAMPLES - p->batch)
        return qd_fail(err, QD_E_LIMIT, "sample numbers %lld..%lld pass the limit of %lld", (long long)o->first_sample,
                       (long long)(o->first_sample + p->batch - 1), MAX_SAMPLES - 1);
    return QD_OK;
}

qd_status qd_walk_open(qd_walk *w, const qd_schedule *s, const qd_sample_options *o, const qd_predictor *p,
                       const qd_sampler_hook *hook, const qd_run *run, qd_err *err)
{
    qd_status st = check_ask(o, p, err);
    if (st)
        return st;
    *w = (qd_walk){ .schedule = s, .o = o, .p = p, .hook = hook, .run = run, .steps = o->steps };
    w->clip = (o->clip < 0 ? s->clip_sample : o->clip > 0) ? s->clip_range : INFINITY;

    const qd_shape shape = QD_SHAPE(p->batch, p->channels, p->height, p->width);
    st = qd_shape_count(&shape, &w->n, err);
    if (st)
        return st;
    w->per_sample = w->n / p->batch;
    st = qd_walk_take(w, 1, &w->eps, err);
    if (st)
        return st;
    st = qd_walk_take(w, 1, &w->noise, err);
    if (st)
        return st;
    w->t = qd_calloc((size_t)s->train_steps, sizeof(int)); /* as many as can be asked for */
    w->share = qd_calloc((size_t)p->batch, sizeof *w->share);
    if (!w->t || !w->share)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a grid of %d time steps", o->steps);
    for (int64_t b = 0; b < p->batch; b++)
        w->share[b] = 1.0f;
    qd_predictor_seat(p, o->first_sample);
    return qd_timesteps(s, o->spacing, o->steps, w->t, err);
}

qd_status qd_walk_take(qd_walk *w, int count, float **out, qd_err *err)
{
    size_t bytes;
    if (!qd_mul_size((size_t)w->n, (size_t)count * sizeof(float), &bytes))
        return qd_fail(err, QD_E_LIMIT, "a batch of %lld images does not fit into memory", (long long)w->p->batch);
    qd_status st = qd_budget_draw(qd_run_budget(w->run), bytes, "a sampler", err);
    if (st)
        return st;
    w->drawn_bytes += bytes;
    *out = qd_alloc_aligned(bytes);
    return *out ? QD_OK : qd_fail(err, QD_E_NOMEM, "out of memory for a sampler's %zu bytes", bytes);
}

void qd_walk_close(qd_walk *w)
{
    qd_budget_give(qd_run_budget(w->run), w->drawn_bytes);
    qd_free(w->t);
    qd_free(w->share);
    qd_free(w->eps);
    qd_free(w->noise);
}

int qd_walk_next(const qd_walk *w, int step)
{
    return step + 1 < w->steps ? w->t[step + 1] : -1;
}

double qd_walk_alpha_bar(const qd_walk *w, int t, double last)
{
    return t < 0 ? last : w->schedule->alpha_bar[t];
}

double qd_walk_last_alpha_bar(const qd_walk *w)
{
    return w->schedule->set_alpha_to_one ? 1.0 : w->schedule->alpha_bar[0];
}

/* Whatever the network predicts, as noise: from here on everything is said in eps. */
static void convert_to_eps(const qd_walk *w, int t, const float *x)
{
    const double abar = w->schedule->alpha_bar[t], a = sqrt(abar), s = sqrt(1.0 - abar);
    if (w->schedule->prediction == QD_PREDICT_V)
        for (int64_t k = 0; k < w->n; k++)
            w->eps[k] = (float)(a * w->eps[k] + s * x[k]);
    else if (w->schedule->prediction == QD_PREDICT_SAMPLE)
        for (int64_t k = 0; k < w->n; k++)
            w->eps[k] = (float)((x[k] - a * w->eps[k]) / s);
}

void qd_walk_along_ddim(const qd_walk *w, const float *e, float *xp)
{
    const double root = sqrt(w->abar), noise_root = sqrt(1.0 - w->abar);
    const double from_x0 = sqrt(w->abar_next), from_eps = sqrt(1.0 - w->abar_next);
    for (int64_t k = 0; k < w->n; k++)
        xp[k] = (float)(from_x0 * qd_walk_x0(w, root, noise_root, w->x[k], e[k]) + from_eps * e[k]);
}

static void along(const void *walk, const float *e, float *xp)
{
    const qd_walk *w = walk;
    w->along(w, e, xp);
}

qd_status qd_walk_predict(qd_walk *w, int step, int t, int t_prev, const float *x, double *sigma, qd_err *err)
{
    qd_status st = qd_run_check(w->run, err);
    if (st)
        return st;
    st = w->p->predict(w->p->ctx, w->run, x, t, w->eps, err);
    if (st)
        return st;
    for (int64_t k = 0; k < w->n; k++)
        if (!isfinite(w->eps[k]))
            return qd_fail(err, QD_E_NUMERIC, "step %d (t = %d): the network's answer for sample %lld is not finite",
                           step, t, (long long)(w->o->first_sample + k / w->per_sample));
    convert_to_eps(w, t, x);
    if (!w->hook)
        return QD_OK;
    w->x = x;
    if (w->hook->correct) {
        for (int64_t b = 0; b < w->p->batch; b++)
            w->share[b] = 1.0f;
        const qd_sampler_step now = { .step = step,
                                      .t = t,
                                      .t_prev = t_prev,
                                      .again = t != w->t[step],
                                      .x = x,
                                      .eps = w->eps,
                                      .sigma = *sigma,
                                      .share = w->share,
                                      .along = along,
                                      .walk = w };
        st = w->hook->correct(w->hook->ctx, &now, err);
    }
    if (!st && w->hook->eps)
        st = w->hook->eps(w->hook->ctx, step, t, t_prev, x, w->eps, sigma, err);
    if (st)
        return st;
    if (!(*sigma >= 0.0 && isfinite(*sigma)))
        return qd_fail(err, QD_E_NUMERIC, "step %d (t = %d): a correction made sigma %g", step, t, *sigma);
    return QD_OK;
}

void qd_walk_draw(qd_walk *w, int step)
{
    for (int64_t b = 0; b < w->p->batch; b++) {
        const uint64_t sample = (uint64_t)(w->o->first_sample + b);
        qd_rng_normal(w->noise + b * w->per_sample, (size_t)w->per_sample, w->o->seed,
                      QD_STREAM_SAMPLER_NOISE | sample << STEP_BITS | (uint64_t)step, 0);
        for (int64_t k = 0; w->share[b] != 1.0f && k < w->per_sample; k++)
            w->noise[b * w->per_sample + k] *= w->share[b];
    }
}

qd_status qd_walk_stepped(qd_walk *w, int step, const float *x, qd_err *err)
{
    if (w->hook && w->hook->stepped) {
        qd_status st = w->hook->stepped(w->hook->ctx, step, w->steps, w->t[step], x, err);
        if (st)
            return st;
    }
    qd_run_progress(w->run, "sample", NULL, step + 1, w->steps);
    return QD_OK;
}

void qd_sample_noise(float *x, int64_t batch, int64_t elements_per_sample, uint64_t seed, int64_t first_sample)
{
    for (int64_t b = 0; b < batch; b++)
        qd_rng_normal(x + b * elements_per_sample, (size_t)elements_per_sample, seed,
                      QD_STREAM_INIT_NOISE | (uint64_t)(first_sample + b), 0);
}
