/* classify.c - a classifier over a data set: logits of its pictures, and where the right answer comes among them. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "metrics/metrics.h"
#include "plan/plan.h"

/* --- is it a classifier? --- */

static qd_status shapes_of(const qd_graph *g, const qd_shape *input, qd_shape **out, qd_err *err)
{
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(g), sizeof *shapes);
    if (!shapes)
        return qd_fail(err, QD_E_NOMEM, "no memory for the shapes of %d nodes", qd_graph_size(g));
    const qd_status st = qd_graph_shapes(g, input, 1, shapes, err);
    if (st) {
        qd_free(shapes);
        return st;
    }
    *out = shapes;
    return QD_OK;
}

qd_status qd_classifier_of(const qd_graph *g, qd_classifier *out, qd_err *err)
{
    qd_classifier c = { .graph = g, .output = -1 };
    qd_shape *shapes = NULL;
    const qd_node *in = qd_graph_inputs(g) == 1 ? qd_graph_node(g, qd_graph_input_at(g, 0)) : NULL;
    if (!in || in->dtype != QD_F32 || in->shape.rank != 4 || in->shape.dim[0] != -1)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "the model is no classifier of pictures: it needs one f32 input [N, C, H, W], with N left open");
    for (int k = 1; k < 4; k++)
        if (in->shape.dim[k] < 1 || in->shape.dim[k] > INT32_MAX)
            return qd_fail(err, QD_E_UNSUPPORTED, "the model's input '%s' leaves more open than the batch", in->name);
    qd_shape one = in->shape;
    one.dim[0] = 1;
    const qd_status st = shapes_of(g, &one, &shapes, err);
    if (st)
        return st;
    for (int k = 0; k < qd_graph_outputs(g); k++) {
        const qd_node_id id = qd_graph_output_at(g, k);
        const bool fits = shapes[id].rank == 2 && shapes[id].dim[0] == 1 && qd_graph_node(g, id)->dtype == QD_F32;
        const bool named = strcmp(qd_graph_output_name(g, k), "logits") == 0;
        if (fits && (c.output < 0 || named)) {
            c.output = k;
            c.classes = shapes[id].dim[1];
        }
    }
    qd_free(shapes);
    if (c.output < 0)
        return qd_fail(err, QD_E_UNSUPPORTED, "the model is no classifier: it has no f32 output [N, classes]");
    c.channels = (int)one.dim[1];
    c.height = (int)one.dim[2];
    c.width = (int)one.dim[3];
    *out = c;
    return QD_OK;
}

qd_status qd_classifier_fits(const qd_classifier *c, const qd_dataset *d, bool labelled, qd_err *err)
{
    if (d->channels != c->channels || d->height != c->height || d->width != c->width)
        return qd_fail(err, QD_E_INVALID, "the data set's pictures are %d x %d x %d, the model takes %d x %d x %d",
                       d->channels, d->height, d->width, c->channels, c->height, c->width);
    if (labelled && d->classes == 0)
        return qd_fail(err, QD_E_INVALID, "the data set has no labels to count right answers by");
    if (labelled && d->classes > c->classes)
        return qd_fail(err, QD_E_INVALID, "the data set has labels up to %d, the model tells %lld classes apart",
                       d->classes - 1, (long long)c->classes);
    return QD_OK;
}

/* --- running it --- */

/* A plan with memory for what goes in and comes out. */
typedef struct bench {
    qd_plan *plan;
    qd_tensor x;        // [batch, C, H, W]
    qd_tensor *results; // [outputs]
    void **out;         // [outputs]
    int n_out;
} bench;

static void bench_close(bench *b)
{
    qd_plan_free(b->plan);
    qd_tensor_clear(&b->x);
    for (int k = 0; b->results && k < b->n_out; k++)
        qd_tensor_clear(&b->results[k]);
    qd_free(b->results);
    qd_free(b->out);
}

static qd_status bench_open(bench *b, const qd_classifier *c, int64_t batch, const qd_run *run, qd_err *err)
{
    const qd_graph *g = c->graph;
    const qd_shape input = QD_SHAPE(batch, c->channels, c->height, c->width);
    qd_budget *budget = qd_run_budget(run);
    qd_shape *shapes = NULL;
    qd_status st = shapes_of(g, &input, &shapes, err);
    if (st)
        return st;
    b->n_out = qd_graph_outputs(g);
    b->results = qd_calloc((size_t)b->n_out, sizeof *b->results);
    b->out = qd_calloc((size_t)b->n_out, sizeof *b->out);
    if (!b->results || !b->out)
        st = qd_fail(err, QD_E_NOMEM, "no memory for %d outputs", b->n_out);
    if (!st)
        st = qd_tensor_init(&b->x, QD_F32, &input, budget, err);
    for (int k = 0; k < b->n_out && !st; k++) {
        const qd_node_id id = qd_graph_output_at(g, k);
        st = qd_tensor_init(&b->results[k], qd_graph_node(g, id)->dtype, &shapes[id], budget, err);
        b->out[k] = b->results[k].data;
    }
    qd_free(shapes);
    const qd_plan_options o = {
        .input_shapes = &input, .n_inputs = 1, .threads = qd_run_threads(run), .budget = budget
    };
    return st ? st : qd_plan_compile(g, &o, &b->plan, err);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static qd_status run_all(bench *b, const qd_classifier *c, const qd_classify_job *job, int64_t batch, const qd_run *run,
                         float *logits, double *seconds, qd_err *err)
{
    const void *in[1] = { b->x.data };
    double spent = 0.0;
    for (int64_t first = 0; first < job->count; first += batch) {
        const int64_t left = job->count - first, n = left < batch ? left : batch;
        /* What a short last batch leaves of the one before it runs along, and nobody looks at it. */
        qd_dataset_floats(qd_f32(&b->x), job->data, job->image ? job->image + first : NULL, first, n, job->scale);
        qd_status st = qd_run_check(run, err);
        if (!st && first == 0 && seconds) /* touches its memory for the first time */
            st = qd_plan_run(b->plan, run, in, b->out, err);
        const double start = now_s();
        if (!st)
            st = qd_plan_run(b->plan, run, in, b->out, err);
        if (st)
            return st;
        spent += (now_s() - start) * (double)n / (double)batch;
        memcpy(logits + first * c->classes, b->out[c->output], (size_t)(n * c->classes) * sizeof *logits);
        qd_run_progress(run, job->phase, NULL, first + n, job->count);
    }
    if (seconds)
        *seconds = spent;
    return QD_OK;
}

qd_status qd_classify(const qd_classifier *c, const qd_classify_job *job, const qd_run *run, float *logits,
                      double *seconds, qd_err *err)
{
    bench b = { 0 };
    const int64_t batch = job->count < job->batch ? job->count : job->batch;
    qd_status st = qd_classifier_fits(c, job->data, false, err);
    if (st || job->count < 1)
        return st;
    st = bench_open(&b, c, batch, run, err);
    if (!st)
        st = run_all(&b, c, job, batch, run, logits, seconds, err);
    bench_close(&b);
    return st;
}

/* --- counting --- */

int64_t qd_top1(const float *logits, int64_t classes)
{
    int64_t best = 0;
    for (int64_t k = 1; k < classes; k++)
        if (logits[k] > logits[best] || isnan(logits[best]))
            best = k;
    return best;
}

int64_t qd_rank(const float *logits, int64_t classes, int64_t label)
{
    int64_t before = 0;
    if (isnan(logits[label]))
        return classes - 1;
    for (int64_t k = 0; k < classes; k++)
        before += logits[k] > logits[label] || (logits[k] == logits[label] && k < label);
    return before;
}
