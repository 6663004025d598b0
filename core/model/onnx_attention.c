/* onnx_attention.c - softmax(q k^T s) v behind the reshapes and transposes that make heads, however the exporter wrote them.
 *
 * Reshape, permute and slice only look at elements in another order. So each value is followed back to the one that was
 * computed (its source), as offset and strides into it (row-major). Attention is found by where the elements of its operands
 * lie, not by which rows put them there. */
#include "model/onnx_int.h"

#include <math.h>
#include <string.h>

typedef struct view {
    qd_node_id source;
    qd_shape shape;
    int64_t stride[QD_MAX_RANK], offset; // elements of the source
    double scale;                        /* times this; 1 unless scaling was followed too */
} view;

typedef struct finder {
    view *view; // [nodes]
    int n;
    bool scaled;        /* follow multiplication by a number */
    qd_node_id *tokens; // [nodes of g] that picture as tokens in the new graph, -1 = not yet
} finder;

/* --- views --- */

static void identity(view *v, qd_node_id id, const qd_shape *s)
{
    *v = (view){ .source = id, .shape = *s, .scale = 1.0 };
    int64_t step = 1;
    for (int k = s->rank - 1; k >= 0; k--) {
        v->stride[k] = step;
        step *= s->dim[k];
    }
}

static bool is_whole(const view *v, const qd_shape *source)
{
    view plain;
    identity(&plain, v->source, &v->shape);
    int64_t a = 1, b = 1;
    for (int k = 0; k < v->shape.rank; k++) {
        a *= v->shape.dim[k];
        if (v->shape.dim[k] != 1 && v->stride[k] != plain.stride[k])
            return false;
    }
    for (int k = 0; k < source->rank; k++)
        b *= source->dim[k];
    return v->offset == 0 && a == b;
}

/* v under another shape without moving elements, where that is possible: axes are merged and split inside runs that lie
 * evenly spaced. */
static bool reshape_view(const view *v, const qd_shape *to, view *out)
{
    const int rank = v->shape.rank;
    view r = *v;
    r.shape = *to;
    int at = to->rank - 1;
    int64_t base = rank ? v->stride[rank - 1] : 1, have = 1, want = 1;
    for (int k = rank - 1; k >= 0; k--) {
        have *= v->shape.dim[k];
        if (k > 0 && (v->shape.dim[k - 1] == 1 || v->stride[k - 1] == have * base))
            continue;
        while (at >= 0 && (want < have || to->dim[at] == 1)) {
            r.stride[at] = want * base;
            want *= to->dim[at--];
        }
        if (want != have)
            return false;
        if (k > 0) {
            base = v->stride[k - 1];
            have = want = 1;
        }
    }
    if (at >= 0)
        return false;
    *out = r;
    return true;
}

static void follow(finder *f, const qd_onnx_pass *p, qd_node_id id)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    view *v = &f->view[id];
    identity(v, id, &p->shape[id]);
    const view *x = n->n_inputs && n->input[0] >= 0 ? &f->view[n->input[0]] : NULL;
    if (n->op == &qd_op_permute) {
        const int64_t *perm = qd_node_ints(n, "perm")->ints;
        view r = *x;
        for (int k = 0; k < r.shape.rank; k++) {
            r.shape.dim[k] = x->shape.dim[perm[k]];
            r.stride[k] = x->stride[perm[k]];
        }
        *v = r;
    } else if (n->op == &qd_op_reshape) {
        view near; /* where the elements were put in order anew, the reshape's own input is as far as we see */
        identity(&near, n->input[0], &p->shape[n->input[0]]);
        if (!reshape_view(x, &p->shape[id], v))
            reshape_view(&near, &p->shape[id], v);
    } else if (n->op == &qd_op_slice) {
        int64_t axis = qd_node_int(n, "axis"), start = qd_node_int(n, "start");
        axis += axis < 0 ? x->shape.rank : 0;
        start += start < 0 ? x->shape.dim[axis] : 0;
        view r = *x;
        r.shape = p->shape[id];
        r.offset += start * x->stride[axis];
        r.stride[axis] *= qd_node_int(n, "step");
        *v = r;
    } else if (f->scaled && n->op == &qd_op_affine && qd_node_float(n, "add") == 0.0) {
        *v = *x;
        v->scale *= qd_node_float(n, "mul");
    }
}

