/* quantize_classifier.c - quantizing a classifier: method, bundle, the bundle read back, answers of both on the data set, figures. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"

/* Both in points of 100: how many fewer right answers, how many other answers than the float model's. */
const char *const sv_classifier_drop_metrics[] = { "top1", "agreement", NULL };

typedef struct work {
    sv_quantized made;
    qd_dataset *data;
    sv_classify reference, quantized; /* quantized: read back from the bundle */
    sv_accuracy before, after;
    double agreement, sqnr_db; /* of the answers; of the logits */
    int64_t count;
} work;

static qd_status open_both(work *w, qd_err *err)
{
    sv_task *t = w->made.t;
    char *model = sv_task_model_path(t), *data = sv_task_file_path(t, t->dataset);
    qd_status st = model && data ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    qd_run_progress(&t->run, "load", NULL, 0, 2);
    if (!st)
        st = sv_classify_open(model, &t->run, &w->reference, err);
    qd_run_progress(&t->run, "load", NULL, 1, 2);
    if (!st)
        st = sv_dataset_open(data, t->settings, qd_run_budget(&t->run), &w->data, err);
    if (!st)
        st = qd_classifier_fits(&w->reference.net, w->data, true, err);
    qd_run_progress(&t->run, "load", NULL, 2, 2);
    if (!st)
        sv_task_log(t, "%s: %lld parameters, %lld classes; %s: %lld pictures of %d x %d x %d", t->model->name,
                    (long long)qd_graph_param_count(w->reference.graph), (long long)w->reference.net.classes,
                    t->dataset->name, (long long)w->data->count, w->data->channels, w->data->height, w->data->width);
    qd_free(model);
    qd_free(data);
    return st;
}

/* The method, then the bundle, then the bundle as a stranger would open it. */
static qd_status make_bundle(work *w, qd_err *err)
{
    const qd_quant_task task = {
        .graph = w->reference.graph, .role = QD_ROLE_CLASSIFIER, .data = w->data, .params = w->made.t->params
    };
    w->made.source = w->reference.model;
    qd_status st = sv_quantized_make(&w->made, &task, err);
    if (st)
        return st;
    st = sv_classify_open(w->made.bundle, &w->made.t->run, &w->quantized, err);
    if (st)
        return qd_fail_in(err, st, "the bundle just written cannot be read back");
    return sv_quantized_check(&w->made, w->quantized.model, err);
}

static qd_status compare(work *w, qd_err *err)
{
    sv_task *t = w->made.t;
    w->count = sv_classify_count(t->params, w->data);
    qd_status st = sv_classify_answer(&w->reference, w->data, t->params, "answers of the float model", &t->run, err);
    if (!st)
        st = sv_classify_answer(&w->quantized, w->data, t->params, "answers of the quantized model", &t->run, err);
    if (st)
        return st;
    w->before = sv_classify_accuracy(&w->reference, w->data, w->count, NULL);
    w->after = sv_classify_accuracy(&w->quantized, w->data, w->count, NULL);
    w->agreement = sv_classify_agreement(&w->reference, &w->quantized, w->count);
    w->sqnr_db = qd_sqnr_db(w->reference.logits, w->quantized.logits, w->count * w->reference.net.classes);
    return QD_OK;
}

/* --- figures --- */

static json_t *figures_json(const work *w)
{
    json_t *o = sv_quantized_figures(&w->made);
    json_object_set_new(o, "count", json_integer(w->count));
    json_object_set_new(o, "right_float", json_integer(w->before.right));
    json_object_set_new(o, "right_quantized", json_integer(w->after.right));
    sv_put_figure(o, "top1_float", w->before.top1);
    sv_put_figure(o, "top1_quantized", w->after.top1);
    sv_put_figure(o, "top5_float", w->before.top5);
    sv_put_figure(o, "top5_quantized", w->after.top5);
    sv_put_figure(o, "agreement", w->agreement);
    sv_put_figure(o, "logits_sqnr_db", w->sqnr_db);
    sv_put_figure(o, "images_per_second_float", (double)w->count / w->reference.seconds);
    sv_put_figure(o, "images_per_second_int8", (double)w->count / w->quantized.seconds);
    sv_put_figure(o, "speedup", w->reference.seconds / w->quantized.seconds);
    json_object_set_new(o, "norms_folded", json_integer(w->made.report.norms_folded));
    json_object_set_new(o, "pairs_equalized", json_integer(w->made.report.pairs_equalized));
    json_object_set_new(o, "biases_corrected", json_integer(w->made.report.biases_corrected));
    return o;
}

static qd_status check_drop(const work *w, const json_t *figures, qd_err *err)
{
    char metric[32];
    double most;
    if (!sv_max_drop(w->made.t->job, metric, &most))
        return QD_OK;
    const bool top1 = strcmp(metric, "top1") == 0;
    /* Counted in pictures, so that a drop of exactly what is allowed passes. */
    const double dropped =
        top1 ? 100.0 * (double)(w->before.right - w->after.right) / (double)w->count : 100.0 * (1.0 - w->agreement);
    if (dropped <= most + 1e-9)
        return QD_OK;
    sv_task_error(w->made.t, "max_drop_exceeded", json_deep_copy(figures));
    return top1 ? qd_fail(err, QD_E_INVALID,
                          "the quantized model answers %.2f points fewer right (%lld of %lld, before %lld); max_drop "
                          "accepts %.2f",
                          dropped, (long long)w->after.right, (long long)w->count, (long long)w->before.right, most)
                : qd_fail(err, QD_E_INVALID, "%.2f of 100 answers are not the float model's; max_drop accepts %.2f",
                          dropped, most);
}

qd_status sv_quantize_classifier(sv_task *t, json_t **result, qd_err *err)
{
    work w = { 0 };
    json_t *figures = NULL, *more = NULL;
    qd_status st = sv_quantized_init(&w.made, t, err);
    if (st)
        goto out;
    if ((st = open_both(&w, err)) || (st = make_bundle(&w, err)) || (st = compare(&w, err)))
        goto out;
    figures = figures_json(&w);
    more = json_pack("{s:{s:s, s:s}}", "dataset", "id", t->dataset->id, "sha256", t->dataset->sha256);
    st = sv_quantized_report(&w.made, figures, more, NULL, err);
    /* What is not good enough is shown (report) and not handed out. */
    if (!st)
        st = check_drop(&w, figures, err);
    if (!st)
        st = sv_quantized_publish(&w.made, figures, err);
    if (st)
        goto out;
    *result = figures;
    figures = NULL;
out:
    json_decref(more);
    json_decref(figures);
    sv_classify_clear(&w.quantized);
    sv_classify_clear(&w.reference);
    qd_dataset_free(w.data);
    sv_quantized_clear(&w.made);
    return st;
}
