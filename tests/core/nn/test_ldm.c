/* test_ldm.c - latent diffusion's own names: the same network under both names gives the same bytes, shapes tell what the config
 * leaves out, files and configs that must be refused. */
#include "golden_nets.h"

#include <stdlib.h>

/* --- a network of diffusers written as latent diffusion writes it: our own reading of diffusion_models.md 6, the other way round --- */

typedef struct layout {
    int levels, blocks;
    unsigned attention; // bit k: level k attends
    bool resnet_resampling, transformer;
} layout;

static void rename_inside(char *out, size_t size, const char *before, const char *rest, bool attention, const layout *l)
{
    static const char *const resnet[][2] = {
        { "norm1", "in_layers.0" },  { "conv1", "in_layers.2" },  { "time_emb_proj", "emb_layers.1" },
        { "norm2", "out_layers.0" }, { "conv2", "out_layers.3" }, { "conv_shortcut", "skip_connection" },
    };
    static const char *const attend[][2] = {
        { "group_norm", "norm" }, { "to_out.0", "proj_out" }, { "to_q", "qkv" }, { "to_k", "qkv" }, { "to_v", "qkv" }
    };
    const char *const(*rows)[2] = attention ? attend : resnet;
    const size_t n = attention ? 5 : 6;
    snprintf(out, size, "%s.%s", before, rest);
    for (size_t k = 0; k < n && !(attention && l->transformer); k++) {
        const size_t len = strlen(rows[k][0]);
        if (strncmp(rest, rows[k][0], len) == 0 && rest[len] == '.')
            snprintf(out, size, "%s.%s%s", before, rows[k][1], rest + len);
    }
}

static void ldm_name(char *out, size_t size, const char *name, const layout *l)
{
    static const char *const top[][2] = {
        { "conv_in.", "input_blocks.0.0." },
        { "time_embedding.linear_1.", "time_embed.0." },
        { "time_embedding.linear_2.", "time_embed.2." },
        { "class_embedding.", "label_emb." },
        { "conv_norm_out.", "out.0." },
        { "conv_out.", "out.2." },

    };
    char before[64], rest[100], what[20];
    int i, j;
    for (int k = 0; k < 6; k++)
        if (strncmp(name, top[k][0], strlen(top[k][0])) == 0) {
            snprintf(out, size, "%s%s", top[k][1], name + strlen(top[k][0]));
            return;
        }
    if (sscanf(name, "mid_block.%19[a-z].%d.%99s", what, &j, rest) == 3) {
        const bool attention = what[0] == 'a';
        snprintf(before, sizeof(before), "middle_block.%d", attention ? 1 : j == 0 ? 0 : 2);
        rename_inside(out, size, before, rest, attention, l);
    } else if (sscanf(name, "down_blocks.%d.%19[a-z].%d.%99s", &i, what, &j, rest) == 4) {
        if (what[0] == 'd') {
            const int k = 1 + i * (l->blocks + 1) + l->blocks;
            if (l->resnet_resampling) {
                snprintf(before, sizeof(before), "input_blocks.%d.0", k);
                rename_inside(out, size, before, rest, false, l);
            } else {
                snprintf(out, size, "input_blocks.%d.0.op%s", k, strchr(rest, '.'));
            }
            return;
        }
        snprintf(before, sizeof(before), "input_blocks.%d.%d", 1 + i * (l->blocks + 1) + j, what[0] == 'a');
        rename_inside(out, size, before, rest, what[0] == 'a', l);
    } else if (sscanf(name, "up_blocks.%d.%19[a-z].%d.%99s", &i, what, &j, rest) == 4) {
        if (what[0] == 'u') {
            const bool attends = l->attention >> (l->levels - 1 - i) & 1;
            snprintf(before, sizeof(before), "output_blocks.%d.%d", i * (l->blocks + 1) + l->blocks, attends ? 2 : 1);
            if (l->resnet_resampling)
                rename_inside(out, size, before, rest, false, l);
            else
                snprintf(out, size, "%s.%s", before, rest);
            return;
        }
        snprintf(before, sizeof(before), "output_blocks.%d.%d", i * (l->blocks + 1) + j, what[0] == 'a');
        rename_inside(out, size, before, rest, what[0] == 'a', l);
    } else {
        fail_msg("no rule for '%s'", name);
    }
}

