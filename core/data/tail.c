/* tail.c - long-tailed splits of labelled pictures: colt.md 2.2. */
#include "data/data_int.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"

/* Parts of the shuffling stream; the low bits are the class. */
#define STREAM_CLASSES (QD_STREAM_SHUFFLE | 3ull << 48)
#define STREAM_IMAGES (QD_STREAM_SHUFFLE | 4ull << 48)

qd_status qd_tail_counts(qd_tail_profile profile, int classes, int64_t most, double imbalance, double alpha,
                         int64_t *count, qd_err *err)
{
    if (classes < 2 || classes > QD_MAX_CLASSES)
        return qd_fail(err, QD_E_INVALID, "a long tail of %d classes; 2..%d are handled", classes, QD_MAX_CLASSES);
    if (!(imbalance >= 1.0) || !isfinite(imbalance))
        return qd_fail(err, QD_E_INVALID, "the imbalance is %g; it must be at least 1", imbalance);
    if (profile == QD_TAIL_PARETO && (!(alpha > 0.0) || !isfinite(alpha)))
        return qd_fail(err, QD_E_INVALID, "the power of the Pareto law is %g; it must be above 0", alpha);
    const double rho = 1.0 / imbalance, low = (double)most * rho;
    if (most < 1 || floor(low) < 1.0)
        return qd_fail(err, QD_E_INVALID,
                       "with %lld pictures in the largest class and an imbalance of %g the smallest has none",
                       (long long)most, imbalance);
    const double high_power = profile == QD_TAIL_PARETO ? pow((double)most, -alpha) : 0.0,
                 low_power = profile == QD_TAIL_PARETO ? pow(low, -alpha) : 0.0;
    for (int c = 0; c < classes; c++) {
        const double at = (double)c / (classes - 1.0);
        double n;
        if (profile == QD_TAIL_PARETO)
            n = pow(high_power + at * (low_power - high_power), -1.0 / alpha) + 1e-6; /* the ends are whole numbers */
        else
            n = (double)most * pow(rho, at);
        count[c] = (int64_t)n;
    }
    return QD_OK;
}

static void shuffle(int64_t *v, int64_t n, qd_rng *r)
{
    for (int64_t k = n - 1; k > 0; k--) {
        const int64_t j = qd_rng_below(r, (uint32_t)(k + 1)), swap = v[k];
        v[k] = v[j];
        v[j] = swap;
    }
}

/* Everything by class: class c's pictures are image[start[c] .. start[c + 1] - 1], in the order they are taken. */
typedef struct sorted {
    int64_t *image, *start, *fill;
    int *rank; // [classes]: of each class
    uint8_t *out;
} sorted;

static void sorted_clear(sorted *b)
{
    qd_free(b->image);
    qd_free(b->start);
    qd_free(b->fill);
    qd_free(b->rank);
    qd_free(b->out);
}

static qd_status check_list(const int64_t *v, int64_t n, int64_t below, const char *what, qd_err *err)
{
    for (int64_t k = 0; k < n; k++)
        if (v[k] < 0 || v[k] >= below)
            return qd_fail(err, QD_E_INVALID, "%s: picture %lld; 0..%lld are there", what, (long long)v[k],
                           (long long)below - 1);
    return QD_OK;
}

static void take_image(const qd_samples *s, sorted *b, int64_t k)
{
    const int label = qd_samples_label(s, k);
    if (b->out[k] || label < 0)
        return;
    b->out[k] = 1; /* once */
    b->image[b->fill[label]++] = k;
}

static qd_status sort_by_class(const qd_samples *s, const qd_tail_options *o, sorted *b, qd_err *err)
{
    const qd_samples_info *i = qd_samples_about(s);
    const size_t n = (size_t)i->count, classes = (size_t)i->classes;
    qd_status st = check_list(o->left_out, o->n_left_out, i->count, "what is left out", err);
    if (!st)
        st = check_list(o->sequence, o->n_sequence, i->count, "the sequence", err);
    if (st)
        return st;
    b->image = qd_calloc(n, sizeof *b->image);
    b->start = qd_calloc(classes + 1, sizeof *b->start);
    b->fill = qd_calloc(classes, sizeof *b->fill);
    b->out = qd_calloc(n, 1);
    if (!b->image || !b->start || !b->fill || !b->out)
        return qd_fail(err, QD_E_NOMEM, "no memory to sort %lld pictures", (long long)i->count);
    for (int64_t k = 0; k < i->count; k++)
        if (qd_samples_label(s, k) >= 0)
            b->start[qd_samples_label(s, k) + 1]++;
    for (size_t c = 0; c < classes; c++) {
        b->start[c + 1] += b->start[c];
        b->fill[c] = b->start[c];
    }
    for (int64_t k = 0; k < o->n_left_out; k++)
        b->out[o->left_out[k]] = 1;
    if (o->sequence) {
        for (int64_t k = 0; k < o->n_sequence; k++)
            take_image(s, b, o->sequence[k]);
        return QD_OK;
    }
    for (int64_t k = 0; k < i->count; k++)
        take_image(s, b, k);
    for (size_t c = 0; c < classes; c++) {
        qd_rng r;
        qd_rng_init(&r, o->seed, STREAM_IMAGES | c);
        shuffle(b->image + b->start[c], b->fill[c] - b->start[c], &r);
    }
    return QD_OK;
}

