/* archive.c - the door of libarchive: strangers' archives unpacked by our own hand, entry by entry, beneath one folder.
 *
 * The library decodes; names, kinds and sizes are judged here, and files are made here with openat and O_NOFOLLOW, so nothing
 * an archive says can reach outside the folder. Sizes are counted while reading: what a header claims is only a first hint. */
#include "data/data.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"

#define NAME_MAX_BYTES 1024u
#define PART_MAX_BYTES 255u
#define DEPTH_MAX 16
#define BLOCK_BYTES 65536

typedef struct unpacking {
    struct archive *a;
    const qd_unpack_limits *limits;
    int root; /* the folder, opened */
    uint64_t bytes;
    int entries; /* headers seen and folders made on the way to files */
    char block[BLOCK_BYTES];
} unpacking;

/* --- names --- */

/* Only what every system reads as the same place beneath the folder. */
static qd_status check_name(const char *name, qd_err *err)
{
    int depth = 0;

    if (!*name || strlen(name) > NAME_MAX_BYTES)
        return qd_fail(err, QD_E_LIMIT, "entry '%.80s': a name must have 1..%u bytes", name, NAME_MAX_BYTES);
    for (const char *p = name; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f || *p == '\\')
            return qd_fail(err, QD_E_FORMAT, "entry '%.200s': control characters and backslashes are refused", name);
    if (name[0] == '/')
        return qd_fail(err, QD_E_FORMAT, "entry '%.200s' is an absolute name", name);
    for (const char *p = name; *p;) {
        const size_t n = strcspn(p, "/");

        if (n == 2 && p[0] == '.' && p[1] == '.')
            return qd_fail(err, QD_E_FORMAT, "entry '%.200s' leaves the archive with '..'", name);
        if (n > PART_MAX_BYTES || ++depth > DEPTH_MAX)
            return qd_fail(err, QD_E_LIMIT, "entry '%.200s': more than %d levels, or a part of more than %u bytes",
                           name, DEPTH_MAX, PART_MAX_BYTES);
        p += n;
        p += *p == '/';
    }
    return QD_OK;
}

static qd_status count_entry(unpacking *u, const char *name, qd_err *err)
{
    if (++u->entries > u->limits->max_entries)
        return qd_fail(err, QD_E_LIMIT, "entry '%.200s' is one more than the limit of %d", name,
                       u->limits->max_entries);
    return QD_OK;
}

static qd_status fail_errno(qd_err *err, const char *name, const char *verb)
{
    const int code = errno;

    if (code == EEXIST)
        return qd_fail(err, QD_E_FORMAT, "entry '%.200s' is in the archive twice", name);
    if (code == ENOTDIR || code == ELOOP)
        return qd_fail(err, QD_E_FORMAT, "entry '%.200s' lies beneath something that is no folder", name);
    return qd_fail(err, code == ENOMEM ? QD_E_NOMEM : QD_E_IO, "cannot %s entry '%.200s': %s", verb, name,
                   strerror(code));
}

