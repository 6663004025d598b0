/* onnx_qlayers.c - ONNX layers on codes: QDQ around Conv, Gemm, MatMul, and the operators that take codes themselves (QLinear..,
 * ..Integer), as integer layers of ours where they fit exactly. */
#include "model/onnx_codes.h"

#include <string.h>

/* --- weights --- */

/* A weight [O, I, ..] as an integer layer wants it. */
typedef struct weight {
    qd_tensor codes; // I8 or I4
    qd_tensor scale; // [O], or [O, ceil(I / group)]
    int64_t group;   /* input channels that share a scale; 0 = all */
} weight;

static void weight_clear(weight *w)
{
    qd_tensor_clear(&w->codes);
    qd_tensor_clear(&w->scale);
}

static int64_t gcd(int64_t a, int64_t b)
{
    return b ? gcd(b, a % b) : a;
}

/* Scale of output o and input channel i; false when the places of the kernel differ. */
static bool channel_scale(const qd_onnx_map *m, int64_t o, int64_t i, float *scale)
{
    const qd_shape *s = &m->scale.shape;
    const int64_t index[QD_MAX_RANK] = { o, i };
    int64_t places = 1;
    for (int k = 2; k < s->rank; k++)
        places *= s->dim[k];
    const int64_t at = qd_onnx_map_at(m, index); /* the first of `places` in a row */
    *scale = qd_f32(&m->scale)[at];
    for (int64_t k = 1; k < places; k++)
        if (qd_f32(&m->scale)[at + k] != *scale)
            return false;
    return true;
}

/* How many neighbouring input channels share a scale, 0 = all of them; -1 when places of the kernel differ. */
static int64_t group_of(const qd_onnx_map *m, const qd_shape *w)
{
    int64_t group = 0;
    for (int64_t o = 0; o < w->dim[0]; o++) {
        float before = 0.0f, scale;
        for (int64_t i = 0; i < w->dim[1]; i++) {
            if (!channel_scale(m, o, i, &scale))
                return -1;
            if (i && scale != before)
                group = gcd(group, i);
            before = scale;
        }
    }
    return group;
}

static qd_status read_scales(const qd_onnx_map *m, const qd_shape *s, int64_t group, qd_budget *budget, qd_tensor *out,
                             qd_err *err)
{
    const int64_t scales = group ? (s->dim[1] + group - 1) / group : 1;
    const qd_shape grouped = QD_SHAPE(s->dim[0], scales), plain = QD_SHAPE(s->dim[0]);
    qd_status st = qd_tensor_init(out, QD_F32, group ? &grouped : &plain, budget, err);
    for (int64_t k = 0; !st && k < qd_tensor_count(out); k++)
        channel_scale(m, k / scales, k % scales * group, &qd_f32(out)[k]);
    return st;
}

/* Codes less their zeros, where all fit 8 bits; of 4 bits where they came in 4. */
static qd_status read_codes(const qd_onnx_coded *c, qd_budget *budget, qd_tensor *out, bool *fits, qd_err *err)
{
    const bool was_four = c->type == QD_ONNX_TYPE_INT4 || c->type == QD_ONNX_TYPE_UINT4;
    const qd_shape *s = &c->codes.shape;
    int64_t index[QD_MAX_RANK] = { 0 };
    bool four = was_four;
    qd_tensor eight = { 0 };
    qd_status st = qd_tensor_init(&eight, QD_I8, s, budget, err);
    *fits = !st;
    for (int64_t k = 0; *fits && k < qd_tensor_count(&eight); k++) {
        const int64_t v = qd_onnx_whole(&c->codes, k) - qd_onnx_map_zero(&c->map, qd_onnx_map_at(&c->map, index));
        *fits = v >= INT8_MIN && v <= INT8_MAX;
        four = four && v >= -8 && v <= 7;
        qd_i8(&eight)[k] = (int8_t)v;
        for (int j = s->rank - 1; j >= 0; j--) {
            if (++index[j] < s->dim[j])
                break;
            index[j] = 0;
        }
    }
    if (!st && *fits && four) {
        st = qd_tensor_pack(out, &eight, QD_I4, budget, err);
        qd_tensor_clear(&eight);
    } else if (!st && *fits) {
        *out = eight;
    } else {
        qd_tensor_clear(&eight);
    }
    return st;
}

