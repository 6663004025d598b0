/* recon_block.c - one block evaluated and trained: gradients by the soft weights come from the differentiated graph of the block, the rest
 * of the way to v is adaround.c's. */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/recon_int.h"

enum { LOOK_EVERY = 20, LOSS_POINTS = 100 };

static int64_t layer_weights(const qd_recon_work *w, int k)
{
    return qd_layer_weights(w->layout, &w->layout->layers[w->block->layers[k]]);
}

/* The block with its weights as inputs, for a batch; shapes [nodes] of the network, given [inputs of the piece] of its inputs. */
static qd_status cut_block(const qd_recon_work *w, const qd_shape *shapes, qd_piece *piece, qd_err *err)
{
    const qd_piece_spec spec = { .layout = w->layout,
                                 .shapes = shapes,
                                 .given = w->block->entry,
                                 .n_given = w->block->n_entry,
                                 .wanted = &w->block->out,
                                 .n_wanted = 1,
                                 .weights = QD_PIECE_INPUTS,
                                 .block = w->block };
    return qd_piece_cut(&spec, qd_run_budget(w->run), piece, err);
}

/* Which of the block's entries an input of the piece is. */
static int entry_of(const qd_block *b, qd_node_id id)
{
    int k = 0;
    while (b->entry[k] != id)
        k++;
    return k;
}

/* --- evaluating --- */

static qd_status restore_all(const qd_recon_work *w, qd_tensor *weights, qd_err *err)
{
    qd_status st = QD_OK;
    for (int k = 0; k < w->block->n_layers && !st; k++) {
        const qd_shape shape = QD_SHAPE(layer_weights(w, k));
        st = qd_tensor_init(&weights[k], QD_F32, &shape, qd_run_budget(w->run), err);
        if (!st)
            st = qd_layer_restore(w->layout, &w->layout->layers[w->block->layers[k]], qd_f32(&weights[k]), err);
    }
    return st;
}

static qd_status evaluate_items(const qd_recon_work *w, const qd_piece *piece, qd_plan *plan, const void **in,
                                float *scratch, float *y, double *mse, qd_err *err)
{
    const qd_kept_values *kept = w->kept;
    const int64_t one = qd_kept_count(kept, w->block->out);
    double sum = 0.0;
    for (int64_t next = 0; next < kept->items; next += kept->batch) {
        const int64_t first = next + kept->batch > kept->items ? kept->items - kept->batch : next;
        float *got = y ? y + first * one : scratch;
        void *const results[1] = { got };
        for (int k = 0; k < piece->n_inputs; k++)
            in[k] = (const char *)w->entry[entry_of(w->block, piece->input[k])].data +
                    (size_t)first * qd_kept_bytes(kept, piece->input[k]);
        const qd_status st = qd_plan_run(plan, w->run, in, results, err);
        if (st)
            return st;
        for (int64_t item = next; item < first + kept->batch; item++) {
            double part = 0.0;
            for (int64_t i = 0; i < one; i++) {
                const double d = (double)got[(item - first) * one + i] - w->target[item * one + i];
                part += d * d;
            }
            sum += part;
        }
    }
    *mse = sum / ((double)kept->items * (double)one);
    return QD_OK;
}

qd_status qd_recon_evaluate(const qd_recon_work *w, float *y, double *mse, qd_err *err)
{
    const qd_block *b = w->block;
    qd_piece piece = { 0 };
    qd_plan *plan = NULL;
    qd_tensor scratch = { 0 };
    const qd_shape shape = QD_SHAPE(w->kept->batch * qd_kept_count(w->kept, b->out));
    qd_tensor *weights = qd_calloc((size_t)b->n_layers, sizeof *weights);
    const void **in = qd_calloc((size_t)(b->n_entry + b->n_layers), sizeof *in);
    qd_status st = weights && in ? cut_block(w, w->kept->shapes, &piece, err)
                                 : qd_fail(err, QD_E_NOMEM, "no memory for %d layers", b->n_layers);
    if (st)
        goto out;
    qd_graph_output(piece.graph, "block", piece.id[b->out]);
    st = qd_piece_compile(piece.graph, qd_run_threads(w->run), qd_run_budget(w->run), &plan, err);
    if (!st)
        st = qd_tensor_init(&scratch, QD_F32, &shape, qd_run_budget(w->run), err);
    if (!st)
        st = restore_all(w, weights, err);
    for (int k = 0; k < b->n_layers && !st; k++)
        in[piece.n_inputs + k] = weights[k].data;
    if (!st)
        st = evaluate_items(w, &piece, plan, in, qd_f32(&scratch), y, mse, err);
out:
    for (int k = 0; weights && k < b->n_layers; k++)
        qd_tensor_clear(&weights[k]);
    qd_free(in);
    qd_free(weights);
    qd_tensor_clear(&scratch);
    qd_plan_free(plan);
    qd_piece_clear(&piece);
    return st;
}

