/* onnx_einsum.c - Einsum of one or two values: sums, permutations and one product (Operators.md, Einsum 12). */
#include "model/onnx_int.h"

#include <string.h>

enum {
    LETTERS = 52,
    DOTS = 8,
    LABELS = LETTERS + DOTS
}; /* a label: a letter, or an axis that "..." stands for, the last one last */

/* The labels of a value, axis by axis. */
typedef struct term {
    int label[QD_MAX_RANK], n;
    int dots_at; /* where in `label` the axes of "..." begin, -1 = it has none */
} term;

typedef struct equation {
    term in[2], out;
    int n_in;
    bool arrow; /* the result is told */
} equation;

static int letter(char c)
{
    return c >= 'a' && c <= 'z' ? c - 'a' : c >= 'A' && c <= 'Z' ? c - 'A' + 26 : -1;
}

static qd_status too_odd(const char *text, qd_err *err)
{
    return qd_fail(err, QD_E_UNSUPPORTED, "the equation '%.80s'", text);
}

/* Letters and "..." of [*at, end): where the dots stand is remembered, how many axes they are comes with the rank. */
static qd_status parse_term(const char *text, const char **at, char end, term *t, qd_err *err)
{
    *t = (term){ .dots_at = -1 };
    for (; **at && **at != end && !(end == '-' && **at == ','); ++*at) {
        const int l = letter(**at);
        if (**at == ' ')
            continue;
        if (strncmp(*at, "...", 3) == 0 && t->dots_at < 0) {
            t->dots_at = t->n;
            *at += 2;
        } else if (l >= 0 && t->n < QD_MAX_RANK) {
            t->label[t->n++] = l;
        } else {
            return too_odd(text, err);
        }
    }
    return QD_OK;
}

static qd_status parse(const char *text, equation *e, qd_err *err)
{
    const char *at = text;
    qd_status st = QD_OK;
    *e = (equation){ 0 };
    for (;;) {
        if (e->n_in == 2)
            return too_odd(text, err);
        st = parse_term(text, &at, '-', &e->in[e->n_in++], err);
        if (st)
            return st;
        if (*at != ',')
            break;
        at++;
    }
    if (!*at)
        return QD_OK;
    if (strncmp(at, "->", 2) != 0)
        return too_odd(text, err);
    at += 2;
    e->arrow = true;
    st = parse_term(text, &at, '\0', &e->out, err);
    return st;
}

/* Puts the axes that "..." stands for into a term: `dots` of them. */
static bool fill_dots(term *t, int dots)
{
    if (t->dots_at < 0)
        return dots == 0;
    if (t->n + dots > QD_MAX_RANK || dots > DOTS)
        return false;
    memmove(t->label + t->dots_at + dots, t->label + t->dots_at, (size_t)(t->n - t->dots_at) * sizeof(*t->label));
    for (int k = 0; k < dots; k++)
        t->label[t->dots_at + k] = LABELS - dots + k;
    t->n += dots;
    return true;
}

static int find(const term *t, int label)
{
    for (int k = 0; k < t->n; k++)
        if (t->label[k] == label)
            return k;
    return -1;
}

static bool has_twins(const term *t)
{
    for (int k = 0; k < t->n; k++)
        if (find(t, t->label[k]) != k)
            return true;
    return false;
}

/* Without an arrow: "...", then the letters that occur once, in alphabetical order. */
static void imply_result(equation *e, int dots)
{
    e->out = (term){ .dots_at = -1 };
    for (int l = LABELS - dots; l < LABELS; l++)
        e->out.label[e->out.n++] = l;
    /* numpy sorts upper case before lower. */
    for (int turn = 0; turn < 2; turn++)
        for (int l = turn ? 0 : 26; l < (turn ? 26 : LETTERS) && e->out.n < QD_MAX_RANK; l++) {
            int seen = 0;
            for (int k = 0; k < e->n_in; k++)
                seen += find(&e->in[k], l) >= 0;
            if (seen == 1)
                e->out.label[e->out.n++] = l;
        }
}

