/* pictures.c - folders of PNG and JPEG files: the folder's name is the class, all pictures have one size. */
#include "data/data_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/fs.h"

#define MAX_PIXELS (64u << 20)

typedef qd_status decoder(const void *data, size_t size, uint64_t max_pixels, qd_image *out, qd_err *err);

static decoder *decoder_of(const uint8_t *head, size_t n)
{
    static const uint8_t png[] = { 0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n' }, jpeg[] = { 0xff, 0xd8, 0xff };
    if (n >= sizeof png && memcmp(head, png, sizeof png) == 0)
        return qd_png_decode;
    if (n >= sizeof jpeg && memcmp(head, jpeg, sizeof jpeg) == 0)
        return qd_jpeg_decode;
    return NULL;
}

bool qd_picture_known(const void *head, size_t n)
{
    return decoder_of(head, n) != NULL;
}

qd_status qd_picture_decode(const void *data, size_t size, qd_image *out, qd_err *err)
{
    decoder *d = decoder_of(data, size);
    return d ? d(data, size, MAX_PIXELS, out, err) : qd_fail(err, QD_E_FORMAT, "neither a PNG nor a JPEG file");
}

static bool is_picture(const char *path)
{
    uint8_t head[8];
    return qd_picture_known(head, qd_source_head(path, head, sizeof head));
}

/* --- classes: one for each folder that holds pictures --- */

/* Bytes of the folder part of a path, without its last slash; 0 for a file beside the root. */
static size_t folder_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) : 0;
}

static bool same_folder(const char *a, const char *b)
{
    const size_t n = folder_length(a);
    return n == folder_length(b) && memcmp(a, b, n) == 0;
}

