/* correction.c - what travels with a quantized denoiser beside its graph: the object, its modes, its figures. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "quant/qncd_int.h"

void qd_correction_free(qd_correction *c)
{
    if (!c)
        return;
    for (int k = 0; k < c->n_table; k++)
        qd_free(c->table[k].channel);
    qd_free(c->table);
    for (int k = 0; k < c->n_probe; k++) {
        qd_free(c->probe[k].m);
        qd_free(c->probe[k].v);
        qd_free(c->probe[k].s);
    }
    qd_free(c->probe);
    qd_free(c->group_until);
    qd_free(c->map_name);
    qd_free(c->map_scale);
    qd_free(c->map_zero);
    qd_free(c);
}

qd_correction_mode qd_correction_default(const qd_correction *c)
{
    return c ? c->mode : QD_CORRECT_NONE;
}

static const char *const mode_names[] = {
    [QD_CORRECT_NONE] = "none",   [QD_CORRECT_COMPAT] = "compat",           [QD_CORRECT_PROBE] = "probe",
    [QD_CORRECT_TABLE] = "table", [QD_CORRECT_CONDITIONAL] = "conditional", [QD_CORRECT_BOTH] = "both",
};

int qd_correction_mode_find(const char *name)
{
    for (int k = 0; k < (int)(sizeof mode_names / sizeof mode_names[0]); k++)
        if (strcmp(mode_names[k], name) == 0)
            return k;
    return -1;
}

const char *qd_correction_mode_name(qd_correction_mode mode)
{
    return mode_names[mode];
}

qd_noise_figures qd_noise_figures_of(const qd_noise_step *s, int64_t channels)
{
    /* Sums of squares about the means of the channels. */
    double ee = 0, qq = 0, ed = 0, qd = 0, dd = 0, n = 0;
    for (int64_t c = 0; c < channels; c++) {
        const qd_noise_sums *m = &s->channel[c];
        if (!(m->n > 0))
            continue;
        n += m->n;
        ee += m->ee - m->e * m->e / m->n;
        qq += m->qq - m->q * m->q / m->n;
        dd += m->dd - m->d * m->d / m->n;
        ed += m->ed - m->e * m->d / m->n;
        qd += m->qd - m->q * m->d / m->n;
    }
    qd_noise_figures f = { .k = ee > 0 ? fmax(ed / ee, 0.0) : 0.0, .beta = qq > 0 ? qd / qq : 0.0 };
    if (n > 0)
        f.sigma = sqrt(fmax(dd - 2 * f.k * ed + f.k * f.k * ee, 0.0) / n);
    return f;
}
