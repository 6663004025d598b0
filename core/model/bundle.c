/* bundle.c - a quantized model as one file: the graph as JSON in the metadata of a safetensors file, constants as tensors.
 *
 * {"nodes": [{"op", "name", "inputs": [index or -1, ..], "attrs": {..}}, ..], "outputs": [{"name", "node"}, ..]}
 * An input node has "dtype" and "shape" (-1 = batch) instead; a const node nothing more, it is the tensor of its name. Codes of few
 * bits lie there as U8 [rows, bytes of a row] (tensor.h) and the const node has "dtype" ("i4", "i6") and "shape" of their own. */
#include "model/model_int.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "graph/op.h"

#define GRAPH_KEY "graph"
#define FORMAT_KEY "format"
#define NODES_MAX 100000u
#define OUTPUTS_MAX 64u
#define GRAPH_MAX_DEPTH 5         /* { nodes: [ { attrs: { stride: [ */
#define GRAPH_MAX_VALUES 4000000u /* 40 for each of NODES_MAX */
#define DIM_MAX INT32_MAX

/* --- writing --- */

/* 17 digits read back as the same double, and a point or exponent keeps -0.0 from becoming the integer 0. JSON has no word for
 * what is not finite, so that travels as a string. */
static void add_float(qd_buf *b, double v)
{
    char text[40];

    if (isnan(v)) {
        qd_buf_adds(b, "\"nan\"");
    } else if (isinf(v)) {
        qd_buf_adds(b, v > 0 ? "\"inf\"" : "\"-inf\"");
    } else {
        snprintf(text, sizeof(text), "%.17g", v);
        qd_buf_adds(b, text);
        if (!strpbrk(text, ".e"))
            qd_buf_adds(b, ".0");
    }
}

static void add_ints(qd_buf *b, const int64_t *v, int n)
{
    qd_buf_adds(b, "[");
    for (int k = 0; k < n; k++)
        qd_buf_addf(b, "%s%" PRId64, k ? "," : "", v[k]);
    qd_buf_adds(b, "]");
}

static void add_attr(qd_buf *b, const qd_attr *a)
{
    qd_buf_add_json_string(b, a->name);
    qd_buf_adds(b, ":");
    switch (a->kind) {
    case QD_ATTR_INT:
        qd_buf_addf(b, "%" PRId64, a->i);
        break;
    case QD_ATTR_FLOAT:
        add_float(b, a->f);
        break;
    case QD_ATTR_INTS:
        add_ints(b, a->ints, a->n);
        break;
    }
}

static void add_node(qd_buf *b, const qd_node *n)
{
    qd_buf_adds(b, "{\"op\":");
    qd_buf_add_json_string(b, n->op->name);
    qd_buf_adds(b, ",\"name\":");
    qd_buf_add_json_string(b, n->name);
    if (n->op == &qd_op_input || (n->op == &qd_op_const && qd_dtype_bits(n->dtype) < 8)) {
        qd_buf_addf(b, ",\"dtype\":\"%s\",\"shape\":", qd_dtype_name(n->dtype));
        add_ints(b, n->shape.dim, n->shape.rank);
    } else if (n->op != &qd_op_const) {
        qd_buf_adds(b, ",\"inputs\":[");
        for (int k = 0; k < n->n_inputs; k++)
            qd_buf_addf(b, "%s%" PRId32, k ? "," : "", n->input[k]);
        qd_buf_adds(b, "]");
        if (n->n_attrs > 0) {
            qd_buf_adds(b, ",\"attrs\":{");
            for (int k = 0; k < n->n_attrs; k++) {
                qd_buf_adds(b, k ? "," : "");
                add_attr(b, &n->attr[k]);
            }
            qd_buf_adds(b, "}");
        }
    }
    qd_buf_adds(b, "}");
}

static qd_status graph_text(const qd_graph *g, qd_buf *b, qd_err *err)
{
    qd_buf_adds(b, "{\"nodes\":[");
    for (int k = 0; k < qd_graph_size(g); k++) {
        qd_buf_adds(b, k ? ",\n" : "\n");
        add_node(b, qd_graph_node(g, k));
    }
    qd_buf_adds(b, "\n],\"outputs\":[");
    for (int k = 0; k < qd_graph_outputs(g); k++) {
        qd_buf_adds(b, k ? ",{\"name\":" : "{\"name\":");
        qd_buf_add_json_string(b, qd_graph_output_name(g, k));
        qd_buf_addf(b, ",\"node\":%" PRId32 "}", qd_graph_output_at(g, k));
    }
    qd_buf_adds(b, "]}");
    return b->failed ? qd_fail(err, QD_E_NOMEM, "out of memory for the text of %d nodes", qd_graph_size(g)) : QD_OK;
}

