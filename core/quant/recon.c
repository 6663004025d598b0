/* recon.c - rounding that learns, block by block in forward order (qncd.md 6).
 *
 * A block is given what the network in codes gives it, blocks before it learned already, and is held to what the float network
 * makes of the same image: later blocks make good what earlier ones left. Activations stay in float here. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/recon_int.h"

void qd_recon_report_clear(qd_recon_report *r)
{
    qd_free(r->blocks);
    *r = (qd_recon_report){ 0 };
}

#define REACH 20.0 /* lr times iterations of the paper's profile: what v can travel in all */
#define MOST_LR 0.1

static qd_status check_options(const qd_layout *l, const qd_calibration_set *set, const qd_recon_options *o,
                               qd_err *err)
{
    if (o->how != QD_RECON_GPTQ) {
        if (o->iterations < 1 || o->batch < 1)
            return qd_fail(err, QD_E_INVALID,
                           "reconstruction needs at least one iteration and a batch of one, got %d and %d",
                           o->iterations, o->batch);
        if (!(o->lr > 0.0 && o->lr <= 1.0) || !(o->lambda >= 0.0) || !isfinite(o->lambda))
            return qd_fail(err, QD_E_INVALID, "lr must be in (0, 1] and lambda >= 0, got %g and %g", o->lr, o->lambda);
        if (!(o->b_end >= 1.0 && o->b_start >= o->b_end && o->b_start <= 100.0))
            return qd_fail(err, QD_E_INVALID, "b must fall from at most 100 to at least 1, got %g to %g", o->b_start,
                           o->b_end);
        if (!(o->warmup >= 0.0 && o->warmup < 1.0) || !(o->settled > 0.0 && o->settled <= 1.0))
            return qd_fail(err, QD_E_INVALID, "warmup must be in [0, 1) and settled in (0, 1], got %g and %g",
                           o->warmup, o->settled);
    } else if (!(o->damping >= 0.0) || !isfinite(o->damping)) {
        return qd_fail(err, QD_E_INVALID, "damping must be >= 0, got %g", o->damping);
    }
    for (int k = 0; k < l->n_layers; k++)
        if (!l->layers[k].note && !l->layers[k].part[0].codes.data)
            return qd_fail(err, QD_E_INVALID, "the weights of '%s' have no codes yet",
                           qd_graph_node(l->graph, l->layers[k].id)->name);
    if (set->steps < 1 || set->samples < 1 || !set->x.data)
        return qd_fail(err, QD_E_INVALID, "reconstruction needs a calibration set");
    return QD_OK;
}

typedef struct recon {
    qd_layout *l;
    const qd_calibration_set *set;
    const qd_recon_options *o;
    const qd_run *run;
    qd_blocks blocks;
    qd_kept_values kept;
    qd_recon_store store;
    qd_recon_report report;
    int learned; /* blocks that have quantized layers */
} recon;

/* --- codes of all layers of a block --- */

static void codes_free(int8_t **codes, int n)
{
    for (int k = 0; codes && k < n; k++)
        qd_free(codes[k]);
    qd_free(codes);
}

static qd_status codes_get(const recon *r, const qd_block *b, int8_t ***out, qd_err *err)
{
    int8_t **codes = qd_calloc((size_t)b->n_layers, sizeof *codes);
    qd_status st = codes ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for the codes of %d layers", b->n_layers);
    for (int k = 0; k < b->n_layers && !st; k++) {
        const qd_quant_layer *layer = &r->l->layers[b->layers[k]];
        codes[k] = qd_alloc((size_t)qd_layer_weights(r->l, layer));
        st = codes[k] ? qd_layer_get_codes(r->l, layer, codes[k], err)
                      : qd_fail(err, QD_E_NOMEM, "no memory for the codes of '%s'", b->name);
    }
    if (st)
        codes_free(codes, b->n_layers);
    else
        *out = codes;
    return st;
}

