/* test_recompute.c - values made again instead of kept: the same bytes, in less memory. */
#include "core/plan/train_case.h"

#include "nn/nn.h"

enum { BLOCKS = 12, CHANNELS = 24 };

#define ADD(op, name, ...) qd_graph_add(t->g, &qd_op_##op, name, __VA_ARGS__)

static const char *label(const char *part, int block)
{
    static char text[4][32];
    static int at;
    char *to = text[at++ % 4];
    snprintf(to, sizeof text[0], "b%d.%s", block, part);
    return to;
}

/* Blocks of conv, batch norm, ReLU around a sum; one of them reads a table by class, another has quantized weights. */
static qd_node_id chain(net *t, bool *ends)
{
    const int64_t pads[4] = { 1, 1, 1, 1 };
    qd_node_id x = input(t, QD_SHAPE(4, CHANNELS, 16, 16));
    const qd_node_id w = input(t, QD_SHAPE(CHANNELS, CHANNELS, 3, 3)), gain = input(t, QD_SHAPE(CHANNELS)),
                     shift = input(t, QD_SHAPE(CHANNELS)), scale = input(t, QD_SHAPE(1));
    t->positive[t->n - 1] = true;
    for (int k = 0; k < BLOCKS; k++) {
        const qd_node_id weight =
            k == 3 ? ADD(learned_quant, label("quant", k), QD_IN(w, scale), QD_ATTRS(QD_INT("bits", 4))) : w;
        const qd_node_id small =
            ADD(affine, label("small", k), QD_IN(weight), QD_ATTRS(QD_FLOAT("mul", 0.05 + 0.01 * k)));
        const qd_node_id c = ADD(conv2d, label("conv", k), QD_IN(x, small), QD_ATTRS(qd_attr_ints("pads", 4, pads)));
        const qd_node_id stats = ADD(batch_norm_stats, label("stats", k), QD_IN(c), QD_NO_ATTRS);
        qd_node_id y = ADD(batch_norm_train, label("norm", k), QD_IN(c, gain, shift, stats), QD_NO_ATTRS);
        y = ADD(silu, label("silu", k), QD_IN(y), QD_NO_ATTRS);
        x = ADD(add, label("end", k), QD_IN(x, y), QD_NO_ATTRS);
        ends[x] = true;
    }
    return x;
}

static qd_graph *gradient(net *t, qd_node_id y, int *forward)
{
    qd_err err = { 0 };
    qd_graph *d = NULL;
    const int64_t axes[4] = { 0, 1, 2, 3 };
    const qd_node_id both = ADD(mul, "both", QD_IN(y, y), QD_NO_ATTRS);
    const qd_node_id loss = ADD(mean, "loss", QD_IN(both), QD_ATTRS(qd_attr_ints("axes", 4, axes), QD_INT("keep", 0)));
    qd_graph_output(t->g, "loss", loss);
    check_ok(qd_graph_gradient(t->g, loss, t->inputs, t->n, &d, &err), &err);
    *forward = qd_graph_size(t->g);
    return d;
}

/* All outputs of g one after the other; the bytes of its arena. */
static float *run_graph(const net *t, const qd_graph *g, const qd_backend *backend, int64_t *n, size_t *arena)
{
    qd_err err = { 0 };
    qd_plan *p = NULL;
    float *in[MOST], *all, *out[MOST + 1];
    const qd_plan_options o = { .input_shapes = t->shapes, .n_inputs = t->n, .threads = 1, .backend = backend };
    check_ok(qd_plan_compile(g, &o, &p, &err), &err);
    *n = 1;
    for (int k = 0; k < t->n; k++)
        *n += count_of(&t->shapes[k]);
    all = malloc((size_t)*n * sizeof *all);
    assert_non_null(all);
    out[0] = all;
    for (int k = 0; k < t->n; k++) {
        in[k] = malloc((size_t)count_of(&t->shapes[k]) * sizeof(float));
        assert_non_null(in[k]);
        harness_normal(in[k], count_of(&t->shapes[k]), 7 + (uint64_t)k, 0.5f);
        for (int64_t i = 0; t->positive[k] && i < count_of(&t->shapes[k]); i++)
            in[k][i] = 0.05f + fabsf(in[k][i]);
        out[k + 1] = k ? out[k] + count_of(&t->shapes[k - 1]) : all + 1;
    }
    check_ok(qd_plan_run(p, NULL, (const void *const *)in, (void *const *)out, &err), &err);
    *arena = qd_plan_arena_bytes(p);
    qd_plan_free(p);
    for (int k = 0; k < t->n; k++)
        free(in[k]);
    return all;
}

