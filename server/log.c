/* log.c - one line per event on standard error, written with one write() so that lines of threads do not mix. */
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

#define LINE_MAX_BYTES                                                                                                 \
    4096 /* a longer line is cut and ends in "..."; small enough for one write to a pipe to stay whole */

static atomic_int least_level = SV_INFO;

typedef struct line {
    char text[LINE_MAX_BYTES];
    size_t used;
    bool cut;
} line;

void sv_log_level(sv_level least)
{
    atomic_store(&least_level, (int)least);
}

bool sv_log_level_named(const char *name)
{
    static const char *const names[] = { "debug", "info", "warn", "error" };

    for (int i = SV_DEBUG; i <= SV_ERROR; i++) {
        if (strcmp(name, names[i]) == 0) {
            sv_log_level((sv_level)i);
            return true;
        }
    }
    return false;
}

static void line_add(line *l, const char *text, size_t n)
{
    const size_t room = sizeof(l->text) - sizeof("...\"\n") - l->used; /* what closes a line always fits */

    if (l->cut || n > room) {
        n = l->cut || n <= 4 ? 0 : room; /* an escape is never halved */
        l->cut = true;
    }
    memcpy(l->text + l->used, text, n);
    l->used += n;
}

static bool is_plain(const char *s)
{
    if (!*s)
        return false;
    for (; *s; s++) {
        const unsigned char ch = (unsigned char)*s;
        if (ch <= ' ' || ch >= 0x7f || ch == '"' || ch == '=' || ch == '\\')
            return false;
    }
    return true;
}

/* Bare when it cannot be misread, else in quotes with everything that could break the line escaped. Bytes over 0x7f stay as they
 * are: UTF-8 from outside is readable, and no byte of it is a control character except U+0080..U+009F, which are escaped. */
static void line_add_value(line *l, const char *value)
{
    if (is_plain(value)) {
        line_add(l, value, strlen(value));
        return;
    }
    line_add(l, "\"", 1);
    for (const char *s = value; *s && !l->cut; s++) {
        const unsigned char ch = (unsigned char)*s;
        char hex[5];
        if (ch == '"' || ch == '\\') {
            line_add(l, (const char[]){ '\\', (char)ch }, 2);
        } else if (ch == '\n') {
            line_add(l, "\\n", 2);
        } else if (ch == '\t') {
            line_add(l, "\\t", 2);
        } else if (ch < ' ' || ch == 0x7f ||
                   (ch == 0xc2 && (unsigned char)s[1] >= 0x80 && (unsigned char)s[1] < 0xa0)) {
            snprintf(hex, sizeof(hex), "\\x%02x", ch);
            line_add(l, hex, 4);
        } else {
            line_add(l, s, 1);
        }
    }
    if (l->cut)
        return; /* closed by the caller */
    line_add(l, "\"", 1);
}

static void line_add_time(line *l)
{
    struct timespec now;
    struct tm tm;
    char text[40];

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    const size_t n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    line_add(l, text, n);
    snprintf(text, sizeof(text), ".%03dZ", (int)(now.tv_nsec / 1000000));
    line_add(l, text, strlen(text));
}

void sv_log(sv_level level, const char *event, ...)
{
    static const char *const names[] = { " debug ", " info ", " warn ", " error " };
    line l = { .used = 0 };
    va_list ap;

    if ((int)level < atomic_load(&least_level))
        return;
    line_add_time(&l);
    line_add(&l, names[level], strlen(names[level]));
    line_add(&l, event, strlen(event));
    va_start(ap, event);
    for (const char *key; (key = va_arg(ap, const char *)) != NULL;) {
        const char *value = va_arg(ap, const char *);
        if (l.cut)
            continue;
        line_add(&l, " ", 1);
        line_add(&l, key, strlen(key));
        line_add(&l, "=", 1);
        line_add_value(&l, value ? value : "");
    }
    va_end(ap);
    if (l.cut) {
        memcpy(l.text + l.used, "...\"", 4);
        l.used += 4;
    }
    l.text[l.used++] = '\n';
    for (size_t done = 0; done < l.used;) {
        const ssize_t n = write(STDERR_FILENO, l.text + done, l.used - done);
        if (n <= 0)
            break; /* nobody to tell */
        done += (size_t)n;
    }
}
