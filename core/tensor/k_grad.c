/* k_grad.c - derivatives of the kernels, as plain loops with sums in double. */
#include <math.h>

#include "tensor/kernels.h"

/* --- functions of one value --- */

static double slope_of(double x, qd_unary f)
{
    switch (f) {
    case QD_SILU: {
        const double s = 1.0 / (1.0 + exp(-x));
        return s * (1.0 + x * (1.0 - s));
    }
    case QD_RELU:
        return x > 0.0;
    case QD_GELU:
        return 0.5 * (1.0 + erf(x * M_SQRT1_2)) + x * exp(-0.5 * x * x) * M_2_SQRTPI * M_SQRT1_2 * 0.5;
    case QD_SIGMOID: {
        const double s = 1.0 / (1.0 + exp(-x));
        return s * (1.0 - s);
    }
    case QD_TANH: {
        const double t = tanh(x);
        return 1.0 - t * t;
    }
    case QD_SQRT:
        return 0.5 / sqrt(x);
    case QD_EXP:
        return exp(x);
    case QD_LOG:
        return 1.0 / x;
    case QD_ABS:
        return (x > 0.0) - (x < 0.0);
    case QD_ERF:
        return exp(-x * x) * M_2_SQRTPI;
    case QD_SIN:
        return cos(x);
    case QD_COS:
        return -sin(x);
    }
    return NAN;
}

void qd_k_unary_grad(float *dsrc, const float *ddst, const float *src, int64_t n, qd_unary f)
{
    for (int64_t i = 0; i < n; i++)
        dsrc[i] = (float)(ddst[i] * slope_of(src[i], f));
}

/* dx = y (dy - sum dy y) */
void qd_k_softmax_grad(float *dsrc, const float *ddst, const float *dst, int64_t outer, int64_t axis, int64_t inner)
{
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            const int64_t at = o * axis * inner + i;
            double sum = 0.0;
            for (int64_t k = 0; k < axis; k++)
                sum += (double)ddst[at + k * inner] * dst[at + k * inner];
            for (int64_t k = 0; k < axis; k++)
                dsrc[at + k * inner] = (float)(dst[at + k * inner] * (ddst[at + k * inner] - sum));
        }
}

/* dx = dy - exp(y) sum dy */
void qd_k_log_softmax_grad(float *dsrc, const float *ddst, const float *dst, int64_t outer, int64_t axis, int64_t inner)
{
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            const int64_t at = o * axis * inner + i;
            double sum = 0.0;
            for (int64_t k = 0; k < axis; k++)
                sum += ddst[at + k * inner];
            for (int64_t k = 0; k < axis; k++)
                dsrc[at + k * inner] = (float)(ddst[at + k * inner] - exp(dst[at + k * inner]) * sum);
        }
}

/* --- convolution --- */

/* The output index whose tap k reads input index `at`, or -1. */
static int64_t reader_of(int64_t at, int64_t pad, int64_t k, int64_t dilation, int64_t stride, int64_t outputs)
{
    const int64_t from = at + pad - k * dilation;
    return from < 0 || from % stride || from / stride >= outputs ? -1 : from / stride;
}

void qd_k_conv2d_grad_input(float *dsrc, const float *ddst, const float *weight, const qd_conv_shape *s)
{
    const int64_t cg = s->c / s->groups, og = s->o / s->groups;
    for (int64_t n = 0; n < s->n; n++)
        for (int64_t c = 0; c < s->c; c++)
            for (int64_t y = 0; y < s->h; y++)
                for (int64_t x = 0; x < s->w; x++) {
                    double sum = 0.0;
                    for (int64_t ky = 0; ky < s->kh; ky++) {
                        const int64_t oy = reader_of(y, s->pad_t, ky, s->dil_h, s->stride_h, s->oh);
                        for (int64_t kx = 0; oy >= 0 && kx < s->kw; kx++) {
                            const int64_t ox = reader_of(x, s->pad_l, kx, s->dil_w, s->stride_w, s->ow);
                            for (int64_t o = c / cg * og; ox >= 0 && o < (c / cg + 1) * og; o++)
                                sum += (double)ddst[((n * s->o + o) * s->oh + oy) * s->ow + ox] *
                                       weight[((o * cg + c % cg) * s->kh + ky) * s->kw + kx];
                        }
                    }
                    dsrc[((n * s->c + c) * s->h + y) * s->w + x] = (float)sum;
                }
}

