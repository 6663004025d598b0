/* safetensors_write.c - weight files of our own: same tensors, same bytes, all or nothing. */
#include "model/model_int.h"

#include <string.h>

#include "base/fs.h"

#define DATA_ALIGN 64u
#define ELEMENT_MAX 8u

/* Data begins by element size, largest first, so that no tensor ever straddles its alignment; the header keeps the caller's
 * order, and readers follow the header. begin: [count] bytes from the start of the data. */
static qd_status lay_out(const qd_weights *w, uint64_t *begin, qd_err *err)
{
    uint64_t at = 0;

    for (size_t element = ELEMENT_MAX; element > 0; element /= 2)
        for (int k = 0; k < qd_weights_count(w); k++) {
            const qd_tensor *t = qd_weights_at(w, k);

            if (qd_dtype_bits(t->dtype) / 8 != element)
                continue;
            begin[k] = at;
            if (__builtin_add_overflow(at, qd_tensor_bytes(t), &at))
                return qd_fail(err, QD_E_LIMIT, "the tensors together have more than 2^64 bytes");
        }
    return QD_OK;
}

static qd_status check_tensor(const char *name, const qd_tensor *t, qd_err *err)
{
    if (!*name || strlen(name) > QD_SAFETENSORS_NAME_MAX || strcmp(name, QD_SAFETENSORS_METADATA) == 0 ||
        !qd_utf8_valid(name))
        return qd_fail(err, QD_E_INVALID, "'%.80s' cannot name a tensor: 1..%u bytes of UTF-8, not %s", name,
                       QD_SAFETENSORS_NAME_MAX, QD_SAFETENSORS_METADATA);
    if (!qd_safetensors_dtype(t->dtype))
        return qd_fail(err, QD_E_UNSUPPORTED, "tensor '%.200s' is %s, which safetensors cannot hold", name,
                       qd_dtype_name(t->dtype));
    return QD_OK;
}

static qd_status add_metadata(const qd_meta *meta, qd_buf *b, qd_err *err)
{
    qd_buf_add_json_string(b, QD_SAFETENSORS_METADATA);
    qd_buf_adds(b, ":{");
    for (int k = 0; k < qd_meta_count(meta); k++) {
        const char *key, *value;

        qd_meta_at(meta, k, &key, &value);
        if (!qd_utf8_valid(key) || !qd_utf8_valid(value))
            return qd_fail(err, QD_E_INVALID, "metadata '%.80s' is not UTF-8", key);
        qd_buf_adds(b, k ? "," : "");
        qd_buf_add_json_string(b, key);
        qd_buf_adds(b, ":");
        qd_buf_add_json_string(b, value);
    }
    qd_buf_adds(b, "}");
    return QD_OK;
}

static void add_tensor(const char *name, const qd_tensor *t, uint64_t begin, qd_buf *b)
{
    qd_buf_add_json_string(b, name);
    qd_buf_addf(b, ":{\"dtype\":\"%s\",\"shape\":[", qd_safetensors_dtype(t->dtype));
    for (int k = 0; k < t->shape.rank; k++)
        qd_buf_addf(b, "%s%lld", k ? "," : "", (long long)t->shape.dim[k]);
    qd_buf_addf(b, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                (unsigned long long)(begin + qd_tensor_bytes(t)));
}

/* The whole header with its length in front, padded with spaces so that the data begins at a multiple of DATA_ALIGN. */
static qd_status make_header(const qd_weights *w, const qd_meta *meta, const uint64_t *begin, qd_buf *b, qd_err *err)
{
    uint8_t length[8] = { 0 };
    const bool with_meta = meta && qd_meta_count(meta) > 0;
    qd_status st;

    qd_buf_add(b, length, sizeof(length));
    qd_buf_adds(b, "{");
    if (with_meta) {
        st = add_metadata(meta, b, err);
        if (st)
            return st;
    }
    for (int k = 0; k < qd_weights_count(w); k++) {
        st = check_tensor(qd_weights_name(w, k), qd_weights_at(w, k), err);
        if (st)
            return st;
        qd_buf_adds(b, k || with_meta ? "," : "");
        add_tensor(qd_weights_name(w, k), qd_weights_at(w, k), begin[k], b);
    }
    qd_buf_adds(b, "}");
    while (!b->failed && b->size % DATA_ALIGN != 0)
        qd_buf_adds(b, " ");
    if (b->failed)
        return qd_fail(err, QD_E_NOMEM, "out of memory for the header of %d tensors", qd_weights_count(w));
    if (b->size - sizeof(length) > QD_SAFETENSORS_HEADER_MAX)
        return qd_fail(err, QD_E_LIMIT, "the header takes %zu bytes, the limit is %u", b->size - sizeof(length),
                       QD_SAFETENSORS_HEADER_MAX);
    for (size_t k = 0; k < sizeof(length); k++)
        b->data[k] = (char)((uint64_t)(b->size - sizeof(length)) >> (8 * k));
    return QD_OK;
}

qd_status qd_safetensors_save(const char *path, const qd_weights *w, const qd_meta *meta, char *sha256_hex, qd_err *err)
{
    const int n = qd_weights_count(w);
    uint64_t *begin = NULL;
    qd_fs_out *out = NULL;
    qd_buf header;
    qd_status st;

    qd_buf_init(&header, 0);
    begin = qd_calloc((size_t)n, sizeof(*begin));
    if (!begin) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory for %d tensors", n);
        goto out;
    }
    st = lay_out(w, begin, err);
    if (!st)
        st = make_header(w, meta, begin, &header, err);
    if (!st)
        st = qd_fs_out_open(path, &out, err);
    if (!st)
        st = qd_fs_out_add(out, header.data, header.size, err);
    for (size_t element = ELEMENT_MAX; !st && element > 0; element /= 2)
        for (int k = 0; !st && k < n; k++) {
            const qd_tensor *t = qd_weights_at(w, k);

            if (qd_dtype_bits(t->dtype) / 8 == element && qd_tensor_bytes(t) > 0)
                st = qd_fs_out_add(out, t->data, qd_tensor_bytes(t), err);
        }
    if (st)
        goto out;
    st = qd_fs_out_commit(out, NULL, sha256_hex, err);
    out = NULL; /* commit frees it, whatever it returns */
out:
    qd_fs_out_abandon(out);
    qd_buf_clear(&header);
    qd_free(begin);
    return st;
}
