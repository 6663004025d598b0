/* target.c - the request target: split, decoded exactly once, and matched against patterns. */
#include "http/http_int.h"

#include <string.h>

#include "base/mem.h"

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* RFC 3629, without surrogates and overlong forms. */
static bool utf8_ok(const unsigned char *s)
{
    while (*s) {
        const unsigned char c = *s++;
        int follow;
        uint32_t least, code;
        if (c < 0x80)
            continue;
        if (c >= 0xc2 && c <= 0xdf)
            follow = 1, least = 0x80, code = c & 0x1f;
        else if (c >= 0xe0 && c <= 0xef)
            follow = 2, least = 0x800, code = c & 0x0f;
        else if (c >= 0xf0 && c <= 0xf4)
            follow = 3, least = 0x10000, code = c & 0x07;
        else
            return false;
        for (int i = 0; i < follow; i++, s++) {
            if ((*s & 0xc0) != 0x80)
                return false;
            code = code << 6 | (*s & 0x3f);
        }
        if (code < least || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
            return false;
    }
    return true;
}

/* Decode s[0..n) to out, which has room for n + 1. One pass: what comes out is never decoded again. */
static qd_status decode(const char *s, size_t n, bool query, char *out, qd_err *err)
{
    size_t w = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '%') {
            const int hi = i + 2 < n ? hex_digit(s[i + 1]) : -1;
            const int lo = hi >= 0 ? hex_digit(s[i + 2]) : -1;
            if (lo < 0)
                return qd_fail(err, QD_E_INVALID,
                               "the request target has a '%%' that two hexadecimal digits do not follow");
            c = (unsigned char)(hi << 4 | lo);
            i += 2;
            /* An escaped separator is a way to say one thing to a proxy and another to us. */
            if (!query && (c == '/' || c == '\\'))
                return qd_fail(err, QD_E_INVALID, "the path has an escaped slash");
        } else if (query && c == '+') {
            c = ' ';
        }
        if (c < 0x20 || c == 0x7f)
            return qd_fail(err, QD_E_INVALID, "the request target has the control character 0x%02x", c);
        if (!query && c == '\\')
            return qd_fail(err, QD_E_INVALID, "the path has a backslash");
        out[w++] = (char)c;
    }
    out[w] = '\0';
    if (!utf8_ok((const unsigned char *)out))
        return qd_fail(err, QD_E_INVALID, "the request target is not UTF-8");
    return QD_OK;
}

static qd_status parse_path(const char *path, size_t n, sv_target *t, char **cursor, qd_err *err)
{
    /* The whole path once more, for tables that go by it. Segments follow. */
    char *whole = *cursor;
    qd_status st = decode(path, n, false, whole, err);
    if (st)
        return st;
    *cursor += strlen(whole) + 1;
    t->path = whole;
    if (n == 1)
        return QD_OK;
    for (size_t i = 1; i <= n;) {
        const char *slash = memchr(path + i, '/', n - i);
        const size_t size = slash ? (size_t)(slash - path) - i : n - i;
        char *segment = *cursor;
        st = decode(path + i, size, false, segment, err);
        if (st)
            return st;
        if (!strcmp(segment, ".") || !strcmp(segment, ".."))
            return qd_fail(err, QD_E_INVALID, "the path has a '%s' segment", segment);
        *cursor += strlen(segment) + 1;
        if (t->segment_count < SV_MAX_SEGMENTS)
            t->segments[t->segment_count] = segment;
        if (t->segment_count <= SV_MAX_SEGMENTS)
            t->segment_count++;
        i += size + 1;
    }
    return QD_OK;
}

