/* onnx_codes.c - QuantizeLinear and DequantizeLinear: maps between reals and codes, and constants that stay codes while they are read,
 * so that a layer may take them as such (onnx Operators.md, opset 10 to 21). */
#include "model/onnx_codes.h"

#include <math.h>
#include <string.h>

/* --- maps --- */

/* Scales and zeros of a value of this shape: one for all, one for each index of an axis, or one for each block along it. */
static qd_status lay_out(const qd_shape *x, const qd_tensor *t, int64_t block, int axis, const char *what,
                         qd_tensor *out, qd_err *err)
{
    qd_shape s = { .rank = x->rank };
    char text[2][100];
    for (int k = 0; k < x->rank; k++)
        s.dim[k] = 1;
    if (qd_tensor_count(t) == 1) {
        if (block)
            return qd_fail(err, QD_E_FORMAT, "%s is one number, but blocks of %lld are declared", what,
                           (long long)block);
    } else if (!block && t->shape.rank == 1 && axis >= 0 && t->shape.dim[0] == x->dim[axis]) {
        s.dim[axis] = x->dim[axis];
    } else if (block > 0 && axis >= 0 && t->shape.rank == x->rank) {
        s = *x;
        s.dim[axis] = (x->dim[axis] + block - 1) / block;
    }
    int64_t count = 0;
    const qd_status st = qd_shape_count(&s, &count, err);
    if (st)
        return st;
    if (qd_tensor_count(t) != count || (block && !qd_shape_equal(&s, &t->shape)))
        return qd_fail(err, QD_E_FORMAT, "%s has shape %s, which fits no axis or block of a value of shape %s", what,
                       qd_shape_text(&t->shape, text[0], sizeof(text[0])), qd_shape_text(x, text[1], sizeof(text[1])));
    qd_tensor_share(out, t);
    out->shape = s;
    return QD_OK;
}

static qd_status check_scales(const qd_tensor *t, qd_err *err)
{
    if (t->dtype != QD_F32)
        return qd_fail(err, QD_E_FORMAT, "the scale must be of floats");
    for (int64_t k = 0; k < qd_tensor_count(t); k++)
        if (!isfinite(qd_f32(t)[k]) || !(qd_f32(t)[k] > 0.0f))
            return qd_fail(err, QD_E_FORMAT, "scale %lld must be finite and > 0, got %g", (long long)k,
                           (double)qd_f32(t)[k]);
    return QD_OK;
}

qd_status qd_onnx_map_from(const qd_tensor *scale, const qd_tensor *zero, const qd_shape *x, int64_t block,
                           int64_t axis, qd_onnx_map *m, qd_err *err)
{
    const int at = axis >= 0 && axis < x->rank ? (int)axis : -1;
    *m = (qd_onnx_map){ 0 };
    qd_status st = check_scales(scale, err);
    if (!st)
        st = lay_out(x, scale, block, at, "the scale", &m->scale, err);
    if (!st && zero && zero->dtype == QD_F32)
        st = qd_fail(err, QD_E_FORMAT, "the zero point must be whole numbers");
    if (!st && zero)
        st = lay_out(x, zero, block, at, "the zero point", &m->zero, err);
    if (!st && zero && !qd_shape_equal(&m->zero.shape, &m->scale.shape))
        st = qd_fail(err, QD_E_FORMAT, "scale and zero point differ in shape");
    if (st) {
        qd_onnx_map_clear(m);
        return st;
    }
    for (int k = 0; k < x->rank; k++)
        m->repeat[k] = k == at && block ? block : m->scale.shape.dim[k] == x->dim[k] ? 1 : x->dim[k];
    return QD_OK;
}

