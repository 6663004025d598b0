/* onnx_graph.c - a parsed ONNX file becomes a graph of ours, node by node: constants are worked out, the rest is looked up in
 * onnx_ops.c, and what cannot be read is listed by name. */
#include "model/onnx_codes.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

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
    if (strcmp(n->op, "DynamicQuantizeLinear") == 0)
        return "its scale is known at run time only";
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

static bool has_weights(const qd_onnx_node *n)
{
    static const char *const layers[] = { "Conv",
                                          "ConvTranspose",
                                          "Gemm",
                                          "MatMul",
                                          "BatchNormalization",
                                          "InstanceNormalization",
                                          "GroupNormalization",
                                          "LayerNormalization",
                                          "PRelu" };
    for (size_t k = 0; k < sizeof(layers) / sizeof(layers[0]); k++)
        if (strcmp(n->op, layers[k]) == 0)
            return true;
    return false;
}

/* What layers take as input. Elsewhere infinity has a meaning: masks before softmax, bounds. */
static qd_status names_of_weights(const qd_onnx_file *f, qd_names *names, qd_err *err)
{
    qd_status st = QD_OK;
    for (int k = 0; k < f->n_nodes; k++)
        for (int i = 0; has_weights(&f->node[k]) && i < f->node[k].n_inputs && !st; i++)
            if (qd_names_find(names, f->node[k].input[i]) < 0)
                st = qd_names_add(names, f->node[k].input[i], err);
    return st;
}

/* No stored tensor may hold NaN, no weight infinity. */
static qd_status check_finite(const char *name, const qd_tensor *t, const qd_names *weights, qd_err *err)
{
    for (int64_t k = 0; t->dtype == QD_F32 && k < qd_tensor_count(t); k++) {
        const float v = qd_f32(t)[k];
        if (isnan(v) || (isinf(v) && qd_names_find(weights, name) >= 0))
            return qd_fail(err, QD_E_NUMERIC, "tensor '%.150s' holds %s at element %lld; weights must be finite", name,
                           isnan(v) ? "NaN" : "infinity", (long long)k);
    }
    return QD_OK;
}

static qd_status read_initializers(qd_onnx_reader *r, qd_err *err)
{
    const qd_weights *w = r->file->initializers;
    qd_names weights = { 0 };
    qd_status st = names_of_weights(r->file, &weights, err);
    for (int k = 0; k < qd_weights_count(w) && !st; k++) {
        st = check_finite(qd_weights_name(w, k), qd_weights_at(w, k), &weights, err);
        if (st)
            break;
        qd_onnx_number v = {
            .constant = true, .elem_type = r->file->initializer_type[k], .id = -1, .dtype = qd_weights_at(w, k)->dtype
        };
        for (int j = 0; j < QD_ONNX_WORLDS; j++)
            qd_tensor_share(&v.t[j], qd_weights_at(w, k));
        st = qd_onnx_value_add(r, qd_weights_name(w, k), &v, err);
    }
    qd_names_clear(&weights);
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
        return qd_onnx_graph_words(r, err);
    for (int w = 0; w < QD_ONNX_WORLDS; w++) {
        v.shape[w] = declared;
        if (declared.rank && declared.dim[0] == -1)
            v.shape[w].dim[0] = qd_onnx_batch[w];
    }
    if (declared.rank && declared.dim[0] == -1 && r->batch_of < 0)
        r->batch_of = v.id;
    qd_onnx_shapes_push(r, v.id, v.shape);
    return qd_onnx_value_add(r, in->name, &v, err);
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
    qd_status st = qd_onnx_move_codes(r, n, &done, err);
    if (!st && !done)
        st = qd_onnx_spell_inputs(r, n, err);
    if (st || done)
        return st;
    if (n->n_inputs <= QD_MAX_INPUTS) {
        for (int k = 0; k < n->n_inputs; k++)
            in[k] = qd_onnx_in(r, n, k);
        st = qd_onnx_fold(n, r->file->opset, in, n->n_inputs, r->budget, &made, &done, err);
        if (st)
            return st;
        if (done && n->n_outputs > 0)
            return qd_onnx_value_add(r, n->output[0], &made, err);
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
        const qd_node_id id = qd_onnx_number_node(r, name, &r->value[at]);
        if (id < 0)
            return qd_onnx_graph_words(r, err);
        qd_graph_output(r->graph, name, id);
    }
    return qd_graph_verify(r->graph, err);
}

static qd_status read_graph(qd_onnx_reader *r, qd_err *err)
{
    const qd_onnx_file *f = r->file;
    qd_status st = check_supported(f, err);
    for (int k = 0; k < f->n_nodes; k++)
        r->keeps_codes = r->keeps_codes || strcmp(f->node[k].op, "QuantizeLinear") == 0;
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
    for (int k = 0; k < r.n_coded; k++)
        qd_onnx_coded_clear(&r.coded[k]);
    qd_free(r.coded);
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
