/* validate.c - a submitted body against the tables: what is accepted, and words and a pointer for what is not. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"

enum {
    METADATA_BYTES = 16 * 1024,
    POINTER_SIZE = 128,
    MAX_ATTEMPTS = 3,
    TIME_LIMIT_S = 4 * 3600,
    TIME_LIMIT_MAX_S = 7 * 24 * 3600,
    MAX_SETS = 8,
};

/* --- rows --- */

typedef struct joined {
    struct joined *next;
    const qd_param *sets[MAX_SETS];
    qd_param rows[];
} joined;

static pthread_mutex_t joined_lock = PTHREAD_MUTEX_INITIALIZER;
static joined *joined_head; /* a cache of const tables, no state: the same sets always give the same rows */

static bool known_before(const qd_param *const *sets, int s, const char *name)
{
    for (int k = 0; k < s; k++)
        if (qd_param_find(sets[k], name))
            return true;
    return false;
}

static joined *join(const qd_param *const *sets, int n_sets)
{
    size_t n = 0;
    for (int s = 0; s < n_sets; s++)
        for (const qd_param *row = sets[s]; row && row->name; row++)
            n++;
    joined *j = qd_calloc(1, sizeof *j + (n + 1) * sizeof j->rows[0]);
    if (!j)
        return NULL;
    n = 0;
    for (int s = 0; s < n_sets; s++) {
        j->sets[s] = sets[s];
        for (const qd_param *row = sets[s]; row && row->name; row++)
            if (!known_before(sets, s, row->name))
                j->rows[n++] = *row;
    }
    return j;
}

const qd_param *sv_rows_join(const qd_param *const *row_sets)
{
    const qd_param *sets[MAX_SETS] = { NULL };
    int n = 0;
    for (; row_sets[n]; n++) {
        if (n == MAX_SETS)
            return NULL;
        sets[n] = row_sets[n];
    }
    pthread_mutex_lock(&joined_lock);
    joined *j = joined_head;
    while (j && memcmp(j->sets, sets, sizeof sets) != 0)
        j = j->next;
    if (!j) {
        j = join(sets, n);
        if (j) {
            j->next = joined_head;
            joined_head = j;
        }
    }
    pthread_mutex_unlock(&joined_lock);
    return j ? j->rows : NULL;
}

/* --- params --- */

static qd_status set_value(qd_params *p, const char *name, const json_t *v, qd_err *err)
{
    switch (json_typeof(v)) {
    case JSON_INTEGER:
        return qd_params_set_int(p, name, json_integer_value(v), err);
    case JSON_REAL:
        return qd_params_set_number(p, name, json_real_value(v), err);
    case JSON_TRUE:
    case JSON_FALSE:
        return qd_params_set_bool(p, name, json_is_true(v), err);
    case JSON_STRING:
        return qd_params_set_string(p, name, json_string_value(v), err);
    default:
        return qd_fail(err, QD_E_INVALID, "params.%.60s must be one value, got %s", name,
                       json_is_array(v) ? "an array" : "an object");
    }
}

/* A JSON pointer below /params; names from outside are escaped as RFC 6901 says, and cut when they are absurdly long. */
static void point_param(char pointer[POINTER_SIZE], const char *name)
{
    size_t n = (size_t)snprintf(pointer, POINTER_SIZE, "/params/");
    for (; *name && n + 3 < POINTER_SIZE; name++) {
        if (*name == '~' || *name == '/') {
            pointer[n++] = '~';
            pointer[n++] = *name == '~' ? '0' : '1';
        } else {
            pointer[n++] = *name;
        }
    }
    pointer[n] = '\0';
}