static qd_status finder_init(finder *f, const qd_graph *g, bool scaled, qd_err *err)
{
    *f = (finder){ .n = qd_graph_size(g), .scaled = scaled };
    f->view = qd_alloc(((size_t)f->n + 1) * sizeof(*f->view));
    f->tokens = qd_alloc(((size_t)f->n + 1) * sizeof(*f->tokens));
    if (!f->view || !f->tokens)
        return qd_fail(err, QD_E_NOMEM, "out of memory for %d views", f->n);
    for (int k = 0; k < f->n; k++)
        f->tokens[k] = -1;
    return QD_OK;
}

static void finder_clear(finder *f)
{
    qd_free(f->view);
    qd_free(f->tokens);
}

static void swap_last(view *v)
{
    const int a = v->shape.rank - 2, b = v->shape.rank - 1;
    const int64_t dim = v->shape.dim[a], stride = v->stride[a];
    v->shape.dim[a] = v->shape.dim[b];
    v->stride[a] = v->stride[b];
    v->shape.dim[b] = dim;
    v->stride[b] = stride;
}

/* Operand k of a matmul with its transposition taken in. */
static bool operand(const finder *f, const qd_onnx_pass *p, qd_node_id id, int k, view *v)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    *v = f->view[n->input[k]];
    if (v->shape.rank != p->shape[id].rank || v->shape.rank < 3 || v->shape.rank > 4)
        return false;
    if (qd_node_int(n, k ? "trans_b" : "trans_a"))
        swap_last(v);
    return true;
}

/* --- what attention is made of --- */

/* q, k, v as views [N, heads, tokens, width]. */
typedef struct parts {
    view q, k, v;
    double scale;
    bool turned; /* the product gives [.., width, tokens] */
} parts;

/* A rank-3 view of [N heads] or [N] first as [N, heads, ..]. */
static void with_heads(const qd_onnx_pass *p, view *v)
{
    if (v->shape.rank == 4)
        return;
    const int64_t heads = v->shape.dim[0] % p->batch == 0 ? v->shape.dim[0] / p->batch : 1;
    for (int k = 3; k > 1; k--) {
        v->shape.dim[k] = v->shape.dim[k - 1];
        v->stride[k] = v->stride[k - 1];
    }
    v->shape.rank = 4;
    v->stride[1] = v->stride[0];
    v->stride[0] *= heads;
    v->shape.dim[0] /= heads;
    v->shape.dim[1] = heads;
}

/* A view of a value that is a view itself, axis by axis: then of what lies behind it. Left as it is where axes do not match. */
static void look_behind(const finder *f, const qd_onnx_pass *p, view *v)
{
    for (;;) {
        const view *behind = &f->view[v->source];
        view plain, r = *v;
        identity(&plain, v->source, &p->shape[v->source]);
        if (behind->source == v->source || v->offset)
            return;
        for (int k = 0; k < v->shape.rank; k++) {
            int axis = -1;
            for (int j = 0; j < plain.shape.rank && v->shape.dim[k] > 1; j++)
                if (plain.stride[j] == v->stride[k] && plain.shape.dim[j] == v->shape.dim[k])
                    axis = j;
            if (axis < 0 && v->shape.dim[k] > 1)
                return;
            r.stride[k] = axis < 0 ? 0 : behind->stride[axis];
        }
        r.source = behind->source;
        r.offset = behind->offset;
        r.scale *= behind->scale;
        *v = r;
    }
}

