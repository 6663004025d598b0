/* fuse.c - chains of nodes become steps: values read in parts, passes with their norms, products with their sums. */
#include <string.h>

#include "plan/cpu_int.h"

/* --- values read in parts --- */

static bool is_channel_op(const qd_fused *f, qd_node_id id, const qd_op *op)
{
    return qd_fused_op(f, id) == op && f->info[id].layout == QD_LAYOUT_LAST;
}

static void slice_range(const qd_fused *f, qd_node_id id, int64_t *begin, int64_t *count)
{
    const qd_node *n = qd_graph_node(f->g, id);
    const int64_t start = qd_node_int(n, "start"), whole = f->shapes[qd_fused_input(f, id, 0)].dim[1];
    *begin = start < 0 ? start + whole : start;
    *count = f->shapes[id].dim[1];
}

static int add_parts(const qd_fused *f, qd_node_id id, int64_t begin, int64_t count, bool open, qd_part *parts, int n)
{
    if (count <= 0)
        return n;
    if (!f->info[id].split && !open) {
        if (n < QD_MAX_PARTS)
            parts[n] = (qd_part){ .node = id, .begin = begin, .count = count };
        return n + 1;
    }
    if (qd_fused_op(f, id) == &qd_op_slice) {
        int64_t from, whole;
        slice_range(f, id, &from, &whole);
        return add_parts(f, qd_fused_input(f, id, 0), from + begin, count, false, parts, n);
    }
    int64_t at = 0;
    for (int k = 0; k < qd_graph_node(f->g, id)->n_inputs; k++) {
        const qd_node_id x = qd_fused_input(f, id, k);
        const int64_t size = f->shapes[x].dim[1];
        const int64_t lo = begin > at ? begin : at, hi = begin + count < at + size ? begin + count : at + size;
        n = add_parts(f, x, lo - at, hi - lo, false, parts, n);
        at += size;
    }
    return n;
}

int qd_fused_parts(const qd_fused *f, qd_node_id id, bool open, qd_part parts[QD_MAX_PARTS])
{
    const qd_shape *s = &f->shapes[id];
    return add_parts(f, id, 0, s->rank > 1 ? s->dim[1] : 1, open, parts, 0);
}

static bool is_pointwise_conv(const qd_fused *f, qd_node_id id)
{
    const qd_node *n = qd_graph_node(f->g, id);
    if (n->op != &qd_op_conv2d || qd_node_int(n, "groups") != 1)
        return false;
    const qd_shape *w = &f->shapes[qd_fused_input(f, id, 1)];
    const int64_t *pads = qd_node_ints(n, "pads")->ints;
    return w->dim[2] == 1 && w->dim[3] == 1 && !pads[0] && !pads[1] && !pads[2] && !pads[3] &&
           f->info[qd_fused_input(f, id, 1)].folded.data;
}

static bool whole_parts(const qd_fused *f, const qd_part *parts, int n)
{
    for (int k = 0; k < n; k++)
        if (parts[k].begin || parts[k].count != f->shapes[parts[k].node].dim[1])
            return false;
    return true;
}

static bool reads_parts(const qd_fused *f, qd_node_id reader, qd_node_id of, bool whole)
{
    const qd_op *op = qd_fused_op(f, reader);
    if (qd_fused_input(f, reader, 0) != of || f->info[reader].layout != QD_LAYOUT_LAST)
        return false;
    for (int k = 1; k < qd_graph_node(f->g, reader)->n_inputs; k++)
        if (qd_fused_input(f, reader, k) == of)
            return false;
    if (op == &qd_op_group_norm || op == &qd_op_batch_norm || op == &qd_op_slice || qd_is_act(op) || qd_is_quant(op))
        return true;
    return whole && is_pointwise_conv(f, reader);
}

/* A concat of channels (or a slice of them) need not exist when all its readers can take the parts. */
static void find_splits(qd_fused *f)
{
    for (qd_node_id id = 0; id < f->n; id++) {
        qd_node_info *info = &f->info[id];
        const qd_node *node = qd_graph_node(f->g, id);
        if (!info->live || info->fixed || info->folded.data || !info->uses || node->dtype != QD_F32)
            continue;
        if (!is_channel_op(f, id, &qd_op_concat) && !is_channel_op(f, id, &qd_op_slice))
            continue;
        bool ok = true;
        for (int k = 0; k < node->n_inputs; k++)
            ok &= !f->info[qd_fused_input(f, id, k)].folded.data;
        info->split = ok;
        qd_part parts[QD_MAX_PARTS];
        const int n = ok ? qd_fused_parts(f, id, false, parts) : 0;
        if (n > QD_MAX_PARTS)
            ok = false;
        const bool whole = ok && whole_parts(f, parts, n);
        for (int k = 0; k < info->uses && ok; k++)
            ok = reads_parts(f, f->consumer[info->consumers + k], id, whole);
        info->split = ok;
    }
}