static void add(qd_weights *w, const char *name, const qd_tensor *t)
{
    qd_err err = { 0 };
    check_ok(qd_weights_add(w, name, t, &err), &err);
}

/* Adds a trailing 1 to the shape: a linear layer as a convolution over tokens. */
static void add_conv1d(qd_weights *w, const char *name, const qd_tensor *t)
{
    qd_tensor v = { 0 };
    qd_tensor_share(&v, t);
    v.shape.dim[v.shape.rank++] = 1;
    add(w, name, &v);
    qd_tensor_clear(&v);
}

/* q, k, v of `heads` heads in one tensor, head by head (or whole, one after the other, with heads 1). */
static void add_qkv(qd_weights *to, const char *name, const qd_weights *from, const char *q_name, int64_t heads)
{
    qd_err err = { 0 };
    char key[200];
    const qd_tensor *part[3];
    qd_tensor t = { 0 };
    for (int k = 0; k < 3; k++) {
        snprintf(key, sizeof(key), "%s", q_name);
        strstr(key, ".to_q.")[4] = "qkv"[k];
        part[k] = qd_weights_find(from, key);
        assert_non_null(part[k]);
    }
    qd_shape shape = part[0]->shape;
    const int64_t rows = shape.dim[0], width = qd_tensor_count(part[0]) / rows, hd = rows / heads;
    shape.dim[0] *= 3;
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    float *dst = qd_f32(&t);
    for (int64_t h = 0; h < heads; h++)
        for (int k = 0; k < 3; k++)
            for (int64_t r = 0; r < hd * width; r++)
                *dst++ = qd_f32(part[k])[h * hd * width + r];
    if (shape.rank > 1)
        add_conv1d(to, name, &t);
    else
        add(to, name, &t);
    qd_tensor_clear(&t);
}

static void ema_name(char *out, size_t size, const char *inner)
{
    size_t n = (size_t)snprintf(out, size, "model_ema.diffusion_model");
    for (; *inner; inner++)
        if (*inner != '.')
            out[n++] = *inner;
    out[n] = '\0';
}

/* heads of attention blocks for the channels; 1 for the other order of q, k and v. */
typedef int64_t (*heads_for)(int64_t channels);

static qd_weights *to_ldm(const qd_weights *w, const layout *l, const char *prefix, bool ema, heads_for heads)
{
    qd_err err = { 0 };
    qd_weights *out = NULL;
    check_ok(qd_weights_new(&out, &err), &err);
    for (int k = 0; k < qd_weights_count(w); k++) {
        char inner[200], name[300];
        const char *ours = qd_weights_name(w, k);
        const qd_tensor *t = qd_weights_at(w, k);
        const bool spatial = !l->transformer && strstr(ours, ".attentions.");
        if (spatial && (strstr(ours, ".to_k.") || strstr(ours, ".to_v.")))
            continue;
        ldm_name(inner, sizeof(inner), ours, l);
        snprintf(name, sizeof(name), "%s%s", prefix, inner);
        if (ema)
            ema_name(name, sizeof(name), inner);
        if (spatial && strstr(ours, ".to_q."))
            add_qkv(out, name, w, ours, heads(t->shape.dim[0]));
        else if (spatial && t->shape.rank == 2)
            add_conv1d(out, name, t);
        else
            add(out, name, t);
    }
    return out;
}

/* --- both ways to build --- */

/* eps of one small sample; every input drawn from its place. */
static float *run_net(const qd_graph *g, int64_t *n)
{
    const void *inputs[QD_MAX_INPUTS];
    float *data[QD_MAX_INPUTS];
    const int n_inputs = qd_graph_inputs(g);
    for (int k = 0; k < n_inputs; k++) {
        qd_shape s = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        int64_t count = 0;
        s.dim[0] = 1;
        check_ok(qd_shape_count(&s, &count, NULL), NULL);
        inputs[k] = data[k] = qd_alloc_aligned((size_t)count * sizeof(float));
        harness_normal(data[k], count, 100 + (uint64_t)k, 1.0f);
        if (s.rank == 1)
            data[k][0] = 2.0f;
        if (k == 0)
            *n = count;
    }
    float *out = qd_alloc_aligned((size_t)*n * sizeof(float));
    run_graph(g, &qd_backend_cpu, 1, inputs, out, NULL, 0);
    for (int k = 0; k < n_inputs; k++)
        qd_free(data[k]);
    return out;
}

