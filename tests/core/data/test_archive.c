/* test_archive.c - good archives come out whole, hostile ones leave nothing and are named. */
#include "harness/harness.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"
#include "data/data.h"

#define PATH_BYTES 1200

static const qd_unpack_limits usual = { .max_bytes = 1 << 20, .max_entries = 100 };

static const char *in(const char *dir, const char *name)
{
    static char ring[4][PATH_BYTES];
    static int next;
    char *path = ring[next++ % 4];

    const int n = snprintf(path, PATH_BYTES, "%s/%s", dir, name);
    assert_in_range(n, 0, PATH_BYTES - 1);
    return path;
}

/* --- archives made here, by the same library's writing half --- */

typedef enum kind { TAR, TAR_GZ, TAR_XZ, TAR_ZST, ZIP, KINDS } kind;
static const char *const kind_names[KINDS] = { "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.zst", "a.zip" };

typedef struct item {
    const char *name;
    int type; /* AE_IF.. */
    const char *text;
    const char *link, *hardlink;
} item;

static void put(struct archive *a, const item *it, const char *data, size_t size)
{
    struct archive_entry *e = archive_entry_new();

    archive_entry_set_pathname(e, it->name);
    archive_entry_set_filetype(e, (unsigned)it->type);
    archive_entry_set_perm(e, 0777);
    archive_entry_set_size(e, it->type == AE_IFREG && !it->hardlink ? (la_int64_t)size : 0);
    if (it->link)
        archive_entry_set_symlink(e, it->link);
    if (it->hardlink)
        archive_entry_set_hardlink(e, it->hardlink);
    assert_true(archive_write_header(a, e) >= ARCHIVE_WARN); /* it warns of names beyond ASCII */
    if (it->type == AE_IFREG && !it->hardlink)
        assert_int_equal(archive_write_data(a, data, size), (la_ssize_t)size);
    archive_entry_free(e);
}

static struct archive *begin(kind k, const char *path)
{
    struct archive *a = archive_write_new();

    if (k == ZIP)
        archive_write_set_format_zip(a);
    else
        archive_write_set_format_pax_restricted(a);
    if (k == TAR_GZ)
        archive_write_add_filter_gzip(a);
    if (k == TAR_XZ)
        archive_write_add_filter_xz(a);
    if (k == TAR_ZST)
        archive_write_add_filter_zstd(a);
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    return a;
}

/* items end with name NULL */
static const char *make(kind k, const char *dir, const item *items)
{
    const char *path = in(dir, kind_names[k]);
    struct archive *a = begin(k, path);

    for (const item *it = items; it->name; it++)
        put(a, it, it->text, it->text ? strlen(it->text) : 0);
    assert_int_equal(archive_write_free(a), ARCHIVE_OK);
    return path;
}

