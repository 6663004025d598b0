/* evaluate_fidelity.c - what a quantized denoiser does to the pictures of the float one: same noise through both, compared step by step
 * and picture by picture. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/fidelity_int.h"

enum { FRAME_PAIR = 2, SHOWN_MAX = 200, WORST_MAX = 64 };

/* clang-format off */
const qd_param sv_fidelity_rows[] = {
    { .name = "reference", .type = QD_PARAM_STRING, .fallback = "", .max = 128,
      .summary = "Id or name of the float denoiser; empty: the model this one was quantized from." },
    { .name = "pairs", .type = QD_PARAM_INT, .fallback = "32", .min = 1, .max = 100000,
      .summary = "Pictures drawn twice from the same noise." },
    { .name = "show", .type = QD_PARAM_INT, .fallback = "8", .min = 0, .max = SHOWN_MAX,
      .summary = "How many pairs are shown as they finish." },
    { .name = "worst", .type = QD_PARAM_INT, .fallback = "8", .min = 0, .max = WORST_MAX,
      .summary = "How many of the pairs that differ most are shown together at the end." },
    { .name = NULL },
};
/* clang-format on */

static qd_status find_denoiser(sv_store *store, const qd_params *p, sv_model_row *out, qd_err *err)
{
    qd_status st = sv_evaluate_model(store, p, "reference", out, err);
    if (!st && strcmp(out->role, "denoiser") != 0)
        st = qd_fail(err, QD_E_INVALID, "params.reference: model '%.80s' is a %s; a denoiser is needed",
                     qd_params_string(p, "reference"), out->role);
    return st;
}

qd_status sv_fidelity_check(sv_store *store, const char *model_id, const qd_params *p, char pointer[128], qd_err *err)
{
    sv_model_row row = { 0 };
    qd_status st = QD_OK;
    if (qd_params_string(p, "reference")[0]) {
        st = find_denoiser(store, p, &row, err);
        sv_model_row_clear(&row);
        if (st)
            snprintf(pointer, 128, "/params/reference");
    }
    if (!st && qd_params_string(p, "network")[0]) {
        st = sv_evaluate_model(store, p, "network", &row, err);
        sv_model_row_clear(&row);
        if (st)
            snprintf(pointer, 128, "/params/network");
    }
    return st ? st : sv_condition_check(store, model_id, p, pointer, err);
}

typedef struct work {
    sv_task *t;
    sv_model_row network;
    sv_lens lens;
    sv_drawer side[2]; /* float, quantized */
    int64_t pairs, batch, first, done, total;
    int64_t size;        /* floats of a sample */
    int64_t now;         /* samples of this batch */
    double compared_s;   /* spent in the hook of the float model's sampler */
    sv_step_sums *steps; // [steps]
    float *path;         // [steps, batch, size]: the float model's x_t
    size_t path_bytes;
    float *x[2];           // [batch, size]
    float *eps;            // [batch, size]
    float *both;           // [2, picture]
    float *features;       // [2, dim]
    sv_pair_figures *pair; // [pairs]
    qd_image *shown;       // [2 n_shown]
    qd_image *worst;       // [2 n_worst], the worst first
    int64_t *worst_pair;   // [n_worst]
    int n_shown, n_worst, want_shown, want_worst;
} work;

static void work_clear(work *w)
{
    for (int k = 0; k < 2 * w->n_shown; k++)
        qd_image_clear(&w->shown[k]);
    for (int k = 0; k < 2 * w->n_worst; k++)
        qd_image_clear(&w->worst[k]);
    qd_free(w->shown);
    qd_free(w->worst);
    qd_free(w->worst_pair);
    qd_free(w->pair);
    qd_free(w->features);
    qd_free(w->both);
    qd_free(w->eps);
    qd_free(w->x[0]);
    qd_free(w->x[1]);
    qd_free(w->path);
    qd_budget_give(qd_run_budget(&w->t->run), w->path_bytes);
    qd_free(w->steps);
    sv_drawer_clear(&w->side[1]);
    sv_drawer_clear(&w->side[0]); /* the other one is told what this one is */
    sv_lens_clear(&w->lens);
    sv_model_row_clear(&w->network);
}

static void progress(work *w)
{
    qd_run_progress(&w->t->run, "pairs", NULL, ++w->done, w->total);
}

static void add_values(sv_step_sums *s, int side, const float *x, int64_t n)
{
    double sum = 0.0, squares = 0.0;
    for (int64_t k = 0; k < n; k++) {
        sum += x[k];
        squares += (double)x[k] * x[k];
    }
    s->sum[side] += sum;
    s->squares[side] += squares;
}

