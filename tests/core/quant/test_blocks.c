/* test_blocks.c - blocks found by the form of the graph: each quantized layer in one, whatever the network and its names. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "nn/nn.h"
#include "quant/recon_int.h"

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

static qd_graph *graph_of(const char *config)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    check_ok(qd_zoo_random(config, 5, &g, &err), &err);
    return g;
}

static qd_layout *layout_of(const qd_graph *g, const char *skip, bool float_edges)
{
    qd_err err = { 0 };
    qd_layout *l = NULL;
    const qd_layout_options o = {
        .skip = skip, .split_shortcut = true, .float_edges = float_edges, .w8_edges = float_edges, .w8_time = true
    };
    check_ok(qd_layout_new(g, &o, &l, &err), &err);
    return l;
}

typedef struct counts {
    int resblocks, attentions, transformers, layers, floats;
} counts;

/* What must hold whatever the network: see recon_int.h. */
static counts check_blocks(const qd_layout *l, const qd_blocks *b)
{
    counts c = { 0 };
    int *seen = qd_calloc((size_t)l->n_layers, sizeof *seen);
    bool *made = qd_calloc((size_t)qd_graph_size(l->graph), sizeof *made);
    for (int k = 0; k < qd_graph_inputs(l->graph); k++)
        made[qd_graph_input_at(l->graph, k)] = true;
    for (int k = 0; k < b->n; k++) {
        const qd_block *block = &b->block[k];
        c.resblocks += strcmp(block->kind, "resblock") == 0;
        c.attentions += strcmp(block->kind, "attention") == 0;
        c.transformers += strcmp(block->kind, "transformer") == 0;
        c.layers += strcmp(block->kind, "layer") == 0;
        c.floats += strcmp(block->kind, "float") == 0;
        assert_true(block->n_layers > 0 || strcmp(block->kind, "float") == 0);
        assert_true(block->n_feeds > 0 && block->n_entry > 0);
        assert_true(strlen(block->name) > 0 && b->cut[block->out]);
        for (int j = 0; j < block->n_layers; j++) {
            assert_true(j == 0 || block->layers[j] > block->layers[j - 1]);
            assert_null(l->layers[block->layers[j]].note);
            seen[block->layers[j]]++;
        }
        for (int j = 0; j < block->n_feeds; j++)
            assert_true(made[block->feeds[j]]); /* by a block before it */
        for (int j = 0; j < block->n_entry; j++)
            assert_true(block->entry[j] < block->out);
        made[block->out] = true;
    }
    for (int k = 0; k < l->n_layers; k++)
        if (seen[k] != !l->layers[k].note)
            fail_msg("'%s' is in %d blocks", qd_graph_node(l->graph, l->layers[k].id)->name, seen[k]);
    qd_free(made);
    qd_free(seen);
    return c;
}

static counts count_blocks(const qd_layout *l, bool single)
{
    qd_err err = { 0 };
    qd_blocks b = { 0 };
    check_ok(qd_blocks_find(l, single, &b, &err), &err);
    const counts c = check_blocks(l, &b);
    qd_blocks_clear(&b);
    return c;
}

static void check_counts(counts got, counts want)
{
    assert_int_equal(got.resblocks, want.resblocks);
    assert_int_equal(got.attentions, want.attentions);
    assert_int_equal(got.transformers, want.transformers);
    assert_int_equal(got.layers, want.layers);
    assert_int_equal(got.floats, want.floats);
}

static const qd_block *block_of(const qd_blocks *b, const char *name)
{
    for (int k = 0; k < b->n; k++)
        if (strcmp(b->block[k].name, name) == 0)
            return &b->block[k];
    fail_msg("there is no block '%s'", name);
    return NULL;
}

