/* quantize.c - the job that makes a denoiser smaller: method, bundle, the bundle read back, pairs float | int8, figures.
 *
 * Pairs and times are those of the bundle read back from disk, not of what was in memory; the noise figures, which the method
 * measures before, stand for it because what was read back, saved again, must give the same bytes. The bundle holds nothing that
 * changes from run to run (no times, no ids): same model, params and seed, same bytes. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"
#include "quant/quant.h"

#define BUNDLE_NAME "model.safetensors"
enum { MAX_METHODS = 32 };

/* --- rows --- */

static const char *const preset_names[] = { "default", "fast", "thorough", NULL };

static const qd_param common[] = {
    { .name = "pairs",
      .type = QD_PARAM_INT,
      .summary =
          "Pictures drawn twice from the same noise, by the float and the quantized model, shown as they finish.",
      .fallback = "8",
      .min = 0,
      .max = SV_PAIRS_MAX },
    { .name = "preset",
      .type = QD_PARAM_CHOICE,
      .summary = "How much effort goes into calibration and measurement; what is given explicitly wins.",
      .fallback = "default",
      .choices = preset_names },
    { .name = "seed",
      .type = QD_PARAM_INT,
      .summary = "Seed of everything random in the job: same seed, same bytes.",
      .fallback = "0",
      .min = 0,
      .max = 9007199254740991.0 },
    { .name = NULL },
};

/* The default is a compromise for a few minutes on a small machine; qncd.md 5 and 13 say what more effort buys. */
static const sv_preset presets[] = {
    { "fast", "calibration_samples", "16" },
    { "fast", "calibration_steps", "5" },
    { "fast", "measure_samples", "2" },
    { "thorough", "calibration_samples", "64" },
    { "thorough", "calibration_steps", "16" },
    { "thorough", "measure_samples", "16" },
    { .preset = NULL },
};

static const char *const roles[] = { "denoiser", NULL };
static const char *const drop_metrics[] = { "sqnr_db", "psnr_db", NULL };

static sv_method rows[MAX_METHODS]; /* the core's table for this role, gathered once */
static int n_rows;

static void gather(void)
{
    for (int k = 0; qd_methods[k] && n_rows < MAX_METHODS; k++)
        if (qd_methods[k]->role == QD_ROLE_DENOISER)
            rows[n_rows++] = (sv_method){ qd_methods[k]->name, qd_methods[k]->summary, qd_methods[k]->params };
}

static const sv_method *methods(int *n)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, gather);
    *n = n_rows;
    return rows;
}

/* --- the work --- */

typedef struct work {
    sv_task *t;
    sv_denoise reference, quantized; /* quantized: read back from the bundle */
    qd_sample_options options;
    const qd_sampler *sampler;
    qd_quant_report report;
    sv_pairs pairs;
    char *bundle, *sheet; /* paths in the attempt's folder */
    uint64_t file_bytes;  /* of the bundle */
    int layers_quantized, layers_float;
} work;

/* The value of a parameter that not every method has. */
static int64_t int_or(const qd_params *p, const char *name, int64_t otherwise)
{
    return qd_param_find(qd_params_rows(p), name) ? qd_params_int(p, name) : otherwise;
}

static json_t *layers_json(const qd_quant_report *r)
{
    json_t *list = json_array();
    for (int k = 0; k < r->n_layers; k++) {
        const qd_layer_report *l = &r->layers[k];
        json_t *o = json_pack("{s:s, s:i, s:i}", "name", l->name, "weight_bits", l->weight_bits, "activation_bits",
                              l->activation_bits);
        if (l->note && l->note[0])
            json_object_set_new(o, "note", json_string(l->note));
        json_array_append_new(list, o);
    }
    return list;
}

/* What qncd.md 13 wants to travel with an artifact, except what the graph itself holds (codes, scales, ranges). */
static char *manifest_text(const work *w)
{
    const sv_task *t = w->t;
    json_t *params = sv_params_to_json(t->params);
    json_object_set_new(params, "method", json_string(t->method->name));
    json_t *o = json_pack(
        "{s:s, s:s, s:{s:s, s:s}, s:s, s:s, s:o, s:I, s:{s:i, s:i}, s:{s:I, s:I, s:i, s:i}, s:o}", "format",
        "quantd-manifest-1", "quantd", SV_VERSION, "source", "sha256", t->model->sha256, "format", t->model->format,
        "kind", t->job->kind, "method", t->method->name, "params", params, "seed", (json_int_t)t->run.seed,
        "calibration", "steps", w->report.calibration_steps, "samples", w->report.calibration_samples, "figures",
        "float_bytes", (json_int_t)w->report.float_bytes, "quantized_bytes", (json_int_t)w->report.quantized_bytes,
        "layers_quantized", w->layers_quantized, "layers_float", w->layers_float, "layers", layers_json(&w->report));
    char *text = o ? sv_json_text(o) : NULL;
    json_decref(o);
    return text;
}

