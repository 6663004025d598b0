/* convert.c - values from one layout to another: at the border of the plan, and around plain forwards. */
#include <assert.h>
#include <string.h>

#include "plan/backend.h"

bool qd_layout_same(const qd_shape *s, qd_layout a, qd_layout b)
{
    if (a == b || s->rank < 3)
        return true;
    int64_t space = 1;
    for (int k = 2; k < s->rank; k++)
        space *= s->dim[k];
    return s->dim[1] == 1 || space == 1;
}

static size_t element_bytes(qd_dtype t)
{
    return qd_dtype_bits(t) / 8;
}

/* Any value seen as [n][c][h][w] with strides in elements, the first one at `start`. */
typedef struct image {
    int64_t n, c, h, w;
    int64_t sn, sc, sh, sw, start;
} image;

static image image_of(const qd_value *v)
{
    const qd_shape *s = &v->shape;
    image m = { .n = 1, .c = 1, .h = 1, .w = 1 };
    if (s->rank > 0)
        m.n = s->dim[0];
    if (s->rank > 1)
        m.c = s->dim[1];
    for (int k = 2; k < s->rank - 1; k++)
        m.h *= s->dim[k];
    if (s->rank > 2)
        m.w = s->dim[s->rank - 1];

    const int64_t rows = m.h + v->border[0] + v->border[2], columns = m.w + v->border[1] + v->border[3];
    m.sn = m.c * rows * columns;
    if (v->layout == QD_LAYOUT_LAST) {
        m.sc = 1;
        m.sw = m.c;
        m.sh = m.c * columns;
    } else {
        m.sw = 1;
        m.sh = columns;
        m.sc = rows * columns;
    }
    m.start = v->border[0] * m.sh + v->border[1] * m.sw;
    return m;
}

size_t qd_value_bytes(const qd_value *v)
{
    const image m = image_of(v);
    return (size_t)(m.n * m.sn) * element_bytes(v->dtype);
}

#define TILE 16

/* Tiles keep both sides in the first-level cache, whichever of them is the strided one. */
#define CONVERT(type, expression)                                                                                      \
    for (int64_t n = 0; n < d.n; n++)                                                                                  \
        for (int64_t y = 0; y < d.h; y++)                                                                              \
            for (int64_t x0 = 0; x0 < d.w; x0 += TILE)                                                                 \
                for (int64_t c0 = 0; c0 < d.c; c0 += TILE)                                                             \
                    for (int64_t x = x0; x < d.w && x < x0 + TILE; x++) {                                              \
                        type *to_ = (type *)to + d.start + n * d.sn + y * d.sh + x * d.sw;                             \
                        const type *from_ = (const type *)from + s.start + n * s.sn + y * s.sh + x * s.sw;             \
                        for (int64_t c = c0; c < d.c && c < c0 + TILE; c++)                                            \
                            to_[c * d.sc] = expression;                                                                \
                    }

void qd_value_convert(const qd_value *dst, void *to, const qd_value *src, const void *from, int32_t border_code)
{
    const image d = image_of(dst), s = image_of(src);
    assert(dst->dtype == src->dtype && qd_shape_equal(&dst->shape, &src->shape));
    const size_t bytes = qd_value_bytes(dst);

    if (memcmp(dst->border, src->border, sizeof(dst->border)) == 0 && dst->shifted == src->shifted &&
        qd_layout_same(&dst->shape, dst->layout, src->layout)) {
        memcpy(to, from, bytes);
        return;
    }
    for (int k = 0; k < 4; k++)
        if (dst->border[k]) {
            memset(to, border_code, bytes);
            break;
        }
    if (dst->layout == src->layout && dst->layout == QD_LAYOUT_LAST && dst->shifted == src->shifted) {
        const size_t size = element_bytes(dst->dtype); /* only the borders differ */
        for (int64_t n = 0; n < d.n; n++)
            for (int64_t y = 0; y < d.h; y++)
                memcpy((char *)to + (size_t)(d.start + n * d.sn + y * d.sh) * size,
                       (const char *)from + (size_t)(s.start + n * s.sn + y * s.sh) * size, (size_t)(d.w * d.c) * size);
        return;
    }
    switch (element_bytes(dst->dtype)) {
    case 1: {
        const uint8_t flip = dst->shifted != src->shifted ? 0x80 : 0; /* code + 128 and back, modulo 256 */
        CONVERT(uint8_t, (uint8_t)(from_[c * s.sc] ^ flip))
        break;
    }
    case 2:
        CONVERT(uint16_t, from_[c * s.sc])
        break;
    case 4:
        CONVERT(uint32_t, from_[c * s.sc])
        break;
    default:
        CONVERT(uint64_t, from_[c * s.sc])
        break;
    }
}

static float as_float(const qd_value *v, const void *data, int64_t i)
{
    switch (v->dtype) {
    case QD_F32:
        return ((const float *)data)[i];
    case QD_F64:
        return (float)((const double *)data)[i];
    case QD_I64:
        return (float)((const int64_t *)data)[i];
    case QD_I32:
        return (float)((const int32_t *)data)[i];
    case QD_I8:
        return v->shifted ? (float)((const uint8_t *)data)[i] - 128.0f : (float)((const int8_t *)data)[i];
    case QD_U8:
    case QD_BOOL:
        return (float)((const uint8_t *)data)[i];
    default:
        assert(false); /* no op makes a value of the others */
        return 0.0f;
    }
}

void qd_value_to_float(float *to, const qd_value *src, const void *from)
{
    const image s = image_of(src);
    for (int64_t n = 0; n < s.n; n++)
        for (int64_t c = 0; c < s.c; c++)
            for (int64_t y = 0; y < s.h; y++)
                for (int64_t x = 0; x < s.w; x++)
                    *to++ = as_float(src, from, s.start + n * s.sn + c * s.sc + y * s.sh + x * s.sw);
}
