/* param.c - values for parameter rows: checked when set, complete when read. */
#include "base/param.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

struct value {
    qd_param_value v;
    bool filled, given;
};

struct qd_params {
    const qd_param *rows;
    int n;
    struct value value[];
};

static bool holds_text(const qd_param *row)
{
    return row->type == QD_PARAM_STRING || row->type == QD_PARAM_CHOICE;
}

const qd_param *qd_param_find(const qd_param *rows, const char *name)
{
    for (; rows && rows->name; rows++)
        if (strcmp(rows->name, name) == 0)
            return rows;
    return NULL;
}

/* "a, b, c" of the names of rows, or of a list of texts; cut with "..." when it grows past the room. */
static void list_text(char *text, size_t size, const qd_param *rows, const char *const *texts)
{
    size_t used = 0;
    text[0] = '\0';
    for (int k = 0; rows ? rows[k].name != NULL : texts[k] != NULL; k++) {
        const char *word = rows ? rows[k].name : texts[k];
        const size_t need = strlen(word) + 2;
        if (used + need + 4 > size) {
            memcpy(text + used, "...", 4);
            return;
        }
        used += (size_t)snprintf(text + used, size - used, "%s%s", k ? ", " : "", word);
    }
}

static qd_status find_row(qd_params *p, const char *name, const qd_param **row, struct value **value, qd_err *err)
{
    *row = qd_param_find(p->rows, name);
    if (!*row) {
        char known[300];
        list_text(known, sizeof known, p->rows, NULL);
        return qd_fail(err, QD_E_INVALID, "params.%.60s is not a parameter here; known: %s", name, known);
    }
    *value = &p->value[*row - p->rows];
    return QD_OK;
}

static const char *type_words(const qd_param *row)
{
    switch (row->type) {
    case QD_PARAM_INT:
        return "a whole number";
    case QD_PARAM_NUMBER:
        return "a number";
    case QD_PARAM_BOOL:
        return "true or false";
    case QD_PARAM_STRING:
        return "text";
    case QD_PARAM_CHOICE:
        return "one of its choices";
    }
    return "something else";
}

static qd_status fail_type(const qd_param *row, const char *got, qd_err *err)
{
    return qd_fail(err, QD_E_INVALID, "params.%s must be %s, got %.80s", row->name, type_words(row), got);
}

static qd_status check_bounds(const qd_param *row, double v, qd_err *err)
{
    const bool bounded = row->min != 0.0 || row->max != 0.0;
    if (!isfinite(v))
        return qd_fail(err, QD_E_INVALID, "params.%s must be finite, got %g", row->name, v);
    if (bounded && (v < row->min || v > row->max))
        return qd_fail(err, QD_E_INVALID, "params.%s must be %.15g..%.15g, got %.15g", row->name, row->min, row->max,
                       v);
    return QD_OK;
}

static bool is_choice(const qd_param *row, const char *text)
{
    for (const char *const *c = row->choices; *c; c++)
        if (strcmp(*c, text) == 0)
            return true;
    return false;
}

static qd_status fail_choice(const qd_param *row, const char *got, qd_err *err)
{
    char known[300];
    list_text(known, sizeof known, NULL, row->choices);
    return qd_fail(err, QD_E_INVALID, "params.%s must be one of %s, got %s%.80s%s", row->name, known,
                   row->type == QD_PARAM_CHOICE ? "'" : "", got, row->type == QD_PARAM_CHOICE ? "'" : "");
}

qd_status qd_params_set_int(qd_params *p, const char *name, int64_t v, qd_err *err)
{
    const qd_param *row = NULL;
    struct value *value = NULL;
    qd_status st = find_row(p, name, &row, &value, err);
    if (st)
        return st;

    char got[24];
    snprintf(got, sizeof got, "%" PRId64, v);
    if (row->type != QD_PARAM_INT && row->type != QD_PARAM_NUMBER)
        return fail_type(row, got, err);
    st = check_bounds(row, (double)v, err);
    if (st)
        return st;
    if (row->type == QD_PARAM_INT && row->choices && !is_choice(row, got))
        return fail_choice(row, got, err);

    if (row->type == QD_PARAM_INT)
        value->v.i = v;
    else
        value->v.d = (double)v;
    value->filled = value->given = true;
    return QD_OK;
}

qd_status qd_params_set_number(qd_params *p, const char *name, double v, qd_err *err)
{
    const qd_param *row = NULL;
    struct value *value = NULL;
    qd_status st = find_row(p, name, &row, &value, err);
    if (st)
        return st;

    if (row->type == QD_PARAM_INT && v == rint(v) && fabs(v) < 0x1p62)
        return qd_params_set_int(p, name, (int64_t)v, err);
    if (row->type != QD_PARAM_NUMBER) {
        char got[40];
        snprintf(got, sizeof got, "%.15g", v);
        return fail_type(row, got, err);
    }
    st = check_bounds(row, v, err);
    if (st)
        return st;
    value->v.d = v;
    value->filled = value->given = true;
    return QD_OK;
}

