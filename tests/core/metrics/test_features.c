/* test_features.c - which value is taken, and what becomes of pictures on their way into the network. */
#include "feature_nets.h"

#include <math.h>
#include <stdio.h>

#include "golden/metrics/metrics_golden.h"
#include "nn/nn.h"

/* --- preprocessing --- */

/* Pictures [channels, h, w] that come out as they went in: the values the network read. */
static qd_features *mirror(int channels, int h, int w, const qd_feature_options *o)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_features *f = NULL;
    const qd_shape image = QD_SHAPE(-1, channels, h, w);
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id x = qd_graph_input(g, "x", QD_F32, &image);
    qd_graph_output(g, "y",
                    qd_graph_add(g, &qd_op_reshape, "flat", QD_IN(x),
                                 QD_ATTRS(qd_attr_ints("shape", 2, (const int64_t[]){ 0, -1 }))));
    check_ok(qd_features_new(g, o, NULL, &f, &err), &err);
    qd_graph_free(g);
    return f;
}

static qd_dataset *wrap(int channels, int h, int w, const uint8_t *pixels, int64_t n)
{
    qd_err err = { 0 };
    qd_tensor images = { 0 };
    qd_dataset *d = NULL;
    const qd_shape shape = QD_SHAPE(n, channels, h, w);
    check_ok(qd_tensor_init(&images, QD_U8, &shape, NULL, &err), &err);
    memcpy(images.data, pixels, qd_tensor_bytes(&images));
    check_ok(qd_dataset_wrap(&images, NULL, NULL, &d, &err), &err);
    qd_tensor_clear(&images);
    return d;
}

static void rules_of_pixels(void **state)
{
    enum { N = 7 };
    const float x[N] = { -1.5f, -1, 0, 0.0001f, 0.9999f, 1, 3 };
    static const float want[][N] = {
        [QD_PIXEL_ROUND] = { 0, 0, 128, 128, 255, 255, 255 }, /* 127.5 goes to the even one */
        [QD_PIXEL_TRUNCATE] = { 0, 0, 127, 127, 254, 255, 255 },
        [QD_PIXEL_CLIP] = { 0, 0, 127.5f, 127.51275f, 254.98725f, 255, 255 },
        [QD_PIXEL_FLOAT] = { -63.75f, 0, 127.5f, 127.51275f, 254.98725f, 255, 510 },
    };
    for (qd_pixel_rule rule = QD_PIXEL_ROUND; rule <= QD_PIXEL_FLOAT; rule++) {
        qd_err err = { 0 };
        float have[N];
        const qd_feature_options o = { .pixels = rule, .std = "0.00392156862745098" }; /* 1 / 255 */
        qd_features *f = mirror(1, 1, N, &o);
        check_ok(qd_features_of_samples(f, x, 1, 1, 1, N, NULL, have, NULL, NULL, &err), &err);
        check_close(have, want[rule], N, 0, 2e-7);
        qd_features_free(f);
    }
}

/* Codes give what qd_dataset_floats gives, bit for bit; and so do samples that were rounded to the same codes. */
static void codes_and_rounded_samples_agree(void **state)
{
    qd_err err = { 0 };
    uint8_t pixels[3 * 256];
    float x[3 * 256], have[3 * 256], want[3 * 256];
    for (int k = 0; k < 3 * 256; k++) {
        pixels[k] = (uint8_t)(k * 7);
        x[k] = (float)pixels[k] / 127.5f - 1.0f;
    }
    qd_pixel_scale scale;
    const qd_feature_options o = { .mean = "0.485, 0.456, 0.406", .std = "0.229, 0.224, 0.225" };
    qd_features *f = mirror(3, 16, 16, &o);
    qd_dataset *d = wrap(3, 16, 16, pixels, 1);
    check_ok(qd_pixel_scale_parse(o.mean, o.std, 3, &scale, &err), &err);
    qd_dataset_floats(want, d, NULL, 0, 1, &scale);
    check_ok(qd_features_of_pictures(f, d, NULL, 0, 1, NULL, have, NULL, NULL, &err), &err);
    assert_memory_equal(have, want, sizeof want);
    check_ok(qd_features_of_samples(f, x, 1, 3, 16, 16, NULL, have, NULL, NULL, &err), &err);
    assert_memory_equal(have, want, sizeof want);
    qd_dataset_free(d);
    qd_features_free(f);
}

/* One grey picture for a network of three channels, larger, smaller, and by the other rule. */
static void resizing_is_torchs(void **state)
{
    static const struct {
        qd_resize_rule rule;
        int h, w;
        const float *want;
    } cases[] = {
        { QD_RESIZE_BILINEAR, 8, 9, golden_plane_8x9 },
        { QD_RESIZE_BILINEAR, 3, 4, golden_plane_3x4 },
        { QD_RESIZE_CORNER, 8, 9, golden_plane_corner },
        { QD_RESIZE_BILINEAR, 5, 7, golden_plane },
    };
    float x[35], have[3 * 72];
    for (int k = 0; k < 35; k++)
        x[k] = 2 * golden_plane[k] - 1;
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        qd_err err = { 0 };
        const int plane = cases[k].h * cases[k].w;
        const qd_feature_options o = { .pixels = QD_PIXEL_FLOAT, .resize = cases[k].rule };
        qd_features *f = mirror(3, cases[k].h, cases[k].w, &o);
        check_ok(qd_features_of_samples(f, x, 1, 1, 5, 7, NULL, have, NULL, NULL, &err), &err);
        for (int c = 0; c < 3; c++)
            check_close(have + c * plane, cases[k].want, plane, 5e-7, 0); /* 2 u - 1 and back rounds twice */
        qd_features_free(f);
    }
}

