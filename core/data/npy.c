/* npy.c - NumPy's files: one array as NPY, several in a zip as NPZ; and data sets made of them. */
#include "data/data_int.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"

#define BLOCK_BYTES 65536
#define FIRST_BYTES ((size_t)1 << 16)

static const char npy_magic[6] = { '\x93', 'N', 'U', 'M', 'P', 'Y' }, zip_magic[4] = { 'P', 'K', 3, 4 };

/* --- the header: a Python dict of three entries (NEP 1) --- */

static const struct {
    const char *descr;
    qd_dtype dtype;
} dtypes[] = {
    { "|u1", QD_U8 },  { "|i1", QD_I8 },  { "<i2", QD_I16 }, { "<i4", QD_I32 },  { "<i8", QD_I64 },
    { "<f2", QD_F16 }, { "<f4", QD_F32 }, { "<f8", QD_F64 }, { "|b1", QD_BOOL },
};

/* What follows 'key': in the dict, spaces skipped; NULL when it is not there. */
static const char *value_of(const char *dict, const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof quoted, "'%s':", key);
    const char *at = strstr(dict, quoted);
    if (!at)
        return NULL;
    at += strlen(quoted);
    return at + strspn(at, " ");
}

static qd_status read_dtype(const char *dict, const char *name, qd_dtype *out, qd_err *err)
{
    const char *at = value_of(dict, "descr");
    for (size_t k = 0; at && k < sizeof dtypes / sizeof *dtypes; k++)
        if (at[0] == '\'' && strncmp(at + 1, dtypes[k].descr, 3) == 0 && at[4] == '\'') {
            *out = dtypes[k].dtype;
            return QD_OK;
        }
    return qd_fail(err, QD_E_UNSUPPORTED,
                   "'%.100s': values are %.24s; little-endian integers and floats of 1, 2, 4 and 8 bytes are read",
                   name, at ? at : "of no stated type");
}

static qd_status read_shape(const char *dict, const char *name, qd_shape *out, qd_err *err)
{
    const char *at = value_of(dict, "shape");
    qd_shape s = { 0 };
    bool fine = at && *at == '(';
    for (at += fine; fine && *at != ')';) {
        char *end;
        const long long v = strtoll(at, &end, 10);
        fine = end != at && *at >= '0' && *at <= '9' && s.rank < QD_MAX_RANK && v >= 0 && v < INT64_MAX;
        if (!fine)
            break;
        s.dim[s.rank++] = v;
        at = end + strspn(end, " ");
        if (*at == ',')
            at += 1 + strspn(at + 1, " ");
        else
            fine = *at == ')';
    }
    if (!fine)
        return qd_fail(err, QD_E_FORMAT, "'%.100s': its header has no shape we can read (at most %d axes)", name,
                       QD_MAX_RANK);
    *out = s;
    return QD_OK;
}

static void let_go(void *owner)
{
    qd_tensor_clear(owner);
    qd_free(owner);
}

qd_status qd_npy_parse(const qd_tensor *bytes, const char *name, qd_tensor *out, qd_err *err)
{
    qd_reader r;
    qd_shape shape = { 0 };
    qd_dtype dtype = QD_U8;
    int64_t count = 0;
    size_t want;
    qd_reader_init(&r, bytes->data, (size_t)qd_tensor_count(bytes));
    const uint8_t *magic = qd_read_bytes(&r, sizeof npy_magic);
    const unsigned version = qd_read_u8(&r);
    qd_read_u8(&r);
    const size_t length = version == 1 ? qd_read_u16le(&r) : qd_read_u32le(&r);
    const uint8_t *head = length <= 1u << 20 ? qd_read_bytes(&r, length) : NULL;
    if (!magic || memcmp(magic, npy_magic, sizeof npy_magic) != 0 || version < 1 || version > 3 || !head)
        return qd_fail(err, QD_E_FORMAT, "'%.100s' is no NPY file, or ends within its header", name);

    char *dict = qd_strndup((const char *)head, length);
    if (!dict)
        return qd_fail(err, QD_E_NOMEM, "no memory for the header of '%.100s'", name);
    const char *fortran = value_of(dict, "fortran_order");
    qd_status st = read_dtype(dict, name, &dtype, err);
    if (!st && (!fortran || strncmp(fortran, "False", 5) != 0))
        st = qd_fail(err, QD_E_UNSUPPORTED, "'%.100s' is in Fortran order: save numpy.ascontiguousarray of it", name);
    if (!st)
        st = read_shape(dict, name, &shape, err);
    qd_free(dict);
    if (!st)
        st = qd_shape_count(&shape, &count, err);
    if (st)
        return st;
    if (!qd_mul_size((size_t)count, qd_dtype_bits(dtype) / 8, &want) || want != qd_reader_left(&r)) {
        char text[96];
        return qd_fail(err, QD_E_FORMAT, "'%.100s' says %s %s and has %zu bytes after its header", name,
                       qd_dtype_name(dtype), qd_shape_text(&shape, text, sizeof text), qd_reader_left(&r));
    }
    /* A tensor of its own, which keeps the file's bytes alive. */
    qd_tensor *owner = qd_calloc(1, sizeof *owner);
    if (!owner)
        return qd_fail(err, QD_E_NOMEM, "no memory for the array of '%.100s'", name);
    qd_tensor_share(owner, bytes);
    st = qd_tensor_wrap(out, dtype, &shape, (const char *)bytes->data + r.pos, owner, let_go, err);
    if (st)
        let_go(owner);
    return st;
}

