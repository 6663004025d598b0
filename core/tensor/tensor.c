/* tensor.c - shapes, counted storage, copies and casts. */
#include "tensor/tensor.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

struct qd_storage {
    atomic_long refs;
    void *heap; /* ours, drawn from budget; or NULL */
    size_t bytes;
    qd_budget *budget;
    void *owner; /* of foreign bytes */
    void (*release)(void *owner);
};

qd_shape qd_shape_of(int rank, const int64_t *dim)
{
    assert(rank >= 0 && rank <= QD_MAX_RANK);
    qd_shape s = { .rank = rank };
    for (int k = 0; k < rank; k++)
        s.dim[k] = dim[k];
    return s;
}

bool qd_shape_equal(const qd_shape *a, const qd_shape *b)
{
    if (a->rank != b->rank)
        return false;
    for (int k = 0; k < a->rank; k++)
        if (a->dim[k] != b->dim[k])
            return false;
    return true;
}

qd_status qd_shape_count(const qd_shape *s, int64_t *count, qd_err *err)
{
    char text[200];
    if (s->rank < 0 || s->rank > QD_MAX_RANK)
        return qd_fail(err, QD_E_INVALID, "rank %d is not 0..%d", s->rank, QD_MAX_RANK);

    int64_t n = 1;
    bool fits = true, empty = false;
    for (int k = 0; k < s->rank; k++) {
        if (s->dim[k] < 0)
            return qd_fail(err, QD_E_INVALID, "shape %s has a negative dimension", qd_shape_text(s, text, sizeof text));
        empty |= s->dim[k] == 0;
        fits = fits && !__builtin_mul_overflow(n, s->dim[k], &n);
    }
    if (!empty && !fits)
        return qd_fail(err, QD_E_LIMIT, "shape %s has too many elements to count", qd_shape_text(s, text, sizeof text));
    *count = empty ? 0 : n;
    return QD_OK;
}

const char *qd_shape_text(const qd_shape *s, char *text, size_t n)
{
    size_t used = 0;
    const int rank = s->rank < 0 ? 0 : s->rank > QD_MAX_RANK ? QD_MAX_RANK : s->rank;
    if (n == 0)
        return text;
    text[0] = '\0';
    for (int k = 0; k <= rank && used < n; k++) {
        const int put = k < rank ? snprintf(text + used, n - used, "%s%lld", k ? ", " : "[", (long long)s->dim[k])
                                 : snprintf(text + used, n - used, rank ? "]" : "[]");
        if (put < 0)
            break;
        used += (size_t)put;
    }
    return text;
}

/* Rows that fill whole bytes: an index of axis 0 each, or one for all. */
static void packed_rows(const qd_shape *shape, int64_t count, int64_t *rows, int64_t *row)
{
    *rows = shape->rank > 1 ? shape->dim[0] : 1;
    *row = *rows ? count / *rows : 0;
}

static qd_status shape_bytes(qd_dtype dtype, const qd_shape *shape, size_t *bytes, qd_err *err)
{
    char text[200];
    int64_t count;
    qd_status st = qd_shape_count(shape, &count, err);
    if (st)
        return st;

    const size_t bits = qd_dtype_bits(dtype);
    bool fits;
    if (bits >= 8) {
        fits = qd_mul_size((size_t)count, bits / 8, bytes);
    } else {
        int64_t rows, row;
        packed_rows(shape, count, &rows, &row);
        fits = qd_mul_size((size_t)rows, qd_codes_row_bytes(row, (int)bits), bytes);
    }
    if (!fits || *bytes > PTRDIFF_MAX)
        return qd_fail(err, QD_E_LIMIT, "a tensor %s of %s does not fit into memory",
                       qd_shape_text(shape, text, sizeof text), qd_dtype_name(dtype));
    return QD_OK;
}

qd_status qd_tensor_init(qd_tensor *t, qd_dtype dtype, const qd_shape *shape, qd_budget *budget, qd_err *err)
{
    char text[240], dims[200];
    size_t bytes;
    qd_storage *s = NULL;
    bool drawn = false;
    qd_status st = shape_bytes(dtype, shape, &bytes, err);
    if (st)
        return st;

    snprintf(text, sizeof text, "a tensor %s of %s", qd_shape_text(shape, dims, sizeof dims), qd_dtype_name(dtype));
    st = qd_budget_draw(budget, bytes, text, err);
    if (st)
        return st;
    drawn = true;
    s = qd_calloc(1, sizeof *s);
    if (s)
        s->heap = qd_alloc_aligned(bytes);
    if (!s || !s->heap) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for %s (%zu bytes)", text, bytes);
        goto out;
    }
    memset(s->heap, 0, bytes);
    atomic_init(&s->refs, 1);
    s->bytes = bytes;
    s->budget = budget;
    *t = (qd_tensor){ .dtype = dtype, .shape = *shape, .storage = s, .data = s->heap };
    s = NULL;
    drawn = false;
out:
    if (drawn)
        qd_budget_give(budget, bytes);
    qd_free(s);
    return st;
}

