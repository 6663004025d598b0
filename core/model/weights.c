/* weights.c - named tensors in order: what a weight file holds. */
#include "model/model_int.h"

#include <assert.h>

struct qd_weights {
    qd_names names;
    qd_tensor *tensor; // [names.count], room for `capacity`
    int capacity;
};

qd_status qd_weights_new(qd_weights **out, qd_err *err)
{
    qd_weights *w = qd_calloc(1, sizeof(*w));

    if (!w)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a set of weights");
    *out = w;
    return QD_OK;
}

void qd_weights_free(qd_weights *w)
{
    if (!w)
        return;
    for (int k = 0; k < w->names.count; k++)
        qd_tensor_clear(&w->tensor[k]);
    qd_free(w->tensor);
    qd_names_clear(&w->names);
    qd_free(w);
}

qd_status qd_weights_add(qd_weights *w, const char *name, const qd_tensor *t, qd_err *err)
{
    qd_status st;

    if (qd_names_find(&w->names, name) >= 0)
        return qd_fail(err, QD_E_CONFLICT, "there is already a tensor named '%.200s'", name);
    if (w->names.count == w->capacity) {
        const int capacity = w->capacity ? w->capacity * 2 : 32;
        qd_tensor *grown = qd_realloc(w->tensor, (size_t)capacity * sizeof(*grown));

        if (!grown)
            return qd_fail(err, QD_E_NOMEM, "out of memory for %d tensors", capacity);
        w->tensor = grown;
        w->capacity = capacity;
    }
    st = qd_names_add(&w->names, name, err);
    if (st)
        return st;
    qd_tensor_share(&w->tensor[w->names.count - 1], t);
    return QD_OK;
}

const qd_tensor *qd_weights_find(const qd_weights *w, const char *name)
{
    const int k = qd_names_find(&w->names, name);
    return k < 0 ? NULL : &w->tensor[k];
}

int qd_weights_count(const qd_weights *w)
{
    return w->names.count;
}

const char *qd_weights_name(const qd_weights *w, int k)
{
    assert(k >= 0 && k < w->names.count);
    return w->names.name[k];
}

const qd_tensor *qd_weights_at(const qd_weights *w, int k)
{
    assert(k >= 0 && k < w->names.count);
    return &w->tensor[k];
}
