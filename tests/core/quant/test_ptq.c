/* test_ptq.c - the whole method: every stored time step is seen, same seed same bytes, stopping, budgets, the shipped model. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/quant.h"

#define T 20

static qd_node_id constant(qd_graph *g, const char *name, qd_shape shape, const float *values)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    memcpy(t.data, values, qd_tensor_bytes(&t));
    const qd_node_id id = qd_graph_const(g, name, &t);
    qd_tensor_clear(&t);
    return id;
}

/* eps = conv(sample * table[t]), with weights so small that the trajectory hardly depends on the table. */
static qd_graph *toy(const float table[T])
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    float w[2 * 9], v[2] = { 3, -2 };
    check_ok(qd_graph_new(&g, &err), &err);
    harness_normal(w, 18, 1, 1e-6f);
    const qd_shape image = QD_SHAPE(-1, 1, 4, 4), time = QD_SHAPE(-1);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &image), t = qd_graph_input(g, "timestep", QD_F32, &time);
    const qd_node_id rows = constant(g, "table", QD_SHAPE(T, 1), table);
    qd_node_id e = qd_graph_add(g, &qd_op_embedding, "e", QD_IN(t, rows), QD_NO_ATTRS);
    e = qd_graph_add(g, &qd_op_reshape, "e4", QD_IN(e),
                     QD_ATTRS(qd_attr_ints("shape", 4, (const int64_t[]){ 0, 1, 1, 1 })));
    const qd_node_id scaled = qd_graph_add(g, &qd_op_mul, "scaled", QD_IN(x, e), QD_NO_ATTRS);
    const qd_node_id w1 = constant(g, "first.weight", QD_SHAPE(2, 1, 3, 3), w);
    const qd_node_id h = qd_graph_add(g, &qd_op_conv2d, "first", QD_IN(scaled, w1),
                                      QD_ATTRS(qd_attr_ints("pads", 4, (const int64_t[]){ 1, 1, 1, 1 })));
    const qd_node_id w2 = constant(g, "second.weight", QD_SHAPE(1, 2, 1, 1), v);
    qd_graph_output(g, "eps", qd_graph_add(g, &qd_op_conv2d, "second", QD_IN(h, w2), QD_NO_ATTRS));
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static qd_schedule *toy_schedule(void)
{
    qd_err err = { 0 };
    qd_schedule *s = NULL;
    check_ok(qd_schedule_make("linear", 1e-3, 0.2, T, &s, &err), &err);
    return s;
}

static qd_params *params(const qd_method *m, const char *const *pairs)
{
    qd_err err = { 0 };
    qd_params *p = NULL;
    check_ok(qd_params_new(m->params, &p, &err), &err);
    for (; *pairs; pairs += 2)
        check_ok(qd_params_set_text(p, pairs[0], pairs[1], &err), &err);
    check_ok(qd_params_check(p, &err), &err);
    return p;
}

static const char *const quick[] = {
    "steps", "10", "calibration_steps", "5", "calibration_samples", "17", "measure_samples", "3", "edge_layers",
    "int8",  NULL
};

static const qd_layer_report *row(const qd_quant_report *r, const char *name)
{
    for (int k = 0; k < r->n_layers; k++)
        if (strcmp(r->layers[k].name, name) == 0)
            return &r->layers[k];
    fail_msg("no row '%s' in the report", name);
    return NULL;
}

/* qncd.md 5, MUST: every activation quantizer sees every stored time step. A peak of the range at one time step alone shows in the
 * report exactly when that step is stored, whichever it is. */
