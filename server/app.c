/* app.c - builds every part once, hands out pointers, takes down in reverse. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "app.h"
#include "base/fs.h"
#include "base/mem.h"
#include "http/http.h"
#include "jobs/jobs.h"
#include "live/live.h"
#include "log.h"
#include "store/store.h"

enum { SHA256_DIGITS = 64 };

typedef struct app {
    const sv_settings *settings;
    int lock; /* of the data folder; -1 = not ours */
    sv_store *store;
    sv_bus *bus;
    sv_workers *workers;
    sv_loop *loop;
    sv_http *http;
    int signals; /* how many times we were asked to go */
} app;

/* --- the data folder --- */

static qd_status in_data(const app *a, const char *name, char **out, qd_err *err)
{
    *out = qd_fs_join(a->settings->data_dir, name);
    return *out ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
}

/* One daemon for each data folder: whoever holds the lock may sweep and reclaim what an earlier one left. The kernel drops the lock
 * with the process, however it ends. */
static qd_status lock_data(app *a, qd_err *err)
{
    char *path = NULL;
    qd_status st = qd_fs_mkdirs(a->settings->data_dir, err);
    if (st)
        return st;
    st = in_data(a, "lock", &path, err);
    if (st)
        return st;
    a->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (a->lock < 0)
        st = qd_fail(err, QD_E_IO, "'%s' cannot be opened: %s", path, strerror(errno));
    else if (flock(a->lock, LOCK_EX | LOCK_NB) != 0)
        st = errno == EWOULDBLOCK ? qd_fail(err, QD_E_CONFLICT, "another quantd works in '%s'; choose another --data",
                                            a->settings->data_dir)
                                  : qd_fail(err, QD_E_IO, "'%s' cannot be locked: %s", path, strerror(errno));
    qd_free(path);
    return st;
}

/* Folders, and nothing left in tmp: half an upload, scratch of attempts that died. */
static qd_status lay_out_data(app *a, qd_err *err)
{
    static const char *const folders[] = { "models", "datasets", "blobs", "jobs", "tmp" };
    qd_status st = QD_OK;
    for (size_t k = 0; k < sizeof folders / sizeof folders[0] && !st; k++) {
        char *path = NULL;
        st = in_data(a, folders[k], &path, err);
        if (!st && strcmp(folders[k], "tmp") == 0)
            st = qd_fs_remove_tree(path, err);
        if (!st)
            st = qd_fs_mkdirs(path, err);
        qd_free(path);
    }
    return st;
}

/* The hashes of all models and data sets, sorted. */
typedef struct hashes {
    char (*text)[SHA256_DIGITS + 1];
    size_t n, room;
} hashes;

static int by_text(const void *a, const void *b)
{
    return memcmp(a, b, SHA256_DIGITS);
}

static qd_status add_hash(hashes *h, const char *sha256, qd_err *err)
{
    if (h->n == h->room) {
        const size_t room = h->room ? 2 * h->room : 64;
        void *more = qd_realloc(h->text, room * sizeof *h->text);
        if (!more)
            return qd_fail(err, QD_E_NOMEM, "no memory for the hashes of %zu models", room);
        h->text = more;
        h->room = room;
    }
    snprintf(h->text[h->n++], sizeof *h->text, "%s", sha256);
    return QD_OK;
}

typedef qd_status lister(sv_store *s, const sv_list_query *q, sv_model_row **rows, int *n, bool *more, qd_err *err);

static qd_status read_hashes(sv_store *store, lister *list, hashes *h, qd_err *err)
{
    char *after = NULL;
    bool more = true;
    qd_status st = QD_OK;
    while (more && !st) {
        sv_model_row *rows = NULL;
        int n = 0;
        const sv_list_query q = { .limit = 1000, .ascending = true, .after = after };
        st = list(store, &q, &rows, &n, &more, err);
        for (int k = 0; k < n && !st; k++)
            st = add_hash(h, rows[k].sha256, err);
        qd_free(after);
        after = !st && n > 0 ? qd_strdup(rows[n - 1].id) : NULL;
        if (!st && more && !after)
            st = qd_fail(err, QD_E_NOMEM, "no memory for a cursor");
        sv_model_rows_free(rows, n);
    }
    qd_free(after);
    return st;
}

/* Files of models and data sets are named by their hash and put there before their row. What no row names was left by a daemon that died in
 * between; names that are no hash are not ours to remove. */
