/* correction_text.c - a correction as one flat JSON object of numbers and arrays, and back; %.17g keeps every bit. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "quant/qncd_int.h"

#define FORMAT "quantd-correction-1"
enum {
    SUMS = sizeof(qd_noise_sums) / sizeof(double), /* the struct is nothing but doubles, in the order of the text */
    MOST_STEPS = 10000,
    MOST_CHANNELS = 64,
    MOST_GROUPS = 100,
    MOST_MAPS = 4096,
    KEY_BYTES = 32
};

/* --- writing --- */

static void put_numbers(qd_buf *b, const char *key, const double *v, int64_t n)
{
    qd_buf_addf(b, ",\"%s\":[", key);
    for (int64_t k = 0; k < n; k++)
        qd_buf_addf(b, k ? ",%.17g" : "%.17g", v[k]);
    qd_buf_adds(b, "]");
}

/* One int of each of n records, `stride` bytes apart. */
static void put_ints(qd_buf *b, const char *key, const void *first, size_t stride, int n)
{
    qd_buf_addf(b, ",\"%s\":[", key);
    for (int k = 0; k < n; k++)
        qd_buf_addf(b, k ? ",%d" : "%d", *(const int *)((const char *)first + (size_t)k * stride));
    qd_buf_adds(b, "]");
}

static void put_probe(qd_buf *b, const qd_probe_reference *p, int at, int64_t channels)
{
    const double *const part[3] = { p->m, p->v, p->s };
    for (int k = 0; k < 3; k++) {
        char key[KEY_BYTES];
        snprintf(key, sizeof key, "probe_%c.%d", "mvs"[k], at);
        put_numbers(b, key, part[k], 1 + channels);
    }
}

static void put_groups(qd_buf *b, const qd_correction *c)
{
    const int n = c->n_groups * c->n_maps;
    put_ints(b, "group_until", c->group_until, sizeof *c->group_until, c->n_groups);
    qd_buf_adds(b, ",\"map_name\":[");
    for (int k = 0; k < c->n_maps; k++) {
        qd_buf_adds(b, k ? "," : "");
        qd_buf_add_json_string(b, c->map_name[k]);
    }
    qd_buf_adds(b, "],\"map_scale\":[");
    for (int k = 0; k < n; k++)
        qd_buf_addf(b, k ? ",%.9g" : "%.9g", (double)c->map_scale[k]);
    qd_buf_adds(b, "]");
    put_ints(b, "map_zero", c->map_zero, sizeof *c->map_zero, n);
}

qd_status qd_correction_text(const qd_correction *c, qd_buf *b, qd_err *err)
{
    qd_buf_addf(b,
                "{\"format\":\"" FORMAT "\",\"sampler\":\"%s\",\"steps\":%d,\"mode\":\"%s\",\"channels\":%lld,"
                "\"interval\":%d,\"paper_offset\":%s,\"by_channel\":%s,\"kappa\":%.17g,\"mu_max\":%.17g",
                c->sampler, c->steps, qd_correction_mode_name(c->mode), (long long)c->channels, c->interval,
                c->paper_offset ? "true" : "false", c->by_channel ? "true" : "false", c->kappa, c->mu_max);
    if (c->n_table > 0)
        put_ints(b, "t", &c->table[0].t, sizeof c->table[0], c->n_table);
    for (int k = 0; k < c->n_table; k++) {
        char key[KEY_BYTES];
        snprintf(key, sizeof key, "sums.%d", k);
        put_numbers(b, key, (const double *)c->table[k].channel, c->channels * SUMS);
    }
    if (c->n_probe > 0)
        put_ints(b, "probe_t", &c->probe[0].t, sizeof c->probe[0], c->n_probe);
    for (int k = 0; k < c->n_probe; k++)
        put_probe(b, &c->probe[k], k, c->channels);
    if (c->n_groups > 0)
        put_groups(b, c);
    qd_buf_adds(b, "}");
    return b->failed ? qd_fail(err, QD_E_NOMEM, "no memory for the text of a correction") : QD_OK;
}

/* --- reading --- */

/* Exactly n numbers, all finite. */
static qd_status get_numbers(const qd_config *c, const char *key, double *out, int64_t n, qd_err *err)
{
    int have = 0;
    qd_status st = qd_config_numbers(c, key, out, (int)n, &have, err);
    if (st)
        return st;
    if (have != n)
        return qd_fail(err, QD_E_FORMAT, "correction: '%s' has %d numbers, %lld are wanted", key, have, (long long)n);
    for (int64_t k = 0; k < n; k++)
        if (!isfinite(out[k]))
            return qd_fail(err, QD_E_FORMAT, "correction: '%s' holds a number that is not finite", key);
    return QD_OK;
}

