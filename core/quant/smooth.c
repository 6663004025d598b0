/* smooth.c - embedding-derived feature smoothing: factors from the time embedding alone, folded into the second convolution
 * (qncd.md 7; Chu et al. 2024). */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "quant/qncd_int.h"

#define FACTOR_MIN 0x1p-4
#define FACTOR_MAX 0x1p+4
#define MOST_CLASSES 16 /* of a class-conditional network that stand for all */
#define NAME_BYTES (QD_MAX_NAME + 32)

static const char suffix[] = ".smooth";

void qd_smoothing_clear(qd_smoothing *s)
{
    for (int k = 0; k < s->n; k++)
        qd_free(s->layers[k].factor);
    qd_free(s->layers);
    *s = (qd_smoothing){ 0 };
}

bool qd_smooth_is(const qd_graph *g, qd_node_id id, qd_node_id *value, qd_node_id *factor)
{
    const qd_node *n = qd_graph_node(g, id);
    const size_t len = strlen(n->name);
    if (n->op != &qd_op_div || len < sizeof suffix || strcmp(n->name + len - (sizeof suffix - 1), suffix) != 0)
        return false;
    const qd_node *by = qd_graph_node(g, n->input[1]);
    if (by->op != &qd_op_const || by->dtype != QD_F32)
        return false;
    *value = n->input[0];
    *factor = n->input[1];
    return true;
}

/* --- factors --- */

/* sum[c] += max(1, E_c) of one embedding e[channels]: normalised by norm2's groups without its affine (7.2). */
static void add_additive(double *sum, const float *e, int64_t channels, int64_t groups, double eps)
{
    const int64_t size = channels / groups;
    for (int64_t g = 0; g < groups; g++) {
        const float *v = e + g * size;
        double mean = 0.0, var = 0.0;
        for (int64_t c = 0; c < size; c++)
            mean += v[c];
        mean /= (double)size;
        for (int64_t c = 0; c < size; c++)
            var += (v[c] - mean) * (v[c] - mean);
        const double inv = 1.0 / sqrt(var / (double)size + eps);
        for (int64_t c = 0; c < size; c++)
            sum[g * size + c] += fmax(1.0, (v[c] - mean) * inv);
    }
}

/* sum[c] += max(1, |1 + s_c|) (7.3). */
static void add_film(double *sum, const float *s, int64_t channels)
{
    for (int64_t c = 0; c < channels; c++)
        sum[c] += fmax(1.0, fabs(1.0 + s[c]));
}

/* S from S0 [channels]: times |gamma|, over the geometric mean, clamped (7.2). gamma may be NULL. */
static void finish(float *factor, const double *s0, const float *gamma, int64_t channels, bool pow2)
{
    double logs = 0.0;
    int64_t counted = 0;
    for (int64_t c = 0; c < channels; c++) {
        const double s = s0[c] * (gamma ? fabs(gamma[c]) : 1.0);
        if (s > 0.0) {
            logs += log(s);
            counted++;
        }
    }
    const double mean = counted ? exp(logs / (double)counted) : 1.0;
    for (int64_t c = 0; c < channels; c++) {
        double s = s0[c] * (gamma ? fabs(gamma[c]) : 1.0) / mean;
        s = fmin(fmax(s, FACTOR_MIN), FACTOR_MAX);
        factor[c] = (float)(pow2 ? exp2(nearbyint(log2(s))) : s);
    }
}

static const float *gamma_of(const qd_graph *g, const qd_resblock *b)
{
    const qd_node *norm = qd_graph_node(g, b->norm2);
    if (norm->n_inputs < 2 || norm->input[1] < 0)
        return NULL;
    const qd_node *w = qd_graph_node(g, norm->input[1]);
    return w->op == &qd_op_const && w->dtype == QD_F32 ? qd_f32(&w->value) : NULL;
}

/* How many classes the network's table of labels has; 1 when labels do not pick a row. */
static int64_t classes_of(const qd_graph *g)
{
    const qd_node_id labels = qd_graph_find(g, "class_labels");
    for (qd_node_id id = 0; labels >= 0 && id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        if (n->op == &qd_op_embedding && n->input[0] == labels)
            return qd_graph_node(g, n->input[1])->shape.dim[0];
    }
    return 1;
}

