/* test_safetensors.c - what is written is read back, every rule of the format is kept, every refusal has its words. */
#include "harness/harness.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/fs.h"
#include "base/mem.h"
#include "model/model.h"

#define PATH_BYTES 1200

static const char *in(const char *dir, const char *name)
{
    static char path[PATH_BYTES];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

/* A file of this header and n bytes of data 0, 1, 0, 1, .. (so that BOOL is well formed); malloc'd, 64-byte aligned. */
static uint8_t *make_file(const char *header, size_t n, size_t *size)
{
    const size_t h = strlen(header);
    uint8_t *p = aligned_alloc(64, (8 + h + n + 63) / 64 * 64);

    assert_non_null(p);
    for (int k = 0; k < 8; k++)
        p[k] = (uint8_t)((uint64_t)h >> (8 * k));
    memcpy(p + 8, header, h);
    for (size_t k = 0; k < n; k++)
        p[8 + h + k] = k & 1;
    *size = 8 + h + n;
    return p;
}

static qd_status parse(const char *header, size_t n, qd_weights **w, qd_meta *meta, qd_err *err)
{
    size_t size;
    uint8_t *file = make_file(header, n, &size), *exact = malloc(size ? size : 1);
    qd_status st;

    memcpy(exact, file, size); /* an allocation of exactly that size: reading past it is seen */
    free(file);
    st = qd_safetensors_parse(exact, size, w, meta, err);
    if (st)
        assert_null(*w);
    free(exact);
    return st;
}

/* --- refusals --- */

#define T(rest) "{\"layer.w\":{" rest "}}"
#define F32X2 "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"

static const struct refusal {
    const char *header;
    size_t data_bytes;
    qd_status status;
    const char *words;
} refusals[] = {
    /* the text */
    { "", 0, QD_E_FORMAT, "does not begin with '{'" },
    { " {}", 0, QD_E_FORMAT, "does not begin with '{'" },
    { "[]", 0, QD_E_FORMAT, "does not begin with '{'" },
    { "{", 0, QD_E_FORMAT, "not JSON" },
    { "{}x", 0, QD_E_FORMAT, "not JSON" },
    { "{\"a\":}", 0, QD_E_FORMAT, "not JSON" },
    { "{\"\xff\":1}", 0, QD_E_FORMAT, "not JSON" },
    { "{\"a\\u0000b\":{" F32X2 "}}", 8, QD_E_FORMAT, "not JSON" },
    { "{\"a\":{" F32X2 "},\"a\":{" F32X2 "}}", 8, QD_E_FORMAT, "duplicate" },
    { T(F32X2 ",\"dtype\":\"F32\""), 8, QD_E_FORMAT, "duplicate" },
    { "{\"a\":[[[[1]]]]}", 0, QD_E_LIMIT, "nested deeper than 3" },
    /* entries */
    { "{\"layer.w\":3}", 0, QD_E_FORMAT, "'layer.w': its entry is not an object" },
    { "{\"\":{" F32X2 "}}", 8, QD_E_LIMIT, "a name must have 1..512 bytes" },
    { T(F32X2 ",\"stride\":[1]"), 8, QD_E_FORMAT, "'layer.w': unknown key 'stride'" },
    { T(""), 0, QD_E_FORMAT, "'layer.w': dtype is missing" },
    { T("\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]"), 8, QD_E_FORMAT, "dtype is missing or not a string" },
    { T("\"dtype\":\"F8_E4M3\",\"shape\":[8],\"data_offsets\":[0,8]"), 8, QD_E_UNSUPPORTED,
      "'layer.w' has dtype 'F8_E4M3'; known are F32" },
    { T("\"dtype\":\"f32\",\"shape\":[2],\"data_offsets\":[0,8]"), 8, QD_E_UNSUPPORTED, "'f32'" },
    { T("\"dtype\":\"F32\",\"data_offsets\":[0,8]"), 8, QD_E_FORMAT, "shape is missing" },
    { T("\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]"), 8, QD_E_FORMAT, "shape is missing or not an array" },
    { T("\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]"), 8, QD_E_FORMAT, "dimension 0 is not a whole" },
    { T("\"dtype\":\"F32\",\"shape\":[1,-2],\"data_offsets\":[0,8]"), 8, QD_E_FORMAT, "dimension 1 is not a whole" },
    { T("\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]"), 8, QD_E_LIMIT,
      "has 9 dimensions, the limit is 8" },
    { T("\"dtype\":\"F32\",\"shape\":[9223372036854775808],\"data_offsets\":[0,8]"), 8, QD_E_FORMAT, "too big" },
    { T("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]"), 8, QD_E_LIMIT,
      "'layer.w': the product of its shape" },
    { T("\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]"), 0, QD_E_LIMIT,
      "the product of its shape" }, /* 2^62 elements of 4 bytes wrap to 0 in 64 bits */
    { T("\"dtype\":\"F32\",\"shape\":[2]"), 8, QD_E_FORMAT, "data_offsets must be [begin, end]" },
    { T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]"), 8, QD_E_FORMAT, "data_offsets must be" },
    { T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]"), 8, QD_E_FORMAT, "data_offsets must be" },
    { T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]"), 8, QD_E_FORMAT, "0 <= begin <= end" },
    { T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]"), 8, QD_E_FORMAT, "0 <= begin <= end" },
    { T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,\"8\"]"), 8, QD_E_FORMAT, "whole numbers" },
    { T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]"), 8, QD_E_FORMAT,
      "'layer.w' ends at byte 12, the data has 8" },
    { T("\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]"), 8, QD_E_FORMAT,
      "'layer.w' F32 [3] takes 12 bytes, data_offsets [0, 8] give 8" },
    { T("\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,8]"), 8, QD_E_FORMAT, "F32 [] takes 4 bytes" },
    { T("\"dtype\":\"BOOL\",\"shape\":[8],\"data_offsets\":[0,8]"), 9, QD_E_FORMAT,
      "end at byte 8, but the data has 9" },
    /* all of them together */
    { "{}", 1, QD_E_FORMAT, "the tensors end at byte 0, but the data has 1" },
    { T(F32X2), 9, QD_E_FORMAT, "the tensors end at byte 8, but the data has 9" },
    { "{\"a\":{" F32X2 "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[6,10]}}", 10, QD_E_FORMAT,
      "'b' begins at byte 6, inside 'a' which ends at 8" },
    { "{\"a\":{" F32X2 "},\"b\":{" F32X2 "}}", 8, QD_E_FORMAT, "begins at byte 0, inside" },
    { "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[9,13]},\"a\":{" F32X2 "}}", 13, QD_E_FORMAT,
      "bytes 8 to 9 before tensor 'b' belong to no tensor" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}", 8, QD_E_FORMAT, "bytes 0 to 4 before" },
    { "{\"a\":{" F32X2 "},\"z\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}}", 8, QD_E_FORMAT,
      "'z' begins at byte 4, inside 'a'" },
    /* metadata */
    { "{\"__metadata__\":[]}", 0, QD_E_FORMAT, "__metadata__ is not an object" },
    { "{\"__metadata__\":null}", 0, QD_E_FORMAT, "__metadata__ is not an object" },
    { "{\"__metadata__\":{\"epoch\":7}}", 0, QD_E_FORMAT, "the value of 'epoch' is not a string" },
    { "{\"__metadata__\":{\"a\":{}}}", 0, QD_E_FORMAT, "the value of 'a' is not a string" },
};

