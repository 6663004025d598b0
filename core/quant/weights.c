/* weights.c - weights to codes: symmetric, a scale for each output channel (qncd.md 3.3, product default). */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/par.h"
#include "graph/op.h"
#include "metrics/metrics.h"
#include "quant/quant_int.h"

/* One row is the weights of one output channel. */
typedef struct rows {
    const float *weight;
    int64_t stride; // floats from row to row of the whole weight
    int64_t first, length;
    int bits;
    bool search;
    int8_t *codes;   // [rows, length]
    float *wscale;   // [rows]
    float *restored; // [rows, length]
    bool *failed;    // [rows]
} rows;

static void quantize_row(void *ctx, int64_t o)
{
    const rows *r = ctx;
    const float *w = r->weight + o * r->stride + r->first;
    qd_affine map;
    float lo, hi;
    /* The only failure is a value that is not finite: the words are made once, by the caller. */
    if (!qd_min_max(w, r->length, &lo, &hi) ||
        (r->search ? qd_affine_search_range(w, NULL, r->length, lo, hi, r->bits, true, &map, NULL)
                   : qd_affine_fit(lo, hi, r->bits, true, &map, NULL))) {
        r->failed[o] = true;
        return;
    }
    r->wscale[o] = map.scale;
    for (int64_t k = 0; k < r->length; k++) {
        r->codes[o * r->length + k] = (int8_t)qd_affine_encode(w[k], &map);
        r->restored[o * r->length + k] = (float)r->codes[o * r->length + k] * map.scale;
    }
}

static qd_status quantize_part(const qd_node *layer, const qd_tensor *weight, qd_part *p, int bits, bool search,
                               const qd_run *run, qd_err *err)
{
    const int64_t out = weight->shape.dim[0];
    /* A part takes whole kernels of its input channels; a grouped convolution is never split and takes all. */
    const int64_t per_channel = weight->shape.rank == 4 ? weight->shape.dim[2] * weight->shape.dim[3] : 1;
    qd_shape shape = weight->shape;
    if (p->channels < shape.dim[1])
        shape.dim[1] = p->channels;
    const int64_t length = shape.dim[1] * per_channel;
    const qd_shape channels = QD_SHAPE(out);
    qd_sqnr sqnr = { 0 };
    qd_tensor restored = { 0 }, codes = { 0 }, wscale = { 0 };
    qd_status st;

    bool *failed = qd_calloc((size_t)out, sizeof *failed);
    if (!failed)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld channels", (long long)out);
    st = qd_tensor_init(&restored, QD_F32, &shape, qd_run_budget(run), err);
    if (st)
        goto out;
    st = qd_tensor_init(&codes, QD_I8, &shape, qd_run_budget(run), err);
    if (st)
        goto out;
    st = qd_tensor_init(&wscale, QD_F32, &channels, qd_run_budget(run), err);
    if (st)
        goto out;

    rows r = { .weight = qd_f32(weight),
               .stride = weight->shape.dim[1] * per_channel,
               .first = p->first * per_channel,
               .length = length,
               .bits = bits,
               .search = search,
               .codes = qd_i8(&codes),
               .wscale = qd_f32(&wscale),
               .restored = qd_f32(&restored),
               .failed = failed };
    qd_par_for(qd_run_threads(run), out, quantize_row, &r);
    for (int64_t o = 0; o < out; o++) {
        if (failed[o]) {
            st = qd_fail(err, QD_E_NUMERIC, "the weight of '%s' has a value that is not finite in output channel %lld",
                         layer->name, (long long)o);
            goto out;
        }
        qd_sqnr_add(&sqnr, r.weight + o * r.stride + r.first, r.restored + o * length, length);
    }
    p->sqnr_db = qd_sqnr_value_db(&sqnr);
    p->codes = codes;
    p->wscale = wscale;
    codes = wscale = (qd_tensor){ 0 };
out:
    qd_tensor_clear(&wscale);
    qd_tensor_clear(&codes);
    qd_tensor_clear(&restored);
    qd_free(failed);
    return st;
}

qd_status qd_layout_quantize_weights(qd_layout *l, int bits, bool search, const qd_run *run, qd_err *err)
{
    for (int k = 0; k < l->n_layers; k++) {
        qd_quant_layer *layer = &l->layers[k];
        const qd_node *n = qd_graph_node(l->graph, layer->id);
        const qd_tensor *weight = &qd_graph_node(l->graph, n->input[1])->value;
        for (int p = 0; p < layer->n_parts; p++) {
            qd_status st = qd_run_check(run, err);
            if (!st)
                st = quantize_part(n, weight, &layer->part[p], bits, search, run, err);
            if (st)
                return st;
        }
        qd_run_progress(run, "search", n->name, l->n_quantizers + k + 1, l->n_quantizers + l->n_layers);
    }
    return QD_OK;
}