static bool find_parts(const finder *f, const qd_onnx_pass *p, qd_node_id id, parts *a)
{
    view left, right;
    if (!qd_onnx_is(p, id, &qd_op_matmul) || qd_node_float(qd_onnx_node_at(p, id), "alpha") != 1.0 ||
        !operand(f, p, id, 0, &left) || !operand(f, p, id, 1, &right))
        return false;
    a->turned = !qd_onnx_is(p, left.source, &qd_op_softmax);
    view *probability = a->turned ? &right : &left;
    a->v = a->turned ? left : right;
    if (a->turned) { /* (v^T p^T) */
        swap_last(probability);
        swap_last(&a->v);
    }
    const qd_node_id softmax = probability->source;
    if (!qd_onnx_is(p, softmax, &qd_op_softmax) || probability->scale != 1.0 ||
        !is_whole(probability, &p->shape[softmax]) || !qd_shape_equal(&probability->shape, &p->shape[softmax]))
        return false;
    const int64_t axis = qd_node_int(qd_onnx_node_at(p, softmax), "axis");
    if (axis != -1 && axis != p->shape[softmax].rank - 1)
        return false;
    const view *scores = &f->view[qd_onnx_operand(p, softmax, 0)];
    const qd_node_id product = scores->source;
    if (!qd_onnx_is(p, product, &qd_op_matmul) || !is_whole(scores, &p->shape[product]) ||
        !qd_shape_equal(&scores->shape, &p->shape[product]) || !operand(f, p, product, 0, &a->q) ||
        !operand(f, p, product, 1, &a->k))
        return false;
    swap_last(&a->k);
    with_heads(p, &a->q);
    with_heads(p, &a->k);
    with_heads(p, &a->v);
    look_behind(f, p, &a->q);
    look_behind(f, p, &a->k);
    look_behind(f, p, &a->v);
    a->scale = scores->scale * a->q.scale * a->k.scale * qd_node_float(qd_onnx_node_at(p, product), "alpha");
    if (a->scale == 0.0 || a->v.scale != 1.0)
        return false;
    const int64_t *q = a->q.shape.dim, *k = a->k.shape.dim, *v = a->v.shape.dim;
    return q[0] == k[0] && k[0] == v[0] && q[1] == k[1] && k[1] == v[1] && k[2] == v[2] && q[3] == k[3] && k[3] == v[3];
}

/* --- tokens: [N, T, C] of a view --- */

static qd_node_id named(qd_onnx_pass *p, const char *name, const char *suffix, const qd_op *op, qd_node_id x,
                        const qd_attr *attrs, int n_attrs)
{
    char text[QD_MAX_NAME + 1];
    return qd_graph_add(p->out, op, qd_onnx_fresh(p, text, name, suffix), QD_IN(x), attrs, n_attrs);
}

static qd_node_id permuted(qd_onnx_pass *p, const char *name, const char *suffix, qd_node_id x, int rank,
                           const int64_t *perm)
{
    return named(p, name, suffix, &qd_op_permute, x, QD_ATTRS(qd_attr_ints("perm", rank, perm)));
}

static qd_node_id reshaped(qd_onnx_pass *p, const char *name, const char *suffix, qd_node_id x, int rank,
                           const int64_t *dims)
{
    return named(p, name, suffix, &qd_op_reshape, x, QD_ATTRS(qd_attr_ints("shape", rank, dims)));
}

/* [N, C, ..] of the old graph as [N, T, C] in the new one, made once. */
static qd_node_id picture_tokens(finder *f, qd_onnx_pass *p, qd_node_id x)
{
    const qd_shape *s = &p->shape[x];
    const char *name = qd_onnx_node_at(p, x)->name;
    if (f->tokens[x] >= 0)
        return f->tokens[x];
    qd_node_id t = p->map[x];
    if (s->rank == 4) {
        t = permuted(p, name, ".to_tokens", t, 4, (const int64_t[]){ 0, 2, 3, 1 });
        t = reshaped(p, name, ".tokens", t, 3, (const int64_t[]){ 0, s->dim[2] * s->dim[3], s->dim[1] });
    } else {
        t = permuted(p, name, ".tokens", t, 3, (const int64_t[]){ 0, 2, 1 });
    }
    return f->tokens[x] = t;
}

