/* test_rewrite.c - layers become integer layers: names and constants, the twin as judge, exact splits (qncd.md 12.4, 12.5). */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "metrics/metrics.h"
#include "plan/plan.h"
#include "quant/quant_int.h"

#define BATCH 2

static qd_node_id random_const(qd_graph *g, const char *name, qd_shape shape, uint64_t seed, float scale)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    harness_normal(qd_f32(&t), qd_tensor_count(&t), seed, scale);
    const qd_node_id id = qd_graph_const(g, name, &t);
    qd_tensor_clear(&t);
    return id;
}

static qd_node_id conv(qd_graph *g, const char *name, qd_node_id x, int64_t in, int64_t out, int64_t kernel,
                       int64_t stride, int64_t pad, int64_t groups, bool bias)
{
    char text[64];
    snprintf(text, sizeof text, "%s.weight", name);
    const qd_node_id w =
        random_const(g, text, QD_SHAPE(out, in / groups, kernel, kernel), (uint64_t)(in * 131 + out), 0.3f);
    snprintf(text, sizeof text, "%s.bias", name);
    const qd_node_id b = bias ? random_const(g, text, QD_SHAPE(out), 77, 0.5f) : -1;
    const int64_t strides[2] = { stride, stride }, pads[4] = { pad, pad, pad, pad };
    return qd_graph_add(
        g, &qd_op_conv2d, name, QD_IN(x, w, b),
        QD_ATTRS(qd_attr_ints("stride", 2, strides), qd_attr_ints("pads", 4, pads), QD_INT("groups", groups)));
}

static qd_node_id linear(qd_graph *g, const char *name, qd_node_id x, int64_t in, int64_t out)
{
    char text[64];
    snprintf(text, sizeof text, "%s.weight", name);
    const qd_node_id w = random_const(g, text, QD_SHAPE(out, in), (uint64_t)(in + out), 0.3f);
    snprintf(text, sizeof text, "%s.bias", name);
    const qd_node_id b = random_const(g, text, QD_SHAPE(out), 78, 0.5f);
    return qd_graph_add(g, &qd_op_linear, name, QD_IN(x, w, b), QD_NO_ATTRS);
}

static qd_node_id shift(qd_graph *g, const char *name, qd_node_id x, double mul, double add)
{
    return qd_graph_add(g, &qd_op_affine, name, QD_IN(x), QD_ATTRS(QD_FLOAT("mul", mul), QD_FLOAT("add", add)));
}

/* Every kind of layer there is: padded, strided, grouped, without bias, over tokens, on a concat; a time branch that must stay
 * in float; values with zero far from the middle of their range. */
static qd_graph *zoo(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, 3, 8, 8), time = QD_SHAPE(-1);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &image), t = qd_graph_input(g, "timestep", QD_F32, &time);

    qd_node_id e = qd_graph_add(g, &qd_op_timestep, "time", QD_IN(t), QD_ATTRS(QD_INT("dim", 16)));
    e = linear(g, "time_mlp", e, 16, 8);
    e = qd_graph_add(g, &qd_op_reshape, "time.shape", QD_IN(e),
                     QD_ATTRS(qd_attr_ints("shape", 4, (const int64_t[]){ 0, 8, 1, 1 })));

    const qd_node_id a = conv(g, "padded", x, 3, 8, 3, 1, 1, 1, true);
    const qd_node_id timed = qd_graph_add(g, &qd_op_add, "timed", QD_IN(a, e), QD_NO_ATTRS);
    const qd_node_id far =
        shift(g, "far", timed, 1, 6); /* nearly one-sided: zero near the low end, padding must mean 0 */
    const qd_node_id one_sided = conv(g, "one_sided", far, 8, 8, 3, 1, 1, 1, false);
    const qd_node_id below = shift(g, "below", one_sided, 1, -60);
    const qd_node_id grouped = conv(g, "grouped", below, 8, 8, 3, 1, 1, 4, true);
    const qd_node_id both = qd_graph_add(g, &qd_op_concat, "both", QD_IN(grouped, timed), QD_ATTRS(QD_INT("axis", 1)));
    const qd_node_id shortcut = conv(g, "shortcut", both, 16, 8, 1, 1, 0, 1, true);
    const qd_node_id wide = conv(g, "wide", both, 16, 8, 3, 1, 1, 1, true); /* not 1x1: not split */
    const qd_node_id sum = qd_graph_add(g, &qd_op_add, "sum", QD_IN(shortcut, wide), QD_NO_ATTRS);
    const qd_node_id half = conv(g, "strided", sum, 8, 8, 3, 2, 1, 1, true);
    const qd_node_id tokens = qd_graph_add(g, &qd_op_reshape, "tokens", QD_IN(half),
                                           QD_ATTRS(qd_attr_ints("shape", 3, (const int64_t[]){ 0, 16, 8 })));
    const qd_node_id q = linear(g, "to_q", tokens, 8, 8), k = linear(g, "to_k", tokens, 8, 8);
    const qd_node_id att =
        qd_graph_add(g, &qd_op_attention, "attention", QD_IN(q, k, tokens), QD_ATTRS(QD_INT("heads", 1)));
    qd_graph_output(g, "eps", att);
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

