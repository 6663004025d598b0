/* noise_map.c - what every layer makes, float beside quantized, given the same x_t: where and when noise comes in. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "metrics/metrics.h"
#include "quant/qncd_int.h"

typedef struct mapping {
    const qd_trajectories *j;
    const qd_graph *quantized;
    const qd_correction *groups;
    const qd_run *run;
    const qd_quant_report *layers;
    int *report; // [n_layers]: row of the report
    qd_noise_map *map;
    int every;            /* step of the sampler that is looked at */
    qd_node_id *in_float; // [n_layers]: the layer in the float network, and in the quantized one
    qd_node_id *in_codes; // [n_layers]
    int *row_float;       // [nodes]: which layer a node is, -1 = none
    int *row_codes;       // [nodes]
    qd_grouped *reference, *other;
    qd_tensor *made; // [n_layers], by the float network
    float *eps;
    int64_t batch, valid;
    int at; /* column */
    qd_status failed;
    qd_err *err;
} mapping;

void qd_noise_map_clear(qd_noise_map *m)
{
    qd_free(m->layer);
    qd_free(m->t);
    qd_free(m->sqnr_db);
    qd_free(m->cosine);
    *m = (qd_noise_map){ 0 };
}

/* Values of the samples that count. */
static int64_t counted(const mapping *w, const qd_shape *shape)
{
    int64_t n = 1;
    for (int k = 0; k < shape->rank; k++)
        n *= shape->dim[k];
    return shape->dim[0] == w->batch ? n / w->batch * w->valid : n;
}

static void keep(void *ctx, qd_node_id id, const float *data, const qd_shape *shape)
{
    mapping *w = ctx;
    qd_tensor *t = &w->made[w->row_float[id]];
    if (!w->failed && !t->data)
        w->failed = qd_tensor_init(t, QD_F32, shape, qd_run_budget(w->run), w->err);
    if (!w->failed)
        memcpy(t->data, data, qd_tensor_bytes(t));
}

static void compare(void *ctx, qd_node_id id, const float *data, const qd_shape *shape)
{
    mapping *w = ctx;
    const int row = w->row_codes[id];
    const qd_tensor *t = &w->made[row];
    if (w->failed || !t->data || !qd_shape_equal(&t->shape, shape))
        return;
    const int64_t n = counted(w, shape);
    const double db = qd_sqnr_db(qd_f32(t), data, n);
    w->map->sqnr_db[row * w->map->n_steps + w->at] = (float)db;
    w->map->cosine[row * w->map->n_steps + w->at] = (float)qd_cosine(qd_f32(t), data, n);
    const qd_layer_report *l = &w->layers->layers[w->report[row]];
    qd_run_layer(w->run, w->map->layer[row], w->map->t[w->at], l->weight_bits, l->activation_bits, db, NAN, NAN);
}

static qd_status open_both(mapping *w, const qd_predictor *p, qd_err *err)
{
    qd_denoiser_options o = { .batch = p->batch,
                              .threads = qd_run_threads(w->run),
                              .budget = qd_run_budget(w->run),
                              .condition = w->j->options.condition,
                              .observed = w->in_float,
                              .n_observed = w->map->n_layers,
                              .observe = keep,
                              .observe_ctx = w };
    w->batch = p->batch;
    w->eps = qd_alloc_aligned((size_t)(p->batch * p->channels * p->height * p->width) * sizeof(float));
    if (!w->eps)
        return qd_fail(err, QD_E_NOMEM, "no memory for the answers of %lld samples", (long long)p->batch);
    qd_status st = qd_grouped_new(w->j->graph, NULL, &o, &w->reference, err);
    o.observed = w->in_codes;
    o.observe = compare;
    return st ? st : qd_grouped_new(w->quantized, w->groups, &o, &w->other, err);
}

static qd_status look(void *ctx, const qd_predictor *p, int step, int t, int64_t first, int64_t n, const float *x,
                      const float *eps, qd_err *err)
{
    mapping *w = ctx;
    if (first > 0 || step % w->every != 0 || step / w->every >= w->map->n_steps)
        return QD_OK;
    const int at = step / w->every;
    if (at < w->at)
        return QD_OK; /* plms: the second call of a step */
    qd_status st = w->reference ? QD_OK : open_both(w, p, err);
    if (st)
        return st;
    w->at = at;
    w->valid = n;
    w->map->t[at] = t;
    w->err = err;
    w->failed = QD_OK;
    const qd_predictor a = qd_grouped_predictor(w->reference), b = qd_grouped_predictor(w->other);
    qd_predictor_seat(&a, w->j->options.first_sample + first);
    qd_predictor_seat(&b, w->j->options.first_sample + first);
    st = a.predict(a.ctx, w->run, x, t, w->eps, err);
    if (!st && !w->failed)
        st = b.predict(b.ctx, w->run, x, t, w->eps, err);
    w->at = at + 1;
    return st ? st : w->failed;
}