static void every_stored_step_is_seen(void **state)
{
    qd_err err = { 0 };
    qd_schedule *s = toy_schedule();
    const qd_method *m = qd_method_find("minmax");
    qd_params *p = params(m, quick);
    int grid[10], stored = 0;
    check_ok(qd_timesteps(s, QD_SPACING_LEADING, 10, grid, &err), &err);

    for (int peak = 0; peak < T; peak++) {
        float table[T];
        for (int t = 0; t < T; t++)
            table[t] = t == peak ? 100 : 0.1f;
        qd_graph *g = toy(table), *out = NULL;
        qd_quant_report r = { 0 };
        const qd_quant_task task = { .graph = g, .role = QD_ROLE_DENOISER, .schedule = s, .params = p };
        check_ok(m->run(&task, NULL, &out, &r, &err), &err);

        /* Five of ten, both ends: steps 0, 2, 5, 7, 9. */
        const bool want = peak == grid[0] || peak == grid[2] || peak == grid[5] || peak == grid[7] || peak == grid[9];
        const bool seen = row(&r, "first")->hi > 20;
        if (seen != want)
            fail_msg("time step %d: seen %d, stored %d (hi %g)", peak, seen, want, (double)row(&r, "first")->hi);
        stored += seen;
        assert_int_equal(r.calibration_steps, 5);
        assert_int_equal(r.calibration_samples, 17);
        qd_quant_report_clear(&r);
        qd_graph_free(out);
        qd_graph_free(g);
    }
    assert_int_equal(stored, 5);
    qd_params_free(p);
    qd_schedule_free(s);
}

static const float flat[T] = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 };

static qd_status run_toy(const qd_method *m, const char *const *pairs, const qd_run *run, qd_graph **out,
                         qd_quant_report *r, qd_err *err)
{
    qd_schedule *s = toy_schedule();
    qd_graph *g = toy(flat);
    qd_params *p = params(m, pairs);
    const qd_quant_task task = { .graph = g, .role = QD_ROLE_DENOISER, .schedule = s, .params = p };
    const qd_status st = m->run(&task, run, out, r, err);
    qd_params_free(p);
    qd_graph_free(g);
    qd_schedule_free(s);
    return st;
}

static void report_of_the_toy(void **state)
{
    qd_err err = { 0 };
    qd_graph *out = NULL;
    qd_quant_report r = { 0 };
    const qd_run run = { .seed = 3 };
    for (const qd_method *const *m = qd_methods; *m; m++) {
        if ((*m)->role != QD_ROLE_DENOISER)
            continue;
        if (qd_param_find((*m)->params, "smoothing")) { /* balancing takes what norms there are: here none */
            check_ok(run_toy(*m, quick, &run, &out, &r, &err), &err);
            assert_int_equal(r.n_layers, 2);
            qd_quant_report_clear(&r);
            qd_graph_free(out);
            out = NULL;
            continue;
        }
        if (qd_param_find((*m)->params, "smooth_gamma")) { /* the toy has no block to smooth, and is told so */
            check_fails(run_toy(*m, quick, &run, &out, &r, &err), QD_E_INVALID, "no residual block", &err);
            continue;
        }
        check_ok(run_toy(*m, quick, &run, &out, &r, &err), &err);
        assert_int_equal(r.n_layers, 2);
        const qd_layer_report *l = row(&r, "first");
        assert_string_equal(l->op, "conv2d");
        assert_int_equal(l->weight_bits, 8);
        assert_int_equal(l->activation_bits, 8);
        assert_int_equal(l->macs, 2 * 9 * 16);
        assert_int_equal(l->weights, 18);
        assert_true(l->lo < -1 && l->hi > 1 && l->zero > 0 && l->zero < 255);
        assert_true(l->weight_sqnr_db > 35 && l->input_sqnr_db > 35);
        assert_int_equal(r.float_bytes, (T + 18 + 2) * 4);
        assert_int_equal(r.quantized_bytes, T * 4 + (18 + 2 * 4) + (2 + 1 * 4));
        assert_int_equal(r.n_eps, 10);
        assert_true(r.eps_t[0] == 18 && r.eps_t[9] == 0);
        assert_true(r.eps_sqnr_mean_db > 25);

        qd_buf b;
        qd_config *c = NULL;
        int64_t bytes = 0;
        double db = 0;
        qd_buf_init(&b, 0);
        check_ok(qd_quant_report_json(&r, &b, &err), &err);
        check_ok(qd_config_parse(b.data, b.size, "report", &c, &err), &err);
        check_ok(qd_config_int(c, "quantized_bytes", 0, 1000, &bytes, &err), &err);
        check_ok(qd_config_number(c, "eps_sqnr_db", &db, &err), &err);
        assert_int_equal(bytes, r.quantized_bytes);
        assert_true(db == r.eps_sqnr_mean_db);
        assert_non_null(
            strstr(b.data, "{\"name\":\"first\",\"op\":\"conv2d\",\"weight_bits\":8,\"activation_bits\":8,"));
        assert_non_null(strstr(b.data, "\"eps\":[{\"t\":18,\"sqnr_db\":"));
        qd_config_free(c);
        qd_buf_clear(&b);
        qd_graph_free(out);
        out = NULL;
    }
    qd_quant_report_clear(&r);
    assert_null(qd_method_find("no such method"));
}

