/* adaround.c - rounding that learns: each weight goes down or up by h(v) (Nagel et al., ICML 2020; qncd.md 6.1 to 6.3). */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/par.h"
#include "graph/op.h"
#include "metrics/metrics.h"
#include "quant/recon_int.h"

#define GAMMA (-0.1f)
#define ZETA 1.1f
#define REACH 0.6 /* of both from a half */
#define SETTLED 0.05f

/* --- functions of one value, written without branches so that loops of them become vectors --- */

static inline float clamp(float x, float lo, float hi)
{
    x = x < lo ? lo : x;
    return x > hi ? hi : x;
}

/* e^x for x in [-87, 88], to about 2 units in the last place (Cephes' expf). */
static inline float exp_of(float x)
{
    const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* to nearest */
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t i;
        float f;
    } power = { .i = ((int32_t)n + 127) << 23 };
    return p * power.f;
}

/* ln x for x in [1e-30, 1] (Cephes' logf). */
static inline float log_of(float x)
{
    union {
        float f;
        int32_t i;
    } bits = { .f = x };
    const int32_t e = (bits.i >> 23) - 126;
    bits.i = (bits.i & 0x007fffff) | 0x3f000000; /* in [1/2, 1) */
    const int32_t low = bits.f < 0.707106781f;
    const float n = (float)(e - low), r = bits.f + bits.f * (float)low - 1.0f, z = r * r;
    float p = 7.0376836292e-2f;
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    return r + (r * z * p - n * 2.12194440e-4f - 0.5f * z) + n * 0.693359375f;
}

/* u^exponent, u held above `least` so that it is no less than e^-80. */
static inline float power_of(float u, float exponent, float least)
{
    return exp_of(exponent * log_of(u < least ? least : u));
}

static float least_of(double exponent)
{
    return (float)fmax(exp(-80.0 / exponent), 1e-30);
}

/* |v| stays far from 87: beyond 2.4 nothing pulls it on. */
static inline float soft_of(float v)
{
    return clamp((ZETA - GAMMA) / (1.0f + exp_of(-v)) + GAMMA, 0.0f, 1.0f);
}

/* h'(v) out of h. */
static inline float slope_of(float h)
{
    const float s = (h - GAMMA) * (1.0f / (ZETA - GAMMA));
    return s * (1.0f - s) * (ZETA - GAMMA) * (float)((h > 0.0f) & (h < 1.0f));
}

/* --- setting up --- */

static size_t state_bytes(const qd_round *r)
{
    return (size_t)(r->rows * r->columns) * (4 * sizeof(float) + sizeof(int16_t));
}

static float step_of(const qd_round *r, int64_t row, const qd_round_run *run)
{
    const qd_tensor *t = &r->layer->part[run->part].wscale;
    return qd_f32(t)[row * (t->shape.rank > 1 ? t->shape.dim[1] : 1) + run->scale];
}

static int bits_of(const qd_part *p)
{
    return p->codes.dtype == QD_I4 ? 4 : p->codes.dtype == QD_I6 ? 6 : 8;
}

static qd_status set_runs(qd_round *r, int64_t inner, qd_err *err)
{
    const qd_quant_layer *layer = r->layer;
    int n = 0;
    for (int p = 0; p < layer->n_parts; p++)
        n += (int)qd_k_scales(layer->part[p].codes.shape.dim[1], layer->part[p].group_size);
    r->runs = qd_calloc((size_t)n, sizeof *r->runs);
    if (!r->runs)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d scales of a row", n);
    for (int p = 0; p < layer->n_parts; p++) {
        const qd_part *part = &layer->part[p];
        const int64_t channels = part->codes.shape.dim[1], group = part->group_size ? part->group_size : channels;
        for (int64_t c = 0, s = 0; c < channels; c += group, s++)
            r->runs[r->n_runs++] = (qd_round_run){ .begin = (part->first + c) * inner,
                                                   .length = (channels - c < group ? channels - c : group) * inner,
                                                   .part = p,
                                                   .scale = s };
    }
    return QD_OK;
}