static void check_same(const char *theirs, const qd_weights *ldm, const char *ours, const qd_weights *w)
{
    qd_err err = { 0 };
    qd_graph *a = NULL, *b = NULL;
    int64_t n = 0;
    check_ok(build_status(ours, w, NULL, &a, &err), &err);
    check_ok(build_status(theirs, ldm, NULL, &b, &err), &err);
    assert_int_equal(qd_graph_param_count(a), qd_graph_param_count(b));
    float *x = run_net(a, &n), *y = run_net(b, &n);
    assert_memory_equal(x, y, (size_t)n * sizeof(float));
    qd_free(x);
    qd_free(y);
    qd_graph_free(a);
    qd_graph_free(b);
}

static int64_t heads_of_16(int64_t channels)
{
    return channels / 16;
}

static int64_t one_head(int64_t channels)
{
    return 1;
}

static int64_t four_heads(int64_t channels)
{
    return 4;
}

#define SPATIAL                                                                                                        \
    "{\"_class_name\":\"UNet2DModel\",\"sample_size\":8,\"in_channels\":3,\"out_channels\":3,"                         \
    "\"block_out_channels\":[32,64],\"layers_per_block\":1,\"num_class_embeds\":5,\"attention_head_dim\":16,"          \
    "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\"],\"up_block_types\":[\"AttnUpBlock2D\",\"UpBlock2D\"]}"
static const layout spatial_layout = { .levels = 2, .blocks = 1, .attention = 2 };

static void attention_blocks(void **state)
{
    qd_weights *w = filled_weights(SPATIAL);
    qd_weights *l = to_ldm(w, &spatial_layout, "model.diffusion_model.", false, heads_of_16);
    /* Everything from shapes but what none tells; other parts of the checkpoint do not matter. */
    add(l, "betas", qd_weights_at(w, 0));
    add(l, "first_stage_model.encoder.conv_in.bias", qd_weights_at(w, 0));
    check_same("{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_head_channels\":16,\"num_heads\":-1}", l, SPATIAL,
               w);
    /* Everything said. */
    check_same("{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_head_channels\":16,\"in_channels\":3,"
               "\"out_channels\":3,\"model_channels\":32,\"channel_mult\":[1,2],\"num_res_blocks\":1,"
               "\"attention_resolutions\":[2],\"num_classes\":5}",
               l, SPATIAL, w);
    qd_weights_free(l);

    /* Without a prefix, q before k before v. */
    l = to_ldm(w, &spatial_layout, "", false, one_head);
    check_same("{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_head_channels\":16,"
               "\"use_new_attention_order\":true}",
               l, SPATIAL, w);
    qd_weights_free(l);
    qd_weights_free(w);
}

#define CHURCH                                                                                                         \
    "{\"_class_name\":\"UNet2DModel\",\"sample_size\":8,\"in_channels\":4,\"out_channels\":4,"                         \
    "\"block_out_channels\":[32,32,64],\"layers_per_block\":2,\"attention_head_dim\":%d,"                              \
    "\"resnet_time_scale_shift\":\"scale_shift\",\"attn_norm_num_groups\":32,"                                         \
    "\"downsample_type\":\"resnet\",\"upsample_type\":\"resnet\","                                                     \
    "\"down_block_types\":[\"AttnDownBlock2D\",\"AttnDownBlock2D\",\"DownBlock2D\"],"                                  \
    "\"up_block_types\":[\"ResnetUpsampleBlock2D\",\"AttnUpBlock2D\",\"AttnUpBlock2D\"]}"

/* The features of LDM-8, which diffusers' one attention_head_dim can express here because only the middle is wider: there the head
 * counts differ, so that block is compared by its heads alone. */