static qd_status codes_set(recon *r, const qd_block *b, int8_t *const *codes, qd_err *err)
{
    qd_status st = QD_OK;
    for (int k = 0; k < b->n_layers && !st; k++)
        st = qd_layer_set_codes(r->l, &r->l->layers[b->layers[k]], codes[k], qd_run_budget(r->run), err);
    return st;
}

/* --- one block --- */

static qd_status learn(const recon *r, const qd_recon_work *w, int8_t **codes, qd_recon_block *row, qd_err *err)
{
    if (r->o->how != QD_RECON_GPTQ)
        return qd_recon_learn(w, codes, &row->iterations, &row->settled, err);
    row->settled = NAN;
    return qd_gptq_learn(w, codes[0], &row->note, err);
}

/* Learned codes are taken where they do better on the whole calibration set, rounded hard (12.6). y gets what the block then makes. */
static qd_status improve(recon *r, const qd_recon_work *w, qd_recon_block *row, float *y, qd_err *err)
{
    const qd_block *b = w->block;
    int8_t **nearest = NULL, **codes = NULL;
    bool found = false;
    qd_status st = codes_get(r, b, &nearest, err);
    if (!st)
        st = codes_get(r, b, &codes, err);
    if (!st && r->o->checkpoint)
        st = qd_recon_store_load(&r->store, r->l, b, w->number, codes, row, &found, r->run, err);
    if (st)
        goto out;
    if (found) {
        double mse;
        st = codes_set(r, b, codes, err);
        if (!st)
            st = qd_recon_evaluate(w, y, &mse, err);
        goto out;
    }
    st = qd_recon_evaluate(w, y, &row->mse_nearest, err);
    if (!st)
        st = learn(r, w, codes, row, err);
    if (!st)
        st = codes_set(r, b, codes, err);
    if (!st)
        st = qd_recon_evaluate(w, y, &row->mse_learned, err);
    row->kept_nearest = !(row->mse_learned < row->mse_nearest);
    if (!st && row->kept_nearest) {
        st = codes_set(r, b, nearest, err);
        if (!st)
            st = qd_recon_evaluate(w, y, &row->mse_nearest, err);
    }
    if (!st && r->o->checkpoint)
        st = qd_recon_store_save(&r->store, r->l, b, w->number, row->kept_nearest ? nearest : codes, row, err);
out:
    codes_free(nearest, b->n_layers);
    codes_free(codes, b->n_layers);
    return st;
}

/* What the block reads in the network in codes: kept already, or computed for it alone. */
static qd_status make_entries(recon *r, const qd_block *b, qd_tensor *entry, qd_err *err)
{
    qd_node_id *wanted = qd_calloc((size_t)b->n_entry + 1, sizeof *wanted);
    qd_tensor *made = qd_calloc((size_t)b->n_entry + 1, sizeof *made);
    qd_status st = wanted && made ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %d values", b->n_entry);
    int n = 0;
    for (int k = 0; k < b->n_entry && !st; k++)
        if (!r->kept.value[QD_NET_CODES][b->entry[k]].data)
            wanted[n++] = b->entry[k];
    if (!st && n)
        st = qd_kept_compute(&r->kept, QD_NET_CODES, wanted, n, made, err);
    n = 0;
    for (int k = 0; k < b->n_entry && !st; k++) {
        if (r->kept.value[QD_NET_CODES][b->entry[k]].data)
            qd_tensor_share(&entry[k], &r->kept.value[QD_NET_CODES][b->entry[k]]);
        else
            entry[k] = made[n++];
    }
    qd_free(made);
    qd_free(wanted);
    return st;
}

