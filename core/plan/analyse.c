/* analyse.c - a graph before it is fused: equal nodes once, constants folded, the dead left out, a layout for every value. */
#include <string.h>

#include "plan/cpu_train.h"

qd_node_id qd_fused_input(const qd_fused *f, qd_node_id id, int k)
{
    const qd_node *n = qd_graph_node(f->g, id);
    const qd_node_id x = k < n->n_inputs ? n->input[k] : -1;
    return x < 0 ? -1 : f->info[x].same;
}

const qd_op *qd_fused_op(const qd_fused *f, qd_node_id id)
{
    return qd_graph_node(f->g, id)->op;
}

bool qd_act_of(const qd_op *op, qd_act *act)
{
    static const struct {
        const qd_op *op;
        qd_act act;
    } acts[] = {
        { &qd_op_silu, QD_ACT_SILU }, { &qd_op_relu, QD_ACT_RELU },       { &qd_op_clip, QD_ACT_CLIP },
        { &qd_op_gelu, QD_ACT_GELU }, { &qd_op_sigmoid, QD_ACT_SIGMOID }, { &qd_op_tanh, QD_ACT_TANH },
    };
    for (size_t k = 0; k < sizeof(acts) / sizeof(acts[0]); k++)
        if (acts[k].op == op) {
            *act = acts[k].act;
            return true;
        }
    return false;
}

bool qd_is_act(const qd_op *op)
{
    qd_act unused;
    return qd_act_of(op, &unused);
}

static bool is_arith(const qd_op *op)
{
    return op == &qd_op_add || op == &qd_op_sub || op == &qd_op_mul || op == &qd_op_div;
}

bool qd_is_quant(const qd_op *op)
{
    return op == &qd_op_quantize || op == &qd_op_fake_quant;
}

/* --- equal nodes, constants known now, what is needed --- */

static bool same_work(const qd_fused *f, qd_node_id a, qd_node_id b)
{
    const qd_node *x = qd_graph_node(f->g, a), *y = qd_graph_node(f->g, b);
    if (x->op != y->op || x->n_inputs != y->n_inputs || x->op == &qd_op_input || x->op == &qd_op_const)
        return false;
    for (int k = 0; k < x->n_inputs; k++)
        if (qd_fused_input(f, a, k) != qd_fused_input(f, b, k))
            return false;
    for (int k = 0; k < x->n_attrs; k++) {
        const qd_attr *p = &x->attr[k], *q = &y->attr[k];
        if (p->i != q->i || p->n != q->n || memcmp(&p->f, &q->f, sizeof(p->f)) != 0 ||
            memcmp(p->ints, q->ints, (size_t)p->n * sizeof(p->ints[0])) != 0)
            return false;
    }
    return true;
}

/* Equal nodes read the same first input: compare along the chain of its readers so far. */
static qd_status find_equal(qd_fused *f, qd_err *err)
{
    qd_node_id *last = qd_alloc(((size_t)f->n + 1) * 2 * sizeof(*last));
    if (!last)
        return qd_fail(err, QD_E_NOMEM, "no memory to compare %d nodes", f->n);
    qd_node_id *before = last + f->n; /* the reader of the same input before this one */
    for (qd_node_id id = 0; id < f->n; id++) {
        f->info[id].same = id;
        last[id] = -1;
        before[id] = -1;
        const qd_node_id x = qd_fused_input(f, id, 0);
        if (x < 0)
            continue;
        for (qd_node_id other = last[x]; other >= 0; other = before[other])
            if (same_work(f, other, id)) {
                f->info[id].same = other;
                break;
            }
        if (f->info[id].same == id) {
            before[id] = last[x];
            last[x] = id;
        }
    }
    qd_free(last);
    return QD_OK;
}

