/* list.c - lists that come along with data sets: pictures with labels as JSON lines, CSV or text; numbers of pictures. */
#include "data/data_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"

enum { LINE_MAX_BYTES = 4096 };
#define LIST_MAX_BYTES ((size_t)256 << 20)

/* One line taken apart; both empty when there is nothing. */
typedef struct line {
    char path[LINE_MAX_BYTES], label[LINE_MAX_BYTES];
    bool labelled;
} line;

typedef enum kind { TEXT, CSV, JSONL } kind;

typedef struct table {
    const char *file;
    int64_t at; /* line of the file, from 1 */
    int path_column, label_column;
    bool headed;
    qd_err *err;
} table;

static qd_status bad(const table *t, const char *words)
{
    return qd_fail(t->err, QD_E_FORMAT, "'%.150s', line %lld: %s", t->file, (long long)t->at, words);
}

static bool is_path_key(const char *key)
{
    return strcmp(key, "path") == 0 || strcmp(key, "file") == 0 || strcmp(key, "image") == 0 ||
           strcmp(key, "name") == 0 || strcmp(key, "filename") == 0;
}

static bool is_label_key(const char *key)
{
    return strcmp(key, "label") == 0 || strcmp(key, "class") == 0;
}

static bool is_number(const char *s)
{
    return *s && strspn(s, "0123456789") == strlen(s) && strlen(s) < 10;
}

/* --- JSON: one flat object to a line --- */

static unsigned hex4(const char *p)
{
    unsigned v = 0;
    for (int k = 0; k < 4; k++) {
        const char c = p[k];
        const int digit = c >= '0' && c <= '9'                 ? c - '0'
                          : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                               : -1;
        if (digit < 0)
            return 0;
        v = v << 4 | (unsigned)digit;
    }
    return v;
}

/* A code point below 0x10000 as UTF-8; returns its bytes. Surrogates are not joined: 0. */
static size_t put_utf8(char *out, unsigned u)
{
    if (u == 0 || (u >= 0xd800 && u < 0xe000))
        return 0;
    if (u < 0x80) {
        out[0] = (char)u;
        return 1;
    }
    if (u < 0x800) {
        out[0] = (char)(0xc0 | u >> 6);
        out[1] = (char)(0x80 | (u & 63));
        return 2;
    }
    out[0] = (char)(0xe0 | u >> 12);
    out[1] = (char)(0x80 | (u >> 6 & 63));
    out[2] = (char)(0x80 | (u & 63));
    return 3;
}

/* After the opening quote: what follows the closing one; NULL when it is damaged. out has LINE_MAX_BYTES. */
static const char *json_string(const char *p, char *out)
{
    size_t n = 0;
    for (; *p && *p != '"'; p++) {
        static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
        const char *at;
        if (n + 4 > LINE_MAX_BYTES)
            return NULL;
        if (*p != '\\') {
            out[n++] = *p;
        } else if (p[1] == 'u') {
            const size_t got = put_utf8(out + n, hex4(p + 2));
            if (!got)
                return NULL;
            n += got;
            p += 5;
        } else if (p[1] && (at = strchr(from, p[1]))) {
            out[n++] = to[at - from];
            p++;
        } else {
            return NULL;
        }
    }
    out[n] = '\0';
    return *p == '"' ? p + 1 : NULL;
}

static const char *skip_space(const char *p)
{
    return p + strspn(p, " \t");
}

/* A string, number or word as text. */
static const char *json_value(const char *p, char *out)
{
    if (*p == '"')
        return json_string(p + 1, out);
    const size_t n = strcspn(p, ",}[{ \t");
    if (n == 0 || n >= LINE_MAX_BYTES)
        return NULL;
    memcpy(out, p, n);
    out[n] = '\0';
    return p + n;
}

static qd_status read_json(const table *t, const char *p, line *l)
{
    static const char words[] = "expected one flat JSON object with \"path\" and perhaps \"label\"";
    char key[LINE_MAX_BYTES], value[LINE_MAX_BYTES];
    p = skip_space(p);
    if (*p++ != '{')
        return bad(t, words);
    for (p = skip_space(p); *p != '}';) {
        p = *p == '"' ? json_string(p + 1, key) : NULL;
        p = p ? skip_space(p) : NULL;
        p = p && *p == ':' ? json_value(skip_space(p + 1), value) : NULL;
        if (!p)
            return bad(t, words);
        if (is_path_key(key)) {
            memcpy(l->path, value, strlen(value) + 1);
        } else if (is_label_key(key) && strcmp(value, "null") != 0) {
            memcpy(l->label, value, strlen(value) + 1);
            l->labelled = true;
        }
        p = skip_space(p);
        if (*p == ',')
            p = skip_space(p + 1);
        else if (*p != '}')
            return bad(t, words);
    }
    return *skip_space(p + 1) ? bad(t, words) : QD_OK;
}

