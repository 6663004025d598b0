/* gguf.c - GGUF version 3 with weights in blocks of 32: Q8_0 and Q4_0 as ggml defines them.
 *
 * File = "GGUF", u32 version, u64 tensors, u64 pairs, the pairs, the tensors' descriptions, zeros to a multiple of 32, data of each
 * tensor from a multiple of 32 on. Everything little-endian; dims innermost first. A block is an f16 step d and 32 values: Q8_0 q * d in
 * 32 bytes; Q4_0 (q - 8) * d in 16, byte j holding value j low and value j + 16 high.
 *
 * Weights of convolutions and linears whose rows (an output channel each) divide into blocks lie as [outputs, rest of a row]; the pair
 * "quantd.shape.<name>" keeps the shape they had. Everything else is F32 in its own shape. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "model/export.h"

#define MAGIC 0x46554747u /* "GGUF" */
#define SHAPE_KEY "quantd.shape."
#define MAX_TENSORS 100000u
#define MAX_PAIRS 200000u
#define MAX_NAME 1024u
enum { VERSION = 3, ALIGN = 32, BLOCK = 32 };
enum { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_Q4_0 = 2, TYPE_Q8_0 = 8 };         /* ggml_type */
enum { VALUE_U32 = 4, VALUE_STRING = 8, VALUE_ARRAY = 9, VALUE_U64 = 10 }; /* gguf_type */

static size_t data_bytes(uint32_t type, uint64_t count)
{
    switch (type) {
    case TYPE_Q4_0:
        return count / BLOCK * (2 + BLOCK / 2);
    case TYPE_Q8_0:
        return count / BLOCK * (2 + BLOCK);
    case TYPE_F16:
        return count * 2;
    default:
        return count * 4;
    }
}

/* --- writing --- */

static void add_u32(qd_buf *b, uint32_t v)
{
    qd_buf_add(b, &v, sizeof(v));
}

static void add_u64(qd_buf *b, uint64_t v)
{
    qd_buf_add(b, &v, sizeof(v));
}

static void add_text(qd_buf *b, const char *s)
{
    add_u64(b, strlen(s));
    qd_buf_adds(b, s);
}

static void add_pair(qd_buf *b, const char *key, const char *value)
{
    add_text(b, key);
    add_u32(b, VALUE_STRING);
    add_text(b, value);
}

/* The step of a block: what its codes were made with where they are codes of at most `most` (kept then), else by its largest value. */
static float block_step(const float *x, const float *steps, int most)
{
    float top = 0.0f, signed_top = 0.0f;
    bool kept = steps != NULL;
    for (int k = 0; k < BLOCK; k++) {
        if (fabsf(x[k]) > top) {
            top = fabsf(x[k]);
            signed_top = x[k];
        }
        kept = kept && steps[k] == steps[0] && fabsf(x[k]) <= steps[k] * ((float)most + 1.5f);
    }
    if (kept)
        return steps[0];
    return most == 7 ? signed_top / -8.0f : top / 127.0f; /* as ggml: -8 is the code of the largest */
}

static void encode_block(uint8_t *dst, const float *x, const float *steps, uint32_t type)
{
    const int most = type == TYPE_Q4_0 ? 7 : 127;
    const float step = block_step(x, steps, most);
    const uint16_t half = qd_f32_to_f16(step);
    memcpy(dst, &half, 2);
    for (int k = 0; k < BLOCK; k++) {
        const float q = step != 0.0f ? nearbyintf(x[k] / step) : 0.0f;
        const int code = (int)fminf(fmaxf(q, (float)(-most - (type == TYPE_Q4_0))), (float)most);
        if (type == TYPE_Q8_0)
            dst[2 + k] = (uint8_t)(int8_t)code;
        else if (k < BLOCK / 2)
            dst[2 + k] = (uint8_t)(code + 8);
        else
            dst[2 + k - BLOCK / 2] |= (uint8_t)((code + 8) << 4);
    }
}

/* In what type tensor k is written, and its shape there. */
static uint32_t type_for(const qd_export_tensor *t, const qd_shape *shape, int bits, const char *wanted)
{
    int64_t row = 1;
    for (int k = 1; k < shape->rank; k++)
        row *= shape->dim[k];
    if (!t->layer || shape->rank < 2 || row % BLOCK)
        return TYPE_F32;
    if (strcmp(wanted, "auto") == 0)
        return bits && bits <= 4 ? TYPE_Q4_0 : TYPE_Q8_0;
    return strcmp(wanted, "q4_0") == 0 ? TYPE_Q4_0 : TYPE_Q8_0;
}

