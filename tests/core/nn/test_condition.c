/* test_condition.c - UNet2DConditionModel, AutoencoderKL and VQModel: every option against PyTorch, the published totals, configs
 * that must be refused. */
#include "golden_nets.h"

#include <stdlib.h>

static qd_weights *golden;
static qd_meta *golden_meta;

static int open_golden(void **state)
{
    qd_err err = { 0 };
    check_ok(qd_meta_new(&golden_meta, &err), &err);
    check_ok(qd_safetensors_open(harness_source("tests/golden/nn/conditions.safetensors"), &golden, golden_meta, &err),
             &err);
    return 0;
}

static int close_golden(void **state)
{
    qd_weights_free(golden);
    qd_meta_free(golden_meta);
    return 0;
}

static const qd_tensor *golden_of(const char *name, const char *side, const char *what)
{
    char key[120];
    snprintf(key, sizeof(key), "%s.%s.%s", name, side, what);
    const qd_tensor *t = qd_weights_find(golden, key);
    if (!t)
        fail_msg("no golden tensor '%s'", key);
    return t;
}

/* All outputs of the graph for the golden inputs on every backend. */
static void check_outputs(const char *name, const qd_graph *g)
{
    const void *inputs[QD_MAX_INPUTS];
    void *outs[4];
    const qd_tensor *want[4];
    for (int k = 0; k < qd_graph_inputs(g); k++)
        inputs[k] = golden_of(name, "in", qd_graph_node(g, qd_graph_input_at(g, k))->name)->data;
    for (int k = 0; k < qd_graph_outputs(g); k++) {
        want[k] = golden_of(name, "out", qd_graph_output_name(g, k));
        outs[k] = qd_alloc_aligned(qd_tensor_bytes(want[k]));
    }
    for (int b = 0; qd_backends[b]; b++) {
        print_message("  %s on %s\n", name, qd_backend_name(qd_backends[b]));
        run_graph_many(g, qd_backends[b], 2, inputs, outs, NULL, 0);
        /* Two float implementations of some 40 layers; values are of order 1. */
        for (int k = 0; k < qd_graph_outputs(g); k++)
            check_close(outs[k], qd_f32(want[k]), qd_tensor_count(want[k]), 2e-5, 0.0);
    }
    for (int k = 0; k < qd_graph_outputs(g); k++)
        qd_free(outs[k]);
}

static void golden_networks(void **state)
{
    qd_err err = { 0 };
    int cases = 0;
    for (int k = 0; k < qd_meta_count(golden_meta); k++) {
        const char *name, *config;
        qd_meta_at(golden_meta, k, &name, &config);
        if (strchr(name, '.'))
            continue; /* "<case>.params" */
        char key[80];
        snprintf(key, sizeof(key), "%s.params", name);
        qd_weights *w = filled_weights(config);
        qd_graph *g = NULL;
        check_ok(build_status(config, w, NULL, &g, &err), &err);
        assert_int_equal(qd_graph_param_count(g), atoll(qd_meta_find(golden_meta, key)));
        check_outputs(name, g);
        qd_graph_free(g);
        qd_weights_free(w);
        cases++;
    }
    assert_int_equal(cases, 25);
}

#define SD1                                                                                                            \
    "{\"_class_name\":\"UNet2DConditionModel\",\"sample_size\":64,\"cross_attention_dim\":768,\"attention_head_dim\":8}"
#define CIN256                                                                                                           \
    "{\"_class_name\":\"UNet2DConditionModel\",\"sample_size\":64,\"in_channels\":3,\"out_channels\":3,"                 \
    "\"block_out_channels\":[192,384,576,960],\"cross_attention_dim\":512,\"attention_head_dim\":1,"                     \
    "\"context_length\":1,"                                                                                              \
    "\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\"]," \
    "\"up_block_types\":[\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\",\"UpBlock2D\"]}"

static int64_t params_of(const char *config)
{
    qd_graph *g = blank_graph(config);
    const int64_t n = qd_graph_param_count(g);
    qd_graph_free(g);
    return n;
}

