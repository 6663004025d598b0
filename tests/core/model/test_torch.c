/* test_torch.c - checkpoints that PyTorch wrote, against what is in them; and what must be refused, at once and in words. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/fs.h"
#include "harness/harness.h"
#include "model/pickle_int.h"

#if defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

static const char *golden(const char *name)
{
    char path[200];
    snprintf(path, sizeof(path), "tests/golden/torch/%s", name);
    return harness_source(path);
}

static void same_tensor(const char *name, const qd_tensor *a, const qd_tensor *b)
{
    if (!a || !b)
        fail_msg("tensor '%s' is missing", name);
    if (a->dtype != b->dtype || !qd_shape_equal(&a->shape, &b->shape) ||
        memcmp(a->data, b->data, qd_tensor_bytes(b)) != 0)
        fail_msg("tensor '%s' differs", name);
}

/* Every tensor of one set is in the other, bit for bit. */
static void same_weights(const qd_weights *got, const qd_weights *want)
{
    assert_int_equal(qd_weights_count(got), qd_weights_count(want));
    for (int k = 0; k < qd_weights_count(want); k++)
        same_tensor(qd_weights_name(want, k), qd_weights_find(got, qd_weights_name(want, k)), qd_weights_at(want, k));
}

static qd_weights *plain_weights(const char *name)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    check_ok(qd_safetensors_open(golden(name), &w, NULL, &err), &err);
    return w;
}

/* --- what PyTorch writes --- */

static void every_layout_holds_the_same(void **state)
{
    static const char *const files[] = { "zip_p2.pth", "zip_p3.pth",    "zip_p4.pth",
                                         "zip_p5.pth", "stream_p2.pth", "stream_p4.pth" };
    qd_weights *want = plain_weights("plain.safetensors");
    for (size_t k = 0; k < sizeof(files) / sizeof(files[0]); k++) {
        qd_err err = { 0 };
        qd_weights *w = NULL;
        qd_meta *meta = NULL;
        uint64_t bytes = 0;
        print_message("  %s\n", files[k]);
        check_ok(qd_meta_new(&meta, &err), &err);
        check_ok(qd_torch_open(golden(files[k]), NULL, &w, meta, &bytes, &err), &err);
        same_weights(w, want);
        assert_true(bytes > 2000);
        assert_string_equal(qd_meta_find(meta, QD_TORCH_LAYOUT), files[k][0] == 'z' ? "zip" : "stream");
        assert_string_equal(qd_meta_find(meta, QD_TORCH_CHOSEN), "");
        assert_null(qd_meta_find(meta, QD_TORCH_PREFIX));
        assert_null(qd_meta_find(meta, QD_TORCH_BESIDE));
        /* One storage behind both: the file itself, or one copy of it. */
        const float *whole = qd_f32(qd_weights_find(w, "whole")), *rows = qd_f32(qd_weights_find(w, "rows"));
        assert_ptr_equal(rows, whole + 16);
        qd_meta_free(meta);
        qd_weights_free(w);
    }
    qd_weights_free(want);
}

/* file, its network as safetensors, where it was, what was cut off, what lay beside it (NULL = nothing). */
static void check_choice(const char *file, const char *plain, const char *chosen, const char *prefix,
                         const char *beside)
{
    qd_err err = { 0 };
    qd_weights *w = NULL, *want = plain_weights(plain), *cut = NULL;
    qd_meta *meta = NULL;
    print_message("  %s\n", file);
    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_torch_open(golden(file), NULL, &w, meta, NULL, &err), &err);
    assert_string_equal(qd_meta_find(meta, QD_TORCH_CHOSEN), chosen);
    if (prefix)
        assert_string_equal(qd_meta_find(meta, QD_TORCH_PREFIX), prefix);
    else
        assert_null(qd_meta_find(meta, QD_TORCH_PREFIX));
    if (beside)
        assert_string_equal(qd_meta_find(meta, QD_TORCH_BESIDE), beside);
    else
        assert_null(qd_meta_find(meta, QD_TORCH_BESIDE));
    same_weights(w, want);
    qd_meta_free(meta);
    qd_weights_free(cut);
    qd_weights_free(w);
    qd_weights_free(want);
}

