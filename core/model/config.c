/* config.c - a JSON object read with typed getters, and the one way any JSON text enters this room. */
#include "model/model_int.h"

#include <assert.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define CONFIG_MAX_BYTES (8u << 20)
#define CONFIG_MAX_DEPTH 16
#define CONFIG_MAX_VALUES 1000000u /* index files of sharded sets have one for each tensor */

struct qd_config {
    char *origin;
    char *text; /* canonical */
    json_t *root;
    const char **key; // [count] lent by root, in the file's order
    int count;
};

/* --- the door --- */

/* Brackets, commas and colons outside strings, counted in one pass that allocates nothing. */
static qd_status json_measure(const char *text, size_t size, const char *origin, int max_depth, size_t max_values,
                              qd_err *err)
{
    size_t values = 1;
    int depth = 0;
    bool quoted = false;

    for (size_t k = 0; k < size; k++) {
        const char c = text[k];

        if (quoted) {
            if (c == '\\')
                k++;
            else if (c == '"')
                quoted = false;
            continue;
        }
        if (c == '"') {
            quoted = true;
        } else if (c == '{' || c == '[') {
            values++;
            if (++depth > max_depth)
                return qd_fail(err, QD_E_LIMIT, "%s: nested deeper than %d levels at byte %zu", origin, max_depth, k);
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == ',' && ++values > max_values) {
            return qd_fail(err, QD_E_LIMIT, "%s: more than %zu values", origin, max_values);
        }
    }
    return QD_OK;
}

qd_status qd_json_load(const char *text, size_t size, const char *origin, int max_depth, size_t max_values,
                       json_t **out, qd_err *err)
{
    json_error_t je;
    json_t *root;
    qd_status st = json_measure(text, size, origin, max_depth, max_values, err);

    if (st)
        return st;
    root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &je);
    if (!root) {
        if (json_error_code(&je) == json_error_out_of_memory)
            return qd_fail(err, QD_E_NOMEM, "%s: out of memory", origin);
        return qd_fail(err, QD_E_FORMAT, "%s: not JSON: %s (line %d, byte %d)", origin, je.text, je.line, je.position);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return qd_fail(err, QD_E_FORMAT, "%s: the text is JSON but not an object", origin);
    }
    *out = root;
    return QD_OK;
}

/* --- canonical text: keys sorted, no spaces, numbers in their shortest exact form --- */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Depth is bounded by qd_json_load, so the recursion is too. */
static qd_status canonical(const json_t *v, qd_buf *b, qd_err *err)
{
    qd_status st = QD_OK;
    const char **key = NULL;

    switch (json_typeof(v)) {
    case JSON_OBJECT: {
        const size_t n = json_object_size(v);
        const char *name;
        json_t *item;
        size_t k = 0;

        key = qd_alloc(n * sizeof(*key));
        if (!key)
            return qd_fail(err, QD_E_NOMEM, "out of memory for %zu keys", n);
        json_object_foreach((json_t *)(uintptr_t)v, name, item) key[k++] = name;
        qsort(key, n, sizeof(*key), by_name);
        qd_buf_add(b, "{", 1);
        for (k = 0; k < n; k++) {
            if (k)
                qd_buf_add(b, ",", 1);
            qd_buf_add_json_string(b, key[k]);
            qd_buf_add(b, ":", 1);
            st = canonical(json_object_get(v, key[k]), b, err);
            if (st)
                goto out;
        }
        qd_buf_add(b, "}", 1);
        break;
    }
    case JSON_ARRAY:
        qd_buf_add(b, "[", 1);
        for (size_t k = 0; k < json_array_size(v); k++) {
            if (k)
                qd_buf_add(b, ",", 1);
            st = canonical(json_array_get(v, k), b, err);
            if (st)
                goto out;
        }
        qd_buf_add(b, "]", 1);
        break;
    case JSON_STRING:
        qd_buf_add_json_string(b, json_string_value(v));
        break;
    case JSON_INTEGER:
        qd_buf_addf(b, "%lld", (long long)json_integer_value(v));
        break;
    case JSON_REAL:
        qd_buf_add_json_number(b, json_real_value(v) + 0.0); /* -0.0 would come back as the integer 0 */
        break;
    case JSON_TRUE:
        qd_buf_adds(b, "true");
        break;
    case JSON_FALSE:
        qd_buf_adds(b, "false");
        break;
    case JSON_NULL:
        qd_buf_adds(b, "null");
        break;
    }
    if (b->failed)
        st = qd_fail(err, QD_E_NOMEM, "out of memory for canonical JSON");
out:
    qd_free(key);
    return st;
}

