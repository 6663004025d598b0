/* denoiser.c - a denoiser graph as predictor: one compiled plan, one time step for the whole batch, guidance inside. */
#include <string.h>

#include "diffusion/diffusion.h"
#include "plan/plan.h"

/* A conditional input. */
typedef struct told {
    const char *name;
    int at;       // place among the graph's inputs; -1 = it has no such input
    qd_node like; /* name, dtype and shape of the graph's */
    int64_t each; // numbers for one sample
    void *data;   // [rows of the plan, each]
} told;

struct qd_denoiser {
    qd_plan *plan;
    int64_t batch, channels, height, width;
    qd_condition condition; /* its tensors are shared */
    bool both;              /* the plan sees every sample twice: first all without condition, then all with it */
    int64_t rows;           // of the plan: batch, or twice that
    int n_inputs, at_sample, at_timestep;
    qd_dtype timestep_dtype;
    void *timestep; // [rows], f32 or i64
    told context, labels;
    float *x, *out; // both: [rows, C, H, W]
    qd_budget *budget;
    size_t drawn_bytes;
};

void qd_denoiser_free(qd_denoiser *d)
{
    if (!d)
        return;
    qd_plan_free(d->plan);
    qd_condition_clear(&d->condition);
    qd_free(d->context.data);
    qd_free(d->labels.data);
    qd_free(d->timestep);
    qd_free(d->x);
    qd_free(d->out);
    qd_budget_give(d->budget, d->drawn_bytes);
    qd_free(d);
}

/* --- inputs --- */

static qd_status check_vector(const qd_node *n, qd_err *err)
{
    if (n->shape.rank != 1 || (n->dtype != QD_F32 && n->dtype != QD_I64))
        return qd_fail(err, QD_E_UNSUPPORTED, "input '%s' must be one f32 or i64 number for each sample", n->name);
    return QD_OK;
}

/* A conditional input that the condition must have an answer for. */
static qd_status read_told(const qd_denoiser *d, told *w, int at, const qd_node *n, qd_err *err)
{
    qd_shape one = n->shape;
    one.dim[0] = 1;
    qd_status st = qd_shape_count(&one, &w->each, err);
    if (st)
        return qd_fail_in(err, st, "input '%s'", n->name);
    w->at = at;
    w->like = (qd_node){ .name = w->name, .dtype = n->dtype, .shape = n->shape };
    return qd_condition_check(&d->condition, n, err);
}

/* Finds the inputs by name and fixes their shapes for this batch. */
static qd_status read_inputs(qd_denoiser *d, const qd_graph *g, qd_shape *shapes, qd_err *err)
{
    d->at_sample = d->at_timestep = d->context.at = d->labels.at = -1;
    d->n_inputs = qd_graph_inputs(g);
    if (d->n_inputs > QD_MAX_INPUTS)
        return qd_fail(err, QD_E_UNSUPPORTED, "the graph has %d inputs; a denoiser has 2 to 4", d->n_inputs);
    for (int k = 0; k < d->n_inputs; k++) {
        const qd_node *n = qd_graph_node(g, qd_graph_input_at(g, k));
        qd_status st = QD_OK;
        if (strcmp(n->name, "sample") == 0 && n->shape.rank == 4 && n->dtype == QD_F32) {
            d->at_sample = k;
        } else if (strcmp(n->name, "timestep") == 0) {
            d->at_timestep = k;
            d->timestep_dtype = n->dtype;
            st = check_vector(n, err);
        } else if (strcmp(n->name, d->context.name) == 0 && n->shape.rank == 3 && n->dtype == QD_F32) {
            st = read_told(d, &d->context, k, n, err);
        } else if (strcmp(n->name, d->labels.name) == 0) {
            st = n->shape.rank == 2 && n->dtype == QD_F32 ? QD_OK : check_vector(n, err);
            if (!st)
                st = read_told(d, &d->labels, k, n, err);
        } else {
            st = qd_fail(
                err, QD_E_UNSUPPORTED,
                "input '%s' is not one a denoiser has (sample [N, C, H, W] f32, timestep, encoder_hidden_states "
                "[N, tokens, width] f32, class_labels)",
                n->name);
        }
        if (st)
            return st;
        shapes[k] = n->shape;
        shapes[k].dim[0] = d->rows;
    }
    if (d->at_sample < 0 || d->at_timestep < 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "the graph has no input '%s', which a denoiser needs",
                       d->at_sample < 0 ? "sample" : "timestep");
    if (d->context.at < 0 && d->labels.at < 0 && d->condition.guidance != 1.0)
        return qd_fail(err, QD_E_INVALID, "guidance %g needs a network that takes a condition; this one takes none",
                       d->condition.guidance);
    d->channels = shapes[d->at_sample].dim[1];
    d->height = shapes[d->at_sample].dim[2];
    d->width = shapes[d->at_sample].dim[3];
    return QD_OK;
}

