/* err.h - words for failure: a status code and the sentence that goes with it. */
#ifndef QD_BASE_ERR_H
#define QD_BASE_ERR_H

#include <stdarg.h>

typedef enum qd_status {
    QD_OK = 0,
    QD_E_INVALID = -1,     /* an argument or parameter has a value it must not have */
    QD_E_FORMAT = -2,      /* bytes from outside do not follow their format */
    QD_E_UNSUPPORTED = -3, /* well formed, and we do not do it */
    QD_E_LIMIT = -4,       /* larger than a limit we set */
    QD_E_NOMEM = -5,
    QD_E_IO = -6,
    QD_E_NOT_FOUND = -7,
    QD_E_CONFLICT = -8,
    QD_E_CANCELLED = -9,
    QD_E_NUMERIC = -10, /* NaN, infinity, no convergence */
    QD_E_INTERNAL = -11,
} qd_status;

/* The caller's place for the words. Zero-initialise it; text is always terminated. */
typedef struct qd_err {
    qd_status status;
    char text[512];
} qd_err;

/* Write the words and hand the status back: `return qd_fail(err, QD_E_LIMIT, "...", ...)`. err may be NULL. */
qd_status qd_fail(qd_err *err, qd_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
qd_status qd_failv(qd_err *err, qd_status status, const char *fmt, va_list ap);

/* Put "where: " in front of the words already there; returns err->status (or `status` when err is NULL). */
qd_status qd_fail_in(qd_err *err, qd_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* "invalid", "format", ...: the short name of a status, never NULL. */
const char *qd_status_name(qd_status status);

#endif
