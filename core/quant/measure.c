/* measure.c - what quantization costs by time step: eps against eps on the float model's own x_t. */
#include <math.h>

#include "base/mem.h"
#include "metrics/metrics.h"
#include "quant/qncd_int.h"

typedef struct measure {
    const qd_trajectories *j;
    const qd_graph *quantized;
    const qd_correction *groups;
    const qd_run *run;
    int steps, every;
    qd_grouped *d; /* of the quantized graph; made once the batch is known */
    qd_tensor eps;
    qd_sqnr *by_step; // [steps]
    int *t;           // [steps]
} measure;

static bool is_measured(const measure *m, int step)
{
    return step % m->every == 0 || step == m->steps - 1;
}

static qd_status compare(void *ctx, const qd_predictor *p, int step, int t, int64_t first, int64_t n, const float *x,
                         const float *eps, qd_err *err)
{
    measure *m = ctx;
    qd_status st = QD_OK;
    if (!is_measured(m, step))
        return QD_OK;
    if (!m->d) {
        const qd_shape shape = QD_SHAPE(p->batch, p->channels, p->height, p->width);
        st = qd_tensor_init(&m->eps, QD_F32, &shape, qd_run_budget(m->run), err);
        if (!st)
            st = qd_trajectories_denoiser(m->j, m->quantized, m->groups, p->batch, m->run, &m->d, err);
        if (st)
            return st;
    }
    const qd_predictor q = qd_grouped_predictor(m->d);
    if (q.channels != p->channels || q.height != p->height || q.width != p->width)
        return qd_fail(err, QD_E_INVALID,
                       "the quantized model makes %lldx%lldx%lld images, the float model %lldx%lldx%lld",
                       (long long)q.channels, (long long)q.height, (long long)q.width, (long long)p->channels,
                       (long long)p->height, (long long)p->width);
    qd_predictor_seat(&q, m->j->options.first_sample + first);
    st = q.predict(q.ctx, m->run, x, t, qd_f32(&m->eps), err);
    if (st)
        return st;
    qd_sqnr_add(&m->by_step[step], eps, qd_f32(&m->eps), n * p->channels * p->height * p->width);
    m->t[step] = t;
    return QD_OK;
}

static qd_status fill_report(const measure *m, qd_quant_report *report, qd_err *err)
{
    int n = 0;
    qd_sqnr all = { 0 };
    for (int step = 0; step < m->steps; step++)
        n += is_measured(m, step);
    int *t = qd_calloc((size_t)n, sizeof *t);
    double *db = qd_calloc((size_t)n, sizeof *db);
    if (!t || !db) {
        qd_free(t);
        qd_free(db);
        return qd_fail(err, QD_E_NOMEM, "no memory for %d time steps", n);
    }
    n = 0;
    for (int step = 0; step < m->steps; step++) {
        if (!is_measured(m, step))
            continue;
        t[n] = m->t[step];
        db[n] = qd_sqnr_value_db(&m->by_step[step]);
        all.signal += m->by_step[step].signal;
        all.noise += m->by_step[step].noise;
        qd_run_metric(m->run, "eps_sqnr_db", t[n], db[n]);
        n++;
    }
    qd_free(report->eps_t);
    qd_free(report->eps_sqnr_db);
    report->n_eps = n;
    report->eps_t = t;
    report->eps_sqnr_db = db;
    report->eps_sqnr_mean_db = qd_sqnr_value_db(&all);
    return QD_OK;
}

qd_status qd_measure_eps(const qd_trajectories *j, const qd_graph *quantized, const qd_correction *groups, int every,
                         const qd_run *run, qd_quant_report *report, qd_err *err)
{
    measure m = {
        .j = j, .quantized = quantized, .groups = groups, .run = run, .steps = j->options.steps, .every = every
    };
    qd_status st;
    m.by_step = qd_calloc((size_t)m.steps, sizeof *m.by_step);
    m.t = qd_calloc((size_t)m.steps, sizeof *m.t);
    if (!m.by_step || !m.t) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for %d steps", m.steps);
        goto out;
    }
    qd_trajectories mine = *j;
    mine.look = compare;
    mine.ctx = &m;
    st = qd_trajectories_run(&mine, run, err);
    if (!st)
        st = fill_report(&m, report, err);
out:
    qd_grouped_free(m.d);
    qd_tensor_clear(&m.eps);
    qd_free(m.t);
    qd_free(m.by_step);
    return st;
}

qd_status qd_quant_measure_eps(const qd_graph *reference, const qd_graph *quantized, const qd_schedule *schedule,
                               const qd_sample_options *o, int64_t samples, int every, const qd_run *run,
                               qd_quant_report *report, qd_err *err)
{
    if (samples < 1 || every < 1 || o->steps < 1 || o->steps > schedule->train_steps)
        return qd_fail(err, QD_E_INVALID, "cannot measure %lld samples at every %d-th of %d steps", (long long)samples,
                       every, o->steps);
    const qd_trajectories j = { .graph = reference,
                                .schedule = schedule,
                                .sampler = qd_sampler_find("ddim"),
                                .options = *o,
                                .samples = samples,
                                .phase = "measure" };
    return qd_measure_eps(&j, quantized, NULL, every, run, report, err);
}