static void the_network_is_found(void **state)
{
    check_choice("training.pth", "net.safetensors", "state_dict", "module.", NULL);
    check_choice("training_stream.pth", "net.safetensors", "state_dict", "module.", NULL);
    check_choice("with_ema.pth", "ema.safetensors", "ema", NULL, "model");
    check_choice("with_part_of_ema.pth", "net.safetensors", "model", NULL, "ema");
    check_choice("nested_prefix.pth", "net.safetensors", "net", "net.", NULL);
    check_choice("list.ckpt", "ema.safetensors", "[4]", NULL, "[0]");
}

/* --- folders --- */

static void copy_into(const char *dir, const char *name, const char *from)
{
    qd_err err = { 0 };
    qd_map m = { 0 };
    char *to = qd_fs_join(dir, name);
    check_ok(qd_map_open(&m, from, &err), &err);
    check_ok(qd_fs_write(to, m.data, m.size, &err), &err);
    qd_map_close(&m);
    qd_free(to);
}

static void write_text(const char *dir, const char *name, const char *text)
{
    qd_err err = { 0 };
    char *to = qd_fs_join(dir, name);
    check_ok(qd_fs_write(to, text, strlen(text), &err), &err);
    qd_free(to);
}

static void in_folders(void **state)
{
    static const char *const names[] = {
        "diffusion_pytorch_model.bin", "pytorch_model.bin", "model-790000.ckpt", "net.pt", "resnet.pth",
        "resnet20-12fca82f.th"
    };
    qd_err err = { 0 };
    qd_weights *want = plain_weights("net.safetensors");
    for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++) {
        const char *dir = harness_tmp();
        qd_model *m = NULL;
        copy_into(dir, names[k], golden("training.pth"));
        write_text(dir, "config.json", "{\"_class_name\": \"UNet2DModel\"}");
        check_ok(qd_model_open(dir, NULL, &m, &err), &err);
        assert_string_equal(m->format, "diffusers");
        same_weights(m->weights, want);
        assert_true(qd_config_has(m->config, "_class_name"));
        qd_model_free(m);
        /* safetensors beside it is better */
        m = NULL;
        copy_into(dir, "diffusion_pytorch_model.safetensors", golden("ema.safetensors"));
        check_ok(qd_model_open(dir, NULL, &m, &err), &err);
        assert_null(qd_meta_find(m->meta, QD_TORCH_LAYOUT));
        qd_model_free(m);
    }
    qd_weights_free(want);
}

#define INDEX "diffusion_pytorch_model.bin.index.json"

static void in_shards(void **state)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_weights *net = plain_weights("net.safetensors"), *plain = plain_weights("plain.safetensors");
    const char *dir = harness_tmp();
    qd_buf index;
    qd_buf_init(&index, 0);
    qd_buf_adds(&index, "{\"weight_map\": {");
    for (int k = 0; k < qd_weights_count(plain); k++)
        qd_buf_addf(&index, "\"%s\": \"a.bin\", ", qd_weights_name(plain, k));
    for (int k = 0; k < qd_weights_count(net); k++)
        qd_buf_addf(&index, "%s\"%s\": \"b.bin\"", k ? ", " : "", qd_weights_name(net, k));
    qd_buf_adds(&index, "}}");
    copy_into(dir, "a.bin", golden("zip_p2.pth"));
    copy_into(dir, "b.bin", golden("training_stream.pth"));
    write_text(dir, "config.json", "{}");
    write_text(dir, INDEX, index.data);
    check_ok(qd_model_open(dir, NULL, &m, &err), &err);
    assert_int_equal(qd_weights_count(m->weights), qd_weights_count(net) + qd_weights_count(plain));
    same_tensor("conv.weight", qd_weights_find(m->weights, "conv.weight"), qd_weights_find(net, "conv.weight"));
    same_tensor("turned", qd_weights_find(m->weights, "turned"), qd_weights_find(plain, "turned"));
    qd_model_free(m);
    m = NULL;
    write_text(dir, INDEX, "{\"weight_map\": {\"a\": \"../a.bin\"}}");
    check_fails(qd_model_open(dir, NULL, &m, &err), QD_E_FORMAT, "is not the name of a .bin file in the same folder",
                &err);
    assert_null(m);
    qd_buf_clear(&index);
    qd_weights_free(net);
    qd_weights_free(plain);
}