/* Two levels, a resnet each on the way down and two on the way up, two in the middle; attention at the lower level. */
static void unet2d(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = graph_of(PLAIN(""));
    qd_layout *l = layout_of(g, "", true);
    qd_blocks b = { 0 };
    /* One downsampler and one upsampler; the edges are in float. */
    check_counts(count_blocks(l, false), (counts){ .resblocks = 8, .attentions = 4, .layers = 2, .floats = 2 });
    check_ok(qd_blocks_find(l, false, &b, &err), &err);
    const qd_block *first = block_of(&b, "down_blocks.0.resnets.0"), *last = block_of(&b, "up_blocks.1.resnets.1");
    assert_int_equal(first->n_layers, 2);
    assert_int_equal(last->n_layers, 3); /* a shortcut too */
    /* What crosses its boundary: the image from conv_in, and the embedding of the time step. */
    assert_int_equal(first->n_entry, 2);
    bool image = false, time = false;
    for (int k = 0; k < 2; k++) {
        image |= first->entry[k] == qd_graph_find(g, "conv_in");
        time |= first->entry[k] == qd_graph_find(g, "down_blocks.0.resnets.0.temb");
    }
    assert_true(image && time);
    /* Both halves of a concat are what earlier blocks made, and the concat is the block's own. */
    assert_int_equal(last->n_entry, 3);
    assert_int_equal(block_of(&b, "up_blocks.0.attentions.1")->n_layers, 4);
    assert_string_equal(block_of(&b, "mid_block.attentions.0")->kind, "attention");
    qd_blocks_clear(&b);
    qd_layout_free(l);

    /* Edges on codes are layers like any other; one left out on request computes in float and is passed through. */
    l = layout_of(g, "", false);
    check_counts(count_blocks(l, false), (counts){ .resblocks = 8, .attentions = 4, .layers = 4 });
    qd_layout_free(l);
    l = layout_of(g, "up_blocks.0.upsamplers.0.conv, mid_block.resnets.0.conv1", true);
    check_counts(count_blocks(l, false), (counts){ .resblocks = 8, .attentions = 4, .layers = 1, .floats = 3 });

    /* Each layer alone. */
    int quantized = 0;
    for (int k = 0; k < l->n_layers; k++)
        quantized += !l->layers[k].note;
    const counts alone = count_blocks(l, true);
    assert_int_equal(alone.layers, quantized);
    assert_int_equal(alone.resblocks + alone.attentions + alone.transformers, 0);
    qd_layout_free(l);
    qd_graph_free(g);
}

/* Other forms of the same blocks: FiLM, resampling resnets, a scale at the end. */
static void other_forms(void **state)
{
    static const char *const more[] = { ",\"resnet_time_scale_shift\":\"scale_shift\"",
                                        ",\"downsample_type\":\"resnet\",\"upsample_type\":\"resnet\"",
                                        ",\"mid_block_scale_factor\":1.4142135" };
    const counts want[] = { { .resblocks = 8, .attentions = 4, .layers = 2, .floats = 2 },
                            { .resblocks = 9, .attentions = 4, .layers = 1, .floats = 2 },
                            { .resblocks = 8, .attentions = 4, .layers = 2, .floats = 2 } };
    char config[1024];
    for (int k = 0; k < 3; k++) {
        qd_err err = { 0 };
        qd_blocks b = { 0 };
        snprintf(config, sizeof config, PLAIN("%s"), more[k]);
        qd_graph *g = graph_of(config);
        qd_layout *l = layout_of(g, "", true);
        check_counts(count_blocks(l, false), want[k]);
        check_ok(qd_blocks_find(l, false, &b, &err), &err);
        (void)block_of(&b, "mid_block.resnets.0"); /* with its scale: the block's value is what others read */
        qd_blocks_clear(&b);
        qd_layout_free(l);
        qd_graph_free(g);
    }
}

