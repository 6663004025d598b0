/* onnx_wire.c - ONNX files (protobuf, onnx.proto) as plain structs. Every size is counted before the library takes memory. */
#include "model/onnx_tensor.h"

#include <stdio.h>
#include <string.h>

#include "onnx.pb-c.h"

#define MAX_BYTES ((size_t)2 << 30) /* protobuf's own limit of a message */
#define MAX_DEPTH                                                                                                      \
    16 /* Model > Graph > Input > Type > Tensor > Shape > Dim is 7; subgraphs are refused later, by name */

/* --- counting: what unpacking would take, before it does --- */

typedef struct tally {
    size_t bytes; /* upper bound of what the library will allocate */
    bool too_deep;
} tally;

static bool read_varint(const uint8_t **p, const uint8_t *end, uint64_t *v)
{
    *v = 0;
    for (int shift = 0; shift < 70 && *p < end; shift += 7) {
        const uint8_t b = *(*p)++;
        if (shift < 64)
            *v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80))
            return true;
    }
    return false;
}

/* Elements of a packed field: fixed ones by size, varints by their last bytes. */
static size_t packed_count(ProtobufCType type, const uint8_t *p, size_t n)
{
    if (type == PROTOBUF_C_TYPE_FLOAT || type == PROTOBUF_C_TYPE_FIXED32 || type == PROTOBUF_C_TYPE_SFIXED32)
        return n / 4;
    if (type == PROTOBUF_C_TYPE_DOUBLE || type == PROTOBUF_C_TYPE_FIXED64 || type == PROTOBUF_C_TYPE_SFIXED64)
        return n / 8;
    size_t elements = 0;
    for (size_t k = 0; k < n; k++)
        elements += !(p[k] & 0x80);
    return elements;
}

/* False: not a message of that kind, or nested too deep. */
static bool count_message(tally *c, const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n, int depth)
{
    /* What the library remembers of each field while unpacking, in slabs that double. */
    const size_t scanned = 96;
    const uint8_t *end = p + n;
    if (depth > MAX_DEPTH) {
        c->too_deep = true;
        return false;
    }
    c->bytes += d->sizeof_message + 16;
    while (p < end) {
        uint64_t tag, v = 0;
        if (!read_varint(&p, end, &tag) || tag >> 3 == 0 || tag >> 3 > 0x1fffffff)
            return false;
        const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field(d, (unsigned)(tag >> 3));
        const unsigned wire = tag & 7;
        const uint8_t *body = p;
        if (wire == 0) {
            if (!read_varint(&p, end, &v))
                return false;
            body = p;
        } else if (wire == 1 || wire == 5) {
            v = wire == 1 ? 8 : 4;
            if (v > (size_t)(end - p))
                return false;
            p += v;
        } else if (wire == 2) {
            if (!read_varint(&p, end, &v) || v > (size_t)(end - p))
                return false;
            body = p;
            p += v;
        } else {
            return false; /* groups are not part of ONNX */
        }
        c->bytes += scanned + 16;
        if (!f) {
            c->bytes += sizeof(ProtobufCMessageUnknownField) + (wire == 0 ? 10 : (size_t)v);
            continue;
        }
        if (wire == 2 && f->type == PROTOBUF_C_TYPE_MESSAGE) {
            if (!count_message(c, f->descriptor, body, (size_t)v, depth + 1))
                return false;
        } else if (wire == 2 && (f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_BYTES)) {
            c->bytes += (size_t)v + 16;
        } else if (wire == 2) {
            c->bytes += 8 * packed_count(f->type, body, (size_t)v);
        }
    }
    return true;
}

/* --- memory of the library --- */

struct qd_onnx_message {
    Onnx__ModelProto *model;
    size_t left;  /* bytes it may still ask for */
    size_t drawn; /* of the budget */
    bool starved; /* an allocation failed */
    qd_budget *budget;
    ProtobufCAllocator allocator;
};

static void *message_alloc(void *ctx, size_t n)
{
    struct qd_onnx_message *m = ctx;
    void *p = n > m->left ? NULL : qd_alloc(n);
    m->starved = m->starved || !p;
    m->left -= p ? n : 0;
    return p;
}

static void message_free(void *ctx, void *p)
{
    qd_free(p);
}

static const char *text_or(const char *s, const char *fallback)
{
    return s ? s : fallback;
}

