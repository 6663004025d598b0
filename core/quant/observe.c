/* observe.c - the float graph over a whole calibration set, each quantizer shown its value at every stored time step. */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/quant_int.h"

typedef struct observer {
    qd_layout *layout;
    const qd_run *run;
    const int *quantizer; // [nodes], -1 = none
    int64_t batch, valid; /* samples in a call, and how many of them count */
    int64_t done, total;  /* calls */
} observer;

static void add_sums(qd_quantizer *q, const float *data, int64_t n, const qd_shape *shape)
{
    int64_t inner = 1;
    for (int k = q->axis + 1; k < shape->rank; k++)
        inner *= shape->dim[k];
    for (int64_t k = 0; k < n; k += inner) {
        double sum = 0.0;
        for (int64_t i = 0; i < inner; i++)
            sum += data[k + i];
        q->sum[k / inner % q->channels] += sum;
    }
    q->summed += n / q->channels;
}

static void show(qd_quantizer *q, const float *data, int64_t n, const qd_shape *shape)
{
    qd_histogram_add(q->seen, data, n);
    if (q->sum)
        add_sums(q, data, n, shape);
}

static void observe(void *ctx, qd_node_id id, const float *data, const qd_shape *shape)
{
    const observer *o = ctx;
    int64_t n = 1;
    for (int k = 0; k < shape->rank; k++)
        n *= shape->dim[k];
    if (shape->rank > 0 && shape->dim[0] == o->batch)
        n = n / o->batch * o->valid;
    show(&o->layout->quantizers[o->quantizer[id]], data, n, shape);
    qd_run_progress(o->run, "calibrate", qd_graph_node(o->layout->graph, id)->name, o->done, o->total);
}

/* The inputs of the graph in its order; qd_layout_new has seen to it that there are no others. */
static void bind_inputs(const qd_layout *l, const qd_shape *sample, qd_shape *shapes, const void **values,
                        const float *x, const float *tf, const int64_t *ti)
{
    for (int k = 0; k < qd_graph_inputs(l->graph); k++) {
        const qd_node *n = qd_graph_node(l->graph, qd_graph_input_at(l->graph, k));
        if (qd_graph_input_at(l->graph, k) == l->input) {
            shapes[k] = *sample;
            values[k] = x;
        } else {
            shapes[k] = QD_SHAPE(sample->dim[0]);
            values[k] = n->dtype == QD_I64 ? (const void *)ti : (const void *)tf;
        }
    }
}

static qd_status observe_steps(observer *o, qd_plan *plan, const qd_calibration_set *set, float *x,
                               const qd_shape *shape, float *tf, int64_t *ti, const void *const *in, void *const *out,
                               qd_err *err)
{
    const qd_node_id sample = o->layout->input;
    const int64_t one = shape->dim[1] * shape->dim[2] * shape->dim[3];
    for (int k = 0; k < set->steps; k++) {
        for (int64_t first = 0; first < set->samples; first += o->batch) {
            const int64_t left = set->samples - first;
            o->valid = left < o->batch ? left : o->batch;
            const float *stored = qd_f32(&set->x) + (k * set->samples + first) * one;
            memcpy(x, stored, (size_t)(o->valid * one) * sizeof *x);
            for (int64_t b = 0; b < o->batch; b++) {
                tf[b] = (float)set->t[k];
                ti[b] = set->t[k];
            }
            /* An input is made by nobody, so the plan does not show it. */
            if (o->quantizer[sample] >= 0)
                show(&o->layout->quantizers[o->quantizer[sample]], x, o->valid * one, shape);
            qd_status st = qd_run_check(o->run, err);
            if (!st)
                st = qd_plan_run(plan, o->run, in, out, err);
            if (st)
                return st;
            o->done++;
            qd_run_progress(o->run, "calibrate", NULL, o->done, o->total);
        }
    }
    return QD_OK;
}

/* Which values the plan shall show: quantizer[] by node, observed[]; returns how many. */
static int choose_values(const qd_layout *l, int *quantizer, qd_node_id *observed)
{
    int n = 0;
    for (int k = 0; k < qd_graph_size(l->graph); k++)
        quantizer[k] = -1;
    for (int k = 0; k < l->n_quantizers; k++) {
        const qd_node_id id = l->quantizers[k].value;
        quantizer[id] = k;
        if (qd_graph_node(l->graph, id)->op != &qd_op_input)
            observed[n++] = id;
    }
    return n;
}

