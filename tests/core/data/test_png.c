/* test_png.c - pictures survive the round trip bit for bit; damaged and oversized ones are refused. */
#include "harness/harness.h"

#include <png.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "data/data.h"

static qd_image random_image(int width, int height, int channels, uint64_t seed)
{
    const size_t n = (size_t)width * (size_t)height * (size_t)channels;
    qd_image im = { width, height, channels, qd_alloc(n) };
    qd_rng rng;

    qd_rng_init(&rng, seed, 0);
    for (size_t k = 0; k < n; k++)
        im.pixels[k] = (uint8_t)qd_rng_u32(&rng);
    return im;
}

static void check_same(const qd_image *a, const qd_image *b)
{
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    assert_int_equal(a->channels, b->channels);
    assert_memory_equal(a->pixels, b->pixels, (size_t)a->width * (size_t)a->height * (size_t)a->channels);
}

static void round_trip_is_identity(void **state)
{
    static const int sizes[][3] = {
        { 1, 1, 1 }, { 1, 1, 3 }, { 28, 28, 1 }, { 37, 5, 3 }, { 300, 1, 3 }, { 1, 300, 1 }
    };
    qd_err err = { 0 };

    for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
        qd_image im = random_image(sizes[k][0], sizes[k][1], sizes[k][2], k), back = { 0 };
        qd_buf one, two;

        qd_buf_init(&one, 0);
        qd_buf_init(&two, 0);
        qd_buf_adds(&two, "before");
        check_ok(qd_png_encode(&im, &one, &err), &err);
        check_ok(qd_png_encode(&im, &two, &err), &err); /* appended, and the same bytes */
        assert_int_equal(two.size, one.size + 6);
        assert_memory_equal(two.data + 6, one.data, one.size);
        check_ok(qd_png_decode(one.data, one.size, 28 * 28, &back, &err), &err);
        check_same(&im, &back);
        qd_image_clear(&back);
        qd_image_clear(&im);
        qd_buf_clear(&one);
        qd_buf_clear(&two);
    }
}

/* --- what other writers make --- */

static void to_buf(png_structp png, png_bytep data, size_t n)
{
    qd_buf_add(png_get_io_ptr(png), data, n);
}

/* An 8 x 8 file of any kind, all samples 0x55.. by the bit depth; a palette has 4 entries. */
static void foreign_png(int colour, int depth, int interlace, bool trns, qd_buf *b)
{
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    png_color palette[4] = { { 1, 2, 3 }, { 10, 20, 30 }, { 4, 5, 6 }, { 7, 8, 9 } };
    png_byte row[64], alpha[4] = { 255, 0, 255, 255 };
    png_color_16 grey = { .gray = 1 };

    memset(row, 0x55, sizeof(row));
    png_set_write_fn(png, b, to_buf, NULL);
    png_set_IHDR(png, info, 8, 8, depth, colour, interlace, 0, 0);
    if (colour == PNG_COLOR_TYPE_PALETTE)
        png_set_PLTE(png, info, palette, 4);
    if (trns && colour == PNG_COLOR_TYPE_PALETTE)
        png_set_tRNS(png, info, alpha, 4, NULL);
    if (trns && colour == PNG_COLOR_TYPE_GRAY)
        png_set_tRNS(png, info, NULL, 0, &grey);
    png_write_info(png, info);
    for (int pass = png_set_interlace_handling(png); pass > 0; pass--)
        for (int y = 0; y < 8; y++)
            png_write_row(png, row);
    png_write_end(png, info);
    png_destroy_write_struct(&png, &info);
    assert_false(b->failed);
}

static void every_kind_becomes_grey_or_rgb(void **state)
{
    static const struct {
        int colour, depth;
        bool trns;
        int channels;
        uint8_t pixel[3];
    } kinds[] = {
        { PNG_COLOR_TYPE_GRAY, 1, false, 1, { 0 } }, /* 0x55 = 0, 1, 0, 1, .. */
        { PNG_COLOR_TYPE_GRAY, 2, false, 1, { 0x55 } },
        { PNG_COLOR_TYPE_GRAY, 4, true, 1, { 0x55 } },
        { PNG_COLOR_TYPE_GRAY, 16, false, 1, { 0x55 } },
        { PNG_COLOR_TYPE_GRAY_ALPHA, 8, false, 1, { 0x55 } },
        { PNG_COLOR_TYPE_RGB, 16, false, 3, { 0x55, 0x55, 0x55 } },
        { PNG_COLOR_TYPE_RGB_ALPHA, 8, false, 3, { 0x55, 0x55, 0x55 } },
        { PNG_COLOR_TYPE_RGB_ALPHA, 16, false, 3, { 0x55, 0x55, 0x55 } },
        { PNG_COLOR_TYPE_PALETTE, 2, false, 3, { 10, 20, 30 } },
        { PNG_COLOR_TYPE_PALETTE, 2, true, 3, { 10, 20, 30 } },
    };

    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++)
        for (int interlace = 0; interlace < 2; interlace++) {
            qd_err err = { 0 };
            qd_image im = { 0 };
            qd_buf b;

            qd_buf_init(&b, 0);
            foreign_png(kinds[k].colour, kinds[k].depth, interlace, kinds[k].trns, &b);
            check_ok(qd_png_decode(b.data, b.size, 64, &im, &err), &err);
            assert_int_equal(im.channels, kinds[k].channels);
            assert_int_equal(im.width * im.height, 64);
            if (kinds[k].depth > 1)
                for (int p = 0; p < 64; p++)
                    assert_memory_equal(im.pixels + p * im.channels, kinds[k].pixel, (size_t)im.channels);
            else if (!interlace)
                for (int p = 0; p < 64; p++)
                    assert_int_equal(im.pixels[p], p % 2 ? 255 : 0);
            qd_image_clear(&im);
            qd_buf_clear(&b);
        }
}