typedef struct seen {
    const qd_graph *graph;
    float **value; // [nodes], copies
    int64_t *count;
} seen;

static void keep(void *ctx, qd_node_id id, const float *data, const qd_shape *shape)
{
    seen *s = ctx;
    int64_t n = 1;
    for (int k = 0; k < shape->rank; k++)
        n *= shape->dim[k];
    s->value[id] = realloc(s->value[id], (size_t)n * sizeof(float));
    memcpy(s->value[id], data, (size_t)n * sizeof(float));
    s->count[id] = n;
}

static seen seen_new(const qd_graph *g)
{
    const size_t n = (size_t)qd_graph_size(g);
    return (seen){ .graph = g, .value = calloc(n, sizeof(float *)), .count = calloc(n, sizeof(int64_t)) };
}

static void seen_free(seen *s)
{
    for (int k = 0; k < qd_graph_size(s->graph); k++)
        free(s->value[k]);
    free(s->value);
    free(s->count);
}

/* Run with all made values observed; x [BATCH, 3, 8, 8]. */
static void run_all(const qd_graph *g, const float *x, const qd_backend *backend, int threads, seen *s)
{
    qd_err err = { 0 };
    qd_node_id observed[256];
    int n = 0;
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_op *op = qd_graph_node(g, id)->op;
        if (op != &qd_op_input && op != &qd_op_const)
            observed[n++] = id;
    }
    const qd_shape shapes[2] = { QD_SHAPE(BATCH, 3, 8, 8), QD_SHAPE(BATCH) };
    const qd_plan_options o = { .input_shapes = shapes,
                                .n_inputs = 2,
                                .threads = threads,
                                .backend = backend,
                                .observed = observed,
                                .n_observed = n,
                                .observe = keep,
                                .observe_ctx = s };
    qd_plan *plan = NULL;
    check_ok(qd_plan_compile(g, &o, &plan, &err), &err);
    const float t[BATCH] = { 10, 10 };
    static float out[BATCH * 8 * 64]; /* the largest output of these graphs */
    check_ok(qd_plan_run(plan, NULL, (const void *[]){ x, t }, (void *[]){ out }, &err), &err);
    qd_plan_free(plan);
}

/* Bits of weights and activations; input channels that share a scale. */
typedef struct widths {
    int weight, activation;
    int64_t group;
} widths;
static const widths eight = { 8, 8, 0 };

/* The layout of g with ranges taken from one run on x, weights quantized. */
static qd_layout *laid_out_in(const qd_graph *g, const float *x, bool split, bool symmetric, const widths *bits)
{
    qd_err err = { 0 };
    qd_layout *l = NULL;
    seen s = seen_new(g);
    const qd_layout_options o = { .skip = "", .split_shortcut = split, .group_size = bits->group };
    check_ok(qd_layout_new(g, &o, &l, &err), &err);
    run_all(g, x, &qd_backend_ref, 1, &s);
    for (int k = 0; k < l->n_quantizers; k++) {
        qd_quantizer *q = &l->quantizers[k];
        if (qd_graph_node(g, q->value)->op == &qd_op_input)
            qd_histogram_add(q->seen, x, BATCH * 3 * 8 * 8);
        else
            qd_histogram_add(q->seen, s.value[q->value], s.count[q->value]);
        check_ok(qd_histogram_search(q->seen, bits->activation, symmetric, &q->map, &err), &err);
    }
    check_ok(qd_layout_quantize_weights(l, bits->weight, true, NULL, &err), &err);
    seen_free(&s);
    return l;
}

