/* lists.c - jobs and attempts in order, and the counts for /metrics. */
#include <string.h>

#include "base/mem.h"
#include "store/store_int.h"

/* ?2 is ",queued,running," or NULL. */
#define JOB_FILTER                                                                                                     \
    "(?2 IS NULL OR instr(?2, ',' || status || ',') > 0) AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR id = ?4)"

static const char newest_first[] =
    "SELECT " SV_JOB_COLUMNS " FROM jobs WHERE n < ?1 AND " JOB_FILTER " ORDER BY n DESC LIMIT ?5";
static const char oldest_first[] =
    "SELECT " SV_JOB_COLUMNS " FROM jobs WHERE n > ?1 AND " JOB_FILTER " ORDER BY n LIMIT ?5";

qd_status sv_jobs_list(sv_store *s, const sv_list_query *query, sv_job_row **rows, int *n, bool *more, qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    void *list = NULL;
    char *statuses = NULL;
    int count = 0, capacity = 0;
    int64_t from = query->ascending ? 0 : INT64_MAX;
    bool row = true;
    qd_status st;

    if (query->limit < 1 || query->limit > 1000)
        return qd_fail(err, QD_E_INVALID, "limit must be 1..1000, got %d", query->limit);
    if (query->status && query->status[0]) {
        statuses = qd_asprintf(",%s,", query->status);
        if (!statuses)
            return qd_fail(err, QD_E_NOMEM, "out of memory while listing jobs");
    }
    st = sv_conn_read_many(s, &c, err);
    if (st) {
        qd_free(statuses);
        return st;
    }
    if (query->after && query->after[0])
        st = sv_cursor(c, "SELECT n FROM jobs WHERE id = ?1", query->after, &from, err);
    if (!st)
        st = sv_query(c, query->ascending ? oldest_first : newest_first,
                      SV_ARGS(SV_INT(from), SV_MAYBE(statuses), SV_MAYBE(query->kind), SV_MAYBE(query->job_id),
                              SV_INT(query->limit + 1)),
                      &q, err);
    while (!st) {
        st = sv_step(c, q, &row, err);
        if (st || !row || count == query->limit)
            break;
        sv_job_row *j = sv_rows_grow(&list, count, &capacity, sizeof(*j));
        st = j ? sv_job_read(q, j, err) : qd_fail(err, QD_E_NOMEM, "out of memory while listing jobs");
        if (!st)
            count++;
    }
    st = sv_conn_end(c, st, err);
    qd_free(statuses);
    if (st) {
        sv_job_rows_free(list, count);
        return st;
    }
    *rows = list;
    *n = count;
    if (more)
        *more = row;
    return QD_OK;
}

static void attempt_clear(sv_attempt_row *a)
{
    qd_free(a->worker);
    qd_free(a->outcome);
    qd_free(a->error);
    memset(a, 0, sizeof(*a));
}

void sv_attempt_rows_free(sv_attempt_row *rows, int n)
{
    for (int i = 0; i < n; i++)
        attempt_clear(&rows[i]);
    qd_free(rows);
}

qd_status sv_attempts_list(sv_store *s, const char *job_id, sv_attempt_row **rows, int *n, qd_err *err)
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
        "SELECT attempt, started_ms, finished_ms, worker, outcome, error FROM attempts WHERE job_id = ?1 ORDER BY attempt",
        SV_ARGS(SV_TEXT(job_id)), &q, err);
    while (!st) {
        st = sv_step(c, q, &row, err);
        if (st || !row)
            break;
        sv_attempt_row *a = sv_rows_grow(&list, count, &capacity, sizeof(*a));
        if (a) {
            count++;
            a->attempt = sqlite3_column_int(q, 0);
            a->started_ms = sqlite3_column_int64(q, 1);
            a->finished_ms = sqlite3_column_int64(q, 2);
            a->worker = sv_column_text(q, 3, &nomem);
            a->outcome = sv_column_text(q, 4, &nomem);
            a->error = sv_column_text(q, 5, &nomem);
        }
        if (!a || nomem)
            st = qd_fail(err, QD_E_NOMEM, "out of memory while listing attempts");
    }
    st = sv_conn_end(c, st, err);
    if (st) {
        sv_attempt_rows_free(list, count);
        return st;
    }
    *rows = list;
    *n = count;
    return QD_OK;
}

qd_status sv_jobs_counts(sv_store *s, void (*fn)(void *ctx, const char *kind, const char *status, int64_t n), void *ctx,
                         qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    bool row = true;
    qd_status st = sv_conn_read(s, &c, err);

    if (st)
        return st;
    st = sv_query(c, "SELECT kind, status, count(*) FROM jobs GROUP BY kind, status", SV_NO_ARGS, &q, err);
    while (!st) {
        st = sv_step(c, q, &row, err);
        if (st || !row)
            break;
        fn(ctx, (const char *)sqlite3_column_text(q, 0), (const char *)sqlite3_column_text(q, 1),
           sqlite3_column_int64(q, 2));
    }
    return sv_conn_end(c, st, err);
}
