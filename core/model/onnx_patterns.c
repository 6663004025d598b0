/* onnx_patterns.c - rows of ours that an exporter has written as several small ones: norms, activations, biases, padding. */
#include "model/onnx_int.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* --- walking --- */

const qd_node *qd_onnx_node_at(const qd_onnx_pass *p, qd_node_id id)
{
    return qd_graph_node(p->g, id);
}

qd_node_id qd_onnx_operand(const qd_onnx_pass *p, qd_node_id id, int k)
{
    const qd_node *n = qd_graph_node(p->g, id);
    return k < n->n_inputs ? n->input[k] : -1;
}

bool qd_onnx_is(const qd_onnx_pass *p, qd_node_id id, const qd_op *op)
{
    return id >= 0 && qd_graph_node(p->g, id)->op == op;
}

const char *qd_onnx_fresh(const qd_onnx_pass *p, char text[QD_MAX_NAME + 1], const char *name, const char *suffix)
{
    enum { QUOTES = 16 };
    int n = snprintf(text, QD_MAX_NAME + 1 - QUOTES, "%s%s", name, suffix ? suffix : "");
    if (n > QD_MAX_NAME - QUOTES)
        n = QD_MAX_NAME - QUOTES;
    while (qd_graph_find(p->out, text) >= 0 && n < QD_MAX_NAME) {
        text[n++] = '\'';
        text[n] = '\0';
    }
    return text;
}

qd_node_id qd_onnx_view_const(qd_onnx_pass *p, qd_node_id id, const qd_shape *shape, const char *name,
                              const char *suffix)
{
    char text[QD_MAX_NAME + 1];
    qd_tensor view;
    qd_tensor_share(&view, &qd_onnx_node_at(p, id)->value);
    view.shape = *shape;
    const qd_node_id made = qd_graph_const(p->out, qd_onnx_fresh(p, text, name, suffix), &view);
    qd_tensor_clear(&view);
    return made;
}

static qd_status shapes_for(qd_onnx_pass *p, qd_err *err)
{
    qd_shape in[QD_MAX_INPUTS * 4];
    const int n = qd_graph_inputs(p->g);
    if (n > QD_MAX_INPUTS * 4)
        return qd_fail(err, QD_E_LIMIT, "%d inputs, at most %d", n, QD_MAX_INPUTS * 4);
    for (int k = 0; k < n; k++) {
        in[k] = qd_graph_node(p->g, qd_graph_input_at(p->g, k))->shape;
        if (in[k].rank && in[k].dim[0] == -1)
            in[k].dim[0] = p->batch;
    }
    return qd_graph_shapes(p->g, in, n, p->shape, err);
}

qd_status qd_onnx_walk(const qd_graph *g, qd_node_id (*visit)(qd_onnx_pass *p, qd_node_id id, void *ctx), void *ctx,
                       qd_graph **out, qd_err *err)
{
    const size_t n = (size_t)qd_graph_size(g);
    qd_onnx_pass p = { .g = g, .batch = 1009 };
    qd_status st;
    p.map = qd_alloc((n + 1) * sizeof(*p.map));
    p.shape = qd_alloc((n + 1) * sizeof(*p.shape));
    st = p.map && p.shape ? qd_graph_new(&p.out, err) : qd_fail(err, QD_E_NOMEM, "out of memory for %zu nodes", n);
    if (!st)
        st = shapes_for(&p, err);
    if (st)
        goto out;
    for (qd_node_id id = 0; id < (qd_node_id)n; id++) {
        p.map[id] = visit(&p, id, ctx);
        if (p.map[id] == -2)
            qd_graph_copy_node(p.out, g, id, p.map);
    }
    qd_graph_copy_outputs(p.out, g, p.map);
    st = qd_graph_verify(p.out, err);
    if (!st)
        st = qd_graph_prune(p.out, out, err);
out:
    qd_graph_free(p.out);
    qd_free(p.map);
    qd_free(p.shape);
    return st;
}

/* --- looking --- */

static const qd_tensor *constant(const qd_onnx_pass *p, qd_node_id id)
{
    return qd_onnx_is(p, id, &qd_op_const) && qd_onnx_node_at(p, id)->dtype == QD_F32 ? &qd_onnx_node_at(p, id)->value
                                                                                      : NULL;
}