/* --- out of a zip --- */

static qd_status damaged(struct archive *a, const char *name, qd_err *err)
{
    const char *words = archive_error_string(a);
    return qd_fail(err, QD_E_FORMAT, "'%.100s': %.150s", name, words ? words : "damaged zip data");
}

static qd_status add(qd_tensor *t, size_t *used, const void *data, size_t n, const char *name, uint64_t max_bytes,
                     qd_budget *budget, qd_err *err)
{
    const size_t room = (size_t)qd_tensor_count(t);
    if (n > max_bytes - *used)
        return qd_fail(err, QD_E_LIMIT, "'%.100s' unpacks to more than the %llu bytes allowed", name,
                       (unsigned long long)max_bytes);
    if (*used + n > room) {
        qd_tensor more = { 0 };
        size_t want = room ? 2 * room : FIRST_BYTES;
        want = want < *used + n ? *used + n : want;
        const qd_shape shape = QD_SHAPE((int64_t)(want > max_bytes ? max_bytes : want));
        const qd_status st = qd_tensor_init(&more, QD_U8, &shape, budget, err);
        if (st)
            return st;
        if (*used)
            memcpy(more.data, t->data, *used);
        qd_tensor_clear(t);
        *t = more;
    }
    memcpy((char *)t->data + *used, data, n);
    *used += n;
    return QD_OK;
}

static qd_status read_entry(struct archive *a, const char *name, uint64_t max_bytes, qd_budget *budget, qd_tensor *out,
                            qd_err *err)
{
    qd_tensor t = { .shape = { .rank = 1 } };
    size_t used = 0;
    char *block = qd_alloc(BLOCK_BYTES);
    qd_status st = block ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory to read '%.100s'", name);
    while (!st) {
        const la_ssize_t got = archive_read_data(a, block, BLOCK_BYTES);
        if (got == 0)
            break;
        if (got == ARCHIVE_RETRY)
            continue;
        st = got < 0 ? damaged(a, name, err) : add(&t, &used, block, (size_t)got, name, max_bytes, budget, err);
    }
    qd_free(block);
    if (st) {
        qd_tensor_clear(&t);
        return st;
    }
    t.shape = QD_SHAPE((int64_t)used);
    *out = t;
    return QD_OK;
}

/* By the zip's directory only, as archive.c: read as a stream, a file cut short would pass for a smaller one. */
static qd_status find_entry(const char *path, const char *name, uint64_t max_bytes, qd_budget *budget, qd_tensor *out,
                            qd_err *err)
{
    const char *file = qd_file_name(path);
    struct archive *a = archive_read_new();
    struct archive_entry *e;
    qd_status st = QD_OK;
    bool found = false;
    if (!a)
        return qd_fail(err, QD_E_NOMEM, "no memory to read '%.100s'", file);
    if (archive_read_support_format_zip_seekable(a) != ARCHIVE_OK ||
        archive_read_open_filename(a, path, BLOCK_BYTES) != ARCHIVE_OK)
        st = damaged(a, file, err);
    while (!st && !found) {
        const int got = archive_read_next_header(a, &e);
        if (got == ARCHIVE_EOF)
            break;
        if (got == ARCHIVE_RETRY)
            continue;
        if (got != ARCHIVE_OK && got != ARCHIVE_WARN) {
            st = damaged(a, file, err);
            break;
        }
        const char *entry = archive_entry_pathname(e);
        const size_t n = strlen(name);
        found = entry && strncmp(entry, name, n) == 0 && strcmp(entry + n, ".npy") == 0;
        if (found)
            st = read_entry(a, entry, max_bytes, budget, out, err);
    }
    archive_read_free(a);
    if (!st && !found)
        st = qd_fail(err, QD_E_NOT_FOUND, "'%.100s' holds no array '%.80s'", file, name);
    return st;
}

static bool begins(const char *path, const char *magic, size_t n)
{
    uint8_t head[8];
    return qd_source_head(path, head, n) == n && memcmp(head, magic, n) == 0;
}

qd_status qd_npy_take(const char *path, const char *name, uint64_t max_bytes, qd_budget *budget, qd_tensor *out,
                      qd_err *err)
{
    qd_tensor bytes = { 0 };
    char *words = name ? qd_asprintf("%s: %s", qd_file_name(path), name) : qd_strdup(qd_file_name(path));
    qd_status st = words ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = name ? find_entry(path, name, max_bytes, budget, &bytes, err)
                  : qd_source_take(path, max_bytes, budget, &bytes, err);
    if (!st)
        st = qd_npy_parse(&bytes, words, out, err);
    qd_tensor_clear(&bytes);
    qd_free(words);
    return st;
}