/* diffusion_models.md 4.1, 4.2 and 9.1. */
static void published_unets(void **state)
{
    qd_err err = { 0 };
    int64_t macs = 0;
    qd_graph *g = blank_graph(SD1);
    assert_int_equal(qd_graph_param_count(g), 859520964);
    const qd_shape shapes[3] = { QD_SHAPE(1, 4, 64, 64), QD_SHAPE(1), QD_SHAPE(1, 77, 768) };
    check_ok(qd_graph_cost(g, shapes, 3, &macs, &err), &err);
    assert_int_equal((macs + 500000000) / 1000000000, 402);

    /* The trap of 2.6: heads, not their width. */
    static const int64_t heads[3] = { 8, 8, 8 }, width[3] = { 320, 640, 1280 };
    int64_t blocks[3] = { 0 };
    for (int k = 0; k < qd_graph_size(g); k++) {
        const qd_node *n = qd_graph_node(g, k);
        if (n->op != &qd_op_attention)
            continue;
        const qd_node *q = qd_graph_node(g, n->input[0]);
        for (int j = 0; j < 3; j++)
            if (qd_graph_node(g, q->input[1])->shape.dim[0] == width[j]) {
                assert_int_equal(qd_node_int(n, "heads"), heads[j]);
                blocks[j]++;
            }
    }
    assert_int_equal(blocks[0], 2 * 5); /* two attentions in each of 5, 5 and 6 blocks */
    assert_int_equal(blocks[1], 2 * 5);
    assert_int_equal(blocks[2], 2 * 6);
    qd_graph_free(g);
    assert_int_equal(params_of(CIN256), 400920579);
}

#define TINY                                                                                                           \
    "\"sample_size\":8,\"in_channels\":1,\"out_channels\":1,\"block_out_channels\":[8,16],\"norm_num_groups\":4,"      \
    "\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\"],"                                                 \
    "\"up_block_types\":[\"CrossAttnUpBlock2D\",\"UpBlock2D\"]"
#define COND(more) "{\"_class_name\":\"UNet2DConditionModel\"," TINY "," more "}"

typedef struct refusal {
    qd_status status;
    const char *config, *words;
} refusal;

static void check_refusals(const refusal *rows, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        qd_err err = { 0 };
        qd_graph *g = NULL;
        qd_weights *w = NULL;
        check_ok(qd_weights_new(&w, &err), &err);
        print_message("  %s\n", rows[k].config);
        check_fails(build_status(rows[k].config, w, NULL, &g, &err), rows[k].status, rows[k].words, &err);
        assert_null(g);
        qd_weights_free(w);
    }
}