qd_status qd_onnx_map_of(const qd_onnx_reader *r, const qd_onnx_node *n, const qd_shape *x, int k_scale, int k_zero,
                         qd_onnx_map *m, qd_err *err)
{
    const int64_t block = qd_onnx_attr_int(n, "block_size", 0), given = qd_onnx_attr_int(n, "axis", 1);
    const qd_onnx_number *number = qd_onnx_in(r, n, k_zero);
    const qd_tensor *scale, *zero;
    qd_status st = qd_onnx_fixed(r, n, k_scale, &scale, err);
    if (!st)
        st = qd_onnx_fixed(r, n, k_zero, &zero, err);
    if (!st && !scale)
        st = qd_fail(err, QD_E_FORMAT, "input %d, the scale, is missing", k_scale);
    if (!st && (block < 0 || block > QD_MAX_ELEMENTS))
        st = qd_fail(err, QD_E_FORMAT, "block_size %lld", (long long)block);
    if (!st)
        st = qd_onnx_map_from(scale, zero, x, block, given < 0 ? given + x->rank : given, m, err);
    if (!st)
        m->type = number ? number->elem_type : 0;
    return st;
}

void qd_onnx_map_clear(qd_onnx_map *m)
{
    qd_tensor_clear(&m->scale);
    qd_tensor_clear(&m->zero);
}

int64_t qd_onnx_map_at(const qd_onnx_map *m, const int64_t *index)
{
    int64_t at = 0;
    for (int k = 0; k < m->scale.shape.rank; k++)
        at = at * m->scale.shape.dim[k] + (m->scale.shape.dim[k] == 1 ? 0 : index[k] / m->repeat[k]);
    return at;
}

int64_t qd_onnx_map_zero(const qd_onnx_map *m, int64_t at)
{
    return m->zero.data ? qd_onnx_whole(&m->zero, at) : 0;
}

bool qd_onnx_map_is_one(const qd_onnx_map *m)
{
    return qd_tensor_count(&m->scale) == 1;
}

int64_t qd_onnx_whole(const qd_tensor *t, int64_t k)
{
    return t->dtype == QD_I8   ? ((const int8_t *)t->data)[k]
           : t->dtype == QD_U8 ? ((const uint8_t *)t->data)[k]
                               : ((const int64_t *)t->data)[k];
}

/* index over s, row-major. */
static void step(const qd_shape *s, int64_t *index)
{
    for (int k = s->rank - 1; k >= 0; k--) {
        if (++index[k] < s->dim[k])
            return;
        index[k] = 0;
    }
}

/* --- constants that stay codes --- */

void qd_onnx_coded_clear(qd_onnx_coded *c)
{
    qd_tensor_clear(&c->codes);
    qd_onnx_map_clear(&c->map);
}

const qd_onnx_coded *qd_onnx_coded_in(const qd_onnx_reader *r, const qd_onnx_node *n, int k)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, k);
    return v && v->coded ? &r->coded[v->coded - 1] : NULL;
}

/* Output 0 of n is what those codes mean. Takes c, also on failure. */
static qd_status coded_set(qd_onnx_reader *r, const qd_onnx_node *n, qd_onnx_coded *c, qd_err *err)
{
    if (r->n_coded == r->coded_room) {
        const int room = r->coded_room ? 2 * r->coded_room : 64;
        qd_onnx_coded *more = qd_realloc(r->coded, (size_t)room * sizeof(*more));
        if (!more) {
            qd_onnx_coded_clear(c);
            return qd_fail(err, QD_E_NOMEM, "out of memory for %d constants", room);
        }
        r->coded = more;
        r->coded_room = room;
    }
    r->coded[r->n_coded++] = *c;
    qd_onnx_number v = { .constant = true, .coded = r->n_coded, .id = -1, .dtype = QD_F32 };
    for (int w = 0; w < QD_ONNX_WORLDS; w++)
        v.t[w] = (qd_tensor){ .dtype = QD_F32, .shape = c->codes.shape };
    return n->n_outputs > 0 && n->output[0][0] ? qd_onnx_value_add(r, n->output[0], &v, err) : QD_OK;
}

qd_status qd_onnx_coded_floats(const qd_onnx_reader *r, const qd_onnx_coded *c, qd_tensor *out, qd_err *err)
{
    const qd_shape *s = &c->codes.shape;
    int64_t index[QD_MAX_RANK] = { 0 };
    qd_status st = qd_tensor_init(out, QD_F32, s, r->budget, err);
    for (int64_t k = 0; !st && k < qd_tensor_count(out); k++) {
        const int64_t at = qd_onnx_map_at(&c->map, index);
        qd_f32(out)[k] =
            (float)(qd_onnx_whole(&c->codes, k) - qd_onnx_map_zero(&c->map, at)) * qd_f32(&c->map.scale)[at];
        step(s, index);
    }
    return st;
}

