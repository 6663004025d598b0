/* events.c - the log of a job and what it shows: events, samples, artifacts. */
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "store/store_int.h"

/* --- events --- */

qd_status sv_event_insert(sv_conn *c, const char *job_id, int64_t seq, int attempt, const char *type, const char *data,
                          int64_t now_ms, qd_err *err)
{
    return sv_exec(c, "INSERT INTO events (job_id, seq, ts_ms, attempt, type, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                   SV_ARGS(SV_TEXT(job_id), SV_INT(seq), SV_INT(now_ms), SV_INT(attempt), SV_TEXT(type),
                           SV_TEXT(data && data[0] ? data : "{}")),
                   NULL, err);
}

/* The next number of a job's log. Taken from the job's row inside the transaction, so numbers have no gaps whoever writes. */
static qd_status seq_take(sv_conn *c, const char *job_id, int64_t fence, int64_t *seq, qd_err *err)
{
    bool found = false;
    qd_status st =
        sv_get_int(c,
                   "UPDATE jobs SET last_seq = last_seq + 1 WHERE id = ?1 AND ((?2 < 0 AND status NOT IN " SV_FINAL
                   ") OR (fence = ?2 AND status = 'running')) RETURNING last_seq",
                   SV_ARGS(SV_TEXT(job_id), SV_INT(fence)), seq, &found, err);
    if (!st && !found)
        st = sv_job_refused(c, job_id, fence, err);
    return st;
}

qd_status sv_event_put(sv_conn *c, const char *job_id, int64_t fence, int attempt, const char *type, const char *data,
                       int64_t now_ms, int64_t *seq, qd_err *err)
{
    qd_status st = seq_take(c, job_id, fence, seq, err);

    if (!st)
        st = sv_event_insert(c, job_id, *seq, attempt, type, data, now_ms, err);
    return st;
}

qd_status sv_events_add(sv_store *s, const char *job_id, int64_t fence, int attempt, const char *type, const char *data,
                        int64_t now_ms, int64_t *seq, qd_err *err)
{
    sv_conn *c;
    int64_t taken = 0;
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = sv_event_put(c, job_id, fence, attempt, type, data, now_ms, &taken, err);
    st = sv_conn_end(c, st, err);
    if (!st && seq)
        *seq = taken;
    return st;
}

void sv_event_rows_free(sv_event_row *rows, int n)
{
    for (int i = 0; i < n; i++) {
        qd_free(rows[i].job_id);
        qd_free(rows[i].type);
        qd_free(rows[i].data);
    }
    qd_free(rows);
}

qd_status sv_events_read(sv_store *s, const char *job_id, int64_t after, const char *type, int limit,
                         sv_event_row **rows, int *n, qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    void *list = NULL;
    int count = 0, capacity = 0;
    bool row = true, nomem = false;
    qd_status st = sv_conn_read(s, &c, err);

    if (st)
        return st;
    st = sv_query(
        c,
        "SELECT seq, ts_ms, attempt, type, data FROM events WHERE job_id = ?1 AND seq > ?2 AND (?3 IS NULL OR type = ?3)"
        " ORDER BY seq LIMIT ?4",
        SV_ARGS(SV_TEXT(job_id), SV_INT(after), SV_MAYBE(type), SV_INT(limit > 0 ? limit : 0)), &q, err);
    while (!st) {
        st = sv_step(c, q, &row, err);
        if (st || !row)
            break;
        sv_event_row *e = sv_rows_grow(&list, count, &capacity, sizeof(*e));
        if (e) {
            count++;
            e->seq = sqlite3_column_int64(q, 0);
            e->ts_ms = sqlite3_column_int64(q, 1);
            e->attempt = sqlite3_column_int(q, 2);
            e->job_id = qd_strdup(job_id);
            e->type = sv_column_text(q, 3, &nomem);
            e->data = sv_column_text(q, 4, &nomem);
        }
        if (!e || !e->job_id || nomem)
            st = qd_fail(err, QD_E_NOMEM, "out of memory while reading events");
    }
    st = sv_conn_end(c, st, err);
    if (st) {
        sv_event_rows_free(list, count);
        return st;
    }
    *rows = list;
    *n = count;
    return QD_OK;
}

/* --- samples --- */

static void sample_clear(sv_sample_row *r)
{
    qd_free(r->job_id);
    qd_free(r->kind);
    qd_free(r->path);
    qd_free(r->mime);
    memset(r, 0, sizeof(*r));
}

