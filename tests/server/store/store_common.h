/* store_common.h - what the store's tests share: a fresh database, rows with sensible values, a job in one line. */
#ifndef TESTS_STORE_COMMON_H
#define TESTS_STORE_COMMON_H

#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "store/store.h"

/* Rows handed in are only read, but their fields are the writable ones of rows handed out. */
#define W(text) ((char *)(text))

/* Paths are copied: harness_tmp lends from a small ring. */
static inline sv_store *store_fresh(char path[512])
{
    qd_err err = { 0 };
    sv_store *s = NULL;

    snprintf(path, 512, "%s/quantd.db", harness_tmp());
    check_ok(sv_store_open(path, &s, &err), &err);
    return s;
}

static inline sv_job_row job_words(const char *id, const char *body)
{
    return (sv_job_row){ .id = W(id),
                         .kind = W("sample"),
                         .method = W("ddim"),
                         .model_id = W(""),
                         .body = W(body),
                         .params = W("{\"steps\":5}"),
                         .metadata = W("{}"),
                         .max_attempts = 2,
                         .created_ms = 1000,
                         .time_limit_s = 60 };
}

/* Adds a job and checks that it is new. */
static inline void job_add(sv_store *s, const char *id, int priority)
{
    qd_err err = { 0 };
    sv_job_row in = job_words(id, "{}"), out = { 0 };
    bool existing = true;

    in.priority = priority;
    check_ok(sv_jobs_add(s, &in, NULL, &out, &existing, &err), &err);
    assert_false(existing);
    sv_job_row_clear(&out);
}

/* The job's status, in a ring of two. */
static inline const char *job_status(sv_store *s, const char *id)
{
    static char ring[2][16];
    static int at;
    qd_err err = { 0 };
    sv_job_row row = { 0 };

    at = !at;
    check_ok(sv_jobs_get(s, id, &row, &err), &err);
    snprintf(ring[at], sizeof ring[at], "%s", row.status);
    sv_job_row_clear(&row);
    return ring[at];
}

/* "state:queued state:running end:succeeded": the log of a job, and a check that its numbers are 1, 2, 3, .. */
static inline const char *job_log(sv_store *s, const char *id)
{
    static char text[4096];
    size_t used = 0;
    qd_err err = { 0 };
    sv_event_row *rows = NULL;
    int n = 0;

    text[0] = '\0';
    check_ok(sv_events_read(s, id, 0, NULL, 1000, &rows, &n, &err), &err);
    for (int i = 0; i < n; i++) {
        char status[16] = "";
        const char *at = strstr(rows[i].data, "\"status\":\"");
        assert_int_equal(rows[i].seq, i + 1);
        if (at)
            sscanf(at + strlen("\"status\":\""), "%15[a-z_]", status);
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s:%s", i ? " " : "", rows[i].type, status);
        assert_true(used < sizeof text);
    }
    sv_event_rows_free(rows, n);
    return text;
}

#endif
