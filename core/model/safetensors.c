/* safetensors.c - reading weight files that strangers wrote (diffusion_models.md 1).
 *
 * File = u64 little-endian N, N bytes of JSON, data. The header maps a name to {dtype, shape, data_offsets: [begin, end]}, offsets
 * counted from the first byte of data; `__metadata__` is a map of strings. Every byte of data belongs to exactly one tensor. */
#include "model/model_int.h"

#include <jansson.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fs.h"

#define HEADER_MAX_DEPTH 3         /* { name: { shape: [ */
#define HEADER_MAX_VALUES 1500000u /* some 100000 tensors; bounds what the JSON library may take */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are used as they lie in the file");

static const char *const dtype_names[QD_DTYPE_COUNT] = {
    [QD_F32] = "F32", [QD_F16] = "F16", [QD_BF16] = "BF16", [QD_F64] = "F64", [QD_I64] = "I64",
    [QD_I32] = "I32", [QD_I16] = "I16", [QD_I8] = "I8",     [QD_U8] = "U8",   [QD_BOOL] = "BOOL",
};

/* A mapped file with as many owners as tensors point into it. */
typedef struct shared_map {
    qd_map map;
    atomic_int refs;
} shared_map;

/* Where the bytes come from. map NULL: they are borrowed and outlive the tensors. */
typedef struct source {
    const uint8_t *data;
    size_t size;
    shared_map *map;
    qd_budget *budget;
} source;

typedef struct entry {
    const char *name;
    qd_dtype dtype;
    qd_shape shape;
    uint64_t begin, end; // bytes from the start of the data
} entry;

const char *qd_safetensors_dtype(qd_dtype t)
{
    return (unsigned)t < QD_DTYPE_COUNT ? dtype_names[t] : NULL;
}

static void map_unref(void *owner)
{
    shared_map *m = owner;

    if (m && atomic_fetch_sub(&m->refs, 1) == 1) {
        qd_map_close(&m->map);
        qd_free(m);
    }
}

/* A tensor that points into a mapped file. */
typedef struct mapped {
    shared_map *map;
    const uint8_t *data;
    size_t bytes;
} mapped;

/* Its pages need not stay in memory for the sake of others of the file; whoever shares one at an end reads it again. */
static void mapped_release(void *owner)
{
    mapped *t = owner;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t from = ((uintptr_t)t->data + page - 1) & ~(page - 1),
                    to = ((uintptr_t)t->data + t->bytes) & ~(page - 1);
    if (to > from)
        madvise((void *)from, to - from, MADV_DONTNEED);
    map_unref(t->map);
    qd_free(t);
}

/* --- one entry of the header --- */

static qd_status read_dtype(const json_t *v, entry *e, qd_err *err)
{
    const char *name = json_string_value(v);

    if (!name)
        return qd_fail(err, QD_E_FORMAT, "tensor '%.200s': dtype is missing or not a string", e->name);
    for (int k = 0; k < QD_DTYPE_COUNT; k++)
        if (dtype_names[k] && strcmp(dtype_names[k], name) == 0) {
            e->dtype = (qd_dtype)k;
            return QD_OK;
        }
    return qd_fail(err, QD_E_UNSUPPORTED,
                   "tensor '%.200s' has dtype '%.40s'; known are F32, F16, BF16, F64, I64, I32, I16, I8, U8, BOOL",
                   e->name, name);
}

static qd_status read_shape(const json_t *v, entry *e, qd_err *err)
{
    if (!json_is_array(v))
        return qd_fail(err, QD_E_FORMAT, "tensor '%.200s': shape is missing or not an array", e->name);
    if (json_array_size(v) > QD_MAX_RANK)
        return qd_fail(err, QD_E_LIMIT, "tensor '%.200s' has %zu dimensions, the limit is %d", e->name,
                       json_array_size(v), QD_MAX_RANK);
    e->shape.rank = (int)json_array_size(v);
    for (int k = 0; k < e->shape.rank; k++) {
        const json_t *d = json_array_get(v, (size_t)k);

        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return qd_fail(err, QD_E_FORMAT, "tensor '%.200s': dimension %d is not a whole number >= 0", e->name, k);
        e->shape.dim[k] = json_integer_value(d);
    }
    return QD_OK;
}

