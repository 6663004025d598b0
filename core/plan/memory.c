/* memory.c - one arena for all activations: lifetimes, in-place results, places. */
#include <stdlib.h>
#include <string.h>

#include "plan/backend.h"

#define ALIGN ((size_t)64)

static int32_t root_of(const qd_plan *p, int32_t b)
{
    while (p->buffers[b].same_as >= 0)
        b = p->buffers[b].same_as;
    return b;
}

static void use_at(qd_plan *p, qd_value_id v, int step)
{
    if (v < 0 || p->values[v].buffer < 0)
        return;
    qd_buffer *b = &p->buffers[p->values[v].buffer];
    if (step < b->first)
        b->first = step;
    if (step > b->last)
        b->last = step;
}

/* Inputs are written before the first step, outputs read after the last. */
static void find_lifetimes(qd_plan *p)
{
    for (int b = 0; b < p->n_buffers; b++) {
        p->buffers[b].first = p->n_steps;
        p->buffers[b].last = -1;
        p->buffers[b].same_as = -1;
    }
    for (int k = 0; k < p->n_inputs; k++) {
        use_at(p, p->inputs[k], -1);
        if (p->inputs[k] >= 0 && p->values[p->inputs[k]].buffer >= 0)
            p->buffers[p->values[p->inputs[k]].buffer].first = -1;
    }
    for (int k = 0; k < p->n_steps; k++) {
        const qd_step *s = &p->steps[k];
        for (int j = 0; j < s->n_in; j++)
            use_at(p, s->in[j], k);
        use_at(p, s->out, k);
        if (s->scratch >= 0) {
            p->buffers[s->scratch].first = k;
            p->buffers[s->scratch].last = k;
        }
    }
    for (int k = 0; k < p->n_outputs; k++)
        use_at(p, p->outputs[k], p->n_steps);
    for (int k = 0; k < p->n_watches; k++)
        use_at(p, p->watches[k].value, p->watches[k].after);
}

/* The result takes over an input's buffer when that input dies in this step, is as large, and the step reads it only once. */
static void grant_inplace(qd_plan *p)
{
    for (int k = 0; k < p->n_steps; k++) {
        const qd_step *s = &p->steps[k];
        if (s->inplace < 0 || s->out < 0)
            continue;
        const qd_value *in = &p->values[s->in[s->inplace]], *out = &p->values[s->out];
        if (in->buffer < 0)
            continue;
        const int32_t from = root_of(p, in->buffer), to = root_of(p, out->buffer);
        qd_buffer *f = &p->buffers[from], *t = &p->buffers[to];
        if (from == to || f->last != k || t->first != k || f->bytes != t->bytes)
            continue;
        int reads = 0;
        for (int j = 0; j < s->n_in; j++)
            reads += p->values[s->in[j]].buffer >= 0 && root_of(p, p->values[s->in[j]].buffer) == from;
        if (reads != 1)
            continue;
        f->last = t->last;
        t->same_as = from;
    }
}

/* Larger first; among equals the one that lives earlier. */
static int by_size(const void *a, const void *b)
{
    const qd_buffer *x = *(qd_buffer *const *)a, *y = *(qd_buffer *const *)b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    if (x->first != y->first)
        return x->first < y->first ? -1 : 1;
    return x < y ? -1 : x > y;
}

