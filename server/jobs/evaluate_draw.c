/* evaluate_draw.c - a denoiser, float or quantized, that draws batch after batch, corrected as its bundle or the job says. */
#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "jobs/evaluate_int.h"

enum { MAX_SAMPLERS = 32, MAX_SETS = 8, GAP_PX = 1 };

/* --- rows --- */

static const char *samplers[MAX_SAMPLERS + 1]; /* names of the core's table, gathered once */
static const char *const corrections[] = { "model", "none", "compat", "probe", "table", "conditional", "both", NULL };

static const qd_param *rows;

static void gather(void)
{
    static qd_param own[5];
    const qd_param *sets[MAX_SETS] = { own };
    int n = 1;
    for (int k = 0; qd_samplers[k] && k < MAX_SAMPLERS; k++)
        samplers[k] = qd_samplers[k]->name;
    own[0] = (qd_param){ .name = "sampler",
                         .type = QD_PARAM_CHOICE,
                         .summary = "Which sampler draws.",
                         .fallback = "ddim",
                         .choices = samplers };
    own[1] =
        (qd_param){ .name = "correction",
                    .type = QD_PARAM_CHOICE,
                    .summary = "What a quantized denoiser does about its own noise while sampling; model: what its "
                               "quantization chose.",
                    .fallback = "model",
                    .choices = corrections };
    own[2] = (qd_param){ .name = "batch",
                         .type = QD_PARAM_INT,
                         .summary = "How many pictures are drawn, and looked at, together.",
                         .fallback = "16",
                         .min = 1,
                         .max = 256 };
    own[3] = (qd_param){ .name = "seed",
                         .type = QD_PARAM_INT,
                         .summary = "Seed of the noise, and of what is drawn by lot: same job, same figures.",
                         .fallback = "0",
                         .min = 0,
                         .max = 9007199254740991.0 };
    for (int k = 0; qd_samplers[k] && n < MAX_SETS - 2; k++)
        sets[n++] = qd_samplers[k]->params;
    sets[n++] = sv_condition_rows;
    sets[n] = NULL;
    rows = sv_rows_join(sets);
}

const qd_param *sv_draw_rows(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, gather);
    return rows;
}

/* --- opening --- */

qd_status sv_drawer_open(sv_drawer *d, sv_task *t, const char *path, const sv_drawer *told_by, qd_err *err)
{
    d->t = t;
    d->quiet = t->run;
    d->quiet.progress = NULL;
    d->options = (qd_sample_options){ .steps = 50, .clip = -1, .seed = t->run.seed };
    d->sampler = qd_sampler_find(qd_params_string(t->params, "sampler"));
    qd_sample_options_read(t->params, &d->options);
    qd_status st = sv_denoise_open(path, &t->run, &d->model, err);
    if (!st && !told_by)
        st = sv_condition_open(t, &d->model, err);
    d->told = told_by ? told_by->told : &d->model.condition;
    /* A float model has nothing to correct, whatever goes for its quantized twin. */
    const int wanted = qd_correction_mode_find(qd_params_string(t->params, "correction"));
    if (!st && wanted >= 0 && d->model.model->graph)
        d->model.correcting = (qd_correction_mode)wanted;
    return st;
}

void sv_drawer_clear(sv_drawer *d)
{
    qd_corrected_free(d->corrected);
    sv_denoise_clear(&d->model);
    memset(d, 0, sizeof *d);
}

/* --- drawing --- */

qd_status sv_drawer_batch(sv_drawer *d, int64_t n, qd_err *err)
{
    if (d->ready == n)
        return QD_OK;
    qd_corrected_free(d->corrected);
    d->corrected = NULL;
    d->ready = 0;
    const qd_status st = sv_denoise_sampler(&d->model, d->told, d->sampler, n, &d->t->run, &d->corrected, err);
    if (!st)
        d->ready = n;
    return st;
}

qd_status sv_drawer_run(sv_drawer *d, int64_t first, int64_t n, const qd_sampler_hook *hook, float *x, qd_err *err)
{
    qd_sample_options o = d->options;
    o.first_sample = first;
    qd_status st = sv_drawer_batch(d, n, err);
    if (st)
        return st;
    const double start = sv_now_s();
    qd_sample_noise(x, n, sv_denoise_size(&d->model), o.seed, first);
    st = qd_corrected_run(d->corrected, &o, hook, &d->quiet, x, err);
    d->seconds += sv_now_s() - start;
    d->drawn += n;
    return st;
}

qd_status sv_drawer_picture(sv_drawer *d, const float *sample, sv_drawn *out, qd_err *err)
{
    sv_drawn p = { .floats = sample,
                   .channels = (int)d->model.channels,
                   .height = (int)d->model.height,
                   .width = (int)d->model.width };
    const qd_status st = sv_picture(&d->model, &d->quiet, sample, &p.image, err);
    if (st)
        return st;
    if (d->model.decoder) {
        const qd_shape s = qd_decoder_image(d->model.decoder);
        p.floats = d->model.decoded;
        p.channels = (int)s.dim[0];
        p.height = (int)s.dim[1];
        p.width = (int)s.dim[2];
    }
    *out = p;
    return QD_OK;
}

qd_status sv_drawer_show(sv_drawer *d, uint32_t frame_kind, const qd_image *images, int n, int64_t index,
                         double psnr_db, qd_err *err)
{
    qd_image joined = { 0 }, zoomed = { 0 };
    qd_buf png;
    qd_status st;

    qd_buf_init(&png, 0);
    if ((st = qd_image_grid(images, n, n, GAP_PX, &joined, err)) ||
        (st = qd_image_zoom(&joined, sv_picture_zoom(images[0].height), &zoomed, err)) ||
        (st = qd_png_encode(&zoomed, &png, err)))
        goto out;
    st = sv_task_sample(d->t, frame_kind, d->options.steps, index, png.data, png.size, zoomed.width, zoomed.height,
                        psnr_db, err);
out:
    qd_buf_clear(&png);
    qd_image_clear(&zoomed);
    qd_image_clear(&joined);
    return st;
}

json_t *sv_drawer_json(const sv_drawer *d)
{
    json_t *o = json_pack("{s:s, s:i, s:I, s:b, s:s, s:i}", "sampler", d->sampler->name, "steps", d->options.steps,
                          "seed", (json_int_t)d->options.seed, "quantized", d->model.model->graph != NULL, "correction",
                          qd_correction_mode_name(d->model.correcting), "threads", qd_run_threads(&d->t->run));
    if (d->drawn > 0)
        sv_put_figure(o, "seconds_per_image", d->seconds / (double)d->drawn);
    if (d->told->guidance != 1.0)
        sv_put_figure(o, "guidance", d->told->guidance);
    return o;
}
