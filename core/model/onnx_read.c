/* onnx_read.c - a parsed ONNX file becomes a graph of ours, node by node: constants are worked out, the rest is looked up in
 * onnx_ops.c, and what cannot be read is listed by name. */
#include "model/onnx_int.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"

#define PROBE_BYTES ((size_t)65536) /* of a file, to recognise it by */

/* --- values --- */

const qd_onnx_number *qd_onnx_in(const qd_onnx_reader *r, const qd_onnx_node *n, int k)
{
    if (k >= n->n_inputs || !n->input[k][0])
        return NULL;
    const int at = qd_names_find(&r->names, n->input[k]);
    assert(at >= 0); /* read_node has looked */
    return &r->value[at];
}

const qd_shape *qd_onnx_shape_of(const qd_onnx_number *v, int world)
{
    return v->constant ? &v->t[world].shape : &v->shape[world];
}

/* A new value under an ONNX name; takes v, also on failure. */
static qd_status value_add(qd_onnx_reader *r, const char *name, qd_onnx_number *v, qd_err *err)
{
    qd_status st = QD_OK;
    if (qd_names_find(&r->names, name) >= 0)
        st = qd_fail(err, QD_E_FORMAT, "the value '%.150s' is made twice", name);
    if (!st && r->names.count == r->value_room) {
        const int room = r->value_room ? 2 * r->value_room : 256;
        qd_onnx_number *more = qd_realloc(r->value, (size_t)room * sizeof(*more));
        if (more) {
            r->value = more;
            r->value_room = room;
        } else {
            st = qd_fail(err, QD_E_NOMEM, "out of memory for %d values", room);
        }
    }
    if (!st)
        st = qd_names_add(&r->names, name, err);
    if (st)
        qd_onnx_number_clear(v);
    else
        r->value[r->names.count - 1] = *v;
    return st;
}

qd_status qd_onnx_alias(qd_onnx_reader *r, const qd_onnx_node *n, int k, const qd_onnx_number *v, qd_err *err)
{
    qd_onnx_number copy;
    if (k >= n->n_outputs || !n->output[k][0])
        return QD_OK;
    qd_onnx_number_share(&copy, v);
    return value_add(r, n->output[k], &copy, err);
}

qd_status qd_onnx_fixed(const qd_onnx_reader *r, const qd_onnx_node *n, int k, const qd_tensor **out, qd_err *err)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, k);
    *out = NULL;
    if (!v)
        return QD_OK;
    if (!qd_onnx_number_fixed(v))
        return qd_fail(err, QD_E_UNSUPPORTED, "input %d ('%.100s') must be a constant", k, n->input[k]);
    *out = &v->t[0];
    return QD_OK;
}

qd_status qd_onnx_list(const qd_onnx_reader *r, const qd_onnx_node *n, const char *name, int k, int world,
                       int64_t out[QD_ONNX_LIST], int *n_out, qd_err *err)
{
    const qd_onnx_attr *a = name ? qd_onnx_attr_find(n, name) : NULL;
    const int64_t *list = NULL;
    int64_t count = 0;
    *n_out = -1;
    if (a && a->kind == QD_ONNX_INTS) {
        list = a->ints;
        count = a->n > QD_ONNX_LIST ? QD_ONNX_LIST + 1 : (int64_t)a->n;
    } else {
        const qd_onnx_number *v = k < 0 ? NULL : qd_onnx_in(r, n, k);
        if (!v)
            return QD_OK;
        if (!v->constant)
            return qd_fail(err, QD_E_UNSUPPORTED, "input %d ('%.100s') must be a constant", k, n->input[k]);
        if (v->dtype != QD_I64 || v->t[world].shape.rank > 1)
            return qd_fail(err, QD_E_FORMAT, "input %d ('%.100s') must be a list of whole numbers", k, n->input[k]);
        list = v->t[world].data;
        count = qd_tensor_count(&v->t[world]);
    }
    if (count > QD_ONNX_LIST)
        return qd_fail(err, QD_E_LIMIT, "%s has more than %d values", name ? name : n->input[k], QD_ONNX_LIST);
    if (count)
        memcpy(out, list, (size_t)count * sizeof(*out));
    *n_out = (int)count;
    return QD_OK;
}

/* --- nodes --- */

/* A name our graphs accept: printable, of bounded length. */
static void clean(char *name, size_t n, const char *from)
{
    size_t k = 0;
    for (; from[k] && k + 1 < n; k++)
        name[k] = (unsigned char)from[k] < 0x20 || (unsigned char)from[k] >= 0x7f ? '_' : from[k];
    name[k] = '\0';
}

