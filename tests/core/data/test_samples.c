/* test_samples.c - pictures of folders, tar files and data sets, decoded when asked for or kept; files that lie or change. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/fs.h"
#include "base/mem.h"
#include "data/data.h"

static const qd_samples_options usual = { .limits = { .max_bytes = 1u << 24, .max_count = 1000 } };

static const char *in(const char *dir, const char *name)
{
    static char ring[4][1200];
    static int next;
    char *path = ring[next++ % 4];
    assert_in_range(snprintf(path, sizeof ring[0], "%s/%s", dir, name), 0, (int)sizeof ring[0] - 1);
    return path;
}

static const char *golden(const char *name)
{
    return in(harness_source("tests/golden/data"), name);
}

static void put(const char *path, const void *data, size_t n)
{
    qd_err err = { 0 };
    char folder[1200];
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = '\0';
    check_ok(qd_fs_mkdirs(folder, &err), &err);
    check_ok(qd_fs_write(path, data, n, &err), &err);
}

static void put_png(const char *path, int w, int h, int channels, int first)
{
    qd_err err = { 0 };
    qd_buf b;
    uint8_t pixels[256];
    for (int k = 0; k < w * h * channels; k++)
        pixels[k] = (uint8_t)(first + k);
    const qd_image im = { .width = w, .height = h, .channels = channels, .pixels = pixels };
    qd_buf_init(&b, 0);
    check_ok(qd_png_encode(&im, &b, &err), &err);
    put(path, b.data, b.size);
    qd_buf_clear(&b);
}

typedef struct warned {
    int n;
    char last[512];
} warned;

static void on_warn(void *ctx, const char *text)
{
    warned *w = ctx;
    w->n++;
    snprintf(w->last, sizeof w->last, "%s", text);
}

static qd_samples *open_samples(const char *path, const qd_samples_options *o, const qd_run *run)
{
    qd_err err = { 0 };
    qd_samples *s = NULL;
    check_ok(qd_samples_open(path, o, run, &s, &err), &err);
    return s;
}

static void check_refused(const char *path, const qd_samples_options *o, qd_status want, const char *words)
{
    qd_err err = { 0 };
    qd_samples *s = NULL;
    check_fails(qd_samples_open(path, o, NULL, &s, &err), want, words, &err);
    assert_null(s);
}

static int pixel(const qd_pixels *p, int c, int y, int x)
{
    return p->data[c * p->plane + y * p->row + x * p->column];
}

/* Two sizes, greys among colours, a damaged picture: whether kept or decoded each time, the same. */
static void folders_of_all_sizes(void **state)
{
    const char *dir = harness_tmp();
    put_png(in(dir, "dog/1.png"), 4, 3, 3, 50);
    put_png(in(dir, "cat/2.png"), 2, 2, 1, 10);
    put_png(in(dir, "cat/3.png"), 3, 5, 3, 90);
    put(in(dir, "cat/bad.png"), "\x89PNG\r\n\x1a\n....", 12);
    put(in(dir, "notes.txt"), "x", 1);
    for (int keep = 0; keep < 2; keep++)
        for (int threads = 1; threads <= 4; threads += 3) {
            qd_err err = { 0 };
            qd_budget budget;
            warned w = { 0 };
            qd_budget_init(&budget, 1u << 20);
            const qd_run run = { .ctx = &w, .warn = on_warn, .threads = threads, .budget = &budget };
            qd_samples_options o = usual;
            o.cache_bytes = keep ? 36 + 4 + 45 : 36 + 4 + 44; /* the last byte does not fit */
            qd_samples *s = open_samples(dir, &o, &run);
            const qd_samples_info *i = qd_samples_about(s);
            assert_string_equal(i->format, "folder");
            assert_true(i->count == 3 && i->left_out == 2 && i->channels == 3 && i->height == 0 && i->width == 0);
            assert_true(i->classes == 2 && i->in_memory == (keep == 1));
            assert_string_equal(i->class_name[1], "dog");
            assert_int_equal(budget.used_bytes, keep ? 85 : 0);
            assert_int_equal(w.n, 1);
            assert_non_null(strstr(w.last, "left out 'cat/bad.png'"));
            static const char *const names[] = { "cat/2.png", "cat/3.png", "dog/1.png" };
            qd_image hold = { 0 };
            qd_pixels p;
            for (int k = 0; k < 3; k++) {
                assert_string_equal(qd_samples_name(s, k), names[k]);
                assert_int_equal(qd_samples_label(s, k), k == 2);
                check_ok(qd_samples_get(s, k, &hold, &p, &err), &err);
                assert_int_equal(p.channels, 3);
                if (k == 0)
                    assert_true(p.height == 2 && pixel(&p, 0, 1, 1) == 13 && pixel(&p, 2, 1, 1) == 13);
                if (k == 1)
                    assert_true(p.height == 5 && p.width == 3 && pixel(&p, 2, 4, 1) == 90 + (4 * 3 + 1) * 3 + 2);
            }
            qd_image_clear(&hold);
            qd_samples_free(s);
            assert_int_equal(budget.used_bytes, 0);
        }
}