/* Names of latent diffusion keep what builders look for, and a bare state_dict keeps what it says. */
static void names_keep_their_prefix(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    check_ok(qd_torch_open(golden("lightning.ckpt"), NULL, &w, NULL, NULL, &err), &err);
    assert_non_null(qd_weights_find(w, "model.diffusion_model.conv.weight"));
    qd_weights_free(w);
    w = NULL;
    check_ok(qd_torch_open(golden("own_prefix.pth"), NULL, &w, NULL, NULL, &err), &err);
    assert_non_null(qd_weights_find(w, "net.conv.weight"));
    qd_weights_free(w);
}

static void as_a_model(void **state)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    check_ok(qd_model_open(golden("training.pth"), NULL, &m, &err), &err);
    assert_string_equal(m->format, "torch");
    assert_non_null(qd_weights_find(m->weights, "conv.weight"));
    assert_string_equal(qd_meta_find(m->meta, QD_TORCH_CHOSEN), "state_dict");
    assert_true(m->file_bytes > 3000);
    qd_model_free(m);
}

static void what_is_no_checkpoint(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    check_fails(qd_torch_open(golden("whole_module.pth"), NULL, &w, NULL, NULL, &err), QD_E_UNSUPPORTED,
                "global '__main__.Net' is not something that rebuilds a tensor", &err);
    check_fails(qd_torch_open(golden("script.pt"), NULL, &w, NULL, NULL, &err), QD_E_UNSUPPORTED, "TorchScript", &err);
    check_fails(qd_torch_open(golden("plain.safetensors"), NULL, &w, NULL, NULL, &err), QD_E_FORMAT,
                "neither an archive nor a stream", &err);
    assert_false(qd_torch_sniff(golden("plain.safetensors")));
    assert_false(qd_torch_sniff(golden("")));
    assert_true(qd_torch_sniff(golden("zip_p2.pth")) && qd_torch_sniff(golden("stream_p4.pth")));
}

/* --- streams made here --- */

typedef struct bytes {
    uint8_t *data;
    size_t n, capacity;
} bytes;

static void put(bytes *b, const void *data, size_t n)
{
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n) + 64;
        b->data = realloc(b->data, b->capacity);
        assert_non_null(b->data);
    }
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n += n;
}
#define PUT(b, literal) put((b), "" literal, sizeof(literal) - 1)

/* Magic number, protocol, machine: the checkpoint itself comes next. */
static bytes stream(void)
{
    bytes b = { 0 };
    PUT(&b, "\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
            "\x80\2M\xe9\3."
            "\x80\2}.");
    return b;
}

/* Refused with these words, soon, and without taking much. */
static void refused(bytes b, qd_status status, const char *words)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    struct timespec a, z;
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    const qd_status st = qd_torch_parse(b.data, b.n, NULL, &w, NULL, &err);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &z);
    getrusage(RUSAGE_SELF, &after);
    const double ms = (double)(z.tv_sec - a.tv_sec) * 1e3 + (double)(z.tv_nsec - a.tv_nsec) * 1e-6;
    check_fails(st, status, words, &err);
    assert_null(w);
    if (!SANITIZED && (ms > 100.0 || after.ru_maxrss - before.ru_maxrss > 64 << 10))
        fail_msg("'%s' took %.1f ms and %ld KiB", words, ms, after.ru_maxrss - before.ru_maxrss);
    free(b.data);
}

