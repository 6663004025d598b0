/* test_formats.c - every row opens what it writes or knows, by its content and not by its name. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "graph/op.h"
#include "model/model.h"

#define PATH_BYTES 1200

static const char *in(const char *dir, const char *name)
{
    static char ring[4][PATH_BYTES];
    static int next;
    char *path = ring[next++ % 4];

    snprintf(path, PATH_BYTES, "%s/%s", dir, name);
    return path;
}

static void save_weights(const char *path, const qd_meta *meta)
{
    const qd_shape shape = QD_SHAPE(2);
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_tensor t = { 0 };

    check_ok(qd_weights_new(&w, &err), &err);
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    check_ok(qd_weights_add(w, "w", &t, &err), &err);
    check_ok(qd_safetensors_save(path, w, meta, NULL, &err), &err);
    qd_tensor_clear(&t);
    qd_weights_free(w);
}

static void save_bundle(const char *path, const qd_meta *meta)
{
    const qd_shape shape = QD_SHAPE(-1, 2);
    qd_err err = { 0 };
    qd_graph *g = NULL;

    check_ok(qd_graph_new(&g, &err), &err);
    qd_graph_output(g, "y",
                    qd_graph_add(g, &qd_op_relu, "r", QD_IN(qd_graph_input(g, "x", QD_F32, &shape)), QD_NO_ATTRS));
    check_ok(qd_bundle_save(path, g, meta, NULL, &err), &err);
    qd_graph_free(g);
}

static qd_meta *make_meta(const char *config)
{
    qd_err err = { 0 };
    qd_meta *meta = NULL;

    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_meta_set(meta, "config", config, &err), &err);
    check_ok(qd_meta_set(meta, "scheduler_config", "{\"steps\": 3}", &err), &err);
    return meta;
}

static void rows_are_complete(void **state)
{
    for (int k = 0; qd_formats[k]; k++) {
        const qd_format *f = qd_formats[k];

        assert_true(f->name && f->summary && f->sniff && f->load);
        for (int j = 0; j < k; j++)
            assert_string_not_equal(f->name, qd_formats[j]->name);
        assert_false(f->sniff("/nonexistent"));
    }
}

static void plain_file_with_its_configuration(void **state)
{
    qd_err err = { 0 };
    const char *path = in(harness_tmp(), "no-extension");
    qd_meta *meta = make_meta("{\"_class_name\": \"UNet2DModel\"}");
    qd_model *m = NULL;

    save_weights(path, meta);
    check_ok(qd_model_open(path, NULL, &m, &err), &err);
    assert_string_equal(m->format, "safetensors");
    assert_true(qd_config_has(m->config, "_class_name"));
    assert_true(qd_config_has(m->scheduler, "steps"));
    assert_int_equal(qd_weights_count(m->weights), 1);
    assert_null(m->graph);
    qd_model_free(m);
    m = NULL;

    check_ok(qd_meta_set(meta, "config", "{\"a\":", &err), &err);
    save_weights(path, meta);
    check_fails(qd_model_open(path, NULL, &m, &err), QD_E_FORMAT, "metadata 'config': not JSON", &err);
    qd_meta_free(meta);
}

static void bundle_by_content(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    qd_meta *meta = make_meta("{\"_class_name\": \"UNet2DModel\"}");
    qd_model *m = NULL;

    save_bundle(in(dir, "b.safetensors"), meta);
    check_ok(qd_model_open(in(dir, "b.safetensors"), NULL, &m, &err), &err);
    assert_string_equal(m->format, "bundle");
    assert_non_null(m->graph);
    assert_null(m->weights);
    assert_true(qd_config_has(m->config, "_class_name"));
    assert_true(qd_config_has(m->scheduler, "steps"));
    assert_non_null(qd_meta_find(m->meta, "config"));
    assert_null(qd_meta_find(m->meta, "graph"));
    assert_true(m->file_bytes > 100);
    qd_model_free(m);
    m = NULL;

    check_ok(qd_model_open(dir, NULL, &m, &err), &err); /* alone in a folder, as an archive leaves it */
    assert_string_equal(m->format, "bundle");
    qd_model_free(m);

    m = NULL;
    check_ok(qd_fs_write(in(dir, "config.json"), "{\"beside\": 1}", 13, &err), &err);
    check_ok(qd_model_open(dir, NULL, &m, &err), &err); /* nor does a config.json beside it make it plain weights */
    assert_string_equal(m->format, "bundle");
    assert_non_null(m->graph);
    assert_true(qd_config_has(m->config, "beside"));
    qd_model_free(m);

    /* A plain file that speaks of bundles inside a longer string is none. */
    check_ok(qd_meta_set(meta, "note", "made by \"quantd-bundle-1\" tools", &err), &err);
    save_weights(in(dir, "plain"), meta);
    m = NULL;
    check_ok(qd_model_open(in(dir, "plain"), NULL, &m, &err), &err);
    assert_string_equal(m->format, "safetensors");
    qd_model_free(m);
    qd_meta_free(meta);
}

static void unknown_files_are_refused(void **state)
{
    static const char *const texts[] = { "", "hello", "\x08\0\0\0\0\0\0\0hello", "\x80\x04.pickle" };
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    qd_model *m = NULL;

    for (size_t k = 0; k < sizeof(texts) / sizeof(texts[0]); k++) {
        check_ok(qd_fs_write(in(dir, "x.safetensors"), texts[k], strlen(texts[k]), &err), &err);
        check_fails(qd_model_open(in(dir, "x.safetensors"), NULL, &m, &err), QD_E_UNSUPPORTED,
                    "'x.safetensors' is in no format we read", &err);
    }
    check_ok(qd_fs_write(in(dir, "x"), "\2\0\0\0\0\0\0\0{]", 10, &err), &err); /* looks like one, is none */
    check_fails(qd_model_open(in(dir, "x"), NULL, &m, &err), QD_E_FORMAT, "x: header: not JSON", &err);
    assert_null(m);
}

static void copies_are_drawn_from_the_budget(void **state)
{
    /* One byte, then a float: the float lies across its alignment and must be copied. */
    static const char file[] = "\x78\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                               "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}              "
                               "\1\0\0\x80\x3f\0\0\0\x40";
    qd_err err = { 0 };
    const char *path = in(harness_tmp(), "a");
    qd_budget budget;
    qd_model *m = NULL;

    check_ok(qd_fs_write(path, file, sizeof(file) - 1, &err), &err);
    qd_budget_init(&budget, 7);
    check_fails(qd_model_open(path, &budget, &m, &err), QD_E_LIMIT, NULL, &err);
    assert_int_equal(budget.used_bytes, 0);
    qd_budget_init(&budget, 100);
    check_ok(qd_model_open(path, &budget, &m, &err), &err);
    assert_true(budget.used_bytes >= 8);
    assert_true(qd_f32(qd_weights_find(m->weights, "b"))[0] == 1.0f);
    assert_true(qd_f32(qd_weights_find(m->weights, "b"))[1] == 2.0f);
    qd_model_free(m);
    assert_int_equal(budget.used_bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_complete),
        cmocka_unit_test(plain_file_with_its_configuration),
        cmocka_unit_test(bundle_by_content),
        cmocka_unit_test(unknown_files_are_refused),
        cmocka_unit_test(copies_are_drawn_from_the_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
