/* estimate.c - what a job would cost, judged by its model's summary and by earlier jobs: nothing is opened, nothing computed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"

enum { HISTORY = 20, BATCH = 8 }; /* earlier jobs looked at; trajectories that share a call */

/* Used when nothing like it has ever finished: rough, and said to be. */
static const double macs_per_second = 2e9; /* of one thread, float and integer alike */
static const double overhead_s = 1.0, spread = 4.0;

static double number(const json_t *o, const char *name, double otherwise)
{
    const json_t *v = json_object_get(o, name);
    return json_is_number(v) ? json_number_value(v) : otherwise;
}

static const char *choice(const json_t *params, const char *name, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(params, name));
    return text ? text : otherwise;
}

/* Calls of the network with one picture: what is drawn, the trajectories that calibrate, those that measure and the pairs in float and
 * quantized, and once more the calibration set. Parameters a job does not have count nothing. */
static double calls(const json_t *params)
{
    const double samples = number(params, "calibration_samples", 0);
    const double runs = number(params, "count", 0) + samples + 2 * number(params, "measure_samples", 0) +
                        2 * number(params, "pairs", 0);
    return runs * number(params, "steps", 1) + samples * number(params, "calibration_steps", 0);
}

/* Guidance asks the network for two answers at once. */
static double answers(const json_t *params)
{
    const double w = number(params, "guidance", 1);
    return w != 0 && w != 1 ? 2 : 1;
}

/* The first stage that decodes latents, as the summary has it; NULL when there is none, or the job does not want it. */
static const json_t *first_stage(const json_t *summary, const json_t *params)
{
    return strcmp(choice(params, "decoder", ""), SV_DECODER_NONE) == 0 ? NULL : json_object_get(summary, "first_stage");
}

/* Multiply-adds of a whole job; 0 = not known. */
static double work(const json_t *summary, const json_t *params)
{
    const double pictures = number(params, "count", 0) + 2 * number(params, "pairs", 0);
    return number(summary, "macs", 0) * calls(params) * answers(params) +
           number(first_stage(summary, params), "macs", 0) * pictures;
}

/* --- time --- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Work of an earlier job, 0 when its model is gone. */
static double work_of(sv_store *store, const sv_job_row *j)
{
    sv_model_row m = { 0 };
    double w = 0;
    if (sv_models_get(store, j->model_id, &m, NULL))
        return 0;
    json_t *summary = sv_json_read(m.summary), *params = sv_json_read(j->params);
    w = work(summary, params);
    json_decref(params);
    json_decref(summary);
    sv_model_row_clear(&m);
    return w;
}

/* Running times of the last successful jobs of this kind and method, each stretched to this one's work where both are known; only
 * those of the same model when there are any. */
static int history(sv_store *store, const sv_job_row *j, double seconds[HISTORY])
{
    const sv_list_query q = { .status = "succeeded", .kind = j->kind, .limit = HISTORY };
    const double mine = work_of(store, j);
    sv_job_row *rows = NULL;
    int n = 0, found = 0;
    bool more, same = false;

    if (sv_jobs_list(store, &q, &rows, &n, &more, NULL))
        return 0;
    for (int k = 0; k < n; k++)
        same = same || (strcmp(rows[k].method, j->method) == 0 && strcmp(rows[k].model_id, j->model_id) == 0);
    for (int k = 0; k < n; k++) {
        if (strcmp(rows[k].method, j->method) != 0 || rows[k].started_ms <= 0 ||
            (same && strcmp(rows[k].model_id, j->model_id) != 0))
            continue;
        const double theirs = work_of(store, &rows[k]), s = (double)(rows[k].finished_ms - rows[k].started_ms) / 1000;
        seconds[found++] = s * (mine > 0 && theirs > 0 ? mine / theirs : 1);
    }
    sv_job_rows_free(rows, n);
    qsort(seconds, (size_t)found, sizeof seconds[0], by_value);
    return found;
}

