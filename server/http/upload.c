/* upload.c - bytes of strangers on their way to disk: tmp/, hashed while they arrive, looked into, then published by rename. */
#include "http/http_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/mem.h"
#include "data/data.h"
#include "log.h"

enum { INTAKE_THREADS = 2 };
#define DISK_RESERVE_BYTES ((int64_t)64 << 20) /* always left free for the database and its log */

struct sv_upload {
    char *dir;  /* data_dir/tmp/<id>: whatever this upload makes lies in it and goes with it */
    char *file; /* dir/body */
    qd_fs_out *out;
};

char *sv_http_path(const sv_http *h, const char *a, const char *b)
{
    return b ? qd_asprintf("%s/%s/%s", h->o.settings->data_dir, a, b)
             : qd_asprintf("%s/%s", h->o.settings->data_dir, a);
}

bool sv_upload_name_ok(const char *name)
{
    const size_t n = strlen(name);
    if (n == 0 || n > 128 || name[0] == '.' || name[0] == '-' || !strncmp(name, sv_models.prefix, 4) ||
        !strncmp(name, sv_datasets.prefix, 4))
        return false;
    return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == n;
}

void sv_upload_free(sv_upload *u)
{
    if (!u)
        return;
    qd_fs_out_abandon(u->out);
    /* Walking a tree takes memory, which may lack for just this moment; what stays all the same is swept at the next start. */
    if (u->dir && qd_fs_remove_tree(u->dir, NULL) && qd_fs_remove_tree(u->dir, NULL))
        sv_log(SV_WARN, "upload_left", "folder", u->dir, NULL);
    qd_free(u->file);
    qd_free(u->dir);
    qd_free(u);
}

/* An empty folder of its own below tmp/. */
static qd_status upload_new(sv_http *h, sv_upload **out, qd_err *err)
{
    char id[40];
    qd_status st;
    sv_upload *u = qd_calloc(1, sizeof *u);
    if (!u)
        return qd_fail(err, QD_E_NOMEM, "no memory for an upload");
    sv_id_new(id, "upl_");
    u->dir = sv_http_path(h, "tmp", id);
    u->file = u->dir ? qd_fs_join(u->dir, "body") : NULL;
    if (!u->file) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for an upload");
        goto out;
    }
    st = qd_fs_mkdirs(u->dir, err);
    if (st)
        goto out;
    *out = u;
    u = NULL;
out:
    sv_upload_free(u);
    return st;
}

bool sv_upload_begin(sv_request *q)
{
    const sv_settings *s = q->http->o.settings;
    qd_err err = { 0 };
    struct statvfs disk;
    if (q->content_length > s->max_upload_bytes) {
        sv_reply_problem(q, SV_P_TOO_LARGE, NULL, "the file has %lld bytes, the limit is %lld",
                         (long long)q->content_length, (long long)s->max_upload_bytes);
        return false;
    }
    if (!statvfs(s->data_dir, &disk)) {
        const int64_t room = (int64_t)((double)disk.f_bavail * (double)disk.f_frsize) - DISK_RESERVE_BYTES;
        const int64_t wanted = q->content_length > 0 ? q->content_length : 0;
        if (wanted > room) {
            sv_reply_problem(q, SV_P_STORAGE_FULL, NULL, "the file has %lld bytes, the disk has room for %lld",
                             (long long)wanted, (long long)(room > 0 ? room : 0));
            return false;
        }
    }
    qd_status st = upload_new(q->http, &q->upload, &err);
    if (!st)
        st = qd_fs_out_open(q->upload->file, &q->upload->out, &err);
    if (st) {
        sv_reply_error(q, st, &err, NULL);
        return false;
    }
    return true;
}

static void drop_upload(sv_request *q)
{
    sv_upload_free(q->upload);
    q->upload = NULL;
}

void sv_upload_data(sv_request *q, const void *data, size_t n)
{
    const uint64_t limit = (uint64_t)q->http->o.settings->max_upload_bytes;
    qd_err err = { 0 };
    if (qd_fs_out_size(q->upload->out) + n > limit) {
        drop_upload(q);
        sv_reply_problem(q, SV_P_TOO_LARGE, NULL, "the file has more than the %llu bytes allowed",
                         (unsigned long long)limit);
        return;
    }
    const qd_status st = qd_fs_out_add(q->upload->out, data, n, &err);
    if (st) {
        drop_upload(q);
        sv_reply_error(q, st, &err, NULL);
    }
}

/* --- on an intake thread --- */

