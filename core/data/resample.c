/* resample.c - the weights of Pillow's antialiased resampling, and which pixel loops this processor runs. */
#include "data/view_int.h"

#include <math.h>

#include "base/cpu.h"

const qd_pixel_loops *qd_pixel_loops_get(void)
{
#if defined(__x86_64__)
    if (qd_cpu_isa() >= QD_ISA_AVX2)
        return &qd_pixel_loops_avx2;
#endif
    return &qd_pixel_loops_base;
}

static double bilinear(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Keys' kernel with a = -0.5, as Resample.c spells it. */
static double bicubic(double x)
{
    x = fabs(x);
    if (x < 1.0)
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
}

static double support_of(qd_filter filter, int in, int out)
{
    const double scale = (double)in / out;
    return (filter == QD_FILTER_BICUBIC ? 2.0 : 1.0) * (scale < 1.0 ? 1.0 : scale);
}

int qd_resample_taps(qd_filter filter, int in, int out)
{
    return (int)ceil(support_of(filter, in, out)) * 2 + 1;
}

/* precompute_coeffs and normalize_coeffs_8bpc. */
void qd_resample_weights(int32_t *weight, double *real, qd_span *span, qd_filter filter, int in, int out, int first,
                         int n)
{
    double (*const f)(double) = filter == QD_FILTER_BICUBIC ? bicubic : bilinear;
    const double scale = (double)in / out, support = support_of(filter, in, out);
    const double narrow = 1.0 / (scale < 1.0 ? 1.0 : scale);
    const int taps = qd_resample_taps(filter, in, out);
    for (int k = 0; k < n; k++, weight += taps) {
        const double centre = (first + k + 0.5) * scale;
        int lo = (int)(centre - support + 0.5), hi = (int)(centre + support + 0.5);
        double total = 0.0;
        lo = lo < 0 ? 0 : lo;
        hi = hi > in ? in : hi;
        for (int t = 0; t < hi - lo; t++) {
            real[t] = f((t + lo - centre + 0.5) * narrow);
            total += real[t];
        }
        for (int t = 0; t < hi - lo; t++) {
            const double w = (total != 0.0 ? real[t] / total : real[t]) * (1 << QD_PIXEL_BITS);
            weight[t] = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
        }
        span[k] = (qd_span){ .first = lo, .count = hi - lo };
    }
}