static qd_status weight_of(const qd_onnx_coded *c, qd_budget *budget, weight *w, bool *fits, qd_err *err)
{
    const qd_shape *s = &c->codes.shape;
    const qd_dtype dtype = c->codes.dtype;
    *w = (weight){ 0 };
    *fits = false;
    if ((dtype != QD_I8 && dtype != QD_U8) || s->rank < 2 || s->dim[0] < 1 ||
        qd_tensor_count(&c->codes) / s->dim[0] < 1)
        return QD_OK;
    w->group = group_of(&c->map, s);
    if (w->group < 0 || w->group > QD_K_MAX_PRODUCTS)
        return QD_OK;
    qd_status st = read_codes(c, budget, &w->codes, fits, err);
    if (!st && *fits)
        st = read_scales(&c->map, s, w->group, budget, &w->scale, err);
    if (st)
        weight_clear(w);
    return st;
}

/* --- layers --- */

/* What an integer layer takes of x: the codes under a dequantize row, or those of the operator's own map. */
typedef struct operand {
    qd_node_id codes; /* -1: x is floats */
    double scale;
    int64_t zero;
} operand;

static operand operand_of(const qd_onnx_reader *r, qd_node_id x)
{
    const qd_node *n = x < 0 ? NULL : qd_graph_node(r->graph, x);
    if (!n || n->op != &qd_op_dequantize)
        return (operand){ .codes = -1 };
    return (operand){ n->input[0], qd_node_float(n, "scale"), qd_node_int(n, "zero") };
}

static bool sums_fit(const qd_tensor *codes)
{
    return qd_tensor_count(codes) / codes->shape.dim[0] <= QD_K_MAX_PRODUCTS;
}

/* codes * scale as rows of the graph: dequantize with 1, then times [O, 1, ..]. */
static qd_node_id spelled_weight(qd_onnx_reader *r, const qd_onnx_node *n, weight *w)
{
    qd_tensor column;
    qd_tensor_share(&column, &w->scale);
    while (column.shape.rank < w->codes.shape.rank)
        column.shape.dim[column.shape.rank++] = 1;
    const qd_node_id codes = qd_onnx_const(r, n, "weight", &w->codes), scale = qd_onnx_const(r, n, "wscale", &column);
    qd_tensor_clear(&column);
    const qd_node_id x = qd_onnx_add_dequantize(r, n, "weight.dequantize", codes, 1.0, 0);
    return qd_onnx_add(r, n, "weight.scaled", &qd_op_mul, QD_IN(x, scale), QD_NO_ATTRS);
}

static qd_node_id integer_layer(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_op *op,
                                const operand *x, const weight *w, qd_node_id bias, const qd_attr *window, int n_window)
{
    qd_attr attrs[QD_MAX_ATTRS];
    const qd_node_id codes = qd_onnx_const(r, n, "weight", &w->codes), scale = qd_onnx_const(r, n, "wscale", &w->scale);
    for (int k = 0; k < n_window; k++)
        attrs[k] = window[k];
    attrs[n_window] = QD_FLOAT("x_scale", x->scale);
    attrs[n_window + 1] = QD_INT("x_zero", x->zero);
    attrs[n_window + 2] = QD_INT("group_size", w->group);
    return qd_onnx_add(r, n, suffix, op, (qd_node_id[]){ x->codes, codes, scale, bias }, bias < 0 ? 3 : 4, attrs,
                       n_window + 3);
}