static void resnet_resampling(void **state)
{
    static const layout l = { .levels = 3, .blocks = 2, .attention = 3, .resnet_resampling = true };
    char ours[800];
    qd_err err = { 0 };
    snprintf(ours, sizeof(ours), CHURCH, 16);
    qd_weights *w = filled_weights(ours), *ldm = to_ldm(w, &l, "model.diffusion_model.", false, heads_of_16);
    check_same("{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_head_channels\":16}", ldm, ours, w);
    qd_weights_free(ldm);

    qd_graph *g = NULL;
    ldm = to_ldm(w, &l, "model.diffusion_model.", false, four_heads);
    check_ok(build_status("{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_heads\":4}", ldm, NULL, &g, &err),
             &err);
    static const char *const at[] = { "down_blocks.0.attentions.0.attention", "mid_block.attentions.0.attention" };
    static const double scale[] = { 0.3535533905932738, 0.25 }; /* heads 8 and 16 wide */
    for (int k = 0; k < 2; k++) {
        const qd_node *n = qd_graph_node(g, qd_graph_find(g, at[k]));
        assert_int_equal(qd_node_int(n, "heads"), 4);
        assert_true(fabs(qd_node_float(n, "scale") - scale[k]) < 1e-12);
    }
    /* And every q came out as it went in. */
    const qd_tensor *q = qd_weights_find(w, "mid_block.attentions.0.to_q.weight");
    const qd_node *have = qd_graph_node(g, qd_graph_find(g, "mid_block.attentions.0.to_q.weight"));
    assert_memory_equal(have->value.data, q->data, qd_tensor_bytes(q));
    qd_graph_free(g);
    qd_weights_free(ldm);
    qd_weights_free(w);
}

#define CROSS                                                                                                          \
    "{\"_class_name\":\"UNet2DConditionModel\",\"sample_size\":8,\"block_out_channels\":[32,64],"                      \
    "\"layers_per_block\":1,\"attention_head_dim\":4,\"cross_attention_dim\":10,\"context_length\":3,"                 \
    "\"transformer_layers_per_block\":2,\"use_linear_projection\":%s,"                                                 \
    "\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\"],"                                                 \
    "\"up_block_types\":[\"CrossAttnUpBlock2D\",\"UpBlock2D\"]}"
#define CROSS_LDM "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_heads\":4,\"context_length\":3%s}"

static void transformers(void **state)
{
    static const layout l = { .levels = 2, .blocks = 1, .attention = 2, .transformer = true };
    for (int linear = 0; linear < 2; linear++) {
        char ours[800], theirs[300];
        snprintf(ours, sizeof(ours), CROSS, linear ? "true" : "false");
        snprintf(theirs, sizeof(theirs), CROSS_LDM, "");
        qd_weights *w = filled_weights(ours), *ldm = to_ldm(w, &l, "diffusion_model.", false, one_head);
        check_same(theirs, ldm, ours, w);
        qd_weights_free(ldm);
        qd_weights_free(w);
    }
}

/* A file with both: the averaged copies unless the config says otherwise. */
static void averaged_copies(void **state)
{
    static const layout l = { .levels = 2, .blocks = 1, .attention = 2, .transformer = true };
    char ours[800], theirs[300];
    qd_err err = { 0 };
    qd_graph *g = NULL;
    snprintf(ours, sizeof(ours), CROSS, "false");
    qd_weights *w = filled_weights(ours), *other = NULL;
    qd_weights *both = to_ldm(w, &l, "", true, one_head);
    check_ok(qd_weights_new(&other, &err), &err);
    for (int k = 0; k < qd_weights_count(w); k++) {
        qd_tensor t = { 0 };
        check_ok(qd_tensor_copy(&t, qd_weights_at(w, k), NULL, &err), &err);
        for (int64_t j = 0; j < qd_tensor_count(&t); j++)
            qd_f32(&t)[j] *= 0.9f;
        add(other, qd_weights_name(w, k), &t);
        qd_tensor_clear(&t);
    }
    qd_weights *raw = to_ldm(other, &l, "model.diffusion_model.", false, one_head);
    for (int k = 0; k < qd_weights_count(raw); k++)
        add(both, qd_weights_name(raw, k), qd_weights_at(raw, k));
    add(both, "model_ema.decay", qd_weights_at(w, 0));

    snprintf(theirs, sizeof(theirs), CROSS_LDM, "");
    check_same(theirs, both, ours, w);
    snprintf(theirs, sizeof(theirs), CROSS_LDM, ",\"use_ema\":true");
    check_same(theirs, both, ours, w);
    snprintf(theirs, sizeof(theirs), CROSS_LDM, ",\"use_ema\":false");
    check_same(theirs, both, ours, other);
    snprintf(theirs, sizeof(theirs), CROSS_LDM, ",\"use_ema\":true");
    check_fails(build_status(theirs, raw, NULL, &g, &err), QD_E_INVALID, "'use_ema'", &err);
    qd_weights_free(raw);
    qd_weights_free(both);
    qd_weights_free(other);
    qd_weights_free(w);
}