/* a commutative row whose one operand is a float constant: which, and the other. */
static bool with_constant(const qd_onnx_pass *p, qd_node_id id, const qd_op *op, qd_node_id *other, qd_node_id *c)
{
    if (!qd_onnx_is(p, id, op))
        return false;
    const int side = constant(p, qd_onnx_operand(p, id, 1)) ? 1 : 0;
    *c = qd_onnx_operand(p, id, side);
    *other = qd_onnx_operand(p, id, 1 - side);
    return constant(p, *c) && !constant(p, *other);
}

static bool affine_of(const qd_onnx_pass *p, qd_node_id id, double *mul, double *add)
{
    if (!qd_onnx_is(p, id, &qd_op_affine))
        return false;
    *mul = qd_node_float(qd_onnx_node_at(p, id), "mul");
    *add = qd_node_float(qd_onnx_node_at(p, id), "add");
    return true;
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-5 * fabs(b);
}

static bool all_are(const qd_tensor *t, float v)
{
    for (int64_t k = 0; t && k < qd_tensor_count(t); k++)
        if (qd_f32(t)[k] != v)
            return false;
    return true;
}

/* Does c, broadcast to x, hold one number for each channel (axis 1)? */
static bool per_channel(const qd_onnx_pass *p, qd_node_id c, const qd_shape *x)
{
    const qd_tensor *t = constant(p, c);
    if (!t || x->rank < 2 || t->shape.rank > x->rank || t->shape.rank < x->rank - 1 || qd_tensor_count(t) != x->dim[1])
        return false;
    return t->shape.dim[1 - (x->rank - t->shape.rank)] == x->dim[1];
}

/* "block/norm" of "block/norm/Add": where the exporter put the small rows of one layer. */
static void scope_of(const char *name, char scope[QD_MAX_NAME + 1])
{
    const char *slash = strrchr(name, '/');
    const size_t n = slash && slash > name ? (size_t)(slash - name) : strlen(name);
    memcpy(scope, name, n);
    scope[n] = '\0';
}

/* The layer a weight belongs to: "norm1" of "norm1.weight"; else what the node is called. */
static void layer_of(const qd_onnx_pass *p, qd_node_id weight, qd_node_id id, char layer[QD_MAX_NAME + 1])
{
    const char *name = weight < 0 ? "" : qd_onnx_node_at(p, weight)->name, *end = strstr(name, ".weight");
    if (!end || end == name || end[7]) {
        name = qd_onnx_node_at(p, id)->name;
        end = name + strlen(name);
    }
    memcpy(layer, name, (size_t)(end - name));
    layer[end - name] = '\0';
}

static qd_node_id mapped(const qd_onnx_pass *p, qd_node_id id)
{
    return id < 0 ? -1 : p->map[id];
}

/* --- activations --- */

static qd_node_id see_silu(qd_onnx_pass *p, qd_node_id id)
{
    if (!qd_onnx_is(p, id, &qd_op_mul))
        return -2;
    for (int side = 0; side < 2; side++) {
        const qd_node_id x = qd_onnx_operand(p, id, side), gate = qd_onnx_operand(p, id, 1 - side);
        if (qd_onnx_is(p, gate, &qd_op_sigmoid) && qd_onnx_operand(p, gate, 0) == x)
            return qd_graph_add(p->out, &qd_op_silu, qd_onnx_node_at(p, id)->name, QD_IN(p->map[x]), QD_NO_ATTRS);
    }
    return -2;
}

/* mul * (1 + erf(x / sqrt 2)) under factors and sums. */
static bool is_erf_gate(const qd_onnx_pass *p, qd_node_id id, qd_node_id *x, double *factor)
{
    double mul = 1.0, add = 0.0, a, b;
    while (affine_of(p, id, &a, &b)) { /* outer (mul y + add), y = a z + b */
        add += mul * b;
        mul *= a;
        id = qd_onnx_operand(p, id, 0);
    }
    if (!qd_onnx_is(p, id, &qd_op_erf) || !near(mul, add))
        return false;
    id = qd_onnx_operand(p, id, 0);
    if (!affine_of(p, id, &a, &b) || !near(a, M_SQRT1_2) || b != 0.0)
        return false;
    *x = qd_onnx_operand(p, id, 0);
    *factor = mul;
    return true;
}

