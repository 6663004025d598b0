/* dataset.c - data sets as jobs see them: opened in any form there is, and told in a few figures. */
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"

#define MAX_COUNT ((int64_t)10 << 20)
enum { CLASSES_TOLD = 1000 };

/* Eight bytes of length, then JSON: no other format begins so. */
static bool is_safetensors(const char *path)
{
    qd_map map = { 0 };
    qd_reader r;
    if (qd_fs_is_dir(path) || qd_map_open(&map, path, NULL))
        return false;
    qd_reader_init(&r, map.data, map.size);
    const uint64_t header = qd_read_u64le(&r);
    const bool yes = qd_read_u8(&r) == '{' && !r.failed && header < map.size;
    qd_map_close(&map);
    return yes;
}

/* "images" u8 [N, C, H, W]; "labels" [N], when there are any. */
static qd_status open_tensors(const char *path, qd_budget *budget, qd_dataset **out, qd_err *err)
{
    qd_weights *w = NULL;
    qd_dataset *d = NULL;
    qd_status st = qd_safetensors_open(path, &w, NULL, err);
    if (st)
        return st;
    const qd_tensor *images = qd_weights_find(w, "images");
    st = images ? qd_dataset_wrap(images, qd_weights_find(w, "labels"), budget, &d, err)
                : qd_fail(err, QD_E_FORMAT, "the safetensors file has no tensor 'images'");
    qd_weights_free(w);
    if (!st && d->count > MAX_COUNT) {
        st = qd_fail(err, QD_E_LIMIT, "%lld pictures; %lld are the most", (long long)d->count, (long long)MAX_COUNT);
        qd_dataset_free(d);
    } else if (!st) {
        *out = d;
    }
    return st;
}

qd_status sv_dataset_open(const char *path, const sv_settings *s, qd_budget *budget, qd_dataset **out, qd_err *err)
{
    const qd_data_limits limits = { .max_bytes = (uint64_t)s->max_unpacked_bytes, .max_count = MAX_COUNT };
    if (is_safetensors(path))
        return open_tensors(path, budget, out, err);
    return qd_dataset_open(path, &limits, budget, out, err);
}

/* --- what it is --- */

static json_t *numbers(const double *v, int n)
{
    json_t *list = json_array();
    for (int k = 0; k < n; k++)
        json_array_append_new(list, sv_json_number(v[k]));
    return list;
}

static json_t *class_counts(const qd_dataset *d)
{
    int64_t count[CLASSES_TOLD] = { 0 };
    json_t *list = json_array();
    for (int64_t k = 0; k < d->count; k++)
        count[qd_dataset_label(d, k)]++;
    for (int c = 0; c < d->classes; c++)
        json_array_append_new(list, json_integer(count[c]));
    return list;
}

static json_t *describe(const qd_dataset *d)
{
    double mean[QD_MAX_CHANNELS], std[QD_MAX_CHANNELS];
    qd_dataset_statistics(d, mean, std);
    json_t *o = json_pack("{s:I, s:i, s:i, s:i, s:i, s:b, s:I, s:o, s:o}", "count", (json_int_t)d->count, "channels",
                          d->channels, "height", d->height, "width", d->width, "classes", d->classes, "labelled",
                          d->classes > 0, "files_left_out", (json_int_t)d->left_out, "mean", numbers(mean, d->channels),
                          "std", numbers(std, d->channels));
    if (d->classes > 0 && d->classes <= CLASSES_TOLD)
        json_object_set_new(o, "class_counts", class_counts(d));
    if (d->class_name && d->classes <= CLASSES_TOLD) {
        json_t *names = json_array();
        for (int c = 0; c < d->classes; c++) {
            json_t *name = json_string(d->class_name[c]); /* NULL for what is not UTF-8 */
            json_array_append_new(names, name ? name : json_null());
        }
        json_object_set_new(o, "class_names", names);
    }
    return o;
}

/* {"dim", "spatial", "count", "rows", "feature_hash"}: count 0 and no hash where a file of others does not say. */
static qd_status describe_statistics(const char *path, qd_budget *budget, json_t **out, qd_err *err)
{
    qd_feature_stats *s = NULL;
    qd_meta *meta = NULL;
    int64_t rows = 0;
    qd_status st = qd_meta_new(&meta, err);
    if (!st)
        st = qd_feature_stats_open(path, budget, &s, meta, err);
    if (!st) {
        const char *hash = qd_meta_find(meta, "feature_hash");
        qd_feature_stats_rows(s, &rows);
        json_t *o = json_pack("{s:I, s:b, s:I, s:I}", "dim", (json_int_t)qd_feature_stats_dim(s), "spatial",
                              qd_feature_stats_has_spatial(s), "count", (json_int_t)qd_feature_stats_count(s), "rows",
                              (json_int_t)rows);
        if (hash)
            json_object_set_new(o, "feature_hash", json_string(hash)); /* left out where it is not UTF-8 */
        *out = o;
    }
    qd_feature_stats_free(s);
    qd_meta_free(meta);
    return st;
}

/* What lies there: its format, its role, its summary. The texts are static. */
static qd_status look(const char *path, const sv_settings *settings, qd_budget *budget, const char **format,
                      const char **role, json_t **summary, qd_err *err)
{
    qd_dataset *d = NULL;
    if (is_safetensors(path) && sv_context_sniff(path)) {
        *format = "safetensors";
        *role = SV_ROLE_CONTEXT;
        return sv_context_inspect(path, budget, summary, err);
    }
    if (qd_feature_stats_sniff(path, budget)) {
        *format = is_safetensors(path) ? "safetensors" : "npy";
        *role = SV_ROLE_STATISTICS;
        return describe_statistics(path, budget, summary, err);
    }
    const qd_status st = sv_dataset_open(path, settings, budget, &d, err);
    if (st)
        return st;
    *format = d->format;
    *role = d->classes > 0 ? "labelled" : "unlabelled";
    *summary = describe(d);
    qd_dataset_free(d);
    return QD_OK;
}

qd_status sv_dataset_inspect(const char *path, const sv_settings *settings, char **format, char **role, char **summary,
                             qd_err *err)
{
    qd_budget budget;
    const char *its_format, *its_role;
    json_t *o = NULL;
    qd_budget_init(&budget, settings->job_memory_bytes > 0 ? (size_t)settings->job_memory_bytes : 0);
    const qd_status st = look(path, settings, &budget, &its_format, &its_role, &o, err);
    if (st)
        return st;
    char *text = sv_json_text(o), *format_copy = qd_strdup(its_format), *role_copy = qd_strdup(its_role);
    json_decref(o);
    if (!text || !format_copy || !role_copy) {
        qd_free(text);
        qd_free(format_copy);
        qd_free(role_copy);
        return qd_fail(err, QD_E_NOMEM, "no memory for a data set's summary");
    }
    *summary = text;
    *format = format_copy;
    *role = role_copy;
    return QD_OK;
}
