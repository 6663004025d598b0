/* test_k_conv.c - convolution and pooling: traps of padding, exact integer sums, agreement of the integer path with the float one. */
#include "harness/harness.h"

#include <math.h>

#include "tensor/kernels.h"

#define CODES(weight, scale)                                                                                           \
    &(qd_k_codes)                                                                                                      \
    {                                                                                                                  \
        .codes = (weight), .bits = 8, .wscale = (scale)                                                                \
    }

/* diffusion_models.md 9.3: the identity-centre kernel on a 4x4 ramp shows where a stride-2 convolution really looks. */
static void downsample_padding_traps(void **state)
{
    float ramp[16], out[4];
    for (int k = 0; k < 16; k++)
        ramp[k] = (float)(k / 4 * 10 + k % 4); /* row * 10 + column */
    const float centre[9] = { 0, 0, 0, 0, 1, 0, 0, 0, 0 };
    qd_conv_shape s = { .n = 1,
                        .c = 1,
                        .h = 4,
                        .w = 4,
                        .o = 1,
                        .oh = 2,
                        .ow = 2,
                        .kh = 3,
                        .kw = 3,
                        .stride_h = 2,
                        .stride_w = 2,
                        .dil_h = 1,
                        .dil_w = 1,
                        .groups = 1 };
    s.pad_b = s.pad_r = 1; /* downsample_padding 0: zeros to the right and below only */
    qd_k_conv2d(out, ramp, centre, NULL, &s);
    check_close(out, ((const float[]){ 11, 13, 31, 33 }), 4, 0, 0);
    s.pad_t = s.pad_l = 1; /* downsample_padding 1 */
    qd_k_conv2d(out, ramp, centre, NULL, &s);
    check_close(out, ((const float[]){ 0, 2, 20, 22 }), 4, 0, 0);
}

/* The definition, term by term, with every bound asked at every term. */
static double conv_at(const float *src, const float *weight, const qd_conv_shape *s, int64_t n, int64_t o, int64_t y,
                      int64_t x)
{
    const int64_t channels = s->c / s->groups, first = o / (s->o / s->groups) * channels;
    double sum = 0.0;
    for (int64_t c = 0; c < channels; c++)
        for (int64_t ky = 0; ky < s->kh; ky++)
            for (int64_t kx = 0; kx < s->kw; kx++) {
                const int64_t iy = y * s->stride_h + ky * s->dil_h - s->pad_t,
                              ix = x * s->stride_w + kx * s->dil_w - s->pad_l;
                if (iy >= 0 && iy < s->h && ix >= 0 && ix < s->w)
                    sum += (double)weight[((o * channels + c) * s->kh + ky) * s->kw + kx] *
                           src[((n * s->c + first + c) * s->h + iy) * s->w + ix];
            }
    return sum;
}

enum { MOST = 20000 };

/* Random windows: float against the definition; integer codes against the float kernel on (q - zero), where both are exact. */
static void random_windows(void **state)
{
    static float src[MOST], weight[MOST], out[MOST], exact[MOST], wscale[8];
    static uint8_t codes[MOST];
    static int8_t qweight[MOST];
    qd_rng r;
    qd_rng_init(&r, 77, 0);
    int tried = 0;
    while (tried < 300) {
        qd_conv_shape s = { .groups = 1 + qd_rng_below(&r, 3) };
        s.n = 1 + qd_rng_below(&r, 2);
        s.c = s.groups * (1 + qd_rng_below(&r, 3));
        s.o = s.groups * (1 + qd_rng_below(&r, 2));
        s.h = 1 + qd_rng_below(&r, 9);
        s.w = 1 + qd_rng_below(&r, tried % 10 ? 9 : 150);
        s.kh = 1 + qd_rng_below(&r, 4);
        s.kw = 1 + qd_rng_below(&r, 4);
        s.stride_h = 1 + qd_rng_below(&r, 3);
        s.stride_w = 1 + qd_rng_below(&r, 3);
        s.dil_h = 1 + qd_rng_below(&r, 3);
        s.dil_w = 1 + qd_rng_below(&r, 3);
        s.pad_t = qd_rng_below(&r, 5);
        s.pad_l = qd_rng_below(&r, 5);
        s.pad_b = qd_rng_below(&r, 5);
        s.pad_r = qd_rng_below(&r, 5);
        const int64_t room_h = s.h + s.pad_t + s.pad_b - s.dil_h * (s.kh - 1) - 1,
                      room_w = s.w + s.pad_l + s.pad_r - s.dil_w * (s.kw - 1) - 1;
        if (room_h < 0 || room_w < 0)
            continue;
        s.oh = room_h / s.stride_h + 1;
        s.ow = room_w / s.stride_w + 1;
        const int64_t n_src = s.n * s.c * s.h * s.w, n_weight = s.o * s.c / s.groups * s.kh * s.kw,
                      n_out = s.n * s.o * s.oh * s.ow;
        if (n_src > MOST || n_weight > MOST || n_out > MOST)
            continue;
        tried++;

        const bool is_signed = tried % 2;
        const int32_t zero = (int32_t)qd_rng_below(&r, 256) - (is_signed ? 128 : 0);
        for (int64_t k = 0; k < n_src; k++) {
            codes[k] = (uint8_t)qd_rng_below(&r, 256);
            src[k] = (float)((is_signed ? (int8_t)codes[k] : codes[k]) - zero);
        }
        for (int64_t k = 0; k < n_weight; k++)
            weight[k] = qweight[k] = (int8_t)((int)qd_rng_below(&r, 256) - 128);
        for (int64_t k = 0; k < s.o; k++)
            wscale[k] = 1.0f;

        qd_k_conv2d(out, src, weight, NULL, &s);
        for (int64_t k = 0; k < n_out; k++)
            exact[k] = (float)conv_at(src, weight, &s, k / (s.o * s.oh * s.ow), k / (s.oh * s.ow) % s.o,
                                      k / s.ow % s.oh, k % s.ow);
        check_close(out, exact, n_out, 0, 0);
        qd_k_qconv2d(out, codes, is_signed, CODES(qweight, wscale), NULL, 1.0f, zero, &s);
        check_close(out, exact, n_out, 0, 0);
    }
}

