/* k_attn.c - softmax and multi-head attention, in float and on codes. */
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

enum { CHUNK = 256 }; /* channels of a result that are summed at once */

static double dot(const float *a, const float *b, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

/* One query of one head: dst[width] = sum_j softmax_j(q . k_j scale) v_j. Rows of k and v are `step` apart. most > 0: the weights are
 * rounded to codes of which that is the largest.
 *
 * The scores are computed again for every CHUNK channels of the result: a kernel has no memory of its own to keep them in. */
static void attend(float *dst, const float *q, const float *k, const float *v, int64_t s, int64_t width, int64_t step,
                   double scale, double most)
{
    double acc[CHUNK], top = -INFINITY;
    for (int64_t j = 0; j < s; j++)
        top = fmax(top, dot(q, k + j * step, width) * scale);

    for (int64_t c0 = 0; c0 < width; c0 += CHUNK) {
        const int64_t count = width - c0 < CHUNK ? width - c0 : CHUNK;
        double sum = 0.0;
        for (int64_t c = 0; c < count; c++)
            acc[c] = 0.0;
        for (int64_t j = 0; j < s; j++) {
            double p = exp(dot(q, k + j * step, width) * scale - top);
            if (most > 0.0)
                p = nearbyint(p * most);
            sum += p;
            for (int64_t c = 0; c < count; c++)
                acc[c] += p * v[j * step + c0 + c];
        }
        for (int64_t c = 0; c < count; c++)
            dst[c0 + c] = (float)(acc[c] / sum);
    }
}

static void attention(float *dst, const float *q, const float *k, const float *v, int64_t n, int64_t t, int64_t s,
                      int64_t c, int64_t heads, float scale, double most)
{
    const int64_t width = c / heads;
    for (int64_t i = 0; i < n; i++)
        for (int64_t row = 0; row < t; row++)
            for (int64_t h = 0; h < heads; h++)
                attend(dst + (i * t + row) * c + h * width, q + (i * t + row) * c + h * width,
                       k + i * s * c + h * width, v + i * s * c + h * width, s, width, c, scale, most);
}

void qd_k_attention(float *dst, const float *q, const float *k, const float *v, int64_t n, int64_t t, int64_t s,
                    int64_t c, int64_t heads, float scale)
{
    attention(dst, q, k, v, n, t, s, c, heads, scale, 0.0);
}

void qd_k_fake_attention(float *dst, const float *q, const float *k, const float *v, int64_t n, int64_t t, int64_t s,
                         int64_t c, int64_t heads, float scale, int softmax_bits)
{
    attention(dst, q, k, v, n, t, s, c, heads, scale, (double)((1 << softmax_bits) - 1));
}

/* --- on codes --- */

static int32_t code_at(const void *codes, bool is_signed, int64_t i)
{
    return is_signed ? ((const int8_t *)codes)[i] : ((const uint8_t *)codes)[i];
}

static int64_t score(const qd_k_head_codes *a, int64_t q, int64_t k, int64_t width)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < width; i++)
        sum +=
            (int64_t)(code_at(a->q, a->q_signed, q + i) - a->q_zero) * (code_at(a->k, a->k_signed, k + i) - a->k_zero);
    return sum;
}

/* One query of one head: its codes at q, those of keys and values from k, `step` apart. */
static void attend_codes(float *dst, const qd_k_head_codes *a, int64_t q, int64_t k, int64_t s, int64_t width,
                         int64_t step)
{
    int64_t acc[CHUNK], top = INT64_MIN;
    const float most = (float)((1 << a->softmax_bits) - 1);
    for (int64_t j = 0; j < s; j++) {
        const int64_t x = score(a, q, k + j * step, width);
        top = x > top ? x : top;
    }
    for (int64_t c0 = 0; c0 < width; c0 += CHUNK) {
        const int64_t count = width - c0 < CHUNK ? width - c0 : CHUNK;
        int64_t sum = 0;
        for (int64_t c = 0; c < count; c++)
            acc[c] = 0;
        for (int64_t j = 0; j < s; j++) {
            const float x = (float)(score(a, q, k + j * step, width) - top) * a->score_step;
            const int64_t p = (int64_t)nearbyint(exp((double)x) * (double)most);
            sum += p;
            for (int64_t c = 0; c < count; c++)
                acc[c] += p * (code_at(a->v, a->v_signed, k + j * step + c0 + c) - a->v_zero);
        }
        for (int64_t c = 0; c < count; c++)
            dst[c0 + c] = (float)((double)acc[c] / (double)sum * (double)a->v_scale);
    }
}

void qd_k_qattention(float *dst, const qd_k_head_codes *a, int64_t n, int64_t t, int64_t s, int64_t c, int64_t heads)
{
    const int64_t width = c / heads;
    for (int64_t i = 0; i < n; i++)
        for (int64_t row = 0; row < t; row++)
            for (int64_t h = 0; h < heads; h++) {
                const int64_t q = (i * t + row) * c + h * width;
                attend_codes(dst + q, a, q, i * s * c + h * width, s, width, c);
            }
}