static void each_rule_refuses(void **state)
{
    qd_err err = { 0 };

    for (size_t k = 0; k < sizeof(refusals) / sizeof(refusals[0]); k++) {
        const struct refusal *r = &refusals[k];
        qd_weights *w = NULL;
        qd_meta *meta = NULL;
        qd_status st;

        check_ok(qd_meta_new(&meta, &err), &err);
        st = parse(r->header, r->data_bytes, &w, meta, &err);
        if (st != r->status)
            print_error("header %s\n", r->header);
        check_fails(st, r->status, r->words, &err);
        assert_int_equal(qd_meta_count(meta), 0);
        qd_meta_free(meta);
    }
}

static void lengths_are_checked_before_use(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    uint8_t head[16] = { 0 };

    for (size_t n = 0; n < 8; n++)
        check_fails(qd_safetensors_parse(head, n, &w, NULL, &err), QD_E_FORMAT, "too few for the 8-byte length", &err);
    check_fails(qd_safetensors_parse(head, 8, &w, NULL, &err), QD_E_FORMAT, "does not begin with '{'", &err);
    head[0] = 9;
    head[8] = '{';
    check_fails(qd_safetensors_parse(head, 16, &w, NULL, &err), QD_E_FORMAT,
                "the header ends at byte 17, the file has 16", &err);
    memset(head, 0xff, 8);
    check_fails(qd_safetensors_parse(head, 16, &w, NULL, &err), QD_E_LIMIT, "claims 18446744073709551615 bytes", &err);
    const uint64_t over = 100000001;
    memcpy(head, &over, 8);
    check_fails(qd_safetensors_parse(head, 16, &w, NULL, &err), QD_E_LIMIT,
                "claims 100000001 bytes, the limit is 100000000", &err);
    const uint64_t at = 100000000;
    memcpy(head, &at, 8);
    check_fails(qd_safetensors_parse(head, 16, &w, NULL, &err), QD_E_FORMAT, "ends at byte 100000008", &err);
    assert_null(w);
}

