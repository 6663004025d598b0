/* test_blocks.c - single blocks by hand: diffusion_models.md 9.2 to 9.5. */
#include "run_graph.h"

#include <math.h>
#include <stdio.h>

#include "graph/op.h"
#include "nn/nn_int.h"

/* A file of weights made by hand: everything the block under test asks for. */
typedef struct bench {
    qd_weights *weights;
    qd_weight_source *source;
    qd_graph *graph;
    qd_net net;
    qd_feature x;
} bench;

static void put(bench *b, const char *name, qd_shape shape, const float *data)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    if (data)
        memcpy(t.data, data, qd_tensor_bytes(&t));
    check_ok(qd_weights_add(b->weights, name, &t, &err), &err);
    qd_tensor_clear(&t);
}

static void put_normal(bench *b, const char *name, qd_shape shape, uint64_t seed)
{
    float data[256];
    int64_t n;
    check_ok(qd_shape_count(&shape, &n, NULL), NULL);
    assert_true(n <= 256);
    harness_normal(data, n, seed, 0.5f);
    put(b, name, shape, data);
}

static void bench_open(bench *b)
{
    qd_err err = { 0 };
    *b = (bench){ 0 };
    check_ok(qd_weights_new(&b->weights, &err), &err);
    check_ok(qd_graph_new(&b->graph, &err), &err);
}

static void bench_start(bench *b, int64_t c, int64_t h, int64_t w)
{
    qd_err err = { 0 };
    check_ok(qd_weight_source_file(b->weights, NULL, &b->source, &err), &err);
    b->net =
        (qd_net){ .graph = b->graph, .weights = b->source, .act = &qd_op_silu, .groups = 2, .eps = 1e-5, .temb = -1 };
    b->x = (qd_feature){ .channels = c, .height = h, .width = w };
    const qd_shape shape = QD_SHAPE(-1, c, h, w);
    b->x.id = qd_graph_input(b->graph, "x", QD_F32, &shape);
}

static void bench_run(bench *b, qd_feature y, const float *x, float *out)
{
    qd_err err = { 0 };
    qd_graph_output(b->graph, "y", y.id);
    check_ok(qd_graph_verify(b->graph, &err), &err);
    check_ok(qd_weight_source_used_up(b->source, &err), &err);
    run_graph(b->graph, &qd_backend_ref, 1, (const void *[]){ x }, out, NULL, 0);
}

static void bench_close(bench *b)
{
    qd_weight_source_free(b->source);
    qd_graph_free(b->graph);
    qd_weights_free(b->weights);
}

/* 9.3: a 3x3 kernel that is 1 in the middle picks these pixels of a 4x4 ramp. */
static void downsampling_picks_pixels(void **state)
{
    static const float picked[2][4] = { { 5, 7, 13, 15 }, { 0, 2, 8, 10 } };
    float ramp[16], out[4];
    const float centre[9] = { 0, 0, 0, 0, 1, 0, 0, 0, 0 };
    for (int k = 0; k < 16; k++)
        ramp[k] = (float)k;
    for (int padding = 0; padding < 2; padding++) {
        bench b;
        bench_open(&b);
        put(&b, "d.conv.weight", QD_SHAPE(1, 1, 3, 3), centre);
        put(&b, "d.conv.bias", QD_SHAPE(1), NULL);
        bench_start(&b, 1, 4, 4);
        const qd_feature y = qd_net_downsample(&b.net, "d", b.x, padding);
        assert_int_equal(y.height, 2);
        assert_int_equal(y.width, 2);
        bench_run(&b, y, ramp, out);
        check_close(out, picked[padding], 4, 0.0, 0.0);
        bench_close(&b);
    }
}

