/* evaluate_features.c - the feature network of a job, and what its reference set looks like to it: computed once, kept for the next. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/evaluate_int.h"
#include "nn/nn.h"
#include "plan/plan.h"

enum { KEPT_MAX = 64 }; /* files of statistics; the one not used for longest goes first */

static const char *const pixel_names[] = { "round", "truncate", "clip", "float", NULL }; /* as in qd_pixel_rule */
static const char *const resize_names[] = { "refuse", "bilinear", "corner", NULL };      /* as in qd_resize_rule */

/* clang-format off */
const qd_param sv_feature_rows[] = {
    { .name = "network", .type = QD_PARAM_STRING, .fallback = "", .max = 128,
      .summary = "Id or name of the model in whose features pictures are compared: any network with one picture as input." },
    { .name = "features", .type = QD_PARAM_STRING, .fallback = "", .max = 200,
      .summary = "Name of the value or output taken as features, [N, D], or [N, C, H, W], which is averaged over space; empty: what the last linear layer reads." },
    { .name = "spatial", .type = QD_PARAM_STRING, .fallback = "", .max = 200,
      .summary = "Name of a value [N, C, H, W] whose first channels make a second distance, as sFID; empty = none." },
    { .name = "spatial_channels", .type = QD_PARAM_INT, .fallback = "7", .min = 1, .max = 1024,
      .summary = "How many channels of it." },
    { .name = "mean", .type = QD_PARAM_STRING, .fallback = "0", .max = 200,
      .summary = "What the network wants subtracted from pixels in 0..1: one number, or one for each channel with commas between." },
    { .name = "std", .type = QD_PARAM_STRING, .fallback = "1", .max = 200,
      .summary = "What it then wants them divided by: one number, or one for each channel with commas between." },
    { .name = "pixels", .type = QD_PARAM_CHOICE, .fallback = "round", .choices = pixel_names,
      .summary = "Drawn samples x as pixels in 0..1: round(255 clamp((x + 1) / 2)) / 255 as in a PNG file; truncated instead; clipped to 0..1 only; or float, (x + 1) / 2 as it is." },
    { .name = "resize", .type = QD_PARAM_CHOICE, .fallback = "bilinear", .choices = resize_names,
      .summary = "Pictures of another size than the network's: refused; bilinear as torch and pytorch-fid do it, without low-pass; or with pixels at corners as TensorFlow 1 does it. Grey is repeated for three channels." },
    { .name = NULL },
};
/* clang-format on */

/* --- the network --- */

static int choice_of(const qd_params *p, const char *name, const char *const *names)
{
    const char *given = qd_params_string(p, name);
    int k = 0;
    while (strcmp(names[k], given) != 0)
        k++;
    return k;
}

/* All that decides what the network says of an 8-bit picture. */
static qd_status hash_lens(sv_lens *l, const qd_params *p, const sv_model_row *network, qd_err *err)
{
    char *text =
        qd_asprintf("quantd-features-1\nnetwork %s\nfeatures %s\nspatial %s %lld\nmean %s\nstd %s\nresize %s\n",
                    network->sha256, qd_features_sizes(l->features).name, qd_params_string(p, "spatial"),
                    (long long)qd_params_int(p, "spatial_channels"), qd_params_string(p, "mean"),
                    qd_params_string(p, "std"), qd_params_string(p, "resize"));
    if (!text)
        return qd_fail(err, QD_E_NOMEM, "no memory for a hash");
    qd_sha256(text, strlen(text), l->hash);
    qd_free(text);
    return QD_OK;
}

