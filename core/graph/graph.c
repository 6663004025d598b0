/* graph.c - building a graph node by node, and looking at what was built. */
#include "graph/graph_int.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

qd_attr qd_attr_ints(const char *name, int n, const int64_t *v)
{
    qd_attr a = { .name = name, .kind = QD_ATTR_INTS, .n = n };
    for (int k = 0; k < n && k < QD_MAX_RANK; k++)
        a.ints[k] = v[k];
    return a; /* n too large is refused by qd_graph_add, in words */
}

qd_status qd_graph_new(qd_graph **out, qd_err *err)
{
    qd_graph *g = qd_calloc(1, sizeof *g);
    if (!g)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a graph");
    qd_arena_init(&g->arena);
    *out = g;
    return QD_OK;
}

void qd_graph_free(qd_graph *g)
{
    if (!g)
        return;
    for (int k = 0; k < g->n_nodes; k++)
        qd_tensor_clear(&g->entries[k].node->value);
    qd_arena_clear(&g->arena);
    qd_free(g->entries);
    qd_free(g->slots);
    qd_free(g->inputs);
    qd_free(g->outputs);
    qd_free(g);
}

void qd_graph_fail(qd_graph *g, qd_status st, const char *fmt, ...)
{
    if (g->failure.status)
        return;
    va_list ap;
    va_start(ap, fmt);
    qd_failv(&g->failure, st, fmt, ap);
    va_end(ap);
}

/* --- names --- */

static uint64_t hash_name(const char *name) /* FNV-1a */
{
    uint64_t h = 14695981039346656037u;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 1099511628211u;
    return h ^ h >> 32; /* the low bits choose the slot */
}

static qd_node_id find_hashed(const qd_graph *g, const char *name, uint64_t hash)
{
    if (!g->n_slots)
        return -1;
    for (uint64_t k = hash;; k++) {
        const qd_node_id id = g->slots[k & (uint64_t)(g->n_slots - 1)];
        if (id < 0 || (g->entries[id].hash == hash && strcmp(g->entries[id].node->name, name) == 0))
            return id;
    }
}

qd_node_id qd_graph_find(const qd_graph *g, const char *name)
{
    return find_hashed(g, name, hash_name(name));
}

static void slot_put(qd_graph *g, qd_node_id id)
{
    uint64_t k = g->entries[id].hash;
    while (g->slots[k & (uint64_t)(g->n_slots - 1)] >= 0)
        k++;
    g->slots[k & (uint64_t)(g->n_slots - 1)] = id;
}

static bool slots_grow(qd_graph *g)
{
    if (2 * (g->n_nodes + 1) <= g->n_slots)
        return true;
    const int n = g->n_slots ? 2 * g->n_slots : 64;
    qd_node_id *slots = qd_realloc(g->slots, (size_t)n * sizeof *slots);
    if (!slots)
        return false;
    g->slots = slots;
    g->n_slots = n;
    for (int k = 0; k < n; k++)
        slots[k] = -1;
    for (qd_node_id id = 0; id < g->n_nodes; id++)
        slot_put(g, id);
    return true;
}

/* Words about a name that cannot be used, or NULL. */
static const char *name_fault(const char *name)
{
    if (!name || !name[0])
        return "is empty";
    if (strnlen(name, QD_MAX_NAME + 1) > QD_MAX_NAME)
        return "is longer than 200 bytes";
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return "has a control character";
    return NULL;
}

/* --- nodes --- */

static bool room_for(void **rows, int *room, int n, size_t size)
{
    if (n < *room)
        return true;
    const int more = *room ? 2 * *room : 32;
    void *p = qd_realloc(*rows, (size_t)more * size);
    if (!p)
        return false;
    *rows = p;
    *room = more;
    return true;
}