static qd_status resolve(const qd_onnx_reader *r, const qd_onnx_node *n, const char *text, equation *e, qd_err *err)
{
    int most = 0;
    for (int k = 0; k < e->n_in; k++) {
        const int rank = qd_onnx_shape_of(qd_onnx_in(r, n, k), 0)->rank, dots = rank - e->in[k].n;
        if (dots < 0 || !fill_dots(&e->in[k], dots))
            return qd_fail(err, QD_E_FORMAT, "the equation '%.80s' does not fit input %d of rank %d", text, k, rank);
        most = e->in[k].dots_at >= 0 && dots > most ? dots : most;
    }
    if (!e->arrow)
        imply_result(e, most);
    else if (!fill_dots(&e->out, e->out.dots_at < 0 ? 0 : most))
        return too_odd(text, err);
    for (int k = 0; k < e->out.n; k++) {
        bool known = false;
        for (int j = 0; j < e->n_in; j++)
            known = known || find(&e->in[j], e->out.label[k]) >= 0;
        if (!known)
            return qd_fail(err, QD_E_FORMAT, "the equation '%.80s' makes an axis out of nothing", text);
    }
    /* A diagonal, or "..." that is summed away or differs in length, is nothing exporters write. */
    if (has_twins(&e->in[0]) || (e->n_in > 1 && has_twins(&e->in[1])) || has_twins(&e->out))
        return too_odd(text, err);
    return QD_OK;
}

/* A value on its way, with the labels of its axes. */
typedef struct value {
    qd_node_id id;
    term t;
} value;

static void permute(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, value *v, const term *to)
{
    int64_t perm[QD_MAX_RANK];
    bool still = true;
    for (int k = 0; k < to->n; k++) {
        perm[k] = find(&v->t, to->label[k]);
        still = still && perm[k] == k;
    }
    if (!still)
        v->id = qd_onnx_add(r, n, suffix, &qd_op_permute, QD_IN(v->id), QD_ATTRS(qd_attr_ints("perm", to->n, perm)));
    v->t = *to;
}

/* Sums over the axes that neither the result nor the other value has. */
static void sum_alone(qd_onnx_reader *r, const qd_onnx_node *n, value *v, const term *out, const term *other)
{
    int64_t axes[QD_MAX_RANK];
    int count = 0;
    term left = { .dots_at = -1 };
    for (int k = 0; k < v->t.n; k++)
        if (find(out, v->t.label[k]) < 0 && (!other || find(other, v->t.label[k]) < 0))
            axes[count++] = k;
        else
            left.label[left.n++] = v->t.label[k];
    if (count)
        v->id = qd_onnx_add(r, n, "sum", &qd_op_sum, QD_IN(v->id),
                            QD_ATTRS(qd_attr_ints("axes", count, axes), QD_INT("keep", 0)));
    v->t = left;
}

/* Labels by where they are found: in both and the result; in this value alone; in both but not in the result. */
typedef struct parts {
    term batch, own[2], inner;
} parts;

static void add_label(term *t, int label)
{
    t->label[t->n++] = label;
}

static parts parts_of(const value v[2], const term *out)
{
    parts p = { .batch = { .dots_at = -1 },
                .own = { { .dots_at = -1 }, { .dots_at = -1 } },
                .inner = { .dots_at = -1 } };
    for (int k = 0; k < out->n; k++) {
        const bool a = find(&v[0].t, out->label[k]) >= 0, b = find(&v[1].t, out->label[k]) >= 0;
        add_label(a && b ? &p.batch : &p.own[a ? 0 : 1], out->label[k]);
    }
    for (int k = 0; k < v[0].t.n; k++)
        if (find(out, v[0].t.label[k]) < 0)
            add_label(&p.inner, v[0].t.label[k]);
    return p;
}

static void append(term *t, const term *more)
{
    for (int k = 0; k < more->n; k++)
        add_label(t, more->label[k]);
}

