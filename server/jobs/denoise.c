/* denoise.c - what quantize and sample have in common: the model, sampler options, pictures, clocks. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"
#include "nn/nn.h"

enum { READABLE_PX = 112, SHEET_PX = 4096, GAP_PX = 2 };

/* --- the model --- */

qd_status sv_denoise_open(const char *path, const qd_run *run, sv_denoise *out, qd_err *err)
{
    sv_denoise d = { 0 };
    qd_role role;
    qd_status st;

    st = qd_model_open(path, qd_run_budget(run), &d.model, err);
    if (st)
        goto out;
    st = qd_zoo_build(d.model, run, &d.graph, &role, err);
    if (st)
        goto out;
    const qd_node_id input = role == QD_ROLE_DENOISER ? qd_graph_find(d.graph, "sample") : -1;
    const qd_node *node = input >= 0 ? qd_graph_node(d.graph, input) : NULL;
    if (!node || node->shape.rank != 4) {
        st = qd_fail(err, QD_E_UNSUPPORTED,
                     "the model is no denoiser of pictures: it has no input 'sample' [N, C, H, W]");
        goto out;
    }
    d.channels = node->shape.dim[1];
    d.height = node->shape.dim[2];
    d.width = node->shape.dim[3];
    qd_condition_init(&d.condition);
    st = qd_schedule_open(d.model->scheduler, &d.schedule, err);
    if (st)
        goto out;
    const char *correction = d.model->meta ? qd_meta_find(d.model->meta, SV_META_CORRECTION) : NULL;
    if (correction && (st = qd_correction_parse(correction, strlen(correction), &d.correction, err)))
        goto out;
    d.correcting = qd_correction_default(d.correction);
    *out = d;
    memset(&d, 0, sizeof d);
out:
    sv_denoise_clear(&d);
    return st;
}

void sv_denoise_clear(sv_denoise *d)
{
    qd_correction_free(d->correction);
    qd_free(d->decoded);
    qd_decoder_free(d->decoder);
    qd_graph_free(d->decoder_graph);
    qd_condition_clear(&d->condition);
    qd_schedule_free(d->schedule);
    qd_graph_free(d->graph);
    qd_model_free(d->model);
    memset(d, 0, sizeof *d);
}

void sv_denoise_let_go(sv_denoise *d)
{
    qd_weights_free(d->model->weights);
    qd_graph_free(d->model->graph);
    qd_model_free(d->model->first_stage);
    qd_weights_free(d->model->context);
    d->model->weights = d->model->context = NULL;
    d->model->graph = NULL;
    d->model->first_stage = NULL;
    d->once = true;
}

qd_status sv_denoise_sampler(const sv_denoise *d, const qd_condition *condition, const qd_sampler *sampler,
                             int64_t batch, const qd_run *run, qd_corrected **out, qd_err *err)
{
    const qd_corrected_options o = { .graph = d->graph,
                                     .correction = d->correction,
                                     .mode = d->correcting,
                                     .schedule = d->schedule,
                                     .sampler = sampler,
                                     .condition = condition,
                                     .batch = batch,
                                     .threads = qd_run_threads(run),
                                     .budget = qd_run_budget(run),
                                     .take = d->once ? d->graph : NULL };
    return qd_corrected_new(&o, out, err);
}

int64_t sv_denoise_size(const sv_denoise *d)
{
    return d->channels * d->height * d->width; /* the graph's shape rules have made sure that it fits */
}

/* --- pictures --- */

static qd_status make_decoder(sv_denoise *d, const qd_run *run, qd_err *err)
{
    if (d->decoder)
        return QD_OK;
    qd_status st = qd_decoder_new(d->decoder_graph, qd_run_threads(run), NULL, qd_run_budget(run), &d->decoder, err);
    if (st)
        return qd_fail_in(err, st, "first stage");
    const qd_shape s = qd_decoder_image(d->decoder);
    d->decoded = qd_alloc_aligned((size_t)(s.dim[0] * s.dim[1] * s.dim[2]) * sizeof(float));
    return d->decoded ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a decoded picture");
}

qd_status sv_picture(sv_denoise *d, const qd_run *run, const float *chw, qd_image *out, qd_err *err)
{
    if (!d->decoder_graph)
        return qd_image_from_float(chw, d->channels >= 3 ? 3 : 1, (int)d->height, (int)d->width, out, err);
    qd_status st = make_decoder(d, run, err);
    const double start = sv_now_s();
    if (!st)
        st = qd_decoder_run(d->decoder, run, chw, d->decoded, err);
    if (st)
        return st;
    d->decode_s += sv_now_s() - start;
    d->decodes++;
    const qd_shape s = qd_decoder_image(d->decoder);
    return qd_image_from_float(d->decoded, s.dim[0] >= 3 ? 3 : 1, (int)s.dim[1], (int)s.dim[2], out, err);
}

int sv_picture_zoom(int height)
{
    return height < READABLE_PX ? READABLE_PX / height : 1;
}

qd_status sv_pictures_save(const qd_image *images, int n, bool pairs, const char *path, qd_err *err)
{
    qd_image sheet = { 0 }, zoomed = { 0 };
    qd_buf png;
    qd_status st;

    qd_buf_init(&png, 0);
    int columns = (int)ceil(sqrt((double)n));
    if (pairs && columns % 2)
        columns++;
    st = qd_image_grid(images, n, columns < n ? columns : n, GAP_PX, &sheet, err);
    if (st)
        goto out;
    /* Small pictures are shown larger as long as the sheet stays handy. */
    int zoom = sv_picture_zoom(images[0].height);
    while (zoom > 1 && (sheet.width * zoom > SHEET_PX || sheet.height * zoom > SHEET_PX))
        zoom--;
    st = qd_image_zoom(&sheet, zoom, &zoomed, err);
    if (st)
        goto out;
    st = qd_png_encode(&zoomed, &png, err);
    if (st)
        goto out;
    st = qd_fs_write(path, png.data, png.size, err);
out:
    qd_buf_clear(&png);
    qd_image_clear(&zoomed);
    qd_image_clear(&sheet);
    return st;
}

/* --- clocks --- */

double sv_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double sv_median(double *values, int n)
{
    if (n < 1)
        return NAN;
    qsort(values, (size_t)n, sizeof values[0], by_value);
    return values[(n - 1) / 2];
}