static void skipping_and_symmetry(void **state)
{
    qd_err err = { 0 };
    qd_graph *out = NULL;
    qd_quant_report r = { 0 };
    const char *const skip[] = { "steps",
                                 "5",
                                 "calibration_samples",
                                 "16",
                                 "skip_layers",
                                 "second",
                                 "symmetric_activations",
                                 "true",
                                 "sampler",
                                 "ddpm",
                                 "clip",
                                 "on",
                                 NULL };
    check_ok(run_toy(qd_method_find("mse"), skip, NULL, &out, &r, &err), &err);
    assert_int_equal(row(&r, "second")->weight_bits, 0);
    assert_string_equal(row(&r, "second")->note, "left in float on request");
    assert_int_equal(row(&r, "first")->zero, 0);
    assert_ptr_equal(qd_graph_node(out, qd_graph_find(out, "second"))->op, &qd_op_conv2d);
    assert_int_equal(qd_graph_node(out, qd_graph_find(out, "first.quantize"))->dtype, QD_I8);
    assert_int_equal(r.calibration_steps, 5); /* ten asked, five there */

    /* Quantizing the quantized: refused. */
    qd_schedule *s = toy_schedule();
    qd_params *p = params(qd_method_find("mse"), quick);
    qd_graph *again = NULL;
    qd_quant_task task = { .graph = out, .role = QD_ROLE_DENOISER, .schedule = s, .params = p };
    check_fails(qd_method_find("mse")->run(&task, NULL, &again, &r, &err), QD_E_INVALID, "quantized already", &err);
    qd_graph *g = toy(flat);
    task.graph = g;
    task.role = QD_ROLE_CLASSIFIER;
    check_fails(qd_method_find("mse")->run(&task, NULL, &again, &r, &err), QD_E_INVALID, "denoiser", &err);
    task.role = QD_ROLE_DENOISER;
    check_ok(qd_params_set_int(p, "steps", 21, &err), &err);
    check_fails(qd_method_find("mse")->run(&task, NULL, &again, &r, &err), QD_E_INVALID,
                "params.steps is 21, more than the 20", &err);
    assert_null(again);
    assert_int_equal(r.n_layers, 2); /* the old report is untouched */
    qd_graph_free(g);
    qd_params_free(p);
    qd_schedule_free(s);
    qd_quant_report_clear(&r);
    qd_graph_free(out);
}

/* Everything a graph says and holds, in one buffer. */
static void dump(const qd_graph *g, qd_buf *b)
{
    qd_buf_init(b, 0);
    qd_graph_print(g, b);
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        for (int k = 0; k < n->n_attrs; k++)
            qd_buf_addf(b, "%s %lld %a;", n->attr[k].name, (long long)n->attr[k].i, n->attr[k].f);
        if (n->op == &qd_op_const)
            qd_buf_add(b, n->value.data, qd_tensor_bytes(&n->value));
    }
    assert_false(b->failed);
}

static void same_graphs(const qd_graph *a, const qd_graph *b)
{
    qd_buf x, y;
    dump(a, &x);
    dump(b, &y);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    qd_buf_clear(&x);
    qd_buf_clear(&y);
}

