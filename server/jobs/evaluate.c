/* evaluate.c - the job that measures a model: its methods, and accuracy of a classifier on a labelled data set. */
#include <pthread.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/evaluate_int.h"

static const qd_param common[] = { { .name = NULL } };

/* clang-format off */
static const qd_param accuracy_params[] = {
    { .name = "mean", .type = QD_PARAM_STRING, .fallback = "0", .max = 200,
      .summary = "What the network wants subtracted from pixels in 0..1: one number, or one for each channel with commas between." },
    { .name = "std", .type = QD_PARAM_STRING, .fallback = "1", .max = 200,
      .summary = "What it then wants them divided by: one number, or one for each channel with commas between." },
    { .name = "reference", .type = QD_PARAM_STRING, .fallback = "", .max = 128,
      .summary = "Id or name of another model whose answers are compared with, such as the float model of a quantized one; empty = none." },
    { .name = NULL },
};
/* clang-format on */

qd_status sv_evaluate_model(sv_store *store, const qd_params *p, const char *name, sv_model_row *out, qd_err *err)
{
    const char *given = qd_params_string(p, name);
    const qd_status st = sv_models_get(store, given, out, err);
    return st == QD_E_NOT_FOUND ? qd_fail(err, QD_E_INVALID, "params.%s: model '%.80s' does not exist", name, given)
                                : st;
}

static qd_status find_reference(sv_store *store, const qd_params *p, sv_model_row *out, qd_err *err)
{
    qd_status st = sv_evaluate_model(store, p, "reference", out, err);
    if (!st && strcmp(out->role, "classifier") != 0)
        st = qd_fail(err, QD_E_INVALID, "params.reference: model '%.80s' is a %s; a classifier is needed",
                     qd_params_string(p, "reference"), out->role);
    return st;
}

static qd_status check_accuracy(sv_store *store, const char *model_id, const qd_params *p, char pointer[128],
                                qd_err *err)
{
    sv_model_row row = { 0 };
    if (!qd_params_string(p, "reference")[0])
        return QD_OK;
    const qd_status st = find_reference(store, p, &row, err);
    sv_model_row_clear(&row);
    if (st)
        strncpy(pointer, "/params/reference", 128);
    return st;
}

/* --- accuracy --- */

typedef struct work {
    sv_task *t;
    qd_dataset *data;
    sv_classify model, reference;
    int64_t count;
} work;

static json_t *by_class_json(const work *w, const sv_class_count *classes)
{
    json_t *list = json_array();
    for (int64_t k = 0; k < w->model.net.classes; k++) {
        const sv_class_count *c = &classes[k];
        json_t *o = json_pack("{s:I, s:I, s:o}", "class", (json_int_t)k, "count", (json_int_t)c->count, "top1",
                              c->count ? json_real((double)c->right / (double)c->count) : json_null());
        if (w->data->class_name && k < w->data->classes)
            json_object_set_new(o, "name", json_string(w->data->class_name[k])); /* left out where it is not UTF-8 */
        json_array_append_new(list, o);
    }
    return list;
}

static qd_status table(const work *w, bool compared, json_t **out, qd_err *err)
{
    sv_class_count *classes = qd_calloc((size_t)w->model.net.classes, sizeof *classes);
    if (!classes)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld classes", (long long)w->model.net.classes);
    const sv_accuracy a = sv_classify_accuracy(&w->model, w->data, w->count, classes);
    json_t *o = json_pack("{s:s, s:I, s:I, s:f, s:f, s:i, s:o}", "method", "accuracy", "count", (json_int_t)w->count,
                          "right", (json_int_t)a.right, "top1", a.top1, "top5", a.top5, "threads",
                          qd_run_threads(&w->t->run), "by_class", by_class_json(w, classes));
    sv_put_figure(o, "images_per_second", (double)w->count / w->model.seconds);
    if (compared) {
        const sv_accuracy r = sv_classify_accuracy(&w->reference, w->data, w->count, NULL);
        json_object_set_new(o, "reference_right", json_integer(r.right));
        sv_put_figure(o, "reference_top1", r.top1);
        sv_put_figure(o, "reference_top5", r.top5);
        sv_put_figure(o, "reference_images_per_second", (double)w->count / w->reference.seconds);
        sv_put_figure(o, "agreement", sv_classify_agreement(&w->model, &w->reference, w->count));
        sv_put_figure(o, "logits_sqnr_db",
                      qd_sqnr_db(w->reference.logits, w->model.logits, w->count * w->model.net.classes));
    }
    qd_free(classes);
    *out = o;
    return QD_OK;
}