/* x times a gate, with factors anywhere: 0.5 in all. */
static bool is_gelu(const qd_onnx_pass *p, qd_node_id id, qd_node_id *x)
{
    double outer = 1.0, a, b, gate;
    while (affine_of(p, id, &a, &b) && b == 0.0) {
        outer *= a;
        id = qd_onnx_operand(p, id, 0);
    }
    if (!qd_onnx_is(p, id, &qd_op_mul))
        return false;
    for (int side = 0; side < 2; side++) {
        qd_node_id y = qd_onnx_operand(p, id, side);
        double factor = outer;
        if (!is_erf_gate(p, qd_onnx_operand(p, id, 1 - side), x, &gate))
            continue;
        while (y != *x && affine_of(p, y, &a, &b) && b == 0.0) {
            factor *= a;
            y = qd_onnx_operand(p, y, 0);
        }
        if (y == *x && near(factor * gate, 0.5))
            return true;
    }
    return false;
}

static qd_node_id see_gelu(qd_onnx_pass *p, qd_node_id id)
{
    qd_node_id x;
    if (!is_gelu(p, id, &x))
        return -2;
    return qd_graph_add(p->out, &qd_op_gelu, qd_onnx_node_at(p, id)->name, QD_IN(p->map[x]), QD_NO_ATTRS);
}

/* --- norms --- */

/* Reshape to groups, instance norm without weights, reshape back. */
static bool is_bare_group_norm(const qd_onnx_pass *p, qd_node_id id, qd_node_id *x, int64_t *groups, double *eps)
{
    if (!qd_onnx_is(p, id, &qd_op_reshape))
        return false;
    const qd_node_id norm = qd_onnx_operand(p, id, 0);
    if (!qd_onnx_is(p, norm, &qd_op_group_norm))
        return false;
    const qd_node *n = qd_onnx_node_at(p, norm);
    const qd_node_id in = n->input[0];
    if (!qd_onnx_is(p, in, &qd_op_reshape))
        return false;
    *x = qd_onnx_operand(p, in, 0);
    const qd_shape *whole = &p->shape[*x], *grouped = &p->shape[in];
    const qd_node_id weight = qd_onnx_operand(p, norm, 1), bias = qd_onnx_operand(p, norm, 2);
    *groups = qd_node_int(n, "groups");
    *eps = qd_node_float(n, "eps");
    return qd_shape_equal(whole, &p->shape[id]) && whole->rank >= 2 && grouped->rank >= 2 &&
           grouped->dim[0] == whole->dim[0] && grouped->dim[1] == *groups && whole->dim[1] % *groups == 0 &&
           (weight < 0 || (constant(p, weight) && all_are(constant(p, weight), 1.0f))) &&
           (bias < 0 || (constant(p, bias) && all_are(constant(p, bias), 0.0f)));
}

/* The same, then weight and bias of each channel where the exporter has them. */
static qd_node_id see_group_norm(qd_onnx_pass *p, qd_node_id id)
{
    qd_node_id x, inner = id, weight = -1, bias = -1, c;
    int64_t groups;
    double eps;
    if (with_constant(p, id, &qd_op_add, &inner, &c)) {
        bias = c;
        if (!with_constant(p, inner, &qd_op_mul, &inner, &weight))
            return -2;
    }
    if (!is_bare_group_norm(p, inner, &x, &groups, &eps))
        return -2;
    const qd_shape *s = &p->shape[x], channels = QD_SHAPE(s->dim[1]);
    if (bias >= 0 && (!per_channel(p, bias, s) || !per_channel(p, weight, s) || !qd_shape_equal(&p->shape[id], s)))
        return -2;
    char scope[QD_MAX_NAME + 1], name[QD_MAX_NAME + 1];
    scope_of(qd_onnx_node_at(p, id)->name, scope);
    const qd_node_id w = weight < 0 ? -1 : qd_onnx_view_const(p, weight, &channels, scope, ".weight");
    const qd_node_id b = bias < 0 ? -1 : qd_onnx_view_const(p, bias, &channels, scope, ".bias");
    return qd_graph_add(p->out, &qd_op_group_norm, qd_onnx_fresh(p, name, scope, NULL),
                        (qd_node_id[]){ p->map[x], w, b }, bias < 0 ? 1 : 3,
                        QD_ATTRS(QD_INT("groups", groups), QD_FLOAT("eps", eps)));
}