/* Transformer blocks of two attentions and a feed-forward; what is around them alone. */
static void conditional(void **state)
{
    qd_err err = { 0 };
    qd_blocks b = { 0 };
    qd_graph *g = graph_of(CROSS(""));
    qd_layout *l = layout_of(g, "", true);
    const counts c = count_blocks(l, false);
    /* Four transformers: one down, two up, one in the middle; each with proj_in and proj_out beside it. */
    check_counts(c, (counts){ .resblocks = 8, .transformers = 4, .layers = 2 + 2 * 4, .floats = 2 });
    check_ok(qd_blocks_find(l, false, &b, &err), &err);
    const qd_block *t = block_of(&b, "mid_block.attentions.0.transformer_blocks.0");
    assert_string_equal(t->kind, "transformer");
    int context = 0;
    for (int k = 0; k < t->n_layers; k++) {
        const char *name = qd_graph_node(g, l->layers[t->layers[k]].id)->name;
        assert_memory_equal(name, t->name, strlen(t->name));
        context += strstr(name, "attn2.to_k") || strstr(name, "attn2.to_v");
    }
    for (int k = 0; k < l->n_layers; k++) { /* layers of the context are in it exactly when they are quantized */
        const char *name = qd_graph_node(g, l->layers[k].id)->name;
        if (strncmp(name, t->name, strlen(t->name)) == 0 && !l->layers[k].note)
            context -= strstr(name, "attn2.to_k") || strstr(name, "attn2.to_v");
    }
    assert_int_equal(context, 0);
    assert_in_range(t->n_layers, 8, 10);
    qd_blocks_clear(&b);
    qd_layout_free(l);
    qd_graph_free(g);
}

/* A layer that reads the context alone goes to the block that reads it; one that two blocks read stands alone. */
static void layers_of_the_context(void **state)
{
    qd_err err = { 0 };
    qd_blocks b = { 0 };
    qd_graph *g = graph_of(CROSS(""));
    qd_layout *l = layout_of(g, "", true);
    int adopted = 0;
    for (int k = 0; k < l->n_layers; k++) {
        qd_quant_layer *layer = &l->layers[k];
        const char *name = qd_graph_node(g, layer->id)->name;
        if (strstr(name, "attn2.to_k") || strstr(name, "attn2.to_v") || strcmp(name, "time_embedding.linear_2") == 0) {
            layer->note = NULL;
            layer->weight_only = false;
            adopted++;
        }
    }
    assert_int_equal(adopted, 9);
    const counts c = count_blocks(l, false);
    check_counts(c, (counts){ .resblocks = 8, .transformers = 4, .layers = 11, .floats = 2 });
    check_ok(qd_blocks_find(l, false, &b, &err), &err);
    assert_int_equal(block_of(&b, "time_embedding.linear_2")->n_layers, 1);
    const qd_block *t = block_of(&b, "mid_block.attentions.0.transformer_blocks.0");
    assert_int_equal(t->n_layers, 10);
    bool context = false;
    for (int k = 0; k < t->n_entry; k++)
        context |= t->entry[k] == qd_graph_find(g, "encoder_hidden_states");
    assert_true(context);
    qd_blocks_clear(&b);
    qd_layout_free(l);
    qd_graph_free(g);
}

static qd_graph *open_graph(const char *path)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_role role;
    check_ok(qd_model_open(path, NULL, &m, &err), &err);
    check_ok(qd_zoo_build(m, NULL, &g, &role, &err), &err);
    qd_model_free(m);
    return g;
}

/* The network that ships, and the same from ONNX, whose nodes have other names and whose attention is spelled out. */
static void imported(void **state)
{
    const counts want = { .resblocks = 11, .attentions = 4, .layers = 4, .floats = 2 };
    qd_graph *g = open_graph(harness_source("deploy/models/fmnist-ddpm-unet"));
    qd_layout *l = layout_of(g, "", true);
    check_counts(count_blocks(l, false), want);
    qd_layout_free(l);
    qd_graph_free(g);

    const char *path = harness_data("weights/fmnist-ddpm-unet/unet.onnx");
    if (!path)
        skip();
    g = open_graph(path);
    l = layout_of(g, "", true);
    check_counts(count_blocks(l, false), want);
    qd_layout_free(l);
    qd_graph_free(g);
}

static qd_status each_alloc(void *ctx, qd_err *err)
{
    qd_blocks b = { 0 };
    const qd_status st = qd_blocks_find(ctx, false, &b, err);
    qd_blocks_clear(&b);
    return st;
}

static void without_memory(void **state)
{
    qd_graph *g = graph_of(PLAIN(""));
    qd_layout *l = layout_of(g, "", true);
    assert_true(harness_run_each_alloc(each_alloc, l, 1000) > 1);
    qd_layout_free(l);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unet2d),      cmocka_unit_test(other_forms),
        cmocka_unit_test(conditional), cmocka_unit_test(layers_of_the_context),
        cmocka_unit_test(imported),    cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