qd_status qd_params_set_bool(qd_params *p, const char *name, bool v, qd_err *err)
{
    const qd_param *row = NULL;
    struct value *value = NULL;
    qd_status st = find_row(p, name, &row, &value, err);
    if (st)
        return st;
    if (row->type != QD_PARAM_BOOL)
        return fail_type(row, v ? "true" : "false", err);
    value->v.b = v;
    value->filled = value->given = true;
    return QD_OK;
}

qd_status qd_params_set_string(qd_params *p, const char *name, const char *v, qd_err *err)
{
    const qd_param *row = NULL;
    struct value *value = NULL;
    qd_status st = find_row(p, name, &row, &value, err);
    if (st)
        return st;

    if (!holds_text(row)) {
        char got[80];
        snprintf(got, sizeof got, "the text '%.60s'", v);
        return fail_type(row, got, err);
    }
    if (row->type == QD_PARAM_CHOICE && !is_choice(row, v))
        return fail_choice(row, v, err);
    const size_t n = strlen(v);
    if (row->type == QD_PARAM_STRING && row->max > 0 && (double)n > row->max)
        return qd_fail(err, QD_E_INVALID, "params.%s must be at most %.0f bytes long, got %zu", row->name, row->max, n);
    char *copy = qd_strdup(v);
    if (!copy)
        return qd_fail(err, QD_E_NOMEM, "params.%s: no memory for %zu bytes", row->name, n);
    qd_free(value->v.s);
    value->v.s = copy;
    value->filled = value->given = true;
    return QD_OK;
}

qd_status qd_params_set_text(qd_params *p, const char *name, const char *text, qd_err *err)
{
    const qd_param *row = NULL;
    struct value *value = NULL;
    qd_status st = find_row(p, name, &row, &value, err);
    if (st)
        return st;

    char got[80];
    snprintf(got, sizeof got, "'%.60s'", text);
    char *end = NULL;
    errno = 0;
    switch (row->type) {
    case QD_PARAM_INT: {
        const long long v = strtoll(text, &end, 10);
        if (end == text || *end || errno)
            return fail_type(row, got, err);
        return qd_params_set_int(p, name, v, err);
    }
    case QD_PARAM_NUMBER: {
        const double v = strtod(text, &end);
        if (end == text || *end)
            return fail_type(row, got, err);
        return qd_params_set_number(p, name, v, err);
    }
    case QD_PARAM_BOOL:
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
            return fail_type(row, got, err);
        return qd_params_set_bool(p, name, text[0] == 't', err);
    case QD_PARAM_STRING:
    case QD_PARAM_CHOICE:
        return qd_params_set_string(p, name, text, err);
    }
    return qd_fail(err, QD_E_INTERNAL, "params.%s has no type", name);
}

qd_status qd_params_new(const qd_param *rows, qd_params **out, qd_err *err)
{
    int n = 0;
    while (rows && rows[n].name)
        n++;
    qd_params *p = qd_calloc(1, sizeof *p + (size_t)n * sizeof p->value[0]);
    if (!p)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d parameters", n);
    p->rows = rows;
    p->n = n;

    for (int k = 0; k < n; k++) {
        if (!rows[k].fallback)
            continue;
        const qd_status st = qd_params_set_text(p, rows[k].name, rows[k].fallback, err);
        if (st) {
            qd_params_free(p);
            return st;
        }
        p->value[k].given = false;
    }
    *out = p;
    return QD_OK;
}

void qd_params_free(qd_params *p)
{
    if (!p)
        return;
    for (int k = 0; k < p->n; k++)
        if (holds_text(&p->rows[k]))
            qd_free(p->value[k].v.s);
    qd_free(p);
}

qd_status qd_params_check(const qd_params *p, qd_err *err)
{
    for (int k = 0; k < p->n; k++)
        if (!p->value[k].filled)
            return qd_fail(err, QD_E_INVALID, "params.%s must be given: %s", p->rows[k].name, p->rows[k].summary);
    return QD_OK;
}

/* The value of a row that must exist, be filled and hold that type. */
static const struct value *get(const qd_params *p, const char *name, qd_param_type type)
{
    const qd_param *row = qd_param_find(p->rows, name);
    assert(row && (row->type == type || (type == QD_PARAM_STRING && holds_text(row))));
    const struct value *value = &p->value[row - p->rows];
    assert(value->filled);
    (void)type;
    return value;
}

bool qd_params_given(const qd_params *p, const char *name)
{
    const qd_param *row = qd_param_find(p->rows, name);
    return row && p->value[row - p->rows].given;
}

int64_t qd_params_int(const qd_params *p, const char *name)
{
    return get(p, name, QD_PARAM_INT)->v.i;
}

double qd_params_number(const qd_params *p, const char *name)
{
    return get(p, name, QD_PARAM_NUMBER)->v.d;
}

bool qd_params_bool(const qd_params *p, const char *name)
{
    return get(p, name, QD_PARAM_BOOL)->v.b;
}

const char *qd_params_string(const qd_params *p, const char *name)
{
    return get(p, name, QD_PARAM_STRING)->v.s;
}

const qd_param *qd_params_rows(const qd_params *p)
{
    return p->rows;
}
