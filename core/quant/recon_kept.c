/* recon_kept.c - finished blocks in a folder of the caller's: a job that was killed goes on behind them, with the same bytes. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "graph/op.h"
#include "model/model.h"
#include "quant/recon_int.h"

#define FORMAT "quantd-recon-1"

/* --- the key: all that the codes depend on --- */

static void add_digest(qd_buf *b, const void *data, size_t bytes)
{
    char hex[QD_SHA256_HEX];
    qd_sha256(data, bytes, hex);
    qd_buf_addf(b, "%s\n", hex);
}

static void add_tensor(qd_buf *b, const qd_tensor *t)
{
    char text[160];
    qd_buf_addf(b, "%s %s ", qd_dtype_name(t->dtype), qd_shape_text(&t->shape, text, sizeof text));
    add_digest(b, t->data, qd_tensor_bytes(t));
}

static void add_node(qd_buf *b, const qd_node *n)
{
    qd_buf_addf(b, "%s", n->op->name);
    for (int k = 0; k < n->n_inputs; k++)
        qd_buf_addf(b, " %d", (int)n->input[k]);
    for (int k = 0; k < n->n_attrs; k++) {
        qd_buf_addf(b, " %s %" PRId64 " %a", n->attr[k].name, n->attr[k].i, n->attr[k].f);
        for (int i = 0; i < n->attr[k].n; i++)
            qd_buf_addf(b, " %" PRId64, n->attr[k].ints[i]);
    }
    qd_buf_adds(b, "\n");
    if (n->op == &qd_op_const)
        add_tensor(b, &n->value);
}

static void add_layer(qd_buf *b, const qd_quant_layer *layer)
{
    qd_buf_addf(b, "layer %d %d %d\n", (int)layer->id, layer->note != NULL, layer->n_parts);
    for (int k = 0; k < layer->n_parts; k++) {
        qd_buf_addf(b, "part %" PRId64 " %" PRId64 "\n", layer->part[k].first, layer->part[k].group_size);
        add_tensor(b, &layer->part[k].codes);
        add_tensor(b, &layer->part[k].wscale);
    }
    if (layer->bias.data)
        add_tensor(b, &layer->bias);
}

qd_status qd_recon_store_init(qd_recon_store *s, const qd_kept_values *k, const qd_recon_options *o, qd_err *err)
{
    const qd_layout *l = k->layout;
    qd_buf b;
    qd_buf_init(&b, 0);
    for (qd_node_id id = 0; id < qd_graph_size(l->graph); id++) {
        add_node(&b, qd_graph_node(l->graph, id));
        if (k->value[QD_NET_FLOAT][id].data) /* what goes in */
            add_tensor(&b, &k->value[QD_NET_FLOAT][id]);
    }
    for (int i = 0; i < l->n_layers; i++)
        add_layer(&b, &l->layers[i]);
    qd_buf_addf(&b, "%d %d %d %a %a %a %a %a %a %a %d %" PRId64 " %" PRIu64 "\n", (int)o->how, o->iterations, o->batch,
                o->lr, o->lambda, o->b_start, o->b_end, o->warmup, o->settled, o->damping, o->act_order, k->items,
                k->run ? k->run->seed : 0);
    qd_status st = b.failed ? qd_fail(err, QD_E_NOMEM, "no memory for the key of a checkpoint") : QD_OK;
    if (!st) {
        qd_sha256(b.data, b.size, s->key);
        s->folder = o->checkpoint;
        st = qd_fs_mkdirs(s->folder, err);
    }
    qd_buf_clear(&b);
    return st;
}

/* --- files --- */

static char *path_of(const qd_recon_store *s, int number)
{
    char name[48];
    snprintf(name, sizeof name, "recon-%04d.safetensors", number);
    return qd_fs_join(s->folder, name);
}

static void tensor_name(const qd_layout *l, const qd_block *b, int k, char name[QD_MAX_NAME + 16])
{
    snprintf(name, QD_MAX_NAME + 16, "%s.codes", qd_graph_node(l->graph, l->layers[b->layers[k]].id)->name);
}

/* What a finished block is told by, beside its codes; numbers as they are to the last bit. */
static qd_status describe(const qd_recon_store *s, const qd_recon_block *row, qd_meta *meta, qd_err *err)
{
    char text[200];
    qd_status st = qd_meta_set(meta, "format", FORMAT, err);
    if (!st)
        st = qd_meta_set(meta, "key", s->key, err);
    snprintf(text, sizeof text, "%d %a %a %a %d", row->iterations, row->mse_nearest, row->mse_learned, row->settled,
             row->kept_nearest);
    if (!st)
        st = qd_meta_set(meta, "row", text, err);
    return st ? st : qd_meta_set(meta, "note", row->note, err);
}