/* Enter `part` beneath the open folder *dir, making it when it is missing; *dir is closed and replaced. */
static qd_status enter(unpacking *u, int *dir, const char *part, const char *name, qd_err *err)
{
    int next;

    if (mkdirat(*dir, part, 0700) == 0) {
        qd_status st = count_entry(u, name, err);
        if (st)
            return st;
    } else if (errno != EEXIST) {
        return fail_errno(err, name, "make the folder of");
    }
    next = openat(*dir, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (next < 0)
        return fail_errno(err, name, "enter the folder of");
    close(*dir);
    *dir = next;
    return QD_OK;
}

/* Walk to the place of a checked name. *last is its final part ("" when the name was only dots), which is entered too when
 * `whole`; *dir is the caller's to close. */
static qd_status walk(unpacking *u, const char *name, bool whole, int *dir, char last[PART_MAX_BYTES + 1], qd_err *err)
{
    int fd = openat(u->root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    qd_status st = fd < 0 ? fail_errno(err, name, "begin") : QD_OK;

    last[0] = '\0';
    for (const char *p = name; !st && *p;) {
        const size_t n = strcspn(p, "/");

        if (n > 0 && !(n == 1 && p[0] == '.')) {
            if (last[0])
                st = enter(u, &fd, last, name, err);
            memcpy(last, p, n);
            last[n] = '\0';
        }
        p += n;
        p += *p == '/';
    }
    if (!st && whole && last[0])
        st = enter(u, &fd, last, name, err);
    if (st) {
        if (fd >= 0)
            close(fd);
        return st;
    }
    *dir = fd;
    return QD_OK;
}

/* --- entries --- */

static qd_status write_all(int fd, const char *data, size_t n, const char *name, qd_err *err)
{
    while (n > 0) {
        const ssize_t put = write(fd, data, n);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return fail_errno(err, name, "write");
        data += put;
        n -= (size_t)put;
    }
    return QD_OK;
}

static qd_status too_large(const unpacking *u, const char *name, qd_err *err)
{
    return qd_fail(err, QD_E_LIMIT, "entry '%.200s' takes the archive over the limit of %llu bytes unpacked", name,
                   (unsigned long long)u->limits->max_bytes);
}

static qd_status damaged(const unpacking *u, const char *where, qd_err *err)
{
    const char *words = archive_error_string(u->a);

    return qd_fail(err, archive_errno(u->a) == ENOMEM ? QD_E_NOMEM : QD_E_FORMAT, "%.200s: %.200s", where,
                   words ? words : "cannot be read");
}

static qd_status unpack_file(unpacking *u, struct archive_entry *e, const char *name, qd_err *err)
{
    const uint64_t left = u->limits->max_bytes - u->bytes;
    char last[PART_MAX_BYTES + 1];
    int dir = -1, fd = -1;
    qd_status st;

    if (archive_entry_size_is_set(e) && archive_entry_size(e) > 0 && (uint64_t)archive_entry_size(e) > left)
        return too_large(u, name, err);
    if (name[strlen(name) - 1] == '/')
        return qd_fail(err, QD_E_FORMAT, "entry '%.200s' is a file with the name of a folder", name);
    st = walk(u, name, false, &dir, last, err);
    if (st)
        return st;
    if (!last[0]) {
        st = qd_fail(err, QD_E_FORMAT, "entry '%.200s' is a file without a name", name);
        goto out;
    }
    fd = openat(dir, last, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        st = fail_errno(err, name, "make");
        goto out;
    }
    for (;;) {
        const la_ssize_t got = archive_read_data(u->a, u->block, sizeof(u->block));

        if (got == 0)
            break;
        if (got == ARCHIVE_RETRY)
            continue;
        if (got < 0) {
            st = damaged(u, name, err);
            goto out;
        }
        u->bytes += (uint64_t)got;
        if (u->bytes > u->limits->max_bytes) {
            st = too_large(u, name, err);
            goto out;
        }
        st = write_all(fd, u->block, (size_t)got, name, err);
        if (st)
            goto out;
    }
out:
    if (fd >= 0 && close(fd) != 0 && !st)
        st = fail_errno(err, name, "finish");
    if (dir >= 0)
        close(dir);
    return st;
}

static qd_status unpack_folder(unpacking *u, struct archive_entry *e, const char *name, qd_err *err)
{
    char last[PART_MAX_BYTES + 1];
    int dir = -1;
    qd_status st;

    /* Skipping data means decoding it, uncounted. */
    if (archive_entry_size_is_set(e) && archive_entry_size(e) > 0)
        return qd_fail(err, QD_E_FORMAT, "entry '%.200s' is a folder with data", name);
    st = walk(u, name, true, &dir, last, err);
    if (dir >= 0)
        close(dir);
    return st;
}

static qd_status unpack_entry(unpacking *u, struct archive_entry *e, qd_err *err)
{
    const char *name = archive_entry_pathname_utf8(e);
    qd_status st;

    if (!name)
        name = archive_entry_pathname(e); /* not UTF-8: the bytes as they are */
    if (!name)
        return qd_fail(err, QD_E_FORMAT, "entry %d has a name that cannot be read", u->entries + 1);
    st = count_entry(u, name, err);
    if (!st)
        st = check_name(name, err);
    if (st)
        return st;
    if (archive_entry_hardlink(e) || archive_entry_symlink(e) || archive_entry_filetype(e) == AE_IFLNK)
        return qd_fail(err, QD_E_FORMAT, "entry '%.200s' is a link; only files and folders are unpacked", name);
    if (archive_entry_is_encrypted(e))
        return qd_fail(err, QD_E_UNSUPPORTED, "entry '%.200s' is encrypted", name);
    if (archive_entry_filetype(e) == AE_IFREG)
        return unpack_file(u, e, name, err);
    if (archive_entry_filetype(e) == AE_IFDIR)
        return unpack_folder(u, e, name, err);
    return qd_fail(err, QD_E_FORMAT, "entry '%.200s' is a device, pipe or socket; only files and folders are unpacked",
                   name);
}

/* --- the whole --- */

/* Every way in is named here; everything else the library knows stays off. A filter it would run an outside program for
 * (ARCHIVE_WARN) counts as missing. Zip by its directory only: read as a stream, a file cut short would pass for a smaller one. */
static qd_status open_reader(struct archive *a, const char *path, qd_err *err)
{
    if (archive_read_support_filter_gzip(a) != ARCHIVE_OK || archive_read_support_filter_xz(a) != ARCHIVE_OK ||
        archive_read_support_filter_zstd(a) != ARCHIVE_OK || archive_read_support_format_tar(a) != ARCHIVE_OK ||
        archive_read_support_format_zip_seekable(a) != ARCHIVE_OK)
        return qd_fail(err, QD_E_UNSUPPORTED, "the archive library was built without gzip, xz, zstd, tar or zip");
    if (archive_read_open_filename(a, path, BLOCK_BYTES) != ARCHIVE_OK) {
        const char *words = archive_error_string(a);

        return qd_fail(err, archive_errno(a) == ENOENT ? QD_E_NOT_FOUND : QD_E_FORMAT,
                       "cannot open the archive: %.200s", words ? words : "unknown reason");
    }
    return QD_OK;
}

/* Only "." and ".." in it? */
static qd_status check_empty(const char *dir, qd_err *err)
{
    DIR *d = opendir(dir);
    bool empty = true;

    if (!d)
        return qd_fail(err, QD_E_IO, "cannot open the folder to unpack into: %s", strerror(errno));
    for (struct dirent *e; (e = readdir(d));)
        empty = empty && (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0);
    closedir(d);
    return empty ? QD_OK : qd_fail(err, QD_E_CONFLICT, "the folder to unpack into is not empty");
}

/* As far as it goes: the words of the failure that brought us here matter more. */
static void empty_folder(const char *dir)
{
    DIR *d = opendir(dir);

    if (!d)
        return;
    for (struct dirent *e; (e = readdir(d));) {
        char *path;

        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        path = qd_fs_join(dir, e->d_name);
        if (path)
            qd_fs_remove_tree(path, NULL);
        qd_free(path);
    }
    closedir(d);
}

qd_status qd_archive_unpack(const char *archive_path, const char *dest_dir, const qd_unpack_limits *limits, qd_err *err)
{
    unpacking *u = NULL;
    struct archive_entry *e;
    qd_status st = check_empty(dest_dir, err);

    if (st)
        return st;
    u = qd_calloc(1, sizeof(*u));
    if (!u)
        return qd_fail(err, QD_E_NOMEM, "out of memory for unpacking");
    u->limits = limits;
    u->root = open(dest_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (u->root < 0) {
        st = qd_fail(err, QD_E_IO, "cannot open the folder to unpack into: %s", strerror(errno));
        goto out;
    }
    u->a = archive_read_new();
    if (!u->a) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory for unpacking");
        goto out;
    }
    st = open_reader(u->a, archive_path, err);
    while (!st) {
        const int got = archive_read_next_header(u->a, &e);

        if (got == ARCHIVE_EOF)
            break;
        if (got == ARCHIVE_RETRY)
            continue;
        /* A warning is about attributes or the character set; the name is judged by its bytes anyway. */
        st = got == ARCHIVE_OK || got == ARCHIVE_WARN ? unpack_entry(u, e, err) : damaged(u, "archive", err);
    }
    if (!st && u->entries == 0)
        st = qd_fail(err, QD_E_FORMAT, "the archive is empty");
    if (st)
        empty_folder(dest_dir);
out:
    archive_read_free(u->a);
    if (u->root >= 0)
        close(u->root);
    qd_free(u);
    return st;
}

bool qd_archive_sniff(const char *path)
{
    static const struct {
        size_t at, n;
        const char *bytes;
    } marks[] = {
        { 0, 3, "\x1f\x8b\x08" }, /* gzip, deflate */
        { 0, 6,
          "\xfd"
          "7zXZ\0" },
        { 0, 4, "\x28\xb5\x2f\xfd" }, /* zstd */
        { 0, 4, "PK\3\4" },
        { 0, 4, "PK\5\6" }, /* zip, empty zip */
        { 257, 5, "ustar" },
    };
    char head[512] = { 0 };
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t got;

    if (fd < 0)
        return false;
    got = read(fd, head, sizeof(head));
    close(fd);
    for (size_t k = 0; k < sizeof(marks) / sizeof(marks[0]); k++)
        if (got >= (ssize_t)(marks[k].at + marks[k].n) && memcmp(head + marks[k].at, marks[k].bytes, marks[k].n) == 0)
            return true;
    return false;
}

bool qd_archive_has_files(const char *path)
{
    struct archive_entry *e;
    struct archive *a = qd_archive_sniff(path) ? archive_read_new() : NULL;
    bool found = false;

    if (a && !open_reader(a, path, NULL)) {
        const int got = archive_read_next_header(a, &e);
        found = got == ARCHIVE_OK || got == ARCHIVE_WARN;
    }
    archive_read_free(a);
    return found;
}
