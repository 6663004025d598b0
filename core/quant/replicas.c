/* replicas.c - a loss and its gradient over a batch drawn from kept values, the batch shared out to replicas.
 *
 * Each replica is a plan of one thread for its part of the items, and what they give is added up in order: the bytes depend on the number
 * of replicas, which follows from the work alone, and not on the number of threads. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/par.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/recon_int.h"

int qd_replicas_count(int64_t batch, int64_t weights)
{
    int n = weights >= QD_REPLICAS_WIDE ? 2 : QD_REPLICAS;
    while (batch % n)
        n /= 2;
    return n;
}

static qd_status make_one(qd_replicas *r, const qd_graph *g, const qd_shape *shapes, qd_replica *one, qd_err *err)
{
    qd_budget *budget = qd_run_budget(r->run);
    one->buffer = qd_calloc((size_t)r->n_inputs, sizeof *one->buffer);
    one->grad = qd_calloc((size_t)r->n_grads + 1, sizeof *one->grad);
    one->in = qd_calloc((size_t)r->n_inputs, sizeof *one->in);
    one->out = qd_calloc((size_t)r->n_grads + 1, sizeof *one->out);
    if (!one->buffer || !one->grad || !one->in || !one->out)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d inputs", r->n_inputs);
    qd_status st = qd_piece_compile(g, 1, budget, &one->plan, err);
    for (int k = 0; k < r->n_inputs && !st; k++) {
        const qd_node *n = qd_graph_node(g, qd_graph_input_at(g, k));
        one->in[k] = r->input[k].data;
        if (!r->input[k].item_bytes)
            continue;
        st = qd_tensor_init(&one->buffer[k], n->dtype, &n->shape, budget, err);
        one->in[k] = one->buffer[k].data;
    }
    one->out[0] = &one->loss;
    for (int k = 0; k < r->n_grads && !st; k++) {
        st = qd_tensor_init(&one->grad[k], QD_F32, &shapes[qd_graph_output_at(g, k + 1)], budget, err);
        one->out[k + 1] = one->grad[k].data;
    }
    return st;
}

qd_status qd_replicas_init(qd_replicas *r, const qd_graph *g, const qd_replica_input *input, int n, int64_t batch,
                           const qd_run *run, qd_err *err)
{
    const int n_inputs = qd_graph_inputs(g);
    qd_shape *given = qd_calloc((size_t)n_inputs + 1, sizeof *given);
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(g) + 1, sizeof *shapes);
    *r = (qd_replicas){
        .run = run, .n = n, .share = batch / n, .n_inputs = n_inputs, .n_grads = qd_graph_outputs(g) - 1
    };
    r->input = qd_calloc((size_t)n_inputs + 1, sizeof *r->input);
    r->item = qd_calloc((size_t)batch, sizeof *r->item);
    qd_status st = QD_E_NOMEM;
    if (!given || !shapes || !r->input || !r->item) {
        qd_fail(err, st, "no memory for %d inputs", n_inputs);
        goto out;
    }
    for (int k = 0; k < n_inputs; k++) {
        r->input[k] = input[k];
        given[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
    }
    st = qd_graph_shapes(g, given, n_inputs, shapes, err);
    for (int k = 0; k < n && !st; k++)
        st = make_one(r, g, shapes, &r->replica[k], err);
out:
    qd_free(shapes);
    qd_free(given);
    return st;
}

void qd_replicas_clear(qd_replicas *r)
{
    for (int i = 0; i < r->n; i++) {
        qd_replica *one = &r->replica[i];
        qd_plan_free(one->plan);
        for (int k = 0; one->buffer && k < r->n_inputs; k++)
            qd_tensor_clear(&one->buffer[k]);
        for (int k = 0; one->grad && k < r->n_grads; k++)
            qd_tensor_clear(&one->grad[k]);
        qd_free(one->buffer);
        qd_free(one->grad);
        qd_free(one->in);
        qd_free(one->out);
    }
    qd_free(r->input);
    qd_free(r->item);
    *r = (qd_replicas){ 0 };
}

/* Items without repetition; a step's depend on the seed, the block and the step alone. */
static void draw_items(qd_replicas *r, int64_t items, int number, int64_t step)
{
    qd_rng rng;
    qd_rng_init(&rng, r->run ? r->run->seed : 0, QD_STREAM_SHUFFLE | (uint64_t)(number + 1) << 32 | (uint64_t)step);
    for (int64_t n = 0; n < r->n * r->share;) {
        const int64_t item = qd_rng_below(&rng, (uint32_t)items);
        bool fresh = true;
        for (int64_t k = 0; k < n; k++)
            fresh &= r->item[k] != item;
        r->item[n] = item;
        n += fresh;
    }
}

static void run_one(void *ctx, int64_t number)
{
    qd_replicas *r = ctx;
    qd_replica *one = &r->replica[number];
    for (int k = 0; k < r->n_inputs; k++) {
        const size_t bytes = r->input[k].item_bytes;
        for (int64_t i = 0; bytes && i < r->share; i++)
            memcpy((char *)one->buffer[k].data + (size_t)i * bytes,
                   (const char *)r->input[k].data + (size_t)r->item[number * r->share + i] * bytes, bytes);
    }
    one->st = qd_plan_run(one->plan, r->run, one->in, one->out, &one->err);
}

qd_status qd_replicas_run(qd_replicas *r, int64_t items, int number, int64_t step, double *loss, qd_err *err)
{
    draw_items(r, items, number, step);
    qd_par_for(qd_run_threads(r->run), r->n, run_one, r);
    *loss = 0.0;
    for (int k = 0; k < r->n; k++) {
        if (r->replica[k].st)
            return qd_fail(err, r->replica[k].st, "%s", r->replica[k].err.text);
        *loss += (double)r->replica[k].loss / r->n;
    }
    if (!isfinite(*loss))
        return qd_fail(err, QD_E_NUMERIC, "the loss of iteration %lld is %g", (long long)step, *loss);
    return QD_OK;
}