void sv_sample_rows_free(sv_sample_row *rows, int n)
{
    for (int i = 0; i < n; i++)
        sample_clear(&rows[i]);
    qd_free(rows);
}

qd_status sv_samples_add(sv_store *s, int64_t fence, int attempt, const sv_sample_row *row, const char *event_data,
                         int64_t now_ms, int64_t *n, int64_t *seq, qd_err *err)
{
    sv_conn *c;
    int64_t number = 0, taken = 0;
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = sv_event_put(c, row->job_id, fence, attempt, "sample", event_data, now_ms, &taken, err);
    if (!st)
        st = sv_get_int(c, "SELECT COALESCE(max(n), -1) + 1 FROM samples WHERE job_id = ?1",
                        SV_ARGS(SV_TEXT(row->job_id)), &number, NULL, err);
    if (!st)
        st = sv_exec(c,
                     "INSERT INTO samples (job_id, n, attempt, kind, path, mime, step, idx, width, height, psnr_db)"
                     " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                     SV_ARGS(SV_TEXT(row->job_id), SV_INT(number), SV_INT(attempt), SV_TEXT(row->kind),
                             SV_TEXT(row->path), SV_TEXT(row->mime), SV_INT(row->step), SV_INT(row->index),
                             SV_INT(row->width), SV_INT(row->height), SV_REAL(row->psnr_db)),
                     NULL, err);
    st = sv_conn_end(c, st, err);
    if (st)
        return st;
    if (n)
        *n = number;
    if (seq)
        *seq = taken;
    return QD_OK;
}

qd_status sv_samples_list(sv_store *s, const char *job_id, sv_sample_row **rows, int *n, qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    void *list = NULL;
    int count = 0, capacity = 0;
    bool row = true, nomem = false;
    qd_status st = sv_conn_read(s, &c, err);

    if (st)
        return st;
    st = sv_query(
        c,
        "SELECT job_id, kind, path, mime, n, step, idx, width, height, psnr_db FROM samples WHERE job_id = ?1 ORDER BY n",
        SV_ARGS(SV_TEXT(job_id)), &q, err);
    while (!st) {
        st = sv_step(c, q, &row, err);
        if (st || !row)
            break;
        sv_sample_row *r = sv_rows_grow(&list, count, &capacity, sizeof(*r));
        if (r) {
            count++;
            r->job_id = sv_column_text(q, 0, &nomem);
            r->kind = sv_column_text(q, 1, &nomem);
            r->path = sv_column_text(q, 2, &nomem);
            r->mime = sv_column_text(q, 3, &nomem);
            r->n = sqlite3_column_int64(q, 4);
            r->step = sqlite3_column_int64(q, 5);
            r->index = sqlite3_column_int64(q, 6);
            r->width = sqlite3_column_int(q, 7);
            r->height = sqlite3_column_int(q, 8);
            r->psnr_db = sqlite3_column_type(q, 9) == SQLITE_NULL ? NAN : sqlite3_column_double(q, 9);
        }
        if (!r || nomem)
            st = qd_fail(err, QD_E_NOMEM, "out of memory while listing samples");
    }
    st = sv_conn_end(c, st, err);
    if (st) {
        sv_sample_rows_free(list, count);
        return st;
    }
    *rows = list;
    *n = count;
    return QD_OK;
}

/* --- artifacts --- */

#define ARTIFACT_COLUMNS "id, job_id, name, mime, sha256, path, size_bytes, created_ms"

void sv_artifact_row_clear(sv_artifact_row *a)
{
    qd_free(a->id);
    qd_free(a->job_id);
    qd_free(a->name);
    qd_free(a->mime);
    qd_free(a->sha256);
    qd_free(a->path);
    memset(a, 0, sizeof(*a));
}

void sv_artifact_rows_free(sv_artifact_row *rows, int n)
{
    for (int i = 0; i < n; i++)
        sv_artifact_row_clear(&rows[i]);
    qd_free(rows);
}

static qd_status artifact_read(sqlite3_stmt *q, sv_artifact_row *out, qd_err *err)
{
    bool nomem = false;
    sv_artifact_row a = {
        .id = sv_column_text(q, 0, &nomem),
        .job_id = sv_column_text(q, 1, &nomem),
        .name = sv_column_text(q, 2, &nomem),
        .mime = sv_column_text(q, 3, &nomem),
        .sha256 = sv_column_text(q, 4, &nomem),
        .path = sv_column_text(q, 5, &nomem),
        .size_bytes = sqlite3_column_int64(q, 6),
        .created_ms = sqlite3_column_int64(q, 7),
    };

    if (nomem) {
        sv_artifact_row_clear(&a);
        return qd_fail(err, QD_E_NOMEM, "out of memory while reading an artifact's row");
    }
    *out = a;
    return QD_OK;
}