qd_status qd_tensor_wrap(qd_tensor *t, qd_dtype dtype, const qd_shape *shape, const void *data, void *owner,
                         void (*release)(void *owner), qd_err *err)
{
    size_t bytes;
    qd_status st = shape_bytes(dtype, shape, &bytes, err);
    if (st)
        return st;
    qd_storage *s = qd_calloc(1, sizeof *s);
    if (!s)
        return qd_fail(err, QD_E_NOMEM, "no memory for a view of %zu bytes", bytes);
    atomic_init(&s->refs, 1);
    s->bytes = bytes;
    s->owner = owner;
    s->release = release;
    *t = (qd_tensor){ .dtype = dtype, .shape = *shape, .storage = s, .data = (void *)data };
    return QD_OK;
}

void qd_tensor_share(qd_tensor *dst, const qd_tensor *src)
{
    if (src->storage)
        atomic_fetch_add_explicit(&src->storage->refs, 1, memory_order_relaxed);
    *dst = *src;
}

void qd_tensor_clear(qd_tensor *t)
{
    qd_storage *s = t->storage;
    *t = (qd_tensor){ 0 };
    if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (s->heap) {
        qd_free(s->heap);
        qd_budget_give(s->budget, s->bytes);
    }
    if (s->release)
        s->release(s->owner);
    qd_free(s);
}

qd_status qd_tensor_copy(qd_tensor *dst, const qd_tensor *src, qd_budget *budget, qd_err *err)
{
    qd_tensor t;
    const qd_status st = qd_tensor_init(&t, src->dtype, &src->shape, budget, err);
    if (st)
        return st;
    const size_t bytes = qd_tensor_bytes(src);
    if (bytes)
        memcpy(t.data, src->data, bytes);
    *dst = t;
    return QD_OK;
}

/* Mapped bytes may lie anywhere, so elements are moved with memcpy. */
#define LOAD(type_, p_, k_)                                                                                            \
    ({                                                                                                                 \
        type_ v_;                                                                                                      \
        memcpy(&v_, (const char *)(p_) + (size_t)(k_) * sizeof v_, sizeof v_);                                         \
        v_;                                                                                                            \
    })

static double load_real(const void *p, qd_dtype dtype, int64_t k)
{
    switch (dtype) {
    case QD_F32:
        return LOAD(float, p, k);
    case QD_F16:
        return qd_f16_to_f32(LOAD(uint16_t, p, k));
    case QD_BF16:
        return qd_bf16_to_f32(LOAD(uint16_t, p, k));
    default:
        return LOAD(double, p, k);
    }
}

static int64_t load_whole(const void *p, qd_dtype dtype, int64_t k)
{
    switch (dtype) {
    case QD_I64:
        return LOAD(int64_t, p, k);
    case QD_I32:
        return LOAD(int32_t, p, k);
    case QD_I8:
        return LOAD(int8_t, p, k);
    default:
        return LOAD(uint8_t, p, k);
    }
}

static bool is_real(qd_dtype t)
{
    return t == QD_F32 || t == QD_F16 || t == QD_BF16 || t == QD_F64;
}

static bool castable(qd_dtype t)
{
    return is_real(t) || t == QD_I64 || t == QD_I32 || t == QD_I8 || t == QD_U8;
}

/* f64 to a half format in two roundings could miss by a bit: round to odd on the way keeps the second one right. */
static float to_odd_f32(double v)
{
    float f = (float)v;
    if (isnan(v) || isinf(v) || (double)f == v)
        return f;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (!(u & 1u))
        u = fabs((double)f) < fabs(v) ? u + 1 : u - 1;
    memcpy(&f, &u, sizeof f);
    return f;
}

static void store_real(void *p, qd_dtype dtype, int64_t k, double v)
{
    switch (dtype) {
    case QD_F32:
        ((float *)p)[k] = (float)v;
        break;
    case QD_F16:
        ((uint16_t *)p)[k] = qd_f32_to_f16(to_odd_f32(v));
        break;
    case QD_BF16:
        ((uint16_t *)p)[k] = qd_f32_to_bf16(to_odd_f32(v));
        break;
    default:
        ((double *)p)[k] = v;
        break;
    }
}

static const struct {
    double lo, hi;
} whole_range[QD_DTYPE_COUNT] = {
    /* The ends of i64 are the outermost doubles inside it. */
    [QD_I64] = { -0x1p63, 0x1.fffffffffffffp62 },
    [QD_I32] = { INT32_MIN, INT32_MAX },
    [QD_I8] = { INT8_MIN, INT8_MAX },
    [QD_U8] = { 0, UINT8_MAX },
};

static void store_whole(void *p, qd_dtype dtype, int64_t k, int64_t v)
{
    switch (dtype) {
    case QD_I64:
        ((int64_t *)p)[k] = v;
        break;
    case QD_I32:
        ((int32_t *)p)[k] = (int32_t)v;
        break;
    case QD_I8:
        ((int8_t *)p)[k] = (int8_t)v;
        break;
    default:
        ((uint8_t *)p)[k] = (uint8_t)v;
        break;
    }
}