static const qd_shape *shape_of(const qd_export *e, int k, qd_shape *room)
{
    const qd_export_tensor *t = &e->tensor[k];
    const qd_node *n = qd_graph_node(e->graph, t->part[0]);
    if (n->op == &qd_op_const)
        return &n->shape;
    const bool integer = n->op != &qd_op_mul;
    *room = qd_graph_node(e->graph, integer ? n->input[1] : qd_graph_node(e->graph, n->input[0])->input[0])->shape;
    if (t->part[1] >= 0)
        room->dim[1] += qd_graph_node(e->graph, qd_graph_node(e->graph, t->part[1])->input[1])->shape.dim[1];
    return room;
}

static int bits_of(const qd_export *e, int k)
{
    const qd_node *n = qd_graph_node(e->graph, e->tensor[k].part[0]);
    if (n->op == &qd_op_const)
        return 0;
    const qd_node_id codes = n->op != &qd_op_mul ? n->input[1] : qd_graph_node(e->graph, n->input[0])->input[0];
    return (int)qd_dtype_bits(qd_graph_node(e->graph, codes)->dtype);
}

/* Of a shape that was counted before; where it has a 0, the other dims may be anything. */
static int64_t count_of(const qd_shape *s)
{
    int64_t n = 1;
    for (int k = 0; k < s->rank; k++)
        if (s->dim[k] == 0)
            return 0;
    for (int k = 0; k < s->rank; k++)
        n *= s->dim[k];
    return n;
}

static qd_status make_header(const qd_export *e, const qd_meta *meta, const char *type, qd_buf *b, qd_err *err)
{
    qd_buf pairs, infos;
    uint64_t n_pairs = 3, at = 0;
    qd_status st = QD_OK;

    qd_buf_init(&pairs, 0);
    qd_buf_init(&infos, 0);
    add_pair(&pairs, "general.architecture", "quantd");
    add_text(&pairs, "general.alignment");
    add_u32(&pairs, VALUE_U32);
    add_u32(&pairs, ALIGN);
    add_text(&pairs, "general.quantization_version");
    add_u32(&pairs, VALUE_U32);
    add_u32(&pairs, 2);
    for (int k = 0; meta && k < qd_meta_count(meta); k++) {
        const char *key, *value;
        char full[300];
        qd_meta_at(meta, k, &key, &value);
        snprintf(full, sizeof(full), "quantd.meta.%.200s", key);
        add_pair(&pairs, full, value);
        n_pairs++;
    }
    for (int k = 0; k < e->n && !st; k++) {
        qd_shape room;
        const qd_shape *shape = shape_of(e, k, &room);
        const char *name = e->tensor[k].name;
        const uint32_t as = type_for(&e->tensor[k], shape, bits_of(e, k), type);
        const bool flat = as != TYPE_F32 && shape->rank != 2;
        if (!flat && shape->rank > 4)
            st = qd_fail(err, QD_E_UNSUPPORTED, "tensor '%.200s' has %d dimensions, GGUF takes 4", name, shape->rank);
        if (flat) {
            char key[QD_MAX_NAME + 64];
            snprintf(key, sizeof(key), SHAPE_KEY "%s", name);
            add_text(&pairs, key);
            add_u32(&pairs, VALUE_ARRAY);
            add_u32(&pairs, VALUE_U64);
            add_u64(&pairs, (uint64_t)shape->rank);
            for (int j = 0; j < shape->rank; j++)
                add_u64(&pairs, (uint64_t)shape->dim[j]);
            n_pairs++;
        }
        add_text(&infos, name);
        if (flat) {
            add_u32(&infos, 2);
            add_u64(&infos, (uint64_t)(count_of(shape) / shape->dim[0]));
            add_u64(&infos, (uint64_t)shape->dim[0]);
        } else {
            add_u32(&infos, (uint32_t)(shape->rank ? shape->rank : 1));
            for (int j = shape->rank - 1; j >= 0; j--)
                add_u64(&infos, (uint64_t)shape->dim[j]);
            if (!shape->rank)
                add_u64(&infos, 1);
        }
        add_u32(&infos, as);
        add_u64(&infos, at);
        at += (data_bytes(as, (uint64_t)count_of(shape)) + ALIGN - 1) / ALIGN * ALIGN;
    }
    add_u32(b, MAGIC);
    add_u32(b, VERSION);
    add_u64(b, (uint64_t)e->n);
    add_u64(b, n_pairs);
    qd_buf_add(b, pairs.data ? pairs.data : "", pairs.size);
    qd_buf_add(b, infos.data ? infos.data : "", infos.size);
    while (!b->failed && b->size % ALIGN)
        qd_buf_add(b, "", 1);
    if (!st && (b->failed || pairs.failed || infos.failed))
        st = qd_fail(err, QD_E_NOMEM, "out of memory for the header of %d tensors", e->n);
    qd_buf_clear(&pairs);
    qd_buf_clear(&infos);
    return st;
}