qd_status sv_artifacts_add(sv_store *s, int64_t fence, int attempt, const sv_artifact_row *row, int64_t *seq,
                           qd_err *err)
{
    sv_conn *c;
    char made[40];
    const char *id = row->id;
    int64_t taken = 0;
    const int64_t now = row->created_ms ? row->created_ms : sv_now_ms();
    qd_buf data;
    qd_status st;

    if (!id || !id[0]) {
        sv_id_new(made, "art_");
        id = made;
    }
    qd_buf_init(&data, 0);
    qd_buf_adds(&data, "{\"id\":");
    qd_buf_add_json_string(&data, id);
    qd_buf_adds(&data, ",\"name\":");
    qd_buf_add_json_string(&data, row->name);
    qd_buf_adds(&data, ",\"mime\":");
    qd_buf_add_json_string(&data, row->mime ? row->mime : "");
    qd_buf_addf(&data, ",\"size_bytes\":%lld,\"sha256\":", (long long)row->size_bytes);
    qd_buf_add_json_string(&data, row->sha256 ? row->sha256 : "");
    if (!qd_buf_adds(&data, "}") || data.failed) {
        qd_buf_clear(&data);
        return qd_fail(err, QD_E_NOMEM, "out of memory while adding artifact '%s'", row->name);
    }
    st = sv_conn_write(s, &c, err);
    if (st)
        goto out;
    st = sv_event_put(c, row->job_id, fence, attempt, "artifact", data.data, now, &taken, err);
    /* A later attempt makes the same files again: the newest counts. */
    if (!st)
        st = sv_exec(c,
                     "INSERT OR REPLACE INTO artifacts (id, job_id, name, mime, sha256, path, size_bytes, created_ms)"
                     " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                     SV_ARGS(SV_TEXT(id), SV_TEXT(row->job_id), SV_TEXT(row->name), SV_TEXT(row->mime),
                             SV_TEXT(row->sha256), SV_TEXT(row->path), SV_INT(row->size_bytes), SV_INT(now)),
                     NULL, err);
    st = sv_conn_end(c, st, err);
    if (!st && seq)
        *seq = taken;
out:
    qd_buf_clear(&data);
    return st;
}

qd_status sv_artifacts_list(sv_store *s, const char *job_id, sv_artifact_row **rows, int *n, qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    void *list = NULL;
    int count = 0, capacity = 0;
    bool row = true;
    qd_status st = sv_conn_read(s, &c, err);

    if (st)
        return st;
    st = sv_query(c, "SELECT " ARTIFACT_COLUMNS " FROM artifacts WHERE job_id = ?1 ORDER BY n",
                  SV_ARGS(SV_TEXT(job_id)), &q, err);
    while (!st) {
        st = sv_step(c, q, &row, err);
        if (st || !row)
            break;
        sv_artifact_row *a = sv_rows_grow(&list, count, &capacity, sizeof(*a));
        st = a ? artifact_read(q, a, err) : qd_fail(err, QD_E_NOMEM, "out of memory while listing artifacts");
        if (!st)
            count++;
    }
    st = sv_conn_end(c, st, err);
    if (st) {
        sv_artifact_rows_free(list, count);
        return st;
    }
    *rows = list;
    *n = count;
    return QD_OK;
}

qd_status sv_artifacts_get(sv_store *s, const char *job_id, const char *name, sv_artifact_row *out, qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    sv_artifact_row row = { 0 };
    bool found = false;
    qd_status st = sv_conn_read(s, &c, err);

    if (st)
        return st;
    st = sv_query(c, "SELECT " ARTIFACT_COLUMNS " FROM artifacts WHERE job_id = ?1 AND (name = ?2 OR id = ?2)",
                  SV_ARGS(SV_TEXT(job_id), SV_TEXT(name)), &q, err);
    if (!st)
        st = sv_step(c, q, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "job '%s' has no artifact '%s'", job_id, name);
    if (!st)
        st = artifact_read(q, &row, err);
    st = sv_conn_end(c, st, err);
    if (st)
        sv_artifact_row_clear(&row);
    else
        *out = row;
    return st;
}
