/* keys.c - keys that several networks read from their configs, and the words for those that make no sense. */
#include <string.h>

#include "graph/op.h"
#include "nn/nn_int.h"

void qd_keys_warn(const qd_config *c, const char *class_name, const char *const *known, const qd_run *run)
{
    for (int k = 0; k < qd_config_count(c); k++) {
        const char *key = qd_config_key(c, k);
        bool found = key[0] == '_'; /* notes of the writer: _class_name, _diffusers_version */
        for (int j = 0; known[j] && !found; j++)
            found = strcmp(known[j], key) == 0;
        if (!found)
            qd_run_warn(run, "config key '%s' means nothing to %s and is ignored", key, class_name);
    }
}

bool qd_keys_null(const qd_config *c, const char *key)
{
    for (int k = 0; k < qd_config_count(c); k++)
        if (strcmp(qd_config_key(c, k), key) == 0)
            return !qd_config_has(c, key);
    return false;
}

qd_status qd_keys_choice(const qd_config *c, const char *key, const char *const *names, int *out, qd_err *err)
{
    const char *text = names[*out];
    qd_status st = qd_config_string(c, key, &text, err);
    if (st)
        return st;
    for (int k = 0; names[k]; k++)
        if (strcmp(text, names[k]) == 0) {
            *out = k;
            return QD_OK;
        }
    return qd_fail(err, QD_E_UNSUPPORTED, "config key '%s' is '%s', which is not supported", key, text);
}

qd_status qd_keys_act(const qd_config *c, const char *key, const qd_op **out, qd_err *err)
{
    static const char *const names[] = { "silu", "swish", "relu", "gelu", NULL };
    static const qd_op *const ops[] = { &qd_op_silu, &qd_op_silu, &qd_op_relu, &qd_op_gelu };
    int which = 0;
    if (!qd_config_has(c, key))
        return QD_OK;
    qd_status st = qd_keys_choice(c, key, names, &which, err);
    if (!st)
        *out = ops[which];
    return st;
}

qd_status qd_keys_refuse(const qd_config *c, const char *const *keys, qd_err *err)
{
    for (int k = 0; keys[k]; k++) {
        bool wanted = qd_config_has(c, keys[k]), flag = true;
        if (wanted && !qd_config_bool(c, keys[k], &flag, NULL))
            wanted = flag;
        if (wanted)
            return qd_fail(err, QD_E_UNSUPPORTED, "config key '%s' asks for something that is not supported", keys[k]);
    }
    return QD_OK;
}

qd_status qd_keys_per_level(const qd_config *c, const char *key, int64_t min, int64_t max, int64_t *out, int levels,
                            qd_err *err)
{
    int64_t v[QD_NN_MAX_LEVELS];
    int n = 0;
    qd_status st = qd_config_ints(c, key, min, max, v, QD_NN_MAX_LEVELS, &n, err);
    if (st || !qd_config_has(c, key))
        return st;
    if (n != 1 && n != levels)
        return qd_fail(err, QD_E_INVALID,
                       "config key '%s' has %d entries; it must have 1, or one for each of %d levels", key, n, levels);
    for (int k = 0; k < levels; k++)
        out[k] = v[n == 1 ? 0 : k];
    return QD_OK;
}

qd_status qd_keys_size(const qd_config *c, int levels, int64_t fallback, int64_t *height, int64_t *width, qd_err *err)
{
    int64_t size[2] = { fallback, fallback };
    int n = 0;
    qd_status st = qd_config_ints(c, "sample_size", 1, QD_NN_MAX_SIDE, size, 2, &n, err);
    if (st)
        return st;
    if (n == 0 && fallback == 0)
        return qd_fail(err, QD_E_INVALID, "config key 'sample_size' is missing: the image size cannot be guessed");
    const int64_t h = size[0], w = n == 2 ? size[1] : size[0], step = 1ll << (levels - 1);
    if (h % step || w % step)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "config key 'sample_size' is %lldx%lld; with %d levels both sides must be multiples of %lld",
                       (long long)h, (long long)w, levels, (long long)step);
    *height = h;
    *width = w;
    return QD_OK;
}

qd_status qd_keys_check_groups(int64_t groups, const int64_t *channels, int levels, qd_err *err)
{
    for (int k = 0; k < levels; k++)
        if (channels[k] % groups)
            return qd_fail(err, QD_E_INVALID,
                           "config key 'norm_num_groups' is %lld, which does not divide block_out_channels[%d] = %lld",
                           (long long)groups, k, (long long)channels[k]);
    return QD_OK;
}

static qd_status read_blocks(const qd_config *c, const char *key, bool up, const qd_block_kind *kinds,
                             const char **names, const qd_block_kind **out, int *n, qd_err *err)
{
    qd_status st = qd_config_strings(c, key, names, QD_NN_MAX_LEVELS, n, err);
    if (st)
        return st;
    for (int k = 0; k < *n; k++) {
        const char *name = strncmp(names[k], "UNetRes", 7) == 0 ? names[k] + 7 : names[k]; /* legacy prefix */
        out[k] = NULL;
        for (const qd_block_kind *kind = kinds; kind->name; kind++)
            if (kind->up == up && strcmp(kind->name, name) == 0)
                out[k] = kind;
        if (!out[k])
            return qd_fail(err, QD_E_UNSUPPORTED, "config key '%s' names block '%s', which is not supported there", key,
                           names[k]);
    }
    return QD_OK;
}

qd_status qd_keys_levels(const qd_config *c, const qd_block_kind *kinds, qd_levels *l, qd_err *err)
{
    int n_down = l->n, n_up = l->n;
    qd_status st = read_blocks(c, "down_block_types", false, kinds, l->down_names, l->down, &n_down, err);
    if (st)
        return st;
    st = read_blocks(c, "up_block_types", true, kinds, l->up_names, l->up, &n_up, err);
    if (st)
        return st;
    st = qd_config_ints(c, "block_out_channels", 1, QD_NN_MAX_CHANNELS, l->channels, QD_NN_MAX_LEVELS, &l->n, err);
    if (st)
        return st;
    if (l->n < 1)
        return qd_fail(err, QD_E_INVALID, "config key 'block_out_channels' is empty");
    if (n_down != l->n || n_up != l->n)
        return qd_fail(
            err, QD_E_INVALID,
            "config keys disagree: 'block_out_channels' has %d entries, 'down_block_types' %d, 'up_block_types' %d",
            l->n, n_down, n_up);
    return QD_OK;
}