static qd_status parse_query(const char *query, sv_target *t, char **cursor, qd_err *err)
{
    while (*query) {
        const size_t size = strcspn(query, "&");
        if (size) {
            const char *equals = memchr(query, '=', size);
            const size_t name_size = equals ? (size_t)(equals - query) : size;
            if (t->query_count == SV_MAX_QUERY)
                return qd_fail(err, QD_E_LIMIT, "the query has more than %d parameters", SV_MAX_QUERY);
            sv_query_pair *pair = &t->query[t->query_count];
            char *name = *cursor;
            qd_status st = decode(query, name_size, true, name, err);
            if (st)
                return st;
            *cursor += strlen(name) + 1;
            char *value = *cursor;
            st = decode(equals ? equals + 1 : "", equals ? size - name_size - 1 : 0, true, value, err);
            if (st)
                return st;
            *cursor += strlen(value) + 1;
            for (int i = 0; i < t->query_count; i++)
                if (!strcmp(t->query[i].name, name))
                    return qd_fail(err, QD_E_INVALID, "the query parameter '%.64s' is given twice", name);
            *pair = (sv_query_pair){ .name = name, .value = value };
            t->query_count++;
        }
        query += size + (query[size] == '&');
    }
    return QD_OK;
}

qd_status sv_target_parse(const char *raw, sv_target *out, qd_err *err)
{
    sv_target t = { 0 };
    qd_status st;
    const size_t n = strlen(raw);
    if (n > SV_MAX_TARGET_BYTES)
        return qd_fail(err, QD_E_LIMIT, "the request target is longer than %d bytes", SV_MAX_TARGET_BYTES);
    /* Path, its segments, query and authority, each decoded shorter or equal, and a NUL for every piece. */
    t.memory = qd_alloc(3 * n + 64 + 2 * SV_MAX_QUERY);
    if (!t.memory)
        return qd_fail(err, QD_E_NOMEM, "no memory for a request target of %zu bytes", n);
    char *cursor = t.memory;

    const char *path = raw;
    if (!strncasecmp(raw, "http://", 7) || !strncasecmp(raw, "https://", 8)) {
        const char *authority = strchr(raw, ':') + 3;
        const size_t size = strcspn(authority, "/?#");
        memcpy(cursor, authority, size);
        cursor[size] = '\0';
        t.authority = cursor;
        cursor += size + 1;
        path = authority + size;
    }
    if (strchr(path, '#')) {
        st = qd_fail(err, QD_E_INVALID, "the request target has a fragment");
        goto out;
    }
    const char *question = strchr(path, '?');
    size_t path_size = question ? (size_t)(question - path) : strlen(path);
    if (!path_size && t.authority) {
        path = "/";
        path_size = 1;
    }
    if (!path_size || path[0] != '/') {
        st = qd_fail(err, QD_E_INVALID, "the request target must start with '/'");
        goto out;
    }
    st = parse_path(path, path_size, &t, &cursor, err);
    if (st)
        goto out;
    st = parse_query(question ? question + 1 : "", &t, &cursor, err);
    if (st)
        goto out;
    *out = t;
    t.memory = NULL;
out:
    qd_free(t.memory);
    return st;
}

void sv_target_clear(sv_target *t)
{
    qd_free(t->memory);
    *t = (sv_target){ 0 };
}

const char *sv_target_query(const sv_target *t, const char *name)
{
    for (int i = 0; i < t->query_count; i++)
        if (!strcmp(t->query[i].name, name))
            return t->query[i].value;
    return NULL;
}

bool sv_path_match(const char *pattern, const sv_target *t, const char *captures[2])
{
    const char *found[2] = { NULL, NULL };
    int segment = 0, captured = 0;
    for (const char *p = pattern + 1; *p; segment++) {
        const size_t size = strcspn(p, "/");
        if (segment >= t->segment_count || segment >= SV_MAX_SEGMENTS)
            return false;
        const char *s = t->segments[segment];
        const char *brace = memchr(p, '{', size);
        if (!brace) {
            if (strlen(s) != size || memcmp(s, p, size))
                return false;
        } else {
            /* "sha256:{hex}": what stands before the brace must stand there too. */
            const size_t fixed = (size_t)(brace - p);
            const size_t length = strlen(s);
            if (strncmp(s, p, fixed) || length <= fixed || length - fixed > 255)
                return false;
            found[captured++] = s + fixed;
        }
        p += size + (p[size] == '/');
    }
    if (segment != t->segment_count)
        return false;
    captures[0] = found[0];
    captures[1] = found[1];
    return true;
}
