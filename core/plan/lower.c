/* lower.c - the fast backend: turn groups into steps, in the graph's order; nodes on their own are lower_single.c's. */
#include <assert.h>
#include <string.h>

#include "plan/cpu_train.h"
#include "plan/lower_int.h"

const qd_node *qd_lower_node_of(const qd_lower *l, qd_node_id id)
{
    return qd_graph_node(l->g, id);
}

int64_t qd_last_dim(const qd_shape *s)
{
    return s->rank ? s->dim[s->rank - 1] : 1;
}

int64_t qd_count_of(const qd_shape *s)
{
    int64_t n = 1;
    for (int k = 0; k < s->rank; k++)
        n *= s->dim[k];
    return n;
}

int64_t qd_lower_macs(const qd_lower *l, qd_node_id id)
{
    const qd_node *n = qd_lower_node_of(l, id);
    qd_operand in[QD_MAX_INPUTS];
    if (!n->op->macs)
        return 0;
    for (int k = 0; k < QD_MAX_INPUTS; k++) {
        const qd_node_id x = qd_fused_input(&l->f, id, k);
        in[k] = (qd_operand){ .shape = { .rank = -1 } };
        if (x >= 0)
            in[k] = (qd_operand){ .dtype = qd_lower_node_of(l, x)->dtype, .shape = l->shapes[x] };
    }
    return n->op->macs(n, in, &l->shapes[id]);
}

/* The floats of a constant input, NULL when it is left out. */
const float *qd_lower_known(const qd_lower *l, qd_node_id id, int k)
{
    const qd_node_id x = qd_fused_input(&l->f, id, k);
    return x < 0 ? NULL : qd_f32(&l->f.info[x].folded);
}

/* --- values --- */

qd_status qd_lower_value(qd_lower *l, qd_node_id id, const int32_t border[4], qd_value_id *out, qd_err *err)
{
    const qd_node *n = qd_lower_node_of(l, id);
    qd_value v = { .dtype = n->dtype, .shape = l->shapes[id], .layout = l->f.info[id].layout };
    if (border) {
        v.shifted = n->dtype == QD_I8;
        memcpy(v.border, border, sizeof(v.border));
    }
    qd_status st = qd_plan_add_value(l->p, &v, out, err);
    if (!st)
        l->f.info[id].value[v.layout] = *out;
    return st;
}

/* A value as its step made it. */
qd_status qd_lower_native(qd_lower *l, qd_node_id id, qd_value_id *out, qd_err *err)
{
    qd_node_info *info = &l->f.info[id];
    if (info->value[info->layout] < 0) {
        assert(info->folded.data);
        info->layout = QD_LAYOUT_ROW;
        qd_status st = qd_plan_add_constant(l->p, NULL, &info->folded, &info->value[QD_LAYOUT_ROW], err);
        if (st)
            return st;
    }
    *out = info->value[info->layout];
    return QD_OK;
}

static bool is_plain(const qd_value *v)
{
    return !v->shifted && !v->border[0] && !v->border[1] && !v->border[2] && !v->border[3];
}

/* A value in a layout, without border or shift; converted at most once. */
qd_status qd_lower_want(qd_lower *l, qd_node_id id, qd_layout layout, qd_value_id *out, qd_err *err)
{
    qd_node_info *info = &l->f.info[id];
    qd_value_id v;
    qd_status st = qd_lower_native(l, id, &v, err);
    if (st)
        return st;
    if (info->layout == layout && is_plain(&l->p->values[v])) {
        *out = v;
        return QD_OK;
    }
    if (info->layout != layout && info->value[layout] >= 0) {
        *out = info->value[layout];
        return QD_OK;
    }
    if (is_plain(&l->p->values[v]) && qd_layout_same(&l->shapes[id], layout, info->layout)) {
        st = qd_plan_add_view(l->p, v, &l->shapes[id], layout, out, err);
    } else {
        const qd_value like = { .dtype = qd_lower_node_of(l, id)->dtype, .shape = l->shapes[id], .layout = layout };
        st = qd_plan_add_value(l->p, &like, out, err);
        if (!st)
            st = qd_add_convert_step(l->p, qd_lower_node_of(l, id)->name, v, *out, 0, err);
    }
    if (!st && info->layout != layout)
        info->value[layout] = *out;
    return st;
}

/* U8 codes (I8 ones shifted) in a layout, with that border of the zero code. */
qd_status qd_lower_want_codes(qd_lower *l, qd_node_id id, qd_layout layout, const int32_t border[4], int32_t zero_code,
                              qd_value_id *out, qd_err *err)
{
    qd_value_id v;
    qd_status st = qd_lower_native(l, id, &v, err);
    if (st)
        return st;
    const bool shifted = qd_lower_node_of(l, id)->dtype == QD_I8;
    qd_value like = {
        .dtype = qd_lower_node_of(l, id)->dtype, .shape = l->shapes[id], .layout = layout, .shifted = shifted
    };
    memcpy(like.border, border, sizeof(like.border));
    const qd_value *have = &l->p->values[v];
    if (have->shifted == shifted && memcmp(have->border, border, sizeof(have->border)) == 0 &&
        qd_layout_same(&l->shapes[id], layout, l->f.info[id].layout)) {
        *out = v;
        return QD_OK;
    }
    st = qd_plan_add_value(l->p, &like, out, err);
    return st ? st : qd_add_convert_step(l->p, qd_lower_node_of(l, id)->name, v, *out, zero_code, err);
}

static qd_status watch(qd_lower *l, const qd_plan_options *o, qd_node_id id, qd_err *err)
{
    qd_status st = QD_OK;
    for (int k = 0; k < o->n_observed && !st; k++) {
        qd_value_id v;
        if (l->f.info[o->observed[k]].same != id)
            continue;
        st = qd_lower_native(l, id, &v, err);
        if (!st)
            st = qd_plan_watch(l->p, o->observed[k], v, err);
    }
    return st;
}

