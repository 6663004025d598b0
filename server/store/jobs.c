/* jobs.c - the rows of jobs: submit, read, delete. How they move through the queue is in queue.c. */
#include <string.h>

#include "base/mem.h"
#include "store/store_int.h"

#define IDEMPOTENCY_KEPT_MS (24ll * 3600 * 1000) /* API.md 3 */

static const char *const retryable[] = { "failed", "dead", "canceled" };

void sv_job_row_clear(sv_job_row *j)
{
    qd_free(j->id);
    qd_free(j->kind);
    qd_free(j->method);
    qd_free(j->status);
    qd_free(j->model_id);
    qd_free(j->dataset_id);
    qd_free(j->retry_of);
    qd_free(j->estimate);
    qd_free(j->body);
    qd_free(j->params);
    qd_free(j->metadata);
    qd_free(j->error);
    qd_free(j->result);
    qd_free(j->phase);
    qd_free(j->item);
    memset(j, 0, sizeof(*j));
}

void sv_job_rows_free(sv_job_row *rows, int n)
{
    for (int i = 0; i < n; i++)
        sv_job_row_clear(&rows[i]);
    qd_free(rows);
}

qd_status sv_job_read(sqlite3_stmt *q, sv_job_row *out, qd_err *err)
{
    bool nomem = false;
    sv_job_row j = {
        .id = sv_column_text(q, 0, &nomem),
        .kind = sv_column_text(q, 1, &nomem),
        .method = sv_column_text(q, 2, &nomem),
        .status = sv_column_text(q, 3, &nomem),
        .model_id = sv_column_text(q, 4, &nomem),
        .body = sv_column_text(q, 5, &nomem),
        .params = sv_column_text(q, 6, &nomem),
        .metadata = sv_column_text(q, 7, &nomem),
        .error = sv_column_text(q, 8, &nomem),
        .result = sv_column_text(q, 9, &nomem),
        .phase = sv_column_text(q, 10, &nomem),
        .item = sv_column_text(q, 11, &nomem),
        .done = sqlite3_column_int64(q, 12),
        .total = sqlite3_column_int64(q, 13),
        .priority = sqlite3_column_int(q, 14),
        .attempt = sqlite3_column_int(q, 15),
        .max_attempts = sqlite3_column_int(q, 16),
        .created_ms = sqlite3_column_int64(q, 17),
        .started_ms = sqlite3_column_int64(q, 18),
        .finished_ms = sqlite3_column_int64(q, 19),
        .run_at_ms = sqlite3_column_int64(q, 20),
        .cancel_requested_ms = sqlite3_column_int64(q, 21),
        .time_limit_s = sqlite3_column_int64(q, 22),
        .lease_until_ms = sqlite3_column_int64(q, 23),
        .fence = sqlite3_column_int64(q, 24),
        .last_seq = sqlite3_column_int64(q, 25),
        .dataset_id = sv_column_text(q, 26, &nomem),
        .retry_of = sv_column_text(q, 27, &nomem),
        .estimate = sv_column_text(q, 28, &nomem),
    };

    if (nomem) {
        sv_job_row_clear(&j);
        return qd_fail(err, QD_E_NOMEM, "out of memory while reading a job's row");
    }
    *out = j;
    return QD_OK;
}

/* The row with this id, or `found` false. */
static qd_status job_find(sv_conn *c, const char *id, sv_job_row *out, bool *found, qd_err *err)
{
    sqlite3_stmt *q;
    qd_status st = sv_query(c, "SELECT " SV_JOB_COLUMNS " FROM jobs WHERE id = ?1", SV_ARGS(SV_TEXT(id)), &q, err);

    if (!st)
        st = sv_step(c, q, found, err);
    if (!st && *found)
        st = sv_job_read(q, out, err);
    return st;
}

static qd_status pruned(sv_conn *c, const char *id, bool *is, qd_err *err)
{
    int64_t n = 0;
    return sv_get_int(c, "SELECT n FROM tombstones WHERE id = ?1", SV_ARGS(SV_TEXT(id)), &n, is, err);
}

static const char *or_empty_object(const char *json)
{
    return json && json[0] ? json : "{}";
}

/* An earlier submission that this one repeats, by key or by id. The same words again are the same job; other words under the same
 * name are a mistake of the client. */