qd_status qd_onnx_spell(qd_onnx_reader *r, qd_onnx_number *v, qd_err *err)
{
    qd_tensor t = { 0 };
    if (!v->coded || v->t[0].data)
        return QD_OK;
    qd_status st = qd_onnx_coded_floats(r, &r->coded[v->coded - 1], &t, err);
    if (st)
        return st;
    for (int w = 0; w < QD_ONNX_WORLDS; w++)
        qd_tensor_share(&v->t[w], &t);
    qd_tensor_clear(&t);
    return QD_OK;
}

/* Does the row look at input k's codes itself? */
static bool reads_codes(const qd_onnx_node *n, int k)
{
    static const char *const layers[] = { "Conv", "Gemm", "MatMul" };
    for (size_t j = 0; j < sizeof(layers) / sizeof(layers[0]); j++)
        if (k == 1 && strcmp(n->op, layers[j]) == 0)
            return true;
    return strcmp(n->op, "Identity") == 0 || strcmp(n->op, "Dropout") == 0;
}

qd_status qd_onnx_spell_inputs(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    qd_status st = QD_OK;
    for (int k = 0; k < n->n_inputs && !st; k++) {
        const qd_onnx_number *v = qd_onnx_in(r, n, k);
        if (v && !reads_codes(n, k))
            st = qd_onnx_spell(r, &r->value[v - r->value], err);
    }
    return st;
}

/* t with its axes in another order. */
static qd_status turned(const qd_tensor *t, const int64_t *perm, qd_budget *budget, qd_tensor *out, qd_err *err)
{
    const size_t bytes = qd_dtype_bits(t->dtype) / 8;
    int64_t own[QD_MAX_RANK], index[QD_MAX_RANK] = { 0 }, count = 1;
    qd_shape s = { .rank = t->shape.rank };
    for (int k = s.rank - 1; k >= 0; k--) {
        own[k] = count;
        count *= t->shape.dim[k];
    }
    for (int k = 0; k < s.rank; k++)
        s.dim[k] = t->shape.dim[perm[k]];
    qd_status st = qd_tensor_init(out, t->dtype, &s, budget, err);
    for (int64_t k = 0; !st && k < count; k++) {
        int64_t at = 0;
        for (int j = 0; j < s.rank; j++)
            at += index[j] * own[perm[j]];
        memcpy((char *)out->data + (size_t)k * bytes, (const char *)t->data + (size_t)at * bytes, bytes);
        step(&s, index);
    }
    return st;
}

qd_status qd_onnx_coded_turn(qd_onnx_reader *r, const qd_onnx_coded *c, const int64_t *perm, qd_onnx_coded *out,
                             qd_err *err)
{
    *out = (qd_onnx_coded){ .type = c->type, .map.type = c->map.type };
    qd_status st = turned(&c->codes, perm, r->budget, &out->codes, err);
    if (!st)
        st = turned(&c->map.scale, perm, r->budget, &out->map.scale, err);
    if (!st && c->map.zero.data)
        st = turned(&c->map.zero, perm, r->budget, &out->map.zero, err);
    for (int k = 0; k < c->codes.shape.rank; k++)
        out->map.repeat[k] = c->map.repeat[perm[k]];
    if (st)
        qd_onnx_coded_clear(out);
    return st;
}

static qd_status transpose_codes(qd_onnx_reader *r, const qd_onnx_node *n, const qd_onnx_coded *c, bool *done,
                                 qd_err *err)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(n, "perm");
    const int rank = c->codes.shape.rank;
    int64_t perm[QD_MAX_RANK];
    unsigned seen = 0;
    if (a && (a->kind != QD_ONNX_INTS || a->n != (size_t)rank))
        return QD_OK; /* the row says what is wrong */
    for (int k = 0; k < rank; k++) {
        perm[k] = a ? a->ints[k] : rank - 1 - k;
        if (perm[k] < 0 || perm[k] >= rank || seen & 1u << perm[k])
            return QD_OK;
        seen |= 1u << perm[k];
    }
    qd_onnx_coded t;
    qd_status st = qd_onnx_coded_turn(r, c, perm, &t, err);
    *done = !st;
    return st ? st : coded_set(r, n, &t, err);
}