/* --- CSV (RFC 4180, one line to a record) --- */

/* One field into out[LINE_MAX_BYTES]; what follows it, NULL when a quote is left open. */
static const char *csv_field(const char *p, char *out)
{
    size_t n = 0;
    if (*p != '"') {
        n = strcspn(p, ",");
        memcpy(out, p, n);
        out[n] = '\0';
        return p + n;
    }
    for (p++; *p && (*p != '"' || p[1] == '"'); p++) {
        p += *p == '"';
        out[n++] = *p;
    }
    out[n] = '\0';
    return *p == '"' && (p[1] == ',' || !p[1]) ? p + 1 : NULL;
}

static qd_status read_csv(table *t, const char *p, line *l)
{
    char field[LINE_MAX_BYTES];
    int column = 0, path = -1, label = -1;
    for (;; column++) {
        p = csv_field(p, field);
        if (!p)
            return bad(t, "a quote is left open");
        if (t->at == 1) {
            path = path < 0 && is_path_key(field) ? column : path;
            label = label < 0 && is_label_key(field) ? column : label;
        }
        if (column == t->path_column)
            memcpy(l->path, field, strlen(field) + 1);
        if (column == t->label_column && *field) {
            memcpy(l->label, field, strlen(field) + 1);
            l->labelled = true;
        }
        if (!*p++)
            break;
    }
    if (path >= 0) { /* a line of headings */
        t->path_column = path;
        t->label_column = label;
        *l = (line){ 0 };
        t->headed = true;
    }
    return QD_OK;
}

/* --- text --- */

static qd_status read_text(const char *p, line *l)
{
    size_t n = strlen(p);
    const char *last = p + n;
    while (last > p && last[-1] != ' ' && last[-1] != '\t')
        last--;
    /* Only a number is a label here: names of files may have spaces. */
    if (last > p && is_number(last)) {
        memcpy(l->label, last, strlen(last) + 1);
        l->labelled = true;
        n = (size_t)(last - p);
        while (n && (p[n - 1] == ' ' || p[n - 1] == '\t'))
            n--;
    }
    memcpy(l->path, p, n);
    l->path[n] = '\0';
    return QD_OK;
}

/* --- the whole --- */

