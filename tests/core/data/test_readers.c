/* test_readers.c - data sets as they are published, known facts of theirs, and files that lie about themselves. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "data/data.h"

static const qd_data_limits usual = { .max_bytes = 256u << 20, .max_count = 100000 };

static const char *in(const char *dir, const char *name)
{
    static char ring[4][1200];
    static int next;
    char *path = ring[next++ % 4];
    assert_in_range(snprintf(path, sizeof ring[0], "%s/%s", dir, name), 0, (int)sizeof ring[0] - 1);
    return path;
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

static qd_dataset *open_set(const char *path, qd_budget *budget)
{
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    check_ok(qd_dataset_open(path, &usual, budget, &d, &err), &err);
    return d;
}

static void check_refused(const char *path, qd_status want, const char *words)
{
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    check_fails(qd_dataset_open(path, &usual, NULL, &d, &err), want, words, &err);
    assert_null(d);
}

/* --- files as published --- */

/* First labels of the test set; 1,000 of each class; mean of all training pixels as their authors state them. */
static void fashion_mnist_is_as_published(void **state)
{
    const char *path = harness_data("datasets/fashion-mnist/t10k-images-idx3-ubyte.gz");
    static const int first[] = { 9, 2, 1, 1, 6, 1, 4, 6, 5, 7 };
    double mean[QD_MAX_CHANNELS], std[QD_MAX_CHANNELS];
    if (!path)
        skip();
    qd_budget budget;
    qd_budget_init(&budget, 64u << 20);
    qd_dataset *d = open_set(path, &budget);
    assert_string_equal(d->format, "idx");
    assert_int_equal(d->count, 10000);
    assert_true(d->channels == 1 && d->height == 28 && d->width == 28);
    assert_int_equal(d->classes, 10);
    int64_t of_class[10] = { 0 }, ink = 0;
    for (int64_t k = 0; k < d->count; k++)
        of_class[qd_dataset_label(d, k)]++;
    for (int c = 0; c < 10; c++)
        assert_int_equal(of_class[c], 1000);
    for (int k = 0; k < 10; k++)
        assert_int_equal(qd_dataset_label(d, k), first[k]);
    for (int i = 0; i < 784; i++)
        ink += qd_dataset_pixels(d, 0)[i];
    assert_int_equal(ink, 33456); /* of the first picture, an ankle boot */
    qd_dataset_statistics(d, mean, std);
    assert_true(fabs(mean[0] - 0.2868) < 5e-4 && fabs(std[0] - 0.3524) < 5e-4);
    /* Memory is what was drawn, and given back. */
    assert_true(budget.used_bytes >= 7840016 && budget.used_bytes < 9u << 20);
    qd_dataset_free(d);
    assert_int_equal(budget.used_bytes, 0);
}

static void cifar_is_as_published(void **state)
{
    const char *path = harness_data("datasets/cifar10/test-1000.bin.gz");
    static const int first[] = { 3, 8, 8, 0, 6, 6, 1, 6, 3, 1 }; /* cat, ship, ship, airplane, frog, .. */
    static const int of_class[] = { 103, 89, 100, 103, 90, 86, 112, 102, 106, 109 };
    if (!path)
        skip();
    qd_dataset *d = open_set(path, NULL);
    assert_string_equal(d->format, "cifar");
    assert_int_equal(d->count, 1000);
    assert_true(d->channels == 3 && d->height == 32 && d->width == 32 && d->classes == 10);
    int seen[10] = { 0 };
    for (int64_t k = 0; k < d->count; k++)
        seen[qd_dataset_label(d, k)]++;
    for (int k = 0; k < 10; k++) {
        assert_int_equal(qd_dataset_label(d, k), first[k]);
        assert_int_equal(seen[k], of_class[k]);
    }
    /* The first pixel of the first picture, a cat, is (158, 112, 49). */
    assert_int_equal(qd_dataset_pixels(d, 0)[0], 158);
    assert_int_equal(qd_dataset_pixels(d, 0)[1024], 112);
    assert_int_equal(qd_dataset_pixels(d, 0)[2048], 49);
    qd_dataset_free(d);
}

/* --- what the readers make of small files --- */

static const uint8_t idx_images[] = { 0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6 };
static const uint8_t idx_labels[] = { 0, 0, 8, 1, 0, 0, 0, 2, 7, 4 };