/* The longest sum allowed, of the largest products, both ways: still exact in 32 bits. */
static void longest_integer_sum(void **state)
{
    static uint8_t codes[QD_K_MAX_PRODUCTS];
    static int8_t weight[QD_K_MAX_PRODUCTS];
    const float one = 1.0f;
    const qd_conv_shape s = { .n = 1,
                              .c = QD_K_MAX_PRODUCTS,
                              .h = 1,
                              .w = 1,
                              .o = 1,
                              .oh = 1,
                              .ow = 1,
                              .kh = 1,
                              .kw = 1,
                              .stride_h = 1,
                              .stride_w = 1,
                              .dil_h = 1,
                              .dil_w = 1,
                              .groups = 1 };
    float out = 0;
    for (int k = 0; k < QD_K_MAX_PRODUCTS; k++) {
        codes[k] = 255;
        weight[k] = -128;
    }
    qd_k_qconv2d(&out, codes, false, CODES(weight, &one), NULL, 1.0f, 0, &s);
    assert_true(out == -(float)QD_K_MAX_PRODUCTS * 255 * 128);
    qd_k_qlinear(&out, codes, false, CODES(weight, &one), NULL, 1.0f, 0, 1, QD_K_MAX_PRODUCTS, 1);
    assert_true(out == -(float)QD_K_MAX_PRODUCTS * 255 * 128);
    for (int k = 0; k < QD_K_MAX_PRODUCTS; k++)
        codes[k] = 0;
    qd_k_qconv2d(&out, codes, false, CODES(weight, &one), NULL, 1.0f, 255, &s);
    assert_true(out == (float)QD_K_MAX_PRODUCTS * 255 * 128);
}

/* The order of roundings is fixed, so that a fast path can give the same bytes: the sum (an odd one above 2^24 has no float), the
 * product of the scales, their product, the bias. */
static void roundings_come_in_order(void **state)
{
    enum { N = 600 };
    uint8_t codes[N];
    int8_t weight[N];
    qd_rng r;
    int32_t acc = 0;
    int differ = 0;
    for (int k = 0; k < N; k++) {
        codes[k] = 255;
        weight[k] = 127;
        acc += 255 * 127;
    }
    codes[0] = 254; /* 600 equal products make an even sum, one step less makes it odd */
    acc -= 127;
    assert_true(acc > 1 << 24 && acc % 2);
    const qd_conv_shape s = { .n = 1,
                              .c = N,
                              .h = 1,
                              .w = 1,
                              .o = 1,
                              .oh = 1,
                              .ow = 1,
                              .kh = 1,
                              .kw = 1,
                              .stride_h = 1,
                              .stride_w = 1,
                              .dil_h = 1,
                              .dil_w = 1,
                              .groups = 1 };
    qd_rng_init(&r, 8, 0);
    for (int again = 0; again < 100; again++) {
        const float x_scale = 0.01f + qd_rng_uniform(&r), wscale = 0.01f + qd_rng_uniform(&r),
                    bias = qd_rng_uniform(&r);
        const float scale = x_scale * wscale, rounded = (float)acc, scaled = rounded * scale, want = scaled + bias;
        float linear = 0, conv = 0;
        qd_k_qlinear(&linear, codes, false, CODES(weight, &wscale), &bias, x_scale, 0, 1, N, 1);
        qd_k_qconv2d(&conv, codes, false, CODES(weight, &wscale), &bias, x_scale, 0, &s);
        assert_true(linear == want && conv == want);
        differ += want != (float)(acc * (double)x_scale * wscale + bias);
    }
    assert_true(differ > 10); /* so the order can be seen */
}

static void max_pool_gives_nan(void **state)
{
    const float in[6] = { 1, NAN, 3, 4, 5, 6 };
    float out[2];
    const qd_conv_shape s = { .n = 1,
                              .c = 1,
                              .h = 2,
                              .w = 3,
                              .o = 1,
                              .oh = 1,
                              .ow = 2,
                              .kh = 2,
                              .kw = 2,
                              .stride_h = 1,
                              .stride_w = 1,
                              .dil_h = 1,
                              .dil_w = 1,
                              .groups = 1 };
    qd_k_max_pool(out, in, &s);
    assert_true(isnan(out[0]) && isnan(out[1]));
    const float clean[6] = { -3, -INFINITY, -2, -5, -INFINITY, -INFINITY };
    qd_k_max_pool(out, clean, &s);
    assert_true(out[0] == -3 && out[1] == -2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(downsample_padding_traps), cmocka_unit_test(random_windows),
        cmocka_unit_test(longest_integer_sum),      cmocka_unit_test(roundings_come_in_order),
        cmocka_unit_test(max_pool_gives_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