/* "layer1.0.conv1" of "layer1.0.conv1.weight"; 0 when the name is no such. */
static size_t prefix_length(const char *name)
{
    static const char *const endings[] = { ".weight", ".bias" };
    const size_t n = strlen(name);
    for (size_t k = 0; k < sizeof(endings) / sizeof(endings[0]); k++) {
        const size_t m = strlen(endings[k]);
        if (n > m && strcmp(name + n - m, endings[k]) == 0)
            return n - m;
    }
    return 0;
}

/* What a node of ours made for n is called: by its weights where they have a name, else as in the file; made unique. */
static void name_node(const qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, char name[QD_MAX_NAME + 1])
{
    enum { ROOM = QD_MAX_NAME - 40 }; /* suffix and number */
    char base[ROOM];
    const char *from = n->name[0] ? n->name : n->op;
    size_t length = 0;
    for (int k = 0; k < n->n_inputs && !length; k++)
        if (qd_weights_find(r->file->initializers, n->input[k])) {
            length = prefix_length(n->input[k]);
            from = length ? n->input[k] : from;
        }
    clean(base, length && length + 1 < ROOM ? length + 1 : ROOM, from);
    for (int twin = 1;; twin++) {
        const char *dot = suffix ? "." : "";
        if (twin == 1)
            snprintf(name, QD_MAX_NAME + 1, "%s%s%.20s", base, dot, suffix ? suffix : "");
        else
            snprintf(name, QD_MAX_NAME + 1, "%s_%d%s%.20s", base, twin, dot, suffix ? suffix : "");
        if (qd_graph_find(r->graph, name) < 0)
            return;
    }
}

/* Remembers the shapes of the graph's newest node in both worlds. */
static void shapes_push(qd_onnx_reader *r, qd_node_id id, const qd_shape given[QD_ONNX_WORLDS])
{
    if (id < 0)
        return;
    assert(id == r->n_shapes);
    if (r->n_shapes == r->shape_room) {
        const int room = r->shape_room ? 2 * r->shape_room : 256;
        qd_shape *more = qd_realloc(r->shape, (size_t)room * QD_ONNX_WORLDS * sizeof(*more));
        if (!more) {
            qd_graph_fail(r->graph, QD_E_NOMEM, "out of memory for %d shapes", room);
            return;
        }
        r->shape = more;
        r->shape_room = room;
    }
    memcpy(&r->shape[r->n_shapes * QD_ONNX_WORLDS], given, QD_ONNX_WORLDS * sizeof(*given));
    r->n_shapes++;
}

const qd_shape *qd_onnx_node_shape(const qd_onnx_reader *r, qd_node_id x, int world)
{
    assert(x >= 0 && x < r->n_shapes);
    return &r->shape[x * QD_ONNX_WORLDS + world];
}

qd_node_id qd_onnx_add(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_op *op,
                       const qd_node_id *inputs, int n_inputs, const qd_attr *attrs, int n_attrs)
{
    char name[QD_MAX_NAME + 1];
    qd_shape made[QD_ONNX_WORLDS];
    name_node(r, n, suffix, name);
    const qd_node_id id = qd_graph_add(r->graph, op, name, inputs, n_inputs, attrs, n_attrs);
    if (id < 0)
        return -1;
    const qd_node *node = qd_graph_node(r->graph, id);
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        qd_operand in[QD_MAX_INPUTS];
        qd_dtype dtype;
        qd_err err = { 0 };
        for (int k = 0; k < QD_MAX_INPUTS; k++) {
            const qd_node_id x = k < n_inputs ? inputs[k] : -1;
            in[k] = (qd_operand){ .shape = { .rank = -1 } };
            if (x < 0)
                continue;
            const qd_node *from = qd_graph_node(r->graph, x);
            in[k].dtype = from->dtype;
            in[k].shape = *qd_onnx_node_shape(r, x, w);
            in[k].value = from->op == &qd_op_const ? &from->value : NULL;
        }
        const qd_status st = qd_op_infer(node, in, &dtype, &made[w], &err);
        if (st) {
            qd_graph_fail(r->graph, st, "with a batch of %lld: %s", (long long)qd_onnx_batch[w], err.text);
            return -1;
        }
    }
    shapes_push(r, id, made);
    return id;
}

