/* groups.c - ranges of activations by groups of time steps: one plan for each group, the same codes of weights (qncd.md 11.3). */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/qncd_int.h"

#define KEEP_BYTES                                                                                                     \
    ((size_t)512 << 20) /* packed weights of all groups together; with more, one group is kept at a time */

struct qd_grouped {
    const qd_graph *graph;
    const qd_correction *correction; /* NULL or without groups: one plan */
    qd_denoiser_options o;
    qd_denoiser **group; // [n_groups or 1], made when first needed
    int n;
    bool keep_all;
    int64_t first_sample;
    int64_t channels, height, width;
};

/* --- the graph of one group --- */

static int map_of(const qd_correction *c, const char *name)
{
    for (int k = 0; k < c->n_maps; k++)
        if (strcmp(c->map_name[k], name) == 0)
            return k;
    return -1;
}

/* Where a reader of codes keeps their map; NULL when it has none for that operand. */
static const char *const *map_attrs(const qd_op *op, int operand)
{
    static const char *const layer[2] = { "x_scale", "x_zero" };
    static const char *const attention[3][2] = { { "q_scale", "q_zero" },
                                                 { "k_scale", "k_zero" },
                                                 { "v_scale", "v_zero" } };
    if (op == &qd_op_qattention)
        return attention[operand];
    return (op == &qd_op_qconv2d || op == &qd_op_qlinear) && operand == 0 ? layer : NULL;
}

bool qd_group_takes(const qd_graph *g, qd_node_id quantize)
{
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        for (int k = 0; k < n->n_inputs; k++)
            if (n->input[k] == quantize && !map_attrs(n->op, k))
                return false;
    }
    return qd_graph_node(g, quantize)->op == &qd_op_quantize;
}

static void put(qd_attr *attrs, int n, const char *name, double f, int64_t i)
{
    for (int k = 0; k < n; k++)
        if (strcmp(attrs[k].name, name) == 0) {
            attrs[k].f = f;
            attrs[k].i = i;
        }
}

static void put_map(qd_attr *attrs, int n, const char *const names[2], const qd_correction *c, int group, int at)
{
    put(attrs, n, names[0], c->map_scale[group * c->n_maps + at], 0);
    put(attrs, n, names[1], 0, c->map_zero[group * c->n_maps + at]);
}

qd_status qd_group_graph(const qd_graph *g, const qd_correction *c, int group, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(g);
    qd_graph *to = NULL;
    qd_node_id *map = qd_calloc((size_t)n, sizeof *map);
    int *of = qd_calloc((size_t)n, sizeof *of); /* map of a quantize node, -1 = none */
    qd_status st = map && of ? qd_graph_new(&to, err) : qd_fail(err, QD_E_NOMEM, "no memory to copy %d nodes", n);
    int taken = 0;
    for (qd_node_id id = 0; id < n && !st; id++) {
        const qd_node *node = qd_graph_node(g, id);
        const bool quantizes = node->op == &qd_op_quantize;
        static const char *const own[2] = { "scale", "zero" };
        of[id] = quantizes ? map_of(c, node->name) : -1;
        if (of[id] >= 0 && !qd_group_takes(g, id)) {
            st = qd_fail(err, QD_E_FORMAT, "correction: '%s' is read by more than layers on codes", node->name);
            break;
        }
        taken += of[id] >= 0;
        qd_attr attrs[QD_MAX_ATTRS];
        qd_node_id in[QD_MAX_INPUTS];
        memcpy(attrs, node->attr, sizeof attrs);
        bool changed = quantizes && of[id] >= 0;
        if (changed)
            put_map(attrs, node->n_attrs, own, c, group, of[id]);
        for (int k = 0; k < node->n_inputs; k++) {
            const char *const *names = map_attrs(node->op, k);
            in[k] = node->input[k] < 0 ? -1 : map[node->input[k]];
            if (!names || node->input[k] < 0 || of[node->input[k]] < 0)
                continue;
            put_map(attrs, node->n_attrs, names, c, group, of[node->input[k]]);
            changed = true;
        }
        if (!changed) {
            qd_graph_copy_node(to, g, id, map);
            continue;
        }
        map[id] = qd_graph_add(to, node->op, node->name, in, node->n_inputs, attrs, node->n_attrs);
    }
    if (!st && taken != c->n_maps)
        st = qd_fail(err, QD_E_FORMAT, "correction: %d of its %d ranges belong to this network", taken, c->n_maps);
    if (!st) {
        qd_graph_copy_outputs(to, g, map);
        st = qd_graph_verify(to, err);
    }
    if (!st) {
        *out = to;
        to = NULL;
    }
    qd_graph_free(to);
    qd_free(of);
    qd_free(map);
    return st;
}

/* --- the maps of all groups --- */