/* Layers of the report that both networks know by name; halves of a split one are their sum, and so is one with a branch. */
static int find_layers(mapping *w, const qd_quant_report *r)
{
    int n = 0;
    for (int k = 0; k < r->n_layers; k++) {
        char name[QD_MAX_NAME + 8];
        snprintf(name, sizeof name, "%s", r->layers[k].name);
        char *split = strstr(name, ".split");
        if (split && split[7] == '\0')
            *split = '\0';
        char *rest = strstr(name, qd_low_rank_rest);
        if (rest && rest[strlen(qd_low_rank_rest)] == '\0')
            *rest = '\0';
        const qd_node_id a = qd_graph_find(w->j->graph, name), b = qd_graph_find(w->quantized, name);
        if (a < 0 || b < 0 || w->row_float[a] >= 0)
            continue;
        w->row_float[a] = w->row_codes[b] = n;
        w->in_float[n] = a;
        w->in_codes[n] = b;
        w->report[n] = k;
        snprintf(w->map->layer[n++], sizeof name, "%s", name);
    }
    return n;
}

static qd_status make_room(mapping *w, int most, int steps, qd_err *err)
{
    qd_noise_map *m = w->map;
    const size_t a = (size_t)qd_graph_size(w->j->graph), b = (size_t)qd_graph_size(w->quantized), n = (size_t)most;
    m->n_steps = steps;
    m->layer = qd_calloc(n, sizeof *m->layer);
    m->t = qd_calloc((size_t)steps, sizeof *m->t);
    m->sqnr_db = qd_calloc(n * (size_t)steps, sizeof *m->sqnr_db);
    m->cosine = qd_calloc(n * (size_t)steps, sizeof *m->cosine);
    w->in_float = qd_calloc(n, sizeof *w->in_float);
    w->in_codes = qd_calloc(n, sizeof *w->in_codes);
    w->row_float = qd_calloc(a, sizeof *w->row_float);
    w->row_codes = qd_calloc(b, sizeof *w->row_codes);
    w->made = qd_calloc(n, sizeof *w->made);
    w->report = qd_calloc(n, sizeof *w->report);
    if (!w->report || !m->layer || !m->t || !m->sqnr_db || !m->cosine || !w->in_float || !w->in_codes ||
        !w->row_float || !w->row_codes || !w->made)
        return qd_fail(err, QD_E_NOMEM, "no memory for a noise map of %d layers", most);
    memset(w->row_float, -1, a * sizeof *w->row_float);
    memset(w->row_codes, -1, b * sizeof *w->row_codes);
    return QD_OK;
}

qd_status qd_noise_map_make(const qd_trajectories *j, const qd_graph *quantized, const qd_correction *groups, int steps,
                            const qd_run *run, const qd_quant_report *layers, qd_noise_map *out, qd_err *err)
{
    qd_noise_map made = { 0 };
    qd_trajectories mine = *j;
    mapping w = { .j = &mine, .quantized = quantized, .groups = groups, .run = run, .layers = layers, .map = &made };
    w.every = (j->options.steps + steps - 1) / steps;
    const int columns = (j->options.steps + w.every - 1) / w.every;
    qd_status st = make_room(&w, layers->n_layers, columns, err);
    if (st)
        goto out;
    made.n_layers = find_layers(&w, layers);
    if (made.n_layers == 0)
        goto out;
    mine.look = look;
    mine.ctx = &w;
    mine.phase = "map";
    mine.samples = qd_trajectory_batch(j->samples);
    st = qd_trajectories_run(&mine, run, err);
    if (st)
        goto out;
    *out = made;
    made = (qd_noise_map){ 0 };
out:
    for (int k = 0; w.made && k < layers->n_layers; k++)
        qd_tensor_clear(&w.made[k]);
    qd_free(w.made);
    qd_free(w.report);
    qd_grouped_free(w.reference);
    qd_grouped_free(w.other);
    qd_free(w.eps);
    qd_free(w.in_float);
    qd_free(w.in_codes);
    qd_free(w.row_float);
    qd_free(w.row_codes);
    qd_noise_map_clear(&made);
    return st;
}