static qd_layout *laid_out(const qd_graph *g, const float *x, bool split, bool symmetric)
{
    return laid_out_in(g, x, split, symmetric, &eight);
}

static const qd_quant_layer *layer_of(const qd_layout *l, const char *name)
{
    for (int k = 0; k < l->n_layers; k++)
        if (strcmp(qd_graph_node(l->graph, l->layers[k].id)->name, name) == 0)
            return &l->layers[k];
    fail_msg("no layer '%s'", name);
    return NULL;
}

static const qd_node *node_of(const qd_graph *g, const char *name)
{
    const qd_node_id id = qd_graph_find(g, name);
    if (id < 0)
        fail_msg("no node '%s'", name);
    return qd_graph_node(g, id);
}

static float input[BATCH * 3 * 8 * 8];

static void names_and_sharing(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = zoo(), *out = NULL;
    harness_normal(input, BATCH * 3 * 8 * 8, 1, 1);
    qd_layout *l = laid_out(g, input, true, false);

    assert_string_equal(layer_of(l, "time_mlp")->note, "depends on the time step only: computed in float");
    assert_null(layer_of(l, "padded")->note);
    assert_int_equal(layer_of(l, "shortcut")->n_parts, 2);
    assert_int_equal(layer_of(l, "shortcut")->part[1].first, 8);
    assert_int_equal(layer_of(l, "wide")->n_parts, 1);
    assert_int_equal(layer_of(l, "to_q")->part[0].quantizer, layer_of(l, "to_k")->part[0].quantizer);

    check_ok(qd_layout_apply(l, &out, &err), &err);
    assert_ptr_equal(node_of(out, "padded")->op, &qd_op_qconv2d);
    assert_ptr_equal(node_of(out, "padded.quantize")->op, &qd_op_quantize);
    assert_int_equal(node_of(out, "padded.weight")->dtype, QD_I8);
    assert_int_equal(node_of(out, "padded.wscale")->shape.dim[0], 8);
    assert_int_equal(node_of(out, "padded.bias")->dtype, QD_F32);
    assert_ptr_equal(node_of(out, "time_mlp")->op, &qd_op_linear);
    assert_ptr_equal(node_of(out, "shortcut")->op, &qd_op_add);
    assert_ptr_equal(node_of(out, "shortcut.split0")->op, &qd_op_qconv2d);
    assert_ptr_equal(node_of(out, "shortcut.split1.quantize")->op, &qd_op_quantize);
    assert_int_equal(node_of(out, "shortcut.split1.weight")->shape.dim[1], 8);
    assert_int_equal(qd_node_ints(node_of(out, "strided"), "stride")->ints[1], 2);
    assert_int_equal(qd_node_int(node_of(out, "grouped"), "groups"), 4);
    assert_ptr_equal(node_of(out, "to_q")->op, &qd_op_qlinear);
    assert_int_equal(node_of(out, "to_q")->input[0], node_of(out, "to_k")->input[0]);
    assert_true(qd_graph_find(out, "to_k.quantize") < 0);
    assert_true(qd_graph_find(out, "to_q.quantize") >= 0);

    /* Nothing of the float weights stays: bytes are one for each weight, and floats for scales, biases and the time branch. */
    size_t want = 0;
    for (qd_node_id id = 0; id < qd_graph_size(out); id++) {
        const qd_node *n = qd_graph_node(out, id);
        if (n->op == &qd_op_const && strstr(n->name, ".weight") && strcmp(n->name, "time_mlp.weight") != 0)
            assert_int_equal(n->dtype, QD_I8);
        want += n->op == &qd_op_const ? qd_tensor_bytes(&n->value) : 0;
    }
    assert_int_equal(want, qd_graph_param_bytes(out));
    qd_graph_free(out);
    qd_layout_free(l);
    qd_graph_free(g);
}