/* rank[class], from o->order, the seed, or plainly. */
static qd_status rank_classes(const qd_tail_options *o, int classes, sorted *b, qd_err *err)
{
    int64_t *order = qd_alloc((size_t)classes * sizeof *order);
    qd_status st = QD_OK;
    b->rank = qd_alloc((size_t)classes * sizeof *b->rank);
    if (!order || !b->rank) {
        qd_free(order);
        return qd_fail(err, QD_E_NOMEM, "no memory for the order of %d classes", classes);
    }
    for (int c = 0; c < classes; c++) {
        order[c] = o->order ? o->order[c] : c;
        b->rank[c] = -1;
    }
    if (!o->order && o->permute) {
        qd_rng r;
        qd_rng_init(&r, o->seed, STREAM_CLASSES);
        shuffle(order, classes, &r);
    }
    for (int k = 0; k < classes && !st; k++) {
        if (order[k] < 0 || order[k] >= classes || b->rank[order[k]] >= 0)
            st = qd_fail(err, QD_E_INVALID, "the order of classes has %lld at rank %d: want each of 0..%d once",
                         (long long)order[k], k, classes - 1);
        else
            b->rank[order[k]] = k;
    }
    qd_free(order);
    return st;
}

/* The first of each class: count[rank], or `each` of every one. */
static qd_status put(qd_tensor *out, const sorted *b, int classes, const int64_t *count, int64_t each,
                     qd_budget *budget, qd_err *err)
{
    int64_t n = 0;
    for (int c = 0; c < classes; c++) {
        const int64_t want = count ? count[b->rank[c]] : each, have = b->fill[c] - b->start[c];
        if (want > have)
            return qd_fail(err, QD_E_INVALID, "class %d has %lld pictures to take; %lld are wanted", c, (long long)have,
                           (long long)want);
        n += want;
    }
    const qd_shape shape = QD_SHAPE(n);
    const qd_status st = qd_tensor_init(out, QD_I64, &shape, budget, err);
    if (st)
        return st;
    int64_t *to = out->data;
    for (int c = 0; c < classes; c++) {
        const int64_t want = count ? count[b->rank[c]] : each;
        memcpy(to, b->image + b->start[c], (size_t)want * sizeof *to);
        to += want;
    }
    return QD_OK;
}

qd_status qd_tail_split(const qd_samples *s, const qd_tail_options *o, qd_budget *budget, qd_tail *out, qd_err *err)
{
    const qd_samples_info *i = qd_samples_about(s);
    sorted b = { 0 };
    qd_tail t = { 0 };
    int64_t total = 0, *count = NULL;
    qd_status st;
    if (i->classes < 2)
        return qd_fail(err, QD_E_INVALID, "a long tail needs labels of at least 2 classes; there are %d", i->classes);
    count = qd_calloc((size_t)i->classes, sizeof *count);
    if (!count)
        return qd_fail(err, QD_E_NOMEM, "no memory to count %d classes", i->classes);
    st = qd_tail_counts(o->profile, i->classes, o->most, o->imbalance, o->alpha, count, err);
    if (!st)
        st = sort_by_class(s, o, &b, err);
    if (!st)
        st = rank_classes(o, i->classes, &b, err);
    for (int c = 0; c < i->classes; c++)
        total += count[c];
    if (!st)
        st = put(&t.tail, &b, i->classes, count, 0, budget, err);
    if (!st)
        st = put(&t.balanced, &b, i->classes, NULL, total / i->classes, budget, err);
    if (!st)
        st = put(&t.few, &b, i->classes, NULL, count[i->classes - 1], budget, err);
    sorted_clear(&b);
    qd_free(count);
    if (st)
        qd_tail_clear(&t);
    else
        *out = t;
    return st;
}

void qd_tail_clear(qd_tail *t)
{
    qd_tensor_clear(&t->tail);
    qd_tensor_clear(&t->balanced);
    qd_tensor_clear(&t->few);
}
