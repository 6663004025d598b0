/* migrate.c - bring a database file to the schema this quantd knows: migrations/ in order, each in one transaction with its number. */
#include <stdio.h>

#include "store/store_int.h"

#define APPLICATION_ID 0x71646231 /* "qdb1": tells our file from any other SQLite database */

/* One migration in one transaction, with the version it leads to: killed in the middle, it starts again from the old one. */
static qd_status migrate_one(sv_conn *c, const sv_migration *m, qd_err *err)
{
    char version[64];
    qd_status st;

    snprintf(version, sizeof(version), "PRAGMA user_version = %d", m->number);
    st = sv_script(c, m->sql, "changing the schema", err);
    if (!st)
        st = sv_script(c, version, "changing the schema", err);
    if (st)
        qd_fail_in(err, st, "migration %s", m->name);
    return st;
}

static qd_status pragma_int(sv_conn *c, const char *sql, int64_t *value, qd_err *err)
{
    return sv_get_int(c, sql, SV_NO_ARGS, value, NULL, err);
}

qd_status sv_migrate(sv_store *s, const char *path, qd_err *err)
{
    sv_conn *c;
    int64_t have = 0, app = 0, tables = 0;
    int newest = 0;
    qd_status st =
        sv_conn_write(s, &c, err); /* two daemons starting at once: one waits here, then finds the work done */

    if (st)
        return st;
    for (const sv_migration *m = sv_migrations; m->number; m++)
        newest = m->number;
    st = pragma_int(c, "PRAGMA user_version", &have, err);
    if (!st)
        st = pragma_int(c, "PRAGMA application_id", &app, err);
    if (!st)
        st = pragma_int(c, "SELECT count(*) FROM sqlite_master", &tables, err);
    if (st)
        goto out;
    if (app != APPLICATION_ID && (have != 0 || tables != 0)) {
        st = qd_fail(err, QD_E_CONFLICT, "%s is a database of another program", path);
        goto out;
    }
    if (have > newest) {
        st = qd_fail(err, QD_E_CONFLICT,
                     "database %s has version %lld, this quantd knows %d: it was used by a newer quantd", path,
                     (long long)have, newest);
        goto out;
    }
    if (app != APPLICATION_ID) {
        char sql[64];
        snprintf(sql, sizeof(sql), "PRAGMA application_id = %d", APPLICATION_ID);
        st = sv_script(c, sql, "changing the schema", err);
    }
    for (const sv_migration *m = sv_migrations; m->number && !st; m++)
        if (m->number > have)
            st = migrate_one(c, m, err);
out:
    return sv_conn_end(c, st, err);
}
