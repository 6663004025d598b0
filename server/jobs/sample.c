/* sample.c - the job that draws pictures from a denoiser, float or quantized. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"

enum { MAX_METHODS = 32, FRAME_SAMPLE = 1, SHEET_PICTURES = 400 };

static const char *const corrections[] = { "auto", "none", "compat", "probe", "table", "conditional", "both", NULL };

static const qd_param common[] = {
    { .name = "count", .type = QD_PARAM_INT, .summary = "How many pictures.", .fallback = "16", .min = 1, .max = 4096 },
    { .name = "batch",
      .type = QD_PARAM_INT,
      .summary = "How many of them are drawn together; a picture does not depend on it.",
      .fallback = "8",
      .min = 1,
      .max = 256 },
    { .name = "preview_every",
      .type = QD_PARAM_INT,
      .summary = "Every so many steps show what the first picture of the batch is going to be; 0 = never.",
      .fallback = "0",
      .min = 0,
      .max = 10000 },
    { .name = "seed",
      .type = QD_PARAM_INT,
      .summary = "Seed of the noise: same model, params and seed, same bytes.",
      .fallback = "0",
      .min = 0,
      .max = 9007199254740991.0 },
    { .name = "correction",
      .type = QD_PARAM_CHOICE,
      .summary =
          "What is done about the noise that quantization adds: auto as the model was quantized for, or another of "
          "qncd's ways, where the model carries what it needs.",
      .fallback = "auto",
      .choices = corrections },
    { .name = NULL },
};

static const char *const roles[] = { "denoiser", NULL };

static sv_method rows[MAX_METHODS]; /* the core's samplers, gathered once */
static int n_rows;

static void gather(void)
{
    for (int k = 0; qd_samplers[k] && n_rows < MAX_METHODS; k++)
        rows[n_rows++] = (sv_method){
            .name = qd_samplers[k]->name,
            .summary = qd_samplers[k]->summary,
            .params = sv_rows_join((const qd_param *const[]){ qd_samplers[k]->params, sv_condition_rows, NULL }),
            .check = sv_condition_check,
        };
}

static const sv_method *methods(int *n)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, gather);
    *n = n_rows;
    return rows;
}

typedef struct work {
    sv_task *t;
    sv_denoise model;
    const qd_sampler *sampler;
    qd_sample_options options;
    qd_run quiet;      /* the job's run without the sampler's own progress */
    qd_tensor samples; // [count, C, H, W]: pictures, or latents
    int count, batch, preview_every;
    int first;         /* number of the batch's first picture */
    int step;          /* of the current batch */
    float *preview;    // [C, H, W]
    double seconds;    /* spent in the sampler */
    int calls, probes; /* of the network for each picture; of these the correction's own */
    qd_image *images;  // [count]
} work;

static qd_status push(work *w, const qd_image *im, int64_t step, int64_t index, qd_err *err)
{
    qd_image zoomed = { 0 };
    qd_buf png;
    qd_status st;

    qd_buf_init(&png, 0);
    st = qd_image_zoom(im, sv_picture_zoom(im->height), &zoomed, err);
    if (!st)
        st = qd_png_encode(&zoomed, &png, err);
    if (!st)
        st = sv_task_sample(w->t, FRAME_SAMPLE, step, index, png.data, png.size, zoomed.width, zoomed.height, NAN, err);
    qd_buf_clear(&png);
    qd_image_clear(&zoomed);
    return st;
}

/* The picture that x and its noise point at: x0 of diffusion_models.md 8. */
static qd_status on_eps(void *ctx, int step, int t, int t_prev, const float *x, float *eps, double *sigma, qd_err *err)
{
    work *w = ctx;
    qd_image im = { 0 };
    if (w->preview_every == 0 || step % w->preview_every != 0)
        return QD_OK;
    const double start = sv_now_s();
    const double abar = w->model.schedule->alpha_bar[t], root = sqrt(abar), noise = sqrt(1.0 - abar);
    const int64_t n = sv_denoise_size(&w->model);
    for (int64_t k = 0; k < n; k++)
        w->preview[k] = (float)((x[k] - noise * eps[k]) / root);
    qd_status st = sv_picture(&w->model, &w->quiet, w->preview, &im, err);
    if (!st)
        st = push(w, &im, step, w->first, err);
    qd_image_clear(&im);
    w->seconds -= sv_now_s() - start; /* showing is not drawing */
    return st;
}