static void idx_pairs_are_found(void **state)
{
    const char *dir = harness_tmp();
    put(in(dir, "a-images-idx3-ubyte"), idx_images, sizeof idx_images);
    qd_dataset *d = open_set(in(dir, "a-images-idx3-ubyte"), NULL);
    assert_int_equal(d->classes, 0);
    assert_int_equal(qd_dataset_label(d, 1), -1);
    qd_dataset_free(d);

    put(in(dir, "a-labels-idx1-ubyte"), idx_labels, sizeof idx_labels);
    put(in(dir, "README"), "hello", 5);
    for (int as_folder = 0; as_folder < 2; as_folder++) {
        d = open_set(as_folder ? dir : in(dir, "a-images-idx3-ubyte"), NULL);
        assert_true(d->count == 2 && d->height == 1 && d->width == 3 && d->classes == 8);
        assert_int_equal(qd_dataset_label(d, 0), 7);
        assert_memory_equal(qd_dataset_pixels(d, 1), idx_images + 19, 3);
        assert_int_equal(d->left_out, as_folder ? 1 : 0);
        qd_dataset_free(d);
    }
    put(in(dir, "b-images-idx3-ubyte"), idx_images, sizeof idx_images);
    check_refused(dir, QD_E_FORMAT, "two IDX files of pictures");
}

static void idx_that_lies_is_refused(void **state)
{
    const char *dir = harness_tmp(), *path = in(dir, "x-images-idx3-ubyte"), *labels = in(dir, "x-labels-idx1-ubyte");
    for (size_t n = 4; n < sizeof idx_images; n++) { /* cut anywhere */
        put(path, idx_images, n);
        check_refused(path, QD_E_FORMAT, "IDX pictures");
    }
    uint8_t bad[sizeof idx_images];
    for (int at = 4; at < 16; at++) { /* every byte of every size */
        memcpy(bad, idx_images, sizeof bad);
        bad[at] ^= 0x80;
        put(path, bad, sizeof bad);
        check_refused(path, QD_E_FORMAT, "IDX pictures say");
    }
    put(path, idx_images, sizeof idx_images);
    put(labels, idx_labels, sizeof idx_labels - 1);
    check_refused(path, QD_E_FORMAT, "IDX labels say there are 2 and hold 1");
    memcpy(bad, idx_labels, sizeof idx_labels);
    bad[7] = 3;
    put(labels, bad, sizeof idx_labels);
    check_refused(path, QD_E_FORMAT, "there are 2 pictures");
}

static void records_that_do_not_add_up_are_refused(void **state)
{
    static uint8_t records[2 * 3073 + 1];
    const char *dir = harness_tmp(), *path = in(dir, "some.bin");
    records[0] = 3;
    records[3073] = 250;
    put(path, records, sizeof records - 1);
    qd_dataset *d = open_set(dir, NULL);
    assert_true(d->count == 2 && d->classes == 251);
    qd_dataset_free(d);
    put(path, records, sizeof records);
    check_refused(path, QD_E_FORMAT, "6147 bytes are no whole number of CIFAR-10 records");
    put(in(dir, "other.bin"), records, 3073);
    check_refused(dir, QD_E_FORMAT, "2 files of records");
    check_refused(in(dir, "missing"), QD_E_NOT_FOUND, "no data set was found");
    const char *empty = harness_tmp();
    check_refused(empty, QD_E_FORMAT, "no data set was found");
}

/* CIFAR-100: two labels, the fine one counts. Sizes that fit both kinds are told by what their labels may be. */
static void records_of_a_hundred_classes(void **state)
{
    static uint8_t records[2 * 3074];
    const char *dir = harness_tmp(), *path = in(dir, "train.bin");
    records[0] = 19;
    records[1] = 99;
    records[2] = 7;
    records[3074] = 3;
    records[3075] = 40;
    put(path, records, sizeof records);
    put(in(dir, "test.bin"), records, 3074);
    put(in(dir, "fine_label_names.txt"), "apple\nfish\n", 11);
    qd_dataset *d = open_set(dir, NULL);
    assert_true(d->count == 2 && d->classes == 100 && d->left_out == 2);
    assert_null(d->class_name); /* two names are too few */
    assert_true(qd_dataset_label(d, 0) == 99 && qd_dataset_label(d, 1) == 40 && qd_dataset_pixels(d, 0)[0] == 7);
    qd_dataset_free(d);

    const size_t both = 3073u * 3074u;
    uint8_t *many = qd_calloc(both, 1);
    assert_non_null(many);
    put(path, many, both);
    d = open_set(path, NULL);
    assert_int_equal(d->count, 3073); /* labels of CIFAR-100 throughout */
    qd_dataset_free(d);
    many[3074 * 5] = 20; /* no coarse class */
    put(path, many, both);
    d = open_set(path, NULL);
    assert_int_equal(d->count, 3074);
    qd_dataset_free(d);
    qd_free(many);
}