/* A new node in the arena, not yet in the graph; NULL after a failure, now or before. */
static qd_node *node_new(qd_graph *g, const qd_op *op, const char *name)
{
    if (g->failure.status)
        return NULL;
    const char *fault = name_fault(name);
    if (fault) {
        qd_graph_fail(g, QD_E_INVALID, "the name of node %d (%s) %s", g->n_nodes, op->name, fault);
        return NULL;
    }
    const qd_node_id twin = qd_graph_find(g, name);
    if (twin >= 0) {
        qd_graph_fail(g, QD_E_INVALID, "node '%s' (%s): the name is taken by node %d (%s)", name, op->name, twin,
                      g->entries[twin].node->op->name);
        return NULL;
    }
    if (g->n_nodes >= QD_MAX_NODES) {
        qd_graph_fail(g, QD_E_LIMIT, "node '%s' (%s) is one more than the %d a graph may have", name, op->name,
                      QD_MAX_NODES);
        return NULL;
    }
    qd_node *n = qd_arena_alloc(&g->arena, sizeof *n);
    char *own = qd_arena_strdup(&g->arena, name);
    if (!n || !own || !slots_grow(g) ||
        !room_for((void **)&g->entries, &g->node_room, g->n_nodes, sizeof *g->entries)) {
        qd_graph_fail(g, QD_E_NOMEM, "node '%s' (%s): out of memory", name, op->name);
        return NULL;
    }
    n->op = op;
    n->name = own;
    n->shape.rank = -1;
    for (int k = 0; k < QD_MAX_INPUTS; k++)
        n->input[k] = -1;
    return n;
}

static qd_node_id node_put(qd_graph *g, qd_node *n, const qd_shape *probe)
{
    const qd_node_id id = g->n_nodes++;
    g->entries[id] = (qd_graph_entry){ .node = n, .hash = hash_name(n->name), .probe = *probe };
    slot_put(g, id);
    return id;
}

/* Whether dims are at least 1 and the whole is not over QD_MAX_ELEMENTS; `batch` allows -1 first and writes 1 for it. */
static bool shape_sound(const qd_shape *s, bool batch, qd_shape *probe)
{
    if (s->rank < 0 || s->rank > QD_MAX_RANK)
        return false;
    *probe = *s;
    if (batch && s->rank > 0 && s->dim[0] == -1)
        probe->dim[0] = 1;
    int64_t count = 1;
    for (int k = 0; k < s->rank; k++) {
        if (probe->dim[k] < 1 || probe->dim[k] > QD_MAX_ELEMENTS / count)
            return false;
        count *= probe->dim[k];
    }
    return true;
}

qd_node_id qd_graph_input(qd_graph *g, const char *name, qd_dtype dtype, const qd_shape *shape)
{
    qd_node *n = node_new(g, &qd_op_input, name);
    qd_shape probe;
    if (!n)
        return -1;
    if (!shape_sound(shape, true, &probe)) {
        char text[160];
        qd_graph_fail(g, QD_E_INVALID, "input '%s' cannot have shape %s", name,
                      shape->rank >= 0 && shape->rank <= QD_MAX_RANK ? qd_shape_text(shape, text, sizeof text)
                                                                     : "without rank");
        return -1;
    }
    if ((unsigned)dtype >= QD_DTYPE_COUNT || qd_dtype_bits(dtype) < 8) {
        qd_graph_fail(g, QD_E_INVALID, "input '%s' must have a dtype of whole bytes", name);
        return -1;
    }
    if (!room_for((void **)&g->inputs, &g->input_room, g->n_inputs, sizeof *g->inputs)) {
        qd_graph_fail(g, QD_E_NOMEM, "input '%s': out of memory", name);
        return -1;
    }
    n->dtype = dtype;
    n->shape = *shape;
    const qd_node_id id = node_put(g, n, &probe);
    g->inputs[g->n_inputs++] = id;
    return id;
}

qd_node_id qd_graph_const(qd_graph *g, const char *name, const qd_tensor *value)
{
    qd_node *n = node_new(g, &qd_op_const, name);
    qd_shape probe;
    if (!n)
        return -1;
    if (!value->data || !shape_sound(&value->shape, false, &probe)) {
        qd_graph_fail(g, QD_E_INVALID, "constant '%s' is empty", name);
        return -1;
    }
    n->dtype = value->dtype;
    n->shape = value->shape;
    qd_tensor_share(&n->value, value);
    return node_put(g, n, &probe);
}

