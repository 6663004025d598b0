/* profile.c - run a compiled network and hold every step against the roofline. */
#include "profile.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"

#define MOST_LOST 5 /* steps named at the end */

/* One step, with what it could have taken. */
typedef struct row {
    qd_plan_step step;
    double took, least; // seconds of one run
    qd_plan_bound bound;
} row;

typedef struct profile {
    const sv_profile_options *o;
    qd_plan_peaks peaks;
    double *sums; // [steps, runs]
    row *rows;
    int n;
    double took, least;
    size_t arena_bytes, weight_bytes;
} profile;

/* --- running --- */

/* On zeros, with room for every input and output at its full shape. sums (may be NULL): each step's seconds after each run, added up. */
static qd_status run_on_zeros(qd_plan *p, const qd_graph *g, const qd_shape *shapes, long runs, double *sums,
                              qd_err *err)
{
    const int n_in = qd_graph_inputs(g), n_out = qd_graph_outputs(g);
    void **value = qd_calloc((size_t)(n_in + n_out), sizeof *value);
    qd_status st = value ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %d inputs and outputs", n_in + n_out);
    for (int k = 0; k < n_in + n_out && !st; k++) {
        const qd_node_id id = k < n_in ? qd_graph_input_at(g, k) : qd_graph_output_at(g, k - n_in);
        int64_t n;
        st = qd_shape_count(&shapes[id], &n, err);
        if (st)
            break;
        value[k] = qd_calloc((size_t)n, sizeof(int64_t)); /* the widest dtype */
        if (!value[k])
            st = qd_fail(err, QD_E_NOMEM, "no memory for %lld numbers", (long long)n);
    }
    for (long k = 0; k < runs && !st; k++) {
        st = qd_plan_run(p, NULL, (const void *const *)value, value + n_in, err);
        for (int i = 0; i < qd_plan_steps(p) && sums; i++) {
            qd_plan_step s;
            qd_plan_step_at(p, i, &s);
            sums[i * runs + k] = s.seconds;
        }
    }
    for (int k = 0; k < n_in + n_out && value; k++)
        qd_free(value[k]);
    qd_free(value);
    return st;
}

static qd_status measure(const qd_graph *g, const qd_shape *inputs, int n_inputs, profile *p, qd_plan **out,
                         qd_err *err)
{
    const qd_plan_options options = { .input_shapes = inputs,
                                      .n_inputs = n_inputs,
                                      .threads = p->o->threads,
                                      .backend = p->o->backend,
                                      .profile = true };
    qd_plan *warm = NULL, *plan = NULL;
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(g), sizeof *shapes);
    qd_status st = shapes ? qd_graph_shapes(g, inputs, n_inputs, shapes, err)
                          : qd_fail(err, QD_E_NOMEM, "no memory for the shapes of %d nodes", qd_graph_size(g));
    /* The first plan touches caches and the libraries' own first-time work; the second is measured. */
    if (!st)
        st = qd_plan_compile(g, &options, &warm, err);
    if (!st)
        st = run_on_zeros(warm, g, shapes, 2, NULL, err);
    qd_plan_free(warm);
    if (!st)
        st = qd_plan_measure_peaks(p->o->threads, &p->peaks, err);
    if (!st)
        st = qd_plan_compile(g, &options, &plan, err);
    if (!st) {
        p->sums = qd_calloc((size_t)qd_plan_steps(plan) * (size_t)p->o->runs, sizeof *p->sums);
        st = p->sums ? run_on_zeros(plan, g, shapes, p->o->runs, p->sums, err)
                     : qd_fail(err, QD_E_NOMEM, "no memory for the times of %ld runs", p->o->runs);
    }
    qd_free(shapes);
    if (st)
        qd_plan_free(plan);
    else
        *out = plan;
    return st;
}

static int slower_first(const void *a, const void *b)
{
    const row *x = a, *y = b;
    return x->took < y->took ? 1 : x->took > y->took ? -1 : 0;
}

