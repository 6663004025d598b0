/* onnx_qpatterns.c - rows on codes that an ONNX file spells as several: codes of fewer than 8 bits, divisors, imitated codes, a bias
 * behind an integer layer. */
#include "model/onnx_int.h"

#include <string.h>

/* A walk with the number of readers of each node. */
typedef struct finder {
    int *uses; // [nodes]
} finder;

static const qd_tensor *float_const(const qd_onnx_pass *p, qd_node_id id)
{
    const qd_node *n = id < 0 ? NULL : qd_onnx_node_at(p, id);
    return n && n->op == &qd_op_const && n->dtype == QD_F32 ? &n->value : NULL;
}

/* --- the map before a quantize row --- */

/* The bits whose range, at that scale and zero, a Clip to [lo, hi] is; 0 = it is another. */
static int64_t bits_of_clip(const qd_node *quantize, const qd_node *clip)
{
    const double scale = (float)qd_node_float(quantize, "scale");
    const int64_t zero = qd_node_int(quantize, "zero");
    const float lo = (float)qd_node_float(clip, "lo"), hi = (float)qd_node_float(clip, "hi");
    for (int bits = 2; bits < qd_node_int(quantize, "bits"); bits++) {
        const int64_t qmin = qd_node_int(quantize, "symmetric") ? -(1 << (bits - 1)) : 0, qmax = qmin + (1 << bits) - 1;
        if (zero >= qmin && zero <= qmax && lo == (float)((double)(qmin - zero) * scale) &&
            hi == (float)((double)(qmax - zero) * scale))
            return bits;
    }
    return 0;
}

/* A constant divisor of each channel, [C, 1, ..] or [1, C, 1, ..], all above zero. */
static const qd_tensor *divisor_of(const qd_onnx_pass *p, qd_node_id div)
{
    const qd_tensor *t = float_const(p, qd_onnx_operand(p, div, 1));
    const qd_shape *x = &p->shape[qd_onnx_operand(p, div, 0)];
    if (!t || x->rank < 2 || t->shape.rank < x->rank - 1 || t->shape.rank > x->rank ||
        qd_tensor_count(t) != x->dim[1] || t->shape.dim[1 - (x->rank - t->shape.rank)] != x->dim[1])
        return NULL;
    for (int64_t k = 0; k < qd_tensor_count(t); k++)
        if (!(qd_f32(t)[k] > 0.0f && qd_f32(t)[k] < 3.0e38f))
            return NULL;
    return t;
}

/* x, bits and divisor of a quantize row as they were meant. */
typedef struct meant {
    qd_node_id x, divisor; /* divisor: the constant in the old graph, -1 = none */
    int64_t bits;
} meant;

static meant meaning_of(const qd_onnx_pass *p, qd_node_id id)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    meant m = { n->input[0], -1, qd_node_int(n, "bits") };
    if (qd_onnx_operand(p, id, 1) >= 0)
        return m;
    if (qd_onnx_is(p, m.x, &qd_op_clip)) {
        const int64_t bits = bits_of_clip(n, qd_onnx_node_at(p, m.x));
        if (bits) {
            m.bits = bits;
            m.x = qd_onnx_operand(p, m.x, 0);
        }
    }
    if (qd_onnx_is(p, m.x, &qd_op_div) && divisor_of(p, m.x)) {
        m.divisor = qd_onnx_operand(p, m.x, 1);
        m.x = qd_onnx_operand(p, m.x, 0);
    }
    return m;
}

static qd_node_id quantizer(qd_onnx_pass *p, const qd_op *op, const char *name, qd_node_id id)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    const meant m = meaning_of(p, id);
    const qd_node_id own = qd_onnx_operand(p, id, 1);
    qd_node_id divisor = own < 0 ? -1 : p->map[own];
    if (m.divisor >= 0) {
        const qd_shape channels = QD_SHAPE(qd_tensor_count(&qd_onnx_node_at(p, m.divisor)->value));
        divisor = qd_onnx_view_const(p, m.divisor, &channels, name, ".divisor");
    }
    return qd_graph_add(p->out, op, name, (qd_node_id[]){ p->map[m.x], divisor }, divisor < 0 ? 1 : 2,
                        QD_ATTRS(QD_FLOAT("scale", qd_node_float(n, "scale")), QD_INT("zero", qd_node_int(n, "zero")),
                                 QD_INT("bits", m.bits), QD_INT("symmetric", qd_node_int(n, "symmetric"))));
}

static qd_node_id see_quantize(qd_onnx_pass *p, qd_node_id id)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    if (n->op != &qd_op_quantize || meaning_of(p, id).x == n->input[0])
        return -2;
    return quantizer(p, &qd_op_quantize, n->name, id);
}

/* Codes that nobody reads but the way back to floats are imitated. */
static qd_node_id see_fake_quant(qd_onnx_pass *p, qd_node_id id, const finder *f)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    if (n->op != &qd_op_dequantize || !qd_onnx_is(p, n->input[0], &qd_op_quantize) || f->uses[n->input[0]] != 1)
        return -2;
    const qd_node *q = qd_onnx_node_at(p, n->input[0]);
    if ((float)qd_node_float(n, "scale") != (float)qd_node_float(q, "scale") ||
        qd_node_int(n, "zero") != qd_node_int(q, "zero"))
        return -2;
    return quantizer(p, &qd_op_fake_quant, n->name, n->input[0]);
}

/* --- layers --- */

static qd_node_id see_bias(qd_onnx_pass *p, qd_node_id id, const finder *f)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    if (n->op != &qd_op_add)
        return -2;
    for (int side = 0; side < 2; side++) {
        const qd_node_id layer = n->input[side], c = n->input[1 - side];
        const qd_tensor *t = float_const(p, c);
        if (!t || !qd_onnx_is(p, layer, &qd_op_qlinear) || qd_onnx_operand(p, layer, 3) >= 0 || f->uses[layer] != 1 ||
            t->shape.rank != 1 || t->shape.dim[0] != p->shape[qd_onnx_operand(p, layer, 1)].dim[0])
            continue;
        const qd_node *l = qd_onnx_node_at(p, layer);
        return qd_graph_add(p->out, l->op, n->name,
                            QD_IN(p->map[l->input[0]], p->map[l->input[1]], p->map[l->input[2]], p->map[c]), l->attr,
                            l->n_attrs);
    }
    return -2;
}

static qd_node_id see(qd_onnx_pass *p, qd_node_id id, void *ctx)
{
    qd_node_id made = see_quantize(p, id);
    if (made == -2)
        made = see_fake_quant(p, id, ctx);
    return made == -2 ? see_bias(p, id, ctx) : made;
}

qd_status qd_onnx_find_codes(const qd_graph *g, qd_graph **out, qd_err *err)
{
    finder f = { .uses = qd_calloc((size_t)qd_graph_size(g) + 1, sizeof(*f.uses)) };
    if (!f.uses)
        return qd_fail(err, QD_E_NOMEM, "out of memory for %d nodes", qd_graph_size(g));
    qd_graph_uses(g, f.uses);
    const qd_status st = qd_onnx_walk(g, see, &f, out, err);
    qd_free(f.uses);
    return st;
}
