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
    const qd_range_rule rule = { .how = o.search_activations ? QD_RANGE_MSE : QD_RANGE_MINMAX,
                                 .bits = o.activation_bits,
                                 .symmetric = o.symmetric };
    st = qd_layout_choose_maps(layout, &rule, run, err);
    if (st)
        goto out;
    st = qd_layout_quantize_weights(layout, o.weight_bits, o.search_weights, run, err);
    if (st)
        goto out;
    qd_run_progress(run, "rewrite", NULL, 0, 1);
    st = qd_layout_apply(layout, &quantized, err);
    if (st)
        goto out;
    st = qd_layout_report(layout, o.weight_bits, o.activation_bits, run, &told, err);
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