/* --- groups --- */

/* The one reader of a value that nobody else needs; -1 otherwise. */
static qd_node_id sole_reader(const qd_fused *f, qd_node_id id)
{
    const qd_node_info *info = &f->info[id];
    if (info->uses != 1 || info->fixed)
        return -1;
    const qd_node_id reader = f->consumer[info->consumers];
    return f->info[reader].group < 0 ? reader : -1;
}

/* The same, walking through views; *through is the value that the reader reads. */
static qd_node_id reader_through_views(const qd_fused *f, qd_node_id id, qd_node_id *through)
{
    qd_node_id reader = sole_reader(f, id);
    *through = id;
    while (reader >= 0 && f->info[reader].view) {
        *through = reader;
        reader = sole_reader(f, reader);
    }
    return reader;
}

/* All nodes from `from` (exclusive) to `to` along single readers belong to the group. */
static void claim(qd_fused *f, int group, qd_node_id from, qd_node_id to)
{
    while (from != to) {
        from = f->consumer[f->info[from].consumers];
        f->info[from].group = group;
    }
}

static bool is_known(const qd_fused *f, qd_node_id id)
{
    return id < 0 || f->info[id].folded.data;
}

/* Are all inputs but the first constants (or left out)? */
static bool has_known_parameters(const qd_fused *f, qd_node_id id)
{
    for (int k = 1; k < qd_graph_node(f->g, id)->n_inputs; k++)
        if (!is_known(f, qd_fused_input(f, id, k)))
            return false;
    return true;
}

static bool is_norm(const qd_fused *f, qd_node_id id)
{
    const qd_op *op = qd_fused_op(f, id);
    return op == &qd_op_affine || ((op == &qd_op_group_norm || op == &qd_op_batch_norm) && f->shapes[id].rank <= 4 &&
                                   has_known_parameters(f, id));
}

/* Codes that a vector of floats can make: rounding by a magic number is exact below 2^22. */
static bool is_simple_quant(const qd_fused *f, qd_node_id id)
{
    return qd_is_quant(qd_fused_op(f, id)) && has_known_parameters(f, id);
}

static bool starts_pass(const qd_fused *f, qd_node_id id)
{
    const qd_op *op = qd_fused_op(f, id);
    if (qd_graph_node(f->g, qd_fused_input(f, id, 0))->dtype != QD_F32)
        return false;
    if (op == &qd_op_concat || op == &qd_op_slice) {
        qd_part parts[QD_MAX_PARTS];
        return f->info[id].layout == QD_LAYOUT_LAST && qd_fused_parts(f, id, true, parts) <= QD_MAX_PARTS;
    }
    return is_norm(f, id) || qd_is_act(op) || op == &qd_op_upsample || is_simple_quant(f, id);
}

/* add(x, e) with e one number for each sample and channel, read by nobody but the norm at `norm`. */
static void take_time(qd_fused *f, qd_group *gr)
{
    const qd_node_id sum = gr->source;
    if (qd_fused_op(f, gr->main) != &qd_op_group_norm || qd_fused_op(f, sum) != &qd_op_add || f->info[sum].fixed ||
        f->info[sum].uses != 1 || f->info[sum].group >= 0 || f->info[sum].folded.data)
        return;
    for (int k = 0; k < 2; k++) {
        const qd_node_id x = qd_fused_input(f, sum, k), e = qd_fused_input(f, sum, 1 - k);
        const qd_shape *s = &f->shapes[sum], *t = &f->shapes[e];
        if (x == e || !qd_shape_equal(&f->shapes[x], s) || t->rank != s->rank || t->dim[1] != s->dim[1] ||
            (t->dim[0] != 1 && t->dim[0] != s->dim[0]))
            continue;
        bool flat = true;
        for (int j = 2; j < t->rank; j++)
            flat &= t->dim[j] == 1;
        if (!flat)
            continue;
        gr->source = x;
        gr->time = e;
        f->info[sum].group = f->n_groups;
        return;
    }
}