static void upsampling_doubles(void **state)
{
    static const float x[4] = { 1, 2, 3, 4 };
    static const float want[16] = { 1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4 };
    const float centre[9] = { 0, 0, 0, 0, 1, 0, 0, 0, 0 };
    float out[16];
    bench b;
    bench_open(&b);
    put(&b, "u.conv.weight", QD_SHAPE(1, 1, 3, 3), centre);
    put(&b, "u.conv.bias", QD_SHAPE(1), NULL);
    bench_start(&b, 1, 2, 2);
    bench_run(&b, qd_net_upsample(&b.net, "u", b.x), x, out);
    check_close(out, want, 16, 0.0, 0.0);
    bench_close(&b);
}

static void put_attention(bench *b, bool zero_out)
{
    static const char *const names[4] = { "a.to_q", "a.to_k", "a.to_v", "a.to_out.0" };
    const float ones[4] = { 1, 1, 1, 1 };
    char name[40];
    put(b, "a.group_norm.weight", QD_SHAPE(4), ones);
    put(b, "a.group_norm.bias", QD_SHAPE(4), NULL);
    for (int k = 0; k < 4; k++) {
        const bool zero = zero_out && k == 3;
        snprintf(name, sizeof(name), "%s.weight", names[k]);
        if (zero)
            put(b, name, QD_SHAPE(4, 4), NULL);
        else
            put_normal(b, name, QD_SHAPE(4, 4), 10 + (uint64_t)k);
        snprintf(name, sizeof(name), "%s.bias", names[k]);
        if (zero)
            put(b, name, QD_SHAPE(4), NULL);
        else
            put_normal(b, name, QD_SHAPE(4), 20 + (uint64_t)k);
    }
}

static void matvec(float y[4], const qd_weights *w, const char *layer, const float x[4])
{
    char name[40];
    snprintf(name, sizeof(name), "%s.weight", layer);
    const float *m = qd_f32(qd_weights_find(w, name));
    snprintf(name, sizeof(name), "%s.bias", layer);
    const float *bias = qd_f32(qd_weights_find(w, name));
    for (int o = 0; o < 4; o++) {
        y[o] = bias[o];
        for (int i = 0; i < 4; i++)
            y[o] += m[4 * o + i] * x[i];
    }
}

/* 9.4: over one token softmax is 1, whatever q and k are. */
static void attention_of_one_token(void **state)
{
    static const float x[4] = { 1.0f, -2.0f, 0.5f, 3.0f };
    float norm[4], v[4], want[4], out[4];
    bench b;
    bench_open(&b);
    put_attention(&b, false);
    bench_start(&b, 4, 1, 1);
    const qd_feature y = qd_net_attention(&b.net, "a", b.x, 2, 2, 1.0);
    bench_run(&b, y, x, out);
    for (int g = 0; g < 4; g += 2) {
        const double m = (x[g] + x[g + 1]) / 2.0, d = (x[g] - x[g + 1]) / 2.0;
        norm[g] = (float)((x[g] - m) / sqrt(d * d + 1e-5));
        norm[g + 1] = (float)((x[g + 1] - m) / sqrt(d * d + 1e-5));
    }
    matvec(v, b.weights, "a.to_v", norm);
    matvec(want, b.weights, "a.to_out.0", v);
    for (int k = 0; k < 4; k++)
        want[k] += x[k];
    check_close(out, want, 4, 1e-5, 0.0);
    bench_close(&b);
}

