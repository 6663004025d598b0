/* store.c - opening the database, one connection for each thread, transactions and statements. */
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "store/store_int.h"

#define BUSY_TIMEOUT_MS 10000 /* how long we wait for another process; threads of this one queue on a mutex */
#define STATEMENTS_MAX 96     /* more than there are SQL literals in this room */

typedef struct prepared {
    const char *sql; /* the literal itself: compared by address */
    sqlite3_stmt *stmt;
} prepared;

struct sv_conn {
    sv_store *store;
    sqlite3 *db;
    enum { IDLE, READING, READ_TRANSACTION, WRITE_TRANSACTION } state;
    prepared statements[STATEMENTS_MAX];
    int n_statements;
    sv_conn *next; /* all connections of the store */
};

struct sv_store {
    char *path;
    pthread_key_t key; /* this thread's sv_conn */
    pthread_mutex_t list_lock;
    sv_conn *conns;
    pthread_mutex_t
        write_lock; /* writers of this process take turns here, which is fair, unlike SQLite's sleeping and retrying */
    pthread_mutex_t watch_lock;
    void (*watch)(void *ctx, const sv_event_row *event);
    void *watch_ctx;
};

/* --- words for SQLite's codes --- */

static qd_status sql_fail(sv_conn *c, int rc, const char *doing, qd_err *err)
{
    const char *path = c->store->path;

    switch (rc & 0xff) {
    case SQLITE_NOMEM:
        return qd_fail(err, QD_E_NOMEM, "out of memory while %s", doing);
    case SQLITE_FULL:
        return qd_fail(err, QD_E_LIMIT, "disk full while %s in %s", doing, path);
    case SQLITE_TOOBIG:
        return qd_fail(err, QD_E_LIMIT, "a value is too large for the database while %s", doing);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return qd_fail(err, QD_E_IO, "database %s was held by another process for %d ms while %s", path,
                       BUSY_TIMEOUT_MS, doing);
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return qd_fail(err, QD_E_FORMAT, "database %s is damaged or not a database: %s", path, sqlite3_errmsg(c->db));
    case SQLITE_CONSTRAINT:
        return qd_fail(err, QD_E_INVALID, "database refuses the value while %s: %s", doing, sqlite3_errmsg(c->db));
    case SQLITE_CANTOPEN:
    case SQLITE_IOERR:
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_PROTOCOL: {
        const int os = sqlite3_system_errno(c->db);
        return qd_fail(err, QD_E_IO, "database %s: %s%s%s while %s", path, sqlite3_errmsg(c->db), os ? ": " : "",
                       os ? strerror(os) : "", doing);
    }
    default:
        return qd_fail(err, QD_E_INTERNAL, "database %s: %s (code %d) while %s", path, sqlite3_errmsg(c->db), rc,
                       doing);
    }
}

/* --- connections --- */

static void conn_close(sv_conn *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_statements; i++)
        sqlite3_finalize(c->statements[i].stmt);
    sqlite3_close(c->db);
    qd_free(c);
}

/* A thread ends: its connection goes with it. */
static void conn_thread_end(void *p)
{
    sv_conn *c = p;
    sv_store *s = c->store;

    pthread_mutex_lock(&s->list_lock);
    for (sv_conn **at = &s->conns; *at; at = &(*at)->next) {
        if (*at == c) {
            *at = c->next;
            break;
        }
    }
    pthread_mutex_unlock(&s->list_lock);
    conn_close(c);
}

