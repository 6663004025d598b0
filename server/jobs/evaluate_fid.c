/* evaluate_fid.c - how far pictures are from a data set in the features of a network: FID and its relatives. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/evaluate_int.h"

enum { FRAME_SAMPLE = 1, SHOWN_MAX = 400 };

/* clang-format off */
const qd_param sv_fid_rows[] = {
    { .name = "generated", .type = QD_PARAM_STRING, .fallback = "", .max = 128,
      .summary = "Pictures that exist already: id or name of a data set, or id of a sample job; empty: the model draws. When the model is the feature network itself, they must be given." },
    { .name = "count", .type = QD_PARAM_INT, .fallback = "2000", .min = 0, .max = 1000000,
      .summary = "How many pictures are drawn, or the first so many of those that exist; 0 = all of these." },
    { .name = "limit", .type = QD_PARAM_INT, .fallback = "0", .min = 0, .max = 10485760,
      .summary = "How many pictures of the data set are the reference, the first; 0 = all." },
    { .name = "rows", .type = QD_PARAM_INT, .fallback = "10000", .min = 0, .max = 100000,
      .summary = "Pictures of each set, at most, that kernel distance, precision and recall look at; 0 = no such figures." },
    { .name = "kid_subsets", .type = QD_PARAM_INT, .fallback = "100", .min = 0, .max = 1000,
      .summary = "Random subsets of the kernel distance; 0 = leave it out." },
    { .name = "kid_size", .type = QD_PARAM_INT, .fallback = "1000", .min = 2, .max = 10000,
      .summary = "Pictures of each set in a subset." },
    { .name = "neighbours", .type = QD_PARAM_INT, .fallback = "3", .min = 0, .max = 64,
      .summary = "Which neighbour a picture's ball reaches for precision, recall, density and coverage; 0 = leave them out." },
    { .name = "resamples", .type = QD_PARAM_INT, .fallback = "20", .min = 0, .max = 1000,
      .summary = "Resamples for the standard error of the FID and its value at endless pictures; 0 = leave them out." },
    { .name = "chunk", .type = QD_PARAM_INT, .fallback = "5000", .min = 1, .max = 1000000,
      .summary = "Pictures in a chunk of the inception score." },
    { .name = "show", .type = QD_PARAM_INT, .fallback = "16", .min = 0, .max = SHOWN_MAX,
      .summary = "How many of the drawn pictures are shown." },
    { .name = NULL },
};
/* clang-format on */

/* --- what can be told at once --- */

