/* torch.c - checkpoints of PyTorch (.pt, .pth, .ckpt, .bin): the zip archive since 1.6 and the stream of pickles before it.
 *
 * Archive = <name>/data.pkl, which names storages by key, <name>/data/<key> for each, <name>/byteorder since 2.1.
 * Stream = four pickles (magic number, protocol 1001, the writer's machine, the object), one that lists the keys of storages, then
 * for each key u64 elements and their bytes.
 *
 * Tensors point into the mapped file where they lie there as they should; several of one storage share it. */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "model/pickle_int.h"

/* Copies a file may ask for (turned or repeated tensors, bytes off their alignment): as much as it has itself, and this. */
#define COPY_SLACK_BYTES ((uint64_t)16 << 20)
#define STREAM_PROTOCOL 1001
#define HEAD_BYTES 24

/* A mapped file with as many owners as storages point into it. */
typedef struct shared_map {
    qd_map map;
    atomic_int refs;
} shared_map;

typedef struct torch_file {
    const uint8_t *data;
    size_t size;
    shared_map *map; /* NULL: the bytes are borrowed and outlive the tensors */
    qd_budget *budget;
    uint64_t copy_left_bytes;
    bool zipped;
    qd_torch_zip zip;
    qd_pickle pickle;
    qd_pickle_value root;
    size_t stream_at; // bytes of the stream read so far
} torch_file;

static void map_unref(void *owner)
{
    shared_map *m = owner;
    if (m && atomic_fetch_sub(&m->refs, 1) == 1) {
        qd_map_close(&m->map);
        qd_free(m);
    }
}

/* --- storages --- */

static qd_status draw_copy(torch_file *f, uint64_t n, qd_err *err)
{
    if (n > f->copy_left_bytes)
        return qd_fail(err, QD_E_LIMIT, "its tensors, laid out plainly, take far more than the %zu bytes of the file",
                       f->size);
    f->copy_left_bytes -= n;
    return QD_OK;
}

/* The storage's bytes as one tensor that all its tensors share: in the file, or a copy where they lie across their alignment. */
static qd_status open_storage(torch_file *f, qd_pickle_storage *s, const uint8_t *data, uint64_t n, qd_err *err)
{
    const size_t element = s->untyped ? sizeof(int64_t) : qd_dtype_bits(s->dtype) / 8;
    const uint64_t want = (uint64_t)s->count * (qd_dtype_bits(s->dtype) / 8); /* checked when it was named */
    const qd_shape shape = QD_SHAPE((int64_t)want);
    qd_status st;
    if (n != want)
        return qd_fail(err, QD_E_FORMAT, "storage '%.80s' has %llu bytes in the file; %lld elements of %s take %llu",
                       s->key, (unsigned long long)n, (long long)s->count, qd_dtype_name(s->dtype),
                       (unsigned long long)want);
    if (s->dtype == QD_BOOL)
        for (uint64_t k = 0; k < n; k++)
            if (data[k] > 1)
                return qd_fail(err, QD_E_FORMAT, "storage '%.80s': element %llu of booleans is %u", s->key,
                               (unsigned long long)k, data[k]);
    if ((uintptr_t)data % element || s->memory) {
        st = draw_copy(f, n, err);
        if (!st)
            st = qd_tensor_init(&s->bytes, QD_U8, &shape, f->budget, err);
        if (!st && n)
            memcpy(s->bytes.data, data, n);
        return st;
    }
    if (!f->map)
        return qd_tensor_wrap(&s->bytes, QD_U8, &shape, data, NULL, NULL, err);
    atomic_fetch_add(&f->map->refs, 1);
    st = qd_tensor_wrap(&s->bytes, QD_U8, &shape, data, f->map, map_unref, err);
    if (st)
        map_unref(f->map);
    return st;
}

static qd_status need_storage(torch_file *f, qd_pickle_storage *s, qd_err *err)
{
    char name[96];
    const qd_torch_entry *e;
    if (s->bytes.storage)
        return QD_OK;
    if (s->memory)
        return open_storage(f, s, s->memory, (uint64_t)s->count * (qd_dtype_bits(s->dtype) / 8), err);
    if (!f->zipped)
        return qd_fail(err, QD_E_FORMAT, "storage '%.80s' is not among those the file lists", s->key);
    snprintf(name, sizeof(name), "data/%s", s->key);
    const qd_status st = qd_torch_zip_get(&f->zip, name, &e, err);
    return st ? st : open_storage(f, s, e->data, e->size, err);
}

