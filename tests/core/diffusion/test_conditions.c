/* test_conditions.c - what denoisers are told: guidance by hand, rows for samples, classes, what is missing and in which words. */
#include "harness/harness.h"

#include <string.h>

#include "diffusion/diffusion.h"
#include "nn/nn.h"
#include "plan/plan.h"

#define SMALL                                                                                                          \
    "\"sample_size\":8,\"in_channels\":1,\"out_channels\":1,\"block_out_channels\":[8,16],\"norm_num_groups\":4,"      \
    "\"layers_per_block\":1"
#define CROSS(more)                                                                                                    \
    "{\"_class_name\":\"UNet2DConditionModel\"," SMALL ",\"cross_attention_dim\":6,\"context_length\":3,"              \
    "\"attention_head_dim\":2,\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\"],"                        \
    "\"up_block_types\":[\"CrossAttnUpBlock2D\",\"UpBlock2D\"]" more "}"
#define PLAIN(more)                                                                                                    \
    "{\"_class_name\":\"UNet2DModel\"," SMALL ",\"attention_head_dim\":8,\"down_block_types\":[\"DownBlock2D\","       \
    "\"AttnDownBlock2D\"],\"up_block_types\":[\"AttnUpBlock2D\",\"UpBlock2D\"]" more "}"
#define PICTURE 64

static qd_graph *graph_of(const char *config)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_zoo_random(config, 5, &g, &err), &err);
    return g;
}

static qd_tensor normal(qd_shape shape, uint64_t seed)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    harness_normal(qd_f32(&t), qd_tensor_count(&t), seed, 1.0f);
    return t;
}

static qd_tensor numbers(int64_t n, const int64_t *v)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    const qd_shape shape = QD_SHAPE(n);
    check_ok(qd_tensor_init(&t, QD_I64, &shape, NULL, &err), &err);
    memcpy(t.data, v, (size_t)n * sizeof(*v));
    return t;
}

/* The answer for `batch` samples from number `first` on; x and out [batch, 1, 8, 8]. */
static void ask(const qd_graph *g, const qd_condition *c, int64_t batch, int64_t first, const float *x, float *out)
{
    qd_err err = { 0 };
    qd_denoiser *d = NULL;
    const qd_denoiser_options o = { .batch = batch, .backend = &qd_backend_cpu, .condition = c };
    check_ok(qd_denoiser_open(g, &o, &d, &err), &err);
    const qd_predictor p = qd_denoiser_predictor(d);
    qd_predictor_seat(&p, first);
    check_ok(p.predict(p.ctx, NULL, x, 40, out, &err), &err);
    qd_denoiser_free(d);
}

static void guidance_by_hand(void **state)
{
    float x[4 * PICTURE], with[4 * PICTURE], without[4 * PICTURE], both[4 * PICTURE], want[4 * PICTURE];
    qd_graph *g = graph_of(CROSS(""));
    qd_condition c;
    qd_condition_init(&c);
    c.context = normal(QD_SHAPE(2, 3, 6), 1);
    c.null_context = normal(QD_SHAPE(1, 3, 6), 2);
    harness_normal(x, 4 * PICTURE, 3, 1.0f);
    ask(g, &c, 4, 0, x, with);
    c.guidance = 0.0;
    ask(g, &c, 4, 0, x, without);
    c.guidance = 7.5;
    ask(g, &c, 4, 0, x, both);
    for (int k = 0; k < 4 * PICTURE; k++)
        want[k] = (float)(without[k] + 7.5 * ((double)with[k] - without[k]));
    check_close(both, want, 4 * PICTURE, 0.0, 0.0);
    assert_memory_not_equal(with, without, sizeof(with));

    /* No context for "without" is a context of zeros. */
    qd_tensor_clear(&c.null_context);
    ask(g, &c, 4, 0, x, both);
    c.null_context = normal(QD_SHAPE(1, 3, 6), 2);
    memset(qd_f32(&c.null_context), 0, qd_tensor_bytes(&c.null_context));
    ask(g, &c, 4, 0, x, want);
    check_close(both, want, 4 * PICTURE, 0.0, 0.0);
    qd_condition_clear(&c);
    qd_graph_free(g);
}

