/* queue.c - how a job moves: claimed by lease, kept by heartbeat, finished once, requeued, canceled. Every step is one transaction. */
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "store/store_int.h"

#define RETRY_FIRST_MS 1000
#define RETRY_LAST_MS 60000

/* Events of a transaction that its caller did not ask for, told to the watcher after the commit. */
typedef struct notes {
    void *rows; /* sv_event_row */
    int n, capacity;
} notes;

/* Out of memory only costs the notice: listeners also look into the log from time to time. */
static void notes_add(notes *list, const char *job_id, int64_t seq, int attempt, const char *type, const char *data,
                      int64_t now_ms)
{
    sv_event_row *e = sv_rows_grow(&list->rows, list->n, &list->capacity, sizeof(*e));

    if (!e)
        return;
    *e = (sv_event_row){
        .seq = seq,
        .ts_ms = now_ms,
        .attempt = attempt,
        .job_id = qd_strdup(job_id),
        .type = qd_strdup(type),
        .data = qd_strdup(data),
    };
    list->n++;
}

static void notes_tell(sv_store *s, notes *list, bool committed)
{
    sv_event_row *e = list->rows;

    for (int i = 0; i < list->n && committed; i++)
        if (e[i].job_id && e[i].type && e[i].data)
            sv_watch_call(s, &e[i]);
    sv_event_rows_free(list->rows, list->n);
}

qd_status sv_job_refused(sv_conn *c, const char *id, int64_t fence, qd_err *err)
{
    sqlite3_stmt *q;
    bool row;
    qd_status st = sv_query(c, "SELECT status, fence FROM jobs WHERE id = ?1", SV_ARGS(SV_TEXT(id)), &q, err);

    if (!st)
        st = sv_step(c, q, &row, err);
    if (st)
        return st;
    if (!row)
        return qd_fail(err, QD_E_NOT_FOUND, "there is no job '%s'", id);
    if (fence < 0)
        return qd_fail(err, QD_E_CONFLICT, "job '%s' is %s and does not change any more", id,
                       (const char *)sqlite3_column_text(q, 0));
    return qd_fail(err, QD_E_CONFLICT, "job '%s' is no longer ours: claim %lld, the job is %s under claim %lld", id,
                   (long long)fence, (const char *)sqlite3_column_text(q, 0), (long long)sqlite3_column_int64(q, 1));
}

/* {"status":S,"error":..,"result":..}: the data of "state" and "end" events. */
static char *state_data(const char *status, const char *error_json, const char *result_json)
{
    return qd_asprintf("{\"status\":\"%s\"%s%s%s%s}", status, error_json && error_json[0] ? ",\"error\":" : "",
                       error_json ? error_json : "", result_json && result_json[0] ? ",\"result\":" : "",
                       result_json ? result_json : "");
}

/* The whole of a change of state: the row, the attempt's end, the event "state", and "end" when it is final. The caller has made
 * sure that the job may change. */
typedef struct move {
    const char *id, *status, *error, *result; /* error, result: JSON or "" */
    const char *outcome;                      /* of the attempt; NULL = there is no attempt to close */
    int attempt;
    bool final, uncount; /* uncount: the attempt does not count */
    int64_t now_ms, run_at_ms;
} move;

static qd_status move_apply(sv_conn *c, const move *m, notes *list, int64_t *last_seq, qd_err *err)
{
    int64_t seq = 0;
    char *data = state_data(m->status, m->error, m->result);
    qd_status st;

    if (!data)
        return qd_fail(err, QD_E_NOMEM, "out of memory while changing the state of job '%s'", m->id);
    /* A new fence: whoever held the job before can write no more. */
    st = sv_get_int(
        c,
        "UPDATE jobs SET status = ?2, error = ?3, result = ?4, finished_ms = ?5, run_at_ms = max(run_at_ms, ?6),"
        " tries = tries - ?7, lease_until_ms = 0, fence = fence + 1, last_seq = last_seq + ?8"
        " WHERE id = ?1 RETURNING last_seq",
        SV_ARGS(SV_TEXT(m->id), SV_TEXT(m->status), SV_TEXT(m->error), SV_TEXT(m->result),
                SV_INT(m->final ? m->now_ms : 0), SV_INT(m->run_at_ms), SV_INT(m->uncount ? 1 : 0),
                SV_INT(m->final ? 2 : 1)),
        &seq, NULL, err);
    if (!st && m->outcome)
        st = sv_exec(
            c, "UPDATE attempts SET finished_ms = ?3, outcome = ?4, error = ?5 WHERE job_id = ?1 AND attempt = ?2",
            SV_ARGS(SV_TEXT(m->id), SV_INT(m->attempt), SV_INT(m->now_ms), SV_TEXT(m->outcome), SV_TEXT(m->error)),
            NULL, err);
    for (int i = m->final ? 1 : 0; i >= 0 && !st; i--) {
        const char *type = m->final && i == 0 ? "end" : "state";
        st = sv_event_insert(c, m->id, seq - i, m->attempt, type, data, m->now_ms, err);
        if (!st && list)
            notes_add(list, m->id, seq - i, m->attempt, type, data, m->now_ms);
    }
    if (!st && strcmp(m->status, "succeeded") == 0)
        st = sv_seconds_count(c, m->id, m->now_ms, err);
    if (!st && last_seq)
        *last_seq = seq;
    qd_free(data);
    return st;
}

