/* layout.c - which layers are quantized, which values they read, which shortcuts are split. */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/qncd_int.h"

static const char note_time[] = "depends on the time step only: computed in float";
static const char note_skipped[] = "left in float on request";
static const char note_time_w8[] = "depends on the time step only: weights in 8 bits, computed in float";
static const char note_edge_w8[] = "reads or makes the image itself: weights in 8 bits, computed in float";
static const char note_edge[] = "reads or makes the image itself: left in float";
static const char note_branch[] = "low-rank branch of a layer: weights in 8 bits, computed in float";
static const char note_tokens[] = "part of a transformer, which is left in float";
static const char note_weight[] = "its weight is not a constant f32 tensor";
static const char note_products[] = "more products in one sum than int32 holds for certain";

static bool is_layer(const qd_node *n)
{
    return n->op == &qd_op_conv2d || n->op == &qd_op_linear;
}

/* Is `word` one of the comma separated words of `list`? Spaces around words do not count. */
static bool is_listed(const char *list, const char *word)
{
    const size_t n = strlen(word);
    while (*list) {
        list += strspn(list, " ,");
        size_t len = strcspn(list, ",");
        const char *next = list + len;
        while (len && list[len - 1] == ' ')
            len--;
        if (len == n && strncmp(list, word, n) == 0)
            return true;
        list = next;
    }
    return false;
}

static qd_status check_skip(const qd_graph *g, const char *list, qd_err *err)
{
    while (*list) {
        list += strspn(list, " ,");
        size_t len = strcspn(list, ",");
        const char *next = list + len;
        while (len && list[len - 1] == ' ')
            len--;
        char *word = qd_strndup(list, len);
        if (!word)
            return qd_fail(err, QD_E_NOMEM, "no memory for a layer's name");
        const qd_node_id id = len ? qd_graph_find(g, word) : -1;
        qd_status st = QD_OK;
        if (len && (id < 0 || !is_layer(qd_graph_node(g, id))))
            st = qd_fail(err, QD_E_INVALID,
                         "params.skip_layers names '%.200s', which is no conv2d or linear of this model", word);
        qd_free(word);
        if (st)
            return st;
        list = next;
    }
    return QD_OK;
}

/* Only what calibration can fill: what a denoiser is told has names and types of its own. */
static qd_status check_inputs(const qd_graph *g, const char *input, qd_err *err)
{
    for (int k = 0; k < qd_graph_inputs(g); k++) {
        const qd_node *n = qd_graph_node(g, qd_graph_input_at(g, k));
        const bool is_time = strcmp(n->name, "timestep") == 0 && n->shape.rank == 1;
        const bool is_told = (strcmp(n->name, "encoder_hidden_states") == 0 || strcmp(n->name, "class_labels") == 0) &&
                             (n->dtype == QD_F32 || n->dtype == QD_I64);
        if (!is_told && (strcmp(n->name, input) != 0 || n->dtype != QD_F32) &&
            (!is_time || (n->dtype != QD_F32 && n->dtype != QD_I64)))
            return qd_fail(err, QD_E_UNSUPPORTED, "calibration cannot fill the model's input '%s' (%s)", n->name,
                           qd_dtype_name(n->dtype));
    }
    return QD_OK;
}

/* on_sample[id]: does the value of that node depend on the input that takes the image? */
static qd_status mark_sample(const qd_graph *g, const char *input, bool *on_sample, qd_node_id *out, qd_err *err)
{
    const qd_node_id sample = qd_graph_find(g, input);
    if (sample < 0 || qd_graph_node(g, sample)->op != &qd_op_input)
        return qd_fail(err, QD_E_INVALID, "the graph has no input '%.100s'", input);
    *out = sample;
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        on_sample[id] = id == sample;
        for (int k = 0; k < n->n_inputs; k++)
            if (n->input[k] >= 0 && on_sample[n->input[k]])
                on_sample[id] = true;
    }
    return QD_OK;
}