/* --- tensors --- */

static void drop_share(void *owner)
{
    qd_tensor_clear(owner);
    qd_free(owner);
}

/* The part of the storage where the tensor lies. */
static qd_status view_of(const qd_pickle_tensor *t, const uint8_t *first, qd_tensor *out, qd_err *err)
{
    qd_tensor *share = qd_calloc(1, sizeof(*share));
    if (!share)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a tensor");
    qd_tensor_share(share, &t->storage->bytes);
    const qd_status st = qd_tensor_wrap(out, t->dtype, &t->shape, first, share, drop_share, err);
    if (st)
        drop_share(share);
    return st;
}

static bool is_plain(const qd_pickle_tensor *t)
{
    int64_t step = 1;
    for (int k = t->shape.rank - 1; k >= 0; k--) {
        if (t->shape.dim[k] != 1 && t->stride[k] != step)
            return false;
        step *= t->shape.dim[k];
    }
    return true;
}

/* Element by element in the order of dst; every place was checked against the storage. */
static void gather(uint8_t *dst, const uint8_t *first, const qd_pickle_tensor *t, size_t element, int64_t count)
{
    int64_t index[QD_MAX_RANK] = { 0 }, at = 0;
    for (int64_t k = 0; k < count; k++) {
        memcpy(dst + (size_t)k * element, first + (size_t)at * element, element);
        for (int axis = t->shape.rank - 1; axis >= 0; axis--) {
            at += t->stride[axis];
            if (++index[axis] < t->shape.dim[axis])
                break;
            at -= t->stride[axis] * t->shape.dim[axis];
            index[axis] = 0;
        }
    }
}

static qd_status make_tensor(torch_file *f, const qd_pickle_tensor *t, qd_tensor *out, qd_err *err)
{
    const size_t element = qd_dtype_bits(t->dtype) / 8;
    int64_t count;
    size_t bytes;
    qd_status st = need_storage(f, t->storage, err);
    if (!st)
        st = qd_shape_count(&t->shape, &count, err);
    if (st)
        return st;
    const uint8_t *first = (const uint8_t *)t->storage->bytes.data + (size_t)t->offset * element;
    if (count == 0 || is_plain(t))
        return view_of(t, count ? first : t->storage->bytes.data, out, err);
    if (!qd_mul_size((size_t)count, element, &bytes))
        return qd_fail(err, QD_E_LIMIT, "the bytes of its shape do not fit in 64 bits");
    st = draw_copy(f, bytes, err);
    if (!st)
        st = qd_tensor_init(out, t->dtype, &t->shape, f->budget, err);
    if (!st)
        gather(out->data, first, t, element, count);
    return st;
}

static qd_status make_weights(torch_file *f, const qd_pickle_pick *pick, qd_weights **out, qd_err *err)
{
    const size_t skip = strlen(pick->prefix);
    qd_weights *w = NULL;
    qd_status st = qd_weights_new(&w, err);
    for (uint32_t k = 0; k < pick->dict->n && !st; k += 2) {
        const qd_pickle_value *key = &pick->dict->at[k], *value = &pick->dict->at[k + 1];
        char name[QD_SAFETENSORS_NAME_MAX + 1];
        qd_tensor t = { 0 };
        if (key->kind != QD_PICKLE_TEXT || value->kind != QD_PICKLE_TENSOR)
            continue; /* counters and settings beside the weights */
        const size_t n = key->size - skip;
        if (n == 0 || n >= sizeof(name) || memchr(key->text, 0, key->size)) {
            st = qd_fail(err, QD_E_FORMAT, "tensor %u: a name must have 1..%u bytes without NUL", k / 2,
                         QD_SAFETENSORS_NAME_MAX);
            break;
        }
        memcpy(name, key->text + skip, n);
        name[n] = '\0';
        if (!qd_utf8_valid(name))
            st = qd_fail(err, QD_E_FORMAT, "tensor %u: its name is not UTF-8", k / 2);
        else if (!value->tensor->storage)
            st = qd_fail(err, QD_E_FORMAT, "tensor '%.200s': a numpy array without its bytes", name);
        else
            st = make_tensor(f, value->tensor, &t, err);
        if (st)
            st = qd_fail_in(err, st, "tensor '%.200s'", name);
        else
            st = qd_weights_add(w, name, &t, err);
        qd_tensor_clear(&t);
    }
    if (st)
        qd_weights_free(w);
    else
        *out = w;
    return st;
}

/* --- the archive --- */