qd_status qd_config_parse(const char *text, size_t size, const char *origin, qd_config **out, qd_err *err)
{
    qd_config *c = NULL;
    qd_buf b;
    const char *name;
    json_t *item;
    qd_status st;

    qd_buf_init(&b, 0);
    if (size > CONFIG_MAX_BYTES)
        return qd_fail(err, QD_E_LIMIT, "%s: %zu bytes, the limit is %u", origin, size, CONFIG_MAX_BYTES);
    c = qd_calloc(1, sizeof(*c));
    if (c)
        c->origin = qd_strdup(origin);
    if (!c || !c->origin) {
        st = qd_fail(err, QD_E_NOMEM, "%s: out of memory", origin);
        goto out;
    }
    st = qd_json_load(text, size, origin, CONFIG_MAX_DEPTH, CONFIG_MAX_VALUES, &c->root, err);
    if (st)
        goto out;
    st = canonical(c->root, &b, err);
    if (st)
        goto out;
    c->text = qd_buf_take(&b, NULL);
    c->key = qd_alloc(json_object_size(c->root) * sizeof(*c->key));
    if (!c->text || !c->key) {
        st = qd_fail(err, QD_E_NOMEM, "%s: out of memory", origin);
        goto out;
    }
    json_object_foreach(c->root, name, item) c->key[c->count++] = name;
    *out = c;
    c = NULL;
out:
    qd_buf_clear(&b);
    qd_config_free(c);
    return st;
}

qd_status qd_config_with_ints(const qd_config *c, const char *key, const int64_t *values, int n, qd_config **out,
                              qd_err *err)
{
    qd_buf b;
    json_t *root = json_copy(c->root), *list = json_array();
    qd_status st = QD_E_NOMEM;

    qd_buf_init(&b, 0);
    for (int k = 0; k < n; k++)
        json_array_append_new(list, json_integer((json_int_t)values[k]));
    if (!root || json_array_size(list) != (size_t)n || json_object_set(root, key, list))
        qd_fail(err, st, "%s: out of memory", c->origin);
    else
        st = canonical(root, &b, err);
    if (!st)
        st = qd_config_parse(b.data, b.size, c->origin, out, err);
    json_decref(list);
    json_decref(root);
    qd_buf_clear(&b);
    return st;
}

void qd_config_free(qd_config *c)
{
    if (!c)
        return;
    json_decref(c->root);
    qd_free(c->key);
    qd_free(c->text);
    qd_free(c->origin);
    qd_free(c);
}

const char *qd_config_text(const qd_config *c)
{
    return c->text;
}

int qd_config_count(const qd_config *c)
{
    return c->count;
}

const char *qd_config_key(const qd_config *c, int k)
{
    assert(k >= 0 && k < c->count);
    return c->key[k];
}

/* --- getters --- */

/* NULL when absent or null. */
static const json_t *get(const qd_config *c, const char *key)
{
    const json_t *v = json_object_get(c->root, key);
    return v && !json_is_null(v) ? v : NULL;
}

bool qd_config_has(const qd_config *c, const char *key)
{
    return get(c, key) != NULL;
}

/* "config.json: 'groups' is "many", want a whole number". */
static qd_status wrong(const qd_config *c, const char *key, const json_t *v, const char *want, qd_err *err)
{
    qd_buf b;
    qd_status st;

    qd_buf_init(&b, 0);
    if (canonical(v, &b, NULL) == QD_OK)
        st = qd_fail(err, QD_E_FORMAT, "%s: '%.80s' is %.120s, want %s", c->origin, key, b.data, want);
    else
        st = qd_fail(err, QD_E_FORMAT, "%s: '%.80s' must be %s", c->origin, key, want);
    qd_buf_clear(&b);
    return st;
}

/* A whole real counts as an integer: other writers print 1.0 where they mean 1. */
static bool as_int(const json_t *v, int64_t *out)
{
    if (json_is_integer(v)) {
        *out = json_integer_value(v);
        return true;
    }
    if (json_is_real(v)) {
        const double d = json_real_value(v);

        if (d != floor(d) || fabs(d) > 9007199254740992.0) /* 2^53: beyond it a double is no longer one integer */
            return false;
        *out = (int64_t)d;
        return true;
    }
    return false;
}

static qd_status read_int(const qd_config *c, const char *key, const json_t *v, int64_t min, int64_t max, int64_t *out,
                          qd_err *err)
{
    int64_t i;

    if (!as_int(v, &i))
        return wrong(c, key, v, "a whole number", err);
    if (i < min || i > max) {
        char want[64];

        snprintf(want, sizeof(want), "%lld..%lld", (long long)min, (long long)max);
        return wrong(c, key, v, want, err);
    }
    *out = i;
    return QD_OK;
}