static qd_status sweep_files(app *a, qd_err *err)
{
    static const char *const folders[] = { "models", "datasets", "blobs" };
    hashes h = { 0 };
    qd_status st = read_hashes(a->store, sv_models_list, &h, err);
    if (!st)
        st = read_hashes(a->store, sv_datasets_list, &h, err);
    if (!st && h.n > 0)
        qsort(h.text, h.n, sizeof *h.text, by_text);
    for (size_t k = 0; k < sizeof folders / sizeof folders[0] && !st; k++) {
        char *folder = NULL;
        st = in_data(a, folders[k], &folder, err);
        DIR *dir = st ? NULL : opendir(folder);
        for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
            if (strspn(e->d_name, "0123456789abcdef") != SHA256_DIGITS)
                continue;
            char *path = qd_fs_join(folder, e->d_name);
            if (path && (h.n == 0 || !bsearch(e->d_name, h.text, h.n, sizeof *h.text, by_text))) {
                sv_log(SV_WARN, "orphan_removed", "file", path, NULL);
                qd_fs_remove_tree(path, NULL);
            }
            qd_free(path);
        }
        if (dir)
            closedir(dir);
        qd_free(folder);
    }
    qd_free(h.text);
    return st;
}

static qd_status open_store(app *a, qd_err *err)
{
    char *path = NULL, text[16];
    int reclaimed = 0;
    qd_status st = in_data(a, "db.sqlite3", &path, err);
    if (!st)
        st = sv_store_open(path, &a->store, err);
    qd_free(path);
    if (!st)
        st = sweep_files(a, err);
    if (!st)
        st = sv_workers_reclaim(a->store, &reclaimed, err);
    if (!st && reclaimed > 0) {
        snprintf(text, sizeof text, "%d", reclaimed);
        sv_log(SV_WARN, "jobs_reclaimed", "count", text, "why", "an earlier daemon died while they ran", NULL);
    }
    return st;
}

/* --- what the loop asks of us --- */

/* On the loop thread, which must not wait: everything is told to end, the joining is done after the loop. */
static void on_signal(void *ctx, int signum)
{
    app *a = ctx;
    if (a->signals++ > 0) {
        sv_log(SV_WARN, "exit_forced", "signal", strsignal(signum), NULL);
        _exit(1);
    }
    sv_log(SV_INFO, "draining", "signal", strsignal(signum), NULL);
    sv_http_drain(a->http);
    sv_workers_drain(a->workers);
    sv_loop_stop(a->loop);
}

/* Compact text of an object, which is dropped (qd_free); NULL when out of memory. */
static char *take_text(json_t *o)
{
    const size_t n = json_dumpb(o, NULL, 0, JSON_COMPACT);
    char *text = n > 0 ? qd_alloc(n + 1) : NULL;
    if (text) {
        json_dumpb(o, text, n, JSON_COMPACT);
        text[n] = '\0';
    }
    json_decref(o);
    return text;
}

static qd_status on_cancel(void *ctx, const char *job_id, char **reply, qd_err *err)
{
    app *a = ctx;
    json_t *o = NULL;
    int status;
    const qd_status st = sv_jobs_request_cancel(a->store, a->workers, a->bus, job_id, &o, &status, err);
    if (st)
        return st;
    *reply = take_text(o);
    return *reply ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a reply");
}

static char *on_snapshot(void *ctx, const sv_job_row *job)
{
    app *a = ctx;
    return take_text(sv_job_json(a->store, job));
}

/* --- from first to last --- */

qd_status sv_app_serve(const sv_settings *settings, qd_err *err)
{
    app a = { .settings = settings, .lock = -1 };
    qd_status st;

    if ((st = lock_data(&a, err)) || (st = lay_out_data(&a, err)) || (st = open_store(&a, err)) ||
        (st = sv_bus_new(&a.bus, err)))
        goto out;
    const sv_loop_options loop = {
        .bus = a.bus, .store = a.store, .on_signal = on_signal, .cancel = on_cancel, .snapshot = on_snapshot, .ctx = &a
    };
    if ((st = sv_loop_new(&loop, &a.loop, err)) || (st = sv_workers_start(settings, a.store, a.bus, &a.workers, err)))
        goto out;
    const sv_http_options http = { .settings = settings,
                                   .store = a.store,
                                   .bus = a.bus,
                                   .loop = a.loop,
                                   .workers = a.workers,
                                   .started_ms = sv_now_ms() };
    st = sv_http_start(&http, &a.http, err);
    if (st)
        goto out;

    const bool v6 = strchr(settings->listen_host, ':') != NULL;
    printf("quantd %s listening on http://%s%s%s:%d (data %s)\n", SV_VERSION, v6 ? "[" : "", settings->listen_host,
           v6 ? "]" : "", sv_http_port(a.http), settings->data_dir);
    fflush(stdout);
    sv_loop_run(a.loop);
out:
    /* Sockets are closed by the loop; then requests end, then jobs are put back, then what they all used goes. */
    sv_http_stop(a.http);
    sv_workers_stop(a.workers);
    sv_loop_free(a.loop);
    sv_bus_free(a.bus);
    sv_store_close(a.store);
    if (a.lock >= 0)
        close(a.lock);
    if (!st)
        sv_log(SV_INFO, "stopped", NULL);
    return st;
}
