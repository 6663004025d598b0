/* err.c - writing the words of a failure into the caller's place. */
#include "base/err.h"

#include <stdio.h>
#include <string.h>

qd_status qd_failv(qd_err *err, qd_status status, const char *fmt, va_list ap)
{
    if (!err)
        return status;

    /* Through a copy: an argument may be err->text itself. */
    char text[sizeof err->text];
    int n = vsnprintf(text, sizeof text, fmt, ap);
    if (n < 0)
        text[0] = '\0';
    err->status = status;
    memcpy(err->text, text, sizeof text);
    return status;
}

qd_status qd_fail(qd_err *err, qd_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    qd_failv(err, status, fmt, ap);
    va_end(ap);
    return status;
}

qd_status qd_fail_in(qd_err *err, qd_status status, const char *fmt, ...)
{
    if (!err)
        return status;
    if (err->status == QD_OK)
        err->status = status;

    char where[sizeof err->text];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(where, sizeof where, fmt, ap);
    va_end(ap);
    if (n < 0)
        return err->status;

    /* The place in front may fill the text; the old words keep what room is left. */
    const size_t room = sizeof err->text - 1;
    const size_t front = strnlen(where, sizeof where - 1);
    if (front + 2 > room)
        return err->status;
    size_t old = strnlen(err->text, room);
    if (old > room - front - 2)
        old = room - front - 2;
    memmove(err->text + front + 2, err->text, old);
    memcpy(err->text, where, front);
    memcpy(err->text + front, ": ", 2);
    err->text[front + 2 + old] = '\0';
    return err->status;
}

const char *qd_status_name(qd_status status)
{
    switch (status) {
    case QD_OK:
        return "ok";
    case QD_E_INVALID:
        return "invalid";
    case QD_E_FORMAT:
        return "format";
    case QD_E_UNSUPPORTED:
        return "unsupported";
    case QD_E_LIMIT:
        return "limit";
    case QD_E_NOMEM:
        return "nomem";
    case QD_E_IO:
        return "io";
    case QD_E_NOT_FOUND:
        return "not_found";
    case QD_E_CONFLICT:
        return "conflict";
    case QD_E_CANCELLED:
        return "cancelled";
    case QD_E_NUMERIC:
        return "numeric";
    case QD_E_INTERNAL:
        return "internal";
    }
    return "unknown";
}
