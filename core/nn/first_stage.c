/* first_stage.c - the decoder a latent diffusion model came with, wherever it lies (diffusion_models.md 5 and 6).
 *
 * A pipeline keeps it in a folder with a config of its own. A checkpoint of CompVis keeps it among the tensors of the same file
 * without a config: there the shapes say what the config of the class would have said. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "nn/nn_int.h"

#define PREFIX "first_stage_model."
#define CLASS_TABLE "class_table" /* of context.safetensors */

/* --- what shapes say --- */

typedef struct stage {
    const qd_weights *weights;
    int levels, layers;
    int64_t channels[QD_NN_MAX_LEVELS];
} stage;

static const qd_tensor *find(const stage *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static const qd_tensor *find(const stage *s, const char *fmt, ...)
{
    char name[QD_NN_NAME];
    va_list args;
    int n = snprintf(name, sizeof(name), PREFIX);
    va_start(args, fmt);
    vsnprintf(name + n, sizeof(name) - (size_t)n, fmt, args);
    va_end(args);
    return qd_weights_find(s->weights, name);
}

static int64_t dim(const qd_tensor *t, int k)
{
    return t && k < t->shape.rank ? t->shape.dim[k] : 0;
}

/* "key": ["name", ...] for the levels, in order of use. */
static void add_blocks(const stage *s, qd_buf *b, bool up)
{
    qd_buf_addf(b, ", \"%s_block_types\": [", up ? "up" : "down");
    for (int k = 0; k < s->levels; k++) {
        const int level = up ? s->levels - 1 - k : k;
        const bool attends =
            find(s, up ? "decoder.up.%d.attn.0.norm.weight" : "encoder.down.%d.attn.0.norm.weight", level);
        qd_buf_addf(b, "%s\"%s%s\"", k ? ", " : "", attends ? "Attn" : "",
                    up ? "UpDecoderBlock2D" : "DownEncoderBlock2D");
    }
    qd_buf_adds(b, "]");
}

/* scale_factor: of the config, of the file's buffer, or what the class was published with. VQ latents are not scaled. */
static qd_status read_scale(const qd_model *m, bool vq, double *out, qd_err *err)
{
    qd_tensor f = { 0 };
    const qd_tensor *kept = qd_weights_find(m->weights, "scale_factor");
    *out = vq ? 1.0 : 0.18215;
    if (kept && qd_tensor_count(kept) == 1) {
        const qd_status st = qd_tensor_cast(&f, kept, QD_F32, NULL, err);
        if (st)
            return qd_fail_in(err, st, "tensor 'scale_factor'");
        *out = qd_f32(&f)[0];
        qd_tensor_clear(&f);
    }
    return m->config ? qd_config_number(m->config, "scale_factor", out, err) : QD_OK;
}

/* The config that diffusers would have written for these tensors. */
static qd_status infer_config(const qd_model *m, qd_config **out, qd_err *err)
{
    qd_buf b;
    stage s = { .weights = m->weights };
    double scale;
    const qd_tensor *codes = find(&s, "quantize.embedding.weight"), *first = find(&s, "encoder.conv_in.weight"),
                    *inner = find(&s, "decoder.conv_in.weight"), *last = find(&s, "decoder.conv_out.weight"),
                    *post = find(&s, "post_quant_conv.weight");
    qd_status st = read_scale(m, codes != NULL, &scale, err);
    if (st)
        return st;
    for (; s.levels < QD_NN_MAX_LEVELS; s.levels++) {
        s.channels[s.levels] = dim(find(&s, "encoder.down.%d.block.0.conv1.weight", s.levels), 0);
        if (!s.channels[s.levels])
            break;
    }
    while (s.layers < QD_NN_MAX_LAYERS && find(&s, "encoder.down.0.block.%d.conv1.weight", s.layers))
        s.layers++;
    if (!s.levels || !dim(first, 1) || !dim(last, 0) || !dim(post, 1) || !dim(inner, 1))
        return qd_fail(err, QD_E_FORMAT, "the file has a first stage (" PREFIX "*), but not all of its tensors");
    if (!codes && dim(post, 1) != dim(post, 0))
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "tensor '" PREFIX
                       "post_quant_conv.weight' turns %lld channels into %lld; only a square one is supported",
                       (long long)dim(post, 1), (long long)dim(post, 0));

    qd_buf_init(&b, 0);
    qd_buf_addf(&b,
                "{\"_class_name\": \"%s\", \"in_channels\": %lld, \"out_channels\": %lld, \"latent_channels\": %lld",
                codes ? "VQModel" : "AutoencoderKL", (long long)dim(first, 1), (long long)dim(last, 0),
                (long long)dim(inner, 1));
    qd_buf_addf(&b, ", \"layers_per_block\": %d, \"scaling_factor\": %.17g, \"mid_block_add_attention\": %s", s.layers,
                scale, find(&s, "decoder.mid.attn_1.norm.weight") ? "true" : "false");
    if (codes)
        qd_buf_addf(&b, ", \"num_vq_embeddings\": %lld, \"vq_embed_dim\": %lld", (long long)dim(codes, 0),
                    (long long)dim(codes, 1));
    qd_buf_adds(&b, ", \"block_out_channels\": [");
    for (int k = 0; k < s.levels; k++)
        qd_buf_addf(&b, "%s%lld", k ? ", " : "", (long long)s.channels[k]);
    qd_buf_adds(&b, "]");
    add_blocks(&s, &b, false);
    add_blocks(&s, &b, true);
    qd_buf_adds(&b, "}");
    st = b.failed ? qd_fail(err, QD_E_NOMEM, "out of memory for a config")
                  : qd_config_parse(b.data, b.size, "the first stage's shapes", out, err);
    qd_buf_clear(&b);
    return st;
}