/* What the twin's layer makes of the codes the quantized graph had: a code that flips somewhere upstream does not matter here. */
static double against_twin(const qd_graph *quantized, const qd_graph *twin, const seen *s, qd_node_id id)
{
    qd_err err = { 0 };
    const qd_node *n = qd_graph_node(quantized, id), *q = qd_graph_node(quantized, n->input[0]);
    const qd_node *t = node_of(twin, n->name);
    qd_shape in[2] = { QD_SHAPE(BATCH, 3, 8, 8), QD_SHAPE(BATCH) }, shapes[256];
    qd_tensor x = { 0 }, y = { 0 };
    check_ok(qd_graph_shapes(quantized, in, 2, shapes, &err), &err);
    check_ok(qd_tensor_init(&x, QD_F32, &shapes[n->input[0]], NULL, &err), &err);
    check_ok(qd_tensor_init(&y, QD_F32, &shapes[id], NULL, &err), &err);
    for (int64_t k = 0; k < s->count[n->input[0]]; k++)
        qd_f32(&x)[k] = (s->value[n->input[0]][k] - (float)qd_node_int(q, "zero")) * (float)qd_node_float(q, "scale");
    const qd_tensor *operands[QD_MAX_INPUTS] = { &x };
    for (int k = 1; k < t->n_inputs; k++)
        operands[k] = t->input[k] >= 0 ? &qd_graph_node(twin, t->input[k])->value : NULL;
    t->op->forward(t, operands, &y);
    /* 12.4: 1e-5; the integer sum is exact, the twin multiplies and adds floats. */
    const double rel = check_close(s->value[id], qd_f32(&y), s->count[id], 0, 1e-5);
    qd_tensor_clear(&y);
    qd_tensor_clear(&x);
    return rel;
}

static void same_as_twin(const qd_graph *quantized, const qd_graph *twin, const qd_backend *backend, const char *what)
{
    seen a = seen_new(quantized), b = seen_new(twin);
    int layers = 0;
    double worst = 0;
    run_all(quantized, input, backend, 1, &a);
    for (qd_node_id id = 0; id < qd_graph_size(quantized); id++) {
        const qd_op *op = qd_graph_node(quantized, id)->op;
        if (op != &qd_op_qconv2d && op != &qd_op_qlinear)
            continue;
        worst = fmax(worst, against_twin(quantized, twin, &a, id));
        layers++;
    }
    assert_int_equal(layers, 9);

    /* From end to end a code may flip on the way, and little else. */
    run_all(twin, input, &qd_backend_ref, 1, &b);
    const qd_node_id out = qd_graph_output_at(quantized, 0), other = qd_graph_output_at(twin, 0);
    const double db = qd_sqnr_db(b.value[other], a.value[out], a.count[out]);
    print_message("%s: %d integer layers against fake-quant, worst relative error %.2g; outputs %.1f dB\n", what,
                  layers, worst, db);
    assert_true(db > 50);
    seen_free(&a);
    seen_free(&b);
}

static void integer_equals_fake_quant(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = zoo();
    for (int symmetric = 0; symmetric < 2; symmetric++) {
        qd_graph *out = NULL, *twin = NULL;
        harness_normal(input, BATCH * 3 * 8 * 8, 2, 1);
        qd_layout *l = laid_out(g, input, true, symmetric);
        if (!symmetric) { /* the zoo means what it says */
            assert_true(l->quantizers[layer_of(l, "one_sided")->part[0].quantizer].map.zero < 64);
            assert_true(l->quantizers[layer_of(l, "grouped")->part[0].quantizer].map.zero > 192);
        }
        check_ok(qd_layout_apply(l, &out, &err), &err);
        check_ok(qd_quant_fake_twin(out, &twin, &err), &err);
        assert_ptr_equal(node_of(twin, "padded")->op, &qd_op_conv2d);
        assert_ptr_equal(node_of(twin, "padded.quantize")->op, &qd_op_fake_quant);
        assert_int_equal(node_of(twin, "padded.weight")->dtype, QD_F32);
        same_as_twin(out, twin, &qd_backend_ref, symmetric ? "plain loops, symmetric" : "plain loops");
        same_as_twin(out, twin, &qd_backend_cpu, symmetric ? "cpu, symmetric" : "cpu");
        qd_graph_free(twin);
        qd_graph_free(out);
        qd_layout_free(l);
    }
    qd_graph_free(g);
}