static qd_status repeat_find(sv_conn *c, const sv_job_row *j, const char *id, const char *key, sv_job_row *out,
                             bool *found, qd_err *err)
{
    sqlite3_stmt *q;
    const char *how = "id";
    qd_status st = QD_OK;

    *found = false;
    if (key) {
        st = sv_query(c,
                      "SELECT " SV_JOB_COLUMNS " FROM jobs WHERE id = (SELECT job_id FROM idempotency WHERE key = ?1)",
                      SV_ARGS(SV_TEXT(key)), &q, err);
        if (!st)
            st = sv_step(c, q, found, err);
        if (!st && *found) {
            how = "Idempotency-Key";
            st = sv_job_read(q, out, err);
        }
    }
    if (!st && !*found)
        st = job_find(c, id, out, found, err);
    if (!st && *found && strcmp(out->body, or_empty_object(j->body)) != 0) {
        st = qd_fail(err, QD_E_CONFLICT, "%s '%s' was already used for job '%s', whose body differs", how,
                     strcmp(how, "id") == 0 ? id : key, out->id);
        sv_job_row_clear(out);
    }
    return st;
}

/* What must be so before a new row is written. */
static qd_status add_check(sv_conn *c, const sv_job_row *j, const char *id, qd_err *err)
{
    bool gone, there = true;
    int64_t n;
    qd_status st = pruned(c, id, &gone, err);

    if (!st && gone)
        st = qd_fail(err, QD_E_CONFLICT, "a job '%s' existed and was deleted; ids are not used twice", id);
    /* Here, in the transaction: what the job uses may have been deleted since the request was checked. */
    if (!st && j->model_id && j->model_id[0])
        st = sv_get_int(c, "SELECT n FROM models WHERE id = ?1", SV_ARGS(SV_TEXT(j->model_id)), &n, &there, err);
    if (!st && !there)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no model '%s'", j->model_id);
    if (!st && j->dataset_id && j->dataset_id[0])
        st = sv_get_int(c, "SELECT n FROM datasets WHERE id = ?1", SV_ARGS(SV_TEXT(j->dataset_id)), &n, &there, err);
    if (!st && !there)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no data set '%s'", j->dataset_id);
    return st;
}

static qd_status add_insert(sv_conn *c, const sv_job_row *j, const char *id, int64_t now, qd_err *err)
{
    const bool later = j->run_at_ms > now;
    qd_status st;

    st = sv_exec(
        c,
        "INSERT INTO jobs (id, kind, method, status, model_id, body, params, metadata, priority, max_attempts, created_ms,"
        " run_at_ms, time_limit_s, dataset_id, retry_of, estimate, last_seq)"
        " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, 1)",
        SV_ARGS(SV_TEXT(id), SV_TEXT(j->kind), SV_TEXT(j->method), SV_TEXT(later ? "scheduled" : "queued"),
                SV_TEXT(j->model_id), SV_TEXT(or_empty_object(j->body)), SV_TEXT(or_empty_object(j->params)),
                SV_TEXT(or_empty_object(j->metadata)), SV_INT(j->priority), SV_INT(j->max_attempts), SV_INT(now),
                SV_INT(j->run_at_ms), SV_INT(j->time_limit_s), SV_TEXT(j->dataset_id), SV_TEXT(j->retry_of),
                SV_TEXT(j->estimate)),
        NULL, err);
    if (!st)
        st = sv_event_insert(c, id, 1, 0, "state", later ? "{\"status\":\"scheduled\"}" : "{\"status\":\"queued\"}",
                             now, err);
    return st;
}

qd_status sv_jobs_add(sv_store *s, const sv_job_row *j, const char *idempotency_key, sv_job_row *out, bool *existing,
                      qd_err *err)
{
    sv_conn *c;
    sv_job_row row = { 0 };
    char made[40];
    const char *id = j->id;
    const int64_t now = j->created_ms ? j->created_ms : sv_now_ms();
    bool repeated = false, found;
    qd_status st;

    if (j->max_attempts < 1)
        return qd_fail(err, QD_E_INVALID, "max_attempts must be at least 1, got %d", j->max_attempts);
    if (!id || !id[0]) {
        sv_id_new(made, "job_");
        id = made;
    } else if (strlen(id) >= 40) {
        return qd_fail(err, QD_E_INVALID, "a job's id has at most 39 bytes, '%.64s' has %zu", id, strlen(id));
    }
    st = sv_conn_write(s, &c, err);
    if (st)
        return st;
    if (idempotency_key)
        st = sv_exec(c, "DELETE FROM idempotency WHERE created_ms < ?1", SV_ARGS(SV_INT(now - IDEMPOTENCY_KEPT_MS)),
                     NULL, err);
    if (!st)
        st = repeat_find(c, j, id, idempotency_key, &row, &repeated, err);
    if (st || repeated)
        goto out;
    st = add_check(c, j, id, err);
    if (!st)
        st = add_insert(c, j, id, now, err);
    if (!st && idempotency_key)
        st = sv_exec(c, "INSERT INTO idempotency (key, job_id, created_ms) VALUES (?1, ?2, ?3)",
                     SV_ARGS(SV_TEXT(idempotency_key), SV_TEXT(id), SV_INT(now)), NULL, err);
    if (!st)
        st = job_find(c, id, &row, &found, err);
out:
    st = sv_conn_end(c, st, err);
    if (st) {
        sv_job_row_clear(&row);
        return st;
    }
    if (existing)
        *existing = repeated;
    *out = row;
    return QD_OK;
}