static qd_status get_steps(const qd_config *c, const char *key, int64_t *t, int *n, qd_err *err)
{
    qd_status st = qd_config_ints(c, key, 0, MOST_STEPS - 1, t, MOST_STEPS, n, err);
    for (int k = 1; !st && k < *n; k++)
        if (t[k] > t[k - 1])
            st = qd_fail(err, QD_E_FORMAT, "correction: '%s' must fall, %lld comes after %lld", key, (long long)t[k],
                         (long long)t[k - 1]);
    return st;
}

static qd_status get_table(const qd_config *c, qd_correction *to, int64_t *t, qd_err *err)
{
    int n = 0;
    qd_status st = get_steps(c, "t", t, &n, err);
    if (st || n == 0)
        return st;
    to->table = qd_calloc((size_t)n, sizeof *to->table);
    if (!to->table)
        return qd_fail(err, QD_E_NOMEM, "no memory for a table of %d steps", n);
    for (int k = 0; k < n; k++) {
        char key[KEY_BYTES];
        qd_noise_step *s = &to->table[to->n_table++];
        s->t = (int)t[k];
        s->channel = qd_calloc((size_t)to->channels, sizeof *s->channel);
        if (!s->channel)
            return qd_fail(err, QD_E_NOMEM, "no memory for a table of %d steps", n);
        snprintf(key, sizeof key, "sums.%d", k);
        st = get_numbers(c, key, (double *)s->channel, to->channels * SUMS, err);
        for (int64_t i = 0; i < to->channels && !st; i++)
            if (!(s->channel[i].n > 0))
                st = qd_fail(err, QD_E_FORMAT, "correction: '%s' counts %g values in channel %lld", key,
                             s->channel[i].n, (long long)i);
        if (st)
            return st;
    }
    return QD_OK;
}

static qd_status get_probes(const qd_config *c, qd_correction *to, int64_t *t, qd_err *err)
{
    int n = 0;
    qd_status st = get_steps(c, "probe_t", t, &n, err);
    if (st || n == 0)
        return st;
    to->probe = qd_calloc((size_t)n, sizeof *to->probe);
    if (!to->probe)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d probes", n);
    for (int k = 0; k < n; k++) {
        qd_probe_reference *p = &to->probe[to->n_probe++];
        double **const part[3] = { &p->m, &p->v, &p->s };
        p->t = (int)t[k];
        for (int i = 0; i < 3; i++) {
            char key[KEY_BYTES];
            *part[i] = qd_calloc((size_t)(1 + to->channels), sizeof **part[i]);
            if (!*part[i])
                return qd_fail(err, QD_E_NOMEM, "no memory for %d probes", n);
            snprintf(key, sizeof key, "probe_%c.%d", "mvs"[i], k);
            st = get_numbers(c, key, *part[i], 1 + to->channels, err);
            if (st)
                return st;
        }
    }
    return QD_OK;
}

static qd_status get_group_arrays(const qd_config *c, qd_correction *to, double *numbers, const char **names,
                                  qd_err *err)
{
    const int n = to->n_groups * to->n_maps;
    qd_status st = get_numbers(c, "map_scale", numbers, n, err);
    for (int k = 0; k < n && !st; k++) {
        to->map_scale[k] = (float)numbers[k];
        if (!(to->map_scale[k] > 0) || !isfinite(1.0f / to->map_scale[k]))
            st = qd_fail(err, QD_E_FORMAT, "correction: 'map_scale' holds %g, a scale is > 0", numbers[k]);
    }
    if (!st)
        st = get_numbers(c, "map_zero", numbers, n, err);
    for (int k = 0; k < n && !st; k++) {
        to->map_zero[k] = (int32_t)fmin(fmax(numbers[k], -128), 255);
        if (to->map_zero[k] != numbers[k])
            st = qd_fail(err, QD_E_FORMAT, "correction: 'map_zero' holds %g, a code is a whole number of -128..255",
                         numbers[k]);
    }
    for (int k = 0; k < to->n_maps && !st; k++)
        if (snprintf(to->map_name[k], sizeof to->map_name[k], "%s", names[k]) >= (int)sizeof to->map_name[k])
            st = qd_fail(err, QD_E_FORMAT, "correction: the name of map %d is longer than %d bytes", k, QD_MAX_NAME);
    return st;
}