/* One output, shaped like the input. */
static qd_status check_output(const qd_denoiser *d, const qd_graph *g, const qd_shape *input_shapes, qd_err *err)
{
    if (qd_graph_outputs(g) != 1)
        return qd_fail(err, QD_E_UNSUPPORTED, "the graph has %d outputs; a denoiser has 1", qd_graph_outputs(g));
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(g), sizeof(*shapes));
    if (!shapes)
        return qd_fail(err, QD_E_NOMEM, "out of memory for the shapes of %d nodes", qd_graph_size(g));
    qd_status st = qd_graph_shapes(g, input_shapes, d->n_inputs, shapes, err);
    if (!st) {
        char in[96], out[96];
        const qd_shape *want = &input_shapes[d->at_sample], *have = &shapes[qd_graph_output_at(g, 0)];
        if (!qd_shape_equal(want, have))
            st = qd_fail(err, QD_E_UNSUPPORTED,
                         "the network turns %s into %s; a denoiser must answer in the shape of its sample",
                         qd_shape_text(want, in, sizeof(in)), qd_shape_text(have, out, sizeof(out)));
    }
    qd_free(shapes);
    return st;
}

/* --- what samples are told --- */

static void seat(void *ctx, int64_t first_sample)
{
    qd_denoiser *d = ctx;
    told *const all[] = { &d->context, &d->labels };
    for (int k = 0; k < 2; k++) {
        const told *w = all[k];
        const size_t half = (size_t)(d->batch * w->each) * qd_dtype_bits(w->like.dtype) / 8;
        if (w->at < 0)
            continue;
        if (d->condition.guidance != 1.0)
            qd_condition_fill(&d->condition, &w->like, false, first_sample, d->batch, w->data);
        if (d->condition.guidance != 0.0)
            qd_condition_fill(&d->condition, &w->like, true, first_sample, d->batch,
                              (char *)w->data + (d->both ? half : 0));
    }
}

/* Room for count numbers of 8 bytes at most. */
static qd_status take_room(qd_denoiser *d, int64_t count, size_t size, void **out, qd_err *err)
{
    size_t bytes;
    if (!qd_mul_size((size_t)count, size, &bytes))
        return qd_fail(err, QD_E_LIMIT, "a batch of %lld does not fit into memory", (long long)d->batch);
    const qd_status st = qd_budget_draw(d->budget, bytes, "the inputs of a denoiser", err);
    if (st)
        return st;
    d->drawn_bytes += bytes;
    *out = qd_alloc_aligned(bytes);
    if (!*out)
        return qd_fail(err, QD_E_NOMEM, "out of memory for the inputs of %lld samples (%zu bytes)", (long long)d->batch,
                       bytes);
    return QD_OK;
}

static qd_status take_rooms(qd_denoiser *d, qd_err *err)
{
    void *x = NULL, *out = NULL;
    const int64_t picture = d->channels * d->height * d->width; /* fits: the graph's shapes were checked */
    qd_status st = take_room(d, d->rows, sizeof(int64_t), &d->timestep, err);
    if (!st && d->context.at >= 0)
        st = take_room(d, d->rows * d->context.each, sizeof(float), &d->context.data, err);
    if (!st && d->labels.at >= 0)
        st = take_room(d, d->rows * d->labels.each, sizeof(int64_t), &d->labels.data, err);
    if (!st && d->both)
        st = take_room(d, d->rows * picture, sizeof(float), &x, err);
    d->x = x;
    if (!st && d->both)
        st = take_room(d, d->rows * picture, sizeof(float), &out, err);
    d->out = out;
    return st;
}

/* --- the object --- */

