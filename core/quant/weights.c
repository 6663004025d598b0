/* weights.c - weights to codes: symmetric, a scale for each output channel or group of input channels (qncd.md 3.3). */
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
    int64_t scales, group; /* of a row; weights that share one */
    int bits;
    bool search;
    int8_t *codes;   // [rows, length]
    float *wscale;   // [rows, scales]
    float *restored; // [rows, length]
    bool *failed;    // [rows]
} rows;

static void quantize_row(void *ctx, int64_t o)
{
    const rows *r = ctx;
    for (int64_t g = 0; g < r->scales; g++) {
        const int64_t begin = g * r->group, n = r->length - begin < r->group ? r->length - begin : r->group;
        const float *w = r->weight + o * r->stride + r->first + begin;
        int8_t *codes = r->codes + o * r->length + begin;
        float *restored = r->restored + o * r->length + begin;
        qd_affine map;
        float lo, hi;
        /* The only failure is a value that is not finite: the words are made once, by the caller. */
        if (!qd_min_max(w, n, &lo, &hi) ||
            (r->search ? qd_affine_search_range(w, NULL, n, lo, hi, r->bits, true, &map, NULL)
                       : qd_affine_fit(lo, hi, r->bits, true, &map, NULL))) {
            r->failed[o] = true;
            return;
        }
        r->wscale[o * r->scales + g] = map.scale;
        for (int64_t k = 0; k < n; k++) {
            codes[k] = (int8_t)qd_affine_encode(w[k], &map);
            restored[k] = (float)codes[k] * map.scale;
        }
    }
}

/* Codes of few bits take the room of few bits. */
static qd_status pack(qd_tensor *codes, int bits, const qd_run *run, qd_err *err)
{
    qd_tensor packed;
    if (bits > 6)
        return QD_OK;
    qd_status st = qd_tensor_pack(&packed, codes, bits > 4 ? QD_I6 : QD_I4, qd_run_budget(run), err);
    if (st)
        return st;
    qd_tensor_clear(codes);
    *codes = packed;
    return QD_OK;
}

/* meant (may be NULL): what the codes mean, put where the part's columns stand in a weight of the whole layer. */
static qd_status quantize_part(const qd_node *layer, const qd_tensor *weight, qd_part *p, int bits, bool search,
                               float *meant, const qd_run *run, qd_err *err)
{
    const int64_t out = weight->shape.dim[0];
    /* A part takes whole kernels of its input channels; a grouped convolution is never split and takes all. */
    const int64_t per_channel = weight->shape.rank == 4 ? weight->shape.dim[2] * weight->shape.dim[3] : 1;
    qd_shape shape = weight->shape;
    if (p->channels < shape.dim[1])
        shape.dim[1] = p->channels;
    const int64_t length = shape.dim[1] * per_channel;
    const int64_t scales = qd_k_scales(shape.dim[1], p->group_size);
    const qd_shape channels = p->group_size ? QD_SHAPE(out, scales) : QD_SHAPE(out);
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
               .scales = scales,
               .group = p->group_size ? p->group_size * per_channel : length,
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
        if (meant)
            memcpy(meant + o * r.stride + r.first, r.restored + o * length, (size_t)length * sizeof *meant);
    }
    st = pack(&codes, bits, run, err);
    if (st)
        goto out;
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

/* Input channels that share a scale in a part of a layer; 0 = all of them. */
static int64_t group_of(const qd_layout *l, const qd_quant_layer *layer, const qd_part *part)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const int64_t channels = qd_graph_node(l->graph, n->input[1])->shape.dim[1];
    const bool grouped = l->group_size && !layer->weight_only && channels > l->group_size &&
                         (n->op != &qd_op_conv2d || qd_node_int(n, "groups") == 1);
    return grouped && part->channels > l->group_size ? l->group_size : 0;
}

qd_status qd_layout_quantize_weights(qd_layout *l, int bits, bool search, const qd_run *run, qd_err *err)
{
    for (int k = 0; k < l->n_layers; k++) {
        qd_quant_layer *layer = &l->layers[k];
        const qd_node *n = qd_graph_node(l->graph, layer->id);
        const qd_tensor *weight = &qd_graph_node(l->graph, n->input[1])->value;
        for (int p = 0; p < layer->n_parts; p++) {
            qd_part *part = &layer->part[p];
            qd_status st = qd_run_check(run, err);
            part->group_size = group_of(l, layer, part);
            if (!st)
                st = layer->weight_only ? quantize_part(n, weight, part, 8, false, NULL, run, err)
                                        : quantize_part(n, weight, part, layer->weight_bits ? layer->weight_bits : bits,
                                                        search, NULL, run, err);
            if (st)
                return st;
        }
        qd_run_progress(run, "weights", n->name, k + 1, l->n_layers);
    }
    return QD_OK;
}

qd_status qd_layout_try_weight(const qd_layout *l, const qd_quant_layer *layer, const qd_tensor *weight, int bits,
                               bool search, const qd_run *run, float *meant, size_t *bytes, qd_err *err)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    size_t sum = 0;
    qd_status st = QD_OK;
    for (int p = 0; p < layer->n_parts && !st; p++) {
        qd_part part = layer->part[p];
        part.codes = part.wscale = (qd_tensor){ 0 };
        part.group_size = group_of(l, layer, &part);
        st = quantize_part(n, weight, &part, bits, search, meant, run, err);
        sum += qd_tensor_bytes(&part.codes) + qd_tensor_bytes(&part.wscale);
        qd_tensor_clear(&part.codes);
        qd_tensor_clear(&part.wscale);
    }
    if (bytes)
        *bytes = sum;
    return st;
}