static void files_that_change_are_noticed(void **state)
{
    qd_err err = { 0 };
    qd_image hold = { 0 };
    qd_pixels p;
    const char *dir = harness_tmp();
    put_png(in(dir, "a.png"), 2, 2, 1, 0);
    qd_samples *s = open_samples(dir, &usual, NULL);
    assert_true(qd_samples_about(s)->classes == 0 && qd_samples_label(s, 0) == -1);
    put_png(in(dir, "a.png"), 2, 3, 1, 0);
    check_fails(qd_samples_get(s, 0, &hold, &p, &err), QD_E_CONFLICT, "'a.png' was 2 x 2 and is 2 x 3 now", &err);
    put(in(dir, "a.png"), "gone", 4);
    check_fails(qd_samples_get(s, 0, &hold, &p, &err), QD_E_FORMAT, "'a.png'", &err);
    qd_fs_remove_tree(in(dir, "a.png"), NULL);
    check_fails(qd_samples_get(s, 0, &hold, &p, &err), QD_E_NOT_FOUND, "a.png", &err);
    qd_image_clear(&hold);
    qd_samples_free(s);
    put(in(dir, "b.png"), "\x89PNG\r\n\x1a\n....", 12);
    check_refused(dir, &usual, QD_E_FORMAT, "none of 1 pictures can be read");
}

/* --- tar --- */

static void tar_files_are_read_in_place(void **state)
{
    static const char *const files[] = { "gnu.tar", "pax.tar" };
    for (int f = 0; f < 2; f++) {
        qd_err err = { 0 };
        qd_image hold = { 0 };
        qd_pixels p;
        qd_samples *s = open_samples(golden(files[f]), &usual, NULL);
        const qd_samples_info *i = qd_samples_about(s);
        assert_string_equal(i->format, "tar");
        assert_true(i->count == 3 && i->classes == 2 && i->left_out == 2 && i->channels == 1 && i->height == 2 &&
                    i->width == 3);
        assert_string_equal(i->class_name[0], "cat");
        assert_string_equal(qd_samples_name(s, 0), "set/cat/a.png");
        assert_int_equal(strlen(qd_samples_name(s, 1)), 4 + 4 + 150 + 4);
        static const int labels[] = { 0, 1, 0 };
        for (int k = 0; k < 3; k++) {
            assert_int_equal(qd_samples_label(s, k), labels[k]);
            check_ok(qd_samples_get(s, k, &hold, &p, &err), &err);
            assert_int_equal(pixel(&p, 0, 1, 2), 10 * (k + 1) + 5);
        }
        qd_image_clear(&hold);
        qd_samples_free(s);
    }
    qd_samples *s = open_samples(golden("web.tar"), &usual, NULL);
    assert_true(qd_samples_about(s)->count == 2 && qd_samples_about(s)->classes == 8);
    assert_true(qd_samples_label(s, 0) == 7 && qd_samples_label(s, 1) == 2 && qd_samples_about(s)->left_out == 2);
    qd_samples_free(s);
}

/* A header of ours over one entry's: type, name, size; the sum made right. */
static void forge(char *tar, size_t at, char type, const char *name, const char *size)
{
    unsigned sum = 0;
    char *h = tar + at;
    if (name) {
        memset(h, 0, 100);
        memcpy(h, name, strlen(name));
    }
    if (size)
        memcpy(h + 124, size, 12);
    h[156] = type;
    memset(h + 148, ' ', 8);
    for (int k = 0; k < 512; k++)
        sum += (unsigned char)h[k];
    snprintf(h + 148, 8, "%06o", sum);
}