static qd_status save_bundle(work *w, const qd_graph *g, const char *path, char sha256_hex[QD_SHA256_HEX], qd_err *err)
{
    qd_meta *meta = NULL;
    char *manifest = manifest_text(w);
    const qd_model *m = w->reference.model;
    qd_status st;

    if (!manifest)
        return qd_fail(err, QD_E_NOMEM, "no memory for the manifest");
    st = qd_meta_new(&meta, err);
    if (st)
        goto out;
    if (m->config && (st = qd_meta_set(meta, "config", qd_config_text(m->config), err)))
        goto out;
    if (m->scheduler && (st = qd_meta_set(meta, "scheduler_config", qd_config_text(m->scheduler), err)))
        goto out;
    if ((st = qd_meta_set(meta, "role", "denoiser", err)) || (st = qd_meta_set(meta, "manifest", manifest, err)))
        goto out;
    st = qd_bundle_save(path, g, meta, sha256_hex, err);
out:
    qd_meta_free(meta);
    qd_free(manifest);
    return st;
}

/* The bundle as a stranger would open it, and proof that nothing was lost on the way: saved again it gives the same bytes. */
static qd_status read_back(work *w, const char *sha256_hex, qd_err *err)
{
    char again_hex[QD_SHA256_HEX];
    char *again = qd_asprintf("%s.again", w->bundle);
    qd_status st;

    if (!again)
        return qd_fail(err, QD_E_NOMEM, "no memory for a path");
    st = sv_denoise_open(w->bundle, &w->t->run, &w->quantized, err);
    if (st) {
        qd_fail_in(err, st, "the bundle just written cannot be read back");
        goto out;
    }
    w->file_bytes = w->quantized.model->file_bytes;
    st = save_bundle(w, w->quantized.model->graph, again, again_hex, err);
    if (!st && strcmp(sha256_hex, again_hex) != 0)
        st = qd_fail(err, QD_E_INTERNAL, "the bundle read back is not the one that was written: %s, %s", sha256_hex,
                     again_hex);
out:
    unlink(again);
    qd_free(again);
    return st;
}

/* The method, then the bundle. */
static qd_status make_bundle(work *w, qd_err *err)
{
    sv_task *t = w->t;
    qd_graph *g = NULL;
    const qd_method *method = qd_method_find(t->method->name);
    const qd_quant_task task = {
        .graph = w->reference.graph, .role = QD_ROLE_DENOISER, .schedule = w->reference.schedule, .params = t->params
    };
    qd_status st;

    if (!method)
        return qd_fail(err, QD_E_INTERNAL, "method '%s' is listed and not there", t->method->name);
    st = method->run(&task, &t->run, &g, &w->report, err);
    if (st)
        goto out;
    for (int k = 0; k < w->report.n_layers; k++)
        if (w->report.layers[k].weight_bits > 0)
            w->layers_quantized++;
        else
            w->layers_float++;
    char hash[QD_SHA256_HEX];
    qd_run_progress(&t->run, "save", NULL, 0, 2);
    st = save_bundle(w, g, w->bundle, hash, err);
    if (st)
        goto out;
    qd_run_progress(&t->run, "save", NULL, 1, 2);
    st = read_back(w, hash, err);
    if (st)
        goto out;
    qd_run_progress(&t->run, "save", NULL, 2, 2);
    sv_task_log(t, "bundle of %llu bytes written and read back: %d layers in integers, %d left in float",
                (unsigned long long)w->file_bytes, w->layers_quantized, w->layers_float);
out:
    qd_graph_free(g);
    return st;
}

/* eps SQNR by time step on the float model's own trajectories, for methods that do not measure it themselves. */
static qd_status measure(work *w, qd_err *err)
{
    const int64_t samples = int_or(w->t->params, "measure_samples", 4);
    if (w->report.n_eps > 0)
        return QD_OK;
    return qd_quant_measure_eps(w->reference.graph, w->quantized.graph, w->reference.schedule, &w->options, samples, 1,
                                &w->t->run, &w->report, err);
}