static int count_in(const char *dir)
{
    DIR *d = opendir(dir);
    int n = -2; /* . and .. */

    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void check_text(const char *path, const char *want)
{
    qd_err err = { 0 };
    char *data = NULL;

    check_ok(qd_fs_take(path, 1000, &data, NULL, &err), &err);
    assert_string_equal(data, want);
    qd_free(data);
}

static void good_archives_come_out_whole(void **state)
{
    static const item items[] = {
        { "./", AE_IFDIR, NULL },
        { "model/", AE_IFDIR, NULL },
        { "model/config.json", AE_IFREG, "{\"a\": 1}" },
        { "./model//unet/./weights.bin", AE_IFREG, "01234567" },
        { "model/", AE_IFDIR, NULL },
        { "model/empty", AE_IFREG, "" },
        { "model/..dots..", AE_IFREG, "fine" },
        { "caf\xc3\xa9.txt", AE_IFREG, "utf8" },
        { NULL },
    };

    for (kind k = 0; k < KINDS; k++) {
        qd_err err = { 0 };
        char dest[PATH_BYTES];
        const char *archive = make(k, harness_tmp(), items);
        struct stat info;

        snprintf(dest, sizeof(dest), "%s", harness_tmp());
        assert_true(qd_archive_sniff(archive));
        check_ok(qd_archive_unpack(archive, dest, &usual, &err), &err);
        assert_int_equal(count_in(dest), 2);
        check_text(in(dest, "model/config.json"), "{\"a\": 1}");
        check_text(in(dest, "model/unet/weights.bin"), "01234567");
        check_text(in(dest, "model/empty"), "");
        check_text(in(dest, "model/..dots.."), "fine");
        check_text(in(dest, "caf\xc3\xa9.txt"), "utf8");
        assert_int_equal(stat(in(dest, "model/config.json"), &info), 0);
        assert_int_equal(info.st_mode & 07777, 0600); /* modes of the archive do not count */
    }
}

/* --- hostile entries --- */

static const struct hostile {
    item items[4];
    const char *words;
    qd_status status;
    bool not_zip; /* zip cannot say this */
} hostiles[] = {
    { { { "ok", AE_IFREG, "x" }, { "../evil", AE_IFREG, "x" } },
      "'../evil' leaves the archive with '..'",
      QD_E_FORMAT,
      0 },
    { { { "a/../../evil", AE_IFREG, "x" } }, "leaves the archive with '..'", QD_E_FORMAT, 0 },
    { { { "a/..", AE_IFDIR, NULL } }, "leaves the archive with '..'", QD_E_FORMAT, 0 },
    { { { "/etc/evil", AE_IFREG, "x" } }, "'/etc/evil' is an absolute name", QD_E_FORMAT, 0 },
    { { { "a\\..\\evil", AE_IFREG, "x" } }, "evil", QD_E_FORMAT, 0 },
    { { { "a\nb", AE_IFREG, "x" } }, "control characters", QD_E_FORMAT, 0 },
    { { { "link", AE_IFLNK, NULL, "/etc/passwd" } }, "'link' is a link", QD_E_FORMAT, 0 },
    { { { "dir", AE_IFLNK, NULL, "/tmp" }, { "dir/evil", AE_IFREG, "x" } }, "'dir' is a link", QD_E_FORMAT, 0 },
    { { { "a", AE_IFREG, "x" }, { "b", AE_IFREG, NULL, NULL, "a" } }, "'b' is a link", QD_E_FORMAT, 1 },
    { { { "b", AE_IFREG, NULL, NULL, "/etc/passwd" } }, "'b' is a link", QD_E_FORMAT, 1 },
    { { { "pipe", AE_IFIFO, NULL } }, "'pipe' is a device, pipe or socket", QD_E_FORMAT, 1 },
    { { { "disk", AE_IFBLK, NULL } }, "'disk' is a device, pipe or socket", QD_E_FORMAT, 1 },
    { { { "tty", AE_IFCHR, NULL } }, "'tty' is a device, pipe or socket", QD_E_FORMAT, 1 },
    { { { "a/b", AE_IFREG, "x" }, { "a/b", AE_IFREG, "y" } }, "'a/b' is in the archive twice", QD_E_FORMAT, 0 },
    { { { "a/b", AE_IFREG, "x" }, { "./a//b", AE_IFREG, "y" } }, "is in the archive twice", QD_E_FORMAT, 0 },
    { { { "a", AE_IFREG, "x" }, { "a/b", AE_IFREG, "y" } },
      "'a/b' lies beneath something that is no folder",
      QD_E_FORMAT,
      0 },
    { { { "a/b", AE_IFREG, "x" }, { "a", AE_IFREG, "y" } }, "'a' is in the archive twice", QD_E_FORMAT, 0 },
    { { { ".", AE_IFREG, "x" } }, "is a file without a name", QD_E_FORMAT, 0 },
    { { { "1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17", AE_IFREG, "x" } }, "more than 16 levels", QD_E_LIMIT, 0 },
    { { { NULL } }, "", QD_E_FORMAT, 0 },
};

static void hostile_entries_leave_nothing(void **state)
{
    char outside[PATH_BYTES - 8];

    snprintf(outside, sizeof(outside), "%s", harness_tmp());
    for (kind k = TAR; k < KINDS; k += ZIP - TAR)
        for (const struct hostile *h = hostiles; h->items[0].name; h++) {
            qd_err err = { 0 };
            char dest[PATH_BYTES];
            const char *archive;

            if (k == ZIP && h->not_zip)
                continue;
            snprintf(dest, sizeof(dest), "%s/dest", outside);
            check_ok(qd_fs_mkdirs(dest, &err), &err);
            archive = make(k, outside, h->items);
            check_fails(qd_archive_unpack(archive, dest, &usual, &err), h->status, h->words, &err);
            assert_int_equal(count_in(dest), 0);
            assert_int_equal(count_in(outside), 2); /* the archive and dest, nothing beside them */
            check_ok(qd_fs_remove_tree(archive, &err), &err);
        }
}

static void long_parts_are_refused(void **state)
{
    char name[400];
    const item items[] = { { name, AE_IFREG, "x" }, { NULL } };
    qd_err err = { 0 };
    char dest[PATH_BYTES];

    memset(name, 'n', 256);
    name[256] = '\0';
    snprintf(dest, sizeof(dest), "%s", harness_tmp());
    check_fails(qd_archive_unpack(make(TAR, harness_tmp(), items), dest, &usual, &err), QD_E_LIMIT,
                "a part of more than 255", &err);
    name[255] = '\0';
    check_ok(qd_archive_unpack(make(TAR, harness_tmp(), items), dest, &usual, &err), &err);
}

/* --- limits --- */

static void limits_hold_exactly(void **state)
{
    static const item items[] = { { "a/b", AE_IFREG, "12345" }, { "c", AE_IFREG, "678" }, { NULL } };
    qd_err err = { 0 };

    for (kind k = 0; k < KINDS; k++) {
        const char *archive = make(k, harness_tmp(), items);
        qd_unpack_limits l = { .max_bytes = 8, .max_entries = 3 }; /* a/b, the folder a on the way, c */
        char dest[PATH_BYTES];

        snprintf(dest, sizeof(dest), "%s", harness_tmp());
        l.max_bytes = 7;
        check_fails(qd_archive_unpack(archive, dest, &l, &err), QD_E_LIMIT, "'c' takes the archive over the limit of 7",
                    &err);
        assert_int_equal(count_in(dest), 0);
        l.max_bytes = 4;
        check_fails(qd_archive_unpack(archive, dest, &l, &err), QD_E_LIMIT, "'a/b' takes", &err);
        l.max_bytes = 8;
        l.max_entries = 2;
        check_fails(qd_archive_unpack(archive, dest, &l, &err), QD_E_LIMIT, "'c' is one more than the limit of 2",
                    &err);
        assert_int_equal(count_in(dest), 0);
        l.max_entries = 3;
        check_ok(qd_archive_unpack(archive, dest, &l, &err), &err);
    }
}

/* 64 MB of zeros in a few kB: stopped while reading, whatever the header says. */
static void bombs_are_stopped_while_reading(void **state)
{
    const size_t size = 64u << 20;
    char *zeros = calloc(size, 1);
    const item it = { "bomb", AE_IFREG };
    const qd_unpack_limits l = { .max_bytes = 100000, .max_entries = 10 };

    for (kind k = TAR_GZ; k < KINDS; k++) {
        qd_err err = { 0 };
        const char *archive = in(harness_tmp(), kind_names[k]);
        char dest[PATH_BYTES];
        struct archive *a = begin(k, archive);
        struct stat info;

        put(a, &it, zeros, size);
        assert_int_equal(archive_write_free(a), ARCHIVE_OK);
        assert_int_equal(stat(archive, &info), 0);
        assert_true(info.st_size < 100000);
        snprintf(dest, sizeof(dest), "%s", harness_tmp());
        check_fails(qd_archive_unpack(archive, dest, &l, &err), QD_E_LIMIT, "'bomb' takes the archive over", &err);
        assert_int_equal(count_in(dest), 0);
    }
    free(zeros);
}

/* A zip whose directory claims less than the stream holds: only what is counted counts. */
static void lying_sizes_do_not_help(void **state)
{
    static const item items[] = { { "big", AE_IFREG, "0123456789012345678901234567890123456789" }, { NULL } };
    const qd_unpack_limits l = { .max_bytes = 20, .max_entries = 10 };
    qd_err err = { 0 };
    const char *archive = make(ZIP, harness_tmp(), items);
    char dest[PATH_BYTES], *data = NULL;
    size_t size = 0;
    int patched = 0;
    qd_status st;

    check_ok(qd_fs_take(archive, 10000, &data, &size, &err), &err);
    for (size_t k = 0; k + 30 < size; k++)
        if (memcmp(data + k, "PK\1\2", 4) == 0) {
            data[k + 24] = 5; /* uncompressed size of the central directory */
            patched++;
        }
    assert_int_equal(patched, 1);
    check_ok(qd_fs_write(archive, data, size, &err), &err);
    snprintf(dest, sizeof(dest), "%s", harness_tmp());
    st = qd_archive_unpack(archive, dest, &l, &err);
    assert_true(st == QD_E_LIMIT || st == QD_E_FORMAT);
    assert_int_equal(count_in(dest), 0);
    qd_free(data);
}

/* --- what is no archive --- */

static void rubbish_is_refused(void **state)
{
    static const char *const texts[] = { "", "hello", "\x1f\x8b\x08 not really gzip", "PK\3\4 not really zip" };
    qd_err err = { 0 };
    char dest[PATH_BYTES], dir[PATH_BYTES];

    snprintf(dest, sizeof(dest), "%s", harness_tmp());
    snprintf(dir, sizeof(dir), "%s", harness_tmp());
    for (size_t k = 0; k < sizeof(texts) / sizeof(texts[0]); k++) {
        check_ok(qd_fs_write(in(dir, "x"), texts[k], strlen(texts[k]), &err), &err);
        assert_int_equal(qd_archive_sniff(in(dir, "x")), k > 1);
        check_fails(qd_archive_unpack(in(dir, "x"), dest, &usual, &err), QD_E_FORMAT, NULL, &err);
        assert_int_equal(count_in(dest), 0);
    }
    check_fails(qd_archive_unpack(in(dir, "none"), dest, &usual, &err), QD_E_NOT_FOUND, "cannot open the archive",
                &err);
    assert_false(qd_archive_sniff(in(dir, "none")));
    assert_false(qd_archive_sniff(dir));
}

static void cut_archives_leave_nothing(void **state)
{
    char text[3000];
    const item items[] = { { "a/b", AE_IFREG, text }, { "c", AE_IFREG, text }, { NULL } };
    qd_rng rng;

    qd_rng_init(&rng, 3, 0);
    for (size_t k = 0; k < sizeof(text) - 1; k++)
        text[k] = (char)(33 + qd_rng_below(&rng, 90));
    text[sizeof(text) - 1] = '\0';
    for (kind k = 0; k < KINDS; k++) {
        qd_err err = { 0 };
        char dest[PATH_BYTES], *data = NULL;
        const char *archive = make(k, harness_tmp(), items);
        size_t size = 0;

        snprintf(dest, sizeof(dest), "%s", harness_tmp());
        check_ok(qd_fs_take(archive, 100000, &data, &size, &err), &err);
        for (size_t part = 1; part < 8; part++) {
            check_ok(qd_fs_write(archive, data, size * part / 8, &err), &err);
            if (k != TAR || part < 4) /* a bare tar may end anywhere after its last file */
                check_fails(qd_archive_unpack(archive, dest, &usual, &err), QD_E_FORMAT, NULL, &err);
            assert_int_equal(count_in(dest), 0);
        }
        qd_free(data);
    }
}

static void what_lies_there_is_not_touched(void **state)
{
    static const item items[] = { { "a", AE_IFREG, "new" }, { NULL } };
    qd_err err = { 0 };
    char dest[PATH_BYTES];
    const char *archive = make(TAR, harness_tmp(), items);

    snprintf(dest, sizeof(dest), "%s", harness_tmp());
    check_ok(qd_fs_write(in(dest, "a"), "old", 3, &err), &err);
    check_fails(qd_archive_unpack(archive, dest, &usual, &err), QD_E_CONFLICT, "not empty", &err);
    check_text(in(dest, "a"), "old");
    check_fails(qd_archive_unpack(archive, in(dest, "none"), &usual, &err), QD_E_IO, "cannot open the folder", &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_archives_come_out_whole),
        cmocka_unit_test(hostile_entries_leave_nothing),
        cmocka_unit_test(long_parts_are_refused),
        cmocka_unit_test(limits_hold_exactly),
        cmocka_unit_test(bombs_are_stopped_while_reading),
        cmocka_unit_test(lying_sizes_do_not_help),
        cmocka_unit_test(rubbish_is_refused),
        cmocka_unit_test(cut_archives_leave_nothing),
        cmocka_unit_test(what_lies_there_is_not_touched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
