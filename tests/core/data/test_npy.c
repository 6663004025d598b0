/* test_npy.c - NumPy's files as numpy writes them, as data sets, and files that lie. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "data/data.h"

static const qd_data_limits usual = { .max_bytes = 1u << 20, .max_count = 1000 };

static const char *golden(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "tests/golden/data/%s", name);
    return harness_source(path);
}

static int value(int k)
{
    return (k * 7 + 3) % 251;
}

/* Four pictures of 6 x 5 in colours: value k of [4][6][5][3]. */
static void check_set(const char *path, bool interleaved)
{
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    qd_budget budget;
    qd_budget_init(&budget, 1u << 20);
    check_ok(qd_dataset_open(path, &usual, &budget, &d, &err), &err);
    assert_string_equal(d->format, "npy");
    assert_true(d->count == 4 && d->channels == 3 && d->height == 6 && d->width == 5 && d->classes == 3);
    assert_int_equal(d->interleaved, interleaved);
    static const int labels[] = { 2, 0, 1, 2 };
    const qd_pixel_scale scale = { .channels = 3, .std = { 1.0f, 1.0f, 1.0f } };
    float floats[90];
    double mean[QD_MAX_CHANNELS], std[QD_MAX_CHANNELS], sum = 0;
    for (int n = 0; n < 4; n++) {
        const qd_pixels p = qd_dataset_picture(d, n);
        assert_int_equal(qd_dataset_label(d, n), labels[n]);
        qd_dataset_floats(floats, d, NULL, n, 1, &scale);
        for (int y = 0; y < 6; y++)
            for (int x = 0; x < 5; x++)
                for (int c = 0; c < 3; c++) {
                    const int want = value(((n * 6 + y) * 5 + x) * 3 + c);
                    assert_int_equal(p.data[c * p.plane + y * p.row + x * p.column], want);
                    assert_true(floats[(c * 6 + y) * 5 + x] == (float)want / 255.0f);
                    sum += c == 1 ? want / 255.0 / 120.0 : 0;
                }
    }
    qd_dataset_statistics(d, mean, std);
    assert_true(mean[1] > sum - 1e-9 && mean[1] < sum + 1e-9);
    qd_dataset_free(d);
    assert_int_equal(budget.used_bytes, 0);
}

static void arrays_are_data_sets(void **state)
{
    check_set(golden("images.npy"), true); /* labels.npy lies beside it */
    check_set(golden("arrays.npz"), false);

    qd_err err = { 0 };
    qd_dataset *d = NULL;
    check_ok(qd_dataset_open(golden("unlabelled.npz"), &usual, NULL, &d, &err), &err);
    assert_true(d->count == 4 && d->channels == 1 && d->height == 6 && d->width == 5 && d->classes == 0);
    assert_int_equal(qd_dataset_pixels(d, 1)[0], value(90));
    qd_dataset_free(d);
}

static void folders_of_arrays_too(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    char from[2][1024], to[1100];
    static const char *const names[] = { "images.npy", "labels.npy" };
    for (int k = 0; k < 2; k++) {
        char *data;
        size_t size;
        snprintf(from[k], sizeof from[k], "%s", golden(names[k]));
        check_ok(qd_fs_take(from[k], 65536, &data, &size, &err), &err);
        snprintf(to, sizeof to, "%s/%s", dir, names[k]);
        check_ok(qd_fs_write(to, data, size, &err), &err);
        qd_free(data);
    }
    check_set(dir, true);
}

static void single_arrays_are_read(void **state)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    check_ok(qd_npy_take(golden("labels.npy"), NULL, 1u << 20, NULL, &t, &err), &err);
    assert_true(t.dtype == QD_I64 && t.shape.rank == 1 && t.shape.dim[0] == 4 && ((const int64_t *)t.data)[3] == 2);
    qd_tensor_clear(&t);
    check_ok(qd_npy_take(golden("arrays.npz"), "labels", 1u << 20, NULL, &t, &err), &err);
    assert_true(t.dtype == QD_I32 && t.shape.dim[0] == 4);
    qd_tensor_clear(&t);
    check_fails(qd_npy_take(golden("arrays.npz"), "weights", 1u << 20, NULL, &t, &err), QD_E_NOT_FOUND,
                "'arrays.npz' holds no array 'weights'", &err);
    check_fails(qd_npy_take(golden("arrays.npz"), "images", 1000, NULL, &t, &err), QD_E_LIMIT,
                "more than the 1000 bytes", &err);
    check_fails(qd_npy_take(golden("fortran.npy"), NULL, 1u << 20, NULL, &t, &err), QD_E_UNSUPPORTED,
                "'fortran.npy' is in Fortran order", &err);
    check_fails(qd_npy_take(golden("big_endian.npy"), NULL, 1u << 20, NULL, &t, &err), QD_E_UNSUPPORTED, "'>i4'", &err);
    check_fails(qd_npy_take(golden("objects.npy"), NULL, 1u << 20, NULL, &t, &err), QD_E_UNSUPPORTED, "'|O'", &err);
    check_fails(qd_npy_take(golden("make_arrays.py"), NULL, 1u << 20, NULL, &t, &err), QD_E_FORMAT,
                "'make_arrays.py' is no NPY file", &err);
}

