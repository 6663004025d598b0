/* store_int.h - inside the store: connections, transactions, statements, and the few SQL steps that several files share. */
#ifndef SV_STORE_STORE_INT_H
#define SV_STORE_STORE_INT_H

#include <sqlite3.h>

#include "store/store.h"

/* Compiled in from migrations/ by embed_migrations.py; ends with number 0. */
typedef struct sv_migration {
    int number;
    const char *name, *sql;
} sv_migration;
extern const sv_migration sv_migrations[];

qd_status sv_migrate(sv_store *s, const char *path, qd_err *err);

/* One thread's connection, with the statements it has prepared so far. */
typedef struct sv_conn sv_conn;

/* --- a unit of work: begin, queries, end ---
 * Every successful begin is paired with one end, which resets all statements, commits when `st` is QD_OK and rolls back otherwise,
 * and returns the status of the whole. */
qd_status sv_conn_read(sv_store *s, sv_conn **out,
                       qd_err *err); /* no transaction: one statement, or several unrelated ones */
qd_status sv_conn_read_many(sv_store *s, sv_conn **out,
                            qd_err *err); /* a read transaction: all statements see one moment */
qd_status sv_conn_write(sv_store *s, sv_conn **out, qd_err *err); /* BEGIN IMMEDIATE, waits its turn */
qd_status sv_conn_end(sv_conn *c, qd_status st, qd_err *err);

/* One bound value. */
typedef struct sv_arg {
    char type; /* 't' text, NULL counts as ""; 'i' integer; 'd' real, NAN is stored as NULL; 'n' text or NULL */
    const char *text;
    int64_t integer;
    double real;
} sv_arg;
#define SV_TEXT(x) ((sv_arg){ .type = 't', .text = (x) })
#define SV_MAYBE(x) ((sv_arg){ .type = 'n', .text = (x) })
#define SV_INT(x) ((sv_arg){ .type = 'i', .integer = (x) })
#define SV_REAL(x) ((sv_arg){ .type = 'd', .real = (x) })
#define SV_ARGS(...) ((const sv_arg[]){ __VA_ARGS__, { 0 } })
#define SV_NO_ARGS ((const sv_arg[]){ { 0 } })

/* Prepare (once per connection: sql must be a string literal, it is the key) and bind. Bound text must live until end. */
qd_status sv_query(sv_conn *c, const char *sql, const sv_arg *args, sqlite3_stmt **out, qd_err *err);
/* Next row; *row false at the end. */
qd_status sv_step(sv_conn *c, sqlite3_stmt *q, bool *row, qd_err *err);
/* query + step to the end; *changed (may be NULL) counts rows. */
qd_status sv_exec(sv_conn *c, const char *sql, const sv_arg *args, int64_t *changed, qd_err *err);
/* First column of the first row as an integer; *found (may be NULL) tells whether there was one, *value is untouched otherwise. */
qd_status sv_get_int(sv_conn *c, const char *sql, const sv_arg *args, int64_t *value, bool *found, qd_err *err);

/* Several statements in one text, without values. */
qd_status sv_script(sv_conn *c, const char *sql, const char *doing, qd_err *err);

/* A column copied out (never NULL in a finished row); sets *nomem when memory is out. */
char *sv_column_text(sqlite3_stmt *q, int column, bool *nomem);

/* rows[n] grown by one zeroed element of `size` bytes; NULL when out of memory. */
void *sv_rows_grow(void **rows, int n, int *capacity, size_t size);

/* Where a list continues after `id`, looked up in `table_sql` and among what was deleted. */
qd_status sv_cursor(sv_conn *c, const char *table_sql, const char *id, int64_t *n, qd_err *err);

/* --- steps inside a write transaction --- */
/* Number and insert an event. fence < 0: any unfinished job; else only the holder of that claim. */
qd_status sv_event_put(sv_conn *c, const char *job_id, int64_t fence, int attempt, const char *type, const char *data,
                       int64_t now_ms, int64_t *seq, qd_err *err);
/* An event whose number was already taken from jobs.last_seq. */
qd_status sv_event_insert(sv_conn *c, const char *job_id, int64_t seq, int attempt, const char *type, const char *data,
                          int64_t now_ms, qd_err *err);
/* A job that succeeds now, into the histogram of its kind and method. (seconds.c) */
qd_status sv_seconds_count(sv_conn *c, const char *job_id, int64_t now_ms, qd_err *err);
/* Words for a write that matched no row: NOT_FOUND, or CONFLICT saying which fence and state stood in the way. */
qd_status sv_job_refused(sv_conn *c, const char *id, int64_t fence, qd_err *err);

/* The columns of sv_job_row, in the order that sv_job_read expects. */
#define SV_JOB_COLUMNS                                                                                                                   \
    "id, kind, method, status, model_id, body, params, metadata, error, result, phase, item, done, total, priority, attempt, "           \
    "max_attempts, created_ms, started_ms, finished_ms, run_at_ms, cancel_requested_ms, time_limit_s, lease_until_ms, fence, last_seq, " \
    "dataset_id, retry_of, estimate"
qd_status sv_job_read(sqlite3_stmt *q, sv_job_row *out, qd_err *err);

/* States that never change again. A constant of SQL text, so that indexes and statements agree. */
#define SV_FINAL "('succeeded', 'failed', 'canceled', 'dead')"
#define SV_WAITING "('queued', 'scheduled', 'retry_wait')"

void sv_watch_call(sv_store *s, const sv_event_row *event);

#endif