qd_status qd_tensor_cast(qd_tensor *dst, const qd_tensor *src, qd_dtype dtype, qd_budget *budget, qd_err *err)
{
    if (!castable(src->dtype) || !castable(dtype))
        return qd_fail(err, QD_E_UNSUPPORTED, "cannot cast %s to %s", qd_dtype_name(src->dtype), qd_dtype_name(dtype));
    if (src->dtype == dtype)
        return qd_tensor_copy(dst, src, budget, err);

    qd_tensor t;
    qd_status st = qd_tensor_init(&t, dtype, &src->shape, budget, err);
    if (st)
        return st;
    const int64_t n = qd_tensor_count(src);
    for (int64_t k = 0; k < n; k++) {
        if (is_real(src->dtype) && is_real(dtype)) {
            store_real(t.data, dtype, k, load_real(src->data, src->dtype, k));
            continue;
        }
        if (!is_real(src->dtype) && is_real(dtype)) {
            store_real(t.data, dtype, k, (double)load_whole(src->data, src->dtype, k));
            continue;
        }
        if (is_real(src->dtype)) {
            const double v = nearbyint(load_real(src->data, src->dtype, k));
            if (!(v >= whole_range[dtype].lo && v <= whole_range[dtype].hi)) {
                st = qd_fail(err, QD_E_INVALID, "element %lld is %g and does not fit %s", (long long)k, v,
                             qd_dtype_name(dtype));
                goto out;
            }
            store_whole(t.data, dtype, k, (int64_t)v);
            continue;
        }
        const int64_t v = load_whole(src->data, src->dtype, k);
        if (dtype != QD_I64 && ((double)v < whole_range[dtype].lo || (double)v > whole_range[dtype].hi)) {
            st = qd_fail(err, QD_E_INVALID, "element %lld is %lld and does not fit %s", (long long)k, (long long)v,
                         qd_dtype_name(dtype));
            goto out;
        }
        store_whole(t.data, dtype, k, v);
    }
    *dst = t;
    return QD_OK;
out:
    qd_tensor_clear(&t);
    return st;
}

qd_status qd_tensor_pack(qd_tensor *dst, const qd_tensor *src, qd_dtype dtype, qd_budget *budget, qd_err *err)
{
    assert(src->dtype == QD_I8 && (dtype == QD_I4 || dtype == QD_I6));
    const int bits = (int)qd_dtype_bits(dtype), most = (1 << (bits - 1)) - 1;
    const int64_t count = qd_tensor_count(src);
    int64_t rows, row;
    qd_tensor t;
    for (int64_t k = 0; k < count; k++)
        if (qd_i8(src)[k] > most || qd_i8(src)[k] < -most - 1)
            return qd_fail(err, QD_E_INVALID, "code %lld is %d, %d bits hold %d..%d", (long long)k, qd_i8(src)[k], bits,
                           -most - 1, most);
    qd_status st = qd_tensor_init(&t, dtype, &src->shape, budget, err);
    if (st)
        return st;
    packed_rows(&src->shape, count, &rows, &row);
    for (int64_t k = 0; k < rows; k++)
        qd_codes_write(t.data, qd_i8(src) + k * row, k, row, bits);
    *dst = t;
    return QD_OK;
}

qd_status qd_tensor_unpack(qd_tensor *dst, const qd_tensor *src, qd_budget *budget, qd_err *err)
{
    assert(qd_dtype_is_codes(src->dtype));
    int64_t rows, row;
    qd_tensor t;
    if (src->dtype == QD_I8) {
        qd_tensor_share(dst, src);
        return QD_OK;
    }
    qd_status st = qd_tensor_init(&t, QD_I8, &src->shape, budget, err);
    if (st)
        return st;
    packed_rows(&src->shape, qd_tensor_count(src), &rows, &row);
    for (int64_t k = 0; k < rows; k++)
        qd_codes_read(qd_i8(&t) + k * row, src->data, k, row, (int)qd_dtype_bits(src->dtype));
    *dst = t;
    return QD_OK;
}

int64_t qd_tensor_count(const qd_tensor *t)
{
    int64_t n = 1;
    for (int k = 0; k < t->shape.rank; k++)
        if (t->shape.dim[k] == 0)
            return 0; /* the others may be anything */
    for (int k = 0; k < t->shape.rank; k++)
        n *= t->shape.dim[k];
    return n;
}

size_t qd_tensor_bytes(const qd_tensor *t)
{
    return t->storage ? t->storage->bytes : 0;
}

float *qd_f32(const qd_tensor *t)
{
    assert(t->dtype == QD_F32);
    return t->data;
}

int8_t *qd_i8(const qd_tensor *t)
{
    assert(t->dtype == QD_I8);
    return t->data;
}

uint8_t *qd_u8(const qd_tensor *t)
{
    assert(t->dtype == QD_U8);
    return t->data;
}
