/* ddpm_names.c - names of the original DDPM code (diffusion_models.md 3.1), read in the builder's direction. The first stages of latent
 * diffusion were written after it. */
#include <stdio.h>
#include <string.h>

#include "nn/nn_int.h"

static const char *const prefixes[] = { "", "first_stage_model." };

static const qd_rename_row top_rows[] = {
    { "time_embedding.linear_1.", "temb.dense.0." },
    { "time_embedding.linear_2.", "temb.dense.1." },
    { "conv_norm_out.", "norm_out." },
    { NULL, NULL },
};

/* mid_block, in front of what is inside a block */
static const qd_rename_row mid_rows[] = {
    { "mid_block.resnets.0.", "mid.block_1." },
    { "mid_block.resnets.1.", "mid.block_2." },
    { "mid_block.attentions.0.", "mid.attn_1." },
    { NULL, NULL },
};

static const qd_rename_row inner_rows[] = {
    { "conv_shortcut.", "nin_shortcut." },
    { "time_emb_proj.", "temb_proj." },
    { "group_norm.", "norm." },
    { "to_q.", "q." },
    { "to_k.", "k." },
    { "to_v.", "v." },
    { "to_out.0.", "proj_out." },
    { "", "" },
    { NULL, NULL },
};

/* "down_blocks.<i>.<part>.<j>.<rest>" or up_blocks, which the original counts from the widest image. */
static bool place_block(const qd_ddpm_names *n, const char *side, const char *name, char out[QD_NN_NAME])
{
    char part[16], before[QD_NN_NAME];
    int i, j, at = 0;
    const bool up = name[0] == 'u';
    if (sscanf(name, up ? "up_blocks.%d.%15[a-z].%d.%n" : "down_blocks.%d.%15[a-z].%d.%n", &i, part, &j, &at) != 3 ||
        !at)
        return false;
    const char *way = up ? "up" : "down";
    const int level = up ? n->levels - 1 - i : i;
    if (strcmp(part, up ? "upsamplers" : "downsamplers") == 0)
        snprintf(before, sizeof(before), "%s%s.%d.%ssample.", side, way, level, way);
    else
        snprintf(before, sizeof(before), "%s%s.%d.%s.%d.", side, way, level,
                 strcmp(part, "attentions") == 0 ? "attn" : "block", j);
    return qd_rename_by(inner_rows, before, name + at, out);
}

static bool locate(const void *ctx, const char *name, qd_weight_place *out)
{
    const qd_ddpm_names *n = ctx;
    char side[48], middle[QD_NN_NAME];
    size_t skip = 0;
    if (strncmp(name, "encoder.", 8) == 0 || strncmp(name, "decoder.", 8) == 0)
        skip = 8;
    snprintf(side, sizeof(side), "%s%.*s", n->prefix, (int)skip, name);
    name += skip;
    if (place_block(n, side, name, out->name) || qd_rename_by(top_rows, side, name, out->name))
        return true;
    if (strncmp(name, "mid_block.", 10) != 0)
        return snprintf(out->name, sizeof(out->name), "%s%s", side, name) < (int)sizeof(out->name);
    for (const qd_rename_row *row = mid_rows; row->ours; row++) {
        const size_t length = strlen(row->ours);
        if (strncmp(name, row->ours, length))
            continue;
        snprintf(middle, sizeof(middle), "%s%s", side, row->theirs);
        return qd_rename_by(inner_rows, middle, name + length, out->name);
    }
    return false;
}

void qd_ddpm_names_use(qd_ddpm_names *n, qd_weight_source *s, const char *probe, int levels)
{
    char name[QD_NN_NAME];
    *n = (qd_ddpm_names){ .levels = 0 };
    for (size_t k = 0; k < sizeof(prefixes) / sizeof(prefixes[0]); k++) {
        snprintf(name, sizeof(name), "%s%s", prefixes[k], probe);
        if (!qd_weight_source_peek(s, name))
            continue;
        snprintf(n->prefix, sizeof(n->prefix), "%s", prefixes[k]);
        n->levels = levels;
        qd_weight_source_rename(s, locate, n, n->prefix);
        return;
    }
}

void qd_ddpm_names_done(const qd_ddpm_names *n, qd_weight_source *s)
{
    if (n->levels)
        qd_weight_source_rename(s, NULL, NULL, n->prefix);
}
