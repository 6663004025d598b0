/* samples.c - pictures to train on: a data set in memory, a folder, or a tar file, decoded when asked for or kept. */
#include "data/data_int.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/par.h"

enum { CHUNK = 64, WARNINGS = 10 };

/* One file of a folder or tar. */
typedef struct entry {
    char *name;
    uint64_t at, size; /* in a tar file */
    int32_t label;
    int height, width, channels; /* 0 = cannot be read */
    qd_image kept;               /* decoded, while everything fits */
} entry;

struct qd_samples {
    qd_samples_info info;
    const qd_dataset *set; /* all there is, when it is one .. */
    qd_dataset *own;
    char *root;   /* .. else a folder's path .. */
    qd_map tar;   /* .. or a file's bytes */
    entry *entry; // [info.count]
    char **class_name;
    qd_budget *budget;
    size_t kept_bytes;
};

void qd_samples_free(qd_samples *s)
{
    if (!s)
        return;
    for (int64_t k = 0; s->entry && k < s->info.count; k++) {
        qd_free(s->entry[k].name);
        qd_image_clear(&s->entry[k].kept);
    }
    qd_budget_give(s->budget, s->kept_bytes);
    qd_free(s->entry);
    qd_classes_free(s->class_name, s->class_name ? s->info.classes : 0);
    qd_free(s->root);
    qd_map_close(&s->tar);
    qd_dataset_free(s->own);
    qd_free(s);
}

static qd_status samples_new(const char *format, qd_budget *budget, qd_samples **out, qd_err *err)
{
    qd_samples *s = qd_calloc(1, sizeof *s);
    if (!s)
        return qd_fail(err, QD_E_NOMEM, "no memory for samples");
    s->info.format = format;
    s->budget = budget;
    *out = s;
    return QD_OK;
}

qd_status qd_samples_of(const qd_dataset *d, qd_samples **out, qd_err *err)
{
    const qd_status st = samples_new(d->format, NULL, out, err);
    if (st)
        return st;
    (*out)->set = d;
    (*out)->info = (qd_samples_info){ .format = d->format,
                                      .count = d->count,
                                      .left_out = d->left_out,
                                      .channels = d->channels,
                                      .height = d->height,
                                      .width = d->width,
                                      .classes = d->classes,
                                      .class_name = d->class_name,
                                      .in_memory = true };
    return QD_OK;
}

/* --- asking --- */

const qd_samples_info *qd_samples_about(const qd_samples *s)
{
    return &s->info;
}

int qd_samples_label(const qd_samples *s, int64_t k)
{
    assert(k >= 0 && k < s->info.count);
    return s->set ? qd_dataset_label(s->set, k) : s->entry[k].label;
}

const char *qd_samples_name(const qd_samples *s, int64_t k)
{
    assert(k >= 0 && k < s->info.count);
    return s->set ? NULL : s->entry[k].name;
}

qd_status qd_samples_balance(double *weight, const qd_samples *s, qd_err *err)
{
    int64_t *of_class = qd_calloc((size_t)s->info.classes, sizeof *of_class);
    if (!of_class)
        return qd_fail(err, QD_E_NOMEM, "no memory to count %d classes", s->info.classes);
    for (int64_t k = 0; k < s->info.count; k++)
        if (qd_samples_label(s, k) >= 0)
            of_class[qd_samples_label(s, k)]++;
    for (int64_t k = 0; k < s->info.count; k++)
        weight[k] = qd_samples_label(s, k) >= 0 ? 1.0 / (double)of_class[qd_samples_label(s, k)] : 0.0;
    qd_free(of_class);
    return QD_OK;
}

