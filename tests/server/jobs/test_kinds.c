/* test_kinds.c - the table of kinds: rows are whole, and the schema says what the rows say. */
#include "jobs_common.h"

#include <stdlib.h>

#include "diffusion/diffusion.h"
#include "quant/quant.h"

static void check_number(const json_t *v, double want, const char *row, const char *what)
{
    if (!json_is_number(v) || json_number_value(v) != want)
        fail_msg("%s: %s is not %g in the schema", row, what, want);
}

static void check_row(const qd_param *row, const json_t *o)
{
    static const char *const types[] = { "integer", "number", "boolean", "string", "string" };
    if (!o)
        fail_msg("parameter %s is not in the schema", row->name);
    assert_string_equal(json_string_value(json_object_get(o, "type")), types[row->type]);
    assert_string_equal(json_string_value(json_object_get(o, "description")), row->summary);
    const json_t *fallback = json_object_get(o, "default");
    assert_true(!row->fallback == !fallback);
    if (row->fallback && (row->type == QD_PARAM_STRING || row->type == QD_PARAM_CHOICE))
        assert_string_equal(json_string_value(fallback), row->fallback);
    else if (row->fallback && row->type == QD_PARAM_BOOL)
        assert_true(json_is_true(fallback) == (strcmp(row->fallback, "true") == 0));
    else if (row->fallback)
        check_number(fallback, strtod(row->fallback, NULL), row->name, "the default");
    const bool numeric = row->type == QD_PARAM_INT || row->type == QD_PARAM_NUMBER;
    if (numeric && !row->choices && (row->min != 0 || row->max != 0)) {
        check_number(json_object_get(o, "minimum"), row->min, row->name, "minimum");
        check_number(json_object_get(o, "maximum"), row->max, row->name, "maximum");
    }
    size_t n = 0;
    while (row->choices && row->choices[n])
        n++;
    assert_int_equal(json_array_size(json_object_get(o, "enum")), n);
}

static const json_t *method_in(const json_t *schema, const char *name)
{
    size_t k;
    json_t *m;
    json_array_foreach(json_object_get(schema, "methods"), k,
                       m) if (strcmp(json_string_value(json_object_get(m, "name")), name) == 0) return m;
    return NULL;
}

static void the_schema_agrees_with_the_rows(void **state)
{
    for (int k = 0; sv_kinds[k]; k++) {
        const sv_kind *kind = sv_kinds[k];
        json_t *schema = sv_kind_schema(kind);
        int n = 0;
        const sv_method *methods = kind->methods(&n);
        assert_int_equal(json_array_size(json_object_get(schema, "methods")), n);
        for (int m = 0; m < n; m++) {
            const json_t *params = json_object_get(method_in(schema, methods[m].name), "params");
            const json_t *properties = json_object_get(params, "properties");
            size_t rows = 1; /* "method" itself */
            assert_true(json_is_false(json_object_get(params, "additionalProperties")));
            for (const qd_param *row = methods[m].params; row->name; row++, rows++)
                check_row(row, json_object_get(properties, row->name));
            for (const qd_param *row = kind->params; row->name; row++)
                if (!qd_param_find(methods[m].params, row->name)) {
                    check_row(row, json_object_get(properties, row->name));
                    rows++;
                }
            assert_int_equal(json_object_size(properties), rows);
            assert_string_equal(json_string_value(json_object_get(json_object_get(properties, "method"), "const")),
                                methods[m].name);
        }
        json_decref(schema);
    }
}

static void every_row_is_whole(void **state)
{
    qd_err err = { 0 };
    char pointer[128];
    for (int k = 0; sv_kinds[k]; k++) {
        const sv_kind *kind = sv_kinds[k];
        int n = 0;
        const sv_method *methods = kind->methods(&n);
        assert_ptr_equal(sv_kind_find(kind->name), kind);
        assert_true(n > 0);
        for (int m = 0; m < n; m++) {
            assert_true(kind->run || methods[m].run);
            int at = 0;
            while (methods[m].role && kind->roles[at] && strcmp(kind->roles[at], methods[m].role) != 0)
                at++;
            assert_non_null(kind->roles[at]); /* its role is one of the kind's */
        }
        assert_non_null(kind->summary);
        assert_non_null(kind->roles[0]);
        assert_true(kind->takes_bundle || kind->takes_float);
        assert_non_null(sv_method_find(kind, kind->default_method));
        for (int m = 0; m < n; m++) {
            /* Defaults alone are accepted, and what is written out is read back. */
            const qd_param *const sets[] = { methods[m].params, kind->params, NULL };
            qd_params *params = NULL, *again = NULL;
            check_ok(sv_params_from_json(NULL, sets, &params, pointer, &err), &err);
            json_t *o = sv_params_to_json(params);
            check_ok(sv_params_from_json(o, sets, &again, pointer, &err), &err);
            json_t *o2 = sv_params_to_json(again);
            assert_true(json_equal(o, o2));
            json_decref(o);
            json_decref(o2);
            qd_params_free(params);
            qd_params_free(again);
        }
        for (const sv_preset *p = kind->presets; p && p->preset; p++) {
            /* A preset names a choice of the parameter "preset", and sets something to a value that is allowed. */
            bool used = false;
            const qd_param *choice = qd_param_find(kind->params, "preset");
            assert_non_null(choice);
            for (int m = 0; m < n; m++) {
                const qd_param *const sets[] = { methods[m].params, kind->params, NULL };
                qd_params *params = NULL;
                check_ok(sv_params_from_json(NULL, sets, &params, pointer, &err), &err);
                check_ok(qd_params_set_string(params, "preset", p->preset, &err), &err);
                if (qd_param_find(methods[m].params, p->param)) {
                    used = true;
                    check_ok(qd_params_set_text(params, p->param, p->value, &err), &err);
                }
                qd_params_free(params);
            }
            if (!used)
                fail_msg("preset %s sets %s, which no method has", p->preset, p->param);
        }
    }
    assert_null(sv_kind_find("magic"));
    assert_null(sv_method_find(sv_kinds[0], "magic"));
}

static void the_core_tables_are_all_there(void **state)
{
    for (int k = 0; qd_samplers[k]; k++)
        assert_non_null(sv_method_find(sv_kind_find("sample"), qd_samplers[k]->name));
    for (int k = 0; qd_methods[k]; k++)
        if (qd_methods[k]->role == QD_ROLE_DENOISER)
            assert_non_null(sv_method_find(sv_kind_find("quantize"), qd_methods[k]->name));
}

static void the_version_is_the_builds(void **state)
{
    char *text = NULL;
    size_t size;
    qd_err err = { 0 };
    check_ok(qd_fs_take(harness_source("meson.build"), 1 << 20, &text, &size, &err), &err);
    assert_non_null(strstr(text, "version: '" SV_VERSION "'"));
    qd_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_schema_agrees_with_the_rows),
        cmocka_unit_test(every_row_is_whole),
        cmocka_unit_test(the_core_tables_are_all_there),
        cmocka_unit_test(the_version_is_the_builds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
