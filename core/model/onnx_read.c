/* onnx_read.c - what the rows of an ONNX graph are read with: values by name, constants, nodes of ours in two worlds. */
#include "model/onnx_codes.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* --- attributes --- */

const qd_onnx_attr *qd_onnx_attr_find(const qd_onnx_node *n, const char *name)
{
    for (int k = 0; k < n->n_attrs; k++)
        if (strcmp(n->attr[k].name, name) == 0)
            return &n->attr[k];
    return NULL;
}

int64_t qd_onnx_attr_int(const qd_onnx_node *n, const char *name, int64_t fallback)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(n, name);
    return a && a->kind == QD_ONNX_INT ? a->i : fallback;
}

float qd_onnx_attr_float(const qd_onnx_node *n, const char *name, float fallback)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(n, name);
    return a && a->kind == QD_ONNX_FLOAT ? a->f : fallback;
}

const char *qd_onnx_attr_string(const qd_onnx_node *n, const char *name, const char *fallback)
{
    const qd_onnx_attr *a = qd_onnx_attr_find(n, name);
    return a && a->kind == QD_ONNX_STRING ? a->s : fallback;
}

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

qd_status qd_onnx_value_add(qd_onnx_reader *r, const char *name, qd_onnx_number *v, qd_err *err)
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
    return qd_onnx_value_add(r, n->output[k], &copy, err);
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

void qd_onnx_shapes_push(qd_onnx_reader *r, qd_node_id id, const qd_shape given[QD_ONNX_WORLDS])
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
    qd_onnx_shapes_push(r, id, made);
    return id;
}

static qd_node_id const_named(qd_onnx_reader *r, const char *name, const qd_tensor *t)
{
    const qd_node_id id = qd_graph_const(r->graph, name, t);
    const qd_shape both[QD_ONNX_WORLDS] = { t->shape, t->shape };
    qd_onnx_shapes_push(r, id, both);
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

qd_node_id qd_onnx_number_node(qd_onnx_reader *r, const char *name, qd_onnx_number *v)
{
    const qd_onnx_node named = { .name = name, .op = "const" };
    qd_err err = { 0 };
    if (v->id >= 0)
        return v->id;
    const qd_status st = qd_onnx_spell(r, v, &err);
    if (st) {
        qd_graph_fail(r->graph, st, "%s", err.text);
        return -1;
    }
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
    return v ? qd_onnx_number_node(r, n->input[k], &r->value[v - r->value]) : -1;
}

qd_status qd_onnx_graph_words(const qd_onnx_reader *r, qd_err *err)
{
    qd_status st = qd_graph_verify(r->graph, err);
    return st ? st : qd_fail(err, QD_E_INTERNAL, "a node could not be made");
}

qd_status qd_onnx_set(qd_onnx_reader *r, const qd_onnx_node *n, int k, qd_node_id id, qd_err *err)
{
    if (id < 0)
        return qd_onnx_graph_words(r, err);
    if (k >= n->n_outputs || !n->output[k][0])
        return QD_OK;
    qd_onnx_number v = { .id = id, .dtype = qd_graph_node(r->graph, id)->dtype };
    for (int w = 0; w < QD_ONNX_WORLDS; w++)
        v.shape[w] = *qd_onnx_node_shape(r, id, w);
    return qd_onnx_value_add(r, n->output[k], &v, err);
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
