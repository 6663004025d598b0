/* test_onnx_refuse.c - ONNX files that strangers may send: what is refused and in which words; external data; metadata. */
#include "onnx_run.h"

#include "base/fs.h"

#define SEED(name) "tests/fuzz/corpus/onnx/seed-" name

/* The bytes of a file of the repository (qd_free). */
static char *bytes_of(const char *relative, size_t *size)
{
    char *data = NULL;
    qd_err err = { 0 };
    check_ok(qd_fs_take(harness_source(relative), 1 << 20, &data, size, &err), &err);
    return data;
}

static qd_status read_bytes(const char *relative, qd_budget *budget, qd_err *err)
{
    size_t size = 0;
    qd_graph *g = NULL;
    char *data = bytes_of(relative, &size);
    const qd_status st = qd_onnx_read(data, size, budget, &g, err);
    qd_free(data);
    qd_graph_free(g);
    return st;
}

static void words_name_the_node(void **state)
{
    qd_err err = { 0 };
    check_fails(read_bytes(SEED("unknown-op"), NULL, &err), QD_E_UNSUPPORTED, "'Mystery_0' (Mystery)", &err);
    check_fails(read_bytes(SEED("if"), NULL, &err), QD_E_UNSUPPORTED, "'If_0' (If, with a graph inside)", &err);
    check_fails(read_bytes(SEED("twice"), NULL, &err), QD_E_FORMAT, "node 'Relu_0' (Relu): the value 'y' is made twice",
                &err);
    check_fails(read_bytes(SEED("loop"), NULL, &err), QD_E_FORMAT,
                "node 'Add_0' (Add): input 'y' is made by no node before it", &err);
    check_fails(read_bytes(SEED("slice-extremes"), NULL, &err), QD_E_UNSUPPORTED, "node 'Slice_0' (Slice): step", &err);
    check_fails(read_bytes(SEED("pads-extremes"), NULL, &err), QD_E_UNSUPPORTED, "node 'Pad_0' (Pad): pads", &err);
}

static void words_name_the_tensor(void **state)
{
    qd_err err = { 0 };
    check_fails(read_bytes(SEED("huge-dims"), NULL, &err), QD_E_LIMIT, "tensor 'w' has more than", &err);
    check_fails(read_bytes(SEED("external"), NULL, &err), QD_E_UNSUPPORTED,
                "tensor 'w' lies in another file ('../w.bin')", &err);
}

static void weights_must_be_finite(void **state)
{
    qd_err err = { 0 };
    check_fails(read_bytes(SEED("nan-weight"), NULL, &err), QD_E_NUMERIC, "tensor 'w' holds NaN at element 1", &err);
    check_fails(read_bytes(SEED("infinite-weight"), NULL, &err), QD_E_NUMERIC,
                "tensor 'w' holds infinity at element 15; weights must be finite", &err);
    check_ok(read_bytes(SEED("infinite-mask"), NULL, &err), &err); /* before a softmax it has a meaning */
}

static void words_name_what_is_wrong_with_codes(void **state)
{
    qd_err err = { 0 };
    check_fails(read_bytes(SEED("scale-zero"), NULL, &err), QD_E_FORMAT,
                "node 'QuantizeLinear_0' (QuantizeLinear): scale 0 must be finite and > 0, got 0", &err);
    check_fails(read_bytes(SEED("scales-of-x"), NULL, &err), QD_E_UNSUPPORTED,
                "a computed value with more than one scale", &err);
    check_fails(read_bytes(SEED("codes-of-16-bits"), NULL, &err), QD_E_UNSUPPORTED, "codes of type uint16 (4)", &err);
    check_fails(read_bytes(SEED("dynamic-codes"), NULL, &err), QD_E_UNSUPPORTED,
                "'DynamicQuantizeLinear_0' (DynamicQuantizeLinear, its scale is known at run time only)", &err);
    check_fails(read_bytes(SEED("block-extremes"), NULL, &err), QD_E_FORMAT, "block_size 9223372036854775807", &err);
    check_fails(read_bytes(SEED("nibbles-short"), NULL, &err), QD_E_FORMAT,
                "tensor 'w' uint4 [4, 4] needs 8 bytes, the file gives 7", &err);
    check_ok(read_bytes(SEED("nibbles-odd"), NULL, &err), &err);
}

