/* once.c - one job in this process, without server or queue: `quantd run job.json`.
 *
 * It goes the same way as in the daemon - store, claim, attempt - in a data folder that lives as long as the job, so there is no
 * second path to keep right. The body's "model" is a path, and so may be whatever else names a model or data set. Results are
 * moved to the out folder by their names. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"

enum { BODY_BYTES = 1 << 20, LEASE_MS = 7 * 24 * 3600 * 1000 };

/* --- the model where it lies --- */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void names_free(char **names, int n)
{
    for (int k = 0; k < n; k++)
        qd_free(names[k]);
    qd_free(names);
}

/* Visible entries of a folder, sorted. */
static qd_status read_names(const char *path, char ***out, int *n, qd_err *err)
{
    DIR *dir = opendir(path);
    char **names = NULL;
    int count = 0;
    struct dirent *entry;
    if (!dir)
        return qd_fail(err, QD_E_IO, "'%s' cannot be read: %s", path, strerror(errno));
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        char **more = qd_realloc(names, (size_t)(count + 1) * sizeof *names);
        char *name = qd_strdup(entry->d_name);
        if (more)
            names = more;
        if (!more || !name) {
            qd_free(name);
            closedir(dir);
            names_free(names, count);
            return qd_fail(err, QD_E_NOMEM, "no memory for the names in '%s'", path);
        }
        names[count++] = name;
    }
    closedir(dir);
    if (count > 0)
        qsort(names, (size_t)count, sizeof *names, by_name);
    *out = names;
    *n = count;
    return QD_OK;
}

/* "name hash" of every file below, in order, into `list`; *bytes sums their sizes. */
static qd_status list_tree(const char *path, const char *name, qd_buf *list, int64_t *bytes, qd_err *err)
{
    struct stat info;
    char hash[QD_SHA256_HEX];
    char **names = NULL;
    int n = 0;
    if (stat(path, &info) != 0)
        return qd_fail(err, QD_E_IO, "'%s': %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode)) {
        const qd_status st = qd_fs_sha256(path, hash, err);
        *bytes += info.st_size;
        qd_buf_addf(list, "%s %s\n", name, hash);
        return st;
    }
    qd_status st = read_names(path, &names, &n, err);
    for (int k = 0; k < n && !st; k++) {
        char *below = qd_fs_join(path, names[k]), *label = qd_fs_join(name, names[k]);
        st = below && label ? list_tree(below, label, list, bytes, err)
                            : qd_fail(err, QD_E_NOMEM, "no memory for a path");
        qd_free(below);
        qd_free(label);
    }
    names_free(names, n);
    return st;
}

/* The hash a model or data set is known by: of the file, or of the list of a folder's files. */
static qd_status hash_model(const char *path, char hash[QD_SHA256_HEX], int64_t *bytes, qd_err *err)
{
    qd_buf list;
    qd_buf_init(&list, 0);
    *bytes = 0;
    qd_status st = list_tree(path, ".", &list, bytes, err);
    if (!st && list.failed)
        st = qd_fail(err, QD_E_NOMEM, "no memory for the names in '%s'", path);
    if (!st && qd_fs_is_dir(path))
        qd_sha256(list.data, list.size, hash);
    else if (!st)
        st = qd_fs_sha256(path, hash, err);
    qd_buf_clear(&list);
    return st;
}

/* What a file is registered by: models and data sets have rows of one shape. */
typedef struct shelf {
    const char *noun, *prefix;
    qd_status (*inspect)(const char *path, const sv_settings *s, char **format, char **role, char **summary,
                         qd_err *err);
    qd_status (*add)(sv_store *s, const sv_model_row *row, sv_model_row *out, bool *existing, qd_err *err);
} shelf;
static const shelf models = { "model", "mdl_", sv_model_inspect, sv_models_add };
static const shelf datasets = { "dataset", "dst_", sv_dataset_inspect, sv_datasets_add };

