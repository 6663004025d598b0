/* jobs.h - kinds of job, the pool of workers, and what a running job may do to the world. */
#ifndef SV_JOBS_JOBS_H
#define SV_JOBS_JOBS_H

#include <jansson.h>
#include <stdatomic.h>

#include "base/err.h"
#include "base/param.h"
#include "base/run.h"
#include "live/live.h"
#include "settings.h"
#include "store/store.h"

#define SV_VERSION "0.1.0" /* as in meson.build; a test holds them together */

typedef struct sv_task sv_task;

/* One method of a kind: its params come from core tables (quant methods, samplers). What is NULL is as the kind has it. */
typedef struct sv_method {
    const char *name, *summary;
    const qd_param *params;
    const char *role;      /* of the models it takes */
    bool needs_data;       /* the job must name a data set; else it must not */
    bool takes_statistics; /* which may be statistics of features instead of pictures */
    const char *const *drop_metrics;
    /* What can be wrong with its params beyond their rows: models they name. May be NULL. */
    qd_status (*check)(sv_store *store, const char *model_id, const qd_params *p, char pointer[128], qd_err *err);
    qd_status (*run)(sv_task *t, json_t **result, qd_err *err);
} sv_method;

/* A preset sets some parameters before the explicit ones: one row for each (preset, parameter). Rows whose parameter the chosen
 * method does not have are skipped, and rows for methods of another role. */
typedef struct sv_preset {
    const char *preset, *param, *value;
    const char *role; /* NULL = any */
} sv_preset;
bool sv_preset_fits(const sv_preset *p, const sv_method *m);

typedef struct sv_kind {
    const char *name, *summary;          /* "quantize" */
    const sv_method *(*methods)(int *n); /* gathered from the core's tables */
    const char *default_method; /* for the roles that no method of its own names: of the others the first that fits */
    const qd_param *params;     /* common to all methods of the kind (without "method") */
    const char *const *roles;   /* model roles it takes, NULL-terminated */
    bool takes_bundle, takes_float;
    const sv_preset *presets; /* ends with preset NULL; may be NULL. The choice itself is the parameter "preset" */
    const char *const *drop_metrics; /* what max_drop may name, NULL-terminated; NULL = the kind knows no max_drop */
    /* Runs on a worker thread. *result is a new JSON object. NULL where every method has its own. */
    qd_status (*run)(sv_task *t, json_t **result, qd_err *err);
} sv_kind;
extern const sv_kind *const sv_kinds[]; /* NULL-terminated: kinds.c */
const sv_kind *sv_kind_find(const char *name);
const sv_method *sv_method_find(const sv_kind *k, const char *name);

/* Validate a submitted body (API.md 3) into rows ready for the store. Words and `pointer` ("/params/weight_bits", capacity 128) say
 * what is wrong. model existence, role and format are checked against the store. */
qd_status sv_job_parse(sv_store *store, const json_t *body, sv_job_row *out, char pointer[128], qd_err *err);
/* The params object of a method from its rows: JSON in, qd_params out. row_sets is NULL-terminated; a name that occurs in two sets
 * belongs to the first. null counts as not given. */
qd_status sv_params_from_json(const json_t *object, const qd_param *const *row_sets, qd_params **out, char pointer[128],
                              qd_err *err);
/* All values of a params object as JSON (new reference, NULL when out of memory). */
json_t *sv_params_to_json(const qd_params *p);
/* JSON Schema of one set of rows: an object schema with type, default, bounds, choices and words for each parameter. */
json_t *sv_params_schema(const qd_param *const *row_sets);
/* A kind for GET /v1/kinds: name, summary, roles, presets, and for each method its JSON Schema (new reference). */
json_t *sv_kind_schema(const sv_kind *k);