static void odd_equations_and_copies_are_refused(void **state)
{
    qd_err err = { 0 };
    check_fails(read_bytes(SEED("einsum-odd"), NULL, &err), QD_E_FORMAT, "node 'Einsum_0' (Einsum): the equation",
                &err);
    check_fails(read_bytes(SEED("einsum-long"), NULL, &err), QD_E_UNSUPPORTED, "the equation 'ab,cd->abcdefghijklmnop'",
                &err);
    check_fails(read_bytes(SEED("tile-extremes"), NULL, &err), QD_E_UNSUPPORTED,
                "4611686018427387905 repeats of axis 1", &err);
    check_fails(read_bytes(SEED("scatter-outside"), NULL, &err), QD_E_FORMAT, "index 1099511627776 is outside 0..3",
                &err);
}

static void many_unknown_nodes_are_counted(void **state)
{
    qd_err err = { 0 };
    check_fails(read_bytes(SEED("many-empty-nodes"), NULL, &err), QD_E_UNSUPPORTED,
                "4000 nodes are of kinds we do not read", &err);
}

static void size_and_depth_are_bounded(void **state)
{
    qd_err err = { 0 };
    check_fails(read_bytes(SEED("deep"), NULL, &err), QD_E_LIMIT, "nests messages more than 16 deep", &err);
    check_fails(read_bytes(SEED("opset-99"), NULL, &err), QD_E_UNSUPPORTED, "opset 99, we read 7 to 21", &err);
    check_fails(read_bytes(SEED("truncated"), NULL, &err), QD_E_FORMAT, "no ONNX model", &err);
    check_fails(read_bytes(SEED("huge-constant"), NULL, &err), QD_E_LIMIT,
                "node 'ConstantOfShape_0' (ConstantOfShape): ", &err);
}

/* A file that would unpack to a hundred times its size is refused before it does. */
static void amplification_is_refused(void **state)
{
    enum { NODES = 3000000 };
    qd_err err = { 0 };
    qd_graph *g = NULL;
    const size_t size = 2 + 5 + 2 * NODES;
    uint8_t *data = malloc(size);
    assert_non_null(data);
    size_t at = 0;
    data[at++] = 0x08; /* ir_version 8 */
    data[at++] = 8;
    data[at++] = 0x3a; /* graph, length in four groups of seven bits */
    for (int k = 0; k < 4; k++)
        data[at++] = (uint8_t)((2u * NODES >> (7 * k) & 0x7f) | (k < 3 ? 0x80 : 0));
    for (int k = 0; k < NODES; k++) { /* empty nodes */
        data[at++] = 0x0a;
        data[at++] = 0;
    }
    check_fails(qd_onnx_read(data, size, NULL, &g, &err), QD_E_LIMIT, "unpacked, the", &err);
    free(data);
}

static void memory_comes_from_the_budget(void **state)
{
    qd_budget budget;
    qd_err err = { 0 };
    qd_budget_init(&budget, 4096);
    check_fails(read_bytes("tests/golden/onnx/vit.onnx", &budget, &err), QD_E_LIMIT, NULL, &err);
    assert_int_equal(budget.used_bytes, 0);
    qd_budget_init(&budget, 8 << 20);
    check_ok(read_bytes("tests/golden/onnx/vit.onnx", &budget, &err), &err);
    assert_int_equal(budget.used_bytes, 0);
    assert_true(budget.peak_bytes > 30000);
}

/* --- folders --- */

static const char *folder_with(const char *weights, size_t weight_bytes)
{
    const char *dir = harness_tmp();
    char *path = qd_fs_join(dir, "model.onnx");
    qd_err err = { 0 };
    size_t size = 0;
    char *data = bytes_of("tests/golden/onnx/external/model.onnx", &size);
    check_ok(qd_fs_write(path, data, size, &err), &err);
    qd_free(data);
    qd_free(path);
    if (weights) {
        path = qd_fs_join(dir, "weights.bin");
        check_ok(qd_fs_write(path, weights, weight_bytes, &err), &err);
        qd_free(path);
    }
    return dir;
}