static void init_row(const qd_round *r, const float *weight, int64_t row)
{
    const int64_t at = row * r->columns;
    for (int k = 0; k < r->n_runs; k++) {
        const double step = step_of(r, row, &r->runs[k]);
        for (int64_t i = at + r->runs[k].begin; i < at + r->runs[k].begin + r->runs[k].length; i++) {
            const double x = weight[i] / step, below = floor(x), rest = x - below;
            /* Beyond the codes nothing is learned: any floor outside them gives the same weight. */
            r->floor[i] = (int16_t)(below < r->qmin - 1 ? r->qmin - 1 : below > r->qmax ? r->qmax : below);
            /* -ln((zeta - gamma) / (rest - gamma) - 1), in the form that is 0 for a half to the last bit. */
            r->v[i] = (float)log((REACH + (rest - 0.5)) / (REACH - (rest - 0.5)));
            r->h[i] = soft_of(r->v[i]);
        }
    }
}

qd_status qd_round_init(qd_round *r, const qd_layout *l, const qd_quant_layer *layer, qd_budget *budget, qd_err *err)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const qd_tensor *w = &qd_graph_node(l->graph, n->input[1])->value;
    const int64_t count = qd_tensor_count(w), inner = w->shape.rank == 4 ? w->shape.dim[2] * w->shape.dim[3] : 1;
    const int bits = bits_of(&layer->part[0]);
    r->layer = layer;
    r->rows = w->shape.dim[0];
    r->columns = count / r->rows;
    r->qmax = (1 << (bits - 1)) - 1;
    r->qmin = -r->qmax - 1;
    qd_status st = qd_budget_draw(budget, state_bytes(r), "what rounding learns", err);
    if (st)
        return st;
    r->drawn = true;
    r->floor = qd_alloc((size_t)count * sizeof *r->floor);
    r->v = qd_alloc((size_t)count * sizeof *r->v);
    r->h = qd_alloc((size_t)count * sizeof *r->h);
    r->m = qd_calloc((size_t)count, sizeof *r->m);
    r->s = qd_calloc((size_t)count, sizeof *r->s);
    if (!r->floor || !r->v || !r->h || !r->m || !r->s)
        return qd_fail(err, QD_E_NOMEM, "no memory to learn %lld roundings", (long long)count);
    st = set_runs(r, inner, err);
    for (int64_t row = 0; row < r->rows && !st; row++)
        init_row(r, qd_f32(w), row);
    return st;
}

void qd_round_clear(qd_round *r, qd_budget *budget)
{
    if (r->drawn)
        qd_budget_give(budget, state_bytes(r));
    qd_free(r->runs);
    qd_free(r->floor);
    qd_free(r->v);
    qd_free(r->h);
    qd_free(r->m);
    qd_free(r->s);
    *r = (qd_round){ 0 };
}

/* --- weights --- */

typedef struct job {
    const qd_round *r;
    const qd_round_step *step;
    bool hard;
    float *out; // [rows, columns]
} job;

static void weight_row(void *ctx, int64_t row)
{
    const job *j = ctx;
    const qd_round *r = j->r;
    const float lo = (float)r->qmin, hi = (float)r->qmax;
    for (int k = 0; k < r->n_runs; k++) {
        const int64_t at = row * r->columns + r->runs[k].begin, n = r->runs[k].length;
        const float step = step_of(r, row, &r->runs[k]);
        const int16_t *below = r->floor + at;
        const float *restrict v = r->v + at, *restrict h = r->h + at;
        float *restrict out = j->out + at;
        if (j->hard)
            for (int64_t i = 0; i < n; i++)
                out[i] = clamp((float)below[i] + (v[i] >= 0.0f ? 1.0f : 0.0f), lo, hi) * step;
        else
            for (int64_t i = 0; i < n; i++)
                out[i] = clamp((float)below[i] + h[i], lo, hi) * step;
    }
}

