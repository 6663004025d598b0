/* fuzz_png.c - any bytes as a picture: refused, or within the limit and the same after another round trip.
 *
 * Each input goes in twice: as it is, and with the checksums of its chunks set right, since no mutation would get past them. */
#include "fuzz.h"

#include <string.h>

#include "data/data.h"

#define MAX_PIXELS (1u << 20)

static void check(const uint8_t *data, size_t size)
{
    qd_image im = { 0 }, back = { 0 };
    qd_err err = { 0 };
    qd_buf b;

    if (qd_png_decode(data, size, MAX_PIXELS, &im, &err)) {
        must(!im.pixels && err.text[0]);
        return;
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
}

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
    uint32_t crc = 0xffffffffu;

    for (; n > 0; n--, p++) {
        crc ^= *p;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
    }
    return ~crc;
}

/* Chunks follow the 8 bytes of signature: length, type, body, checksum of type and body. */
static void repair(uint8_t *p, size_t size)
{
    for (size_t at = 8; size >= 12 && at <= size - 12;) {
        const size_t n = (size_t)p[at] << 24 | (size_t)p[at + 1] << 16 | (size_t)p[at + 2] << 8 | p[at + 3];
        uint32_t crc;

        if (n > size - 12 - at)
            return;
        crc = crc32_of(p + at + 4, n + 4);
        for (int k = 0; k < 4; k++)
            p[at + 8 + n + (size_t)k] = (uint8_t)(crc >> (24 - 8 * k));
        at += 12 + n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);

    check(data, size);
    must(copy);
    memcpy(copy, data, size);
    repair(copy, size);
    check(copy, size);
    free(copy);
    return 0;
}
