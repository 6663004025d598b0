/* cifar.c - binary records of CIFAR-10 and CIFAR-100: one byte of label or two, then 32 x 32 red, green and blue. */
#include "data/data_int.h"

#include <string.h>

#include "base/fs.h"

enum { SIDE = 32, CHANNELS = 3, PIXELS = CHANNELS * SIDE * SIDE, TEN = 1 + PIXELS, HUNDRED = 2 + PIXELS };
enum { COARSE_CLASSES = 20, FINE_CLASSES = 100, NAMES_MAX = 256 };

/* Do these bytes hold records of CIFAR-100: a coarse label, a fine one, the picture? Records have no mark, so the size tells; where it
 * fits both (every 3073 x 3074 bytes) the labels do. */
static bool is_hundred(const uint8_t *bytes, int64_t size)
{
    if (size % HUNDRED || size < HUNDRED)
        return false;
    for (int64_t k = 0; size % TEN == 0 && k < size / HUNDRED; k++)
        if (bytes[k * HUNDRED] >= COARSE_CLASSES || bytes[k * HUNDRED + 1] >= FINE_CLASSES)
            return false;
    return true;
}

static qd_status parse(qd_dataset *d, const qd_tensor *records, qd_budget *budget, qd_err *err)
{
    const int64_t size = qd_tensor_count(records);
    const bool hundred = is_hundred(records->data, size);
    const int record = hundred ? HUNDRED : TEN;
    if (size < record || size % record)
        return qd_fail(
            err, QD_E_FORMAT,
            "%lld bytes are no whole number of CIFAR-10 records of %d bytes or CIFAR-100 records of %d bytes, and no "
            "other data set we know",
            (long long)size, TEN, HUNDRED);
    d->count = size / record;
    d->channels = CHANNELS;
    d->height = d->width = SIDE;
    d->first = record - PIXELS;
    d->stride = record;
    qd_tensor_share(&d->bytes, records);
    const qd_status st = qd_dataset_labels(d, budget, err);
    for (int64_t k = 0; !st && k < d->count; k++)
        qd_labels_of(d)[k] = ((const uint8_t *)records->data)[(k + 1) * record - PIXELS - 1];
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

/* data_batch_1.bin .. data_batch_9.bin: parts of one training set, in this order. */
static bool is_part(const char *path)
{
    const char *name = qd_file_name(path);
    return strncmp(name, "data_batch_", 11) == 0 && name[11] >= '1' && name[11] <= '9' && name[12] == '.';
}

/* The files of records in a folder that make a set, as full paths in their order: the only one; or the parts of CIFAR-10's training
 * set; or train.bin of CIFAR-100. What lies beside them is counted. */
static qd_status find_in_folder(const char *root, qd_files *out, int64_t *others, qd_err *err)
{
    qd_files files = { 0 };
    int64_t found = 0, parts = 0, train = 0;
    const char *first = NULL;
    qd_status st = qd_files_list(root, &files, err);
    for (int64_t k = 0; k < files.count && !st; k++)
        if (is_named(files.path[k])) {
            first = found++ ? first : files.path[k];
            parts += is_part(files.path[k]);
            train += strncmp(qd_file_name(files.path[k]), "train.bin", 9) == 0;
        }
    if (!st && found > 1 && !parts && train != 1)
        st = qd_fail(
            err, QD_E_FORMAT,
            "%lld files of records, '%.100s' the first of them; one makes a data set, or data_batch_1.bin.. do, or train.bin",
            (long long)found, qd_file_name(first));
    for (int64_t k = 0; k < files.count && !st; k++) {
        const char *path = files.path[k];
        if (!is_named(path) ||
            (found > 1 && (parts ? !is_part(path) : strncmp(qd_file_name(path), "train.bin", 9) != 0)))
            ++*others;
        else
            st = qd_files_add(out, qd_fs_join(root, path), err);
    }
    qd_files_clear(&files);
    return st;
}

/* Any file: records begin with any byte, so only their number tells. */
static qd_status sniff(const char *path, bool *ours, qd_err *err)
{
    qd_files files = { 0 };
    bool found = false;
    if (!qd_fs_is_dir(path)) {
        *ours = qd_fs_exists(path);
        return QD_OK;
    }
    const qd_status st = qd_files_list(path, &files, err);
    for (int64_t k = 0; k < files.count && !st; k++)
        found |= is_named(files.path[k]);
    qd_files_clear(&files);
    if (!st)
        *ours = found;
    return st;
}

/* One after the other in new memory. */
static qd_status join(qd_tensor *all, const qd_tensor *more, uint64_t max_bytes, qd_budget *budget, qd_err *err)
{
    qd_tensor t = { 0 };
    const int64_t have = qd_tensor_count(all), add = qd_tensor_count(more);
    if ((uint64_t)have + (uint64_t)add > max_bytes)
        return qd_fail(err, QD_E_LIMIT, "the records have more than the %llu bytes allowed",
                       (unsigned long long)max_bytes);
    const qd_shape shape = QD_SHAPE(have + add);
    const qd_status st = qd_tensor_init(&t, QD_U8, &shape, budget, err);
    if (st)
        return st;
    memcpy(t.data, all->data, (size_t)have);
    memcpy((char *)t.data + have, more->data, (size_t)add);
    qd_tensor_clear(all);
    *all = t;
    return QD_OK;
}

/* Names of the classes, where their file lies beside the records: one to a line. */
static qd_status name_classes(qd_dataset *d, const char *folder, qd_err *err)
{
    static const char *const files[] = { "batches.meta.txt", "fine_label_names.txt" };
    qd_status st = QD_OK;
    for (size_t f = 0; f < sizeof files / sizeof *files && !st && !d->class_name; f++) {
        char *path = qd_fs_join(folder, files[f]), *text = NULL;
        size_t size;
        int n = 0;
        if (!path)
            return qd_fail(err, QD_E_NOMEM, "no memory for a path");
        if (qd_fs_exists(path))
            st = qd_fs_take(path, 65536, &text, &size, err);
        qd_free(path);
        if (st || !text)
            continue;
        char **names = qd_calloc(NAMES_MAX, sizeof *names);
        if (!names)
            st = qd_fail(err, QD_E_NOMEM, "no memory for the names of classes");
        for (const char *p = text; !st && *p && n < NAMES_MAX;) {
            const size_t line = strcspn(p, "\r\n");
            if (line && !(names[n++] = qd_strndup(p, line)))
                st = qd_fail(err, QD_E_NOMEM, "no memory for the names of classes");
            p += line + strspn(p + line, "\r\n");
        }
        qd_free(text);
        /* A file that does not fit the labels is another set's. */
        if (st || n < d->classes) {
            qd_classes_free(names, n);
        } else {
            d->class_name = names;
            d->classes = n;
        }
    }
    return st;
}

static qd_status open_file(const char *path, const qd_data_limits *limits, qd_budget *budget, qd_dataset *d,
                           qd_err *err)
{
    qd_tensor records = { 0 }, more = { 0 };
    qd_files files = { 0 };
    const bool folder = qd_fs_is_dir(path);
    qd_status st =
        folder ? find_in_folder(path, &files, &d->left_out, err) : qd_files_add(&files, qd_strdup(path), err);
    for (int64_t k = 0; k < files.count && !st; k++) {
        st = qd_source_take(files.path[k], limits->max_bytes, budget, k ? &more : &records, err);
        if (!st && k)
            st = join(&records, &more, limits->max_bytes, budget, err);
        qd_tensor_clear(&more);
    }
    if (!st)
        st = parse(d, &records, budget, err);
    if (!st && folder) {
        char *first = qd_strndup(files.path[0], (size_t)(qd_file_name(files.path[0]) - files.path[0]));
        st = first ? name_classes(d, first, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
        qd_free(first);
    }
    qd_tensor_clear(&records);
    qd_files_clear(&files);
    return st;
}

const qd_data_format qd_data_cifar = {
    .name = "cifar",
    .summary = "CIFAR-10 or CIFAR-100 binary records, gzipped or not.",
    .sniff = sniff,
    .open = open_file,
};
