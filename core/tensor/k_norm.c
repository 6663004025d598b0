/* k_norm.c - normalisation over groups of channels, over rows, and with frozen statistics. */
#include "tensor/kernels.h"

#include <math.h>

/* Mean and 1 / sqrt(biased variance + eps) of x[n], in two passes and in double. */
static void moments(const float *x, int64_t n, float eps, double *mean, double *rstd)
{
    double sum = 0.0, squares = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i];
    *mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += (x[i] - *mean) * (x[i] - *mean);
    *rstd = 1.0 / sqrt(squares / (double)n + eps);
}

void qd_k_group_norm(float *dst, const float *src, const float *weight, const float *bias, int64_t n, int64_t c,
                     int64_t space, int64_t groups, float eps)
{
    const int64_t per_group = c / groups;
    for (int64_t g = 0; g < n * groups; g++) {
        const int64_t first = g * per_group * space;
        double mean, rstd;
        moments(src + first, per_group * space, eps, &mean, &rstd);
        for (int64_t k = 0; k < per_group; k++) {
            const int64_t channel = g % groups * per_group + k;
            const double w = weight ? weight[channel] : 1.0f, b = bias ? bias[channel] : 0.0f;
            for (int64_t i = first + k * space; i < first + (k + 1) * space; i++)
                dst[i] = (float)((src[i] - mean) * rstd * w + b);
        }
    }
}

void qd_k_layer_norm(float *dst, const float *src, const float *weight, const float *bias, int64_t rows, int64_t width,
                     float eps)
{
    for (int64_t r = 0; r < rows; r++) {
        const float *x = src + r * width;
        double mean, rstd;
        moments(x, width, eps, &mean, &rstd);
        for (int64_t i = 0; i < width; i++)
            dst[r * width + i] = (float)((x[i] - mean) * rstd * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f));
    }
}

void qd_k_batch_norm(float *dst, const float *src, const float *weight, const float *bias, const float *mean,
                     const float *var, int64_t n, int64_t c, int64_t space, float eps)
{
    for (int64_t p = 0; p < n * c; p++) {
        const int64_t k = p % c;
        const double gain = weight[k] / sqrt((double)var[k] + eps);
        for (int64_t i = p * space; i < (p + 1) * space; i++)
            dst[i] = (float)((src[i] - (double)mean[k]) * gain + bias[k]);
    }
}