static qd_status parse(const char *dict, size_t body, qd_tensor *out, qd_err *err)
{
    char bytes[512] = "\x93NUMPY\x01";
    qd_tensor t = { 0 };
    const size_t n = strlen(dict);
    bytes[8] = (char)n;
    memcpy(bytes + 10, dict, n);
    const qd_shape shape = QD_SHAPE((int64_t)(10 + n + body));
    qd_status st = qd_tensor_wrap(&t, QD_U8, &shape, bytes, NULL, NULL, err);
    if (!st)
        st = qd_npy_parse(&t, "some.npy", out, err);
    qd_tensor_clear(&t);
    return st;
}

static void headers_that_lie_are_refused(void **state)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
#define DICT(shape) "{'descr': '|u1', 'fortran_order': False, 'shape': " shape ", }"
    check_ok(parse(DICT("(2, 3)"), 6, &t, &err), &err);
    assert_true(t.shape.rank == 2 && t.shape.dim[1] == 3);
    qd_tensor_clear(&t);
    check_ok(parse(DICT("()"), 1, &t, &err), &err);
    assert_int_equal(t.shape.rank, 0);
    qd_tensor_clear(&t);
    check_fails(parse(DICT("(2, 3)"), 5, &t, &err), QD_E_FORMAT, "says u8 [2, 3] and has 5 bytes", &err);
    check_fails(parse(DICT("(2, 3)"), 7, &t, &err), QD_E_FORMAT, "has 7 bytes", &err);
    check_fails(parse(DICT("(-2, -3)"), 6, &t, &err), QD_E_FORMAT, "no shape", &err);
    check_fails(parse(DICT("(2, 3"), 6, &t, &err), QD_E_FORMAT, "no shape", &err);
    check_fails(parse(DICT("(1,1,1,1,1,1,1,1,1)"), 1, &t, &err), QD_E_FORMAT, "at most 8 axes", &err);
    check_fails(parse(DICT("(4294967296, 4294967296)"), 0, &t, &err), QD_E_LIMIT, "", &err);
    check_fails(parse(DICT("(99999999999999999999,)"), 0, &t, &err), QD_E_FORMAT, "no shape", &err);
    check_fails(parse("{'descr': '|u1', 'shape': (1,), }", 1, &t, &err), QD_E_UNSUPPORTED, "Fortran", &err);
    check_fails(parse("{'descr': '|u", 1, &t, &err), QD_E_UNSUPPORTED, "values are '|u", &err);
    check_fails(parse("", 0, &t, &err), QD_E_UNSUPPORTED, "no stated type", &err);
    assert_null(t.data);

    /* Cut anywhere. */
    char *data, path[1100];
    size_t size;
    const char *dir = harness_tmp();
    check_ok(qd_fs_take(golden("arrays.npz"), 65536, &data, &size, &err), &err);
    snprintf(path, sizeof path, "%s/cut.npz", dir);
    for (size_t n = 8; n < size; n += 13) {
        qd_dataset *d = NULL;
        check_ok(qd_fs_write(path, data, n, &err), &err);
        check_fails(qd_dataset_open(path, &usual, NULL, &d, &err), QD_E_FORMAT, "cut.npz", &err);
    }
    qd_free(data);
}

static void images_of_other_kinds_are_refused(void **state)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    qd_dataset *d = NULL;
    const qd_shape four = QD_SHAPE(2, 1, 2, 2), two = QD_SHAPE(2, 2);
    check_ok(qd_tensor_init(&t, QD_F32, &four, NULL, &err), &err);
    qd_f32(&t)[5] = 1.5f;
    check_fails(qd_dataset_wrap(&t, NULL, NULL, &d, &err), QD_E_FORMAT, "value 5 of the images is 1.5", &err);
    qd_f32(&t)[5] = 200.0f / 255.0f;
    check_ok(qd_dataset_wrap(&t, NULL, NULL, &d, &err), &err);
    assert_int_equal(qd_dataset_pixels(d, 1)[1], 200);
    qd_dataset_free(d);
    qd_tensor_clear(&t);
    check_ok(qd_tensor_init(&t, QD_U8, &two, NULL, &err), &err);
    check_fails(qd_dataset_wrap(&t, NULL, NULL, &d, &err), QD_E_FORMAT, "got u8 [2, 2]", &err);
    qd_tensor_clear(&t);
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
    char path[1024];
    snprintf(path, sizeof path, "%s", golden("arrays.npz"));
    assert_true(harness_run_each_alloc(open_once, path, 200) > 5);
    snprintf(path, sizeof path, "%s", golden("images.npy"));
    assert_true(harness_run_each_alloc(open_once, path, 200) > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrays_are_data_sets),
        cmocka_unit_test(folders_of_arrays_too),
        cmocka_unit_test(single_arrays_are_read),
        cmocka_unit_test(headers_that_lie_are_refused),
        cmocka_unit_test(images_of_other_kinds_are_refused),
        cmocka_unit_test(every_failing_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