/* The training set as it is published: five files in their order, the test set beside them left out, classes named. */
static void batches_are_joined(void **state)
{
    static uint8_t record[3073];
    static const char names[] = "airplane\r\nautomobile\r\nbird\r\ncat\r\n\r\n";
    const char *dir = harness_tmp();
    char name[64];
    for (int k = 5; k >= 1; k--) {
        snprintf(name, sizeof name, "cifar-10-batches-bin/data_batch_%d.bin", k);
        record[0] = (uint8_t)(k % 4);
        record[1] = (uint8_t)(10 * k);
        put(in(dir, name), record, sizeof record);
    }
    put(in(dir, "cifar-10-batches-bin/test_batch.bin"), record, sizeof record);
    put(in(dir, "cifar-10-batches-bin/batches.meta.txt"), names, sizeof names - 1);
    qd_dataset *d = open_set(dir, NULL);
    assert_true(d->count == 5 && d->classes == 4 && d->left_out == 2);
    assert_string_equal(d->class_name[3], "cat");
    for (int k = 0; k < 5; k++)
        assert_true(qd_dataset_pixels(d, k)[0] == 10 * (k + 1) && qd_dataset_label(d, k) == (k + 1) % 4);
    qd_dataset_free(d);
    const qd_data_limits small = { .max_bytes = 2 * 3073, .max_count = 100 };
    qd_err err = { 0 };
    d = NULL;
    check_fails(qd_dataset_open(dir, &small, NULL, &d, &err), QD_E_LIMIT, "more than the 6146 bytes", &err);
}

/* A gzip of 4 MB of zeros whose end says it is 1 byte, and one that is cut: limits hold, sizes are not believed. */
static void compressed_files_are_read_within_limits(void **state)
{
    const char *path = harness_data("datasets/fashion-mnist/t10k-images-idx3-ubyte.gz");
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    if (!path)
        skip();
    const qd_data_limits small = { .max_bytes = 7840015, .max_count = 100000 },
                         exact = { .max_bytes = 7840016, .max_count = 10000 },
                         few = { .max_bytes = 256u << 20, .max_count = 9999 };
    check_fails(qd_dataset_open(path, &small, NULL, &d, &err), QD_E_LIMIT, "more than the 7840015 bytes", &err);
    check_fails(qd_dataset_open(path, &few, NULL, &d, &err), QD_E_LIMIT, "9999 are the most", &err);
    check_ok(qd_dataset_open(path, &exact, NULL, &d, &err), &err);
    qd_dataset_free(d);
    qd_budget budget;
    qd_budget_init(&budget, 4u << 20);
    check_fails(qd_dataset_open(path, &exact, &budget, &d, &err), QD_E_LIMIT, "", &err);
    assert_int_equal(budget.used_bytes, 0);

    char *data;
    size_t size;
    check_ok(qd_fs_take(path, 64u << 20, &data, &size, &err), &err);
    const char *dir = harness_tmp(), *cut = in(dir, "a-images-idx3-ubyte.gz");
    put(cut, data, size / 2);
    check_refused(cut, QD_E_FORMAT, "");
    memset(data + size - 4, 1, 4); /* what it decompresses to, it says: 16 MB; then nothing at all */
    put(cut, data, size);
    qd_dataset_free(open_set(cut, NULL));
    memset(data + size - 4, 0, 4);
    put(cut, data, size);
    qd_dataset_free(open_set(cut, NULL));
    qd_free(data);
}

/* --- folders of pictures --- */

static void put_png(const char *path, int w, int h, int channels, uint8_t first)
{
    qd_err err = { 0 };
    qd_buf b;
    uint8_t pixels[64];
    for (int k = 0; k < w * h * channels; k++)
        pixels[k] = (uint8_t)(first + k);
    const qd_image im = { .width = w, .height = h, .channels = channels, .pixels = pixels };
    qd_buf_init(&b, 0);
    check_ok(qd_png_encode(&im, &b, &err), &err);
    put(path, b.data, b.size);
    qd_buf_clear(&b);
}

