/* source.c - files of a data set as bytes: mapped, or decompressed within a limit; and the files of a folder in order. */
#include "data/data_int.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fs.h"

#define BLOCK_BYTES 65536
#define FIRST_BYTES (1u << 20)
#define GUESS_BYTES (64u << 20) /* no more than that is taken on a file's word */
#define DEFLATE_RATIO 1032      /* more than any deflate stream expands */
#define DEPTH_MAX 8
#define FILES_MAX (1 << 21)

static const char gzip_magic[] = "\x1f\x8b";

/* --- one file --- */

static void unmap(void *owner)
{
    qd_map *m = owner;
    qd_map_close(m);
    qd_free(m);
}

/* The map becomes the tensor's. */
static qd_status wrap_map(qd_map *map, qd_tensor *out, qd_err *err)
{
    const qd_shape shape = QD_SHAPE((int64_t)map->size);
    qd_map *owner = qd_alloc(sizeof *owner);
    if (!owner)
        return qd_fail(err, QD_E_NOMEM, "no memory for a file's map");
    *owner = *map;
    const qd_status st = qd_tensor_wrap(out, QD_U8, &shape, map->data, owner, unmap, err);
    if (st)
        qd_free(owner);
    else
        *map = (qd_map){ 0 };
    return st;
}

/* A gzip file as one stream of bytes; NULL when it cannot be opened. */
static struct archive *open_gzip(const char *path)
{
    struct archive *a = archive_read_new();
    struct archive_entry *e;
    if (!a)
        return NULL;
    if (archive_read_support_filter_gzip(a) == ARCHIVE_OK && archive_read_support_format_raw(a) == ARCHIVE_OK &&
        archive_read_open_filename(a, path, BLOCK_BYTES) == ARCHIVE_OK && archive_read_next_header(a, &e) == ARCHIVE_OK)
        return a;
    archive_read_free(a);
    return NULL;
}

/* What the file's last four bytes say it decompresses to, as a first guess at the room it takes. */
static size_t guess_size(const qd_map *m, uint64_t max_bytes)
{
    qd_reader r;
    qd_reader_init(&r, m->data + m->size - 4, 4);
    uint64_t n = qd_read_u32le(&r);
    if (n / DEFLATE_RATIO > m->size)
        n = 0;
    n = n < FIRST_BYTES ? FIRST_BYTES : n > GUESS_BYTES ? GUESS_BYTES : n + 1; /* one more, to see the end */
    return (size_t)(n > max_bytes ? max_bytes : n);
}

static qd_status grow(qd_tensor *t, size_t used, size_t size, qd_budget *budget, qd_err *err)
{
    qd_tensor more = { 0 };
    const qd_shape shape = QD_SHAPE((int64_t)size);
    const qd_status st = qd_tensor_init(&more, QD_U8, &shape, budget, err);
    if (st)
        return st;
    if (used)
        memcpy(more.data, t->data, used);
    qd_tensor_clear(t);
    *t = more;
    return QD_OK;
}

static qd_status gunzip(struct archive *a, const char *name, size_t guess, uint64_t max_bytes, qd_budget *budget,
                        qd_tensor *out, qd_err *err)
{
    qd_tensor t = { 0 };
    size_t used = 0, room = guess;
    qd_status st = grow(&t, 0, room, budget, err);
    while (!st) {
        if (used == room && room >= max_bytes) {
            uint8_t one;
            if (archive_read_data(a, &one, 1) == 0)
                break;
            st = qd_fail(err, QD_E_LIMIT, "'%.150s' decompresses to more than the %llu bytes allowed", name,
                         (unsigned long long)max_bytes);
            continue;
        }
        if (used == room) {
            const size_t next = room > max_bytes / 2 ? (size_t)max_bytes : 2 * room;
            st = grow(&t, used, next, budget, err);
            room = next;
            continue;
        }
        const la_ssize_t got = archive_read_data(a, (char *)t.data + used, room - used);
        if (got == 0)
            break;
        if (got == ARCHIVE_RETRY)
            continue;
        if (got < 0) {
            const char *words = archive_error_string(a);
            st = qd_fail(err, archive_errno(a) == ENOMEM ? QD_E_NOMEM : QD_E_FORMAT, "'%.150s': %.150s", name,
                         words ? words : "damaged gzip data");
            continue;
        }
        used += (size_t)got;
    }
    if (st) {
        qd_tensor_clear(&t);
        return st;
    }
    t.shape = QD_SHAPE((int64_t)used); /* a view of what was filled */
    *out = t;
    return QD_OK;
}

