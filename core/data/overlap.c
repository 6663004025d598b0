/* overlap.c - pictures that lie in two sets: the very same, or the same to the eye. */
#include "data/data_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/par.h"

enum { MINI = 8, CHUNK = 256, EACH = 8 }; /* EACH: twins kept of one picture */

typedef struct mark {
    uint64_t pixels[2]; // of size, channels and all pixels
    uint64_t shape;     // dHash
    uint8_t mini[MINI * MINI];
} mark;

/* --- of one picture --- */

static inline int grey_at(const qd_pixels *p, int y, int x)
{
    const uint8_t *at = p->data + y * p->row + x * p->column;
    if (p->channels < 3)
        return at[0];
    return (int)((at[0] * 19595u + at[p->plane] * 38470u + at[2 * p->plane] * 7471u + 0x8000u) >> 16);
}

/* Mean grey of field (i, j) of rows x columns; a field holds at least one pixel. */
static int field(const qd_pixels *p, int i, int j, int rows, int columns)
{
    const int top = i * p->height / rows, left = j * p->width / columns;
    int bottom = (i + 1) * p->height / rows, right = (j + 1) * p->width / columns;
    int64_t sum = 0;
    bottom = bottom > top ? bottom : top + 1;
    right = right > left ? right : left + 1;
    for (int y = top; y < bottom; y++)
        for (int x = left; x < right; x++)
            sum += grey_at(p, y, x);
    const int64_t n = (int64_t)(bottom - top) * (right - left);
    return (int)((2 * sum + n) / (2 * n));
}

static inline uint64_t stir(uint64_t h, uint64_t v, uint64_t odd)
{
    h = (h ^ v) * odd;
    return h ^ h >> 29;
}

static void mark_pixels(mark *m, const qd_pixels *p)
{
    const uint64_t size = (uint64_t)p->channels << 40 | (uint64_t)p->height << 20 | (uint64_t)p->width;
    uint64_t a = stir(0x9e3779b97f4a7c15u, size, 0xbf58476d1ce4e5b9u),
             b = stir(0xc2b2ae3d27d4eb4fu, size, 0x94d049bb133111ebu);
    for (int c = 0; c < p->channels; c++)
        for (int y = 0; y < p->height; y++) {
            const uint8_t *at = p->data + c * p->plane + y * p->row;
            for (int x = 0; x < p->width; x++) {
                a = stir(a, at[x * p->column], 0xbf58476d1ce4e5b9u);
                b = stir(b, at[x * p->column], 0x94d049bb133111ebu);
            }
        }
    m->pixels[0] = a;
    m->pixels[1] = b;
}

/* Krawetz, "Kind of like that", 2013: is each field brighter than its right neighbour? */
static void mark_shape(mark *m, const qd_pixels *p)
{
    m->shape = 0;
    for (int i = 0; i < MINI; i++)
        for (int j = 0, last = field(p, i, 0, MINI, MINI + 1); j < MINI; j++) {
            const int next = field(p, i, j + 1, MINI, MINI + 1);
            m->shape = m->shape << 1 | (uint64_t)(last > next);
            m->mini[i * MINI + j] = (uint8_t)field(p, i, j, MINI, MINI);
            last = next;
        }
}

typedef struct marking {
    const qd_samples *s;
    mark *mark; // of all
    int64_t first;
    qd_err err[CHUNK];
} marking;

static void mark_one(void *ctx, int64_t i)
{
    marking *w = ctx;
    qd_image hold = { 0 };
    qd_pixels p;
    w->err[i] = (qd_err){ 0 };
    if (!qd_samples_get(w->s, w->first + i, &hold, &p, &w->err[i])) {
        mark_pixels(&w->mark[w->first + i], &p);
        mark_shape(&w->mark[w->first + i], &p);
    }
    qd_image_clear(&hold);
}

static qd_status mark_all(const qd_samples *s, mark *marks, const qd_run *run, qd_err *err)
{
    const int64_t count = qd_samples_about(s)->count;
    marking *w = qd_calloc(1, sizeof *w);
    qd_status st = w ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory to compare pictures");
    for (int64_t first = 0; first < count && !st; first += CHUNK) {
        const int64_t n = count - first < CHUNK ? count - first : CHUNK;
        st = qd_run_check(run, err);
        if (st)
            break;
        *w = (marking){ .s = s, .mark = marks, .first = first };
        qd_par_for(qd_run_threads(run), n, mark_one, w);
        for (int64_t i = 0; i < n && !st; i++)
            if (w->err[i].status)
                st = qd_fail(err, w->err[i].status, "%s", w->err[i].text);
        qd_run_progress(run, "mark", NULL, first + n, count);
    }
    qd_free(w);
    return st;
}

/* --- of all with all --- */

typedef struct found {
    qd_twin twin[EACH];
    int64_t exact, near;
} found;

typedef struct search {
    const mark *a, *b;
    int64_t n_b, first;
    bool same;
    qd_overlap_options o;
    _Atomic uint8_t *hit_b; // [n_b]
    found found[CHUNK];
} search;

static float difference(const mark *x, const mark *y)
{
    int sum = 0;
    for (int k = 0; k < MINI * MINI; k++)
        sum += abs(x->mini[k] - y->mini[k]);
    return (float)sum / (MINI * MINI);
}

