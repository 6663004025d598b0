/* report.c - the report of a quantization: its rows, and all of it as JSON. */
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/qncd_int.h"

void qd_quant_report_clear(qd_quant_report *r)
{
    qd_free(r->layers);
    qd_free(r->eps_t);
    qd_free(r->eps_sqnr_db);
    qd_smooth_report_clear(&r->smooth);
    qd_mixed_report_clear(&r->mixed);
    qd_low_rank_report_clear(&r->low_rank);
    qd_noise_map_clear(&r->map);
    qd_recon_report_clear(&r->recon);
    qd_correction_free(r->correction);
    *r = (qd_quant_report){ 0 };
}

/* --- rows --- */

/* Multiply-adds of one image. */
static int64_t macs_of(const qd_graph *g, const qd_node *n, const qd_shape *shapes, qd_node_id id)
{
    qd_operand in[QD_MAX_INPUTS] = { 0 };
    for (int k = 0; k < QD_MAX_INPUTS; k++) {
        in[k].shape.rank = -1;
        if (k < n->n_inputs && n->input[k] >= 0) {
            in[k].dtype = qd_graph_node(g, n->input[k])->dtype;
            in[k].shape = shapes[n->input[k]];
        }
    }
    return n->op->macs(n, in, &shapes[id]);
}

/* One row for a layer in float (part NULL), or for each part of a quantized one. */
static void fill_row(const qd_layout *l, const qd_quant_layer *layer, int part, int64_t macs, qd_layer_report *r)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const int64_t weights = qd_tensor_count(&qd_graph_node(l->graph, n->input[1])->value);
    *r = (qd_layer_report){ .op = n->op->name,
                            .weight_sqnr_db = NAN,
                            .input_sqnr_db = NAN,
                            .macs = macs,
                            .weights = weights,
                            .note = layer->note ? layer->note : "" };
    snprintf(r->name, sizeof r->name, "%s", n->name);
    if (layer->weight_only) {
        r->weight_bits = 8;
        r->weight_sqnr_db = layer->part[0].sqnr_db;
    }
    if (layer->note)
        return;

    const qd_part *p = &layer->part[part];
    const qd_quantizer *q = &l->quantizers[p->quantizer];
    if (layer->n_parts > 1) {
        const int64_t all = layer->part[0].channels + layer->part[1].channels;
        snprintf(r->name, sizeof r->name, part ? "%s.split1" : "%s.split0", n->name);
        r->macs = macs / all * p->channels; /* exact: every product belongs to one input channel */
        r->weights = weights / all * p->channels;
    }
    r->group_size = p->group_size;
    r->scale = q->map.scale;
    r->zero = q->map.zero;
    qd_histogram_range(q->seen, &r->lo, &r->hi);
    r->weight_sqnr_db = p->sqnr_db;
    r->input_sqnr_db = q->sqnr_db;
}

/* Attention in float (k < 0), or its q, k or v. The scores' multiply-adds are shared out between q and k. */
static void fill_attention(const qd_layout *l, const qd_quant_attention *a, int k, int64_t macs, qd_layer_report *r)
{
    static const char *const suffix[3] = { ".q", ".k", ".v" };
    *r = (qd_layer_report){ .op = "attention",
                            .weight_sqnr_db = NAN,
                            .input_sqnr_db = NAN,
                            .macs = k < 0   ? macs
                                    : k < 2 ? macs / 4
                                            : macs / 2,
                            .note = a->note ? a->note : "" };
    snprintf(r->name, sizeof r->name, "%s%s", qd_graph_node(l->graph, a->id)->name, k < 0 ? "" : suffix[k]);
    if (k < 0)
        return;
    const qd_quantizer *q = &l->quantizers[a->quantizer[k]];
    r->softmax_bits = a->softmax_bits;
    r->activation_bits = q->map.bits;
    r->scale = q->map.scale;
    r->zero = q->map.zero;
    qd_histogram_range(q->seen, &r->lo, &r->hi);
    r->input_sqnr_db = q->sqnr_db;
}

static void add_row(qd_quant_report *report, const qd_layer_report *row, const qd_run *run)
{
    const qd_layer_report *r = &report->layers[report->n_layers++];
    report->layers[report->n_layers - 1] = *row;
    qd_run_layer(run, r->name, -1, r->weight_bits, r->activation_bits, r->input_sqnr_db,
                 r->activation_bits ? (double)r->lo : (double)NAN, r->activation_bits ? (double)r->hi : (double)NAN);
}