static int by_offset(const void *a, const void *b)
{
    const qd_buffer *x = *(qd_buffer *const *)a, *y = *(qd_buffer *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static bool overlap_in_time(const qd_buffer *a, const qd_buffer *b)
{
    return a->first <= b->last && b->first <= a->last;
}

qd_status qd_plan_lay_memory(qd_plan *p, qd_err *err)
{
    qd_buffer **order = NULL, **busy = NULL;
    qd_status st = QD_OK;

    find_lifetimes(p);
    grant_inplace(p);

    order = qd_calloc((size_t)p->n_buffers + 1, sizeof(*order));
    busy = qd_calloc((size_t)p->n_buffers + 1, sizeof(*busy));
    if (!order || !busy) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to lay out %d buffers", p->n_buffers);
        goto out;
    }
    int n = 0;
    for (int b = 0; b < p->n_buffers; b++)
        if (p->buffers[b].same_as < 0 && p->buffers[b].last >= p->buffers[b].first)
            order[n++] = &p->buffers[b];
    qsort(order, (size_t)n, sizeof(*order), by_size);

    size_t end = 0;
    for (int k = 0; k < n; k++) {
        int n_busy = 0;
        for (int j = 0; j < k; j++)
            if (overlap_in_time(order[j], order[k]))
                busy[n_busy++] = order[j];
        qsort(busy, (size_t)n_busy, sizeof(*busy), by_offset);
        size_t at = 0;
        for (int j = 0; j < n_busy && busy[j]->offset < at + order[k]->bytes; j++) {
            const size_t after = (busy[j]->offset + busy[j]->bytes + ALIGN - 1) & ~(ALIGN - 1);
            if (after > at)
                at = after;
        }
        order[k]->offset = at;
        if (at + order[k]->bytes > end)
            end = at + order[k]->bytes;
    }
    p->arena_bytes = (end + ALIGN - 1) & ~(ALIGN - 1);
    for (int b = 0; b < p->n_buffers; b++)
        p->buffers[b].offset = p->buffers[root_of(p, b)].offset;
out:
    qd_free(order);
    qd_free(busy);
    return st;
}

qd_status qd_plan_check_memory(const qd_plan *p, qd_err *err)
{
    for (int a = 0; a < p->n_buffers; a++) {
        const qd_buffer *x = &p->buffers[a];
        if (x->same_as >= 0 || x->last < x->first)
            continue;
        if (x->offset % ALIGN || x->offset + x->bytes > p->arena_bytes)
            return qd_fail(err, QD_E_INTERNAL, "buffer %d at %zu of %zu bytes leaves the arena of %zu", a, x->offset,
                           x->bytes, p->arena_bytes);
        for (int b = a + 1; b < p->n_buffers; b++) {
            const qd_buffer *y = &p->buffers[b];
            if (y->same_as >= 0 || !overlap_in_time(x, y))
                continue;
            if (x->offset < y->offset + y->bytes && y->offset < x->offset + x->bytes)
                return qd_fail(err, QD_E_INTERNAL, "buffers %d and %d share bytes during steps %d to %d", a, b,
                               x->first > y->first ? x->first : y->first, x->last < y->last ? x->last : y->last);
        }
    }
    /* Each buffer remembers who wrote it last; two values of one merged buffer must not be read across each other. */
    int32_t *owner = qd_alloc(((size_t)p->n_buffers + 1) * sizeof(*owner));
    if (!owner)
        return qd_fail(err, QD_E_NOMEM, "no memory to check %d buffers", p->n_buffers);
    qd_status st = QD_OK;
    for (int b = 0; b < p->n_buffers; b++)
        owner[b] = -1;
    for (int k = 0; k < p->n_inputs; k++)
        if (p->inputs[k] >= 0)
            owner[root_of(p, p->values[p->inputs[k]].buffer)] = p->values[p->inputs[k]].buffer;
    for (int k = 0; k < p->n_steps && !st; k++) {
        const qd_step *s = &p->steps[k];
        for (int j = 0; j < s->n_in && !st; j++) {
            const int32_t b = p->values[s->in[j]].buffer;
            if (b >= 0 && owner[root_of(p, b)] != b)
                st = qd_fail(err, QD_E_INTERNAL, "step %d (%s) reads input %d, whose buffer %d holds another value", k,
                             s->name, j, b);
        }
        if (s->out >= 0 && p->values[s->out].buffer >= 0)
            owner[root_of(p, p->values[s->out].buffer)] = p->values[s->out].buffer;
    }
    for (int k = 0; k < p->n_outputs && !st; k++) {
        const int32_t b = p->values[p->outputs[k]].buffer;
        if (b >= 0 && owner[root_of(p, b)] != b)
            st = qd_fail(err, QD_E_INTERNAL, "output %d was overwritten", k);
    }
    qd_free(owner);
    return st;
}