/* --- one batch --- */

/* What the quantized network says of the float model's x_t, uncorrected; in eps, whatever it predicts (diffusion_models.md 7). */
static qd_status on_eps(void *ctx, int step, int t, int t_prev, const float *x, float *eps, double *sigma, qd_err *err)
{
    work *w = ctx;
    const double start = sv_now_s();
    const qd_predictor p = qd_corrected_predictor(w->side[1].corrected);
    const qd_schedule *s = w->side[1].model.schedule;
    const double abar = s->alpha_bar[t], a = sqrt(abar), noise = sqrt(1.0 - abar);
    const int64_t n = w->now * w->size;
    qd_predictor_seat(&p, w->first);
    const qd_status st = p.predict(p.ctx, &w->side[1].quiet, x, t, w->eps, err);
    if (st)
        return st;
    for (int64_t k = 0; k < n && s->prediction == QD_PREDICT_V; k++)
        w->eps[k] = (float)(a * w->eps[k] + noise * x[k]);
    for (int64_t k = 0; k < n && s->prediction == QD_PREDICT_SAMPLE; k++)
        w->eps[k] = (float)((x[k] - a * w->eps[k]) / noise);
    qd_sqnr_add(&w->steps[step].eps, eps, w->eps, n);
    w->compared_s += sv_now_s() - start;
    return QD_OK;
}

static qd_status float_stepped(void *ctx, int step, int steps, int t, const float *x, qd_err *err)
{
    work *w = ctx;
    const int64_t n = w->now * w->size;
    w->steps[step].t = t;
    w->steps[step].n += n;
    add_values(&w->steps[step], 0, x, n);
    memcpy(w->path + step * w->batch * w->size, x, (size_t)n * sizeof *x);
    progress(w);
    return QD_OK;
}

static qd_status quantized_stepped(void *ctx, int step, int steps, int t, const float *x, qd_err *err)
{
    work *w = ctx;
    sv_step_sums *s = &w->steps[step];
    const float *want = w->path + step * w->batch * w->size;
    const int64_t n = w->now * w->size;
    add_values(s, 1, x, n);
    qd_sqnr_add(&s->x, want, x, n);
    for (int64_t k = 0; k < n; k++) {
        s->xy += (double)want[k] * x[k];
        s->xx += (double)want[k] * want[k];
        s->yy += (double)x[k] * x[k];
    }
    progress(w);
    return QD_OK;
}

/* Distance of the two pictures in features; both go through the network in one call. */
static qd_status compare_features(work *w, const sv_drawn *a, sv_pair_figures *f, qd_err *err)
{
    const int64_t dim = qd_features_sizes(w->lens.features).dim;
    double sum = 0.0;
    const qd_status st = qd_features_of_samples(w->lens.features, w->both, 2, a->channels, a->height, a->width,
                                                &w->t->run, w->features, NULL, NULL, err);
    if (st)
        return st;
    for (int64_t k = 0; k < dim; k++)
        sum += pow((double)w->features[k] - (double)w->features[dim + k], 2);
    f->feature_distance = sqrt(sum);
    f->feature_cosine = qd_cosine(w->features, w->features + dim, dim);
    return QD_OK;
}

/* The pair takes its place among the worst, or is let go. */
static void keep_worst(work *w, int64_t k, qd_image *both)
{
    int at = w->n_worst;
    while (at > 0 && w->pair[w->worst_pair[at - 1]].psnr_db > w->pair[k].psnr_db)
        at--;
    if (at == w->want_worst || isinf(w->pair[k].psnr_db)) {
        qd_image_clear(&both[0]);
        qd_image_clear(&both[1]);
        return;
    }
    if (w->n_worst == w->want_worst) {
        w->n_worst--;
        qd_image_clear(&w->worst[2 * w->n_worst]);
        qd_image_clear(&w->worst[2 * w->n_worst + 1]);
    }
    memmove(&w->worst[2 * at + 2], &w->worst[2 * at], (size_t)(2 * (w->n_worst - at)) * sizeof *w->worst);
    memmove(&w->worst_pair[at + 1], &w->worst_pair[at], (size_t)(w->n_worst - at) * sizeof *w->worst_pair);
    w->worst[2 * at] = both[0];
    w->worst[2 * at + 1] = both[1];
    w->worst_pair[at] = k;
    w->n_worst++;
}

static qd_status copy_image(qd_image *dst, const qd_image *src, qd_err *err)
{
    return qd_image_zoom(src, 1, dst, err);
}