/* conv2d or qconv2d of x (floats) or its codes, by a coded weight; a convolution along a line is one over planes. */
static qd_status convolve(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_onnx_coded *c,
                          qd_node_id x, operand q, qd_node_id bias, qd_node_id *made, qd_err *err)
{
    const qd_shape *s = &c->codes.shape;
    qd_onnx_window window;
    weight w;
    bool fits;
    *made = -1;
    const qd_node_id from = q.codes >= 0 ? q.codes : x;
    const qd_shape *in = qd_onnx_node_shape(r, from, 0);
    if ((in->rank != 3 && in->rank != 4) || s->rank != in->rank)
        return qd_fail(err, QD_E_UNSUPPORTED, "a convolution of a value of rank %d with a weight of rank %d", in->rank,
                       s->rank);
    qd_status st = qd_onnx_window_of(n, in, s->dim + 2, &window, err);
    if (!st)
        st = weight_of(c, r->budget, &w, &fits, err);
    if (st || !fits)
        return st;
    if (s->rank == 3) {
        w.codes.shape = QD_SHAPE(s->dim[0], s->dim[1], 1, s->dim[2]);
        if (q.codes >= 0)
            q.codes = qd_onnx_to_plane(r, n, q.codes);
        else
            x = qd_onnx_to_plane(r, n, x);
    }
    const qd_attr attrs[] = { qd_attr_ints("stride", 2, window.stride), qd_attr_ints("pads", 4, window.pads),
                              qd_attr_ints("dilation", 2, window.dilation),
                              QD_INT("groups", qd_onnx_attr_int(n, "group", 1)) };
    const char *last = s->rank == 3 ? "plane_conv" : suffix;
    bool did = true;
    if (q.codes >= 0 && sums_fit(&w.codes)) {
        *made = integer_layer(r, n, last, &qd_op_qconv2d, &q, &w, bias, attrs, 4);
    } else if (r->keeps_codes && !w.group && x >= 0) {
        const qd_node_id spelled = spelled_weight(r, n, &w);
        *made = qd_onnx_add(r, n, last, &qd_op_conv2d, (qd_node_id[]){ x, spelled, bias }, bias < 0 ? 2 : 3, attrs, 4);
    } else {
        did = false;
    }
    if (did && s->rank == 3)
        *made = qd_onnx_from_plane(r, n, *made);
    weight_clear(&w);
    return did && *made < 0 ? qd_onnx_graph_words(r, err) : QD_OK;
}

qd_status qd_onnx_conv_of_codes(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id *made, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    if (x < 0)
        return qd_onnx_graph_words(r, err);
    return convolve(r, n, NULL, qd_onnx_coded_in(r, n, 1), x, operand_of(r, x), qd_onnx_node_of(r, n, 2), made, err);
}

static qd_status multiply(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_onnx_coded *c,
                          bool turned, qd_node_id x, const operand *q, qd_node_id bias, qd_node_id *made, qd_err *err)
{
    static const int64_t swap[2] = { 1, 0 };
    qd_onnx_coded t = { 0 };
    weight w;
    bool fits;
    *made = -1;
    if (c->codes.shape.rank != 2 || (x < 0 && q->codes < 0))
        return QD_OK;
    qd_status st = turned ? QD_OK : qd_onnx_coded_turn(r, c, swap, &t, err);
    if (!st)
        st = weight_of(turned ? c : &t, r->budget, &w, &fits, err);
    qd_onnx_coded_clear(&t);
    if (st || !fits)
        return st;
    bool did = true;
    if (q->codes >= 0 && sums_fit(&w.codes)) {
        *made = integer_layer(r, n, suffix, &qd_op_qlinear, q, &w, bias, NULL, 0);
    } else if (r->keeps_codes && !w.group && x >= 0) {
        const qd_node_id spelled = spelled_weight(r, n, &w);
        *made =
            qd_onnx_add(r, n, suffix, &qd_op_linear, (qd_node_id[]){ x, spelled, bias }, bias < 0 ? 2 : 3, QD_NO_ATTRS);
    } else {
        did = false;
    }
    weight_clear(&w);
    return did && *made < 0 ? qd_onnx_graph_words(r, err) : QD_OK;
}

qd_status qd_onnx_linear_of_codes(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, bool turned,
                                  qd_node_id bias, qd_node_id *made, qd_err *err)
{
    const qd_node_id x = qd_onnx_node_of(r, n, 0);
    const operand q = operand_of(r, x);
    return multiply(r, n, suffix, qd_onnx_coded_in(r, n, 1), turned, x, &q, bias, made, err);
}

/* --- operators that take codes --- */

/* Codes of input k with the map of inputs k_scale (-1: 1) and k_zero: computed ones as an operand, constant ones as `coded`. */
typedef struct source {
    operand q;
    qd_onnx_coded coded; /* codes.data NULL: computed */
} source;

static void source_clear(source *s)
{
    qd_onnx_coded_clear(&s->coded);
}