/* One attribute of n: the value given, checked against its row, or the default. */
static void attr_fill(qd_graph *g, qd_node *n, const qd_op_attr *row, const qd_attr *given)
{
    qd_attr *a = &n->attr[n->n_attrs++];
    *a = (qd_attr){ .name = row->name, .kind = row->kind };
    if (!given) {
        if (isnan(row->fallback))
            qd_graph_fail(g, QD_E_INVALID, "node '%s' (%s): attribute %s must be given", n->name, n->op->name,
                          row->name);
        else if (row->kind == QD_ATTR_FLOAT)
            a->f = row->fallback;
        else if (row->kind == QD_ATTR_INT)
            a->i = (int64_t)row->fallback;
        a->n = row->kind == QD_ATTR_INTS ? row->n : 0;
        for (int k = 0; !isnan(row->fallback) && k < a->n; k++)
            a->ints[k] = (int64_t)row->fallback;
        return;
    }
    if (row->kind == QD_ATTR_FLOAT && given->kind == QD_ATTR_INT) {
        a->f = (double)given->i;
    } else if (row->kind != given->kind) {
        qd_graph_fail(g, QD_E_INVALID, "node '%s' (%s): attribute %s is of another kind", n->name, n->op->name,
                      row->name);
    } else if (row->kind == QD_ATTR_INTS && (row->n ? given->n != row->n : given->n < 0 || given->n > QD_MAX_RANK)) {
        qd_graph_fail(g, QD_E_INVALID, "node '%s' (%s): attribute %s has %d values, must have %s%d", n->name,
                      n->op->name, row->name, given->n, row->n ? "" : "at most ", row->n ? row->n : QD_MAX_RANK);
    } else {
        *a = *given;
        a->name = row->name;
    }
}

/* All attributes in the order of the op's row; names the op does not have, and doubles, are refused. */
static void attrs_fill(qd_graph *g, qd_node *n, const qd_attr *attrs, int n_attrs)
{
    const qd_op_attr *rows = n->op->attrs;
    for (const qd_op_attr *row = rows; row && row->name; row++) {
        const qd_attr *given = NULL;
        for (int k = 0; k < n_attrs; k++)
            if (strcmp(attrs[k].name, row->name) == 0) {
                if (given)
                    qd_graph_fail(g, QD_E_INVALID, "node '%s' (%s): attribute %s is given twice", n->name, n->op->name,
                                  row->name);
                given = &attrs[k];
            }
        assert(n->n_attrs < QD_MAX_ATTRS);
        attr_fill(g, n, row, given);
    }
    for (int k = 0; k < n_attrs; k++) {
        const qd_op_attr *row = rows;
        while (row && row->name && strcmp(row->name, attrs[k].name) != 0)
            row++;
        if (!row || !row->name)
            qd_graph_fail(g, QD_E_INVALID, "node '%s' (%s): there is no attribute '%.64s'", n->name, n->op->name,
                          attrs[k].name);
    }
}

void qd_graph_operands(const qd_graph *g, const qd_node *n, const qd_shape *shapes, qd_operand *in)
{
    for (int k = 0; k < QD_MAX_INPUTS; k++) {
        const qd_node_id id = n->input[k];
        in[k] = (qd_operand){ .shape = { .rank = -1 } };
        if (id < 0)
            continue;
        const qd_node *from = g->entries[id].node;
        in[k].dtype = from->dtype;
        in[k].shape = shapes ? shapes[id] : g->entries[id].probe;
        in[k].value = from->op == &qd_op_const ? &from->value : NULL;
    }
}

