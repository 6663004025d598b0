/* fields.c - values of header fields: ranges, entity tags, Accept, Prefer, lists, numbers. */
#include "http/http_int.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

static const char *skip_space(const char *s)
{
    while (is_space(*s))
        s++;
    return s;
}

bool sv_parse_int64(const char *text, int64_t min, int64_t max, int64_t *out)
{
    bool negative = false;
    int64_t v = 0;
    if (!text)
        return false;
    if (*text == '-') {
        negative = true;
        text++;
    }
    if (!*text)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        if (__builtin_mul_overflow(v, (int64_t)10, &v) || __builtin_add_overflow(v, (int64_t)(*text - '0'), &v))
            return false;
    }
    if (negative)
        v = -v;
    if (v < min || v > max)
        return false;
    *out = v;
    return true;
}

/* Digits into *out; numbers past 2^64 saturate, which a range reads as "to the end". False when there is no digit. */
static bool read_u64(const char **s, uint64_t *out)
{
    uint64_t v = 0;
    const char *p = *s;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(v, (uint64_t)10, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
            v = UINT64_MAX;
    if (p == *s)
        return false;
    *s = p;
    *out = v;
    return true;
}

sv_range_kind sv_range_parse(const char *field, uint64_t size, uint64_t *first, uint64_t *length)
{
    uint64_t a = 0, b = UINT64_MAX;
    if (!field || strncasecmp(field, "bytes", 5))
        return SV_RANGE_NONE;
    const char *p = skip_space(field + 5);
    if (*p++ != '=')
        return SV_RANGE_NONE;
    p = skip_space(p);
    const bool suffix = *p == '-';
    if (suffix) {
        p++;
        if (!read_u64(&p, &b))
            return SV_RANGE_NONE;
    } else {
        if (!read_u64(&p, &a) || *p++ != '-')
            return SV_RANGE_NONE;
        if (*p >= '0' && *p <= '9') {
            read_u64(&p, &b);
            if (b < a)
                return SV_RANGE_NONE;
        }
    }
    p = skip_space(p);
    if (*p)
        return SV_RANGE_NONE; /* several ranges: the whole file is a right answer too */

    if (suffix) {
        if (b == 0 || size == 0)
            return SV_RANGE_UNSATISFIABLE;
        *length = b < size ? b : size;
        *first = size - *length;
        return SV_RANGE_ONE;
    }
    if (a >= size)
        return SV_RANGE_UNSATISFIABLE;
    *first = a;
    *length = (b < size ? b : size - 1) - a + 1;
    return SV_RANGE_ONE;
}

bool sv_etag_in(const char *field, const char *etag)
{
    const size_t n = strlen(etag);
    if (!field)
        return false;
    for (const char *p = skip_space(field); *p;) {
        if (*p == '*')
            return true;
        if (!strncmp(p, "W/", 2))
            p += 2;
        if (*p != '"')
            return false;
        const char *end = strchr(p + 1, '"');
        if (!end)
            return false;
        if ((size_t)(end - p) + 1 == n && !memcmp(p, etag, n))
            return true;
        p = skip_space(end + 1);
        if (*p && *p != ',')
            return false;
        while (*p == ',' || is_space(*p))
            p++;
    }
    return false;
}

/* q in thousandths from the parameters of one Accept range; 1000 when absent, 0 when it cannot be read. */
static int read_quality(const char *s, size_t n)
{
    for (size_t i = 0; i + 2 < n; i++) {
        if (s[i] != ';')
            continue;
        size_t k = i + 1;
        while (k < n && is_space(s[k]))
            k++;
        if (k + 1 >= n || (s[k] != 'q' && s[k] != 'Q') || s[k + 1] != '=')
            continue;
        k += 2;
        if (k >= n || (s[k] != '0' && s[k] != '1'))
            return 0;
        int q = (s[k] - '0') * 1000, unit = 100;
        if (++k < n && s[k] == '.')
            for (k++; k < n && s[k] >= '0' && s[k] <= '9' && unit; k++, unit /= 10)
                q += (s[k] - '0') * unit;
        return q > 1000 ? 1000 : q;
    }
    return 1000;
}

int sv_accept_pick(const char *field, const char *const *offered, int n)
{
    if (!field || !*skip_space(field))
        return n > 0 ? 0 : -1;
    int best = -1, best_q = 0;
    for (int i = 0; i < n; i++) {
        /* The most specific range that fits decides (RFC 9110 12.5.1). */
        int q = 0, depth = -1;
        const char *slash = strchr(offered[i], '/');
        const size_t major = (size_t)(slash - offered[i]) + 1;
        for (const char *p = skip_space(field); *p;) {
            const size_t size = strcspn(p, ",");
            size_t type = 0;
            while (type < size && p[type] != ';' && !is_space(p[type]))
                type++;
            int fits = -1;
            if (type == strlen(offered[i]) && !strncasecmp(p, offered[i], type))
                fits = 2;
            else if (type == major + 1 && p[type - 1] == '*' && !strncasecmp(p, offered[i], major))
                fits = 1;
            else if (type == 3 && !strncmp(p, "*/*", 3))
                fits = 0;
            if (fits > depth) {
                depth = fits;
                q = read_quality(p, size);
            }
            p += size;
            p = skip_space(*p ? p + 1 : p);
        }
        if (q > best_q) {
            best_q = q;
            best = i;
        }
    }
    return best;
}

int sv_prefer_wait(const char *field)
{
    for (const char *p = field ? skip_space(field) : ""; *p;) {
        const size_t size = strcspn(p, ",;");
        if (size > 5 && !strncasecmp(p, "wait=", 5)) {
            const char *digits = p + 5;
            uint64_t seconds;
            if (!read_u64(&digits, &seconds) || digits != p + size)
                return -1;
            return seconds > 30 ? 30 : (int)seconds;
        }
        p += size;
        p = skip_space(*p ? p + 1 : p);
    }
    return -1;
}

bool sv_content_type_is(const char *field, const char *type)
{
    const size_t n = strlen(type);
    if (!field)
        return false;
    field = skip_space(field);
    if (strncasecmp(field, type, n))
        return false;
    return field[n] == '\0' || field[n] == ';' || is_space(field[n]);
}

bool sv_list_has(const char *field, const char *token)
{
    const size_t n = strlen(token);
    for (const char *p = field ? skip_space(field) : ""; *p;) {
        size_t size = strcspn(p, ",");
        size_t used = size;
        while (used && is_space(p[used - 1]))
            used--;
        if (used == n && !strncasecmp(p, token, n))
            return true;
        p += size;
        p = skip_space(*p ? p + 1 : p);
    }
    return false;
}

bool sv_json_depth_ok(const char *text, size_t size, int limit)
{
    int depth = 0;
    bool string = false;
    for (size_t i = 0; i < size; i++) {
        const char c = text[i];
        if (string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                string = false;
        } else if (c == '"') {
            string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > limit)
                return false;
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return true;
}