/* A header of many tiny values would cost the JSON library gigabytes; it is counted first. */
static void too_many_values_are_refused_early(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_buf b;

    qd_buf_init(&b, 0);
    qd_buf_adds(&b, "{\"a\":[0");
    for (int k = 0; k < 1500000; k++)
        qd_buf_add(&b, ",0", 2);
    qd_buf_adds(&b, "]}");
    assert_false(b.failed);
    check_fails(parse(b.data, 0, &w, NULL, &err), QD_E_LIMIT, "more than 1500000 values", &err);
    qd_buf_clear(&b);
}

static void long_names_are_refused(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    char header[1024], name[514];

    memset(name, 'n', sizeof(name));
    name[513] = '\0';
    snprintf(header, sizeof(header), "{\"%s\":{" F32X2 "}}", name);
    check_fails(parse(header, 8, &w, NULL, &err), QD_E_LIMIT, "this one has 513", &err);
    name[512] = '\0';
    snprintf(header, sizeof(header), "{\"%s\":{" F32X2 "}}", name);
    check_ok(parse(header, 8, &w, NULL, &err), &err);
    assert_non_null(qd_weights_find(w, name));
    qd_weights_free(w);
}

static void bool_is_zero_or_one(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    size_t size;
    uint8_t *file = make_file(T("\"dtype\":\"BOOL\",\"shape\":[4],\"data_offsets\":[0,4]"), 4, &size);

    check_ok(qd_safetensors_parse(file, size, &w, NULL, &err), &err);
    qd_weights_free(w);
    w = NULL;
    file[size - 2] = 2;
    check_fails(qd_safetensors_parse(file, size, &w, NULL, &err), QD_E_FORMAT,
                "'layer.w': element 2 of a BOOL tensor is 2", &err);
    free(file);
}

/* --- what is accepted --- */

static void header_order_shapes_and_empties(void **state)
{
    static const char header[] =
        "{\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]},"
        "\"none\":{\"dtype\":\"F64\",\"shape\":[3,0,9223372036854775807],\"data_offsets\":[4,4]},"
        "\"a\":{\"data_offsets\":[0,4],\"shape\":[],\"dtype\":\"I32\"}}   \n";
    qd_err err = { 0 };
    qd_weights *w = NULL;
    size_t size;
    uint8_t *file = make_file(header, 12, &size);

    check_ok(qd_safetensors_parse(file, size, &w, NULL, &err), &err);
    assert_int_equal(qd_weights_count(w), 3);
    assert_string_equal(qd_weights_name(w, 0), "b");
    assert_string_equal(qd_weights_name(w, 1), "none");
    assert_string_equal(qd_weights_name(w, 2), "a");
    assert_int_equal(qd_tensor_count(qd_weights_at(w, 1)), 0);
    assert_int_equal(qd_weights_at(w, 1)->shape.rank, 3);
    assert_int_equal(qd_weights_at(w, 2)->shape.rank, 0);
    assert_memory_equal(qd_weights_at(w, 2)->data, file + size - 12, 4);
    assert_memory_equal(qd_weights_at(w, 0)->data, file + size - 8, 8);
    qd_weights_free(w);
    free(file);
}

