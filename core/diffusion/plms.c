/* plms.c - pseudo linear multistep (Liu et al. 2022, eq. 11 to 13, without Runge-Kutta start; diffusion_models.md 8.3).
 *
 * The first step asks the network twice, at t and at the next entry, and both answers belong to step 0. Images are not clipped:
 * the history lives in eps. */
#include <math.h>
#include <string.h>

#include "diffusion/sampler_int.h"

#define KEPT 3 /* past answers, besides the current one */

static const qd_param params[] = {
    QD_PARAM_ROW_STEPS("50"),
    QD_PARAM_ROW_SPACING("leading"),
    { .name = NULL },
};

static int calls(const qd_sample_options *o)
{
    return o->steps > 1 ? o->steps + 1 : o->steps;
}

/* The transfer function: dst = x moved from level abar to abar_next along e. dst may be x. */
static void transfer(float *dst, const float *x, const float *e, int64_t n, double abar, double abar_next)
{
    const double keep = sqrt(abar_next / abar);
    const double along = (abar_next - abar) / (abar * sqrt(1.0 - abar_next) + sqrt(abar * (1.0 - abar) * abar_next));
    for (int64_t k = 0; k < n; k++)
        dst[k] = (float)(keep * x[k] - along * e[k]);
}

/* dst = what the last `count` answers say of this step: e[0] is the newest. */
static void extrapolate(float *dst, const float *const e[KEPT + 1], int count, int64_t n)
{
    static const double weights[KEPT + 1][KEPT + 1] = { { 1.0 },
                                                        { 3.0 / 2.0, -1.0 / 2.0 },
                                                        { 23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0 },
                                                        { 55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0 } };
    const double *c = weights[count - 1];
    for (int64_t k = 0; k < n; k++) {
        double sum = 0.0;
        for (int j = 0; j < count; j++)
            sum += c[j] * e[j][k];
        dst[k] = (float)sum;
    }
}

/* The answers kept so far, for a look ahead along another one. */
typedef struct history {
    const float *past; // [KEPT + 1, n], a ring
    int step;
    float *mean; // [n]
} history;

static void along(const qd_walk *w, const float *e, float *xp)
{
    const history *h = w->state;
    const float *list[KEPT + 1] = { e };
    const int count = h->step < KEPT ? h->step + 1 : KEPT + 1;
    for (int j = 1; j < count; j++)
        list[j] = h->past + (h->step - j) % (KEPT + 1) * w->n;
    extrapolate(h->mean, list, count, w->n);
    transfer(xp, w->x, h->mean, w->n, w->abar, w->abar_next);
}

/* Step 0: eps at t is in `first`; ask again at the far end and go with the mean. mean, there: room for [n]. */
static qd_status first_step(qd_walk *w, const float *first, float *mean, float *there, float *x, double abar,
                            double abar_next, qd_err *err)
{
    const int next = qd_walk_next(w, 0);
    memcpy(mean, first, (size_t)w->n * sizeof(float));
    if (next >= 0) {
        double sigma = 0.0;
        transfer(there, x, first, w->n, abar, abar_next);
        qd_status st = qd_walk_predict(w, 0, next, qd_walk_next(w, 1), there, &sigma, err);
        if (st)
            return st;
        for (int64_t k = 0; k < w->n; k++)
            mean[k] = (float)(0.5 * ((double)first[k] + w->eps[k]));
    }
    transfer(x, x, mean, w->n, abar, abar_next);
    return QD_OK;
}

static qd_status run_plms(const qd_schedule *s, const qd_sample_options *o, const qd_predictor *p,
                          const qd_sampler_hook *hook, const qd_run *run, float *x, qd_err *err)
{
    qd_walk w = { 0 };
    float *past = NULL;
    qd_status st = qd_walk_open(&w, s, o, p, hook, run, err);
    if (st)
        goto out;
    st = qd_walk_take(&w, KEPT + 3, &past, err); /* the answers in a ring, and two for scratch */
    if (st)
        goto out;
    float *mean = past + (KEPT + 1) * w.n, *there = mean + w.n;

    for (int step = 0; step < w.steps; step++) {
        const int t = w.t[step], next = qd_walk_next(&w, step);
        const double abar = s->alpha_bar[t], abar_next = qd_walk_alpha_bar(&w, next, qd_walk_last_alpha_bar(&w));
        double sigma = 0.0;
        const history h = { .past = past, .step = step, .mean = mean };
        w.along = along;
        w.state = &h;
        w.abar = abar;
        w.abar_next = abar_next;
        st = qd_walk_predict(&w, step, t, next, x, &sigma, err);
        if (st)
            goto out;
        const float *e[KEPT + 1];
        const int count = step < KEPT ? step + 1 : KEPT + 1;
        memcpy(past + step % (KEPT + 1) * w.n, w.eps, (size_t)w.n * sizeof(float));
        for (int j = 0; j < count; j++)
            e[j] = past + (step - j) % (KEPT + 1) * w.n;
        if (step == 0) {
            st = first_step(&w, e[0], mean, there, x, abar, abar_next, err);
            if (st)
                goto out;
        } else {
            extrapolate(mean, e, count, w.n);
            transfer(x, x, mean, w.n, abar, abar_next);
        }
        st = qd_walk_stepped(&w, step, x, err);
        if (st)
            goto out;
    }
out:
    qd_free(past);
    qd_walk_close(&w);
    return st;
}

const qd_sampler qd_sampler_plms = {
    .name = "plms",
    .summary = "Fourth order by remembering three past answers; the usual choice for 50 steps.",
    .params = params,
    .calls = calls,
    .run = run_plms,
};
