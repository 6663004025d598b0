/* test_folder.c - the layouts in which models are found, and the ways an index may lie. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "model/model.h"

#define PATH_BYTES 1300

static char root[1100];

static const char *at(const char *name)
{
    static char ring[4][PATH_BYTES];
    static int next;
    char *path = ring[next++ % 4];

    snprintf(path, PATH_BYTES, "%s/%s", root, name);
    return path;
}

static int fresh_root(void **state)
{
    snprintf(root, sizeof(root), "%s", harness_tmp());
    return 0;
}

static void folder(const char *name)
{
    qd_err err = { 0 };
    check_ok(qd_fs_mkdirs(at(name), &err), &err);
}

static void text(const char *name, const char *content)
{
    qd_err err = { 0 };
    check_ok(qd_fs_write(at(name), content, strlen(content), &err), &err);
}

/* A weight file with tensors of one element each; names end with NULL. Value: the length of the name. */
static void weights(const char *file, const char *const *names)
{
    const qd_shape one = QD_SHAPE(1);
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_meta *meta = NULL;

    check_ok(qd_weights_new(&w, &err), &err);
    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_meta_set(meta, "file", file, &err), &err);
    for (; *names; names++) {
        qd_tensor t = { 0 };

        check_ok(qd_tensor_init(&t, QD_F32, &one, NULL, &err), &err);
        qd_f32(&t)[0] = (float)strlen(*names);
        check_ok(qd_weights_add(w, *names, &t, &err), &err);
        qd_tensor_clear(&t);
    }
    check_ok(qd_safetensors_save(at(file), w, meta, NULL, &err), &err);
    qd_weights_free(w);
    qd_meta_free(meta);
}
#define NAMES(...)                                                                                                     \
    (const char *const[])                                                                                              \
    {                                                                                                                  \
        __VA_ARGS__, NULL                                                                                              \
    }

static qd_model *open_ok(const char *path)
{
    qd_err err = { 0 };
    qd_model *m = NULL;

    check_ok(qd_model_open(path, NULL, &m, &err), &err);
    return m;
}

static void open_fails(const char *path, qd_status status, const char *words)
{
    qd_err err = { 0 };
    qd_model *m = NULL;

    check_fails(qd_model_open(path, NULL, &m, &err), status, words, &err);
    assert_null(m);
}

static int64_t steps_of(const qd_model *m)
{
    qd_err err = { 0 };
    int64_t n = -1;

    assert_non_null(m->scheduler);
    check_ok(qd_config_int(m->scheduler, "steps", 0, 100, &n, &err), &err);
    return n;
}

static void network_at_the_top(void **state)
{
    qd_model *m;

    text("config.json", "{\"_class_name\": \"UNet2DModel\"}");
    text("scheduler_config.json", "{\"steps\": 7}");
    text("README.md", "hello");
    weights("diffusion_pytorch_model.safetensors", NAMES("a", "bb"));
    weights("golden.safetensors", NAMES("other")); /* the usual name wins */
    m = open_ok(root);
    assert_string_equal(m->format, "diffusers");
    assert_int_equal(qd_weights_count(m->weights), 2);
    assert_true(qd_config_has(m->config, "_class_name"));
    assert_int_equal(steps_of(m), 7);
    assert_null(m->graph);
    assert_true(m->file_bytes > 100);
    assert_string_equal(qd_meta_find(m->meta, "file"), "diffusion_pytorch_model.safetensors");
    qd_model_free(m);
}

static void pipeline_with_components(void **state)
{
    qd_model *m;

    folder("unet");
    folder("scheduler");
    folder("vqvae");
    text("model_index.json", "{}");
    text("unet/config.json", "{\"sample_size\": 32}");
    text("scheduler/scheduler_config.json", "{\"steps\": 9}");
    weights("unet/diffusion_pytorch_model.fp16.safetensors", NAMES("a"));
    m = open_ok(root);
    assert_true(qd_config_has(m->config, "sample_size"));
    assert_int_equal(steps_of(m), 9);
    assert_null(m->first_stage); /* there is a folder, and nothing in it: the denoiser is worth something by itself */
    assert_non_null(strstr(qd_meta_find(m->meta, QD_FIRST_STAGE_MISSING), "'vqvae' has no *.safetensors"));
    assert_null(m->context);
    qd_model_free(m);

    text("vqvae/config.json", "{\"num_vq_embeddings\": 7}");
    weights("vqvae/diffusion_pytorch_model.safetensors", NAMES("c", "d", "e"));
    weights("context.safetensors", NAMES("context"));
    m = open_ok(root);
    assert_null(qd_meta_find(m->meta, QD_FIRST_STAGE_MISSING));
    assert_non_null(m->first_stage);
    assert_true(qd_config_has(m->first_stage->config, "num_vq_embeddings"));
    assert_int_equal(qd_weights_count(m->first_stage->weights), 3);
    assert_true(m->file_bytes > m->first_stage->file_bytes);
    assert_non_null(qd_weights_find(m->context, "context"));
    qd_model_free(m);
    text("vqvae/config.json", "{\"num_vq_embeddings\": ");
    open_fails(root, QD_E_FORMAT, "config.json");
    text("vqvae/config.json", "{}");
    weights("unet/diffusion_pytorch_model.safetensors", NAMES("a", "b")); /* full precision wins over fp16 */
    m = open_ok(root);
    assert_int_equal(qd_weights_count(m->weights), 2);
    qd_model_free(m);
}