static qd_status show(work *w, const qd_image *both, double psnr_db, qd_err *err)
{
    qd_status st = QD_OK;
    if (w->n_shown == w->want_shown)
        return QD_OK;
    qd_image *to = &w->shown[2 * w->n_shown];
    st = copy_image(&to[0], &both[0], err);
    if (!st && (st = copy_image(&to[1], &both[1], err)))
        qd_image_clear(&to[0]);
    if (st)
        return st;
    return sv_drawer_show(&w->side[0], FRAME_PAIR, both, 2, w->n_shown++, psnr_db, err);
}

/* Sample k of this batch: two pictures, all that can be said of them. The first stage of the float model decodes both. */
static qd_status compare_pictures(work *w, int64_t k, qd_err *err)
{
    qd_image both[2] = { { 0 } };
    sv_drawn p = { 0 };
    sv_pair_figures *f = &w->pair[w->first + k];
    const float *a = w->x[0] + k * w->size, *b = w->x[1] + k * w->size;
    int64_t n = 0;
    qd_status st = QD_OK;

    for (int side = 0; side < 2 && !st; side++) {
        st = sv_drawer_picture(&w->side[0], w->x[side] + k * w->size, &p, err);
        if (st)
            break;
        n = (int64_t)p.channels * p.height * p.width;
        if (!w->both)
            w->both = qd_calloc(2, (size_t)n * sizeof *w->both);
        if (w->both)
            memcpy(w->both + side * n, p.floats, (size_t)n * sizeof *w->both);
        else
            st = qd_fail(err, QD_E_NOMEM, "no memory for two pictures");
        both[side] = p.image;
    }
    if (st)
        goto out;
    *f = (sv_pair_figures){ .psnr_db = qd_image_psnr_db(&both[0], &both[1]),
                            .ssim = qd_ssim(&both[0], &both[1]),
                            .mse = qd_mse(w->both, w->both + n, n),
                            .cosine = qd_cosine(a, b, w->size),
                            .feature_distance = NAN,
                            .feature_cosine = NAN };
    if (w->lens.features)
        st = compare_features(w, &p, f, err);
    if (!st)
        st = show(w, both, f->psnr_db, err);
    if (!st) {
        keep_worst(w, w->first + k, both);
        return QD_OK;
    }
out:
    qd_image_clear(&both[0]);
    qd_image_clear(&both[1]);
    return st;
}

static qd_status draw_batch(work *w, qd_err *err)
{
    const qd_sampler_hook float_hook = { .ctx = w, .eps = on_eps, .stepped = float_stepped };
    const qd_sampler_hook quantized_hook = { .ctx = w, .stepped = quantized_stepped };
    qd_status st = sv_drawer_batch(&w->side[1], w->now, err); /* the hook asks it */
    if (!st)
        st = sv_drawer_run(&w->side[0], w->first, w->now, &float_hook, w->x[0], err);
    if (!st)
        st = sv_drawer_run(&w->side[1], w->first, w->now, &quantized_hook, w->x[1], err);
    for (int64_t k = 0; k < w->now && !st; k++)
        st = compare_pictures(w, k, err);
    return st;
}

