/* onnx_tensor.h - tensors as an ONNX file stores them, and data that lies in other files of the model's folder. */
#ifndef QD_MODEL_ONNX_TENSOR_H
#define QD_MODEL_ONNX_TENSOR_H

#include "model/onnx_int.h"

/* --- onnx_tensor.c --- */

/* The fields of a TensorProto that hold numbers; all lent. */
typedef struct qd_onnx_stored {
    int type;            // TensorProto.DataType
    const int64_t *dims; // [n_dims]
    size_t n_dims;
    bool is_raw; /* raw bytes, little-endian; else the typed field that belongs to the type */
    const uint8_t *raw;
    size_t raw_bytes;
    const float *f32;
    const double *f64;
    const int32_t *i32;
    const int64_t *i64;
    const uint64_t *u64;
    size_t n_f32, n_f64, n_i32, n_i64, n_u64;
} qd_onnx_stored;

/* A type we read, dims we can hold, as many elements as they say. A dim of 0 gives an empty tensor, which only shape arithmetic
 * may use. Words name the tensor. */
qd_status qd_onnx_stored_check(const qd_onnx_stored *s, const char *name, qd_shape *shape, qd_err *err);
/* What has been checked as a tensor of its own, of the dtype the type is kept as. */
qd_status qd_onnx_stored_read(const qd_onnx_stored *s, const char *name, const qd_shape *shape, qd_budget *budget,
                              qd_tensor *out, qd_err *err);
/* Are raw bytes of that type what we keep, byte for byte? */
bool qd_onnx_type_as_it_is(int elem_type, qd_dtype *out);

/* --- onnx_outside.c: external data --- */

typedef struct qd_onnx_place {
    const char *location;
    uint64_t offset, length;
    bool has_length;
} qd_onnx_place;

typedef struct qd_onnx_outside qd_onnx_outside; /* the files looked into so far */
qd_status qd_onnx_outside_new(qd_onnx_outside **out, qd_err *err);
void qd_onnx_outside_free(qd_onnx_outside *o);
/* One entry of a tensor's external_data. */
qd_status qd_onnx_place_set(qd_onnx_place *place, const char *tensor, const char *key, const char *value, qd_err *err);
/* The bytes, lent by o. folder NULL: external data is refused. Paths may not lead out of it. */
qd_status qd_onnx_outside_find(qd_onnx_outside *o, const char *folder, const char *tensor, const qd_onnx_place *place,
                               const uint8_t **data, size_t *size, qd_err *err);

#endif
