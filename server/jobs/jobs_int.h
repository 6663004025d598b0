/* jobs_int.h - what the files of this room share: the reporter, the stop flag with its reason, small JSON parts. */
#ifndef SV_JOBS_JOBS_INT_H
#define SV_JOBS_JOBS_INT_H

#include "base/fs.h"
#include "data/data.h"
#include "diffusion/diffusion.h"
#include "jobs/jobs.h"
#include "metrics/metrics.h"
#include "model/model.h"
#include "quant/quant.h"

/* --- rows (validate.c) --- */

/* One array out of several: made once for each combination, kept as long as the process lives, because qd_params borrows it.
 * NULL when out of memory. */
const qd_param *sv_rows_join(const qd_param *const *row_sets);

/* --- small JSON parts (job_json.c) --- */
json_t *sv_json_number(double v);       /* null when it is not finite */
char *sv_json_text(const json_t *o);    /* canonical: sorted keys, no blanks; qd_free */
json_t *sv_json_read(const char *text); /* an object, or null for "" and anything that is not JSON */

/* --- estimate.c --- */
/* Median and ninth decile of the running time, from `jobs` earlier jobs of its kind and method, stretched to its own work; false
 * when nothing like it has ever finished. */
bool sv_estimate_seconds(sv_store *store, const sv_job_row *j, double *p50, double *p90, int *jobs); // seconds

/* --- weigh.c --- */
/* Adds to a model's summary what estimates need: "weights" by groups of layers, and for these input shapes "activation_bytes", which
 * are alive at the widest point, and "layer_bytes", which all layers make together. */
qd_status sv_weigh(const qd_graph *g, const qd_shape *inputs, int n_inputs, json_t *o, qd_err *err);

/* --- why a running job must stop --- */
typedef enum sv_stop_why {
    SV_STOP_NONE,
    SV_STOP_CANCEL,   /* somebody asked */
    SV_STOP_SHUTDOWN, /* the daemon goes down: back to the queue */
    SV_STOP_TIME,     /* time_limit_s */
    SV_STOP_LOST,     /* the lease is somebody else's: leave quietly */
} sv_stop_why;

typedef struct sv_stop {
    atomic_bool flag; /* what the work looks at */
    atomic_int why;   /* sv_stop_why; the first reason stays */
} sv_stop;
void sv_stop_init(sv_stop *s);
void sv_stop_raise(sv_stop *s, sv_stop_why why);

/* --- reporter.c: everything an attempt says, stored first, then published --- */
typedef struct sv_reporter sv_reporter;
qd_status sv_reporter_new(sv_store *store, sv_bus *bus, const sv_job_row *job, sv_stop *stop, sv_reporter **out,
                          qd_err *err);
void sv_reporter_free(sv_reporter *r);
void sv_reporter_attach(sv_reporter *r, qd_run *run); /* sets ctx and the callbacks */
/* Stores and publishes one event; takes the reference to data. Any thread. */
void sv_reporter_event(sv_reporter *r, const char *type, json_t *data);
/* Called by the timer thread: repeats the last progress when nothing was said for a second, so that listeners see life. */
void sv_reporter_tick(sv_reporter *r, int64_t now_ms);
/* Sends a progress call that the throttle still holds back. */
void sv_reporter_flush(sv_reporter *r);
qd_status sv_reporter_sample(sv_reporter *r, uint32_t frame_kind, sv_sample_row *row, const void *png, size_t size,
                             qd_err *err);
qd_status sv_reporter_artifact(sv_reporter *r, const sv_artifact_row *row, qd_err *err);

/* Publishes what the store itself added to the log of this job (states). */
void sv_reporter_catch_up(sv_reporter *r);

