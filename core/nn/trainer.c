/* trainer.c - the loop: data in, one run of the plan for loss, gradients and statistics, one step of the optimizer.
 *
 * Parameters, gradients and the optimizer's state are flat arrays; each tensor begins at a multiple of 16 floats, the gaps stay 0. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/par.h"
#include "graph/op.h"
#include "nn/train_int.h"
#include "plan/plan.h"

#define ALIGN 16                 /* floats */
#define SLOTS 2                  /* the most an optimizer has */
#define PIECE ((int64_t)1 << 16) /* of the flat arrays that one thread sweeps */

typedef struct norm {
    qd_node_id mean, var;    /* constants of the network */
    int64_t channels, count; /* values behind each statistic */
    float *running;          // [2, channels]
    float *batch;            // [2, channels], biased
} norm;

struct qd_trainer {
    qd_trainer_options o;
    qd_trainable t;
    qd_plan *plan;
    uint64_t seed;
    int64_t step;
    float loss;

    int64_t total;  /* floats of each flat array */
    int64_t *begin; /* of each parameter */
    float *w, *grad, *ema, *slot[SLOTS];
    norm *norms;
    float *stats; /* behind norms */

    const void **inputs; /* of the plan */
    void **outputs;
    void **data; /* inputs that are not parameters, ours to be filled */
    int n_inputs, n_data;

    qd_kept *kept; /* everything a checkpoint holds */
    int n_kept;

    qd_budget *budget;
    size_t drawn;
};

static int64_t count_of(const qd_shape *s)
{
    int64_t n = 1;
    for (int k = 0; k < s->rank; k++)
        n *= s->dim[k];
    return n;
}

static const qd_node *constant_of(const qd_trainer *t, int param)
{
    return qd_graph_node(t->o.network, t->t.params[param].from);
}

/* --- memory --- */

static qd_status draw(qd_trainer *t, size_t bytes, const char *what, qd_err *err)
{
    qd_status st = qd_budget_draw(t->budget, bytes, what, err);
    if (!st)
        t->drawn += bytes;
    return st;
}

static void give_back(qd_trainer *t)
{
    qd_budget_give(t->budget, t->drawn);
    t->drawn = 0;
}

/* Parameters, gradients, average, slots. */
static int array_count(const qd_trainer *t)
{
    return 2 + (t->o.ema_decay > 0.0) + t->o.optim.rule->slots;
}

/* Where each parameter begins; the bytes of all that does not depend on the batch. */
static qd_status lay_arrays(qd_trainer *t, size_t *bytes, qd_err *err)
{
    t->begin = qd_alloc(((size_t)t->t.n_params + 1) * sizeof *t->begin);
    if (!t->begin)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d parameters", t->t.n_params);
    for (int k = 0; k < t->t.n_params; k++) {
        t->begin[k] = t->total;
        t->total += (qd_tensor_count(&constant_of(t, k)->value) + ALIGN - 1) / ALIGN * ALIGN;
    }
    if (!qd_mul_size((size_t)t->total, sizeof(float) * (size_t)array_count(t), bytes) ||
        !qd_add_size(*bytes, (size_t)qd_graph_size(t->t.graph) * sizeof(qd_node), bytes))
        return qd_fail(err, QD_E_LIMIT, "%lld values cannot be trained", (long long)t->total);
    return QD_OK;
}

static qd_status make_arrays(qd_trainer *t, qd_err *err)
{
    float **arrays[] = { &t->w, &t->grad, &t->ema, &t->slot[0], &t->slot[1] };
    const bool wanted[] = { true, true, t->o.ema_decay > 0.0, t->o.optim.rule->slots > 0, t->o.optim.rule->slots > 1 };
    const size_t bytes = (size_t)t->total * sizeof(float);
    for (size_t k = 0; k < sizeof arrays / sizeof *arrays; k++) {
        if (!wanted[k])
            continue;
        *arrays[k] = qd_alloc_aligned(bytes);
        if (!*arrays[k])
            return qd_fail(err, QD_E_NOMEM, "no memory for the %lld values that are trained", (long long)t->total);
        memset(*arrays[k], 0, bytes);
    }
    for (int k = 0; k < t->t.n_params; k++) {
        const qd_tensor *v = &constant_of(t, k)->value;
        memcpy(t->w + t->begin[k], v->data, qd_tensor_bytes(v));
    }
    if (t->ema)
        memcpy(t->ema, t->w, bytes);
    return QD_OK;
}