void qd_k_conv2d_grad_weight(float *dweight, const float *ddst, const float *src, const qd_conv_shape *s)
{
    const int64_t cg = s->c / s->groups, og = s->o / s->groups;
    for (int64_t o = 0; o < s->o; o++)
        for (int64_t c = 0; c < cg; c++)
            for (int64_t ky = 0; ky < s->kh; ky++)
                for (int64_t kx = 0; kx < s->kw; kx++) {
                    double sum = 0.0;
                    for (int64_t n = 0; n < s->n; n++) {
                        const float *plane = src + (n * s->c + o / og * cg + c) * s->h * s->w;
                        const float *dy = ddst + (n * s->o + o) * s->oh * s->ow;
                        for (int64_t oy = 0; oy < s->oh; oy++) {
                            const int64_t y = oy * s->stride_h - s->pad_t + ky * s->dil_h;
                            for (int64_t ox = 0; y >= 0 && y < s->h && ox < s->ow; ox++) {
                                const int64_t x = ox * s->stride_w - s->pad_l + kx * s->dil_w;
                                if (x >= 0 && x < s->w)
                                    sum += (double)dy[oy * s->ow + ox] * plane[y * s->w + x];
                            }
                        }
                    }
                    dweight[((o * cg + c) * s->kh + ky) * s->kw + kx] = (float)sum;
                }
}

/* --- pools --- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* First and last output whose window holds input index `at`. */
static void readers_of(int64_t at, int64_t pad, int64_t kernel, int64_t stride, int64_t outputs, int64_t range[2])
{
    const int64_t first = at + pad - kernel + 1;
    range[0] = first <= 0 ? 0 : (first + stride - 1) / stride;
    range[1] = least((at + pad) / stride, outputs - 1);
}

void qd_k_avg_pool_grad(float *dsrc, const float *ddst, const qd_conv_shape *s, bool count_pad)
{
    for (int64_t p = 0; p < s->n * s->c; p++)
        for (int64_t y = 0; y < s->h; y++)
            for (int64_t x = 0; x < s->w; x++) {
                int64_t rows[2], columns[2];
                double sum = 0.0;
                readers_of(y, s->pad_t, s->kh, s->stride_h, s->oh, rows);
                readers_of(x, s->pad_l, s->kw, s->stride_w, s->ow, columns);
                for (int64_t oy = rows[0]; oy <= rows[1]; oy++)
                    for (int64_t ox = columns[0]; ox <= columns[1]; ox++) {
                        const int64_t top = oy * s->stride_h - s->pad_t, left = ox * s->stride_w - s->pad_l;
                        const int64_t high = least(top + s->kh, s->h) - most(top, 0);
                        const int64_t wide = least(left + s->kw, s->w) - most(left, 0);
                        sum += ddst[(p * s->oh + oy) * s->ow + ox] / (double)(count_pad ? s->kh * s->kw : high * wide);
                    }
                dsrc[(p * s->h + y) * s->w + x] = (float)sum;
            }
}