static qd_status read_archive(torch_file *f, qd_err *err)
{
    const qd_torch_entry *e;
    size_t used;
    qd_status st = qd_torch_zip_open(f->data, f->size, &f->zip, err);
    if (st)
        return st;
    if (qd_names_find(&f->zip.names, "constants.pkl") >= 0)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "the file is a TorchScript program, not a checkpoint; save the state_dict() of its module");
    if (qd_names_find(&f->zip.names, "byteorder") >= 0) {
        st = qd_torch_zip_get(&f->zip, "byteorder", &e, err);
        if (st)
            return st;
        if (e->size != 6 || memcmp(e->data, "little", 6) != 0)
            return qd_fail(err, QD_E_UNSUPPORTED, "the checkpoint was written with the highest byte first");
    }
    st = qd_torch_zip_get(&f->zip, "data.pkl", &e, err);
    if (!st)
        st = qd_pickle_run(&f->pickle, e->data, e->size, &used, &f->root, err);
    if (!st && used != e->size)
        st = qd_fail(err, QD_E_FORMAT, "data.pkl goes on after its end at byte %zu of %llu", used,
                     (unsigned long long)e->size);
    return st;
}

/* --- the stream --- */

/* The first pickle of a stream, with or without a frame: a number of ten bytes. */
static bool starts_stream(const uint8_t *data, size_t size)
{
    static const uint8_t number[] = { 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19 };
    const size_t look = size < HEAD_BYTES ? size : HEAD_BYTES;
    return size > 2 && data[0] == 0x80 && memmem(data, look, number, sizeof(number));
}

static qd_status next_pickle(torch_file *f, const char *what, qd_pickle_value *out, qd_err *err)
{
    size_t used;
    const qd_status st = qd_pickle_run(&f->pickle, f->data + f->stream_at, f->size - f->stream_at, &used, out, err);
    if (st)
        return qd_fail_in(err, st, "%s at byte %zu of the file", what, f->stream_at);
    f->stream_at += used;
    return QD_OK;
}

static const qd_pickle_value *dict_get(const qd_pickle_value *dict, const char *key)
{
    for (uint32_t k = 0; dict->kind == QD_PICKLE_DICT && k < dict->items->n; k += 2)
        if (qd_pickle_is(&dict->items->at[k], key))
            return &dict->items->at[k + 1];
    return NULL;
}

static qd_status read_stream_storages(torch_file *f, const qd_pickle_value *keys, qd_err *err)
{
    if (keys->kind != QD_PICKLE_LIST)
        return qd_fail(err, QD_E_FORMAT, "the list of storages is no list");
    for (uint32_t k = 0; k < keys->items->n; k++) {
        const qd_pickle_value *key = &keys->items->at[k];
        char name[64];
        qd_reader r;
        if (key->kind != QD_PICKLE_TEXT || key->size >= sizeof(name))
            return qd_fail(err, QD_E_FORMAT, "the list of storages: entry %u is no key", k);
        memcpy(name, key->text, key->size);
        name[key->size] = '\0';
        const int index = strlen(name) == key->size ? qd_names_find(&f->pickle.keys, name) : -1;
        if (index < 0)
            return qd_fail(err, QD_E_FORMAT, "the list of storages: no tensor uses entry %u", k);
        qd_pickle_storage *s = f->pickle.storage[index];
        if (s->bytes.storage)
            return qd_fail(err, QD_E_FORMAT, "storage '%.80s' is listed twice", s->key);
        qd_reader_init(&r, f->data + f->stream_at, f->size - f->stream_at);
        const uint64_t count = qd_read_u64le(&r);
        if (r.failed || count != (uint64_t)s->count)
            return qd_fail(err, QD_E_FORMAT, "storage '%.80s' at byte %zu says %llu elements, its tensors %lld", s->key,
                           f->stream_at, (unsigned long long)count, (long long)s->count);
        const uint64_t bytes = count * (qd_dtype_bits(s->dtype) / 8); /* checked when it was named */
        const uint8_t *data = qd_read_bytes(&r, bytes);
        if (r.failed)
            return qd_fail(err, QD_E_FORMAT, "storage '%.80s' has %llu bytes at byte %zu, the file %zu", s->key,
                           (unsigned long long)bytes, f->stream_at, f->size);
        const qd_status st = open_storage(f, s, data, bytes, err);
        if (st)
            return st;
        f->stream_at += r.pos;
    }
    return QD_OK;
}