/* The unfinished job that tries this one again, or `found` false. */
static qd_status retry_find(sv_conn *c, const char *id, sv_job_row *out, bool *found, qd_err *err)
{
    sqlite3_stmt *q;
    qd_status st = sv_query(
        c, "SELECT " SV_JOB_COLUMNS " FROM jobs WHERE retry_of = ?1 AND retry_of <> '' AND status NOT IN " SV_FINAL,
        SV_ARGS(SV_TEXT(id)), &q, err);

    if (!st)
        st = sv_step(c, q, found, err);
    if (!st && *found)
        st = sv_job_read(q, out, err);
    return st;
}

static qd_status retry_check(const sv_job_row *old, qd_err *err)
{
    if (strcmp(old->status, "succeeded") == 0)
        return qd_fail(err, QD_E_CONFLICT, "job '%s' succeeded: there is nothing to try again", old->id);
    for (size_t i = 0; i < sizeof(retryable) / sizeof(retryable[0]); i++)
        if (strcmp(old->status, retryable[i]) == 0)
            return QD_OK;
    return qd_fail(err, QD_E_CONFLICT, "job '%s' is %s: only a job that is over can be tried again", old->id,
                   old->status);
}

qd_status sv_jobs_retry(sv_store *s, const char *id, int64_t now_ms, sv_job_row *out, bool *existing, qd_err *err)
{
    sv_conn *c;
    sv_job_row old = { 0 }, row = { 0 };
    char made[40];
    bool found = false, repeated = false;
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = job_find(c, id, &old, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no job '%s'", id);
    if (!st)
        st = retry_check(&old, err);
    if (!st)
        st = retry_find(c, id, &row, &repeated, err);
    if (st || repeated)
        goto out;

    sv_id_new(made, "job_");
    st = add_check(c, &old, made, err);
    if (st == QD_E_NOT_FOUND) /* the job is there, what it worked on is not */
        st = qd_fail(err, QD_E_CONFLICT, "job '%s' cannot be tried again: its model or data set is gone", id);
    if (st)
        goto out;
    /* At once, whenever the first one was scheduled for. The text is lent: the row is only read. */
    sv_job_row again = old;
    again.retry_of = old.id;
    again.run_at_ms = 0;
    st = add_insert(c, &again, made, now_ms, err);
    if (!st)
        st = job_find(c, made, &row, &found, err);
out:
    st = sv_conn_end(c, st, err);
    sv_job_row_clear(&old);
    if (st) {
        sv_job_row_clear(&row);
        return st;
    }
    *existing = repeated;
    *out = row;
    return QD_OK;
}

qd_status sv_jobs_get(sv_store *s, const char *id, sv_job_row *out, qd_err *err)
{
    sv_conn *c;
    sv_job_row row = { 0 };
    bool found = false, gone = false;
    qd_status st = sv_conn_read_many(s, &c, err);

    if (st)
        return st;
    st = job_find(c, id, &row, &found, err);
    if (!st && !found) {
        st = pruned(c, id, &gone, err);
        if (!st)
            st = qd_fail(err, QD_E_NOT_FOUND, gone ? "job '%s' was deleted" : "there is no job '%s'", id);
    }
    st = sv_conn_end(c, st, err);
    if (st)
        sv_job_row_clear(&row);
    else
        *out = row;
    return st;
}

qd_status sv_jobs_delete(sv_store *s, const char *id, qd_err *err)
{
    sv_conn *c;
    sv_job_row row = { 0 };
    bool found = false;
    int64_t deleted = 0;
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = job_find(c, id, &row, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no job '%s'", id);
    if (!st)
        st = sv_exec(c, "INSERT INTO tombstones (id, n, deleted_ms) SELECT id, n, ?2 FROM jobs WHERE id = ?1",
                     SV_ARGS(SV_TEXT(id), SV_INT(sv_now_ms())), NULL, err);
    /* Events, attempts, samples, artifacts and the idempotency key go with it. */
    if (!st)
        st = sv_exec(c, "DELETE FROM jobs WHERE id = ?1 AND status IN " SV_FINAL, SV_ARGS(SV_TEXT(id)), &deleted, err);
    if (!st && !deleted)
        st = qd_fail(err, QD_E_CONFLICT, "job '%s' is %s: only a finished job can be deleted, cancel it first", id,
                     row.status);
    sv_job_row_clear(&row);
    return sv_conn_end(c, st, err);
}

bool sv_jobs_pruned(sv_store *s, const char *id)
{
    sv_conn *c;
    bool is = false;
    qd_status st = sv_conn_read(s, &c, NULL);

    if (!st)
        st = sv_conn_end(c, pruned(c, id, &is, NULL), NULL);
    return !st && is;
}