static void bad_unets(void **state)
{
    static const refusal rows[] = {
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DConditionModel\"}", "sample_size" },
        { QD_E_UNSUPPORTED, COND("\"addition_embed_type\":\"text_time\""), "'addition_embed_type'" },
        { QD_E_UNSUPPORTED, COND("\"encoder_hid_dim\":9"), "'encoder_hid_dim'" },
        { QD_E_UNSUPPORTED, COND("\"encoder_hid_dim_type\":\"text_proj\""), "'encoder_hid_dim_type'" },
        { QD_E_UNSUPPORTED, COND("\"dual_cross_attention\":true"), "'dual_cross_attention'" },
        { QD_E_UNSUPPORTED, COND("\"resnet_skip_time_act\":true"), "'resnet_skip_time_act'" },
        { QD_E_UNSUPPORTED, COND("\"time_embedding_act_fn\":\"silu\""), "'time_embedding_act_fn'" },
        { QD_E_UNSUPPORTED, COND("\"timestep_post_act\":\"silu\""), "'timestep_post_act'" },
        { QD_E_UNSUPPORTED, COND("\"time_cond_proj_dim\":256"), "'time_cond_proj_dim'" },
        { QD_E_UNSUPPORTED, COND("\"cross_attention_norm\":\"layer_norm\""), "'cross_attention_norm'" },
        { QD_E_UNSUPPORTED, COND("\"num_attention_heads\":8"), "'num_attention_heads'" },
        { QD_E_UNSUPPORTED, COND("\"time_embedding_type\":\"fourier\""), "'time_embedding_type' is 'fourier'" },
        { QD_E_UNSUPPORTED, COND("\"attention_type\":\"gated\""), "'attention_type' is 'gated'" },
        { QD_E_UNSUPPORTED, COND("\"resnet_out_scale_factor\":2"), "'resnet_out_scale_factor' is 2" },
        { QD_E_UNSUPPORTED, COND("\"mid_block_type\":\"UNetMidBlock2DSimpleCrossAttn\""), "'mid_block_type'" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DConditionModel\",\"down_block_types\":[\"AttnDownBlock2D\"]}",
          "'AttnDownBlock2D'" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DConditionModel\",\"norm_num_groups\":null}",
          "'norm_num_groups'" },
        { QD_E_INVALID, COND("\"attention_head_dim\":[1,2,3]"), "'attention_head_dim' has 3 entries" },
        { QD_E_INVALID, COND("\"layers_per_block\":[]"), "'layers_per_block' has 0 entries" },
        { QD_E_FORMAT, COND("\"transformer_layers_per_block\":[[1],[2]]"), "'transformer_layers_per_block'" },
        { QD_E_FORMAT, COND("\"transformer_layers_per_block\":65"), "'transformer_layers_per_block'" },
        { QD_E_UNSUPPORTED,
          "{\"_class_name\":\"UNet2DConditionModel\",\"sample_size\":64,\"cross_attention_dim\":[8,8,9,8]}",
          "'cross_attention_dim' asks for contexts 8 and 9 wide" },
        { QD_E_INVALID, COND("\"conv_in_kernel\":4"), "'conv_in_kernel' is 4" },
        { QD_E_FORMAT, COND("\"conv_out_kernel\":17"), "'conv_out_kernel'" },
        { QD_E_FORMAT, COND("\"context_length\":0"), "'context_length'" },
        { QD_E_INVALID, COND("\"class_embed_type\":\"projection\""),
          "'projection_class_embeddings_input_dim' is missing" },
        { QD_E_UNSUPPORTED, COND("\"class_embed_type\":\"magic\""), "'class_embed_type' is 'magic'" },
        { QD_E_INVALID, COND("\"class_embeddings_concat\":true"), "'class_embeddings_concat'" },
        { QD_E_FORMAT, COND("\"only_cross_attention\":3"), "'only_cross_attention'" },
        { QD_E_INVALID, COND("\"norm_eps\":0"), "'norm_eps' is 0" },
    };
    check_refusals(rows, sizeof(rows) / sizeof(rows[0]));
}

/* More heads than channels is found by the block, which knows the width. */
static void too_many_heads(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_fails(qd_zoo_random(COND("\"attention_head_dim\":17"), 1, &g, &err), QD_E_INVALID,
                "17 heads of the 16 channels", &err);
    assert_null(g);
}

static void context_is_the_third_input(void **state)
{
    qd_graph *g = blank_graph(COND("\"num_class_embeds\":3,\"upcast_attention\":true,\"dual_cross_attention\":false"));
    static const char *const names[] = { "sample", "timestep", "encoder_hidden_states", "class_labels" };
    assert_int_equal(qd_graph_inputs(g), 4);
    for (int k = 0; k < 4; k++)
        assert_string_equal(qd_graph_node(g, qd_graph_input_at(g, k))->name, names[k]);
    const qd_shape *s = &qd_graph_node(g, qd_graph_input_at(g, 2))->shape;
    assert_int_equal(s->rank, 3);
    assert_int_equal(s->dim[1], 77);
    assert_int_equal(s->dim[2], 1280);
    qd_graph_free(g);
}

#define KLF8                                                                                                              \
    "{\"_class_name\":\"AutoencoderKL\",\"sample_size\":512,\"block_out_channels\":[128,256,512,512],"                    \
    "\"layers_per_block\":2,\"latent_channels\":4,"                                                                       \
    "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"]," \
    "\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}"

