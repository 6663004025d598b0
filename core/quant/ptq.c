/* ptq.c - post-training quantization of a denoiser: watch ranges on its own trajectories, place quantizers, say what it cost. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/quant_int.h"

static const char *const weight_choices[] = { "4", "6", "8", NULL };
static const char *const activation_choices[] = { "6", "8", NULL };
static const char *const group_choices[] = { "0", "32", "64", "128", NULL };
static const char *const time_choices[] = { "w8", "float", NULL };
static const char *const range_choices[] = { "minmax", "mse", NULL };
static const char *const sampler_choices[] = { "ddim", "ddpm", NULL };
static const char *const edge_choices[] = { "w8", "float", "int8", NULL };
static const char *const clip_choices[] = { "auto", "on", "off", NULL };

/* clang-format off */
#define PTQ_PARAMS(range_) \
    { .name = "weight_bits", .type = QD_PARAM_INT, .fallback = "8", .choices = weight_choices, \
      .summary = "Bits of each weight." }, \
    { .name = "activation_bits", .type = QD_PARAM_INT, .fallback = "8", .choices = activation_choices, \
      .summary = "Bits of each layer input." }, \
    { .name = "group_size", .type = QD_PARAM_INT, .fallback = "0", .choices = group_choices, \
      .summary = "Input channels whose weights share a scale; 0: all of an output channel, which is the fastest." }, \
    { .name = "weight_range", .type = QD_PARAM_CHOICE, .fallback = range_, .choices = range_choices, \
      .summary = "How the range of each output channel's weights is chosen: its largest value, or a search for the least error." }, \
    { .name = "activation_range", .type = QD_PARAM_CHOICE, .fallback = range_, .choices = range_choices, \
      .summary = "How the range of each layer input is chosen: everything seen, or a search for the least error." }, \
    { .name = "symmetric_activations", .type = QD_PARAM_BOOL, .fallback = "false", \
      .summary = "Signed codes around zero for layer inputs instead of codes that fit the range at both ends." }, \
    { .name = "sampler", .type = QD_PARAM_CHOICE, .fallback = "ddim", .choices = sampler_choices, \
      .summary = "The sampler whose trajectories calibrate and measure; take the one that will be used." }, \
    { .name = "steps", .type = QD_PARAM_INT, .fallback = "50", .min = 1, .max = 10000, \
      .summary = "Sampling steps of those trajectories." }, \
    { .name = "calibration_samples", .type = QD_PARAM_INT, .fallback = "32", .min = 16, .max = 4096, \
      .summary = "How many trajectories are watched." }, \
    { .name = "calibration_steps", .type = QD_PARAM_INT, .fallback = "10", .min = 2, .max = 1000, \
      .summary = "At how many steps of each trajectory, evenly from the first to the last." }, \
    { .name = "clip", .type = QD_PARAM_CHOICE, .fallback = "auto", .choices = clip_choices, \
      .summary = "Clip the predicted image while sampling: as the model's scheduler says, always, or never." }, \
    { .name = "measure_samples", .type = QD_PARAM_INT, .fallback = "8", .min = 1, .max = 1024, \
      .summary = "Trajectories, other than those of the calibration, on which the result is measured." }, \
    { .name = "edge_layers", .type = QD_PARAM_CHOICE, .fallback = "float", .choices = edge_choices, \
      .summary = "The layers that read and make the image itself: w8 keeps their weights in 8 bits and computes in float, int8 computes " \
                 "on codes, which costs much quality there and saves next to nothing." }, \
    { .name = "time_layers", .type = QD_PARAM_CHOICE, .fallback = "w8", .choices = time_choices, \
      .summary = "The layers that depend on the time step only: always computed in float, w8 keeps their weights in 8 bits." }, \
    { .name = "skip_layers", .type = QD_PARAM_STRING, .fallback = "", .max = 65536, \
      .summary = "Names of layers to leave in float, with commas between." }, \
    { .name = "split_shortcut", .type = QD_PARAM_BOOL, .fallback = "true", \
      .summary = "Give both halves of a concatenated shortcut input ranges of their own." }, \
    { 0 }
/* clang-format on */

static const qd_param minmax_params[] = { PTQ_PARAMS("minmax") };
static const qd_param mse_params[] = { PTQ_PARAMS("mse") };

/* What the parameters ask for. */
typedef struct ptq {
    int weight_bits, activation_bits;
    bool search_weights, search_activations, symmetric;
    qd_layout_options layout;
    int calibration_steps;
    int64_t measure_samples;
    qd_trajectories trajectories;
} ptq;