/* The tensor of _rebuild_tensor_v2 over 4 floats, with these opcodes for offset, size and stride. */
static bytes tensor(const char *place, size_t n)
{
    bytes b = stream();
    PUT(&b,
        "\x80\2}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0kX\3\0\0\0cpuK\4tQ");
    put(&b, place, n);
    PUT(&b, "\x89}tRs.\x80\2]X\1\0\0\0ka.\4\0\0\0\0\0\0\0\0\0\0\0\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40");
    return b;
}
#define TENSOR(literal) tensor("" literal, sizeof(literal) - 1)

static void a_stream_by_hand(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    bytes b = TENSOR("K\1K\3\x85K\1\x85");
    check_ok(qd_torch_parse(b.data, b.n, NULL, &w, NULL, &err), &err);
    const qd_tensor *t = qd_weights_find(w, "w");
    assert_int_equal(qd_tensor_count(t), 3);
    check_close(qd_f32(t), ((const float[]){ 1, 2, 3 }), 3, 0.0, 0.0);
    qd_weights_free(w);
    /* Cut anywhere: refused. */
    for (size_t n = 0; n < b.n; n++) {
        qd_err cut = { 0 };
        w = NULL;
        uint8_t *exact = malloc(n ? n : 1);
        memcpy(exact, b.data, n);
        if (qd_torch_parse(exact, n, NULL, &w, NULL, &cut) == QD_OK)
            fail_msg("cut at byte %zu of %zu it was read", n, b.n);
        assert_true(cut.text[0]);
        free(exact);
    }
    free(b.data);
}

static void tensors_that_leave_their_storage(void **state)
{
    refused(TENSOR("K\2K\3\x85K\1\x85"), QD_E_FORMAT, "a tensor ends at element 4 of storage 'k', which has 4");
    refused(TENSOR("K\5))"), QD_E_FORMAT, "begins at element 5");
    refused(TENSOR("J\xff\xff\xff\xff))"), QD_E_FORMAT, "begins at element -1");
    refused(TENSOR("K\0K\2\x85K\4\x85"), QD_E_FORMAT, "ends at element 4");
    refused(TENSOR("K\0K\2\x85J\xff\xff\xff\xff\x85"), QD_E_FORMAT, "has stride -1");
    refused(TENSOR("K\0J\xff\xff\xff\xff\x85K\1\x85"), QD_E_FORMAT, "dimension 0 of a tensor");
    /* 3 (2^62) + 1 comes round to 2^62 + ..; size times stride past 63 bits; product of the shape past 63 bits */
    refused(TENSOR("K\0K\4\x85\x8a\x08\0\0\0\0\0\0\0\x40\x85"), QD_E_FORMAT, "has stride 4611686018427387904");
    refused(TENSOR("K\0\x8a\x08\0\0\0\0\0\0\0\x40K\4\x86K\0K\0\x86"), QD_E_LIMIT, "63 bits");
    /* 2^40 elements of one: legal for PyTorch, and more than any file here may ask for */
    refused(TENSOR("K\0\x8a\6\0\0\0\0\0\1\x85K\0\x85"), QD_E_LIMIT, "laid out plainly");
    refused(TENSOR("K\0(K\1K\1K\1K\1K\1K\1K\1K\1K\1t(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"), QD_E_LIMIT, "9 dimensions");
    refused(TENSOR("K\0K\1K\1\x86K\1\x85"), QD_E_FORMAT, "size and stride");
    refused(TENSOR("K\0NN"), QD_E_FORMAT, "size and stride");
    refused(TENSOR("NNN"), QD_E_FORMAT, "'torch._utils._rebuild_tensor_v2' is called with arguments");
}