typedef struct watcher {
    atomic_bool cancel;
    const char *stop_at; /* phase */
    char phases[256];
    int64_t after; /* progress calls after the flag went up */
} watcher;

static void watch(void *ctx, const char *phase, const char *item, int64_t done, int64_t total)
{
    watcher *w = ctx;
    assert_true(done >= 0 && done <= total);
    const size_t n = strlen(w->phases);
    if (n < strlen(phase) || strcmp(w->phases + n - strlen(phase), phase) != 0)
        snprintf(w->phases + n, sizeof w->phases - n, "%s%s", n ? " " : "", phase);
    w->after += atomic_load(&w->cancel);
    if (w->stop_at && strcmp(phase, w->stop_at) == 0)
        atomic_store(&w->cancel, true);
}

static void stops_in_every_phase(void **state)
{
    qd_err err = { 0 };
    static const char *const phases[] = { "trajectories", "weights", "calibrate", "search", "measure", "map", NULL };
    watcher all = { 0 };
    qd_run run = { .ctx = &all, .progress = watch, .cancel = &all.cancel };
    qd_graph *out = NULL;
    qd_quant_report r = { 0 };
    check_ok(run_toy(qd_method_find("mse"), quick, &run, &out, &r, &err), &err);
    assert_string_equal(all.phases, "trajectories weights calibrate search rewrite measure map");
    qd_graph_free(out);
    out = NULL;
    qd_quant_report_clear(&r);

    for (const char *const *phase = phases; *phase; phase++) {
        watcher w = { .stop_at = *phase };
        run.ctx = &w;
        run.cancel = &w.cancel;
        check_fails(run_toy(qd_method_find("mse"), quick, &run, &out, &r, &err), QD_E_CANCELLED, "cancelled", &err);
        assert_null(out);
        assert_null(r.layers);
        assert_true(w.after <= 8); /* at most the rest of one call */
    }
}

/* The map is worth less than the job: a budget too small for it alone is no failure, so it stays out of this. */
static const char *const mapless[] = { "steps",
                                       "10",
                                       "calibration_steps",
                                       "5",
                                       "calibration_samples",
                                       "17",
                                       "measure_samples",
                                       "3",
                                       "noise_map_steps",
                                       "0",
                                       "edge_layers",
                                       "int8",
                                       NULL };

static void budgets(void **state)
{
    qd_err err = { 0 };
    qd_budget b;
    qd_graph *out = NULL;
    qd_quant_report r = { 0 };
    qd_run run = { .budget = &b };
    qd_budget_init(&b, 0);
    check_ok(run_toy(qd_method_find("mse"), mapless, &run, &out, &r, &err), &err);
    qd_graph_free(out);
    out = NULL;
    assert_int_equal(b.used_bytes, 0);
    const size_t peak = b.peak_bytes;
    assert_true(peak > 5 * 17 * 16 * 4); /* the calibration set alone */
    qd_quant_report_clear(&r);

    for (size_t limit = 1; limit < peak; limit = limit * 3 + 1) {
        qd_budget_init(&b, limit);
        check_fails(run_toy(qd_method_find("mse"), mapless, &run, &out, &r, &err), QD_E_LIMIT, "the limit", &err);
        assert_null(out);
        assert_int_equal(b.used_bytes, 0);
    }
}

typedef struct toy_task {
    qd_quant_task task;
    const qd_method *method;
} toy_task;

static qd_status run_task(void *ctx, qd_err *err)
{
    const toy_task *t = ctx;
    qd_graph *out = NULL;
    qd_quant_report r = { 0 };
    qd_buf b;
    qd_buf_init(&b, 0);
    qd_status st = t->method->run(&t->task, NULL, &out, &r, err);
    if (!st)
        st = qd_quant_report_json(&r, &b, err);
    qd_buf_clear(&b);
    qd_quant_report_clear(&r);
    qd_graph_free(out);
    return st;
}