static int most_lost_first(const void *a, const void *b)
{
    const row *x = *(const row *const *)a, *y = *(const row *const *)b;
    const double p = x->took - x->least, q = y->took - y->least;
    return p < q ? 1 : p > q ? -1 : 0;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The median of single runs, from what they add up to: a disturbed run does not count. */
static double middle(double *sums, long runs)
{
    for (long k = runs - 1; k > 0; k--)
        sums[k] -= sums[k - 1];
    qsort(sums, (size_t)runs, sizeof *sums, by_value);
    return sums[runs / 2];
}

static qd_status judge(const qd_plan *plan, profile *p, qd_err *err)
{
    p->n = qd_plan_steps(plan);
    p->rows = qd_calloc((size_t)p->n + 1, sizeof *p->rows);
    if (!p->rows)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d steps", p->n);
    for (int k = 0; k < p->n; k++) {
        row *r = &p->rows[k];
        qd_plan_step_at(plan, k, &r->step);
        r->took = middle(p->sums + (size_t)k * (size_t)p->o->runs, p->o->runs);
        r->least = qd_plan_least_seconds(&r->step, r->took, &p->peaks, &r->bound);
        p->took += r->took;
        p->least += r->least;
    }
    p->arena_bytes = qd_plan_arena_bytes(plan);
    p->weight_bytes = qd_plan_weight_bytes(plan);
    if (p->o->by_time)
        qsort(p->rows, (size_t)p->n, sizeof *p->rows, slower_first);
    return QD_OK;
}

/* --- a table --- */

static double percent(double part, double whole)
{
    return whole > 0.0 ? 100.0 * part / whole : 0.0;
}

static void add_rate(qd_buf *b, const row *r)
{
    if (r->step.macs)
        qd_buf_addf(b, "%8.1f G%s/s", r->took > 0 ? 2e-9 * (double)r->step.macs / r->took : 0,
                    r->step.integer ? "OP" : "FLOP");
    else
        qd_buf_addf(b, "%8.1f GB/s", r->took > 0 ? 1e-9 * (double)r->step.bytes / r->took : 0);
}

static void add_sum(const profile *p, qd_plan_bound bound, qd_buf *b)
{
    double took = 0, least = 0;
    int n = 0;
    for (int k = 0; k < p->n; k++)
        if (p->rows[k].bound == bound) {
            took += p->rows[k].took;
            least += p->rows[k].least;
            n++;
        }
    if (n > 0)
        qd_buf_addf(b, "%10.1f %5.1f  %d steps held back by %s, at %.0f %% of their roof\n", took * 1e6,
                    percent(took, p->took), n, qd_plan_bound_name(bound), percent(least, took));
}

static qd_status add_lost(const profile *p, qd_buf *b, qd_err *err)
{
    const row **order = qd_calloc((size_t)p->n + 1, sizeof *order);
    if (!order)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d steps", p->n);
    for (int k = 0; k < p->n; k++)
        order[k] = &p->rows[k];
    qsort(order, (size_t)p->n, sizeof *order, most_lost_first);
    qd_buf_addf(b, "\nmost time beyond the roof:\n");
    for (int k = 0; k < p->n && k < MOST_LOST; k++)
        qd_buf_addf(b, "%10.1f %5.1f  %s (%s): %.1f us, could be %.1f\n", (order[k]->took - order[k]->least) * 1e6,
                    percent(order[k]->took - order[k]->least, p->took), order[k]->step.name, order[k]->step.kind,
                    order[k]->took * 1e6, order[k]->least * 1e6);
    qd_free(order);
    return QD_OK;
}

static qd_status add_table(const profile *p, qd_buf *b, qd_err *err)
{
    char shape[96];
    qd_buf_addf(b, "%s, batch %ld, %d threads, backend %s, median of %ld runs\n", p->o->title, p->o->batch,
                p->o->threads, qd_backend_name(p->o->backend), p->o->runs);
    qd_buf_addf(
        b,
        "this processor: convolutions %.0f GFLOP/s in f32 and %.0f GOP/s in int8, %.1f GB/s from memory, %.1f from "
        "the cache\n\n",
        2e-9 * p->peaks.f32_macs, 2e-9 * p->peaks.int8_macs, 1e-9 * p->peaks.memory_rate, 1e-9 * p->peaks.cache_rate);
    qd_buf_addf(b, "%10s %5s %6s  %-8s %16s %9s %8s  %-26s %-22s %-22s %s\n", "us", "%", "roof %", "bound", "rate",
                "MMAC", "MB", "kind", "makes", "implementation", "ends at");
    for (int k = 0; k < p->n; k++) {
        const row *r = &p->rows[k];
        qd_buf_addf(b, "%10.1f %5.1f %6.0f  %-8s ", r->took * 1e6, percent(r->took, p->took),
                    percent(r->least, r->took), qd_plan_bound_name(r->bound));
        const size_t before = b->size;
        add_rate(b, r);
        for (size_t pad = b->size - before; pad < 16; pad++)
            qd_buf_adds(b, " ");
        qd_buf_addf(b, " %9.2f %8.3f  %-26s %-22s %-22s %s\n", 1e-6 * (double)r->step.macs,
                    1e-6 * (double)r->step.bytes, r->step.kind, qd_shape_text(&r->step.shape, shape, sizeof shape),
                    r->step.impl, r->step.name);
    }
    qd_buf_addf(b, "\n%10.1f 100.0  %d steps; the roof is %.1f us (%.0f %%)\n", p->took * 1e6, p->n, p->least * 1e6,
                percent(p->least, p->took));
    add_sum(p, QD_BOUND_COMPUTE, b);
    add_sum(p, QD_BOUND_MEMORY, b);
    add_sum(p, QD_BOUND_OVERHEAD, b);
    const qd_status st = add_lost(p, b, err);
    qd_buf_addf(b, "\narena %zu bytes, packed weights %zu bytes\n", p->arena_bytes, p->weight_bytes);
    return st;
}

/* --- JSON --- */

/* Members of an object: each begins with what separates it from the one before. */
static void add_text(qd_buf *b, const char *key, const char *text)
{
    qd_buf_addf(b, "%s\"%s\":", b->data[b->size - 1] == '{' ? "" : ",", key);
    qd_buf_add_json_string(b, text);
}

static void add_number(qd_buf *b, const char *key, double v)
{
    qd_buf_addf(b, "%s\"%s\":", b->data[b->size - 1] == '{' ? "" : ",", key);
    qd_buf_add_json_number(b, v);
}

static void add_json_row(const row *r, qd_buf *b)
{
    qd_buf_adds(b, "{");
    add_text(b, "name", r->step.name);
    add_text(b, "kind", r->step.kind);
    add_text(b, "implementation", r->step.impl);
    qd_buf_adds(b, ",\"shape\":[");
    for (int k = 0; k < r->step.shape.rank; k++)
        qd_buf_addf(b, "%s%lld", k ? "," : "", (long long)r->step.shape.dim[k]);
    qd_buf_adds(b, "]");
    add_text(b, "arithmetic", r->step.integer ? "integer" : "float");
    add_number(b, "macs", (double)r->step.macs);
    add_number(b, "bytes", (double)r->step.bytes);
    add_number(b, "threads", r->step.threads);
    add_number(b, "seconds", r->took);
    add_number(b, "roof_seconds", r->least);
    add_text(b, "bound", qd_plan_bound_name(r->bound));
    qd_buf_adds(b, "}");
}

static void add_json(const profile *p, qd_buf *b)
{
    qd_buf_adds(b, "{");
    add_text(b, "model", p->o->title);
    add_text(b, "backend", qd_backend_name(p->o->backend));
    add_number(b, "batch", (double)p->o->batch);
    add_number(b, "threads", p->o->threads);
    add_number(b, "runs", (double)p->o->runs);
    qd_buf_adds(b, ",\"peaks\":{");
    add_number(b, "f32_macs_per_second", p->peaks.f32_macs);
    add_number(b, "int8_macs_per_second", p->peaks.int8_macs);
    add_number(b, "memory_bytes_per_second", p->peaks.memory_rate);
    add_number(b, "cache_bytes_per_second", p->peaks.cache_rate);
    qd_buf_adds(b, "}");
    add_number(b, "seconds", p->took);
    add_number(b, "roof_seconds", p->least);
    add_number(b, "arena_bytes", (double)p->arena_bytes);
    add_number(b, "weight_bytes", (double)p->weight_bytes);
    qd_buf_adds(b, ",\"steps\":[");
    for (int k = 0; k < p->n; k++) {
        qd_buf_adds(b, k ? "," : "");
        add_json_row(&p->rows[k], b);
    }
    qd_buf_adds(b, "]}\n");
}

qd_status sv_profile(const qd_graph *g, const qd_shape *shapes, int n_inputs, const sv_profile_options *o, qd_buf *out,
                     qd_err *err)
{
    profile p = { .o = o };
    qd_plan *plan = NULL;
    qd_status st = measure(g, shapes, n_inputs, &p, &plan, err);
    if (!st)
        st = judge(plan, &p, err);
    if (!st && o->json)
        add_json(&p, out);
    else if (!st)
        st = add_table(&p, out, err);
    if (!st && out->failed)
        st = qd_fail(err, QD_E_NOMEM, "no memory for a profile of %d steps", p.n);
    qd_free(p.rows);
    qd_free(p.sums);
    qd_plan_free(plan); /* the names of the steps are its own */
    return st;
}