static void tar_files_that_lie_are_refused(void **state)
{
    qd_err err = { 0 };
    char *tar;
    size_t size;
    const char *dir = harness_tmp(), *path = in(dir, "x.tar");
    char original[512];
    check_ok(qd_fs_take(golden("web.tar"), 1u << 20, &tar, &size, &err), &err);
    /* ./set is a file of no bytes; 000.png comes at block 1. */
    memcpy(original, tar + 512, 512);
    static const struct {
        char type;
        const char *name, *size, *words;
        qd_status want;
    } lies[] = {
        { '0', "../000.png", NULL, "'../000.png' leaves the file", QD_E_FORMAT },
        { '0', "a/../../000.png", NULL, "leaves the file", QD_E_FORMAT },
        { '0', "/etc/000.png", NULL, "absolute", QD_E_FORMAT },
        { '0', "a\nb.png", NULL, "control characters", QD_E_FORMAT },
        { '0', NULL, "77777777777", "'000.png' ends at byte", QD_E_FORMAT },
        { '0', NULL, "\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "is damaged", QD_E_FORMAT },
        { '0', NULL, "12x45678901", "is damaged", QD_E_FORMAT },
        { 'S', NULL, NULL, "is sparse", QD_E_UNSUPPORTED },
        { 'L', NULL, "77777777777", "ends at byte", QD_E_FORMAT },
        { 'x', NULL, NULL, "a pax header is damaged", QD_E_FORMAT },
        { '2', NULL, NULL, NULL, QD_OK }, /* a link is left out */
    };
    for (size_t k = 0; k < sizeof lies / sizeof *lies; k++) {
        memcpy(tar + 512, original, 512);
        forge(tar, 512, lies[k].type, lies[k].name, lies[k].size);
        put(path, tar, size);
        if (lies[k].want) {
            check_refused(path, &usual, lies[k].want, lies[k].words);
            check_refused(path, &usual, lies[k].want, "'x.tar'");
        } else {
            qd_samples *s = open_samples(path, &usual, NULL);
            assert_int_equal(qd_samples_about(s)->count, 1);
            qd_samples_free(s);
        }
    }
    memcpy(tar + 512, original, 512);
    tar[512 + 20] ^= 1;
    put(path, tar, size);
    check_refused(path, &usual, QD_E_FORMAT, "the header at byte 512 is damaged");
    memcpy(tar + 512, original, 512);

    /* A label that is none, and none at all. */
    char *cls = memmem(tar, size, "7\n", 2);
    assert_non_null(cls);
    *cls = 'x';
    put(path, tar, size);
    check_refused(path, &usual, QD_E_FORMAT, "'000.cls' is no label");
    *cls = '7';
    const size_t header = (size_t)(cls - tar) - 512;
    forge(tar, header, '0', "000.txt", NULL);
    put(path, tar, size);
    check_refused(path, &usual, QD_E_FORMAT, "'000.png' has no .cls file");
    forge(tar, header, '0', "000.cls", NULL);

    /* Cut anywhere: refused, or what is left of it, and never a crash. */
    int whole = 0;
    for (size_t n = 512; n < size; n += 97) {
        qd_samples *s = NULL;
        put(path, tar, n);
        if (!qd_samples_open(path, &usual, NULL, &s, &err))
            whole++;
        qd_samples_free(s);
    }
    assert_true(whole > 10); /* the zeros at the end may be missing */
    qd_free(tar);
}

/* --- lists --- */

static void lists_choose_pictures(void **state)
{
    const char *dir = harness_tmp(), *lists = harness_tmp();
    put_png(in(dir, "a b.png"), 2, 2, 1, 1);
    put_png(in(dir, "c.png"), 2, 2, 1, 2);
    put_png(in(dir, "d/e.png"), 2, 2, 1, 3);
    static const struct {
        const char *name, *text;
    } files[] = {
        { "l.txt", "d/e.png 4\na b.png 0\nd/e.png 4\n" },
        { "l.csv", "label,note,path\n4,\"x,\"\"y\",d/e.png\r\n0,,\"a b.png\"\n4,,d/e.png" },
        { "h.csv", "d/e.png,4\na b.png,0\nd/e.png,4\n" },
        { "l.jsonl",
          "{\"path\": \"d\\/e.png\", \"label\": 4}\n\n{\"label\":0 , \"image\":\"a\\u0020b.png\"}\n{\"file\":\"d/e.png\",\"class\":\"4\"}" },
    };
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        qd_samples_options o = usual;
        put(in(lists, files[f].name), files[f].text, strlen(files[f].text));
        o.list = in(lists, files[f].name);
        qd_samples *s = open_samples(dir, &o, NULL);
        assert_true(qd_samples_about(s)->count == 3 && qd_samples_about(s)->classes == 5);
        assert_true(qd_samples_label(s, 0) == 4 && qd_samples_label(s, 1) == 0 && qd_samples_label(s, 2) == 4);
        assert_string_equal(qd_samples_name(s, 1), "a b.png");
        qd_samples_free(s);
    }
    qd_samples_options o = usual;
    o.list = in(lists, "names.csv");
    put(o.list, "file,class\nc.png,zebra\na b.png,ape\n", 35);
    qd_samples *s = open_samples(dir, &o, NULL);
    assert_true(qd_samples_about(s)->classes == 2 && qd_samples_label(s, 0) == 1 && qd_samples_label(s, 1) == 0);
    assert_string_equal(qd_samples_about(s)->class_name[1], "zebra");
    qd_samples_free(s);
    put(o.list, "c.png\n", 6);
    s = open_samples(dir, &o, NULL);
    assert_true(qd_samples_about(s)->classes == 0 && qd_samples_label(s, 0) == -1);
    qd_samples_free(s);
    put(o.list, "c.png,1\nx.png,2\n", 16);
    check_refused(dir, &o, QD_E_NOT_FOUND, "'names.csv' lists 'x.png'");
}