qd_status qd_layout_report(const qd_layout *l, int weight_bits, int activation_bits, const qd_run *run,
                           qd_quant_report *report, qd_err *err)
{
    int rows = 0;
    qd_layer_report row;
    qd_status st;
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(l->graph), sizeof *shapes);
    for (int k = 0; k < l->n_layers; k++)
        rows += l->layers[k].note ? 1 : l->layers[k].n_parts;
    for (int k = 0; k < l->n_attentions; k++)
        rows += l->attentions[k].note ? 1 : 3;
    report->layers = qd_calloc((size_t)rows, sizeof *report->layers);
    if (!shapes || !report->layers) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a report of %d layers", rows);
        goto out;
    }
    st = qd_layout_shapes(l->graph, shapes, err);
    if (st)
        goto out;
    for (int k = 0; k < l->n_layers; k++) {
        const qd_quant_layer *layer = &l->layers[k];
        const int64_t macs = macs_of(l->graph, qd_graph_node(l->graph, layer->id), shapes, layer->id);
        for (int part = 0; part < (layer->note ? 1 : layer->n_parts); part++) {
            fill_row(l, layer, part, macs, &row);
            if (!layer->note) {
                row.weight_bits = layer->weight_bits ? layer->weight_bits : weight_bits;
                row.activation_bits = l->quantizers[layer->part[part].quantizer].map.bits;
            }
            add_row(report, &row, run);
        }
    }
    for (int k = 0; k < l->n_attentions; k++) {
        const qd_quant_attention *a = &l->attentions[k];
        const int64_t macs = macs_of(l->graph, qd_graph_node(l->graph, a->id), shapes, a->id);
        for (int j = a->note ? -1 : 0; j < (a->note ? 0 : 3); j++) {
            fill_attention(l, a, j, macs, &row);
            add_row(report, &row, run);
        }
    }
out:
    qd_free(shapes);
    return st;
}

/* --- JSON --- */

static void add_number(qd_buf *b, const char *key, double v)
{
    qd_buf_addf(b, ",\"%s\":", key);
    qd_buf_add_json_number(b, v);
}

static void add_floats(qd_buf *b, const float *v, int n)
{
    qd_buf_adds(b, "[");
    for (int k = 0; k < n; k++) {
        qd_buf_adds(b, k ? "," : "");
        if (isfinite(v[k]))
            qd_buf_addf(b, "%.4g", (double)v[k]);
        else
            qd_buf_adds(b, "null"); /* equal: no noise at all */
    }
    qd_buf_adds(b, "]");
}

/* Rows are layers, columns steps. */
static void add_map(qd_buf *b, const qd_noise_map *m)
{
    qd_buf_adds(b, ",\"noise_map\":{\"t\":[");
    for (int k = 0; k < m->n_steps; k++)
        qd_buf_addf(b, k ? ",%d" : "%d", m->t[k]);
    qd_buf_adds(b, "],\"layers\":[");
    for (int k = 0; k < m->n_layers; k++) {
        qd_buf_adds(b, k ? ",{\"name\":" : "{\"name\":");
        qd_buf_add_json_string(b, m->layer[k]);
        qd_buf_adds(b, ",\"sqnr_db\":");
        add_floats(b, m->sqnr_db + k * m->n_steps, m->n_steps);
        qd_buf_adds(b, ",\"cosine\":");
        add_floats(b, m->cosine + k * m->n_steps, m->n_steps);
        qd_buf_adds(b, "}");
    }
    qd_buf_adds(b, "]}");
}

static void add_smoothing(qd_buf *b, const qd_smooth_report *r)
{
    qd_buf_adds(b, ",\"smoothing\":[");
    for (int k = 0; k < r->n; k++) {
        const qd_smooth_row *row = &r->rows[k];
        qd_buf_adds(b, k ? ",{\"name\":" : "{\"name\":");
        qd_buf_add_json_string(b, row->name);
        qd_buf_addf(b, ",\"factors\":\"%s\",\"in_norm\":%s", row->chosen, row->in_norm ? "true" : "false");
        add_number(b, "alpha", row->alpha);
        add_number(b, "mse_none", row->mse_none);
        add_number(b, "mse_embedding", row->mse_own);
        add_number(b, "mse", row->mse);
        qd_buf_adds(b, "}");
    }
    qd_buf_adds(b, "]");
}

