/* attempt.c - one claimed job, from its lease to its end: the task, the run, and what its outcome means for the queue. */
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"
#include "log.h"

typedef struct outcome {
    const char *status; /* NULL = back to the queue */
    const char *code;
    bool retryable;
} outcome;

static const char *error_code(qd_status st)
{
    switch (st) {
    case QD_E_INVALID:
        return "invalid_param";
    case QD_E_FORMAT:
        return "bad_format";
    case QD_E_UNSUPPORTED:
        return "unsupported";
    case QD_E_LIMIT:
        return "limit_exceeded";
    case QD_E_NOMEM:
        return "out_of_memory";
    case QD_E_IO:
        return "io_error";
    case QD_E_NOT_FOUND:
        return "not_found";
    case QD_E_CONFLICT:
        return "conflict";
    case QD_E_CANCELLED:
        return "canceled";
    case QD_E_NUMERIC:
        return "not_finite";
    default:
        return "internal";
    }
}

/* What a failed run means. Only trouble of the machine is worth another try: everything else would fail the same way again. */
static outcome judge(const sv_attempt *a, const sv_task *t, qd_status st)
{
    const int why = atomic_load(&a->stop->why);
    if (st == QD_E_CANCELLED && why == SV_STOP_CANCEL)
        return (outcome){ .status = "canceled" };
    if (st == QD_E_CANCELLED && why == SV_STOP_SHUTDOWN)
        return (outcome){ .status = NULL };
    if (st == QD_E_CANCELLED && why == SV_STOP_TIME)
        return (outcome){ .status = "failed", .code = "time_limit" };
    const char *code = t->error_code ? t->error_code : error_code(st);
    if (st == QD_E_IO || st == QD_E_NOMEM) /* the store waits a while, or says "dead" when the tries are used up */
        return (outcome){ .status = NULL, .code = code, .retryable = true };
    return (outcome){ .status = "failed", .code = code };
}

static char *error_text(const outcome *o, const char *words, json_t *figures)
{
    json_t *e = json_pack("{s:s, s:s, s:b}", "code", o->code, "message", words, "retryable", o->retryable);
    if (!e) /* words that are not UTF-8, out of a file name */
        e = json_pack("{s:s, s:s, s:b}", "code", o->code, "message", "the error has no readable words", "retryable",
                      o->retryable);
    if (figures)
        json_object_set(e, "figures", figures);
    char *text = sv_json_text(e);
    json_decref(e);
    return text;
}

static void conclude(const sv_attempt *a, const sv_task *t, qd_status st, const char *words, const json_t *result)
{
    const int64_t now = sv_now_ms();
    qd_err err = { 0 };
    int64_t seq;
    char *error = NULL, *figures = NULL;
    outcome o = { .status = "succeeded" };

    if (atomic_load(&a->stop->why) == SV_STOP_LOST) {
        sv_log(SV_WARN, "attempt_abandoned", "job", a->job->id, "why", "the lease is somebody else's", NULL);
        return;
    }
    if (st)
        o = judge(a, t, st);
    char late[96];
    if (st == QD_E_CANCELLED && o.code) { /* the work only knows that it was told to stop */
        snprintf(late, sizeof late, "the job ran longer than its time limit of %lld s",
                 (long long)a->job->time_limit_s);
        words = late;
    }
    if (o.code)
        error = error_text(&o, words, t->error_figures);
    if (!st)
        figures = sv_json_text(result);

    sv_reporter_flush(a->reporter);
    if (o.status)
        st = sv_jobs_finish(a->store, a->job->id, a->job->fence, o.status, error ? error : "", figures ? figures : "",
                            now, &seq, &err);
    else
        st = sv_jobs_requeue(a->store, a->job->id, a->job->fence, error ? error : "", now, &err);
    if (st) {
        sv_log(st == QD_E_CONFLICT ? SV_WARN : SV_ERROR, "attempt_not_recorded", "job", a->job->id, "error", err.text,
               NULL);
    } else {
        sv_reporter_catch_up(a->reporter);
        sv_log(SV_INFO, "attempt_ended", "job", a->job->id, "outcome", o.status ? o.status : "requeued", "code",
               o.code ? o.code : "", "words", o.code ? words : "", NULL);
    }
    qd_free(error);
    qd_free(figures);
}

/* The values the job was accepted with. */
static qd_status open_params(const sv_job_row *job, const sv_kind **kind, sv_task *t, qd_err *err)
{
    char pointer[128];
    *kind = sv_kind_find(job->kind);
    t->method = *kind ? sv_method_find(*kind, job->method) : NULL;
    if (!t->method)
        return qd_fail(err, QD_E_UNSUPPORTED, "this quantd has no kind '%s' with method '%s'", job->kind, job->method);
    json_t *o = sv_json_read(job->params);
    json_object_del(o, "method");
    const qd_status st = sv_params_from_json(o, (const qd_param *const[]){ t->method->params, (*kind)->params, NULL },
                                             &t->params, pointer, err);
    json_decref(o);
    return st;
}

void sv_attempt_run(const sv_attempt *a)
{
    const sv_kind *kind = NULL;
    sv_model_row model = { 0 };
    sv_dataset_row dataset = { 0 };
    qd_budget budget;
    json_t *result = NULL;
    qd_err err = { 0 };
    sv_task t = { .job = a->job, .model = &model, .settings = a->settings, .reporter = a->reporter, .store = a->store };
    qd_status st;

    sv_reporter_catch_up(a->reporter);
    if (a->job->cancel_requested_ms > 0)
        sv_stop_raise(a->stop, SV_STOP_CANCEL);
    qd_budget_init(&budget, a->settings->job_memory_bytes > 0 ? (size_t)a->settings->job_memory_bytes : 0);
    sv_reporter_attach(a->reporter, &t.run);
    t.run.threads = a->settings->threads;
    t.run.budget = &budget;

    st = open_params(a->job, &kind, &t, &err);
    if (st)
        goto out;
    if (qd_param_find(qd_params_rows(t.params), "seed"))
        t.run.seed = (uint64_t)qd_params_int(t.params, "seed");
    st = sv_models_get(a->store, a->job->model_id, &model, &err);
    if (!st && a->job->dataset_id[0])
        st = sv_datasets_get(a->store, a->job->dataset_id, &dataset, &err);
    if (st)
        goto out;
    t.dataset = dataset.id ? &dataset : NULL;
    t.dir = qd_asprintf("%s/tmp/%s-%d", a->settings->data_dir, a->job->id, a->job->attempt);
    if (!t.dir) {
        st = qd_fail(&err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    if ((st = qd_fs_remove_tree(t.dir, &err)) || (st = qd_fs_mkdirs(t.dir, &err)) || (st = qd_run_check(&t.run, &err)))
        goto out;
    st = (t.method->run ? t.method->run : kind->run)(&t, &result, &err);
    if (!st && a->job->attempt > 1)
        sv_task_sweep(&t);
out:
    conclude(a, &t, st, err.text, result);
    if (t.dir)
        qd_fs_remove_tree(t.dir, NULL);
    json_decref(result);
    json_decref(t.error_figures);
    qd_params_free(t.params);
    sv_model_row_clear(&dataset);
    sv_model_row_clear(&model);
    qd_free(t.dir);
}