qd_status sv_params_from_json(const json_t *object, const qd_param *const *row_sets, qd_params **out, char pointer[128],
                              qd_err *err)
{
    qd_params *p = NULL;
    const qd_param *rows = sv_rows_join(row_sets);
    const char *name;
    json_t *v;
    qd_status st;

    snprintf(pointer, POINTER_SIZE, "/params");
    if (!rows)
        return qd_fail(err, QD_E_NOMEM, "no memory for parameter rows");
    if (object && !json_is_object(object))
        return qd_fail(err, QD_E_INVALID, "params must be an object");
    st = qd_params_new(rows, &p, err);
    if (st)
        return st;
    json_object_foreach((json_t *)object, name, v)
    {
        if (json_is_null(v) && qd_param_find(rows, name))
            continue;
        point_param(pointer, name);
        /* A null under an unknown name must not pass: let the setter refuse the name. */
        st = json_is_null(v) ? qd_params_set_int(p, name, 0, err) : set_value(p, name, v, err);
        if (st)
            goto out;
    }
    for (const qd_param *row = rows; row->name; row++)
        if (!row->fallback && !qd_params_given(p, row->name))
            point_param(pointer, row->name);
    st = qd_params_check(p, err);
    if (st)
        goto out;

    *out = p;
    p = NULL;
    pointer[0] = '\0';
out:
    qd_params_free(p);
    return st;
}

json_t *sv_params_to_json(const qd_params *p)
{
    json_t *o = json_object();
    for (const qd_param *row = qd_params_rows(p); row->name; row++) {
        json_t *v = NULL;
        switch (row->type) {
        case QD_PARAM_INT:
            v = json_integer(qd_params_int(p, row->name));
            break;
        case QD_PARAM_NUMBER:
            v = sv_json_number(qd_params_number(p, row->name));
            break;
        case QD_PARAM_BOOL:
            v = json_boolean(qd_params_bool(p, row->name));
            break;
        case QD_PARAM_STRING:
        case QD_PARAM_CHOICE:
            v = json_string(qd_params_string(p, row->name));
            break;
        }
        json_object_set_new(o, row->name, v);
    }
    return o;
}

/* --- the fields around params --- */

static qd_status refuse(char pointer[POINTER_SIZE], const char *where, qd_err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static qd_status refuse(char pointer[POINTER_SIZE], const char *where, qd_err *err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    snprintf(pointer, POINTER_SIZE, "%s", where);
    const qd_status st = qd_failv(err, QD_E_INVALID, fmt, ap);
    va_end(ap);
    return st;
}

static const char *const body_fields[] = { "kind",   "model",        "dataset",  "params",   "priority",
                                           "run_at", "time_limit_s", "max_drop", "metadata", NULL };

static qd_status check_fields(const json_t *body, char pointer[POINTER_SIZE], qd_err *err)
{
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)body, name, v)
    {
        int k = 0;
        while (body_fields[k] && strcmp(body_fields[k], name) != 0)
            k++;
        if (!body_fields[k]) {
            char where[POINTER_SIZE];
            snprintf(where, sizeof where, "/%.100s", name);
            return refuse(pointer, where, err,
                          "'%.60s' is not a field of a job; known: kind, model, dataset, params, priority, run_at, "
                          "time_limit_s, max_drop, metadata",
                          name);
        }
    }
    return QD_OK;
}

/* An optional whole number within bounds. */
static qd_status read_int(const json_t *body, const char *name, int64_t min, int64_t max, int64_t *out,
                          char pointer[POINTER_SIZE], qd_err *err)
{
    const json_t *v = json_object_get(body, name);
    char where[POINTER_SIZE];
    if (!v || json_is_null(v))
        return QD_OK;
    snprintf(where, sizeof where, "/%s", name);
    if (!json_is_integer(v))
        return refuse(pointer, where, err, "%s must be a whole number", name);
    if (json_integer_value(v) < min || json_integer_value(v) > max)
        return refuse(pointer, where, err, "%s must be %lld..%lld, got %lld", name, (long long)min, (long long)max,
                      (long long)json_integer_value(v));
    *out = json_integer_value(v);
    return QD_OK;
}

