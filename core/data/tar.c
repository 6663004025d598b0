/* tar.c - where the files of a tar file lie, without unpacking: ustar, GNU long names, pax paths and sizes.
 *
 * libarchive reads tar as a stream; training wants any picture at any time, so the headers are walked once here (POSIX.1-2017, pax,
 * "ustar Interchange Format"). */
#include "data/data_int.h"

#include <stdio.h>
#include <string.h>

enum { BLOCK = 512, NAME_MAX_BYTES = 1024 };

typedef struct header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100], magic[6], version[2],
        owner[32], group[32], major[8], minor[8], prefix[155], pad[12];
} header;
_Static_assert(sizeof(header) == BLOCK, "a tar header is one block");

/* Octal text, or big-endian binary after a byte 0x80 (GNU). */
static bool read_number(const char *text, size_t n, uint64_t *out)
{
    uint64_t v = 0;
    size_t k = 0;
    if ((unsigned char)text[0] == 0x80) {
        for (k = 1; k < n; k++) {
            if (v >> 56)
                return false;
            v = v << 8 | (unsigned char)text[k];
        }
        *out = v;
        return true;
    }
    while (k < n && text[k] == ' ')
        k++;
    for (; k < n && text[k] >= '0' && text[k] <= '7'; k++) {
        if (v >> 60)
            return false;
        v = v << 3 | (uint64_t)(text[k] - '0');
    }
    for (; k < n; k++)
        if (text[k] != ' ' && text[k] != '\0')
            return false;
    *out = v;
    return true;
}

static bool sum_is_right(const header *h)
{
    const unsigned char *p = (const unsigned char *)h;
    uint64_t want, sum = 0;
    for (int k = 0; k < BLOCK; k++)
        sum += k >= 148 && k < 156 ? ' ' : p[k];
    return read_number(h->sum, sizeof h->sum, &want) && want == sum;
}

bool qd_tar_known(const char *path)
{
    header h;
    return qd_source_head(path, (uint8_t *)&h, sizeof h) == sizeof h && memcmp(h.magic, "ustar", 5) == 0 &&
           sum_is_right(&h);
}

