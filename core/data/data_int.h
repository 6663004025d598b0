/* data_int.h - what the readers of this room share: files as bytes, walks through folders, laying out a set. */
#ifndef QD_DATA_DATA_INT_H
#define QD_DATA_DATA_INT_H

#include "data/data.h"

/* --- source.c --- */
/* A whole file as U8 [size], decompressed when it is gzip, mapped when it is not. */
qd_status qd_source_take(const char *path, uint64_t max_bytes, qd_budget *budget, qd_tensor *out, qd_err *err);
/* The first bytes of it, decompressed; returns how many, 0 when it cannot be read. */
size_t qd_source_head(const char *path, uint8_t *head, size_t n);

/* Regular files below a folder, or the one file itself: paths relative to it, sorted by bytes; hidden ones are left out. */
typedef struct qd_files {
    char **path; // [count]
    int64_t count, room;
} qd_files;
qd_status qd_files_list(const char *root, qd_files *out, qd_err *err);
void qd_files_clear(qd_files *f);
/* `path` is the list's now, or freed; NULL is QD_E_NOMEM. */
qd_status qd_files_add(qd_files *f, char *path, qd_err *err);
const char *qd_file_name(const char *path); /* after the last slash, lent */

/* --- readers.c --- */
qd_status qd_dataset_new(const char *format, qd_dataset **out, qd_err *err);
/* Count and sizes within what we handle, count * stride within the bytes; labels within range: sets classes. */
qd_status qd_dataset_check(qd_dataset *d, qd_err *err);
qd_status qd_dataset_labels(qd_dataset *d, qd_budget *budget, qd_err *err); /* room for them, all 0 */
int32_t *qd_labels_of(const qd_dataset *d);
/* qd_dataset_wrap into a set already made. */
qd_status qd_dataset_fill(qd_dataset *d, const qd_tensor *images, const qd_tensor *labels, qd_budget *budget,
                          qd_err *err);

/* --- pictures.c --- */
bool qd_picture_known(const void *head, size_t n); /* do these bytes begin a PNG or JPEG file? */
/* Decodes either; QD_E_FORMAT for anything else. */
qd_status qd_picture_decode(const void *data, size_t size, qd_image *out, qd_err *err);
/* PNG and JPEG files below a folder; what else lies there is counted. */
qd_status qd_pictures_list(const char *root, qd_files *f, int64_t *others, qd_err *err);
qd_status qd_pictures_sniff(const char *path, bool *ours, qd_err *err); /* a folder with any? */
/* Classes of paths: one for each folder, sorted by name, without the wrapping all share. *names stays NULL when all files lie beside
 * the root; refused when only some do. label[f->count]. */
qd_status qd_classes_of_paths(const qd_files *f, char ***names, int *classes, int32_t *label, qd_err *err);
void qd_classes_free(char **names, int classes);

/* --- tar.c --- */
/* The regular files of a tar file that lies in memory, in its order. */
typedef struct qd_tar {
    qd_files files;
    uint64_t *at, *size; // bytes, [files.count]
    int64_t others;      /* folders, links, devices */
    int64_t room;
} qd_tar;
qd_status qd_tar_list(const uint8_t *data, size_t size, qd_tar *out, qd_err *err);
void qd_tar_clear(qd_tar *t);
bool qd_tar_known(const char *path); /* does the file begin as a tar file does? */

/* --- rows --- */
extern const qd_data_format qd_data_idx, qd_data_npy, qd_data_cifar, qd_data_pictures;

#endif