qd_status qd_layout_group_maps(const qd_layout *l, const qd_range_rule *rule, const qd_graph *quantized,
                               qd_correction *c, qd_err *err)
{
    const size_t groups = (size_t)l->n_groups, most = (size_t)l->n_quantizers;
    qd_status st = QD_OK;
    c->group_until = qd_calloc(groups, sizeof *c->group_until);
    c->map_name = qd_calloc(most, sizeof *c->map_name);
    c->map_scale = qd_calloc(groups * most, sizeof *c->map_scale);
    c->map_zero = qd_calloc(groups * most, sizeof *c->map_zero);
    int *of = qd_calloc(most, sizeof *of);
    if (!c->group_until || !c->map_name || !c->map_scale || !c->map_zero || !of) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the ranges of %d groups of time steps", l->n_groups);
        goto out;
    }
    for (int k = 0; k < l->n_quantizers; k++) {
        char *name = c->map_name[c->n_maps];
        qd_layout_codes_name(l, k, name, sizeof c->map_name[0]);
        const qd_node_id id = qd_graph_find(quantized, name);
        if (id >= 0 && qd_group_takes(quantized, id))
            of[c->n_maps++] = k;
    }
    for (int g = 0; g < l->n_groups; g++)
        for (int k = 0; k < c->n_maps && !st; k++) {
            qd_affine map;
            st = qd_range_choose(rule, &l->quantizers[of[k]], l->quantizers[of[k]].seen_in[g], &map, err);
            if (st) {
                st = qd_fail_in(err, st, "value of '%s' in group %d of the time steps", c->map_name[k], g);
                goto out;
            }
            c->map_scale[g * c->n_maps + k] = map.scale;
            c->map_zero[g * c->n_maps + k] = map.zero;
        }
    memcpy(c->group_until, l->group_until, groups * sizeof *c->group_until);
    c->n_groups = c->n_maps > 0 ? l->n_groups : 0;
out:
    qd_free(of);
    return st;
}

/* --- the predictor --- */

static int group_at(const qd_correction *c, double t)
{
    int k = 0;
    while (k + 1 < c->n_groups && t < c->group_until[k])
        k++;
    return k;
}

static qd_status open_group(qd_grouped *d, int k, qd_err *err)
{
    qd_graph *g = NULL;
    qd_status st = QD_OK;
    if (d->group[k])
        return QD_OK;
    for (int i = 0; i < d->n && !d->keep_all; i++) {
        qd_denoiser_free(d->group[i]);
        d->group[i] = NULL;
    }
    if (d->n > 1)
        st = qd_group_graph(d->graph, d->correction, k, &g, err);
    if (!st)
        st = qd_denoiser_open(g ? g : d->graph, &d->o, &d->group[k], err);
    qd_graph_free(g); /* a plan outlives its graph */
    return st;
}

static qd_status predict(void *ctx, const qd_run *run, const float *x, double t, float *out, qd_err *err)
{
    qd_grouped *d = ctx;
    const int k = d->n > 1 ? group_at(d->correction, t) : 0;
    qd_status st = open_group(d, k, err);
    if (st)
        return st;
    const qd_predictor p = qd_denoiser_predictor(d->group[k]);
    qd_predictor_seat(&p, d->first_sample);
    return p.predict(p.ctx, run, x, t, out, err);
}

static void seat(void *ctx, int64_t first_sample)
{
    qd_grouped *d = ctx;
    d->first_sample = first_sample;
}

qd_status qd_grouped_new(const qd_graph *g, const qd_correction *c, const qd_denoiser_options *o, qd_grouped **out,
                         qd_err *err)
{
    qd_grouped *d = qd_calloc(1, sizeof *d);
    if (!d)
        return qd_fail(err, QD_E_NOMEM, "no memory for a denoiser");
    d->graph = g;
    d->correction = c;
    d->o = *o;
    d->n = c && c->n_groups > 0 ? c->n_groups : 1;
    if (d->n > 1)
        d->o.take = NULL;     /* the next group needs it */
    if (c && c->n_groups > 0) /* each group is made from it anew */
        d->o.take = NULL;
    d->keep_all = qd_graph_param_bytes(g) * (size_t)d->n <= KEEP_BYTES;
    d->group = qd_calloc((size_t)d->n, sizeof(qd_denoiser *));
    qd_status st = d->group ? open_group(d, 0, err) : qd_fail(err, QD_E_NOMEM, "no memory for %d denoisers", d->n);
    if (st) {
        qd_grouped_free(d);
        return st;
    }
    const qd_predictor p = qd_denoiser_predictor(d->group[0]);
    d->channels = p.channels;
    d->height = p.height;
    d->width = p.width;
    *out = d;
    return QD_OK;
}

void qd_grouped_free(qd_grouped *d)
{
    if (!d)
        return;
    for (int k = 0; d->group && k < d->n; k++)
        qd_denoiser_free(d->group[k]);
    qd_free(d->group);
    qd_free(d);
}

qd_predictor qd_grouped_predictor(qd_grouped *d)
{
    return (qd_predictor){ .ctx = d,
                           .predict = predict,
                           .seat = seat,
                           .batch = d->o.batch,
                           .channels = d->channels,
                           .height = d->height,
                           .width = d->width };
}