qd_status sv_lens_open(sv_lens *l, sv_task *t, const sv_model_row *network, int64_t batch, qd_err *err)
{
    const qd_params *p = t->params;
    const qd_feature_options o = { .features = qd_params_string(p, "features"),
                                   .spatial = qd_params_string(p, "spatial"),
                                   .spatial_channels = (int)qd_params_int(p, "spatial_channels"),
                                   .pixels = (qd_pixel_rule)choice_of(p, "pixels", pixel_names),
                                   .resize = (qd_resize_rule)choice_of(p, "resize", resize_names),
                                   .mean = qd_params_string(p, "mean"),
                                   .std = qd_params_string(p, "std"),
                                   .batch = batch };
    char *path = sv_task_file_path(t, network);
    qd_role role;
    qd_status st = path ? qd_model_open(path, qd_run_budget(&t->run), &l->model, err)
                        : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = qd_zoo_build(l->model, &t->run, &l->graph, &role, err);
    if (!st)
        st = qd_features_new(l->graph, &o, &t->run, &l->features, err);
    if (!st)
        st = hash_lens(l, p, network, err);
    else
        qd_fail_in(err, st, "feature network '%.80s'", network->name);
    qd_free(path);
    return st;
}

void sv_lens_clear(sv_lens *l)
{
    qd_features_free(l->features);
    qd_graph_free(l->graph);
    qd_model_free(l->model);
    memset(l, 0, sizeof *l);
}

json_t *sv_lens_json(const sv_lens *l, const sv_task *t, const sv_model_row *network)
{
    const qd_params *p = t->params;
    const qd_feature_sizes z = qd_features_sizes(l->features);
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:s, s:s, s:s}", "network", network->id,
                     "network_sha256", network->sha256, "value", z.name, "dim", (json_int_t)z.dim, "spatial_dim",
                     (json_int_t)z.spatial_dim, "classes", (json_int_t)z.classes, "mean", qd_params_string(p, "mean"),
                     "std", qd_params_string(p, "std"), "pixels", qd_params_string(p, "pixels"), "resize",
                     qd_params_string(p, "resize"), "hash", l->hash);
}

/* --- statistics that are kept: data_dir/features/<hash>.safetensors --- */

static qd_status save(sv_task *t, const sv_lens *l, const qd_feature_stats *s, const char *path, qd_err *err)
{
    qd_meta *meta = NULL;
    qd_status st = qd_meta_new(&meta, err);
    if (!st)
        st = qd_meta_set(meta, "feature_hash", l->hash, err);
    if (!st)
        st = qd_feature_stats_save(s, path, meta, qd_run_threads(&t->run), err);
    qd_meta_free(meta);
    return st;
}