typedef struct intake_job {
    struct intake_job *next;
    sv_request *request;
    const sv_collection *into;
    char *name, *blob; /* blob: hex of bytes that are here already, or NULL */
    bool done, cancelled;
} intake_job;

struct sv_intake {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    intake_job *head, *tail;
    bool stopping;
    int threads;
    pthread_t thread[INTAKE_THREADS];
};

/* Words about files in tmp/ are shown without our paths. */
static void hide_path(qd_err *err, const char *dir)
{
    const size_t n = strlen(dir);
    for (char *p; (p = strstr(err->text, dir));) {
        const size_t cut = n + (p[n] == '/');
        memmove(p, p + cut, strlen(p + cut) + 1);
    }
}

static qd_status copy_file(const char *from, const char *to, qd_err *err)
{
    qd_map map = { 0 };
    qd_fs_out *out = NULL;
    qd_status st = qd_map_open(&map, from, err);
    if (st)
        return st;
    st = qd_fs_out_open(to, &out, err);
    if (st)
        goto out;
    st = qd_fs_out_add(out, map.data, map.size, err);
    if (st)
        goto out;
    st = qd_fs_out_commit(out, NULL, NULL, err);
    out = NULL;
out:
    qd_fs_out_abandon(out);
    qd_map_close(&map);
    return st;
}

/* tree/ gets what the core can open: the archive's files, or the one file under the collection's name for it. */
static qd_status make_tree(const sv_settings *s, const sv_collection *c, const char *body, const char *tree,
                           qd_err *err)
{
    qd_status st = qd_fs_mkdirs(tree, err);
    if (st)
        return st;
    if (c->is_archive(body)) {
        const qd_unpack_limits limits = { .max_bytes = (uint64_t)s->max_unpacked_bytes, .max_entries = c->max_entries };
        return qd_archive_unpack(body, tree, &limits, err);
    }
    const char *told = c->file_of ? c->file_of(body) : NULL;
    char *file = qd_fs_join(tree, told ? told : c->file);
    if (!file)
        return qd_fail(err, QD_E_NOMEM, "no memory for a path");
    /* The same bytes need not lie on disk twice; where links are not possible, they do. */
    if (link(body, file))
        st = copy_file(body, file, err);
    qd_free(file);
    return st;
}

static qd_status sync_dir(const char *path, bool whole_disk, qd_err *err)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return qd_fail(err, QD_E_IO, "%s: %s", path, strerror(errno));
    const int rc = whole_disk ? syncfs(fd) : fsync(fd);
    const int why = errno;
    close(fd);
    return rc ? qd_fail(err, QD_E_IO, "%s: %s", path, strerror(why)) : QD_OK;
}

/* Move from to dir/name unless something is there already: equal names are equal bytes here. *moved tells which. */
static qd_status publish_one(const char *from, const char *dir, const char *to, bool *moved, qd_err *err)
{
    qd_status st = qd_fs_mkdirs(dir, err);
    if (st || qd_fs_exists(to))
        return st;
    if (rename(from, to))
        return qd_fail(err, QD_E_IO, "%s: %s", to, strerror(errno));
    *moved = true;
    return sync_dir(dir, false, err);
}

typedef struct intake_paths {
    char *blobs, *trees, *blob,
        *tree; /* data_dir/blobs, the collection's folder, and the two below them named by hash */
} intake_paths;

static void paths_clear(intake_paths *p)
{
    qd_free(p->blobs);
    qd_free(p->trees);
    qd_free(p->blob);
    qd_free(p->tree);
}

static qd_status paths_init(const sv_http *h, const sv_collection *c, const char *sha256, intake_paths *p, qd_err *err)
{
    p->blobs = sv_http_path(h, "blobs", NULL);
    p->trees = sv_http_path(h, c->folder, NULL);
    p->blob = sv_http_path(h, "blobs", sha256);
    p->tree = sv_http_path(h, c->folder, sha256);
    return p->blobs && p->trees && p->blob && p->tree ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for paths");
}

/* Files first, row last: a row without files never exists. Under files_lock, so that a DELETE of the last row of these bytes
 * cannot take them away in between. On failure what was moved is removed again. */
