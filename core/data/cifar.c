/* cifar.c - CIFAR-10 binary records: one byte of label, then 32 x 32 red, green and blue. */
#include "data/data_int.h"

#include <string.h>

#include "base/fs.h"

enum { SIDE = 32, CHANNELS = 3, RECORD = 1 + CHANNELS * SIDE * SIDE };

static qd_status parse(qd_dataset *d, const qd_tensor *records, qd_budget *budget, qd_err *err)
{
    const int64_t size = qd_tensor_count(records);
    if (size < RECORD || size % RECORD)
        return qd_fail(err, QD_E_FORMAT,
                       "%lld bytes are no whole number of CIFAR-10 records of %d bytes, and no other data set we know",
                       (long long)size, RECORD);
    d->count = size / RECORD;
    d->channels = CHANNELS;
    d->height = d->width = SIDE;
    d->first = 1;
    d->stride = RECORD;
    qd_tensor_share(&d->bytes, records);
    const qd_status st = qd_dataset_labels(d, budget, err);
    for (int64_t k = 0; !st && k < d->count; k++)
        qd_labels_of(d)[k] = ((const uint8_t *)records->data)[k * RECORD];
    return st ? st : qd_dataset_check(d, err);
}

qd_status qd_cifar_parse(const qd_tensor *records, qd_budget *budget, qd_dataset **out, qd_err *err)
{
    qd_dataset *d = NULL;
    qd_status st = qd_dataset_new(qd_data_cifar.name, &d, err);
    if (!st)
        st = parse(d, records, budget, err);
    if (st) {
        qd_dataset_free(d);
        return st;
    }
    *out = d;
    return QD_OK;
}

/* --- on disk --- */

static bool is_named(const char *path)
{
    const size_t n = strlen(path);
    return (n > 4 && strcmp(path + n - 4, ".bin") == 0) || (n > 7 && strcmp(path + n - 7, ".bin.gz") == 0);
}

/* The files of records in a folder: how many, and the first as a full path (qd_free; NULL when there is none). */
static qd_status find_in_folder(const char *root, char **first, int64_t *found, int64_t *others, qd_err *err)
{
    qd_files files = { 0 };
    qd_status st = qd_files_list(root, &files, err);
    for (int64_t k = 0; k < files.count && !st; k++) {
        if (!is_named(files.path[k])) {
            ++*others;
        } else if (++*found == 1) {
            *first = qd_fs_join(root, files.path[k]);
            st = *first ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
        }
    }
    qd_files_clear(&files);
    return st;
}

/* Any file: records begin with any byte, so only their number tells. */
static qd_status sniff(const char *path, bool *ours, qd_err *err)
{
    char *first = NULL;
    int64_t found = 0, others = 0;
    if (!qd_fs_is_dir(path)) {
        *ours = qd_fs_exists(path);
        return QD_OK;
    }
    const qd_status st = find_in_folder(path, &first, &found, &others, err);
    qd_free(first);
    if (!st)
        *ours = found > 0;
    return st;
}

static qd_status open_file(const char *path, const qd_data_limits *limits, qd_budget *budget, qd_dataset *d,
                           qd_err *err)
{
    qd_tensor records = { 0 };
    char *file = NULL;
    int64_t found = 0;
    qd_status st = QD_OK;
    if (qd_fs_is_dir(path))
        st = find_in_folder(path, &file, &found, &d->left_out, err);
    if (!st && found > 1)
        st = qd_fail(err, QD_E_FORMAT, "%lld files of records, '%.100s' the first of them; one makes a data set",
                     (long long)found, qd_file_name(file));
    if (!st)
        st = qd_source_take(file ? file : path, limits->max_bytes, budget, &records, err);
    if (!st)
        st = parse(d, &records, budget, err);
    qd_tensor_clear(&records);
    qd_free(file);
    return st;
}

const qd_data_format qd_data_cifar = {
    .name = "cifar",
    .summary = "CIFAR-10 binary records, gzipped or not.",
    .sniff = sniff,
    .open = open_file,
};
