/* probe.c - the re-noise probe: one step down along eps, one hop back up with known noise, and what the network says of it
 * (qncd.md 8.2, 8.3). */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "quant/qncd_int.h"

#define STEP_BITS 24 /* of a noise stream's low 56 bits, as in the samplers; the rest numbers the sample */

qd_status qd_probe_open(qd_probe *b, const qd_predictor *p, const qd_schedule *s, uint64_t seed, qd_budget *budget,
                        qd_err *err)
{
    const qd_shape shape = QD_SHAPE(p->batch, p->channels, p->height, p->width);
    size_t bytes;
    *b = (qd_probe){ .predictor = p, .schedule = s, .seed = seed, .centred = true, .budget = budget };
    qd_status st = qd_shape_count(&shape, &b->n, err);
    if (st)
        return st;
    b->per_sample = b->n / p->batch;
    if (!qd_mul_size((size_t)b->n, 3 * sizeof(float), &bytes))
        return qd_fail(err, QD_E_LIMIT, "a probe of %lld samples does not fit into memory", (long long)p->batch);
    st = qd_budget_draw(budget, bytes, "a probe", err);
    if (st)
        return st;
    b->drawn_bytes = bytes;
    b->block = qd_alloc_aligned(bytes);
    if (!b->block)
        return qd_fail(err, QD_E_NOMEM, "no memory for a probe of %zu bytes", bytes);
    b->z = b->block;
    b->x = b->z + b->n;
    b->d = b->x + b->n;
    return QD_OK;
}

void qd_probe_close(qd_probe *b)
{
    qd_budget_give(b->budget, b->drawn_bytes);
    qd_free(b->block);
    *b = (qd_probe){ 0 };
}

bool qd_probe_triggers(int step, int interval, bool paper_offset)
{
    if (!paper_offset)
        return step % interval == 0;
    return ((step - 1) % interval + interval) % interval == interval / 2;
}

double qd_schedule_level(const qd_schedule *s, int t)
{
    return t >= 0 ? s->alpha_bar[t] : s->set_alpha_to_one ? 1.0 : s->alpha_bar[0];
}

/* z of each sample from a stream of its own: with or without the probe, the sampler's noise stays what it is. */
static void draw(const qd_probe *b, int step)
{
    const int64_t channels = b->predictor->channels, space = b->per_sample / channels;
    for (int64_t k = 0; k < b->predictor->batch; k++) {
        float *z = b->z + k * b->per_sample;
        const uint64_t sample = (uint64_t)(b->first_sample + k);
        qd_rng_normal(z, (size_t)b->per_sample, b->seed, QD_STREAM_PROBE | sample << STEP_BITS | (uint64_t)step, 0);
        for (int64_t c = 0; b->centred && c < channels; c++) {
            double sum = 0;
            for (int64_t i = 0; i < space; i++)
                sum += z[c * space + i];
            for (int64_t i = 0; i < space; i++)
                z[c * space + i] = (float)(z[c * space + i] - sum / (double)space);
        }
    }
}

qd_status qd_probe_ask(qd_probe *b, const qd_sampler_step *step, const float *e, const qd_run *run, qd_err *err)
{
    const double abar = qd_schedule_level(b->schedule, step->t);
    const double a = fmin(abar / qd_schedule_level(b->schedule, step->t_prev), 1.0);
    const double keep = sqrt(a), add = sqrt(1.0 - a);
    draw(b, step->step);
    step->along(step->walk, e, b->x);
    for (int64_t k = 0; k < b->n; k++)
        b->x[k] = (float)(keep * b->x[k] + add * b->z[k]);
    qd_status st = b->predictor->predict(b->predictor->ctx, run, b->x, step->t, b->d, err);
    if (st)
        return st;
    const double root = sqrt(abar), noise_root = sqrt(1.0 - abar);
    const qd_prediction what = b->schedule->prediction;
    for (int64_t k = 0; k < b->n; k++) {
        double said = b->d[k];
        if (what == QD_PREDICT_V)
            said = root * said + noise_root * b->x[k];
        else if (what == QD_PREDICT_SAMPLE)
            said = (b->x[k] - root * said) / noise_root;
        b->d[k] = (float)(said - b->z[k]);
        if (!isfinite(b->d[k]))
            return qd_fail(err, QD_E_NUMERIC, "the probe at step %d (t = %d): the network's answer is not finite",
                           step->step, step->t);
    }
    return QD_OK;
}

static void moments(const float *d, int64_t n, double *mean, double *var)
{
    double sum = 0, squares = 0;
    for (int64_t k = 0; k < n; k++)
        sum += d[k];
    *mean = sum / (double)n;
    for (int64_t k = 0; k < n; k++)
        squares += (d[k] - *mean) * (d[k] - *mean);
    *var = squares / (double)n;
}

void qd_probe_moments(const float *d, int64_t channels, int64_t space, double *mean, double *var)
{
    moments(d, channels * space, mean, var);
    for (int64_t c = 0; c < channels; c++)
        moments(d + c * space, space, mean + 1 + c, var + 1 + c);
}
