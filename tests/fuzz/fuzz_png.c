/* fuzz_png.c - any bytes as a picture: refused, or within the limit and the same after another round trip. */
#include "fuzz.h"

#include <string.h>

#include "data/data.h"

#define MAX_PIXELS (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qd_image im = { 0 }, back = { 0 };
    qd_err err = { 0 };
    qd_buf b;

    if (qd_png_decode(data, size, MAX_PIXELS, &im, &err)) {
        must(!im.pixels && err.text[0]);
        return 0;
    }
    must((uint64_t)im.width * (uint64_t)im.height <= MAX_PIXELS);
    must(im.channels == 1 || im.channels == 3);
    qd_buf_init(&b, 0);
    must(qd_png_encode(&im, &b, &err) == QD_OK);
    must(qd_png_decode(b.data, b.size, MAX_PIXELS, &back, &err) == QD_OK);
    must(im.width == back.width && im.height == back.height && im.channels == back.channels);
    must(memcmp(im.pixels, back.pixels, (size_t)im.width * (size_t)im.height * (size_t)im.channels) == 0);
    qd_buf_clear(&b);
    qd_image_clear(&im);
    qd_image_clear(&back);
    return 0;
}
