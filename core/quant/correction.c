/* correction.c - what travels with a quantized denoiser beside its graph. */
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
    [QD_CORRECT_NONE] = "none",   [QD_CORRECT_COMPAT] = "compat", [QD_CORRECT_PROBE] = "probe",
    [QD_CORRECT_TABLE] = "table", [QD_CORRECT_BOTH] = "both",
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