/* Maps of one number, or (of a constant) of one for each index of `axis`, whatever the operator's attributes say. */
static qd_status source_of(qd_onnx_reader *r, const qd_onnx_node *n, int k, int k_scale, int k_zero, int64_t axis,
                           source *s, qd_err *err)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, k), *scale = k_scale < 0 ? NULL : qd_onnx_in(r, n, k_scale);
    const qd_onnx_number *zero = qd_onnx_in(r, n, k_zero);
    const qd_onnx_number one = { .constant = true, .dtype = QD_F32 };
    *s = (source){ .q.codes = -1 };
    if (v->dtype != QD_U8 && v->dtype != QD_I8)
        return qd_fail(err, QD_E_UNSUPPORTED, "input %d must be codes of 8 bits", k);
    if ((k_scale >= 0 && !scale) || (scale && !scale->constant) || (zero && !zero->constant))
        return qd_fail(err, QD_E_UNSUPPORTED, "scale and zero point of input %d must be constants", k);
    if (v->constant && !qd_onnx_number_fixed(v))
        return qd_fail(err, QD_E_UNSUPPORTED, "input %d depends on the batch", k);
    qd_status st = QD_OK;
    qd_tensor unit = { 0 };
    if (!scale) {
        scale = &one;
        st = qd_tensor_init(&unit, QD_F32, &(qd_shape){ 0 }, r->budget, err);
        if (!st)
            *qd_f32(&unit) = 1.0f;
    }
    if (!st)
        st = qd_onnx_map_from(scale == &one ? &unit : &scale->t[0], zero ? &zero->t[0] : NULL, qd_onnx_shape_of(v, 0),
                              0, axis, &s->coded.map, err);
    qd_tensor_clear(&unit);
    if (st)
        return st;
    s->coded.map.type = zero ? zero->elem_type : 0;
    s->coded.type = v->elem_type;
    if (v->constant) {
        qd_tensor_share(&s->coded.codes, &v->t[0]);
        return QD_OK;
    }
    if (!qd_onnx_map_is_one(&s->coded.map)) {
        source_clear(s);
        return qd_fail(err, QD_E_UNSUPPORTED, "input %d is computed and has more than one scale", k);
    }
    s->q = (operand){ qd_onnx_node_of(r, n, k), *qd_f32(&s->coded.map.scale), qd_onnx_map_zero(&s->coded.map, 0) };
    return s->q.codes < 0 ? qd_onnx_graph_words(r, err) : QD_OK;
}

/* The source as floats. */
static qd_node_id floats_of(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const source *s,
                            qd_status *st, qd_err *err)
{
    qd_tensor t = { 0 };
    if (!s->coded.codes.data)
        return qd_onnx_add_dequantize(r, n, suffix, s->q.codes, s->q.scale, s->q.zero);
    *st = qd_onnx_coded_floats(r, &s->coded, &t, err);
    const qd_node_id id = *st ? -1 : qd_onnx_const(r, n, suffix, &t);
    qd_tensor_clear(&t);
    return id;
}

/* y as codes, by inputs k_scale and k_zero. */
static qd_status set_codes(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id y, int k_scale, int k_zero, qd_err *err)
{
    const qd_tensor *scale, *zero;
    const qd_onnx_number *z = qd_onnx_in(r, n, k_zero);
    qd_status st = qd_onnx_fixed(r, n, k_scale, &scale, err);
    if (!st)
        st = qd_onnx_fixed(r, n, k_zero, &zero, err);
    if (st)
        return st;
    if (!scale || !zero || scale->dtype != QD_F32 || qd_tensor_count(scale) != 1 || qd_tensor_count(zero) != 1 ||
        (zero->dtype != QD_U8 && zero->dtype != QD_I8))
        return qd_fail(err, QD_E_UNSUPPORTED, "the result must have one scale and a zero point of 8 bits");
    int64_t lo = zero->dtype == QD_I8 ? -128 : 0, hi = lo + 255;
    qd_onnx_type_range(z->elem_type, &lo, &hi);
    return qd_onnx_set(r, n, 0, qd_onnx_add_quantize(r, n, NULL, y, *qd_f32(scale), qd_onnx_whole(zero, 0), lo, hi),
                       err);
}

/* The int32 bias of a QLinearConv, in units of x_scale * w_scale[o]. */
static qd_status bias_of(qd_onnx_reader *r, const qd_onnx_node *n, int k, const source *x, const source *w,
                         qd_node_id *id, qd_err *err)
{
    const qd_tensor *b;
    qd_tensor t = { 0 };
    const int64_t outputs = w->coded.codes.shape.dim[0];
    const qd_shape s = QD_SHAPE(outputs);
    qd_status st = qd_onnx_fixed(r, n, k, &b, err);
    *id = -1;
    if (st || !b)
        return st;
    if (b->dtype == QD_F32 || qd_tensor_count(b) != outputs)
        return qd_fail(err, QD_E_FORMAT, "the bias must be %lld whole numbers", (long long)outputs);
    st = qd_tensor_init(&t, QD_F32, &s, r->budget, err);
    for (int64_t o = 0; !st && o < outputs; o++) {
        const int64_t index[QD_MAX_RANK] = { o };
        const double scale = x->q.scale * (double)qd_f32(&w->coded.map.scale)[qd_onnx_map_at(&w->coded.map, index)];
        qd_f32(&t)[o] = (float)((double)qd_onnx_whole(b, o) * scale);
    }
    if (!st)
        *id = qd_onnx_const(r, n, "bias", &t);
    qd_tensor_clear(&t);
    return st;
}

