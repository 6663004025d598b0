/* seconds.c - how long jobs ran: a histogram for each kind and method that outlives its jobs. */
#include <string.h>

#include "base/mem.h"
#include "store/store_int.h"

/* Never changed without a migration: the numbers of the limits are stored. */
const int sv_job_seconds_limits[SV_SECONDS_LIMITS] = { 1, 5, 15, 60, 300, 900, 3600, 14400, 86400 };

qd_status sv_seconds_count(sv_conn *c, const char *job_id, int64_t now_ms, qd_err *err)
{
    sqlite3_stmt *q;
    bool row;
    int bucket = 0;
    qd_status st = sv_query(c, "SELECT started_ms FROM jobs WHERE id = ?1", SV_ARGS(SV_TEXT(job_id)), &q, err);

    if (!st)
        st = sv_step(c, q, &row, err);
    if (st || !row)
        return st;
    const int64_t ms = now_ms - sqlite3_column_int64(q, 0);
    if (ms < 0)
        return QD_OK; /* the clock stepped back */
    while (bucket < SV_SECONDS_LIMITS && ms > sv_job_seconds_limits[bucket] * 1000ll)
        bucket++;
    return sv_exec(c,
                   "INSERT INTO job_seconds (kind, method, bucket, jobs, ms)"
                   " SELECT kind, method, ?2, 1, ?3 FROM jobs WHERE id = ?1"
                   " ON CONFLICT (kind, method, bucket) DO UPDATE SET jobs = jobs + 1, ms = ms + excluded.ms",
                   SV_ARGS(SV_TEXT(job_id), SV_INT(bucket), SV_INT(ms)), NULL, err);
}

qd_status sv_jobs_seconds(sv_store *s, void (*fn)(void *ctx, const sv_seconds_row *row), void *ctx, qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    sv_seconds_row r = { 0 };
    char *kind = NULL, *method = NULL;
    bool row = true, nomem = false;
    qd_status st = sv_conn_read(s, &c, err);

    if (st)
        return st;
    st = sv_query(c, "SELECT kind, method, bucket, jobs, ms FROM job_seconds ORDER BY kind, method, bucket", SV_NO_ARGS,
                  &q, err);
    while (!st) {
        st = sv_step(c, q, &row, err);
        if (st)
            break;
        /* A row that begins another histogram, or the end: what was gathered is complete. */
        if (kind && (!row || strcmp(kind, (const char *)sqlite3_column_text(q, 0)) != 0 ||
                     strcmp(method, (const char *)sqlite3_column_text(q, 1)) != 0)) {
            fn(ctx, &r);
            qd_free(kind);
            qd_free(method);
            kind = method = NULL;
        }
        if (!row)
            break;
        if (!kind) {
            kind = sv_column_text(q, 0, &nomem);
            method = sv_column_text(q, 1, &nomem);
            r = (sv_seconds_row){ .kind = kind, .method = method };
        }
        if (nomem) {
            st = qd_fail(err, QD_E_NOMEM, "out of memory while reading how long jobs ran");
            break;
        }
        const int bucket = sqlite3_column_int(q, 2);
        if (bucket >= 0 && bucket <= SV_SECONDS_LIMITS)
            r.jobs[bucket] += sqlite3_column_int64(q, 3);
        r.total_ms += sqlite3_column_int64(q, 4);
    }
    qd_free(kind);
    qd_free(method);
    return sv_conn_end(c, st, err);
}