/* Does this layer read the sample, but for a fixed scale, or make an output? */
static bool is_edge(const qd_graph *g, qd_node_id id)
{
    const qd_node *x = qd_graph_node(g, qd_graph_node(g, id)->input[0]);
    while (x->op == &qd_op_affine)
        x = qd_graph_node(g, x->input[0]);
    if (x->op == &qd_op_input)
        return true;
    for (int k = 0; k < qd_graph_outputs(g); k++)
        if (qd_graph_output_at(g, k) == id)
            return true;
    return false;
}

/* NULL, or why this layer computes in float. */
static const char *float_note(const qd_graph *g, qd_node_id id, const bool *on_sample, const qd_layout_options *o,
                              bool *weight_only)
{
    const qd_node *n = qd_graph_node(g, id);
    const qd_node *w = qd_graph_node(g, n->input[1]);
    const bool known = w->op == &qd_op_const && w->dtype == QD_F32;
    if (is_listed(o->skip, n->name))
        return note_skipped;
    if (!on_sample[n->input[0]]) {
        *weight_only = o->w8_time && known;
        return *weight_only ? note_time_w8 : note_time;
    }
    if (o->float_edges && is_edge(g, id)) {
        *weight_only = o->w8_edges && known;
        return *weight_only ? note_edge_w8 : note_edge;
    }
    if (!known)
        return note_weight;
    if (qd_low_rank_is_branch(n)) {
        *weight_only = true;
        return note_branch;
    }
    const int64_t rows = w->shape.dim[0];
    if (rows > 0 && qd_tensor_count(&w->value) / rows > QD_K_MAX_PRODUCTS)
        return note_products;
    return NULL;
}

int qd_layout_quantizer(qd_layout *l, qd_node_id value, int axis, int64_t channels)
{
    for (int k = 0; k < l->n_quantizers; k++)
        if (l->quantizers[k].value == value)
            return k;
    l->quantizers[l->n_quantizers] = (qd_quantizer){ .value = value, .axis = axis, .channels = channels };
    return l->n_quantizers++;
}

/* qncd.md 4.1: a 1x1 convolution of a concat of two is the sum of two convolutions. */
static bool is_split(const qd_graph *g, const qd_node *n)
{
    const qd_node *x = qd_graph_node(g, n->input[0]), *w = qd_graph_node(g, n->input[1]);
    if (n->op != &qd_op_conv2d || x->op != &qd_op_concat || x->n_inputs != 2 || qd_node_int(n, "groups") != 1)
        return false;
    const int64_t axis = qd_node_int(x, "axis");
    return (axis == 1 || axis == -3) && w->shape.dim[2] == 1 && w->shape.dim[3] == 1;
}

static void set_parts(qd_layout *l, qd_quant_layer *layer, const qd_shape *shapes, bool split)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const qd_node *x = qd_graph_node(l->graph, n->input[0]);
    const int axis = n->op == &qd_op_conv2d ? 1 : shapes[n->input[0]].rank - 1;

    if (!split || !is_split(l->graph, n)) {
        layer->n_parts = 1;
        layer->part[0] =
            (qd_part){ .quantizer = qd_layout_quantizer(l, n->input[0], axis, shapes[n->input[0]].dim[axis]),
                       .channels = shapes[n->input[0]].dim[axis] };
        return;
    }
    int64_t first = 0;
    layer->n_parts = 2;
    for (int k = 0; k < 2; k++) {
        const int64_t channels = shapes[x->input[k]].dim[1];
        layer->part[k] = (qd_part){ .quantizer = qd_layout_quantizer(l, x->input[k], 1, channels),
                                    .first = first,
                                    .channels = channels };
        first += channels;
    }
}

