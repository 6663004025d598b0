/* store.h - the only SQL in the house: models, data sets, jobs, events, samples, artifacts in one SQLite file (WAL, synchronous=FULL).
 *
 * Every call runs on the calling thread's own connection, opened on first use and closed when the thread ends. Writes are short
 * BEGIN IMMEDIATE transactions with a busy timeout. Rows are copied out; text is never NULL unless said, owned by the struct and
 * released by its clear. Times are milliseconds since the epoch, given by the caller. JSON travels as text. */
#ifndef SV_STORE_STORE_H
#define SV_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct sv_store sv_store;

/* Creates the file and applies migrations (compiled in from migrations/) in order. A database from a newer quantd: QD_E_CONFLICT. */
qd_status sv_store_open(const char *path, sv_store **out, qd_err *err);
void sv_store_close(sv_store *s);                   /* all threads but this one have ended */
qd_status sv_store_check(sv_store *s, qd_err *err); /* PRAGMA integrity_check; used by readiness and tests */

/* A claim may settle jobs that its caller never named: those whose lease ran out. fn is told of each event stored that way, on the
 * claiming thread, after the commit; it must be quick and must not call the store. NULL = nobody. */
typedef struct sv_event_row sv_event_row;
void sv_store_watch(sv_store *s, void (*fn)(void *ctx, const sv_event_row *event), void *ctx);

int64_t sv_now_ms(void);
/* prefix + 26 characters of sortable Crockford base32 (48-bit ms, 80 random bits): "job_01J..." */
void sv_id_new(char out[40], const char *prefix);

/* --- models --- */
typedef struct sv_model_row {
    char *id, *name;     /* name may be "" */
    char *sha256;        /* of the uploaded bytes; the blob's name */
    char *path;          /* what qd_model_open takes, relative to the data dir */
    char *format, *role; /* "diffusers", "bundle"; "denoiser" */
    char *summary;       /* JSON object */
    char *job_id;        /* made by this job, or "" */
    int64_t size_bytes, created_ms;
} sv_model_row;
void sv_model_row_clear(sv_model_row *m);
/* Same sha256 and name already there: returns that row instead (*existing true). */
qd_status sv_models_add(sv_store *s, const sv_model_row *m, sv_model_row *out, bool *existing, qd_err *err);
qd_status sv_models_get(sv_store *s, const char *id_or_name, sv_model_row *out,
                        qd_err *err); /* NOT_FOUND; newest of that name */
/* CONFLICT when an unfinished job uses it. Nothing else of its table, and nothing at all, has these bytes any more: *last, *last_of_blob
 * (either may be NULL). */
qd_status sv_models_delete(sv_store *s, const char *id, bool *last, bool *last_of_blob, qd_err *err);

bool sv_models_pruned(sv_store *s, const char *id);

/* --- data sets: the same kind of row; format as in data/readers.c, role "labelled" or "unlabelled" --- */
typedef sv_model_row sv_dataset_row;
qd_status sv_datasets_add(sv_store *s, const sv_dataset_row *d, sv_dataset_row *out, bool *existing, qd_err *err);
qd_status sv_datasets_get(sv_store *s, const char *id_or_name, sv_dataset_row *out, qd_err *err);
qd_status sv_datasets_delete(sv_store *s, const char *id, bool *last, bool *last_of_blob, qd_err *err);
bool sv_datasets_pruned(sv_store *s, const char *id);

/* --- jobs --- */
typedef struct sv_job_row {
    char *id, *kind, *method, *status; /* API.md 3 */
    char *model_id, *dataset_id;       /* dataset_id: "" = none */
    char *retry_of;                    /* the job that this one tries again, or "" */
    char *estimate;                    /* JSON object made when it was submitted, or "" */
    char *body;                        /* the accepted request, canonical JSON */
    char *params;                      /* JSON object, all values filled in */
    char *metadata;                    /* JSON object */
    char *error, *result;              /* JSON or "" */
    char *phase, *item;                /* last progress */
    int64_t done, total;
    int priority, attempt, max_attempts;
    int64_t created_ms, started_ms, finished_ms, run_at_ms, cancel_requested_ms; /* 0 = not yet */
    int64_t time_limit_s, lease_until_ms;
    int64_t fence;    /* grows with every claim; writes by an older holder are refused with QD_E_CONFLICT */
    int64_t last_seq; /* number of its last event */
} sv_job_row;
void sv_job_row_clear(sv_job_row *j);