static qd_status fold(qd_fused *f, qd_node_id id, qd_budget *budget, qd_err *err)
{
    const qd_node *n = qd_graph_node(f->g, id);
    qd_tensor *out = &f->info[id].folded;
    const qd_tensor *in[QD_MAX_INPUTS] = { NULL };
    if (n->op == &qd_op_const) {
        qd_tensor_share(out, &n->value);
        return QD_OK;
    }
    if (n->op == &qd_op_input || n->n_inputs == 0 || f->info[id].same != id)
        return QD_OK;
    for (int k = 0; k < n->n_inputs; k++) {
        const qd_node_id x = qd_fused_input(f, id, k);
        if (x < 0)
            continue;
        if (!f->info[x].folded.data)
            return QD_OK;
        in[k] = &f->info[x].folded;
    }
    qd_status st = qd_tensor_init(out, n->dtype, &f->shapes[id], budget, err);
    if (!st)
        n->op->forward(n, in, out);
    return st;
}

static qd_status find_needed(qd_fused *f, const qd_plan_options *o, qd_err *err)
{
    for (int k = 0; k < qd_graph_outputs(f->g); k++)
        f->info[f->info[qd_graph_output_at(f->g, k)].same].fixed = true;
    for (int k = 0; k < o->n_observed; k++)
        f->info[f->info[o->observed[k]].same].fixed = true;

    int total = 0;
    for (qd_node_id id = f->n - 1; id >= 0; id--) {
        qd_node_info *info = &f->info[id];
        info->live |= info->fixed;
        if (!info->live || info->folded.data)
            continue;
        for (int k = 0; k < qd_graph_node(f->g, id)->n_inputs; k++) {
            const qd_node_id x = qd_fused_input(f, id, k);
            if (x < 0)
                continue;
            f->info[x].live = true;
            f->info[x].uses++;
            total++;
        }
    }
    f->consumer = qd_alloc(((size_t)total + 1) * sizeof(*f->consumer));
    if (!f->consumer)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d edges", total);
    int at = 0;
    for (qd_node_id id = 0; id < f->n; id++) {
        f->info[id].consumers = at;
        at += f->info[id].uses;
        f->info[id].uses = 0;
    }
    for (qd_node_id id = 0; id < f->n; id++) {
        if (!f->info[id].live || f->info[id].folded.data)
            continue;
        for (int k = 0; k < qd_graph_node(f->g, id)->n_inputs; k++) {
            const qd_node_id x = qd_fused_input(f, id, k);
            if (x >= 0)
                f->consumer[f->info[x].consumers + f->info[x].uses++] = id;
        }
    }
    return QD_OK;
}

/* --- layouts --- */

static bool is_kept(const qd_shape *in, const qd_shape *out)
{
    return out->rank >= 3 && in->rank >= 3 && in->dim[0] == out->dim[0] && in->dim[1] == out->dim[1];
}

/* The order of axes in memory, outermost first. */
static void axes_in_memory(int rank, qd_layout layout, int order[QD_MAX_RANK])
{
    for (int k = 0; k < rank; k++)
        order[k] = k;
    if (layout == QD_LAYOUT_LAST && rank >= 3) {
        for (int k = 1; k < rank - 1; k++)
            order[k] = k + 1;
        order[rank - 1] = 1;
    }
}

/* Does permuting x (in layout `from`) give the same bytes when the result is read in layout `to`? */
static bool permute_is_view(const qd_node *n, const qd_shape *x, const qd_shape *out, qd_layout from, qd_layout to)
{
    int in_order[QD_MAX_RANK], out_order[QD_MAX_RANK], j = 0;
    const int64_t *perm = qd_node_ints(n, "perm")->ints;
    axes_in_memory(x->rank, from, in_order);
    axes_in_memory(out->rank, to, out_order);
    for (int k = 0; k < out->rank; k++) {
        const int axis = (int)perm[out_order[k]];
        if (x->dim[axis] == 1)
            continue;
        while (j < x->rank && x->dim[in_order[j]] == 1)
            j++;
        if (j == x->rank || in_order[j++] != axis)
            return false;
    }
    return true;
}

