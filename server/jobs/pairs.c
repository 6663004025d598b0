/* pairs.c - the same noise through the float and the quantized model: pictures side by side, their likeness, their time.
 *
 * One picture at a time, so that the first pair appears early and the times are those of a single request. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"

enum { GAP_PX = 1, FRAME_PAIR = 2 };

/* One of the two models, ready to draw. */
typedef struct side {
    const sv_denoise *model;
    qd_corrected *corrected;
    int calls; /* for one image */
    double image_s[SV_PAIRS_MAX];
    double *sum, *squares; // [steps], of x_t over pairs, channels and places
} side;

typedef struct drawing {
    sv_task *t;
    const sv_pair_ask *ask;
    qd_run quiet; /* the job's run without progress: the sampler counts from 0 each time, we count all of them */
    side side[2];
    side *now;    /* who draws */
    int *steps_t; // [steps], of the grid
    float *x;     // [C, H, W]
    int64_t done, total;
} drawing;

static qd_status side_open(side *s, const sv_denoise *model, const qd_condition *condition, const sv_pair_ask *ask,
                           const qd_run *run, qd_err *err)
{
    s->model = model;
    s->sum = qd_calloc((size_t)ask->options.steps, sizeof *s->sum);
    s->squares = qd_calloc((size_t)ask->options.steps, sizeof *s->squares);
    if (!s->sum || !s->squares)
        return qd_fail(err, QD_E_NOMEM, "no memory for the figures of %d steps", ask->options.steps);
    qd_status st = sv_denoise_sampler(model, condition, ask->sampler, 1, run, &s->corrected, err);
    if (!st)
        s->calls = qd_corrected_calls(s->corrected, &ask->options, NULL);
    return st;
}

static void side_close(side *s)
{
    qd_corrected_free(s->corrected);
    qd_free(s->sum);
    qd_free(s->squares);
}

static qd_status stepped(void *ctx, int step, int steps, int t, const float *x, qd_err *err)
{
    drawing *d = ctx;
    const int64_t n = sv_denoise_size(d->now->model);
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)x[i];
        squares += (double)x[i] * (double)x[i];
    }
    d->steps_t[step] = t;
    d->now->sum[step] += sum;
    d->now->squares[step] += squares;
    qd_run_progress(&d->t->run, "pairs", NULL, ++d->done, d->total);
    return QD_OK;
}

/* Picture k of one side; both sides start from the same noise. */
static qd_status draw(drawing *d, side *s, int k, qd_image *out, qd_err *err)
{
    const qd_sampler_hook hook = { .ctx = d, .stepped = stepped };
    qd_sample_options o = d->ask->options;
    o.first_sample += k;
    d->now = s;
    const double start = sv_now_s();
    qd_sample_noise(d->x, 1, sv_denoise_size(s->model), o.seed, o.first_sample);
    const qd_status st = qd_corrected_run(s->corrected, &o, &hook, &d->quiet, d->x, err);
    if (st)
        return st;
    s->image_s[k] = sv_now_s() - start;
    return sv_picture(d->ask->reference, &d->quiet, d->x, out, err);
}

/* The two pictures as one PNG, large enough to look at. */
static qd_status push(drawing *d, int k, const qd_image *both, double psnr_db, qd_err *err)
{
    qd_image joined = { 0 }, zoomed = { 0 };
    qd_buf png;
    qd_status st;

    qd_buf_init(&png, 0);
    if ((st = qd_image_grid(both, 2, 2, GAP_PX, &joined, err)) ||
        (st = qd_image_zoom(&joined, sv_picture_zoom(both[0].height), &zoomed, err)) ||
        (st = qd_png_encode(&zoomed, &png, err)))
        goto out;
    st = sv_task_sample(d->t, FRAME_PAIR, d->ask->options.steps, k, png.data, png.size, zoomed.width, zoomed.height,
                        psnr_db, err);
out:
    qd_buf_clear(&png);
    qd_image_clear(&zoomed);
    qd_image_clear(&joined);
    return st;
}

/* Plans touch their memory for the first time on their first call; that call is nobody's measure. */
static qd_status warm_up(drawing *d, side *s, qd_err *err)
{
    const qd_predictor p = qd_corrected_predictor(s->corrected);
    float *out = qd_alloc_aligned((size_t)sv_denoise_size(s->model) * sizeof(float));
    if (!out)
        return qd_fail(err, QD_E_NOMEM, "no memory for a picture");
    qd_sample_noise(d->x, 1, sv_denoise_size(s->model), d->ask->options.seed, 0);
    qd_predictor_seat(&p, 0);
    const qd_status st = p.predict(p.ctx, &d->quiet, d->x, s->model->schedule->train_steps - 1, out, err);
    qd_free(out);
    return st;
}