qd_status qd_layout_observe(qd_layout *l, const qd_calibration_set *set, const qd_run *run, qd_err *err)
{
    const qd_graph *g = l->graph;
    const size_t n = (size_t)qd_graph_size(g), n_in = (size_t)qd_graph_inputs(g), n_out = (size_t)qd_graph_outputs(g);
    const int64_t batch = set->batch ? set->batch : qd_trajectory_batch(set->samples);
    const int64_t calls = (set->samples + batch - 1) / batch * set->steps;
    qd_shape sample = qd_shape_of(4, set->x.shape.dim + 1);
    sample.dim[0] = batch;
    qd_budget *budget = qd_run_budget(run);
    qd_tensor x = { 0 }, *results = NULL;
    qd_plan *plan = NULL;
    qd_arena a;
    qd_status st;

    qd_arena_init(&a);
    int *quantizer = qd_arena_alloc(&a, n * sizeof *quantizer);
    qd_node_id *observed = qd_arena_alloc(&a, (size_t)l->n_quantizers * sizeof *observed);
    qd_shape *all = qd_arena_alloc(&a, n * sizeof *all), *shapes = qd_arena_alloc(&a, n_in * sizeof *shapes);
    const void **in = qd_arena_alloc(&a, n_in * sizeof *in);
    void **out = qd_arena_alloc(&a, n_out * sizeof *out);
    float *tf = qd_arena_alloc(&a, (size_t)batch * sizeof *tf);
    int64_t *ti = qd_arena_alloc(&a, (size_t)batch * sizeof *ti);
    results = qd_arena_alloc(&a, n_out * sizeof *results);
    if (!quantizer || !observed || !all || !shapes || !in || !out || !tf || !ti || !results) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to watch %d values", l->n_quantizers);
        goto out;
    }
    const int n_observed = choose_values(l, quantizer, observed);
    st = qd_tensor_init(&x, QD_F32, &sample, budget, err);
    if (st)
        goto out;
    bind_inputs(l, &sample, shapes, in, qd_f32(&x), tf, ti);
    st = qd_graph_shapes(g, shapes, (int)n_in, all, err);
    for (size_t k = 0; k < n_out && !st; k++) {
        const qd_node_id id = qd_graph_output_at(g, (int)k);
        st = qd_tensor_init(&results[k], qd_graph_node(g, id)->dtype, &all[id], budget, err);
        out[k] = results[k].data;
    }
    if (st)
        goto out;

    observer o = { .layout = l, .run = run, .quantizer = quantizer, .batch = batch, .total = calls };
    const qd_plan_options options = { .input_shapes = shapes,
                                      .n_inputs = (int)n_in,
                                      .threads = qd_run_threads(run),
                                      .budget = budget,
                                      .observed = observed,
                                      .n_observed = n_observed,
                                      .observe = observe,
                                      .observe_ctx = &o };
    st = qd_plan_compile(g, &options, &plan, err);
    if (!st)
        st = observe_steps(&o, plan, set, qd_f32(&x), &sample, tf, ti, in, out, err);
out:
    qd_plan_free(plan);
    for (size_t k = 0; results && k < n_out; k++)
        qd_tensor_clear(&results[k]);
    qd_tensor_clear(&x);
    qd_arena_clear(&a);
    return st;
}

qd_status qd_layout_watch_means(qd_layout *l, qd_err *err)
{
    for (int k = 0; k < l->n_quantizers; k++) {
        qd_quantizer *q = &l->quantizers[k];
        q->sum = qd_calloc((size_t)q->channels, sizeof *q->sum);
        if (!q->sum)
            return qd_fail(err, QD_E_NOMEM, "no memory for the means of %lld channels", (long long)q->channels);
    }
    return QD_OK;
}

qd_range_rule qd_range_rule_of(const char *choice)
{
    return (qd_range_rule){ .how = strcmp(choice, "mse") == 0          ? QD_RANGE_MSE
                                   : strcmp(choice, "percentile") == 0 ? QD_RANGE_PERCENTILE
                                                                       : QD_RANGE_MINMAX };
}

static qd_status choose_map(qd_quantizer *q, const qd_range_rule *r, qd_err *err)
{
    switch (r->how) {
    case QD_RANGE_MSE:
        return qd_histogram_search(q->seen, r->bits, r->symmetric, &q->map, err);
    case QD_RANGE_PERCENTILE:
        return qd_histogram_percentile(q->seen, r->percentile, r->bits, r->symmetric, &q->map, err);
    case QD_RANGE_MINMAX:
        break;
    }
    return qd_histogram_fit(q->seen, r->bits, r->symmetric, &q->map, err);
}

qd_status qd_layout_choose_maps(qd_layout *l, const qd_range_rule *rule, const qd_run *run, qd_err *err)
{
    for (int k = 0; k < l->n_quantizers; k++) {
        qd_quantizer *q = &l->quantizers[k];
        const char *name = qd_graph_node(l->graph, q->value)->name;
        qd_status st = qd_run_check(run, err);
        if (st)
            return st;
        st = choose_map(q, rule, err);
        if (st)
            return qd_fail_in(err, st, "value '%s' over the calibration set", name);
        q->sqnr_db = qd_histogram_sqnr_db(q->seen, &q->map);
        qd_run_progress(run, "search", name, k + 1, l->n_quantizers);
    }
    return QD_OK;
}
