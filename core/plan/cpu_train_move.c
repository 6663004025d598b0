/* cpu_train_move.c - elements to other places: axes in another order, slices, and slices put back among zeros. */
#include <string.h>

#include "base/par.h"
#include "plan/cpu_train.h"

#define PIECE_ELEMENTS 8192
#define WORK_PER_ELEMENT 30.0

typedef struct move_state {
    qd_move_step m; /* of rank >= 1; neighbours that lie together are one axis */
    int64_t rows, rows_per_piece;
    const float *src;
    float *dst;
} move_state;

/* Where index i of an axis lies in `from`; -1 = nowhere, it is zero. */
static int64_t place(const qd_move_step *m, int axis, int64_t i)
{
    if (axis != m->axis)
        return i * m->stride[axis];
    if (i < m->begin || i >= m->end || (i - m->begin) % m->step)
        return -1;
    return (i - m->begin) / m->step * m->stride[axis];
}

static void move_row(const move_state *w, int64_t row)
{
    const qd_move_step *m = &w->m;
    const int last = m->rank - 1;
    const int64_t n = m->dim[last], stride = m->stride[last];
    float *dst = w->dst + row * n;
    int64_t at = m->offset, rest = row;
    for (int k = last - 1; k >= 0; k--) {
        const int64_t here = place(m, k, rest % m->dim[k]);
        if (here < 0) {
            memset(dst, 0, (size_t)n * sizeof(float));
            return;
        }
        at += here;
        rest /= m->dim[k];
    }
    const float *src = w->src + at;
    if (m->axis == last) {
        memset(dst, 0, (size_t)n * sizeof(float));
        for (int64_t i = m->begin; i < m->end; i += m->step, src += stride)
            dst[i] = *src;
    } else if (stride == 1) {
        memcpy(dst, src, (size_t)n * sizeof(float));
    } else {
        for (int64_t i = 0; i < n; i++)
            dst[i] = src[i * stride];
    }
}

static void move_piece(void *ctx, int64_t i)
{
    const move_state *w = ctx;
    const int64_t first = i * w->rows_per_piece;
    const int64_t end = first + w->rows_per_piece < w->rows ? first + w->rows_per_piece : w->rows;
    for (int64_t row = first; row < end; row++)
        move_row(w, row);
}

static qd_status run(qd_plan *p, qd_step *s, qd_err *err)
{
    move_state *w = s->state;
    w->src = qd_plan_data(p, w->m.from);
    w->dst = qd_plan_data(p, s->out);
    qd_par_for(s->threads, (w->rows + w->rows_per_piece - 1) / w->rows_per_piece, move_piece, w);
    return QD_OK;
}

/* Axes of one element go, neighbours that lie together in both become one. */
static void simplify(qd_move_step *m)
{
    int n = 0;
    for (int k = 0; k < m->rank; k++) {
        if (m->dim[k] == 1 && k != m->axis)
            continue;
        const bool cut = k == m->axis;
        if (n && !cut && n - 1 != m->axis && m->stride[n - 1] == m->dim[k] * m->stride[k]) {
            m->dim[n - 1] *= m->dim[k];
            m->stride[n - 1] = m->stride[k];
            continue;
        }
        m->dim[n] = m->dim[k];
        m->stride[n] = m->stride[k];
        if (cut)
            m->axis = n;
        n++;
    }
    if (n == 0) {
        m->dim[0] = m->stride[0] = 1;
        n = 1;
    }
    m->rank = n;
}

qd_status qd_add_move_step(qd_plan *p, const qd_move_step *m, qd_err *err)
{
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(move_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, m->name, m->kind, m->out, &s, err);
    if (st)
        return st;
    move_state *w = memory;
    w->m = *m;
    simplify(&w->m);
    w->rows = 1;
    for (int k = 0; k < w->m.rank - 1; k++)
        w->rows *= w->m.dim[k];
    const int64_t width = w->m.dim[w->m.rank - 1];
    w->rows_per_piece = width < PIECE_ELEMENTS ? PIECE_ELEMENTS / width : 1;
    s->state = w;
    s->run = run;
    s->threads = qd_threads_for(p, (double)w->rows * (double)width * WORK_PER_ELEMENT);
    qd_step_reads(s, m->from);
    return QD_OK;
}