/* qncd.md 12.4 for fewer bits: packed weights, scales of groups of input channels (with 8 channels groups of 3 leave a rest). */
static void fewer_bits_equal_fake_quant(void **state)
{
    static const widths all[] = { { 4, 8, 0 }, { 4, 6, 0 }, { 6, 6, 0 }, { 6, 8, 0 },
                                  { 4, 8, 3 }, { 8, 8, 4 }, { 6, 8, 2 } };
    qd_err err = { 0 };
    qd_graph *g = zoo();
    harness_normal(input, BATCH * 3 * 8 * 8, 5, 1);
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        const widths *b = &all[k];
        qd_graph *out = NULL, *twin = NULL;
        char what[80];
        qd_layout *l = laid_out_in(g, input, true, false, b);
        check_ok(qd_layout_apply(l, &out, &err), &err);
        check_ok(qd_quant_fake_twin(out, &twin, &err), &err);
        const qd_node *wide = node_of(out, "wide");
        assert_int_equal(node_of(out, "wide.weight")->dtype, b->weight == 4 ? QD_I4 : b->weight == 6 ? QD_I6 : QD_I8);
        assert_int_equal(qd_tensor_bytes(&node_of(out, "wide.weight")->value), 8 * 16 * 9 * b->weight / 8);
        assert_int_equal(qd_node_int(wide, "group_size"), b->group);
        if (b->group)
            assert_int_equal(node_of(out, "wide.wscale")->shape.dim[1], (16 + b->group - 1) / b->group);
        assert_int_equal(qd_node_int(node_of(out, "grouped"), "group_size"), 0);
        for (int fast = 0; fast < 2; fast++) {
            snprintf(what, sizeof what, "W%dA%d, groups of %d, %s", b->weight, b->activation, (int)b->group,
                     fast ? "cpu" : "plain loops");
            same_as_twin(out, twin, fast ? &qd_backend_cpu : &qd_backend_ref, what);
        }
        seen one = seen_new(out), two = seen_new(out);
        run_all(out, input, &qd_backend_cpu, 1, &one);
        run_all(out, input, &qd_backend_cpu, 2, &two);
        for (qd_node_id id = 0; id < qd_graph_size(out); id++)
            if (one.count[id])
                assert_memory_equal(one.value[id], two.value[id], (size_t)one.count[id] * sizeof(float));
        seen_free(&one);
        seen_free(&two);
        qd_graph_free(twin);
        qd_graph_free(out);
        qd_layout_free(l);
    }
    qd_graph_free(g);
}

/* Layers that compute in float may keep their weights in 8 bits: the same network, to the rounding of those weights. */
static void weights_alone(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = zoo(), *out = NULL, *twin = NULL;
    qd_layout *l = NULL;
    const qd_layout_options o = { .skip = "", .float_edges = true, .w8_edges = true, .w8_time = true };
    harness_normal(input, BATCH * 3 * 8 * 8, 5, 1);
    check_ok(qd_layout_new(g, &o, &l, &err), &err);
    assert_true(layer_of(l, "time_mlp")->weight_only && layer_of(l, "padded")->weight_only);
    assert_false(layer_of(l, "wide")->weight_only);
    assert_string_equal(layer_of(l, "padded")->note,
                        "reads or makes the image itself: weights in 8 bits, computed in float");
    for (int k = 0; k < l->n_quantizers; k++) {
        l->quantizers[k].map = (qd_affine){ .scale = 0.5f, .zero = 128, .qmin = 0, .qmax = 255, .bits = 8 };
    }
    check_ok(qd_layout_quantize_weights(l, 4, false, NULL, &err), &err);
    check_ok(qd_layout_apply(l, &out, &err), &err);
    assert_ptr_equal(node_of(out, "padded")->op, &qd_op_conv2d);
    assert_int_equal(node_of(out, "padded.weight")->dtype, QD_I8);
    assert_true(qd_graph_find(out, "padded.quantize") < 0);
    check_ok(qd_quant_fake_twin(out, &twin, &err), &err);

    seen a = seen_new(g), b = seen_new(out), c = seen_new(twin);
    run_all(g, input, &qd_backend_cpu, 1, &a);
    run_all(out, input, &qd_backend_cpu, 1, &b);
    run_all(twin, input, &qd_backend_ref, 1, &c);
    const qd_node_id from = qd_graph_find(g, "timed"), to = qd_graph_find(out, "timed"),
                     far = qd_graph_find(twin, "timed");
    const double db = qd_sqnr_db(a.value[from], b.value[to], a.count[from]);
    print_message("weights alone in 8 bits: %.1f dB\n", db);
    assert_true(db > 40);
    check_close(b.value[to], c.value[far], b.count[to], 0, 1e-6);
    seen_free(&a);
    seen_free(&b);
    seen_free(&c);
    qd_graph_free(twin);
    qd_graph_free(out);
    qd_layout_free(l);
    qd_graph_free(g);
}

