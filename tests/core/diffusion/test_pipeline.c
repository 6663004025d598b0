/* test_pipeline.c - latent diffusion from noise to picture against PyTorch: a folder with all its parts, contexts, guidance, first
 * stage; a picture alone or in a batch. */
#include "../nn/pipeline_dir.h"

#include <stdlib.h>

#include "diffusion/diffusion.h"

#define STEPS 5
#define SAMPLES 3

static qd_weights *golden;
static qd_meta *golden_meta;

static int open_golden(void **state)
{
    qd_err err = { 0 };
    check_ok(qd_meta_new(&golden_meta, &err), &err);
    check_ok(
        qd_safetensors_open(harness_source("tests/golden/diffusion/pipelines.safetensors"), &golden, golden_meta, &err),
        &err);
    return 0;
}

static int close_golden(void **state)
{
    qd_weights_free(golden);
    qd_meta_free(golden_meta);
    return 0;
}

static const qd_tensor *tensor_of(const char *name, const char *what)
{
    char key[80];
    snprintf(key, sizeof(key), "%s.%s", name, what);
    return qd_weights_find(golden, key);
}

static const char *text_of(const char *name, const char *what)
{
    char key[80];
    snprintf(key, sizeof(key), "%s.%s", name, what);
    return qd_meta_find(golden_meta, key);
}

/* --- a pipeline on disk --- */

/* What the network is told, as a folder would hold it. */
static void write_context(const char *root, const char *name)
{
    static const char *const parts[] = { "context", "null_context", "class_table" };
    qd_err err = { 0 };
    qd_weights *w = NULL;
    char *path = below(root, "context.safetensors");
    check_ok(qd_weights_new(&w, &err), &err);
    for (size_t k = 0; k < sizeof(parts) / sizeof(parts[0]); k++)
        if (tensor_of(name, parts[k]))
            check_ok(qd_weights_add(w, parts[k], tensor_of(name, parts[k]), &err), &err);
    check_ok(qd_safetensors_save(path, w, NULL, NULL, &err), &err);
    qd_weights_free(w);
    qd_free(path);
}

static void write_pipeline(const char *root, const char *name)
{
    write_pipeline_dir(root, text_of(name, "unet"), text_of(name, "first_stage"), text_of(name, "scheduler"));
    write_context(root, name);
}

/* --- the parts, opened --- */

typedef struct pipeline {
    qd_model *model;
    qd_graph *unet, *decoder;
    qd_schedule *schedule;
    qd_condition condition;
} pipeline;

static void open_pipeline(pipeline *p, const char *name)
{
    qd_err err = { 0 };
    qd_role role;
    qd_tensor table = { 0 };
    const char *root = harness_tmp();
    write_pipeline(root, name);
    check_ok(qd_model_open(root, NULL, &p->model, &err), &err);
    check_ok(qd_zoo_build(p->model, NULL, &p->unet, &role, &err), &err);
    assert_int_equal(role, QD_ROLE_DENOISER);
    check_ok(qd_schedule_open(p->model->scheduler, &p->schedule, &err), &err);
    const qd_shape sample = qd_graph_node(p->unet, qd_graph_find(p->unet, "sample"))->shape;
    check_ok(qd_zoo_decoder(p->model, &sample, NULL, &p->decoder, &err), &err);
    assert_non_null(p->decoder);

    qd_condition_init(&p->condition);
    p->condition.guidance = strtod(text_of(name, "guidance"), NULL);
    assert_non_null(p->model->context);
    check_ok(qd_zoo_class_table(p->model, NULL, &table, &err), &err);
    if (table.data)
        check_ok(qd_condition_classify(&p->condition, p->unet, &table, -1, 4, NULL, &err), &err);
    else
        check_ok(qd_condition_read(&p->condition, p->model->context, NULL, &err), &err);
    qd_tensor_clear(&table);
}

static void close_pipeline(pipeline *p)
{
    qd_condition_clear(&p->condition);
    qd_schedule_free(p->schedule);
    qd_graph_free(p->decoder);
    qd_graph_free(p->unet);
    qd_model_free(p->model);
}