/* --- what a running job sees --- */
struct sv_task {
    const sv_job_row *job;
    const sv_model_row *model;
    const sv_dataset_row *dataset; /* NULL = none */
    qd_params *params;             /* kind's and method's rows together */
    const sv_method *method;
    qd_run run; /* progress, metric, layer, warn go to the event log; cancel, threads, budget, seed set */
    const sv_settings *settings;
    char *dir; /* scratch folder of this attempt, removed afterwards */
    struct sv_reporter *reporter;
    sv_store *store;
    const char *error_code; /* what a failed run is called, instead of the name of its status; NULL = that */
    json_t *error_figures;  /* goes into the error object; owned */
};
char *sv_task_model_path(const sv_task *t);                         /* absolute; qd_free */
char *sv_task_file_path(const sv_task *t, const sv_model_row *row); /* the same of any row */
/* Publish: the file moves into the job's artifact folder under its hash, row and event are written. */
qd_status sv_task_artifact(sv_task *t, const char *name, const char *mime, const char *scratch_path, qd_err *err);
/* A picture made by the job: PNG bytes on disk, row, event, and a binary frame to live listeners. kind 1 sample, 2 pair. */
qd_status sv_task_sample(sv_task *t, uint32_t frame_kind, int64_t step, int64_t index, const void *png, size_t size,
                         int width, int height, double psnr_db, qd_err *err);
/* Register a bundle (already an artifact) as a model; id into out. */
qd_status sv_task_model(sv_task *t, const char *artifact_name, const char *name, char out_id[40], qd_err *err);

/* --- workers --- */
typedef struct sv_workers sv_workers;
qd_status sv_workers_start(const sv_settings *settings, sv_store *store, sv_bus *bus, sv_workers **out, qd_err *err);
void sv_workers_wake(sv_workers *w);                       /* a job was queued */
void sv_workers_cancel(sv_workers *w, const char *job_id); /* raise the flag of a job running here, at once */
void sv_workers_stop(sv_workers *w);                       /* running jobs go back to the queue; joins; frees */
/* The first half of stop: no new claims, running jobs told to stop; returns at once. */
void sv_workers_drain(sv_workers *w);
int sv_workers_busy(const sv_workers *w);
int sv_workers_count(const sv_workers *w);
/* At start, with the data folder locked: leases still held belong to workers that died with an earlier daemon; let them run out
 * now, so that their jobs go on at once. *reclaimed may be NULL. */
qd_status sv_workers_reclaim(sv_store *store, int *reclaimed, qd_err *err);

/* Cancel through store and workers; reply as API.md 3 says. http_status 200 or 202. */
qd_status sv_jobs_request_cancel(sv_store *store, sv_workers *w, sv_bus *bus, const char *id, json_t **reply,
                                 int *http_status, qd_err *err);
/* What a job that was parsed would cost: bytes, memory, seconds, what is not supported. From its model's summary and earlier jobs
 * alone; nothing is opened or computed, so any thread may ask. *out is a new JSON object. */
qd_status sv_job_estimate(sv_store *store, const sv_settings *s, const sv_job_row *j, json_t **out, qd_err *err);
/* The job as API.md shows it (new reference). */
json_t *sv_job_json(sv_store *store, const sv_job_row *j);
json_t *sv_model_json(const sv_model_row *m);
json_t *sv_dataset_json(const sv_dataset_row *d);

/* Run one job in this process without a server or queue: `quantd run job.json`. */
qd_status sv_run_once(const sv_settings *settings, const char *job_path, const char *out_dir, qd_err *err);

/* Look into an uploaded file or folder and say what it is: format, role, summary (JSON text, qd_free). */
qd_status sv_model_inspect(const char *path, const sv_settings *settings, char **format, char **role, char **summary,
                           qd_err *err);

/* The same of a data set; role "labelled" or "unlabelled". */
qd_status sv_dataset_inspect(const char *path, const sv_settings *settings, char **format, char **role, char **summary,
                             qd_err *err);

/* Publish on the bus what the log of a job holds past `after`, in order. For whoever changed a job's state in the store. */
void sv_publish_since(sv_store *store, sv_bus *bus, const char *job_id, int64_t after);

#endif
