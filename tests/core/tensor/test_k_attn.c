/* test_k_attn.c - softmax and attention by their laws. */
#include "harness/harness.h"

#include <math.h>
#include <string.h>

#include "tensor/kernels.h"

static void softmax_sums_to_one(void **state)
{
    enum { OUTER = 3, AXIS = 50, INNER = 4 };
    static float x[OUTER * AXIS * INNER], y[OUTER * AXIS * INNER], z[OUTER * AXIS * INNER];
    harness_normal(x, OUTER * AXIS * INNER, 11, 5.0f);
    qd_k_softmax(y, x, OUTER, AXIS, INNER);
    for (int o = 0; o < OUTER; o++)
        for (int i = 0; i < INNER; i++) {
            double sum = 0.0;
            for (int k = 0; k < AXIS; k++)
                sum += y[(o * AXIS + k) * INNER + i];
            assert_true(fabs(sum - 1.0) < 1e-6);
        }
    /* A constant added to all scores changes nothing, however large. */
    for (int k = 0; k < OUTER * AXIS * INNER; k++)
        x[k] = roundf(x[k] * 64) / 64;
    qd_k_softmax(y, x, OUTER, AXIS, INNER);
    for (int k = 0; k < OUTER * AXIS * INNER; k++)
        x[k] += 4096.0f; /* exact: 64ths fit below 2^24 / 64 */
    qd_k_softmax(z, x, OUTER, AXIS, INNER);
    check_close(z, y, OUTER * AXIS * INNER, 0, 0);
}

enum { NB = 2, T = 5, S = 4, C = 12 };

static float q[NB * T * C], k[NB * S * C], v[NB * S * C], out[NB * T * C], other[NB * T * C];

static int fill(void **state)
{
    harness_normal(q, NB * T * C, 1, 1.0f);
    harness_normal(k, NB * S * C, 2, 1.0f);
    harness_normal(v, NB * S * C, 3, 1.0f);
    return 0;
}

/* diffusion_models.md 9.4: with one key the weights are 1 and the value passes through. */
static void one_key_passes_its_value(void **state)
{
    qd_k_attention(out, q, k, v, 1, T, 1, C, 3, 0.5f);
    for (int t = 0; t < T; t++)
        check_close(out + t * C, v, C, 0, 0);
}

/* Scores of zero weigh all values alike. */
static void zero_scale_is_the_mean(void **state)
{
    float mean[C] = { 0 };
    qd_k_attention(out, q, k, v, 1, T, S, C, 2, 0.0f);
    for (int c = 0; c < C; c++) {
        double sum = 0.0;
        for (int s = 0; s < S; s++)
            sum += v[s * C + c];
        mean[c] = (float)(sum / S);
    }
    for (int t = 0; t < T; t++)
        check_close(out + t * C, mean, C, 0, 1e-7);
}

/* Heads are separate: permuting them in q, k and v permutes the result, and nothing else (diffusion_models.md 9.4). */
static void heads_permute(void **state)
{
    enum { HEADS = 3, WIDTH = C / HEADS };
    static float pq[NB * T * C], pk[NB * S * C], pv[NB * S * C];
    static const int to[HEADS] = { 2, 0, 1 };
    for (int h = 0; h < HEADS; h++)
        for (int row = 0; row < NB * T; row++) {
            memcpy(pq + row * C + to[h] * WIDTH, q + row * C + h * WIDTH, WIDTH * sizeof(float));
            if (row < NB * S) {
                memcpy(pk + row * C + to[h] * WIDTH, k + row * C + h * WIDTH, WIDTH * sizeof(float));
                memcpy(pv + row * C + to[h] * WIDTH, v + row * C + h * WIDTH, WIDTH * sizeof(float));
            }
        }
    qd_k_attention(out, q, k, v, NB, T, S, C, HEADS, 0.5f);
    qd_k_attention(other, pq, pk, pv, NB, T, S, C, HEADS, 0.5f);
    for (int row = 0; row < NB * T; row++)
        for (int h = 0; h < HEADS; h++)
            check_close(other + row * C + to[h] * WIDTH, out + row * C + h * WIDTH, WIDTH, 0, 0);
    qd_k_attention(other, q, k, v, NB, T, S, C, 1, 0.5f);
    bool differs = false; /* the law above would hold if heads were ignored, so they must matter */
    for (int i = 0; i < NB * T * C; i++)
        differs = differs || fabsf(other[i] - out[i]) > 1e-3f;
    assert_true(differs);
}

/* Two samples in one call are the two samples one by one. */
static void samples_are_separate(void **state)
{
    qd_k_attention(out, q, k, v, NB, T, S, C, 2, 0.7f);
    for (int n = 0; n < NB; n++)
        qd_k_attention(other + n * T * C, q + n * T * C, k + n * S * C, v + n * S * C, 1, T, S, C, 2, 0.7f);
    check_close(out, other, NB * T * C, 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(softmax_sums_to_one),    cmocka_unit_test(one_key_passes_its_value),
        cmocka_unit_test(zero_scale_is_the_mean), cmocka_unit_test(heads_permute),
        cmocka_unit_test(samples_are_separate),
    };
    return cmocka_run_group_tests(tests, fill, NULL);
}
