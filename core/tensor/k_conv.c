/* k_conv.c - convolution in float and on integer codes, pooling, nearest upsampling. */
#include "tensor/kernels.h"

#include <math.h>

#include "tensor/tensor.h"

/* Output columns whose sums are kept side by side; each sum still runs over channel, row and column of the weight in order. */
enum { TILE = 64 };

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max_i64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The x in [first, last) with 0 <= x * stride + offset < size, as [*lo, *hi): the outputs for which one tap of the window lies
 * inside the picture. Found once per tap, so that the inner loops ask nothing. */
static void taps_inside(int64_t first, int64_t last, int64_t stride, int64_t offset, int64_t size, int64_t *lo,
                        int64_t *hi)
{
    const int64_t from = offset >= 0 ? 0 : (stride - 1 - offset) / stride;
    const int64_t to = offset >= size ? 0 : (size - 1 - offset) / stride + 1;
    *lo = max_i64(first, from);
    *hi = min_i64(last, to);
}

/* acc[x - x0] = sum over this group's channels and the window, for output columns [x0, x1) of output row y. */
static void conv_tile(double *acc, const float *src, const float *weight, const qd_conv_shape *s, int64_t y, int64_t x0,
                      int64_t x1)
{
    const int64_t channels = s->c / s->groups;
    for (int64_t x = 0; x < x1 - x0; x++)
        acc[x] = 0.0;
    for (int64_t c = 0; c < channels; c++) {
        for (int64_t ky = 0; ky < s->kh; ky++) {
            const int64_t iy = y * s->stride_h - s->pad_t + ky * s->dil_h;
            if (iy < 0 || iy >= s->h)
                continue;
            const float *row = src + (c * s->h + iy) * s->w;
            for (int64_t kx = 0; kx < s->kw; kx++) {
                const double w = weight[(c * s->kh + ky) * s->kw + kx];
                const int64_t offset = kx * s->dil_w - s->pad_l;
                int64_t lo, hi;
                taps_inside(x0, x1, s->stride_w, offset, s->w, &lo, &hi);
                for (int64_t x = lo; x < hi; x++)
                    acc[x - x0] += w * row[x * s->stride_w + offset];
            }
        }
    }
}

void qd_k_conv2d(float *dst, const float *src, const float *weight, const float *bias, const qd_conv_shape *s)
{
    double acc[TILE];
    const int64_t in_group = s->c / s->groups, out_group = s->o / s->groups;
    for (int64_t n = 0; n < s->n; n++) {
        for (int64_t o = 0; o < s->o; o++) {
            const float *group = src + (n * s->c + o / out_group * in_group) * s->h * s->w;
            const float *filter = weight + o * in_group * s->kh * s->kw;
            const double b = bias ? bias[o] : 0.0f;
            for (int64_t y = 0; y < s->oh; y++) {
                float *row = dst + ((n * s->o + o) * s->oh + y) * s->ow;
                for (int64_t x0 = 0; x0 < s->ow; x0 += TILE) {
                    const int64_t x1 = min_i64(x0 + TILE, s->ow);
                    conv_tile(acc, group, filter, s, y, x0, x1);
                    for (int64_t x = x0; x < x1; x++)
                        row[x] = (float)(acc[x - x0] + b);
                }
            }
        }
    }
}