bool sv_estimate_seconds(sv_store *store, const sv_job_row *j, double *p50, double *p90, int *jobs)
{
    double seconds[HISTORY];
    const int n = history(store, j, seconds);
    if (n == 0)
        return false;
    *p50 = seconds[n / 2];
    *p90 = seconds[n * 9 / 10];
    *jobs = n;
    return true;
}

static json_t *seconds_json(sv_store *store, const sv_settings *s, const sv_job_row *j, double macs)
{
    double p50, p90;
    int jobs;
    if (sv_estimate_seconds(store, j, &p50, &p90, &jobs))
        return json_pack("{s:f, s:f, s:s, s:i}", "p50", p50, "p90", p90, "basis", "history", "jobs", jobs);
    if (macs <= 0)
        return json_null();
    const double speed = macs_per_second * (s->threads > 0 ? s->threads : 1);
    return json_pack("{s:f, s:f, s:s, s:f}", "p50", overhead_s + macs / speed, "p90",
                     overhead_s + spread * macs / speed, "basis", "assumed", "macs_per_second", speed);
}

/* --- size --- */

/* Bytes of one group of layers: codes, a 4-byte scale for each output or group of inputs; or floats. bits 0 = float. */
static double group_bytes(const json_t *weights, const char *name, double bits, double group_size)
{
    const json_t *o = json_object_get(weights, name);
    const double elements = number(o, "elements", 0), rows = number(o, "rows", 0);
    if (bits <= 0)
        return 4 * elements;
    const double scales = group_size > 0 ? fmax(rows, elements / group_size) : rows;
    return elements * bits / 8 + 4 * scales;
}

/* A layer policy as params name it, in bits. */
static double policy_bits(const char *policy, double bits)
{
    return strcmp(policy, "float") == 0 ? 0 : strcmp(policy, "w8") == 0 ? 8 : bits;
}

/* Constants of the quantized model; 0 when the job makes none, or the model was looked at by an earlier quantd. */
static double output_bytes(const json_t *summary, const json_t *params)
{
    const json_t *w = json_object_get(summary, "weights");
    const double bits = number(params, "weight_bits", 0), group = number(params, "group_size", 0);
    if (!json_is_object(w) || bits <= 0)
        return 0;
    const char *edge = choice(params, "edge_layers", "int8");
    return number(w, "other_bytes", 0) + group_bytes(w, "inner", bits, group) +
           group_bytes(w, "first", policy_bits(choice(params, "first_layer", edge), bits), 0) +
           group_bytes(w, "last", policy_bits(choice(params, "last_layer", edge), bits), 0) +
           group_bytes(w, "time", policy_bits(choice(params, "time_layers", "float"), bits), 0);
}

/* --- memory --- */

/* Bytes of one sample: the input of that name without its batch, or the largest where a classifier calls it otherwise. */
static double picture_bytes(const json_t *summary)
{
    double most = 0;
    const char *name;
    json_t *in, *dim;
    size_t at;
    json_object_foreach(json_object_get(summary, "inputs"), name, in)
    {
        double n = 4;
        json_array_foreach(json_object_get(in, "shape"), at, dim)
        {
            if (json_is_integer(dim))
                n *= json_number_value(dim);
        }
        if (strcmp(name, "sample") == 0)
            return n;
        most = fmax(most, n);
    }
    return most;
}

/* How often the float weights are there at once: as the file or graph has them, and as a plan packs them. Sampling with one plan lets
 * each weight go as it is packed (sv_denoise_let_go). */
static double copies(const json_t *params)
{
    const double count = number(params, "count", 0), batch = number(params, "batch", 1);
    return count > 0 && (count <= batch || fmod(count, batch) == 0) ? 1 : 2;
}

/* Weights as often as they are there; what is alive at the widest point, for each picture of a call (a quantization has a float and a
 * quantized plan side by side, a noise map one more beside what all layers make); pictures and calibration inputs that are kept; the first stage, one latent at a time. */
