/* task.c - what a running job leaves in the world: artifacts, pictures, models; each file first, its row after. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"

char *sv_data_path(const sv_settings *s, const char *a, const char *b)
{
    return b ? qd_asprintf("%s/%s/%s", s->data_dir, a, b) : qd_asprintf("%s/%s", s->data_dir, a);
}

char *sv_task_file_path(const sv_task *t, const sv_model_row *row)
{
    /* `quantd run` works on files where they lie. */
    return row->path[0] == '/' ? qd_strdup(row->path) : sv_data_path(t->settings, row->path, NULL);
}

char *sv_task_model_path(const sv_task *t)
{
    return sv_task_file_path(t, t->model);
}

void sv_task_error(sv_task *t, const char *code, json_t *figures)
{
    t->error_code = code;
    json_decref(t->error_figures);
    t->error_figures = figures;
}

/* data_dir/jobs/<id>/<part>, made when it is missing. */
static qd_status job_folder(const sv_task *t, const char *part, char **out, qd_err *err)
{
    char *path = qd_asprintf("%s/jobs/%s/%s", t->settings->data_dir, t->job->id, part);
    if (!path)
        return qd_fail(err, QD_E_NOMEM, "no memory for a path");
    const qd_status st = qd_fs_mkdirs(path, err);
    if (st) {
        qd_free(path);
        return st;
    }
    *out = path;
    return QD_OK;
}

/* A rename is on disk when its folder is. */
static void sync_folder(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    fsync(fd);
    close(fd);
}

qd_status sv_task_artifact(sv_task *t, const char *name, const char *mime, const char *scratch_path, qd_err *err)
{
    sv_artifact_row row = { 0 };
    char *folder = NULL, *path = NULL;
    char hash[QD_SHA256_HEX], id[40];
    struct stat info;
    qd_status st;

    st = job_folder(t, "artifacts", &folder, err);
    if (st)
        goto out;
    st = qd_fs_sha256(scratch_path, hash, err);
    if (st)
        goto out;
    if (stat(scratch_path, &info) != 0) {
        st = qd_fail(err, QD_E_IO, "artifact '%s': %s", name, strerror(errno));
        goto out;
    }
    sv_id_new(id, "art_");
    path = qd_fs_join(folder, hash);
    row = (sv_artifact_row){ .id = qd_strdup(id),
                             .job_id = qd_strdup(t->job->id),
                             .name = qd_strdup(name),
                             .mime = qd_strdup(mime),
                             .sha256 = qd_strdup(hash),
                             .path = qd_asprintf("jobs/%s/artifacts/%s", t->job->id, hash),
                             .size_bytes = info.st_size,
                             .created_ms = sv_now_ms() };
    if (!path || !row.id || !row.job_id || !row.name || !row.mime || !row.sha256 || !row.path) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for artifact '%s'", name);
        goto out;
    }
    if (rename(scratch_path, path) != 0) {
        st = qd_fail(err, QD_E_IO, "artifact '%s' cannot be moved to '%s': %s", name, path, strerror(errno));
        goto out;
    }
    sync_folder(folder);
    st = sv_reporter_artifact(t->reporter, &row, err);
out:
    sv_artifact_row_clear(&row);
    qd_free(path);
    qd_free(folder);
    return st;
}

qd_status sv_task_sample(sv_task *t, uint32_t frame_kind, int64_t step, int64_t index, const void *png, size_t size,
                         int width, int height, double psnr_db, qd_err *err)
{
    char *folder = NULL, *path = NULL, *relative = NULL;
    char name[96];
    qd_status st;

    st = job_folder(t, "samples", &folder, err);
    if (st)
        goto out;
    snprintf(name, sizeof name, "%d-%lld-%lld.png", t->job->attempt, (long long)index, (long long)step);
    path = qd_fs_join(folder, name);
    relative = qd_asprintf("jobs/%s/samples/%s", t->job->id, name);
    if (!path || !relative) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    st = qd_fs_write(path, png, size, err);
    if (st)
        goto out;
    /* Lent: the store copies. */
    sv_sample_row row = { .job_id = t->job->id,
                          .kind = (char *)(frame_kind == 2 ? "pair" : "sample"),
                          .path = relative,
                          .mime = (char *)"image/png",
                          .step = step,
                          .index = index,
                          .width = width,
                          .height = height,
                          .psnr_db = isfinite(psnr_db) ? psnr_db : NAN };
    st = sv_reporter_sample(t->reporter, frame_kind, &row, png, size, err);
out:
    qd_free(relative);
    qd_free(path);
    qd_free(folder);
    return st;
}