static qd_status make_norms(qd_trainer *t, const qd_shape *shapes, qd_err *err)
{
    int64_t channels = 0;
    t->norms = qd_calloc((size_t)t->t.n_norms + 1, sizeof *t->norms);
    if (!t->norms)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d batch norms", t->t.n_norms);
    for (int k = 0; k < t->t.n_norms; k++) {
        const qd_node *n = qd_graph_node(t->o.network, t->t.norms[k].from);
        const qd_shape *x = &shapes[qd_graph_node(t->t.graph, t->t.norms[k].id)->input[0]];
        t->norms[k] = (norm){ .mean = n->input[3], .var = n->input[4], .channels = x->dim[1] };
        t->norms[k].count = count_of(x) / x->dim[1];
        channels += x->dim[1];
    }
    t->stats = qd_calloc((size_t)channels * 4 + 1, sizeof *t->stats);
    if (!t->stats)
        return qd_fail(err, QD_E_NOMEM, "no memory for the statistics of %d batch norms", t->t.n_norms);
    float *at = t->stats;
    for (int k = 0; k < t->t.n_norms; k++, at += 4 * t->norms[k - 1].channels) {
        norm *m = &t->norms[k];
        m->running = at;
        m->batch = at + 2 * m->channels;
        memcpy(m->running, qd_graph_node(t->o.network, m->mean)->value.data, (size_t)m->channels * sizeof(float));
        memcpy(m->running + m->channels, qd_graph_node(t->o.network, m->var)->value.data,
               (size_t)m->channels * sizeof(float));
    }
    return QD_OK;
}

/* Where the plan reads and writes: parameters in place, data in arrays of ours. */
static qd_status make_ends(qd_trainer *t, const qd_shape *input_shapes, qd_err *err)
{
    const qd_graph *g = t->t.graph;
    t->n_inputs = qd_graph_inputs(g);
    t->inputs = qd_calloc((size_t)t->n_inputs + 1, sizeof *t->inputs);
    t->data = qd_calloc((size_t)t->n_inputs + 1, sizeof *t->data);
    t->outputs = qd_calloc((size_t)(1 + t->t.n_norms + t->t.n_params), sizeof *t->outputs);
    if (!t->inputs || !t->data || !t->outputs)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d inputs", t->n_inputs);
    for (int k = 0, param = 0; k < t->n_inputs; k++) {
        const qd_node_id id = qd_graph_input_at(g, k);
        if (param < t->t.n_params && t->t.params[param].id == id) {
            t->inputs[k] = t->w + t->begin[param++];
            continue;
        }
        const size_t bytes = (size_t)count_of(&input_shapes[k]) * qd_dtype_bits(qd_graph_node(g, id)->dtype) / 8;
        void *data = qd_alloc_aligned(bytes);
        if (!data)
            return qd_fail(err, QD_E_NOMEM, "no memory for the input '%s' (%zu bytes)", qd_graph_node(g, id)->name,
                           bytes);
        memset(data, 0, bytes);
        t->data[t->n_data++] = data;
        t->inputs[k] = data;
    }
    int out = 0;
    t->outputs[out++] = &t->loss;
    for (int k = 0; k < t->t.n_norms; k++)
        t->outputs[out++] = t->norms[k].batch;
    for (int k = 0; k < t->t.n_params; k++)
        t->outputs[out++] = t->grad + t->begin[k];
    return QD_OK;
}

static void keep(qd_trainer *t, const char *kind, const char *name, const qd_shape *shape, float *data)
{
    qd_kept *k = &t->kept[t->n_kept++];
    snprintf(k->name, sizeof k->name, "%s.%s", kind, name);
    k->shape = *shape;
    k->data = data;
}

static qd_status make_kept(qd_trainer *t, qd_err *err)
{
    static const char *const kinds[] = { "weight", "average", "slot0", "slot1" };
    float *const arrays[] = { t->w, t->ema, t->slot[0], t->slot[1] };
    t->kept = qd_calloc((size_t)t->t.n_params * 4 + (size_t)t->t.n_norms + 1, sizeof *t->kept);
    if (!t->kept)
        return qd_fail(err, QD_E_NOMEM, "no memory to list %d parameters", t->t.n_params);
    for (int a = 0; a < 4; a++)
        for (int k = 0; arrays[a] && k < t->t.n_params; k++)
            keep(t, kinds[a], constant_of(t, k)->name, &constant_of(t, k)->shape, arrays[a] + t->begin[k]);
    for (int k = 0; k < t->t.n_norms; k++) {
        const qd_shape shape = QD_SHAPE(2, t->norms[k].channels);
        keep(t, "running", qd_graph_node(t->o.network, t->t.norms[k].from)->name, &shape, t->norms[k].running);
    }
    return QD_OK;
}

/* What is drawn from the budget, but for the plan. */
static void free_arrays(qd_trainer *t)
{
    float **arrays[] = { &t->w, &t->grad, &t->ema, &t->slot[0], &t->slot[1] };
    for (size_t k = 0; k < sizeof arrays / sizeof *arrays; k++) {
        qd_free(*arrays[k]);
        *arrays[k] = NULL;
    }
    for (int k = 0; k < t->n_data; k++)
        qd_free(t->data[k]);
    t->n_data = 0;
}