static qd_status on_stepped(void *ctx, int step, int steps, int t, const float *x, qd_err *err)
{
    work *w = ctx;
    qd_run_progress(&w->t->run, "sample", NULL, (int64_t)w->first / w->batch * steps + step + 1,
                    (int64_t)((w->count + w->batch - 1) / w->batch) * steps);
    return QD_OK;
}

static qd_status draw_batch(work *w, qd_corrected *c, int n, qd_err *err)
{
    const int64_t size = sv_denoise_size(&w->model);
    const qd_sampler_hook hook = { .ctx = w, .eps = on_eps, .stepped = on_stepped };
    float *x = qd_f32(&w->samples) + w->first * size;
    qd_sample_options o = w->options;
    o.first_sample = w->first;

    const double start = sv_now_s();
    qd_sample_noise(x, n, size, o.seed, o.first_sample);
    qd_status st = qd_corrected_run(c, &o, &hook, &w->quiet, x, err);
    w->seconds += sv_now_s() - start;
    for (int k = 0; k < n && !st; k++) {
        qd_image *im = &w->images[w->first + k];
        st = sv_picture(&w->model, &w->quiet, x + k * size, im, err);
        if (!st)
            st = push(w, im, o.steps, w->first + k, err);
    }
    return st;
}

static qd_status draw_all(work *w, qd_err *err)
{
    qd_corrected *c = NULL;
    int ready = 0; /* the batch c is compiled for */
    qd_status st = QD_OK;

    for (w->first = 0; w->first < w->count && !st; w->first += w->batch) {
        const int left = w->count - w->first, n = left < w->batch ? left : w->batch;
        if (n != ready) {
            qd_corrected_free(c);
            c = NULL;
            st = sv_denoise_sampler(&w->model, &w->model.condition, w->sampler, n, &w->t->run, &c, err);
            ready = n;
        }
        if (!st)
            st = draw_batch(w, c, n, err);
        if (!st)
            w->calls = qd_corrected_calls(c, &w->options, &w->probes);
    }
    qd_corrected_free(c);
    return st;
}

/* The floats as they are, for whoever wants to measure them. */
static qd_status save_floats(const work *w, const char *path, qd_err *err)
{
    qd_weights *weights = NULL;
    qd_meta *meta = NULL;
    json_t *o = sv_params_to_json(w->t->params);
    char *params = sv_json_text(o);
    qd_status st;

    json_decref(o);
    if (!params)
        return qd_fail(err, QD_E_NOMEM, "no memory for the metadata");
    if ((st = qd_weights_new(&weights, err)) || (st = qd_meta_new(&meta, err)) ||
        (st = qd_weights_add(weights, w->model.decoder_graph ? "latents" : "samples", &w->samples, err)) ||
        (st = qd_meta_set(meta, "model_sha256", w->t->model->sha256, err)) ||
        (st = qd_meta_set(meta, "sampler", w->sampler->name, err)) || (st = qd_meta_set(meta, "params", params, err)))
        goto out;
    st = qd_safetensors_save(path, weights, meta, NULL, err);
out:
    qd_meta_free(meta);
    qd_weights_free(weights);
    qd_free(params);
    return st;
}