void sv_task_log(sv_task *t, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    sv_reporter_event(t->reporter, "log", json_pack("{s:s}", "message", text));
}

/* Is this file, relative to the data folder, named by a row of the job? */
static bool is_known(const char *path, const sv_artifact_row *artifacts, int n_artifacts, const sv_sample_row *samples,
                     int n_samples)
{
    for (int k = 0; k < n_artifacts; k++)
        if (strcmp(path, artifacts[k].path) == 0)
            return true;
    for (int k = 0; k < n_samples; k++)
        if (strcmp(path, samples[k].path) == 0)
            return true;
    return false;
}

void sv_task_sweep(const sv_task *t)
{
    static const char *const parts[] = { "artifacts", "samples" };
    sv_artifact_row *artifacts = NULL;
    sv_sample_row *samples = NULL;
    int n_artifacts = 0, n_samples = 0;

    if (sv_artifacts_list(t->store, t->job->id, &artifacts, &n_artifacts, NULL) ||
        sv_samples_list(t->store, t->job->id, &samples, &n_samples, NULL))
        goto out; /* what cannot be told apart stays */
    for (int p = 0; p < 2; p++) {
        char *folder = qd_asprintf("%s/jobs/%s/%s", t->settings->data_dir, t->job->id, parts[p]);
        DIR *dir = folder ? opendir(folder) : NULL;
        for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
            char *path = qd_asprintf("jobs/%s/%s/%s", t->job->id, parts[p], e->d_name);
            if (path && e->d_name[0] != '.' && !is_known(path, artifacts, n_artifacts, samples, n_samples))
                unlinkat(dirfd(dir), e->d_name, 0);
            qd_free(path);
        }
        if (dir)
            closedir(dir);
        qd_free(folder);
    }
out:
    sv_artifact_rows_free(artifacts, n_artifacts);
    sv_sample_rows_free(samples, n_samples);
}

/* One more name for the same bytes where links work, a copy where they do not. */
static qd_status link_or_copy(const char *from, const char *to, qd_err *err)
{
    qd_map map = { 0 };
    if (link(from, to) == 0 || errno == EEXIST)
        return QD_OK;
    qd_status st = qd_map_open(&map, from, err);
    if (st)
        return st;
    st = qd_fs_write(to, map.data, map.size, err);
    qd_map_close(&map);
    return st;
}

qd_status sv_task_model(sv_task *t, const char *artifact_name, const char *name, char out_id[40], qd_err *err)
{
    sv_artifact_row artifact = { 0 };
    sv_model_row row = { 0 }, added = { 0 };
    char *from = NULL, *folder = NULL, *to = NULL, *format = NULL, *role = NULL, *summary = NULL;
    char id[40];
    bool existing;
    qd_status st;

    st = sv_artifacts_get(t->store, t->job->id, artifact_name, &artifact, err);
    if (st)
        goto out;
    from = sv_data_path(t->settings, artifact.path, NULL);
    folder = sv_data_path(t->settings, "models", NULL);
    to = qd_asprintf("%s/models/%s.safetensors", t->settings->data_dir, artifact.sha256);
    if (!from || !folder || !to) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    if ((st = qd_fs_mkdirs(folder, err)) || (st = link_or_copy(from, to, err)))
        goto out;
    sync_folder(folder);
    st = sv_model_inspect(to, t->settings, &format, &role, &summary, err);
    if (st)
        goto out;

    sv_id_new(id, "mdl_");
    row = (sv_model_row){ .id = qd_strdup(id),
                          .name = qd_strdup(name),
                          .sha256 = qd_strdup(artifact.sha256),
                          .path = qd_asprintf("models/%s.safetensors", artifact.sha256),
                          .format = format,
                          .role = role,
                          .summary = summary,
                          .job_id = qd_strdup(t->job->id),
                          .size_bytes = artifact.size_bytes,
                          .created_ms = sv_now_ms() };
    format = role = summary = NULL;
    if (!row.id || !row.name || !row.sha256 || !row.path || !row.job_id) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for model '%s'", name);
        goto out;
    }
    st = sv_models_add(t->store, &row, &added, &existing, err);
    if (st)
        goto out;
    snprintf(out_id, 40, "%s", added.id);
out:
    sv_artifact_row_clear(&artifact);
    sv_model_row_clear(&row);
    sv_model_row_clear(&added);
    qd_free(from);
    qd_free(folder);
    qd_free(to);
    qd_free(format);
    qd_free(role);
    qd_free(summary);
    return st;
}