/* --- published totals (diffusion_models.md 9.1) --- */

static void check_total(const char *config, int64_t total)
{
    qd_graph *g = blank_graph(config);
    assert_int_equal(qd_graph_param_count(g), total);
    qd_graph_free(g);
}

static void published_totals(void **state)
{
    check_total("{\"_class_name\":\"UNetModel\",\"image_size\":32,\"in_channels\":4,\"out_channels\":4,"
                "\"model_channels\":192,\"attention_resolutions\":[1,2,4,8],\"num_res_blocks\":2,"
                "\"channel_mult\":[1,2,2,4,4],\"num_heads\":8,\"use_scale_shift_norm\":true,\"resblock_updown\":true}",
                294966916);
    check_total("{\"_class_name\":\"UNetModel\",\"image_size\":64,\"in_channels\":3,\"out_channels\":3,"
                "\"model_channels\":224,\"attention_resolutions\":[8,4,2],\"num_res_blocks\":2,"
                "\"channel_mult\":[1,2,3,4],\"num_head_channels\":32}",
                274056163);
    check_total("{\"_class_name\":\"UNetModel\",\"image_size\":64,\"in_channels\":3,\"out_channels\":3,"
                "\"model_channels\":192,\"attention_resolutions\":[8,4,2],\"num_res_blocks\":2,"
                "\"channel_mult\":[1,2,3,5],\"num_heads\":1,\"use_spatial_transformer\":true,\"context_dim\":512}",
                400920579);
    check_total("{\"_class_name\":\"UNetModel\",\"image_size\":64,\"in_channels\":4,\"out_channels\":4,"
                "\"model_channels\":320,\"attention_resolutions\":[4,2,1],\"num_res_blocks\":2,"
                "\"channel_mult\":[1,2,4,4],\"num_heads\":8,\"use_spatial_transformer\":true,\"context_dim\":768}",
                859520964);
}

/* --- what must be refused --- */

#define SMALL "\"image_size\":8,\"num_heads\":1,\"model_channels\":32"
#define LDM(more) "{\"_class_name\":\"UNetModel\"," SMALL more "}"

static void bad_configs(void **state)
{
    static const struct {
        qd_status status;
        const char *config, *words;
    } rows[] = {
        { QD_E_INVALID, "{\"_class_name\":\"UNetModel\"}", "'image_size' is missing" },
        { QD_E_INVALID, "{\"_class_name\":\"UNetModel\",\"image_size\":8}", "'num_heads' and 'num_head_channels'" },
        { QD_E_INVALID, "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_heads\":-1}", "'num_head_channels'" },
        { QD_E_FORMAT, "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_heads\":0}", "'num_heads'" },
        { QD_E_INVALID, "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_heads\":1}", "'model_channels'" },
        { QD_E_UNSUPPORTED, LDM(",\"n_embed\":10"), "'n_embed'" },
        { QD_E_FORMAT, LDM(",\"dims\":3"), "'dims'" },
        { QD_E_UNSUPPORTED, LDM(",\"conv_resample\":false"), "'conv_resample'" },
        { QD_E_UNSUPPORTED, LDM(",\"num_heads_upsample\":2"), "'num_heads_upsample'" },
        { QD_E_INVALID, LDM(",\"channel_mult\":[]"), "'channel_mult' is empty" },
        { QD_E_UNSUPPORTED, LDM(",\"channel_mult\":[2,4]"), "'model_channels' is 32" },
        { QD_E_LIMIT, LDM(",\"channel_mult\":[1,300]"), "level 1 has 9600 channels" },
        { QD_E_UNSUPPORTED, LDM(",\"channel_mult\":[1,1,1,1,1]"), "'image_size' is 8; with 5 levels" },
        { QD_E_INVALID, "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_heads\":1,\"model_channels\":40}",
          "40 channels" },
        { QD_E_INVALID, "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_heads\":3,\"model_channels\":32}",
          "'num_heads' is 3" },
        { QD_E_INVALID,
          "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_head_channels\":5,\"model_channels\":32}",
          "'num_head_channels' is 5" },
        { QD_E_INVALID, LDM(",\"use_spatial_transformer\":true"), "'context_dim'" },
        { QD_E_FORMAT, LDM(",\"in_channels\":0"), "'in_channels'" },
        { QD_E_FORMAT, LDM(",\"num_res_blocks\":[1,2]"), "'num_res_blocks'" },
        { QD_E_FORMAT, LDM(",\"use_ema\":1,\"resblock_updown\":1"), "'resblock_updown'" },
    };
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        qd_err err = { 0 };
        qd_graph *g = NULL;
        qd_weight_source *s = NULL;
        qd_config *c = parse_config(rows[k].config);
        print_message("  %s\n", rows[k].config);
        check_ok(qd_weight_source_blank(&s, &err), &err);
        check_fails(qd_network_kind_find("UNetModel")->build(c, s, NULL, &g, &err), rows[k].status, rows[k].words,
                    &err);
        assert_null(g);
        qd_weight_source_free(s);
        qd_config_free(c);
    }
}