static void any_number_of_threads(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = zoo(), *out = NULL;
    harness_normal(input, BATCH * 3 * 8 * 8, 3, 1);
    qd_layout *l = laid_out(g, input, true, false);
    check_ok(qd_layout_apply(l, &out, &err), &err);
    seen a = seen_new(out), b = seen_new(out);
    run_all(out, input, &qd_backend_cpu, 1, &a);
    run_all(out, input, &qd_backend_cpu, 2, &b);
    for (qd_node_id id = 0; id < qd_graph_size(out); id++)
        if (a.count[id])
            assert_memory_equal(a.value[id], b.value[id], (size_t)a.count[id] * sizeof(float));
    seen_free(&a);
    seen_free(&b);

    /* And the codes of the weights. */
    qd_layout *two = laid_out(g, input, true, false);
    const qd_run run = { .threads = 2 };
    for (int k = 0; k < two->n_layers; k++) {
        for (int p = 0; p < two->layers[k].n_parts; p++) {
            qd_tensor_clear(&two->layers[k].part[p].codes);
            qd_tensor_clear(&two->layers[k].part[p].wscale);
        }
    }
    check_ok(qd_layout_quantize_weights(two, 8, true, &run, &err), &err);
    for (int k = 0; k < two->n_layers; k++) {
        for (int p = 0; p < two->layers[k].n_parts; p++) {
            const qd_part *one = &l->layers[k].part[p], *other = &two->layers[k].part[p];
            assert_memory_equal(one->codes.data, other->codes.data, qd_tensor_bytes(&one->codes));
            assert_memory_equal(one->wscale.data, other->wscale.data, qd_tensor_bytes(&one->wscale));
        }
    }
    qd_layout_free(two);
    qd_graph_free(out);
    qd_layout_free(l);
    qd_graph_free(g);
}

static void weights_by_channel(void **state)
{
    qd_graph *g = zoo();
    harness_normal(input, BATCH * 3 * 8 * 8, 4, 1);
    qd_layout *l = laid_out(g, input, true, false);
    const qd_quant_layer *layer = layer_of(l, "shortcut");
    const float *w = qd_f32(&node_of(g, "shortcut.weight")->value);
    for (int half = 0; half < 2; half++) {
        const qd_part *p = &layer->part[half];
        assert_int_equal(qd_tensor_count(&p->codes), 8 * 8);
        qd_sqnr sqnr = { 0 };
        for (int o = 0; o < 8; o++) {
            const float scale = qd_f32(&p->wscale)[o];
            for (int c = 0; c < 8; c++) {
                const float v = w[o * 16 + half * 8 + c], back = (float)qd_i8(&p->codes)[o * 8 + c] * scale;
                /* Within half a step unless clipped at the end of the codes. */
                assert_true(fabsf(v - back) <= 0.5001f * scale || abs(qd_i8(&p->codes)[o * 8 + c]) >= 127);
                qd_sqnr_add(&sqnr, &v, &back, 1);
            }
        }
        assert_true(fabs(qd_sqnr_value_db(&sqnr) - p->sqnr_db) < 1e-6);
        assert_true(p->sqnr_db > 38);
    }
    qd_layout_free(l);
    qd_graph_free(g);
}