/* Pairs start from noise that neither calibration nor measurement has seen. */
static qd_sample_options pair_options(const work *w)
{
    qd_sample_options o = w->options;
    o.first_sample = int_or(w->t->params, "calibration_samples", 0) + int_or(w->t->params, "measure_samples", 0);
    return o;
}

/* --- figures --- */

/* An entry only when there is a figure: readers tell "not measured" by its absence. */
static void put(json_t *o, const char *name, double v)
{
    if (isfinite(v))
        json_object_set_new(o, name, json_real(v));
}

static json_t *figures_json(const work *w)
{
    const sv_pairs *p = &w->pairs;
    json_t *o = json_pack("{s:s, s:s, s:i, s:I, s:I, s:I, s:i, s:i, s:i, s:i}", "method", w->t->method->name, "sampler",
                          w->sampler->name, "steps", w->options.steps, "float_bytes", (json_int_t)w->report.float_bytes,
                          "quantized_bytes", (json_int_t)w->report.quantized_bytes, "file_bytes",
                          (json_int_t)w->file_bytes, "layers_quantized", w->layers_quantized, "layers_float",
                          w->layers_float, "pairs", p->n, "pairs_identical", p->identical);
    if (w->report.quantized_bytes > 0)
        put(o, "ratio", (double)w->report.float_bytes / (double)w->report.quantized_bytes);
    const int64_t weight_bits = int_or(w->t->params, "weight_bits", 0);
    const int64_t activation_bits = int_or(w->t->params, "activation_bits", 0);
    if (weight_bits > 0)
        json_object_set_new(o, "weight_bits", json_integer(weight_bits));
    if (activation_bits > 0)
        json_object_set_new(o, "activation_bits", json_integer(activation_bits));
    put(o, "eps_sqnr_db", w->report.eps_sqnr_mean_db);
    put(o, "psnr_db_mean", p->psnr_mean_db);
    put(o, "psnr_db_min", p->psnr_min_db);
    if (p->n > 0) {
        put(o, "seconds_per_image_float", p->image_float_s);
        put(o, "seconds_per_image_int8", p->image_quantized_s);
        put(o, "speedup", p->image_float_s / p->image_quantized_s);
        put(o, "seconds_per_call_float", p->call_float_s);
        put(o, "seconds_per_call_int8", p->call_quantized_s);
    }
    json_object_set_new(o, "threads", json_integer(qd_run_threads(&w->t->run)));
    return o;
}

static json_t *eps_json(const qd_quant_report *r)
{
    json_t *list = json_array();
    for (int k = 0; k < r->n_eps; k++)
        json_array_append_new(list,
                              json_pack("{s:i, s:o}", "t", r->eps_t[k], "sqnr_db", sv_json_number(r->eps_sqnr_db[k])));
    return list;
}

/* report.json: the method's own report with everything around it. */
static qd_status save_report(const work *w, const json_t *figures, const char *path, qd_err *err)
{
    qd_buf buf;
    json_t *o = NULL, *psnr = NULL;
    char *text = NULL;
    qd_status st;

    qd_buf_init(&buf, 0);
    st = qd_quant_report_json(&w->report, &buf, err);
    if (st)
        goto out;
    o = json_loadb(buf.data, buf.size, 0, NULL);
    if (!json_is_object(o)) {
        st = qd_fail(err, QD_E_INTERNAL, "the report of method '%s' is not a JSON object", w->t->method->name);
        goto out;
    }
    psnr = json_array();
    for (int k = 0; k < w->pairs.n; k++)
        json_array_append_new(psnr, sv_json_number(w->pairs.psnr_db[k]));
    json_object_set_new(o, "format", json_string("quantd-report-1"));
    json_object_set_new(o, "quantd", json_string(SV_VERSION));
    json_object_set_new(o, "job", json_string(w->t->job->id));
    json_object_set_new(o, "source", json_pack("{s:s, s:s}", "model", w->t->model->id, "sha256", w->t->model->sha256));
    json_object_set_new(o, "params", sv_params_to_json(w->t->params));
    json_object_set(o, "figures", (json_t *)figures);
    json_object_set(o, "pair_psnr_db", psnr);
    text = sv_json_text(o);
    st = text ? qd_fs_write(path, text, strlen(text), err) : qd_fail(err, QD_E_NOMEM, "no memory for the report");
out:
    json_decref(psnr);
    json_decref(o);
    qd_free(text);
    qd_buf_clear(&buf);
    return st;
}

/* --- what the job leaves --- */

