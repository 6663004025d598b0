/* pickle_numpy.c - numpy arrays in checkpoints: numpy.dtype, _reconstruct and their states, as numpy's own __reduce__ writes them. */
#include <stdio.h>
#include <string.h>

#include "model/pickle_int.h"

static qd_status wrong(const qd_pickle *p, const char *what)
{
    return qd_pickle_refuse(p, QD_E_FORMAT, "numpy's %s is not as numpy writes it", what);
}

qd_status qd_pickle_numpy_dtype(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                qd_pickle_value *out)
{
    if (args->n < 1 || args->at[0].kind != QD_PICKLE_TEXT || args->at[0].size > 8)
        return wrong(p, "dtype");
    *out = args->at[0];
    out->kind = QD_PICKLE_NUMPY_DTYPE;
    return QD_OK;
}

/* Scalars count epochs and losses: there, and of no interest. */
qd_status qd_pickle_numpy_scalar(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                 qd_pickle_value *out)
{
    if (args->n != 2 || args->at[0].kind != QD_PICKLE_NUMPY_DTYPE)
        return wrong(p, "scalar");
    *out = (qd_pickle_value){ .kind = QD_PICKLE_OPAQUE, .global = g };
    return QD_OK;
}

/* _reconstruct(ndarray, (0,), b'b'): an array that waits for its state. */
qd_status qd_pickle_numpy_array(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                qd_pickle_value *out)
{
    void *room = NULL;
    if (args->n != 3 || args->at[0].kind != QD_PICKLE_GLOBAL || strcmp(args->at[0].global->name, "ndarray") != 0)
        return wrong(p, "_reconstruct");
    const qd_status st = qd_pickle_alloc(p, sizeof(qd_pickle_tensor), &room);
    if (!st)
        *out = (qd_pickle_value){ .kind = QD_PICKLE_TENSOR, .tensor = room };
    return st;
}

/* _codecs.encode(text, 'latin1'): how protocol 2 writes bytes. Each code point below 256 is one. */
qd_status qd_pickle_latin1(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args, qd_pickle_value *out)
{
    const qd_pickle_value *a = args->at;
    void *room = NULL;
    uint32_t n = 0;
    if (args->n != 2 || a[0].kind != QD_PICKLE_TEXT ||
        !(qd_pickle_is(&a[1], "latin1") || qd_pickle_is(&a[1], "latin-1")))
        return qd_pickle_refuse(p, QD_E_UNSUPPORTED, "'_codecs.encode' into something else than latin1 bytes");
    const qd_status st = qd_pickle_alloc(p, a[0].size, &room);
    if (st)
        return st;
    for (uint32_t k = 0; k < a[0].size; k++) {
        const uint8_t c = (uint8_t)a[0].text[k];
        if (c < 0x80) {
            ((uint8_t *)room)[n++] = c;
        } else if ((c == 0xc2 || c == 0xc3) && k + 1 < a[0].size && ((uint8_t)a[0].text[k + 1] & 0xc0) == 0x80) {
            ((uint8_t *)room)[n++] = (uint8_t)(c << 6 | ((uint8_t)a[0].text[++k] & 0x3f));
        } else {
            return qd_pickle_refuse(p, QD_E_FORMAT, "text with a character past latin1 is encoded into it");
        }
    }
    *out = (qd_pickle_value){ .kind = QD_PICKLE_BYTES, .size = n, .text = room };
    return QD_OK;
}

/* (version, order, ..) of a dtype: only ours is read. */
static qd_status dtype_state(const qd_pickle *p, const qd_pickle_value *state)
{
    if (state->kind != QD_PICKLE_TUPLE || state->items->n < 2 || state->items->at[1].kind != QD_PICKLE_TEXT)
        return wrong(p, "dtype");
    if (qd_pickle_is(&state->items->at[1], ">"))
        return qd_pickle_refuse(p, QD_E_UNSUPPORTED, "a numpy array with its highest byte first");
    return QD_OK;
}