static void the_same_bytes_in_less_memory(void **state)
{
    static const qd_backend *const backends[] = { &qd_backend_ref, &qd_backend_cpu };
    qd_err err = { 0 };
    bool ends[4096] = { false }, none[4096] = { false }, all[4096], chosen[4096];
    int forward;
    net t = fresh();
    qd_graph *d = gradient(&t, chain(&t, ends), &forward), *again[4] = { NULL };
    qd_shape *shapes = calloc((size_t)qd_graph_size(t.g), sizeof *shapes);
    assert_non_null(shapes);
    memset(all, true, sizeof all);
    check_ok(qd_graph_shapes(t.g, t.shapes, t.n, shapes, &err), &err);
    check_ok(qd_graph_keep_choice(t.g, shapes, chosen, &err), &err);
    const bool *const keeps[4] = { all, none, ends, chosen };
    for (int k = 0; k < 4; k++)
        check_ok(qd_graph_recompute(d, forward, keeps[k], &again[k], &err), &err);
    assert_int_equal(qd_graph_size(again[0]), qd_graph_size(d)); /* nothing to make again */
    for (int b = 0; b < 2; b++) {
        size_t plain, less[4];
        int64_t n, m;
        float *want = run_graph(&t, d, backends[b], &n, &plain);
        for (int k = 0; k < 4; k++) {
            float *got = run_graph(&t, again[k], backends[b], &m, &less[k]);
            assert_int_equal(n, m);
            assert_memory_equal(got, want, (size_t)n * sizeof(float));
            free(got);
        }
        free(want);
        print_message("arena: %zu bytes, block ends kept %zu (%.2f), chosen %zu (%.2f)\n", plain, less[2],
                      (double)less[2] / (double)plain, less[3], (double)less[3] / (double)plain);
        assert_int_equal(less[0], plain);
        if (b == 1) { /* plain loops hold operands of which they read the shape alone */
            assert_true((double)less[2] < 0.6 * (double)plain);
            assert_true((double)less[3] < 0.6 * (double)plain);
        }
    }
    for (int k = 0; k < 4; k++)
        qd_graph_free(again[k]);
    free(shapes);
    qd_graph_free(d);
    qd_graph_free(t.g);
}

typedef struct made {
    const qd_graph *d;
    int forward;
    bool keep[4096];
} made;

static qd_status rewrite(void *ctx, qd_err *err)
{
    const made *m = ctx;
    qd_graph *g = NULL;
    const qd_status st = qd_graph_recompute(m->d, m->forward, m->keep, &g, err);
    qd_graph_free(g);
    return st;
}

static void refusals(void **state)
{
    static made m;
    qd_err err = { 0 };
    qd_graph *g = NULL;
    bool ends[4096] = { false };
    net t = fresh();
    qd_graph *d = gradient(&t, chain(&t, ends), &m.forward);
    m.d = d;
    check_fails(qd_graph_recompute(d, qd_graph_size(d) + 1, ends, &g, &err), QD_E_INVALID, "nodes of", &err);
    assert_true(harness_run_each_alloc(rewrite, &m, 10000) > 4);
    qd_graph_free(d);
    qd_graph_free(t.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_bytes_in_less_memory),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