/* src without the two keys that are ours. */
static qd_status copy_foreign(qd_meta *dst, const qd_meta *src, qd_err *err)
{
    for (int k = 0; k < qd_meta_count(src); k++) {
        const char *key, *value;
        qd_status st;

        qd_meta_at(src, k, &key, &value);
        if (strcmp(key, FORMAT_KEY) == 0 || strcmp(key, GRAPH_KEY) == 0)
            continue;
        st = qd_meta_set(dst, key, value, err);
        if (st)
            return st;
    }
    return QD_OK;
}

qd_tensor qd_weights_as_bytes(const qd_tensor *t)
{
    qd_tensor u = *t;
    if (qd_dtype_bits(t->dtype) < 8) {
        const int64_t rows = t->shape.rank > 1 ? t->shape.dim[0] : 1, bytes = (int64_t)qd_tensor_bytes(t);
        u.dtype = QD_U8;
        u.shape = QD_SHAPE(rows, rows ? bytes / rows : 0);
    }
    return u;
}

qd_status qd_bundle_save(const char *path, const qd_graph *g, const qd_meta *meta, char *sha256_hex, qd_err *err)
{
    qd_weights *w = NULL;
    qd_meta *all = NULL;
    qd_buf text;
    qd_status st;

    qd_buf_init(&text, 0);
    st = qd_graph_verify(g, err);
    if (!st && qd_graph_size(g) > (int)NODES_MAX)
        st = qd_fail(err, QD_E_LIMIT, "the graph has %d nodes, the limit is %u", qd_graph_size(g), NODES_MAX);
    if (!st)
        st = graph_text(g, &text, err);
    if (!st)
        st = qd_weights_new(&w, err);
    if (!st)
        st = qd_meta_new(&all, err);
    for (int k = 0; !st && k < qd_graph_size(g); k++) {
        const qd_node *n = qd_graph_node(g, k);

        if (!qd_utf8_valid(n->name))
            st = qd_fail(err, QD_E_INVALID, "the name of node %d is not UTF-8", k);
        else if (n->op == &qd_op_const) {
            const qd_tensor t = qd_weights_as_bytes(&n->value);
            st = qd_weights_add(w, n->name, &t, err);
        }
    }
    if (!st)
        st = qd_meta_set(all, FORMAT_KEY, QD_BUNDLE_FORMAT, err);
    if (!st)
        st = qd_meta_set(all, GRAPH_KEY, text.data, err);
    if (!st && meta)
        st = copy_foreign(all, meta, err);
    if (!st)
        st = qd_safetensors_save(path, w, all, sha256_hex, err);
    qd_buf_clear(&text);
    qd_meta_free(all);
    qd_weights_free(w);
    return st;
}

/* --- reading --- */

/* What the words of a refusal start with. */
typedef struct place {
    size_t index;
    const char *name;
} place;