static void one_folder_around_it(void **state)
{
    qd_model *m;

    folder("my-model/unet");
    folder("__MACOSX");
    text(".DS_Store", "x");
    text("my-model/unet/config.json", "{}");
    weights("my-model/unet/weights.safetensors", NAMES("a"));
    m = open_ok(root);
    assert_int_equal(qd_weights_count(m->weights), 1);
    assert_null(m->scheduler);
    qd_model_free(m);
    text("beside", "now it is not the only entry");
    open_fails(root, QD_E_NOT_FOUND, "has no *.safetensors file");
}

/* A pipeline of nothing but unet/ is not mistaken for a wrapper. */
static void lone_unet(void **state)
{
    qd_model *m;

    folder("unet");
    text("unet/config.json", "{}");
    weights("unet/w.safetensors", NAMES("a"));
    m = open_ok(root);
    assert_non_null(m->config);
    qd_model_free(m);
}

static void lone_file_in_a_folder(void **state)
{
    qd_model *m;

    text("README.md", "hello");
    weights("dwnet.safetensors", NAMES("a"));
    m = open_ok(root);
    assert_string_equal(m->format, "safetensors");
    assert_null(m->config);
    assert_int_equal(qd_weights_count(m->weights), 1);
    qd_model_free(m);
}

static void what_is_missing_or_too_much(void **state)
{
    text("config.json", "{}");
    open_fails(root, QD_E_NOT_FOUND, "has no *.safetensors file");
    text("diffusion_pytorch_model.bin", "pickle");
    open_fails(root, QD_E_FORMAT, "diffusion_pytorch_model.bin: neither an archive nor a stream of PyTorch");
    weights("b.safetensors", NAMES("a"));
    weights("a.safetensors", NAMES("a"));
    weights("c.safetensors", NAMES("a"));
    open_fails(root, QD_E_FORMAT,
               "3 weight files and none is called diffusion_pytorch_model.safetensors: "
               "'a.safetensors', 'b.safetensors'");
    weights("diffusion_pytorch_model.safetensors", NAMES("a"));
    qd_model_free(open_ok(root));
    text("config.json", "{\"a\": ");
    open_fails(root, QD_E_FORMAT, "config.json: not JSON");
    text("config.json", "{}");
    text("scheduler_config.json", "[]");
    open_fails(root, QD_E_FORMAT, "scheduler_config.json: the text is JSON but not an object");
    text("diffusion_pytorch_model.safetensors", "nothing");
    text("scheduler_config.json", "{}");
    open_fails(root, QD_E_FORMAT, "diffusion_pytorch_model.safetensors: 7 bytes are too few");
    text("model_index.json", "{}");
    open_fails(root, QD_E_UNSUPPORTED, "a pipeline without a 'unet' folder");
    open_fails(at("nowhere"), QD_E_NOT_FOUND, "there is no file or folder");
}

#define INDEX "diffusion_pytorch_model.safetensors.index.json"
#define ONE "model-00001-of-00002.safetensors"
#define TWO "model-00002-of-00002.safetensors"