/* --- building --- */

/* The network of that config for these latents; `alone`: every tensor of the file is its own. */
static qd_status build_for(const qd_config *config, const qd_weights *w, bool alone, const qd_shape *sample,
                           const qd_run *run, qd_graph **out, qd_err *err)
{
    int64_t channels[QD_NN_MAX_LEVELS] = { 0 };
    int levels = 1;
    qd_config *sized = NULL;
    qd_weight_source *source = NULL;
    qd_graph *whole = NULL, *part = NULL;
    const char *class = NULL;
    qd_status st = qd_config_string(config, "_class_name", &class, err);
    const qd_network_kind *kind = class ? qd_network_kind_find(class) : NULL;
    if (st)
        return st;
    if (kind != &qd_kind_autoencoder_kl && kind != &qd_kind_vq_model)
        return qd_fail(err, QD_E_UNSUPPORTED, "the first stage is a '%s'; known: %s, %s",
                       class ? class : "nameless class", qd_kind_autoencoder_kl.name, qd_kind_vq_model.name);
    /* Its config names the size it was trained at; here it decodes what the denoiser makes. */
    st = qd_config_ints(config, "block_out_channels", 1, QD_NN_MAX_CHANNELS, channels, QD_NN_MAX_LEVELS, &levels, err);
    if (st)
        return st;
    const int64_t size[2] = { sample->dim[2] << (levels - 1), sample->dim[3] << (levels - 1) };
    st = qd_config_with_ints(config, "sample_size", size, 2, &sized, err);
    if (!st)
        st = qd_weight_source_file(w, qd_run_budget(run), &source, err);
    if (!st)
        st = kind->build(sized, source, run, &whole, err);
    if (!st && alone)
        st = qd_weight_source_used_up(source, err);
    if (!st)
        st = qd_zoo_part(whole, "latent", &part, err);
    if (st)
        goto out;
    const int64_t wants = qd_graph_node(part, qd_graph_find(part, "latent"))->shape.dim[1];
    if (wants != sample->dim[1]) {
        st = qd_fail(err, QD_E_INVALID, "the first stage decodes latents of %lld channels, the denoiser makes %lld",
                     (long long)wants, (long long)sample->dim[1]);
        goto out;
    }
    *out = part;
    part = NULL;
out:
    qd_graph_free(part);
    qd_graph_free(whole);
    qd_weight_source_free(source);
    qd_config_free(sized);
    return st;
}

qd_status qd_zoo_decoder(const qd_model *m, const qd_shape *sample, const qd_run *run, qd_graph **out, qd_err *err)
{
    const char *class = NULL;
    qd_config *config = NULL;
    qd_status st = QD_OK;
    const qd_model *part = m->first_stage ? m->first_stage : m;
    if (part->config)
        st = qd_config_string(part->config, "_class_name", &class, err);
    if (st)
        return st;
    const qd_network_kind *kind = class ? qd_network_kind_find(class) : NULL;
    *out = NULL;
    if (part->weights && (part != m || kind == &qd_kind_autoencoder_kl || kind == &qd_kind_vq_model)) {
        if (!part->config)
            return qd_fail(err, QD_E_FORMAT, "the first stage has no config.json");
        st = build_for(part->config, part->weights, true, sample, run, out, err);
    } else if (m->weights && qd_weights_find(m->weights, PREFIX "decoder.conv_in.weight")) {
        st = infer_config(m, &config, err);
        if (!st)
            st = build_for(config, m->weights, false, sample, run, out, err);
        qd_config_free(config);
    }
    return st ? qd_fail_in(err, st, "first stage") : QD_OK;
}

qd_status qd_zoo_class_table(const qd_model *m, qd_budget *budget, qd_tensor *out, qd_err *err)
{
    char shape[96];
    const char *name = QD_LDM_CLASS_TABLE;
    const qd_tensor *t = m->weights ? qd_weights_find(m->weights, name) : NULL;
    if (!t && m->context)
        t = qd_weights_find(m->context, name = CLASS_TABLE);
    *out = (qd_tensor){ 0 };
    if (!t)
        return QD_OK;
    if (t->shape.rank != 2 || qd_tensor_count(t) < 1)
        return qd_fail(err, QD_E_FORMAT, "tensor '%s' has shape %s; a table of classes is [classes, width]", name,
                       qd_shape_text(&t->shape, shape, sizeof(shape)));
    const qd_status st =
        t->dtype == QD_F32 ? qd_tensor_copy(out, t, budget, err) : qd_tensor_cast(out, t, QD_F32, budget, err);
    return st ? qd_fail_in(err, st, "tensor '%s'", name) : QD_OK;
}