static bool digits(const char *s, int n, int *out)
{
    *out = 0;
    for (int k = 0; k < n; k++) {
        if (s[k] < '0' || s[k] > '9')
            return false;
        *out = *out * 10 + (s[k] - '0');
    }
    return true;
}

/* RFC 3339: 2026-03-01T12:00:00[.fff](Z|+hh:mm). */
static bool read_time(const char *s, int64_t *ms)
{
    struct tm tm = { 0 };
    int frac_ms = 0, oh = 0, om = 0;
    if (strlen(s) < 20 || !digits(s, 4, &tm.tm_year) || s[4] != '-' || !digits(s + 5, 2, &tm.tm_mon) || s[7] != '-' ||
        !digits(s + 8, 2, &tm.tm_mday) || (s[10] != 'T' && s[10] != 't') || !digits(s + 11, 2, &tm.tm_hour) ||
        s[13] != ':' || !digits(s + 14, 2, &tm.tm_min) || s[16] != ':' || !digits(s + 17, 2, &tm.tm_sec))
        return false;
    if (tm.tm_mon < 1 || tm.tm_mon > 12 || tm.tm_mday < 1 || tm.tm_mday > 31 || tm.tm_hour > 23 || tm.tm_min > 59 ||
        tm.tm_sec > 60)
        return false;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    const int mday = tm.tm_mday;
    s += 19;
    if (*s == '.') {
        int scale = 100;
        for (s++; *s >= '0' && *s <= '9'; s++, scale /= 10)
            frac_ms += (*s - '0') * scale;
    }
    int sign = 0;
    if (*s == '+' || *s == '-') {
        sign = *s == '+' ? 1 : -1;
        if (strlen(s) != 6 || !digits(s + 1, 2, &oh) || s[3] != ':' || !digits(s + 4, 2, &om) || oh > 23 || om > 59)
            return false;
    } else if ((*s != 'Z' && *s != 'z') || s[1]) {
        return false;
    }
    const int64_t t = timegm(&tm);
    if (tm.tm_mday != mday) /* the 31st of a short month was carried over */
        return false;
    *ms = (t - sign * (oh * 3600 + om * 60)) * 1000 + frac_ms;
    return true;
}

static qd_status read_run_at(const json_t *body, int64_t now, sv_job_row *j, char pointer[POINTER_SIZE], qd_err *err)
{
    const json_t *v = json_object_get(body, "run_at");
    if (!v || json_is_null(v))
        return QD_OK;
    if (!json_is_string(v) || !read_time(json_string_value(v), &j->run_at_ms))
        return refuse(pointer, "/run_at", err, "run_at must be an RFC 3339 time such as 2026-03-01T12:00:00Z");
    if (j->run_at_ms > now + 366ll * 24 * 3600 * 1000)
        return refuse(pointer, "/run_at", err, "run_at '%.40s' is more than a year away", json_string_value(v));
    return QD_OK;
}

/* max_drop {"metric", "value"}. In dB: the figure of the result measured against the float model must not fall below value; the float
 * model's own figure is infinite, so the allowed drop is named by where it ends. Else: at most so many points of 100 are lost. */
