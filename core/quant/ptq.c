/* ptq.c - post-training quantization of a denoiser, stage by stage (qncd.md 1): the order below must stay, later stages live on what
 * earlier ones made. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/qncd_int.h"

/* What the parameters ask for. */
typedef struct ptq {
    qd_ptq_stages stages;
    qd_smooth_options smooth;
    bool balanced;                     /* smoothing: factors tried layer by layer */
    bool reconstruct, reconstruct_few; /* learned rounding: always; where a layer has 4 bits */
    double size_budget;                /* share of the float network's bytes; 0 = the same bits everywhere */
    qd_mixed_options mixed;
    qd_low_rank_options low_rank; /* rank 0 = no branches */
    qd_recon_options recon;
    qd_noise_options noise;
    int groups;      /* of time steps with ranges of their own; 1 = none */
    bool time_table; /* what depends on the time step alone becomes a table */
    int weight_bits, activation_bits;
    bool search_weights;
    qd_range_rule range; /* of activations */
    qd_layout_options layout;
    int calibration_steps;
    int64_t measure_samples;
    int map_steps; /* columns of the noise map; 0 = none */
    qd_trajectories trajectories;
} ptq;

/* Rows that not every method has. */
static bool has(const qd_params *p, const char *row)
{
    return qd_param_find(qd_params_rows(p), row) != NULL;
}

static bool is_choice(const qd_params *p, const char *row, const char *choice)
{
    return has(p, row) && strcmp(qd_params_string(p, row), choice) == 0;
}

static void read_smoothing(const qd_params *p, ptq *o)
{
    if (!o->stages.smooth)
        return;
    o->smooth = (qd_smooth_options){ .gamma = is_choice(p, "smooth_gamma", "include"),
                                     .pow2 = qd_params_bool(p, "smooth_pow2") };
    o->balanced = is_choice(p, "smoothing", "balanced");
}

static void read_rounding(const qd_params *p, ptq *o)
{
    if (!has(p, "rounding"))
        return;
    const bool full = is_choice(p, "recon_profile", "full");
    const int64_t iterations = qd_params_int(p, "recon_iterations"), batch = qd_params_int(p, "recon_batch");
    const bool chosen = is_choice(p, "rounding", "auto");
    o->reconstruct = chosen ? o->weight_bits <= 4 : !is_choice(p, "rounding", "nearest");
    o->reconstruct_few = chosen;
    o->recon = (qd_recon_options){ .how = is_choice(p, "rounding", "gptq")    ? QD_RECON_GPTQ
                                          : is_choice(p, "rounding", "layer") ? QD_RECON_LAYER
                                                                              : QD_RECON_BLOCK,
                                   .iterations = (int)(iterations ? iterations
                                                       : full     ? 20000
                                                                  : 1000),
                                   .batch = (int)(batch  ? batch
                                                  : full ? 32
                                                         : 8),
                                   .lr = 0, /* by the iterations: 1e-3 for the full profile */
                                   .lambda = 0.01,
                                   .b_start = 20,
                                   .b_end = 2,
                                   .warmup = full ? 0.2 : 0.1,
                                   .settled = full ? 1 : 0.995 };
}

static void read_budget(const qd_params *p, const qd_graph *g, ptq *o)
{
    if (!has(p, "size_budget"))
        return;
    o->size_budget = qd_params_number(p, "size_budget");
    o->mixed = (qd_mixed_options){ .budget_bytes = (uint64_t)(o->size_budget * (double)qd_graph_param_bytes(g)),
                                   .min_bits = (int)qd_params_int(p, "min_bits"),
                                   .max_bits = (int)qd_params_int(p, "max_bits"),
                                   .search_weights = o->search_weights };
    /* Whether rounding is learned by itself goes by the bits that are chosen. */
    if (o->size_budget > 0 && o->reconstruct_few)
        o->reconstruct = false;
}

