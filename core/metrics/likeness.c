/* likeness.c - a picture and what became of it: mean squared error, structural similarity (Wang 2004). */
#include <assert.h>
#include <math.h>

#include "metrics/metrics.h"

enum { WINDOW = 11 };

double qd_mse(const float *x, const float *y, int64_t n)
{
    double sum = 0.0;
    for (int64_t k = 0; k < n; k++) {
        const double d = (double)x[k] - (double)y[k];
        sum += d * d;
    }
    return n > 0 ? sum / (double)n : 0.0;
}

/* Weighted moments of a window of both pictures, its corner at (row, col). */
typedef struct moments2 {
    double a, b, aa, bb, ab;
} moments2;

static moments2 look(const qd_image *a, const qd_image *b, int row, int col, int channel, int size,
                     const double *weight)
{
    moments2 m = { 0 };
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++) {
            const size_t at =
                ((size_t)(row + i) * (size_t)a->width + (size_t)(col + j)) * (size_t)a->channels + (size_t)channel;
            const double w = weight[i] * weight[j], x = a->pixels[at], y = b->pixels[at];
            m.a += w * x;
            m.b += w * y;
            m.aa += w * x * x;
            m.bb += w * y * y;
            m.ab += w * x * y;
        }
    return m;
}

double qd_ssim(const qd_image *a, const qd_image *b)
{
    const double c1 = (0.01 * 255) * (0.01 * 255), c2 = (0.03 * 255) * (0.03 * 255), sigma = 1.5;
    const int least = a->height < a->width ? a->height : a->width;
    const int size = least >= WINDOW ? WINDOW : least - (least + 1) % 2;
    double weight[WINDOW], total = 0.0, sum = 0.0;
    int64_t places = 0;

    assert(a->width == b->width && a->height == b->height && a->channels == b->channels);
    for (int i = 0; i < size; i++) {
        const double d = i - size / 2;
        weight[i] = exp(-d * d / (2.0 * sigma * sigma));
        total += weight[i];
    }
    for (int i = 0; i < size; i++)
        weight[i] /= total;
    for (int c = 0; c < a->channels; c++)
        for (int i = 0; i + size <= a->height; i++)
            for (int j = 0; j + size <= a->width; j++) {
                const moments2 m = look(a, b, i, j, c, size, weight);
                const double va = m.aa - m.a * m.a, vb = m.bb - m.b * m.b, cov = m.ab - m.a * m.b;
                sum += (2.0 * m.a * m.b + c1) * (2.0 * cov + c2) / ((m.a * m.a + m.b * m.b + c1) * (va + vb + c2));
                places++;
            }
    return sum / (double)places;
}
