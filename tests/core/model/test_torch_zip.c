/* test_torch_zip.c - archives of checkpoints that are not what they seem, each refused for its own reason; the seeds of the fuzzer. */
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "harness/harness.h"
#include "model/pickle_int.h"

static const char *seed(const char *name)
{
    char path[200];
    snprintf(path, sizeof(path), "tests/fuzz/corpus/torch/seed-%s", name);
    return harness_source(path);
}

static void good_ones(void **state)
{
    static const struct {
        const char *name, *chosen;
        int tensors;
    } rows[] = { { "ok-zip-p2", "", 4 },          { "ok-zip-p4", "", 4 },
                 { "ok-zip-unsummed-p2", "", 4 }, { "ok-stream-p2", "", 4 },
                 { "ok-stream-p4", "", 4 },       { "ok-zip64", "", 4 },
                 { "ok-training-p2", "ema", 4 },  { "ok-training-stream-p4", "ema", 4 },
                 { "ok-byteorder", "", 4 } };
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        qd_err err = { 0 };
        qd_weights *w = NULL;
        qd_meta *meta = NULL;
        print_message("  %s\n", rows[k].name);
        assert_true(qd_torch_sniff(seed(rows[k].name)));
        check_ok(qd_meta_new(&meta, &err), &err);
        check_ok(qd_torch_open(seed(rows[k].name), NULL, &w, meta, NULL, &err), &err);
        assert_int_equal(qd_weights_count(w), rows[k].tensors);
        assert_string_equal(qd_meta_find(meta, QD_TORCH_CHOSEN), rows[k].chosen);
        check_close(qd_f32(qd_weights_find(w, "turned")), ((const float[]){ 0, 3, 1, 4, 2, 5 }), 6, 0.0, 0.0);
        qd_meta_free(meta);
        qd_weights_free(w);
    }
}

static void bad_ones(void **state)
{
    static const struct {
        const char *name;
        qd_status status;
        const char *words;
    } rows[] = {
        { "system", QD_E_UNSUPPORTED, "global 'posix.system' is not something that rebuilds a tensor" },
        { "eval", QD_E_UNSUPPORTED, ".eval' is not something that rebuilds a tensor" },
        { "outside", QD_E_FORMAT, "a tensor ends at element 4 of storage '0', which has 4" },
        { "repeated", QD_E_LIMIT, "laid out plainly" },
        { "big-endian", QD_E_UNSUPPORTED, "highest byte first" },
        { "script", QD_E_UNSUPPORTED, "TorchScript" },
        { "twice", QD_E_FORMAT, "entry 'm/data/0' is there twice" },
        { "dotdot", QD_E_FORMAT, "entry 'm/../x' walks with '.' or '..'" },
        { "absolute", QD_E_FORMAT, "entry '/m/x' is no name beneath the archive" },
        { "backslash", QD_E_FORMAT, "backslashes" },
        { "two-folders", QD_E_FORMAT, "entry 'n/x' is no file of the folder" },
        { "no-folder", QD_E_FORMAT, "entry 'x' is no file of the folder" },
        { "compressed", QD_E_UNSUPPORTED, "entry 'data/0' is compressed (method 8)" },
        { "encrypted", QD_E_UNSUPPORTED, "entry 'm/data/0' is encrypted" },
        { "method-differs", QD_E_FORMAT, "is something else in its own header" },
        { "name-differs", QD_E_FORMAT, "is something else in its own header" },
        { "size-differs", QD_E_FORMAT, "another size or checksum in its own header" },
        { "past-end", QD_E_FORMAT, "passes the directory" },
        { "overlap", QD_E_FORMAT, NULL },
        { "storage-missing", QD_E_NOT_FOUND, "there is no entry 'data/0'" },
        { "storage-short", QD_E_FORMAT, "storage '0' has 15 bytes in the file; 4 elements of f32 take 16" },
        { "pickle-goes-on", QD_E_FORMAT, "data.pkl goes on after its end" },
        { "checksum", QD_E_FORMAT, "has the checksum" },
        { "cut", QD_E_FORMAT, "the end of its directory is missing" },
        { "nothing-in-it", QD_E_NOT_FOUND, "no dict of named tensors" },
        { "self", QD_E_NOT_FOUND, "no dict of named tensors" },
    };
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        qd_err err = { 0 };
        qd_weights *w = NULL;
        print_message("  %s\n", rows[k].name);
        check_fails(qd_torch_open(seed(rows[k].name), NULL, &w, NULL, NULL, &err), rows[k].status, rows[k].words, &err);
        assert_null(w);
    }
}

/* Two entries of the directory with the same bytes behind them. */
static void shared_bytes(void **state)
{
    qd_err err = { 0 };
    qd_map m = { 0 };
    qd_torch_zip z = { 0 };
    char copy[4096];
    check_ok(qd_map_open(&m, seed("ok-zip-unsummed-p2"), &err), &err);
    assert_true(m.size < sizeof(copy));
    memcpy(copy, m.data, m.size);
    const size_t size = m.size;
    qd_map_close(&m);
    check_ok(qd_torch_zip_open(copy, size, &z, &err), &err);
    assert_int_equal(z.names.count, 5);
    qd_torch_zip_clear(&z);
    /* "m/data/1" takes the bytes of data/0, under a header of its own that begins inside them: its name is long enough. */
    char *one = memmem(copy, size, "m/data/1", 8);
    assert_non_null(one);
    char *second = memmem(one + 1, size - (size_t)(one + 1 - copy), "m/data/1", 8); /* in the directory */
    assert_non_null(second);
    char *first = memmem(copy, size, "m/data/0", 8);
    const uint32_t inside = (uint32_t)(first - copy) - 30; /* where the header of data/0 begins */
    memcpy(second - 4, &inside, 4);
    check_fails(qd_torch_zip_open(copy, size, &z, &err), QD_E_FORMAT, "something else in its own header", &err);
    memcpy(first, "m/data/1", 8);
    check_fails(qd_torch_zip_open(copy, size, &z, &err), QD_E_FORMAT, NULL, &err);
}

/* Every byte of a good archive changed once: refused, or still the same tensors; never more. */
static void every_byte_matters(void **state)
{
    qd_err err = { 0 };
    qd_map m = { 0 };
    check_ok(qd_map_open(&m, seed("ok-zip-p2"), &err), &err);
    uint8_t *copy = qd_alloc_aligned(m.size);
    int read = 0;
    for (size_t k = 0; k < m.size; k++) {
        qd_weights *w = NULL;
        qd_err inner = { 0 };
        memcpy(copy, m.data, m.size);
        copy[k] ^= 0x41;
        if (qd_torch_parse(copy, m.size, NULL, &w, NULL, &inner) == QD_OK)
            read++;
        else
            assert_true(inner.text[0] && !w);
        qd_weights_free(w);
    }
    assert_true(read < (int)m.size); /* padding, times and versions say nothing */
    qd_free(copy);
    qd_map_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_ones),
        cmocka_unit_test(bad_ones),
        cmocka_unit_test(shared_bytes),
        cmocka_unit_test(every_byte_matters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
