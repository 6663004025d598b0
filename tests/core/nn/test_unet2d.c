/* test_unet2d.c - every option of UNet2DModel against PyTorch, the published parameter totals, configs that must be refused. */
#include "golden_nets.h"

#include <stdlib.h>

static qd_weights *golden;
static qd_meta *golden_meta;

static int open_golden(void **state)
{
    qd_err err = { 0 };
    check_ok(qd_meta_new(&golden_meta, &err), &err);
    check_ok(qd_safetensors_open(harness_source("tests/golden/nn/unets.safetensors"), &golden, golden_meta, &err),
             &err);
    return 0;
}

static int close_golden(void **state)
{
    qd_weights_free(golden);
    qd_meta_free(golden_meta);
    return 0;
}

static const qd_tensor *golden_of(const char *name, const char *what)
{
    char key[80];
    snprintf(key, sizeof(key), "%s.%s", name, what);
    return qd_weights_find(golden, key);
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

        const qd_tensor *sample = golden_of(name, "sample"), *eps = golden_of(name, "eps");
        const qd_tensor *labels = golden_of(name, "class_labels");
        const void *inputs[3] = { sample->data, golden_of(name, "timestep")->data, labels ? labels->data : NULL };
        assert_int_equal(qd_graph_inputs(g), labels ? 3 : 2);
        const int64_t n = qd_tensor_count(eps);
        float *out = qd_alloc_aligned((size_t)n * sizeof(float));
        for (int b = 0; qd_backends[b]; b++) {
            /* Two float implementations of some 40 layers; values are of order 1. */
            print_message("  %s on %s\n", name, qd_backend_name(qd_backends[b]));
            run_graph(g, qd_backends[b], sample->shape.dim[0], inputs, out, NULL, 0);
            check_close(out, qd_f32(eps), n, 2e-5, 0.0);
        }
        qd_free(out);
        qd_graph_free(g);
        qd_weights_free(w);
        cases++;
    }
    assert_int_equal(cases, 22);
}

#define CIFAR10                                                                                                        \
    "{\"_class_name\":\"UNet2DModel\",\"sample_size\":32,\"block_out_channels\":[128,256,256,256],"                    \
    "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\",\"DownBlock2D\",\"DownBlock2D\"],"                      \
    "\"up_block_types\":[\"UpBlock2D\",\"UpBlock2D\",\"AttnUpBlock2D\",\"UpBlock2D\"],\"layers_per_block\":2,"         \
    "\"attention_head_dim\":null,\"downsample_padding\":0,\"flip_sin_to_cos\":false,\"freq_shift\":1,\"norm_eps\":1e-6}"
#define LDM4 "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"attention_head_dim\":32}"

/* diffusion_models.md 3.1, 3.2 and 9.1. */
static void published_totals(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = blank_graph(CIFAR10);
    int64_t macs = 0;
    const qd_shape shapes[2] = { QD_SHAPE(1, 3, 32, 32), QD_SHAPE(1) };
    assert_int_equal(qd_graph_param_count(g), 35746307);
    check_ok(qd_graph_cost(g, shapes, 2, &macs, &err), &err);
    assert_int_equal((macs + 5000000) / 10000000, 622);
    qd_graph_free(g);

    g = blank_graph(LDM4);
    assert_int_equal(qd_graph_param_count(g), 274056163);
    qd_graph_free(g);
}

static void class_defaults_are_ldm4(void **state)
{
    /* Heads change no count, but head width 8 must be the default: 448 channels in 56 heads. */
    qd_graph *g = blank_graph("{\"_class_name\":\"UNet2DModel\",\"sample_size\":64}");
    assert_int_equal(qd_graph_param_count(g), 274056163);
    const qd_node_id id = qd_graph_find(g, "down_blocks.1.attentions.0.attention");
    assert_true(id >= 0);
    assert_int_equal(qd_node_int(qd_graph_node(g, id), "heads"), 56);
    qd_graph_free(g);
}

