/* k_gemm.c - matrix products: plain, with weights as PyTorch stores them, and on integer codes. */
#include "tensor/kernels.h"

#include "tensor/tensor.h"

/* Columns of the result that are summed side by side: each sum still runs over k in order. */
enum { TILE = 16 };

/* acc[j] = sum_p a[p * a_step] * b[p * b_step + j * b_col], j = 0..cols-1 */
static void dot_columns(double *acc, const float *a, int64_t a_step, const float *b, int64_t b_step, int64_t b_col,
                        int64_t k, int64_t cols)
{
    for (int64_t j = 0; j < cols; j++)
        acc[j] = 0.0;
    for (int64_t p = 0; p < k; p++) {
        const double x = a[p * a_step];
        for (int64_t j = 0; j < cols; j++)
            acc[j] += x * b[p * b_step + j * b_col];
    }
}

void qd_k_gemm(float *dst, const float *a, const float *b, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b,
               float alpha)
{
    double acc[TILE];
    for (int64_t i = 0; i < m; i++) {
        const float *row = trans_a ? a + i : a + i * k;
        for (int64_t j0 = 0; j0 < n; j0 += TILE) {
            const int64_t cols = n - j0 < TILE ? n - j0 : TILE;
            dot_columns(acc, row, trans_a ? m : 1, trans_b ? b + j0 * k : b + j0, trans_b ? 1 : n, trans_b ? k : 1, k,
                        cols);
            for (int64_t j = 0; j < cols; j++)
                dst[i * n + j0 + j] = (float)(alpha * acc[j]);
        }
    }
}

void qd_k_linear(float *dst, const float *src, const float *weight, const float *bias, int64_t rows, int64_t in,
                 int64_t out)
{
    double acc[TILE];
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j0 = 0; j0 < out; j0 += TILE) {
            const int64_t cols = out - j0 < TILE ? out - j0 : TILE;
            dot_columns(acc, src + i * in, 1, weight + j0 * in, 1, in, in, cols);
            for (int64_t j = 0; j < cols; j++)
                dst[i * out + j0 + j] = (float)(acc[j] + (bias ? bias[j0 + j] : 0.0f));
        }
    }
}

void qd_k_qlinear(float *dst, const void *codes, bool is_signed, const qd_k_codes *weight, const float *bias,
                  float x_scale, int32_t x_zero, int64_t rows, int64_t in, int64_t out)
{
    int8_t filter[QD_K_MAX_PRODUCTS];
    const int64_t scales = qd_k_scales(in, weight->group), width = scales == 1 ? in : weight->group;
    for (int64_t j = 0; j < out; j++) {
        qd_codes_read(filter, weight->codes, j, in, weight->bits);
        for (int64_t i = 0; i < rows; i++) {
            double sum = 0.0;
            for (int64_t k = 0; k < scales; k++) {
                int32_t acc = 0;
                for (int64_t p = k * width; p < in && p < (k + 1) * width; p++) {
                    const int64_t at = i * in + p;
                    const int32_t q = is_signed ? ((const int8_t *)codes)[at] : ((const uint8_t *)codes)[at];
                    acc += (q - x_zero) * filter[p];
                }
                sum += (double)((float)acc * (x_scale * weight->wscale[j * scales + k]));
            }
            dst[i * out + j] = (float)sum + (bias ? bias[j] : 0.0f);
        }
    }
}