static kind kind_of(const char *path)
{
    const size_t n = strlen(path);
    if ((n > 6 && strcmp(path + n - 6, ".jsonl") == 0) || (n > 7 && strcmp(path + n - 7, ".ndjson") == 0))
        return JSONL;
    return n > 4 && strcmp(path + n - 4, ".csv") == 0 ? CSV : TEXT;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names of labels to numbers, in their order by bytes. label_text[count] keeps what it has. */
static qd_status number_names(qd_list *l, char **label_text, qd_err *err)
{
    const size_t n = (size_t)l->count;
    char **sorted = qd_alloc(n * sizeof *sorted), **names = NULL;
    int classes = 0;
    qd_status st = sorted ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for the names of classes");
    if (!st) {
        memcpy(sorted, label_text, n * sizeof *sorted);
        qsort(sorted, n, sizeof *sorted, by_text);
        size_t kept = 0;
        for (size_t k = 0; k < n; k++)
            if (!kept || strcmp(sorted[k], sorted[kept - 1]) != 0)
                sorted[kept++] = sorted[k];
        if (kept > QD_MAX_CLASSES)
            st = qd_fail(err, QD_E_LIMIT, "%zu names of classes; %d are the most", kept, QD_MAX_CLASSES);
        names = st ? NULL : qd_calloc(kept, sizeof *names);
        for (; names && (size_t)classes < kept; classes++)
            if (!(names[classes] = qd_strdup(sorted[classes])))
                break;
        if (!st && (!names || (size_t)classes < kept))
            st = qd_fail(err, QD_E_NOMEM, "no memory for the names of classes");
        for (size_t k = 0; !st && k < n; k++) {
            char **at = bsearch(&label_text[k], sorted, kept, sizeof *sorted, by_text);
            l->label[k] = (int32_t)(at - sorted);
        }
    }
    qd_free(sorted);
    if (st) {
        qd_classes_free(names, classes);
        return st;
    }
    l->class_name = names;
    l->classes = classes;
    return QD_OK;
}

static qd_status number_labels(qd_list *l, char **label_text, const char *file, qd_err *err)
{
    bool numbers = true;
    l->label = qd_calloc((size_t)l->count, sizeof *l->label);
    if (!l->label)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld labels", (long long)l->count);
    for (int64_t k = 0; k < l->count; k++)
        numbers &= is_number(label_text[k]);
    if (!numbers)
        return number_names(l, label_text, err);
    for (int64_t k = 0; k < l->count; k++) {
        const long v = strtol(label_text[k], NULL, 10);
        if (v >= QD_MAX_CLASSES)
            return qd_fail(err, QD_E_LIMIT, "'%.150s': '%.100s' has label %ld; %d is the most", file, l->path[k], v,
                           QD_MAX_CLASSES - 1);
        l->label[k] = (int32_t)v;
        l->classes = v >= l->classes ? (int)v + 1 : l->classes;
    }
    return QD_OK;
}

static qd_status add(qd_files *paths, qd_files *labels, const table *t, const line *l, int64_t max_count)
{
    if (paths->count >= max_count)
        return qd_fail(t->err, QD_E_LIMIT, "'%.150s' lists more than %lld pictures", t->file, (long long)max_count);
    if (!*l->path)
        return bad(t, "it names no picture");
    const qd_status st = qd_files_add(paths, qd_strdup(l->path), t->err);
    if (st || !l->labelled)
        return st;
    if (labels->count + 1 != paths->count)
        return bad(t, "it has a label and lines before it have none");
    return qd_files_add(labels, qd_strdup(l->label), t->err);
}

qd_status qd_list_open(const char *path, int64_t max_count, qd_list *out, qd_err *err)
{
    const kind what = kind_of(path);
    table t = { .file = qd_file_name(path), .label_column = 1, .err = err };
    qd_files paths = { 0 }, labels = { 0 };
    qd_list l = { 0 };
    line *parts = NULL;
    char *text = NULL;
    size_t size;
    qd_status st = qd_fs_take(path, LIST_MAX_BYTES, &text, &size, err);
    if (st)
        return st;
    if (memchr(text, '\0', size))
        st = qd_fail(err, QD_E_FORMAT, "'%.150s' is no text", t.file);
    parts = qd_alloc(sizeof *parts);
    if (!st && !parts)
        st = qd_fail(err, QD_E_NOMEM, "no memory for a list");
    for (char *p = text; !st && *p;) {
        char *end = p + strcspn(p, "\n"), *next = *end ? end + 1 : end;
        t.at++;
        while (end > p && (end[-1] == '\r' || end[-1] == ' '))
            end--;
        *end = '\0';
        *parts = (line){ 0 };
        t.headed = false;
        if (end - p >= LINE_MAX_BYTES)
            st = bad(&t, "it is longer than 4095 bytes");
        else if (*p)
            st = what == JSONL ? read_json(&t, p, parts) : what == CSV ? read_csv(&t, p, parts) : read_text(p, parts);
        if (!st && *p && !t.headed)
            st = add(&paths, &labels, &t, parts, max_count);
        p = next;
    }
    if (!st && paths.count == 0)
        st = qd_fail(err, QD_E_FORMAT, "'%.150s' lists no picture", t.file);
    if (!st && labels.count && labels.count != paths.count)
        st = qd_fail(err, QD_E_FORMAT, "'%.150s' has labels for %lld of %lld pictures", t.file, (long long)labels.count,
                     (long long)paths.count);
    if (!st) {
        l = (qd_list){ .count = paths.count, .path = paths.path };
        paths = (qd_files){ 0 };
        if (labels.count)
            st = number_labels(&l, labels.path, t.file, err);
    }
    qd_free(text);
    qd_free(parts);
    qd_files_clear(&paths);
    qd_files_clear(&labels);
    if (st)
        qd_list_clear(&l);
    else
        *out = l;
    return st;
}

void qd_list_clear(qd_list *l)
{
    for (int64_t k = 0; k < l->count; k++)
        qd_free(l->path[k]);
    qd_free(l->path);
    qd_free(l->label);
    qd_classes_free(l->class_name, l->classes);
    *l = (qd_list){ 0 };
}

/* --- numbers of pictures --- */

static qd_status read_packed(const qd_tensor *bytes, const char *file, int width, qd_budget *budget, qd_tensor *out,
                             qd_err *err)
{
    const int64_t size = qd_tensor_count(bytes);
    if (size % width)
        return qd_fail(err, QD_E_FORMAT, "'%.150s' has %lld bytes, no whole number of values of %d", file,
                       (long long)size, width);
    const qd_shape shape = QD_SHAPE(size / width);
    const qd_status st = qd_tensor_init(out, QD_I64, &shape, budget, err);
    for (int64_t k = 0; !st && k < size / width; k++) {
        const uint8_t *p = (const uint8_t *)bytes->data + k * width;
        int64_t v = 0;
        for (int b = 0; b < width; b++)
            v |= (int64_t)p[b] << 8 * b;
        ((int64_t *)out->data)[k] = v;
    }
    return st;
}

static qd_status read_lines(const qd_tensor *bytes, const char *file, qd_budget *budget, qd_tensor *out, qd_err *err)
{
    const char *text = bytes->data;
    const int64_t size = qd_tensor_count(bytes);
    int64_t lines = 1, n = 0;
    for (int64_t k = 0; k < size; k++)
        lines += text[k] == '\n';
    const qd_shape shape = QD_SHAPE(lines);
    qd_status st = qd_tensor_init(out, QD_I64, &shape, budget, err);
    if (st)
        return st;
    int64_t at = 0;
    for (int64_t k = 0; k < lines && !st; k++) {
        int64_t v = 0;
        int digits = 0;
        while (at < size && text[at] == ' ')
            at++;
        for (; at < size && text[at] >= '0' && text[at] <= '9' && digits < 18; at++, digits++)
            v = 10 * v + (text[at] - '0');
        while (at < size && (text[at] == ' ' || text[at] == '\r'))
            at++;
        if (at < size && text[at] != '\n')
            st = qd_fail(err, QD_E_FORMAT, "'%.150s', line %lld: expected one whole number", file, (long long)(k + 1));
        at++;
        if (digits)
            ((int64_t *)out->data)[n++] = v;
    }
    out->shape = QD_SHAPE(n);
    if (st)
        qd_tensor_clear(out);
    return st;
}

static bool ends_with(const char *path, const char *end)
{
    const size_t n = strlen(path), m = strlen(end);
    return n >= m && strcmp(path + n - m, end) == 0;
}

qd_status qd_indices_take(const char *path, int64_t below, int64_t max_count, qd_budget *budget, qd_tensor *out,
                          qd_err *err)
{
    const char *file = qd_file_name(path);
    const uint64_t most = max_count > (1 << 28) ? (uint64_t)8 << 28 : (uint64_t)max_count * 20 + 4096;
    qd_tensor bytes = { 0 }, array = { 0 }, t = { 0 };
    qd_status st = qd_source_take(path, most, budget, &bytes, err);
    if (st)
        return st;
    if (ends_with(path, ".npy")) {
        st = qd_npy_parse(&bytes, file, &array, err);
        if (!st && array.dtype != QD_I64 && array.dtype != QD_I32 && array.dtype != QD_U8 && array.dtype != QD_I8)
            st = qd_fail(err, QD_E_FORMAT, "'%.150s' holds %s, not whole numbers of 1, 4 or 8 bytes", file,
                         qd_dtype_name(array.dtype));
        if (!st)
            st = qd_tensor_cast(&t, &array, QD_I64, budget, err);
        if (!st)
            t.shape = QD_SHAPE(qd_tensor_count(&t));
    } else if (ends_with(path, ".u8") || ends_with(path, ".u16") || ends_with(path, ".u32")) {
        st = read_packed(&bytes, file, ends_with(path, ".u8") ? 1 : ends_with(path, ".u16") ? 2 : 4, budget, &t, err);
    } else {
        st = read_lines(&bytes, file, budget, &t, err);
    }
    const int64_t n = st ? 0 : qd_tensor_count(&t);
    if (!st && n > max_count)
        st = qd_fail(err, QD_E_LIMIT, "'%.150s' has %lld numbers; %lld are the most", file, (long long)n,
                     (long long)max_count);
    for (int64_t k = 0; !st && k < n; k++) {
        const int64_t v = ((const int64_t *)t.data)[k];
        if (v < 0 || (below && v >= below))
            st = qd_fail(err, QD_E_FORMAT, "'%.150s': number %lld is %lld; 0..%lld are there", file, (long long)k,
                         (long long)v, below ? (long long)below - 1 : (long long)INT64_MAX);
    }
    qd_tensor_clear(&bytes);
    qd_tensor_clear(&array);
    if (st) {
        qd_tensor_clear(&t);
        return st;
    }
    *out = t;
    return QD_OK;
}
