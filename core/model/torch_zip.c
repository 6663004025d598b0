/* torch_zip.c - the zip archive PyTorch writes (APPNOTE 6.3.9): entries stored without compression, found by the central directory.
 *
 * Only what PyTorch does is read, so that every byte has one meaning: each entry's two headers must agree, no two entries share a
 * byte, no name appears twice or leaves the one folder of the archive. */
#include <stdlib.h>
#include <string.h>

#include "model/pickle_int.h"

#define ENTRIES_MAX 200000u
#define NAME_MAX_BYTES 512u
#define LOCAL_MAGIC 0x04034b50u
#define CENTRAL_MAGIC 0x02014b50u
#define END_MAGIC 0x06054b50u
#define END64_MAGIC 0x06064b50u
#define LOCATOR64_MAGIC 0x07064b50u
enum {
    LOCAL_BYTES = 30,
    CENTRAL_BYTES = 46,
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR64_BYTES = 20,
    COMMENT_MAX = 65535
};
enum { FLAG_ENCRYPTED = 1u << 0, FLAG_DESCRIPTOR = 1u << 3, FLAG_HIDDEN = 1u << 13 };

typedef struct archive {
    const uint8_t *data;
    size_t size;
    uint64_t entries, directory, directory_bytes;
    const char *root; /* the folder all entries lie in, with its '/' */
    size_t root_bytes;
} archive;

typedef struct extent {
    uint64_t begin, end; // bytes of the file
} extent;

static qd_reader reader_at(const archive *a, uint64_t at, uint64_t n)
{
    qd_reader r;
    qd_reader_init(&r, at <= a->size ? a->data + at : a->data, at <= a->size && n <= a->size - at ? (size_t)n : 0);
    return r;
}

/* --- where the directory is --- */

static qd_status find_end64(archive *a, uint64_t end, qd_err *err)
{
    qd_reader r = reader_at(a, end - LOCATOR64_BYTES, LOCATOR64_BYTES);
    if (end < LOCATOR64_BYTES || qd_read_u32le(&r) != LOCATOR64_MAGIC)
        return qd_fail(err, QD_E_FORMAT, "zip: its sizes want a zip64 record, and there is none");
    qd_read_u32le(&r);
    const uint64_t at = qd_read_u64le(&r);
    r = reader_at(a, at, END64_BYTES);
    const uint32_t magic = qd_read_u32le(&r);
    qd_read_bytes(&r, 8 + 2 + 2 + 4 + 4); /* size of the record, versions, disks */
    qd_read_u64le(&r);                    /* entries of this disk */
    a->entries = qd_read_u64le(&r);
    a->directory_bytes = qd_read_u64le(&r);
    a->directory = qd_read_u64le(&r);
    if (r.failed || magic != END64_MAGIC)
        return qd_fail(err, QD_E_FORMAT, "zip: the zip64 record at byte %llu is none", (unsigned long long)at);
    return QD_OK;
}

static qd_status find_directory(archive *a, qd_err *err)
{
    size_t at = a->size;
    if (a->size < END_BYTES)
        return qd_fail(err, QD_E_FORMAT, "zip: %zu bytes are too few", a->size);
    const size_t first = a->size - END_BYTES > COMMENT_MAX ? a->size - END_BYTES - COMMENT_MAX : 0;
    for (at = a->size - END_BYTES;; at--) {
        qd_reader r = reader_at(a, at, END_BYTES);
        if (qd_read_u32le(&r) == END_MAGIC) {
            qd_read_bytes(&r, 2 + 2 + 2); /* disks, entries of this disk */
            a->entries = qd_read_u16le(&r);
            a->directory_bytes = qd_read_u32le(&r);
            a->directory = qd_read_u32le(&r);
            if (qd_read_u16le(&r) == a->size - END_BYTES - at)
                break;
        }
        if (at == first)
            return qd_fail(err, QD_E_FORMAT, "zip: the end of its directory is missing; the file is cut short");
    }
    if (a->entries == 0xffff || a->directory_bytes == 0xffffffff || a->directory == 0xffffffff) {
        const qd_status st = find_end64(a, at, err);
        if (st)
            return st;
    }
    if (a->entries == 0 || a->entries > ENTRIES_MAX)
        return qd_fail(err, QD_E_LIMIT, "zip: %llu entries; there may be 1..%u", (unsigned long long)a->entries,
                       ENTRIES_MAX);
    if (a->directory > at || a->directory_bytes > at - a->directory)
        return qd_fail(err, QD_E_FORMAT, "zip: the directory of %llu bytes at byte %llu passes its end record at %zu",
                       (unsigned long long)a->directory_bytes, (unsigned long long)a->directory, at);
    return QD_OK;
}