/* Bare codes (scale 1, zero 0) times floats that are the same along some axes: those are their scales. */
static qd_status scale_codes(qd_onnx_reader *r, const qd_onnx_node *n, const qd_onnx_coded *c,
                             const qd_onnx_number *scale, bool *done, qd_err *err)
{
    const qd_shape *x = &c->codes.shape;
    if (!qd_onnx_map_is_one(&c->map) || *qd_f32(&c->map.scale) != 1.0f || qd_onnx_map_zero(&c->map, 0) || !scale ||
        scale->coded || !qd_onnx_number_fixed(scale) || scale->dtype != QD_F32 || scale->t[0].shape.rank != x->rank ||
        check_scales(&scale->t[0], NULL))
        return QD_OK;
    qd_onnx_coded t = { .type = c->type, .map.type = c->map.type };
    for (int k = 0; k < x->rank; k++) {
        const int64_t d = scale->t[0].shape.dim[k];
        if (d != 1 && d != x->dim[k])
            return QD_OK;
        t.map.repeat[k] = d == x->dim[k] ? 1 : x->dim[k];
    }
    qd_tensor_share(&t.codes, &c->codes);
    qd_tensor_share(&t.map.scale, &scale->t[0]);
    *done = true;
    return coded_set(r, n, &t, err);
}

qd_status qd_onnx_move_codes(qd_onnx_reader *r, const qd_onnx_node *n, bool *done, qd_err *err)
{
    const qd_onnx_coded *a = qd_onnx_coded_in(r, n, 0), *b = qd_onnx_coded_in(r, n, 1);
    *done = false;
    if (strcmp(n->op, "Transpose") == 0 && a && n->n_inputs == 1)
        return transpose_codes(r, n, a, done, err);
    if (strcmp(n->op, "Mul") == 0 && n->n_inputs == 2 && !a != !b)
        return scale_codes(r, n, a ? a : b, qd_onnx_in(r, n, a ? 1 : 0), done, err);
    return QD_OK;
}

/* --- the rows --- */

/* What codes a QuantizeLinear makes: of the zero point's type, or as declared, or uint8. */
static qd_status code_type(const qd_onnx_node *n, const qd_onnx_map *m, int64_t *lo, int64_t *hi, int *type,
                           qd_err *err)
{
    *type = m->type ? m->type : (int)qd_onnx_attr_int(n, "output_dtype", 0);
    if (!*type)
        *type = m->zero.data && m->zero.dtype == QD_I8 ? QD_ONNX_TYPE_INT8 : QD_ONNX_TYPE_UINT8;
    if (!qd_onnx_type_range(*type, lo, hi))
        return qd_fail(err, QD_E_UNSUPPORTED, "codes of type %s (%d), we read those of 8 and 4 bits",
                       qd_onnx_type_name(*type), *type);
    return QD_OK;
}

/* Half to even, as the spec has it; held in range. */
static int64_t encode(float x, float scale, int64_t zero, int64_t lo, int64_t hi)
{
    const double v = nearbyint((double)(x / scale)) + (double)zero;
    return !(v > (double)lo) ? lo : v > (double)hi ? hi : (int64_t)v;
}

