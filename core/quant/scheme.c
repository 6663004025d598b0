/* scheme.c - the affine map: fitting it to a range, searching the range that hurts least (qncd.md 3.1, 3.2). */
#include "quant/quant.h"

#include <float.h>
#include <math.h>

#include "quant/quant_int.h"

#define MIN_SCALE 1e-8f /* qncd.md 3.1 */
#define CANDIDATES 80   /* qncd.md 3.2 */
#define SHRINK 0.01
#define NORM 2.4f

qd_status qd_affine_fit(float lo, float hi, int bits, bool symmetric, qd_affine *out, qd_err *err)
{
    if (bits < 2 || bits > 16)
        return qd_fail(err, QD_E_INVALID, "bits must be 2..16, got %d", bits);
    if (!isfinite(lo) || !isfinite(hi) || lo > hi)
        return qd_fail(err, QD_E_INVALID, "range [%g, %g] is empty or not finite", (double)lo, (double)hi);

    const int32_t qmin = symmetric ? -(1 << (bits - 1)) : 0;
    const int32_t qmax = symmetric ? -qmin - 1 : (1 << bits) - 1;

    /* Zero must be exact: padding, masks and ReLU all produce it. */
    const double a = fmin(lo, 0.0), b = fmax(hi, 0.0);

    /* In double, because hi - lo can overflow a float; never so small that encoding, nor so large that decoding overflows. */
    const double step = symmetric ? fmax(-a, b) / qmax : (b - a) / (qmax - qmin);
    const double largest = FLT_MAX / (symmetric ? -qmin : qmax);
    const float scale = step > 0.0 ? fmaxf((float)fmin(step, largest), MIN_SCALE) : 1.0f;
    const int32_t zero = symmetric ? 0 : (int32_t)fmin(nearbyint(-a / scale), qmax);

    *out =
        (qd_affine){ .scale = scale, .zero = zero, .qmin = qmin, .qmax = qmax, .bits = bits, .symmetric = symmetric };
    return QD_OK;
}

static inline int32_t encode(float x, float inv_scale, const qd_affine *map)
{
    const float r = nearbyintf(x * inv_scale);
    if (isnan(r))
        return map->zero;
    const double q = (double)r + map->zero; /* double: r may be larger than any int32 */
    return q < map->qmin ? map->qmin : q > map->qmax ? map->qmax : (int32_t)q;
}

int32_t qd_affine_encode(float x, const qd_affine *map)
{
    return encode(x, 1.0f / map->scale, map);
}

float qd_affine_fake(float x, const qd_affine *map)
{
    return (float)(qd_affine_encode(x, map) - map->zero) * map->scale;
}

/* sum w |x - x^|^2.4; w NULL means ones. Gives up, with a sum above `limit`, once it has passed it. */
static double score(const float *x, const double *w, int64_t n, const qd_affine *map, double limit)
{
    const float inv_scale = 1.0f / map->scale;
    double sum = 0.0;
    for (int64_t k = 0; k < n && sum <= limit; k++) {
        const float d = fabsf(x[k] - (float)(encode(x[k], inv_scale, map) - map->zero) * map->scale);
        sum += (w ? w[k] : 1.0) * (double)powf(d, NORM);
    }
    return sum;
}

qd_status qd_affine_search_range(const float *x, const double *w, int64_t n, float lo, float hi, int bits,
                                 bool symmetric, qd_affine *out, qd_err *err)
{
    qd_affine best = { 0 };
    double best_score = INFINITY;

    /* Widened first, so that every candidate holds zero. */
    const double a = fmin(lo, 0.0), b = fmax(hi, 0.0);
    for (int i = 0; i < CANDIDATES; i++) {
        const double keep = 1.0 - SHRINK * i;
        qd_affine map;
        const qd_status st = qd_affine_fit((float)(a * keep), (float)(b * keep), bits, symmetric, &map, err);
        if (st)
            return st;
        const double s = score(x, w, n, &map, best_score);
        if (i == 0 || s < best_score) { /* strictly: ties keep the wider range */
            best = map;
            best_score = s;
        }
    }
    *out = best;
    return QD_OK;
}

qd_status qd_affine_search(const float *x, int64_t n, int bits, bool symmetric, qd_affine *out, qd_err *err)
{
    float lo, hi;
    if (!qd_min_max(x, n, &lo, &hi))
        return qd_fail(err, n > 0 ? QD_E_NUMERIC : QD_E_INVALID,
                       n > 0 ? "a value is not finite" : "no values to search");
    return qd_affine_search_range(x, NULL, n, lo, hi, bits, symmetric, out, err);
}

bool qd_min_max(const float *x, int64_t n, float *lo, float *hi)
{
    float a = INFINITY, b = -INFINITY;
    for (int64_t k = 0; k < n; k++) {
        if (!isfinite(x[k]))
            return false;
        a = fminf(a, x[k]);
        b = fmaxf(b, x[k]);
    }
    *lo = a;
    *hi = b;
    return n > 0;
}