static qd_status publish(sv_http *h, const sv_collection *c, const intake_paths *p, const char *body, const char *tree,
                         const sv_model_row *row, sv_model_row *out, bool *existing, qd_err *err)
{
    bool moved_blob = false, moved_tree = false;
    pthread_mutex_lock(&h->files_lock);
    qd_status st = publish_one(body, p->blobs, p->blob, &moved_blob, err);
    if (!st)
        st = publish_one(tree, p->trees, p->tree, &moved_tree, err);
    if (!st)
        st = c->add(h->o.store, row, out, existing, err);
    if (st && moved_tree)
        qd_fs_remove_tree(p->tree, NULL);
    if (st && moved_blob)
        unlink(p->blob);
    pthread_mutex_unlock(&h->files_lock);
    return st;
}

/* From a finished body (or a blob that is here) to a row. *bad: the words are about what was sent, not about us. */
static qd_status take_in(sv_http *h, const sv_collection *c, sv_upload *u, const char *name, const char *blob,
                         sv_model_row *out, bool *existing, bool *bad, qd_err *err)
{
    const sv_settings *s = h->o.settings;
    char sha256[QD_SHA256_HEX];
    char *tree = NULL, *root = NULL, *format = NULL, *role = NULL, *summary = NULL, *relative = NULL;
    intake_paths paths = { 0 };
    struct stat info;
    qd_status st;

    if (blob) {
        snprintf(sha256, sizeof sha256, "%s", blob);
    } else {
        st = qd_fs_out_commit(u->out, NULL, sha256, err);
        u->out = NULL;
        if (st)
            goto out;
    }
    st = paths_init(h, c, sha256, &paths, err);
    if (st)
        goto out;
    const char *body = blob ? paths.blob : u->file;
    if (stat(body, &info)) {
        st = blob ? qd_fail(err, QD_E_NOT_FOUND, "there is no blob sha256:%s", blob)
                  : qd_fail(err, QD_E_IO, "%s: %s", body, strerror(errno));
        goto out;
    }
    tree = qd_fs_join(u->dir, "tree");
    if (!tree) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    *bad = true;
    if (info.st_size == 0) {
        st = qd_fail(err, QD_E_FORMAT, "the file is empty");
        goto out;
    }
    st = make_tree(s, c, body, tree, err);
    if (st)
        goto out;
    st = c->look_into(s, tree, &root, &format, &role, &summary, err);
    if (st)
        goto out;
    *bad = false;
    st = sync_dir(tree, true, err);
    if (st)
        goto out;
    relative = qd_asprintf("%s/%s%s%s", c->folder, sha256, *root ? "/" : "", root);
    if (!relative) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    char id[40], no_job[] = "";
    sv_id_new(id, c->prefix);
    const sv_model_row row = { .id = id,
                               .name = (char *)name,
                               .sha256 = sha256,
                               .path = relative,
                               .format = format,
                               .role = role,
                               .summary = summary,
                               .job_id = no_job,
                               .size_bytes = info.st_size,
                               .created_ms = sv_now_ms() };
    st = publish(h, c, &paths, body, tree, &row, out, existing, err);
out:
    hide_path(err, u->dir);
    paths_clear(&paths);
    qd_free(tree);
    qd_free(root);
    qd_free(format);
    qd_free(role);
    qd_free(summary);
    qd_free(relative);
    return st;
}

static void run_one(intake_job *job)
{
    sv_request *q = job->request;
    sv_http *h = q->http;
    const sv_collection *c = job->into;
    qd_err err = { 0 };
    sv_model_row row = { 0 };
    bool existing = false, bad = false;
    qd_status st = q->upload ? QD_OK : upload_new(h, &q->upload, &err);
    if (!st)
        st = take_in(h, c, q->upload, job->name, job->blob, &row, &existing, &bad, &err);
    drop_upload(q);
    if (st && bad && st != QD_E_NOMEM && st != QD_E_IO && st != QD_E_INTERNAL) {
        sv_log(SV_INFO, "upload_refused", "request", q->id, "what", c->noun, "words", err.text, NULL);
        sv_reply_problem(q, c->invalid, NULL, "%s", err.text);
    } else if (st) {
        sv_reply_error(q, st, &err, NULL);
    } else {
        if (!existing)
            sv_log(SV_INFO, "upload_added", "request", q->id, "id", row.id, "format", row.format, "role", row.role,
                   NULL);
        sv_reply_field(q, "Location", "/v1/%s/%s", c->folder, row.id);
        sv_reply_json(q, existing ? 200 : 201, c->json(&row));
    }
    sv_model_row_clear(&row);
}

