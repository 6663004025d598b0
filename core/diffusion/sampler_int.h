/* sampler_int.h - what every sampler does: lay out the grid, ask the network, show the hook, draw noise. */
#ifndef QD_DIFFUSION_SAMPLER_INT_H
#define QD_DIFFUSION_SAMPLER_INT_H

#include "diffusion/diffusion.h"

/* One sampling from noise to image. */
typedef struct qd_walk {
    const qd_schedule *schedule;
    const qd_sample_options *o;
    const qd_predictor *p;
    const qd_sampler_hook *hook;
    const qd_run *run;
    int steps;
    int *t;             // [steps], descending
    int64_t per_sample; // elements
    int64_t n;          // elements of the whole batch
    float *eps;         // [n], the noise of the current call
    float *noise;       // [n], of the current step
    /* Set by the sampler before it asks: where it would go from x along e, without new noise. */
    void (*along)(const struct qd_walk *w, const float *e, float *xp);
    const void *state;      /* the sampler's own, for along */
    const float *x;         /* asked about */
    double abar, abar_next; /* levels of noise of this step's ends */
    double clip;            // x0 is held in [-clip, clip]; INFINITY = free
    float *share;           // [batch], of sigma, as the hook has it
    size_t drawn_bytes;
} qd_walk;

/* Checks options and predictor, lays out the grid, allocates. Close it in any case (zero-initialise it first). */
qd_status qd_walk_open(qd_walk *w, const qd_schedule *s, const qd_sample_options *o, const qd_predictor *p,
                       const qd_sampler_hook *hook, const qd_run *run, qd_err *err);
void qd_walk_close(qd_walk *w);
/* Room for `count` more arrays of [n] in one block, drawn from the run's budget; free with qd_free before closing. */
qd_status qd_walk_take(qd_walk *w, int count, float **out, qd_err *err);

/* The grid entry after step i, -1 past the end. */
int qd_walk_next(const qd_walk *w, int step);
/* abar_t; past the end (t < 0) it is `last`. */
double qd_walk_alpha_bar(const qd_walk *w, int t, double last);
/* abar past the end as the schedule says. */
double qd_walk_last_alpha_bar(const qd_walk *w);

/* w->eps = noise in x at time t, corrected by the hook. *sigma goes to the hook and may come back changed. */
qd_status qd_walk_predict(qd_walk *w, int step, int t, int t_prev, const float *x, double *sigma, qd_err *err);
/* The deterministic step of DDIM (eta 0), for samplers of first order. */
void qd_walk_along_ddim(const qd_walk *w, const float *e, float *xp);
/* w->noise = what `step` adds to each sample. */
void qd_walk_draw(qd_walk *w, int step);
/* Tells hook and progress; fails when cancelled. */
qd_status qd_walk_stepped(qd_walk *w, int step, const float *x, qd_err *err);

/* x0 from x and eps (8), held in the clip range. */
static inline double qd_walk_x0(const qd_walk *w, double alpha_bar_root, double noise_root, double x, double eps)
{
    const double x0 = (x - noise_root * eps) / alpha_bar_root;
    return x0 > w->clip ? w->clip : x0 < -w->clip ? -w->clip : x0;
}

/* Rows that samplers share. */
extern const char *const qd_spacing_names[]; /* NULL-terminated, in the order of qd_spacing */
extern const char *const qd_clip_names[];
#define QD_PARAM_ROW_STEPS(fallback_)                                                                                  \
    {                                                                                                                  \
        .name = "steps", .type = QD_PARAM_INT, .summary = "Sampling steps (at most the training steps of the model).", \
        .fallback = (fallback_), .min = 1, .max = 10000                                                                \
    }
#define QD_PARAM_ROW_SPACING(fallback_)                                                                                \
    {                                                                                                                  \
        .name = "spacing", .type = QD_PARAM_CHOICE, .summary = "How the steps spread over the training time steps.",   \
        .fallback = (fallback_), .choices = qd_spacing_names                                                           \
    }
#define QD_PARAM_ROW_CLIP                                                                                              \
    {                                                                                                                  \
        .name = "clip", .type = QD_PARAM_CHOICE,                                                                       \
        .summary =                                                                                                     \
            "Hold the predicted image in the range of pixels at each step: on, off, or as the model's schedule says.", \
        .fallback = "schedule", .choices = qd_clip_names                                                               \
    }

extern const qd_sampler qd_sampler_ddpm, qd_sampler_ddim, qd_sampler_plms, qd_sampler_dpmpp2m;

#endif