static qd_status write_tensor(const qd_export *e, int k, const char *type, qd_budget *budget, qd_fs_out *out,
                              qd_err *err)
{
    static const uint8_t zeros[ALIGN];
    qd_tensor t = { 0 }, floats = { 0 };
    float *steps = NULL;
    uint8_t *blocks = NULL;
    int bits = 0;
    qd_status st = qd_export_make(e, k, budget, &t, &steps, &bits, err);
    if (!st)
        st = qd_tensor_cast(&floats, &t, QD_F32, budget, err);
    if (st)
        goto out;
    const int64_t count = qd_tensor_count(&floats);
    const uint32_t as = type_for(&e->tensor[k], &floats.shape, bits, type);
    const size_t bytes = data_bytes(as, (uint64_t)count);
    const void *data = floats.data;
    if (as != TYPE_F32) {
        const size_t each = data_bytes(as, BLOCK);
        blocks = qd_calloc(bytes, 1);
        if (!blocks) {
            st = qd_fail(err, QD_E_NOMEM, "out of memory for tensor '%s' (%zu bytes)", e->tensor[k].name, bytes);
            goto out;
        }
        for (int64_t j = 0; j < count / BLOCK; j++)
            encode_block(blocks + (size_t)j * each, qd_f32(&floats) + j * BLOCK, steps ? steps + j * BLOCK : NULL, as);
        data = blocks;
    }
    st = qd_fs_out_add(out, data, bytes, err);
    if (!st && bytes % ALIGN)
        st = qd_fs_out_add(out, zeros, ALIGN - bytes % ALIGN, err);
out:
    qd_free(blocks);
    qd_free(steps);
    qd_tensor_clear(&floats);
    qd_tensor_clear(&t);
    return st;
}

qd_status qd_gguf_save(const char *path, const qd_graph *g, const qd_meta *meta, const char *type, qd_budget *budget,
                       char *sha256_hex, qd_err *err)
{
    qd_export e;
    qd_fs_out *out = NULL;
    qd_buf header;
    qd_status st = qd_export_init(&e, g, err);
    if (st)
        return st;
    qd_buf_init(&header, 0);
    st = make_header(&e, meta, type, &header, err);
    if (!st)
        st = qd_fs_out_open(path, &out, err);
    if (!st)
        st = qd_fs_out_add(out, header.data, header.size, err);
    for (int k = 0; k < e.n && !st; k++)
        st = write_tensor(&e, k, type, budget, out, err);
    if (!st) {
        st = qd_fs_out_commit(out, NULL, sha256_hex, err);
        out = NULL; /* commit frees it, whatever it returns */
    }
    qd_fs_out_abandon(out);
    qd_buf_clear(&header);
    qd_export_clear(&e);
    return st;
}

/* --- reading back --- */

typedef struct info {
    char name[MAX_NAME + 1];
    qd_shape shape; /* outermost first */
    uint32_t type;
    uint64_t offset;
} info;

static qd_status short_file(qd_err *err)
{
    return qd_fail(err, QD_E_FORMAT, "the file ends inside its header");
}

static qd_status read_text(qd_reader *r, char text[MAX_NAME + 1], qd_err *err)
{
    const uint64_t n = qd_read_u64le(r);
    if (n > MAX_NAME)
        return qd_fail(err, QD_E_LIMIT, "a name of %llu bytes, the limit is %u", (unsigned long long)n, MAX_NAME);
    const uint8_t *p = qd_read_bytes(r, n);
    if (!p)
        return short_file(err);
    memcpy(text, p, n);
    text[n] = '\0';
    return QD_OK;
}