static void code_is_never_run(void **state)
{
    static const struct {
        const char *body;
        size_t n;
        qd_status status;
        const char *words;
    } rows[] = {
#define ROW(body_, status_, words_) { .body = body_, .n = sizeof(body_) - 1, .status = status_, .words = words_ }
        ROW("\x80\2cposix\nsystem\nX\4\0\0\0true\x85R.", QD_E_UNSUPPORTED,
            "global 'posix.system' is not something that rebuilds a tensor"),
        ROW("\x80\4\x8c\2os\x8c\6system\x93\x8c\4true\x85R.", QD_E_UNSUPPORTED, "global 'os.system' is not"),
        ROW("\x80\2cbuiltins\neval\nX\1\0\0\0"
            "1\x85R.",
            QD_E_UNSUPPORTED, "global 'builtins.eval' is not"),
        ROW("\x80\2c__builtin__\ngetattr\n.", QD_E_UNSUPPORTED, "global '__builtin__.getattr' is not"),
        ROW("\x80\2ctorch.storage\n_load_from_bytes\n.", QD_E_UNSUPPORTED, "global 'torch.storage._load_from_bytes'"),
        ROW("\x80\2ctorch.nn.modules.conv\nConv2d\n.", QD_E_UNSUPPORTED, "save its state_dict()"),
        ROW("\x80\2cpytorch_lightning\nrun\n.", QD_E_UNSUPPORTED, "'pytorch_lightning.run' is not"),
        ROW("\x80\2cos\x1b[31m\nsystem\n.", QD_E_FORMAT, "a name that cannot be printed"),
        ROW("\x80\2K\1)R.", QD_E_UNSUPPORTED, "something is called that is no global"),
        ROW("\x80\2ctorch\nFloatStorage\n)R.", QD_E_UNSUPPORTED, "'torch.FloatStorage' is called"),
        ROW("\x80\2ctorch\nSize\nK\1R.", QD_E_FORMAT, "called with something that is no tuple"),
        ROW("\x80\2]}b.", QD_E_UNSUPPORTED, "BUILD sets the state"),
        ROW("\x80\2ctorch\nSize\n}b.", QD_E_UNSUPPORTED, "BUILD sets the state"),
        ROW("\x80\2(iposix\nsystem\n.", QD_E_UNSUPPORTED, "opcode INST"),
        ROW("\x80\2\x82\1.", QD_E_UNSUPPORTED, "opcode EXT1"),
        ROW("\x80\2)}\x92.", QD_E_UNSUPPORTED, "opcode NEWOBJ_EX"),
        ROW("\x80\2Pid\n.", QD_E_UNSUPPORTED, "opcode PERSID"),
        ROW("\x80\2\xff.", QD_E_FORMAT, "0xff is no opcode"),
        ROW("\x80\1].", QD_E_UNSUPPORTED, "protocol 1; 2 to 5 are read"),
        ROW("(dp0\n.", QD_E_FORMAT, "does not begin with a protocol"),
        ROW("\x80\2ccopy_reg\n_reconstructor\ncposix\nsystem\n", QD_E_UNSUPPORTED, "'posix.system' is not"),
        ROW("\x80\2ccopy_reg\n_reconstructor\nctorch\nSize\nNN\x87R.", QD_E_FORMAT, "arguments it does not take"),
        ROW("\x80\2(X\6\0\0\0moduleNNNNtQ.", QD_E_UNSUPPORTED, "a whole module with its source"),
        ROW("\x80\2K\1Q.", QD_E_FORMAT, "persistent id"),
        ROW("\x80\2(X\7\0\0\0storagectorch\nSize\nX\1\0\0\0kX\3\0\0\0cpuK\4tQ.", QD_E_FORMAT, "no class of storages"),
        ROW("\x80\2(X\7\0\0\0storagectorch\nFloatStorage\nX\x0b\0\0\0../../etc/kX\3\0\0\0cpu\x8a\x08\0\0\0\0\0\0\0\x40tQ.",
            QD_E_FORMAT, "of 4611686018427387904 elements"),
        ROW("\x80\2(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0kX\3\0\0\0cpuJ\xff\xff\xff\xfftQ.", QD_E_FORMAT,
            "of -1 elements"),
        ROW("\x80\2a.", QD_E_FORMAT, "wants 2 values of a stack that has 0"),
        ROW("\x80\2]t.", QD_E_FORMAT, "wants a mark"),
        ROW("\x80\2](a.", QD_E_FORMAT, "wants 2 values of a stack that has 0"),
        ROW("\x80\2]K\1K\2s.", QD_E_FORMAT, "into something that is no dict"),
        ROW("\x80\2}(K\1u.", QD_E_FORMAT, "must be even"),
        ROW("\x80\2h\7.", QD_E_FORMAT, "memo entry 7 is read before it is written"),
        ROW("\x80\2]r\xff\xff\xff\xff.", QD_E_LIMIT, "memo entry 4294967295"),
        ROW("\x80\2X\xff\xff\xff\xff.", QD_E_FORMAT, "text of 4294967295 bytes"),
        ROW("\x80\4\x8d\0\0\0\0\0\0\0\x80.", QD_E_FORMAT, "text of 9223372036854775808 bytes"),
        ROW("\x80\4\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", QD_E_FORMAT, "text of 18446744073709551615 bytes"),
        ROW("\x80\2\x8b\xff\xff\xff\x7f.", QD_E_FORMAT, "a number of 2147483647 bytes"),
        ROW("\x80\4\x95\xff\xff\xff\xff\0\0\0\0.", QD_E_FORMAT, "ends inside an opcode"),
        ROW("\x80\2]].", QD_E_FORMAT, "ends with 2 values"),
        ROW("\x80\2].", QD_E_FORMAT, "the list of storages"),
        ROW("\x80\2].\x80\2K\1.", QD_E_FORMAT, "is no list"),
        ROW("\x80\2].\x80\2]X\1\0\0\0ka.", QD_E_FORMAT, "no tensor uses entry 0"),
        ROW("\x80\2].\x80\2].", QD_E_NOT_FOUND, "holds no dict of named tensors"),
        ROW("\x80\2].\x80\2].x", QD_E_FORMAT, "the storages end at byte"),
#undef ROW
    };
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        bytes b = stream();
        put(&b, rows[k].body, rows[k].n);
        refused(b, rows[k].status, rows[k].words);
    }
}