static qd_status add_file(const shelf *f, const sv_settings *s, sv_store *store, const char *path, sv_model_row *out,
                          qd_err *err)
{
    sv_model_row row = { .created_ms = sv_now_ms() };
    char hash[QD_SHA256_HEX], id[40];
    bool existing;
    qd_status st;
    char *full = realpath(path, NULL);

    if (!full)
        return qd_fail(err, QD_E_NOT_FOUND, "%s '%s': %s", f->noun, path, strerror(errno));
    row.path = qd_strdup(full);
    const char *base = strrchr(full, '/');
    row.name = qd_strdup(base ? base + 1 : full);
    free(full);
    st = f->inspect(path, s, &row.format, &row.role, &row.summary, err);
    if (st)
        goto out;
    st = hash_model(path, hash, &row.size_bytes, err);
    if (st)
        goto out;
    sv_id_new(id, f->prefix);
    row.id = qd_strdup(id);
    row.sha256 = qd_strdup(hash);
    row.job_id = qd_strdup("");
    if (!row.path || !row.name || !row.id || !row.sha256 || !row.job_id)
        st = qd_fail(err, QD_E_NOMEM, "no memory for %s '%s'", f->noun, path);
    else
        st = f->add(store, &row, out, &existing, err);
out:
    sv_model_row_clear(&row);
    return st;
}

/* --- the job --- */

/* What the daemon's clients would see, one line for each event, for whoever sits at the terminal. */
static void on_event(void *ctx, const sv_message *m)
{
    fprintf(stderr, "%s\n", m->envelope);
}

static qd_status read_body(const char *path, json_t **out, qd_err *err)
{
    char *text = NULL;
    size_t size;
    json_error_t where;
    qd_status st = qd_fs_take(path, BODY_BYTES, &text, &size, err);
    if (st)
        return st;
    json_t *o = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
    qd_free(text);
    if (!json_is_object(o)) {
        json_decref(o);
        return qd_fail(err, QD_E_FORMAT, "'%s' is not a JSON object: %s (line %d)", path, o ? "" : where.text,
                       o ? 1 : where.line);
    }
    *out = o;
    return QD_OK;
}

/* Parameters that name other files: where one of them is a path, it is registered like the job's own. */
static qd_status add_named(const sv_settings *s, sv_store *store, json_t *body, qd_err *err)
{
    static const struct {
        const char *param;
        const shelf *shelf;
    } named[] = { { "reference", &models },
                  { "network", &models },
                  { "decoder", &models },
                  { "context", &datasets },
                  { "generated", &datasets } };
    json_t *params = json_object_get(body, "params");
    qd_status st = QD_OK;
    for (size_t k = 0; k < sizeof named / sizeof named[0] && !st; k++) {
        const char *path = json_string_value(json_object_get(params, named[k].param));
        sv_model_row row = { 0 };
        if (!path || !path[0] || !qd_fs_exists(path))
            continue;
        st = add_file(named[k].shelf, s, store, path, &row, err);
        if (!st)
            json_object_set_new(params, named[k].param, json_string(row.id));
        else
            qd_fail_in(err, st, "params.%s", named[k].param);
        sv_model_row_clear(&row);
    }
    return st;
}

static qd_status submit(const sv_settings *s, sv_store *store, json_t *body, sv_job_row *claimed, qd_err *err)
{
    sv_model_row model = { 0 }, dataset = { 0 };
    sv_job_row parsed = { 0 }, added = { 0 };
    char pointer[128];
    bool existing;
    qd_status st;

    const char *path = json_string_value(json_object_get(body, "model"));
    if (!path)
        return qd_fail(err, QD_E_INVALID, "the job's \"model\" must be the path of a model file or folder");
    st = add_file(&models, s, store, path, &model, err);
    if (st)
        goto out;
    json_object_set_new(body, "model", json_string(model.id));
    path = json_string_value(json_object_get(body, "dataset"));
    if (path) {
        st = add_file(&datasets, s, store, path, &dataset, err);
        if (st)
            goto out;
        json_object_set_new(body, "dataset", json_string(dataset.id));
    }
    st = add_named(s, store, body, err);
    if (st)
        goto out;
    json_object_del(body, "run_at");
    if ((st = sv_job_parse(store, body, &parsed, pointer, err)) ||
        (st = sv_jobs_add(store, &parsed, NULL, &added, &existing, err)))
        goto out;
    st = sv_jobs_claim(store, "once", sv_now_ms(), LEASE_MS, claimed, err);
out:
    sv_job_row_clear(&parsed);
    sv_job_row_clear(&added);
    sv_model_row_clear(&dataset);
    sv_model_row_clear(&model);
    return st;
}

/* One process, one job: the one stop flag a signal can reach. */
static sv_stop interrupt;

static void on_interrupt(int signum)
{
    sv_stop_raise(&interrupt, SV_STOP_CANCEL);
}