/* Mean and deviation of x after each step, both sides: the bias and the variance that noise piled up until then (qncd.md 2). */
static qd_status add_drift(const drawing *d, sv_pairs *f, qd_err *err)
{
    const int steps = d->ask->options.steps;
    const double n = (double)sv_denoise_size(d->side[0].model) * f->n;
    f->drift = qd_calloc((size_t)steps, sizeof *f->drift);
    if (!f->drift)
        return qd_fail(err, QD_E_NOMEM, "no memory for the drift over %d steps", steps);
    f->n_drift = steps;
    for (int k = 0; k < steps; k++) {
        sv_drift *r = &f->drift[k];
        r->t = d->steps_t[k];
        for (int j = 0; j < 2; j++) {
            r->mean[j] = d->side[j].sum[k] / n;
            r->std[j] = sqrt(fmax(0.0, d->side[j].squares[k] / n - r->mean[j] * r->mean[j]));
        }
    }
    return QD_OK;
}

static void sum_up(drawing *d, sv_pairs *f)
{
    double sum = 0;
    int n = 0;
    f->psnr_mean_db = f->psnr_min_db = NAN;
    for (int k = 0; k < f->n; k++) {
        if (isinf(f->psnr_db[k])) {
            f->identical++;
            continue;
        }
        sum += f->psnr_db[k];
        n++;
        f->psnr_min_db = n == 1 ? f->psnr_db[k] : fmin(f->psnr_min_db, f->psnr_db[k]);
    }
    if (n > 0)
        f->psnr_mean_db = sum / n;
    f->image_float_s = sv_median(d->side[0].image_s, f->n);
    f->image_quantized_s = sv_median(d->side[1].image_s, f->n);
    f->calls_float = d->side[0].calls;
    f->calls_quantized = d->side[1].calls;
    f->call_float_s = f->image_float_s / f->calls_float;
    f->call_quantized_s = f->image_quantized_s / f->calls_quantized;
}

qd_status sv_pairs_draw(sv_task *t, const sv_pair_ask *ask, const char *sheet_path, sv_pairs *out, qd_err *err)
{
    drawing d = { .t = t, .ask = ask, .quiet = t->run };
    qd_image pictures[2 * SV_PAIRS_MAX] = { { 0 } };
    sv_pairs f = { .n = ask->n };
    const size_t bytes = (size_t)sv_denoise_size(ask->reference) * sizeof(float);
    qd_status st = QD_OK;

    d.quiet.progress = NULL;
    d.total = 2ll * ask->n * ask->options.steps;
    if (ask->n == 0)
        goto out;
    qd_run_progress(&t->run, "pairs", NULL, 0, d.total);
    d.x = qd_alloc_aligned(bytes);
    d.steps_t = qd_calloc((size_t)ask->options.steps, sizeof *d.steps_t);
    if (!d.x || !d.steps_t) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a picture of %zu bytes and %d steps", bytes, ask->options.steps);
        goto out;
    }
    const qd_condition *told = &ask->reference->condition;
    if ((st = side_open(&d.side[0], ask->reference, told, ask, &t->run, err)) ||
        (st = side_open(&d.side[1], ask->quantized, told, ask, &t->run, err)) || (st = warm_up(&d, &d.side[0], err)) ||
        (st = warm_up(&d, &d.side[1], err)))
        goto out;
    for (int k = 0; k < ask->n; k++) {
        qd_image *both = &pictures[2 * k];
        if ((st = draw(&d, &d.side[0], k, &both[0], err)) || (st = draw(&d, &d.side[1], k, &both[1], err)))
            goto out;
        f.psnr_db[k] = qd_image_psnr_db(&both[0], &both[1]);
        st = push(&d, k, both, f.psnr_db[k], err);
        if (st)
            goto out;
    }
    st = sv_pictures_save(pictures, 2 * ask->n, true, sheet_path, err);
    if (!st)
        st = add_drift(&d, &f, err);
out:
    if (!st) {
        sum_up(&d, &f);
        *out = f;
    }
    for (int k = 0; k < 2 * ask->n; k++)
        qd_image_clear(&pictures[k]);
    side_close(&d.side[0]);
    side_close(&d.side[1]);
    qd_free(d.steps_t);
    qd_free(d.x);
    return st;
}

void sv_pairs_clear(sv_pairs *p)
{
    qd_free(p->drift);
    *p = (sv_pairs){ 0 };
}