static void shards(void **state)
{
    qd_model *m;

    text("config.json", "{}");
    weights(ONE, NAMES("c", "a"));
    weights(TWO, NAMES("bbb"));
    text(INDEX, "{\"metadata\": {\"total_size\": 12},"
                " \"weight_map\": {\"a\": \"" ONE "\", \"bbb\": \"" TWO "\", \"c\": \"" ONE "\"}}");
    m = open_ok(root);
    assert_int_equal(qd_weights_count(m->weights), 3);
    assert_string_equal(qd_weights_name(m->weights, 0), "a"); /* the order of the index */
    assert_string_equal(qd_weights_name(m->weights, 1), "bbb");
    assert_true(qd_f32(qd_weights_find(m->weights, "bbb"))[0] == 3.0f);
    qd_model_free(m);

    text(INDEX, "{\"weight_map\": {\"a\": \"" ONE "\", \"bbb\": \"" TWO "\"}}");
    open_fails(root, QD_E_FORMAT, "'" ONE "' holds tensor 'c', which the index puts into no file");
    text(INDEX, "{\"weight_map\": {\"a\": \"" ONE "\", \"bbb\": \"" TWO "\", \"c\": \"" TWO "\"}}");
    open_fails(root, QD_E_FORMAT, "holds tensor 'c', which the index puts into " TWO);
    text(INDEX, "{\"weight_map\": {\"a\": \"" ONE "\", \"c\": \"" ONE "\", \"d\": \"" ONE "\"}}");
    open_fails(root, QD_E_FORMAT, "tensor 'd' is not in '" ONE "'");
    text(INDEX, "{\"weight_map\": {\"a\": \"model-3.safetensors\"}}");
    open_fails(root, QD_E_NOT_FOUND, "model-3.safetensors");
}

static void an_index_reaches_nowhere_else(void **state)
{
    static const char *const files[] = {
        "../x.safetensors",  "/tmp/x.safetensors", "sub/x.safetensors", "..", ".x.safetensors", "x.bin", "",
        "a\\\\x.safetensors"
    };

    folder("sub");
    text("config.json", "{}");
    weights("x.safetensors", NAMES("a"));
    weights("sub/x.safetensors", NAMES("a"));
    for (size_t k = 0; k < sizeof(files) / sizeof(files[0]); k++) {
        char index[200];

        snprintf(index, sizeof(index), "{\"weight_map\": {\"a\": \"%s\"}}", files[k]);
        text(INDEX, index);
        open_fails(root, QD_E_FORMAT, "is not the name of a .safetensors file in the same folder");
    }
    text(INDEX, "{\"weight_map\": {\"a\": 3}}");
    open_fails(root, QD_E_FORMAT, "'a' is 3, want a string");
    text(INDEX, "{\"weight_map\": []}");
    open_fails(root, QD_E_FORMAT, "'weight_map' must be an object of strings");
    text(INDEX, "{}");
    open_fails(root, QD_E_FORMAT, "'weight_map' must be an object of strings");
    text(INDEX, "{\"weight_map\": {\"a\": \"x.safetensors\"}}");
    qd_model_free(open_ok(root));
}

static void every_allocation_may_fail(void **state)
{
    long k = 0;

    folder("m/scheduler");
    text("m/config.json", "{}");
    text("m/scheduler/scheduler_config.json", "{\"steps\": 7}");
    weights("m/" ONE, NAMES("c", "a"));
    weights("m/" TWO, NAMES("bbb"));
    text("m/" INDEX, "{\"weight_map\": {\"a\": \"" ONE "\", \"bbb\": \"" TWO "\", \"c\": \"" ONE "\"}}");
    for (;; k++) {
        qd_err err = { 0 };
        qd_model *m = NULL;

        qd_mem_fault_set(k);
        const qd_status st = qd_model_open(root, NULL, &m, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        if (!hit) {
            check_ok(st, &err);
            assert_int_equal(qd_weights_count(m->weights), 3);
            qd_model_free(m);
            break;
        }
        if (st == QD_OK) { /* asking whether a file is there may give up; then the rest must still be right */
            assert_int_equal(qd_weights_count(m->weights), 3);
            qd_model_free(m);
        } else {
            assert_null(m);
        }
    }
    assert_true(k > 50);
}

/* The denoiser that ships with us, as found in the source. */
static void shipped_model(void **state)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    const char *word = NULL;

    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &m, &err), &err);
    assert_string_equal(m->format, "diffusers");
    assert_int_equal(qd_weights_count(m->weights), 184);
    check_ok(qd_config_string(m->config, "_class_name", &word, &err), &err);
    assert_string_equal(word, "UNet2DModel");
    check_ok(qd_config_string(m->scheduler, "beta_schedule", &word, &err), &err);
    assert_string_equal(word, "linear");
    qd_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(network_at_the_top, fresh_root),
        cmocka_unit_test_setup(pipeline_with_components, fresh_root),
        cmocka_unit_test_setup(one_folder_around_it, fresh_root),
        cmocka_unit_test_setup(lone_unet, fresh_root),
        cmocka_unit_test_setup(lone_file_in_a_folder, fresh_root),
        cmocka_unit_test_setup(what_is_missing_or_too_much, fresh_root),
        cmocka_unit_test_setup(shards, fresh_root),
        cmocka_unit_test_setup(an_index_reaches_nowhere_else, fresh_root),
        cmocka_unit_test_setup(every_allocation_may_fail, fresh_root),
        cmocka_unit_test(shipped_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