/* Sample k is told row k mod n, wherever it sits. */
static void rows_belong_to_samples(void **state)
{
    enum { MANY = 12 }; /* more than few */
    float x[MANY * PICTURE], all[MANY * PICTURE], one[PICTURE];
    qd_graph *g = graph_of(CROSS(""));
    qd_condition c;
    qd_condition_init(&c);
    c.context = normal(QD_SHAPE(3, 3, 6), 1);
    c.null_context = normal(QD_SHAPE(3, 3, 6), 2);
    harness_normal(x, PICTURE, 3, 1.0f);
    for (int k = 1; k < MANY; k++)
        memcpy(x + k * PICTURE, x, PICTURE * sizeof(float));
    for (int guided = 0; guided < 2; guided++) {
        c.guidance = guided ? 3.0 : 1.0;
        ask(g, &c, MANY, 0, x, all);
        assert_memory_equal(all, all + 3 * PICTURE, sizeof(one)); /* rows 0 and 3 mod 3 */
        assert_memory_not_equal(all, all + PICTURE, sizeof(one));
        for (int64_t k = 0; k < MANY; k++) {
            ask(g, &c, 1, k, x, one);
            check_close(one, all + k * PICTURE, PICTURE, 0.0, 0.0);
        }
    }
    qd_condition_clear(&c);
    qd_graph_free(g);
}

static void classes(void **state)
{
    float x[4 * PICTURE], shown[4 * PICTURE], same[4 * PICTURE];
    qd_err err = { 0 };
    qd_graph *g = graph_of(PLAIN(",\"num_class_embeds\":4"));
    qd_condition c;
    qd_condition_init(&c);
    harness_normal(x, PICTURE, 3, 1.0f);
    for (int k = 1; k < 4; k++)
        memcpy(x + k * PICTURE, x, PICTURE * sizeof(float));
    assert_int_equal(qd_condition_classes(g), 4);

    check_ok(qd_condition_classify(&c, g, NULL, -1, -1, NULL, &err), &err); /* each class in turn */
    ask(g, &c, 4, 0, x, shown);
    for (int k = 0; k < 4; k++)
        for (int j = 0; j < k; j++)
            assert_memory_not_equal(shown + k * PICTURE, shown + j * PICTURE, PICTURE * sizeof(float));
    qd_tensor_clear(&c.labels);
    c.labels = numbers(4, (const int64_t[]){ 0, 1, 2, 3 });
    ask(g, &c, 4, 0, x, same);
    assert_memory_equal(shown, same, sizeof(same));

    c.guidance = 2.0; /* now the last class stands for none, and is not shown */
    check_ok(qd_condition_classify(&c, g, NULL, -1, -1, NULL, &err), &err);
    assert_int_equal(c.labels.shape.dim[0], 3);
    assert_int_equal(((const int64_t *)c.null_labels.data)[0], 3);
    check_ok(qd_condition_classify(&c, g, NULL, -1, 1, NULL, &err), &err);
    assert_int_equal(((const int64_t *)c.labels.data)[1], 2);
    check_ok(qd_condition_classify(&c, g, NULL, 2, 0, NULL, &err), &err);
    assert_int_equal(c.labels.shape.dim[0], 1);
    assert_int_equal(((const int64_t *)c.labels.data)[0], 2);
    check_fails(qd_condition_classify(&c, g, NULL, 4, -1, NULL, &err), QD_E_INVALID,
                "class 4 is not one of the network's 4", &err);
    check_fails(qd_condition_classify(&c, g, NULL, 0, 9, NULL, &err), QD_E_INVALID, "class 9", &err);
    qd_condition_clear(&c);
    qd_graph_free(g);

    g = graph_of(PLAIN(""));
    check_fails(qd_condition_classify(&c, g, NULL, 0, -1, NULL, &err), QD_E_INVALID, "no classes", &err);
    qd_graph_free(g);
}