static void *intake_thread(void *arg)
{
    sv_intake *in = arg;
    pthread_mutex_lock(&in->lock);
    while (in->head || !in->stopping) {
        intake_job *job = in->head;
        if (!job) {
            pthread_cond_wait(&in->cond, &in->lock);
            continue;
        }
        in->head = job->next;
        if (!in->head)
            in->tail = NULL;
        const bool stopping = in->stopping;
        pthread_mutex_unlock(&in->lock);
        sv_request *q = job->request;
        if (stopping)
            sv_reply_problem(q, SV_P_DRAINING, NULL, "the daemon is shutting down and takes no new work");
        else
            run_one(job);
        pthread_mutex_lock(&in->lock);
        job->done = true;
        /* The request lives until its pool thread has seen `done`, which it reads under this lock. */
        sv_park_wake(&q->park);
    }
    pthread_mutex_unlock(&in->lock);
    return NULL;
}

/* What was on its way when the process ended is nobody's now. */
static void sweep_tmp(const char *tmp)
{
    DIR *d = opendir(tmp);
    if (!d)
        return;
    for (struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, "upl_", 4))
            continue;
        char *path = qd_fs_join(tmp, e->d_name);
        if (path)
            qd_fs_remove_tree(path, NULL);
        qd_free(path);
    }
    closedir(d);
}

qd_status sv_intake_start(sv_http *h, qd_err *err)
{
    qd_status st;
    char *tmp = sv_http_path(h, "tmp", NULL);
    sv_intake *in = qd_calloc(1, sizeof *in);
    if (!tmp || !in) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the intake of uploads");
        goto out;
    }
    st = qd_fs_mkdirs(tmp, err);
    if (st)
        goto out;
    sweep_tmp(tmp);
    pthread_mutex_init(&in->lock, NULL);
    pthread_cond_init(&in->cond, NULL);
    h->intake = in;
    for (; in->threads < INTAKE_THREADS; in->threads++) {
        const int rc = pthread_create(&in->thread[in->threads], NULL, intake_thread, in);
        if (rc) {
            st = qd_fail(err, QD_E_INTERNAL, "cannot start an intake thread: %s", strerror(rc));
            break;
        }
    }
    in = NULL; /* sv_intake_stop takes it down, complete or not */
out:
    qd_free(in);
    qd_free(tmp);
    return st;
}

void sv_intake_stop(sv_http *h)
{
    sv_intake *in = h->intake;
    if (!in)
        return;
    pthread_mutex_lock(&in->lock);
    in->stopping = true;
    pthread_cond_broadcast(&in->cond);
    pthread_mutex_unlock(&in->lock);
    for (int i = 0; i < in->threads; i++)
        pthread_join(in->thread[i], NULL);
    in->threads = 0;
}

void sv_intake_free(sv_http *h)
{
    sv_intake *in = h->intake;
    if (!in)
        return;
    sv_intake_stop(h);
    pthread_cond_destroy(&in->cond);
    pthread_mutex_destroy(&in->lock);
    qd_free(in);
    h->intake = NULL;
}

/* --- on a pool thread --- */

static void job_free(void *state)
{
    intake_job *job = state;
    qd_free(job->name);
    qd_free(job->blob);
    qd_free(job);
}

void sv_intake_take(sv_request *q, const sv_collection *into, const char *name, const char *blob_sha256)
{
    sv_intake *in = q->http->intake;
    intake_job *job = q->state;
    if (!job) {
        job = qd_calloc(1, sizeof *job);
        if (job)
            *job = (intake_job){
                .request = q, .into = into, .name = qd_strdup(name), .blob = blob_sha256 ? qd_strdup(blob_sha256) : NULL
            };
        if (!job || !job->name || (blob_sha256 && !job->blob)) {
            qd_err err = { 0 };
            qd_fail(&err, QD_E_NOMEM, "no memory to take in a file");
            if (job)
                job_free(job);
            sv_reply_error(q, QD_E_NOMEM, &err, NULL);
            return;
        }
        q->state = job;
        q->state_free = job_free;
        pthread_mutex_lock(&in->lock);
        const bool stopping = in->stopping;
        if (!stopping) {
            *(in->tail ? &in->tail->next : &in->head) = job;
            in->tail = job;
            pthread_cond_signal(&in->cond);
        }
        pthread_mutex_unlock(&in->lock);
        if (stopping) {
            sv_reply_problem(q, SV_P_DRAINING, NULL, "the daemon is shutting down and takes no new work");
            return;
        }
    }
    for (bool done = false; !done && !q->parked;) {
        pthread_mutex_lock(&in->lock);
        done = job->done;
        pthread_mutex_unlock(&in->lock);
        if (!done)
            q->parked = sv_park_wait(&q->park, INT64_MAX);
    }
}