static void folders_are_classes(void **state)
{
    const char *dir = harness_tmp();
    put_png(in(dir, "set/images/dog/1.png"), 2, 2, 3, 50);
    put_png(in(dir, "set/images/cat/2.png"), 2, 2, 3, 10);
    put_png(in(dir, "set/images/cat2/x.png"), 2, 2, 1, 70);
    put_png(in(dir, "set/images/cat/10.png"), 2, 2, 3, 30);
    put(in(dir, "set/images/notes.txt"), "no picture", 10);
    put(in(dir, "set/.hidden"), "x", 1);
    qd_dataset *d = open_set(dir, NULL);
    assert_string_equal(d->format, "pictures");
    assert_true(d->count == 4 && d->channels == 3 && d->height == 2 && d->width == 2);
    assert_int_equal(d->left_out, 1);
    assert_int_equal(d->classes, 3);
    assert_string_equal(d->class_name[0], "cat");
    assert_string_equal(d->class_name[1], "cat2");
    assert_string_equal(d->class_name[2], "dog");
    /* Sorted by path: cat/10, cat/2, cat2/x, dog/1. */
    static const int labels[] = { 0, 0, 1, 2 };
    for (int k = 0; k < 4; k++)
        assert_int_equal(qd_dataset_label(d, k), labels[k]);
    static const uint8_t planes[] = { 30, 33, 36, 39, 31, 34, 37, 40, 32, 35, 38, 41 };
    assert_memory_equal(qd_dataset_pixels(d, 0), planes, 12);
    static const uint8_t grey[] = { 70, 71, 72, 73, 70, 71, 72, 73, 70, 71, 72, 73 };
    assert_memory_equal(qd_dataset_pixels(d, 2), grey, 12);
    qd_dataset_free(d);

    put_png(in(dir, "set/images/dog/3.png"), 2, 3, 3, 0);
    check_refused(dir, QD_E_FORMAT, "'set/images/dog/3.png' is 2 x 3");
    const char *flat = harness_tmp();
    put_png(in(flat, "a.png"), 2, 2, 1, 0);
    d = open_set(flat, NULL);
    assert_int_equal(d->classes, 0);
    qd_dataset_free(d);
    put_png(in(flat, "some/b.png"), 2, 2, 1, 0);
    check_refused(flat, QD_E_FORMAT, "lie in no class's folder");
    const char *damaged = harness_tmp();
    put_png(in(damaged, "c/a.png"), 2, 2, 1, 0);
    put(in(damaged, "c/b.png"), "\x89PNG\r\n\x1a\n....", 12);
    check_refused(damaged, QD_E_FORMAT, "'c/b.png'");
}

/* --- tensors, scales, draws --- */

static void tensors_make_a_set(void **state)
{
    qd_err err = { 0 };
    qd_tensor images = { 0 }, labels = { 0 };
    qd_dataset *d = NULL;
    const qd_shape shape = QD_SHAPE(3, 1, 2, 2), n = QD_SHAPE(3), two = QD_SHAPE(2);
    check_ok(qd_tensor_init(&images, QD_U8, &shape, NULL, &err), &err);
    check_ok(qd_tensor_init(&labels, QD_I64, &n, NULL, &err), &err);
    memset(images.data, 9, 12);
    ((int64_t *)labels.data)[2] = 5;
    check_ok(qd_dataset_wrap(&images, &labels, NULL, &d, &err), &err);
    assert_true(d->count == 3 && d->classes == 6 && qd_dataset_label(d, 2) == 5 && qd_dataset_pixels(d, 2)[3] == 9);
    qd_dataset_free(d);
    d = NULL;
    ((int64_t *)labels.data)[1] = -1;
    check_fails(qd_dataset_wrap(&images, &labels, NULL, &d, &err), QD_E_FORMAT, "label of picture 1 is -1", &err);
    ((int64_t *)labels.data)[1] = 1ll << 40;
    check_fails(qd_dataset_wrap(&images, &labels, NULL, &d, &err), QD_E_FORMAT, "label of picture 1", &err);
    labels.shape = two;
    check_fails(qd_dataset_wrap(&images, &labels, NULL, &d, &err), QD_E_FORMAT, "2 labels for 3 pictures", &err);
    images.shape = n;
    check_fails(qd_dataset_wrap(&images, NULL, NULL, &d, &err), QD_E_FORMAT, "[N, C, H, W]", &err);
    assert_null(d);
    qd_tensor_clear(&images);
    qd_tensor_clear(&labels);
}