static qd_status decode(const qd_samples *s, const entry *e, qd_image *out, qd_err *err)
{
    qd_map map = { 0 };
    qd_status st;
    if (!s->root) {
        st = qd_picture_decode(s->tar.data + e->at, (size_t)e->size, out, err);
    } else {
        char *path = qd_fs_join(s->root, e->name);
        st = path ? qd_map_open(&map, path, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
        if (!st)
            st = qd_picture_decode(map.data, map.size, out, err);
        qd_map_close(&map);
        qd_free(path);
    }
    return st ? qd_fail_in(err, st, "'%.150s'", e->name) : QD_OK;
}

qd_status qd_samples_get(const qd_samples *s, int64_t k, qd_image *hold, qd_pixels *out, qd_err *err)
{
    assert(k >= 0 && k < s->info.count);
    if (s->set) {
        *out = qd_dataset_picture(s->set, k);
        return QD_OK;
    }
    const entry *e = &s->entry[k];
    const qd_image *im = &e->kept;
    if (!im->pixels) {
        qd_image fresh = { 0 };
        const qd_status st = decode(s, e, &fresh, err);
        if (st)
            return st;
        qd_image_clear(hold);
        *hold = fresh;
        im = hold;
        if (im->width != e->width || im->height != e->height || im->channels != e->channels)
            return qd_fail(err, QD_E_CONFLICT, "'%.150s' was %d x %d and is %d x %d now: the file changed", e->name,
                           e->width, e->height, im->width, im->height);
    }
    *out = (qd_pixels){ .data = im->pixels,
                        .channels = s->info.channels,
                        .height = im->height,
                        .width = im->width,
                        .plane = im->channels == 1 ? 0 : 1,
                        .column = im->channels,
                        .row = (int64_t)im->channels * im->width };
    return QD_OK;
}

/* --- every picture once --- */

typedef struct look {
    qd_samples *s;
    int64_t first;
    bool keep;
    qd_err err[CHUNK];
} look;

static void look_at(void *ctx, int64_t i)
{
    look *l = ctx;
    entry *e = &l->s->entry[l->first + i];
    qd_image im = { 0 };
    l->err[i] = (qd_err){ 0 };
    if (decode(l->s, e, &im, &l->err[i]))
        return;
    e->height = im.height;
    e->width = im.width;
    e->channels = im.channels;
    if (l->keep)
        e->kept = im;
    else
        qd_image_clear(&im);
}

static void drop_kept(qd_samples *s)
{
    for (int64_t k = 0; k < s->info.count; k++)
        qd_image_clear(&s->entry[k].kept);
    qd_budget_give(s->budget, s->kept_bytes);
    s->kept_bytes = 0;
}

/* What the last chunk kept is drawn from the budget; false, with everything dropped, when it is too much. */
static bool afford(qd_samples *s, int64_t first, int64_t n, uint64_t most)
{
    size_t bytes = 0;
    for (int64_t k = first; k < first + n; k++)
        bytes += (size_t)s->entry[k].height * (size_t)s->entry[k].width * (size_t)s->entry[k].channels;
    if (s->kept_bytes + bytes > most || qd_budget_draw(s->budget, bytes, "decoded pictures", NULL)) {
        drop_kept(s);
        return false;
    }
    s->kept_bytes += bytes;
    return true;
}

/* Only what can be read stays, and sizes are known. */
static qd_status look_at_all(qd_samples *s, uint64_t cache_bytes, const qd_run *run, qd_err *err)
{
    look *l = qd_calloc(1, sizeof *l);
    int64_t kept = 0, bad = 0;
    qd_status st = l ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory to look at pictures");
    if (!st) {
        l->s = s;
        l->keep = cache_bytes > 0;
    }
    for (int64_t first = 0; first < s->info.count && !st; first += CHUNK) {
        const int64_t n = s->info.count - first < CHUNK ? s->info.count - first : CHUNK;
        st = qd_run_check(run, err);
        if (st)
            break;
        l->first = first;
        qd_par_for(qd_run_threads(run), n, look_at, l);
        for (int64_t i = 0; i < n && !st; i++) {
            if (l->err[i].status == QD_E_NOMEM)
                st = qd_fail(err, QD_E_NOMEM, "%s", l->err[i].text);
            else if (l->err[i].status && ++bad <= WARNINGS)
                qd_run_warn(run, "left out %s", l->err[i].text);
        }
        if (!st && l->keep)
            l->keep = afford(s, first, n, cache_bytes);
        qd_run_progress(run, "index", NULL, first + n, s->info.count);
    }
    const bool in_memory = !st && l->keep;
    qd_free(l);
    if (st)
        return st;
    for (int64_t k = 0; k < s->info.count; k++) {
        entry e = s->entry[k];
        s->entry[k] = s->entry[kept];
        s->entry[kept] = e;
        kept += e.height > 0;
    }
    for (int64_t k = kept; k < s->info.count; k++) {
        qd_free(s->entry[k].name);
        s->entry[k] = (entry){ 0 };
    }
    if (bad > WARNINGS)
        qd_run_warn(run, "left out %lld more pictures that cannot be read", (long long)(bad - WARNINGS));
    s->info.count = kept;
    s->info.left_out += bad;
    s->info.in_memory = in_memory;
    if (!kept)
        return qd_fail(err, QD_E_FORMAT, "none of %lld pictures can be read", (long long)bad);
    s->info.height = s->entry[0].height;
    s->info.width = s->entry[0].width;
    for (int64_t k = 0; k < kept; k++) {
        const entry *e = &s->entry[k];
        if (e->channels > s->info.channels)
            s->info.channels = e->channels;
        if (e->height != s->info.height || e->width != s->info.width)
            s->info.height = s->info.width = 0;
    }
    return QD_OK;
}

/* --- which pictures, with which labels --- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

/* Those of the list, in its order. */
static qd_status choose(qd_samples *s, const char *path, const qd_data_limits *limits, qd_err *err)
{
    qd_list l = { 0 };
    entry *chosen = NULL;
    int64_t n = 0;
    qd_status st = qd_list_open(path, limits->max_count, &l, err);
    if (st)
        return st;
    chosen = qd_calloc((size_t)l.count, sizeof *chosen);
    if (!chosen)
        st = qd_fail(err, QD_E_NOMEM, "no memory for %lld pictures", (long long)l.count);
    if (!st)
        qsort(s->entry, (size_t)s->info.count, sizeof *s->entry, by_name);
    for (; n < l.count && !st; n++) {
        const entry key = { .name = l.path[n] },
                    *found = bsearch(&key, s->entry, (size_t)s->info.count, sizeof *s->entry, by_name);
        if (!found) {
            st = qd_fail(err, QD_E_NOT_FOUND, "'%.150s' lists '%.150s', and there is no such picture",
                         qd_file_name(path), l.path[n]);
            break;
        }
        chosen[n] = *found;
        chosen[n].label = l.label ? l.label[n] : -1;
        chosen[n].name = qd_strdup(l.path[n]);
        if (!chosen[n].name)
            st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
    }
    if (st) {
        for (int64_t k = 0; chosen && k < l.count; k++)
            qd_free(chosen[k].name);
        qd_free(chosen);
        qd_list_clear(&l);
        return st;
    }
    for (int64_t k = 0; k < s->info.count; k++)
        qd_free(s->entry[k].name);
    qd_free(s->entry);
    s->entry = chosen;
    s->info.count = l.count;
    s->info.classes = l.classes;
    s->class_name = l.class_name;
    l.class_name = NULL;
    l.classes = 0;
    qd_list_clear(&l);
    return QD_OK;
}

static qd_status label_by_folder(qd_samples *s, const qd_files *f, qd_err *err)
{
    int32_t *label = qd_calloc((size_t)f->count, sizeof *label);
    qd_status st = label ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %lld labels", (long long)f->count);
    if (!st)
        st = qd_classes_of_paths(f, &s->class_name, &s->info.classes, label, err);
    for (int64_t k = 0; k < f->count && !st && s->class_name; k++)
        s->entry[k].label = label[k];
    qd_free(label);
    return st;
}

/* An entry for every file. */
static qd_status fill(qd_samples *s, const qd_files *f, const qd_samples_options *o, qd_err *err)
{
    if (f->count == 0)
        return qd_fail(err, QD_E_FORMAT, "it holds no PNG or JPEG file");
    if (f->count > o->limits.max_count && !o->list)
        return qd_fail(err, QD_E_LIMIT, "%lld pictures; %lld are the most", (long long)f->count,
                       (long long)o->limits.max_count);
    s->entry = qd_calloc((size_t)f->count, sizeof *s->entry);
    if (!s->entry)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld pictures", (long long)f->count);
    for (; s->info.count < f->count; s->info.count++) {
        entry *e = &s->entry[s->info.count];
        e->label = -1;
        e->name = qd_strdup(f->path[s->info.count]);
        if (!e->name)
            return qd_fail(err, QD_E_NOMEM, "no memory for the names of %lld pictures", (long long)f->count);
    }
    return QD_OK;
}

/* --- folders --- */

static qd_status open_folder(qd_samples *s, const char *path, const qd_samples_options *o, qd_err *err)
{
    qd_files f = { 0 };
    qd_status st;
    s->root = qd_strdup(path);
    if (!s->root)
        return qd_fail(err, QD_E_NOMEM, "no memory for a path");
    st = qd_pictures_list(path, &f, &s->info.left_out, err);
    if (!st)
        st = fill(s, &f, o, err);
    if (!st)
        st = o->list ? choose(s, o->list, &o->limits, err) : label_by_folder(s, &f, err);
    qd_files_clear(&f);
    return st;
}

/* --- tar files --- */

/* 000123.cls beside 000123.jpg: the label in digits (webdataset). */
typedef struct note {
    const char *name;
    size_t key; // bytes of the name that both share
    int32_t label;
} note;

static size_t key_of(const char *name)
{
    const char *file = qd_file_name(name), *dot = strchr(file, '.');
    return dot ? (size_t)(dot - name) : strlen(name);
}

static int by_key(const void *a, const void *b)
{
    const note *x = a, *y = b;
    const int order = memcmp(x->name, y->name, x->key < y->key ? x->key : y->key);
    return order ? order : (x->key > y->key) - (x->key < y->key);
}

static bool is_note(const char *name)
{
    return strcmp(name + key_of(name), ".cls") == 0;
}

static qd_status read_note(const qd_tar *t, int64_t k, const uint8_t *data, note *out, qd_err *err)
{
    char text[16] = { 0 }, *end;
    const char *name = t->files.path[k];
    if (t->size[k] < sizeof text)
        memcpy(text, data + t->at[k], (size_t)t->size[k]);
    const long v = strtol(text, &end, 10);
    if (end == text || *(end + strspn(end, " \r\n")) || v < 0 || v >= QD_MAX_CLASSES)
        return qd_fail(err, QD_E_FORMAT, "'%.150s' is no label: expected a whole number of 0..%d", name,
                       QD_MAX_CLASSES - 1);
    *out = (note){ .name = name, .key = key_of(name), .label = (int32_t)v };
    return QD_OK;
}

static qd_status label_by_notes(qd_samples *s, const qd_tar *t, int64_t notes, qd_err *err)
{
    note *all = qd_calloc((size_t)notes, sizeof *all);
    qd_status st = all ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %lld labels", (long long)notes);
    int64_t n = 0;
    for (int64_t k = 0; k < t->files.count && !st; k++)
        if (is_note(t->files.path[k]))
            st = read_note(t, k, s->tar.data, &all[n++], err);
    if (!st)
        qsort(all, (size_t)n, sizeof *all, by_key);
    for (int64_t k = 0; k < s->info.count && !st; k++) {
        entry *e = &s->entry[k];
        const note key = { .name = e->name, .key = key_of(e->name) },
                   *found = bsearch(&key, all, (size_t)n, sizeof *all, by_key);
        if (!found) {
            st = qd_fail(err, QD_E_FORMAT, "'%.150s' has no .cls file beside it, and others have", e->name);
            break;
        }
        e->label = found->label;
        s->info.classes = e->label >= s->info.classes ? e->label + 1 : s->info.classes;
    }
    qd_free(all);
    return st;
}

/* Pictures among all files, their names in *f, lent by t. */
static qd_status pick_pictures(qd_samples *s, const qd_tar *t, qd_files *f, int64_t *notes, qd_err *err)
{
    f->path = qd_calloc((size_t)t->files.count + 1, sizeof *f->path);
    if (!f->path)
        return qd_fail(err, QD_E_NOMEM, "no memory for the names of %lld files", (long long)t->files.count);
    for (int64_t k = 0; k < t->files.count; k++) {
        if (qd_picture_known(s->tar.data + t->at[k], (size_t)t->size[k]))
            f->path[f->count++] = t->files.path[k];
        else if (is_note(t->files.path[k]))
            ++*notes;
        else
            s->info.left_out++;
    }
    return QD_OK;
}

static qd_status open_tar(qd_samples *s, const char *path, const qd_samples_options *o, qd_err *err)
{
    qd_tar t = { 0 };
    qd_files f = { 0 };
    int64_t notes = 0;
    qd_status st = qd_map_open(&s->tar, path, err);
    if (!st)
        st = qd_tar_list(s->tar.data, s->tar.size, &t, err);
    if (!st)
        st = pick_pictures(s, &t, &f, &notes, err);
    if (!st)
        st = fill(s, &f, o, err);
    for (int64_t k = 0, n = 0; k < t.files.count && !st && n < f.count; k++)
        if (t.files.path[k] == f.path[n]) {
            s->entry[n].at = t.at[k];
            s->entry[n++].size = t.size[k];
        }
    if (!st)
        st = o->list ? choose(s, o->list, &o->limits, err)
             : notes ? label_by_notes(s, &t, notes, err)
                     : label_by_folder(s, &f, err);
    qd_free(f.path);
    qd_tar_clear(&t);
    return st;
}

/* --- any of them --- */

static qd_status open_set(qd_samples **out, const char *path, const qd_samples_options *o, const qd_run *run,
                          qd_err *err)
{
    qd_dataset *d = NULL;
    if (o->list)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "a list chooses files of a folder or tar; of a data set choose by numbers");
    qd_status st = qd_dataset_open(path, &o->limits, qd_run_budget(run), &d, err);
    if (st)
        return st;
    st = qd_samples_of(d, out, err);
    if (st)
        qd_dataset_free(d);
    else
        (*out)->own = d;
    return st;
}

qd_status qd_samples_open(const char *path, const qd_samples_options *options, const qd_run *run, qd_samples **out,
                          qd_err *err)
{
    qd_samples *s = NULL;
    bool folder = false, tar = false;
    qd_status st = QD_OK;
    if (qd_fs_is_dir(path))
        st = qd_pictures_sniff(path, &folder, err);
    else
        tar = qd_tar_known(path);
    if (st)
        return st;
    if (!folder && !tar)
        return open_set(out, path, options, run, err);
    st = samples_new(folder ? "folder" : "tar", qd_run_budget(run), &s, err);
    if (!st)
        st = folder ? open_folder(s, path, options, err) : open_tar(s, path, options, err);
    if (!st)
        st = look_at_all(s, options->cache_bytes, run, err);
    if (st) {
        qd_samples_free(s);
        return qd_fail_in(err, st, "'%.150s'", qd_file_name(path));
    }
    s->info.class_name = s->class_name;
    *out = s;
    return QD_OK;
}