/* A list that holds itself, twice over: looked through once. */
static void what_leads_back_to_itself(void **state)
{
    bytes b = stream();
    PUT(&b, "\x80\2]q\0h\0ah\0a}q\1X\1\0\0\0eh\1sX\1\0\0\0lh\0sa.\x80\2].");
    refused(b, QD_E_NOT_FOUND, "no dict of named tensors");
}

static bytes repeat(const char *start, const char *again, size_t n_again, size_t times)
{
    bytes b = stream();
    put(&b, start, strlen(start));
    for (size_t k = 0; k < times; k++)
        put(&b, again, n_again);
    return b;
}

static void bombs(void **state)
{
    /* Nothing but values, marks, containers, memos: each meets its ceiling long before the file ends. */
    refused(repeat("\x80\2", "N", 1, 6000000), QD_E_LIMIT, "builds more than 40 MiB");
    refused(repeat("\x80\2", "(", 1, 6000000), QD_E_LIMIT, "more than 65536 open marks");
    refused(repeat("\x80\2", "]", 1, 6000000), QD_E_LIMIT, "builds more than 40 MiB");
    refused(repeat("\x80\2]", "N0", 2, 3000000), QD_E_LIMIT, "more than 4000000 opcodes");
    refused(repeat("\x80\2]", "\x94", 1, 3000000), QD_E_LIMIT, "memo entry 1048576");
    refused(repeat("\x80\2]", "Na", 2, 3000000), QD_E_LIMIT, "builds more than 40 MiB");
    /* One list in two places of the next, and so on: 2^60 ways through it. */
    refused(repeat("\x80\2]", "2\x86", 2, 60), QD_E_FORMAT, "without STOP");
    refused(repeat("\x80\2]", "\x85", 1, 100000), QD_E_FORMAT, "without STOP");
    bytes deep = repeat("\x80\2]", "\x85", 1, 100000);
    PUT(&deep, ".\x80\2].");
    refused(deep, QD_E_NOT_FOUND, "no dict of named tensors");
    bytes wide = repeat("\x80\2]", "2\x86", 2, 60);
    PUT(&wide, ".\x80\2].");
    refused(wide, QD_E_NOT_FOUND, "no dict of named tensors");
}

