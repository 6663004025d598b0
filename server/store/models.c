/* models.c - the rows of registered models and data sets: two tables of one shape. */
#include <string.h>

#include "base/mem.h"
#include "store/store_int.h"

#define COLUMNS "id, name, sha256, path, format, role, summary, job_id, size_bytes, created_ms"

/* One table of files, with its statements: each must be a literal, by which a connection knows what it has prepared. */
typedef struct shelf {
    const char *noun, *prefix;
    const char *by_blob, *by_id, *by_name, *insert, *users, *bury, *drop, *same_bytes, *cursor, *rising, *falling;
} shelf;
#define SHELF(table_, noun_, prefix_, job_column_)                                                                     \
    {                                                                                                                  \
        .noun = noun_, .prefix = prefix_,                                                                              \
        .by_blob = "SELECT " COLUMNS " FROM " table_ " WHERE sha256 = ?1 AND name = ?2",                               \
        .by_id = "SELECT " COLUMNS " FROM " table_ " WHERE id = ?1",                                                   \
        .by_name = "SELECT " COLUMNS " FROM " table_ " WHERE name = ?1 ORDER BY n DESC LIMIT 1",                       \
        .insert = "INSERT INTO " table_ " (" COLUMNS ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",             \
        .users = "SELECT count(*) FROM jobs WHERE " job_column_ " = ?1 AND status NOT IN " SV_FINAL,                   \
        .bury = "INSERT INTO tombstones (id, n, deleted_ms) SELECT id, n, ?2 FROM " table_ " WHERE id = ?1",           \
        .drop = "DELETE FROM " table_ " WHERE id = ?1",                                                                \
        .same_bytes = "SELECT count(*) FROM " table_ " WHERE sha256 = ?1",                                             \
        .cursor = "SELECT n FROM " table_ " WHERE id = ?1",                                                            \
        .rising =                                                                                                      \
            "SELECT " COLUMNS " FROM " table_ " WHERE n > ?1 AND (?2 IS NULL OR job_id = ?2) ORDER BY n LIMIT ?3",     \
        .falling = "SELECT " COLUMNS " FROM " table_                                                                   \
                   " WHERE n < ?1 AND (?2 IS NULL OR job_id = ?2) ORDER BY n DESC LIMIT ?3",                           \
    }
static const shelf models = SHELF("models", "model", "mdl_", "model_id");
static const shelf datasets = SHELF("datasets", "data set", "dst_", "dataset_id");
static const shelf *const shelves[] = { &models, &datasets };

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
        return qd_fail(err, QD_E_NOMEM, "out of memory while reading the row of a file");
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

static qd_status shelf_add(sv_store *s, const shelf *f, const sv_model_row *m, sv_model_row *out, bool *existing,
                           qd_err *err)
{
    sv_conn *c;
    char made[40];
    const char *id = m->id;
    sv_model_row row = { 0 };
    bool found = false, inserted;
    const int64_t now = m->created_ms ? m->created_ms : sv_now_ms();
    qd_status st;

    if (!id || !id[0]) {
        sv_id_new(made, f->prefix);
        id = made;
    }
    st = sv_conn_write(s, &c, err);
    if (st)
        return st;
    st = model_one(c, f->by_blob, SV_ARGS(SV_TEXT(m->sha256), SV_TEXT(m->name)), &row, &found, err);
    if (st || found)
        goto out;
    st = sv_exec(c, f->insert,
                 SV_ARGS(SV_TEXT(id), SV_TEXT(m->name), SV_TEXT(m->sha256), SV_TEXT(m->path), SV_TEXT(m->format),
                         SV_TEXT(m->role), SV_TEXT(m->summary && m->summary[0] ? m->summary : "{}"), SV_TEXT(m->job_id),
                         SV_INT(m->size_bytes), SV_INT(now)),
                 NULL, err);
    if (!st)
        st = model_one(c, f->by_id, SV_ARGS(SV_TEXT(id)), &row, &inserted, err);
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

static qd_status shelf_get(sv_store *s, const shelf *f, const char *id_or_name, sv_model_row *out, qd_err *err)
{
    sv_conn *c;
    sv_model_row row = { 0 };
    bool found = false;
    qd_status st = sv_conn_read_many(s, &c, err);

    if (st)
        return st;
    st = model_one(c, f->by_id, SV_ARGS(SV_TEXT(id_or_name)), &row, &found, err);
    if (!st && !found && id_or_name[0])
        st = model_one(c, f->by_name, SV_ARGS(SV_TEXT(id_or_name)), &row, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no %s '%s'", f->noun, id_or_name);
    st = sv_conn_end(c, st, err);
    if (st)
        sv_model_row_clear(&row);
    else
        *out = row;
    return st;
}

static qd_status shelf_delete(sv_store *s, const shelf *f, const char *id, bool *last, bool *last_of_blob, qd_err *err)
{
    sv_conn *c;
    sv_model_row row = { 0 };
    bool found = false;
    int64_t users = 0, mine = 0, all = 0;
    qd_status st = sv_conn_write(s, &c, err);

    if (st)
        return st;
    st = model_one(c, f->by_id, SV_ARGS(SV_TEXT(id)), &row, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no %s '%s'", f->noun, id);
    if (st)
        goto out;
    st = sv_get_int(c, f->users, SV_ARGS(SV_TEXT(id)), &users, NULL, err);
    if (!st && users)
        st = qd_fail(err, QD_E_CONFLICT, "%s '%s' is used by %lld unfinished job%s: cancel or wait", f->noun, id,
                     (long long)users, users == 1 ? "" : "s");
    if (st)
        goto out;
    st = sv_exec(c, f->bury, SV_ARGS(SV_TEXT(id), SV_INT(sv_now_ms())), NULL, err);
    if (!st)
        st = sv_exec(c, f->drop, SV_ARGS(SV_TEXT(id)), NULL, err);
    for (size_t k = 0; k < sizeof shelves / sizeof shelves[0] && !st; k++) {
        int64_t n = 0;
        st = sv_get_int(c, shelves[k]->same_bytes, SV_ARGS(SV_TEXT(row.sha256)), &n, NULL, err);
        all += n;
        mine += shelves[k] == f ? n : 0;
    }
out:
    st = sv_conn_end(c, st, err);
    sv_model_row_clear(&row);
    if (!st && last)
        *last = mine == 0;
    if (!st && last_of_blob)
        *last_of_blob = all == 0;
    return st;
}

static qd_status shelf_list(sv_store *s, const shelf *f, const sv_list_query *query, sv_model_row **rows, int *n,
                            bool *more, qd_err *err)
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
        st = sv_cursor(c, f->cursor, query->after, &from, err);
    if (!st)
        st = sv_query(c, query->ascending ? f->rising : f->falling,
                      SV_ARGS(SV_INT(from), SV_MAYBE(query->job_id), SV_INT(query->limit + 1)), &q, err);
    while (!st) {
        st = sv_step(c, q, &row, err);
        if (st || !row || count == query->limit)
            break;
        sv_model_row *m = sv_rows_grow(&list, count, &capacity, sizeof(*m));
        st = m ? model_read(q, m, err) : qd_fail(err, QD_E_NOMEM, "out of memory while listing rows");
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

/* --- the two faces --- */

qd_status sv_models_add(sv_store *s, const sv_model_row *m, sv_model_row *out, bool *existing, qd_err *err)
{
    return shelf_add(s, &models, m, out, existing, err);
}

qd_status sv_models_get(sv_store *s, const char *id_or_name, sv_model_row *out, qd_err *err)
{
    return shelf_get(s, &models, id_or_name, out, err);
}

qd_status sv_models_delete(sv_store *s, const char *id, bool *last, bool *last_of_blob, qd_err *err)
{
    return shelf_delete(s, &models, id, last, last_of_blob, err);
}

qd_status sv_models_list(sv_store *s, const sv_list_query *query, sv_model_row **rows, int *n, bool *more, qd_err *err)
{
    return shelf_list(s, &models, query, rows, n, more, err);
}

bool sv_models_pruned(sv_store *s, const char *id)
{
    return sv_jobs_pruned(s, id); /* ids carry their kind in front, so one table of tombstones serves all */
}

qd_status sv_datasets_add(sv_store *s, const sv_dataset_row *d, sv_dataset_row *out, bool *existing, qd_err *err)
{
    return shelf_add(s, &datasets, d, out, existing, err);
}

qd_status sv_datasets_get(sv_store *s, const char *id_or_name, sv_dataset_row *out, qd_err *err)
{
    return shelf_get(s, &datasets, id_or_name, out, err);
}

qd_status sv_datasets_delete(sv_store *s, const char *id, bool *last, bool *last_of_blob, qd_err *err)
{
    return shelf_delete(s, &datasets, id, last, last_of_blob, err);
}

qd_status sv_datasets_list(sv_store *s, const sv_list_query *query, sv_dataset_row **rows, int *n, bool *more,
                           qd_err *err)
{
    return shelf_list(s, &datasets, query, rows, n, more, err);
}

bool sv_datasets_pruned(sv_store *s, const char *id)
{
    return sv_jobs_pruned(s, id);
}
