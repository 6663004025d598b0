/* onnx_tensor.c - types of ONNX tensors, and their numbers as the reader keeps them: F32 for every float type, I8 and U8 for codes
 * of 8 and 4 bits, I64 for every other whole one and truth (onnx.proto, TensorProto). */
#include "model/onnx_tensor.h"

#include <string.h>

/* --- types --- */

static const struct {
    int type;
    const char *name;
    int bits; /* of one element in raw_data; 0 = refused */
    qd_dtype kept;
} types[] = {
    { QD_ONNX_TYPE_FLOAT, "float", 32, QD_F32 },        { QD_ONNX_TYPE_FLOAT16, "float16", 16, QD_F32 },
    { QD_ONNX_TYPE_BFLOAT16, "bfloat16", 16, QD_F32 },  { QD_ONNX_TYPE_DOUBLE, "double", 64, QD_F32 },
    { QD_ONNX_TYPE_INT64, "int64", 64, QD_I64 },        { QD_ONNX_TYPE_INT32, "int32", 32, QD_I64 },
    { QD_ONNX_TYPE_INT16, "int16", 16, QD_I64 },        { QD_ONNX_TYPE_INT8, "int8", 8, QD_I8 },
    { QD_ONNX_TYPE_UINT8, "uint8", 8, QD_U8 },          { QD_ONNX_TYPE_BOOL, "bool", 8, QD_I64 },
    { QD_ONNX_TYPE_UINT16, "uint16", 16, QD_I64 },      { QD_ONNX_TYPE_UINT32, "uint32", 32, QD_I64 },
    { QD_ONNX_TYPE_UINT64, "uint64", 64, QD_I64 },      { QD_ONNX_TYPE_INT4, "int4", 4, QD_I8 },
    { QD_ONNX_TYPE_UINT4, "uint4", 4, QD_U8 },          { QD_ONNX_TYPE_STRING, "string", 0, QD_F32 },
    { QD_ONNX_TYPE_COMPLEX64, "complex64", 0, QD_F32 }, { QD_ONNX_TYPE_COMPLEX128, "complex128", 0, QD_F32 },
};
enum { N_TYPES = sizeof(types) / sizeof(types[0]) };

static int type_row(int type)
{
    for (int k = 0; k < N_TYPES; k++)
        if (types[k].type == type)
            return k;
    return -1;
}

const char *qd_onnx_type_name(int elem_type)
{
    const int k = type_row(elem_type);
    return k < 0 ? "unknown" : types[k].name;
}

bool qd_onnx_type_kept(int elem_type, qd_dtype *out)
{
    const int k = type_row(elem_type);
    if (k < 0 || !types[k].bits)
        return false;
    *out = types[k].kept;
    return true;
}

bool qd_onnx_type_range(int elem_type, int64_t *lo, int64_t *hi)
{
    const int k = type_row(elem_type);
    if (k < 0 || (types[k].kept != QD_I8 && types[k].kept != QD_U8))
        return false;
    *lo = types[k].kept == QD_I8 ? -(1 << (types[k].bits - 1)) : 0;
    *hi = *lo + (1 << types[k].bits) - 1;
    return true;
}

bool qd_onnx_type_as_it_is(int elem_type, qd_dtype *out)
{
    *out = elem_type == QD_ONNX_TYPE_FLOAT ? QD_F32 : elem_type == QD_ONNX_TYPE_INT8 ? QD_I8 : QD_U8;
    return elem_type == QD_ONNX_TYPE_FLOAT || elem_type == QD_ONNX_TYPE_INT8 || elem_type == QD_ONNX_TYPE_UINT8;
}

/* --- one element --- */

/* Bits 4 (k % 2) .. of a byte as a code. */
static int64_t nibble(int type, unsigned byte, int64_t k)
{
    const int v = (int)(byte >> (k % 2 ? 4 : 0) & 15);
    return type == QD_ONNX_TYPE_INT4 && v > 7 ? v - 16 : v;
}

static float real_raw(int type, const uint8_t *src, int64_t k)
{
    float f32;
    double f64;
    uint16_t u16;
    switch (type) {
    case QD_ONNX_TYPE_FLOAT16:
    case QD_ONNX_TYPE_BFLOAT16:
        memcpy(&u16, src + k * 2, 2);
        return type == QD_ONNX_TYPE_FLOAT16 ? qd_f16_to_f32(u16) : qd_bf16_to_f32(u16);
    case QD_ONNX_TYPE_DOUBLE:
        memcpy(&f64, src + k * 8, 8);
        return (float)f64;
    default:
        memcpy(&f32, src + k * 4, 4);
        return f32;
    }
}

static int64_t whole_raw(int type, const uint8_t *src, int64_t k)
{
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    switch (type) {
    case QD_ONNX_TYPE_INT64:
    case QD_ONNX_TYPE_UINT64:
        memcpy(&u64, src + k * 8, 8);
        return type == QD_ONNX_TYPE_UINT64 && u64 > INT64_MAX ? INT64_MAX : (int64_t)u64;
    case QD_ONNX_TYPE_INT32:
    case QD_ONNX_TYPE_UINT32:
        memcpy(&u32, src + k * 4, 4);
        return type == QD_ONNX_TYPE_INT32 ? (int64_t)(int32_t)u32 : (int64_t)u32;
    case QD_ONNX_TYPE_INT16:
    case QD_ONNX_TYPE_UINT16:
        memcpy(&u16, src + k * 2, 2);
        return type == QD_ONNX_TYPE_INT16 ? (int64_t)(int16_t)u16 : (int64_t)u16;
    case QD_ONNX_TYPE_INT4:
    case QD_ONNX_TYPE_UINT4:
        return nibble(type, src[k / 2], k);
    case QD_ONNX_TYPE_BOOL:
        return src[k] != 0;
    case QD_ONNX_TYPE_INT8:
        return (int8_t)src[k];
    default:
        return src[k];
    }
}