static qd_status read_task(const qd_quant_task *task, const qd_run *run, ptq *o, qd_err *err)
{
    const qd_params *p = task->params;
    if (task->role != QD_ROLE_DENOISER || !task->schedule)
        return qd_fail(err, QD_E_INVALID, "this method needs a denoiser and its noise schedule");
    for (qd_node_id id = 0; id < qd_graph_size(task->graph); id++) {
        const qd_node *n = qd_graph_node(task->graph, id);
        if (n->op == &qd_op_quantize || n->op == &qd_op_qconv2d || n->op == &qd_op_qlinear)
            return qd_fail(err, QD_E_INVALID, "the model is quantized already: '%s' is a %s", n->name, n->op->name);
    }
    const int64_t steps = qd_params_int(p, "steps");
    if (steps > task->schedule->train_steps)
        return qd_fail(err, QD_E_INVALID, "params.steps is %lld, more than the %d time steps of the model",
                       (long long)steps, task->schedule->train_steps);

    const char *clip = qd_params_string(p, "clip");
    *o = (ptq){
        .weight_bits = (int)qd_params_int(p, "weight_bits"),
        .activation_bits = (int)qd_params_int(p, "activation_bits"),
        .search_weights = strcmp(qd_params_string(p, "weight_range"), "mse") == 0,
        .search_activations = strcmp(qd_params_string(p, "activation_range"), "mse") == 0,
        .symmetric = qd_params_bool(p, "symmetric_activations"),
        .layout = { .skip = qd_params_string(p, "skip_layers"),
                    .split_shortcut = qd_params_bool(p, "split_shortcut"),
                    .float_edges = strcmp(qd_params_string(p, "edge_layers"), "int8") != 0,
                    .w8_edges = strcmp(qd_params_string(p, "edge_layers"), "w8") == 0,
                    .w8_time = strcmp(qd_params_string(p, "time_layers"), "w8") == 0,
                    .group_size = qd_params_int(p, "group_size") },
        .calibration_steps = (int)qd_params_int(p, "calibration_steps"),
        .measure_samples = qd_params_int(p, "measure_samples"),
        .trajectories = { .graph = task->graph,
                          .schedule = task->schedule,
                          .sampler = qd_sampler_find(qd_params_string(p, "sampler")),
                          .options = { .steps = (int)steps,
                                       .clip = strcmp(clip, "on") == 0    ? 1
                                               : strcmp(clip, "off") == 0 ? 0
                                                                          : -1,
                                       .seed = run ? run->seed : 0 },
                          .samples = qd_params_int(p, "calibration_samples"),
                          .phase = "trajectories" },
    };
    return QD_OK;
}

static qd_status choose_maps(qd_layout *l, const ptq *o, const qd_run *run, qd_err *err)
{
    for (int k = 0; k < l->n_quantizers; k++) {
        qd_quantizer *q = &l->quantizers[k];
        const char *name = qd_graph_node(l->graph, q->value)->name;
        qd_status st = qd_run_check(run, err);
        if (st)
            return st;
        st = o->search_activations ? qd_histogram_search(q->seen, o->activation_bits, o->symmetric, &q->map, err)
                                   : qd_histogram_fit(q->seen, o->activation_bits, o->symmetric, &q->map, err);
        if (st)
            return qd_fail_in(err, st, "value '%s' over the calibration set", name);
        q->sqnr_db = qd_histogram_sqnr_db(q->seen, &q->map);
        qd_run_progress(run, "search", name, k + 1, l->n_quantizers + l->n_layers);
    }
    return QD_OK;
}

/* Multiply-adds of one image. */
static int64_t macs_of(const qd_graph *g, const qd_node *n, const qd_shape *shapes, qd_node_id id)
{
    qd_operand in[QD_MAX_INPUTS] = { 0 };
    for (int k = 0; k < QD_MAX_INPUTS; k++) {
        in[k].shape.rank = -1;
        if (k < n->n_inputs && n->input[k] >= 0) {
            in[k].dtype = qd_graph_node(g, n->input[k])->dtype;
            in[k].shape = shapes[n->input[k]];
        }
    }
    return n->op->macs(n, in, &shapes[id]);
}

/* One row for a layer in float (part NULL), or for each part of a quantized one. */
static void report_row(const qd_layout *l, const qd_quant_layer *layer, int part, const ptq *o, int64_t macs,
                       qd_layer_report *r)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const int64_t weights = qd_tensor_count(&qd_graph_node(l->graph, n->input[1])->value);
    *r = (qd_layer_report){ .op = n->op->name,
                            .weight_sqnr_db = NAN,
                            .input_sqnr_db = NAN,
                            .macs = macs,
                            .weights = weights,
                            .note = layer->note ? layer->note : "" };
    snprintf(r->name, sizeof r->name, "%s", n->name);
    if (layer->weight_only) {
        r->weight_bits = 8;
        r->weight_sqnr_db = layer->part[0].sqnr_db;
    }
    if (layer->note)
        return;

    const qd_part *p = &layer->part[part];
    const qd_quantizer *q = &l->quantizers[p->quantizer];
    if (layer->n_parts > 1) {
        const int64_t all = layer->part[0].channels + layer->part[1].channels;
        snprintf(r->name, sizeof r->name, part ? "%s.split1" : "%s.split0", n->name);
        r->macs = macs / all * p->channels; /* exact: every product belongs to one input channel */
        r->weights = weights / all * p->channels;
    }
    r->weight_bits = o->weight_bits;
    r->group_size = p->group_size;
    r->activation_bits = o->activation_bits;
    r->scale = q->map.scale;
    r->zero = q->map.zero;
    qd_histogram_range(q->seen, &r->lo, &r->hi);
    r->weight_sqnr_db = p->sqnr_db;
    r->input_sqnr_db = q->sqnr_db;
}