static qd_status read_low_rank(const qd_params *p, ptq *o, qd_err *err)
{
    if (!has(p, "low_rank") || qd_params_int(p, "low_rank") == 0)
        return QD_OK;
    if (o->weight_bits > 4 || o->size_budget > 0)
        return qd_fail(
            err, QD_E_INVALID,
            "params.low_rank is for weight_bits 4 without size_budget: layers of more bits have no use for it");
    o->low_rank = (qd_low_rank_options){ .rank = (int)qd_params_int(p, "low_rank"),
                                         .weight_bits = o->weight_bits,
                                         .search_weights = o->search_weights };
    return QD_OK;
}

static void read_noise(const qd_params *p, ptq *o)
{
    if (o->stages.correction == QD_CORRECT_NONE || !has(p, "reference_samples"))
        return;
    o->noise = (qd_noise_options){ .samples = qd_params_int(p, "reference_samples"),
                                   .interval = (int)qd_params_int(p, "probe_interval"),
                                   .paper_offset = is_choice(p, "probe_offset", "paper"),
                                   .by_channel = is_choice(p, "probe_grain", "channel"),
                                   .kappa = qd_params_number(p, "kappa"),
                                   .mu_max = qd_params_number(p, "mu_max") };
}

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
        .stages = o->stages,
        .weight_bits = (int)qd_params_int(p, "weight_bits"),
        .activation_bits = (int)qd_params_int(p, "activation_bits"),
        .search_weights = strcmp(qd_params_string(p, "weight_range"), "mse") == 0,
        .range = qd_range_rule_of(qd_params_string(p, "activation_range")),
        .layout = { .skip = qd_params_string(p, "skip_layers"),
                    .split_shortcut = qd_params_bool(p, "split_shortcut"),
                    .float_edges = strcmp(qd_params_string(p, "edge_layers"), "int8") != 0,
                    .w8_edges = strcmp(qd_params_string(p, "edge_layers"), "w8") == 0,
                    .w8_time = strcmp(qd_params_string(p, "time_layers"), "w8") == 0,
                    .group_size = qd_params_int(p, "group_size"),
                    .transformer =
                        (qd_transformer_policy)qd_transformer_policy_find(qd_params_string(p, "transformer")),
                    .softmax_bits = (int)qd_params_int(p, "softmax_bits") },
        .calibration_steps = (int)qd_params_int(p, "calibration_steps"),
        .measure_samples = qd_params_int(p, "measure_samples"),
        .map_steps = (int)qd_params_int(p, "noise_map_steps"),
        .trajectories = { .graph = task->graph,
                          .schedule = task->schedule,
                          .sampler = qd_sampler_find(qd_params_string(p, "sampler")),
                          .options = { .steps = (int)steps,
                                       .clip = strcmp(clip, "on") == 0    ? 1
                                               : strcmp(clip, "off") == 0 ? 0
                                                                          : -1,
                                       .seed = run ? run->seed : 0,
                                       .condition = task->condition },
                          .samples = qd_params_int(p, "calibration_samples"),
                          .phase = "trajectories" },
    };
    o->range.bits = o->activation_bits;
    o->range.symmetric = qd_params_bool(p, "symmetric_activations");
    read_smoothing(p, o);
    read_rounding(p, o);
    read_noise(p, o);
    read_budget(p, task->graph, o);
    o->groups = has(p, "activation_groups") ? (int)qd_params_int(p, "activation_groups") : 1;
    if (o->calibration_steps < o->groups) /* every group has a step of its own */
        o->calibration_steps = o->groups;
    o->time_table = has(p, "time_table") && qd_params_bool(p, "time_table");
    return read_low_rank(p, o, err);
}

static qd_status measure(const ptq *o, const qd_graph *quantized, const qd_run *run, qd_quant_report *report,
                         qd_err *err)
{
    /* On samples the calibration has not seen; at up to 50 steps of the schedule. */
    qd_trajectories j = o->trajectories;
    j.phase = "measure";
    j.options.first_sample = j.samples;
    j.samples = o->measure_samples;
    return qd_measure_eps(&j, quantized, report->correction, (j.options.steps + 49) / 50, run, report, err);
}