static void sample_all(const pipeline *p, const qd_backend *backend, int64_t batch, int threads, const float *noise,
                       float *x, int64_t each)
{
    qd_err err = { 0 };
    qd_denoiser *d = NULL;
    const qd_denoiser_options o = {
        .batch = batch, .threads = threads, .backend = backend, .condition = &p->condition
    };
    check_ok(qd_denoiser_open(p->unet, &o, &d, &err), &err);
    const qd_predictor predictor = qd_denoiser_predictor(d);
    memcpy(x, noise, (size_t)(SAMPLES * each) * sizeof(float));
    for (int64_t first = 0; first < SAMPLES; first += batch) {
        const qd_sample_options s = { .steps = STEPS, .clip = -1, .first_sample = first };
        check_ok(qd_sampler_find("ddim")->run(p->schedule, &s, &predictor, NULL, NULL, x + first * each, &err), &err);
    }
    qd_denoiser_free(d);
}

static void check_decoder(const pipeline *p, const qd_backend *backend, const qd_tensor *latent, const qd_tensor *image)
{
    qd_err err = { 0 };
    qd_decoder *d = NULL;
    check_ok(qd_decoder_new(p->decoder, 1, backend, NULL, &d, &err), &err);
    const qd_shape shape = qd_decoder_image(d);
    assert_int_equal(shape.rank, 3);
    for (int k = 0; k < 3; k++)
        assert_int_equal(shape.dim[k],
                         image->shape.dim[k + 1]); /* not the 32 x 32 that the first stage's config says */
    const int64_t in = qd_tensor_count(latent) / SAMPLES, out = qd_tensor_count(image) / SAMPLES;
    float *have = qd_alloc_aligned((size_t)out * sizeof(float));
    for (int k = 0; k < SAMPLES; k++) {
        check_ok(qd_decoder_run(d, NULL, qd_f32(latent) + k * in, have, &err), &err);
        check_close(have, qd_f32(image) + k * out, out, 2e-5, 0.0); /* as in test_condition.c */
    }
    qd_free(have);
    qd_decoder_free(d);
}

static void check_case(const char *name)
{
    pipeline p = { 0 };
    const qd_tensor *noise = tensor_of(name, "noise"), *latent = tensor_of(name, "latent");
    const int64_t n = qd_tensor_count(noise);
    float *x = qd_alloc_aligned((size_t)n * sizeof(float)), *other = qd_alloc_aligned((size_t)n * sizeof(float));
    open_pipeline(&p, name);
    for (int b = 0; qd_backends[b]; b++) {
        print_message("  %s on %s\n", name, qd_backend_name(qd_backends[b]));
        /* Five calls, each within 2e-5 of PyTorch's, whose errors guidance multiplies by up to 2 w - 1 = 14 and the first step
         * by 1 / sqrt(abar_801) = 6; latents are of order 9. */
        sample_all(&p, qd_backends[b], SAMPLES, 1, qd_f32(noise), x, n / SAMPLES);
        check_close(x, qd_f32(latent), n, 2e-3, 0.0);
        /* What a sample is told and drawn from is its own: alone, in a batch, on two threads the same bytes. */
        sample_all(&p, qd_backends[b], 1, 1, qd_f32(noise), other, n / SAMPLES);
        check_close(other, x, n, 0.0, 0.0);
        sample_all(&p, qd_backends[b], SAMPLES, 2, qd_f32(noise), other, n / SAMPLES);
        check_close(other, x, n, 0.0, 0.0);
        check_decoder(&p, qd_backends[b], latent, tensor_of(name, "image"));
    }
    close_pipeline(&p);
    qd_free(other);
    qd_free(x);
}

static void golden_pipelines(void **state)
{
    int cases = 0;
    for (int k = 0; k < qd_meta_count(golden_meta); k++) {
        const char *key, *value;
        char name[64];
        qd_meta_at(golden_meta, k, &key, &value);
        const char *dot = strchr(key, '.');
        if (!dot || strcmp(dot, ".unet") != 0)
            continue;
        snprintf(name, sizeof(name), "%.*s", (int)(dot - key), key);
        check_case(name);
        cases++;
    }
    assert_int_equal(cases, 7);
}

/* --- first stages --- */

#define STAGE32                                                                                                        \
    "\"block_out_channels\":[32,64],\"layers_per_block\":1,\"norm_num_groups\":32,\"act_fn\":\"silu\","                \
    "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"],"                                            \
    "\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"],\"sample_size\":[8,16]"

