/* test_likeness.c - structural similarity and squared error against numpy and by hand. */
#include "harness/harness.h"

#include <math.h>

#include "golden/metrics/metrics_golden.h"
#include "metrics/metrics.h"

static qd_image image(const uint8_t *pixels, int h, int w, int channels)
{
    return (qd_image){ .width = w, .height = h, .channels = channels, .pixels = (uint8_t *)pixels };
}

static void similarity_is_numpys(void **state)
{
    const qd_image x[] = { image(golden_grey_x, 16, 14, 1), image(golden_rgb_x, 12, 13, 3),
                           image(golden_small_x, 8, 9, 1) };
    const qd_image y[] = { image(golden_grey_y, 16, 14, 1), image(golden_rgb_y, 12, 13, 3),
                           image(golden_small_y, 8, 9, 1) };
    const double want[] = { golden_grey_ssim[0], golden_rgb_ssim[0], golden_small_ssim[0] };
    for (int k = 0; k < 3; k++) {
        assert_true(fabs(qd_ssim(&x[k], &y[k]) - want[k]) < 1e-10);
        assert_true(fabs(qd_ssim(&x[k], &y[k]) - qd_ssim(&y[k], &x[k])) < 1e-12);
        assert_true(fabs(qd_ssim(&x[k], &x[k]) - 1) < 1e-12);
    }
    const uint8_t black[4] = { 0 }, white[4] = { 255, 255, 255, 255 };
    const qd_image a = image(black, 2, 2, 1), b = image(white, 2, 2, 1);
    assert_true(qd_ssim(&a, &b) < 0.001 && qd_ssim(&a, &a) == 1);
}

static void squared_error(void **state)
{
    const float x[] = { 1, 2, 3 }, y[] = { 1, 0, 6 };
    assert_true(fabs(qd_mse(x, y, 3) - 13.0 / 3) < 1e-15);
    assert_true(qd_mse(x, x, 3) == 0 && qd_mse(x, y, 0) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(similarity_is_numpys),
        cmocka_unit_test(squared_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