static qd_status check_drop(const sv_kind *k, const sv_method *m, const json_t *body, char pointer[POINTER_SIZE],
                            qd_err *err)
{
    const char *const *metrics = m->drop_metrics ? m->drop_metrics : k->drop_metrics;
    const json_t *drop = json_object_get(body, "max_drop");
    if (!drop || json_is_null(drop))
        return QD_OK;
    if (!metrics)
        return refuse(pointer, "/max_drop", err, "kind '%s' takes no max_drop", k->name);
    const char *metric = json_string_value(json_object_get(drop, "metric"));
    const json_t *value = json_object_get(drop, "value");
    int at = 0;
    while (metric && metrics[at] && strcmp(metrics[at], metric) != 0)
        at++;
    if (!metric || !metrics[at]) {
        char known[128] = "";
        for (int i = 0; metrics[i]; i++)
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", metrics[i]);
        return refuse(pointer, "/max_drop/metric", err, "max_drop.metric must be one of %s", known);
    }
    if (!json_is_number(value) || fabs(json_number_value(value)) > 1000)
        return strstr(metric, "_db")
                   ? refuse(pointer, "/max_drop/value", err,
                            "max_drop.value must be a number of dB, the lowest %s accepted", metric)
                   : refuse(pointer, "/max_drop/value", err,
                            "max_drop.value must be a number of points of 100, the largest loss of %s accepted",
                            metric);
    if (json_object_size(drop) != 2)
        return refuse(pointer, "/max_drop", err, "max_drop has the fields metric and value, nothing else");
    return QD_OK;
}

static qd_status check_metadata(const json_t *body, char pointer[POINTER_SIZE], qd_err *err)
{
    const json_t *m = json_object_get(body, "metadata");
    if (!m || json_is_null(m))
        return QD_OK;
    if (!json_is_object(m))
        return refuse(pointer, "/metadata", err, "metadata must be an object");
    const size_t size = json_dumpb(m, NULL, 0, JSON_COMPACT);
    if (size > METADATA_BYTES)
        return refuse(pointer, "/metadata", err, "metadata has %zu bytes, the limit is %d", size, METADATA_BYTES);
    return QD_OK;
}

/* The model must exist, play a role the kind takes, and be float or quantized as the kind wants. */
static qd_status check_model(sv_store *store, const sv_kind *k, const sv_method *m, const json_t *body, char **id,
                             char pointer[POINTER_SIZE], qd_err *err)
{
    sv_model_row row = { 0 };
    json_t *summary = NULL;
    const json_t *v = json_object_get(body, "model");
    qd_status st;

    if (!json_is_string(v))
        return refuse(pointer, "/model", err, "model must be the id or name of a model; kind '%s' needs one", k->name);
    st = sv_models_get(store, json_string_value(v), &row, err);
    if (st == QD_E_NOT_FOUND)
        return refuse(pointer, "/model", err, "model '%.80s' does not exist", json_string_value(v));
    if (st)
        return st;

    int at = 0;
    while (k->roles[at] && strcmp(k->roles[at], row.role) != 0)
        at++;
    if (!k->roles[at]) {
        st = refuse(pointer, "/model", err, "model '%.80s' is a %s; kind '%s' takes a %s", json_string_value(v),
                    row.role, k->name, k->roles[0]);
        goto out;
    }
    if (m->role && strcmp(m->role, row.role) != 0) {
        st = refuse(pointer, "/params/method", err, "model '%.80s' is a %s; method '%s' takes a %s",
                    json_string_value(v), row.role, m->name, m->role);
        goto out;
    }
    summary = sv_json_read(row.summary);
    const bool quantized = json_is_true(json_object_get(summary, "quantized"));
    if (quantized ? !k->takes_bundle : !k->takes_float) {
        st = refuse(pointer, "/model", err, "model '%.80s' is %s; kind '%s' takes %s models", json_string_value(v),
                    quantized ? "quantized already" : "not quantized", k->name, quantized ? "float" : "quantized");
        goto out;
    }
    *id = row.id;
    row.id = NULL;
out:
    json_decref(summary);
    sv_model_row_clear(&row);
    return st;
}