static void pixels_become_floats(void **state)
{
    qd_err err = { 0 };
    qd_tensor images = { 0 };
    qd_dataset *d = NULL;
    qd_pixel_scale s;
    const qd_shape shape = QD_SHAPE(2, 2, 1, 1);
    check_ok(qd_tensor_init(&images, QD_U8, &shape, NULL, &err), &err);
    memcpy(images.data, (const uint8_t[]){ 0, 255, 51, 102 }, 4);
    check_ok(qd_dataset_wrap(&images, NULL, NULL, &d, &err), &err);
    check_ok(qd_pixel_scale_parse("0.5,0.25", "2", 2, &s, &err), &err);
    float x[4];
    const int64_t second = 1;
    qd_dataset_floats(x, d, NULL, 0, 2, &s);
    const float want[] = { (0.0f - 0.5f) / 2, (1.0f - 0.25f) / 2, (0.2f - 0.5f) / 2, (0.4f - 0.25f) / 2 };
    check_close(x, want, 4, 1e-7, 0);
    qd_dataset_floats(x, d, &second, 0, 1, &s);
    check_close(x, want + 2, 2, 1e-7, 0);
    check_fails(qd_pixel_scale_parse("0.5,0.2,0.1", "1", 2, &s, &err), QD_E_INVALID, "params.mean has 3 numbers", &err);
    check_fails(qd_pixel_scale_parse("", "1", 2, &s, &err), QD_E_INVALID, "params.mean has 0 numbers", &err);
    check_fails(qd_pixel_scale_parse("a", "1", 2, &s, &err), QD_E_INVALID, "params.mean is 'a'", &err);
    check_fails(qd_pixel_scale_parse("nan", "1", 2, &s, &err), QD_E_INVALID, "params.mean is 'nan'", &err);
    check_fails(qd_pixel_scale_parse("0 0", "1", 2, &s, &err), QD_E_INVALID, "commas", &err);
    check_fails(qd_pixel_scale_parse("1,2,3,4,5", "1", 2, &s, &err), QD_E_INVALID, "params.mean", &err);
    check_fails(qd_pixel_scale_parse("0", "0", 2, &s, &err), QD_E_INVALID, "params.std has 0", &err);
    qd_dataset_free(d);
    qd_tensor_clear(&images);
}

/* Rising, different, within; the same for the same seed; every picture has its turn. */
static void draws_are_fair(void **state)
{
    qd_err err = { 0 };
    qd_tensor images = { 0 };
    qd_dataset *d = NULL;
    const qd_shape shape = QD_SHAPE(10, 1, 1, 1);
    int64_t a[10], b[10], taken[10] = { 0 };
    check_ok(qd_tensor_init(&images, QD_U8, &shape, NULL, &err), &err);
    check_ok(qd_dataset_wrap(&images, NULL, NULL, &d, &err), &err);
    for (uint64_t seed = 0; seed < 2000; seed++) {
        assert_int_equal(qd_dataset_draw(a, d, 3, seed), 3);
        assert_int_equal(qd_dataset_draw(b, d, 3, seed), 3);
        assert_memory_equal(a, b, 3 * sizeof *a);
        assert_true(a[0] >= 0 && a[0] < a[1] && a[1] < a[2] && a[2] < 10);
        for (int k = 0; k < 3; k++)
            taken[a[k]]++;
    }
    for (int k = 0; k < 10; k++)
        assert_in_range(taken[k], 500, 700); /* 600 of 2000, five standard deviations */
    assert_int_equal(qd_dataset_draw(a, d, 99, 1), 10);
    qd_dataset_free(d);
    qd_tensor_clear(&images);
}

static qd_status open_once(void *ctx, qd_err *err)
{
    qd_dataset *d = NULL;
    const qd_status st = qd_dataset_open(ctx, &usual, NULL, &d, err);
    qd_dataset_free(d);
    return st;
}

static void every_failing_allocation_is_survived(void **state)
{
    const char *dir = harness_tmp();
    put_png(in(dir, "dog/1.png"), 2, 2, 3, 50);
    put_png(in(dir, "cat/2.png"), 2, 2, 3, 10);
    assert_true(harness_run_each_alloc(open_once, (void *)dir, 500) > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fashion_mnist_is_as_published),
        cmocka_unit_test(cifar_is_as_published),
        cmocka_unit_test(idx_pairs_are_found),
        cmocka_unit_test(idx_that_lies_is_refused),
        cmocka_unit_test(records_that_do_not_add_up_are_refused),
        cmocka_unit_test(records_of_a_hundred_classes),
        cmocka_unit_test(batches_are_joined),
        cmocka_unit_test(compressed_files_are_read_within_limits),
        cmocka_unit_test(folders_are_classes),
        cmocka_unit_test(tensors_make_a_set),
        cmocka_unit_test(pixels_become_floats),
        cmocka_unit_test(draws_are_fair),
        cmocka_unit_test(every_failing_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
