/* equalize.c - cross-layer equalization (Nagel et al., ICCV 2019, 4.1): between two layers with nothing but positively homogeneous
 * functions, f(s x) = s f(x) for s > 0, a channel may be scaled down in the first and up in the second. Eq. 11:
 *
 *   s_i = (1 / r2_i) sqrt(r1_i r2_i),   W1_i / s_i,  b1_i / s_i,  W2_:i s_i
 *
 * with r the largest weight of the channel. The network computes the same; its channels then use their codes alike. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/quant_int.h"

enum { SWEEPS = 40 };
#define SETTLED 1e-3 /* of |log s| */
#define LARGEST 1e3  /* no channel is scaled by more in one sweep: weights near zero say nothing */

typedef struct equalize {
    const qd_graph *g;
    int *uses;        // [nodes]
    qd_tensor *value; // [nodes]: constants that were changed
    qd_budget *budget;
} equalize;

static bool is_layer(const qd_graph *g, const qd_node *n)
{
    if (n->op != &qd_op_conv2d && n->op != &qd_op_linear)
        return false;
    for (int k = 1; k < n->n_inputs; k++)
        if (n->input[k] >= 0 &&
            (qd_graph_node(g, n->input[k])->op != &qd_op_const || qd_graph_node(g, n->input[k])->dtype != QD_F32))
            return false;
    return true;
}

/* f(s x) = s f(x), channel by channel. */
static bool is_homogeneous(const qd_node *n)
{
    return n->op == &qd_op_relu || n->op == &qd_op_leaky_relu || n->op == &qd_op_max_pool || n->op == &qd_op_avg_pool;
}

/* Weight and bias of a layer are its own. */
static bool owns(const equalize *e, const qd_node *n)
{
    return e->uses[n->input[1]] == 1 && (n->n_inputs < 3 || n->input[2] < 0 || e->uses[n->input[2]] == 1);
}

/* The layer before this one, when nobody else reads what lies between; -1 = none. */
static qd_node_id partner_of(const equalize *e, qd_node_id id)
{
    const qd_node *n = qd_graph_node(e->g, id);
    qd_node_id at = n->input[0];
    while (e->uses[at] == 1 && is_homogeneous(qd_graph_node(e->g, at)))
        at = qd_graph_node(e->g, at)->input[0];
    const qd_node *first = qd_graph_node(e->g, at);
    /* Both of one kind, so that the channels of one are those of the other: a linear layer may read a flattened image. */
    return e->uses[at] == 1 && is_layer(e->g, first) && first->op == n->op && owns(e, first) && owns(e, n) ? at : -1;
}

static qd_status own(equalize *e, qd_node_id id, float **out, qd_err *err)
{
    if (!e->value[id].data) {
        const qd_status st = qd_tensor_copy(&e->value[id], &qd_graph_node(e->g, id)->value, e->budget, err);
        if (st)
            return st;
    }
    *out = qd_f32(&e->value[id]);
    return QD_OK;
}

/* The weights of the second layer that read channel i: `runs` runs of `length` floats, `step` apart. */
typedef struct column {
    float *at;
    int64_t runs, length, step;
} column;

static column column_of(float *w, const qd_node *n, const qd_shape *shape, int64_t i)
{
    const int64_t groups = n->op == &qd_op_conv2d ? qd_node_int(n, "groups") : 1;
    const int64_t inner = shape->rank == 4 ? shape->dim[2] * shape->dim[3] : 1, in = shape->dim[1];
    const int64_t outs = shape->dim[0] / groups; /* of a group */
    return (
        column){ .at = w + (i / in * outs * in + i % in) * inner, .runs = outs, .length = inner, .step = in * inner };
}

static double largest(const column *c)
{
    double m = 0.0;
    for (int64_t r = 0; r < c->runs; r++)
        for (int64_t k = 0; k < c->length; k++)
            m = fmax(m, fabs((double)c->at[r * c->step + k]));
    return m;
}