/* Parameters below a prefix of names. */
static int64_t params_below(const qd_graph *g, const char *prefix)
{
    int64_t n = 0;
    for (int k = 0; k < qd_graph_size(g); k++) {
        const qd_node *c = qd_graph_node(g, k);
        if (c->op == &qd_op_const && strncmp(c->name, prefix, strlen(prefix)) == 0)
            n += qd_tensor_count(&c->value);
    }
    return n;
}

#define VQF4                                                                                                           \
    "{\"_class_name\":\"VQModel\",\"sample_size\":256,\"block_out_channels\":[128,256,512],\"layers_per_block\":2,"    \
    "\"num_vq_embeddings\":8192,"                                                                                      \
    "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"],"                     \
    "\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}"

/* diffusion_models.md 5.1 and 5.2. */
static void published_first_stages(void **state)
{
    qd_graph *g = blank_graph(KLF8);
    assert_int_equal(qd_graph_param_count(g), 83653863);
    assert_int_equal(params_below(g, "encoder."), 34163592);
    assert_int_equal(params_below(g, "decoder."), 49490179);
    assert_int_equal(params_below(g, "quant_conv.") + params_below(g, "post_quant_conv."), 92);
    qd_graph_free(g);
    assert_int_equal(params_of(VQF4), 55322782);
}

/* Either half alone gives what the whole gives, from its own input. */
static void halves(void **state)
{
    static const char *const names[] = { "kl_three_levels", "vq_base" };
    static const char *const inputs[] = { "sample", "latent" };
    for (int k = 0; k < 4; k++) {
        qd_err err = { 0 };
        qd_graph *g = NULL, *part = NULL;
        qd_weights *w = filled_weights(qd_meta_find(golden_meta, names[k / 2]));
        check_ok(build_status(qd_meta_find(golden_meta, names[k / 2]), w, NULL, &g, &err), &err);
        check_ok(qd_zoo_part(g, inputs[k % 2], &part, &err), &err);
        assert_int_equal(qd_graph_inputs(part), 1);
        assert_string_equal(qd_graph_node(part, qd_graph_input_at(part, 0))->name, inputs[k % 2]);
        assert_true(qd_graph_param_count(part) < qd_graph_param_count(g));
        check_outputs(names[k / 2], part);
        qd_graph_free(part);
        part = NULL;
        check_fails(qd_zoo_part(g, "timestep", &part, &err), QD_E_NOT_FOUND, "'timestep'", &err);
        check_fails(qd_zoo_part(g, "decoder.conv_in", &part, &err), QD_E_NOT_FOUND, "'decoder.conv_in'", &err);
        assert_null(part);
        qd_graph_free(g);
        qd_weights_free(w);
    }
}

/* The trap of 5.2: a codebook model without scaling_factor has 1, a Gaussian one 0.18215. */
static void default_scaling(void **state)
{
    qd_graph *g = blank_graph(VQF4);
    assert_int_equal(qd_graph_find(g, "latent.unscaled"), -1);
    qd_graph_free(g);
    g = blank_graph(KLF8);
    const qd_node_id id = qd_graph_find(g, "latent.unscaled");
    assert_true(id >= 0);
    assert_true(fabs(qd_node_float(qd_graph_node(g, id), "mul") - 1.0 / 0.18215) < 1e-9);
    qd_graph_free(g);
}

#define KL(more) "{\"_class_name\":\"AutoencoderKL\"" more "}"
#define VQ(more) "{\"_class_name\":\"VQModel\"" more "}"