/* --- refusals --- */

static void damage_is_refused(void **state)
{
    qd_err err = { 0 };
    qd_image im = random_image(20, 20, 3, 5), out = { 0 };
    qd_buf b;

    qd_buf_init(&b, 0);
    check_ok(qd_png_encode(&im, &b, &err), &err);
    check_fails(qd_png_decode(b.data, b.size, 399, &out, &err), QD_E_LIMIT, "20 x 20 pixels, the limit is 399", &err);
    check_fails(qd_png_decode("no", 2, 400, &out, &err), QD_E_FORMAT, "ends too early", &err);
    check_fails(qd_png_decode("this is no picture", 18, 400, &out, &err), QD_E_FORMAT, "Not a PNG", &err);
    for (size_t n = 0; n < b.size; n++) { /* cut anywhere */
        char *part = malloc(n ? n : 1);

        memcpy(part, b.data, n);
        check_fails(qd_png_decode(part, n, 400, &out, &err), QD_E_FORMAT, NULL, &err);
        free(part);
    }
    for (size_t n = 0; n < b.size; n++) { /* one byte changed: a checksum, or the stream, must notice */
        b.data[n] ^= 0x20;
        if (qd_png_decode(b.data, b.size, 400, &out, &err) == QD_OK) {
            check_same(&im, &out);
            qd_image_clear(&out);
        }
        b.data[n] ^= 0x20;
    }
    assert_null(out.pixels);
    qd_image_clear(&im);
    qd_buf_clear(&b);
}

/* A header that claims 60000 x 60000 is refused before memory is asked for. */
static void claimed_size_is_checked_first(void **state)
{
    qd_err err = { 0 };
    qd_image im = random_image(4, 4, 1, 6), out = { 0 };
    qd_buf b;
    unsigned long crc;

    qd_buf_init(&b, 0);
    check_ok(qd_png_encode(&im, &b, &err), &err);
    memcpy(b.data + 16, "\x00\x00\xea\x60\x00\x00\xea\x60", 8);
    crc = 0xffffffffu; /* CRC-32 of type and body of IHDR */
    for (int k = 12; k < 29; k++) {
        crc ^= (uint8_t)b.data[k];
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
    }
    crc ^= 0xffffffffu;
    for (int k = 0; k < 4; k++)
        b.data[29 + k] = (char)(crc >> (24 - 8 * k));
    check_fails(qd_png_decode(b.data, b.size, 1000000, &out, &err), QD_E_LIMIT,
                "60000 x 60000 pixels, the limit is 1000000", &err);
    qd_image_clear(&im);
    qd_buf_clear(&b);
}

static void every_allocation_may_fail(void **state)
{
    qd_err err = { 0 };
    qd_image im = random_image(30, 30, 3, 7);
    qd_buf b;
    long writes = 0, reads = 0;

    for (;; writes++) {
        qd_buf_init(&b, 0);
        qd_mem_fault_set(writes);
        const qd_status st = qd_png_encode(&im, &b, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        if (!hit) {
            check_ok(st, &err);
            break;
        }
        assert_true(st == QD_E_NOMEM || st == QD_E_LIMIT); /* the caller's buffer does not say which */
        assert_int_equal(b.size, 0);
        qd_buf_clear(&b);
    }
    for (;; reads++) {
        qd_image out = { 0 };

        qd_mem_fault_set(reads);
        const qd_status st = qd_png_decode(b.data, b.size, 900, &out, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        if (!hit) {
            check_ok(st, &err);
            check_same(&im, &out);
            qd_image_clear(&out);
            break;
        }
        assert_int_equal(st, QD_E_NOMEM);
        assert_null(out.pixels);
    }
    assert_true(writes > 4 && reads > 4);
    qd_image_clear(&im);
    qd_buf_clear(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip_is_identity),    cmocka_unit_test(every_kind_becomes_grey_or_rgb),
        cmocka_unit_test(damage_is_refused),         cmocka_unit_test(claimed_size_is_checked_first),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