/* A data set where the method needs one, and nowhere else. */
static qd_status check_dataset(sv_store *store, const sv_kind *k, const sv_method *m, const json_t *body, char **id,
                               char pointer[POINTER_SIZE], qd_err *err)
{
    sv_dataset_row row = { 0 };
    const json_t *v = json_object_get(body, "dataset");
    const bool given = v && !json_is_null(v);
    if (given && !m->needs_data)
        return refuse(pointer, "/dataset", err, "method '%s' of kind '%s' takes no dataset", m->name, k->name);
    if (!given && m->needs_data)
        return refuse(pointer, "/dataset", err, "method '%s' of kind '%s' needs a dataset: its id or name", m->name,
                      k->name);
    if (!given) {
        *id = qd_strdup("");
        return *id ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a job");
    }
    if (!json_is_string(v))
        return refuse(pointer, "/dataset", err, "dataset must be the id or name of a data set");
    const qd_status st = sv_datasets_get(store, json_string_value(v), &row, err);
    if (st == QD_E_NOT_FOUND)
        return refuse(pointer, "/dataset", err, "data set '%.80s' does not exist", json_string_value(v));
    if (st)
        return st;
    if (strcmp(row.role, SV_ROLE_STATISTICS) == 0 && !m->takes_statistics) {
        sv_model_row_clear(&row);
        return refuse(pointer, "/dataset", err, "data set '%.80s' holds statistics of features, not pictures",
                      json_string_value(v));
    }
    if (strcmp(row.role, SV_ROLE_CONTEXT) == 0) {
        sv_model_row_clear(&row);
        return refuse(pointer, "/dataset", err, "data set '%.80s' holds contexts, not pictures", json_string_value(v));
    }
    *id = row.id;
    row.id = NULL;
    sv_model_row_clear(&row);
    return QD_OK;
}

/* The params as given, without the method, with the preset's values under those not given. NULL when out of memory. */
static json_t *preset_params(const sv_kind *k, const sv_method *m, const json_t *params)
{
    json_t *o = params ? json_copy((json_t *)params) : json_object();
    json_object_del(o, "method");
    const char *chosen = json_string_value(json_object_get(o, "preset"));
    for (const sv_preset *p = chosen ? k->presets : NULL; p && p->preset; p++) {
        const qd_param *row = qd_param_find(m->params, p->param);
        const json_t *given = json_object_get(o, p->param);
        if (strcmp(p->preset, chosen) != 0 || !sv_preset_fits(p, m) || (given && !json_is_null(given)))
            continue;
        json_object_set_new(o, p->param,
                            row->type == QD_PARAM_INT      ? json_integer(strtoll(p->value, NULL, 10))
                            : row->type == QD_PARAM_NUMBER ? json_real(strtod(p->value, NULL))
                                                           : json_string(p->value));
    }
    return o;
}

/* The method of a job that names none: the kind's default, or else the first for models of this role. */
static const char *default_method(sv_store *store, const sv_kind *k, const json_t *body)
{
    sv_model_row row = { 0 };
    const char *name = k->default_method, *model = json_string_value(json_object_get(body, "model"));
    const sv_method *usual = sv_method_find(k, name);
    if (!model || !usual || !usual->role || sv_models_get(store, model, &row, NULL))
        return name; /* what is wrong with the model is told when it is checked */
    int n = 0;
    const sv_method *all = k->methods(&n);
    for (int i = 0; i < n && strcmp(usual->role, row.role) != 0; i++) {
        if (all[i].role && strcmp(all[i].role, row.role) == 0) {
            name = all[i].name;
            break;
        }
    }
    sv_model_row_clear(&row);
    return name;
}

