/* score.c - how close two arrays are: SQNR and cosine. */
#include "metrics/metrics.h"

#include <math.h>

void qd_sqnr_add(qd_sqnr *s, const float *x, const float *y, int64_t n)
{
    double signal = 0.0, noise = 0.0;
    for (int64_t k = 0; k < n; k++) {
        const double v = x[k], d = v - (double)y[k];
        signal += v * v;
        noise += d * d;
    }
    s->signal += signal;
    s->noise += noise;
}

double qd_sqnr_value_db(const qd_sqnr *s)
{
    if (s->noise == 0.0)
        return INFINITY;
    return 10.0 * log10(s->signal / s->noise);
}

double qd_sqnr_db(const float *x, const float *y, int64_t n)
{
    qd_sqnr s = { 0 };
    qd_sqnr_add(&s, x, y, n);
    return qd_sqnr_value_db(&s);
}

double qd_cosine(const float *x, const float *y, int64_t n)
{
    double xy = 0.0, xx = 0.0, yy = 0.0;
    for (int64_t k = 0; k < n; k++) {
        xy += (double)x[k] * y[k];
        xx += (double)x[k] * x[k];
        yy += (double)y[k] * y[k];
    }
    if (xx == 0.0 && yy == 0.0)
        return 1.0; /* both are nothing, and they agree */
    if (xx == 0.0 || yy == 0.0)
        return 0.0;
    return xy / sqrt(xx) / sqrt(yy);
}