qd_status qd_recon_store_save(const qd_recon_store *s, const qd_layout *l, const qd_block *b, int number,
                              int8_t *const *codes, const qd_recon_block *row, qd_err *err)
{
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    char *path = path_of(s, number);
    qd_status st = path ? qd_weights_new(&w, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = qd_meta_new(&meta, err);
    if (!st)
        st = describe(s, row, meta, err);
    for (int k = 0; k < b->n_layers && !st; k++) {
        char name[QD_MAX_NAME + 16];
        const qd_shape shape = QD_SHAPE(qd_layer_weights(l, &l->layers[b->layers[k]]));
        qd_tensor t = { 0 };
        tensor_name(l, b, k, name);
        st = qd_tensor_wrap(&t, QD_I8, &shape, codes[k], NULL, NULL, err);
        if (!st)
            st = qd_weights_add(w, name, &t, err);
        qd_tensor_clear(&t);
    }
    if (!st)
        st = qd_safetensors_save(path, w, meta, NULL, err);
    qd_meta_free(meta);
    qd_weights_free(w);
    qd_free(path);
    return st;
}

static qd_status read_row(const qd_meta *meta, qd_recon_block *row, qd_err *err)
{
    const char *text = qd_meta_find(meta, "row");
    int kept = 0, end = 0;
    if (!text ||
        sscanf(text, "%d %la %la %la %d%n", &row->iterations, &row->mse_nearest, &row->mse_learned, &row->settled,
               &kept, &end) != 5 ||
        text[end])
        return qd_fail(err, QD_E_FORMAT, "its figures are '%.60s'", text ? text : "missing");
    row->kept_nearest = kept;
    const char *note = qd_meta_find(meta, "note");
    row->note = note ? qd_gptq_note(note) : "";
    return QD_OK;
}

static qd_status read_block(const qd_recon_store *s, const qd_layout *l, const qd_block *b, const qd_weights *w,
                            const qd_meta *meta, int8_t *const *codes, qd_recon_block *row, qd_err *err)
{
    const char *format = qd_meta_find(meta, "format"), *key = qd_meta_find(meta, "key");
    if (!format || strcmp(format, FORMAT) != 0)
        return qd_fail(err, QD_E_FORMAT, "its format is '%.40s'", format ? format : "missing");
    if (!key || strcmp(key, s->key) != 0)
        return qd_fail(err, QD_E_CONFLICT, "it was made from another network, data or options");
    for (int k = 0; k < b->n_layers; k++) {
        char name[QD_MAX_NAME + 16];
        tensor_name(l, b, k, name);
        const qd_tensor *t = qd_weights_find(w, name);
        const qd_quant_layer *layer = &l->layers[b->layers[k]];
        const int64_t n = qd_layer_weights(l, layer);
        const int bits = (int)qd_dtype_bits(layer->part[0].codes.dtype), most = (1 << (bits - 1)) - 1;
        if (!t || t->dtype != QD_I8 || qd_tensor_count(t) != n)
            return qd_fail(err, QD_E_FORMAT, "it has no codes for '%.200s'", name);
        for (int64_t i = 0; i < n; i++)
            if (qd_i8(t)[i] > most || qd_i8(t)[i] < -most - 1)
                return qd_fail(err, QD_E_FORMAT, "'%.200s' has the code %d, of %d bits", name, qd_i8(t)[i], bits);
    }
    const qd_status st = read_row(meta, row, err);
    for (int k = 0; k < b->n_layers && !st; k++) {
        char name[QD_MAX_NAME + 16];
        tensor_name(l, b, k, name);
        memcpy(codes[k], qd_i8(qd_weights_find(w, name)), (size_t)qd_layer_weights(l, &l->layers[b->layers[k]]));
    }
    return st;
}

qd_status qd_recon_store_load(const qd_recon_store *s, const qd_layout *l, const qd_block *b, int number,
                              int8_t *const *codes, qd_recon_block *row, bool *found, const qd_run *run, qd_err *err)
{
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    qd_recon_block read = *row;
    qd_err why = { 0 };
    char *path = path_of(s, number);
    qd_status st = path ? qd_meta_new(&meta, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    *found = false;
    if (!st && qd_fs_exists(path)) {
        qd_status fits = qd_safetensors_open(path, &w, meta, &why);
        if (!fits)
            fits = read_block(s, l, b, w, meta, codes, &read, &why);
        if (fits == QD_E_NOMEM)
            st = qd_fail(err, fits, "%s", why.text);
        else if (fits)
            qd_run_warn(run, "block '%s' is learned anew: its checkpoint does not fit: %s", b->name, why.text);
        else {
            *row = read;
            *found = true;
        }
    }
    qd_weights_free(w);
    qd_meta_free(meta);
    qd_free(path);
    return st;
}