/* --- tensors --- */

typedef struct parser {
    qd_onnx_file *f;
    const char *folder;
    qd_budget *budget;
    qd_onnx_outside *outside;
} parser;

/* Bytes that the message gave away, with their share of the budget. */
typedef struct stolen {
    void *data;
    size_t n;
    qd_budget *budget;
} stolen;

static void stolen_release(void *owner)
{
    stolen *s = owner;
    qd_budget_give(s->budget, s->n);
    qd_free(s->data);
    qd_free(s);
}

/* The message's own bytes become the tensor's. */
static qd_status steal(parser *p, Onnx__TensorProto *t, qd_dtype dtype, const qd_shape *shape, qd_tensor *out,
                       qd_err *err)
{
    struct qd_onnx_message *m = p->f->message;
    stolen *s = qd_alloc(sizeof(*s));
    if (!s)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a tensor");
    *s = (stolen){ .data = t->raw_data.data, .n = t->raw_data.len, .budget = p->budget };
    const qd_status st = qd_tensor_wrap(out, dtype, shape, s->data, s, stolen_release, err);
    if (st) {
        qd_free(s);
        return st;
    }
    m->drawn -= s->n;
    t->raw_data.data = NULL;
    t->raw_data.len = 0;
    return QD_OK;
}

static qd_status outside_bytes(parser *p, const char *name, const Onnx__TensorProto *t, qd_onnx_stored *s, qd_err *err)
{
    qd_onnx_place place = { .location = "" };
    for (size_t k = 0; k < t->n_external_data; k++) {
        const qd_status st = qd_onnx_place_set(&place, name, text_or(t->external_data[k]->key, ""),
                                               text_or(t->external_data[k]->value, ""), err);
        if (st)
            return st;
    }
    s->is_raw = true;
    return qd_onnx_outside_find(p->outside, p->folder, name, &place, &s->raw, &s->raw_bytes, err);
}

static qd_status read_tensor(parser *p, const char *name, Onnx__TensorProto *t, int *type, qd_tensor *out, qd_err *err)
{
    const bool outside = t->has_data_location && t->data_location == ONNX__TENSOR_PROTO__DATA_LOCATION__EXTERNAL;
    qd_onnx_stored s = { .type = t->has_data_type ? t->data_type : 0,
                         .dims = t->dims,
                         .n_dims = t->n_dims,
                         .is_raw = t->has_raw_data,
                         .raw = t->has_raw_data ? t->raw_data.data : NULL,
                         .raw_bytes = t->has_raw_data ? t->raw_data.len : 0,
                         .f32 = t->float_data,
                         .n_f32 = t->n_float_data,
                         .f64 = t->double_data,
                         .n_f64 = t->n_double_data,
                         .i32 = t->int32_data,
                         .n_i32 = t->n_int32_data,
                         .i64 = t->int64_data,
                         .n_i64 = t->n_int64_data,
                         .u64 = t->uint64_data,
                         .n_u64 = t->n_uint64_data };
    qd_shape shape;
    qd_dtype as_it_is;
    if (t->segment)
        return qd_fail(err, QD_E_UNSUPPORTED, "tensor '%.150s' is stored in segments", name);
    qd_status st = outside ? outside_bytes(p, name, t, &s, err) : QD_OK;
    if (!st)
        st = qd_onnx_stored_check(&s, name, &shape, err);
    if (st)
        return st;
    *type = s.type;
    if (!outside && s.raw_bytes && qd_onnx_type_as_it_is(s.type, &as_it_is))
        return steal(p, t, as_it_is, &shape, out, err);
    return qd_onnx_stored_read(&s, name, &shape, p->budget, out, err);
}

/* --- structs --- */

