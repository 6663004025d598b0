/* test_jpeg.c - pictures written by the same library's other half come back alike; damage, size and colours beyond ours are refused. */
#include "harness/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "base/mem.h"
#include "data/data.h"

#define W 37
#define H 21

/* A smooth picture in `channels`, at the best quality without subsampling: what comes back may differ by rounding alone. */
static unsigned char *encode(int channels, J_COLOR_SPACE space, bool progressive, uint8_t *pixels, unsigned long *size)
{
    struct jpeg_compress_struct j;
    struct jpeg_error_mgr errors;
    unsigned char *out = NULL;
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++)
            for (int c = 0; c < channels; c++)
                pixels[(y * W + x) * channels + c] = (uint8_t)(20 + 4 * x + 3 * c * y);
    *size = 0;
    j.err = jpeg_std_error(&errors);
    jpeg_create_compress(&j);
    jpeg_mem_dest(&j, &out, size);
    j.image_width = W;
    j.image_height = H;
    j.input_components = channels;
    j.in_color_space = space;
    jpeg_set_defaults(&j);
    jpeg_set_quality(&j, 100, TRUE);
    for (int c = 0; c < channels; c++)
        j.comp_info[c].h_samp_factor = j.comp_info[c].v_samp_factor = 1;
    if (progressive)
        jpeg_simple_progression(&j);
    jpeg_start_compress(&j, TRUE);
    while (j.next_scanline < H) {
        JSAMPROW row = pixels + (size_t)j.next_scanline * W * (size_t)channels;
        jpeg_write_scanlines(&j, &row, 1);
    }
    jpeg_finish_compress(&j);
    jpeg_destroy_compress(&j);
    return out;
}

static void pictures_come_back_alike(void **state)
{
    for (int k = 0; k < 4; k++) {
        const int channels = k & 1 ? 3 : 1;
        qd_err err = { 0 };
        qd_image im = { 0 };
        uint8_t pixels[W * H * 3];
        unsigned long size;
        unsigned char *bytes = encode(channels, channels == 3 ? JCS_RGB : JCS_GRAYSCALE, k & 2, pixels, &size);
        check_ok(qd_jpeg_decode(bytes, size, W * H, &im, &err), &err);
        assert_true(im.width == W && im.height == H && im.channels == channels);
        int worst = 0;
        for (int i = 0; i < W * H * channels; i++) {
            const int d = abs(im.pixels[i] - pixels[i]);
            worst = d > worst ? d : worst;
        }
        assert_in_range(worst, 0, 3); /* colours are rounded on the way to YCbCr and on the way back */
        qd_image_clear(&im);
        check_fails(qd_jpeg_decode(bytes, size, W * H - 1, &im, &err), QD_E_LIMIT, "37 x 21, over the limit of 776",
                    &err);
        for (unsigned long n = 0; n + 2 < size; n += 7) {
            check_fails(qd_jpeg_decode(bytes, n, W * H, &im, &err), QD_E_FORMAT, "not a readable JPEG", &err);
            assert_null(im.pixels);
        }
        free(bytes);
    }
}

static void other_colours_are_refused(void **state)
{
    qd_err err = { 0 };
    qd_image im = { 0 };
    uint8_t pixels[W * H * 4];
    unsigned long size;
    unsigned char *bytes = encode(4, JCS_CMYK, false, pixels, &size);
    check_fails(qd_jpeg_decode(bytes, size, W * H, &im, &err), QD_E_FORMAT, "neither grey nor three colours", &err);
    free(bytes);
    check_fails(qd_jpeg_decode("hello", 5, W * H, &im, &err), QD_E_FORMAT, "not a readable JPEG", &err);
}

typedef struct bytes {
    const unsigned char *data;
    unsigned long size;
} bytes;

static qd_status decode_once(void *ctx, qd_err *err)
{
    const bytes *b = ctx;
    qd_image im = { 0 };
    const qd_status st = qd_jpeg_decode(b->data, b->size, W * H, &im, err);
    qd_image_clear(&im);
    return st;
}

static void every_failing_allocation_is_survived(void **state)
{
    uint8_t pixels[W * H * 3];
    bytes b;
    unsigned char *data = encode(3, JCS_RGB, true, pixels, &b.size);
    b.data = data;
    assert_int_equal(harness_run_each_alloc(decode_once, &b, 10), 2);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pictures_come_back_alike),
        cmocka_unit_test(other_colours_are_refused),
        cmocka_unit_test(every_failing_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