static qd_status publish(const work *w, qd_err *err)
{
    sv_task *t = w->t;
    char *sheet = qd_fs_join(t->dir, "samples.png"), *floats = qd_fs_join(t->dir, "samples.safetensors");
    const int shown = w->count < SHEET_PICTURES ? w->count : SHEET_PICTURES;
    qd_status st;

    if (!sheet || !floats)
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
    else if ((st = sv_pictures_save(w->images, shown, false, sheet, err)) ||
             (st = sv_task_artifact(t, "samples.png", "image/png", sheet, err)) || (st = save_floats(w, floats, err)))
        goto out;
    else
        st = sv_task_artifact(t, "samples.safetensors", "application/octet-stream", floats, err);
    if (!st && shown < w->count)
        qd_run_warn(&t->run, "samples.png shows the first %d of %d pictures", shown, w->count);
out:
    qd_free(sheet);
    qd_free(floats);
    return st;
}

static qd_status run(sv_task *t, json_t **result, qd_err *err)
{
    work w = { .t = t,
               .sampler = qd_sampler_find(t->method->name),
               .options = { .steps = 50, .clip = -1, .seed = t->run.seed },
               .quiet = t->run,
               .count = (int)qd_params_int(t->params, "count"),
               .batch = (int)qd_params_int(t->params, "batch"),
               .preview_every = (int)qd_params_int(t->params, "preview_every") };
    char *path = sv_task_model_path(t);
    qd_status st;

    w.quiet.progress = NULL;
    if (!path || !w.sampler) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    qd_sample_options_read(t->params, &w.options);
    qd_run_progress(&t->run, "load", NULL, 0, 1);
    st = sv_denoise_open(path, &t->run, &w.model, err);
    if (!st)
        st = sv_condition_open(t, &w.model, err);
    if (st)
        goto out;
    const int correction = qd_correction_mode_find(qd_params_string(t->params, "correction"));
    if (correction >= 0)
        w.model.correcting = (qd_correction_mode)correction;
    qd_run_progress(&t->run, "load", NULL, 1, 1);

    const qd_shape shape = QD_SHAPE(w.count, w.model.channels, w.model.height, w.model.width);
    st = qd_tensor_init(&w.samples, QD_F32, &shape, t->run.budget, err);
    if (st)
        goto out;
    w.images = qd_calloc((size_t)w.count, sizeof w.images[0]);
    w.preview = qd_calloc((size_t)sv_denoise_size(&w.model), sizeof w.preview[0]);
    if (!w.images || !w.preview) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for %d pictures", w.count);
        goto out;
    }
    const bool quantized = w.model.model->graph != NULL;
    if (w.count <= w.batch || w.count % w.batch == 0) /* all batches are alike: one plan draws them all */
        sv_denoise_let_go(&w.model);
    if ((st = draw_all(&w, err)) || (st = publish(&w, err)))
        goto out;
    *result = json_pack("{s:s, s:i, s:i, s:i, s:f, s:b, s:i, s:s, s:i, s:i}", "sampler", w.sampler->name, "steps",
                        w.options.steps, "images", w.count, "batch", w.batch, "seconds_per_image", w.seconds / w.count,
                        "quantized", quantized, "threads", qd_run_threads(&t->run), "correction",
                        qd_correction_mode_name(w.model.correcting), "calls", w.calls, "probe_calls", w.probes);
    json_object_set_new(*result, "peak_bytes", json_integer((json_int_t)t->run.budget->peak_bytes));
    if (w.model.decodes > 0)
        sv_put_figure(*result, "seconds_per_decode", w.model.decode_s / w.model.decodes);
    if (w.model.condition.guidance != 1.0)
        sv_put_figure(*result, "guidance", w.model.condition.guidance);
out:
    for (int k = 0; w.images && k < w.count; k++)
        qd_image_clear(&w.images[k]);
    qd_free(w.images);
    qd_free(w.preview);
    qd_tensor_clear(&w.samples);
    sv_denoise_clear(&w.model);
    qd_free(path);
    return st;
}

const sv_kind sv_kind_sample = {
    .name = "sample",
    .summary = "Draws pictures from a denoiser, float or quantized, shown as they finish.",
    .methods = methods,
    .default_method = "ddim",
    .params = common,
    .roles = roles,
    .takes_bundle = true,
    .takes_float = true,
    .run = run,
};
