/* ptq_data.c - post-training quantization of a classifier with a calibration set: fold norms, watch ranges on real pictures, place
 * quantizers, correct what rounding moved. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "metrics/metrics.h"
#include "quant/quant_int.h"

enum { BATCH = 32 };

static const char *const weight_choices[] = { "4", "6", "8", NULL };
static const char *const activation_choices[] = { "6", "8", NULL };
static const char *const group_choices[] = { "0", "32", "64", "128", NULL };
static const char *const weight_ranges[] = { "minmax", "mse", NULL };
static const char *const activation_ranges[] = { "minmax", "percentile", "mse", NULL };
static const char *const edge_choices[] = { "int8", "w8", "float", NULL };

/* clang-format off */
static const qd_param ptq_params[] = {
    { .name = "weight_bits", .type = QD_PARAM_INT, .fallback = "8", .choices = weight_choices,
      .summary = "Bits of each weight." },
    { .name = "activation_bits", .type = QD_PARAM_INT, .fallback = "8", .choices = activation_choices,
      .summary = "Bits of each layer input." },
    { .name = "group_size", .type = QD_PARAM_INT, .fallback = "0", .choices = group_choices,
      .summary = "Input channels whose weights share a scale; 0: all of an output channel, which is the fastest." },
    { .name = "weight_range", .type = QD_PARAM_CHOICE, .fallback = "mse", .choices = weight_ranges,
      .summary = "How the range of each output channel's weights is chosen: its largest value, or a search for the least error." },
    { .name = "activation_range", .type = QD_PARAM_CHOICE, .fallback = "mse", .choices = activation_ranges,
      .summary = "How the range of each layer input is chosen: everything seen, all but the tails, or a search for the least error." },
    { .name = "percentile", .type = QD_PARAM_NUMBER, .fallback = "99.99", .min = 50, .max = 100,
      .summary = "With activation_range percentile: how much of what was seen lies below the upper end, in %." },
    { .name = "symmetric_activations", .type = QD_PARAM_BOOL, .fallback = "false",
      .summary = "Signed codes around zero for layer inputs instead of codes that fit the range at both ends." },
    { .name = "calibration_samples", .type = QD_PARAM_INT, .fallback = "512", .min = 1, .max = 65536,
      .summary = "How many pictures of the data set are watched, drawn by the seed." },
    { .name = "mean", .type = QD_PARAM_STRING, .fallback = "0", .max = 200,
      .summary = "What the network wants subtracted from pixels in 0..1: one number, or one for each channel with commas between." },
    { .name = "std", .type = QD_PARAM_STRING, .fallback = "1", .max = 200,
      .summary = "What it then wants them divided by: one number, or one for each channel with commas between." },
    { .name = "bias_correction", .type = QD_PARAM_BOOL, .fallback = "true",
      .summary = "Let biases take away what rounding the weights adds on average." },
    { .name = "equalize", .type = QD_PARAM_BOOL, .fallback = "false",
      .summary = "Scale channels between neighbouring layers so that they use their codes alike; for layers whose channels differ much." },
    { .name = "first_layer", .type = QD_PARAM_CHOICE, .fallback = "int8", .choices = edge_choices,
      .summary = "Layers that read the picture: on codes, with 8-bit weights computed in float, or left in float." },
    { .name = "last_layer", .type = QD_PARAM_CHOICE, .fallback = "int8", .choices = edge_choices,
      .summary = "Layers that make an output: on codes, with 8-bit weights computed in float, or left in float." },
    { .name = "skip_layers", .type = QD_PARAM_STRING, .fallback = "", .max = 65536,
      .summary = "Names of layers to leave in float, with commas between." },
    { .name = "sensitivity_samples", .type = QD_PARAM_INT, .fallback = "0", .min = 0, .max = 4096,
      .summary = "On so many of the calibration pictures, find out what each layer costs when it alone is quantized; 0 = do not." },
    { 0 }
};
/* clang-format on */

typedef struct ptq {
    const qd_quant_task *task;
    const qd_run *run;
    qd_classifier net; /* of the task's graph */
    qd_pixel_scale scale;
    int weight_bits, activation_bits;
    int64_t *image; // [images] drawn for calibration
    int64_t images;
    qd_graph *folded, *equal; /* the last that is there is what gets quantized */
    qd_layout *layout;
} ptq;

static void ptq_clear(ptq *p)
{
    qd_layout_free(p->layout);
    qd_graph_free(p->equal);
    qd_graph_free(p->folded);
    qd_free(p->image);
}