/* --- claim --- */

/* Jobs whose holder fell silent: canceled if somebody asked, failed if it was the last try, else back in the queue. */
static qd_status sweep(sv_conn *c, int64_t now_ms, notes *list, qd_err *err)
{
    for (;;) {
        sqlite3_stmt *q;
        bool row, nomem = false;
        char *id, *lost;
        qd_status st = sv_query(c,
                                "SELECT id, attempt, tries >= max_attempts, cancel_requested_ms FROM jobs"
                                " WHERE status = 'running' AND lease_until_ms < ?1 ORDER BY lease_until_ms LIMIT 1",
                                SV_ARGS(SV_INT(now_ms)), &q, err);
        if (!st)
            st = sv_step(c, q, &row, err);
        if (st || !row)
            return st;
        id = sv_column_text(q, 0, &nomem);
        const int attempt = sqlite3_column_int(q, 1);
        const bool last = sqlite3_column_int(q, 2);
        const bool cancel = sqlite3_column_int64(q, 3) != 0;
        sqlite3_reset(q);

        lost =
            qd_asprintf("{\"code\":\"worker_lost\",\"message\":\"attempt %d stopped reporting and its lease ran out\","
                        "\"retryable\":true}",
                        attempt);
        if (nomem || !lost)
            st = qd_fail(err, QD_E_NOMEM, "out of memory while collecting lost jobs");
        else
            st = move_apply(c,
                            &(move){ .id = id,
                                     .attempt = attempt,
                                     .now_ms = now_ms,
                                     .outcome = "worker_lost",
                                     .error = lost,
                                     .result = "",
                                     .status = cancel ? "canceled"
                                               : last ? "failed"
                                                      : "queued",
                                     .final = cancel || last },
                            list, NULL, err);
        qd_free(id);
        qd_free(lost);
        if (st)
            return st;
    }
}

static qd_status take_next(sv_conn *c, const char *worker, int64_t now_ms, int lease_ms, sv_job_row *out, bool *found,
                           qd_err *err)
{
    sqlite3_stmt *q;
    char data[64];
    qd_status st;

    st = sv_query(
        c,
        "UPDATE jobs SET status = 'running', fence = fence + 1, attempt = attempt + 1, tries = tries + 1, started_ms = ?1,"
        " lease_until_ms = ?2, last_seq = last_seq + 1, error = '', phase = '', item = '', done = 0, total = 0"
        " WHERE n = (SELECT n FROM jobs WHERE status IN " SV_WAITING
        " AND run_at_ms <= ?1 ORDER BY priority, n LIMIT 1)"
        " RETURNING " SV_JOB_COLUMNS,
        SV_ARGS(SV_INT(now_ms), SV_INT(now_ms + lease_ms)), &q, err);
    if (!st)
        st = sv_step(c, q, found, err);
    if (st || !*found)
        return st;
    st = sv_job_read(q, out, err);
    sqlite3_reset(q);
    if (!st)
        st = sv_exec(c, "INSERT INTO attempts (job_id, attempt, started_ms, worker) VALUES (?1, ?2, ?3, ?4)",
                     SV_ARGS(SV_TEXT(out->id), SV_INT(out->attempt), SV_INT(now_ms), SV_TEXT(worker)), NULL, err);
    /* What an earlier attempt drew is drawn again: its pictures are no longer the job's, and are counted from 0 anew. */
    if (!st)
        st = sv_exec(c, "DELETE FROM samples WHERE job_id = ?1", SV_ARGS(SV_TEXT(out->id)), NULL, err);
    snprintf(data, sizeof(data), "{\"status\":\"running\",\"attempt\":%d}", out->attempt);
    if (!st)
        st = sv_event_insert(c, out->id, out->last_seq, out->attempt, "state", data, now_ms, err);
    return st;
}

