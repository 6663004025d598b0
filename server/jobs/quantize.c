/* quantize.c - the job that makes a model smaller: a method of the core for its role, and what that method is given and judged by. */
#include <pthread.h>
#include <string.h>

#include "jobs/jobs_int.h"

enum { MAX_METHODS = 32 };

static const char *const preset_names[] = { "default", "fast", "thorough", NULL };

static const qd_param common[] = {
    { .name = "preset",
      .type = QD_PARAM_CHOICE,
      .summary = "How much effort goes into calibration and measurement; what is given explicitly wins.",
      .fallback = "default",
      .choices = preset_names },
    { .name = "seed",
      .type = QD_PARAM_INT,
      .summary = "Seed of everything random in the job: same seed, same bytes.",
      .fallback = "0",
      .min = 0,
      .max = 9007199254740991.0 },
    { .name = NULL },
};

/* The default is a compromise for a few minutes on a small machine; qncd.md 5 and 13 say what more effort buys. */
static const sv_preset presets[] = {
    { "fast", "calibration_samples", "16", .role = "denoiser" },
    { "fast", "calibration_steps", "5", .role = "denoiser" },
    { "fast", "measure_samples", "2", .role = "denoiser" },
    { "thorough", "calibration_samples", "64", .role = "denoiser" },
    { "thorough", "calibration_steps", "16", .role = "denoiser" },
    { "thorough", "measure_samples", "16", .role = "denoiser" },
    { "fast", "calibration_samples", "64", .role = "classifier" },
    { "thorough", "calibration_samples", "4096", .role = "classifier" },
    { "thorough", "sensitivity_samples", "256", .role = "classifier" },
    { .preset = NULL },
};

static const char *const roles[] = { "denoiser", "classifier", NULL };

static sv_method rows[MAX_METHODS]; /* the core's table, gathered once */
static int n_rows;

static void gather(void)
{
    for (int k = 0; qd_methods[k] && n_rows < MAX_METHODS; k++) {
        const qd_method *m = qd_methods[k];
        const bool denoiser = m->role == QD_ROLE_DENOISER;
        rows[n_rows++] = (sv_method){
            .name = m->name,
            .summary = m->summary,
            .params = denoiser ? sv_rows_join((const qd_param *const[]){ m->params, sv_denoiser_params,
                                                                         sv_condition_rows, NULL })
                               : sv_rows_join((const qd_param *const[]){ m->params, sv_classify_rows, NULL }),
            .check = denoiser ? sv_condition_check : NULL,
            .role = denoiser ? "denoiser" : "classifier",
            .needs_data = (m->needs & QD_NEEDS_DATA) != 0,
            .drop_metrics = denoiser ? sv_denoiser_drop_metrics : sv_classifier_drop_metrics,
            .run = denoiser ? sv_quantize_denoiser : sv_quantize_classifier,
        };
    }
}

static const sv_method *methods(int *n)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, gather);
    *n = n_rows;
    return rows;
}

const sv_kind sv_kind_quantize = {
    .name = "quantize",
    .summary = "Makes a model smaller: integer weights and activations, one bundle that runs on its own.",
    .methods = methods,
    .default_method = "mse",
    .params = common,
    .roles = roles,
    .takes_float = true,
    .presets = presets,
};