/* On the samples that measure. A network too large for it goes without. */
static qd_status draw_map(const ptq *o, const qd_graph *quantized, const qd_run *run, qd_quant_report *told,
                          qd_err *err)
{
    qd_trajectories j = o->trajectories;
    j.options.first_sample = j.samples;
    j.samples = o->measure_samples;
    if (o->map_steps == 0)
        return QD_OK;
    const qd_status st = qd_noise_map_make(&j, quantized, told->correction, o->map_steps, run, told, &told->map, err);
    if (st != QD_E_LIMIT)
        return st;
    qd_run_warn(run, "no noise map: %s", err ? err->text : "the budget does not hold it");
    return QD_OK;
}

/* Factors by trial (7.6), QNCD's own among the candidates where there are any. */
static qd_status balance(const ptq *o, const qd_smoothing *own, const qd_calibration_set *set, const qd_run *run,
                         qd_smoothing *out, qd_smooth_report *told, qd_err *err)
{
    const qd_balance_options b = {
        .weight_bits = o->weight_bits, .search_weights = o->search_weights, .range = o->range, .pow2 = o->smooth.pow2
    };
    qd_layout *l = NULL;
    qd_status st = qd_layout_new(o->trajectories.graph, &o->layout, &l, err);
    if (!st && o->groups > 1)
        st = qd_layout_watch_groups(l, set, o->groups, err);
    if (!st)
        st = qd_smoothing_balanced(l, set, own, &b, run, out, told, err);
    qd_layout_free(l);
    return st;
}

static qd_status smooth(const ptq *o, const int *t, const qd_calibration_set *set, const qd_run *run, qd_graph **out,
                        qd_smooth_report *told, qd_err *err)
{
    const qd_trajectories *j = &o->trajectories;
    qd_smoothing own = { 0 }, tried = { 0 };
    qd_resblock *blocks = NULL;
    int n = 0;
    qd_status st = qd_resblocks_find(j->graph, &blocks, &n, err);
    qd_free(blocks);
    if (!st && (n > 0 || !o->balanced))
        st = qd_smoothing_of_embeddings(j->graph, t, j->options.steps, &o->smooth, run, &own, err);
    if (!st && o->balanced)
        st = balance(o, &own, set, run, &tried, told, err);
    if (!st)
        st = qd_smooth_fold(j->graph, o->balanced ? &tried : &own, run, out, err);
    qd_smoothing_clear(&tried);
    qd_smoothing_clear(&own);
    return st;
}

/* Stage 3: the same function, easier to quantize; from here on it is the float reference (7.5). And what depends on the time step
 * alone as a table, when asked for (11.1). *out stays NULL when there is nothing to do. */
static qd_status prepare(const ptq *o, const qd_calibration_set *set, const qd_run *run, qd_graph **out,
                         qd_quant_report *told, qd_err *err)
{
    const qd_trajectories *j = &o->trajectories;
    qd_graph *smoothed = NULL;
    int *t = qd_calloc((size_t)j->options.steps, sizeof *t);
    if (!t)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d time steps", j->options.steps);
    qd_status st = qd_timesteps(j->schedule, j->options.spacing, j->options.steps, t, err);
    if (!st && o->stages.smooth)
        st = smooth(o, t, set, run, &smoothed, &told->smooth, err);
    if (!st && o->time_table) {
        st = qd_time_table(smoothed ? smoothed : j->graph, j->schedule, t, j->options.steps, run, out, err);
    } else if (!st) {
        *out = smoothed;
        smoothed = NULL;
    }
    qd_graph_free(smoothed);
    qd_free(t);
    return st;
}

/* Branches beside layers of few bits: *graph becomes the network with them. */
static qd_status branch(const ptq *o, qd_graph **graph, const qd_run *run, qd_low_rank_report *told, qd_err *err)
{
    qd_layout *l = NULL;
    qd_graph *branched = NULL;
    qd_status st = qd_layout_new(*graph ? *graph : o->trajectories.graph, &o->layout, &l, err);
    if (!st)
        st = qd_low_rank_branch(l, &o->low_rank, run, &branched, told, err);
    qd_layout_free(l);
    if (!st) {
        qd_graph_free(*graph);
        *graph = branched;
    }
    return st;
}