qd_status sv_jobs_claim(sv_store *s, const char *worker, int64_t now_ms, int lease_ms, sv_job_row *out, qd_err *err)
{
    sv_conn *c;
    sv_job_row row = { 0 };
    notes list = { 0 };
    int64_t work = 0;
    bool found = false;
    qd_status st = sv_conn_read(s, &c, err);

    if (st)
        return st;
    /* Idle workers ask often: they must not hold up the writers for an empty queue. */
    st = sv_get_int(c,
                    "SELECT EXISTS (SELECT 1 FROM jobs WHERE status IN " SV_WAITING " AND run_at_ms <= ?1)"
                    " OR EXISTS (SELECT 1 FROM jobs WHERE status = 'running' AND lease_until_ms < ?1)",
                    SV_ARGS(SV_INT(now_ms)), &work, NULL, err);
    st = sv_conn_end(c, st, err);
    if (!st && !work)
        return qd_fail(err, QD_E_NOT_FOUND, "the queue is empty");
    if (!st)
        st = sv_conn_write(s, &c, err);
    if (st)
        return st;
    st = sweep(c, now_ms, &list, err);
    if (!st)
        st = take_next(c, worker, now_ms, lease_ms, &row, &found, err);
    st = sv_conn_end(c, st, err);
    notes_tell(s, &list, st == QD_OK);
    if (st) {
        sv_job_row_clear(&row);
        return st;
    }
    if (!found)
        return qd_fail(err, QD_E_NOT_FOUND, "the queue is empty");
    *out = row;
    return QD_OK;
}

/* --- while it runs --- */

qd_status sv_jobs_heartbeat(sv_store *s, const char *id, int64_t fence, int64_t lease_until_ms, bool *cancel,
                            qd_err *err)
{
    sv_conn *c;
    int64_t asked = 0;
    bool found = false;
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = sv_get_int(c,
                    "UPDATE jobs SET lease_until_ms = ?3 WHERE id = ?1 AND fence = ?2 AND status = 'running'"
                    " RETURNING cancel_requested_ms",
                    SV_ARGS(SV_TEXT(id), SV_INT(fence), SV_INT(lease_until_ms)), &asked, &found, err);
    if (!st && !found)
        st = sv_job_refused(c, id, fence < 0 ? 0 : fence, err);
    st = sv_conn_end(c, st, err);
    if (!st && cancel)
        *cancel = asked != 0;
    return st;
}

qd_status sv_jobs_progress(sv_store *s, const char *id, int64_t fence, const char *phase, const char *item,
                           int64_t done, int64_t total, qd_err *err)
{
    sv_conn *c;
    int64_t changed = 0;
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = sv_exec(
        c,
        "UPDATE jobs SET phase = ?3, item = ?4, done = ?5, total = ?6 WHERE id = ?1 AND fence = ?2 AND status = 'running'",
        SV_ARGS(SV_TEXT(id), SV_INT(fence), SV_TEXT(phase), SV_TEXT(item), SV_INT(done), SV_INT(total)), &changed, err);
    if (!st && !changed)
        st = sv_job_refused(c, id, fence < 0 ? 0 : fence, err);
    return sv_conn_end(c, st, err);
}

/* The attempt and tries of a job that is running under this fence. */
typedef struct holder {
    int attempt, tries, max_attempts;
    bool cancel;
} holder;

static qd_status holder_get(sv_conn *c, const char *id, int64_t fence, holder *out, qd_err *err)
{
    sqlite3_stmt *q;
    bool row;
    qd_status st = sv_query(c,
                            "SELECT attempt, tries, max_attempts, cancel_requested_ms FROM jobs"
                            " WHERE id = ?1 AND fence = ?2 AND status = 'running'",
                            SV_ARGS(SV_TEXT(id), SV_INT(fence)), &q, err);
    if (!st)
        st = sv_step(c, q, &row, err);
    if (st)
        return st;
    if (!row)
        return sv_job_refused(c, id, fence < 0 ? 0 : fence, err);
    *out = (holder){ .attempt = sqlite3_column_int(q, 0),
                     .tries = sqlite3_column_int(q, 1),
                     .max_attempts = sqlite3_column_int(q, 2),
                     .cancel = sqlite3_column_int64(q, 3) != 0 };
    sqlite3_reset(q);
    return QD_OK;
}

static bool is_final(const char *status)
{
    static const char *const final[] = { "succeeded", "failed", "canceled", "dead" };

    for (size_t i = 0; i < sizeof(final) / sizeof(final[0]); i++)
        if (strcmp(status, final[i]) == 0)
            return true;
    return false;
}