/* --- the embeddings of all blocks, by a plan of that part of the network alone --- */

typedef struct embedder {
    const qd_graph *g; /* the whole network */
    qd_graph *part;    /* its outputs are the blocks' embeddings */
    qd_plan *plan;
    int n_inputs, n_blocks;
    qd_shape shapes[QD_MAX_INPUTS];
    qd_tensor in[QD_MAX_INPUTS];
    float **e; // [n_blocks], each [channels of the block]
} embedder;

static void embedder_close(embedder *m)
{
    qd_plan_free(m->plan);
    qd_graph_free(m->part);
    for (int k = 0; k < m->n_inputs; k++)
        qd_tensor_clear(&m->in[k]);
    for (int k = 0; m->e && k < m->n_blocks; k++)
        qd_free(m->e[k]);
    qd_free(m->e);
}

static qd_status embedder_graph(embedder *m, const qd_resblock *b, qd_err *err)
{
    qd_graph *all = NULL;
    const int size = qd_graph_size(m->g);
    qd_node_id *map = qd_calloc((size_t)size, sizeof *map);
    if (!map)
        return qd_fail(err, QD_E_NOMEM, "no memory for a map of %d nodes", size);
    qd_status st = qd_graph_new(&all, err);
    if (st)
        goto out;
    for (qd_node_id id = 0; id < size; id++)
        qd_graph_copy_node(all, m->g, id, map);
    for (int k = 0; k < m->n_blocks; k++) {
        char name[32];
        snprintf(name, sizeof name, "embedding.%d", k);
        qd_graph_output(all, name, map[b[k].embedding >= 0 ? b[k].embedding : b[k].film]);
    }
    st = qd_graph_verify(all, err);
    if (!st)
        st = qd_graph_prune(all, &m->part, err);
out:
    qd_graph_free(all);
    qd_free(map);
    return st;
}

static qd_status embedder_open(embedder *m, const qd_resblock *b, const qd_run *run, qd_err *err)
{
    qd_status st = embedder_graph(m, b, err);
    if (st)
        return st;
    const int n = qd_graph_inputs(m->part);
    if (n > QD_MAX_INPUTS)
        return qd_fail(err, QD_E_UNSUPPORTED, "the graph has %d inputs; %d are the most", n, QD_MAX_INPUTS);
    m->e = qd_calloc((size_t)m->n_blocks, sizeof *m->e);
    if (!m->e)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d embeddings", m->n_blocks);
    for (int k = 0; k < n; k++) {
        const qd_node *in = qd_graph_node(m->part, qd_graph_input_at(m->part, k));
        m->shapes[k] = in->shape;
        if (m->shapes[k].rank > 0)
            m->shapes[k].dim[0] = 1;
        st = qd_tensor_init(&m->in[k], in->dtype, &m->shapes[k], qd_run_budget(run), err);
        if (st)
            return st;
        m->n_inputs = k + 1; /* the image does not reach the embeddings: zeros do */
    }
    for (int k = 0; k < m->n_blocks; k++) {
        m->e[k] = qd_calloc((size_t)b[k].channels, sizeof *m->e[k]);
        if (!m->e[k])
            return qd_fail(err, QD_E_NOMEM, "no memory for an embedding of %lld values", (long long)b[k].channels);
    }
    const qd_plan_options o = {
        .input_shapes = m->shapes, .n_inputs = m->n_inputs, .threads = qd_run_threads(run), .budget = qd_run_budget(run)
    };
    return qd_plan_compile(m->part, &o, &m->plan, err);
}

static void put(void *dst, qd_dtype dtype, int64_t v)
{
    if (dtype == QD_I64)
        *(int64_t *)dst = v;
    else if (dtype == QD_F32)
        *(float *)dst = (float)v;
}