static void out_of_memory(void **state)
{
    const char *const tiny[] = {
        "steps", "2", "calibration_steps", "2", "calibration_samples", "16", "measure_samples", "1", "edge_layers",
        "int8",  NULL
    };
    qd_schedule *s = toy_schedule();
    qd_graph *g = toy(flat);
    const qd_method *m = qd_method_find("minmax");
    qd_params *p = params(m, tiny);
    toy_task t = { .task = { .graph = g, .role = QD_ROLE_DENOISER, .schedule = s, .params = p }, .method = m };
    print_message("%ld allocations, each failed once\n", harness_run_each_alloc(run_task, &t, 20000));
    qd_params_free(p);
    qd_graph_free(g);
    qd_schedule_free(s);
}

/* The model that ships, from files to codes. */
typedef struct shipped {
    qd_model *model;
    qd_graph *graph;
    qd_schedule *schedule;
} shipped;

static bool shipped_open(shipped *s)
{
    qd_err err = { 0 };
    qd_role role;
    *s = (shipped){ 0 };
    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &s->model, &err), &err);
    check_ok(qd_zoo_build(s->model, NULL, &s->graph, &role, &err), &err);
    assert_int_equal(role, QD_ROLE_DENOISER);
    check_ok(qd_schedule_open(s->model->scheduler, &s->schedule, &err), &err);
    return true;
}

static void shipped_close(shipped *s)
{
    qd_schedule_free(s->schedule);
    qd_graph_free(s->graph);
    qd_model_free(s->model);
}

/* Bounds measured with 1.5 dB to spare below the figures of this short run; a method that breaks falls far below them. */
static const struct {
    const char *method, *edges;
    double least_db;
} rows[] = {
    { "minmax", "int8", 19.4 }, { "mse", "int8", 19.8 }, { "minmax", "float", 32.6 },
    { "mse", "float", 33.3 },   { "mse", "w8", 32.6 },
};

static void the_shipped_model(void **state)
{
    qd_err err = { 0 };
    shipped s;
    shipped_open(&s);
    enum { ROWS = sizeof rows / sizeof *rows };
    double db[ROWS];
    for (int k = 0; k < ROWS; k++) {
        const qd_method *m = qd_method_find(rows[k].method);
        const bool whole = strcmp(rows[k].edges, "int8") == 0;
        const char *const short_run[] = {
            "steps", "20",          "calibration_steps", "5", "calibration_samples", "16", "measure_samples",
            "4",     "edge_layers", rows[k].edges,       NULL
        };
        qd_params *p = params(m, short_run);
        qd_graph *out = NULL;
        qd_quant_report r = { 0 };
        const qd_quant_task task = { .graph = s.graph, .role = QD_ROLE_DENOISER, .schedule = s.schedule, .params = p };
        const qd_run run = { .seed = 7 };
        check_ok(m->run(&task, &run, &out, &r, &err), &err);

        int in_float = 0, split = 0;
        for (int i = 0; i < r.n_layers; i++) {
            const qd_layer_report *l = &r.layers[i];
            /* The time branch, all of it and nothing else, computes in float, with weights of 8 bits; the edges as asked. */
            const bool time = strstr(l->name, "time_emb"), w8 = time || strcmp(rows[k].edges, "w8") == 0;
            const bool left = time || (!whole && (strcmp(l->name, "conv_in") == 0 || strcmp(l->name, "conv_out") == 0));
            const bool products =
                strcmp(l->op, "attention") == 0; /* on codes by default, with 16 bits for the softmax */
            assert_int_equal(l->weight_bits, products || (left && !w8) ? 0 : 8);
            assert_int_equal(l->softmax_bits, products ? 16 : 0);
            assert_int_equal(l->activation_bits, left ? 0 : 8);
            in_float += left;
            split += strstr(l->name, ".split") != NULL;
            if (!left)
                assert_true((products || l->weight_sqnr_db > 30) && l->input_sqnr_db > 25);
        }
        assert_true(in_float > 2 && split > 0);
        assert_true(r.quantized_bytes * 3 < r.float_bytes);
        db[k] = r.eps_sqnr_mean_db;
        print_message(
            "%s, edges in %s: eps SQNR %.2f dB over all steps (t = %d: %.1f, t = %d: %.1f); %llu bytes of %llu\n",
            m->name, rows[k].edges, db[k], r.eps_t[0], r.eps_sqnr_db[0], r.eps_t[r.n_eps - 1],
            r.eps_sqnr_db[r.n_eps - 1], (unsigned long long)r.quantized_bytes, (unsigned long long)r.float_bytes);
        assert_true(db[k] > rows[k].least_db);

        /* The same figure again, from outside. */
        if (k == 0) {
            qd_quant_report again = { 0 };
            const qd_sample_options o = { .steps = 20, .clip = -1, .seed = 7, .first_sample = 16 };
            check_ok(qd_quant_measure_eps(s.graph, out, s.schedule, &o, 4, 1, NULL, &again, &err), &err);
            assert_true(again.eps_sqnr_mean_db == db[k]);
            qd_quant_report_clear(&again);
        }
        qd_quant_report_clear(&r);
        qd_graph_free(out);
        qd_params_free(p);
    }
    assert_true(db[1] > db[0] && db[3] > db[2]); /* the search is worth its time */
    assert_true(db[4] < db[3]); /* weights of 8 bits at the edges cost a little: floats are the default */
    shipped_close(&s);
}