static qd_status read_task(const qd_quant_task *task, const qd_run *run, ptq *p, qd_err *err)
{
    const qd_params *o = task->params;
    if (task->role != QD_ROLE_CLASSIFIER || !task->data)
        return qd_fail(err, QD_E_INVALID, "this method needs a classifier and a data set");
    for (qd_node_id id = 0; id < qd_graph_size(task->graph); id++) {
        const qd_node *n = qd_graph_node(task->graph, id);
        if (n->op == &qd_op_quantize || n->op == &qd_op_qconv2d || n->op == &qd_op_qlinear)
            return qd_fail(err, QD_E_INVALID, "the model is quantized already: '%s' is a %s", n->name, n->op->name);
    }
    *p = (ptq){ .task = task,
                .run = run,
                .weight_bits = (int)qd_params_int(o, "weight_bits"),
                .activation_bits = (int)qd_params_int(o, "activation_bits") };
    qd_status st = qd_classifier_of(task->graph, &p->net, err);
    if (!st)
        st = qd_classifier_fits(&p->net, task->data, false, err);
    if (!st)
        st = qd_pixel_scale_parse(qd_params_string(o, "mean"), qd_params_string(o, "std"), p->net.channels, &p->scale,
                                  err);
    if (st)
        return st;
    const int64_t wanted = qd_params_int(o, "calibration_samples");
    p->image = qd_calloc((size_t)wanted, sizeof *p->image);
    if (!p->image)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld calibration pictures", (long long)wanted);
    p->images = qd_dataset_draw(p->image, task->data, wanted, run ? run->seed : 0);
    return QD_OK;
}

/* --- which layers --- */

static const char note_first[] = "reads the picture: left in float on request";
static const char note_last[] = "makes an output: left in float on request";
static const char note_w8[] = "weights in 8 bits on request, computed in float";

static bool reads_input(const qd_layout *l, const qd_node *n)
{
    const qd_node *x = qd_graph_node(l->graph, n->input[0]);
    while (x->op == &qd_op_affine || x->op == &qd_op_pad)
        x = qd_graph_node(l->graph, x->input[0]);
    return x->op == &qd_op_input;
}

static bool makes_output(const qd_layout *l, qd_node_id id)
{
    for (int k = 0; k < qd_graph_outputs(l->graph); k++)
        if (qd_graph_output_at(l->graph, k) == id)
            return true;
    return false;
}

static void apply_policy(qd_quant_layer *layer, const char *choice, const char *note)
{
    if (layer->note || strcmp(choice, "int8") == 0)
        return;
    layer->weight_only = strcmp(choice, "w8") == 0;
    layer->note = layer->weight_only ? note_w8 : note;
    layer->part[0].quantizer = -1;
    if (!layer->weight_only)
        layer->n_parts = 0;
}

static qd_status make_layout(ptq *p, const qd_graph *g, qd_err *err)
{
    const qd_params *o = p->task->params;
    const qd_layout_options options = { .input = qd_graph_node(g, qd_graph_input_at(g, 0))->name,
                                        .skip = qd_params_string(o, "skip_layers"),
                                        .group_size = qd_params_int(o, "group_size") };
    qd_status st = qd_layout_new(g, &options, &p->layout, err);
    if (st)
        return st;
    int left = 0;
    for (int k = 0; k < p->layout->n_layers; k++) {
        qd_quant_layer *layer = &p->layout->layers[k];
        if (reads_input(p->layout, qd_graph_node(g, layer->id)))
            apply_policy(layer, qd_params_string(o, "first_layer"), note_first);
        if (makes_output(p->layout, layer->id))
            apply_policy(layer, qd_params_string(o, "last_layer"), note_last);
        left += !layer->note;
    }
    return left ? QD_OK : qd_fail(err, QD_E_INVALID, "there is no layer left to quantize");
}

/* --- ranges --- */

static qd_status calibrate(ptq *p, qd_err *err)
{
    const qd_params *o = p->task->params;
    const qd_dataset *d = p->task->data;
    int t = 0;
    qd_calibration_set set = {
        .steps = 1, .t = &t, .samples = p->images, .batch = p->images < BATCH ? p->images : BATCH
    };
    const qd_shape shape = QD_SHAPE(1, p->images, d->channels, d->height, d->width);
    qd_status st = qd_tensor_init(&set.x, QD_F32, &shape, qd_run_budget(p->run), err);
    if (st)
        return qd_fail_in(err, st, "calibration set");
    qd_dataset_floats(qd_f32(&set.x), d, p->image, 0, p->images, &p->scale);
    if (qd_params_bool(o, "bias_correction"))
        st = qd_layout_watch_means(p->layout, err);
    if (!st)
        st = qd_layout_observe(p->layout, &set, p->run, err);
    qd_tensor_clear(&set.x);
    if (st)
        return st;
    qd_range_rule rule = qd_range_rule_of(qd_params_string(o, "activation_range"));
    rule.percentile = qd_params_number(o, "percentile");
    rule.bits = p->activation_bits;
    rule.symmetric = qd_params_bool(o, "symmetric_activations");
    return qd_layout_choose_maps(p->layout, &rule, p->run, err);
}

/* --- sensitivity: each layer alone --- */

typedef struct alone {
    qd_classify_job job;
    float *reference, *logits; // [count, classes]
} alone;

