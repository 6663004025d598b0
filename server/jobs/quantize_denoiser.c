/* quantize_denoiser.c - quantizing a denoiser: method, bundle, the bundle read back, pairs float | int8, figures. */
#include <math.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"

const char *const sv_denoiser_drop_metrics[] = { "sqnr_db", "psnr_db", NULL };

const qd_param sv_denoiser_params[] = {
    { .name = "pairs",
      .type = QD_PARAM_INT,
      .summary =
          "Pictures drawn twice from the same noise, by the float and the quantized model, shown as they finish.",
      .fallback = "8",
      .min = 0,
      .max = SV_PAIRS_MAX },
    { .name = NULL },
};

typedef struct work {
    sv_quantized made;
    sv_denoise reference, quantized; /* quantized: read back from the bundle */
    qd_sample_options options;
    const qd_sampler *sampler;
    sv_pairs pairs;
    char *sheet, *page; /* paths in the attempt's folder */
} work;

/* The method, then the bundle, then the bundle as a stranger would open it. */
static qd_status make_bundle(work *w, qd_err *err)
{
    const qd_quant_task task = { .graph = w->reference.graph,
                                 .role = QD_ROLE_DENOISER,
                                 .schedule = w->reference.schedule,
                                 .condition = &w->reference.condition,
                                 .params = w->made.t->params };
    qd_status st = sv_quantized_make(&w->made, &task, err);
    if (st)
        return st;
    st = sv_denoise_open(w->made.bundle, &w->made.t->run, &w->quantized, err);
    if (st)
        return qd_fail_in(err, st, "the bundle just written cannot be read back");
    return sv_quantized_check(&w->made, w->quantized.model, err);
}

/* eps SQNR by time step on the float model's own trajectories, for methods that do not measure it themselves. */
static qd_status measure(work *w, qd_err *err)
{
    const int64_t samples = sv_param_or(w->made.t->params, "measure_samples", 4);
    if (w->made.report.n_eps > 0)
        return QD_OK;
    w->options.condition = &w->reference.condition;
    return qd_quant_measure_eps(w->reference.graph, w->quantized.graph, w->reference.schedule, &w->options, samples, 1,
                                &w->made.t->run, &w->made.report, err);
}

/* Pairs start from noise that neither calibration nor measurement has seen. */
static qd_sample_options pair_options(const work *w)
{
    qd_sample_options o = w->options;
    o.first_sample =
        sv_param_or(w->made.t->params, "calibration_samples", 0) + sv_param_or(w->made.t->params, "measure_samples", 0);
    return o;
}

/* --- figures --- */

static json_t *figures_json(const work *w)
{
    const sv_pairs *p = &w->pairs;
    json_t *o = sv_quantized_figures(&w->made);
    json_object_set_new(o, "sampler", json_string(w->sampler->name));
    json_object_set_new(o, "steps", json_integer(w->options.steps));
    json_object_set_new(o, "correction", json_string(qd_correction_mode_name(w->quantized.correcting)));
    json_object_set_new(o, "pairs", json_integer(p->n));
    json_object_set_new(o, "pairs_identical", json_integer(p->identical));
    sv_put_figure(o, "eps_sqnr_db", w->made.report.eps_sqnr_mean_db);
    sv_put_figure(o, "psnr_db_mean", p->psnr_mean_db);
    sv_put_figure(o, "psnr_db_min", p->psnr_min_db);
    if (p->n > 0) {
        sv_put_figure(o, "seconds_per_image_float", p->image_float_s);
        sv_put_figure(o, "seconds_per_image_int8", p->image_quantized_s);
        sv_put_figure(o, "speedup", p->image_float_s / p->image_quantized_s);
        sv_put_figure(o, "seconds_per_call_float", p->call_float_s);
        sv_put_figure(o, "seconds_per_call_int8", p->call_quantized_s);
        json_object_set_new(o, "calls_float", json_integer(p->calls_float));
        json_object_set_new(o, "calls_int8", json_integer(p->calls_quantized));
        double mean = 0, std = 0;
        for (int k = 0; k < p->n_drift; k++) {
            mean = fmax(mean, fabs(p->drift[k].mean[1] - p->drift[k].mean[0]));
            std = fmax(std, fabs(p->drift[k].std[1] - p->drift[k].std[0]));
        }
        sv_put_figure(o, "drift_mean_max", mean);
        sv_put_figure(o, "drift_std_max", std);
    }
    return o;
}

static json_t *trajectory_json(const sv_pairs *p)
{
    json_t *list = json_array();
    for (int k = 0; k < p->n_drift; k++) {
        const sv_drift *r = &p->drift[k];
        json_array_append_new(list, json_pack("{s:i, s:i, s:o, s:o, s:o, s:o}", "step", k, "t", r->t, "mean_float",
                                              sv_json_number(r->mean[0]), "std_float", sv_json_number(r->std[0]),
                                              "mean_quantized", sv_json_number(r->mean[1]), "std_quantized",
                                              sv_json_number(r->std[1])));
    }
    return list;
}

static json_t *eps_json(const qd_quant_report *r)
{
    json_t *list = json_array();
    for (int k = 0; k < r->n_eps; k++)
        json_array_append_new(list,
                              json_pack("{s:i, s:o}", "t", r->eps_t[k], "sqnr_db", sv_json_number(r->eps_sqnr_db[k])));
    return list;
}

