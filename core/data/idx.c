/* idx.c - IDX files, as MNIST and its relatives are published: magic, big-endian sizes, bytes. */
#include "data/data_int.h"

#include <stdio.h>
#include <string.h>

#include "base/fs.h"

#define MAGIC_IMAGES 0x00000803u /* unsigned bytes, three axes */
#define MAGIC_LABELS 0x00000801u

static qd_status read_magic(qd_reader *r, uint32_t want, const char *what, qd_err *err)
{
    const uint32_t magic = qd_read_u32be(r);
    if (r->failed || magic != want)
        return qd_fail(err, QD_E_FORMAT, "the IDX %s begin with %08x; expected %08x", what, magic, want);
    return QD_OK;
}

static qd_status parse_labels(qd_dataset *d, const qd_tensor *labels, qd_budget *budget, qd_err *err)
{
    qd_reader r;
    qd_reader_init(&r, labels->data, (size_t)qd_tensor_count(labels));
    qd_status st = read_magic(&r, MAGIC_LABELS, "labels", err);
    if (st)
        return st;
    const uint32_t n = qd_read_u32be(&r);
    if (r.failed || n != d->count || qd_reader_left(&r) != n)
        return qd_fail(err, QD_E_FORMAT, "the IDX labels say there are %u and hold %zu; there are %lld pictures", n,
                       qd_reader_left(&r), (long long)d->count);
    st = qd_dataset_labels(d, budget, err);
    for (uint32_t k = 0; !st && k < n; k++)
        qd_labels_of(d)[k] = qd_read_u8(&r);
    return st;
}

static qd_status parse(qd_dataset *d, const qd_tensor *images, const qd_tensor *labels, qd_budget *budget, qd_err *err)
{
    qd_reader r;
    uint64_t want;
    qd_reader_init(&r, images->data, (size_t)qd_tensor_count(images));
    qd_status st = read_magic(&r, MAGIC_IMAGES, "pictures", err);
    if (st)
        return st;
    const uint32_t count = qd_read_u32be(&r), height = qd_read_u32be(&r), width = qd_read_u32be(&r);
    if (r.failed)
        return qd_fail(err, QD_E_FORMAT, "the IDX pictures end within their header of 16 bytes");
    if (height > INT32_MAX || width > INT32_MAX ||
        __builtin_mul_overflow((uint64_t)count, (uint64_t)height * width, &want) || want != qd_reader_left(&r))
        return qd_fail(err, QD_E_FORMAT, "the IDX pictures say %u of %u x %u and hold %zu bytes", count, height, width,
                       qd_reader_left(&r));
    d->count = count;
    d->channels = 1;
    d->height = (int)height;
    d->width = (int)width;
    d->first = (int64_t)r.pos;
    d->stride = (int64_t)height * width;
    qd_tensor_share(&d->bytes, images);
    if (labels)
        st = parse_labels(d, labels, budget, err);
    return st ? st : qd_dataset_check(d, err);
}

qd_status qd_idx_parse(const qd_tensor *images, const qd_tensor *labels, qd_budget *budget, qd_dataset **out,
                       qd_err *err)
{
    qd_dataset *d = NULL;
    qd_status st = qd_dataset_new(qd_data_idx.name, &d, err);
    if (!st)
        st = parse(d, images, labels, budget, err);
    if (st) {
        qd_dataset_free(d);
        return st;
    }
    *out = d;
    return QD_OK;
}

/* --- on disk --- */

static uint32_t magic_of(const char *path)
{
    uint8_t head[4];
    qd_reader r;
    if (qd_source_head(path, head, sizeof head) != sizeof head)
        return 0;
    qd_reader_init(&r, head, sizeof head);
    return qd_read_u32be(&r);
}

/* The two files, as full paths (qd_free); *labels stays NULL when there are none. */
typedef struct pair {
    char *images, *labels;
} pair;

static qd_status take_path(char **slot, const char *root, const char *path, const char *what, qd_err *err)
{
    if (*slot)
        return qd_fail(err, QD_E_FORMAT, "two IDX files of %s: '%.100s' and '%.100s'; one pair makes a data set", what,
                       qd_file_name(*slot), qd_file_name(path));
    *slot = qd_fs_join(root, path);
    return *slot ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
}

static qd_status find_in_folder(const char *root, pair *p, int64_t *others, qd_err *err)
{
    qd_files files = { 0 };
    qd_status st = qd_files_list(root, &files, err);
    for (int64_t k = 0; k < files.count && !st; k++) {
        char *full = qd_fs_join(root, files.path[k]);
        const uint32_t magic = full ? magic_of(full) : 0;
        if (!full)
            st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        else if (magic == MAGIC_IMAGES)
            st = take_path(&p->images, root, files.path[k], "pictures", err);
        else if (magic == MAGIC_LABELS)
            st = take_path(&p->labels, root, files.path[k], "labels", err);
        else
            ++*others;
        qd_free(full);
    }
    qd_files_clear(&files);
    return st;
}

/* Beside "t10k-images-idx3-ubyte.gz" lies "t10k-labels-idx1-ubyte.gz". */
static qd_status find_beside(const char *path, pair *p, qd_err *err)
{
    static const char from[] = "images-idx3", to[] = "labels-idx1";
    const char *name = qd_file_name(path), *at = strstr(name, from);
    p->images = qd_strdup(path);
    if (!p->images)
        return qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!at)
        return QD_OK;
    p->labels = qd_asprintf("%.*s%s%s", (int)(at - path), path, to, at + strlen(from));
    if (!p->labels)
        return qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (magic_of(p->labels) != MAGIC_LABELS) {
        qd_free(p->labels);
        p->labels = NULL;
    }
    return QD_OK;
}

static qd_status sniff(const char *path, bool *ours, qd_err *err)
{
    qd_files files = { 0 };
    bool found = false;
    if (!qd_fs_is_dir(path)) {
        *ours = magic_of(path) == MAGIC_IMAGES;
        return QD_OK;
    }
    qd_status st = qd_files_list(path, &files, err);
    for (int64_t k = 0; k < files.count && !st && !found; k++) {
        char *full = qd_fs_join(path, files.path[k]);
        if (!full)
            st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        found = full && magic_of(full) == MAGIC_IMAGES;
        qd_free(full);
    }
    qd_files_clear(&files);
    if (!st)
        *ours = found;
    return st;
}

static qd_status open_files(const char *path, const qd_data_limits *limits, qd_budget *budget, qd_dataset *d,
                            qd_err *err)
{
    qd_tensor images = { 0 }, labels = { 0 };
    pair p = { 0 };
    qd_status st = qd_fs_is_dir(path) ? find_in_folder(path, &p, &d->left_out, err) : find_beside(path, &p, err);
    if (!st)
        st = qd_source_take(p.images, limits->max_bytes, budget, &images, err);
    if (!st && p.labels)
        st = qd_source_take(p.labels, limits->max_bytes, budget, &labels, err);
    if (!st)
        st = parse(d, &images, p.labels ? &labels : NULL, budget, err);
    qd_tensor_clear(&images);
    qd_tensor_clear(&labels);
    qd_free(p.images);
    qd_free(p.labels);
    return st;
}

const qd_data_format qd_data_idx = {
    .name = "idx",
    .summary = "IDX pictures and labels, gzipped or not: one pair.",
    .sniff = sniff,
    .open = open_files,
};
