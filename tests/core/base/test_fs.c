/* test_fs.c - whole files or none, hashes as published, trees removed without following links. */
#include "harness/harness.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"

static const char *in(const char *dir, const char *name)
{
    static char ring[8][2048];
    static int next;
    char *path = ring[next++ % 8];
    snprintf(path, sizeof ring[0], "%s/%s", dir, name);
    return path;
}

static int entries(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void write_then_read(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp(), *path = in(dir, "a");
    check_ok(qd_fs_write(path, "hello", 5, &err), &err);
    check_ok(qd_fs_write(path, "other", 5, &err), &err);
    char *data;
    size_t n;
    check_ok(qd_fs_take(path, 5, &data, &n, &err), &err);
    assert_string_equal(data, "other");
    assert_int_equal(n, 5);
    qd_free(data);
    check_fails(qd_fs_take(path, 4, &data, &n, &err), QD_E_LIMIT, "has 5 bytes, the limit is 4", &err);
    check_fails(qd_fs_take(in(dir, "none"), 4, &data, &n, &err), QD_E_NOT_FOUND, "none", &err);
    check_fails(qd_fs_take(dir, 4, &data, &n, &err), QD_E_INVALID, "not a regular file", &err);
    assert_int_equal(mkfifo(in(dir, "fifo"), 0600), 0);
    check_fails(qd_fs_take(in(dir, "fifo"), 4, &data, &n, &err), QD_E_INVALID, "not a regular file", &err);

    qd_map m;
    check_ok(qd_map_open(&m, path, &err), &err);
    assert_int_equal(m.size, 5);
    assert_memory_equal(m.data, "other", 5);
    qd_map_close(&m);
    check_ok(qd_fs_write(path, "", 0, &err), &err);
    check_ok(qd_map_open(&m, path, &err), &err);
    assert_null(m.data);
    assert_int_equal(m.size, 0);
    qd_map_close(&m);
}

static void failure_leaves_nothing(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    check_ok(qd_fs_write(in(dir, "f"), "old", 3, &err), &err);

    qd_fs_out *o;
    check_ok(qd_fs_out_open(in(dir, "f"), &o, &err), &err);
    check_ok(qd_fs_out_add(o, "new", 3, &err), &err);
    assert_int_equal(entries(dir), 2);
    qd_fs_out_abandon(o);
    assert_int_equal(entries(dir), 1);

    /* The rename cannot succeed onto a folder that is not empty: the old things stay, the new one goes. */
    check_ok(qd_fs_mkdirs(in(dir, "d/inside"), &err), &err);
    check_fails(qd_fs_write(in(dir, "d"), "new", 3, &err), QD_E_IO, "rename", &err);
    assert_int_equal(entries(dir), 2);
    assert_true(qd_fs_is_dir(in(dir, "d/inside")));
    check_fails(qd_fs_write(in(dir, "no/such/f"), "x", 1, &err), QD_E_NOT_FOUND, "no/such/f", &err);

    char *data;
    check_ok(qd_fs_take(in(dir, "f"), 9, &data, NULL, &err), &err);
    assert_string_equal(data, "old");
    qd_free(data);
}

static void commit_elsewhere_with_hash(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    char sha[QD_SHA256_HEX], again[QD_SHA256_HEX];
    qd_fs_out *o;
    check_ok(qd_fs_out_open(in(dir, "x"), &o, &err), &err);
    check_ok(qd_fs_out_add(o, "a", 1, &err), &err);
    check_ok(qd_fs_out_add(o, "bc", 2, &err), &err);
    assert_int_equal(qd_fs_out_size(o), 3);
    check_ok(qd_fs_out_commit(o, in(dir, "y"), sha, &err), &err);
    /* FIPS 180-2 appendix B.1. */
    assert_string_equal(sha, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_false(qd_fs_exists(in(dir, "x")));
    check_ok(qd_fs_sha256(in(dir, "y"), again, &err), &err);
    assert_string_equal(again, sha);
    qd_sha256("", 0, again);
    assert_string_equal(again, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

static void trees(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    check_ok(qd_fs_mkdirs(in(dir, "keep"), &err), &err);
    check_ok(qd_fs_write(in(dir, "keep/file"), "x", 1, &err), &err);
    check_ok(qd_fs_mkdirs(in(dir, "t/a/b/c"), &err), &err);
    check_ok(qd_fs_mkdirs(in(dir, "t/a/b/c"), &err), &err);
    check_ok(qd_fs_write(in(dir, "t/a/file"), "x", 1, &err), &err);
    assert_int_equal(symlink(in(dir, "keep"), in(dir, "t/a/b/link")), 0);
    check_ok(qd_fs_remove_tree(in(dir, "t"), &err), &err);
    assert_false(qd_fs_exists(in(dir, "t")));
    assert_true(qd_fs_exists(in(dir, "keep/file")));
    check_ok(qd_fs_remove_tree(in(dir, "t"), &err), &err); /* missing is fine */

    assert_int_equal(symlink(in(dir, "keep"), in(dir, "l")), 0);
    check_ok(qd_fs_remove_tree(in(dir, "l"), &err), &err); /* the link itself, not what it points to */
    assert_true(qd_fs_exists(in(dir, "keep/file")));
    check_fails(qd_fs_mkdirs(in(dir, "keep/file/below"), &err), QD_E_IO, "keep/file", &err);
}

static void join(void **state)
{
    char *a = qd_fs_join("a", "b"), *b = qd_fs_join("a/", "b"), *c = qd_fs_join("", "b");
    assert_string_equal(a, "a/b");
    assert_string_equal(b, "a/b");
    assert_string_equal(c, "b");
    qd_free(a);
    qd_free(b);
    qd_free(c);
}

static qd_status write_and_take(void *ctx, qd_err *err)
{
    const char *dir = ctx;
    char *data = NULL, sha[QD_SHA256_HEX];
    qd_status st = qd_fs_write(in(dir, "f"), "data", 4, err);
    if (!st)
        st = qd_fs_take(in(dir, "f"), 10, &data, NULL, err);
    if (!st)
        st = qd_fs_sha256(in(dir, "f"), sha, err);
    if (!st)
        st = qd_fs_mkdirs(in(dir, "sub"), err);
    if (!st)
        st = qd_fs_remove_tree(in(dir, "sub"), err);
    qd_free(data);
    return st;
}

static void out_of_memory(void **state)
{
    const char *dir = harness_tmp();
    assert_true(harness_run_each_alloc(write_and_take, (void *)dir, 100) > 5);
    assert_int_equal(entries(dir), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(write_then_read),
        cmocka_unit_test(failure_leaves_nothing),
        cmocka_unit_test(commit_elsewhere_with_hash),
        cmocka_unit_test(trees),
        cmocka_unit_test(join),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