qd_status sv_script(sv_conn *c, const char *sql, const char *doing, qd_err *err)
{
    const int rc = sqlite3_exec(c->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? QD_OK : sql_fail(c, rc, doing, err);
}

/* What the database must answer to a one-value pragma, e.g. journal_mode=WAL. */
static qd_status conn_demand(sv_conn *c, const char *sql, const char *want, qd_err *err)
{
    sqlite3_stmt *q = NULL;
    qd_status st = QD_OK;
    int rc = sqlite3_prepare_v2(c->db, sql, -1, &q, NULL);

    if (rc == SQLITE_OK)
        rc = sqlite3_step(q);
    if (rc != SQLITE_ROW)
        st = sql_fail(c, rc, sql, err);
    else if (strcmp((const char *)sqlite3_column_text(q, 0), want) != 0)
        st = qd_fail(err, QD_E_IO, "database %s: %s gave '%s'; is it on a network file system?", c->store->path, sql,
                     (const char *)sqlite3_column_text(q, 0));
    sqlite3_finalize(q);
    return st;
}

static qd_status conn_open(sv_store *s, sv_conn **out, qd_err *err)
{
    sv_conn *c = qd_calloc(1, sizeof(*c));
    qd_status st = QD_OK;
    int rc;

    if (!c)
        return qd_fail(err, QD_E_NOMEM, "out of memory while opening the database");
    c->store = s;
    rc = sqlite3_open_v2(s->path, &c->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        st = c->db ? sql_fail(c, rc, "opening it", err)
                   : qd_fail(err, QD_E_NOMEM, "out of memory while opening the database");
        goto out;
    }
    sqlite3_extended_result_codes(c->db, 1);
    sqlite3_busy_timeout(c->db, BUSY_TIMEOUT_MS);
    sqlite3_db_config(c->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    st = conn_demand(c, "PRAGMA journal_mode = WAL", "wal", err);
    if (st)
        goto out;
    /* FULL: a commit is on disk before it is acknowledged, so an accepted job survives even a power cut. */
    st = sv_script(c,
                   "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
                   "PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY",
                   "setting it up", err);
    if (st)
        goto out;
    *out = c;
    c = NULL;
out:
    conn_close(c);
    return st;
}

/* This thread's connection, opened on first use. */
static qd_status conn_mine(sv_store *s, sv_conn **out, qd_err *err)
{
    sv_conn *c = pthread_getspecific(s->key);
    qd_status st;

    if (c) {
        *out = c;
        return QD_OK;
    }
    st = conn_open(s, &c, err);
    if (st)
        return st;
    if (pthread_setspecific(s->key, c) != 0) {
        conn_close(c);
        return qd_fail(err, QD_E_NOMEM, "out of memory while opening the database");
    }
    pthread_mutex_lock(&s->list_lock);
    c->next = s->conns;
    s->conns = c;
    pthread_mutex_unlock(&s->list_lock);
    *out = c;
    return QD_OK;
}

/* --- transactions --- */

static qd_status conn_begin(sv_store *s, int state, const char *sql, sv_conn **out, qd_err *err)
{
    sv_conn *c = NULL;
    sqlite3_stmt *q;
    bool row;
    qd_status st = conn_mine(s, &c, err);

    if (st)
        return st;
    /* A unit of work inside another would end the outer one's transaction. */
    if (c->state != IDLE)
        return qd_fail(err, QD_E_INTERNAL, "a database transaction was begun inside another on the same thread");
    if (state == WRITE_TRANSACTION)
        pthread_mutex_lock(&s->write_lock);
    if (sql) {
        st = sv_query(c, sql, SV_NO_ARGS, &q, err);
        if (!st)
            st = sv_step(c, q, &row, err);
    }
    if (st) {
        if (state == WRITE_TRANSACTION)
            pthread_mutex_unlock(&s->write_lock);
        return st;
    }
    c->state = state;
    *out = c;
    return QD_OK;
}

qd_status sv_conn_read(sv_store *s, sv_conn **out, qd_err *err)
{
    return conn_begin(s, READING, NULL, out, err);
}

qd_status sv_conn_read_many(sv_store *s, sv_conn **out, qd_err *err)
{
    return conn_begin(s, READ_TRANSACTION, "BEGIN", out, err);
}

qd_status sv_conn_write(sv_store *s, sv_conn **out, qd_err *err)
{
    return conn_begin(s, WRITE_TRANSACTION, "BEGIN IMMEDIATE", out, err);
}

qd_status sv_conn_end(sv_conn *c, qd_status st, qd_err *err)
{
    /* An unfinished SELECT would keep its snapshot, and with it the write-ahead log, alive. */
    for (int i = 0; i < c->n_statements; i++) {
        sqlite3_reset(c->statements[i].stmt);
        sqlite3_clear_bindings(c->statements[i].stmt);
    }
    if (c->state != READING) {
        if (!st)
            st = sv_exec(c, "COMMIT", SV_NO_ARGS, NULL, err);
        /* Some failures, a full disk among them, roll back by themselves. */
        if (st && !sqlite3_get_autocommit(c->db))
            sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    }
    if (c->state == WRITE_TRANSACTION)
        pthread_mutex_unlock(&c->store->write_lock);
    c->state = IDLE;
    return st;
}

/* --- statements --- */

qd_status sv_query(sv_conn *c, const char *sql, const sv_arg *args, sqlite3_stmt **out, qd_err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = SQLITE_OK;

    for (int i = 0; i < c->n_statements && !q; i++)
        if (c->statements[i].sql == sql)
            q = c->statements[i].stmt;
    if (!q) {
        if (c->n_statements == STATEMENTS_MAX)
            return qd_fail(err, QD_E_INTERNAL, "more than %d SQL statements are kept prepared", STATEMENTS_MAX);
        rc = sqlite3_prepare_v3(c->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &q, NULL);
        if (rc != SQLITE_OK)
            return sql_fail(c, rc, "preparing a statement", err);
        c->statements[c->n_statements++] = (prepared){ .sql = sql, .stmt = q };
    }
    sqlite3_reset(q);
    for (int i = 0; args[i].type && rc == SQLITE_OK; i++) {
        const sv_arg *a = &args[i];
        switch (a->type) {
        case 'i':
            rc = sqlite3_bind_int64(q, i + 1, a->integer);
            break;
        case 'd':
            rc = isnan(a->real) ? sqlite3_bind_null(q, i + 1) : sqlite3_bind_double(q, i + 1, a->real);
            break;
        case 'n':
            rc = sqlite3_bind_text(q, i + 1, a->text, -1, SQLITE_STATIC); /* NULL binds NULL */
            break;
        default:
            rc = sqlite3_bind_text(q, i + 1, a->text ? a->text : "", -1, SQLITE_STATIC);
            break;
        }
    }
    if (rc != SQLITE_OK)
        return sql_fail(c, rc, "binding a value", err);
    *out = q;
    return QD_OK;
}

qd_status sv_step(sv_conn *c, sqlite3_stmt *q, bool *row, qd_err *err)
{
    const int rc = sqlite3_step(q);

    *row = rc == SQLITE_ROW;
    if (rc == SQLITE_ROW)
        return QD_OK;
    if (rc == SQLITE_DONE) {
        sqlite3_reset(q);
        return QD_OK;
    }
    /* The words belong to the failed step: take them before reset. */
    const qd_status st = sql_fail(c, rc, sqlite3_stmt_readonly(q) ? "reading" : "writing", err);
    sqlite3_reset(q);
    return st;
}

qd_status sv_exec(sv_conn *c, const char *sql, const sv_arg *args, int64_t *changed, qd_err *err)
{
    sqlite3_stmt *q;
    bool row = true;
    qd_status st = sv_query(c, sql, args, &q, err);

    while (!st && row)
        st = sv_step(c, q, &row, err);
    if (!st && changed)
        *changed = sqlite3_changes64(c->db);
    return st;
}

qd_status sv_get_int(sv_conn *c, const char *sql, const sv_arg *args, int64_t *value, bool *found, qd_err *err)
{
    sqlite3_stmt *q;
    bool row = false;
    qd_status st = sv_query(c, sql, args, &q, err);

    if (!st)
        st = sv_step(c, q, &row, err);
    if (st)
        return st;
    if (row)
        *value = sqlite3_column_int64(q, 0);
    if (found)
        *found = row;
    sqlite3_reset(q);
    return QD_OK;
}

char *sv_column_text(sqlite3_stmt *q, int column, bool *nomem)
{
    const char *text = (const char *)sqlite3_column_text(q, column);
    char *copy = qd_strdup(text ? text : "");

    if (!copy)
        *nomem = true;
    return copy;
}

void *sv_rows_grow(void **rows, int n, int *capacity, size_t size)
{
    if (n == *capacity) {
        const int more = *capacity ? *capacity * 2 : 16;
        size_t bytes;
        void *grown;

        if (more < n || !qd_mul_size((size_t)more, size, &bytes))
            return NULL;
        grown = qd_realloc(*rows, bytes);
        if (!grown)
            return NULL;
        *rows = grown;
        *capacity = more;
    }
    void *row = (char *)*rows + (size_t)n * size;
    memset(row, 0, size);
    return row;
}

qd_status sv_cursor(sv_conn *c, const char *table_sql, const char *id, int64_t *n, qd_err *err)
{
    bool found;
    qd_status st = sv_get_int(c, table_sql, SV_ARGS(SV_TEXT(id)), n, &found, err);

    if (st || found)
        return st;
    st = sv_get_int(c, "SELECT n FROM tombstones WHERE id = ?1", SV_ARGS(SV_TEXT(id)), n, &found, err);
    if (!st && !found)
        st = qd_fail(err, QD_E_INVALID, "after: '%s' is not an id of this list", id);
    return st;
}

/* --- the store --- */

qd_status sv_store_open(const char *path, sv_store **out, qd_err *err)
{
    sv_store *s = qd_calloc(1, sizeof(*s));
    qd_status st;

    if (!s)
        return qd_fail(err, QD_E_NOMEM, "out of memory while opening the database");
    s->path = qd_strdup(path);
    if (!s->path || pthread_key_create(&s->key, conn_thread_end) != 0) {
        qd_free(s->path);
        qd_free(s);
        return qd_fail(err, QD_E_NOMEM, "out of memory while opening the database");
    }
    pthread_mutex_init(&s->list_lock, NULL);
    pthread_mutex_init(&s->write_lock, NULL);
    pthread_mutex_init(&s->watch_lock, NULL);
    st = sv_migrate(s, path, err);
    if (st)
        sv_store_close(s);
    else
        *out = s;
    return st;
}

void sv_store_close(sv_store *s)
{
    if (!s)
        return;
    pthread_key_delete(s->key); /* from here on no thread's end touches us */
    while (s->conns) {
        sv_conn *c = s->conns;
        s->conns = c->next;
        conn_close(c);
    }
    pthread_mutex_destroy(&s->list_lock);
    pthread_mutex_destroy(&s->write_lock);
    pthread_mutex_destroy(&s->watch_lock);
    qd_free(s->path);
    qd_free(s);
}

qd_status sv_store_check(sv_store *s, qd_err *err)
{
    sv_conn *c;
    sqlite3_stmt *q;
    bool row = false;
    qd_status st = sv_conn_read(s, &c, err);

    if (st)
        return st;
    st = sv_query(c, "PRAGMA integrity_check(1)", SV_NO_ARGS, &q, err);
    if (!st)
        st = sv_step(c, q, &row, err);
    if (!st && row && strcmp((const char *)sqlite3_column_text(q, 0), "ok") != 0)
        st = qd_fail(err, QD_E_FORMAT, "database %s is damaged: %s", s->path, (const char *)sqlite3_column_text(q, 0));
    if (!st) {
        sqlite3_reset(q);
        st = sv_query(c, "PRAGMA foreign_key_check", SV_NO_ARGS, &q, err);
    }
    if (!st)
        st = sv_step(c, q, &row, err);
    if (!st && row)
        st = qd_fail(err, QD_E_FORMAT, "database %s is damaged: table %s refers to a row that is not there", s->path,
                     (const char *)sqlite3_column_text(q, 0));
    return sv_conn_end(c, st, err);
}

void sv_store_watch(sv_store *s, void (*fn)(void *ctx, const sv_event_row *event), void *ctx)
{
    pthread_mutex_lock(&s->watch_lock);
    s->watch = fn;
    s->watch_ctx = ctx;
    pthread_mutex_unlock(&s->watch_lock);
}

void sv_watch_call(sv_store *s, const sv_event_row *event)
{
    pthread_mutex_lock(&s->watch_lock);
    if (s->watch)
        s->watch(s->watch_ctx, event);
    pthread_mutex_unlock(&s->watch_lock);
}