/* --- task.c --- */
/* What a failed run is called in the error object, instead of the name of its status. Takes the reference; figures may be NULL. */
void sv_task_error(sv_task *t, const char *code, json_t *figures);
/* A line for the job's own log, which its owner reads. */
void sv_task_log(sv_task *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Removes files of this job that no row names: an earlier attempt died between file and row, or its file was replaced. */
void sv_task_sweep(const sv_task *t);
char *sv_data_path(const sv_settings *s, const char *a, const char *b); /* data_dir/a/b, b may be NULL; qd_free */

/* --- attempt.c: one claimed job, from its lease to its end --- */
typedef struct sv_attempt {
    const sv_settings *settings;
    sv_store *store;
    const sv_job_row *job;
    sv_stop *stop;
    sv_reporter *reporter;
} sv_attempt;
void sv_attempt_run(const sv_attempt *a);

/* --- denoise.c: what quantize and sample have in common --- */
typedef struct sv_denoise {
    qd_model *model;
    qd_graph *graph;
    qd_schedule *schedule;
    int64_t channels, height, width; // of samples: pictures, or latents
    qd_condition condition;          /* what the denoiser is told */
    qd_graph *decoder_graph;         /* latent to picture; NULL: samples are pictures */
    qd_decoder *decoder;             /* its plan, made with the first picture */
    float *decoded;                  // one picture of it
    bool once;                       /* one sampler is all that will be made of the graph */
    double decode_s;                 /* spent decoding, */
    int decodes;                     /* so often */
    qd_correction *correction;       /* what a quantized denoiser carries; NULL = nothing */
    qd_correction_mode correcting;   /* what is made of it: at first what it says itself */
} sv_denoise;
qd_status sv_denoise_open(const char *path, const qd_run *run, sv_denoise *out, qd_err *err);
void sv_denoise_clear(sv_denoise *d);
/* Nothing but one sampler (and the decoder) will be made any more: gives the model's weights back, and lets the sampler take the graph
 * apart. */
void sv_denoise_let_go(sv_denoise *d);
/* Ready to sample as the model corrects itself; told what `condition` says. Lends from d. */
qd_status sv_denoise_sampler(const sv_denoise *d, const qd_condition *condition, const qd_sampler *sampler,
                             int64_t batch, const qd_run *run, qd_corrected **out, qd_err *err);
#define SV_META_CORRECTION "correction"       /* in a bundle's metadata */
int64_t sv_denoise_size(const sv_denoise *d); /* floats of one sample */
/* A sample [channels][h][w], decoded where it is a latent, about -1..1 to 8 bit: grey, or the first three channels as RGB. */
qd_status sv_picture(sv_denoise *d, const qd_run *run, const float *chw, qd_image *out, qd_err *err);
/* How often a picture is repeated to be readable: about 112 pixels high, never less than once. */
int sv_picture_zoom(int height);
/* All pictures in one PNG file, about square; with `pairs` two of them always stay side by side. */
qd_status sv_pictures_save(const qd_image *images, int n, bool pairs, const char *path, qd_err *err);

/* --- condition.c: what denoisers are told, and who decodes their latents --- */
#define SV_ROLE_CONTEXT "context"       /* of data sets */
#define SV_ROLE_STATISTICS "statistics" /* the same: mean and covariance of features */
#define SV_DECODER_NONE "none"          /* params.decoder */
#define SV_META_LATENT "first_stage"    /* in a bundle's metadata, when its samples are latents */
extern const qd_param sv_condition_rows[];
/* At submission: what params name exists and fits what the model's summary says. */
qd_status sv_condition_check(sv_store *store, const char *model_id, const qd_params *p, char pointer[128], qd_err *err);
/* Fills condition and decoder_graph of an opened denoiser by the job's params. */
qd_status sv_condition_open(sv_task *t, sv_denoise *d, qd_err *err);
/* The path of the model a bundle was made from; *out (qd_free) stays NULL when it is not here, or the bundle does not say. */
qd_status sv_model_source(sv_task *t, const qd_model *m, char **out, qd_err *err);
/* Is it a file of contexts? And what it holds, for a data set's summary. */
bool sv_context_sniff(const char *path);
qd_status sv_context_inspect(const char *path, qd_budget *budget, json_t **out, qd_err *err);

double sv_now_s(void);                   /* monotonic seconds */
double sv_median(double *values, int n); /* sorts; NAN of nothing; the lower one of two in the middle */

/* --- dataset.c --- */
/* A file or folder as a row names it: any format of the core, or tensors "images" and "labels" in a safetensors file. */
qd_status sv_dataset_open(const char *path, const sv_settings *s, qd_budget *budget, qd_dataset **out, qd_err *err);

/* --- classify.c: what quantize and evaluate of classifiers have in common --- */
extern const qd_param sv_classify_rows[]; /* limit, batch */

typedef struct sv_classify {
    qd_model *model;
    qd_graph *graph;
    qd_classifier net;
    float *logits;  // [count, classes], once it has answered
    double seconds; /* in the network, for all pictures */
} sv_classify;
qd_status sv_classify_open(const char *path, const qd_run *run, sv_classify *c, qd_err *err);
void sv_classify_clear(sv_classify *c);
/* How many pictures params.limit leaves. */
int64_t sv_classify_count(const qd_params *p, const qd_dataset *d);
/* The logits of the first pictures, by params mean, std, limit and batch. */
qd_status sv_classify_answer(sv_classify *c, const qd_dataset *d, const qd_params *p, const char *phase,
                             const qd_run *run, qd_err *err);
/* Shares of `count` pictures, 0..1; by_class [classes], by the label of the pictures, may be NULL. */
typedef struct sv_accuracy {
    int64_t right;
    double top1, top5;
} sv_accuracy;
typedef struct sv_class_count {
    int64_t count, right;
} sv_class_count;
sv_accuracy sv_classify_accuracy(const sv_classify *c, const qd_dataset *d, int64_t count, sv_class_count *by_class);
double sv_classify_agreement(const sv_classify *a, const sv_classify *b, int64_t count);

/* --- quantized.c: what every quantization leaves --- */
typedef struct sv_quantized {
    sv_task *t;
    const qd_model *source; /* lent: what its configuration was */
    qd_quant_report report;
    char *bundle; /* path in the attempt's folder */
    char sha256[QD_SHA256_HEX];
    uint64_t file_bytes; /* of the bundle */
    int layers_quantized, layers_float;
    bool latent; /* its samples are latents */
} sv_quantized;
qd_status sv_quantized_init(sv_quantized *w, sv_task *t, qd_err *err);
void sv_quantized_clear(sv_quantized *w);
/* Runs the method and writes the bundle. */
qd_status sv_quantized_make(sv_quantized *w, const qd_quant_task *task, qd_err *err);
/* Proof that nothing was lost: what was read back, saved again, gives the same bytes. */
qd_status sv_quantized_check(sv_quantized *w, const qd_model *read_back, qd_err *err);
json_t *sv_quantized_figures(const sv_quantized *w);
/* report.json: the method's report, the figures, and the entries of `more` (may be NULL). *out (may be NULL) takes what was written. */
qd_status sv_quantized_report(const sv_quantized *w, const json_t *figures, const json_t *more, json_t **out,
                              qd_err *err);
/* Hands out the bundle and registers it; its id goes into figures. */
qd_status sv_quantized_publish(const sv_quantized *w, json_t *figures, qd_err *err);
/* The value of a parameter that not every method has. */
int64_t sv_param_or(const qd_params *p, const char *name, int64_t otherwise);
void sv_put_figure(json_t *o, const char *name, double v);
/* What the job says in max_drop: the metric (in `metric`) and its value; NULL when it says nothing. */
const char *sv_max_drop(const sv_job_row *job, char metric[32], double *value);

/* --- quantize_denoiser.c, quantize_classifier.c --- */
extern const qd_param sv_denoiser_params[];
extern const char *const sv_denoiser_drop_metrics[], *const sv_classifier_drop_metrics[];
qd_status sv_quantize_denoiser(sv_task *t, json_t **result, qd_err *err);
qd_status sv_quantize_classifier(sv_task *t, json_t **result, qd_err *err);

/* --- report_page.c: report.json of a denoiser as a page to read, whole in one file: no scripts, nothing from elsewhere --- */
/* Appends it. Made of the report alone, so the same report and sheet (PNG; size 0 = no pairs) give the same bytes. */
qd_status sv_report_page(const json_t *report, const void *sheet, size_t sheet_size, qd_buf *out, qd_err *err);
/* What pages are made of: text with what HTML and XML read as markup escaped; an entry of a JSON object, NAN when it is no number. */
void sv_page_text(qd_buf *b, const char *text);
double sv_page_number(const json_t *o, const char *key);

/* --- report_plots.c: SVG for it --- */
/* Up to two curves over rows' "t", largest t on the left, as sampling goes. */
typedef struct sv_plot {
    const char *title, *note; /* note: what is good; "" = nothing */
    const json_t *rows;       /* array of {t, key..} */
    const char *key[2], *label[2];
} sv_plot;
void sv_plot_add(qd_buf *b, const sv_plot *p);
/* noise_map of a report, with its legend: one rect for each layer and step. */
qd_status sv_noise_map_add(qd_buf *b, const json_t *map, qd_err *err);

/* --- pairs.c: the same noise through the float and the quantized model --- */
enum { SV_PAIRS_MAX = 64 };
/* x after one step, over all pairs, channels and places; [0] float, [1] quantized as corrected. */
typedef struct sv_drift {
    int t; /* the step's own */
    double mean[2], std[2];
} sv_drift;
typedef struct sv_pairs {
    int n, identical;                        /* identical: pairs without any difference; they have no PSNR */
    double psnr_db[SV_PAIRS_MAX];            /* INFINITY for identical pictures */
    double psnr_mean_db, psnr_min_db;        /* of the others; NAN when there are none */
    double image_float_s, image_quantized_s; /* medians of one whole sampling at batch 1; NAN without pairs */
    double call_float_s, call_quantized_s;   /* of one call of the network: the former by the number of calls */
    int calls_float, calls_quantized;        /* for one image */
    sv_drift *drift;                         // [n_drift], in the order of sampling; NULL without pairs
    int n_drift;
} sv_pairs;
void sv_pairs_clear(sv_pairs *p);
typedef struct sv_pair_ask {
    sv_denoise *reference; /* what it is told and how it decodes goes for both */
    const sv_denoise *quantized;
    const qd_sampler *sampler;
    qd_sample_options options;
    int n;
} sv_pair_ask;
/* Pushes each pair as soon as it is done; then writes all of them to `sheet_path` (not when n is 0). */
qd_status sv_pairs_draw(sv_task *t, const sv_pair_ask *ask, const char *sheet_path, sv_pairs *out, qd_err *err);

#endif