/* --- life --- */

static qd_status check_options(const qd_trainer_options *o, qd_err *err)
{
    if (!o->optim.rule)
        return qd_fail(err, QD_E_INVALID, "no optimizer was chosen");
    if (o->batch_size < 1)
        return qd_fail(err, QD_E_INVALID, "the batch must have at least 1 sample, got %lld", (long long)o->batch_size);
    if (!(o->ema_decay >= 0.0 && o->ema_decay < 1.0))
        return qd_fail(err, QD_E_INVALID, "the decay of the average must be in [0, 1), got %g", o->ema_decay);
    if (!(o->bn_momentum >= 0.0 && o->bn_momentum <= 1.0))
        return qd_fail(err, QD_E_INVALID, "the momentum of running statistics must be in [0, 1], got %g",
                       o->bn_momentum);
    return QD_OK;
}

/* Norms and inputs by the shapes of this batch. */
static qd_status make_rest(qd_trainer *t, qd_err *err)
{
    const int n_inputs = qd_graph_inputs(t->t.graph), n = qd_graph_size(t->t.graph);
    qd_shape *given = qd_calloc((size_t)n_inputs + 1, sizeof *given), *all = qd_calloc((size_t)n + 1, sizeof *all);
    qd_status st = given && all ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %d shapes", n);
    if (!st) {
        qd_train_inputs(&t->t, t->o.batch_size, given);
        st = qd_graph_shapes(t->t.graph, given, n_inputs, all, err);
    }
    if (!st)
        st = make_norms(t, all, err);
    if (!st)
        st = make_ends(t, given, err);
    qd_free(all);
    qd_free(given);
    return st;
}

/* Everything that takes memory by the size of network and batch: drawn first, then made. */
static qd_status make_step(qd_trainer *t, const qd_run *run, qd_err *err)
{
    size_t arrays = 0;
    qd_status st = lay_arrays(t, &arrays, err);
    if (st)
        return st;
    st = draw(t, arrays, "parameters, gradients and the optimizer's state", err);
    if (!st)
        st = draw(t, qd_train_data_bytes(&t->t, t->o.batch_size), "a batch of inputs", err);
    if (!st)
        st = make_arrays(t, err);
    if (!st)
        st = make_rest(t, err);
    if (!st)
        st = qd_train_compile(&t->t, &t->o, run, NULL, &t->plan, err);
    if (st != QD_E_LIMIT || !t->budget)
        return st;
    /* What is there goes before other sizes are tried. */
    free_arrays(t);
    give_back(t);
    return qd_train_refuse(&t->t, &t->o, run, arrays, err);
}

qd_status qd_trainer_new(const qd_trainer_options *o, const qd_run *run, qd_trainer **out, qd_err *err)
{
    qd_status st = check_options(o, err);
    if (st)
        return st;
    qd_trainer *t = qd_calloc(1, sizeof *t);
    if (!t)
        return qd_fail(err, QD_E_NOMEM, "no memory for a trainer");
    t->o = *o;
    t->seed = run ? run->seed : 0;
    t->budget = qd_run_budget(run);
    if (t->o.bn_momentum == 0.0)
        t->o.bn_momentum = 0.1;
    st = qd_trainable_make(&t->o, &t->t, err);
    if (!st)
        st = make_step(t, run, err);
    if (!st)
        st = make_kept(t, err);
    if (!st) {
        *out = t;
        t = NULL;
    }
    qd_trainer_free(t);
    return st;
}

void qd_trainer_free(qd_trainer *t)
{
    if (!t)
        return;
    qd_plan_free(t->plan);
    free_arrays(t);
    give_back(t);
    qd_free(t->kept);
    qd_free(t->outputs);
    qd_free(t->data);
    qd_free(t->inputs);
    qd_free(t->stats);
    qd_free(t->norms);
    qd_free(t->begin);
    qd_trainable_clear(&t->t);
    qd_free(t);
}

/* --- steps --- */

/* Running statistics follow, the variance unbiased, as PyTorch has it. */
static void follow(const qd_trainer *t, norm *m)
{
    const float take = (float)t->o.bn_momentum, keep_ = 1.0f - take;
    const float unbias = m->count > 1 ? (float)((double)m->count / (double)(m->count - 1)) : 1.0f;
    for (int64_t k = 0; k < m->channels; k++) {
        m->running[k] = keep_ * m->running[k] + take * m->batch[k];
        m->running[m->channels + k] = keep_ * m->running[m->channels + k] + take * unbias * m->batch[m->channels + k];
    }
}