static qd_status open_reference(work *w, qd_err *err)
{
    sv_task *t = w->t;
    sv_model_row row = { 0 };
    qd_status st = find_reference(t->store, t->params, &row, err);
    char *path = st ? NULL : sv_task_file_path(t, &row);
    if (!st && !path)
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = sv_classify_open(path, &t->run, &w->reference, err);
    if (!st && w->reference.net.classes != w->model.net.classes)
        st = qd_fail(err, QD_E_INVALID, "the model tells %lld classes apart, the reference %lld",
                     (long long)w->model.net.classes, (long long)w->reference.net.classes);
    sv_model_row_clear(&row);
    qd_free(path);
    return st;
}

qd_status sv_evaluate_report(sv_task *t, const json_t *figures, qd_err *err)
{
    char *text = sv_json_text(figures), *path = qd_fs_join(t->dir, "report.json");
    qd_status st = text && path ? qd_fs_write(path, text, strlen(text), err)
                                : qd_fail(err, QD_E_NOMEM, "no memory for the report");
    if (!st)
        st = sv_task_artifact(t, "report.json", "application/json", path, err);
    qd_free(text);
    qd_free(path);
    return st;
}

static qd_status run_accuracy(sv_task *t, json_t **result, qd_err *err)
{
    work w = { .t = t };
    json_t *figures = NULL;
    const bool compared = qd_params_string(t->params, "reference")[0] != '\0';
    char *model = sv_task_model_path(t), *data = sv_task_file_path(t, t->dataset);
    qd_status st = model && data ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    qd_run_progress(&t->run, "load", NULL, 0, 1);
    if (!st)
        st = sv_classify_open(model, &t->run, &w.model, err);
    if (!st)
        st = sv_dataset_open(data, t->settings, qd_run_budget(&t->run), &w.data, err);
    if (!st && compared)
        st = open_reference(&w, err);
    if (st)
        goto out;
    w.count = sv_classify_count(t->params, w.data);
    st = sv_classify_answer(&w.model, w.data, t->params, "answers", &t->run, err);
    if (!st && compared)
        st = sv_classify_answer(&w.reference, w.data, t->params, "answers of the reference", &t->run, err);
    if (!st)
        st = table(&w, compared, &figures, err);
    if (!st)
        st = sv_evaluate_report(t, figures, err);
    if (!st) {
        *result = figures;
        figures = NULL;
    }
out:
    json_decref(figures);
    sv_classify_clear(&w.reference);
    sv_classify_clear(&w.model);
    qd_dataset_free(w.data);
    qd_free(model);
    qd_free(data);
    return st;
}

/* --- rows --- */

static const char *const roles[] = { "classifier", "denoiser", "other", NULL };
enum { METHODS = 3 };
static sv_method rows[METHODS];

static void gather(void)
{
    rows[0] = (sv_method){
        .name = "accuracy",
        .summary =
            "Right answers of a classifier on a labelled data set: top-1, top-5, by class; agreement with another.",
        .params = sv_rows_join((const qd_param *const[]){ accuracy_params, sv_classify_rows, NULL }),
        .role = "classifier",
        .needs_data = true,
        .check = check_accuracy,
        .run = run_accuracy,
    };
    rows[1] = (sv_method){
        .name = "fid",
        .summary =
            "Distance of a denoiser's pictures, or of pictures that exist, from a data set in the features of a network: "
            "FID, sFID, KID, precision, recall, inception score.",
        .params = sv_rows_join((const qd_param *const[]){ sv_fid_rows, sv_feature_rows, sv_draw_rows(), NULL }),
        .needs_data = true,
        .takes_statistics = true,
        .check = sv_fid_check,
        .run = sv_fid_run,
    };
    rows[2] = (sv_method){
        .name = "fidelity",
        .summary =
            "A quantized denoiser beside the float one on the same noise: PSNR, SSIM and features of the pictures, noise and "
            "drift step by step.",
        .params = sv_rows_join((const qd_param *const[]){ sv_fidelity_rows, sv_feature_rows, sv_draw_rows(), NULL }),
        .role = "denoiser",
        .check = sv_fidelity_check,
        .run = sv_fidelity_run,
    };
}

static const sv_method *methods(int *n)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, gather);
    *n = METHODS;
    return rows;
}

const sv_kind sv_kind_evaluate = {
    .name = "evaluate",
    .summary = "Measures a model, float or quantized: a table of figures.",
    .methods = methods,
    .default_method = "accuracy",
    .params = common,
    .roles = roles,
    .takes_bundle = true,
    .takes_float = true,
};