/* A tensor across its alignment is copied; one that lies well is a view. */
static void misaligned_tensors_are_copied(void **state)
{
    static const char *const headers[] = { T(F32X2), T(F32X2) " ", T(F32X2) "  ", T(F32X2) "   ", T(F32X2) "    " };
    int views = 0;

    for (size_t k = 0; k < sizeof(headers) / sizeof(headers[0]); k++) {
        qd_err err = { 0 };
        qd_weights *w = NULL;
        size_t size;
        uint8_t *file = make_file(headers[k], 8, &size), *data = file + size - 8;
        const float want[2] = { 1.5f, -2.0f };

        memcpy(data, want, sizeof(want));
        check_ok(qd_safetensors_parse(file, size, &w, NULL, &err), &err);
        assert_int_equal((uintptr_t)qd_weights_at(w, 0)->data % 4, 0);
        assert_memory_equal(qd_f32(qd_weights_at(w, 0)), want, sizeof(want));
        assert_int_equal(qd_weights_at(w, 0)->data == data, (uintptr_t)data % 4 == 0);
        views += qd_weights_at(w, 0)->data == data;
        qd_weights_free(w);
        free(file);
    }
    assert_in_range(views, 1, 2);
}

static void metadata_is_read_and_replaces(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_meta *meta = NULL;

    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_meta_set(meta, "mine", "stays", &err), &err);
    check_ok(qd_meta_set(meta, "format", "old", &err), &err);
    check_ok(parse("{\"__metadata__\":{\"format\":\"pt\",\"u\":\"\\u00e9 \\\"q\\\"\"}}", 0, &w, meta, &err), &err);
    assert_int_equal(qd_weights_count(w), 0);
    assert_int_equal(qd_meta_count(meta), 3);
    assert_string_equal(qd_meta_find(meta, "mine"), "stays");
    assert_string_equal(qd_meta_find(meta, "format"), "pt");
    assert_string_equal(qd_meta_find(meta, "u"), "\xc3\xa9 \"q\"");
    qd_weights_free(w);
    qd_meta_free(meta);
}

/* --- writing --- */

static const struct sample {
    const char *name;
    qd_dtype dtype;
    qd_shape shape;
} samples[] = {
    { "odd.i8", QD_I8, { 1, { 3 } } },
    { "w.f32", QD_F32, { 4, { 2, 3, 1, 5 } } },
    { "h \"quoted\" \xc3\xa9\n", QD_F16, { 2, { 3, 3 } } },
    { "bf", QD_BF16, { 1, { 7 } } },
    { "d", QD_F64, { 1, { 2 } } },
    { "i64", QD_I64, { 0, { 0 } } },
    { "i32", QD_I32, { 1, { 3 } } },
    { "i16", QD_I16, { 1, { 1 } } },
    { "u8", QD_U8, { 2, { 5, 1 } } },
    { "flags", QD_BOOL, { 1, { 5 } } },
    { "empty", QD_F32, { 2, { 0, 4 } } },
};
#define N_SAMPLES ((int)(sizeof(samples) / sizeof(samples[0])))

static qd_weights *make_samples(void)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_rng rng;

    qd_rng_init(&rng, 20, 0);
    check_ok(qd_weights_new(&w, &err), &err);
    for (int k = 0; k < N_SAMPLES; k++) {
        qd_tensor t = { 0 };

        check_ok(qd_tensor_init(&t, samples[k].dtype, &samples[k].shape, NULL, &err), &err);
        for (size_t j = 0; j < qd_tensor_bytes(&t); j++)
            ((uint8_t *)t.data)[j] = (uint8_t)(qd_rng_u32(&rng) & (t.dtype == QD_BOOL ? 1 : 255));
        check_ok(qd_weights_add(w, samples[k].name, &t, &err), &err);
        qd_tensor_clear(&t);
    }
    return w;
}