static json_t *memory_json(const sv_settings *s, const json_t *summary, const json_t *params, double made)
{
    const double samples = number(params, "calibration_samples", 0), count = number(params, "count", 0);
    const double batch = fmax(count > 0 ? fmin(count, number(params, "batch", 1)) : 1, fmin(samples, BATCH));
    const json_t *stage = first_stage(summary, params);
    const bool mapped = made > 0 && number(params, "noise_map_steps", 0) > 0;
    const double weights = (copies(params) + mapped) * number(summary, "parameter_bytes", 0) + 2 * made +
                           2 * number(stage, "parameter_bytes", 0);
    const double at_once = batch * answers(params);
    const double activations = number(summary, "activation_bytes", 0) * at_once * (1 + (made > 0) + mapped) +
                               number(summary, "layer_bytes", 0) * at_once * mapped +
                               number(stage, "activation_bytes", 0);
    const double kept = picture_bytes(summary) * (count + samples * fmax(1, number(params, "calibration_steps", 0)));
    const double peak = weights + activations + kept;
    json_t *o = json_pack("{s:I, s:I, s:I, s:I}", "weights_bytes", (json_int_t)weights, "activation_bytes",
                          (json_int_t)activations, "data_bytes", (json_int_t)kept, "peak_bytes", (json_int_t)peak);
    json_object_set_new(o, "limit_bytes", s->job_memory_bytes > 0 ? json_integer(s->job_memory_bytes) : json_null());
    json_object_set_new(o, "fits", json_boolean(s->job_memory_bytes <= 0 || peak <= (double)s->job_memory_bytes));
    return o;
}

/* --- what cannot be done, or is left as it is --- */

static json_t *unsupported_json(const json_t *summary, const json_t *params)
{
    json_t *list = json_array(), *in, *warning;
    const char *name;
    size_t at;
    json_array_foreach(json_object_get(summary, "warnings"), at, warning) json_array_append(list, warning);
    /* Diffusion: calibration draws its own pictures, and fills what denoisers are told. */
    if (json_object_get(params, "weight_bits") && json_object_get(params, "steps"))
        json_object_foreach(json_object_get(summary, "inputs"), name, in)
        {
            if (strcmp(name, "sample") != 0 && strcmp(name, "timestep") != 0 &&
                strcmp(name, "encoder_hidden_states") != 0 && strcmp(name, "class_labels") != 0)
                json_array_append_new(list, json_sprintf("calibration cannot fill the model's input '%s'", name));
        }
    return list;
}

qd_status sv_job_estimate(sv_store *store, const sv_settings *s, const sv_job_row *j, json_t **out, qd_err *err)
{
    sv_model_row m = { 0 };
    qd_status st = sv_models_get(store, j->model_id, &m, err);
    if (st)
        return st;
    json_t *summary = sv_json_read(m.summary), *params = sv_json_read(j->params);
    const double made = output_bytes(summary, params), before = number(summary, "parameter_bytes", 0);
    const double macs = work(summary, params);
    json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "object", "estimate", "kind", j->kind, "method", j->method, "model",
                          j->model_id);
    json_object_set_new(o, "output",
                        made > 0 ? json_pack("{s:I, s:I, s:f}", "float_bytes", (json_int_t)before, "quantized_bytes",
                                             (json_int_t)made, "ratio", before / made)
                                 : json_null());
    json_object_set_new(o, "memory", memory_json(s, summary, params, made));
    json_object_set_new(o, "macs", macs > 0 ? json_real(macs) : json_null());
    json_object_set_new(o, "seconds", seconds_json(store, s, j, macs));
    json_object_set_new(o, "unsupported", unsupported_json(summary, params));
    json_decref(params);
    json_decref(summary);
    sv_model_row_clear(&m);
    if (!o)
        return qd_fail(err, QD_E_NOMEM, "no memory for an estimate");
    *out = o;
    return QD_OK;
}