static void what_does_not_fit_is_told(void **state)
{
    qd_err err = { 0 };
    float x[2 * 2 * 35] = { 0 }, have[35];
    qd_features *f = mirror(1, 5, 7, &(qd_feature_options){ .resize = QD_RESIZE_NONE });
    check_fails(qd_features_of_samples(f, x, 1, 2, 5, 7, NULL, have, NULL, NULL, &err), QD_E_INVALID,
                "have 2 channels, the feature network takes 1", &err);
    check_fails(qd_features_of_samples(f, x, 1, 1, 7, 5, NULL, have, NULL, NULL, &err), QD_E_INVALID,
                "7 x 5, the feature network takes 5 x 7", &err);
    x[37] = NAN; /* rounding would make it black */
    check_fails(qd_features_of_samples(f, x, 2, 1, 5, 7, NULL, have, NULL, NULL, &err), QD_E_NUMERIC,
                "pixel 2 of sample 1 is nan", &err);
    qd_features_free(f);
}

/* --- which value --- */

/* conv 1x1 (two channels: x and 2 x) -> relu -> mean over space -> linear [3] -> softmax */
static qd_graph *small_net(bool softmax)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_tensor w = { 0 }, fc = { 0 };
    const qd_shape image = QD_SHAPE(-1, 1, 2, 2), ws = QD_SHAPE(2, 1, 1, 1), fs = QD_SHAPE(3, 2);
    check_ok(qd_graph_new(&g, &err), &err);
    check_ok(qd_tensor_init(&w, QD_F32, &ws, NULL, &err), &err);
    check_ok(qd_tensor_init(&fc, QD_F32, &fs, NULL, &err), &err);
    qd_f32(&w)[0] = 1;
    qd_f32(&w)[1] = 2;
    for (int k = 0; k < 6; k++)
        qd_f32(&fc)[k] = (float)k;
    const qd_node_id x = qd_graph_input(g, "x", QD_F32, &image);
    const qd_node_id conv = qd_graph_add(g, &qd_op_conv2d, "conv", QD_IN(x, qd_graph_const(g, "w", &w)), QD_NO_ATTRS);
    const qd_node_id relu = qd_graph_add(g, &qd_op_relu, "relu", QD_IN(conv), QD_NO_ATTRS);
    const qd_node_id pooled = qd_graph_add(g, &qd_op_global_avg_pool, "pool", QD_IN(relu), QD_NO_ATTRS);
    const qd_node_id flat = qd_graph_add(g, &qd_op_reshape, "flat", QD_IN(pooled),
                                         QD_ATTRS(qd_attr_ints("shape", 2, (const int64_t[]){ 0, -1 })));
    qd_node_id y = qd_graph_add(g, &qd_op_linear, "fc", QD_IN(flat, qd_graph_const(g, "fc.weight", &fc)), QD_NO_ATTRS);
    if (softmax)
        y = qd_graph_add(g, &qd_op_softmax, "probs", QD_IN(y), QD_NO_ATTRS);
    qd_graph_output(g, "answers", y);
    check_ok(qd_graph_verify(g, &err), &err);
    qd_tensor_clear(&w);
    qd_tensor_clear(&fc);
    return g;
}

static void values_are_the_ones_asked_for(void **state)
{
    static const struct {
        const char *features;
        float want[3];
        int dim;
    } cases[] = { { NULL, { 0.5f, 1 }, 2 },   { "", { 0.5f, 1 }, 2 },   { "pool", { 0.5f, 1 }, 2 },
                  { "conv", { 0.5f, 1 }, 2 }, { "fc", { 1, 4, 7 }, 3 }, { "flat", { 0.5f, 1 }, 2 } };
    const float x[8] = { 0.2f, 0.4f, 0.6f, 0.8f, 1, 1, 1, 1 };
    for (int softmax = 0; softmax < 2; softmax++)
        for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
            qd_err err = { 0 };
            float have[6], spatial[8], p[6];
            qd_features *f = NULL;
            qd_graph *g = small_net(softmax);
            /* Two pictures in calls of three: what fills the call is nobody's. */
            const qd_feature_options o = { .features = cases[k].features,
                                           .spatial = "relu",
                                           .spatial_channels = 1,
                                           .pixels = QD_PIXEL_FLOAT,
                                           .mean = "0.5",
                                           .std = "0.5",
                                           .batch = 3 };
            check_ok(qd_features_new(g, &o, NULL, &f, &err), &err);
            const qd_feature_sizes z = qd_features_sizes(f);
            assert_int_equal(z.dim, cases[k].dim);
            assert_int_equal(z.spatial_dim, 4);
            assert_int_equal(z.height, 2);
            check_ok(qd_features_of_samples(f, x, 2, 1, 2, 2, NULL, have, spatial, p, &err), &err);
            check_close(have, cases[k].want, z.dim, 1e-6, 0);
            check_close(spatial, x, 8, 1e-6, 0);
            if (softmax || !cases[k].features || strcmp(cases[k].features, "fc") != 0) {
                const double e0 = exp(1), e1 = exp(4), e2 = exp(7);
                const float want[3] = { (float)(e0 / (e0 + e1 + e2)), (float)(e1 / (e0 + e1 + e2)),
                                        (float)(e2 / (e0 + e1 + e2)) };
                assert_int_equal(z.classes, 3);
                check_close(p, want, 3, 1e-6, 0);
            } else {
                assert_int_equal(z.classes, 0); /* what is a feature is no answer */
            }
            qd_features_free(f);
            qd_graph_free(g);
        }
}