static qd_status read_attr(parser *p, const char *node, const Onnx__AttributeProto *a, qd_onnx_attr *out, qd_err *err)
{
    out->name = text_or(a->name, "");
    out->kind = QD_ONNX_OTHER;
    if (a->g || a->n_graphs) {
        out->kind = QD_ONNX_GRAPH;
    } else if (a->t) {
        out->kind = QD_ONNX_TENSOR;
        char name[200];
        snprintf(name, sizeof(name), "%.150s.%.40s", node, out->name);
        return read_tensor(p, name, a->t, &out->elem_type, &out->t, err);
    } else if (a->n_strings || a->n_tensors || a->sparse_tensor || a->n_sparse_tensors || a->tp || a->n_type_protos) {
        return QD_OK;
    } else if (a->n_ints || a->type == ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INTS) {
        out->kind = QD_ONNX_INTS;
        out->ints = a->ints;
        out->n = a->n_ints;
    } else if (a->n_floats || a->type == ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__FLOATS) {
        out->kind = QD_ONNX_FLOATS;
        out->floats = a->floats;
        out->n = a->n_floats;
    } else if (a->has_s) {
        char *s = qd_arena_alloc(&p->f->arena, a->s.len + 1);
        if (!s)
            return qd_fail(err, QD_E_NOMEM, "out of memory for an attribute");
        if (a->s.len)
            memcpy(s, a->s.data, a->s.len);
        out->kind = QD_ONNX_STRING;
        out->s = s;
    } else if (a->has_f && a->type != ONNX__ATTRIBUTE_PROTO__ATTRIBUTE_TYPE__INT) {
        out->kind = QD_ONNX_FLOAT;
        out->f = a->f;
    } else {
        out->kind = QD_ONNX_INT;
        out->i = a->i;
    }
    return QD_OK;
}

static qd_status read_node(parser *p, const Onnx__NodeProto *from, qd_onnx_node *n, qd_err *err)
{
    n->name = text_or(from->name, "");
    n->op = text_or(from->op_type, "");
    n->domain = text_or(from->domain, "");
    if (strcmp(n->domain, "ai.onnx") == 0)
        n->domain = "";
    if (!n->name[0] && from->n_output)
        n->name = from->output[0];
    if (from->n_input > QD_MAX_NODES || from->n_output > QD_MAX_NODES || from->n_attribute > QD_MAX_NODES)
        return qd_fail(err, QD_E_LIMIT, "node '%.150s' (%.40s) has more than %d inputs, outputs or attributes", n->name,
                       n->op, QD_MAX_NODES);
    n->input = (const char *const *)from->input;
    n->n_inputs = (int)from->n_input;
    n->output = (const char *const *)from->output;
    n->n_outputs = (int)from->n_output;
    n->attr = qd_arena_alloc(&p->f->arena, (from->n_attribute + 1) * sizeof(*n->attr));
    if (!n->attr)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a node");
    for (size_t k = 0; k < from->n_attribute; k++) {
        n->n_attrs = (int)k + 1;
        const qd_status st = read_attr(p, n->name, from->attribute[k], &n->attr[k], err);
        if (st)
            return qd_fail_in(err, st, "node '%.150s' (%.40s)", n->name, n->op);
    }
    return QD_OK;
}

static qd_status read_value(const Onnx__ValueInfoProto *from, qd_onnx_value *v, qd_err *err)
{
    const Onnx__TypeProto *type = from->type;
    *v = (qd_onnx_value){ .name = text_or(from->name, ""), .rank = -1 };
    if (!type || type->value_case != ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE || !type->tensor_type)
        return QD_OK;
    v->elem_type = type->tensor_type->elem_type;
    const Onnx__TensorShapeProto *shape = type->tensor_type->shape;
    if (!shape)
        return QD_OK;
    if (shape->n_dim > QD_MAX_RANK)
        return qd_fail(err, QD_E_LIMIT, "value '%.150s' has %zu dimensions, the limit is %d", v->name, shape->n_dim,
                       QD_MAX_RANK);
    v->rank = (int)shape->n_dim;
    for (int k = 0; k < v->rank; k++) {
        const Onnx__TensorShapeProto__Dimension *d = shape->dim[k];
        v->dim[k] = -1;
        v->dim_name[k] = "";
        if (d->value_case == ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_VALUE)
            v->dim[k] = d->dim_value;
        else if (d->value_case == ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_PARAM)
            v->dim_name[k] = text_or(d->dim_param, "");
    }
    return QD_OK;
}

