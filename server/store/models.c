/* models.c - the rows of registered models. */
#include <string.h>

#include "base/mem.h"
#include "store/store_int.h"

#define MODEL_COLUMNS "id, name, sha256, path, format, role, summary, job_id, size_bytes, created_ms"

void sv_model_row_clear(sv_model_row *m)
{
    qd_free(m->id);
    qd_free(m->name);
    qd_free(m->sha256);
    qd_free(m->path);
    qd_free(m->format);
    qd_free(m->role);
    qd_free(m->summary);
    qd_free(m->job_id);
    memset(m, 0, sizeof(*m));
}

void sv_model_rows_free(sv_model_row *rows, int n)
{
    for (int i = 0; i < n; i++)
        sv_model_row_clear(&rows[i]);
    qd_free(rows);
}

static qd_status model_read(sqlite3_stmt *q, sv_model_row *out, qd_err *err)
{
    bool nomem = false;
    sv_model_row m = {
        .id = sv_column_text(q, 0, &nomem),
        .name = sv_column_text(q, 1, &nomem),
        .sha256 = sv_column_text(q, 2, &nomem),
        .path = sv_column_text(q, 3, &nomem),
        .format = sv_column_text(q, 4, &nomem),
        .role = sv_column_text(q, 5, &nomem),
        .summary = sv_column_text(q, 6, &nomem),
        .job_id = sv_column_text(q, 7, &nomem),
        .size_bytes = sqlite3_column_int64(q, 8),
        .created_ms = sqlite3_column_int64(q, 9),
    };

    if (nomem) {
        sv_model_row_clear(&m);
        return qd_fail(err, QD_E_NOMEM, "out of memory while reading a model's row");
    }
    *out = m;
    return QD_OK;
}

/* The one row of a query, or `found` false. */
static qd_status model_one(sv_conn *c, const char *sql, const sv_arg *args, sv_model_row *out, bool *found, qd_err *err)
{
    sqlite3_stmt *q;
    qd_status st = sv_query(c, sql, args, &q, err);

    if (!st)
        st = sv_step(c, q, found, err);
    if (!st && *found)
        st = model_read(q, out, err);
    return st;
}

qd_status sv_models_add(sv_store *s, const sv_model_row *m, sv_model_row *out, bool *existing, qd_err *err)
{
    sv_conn *c;
    char made[40];
    const char *id = m->id;
    sv_model_row row = { 0 };
    bool found = false, inserted;
    const int64_t now = m->created_ms ? m->created_ms : sv_now_ms();
    qd_status st;

    if (!id || !id[0]) {
        sv_id_new(made, "mdl_");
        id = made;
    }
    st = sv_conn_write(s, &c, err);
    if (st)
        return st;
    st = model_one(c, "SELECT " MODEL_COLUMNS " FROM models WHERE sha256 = ?1 AND name = ?2",
                   SV_ARGS(SV_TEXT(m->sha256), SV_TEXT(m->name)), &row, &found, err);
    if (st || found)
        goto out;
    st = sv_exec(c,
                 "INSERT INTO models (id, name, sha256, path, format, role, summary, job_id, size_bytes, created_ms)"
                 " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                 SV_ARGS(SV_TEXT(id), SV_TEXT(m->name), SV_TEXT(m->sha256), SV_TEXT(m->path), SV_TEXT(m->format),
                         SV_TEXT(m->role), SV_TEXT(m->summary && m->summary[0] ? m->summary : "{}"), SV_TEXT(m->job_id),
                         SV_INT(m->size_bytes), SV_INT(now)),
                 NULL, err);
    if (!st)
        st = model_one(c, "SELECT " MODEL_COLUMNS " FROM models WHERE id = ?1", SV_ARGS(SV_TEXT(id)), &row, &inserted,
                       err);
out:
    st = sv_conn_end(c, st, err);
    if (st) {
        sv_model_row_clear(&row);
        return st;
    }
    if (existing)
        *existing = found;
    *out = row;
    return QD_OK;
}