void qd_k_max_pool_grad(float *dsrc, const float *ddst, const float *src, const qd_conv_shape *s)
{
    for (int64_t i = 0; i < s->n * s->c * s->h * s->w; i++)
        dsrc[i] = 0.0f;
    for (int64_t p = 0; p < s->n * s->c; p++)
        for (int64_t oy = 0; oy < s->oh; oy++)
            for (int64_t ox = 0; ox < s->ow; ox++) {
                const int64_t top = oy * s->stride_h - s->pad_t, left = ox * s->stride_w - s->pad_l;
                int64_t best = -1;
                for (int64_t y = most(top, 0); y < least(top + s->kh, s->h); y++)
                    for (int64_t x = most(left, 0); x < least(left + s->kw, s->w); x++) {
                        const int64_t at = (p * s->h + y) * s->w + x;
                        if (best < 0 || src[at] > src[best])
                            best = at;
                    }
                dsrc[best] += ddst[(p * s->oh + oy) * s->ow + ox];
            }
}

/* --- norms --- */

static void moments(const float *x, int64_t n, double *mean, double *var)
{
    double sum = 0.0, squares = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i];
    *mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += (x[i] - *mean) * (x[i] - *mean);
    *var = squares / (double)n;
}

/* Which weight scales element i of row r. */
static int64_t weight_at(int64_t r, int64_t i, int64_t width, int64_t period, int64_t inner)
{
    return r % period * (width / inner) + i / inner;
}

void qd_k_norm_grad(float *dsrc, const float *ddst, const float *src, const float *weight, int64_t rows, int64_t width,
                    int64_t period, int64_t inner, float eps)
{
    for (int64_t r = 0; r < rows; r++) {
        const float *x = src + r * width, *dy = ddst + r * width;
        double mean, var, sum = 0.0, product = 0.0;
        moments(x, width, &mean, &var);
        const double rstd = 1.0 / sqrt(var + eps);
        for (int64_t i = 0; i < width; i++) {
            const double g = dy[i] * (double)(weight ? weight[weight_at(r, i, width, period, inner)] : 1.0f);
            sum += g;
            product += g * (x[i] - mean) * rstd;
        }
        for (int64_t i = 0; i < width; i++) {
            const double g = dy[i] * (double)(weight ? weight[weight_at(r, i, width, period, inner)] : 1.0f);
            const double unit = (x[i] - mean) * rstd;
            dsrc[r * width + i] = (float)(rstd * (g - sum / (double)width - unit * product / (double)width));
        }
    }
}

void qd_k_norm_grad_weight(float *dweight, const float *ddst, const float *src, int64_t rows, int64_t width,
                           int64_t period, int64_t inner, float eps)
{
    enum {
        BLOCK = 64
    }; /* sums at a time: a kernel has no memory of its own, so statistics are taken again for each block */
    const int64_t per_row = width / inner;
    for (int64_t p = 0; p < period; p++)
        for (int64_t first = 0; first < per_row; first += BLOCK) {
            const int64_t count = least(BLOCK, per_row - first);
            double sum[BLOCK] = { 0.0 };
            for (int64_t r = p; r < rows; r += period) {
                double mean, var;
                moments(src + r * width, width, &mean, &var);
                const double rstd = 1.0 / sqrt(var + eps);
                for (int64_t k = 0; k < count; k++)
                    for (int64_t i = (first + k) * inner; i < (first + k + 1) * inner; i++)
                        sum[k] += ddst[r * width + i] * (src[r * width + i] - mean) * rstd;
            }
            for (int64_t k = 0; k < count; k++)
                dweight[p * per_row + first + k] = (float)sum[k];
        }
}

void qd_k_batch_stats(float *stats, const float *src, int64_t n, int64_t c, int64_t space)
{
    const double count = (double)(n * space);
    for (int64_t k = 0; k < c; k++) {
        double sum = 0.0, squares = 0.0;
        for (int64_t i = 0; i < n * space; i++)
            sum += src[(i / space * c + k) * space + i % space];
        const double mean = sum / count;
        for (int64_t i = 0; i < n * space; i++) {
            const double d = src[(i / space * c + k) * space + i % space] - mean;
            squares += d * d;
        }
        stats[k] = (float)mean;
        stats[c + k] = (float)(squares / count);
    }
}

