/* fs.c - files and folders: mapping, all-or-nothing writing, hashing. */
#include "base/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <sodium.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/mem.h"

/* Words from errno. Missing files are NOT_FOUND, everything else is IO. */
static qd_status fail_errno(qd_err *err, const char *verb, const char *path)
{
    const int code = errno;
    char text[128];
    const char *why = strerror_r(code, text, sizeof text);
    return qd_fail(err,
                   code == ENOENT   ? QD_E_NOT_FOUND
                   : code == ENOMEM ? QD_E_NOMEM
                                    : QD_E_IO,
                   "cannot %s '%s': %s", verb, path, why);
}

/* An open regular file and its size; -1 on failure with words. */
static int open_regular(const char *path, struct stat *info, qd_status *st, qd_err *err)
{
    /* O_NONBLOCK: a FIFO in place of a file must not hang us. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        *st = fail_errno(err, "open", path);
        return -1;
    }
    if (fstat(fd, info) != 0) {
        *st = fail_errno(err, "stat", path);
    } else if (!S_ISREG(info->st_mode)) {
        *st = qd_fail(err, QD_E_INVALID, "'%s' is not a regular file", path);
    } else {
        *st = QD_OK;
        return fd;
    }
    close(fd);
    return -1;
}

qd_status qd_map_open(qd_map *m, const char *path, qd_err *err)
{
    struct stat info;
    qd_status st;
    const int fd = open_regular(path, &info, &st, err);
    if (fd < 0)
        return st;

    const size_t size = (size_t)info.st_size;
    void *data = NULL;
    if (size > 0) {
        data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            st = fail_errno(err, "map", path);
            goto out;
        }
    }
    *m = (qd_map){ .data = data, .size = size };
out:
    close(fd);
    return st;
}

void qd_map_close(qd_map *m)
{
    if (m->data)
        munmap((void *)m->data, m->size);
    *m = (qd_map){ 0 };
}

/* Read up to n bytes; fewer only at the end of the file. */
static ssize_t read_full(int fd, void *to, size_t n)
{
    size_t done = 0;
    while (done < n) {
        const ssize_t got = read(fd, (char *)to + done, n - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

static bool write_full(int fd, const void *from, size_t n)
{
    size_t done = 0;
    while (done < n) {
        const ssize_t put = write(fd, (const char *)from + done, n - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return false;
        done += (size_t)put;
    }
    return true;
}

qd_status qd_fs_take(const char *path, size_t ceiling_bytes, char **data, size_t *size, qd_err *err)
{
    struct stat info;
    qd_status st;
    char *text = NULL;
    const int fd = open_regular(path, &info, &st, err);
    if (fd < 0)
        return st;

    const size_t n = (size_t)info.st_size;
    if (n > ceiling_bytes) {
        st = qd_fail(err, QD_E_LIMIT, "'%s' has %zu bytes, the limit is %zu", path, n, ceiling_bytes);
        goto out;
    }
    text = qd_alloc(n + 1);
    if (!text) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the %zu bytes of '%s'", n, path);
        goto out;
    }
    const ssize_t got = read_full(fd, text, n);
    if (got < 0) {
        st = fail_errno(err, "read", path);
        goto out;
    }
    text[got] = '\0'; /* a file that shrank meanwhile is simply shorter */
    *data = text;
    if (size)
        *size = (size_t)got;
    text = NULL;
out:
    qd_free(text);
    close(fd);
    return st;
}

struct qd_fs_out {
    int fd;
    char *path, *temp;
    uint64_t size;
    crypto_hash_sha256_state hash;
};

qd_status qd_fs_out_open(const char *path, qd_fs_out **out, qd_err *err)
{
    qd_status st = QD_OK;
    qd_fs_out *o = qd_calloc(1, sizeof *o);
    if (!o)
        return qd_fail(err, QD_E_NOMEM, "no memory to write '%s'", path);
    o->fd = -1;
    o->path = qd_strdup(path);
    char *temp = qd_asprintf("%s.tmp-XXXXXX", path);
    if (!o->path || !temp) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to write '%s'", path);
        goto out;
    }
    o->fd = mkostemp(temp, O_CLOEXEC);
    if (o->fd < 0) {
        st = fail_errno(err, "create a file beside", path);
        goto out;
    }
    o->temp = temp;
    temp = NULL;
    crypto_hash_sha256_init(&o->hash);
    *out = o;
    o = NULL;
out:
    qd_free(temp);
    qd_fs_out_abandon(o);
    return st;
}

qd_status qd_fs_out_add(qd_fs_out *o, const void *data, size_t n, qd_err *err)
{
    if (!write_full(o->fd, data, n))
        return fail_errno(err, "write", o->path);
    crypto_hash_sha256_update(&o->hash, data, n);
    o->size += n;
    return QD_OK;
}

uint64_t qd_fs_out_size(const qd_fs_out *o)
{
    return o->size;
}

/* A rename is only safe on disk once its folder is. */
/* The folder a path is in, opened to be synced; -1 with words. */
static int open_folder_of(const char *path, qd_status *st, qd_err *err)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == path ? qd_strdup("/") : slash ? qd_strndup(path, (size_t)(slash - path)) : qd_strdup(".");
    if (!folder) {
        *st = qd_fail(err, QD_E_NOMEM, "no memory for the folder of '%s'", path);
        return -1;
    }
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        *st = fail_errno(err, "open the folder of", path);
    qd_free(folder);
    return fd;
}

qd_status qd_fs_out_commit(qd_fs_out *o, const char *path, char sha256_hex[QD_SHA256_HEX], qd_err *err)
{
    qd_status st = QD_OK;
    const char *to = path ? path : o->path;
    const int folder =
        open_folder_of(to, &st, err); /* before the rename: what can fail for want of memory fails with nothing done */

    if (folder < 0)
        goto out;
    if (fsync(o->fd) != 0) {
        st = fail_errno(err, "sync", o->path);
        goto out;
    }
    if (rename(o->temp, to) != 0) {
        st = fail_errno(err, "rename a new file to", to);
        goto out;
    }
    qd_free(o->temp); /* nothing left to unlink */
    o->temp = NULL;
    if (fsync(folder) != 0) {
        st = fail_errno(err, "sync the folder of", to);
        goto out;
    }
    if (sha256_hex) {
        uint8_t digest[crypto_hash_sha256_BYTES];
        crypto_hash_sha256_final(&o->hash, digest);
        qd_hex(sha256_hex, digest, sizeof digest);
    }
out:
    if (folder >= 0)
        close(folder);
    qd_fs_out_abandon(o);
    return st;
}

void qd_fs_out_abandon(qd_fs_out *o)
{
    if (!o)
        return;
    if (o->fd >= 0)
        close(o->fd);
    if (o->temp)
        unlink(o->temp);
    qd_free(o->temp);
    qd_free(o->path);
    qd_free(o);
}

qd_status qd_fs_write(const char *path, const void *data, size_t size, qd_err *err)
{
    qd_fs_out *o = NULL;
    qd_status st = qd_fs_out_open(path, &o, err);
    if (st)
        return st;
    st = qd_fs_out_add(o, data, size, err);
    if (st) {
        qd_fs_out_abandon(o);
        return st;
    }
    return qd_fs_out_commit(o, NULL, NULL, err);
}

void qd_sha256(const void *data, size_t n, char hex[QD_SHA256_HEX])
{
    uint8_t digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256(digest, data, n);
    qd_hex(hex, digest, sizeof digest);
}

qd_status qd_fs_sha256(const char *path, char hex[QD_SHA256_HEX], qd_err *err)
{
    struct stat info;
    qd_status st;
    uint8_t digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_state hash;
    const size_t chunk = 1 << 16;
    char *buffer = NULL;

    /* By reading, not mapping: a file cut short by someone else must not kill the process. */
    const int fd = open_regular(path, &info, &st, err);
    if (fd < 0)
        return st;
    buffer = qd_alloc(chunk);
    if (!buffer) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to hash '%s'", path);
        goto out;
    }
    crypto_hash_sha256_init(&hash);
    for (;;) {
        const ssize_t got = read_full(fd, buffer, chunk);
        if (got < 0) {
            st = fail_errno(err, "read", path);
            goto out;
        }
        if (got == 0)
            break;
        crypto_hash_sha256_update(&hash, (const unsigned char *)buffer, (unsigned long long)got);
    }
    crypto_hash_sha256_final(&hash, digest);
    qd_hex(hex, digest, sizeof digest);
out:
    qd_free(buffer);
    close(fd);
    return st;
}

qd_status qd_fs_mkdirs(const char *path, qd_err *err)
{
    qd_status st = QD_OK;
    char *part = qd_strdup(path);
    if (!part)
        return qd_fail(err, QD_E_NOMEM, "no memory for the path '%s'", path);

    /* Each prefix that ends before a '/', then the whole. */
    const size_t n = strlen(part);
    for (size_t k = 1; k <= n; k++) {
        if (part[k] != '/' && part[k] != '\0')
            continue;
        const char kept = part[k];
        part[k] = '\0';
        if (mkdir(part, 0700) != 0 && (errno != EEXIST || !qd_fs_is_dir(part))) {
            st = fail_errno(err, "create the folder", part);
            break;
        }
        part[k] = kept;
    }
    qd_free(part);
    return st;
}

qd_status qd_fs_remove_tree(const char *path, qd_err *err)
{
    struct stat info;
    if (lstat(path, &info) != 0)
        return errno == ENOENT ? QD_OK : fail_errno(err, "stat", path);

    char *root = qd_strdup(path);
    if (!root)
        return qd_fail(err, QD_E_NOMEM, "no memory to remove '%s'", path);
    qd_status st = QD_OK;
    char *const roots[] = { root, NULL };
    FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    if (!walk) {
        st = fail_errno(err, "walk", path);
        goto out;
    }
    errno = 0;
    for (FTSENT *e; (e = fts_read(walk));) {
        if (e->fts_info == FTS_D)
            continue; /* again as FTS_DP, once it is empty */
        const bool is_dir = e->fts_info == FTS_DP;
        if (e->fts_info == FTS_DNR || e->fts_info == FTS_ERR)
            errno = e->fts_errno;
        else if ((is_dir ? rmdir(e->fts_accpath) : unlink(e->fts_accpath)) == 0 || errno == ENOENT)
            continue;
        st = fail_errno(err, "remove", e->fts_path);
        goto out;
    }
out:
    if (walk)
        fts_close(walk);
    qd_free(root);
    return st;
}

bool qd_fs_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

bool qd_fs_is_dir(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

char *qd_fs_join(const char *a, const char *b)
{
    const size_t n = strlen(a);
    return qd_asprintf("%s%s%s", a, n == 0 || a[n - 1] == '/' ? "" : "/", b);
}
