/* checkpoint.c - the state of a training run in one safetensors file, written whole or not at all. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nn/train_int.h"

#define FORMAT "quantd-checkpoint-1"

static qd_status describe(const qd_checkpoint *c, qd_meta *meta, qd_err *err)
{
    char step[32], seed[32];
    snprintf(step, sizeof step, "%" PRId64, c->step);
    snprintf(seed, sizeof seed, "%" PRIu64, c->seed);
    qd_status st = qd_meta_set(meta, "format", FORMAT, err);
    if (!st)
        st = qd_meta_set(meta, "optimizer", c->optimizer, err);
    if (!st)
        st = qd_meta_set(meta, "seed", seed, err);
    return st ? st : qd_meta_set(meta, "step", step, err);
}

qd_status qd_checkpoint_save(const qd_checkpoint *c, const char *path, qd_err *err)
{
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    qd_status st = qd_weights_new(&w, err);
    if (!st)
        st = qd_meta_new(&meta, err);
    if (!st)
        st = describe(c, meta, err);
    for (int k = 0; k < c->n && !st; k++) {
        qd_tensor t = { 0 };
        st = qd_tensor_wrap(&t, QD_F32, &c->kept[k].shape, c->kept[k].data, NULL, NULL, err);
        if (!st)
            st = qd_weights_add(w, c->kept[k].name, &t, err);
        qd_tensor_clear(&t);
    }
    if (!st)
        st = qd_safetensors_save(path, w, meta, NULL, err);
    qd_meta_free(meta);
    qd_weights_free(w);
    return st;
}

/* A whole number >= 0 that fills its text. */
static qd_status number_of(const qd_meta *meta, const char *key, uint64_t most, uint64_t *out, qd_err *err)
{
    const char *text = qd_meta_find(meta, key);
    char *end = NULL;
    errno = 0;
    const uint64_t v = text && text[0] >= '0' && text[0] <= '9' ? strtoull(text, &end, 10) : 0;
    if (!end || *end || errno || v > most)
        return qd_fail(err, QD_E_FORMAT, "checkpoint: %s is '%.40s', must be a whole number up to %" PRIu64, key,
                       text ? text : "missing", most);
    *out = v;
    return QD_OK;
}

static qd_status check_meta(const qd_checkpoint *c, const qd_meta *meta, uint64_t *step, qd_err *err)
{
    uint64_t seed = 0;
    const char *format = qd_meta_find(meta, "format"), *optimizer = qd_meta_find(meta, "optimizer");
    if (!format || strcmp(format, FORMAT) != 0)
        return qd_fail(err, QD_E_FORMAT, "not a checkpoint: format is '%.40s', must be '" FORMAT "'",
                       format ? format : "missing");
    if (!optimizer || strcmp(optimizer, c->optimizer) != 0)
        return qd_fail(err, QD_E_CONFLICT, "the checkpoint was made with the optimizer '%.40s', this run has '%s'",
                       optimizer ? optimizer : "missing", c->optimizer);
    qd_status st = number_of(meta, "seed", UINT64_MAX, &seed, err);
    if (!st)
        st = number_of(meta, "step", INT64_MAX, step, err);
    if (!st && seed != c->seed)
        st = qd_fail(err, QD_E_CONFLICT, "the checkpoint was made with the seed %" PRIu64 ", this run has %" PRIu64,
                     seed, c->seed);
    return st;
}

qd_status qd_checkpoint_load(qd_checkpoint *c, const char *path, qd_err *err)
{
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    uint64_t step = 0;
    qd_status st = qd_meta_new(&meta, err);
    if (!st)
        st = qd_safetensors_open(path, &w, meta, err);
    if (!st)
        st = check_meta(c, meta, &step, err);
    if (!st && qd_weights_count(w) != c->n)
        st = qd_fail(err, QD_E_CONFLICT, "the checkpoint has %d tensors, this run has %d", qd_weights_count(w), c->n);
    for (int k = 0; k < c->n && !st; k++) {
        const qd_tensor *t = qd_weights_find(w, c->kept[k].name);
        if (!t || t->dtype != QD_F32 || !qd_shape_equal(&t->shape, &c->kept[k].shape))
            st = qd_fail(err, QD_E_CONFLICT, "the checkpoint has no tensor '%s' of this run's shape", c->kept[k].name);
    }
    if (!st) {
        for (int k = 0; k < c->n; k++) {
            const qd_tensor *t = qd_weights_find(w, c->kept[k].name);
            memcpy(c->kept[k].data, t->data, qd_tensor_bytes(t));
        }
        c->step = (int64_t)step;
    }
    qd_weights_free(w);
    qd_meta_free(meta);
    return st;
}