static qd_node_id const_named(qd_onnx_reader *r, const char *name, const qd_tensor *t)
{
    const qd_node_id id = qd_graph_const(r->graph, name, t);
    const qd_shape both[QD_ONNX_WORLDS] = { t->shape, t->shape };
    shapes_push(r, id, both);
    return id;
}

qd_node_id qd_onnx_const(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, const qd_tensor *t)
{
    char name[QD_MAX_NAME + 1];
    name_node(r, n, suffix, name);
    return const_named(r, name, t);
}

/* A float constant that is the same for every sample of the batch, along one axis: that axis, or -1. */
static int batch_axis(const qd_onnx_number *v)
{
    const qd_shape *a = &v->t[0].shape, *b = &v->t[1].shape;
    int axis = -1;
    if (v->dtype != QD_F32 || a->rank != b->rank)
        return -1;
    for (int k = 0; k < a->rank; k++) {
        if (a->dim[k] == b->dim[k])
            continue;
        if (axis >= 0 || a->dim[k] != qd_onnx_batch[0] || b->dim[k] != qd_onnx_batch[1])
            return -1;
        axis = k;
    }
    size_t inner = sizeof(float), outer = 1;
    for (int k = 0; k < a->rank; k++)
        if (k < axis)
            outer *= (size_t)a->dim[k];
        else if (k > axis)
            inner *= (size_t)a->dim[k];
    for (size_t o = 0; axis >= 0 && o < outer; o++) {
        const char *first = (const char *)v->t[0].data + o * (size_t)a->dim[axis] * inner;
        for (int w = 0; w < QD_ONNX_WORLDS; w++)
            for (int64_t k = 0; k < v->t[w].shape.dim[axis]; k++)
                if (memcmp(first,
                           (const char *)v->t[w].data + (o * (size_t)v->t[w].shape.dim[axis] + (size_t)k) * inner,
                           inner) != 0)
                    return -1;
    }
    return axis;
}

/* Such a constant as one sample of it and a row that repeats it. */
static qd_node_id repeated(qd_onnx_reader *r, const qd_onnx_node *named, const qd_onnx_number *v, int axis)
{
    qd_err err = { 0 };
    qd_tensor once = { 0 };
    qd_shape one = v->t[0].shape;
    size_t inner = sizeof(float), outer = 1;
    for (int k = 0; k < one.rank; k++)
        if (k < axis)
            outer *= (size_t)one.dim[k];
        else if (k > axis)
            inner *= (size_t)one.dim[k];
    one.dim[axis] = 1;
    const qd_status st = qd_tensor_init(&once, QD_F32, &one, r->budget, &err);
    if (st) {
        qd_graph_fail(r->graph, st, "%s", err.text);
        return -1;
    }
    for (size_t o = 0; o < outer; o++)
        memcpy((char *)once.data + o * inner, (const char *)v->t[0].data + o * (size_t)v->t[0].shape.dim[axis] * inner,
               inner);
    const qd_node_id c = qd_onnx_const(r, named, "once", &once);
    qd_tensor_clear(&once);
    one.dim[axis] = 0; /* the batch of `like` */
    return qd_onnx_add(r, named, NULL, &qd_op_expand, QD_IN(c, r->batch_of),
                       QD_ATTRS(qd_attr_ints("shape", one.rank, one.dim)));
}

static qd_node_id number_node(qd_onnx_reader *r, const char *name, qd_onnx_number *v)
{
    const qd_onnx_node named = { .name = name, .op = "const" };
    if (v->id >= 0)
        return v->id;
    if (qd_onnx_number_fixed(v)) {
        v->id = qd_onnx_const(r, &named, NULL, &v->t[0]);
        return v->id;
    }
    const int axis = r->batch_of < 0 ? -1 : batch_axis(v);
    if (axis < 0) {
        qd_graph_fail(r->graph, QD_E_UNSUPPORTED, "the constant '%.100s' depends on the batch", name);
        return -1;
    }
    v->id = repeated(r, &named, v, axis);
    return v->id;
}

qd_node_id qd_onnx_node_of(qd_onnx_reader *r, const qd_onnx_node *n, int k)
{
    const qd_onnx_number *v = qd_onnx_in(r, n, k);
    return v ? number_node(r, n->input[k], &r->value[v - r->value]) : -1;
}

/* The builder's sticky failure as the caller's. */
static qd_status graph_words(const qd_onnx_reader *r, qd_err *err)
{
    qd_status st = qd_graph_verify(r->graph, err);
    return st ? st : qd_fail(err, QD_E_INTERNAL, "a node could not be made");
}