static qd_status read_offsets(const json_t *v, uint64_t data_bytes, entry *e, qd_err *err)
{
    const json_t *b = json_array_get(v, 0), *n = json_array_get(v, 1);
    qd_err inner = { 0 };
    int64_t count;
    size_t bytes;

    if (json_array_size(v) != 2 || !json_is_integer(b) || !json_is_integer(n) || json_integer_value(b) < 0 ||
        json_integer_value(n) < json_integer_value(b))
        return qd_fail(err, QD_E_FORMAT,
                       "tensor '%.200s': data_offsets must be [begin, end], whole numbers with 0 <= begin <= end",
                       e->name);
    e->begin = (uint64_t)json_integer_value(b);
    e->end = (uint64_t)json_integer_value(n);
    if (e->end > data_bytes)
        return qd_fail(err, QD_E_FORMAT, "tensor '%.200s' ends at byte %llu, the data has %llu", e->name,
                       (unsigned long long)e->end, (unsigned long long)data_bytes);
    if (qd_shape_count(&e->shape, &count, &inner) || !qd_mul_size((size_t)count, qd_dtype_bits(e->dtype) / 8, &bytes))
        return qd_fail(err, QD_E_LIMIT, "tensor '%.200s': the product of its shape does not fit in 63 bits", e->name);
    if (bytes != e->end - e->begin) {
        char shape[128];

        return qd_fail(err, QD_E_FORMAT, "tensor '%.200s' %s %s takes %zu bytes, data_offsets [%llu, %llu] give %llu",
                       e->name, dtype_names[e->dtype], qd_shape_text(&e->shape, shape, sizeof(shape)), bytes,
                       (unsigned long long)e->begin, (unsigned long long)e->end,
                       (unsigned long long)(e->end - e->begin));
    }
    return QD_OK;
}

static qd_status read_entry(const char *name, const json_t *v, uint64_t data_bytes, entry *e, qd_err *err)
{
    const char *key;
    json_t *item;
    qd_status st;

    *e = (entry){ .name = name };
    if (!*name || strlen(name) > QD_SAFETENSORS_NAME_MAX)
        return qd_fail(err, QD_E_LIMIT, "tensor '%.80s': a name must have 1..%u bytes, this one has %zu", name,
                       QD_SAFETENSORS_NAME_MAX, strlen(name));
    if (!json_is_object(v))
        return qd_fail(err, QD_E_FORMAT, "tensor '%.200s': its entry is not an object", name);
    json_object_foreach((json_t *)(uintptr_t)v, key,
                        item) if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 &&
                                  strcmp(key, "data_offsets") !=
                                      0) return qd_fail(err, QD_E_FORMAT,
                                                        "tensor '%.200s': unknown key '%.80s' in its entry", name, key);
    st = read_dtype(json_object_get(v, "dtype"), e, err);
    if (!st)
        st = read_shape(json_object_get(v, "shape"), e, err);
    if (!st)
        st = read_offsets(json_object_get(v, "data_offsets"), data_bytes, e, err);
    return st;
}

static qd_status read_metadata(const json_t *v, qd_meta *meta, qd_err *err)
{
    const char *key;
    json_t *item;

    if (!json_is_object(v))
        return qd_fail(err, QD_E_FORMAT, "%s is not an object", QD_SAFETENSORS_METADATA);
    json_object_foreach((json_t *)(uintptr_t)v, key, item)
    {
        qd_status st;

        if (!json_is_string(item))
            return qd_fail(err, QD_E_FORMAT, "%s: the value of '%.200s' is not a string", QD_SAFETENSORS_METADATA, key);
        st = qd_meta_set(meta, key, json_string_value(item), err);
        if (st)
            return st;
    }
    return QD_OK;
}

/* --- all of them together --- */