static void values_that_are_not_there_are_told(void **state)
{
    qd_err err = { 0 };
    qd_features *f = NULL;
    qd_graph *g = small_net(false);
    check_fails(qd_features_new(g, &(qd_feature_options){ .features = "nowhere" }, NULL, &f, &err), QD_E_INVALID,
                "features: the network has no value 'nowhere'", &err);
    check_fails(qd_features_new(g, &(qd_feature_options){ .features = "x" }, NULL, &f, &err), QD_E_INVALID,
                "'x' is no f32 value that the network computes", &err);
    check_fails(qd_features_new(g, &(qd_feature_options){ .spatial = "flat" }, NULL, &f, &err), QD_E_INVALID,
                "spatial: the value is [64, 2]", &err);
    check_fails(qd_features_new(g, &(qd_feature_options){ .spatial = "conv" }, NULL, &f, &err), QD_E_INVALID,
                "7 channels are asked for, the value is [64, 2, 2, 2]", &err);
    check_fails(qd_features_new(g, &(qd_feature_options){ .mean = "1, 2" }, NULL, &f, &err), QD_E_INVALID,
                "params.mean", &err);
    qd_graph_free(g);
    assert_null(f);
}

/* dwnet's features by three ways: found, by the node's name, and as its authors computed them. */
static void penultimate_features_are_the_authors(void **state)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_weights *w = NULL;
    qd_role role;
    const char *path = harness_data("weights/fmnist-dwnet/dwnet.onnx");
    if (!path)
        skip();
    check_ok(qd_model_open(path, NULL, &m, &err), &err);
    check_ok(qd_zoo_build(m, NULL, &g, &role, &err), &err);
    check_ok(qd_safetensors_open(harness_data("weights/fmnist-dwnet/golden.safetensors"), &w, NULL, &err), &err);
    const qd_tensor *pixels = qd_weights_find(w, "pixels_u8"), *features = qd_weights_find(w, "features");
    assert_non_null(pixels);
    assert_int_equal(qd_tensor_count(pixels), 16 * 784);
    qd_dataset *d = wrap(1, 28, 28, qd_u8(pixels), 16);
    static const char *const names[] = { NULL, "features" };
    for (int k = 0; k < 2; k++) {
        static float have[16 * 128], want[16 * 128];
        qd_features *f = NULL;
        const qd_feature_options o = { .features = names[k], .mean = "0.2860", .std = "0.3530", .batch = 5 };
        check_ok(qd_features_new(g, &o, NULL, &f, &err), &err);
        assert_int_equal(qd_features_sizes(f).dim, 128);
        assert_int_equal(qd_features_sizes(f).classes, 10);
        check_ok(qd_features_of_pictures(f, d, NULL, 0, 16, NULL, have, NULL, NULL, &err), &err);
        memcpy(want, features->data, sizeof want);
        check_close(have, want, 16 * 128, 1e-5, 1e-5); /* float sums in another order */
        qd_features_free(f);
    }
    qd_dataset_free(d);
    qd_weights_free(w);
    qd_graph_free(g);
    qd_model_free(m);
}

static qd_status open_and_ask(void *ctx, qd_err *err)
{
    float have[2];
    const float x[4] = { 0 };
    qd_features *f = NULL;
    qd_status st = qd_features_new(ctx, &(qd_feature_options){ .batch = 1 }, NULL, &f, err);
    if (!st)
        st = qd_features_of_samples(f, x, 1, 1, 2, 2, NULL, have, NULL, NULL, err);
    qd_features_free(f);
    return st;
}

static void memory_may_run_out_anywhere(void **state)
{
    qd_graph *g = small_net(false);
    assert_in_range(harness_run_each_alloc(open_and_ask, g, 1000), 20, 999);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_of_pixels),
        cmocka_unit_test(codes_and_rounded_samples_agree),
        cmocka_unit_test(resizing_is_torchs),
        cmocka_unit_test(what_does_not_fit_is_told),
        cmocka_unit_test(values_are_the_ones_asked_for),
        cmocka_unit_test(values_that_are_not_there_are_told),
        cmocka_unit_test(penultimate_features_are_the_authors),
        cmocka_unit_test(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