static qd_status do_block(recon *r, int number, qd_err *err)
{
    const qd_block *b = &r->blocks.block[number];
    const int rows = r->report.n;
    qd_recon_block *row = &r->report.blocks[rows];
    qd_tensor *entry = qd_calloc((size_t)b->n_entry + 1, sizeof *entry);
    qd_tensor target = { 0 }, y = { 0 };
    const qd_shape shape = QD_SHAPE(r->kept.items * qd_kept_count(&r->kept, b->out));
    qd_status st = entry ? qd_kept_compute(&r->kept, QD_NET_FLOAT, &b->out, 1, &target, err)
                         : qd_fail(err, QD_E_NOMEM, "no memory for %d values", b->n_entry);
    if (!st && !b->n_layers)
        st = qd_kept_compute(&r->kept, QD_NET_CODES, &b->out, 1, &y, err);
    if (!st && b->n_layers) {
        st = make_entries(r, b, entry, err);
        if (!st)
            st = qd_tensor_init(&y, QD_F32, &shape, qd_run_budget(r->run), err);
        if (st)
            goto out;
        const qd_recon_work w = { .layout = r->l,
                                  .block = b,
                                  .kept = &r->kept,
                                  .options = r->o,
                                  .run = r->run,
                                  .entry = entry,
                                  .target = qd_f32(&target),
                                  .number = number,
                                  .done = (int64_t)rows * r->o->iterations,
                                  .total = (int64_t)r->learned * r->o->iterations };
        *row = (qd_recon_block){ .kind = b->kind, .layers = b->n_layers, .note = "" };
        memcpy(row->name, b->name, sizeof row->name);
        st = improve(r, &w, row, qd_f32(&y), err);
        if (st)
            goto out;
        qd_run_metric(r->run, "recon_mse", rows, row->kept_nearest ? row->mse_nearest : row->mse_learned);
        qd_run_progress(r->run, "reconstruct", b->name, w.done + r->o->iterations, w.total);
        r->report.n++;
    }
    if (st)
        goto out;
    r->kept.value[QD_NET_FLOAT][b->out] = target;
    r->kept.value[QD_NET_CODES][b->out] = y;
    target = y = (qd_tensor){ 0 };
    qd_kept_drop(&r->kept, number);
out:
    for (int k = 0; entry && k < b->n_entry; k++)
        qd_tensor_clear(&entry[k]);
    qd_free(entry);
    qd_tensor_clear(&y);
    qd_tensor_clear(&target);
    return st;
}

/* --- all of them --- */

static qd_status prepare(recon *r, qd_err *err)
{
    qd_status st = qd_blocks_find(r->l, r->o->how != QD_RECON_BLOCK, &r->blocks, err);
    if (!st)
        st = qd_kept_init(&r->kept, r->l, &r->blocks, r->set, 0, r->run, err);
    if (st)
        return st;
    if (r->kept.per_step < r->set->samples)
        qd_run_warn(r->run, "reconstruction goes by %lld of %lld samples of each time step: more do not fit the budget",
                    (long long)r->kept.per_step, (long long)r->set->samples);
    for (int k = 0; k < r->blocks.n; k++)
        r->learned += r->blocks.block[k].n_layers > 0;
    r->report.blocks = qd_calloc((size_t)r->learned + 1, sizeof *r->report.blocks);
    if (!r->report.blocks)
        return qd_fail(err, QD_E_NOMEM, "no memory for a report of %d blocks", r->learned);
    if (r->o->checkpoint)
        st = qd_recon_store_init(&r->store, &r->kept, r->o, err);
    return st;
}

qd_status qd_layout_reconstruct(qd_layout *l, const qd_calibration_set *set, const qd_recon_options *o,
                                const qd_run *run, qd_recon_report *report, qd_err *err)
{
    qd_recon_options options = *o;
    if (options.how == QD_RECON_GPTQ)
        options.iterations = 1; /* a step of progress for each layer */
    if (options.lr == 0.0)
        options.lr = fmin(REACH / options.iterations, MOST_LR);
    recon r = { .l = l, .set = set, .o = &options, .run = run };
    qd_status st = check_options(l, set, &options, err);
    if (st)
        return st;
    st = prepare(&r, err);
    for (int k = 0; k < r.blocks.n && !st; k++) {
        st = qd_run_check(run, err);
        if (!st)
            st = do_block(&r, k, err);
    }
    if (!st) {
        qd_recon_report_clear(report);
        *report = r.report;
        r.report = (qd_recon_report){ 0 };
    }
    qd_recon_report_clear(&r.report);
    qd_kept_clear(&r.kept);
    qd_blocks_clear(&r.blocks);
    return st;
}