/* Shapes of all nodes with batch 1. */
qd_status qd_layout_shapes(const qd_graph *g, qd_shape *shapes, qd_err *err)
{
    qd_shape in[QD_MAX_INPUTS];
    const int n = qd_graph_inputs(g);
    if (n > QD_MAX_INPUTS)
        return qd_fail(err, QD_E_UNSUPPORTED, "the graph has %d inputs; %d are the most", n, QD_MAX_INPUTS);
    for (int k = 0; k < n; k++) {
        in[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        for (int a = 0; a < in[k].rank; a++)
            in[k].dim[a] = in[k].dim[a] < 0 ? 1 : in[k].dim[a];
    }
    return qd_graph_shapes(g, in, n, shapes, err);
}

qd_status qd_layout_new(const qd_graph *g, const qd_layout_options *o, qd_layout **out, qd_err *err)
{
    const int n = qd_graph_size(g);
    int found = 0, kept = 0;
    bool *on_sample = qd_calloc((size_t)n, sizeof *on_sample);
    qd_shape *shapes = qd_calloc((size_t)n, sizeof *shapes);
    qd_layout *l = qd_calloc(1, sizeof *l);
    qd_status st = QD_E_NOMEM;
    if (!on_sample || !shapes || !l)
        goto out;
    l->graph = g;
    l->group_size = o->group_size;

    for (qd_node_id id = 0; id < n; id++)
        found += is_layer(qd_graph_node(g, id));
    l->layers = qd_calloc((size_t)found, sizeof *l->layers);
    l->quantizers = qd_calloc((size_t)found * 2, sizeof *l->quantizers);
    if (!l->layers || !l->quantizers)
        goto out;

    const char *input = o->input ? o->input : "sample";
    st = check_inputs(g, input, err);
    if (st)
        goto out;
    st = qd_layout_shapes(g, shapes, err);
    if (st)
        goto out;
    st = mark_sample(g, input, on_sample, &l->input, err);
    if (st)
        goto out;
    st = check_skip(g, o->skip, err);
    if (st)
        goto out;
    for (qd_node_id id = 0; id < n; id++) {
        const qd_node *node = qd_graph_node(g, id);
        if (!is_layer(node))
            continue;
        qd_quant_layer *layer = &l->layers[l->n_layers++];
        layer->id = id;
        layer->note = float_note(g, id, on_sample, o, &layer->weight_only);
        const bool tokens = qd_is_token_layer(g, id, shapes);
        if (!layer->note && tokens && o->transformer == QD_TRANSFORMER_FLOAT)
            layer->note = note_tokens;
        if (layer->weight_only) {
            const qd_shape *x = &shapes[node->input[0]];
            layer->n_parts = 1;
            layer->part[0] =
                (qd_part){ .quantizer = -1, .channels = x->dim[node->op == &qd_op_conv2d ? 1 : x->rank - 1] };
        }
        if (layer->note)
            continue;
        set_parts(l, layer, shapes, o->split_shortcut);
        if (tokens && o->transformer == QD_TRANSFORMER_W8A8)
            layer->weight_bits = l->quantizers[layer->part[0].quantizer].bits = 8;
        kept++;
    }
    if (!kept) {
        st = qd_fail(err, QD_E_INVALID, "there is no layer left to quantize");
        goto out;
    }
    st = qd_layout_find_attention(l, shapes, on_sample, o, err);
    if (st)
        goto out;
    for (int k = 0; k < l->n_quantizers; k++) {
        st = qd_histogram_new(&l->quantizers[k].seen, err);
        if (st)
            goto out;
    }
    *out = l;
    l = NULL;
out:
    if (st == QD_E_NOMEM)
        qd_fail(err, st, "no memory to lay out %d nodes", n);
    qd_layout_free(l);
    qd_free(shapes);
    qd_free(on_sample);
    return st;
}

void qd_layout_free(qd_layout *l)
{
    if (!l)
        return;
    for (int k = 0; k < l->n_layers; k++) {
        for (int p = 0; p < l->layers[k].n_parts; p++) {
            qd_tensor_clear(&l->layers[k].part[p].codes);
            qd_tensor_clear(&l->layers[k].part[p].wscale);
        }
        qd_tensor_clear(&l->layers[k].bias);
    }
    for (int k = 0; k < l->n_quantizers; k++) {
        qd_histogram_free(l->quantizers[k].seen);
        for (int g = 0; l->quantizers[k].seen_in && g < l->n_groups; g++)
            qd_histogram_free(l->quantizers[k].seen_in[g]);
        qd_free(l->quantizers[k].seen_in);
        qd_free(l->quantizers[k].sum);
    }
    qd_free(l->group_until);
    qd_free(l->layers);
    qd_free(l->attentions);
    qd_free(l->quantizers);
    qd_free(l);
}