/* The file's own names stand in the words. */
static void bad_files(void **state)
{
    static const char config[] = "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_head_channels\":16}";
    static const struct {
        const char *without, *words;
        qd_status status;
    } rows[] = {
        { "input_blocks.0.0.weight", "it is no latent diffusion U-Net", QD_E_FORMAT },
        { "out.2.weight", "first or last convolution", QD_E_FORMAT },
        { "output_blocks.0.0.in_layers.0.weight", "no output_blocks", QD_E_FORMAT },
        { "output_blocks.3.0.in_layers.0.weight", "do not divide into levels", QD_E_FORMAT },
        { "input_blocks.3.0.out_layers.3.weight", "begins without a residual block", QD_E_FORMAT },
        { "middle_block.1.qkv.bias", "'model.diffusion_model.middle_block.1.qkv.bias'", QD_E_NOT_FOUND },
        { "output_blocks.1.2.conv.bias", "'model.diffusion_model.output_blocks.1.2.conv.bias'", QD_E_NOT_FOUND },
    };
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_weights *w = filled_weights(SPATIAL);
    qd_weights *whole = to_ldm(w, &spatial_layout, "model.diffusion_model.", false, heads_of_16);
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        qd_weights *part = NULL;
        char gone[160];
        snprintf(gone, sizeof(gone), "model.diffusion_model.%s", rows[k].without);
        assert_non_null(qd_weights_find(whole, gone));
        check_ok(qd_weights_new(&part, &err), &err);
        for (int j = 0; j < qd_weights_count(whole); j++)
            if (strcmp(qd_weights_name(whole, j), gone))
                add(part, qd_weights_name(whole, j), qd_weights_at(whole, j));
        check_fails(build_status(config, part, NULL, &g, &err), rows[k].status, rows[k].words, &err);
        assert_null(g);
        qd_weights_free(part);
    }
    add(whole, "model.diffusion_model.middle_block.3.weight", qd_weights_at(w, 0));
    check_fails(build_status(config, whole, NULL, &g, &err), QD_E_FORMAT,
                "'model.diffusion_model.middle_block.3.weight'", &err);
    check_fails(build_status("{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_heads\":1,\"in_channels\":4}",
                             whole, NULL, &g, &err),
                QD_E_FORMAT, "'model.diffusion_model.input_blocks.0.0.weight' has shape [32, 3, 3, 3]", &err);

    const qd_model bare = { .weights = whole };
    qd_role role;
    check_fails(qd_zoo_build(&bare, NULL, &g, &role, &err), QD_E_UNSUPPORTED, "UNetModel", &err);
    qd_weights_free(whole);
    qd_weights_free(w);
}