/* --- entries --- */

static qd_status check_name(const char *name, qd_err *err)
{
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f || *c == '\\')
            return qd_fail(err, QD_E_FORMAT, "zip: an entry's name has control characters or backslashes");
    if (name[0] == '/' || strstr(name, "//"))
        return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' is no name beneath the archive", name);
    for (const char *part = name; part; part = strchr(part, '/')) {
        part += *part == '/';
        const size_t n = strcspn(part, "/");
        if ((n == 1 && part[0] == '.') || (n == 2 && part[0] == '.' && part[1] == '.'))
            return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' walks with '.' or '..'", name);
    }
    return QD_OK;
}

/* Sizes that do not fit in 32 bits stand in an extra field, in this order, those alone whose place is all ones. */
static bool read_zip64(const uint8_t *extra, size_t n, uint64_t *size, uint64_t *packed, uint64_t *offset)
{
    qd_reader r;
    qd_reader_init(&r, extra, n);
    while (qd_reader_left(&r) >= 4) {
        const uint16_t id = qd_read_u16le(&r), bytes = qd_read_u16le(&r);
        const uint8_t *field = qd_read_bytes(&r, bytes);
        if (!field)
            return false;
        if (id != 1)
            continue;
        qd_reader f;
        qd_reader_init(&f, field, bytes);
        if (*size == 0xffffffff)
            *size = qd_read_u64le(&f);
        if (*packed == 0xffffffff)
            *packed = qd_read_u64le(&f);
        if (offset && *offset == 0xffffffff)
            *offset = qd_read_u64le(&f);
        return !f.failed;
    }
    return *size != 0xffffffff && *packed != 0xffffffff && (!offset || *offset != 0xffffffff);
}

/* The header in front of the data repeats what the directory says; where they differ, readers would disagree about the file. */
static qd_status check_local(const archive *a, const char *name, uint64_t at, uint64_t bytes, qd_torch_entry *e,
                             extent *x, qd_err *err)
{
    qd_reader r = reader_at(a, at, a->directory > at ? a->directory - at : 0);
    const uint32_t magic = qd_read_u32le(&r);
    qd_read_u16le(&r);
    const uint16_t flags = qd_read_u16le(&r), local_method = qd_read_u16le(&r);
    qd_read_u32le(&r); /* time, date */
    const uint32_t crc = qd_read_u32le(&r);
    uint64_t packed = qd_read_u32le(&r), size = qd_read_u32le(&r);
    const uint16_t n_name = qd_read_u16le(&r), n_extra = qd_read_u16le(&r);
    const uint8_t *local_name = qd_read_bytes(&r, n_name), *extra = qd_read_bytes(&r, n_extra);
    if (r.failed || magic != LOCAL_MAGIC)
        return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' has no header at byte %llu", name,
                       (unsigned long long)at);
    if (n_name != strlen(name) || memcmp(local_name, name, n_name) != 0 || local_method != e->method ||
        flags & FLAG_ENCRYPTED)
        return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' is something else in its own header", name);
    if (!(flags & FLAG_DESCRIPTOR) &&
        (!read_zip64(extra, n_extra, &size, &packed, NULL) || size != e->size || packed != bytes || crc != e->crc))
        return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' has another size or checksum in its own header", name);
    e->data = qd_read_bytes(&r, bytes);
    if (r.failed)
        return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' of %llu bytes passes the directory at byte %llu", name,
                       (unsigned long long)bytes, (unsigned long long)a->directory);
    *x = (extent){ at, at + r.pos };
    return QD_OK;
}