/* max_drop, when the job has one: the words and the code that fail it. */
static qd_status check_drop(const work *w, const json_t *figures, qd_err *err)
{
    json_t *body = sv_json_read(w->t->job->body);
    const json_t *drop = json_object_get(body, "max_drop");
    qd_status st = QD_OK;

    if (json_is_object(drop)) {
        const char *metric = json_string_value(json_object_get(drop, "metric"));
        const double least = json_number_value(json_object_get(drop, "value"));
        const bool sqnr = metric && strcmp(metric, "sqnr_db") == 0;
        const json_t *figure = json_object_get(figures, sqnr ? "eps_sqnr_db" : "psnr_db_mean");
        /* No figure: all pairs identical, or pairs 0. The first passes, the second cannot be judged. */
        const bool judged = figure || (!sqnr && w->pairs.n > 0);
        if (!judged || (figure && json_number_value(figure) < least)) {
            sv_task_error(w->t, "max_drop_exceeded", json_deep_copy(figures));
            st = judged ? qd_fail(err, QD_E_INVALID,
                                  "%s of the quantized model is %.2f dB; max_drop accepts %.2f dB or more",
                                  sqnr ? "mean eps SQNR" : "mean PSNR", json_number_value(figure), least)
                        : qd_fail(err, QD_E_INVALID,
                                  "max_drop asks for psnr_db, and params.pairs is 0: nothing to measure");
        }
    }
    json_decref(body);
    return st;
}

static qd_status publish(work *w, json_t *figures, qd_err *err)
{
    sv_task *t = w->t;
    char id[40];
    char *report = qd_fs_join(t->dir, "report.json");
    char *name = qd_asprintf("%s-%s", t->model->name[0] ? t->model->name : "model", t->method->name);
    qd_status st;

    if (!report || !name) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    st = save_report(w, figures, report, err);
    if (st)
        goto out;
    st = sv_task_artifact(t, "report.json", "application/json", report, err);
    if (st)
        goto out;
    if (w->pairs.n > 0 && (st = sv_task_artifact(t, "samples.png", "image/png", w->sheet, err)))
        goto out;
    /* What is not good enough is shown (report, pairs) and not handed out. */
    st = check_drop(w, figures, err);
    if (st)
        goto out;
    if ((st = sv_task_artifact(t, BUNDLE_NAME, "application/octet-stream", w->bundle, err)) ||
        (st = sv_task_model(t, BUNDLE_NAME, name, id, err)))
        goto out;
    json_object_set_new(figures, "model", json_string(id));
    json_object_set_new(figures, "model_name", json_string(name));
out:
    qd_free(name);
    qd_free(report);
    return st;
}

static qd_status run(sv_task *t, json_t **result, qd_err *err)
{
    work w = { .t = t, .report.eps_sqnr_mean_db = NAN };
    char *path = sv_task_model_path(t);
    json_t *figures = NULL;
    qd_status st;

    w.bundle = qd_fs_join(t->dir, BUNDLE_NAME);
    w.sheet = qd_fs_join(t->dir, "samples.png");
    if (!path || !w.bundle || !w.sheet) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    const bool chosen = qd_param_find(qd_params_rows(t->params), "sampler") != NULL;
    w.sampler = qd_sampler_find(chosen ? qd_params_string(t->params, "sampler") : "ddim");
    w.options = (qd_sample_options){ .steps = 50, .clip = -1, .seed = t->run.seed };
    qd_sample_options_read(t->params, &w.options);

    qd_run_progress(&t->run, "load", NULL, 0, 1);
    st = sv_denoise_open(path, &t->run, &w.reference, err);
    if (st)
        goto out;
    qd_run_progress(&t->run, "load", NULL, 1, 1);
    sv_task_log(t, "%s: %lld parameters, pictures of %lldx%lld, %d diffusion steps", t->model->name,
                (long long)qd_graph_param_count(w.reference.graph), (long long)w.reference.width,
                (long long)w.reference.height, w.reference.schedule->train_steps);
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
    json_object_set_new(figures, "eps_sqnr_by_step", eps_json(&w.report));
    *result = figures;
    figures = NULL;
out:
    json_decref(figures);
    qd_quant_report_clear(&w.report);
    sv_denoise_clear(&w.quantized);
    sv_denoise_clear(&w.reference);
    qd_free(w.sheet);
    qd_free(w.bundle);
    qd_free(path);
    return st;
}

const sv_kind sv_kind_quantize = {
    .name = "quantize",
    .summary = "Makes a denoiser smaller: integer weights and activations, one bundle that runs on its own.",
    .methods = methods,
    .default_method = "mse",
    .params = common,
    .roles = roles,
    .takes_float = true,
    .presets = presets,
    .drop_metrics = drop_metrics,
    .run = run,
};
