/* fidelity_int.h - what is summed up while float and quantized denoiser draw side by side, for the table of it. */
#ifndef SV_JOBS_FIDELITY_INT_H
#define SV_JOBS_FIDELITY_INT_H

#include "jobs/evaluate_int.h"

/* Over all samples, of one step. */
typedef struct sv_step_sums {
    int t;
    int64_t n;                 /* values */
    qd_sqnr eps, x;            /* eps on the float model's x_t; x_t itself */
    double xy, xx, yy;         /* of x_t, for the cosine */
    double sum[2], squares[2]; /* of x_t: float, quantized */
} sv_step_sums;

typedef struct sv_pair_figures {
    double psnr_db, ssim, mse, cosine, feature_distance, feature_cosine; /* the features': NAN without a network */
} sv_pair_figures;

/* Lent, all of it. */
typedef struct sv_fidelity {
    sv_task *t;
    const sv_drawer *side; // [2]: float, quantized
    const sv_lens *lens;   /* without features: no network was named */
    const sv_model_row *network;
    int64_t pairs;
    const sv_step_sums *steps;   // [steps]
    const sv_pair_figures *pair; // [pairs]
    const int64_t *worst;        // [n_worst]
    int n_worst;
    double compared_s; /* of the float model's time: asking the quantized one */
} sv_fidelity;

/* The job's result; the curves of its steps; report.json with the tables of steps and pairs. */
qd_status sv_fidelity_figures(const sv_fidelity *f, json_t **out, qd_err *err);
qd_status sv_fidelity_report(const sv_fidelity *f, json_t *figures, qd_err *err);

#endif