/* All lie in one folder: the name PyTorch gave the archive. */
static qd_status cut_root(archive *a, const char *name, const char **rest, qd_err *err)
{
    const char *slash = strchr(name, '/');
    const size_t n = slash ? (size_t)(slash - name) + 1 : 0;
    if (!a->root) {
        a->root = name;
        a->root_bytes = n;
    }
    if (!n || n != a->root_bytes || memcmp(name, a->root, n) != 0 || !name[n])
        return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' is no file of the folder the others lie in", name);
    *rest = name + n;
    return QD_OK;
}

static qd_status read_entry(archive *a, qd_reader *r, qd_torch_zip *z, char *name, extent *x, qd_err *err)
{
    qd_torch_entry e = { 0 };
    const uint32_t magic = qd_read_u32le(r);
    qd_read_u32le(r); /* versions */
    const uint16_t flags = qd_read_u16le(r), method = qd_read_u16le(r);
    qd_read_u32le(r); /* time, date */
    e.crc = qd_read_u32le(r);
    uint64_t packed = qd_read_u32le(r);
    e.size = qd_read_u32le(r);
    const uint16_t n_name = qd_read_u16le(r), n_extra = qd_read_u16le(r), n_comment = qd_read_u16le(r);
    qd_read_bytes(r, 2 + 2 + 4); /* disk, attributes */
    uint64_t at = qd_read_u32le(r);
    const uint8_t *text = qd_read_bytes(r, n_name), *extra = qd_read_bytes(r, n_extra);
    qd_read_bytes(r, n_comment);
    const char *rest = NULL;
    if (r->failed || magic != CENTRAL_MAGIC)
        return qd_fail(err, QD_E_FORMAT, "zip: entry %d of the directory is none", z->names.count);
    if (n_name == 0 || n_name > NAME_MAX_BYTES || memchr(text, 0, n_name))
        return qd_fail(err, QD_E_FORMAT, "zip: entry %d has a name of %u bytes, or one with a NUL", z->names.count,
                       n_name);
    memcpy(name, text, n_name);
    name[n_name] = '\0';
    qd_status st = check_name(name, err);
    if (st)
        return st;
    if (flags & (FLAG_ENCRYPTED | FLAG_HIDDEN))
        return qd_fail(err, QD_E_UNSUPPORTED, "zip: entry '%.200s' is encrypted", name);
    if (!read_zip64(extra, n_extra, &e.size, &packed, &at) || (method == 0 && packed != e.size))
        return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' has sizes that contradict each other", name);
    e.method = method;
    st = check_local(a, name, at, packed, &e, x, err);
    if (st)
        return st;
    if (!a->root) { /* `name` is used again for the next entry; the directory's own bytes stay */
        const char *slash = strchr(name, '/');
        a->root = (const char *)text;
        a->root_bytes = slash ? (size_t)(slash - name) + 1 : 0;
    }
    st = cut_root(a, name, &rest, err);
    if (st)
        return st;
    if (qd_names_find(&z->names, rest) >= 0)
        return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' is there twice", name);
    st = qd_names_add(&z->names, rest, err);
    if (st)
        return st;
    e.name = z->names.name[z->names.count - 1];
    z->entry[z->names.count - 1] = e;
    return QD_OK;
}

static int by_begin(const void *a, const void *b)
{
    const extent *x = a, *y = b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static qd_status check_overlap(extent *x, size_t n, qd_err *err)
{
    qsort(x, n, sizeof(*x), by_begin);
    for (size_t k = 1; k < n; k++)
        if (x[k].begin < x[k - 1].end)
            return qd_fail(err, QD_E_FORMAT, "zip: two entries share byte %llu", (unsigned long long)x[k].begin);
    return QD_OK;
}

qd_status qd_torch_zip_open(const void *data, size_t size, qd_torch_zip *out, qd_err *err)
{
    archive a = { .data = data, .size = size };
    qd_torch_zip z = { 0 };
    extent *extents = NULL;
    char *name = NULL;
    qd_status st = find_directory(&a, err);
    if (st)
        return st;
    if (a.entries > a.directory_bytes / CENTRAL_BYTES)
        return qd_fail(err, QD_E_FORMAT, "zip: %llu entries in a directory of %llu bytes",
                       (unsigned long long)a.entries, (unsigned long long)a.directory_bytes);
    z.entry = qd_calloc((size_t)a.entries, sizeof(*z.entry));
    extents = qd_calloc((size_t)a.entries, sizeof(*extents));
    name = qd_alloc(NAME_MAX_BYTES + 1);
    if (!z.entry || !extents || !name) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory for %llu zip entries", (unsigned long long)a.entries);
        goto out;
    }
    qd_reader r = reader_at(&a, a.directory, a.directory_bytes);
    for (uint64_t k = 0; k < a.entries && !st; k++)
        st = read_entry(&a, &r, &z, name, &extents[k], err);
    if (!st)
        st = check_overlap(extents, (size_t)a.entries, err);
    if (st)
        goto out;
    *out = z;
    z = (qd_torch_zip){ 0 };
out:
    qd_torch_zip_clear(&z);
    qd_free(extents);
    qd_free(name);
    return st;
}

