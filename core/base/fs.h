/* fs.h - files: map, write-then-rename, SHA-256, small helpers on paths. */
#ifndef QD_BASE_FS_H
#define QD_BASE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define QD_SHA256_HEX 65 /* 64 digits and the NUL */

/* A read-only map of a whole regular file. An empty file gives data == NULL, size 0. */
typedef struct qd_map {
    const uint8_t *data;
    size_t size;
} qd_map;

qd_status qd_map_open(qd_map *m, const char *path, qd_err *err);
void qd_map_close(qd_map *m);

/* Whole small files. `take`: the caller frees with qd_free; refuses files over ceiling_bytes with QD_E_LIMIT. NUL-terminated. */
qd_status qd_fs_take(const char *path, size_t ceiling_bytes, char **data, size_t *size, qd_err *err);

/* Write to path.tmp-<unique> in the same folder, fsync, rename over path, fsync the folder. All or nothing. */
qd_status qd_fs_write(const char *path, const void *data, size_t size, qd_err *err);

/* The same in pieces: open, add, then commit (which renames) or abandon (which unlinks). Hashes on the way. */
typedef struct qd_fs_out qd_fs_out;
qd_status qd_fs_out_open(const char *path, qd_fs_out **out, qd_err *err);
qd_status qd_fs_out_add(qd_fs_out *o, const void *data, size_t n, qd_err *err);
uint64_t qd_fs_out_size(const qd_fs_out *o);
/* Finishes the hash into sha256_hex (may be NULL), renames onto `path` (NULL = the one given at open). Frees o always. */
qd_status qd_fs_out_commit(qd_fs_out *o, const char *path, char sha256_hex[QD_SHA256_HEX], qd_err *err);
void qd_fs_out_abandon(qd_fs_out *o); /* NULL is fine */

void qd_sha256(const void *data, size_t n, char hex[QD_SHA256_HEX]);
qd_status qd_fs_sha256(const char *path, char hex[QD_SHA256_HEX], qd_err *err);

qd_status qd_fs_mkdirs(const char *path, qd_err *err);      /* mode 0700; existing is fine */
qd_status qd_fs_remove_tree(const char *path, qd_err *err); /* missing is fine; never follows links */
bool qd_fs_exists(const char *path);
bool qd_fs_is_dir(const char *path);
/* Joined "a/b" in new memory (qd_free), NULL when out of memory. */
char *qd_fs_join(const char *a, const char *b);

#endif
