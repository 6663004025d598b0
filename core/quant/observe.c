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
    int group;            /* of the current time step */
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

static void show(qd_quantizer *q, int group, const float *data, int64_t n, const qd_shape *shape)
{
    qd_histogram_add(q->seen, data, n);
    if (q->seen_in)
        qd_histogram_add(q->seen_in[group], data, n);
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
    show(&o->layout->quantizers[o->quantizer[id]], o->group, data, n, shape);
    qd_run_progress(o->run, "calibrate", qd_graph_node(o->layout->graph, id)->name, o->done, o->total);
}

/* What goes into a call, in the graph's order. */
typedef struct feed {
    qd_shape *shapes;
    const void **values;
    void **told; // [inputs], where a conditional input is filled; NULL for others
    qd_tensor x;
    float *tf; // [batch], the time steps
    int64_t *ti;
} feed;

static bool is_told(const qd_layout *l, int k)
{
    return qd_graph_input_at(l->graph, k) != l->input &&
           strcmp(qd_graph_node(l->graph, qd_graph_input_at(l->graph, k))->name, "timestep") != 0;
}

/* qd_layout_new has seen to it that there are no others. */
static qd_status bind_inputs(const qd_layout *l, const qd_calibration_set *set, const qd_shape *sample, feed *f,
                             qd_arena *a, qd_err *err)
{
    for (int k = 0; k < qd_graph_inputs(l->graph); k++) {
        const qd_node *n = qd_graph_node(l->graph, qd_graph_input_at(l->graph, k));
        int64_t count;
        if (qd_graph_input_at(l->graph, k) == l->input) {
            f->shapes[k] = *sample;
            f->values[k] = qd_f32(&f->x);
        } else if (!is_told(l, k)) {
            f->shapes[k] = QD_SHAPE(sample->dim[0]);
            f->values[k] = n->dtype == QD_I64 ? (const void *)f->ti : (const void *)f->tf;
        } else {
            static const qd_condition nothing = { .guidance = 1.0 };
            f->shapes[k] = n->shape;
            f->shapes[k].dim[0] = sample->dim[0];
            qd_status st = qd_condition_check(set->condition ? set->condition : &nothing, n, err);
            if (!st)
                st = qd_shape_count(&f->shapes[k], &count, err);
            if (st)
                return st;
            f->told[k] = qd_arena_alloc(a, (size_t)count * qd_dtype_bits(n->dtype) / 8);
            if (!f->told[k])
                return qd_fail(err, QD_E_NOMEM, "no memory for what %lld samples are told", (long long)sample->dim[0]);
            f->values[k] = f->told[k];
        }
    }
    return QD_OK;
}

static void tell(const qd_layout *l, const qd_calibration_set *set, const feed *f, bool with, int64_t first,
                 int64_t batch)
{
    for (int k = 0; k < qd_graph_inputs(l->graph); k++)
        if (f->told[k])
            qd_condition_fill(set->condition, qd_graph_node(l->graph, qd_graph_input_at(l->graph, k)), with,
                              set->first_sample + first, batch, f->told[k]);
}

/* Every sample is seen as sampling shows it: with the condition, without it, or, guided, both ways (qncd.md 5). */
static bool is_seen(const qd_calibration_set *set, bool with)
{
    const double w = set->condition ? set->condition->guidance : 1.0;
    return with ? w != 0.0 : w != 1.0;
}