/* --- memory --- */

static qd_status open_all(void *ctx, qd_err *err)
{
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    qd_status st = qd_meta_new(&meta, err);
    if (!st)
        st = qd_torch_open(ctx, NULL, &w, meta, NULL, err);
    qd_weights_free(w);
    qd_meta_free(meta);
    return st;
}

static void every_allocation_may_fail(void **state)
{
    char path[300];
    snprintf(path, sizeof(path), "%s", golden("zip_p2.pth"));
    assert_true(harness_run_each_alloc(open_all, path, 5000) > 50);
    snprintf(path, sizeof(path), "%s", golden("with_ema.pth"));
    assert_true(harness_run_each_alloc(open_all, path, 5000) > 20);
    snprintf(path, sizeof(path), "%s", golden("training_stream.pth"));
    assert_true(harness_run_each_alloc(open_all, path, 5000) > 20);
}

static void copies_come_out_of_the_budget(void **state)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_budget small, enough;
    qd_budget_init(&small, 256);
    check_fails(qd_torch_open(golden("zip_p2.pth"), &small, &w, NULL, NULL, &err), QD_E_LIMIT, "tensor '", &err);
    assert_int_equal(small.used_bytes, 0);
    qd_budget_init(&enough, 0);
    check_ok(qd_torch_open(golden("zip_p2.pth"), &enough, &w, NULL, NULL, &err), &err);
    /* turned 192, steps 36, repeated 48, channels_last 384, array 24 twice: out of the pickle, then into rows */
    assert_int_equal(enough.used_bytes, 192 + 36 + 48 + 384 + 24);
    qd_weights_free(w);
    assert_int_equal(enough.used_bytes, 0);
}

/* "test_torch CHECKPOINT SAFETENSORS" says whether both hold the same: torch_check.py asks. */
static int compare(const char *checkpoint, const char *plain)
{
    qd_err err = { 0 };
    qd_weights *a = NULL, *b = NULL;
    int differ = 0;
    if (qd_torch_open(checkpoint, NULL, &a, NULL, NULL, &err) || qd_safetensors_open(plain, &b, NULL, &err)) {
        fprintf(stderr, "%s\n", err.text);
        qd_weights_free(a);
        return 1;
    }
    for (int k = 0; k < qd_weights_count(b); k++) {
        const qd_tensor *x = qd_weights_find(a, qd_weights_name(b, k)), *y = qd_weights_at(b, k);
        if (!x || x->dtype != y->dtype || !qd_shape_equal(&x->shape, &y->shape) ||
            memcmp(x->data, y->data, qd_tensor_bytes(y)) != 0) {
            fprintf(stderr, "tensor '%s' differs\n", qd_weights_name(b, k));
            differ++;
        }
    }
    differ += qd_weights_count(a) != qd_weights_count(b);
    qd_weights_free(a);
    qd_weights_free(b);
    return differ > 0;
}

int main(int argc, char **argv)
{
    if (argc == 3)
        return compare(argv[1], argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_holds_the_same),
        cmocka_unit_test(the_network_is_found),
        cmocka_unit_test(in_folders),
        cmocka_unit_test(in_shards),
        cmocka_unit_test(names_keep_their_prefix),
        cmocka_unit_test(as_a_model),
        cmocka_unit_test(what_is_no_checkpoint),
        cmocka_unit_test(a_stream_by_hand),
        cmocka_unit_test(tensors_that_leave_their_storage),
        cmocka_unit_test(code_is_never_run),
        cmocka_unit_test(what_leads_back_to_itself),
        cmocka_unit_test(bombs),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(copies_come_out_of_the_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
