/* few.c - a few items of a calibration set, of every stored time step, as inputs of a network: what choices are tried on. */
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/qncd_int.h"

enum { BATCH = 8 };

/* Every sample is seen as sampling shows it: with its condition, without it, or, guided, both ways (qncd.md 5). */
static bool is_seen(const qd_calibration_set *set, bool with)
{
    const double w = set->condition ? set->condition->guidance : 1.0;
    return with ? w != 0.0 : w != 1.0;
}

/* The items of one step, told one way. */
static void fill(const qd_few *f, const qd_graph *g, int input, const qd_calibration_set *set, bool with, int step,
                 char *to)
{
    const qd_node_id id = qd_graph_input_at(g, input);
    const qd_node *n = qd_graph_node(g, id);
    if (id == f->sample) {
        memcpy(to, (const char *)set->x.data + (size_t)(step * set->samples) * f->one_bytes[input],
               (size_t)f->per_step * f->one_bytes[input]);
        return;
    }
    if (strcmp(n->name, "timestep") != 0) {
        qd_condition_fill(set->condition, n, with, set->first_sample, f->per_step, to);
        return;
    }
    for (int64_t i = 0; i < f->per_step; i++)
        if (n->dtype == QD_I64)
            ((int64_t *)to)[i] = set->t[step];
        else
            ((float *)to)[i] = (float)set->t[step];
}

/* qd_layout_new has seen to it that there are no inputs but the image, the time step and what a condition fills. */
static qd_status fill_input(qd_few *f, const qd_graph *g, int k, const qd_calibration_set *set, const qd_run *run,
                            qd_err *err)
{
    static const qd_condition nothing = { .guidance = 1.0 };
    const qd_node_id id = qd_graph_input_at(g, k);
    const qd_node *n = qd_graph_node(g, id);
    if (id != f->sample && strcmp(n->name, "timestep") != 0) {
        const qd_status st = qd_condition_check(set->condition ? set->condition : &nothing, n, err);
        if (st)
            return st;
    }
    f->shapes[k] = n->shape;
    if (n->shape.rank < 1)
        return qd_fail(err, QD_E_UNSUPPORTED, "the input '%s' does not hold its samples one after the other", n->name);
    f->shapes[k].dim[0] = f->items;
    qd_status st = qd_tensor_init(&f->value[k], n->dtype, &f->shapes[k], qd_run_budget(run), err);
    if (st)
        return st;
    f->n_inputs = k + 1;
    f->one_bytes[k] = qd_tensor_bytes(&f->value[k]) / (size_t)f->items;
    f->shapes[k].dim[0] = f->batch;
    char *to = f->value[k].data;
    for (int with = 1; with >= 0; with--)
        for (int step = 0; step < set->steps && is_seen(set, with); step++) {
            fill(f, g, k, set, with, step, to);
            to += (size_t)f->per_step * f->one_bytes[k];
        }
    return QD_OK;
}

qd_status qd_few_init(qd_few *f, const qd_graph *g, qd_node_id sample, const qd_calibration_set *set, int64_t per_step,
                      const qd_run *run, qd_err *err)
{
    const int n = qd_graph_inputs(g);
    *f = (qd_few){ .sample = sample, .per_step = per_step < set->samples ? per_step : set->samples };
    if (n > QD_MAX_INPUTS)
        return qd_fail(err, QD_E_UNSUPPORTED, "the graph has %d inputs; %d are the most", n, QD_MAX_INPUTS);
    f->items = f->per_step * set->steps * (is_seen(set, true) + is_seen(set, false));
    for (f->batch = BATCH; f->items % f->batch != 0;)
        f->batch--;
    f->step = qd_calloc((size_t)f->items, sizeof *f->step);
    qd_status st = f->step
                       ? QD_OK
                       : qd_fail(err, QD_E_NOMEM, "no memory for %lld items of a calibration set", (long long)f->items);
    for (int64_t i = 0; i < f->items && !st; i++)
        f->step[i] = (int)(i / f->per_step % set->steps);
    for (int k = 0; k < n && !st; k++)
        st = fill_input(f, g, k, set, run, err);
    if (st)
        qd_few_clear(f);
    return st;
}

void qd_few_bind(const qd_few *f, int64_t first, const void **in)
{
    for (int k = 0; k < f->n_inputs; k++)
        in[k] = (const char *)f->value[k].data + (size_t)first * f->one_bytes[k];
}

void qd_few_clear(qd_few *f)
{
    for (int k = 0; k < f->n_inputs; k++)
        qd_tensor_clear(&f->value[k]);
    qd_free(f->step);
    *f = (qd_few){ 0 };
}