qd_status sv_models_get(sv_store *s, const char *id_or_name, sv_model_row *out, qd_err *err)
{
    sv_conn *c;
    sv_model_row row = { 0 };
    bool found = false;
    qd_status st = sv_conn_read_many(s, &c, err);

    if (st)
        return st;
    st = model_one(c, "SELECT " MODEL_COLUMNS " FROM models WHERE id = ?1", SV_ARGS(SV_TEXT(id_or_name)), &row, &found,
                   err);
    if (!st && !found && id_or_name[0])
        st = model_one(c, "SELECT " MODEL_COLUMNS " FROM models WHERE name = ?1 ORDER BY n DESC LIMIT 1",
                       SV_ARGS(SV_TEXT(id_or_name)), &row, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no model '%s'", id_or_name);
    st = sv_conn_end(c, st, err);
    if (st)
        sv_model_row_clear(&row);
    else
        *out = row;
    return st;
}

qd_status sv_models_delete(sv_store *s, const char *id, bool *last_of_blob, qd_err *err)
{
    sv_conn *c;
    sv_model_row row = { 0 };
    bool found = false;
    int64_t users = 0, others = 0;
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = model_one(c, "SELECT " MODEL_COLUMNS " FROM models WHERE id = ?1", SV_ARGS(SV_TEXT(id)), &row, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no model '%s'", id);
    if (st)
        goto out;
    st = sv_get_int(c, "SELECT count(*) FROM jobs WHERE model_id = ?1 AND status NOT IN " SV_FINAL,
                    SV_ARGS(SV_TEXT(id)), &users, NULL, err);
    if (!st && users)
        st = qd_fail(err, QD_E_CONFLICT, "model '%s' is used by %lld unfinished job%s: cancel or wait", id,
                     (long long)users, users == 1 ? "" : "s");
    if (st)
        goto out;
    st = sv_exec(c, "INSERT INTO tombstones (id, n, deleted_ms) SELECT id, n, ?2 FROM models WHERE id = ?1",
                 SV_ARGS(SV_TEXT(id), SV_INT(sv_now_ms())), NULL, err);
    if (!st)
        st = sv_exec(c, "DELETE FROM models WHERE id = ?1", SV_ARGS(SV_TEXT(id)), NULL, err);
    if (!st)
        st = sv_get_int(c, "SELECT count(*) FROM models WHERE sha256 = ?1", SV_ARGS(SV_TEXT(row.sha256)), &others, NULL,
                        err);
out:
    st = sv_conn_end(c, st, err);
    sv_model_row_clear(&row);
    if (!st && last_of_blob)
        *last_of_blob = others == 0;
    return st;
}

qd_status sv_models_list(sv_store *s, const sv_list_query *query, sv_model_row **rows, int *n, bool *more, qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    void *list = NULL;
    int count = 0, capacity = 0;
    int64_t from = query->ascending ? 0 : INT64_MAX;
    bool row = true;
    qd_status st;

    if (query->limit < 1 || query->limit > 1000)
        return qd_fail(err, QD_E_INVALID, "limit must be 1..1000, got %d", query->limit);
    st = sv_conn_read_many(s, &c, err);
    if (st)
        return st;
    if (query->after && query->after[0])
        st = sv_cursor(c, "SELECT n FROM models WHERE id = ?1", query->after, &from, err);
    if (!st)
        st = sv_query(c,
                      query->ascending
                          ? "SELECT " MODEL_COLUMNS " FROM models WHERE n > ?1 AND (?2 IS NULL OR job_id = ?2)"
                            " ORDER BY n LIMIT ?3"
                          : "SELECT " MODEL_COLUMNS " FROM models WHERE n < ?1 AND (?2 IS NULL OR job_id = ?2)"
                            " ORDER BY n DESC LIMIT ?3",
                      SV_ARGS(SV_INT(from), SV_MAYBE(query->job_id), SV_INT(query->limit + 1)), &q, err);
    while (!st) {
        st = sv_step(c, q, &row, err);
        if (st || !row || count == query->limit)
            break;
        sv_model_row *m = sv_rows_grow(&list, count, &capacity, sizeof(*m));
        st = m ? model_read(q, m, err) : qd_fail(err, QD_E_NOMEM, "out of memory while listing models");
        if (!st)
            count++;
    }
    st = sv_conn_end(c, st, err);
    if (st) {
        sv_model_rows_free(list, count);
        return st;
    }
    *rows = list;
    *n = count;
    if (more)
        *more = row;
    return QD_OK;
}

bool sv_models_pruned(sv_store *s, const char *id)
{
    return sv_jobs_pruned(s, id); /* ids carry their kind in front, so one table of tombstones serves both */
}