static qd_status quantize_constant(qd_onnx_reader *r, const qd_onnx_node *n, const qd_onnx_map *m, int type, int64_t lo,
                                   int64_t hi, qd_err *err)
{
    const qd_tensor *x;
    qd_tensor codes = { 0 };
    int64_t index[QD_MAX_RANK] = { 0 };
    qd_status st = qd_onnx_fixed(r, n, 0, &x, err);
    if (!st && x->dtype != QD_F32)
        st = qd_fail(err, QD_E_UNSUPPORTED, "whole numbers to codes");
    if (!st)
        st = qd_tensor_init(&codes, lo < 0 ? QD_I8 : QD_U8, &x->shape, r->budget, err);
    for (int64_t k = 0; !st && k < qd_tensor_count(x); k++) {
        const int64_t at = qd_onnx_map_at(m, index);
        ((uint8_t *)codes.data)[k] =
            (uint8_t)encode(qd_f32(x)[k], qd_f32(&m->scale)[at], qd_onnx_map_zero(m, at), lo, hi);
        step(&x->shape, index);
    }
    if (st)
        return st;
    qd_onnx_number v = { .constant = true, .elem_type = type, .id = -1, .dtype = codes.dtype };
    for (int w = 0; w < QD_ONNX_WORLDS; w++)
        qd_tensor_share(&v.t[w], &codes);
    qd_tensor_clear(&codes);
    if (n->n_outputs > 0 && n->output[0][0])
        return qd_onnx_value_add(r, n->output[0], &v, err);
    qd_onnx_number_clear(&v);
    return QD_OK;
}

qd_node_id qd_onnx_add_quantize(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x,
                                double scale, int64_t zero, int64_t lo, int64_t hi)
{
    return qd_onnx_add(r, n, suffix, &qd_op_quantize, QD_IN(x),
                       QD_ATTRS(QD_FLOAT("scale", scale), QD_INT("zero", zero), QD_INT("bits", hi - lo > 15 ? 8 : 4),
                                QD_INT("symmetric", lo < 0)));
}

qd_node_id qd_onnx_add_dequantize(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id codes,
                                  double scale, int64_t zero)
{
    return qd_onnx_add(r, n, suffix, &qd_op_dequantize, QD_IN(codes),
                       QD_ATTRS(QD_FLOAT("scale", scale), QD_INT("zero", zero)));
}

static qd_status one_number(const qd_onnx_map *m, qd_err *err)
{
    if (qd_onnx_map_is_one(m))
        return QD_OK;
    return qd_fail(err, QD_E_UNSUPPORTED, "a computed value with more than one scale");
}

qd_status qd_onnx_quantize(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *x = qd_onnx_in(r, n, 0);
    qd_onnx_map m;
    int64_t lo, hi;
    int type;
    qd_status st = qd_onnx_map_of(r, n, qd_onnx_shape_of(x, 0), 1, 2, &m, err);
    if (st)
        return st;
    st = code_type(n, &m, &lo, &hi, &type, err);
    if (!st && x->constant) {
        st = quantize_constant(r, n, &m, type, lo, hi, err);
    } else if (!st) {
        st = one_number(&m, err);
        if (!st)
            st = qd_onnx_set(r, n, 0,
                             qd_onnx_add_quantize(r, n, NULL, qd_onnx_node_of(r, n, 0), *qd_f32(&m.scale),
                                                  qd_onnx_map_zero(&m, 0), lo, hi),
                             err);
    }
    qd_onnx_map_clear(&m);
    return st;
}

qd_status qd_onnx_dequantize(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *x = qd_onnx_in(r, n, 0);
    qd_onnx_map m;
    const qd_tensor *codes;
    qd_status st = qd_onnx_map_of(r, n, qd_onnx_shape_of(x, 0), 1, 2, &m, err);
    if (st)
        return st;
    if (x->constant) {
        st = qd_onnx_fixed(r, n, 0, &codes, err);
        if (!st && codes->dtype == QD_F32)
            st = qd_fail(err, QD_E_FORMAT, "input 0 must be codes, it is floats");
        if (st) {
            qd_onnx_map_clear(&m);
            return st;
        }
        qd_onnx_coded c = { .type = x->elem_type, .map = m };
        qd_tensor_share(&c.codes, codes);
        return coded_set(r, n, &c, err);
    }
    if (x->dtype != QD_U8 && x->dtype != QD_I8)
        st = qd_fail(err, QD_E_UNSUPPORTED, "computed codes of another type than uint8 and int8");
    if (!st)
        st = one_number(&m, err);
    if (!st)
        st = qd_onnx_set(
            r, n, 0,
            qd_onnx_add_dequantize(r, n, NULL, qd_onnx_node_of(r, n, 0), *qd_f32(&m.scale), qd_onnx_map_zero(&m, 0)),
            err);
    qd_onnx_map_clear(&m);
    return st;
}
