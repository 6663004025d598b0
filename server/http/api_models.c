/* api_models.c - models and data sets: upload, list, look at, fetch, forget. */
#include "http/http_int.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "log.h"

static bool hash_ok(const char *hex)
{
    return strlen(hex) == 64 && strspn(hex, "0123456789abcdef") == 64;
}

static bool name_ok(sv_request *q, const sv_collection *c, const char *name, const char *where)
{
    if (!*name || sv_upload_name_ok(name))
        return true;
    sv_reply_problem(
        q, SV_P_INVALID_PARAM, where,
        "a %s's name has 1 to 128 letters, digits, '.', '_' and '-', starts with a letter, digit or '_', and is no id; got '%.100s'",
        c->noun, name);
    return false;
}

/* {"blob":"sha256:..","name":".."} instead of bytes. */
static void take_reference(sv_request *q, const sv_collection *c, const char *name)
{
    json_t *body = sv_request_json(q);
    if (!body)
        return;
    const char *key, *blob = NULL;
    json_t *value;
    json_object_foreach(body, key, value)
    {
        char pointer[64];
        snprintf(pointer, sizeof pointer, "/%.60s", key);
        const bool is_name = !strcmp(key, "name") && q->route->query;
        if ((!is_name && strcmp(key, "blob")) || !json_is_string(value)) {
            sv_reply_problem(q, SV_P_INVALID_PARAM, pointer, "%.60s is not a text field here; known: blob%s", key,
                             q->route->query ? ", name" : "");
            goto out;
        }
        *(is_name ? &name : &blob) = json_string_value(value);
    }
    if (!blob || strncmp(blob, "sha256:", 7) || !hash_ok(blob + 7)) {
        sv_reply_problem(q, SV_P_INVALID_PARAM, "/blob", "blob must be sha256: and 64 hexadecimal digits");
        goto out;
    }
    if (name_ok(q, c, name, "/name"))
        sv_intake_take(q, c, name, blob + 7);
out:
    json_decref(body);
}

static void take(sv_request *q, const sv_collection *c, const char *name)
{
    if (q->state)
        sv_intake_take(q, c, NULL, NULL); /* woken: the intake has answered */
    else if (!q->upload)
        take_reference(q, c, name);
    else
        sv_intake_take(q, c, name, NULL);
}

static void post(sv_request *q, const sv_collection *c)
{
    const char *name = sv_target_query(&q->target, "name");
    if (name_ok(q, c, name ? name : "", "name"))
        take(q, c, name ? name : "");
}

static void put(sv_request *q, const sv_collection *c)
{
    if (name_ok(q, c, q->captures[0], "name"))
        take(q, c, q->captures[0]);
}

static void list(sv_request *q, const sv_collection *c)
{
    sv_model_row *rows = NULL;
    qd_err err = { 0 };
    int64_t limit;
    int n = 0;
    bool more = false, ascending;
    if (!sv_request_int(q, "limit", 1, 100, 50, &limit) || !sv_request_order(q, &ascending))
        return;
    const sv_list_query query = { .after = sv_target_query(&q->target, "after"),
                                  .limit = (int)limit,
                                  .ascending = ascending };
    const qd_status st = c->list(q->http->o.store, &query, &rows, &n, &more, &err);
    if (st) {
        sv_reply_list_error(q, st, &err);
        return;
    }
    json_t *data = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(data, c->json(&rows[i]));
    sv_reply_json(q, 200, sv_list_json(data, more, n ? rows[n - 1].id : NULL));
    sv_model_rows_free(rows, n);
}

static bool find(sv_request *q, const sv_collection *c, sv_model_row *out)
{
    qd_err err = { 0 };
    const qd_status st = c->get(q->http->o.store, q->captures[0], out, &err);
    if (st == QD_E_NOT_FOUND && c->pruned(q->http->o.store, q->captures[0]))
        sv_reply_problem(q, SV_P_PRUNED, NULL, "%s '%.100s' existed and was deleted", c->noun, q->captures[0]);
    else if (st == QD_E_NOT_FOUND)
        sv_reply_problem(q, SV_P_NOT_FOUND, NULL, "there is no %s '%.100s'", c->noun, q->captures[0]);
    else if (st)
        sv_reply_error(q, st, &err, NULL);
    return st == QD_OK;
}

static void get(sv_request *q, const sv_collection *c)
{
    sv_model_row m = { 0 };
    if (!find(q, c, &m))
        return;
    sv_reply_json(q, 200, c->json(&m));
    sv_model_row_clear(&m);
}