static void lists_that_lie_are_refused(void **state)
{
    static const struct {
        const char *name, *text, *words;
    } lies[] = {
        { "a.jsonl", "[1]", "'a.jsonl', line 1: expected one flat JSON object" },
        { "a.jsonl", "{\"path\": \"a\"}\n{\"path\": \"b", "line 2: expected" },
        { "a.jsonl", "{\"path\": {}}", "line 1" },
        { "a.jsonl", "{\"path\": \"\\ud800\"}", "line 1" },
        { "a.jsonl", "{\"path\": \"\\u00", "line 1" },
        { "a.jsonl", "{\"path\": \"a\"} x", "line 1" },
        { "a.jsonl", "{\"label\": 1}", "names no picture" },
        { "a.csv", "\"a,1", "a quote is left open" },
        { "a.csv", "a,1\nb\n", "labels for 1 of 2 pictures" },
        { "a.txt", "a\nb 1\n", "it has a label and lines before it have none" },
        { "a.txt", "\n\n", "lists no picture" },
        { "a.txt", "a 65536", "'a' has label 65536" },
    };
    const char *dir = harness_tmp();
    qd_err err = { 0 };
    qd_list l = { 0 };
    for (size_t k = 0; k < sizeof lies / sizeof *lies; k++) {
        put(in(dir, lies[k].name), lies[k].text, strlen(lies[k].text));
        const qd_status want = strstr(lies[k].words, "65536") ? QD_E_LIMIT : QD_E_FORMAT;
        check_fails(qd_list_open(in(dir, lies[k].name), 100, &l, &err), want, lies[k].words, &err);
        assert_null(l.path);
    }
    put(in(dir, "nul.txt"), "a\0b", 3);
    check_fails(qd_list_open(in(dir, "nul.txt"), 100, &l, &err), QD_E_FORMAT, "is no text", &err);
    put(in(dir, "a.txt"), "a\nb\nc", 5);
    check_fails(qd_list_open(in(dir, "a.txt"), 2, &l, &err), QD_E_LIMIT, "more than 2 pictures", &err);
    char *wide = qd_alloc(5000);
    memset(wide, 'a', 5000);
    put(in(dir, "a.txt"), wide, 5000);
    qd_free(wide);
    check_fails(qd_list_open(in(dir, "a.txt"), 2, &l, &err), QD_E_FORMAT, "longer than 4095", &err);
}