qd_status qd_source_take(const char *path, uint64_t max_bytes, qd_budget *budget, qd_tensor *out, qd_err *err)
{
    const char *name = qd_file_name(path);
    qd_map map = { 0 };
    qd_status st = qd_map_open(&map, path, err);
    if (st)
        return st;
    if (map.size > max_bytes) {
        st = qd_fail(err, QD_E_LIMIT, "'%.150s' has %zu bytes, %llu are allowed", name, map.size,
                     (unsigned long long)max_bytes);
    } else if (map.size < 18 || memcmp(map.data, gzip_magic, 2) != 0) {
        st = wrap_map(&map, out, err);
    } else {
        struct archive *a = open_gzip(path);
        st = a ? gunzip(a, name, guess_size(&map, max_bytes), max_bytes, budget, out, err)
               : qd_fail(err, QD_E_FORMAT, "'%.150s' is no readable gzip file", name);
        archive_read_free(a);
    }
    qd_map_close(&map);
    return st;
}

size_t qd_source_head(const char *path, uint8_t *head, size_t n)
{
    qd_map map = { 0 };
    size_t got = 0;
    if (qd_fs_is_dir(path) || qd_map_open(&map, path, NULL))
        return 0;
    if (map.size >= 18 && memcmp(map.data, gzip_magic, 2) == 0) {
        struct archive *a = open_gzip(path);
        while (a && got < n) {
            const la_ssize_t more = archive_read_data(a, head + got, n - got);
            if (more == ARCHIVE_RETRY)
                continue;
            if (more <= 0)
                break;
            got += (size_t)more;
        }
        archive_read_free(a);
    } else if (map.size) {
        got = map.size < n ? map.size : n;
        memcpy(head, map.data, got);
    }
    qd_map_close(&map);
    return got;
}

/* --- many files --- */

const char *qd_file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

void qd_files_clear(qd_files *f)
{
    for (int64_t k = 0; k < f->count; k++)
        qd_free(f->path[k]);
    qd_free(f->path);
    *f = (qd_files){ 0 };
}

qd_status qd_files_add(qd_files *f, char *path, qd_err *err)
{
    if (!path)
        return qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (f->count == f->room) {
        const int64_t room = f->room ? 2 * f->room : 64;
        char **more = room <= FILES_MAX ? qd_realloc(f->path, (size_t)room * sizeof *more) : NULL;
        if (!more) {
            qd_free(path);
            return room > FILES_MAX
                       ? qd_fail(err, QD_E_LIMIT, "more than %d files", FILES_MAX / 2)
                       : qd_fail(err, QD_E_NOMEM, "no memory for the names of %lld files", (long long)room);
        }
        f->path = more;
        f->room = room;
    }
    f->path[f->count++] = path;
    return QD_OK;
}

static qd_status walk(const char *root, const char *below, int depth, qd_files *f, qd_err *err);

static qd_status visit(const char *root, const char *below, const char *name, int depth, qd_files *f, qd_err *err)
{
    struct stat info;
    char *path = *below ? qd_fs_join(below, name) : qd_strdup(name), *full = path ? qd_fs_join(root, path) : NULL;
    qd_status st = QD_OK;
    if (!full)
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
    else if (lstat(full, &info))
        st = qd_fail(err, QD_E_IO, "'%.150s': %s", path, strerror(errno));
    else if (S_ISDIR(info.st_mode))
        st = walk(root, path, depth + 1, f, err);
    else if (S_ISREG(info.st_mode)) {
        st = qd_files_add(f, path, err);
        path = NULL; /* the list's now */
    }
    qd_free(path);
    qd_free(full);
    return st;
}

static qd_status walk(const char *root, const char *below, int depth, qd_files *f, qd_err *err)
{
    char *full = *below ? qd_fs_join(root, below) : qd_strdup(root);
    DIR *dir = full && depth <= DEPTH_MAX ? opendir(full) : NULL;
    qd_status st = QD_OK;
    if (!full)
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
    else if (depth > DEPTH_MAX)
        st = qd_fail(err, QD_E_LIMIT, "folder '%.150s' lies more than %d levels deep", below, DEPTH_MAX);
    else if (!dir)
        st = qd_fail(err, QD_E_IO, "folder '%.150s': %s", *below ? below : ".", strerror(errno));
    for (struct dirent *e; !st && (e = readdir(dir));)
        if (e->d_name[0] != '.')
            st = visit(root, below, e->d_name, depth, f, err);
    if (dir)
        closedir(dir);
    qd_free(full);
    return st;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

qd_status qd_files_list(const char *root, qd_files *out, qd_err *err)
{
    qd_files f = { 0 };
    const qd_status st = walk(root, "", 0, &f, err);
    if (st) {
        qd_files_clear(&f);
        return st;
    }
    if (f.count > 1)
        qsort(f.path, (size_t)f.count, sizeof *f.path, by_bytes);
    *out = f;
    return QD_OK;
}