static qd_status execute(const sv_settings *s, sv_store *store, sv_bus *bus, const sv_job_row *job, qd_err *err)
{
    sv_reporter *reporter = NULL;
    const struct sigaction act = { .sa_handler = on_interrupt, .sa_flags = SA_RESETHAND }; /* a second one kills */
    sv_stop_init(&interrupt);
    const qd_status st = sv_reporter_new(store, bus, job, &interrupt, &reporter, err);
    if (st)
        return st;
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    sv_attempt_run(
        &(sv_attempt){ .settings = s, .store = store, .job = job, .stop = &interrupt, .reporter = reporter });
    sv_reporter_free(reporter);
    return QD_OK;
}

/* Artifacts under their names, pictures as NNNN.png, result.json. */
static qd_status take_out(const sv_settings *s, sv_store *store, const char *id, const char *out_dir, qd_err *err)
{
    sv_artifact_row *artifacts = NULL;
    sv_sample_row *samples = NULL;
    sv_job_row job = { 0 };
    int n_artifacts = 0, n_samples = 0;
    json_t *shown = NULL;
    char *text = NULL, *path = NULL;
    qd_status st;

    if ((st = sv_jobs_get(store, id, &job, err)) ||
        (st = sv_artifacts_list(store, id, &artifacts, &n_artifacts, err)) ||
        (st = sv_samples_list(store, id, &samples, &n_samples, err)))
        goto out;
    for (int k = 0; k < n_artifacts + n_samples && !st; k++) {
        const bool artifact = k < n_artifacts;
        char *from = sv_data_path(s, artifact ? artifacts[k].path : samples[k - n_artifacts].path, NULL);
        char *to =
            artifact ? qd_fs_join(out_dir, artifacts[k].name) : qd_asprintf("%s/%04d.png", out_dir, k - n_artifacts);
        if (!from || !to)
            st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        else if (rename(from, to) != 0)
            st = qd_fail(err, QD_E_IO, "'%s' cannot be written: %s", to, strerror(errno));
        qd_free(from);
        qd_free(to);
    }
    if (st)
        goto out;
    shown = sv_job_json(NULL, &job);
    text = sv_json_text(shown);
    path = qd_fs_join(out_dir, "job.json");
    st = text && path ? qd_fs_write(path, text, strlen(text), err) : qd_fail(err, QD_E_NOMEM, "no memory for job.json");
    if (st)
        goto out;
    printf("%s\n", text);
    if (strcmp(job.status, "succeeded") != 0) {
        json_t *error = sv_json_read(job.error);
        const char *words = json_string_value(json_object_get(error, "message"));
        st = qd_fail(err, QD_E_INTERNAL, "the job %s: %s", job.status, words ? words : "no reason was given");
        json_decref(error);
    }
out:
    json_decref(shown);
    qd_free(text);
    qd_free(path);
    sv_artifact_rows_free(artifacts, n_artifacts);
    sv_sample_rows_free(samples, n_samples);
    sv_job_row_clear(&job);
    return st;
}

qd_status sv_run_once(const sv_settings *settings, const char *job_path, const char *out_dir, qd_err *err)
{
    sv_settings s = *settings;
    sv_store *store = NULL;
    sv_bus *bus = NULL;
    sv_listener *listener = NULL;
    sv_job_row job = { 0 };
    json_t *body = NULL;
    char *scratch = NULL, *db = NULL;
    char id[40];
    qd_status st;

    st = read_body(job_path, &body, err);
    if (st)
        return st;
    sv_id_new(id, ".run-");
    scratch = qd_fs_join(out_dir, id);
    db = scratch ? qd_fs_join(scratch, "db.sqlite3") : NULL;
    if (!db) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    s.data_dir = scratch;
    if ((st = qd_fs_mkdirs(scratch, err)) || (st = sv_store_open(db, &store, err)) || (st = sv_bus_new(&bus, err)))
        goto out;
    listener = sv_bus_listen(bus, NULL, on_event, NULL);
    if ((st = submit(&s, store, body, &job, err)) || (st = execute(&s, store, bus, &job, err)))
        goto out;
    st = take_out(&s, store, job.id, out_dir, err);
out:
    if (listener)
        sv_bus_unlisten(bus, listener);
    sv_job_row_clear(&job);
    sv_bus_free(bus);
    sv_store_close(store);
    if (scratch)
        qd_fs_remove_tree(scratch, NULL);
    json_decref(body);
    qd_free(db);
    qd_free(scratch);
    return st;
}