/* --- as data sets --- */

static const char *const image_names[] = { "images", "data", "x", NULL };
static const char *const label_names[] = { "labels", "targets", "y", NULL };

/* The first of the names that is there. */
static qd_status take_one_of(const char *path, const char *const *names, uint64_t max_bytes, qd_budget *budget,
                             qd_tensor *out, qd_err *err)
{
    qd_status st = QD_E_NOT_FOUND;
    for (; *names && st == QD_E_NOT_FOUND; names++)
        st = qd_npy_take(path, *names, max_bytes, budget, out, err);
    return st;
}

/* A folder with images.npy, and labels.npy beside it: their full paths (qd_free). */
static qd_status find_in_folder(const char *root, char **images, char **labels, int64_t *others, qd_err *err)
{
    qd_files files = { 0 };
    qd_status st = qd_files_list(root, &files, err);
    for (int64_t k = 0; k < files.count && !st; k++) {
        const char *name = qd_file_name(files.path[k]);
        char **slot = strcmp(name, "images.npy") == 0 ? images : strcmp(name, "labels.npy") == 0 ? labels : NULL;
        if (slot && *slot) {
            st = qd_fail(err, QD_E_FORMAT, "two files '%s'; one makes a data set", name);
        } else if (slot) {
            *slot = qd_fs_join(root, files.path[k]);
            st = *slot ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
        } else {
            ++*others;
        }
    }
    qd_files_clear(&files);
    return st;
}

static qd_status sniff(const char *path, bool *ours, qd_err *err)
{
    char *images = NULL, *labels = NULL;
    int64_t others = 0;
    const size_t n = strlen(path);
    if (!qd_fs_is_dir(path)) {
        *ours = begins(path, npy_magic, sizeof npy_magic) ||
                (n > 4 && strcmp(path + n - 4, ".npz") == 0 && begins(path, zip_magic, sizeof zip_magic));
        return QD_OK;
    }
    const qd_status st = find_in_folder(path, &images, &labels, &others, err);
    if (!st)
        *ours = images != NULL;
    qd_free(images);
    qd_free(labels);
    return st;
}

/* Beside "some/images.npy" lies "some/labels.npy". */
static qd_status find_beside(const char *path, char **labels, qd_err *err)
{
    const char *name = qd_file_name(path), *at = strstr(name, "images");
    if (!at)
        return QD_OK;
    *labels = qd_asprintf("%.*slabels%s", (int)(at - path), path, at + strlen("images"));
    if (!*labels)
        return qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!begins(*labels, npy_magic, sizeof npy_magic)) {
        qd_free(*labels);
        *labels = NULL;
    }
    return QD_OK;
}

static qd_status open_arrays(const char *path, const qd_data_limits *limits, qd_budget *budget, qd_dataset *d,
                             qd_err *err)
{
    qd_tensor images = { 0 }, labels = { 0 };
    char *image_path = NULL, *label_path = NULL;
    bool labelled = false;
    qd_status st = QD_OK;
    if (qd_fs_is_dir(path))
        st = find_in_folder(path, &image_path, &label_path, &d->left_out, err);
    else if (begins(path, npy_magic, sizeof npy_magic))
        st = find_beside(path, &label_path, err);
    if (st)
        goto out;
    if (!image_path && begins(path, zip_magic, sizeof zip_magic)) {
        st = take_one_of(path, image_names, limits->max_bytes, budget, &images, err);
        if (!st) {
            qd_err none = { 0 };
            st = take_one_of(path, label_names, limits->max_bytes, budget, &labels, &none);
            labelled = !st;
            if (st == QD_E_NOT_FOUND)
                st = QD_OK;
            else if (st)
                st = qd_fail(err, st, "%s", none.text);
        } else if (st == QD_E_NOT_FOUND) {
            st = qd_fail(err, QD_E_FORMAT, "'%.150s' holds no array 'images', 'data' or 'x'", qd_file_name(path));
        }
    } else {
        st = qd_npy_take(image_path ? image_path : path, NULL, limits->max_bytes, budget, &images, err);
        labelled = !st && label_path;
        if (labelled)
            st = qd_npy_take(label_path, NULL, limits->max_bytes, budget, &labels, err);
    }
    if (!st)
        st = qd_dataset_fill(d, &images, labelled ? &labels : NULL, budget, err);
    if (st)
        st = qd_fail_in(err, st, "'%.150s'", qd_file_name(path));
out:
    qd_tensor_clear(&images);
    qd_tensor_clear(&labels);
    qd_free(image_path);
    qd_free(label_path);
    return st;
}

const qd_data_format qd_data_npy = {
    .name = "npy",
    .summary = "NumPy arrays: images.npy and labels.npy, or an NPZ file with both.",
    .sniff = sniff,
    .open = open_arrays,
};