static qd_status embed(embedder *m, int t, int64_t label, const qd_run *run, qd_err *err)
{
    const void *in[QD_MAX_INPUTS];
    for (int k = 0; k < m->n_inputs; k++) {
        const qd_node *n = qd_graph_node(m->part, qd_graph_input_at(m->part, k));
        if (strcmp(n->name, "timestep") == 0)
            put(m->in[k].data, n->dtype, t);
        else if (strcmp(n->name, "class_labels") == 0 && n->shape.rank == 1)
            put(m->in[k].data, n->dtype, label);
        in[k] = m->in[k].data;
    }
    return qd_plan_run(m->plan, run, in, (void *const *)m->e, err);
}

static qd_status sum_up(embedder *m, const qd_resblock *b, const int *t, int n_t, double *const *sum, const qd_run *run,
                        qd_err *err)
{
    const int64_t classes = classes_of(m->g), shown = classes < MOST_CLASSES ? classes : MOST_CLASSES;
    for (int i = 0; i < n_t; i++) {
        qd_status st = qd_run_check(run, err);
        for (int64_t c = 0; c < shown && !st; c++) {
            st = embed(m, t[i], c * classes / shown, run, err);
            for (int k = 0; k < m->n_blocks && !st; k++) {
                if (b[k].embedding >= 0)
                    add_additive(sum[k], m->e[k], b[k].channels, b[k].groups,
                                 qd_node_float(qd_graph_node(m->g, b[k].norm2), "eps"));
                else
                    add_film(sum[k], m->e[k], b[k].channels);
            }
        }
        if (st)
            return st;
        qd_run_progress(run, "smooth", NULL, i + 1, n_t);
    }
    for (int k = 0; k < m->n_blocks; k++)
        for (int64_t c = 0; c < b[k].channels; c++) {
            sum[k][c] /= (double)(n_t * shown);
            if (!isfinite(sum[k][c]))
                return qd_fail(err, QD_E_NUMERIC, "the time embedding before '%s' is not finite in channel %lld",
                               qd_graph_node(m->g, b[k].conv2)->name, (long long)c);
        }
    return QD_OK;
}

qd_status qd_smoothing_of_embeddings(const qd_graph *g, const int *t, int n_t, const qd_smooth_options *o,
                                     const qd_run *run, qd_smoothing *out, qd_err *err)
{
    qd_resblock *b = NULL;
    embedder m = { .g = g };
    double **sum = NULL;
    qd_smoothing s = { 0 };
    int n = 0;
    qd_status st = qd_resblocks_find(g, &b, &n, err);
    if (st)
        return st;
    if (n == 0 || n_t < 1) {
        st = n == 0 ? qd_fail(err, QD_E_INVALID,
                              "no residual block of this model is told the time step: nothing to smooth")
                    : qd_fail(err, QD_E_INVALID, "smoothing needs at least one time step");
        goto out;
    }
    m.n_blocks = n;
    sum = qd_calloc((size_t)n, sizeof *sum);
    s.layers = qd_calloc((size_t)n, sizeof *s.layers);
    bool made = sum && s.layers;
    for (int k = 0; made && k < n; k++) {
        s.layers[k] = (qd_smooth_layer){ .layer = b[k].conv2, .channels = b[k].channels };
        s.layers[k].factor = qd_calloc((size_t)b[k].channels, sizeof(float));
        sum[k] = qd_calloc((size_t)b[k].channels, sizeof(double));
        s.n = k + 1;
        made = s.layers[k].factor && sum[k];
    }
    if (!made) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the factors of %d blocks", n);
        goto out;
    }
    st = embedder_open(&m, b, run, err);
    if (!st)
        st = sum_up(&m, b, t, n_t, sum, run, err);
    if (st)
        goto out;
    for (int k = 0; k < n; k++)
        finish(s.layers[k].factor, sum[k], o->gamma ? gamma_of(g, &b[k]) : NULL, b[k].channels, o->pow2);
    *out = s;
    s = (qd_smoothing){ 0 };
out:
    for (int k = 0; sum && k < n; k++)
        qd_free(sum[k]);
    qd_free(sum);
    qd_smoothing_clear(&s);
    embedder_close(&m);
    qd_free(b);
    return st;
}

/* --- the fold --- */