/* Harms as the SQNR of eps: what a layer alone leaves of it. */
static void add_mixed(qd_buf *b, const qd_mixed_report *r)
{
    static const char *const keys[QD_MIXED_CHOICES] = { "eps_sqnr_db_4", "eps_sqnr_db_6", "eps_sqnr_db_8" };
    qd_buf_addf(b, ",\"mixed\":{\"budget_bytes\":%llu,\"planned_bytes\":%llu", (unsigned long long)r->budget_bytes,
                (unsigned long long)r->planned_bytes);
    add_number(b, "expected_eps_sqnr_db", 10 * log10(r->signal / r->harm));
    qd_buf_adds(b, ",\"layers\":[");
    for (int k = 0; k < r->n; k++) {
        qd_buf_adds(b, k ? ",{\"name\":" : "{\"name\":");
        qd_buf_add_json_string(b, r->rows[k].name);
        add_number(b, "bits", r->rows[k].bits);
        for (int c = 0; c < QD_MIXED_CHOICES; c++)
            add_number(b, keys[c], 10 * log10(r->signal / r->rows[k].harm[c]));
        qd_buf_adds(b, "}");
    }
    qd_buf_adds(b, "]}");
}

static void add_low_rank(qd_buf *b, const qd_low_rank_report *r)
{
    qd_buf_addf(b, ",\"low_rank\":{\"rank\":%d,\"bytes\":%llu", r->rank, (unsigned long long)r->bytes);
    add_number(b, "macs", (double)r->macs);
    add_number(b, "macs_without", (double)r->layer_macs);
    qd_buf_adds(b, ",\"layers\":[");
    for (int k = 0; k < r->n; k++) {
        qd_buf_adds(b, k ? ",{\"name\":" : "{\"name\":");
        qd_buf_add_json_string(b, r->rows[k].name);
        add_number(b, "weight_sqnr_db_without", r->rows[k].weight_sqnr_db_without);
        add_number(b, "weight_sqnr_db", r->rows[k].weight_sqnr_db);
        qd_buf_adds(b, "}");
    }
    qd_buf_adds(b, "]}");
}

static void add_recon(qd_buf *b, const qd_recon_report *r)
{
    qd_buf_adds(b, ",\"reconstruction\":[");
    for (int k = 0; k < r->n; k++) {
        const qd_recon_block *block = &r->blocks[k];
        qd_buf_adds(b, k ? ",{\"name\":" : "{\"name\":");
        qd_buf_add_json_string(b, block->name);
        qd_buf_adds(b, ",\"kind\":");
        qd_buf_add_json_string(b, block->kind);
        add_number(b, "layers", block->layers);
        add_number(b, "iterations", block->iterations);
        add_number(b, "mse_nearest", block->mse_nearest);
        add_number(b, "mse_learned", block->mse_learned);
        add_number(b, "settled", block->settled);
        qd_buf_addf(b, ",\"kept_nearest\":%s}", block->kept_nearest ? "true" : "false");
    }
    qd_buf_adds(b, "]");
}

/* What sampling does about the noise, and the figures it goes by. */
static void add_correction(qd_buf *b, const qd_correction *c)
{
    qd_buf_addf(b, ",\"correction\":{\"mode\":\"%s\",\"sampler\":\"%s\"", qd_correction_mode_name(c->mode), c->sampler);
    add_number(b, "steps", c->steps);
    add_number(b, "activation_groups", c->n_groups);
    qd_buf_adds(b, ",\"table\":[");
    for (int k = 0; k < c->n_table; k++) {
        const qd_noise_figures f = qd_noise_figures_of(&c->table[k], c->channels);
        double bias = 0;
        for (int64_t i = 0; i < c->channels; i++) {
            const qd_noise_sums *s = &c->table[k].channel[i];
            bias += (s->d - f.k * s->e) / s->n / (double)c->channels;
        }
        qd_buf_addf(b, "%s{\"t\":%d", k ? "," : "", c->table[k].t);
        add_number(b, "slope", f.k);
        add_number(b, "bias", bias);
        add_number(b, "sigma", f.sigma);
        qd_buf_adds(b, "}");
    }
    qd_buf_adds(b, "],\"probe\":[");
    for (int k = 0; k < c->n_probe; k++) {
        qd_buf_addf(b, "%s{\"t\":%d", k ? "," : "", c->probe[k].t);
        add_number(b, "mean", c->probe[k].m[0]);
        add_number(b, "variance", c->probe[k].v[0]);
        add_number(b, "spread", c->probe[k].s[0]);
        qd_buf_adds(b, "}");
    }
    qd_buf_adds(b, "]}");
}