/* --- training --- */

typedef struct training {
    const qd_recon_work *w;
    qd_piece piece;
    qd_replicas replicas;
    int n_replicas;
    int64_t batch;
    qd_round *round;   // [layers]
    qd_tensor *weight; // [layers]: the soft ones
    int64_t weights;   /* of all layers */
} training;

/* Mean over items and space of the sum over channels of (y - target)^2 (6.2); of tokens [N, T, C] too. */
static qd_node_id add_loss(qd_graph *g, qd_node_id y, qd_node_id target, const qd_shape *shape)
{
    const double channels = (double)shape->dim[shape->rank == 4 ? 1 : shape->rank - 1];
    const qd_node_id mean = qd_loss_mse(g, "recon.loss", y, target);
    return qd_graph_add(g, &qd_op_affine, "recon.loss.by_channel", QD_IN(mean), QD_ATTRS(QD_FLOAT("mul", channels)));
}

static qd_status make_graph(training *t, qd_graph **out, qd_err *err)
{
    const qd_recon_work *w = t->w;
    const qd_block *b = w->block;
    const qd_graph *g = w->layout->graph;
    qd_graph *net;
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(g) + 1, sizeof *shapes);
    qd_node_id *wrt = qd_calloc((size_t)b->n_layers, sizeof *wrt);
    qd_status st = shapes && wrt ? qd_kept_shapes(g, t->batch / t->n_replicas, shapes, err)
                                 : qd_fail(err, QD_E_NOMEM, "no memory for %d nodes", qd_graph_size(g));
    if (!st)
        st = cut_block(w, shapes, &t->piece, err);
    if (st)
        goto out;
    net = t->piece.graph;
    const qd_node_id target = qd_graph_input(net, "recon.target", QD_F32, &shapes[b->out]);
    const qd_node_id loss = add_loss(net, t->piece.id[b->out], target, &shapes[b->out]);
    qd_graph_output(net, "loss", loss);
    st = qd_graph_verify(net, err);
    for (int k = 0; k < b->n_layers && !st; k++)
        wrt[k] = qd_graph_input_at(net, t->piece.n_inputs + k);
    if (!st)
        st = qd_graph_gradient(net, loss, wrt, b->n_layers, out, err);
out:
    qd_free(wrt);
    qd_free(shapes);
    return st;
}

static qd_status make_rounds(training *t, qd_err *err)
{
    const qd_recon_work *w = t->w;
    qd_budget *budget = qd_run_budget(w->run);
    qd_status st = QD_OK;
    for (int k = 0; k < w->block->n_layers && !st; k++) {
        const qd_shape shape = QD_SHAPE(layer_weights(w, k));
        st = qd_tensor_init(&t->weight[k], QD_F32, &shape, budget, err);
        if (!st)
            st = qd_round_init(&t->round[k], w->layout, &w->layout->layers[w->block->layers[k]], budget, err);
        if (!st)
            qd_round_weight(&t->round[k], false, qd_f32(&t->weight[k]), qd_run_threads(w->run));
    }
    return st;
}

/* The graph takes entries, weights, target. */
static qd_status make_replicas(training *t, const qd_graph *g, qd_err *err)
{
    const qd_recon_work *w = t->w;
    const int n_in = t->piece.n_inputs, n_layers = w->block->n_layers;
    qd_replica_input *in = qd_calloc((size_t)(n_in + n_layers) + 1, sizeof *in);
    if (!in)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d inputs", n_in + n_layers);
    for (int k = 0; k < n_in; k++)
        in[k] = (qd_replica_input){ w->entry[entry_of(w->block, t->piece.input[k])].data,
                                    qd_kept_bytes(w->kept, t->piece.input[k]) };
    for (int k = 0; k < n_layers; k++)
        in[n_in + k] = (qd_replica_input){ t->weight[k].data, 0 };
    in[n_in + n_layers] = (qd_replica_input){ w->target, qd_kept_bytes(w->kept, w->block->out) };
    const qd_status st = qd_replicas_init(&t->replicas, g, in, t->n_replicas, t->batch, w->run, err);
    qd_free(in);
    return st;
}