/* qncd.md 12.5: in float the split is exact; with halves of different size it keeps more of both. */
static void split_is_exact_and_better(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, 3, 8, 8), time = QD_SHAPE(-1);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &image);
    qd_graph_input(g, "timestep", QD_F32, &time);
    const qd_node_id small = shift(g, "small", x, 0.02, 0), large = shift(g, "large", x, 3, 1);
    const qd_node_id both = qd_graph_add(g, &qd_op_concat, "both", QD_IN(small, large), QD_ATTRS(QD_INT("axis", 1)));
    const qd_node_id w = random_const(g, "s.weight", QD_SHAPE(8, 6, 1, 1), 5, 1);
    float *weight = qd_f32(&qd_graph_node(g, w)->value);
    for (int k = 0; k < 48; k++)
        weight[k] *= k % 6 < 3 ? 50 : 0.01f; /* the small half matters most */
    const qd_node_id s = qd_graph_add(g, &qd_op_conv2d, "s", QD_IN(both, w), QD_NO_ATTRS);
    const qd_node_id tokens = qd_graph_add(g, &qd_op_reshape, "tokens", QD_IN(s),
                                           QD_ATTRS(qd_attr_ints("shape", 3, (const int64_t[]){ 0, -1, 4 })));
    qd_graph_output(g, "eps", tokens);
    check_ok(qd_graph_verify(g, &err), &err);

    harness_normal(input, BATCH * 3 * 8 * 8, 6, 1);
    seen plain = seen_new(g);
    run_all(g, input, &qd_backend_ref, 1, &plain);
    double db[2];
    for (int split = 0; split < 2; split++) {
        qd_layout *l = laid_out(g, input, split, false);
        qd_graph *out = NULL;
        check_ok(qd_layout_apply(l, &out, &err), &err);
        seen q = seen_new(out);
        run_all(out, input, &qd_backend_ref, 1, &q);
        db[split] = qd_sqnr_db(plain.value[s], q.value[qd_graph_find(out, "s")], plain.count[s]);
        if (split) {
            /* 16-bit codes on both sides of both halves would be needed to "disable" the quantizers; instead add the halves'
             * float convolutions by hand, with the channels the layout assigned. */
            const qd_quant_layer *layer = layer_of(l, "s");
            for (int64_t o = 0; o < plain.count[s]; o++) {
                const int64_t n = o / (8 * 64), c = o / 64 % 8, at = o % 64;
                double sum = 0;
                for (int p = 0; p < 2; p++) {
                    const float *half = plain.value[l->quantizers[layer->part[p].quantizer].value];
                    for (int64_t i = 0; i < layer->part[p].channels; i++)
                        sum += (double)half[(n * layer->part[p].channels + i) * 64 + at] *
                               weight[c * 6 + layer->part[p].first + i];
                }
                assert_true(fabs(sum - plain.value[s][o]) <= 1e-6 * (1 + fabs(sum)));
            }
            assert_true(qd_graph_find(out, "both") < 0); /* the concat has no reader left */
        }
        seen_free(&q);
        qd_graph_free(out);
        qd_layout_free(l);
    }
    print_message("bimodal shortcut: %.1f dB whole, %.1f dB split\n", db[0], db[1]);
    assert_true(db[1] > db[0] + 10);
    seen_free(&plain);
    qd_graph_free(g);
}

static qd_status lay_out(const qd_graph *g, const char *skip, qd_layout **out, qd_err *err)
{
    return qd_layout_new(g, &(qd_layout_options){ .skip = skip, .split_shortcut = true }, out, err);
}

static void edges(void **state)
{
    qd_err err = { 0 };
    qd_layout *l = NULL;
    qd_graph *g = NULL;
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_shape image = QD_SHAPE(-1, 3, 8, 8);
    const qd_node_id x = shift(g, "center", qd_graph_input(g, "sample", QD_F32, &image), 2, -1);
    const qd_node_id a = conv(g, "in", x, 3, 8, 3, 1, 1, 1, true);
    const qd_node_id b = conv(g, "middle", a, 8, 8, 3, 1, 1, 1, true);
    qd_graph_output(g, "eps", conv(g, "out", b, 8, 3, 3, 1, 1, 1, true));
    check_ok(qd_graph_verify(g, &err), &err);
    check_ok(qd_layout_new(g, &(qd_layout_options){ .skip = "", .float_edges = true }, &l, &err), &err);
    assert_string_equal(layer_of(l, "in")->note, "reads or makes the image itself: left in float");
    assert_string_equal(layer_of(l, "out")->note, "reads or makes the image itself: left in float");
    assert_null(layer_of(l, "middle")->note);
    qd_layout_free(l);
    check_ok(lay_out(g, "", &l, &err), &err);
    assert_null(layer_of(l, "in")->note);
    assert_null(layer_of(l, "out")->note);
    qd_layout_free(l);
    qd_graph_free(g);
}