static bool has_few_bits(const qd_layout *l)
{
    for (int k = 0; k < l->n_layers; k++)
        if (!l->layers[k].note && l->layers[k].weight_bits && l->layers[k].weight_bits <= 4)
            return true;
    return false;
}

/* Stages 4 to 7, on a layout: bits, weights, learned rounding, ranges. */
static qd_status choose_codes(const ptq *o, qd_layout *layout, const qd_calibration_set *set, const qd_run *run,
                              qd_quant_report *told, qd_err *err)
{
    qd_status st = o->groups > 1 ? qd_layout_watch_groups(layout, set, o->groups, err) : QD_OK;
    if (!st && o->size_budget > 0)
        st = qd_layout_choose_bits(layout, set, &o->mixed, run, &told->mixed, err);
    if (!st)
        st = qd_layout_quantize_weights(layout, o->weight_bits, o->search_weights, run, err);
    if (!st && (o->reconstruct || (o->reconstruct_few && has_few_bits(layout))))
        st = qd_layout_reconstruct(layout, set, &o->recon, run, &told->recon, err);
    if (!st)
        st = qd_layout_observe(layout, set, run, err);
    if (!st)
        st = qd_layout_choose_maps(layout, &o->range, run, err);
    return st;
}

/* What sampling has to know beside the graph. */
static qd_status correct(const ptq *o, const qd_layout *layout, const qd_graph *quantized, const qd_run *run,
                         qd_correction **out, qd_err *err)
{
    qd_status st = qd_correction_new(&o->noise, o->stages.correction, &o->trajectories, out, err);
    if (!st && layout->n_groups > 0)
        st = qd_layout_group_maps(layout, &o->range, quantized, *out, err);
    return st ? st : qd_noise_collect(*out, &o->noise, &o->trajectories, quantized, run, err);
}

qd_status qd_ptq_run(const qd_ptq_stages *stages, const qd_quant_task *task, const qd_run *run, qd_graph **out,
                     qd_quant_report *report, qd_err *err)
{
    ptq o = { .stages = *stages };
    qd_layout *layout = NULL;
    qd_graph *prepared = NULL, *quantized = NULL;
    qd_calibration_set set = { 0 };
    qd_quant_report told = { 0 };

    qd_status st = read_task(task, run, &o, err);
    if (st)
        goto out;
    st = qd_calibration_set_make(&o.trajectories, o.calibration_steps, run, &set, err);
    if (st)
        goto out;
    if ((o.stages.smooth || o.time_table) && (st = prepare(&o, &set, run, &prepared, &told, err)))
        goto out;
    if (o.low_rank.rank && (st = branch(&o, &prepared, run, &told.low_rank, err)))
        goto out;
    const qd_graph *reference = prepared ? prepared : task->graph;
    st = qd_layout_new(reference, &o.layout, &layout, err);
    if (st)
        goto out;
    st = choose_codes(&o, layout, &set, run, &told, err);
    if (st)
        goto out;
    qd_run_progress(run, "rewrite", NULL, 0, 1);
    st = qd_layout_apply(layout, &quantized, err);
    if (st)
        goto out;
    st = qd_layout_report(layout, o.weight_bits, o.activation_bits, run, &told, err);
    if (st)
        goto out;
    if (o.stages.correction != QD_CORRECT_NONE || layout->n_groups > 0)
        st = correct(&o, layout, quantized, run, &told.correction, err);
    if (st)
        goto out;
    told.calibration_steps = set.steps;
    told.calibration_samples = (int)set.samples;
    told.float_bytes = qd_graph_param_bytes(task->graph);
    told.quantized_bytes = qd_graph_param_bytes(quantized);
    st = measure(&o, quantized, run, &told, err);
    if (st || (st = draw_map(&o, quantized, run, &told, err)))
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
    qd_graph_free(prepared);
    return st;
}
