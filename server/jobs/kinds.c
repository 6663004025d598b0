/* kinds.c - the table of job kinds, and the JSON Schema made from its rows. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/jobs_int.h"

extern const sv_kind sv_kind_quantize, sv_kind_sample, sv_kind_evaluate, sv_kind_export;

const sv_kind *const sv_kinds[] = { &sv_kind_quantize, &sv_kind_sample, &sv_kind_evaluate, &sv_kind_export, NULL };

const sv_kind *sv_kind_find(const char *name)
{
    for (int k = 0; sv_kinds[k]; k++)
        if (strcmp(sv_kinds[k]->name, name) == 0)
            return sv_kinds[k];
    return NULL;
}

const sv_method *sv_method_find(const sv_kind *k, const char *name)
{
    int n = 0;
    const sv_method *all = k->methods(&n);
    for (int i = 0; i < n; i++)
        if (strcmp(all[i].name, name) == 0)
            return &all[i];
    return NULL;
}

bool sv_preset_fits(const sv_preset *p, const sv_method *m)
{
    return qd_param_find(m->params, p->param) && (!p->role || !m->role || strcmp(p->role, m->role) == 0);
}

/* A value of a row written as text, as JSON. */
static json_t *typed(const qd_param *row, const char *text)
{
    switch (row->type) {
    case QD_PARAM_INT:
        return json_integer(strtoll(text, NULL, 10));
    case QD_PARAM_NUMBER:
        return sv_json_number(strtod(text, NULL));
    case QD_PARAM_BOOL:
        return json_boolean(strcmp(text, "true") == 0);
    case QD_PARAM_STRING:
    case QD_PARAM_CHOICE:
        break;
    }
    return json_string(text);
}

static json_t *row_schema(const qd_param *row)
{
    static const char *const types[] = {
        [QD_PARAM_INT] = "integer",   [QD_PARAM_NUMBER] = "number", [QD_PARAM_BOOL] = "boolean",
        [QD_PARAM_STRING] = "string", [QD_PARAM_CHOICE] = "string",
    };
    json_t *o = json_pack("{s:s, s:s}", "type", types[row->type], "description", row->summary);
    if (row->fallback)
        json_object_set_new(o, "default", typed(row, row->fallback));
    if (row->choices) {
        json_t *list = json_array();
        for (int k = 0; row->choices[k]; k++)
            json_array_append_new(list, typed(row, row->choices[k]));
        json_object_set_new(o, "enum", list);
    } else if (row->type == QD_PARAM_STRING && row->max > 0) {
        json_object_set_new(o, "maxLength", json_integer((json_int_t)row->max));
    } else if ((row->type == QD_PARAM_INT || row->type == QD_PARAM_NUMBER) && (row->min != 0 || row->max != 0)) {
        const bool whole = row->type == QD_PARAM_INT;
        json_object_set_new(o, "minimum", whole ? json_integer((json_int_t)row->min) : json_real(row->min));
        json_object_set_new(o, "maximum", whole ? json_integer((json_int_t)row->max) : json_real(row->max));
    }
    return o;
}

json_t *sv_params_schema(const qd_param *const *row_sets)
{
    json_t *properties = json_object(), *required = json_array();
    for (const qd_param *row = sv_rows_join(row_sets); row && row->name; row++) {
        json_object_set_new(properties, row->name, row_schema(row));
        if (!row->fallback)
            json_array_append_new(required, json_string(row->name));
    }
    json_t *o = json_pack("{s:s, s:o, s:b}", "type", "object", "properties", properties, "additionalProperties", 0);
    if (json_array_size(required) > 0)
        json_object_set(o, "required", required);
    json_decref(required);
    return o;
}

/* {"fast": {"calibration_steps": 4, ..}, ..}: what each preset sets for one method. */
static json_t *presets_json(const sv_kind *k, const sv_method *m)
{
    json_t *all = json_object();
    for (const sv_preset *p = k->presets; p && p->preset; p++) {
        json_t *one = json_object_get(all, p->preset);
        const qd_param *row = qd_param_find(m->params, p->param);
        if (!one) {
            one = json_object();
            json_object_set_new(all, p->preset, one);
        }
        if (sv_preset_fits(p, m))
            json_object_set_new(one, p->param, typed(row, p->value));
    }
    return all;
}

static json_t *names(const char *const *list)
{
    json_t *a = json_array();
    for (int k = 0; list && list[k]; k++)
        json_array_append_new(a, json_string(list[k]));
    return a;
}

json_t *sv_kind_schema(const sv_kind *k)
{
    int n = 0;
    const sv_method *all = k->methods(&n);
    json_t *methods = json_array();
    for (int i = 0; i < n; i++) {
        json_t *schema = sv_params_schema((const qd_param *const[]){ all[i].params, k->params, NULL });
        json_t *properties = json_object_get(schema, "properties");
        json_object_set_new(
            properties, "method",
            json_pack("{s:s, s:s, s:s}", "type", "string", "const", all[i].name, "description", all[i].summary));
        json_t *o = json_pack("{s:s, s:s, s:o, s:o, s:b}", "name", all[i].name, "summary", all[i].summary, "params",
                              schema, "presets", presets_json(k, &all[i]), "needs_dataset", all[i].needs_data);
        if (all[i].role)
            json_object_set_new(o, "model_role", json_string(all[i].role));
        if (all[i].drop_metrics)
            json_object_set_new(o, "max_drop_metrics", names(all[i].drop_metrics));
        json_array_append_new(methods, o);
    }
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:o, s:b, s:b, s:o}", "object", "kind", "name", k->name, "summary",
                          k->summary, "default_method", k->default_method, "model_roles", names(k->roles),
                          "takes_float", k->takes_float, "takes_quantized", k->takes_bundle, "methods", methods);
    if (k->drop_metrics)
        json_object_set_new(o, "max_drop_metrics", names(k->drop_metrics));
    return o;
}