static void lay_shape_op(qd_fused *f, qd_node_id id)
{
    const qd_node *n = qd_graph_node(f->g, id);
    const qd_node_id x = qd_fused_input(f, id, 0);
    const qd_shape *in = &f->shapes[x], *out = &f->shapes[id];
    const qd_layout from = f->info[x].layout;
    qd_node_info *info = &f->info[id];

    if (n->op == &qd_op_permute) {
        for (int to = QD_LAYOUT_ROW; to <= QD_LAYOUT_LAST && !info->view; to++) {
            info->view = permute_is_view(n, in, out, from, (qd_layout)to);
            if (info->view)
                info->layout = (qd_layout)to;
        }
    } else if (qd_layout_same(in, from, QD_LAYOUT_ROW)) {
        info->view = true;
    } else if (is_kept(in, out)) { /* [N, C, H, W] to [N, C, HW] and the like */
        info->view = true;
        info->layout = QD_LAYOUT_LAST;
    }
}

static qd_layout layout_for(const qd_fused *f, qd_node_id id)
{
    const qd_node *n = qd_graph_node(f->g, id);
    const qd_op *op = n->op;
    const int rank = f->shapes[id].rank;
    if (rank < 3)
        return QD_LAYOUT_ROW;
    if (op == &qd_op_input)
        return rank == 4 && n->dtype == QD_F32 && !qd_train_is_weight(f, id) ? QD_LAYOUT_LAST : QD_LAYOUT_ROW;
    if (op == &qd_op_conv2d || op == &qd_op_qconv2d || op == &qd_op_group_norm || op == &qd_op_batch_norm ||
        op == &qd_op_upsample || op == &qd_op_avg_pool || op == &qd_op_max_pool || op == &qd_op_global_avg_pool ||
        qd_train_lays_last(f, id))
        return QD_LAYOUT_LAST;
    const qd_layout first = f->info[qd_fused_input(f, id, 0)].layout;
    if (qd_is_act(op) || op == &qd_op_affine)
        return first;
    if (qd_is_quant(op))
        return qd_fused_input(f, id, 1) >= 0 ? QD_LAYOUT_LAST : first; /* divisors go along axis 1 */
    if (is_arith(op)) {
        for (int k = 0; k < 2; k++) {
            const qd_node_id x = qd_fused_input(f, id, k);
            if (f->info[x].layout == QD_LAYOUT_LAST && qd_shape_equal(&f->shapes[x], &f->shapes[id]) &&
                !qd_layout_same(&f->shapes[x], QD_LAYOUT_LAST, QD_LAYOUT_ROW))
                return QD_LAYOUT_LAST;
        }
        return QD_LAYOUT_ROW;
    }
    if (op == &qd_op_concat && n->dtype == QD_F32) {
        const int64_t axis = qd_node_int(n, "axis");
        const bool channels = (axis < 0 ? axis + rank : axis) == 1 && (rank == 4 || first == QD_LAYOUT_LAST);
        return channels ? QD_LAYOUT_LAST : QD_LAYOUT_ROW;
    }
    if (op == &qd_op_slice && n->dtype == QD_F32 && first == QD_LAYOUT_LAST && qd_node_int(n, "step") == 1) {
        const int64_t axis = qd_node_int(n, "axis");
        return (axis < 0 ? axis + rank : axis) == 1 ? QD_LAYOUT_LAST : QD_LAYOUT_ROW;
    }
    return QD_LAYOUT_ROW;
}

static void choose_layouts(qd_fused *f)
{
    for (qd_node_id id = 0; id < f->n; id++) {
        const qd_op *op = qd_fused_op(f, id);
        qd_node_info *info = &f->info[id];
        info->layout = QD_LAYOUT_ROW;
        if (!info->live || info->folded.data)
            continue;
        if (op == &qd_op_reshape || op == &qd_op_permute)
            lay_shape_op(f, id);
        else if (qd_train_keeps(f, id)) {
            info->view = true;
            info->layout = f->info[qd_fused_input(f, id, 0)].layout;
        } else
            info->layout = layout_for(f, id);
    }
}

qd_status qd_analyse(qd_fused *f, const qd_plan_options *o, qd_err *err)
{
    qd_status st = find_equal(f, err);
    for (qd_node_id id = 0; id < f->n && !st; id++)
        st = fold(f, id, o->budget, err);
    if (!st)
        st = find_needed(f, o, err);
    if (!st)
        choose_layouts(f);
    return st;
}
