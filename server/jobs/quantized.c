/* quantized.c - what every quantization leaves: the bundle and proof that it can be read back, report, figures, the registered model.
 *
 * Figures and times are those of the bundle read back from disk, not of what was in memory; what the method itself measured before
 * stands for it because what was read back, saved again, must give the same bytes. The bundle holds nothing that changes from run to
 * run (no times, no ids): same model, params and seed, same bytes. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"

#define BUNDLE_NAME "model.safetensors"

qd_status sv_quantized_init(sv_quantized *w, sv_task *t, qd_err *err)
{
    *w = (sv_quantized){ .t = t, .report.eps_sqnr_mean_db = NAN, .bundle = qd_fs_join(t->dir, BUNDLE_NAME) };
    return w->bundle ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
}

void sv_quantized_clear(sv_quantized *w)
{
    qd_quant_report_clear(&w->report);
    qd_free(w->bundle);
    w->bundle = NULL;
}

int64_t sv_param_or(const qd_params *p, const char *name, int64_t otherwise)
{
    return qd_param_find(qd_params_rows(p), name) ? qd_params_int(p, name) : otherwise;
}

/* --- the bundle --- */

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
static char *manifest_text(const sv_quantized *w)
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

/* The correction as text; "" when there is none. */
static qd_status correction_text(const qd_correction *c, char **out, qd_err *err)
{
    qd_buf b;
    qd_buf_init(&b, 0);
    qd_status st = c ? qd_correction_text(c, &b, err) : QD_OK;
    if (!st && !qd_buf_adds(&b, ""))
        st = qd_fail(err, QD_E_NOMEM, "no memory for the text of a correction");
    *out = st ? NULL : qd_buf_take(&b, NULL);
    qd_buf_clear(&b);
    return !st && !*out ? qd_fail(err, QD_E_NOMEM, "no memory for the text of a correction") : st;
}

static qd_status save_bundle(const sv_quantized *w, const qd_graph *g, const qd_correction *correction,
                             const char *path, char sha256_hex[QD_SHA256_HEX], qd_err *err)
{
    char *corrects = NULL;
    qd_meta *meta = NULL;
    char *manifest = manifest_text(w);
    const qd_model *m = w->source;
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
    if (w->latent && (st = qd_meta_set(meta, SV_META_LATENT, "true", err)))
        goto out;
    if ((st = qd_meta_set(meta, "role", w->t->method->role, err)) ||
        (st = qd_meta_set(meta, "manifest", manifest, err)))
        goto out;
    st = correction_text(correction, &corrects, err);
    if (!st && corrects[0])
        st = qd_meta_set(meta, SV_META_CORRECTION, corrects, err);
    if (!st)
        st = qd_bundle_save(path, g, meta, sha256_hex, err);
out:
    qd_free(corrects);
    qd_meta_free(meta);
    qd_free(manifest);
    return st;
}

qd_status sv_quantized_make(sv_quantized *w, const qd_quant_task *task, qd_err *err)
{
    sv_task *t = w->t;
    qd_graph *g = NULL;
    const qd_method *method = qd_method_find(t->method->name);
    if (!method)
        return qd_fail(err, QD_E_INTERNAL, "method '%s' is listed and not there", t->method->name);
    qd_status st = method->run(task, &t->run, &g, &w->report, err);
    if (st)
        return st;
    for (int k = 0; k < w->report.n_layers; k++)
        if (w->report.layers[k].activation_bits > 0)
            w->layers_quantized++;
        else
            w->layers_float++; /* perhaps with weights in 8 bits: its row says so */
    qd_run_progress(&t->run, "save", NULL, 0, 2);
    st = save_bundle(w, g, w->report.correction, w->bundle, w->sha256, err);
    qd_run_progress(&t->run, "save", NULL, 1, 2);
    qd_graph_free(g);
    return st;
}

qd_status sv_quantized_check(sv_quantized *w, const qd_model *read_back, qd_err *err)
{
    char again_hex[QD_SHA256_HEX];
    char *again = qd_asprintf("%s.again", w->bundle);
    if (!again)
        return qd_fail(err, QD_E_NOMEM, "no memory for a path");
    w->file_bytes = read_back->file_bytes;
    qd_correction *correction = NULL;
    const char *text = read_back->meta ? qd_meta_find(read_back->meta, SV_META_CORRECTION) : NULL;
    qd_status st = text ? qd_correction_parse(text, strlen(text), &correction, err) : QD_OK;
    if (!st)
        st = save_bundle(w, read_back->graph, correction, again, again_hex, err);
    qd_correction_free(correction);
    if (!st && strcmp(w->sha256, again_hex) != 0)
        st = qd_fail(err, QD_E_INTERNAL, "the bundle read back is not the one that was written: %s, %s", w->sha256,
                     again_hex);
    unlink(again);
    qd_free(again);
    if (st)
        return st;
    qd_run_progress(&w->t->run, "save", NULL, 2, 2);
    sv_task_log(w->t, "bundle of %llu bytes written and read back: %d layers in integers, %d left in float",
                (unsigned long long)w->file_bytes, w->layers_quantized, w->layers_float);
    return QD_OK;
}