qd_status qd_denoiser_open(const qd_graph *g, const qd_denoiser_options *o, qd_denoiser **out, qd_err *err)
{
    qd_shape shapes[QD_MAX_INPUTS];
    qd_status st;
    const qd_condition *c = o->condition;
    if (o->batch < 1 || o->batch > 65536)
        return qd_fail(err, QD_E_INVALID, "batch must be 1..65536, got %lld", (long long)o->batch);
    if (c && !(c->guidance >= 0.0 && c->guidance <= 1000.0))
        return qd_fail(err, QD_E_INVALID, "guidance must be 0..1000, got %g", c->guidance);
    qd_denoiser *d = qd_calloc(1, sizeof(*d));
    if (!d)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a denoiser");
    d->batch = o->batch;
    d->budget = o->budget;
    d->context.name = "encoder_hidden_states";
    d->labels.name = "class_labels";
    qd_condition_init(&d->condition);
    if (c)
        qd_condition_share(&d->condition, c);
    d->both = d->condition.guidance != 0.0 && d->condition.guidance != 1.0;
    d->rows = d->both ? 2 * d->batch : d->batch;
    st = read_inputs(d, g, shapes, err);
    if (st)
        goto out;
    st = check_output(d, g, shapes, err);
    if (st)
        goto out;
    st = take_rooms(d, err);
    if (st)
        goto out;
    seat(d, 0);
    const qd_plan_options plan = { .input_shapes = shapes,
                                   .n_inputs = d->n_inputs,
                                   .threads = o->threads,
                                   .backend = o->backend,
                                   .budget = o->budget,
                                   .take = o->take,
                                   .observed = o->observed,
                                   .n_observed = o->n_observed,
                                   .observe = o->observe,
                                   .observe_ctx = o->observe_ctx };
    st = qd_plan_compile(g, &plan, &d->plan, err);
    if (st)
        goto out;
    *out = d;
    d = NULL;
out:
    qd_denoiser_free(d);
    return st;
}

qd_status qd_denoiser_new(const qd_graph *g, int64_t batch, int threads, const struct qd_backend *backend,
                          qd_budget *budget, qd_denoiser **out, qd_err *err)
{
    const qd_denoiser_options o = { .batch = batch, .threads = threads, .backend = backend, .budget = budget };
    return qd_denoiser_open(g, &o, out, err);
}

/* Guidance on the network's own words: weights that add up to 1 commute with turning them into eps (8). */
static void guide(const qd_denoiser *d, float *out)
{
    const int64_t n = d->batch * d->channels * d->height * d->width;
    const float *without = d->out, *with = d->out + n;
    for (int64_t k = 0; k < n; k++)
        out[k] = (float)(without[k] + d->condition.guidance * ((double)with[k] - without[k]));
}

/* v[k] of a vector that is f32 or i64. */
static void put_number(void *v, qd_dtype dtype, int64_t k, double x)
{
    if (dtype == QD_I64)
        ((int64_t *)v)[k] = (int64_t)x;
    else
        ((float *)v)[k] = (float)x;
}

static qd_status predict(void *ctx, const qd_run *run, const float *x, double t, float *out, qd_err *err)
{
    qd_denoiser *d = ctx;
    const void *inputs[QD_MAX_INPUTS];
    void *outputs[1] = { d->both ? d->out : out };
    const size_t bytes = (size_t)(d->batch * d->channels * d->height * d->width) * sizeof(float);
    for (int64_t k = 0; k < d->rows; k++)
        put_number(d->timestep, d->timestep_dtype, k, t);
    if (d->both) {
        memcpy(d->x, x, bytes);
        memcpy((char *)d->x + bytes, x, bytes);
    }
    inputs[d->at_sample] = d->both ? d->x : x;
    inputs[d->at_timestep] = d->timestep;
    if (d->context.at >= 0)
        inputs[d->context.at] = d->context.data;
    if (d->labels.at >= 0)
        inputs[d->labels.at] = d->labels.data;
    const qd_status st = qd_plan_run(d->plan, run, inputs, outputs, err);
    if (!st && d->both)
        guide(d, out);
    return st;
}

qd_predictor qd_denoiser_predictor(qd_denoiser *d)
{
    return (qd_predictor){ .ctx = d,
                           .predict = predict,
                           .seat = seat,
                           .batch = d->batch,
                           .channels = d->channels,
                           .height = d->height,
                           .width = d->width };
}

void qd_predictor_seat(const qd_predictor *p, int64_t first_sample)
{
    if (p->seat)
        p->seat(p->ctx, first_sample);
}