static void check_same(const qd_weights *a, const qd_weights *b)
{
    assert_int_equal(qd_weights_count(a), qd_weights_count(b));
    for (int k = 0; k < qd_weights_count(a); k++) {
        const qd_tensor *x = qd_weights_at(a, k), *y = qd_weights_at(b, k);

        assert_string_equal(qd_weights_name(a, k), qd_weights_name(b, k));
        assert_int_equal(x->dtype, y->dtype);
        assert_true(qd_shape_equal(&x->shape, &y->shape));
        if (qd_tensor_bytes(x))
            assert_memory_equal(x->data, y->data, qd_tensor_bytes(x));
    }
}

static void save_then_open_is_identity(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    char first[PATH_BYTES], second[PATH_BYTES], hash[QD_SHA256_HEX], again[QD_SHA256_HEX], disk[QD_SHA256_HEX];
    qd_weights *w = make_samples(), *r = NULL;
    qd_meta *meta = NULL, *got = NULL;
    qd_map m;

    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_meta_new(&got, &err), &err);
    check_ok(qd_meta_set(meta, "config", "{\"a\": \"\\n\"}", &err), &err);
    check_ok(qd_meta_set(meta, "tab\t", "\xe2\x82\xac", &err), &err);
    snprintf(first, sizeof(first), "%s/first.safetensors", dir);
    snprintf(second, sizeof(second), "%s/second.safetensors", dir);
    check_ok(qd_safetensors_save(first, w, meta, hash, &err), &err);
    check_ok(qd_fs_sha256(first, disk, &err), &err);
    assert_string_equal(hash, disk);

    check_ok(qd_safetensors_open(first, &r, got, &err), &err);
    check_same(w, r);
    assert_int_equal(qd_meta_count(got), 2);
    assert_string_equal(qd_meta_find(got, "config"), "{\"a\": \"\\n\"}");
    assert_string_equal(qd_meta_find(got, "tab\t"), "\xe2\x82\xac");

    /* Every tensor lies on its alignment in the file, the data on 64. */
    check_ok(qd_map_open(&m, first, &err), &err);
    uint64_t header;
    memcpy(&header, m.data, 8);
    assert_int_equal((header + 8) % 64, 0);
    qd_map_close(&m);

    /* What was read, written again: the same bytes. */
    check_ok(qd_safetensors_save(second, r, got, again, &err), &err);
    assert_string_equal(hash, again);
    qd_weights_free(r);
    qd_weights_free(w);
    qd_meta_free(meta);
    qd_meta_free(got);
}

static void tensors_keep_the_map_alive(void **state)
{
    qd_err err = { 0 };
    const char *path = in(harness_tmp(), "a.safetensors");
    qd_weights *w = make_samples(), *r = NULL;
    qd_tensor t;

    check_ok(qd_safetensors_save(path, w, NULL, NULL, &err), &err);
    check_ok(qd_safetensors_open(path, &r, NULL, &err), &err);
    qd_tensor_share(&t, qd_weights_find(r, "w.f32"));
    qd_weights_free(r); /* the map stays for t, and goes with it: the leak checker watches */
    assert_memory_equal(t.data, qd_weights_find(w, "w.f32")->data, qd_tensor_bytes(&t));
    qd_tensor_clear(&t);
    qd_weights_free(w);
}