/* A convolution that looks at one pixel alone is a linear layer of tokens. */
static bool is_pointwise(const qd_onnx_pass *p, qd_node_id id)
{
    const qd_node *n = qd_onnx_node_at(p, id);
    if (n->op != &qd_op_conv2d || qd_node_int(n, "groups") != 1 || !qd_onnx_is(p, n->input[1], &qd_op_const))
        return false;
    const qd_shape *w = &p->shape[n->input[1]];
    const int64_t *stride = qd_node_ints(n, "stride")->ints, *pads = qd_node_ints(n, "pads")->ints;
    return w->dim[2] == 1 && w->dim[3] == 1 && stride[0] == 1 && stride[1] == 1 && !pads[0] && !pads[1] && !pads[2] &&
           !pads[3];
}

static qd_node_id pointwise_linear(qd_onnx_pass *p, qd_node_id conv, qd_node_id tokens)
{
    const qd_node *n = qd_onnx_node_at(p, conv);
    const qd_shape *w = &p->shape[n->input[1]], flat = QD_SHAPE(w->dim[0], w->dim[1]);
    char name[QD_MAX_NAME + 1];
    const qd_node_id weight = qd_onnx_view_const(p, n->input[1], &flat, qd_onnx_node_at(p, n->input[1])->name, NULL);
    const qd_node_id bias = n->n_inputs > 2 && n->input[2] >= 0 ? p->map[n->input[2]] : -1;
    return qd_graph_add(p->out, &qd_op_linear, qd_onnx_fresh(p, name, n->name, NULL), QD_IN(tokens, weight, bias),
                        QD_NO_ATTRS);
}

/* Where the channels of a view lie: how its source must be turned to give [N, T, Cs] of which they are a part. */
typedef enum turn { TURN_NONE, TURN_TIME_FIRST, TURN_PICTURE, TURN_ROWS, TURN_UNKNOWN } turn;

static turn turn_of(const qd_onnx_pass *p, const view *v, int64_t *channels, int64_t *first)
{
    const qd_shape *s = &p->shape[v->source];
    const int64_t n = v->shape.dim[0], heads = v->shape.dim[1], t = v->shape.dim[2], width = v->shape.dim[3];
    const int64_t sn = v->stride[0], st = v->stride[2], sc = width > 1 ? v->stride[3] : heads > 1 ? v->stride[1] : 1;
    if (heads > 1 && v->stride[1] != width * sc)
        return TURN_UNKNOWN;
    turn found = TURN_UNKNOWN;
    *channels = s->rank ? s->dim[s->rank - 1] : 1;
    *first = v->offset;
    const bool time = t == 1, one = n == 1; /* then its stride says nothing */
    if (sc == 1 && s->rank == 3 && s->dim[0] == n && s->dim[1] == t && (one || sn == t * *channels) &&
        (time || st == *channels))
        found = TURN_NONE;
    else if (sc == 1 && s->rank == 3 && s->dim[0] == t && s->dim[1] == n && (one || sn == *channels) &&
             (time || st == n * *channels))
        found = TURN_TIME_FIRST;
    else if (sc == 1 && s->rank == 2 && s->dim[0] == n * t && (one || sn == t * *channels) && (time || st == *channels))
        found = TURN_ROWS;
    if (found == TURN_UNKNOWN && (s->rank == 3 || s->rank == 4) && s->dim[0] == n) {
        const int64_t space = s->dim[2] * (s->rank == 4 ? s->dim[3] : 1);
        *channels = s->dim[1];
        if (space == t && (one || sn == *channels * t) && (time || st == 1) && sc == t && v->offset % t == 0) {
            found = TURN_PICTURE;
            *first = v->offset / t;
        }
    }
    return found != TURN_UNKNOWN && *first + heads * width <= *channels ? found : TURN_UNKNOWN;
}