/* qncd.md 12.13: fewer bits, more noise; and a file of the size those bits ask for. */
static void the_ladder(void **state)
{
    static const struct {
        const char *weight, *activation, *group;
    } steps[] = { { "8", "8", "0" }, { "6", "8", "0" }, { "4", "8", "0" },
                  { "4", "6", "0" }, { "6", "6", "0" }, { "4", "8", "32" } };
    enum { STEPS = sizeof steps / sizeof *steps };
    qd_err err = { 0 };
    shipped s;
    shipped_open(&s);
    double db[STEPS];
    uint64_t bytes[STEPS];
    char path[1200];
    snprintf(path, sizeof path, "%s/q.safetensors", harness_tmp());
    for (int k = 0; k < STEPS; k++) {
        const char *const short_run[] = { "steps",
                                          "20",
                                          "calibration_steps",
                                          "5",
                                          "calibration_samples",
                                          "16",
                                          "measure_samples",
                                          "4",
                                          "weight_bits",
                                          steps[k].weight,
                                          "activation_bits",
                                          steps[k].activation,
                                          "group_size",
                                          steps[k].group,
                                          "transformer",
                                          "wXaY",
                                          NULL };
        qd_params *p = params(qd_method_find("mse"), short_run);
        qd_graph *out = NULL, *back = NULL;
        qd_meta *meta = NULL;
        qd_quant_report r = { 0 };
        const qd_quant_task task = { .graph = s.graph, .role = QD_ROLE_DENOISER, .schedule = s.schedule, .params = p };
        const qd_run run = { .seed = 7 };
        check_ok(qd_method_find("mse")->run(&task, &run, &out, &r, &err), &err);
        db[k] = r.eps_sqnr_mean_db;
        bytes[k] = r.quantized_bytes;
        int64_t weights = 0, scales = 0;
        for (int i = 0; i < r.n_layers; i++)
            weights += r.layers[i].activation_bits ? r.layers[i].weights : 0;
        for (qd_node_id id = 0; id < qd_graph_size(out); id++) {
            const qd_node *n = qd_graph_node(out, id);
            if (n->op == &qd_op_qconv2d || n->op == &qd_op_qlinear)
                scales += qd_tensor_count(&qd_graph_node(out, n->input[2])->value);
        }
        int64_t codes = 0; /* of the integer layers */
        for (qd_node_id id = 0; id < qd_graph_size(out); id++) {
            const qd_node *n = qd_graph_node(out, id);
            if (n->op == &qd_op_qconv2d || n->op == &qd_op_qlinear)
                codes += (int64_t)qd_tensor_bytes(&qd_graph_node(out, n->input[1])->value);
        }
        assert_int_equal(codes * 8, weights * atoi(steps[k].weight)); /* 4 bits: 1/8 of the float weights */
        check_ok(qd_meta_new(&meta, &err), &err);
        check_ok(qd_bundle_save(path, out, meta, NULL, &err), &err);
        qd_meta_free(meta);
        check_ok(qd_bundle_open(path, &back, &meta, &err), &err);
        same_graphs(out, back);
        print_message("W%sA%s, groups of %s: eps SQNR %.2f dB; %llu bytes of %llu, %lld of them scales\n",
                      steps[k].weight, steps[k].activation, steps[k].group, db[k], (unsigned long long)bytes[k],
                      (unsigned long long)r.float_bytes, (long long)scales * 4);
        qd_meta_free(meta);
        qd_graph_free(back);
        qd_graph_free(out);
        qd_quant_report_clear(&r);
        qd_params_free(p);
    }
    assert_true(db[0] > db[1] && db[1] > db[2] && db[2] > db[3]);
    assert_true(db[4] > db[3] && db[4] < db[1]);
    assert_true(db[5] > db[2]); /* more scales, less noise */
    assert_true(bytes[0] > bytes[1] && bytes[1] > bytes[5] && bytes[5] > bytes[2]);
    shipped_close(&s);
}