qd_status qd_config_int(const qd_config *c, const char *key, int64_t min, int64_t max, int64_t *out, qd_err *err)
{
    const json_t *v = get(c, key);
    return v ? read_int(c, key, v, min, max, out, err) : QD_OK;
}

qd_status qd_config_number(const qd_config *c, const char *key, double *out, qd_err *err)
{
    const json_t *v = get(c, key);

    if (!v)
        return QD_OK;
    if (!json_is_number(v))
        return wrong(c, key, v, "a number", err);
    *out = json_number_value(v);
    return QD_OK;
}

qd_status qd_config_bool(const qd_config *c, const char *key, bool *out, qd_err *err)
{
    const json_t *v = get(c, key);

    if (!v)
        return QD_OK;
    if (!json_is_boolean(v))
        return wrong(c, key, v, "true or false", err);
    *out = json_is_true(v);
    return QD_OK;
}

qd_status qd_config_string(const qd_config *c, const char *key, const char **out, qd_err *err)
{
    const json_t *v = get(c, key);

    if (!v)
        return QD_OK;
    if (!json_is_string(v))
        return wrong(c, key, v, "a string", err);
    *out = json_string_value(v);
    return QD_OK;
}

/* The k-th entry of an array, or the value itself as an array of one. */
static const json_t *entry(const json_t *v, size_t k)
{
    return json_is_array(v) ? json_array_get(v, k) : v;
}

static qd_status array_size(const qd_config *c, const char *key, const json_t *v, int cap, int *n, qd_err *err)
{
    const size_t size = json_is_array(v) ? json_array_size(v) : 1;

    if (size > (size_t)cap)
        return qd_fail(err, QD_E_FORMAT, "%s: '%.80s' has %zu entries, at most %d are taken", c->origin, key, size,
                       cap);
    *n = (int)size;
    return QD_OK;
}

qd_status qd_config_ints(const qd_config *c, const char *key, int64_t min, int64_t max, int64_t *out, int cap, int *n,
                         qd_err *err)
{
    const json_t *v = get(c, key);
    int size = 0;
    int64_t i;
    qd_status st;

    if (!v)
        return QD_OK;
    st = array_size(c, key, v, cap, &size, err);
    for (int k = 0; !st && k < size; k++) /* all of them first: on failure `out` stays as it was */
        st = read_int(c, key, entry(v, (size_t)k), min, max, &i, err);
    if (st)
        return st;
    for (int k = 0; k < size; k++)
        as_int(entry(v, (size_t)k), &out[k]);
    *n = size;
    return QD_OK;
}

qd_status qd_config_numbers(const qd_config *c, const char *key, double *out, int cap, int *n, qd_err *err)
{
    const json_t *v = get(c, key);
    int size = 0;
    qd_status st;

    if (!v)
        return QD_OK;
    st = array_size(c, key, v, cap, &size, err);
    for (int k = 0; !st && k < size; k++)
        if (!json_is_number(entry(v, (size_t)k)))
            st = wrong(c, key, entry(v, (size_t)k), "a number", err);
    if (st)
        return st;
    for (int k = 0; k < size; k++)
        out[k] = json_number_value(entry(v, (size_t)k));
    *n = size;
    return QD_OK;
}

qd_status qd_config_strings(const qd_config *c, const char *key, const char **out, int cap, int *n, qd_err *err)
{
    const json_t *v = get(c, key);
    int size = 0;
    qd_status st;

    if (!v)
        return QD_OK;
    st = array_size(c, key, v, cap, &size, err);
    for (int k = 0; !st && k < size; k++)
        if (!json_is_string(entry(v, (size_t)k)))
            st = wrong(c, key, entry(v, (size_t)k), "a string", err);
    if (st)
        return st;
    for (int k = 0; k < size; k++)
        out[k] = json_string_value(entry(v, (size_t)k));
    *n = size;
    return QD_OK;
}

qd_status qd_config_string_map(const qd_config *c, const char *key, qd_meta *out, qd_err *err)
{
    json_t *map = json_object_get(c->root, key);
    qd_meta *m = NULL;
    const char *name;
    json_t *v;
    qd_status st;

    if (!json_is_object(map))
        return qd_fail(err, QD_E_FORMAT, "%s: '%.80s' must be an object of strings", c->origin, key);
    st = qd_meta_new(&m, err);
    if (st)
        goto out;
    json_object_foreach(map, name, v)
    {
        if (!json_is_string(v)) {
            st = wrong(c, name, v, "a string", err);
            goto out;
        }
        st = qd_meta_set(m, name, json_string_value(v), err);
        if (st)
            goto out;
    }
    qd_meta_swap(m, out);
out:
    qd_meta_free(m);
    return st;
}
