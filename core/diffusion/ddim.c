/* ddim.c - denoising diffusion implicit models (Song et al. 2021, eq. 12; diffusion_models.md 8.2).
 *
 * Each step goes to the next entry of the grid. diffusers goes to t - T/steps whatever the spacing, which is the same place on a
 * leading grid, and beside the grid on a linspace or quad one. */
#include <math.h>

#include "diffusion/sampler_int.h"

static const qd_param params[] = {
    QD_PARAM_ROW_STEPS("50"),
    QD_PARAM_ROW_SPACING("leading"),
    { .name = "eta",
      .type = QD_PARAM_NUMBER,
      .summary = "Fresh noise at each step: 0 adds none (the image follows from the first noise), 1 as much as ddpm.",
      .fallback = "0",
      .min = 0,
      .max = 1 },
    QD_PARAM_ROW_CLIP,
    { .name = NULL },
};

static int calls(const qd_sample_options *o)
{
    return o->steps;
}

static qd_status run_ddim(const qd_schedule *s, const qd_sample_options *o, const qd_predictor *p,
                          const qd_sampler_hook *hook, const qd_run *run, float *x, qd_err *err)
{
    qd_walk w = { 0 };
    qd_status st = qd_walk_open(&w, s, o, p, hook, run, err);
    for (int step = 0; !st && step < w.steps; step++) {
        const int t = w.t[step], next = qd_walk_next(&w, step);
        const double abar = s->alpha_bar[t], abar_next = qd_walk_alpha_bar(&w, next, qd_walk_last_alpha_bar(&w));
        /* The last step may go nowhere (abar_0 to abar_0), never backwards into more noise than there is. */
        const double var = o->eta * o->eta * (1.0 - abar_next) / (1.0 - abar) * fmax(1.0 - abar / abar_next, 0.0);
        double sigma = sqrt(var);
        w.along = qd_walk_along_ddim;
        w.abar = abar;
        w.abar_next = abar_next;
        st = qd_walk_predict(&w, step, t, next, x, &sigma, err);
        if (st)
            break;

        /* The direction keeps the planned variance: a correction that lowers sigma says that eps brings the rest along. */
        const double root = sqrt(abar), noise_root = sqrt(1.0 - abar);
        const double from_x0 = sqrt(abar_next), from_eps = sqrt(fmax(1.0 - abar_next - var, 0.0));
        for (int64_t k = 0; k < w.n; k++)
            x[k] = (float)(from_x0 * qd_walk_x0(&w, root, noise_root, x[k], w.eps[k]) + from_eps * w.eps[k]);
        if (o->eta > 0.0 && sigma > 0.0) {
            qd_walk_draw(&w, step);
            for (int64_t k = 0; k < w.n; k++)
                x[k] = (float)(x[k] + sigma * w.noise[k]);
        }
        st = qd_walk_stepped(&w, step, x, err);
    }
    qd_walk_close(&w);
    return st;
}

const qd_sampler qd_sampler_ddim = {
    .name = "ddim",
    .summary = "Deterministic (eta 0) or partly stochastic steps; good from 20 steps on.",
    .params = params,
    .calls = calls,
    .run = run_ddim,
};