static void add_layer(qd_buf *b, const qd_layer_report *l)
{
    qd_buf_adds(b, "{\"name\":");
    qd_buf_add_json_string(b, l->name);
    qd_buf_adds(b, ",\"op\":");
    qd_buf_add_json_string(b, l->op);
    add_number(b, "weight_bits", l->weight_bits);
    add_number(b, "activation_bits", l->activation_bits);
    if (l->activation_bits) {
        add_number(b, "scale", (double)l->scale);
        add_number(b, "zero", l->zero);
        add_number(b, "lo", (double)l->lo);
        add_number(b, "hi", (double)l->hi);
        add_number(b, "input_sqnr_db", l->input_sqnr_db);
    }
    if (l->weight_bits)
        add_number(b, "weight_sqnr_db", l->weight_sqnr_db);
    if (l->softmax_bits)
        add_number(b, "softmax_bits", l->softmax_bits);
    if (l->group_size)
        add_number(b, "group_size", (double)l->group_size);
    /* What multiplies what: codes in integers, or floats whose weights may have been codes on disk. */
    qd_buf_adds(b, l->activation_bits ? ",\"runs_as\":\"integer\"" : ",\"runs_as\":\"float\"");
    add_number(b, "macs", (double)l->macs);
    add_number(b, "weights", (double)l->weights);
    if (l->alone) {
        add_number(b, "alone_sqnr_db", l->alone_sqnr_db);
        add_number(b, "alone_agreement", l->alone_agreement);
    }
    qd_buf_adds(b, ",\"note\":");
    qd_buf_add_json_string(b, l->note);
    qd_buf_adds(b, "}");
}

qd_status qd_quant_report_json(const qd_quant_report *r, qd_buf *b, qd_err *err)
{
    qd_buf_adds(b, "{\"layers\":[");
    for (int k = 0; k < r->n_layers; k++) {
        qd_buf_adds(b, k ? "," : "");
        add_layer(b, &r->layers[k]);
    }
    qd_buf_adds(b, "]");
    add_number(b, "float_bytes", (double)r->float_bytes);
    add_number(b, "quantized_bytes", (double)r->quantized_bytes);
    add_number(b, "calibration_steps", r->calibration_steps);
    add_number(b, "calibration_samples", r->calibration_samples);
    add_number(b, "norms_folded", r->norms_folded);
    add_number(b, "pairs_equalized", r->pairs_equalized);
    add_number(b, "biases_corrected", r->biases_corrected);
    if (r->n_eps) {
        qd_buf_adds(b, ",\"eps\":[");
        for (int k = 0; k < r->n_eps; k++) {
            qd_buf_addf(b, "%s{\"t\":%d", k ? "," : "", r->eps_t[k]);
            add_number(b, "sqnr_db", r->eps_sqnr_db[k]);
            qd_buf_adds(b, "}");
        }
        qd_buf_adds(b, "]");
        add_number(b, "eps_sqnr_db", r->eps_sqnr_mean_db);
    }
    if (r->map.n_layers)
        add_map(b, &r->map);
    if (r->smooth.n)
        add_smoothing(b, &r->smooth);
    if (r->mixed.n)
        add_mixed(b, &r->mixed);
    if (r->low_rank.n)
        add_low_rank(b, &r->low_rank);
    if (r->recon.n)
        add_recon(b, &r->recon);
    if (r->correction)
        add_correction(b, r->correction);
    qd_buf_adds(b, "}");
    if (b->failed)
        return qd_fail(err, QD_E_NOMEM, "no room for the report of %d layers", r->n_layers);
    return QD_OK;
}
