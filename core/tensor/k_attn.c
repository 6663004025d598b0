/* k_attn.c - softmax and multi-head attention. */
#include "tensor/kernels.h"

#include <math.h>

void qd_k_softmax(float *dst, const float *src, int64_t outer, int64_t axis, int64_t inner)
{
    for (int64_t o = 0; o < outer; o++) {
        for (int64_t i = 0; i < inner; i++) {
            const float *x = src + o * axis * inner + i;
            float *y = dst + o * axis * inner + i;
            double top = -INFINITY, sum = 0.0;
            for (int64_t k = 0; k < axis; k++)
                top = fmax(top, x[k * inner]);
            for (int64_t k = 0; k < axis; k++)
                sum += exp(x[k * inner] - top);
            for (int64_t k = 0; k < axis; k++)
                y[k * inner] = (float)(exp(x[k * inner] - top) / sum);
        }
    }
}

void qd_k_log_softmax(float *dst, const float *src, int64_t outer, int64_t axis, int64_t inner)
{
    for (int64_t o = 0; o < outer; o++) {
        for (int64_t i = 0; i < inner; i++) {
            const float *x = src + o * axis * inner + i;
            float *y = dst + o * axis * inner + i;
            double top = -INFINITY, sum = 0.0;
            for (int64_t k = 0; k < axis; k++)
                top = fmax(top, x[k * inner]);
            for (int64_t k = 0; k < axis; k++)
                sum += exp(x[k * inner] - top);
            for (int64_t k = 0; k < axis; k++)
                y[k * inner] = (float)(x[k * inner] - top - log(sum));
        }
    }
}

static double dot(const float *a, const float *b, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

/* One query of one head: dst[width] = sum_j softmax_j(q . k_j scale) v_j. Rows of k and v are `step` apart.
 *
 * The scores are computed again for every CHUNK channels of the result: a kernel has no memory of its own to keep them in. */
static void attend(float *dst, const float *q, const float *k, const float *v, int64_t s, int64_t width, int64_t step,
                   double scale)
{
    enum { CHUNK = 256 };
    double acc[CHUNK], top = -INFINITY;
    for (int64_t j = 0; j < s; j++)
        top = fmax(top, dot(q, k + j * step, width) * scale);

    for (int64_t c0 = 0; c0 < width; c0 += CHUNK) {
        const int64_t count = width - c0 < CHUNK ? width - c0 : CHUNK;
        double sum = 0.0;
        for (int64_t c = 0; c < count; c++)
            acc[c] = 0.0;
        for (int64_t j = 0; j < s; j++) {
            const double p = exp(dot(q, k + j * step, width) * scale - top);
            sum += p;
            for (int64_t c = 0; c < count; c++)
                acc[c] += p * v[j * step + c0 + c];
        }
        for (int64_t c = 0; c < count; c++)
            dst[c0 + c] = (float)(acc[c] / sum);
    }
}

void qd_k_attention(float *dst, const float *q, const float *k, const float *v, int64_t n, int64_t t, int64_t s,
                    int64_t c, int64_t heads, float scale)
{
    const int64_t width = c / heads;
    for (int64_t i = 0; i < n; i++)
        for (int64_t row = 0; row < t; row++)
            for (int64_t h = 0; h < heads; h++)
                attend(dst + (i * t + row) * c + h * width, q + (i * t + row) * c + h * width,
                       k + i * s * c + h * width, v + i * s * c + h * width, s, width, c, scale);
}