/* As conv_tile on codes. `first` is the index of the group's first code; taps in the padding are real zeros and add nothing. */
static void qconv_tile(int32_t *acc, const void *codes, bool is_signed, int64_t first, const int8_t *weight,
                       int32_t x_zero, const qd_conv_shape *s, int64_t y, int64_t x0, int64_t x1)
{
    const int64_t channels = s->c / s->groups;
    for (int64_t x = 0; x < x1 - x0; x++)
        acc[x] = 0;
    for (int64_t c = 0; c < channels; c++) {
        for (int64_t ky = 0; ky < s->kh; ky++) {
            const int64_t iy = y * s->stride_h - s->pad_t + ky * s->dil_h;
            if (iy < 0 || iy >= s->h)
                continue;
            const int64_t row = first + (c * s->h + iy) * s->w;
            for (int64_t kx = 0; kx < s->kw; kx++) {
                const int32_t w = weight[(c * s->kh + ky) * s->kw + kx];
                const int64_t offset = kx * s->dil_w - s->pad_l;
                int64_t lo, hi;
                taps_inside(x0, x1, s->stride_w, offset, s->w, &lo, &hi);
                if (is_signed) {
                    const int8_t *q = (const int8_t *)codes + row;
                    for (int64_t x = lo; x < hi; x++)
                        acc[x - x0] += (q[x * s->stride_w + offset] - x_zero) * w;
                } else {
                    const uint8_t *q = (const uint8_t *)codes + row;
                    for (int64_t x = lo; x < hi; x++)
                        acc[x - x0] += (q[x * s->stride_w + offset] - x_zero) * w;
                }
            }
        }
    }
}

int64_t qd_k_scales(int64_t channels, int64_t group)
{
    return group ? (channels + group - 1) / group : 1;
}

/* Row y of one output channel: first code and scales of its group of channels. */
static void packed_row(float *row, const void *codes, bool is_signed, int64_t first, const int8_t *filter,
                       const float *wscale, int64_t group, float b, float x_scale, int32_t x_zero,
                       const qd_conv_shape *s, int64_t y)
{
    int32_t acc[TILE];
    double sum[TILE];
    const int64_t channels = s->c / s->groups, kernel = s->kh * s->kw, scales = qd_k_scales(channels, group);
    for (int64_t x0 = 0; x0 < s->ow; x0 += TILE) {
        const int64_t x1 = min_i64(x0 + TILE, s->ow);
        for (int64_t x = x0; x < x1; x++)
            sum[x - x0] = 0.0;
        for (int64_t k = 0; k < scales; k++) {
            const int64_t c = k * group, count = scales == 1 ? channels : min_i64(group, channels - c);
            qd_conv_shape part = *s;
            part.c = count;
            part.groups = 1;
            qconv_tile(acc, codes, is_signed, first + c * s->h * s->w, filter + c * kernel, x_zero, &part, y, x0, x1);
            const float scale = x_scale * wscale[k];
            for (int64_t x = x0; x < x1; x++)
                sum[x - x0] += (double)((float)acc[x - x0] * scale);
        }
        for (int64_t x = x0; x < x1; x++)
            row[x] = (float)sum[x - x0] + b;
    }
}

void qd_k_qconv2d(float *dst, const void *codes, bool is_signed, const qd_k_codes *weight, const float *bias,
                  float x_scale, int32_t x_zero, const qd_conv_shape *s)
{
    int8_t filter[QD_K_MAX_PRODUCTS];
    const int64_t in_group = s->c / s->groups, out_group = s->o / s->groups;
    const int64_t scales = qd_k_scales(in_group, weight->group);
    for (int64_t o = 0; o < s->o; o++) {
        qd_codes_read(filter, weight->codes, o, in_group * s->kh * s->kw, weight->bits);
        for (int64_t n = 0; n < s->n; n++) {
            const int64_t first = (n * s->c + o / out_group * in_group) * s->h * s->w;
            for (int64_t y = 0; y < s->oh; y++)
                packed_row(dst + ((n * s->o + o) * s->oh + y) * s->ow, codes, is_signed, first, filter,
                           weight->wscale + o * scales, weight->group, bias ? bias[o] : 0.0f, x_scale, x_zero, s, y);
        }
    }
}

/* Output pixel (y, x) of channel o: the taps (ky, kx) that some input pixel puts there. */
static double transposed_at(const float *src, const float *weight, const qd_conv_shape *s, int64_t y, int64_t x)
{
    const int64_t channels = s->c / s->groups, out_group = s->o / s->groups;
    double sum = 0.0;
    for (int64_t ky = 0; ky < s->kh; ky++) {
        const int64_t from_y = y + s->pad_t - ky * s->dil_h;
        if (from_y < 0 || from_y % s->stride_h || from_y / s->stride_h >= s->h)
            continue;
        for (int64_t kx = 0; kx < s->kw; kx++) {
            const int64_t from_x = x + s->pad_l - kx * s->dil_w;
            if (from_x < 0 || from_x % s->stride_w || from_x / s->stride_w >= s->w)
                continue;
            const float *pixel = src + from_y / s->stride_h * s->w + from_x / s->stride_w;
            const float *tap = weight + ky * s->kw + kx;
            for (int64_t c = 0; c < channels; c++)
                sum += (double)pixel[c * s->h * s->w] * tap[c * out_group * s->kh * s->kw];
        }
    }
    return sum;
}