static qd_node_id tokens_of(finder *f, qd_onnx_pass *p, const view *v, const char *name, const char *suffix)
{
    int64_t channels, first;
    const turn how = turn_of(p, v, &channels, &first);
    const int64_t width = v->shape.dim[1] * v->shape.dim[3];
    qd_node_id x = p->map[v->source];
    switch (how) {
    case TURN_UNKNOWN:
        return -1;
    case TURN_NONE:
        break;
    case TURN_TIME_FIRST:
        if (f->tokens[v->source] < 0)
            f->tokens[v->source] =
                permuted(p, qd_onnx_node_at(p, v->source)->name, ".tokens", x, 3, (const int64_t[]){ 1, 0, 2 });
        x = f->tokens[v->source];
        break;
    case TURN_ROWS:
        if (f->tokens[v->source] < 0)
            f->tokens[v->source] = reshaped(p, qd_onnx_node_at(p, v->source)->name, ".tokens", x, 3,
                                            (const int64_t[]){ -1, v->shape.dim[2], channels });
        x = f->tokens[v->source];
        break;
    case TURN_PICTURE:
        if (is_pointwise(p, v->source) && channels == width)
            x = pointwise_linear(p, v->source, picture_tokens(f, p, qd_onnx_operand(p, v->source, 0)));
        else
            x = picture_tokens(f, p, v->source);
        break;
    }
    if (channels == width)
        return x;
    return named(p, name, suffix, &qd_op_slice, x,
                 QD_ATTRS(QD_INT("axis", 2), QD_INT("start", first), QD_INT("length", width)));
}

/* --- the two walks --- */

/* The product's value again, from [N, T, C]. */
static qd_node_id as_before(qd_onnx_pass *p, qd_node_id id, const parts *a, qd_node_id x)
{
    const char *name = qd_onnx_node_at(p, id)->name;
    const int64_t heads = a->q.shape.dim[1], t = a->q.shape.dim[2], width = a->q.shape.dim[3];
    const bool flat = p->shape[id].rank == 3;
    if (flat && heads == 1)
        return a->turned ? permuted(p, name, ".turned", x, 3, (const int64_t[]){ 0, 2, 1 }) : x;
    x = reshaped(p, name, ".heads", x, 4, (const int64_t[]){ 0, t, heads, width });
    x = permuted(p, name, ".by_head", x, 4,
                 a->turned ? (const int64_t[]){ 0, 2, 3, 1 } : (const int64_t[]){ 0, 2, 1, 3 });
    if (!flat)
        return x;
    return reshaped(p, name, ".flat", x, 3,
                    a->turned ? (const int64_t[]){ -1, width, t } : (const int64_t[]){ -1, t, width });
}

/* Operands that are codes spelled out are attended to as codes; weights of 16 bits stand for those in float. -1: they are not, or not
 * such as qattention takes. */
static qd_node_id on_codes(qd_onnx_pass *p, const char *name, const parts *a, const qd_node_id x[3])
{
    static const char *const scales[3] = { "q_scale", "k_scale", "v_scale" };
    static const char *const zeros[3] = { "q_zero", "k_zero", "v_zero" };
    qd_attr attrs[8] = { QD_INT("heads", a->q.shape.dim[1]), QD_FLOAT("scale", a->scale) };
    qd_node_id codes[3];
    float step = (float)a->scale;
    for (int k = 0; k < 3; k++) {
        const qd_node *n = x[k] < 0 ? NULL : qd_graph_node(p->out, x[k]);
        if (!n || n->op != &qd_op_dequantize || qd_graph_node(p->out, n->input[0])->op == &qd_op_const)
            return -1;
        codes[k] = n->input[0];
        attrs[2 + 2 * k] = QD_FLOAT(scales[k], qd_node_float(n, "scale"));
        attrs[3 + 2 * k] = QD_INT(zeros[k], qd_node_int(n, "zero"));
        step *= k < 2 ? (float)qd_node_float(n, "scale") : 1.0f;
    }
    if (!(a->scale > 0.0) || !(step > 0.0f) || !isfinite(step) || a->q.shape.dim[3] > 16384 ||
        a->k.shape.dim[2] > QD_K_MAX_PRODUCTS)
        return -1;
    char text[QD_MAX_NAME + 1];
    return qd_graph_add(p->out, &qd_op_qattention, qd_onnx_fresh(p, text, name, NULL), codes, 3, attrs, 8);
}