/* Where CompVis keeps a tensor of a first stage (diffusion_models.md 3.1). */
static void original_name(const char *name, char out[200])
{
    static const char *const rows[][2] = {
        { "down_blocks.", "down." },
        { "mid_block.resnets.0", "mid.block_1" },
        { "mid_block.resnets.1", "mid.block_2" },
        { "mid_block.attentions.0", "mid.attn_1" },
        { "up_blocks.0", "up.1" },
        { "up_blocks.1", "up.0" },
        { "resnets.", "block." },
        { "downsamplers.0", "downsample" },
        { "upsamplers.0", "upsample" },
        { "conv_shortcut", "nin_shortcut" },
        { "conv_norm_out", "norm_out" },
        { "group_norm", "norm" },
        { "to_q", "q" },
        { "to_k", "k" },
        { "to_v", "v" },
        { "to_out.0", "proj_out" },
    };
    char text[200];
    snprintf(out, 200, "first_stage_model.%s", name);
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        char *at = strstr(out, rows[k][0]);
        if (!at)
            continue;
        snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - out), out, rows[k][1], at + strlen(rows[k][0]));
        memcpy(out, text, sizeof(text));
    }
}

/* One file with everything, as CompVis writes it, and something that is none of our business. */
static qd_weights *single_file(const char *config, double scale_factor)
{
    qd_err err = { 0 };
    qd_weights *named = filled_weights(config), *w = NULL;
    const qd_shape scalar = QD_SHAPE(1);
    qd_tensor t = { 0 };
    char name[200];
    check_ok(qd_weights_new(&w, &err), &err);
    for (int k = 0; k < qd_weights_count(named); k++) {
        qd_tensor one = *qd_weights_at(named, k);
        original_name(qd_weights_name(named, k), name);
        if (one.shape.rank == 2 && strstr(name, "attn")) /* linear layers are 1 x 1 convolutions there */
            one.shape = QD_SHAPE(one.shape.dim[0], one.shape.dim[1], 1, 1);
        check_ok(qd_weights_add(w, name, &one, &err), &err);
    }
    check_ok(qd_tensor_init(&t, QD_F32, &scalar, NULL, &err), &err);
    qd_f32(&t)[0] = (float)scale_factor;
    check_ok(qd_weights_add(w, "first_stage_model.loss.logvar", &t, &err), &err);
    if (scale_factor > 0)
        check_ok(qd_weights_add(w, "scale_factor", &t, &err), &err);
    qd_tensor_clear(&t);
    qd_weights_free(named);
    return w;
}

/* The decoder that the shapes of one file tell, against the one that a config asks for. */
static void check_single_file(const char *config, double scale_factor, int64_t channels)
{
    qd_err err = { 0 };
    qd_graph *whole = NULL, *want = NULL, *have = NULL;
    qd_weights *named = filled_weights(config), *w = single_file(config, scale_factor);
    const qd_model m = { .weights = w };
    const qd_shape sample = QD_SHAPE(-1, channels, 4, 8);
    float latent[4 * 32], a[3 * 128], b[3 * 128];
    check_ok(build_status(config, named, NULL, &whole, &err), &err);
    check_ok(qd_zoo_part(whole, "latent", &want, &err), &err);
    check_ok(qd_zoo_decoder(&m, &sample, NULL, &have, &err), &err);
    assert_non_null(have);
    harness_normal(latent, channels * 32, 3, 0.5f);
    qd_graph *const both[2] = { want, have };
    float *const out[2] = { a, b };
    for (int k = 0; k < 2; k++) {
        qd_decoder *d = NULL;
        check_ok(qd_decoder_new(both[k], 1, NULL, NULL, &d, &err), &err);
        check_ok(qd_decoder_run(d, NULL, latent, out[k], &err), &err);
        qd_decoder_free(d);
    }
    check_close(b, a, 3 * 128, 0.0, 0.0);
    qd_graph_free(have);
    qd_graph_free(want);
    qd_graph_free(whole);
    qd_weights_free(w);
    qd_weights_free(named);
}

