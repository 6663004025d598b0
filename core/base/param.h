/* param.h - parameter rows: the one description from which validation, help, JSON Schema, OpenAPI and forms are made. */
#ifndef QD_BASE_PARAM_H
#define QD_BASE_PARAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef enum qd_param_type {
    QD_PARAM_INT,
    QD_PARAM_NUMBER,
    QD_PARAM_BOOL,
    QD_PARAM_STRING,
    QD_PARAM_CHOICE
} qd_param_type;

/* One row. Arrays of rows end with a row whose name is NULL. All strings are static. */
typedef struct qd_param {
    const char *name;
    qd_param_type type;
    const char *summary;        /* one sentence a stranger understands, with the unit */
    const char *fallback;       /* the default as text; NULL = must be given */
    double min, max;            /* INT, NUMBER: inclusive; both 0 = no bound. STRING: max = longest length in bytes */
    const char *const *choices; /* CHOICE: NULL-terminated names; INT: optional, the only values allowed, as text */
} qd_param;

typedef union qd_param_value {
    int64_t i;
    double d;
    bool b;
    char *s; /* STRING, CHOICE */
} qd_param_value;

/* Values for a fixed array of rows, every row filled (given or default). */
typedef struct qd_params qd_params;

qd_status qd_params_new(const qd_param *rows, qd_params **out, qd_err *err); /* all defaults */
void qd_params_free(qd_params *p);

const qd_param *qd_param_find(const qd_param *rows, const char *name);

/* Setters check name, type and range. Unknown name: QD_E_INVALID "params.foo is not a parameter of ..; known: a, b". The words
 * always start with "params.NAME". An integer is accepted where a number is wanted; a whole number where an integer is. */
qd_status qd_params_set_int(qd_params *p, const char *name, int64_t v, qd_err *err);
qd_status qd_params_set_number(qd_params *p, const char *name, double v, qd_err *err);
qd_status qd_params_set_bool(qd_params *p, const char *name, bool v, qd_err *err);
qd_status qd_params_set_string(qd_params *p, const char *name, const char *v, qd_err *err);
qd_status qd_params_set_text(qd_params *p, const char *name, const char *text,
                             qd_err *err); /* parse by the row's type */
/* Fails naming the first row without value. */
qd_status qd_params_check(const qd_params *p, qd_err *err);
bool qd_params_given(const qd_params *p, const char *name); /* set by the caller, not by default */

/* Getters assert that the row exists and has that type: asking wrong is our own mistake. Strings are lent. */
int64_t qd_params_int(const qd_params *p, const char *name);
double qd_params_number(const qd_params *p, const char *name);
bool qd_params_bool(const qd_params *p, const char *name);
const char *qd_params_string(const qd_params *p, const char *name);
const qd_param *qd_params_rows(const qd_params *p);

#endif