static void scale(const column *c, double s)
{
    for (int64_t r = 0; r < c->runs; r++)
        for (int64_t k = 0; k < c->length; k++)
            c->at[r * c->step + k] = (float)(c->at[r * c->step + k] * s);
}

/* One pair once; *moved is the largest |log s|. */
static qd_status balance(equalize *e, qd_node_id first, qd_node_id second, double *moved, qd_err *err)
{
    const qd_node *a = qd_graph_node(e->g, first), *b = qd_graph_node(e->g, second);
    const qd_shape *wa = &qd_graph_node(e->g, a->input[1])->shape, *wb = &qd_graph_node(e->g, b->input[1])->shape;
    const int64_t channels = wa->dim[0],
                  row = channels ? qd_tensor_count(&qd_graph_node(e->g, a->input[1])->value) / channels : 0;
    float *w1, *w2, *bias = NULL;
    qd_status st = own(e, a->input[1], &w1, err);
    if (!st)
        st = own(e, b->input[1], &w2, err);
    if (!st && a->n_inputs > 2 && a->input[2] >= 0)
        st = own(e, a->input[2], &bias, err);
    for (int64_t i = 0; i < channels && !st; i++) {
        const column one = { .at = w1 + i * row, .runs = 1, .length = row }, two = column_of(w2, b, wb, i);
        const double r1 = largest(&one), r2 = largest(&two);
        double s = sqrt(r1 / r2);
        if (!isfinite(s) || s == 0.0)
            continue;
        s = fmin(fmax(s, 1.0 / LARGEST), LARGEST);
        scale(&one, 1.0 / s);
        scale(&two, s);
        if (bias)
            bias[i] = (float)(bias[i] / s);
        *moved = fmax(*moved, fabs(log(s)));
    }
    return st;
}

static qd_status rebuild(const equalize *e, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(e->g);
    qd_graph *to = NULL;
    qd_node_id *map = qd_alloc((size_t)n * sizeof *map);
    qd_status st = map ? qd_graph_new(&to, err) : qd_fail(err, QD_E_NOMEM, "no memory to rewrite %d nodes", n);
    for (qd_node_id id = 0; id < n && !st; id++) {
        if (e->value[id].data)
            map[id] = qd_graph_const(to, qd_graph_node(e->g, id)->name, &e->value[id]);
        else
            qd_graph_copy_node(to, e->g, id, map);
    }
    if (!st) {
        qd_graph_copy_outputs(to, e->g, map);
        st = qd_graph_verify(to, err);
    }
    if (!st) {
        *out = to;
        to = NULL;
    }
    qd_graph_free(to);
    qd_free(map);
    return st;
}

qd_status qd_equalize(const qd_graph *g, qd_budget *budget, int *pairs, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(g);
    equalize e = { .g = g, .budget = budget };
    qd_status st = QD_OK;
    int found = 0;
    e.uses = qd_calloc((size_t)n, sizeof *e.uses);
    e.value = qd_calloc((size_t)n, sizeof *e.value);
    qd_node_id *partner = qd_alloc((size_t)n * sizeof *partner);
    if (!e.uses || !e.value || !partner) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to equalize %d nodes", n);
        goto out;
    }
    qd_graph_uses(g, e.uses);
    for (qd_node_id id = 0; id < n; id++) {
        partner[id] = is_layer(g, qd_graph_node(g, id)) ? partner_of(&e, id) : -1;
        found += partner[id] >= 0;
    }
    double moved = 1.0;
    for (int sweep = 0; sweep < SWEEPS && moved > SETTLED && !st; sweep++) {
        moved = 0.0;
        for (qd_node_id id = 0; id < n && !st; id++)
            if (partner[id] >= 0)
                st = balance(&e, partner[id], id, &moved, err);
    }
    if (!st)
        st = rebuild(&e, out, err);
    if (!st)
        *pairs = found;
out:
    for (int k = 0; e.value && k < n; k++)
        qd_tensor_clear(&e.value[k]);
    qd_free(partner);
    qd_free(e.value);
    qd_free(e.uses);
    return st;
}