static qd_status observe_steps(observer *o, qd_plan *plan, const qd_calibration_set *set, const qd_shape *shape,
                               const feed *f, void *const *out, qd_err *err)
{
    const qd_node_id sample = o->layout->input;
    const int64_t one = shape->dim[1] * shape->dim[2] * shape->dim[3];
    float *x = qd_f32(&f->x);
    for (int k = 0; k < set->steps; k++) {
        o->group = 0;
        while (o->group + 1 < o->layout->n_groups && set->t[k] < o->layout->group_until[o->group])
            o->group++;
        for (int64_t first = 0; first < set->samples; first += o->batch) {
            const int64_t left = set->samples - first;
            o->valid = left < o->batch ? left : o->batch;
            const float *stored = qd_f32(&set->x) + (k * set->samples + first) * one;
            memcpy(x, stored, (size_t)(o->valid * one) * sizeof *x);
            for (int64_t b = 0; b < o->batch; b++) {
                f->tf[b] = (float)set->t[k];
                f->ti[b] = set->t[k];
            }
            /* An input is made by nobody, so the plan does not show it. */
            if (o->quantizer[sample] >= 0)
                show(&o->layout->quantizers[o->quantizer[sample]], o->group, x, o->valid * one, shape);
            for (int with = 1; with >= 0; with--) {
                if (!is_seen(set, with))
                    continue;
                tell(o->layout, set, f, with, first, o->batch);
                qd_status st = qd_run_check(o->run, err);
                if (!st)
                    st = qd_plan_run(plan, o->run, f->values, out, err);
                if (st)
                    return st;
                o->done++;
                qd_run_progress(o->run, "calibrate", NULL, o->done, o->total);
            }
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
    const int64_t calls = (set->samples + batch - 1) / batch * set->steps * (is_seen(set, true) + is_seen(set, false));
    qd_shape sample = qd_shape_of(4, set->x.shape.dim + 1);
    sample.dim[0] = batch;
    qd_budget *budget = qd_run_budget(run);
    qd_tensor *results = NULL;
    qd_plan *plan = NULL;
    feed f = { .shapes = NULL };
    qd_arena a;
    qd_status st;

    qd_arena_init(&a);
    int *quantizer = qd_arena_alloc(&a, n * sizeof *quantizer);
    qd_node_id *observed = qd_arena_alloc(&a, (size_t)l->n_quantizers * sizeof *observed);
    qd_shape *all = qd_arena_alloc(&a, n * sizeof *all);
    void **out = qd_arena_alloc(&a, n_out * sizeof *out);
    f.shapes = qd_arena_alloc(&a, n_in * sizeof *f.shapes);
    f.values = qd_arena_alloc(&a, n_in * sizeof *f.values);
    f.told = qd_arena_alloc(&a, n_in * sizeof *f.told);
    f.tf = qd_arena_alloc(&a, (size_t)batch * sizeof *f.tf);
    f.ti = qd_arena_alloc(&a, (size_t)batch * sizeof *f.ti);
    results = qd_arena_alloc(&a, n_out * sizeof *results);
    if (!quantizer || !observed || !all || !f.shapes || !f.values || !f.told || !out || !f.tf || !f.ti || !results) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to watch %d values", l->n_quantizers);
        goto out;
    }
    const int n_observed = choose_values(l, quantizer, observed);
    st = qd_tensor_init(&f.x, QD_F32, &sample, budget, err);
    if (!st)
        st = bind_inputs(l, set, &sample, &f, &a, err);
    if (st)
        goto out;
    st = qd_graph_shapes(g, f.shapes, (int)n_in, all, err);
    for (size_t k = 0; k < n_out && !st; k++) {
        const qd_node_id id = qd_graph_output_at(g, (int)k);
        st = qd_tensor_init(&results[k], qd_graph_node(g, id)->dtype, &all[id], budget, err);
        out[k] = results[k].data;
    }
    if (st)
        goto out;

    observer o = { .layout = l, .run = run, .quantizer = quantizer, .batch = batch, .total = calls };
    const qd_plan_options options = { .input_shapes = f.shapes,
                                      .n_inputs = (int)n_in,
                                      .threads = qd_run_threads(run),
                                      .budget = budget,
                                      .observed = observed,
                                      .n_observed = n_observed,
                                      .observe = observe,
                                      .observe_ctx = &o };
    st = qd_plan_compile(g, &options, &plan, err);
    if (!st)
        st = observe_steps(&o, plan, set, &sample, &f, out, err);
out:
    qd_plan_free(plan);
    for (size_t k = 0; results && k < n_out; k++)
        qd_tensor_clear(&results[k]);
    qd_tensor_clear(&f.x);
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

qd_status qd_layout_watch_groups(qd_layout *l, const qd_calibration_set *set, int groups, qd_err *err)
{
    const int n = groups < set->steps ? groups : set->steps;
    l->group_until = qd_calloc((size_t)n, sizeof *l->group_until);
    if (!l->group_until)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d groups of time steps", n);
    l->n_groups = n;
    /* Stored steps are dealt out evenly; between two groups the border is half way. */
    for (int g = 0; g + 1 < n; g++) {
        const int next = ((g + 1) * set->steps + n - 1) / n;
        l->group_until[g] = (set->t[next - 1] + set->t[next] + 1) / 2;
    }
    for (int k = 0; k < l->n_quantizers; k++) {
        qd_quantizer *q = &l->quantizers[k];
        q->seen_in = qd_calloc((size_t)n, sizeof *q->seen_in);
        if (!q->seen_in)
            return qd_fail(err, QD_E_NOMEM, "no memory for %d groups of time steps", n);
        for (int g = 0; g < n; g++) {
            const qd_status st = qd_histogram_new(&q->seen_in[g], err);
            if (st)
                return st;
        }
    }
    return QD_OK;
}

qd_status qd_range_choose(const qd_range_rule *r, const qd_quantizer *q, const qd_histogram *seen, qd_affine *out,
                          qd_err *err)
{
    const int bits = q->bits ? q->bits : r->bits;
    switch (r->how) {
    case QD_RANGE_MSE:
        return qd_histogram_search(seen, bits, r->symmetric, out, err);
    case QD_RANGE_PERCENTILE:
        return qd_histogram_percentile(seen, r->percentile, bits, r->symmetric, out, err);
    case QD_RANGE_MINMAX:
        break;
    }
    return qd_histogram_fit(seen, bits, r->symmetric, out, err);
}

qd_status qd_layout_choose_maps(qd_layout *l, const qd_range_rule *rule, const qd_run *run, qd_err *err)
{
    for (int k = 0; k < l->n_quantizers; k++) {
        qd_quantizer *q = &l->quantizers[k];
        const char *name = qd_graph_node(l->graph, q->value)->name;
        qd_status st = qd_run_check(run, err);
        if (st)
            return st;
        st = qd_range_choose(rule, q, q->seen, &q->map, err);
        if (st)
            return qd_fail_in(err, st, "value '%s' over the calibration set", name);
        q->sqnr_db = qd_histogram_sqnr_db(q->seen, &q->map);
        qd_run_progress(run, "search", name, k + 1, l->n_quantizers);
    }
    return QD_OK;
}