static qd_status lower_node(qd_lower *l, qd_node_id id, qd_err *err)
{
    const qd_node_info *info = &l->f.info[id];
    if (info->split)
        return QD_OK;
    if (info->group < 0)
        return qd_lower_single(l, id, err);
    const qd_group *gr = &l->f.groups[info->group];
    if (gr->end != id)
        return QD_OK;
    if (gr->kind == QD_GROUP_TRAIN_NORM)
        return qd_lower_train_norm(l, gr, err);
    if (gr->kind == QD_GROUP_ATTENTION)
        return qd_lower_attention(l, gr, err);
    return gr->kind == QD_GROUP_PASS ? qd_lower_pass(l, gr, err) : qd_lower_product(l, gr, err);
}

/* The place where a node is lowered: its own, or that of the group it runs in. */
static qd_node_id place_of(const qd_lower *l, qd_node_id id)
{
    const int group = l->f.info[id].group;
    return group < 0 ? id : l->f.groups[group].end;
}

/* Which constants nobody needs once node k is lowered, as lists: first[k], then next[c]; -1 ends. Steps that read a constant while
 * they run have a reference of their own. */
static qd_status find_last_readers(const qd_lower *l, qd_node_id **first, qd_node_id **next, qd_err *err)
{
    const int n = l->f.n;
    qd_node_id *last = qd_alloc((size_t)n * sizeof(*last));
    *first = qd_alloc((size_t)n * sizeof(**first));
    *next = qd_alloc((size_t)n * sizeof(**next));
    if (!last || !*first || !*next) {
        qd_free(last);
        return qd_fail(err, QD_E_NOMEM, "no memory for the constants of %d nodes", n);
    }
    for (qd_node_id id = 0; id < n; id++) {
        const qd_node *node = qd_lower_node_of(l, id);
        last[id] = id;
        (*first)[id] = -1;
        for (int k = 0; l->f.info[id].live && k < node->n_inputs; k++) {
            const qd_node_id x = qd_fused_input(&l->f, id, k);
            if (x >= 0 && place_of(l, id) > last[x])
                last[x] = place_of(l, id);
        }
    }
    for (qd_node_id id = 0; id < n; id++)
        if (qd_lower_node_of(l, id)->op == &qd_op_const && !l->f.info[id].fixed) {
            (*next)[id] = (*first)[last[id]];
            (*first)[last[id]] = id;
        }
    qd_free(last);
    return QD_OK;
}

static void let_go(qd_lower *l, qd_graph *take, qd_node_id id)
{
    qd_tensor_clear(&l->f.info[id].folded);
    qd_graph_let_go(take, id);
}

static qd_status lower_nodes(qd_lower *l, const qd_plan_options *o, qd_err *err)
{
    qd_node_id *first = NULL, *next = NULL;
    qd_status st = o->take ? find_last_readers(l, &first, &next, err) : QD_OK;
    for (qd_node_id id = 0; id < l->f.n && !st; id++) {
        const qd_node_info *info = &l->f.info[id];
        if (info->live && info->same == id && qd_lower_node_of(l, id)->op != &qd_op_input) {
            if (!info->folded.data)
                st = lower_node(l, id, err);
            if (!st && info->fixed)
                st = watch(l, o, id, err);
        }
        for (qd_node_id c = o->take ? first[id] : -1; c >= 0 && !st; c = next[c])
            let_go(l, o->take, c);
    }
    qd_free(first);
    qd_free(next);
    return st;
}

static qd_status lower_graph(qd_lower *l, const qd_plan_options *o, qd_err *err)
{
    qd_plan *p = l->p;
    void *inputs, *outputs;
    qd_status st = qd_plan_small(p, (size_t)qd_graph_inputs(l->g) * sizeof(qd_value_id), &inputs, err);
    if (!st)
        st = qd_plan_small(p, (size_t)qd_graph_outputs(l->g) * sizeof(qd_value_id), &outputs, err);
    if (st)
        return st;
    p->inputs = inputs;
    p->outputs = outputs;
    for (int k = 0; k < qd_graph_inputs(l->g) && !st; k++) {
        const qd_node_id id = qd_graph_input_at(l->g, k);
        l->f.info[id].layout =
            l->shapes[id].rank == 4 && qd_lower_node_of(l, id)->dtype == QD_F32 && !qd_train_is_weight(&l->f, id)
                ? QD_LAYOUT_LAST
                : QD_LAYOUT_ROW;
        st = qd_lower_value(l, id, NULL, &p->inputs[k], err);
        p->n_inputs = k + !st;
        if (!st)
            st = watch(l, o, id, err);
    }
    if (!st)
        st = lower_nodes(l, o, err);
    for (int k = 0; k < qd_graph_outputs(l->g) && !st; k++) {
        st = qd_lower_native(l, l->f.info[qd_graph_output_at(l->g, k)].same, &p->outputs[k], err);
        p->n_outputs = k + !st;
    }
    return st;
}

static qd_status lower_cpu(qd_plan *p, const qd_graph *g, const qd_shape *shapes, const qd_plan_options *o, qd_err *err)
{
    qd_lower l = { .p = p, .g = g, .shapes = shapes };
    qd_status st = qd_fuse(g, shapes, o, &l.f, err);
    if (!st)
        st = lower_graph(&l, o, err);
    qd_fused_clear(&l.f);
    return st;
}

const qd_backend qd_backend_cpu = {
    .name = "cpu",
    .summary = "oneDNN and our own fused loops, channels last.",
    .lower = lower_cpu,
};