/* Inserts with status queued (or scheduled) and event 1 ("state"). idempotency_key may be NULL: same key + same body hash gives
 * the earlier job (*existing), same key + other body QD_E_CONFLICT. */
qd_status sv_jobs_add(sv_store *s, const sv_job_row *j, const char *idempotency_key, sv_job_row *out, bool *existing,
                      qd_err *err);
qd_status sv_jobs_get(sv_store *s, const char *id, sv_job_row *out, qd_err *err);
/* How many queued jobs come before it; 0-based; -1 when it is not queued. */
qd_status sv_jobs_position(sv_store *s, const char *id, int64_t *position, qd_err *err);
/* Claim the next due job by one UPDATE ... RETURNING: lowest priority first, then oldest. Expired leases count as queued: a job
 * whose attempts are used up goes to failed with code worker_lost instead. The samples of earlier attempts are dropped. NOT_FOUND
 * when there is nothing to do. */
qd_status sv_jobs_claim(sv_store *s, const char *worker, int64_t now_ms, int lease_ms, sv_job_row *out, qd_err *err);
/* Extend the lease; *cancel tells whether somebody asked to stop. CONFLICT when the lease is no longer ours. */
qd_status sv_jobs_heartbeat(sv_store *s, const char *id, int64_t fence, int64_t lease_until_ms, bool *cancel,
                            qd_err *err);
qd_status sv_jobs_progress(sv_store *s, const char *id, int64_t fence, const char *phase, const char *item,
                           int64_t done, int64_t total, qd_err *err);
/* Final state in one transaction: status, error, result, attempt row, events "state" then "end". */
qd_status sv_jobs_finish(sv_store *s, const char *id, int64_t fence, const char *status, const char *error_json,
                         const char *result_json, int64_t now_ms, int64_t *last_seq, qd_err *err);
/* Back to the queue. Without error_json (NULL or ""): queued at once, and the attempt does not count (the daemon stops). With it:
 * retry_wait, growing from 1 s to 60 s, or dead when the attempts are used up. Either way canceled when somebody asked for that. */
qd_status sv_jobs_requeue(sv_store *s, const char *id, int64_t fence, const char *error_json, int64_t now_ms,
                          qd_err *err);
/* Queued: canceled at once. Running: cancel_requested_ms set. Final: nothing. *out is the row afterwards. */
qd_status sv_jobs_cancel(sv_store *s, const char *id, int64_t now_ms, sv_job_row *out, qd_err *err);
/* A final state never changes: a failed, dead or canceled job is tried again as a new job with the same body, for now, and retry_of.
 * While that one is unfinished it is returned again (*existing). CONFLICT for a job that is not over, that succeeded, or whose model
 * or data set is gone. */
qd_status sv_jobs_retry(sv_store *s, const char *id, int64_t now_ms, sv_job_row *out, bool *existing, qd_err *err);
qd_status sv_jobs_delete(sv_store *s, const char *id,
                         qd_err *err); /* only a finished one: else CONFLICT; leaves a tombstone (410) */
bool sv_jobs_pruned(sv_store *s, const char *id);

typedef struct sv_attempt_row {
    int attempt;
    int64_t started_ms, finished_ms;
    char *worker, *outcome, *error;
} sv_attempt_row;