static void match_pass(qd_fused *f, qd_node_id id)
{
    const qd_op *op = qd_fused_op(f, id);
    qd_group gr = { .kind = QD_GROUP_PASS,
                    .main = id,
                    .end = id,
                    .source = op == &qd_op_concat || op == &qd_op_slice ? id : qd_fused_input(f, id, 0),
                    .time = -1,
                    .norm = -1,
                    .up = -1,
                    .quant = -1,
                    .bn = -1,
                    .residual = -1,
                    .act = -1 };
    qd_node_id cur = id;
    bool moved = false; /* through views: axes have other meanings now */
    if (is_norm(f, id))
        gr.norm = id;
    else if (qd_is_act(op))
        gr.act = id;
    else if (op == &qd_op_upsample)
        gr.up = id;
    else if (qd_is_quant(op))
        gr.quant = id;
    if (gr.norm >= 0)
        take_time(f, &gr);

    while (gr.quant < 0) {
        qd_node_id through;
        const qd_node_id next = reader_through_views(f, cur, &through);
        if (next < 0 || qd_fused_input(f, next, 0) != through || f->info[next].folded.data)
            break;
        const bool crossed = moved || through != cur;
        const bool same = qd_layout_same(&f->shapes[next], f->info[next].layout, f->info[through].layout);
        const qd_op *o = qd_fused_op(f, next);
        if (qd_is_act(o) && gr.act < 0 && same)
            gr.act = next;
        else if (is_simple_quant(f, next) && same && !(crossed && qd_graph_node(f->g, next)->n_inputs > 1))
            gr.quant = next;
        else if (o == &qd_op_upsample && gr.up < 0 && same && !crossed)
            gr.up = next;
        else
            break;
        claim(f, f->n_groups, cur, next);
        cur = next;
        moved = crossed;
    }
    gr.end = cur;
    f->info[id].group = f->n_groups;
    f->groups[f->n_groups++] = gr;
}

bool qd_fused_is_product(const qd_fused *f, qd_node_id id)
{
    const qd_op *op = qd_fused_op(f, id);
    if (!f->info[id].live || f->info[id].folded.data || !has_known_parameters(f, id))
        return false;
    if (op == &qd_op_conv2d || op == &qd_op_linear)
        return true;
    if (op != &qd_op_qconv2d && op != &qd_op_qlinear)
        return false;
    const qd_node *n = qd_graph_node(f->g, id);
    const qd_tensor *scale = &f->info[qd_fused_input(f, id, 2)].folded;
    const qd_node_id bias = qd_fused_input(f, id, 3);
    const int64_t outputs = scale->shape.dim[0], scales = scale->shape.rank > 1 ? scale->shape.dim[1] : 1;
    if (scales > 1 && op == &qd_op_qconv2d && qd_node_int(n, "groups") > 1)
        return false; /* several scales within groups: left to the plain loops */
    return qd_qconv_fits(qd_f32(scale), bias < 0 ? NULL : qd_f32(&f->info[bias].folded), outputs, scales,
                         (float)qd_node_float(n, "x_scale"));
}

/* Is this value made by a product later than `after` that could itself take the sum in? Then it shall: it runs last. */
static bool comes_from_later_product(const qd_fused *f, qd_node_id id, qd_node_id after)
{
    while (f->info[id].uses == 1 && !f->info[id].fixed) {
        if (qd_fused_is_product(f, id))
            return id > after;
        if (!f->info[id].view && qd_fused_op(f, id) != &qd_op_batch_norm)
            return false;
        id = qd_fused_input(f, id, 0);
    }
    return false;
}

static void match_product(qd_fused *f, qd_node_id id)
{
    const qd_op *op = qd_fused_op(f, id);
    const bool conv = op == &qd_op_conv2d || op == &qd_op_qconv2d;
    qd_group gr = { .kind = conv ? QD_GROUP_CONV : QD_GROUP_LINEAR,
                    .main = id,
                    .end = id,
                    .source = qd_fused_input(f, id, 0),
                    .time = -1,
                    .norm = -1,
                    .up = -1,
                    .quant = -1,
                    .bn = -1,
                    .residual = -1,
                    .act = -1 };
    qd_node_id cur = id;
    for (;;) {
        qd_node_id through;
        const qd_node_id next = reader_through_views(f, cur, &through);
        if (next < 0 || f->info[next].folded.data)
            break;
        const qd_op *o = qd_fused_op(f, next);
        const bool same = qd_layout_same(&f->shapes[next], f->info[next].layout, f->info[through].layout);
        if (o == &qd_op_batch_norm && op == &qd_op_conv2d && through == cur && cur == id &&
            has_known_parameters(f, next)) {
            gr.bn = next;
        } else if (qd_is_act(o) && gr.act < 0 && same) {
            gr.act = next;
        } else if (o == &qd_op_add && gr.residual < 0 && gr.act < 0 && same) {
            const qd_node_id a = qd_fused_input(f, next, 0), b = qd_fused_input(f, next, 1);
            const qd_node_id other = a == through ? b : a;
            if (other == through || !qd_shape_equal(&f->shapes[other], &f->shapes[next]) ||
                !qd_shape_equal(&f->shapes[through], &f->shapes[next]) || /* the product itself would be broadcast */
                f->info[other].folded.data || comes_from_later_product(f, other, id))
                break;
            gr.residual = other;
        } else {
            break;
        }
        claim(f, f->n_groups, cur, next);
        cur = next;
        if (gr.act >= 0)
            break;
    }
    gr.end = cur;
    f->info[id].group = f->n_groups;
    f->groups[f->n_groups++] = gr;
}