static qd_status measure_layer(ptq *p, alone *a, int k, qd_layer_report *row, qd_err *err)
{
    static const char other[] = "another layer's turn";
    qd_layout *l = p->layout;
    qd_graph *g = NULL;
    qd_classifier net;
    /* A layout with everything else in float, sharing what this one owns. */
    qd_quant_layer *layers = qd_calloc((size_t)l->n_layers, sizeof *layers), *mine = l->layers;
    if (!layers)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d layers", l->n_layers);
    memcpy(layers, mine, (size_t)l->n_layers * sizeof *layers);
    for (int i = 0; i < l->n_layers; i++) {
        if (i == k)
            continue;
        layers[i].note = other;
        layers[i].weight_only = false;
    }
    l->layers = layers;
    qd_status st = qd_layout_apply(l, &g, err);
    l->layers = mine;
    qd_free(layers);
    if (!st)
        st = qd_classifier_of(g, &net, err);
    if (!st)
        st = qd_classify(&net, &a->job, p->run, a->logits, NULL, err);
    if (!st) {
        const int64_t n = a->job.count, classes = net.classes;
        int64_t same = 0;
        for (int64_t i = 0; i < n; i++)
            same += qd_top1(a->reference + i * classes, classes) == qd_top1(a->logits + i * classes, classes);
        row->alone = true;
        row->alone_sqnr_db = qd_sqnr_db(a->reference, a->logits, n * classes);
        row->alone_agreement = (double)same / (double)n;
    }
    qd_graph_free(g);
    return st;
}

static qd_status measure_alone(ptq *p, qd_quant_report *report, qd_err *err)
{
    const int64_t wanted = qd_params_int(p->task->params, "sensitivity_samples");
    const int64_t n = wanted < p->images ? wanted : p->images;
    qd_run quiet = p->run ? *p->run : (qd_run){ 0 };
    const qd_run *run = p->run;
    if (n == 0)
        return QD_OK;
    alone a = { .job = { .data = p->task->data, .image = p->image, .count = n, .batch = BATCH, .scale = &p->scale } };
    const size_t count = (size_t)(n * p->net.classes);
    a.reference = qd_calloc(count, sizeof *a.reference);
    a.logits = qd_calloc(count, sizeof *a.logits);
    quiet.progress = NULL; /* ours is told per layer */
    p->run = &quiet;
    qd_status st = a.reference && a.logits ? qd_classify(&p->net, &a.job, &quiet, a.reference, NULL, err)
                                           : qd_fail(err, QD_E_NOMEM, "no memory for %zu logits", count);
    /* Rows of the report are layers in their order: classifiers have no split ones. */
    for (int k = 0; k < p->layout->n_layers && !st; k++) {
        if (!p->layout->layers[k].note)
            st = measure_layer(p, &a, k, &report->layers[k], err);
        qd_run_progress(run, "sensitivity", report->layers[k].name, k + 1, p->layout->n_layers);
    }
    p->run = run;
    qd_free(a.reference);
    qd_free(a.logits);
    return st;
}

/* --- the whole --- */

static qd_status ptq_run(const qd_quant_task *task, const qd_run *run, qd_graph **out, qd_quant_report *report,
                         qd_err *err)
{
    ptq p = { 0 };
    qd_graph *quantized = NULL;
    qd_quant_report told = { .eps_sqnr_mean_db = NAN };
    qd_status st = read_task(task, run, &p, err);
    if (st)
        goto out;
    qd_run_progress(run, "fold", NULL, 0, 1);
    st = qd_fold_norms(task->graph, qd_run_budget(run), &told.norms_folded, &p.folded, err);
    if (!st && qd_params_bool(task->params, "equalize"))
        st = qd_equalize(p.folded, qd_run_budget(run), &told.pairs_equalized, &p.equal, err);
    if (!st)
        st = make_layout(&p, p.equal ? p.equal : p.folded, err);
    if (!st)
        st = calibrate(&p, err);
    if (!st)
        st = qd_layout_quantize_weights(p.layout, p.weight_bits,
                                        strcmp(qd_params_string(task->params, "weight_range"), "mse") == 0, run, err);
    if (!st && qd_params_bool(task->params, "bias_correction"))
        st = qd_layout_correct_bias(p.layout, run, &told.biases_corrected, err);
    if (st)
        goto out;
    qd_run_progress(run, "rewrite", NULL, 0, 1);
    st = qd_layout_apply(p.layout, &quantized, err);
    if (!st)
        st = qd_layout_report(p.layout, p.weight_bits, p.activation_bits, run, &told, err);
    if (!st)
        st = measure_alone(&p, &told, err);
    if (st)
        goto out;
    told.calibration_steps = 1;
    told.calibration_samples = (int)p.images;
    told.float_bytes = qd_graph_param_bytes(task->graph);
    told.quantized_bytes = qd_graph_param_bytes(quantized);
    *out = quantized;
    quantized = NULL;
    qd_quant_report_clear(report);
    *report = told;
    told = (qd_quant_report){ 0 };
out:
    qd_quant_report_clear(&told);
    qd_graph_free(quantized);
    ptq_clear(&p);
    return st;
}

const qd_method qd_method_ptq = {
    .name = "ptq",
    .summary = "Classifiers: ranges watched on pictures of a data set, norms folded, biases corrected.",
    .params = ptq_params,
    .needs = QD_NEEDS_DATA,
    .role = QD_ROLE_CLASSIFIER,
    .run = ptq_run,
};