static qd_status report_layers(const qd_layout *l, const ptq *o, const qd_run *run, qd_quant_report *report,
                               qd_err *err)
{
    int rows = 0;
    qd_status st;
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(l->graph), sizeof *shapes);
    for (int k = 0; k < l->n_layers; k++)
        rows += l->layers[k].note ? 1 : l->layers[k].n_parts;
    report->layers = qd_calloc((size_t)rows, sizeof *report->layers);
    if (!shapes || !report->layers) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a report of %d layers", rows);
        goto out;
    }
    st = qd_layout_shapes(l->graph, shapes, err);
    if (st)
        goto out;
    for (int k = 0; k < l->n_layers; k++) {
        const qd_quant_layer *layer = &l->layers[k];
        const int64_t macs = macs_of(l->graph, qd_graph_node(l->graph, layer->id), shapes, layer->id);
        for (int part = 0; part < (layer->note ? 1 : layer->n_parts); part++) {
            qd_layer_report *r = &report->layers[report->n_layers++];
            report_row(l, layer, part, o, macs, r);
            qd_run_layer(run, r->name, -1, r->weight_bits, r->activation_bits, r->input_sqnr_db,
                         layer->note ? (double)NAN : (double)r->lo, layer->note ? (double)NAN : (double)r->hi);
        }
    }
out:
    qd_free(shapes);
    return st;
}

static qd_status measure(const ptq *o, const qd_graph *quantized, const qd_run *run, qd_quant_report *report,
                         qd_err *err)
{
    /* On samples the calibration has not seen; at up to 50 steps of the schedule. */
    qd_trajectories j = o->trajectories;
    j.phase = "measure";
    j.options.first_sample = j.samples;
    j.samples = o->measure_samples;
    return qd_measure_eps(&j, quantized, (j.options.steps + 49) / 50, run, report, err);
}

static qd_status ptq_run(const qd_quant_task *task, const qd_run *run, qd_graph **out, qd_quant_report *report,
                         qd_err *err)
{
    ptq o;
    qd_layout *layout = NULL;
    qd_graph *quantized = NULL;
    qd_calibration_set set = { 0 };
    qd_quant_report told = { 0 };

    qd_status st = read_task(task, run, &o, err);
    if (st)
        goto out;
    st = qd_layout_new(task->graph, &o.layout, &layout, err);
    if (st)
        goto out;
    st = qd_calibration_set_make(&o.trajectories, o.calibration_steps, run, &set, err);
    if (st)
        goto out;
    st = qd_layout_observe(layout, &set, run, err);
    if (st)
        goto out;
    st = choose_maps(layout, &o, run, err);
    if (st)
        goto out;
    st = qd_layout_quantize_weights(layout, o.weight_bits, o.search_weights, run, err);
    if (st)
        goto out;
    qd_run_progress(run, "rewrite", NULL, 0, 1);
    st = qd_layout_apply(layout, &quantized, err);
    if (st)
        goto out;
    st = report_layers(layout, &o, run, &told, err);
    if (st)
        goto out;
    told.calibration_steps = set.steps;
    told.calibration_samples = (int)set.samples;
    told.float_bytes = qd_graph_param_bytes(task->graph);
    told.quantized_bytes = qd_graph_param_bytes(quantized);
    st = measure(&o, quantized, run, &told, err);
    if (st)
        goto out;

    *out = quantized;
    quantized = NULL;
    qd_quant_report_clear(report);
    *report = told;
    told = (qd_quant_report){ 0 };
out:
    qd_quant_report_clear(&told);
    qd_graph_free(quantized);
    qd_calibration_set_clear(&set);
    qd_layout_free(layout);
    return st;
}

const qd_method qd_method_minmax = {
    .name = "minmax",
    .summary = "Round to nearest over the whole range seen: the plain baseline.",
    .params = minmax_params,
    .needs = QD_NEEDS_DENOISER,
    .role = QD_ROLE_DENOISER,
    .run = ptq_run,
};

const qd_method qd_method_mse = {
    .name = "mse",
    .summary = "Round to nearest over the range of least error, for each output channel and each layer input.",
    .params = mse_params,
    .needs = QD_NEEDS_DENOISER,
    .role = QD_ROLE_DENOISER,
    .run = ptq_run,
};