static int by_offset(const void *a, const void *b)
{
    const entry *x = *(const entry *const *)a, *y = *(const entry *const *)b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* In order of offsets every tensor must begin where the one before ended, and the last must end with the file. */
static qd_status check_cover(const entry *entries, size_t n, uint64_t data_bytes, qd_err *err)
{
    const entry **sorted = qd_alloc(n * sizeof(*sorted));
    uint64_t at = 0;
    qd_status st = QD_OK;

    if (!sorted)
        return qd_fail(err, QD_E_NOMEM, "out of memory for %zu tensors", n);
    for (size_t k = 0; k < n; k++)
        sorted[k] = &entries[k];
    qsort(sorted, n, sizeof(*sorted), by_offset);
    for (size_t k = 0; k < n; k++) {
        const entry *e = sorted[k];

        if (e->begin < at) {
            st = qd_fail(err, QD_E_FORMAT, "tensor '%.150s' begins at byte %llu, inside '%.150s' which ends at %llu",
                         e->name, (unsigned long long)e->begin, sorted[k - 1]->name, (unsigned long long)at);
            goto out;
        }
        if (e->begin > at) {
            st = qd_fail(err, QD_E_FORMAT, "bytes %llu to %llu before tensor '%.200s' belong to no tensor",
                         (unsigned long long)at, (unsigned long long)e->begin, e->name);
            goto out;
        }
        at = e->end;
    }
    if (at != data_bytes)
        st = qd_fail(err, QD_E_FORMAT, "the tensors end at byte %llu, but the data has %llu bytes",
                     (unsigned long long)at, (unsigned long long)data_bytes);
out:
    qd_free(sorted);
    return st;
}

/* A view of the file, or a copy where the element type would lie across its alignment. */
static qd_status make_tensor(const source *s, const uint8_t *data, const entry *e, qd_tensor *t, qd_err *err)
{
    const size_t element = qd_dtype_bits(e->dtype) / 8, bytes = e->end - e->begin;
    const uint8_t *p = data + e->begin;
    qd_status st;

    if (e->dtype == QD_BOOL)
        for (size_t k = 0; k < bytes; k++)
            if (p[k] > 1)
                return qd_fail(err, QD_E_FORMAT, "tensor '%.200s': element %zu of a BOOL tensor is %u", e->name, k,
                               p[k]);
    if ((uintptr_t)p % element != 0) {
        st = qd_tensor_init(t, e->dtype, &e->shape, s->budget, err);
        if (st)
            return st;
        memcpy(t->data, p, bytes);
        return QD_OK;
    }
    if (!s->map)
        return qd_tensor_wrap(t, e->dtype, &e->shape, p, NULL, NULL, err);
    mapped *owner = qd_alloc(sizeof(*owner));
    if (!owner)
        return qd_fail(err, QD_E_NOMEM, "out of memory for tensor '%.200s'", e->name);
    *owner = (mapped){ .map = s->map, .data = p, .bytes = bytes };
    atomic_fetch_add(&s->map->refs, 1);
    st = qd_tensor_wrap(t, e->dtype, &e->shape, p, owner, mapped_release, err);
    if (st)
        mapped_release(owner);
    return st;
}

static qd_status read_file(const source *s, qd_weights **out, qd_meta *meta, qd_err *err)
{
    qd_reader r;
    uint64_t header_bytes, data_bytes;
    const char *header, *name;
    json_t *root = NULL, *v;
    entry *entries = NULL;
    size_t n = 0;
    qd_weights *w = NULL;
    qd_meta *m = NULL;
    qd_status st;

    qd_reader_init(&r, s->data, s->size);
    header_bytes = qd_read_u64le(&r);
    if (r.failed)
        return qd_fail(err, QD_E_FORMAT, "%zu bytes are too few for the 8-byte length of the header", s->size);
    if (header_bytes > QD_SAFETENSORS_HEADER_MAX)
        return qd_fail(err, QD_E_LIMIT, "the header claims %llu bytes, the limit is %u",
                       (unsigned long long)header_bytes, QD_SAFETENSORS_HEADER_MAX);
    header = (const char *)qd_read_bytes(&r, header_bytes);
    if (!header)
        return qd_fail(err, QD_E_FORMAT, "the header ends at byte %llu, the file has %zu",
                       (unsigned long long)header_bytes + 8, s->size);
    data_bytes = qd_reader_left(&r);
    if (header_bytes == 0 || header[0] != '{')
        return qd_fail(err, QD_E_FORMAT, "the header does not begin with '{'");

    st = qd_json_load(header, header_bytes, "header", HEADER_MAX_DEPTH, HEADER_MAX_VALUES, &root, err);
    if (st)
        goto out;
    entries = qd_calloc(json_object_size(root), sizeof(*entries));
    if (!entries) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory for %zu tensors", json_object_size(root));
        goto out;
    }
    st = qd_meta_new(&m, err);
    if (!st)
        st = qd_weights_new(&w, err);
    if (!st && meta)
        st = qd_meta_copy(m, meta, err);
    if (st)
        goto out;
    json_object_foreach(root, name, v)
    {
        if (strcmp(name, QD_SAFETENSORS_METADATA) == 0)
            st = read_metadata(v, m, err);
        else
            st = read_entry(name, v, data_bytes, &entries[n++], err);
        if (st)
            goto out;
    }
    st = check_cover(entries, n, data_bytes, err);
    if (st)
        goto out;
    for (size_t k = 0; k < n; k++) {
        qd_tensor t = { 0 };

        st = make_tensor(s, s->data + 8 + header_bytes, &entries[k], &t, err);
        if (!st)
            st = qd_weights_add(w, entries[k].name, &t, err);
        qd_tensor_clear(&t);
        if (st)
            goto out;
    }
    if (meta)
        qd_meta_swap(m, meta);
    *out = w;
    w = NULL;
out:
    qd_weights_free(w);
    qd_meta_free(m);
    qd_free(entries);
    json_decref(root);
    return st;
}