/* Pairs of the types we write; shapes by tensor name go to `shapes` as text "a,b,c". */
static qd_status read_pair(qd_reader *r, qd_meta *shapes, qd_meta *meta, qd_err *err)
{
    char key[MAX_NAME + 1], text[QD_MAX_RANK * 21 + 1] = "";
    qd_status st = read_text(r, key, err);
    if (st)
        return st;
    const uint32_t type = qd_read_u32le(r);
    if (type == VALUE_U32) {
        const uint32_t v = qd_read_u32le(r);
        if (strcmp(key, "general.alignment") == 0 && v != ALIGN)
            return qd_fail(err, QD_E_UNSUPPORTED, "alignment %u, want %d", v, ALIGN);
        return QD_OK;
    }
    if (type == VALUE_STRING) {
        const uint64_t n = qd_read_u64le(r);
        const uint8_t *p = n <= qd_reader_left(r) ? qd_read_bytes(r, n) : NULL;
        char *value = p ? qd_strndup((const char *)p, n) : NULL;
        if (!p)
            return short_file(err);
        if (!value)
            return qd_fail(err, QD_E_NOMEM, "out of memory for the pair '%.80s'", key);
        st = meta ? qd_meta_set(meta, key, value, err) : QD_OK;
        qd_free(value);
        return st;
    }
    if (type != VALUE_ARRAY || strncmp(key, SHAPE_KEY, strlen(SHAPE_KEY)) != 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "pair '%.80s' has type %u, which we do not write", key, type);
    const uint32_t element = qd_read_u32le(r);
    const uint64_t n = qd_read_u64le(r);
    if (element != VALUE_U64 || n > QD_MAX_RANK)
        return qd_fail(err, QD_E_FORMAT, "pair '%.80s' must be at most %d whole numbers", key, QD_MAX_RANK);
    for (uint64_t k = 0; k < n; k++) {
        const size_t used = strlen(text);
        snprintf(text + used, sizeof(text) - used, "%s%llu", k ? "," : "", (unsigned long long)qd_read_u64le(r));
    }
    return qd_meta_set(shapes, key + strlen(SHAPE_KEY), text, err);
}

static qd_status read_info(qd_reader *r, const qd_meta *shapes, info *t, qd_err *err)
{
    int64_t count, kept = 0;
    qd_status st = read_text(r, t->name, err);
    if (st)
        return st;
    const uint32_t rank = qd_read_u32le(r);
    if (rank > 4)
        return qd_fail(err, QD_E_LIMIT, "tensor '%.200s' has %u dimensions, the limit is 4", t->name, rank);
    t->shape = (qd_shape){ .rank = (int)rank };
    for (uint32_t k = 0; k < rank; k++) {
        const uint64_t d = qd_read_u64le(r);
        if (d > INT32_MAX)
            return qd_fail(err, QD_E_LIMIT, "tensor '%.200s': dimension %u is %llu", t->name, k, (unsigned long long)d);
        t->shape.dim[rank - 1 - k] = (int64_t)d;
    }
    t->type = qd_read_u32le(r);
    t->offset = qd_read_u64le(r);
    if (r->failed)
        return short_file(err);
    if (t->type != TYPE_F32 && t->type != TYPE_F16 && t->type != TYPE_Q4_0 && t->type != TYPE_Q8_0)
        return qd_fail(err, QD_E_UNSUPPORTED, "tensor '%.200s' has type %u; known are F32, F16, Q4_0, Q8_0", t->name,
                       t->type);
    st = qd_shape_count(&t->shape, &count, err);
    if (st)
        return st;
    if ((t->type == TYPE_Q4_0 || t->type == TYPE_Q8_0) && (!rank || t->shape.dim[rank - 1] % BLOCK))
        return qd_fail(err, QD_E_FORMAT, "tensor '%.200s': its rows do not divide into blocks of %d", t->name, BLOCK);
    const char *text = qd_meta_find(shapes, t->name);
    if (!text)
        return QD_OK;
    qd_shape was = { 0 };
    for (const char *p = text; *p && was.rank < QD_MAX_RANK; p += *p == ',') {
        char *end;
        was.dim[was.rank++] = (int64_t)strtoull(p, &end, 10);
        p = end;
    }
    if (qd_shape_count(&was, &kept, NULL) || kept != count)
        return qd_fail(err, QD_E_FORMAT, "tensor '%.200s' has %lld elements, its shape [%s] another number", t->name,
                       (long long)count, text);
    t->shape = was;
    return QD_OK;
}