static void checkpoints_of_one_file(void **state)
{
    check_single_file("{\"_class_name\":\"AutoencoderKL\",\"latent_channels\":4,\"scaling_factor\":0.25," STAGE32 "}",
                      0.25, 4);
    check_single_file(
        "{\"_class_name\":\"AutoencoderKL\",\"latent_channels\":4,\"scaling_factor\":0.18215," STAGE32 "}", 0.0, 4);
    check_single_file("{\"_class_name\":\"VQModel\",\"latent_channels\":3,\"num_vq_embeddings\":16," STAGE32 "}", 0.0,
                      3);
}

static void first_stages_that_do_not_fit(void **state)
{
    const char *config = "{\"_class_name\":\"AutoencoderKL\",\"latent_channels\":4," STAGE32 "}";
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_weights *w = filled_weights(config), *one = single_file(config, 0.0), *less = NULL;
    qd_config *c = parse_config(config), *other = parse_config("{\"_class_name\":\"AutoencoderTiny\"}");
    const qd_shape three = QD_SHAPE(-1, 3, 4, 8);
    qd_model stage = { .weights = w, .config = c };
    const qd_model whole = { .first_stage = &stage }, file = { .weights = one }, pixels = { .config = other };
    check_fails(qd_zoo_decoder(&whole, &three, NULL, &g, &err), QD_E_INVALID,
                "decodes latents of 4 channels, the denoiser makes 3", &err);
    check_fails(qd_zoo_decoder(&file, &three, NULL, &g, &err), QD_E_INVALID, "of 4 channels", &err);
    stage.config = other;
    check_fails(qd_zoo_decoder(&whole, &three, NULL, &g, &err), QD_E_UNSUPPORTED, "AutoencoderTiny", &err);
    stage.config = NULL;
    check_fails(qd_zoo_decoder(&whole, &three, NULL, &g, &err), QD_E_FORMAT, "no config.json", &err);
    check_ok(qd_zoo_decoder(&pixels, &three, NULL, &g, &err), &err); /* pixel diffusion has none */
    assert_null(g);

    check_ok(qd_weights_new(&less, &err), &err); /* a tensor is missing */
    for (int k = 0; k < qd_weights_count(one); k++)
        if (!strstr(qd_weights_name(one, k), "post_quant_conv.weight"))
            check_ok(qd_weights_add(less, qd_weights_name(one, k), qd_weights_at(one, k), &err), &err);
    const qd_model half = { .weights = less };
    check_fails(qd_zoo_decoder(&half, &three, NULL, &g, &err), QD_E_FORMAT, "not all of its tensors", &err);
    qd_weights_free(less);
    qd_weights_free(one);
    qd_weights_free(w);
    qd_config_free(c);
    qd_config_free(other);
}

static void decoders_that_are_none(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_decoder *d = NULL;
    const qd_shape flat = QD_SHAPE(-1, 4), image = QD_SHAPE(-1, 1, 2, 2);
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id x = qd_graph_input(g, "latent", QD_F32, &flat);
    qd_graph_output(g, "image", x);
    check_fails(qd_decoder_new(g, 1, NULL, NULL, &d, &err), QD_E_UNSUPPORTED, "'latent' of a decoder must be", &err);
    qd_graph_input(g, "more", QD_F32, &image);
    check_fails(qd_decoder_new(g, 1, NULL, NULL, &d, &err), QD_E_UNSUPPORTED, "2 inputs", &err);
    assert_null(d);
    qd_graph_free(g);
}

static const char *alloc_root;

static qd_status open_parts(void *ctx, qd_err *err)
{
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_condition c;
    const qd_shape sample = QD_SHAPE(-1, 4, 8, 8);
    qd_condition_init(&c);
    qd_status st = qd_model_open(alloc_root, NULL, &m, err);
    if (!st)
        st = qd_zoo_decoder(m, &sample, NULL, &g, err);
    if (!st)
        st = qd_condition_read(&c, m->context, NULL, err);
    qd_condition_clear(&c);
    qd_graph_free(g);
    qd_model_free(m);
    return st;
}

static void allocations_fail(void **state)
{
    alloc_root = harness_tmp();
    write_pipeline(alloc_root, "kl_null_given");
    assert_true(harness_run_each_alloc(open_parts, NULL, 100000) > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_pipelines),
        cmocka_unit_test(checkpoints_of_one_file),
        cmocka_unit_test(first_stages_that_do_not_fit),
        cmocka_unit_test(decoders_that_are_none),
        cmocka_unit_test(allocations_fail),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
