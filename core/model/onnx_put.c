/* onnx_put.c - the wire format of ONNX files we write: a few field numbers of onnx.proto, varints and lengths. */
#include "model/onnx_put.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define FILE_MAX INT32_MAX /* protobuf's own limit on a message */
enum { VARINT = 0, BYTES = 2, FIXED32 = 5 };

/* --- wire --- */

static void put_varint(qd_buf *b, uint64_t v)
{
    uint8_t text[10];
    size_t n = 0;

    for (; v >= 128; v >>= 7)
        text[n++] = (uint8_t)(v | 128);
    text[n++] = (uint8_t)v;
    qd_buf_add(b, text, n);
}

static void put_tag(qd_buf *b, unsigned field, unsigned wire)
{
    put_varint(b, field << 3 | wire);
}

static void put_int(qd_buf *b, unsigned field, int64_t v)
{
    put_tag(b, field, VARINT);
    put_varint(b, (uint64_t)v);
}

static void put_bytes(qd_buf *b, unsigned field, const void *data, size_t n)
{
    put_tag(b, field, BYTES);
    put_varint(b, n);
    qd_buf_add(b, data, n);
}

static void put_string(qd_buf *b, unsigned field, const char *s)
{
    put_bytes(b, field, s, strlen(s));
}

static void put_float(qd_buf *b, unsigned field, float v)
{
    put_tag(b, field, FIXED32);
    qd_buf_add(b, &v, sizeof(v)); /* this house runs on little-endian machines alone */
}

/* A message as a field; m is empty afterwards. */
static void put_message(qd_buf *b, unsigned field, qd_buf *m)
{
    if (m->failed)
        b->failed = true;
    else
        put_bytes(b, field, m->data ? m->data : "", m->size);
    qd_buf_clear(m);
}

/* --- the file --- */

int qd_onnx_put_type(qd_dtype t)
{
    static const int types[QD_DTYPE_COUNT] = {
        [QD_F32] = 1,  [QD_U8] = 2,   [QD_I8] = 3,   [QD_I16] = 5,   [QD_I32] = 6, [QD_I64] = 7,
        [QD_BOOL] = 9, [QD_F16] = 10, [QD_F64] = 11, [QD_BF16] = 16, [QD_I4] = 22,
    };
    return types[t];
}

void qd_onnx_put_init(qd_onnx_put *p, int opset, qd_err *err)
{
    *p = (qd_onnx_put){ .opset = opset, .err = err };
    qd_buf_init(&p->body, 0);
    qd_arena_init(&p->names);
}

void qd_onnx_put_clear(qd_onnx_put *p)
{
    qd_buf_clear(&p->body);
    qd_arena_clear(&p->names);
    qd_free(p->splice);
}

void qd_onnx_put_fail(qd_onnx_put *p, qd_status st, const char *fmt, ...)
{
    va_list ap;

    if (p->status)
        return;
    va_start(ap, fmt);
    p->status = qd_failv(p->err, st, fmt, ap);
    va_end(ap);
}

const char *qd_onnx_put_name(qd_onnx_put *p, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    const char *name = qd_arena_strdup(&p->names, text);
    if (!name)
        qd_onnx_put_fail(p, QD_E_NOMEM, "out of memory for a name");
    return name ? name : "";
}

static void put_attr(qd_buf *node, const qd_onnx_put_attr *a)
{
    enum { TYPE_FLOAT = 1, TYPE_INT = 2, TYPE_STRING = 3, TYPE_INTS = 7 };
    qd_buf m;

    qd_buf_init(&m, 0);
    put_string(&m, 1, a->name);
    switch (a->kind) {
    case QD_PUT_INT:
        put_int(&m, 3, a->i);
        put_int(&m, 20, TYPE_INT);
        break;
    case QD_PUT_FLOAT:
        put_float(&m, 2, a->f);
        put_int(&m, 20, TYPE_FLOAT);
        break;
    case QD_PUT_STRING:
        put_string(&m, 4, a->s);
        put_int(&m, 20, TYPE_STRING);
        break;
    case QD_PUT_INTS:
        for (int k = 0; k < a->n; k++)
            put_int(&m, 8, a->ints[k]);
        put_int(&m, 20, TYPE_INTS);
        break;
    }
    put_message(node, 5, &m);
}

void qd_onnx_put_node(qd_onnx_put *p, const char *op, const char *const *in, int n_in, const char *out,
                      const qd_onnx_put_attr *attrs, int n_attrs)
{
    qd_buf m;

    qd_buf_init(&m, 0);
    for (int k = 0; k < n_in; k++)
        put_string(&m, 1, in[k] ? in[k] : "");
    put_string(&m, 2, out);
    put_string(&m, 3, out); /* a node is called as what it makes */
    put_string(&m, 4, op);
    for (int k = 0; k < n_attrs; k++)
        put_attr(&m, &attrs[k]);
    put_message(&p->body, 1, &m);
}

