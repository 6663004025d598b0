/* test_k_elem.c - activations at their ends, codes at ties and beyond their range, the time step embedding. */
#include "harness/harness.h"

#include <math.h>

#include "tensor/kernels.h"

static void activations_at_their_ends(void **state)
{
    const float x[5] = { 0.0f, 200.0f, -200.0f, 3e38f, -3e38f };
    float y[5];
    qd_k_unary(y, x, 5, QD_SIGMOID);
    check_close(y, ((const float[]){ 0.5f, 1, 0, 1, 0 }), 5, 1e-37, 0);
    qd_k_unary(y, x, 5, QD_SILU);
    check_close(y, ((const float[]){ 0, 200, 0, 3e38f, 0 }), 5, 1e-37, 0);
    qd_k_unary(y, x, 5, QD_GELU);
    check_close(y, ((const float[]){ 0, 200, 0, 3e38f, 0 }), 5, 0, 0);
    qd_k_unary(y, x, 5, QD_TANH);
    check_close(y, ((const float[]){ 0, 1, -1, 1, -1 }), 5, 0, 0);

    const float nan = NAN;
    for (int f = QD_SILU; f <= QD_TANH; f++) {
        qd_k_unary(y, &nan, 1, (qd_unary)f);
        assert_true(isnan(y[0]));
    }
    qd_k_clip(y, &nan, 1, -1, 1);
    assert_true(isnan(y[0]));
}

/* silu(x) - silu(-x) = x and gelu(x) - gelu(-x) = x, exactly where both are floats of the same size. */
static void activations_are_odd_in_part(void **state)
{
    float x[1000], minus[1000], a[1000], b[1000], difference[1000];
    harness_normal(x, 1000, 5, 3.0f);
    for (int f = 0; f < 2; f++) {
        for (int k = 0; k < 1000; k++)
            minus[k] = -x[k];
        qd_k_unary(a, x, 1000, f ? QD_GELU : QD_SILU);
        qd_k_unary(b, minus, 1000, f ? QD_GELU : QD_SILU);
        for (int k = 0; k < 1000; k++)
            difference[k] = a[k] - b[k];
        check_close(difference, x, 1000, 0, 2e-7); /* three roundings of 6e-8 */
    }
}

static void half_goes_to_even(void **state)
{
    const float x[10] = { 0.5f, 1.5f, 2.5f, 3.5f, -0.5f, -1.5f, -2.5f, -3.5f, 0.49999997f, 2.5000002f };
    const int8_t want[10] = { 0, 2, 2, 4, 0, -2, -2, -4, 0, 3 };
    int8_t q[10];
    qd_k_quantize(q, x, 10, 1.0f, 0, -128, 127, true, NULL, 1, 1);
    assert_memory_equal(q, want, sizeof want);

    /* An odd zero is added after rounding: rne(2.5) + 3 = 5, not rne(5.5) = 6 (qncd.md 3.1). */
    uint8_t u[10];
    qd_k_quantize(u, x, 10, 1.0f, 3, 0, 15, false, NULL, 1, 1);
    const uint8_t shifted[10] = { 3, 5, 5, 7, 3, 1, 1, 0, 3, 6 };
    assert_memory_equal(u, shifted, sizeof shifted);
}

static void codes_stay_in_range(void **state)
{
    const float x[8] = { NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e10f, -1e10f, 0.0f };
    uint8_t u[8];
    qd_k_quantize(u, x, 8, 1e30f, 7, 0, 15, false, NULL, 1, 1);
    const uint8_t want[8] = { 7, 15, 0, 15, 0, 15, 0, 7 };
    assert_memory_equal(u, want, sizeof want);

    /* 0 * infinity is NaN too, and means zero. */
    const float inv_div = INFINITY, nothing = 0.0f;
    qd_k_quantize(u, &nothing, 1, 1.0f, 9, 0, 15, false, &inv_div, 1, 1);
    assert_int_equal(u[0], 9);
}

/* The divisor of element i is that of channel (i / inner) % channels. */
static void divisor_goes_by_channel(void **state)
{
    float x[24];
    uint8_t u[24];
    const float inv_div[3] = { 1.0f, 0.5f, 0.25f };
    for (int k = 0; k < 24; k++)
        x[k] = 8.0f;
    qd_k_quantize(u, x, 24, 1.0f, 1, 0, 255, false, inv_div, 3, 4);
    for (int k = 0; k < 24; k++)
        assert_int_equal(u[k], 1 + (8 >> k / 4 % 3));
}

/* decode(encode(x)) is within half a step, and fake_quant is the same without the codes. */
static void round_trip(void **state)
{
    enum { N = 5000 };
    static float x[N], back[N], fake[N];
    static uint8_t q[N];
    const float scale = 0.037f;
    harness_normal(x, N, 9, 1.0f);
    qd_k_quantize(q, x, N, 1.0f / scale, 128, 0, 255, false, NULL, 1, 1);
    qd_k_dequantize(back, q, false, N, scale, 128);
    qd_k_fake_quant(fake, x, N, scale, 128, 0, 255, NULL, 1, 1);
    check_close(back, x, N, 0.5 * scale * (1 + 1e-5), 0);
    check_close(fake, back, N, 0, 0);
}

static void timestep_of_the_specification(void **state)
{
    const float t = 1.0f;
    float row[4];
    qd_k_timestep(row, &t, 1, 4, false, 1.0f, 10000.0f);
    check_close(row, ((const float[]){ 0.841471f, 0.000100f, 0.540302f, 1.000000f }), 4, 6e-7, 0);
    qd_k_timestep(row, &t, 1, 4, true, 0.0f, 10000.0f);
    check_close(row, ((const float[]){ 0.540302f, 0.999950f, 0.841471f, 0.010000f }), 4, 6e-7, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(activations_at_their_ends),
        cmocka_unit_test(activations_are_odd_in_part),
        cmocka_unit_test(half_goes_to_even),
        cmocka_unit_test(codes_stay_in_range),
        cmocka_unit_test(divisor_goes_by_channel),
        cmocka_unit_test(round_trip),
        cmocka_unit_test(timestep_of_the_specification),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