void qd_round_weight(const qd_round *r, bool hard, float *weight, int threads)
{
    job j = { .r = r, .hard = hard, .out = weight };
    qd_par_for(threads, r->rows, weight_row, &j);
}

/* --- learning --- */

static void gradient_row(void *ctx, int64_t row)
{
    const job *j = ctx;
    const qd_round *r = j->r;
    const qd_round_step *s = j->step;
    const float lo = (float)r->qmin, hi = (float)r->qmax, b = (float)s->b;
    const float force = (float)(-2.0 * s->lambda * s->b), least = least_of(s->b - 1.0);
    for (int k = 0; k < r->n_runs; k++) {
        const int64_t at = row * r->columns + r->runs[k].begin, n = r->runs[k].length;
        const float scale = (float)(step_of(r, row, &r->runs[k]) * s->scale);
        const int16_t *below = r->floor + at;
        const float *restrict h = r->h + at, *grad = s->grad[0] + at;
        float *restrict out = j->out + at;
        for (int64_t i = 0; i < n; i++)
            out[i] = grad[i];
        for (int p = 1; p < s->n_grad; p++) {
            const float *restrict more = s->grad[p] + at;
            for (int64_t i = 0; i < n; i++)
                out[i] += more[i];
        }
        for (int64_t i = 0; i < n; i++) {
            const float q = (float)below[i] + h[i];
            out[i] = out[i] * scale * slope_of(h[i]) * (float)((q > lo) & (q < hi));
        }
        if (s->lambda > 0.0)
            for (int64_t i = 0; i < n; i++) {
                const float x = 2.0f * h[i] - 1.0f;
                out[i] += force * copysignf(power_of(fabsf(x), b - 1.0f, least), x) * slope_of(h[i]);
            }
    }
}

void qd_round_gradient(const qd_round *r, const qd_round_step *s, float *dv, int threads)
{
    job j = { .r = r, .step = s, .out = dv };
    qd_par_for(threads, r->rows, gradient_row, &j);
}

static void learn_row(void *ctx, int64_t row)
{
    const job *j = ctx;
    const qd_round *r = j->r;
    const int64_t at = row * r->columns;
    float *const slot[2] = { r->m + at, r->s + at };
    gradient_row(ctx, row); /* into the place of the weight, which is made anew below */
    qd_optim_adam.apply(&qd_optim_adam.defaults, j->step->step, j->step->lr, r->v + at, j->out + at, slot, r->columns);
    const float *restrict v = r->v + at;
    float *restrict h = r->h + at;
    for (int64_t i = 0; i < r->columns; i++)
        h[i] = soft_of(v[i]);
    weight_row(ctx, row);
}

void qd_round_learn(qd_round *r, const qd_round_step *s, float *weight, int threads)
{
    job j = { .r = r, .step = s, .out = weight };
    qd_par_for(threads, r->rows, learn_row, &j);
}

double qd_round_regulariser(const qd_round *r, double b)
{
    const float least = least_of(b);
    double sum = 0.0;
    for (int64_t i = 0; i < r->rows * r->columns; i++)
        sum += 1.0 - (double)power_of(fabsf(2.0f * r->h[i] - 1.0f), (float)b, least);
    return sum;
}

int64_t qd_round_settled(const qd_round *r)
{
    int64_t n = 0;
    for (int64_t i = 0; i < r->rows * r->columns; i++)
        n += r->h[i] <= SETTLED || r->h[i] >= 1.0f - SETTLED;
    return n;
}

double qd_recon_b(const qd_recon_options *o, int64_t iteration)
{
    const double warm = o->warmup * o->iterations, left = o->iterations - warm;
    if ((double)iteration <= warm || left <= 0.0)
        return o->b_start;
    const double done = ((double)iteration - warm) / left;
    return o->b_start + (o->b_end - o->b_start) * (done < 1.0 ? done : 1.0);
}

/* --- codes --- */

