/* test_image.c - pixels where they belong: rounding rule, grids, enlargement, PSNR. */
#include "harness/harness.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "data/data.h"

static void from_float_rounds_like_diffusers(void **state)
{
    /* 255 * (x / 2 + 0.5): -1 -> 0, 0 -> 127.5 -> 128 (even), 1 -> 255; outside is clamped; NaN is black. */
    const float grey[8] = { -1, 0, 1, -5, 5, NAN, 2.0f * 1.4f / 255.0f - 1.0f, 2.0f * 1.6f / 255.0f - 1.0f };
    const uint8_t want[8] = { 0, 128, 255, 0, 255, 0, 1, 2 };
    const float planes[12] = { -1, -1, -1, -1, 1, 1, 1, 1, 0.2f, 0.2f, 0.2f, 0.2f };
    qd_err err = { 0 };
    qd_image im = { 0 };

    check_ok(qd_image_from_float(grey, 1, 2, 4, &im, &err), &err);
    assert_int_equal(im.width, 4);
    assert_int_equal(im.height, 2);
    assert_memory_equal(im.pixels, want, 8);
    qd_image_clear(&im);

    check_ok(qd_image_from_float(planes, 3, 2, 2, &im, &err), &err);
    for (int k = 0; k < 4; k++) {
        const uint8_t rgb[3] = { 0, 255, 153 };
        assert_memory_equal(im.pixels + 3 * k, rgb, 3);
    }
    qd_image_clear(&im);
    check_fails(qd_image_from_float(grey, 2, 2, 2, &im, &err), QD_E_INVALID, "2 channels", &err);
    check_fails(qd_image_from_float(grey, 1, 0, 2, &im, &err), QD_E_INVALID, "2 x 0", &err);
    assert_null(im.pixels);
}

static void grid_places_every_picture(void **state)
{
    uint8_t pixels[5][2] = { { 1, 2 }, { 3, 4 }, { 5, 6 }, { 7, 8 }, { 9, 10 } };
    qd_image in[5], out = { 0 };
    qd_err err = { 0 };
    const uint8_t want[] = {
        1,   2,   128, 3,   4,   128, 5,   6,   /* pictures 0 1 2 */
        128, 128, 128, 128, 128, 128, 128, 128, /* the gap */
        7,   8,   128, 9,   10,  128, 128, 128, /* 3 4 and an empty place */
    };

    for (int k = 0; k < 5; k++)
        in[k] = (qd_image){ .width = 2, .height = 1, .channels = 1, .pixels = pixels[k] };
    check_ok(qd_image_grid(in, 5, 3, 1, &out, &err), &err);
    assert_int_equal(out.width, 8);
    assert_int_equal(out.height, 3);
    assert_memory_equal(out.pixels, want, sizeof(want));
    qd_image_clear(&out);

    check_ok(qd_image_grid(in, 2, 99, 0, &out, &err), &err); /* no more columns than pictures */
    assert_int_equal(out.width, 4);
    qd_image_clear(&out);

    in[4].height = 2;
    check_fails(qd_image_grid(in, 5, 3, 1, &out, &err), QD_E_INVALID, "picture 4 is 2 x 2 x 1, the first is 2 x 1 x 1",
                &err);
    check_fails(qd_image_grid(in, 0, 3, 1, &out, &err), QD_E_INVALID, "0 pictures", &err);
    check_fails(qd_image_grid(in, 4, 4, INT_MAX, &out, &err), QD_E_LIMIT, "too large", &err);
}

static void zoom_repeats_pixels(void **state)
{
    uint8_t rgb[6] = { 1, 2, 3, 4, 5, 6 };
    const qd_image im = { .width = 2, .height = 1, .channels = 3, .pixels = rgb };
    const uint8_t want[24] = { 1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6, 1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6 };
    qd_image out = { 0 };
    qd_err err = { 0 };

    check_ok(qd_image_zoom(&im, 2, &out, &err), &err);
    assert_int_equal(out.width, 4);
    assert_int_equal(out.height, 2);
    assert_memory_equal(out.pixels, want, sizeof(want));
    qd_image_clear(&out);
    check_fails(qd_image_zoom(&im, 0, &out, &err), QD_E_INVALID, "by 0", &err);
    check_fails(qd_image_zoom(&im, INT_MAX, &out, &err), QD_E_INVALID, "cannot enlarge", &err);
}

static void psnr_has_known_values(void **state)
{
    uint8_t a[4] = { 0, 10, 20, 255 }, b[4] = { 0, 10, 20, 255 }, c[4] = { 1, 11, 19, 254 },
            d[4] = { 255, 10, 20, 255 };
    const qd_image x = { 2, 2, 1, a }, y = { 2, 2, 1, b }, z = { 2, 2, 1, c }, w = { 2, 2, 1, d };

    assert_true(isinf(qd_image_psnr_db(&x, &y)));
    assert_true(fabs(qd_image_psnr_db(&x, &z) - 20 * log10(255)) < 1e-12); /* mse 1 */
    assert_true(fabs(qd_image_psnr_db(&x, &w) - 10 * log10(4)) < 1e-12);   /* mse 255^2 / 4 */
    assert_true(fabs(qd_image_psnr_db(&x, &w) - qd_image_psnr_db(&w, &x)) < 1e-15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(from_float_rounds_like_diffusers),
        cmocka_unit_test(grid_places_every_picture),
        cmocka_unit_test(zoom_repeats_pixels),
        cmocka_unit_test(psnr_has_known_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