static qd_status read_opset(const Onnx__ModelProto *m, int64_t *opset, qd_err *err)
{
    *opset = -1;
    for (size_t k = 0; k < m->n_opset_import; k++) {
        const char *domain = text_or(m->opset_import[k]->domain, "");
        if (!*domain || strcmp(domain, "ai.onnx") == 0)
            *opset = m->opset_import[k]->version;
    }
    if (*opset == -1)
        return qd_fail(err, QD_E_FORMAT, "the file does not say which ONNX opset it uses");
    if (*opset < QD_ONNX_OPSET_MIN || *opset > QD_ONNX_OPSET_MAX)
        return qd_fail(err, QD_E_UNSUPPORTED, "the file uses ONNX opset %lld, we read %d to %d", (long long)*opset,
                       QD_ONNX_OPSET_MIN, QD_ONNX_OPSET_MAX);
    return QD_OK;
}

static qd_status read_initializers(parser *p, const Onnx__GraphProto *g, qd_err *err)
{
    qd_status st = QD_OK;
    p->f->initializer_type = qd_arena_alloc(&p->f->arena, (g->n_initializer + 1) * sizeof(*p->f->initializer_type));
    if (!p->f->initializer_type)
        return qd_fail(err, QD_E_NOMEM, "out of memory for %zu tensors", g->n_initializer);
    for (size_t k = 0; k < g->n_initializer && !st; k++) {
        Onnx__TensorProto *t = g->initializer[k];
        const char *name = text_or(t->name, "");
        qd_tensor value = { 0 };
        st = read_tensor(p, name, t, &p->f->initializer_type[k], &value, err);
        if (!st)
            st = qd_weights_add(p->f->initializers, name, &value, err);
        qd_tensor_clear(&value);
    }
    return st;
}

static qd_status read_graph(parser *p, const Onnx__GraphProto *g, qd_err *err)
{
    qd_onnx_file *f = p->f;
    qd_status st = QD_OK;
    if (g->n_sparse_initializer)
        return qd_fail(err, QD_E_UNSUPPORTED, "the file has %zu sparse initializers, which we do not read",
                       g->n_sparse_initializer);
    if (g->n_node > QD_MAX_NODES || g->n_input > QD_MAX_NODES || g->n_output > QD_MAX_OUTPUTS)
        return qd_fail(err, QD_E_LIMIT, "the graph has %zu nodes, %zu inputs, %zu outputs; the limits are %d, %d, %d",
                       g->n_node, g->n_input, g->n_output, QD_MAX_NODES, QD_MAX_NODES, QD_MAX_OUTPUTS);
    f->node = qd_arena_alloc(&f->arena, (g->n_node + 1) * sizeof(*f->node));
    f->input = qd_arena_alloc(&f->arena, (g->n_input + 1) * sizeof(*f->input));
    f->output = qd_arena_alloc(&f->arena, (g->n_output + 1) * sizeof(*f->output));
    if (!f->node || !f->input || !f->output)
        return qd_fail(err, QD_E_NOMEM, "out of memory for %zu nodes", g->n_node);
    st = qd_weights_new(&f->initializers, err);
    if (!st)
        st = read_initializers(p, g, err);
    for (size_t k = 0; k < g->n_node && !st; k++) {
        f->n_nodes = (int)k + 1;
        st = read_node(p, g->node[k], &f->node[k], err);
    }
    for (size_t k = 0; k < g->n_input && !st; k++) {
        /* Before IR version 4 every initializer was listed as an input too. */
        if (qd_weights_find(f->initializers, text_or(g->input[k]->name, "")))
            continue;
        st = read_value(g->input[k], &f->input[f->n_inputs++], err);
    }
    for (size_t k = 0; k < g->n_output && !st; k++)
        st = read_value(g->output[k], &f->output[f->n_outputs++], err);
    return st;
}

static qd_status read_meta(qd_onnx_file *f, const Onnx__ModelProto *m, qd_err *err)
{
    qd_status st = qd_meta_new(&f->meta, err);
    for (size_t k = 0; k < m->n_metadata_props && !st; k++)
        st =
            qd_meta_set(f->meta, text_or(m->metadata_props[k]->key, ""), text_or(m->metadata_props[k]->value, ""), err);
    return st;
}

/* --- the face --- */