static qd_status bad(const place *p, qd_err *err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static qd_status bad(const place *p, qd_err *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    qd_failv(err, QD_E_FORMAT, fmt, ap);
    va_end(ap);
    return qd_fail_in(err, QD_E_FORMAT, "graph node %zu '%.150s'", p->index, p->name);
}

static bool get_int(const json_t *v, int64_t *out)
{
    if (!json_is_integer(v))
        return false;
    *out = json_integer_value(v);
    return true;
}

static bool get_float(const json_t *v, double *out)
{
    const char *s = json_string_value(v);

    if (s && strcmp(s, "nan") == 0)
        *out = NAN;
    else if (s && strcmp(s, "inf") == 0)
        *out = INFINITY;
    else if (s && strcmp(s, "-inf") == 0)
        *out = -INFINITY;
    else if (json_is_number(v))
        *out = json_number_value(v);
    else
        return false;
    return true;
}

/* An array of at most QD_MAX_RANK whole numbers. */
static bool get_ints(const json_t *v, int64_t *out, int *n)
{
    if (!json_is_array(v) || json_array_size(v) > QD_MAX_RANK)
        return false;
    *n = (int)json_array_size(v);
    for (int k = 0; k < *n; k++)
        if (!get_int(json_array_get(v, (size_t)k), &out[k]))
            return false;
    return true;
}

static qd_status read_attr(const place *p, const qd_op *op, const char *key, const json_t *v, qd_attr *a, qd_err *err)
{
    const qd_op_attr *row = op->attrs;

    while (row && row->name && strcmp(row->name, key) != 0)
        row++;
    if (!row || !row->name)
        return bad(p, err, "op '%s' has no attribute '%.80s'", op->name, key);
    *a = (qd_attr){ .name = row->name, .kind = row->kind };
    switch (row->kind) {
    case QD_ATTR_INT:
        if (!get_int(v, &a->i))
            return bad(p, err, "attribute '%s' must be a whole number", key);
        break;
    case QD_ATTR_FLOAT:
        if (!get_float(v, &a->f))
            return bad(p, err, "attribute '%s' must be a number, \"nan\", \"inf\" or \"-inf\"", key);
        break;
    case QD_ATTR_INTS:
        if (!get_ints(v, a->ints, &a->n))
            return bad(p, err, "attribute '%s' must be an array of at most %d whole numbers", key, QD_MAX_RANK);
        break;
    }
    return QD_OK;
}

/* Only the keys a node of that op has; an unknown one may change what the writer meant. */
static qd_status check_keys(const place *p, const json_t *v, const char *const *known, qd_err *err)
{
    const char *key;
    json_t *item;

    json_object_foreach((json_t *)(uintptr_t)v, key, item)
    {
        const char *const *k = known;

        while (*k && strcmp(*k, key) != 0)
            k++;
        if (!*k)
            return bad(p, err, "unknown key '%.80s'", key);
    }
    return QD_OK;
}

static qd_status read_input(const place *p, const json_t *v, qd_graph *g, qd_err *err)
{
    static const char *const known[] = { "op", "name", "dtype", "shape", NULL };
    const char *dtype_name = json_string_value(json_object_get(v, "dtype"));
    qd_dtype dtype;
    qd_shape shape = { 0 };
    qd_status st = check_keys(p, v, known, err);

    if (st)
        return st;
    if (!dtype_name || !qd_dtype_find(dtype_name, &dtype))
        return bad(p, err, "unknown dtype '%.40s'", dtype_name ? dtype_name : "(none)");
    if (!get_ints(json_object_get(v, "shape"), shape.dim, &shape.rank))
        return bad(p, err, "shape must be an array of at most %d whole numbers", QD_MAX_RANK);
    for (int k = 0; k < shape.rank; k++)
        if (!(shape.dim[k] == -1 && k == 0) && (shape.dim[k] < 1 || shape.dim[k] > DIM_MAX))
            return bad(p, err, "dimension %d is %" PRId64 ", must be 1..%d (or -1 for the batch, first)", k,
                       shape.dim[k], DIM_MAX);
    qd_graph_input(g, p->name, dtype, &shape);
    return QD_OK;
}

/* The bytes of tensor t under the dtype and shape that the node gives them. The bits that fill up a row must be zero, so that
 * the same codes are the same bytes. */
static qd_status as_codes(const place *p, const json_t *v, const qd_tensor *t, qd_tensor *out, qd_err *err)
{
    const char *dtype_name = json_string_value(json_object_get(v, "dtype"));
    qd_dtype dtype;
    qd_shape shape = { 0 };
    int64_t count;

    if (!dtype_name || !qd_dtype_find(dtype_name, &dtype) || qd_dtype_bits(dtype) >= 8)
        return bad(p, err, "a constant's dtype can be \"i4\" or \"i6\", not '%.40s'",
                   dtype_name ? dtype_name : "(none)");
    if (!get_ints(json_object_get(v, "shape"), shape.dim, &shape.rank) || qd_shape_count(&shape, &count, NULL))
        return bad(p, err, "shape must be an array of at most %d whole numbers >= 0", QD_MAX_RANK);
    const int64_t rows = shape.rank > 1 ? shape.dim[0] : 1, row = rows ? count / rows : 0;
    const size_t bytes = qd_codes_row_bytes(row, (int)qd_dtype_bits(dtype));
    if (t->dtype != QD_U8 || t->shape.rank != 2 || t->shape.dim[0] != rows || t->shape.dim[1] != (int64_t)bytes)
        return bad(p, err, "its tensor must be U8 [%" PRId64 ", %zu]", rows, bytes);
    const unsigned used_bits = (unsigned)((uint64_t)row % 8 * qd_dtype_bits(dtype) % 8);
    for (int64_t k = 0; used_bits && k < rows; k++)
        if (qd_u8(t)[(k + 1) * (int64_t)bytes - 1] >> used_bits)
            return bad(p, err, "the bits past the end of row %" PRId64 " are not zero", k);
    *out = *t;
    out->dtype = dtype;
    out->shape = shape;
    return QD_OK;
}

static qd_status read_const(const place *p, const json_t *v, const qd_weights *w, int *used, qd_graph *g, qd_err *err)
{
    static const char *const known[] = { "op", "name", "dtype", "shape", NULL };
    const qd_tensor *t = qd_weights_find(w, p->name);
    qd_tensor codes;
    qd_status st = check_keys(p, v, known, err);

    if (st)
        return st;
    if (!t)
        return bad(p, err, "the file has no tensor of that name");
    if (json_object_get(v, "dtype") || json_object_get(v, "shape")) {
        st = as_codes(p, v, t, &codes, err);
        if (st)
            return st;
        t = &codes;
    }
    ++*used;
    qd_graph_const(g, p->name, t);
    return QD_OK;
}

static qd_status read_op(const place *p, const json_t *v, const qd_op *op, qd_graph *g, qd_err *err)
{
    static const char *const known[] = { "op", "name", "inputs", "attrs", NULL };
    const json_t *inputs = json_object_get(v, "inputs"), *attrs = json_object_get(v, "attrs");
    qd_node_id input[QD_MAX_INPUTS];
    qd_attr attr[QD_MAX_ATTRS];
    int n_inputs = 0, n_attrs = 0;
    const char *key;
    json_t *item;
    qd_status st = check_keys(p, v, known, err);

    if (st)
        return st;
    if (!json_is_array(inputs) || json_array_size(inputs) > QD_MAX_INPUTS)
        return bad(p, err, "inputs must be an array of at most %d node numbers", QD_MAX_INPUTS);
    for (; n_inputs < (int)json_array_size(inputs); n_inputs++) {
        int64_t i;

        if (!get_int(json_array_get(inputs, (size_t)n_inputs), &i) || i < -1 || i >= (int64_t)p->index)
            return bad(p, err, "input %d must be the number of an earlier node, or -1", n_inputs);
        input[n_inputs] = (qd_node_id)i;
    }
    if (attrs && (!json_is_object(attrs) || json_object_size(attrs) > QD_MAX_ATTRS))
        return bad(p, err, "attrs must be an object of at most %d attributes", QD_MAX_ATTRS);
    json_object_foreach((json_t *)(uintptr_t)attrs, key, item)
    {
        st = read_attr(p, op, key, item, &attr[n_attrs++], err);
        if (st)
            return st;
    }
    qd_graph_add(g, op, p->name, input, n_inputs, attr, n_attrs);
    return QD_OK;
}

static qd_status read_node(size_t index, const json_t *v, const qd_weights *w, int *used, qd_graph *g, qd_err *err)
{
    const char *name = json_string_value(json_object_get(v, "name"));
    const char *op_name = json_string_value(json_object_get(v, "op"));
    const place p = { .index = index, .name = name ? name : "" };
    const qd_op *op;

    if (!name || !*name || strlen(name) > QD_SAFETENSORS_NAME_MAX)
        return bad(&p, err, "name must be a string of 1..%u bytes", QD_SAFETENSORS_NAME_MAX);
    if (!op_name)
        return bad(&p, err, "op is missing or not a string");
    op = qd_op_find(op_name);
    if (!op) {
        qd_fail(err, QD_E_UNSUPPORTED, "unknown op '%.80s'", op_name);
        return qd_fail_in(err, QD_E_UNSUPPORTED, "graph node %zu '%.150s'", index, name);
    }
    if (op == &qd_op_input)
        return read_input(&p, v, g, err);
    if (op == &qd_op_const)
        return read_const(&p, v, w, used, g, err);
    return read_op(&p, v, op, g, err);
}

static qd_status read_outputs(const json_t *outputs, qd_graph *g, qd_err *err)
{
    if (!json_is_array(outputs) || json_array_size(outputs) > OUTPUTS_MAX)
        return qd_fail(err, QD_E_FORMAT, "graph: 'outputs' must be an array of at most %u", OUTPUTS_MAX);
    for (size_t k = 0; k < json_array_size(outputs); k++) {
        const json_t *v = json_array_get(outputs, k);
        const char *name = json_string_value(json_object_get(v, "name"));
        int64_t i;

        if (!name || !get_int(json_object_get(v, "node"), &i) || i < 0 || i >= qd_graph_size(g))
            return qd_fail(err, QD_E_FORMAT, "graph: output %zu must have a name and the number of a node", k);
        qd_graph_output(g, name, (qd_node_id)i);
    }
    return QD_OK;
}

/* The constants' names are unique, so as many as there are tensors means every tensor exactly once. */
static qd_status check_used(const qd_graph *g, const qd_weights *w, int used, qd_err *err)
{
    if (used == qd_weights_count(w))
        return QD_OK;
    for (int k = 0; k < qd_weights_count(w); k++)
        if (qd_graph_find(g, qd_weights_name(w, k)) < 0)
            return qd_fail(err, QD_E_FORMAT, "tensor '%.200s' is used by no node of the graph", qd_weights_name(w, k));
    return qd_fail(err, QD_E_FORMAT, "the graph uses %d of the file's %d tensors", used, qd_weights_count(w));
}

static qd_status read_graph(const char *text, const qd_weights *w, qd_graph **out, qd_err *err)
{
    json_t *root = NULL;
    const json_t *nodes;
    qd_graph *g = NULL;
    int used = 0;
    qd_status st = qd_json_load(text, strlen(text), "graph", GRAPH_MAX_DEPTH, GRAPH_MAX_VALUES, &root, err);

    if (st)
        goto out;
    nodes = json_object_get(root, "nodes");
    if (!json_is_array(nodes)) {
        st = qd_fail(err, QD_E_FORMAT, "graph: 'nodes' is missing or not an array");
        goto out;
    }
    if (json_array_size(nodes) > NODES_MAX) {
        st = qd_fail(err, QD_E_LIMIT, "graph: %zu nodes, the limit is %u", json_array_size(nodes), NODES_MAX);
        goto out;
    }
    st = qd_graph_new(&g, err);
    for (size_t k = 0; !st && k < json_array_size(nodes); k++) {
        st = read_node(k, json_array_get(nodes, k), w, &used, g, err);
        if (!st && qd_graph_size(g) != (int)k + 1)
            st = qd_graph_verify(g, err); /* the builder refused: these are its words */
    }
    if (!st)
        st = check_used(g, w, used, err);
    if (!st)
        st = read_outputs(json_object_get(root, "outputs"), g, err);
    if (!st)
        st = qd_graph_verify(g, err);
    if (st)
        goto out;
    *out = g;
    g = NULL;
out:
    qd_graph_free(g);
    json_decref(root);
    return st;
}

/* From the tensors and metadata of the file to the graph and the caller's part of the metadata. */
static qd_status unpack(const qd_weights *w, const qd_meta *all, qd_graph **graph, qd_meta **meta, qd_err *err)
{
    const char *format = qd_meta_find(all, FORMAT_KEY), *text = qd_meta_find(all, GRAPH_KEY);
    qd_graph *g = NULL;
    qd_meta *m = NULL;
    qd_status st;

    if (!format || strcmp(format, QD_BUNDLE_FORMAT) != 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "metadata '" FORMAT_KEY "' is '%.80s', want '" QD_BUNDLE_FORMAT "'",
                       format ? format : "(none)");
    if (!text)
        return qd_fail(err, QD_E_FORMAT, "a bundle without metadata '" GRAPH_KEY "'");
    st = qd_meta_new(&m, err);
    if (!st)
        st = copy_foreign(m, all, err);
    if (!st)
        st = read_graph(text, w, &g, err);
    if (st)
        goto out;
    *graph = g;
    *meta = m;
    m = NULL;
out:
    qd_meta_free(m);
    return st;
}

qd_status qd_bundle_load(const char *path, qd_budget *budget, qd_graph **graph, qd_meta **meta, uint64_t *file_bytes,
                         qd_err *err)
{
    qd_weights *w = NULL;
    qd_meta *all = NULL;
    qd_status st = qd_meta_new(&all, err);

    if (!st)
        st = qd_safetensors_load(path, budget, &w, all, file_bytes, err);
    if (!st) {
        st = unpack(w, all, graph, meta, err);
        if (st)
            qd_fail_in(err, st, "%.100s", qd_base_name(path));
    }
    qd_weights_free(w);
    qd_meta_free(all);
    return st;
}

bool qd_bundle_sniff(const char *path)
{
    /* Quotes included: inside the graph's text they would be escaped, so only a whole string of the header matches. */
    return qd_safetensors_header_has(path, "\"" QD_BUNDLE_FORMAT "\"");
}

qd_status qd_bundle_open(const char *path, qd_graph **graph, qd_meta **meta, qd_err *err)
{
    return qd_bundle_load(path, NULL, graph, meta, NULL, err);
}

qd_status qd_bundle_parse(const void *data, size_t size, qd_graph **graph, qd_meta **meta, qd_err *err)
{
    qd_weights *w = NULL;
    qd_meta *all = NULL;
    qd_status st = qd_meta_new(&all, err);

    if (!st)
        st = qd_safetensors_parse(data, size, &w, all, err);
    if (!st)
        st = unpack(w, all, graph, meta, err);
    qd_weights_free(w);
    qd_meta_free(all);
    return st;
}