static void decode(float *dst, const uint8_t *src, uint32_t type, int64_t count)
{
    if (type == TYPE_F32) {
        memcpy(dst, src, (size_t)count * sizeof(float));
        return;
    }
    if (type == TYPE_F16) {
        for (int64_t k = 0; k < count; k++) {
            uint16_t h;
            memcpy(&h, src + 2 * k, 2);
            dst[k] = qd_f16_to_f32(h);
        }
        return;
    }
    const size_t each = data_bytes(type, BLOCK);
    for (int64_t j = 0; j < count / BLOCK; j++, src += each, dst += BLOCK) {
        uint16_t h;
        memcpy(&h, src, 2);
        const float d = qd_f16_to_f32(h);
        for (int k = 0; k < BLOCK; k++) {
            if (type == TYPE_Q8_0)
                dst[k] = (float)(int8_t)src[2 + k] * d;
            else
                dst[k] = (float)((k < BLOCK / 2 ? src[2 + k] & 15 : src[2 + k - BLOCK / 2] >> 4) - 8) * d;
        }
    }
}

qd_status qd_gguf_parse(const void *data, size_t size, qd_budget *budget, qd_weights **out, qd_meta *meta, qd_err *err)
{
    qd_reader r;
    qd_meta *shapes = NULL;
    qd_weights *w = NULL;
    info *infos = NULL;
    qd_status st;

    qd_reader_init(&r, data, size);
    if (qd_read_u32le(&r) != MAGIC || r.failed)
        return qd_fail(err, QD_E_FORMAT, "the file does not begin with 'GGUF'");
    const uint32_t version = qd_read_u32le(&r);
    const uint64_t n = qd_read_u64le(&r), pairs = qd_read_u64le(&r);
    if (r.failed)
        return short_file(err);
    if (version != VERSION)
        return qd_fail(err, QD_E_UNSUPPORTED, "GGUF version %u, want %d", version, VERSION);
    /* A description takes 24 bytes at least, a pair 13: what claims more than the file can hold is refused before memory is. */
    if (n > MAX_TENSORS || pairs > MAX_PAIRS || n > qd_reader_left(&r) / 24 || pairs > qd_reader_left(&r) / 13)
        return qd_fail(err, QD_E_LIMIT, "%llu tensors and %llu pairs in %zu bytes", (unsigned long long)n,
                       (unsigned long long)pairs, size);
    st = qd_meta_new(&shapes, err);
    if (!st)
        st = qd_weights_new(&w, err);
    if (!st && !(infos = qd_calloc((size_t)n, sizeof(*infos))))
        st = qd_fail(err, QD_E_NOMEM, "out of memory for %llu tensors", (unsigned long long)n);
    for (uint64_t k = 0; k < pairs && !st; k++)
        st = read_pair(&r, shapes, meta, err);
    for (uint64_t k = 0; k < n && !st; k++)
        st = read_info(&r, shapes, &infos[k], err);
    if (st)
        goto out;
    const size_t start = (r.pos + ALIGN - 1) / ALIGN * ALIGN;
    for (uint64_t k = 0; k < n; k++) {
        const info *t = &infos[k];
        const size_t bytes = data_bytes(t->type, (uint64_t)count_of(&t->shape));
        qd_tensor floats = { 0 };
        if (t->offset % ALIGN || start > size || t->offset > size - start || bytes > size - start - t->offset) {
            st = qd_fail(err, QD_E_FORMAT, "tensor '%.200s' (%zu bytes from %llu) does not lie in the file", t->name,
                         bytes, (unsigned long long)t->offset);
            goto out;
        }
        st = qd_tensor_init(&floats, QD_F32, &t->shape, budget, err);
        if (st)
            goto out;
        decode(qd_f32(&floats), (const uint8_t *)data + start + t->offset, t->type, count_of(&t->shape));
        if (qd_weights_find(w, t->name))
            st = qd_fail(err, QD_E_FORMAT, "two tensors are called '%.200s'", t->name);
        else
            st = qd_weights_add(w, t->name, &floats, err);
        qd_tensor_clear(&floats);
        if (st)
            goto out;
    }
    *out = w;
    w = NULL;
out:
    qd_free(infos);
    qd_weights_free(w);
    qd_meta_free(shapes);
    return st;
}

qd_status qd_gguf_open(const char *path, qd_budget *budget, qd_weights **out, qd_meta *meta, qd_err *err)
{
    qd_map m = { 0 };
    qd_status st = qd_map_open(&m, path, err);
    if (st)
        return st;
    st = qd_gguf_parse(m.data, m.size, budget, out, meta, err);
    if (st)
        qd_fail_in(err, st, "%.100s", qd_base_name(path));
    qd_map_close(&m);
    return st;
}