/* A convolution of two sources; floats where integers do not fit. */
static qd_status convolve_sources(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const source *x,
                                  const source *w, qd_node_id bias, qd_node_id *made, qd_err *err)
{
    if (x->coded.codes.data || !w->coded.codes.data)
        return qd_fail(err, QD_E_UNSUPPORTED, "a convolution of a constant, or by a computed weight");
    qd_status st = convolve(r, n, suffix, &w->coded, -1, x->q, bias, made, err);
    if (st || *made >= 0)
        return st;
    return qd_fail(err, QD_E_UNSUPPORTED,
                   "weights less their zero points that do not fit 8 bits, or more than %d "
                   "products to an output",
                   QD_K_MAX_PRODUCTS);
}

qd_status qd_onnx_qlinear_conv(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    source x = { 0 }, w = { 0 };
    qd_node_id bias, made = -1;
    qd_status st = source_of(r, n, 0, 1, 2, -1, &x, err);
    if (!st)
        st = source_of(r, n, 3, 4, 5, 0, &w, err);
    if (!st && w.coded.codes.data)
        st = bias_of(r, n, 8, &x, &w, &bias, err);
    if (!st)
        st = convolve_sources(r, n, "sums", &x, &w, w.coded.codes.data ? bias : -1, &made, err);
    if (!st)
        st = set_codes(r, n, made, 6, 7, err);
    source_clear(&x);
    source_clear(&w);
    return st;
}

/* The sums themselves: whole numbers, which a float holds exactly up to 2^24. */
qd_status qd_onnx_conv_integer(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    source x = { 0 }, w = { 0 };
    qd_node_id made = -1;
    qd_status st = source_of(r, n, 0, -1, 2, -1, &x, err);
    if (!st)
        st = source_of(r, n, 1, -1, 3, 0, &w, err);
    if (!st)
        st = convolve_sources(r, n, NULL, &x, &w, -1, &made, err);
    if (!st)
        st = qd_onnx_set(r, n, 0, made, err);
    source_clear(&x);
    source_clear(&w);
    return st;
}

static qd_status multiply_sources(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const source *a,
                                  const source *b, qd_node_id *made, qd_err *err)
{
    qd_status st = QD_OK;
    *made = -1;
    if (!a->coded.codes.data && b->coded.codes.data)
        st = multiply(r, n, suffix, &b->coded, false, -1, &a->q, -1, made, err);
    if (st || *made >= 0)
        return st;
    const qd_node_id x = floats_of(r, n, "a", a, &st, err), y = st ? -1 : floats_of(r, n, "b", b, &st, err);
    if (!st)
        *made = qd_onnx_add(r, n, suffix, &qd_op_matmul, QD_IN(x, y), QD_NO_ATTRS);
    return st;
}

qd_status qd_onnx_qlinear_matmul(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    source a = { 0 }, b = { 0 };
    qd_node_id made = -1;
    qd_status st = source_of(r, n, 0, 1, 2, -1, &a, err);
    if (!st)
        st = source_of(r, n, 3, 4, 5, 1, &b, err);
    if (!st)
        st = multiply_sources(r, n, "sums", &a, &b, &made, err);
    if (!st)
        st = set_codes(r, n, made, 6, 7, err);
    source_clear(&a);
    source_clear(&b);
    return st;
}

qd_status qd_onnx_matmul_integer(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    source a = { 0 }, b = { 0 };
    qd_node_id made = -1;
    qd_status st = source_of(r, n, 0, -1, 2, -1, &a, err);
    if (!st)
        st = source_of(r, n, 1, -1, 3, 1, &b, err);
    if (!st)
        st = multiply_sources(r, n, NULL, &a, &b, &made, err);
    if (!st)
        st = qd_onnx_set(r, n, 0, made, err);
    source_clear(&a);
    source_clear(&b);
    return st;
}