static void writer_refuses_what_the_reader_would(void **state)
{
    static const char *const names[] = { "", "__metadata__", "\xff", "\xc0\x80", "\xed\xa0\x80" };
    const qd_shape shape = QD_SHAPE(1);
    qd_err err = { 0 };
    const char *path = in(harness_tmp(), "a.safetensors");
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    qd_tensor t = { 0 };

    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++) {
        check_ok(qd_weights_new(&w, &err), &err);
        check_ok(qd_weights_add(w, names[k], &t, &err), &err);
        check_fails(qd_safetensors_save(path, w, NULL, NULL, &err), QD_E_INVALID, "cannot name a tensor", &err);
        qd_weights_free(w);
    }
    qd_tensor_clear(&t);

    check_ok(qd_weights_new(&w, &err), &err);
    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_meta_set(meta, "k", "\xfe", &err), &err);
    check_fails(qd_safetensors_save(path, w, meta, NULL, &err), QD_E_INVALID, "metadata 'k' is not UTF-8", &err);
    qd_meta_free(meta);

    check_ok(qd_tensor_init(&t, QD_I4, &shape, NULL, &err), &err);
    check_ok(qd_weights_add(w, "packed", &t, &err), &err);
    check_fails(qd_safetensors_save(path, w, NULL, NULL, &err), QD_E_UNSUPPORTED, "'packed' is i4", &err);
    qd_tensor_clear(&t);
    qd_weights_free(w);
    assert_false(qd_fs_exists(path));
    assert_false(qd_fs_exists("/nonexistent"));
}

static void paths_that_are_no_files(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    qd_weights *w = NULL;

    check_fails(qd_safetensors_open(in(dir, "none"), &w, NULL, &err), QD_E_NOT_FOUND, "none", &err);
    check_ok(qd_fs_write(in(dir, "empty"), "", 0, &err), &err);
    check_fails(qd_safetensors_open(in(dir, "empty"), &w, NULL, &err), QD_E_FORMAT, "empty: 0 bytes are too few", &err);
    assert_null(w);
}

/* --- failure of memory, ours and the JSON library's --- */

static void every_allocation_may_fail(void **state)
{
    qd_err err = { 0 };
    const char *path = in(harness_tmp(), "a.safetensors");
    qd_weights *w = make_samples();
    qd_meta *meta = NULL;
    long writes = 0, reads = 0;

    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_meta_set(meta, "a", "b", &err), &err);
    for (;; writes++) {
        qd_mem_fault_set(writes);
        const qd_status st = qd_safetensors_save(path, w, meta, NULL, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        if (!hit) {
            check_ok(st, &err);
            break;
        }
        assert_int_equal(st, QD_E_NOMEM);
        if (qd_fs_exists(path)) { /* failing after the rename leaves the whole file, never a part */
            qd_weights *r = NULL;

            check_ok(qd_safetensors_open(path, &r, NULL, &err), &err);
            check_same(w, r);
            qd_weights_free(r);
        }
    }
    for (int with_json = 0; with_json < 2; with_json++) {
        if (with_json)
            json_set_alloc_funcs(qd_alloc, qd_free);
        for (reads = 0;; reads++) {
            qd_weights *r = NULL;

            qd_mem_fault_set(reads);
            const qd_status st = qd_safetensors_open(path, &r, meta, &err);
            const bool hit = qd_mem_fault_hit();
            qd_mem_fault_set(-1);
            if (!hit) {
                check_ok(st, &err);
                check_same(w, r);
                qd_weights_free(r);
                break;
            }
            if (with_json) { /* the library may call it a syntax error, or get over it: nothing may leak or crash */
                qd_weights_free(r);
                continue;
            }
            assert_int_equal(st, QD_E_NOMEM);
            assert_null(r);
            assert_int_equal(qd_meta_count(meta), 1);
        }
    }
    json_set_alloc_funcs(malloc, free);
    assert_true(writes > 5 && reads > 50);
    qd_meta_free(meta);
    qd_weights_free(w);
}

/* --- files others wrote --- */

static void real_files(void **state)
{
    static const struct {
        const char *path;
        int tensors;
        const char *one;
        qd_dtype dtype;
    } files[] = {
        { "weights/cifar10-resnet20/resnet20.safetensors", 97, "conv1.weight", QD_F32 },
        { "weights/cifar10-resnet32/golden.safetensors", 4, "labels", QD_I64 },
        { "weights/fmnist-ddpm-unet/golden.safetensors", 12, "x0_u8", QD_U8 },
        { "weights/mnist-ddpm-layernorm-unet/ddpm_mnist.safetensors", 173, "network.time_embed.weight", QD_F32 },
    };
    int found = 0;

    for (size_t k = 0; k < sizeof(files) / sizeof(files[0]); k++) {
        const char *path = harness_data(files[k].path);
        qd_err err = { 0 };
        qd_weights *w = NULL;

        if (!path)
            continue;
        found++;
        check_ok(qd_safetensors_open(path, &w, NULL, &err), &err);
        assert_int_equal(qd_weights_count(w), files[k].tensors);
        assert_non_null(qd_weights_find(w, files[k].one));
        assert_int_equal(qd_weights_find(w, files[k].one)->dtype, files[k].dtype);
        qd_weights_free(w);
    }
    if (!found)
        skip();
}

