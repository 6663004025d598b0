/* dpm_solver.c - DPM-Solver++(2M), midpoint form (Lu et al. 2022, algorithm 2; diffusion_models.md 8.4).
 *
 * Its linspace and leading grids leave out the entry nearest to the image, as the solver's own step goes there. Images are not
 * clipped. */
#include <math.h>
#include <string.h>

#include "diffusion/sampler_int.h"

#define FEW_STEPS 15 /* below this the last step is of first order */

static const qd_param params[] = {
    QD_PARAM_ROW_STEPS("20"),
    QD_PARAM_ROW_SPACING("linspace"),
    { .name = NULL },
};

static int calls(const qd_sample_options *o)
{
    return o->steps;
}

/* A level of noise: alpha = sqrt(abar), sigma = sqrt(1 - abar), lambda = ln(alpha / sigma), infinite without noise. */
typedef struct level {
    double alpha, sigma, lambda;
} level;

static level level_of(double abar)
{
    return (level){ .alpha = sqrt(abar), .sigma = sqrt(1.0 - abar), .lambda = 0.5 * (log(abar) - log1p(-abar)) };
}

static qd_status lay_grid(qd_walk *w, qd_err *err)
{
    const int T = w->schedule->train_steps, S = w->steps;
    if (w->o->spacing != QD_SPACING_LINSPACE && w->o->spacing != QD_SPACING_LEADING)
        return QD_OK; /* the walk's grid is the solver's */
    if (S + 1 > T)
        return qd_fail(err, QD_E_INVALID, "steps must be 1..%d for dpmpp2m on a %s grid, got %d", T - 1,
                       qd_spacing_names[w->o->spacing], S);
    const int stride = T / (S + 1);
    for (int k = 0; k < S; k++) {
        if (w->o->spacing == QD_SPACING_LEADING)
            w->t[k] = (S - k) * stride + w->schedule->steps_offset;
        else
            w->t[k] = (int)nearbyint((double)(T - 1) * (S - k) / S);
    }
    if (w->t[0] >= T)
        return qd_fail(err, QD_E_INVALID,
                       "%d steps with steps_offset %d would start at time step %d, past the last, %d", S,
                       w->schedule->steps_offset, w->t[0], T - 1);
    return QD_OK;
}

/* x moves from level a to b. x0 is the image seen now, x0_past the one seen at level `past` (NULL: first order). */
static void solver_step(float *x, const float *x0, const float *x0_past, int64_t n, level a, level b, level past)
{
    const double h = b.lambda - a.lambda;
    const double keep = b.sigma / a.sigma, towards = -b.alpha * expm1(-h);
    const double bend = x0_past ? 0.5 * h / (a.lambda - past.lambda) : 0.0;
    for (int64_t k = 0; k < n; k++) {
        const double seen = x0_past ? x0[k] + bend * ((double)x0[k] - x0_past[k]) : x0[k];
        x[k] = (float)(keep * x[k] + towards * seen);
    }
}

/* What the solver remembers, for a look ahead along another answer. */
typedef struct memory {
    float *x0;            // [n], scratch
    const float *x0_past; // [n]; NULL: this step is of first order
    level a, b, past;
} memory;

static void along(const qd_walk *w, const float *e, float *xp)
{
    const memory *m = w->state;
    memcpy(xp, w->x, (size_t)w->n * sizeof(float));
    if (!(w->abar_next > w->abar))
        return;
    for (int64_t k = 0; k < w->n; k++)
        m->x0[k] = (float)((w->x[k] - m->a.sigma * e[k]) / m->a.alpha);
    solver_step(xp, m->x0, m->x0_past, w->n, m->a, m->b, m->past);
}

static qd_status run_dpm(const qd_schedule *s, const qd_sample_options *o, const qd_predictor *p,
                         const qd_sampler_hook *hook, const qd_run *run, float *x, qd_err *err)
{
    qd_walk w = { 0 };
    float *images = NULL;
    qd_status st = qd_walk_open(&w, s, o, p, hook, run, err);
    if (st)
        goto out;
    st = lay_grid(&w, err);
    if (st)
        goto out;
    st = qd_walk_take(&w, 2, &images, err);
    if (st)
        goto out;
    float *x0 = images, *x0_past = images + w.n;
    level past = { 0 };
    bool remembers = false;

    for (int step = 0; step < w.steps; step++) {
        const int t = w.t[step], next = qd_walk_next(&w, step);
        const double abar = s->alpha_bar[t], abar_next = qd_walk_alpha_bar(&w, next, qd_walk_last_alpha_bar(&w));
        double sigma = 0.0;
        const level a = level_of(abar), b = level_of(abar_next);
        const bool first_order = !remembers || (next < 0 && (abar_next == 1.0 || o->steps < FEW_STEPS));
        const memory m = { .x0 = x0, .x0_past = first_order ? NULL : x0_past, .a = a, .b = b, .past = past };
        w.along = along;
        w.state = &m;
        w.abar = abar;
        w.abar_next = abar_next;
        st = qd_walk_predict(&w, step, t, next, x, &sigma, err);
        if (st)
            goto out;
        if (abar_next > abar) { /* quad grids stand still near 0 */
            for (int64_t k = 0; k < w.n; k++)
                x0[k] = (float)((x[k] - a.sigma * w.eps[k]) / a.alpha);
            solver_step(x, x0, first_order ? NULL : x0_past, w.n, a, b, past);
            float *const swap = x0;
            x0 = x0_past;
            x0_past = swap;
            past = a;
            remembers = true;
        }
        st = qd_walk_stepped(&w, step, x, err);
        if (st)
            goto out;
    }
out:
    qd_free(images);
    qd_walk_close(&w);
    return st;
}

const qd_sampler qd_sampler_dpmpp2m = {
    .name = "dpmpp2m",
    .summary = "DPM-Solver++ of second order; good from 10 to 20 steps on.",
    .params = params,
    .calls = calls,
    .run = run_dpm,
};