static bool dtype_named(const qd_pickle_value *v, qd_dtype *out)
{
    static const struct {
        const char *name;
        qd_dtype dtype;
    } names[] = { { "f4", QD_F32 }, { "f8", QD_F64 }, { "f2", QD_F16 }, { "i8", QD_I64 }, { "i4", QD_I32 },
                  { "i2", QD_I16 }, { "i1", QD_I8 },  { "u1", QD_U8 },  { "b1", QD_BOOL } };
    for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++)
        if (v->size == 2 && memcmp(v->text, names[k].name, 2) == 0) {
            *out = names[k].dtype;
            return true;
        }
    return false;
}

/* What an array is made of. */
static qd_status fill_array(qd_pickle *p, qd_pickle_tensor *t, const qd_pickle_value *dtype,
                            const qd_pickle_value *shape, bool columns_first, const qd_pickle_value *content)
{
    qd_pickle_tensor made = { 0 };
    char key[40];
    int64_t count, step = 1;
    size_t bytes;
    if (dtype->kind != QD_PICKLE_NUMPY_DTYPE || shape->kind != QD_PICKLE_TUPLE || content->kind != QD_PICKLE_BYTES)
        return wrong(p, "array");
    if (!dtype_named(dtype, &made.dtype))
        return qd_pickle_refuse(p, QD_E_UNSUPPORTED, "a numpy array of another type than i1..i8, u1, b1, f2, f4, f8");
    if (shape->items->n > QD_MAX_RANK)
        return qd_pickle_refuse(p, QD_E_LIMIT, "a numpy array of %u dimensions, the limit is %d", shape->items->n,
                                QD_MAX_RANK);
    made.shape.rank = (int)shape->items->n;
    for (uint32_t k = 0; k < shape->items->n; k++) {
        if (shape->items->at[k].kind != QD_PICKLE_INT || shape->items->at[k].i < 0)
            return wrong(p, "array");
        made.shape.dim[k] = shape->items->at[k].i;
    }
    if (qd_shape_count(&made.shape, &count, NULL) ||
        !qd_mul_size((size_t)count, qd_dtype_bits(made.dtype) / 8, &bytes) || bytes != content->size)
        return qd_pickle_refuse(p, QD_E_FORMAT, "a numpy array whose shape does not take its %u bytes", content->size);
    for (int k = 0; k < made.shape.rank && count; k++) { /* no step passes the count */
        const int axis = columns_first ? k : made.shape.rank - 1 - k;
        made.stride[axis] = step;
        step *= made.shape.dim[axis];
    }
    const qd_pickle_storage like = { .dtype = made.dtype, .count = count, .memory = (const uint8_t *)content->text };
    snprintf(key, sizeof(key), "numpy array %d", p->keys.count); /* with spaces, which no key of PyTorch has */
    const qd_status st = qd_pickle_add_storage(p, key, &like, &made.storage);
    if (!st)
        *t = made;
    return st;
}

/* (version, shape, dtype, columns first, bytes) of an array. */
static qd_status array_state(qd_pickle *p, qd_pickle_tensor *t, const qd_pickle_value *state)
{
    if (state->kind != QD_PICKLE_TUPLE || state->items->n != 5 || state->items->at[3].kind != QD_PICKLE_BOOL)
        return wrong(p, "array");
    const qd_pickle_value *s = state->items->at;
    return fill_array(p, t, &s[2], &s[1], s[3].i != 0, &s[4]);
}

/* _frombuffer(bytes, dtype, shape, order), of protocol 5. */
qd_status qd_pickle_numpy_buffer(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                 qd_pickle_value *out)
{
    void *room = NULL;
    if (args->n != 4 || args->at[3].kind != QD_PICKLE_TEXT)
        return wrong(p, "_frombuffer");
    qd_status st = qd_pickle_alloc(p, sizeof(qd_pickle_tensor), &room);
    if (!st)
        st = fill_array(p, room, &args->at[1], &args->at[2], qd_pickle_is(&args->at[3], "F"), &args->at[0]);
    if (!st)
        *out = (qd_pickle_value){ .kind = QD_PICKLE_TENSOR, .tensor = room };
    return st;
}

qd_status qd_pickle_numpy_state(qd_pickle *p, qd_pickle_value *object, const qd_pickle_value *state)
{
    return object->kind == QD_PICKLE_NUMPY_DTYPE ? dtype_state(p, state) : array_state(p, object->tensor, state);
}