/* W S along the input channels: axis 1, counted on from group to group. */
static qd_status scaled_weight(const qd_node *layer, const qd_tensor *weight, const float *factor, qd_budget *budget,
                               qd_tensor *out, qd_err *err)
{
    qd_status st = qd_tensor_init(out, QD_F32, &weight->shape, budget, err);
    if (st)
        return st;
    const int64_t groups = layer->op == &qd_op_conv2d ? qd_node_int(layer, "groups") : 1;
    const int64_t outputs = weight->shape.dim[0], channels = weight->shape.dim[1];
    const int64_t taps = weight->shape.rank == 4 ? weight->shape.dim[2] * weight->shape.dim[3] : 1;
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t c = 0; c < channels; c++) {
            const float s = factor[o / (outputs / groups) * channels + c];
            const int64_t at = (o * channels + c) * taps;
            for (int64_t k = 0; k < taps; k++)
                qd_f32(out)[at + k] = qd_f32(weight)[at + k] * s;
        }
    return QD_OK;
}

typedef struct folding {
    const qd_graph *from;
    qd_graph *to;
    qd_node_id *map; // [nodes of from]
    int *uses;       // [nodes of from]
    qd_budget *budget;
} folding;

/* Constants come along with the first node that needs them, so that replaced weights stay behind. */
static qd_node_id take(folding *f, qd_node_id id)
{
    if (id >= 0 && f->map[id] < 0)
        qd_graph_copy_node(f->to, f->from, id, f->map);
    return id < 0 ? -1 : f->map[id];
}

/* The constant that stands for `id` of the old graph; it keeps its name when nobody else reads the old one. */
static qd_node_id replace(folding *f, qd_node_id id, const qd_tensor *value)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, f->uses[id] > 1 ? "%s.smoothed" : "%s", qd_graph_node(f->from, id)->name);
    return qd_graph_const(f->to, name, value);
}

/* A norm whose own weight and bias take 1 / S. */
static qd_status fold_norm(folding *f, const qd_smooth_layer *s, qd_err *err)
{
    const qd_node *n = qd_graph_node(f->from, s->norm);
    qd_node_id in[3] = { take(f, n->input[0]), -1, -1 };
    for (int k = 1; k < 3; k++) {
        const qd_tensor *old = &qd_graph_node(f->from, n->input[k])->value;
        qd_tensor t = { 0 };
        const qd_status st = qd_tensor_init(&t, QD_F32, &old->shape, f->budget, err);
        if (st)
            return st;
        for (int64_t c = 0; c < s->channels; c++)
            qd_f32(&t)[c] = qd_f32(old)[c] / s->factor[c];
        in[k] = replace(f, n->input[k], &t);
        qd_tensor_clear(&t);
    }
    f->map[s->norm] = qd_graph_add(f->to, n->op, n->name, in, 3, n->attr, n->n_attrs);
    return QD_OK;
}

/* The value a layer reads, divided. */
static qd_status divide(folding *f, const qd_node *n, const qd_smooth_layer *s, qd_node_id *x, qd_err *err)
{
    char name[NAME_BYTES];
    qd_tensor factor = { 0 };
    const qd_shape shape = n->op == &qd_op_conv2d ? QD_SHAPE(1, s->channels, 1, 1) : QD_SHAPE(s->channels);
    const qd_status st = qd_tensor_init(&factor, QD_F32, &shape, f->budget, err);
    if (st)
        return st;
    memcpy(qd_f32(&factor), s->factor, (size_t)s->channels * sizeof(float));
    snprintf(name, sizeof name, "%s%s.factor", n->name, suffix);
    const qd_node_id by = qd_graph_const(f->to, name, &factor);
    snprintf(name, sizeof name, "%s%s", n->name, suffix);
    *x = qd_graph_add(f->to, &qd_op_div, name, QD_IN(take(f, n->input[0]), by), QD_NO_ATTRS);
    qd_tensor_clear(&factor);
    return QD_OK;
}