static qd_status find_method(sv_store *store, const sv_kind *k, const json_t *body, const sv_method **m,
                             char pointer[POINTER_SIZE], qd_err *err)
{
    const json_t *params = json_object_get(body, "params");
    const json_t *v = json_object_get(params, "method");
    if (params && !json_is_object(params) && !json_is_null(params))
        return refuse(pointer, "/params", err, "params must be an object");
    if (v && !json_is_string(v) && !json_is_null(v))
        return refuse(pointer, "/params/method", err, "params.method must be text");
    const char *name = json_is_string(v) ? json_string_value(v) : default_method(store, k, body);
    *m = sv_method_find(k, name);
    if (*m)
        return QD_OK;
    char known[256] = "";
    int n = 0;
    const sv_method *all = k->methods(&n);
    for (int i = 0; i < n; i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", all[i].name);
    return refuse(pointer, "/params/method", err, "params.method must be one of %s, got '%.60s'", known, name);
}

static qd_status find_kind(const json_t *body, const sv_kind **k, char pointer[POINTER_SIZE], qd_err *err)
{
    const char *name = json_string_value(json_object_get(body, "kind"));
    char known[256] = "";
    *k = name ? sv_kind_find(name) : NULL;
    if (*k)
        return QD_OK;
    for (int i = 0; sv_kinds[i]; i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", sv_kinds[i]->name);
    return refuse(pointer, "/kind", err, "kind must be one of %s, got '%.60s'", known, name ? name : "nothing");
}

qd_status sv_job_parse(sv_store *store, const json_t *body, sv_job_row *out, char pointer[128], qd_err *err)
{
    sv_job_row j = { .max_attempts = MAX_ATTEMPTS, .time_limit_s = TIME_LIMIT_S, .created_ms = sv_now_ms() };
    const sv_kind *k;
    const sv_method *m;
    json_t *given = NULL, *filled = NULL;
    qd_params *params = NULL;
    int64_t priority = 0;
    char id[40];
    qd_status st;

    pointer[0] = '\0';
    if (!json_is_object(body))
        return refuse(pointer, "", err, "a job is a JSON object");
    if ((st = check_fields(body, pointer, err)) || (st = find_kind(body, &k, pointer, err)) ||
        (st = find_method(store, k, body, &m, pointer, err)) ||
        (st = read_int(body, "priority", -1000, 1000, &priority, pointer, err)) ||
        (st = read_int(body, "time_limit_s", 1, TIME_LIMIT_MAX_S, &j.time_limit_s, pointer, err)) ||
        (st = read_run_at(body, j.created_ms, &j, pointer, err)) || (st = check_drop(k, m, body, pointer, err)) ||
        (st = check_metadata(body, pointer, err)))
        return st;
    const json_t *raw = json_object_get(body, "params");
    given = preset_params(k, m, json_is_object(raw) ? raw : NULL);
    st = sv_params_from_json(given, (const qd_param *const[]){ m->params, k->params, NULL }, &params, pointer, err);
    if (st)
        goto out;
    if ((st = check_model(store, k, m, body, &j.model_id, pointer, err)) ||
        (st = check_dataset(store, k, m, body, &j.dataset_id, pointer, err)) ||
        (st = m->check ? m->check(store, j.model_id, params, pointer, err) : QD_OK))
        goto out;

    filled = sv_params_to_json(params);
    json_object_set_new(filled, "method", json_string(m->name));
    const json_t *metadata = json_object_get(body, "metadata");
    j.priority = (int)priority;
    sv_id_new(id, "job_");
    j.id = qd_strdup(id);
    j.kind = qd_strdup(k->name);
    j.method = qd_strdup(m->name);
    j.status = qd_strdup(j.run_at_ms > j.created_ms ? "scheduled" : "queued");
    j.body = sv_json_text(body);
    j.params = sv_json_text(filled);
    j.metadata = json_is_object(metadata) ? sv_json_text(metadata) : qd_strdup("{}");
    j.error = qd_strdup("");
    j.result = qd_strdup("");
    j.phase = qd_strdup("queued");
    j.item = qd_strdup("");
    if (!j.id || !j.kind || !j.method || !j.status || !j.body || !j.params || !j.metadata || !j.error || !j.result ||
        !j.phase || !j.item) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a job");
        goto out;
    }
    *out = j;
    memset(&j, 0, sizeof j);
    pointer[0] = '\0';
out:
    sv_job_row_clear(&j);
    json_decref(filled);
    json_decref(given);
    qd_params_free(params);
    return st;
}
