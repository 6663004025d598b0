/* evaluate_int.h - what the methods of evaluate share: drawing by a denoiser, looking through a feature network, tables of figures. */
#ifndef SV_JOBS_EVALUATE_INT_H
#define SV_JOBS_EVALUATE_INT_H

#include "jobs/jobs_int.h"

/* --- evaluate.c --- */
/* report.json: the figures as they are. */
qd_status sv_evaluate_report(sv_task *t, const json_t *figures, qd_err *err);
/* The model that params.NAME says; QD_E_INVALID with words that begin with params.NAME when there is none. */
qd_status sv_evaluate_model(sv_store *store, const qd_params *p, const char *name, sv_model_row *out, qd_err *err);

/* --- evaluate_fid.c, evaluate_fidelity.c --- */
extern const qd_param sv_fid_rows[], sv_fidelity_rows[];
qd_status sv_fid_check(sv_store *store, const char *model_id, const qd_params *p, char pointer[128], qd_err *err);
qd_status sv_fid_run(sv_task *t, json_t **result, qd_err *err);
qd_status sv_fidelity_check(sv_store *store, const char *model_id, const qd_params *p, char pointer[128], qd_err *err);
qd_status sv_fidelity_run(sv_task *t, json_t **result, qd_err *err);

/* --- evaluate_draw.c: a denoiser, float or quantized, that draws batches, corrected as its bundle says --- */
/* sampler, steps, spacing, eta, clip, correction, seed, batch; what the denoiser is told (condition.c). */
const qd_param *sv_draw_rows(void);

typedef struct sv_drawer {
    sv_task *t;
    sv_denoise model;
    const qd_condition *told; /* its own, or that of another */
    const qd_sampler *sampler;
    qd_sample_options options;
    qd_corrected *corrected; /* compiled for `ready` samples */
    int64_t ready;
    qd_run quiet;   /* the job's without the sampler's own progress */
    double seconds; /* in the sampler */
    int64_t drawn;
} sv_drawer;
/* told_by: the drawer whose condition and first stage go for this one too; NULL = its own, by the job's params. */
qd_status sv_drawer_open(sv_drawer *d, sv_task *t, const char *path, const sv_drawer *told_by, qd_err *err);
void sv_drawer_clear(sv_drawer *d);
/* Ready for batches of n; nothing is done when it is. */
qd_status sv_drawer_batch(sv_drawer *d, int64_t n, qd_err *err);
/* Samples first..first+n-1 from their own noise. x [n, C, H, W]; hook may be NULL. */
qd_status sv_drawer_run(sv_drawer *d, int64_t first, int64_t n, const qd_sampler_hook *hook, float *x, qd_err *err);
/* A sample as a picture: its floats, decoded where it is a latent (lent until the next call), and in 8 bits. */
typedef struct sv_drawn {
    const float *floats; // [channels, height, width]
    int channels, height, width;
    qd_image image;
} sv_drawn;
qd_status sv_drawer_picture(sv_drawer *d, const float *sample, sv_drawn *out, qd_err *err);
/* Pushes a picture, or several side by side, large enough to look at. frame_kind 1 sample, 2 pair. */
qd_status sv_drawer_show(sv_drawer *d, uint32_t frame_kind, const qd_image *images, int n, int64_t index,
                         double psnr_db, qd_err *err);
json_t *sv_drawer_json(const sv_drawer *d);

/* --- evaluate_features.c: the feature network, and what a reference set looks like to it --- */
/* network, features, spatial, spatial_channels, mean, std, pixels, resize. */
extern const qd_param sv_feature_rows[];

typedef struct sv_lens {
    qd_model *model;
    qd_graph *graph;
    qd_features *features;
    char hash[QD_SHA256_HEX]; /* of the network and all that decides what it says of 8-bit pictures */
} sv_lens;
qd_status sv_lens_open(sv_lens *l, sv_task *t, const sv_model_row *network, int64_t batch, qd_err *err);
void sv_lens_clear(sv_lens *l);
json_t *sv_lens_json(const sv_lens *l, const sv_task *t, const sv_model_row *network);

/* Statistics of the job's data set: uploaded as such, kept from an earlier job, or computed now and kept. */
typedef struct sv_reference {
    qd_feature_stats *stats;
    const char *from; /* "uploaded", "kept", "computed" */
} sv_reference;
qd_status sv_reference_open(sv_reference *r, sv_task *t, sv_lens *l, qd_err *err);
void sv_reference_clear(sv_reference *r);
/* Statistics into the attempt's folder and out as an artifact. */
qd_status sv_statistics_publish(sv_task *t, const sv_lens *l, const qd_feature_stats *s, const char *name, qd_err *err);

#endif