/* How many of the last axes a mean runs over; 0 when it is another set or drops them. */
static int mean_of_last(const qd_onnx_pass *p, qd_node_id id, qd_node_id *x)
{
    if (!qd_onnx_is(p, id, &qd_op_mean) || !qd_node_int(qd_onnx_node_at(p, id), "keep"))
        return 0;
    const qd_attr *axes = qd_node_ints(qd_onnx_node_at(p, id), "axes");
    *x = qd_onnx_operand(p, id, 0);
    const int rank = p->shape[*x].rank;
    unsigned seen = 0;
    for (int k = 0; k < axes->n; k++)
        seen |= 1u << (axes->ints[k] < 0 ? axes->ints[k] + rank : axes->ints[k]);
    return seen == ((1u << rank) - (1u << (rank - axes->n))) ? axes->n : 0;
}

/* x - mean(x); gives x and the number of axes. */
static int centered(const qd_onnx_pass *p, qd_node_id id, qd_node_id *x)
{
    qd_node_id of;
    if (!qd_onnx_is(p, id, &qd_op_sub))
        return 0;
    const int axes = mean_of_last(p, qd_onnx_operand(p, id, 1), &of);
    *x = qd_onnx_operand(p, id, 0);
    return axes && of == *x ? axes : 0;
}

/* (x - mean) / sqrt(mean((x - mean)^2) + eps) */
static int is_bare_layer_norm(const qd_onnx_pass *p, qd_node_id id, qd_node_id *x, double *eps)
{
    qd_node_id of, square;
    double mul;
    if (!qd_onnx_is(p, id, &qd_op_div))
        return 0;
    const int axes = centered(p, qd_onnx_operand(p, id, 0), x);
    const qd_node_id root = qd_onnx_operand(p, id, 1);
    if (!axes || !qd_onnx_is(p, root, &qd_op_sqrt))
        return 0;
    const qd_node_id sum = qd_onnx_operand(p, root, 0);
    if (!affine_of(p, sum, &mul, eps) || mul != 1.0 || !(*eps > 0.0) ||
        mean_of_last(p, qd_onnx_operand(p, sum, 0), &square) != axes || !qd_onnx_is(p, square, &qd_op_mul) ||
        qd_onnx_operand(p, square, 0) != qd_onnx_operand(p, square, 1))
        return 0;
    return centered(p, qd_onnx_operand(p, square, 0), &of) == axes && of == *x ? axes : 0;
}

static bool is_tail(const qd_onnx_pass *p, qd_node_id c, const qd_shape *tail)
{
    const qd_tensor *t = constant(p, c);
    return t && qd_shape_equal(&t->shape, tail);
}

static qd_node_id see_layer_norm(qd_onnx_pass *p, qd_node_id id)
{
    qd_node_id x, inner = id, weight = -1, bias = -1, other, c;
    double eps;
    if (with_constant(p, inner, &qd_op_add, &other, &c)) {
        bias = c;
        inner = other;
    }
    if (with_constant(p, inner, &qd_op_mul, &other, &c)) {
        weight = c;
        inner = other;
    }
    const int axes = is_bare_layer_norm(p, inner, &x, &eps);
    if (!axes)
        return -2;
    const qd_shape *s = &p->shape[x], tail = qd_shape_of(axes, s->dim + s->rank - axes);
    if ((bias >= 0 && !is_tail(p, bias, &tail)) || (weight >= 0 && !is_tail(p, weight, &tail)))
        return -2;
    char layer[QD_MAX_NAME + 1], name[QD_MAX_NAME + 1];
    layer_of(p, weight, id, layer);
    return qd_graph_add(p->out, &qd_op_layer_norm, qd_onnx_fresh(p, name, layer, NULL),
                        (qd_node_id[]){ p->map[x], mapped(p, weight), mapped(p, bias) }, 3,
                        QD_ATTRS(QD_INT("axes", axes), QD_FLOAT("eps", eps)));
}

/* --- layers --- */

