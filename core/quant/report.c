/* report.c - the report of a quantization as JSON. */
#include "base/mem.h"
#include "quant/quant_int.h"

void qd_quant_report_clear(qd_quant_report *r)
{
    qd_free(r->layers);
    qd_free(r->eps_t);
    qd_free(r->eps_sqnr_db);
    *r = (qd_quant_report){ 0 };
}

static void add_number(qd_buf *b, const char *key, double v)
{
    qd_buf_addf(b, ",\"%s\":", key);
    qd_buf_add_json_number(b, v);
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
    if (l->group_size)
        add_number(b, "group_size", (double)l->group_size);
    /* What multiplies what: codes in integers, or floats whose weights may have been codes on disk. */
    qd_buf_adds(b, l->activation_bits ? ",\"runs_as\":\"integer\"" : ",\"runs_as\":\"float\"");
    add_number(b, "macs", (double)l->macs);
    add_number(b, "weights", (double)l->weights);
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
    qd_buf_adds(b, "}");
    if (b->failed)
        return qd_fail(err, QD_E_NOMEM, "no room for the report of %d layers", r->n_layers);
    return QD_OK;
}