static qd_status publish_sheet(const work *w, const qd_image *images, int n, const char *name, qd_err *err)
{
    if (n == 0)
        return QD_OK;
    char *path = qd_fs_join(w->t->dir, name);
    qd_status st =
        path ? sv_pictures_save(images, 2 * n, true, path, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = sv_task_artifact(w->t, name, "image/png", path, err);
    qd_free(path);
    return st;
}

static qd_status publish(const work *w, json_t **result, qd_err *err)
{
    const sv_fidelity f = { .t = w->t,
                            .side = w->side,
                            .lens = &w->lens,
                            .network = &w->network,
                            .pairs = w->pairs,
                            .steps = w->steps,
                            .pair = w->pair,
                            .worst = w->worst_pair,
                            .n_worst = w->n_worst,
                            .compared_s = w->compared_s };
    json_t *o = NULL;
    qd_status st = sv_fidelity_figures(&f, &o, err);
    if (!st)
        st = sv_fidelity_report(&f, o, err);
    if (!st)
        st = publish_sheet(w, w->shown, w->n_shown, "pairs.png", err);
    if (!st)
        st = publish_sheet(w, w->worst, w->n_worst, "worst.png", err);
    if (st)
        json_decref(o);
    else
        *result = o;
    return st;
}

/* --- the job --- */

/* The float model: the one that is named, or the one this bundle was made from. */
static qd_status open_reference(work *w, qd_err *err)
{
    sv_task *t = w->t;
    sv_model_row row = { 0 };
    char *path = NULL;
    qd_status st = QD_OK;
    if (qd_params_string(t->params, "reference")[0]) {
        st = find_denoiser(t->store, t->params, &row, err);
        if (!st && !(path = sv_task_file_path(t, &row)))
            st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
    } else {
        st = sv_model_source(t, w->side[1].model.model, &path, err);
        if (!st && !path)
            st = qd_fail(err, QD_E_INVALID,
                         "the model that '%.80s' was quantized from is not here: give reference=.. (a denoiser)",
                         t->model->name);
    }
    if (!st)
        st = sv_drawer_open(&w->side[0], t, path, NULL, err);
    qd_free(path);
    sv_model_row_clear(&row);
    return st;
}

static qd_status open_both(work *w, qd_err *err)
{
    sv_task *t = w->t;
    char *path = sv_task_model_path(t);
    qd_status st = path ? sv_drawer_open(&w->side[1], t, path, &w->side[0], err)
                        : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    qd_free(path);
    if (!st)
        st = open_reference(w, err);
    if (st)
        return st;
    w->side[1].told = w->side[0].told;
    const sv_denoise *a = &w->side[0].model, *b = &w->side[1].model;
    if (a->channels != b->channels || a->height != b->height || a->width != b->width)
        return qd_fail(err, QD_E_INVALID, "the model draws %lld x %lld x %lld, the reference %lld x %lld x %lld",
                       (long long)b->channels, (long long)b->height, (long long)b->width, (long long)a->channels,
                       (long long)a->height, (long long)a->width);
    if (!qd_params_string(t->params, "network")[0])
        return QD_OK;
    st = sv_evaluate_model(t->store, t->params, "network", &w->network, err);
    return st ? st : sv_lens_open(&w->lens, t, &w->network, 2, err);
}

static qd_status take_memory(work *w, qd_err *err)
{
    const size_t batch = (size_t)w->batch, size = (size_t)w->size * sizeof(float);
    const int steps = w->side[0].options.steps;
    size_t all;
    if (!qd_mul_size(batch * (size_t)steps, size, &all))
        return qd_fail(err, QD_E_LIMIT, "%lld trajectories of %d steps are too many", (long long)w->batch, steps);
    qd_status st = qd_budget_draw(qd_run_budget(&w->t->run), all, "trajectories", err);
    if (st)
        return st;
    w->path_bytes = all;
    w->steps = qd_calloc((size_t)steps, sizeof *w->steps);
    w->path = qd_alloc(all);
    w->x[0] = qd_calloc(batch, size);
    w->x[1] = qd_calloc(batch, size);
    w->eps = qd_calloc(batch, size);
    w->pair = qd_calloc((size_t)w->pairs, sizeof *w->pair);
    w->features = qd_calloc(w->lens.features ? (size_t)qd_features_sizes(w->lens.features).dim : 1, 2 * sizeof(float));
    w->shown = qd_calloc((size_t)w->want_shown, 2 * sizeof *w->shown);
    w->worst = qd_calloc((size_t)w->want_worst + 1, 2 * sizeof *w->worst);
    w->worst_pair = qd_calloc((size_t)w->want_worst + 1, sizeof *w->worst_pair);
    if (!w->steps || !w->path || !w->x[0] || !w->x[1] || !w->eps || !w->pair || !w->features || !w->shown ||
        !w->worst || !w->worst_pair)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld trajectories of %d steps", (long long)w->batch, steps);
    return QD_OK;
}

qd_status sv_fidelity_run(sv_task *t, json_t **result, qd_err *err)
{
    work w = { .t = t };

    w.pairs = qd_params_int(t->params, "pairs");
    w.batch = qd_params_int(t->params, "batch");
    w.batch = w.batch < w.pairs ? w.batch : w.pairs;
    w.want_shown = (int)qd_params_int(t->params, "show");
    w.want_worst = (int)qd_params_int(t->params, "worst");
    qd_run_progress(&t->run, "load", NULL, 0, 1);
    qd_status st = open_both(&w, err);
    if (st)
        goto out;
    w.size = sv_denoise_size(&w.side[0].model);
    w.total = 2 * ((w.pairs + w.batch - 1) / w.batch) * w.side[0].options.steps;
    st = take_memory(&w, err);
    for (; w.first < w.pairs && !st; w.first += w.batch) {
        w.now = w.pairs - w.first < w.batch ? w.pairs - w.first : w.batch;
        st = draw_batch(&w, err);
    }
    if (!st)
        st = publish(&w, result, err);
out:
    work_clear(&w);
    return st;
}