void qd_k_batch_sums(float *sums, const float *ddst, const float *src, const float *mean, const float *var, int64_t n,
                     int64_t c, int64_t space, float eps)
{
    for (int64_t k = 0; k < c; k++) {
        const double rstd = 1.0 / sqrt((double)var[k] + eps);
        double sum = 0.0, product = 0.0;
        for (int64_t i = 0; i < n * space; i++) {
            const int64_t at = (i / space * c + k) * space + i % space;
            sum += ddst[at];
            product += ddst[at] * (src[at] - (double)mean[k]) * rstd;
        }
        sums[k] = (float)sum;
        sums[c + k] = (float)product;
    }
}

void qd_k_batch_norm_train_grad(float *dsrc, const float *ddst, const float *src, const float *weight,
                                const float *stats, const float *sums, int64_t n, int64_t c, int64_t space, float eps)
{
    const double count = (double)(n * space);
    for (int64_t p = 0; p < n * c; p++) {
        const int64_t k = p % c;
        const double rstd = 1.0 / sqrt((double)stats[c + k] + eps);
        for (int64_t i = p * space; i < (p + 1) * space; i++) {
            const double unit = (src[i] - (double)stats[k]) * rstd;
            dsrc[i] = (float)(weight[k] * rstd * (ddst[i] - sums[k] / count - unit * sums[c + k] / count));
        }
    }
}

/* --- learned quantizers --- */

void qd_k_learned_quant(float *dst, const float *src, const float *scale, int64_t n, int64_t channels, int64_t inner,
                        int32_t qmin, int32_t qmax)
{
    for (int64_t i = 0; i < n; i++) {
        const float s = scale[i / inner % channels];
        const float q = rintf(src[i] / s);
        dst[i] = (q < (float)qmin ? (float)qmin : q > (float)qmax ? (float)qmax : q) * s;
    }
}

void qd_k_learned_quant_grad(float *dsrc, const float *ddst, const float *src, const float *scale, int64_t n,
                             int64_t channels, int64_t inner, int32_t qmin, int32_t qmax)
{
    for (int64_t i = 0; i < n; i++) {
        const float r = src[i] / scale[i / inner % channels];
        dsrc[i] = r >= (float)qmin && r <= (float)qmax ? ddst[i] : 0.0f;
    }
}

void qd_k_learned_quant_grad_scale(float *dscale, const float *ddst, const float *src, const float *scale, int64_t n,
                                   int64_t channels, int64_t inner, int32_t qmin, int32_t qmax)
{
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0.0;
        for (int64_t first = c * inner; first < n; first += channels * inner)
            for (int64_t i = first; i < first + inner; i++) {
                const float r = src[i] / scale[c];
                const double slope = r < (float)qmin ? qmin : r > (float)qmax ? qmax : rintf(r) - (double)r;
                sum += ddst[i] * slope;
            }
        dscale[c] = (float)sum;
    }
}

/* h(v) = clamp(sigmoid(v) (hi - lo) + lo, 0, 1), qncd.md 6.1 */
void qd_k_soft_round(float *dst, const float *src, int64_t n, float lo, float hi)
{
    for (int64_t i = 0; i < n; i++) {
        const double h = ((double)hi - lo) / (1.0 + exp(-(double)src[i])) + lo;
        dst[i] = (float)(h < 0.0 ? 0.0 : h > 1.0 ? 1.0 : h);
    }
}

void qd_k_soft_round_grad(float *dsrc, const float *ddst, const float *src, int64_t n, float lo, float hi)
{
    for (int64_t i = 0; i < n; i++) {
        const double s = 1.0 / (1.0 + exp(-(double)src[i])), h = ((double)hi - lo) * s + lo;
        dsrc[i] = h > 0.0 && h < 1.0 ? (float)(ddst[i] * s * (1.0 - s) * ((double)hi - lo)) : 0.0f;
    }
}