/* How much of all folders' names is wrapping they share: whole parts, and never a whole name. */
static size_t shared_length(const qd_files *f)
{
    const char *first = f->path[0];
    size_t shared = 0;
    for (size_t at = 0; at < folder_length(first); at++) {
        if (first[at] != '/')
            continue;
        for (int64_t k = 1; k < f->count; k++)
            if (folder_length(f->path[k]) <= at || memcmp(first, f->path[k], at + 1) != 0)
                return shared;
        shared = at + 1;
    }
    return shared;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int class_of(char *const *names, int classes, const char *path, size_t shared)
{
    const size_t n = folder_length(path) - shared;
    int lo = 0, hi = classes - 1;
    while (lo < hi) {
        const int mid = (lo + hi) / 2;
        if (strncmp(names[mid], path + shared, n) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

void qd_classes_free(char **names, int classes)
{
    for (int k = 0; names && k < classes; k++)
        qd_free(names[k]);
    qd_free(names);
}

qd_status qd_classes_of_paths(const qd_files *f, char ***out, int *classes, int32_t *label, qd_err *err)
{
    const size_t shared = shared_length(f);
    int64_t bare = 0, room = 0;
    for (int64_t k = 0; k < f->count; k++) {
        bare += folder_length(f->path[k]) == 0;
        room += k == 0 || !same_folder(f->path[k], f->path[k - 1]);
    }
    if (bare == f->count)
        return QD_OK;
    if (bare)
        return qd_fail(err, QD_E_FORMAT, "%lld of %lld pictures lie in no class's folder", (long long)bare,
                       (long long)f->count);
    /* A folder's files need not stand together where a sibling's name sorts between, so some names come twice at first. */
    char **names = qd_calloc((size_t)room, sizeof *names);
    int64_t n = 0, kept = 0;
    qd_status st = names ? QD_OK : QD_E_NOMEM;
    for (int64_t k = 0; k < f->count && !st; k++) {
        if (k && same_folder(f->path[k], f->path[k - 1]))
            continue;
        names[n] = qd_strndup(f->path[k] + shared, folder_length(f->path[k]) - shared);
        st = names[n] ? QD_OK : QD_E_NOMEM;
        n += !st;
    }
    if (!st)
        qsort(names, (size_t)n, sizeof *names, by_text);
    for (int64_t k = 0; k < n && !st; k++) {
        if (kept && strcmp(names[k], names[kept - 1]) == 0)
            qd_free(names[k]);
        else
            names[kept++] = names[k];
    }
    if (!st && kept > QD_MAX_CLASSES)
        st = qd_fail(err, QD_E_LIMIT, "%lld folders; %d classes are the most", (long long)kept, QD_MAX_CLASSES);
    else if (st)
        st = qd_fail(err, st, "no memory for the names of %lld classes", (long long)room);
    if (st) {
        qd_classes_free(names, (int)(kept ? kept : n));
        return st;
    }
    for (int64_t k = 0; k < f->count; k++)
        label[k] = class_of(names, (int)kept, f->path[k], shared);
    *out = names;
    *classes = (int)kept;
    return QD_OK;
}

/* --- pixels --- */

static qd_status decode(const char *root, const char *path, qd_image *im, qd_err *err)
{
    qd_map map = { 0 };
    char *full = qd_fs_join(root, path);
    qd_status st = full ? qd_map_open(&map, full, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = qd_picture_decode(map.data, map.size, im, err);
    qd_map_close(&map);
    qd_free(full);
    return st ? qd_fail_in(err, st, "'%.150s'", path) : QD_OK;
}

/* [h][w][c] to [C][h][w]; grey repeats itself in a set of colours. */
static void to_planes(uint8_t *dst, const qd_image *im, int channels)
{
    const int64_t plane = (int64_t)im->width * im->height;
    for (int c = 0; c < channels; c++)
        for (int64_t i = 0; i < plane; i++)
            *dst++ = im->pixels[i * im->channels + (im->channels == 1 ? 0 : c)];
}

static qd_status begin(qd_dataset *d, const qd_image *im, const qd_data_limits *limits, qd_budget *budget, qd_err *err)
{
    d->channels = im->channels;
    d->height = im->height;
    d->width = im->width;
    d->stride = (int64_t)im->channels * im->height * im->width;
    const qd_shape shape = QD_SHAPE(d->count, d->stride);
    int64_t bytes;
    qd_status st = qd_shape_count(&shape, &bytes, err);
    if (st)
        return st;
    if ((uint64_t)bytes > limits->max_bytes)
        return qd_fail(err, QD_E_LIMIT, "%lld pictures of %d x %d take %lld bytes, %llu are allowed",
                       (long long)d->count, im->width, im->height, (long long)bytes,
                       (unsigned long long)limits->max_bytes);
    return qd_tensor_init(&d->bytes, QD_U8, &shape, budget, err);
}

static qd_status fill(qd_dataset *d, const char *root, const qd_files *f, const qd_data_limits *limits,
                      qd_budget *budget, qd_err *err)
{
    qd_status st = QD_OK;
    for (int64_t k = 0; k < f->count && !st; k++) {
        qd_image im = { 0 };
        st = decode(root, f->path[k], &im, err);
        if (!st && k == 0)
            st = begin(d, &im, limits, budget, err);
        if (!st && (im.width != d->width || im.height != d->height))
            st = qd_fail(err, QD_E_FORMAT, "'%.150s' is %d x %d, '%.150s' is %d x %d; all pictures must have one size",
                         f->path[k], im.width, im.height, f->path[0], d->width, d->height);
        if (!st && im.channels > d->channels)
            st = qd_fail(err, QD_E_FORMAT, "'%.150s' has colours and '%.150s' is grey: make the first one RGB",
                         f->path[k], f->path[0]);
        if (!st)
            to_planes(qd_u8(&d->bytes) + k * d->stride, &im, d->channels);
        qd_image_clear(&im);
    }
    return st;
}

/* --- on disk --- */

qd_status qd_pictures_list(const char *root, qd_files *f, int64_t *others, qd_err *err)
{
    qd_status st = qd_files_list(root, f, err);
    int64_t kept = 0;
    for (int64_t k = 0; !st && k < f->count; k++) {
        char *full = qd_fs_join(root, f->path[k]);
        if (!full)
            st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        if (full && is_picture(full)) {
            char *path = f->path[k];
            f->path[k] = f->path[kept];
            f->path[kept++] = path;
        }
        qd_free(full);
    }
    if (st)
        return st;
    for (int64_t k = kept; k < f->count; k++)
        qd_free(f->path[k]);
    *others += f->count - kept;
    f->count = kept;
    return QD_OK;
}

qd_status qd_pictures_sniff(const char *path, bool *ours, qd_err *err)
{
    qd_files f = { 0 };
    bool found = false;
    if (!qd_fs_is_dir(path)) {
        *ours = false;
        return QD_OK;
    }
    qd_status st = qd_files_list(path, &f, err);
    for (int64_t k = 0; k < f.count && !st && !found; k++) {
        char *full = qd_fs_join(path, f.path[k]);
        if (!full)
            st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        found = full && is_picture(full);
        qd_free(full);
    }
    qd_files_clear(&f);
    if (!st)
        *ours = found;
    return st;
}

static qd_status open_folder(const char *path, const qd_data_limits *limits, qd_budget *budget, qd_dataset *d,
                             qd_err *err)
{
    qd_files f = { 0 };
    qd_status st = qd_pictures_list(path, &f, &d->left_out, err);
    if (!st && f.count > limits->max_count)
        st = qd_fail(err, QD_E_LIMIT, "%lld pictures; %lld are the most", (long long)f.count,
                     (long long)limits->max_count);
    if (!st && f.count == 0)
        st = qd_fail(err, QD_E_FORMAT, "the folder holds no PNG or JPEG file");
    if (st)
        goto out;
    d->count = f.count;
    st = qd_dataset_labels(d, budget, err);
    if (!st)
        st = qd_classes_of_paths(&f, &d->class_name, &d->classes, qd_labels_of(d), err);
    if (!st && !d->class_name)
        qd_tensor_clear(&d->labels);
    if (!st)
        st = fill(d, path, &f, limits, budget, err);
out:
    qd_files_clear(&f);
    return st;
}

const qd_data_format qd_data_pictures = {
    .name = "pictures",
    .summary = "Folders of PNG or JPEG files of one size, a folder for each class.",
    .sniff = qd_pictures_sniff,
    .open = open_folder,
};