/* --- figures --- */

/* An entry only when there is a figure: readers tell "not measured" by its absence. */
void sv_put_figure(json_t *o, const char *name, double v)
{
    if (isfinite(v))
        json_object_set_new(o, name, json_real(v));
}

json_t *sv_quantized_figures(const sv_quantized *w)
{
    json_t *o = json_pack("{s:s, s:I, s:I, s:I, s:i, s:i, s:i}", "method", w->t->method->name, "float_bytes",
                          (json_int_t)w->report.float_bytes, "quantized_bytes", (json_int_t)w->report.quantized_bytes,
                          "file_bytes", (json_int_t)w->file_bytes, "layers_quantized", w->layers_quantized,
                          "layers_float", w->layers_float, "threads", qd_run_threads(&w->t->run));
    if (w->report.quantized_bytes > 0)
        sv_put_figure(o, "ratio", (double)w->report.float_bytes / (double)w->report.quantized_bytes);
    const int64_t weight_bits = sv_param_or(w->t->params, "weight_bits", 0);
    const int64_t activation_bits = sv_param_or(w->t->params, "activation_bits", 0);
    if (weight_bits > 0)
        json_object_set_new(o, "weight_bits", json_integer(weight_bits));
    if (activation_bits > 0)
        json_object_set_new(o, "activation_bits", json_integer(activation_bits));
    return o;
}

/* report.json: the method's own report with everything around it. */
static qd_status save_report(const sv_quantized *w, const json_t *figures, const json_t *more, const char *path,
                             json_t **out, qd_err *err)
{
    qd_buf buf;
    json_t *o = NULL;
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
    json_object_set_new(o, "format", json_string("quantd-report-1"));
    json_object_set_new(o, "quantd", json_string(SV_VERSION));
    json_object_set_new(o, "job", json_string(w->t->job->id));
    json_object_set_new(o, "source", json_pack("{s:s, s:s}", "model", w->t->model->id, "sha256", w->t->model->sha256));
    json_object_set_new(o, "params", sv_params_to_json(w->t->params));
    json_object_set(o, "figures", (json_t *)figures);
    if (more)
        json_object_update(o, (json_t *)more);
    text = sv_json_text(o);
    st = text ? qd_fs_write(path, text, strlen(text), err) : qd_fail(err, QD_E_NOMEM, "no memory for the report");
    if (!st && out)
        *out = json_incref(o);
out:
    json_decref(o);
    qd_free(text);
    qd_buf_clear(&buf);
    return st;
}

/* --- what the job leaves --- */

qd_status sv_quantized_report(const sv_quantized *w, const json_t *figures, const json_t *more, json_t **out,
                              qd_err *err)
{
    char *report = qd_fs_join(w->t->dir, "report.json");
    qd_status st =
        report ? save_report(w, figures, more, report, out, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = sv_task_artifact(w->t, "report.json", "application/json", report, err);
    qd_free(report);
    return st;
}

qd_status sv_quantized_publish(const sv_quantized *w, json_t *figures, qd_err *err)
{
    sv_task *t = w->t;
    char id[40];
    char *name = qd_asprintf("%s-%s", t->model->name[0] ? t->model->name : "model", t->method->name);
    if (!name)
        return qd_fail(err, QD_E_NOMEM, "no memory for a name");
    qd_status st = sv_task_artifact(t, BUNDLE_NAME, "application/octet-stream", w->bundle, err);
    if (!st)
        st = sv_task_model(t, BUNDLE_NAME, name, id, err);
    if (!st) {
        json_object_set_new(figures, "model", json_string(id));
        json_object_set_new(figures, "model_name", json_string(name));
    }
    qd_free(name);
    return st;
}

const char *sv_max_drop(const sv_job_row *job, char metric[32], double *value)
{
    json_t *body = sv_json_read(job->body);
    const json_t *drop = json_object_get(body, "max_drop");
    const char *name = json_string_value(json_object_get(drop, "metric"));
    if (name) {
        snprintf(metric, 32, "%s", name);
        *value = json_number_value(json_object_get(drop, "value"));
    }
    json_decref(body);
    return name ? metric : NULL;
}