/* max_drop, when the job has one: the words and the code that fail it. */
static qd_status check_drop(const work *w, const json_t *figures, qd_err *err)
{
    char metric[32];
    double least;
    if (!sv_max_drop(w->made.t->job, metric, &least))
        return QD_OK;
    const bool sqnr = strcmp(metric, "sqnr_db") == 0;
    const json_t *figure = json_object_get(figures, sqnr ? "eps_sqnr_db" : "psnr_db_mean");
    /* No figure: all pairs identical, or pairs 0. The first passes, the second cannot be judged. */
    const bool judged = figure || (!sqnr && w->pairs.n > 0);
    if (judged && (!figure || json_number_value(figure) >= least))
        return QD_OK;
    sv_task_error(w->made.t, "max_drop_exceeded", json_deep_copy(figures));
    return judged ? qd_fail(err, QD_E_INVALID, "%s of the quantized model is %.2f dB; max_drop accepts %.2f dB or more",
                            sqnr ? "mean eps SQNR" : "mean PSNR", json_number_value(figure), least)
                  : qd_fail(err, QD_E_INVALID, "max_drop asks for psnr_db, and params.pairs is 0: nothing to measure");
}

/* The report as a page with the sheet in it; the sheet has not been handed out yet. */
static qd_status publish_page(const work *w, const json_t *report, qd_err *err)
{
    qd_map sheet = { 0 };
    qd_buf page;
    qd_buf_init(&page, 0);
    qd_status st = w->pairs.n > 0 ? qd_map_open(&sheet, w->sheet, err) : QD_OK;
    if (!st)
        st = sv_report_page(report, sheet.data, sheet.size, &page, err);
    if (!st)
        st = qd_fs_write(w->page, page.data, page.size, err);
    if (!st)
        st = sv_task_artifact(w->made.t, "report.html", "text/html; charset=utf-8", w->page, err);
    qd_map_close(&sheet);
    qd_buf_clear(&page);
    return st;
}

static qd_status publish(work *w, json_t *figures, qd_err *err)
{
    json_t *report = NULL;
    json_t *psnr = json_array();
    for (int k = 0; k < w->pairs.n; k++)
        json_array_append_new(psnr, sv_json_number(w->pairs.psnr_db[k]));
    json_t *more = json_pack("{s:o, s:o, s:s, s:{s:s, s:I}}", "pair_psnr_db", psnr, "trajectory",
                             trajectory_json(&w->pairs), "name", w->made.t->model->name, "bundle", "sha256",
                             w->made.sha256, "bytes", (json_int_t)w->made.file_bytes);
    qd_status st = sv_quantized_report(&w->made, figures, more, &report, err);
    json_decref(more);
    if (!st)
        st = publish_page(w, report, err);
    json_decref(report);
    if (!st && w->pairs.n > 0)
        st = sv_task_artifact(w->made.t, "samples.png", "image/png", w->sheet, err);
    /* What is not good enough is shown (report, pairs) and not handed out. */
    if (!st)
        st = check_drop(w, figures, err);
    return st ? st : sv_quantized_publish(&w->made, figures, err);
}

qd_status sv_quantize_denoiser(sv_task *t, json_t **result, qd_err *err)
{
    work w = { 0 };
    char *path = sv_task_model_path(t);
    json_t *figures = NULL;
    qd_status st = sv_quantized_init(&w.made, t, err);
    if (st)
        goto out;
    w.sheet = qd_fs_join(t->dir, "samples.png");
    w.page = qd_fs_join(t->dir, "report.html");
    if (!path || !w.sheet || !w.page) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    const bool chosen = qd_param_find(qd_params_rows(t->params), "sampler") != NULL;
    w.sampler = qd_sampler_find(chosen ? qd_params_string(t->params, "sampler") : "ddim");
    w.options = (qd_sample_options){ .steps = 50, .clip = -1, .seed = t->run.seed };
    qd_sample_options_read(t->params, &w.options);

    qd_run_progress(&t->run, "load", NULL, 0, 1);
    st = sv_denoise_open(path, &t->run, &w.reference, err);
    if (!st)
        st = sv_condition_open(t, &w.reference, err);
    if (st)
        goto out;
    w.made.latent = w.reference.decoder_graph != NULL;
    qd_run_progress(&t->run, "load", NULL, 1, 1);
    sv_task_log(t, "%s: %lld parameters, %s of %lldx%lld, %d diffusion steps", t->model->name,
                (long long)qd_graph_param_count(w.reference.graph), w.made.latent ? "latents" : "pictures",
                (long long)w.reference.width, (long long)w.reference.height, w.reference.schedule->train_steps);
    w.made.source = w.reference.model;
    if ((st = make_bundle(&w, err)) || (st = measure(&w, err)))
        goto out;
    const sv_pair_ask ask = { .reference = &w.reference,
                              .quantized = &w.quantized,
                              .sampler = w.sampler,
                              .options = pair_options(&w),
                              .n = (int)qd_params_int(t->params, "pairs") };
    st = sv_pairs_draw(t, &ask, w.sheet, &w.pairs, err);
    if (st)
        goto out;
    figures = figures_json(&w);
    st = publish(&w, figures, err);
    if (st)
        goto out;
    json_object_set_new(figures, "eps_sqnr_by_step", eps_json(&w.made.report));
    *result = figures;
    figures = NULL;
out:
    json_decref(figures);
    sv_denoise_clear(&w.quantized);
    sv_denoise_clear(&w.reference);
    sv_pairs_clear(&w.pairs);
    qd_free(w.page);
    qd_free(w.sheet);
    sv_quantized_clear(&w.made);
    qd_free(path);
    return st;
}
