/* denoiser.c - a denoiser graph as predictor: one compiled plan, one time step for the whole batch. */
#include <string.h>

#include "diffusion/diffusion.h"
#include "plan/plan.h"

struct qd_denoiser {
    qd_plan *plan;
    int64_t batch, channels, height, width;
    int n_inputs, at_sample, at_timestep, at_labels; // places among the inputs; at_labels -1 = none
    qd_dtype timestep_dtype, labels_dtype;
    void *timestep; // [batch], f32 or i64
    void *labels;   // [batch]
};

void qd_denoiser_free(qd_denoiser *d)
{
    if (!d)
        return;
    qd_plan_free(d->plan);
    qd_free(d->timestep);
    qd_free(d->labels);
    qd_free(d);
}

static qd_status check_vector(const qd_node *n, qd_err *err)
{
    if (n->shape.rank != 1 || (n->dtype != QD_F32 && n->dtype != QD_I64))
        return qd_fail(err, QD_E_UNSUPPORTED, "input '%s' must be one f32 or i64 number for each sample", n->name);
    return QD_OK;
}

/* Finds the inputs by name and fixes their shapes for this batch. */
static qd_status read_inputs(qd_denoiser *d, const qd_graph *g, qd_shape *shapes, qd_err *err)
{
    d->at_sample = d->at_timestep = d->at_labels = -1;
    d->n_inputs = qd_graph_inputs(g);
    if (d->n_inputs > QD_MAX_INPUTS)
        return qd_fail(err, QD_E_UNSUPPORTED, "the graph has %d inputs; a denoiser has 2 or 3", d->n_inputs);
    for (int k = 0; k < d->n_inputs; k++) {
        const qd_node *n = qd_graph_node(g, qd_graph_input_at(g, k));
        qd_status st = QD_OK;
        if (strcmp(n->name, "sample") == 0 && n->shape.rank == 4 && n->dtype == QD_F32) {
            d->at_sample = k;
        } else if (strcmp(n->name, "timestep") == 0) {
            d->at_timestep = k;
            d->timestep_dtype = n->dtype;
            st = check_vector(n, err);
        } else if (strcmp(n->name, "class_labels") == 0) {
            d->at_labels = k;
            d->labels_dtype = n->dtype;
            st = check_vector(n, err);
        } else {
            st = qd_fail(err, QD_E_UNSUPPORTED,
                         "input '%s' is not one a denoiser has (sample [N, C, H, W] f32, timestep, class_labels)",
                         n->name);
        }
        if (st)
            return st;
        shapes[k] = n->shape;
        shapes[k].dim[0] = d->batch;
    }
    if (d->at_sample < 0 || d->at_timestep < 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "the graph has no input '%s', which a denoiser needs",
                       d->at_sample < 0 ? "sample" : "timestep");
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

qd_status qd_denoiser_new(const qd_graph *g, int64_t batch, int threads, const struct qd_backend *backend,
                          qd_budget *budget, qd_denoiser **out, qd_err *err)
{
    qd_shape shapes[QD_MAX_INPUTS];
    qd_status st;
    if (batch < 1 || batch > 65536)
        return qd_fail(err, QD_E_INVALID, "batch must be 1..65536, got %lld", (long long)batch);
    qd_denoiser *d = qd_calloc(1, sizeof(*d));
    if (!d)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a denoiser");
    d->batch = batch;
    st = read_inputs(d, g, shapes, err);
    if (st)
        goto out;
    st = check_output(d, g, shapes, err);
    if (st)
        goto out;
    d->timestep = qd_calloc((size_t)batch, sizeof(int64_t)); /* the wider of the two dtypes */
    d->labels = qd_calloc((size_t)batch, sizeof(int64_t));
    if (!d->timestep || !d->labels) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory for the time steps of %lld samples", (long long)batch);
        goto out;
    }
    const qd_plan_options o = {
        .input_shapes = shapes, .n_inputs = d->n_inputs, .threads = threads, .backend = backend, .budget = budget
    };
    st = qd_plan_compile(g, &o, &d->plan, err);
    if (st)
        goto out;
    *out = d;
    d = NULL;
out:
    qd_denoiser_free(d);
    return st;
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
    void *outputs[1] = { out };
    for (int64_t k = 0; k < d->batch; k++)
        put_number(d->timestep, d->timestep_dtype, k, t);
    inputs[d->at_sample] = x;
    inputs[d->at_timestep] = d->timestep;
    if (d->at_labels >= 0)
        inputs[d->at_labels] = d->labels;
    return qd_plan_run(d->plan, run, inputs, outputs, err);
}

qd_status qd_denoiser_set_labels(qd_denoiser *d, const int64_t *labels, qd_err *err)
{
    if (d->at_labels < 0)
        return qd_fail(err, QD_E_INVALID, "this network knows no classes");
    for (int64_t k = 0; k < d->batch; k++)
        put_number(d->labels, d->labels_dtype, k, (double)labels[k]);
    return QD_OK;
}

qd_predictor qd_denoiser_predictor(qd_denoiser *d)
{
    return (qd_predictor){
        .ctx = d, .predict = predict, .batch = d->batch, .channels = d->channels, .height = d->height, .width = d->width
    };
}