static qd_node_id see_bias(qd_onnx_pass *p, qd_node_id id)
{
    qd_node_id layer, c;
    if (!with_constant(p, id, &qd_op_add, &layer, &c) || !qd_onnx_is(p, layer, &qd_op_linear) ||
        qd_onnx_operand(p, layer, 2) >= 0)
        return -2;
    const qd_node_id x = qd_onnx_operand(p, layer, 0), w = qd_onnx_operand(p, layer, 1);
    const qd_tensor *t = constant(p, c);
    if (t->shape.rank != 1 || t->shape.dim[0] != p->shape[w].dim[0])
        return -2;
    const char *name = qd_onnx_node_at(p, id)->name;
    const qd_node_id weight = constant(p, w) ? qd_onnx_view_const(p, w, &p->shape[w], name, ".weight") : p->map[w];
    return qd_graph_add(p->out, &qd_op_linear, name, QD_IN(p->map[x], weight, p->map[c]), QD_NO_ATTRS);
}

/* Zeros around a picture before a convolution are its own padding. */
static qd_node_id see_padding(qd_onnx_pass *p, qd_node_id id)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    if (n->op != &qd_op_conv2d || !qd_onnx_is(p, n->input[0], &qd_op_pad))
        return -2;
    const qd_node *pad = qd_onnx_node_at(p, n->input[0]);
    const int64_t *border = qd_node_ints(pad, "pads")->ints, *own = qd_node_ints(n, "pads")->ints;
    if (qd_node_float(pad, "value") != 0.0 || p->shape[pad->input[0]].rank != 4 || border[0] || border[1] ||
        border[4] || border[5])
        return -2;
    const int64_t pads[4] = { own[0] + border[2], own[1] + border[3], own[2] + border[6], own[3] + border[7] };
    for (int k = 0; k < 4; k++)
        if (pads[k] > 65535)
            return -2;
    qd_attr attrs[QD_MAX_ATTRS];
    qd_node_id in[3];
    for (int k = 0; k < n->n_attrs; k++)
        attrs[k] = strcmp(n->attr[k].name, "pads") == 0 ? qd_attr_ints("pads", 4, pads) : n->attr[k];
    for (int k = 0; k < n->n_inputs; k++)
        in[k] = mapped(p, k ? n->input[k] : pad->input[0]);
    return qd_graph_add(p->out, n->op, n->name, in, n->n_inputs, attrs, n->n_attrs);
}

/* --- all of them --- */

static qd_node_id see(qd_onnx_pass *p, qd_node_id id, void *ctx)
{
    static qd_node_id (*const patterns[])(qd_onnx_pass *, qd_node_id) = { see_silu,       see_gelu, see_group_norm,
                                                                          see_layer_norm, see_bias, see_padding };
    for (size_t k = 0; k < sizeof(patterns) / sizeof(patterns[0]); k++) {
        const qd_node_id made = patterns[k](p, id);
        if (made != -2)
            return made;
    }
    return -2;
}

/* Takes the quotes off names that were fresh only because of something since pruned. */
static qd_node_id unquote(qd_onnx_pass *p, qd_node_id id, void *ctx)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    char name[QD_MAX_NAME + 1];
    size_t length = strlen(n->name);
    qd_node_id in[QD_MAX_INPUTS];
    while (length > 1 && n->name[length - 1] == '\'')
        length--;
    if (!n->name[length] || n->op == &qd_op_input)
        return -2;
    memcpy(name, n->name, length);
    name[length] = '\0';
    if (qd_graph_find(p->g, name) >= 0 || qd_graph_find(p->out, name) >= 0)
        return -2;
    if (n->op == &qd_op_const)
        return qd_graph_const(p->out, name, &n->value);
    for (int k = 0; k < n->n_inputs; k++)
        in[k] = mapped(p, n->input[k]);
    return qd_graph_add(p->out, n->op, name, in, n->n_inputs, n->attr, n->n_attrs);
}

qd_status qd_onnx_recognise(const qd_graph *g, qd_graph **out, qd_err *err)
{
    enum { STEPS = 4 };
    qd_graph *step[STEPS] = { NULL };
    qd_status st = qd_onnx_walk(g, see, NULL, &step[0], err);
    if (!st)
        st = qd_onnx_find_attention(step[0], &step[1], err); /* codes on the way there are not only imitated ones */
    if (!st)
        st = qd_onnx_find_codes(step[1], &step[2], err);
    if (!st)
        st = qd_onnx_tidy_views(step[2], &step[3], err);
    if (!st)
        st = qd_onnx_walk(step[3], unquote, NULL, out, err);
    for (int k = 0; k < STEPS; k++)
        qd_graph_free(step[k]);
    return st;
}