void qd_k_conv_transpose2d(float *dst, const float *src, const float *weight, const float *bias, const qd_conv_shape *s)
{
    const int64_t in_group = s->c / s->groups, out_group = s->o / s->groups;
    for (int64_t n = 0; n < s->n; n++)
        for (int64_t o = 0; o < s->o; o++) {
            const int64_t first = o / out_group * in_group;
            const float *planes = src + (n * s->c + first) * s->h * s->w;
            const float *filter = weight + (first * out_group + o % out_group) * s->kh * s->kw;
            for (int64_t y = 0; y < s->oh; y++)
                for (int64_t x = 0; x < s->ow; x++)
                    *dst++ = (float)(transposed_at(planes, filter, s, y, x) + (bias ? bias[o] : 0.0f));
        }
}

void qd_k_upsample(float *dst, const float *src, int64_t planes, int64_t h, int64_t w, int64_t fh, int64_t fw)
{
    const int64_t oh = h * fh, ow = w * fw;
    for (int64_t p = 0; p < planes; p++)
        for (int64_t y = 0; y < oh; y++)
            for (int64_t x = 0; x < ow; x++)
                dst[(p * oh + y) * ow + x] = src[(p * h + y / fh) * w + x / fw];
}

/* The part of a pooling window that lies inside the picture: rows [y0, y1), columns [x0, x1). */
typedef struct window {
    int64_t y0, y1, x0, x1;
} window;

static window window_at(const qd_conv_shape *s, int64_t y, int64_t x)
{
    const int64_t top = y * s->stride_h - s->pad_t, left = x * s->stride_w - s->pad_l;
    return (window){ max_i64(top, 0), min_i64(top + s->kh, s->h), max_i64(left, 0), min_i64(left + s->kw, s->w) };
}

void qd_k_avg_pool(float *dst, const float *src, const qd_conv_shape *s, bool count_pad)
{
    for (int64_t p = 0; p < s->n * s->c; p++) {
        const float *plane = src + p * s->h * s->w;
        for (int64_t y = 0; y < s->oh; y++) {
            for (int64_t x = 0; x < s->ow; x++) {
                const window in = window_at(s, y, x);
                const int64_t count = count_pad ? s->kh * s->kw : (in.y1 - in.y0) * (in.x1 - in.x0);
                double sum = 0.0;
                for (int64_t iy = in.y0; iy < in.y1; iy++)
                    for (int64_t ix = in.x0; ix < in.x1; ix++)
                        sum += plane[iy * s->w + ix];
                dst[(p * s->oh + y) * s->ow + x] = (float)(sum / (double)count);
            }
        }
    }
}

void qd_k_max_pool(float *dst, const float *src, const qd_conv_shape *s)
{
    for (int64_t p = 0; p < s->n * s->c; p++) {
        const float *plane = src + p * s->h * s->w;
        for (int64_t y = 0; y < s->oh; y++) {
            for (int64_t x = 0; x < s->ow; x++) {
                const window in = window_at(s, y, x);
                float best = -INFINITY;
                for (int64_t iy = in.y0; iy < in.y1; iy++) {
                    for (int64_t ix = in.x0; ix < in.x1; ix++) {
                        const float v = plane[iy * s->w + ix];
                        if (v > best || isnan(v)) /* a NaN in the window is the answer, as in PyTorch */
                            best = v;
                        if (isnan(best))
                            break;
                    }
                }
                dst[(p * s->oh + y) * s->ow + x] = best;
            }
        }
    }
}