void qd_torch_zip_clear(qd_torch_zip *z)
{
    qd_names_clear(&z->names);
    qd_free(z->entry);
    *z = (qd_torch_zip){ 0 };
}

/* --- checksums --- */

/* CRC-32 (ISO 3309, as zip has it), eight bytes at a time (Kounavis and Berry, slicing). */
static uint32_t crc32_of(const uint8_t *p, uint64_t n)
{
    uint32_t table[8][256], crc = 0xffffffff;
    for (uint32_t k = 0; k < 256; k++) {
        uint32_t c = k;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        table[0][k] = c;
    }
    for (uint32_t k = 0; k < 256; k++)
        for (int j = 1; j < 8; j++)
            table[j][k] = table[0][table[j - 1][k] & 255] ^ table[j - 1][k] >> 8;
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t lo, hi;
        memcpy(&lo, p, 4);
        memcpy(&hi, p + 4, 4);
        lo ^= crc;
        crc = table[7][lo & 255] ^ table[6][lo >> 8 & 255] ^ table[5][lo >> 16 & 255] ^ table[4][lo >> 24] ^
              table[3][hi & 255] ^ table[2][hi >> 8 & 255] ^ table[1][hi >> 16 & 255] ^ table[0][hi >> 24];
    }
    for (; n; n--, p++)
        crc = table[0][(crc ^ *p) & 255] ^ crc >> 8;
    return ~crc;
}

qd_status qd_torch_zip_get(const qd_torch_zip *z, const char *name, const qd_torch_entry **out, qd_err *err)
{
    const int k = qd_names_find(&z->names, name);
    if (k < 0)
        return qd_fail(err, QD_E_NOT_FOUND, "zip: there is no entry '%.200s'", name);
    const qd_torch_entry *e = &z->entry[k];
    if (e->method != 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "zip: entry '%.200s' is compressed (method %u), which PyTorch never does",
                       e->name, e->method);
    /* Newer writers may leave the checksum out, which is a zero. */
    if (e->crc) {
        const uint32_t crc = crc32_of(e->data, e->size);
        if (crc != e->crc)
            return qd_fail(err, QD_E_FORMAT, "zip: entry '%.200s' has the checksum %08x, its bytes give %08x", e->name,
                           e->crc, crc);
    }
    *out = e;
    return QD_OK;
}

/* PyTorch writes data.pkl first; where another tool put the archive together anew, the directory tells. */
bool qd_torch_zip_sniff(const void *data, size_t size)
{
    qd_reader r;
    qd_torch_zip z = { 0 };
    qd_reader_init(&r, data, size);
    if (qd_read_u32le(&r) != LOCAL_MAGIC)
        return false;
    qd_read_bytes(&r, 22);
    const uint16_t n = qd_read_u16le(&r);
    qd_read_u16le(&r);
    const char *name = (const char *)qd_read_bytes(&r, n);
    if (name && n > 9 && memcmp(name + n - 9, "/data.pkl", 9) == 0)
        return true;
    const bool yes = !qd_torch_zip_open(data, size, &z, NULL) && qd_names_find(&z.names, "data.pkl") >= 0;
    qd_torch_zip_clear(&z);
    return yes;
}