qd_node_id qd_graph_add(qd_graph *g, const qd_op *op, const char *name, const qd_node_id *inputs, int n_inputs,
                        const qd_attr *attrs, int n_attrs)
{
    qd_node *n = node_new(g, op, name);
    if (!n)
        return -1;
    if (n_inputs < op->min_inputs || n_inputs > op->max_inputs || !op->infer) {
        qd_graph_fail(g, QD_E_INVALID, "node '%s' (%s) has %d inputs, takes %d to %d", name, op->name, n_inputs,
                      op->min_inputs, op->max_inputs);
        return -1;
    }
    for (int k = 0; k < n_inputs; k++) {
        if (inputs[k] < -1 || inputs[k] >= g->n_nodes) {
            qd_graph_fail(g, QD_E_INVALID, "node '%s' (%s): input %d is node %d, there are %d nodes before it", name,
                          op->name, k, inputs[k], g->n_nodes);
            return -1;
        }
        n->input[k] = inputs[k];
    }
    n->n_inputs = n_inputs;
    attrs_fill(g, n, attrs, n_attrs);

    qd_operand in[QD_MAX_INPUTS];
    qd_shape probe;
    if (!g->failure.status) {
        qd_graph_operands(g, n, NULL, in);
        qd_op_infer(n, in, &n->dtype, &probe, &g->failure);
    }
    return g->failure.status ? -1 : node_put(g, n, &probe);
}

void qd_graph_output(qd_graph *g, const char *name, qd_node_id id)
{
    if (g->failure.status)
        return;
    const char *fault = name_fault(name);
    if (fault) {
        qd_graph_fail(g, QD_E_INVALID, "the name of output %d %s", g->n_outputs, fault);
        return;
    }
    if (id < 0 || id >= g->n_nodes) {
        qd_graph_fail(g, QD_E_INVALID, "output '%s' is node %d of %d", name, id, g->n_nodes);
        return;
    }
    for (int k = 0; k < g->n_outputs; k++)
        if (strcmp(g->outputs[k].name, name) == 0) {
            qd_graph_fail(g, QD_E_INVALID, "output '%s' is named twice", name);
            return;
        }
    if (g->n_outputs >= QD_MAX_OUTPUTS) {
        qd_graph_fail(g, QD_E_LIMIT, "output '%s' is one more than the %d a graph may have", name, QD_MAX_OUTPUTS);
        return;
    }
    const char *own = qd_arena_strdup(&g->arena, name);
    if (!own || !room_for((void **)&g->outputs, &g->output_room, g->n_outputs, sizeof *g->outputs)) {
        qd_graph_fail(g, QD_E_NOMEM, "output '%s': out of memory", name);
        return;
    }
    g->outputs[g->n_outputs++] = (qd_graph_output_row){ .name = own, .id = id };
}

/* --- looking --- */

int qd_graph_size(const qd_graph *g)
{
    return g->n_nodes;
}

const qd_node *qd_graph_node(const qd_graph *g, qd_node_id id)
{
    assert(id >= 0 && id < g->n_nodes);
    return g->entries[id].node;
}

void qd_graph_let_go(qd_graph *g, qd_node_id id)
{
    assert(id >= 0 && id < g->n_nodes && g->entries[id].node->op == &qd_op_const);
    qd_tensor_clear(&g->entries[id].node->value);
}

int qd_graph_inputs(const qd_graph *g)
{
    return g->n_inputs;
}

qd_node_id qd_graph_input_at(const qd_graph *g, int k)
{
    assert(k >= 0 && k < g->n_inputs);
    return g->inputs[k];
}

int qd_graph_outputs(const qd_graph *g)
{
    return g->n_outputs;
}

qd_node_id qd_graph_output_at(const qd_graph *g, int k)
{
    assert(k >= 0 && k < g->n_outputs);
    return g->outputs[k].id;
}

const char *qd_graph_output_name(const qd_graph *g, int k)
{
    assert(k >= 0 && k < g->n_outputs);
    return g->outputs[k].name;
}

static const qd_attr *attr_get(const qd_node *n, const char *name, qd_attr_kind kind)
{
    for (int k = 0; k < n->n_attrs; k++)
        if (strcmp(n->attr[k].name, name) == 0) {
            assert(n->attr[k].kind == kind);
            return &n->attr[k];
        }
    assert(!"the op declares this attribute");
    return NULL;
}

int64_t qd_node_int(const qd_node *n, const char *name)
{
    return attr_get(n, name, QD_ATTR_INT)->i;
}

double qd_node_float(const qd_node *n, const char *name)
{
    return attr_get(n, name, QD_ATTR_FLOAT)->f;
}

const qd_attr *qd_node_ints(const qd_node *n, const char *name)
{
    return attr_get(n, name, QD_ATTR_INTS);
}