/* 9.4: the order of heads is a matter of naming: swap the halves of q, k, v and of the columns of to_out. */
static void heads_may_be_permuted(void **state)
{
    static const char *const rows[] = { "a.to_q.weight", "a.to_k.weight", "a.to_v.weight",
                                        "a.to_q.bias",   "a.to_k.bias",   "a.to_v.bias" };
    float x[4 * 6], out[2][4 * 6];
    harness_normal(x, 24, 5, 1.0f);
    for (int swapped = 0; swapped < 2; swapped++) {
        bench b;
        bench_open(&b);
        put_attention(&b, false);
        for (int k = 0; swapped && k < 6; k++) {
            float *w = qd_f32(qd_weights_find(b.weights, rows[k])), half[8];
            const size_t bytes = (k < 3 ? 8 : 2) * sizeof(float), n = bytes / sizeof(float);
            memcpy(half, w, bytes);
            memmove(w, w + n, bytes);
            memcpy(w + n, half, bytes);
        }
        float *o = qd_f32(qd_weights_find(b.weights, "a.to_out.0.weight"));
        for (int r = 0; swapped && r < 4; r++) {
            const float old[4] = { o[4 * r], o[4 * r + 1], o[4 * r + 2], o[4 * r + 3] };
            for (int c = 0; c < 4; c++)
                o[4 * r + c] = old[(c + 2) % 4];
        }
        bench_start(&b, 4, 2, 3);
        bench_run(&b, qd_net_attention(&b.net, "a", b.x, 2, 2, 1.0), x, out[swapped]);
        bench_close(&b);
    }
    check_close(out[0], out[1], 24, 1e-6, 0.0); /* sums in another order */
    assert_memory_not_equal(out[0], x, sizeof(x));
}

/* 9.5 */
static void zero_last_layers_are_identity(void **state)
{
    float x[24], out[24];
    harness_normal(x, 24, 6, 1.0f);
    bench b;
    bench_open(&b);
    put_attention(&b, true);
    bench_start(&b, 4, 2, 3);
    bench_run(&b, qd_net_attention(&b.net, "a", b.x, 4, 2, 1.0), x, out);
    check_close(out, x, 24, 0.0, 0.0);
    bench_close(&b);

    const float ones[4] = { 1, 1, 1, 1 };
    bench_open(&b);
    for (int k = 1; k <= 2; k++) {
        char name[40];
        snprintf(name, sizeof(name), "r.norm%d.weight", k);
        put(&b, name, QD_SHAPE(4), ones);
        snprintf(name, sizeof(name), "r.norm%d.bias", k);
        put(&b, name, QD_SHAPE(4), NULL);
        snprintf(name, sizeof(name), "r.conv%d.weight", k);
        if (k == 1)
            put_normal(&b, name, QD_SHAPE(4, 4, 3, 3), 30);
        else
            put(&b, name, QD_SHAPE(4, 4, 3, 3), NULL);
        snprintf(name, sizeof(name), "r.conv%d.bias", k);
        put(&b, name, QD_SHAPE(4), NULL);
    }
    bench_start(&b, 4, 2, 3);
    bench_run(&b, qd_net_resnet(&b.net, "r", b.x, 4, QD_RESAMPLE_NONE, 1.0), x, out);
    check_close(out, x, 24, 0.0, 0.0);
    bench_close(&b);
}

/* 9.2 */
static void time_embedding_values(void **state)
{
    static const float want[2][4] = { { 0.841471f, 0.0001f, 0.540302f, 1.0f },
                                      { 0.540302f, 0.999950f, 0.841471f, 0.01f } };
    const float t = 1.0f;
    for (int k = 0; k < 2; k++) {
        qd_err err = { 0 };
        qd_graph *g = NULL;
        float out[4];
        const qd_shape shape = QD_SHAPE(-1);
        check_ok(qd_graph_new(&g, &err), &err);
        const qd_node_id in = qd_graph_input(g, "t", QD_F32, &shape);
        qd_graph_output(
            g, "y",
            qd_graph_add(g, &qd_op_timestep, "y", QD_IN(in),
                         QD_ATTRS(QD_INT("dim", 4), QD_INT("flip_sin_to_cos", k), QD_FLOAT("freq_shift", 1 - k))));
        check_ok(qd_graph_verify(g, &err), &err);
        run_graph(g, &qd_backend_ref, 1, (const void *[]){ &t }, out, NULL, 0);
        check_close(out, want[k], 4, 1e-6, 0.0);
        qd_graph_free(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(downsampling_picks_pixels),     cmocka_unit_test(upsampling_doubles),
        cmocka_unit_test(attention_of_one_token),        cmocka_unit_test(heads_may_be_permuted),
        cmocka_unit_test(zero_last_layers_are_identity), cmocka_unit_test(time_embedding_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