static void external_data_lies_in_the_folder(void **state)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_weights *w = NULL;
    size_t size = 0;
    char *weights = bytes_of("tests/golden/onnx/external/weights.bin", &size);
    check_ok(qd_safetensors_open(harness_source("tests/golden/onnx/golden.safetensors"), &w, NULL, &err), &err);
    check_ok(qd_model_open(folder_with(weights, size), NULL, &m, &err), &err);
    assert_string_equal(m->format, "onnx-folder");
    check_graph(m->graph, NULL, w, "external/in/", "external/out/", 2e-6);
    qd_model_free(m);
    qd_weights_free(w);

    check_fails(qd_model_open(folder_with(weights, size - 1), NULL, &m, &err), QD_E_FORMAT,
                "tensor 'fc.bias': bytes 96 + 10 are not in 'weights.bin', which has 105", &err);
    check_fails(qd_model_open(folder_with(NULL, 0), NULL, &m, &err), QD_E_NOT_FOUND,
                "tensor 'fc.weight': there is no file 'weights.bin' in the model's folder", &err);
    qd_free(weights);
}

static void a_lone_file_may_not_reach_its_neighbours(void **state)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    check_fails(qd_model_open(harness_source("tests/golden/onnx/external/model.onnx"), NULL, &m, &err),
                QD_E_UNSUPPORTED, "model.onnx: tensor 'fc.weight' lies in another file ('weights.bin')", &err);
}

/* model.onnx of the folder with its location overwritten by as many bytes. */
static void open_with_location(const char *location, qd_err *err, qd_status *st)
{
    size_t size = 0;
    qd_model *m = NULL;
    char *data = bytes_of("tests/golden/onnx/external/model.onnx", &size);
    const char *dir = harness_tmp();
    char *path = qd_fs_join(dir, "model.onnx"), *at;
    assert_int_equal(strlen(location), strlen("weights.bin"));
    while ((at = memmem(data, size, "weights.bin", strlen("weights.bin"))))
        memcpy(at, location, strlen(location));
    check_ok(qd_fs_write(path, data, size, err), err);
    *st = qd_model_open(dir, NULL, &m, err);
    qd_model_free(m);
    qd_free(path);
    qd_free(data);
}

static void external_data_stays_in_the_folder(void **state)
{
    static const char *const escapes[] = { "../../w.bin",   "/etc/passwd", "a/../../bin",
                                           "..\\..\\w.bin", "sub//w..bin", ".hidden.bin" };
    for (size_t k = 0; k < sizeof(escapes) / sizeof(escapes[0]); k++) {
        qd_err err = { 0 };
        qd_status st;
        open_with_location(escapes[k], &err, &st);
        check_fails(st, QD_E_FORMAT, "is not a file inside the model's folder", &err);
    }
}

/* What a file that came alone is called, by its bytes. */
static void bytes_tell_the_name(void **state)
{
    assert_string_equal(qd_model_file_name(harness_source("tests/golden/onnx/resnet.onnx")), "model.onnx");
    assert_string_equal(qd_model_file_name(harness_source("tests/golden/onnx/golden.safetensors")),
                        "model.safetensors");
    assert_null(qd_model_file_name(harness_source("tests/golden/onnx/make_onnx.py")));
    assert_null(qd_model_file_name(harness_source("tests/golden/onnx")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_name_the_node),
        cmocka_unit_test(words_name_the_tensor),
        cmocka_unit_test(weights_must_be_finite),
        cmocka_unit_test(words_name_what_is_wrong_with_codes),
        cmocka_unit_test(odd_equations_and_copies_are_refused),
        cmocka_unit_test(many_unknown_nodes_are_counted),
        cmocka_unit_test(size_and_depth_are_bounded),
        cmocka_unit_test(amplification_is_refused),
        cmocka_unit_test(memory_comes_from_the_budget),
        cmocka_unit_test(external_data_lies_in_the_folder),
        cmocka_unit_test(a_lone_file_may_not_reach_its_neighbours),
        cmocka_unit_test(external_data_stays_in_the_folder),
        cmocka_unit_test(bytes_tell_the_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