static qd_status refuse(char pointer[128], const char *param, qd_err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static qd_status refuse(char pointer[128], const char *param, qd_err *err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    snprintf(pointer, 128, "/params/%s", param);
    const qd_status st = qd_failv(err, QD_E_INVALID, fmt, ap);
    va_end(ap);
    return st;
}

static bool is_job(const char *name)
{
    return strncmp(name, "job_", 4) == 0;
}

static qd_status check_job(sv_store *store, const char *id, char pointer[128], qd_err *err)
{
    sv_job_row row = { 0 };
    qd_status st = sv_jobs_get(store, id, &row, err);
    if (st == QD_E_NOT_FOUND)
        return refuse(pointer, "generated", err, "params.generated: job '%.80s' does not exist", id);
    if (!st && strcmp(row.kind, "sample") != 0)
        st = refuse(pointer, "generated", err, "params.generated: job '%.80s' is of kind '%s'; sample is needed", id,
                    row.kind);
    else if (!st && strcmp(row.status, "succeeded") != 0)
        st = refuse(pointer, "generated", err,
                    "params.generated: job '%.80s' is %s; its pictures are there once it has "
                    "succeeded",
                    id, row.status);
    sv_job_row_clear(&row);
    return st;
}

static qd_status check_generated(sv_store *store, const char *name, char pointer[128], qd_err *err)
{
    sv_dataset_row row = { 0 };
    if (is_job(name))
        return check_job(store, name, pointer, err);
    qd_status st = sv_datasets_get(store, name, &row, err);
    if (st == QD_E_NOT_FOUND)
        return refuse(pointer, "generated", err, "params.generated: data set '%.80s' does not exist", name);
    if (!st && (strcmp(row.role, SV_ROLE_CONTEXT) == 0 || strcmp(row.role, SV_ROLE_STATISTICS) == 0))
        st = refuse(pointer, "generated", err, "params.generated: data set '%.80s' holds no pictures but a %s", name,
                    row.role);
    sv_model_row_clear(&row);
    return st;
}

static qd_status check_network(sv_store *store, const qd_params *p, char pointer[128], qd_err *err)
{
    sv_model_row row = { 0 };
    qd_status st = sv_evaluate_model(store, p, "network", &row, err);
    if (!st && strcmp(row.role, "denoiser") == 0)
        st =
            qd_fail(err, QD_E_INVALID, "params.network: model '%.80s' is a denoiser; one that reads pictures is needed",
                    qd_params_string(p, "network"));
    sv_model_row_clear(&row);
    if (st)
        snprintf(pointer, 128, "/params/network");
    return st;
}

qd_status sv_fid_check(sv_store *store, const char *model_id, const qd_params *p, char pointer[128], qd_err *err)
{
    const char *network = qd_params_string(p, "network"), *generated = qd_params_string(p, "generated");
    sv_model_row model = { 0 };
    qd_status st = sv_models_get(store, model_id, &model, err);
    if (st)
        return st;
    const bool draws = strcmp(model.role, "denoiser") == 0;
    sv_model_row_clear(&model);
    if (draws && !network[0])
        st = refuse(pointer, "network", err,
                    "params.network must name the model in whose features the pictures of this denoiser are compared");
    else if (!draws && network[0])
        st = refuse(pointer, "network", err,
                    "params.network: the model of this job is no denoiser, so it is the feature network already");
    else if (!draws && !generated[0])
        st = refuse(pointer, "generated", err, "params.generated must name pictures: the model of this job draws none");
    else if (!generated[0] && qd_params_int(p, "count") < 2)
        st = refuse(pointer, "count", err, "params.count must be 2 or more when pictures are drawn, got %lld",
                    (long long)qd_params_int(p, "count"));
    if (!st && network[0])
        st = check_network(store, p, pointer, err);
    if (!st && generated[0])
        st = check_generated(store, generated, pointer, err);
    else if (!st)
        st = sv_condition_check(store, model_id, p, pointer, err);
    return st;
}

/* --- the job --- */

typedef struct work {
    sv_task *t;
    sv_model_row found;          /* params.network */
    const sv_model_row *network; /* it, or the job's model */
    sv_lens lens;
    sv_reference reference;
    qd_feature_stats *generated;
    sv_drawer drawer;
    int64_t count, batch, first; /* first: of the batch that is drawn */
    qd_image *shown;             // [n_shown]
    int n_shown, wanted_shown;
    float *x;        // [batch, C, H, W]
    float *pictures; // [batch, channels, height, width]: decoded
    int channels, height, width;
} work;

static void work_clear(work *w)
{
    for (int k = 0; k < w->n_shown; k++)
        qd_image_clear(&w->shown[k]);
    qd_free(w->shown);
    qd_free(w->x);
    qd_free(w->pictures);
    sv_drawer_clear(&w->drawer);
    qd_feature_stats_free(w->generated);
    sv_reference_clear(&w->reference);
    sv_lens_clear(&w->lens);
    sv_model_row_clear(&w->found);
}

/* --- pictures that are drawn --- */

static qd_status stepped(void *ctx, int step, int steps, int t, const float *x, qd_err *err)
{
    work *w = ctx;
    const int64_t batches = (w->count + w->batch - 1) / w->batch;
    qd_run_progress(&w->t->run, "sample", NULL, w->first / w->batch * steps + step + 1, batches * steps);
    return QD_OK;
}

static qd_status take_picture(work *w, const float *sample, int64_t k, qd_err *err)
{
    sv_drawn p = { 0 };
    qd_status st = sv_drawer_picture(&w->drawer, sample, &p, err);
    if (st)
        return st;
    const size_t size = (size_t)p.channels * (size_t)p.height * (size_t)p.width;
    if (!w->pictures) {
        w->channels = p.channels;
        w->height = p.height;
        w->width = p.width;
        w->pictures = qd_calloc((size_t)w->batch, size * sizeof *w->pictures);
        if (!w->pictures)
            st = qd_fail(err, QD_E_NOMEM, "no memory for %lld pictures", (long long)w->batch);
    }
    if (!st)
        memcpy(w->pictures + (size_t)k * size, p.floats, size * sizeof *w->pictures);
    if (!st && w->n_shown < w->wanted_shown) {
        st = sv_drawer_show(&w->drawer, FRAME_SAMPLE, &p.image, 1, w->first + k, NAN, err);
        w->shown[w->n_shown++] = p.image;
        p.image = (qd_image){ 0 };
    }
    qd_image_clear(&p.image);
    return st;
}

static qd_status draw_all(work *w, qd_err *err)
{
    const sv_task *t = w->t;
    const qd_sampler_hook hook = { .ctx = w, .stepped = stepped };
    char *path = sv_task_model_path(t);
    qd_status st =
        path ? sv_drawer_open(&w->drawer, w->t, path, NULL, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    qd_free(path);
    if (st)
        return st;
    const int64_t size = sv_denoise_size(&w->drawer.model);
    w->wanted_shown = (int)qd_params_int(t->params, "show");
    w->shown = qd_calloc((size_t)w->wanted_shown, sizeof *w->shown);
    w->x = qd_calloc((size_t)w->batch, (size_t)size * sizeof *w->x);
    if (!w->shown || !w->x)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld pictures", (long long)w->batch);
    for (w->first = 0; w->first < w->count && !st; w->first += w->batch) {
        const int64_t left = w->count - w->first, n = left < w->batch ? left : w->batch;
        st = sv_drawer_run(&w->drawer, w->first, n, &hook, w->x, err);
        for (int64_t k = 0; k < n && !st; k++)
            st = take_picture(w, w->x + k * size, k, err);
        if (!st)
            st = qd_feature_stats_add(w->generated, w->lens.features, w->pictures, n, w->channels, w->height, w->width,
                                      &t->run, err);
    }
    return st;
}

/* --- pictures that exist --- */

static qd_status take_job(work *w, const char *id, qd_err *err)
{
    sv_task *t = w->t;
    sv_artifact_row row = { 0 };
    qd_weights *weights = NULL;
    char *path = NULL;
    qd_status st = sv_artifacts_get(t->store, id, "samples.safetensors", &row, err);
    if (!st && !(path = sv_data_path(t->settings, row.path, NULL)))
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = qd_safetensors_open(path, &weights, NULL, err);
    const qd_tensor *x = st ? NULL : qd_weights_find(weights, "samples");
    if (!st && (!x || x->dtype != QD_F32 || x->shape.rank != 4))
        st = qd_fail(err, QD_E_INVALID, "params.generated: job '%.80s' left %s, no pictures", id,
                     qd_weights_find(weights, "latents") ? "latents" : "nothing");
    if (!st) {
        const int64_t *dim = x->shape.dim;
        w->count = w->count > 0 && w->count < dim[0] ? w->count : dim[0];
        st = qd_feature_stats_add(w->generated, w->lens.features, x->data, w->count, (int)dim[1], (int)dim[2],
                                  (int)dim[3], &t->run, err);
    }
    qd_weights_free(weights);
    qd_free(path);
    sv_artifact_row_clear(&row);
    return st;
}

static qd_status take_dataset(work *w, const char *name, qd_err *err)
{
    sv_task *t = w->t;
    sv_dataset_row row = { 0 };
    qd_dataset *d = NULL;
    char *path = NULL;
    qd_status st = sv_datasets_get(t->store, name, &row, err);
    if (!st && !(path = sv_task_file_path(t, &row)))
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = sv_dataset_open(path, t->settings, qd_run_budget(&t->run), &d, err);
    if (!st) {
        w->count = w->count > 0 && w->count < d->count ? w->count : d->count;
        st = qd_feature_stats_add_dataset(w->generated, w->lens.features, d, NULL, w->count, "features", &t->run, err);
    }
    qd_dataset_free(d);
    qd_free(path);
    sv_model_row_clear(&row);
    return st;
}

/* --- figures --- */

static void put_range(json_t *o, const qd_feature_stats *s, const char *mean, const char *std)
{
    qd_inception_score is;
    if (qd_inception_score_of(s, &is, NULL))
        return;
    sv_put_figure(o, mean, is.mean);
    sv_put_figure(o, std, is.chunks > 1 ? is.std : NAN);
}

/* Kernel distance and neighbours, of the rows that both sets kept. */
static qd_status put_sets(const work *w, json_t *o, qd_err *err)
{
    const qd_params *p = w->t->params;
    const qd_run *run = &w->t->run;
    const int64_t dim = qd_feature_stats_dim(w->generated), k = qd_params_int(p, "neighbours");
    const int64_t subsets = qd_params_int(p, "kid_subsets");
    int64_t na, nb;
    const float *a = qd_feature_stats_rows(w->generated, &na), *b = qd_feature_stats_rows(w->reference.stats, &nb);
    qd_kid kid;
    qd_manifold m;
    qd_status st = QD_OK;

    if (na < 2 || nb < 2) {
        if (qd_params_int(p, "rows") > 0)
            qd_run_warn(run, "no kernel distance, precision and recall: the reference keeps no features of pictures");
        return QD_OK;
    }
    json_object_set_new(o, "rows_generated", json_integer(na));
    json_object_set_new(o, "rows_reference", json_integer(nb));
    if (subsets > 0) {
        st = qd_kid_of(a, na, b, nb, dim, (int)subsets, qd_params_int(p, "kid_size"), run->seed, run, &kid, err);
        if (st)
            return st;
        sv_put_figure(o, "kid", kid.mean);
        sv_put_figure(o, "kid_std", kid.std);
        sv_put_figure(o, "kid_error", kid.error);
        json_object_set_new(o, "kid_subsets", json_integer(kid.subsets));
        json_object_set_new(o, "kid_size", json_integer(kid.size));
    }
    if (k > 0 && (na <= k || nb <= k)) {
        qd_run_warn(run, "no precision and recall: %lld and %lld pictures have no %lld neighbours each", (long long)na,
                    (long long)nb, (long long)k);
    } else if (k > 0) {
        st = qd_manifold_of(a, na, b, nb, dim, (int)k, run, &m, err);
        if (st)
            return st;
        sv_put_figure(o, "precision", m.precision);
        sv_put_figure(o, "recall", m.recall);
        sv_put_figure(o, "density", m.density);
        sv_put_figure(o, "coverage", m.coverage);
    }
    return QD_OK;
}

static qd_status put_spread(const work *w, json_t *o, qd_err *err)
{
    const int resamples = (int)qd_params_int(w->t->params, "resamples");
    qd_fid_spread s;
    int64_t rows;
    qd_feature_stats_rows(w->generated, &rows);
    if (resamples == 0)
        return QD_OK;
    if (rows < qd_feature_stats_count(w->generated)) {
        qd_run_warn(&w->t->run, "no standard error of the FID: features of %lld of %lld pictures were kept",
                    (long long)rows, (long long)qd_feature_stats_count(w->generated));
        return QD_OK;
    }
    const qd_status st =
        qd_fid_spread_of(w->generated, w->reference.stats, resamples, w->t->run.seed, &w->t->run, &s, err);
    if (!st) {
        sv_put_figure(o, "fid_error", s.std);
        sv_put_figure(o, "fid_infinity", s.infinity);
    }
    return st;
}

static qd_status figures(const work *w, json_t **out, qd_err *err)
{
    const sv_task *t = w->t;
    const int threads = qd_run_threads(&t->run);
    const int64_t n = qd_feature_stats_count(w->generated), dim = qd_feature_stats_dim(w->generated);
    double fid = NAN, sfid = NAN;
    qd_run_progress(&t->run, "distance", NULL, 0, 1);
    qd_status st = qd_fid(w->generated, w->reference.stats, threads, &fid, err);
    if (!st && qd_feature_stats_has_spatial(w->generated) && qd_feature_stats_has_spatial(w->reference.stats))
        st = qd_sfid(w->generated, w->reference.stats, threads, &sfid, err);
    if (st)
        return st;
    qd_run_progress(&t->run, "distance", NULL, 1, 1);
    if (n <= dim)
        qd_run_warn(&t->run, "%lld pictures do not span %lld features: the FID is mostly the number of pictures",
                    (long long)n, (long long)dim);
    json_t *o = json_pack("{s:s, s:I, s:I, s:s, s:s, s:i}", "method", "fid", "count", (json_int_t)n, "reference_count",
                          (json_int_t)qd_feature_stats_count(w->reference.stats), "reference", w->reference.from,
                          "feature_hash", w->lens.hash, "threads", threads);
    sv_put_figure(o, "fid", fid);
    sv_put_figure(o, "sfid", sfid);
    put_range(o, w->generated, "inception_score", "inception_score_std");
    put_range(o, w->reference.stats, "reference_inception_score", "reference_inception_score_std");
    st = put_sets(w, o, err);
    if (!st)
        st = put_spread(w, o, err);
    if (st) {
        json_decref(o);
        return st;
    }
    json_object_set_new(o, "seed", json_integer((json_int_t)t->run.seed));
    json_object_set_new(o, "features", sv_lens_json(&w->lens, t, w->network));
    if (w->drawer.sampler)
        json_object_set_new(o, "drawn", sv_drawer_json(&w->drawer));
    else
        json_object_set_new(o, "generated", json_string(qd_params_string(t->params, "generated")));
    *out = o;
    return QD_OK;
}

static qd_status publish(work *w, const json_t *o, qd_err *err)
{
    qd_status st = sv_evaluate_report(w->t, o, err);
    if (!st)
        st = sv_statistics_publish(w->t, &w->lens, w->generated, "generated.safetensors", err);
    if (!st && strcmp(w->reference.from, "computed") == 0)
        st = sv_statistics_publish(w->t, &w->lens, w->reference.stats, "reference.safetensors", err);
    if (st || w->n_shown == 0)
        return st;
    char *sheet = qd_fs_join(w->t->dir, "samples.png");
    st = sheet ? sv_pictures_save(w->shown, w->n_shown, false, sheet, err)
               : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = sv_task_artifact(w->t, "samples.png", "image/png", sheet, err);
    qd_free(sheet);
    return st;
}

qd_status sv_fid_run(sv_task *t, json_t **result, qd_err *err)
{
    work w = { .t = t, .network = t->model };
    const char *generated = qd_params_string(t->params, "generated");
    json_t *o = NULL;
    qd_status st = QD_OK;

    w.count = qd_params_int(t->params, "count");
    w.batch = qd_params_int(t->params, "batch");
    qd_run_progress(&t->run, "load", NULL, 0, 1);
    if (qd_params_string(t->params, "network")[0]) {
        st = sv_evaluate_model(t->store, t->params, "network", &w.found, err);
        w.network = &w.found;
    }
    if (!st)
        st = sv_lens_open(&w.lens, t, w.network, w.batch, err);
    if (!st)
        st = sv_reference_open(&w.reference, t, &w.lens, err);
    if (!st)
        st = qd_feature_stats_new(w.lens.features, qd_params_int(t->params, "rows"), qd_params_int(t->params, "chunk"),
                                  qd_run_budget(&t->run), &w.generated, err);
    if (!st)
        st = is_job(generated) ? take_job(&w, generated, err)
             : generated[0]    ? take_dataset(&w, generated, err)
                               : draw_all(&w, err);
    if (!st)
        st = figures(&w, &o, err);
    if (!st)
        st = publish(&w, o, err);
    if (!st) {
        *result = o;
        o = NULL;
    }
    json_decref(o);
    work_clear(&w);
    return st;
}
