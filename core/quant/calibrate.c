/* calibrate.c - what a value looks like over a calibration set: a histogram that does not depend on the order of the data. */
#include "quant/quant.h"

#include <assert.h>
#include <float.h>
#include <math.h>

#include "base/mem.h"
#include "quant/quant_int.h"

#define BINS 2048
#define SUB 8 /* points of a bin where its error is measured */

/* Bin g covers [g w, (g + 1) w) with w = 2^exponent. Both the width and the counts follow from the set of data alone: the width
 * is the smallest power of two for which the range fits into BINS bins, and halving g when it doubles is exact. */
struct qd_histogram {
    int64_t count, bad; // values seen; of these not finite
    float lo, hi;
    int exponent;
    int64_t first; // g of bin[0], the bin of lo
    int64_t bin[BINS];
};

qd_status qd_histogram_new(qd_histogram **out, qd_err *err)
{
    qd_histogram *h = qd_calloc(1, sizeof *h);
    if (!h)
        return qd_fail(err, QD_E_NOMEM, "no memory for a histogram");
    *out = h;
    return QD_OK;
}

void qd_histogram_free(qd_histogram *h)
{
    qd_free(h);
}

static int64_t bin_of(float x, int exponent)
{
    return (int64_t)floor(ldexp(x, -exponent));
}

/* Never finer than the last bit of the largest value: there is nothing to tell apart below it. */
static int fitting_exponent(float lo, float hi)
{
    const float largest = fmaxf(fabsf(lo), fabsf(hi));
    int e = largest > 0.0f ? ilogbf(largest) - 24 : -150;
    while (bin_of(hi, e) - bin_of(lo, e) >= BINS)
        e++;
    return e;
}

/* Make room for [lo, hi], which holds all that was seen before. */
static void widen(qd_histogram *h, float lo, float hi)
{
    const int exponent = fitting_exponent(lo, hi);
    const int64_t first = bin_of(lo, exponent);
    int64_t moved[BINS] = { 0 };

    for (int k = 0; k < BINS; k++) {
        if (!h->bin[k])
            continue;
        const int64_t g = h->first + k, shift = exponent - h->exponent;
        const int64_t to = (shift < 63 ? g >> shift : (g < 0 ? -1 : 0)) - first;
        assert(to >= 0 && to < BINS);
        moved[to] += h->bin[k];
    }
    for (int k = 0; k < BINS; k++)
        h->bin[k] = moved[k];
    h->exponent = exponent;
    h->first = first;
    h->lo = lo;
    h->hi = hi;
}

void qd_histogram_add(qd_histogram *h, const float *x, int64_t n)
{
    float lo = INFINITY, hi = -INFINITY;
    int64_t good = 0;
    for (int64_t k = 0; k < n; k++) {
        const bool finite = fabsf(x[k]) <= FLT_MAX;
        lo = finite && x[k] < lo ? x[k] : lo;
        hi = finite && x[k] > hi ? x[k] : hi;
        good += finite;
    }
    const bool empty = h->count == h->bad;
    h->count += n;
    h->bad += n - good;
    if (good == 0)
        return;
    if (empty)
        widen(h, lo, hi);
    else if (lo < h->lo || hi > h->hi)
        widen(h, fminf(lo, h->lo), fmaxf(hi, h->hi));

    /* Exact: a power of two times a float, in double. The floor is spelled out, because a call for each value would take longer than
     * all the rest. */
    const double per_bin = ldexp(1.0, -h->exponent);
    for (int64_t k = 0; k < n; k++) {
        if (!(fabsf(x[k]) <= FLT_MAX))
            continue;
        const double g = (double)x[k] * per_bin;
        const int64_t whole = (int64_t)g; /* towards zero */
        h->bin[whole - ((double)whole > g) - h->first]++;
    }
}

void qd_histogram_range(const qd_histogram *h, float *lo, float *hi)
{
    *lo = h->lo;
    *hi = h->hi;
}

int64_t qd_histogram_count(const qd_histogram *h)
{
    return h->count;
}

static qd_status check(const qd_histogram *h, qd_err *err)
{
    if (h->bad)
        return qd_fail(err, QD_E_NUMERIC, "%lld of %lld values are not finite", (long long)h->bad, (long long)h->count);
    if (!h->count)
        return qd_fail(err, QD_E_INVALID, "nothing was seen");
    return QD_OK;
}

/* Point `part` of `parts` of bin k, inside the range seen. */
static float point(const qd_histogram *h, int k, int part, int parts)
{
    const double x = ldexp((double)(h->first + k) + (part + 0.5) / parts, h->exponent);
    return (float)fmin(fmax(x, h->lo), h->hi);
}

qd_status qd_histogram_search(const qd_histogram *h, int bits, bool symmetric, qd_affine *out, qd_err *err)
{
    float x[BINS];
    double w[BINS];
    int n = 0;
    const qd_status st = check(h, err);
    if (st)
        return st;
    for (int k = 0; k < BINS; k++) {
        if (!h->bin[k])
            continue;
        x[n] = point(h, k, 0, 1);
        w[n++] = (double)h->bin[k];
    }
    return qd_affine_search_range(x, w, n, h->lo, h->hi, bits, symmetric, out, err);
}

qd_status qd_histogram_fit(const qd_histogram *h, int bits, bool symmetric, qd_affine *out, qd_err *err)
{
    const qd_status st = check(h, err);
    return st ? st : qd_affine_fit(h->lo, h->hi, bits, symmetric, out, err);
}

/* Where `share` of all values lie below: within a bin they are taken as evenly spread. */
static double quantile(const qd_histogram *h, double share)
{
    const double want = share * (double)h->count;
    double below = 0.0;
    for (int k = 0; k < BINS; k++) {
        if (h->bin[k] && below + (double)h->bin[k] >= want) {
            const double x = ldexp((double)(h->first + k) + (want - below) / (double)h->bin[k], h->exponent);
            return fmin(fmax(x, h->lo), h->hi);
        }
        below += (double)h->bin[k];
    }
    return h->hi;
}

qd_status qd_histogram_percentile(const qd_histogram *h, double percentile, int bits, bool symmetric, qd_affine *out,
                                  qd_err *err)
{
    const qd_status st = check(h, err);
    if (st)
        return st;
    if (!(percentile >= 50.0 && percentile <= 100.0))
        return qd_fail(err, QD_E_INVALID, "percentile must be 50..100, got %g", percentile);
    const double lo = quantile(h, 1.0 - percentile / 100.0), hi = quantile(h, percentile / 100.0);
    return qd_affine_fit((float)lo, (float)hi, bits, symmetric, out, err);
}

double qd_histogram_sqnr_db(const qd_histogram *h, const qd_affine *map)
{
    double signal = 0.0, noise = 0.0;
    for (int k = 0; k < BINS; k++) {
        for (int part = 0; h->bin[k] && part < SUB; part++) {
            const double x = point(h, k, part, SUB), d = x - qd_affine_fake((float)x, map);
            signal += (double)h->bin[k] * x * x;
            noise += (double)h->bin[k] * d * d;
        }
    }
    return noise > 0.0 ? 10.0 * log10(signal / noise) : INFINITY;
}