void qd_onnx_put_tensor(qd_onnx_put *p, const char *name, int type, const qd_shape *shape, const void *data,
                        size_t bytes, bool borrowed)
{
    qd_buf m;

    qd_buf_init(&m, 0);
    for (int k = 0; k < shape->rank; k++)
        put_int(&m, 1, shape->dim[k]);
    put_int(&m, 2, type);
    put_string(&m, 8, name);
    put_tag(&m, 9, BYTES);
    put_varint(&m, bytes);
    put_tag(&p->body, 5, BYTES);
    put_varint(&p->body, m.size + bytes);
    qd_buf_add(&p->body, m.data, m.size);
    p->body.failed |= m.failed;
    qd_buf_clear(&m);
    if (!borrowed) {
        qd_buf_add(&p->body, data, bytes);
        return;
    }
    if (p->n_splices == p->room) {
        const int room = p->room ? p->room * 2 : 64;
        qd_onnx_splice *bigger = qd_realloc(p->splice, (size_t)room * sizeof(*bigger));
        if (!bigger) {
            qd_onnx_put_fail(p, QD_E_NOMEM, "out of memory for tensor '%.200s'", name);
            return;
        }
        p->splice = bigger;
        p->room = room;
    }
    p->splice[p->n_splices++] = (qd_onnx_splice){ .at = p->body.size, .data = data, .bytes = bytes };
    p->spliced_bytes += bytes;
}

void qd_onnx_put_value(qd_onnx_put *p, bool is_output, const char *name, int type, const qd_shape *shape)
{
    qd_buf dims, tensor, kind, value, dim;

    qd_buf_init(&dims, 0);
    for (int k = 0; k < shape->rank; k++) {
        qd_buf_init(&dim, 0);
        if (shape->dim[k] < 0)
            put_string(&dim, 2, "batch");
        else
            put_int(&dim, 1, shape->dim[k]);
        put_message(&dims, 1, &dim);
    }
    qd_buf_init(&tensor, 0);
    put_int(&tensor, 1, type);
    put_message(&tensor, 2, &dims);
    qd_buf_init(&kind, 0);
    put_message(&kind, 1, &tensor);
    qd_buf_init(&value, 0);
    put_string(&value, 1, name);
    put_message(&value, 2, &kind);
    put_message(&p->body, is_output ? 12 : 11, &value);
}

qd_status qd_onnx_put_save(qd_onnx_put *p, const char *path, const char *graph_name, char *sha256_hex)
{
    enum { IR_13 = 7, IR_21 = 10 }; /* the versions of the format those opsets came with */
    qd_buf head, opset;
    qd_fs_out *out = NULL;
    qd_status st = p->status;

    qd_buf_init(&head, 0);
    qd_buf_init(&opset, 0);
    put_string(&p->body, 2, graph_name);
    put_int(&head, 1, p->opset >= 21 ? IR_21 : IR_13);
    put_string(&head, 2, "quantd");
    put_string(&opset, 1, "");
    put_int(&opset, 2, p->opset);
    put_message(&head, 8, &opset);
    put_tag(&head, 7, BYTES);
    put_varint(&head, p->body.size + p->spliced_bytes);
    if (!st && (head.failed || p->body.failed))
        st = qd_fail(p->err, QD_E_NOMEM, "out of memory for an ONNX file of %zu bytes", p->body.size);
    if (!st && p->body.size + p->spliced_bytes > FILE_MAX)
        st = qd_fail(p->err, QD_E_LIMIT, "the ONNX file would have %llu bytes, the format ends at %d",
                     (unsigned long long)(p->body.size + p->spliced_bytes), FILE_MAX);
    if (!st)
        st = qd_fs_out_open(path, &out, p->err);
    if (!st)
        st = qd_fs_out_add(out, head.data, head.size, p->err);
    size_t at = 0;
    for (int k = 0; k < p->n_splices && !st; k++) {
        const qd_onnx_splice *s = &p->splice[k];
        st = qd_fs_out_add(out, p->body.data + at, s->at - at, p->err);
        if (!st)
            st = qd_fs_out_add(out, s->data, s->bytes, p->err);
        at = s->at;
    }
    if (!st)
        st = qd_fs_out_add(out, p->body.data + at, p->body.size - at, p->err);
    if (!st) {
        st = qd_fs_out_commit(out, NULL, sha256_hex, p->err);
        out = NULL; /* commit frees it, whatever it returns */
    }
    qd_fs_out_abandon(out);
    qd_buf_clear(&head);
    return st;
}