static void numbers_are_read(void **state)
{
    const char *dir = harness_tmp();
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    static const struct {
        const char *name, *bytes;
        size_t n;
    } files[] = {
        { "a.txt", "7\r\n0\n\n 258 \n", 12 },
        { "a.u16", "\7\0\0\0\2\1", 6 },
        { "a.u32", "\7\0\0\0\0\0\0\0\2\1\0\0", 12 },
    };
    for (int f = 0; f < 3; f++) {
        put(in(dir, files[f].name), files[f].bytes, files[f].n);
        check_ok(qd_indices_take(in(dir, files[f].name), 300, 10, NULL, &t, &err), &err);
        const int64_t *v = t.data;
        assert_true(t.dtype == QD_I64 && qd_tensor_count(&t) == 3 && v[0] == 7 && v[1] == 0 && v[2] == 258);
        qd_tensor_clear(&t);
        check_fails(qd_indices_take(in(dir, files[f].name), 258, 10, NULL, &t, &err), QD_E_FORMAT,
                    "number 2 is 258; 0..257", &err);
        check_fails(qd_indices_take(in(dir, files[f].name), 0, 2, NULL, &t, &err), QD_E_LIMIT,
                    "has 3 numbers; 2 are the most", &err);
    }
    check_ok(qd_indices_take(golden("labels.npy"), 3, 10, NULL, &t, &err), &err);
    assert_true(qd_tensor_count(&t) == 4 && ((const int64_t *)t.data)[0] == 2);
    qd_tensor_clear(&t);
    put(in(dir, "a.u16"), "abc", 3);
    check_fails(qd_indices_take(in(dir, "a.u16"), 0, 10, NULL, &t, &err), QD_E_FORMAT, "'a.u16' has 3 bytes", &err);
    put(in(dir, "a.txt"), "1\n-2\n", 5);
    check_fails(qd_indices_take(in(dir, "a.txt"), 0, 10, NULL, &t, &err), QD_E_FORMAT, "line 2: expected one whole",
                &err);
    check_fails(qd_indices_take(in(dir, "missing.txt"), 0, 10, NULL, &t, &err), QD_E_NOT_FOUND, "missing.txt", &err);
}

/* --- data sets --- */

static void data_sets_are_samples(void **state)
{
    qd_err err = { 0 };
    qd_image hold = { 0 };
    qd_pixels p;
    qd_samples *s = open_samples(golden("arrays.npz"), &usual, NULL);
    const qd_samples_info *i = qd_samples_about(s);
    assert_true(i->count == 4 && i->channels == 3 && i->height == 6 && i->classes == 3 && i->in_memory);
    assert_string_equal(i->format, "npy");
    assert_null(qd_samples_name(s, 1));
    check_ok(qd_samples_get(s, 1, &hold, &p, &err), &err);
    assert_true(pixel(&p, 1, 0, 0) == (91 * 7 + 3) % 251 && !hold.pixels && qd_samples_label(s, 2) == 1);
    qd_samples_free(s);
    qd_samples_options o = usual;
    o.list = "some.txt";
    check_refused(golden("arrays.npz"), &o, QD_E_UNSUPPORTED, "a list chooses files");
}

static qd_status open_once(void *ctx, qd_err *err)
{
    qd_samples *s = NULL;
    qd_samples_options o = usual;
    o.cache_bytes = 1000;
    o.list = strstr(ctx, ".tar") ? NULL : in(ctx, "../list.csv");
    const qd_status st = qd_samples_open(ctx, &o, NULL, &s, err);
    qd_samples_free(s);
    return st;
}

static void every_failing_allocation_is_survived(void **state)
{
    const char *dir = harness_tmp();
    char pictures[1200], web[1200];
    snprintf(pictures, sizeof pictures, "%s/pictures", dir);
    put_png(in(pictures, "dog/1.png"), 2, 2, 3, 50);
    put_png(in(pictures, "cat/2.png"), 2, 2, 3, 10);
    put(in(dir, "list.csv"), "dog/1.png,dog\ncat/2.png,cat\n", 28);
    assert_true(harness_run_each_alloc(open_once, pictures, 500) > 10);
    snprintf(web, sizeof web, "%s", golden("web.tar"));
    assert_true(harness_run_each_alloc(open_once, web, 500) > 10);
    snprintf(web, sizeof web, "%s", golden("gnu.tar"));
    assert_true(harness_run_each_alloc(open_once, web, 500) > 10);
}

static void indexing_can_be_cancelled(void **state)
{
    const char *dir = harness_tmp();
    const atomic_bool cancel = true;
    const qd_run run = { .cancel = &cancel };
    qd_err err = { 0 };
    qd_samples *s = NULL;
    put_png(in(dir, "a.png"), 2, 2, 1, 0);
    check_fails(qd_samples_open(dir, &usual, &run, &s, &err), QD_E_CANCELLED, "cancelled", &err);
    assert_null(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folders_of_all_sizes),
        cmocka_unit_test(files_that_change_are_noticed),
        cmocka_unit_test(tar_files_are_read_in_place),
        cmocka_unit_test(tar_files_that_lie_are_refused),
        cmocka_unit_test(lists_choose_pictures),
        cmocka_unit_test(lists_that_lie_are_refused),
        cmocka_unit_test(numbers_are_read),
        cmocka_unit_test(data_sets_are_samples),
        cmocka_unit_test(every_failing_allocation_is_survived),
        cmocka_unit_test(indexing_can_be_cancelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