static qd_status training_init(training *t, qd_err *err)
{
    const qd_recon_work *w = t->w;
    const int n_layers = w->block->n_layers;
    qd_graph *g = NULL;
    for (int k = 0; k < n_layers; k++)
        t->weights += layer_weights(w, k);
    t->batch = w->options->batch < w->kept->items ? w->options->batch : w->kept->items;
    t->n_replicas = qd_replicas_count(t->batch, t->weights);
    t->round = qd_calloc((size_t)n_layers, sizeof *t->round);
    t->weight = qd_calloc((size_t)n_layers, sizeof *t->weight);
    if (!t->round || !t->weight)
        return qd_fail(err, QD_E_NOMEM, "no memory to train %d layers", n_layers);
    qd_status st = make_graph(t, &g, err);
    if (!st)
        st = make_rounds(t, err);
    if (!st)
        st = make_replicas(t, g, err);
    qd_graph_free(g);
    return st;
}

static void training_clear(training *t)
{
    qd_replicas_clear(&t->replicas);
    for (int k = 0; k < t->w->block->n_layers; k++) {
        if (t->round)
            qd_round_clear(&t->round[k], qd_run_budget(t->w->run));
        if (t->weight)
            qd_tensor_clear(&t->weight[k]);
    }
    qd_free(t->round);
    qd_free(t->weight);
    qd_piece_clear(&t->piece);
}

static double settled_share(const training *t)
{
    int64_t n = 0;
    for (int k = 0; k < t->w->block->n_layers; k++)
        n += qd_round_settled(&t->round[k]);
    return (double)n / (double)t->weights;
}

static void learn(training *t, int64_t step)
{
    const qd_recon_options *o = t->w->options;
    const bool warm = (double)step < o->warmup * o->iterations;
    for (int k = 0; k < t->w->block->n_layers; k++) {
        const float *grad[QD_REPLICAS];
        for (int i = 0; i < t->n_replicas; i++)
            grad[i] = qd_f32(&t->replicas.replica[i].grad[k]);
        const qd_round_step s = { .lambda = warm ? 0.0 : o->lambda,
                                  .b = qd_recon_b(o, step),
                                  .lr = o->lr,
                                  .step = step + 1,
                                  .grad = grad,
                                  .n_grad = t->n_replicas,
                                  .scale = 1.0 / t->n_replicas };
        qd_round_learn(&t->round[k], &s, qd_f32(&t->weight[k]), qd_run_threads(t->w->run));
    }
}

static qd_status train(training *t, int *iterations, qd_err *err)
{
    const qd_recon_work *w = t->w;
    const qd_recon_options *o = w->options;
    const int64_t thin = o->iterations > LOSS_POINTS ? o->iterations / LOSS_POINTS : 1;
    for (int64_t step = 0; step < o->iterations; step++) {
        double loss;
        const qd_status st = qd_replicas_run(&t->replicas, w->kept->items, w->number, step, &loss, err);
        if (st)
            return qd_fail_in(err, st, "block '%s'", w->block->name);
        learn(t, step);
        if (step % thin == 0)
            qd_run_metric(w->run, "recon_loss", w->done + step, loss);
        qd_run_progress(w->run, "reconstruct", w->block->name, w->done + step + 1, w->total);
        *iterations = (int)step + 1;
        if (o->settled < 1.0 && step % LOOK_EVERY == 0 && (double)step > o->warmup * o->iterations &&
            settled_share(t) >= o->settled)
            break;
    }
    return QD_OK;
}

qd_status qd_recon_learn(const qd_recon_work *w, int8_t *const *codes, int *iterations, double *settled, qd_err *err)
{
    training t = { .w = w };
    *iterations = 0;
    qd_status st = training_init(&t, err);
    if (!st)
        st = train(&t, iterations, err);
    if (!st) {
        *settled = settled_share(&t);
        for (int k = 0; k < w->block->n_layers; k++)
            qd_round_codes(&t.round[k], codes[k]);
    }
    training_clear(&t);
    return st;
}