qd_status qd_onnx_set(qd_onnx_reader *r, const qd_onnx_node *n, int k, qd_node_id id, qd_err *err)
{
    if (id < 0)
        return graph_words(r, err);
    if (k >= n->n_outputs || !n->output[k][0])
        return QD_OK;
    qd_onnx_number v = { .id = id, .dtype = qd_graph_node(r->graph, id)->dtype };
    for (int w = 0; w < QD_ONNX_WORLDS; w++)
        v.shape[w] = *qd_onnx_node_shape(r, id, w);
    return value_add(r, n->output[k], &v, err);
}

qd_node_id qd_onnx_reshape(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x,
                           const qd_shape target[QD_ONNX_WORLDS])
{
    if (x < 0)
        return -1;
    const qd_shape *from[QD_ONNX_WORLDS];
    bool same = true;
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        from[w] = qd_onnx_node_shape(r, x, w);
        same = same && qd_shape_equal(from[w], &target[w]);
    }
    if (same)
        return x;
    int64_t dims[QD_MAX_RANK];
    for (int k = 0, open = -1; k < target[0].rank; k++) {
        int64_t times;
        dims[k] = qd_onnx_symbol(target[0].dim[k], target[1].dim[k], &times);
        if (dims[k] == -1 && k < from[0]->rank && from[0]->dim[k] == target[0].dim[k] &&
            from[1]->dim[k] == target[1].dim[k])
            dims[k] = 0; /* kept */
        if (dims[k] == -2 || (dims[k] == -1 && open >= 0)) {
            qd_graph_fail(r->graph, QD_E_UNSUPPORTED,
                          "a reshape whose dimension %d depends on the batch in a way we cannot express", k);
            return -1;
        }
        if (dims[k] == -1)
            open = k;
    }
    return qd_onnx_add(r, n, suffix, &qd_op_reshape, QD_IN(x), QD_ATTRS(qd_attr_ints("shape", target[0].rank, dims)));
}

/* --- the file --- */

/* Ops that hand their first input on. */
static bool is_alias(const char *op)
{
    return strcmp(op, "Identity") == 0 || strcmp(op, "Dropout") == 0;
}

static const char *fault_of(const qd_onnx_node *n)
{
    if (n->domain[0])
        return n->domain;
    for (int k = 0; k < n->n_attrs; k++)
        if (n->attr[k].kind == QD_ONNX_GRAPH)
            return "with a graph inside";
    return is_alias(n->op) || qd_onnx_folds(n->op) || qd_onnx_op_find(n->op) ? NULL : "";
}

/* Every node we do not know, as many as fit by name. */
static qd_status check_supported(const qd_onnx_file *f, qd_err *err)
{
    char list[360] = "";
    size_t used = 0;
    int total = 0, shown = 0;
    for (int k = 0; k < f->n_nodes; k++) {
        const qd_onnx_node *n = &f->node[k];
        const char *fault = fault_of(n);
        if (!fault)
            continue;
        if (shown == total &&
            used + strnlen(n->name, 80) + strnlen(n->op, 40) + strnlen(fault, 40) + 12 < sizeof(list)) {
            used += (size_t)snprintf(list + used, sizeof(list) - used, "%s'%.80s' (%.40s%s%.40s)", shown ? ", " : "",
                                     n->name, n->op, fault[0] ? ", " : "", fault);
            shown++;
        }
        total++;
    }
    if (!total)
        return QD_OK;
    if (shown < total)
        return qd_fail(err, QD_E_UNSUPPORTED, "%d nodes are of kinds we do not read: %s and %d more", total, list,
                       total - shown);
    return qd_fail(err, QD_E_UNSUPPORTED, "%d node%s of kinds we do not read: %s", total, total > 1 ? "s are" : " is",
                   list);
}

static qd_status read_initializers(qd_onnx_reader *r, qd_err *err)
{
    const qd_weights *w = r->file->initializers;
    qd_status st = QD_OK;
    for (int k = 0; k < qd_weights_count(w) && !st; k++) {
        qd_onnx_number v = { .constant = true, .id = -1, .dtype = qd_weights_at(w, k)->dtype };
        for (int j = 0; j < QD_ONNX_WORLDS; j++)
            qd_tensor_share(&v.t[j], qd_weights_at(w, k));
        st = value_add(r, qd_weights_name(w, k), &v, err);
    }
    return st;
}