static qd_status get_groups(const qd_config *c, qd_correction *to, qd_err *err)
{
    int64_t until[MOST_GROUPS];
    int n = 0;
    double *numbers = NULL;
    const char **names = qd_calloc(MOST_MAPS, sizeof *names);
    if (!names)
        return qd_fail(err, QD_E_NOMEM, "no memory for the ranges of time steps");
    qd_status st = qd_config_ints(c, "group_until", 0, MOST_STEPS, until, MOST_GROUPS, &n, err);
    if (!st)
        st = qd_config_strings(c, "map_name", names, MOST_MAPS, &to->n_maps, err);
    if (st || n == 0)
        goto out;
    for (int k = 1; k < n && !st; k++)
        if (until[k] >= until[k - 1])
            st = qd_fail(err, QD_E_FORMAT, "correction: 'group_until' must fall");
    if (!st && until[n - 1] != 0)
        st = qd_fail(err, QD_E_FORMAT, "correction: the last of 'group_until' must be 0, not %lld",
                     (long long)until[n - 1]);
    if (!st && to->n_maps < 1)
        st = qd_fail(err, QD_E_FORMAT, "correction: groups without 'map_name'");
    if (st)
        goto out;
    const size_t maps = (size_t)to->n_maps, all = (size_t)n * maps;
    numbers = qd_calloc(all, sizeof *numbers);
    to->group_until = qd_calloc((size_t)n, sizeof *to->group_until);
    to->map_name = qd_calloc(maps, sizeof *to->map_name);
    to->map_scale = qd_calloc(all, sizeof *to->map_scale);
    to->map_zero = qd_calloc(all, sizeof *to->map_zero);
    if (!numbers || !to->group_until || !to->map_name || !to->map_scale || !to->map_zero) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the ranges of %d groups of time steps", n);
        goto out;
    }
    to->n_groups = n;
    for (int k = 0; k < n; k++)
        to->group_until[k] = (int)until[k];
    st = get_group_arrays(c, to, numbers, names, err);
out:
    qd_free(numbers);
    qd_free(names);
    return st;
}

static qd_status get_head(const qd_config *c, qd_correction *to, qd_err *err)
{
    const char *format = "", *sampler = "", *mode = "none";
    int64_t steps = 0, channels = 0, interval = 10;
    qd_status st = qd_config_string(c, "format", &format, err);
    if (!st && strcmp(format, FORMAT) != 0)
        st = qd_fail(err, QD_E_FORMAT, "correction: the format is '%.40s', not " FORMAT, format);
    to->kappa = 3;
    to->mu_max = 0.05;
    if (st || (st = qd_config_string(c, "sampler", &sampler, err)) || (st = qd_config_string(c, "mode", &mode, err)) ||
        (st = qd_config_int(c, "steps", 1, MOST_STEPS, &steps, err)) ||
        (st = qd_config_int(c, "channels", 1, MOST_CHANNELS, &channels, err)) ||
        (st = qd_config_int(c, "interval", 1, MOST_STEPS, &interval, err)) ||
        (st = qd_config_bool(c, "paper_offset", &to->paper_offset, err)) ||
        (st = qd_config_bool(c, "by_channel", &to->by_channel, err)) ||
        (st = qd_config_number(c, "kappa", &to->kappa, err)) || (st = qd_config_number(c, "mu_max", &to->mu_max, err)))
        return st;
    if (qd_correction_mode_find(mode) < 0)
        return qd_fail(err, QD_E_FORMAT, "correction: there is no mode '%.40s'", mode);
    if (channels < 1 || !(to->kappa >= 0) || !(to->mu_max >= 0) || !isfinite(to->mu_max))
        return qd_fail(err, QD_E_FORMAT, "correction: 'channels' is %lld, 'kappa' %g, 'mu_max' %g", (long long)channels,
                       to->kappa, to->mu_max);
    if (!qd_sampler_find(sampler))
        return qd_fail(err, QD_E_FORMAT, "correction: there is no sampler '%.40s'", sampler);
    snprintf(to->sampler, sizeof to->sampler, "%s", sampler);
    to->steps = (int)steps;
    to->channels = channels;
    to->interval = (int)interval;
    to->mode = (qd_correction_mode)qd_correction_mode_find(mode);
    return QD_OK;
}

qd_status qd_correction_parse(const char *text, size_t size, qd_correction **out, qd_err *err)
{
    qd_config *c = NULL;
    int64_t *t = qd_calloc(MOST_STEPS, sizeof *t);
    qd_correction *made = qd_calloc(1, sizeof *made);
    qd_status st = QD_E_NOMEM;
    if (!t || !made) {
        qd_fail(err, st, "no memory for a correction");
        goto out;
    }
    st = qd_config_parse(text, size, "correction", &c, err);
    if (st || (st = get_head(c, made, err)) || (st = get_table(c, made, t, err)) ||
        (st = get_probes(c, made, t, err)) || (st = get_groups(c, made, err)))
        goto out;
    *out = made;
    made = NULL;
out:
    qd_correction_free(made);
    qd_config_free(c);
    qd_free(t);
    return st;
}
