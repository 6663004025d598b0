/* tensor.h - typed arrays: dtype, shape, counted storage. Always row-major and contiguous; other layouts are the plan's affair. */
#ifndef QD_TENSOR_TENSOR_H
#define QD_TENSOR_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"

#define QD_MAX_RANK 8

typedef enum qd_dtype {
    QD_F32,
    QD_F16,
    QD_BF16,
    QD_F64,
    QD_I64,
    QD_I32,
    QD_I16,
    QD_I8,
    QD_U8,
    QD_BOOL, /* one byte, 0 or 1 */
    QD_I4, /* two's complement codes of 4 bits, two to a byte, low nibble first; and of 6 bits, four to three bytes, low bits */
    QD_I6, /* first. What one index of axis 0 holds (an output channel's weights; all of it below rank 2) fills whole bytes. */
    QD_DTYPE_COUNT,
} qd_dtype;

const char *qd_dtype_name(qd_dtype t);               /* "f32", "bf16", "i4", ... */
bool qd_dtype_find(const char *name, qd_dtype *out); /* by that name */
size_t qd_dtype_bits(qd_dtype t);

/* f16 and bf16 to f32 is exact; f32 to them rounds to nearest even. */
float qd_f16_to_f32(uint16_t h);
uint16_t qd_f32_to_f16(float f);
float qd_bf16_to_f32(uint16_t h);
uint16_t qd_f32_to_bf16(float f);

/* Row `k` of `row` codes each, as I4, I6 and I8 keep them: code i lies in bits [i bits, (i + 1) bits) of its row, low bits first. */
size_t qd_codes_row_bytes(int64_t row, int bits);
void qd_codes_read(int8_t *dst, const void *rows, int64_t k, int64_t row, int bits);
void qd_codes_write(void *rows, const int8_t *src, int64_t k, int64_t row, int bits);
bool qd_dtype_is_codes(qd_dtype t); /* I8, I6, I4 */

/* A shape: rank 0 is a scalar. In graphs -1 stands for the batch. */
typedef struct qd_shape {
    int rank;
    int64_t dim[QD_MAX_RANK];
} qd_shape;

qd_shape qd_shape_of(int rank, const int64_t *dim);
#define QD_SHAPE(...)                                                                                                  \
    qd_shape_of((int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), (const int64_t[]){ __VA_ARGS__ })
bool qd_shape_equal(const qd_shape *a, const qd_shape *b);
/* Number of elements; QD_E_LIMIT on overflow, QD_E_INVALID on a negative dim. */
qd_status qd_shape_count(const qd_shape *s, int64_t *count, qd_err *err);
/* "[2, 3, 32, 32]" into text[n]; returns text. */
const char *qd_shape_text(const qd_shape *s, char *text, size_t n);

/* Bytes with a reference count (atomic). Heap storage draws from a budget; mapped storage keeps a file map alive. */
typedef struct qd_storage qd_storage;

/* A view of storage, held by value. A zeroed qd_tensor is empty: clear is fine, data is NULL. */
typedef struct qd_tensor {
    qd_dtype dtype;
    qd_shape shape;
    qd_storage *storage;
    void *data; /* first element; 64-byte aligned for fresh tensors, unaligned for mapped ones */
} qd_tensor;

/* New zeroed storage of its own. budget may be NULL, else it must outlive the storage. On failure *t is untouched. */
qd_status qd_tensor_init(qd_tensor *t, qd_dtype dtype, const qd_shape *shape, qd_budget *budget, qd_err *err);
/* A view of foreign bytes of exactly qd_tensor_bytes: `release(owner)` runs when the last reference goes. release may be NULL. */
qd_status qd_tensor_wrap(qd_tensor *t, qd_dtype dtype, const qd_shape *shape, const void *data, void *owner,
                         void (*release)(void *owner), qd_err *err);
void qd_tensor_share(qd_tensor *dst, const qd_tensor *src); /* another reference; dst is overwritten, clear it first */
void qd_tensor_clear(qd_tensor *t);                         /* drops the reference and zeroes the view */
qd_status qd_tensor_copy(qd_tensor *dst, const qd_tensor *src, qd_budget *budget, qd_err *err); /* deep */
/* To another dtype among F32, F16, BF16, F64, I64, I32, I8, U8 (new storage). */
qd_status qd_tensor_cast(qd_tensor *dst, const qd_tensor *src, qd_dtype dtype, qd_budget *budget, qd_err *err);
/* Codes of few bits: I8 to I4 or I6, QD_E_INVALID where one does not fit; and I4, I6 to I8 (I8 is shared). */
qd_status qd_tensor_pack(qd_tensor *dst, const qd_tensor *src, qd_dtype dtype, qd_budget *budget, qd_err *err);
qd_status qd_tensor_unpack(qd_tensor *dst, const qd_tensor *src, qd_budget *budget, qd_err *err);
int64_t qd_tensor_count(const qd_tensor *t);
size_t qd_tensor_bytes(const qd_tensor *t);

/* Unchecked typed access for code that has verified the dtype (asserted). */
float *qd_f32(const qd_tensor *t);
int8_t *qd_i8(const qd_tensor *t);
uint8_t *qd_u8(const qd_tensor *t);

#endif