/* Names only beneath the file: they become paths for people and classes. */
static qd_status check_name(const char *name, qd_err *err)
{
    if (!*name || name[0] == '/')
        return qd_fail(err, QD_E_FORMAT, "entry '%.200s' has an absolute name, or none", name);
    for (const char *p = name; *p;) {
        const size_t n = strcspn(p, "/");
        if (n == 2 && p[0] == '.' && p[1] == '.')
            return qd_fail(err, QD_E_FORMAT, "entry '%.200s' leaves the file with '..'", name);
        p += n + (p[n] == '/');
    }
    for (const char *p = name; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            return qd_fail(err, QD_E_FORMAT, "entry '%.200s': control characters are refused", name);
    return QD_OK;
}

static qd_status add(qd_tar *t, const char *name, uint64_t at, uint64_t size, qd_err *err)
{
    qd_status st;
    while (name[0] == '.' && name[1] == '/')
        name += 2;
    st = check_name(name, err);
    if (st)
        return st;
    if (t->files.count == t->room) {
        const int64_t room = t->room ? 2 * t->room : 256;
        uint64_t *more = qd_realloc(t->at, (size_t)room * sizeof *more);
        if (more)
            t->at = more;
        uint64_t *sizes = more ? qd_realloc(t->size, (size_t)room * sizeof *sizes) : NULL;
        if (!sizes)
            return qd_fail(err, QD_E_NOMEM, "no memory for %lld entries", (long long)room);
        t->size = sizes;
        t->room = room;
    }
    t->at[t->files.count] = at;
    t->size[t->files.count] = size;
    return qd_files_add(&t->files, qd_strdup(name), err);
}

/* "LENGTH key=value\n", again and again: path and size of the entry that follows. */
static qd_status read_pax(const char *p, size_t n, char name[NAME_MAX_BYTES + 1], uint64_t *size, bool *sized,
                          qd_err *err)
{
    while (n) {
        size_t length = 0, digits = 0;
        while (digits < n && digits < 8 && p[digits] >= '0' && p[digits] <= '9')
            length = 10 * length + (size_t)(p[digits++] - '0');
        const char *key = p + digits + 1,
                   *equal = length > digits + 1 && length <= n ? memchr(key, '=', length - digits - 1) : NULL;
        if (!equal || !digits || p[digits] != ' ' || p[length - 1] != '\n')
            return qd_fail(err, QD_E_FORMAT, "a pax header is damaged");
        const size_t value = (size_t)(p + length - 1 - (equal + 1));
        if (equal - key == 4 && memcmp(key, "path", 4) == 0) {
            if (value > NAME_MAX_BYTES)
                return qd_fail(err, QD_E_LIMIT, "a name of %zu bytes; %d are the most", value, NAME_MAX_BYTES);
            memcpy(name, equal + 1, value);
            name[value] = '\0';
        } else if (equal - key == 4 && memcmp(key, "size", 4) == 0) {
            *size = 0;
            *sized = true;
            for (size_t k = 0; k < value; k++) {
                const char c = equal[1 + k];
                if (c < '0' || c > '9' || *size > UINT64_MAX / 16)
                    return qd_fail(err, QD_E_FORMAT, "a pax header has no readable size");
                *size = 10 * *size + (uint64_t)(c - '0');
            }
        }
        p += length;
        n -= length;
    }
    return QD_OK;
}

static void plain_name(const header *h, char name[NAME_MAX_BYTES + 1])
{
    const int prefix = memcmp(h->magic, "ustar", 6) == 0 ? (int)strnlen(h->prefix, sizeof h->prefix) : 0;
    snprintf(name, NAME_MAX_BYTES + 1, "%.*s%s%.*s", prefix, h->prefix, prefix ? "/" : "",
             (int)strnlen(h->name, sizeof h->name), h->name);
}

static qd_status walk(const uint8_t *data, size_t size, qd_tar *t, qd_err *err)
{
    char name[NAME_MAX_BYTES + 1] = "", next[NAME_MAX_BYTES + 1] = "";
    uint64_t next_size = 0;
    bool sized = false;
    static const uint8_t zeros[BLOCK];
    qd_status st = QD_OK;
    for (size_t at = 0; !st && size - at >= BLOCK;) {
        const header *h = (const header *)(const void *)(data + at);
        uint64_t n;
        if (memcmp(h, zeros, BLOCK) == 0)
            return QD_OK;
        if (!sum_is_right(h) || !read_number(h->size, sizeof h->size, &n))
            return qd_fail(err, QD_E_FORMAT, "the header at byte %zu is damaged", at);
        const bool extra = strchr("LKxg", h->type) && h->type;
        if (!extra && sized)
            n = next_size;
        at += BLOCK;
        plain_name(h, name);
        if (n > size - at)
            return qd_fail(err, QD_E_FORMAT, "entry '%.150s' ends at byte %llu, the file has %zu",
                           next[0] ? next : name, (unsigned long long)(at + n), size);
        const char *body = (const char *)data + at;
        if (h->type == 'L') {
            if (n == 0 || n > NAME_MAX_BYTES)
                return qd_fail(err, QD_E_LIMIT, "a name of %llu bytes; %d are the most", (unsigned long long)n,
                               NAME_MAX_BYTES);
            memcpy(next, body, (size_t)n);
            next[n] = '\0';
        } else if (h->type == 'x') {
            st = read_pax(body, (size_t)n, next, &next_size, &sized, err);
        } else if (h->type == '0' || h->type == '\0' || h->type == '7') {
            st = add(t, next[0] ? next : name, at, n, err);
        } else if (h->type == 'S') {
            st = qd_fail(err, QD_E_UNSUPPORTED, "entry '%.150s' is sparse", next[0] ? next : name);
        } else {
            t->others += !extra;
        }
        if (!extra) {
            next[0] = '\0';
            sized = false;
        }
        const uint64_t padded = (n + BLOCK - 1) / BLOCK * BLOCK;
        at += (size_t)(padded < size - at ? padded : size - at);
    }
    return st;
}

qd_status qd_tar_list(const uint8_t *data, size_t size, qd_tar *out, qd_err *err)
{
    qd_tar t = { 0 };
    const qd_status st = walk(data, size, &t, err);
    if (st)
        qd_tar_clear(&t);
    else
        *out = t;
    return st;
}

void qd_tar_clear(qd_tar *t)
{
    qd_files_clear(&t->files);
    qd_free(t->at);
    qd_free(t->size);
    *t = (qd_tar){ 0 };
}