/* --- lists: newest first (or oldest), keyset cursor = an id --- */
typedef struct sv_list_query {
    const char *status; /* comma-separated, NULL = any */
    const char *kind, *after;
    const char *job_id; /* for events, samples, artifacts, attempts */
    int limit;          /* 1..1000 */
    bool ascending;
} sv_list_query;
qd_status sv_jobs_list(sv_store *s, const sv_list_query *q, sv_job_row **rows, int *n, bool *more, qd_err *err);
qd_status sv_models_list(sv_store *s, const sv_list_query *q, sv_model_row **rows, int *n, bool *more, qd_err *err);
qd_status sv_datasets_list(sv_store *s, const sv_list_query *q, sv_dataset_row **rows, int *n, bool *more, qd_err *err);
qd_status sv_attempts_list(sv_store *s, const char *job_id, sv_attempt_row **rows, int *n, qd_err *err);
void sv_job_rows_free(sv_job_row *rows, int n);
void sv_model_rows_free(sv_model_row *rows, int n);
void sv_attempt_rows_free(sv_attempt_row *rows, int n);

/* --- events: seq 1, 2, 3, .. for each job, no gaps --- */
struct sv_event_row {
    int64_t seq, ts_ms;
    int attempt;
    char *job_id, *type, *data; /* data: JSON object */
};
void sv_event_rows_free(sv_event_row *rows, int n);
/* fence < 0: not from a worker (no check). */
qd_status sv_events_add(sv_store *s, const char *job_id, int64_t fence, int attempt, const char *type, const char *data,
                        int64_t now_ms, int64_t *seq, qd_err *err);
/* Rows with seq > after, at most limit. type NULL = all. */
qd_status sv_events_read(sv_store *s, const char *job_id, int64_t after, const char *type, int limit,
                         sv_event_row **rows, int *n, qd_err *err);

/* --- samples and artifacts --- */
typedef struct sv_sample_row {
    char *job_id, *kind, *path, *mime; /* kind "sample" | "pair"; path relative to the data dir */
    int64_t n;                         /* 0, 1, 2, .. in the job */
    int64_t step, index;
    int width, height;
    double psnr_db; /* NAN = none */
} sv_sample_row;
typedef struct sv_artifact_row {
    char *id, *job_id, *name, *mime, *sha256, *path;
    int64_t size_bytes, created_ms;
} sv_artifact_row;
/* Also adds the "sample" event (data built by the caller) in the same transaction. */
qd_status sv_samples_add(sv_store *s, int64_t fence, int attempt, const sv_sample_row *row, const char *event_data,
                         int64_t now_ms, int64_t *n, int64_t *seq, qd_err *err);
qd_status sv_samples_list(sv_store *s, const char *job_id, sv_sample_row **rows, int *n, qd_err *err);
qd_status sv_artifacts_add(sv_store *s, int64_t fence, int attempt, const sv_artifact_row *row, int64_t *seq,
                           qd_err *err);
qd_status sv_artifacts_list(sv_store *s, const char *job_id, sv_artifact_row **rows, int *n, qd_err *err);
qd_status sv_artifacts_get(sv_store *s, const char *job_id, const char *name, sv_artifact_row *out, qd_err *err);
void sv_sample_rows_free(sv_sample_row *rows, int n);
void sv_artifact_rows_free(sv_artifact_row *rows, int n);
void sv_artifact_row_clear(sv_artifact_row *a);

/* Counts for /metrics: jobs by kind and status. fn is called once for each pair. */
qd_status sv_jobs_counts(sv_store *s, void (*fn)(void *ctx, const char *kind, const char *status, int64_t n), void *ctx,
                         qd_err *err);

/* How long the last attempts of jobs that succeeded ran. Only ever grows: deleted jobs stay counted. fn is called once for each kind
 * and method; the row is lent. */
enum { SV_SECONDS_LIMITS = 9 };
extern const int sv_job_seconds_limits[SV_SECONDS_LIMITS]; // seconds, inclusive, rising
typedef struct sv_seconds_row {
    const char *kind, *method;
    int64_t jobs[SV_SECONDS_LIMITS + 1]; /* by the first limit that the time fits under; the last: under none */
    int64_t total_ms;
} sv_seconds_row;
qd_status sv_jobs_seconds(sv_store *s, void (*fn)(void *ctx, const sv_seconds_row *row), void *ctx, qd_err *err);

#endif
