/* loader_order.c - what an epoch shows, and in which order: choices, draws by weight, shuffles. */
#include "data/loader_int.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/rng.h"

/* Parts of the shuffling stream; its lowest 24 bits are the epoch. */
#define STREAM_ORDER (QD_STREAM_SHUFFLE | 1ull << 48)
#define STREAM_WEIGHTS (QD_STREAM_SHUFFLE | 2ull << 48)

/* Room for a part's choice instead of what it had. */
static qd_status draw_again(qd_loader *l, qd_share *p, size_t bytes, qd_err *err)
{
    const qd_status st = qd_budget_draw(l->budget, bytes, "the choice of samples", err);
    if (st)
        return st;
    qd_budget_give(l->budget, p->bytes);
    p->bytes = bytes;
    return QD_OK;
}

qd_status qd_loader_choose(qd_loader *l, int which, const int64_t *sample, int64_t n, qd_err *err)
{
    assert(which >= 0 && which < l->parts);
    qd_share *p = &l->part[which];
    int64_t *copy = NULL;
    if (sample && (n < 0 || n > QD_SAMPLES_MAX))
        return qd_fail(err, QD_E_INVALID, "%lld samples are chosen of part %d; 0..%lld are handled", (long long)n,
                       which, (long long)QD_SAMPLES_MAX);
    for (int64_t k = 0; sample && k < n; k++)
        if (sample[k] < 0 || sample[k] >= p->count)
            return qd_fail(err, QD_E_INVALID, "sample %lld is chosen of part %d, which has 0..%lld",
                           (long long)sample[k], which, (long long)p->count - 1);
    if (sample) {
        copy = qd_alloc((size_t)n * sizeof *copy);
        if (!copy)
            return qd_fail(err, QD_E_NOMEM, "no memory to choose %lld samples", (long long)n);
        memcpy(copy, sample, (size_t)n * sizeof *copy);
    }
    const qd_status st = draw_again(l, p, copy ? (size_t)n * sizeof *copy : 0, err);
    if (st) {
        qd_free(copy);
        return st;
    }
    qd_free(p->chosen);
    qd_free(p->sums);
    p->sums = NULL;
    p->chosen = copy;
    p->n = sample ? n : p->count;
    return QD_OK;
}

qd_status qd_loader_weigh(qd_loader *l, int which, const double *weight, int64_t n, qd_err *err)
{
    assert(which >= 0 && which < l->parts);
    qd_share *p = &l->part[which];
    double total = 0.0;
    if (!weight)
        return qd_loader_choose(l, which, NULL, 0, err);
    if (n < 0 || n > QD_SAMPLES_MAX)
        return qd_fail(err, QD_E_INVALID, "%lld samples are drawn of part %d; 0..%lld are handled", (long long)n, which,
                       (long long)QD_SAMPLES_MAX);
    double *sums = qd_alloc((size_t)p->count * sizeof *sums);
    if (!sums)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld weights", (long long)p->count);
    qd_status st = QD_OK;
    for (int64_t k = 0; k < p->count && !st; k++) {
        if (!(weight[k] >= 0.0) || !isfinite(weight[k]))
            st = qd_fail(err, QD_E_INVALID, "the weight of sample %lld of part %d is %g; want a finite one >= 0",
                         (long long)k, which, weight[k]);
        sums[k] = total += weight[k];
    }
    if (!st && (!(total > 0.0) || !isfinite(total)))
        st = qd_fail(err, QD_E_INVALID, "the weights of part %d add up to %g", which, total);
    if (!st)
        st = draw_again(l, p, (size_t)p->count * sizeof *sums, err);
    if (st) {
        qd_free(sums);
        return st;
    }
    qd_free(p->chosen);
    qd_free(p->sums);
    p->chosen = NULL;
    p->sums = sums;
    p->n = n;
    return QD_OK;
}

int64_t qd_loader_samples(const qd_loader *l)
{
    int64_t n = 0;
    for (int k = 0; k < l->parts; k++)
        n += l->part[k].n;
    return n;
}

int64_t qd_loader_batches(const qd_loader *l)
{
    const int64_t n = qd_loader_samples(l), b = l->o.batch;
    return l->o.drop_last ? n / b : (n + b - 1) / b;
}

/* The first k with sums[k] > at: where a weight of 0 is never met. */
static int64_t find_sum(const double *sums, int64_t n, double at)
{
    int64_t lo = 0, hi = n - 1;
    while (lo < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        if (sums[mid] > at)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

static int64_t *put_part(int64_t *order, const qd_loader *l, int which, int64_t epoch)
{
    const qd_share *p = &l->part[which];
    if (p->sums) {
        const double total = p->sums[p->count - 1];
        qd_rng r;
        qd_rng_init(&r, l->o.seed, STREAM_WEIGHTS | (uint64_t)which << 24 | (uint64_t)epoch);
        for (int64_t k = 0; k < p->n; k++) {
            const double u = (double)(qd_rng_u64(&r) >> 11) * 0x1p-53;
            *order++ = p->base + find_sum(p->sums, p->count, u * total);
        }
        return order;
    }
    for (int64_t k = 0; k < p->n; k++)
        *order++ = p->base + (p->chosen ? p->chosen[k] : k);
    return order;
}

/* Durstenfeld's shuffle; below 2^32 samples, so a word decides. */
static void shuffle(int64_t *order, int64_t n, uint64_t seed, int64_t epoch)
{
    qd_rng r;
    qd_rng_init(&r, seed, STREAM_ORDER | (uint64_t)epoch);
    for (int64_t k = n - 1; k > 0; k--) {
        const int64_t j = qd_rng_below(&r, (uint32_t)(k + 1));
        const int64_t swap = order[k];
        order[k] = order[j];
        order[j] = swap;
    }
}

qd_status qd_loader_order(qd_loader *l, int64_t epoch, int64_t n, qd_err *err)
{
    qd_free(l->order);
    qd_budget_give(l->budget, l->order_bytes);
    l->order = NULL;
    l->order_bytes = 0;

    const qd_status st = qd_budget_draw(l->budget, (size_t)n * sizeof *l->order, "the order of an epoch", err);
    if (st)
        return st;
    l->order_bytes = (size_t)n * sizeof *l->order;
    int64_t *end = l->order = qd_alloc(l->order_bytes);
    if (!end)
        return qd_fail(err, QD_E_NOMEM, "no memory for an epoch of %lld samples", (long long)n);
    for (int k = 0; k < l->parts; k++)
        end = put_part(end, l, k, epoch);
    if (l->o.shuffle)
        shuffle(l->order, n, l->o.seed, epoch);
    return QD_OK;
}
