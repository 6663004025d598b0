/* test_dataset.c - what a data set says of itself, from IDX files and from tensors, and what is no data set. */
#include "jobs_common.h"

#include "jobs/jobs_int.h"

static const uint8_t idx_images[] = { 0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 255, 255, 0 };
static const uint8_t idx_labels[] = { 0, 0, 8, 1, 0, 0, 0, 2, 3, 1 };

static const sv_settings settings = { .job_memory_bytes = 1 << 20, .max_unpacked_bytes = 1 << 20 };

static char *put(const char *dir, const char *name, const void *data, size_t n)
{
    qd_err err = { 0 };
    char *path = qd_fs_join(dir, name);
    check_ok(qd_fs_write(path, data, n, &err), &err);
    return path;
}

static json_t *summary_of(const char *path, const char *want_format, const char *want_role)
{
    qd_err err = { 0 };
    char *format = NULL, *role = NULL, *summary = NULL;
    check_ok(sv_dataset_inspect(path, &settings, &format, &role, &summary, &err), &err);
    assert_string_equal(format, want_format);
    assert_string_equal(role, want_role);
    json_t *o = json_loads(summary, 0, NULL);
    assert_non_null(o);
    qd_free(format);
    qd_free(role);
    qd_free(summary);
    return o;
}

static void check_ints(const json_t *o, const char *const *names, const int *want)
{
    for (; *names; names++, want++)
        if (json_integer_value(json_object_get(o, *names)) != *want)
            fail_msg("%s is %lld, expected %d", *names, (long long)json_integer_value(json_object_get(o, *names)),
                     *want);
}

static const char *const figures[] = { "count", "channels", "height", "width", "classes", NULL };

static void idx_files_are_told(void **state)
{
    const char *dir = harness_tmp();
    char *images = put(dir, "a-images-idx3-ubyte", idx_images, sizeof idx_images);
    json_t *o = summary_of(images, "idx", "unlabelled");
    check_ints(o, figures, (const int[]){ 2, 1, 1, 2, 0 });
    assert_null(json_object_get(o, "class_counts"));
    json_decref(o);
    char *labels = put(dir, "a-labels-idx1-ubyte", idx_labels, sizeof idx_labels);
    o = summary_of(dir, "idx", "labelled");
    check_ints(o, figures, (const int[]){ 2, 1, 1, 2, 4 });
    assert_true(json_number_value(json_array_get(json_object_get(o, "mean"), 0)) == 0.5);
    assert_true(json_number_value(json_array_get(json_object_get(o, "std"), 0)) == 0.5);
    const json_t *counts = json_object_get(o, "class_counts");
    static const int want[] = { 0, 1, 0, 1 };
    assert_int_equal(json_array_size(counts), 4);
    for (size_t k = 0; k < 4; k++)
        assert_int_equal(json_integer_value(json_array_get(counts, k)), want[k]);
    json_decref(o);
    qd_free(images);
    qd_free(labels);
}

static char *put_tensors(const char *dir, const char *header, const void *data, size_t n)
{
    qd_buf b;
    uint8_t size[8] = { (uint8_t)strlen(header) };
    qd_buf_init(&b, 0);
    qd_buf_add(&b, size, 8);
    qd_buf_adds(&b, header);
    qd_buf_add(&b, data, n);
    char *path = put(dir, "data", b.data, b.size);
    qd_buf_clear(&b);
    return path;
}

static void tensors_are_told(void **state)
{
    qd_err err = { 0 };
    char *format = NULL, *role = NULL, *summary = NULL;
    const char *dir = harness_tmp();
    char *path = put_tensors(dir,
                             "{\"images\":{\"dtype\":\"U8\",\"shape\":[2,3,1,1],\"data_offsets\":[0,6]},"
                             "\"labels\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[6,8]}}",
                             "abcdef\1\2", 8);
    json_t *o = summary_of(path, "tensors", "labelled");
    check_ints(o, figures, (const int[]){ 2, 3, 1, 1, 3 });
    json_decref(o);
    qd_free(path);
    path = put_tensors(dir, "{\"other\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", "ab", 2);
    check_fails(sv_dataset_inspect(path, &settings, &format, &role, &summary, &err), QD_E_FORMAT, "no tensor 'images'",
                &err);
    qd_free(path);
    path = put(dir, "data", "hello", 5);
    check_fails(sv_dataset_inspect(path, &settings, &format, &role, &summary, &err), QD_E_FORMAT, "5 bytes", &err);
    assert_null(summary);
    qd_free(path);
}

/* Both kinds of file draw from the job's budget; what is over it is refused, and nothing stays drawn. */
static void budgets_hold(void **state)
{
    qd_err err = { 0 };
    qd_budget budget;
    qd_dataset *d = NULL;
    const char *dir = harness_tmp();
    char *images = put(dir, "a-images-idx3-ubyte", idx_images, sizeof idx_images),
         *labels = put(dir, "a-labels-idx1-ubyte", idx_labels, sizeof idx_labels);
    qd_budget_init(&budget, 4);
    check_fails(sv_dataset_open(dir, &settings, &budget, &d, &err), QD_E_LIMIT, "", &err);
    assert_int_equal(budget.used_bytes, 0);
    qd_budget_init(&budget, 4096);
    check_ok(sv_dataset_open(dir, &settings, &budget, &d, &err), &err);
    assert_int_equal(qd_dataset_label(d, 0), 3);
    qd_dataset_free(d);
    assert_int_equal(budget.used_bytes, 0);
    qd_free(images);
    qd_free(labels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(idx_files_are_told),
        cmocka_unit_test(tensors_are_told),
        cmocka_unit_test(budgets_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