/* 9.10 */
static void old_attention_names(void **state)
{
    static const char *const renamed[][2] = {
        { ".to_q.", ".query." }, { ".to_k.", ".key." }, { ".to_v.", ".value." }, { ".to_out.0.", ".proj_attn." }
    };
    qd_err err = { 0 };
    const char *config = qd_meta_find(golden_meta, "base");
    qd_weights *w = filled_weights(config), *old = NULL;
    int changed = 0;
    check_ok(qd_weights_new(&old, &err), &err);
    for (int k = 0; k < qd_weights_count(w); k++) {
        char name[160];
        snprintf(name, sizeof(name), "%s", qd_weights_name(w, k));
        for (int j = 0; j < 4; j++) {
            const char *at = strstr(qd_weights_name(w, k), renamed[j][0]);
            if (!at)
                continue;
            snprintf(name, sizeof(name), "%.*s%s%s", (int)(at - qd_weights_name(w, k)), qd_weights_name(w, k),
                     renamed[j][1], at + strlen(renamed[j][0]));
            changed++;
        }
        check_ok(qd_weights_add(old, name, qd_weights_at(w, k), &err), &err);
    }
    assert_int_equal(changed, 8 * 4); /* weight and bias, 1 down + 1 mid + 2 up blocks of attention */

    qd_graph *g = NULL;
    check_ok(build_status(config, old, NULL, &g, &err), &err);
    const qd_tensor *sample = golden_of("base", "sample"), *eps = golden_of("base", "eps");
    float out[2 * 2 * 8 * 8];
    run_graph(g, &qd_backend_ref, 2, (const void *[]){ sample->data, golden_of("base", "timestep")->data }, out, NULL,
              0);
    check_close(out, qd_f32(eps), qd_tensor_count(eps), 2e-5, 0.0);
    qd_graph_free(g);
    qd_weights_free(w);
    qd_weights_free(old);
}

#define TINY                                                                                                           \
    "\"sample_size\":8,\"in_channels\":1,\"out_channels\":1,\"block_out_channels\":[8,16],\"norm_num_groups\":4,"      \
    "\"down_block_types\":[\"DownBlock2D\",\"DownBlock2D\"],\"up_block_types\":[\"UpBlock2D\",\"UpBlock2D\"]"

static void bad_configs(void **state)
{
    static const struct {
        qd_status status;
        const char *config, *words;
    } rows[] = {
        { QD_E_UNSUPPORTED, "{}", "_class_name" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet3D\"}", "'UNet3D'" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\"}", "sample_size" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":2048}", "sample_size" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":\"big\"}", "sample_size" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":60}", "60x60" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"in_channels\":0}", "in_channels" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"out_channels\":-3}", "out_channels" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"center_input_sample\":1}",
          "center_input_sample" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"mid_block_type\":\"Big\"}",
          "'mid_block_type' is 'Big'" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"time_embedding_type\":\"fourier\"}",
          "'time_embedding_type' is 'fourier'" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"time_embedding_type\":\"learned\"}",
          "num_train_timesteps" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"freq_shift\":112}", "freq_shift" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"time_embedding_dim\":0}",
          "time_embedding_dim" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"block_out_channels\":[32,64]}",
          "'block_out_channels' has 2" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"block_out_channels\":[]}",
          "block_out_channels" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"block_out_channels\":[32,64,64,16384]}",
          "block_out_channels" },
        { QD_E_FORMAT,
          "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"block_out_channels\":[32,32,32,32,32,32,32,32,32,32,32,32]}",
          "block_out_channels" },
        { QD_E_UNSUPPORTED,
          "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"down_block_types\":[\"SkipDownBlock2D\"]}",
          "'SkipDownBlock2D'" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"down_block_types\":[\"UpBlock2D\"]}",
          "'down_block_types' names block 'UpBlock2D'" },
        { QD_E_UNSUPPORTED,
          "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"up_block_types\":[\"CrossAttnUpBlock2D\"]}",
          "'CrossAttnUpBlock2D'" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"up_block_types\":[3]}",
          "up_block_types" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"layers_per_block\":65}", "layers_per_block" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"downsample_padding\":2}", "downsample_padding" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"downsample_type\":\"pool\"}",
          "'downsample_type' is 'pool'" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"upsample_type\":\"fir\"}",
          "'upsample_type' is 'fir'" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"act_fn\":\"mish\"}", "'act_fn' is 'mish'" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"act_fn\":7}", "act_fn" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"resnet_time_scale_shift\":\"ada_group\"}",
          "'resnet_time_scale_shift' is 'ada_group'" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"norm_eps\":0}", "norm_eps" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"mid_block_scale_factor\":0}",
          "mid_block_scale_factor" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"norm_num_groups\":48}",
          "norm_num_groups" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"attn_norm_num_groups\":5}",
          "attn_norm_num_groups" },
        { QD_E_INVALID, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"attention_head_dim\":64}",
          "attention_head_dim 64" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"attention_head_dim\":[8]}x", "" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"add_attention\":\"yes\"}", "add_attention" },
        { QD_E_UNSUPPORTED, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"class_embed_type\":\"projection\"}",
          "'class_embed_type' is 'projection'" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNet2DModel\"," TINY ",\"num_class_embeds\":0}", "num_class_embeds" },
        { QD_E_UNSUPPORTED,
          "{\"_class_name\":\"UNet2DModel\"," TINY
          ",\"time_embedding_type\":\"learned\",\"num_train_timesteps\":10,\"class_embed_type\":\"timestep\"}",
          "class_embed_type" },
        { QD_E_INVALID,
          "{\"_class_name\":\"UNet2DModel\",\"sample_size\":64,\"block_out_channels\":[36,32,32,32],\"norm_num_groups\":32}",
          "norm_num_groups" },
    };
    qd_err err = { 0 };
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        qd_graph *g = NULL;
        check_fails(qd_zoo_random(rows[k].config, 1, &g, &err), rows[k].status, rows[k].words, &err);
        assert_null(g);
    }
}