static qd_node_id see_attention(qd_onnx_pass *p, qd_node_id id, void *ctx)
{
    finder *f = ctx;
    parts a;
    int64_t channels, first;
    follow(f, p, id);
    if (!find_parts(f, p, id, &a) || turn_of(p, &a.q, &channels, &first) == TURN_UNKNOWN ||
        turn_of(p, &a.k, &channels, &first) == TURN_UNKNOWN || turn_of(p, &a.v, &channels, &first) == TURN_UNKNOWN)
        return -2;
    char text[QD_MAX_NAME + 1];
    const char *name = qd_onnx_node_at(p, id)->name;
    const qd_node_id q = tokens_of(f, p, &a.q, name, ".q");
    const qd_node_id k = tokens_of(f, p, &a.k, name, ".k");
    const qd_node_id v = tokens_of(f, p, &a.v, name, ".v");
    qd_node_id made = on_codes(p, name, &a, (const qd_node_id[]){ q, k, v });
    if (made < 0)
        made = qd_graph_add(p->out, &qd_op_attention, qd_onnx_fresh(p, text, name, NULL), QD_IN(q, k, v),
                            QD_ATTRS(QD_INT("heads", a.q.shape.dim[1]), QD_FLOAT("scale", a.scale)));
    return as_before(p, id, &a, made);
}

qd_status qd_onnx_find_attention(const qd_graph *g, qd_graph **out, qd_err *err)
{
    finder f;
    qd_status st = finder_init(&f, g, true, err);
    if (!st)
        st = qd_onnx_walk(g, see_attention, &f, out, err);
    finder_clear(&f);
    return st;
}

/* The picture [N, C, H, W] of tokens [N, T, C] that attention made? */
static bool is_picture_of_tokens(const qd_onnx_pass *p, const view *v)
{
    if (!qd_onnx_is(p, v->source, &qd_op_attention) || v->shape.rank != 4 || v->offset)
        return false;
    const int64_t *d = v->shape.dim, *s = p->shape[v->source].dim;
    return d[0] == s[0] && d[1] == s[2] && d[2] * d[3] == s[1] && v->stride[0] == s[1] * s[2] &&
           (d[1] == 1 || v->stride[1] == 1) && (d[2] == 1 || v->stride[2] == d[3] * s[2]) &&
           (d[3] == 1 || v->stride[3] == s[2]);
}

static qd_node_id see_view(qd_onnx_pass *p, qd_node_id id, void *ctx)
{
    finder *f = ctx;
    follow(f, p, id);
    const qd_node *n = qd_onnx_node_at(p, id);
    const view *v = &f->view[id];
    if (is_pointwise(p, id) && is_picture_of_tokens(p, &f->view[n->input[0]])) {
        const qd_shape *s = &p->shape[id];
        qd_node_id x = pointwise_linear(p, id, p->map[f->view[n->input[0]].source]);
        x = reshaped(p, n->name, ".from_tokens", x, 4, (const int64_t[]){ 0, s->dim[2], s->dim[3], s->dim[1] });
        return permuted(p, n->name, ".image", x, 4, (const int64_t[]){ 0, 3, 1, 2 });
    }
    const qd_shape *source = &p->shape[v->source];
    if (v->source == id || !is_whole(v, source))
        return -2;
    if (qd_shape_equal(&v->shape, source))
        return p->map[v->source];
    if (v->source == n->input[0])
        return -2;
    int64_t dims[QD_MAX_RANK];
    int open = -1;
    for (int k = 0; k < v->shape.rank; k++) {
        dims[k] = v->shape.dim[k];
        if (dims[k] % p->batch != 0)
            continue;
        if (k < source->rank && source->dim[k] == dims[k])
            dims[k] = 0;
        else if (open >= 0)
            return -2;
        else
            dims[open = k] = -1;
    }
    char text[QD_MAX_NAME + 1];
    return qd_graph_add(p->out, &qd_op_reshape, qd_onnx_fresh(p, text, n->name, NULL), QD_IN(p->map[v->source]),
                        QD_ATTRS(qd_attr_ints("shape", v->shape.rank, dims)));
}

qd_status qd_onnx_tidy_views(const qd_graph *g, qd_graph **out, qd_err *err)
{
    finder f;
    qd_status st = finder_init(&f, g, false, err);
    if (!st)
        st = qd_onnx_walk(g, see_view, &f, out, err);
    finder_clear(&f);
    return st;
}