/* Shapes are believed only as far as they fit: each tensor in turn gets shapes no network has. */
static void strange_shapes(void **state)
{
    static const char *const configs[] = { "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_head_channels\":16}",
                                           "{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_heads\":2}" };
    const qd_shape shapes[] = { { .rank = 0 },
                                QD_SHAPE(0),
                                QD_SHAPE(3, 0),
                                QD_SHAPE(0, 3, 3, 3),
                                QD_SHAPE(31, 3, 3, 3),
                                QD_SHAPE(32, 0, 3, 3),
                                QD_SHAPE(1, 1, 1, 1),
                                QD_SHAPE(9000, 1, 1, 1),
                                QD_SHAPE(1, 1, 1, 1, 1, 1, 1, 1) };
    static const layout layouts[] = { { .levels = 2, .blocks = 1, .attention = 2 },
                                      { .levels = 2, .blocks = 1, .attention = 2, .transformer = true } };
    char cross[800];
    snprintf(cross, sizeof(cross), CROSS, "false");
    for (int which = 0; which < 2; which++) {
        qd_weights *w = filled_weights(which ? cross : SPATIAL);
        qd_weights *whole = to_ldm(w, &layouts[which], "", false, heads_of_16);
        const int n = qd_weights_count(whole), n_shapes = (int)(sizeof(shapes) / sizeof(shapes[0]));
        for (int k = 0; k < n * n_shapes; k++) {
            qd_err err = { 0 };
            qd_weights *part = NULL;
            qd_graph *g = NULL;
            qd_tensor t = { 0 };
            check_ok(qd_weights_new(&part, &err), &err);
            check_ok(qd_tensor_init(&t, QD_F32, &shapes[k % n_shapes], NULL, &err), &err);
            for (int j = 0; j < n; j++)
                add(part, qd_weights_name(whole, j), j == k / n_shapes ? &t : qd_weights_at(whole, j));
            const qd_status st = build_status(configs[which], part, NULL, &g, &err);
            if (!st || !err.text[0])
                fail_msg("'%s' with shape %d of the list was accepted", qd_weights_name(whole, k / n_shapes),
                         k % n_shapes);
            qd_tensor_clear(&t);
            qd_weights_free(part);
        }
        qd_weights_free(whole);
        qd_weights_free(w);
    }
}

/* --- the original DDPM code's names (3.1), by string surgery from the other side --- */

static void swap(char *name, size_t size, const char *have, const char *want)
{
    char copy[200];
    const char *at = strstr(name, have);
    if (!at)
        return;
    snprintf(copy, sizeof(copy), "%.*s%s%s", (int)(at - name), name, want, at + strlen(have));
    snprintf(name, size, "%s", copy);
}

static qd_weights *to_ddpm(const qd_weights *w, int levels, const char *prefix)
{
    static const char *const rows[][2] = {
        { "time_embedding.linear_1", "temb.dense.0" },
        { "time_embedding.linear_2", "temb.dense.1" },
        { "mid_block.resnets.0", "mid.block_1" },
        { "mid_block.resnets.1", "mid.block_2" },
        { "mid_block.attentions.0", "mid.attn_1" },
        { ".downsamplers.0.", ".downsample." },
        { ".upsamplers.0.", ".upsample." },
        { ".resnets.", ".block." },
        { ".attentions.", ".attn." },
        { "conv_norm_out", "norm_out" },
        { "time_emb_proj", "temb_proj" },
        { "conv_shortcut", "nin_shortcut" },
        { ".group_norm.", ".norm." },
        { ".to_q.", ".q." },
        { ".to_k.", ".k." },
        { ".to_v.", ".v." },
        { ".to_out.0.", ".proj_out." },
        { "down_blocks.", "down." },
    };
    qd_err err = { 0 };
    qd_weights *out = NULL;
    check_ok(qd_weights_new(&out, &err), &err);
    for (int k = 0; k < qd_weights_count(w); k++) {
        char name[300], have[40], want[40];
        const char *ours = qd_weights_name(w, k);
        snprintf(name, sizeof(name), "%s%s", prefix, ours);
        for (size_t j = 0; j < sizeof(rows) / sizeof(rows[0]); j++)
            swap(name, sizeof(name), rows[j][0], rows[j][1]);
        for (int i = 0; i < levels; i++) {
            snprintf(have, sizeof(have), "up_blocks.%d.", i);
            snprintf(want, sizeof(want), "up.%d.", levels - 1 - i);
            swap(name, sizeof(name), have, want);
        }
        qd_tensor t = { 0 };
        qd_tensor_share(&t, qd_weights_at(w, k));
        const bool attention = strstr(ours, ".attentions.") && t.shape.rank == 2;
        for (int j = 0; j < 2 && attention; j++) /* 1x1 convolutions there */
            t.shape.dim[t.shape.rank++] = 1;
        add(out, name, &t);
        qd_tensor_clear(&t);
    }
    return out;
}