static void bad_first_stages(void **state)
{
    static const refusal rows[] = {
        { QD_E_FORMAT, KL(",\"latent_channels\":0"), "'latent_channels'" },
        { QD_E_FORMAT, KL(",\"sample_size\":1025"), "'sample_size'" },
        { QD_E_UNSUPPORTED, KL(",\"down_block_types\":[\"DownBlock2D\"]"), "'DownBlock2D'" },
        { QD_E_UNSUPPORTED, KL(",\"up_block_types\":[\"UpBlock2D\"]"), "'UpBlock2D'" },
        { QD_E_INVALID, KL(",\"block_out_channels\":[32,64]"), "'block_out_channels' has 2" },
        { QD_E_INVALID, KL(",\"norm_num_groups\":7"), "'norm_num_groups' is 7" },
        { QD_E_INVALID, KL(",\"scaling_factor\":0"), "'scaling_factor' is 0" },
        { QD_E_INVALID, KL(",\"shift_factor\":1e9"), "'shift_factor'" },
        { QD_E_UNSUPPORTED, KL(",\"latents_mean\":[0.5]"), "'latents_mean'" },
        { QD_E_UNSUPPORTED, KL(",\"latents_std\":[0.5]"), "'latents_std'" },
        { QD_E_FORMAT, KL(",\"use_quant_conv\":1"), "'use_quant_conv'" },
        { QD_E_UNSUPPORTED, KL(",\"act_fn\":\"mish\""), "'act_fn' is 'mish'" },
        { QD_E_FORMAT, VQ(",\"num_vq_embeddings\":0"), "'num_vq_embeddings'" },
        { QD_E_FORMAT, VQ(",\"vq_embed_dim\":-1"), "'vq_embed_dim'" },
        { QD_E_UNSUPPORTED, VQ(",\"norm_type\":\"spatial\""), "'norm_type' is 'spatial'" },
        { QD_E_UNSUPPORTED, VQ(",\"lookup_from_codebook\":true"), "'lookup_from_codebook'" },
        { QD_E_NOT_FOUND, VQ(""), "'encoder.conv_in.weight'" },
    };
    check_refusals(rows, sizeof(rows) / sizeof(rows[0]));
}

static void allocations_fail(void **state)
{
    static const char *const names[] = { "cond_base", "kl_base", "vq_base" };
    for (int k = 0; k < 3; k++) {
        const char *config = qd_meta_find(golden_meta, names[k]);
        qd_weights *w = filled_weights(config);
        build_allocations_fail(config, w);
        qd_weights_free(w);
    }
}

/* First stages from before diffusers renamed its attention (9.10). */
static void old_attention_names(void **state)
{
    static const char *const renamed[][2] = {
        { ".to_q.", ".query." }, { ".to_k.", ".key." }, { ".to_v.", ".value." }, { ".to_out.0.", ".proj_attn." }
    };
    qd_err err = { 0 };
    const char *config = qd_meta_find(golden_meta, "vq_attention");
    qd_weights *w = filled_weights(config), *old = NULL;
    qd_graph *g = NULL;
    int changed = 0;
    check_ok(qd_weights_new(&old, &err), &err);
    for (int k = 0; k < qd_weights_count(w); k++) {
        const char *have = qd_weights_name(w, k);
        char name[160];
        snprintf(name, sizeof(name), "%s", have);
        for (int j = 0; j < 4; j++) {
            const char *at = strstr(have, renamed[j][0]);
            if (at)
                snprintf(name, sizeof(name), "%.*s%s%s", (int)(at - have), have, renamed[j][1],
                         at + strlen(renamed[j][0]));
            changed += at != NULL;
        }
        check_ok(qd_weights_add(old, name, qd_weights_at(w, k), &err), &err);
    }
    assert_int_equal(changed, 8 * 5); /* weight and bias; 1 down, 2 up, 2 middles */
    check_ok(build_status(config, old, NULL, &g, &err), &err);
    check_outputs("vq_attention", g);
    qd_graph_free(g);
    qd_weights_free(old);
    qd_weights_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_networks),
        cmocka_unit_test(published_unets),
        cmocka_unit_test(bad_unets),
        cmocka_unit_test(too_many_heads),
        cmocka_unit_test(context_is_the_third_input),
        cmocka_unit_test(published_first_stages),
        cmocka_unit_test(halves),
        cmocka_unit_test(default_scaling),
        cmocka_unit_test(bad_first_stages),
        cmocka_unit_test(allocations_fail),
        cmocka_unit_test(old_attention_names),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
