/* meta.c - text that travels with a model: an ordered map of strings. */
#include "model/model_int.h"

#include <assert.h>

struct qd_meta {
    qd_names keys;
    char **value; // [keys.count], room for `capacity`
    int capacity;
};

qd_status qd_meta_new(qd_meta **out, qd_err *err)
{
    qd_meta *m = qd_calloc(1, sizeof(*m));

    if (!m)
        return qd_fail(err, QD_E_NOMEM, "out of memory for metadata");
    *out = m;
    return QD_OK;
}

void qd_meta_free(qd_meta *m)
{
    if (!m)
        return;
    for (int k = 0; k < m->keys.count; k++)
        qd_free(m->value[k]);
    qd_free(m->value);
    qd_names_clear(&m->keys);
    qd_free(m);
}

qd_status qd_meta_set(qd_meta *m, const char *key, const char *value, qd_err *err)
{
    const int k = qd_names_find(&m->keys, key);
    char *copy = NULL;
    qd_status st = QD_OK;

    copy = qd_strdup(value);
    if (!copy)
        return qd_fail(err, QD_E_NOMEM, "out of memory for the value of '%.80s'", key);
    if (k >= 0) {
        qd_free(m->value[k]);
        m->value[k] = copy;
        return QD_OK;
    }
    if (m->keys.count == m->capacity) {
        const int capacity = m->capacity ? m->capacity * 2 : 8;
        char **grown = qd_realloc(m->value, (size_t)capacity * sizeof(*grown));

        if (!grown) {
            st = qd_fail(err, QD_E_NOMEM, "out of memory for %d metadata entries", capacity);
            goto out;
        }
        m->value = grown;
        m->capacity = capacity;
    }
    st = qd_names_add(&m->keys, key, err);
    if (st)
        goto out;
    m->value[m->keys.count - 1] = copy;
    copy = NULL;
out:
    qd_free(copy);
    return st;
}

qd_status qd_meta_copy(qd_meta *dst, const qd_meta *src, qd_err *err)
{
    for (int k = 0; k < src->keys.count; k++) {
        qd_status st = qd_meta_set(dst, src->keys.name[k], src->value[k], err);
        if (st)
            return st;
    }
    return QD_OK;
}

const char *qd_meta_find(const qd_meta *m, const char *key)
{
    const int k = qd_names_find(&m->keys, key);
    return k < 0 ? NULL : m->value[k];
}

int qd_meta_count(const qd_meta *m)
{
    return m->keys.count;
}

void qd_meta_at(const qd_meta *m, int k, const char **key, const char **value)
{
    assert(k >= 0 && k < m->keys.count);
    *key = m->keys.name[k];
    *value = m->value[k];
}

void qd_meta_swap(qd_meta *a, qd_meta *b)
{
    const qd_meta t = *a;
    *a = *b;
    *b = t;
}