/* Batch norm with the statistics of its batch or weights that are values, what is added to it, and ReLU. */
static void match_train_norm(qd_fused *f, qd_node_id id)
{
    qd_group gr = { .kind = QD_GROUP_TRAIN_NORM,
                    .main = id,
                    .end = id,
                    .source = qd_fused_input(f, id, 0),
                    .time = -1,
                    .norm = -1,
                    .up = -1,
                    .quant = -1,
                    .bn = -1,
                    .residual = -1,
                    .act = -1 };
    while (gr.act < 0) {
        const qd_node_id next = sole_reader(f, gr.end);
        if (next < 0 || f->info[next].folded.data || !qd_shape_equal(&f->shapes[next], &f->shapes[id]) ||
            f->info[next].layout != f->info[id].layout)
            break;
        if (qd_fused_op(f, next) == &qd_op_relu) {
            gr.act = next;
        } else if (qd_fused_op(f, next) == &qd_op_add && gr.residual < 0) {
            const qd_node_id a = qd_fused_input(f, next, 0), b = qd_fused_input(f, next, 1);
            const qd_node_id other = a == gr.end ? b : a;
            if (other == gr.end || !qd_shape_equal(&f->shapes[other], &f->shapes[id]))
                break;
            gr.residual = other;
        } else {
            break;
        }
        claim(f, f->n_groups, gr.end, next);
        gr.end = next;
    }
    f->info[id].group = f->n_groups;
    f->groups[f->n_groups++] = gr;
}

static void find_groups(qd_fused *f)
{
    for (qd_node_id id = 0; id < f->n; id++)
        if (f->info[id].live && !f->info[id].folded.data)
            qd_fuse_attention(f, id);
    for (qd_node_id id = 0; id < f->n; id++) {
        const qd_node_info *info = &f->info[id];
        if (!info->live || info->folded.data || info->view || info->split || info->group >= 0 ||
            qd_graph_node(f->g, id)->n_inputs == 0)
            continue;
        if (qd_fused_op(f, id) == &qd_op_batch_norm_train ||
            (qd_fused_op(f, id) == &qd_op_batch_norm && !has_known_parameters(f, id)))
            match_train_norm(f, id);
        else if (qd_fused_is_product(f, id))
            match_product(f, id);
        else if (starts_pass(f, id))
            match_pass(f, id);
    }
}

void qd_fused_border(const qd_fused *f, qd_node_id codes, int32_t border[4])
{
    const qd_node_info *info = &f->info[codes];
    memset(border, 0, 4 * sizeof(*border));
    if (info->fixed || f->shapes[codes].rank != 4 || info->layout != QD_LAYOUT_LAST || !info->uses)
        return;
    for (int k = 0; k < info->uses; k++) {
        const qd_node_id reader = f->consumer[info->consumers + k];
        if (qd_fused_op(f, reader) != &qd_op_qconv2d || !qd_fused_is_product(f, reader)) {
            memset(border, 0, 4 * sizeof(*border));
            return;
        }
        const int64_t *pads = qd_node_ints(qd_graph_node(f->g, reader), "pads")->ints;
        for (int j = 0; j < 4; j++) {
            if (k > 0 && border[j] != pads[j]) {
                memset(border, 0, 4 * sizeof(*border));
                return;
            }
            border[j] = (int32_t)pads[j];
        }
    }
}

qd_status qd_fuse(const qd_graph *g, const qd_shape *shapes, const qd_plan_options *o, qd_fused *out, qd_err *err)
{
    qd_fused f = { .g = g, .shapes = shapes, .n = qd_graph_size(g) };
    f.info = qd_calloc((size_t)f.n + 1, sizeof(*f.info));
    f.groups = qd_calloc((size_t)f.n + 1, sizeof(*f.groups));
    qd_status st = f.info && f.groups ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory to fuse %d nodes", f.n);
    for (int k = 0; k < f.n && f.info; k++) {
        f.info[k].group = -1;
        f.info[k].value[0] = f.info[k].value[1] = -1;
    }
    if (!st)
        st = qd_analyse(&f, o, err);
    if (st) {
        qd_fused_clear(&f);
        return st;
    }
    find_splits(&f);
    find_groups(&f);
    *out = f;
    return QD_OK;
}

void qd_fused_clear(qd_fused *f)
{
    for (int k = 0; k < f->n && f->info; k++)
        qd_tensor_clear(&f->info[k].folded);
    qd_free(f->info);
    qd_free(f->consumer);
    qd_free(f->groups);
    *f = (qd_fused){ 0 };
}
