/* view.c - the parts of a network that are looked at: features, a spatial value, answers; the rest is cut off. */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "metrics/metrics_int.h"

/* An output of that name, or else a node. */
static qd_node_id find_value(const qd_graph *g, const char *name)
{
    for (int k = 0; k < qd_graph_outputs(g); k++)
        if (strcmp(qd_graph_output_name(g, k), name) == 0)
            return qd_graph_output_at(g, k);
    return qd_graph_find(g, name);
}

static qd_status named_value(const qd_graph *g, const char *name, const char *what, qd_node_id *out, qd_err *err)
{
    const qd_node_id id = find_value(g, name);
    if (id < 0)
        return qd_fail(err, QD_E_INVALID, "%s: the network has no value '%.120s'", what, name);
    const qd_node *n = qd_graph_node(g, id);
    if (n->op == &qd_op_input || n->op == &qd_op_const || n->dtype != QD_F32)
        return qd_fail(err, QD_E_INVALID, "%s: '%.120s' is no f32 value that the network computes", what, name);
    *out = id;
    return QD_OK;
}

static bool is_const(const qd_graph *g, qd_node_id id)
{
    return id >= 0 && qd_graph_node(g, id)->op == &qd_op_const;
}

static bool is_linear(const qd_graph *g, const qd_node *n)
{
    if (n->op == &qd_op_linear || n->op == &qd_op_qlinear)
        return true;
    return n->op == &qd_op_matmul && is_const(g, n->input[1]);
}

/* Codes are no features: what they were made of is. */
static qd_node_id before_codes(const qd_graph *g, qd_node_id id)
{
    const qd_node *n = qd_graph_node(g, id);
    while (n->op == &qd_op_quantize || n->op == &qd_op_fake_quant) {
        id = n->input[0];
        n = qd_graph_node(g, id);
    }
    return id;
}

/* From the answers back through what only relabels or rescales them, to what the last linear layer reads; the answers themselves when
 * there is none. */
static qd_node_id penultimate(const qd_graph *g, qd_node_id answers)
{
    static const qd_op *const through[] = { &qd_op_reshape, &qd_op_affine, &qd_op_softmax, &qd_op_log_softmax,
                                            &qd_op_add,     &qd_op_sub,    &qd_op_mul,     &qd_op_div };
    qd_node_id id = answers;
    for (;;) {
        const qd_node *n = qd_graph_node(g, id);
        bool passes = false;
        if (is_linear(g, n))
            return before_codes(g, n->input[0]);
        for (size_t k = 0; k < sizeof through / sizeof through[0]; k++)
            passes = passes || n->op == through[k];
        if (!passes || (n->n_inputs > 1 && !is_const(g, n->input[1])))
            return answers;
        id = n->input[0];
    }
}

/* Where pictures go in. */
static qd_status read_input(const qd_graph *g, qd_feature_view *v, qd_err *err)
{
    const qd_node *in = qd_graph_inputs(g) == 1 ? qd_graph_node(g, qd_graph_input_at(g, 0)) : NULL;
    if (!in || in->dtype != QD_F32 || in->shape.rank != 4 || in->shape.dim[0] != -1)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "the network cannot tell features of pictures: it needs one f32 input [N, C, H, W], with N left "
                       "open");
    for (int k = 1; k < 4; k++)
        if (in->shape.dim[k] < 1 || in->shape.dim[k] > (k == 1 ? QD_MAX_CHANNELS : 8192))
            return qd_fail(err, QD_E_UNSUPPORTED, "the network's input '%s' has %lld in axis %d; 1..%d are done",
                           in->name, (long long)in->shape.dim[k], k, k == 1 ? QD_MAX_CHANNELS : 8192);
    v->channels = (int)in->shape.dim[1];
    v->height = (int)in->shape.dim[2];
    v->width = (int)in->shape.dim[3];
    return QD_OK;
}

/* The same nodes, with the outputs that are wanted and nothing they do not need. */
static qd_status cut(const qd_graph *g, const qd_node_id *wanted, const char *const *names, int n, qd_graph **out,
                     qd_err *err)
{
    qd_graph *whole = NULL;
    qd_node_id *map = qd_alloc((size_t)qd_graph_size(g) * sizeof *map);
    qd_status st = map ? qd_graph_new(&whole, err)
                       : qd_fail(err, QD_E_NOMEM, "no memory for a view of %d nodes", qd_graph_size(g));
    if (st)
        goto out;
    for (qd_node_id id = 0; id < qd_graph_size(g); id++)
        qd_graph_copy_node(whole, g, id, map);
    for (int k = 0; k < n; k++)
        qd_graph_output(whole, names[k], map[wanted[k]]);
    st = qd_graph_prune(whole, out, err);
out:
    qd_graph_free(whole);
    qd_free(map);
    return st;
}

static bool given(const char *name)
{
    return name && name[0];
}

qd_status qd_feature_view_open(const qd_graph *g, const char *features, const char *spatial, qd_feature_view *out,
                               qd_err *err)
{
    qd_feature_view v = { .at_spatial = -1, .at_answers = -1 };
    qd_node_id wanted[3];
    const char *names[3] = { "features" };
    qd_classifier c = { .output = -1 };
    int n = 1;
    qd_status st = read_input(g, &v, err);
    if (st)
        return st;
    /* A network without answers may still have features; which of its outputs they are is then its first. */
    const bool answers = qd_classifier_of(g, &c, NULL) == QD_OK;
    const qd_node_id last = qd_graph_output_at(g, answers ? c.output : 0);
    if (given(features)) {
        st = named_value(g, features, "features", &wanted[0], err);
    } else {
        wanted[0] = penultimate(g, last);
        if (qd_graph_node(g, wanted[0])->dtype != QD_F32)
            st = qd_fail(err, QD_E_UNSUPPORTED, "the network gives no f32 features");
    }
    if (!st && given(spatial)) {
        st = named_value(g, spatial, "spatial", &wanted[n], err);
        names[n] = "spatial";
        v.at_spatial = n++;
    }
    if (st)
        return st;
    /* What is a feature itself is no answer: a network that ends in its features tells no classes. */
    if (answers && last != wanted[0]) {
        wanted[n] = last;
        names[n] = "answers";
        v.softmaxed = qd_graph_node(g, last)->op == &qd_op_softmax;
        v.at_answers = n++;
    }
    const char *name = qd_graph_node(g, wanted[0])->name;
    memcpy(v.name, name, strlen(name) + 1); /* the graph has seen to it that it fits */
    st = cut(g, wanted, names, n, &v.graph, err);
    if (!st)
        *out = v;
    return st;
}

void qd_feature_view_clear(qd_feature_view *v)
{
    qd_graph_free(v->graph);
    memset(v, 0, sizeof *v);
}