static qd_status read_stream(torch_file *f, qd_err *err)
{
    qd_pickle_value magic, protocol, machine, keys;
    qd_status st = next_pickle(f, "the magic number", &magic, err);
    if (!st)
        st = next_pickle(f, "the protocol", &protocol, err);
    if (!st && (protocol.kind != QD_PICKLE_INT || protocol.i != STREAM_PROTOCOL))
        st = qd_fail(err, QD_E_UNSUPPORTED, "the stream's protocol is not %d", STREAM_PROTOCOL);
    if (!st)
        st = next_pickle(f, "the writer's machine", &machine, err);
    if (st)
        return st;
    const qd_pickle_value *little = dict_get(&machine, "little_endian");
    if (little && !(little->kind == QD_PICKLE_BOOL && little->i))
        return qd_fail(err, QD_E_UNSUPPORTED, "the checkpoint was written with the highest byte first");
    st = next_pickle(f, "the checkpoint", &f->root, err);
    if (!st)
        st = next_pickle(f, "the list of storages", &keys, err);
    if (!st)
        st = read_stream_storages(f, &keys, err);
    if (!st && f->stream_at != f->size)
        st = qd_fail(err, QD_E_FORMAT, "the storages end at byte %zu, the file has %zu", f->stream_at, f->size);
    return st;
}

/* --- the face --- */

static qd_status tell(const torch_file *f, const qd_pickle_pick *pick, qd_meta *meta, qd_err *err)
{
    qd_status st = qd_meta_set(meta, QD_TORCH_LAYOUT, f->zipped ? "zip" : "stream", err);
    if (!st)
        st = qd_meta_set(meta, QD_TORCH_CHOSEN, pick->path, err);
    if (!st && *pick->prefix)
        st = qd_meta_set(meta, QD_TORCH_PREFIX, pick->prefix, err);
    if (!st && *pick->beside)
        st = qd_meta_set(meta, QD_TORCH_BESIDE, pick->beside, err);
    return st;
}

static qd_status read_file(torch_file *f, qd_weights **out, qd_meta *meta, qd_err *err)
{
    qd_pickle_pick pick;
    qd_weights *w = NULL;
    qd_status st;
    f->copy_left_bytes = f->size + COPY_SLACK_BYTES;
    f->zipped = qd_torch_zip_sniff(f->data, f->size);
    qd_pickle_init(&f->pickle);
    if (f->zipped)
        st = read_archive(f, err);
    else if (starts_stream(f->data, f->size))
        st = read_stream(f, err);
    else
        st = qd_fail(err, QD_E_FORMAT, "neither an archive nor a stream of PyTorch");
    if (!st)
        st = qd_pickle_choose(&f->root, &pick, err);
    if (!st)
        st = make_weights(f, &pick, &w, err);
    if (!st && meta)
        st = tell(f, &pick, meta, err);
    if (st)
        qd_weights_free(w);
    else
        *out = w;
    qd_torch_zip_clear(&f->zip);
    qd_pickle_clear(&f->pickle);
    return st;
}

qd_status qd_torch_parse(const void *data, size_t size, qd_budget *budget, qd_weights **out, qd_meta *meta, qd_err *err)
{
    torch_file f = { .data = data, .size = size, .budget = budget };
    return read_file(&f, out, meta, err);
}

qd_status qd_torch_open(const char *path, qd_budget *budget, qd_weights **out, qd_meta *meta, uint64_t *file_bytes,
                        qd_err *err)
{
    torch_file f = { .budget = budget };
    qd_status st;
    f.map = qd_calloc(1, sizeof(*f.map));
    if (!f.map)
        return qd_fail(err, QD_E_NOMEM, "out of memory");
    atomic_init(&f.map->refs, 1);
    st = qd_map_open(&f.map->map, path, err);
    if (st) {
        qd_free(f.map);
        return st;
    }
    f.data = f.map->map.data;
    f.size = f.map->map.size;
    st = read_file(&f, out, meta, err);
    if (st)
        qd_fail_in(err, st, "%.100s", qd_base_name(path));
    else if (file_bytes)
        *file_bytes = f.size;
    map_unref(f.map); /* the storages keep theirs */
    return st;
}

bool qd_torch_sniff(const char *path)
{
    qd_map m = { 0 };
    if (qd_fs_is_dir(path) || qd_map_open(&m, path, NULL))
        return false;
    const bool yes = starts_stream(m.data, m.size) || qd_torch_zip_sniff(m.data, m.size);
    qd_map_close(&m);
    return yes;
}