/* --- the face --- */

qd_status qd_safetensors_parse(const void *data, size_t size, qd_weights **out, qd_meta *meta, qd_err *err)
{
    const source s = { .data = data, .size = size };
    return read_file(&s, out, meta, err);
}

qd_status qd_safetensors_load(const char *path, qd_budget *budget, qd_weights **out, qd_meta *meta,
                              uint64_t *file_bytes, qd_err *err)
{
    source s = { .budget = budget };
    qd_status st;

    s.map = qd_calloc(1, sizeof(*s.map));
    if (!s.map)
        return qd_fail(err, QD_E_NOMEM, "out of memory");
    atomic_init(&s.map->refs, 1);
    st = qd_map_open(&s.map->map, path, err);
    if (st) {
        qd_free(s.map);
        return st;
    }
    s.data = s.map->map.data;
    s.size = s.map->map.size;
    st = read_file(&s, out, meta, err);
    if (st)
        qd_fail_in(err, st, "%.100s", qd_base_name(path));
    else if (file_bytes)
        *file_bytes = s.size;
    map_unref(s.map); /* the tensors keep theirs */
    return st;
}

qd_status qd_safetensors_open(const char *path, qd_weights **out, qd_meta *meta, qd_err *err)
{
    return qd_safetensors_load(path, NULL, out, meta, NULL, err);
}

/* The header of a file that looks right so far; empty otherwise. */
static const char *sniff_header(const qd_map *m, size_t *bytes)
{
    qd_reader r;
    uint64_t n;
    const uint8_t *header;

    *bytes = 0;
    qd_reader_init(&r, m->data, m->size);
    n = qd_read_u64le(&r);
    if (r.failed || n == 0 || n > QD_SAFETENSORS_HEADER_MAX)
        return NULL;
    header = qd_read_bytes(&r, n);
    if (!header || header[0] != '{')
        return NULL;
    *bytes = n;
    return (const char *)header;
}

bool qd_safetensors_header_has(const char *path, const char *text)
{
    qd_map m = { 0 };
    const char *header;
    size_t bytes;
    bool found;

    if (qd_map_open(&m, path, NULL))
        return false;
    header = sniff_header(&m, &bytes);
    found = header && (!text || memmem(header, bytes, text, strlen(text)));
    qd_map_close(&m);
    return found;
}

bool qd_safetensors_sniff(const char *path)
{
    return qd_safetensors_header_has(path, NULL);
}
