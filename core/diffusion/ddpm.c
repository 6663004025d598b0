/* ddpm.c - ancestral sampling (Ho et al. 2020, algorithm 2; diffusion_models.md 8.1), on any grid of time steps. */
#include <math.h>

#include "diffusion/sampler_int.h"

static const qd_param params[] = {
    QD_PARAM_ROW_STEPS("1000"),
    QD_PARAM_ROW_SPACING("leading"),
    QD_PARAM_ROW_CLIP,
    { .name = NULL },
};

static int calls(const qd_sample_options *o)
{
    return o->steps;
}

static qd_status run_ddpm(const qd_schedule *s, const qd_sample_options *o, const qd_predictor *p,
                          const qd_sampler_hook *hook, const qd_run *run, float *x, qd_err *err)
{
    qd_walk w = { 0 };
    qd_status st = qd_walk_open(&w, s, o, p, hook, run, err);
    for (int step = 0; !st && step < w.steps; step++) {
        const int t = w.t[step], next = qd_walk_next(&w, step);
        const double abar = qd_walk_alpha_bar(&w, t, 1.0), abar_next = qd_walk_alpha_bar(&w, next, 1.0);
        const double a = abar / abar_next, b = 1.0 - a;
        const double var = s->variance == QD_VAR_FIXED_LARGE ? b : fmax((1.0 - abar_next) / (1.0 - abar) * b, 1e-20);
        double sigma = t > 0 ? sqrt(var) : 0.0;
        w.along = qd_walk_along_ddim;
        w.abar = abar;
        w.abar_next = abar_next;
        st = qd_walk_predict(&w, step, t, next, x, &sigma, err);
        if (st)
            break;

        const double root = sqrt(abar), noise_root = sqrt(1.0 - abar);
        const double from_x0 = sqrt(abar_next) * b / (1.0 - abar), from_x = sqrt(a) * (1.0 - abar_next) / (1.0 - abar);
        for (int64_t k = 0; k < w.n; k++)
            x[k] = (float)(from_x0 * qd_walk_x0(&w, root, noise_root, x[k], w.eps[k]) + from_x * x[k]);
        if (t > 0 && sigma > 0.0) {
            qd_walk_draw(&w, step);
            for (int64_t k = 0; k < w.n; k++)
                x[k] = (float)(x[k] + sigma * w.noise[k]);
        }
        st = qd_walk_stepped(&w, step, x, err);
    }
    qd_walk_close(&w);
    return st;
}

const qd_sampler qd_sampler_ddpm = {
    .name = "ddpm",
    .summary = "Ancestral sampling with the model's own variance; best with many steps.",
    .params = params,
    .calls = calls,
    .run = run_ddpm,
};