#define VQ                                                                                                             \
    "{\"_class_name\":\"VQModel\",\"sample_size\":8,\"block_out_channels\":[8,12],\"norm_num_groups\":4,"              \
    "\"num_vq_embeddings\":9,\"down_block_types\":[\"DownEncoderBlock2D\",\"AttnDownEncoderBlock2D\"],"                \
    "\"up_block_types\":[\"AttnUpDecoderBlock2D\",\"UpDecoderBlock2D\"]}"
#define KL "{\"_class_name\":\"AutoencoderKL\",\"sample_size\":8,\"block_out_channels\":[8],\"norm_num_groups\":4}"

/* The same constants under the same nodes. */
static void check_same_weights(const char *config, const qd_weights *w, const qd_weights *renamed)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    int n = 0;
    check_ok(build_status(config, renamed, NULL, &g, &err), &err);
    for (int k = 0; k < qd_graph_size(g); k++) {
        const qd_node *c = qd_graph_node(g, k);
        if (c->op != &qd_op_const)
            continue;
        const qd_tensor *t = qd_weights_find(w, c->name);
        assert_non_null(t);
        assert_true(qd_shape_equal(&t->shape, &c->shape));
        assert_memory_equal(c->value.data, t->data, qd_tensor_bytes(t));
        n++;
    }
    assert_int_equal(n, qd_weights_count(w));
    qd_graph_free(g);
}

static void original_ddpm_names(void **state)
{
    static const char unet[] =
        "{\"_class_name\":\"UNet2DModel\",\"sample_size\":8,\"block_out_channels\":[8,16,12],\"norm_num_groups\":4,"
        "\"attention_head_dim\":null,\"downsample_padding\":0,"
        "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\",\"DownBlock2D\"],"
        "\"up_block_types\":[\"UpBlock2D\",\"AttnUpBlock2D\",\"UpBlock2D\"]}";
    static const struct {
        const char *config, *prefix, *present;
        int levels;
    } rows[] = {
        { unet, "", "up.0.block.2.nin_shortcut.weight", 3 },
        { VQ, "", "decoder.up.1.attn.0.q.weight", 2 },
        { VQ, "first_stage_model.", "first_stage_model.encoder.down.0.downsample.conv.bias", 2 },
        { KL, "first_stage_model.", "first_stage_model.post_quant_conv.weight", 1 },
    };
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        qd_err err = { 0 };
        qd_graph *g = NULL;
        qd_weights *w = filled_weights(rows[k].config), *d = to_ddpm(w, rows[k].levels, rows[k].prefix);
        assert_non_null(qd_weights_find(d, rows[k].present));
        if (rows[k].prefix[0]) /* in a whole checkpoint */
            add(d, "model.diffusion_model.out.2.bias", qd_weights_at(w, 0));
        check_same_weights(rows[k].config, w, d);
        char extra[80];
        snprintf(extra, sizeof(extra), "%sconv_extra.bias", rows[k].prefix);
        add(d, extra, qd_weights_at(w, 0));
        check_fails(build_status(rows[k].config, d, NULL, &g, &err), QD_E_FORMAT, extra, &err);
        assert_null(g);
        qd_weights_free(d);
        qd_weights_free(w);
    }
}

static void allocations_fail(void **state)
{
    qd_weights *w = filled_weights(SPATIAL);
    qd_weights *l = to_ldm(w, &spatial_layout, "model.diffusion_model.", false, heads_of_16);
    build_allocations_fail("{\"_class_name\":\"UNetModel\",\"image_size\":8,\"num_head_channels\":16}", l);
    qd_weights_free(l);
    qd_weights_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_blocks), cmocka_unit_test(resnet_resampling), cmocka_unit_test(transformers),
        cmocka_unit_test(averaged_copies),  cmocka_unit_test(published_totals),  cmocka_unit_test(bad_configs),
        cmocka_unit_test(bad_files),        cmocka_unit_test(strange_shapes),    cmocka_unit_test(original_ddpm_names),
        cmocka_unit_test(allocations_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