/* v, whose axes are first | second | third, with each of the last two made one axis; the first stay. */
static void flatten(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, value *v, int first, int second)
{
    qd_shape made[QD_ONNX_WORLDS];
    if (v->id < 0)
        return;
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *s = qd_onnx_node_shape(r, v->id, w);
        made[w] = (qd_shape){ .rank = first + 2 };
        for (int k = 0; k < first; k++)
            made[w].dim[k] = s->dim[k];
        made[w].dim[first] = made[w].dim[first + 1] = 1;
        for (int k = first; k < s->rank; k++)
            made[w].dim[k < first + second ? first : first + 1] *= s->dim[k];
    }
    v->id = qd_onnx_reshape(r, n, suffix, v->id, made);
}

/* One product of matrices: [batch, a, inner] by [batch, inner, b]. */
static qd_status contract(qd_onnx_reader *r, const qd_onnx_node *n, value v[2], const term *out, qd_node_id *made,
                          const char *text, qd_err *err)
{
    const parts p = parts_of(v, out);
    term left = p.batch, right = p.batch, result = p.batch;
    if (p.batch.n + p.own[0].n + p.own[1].n > QD_MAX_RANK || p.batch.n + 2 > QD_MAX_RANK)
        return too_odd(text, err);
    append(&left, &p.own[0]);
    append(&left, &p.inner);
    append(&right, &p.inner);
    append(&right, &p.own[1]);
    append(&result, &p.own[0]);
    append(&result, &p.own[1]);
    if (left.n != v[0].t.n || right.n != v[1].t.n)
        return qd_fail(err, QD_E_FORMAT, "the equation '%.80s' does not fit its inputs", text);
    permute(r, n, "a_order", &v[0], &left);
    permute(r, n, "b_order", &v[1], &right);
    if (v[0].id < 0 || v[1].id < 0)
        return qd_onnx_graph_words(r, err);
    qd_shape whole[QD_ONNX_WORLDS];
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        const qd_shape *a = qd_onnx_node_shape(r, v[0].id, w), *b = qd_onnx_node_shape(r, v[1].id, w);
        whole[w] = (qd_shape){ .rank = result.n };
        for (int k = 0; k < result.n; k++)
            whole[w].dim[k] = k < p.batch.n                ? (a->dim[k] == 1 ? b->dim[k] : a->dim[k])
                              : k < p.batch.n + p.own[0].n ? a->dim[k]
                                                           : b->dim[k - p.own[0].n + p.inner.n];
    }
    flatten(r, n, "a_matrix", &v[0], p.batch.n, p.own[0].n);
    flatten(r, n, "b_matrix", &v[1], p.batch.n, p.inner.n);
    value y = { qd_onnx_two(r, n, "product", &qd_op_matmul, v[0].id, v[1].id), result };
    y.id = qd_onnx_reshape(r, n, "axes", y.id, whole);
    permute(r, n, "order", &y, out);
    *made = y.id;
    return QD_OK;
}

qd_status qd_onnx_einsum(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const char *text = qd_onnx_attr_string(n, "equation", "");
    equation e;
    value v[2];
    qd_node_id made = -1;
    qd_status st = parse(text, &e, err);
    if (!st && e.n_in != n->n_inputs)
        st = qd_fail(err, QD_E_FORMAT, "the equation '%.80s' is of %d values, the node has %d", text, e.n_in,
                     n->n_inputs);
    if (!st)
        st = resolve(r, n, text, &e, err);
    for (int k = 0; k < e.n_in && !st; k++) {
        v[k] = (value){ qd_onnx_floats(r, n, k), e.in[k] };
        st = v[k].id < 0 ? qd_onnx_graph_words(r, err) : QD_OK;
    }
    if (st)
        return st;
    for (int k = 0; k < e.n_in; k++)
        sum_alone(r, n, &v[k], &e.out, e.n_in > 1 ? &e.in[1 - k] : NULL);
    if (e.n_in == 1) {
        permute(r, n, NULL, &v[0], &e.out);
        made = v[0].id;
    } else {
        st = contract(r, n, v, &e.out, &made, text, err);
    }
    return st ? st : qd_onnx_set(r, n, 0, made, err);
}