qd_status sv_statistics_publish(sv_task *t, const sv_lens *l, const qd_feature_stats *s, const char *name, qd_err *err)
{
    char *path = qd_fs_join(t->dir, name);
    qd_status st = path ? save(t, l, s, path, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = sv_task_artifact(t, name, "application/octet-stream", path, err);
    qd_free(path);
    return st;
}

/* Where the statistics of this data set are kept, or would be. */
static char *kept_path(const sv_task *t, const sv_lens *l, int64_t count, int64_t rows)
{
    char hash[QD_SHA256_HEX];
    char *text =
        qd_asprintf("%s\ndataset %s\ncount %lld\nrows %lld\nchunk %lld\nkernels %s %s\n", l->hash, t->dataset->sha256,
                    (long long)count, (long long)rows, (long long)qd_params_int(t->params, "chunk"),
                    qd_backend_name(qd_backend_default()), qd_plan_libraries());
    if (!text)
        return NULL;
    qd_sha256(text, strlen(text), hash);
    qd_free(text);
    return qd_asprintf("%s/features/%s.safetensors", t->settings->data_dir, hash);
}

/* Kept statistics that can still be read; what cannot is made anew. */
static qd_feature_stats *find_kept(const sv_task *t, const char *path)
{
    qd_feature_stats *s = NULL;
    if (!qd_fs_exists(path))
        return NULL;
    if (qd_feature_stats_open(path, qd_run_budget(&t->run), &s, NULL, NULL)) {
        unlink(path);
        return NULL;
    }
    utimensat(AT_FDCWD, path, NULL, 0); /* used now */
    return s;
}

/* Leaves KEPT_MAX files. Two jobs may do so at once: what is gone already is no failure. */
static void forget_oldest(const char *folder)
{
    for (;;) {
        char oldest[300] = "";
        struct timespec when = { 0 };
        int n = 0;
        DIR *dir = opendir(folder);
        for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
            struct stat info;
            if (e->d_name[0] == '.' || fstatat(dirfd(dir), e->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0)
                continue;
            n++;
            if (!oldest[0] || info.st_mtim.tv_sec < when.tv_sec ||
                (info.st_mtim.tv_sec == when.tv_sec && info.st_mtim.tv_nsec < when.tv_nsec)) {
                when = info.st_mtim;
                snprintf(oldest, sizeof oldest, "%s", e->d_name);
            }
        }
        const bool done = n <= KEPT_MAX || unlinkat(dirfd(dir), oldest, 0) != 0;
        if (dir)
            closedir(dir);
        if (done)
            return;
    }
}

/* A folder that cannot be written is no reason to fail a job that has its figures. */
static void keep(sv_task *t, const sv_lens *l, const qd_feature_stats *s, const char *path)
{
    qd_err err = { 0 };
    char *folder = sv_data_path(t->settings, "features", NULL);
    qd_status st = folder ? qd_fs_mkdirs(folder, &err) : QD_E_NOMEM;
    if (!st)
        st = save(t, l, s, path, &err);
    if (st)
        qd_run_warn(&t->run, "statistics of the data set are not kept: %s", err.text);
    else
        forget_oldest(folder);
    qd_free(folder);
}

/* --- the reference --- */

static qd_status open_uploaded(sv_reference *r, sv_task *t, const sv_lens *l, const char *path, qd_err *err)
{
    const qd_feature_sizes z = qd_features_sizes(l->features);
    qd_meta *meta = NULL;
    qd_status st = qd_meta_new(&meta, err);
    if (!st)
        st = qd_feature_stats_open(path, qd_run_budget(&t->run), &r->stats, meta, err);
    if (!st && qd_feature_stats_dim(r->stats) != z.dim)
        st = qd_fail(err, QD_E_INVALID, "the statistics '%.80s' are of %lld features, the network gives %lld",
                     t->dataset->name, (long long)qd_feature_stats_dim(r->stats), (long long)z.dim);
    const char *hash = st ? NULL : qd_meta_find(meta, "feature_hash");
    if (hash && strcmp(hash, l->hash) != 0)
        qd_run_warn(&t->run, "the statistics '%.80s' were made by another network or other preprocessing",
                    t->dataset->name);
    else if (!st && !hash)
        qd_run_warn(&t->run, "the statistics '%.80s' do not say by which network and preprocessing they were made",
                    t->dataset->name);
    qd_meta_free(meta);
    r->from = "uploaded";
    return st;
}

static qd_status compute(sv_reference *r, sv_task *t, sv_lens *l, const char *path, int64_t limit, int64_t rows,
                         qd_err *err)
{
    qd_dataset *d = NULL;
    qd_status st = sv_dataset_open(path, t->settings, qd_run_budget(&t->run), &d, err);
    if (!st)
        st = qd_feature_stats_new(l->features, rows, qd_params_int(t->params, "chunk"), qd_run_budget(&t->run),
                                  &r->stats, err);
    if (!st)
        st = qd_feature_stats_add_dataset(r->stats, l->features, d, NULL,
                                          limit > 0 && limit < d->count ? limit : d->count, "features of the reference",
                                          &t->run, err);
    qd_dataset_free(d);
    r->from = "computed";
    return st;
}

qd_status sv_reference_open(sv_reference *r, sv_task *t, sv_lens *l, qd_err *err)
{
    const int64_t limit = qd_params_int(t->params, "limit"), rows = qd_params_int(t->params, "rows");
    char *path = sv_task_file_path(t, t->dataset), *kept = kept_path(t, l, limit, rows);
    qd_status st = path && kept ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (st)
        goto out;
    if (strcmp(t->dataset->role, SV_ROLE_STATISTICS) == 0) {
        st = open_uploaded(r, t, l, path, err);
        goto out;
    }
    r->stats = find_kept(t, kept);
    r->from = "kept";
    if (r->stats)
        goto out;
    st = compute(r, t, l, path, limit, rows, err);
    if (!st)
        keep(t, l, r->stats, kept);
out:
    qd_free(path);
    qd_free(kept);
    return st;
}

void sv_reference_clear(sv_reference *r)
{
    qd_feature_stats_free(r->stats);
    memset(r, 0, sizeof *r);
}