/* Checks sizes and depth, then lets the library unpack. */
static qd_status unpack(qd_onnx_file *f, const void *data, size_t size, qd_budget *budget, qd_err *err)
{
    struct qd_onnx_message *m = f->message;
    tally c = { 0 };
    if (size > MAX_BYTES)
        return qd_fail(err, QD_E_LIMIT, "the file has %zu bytes, protobuf's limit is %zu", size, MAX_BYTES);
    if (!count_message(&c, &onnx__model_proto__descriptor, data, size, 1))
        return c.too_deep ? qd_fail(err, QD_E_LIMIT, "the file nests messages more than %d deep", MAX_DEPTH)
                          : qd_fail(err, QD_E_FORMAT, "the bytes are no ONNX model: protobuf fields do not add up");
    const size_t ceiling = 2 * size + ((size_t)64 << 20);
    if (c.bytes > ceiling)
        return qd_fail(err, QD_E_LIMIT, "unpacked, the %zu bytes of the file would take %zu, the limit is %zu", size,
                       c.bytes, ceiling);
    qd_status st = qd_budget_draw(budget, c.bytes, "an ONNX file", err);
    if (st)
        return st;
    m->budget = budget;
    m->drawn = m->left = c.bytes;
    m->allocator = (ProtobufCAllocator){ .alloc = message_alloc, .free = message_free, .allocator_data = m };
    m->model = onnx__model_proto__unpack(&m->allocator, size, data);
    if (!m->model)
        return m->starved ? qd_fail(err, QD_E_NOMEM, "out of memory for an ONNX file")
                          : qd_fail(err, QD_E_FORMAT, "the bytes are no ONNX model: protobuf cannot unpack them");
    return QD_OK;
}

qd_status qd_onnx_parse(const void *data, size_t size, const char *folder, qd_budget *budget, qd_onnx_file **out,
                        qd_err *err)
{
    parser p = { .folder = folder, .budget = budget };
    qd_onnx_file *f = qd_calloc(1, sizeof(*f));
    qd_status st = QD_OK;

    if (f) {
        qd_arena_init(&f->arena);
        f->message = qd_calloc(1, sizeof(*f->message));
    }
    if (!f || !f->message) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory for an ONNX file");
        goto out;
    }
    p.f = f;
    st = qd_onnx_outside_new(&p.outside, err);
    if (st)
        goto out;
    st = unpack(f, data, size, budget, err);
    if (!st)
        st = read_opset(f->message->model, &f->opset, err);
    if (!st && f->message->model->n_functions)
        st = qd_fail(err, QD_E_UNSUPPORTED, "the file defines %zu functions of its own, which we do not read",
                     f->message->model->n_functions);
    if (!st && !f->message->model->graph)
        st = qd_fail(err, QD_E_FORMAT, "the file holds no graph");
    if (!st)
        st = read_meta(f, f->message->model, err);
    if (!st)
        st = read_graph(&p, f->message->model->graph, err);
    if (st)
        goto out;
    *out = f;
    f = NULL;
out:
    qd_onnx_outside_free(p.outside);
    qd_onnx_free(f);
    return st;
}

void qd_onnx_free(qd_onnx_file *f)
{
    if (!f)
        return;
    for (int k = 0; k < f->n_nodes; k++)
        for (int j = 0; j < f->node[k].n_attrs; j++)
            qd_tensor_clear(&f->node[k].attr[j].t);
    qd_weights_free(f->initializers);
    qd_meta_free(f->meta);
    if (f->message) {
        if (f->message->model)
            onnx__model_proto__free_unpacked(f->message->model, &f->message->allocator);
        qd_budget_give(f->message->budget, f->message->drawn);
        qd_free(f->message);
    }
    qd_arena_clear(&f->arena);
    qd_free(f);
}

bool qd_onnx_looks_like(const void *data, size_t size)
{
    /* Whole fields of a ModelProto with a small ir_version, and one of them the graph or the opset. The last may be cut off. */
    const uint8_t *p = data, *end = p + size;
    bool version = false, known = false;
    for (int fields = 0; p < end && fields < 32; fields++) {
        uint64_t tag, v;
        if (!read_varint(&p, end, &tag))
            break;
        const uint64_t id = tag >> 3, wire = tag & 7;
        if (id < 1 || id > 25 || (wire != 0 && wire != 2) || !read_varint(&p, end, &v))
            return false;
        if ((wire == 0) != (id == 1 || id == 5))
            return false;
        if (id == 1)
            version = v >= 1 && v <= 64;
        known = known || id == 7 || id == 8;
        if (wire == 2) {
            if (v > (uint64_t)(end - p))
                break;
            p += v;
        }
    }
    return version && known;
}