/* Class labels that are vectors, with and without guidance. */
static void class_vectors(void **state)
{
    float x[2 * PICTURE], a[2 * PICTURE], b[2 * PICTURE];
    qd_graph *g =
        graph_of(CROSS(",\"class_embed_type\":\"simple_projection\",\"projection_class_embeddings_input_dim\":5"));
    qd_condition c;
    qd_condition_init(&c);
    harness_normal(x, PICTURE, 3, 1.0f);
    memcpy(x + PICTURE, x, PICTURE * sizeof(float));
    c.context = normal(QD_SHAPE(1, 3, 6), 1);
    c.labels = normal(QD_SHAPE(2, 5), 7);
    ask(g, &c, 2, 0, x, a);
    assert_memory_not_equal(a, a + PICTURE, PICTURE * sizeof(float));
    ask(g, &c, 2, 1, x, b);
    assert_memory_equal(a, b + PICTURE, PICTURE * sizeof(float));
    c.guidance = 2.0;
    ask(g, &c, 2, 0, x, b);
    assert_memory_not_equal(a, b, sizeof(a));
    qd_condition_clear(&c);
    qd_graph_free(g);
}

static void what_is_missing(void **state)
{
    qd_graph *cross = graph_of(CROSS("")), *plain = graph_of(PLAIN("")),
             *table = graph_of(PLAIN(",\"num_class_embeds\":4"));
    const qd_tensor good = normal(QD_SHAPE(2, 3, 6), 1), short_one = normal(QD_SHAPE(2, 2, 6), 1),
                    null_two = normal(QD_SHAPE(2, 3, 6), 1), null_three = normal(QD_SHAPE(3, 3, 6), 1),
                    label = numbers(1, (const int64_t[]){ 1 });
    const struct {
        const qd_graph *g;
        qd_condition c;
        const char *words;
    } rows[] = {
        { cross, { .guidance = 1 }, "this denoiser needs encoder_hidden_states [n, 3, 6], and none was given" },
        { cross, { .context = short_one, .guidance = 1 }, "needs encoder_hidden_states [n, 3, 6], got f32 [2, 2, 6]" },
        { cross, { .context = good, .null_context = short_one, .guidance = 2 }, "got f32 [2, 2, 6]" },
        { cross, { .context = good, .null_context = null_three, .guidance = 2 }, "has 3 rows; it must have 1, or 2" },
        { cross, { .context = label, .guidance = 1 }, "got i64 [1]" },
        { cross, { .context = good, .guidance = -1 }, "guidance must be 0..1000" },
        { plain, { .guidance = 2 }, "this one takes none" },
        { table, { .guidance = 1 }, "this denoiser needs class_labels [n], and none was given" },
        { table, { .labels = label, .guidance = 2 }, "class that stands for no condition" },
    };
    qd_err err = { 0 };
    qd_denoiser *d = NULL;
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        const qd_denoiser_options o = { .batch = 1, .condition = &rows[k].c };
        check_fails(qd_denoiser_open(rows[k].g, &o, &d, &err), QD_E_INVALID, rows[k].words, &err);
        assert_null(d);
    }
    check_fails(qd_denoiser_new(cross, 1, 1, NULL, NULL, &d, &err), QD_E_INVALID, "[n, 3, 6]", &err);
    const qd_condition fits = { .context = good, .null_context = null_two, .guidance = 2 }, none = { .guidance = 0 };
    const qd_condition *const right[] = { &fits, &none };
    for (int k = 0; k < 2; k++) {
        const qd_denoiser_options o = { .batch = 1, .condition = right[k] };
        check_ok(qd_denoiser_open(cross, &o, &d, &err), &err);
        qd_denoiser_free(d);
        d = NULL;
    }
    qd_tensor *const all[] = { (qd_tensor *)&good, (qd_tensor *)&short_one, (qd_tensor *)&null_two,
                               (qd_tensor *)&null_three, (qd_tensor *)&label };
    for (int k = 0; k < 5; k++)
        qd_tensor_clear(all[k]);
    qd_graph_free(cross);
    qd_graph_free(plain);
    qd_graph_free(table);
}