static void get_content(sv_request *q, const sv_collection *c)
{
    sv_model_row m = { 0 };
    char filename[200];
    if (!find(q, c, &m))
        return;
    /* Uploads lie under their hash; what a job made lies where its row says. */
    char *path = sv_http_path(q->http, "blobs", m.sha256);
    if (path && !qd_fs_exists(path)) {
        qd_free(path);
        path = sv_http_path(q->http, m.path, NULL);
    }
    if (!path) {
        qd_err err = { 0 };
        qd_fail(&err, QD_E_NOMEM, "no memory for a path");
        sv_reply_error(q, QD_E_NOMEM, &err, NULL);
    } else {
        snprintf(filename, sizeof filename, "%s", *m.name ? m.name : m.id);
        const sv_file_reply f = {
            .path = path, .mime = "application/octet-stream", .filename = filename, .sha256 = m.sha256
        };
        sv_reply_file(q, &f);
    }
    qd_free(path);
    sv_model_row_clear(&m);
}

static void forget(sv_request *q, const sv_collection *c)
{
    sv_http *h = q->http;
    sv_model_row m = { 0 };
    qd_err err = { 0 };
    bool last = false, last_of_blob = false;
    if (!find(q, c, &m))
        return;
    char *blob = sv_http_path(h, "blobs", m.sha256), *tree = sv_http_path(h, c->folder, m.sha256);
    char *made =
        qd_asprintf("%s/%s/%s.safetensors", h->o.settings->data_dir, c->folder, m.sha256); /* where jobs put theirs */
    pthread_mutex_lock(&h->files_lock);
    qd_status st = blob && tree && made ? c->remove(h->o.store, m.id, &last, &last_of_blob, &err)
                                        : qd_fail(&err, QD_E_NOMEM, "no memory for paths");
    /* A file that stays behind costs room, not truth: the row is gone. */
    if (!st && last_of_blob && unlink(blob) && qd_fs_exists(blob))
        sv_log(SV_WARN, "blob_left", "sha256", m.sha256, NULL);
    if (!st && last) {
        if (unlink(made) && qd_fs_exists(made))
            sv_log(SV_WARN, "file_left", "sha256", m.sha256, NULL);
        if (qd_fs_remove_tree(tree, &err))
            sv_log(SV_WARN, "files_left", "sha256", m.sha256, "words", err.text, NULL);
    }
    pthread_mutex_unlock(&h->files_lock);
    if (st) {
        sv_reply_error(q, st, &err, NULL);
    } else {
        sv_log(SV_INFO, "upload_deleted", "request", q->id, "id", m.id, NULL);
        sv_reply_empty(q, 204);
    }
    qd_free(blob);
    qd_free(tree);
    qd_free(made);
    sv_model_row_clear(&m);
}

/* --- handlers --- */

void sv_post_model(sv_request *q)
{
    post(q, &sv_models);
}

void sv_put_model(sv_request *q)
{
    put(q, &sv_models);
}

void sv_list_models(sv_request *q)
{
    list(q, &sv_models);
}

void sv_get_model(sv_request *q)
{
    get(q, &sv_models);
}

void sv_get_model_content(sv_request *q)
{
    get_content(q, &sv_models);
}

void sv_delete_model(sv_request *q)
{
    forget(q, &sv_models);
}

void sv_post_dataset(sv_request *q)
{
    post(q, &sv_datasets);
}

void sv_put_dataset(sv_request *q)
{
    put(q, &sv_datasets);
}

void sv_list_datasets(sv_request *q)
{
    list(q, &sv_datasets);
}

void sv_get_dataset(sv_request *q)
{
    get(q, &sv_datasets);
}

void sv_get_dataset_content(sv_request *q)
{
    get_content(q, &sv_datasets);
}

void sv_delete_dataset(sv_request *q)
{
    forget(q, &sv_datasets);
}

void sv_head_blob(sv_request *q)
{
    struct stat s;
    if (!hash_ok(q->captures[0])) {
        sv_reply_problem(q, SV_P_NOT_FOUND, NULL, "a blob's name is sha256: and 64 hexadecimal digits");
        return;
    }
    char *path = sv_http_path(q->http, "blobs", q->captures[0]);
    if (!path || stat(path, &s)) {
        sv_reply_problem(q, SV_P_NOT_FOUND, NULL, "there is no blob sha256:%s", q->captures[0]);
    } else {
        const sv_file_reply f = { .path = path, .mime = "application/octet-stream", .sha256 = q->captures[0] };
        sv_reply_file(q, &f);
    }
    qd_free(path);
}
