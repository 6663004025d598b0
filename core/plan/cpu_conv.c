/* cpu_conv.c - float convolutions and linears as oneDNN convolutions; what integer ones share with them. */
#include <string.h>

#include "plan/cpu_steps.h"

/* The slice of the weights that reads input channels [begin, begin + count). */
static void slice_weight(float *dst, const float *src, const qd_conv_shape *s, int64_t begin, int64_t count)
{
    const int64_t kernel = s->kh * s->kw;
    for (int64_t o = 0; o < s->o; o++)
        memcpy(dst + o * count * kernel, src + (o * s->c + begin) * kernel, (size_t)(count * kernel) * sizeof(float));
}

qd_status qd_add_conv_step(qd_plan *p, const qd_conv_step *c, qd_err *err)
{
    qd_conv_list *list;
    qd_status st = qd_conv_list_new(c->name, &list, err);
    if (st)
        return st;
    float *slice = NULL;
    int64_t begin = 0;
    const bool parts = c->n_sources > 1;
    if (parts) {
        const qd_conv_shape *s = &c->spec.shape;
        slice = qd_alloc((size_t)(s->o * s->c * s->kh * s->kw) * sizeof(float));
        if (!slice)
            st = qd_fail(err, QD_E_NOMEM, "no memory to split the weights of '%s'", c->name);
    }
    for (int k = 0; k < c->n_sources && !st; k++) {
        qd_conv_spec spec = c->spec;
        const bool last = k == c->n_sources - 1;
        spec.name = c->name;
        spec.threads = qd_threads_for(p, (double)c->macs);
        if (parts) {
            slice_weight(slice, c->spec.weight, &c->spec.shape, begin, c->channels[k]);
            spec.weight = slice;
            spec.shape.c = c->channels[k];
        }
        spec.sum = k > 0 || c->residual >= 0;
        spec.bias = k == 0 ? c->spec.bias : NULL;
        spec.act = last ? c->spec.act : QD_ACT_NONE;
        st = qd_conv_list_add(p, list, &spec, k, err);
        begin += c->channels[k];
    }
    qd_free(slice);
    if (st) {
        qd_conv_list_free(list);
        return st;
    }
    return qd_add_conv_list_step(p, c, list, err);
}

/* --- steps of several convolutions --- */

qd_status qd_conv_list_new(const char *name, qd_conv_list **out, qd_err *err)
{
    *out = qd_calloc(1, sizeof(**out));
    return *out ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for the step '%s'", name);
}

void qd_conv_list_free(void *state)
{
    qd_conv_list *list = state;
    for (int k = 0; k < list->n; k++)
        qd_conv_free(list->item[k].conv);
    qd_free(list->item);
    qd_free(list);
}

qd_status qd_conv_list_add(qd_plan *p, qd_conv_list *list, const qd_conv_spec *spec, int source, qd_err *err)
{
    if (list->n == list->room) {
        const int room = list->room ? list->room * 2 : 4;
        qd_conv_item *bigger = qd_realloc(list->item, (size_t)room * sizeof(*bigger));
        if (!bigger)
            return qd_fail(err, QD_E_NOMEM, "no memory for the step '%s'", spec->name);
        list->item = bigger;
        list->room = room;
    }
    qd_conv_item *item = &list->item[list->n];
    *item = (qd_conv_item){ .source = source };
    qd_status st = qd_conv_new(p, spec, &item->conv, err);
    if (!st)
        list->n++;
    return st;
}

void qd_conv_list_slice(qd_conv_list *list, const qd_conv_spec *spec, int64_t begin, int64_t channels)
{
    const qd_conv_shape *s = &spec->shape;
    qd_conv_item *item = &list->item[list->n - 1];
    item->begin = begin;
    item->count = s->c;
    item->channels = channels;
    item->pixels = s->n * s->h * s->w;
    const size_t bytes = (size_t)(item->pixels * item->count);
    if (bytes > list->slice_bytes)
        list->slice_bytes = bytes;
}

static void take_slice(uint8_t *dst, const uint8_t *src, const qd_conv_item *item)
{
    for (int64_t k = 0; k < item->pixels; k++)
        memcpy(dst + k * item->count, src + k * item->channels + item->begin, (size_t)item->count);
}

static qd_status bind(qd_plan *p, qd_step *s, qd_err *err)
{
    qd_conv_list *list = s->state;
    qd_status st = QD_OK;
    list->slice = list->slice_bytes ? (uint8_t *)qd_plan_scratch(p, s) + list->slice_offset : NULL;
    for (int k = 0; k < list->n && !st; k++) {
        const qd_conv_item *item = &list->item[k];
        st = qd_conv_bind(item->conv, item->count ? (void *)list->slice : qd_plan_data(p, s->in[item->source]),
                          qd_plan_data(p, s->out), qd_plan_scratch(p, s), err);
    }
    list->copy_from = list->residual ? qd_plan_data(p, s->in[list->residual]) : NULL;
    list->copy_to = qd_plan_data(p, s->out);
    list->copy_bytes = qd_value_bytes(&p->values[s->out]);
    return st;
}

static qd_status run(qd_plan *p, qd_step *s, qd_err *err)
{
    qd_conv_list *list = s->state;
    qd_status st = QD_OK;
    if (list->copy_from && list->copy_from != list->copy_to)
        memcpy(list->copy_to, list->copy_from, list->copy_bytes);
    for (int k = 0; k < list->n && !st; k++) {
        const qd_conv_item *item = &list->item[k];
        if (item->count)
            take_slice(list->slice, qd_plan_data(p, s->in[item->source]), item);
        st = qd_conv_run(p, item->conv, err);
    }
    return st;
}

qd_status qd_add_conv_list_step(qd_plan *p, const qd_conv_step *c, qd_conv_list *list, qd_err *err)
{
    qd_step *s;
    size_t scratch = 0;
    qd_status st = qd_plan_add_step(p, c->name, c->kind, c->out, &s, err);
    if (st) {
        qd_conv_list_free(list);
        return st;
    }
    s->state = list;
    s->free = qd_conv_list_free;
    s->bind = bind;
    s->run = run;
    s->macs = c->macs;
    s->impl = qd_conv_impl(list->item[0].conv);
    s->integer = c->spec.codes;
    s->threads = qd_conv_threads(list->item[0].conv);
    for (int k = 0; k < list->n; k++)
        s->weight_bytes += qd_conv_weight_bytes(list->item[k].conv);
    for (int k = 0; k < c->n_sources; k++)
        qd_step_reads(s, c->source[k]);
    if (c->residual >= 0) {
        list->residual = s->n_in;
        s->inplace = s->n_in;
        qd_step_reads(s, c->residual);
    }
    for (int k = 0; k < list->n; k++)
        if (qd_conv_scratch_bytes(list->item[k].conv) > scratch)
            scratch = qd_conv_scratch_bytes(list->item[k].conv);
    list->slice_offset = (scratch + 63) / 64 * 64;
    if (list->slice_bytes)
        scratch = list->slice_offset + list->slice_bytes;
    return scratch ? qd_plan_add_scratch(p, s, scratch, err) : QD_OK;
}