/* One run of the optimizer: its pieces are tensors, or stretches of all of them together with the gaps between. */
typedef struct sweep {
    qd_trainer *t;
    double lr;
} sweep;

static void sweep_piece(void *ctx, int64_t i)
{
    const sweep *s = ctx;
    qd_trainer *t = s->t;
    const bool whole = t->o.optim.rule->by_tensor;
    const int64_t at = whole ? t->begin[i] : i * PIECE, left = t->total - at;
    const int64_t n = whole ? qd_tensor_count(&constant_of(t, (int)i)->value) : left < PIECE ? left : PIECE;
    float *const slot[SLOTS] = { t->slot[0] ? t->slot[0] + at : NULL, t->slot[1] ? t->slot[1] + at : NULL };
    t->o.optim.rule->apply(&t->o.optim, t->step + 1, s->lr, t->w + at, t->grad + at, slot, n);
    if (t->ema)
        qd_ema_update(t->ema + at, t->w + at, n, t->o.ema_decay);
}

static void optimize(qd_trainer *t, double lr, int threads)
{
    sweep s = { .t = t, .lr = lr };
    if (t->o.clip_norm > 0.0)
        qd_clip_norm(t->grad, t->total, t->o.clip_norm);
    qd_par_for(threads, t->o.optim.rule->by_tensor ? t->t.n_params : (t->total + PIECE - 1) / PIECE, sweep_piece, &s);
    for (int k = 0; k < t->t.n_norms; k++)
        follow(t, &t->norms[k]);
}

static qd_status one_step(qd_trainer *t, const qd_run *run, qd_err *err)
{
    const double lr = qd_lr_at(&t->o.schedule, t->step);
    qd_rng rng;
    qd_rng_init(&rng, t->seed, QD_STREAM_SHUFFLE | (uint64_t)t->step);
    qd_status st = t->o.batch(t->o.ctx, &rng, t->step, t->data, err);
    if (!st)
        st = qd_plan_run(t->plan, run, t->inputs, t->outputs, err);
    if (!st && !isfinite(t->loss))
        st = qd_fail(err, QD_E_NUMERIC, "the loss of step %lld is %g", (long long)t->step, (double)t->loss);
    if (st)
        return st;
    optimize(t, lr, qd_run_threads(run));
    qd_run_metric(run, "loss", t->step, t->loss);
    qd_run_metric(run, "lr", t->step, lr);
    t->step++;
    return QD_OK;
}

qd_status qd_trainer_run(qd_trainer *t, const qd_run *run, int64_t until, qd_err *err)
{
    qd_status st = QD_OK;
    while (t->step < until && !st) {
        st = one_step(t, run, err);
        if (!st)
            qd_run_progress(run, "train", NULL, t->step, until);
    }
    return st;
}

int64_t qd_trainer_step(const qd_trainer *t)
{
    return t->step;
}

double qd_trainer_loss(const qd_trainer *t)
{
    return t->loss;
}

qd_plan *qd_trainer_plan(const qd_trainer *t)
{
    return t->plan;
}

qd_status qd_trainer_save(const qd_trainer *t, const char *path, qd_err *err)
{
    const qd_checkpoint c = {
        .optimizer = t->o.optim.rule->name, .seed = t->seed, .step = t->step, .kept = t->kept, .n = t->n_kept
    };
    return qd_checkpoint_save(&c, path, err);
}

qd_status qd_trainer_load(qd_trainer *t, const char *path, qd_err *err)
{
    qd_checkpoint c = { .optimizer = t->o.optim.rule->name, .seed = t->seed, .kept = t->kept, .n = t->n_kept };
    qd_status st = qd_checkpoint_load(&c, path, err);
    if (!st)
        t->step = c.step;
    return st;
}

typedef struct finish {
    const qd_trainer *t;
    const float *w;
} finish;

static const float *learned(const void *ctx, qd_node_id id)
{
    const finish *f = ctx;
    for (int k = 0; k < f->t->t.n_params; k++)
        if (f->t->t.params[k].from == id)
            return f->w + f->t->begin[k];
    for (int k = 0; k < f->t->t.n_norms; k++) {
        const norm *m = &f->t->norms[k];
        if (m->mean == id || m->var == id)
            return m->running + (m->mean == id ? 0 : m->channels);
    }
    return NULL;
}

qd_status qd_trainer_network(const qd_trainer *t, bool averaged, qd_graph **out, qd_err *err)
{
    const finish f = { .t = t, .w = averaged ? t->ema : t->w };
    if (!f.w)
        return qd_fail(err, QD_E_INVALID, "no average was kept: ema_decay is 0");
    return qd_trainable_finish(t->o.network, learned, &f, t->budget, out, err);
}