static qd_status fold_layer(folding *f, const qd_smooth_layer *s, qd_err *err)
{
    const qd_node *n = qd_graph_node(f->from, s->layer);
    qd_tensor weight = { 0 };
    qd_node_id x = -1;
    qd_status st = scaled_weight(n, &qd_graph_node(f->from, n->input[1])->value, s->factor, f->budget, &weight, err);
    if (st)
        return st;
    if (s->in_norm)
        x = take(f, n->input[0]);
    else
        st = divide(f, n, s, &x, err);
    if (!st) {
        const qd_node_id scaled = replace(f, n->input[1], &weight);
        const qd_node_id bias = n->n_inputs > 2 ? take(f, n->input[2]) : -1;
        const qd_node_id in[3] = { x, scaled, bias };
        f->map[s->layer] = qd_graph_add(f->to, n->op, n->name, in, bias < 0 ? 2 : 3, n->attr, n->n_attrs);
    }
    qd_tensor_clear(&weight);
    return st;
}

static qd_status check_layer(const qd_graph *g, const qd_smooth_layer *s, qd_err *err)
{
    qd_node_id value, factor;
    const qd_node *n = qd_graph_node(g, s->layer);
    const qd_node *w = qd_graph_node(g, n->input[1]);
    if (qd_smooth_is(g, n->input[0], &value, &factor))
        return qd_fail(err, QD_E_INVALID, "'%s' is smoothed already: folding twice would not be the same network",
                       n->name);
    const int64_t groups = n->op == &qd_op_conv2d ? qd_node_int(n, "groups") : 1;
    if (w->op != &qd_op_const || w->dtype != QD_F32 || w->shape.dim[1] * groups != s->channels)
        return qd_fail(err, QD_E_INVALID, "'%s' has no constant f32 weight of %lld input channels to fold factors into",
                       n->name, (long long)s->channels);
    for (int64_t c = 0; c < s->channels; c++)
        if (!isfinite(s->factor[c]) || s->factor[c] == 0.0f)
            return qd_fail(err, QD_E_NUMERIC, "the smoothing factor of channel %lld of '%s' is %g", (long long)c,
                           n->name, (double)s->factor[c]);
    return QD_OK;
}

static qd_status fold_all(folding *f, const qd_smoothing *s, qd_err *err)
{
    for (qd_node_id id = 0; id < qd_graph_size(f->from); id++) {
        const qd_node *n = qd_graph_node(f->from, id);
        const qd_smooth_layer *layer = NULL, *norm = NULL;
        for (int k = 0; k < s->n; k++) {
            if (s->layers[k].layer == id)
                layer = &s->layers[k];
            if (s->layers[k].in_norm && s->layers[k].norm == id)
                norm = &s->layers[k];
        }
        if (n->op == &qd_op_const)
            continue;
        qd_status st = QD_OK;
        if (norm) {
            st = fold_norm(f, norm, err);
            if (st)
                return st;
            continue;
        }
        if (layer) {
            st = check_layer(f->from, layer, err);
            if (!st)
                st = fold_layer(f, layer, err);
            if (st)
                return st;
            continue;
        }
        for (int k = 0; k < n->n_inputs; k++)
            take(f, n->input[k]);
        take(f, id);
    }
    return QD_OK;
}

qd_status qd_smooth_fold(const qd_graph *g, const qd_smoothing *s, const qd_run *run, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(g);
    folding f = { .from = g, .budget = qd_run_budget(run) };
    qd_status st = QD_E_NOMEM;
    f.map = qd_alloc((size_t)n * sizeof *f.map);
    f.uses = qd_calloc((size_t)n, sizeof *f.uses);
    if (!f.map || !f.uses) {
        qd_fail(err, st, "no memory to rewrite %d nodes", n);
        goto out;
    }
    for (int k = 0; k < n; k++)
        f.map[k] = -1;
    qd_graph_uses(g, f.uses);
    st = qd_graph_new(&f.to, err);
    if (!st)
        st = fold_all(&f, s, err);
    if (st)
        goto out;
    qd_graph_copy_outputs(f.to, g, f.map);
    st = qd_graph_verify(f.to, err);
    if (st)
        goto out;
    *out = f.to;
    f.to = NULL;
out:
    qd_graph_free(f.to);
    qd_free(f.uses);
    qd_free(f.map);
    return st;
}
