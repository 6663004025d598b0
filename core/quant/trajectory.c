/* trajectory.c - what the float model sees when it samples: trajectories and the calibration set (qncd.md 5). */
#include <string.h>

#include "base/mem.h"
#include "quant/qncd_int.h"

#define BATCH 8

int64_t qd_trajectory_batch(int64_t samples)
{
    return samples < BATCH ? samples : BATCH;
}

typedef struct walk {
    const qd_trajectories *j;
    const qd_run *run;
    const qd_predictor *p;
    int64_t first, n; /* samples of this batch */
} walk;

static qd_status on_eps(void *ctx, int step, int t, int t_prev, const float *x, float *eps, double *sigma, qd_err *err)
{
    walk *w = ctx;
    const qd_trajectories *j = w->j;
    qd_status st = qd_run_check(w->run, err);
    if (!st)
        st = j->look(j->ctx, w->p, step, t, w->first, w->n, x, eps, err);
    if (st)
        return st;
    const int64_t batch = w->p->batch, batches = (j->samples + batch - 1) / batch;
    qd_run_progress(w->run, j->phase, NULL, w->first / batch * j->options.steps + step + 1, batches * j->options.steps);
    return QD_OK;
}

qd_status qd_trajectories_denoiser(const qd_trajectories *j, const qd_graph *g, const qd_correction *groups,
                                   int64_t batch, const qd_run *run, qd_grouped **out, qd_err *err)
{
    const qd_denoiser_options o = {
        .batch = batch, .threads = qd_run_threads(run), .budget = qd_run_budget(run), .condition = j->options.condition
    };
    return qd_grouped_new(g, groups, &o, out, err);
}

qd_status qd_trajectories_run(const qd_trajectories *j, const qd_run *run, qd_err *err)
{
    qd_grouped *d = NULL;
    qd_tensor x = { 0 };
    qd_run quiet = run ? *run : (qd_run){ 0 };
    quiet.progress = NULL; /* ours is told per trajectory set, not per sampling */
    const int64_t batch = qd_trajectory_batch(j->samples);
    qd_status st = qd_trajectories_denoiser(j, j->graph, j->groups, batch, run, &d, err);
    if (st)
        return st;
    const qd_predictor p = qd_grouped_predictor(d);
    const qd_shape shape = QD_SHAPE(batch, p.channels, p.height, p.width);
    st = qd_tensor_init(&x, QD_F32, &shape, qd_run_budget(run), err);
    if (st)
        goto out;

    for (int64_t first = 0; first < j->samples; first += batch) {
        const int64_t left = j->samples - first;
        walk w = { .j = j, .run = run, .p = &p, .first = first, .n = left < batch ? left : batch };
        const qd_sampler_hook hook = { .ctx = &w, .eps = on_eps };
        qd_sample_options o = j->options;
        o.first_sample += first;
        qd_sample_noise(qd_f32(&x), batch, p.channels * p.height * p.width, o.seed, o.first_sample);
        st = j->sampler->run(j->schedule, &o, &p, &hook, &quiet, qd_f32(&x), err);
        if (st)
            goto out;
    }
out:
    qd_tensor_clear(&x);
    qd_grouped_free(d);
    return st;
}

typedef struct storing {
    qd_calibration_set *set;
    const int *steps; /* which steps of the schedule, rising */
    const qd_run *run;
} storing;

static qd_status store(void *ctx, const qd_predictor *p, int step, int t, int64_t first, int64_t n, const float *x,
                       const float *eps, qd_err *err)
{
    storing *s = ctx;
    qd_calibration_set *set = s->set;
    int k = 0;
    while (k < set->steps && s->steps[k] != step)
        k++;
    if (k == set->steps)
        return QD_OK;
    if (!set->x.storage) {
        const qd_shape shape = QD_SHAPE(set->steps, set->samples, p->channels, p->height, p->width);
        const qd_status st = qd_tensor_init(&set->x, QD_F32, &shape, qd_run_budget(s->run), err);
        if (st)
            return qd_fail_in(err, st, "calibration set");
    }
    const int64_t one = p->channels * p->height * p->width;
    set->t[k] = t;
    memcpy(qd_f32(&set->x) + (k * set->samples + first) * one, x, (size_t)(n * one) * sizeof *x);
    return QD_OK;
}

qd_status qd_calibration_set_make(const qd_trajectories *j, int steps, const qd_run *run, qd_calibration_set *out,
                                  qd_err *err)
{
    const int all = j->options.steps;
    qd_calibration_set set = { .steps = steps < all ? steps : all,
                               .samples = j->samples,
                               .condition = j->options.condition,
                               .first_sample = j->options.first_sample };
    int *chosen = qd_calloc((size_t)set.steps, sizeof *chosen);
    set.t = qd_calloc((size_t)set.steps, sizeof *set.t);
    qd_status st = QD_E_NOMEM;
    if (!chosen || !set.t) {
        qd_fail(err, st, "no memory for %d calibration steps", set.steps);
        goto out;
    }
    /* Both ends and evenly between: rounding half up, strictly rising because set.steps <= all. */
    for (int k = 0; k < set.steps; k++)
        chosen[k] = set.steps > 1 ? (2 * k * (all - 1) + set.steps - 1) / (2 * (set.steps - 1)) : all - 1;

    storing s = { .set = &set, .steps = chosen, .run = run };
    qd_trajectories mine = *j;
    mine.look = store;
    mine.ctx = &s;
    st = qd_trajectories_run(&mine, run, err);
    if (st)
        goto out;
    *out = set;
    set = (qd_calibration_set){ 0 };
out:
    qd_calibration_set_clear(&set);
    qd_free(chosen);
    return st;
}

void qd_calibration_set_clear(qd_calibration_set *s)
{
    qd_tensor_clear(&s->x);
    qd_free(s->t);
    *s = (qd_calibration_set){ 0 };
}