qd_status sv_jobs_finish(sv_store *s, const char *id, int64_t fence, const char *status, const char *error_json,
                         const char *result_json, int64_t now_ms, int64_t *last_seq, qd_err *err)
{
    sv_conn *c;
    holder h;
    int64_t seq = 0;
    qd_status st;

    if (!is_final(status))
        return qd_fail(err, QD_E_INVALID, "'%s' is not a state a job can finish in", status);
    st = sv_conn_write(s, &c, err);
    if (st)
        return st;
    st = holder_get(c, id, fence, &h, err);
    if (!st)
        st = move_apply(c,
                        &(move){ .id = id,
                                 .status = status,
                                 .error = error_json ? error_json : "",
                                 .result = result_json ? result_json : "",
                                 .outcome = status,
                                 .attempt = h.attempt,
                                 .final = true,
                                 .now_ms = now_ms },
                        NULL, &seq, err);
    st = sv_conn_end(c, st, err);
    if (!st && last_seq)
        *last_seq = seq;
    return st;
}

static int64_t retry_delay_ms(int tries)
{
    int64_t delay = RETRY_FIRST_MS;

    for (int i = 1; i < tries && delay < RETRY_LAST_MS; i++)
        delay *= 4;
    return delay < RETRY_LAST_MS ? delay : RETRY_LAST_MS;
}

qd_status sv_jobs_requeue(sv_store *s, const char *id, int64_t fence, const char *error_json, int64_t now_ms,
                          qd_err *err)
{
    sv_conn *c;
    holder h;
    const bool failed = error_json && error_json[0];
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = holder_get(c, id, fence, &h, err);
    if (!st) {
        move m = { .id = id,
                   .error = failed ? error_json : "",
                   .result = "",
                   .attempt = h.attempt,
                   .now_ms = now_ms,
                   .outcome = failed ? "failed" : "released",
                   .uncount = !failed };
        if (h.cancel) {
            m.status = "canceled";
            m.final = true;
        } else if (!failed) {
            m.status = "queued";
        } else if (h.tries >= h.max_attempts) {
            m.status = "dead";
            m.final = true;
        } else {
            m.status = "retry_wait";
            m.run_at_ms = now_ms + retry_delay_ms(h.tries);
        }
        st = move_apply(c, &m, NULL, NULL, err);
    }
    return sv_conn_end(c, st, err);
}

/* --- from outside --- */

qd_status sv_jobs_cancel(sv_store *s, const char *id, int64_t now_ms, sv_job_row *out, qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    sv_job_row row = { 0 };
    bool found = false;
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = sv_query(c, "SELECT " SV_JOB_COLUMNS " FROM jobs WHERE id = ?1", SV_ARGS(SV_TEXT(id)), &q, err);
    if (!st)
        st = sv_step(c, q, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no job '%s'", id);
    if (!st)
        st = sv_job_read(q, &row, err);
    if (st)
        goto out;
    sqlite3_reset(q);

    if (strcmp(row.status, "running") == 0) {
        /* Its worker sees this at the next heartbeat; the first request's time stays. */
        st = sv_exec(c, "UPDATE jobs SET cancel_requested_ms = ?2 WHERE id = ?1 AND cancel_requested_ms = 0",
                     SV_ARGS(SV_TEXT(id), SV_INT(now_ms)), NULL, err);
    } else if (!is_final(row.status)) {
        st = sv_exec(c, "UPDATE jobs SET cancel_requested_ms = ?2 WHERE id = ?1", SV_ARGS(SV_TEXT(id), SV_INT(now_ms)),
                     NULL, err);
        if (!st)
            st = move_apply(c,
                            &(move){ .id = id,
                                     .status = "canceled",
                                     .error = "",
                                     .result = "",
                                     .attempt = row.attempt,
                                     .final = true,
                                     .now_ms = now_ms },
                            NULL, NULL, err);
    }
    sv_job_row_clear(&row);
    if (!st)
        st = sv_query(c, "SELECT " SV_JOB_COLUMNS " FROM jobs WHERE id = ?1", SV_ARGS(SV_TEXT(id)), &q, err);
    if (!st)
        st = sv_step(c, q, &found, err);
    if (!st)
        st = sv_job_read(q, &row, err);
out:
    st = sv_conn_end(c, st, err);
    if (st)
        sv_job_row_clear(&row);
    else
        *out = row;
    return st;
}

qd_status sv_jobs_position(sv_store *s, const char *id, int64_t *position, qd_err *err)
{
    sv_conn *c;
    int64_t ahead = -1;
    bool found = false;
    qd_status st = sv_conn_read(s, &c, err);

    if (st)
        return st;
    st = sv_get_int(
        c,
        "SELECT CASE WHEN j.status <> 'queued' THEN -1 ELSE (SELECT count(*) FROM jobs o WHERE o.status IN " SV_WAITING
        " AND o.status = 'queued' AND (o.priority, o.n) < (j.priority, j.n)) END FROM jobs j WHERE j.id = ?1",
        SV_ARGS(SV_TEXT(id)), &ahead, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no job '%s'", id);
    st = sv_conn_end(c, st, err);
    if (!st)
        *position = ahead;
    return st;
}