static int warnings;
static char last_warning[200];
static void on_warn(void *ctx, const char *text)
{
    warnings++;
    snprintf(last_warning, sizeof(last_warning), "%s", text);
}

static void unknown_keys_are_told(void **state)
{
    qd_err err = { 0 };
    qd_weight_source *s = NULL;
    qd_graph *g = NULL;
    const qd_run run = { .warn = on_warn };
    qd_config *c = parse_config(
        "{\"_class_name\":\"UNet2DModel\",\"_diffusers_version\":\"0.1\",\"dropout\":0.1,\"glitter\":3," TINY "}");
    warnings = 0;
    check_ok(qd_weight_source_blank(&s, &err), &err);
    check_ok(qd_network_kind_find("UNet2DModel")->build(c, s, &run, &g, &err), &err);
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(last_warning, "'glitter'"));
    qd_graph_free(g);
    qd_weight_source_free(s);
    qd_config_free(c);
}

static void node_names_are_weight_prefixes(void **state)
{
    qd_graph *g = blank_graph("{\"_class_name\":\"UNet2DModel\"," TINY "}");
    for (int k = 0; k < qd_graph_size(g); k++) {
        const qd_node *n = qd_graph_node(g, k);
        char want[200];
        if (n->op != &qd_op_conv2d && n->op != &qd_op_linear && n->op != &qd_op_group_norm)
            continue;
        snprintf(want, sizeof(want), "%s.weight", n->name);
        assert_string_equal(qd_graph_node(g, n->input[1])->name, want);
        snprintf(want, sizeof(want), "%s.bias", n->name);
        assert_string_equal(qd_graph_node(g, n->input[2])->name, want);
    }
    assert_string_equal(qd_graph_output_name(g, 0), "eps");
    assert_string_equal(qd_graph_node(g, qd_graph_input_at(g, 0))->name, "sample");
    assert_string_equal(qd_graph_node(g, qd_graph_input_at(g, 1))->name, "timestep");

    /* One activation of the time embedding serves all resnets: 2 + 2 down, 2 mid, 3 + 3 up. */
    int *uses = qd_calloc((size_t)qd_graph_size(g), sizeof(int));
    qd_graph_uses(g, uses);
    assert_int_equal(uses[qd_graph_find(g, "time_embedding.out_act")], 12);
    qd_free(uses);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_networks),
        cmocka_unit_test(published_totals),
        cmocka_unit_test(class_defaults_are_ldm4),
        cmocka_unit_test(old_attention_names),
        cmocka_unit_test(bad_configs),
        cmocka_unit_test(unknown_keys_are_told),
        cmocka_unit_test(node_names_are_weight_prefixes),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