void qd_round_codes(const qd_round *r, int8_t *codes)
{
    for (int64_t i = 0; i < r->rows * r->columns; i++)
        codes[i] = (int8_t)clamp((float)(r->floor[i] + (r->v[i] >= 0.0f)), (float)r->qmin, (float)r->qmax);
}

static qd_status make_codes(const qd_part *p, const int8_t *codes, int64_t columns, int64_t inner, qd_budget *budget,
                            qd_tensor *out, qd_err *err)
{
    const int64_t rows = p->codes.shape.dim[0], length = p->codes.shape.dim[1] * inner;
    qd_tensor plain = { 0 };
    qd_status st = qd_tensor_init(&plain, QD_I8, &p->codes.shape, budget, err);
    if (st)
        return st;
    for (int64_t o = 0; o < rows; o++)
        memcpy(qd_i8(&plain) + o * length, codes + o * columns + p->first * inner, (size_t)length);
    if (p->codes.dtype == QD_I8)
        qd_tensor_share(out, &plain);
    else
        st = qd_tensor_pack(out, &plain, p->codes.dtype, budget, err);
    qd_tensor_clear(&plain);
    return st;
}

qd_status qd_layer_set_codes(const qd_layout *l, qd_quant_layer *layer, const int8_t *codes, qd_budget *budget,
                             qd_err *err)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const qd_tensor *w = &qd_graph_node(l->graph, n->input[1])->value;
    const int64_t inner = w->shape.rank == 4 ? w->shape.dim[2] * w->shape.dim[3] : 1;
    const int64_t rows = w->shape.dim[0], columns = w->shape.dim[1] * inner;
    qd_tensor made[2] = { { 0 }, { 0 } };
    qd_status st = QD_OK;
    for (int k = 0; k < layer->n_parts && !st; k++)
        st = make_codes(&layer->part[k], codes, columns, inner, budget, &made[k], err);
    if (st) {
        qd_tensor_clear(&made[0]);
        qd_tensor_clear(&made[1]);
        return st;
    }
    for (int k = 0; k < layer->n_parts; k++) {
        qd_part *p = &layer->part[k];
        const int64_t length = p->codes.shape.dim[1] * inner, first = p->first * inner;
        const int64_t scales = qd_k_scales(p->codes.shape.dim[1], p->group_size);
        const int64_t group = p->group_size ? p->group_size * inner : length;
        qd_sqnr sqnr = { 0 };
        qd_tensor_clear(&p->codes);
        p->codes = made[k];
        for (int64_t o = 0; o < rows; o++)
            for (int64_t c = 0; c < length; c++) {
                const double was = qd_f32(w)[o * columns + first + c];
                const double off = was - codes[o * columns + first + c] * qd_f32(&p->wscale)[o * scales + c / group];
                sqnr.signal += was * was;
                sqnr.noise += off * off;
            }
        p->sqnr_db = qd_sqnr_value_db(&sqnr);
    }
    return QD_OK;
}

int64_t qd_layer_weights(const qd_layout *l, const qd_quant_layer *layer)
{
    return qd_tensor_count(&qd_graph_node(l->graph, qd_graph_node(l->graph, layer->id)->input[1])->value);
}

qd_status qd_layer_get_codes(const qd_layout *l, const qd_quant_layer *layer, int8_t *codes, qd_err *err)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const qd_shape *shape = &qd_graph_node(l->graph, n->input[1])->value.shape;
    const int64_t inner = shape->rank == 4 ? shape->dim[2] * shape->dim[3] : 1, columns = shape->dim[1] * inner;
    for (int k = 0; k < layer->n_parts; k++) {
        const qd_part *p = &layer->part[k];
        const int64_t length = p->codes.shape.dim[1] * inner;
        qd_tensor plain = { 0 };
        const qd_status st = qd_tensor_unpack(&plain, &p->codes, NULL, err);
        if (st)
            return st;
        for (int64_t o = 0; o < shape->dim[0]; o++)
            memcpy(codes + o * columns + p->first * inner, qd_i8(&plain) + o * length, (size_t)length);
        qd_tensor_clear(&plain);
    }
    return QD_OK;
}