static void refusals(void **state)
{
    qd_err err = { 0 };
    qd_layout *l = NULL;
    qd_graph *g = zoo(), *none = NULL, *twin = NULL;
    check_fails(lay_out(g, "padded, nothing", &l, &err), QD_E_INVALID,
                "params.skip_layers names 'nothing', which is no conv2d or linear", &err);
    check_fails(lay_out(g, "timed", &l, &err), QD_E_INVALID, "'timed'", &err);
    check_ok(lay_out(g, " padded ,,wide,", &l, &err), &err);
    assert_string_equal(layer_of(l, "padded")->note, "left in float on request");
    assert_string_equal(layer_of(l, "wide")->note, "left in float on request");
    assert_null(layer_of(l, "strided")->note);
    qd_layout_free(l);
    check_fails(lay_out(g, "padded,one_sided,grouped,shortcut,wide,strided,to_q,to_k", &l, &err), QD_E_INVALID,
                "no layer left", &err);

    check_ok(qd_graph_new(&none, &err), &err);
    const qd_shape image = QD_SHAPE(-1, 3, 8, 8);
    const qd_node_id x = qd_graph_input(none, "picture", QD_F32, &image);
    qd_graph_output(none, "y", conv(none, "c", x, 3, 3, 1, 1, 0, 1, false));
    check_fails(lay_out(none, "", &l, &err), QD_E_UNSUPPORTED, "'picture'", &err);
    qd_graph_free(none);

    /* Codes read as something else than what they were made. */
    check_ok(qd_graph_new(&none, &err), &err);
    const qd_node_id y = qd_graph_input(none, "sample", QD_F32, &image);
    const qd_node_id q = qd_graph_add(none, &qd_op_quantize, "q", QD_IN(y),
                                      QD_ATTRS(QD_FLOAT("scale", 0.5), QD_INT("zero", 3), QD_INT("bits", 8)));
    qd_graph_output(
        none, "y",
        qd_graph_add(none, &qd_op_dequantize, "d", QD_IN(q), QD_ATTRS(QD_FLOAT("scale", 0.25), QD_INT("zero", 3))));
    check_ok(qd_graph_verify(none, &err), &err);
    check_fails(qd_quant_fake_twin(none, &twin, &err), QD_E_UNSUPPORTED,
                "'d' reads the codes of 'q' with another scale", &err);
    qd_graph_free(none);
    qd_graph_free(g);
}

static qd_status lay_out_and_apply(void *ctx, qd_err *err)
{
    qd_layout *l = NULL;
    qd_graph *out = NULL, *twin = NULL;
    qd_status st = lay_out(ctx, "", &l, err);
    for (int k = 0; !st && k < l->n_quantizers; k++)
        st = qd_affine_fit(-1, 2, 8, false, &l->quantizers[k].map, err);
    if (!st)
        st = qd_layout_quantize_weights(l, 8, false, NULL, err);
    if (!st)
        st = qd_layout_apply(l, &out, err);
    if (!st)
        st = qd_quant_fake_twin(out, &twin, err);
    qd_graph_free(twin);
    qd_graph_free(out);
    qd_layout_free(l);
    return st;
}

static void out_of_memory(void **state)
{
    qd_graph *g = zoo();
    assert_true(harness_run_each_alloc(lay_out_and_apply, g, 2000) > 50);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_sharing),
        cmocka_unit_test(integer_equals_fake_quant),
        cmocka_unit_test(fewer_bits_equal_fake_quant),
        cmocka_unit_test(weights_alone),
        cmocka_unit_test(any_number_of_threads),
        cmocka_unit_test(weights_by_channel),
        cmocka_unit_test(split_is_exact_and_better),
        cmocka_unit_test(edges),
        cmocka_unit_test(refusals),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