static void contexts_of_files(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_condition c;
    qd_tensor half = { 0 }, flat = normal(QD_SHAPE(3, 6), 4), deep = normal(QD_SHAPE(1, 1, 3, 6), 4),
              whole = numbers(2, (const int64_t[]){ 1, 2 });
    qd_condition_init(&c);
    check_ok(qd_weights_new(&w, &err), &err);
    check_fails(qd_condition_read(&c, w, NULL, &err), QD_E_FORMAT, "no tensor 'context'", &err);
    check_ok(qd_tensor_cast(&half, &flat, QD_F16, NULL, &err), &err);
    check_ok(qd_weights_add(w, "prompt_embeds", &flat, &err), &err);
    check_ok(qd_weights_add(w, "negative_prompt_embeds", &half, &err), &err);
    check_ok(qd_condition_read(&c, w, NULL, &err), &err);
    assert_int_equal(c.context.shape.rank, 3);
    assert_int_equal(c.context.shape.dim[0], 1);
    check_close(qd_f32(&c.context), qd_f32(&flat), 18, 0.0, 0.0);
    check_close(qd_f32(&c.null_context), qd_f32(&flat), 18, 1e-3, 1e-3); /* 11 bits of mantissa */

    check_ok(qd_weights_add(w, "context", &deep, &err), &err); /* goes before the others */
    check_fails(qd_condition_read(&c, w, NULL, &err), QD_E_FORMAT, "'context' has shape [1, 1, 3, 6]", &err);
    check_close(qd_f32(&c.context), qd_f32(&flat), 18, 0.0, 0.0); /* untouched */
    qd_weights_free(w);
    check_ok(qd_weights_new(&w, &err), &err);
    check_ok(qd_weights_add(w, "context", &whole, &err), &err);
    check_fails(qd_condition_read(&c, w, NULL, &err), QD_E_UNSUPPORTED, "is i64", &err);
    qd_weights_free(w);
    check_ok(qd_weights_new(&w, &err), &err);
    qd_f32(&flat)[7] = 1e38f * 10.0f;
    check_ok(qd_weights_add(w, "context", &flat, &err), &err);
    check_fails(qd_condition_read(&c, w, NULL, &err), QD_E_NUMERIC, "element 7", &err);
    qd_weights_free(w);
    qd_condition_clear(&c);
    qd_tensor_clear(&half);
    qd_tensor_clear(&flat);
    qd_tensor_clear(&deep);
    qd_tensor_clear(&whole);
}

static qd_graph *alloc_graph;

static qd_status open_one(void *ctx, qd_err *err)
{
    qd_denoiser *d = NULL;
    qd_condition c;
    qd_condition_init(&c);
    c.guidance = 2.0;
    qd_status st = qd_condition_classify(&c, alloc_graph, NULL, -1, -1, NULL, err);
    const qd_denoiser_options o = { .batch = 2, .backend = &qd_backend_ref, .condition = &c };
    if (!st)
        st = qd_denoiser_open(alloc_graph, &o, &d, err);
    qd_denoiser_free(d);
    qd_condition_clear(&c);
    return st;
}

static void allocations_fail(void **state)
{
    alloc_graph = graph_of(PLAIN(",\"num_class_embeds\":4"));
    assert_true(harness_run_each_alloc(open_one, NULL, 10000) > 8);
    qd_graph_free(alloc_graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guidance_by_hand), cmocka_unit_test(rows_belong_to_samples),
        cmocka_unit_test(classes),          cmocka_unit_test(class_vectors),
        cmocka_unit_test(what_is_missing),  cmocka_unit_test(contexts_of_files),
        cmocka_unit_test(allocations_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