static void search_one(void *ctx, int64_t i)
{
    search *s = ctx;
    const int64_t a = s->first + i;
    const mark *m = &s->a[a];
    found *f = &s->found[i];
    *f = (found){ 0 };
    for (int64_t b = s->same ? a + 1 : 0; b < s->n_b; b++) {
        const mark *other = &s->b[b];
        const int bits = __builtin_popcountll(m->shape ^ other->shape);
        const bool exact = bits == 0 && m->pixels[0] == other->pixels[0] && m->pixels[1] == other->pixels[1];
        if (!exact && bits > s->o.bits)
            continue;
        const float apart = exact ? 0.0f : difference(m, other);
        if (!exact && apart > s->o.difference)
            continue;
        const int64_t n = f->exact + f->near;
        if (n < EACH)
            f->twin[n] = (qd_twin){ .a = a, .b = b, .bits = exact ? -1 : bits, .difference = apart };
        f->exact += exact;
        f->near += !exact;
        atomic_store_explicit(&s->hit_b[b], 1, memory_order_relaxed);
    }
}

static qd_status keep(qd_overlap *out, int64_t *room, const found *f, int64_t max_twins, qd_err *err)
{
    const int64_t all = f->exact + f->near, n = all < EACH ? all : EACH;
    out->exact += f->exact;
    out->near += f->near;
    for (int64_t k = 0; k < n && out->n < max_twins; k++) {
        if (out->n == *room) {
            const int64_t more = *room ? 2 * *room : 256;
            qd_twin *twin = qd_realloc(out->twin, (size_t)more * sizeof *twin);
            if (!twin)
                return qd_fail(err, QD_E_NOMEM, "no memory to report %lld twins", (long long)more);
            out->twin = twin;
            *room = more;
        }
        out->twin[out->n++] = f->twin[k];
    }
    return QD_OK;
}

static qd_status search_all(search *s, int64_t n_a, const qd_run *run, qd_overlap *out, qd_err *err)
{
    int64_t room = 0;
    qd_status st = QD_OK;
    for (s->first = 0; s->first < n_a && !st; s->first += CHUNK) {
        const int64_t n = n_a - s->first < CHUNK ? n_a - s->first : CHUNK;
        st = qd_run_check(run, err);
        if (st)
            break;
        qd_par_for(qd_run_threads(run), n, search_one, s);
        for (int64_t i = 0; i < n && !st; i++) {
            const bool any = s->found[i].exact + s->found[i].near > 0;
            st = keep(out, &room, &s->found[i], s->o.max_twins, err);
            if (any && s->same)
                atomic_store_explicit(&s->hit_b[s->first + i], 1, memory_order_relaxed);
            out->in_a += any;
        }
        qd_run_progress(run, "compare", NULL, s->first + n, n_a);
    }
    for (int64_t b = 0; b < s->n_b; b++)
        out->in_b += atomic_load_explicit(&s->hit_b[b], memory_order_relaxed);
    if (s->same)
        out->in_a = out->in_b;
    return st;
}

qd_status qd_samples_overlap(const qd_samples *a, const qd_samples *b, const qd_overlap_options *o, const qd_run *run,
                             qd_overlap *out, qd_err *err)
{
    const bool same = a == b;
    const int64_t n_a = qd_samples_about(a)->count, n_b = qd_samples_about(b)->count;
    const size_t n = (size_t)n_a + (same ? 0 : (size_t)n_b), bytes = n * sizeof(mark) + (size_t)n_b;
    qd_budget *budget = qd_run_budget(run);
    qd_overlap report = { 0 };
    search *s = NULL;
    mark *marks = NULL;
    if (o->bits < -1 || o->bits > 32 || !(o->difference >= 0.0f) || o->max_twins < 0)
        return qd_fail(err, QD_E_INVALID,
                       "near twins within %d bits and %g levels; -1..32 bits and 0 or more levels are handled", o->bits,
                       (double)o->difference);
    qd_status st = qd_budget_draw(budget, bytes, "comparing pictures", err);
    if (st)
        return st;
    marks = qd_alloc_aligned(n * sizeof *marks);
    s = qd_calloc(1, sizeof *s);
    if (s)
        s->hit_b = qd_calloc((size_t)n_b, sizeof *s->hit_b);
    if (!marks || !s || !s->hit_b) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to compare %lld pictures", (long long)n);
        goto out;
    }
    st = mark_all(a, marks, run, err);
    if (!st && !same)
        st = mark_all(b, marks + n_a, run, err);
    if (st)
        goto out;
    s->a = marks;
    s->b = same ? marks : marks + n_a;
    s->n_b = n_b;
    s->same = same;
    s->o = *o;
    st = search_all(s, n_a, run, &report, err);
out:
    if (s)
        qd_free((void *)s->hit_b);
    qd_free(s);
    qd_free(marks);
    qd_budget_give(budget, bytes);
    if (st)
        qd_overlap_clear(&report);
    else
        *out = report;
    return st;
}

void qd_overlap_clear(qd_overlap *o)
{
    qd_free(o->twin);
    *o = (qd_overlap){ 0 };
}