static qd_status read_input(qd_onnx_reader *r, const qd_onnx_value *in, qd_err *err)
{
    qd_onnx_number v = { .id = -1 };
    qd_shape declared = { .rank = in->rank };
    if (!qd_onnx_type_kept(in->elem_type, &v.dtype))
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "input '%.150s' has type %s (%d), must be a tensor of floats or whole numbers", in->name,
                       qd_onnx_type_name(in->elem_type), in->elem_type);
    if (in->rank < 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "input '%.150s' has no declared shape", in->name);
    for (int k = 0; k < in->rank; k++) {
        declared.dim[k] = in->dim[k];
        if (in->dim[k] < 0 && k > 0)
            return qd_fail(
                err, QD_E_UNSUPPORTED,
                "dimension %d ('%.60s') of input '%.150s' is not fixed: only the first, the batch, may be open", k,
                in->dim_name[k], in->name);
        if (in->dim[k] < 0)
            declared.dim[k] = -1;
    }
    v.id = qd_graph_input(r->graph, in->name, v.dtype, &declared);
    if (v.id < 0)
        return graph_words(r, err);
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        v.shape[w] = declared;
        if (declared.rank && declared.dim[0] == -1)
            v.shape[w].dim[0] = qd_onnx_batch[w];
    }
    if (declared.rank && declared.dim[0] == -1 && r->batch_of < 0)
        r->batch_of = v.id;
    shapes_push(r, v.id, v.shape);
    return value_add(r, in->name, &v, err);
}

static qd_status read_known_node(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *in[QD_MAX_INPUTS];
    qd_onnx_number made;
    bool done = false;
    for (int k = 0; k < n->n_inputs; k++)
        if (n->input[k][0] && qd_names_find(&r->names, n->input[k]) < 0)
            return qd_fail(err, QD_E_FORMAT, "input '%.150s' is made by no node before it", n->input[k]);
    if (is_alias(n->op)) {
        const qd_onnx_number *v = qd_onnx_in(r, n, 0);
        return v ? qd_onnx_alias(r, n, 0, v, err) : qd_fail(err, QD_E_FORMAT, "input 0 is missing");
    }
    if (n->n_inputs <= QD_MAX_INPUTS) {
        for (int k = 0; k < n->n_inputs; k++)
            in[k] = qd_onnx_in(r, n, k);
        qd_status st = qd_onnx_fold(n, r->file->opset, in, n->n_inputs, r->budget, &made, &done, err);
        if (st)
            return st;
        if (done && n->n_outputs > 0)
            return value_add(r, n->output[0], &made, err);
        if (done) {
            qd_onnx_number_clear(&made);
            return QD_OK;
        }
    }
    const qd_onnx_op *op = qd_onnx_op_find(n->op);
    if (!op)
        return qd_fail(err, QD_E_UNSUPPORTED, "we read it on constants only");
    if (n->n_inputs < op->min_inputs || n->n_inputs > op->max_inputs)
        return qd_fail(err, QD_E_FORMAT, "%d inputs, takes %d to %d", n->n_inputs, op->min_inputs, op->max_inputs);
    for (int k = 0; k < op->min_inputs; k++)
        if (!n->input[k][0])
            return qd_fail(err, QD_E_FORMAT, "input %d is left out", k);
    return op->read(r, n, err);
}

static qd_status read_outputs(qd_onnx_reader *r, qd_err *err)
{
    for (int k = 0; k < r->file->n_outputs; k++) {
        const char *name = r->file->output[k].name;
        const int at = qd_names_find(&r->names, name);
        if (at < 0)
            return qd_fail(err, QD_E_FORMAT, "no node makes the output '%.150s'", name);
        const qd_node_id id = number_node(r, name, &r->value[at]);
        if (id < 0)
            return graph_words(r, err);
        qd_graph_output(r->graph, name, id);
    }
    return qd_graph_verify(r->graph, err);
}

static qd_status read_graph(qd_onnx_reader *r, qd_err *err)
{
    const qd_onnx_file *f = r->file;
    qd_status st = check_supported(f, err);
    if (!st)
        st = qd_graph_new(&r->graph, err);
    for (int k = 0; k < f->n_inputs && !st; k++)
        st = read_input(r, &f->input[k], err);
    if (!st)
        st = read_initializers(r, err);
    for (int k = 0; k < f->n_nodes && !st; k++) {
        st = read_known_node(r, &f->node[k], err);
        if (st)
            qd_fail_in(err, st, "node '%.120s' (%.40s)", f->node[k].name, f->node[k].op);
    }
    return st ? st : read_outputs(r, err);
}