/* Saved, loaded and judged like any stranger's: the same codes. */
static void survives_a_bundle(void **state)
{
    qd_err err = { 0 };
    qd_graph *out = NULL, *back = NULL;
    qd_meta *meta = NULL;
    qd_quant_report r = { 0 };
    char path[1200];
    snprintf(path, sizeof path, "%s/q.safetensors", harness_tmp());
    check_ok(run_toy(qd_method_find("mse"), quick, NULL, &out, &r, &err), &err);
    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_bundle_save(path, out, meta, NULL, &err), &err);
    qd_meta_free(meta);
    meta = NULL;
    check_ok(qd_bundle_open(path, &back, &meta, &err), &err);
    same_graphs(out, back);
    qd_meta_free(meta);
    qd_graph_free(back);
    qd_graph_free(out);
    qd_quant_report_clear(&r);
}

static void same_seed_same_bytes(void **state)
{
    qd_err err = { 0 };
    shipped s;
    shipped_open(&s);
    const qd_method *m = qd_method_find("mse");
    const char *const shorter[] = {
        "steps", "4", "calibration_steps", "4", "calibration_samples", "16", "measure_samples", "1", NULL
    };
    qd_params *p = params(m, shorter);
    qd_graph *out[3] = { NULL };
    for (int k = 0; k < 3; k++) {
        qd_quant_report r = { 0 };
        const qd_quant_task task = { .graph = s.graph, .role = QD_ROLE_DENOISER, .schedule = s.schedule, .params = p };
        const qd_run run = { .seed = k < 2 ? 7 : 8, .threads = k == 1 ? 2 : 1 };
        check_ok(m->run(&task, &run, &out[k], &r, &err), &err);
        qd_quant_report_clear(&r);
    }
    same_graphs(out[0], out[1]);
    qd_buf a, b;
    dump(out[0], &a);
    dump(out[2], &b);
    assert_true(a.size != b.size || memcmp(a.data, b.data, a.size) != 0);
    qd_buf_clear(&a);
    qd_buf_clear(&b);
    for (int k = 0; k < 3; k++)
        qd_graph_free(out[k]);
    qd_params_free(p);
    shipped_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_stored_step_is_seen),
        cmocka_unit_test(report_of_the_toy),
        cmocka_unit_test(skipping_and_symmetry),
        cmocka_unit_test(stops_in_every_phase),
        cmocka_unit_test(budgets),
        cmocka_unit_test(out_of_memory),
        cmocka_unit_test(survives_a_bundle),
        cmocka_unit_test(the_shipped_model),
        cmocka_unit_test(the_ladder),
        cmocka_unit_test(same_seed_same_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
