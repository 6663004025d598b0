/* test_k_gemm.c - products: every transposition gives the same bytes, linear is a product, the integer one is exact. */
#include "harness/harness.h"

#include <math.h>
#include <string.h>

#include "tensor/kernels.h"

#define CODES(weight, scale)                                                                                           \
    &(qd_k_codes)                                                                                                      \
    {                                                                                                                  \
        .codes = (weight), .bits = 8, .wscale = (scale)                                                                \
    }

enum { M = 7, N = 37, K = 19 }; /* N is wider than two tiles and no multiple of one */

static void transpose(float *dst, const float *src, int rows, int cols)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            dst[j * rows + i] = src[i * cols + j];
}

static void transpositions_agree(void **state)
{
    float a[M * K], at[M * K], b[K * N], bt[K * N], want[M * N], got[M * N];
    harness_normal(a, M * K, 1, 1.0f);
    harness_normal(b, K * N, 2, 1.0f);
    transpose(at, a, M, K);
    transpose(bt, b, K, N);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0.0;
            for (int k = 0; k < K; k++)
                sum += (double)a[i * K + k] * b[k * N + j];
            want[i * N + j] = (float)(0.25f * sum);
        }
    for (int ta = 0; ta < 2; ta++)
        for (int tb = 0; tb < 2; tb++) {
            memset(got, 0x7f, sizeof got);
            qd_k_gemm(got, ta ? at : a, tb ? bt : b, M, N, K, ta, tb, 0.25f);
            check_close(got, want, M * N, 0, 0);
        }

    float bias[N], with_bias[M * N];
    harness_normal(bias, N, 3, 1.0f);
    qd_k_linear(got, a, bt, NULL, M, K, N);
    qd_k_linear(with_bias, a, bt, bias, M, K, N);
    for (int k = 0; k < M * N; k++)
        want[k] *= 4.0f; /* exact: a power of two */
    check_close(got, want, M * N, 0, 0);
    for (int k = 0; k < M * N; k++)
        want[k] += bias[k % N];
    check_close(with_bias, want, M * N, 0, 2e-7); /* one rounding against two */
}

/* Large sums of small and large terms: in float the small ones would be lost. */
static void sums_in_double(void **state)
{
    enum { LONG = 4096 };
    static float a[LONG], b[LONG];
    float out;
    a[0] = 16777216.0f;
    b[0] = 1.0f;
    for (int k = 1; k < LONG; k++)
        a[k] = b[k] = 1.0f;
    qd_k_gemm(&out, a, b, 1, 1, LONG, false, false, 1.0f);
    assert_true(out == 16777216.0f + 4096.0f); /* 16781311 is odd and above 2^24: rounded to even once, at the end */
}

static void integer_product(void **state)
{
    uint8_t codes[2 * K];
    int8_t weight[5 * K];
    float x[2 * K], w[5 * K], scaled[10], got[10];
    const float wscale[5] = { 0.5f, 1.0f, 2.0f, 0.25f, 4.0f }, bias[5] = { 1, 2, 3, 4, 5 };
    qd_rng r;
    qd_rng_init(&r, 3, 0);
    for (int signs = 0; signs < 2; signs++) {
        const int32_t zero = signs ? -5 : 200;
        for (int k = 0; k < 2 * K; k++) {
            codes[k] = (uint8_t)qd_rng_below(&r, 256);
            x[k] = (float)((signs ? (int8_t)codes[k] : codes[k]) - zero);
        }
        for (int k = 0; k < 5 * K; k++)
            w[k] = weight[k] = (int8_t)((int)qd_rng_below(&r, 256) - 128);
        qd_k_linear(scaled, x, w, NULL, 2, K, 5);
        for (int k = 0; k < 10; k++)
            scaled[k] = scaled[k] * (0.125f * wscale[k % 5]) + bias[k % 5];
        qd_k_qlinear(got, codes, signs, CODES(weight, wscale), bias, 0.125f, zero, 2, K, 5);
        check_close(got, scaled, 10, 0, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(transpositions_agree),
        cmocka_unit_test(sums_in_double),
        cmocka_unit_test(integer_product),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