/* Of the typed field that belongs to the type; n_typed has counted them. */
static float real_typed(const qd_onnx_stored *s, int64_t k)
{
    switch (s->type) {
    case QD_ONNX_TYPE_DOUBLE:
        return (float)s->f64[k];
    case QD_ONNX_TYPE_FLOAT16:
        return qd_f16_to_f32((uint16_t)s->i32[k]);
    case QD_ONNX_TYPE_BFLOAT16:
        return qd_bf16_to_f32((uint16_t)s->i32[k]);
    default:
        return s->f32[k];
    }
}

static int64_t whole_typed(const qd_onnx_stored *s, int64_t k)
{
    switch (s->type) {
    case QD_ONNX_TYPE_INT64:
        return s->i64[k];
    case QD_ONNX_TYPE_UINT32:
    case QD_ONNX_TYPE_UINT64:
        return s->u64[k] > INT64_MAX ? INT64_MAX : (int64_t)s->u64[k];
    case QD_ONNX_TYPE_INT4:
    case QD_ONNX_TYPE_UINT4:
        return nibble(s->type, (unsigned)s->i32[k / 2], k);
    case QD_ONNX_TYPE_BOOL:
        return s->i32[k] != 0;
    default:
        return s->i32[k];
    }
}

static size_t n_typed(const qd_onnx_stored *s)
{
    switch (s->type) {
    case QD_ONNX_TYPE_FLOAT:
        return s->n_f32;
    case QD_ONNX_TYPE_DOUBLE:
        return s->n_f64;
    case QD_ONNX_TYPE_INT64:
        return s->n_i64;
    case QD_ONNX_TYPE_UINT32:
    case QD_ONNX_TYPE_UINT64:
        return s->n_u64;
    default:
        return s->n_i32;
    }
}

/* --- whole tensors --- */

static qd_status dims_of(const qd_onnx_stored *s, const char *name, qd_shape *shape, int64_t *count, qd_err *err)
{
    bool empty = false;
    if (s->n_dims > QD_MAX_RANK)
        return qd_fail(err, QD_E_LIMIT, "tensor '%.150s' has %zu dimensions, the limit is %d", name, s->n_dims,
                       QD_MAX_RANK);
    *shape = (qd_shape){ .rank = (int)s->n_dims };
    *count = 1;
    for (size_t k = 0; k < s->n_dims; k++) {
        if (s->dims[k] < 0)
            return qd_fail(err, QD_E_FORMAT, "tensor '%.150s': dimension %zu is %lld", name, k, (long long)s->dims[k]);
        shape->dim[k] = s->dims[k];
        empty = empty || s->dims[k] == 0;
        if (s->dims[k] && (__builtin_mul_overflow(*count, s->dims[k], count) || *count > QD_MAX_ELEMENTS))
            return qd_fail(err, QD_E_LIMIT, "tensor '%.150s' has more than %lld elements", name,
                           (long long)QD_MAX_ELEMENTS);
    }
    if (empty)
        *count = 0;
    return QD_OK;
}

qd_status qd_onnx_stored_check(const qd_onnx_stored *s, const char *name, qd_shape *shape, qd_err *err)
{
    const int row = type_row(s->type);
    int64_t count = 0;
    if (row < 0 || !types[row].bits)
        return qd_fail(err, QD_E_UNSUPPORTED, "tensor '%.150s' has data type %d (%s), which we do not read", name,
                       s->type, row < 0 ? "unknown" : types[row].name);
    qd_status st = dims_of(s, name, shape, &count, err);
    if (st)
        return st;
    /* Two codes of 4 bits to a byte, of raw data or of int32_data. */
    const size_t bits = (size_t)types[row].bits, units = bits == 4 ? ((size_t)count + 1) / 2 : (size_t)count;
    const size_t unit = bits == 4 ? 1 : bits / 8, have = s->is_raw ? s->raw_bytes / unit : n_typed(s);
    if (have != units || (s->is_raw && s->raw_bytes % unit)) {
        char text[160];
        return qd_fail(err, QD_E_FORMAT, "tensor '%.150s' %s %s needs %zu %s, the file gives %zu", name,
                       types[row].name, qd_shape_text(shape, text, sizeof(text)), units,
                       bits == 4 ? "bytes" : "elements", have);
    }
    return QD_OK;
}

qd_status qd_onnx_stored_read(const qd_onnx_stored *s, const char *name, const qd_shape *shape, qd_budget *budget,
                              qd_tensor *out, qd_err *err)
{
    const qd_dtype kept = types[type_row(s->type)].kept;
    qd_status st = qd_tensor_init(out, kept, shape, budget, err);
    if (st)
        return qd_fail_in(err, st, "tensor '%.150s'", name);
    for (int64_t k = 0, count = qd_tensor_count(out); k < count; k++) {
        if (kept == QD_F32) {
            qd_f32(out)[k] = s->is_raw ? real_raw(s->type, s->raw, k) : real_typed(s, k);
            continue;
        }
        const int64_t v = s->is_raw ? whole_raw(s->type, s->raw, k) : whole_typed(s, k);
        if (kept == QD_I64)
            ((int64_t *)out->data)[k] = v;
        else
            ((uint8_t *)out->data)[k] = (uint8_t)v; /* of I8 too: two's complement */
    }
    return QD_OK;
}
