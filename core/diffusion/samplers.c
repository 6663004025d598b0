/* samplers.c - the table of samplers and the parameter rows they share. */
#include <string.h>

#include "diffusion/sampler_int.h"

const qd_sampler *const qd_samplers[] = { &qd_sampler_ddpm, &qd_sampler_ddim, &qd_sampler_plms, &qd_sampler_dpmpp2m,
                                          NULL };

const char *const qd_spacing_names[] = { "leading", "trailing", "linspace", "quad", NULL };
const char *const qd_clip_names[] = { "schedule", "on", "off", NULL };

const qd_sampler *qd_sampler_find(const char *name)
{
    for (int k = 0; qd_samplers[k]; k++)
        if (strcmp(qd_samplers[k]->name, name) == 0)
            return qd_samplers[k];
    return NULL;
}

bool qd_spacing_find(const char *name, qd_spacing *out)
{
    for (int k = 0; qd_spacing_names[k]; k++)
        if (strcmp(qd_spacing_names[k], name) == 0) {
            *out = (qd_spacing)k;
            return true;
        }
    return false;
}

void qd_sample_options_read(const qd_params *params, qd_sample_options *o)
{
    const qd_param *rows = qd_params_rows(params);
    if (qd_param_find(rows, "steps"))
        o->steps = (int)qd_params_int(params, "steps");
    if (qd_param_find(rows, "spacing"))
        qd_spacing_find(qd_params_string(params, "spacing"), &o->spacing);
    if (qd_param_find(rows, "eta"))
        o->eta = qd_params_number(params, "eta");
    if (qd_param_find(rows, "clip")) {
        const char *clip = qd_params_string(params, "clip");
        o->clip = strcmp(clip, "on") == 0 ? 1 : strcmp(clip, "off") == 0 ? 0 : -1;
    }
}