qd_status qd_onnx_to_graph(const qd_onnx_file *f, qd_budget *budget, qd_graph **out, qd_err *err)
{
    qd_onnx_reader r = { .file = f, .budget = budget, .batch_of = -1 };
    qd_graph *whole = NULL;
    qd_status st = read_graph(&r, err);
    if (!st)
        st = qd_graph_prune(r.graph, &whole, err);
    for (int k = 0; k < r.names.count; k++)
        qd_onnx_number_clear(&r.value[k]);
    qd_free(r.value);
    qd_free(r.shape);
    qd_names_clear(&r.names);
    qd_graph_free(r.graph);
    if (st)
        return st;
    st = qd_onnx_recognise(whole, out, err);
    qd_graph_free(whole);
    return st;
}

qd_status qd_onnx_read(const void *data, size_t size, qd_budget *budget, qd_graph **graph, qd_err *err)
{
    qd_onnx_file *f = NULL;
    qd_status st = qd_onnx_parse(data, size, NULL, budget, &f, err);
    if (!st)
        st = qd_onnx_to_graph(f, budget, graph, err);
    qd_onnx_free(f);
    return st;
}

/* --- rows of formats.c --- */

bool qd_onnx_sniff(const char *path)
{
    qd_map m = { 0 };
    if (qd_fs_is_dir(path) || qd_map_open(&m, path, NULL))
        return false;
    const bool yes = m.size && qd_onnx_looks_like(m.data, m.size < PROBE_BYTES ? m.size : PROBE_BYTES);
    qd_map_close(&m);
    return yes;
}

static qd_status load(const char *path, const char *folder, qd_budget *budget, qd_model *m, qd_err *err)
{
    qd_map map = { 0 };
    qd_onnx_file *f = NULL;
    qd_status st = qd_map_open(&map, path, err);
    if (st)
        return st;
    st = qd_onnx_parse(map.data, map.size, folder, budget, &f, err);
    m->file_bytes = map.size;
    qd_map_close(&map);
    if (!st)
        st = qd_onnx_to_graph(f, budget, &m->graph, err);
    if (!st)
        st = qd_meta_copy(m->meta, f->meta, err);
    const char *scheduler = st ? NULL : qd_meta_find(m->meta, "scheduler_config");
    if (scheduler)
        st = qd_config_parse(scheduler, strlen(scheduler), "metadata 'scheduler_config'", &m->scheduler, err);
    qd_onnx_free(f);
    return st ? qd_fail_in(err, st, "%.100s", qd_base_name(path)) : QD_OK;
}

qd_status qd_onnx_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err)
{
    return load(path, NULL, budget, m, err);
}

/* The only *.onnx file of a folder, or of the one folder inside it; both NULL when there is none, or several. */
static qd_status find_in_folder(const char *path, char **folder, char **file, qd_err *err)
{
    int n = 0;
    char *first = NULL;
    *file = NULL;
    *folder = qd_folder_root(path);
    if (!*folder)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a path");
    qd_status st = qd_folder_list(*folder, ".safetensors", &n, &first, err);
    qd_free(first);
    first = NULL;
    if (!st && n) /* weights in our own layout go first */
        n = 0;
    else if (!st)
        st = qd_folder_list(*folder, ".onnx", &n, &first, err);
    if (!st && n == 1) {
        *file = qd_fs_join(*folder, first);
        if (!*file)
            st = qd_fail(err, QD_E_NOMEM, "out of memory for a path");
    }
    qd_free(first);
    if (st || n != 1) {
        qd_free(*folder);
        *folder = NULL;
    }
    return st;
}

bool qd_onnx_folder_sniff(const char *path)
{
    char *folder = NULL, *file = NULL;
    if (!qd_fs_is_dir(path) || find_in_folder(path, &folder, &file, NULL))
        return false;
    const bool yes = file && qd_onnx_sniff(file);
    qd_free(file);
    qd_free(folder);
    return yes;
}

qd_status qd_onnx_folder_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err)
{
    char *folder = NULL, *file = NULL;
    qd_status st = find_in_folder(path, &folder, &file, err);
    if (st)
        return st;
    if (!file)
        return qd_fail(err, QD_E_FORMAT, "'%.100s' has no single *.onnx file", qd_base_name(path));
    st = load(file, folder, budget, m, err);
    if (!st && !m->scheduler)
        st = qd_folder_scheduler(folder, &m->scheduler, err);
    qd_free(file);
    qd_free(folder);
    return st;
}