/* The denoiser that ships with us: its parameter count is known (README beside it). */
static void shipped_file(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    int64_t parameters = 0;

    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_safetensors_open(harness_source("deploy/models/fmnist-ddpm-unet/diffusion_pytorch_model.safetensors"),
                                 &w, meta, &err),
             &err);
    assert_int_equal(qd_weights_count(w), 184);
    assert_string_equal(qd_meta_find(meta, "format"), "pt");
    for (int k = 0; k < qd_weights_count(w); k++)
        parameters += qd_tensor_count(qd_weights_at(w, k));
    assert_int_equal(parameters, 686769);
    qd_weights_free(w);
    qd_meta_free(meta);
}

/* Resident bytes of mapped files. */
static size_t mapped_resident(void)
{
    char line[256];
    size_t kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f))
        if (strncmp(line, "RssFile:", 8) == 0)
            kib = strtoul(line + 8, NULL, 10);
    fclose(f);
    return kib << 10;
}

/* A weight that was let go does not stay in memory because another of its file does. */
static void pages_go_with_their_tensor(void **state)
{
    enum { EACH = 4 << 20 }; /* floats */
    qd_err err = { 0 };
    qd_weights *w = NULL;
    const qd_shape shape = QD_SHAPE(EACH);
    const char *path = in(harness_tmp(), "pages.safetensors");
    float sum = 0;
    check_ok(qd_weights_new(&w, &err), &err);
    for (int k = 0; k < 2; k++) {
        qd_tensor t = { 0 };
        check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
        for (int i = 0; i < EACH; i++)
            qd_f32(&t)[i] = (float)(i % 5 + k);
        check_ok(qd_weights_add(w, k ? "b" : "a", &t, &err), &err);
        qd_tensor_clear(&t);
    }
    check_ok(qd_safetensors_save(path, w, NULL, NULL, &err), &err);
    qd_weights_free(w);

    qd_tensor kept = { 0 };
    check_ok(qd_safetensors_open(path, &w, NULL, &err), &err);
    qd_tensor_share(&kept, qd_weights_find(w, "b"));
    const size_t before = mapped_resident();
    for (int i = 0; i < EACH; i += 512)
        sum += qd_f32(qd_weights_find(w, "a"))[i] + qd_f32(&kept)[i];
    const size_t read = mapped_resident();
    assert_true(sum > 0 && read > before + EACH * 4); /* the kernel reads ahead: at least one of the two is all there */
    qd_weights_free(w);
    assert_true(mapped_resident() + EACH * 3 < read);
    assert_true(qd_f32(&kept)[7] == 3.0f && qd_f32(&kept)[EACH - 1] == (float)((EACH - 1) % 5 + 1));
    qd_tensor_clear(&kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_rule_refuses),
        cmocka_unit_test(pages_go_with_their_tensor),
        cmocka_unit_test(lengths_are_checked_before_use),
        cmocka_unit_test(too_many_values_are_refused_early),
        cmocka_unit_test(long_names_are_refused),
        cmocka_unit_test(bool_is_zero_or_one),
        cmocka_unit_test(header_order_shapes_and_empties),
        cmocka_unit_test(misaligned_tensors_are_copied),
        cmocka_unit_test(metadata_is_read_and_replaces),
        cmocka_unit_test(save_then_open_is_identity),
        cmocka_unit_test(tensors_keep_the_map_alive),
        cmocka_unit_test(writer_refuses_what_the_reader_would),
        cmocka_unit_test(paths_that_are_no_files),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(real_files),
        cmocka_unit_test(shipped_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
