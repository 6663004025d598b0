/* test_view.c - looks at pictures, bit for bit as torchvision and Pillow see them, and what chance may decide. */
#include "harness/harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../golden/data/augment_golden.h"
#include "base/fs.h"
#include "base/mem.h"
#include "data/data.h"

enum { SIDE = 12 };

/* The picture of make_augment.py, planes. */
static uint8_t *picture(int h, int w)
{
    uint8_t *px = qd_alloc((size_t)(3 * h * w)), *p = px;
    assert_non_null(px);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++)
                *p++ = (uint8_t)((x * x * 3 + y * y * 5 + x * y * (c + 1) * 7 + c * 90 + 11 * (x ^ y)) / 4);
    return px;
}

static qd_pixels planes(const uint8_t *px, int channels, int h, int w)
{
    return (
        qd_pixels){ .data = px, .channels = channels, .height = h, .width = w, .plane = h * w, .row = w, .column = 1 };
}

static qd_augment plain(int size)
{
    qd_err err = { 0 };
    qd_augment a;
    check_ok(qd_augment_find("eval", 3, &a, &err), &err);
    a.crop = size ? QD_CROP_RESIZED : QD_CROP_NONE;
    a.size = size;
    a.filter = QD_FILTER_BICUBIC;
    a.scale_min = a.scale_max = a.ratio_min = a.ratio_max = 1.0f;
    return a;
}

/* What comes out, from planes and from interleaved pixels alike: qd_free. */
static uint8_t *look(const uint8_t *px, int h, int w, const qd_augment *a, const qd_view *v)
{
    qd_err err = { 0 };
    qd_view_room *room = NULL;
    int out_h, out_w;
    qd_augment_size(a, h, w, &out_h, &out_w);
    const size_t plane = (size_t)(h * w), n = 3 * (size_t)(out_h * out_w);
    uint8_t *mixed = qd_alloc(3 * plane), *out = qd_alloc(n), *again = qd_alloc(n);
    assert_true(mixed && out && again);
    for (size_t i = 0; i < plane; i++)
        for (size_t c = 0; c < 3; c++)
            mixed[3 * i + c] = px[c * plane + i];
    check_ok(qd_view_room_new(a, 3, NULL, &room, &err), &err);
    check_ok(qd_view_room_fit(room, h, w, &err), &err);
    const qd_pixels flat = planes(px, 3, h, w), woven = {
        .data = mixed, .channels = 3, .height = h, .width = w, .plane = 1, .row = 3 * w, .column = 3
    };
    qd_view_bytes(out, &flat, v, room);
    qd_view_bytes(again, &woven, v, room);
    assert_memory_equal(out, again, n);
    qd_view_room_free(room);
    qd_free(again);
    qd_free(mixed);
    return out;
}

static void check_look(const char *what, int h, int w, const qd_augment *a, const qd_view *v, const unsigned char *want)
{
    uint8_t *px = picture(h, w), *got = look(px, h, w, a, v);
    for (int i = 0; i < 3 * SIDE * SIDE; i++)
        if (got[i] != want[i])
            fail_msg("%s: byte %d is %d, torchvision has %d", what, i, got[i], want[i]);
    qd_free(got);
    qd_free(px);
}

static void check_hash(const char *what, uint8_t *got, size_t n, const char *want)
{
    char hex[QD_SHA256_HEX];
    qd_sha256(got, n, hex);
    if (strcmp(hex, want) != 0)
        fail_msg("%s: bytes hash to %s, those of torchvision to %s", what, hex, want);
    qd_free(got);
}

/* Whatever the instruction set, the same bytes. */
static void on_each_isa(void (*check)(void))
{
    setenv("QUANTD_ISA", "base", 1);
    check();
    unsetenv("QUANTD_ISA");
    check();
}

/* --- apply --- */

static qd_view crop(int top, int left, int h, int w)
{
    return (qd_view){ .top = top, .left = left, .height = h, .width = w, .to_h = SIDE, .to_w = SIDE };
}

static void check_crops(void)
{
    qd_augment a = plain(SIDE);
    qd_view v = crop(3, 2, 24, 25);
    check_look("bicubic_shrink", 33, 29, &a, &v, golden_bicubic_shrink);
    v = crop(3, 2, 24, 9);
    v.flip = true;
    check_look("bicubic_flip", 33, 29, &a, &v, golden_bicubic_flip);
    v = crop(20, 17, 7, 5);
    check_look("bicubic_grow", 33, 29, &a, &v, golden_bicubic_grow);
    v = crop(5, 6, 12, 20);
    check_look("bicubic_one_pass", 33, 29, &a, &v, golden_bicubic_one_pass);
    v = crop(5, 6, 20, 12);
    v.flip = true;
    check_look("bicubic_other_pass", 33, 29, &a, &v, golden_bicubic_other_pass);
    a.filter = QD_FILTER_BILINEAR;
    v = crop(0, 0, 33, 29);
    check_look("bilinear_shrink", 33, 29, &a, &v, golden_bilinear_shrink);
    v = crop(30, 26, 3, 3);
    check_look("bilinear_grow", 33, 29, &a, &v, golden_bilinear_grow);

    a.crop = QD_CROP_PADDED;
    v = crop(-3, 3, 12, 12);
    v.flip = true;
    check_look("padded", 12, 12, &a, &v, golden_padded);
    a.crop = QD_CROP_CENTRE;
    a.resize = 15;
    const qd_view_key key = { 0 };
    qd_view_draw(&v, &a, 33, 29, &key);
    assert_true(v.to_h == 17 && v.to_w == 15 && v.at_y == 2 && v.at_x == 2);
    check_look("centre", 33, 29, &a, &v, golden_centre);
}

static void crops_are_torchvisions(void **state)
{
    on_each_isa(check_crops);
}

static void check_colours(void)
{
    const qd_augment a = plain(0);
    const qd_view still = { .height = SIDE, .width = SIDE, .to_h = SIDE, .to_w = SIDE, .steps = 1 };
    const struct {
        const char *name;
        const unsigned char *want;
        int step, hue;
        float factor;
    } rows[] = {
        { "brightness_down", golden_brightness_down, 0, 0, 0.61f },
        { "brightness_up", golden_brightness_up, 0, 0, 1.39f },
        { "contrast_down", golden_contrast_down, 1, 0, 0.61f },
        { "contrast_up", golden_contrast_up, 1, 0, 1.39f },
        { "saturation_down", golden_saturation_down, 2, 0, 0.61f },
        { "saturation_up", golden_saturation_up, 2, 0, 1.39f },
        { "hue_up", golden_hue_up, 3, 21, 0.0f },
        { "hue_down", golden_hue_down, 3, 256 - 25, 0.0f },
        { "hue_none", golden_hue_none, 3, 0, 0.0f },
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        qd_view v = still;
        v.step[0] = (uint8_t)rows[k].step;
        v.brightness = v.contrast = v.saturation = rows[k].factor;
        v.hue = rows[k].hue;
        check_look(rows[k].name, SIDE, SIDE, &a, &v, rows[k].want);
    }
    qd_view v = still;
    v.steps = 0;
    v.grey = true;
    check_look("grey", SIDE, SIDE, &a, &v, golden_grey);

    const qd_augment cropped = plain(SIDE);
    v = crop(3, 2, 24, 25);
    v.flip = true;
    v.steps = 4;
    memcpy(v.step, (uint8_t[]){ 2, 1, 3, 0 }, 4);
    v.saturation = 0.7f;
    v.contrast = 1.3f;
    v.hue = 9;
    v.brightness = 0.9f;
    check_look("colours", 33, 29, &cropped, &v, golden_colours);
    v.grey = true;
    check_look("chain", 33, 29, &cropped, &v, golden_chain);
}

static void colours_are_pillows(void **state)
{
    on_each_isa(check_colours);
}

/* Float sums in another order than torchvision's; make_augment.py sees that no value comes near a half. */
static void check_blurs(void)
{
    qd_augment a = plain(0);
    qd_view v = { .height = SIDE, .width = SIDE, .to_h = SIDE, .to_w = SIDE, .sigma = 0.3f };
    a.blur = 1.0f;
    a.sigma_min = 0.1f;
    a.sigma_max = 2.0f;
    a.kernel = 5;
    check_look("blur_little", SIDE, SIDE, &a, &v, golden_blur_little);
    a.kernel = 9;
    v.sigma = 1.7f;
    check_look("blur_much", SIDE, SIDE, &a, &v, golden_blur_much);
}

static void blur_is_torchvisions(void **state)
{
    on_each_isa(check_blurs);
}

static void large_pictures_too(void **state)
{
    uint8_t *px = picture(375, 500);
    qd_augment a = plain(224);
    qd_view v = crop(11, 37, 351, 402);
    v.to_h = v.to_w = 224;
    check_hash("large_bicubic", look(px, 375, 500, &a, &v), 3 * 224 * 224, golden_large_bicubic_sha256);
    a.filter = QD_FILTER_BILINEAR;
    v.height = 91;
    check_hash("large_bilinear", look(px, 375, 500, &a, &v), 3 * 224 * 224, golden_large_bilinear_sha256);
    qd_err err = { 0 };
    const qd_view_key key = { 0 };
    check_ok(qd_augment_find("eval-imagenet", 3, &a, &err), &err);
    qd_view_draw(&v, &a, 375, 500, &key);
    check_hash("large_centre", look(px, 375, 500, &a, &v), 3 * 224 * 224, golden_large_centre_sha256);
    qd_free(px);
}

/* All 2^24 colours, red slowest, hashed as planes. */
static void every_colour_turns_as_pillows(void **state)
{
    enum { N = 1 << 24 };
    qd_err err = { 0 };
    qd_view_room *room = NULL;
    uint8_t *px = qd_alloc(3 * (size_t)N), *out = qd_alloc(3 * (size_t)N);
    const qd_augment a = plain(0);
    qd_view v = { .height = 4096,
                  .width = 4096,
                  .to_h = 4096,
                  .to_w = 4096,
                  .steps = 1,
                  .step = { 3 },
                  .hue = 13,
                  .saturation = 1.37f };
    assert_true(px && out);
    for (size_t i = 0; i < N; i++)
        for (size_t c = 0; c < 3; c++)
            px[c * N + i] = (uint8_t)(i >> (16 - 8 * c));
    check_ok(qd_view_room_new(&a, 3, NULL, &room, &err), &err);
    check_ok(qd_view_room_fit(room, 4096, 4096, &err), &err);
    const qd_pixels src = planes(px, 3, 4096, 4096);
    char hex[QD_SHA256_HEX];
    qd_view_bytes(out, &src, &v, room);
    qd_sha256(out, 3 * (size_t)N, hex);
    assert_string_equal(hex, golden_every_hue_sha256);
    v.step[0] = 2;
    qd_view_bytes(out, &src, &v, room);
    qd_sha256(out, 3 * (size_t)N, hex);
    assert_string_equal(hex, golden_every_saturation_sha256);
    qd_view_room_free(room);
    qd_free(px);
    qd_free(out);
}

/* Floats are those of qd_dataset_floats; what is erased is 0; grey pictures are shown in colours when asked. */
static void floats_are_scaled_and_erased(void **state)
{
    qd_err err = { 0 };
    qd_augment a = plain(0);
    qd_view_room *room = NULL;
    uint8_t px[16];
    float out[48];
    for (int k = 0; k < 16; k++)
        px[k] = (uint8_t)(16 * k + 3);
    const qd_pixels src = { .data = px, .channels = 3, .height = 4, .width = 4, .plane = 0, .row = 4, .column = 1 };
    qd_view v = { .height = 4,
                  .width = 4,
                  .to_h = 4,
                  .to_w = 4,
                  .erase_top = 1,
                  .erase_left = 2,
                  .erase_height = 2,
                  .erase_width = 1,
                  .cut_top = 3,
                  .cut_left = 0,
                  .cut_height = 1,
                  .cut_width = 2 };
    check_ok(qd_view_room_new(&a, 3, NULL, &room, &err), &err);
    check_ok(qd_view_room_fit(room, 4, 4, &err), &err);
    qd_view_floats(out, &src, &v, room);
    for (int c = 0; c < 3; c++)
        for (int k = 0; k < 16; k++) {
            const bool gone = k == 6 || k == 10 || k == 12 || k == 13;
            const float want = gone ? 0.0f : ((float)px[k] / 255.0f - a.scale.mean[c]) / a.scale.std[c];
            assert_true(out[c * 16 + k] == want);
        }
    qd_view_room_free(room);
}

/* --- draw --- */

static qd_view draw(const qd_augment *a, int64_t epoch, int64_t sample, int view)
{
    const qd_view_key key = { .seed = 11, .epoch = epoch, .sample = sample, .view = view };
    qd_view v;
    qd_view_draw(&v, a, 32, 32, &key);
    return v;
}

/* Means and frequencies over many looks, five standard deviations of room. */
static void draws_follow_their_laws(void **state)
{
    enum { N = 20000 };
    qd_err err = { 0 };
    qd_augment a;
    check_ok(qd_augment_find("simclr-cifar", 3, &a, &err), &err);
    a.blur = 0.5f;
    a.kernel = 5;
    a.sigma_min = 0.1f;
    a.sigma_max = 2.0f;
    a.erase = 0.5f;
    a.cutout = 8;
    int flips = 0, jitters = 0, greys = 0, blurs = 0, erased = 0, first[4] = { 0 }, hues[256] = { 0 };
    double area = 0, wide = 0, bright = 0, sigma = 0;
    for (int k = 0; k < N; k++) {
        const qd_view v = draw(&a, 3, k, k & 1);
        assert_true(v.top >= 0 && v.left >= 0 && v.height > 0 && v.width > 0);
        assert_true(v.top + v.height <= 32 && v.left + v.width <= 32 && v.to_h == 32 && v.to_w == 32);
        const double ratio = (double)v.width / v.height;
        assert_true(ratio > 0.6 && ratio < 1.7); /* 3/4..4/3 and rounding */
        area += v.height * v.width / 1024.0;
        wide += log(ratio);
        flips += v.flip;
        greys += v.grey;
        assert_true(v.steps == 0 || v.steps == 4);
        if (v.steps) {
            int seen = 0;
            for (int i = 0; i < 4; i++)
                seen |= 1 << v.step[i];
            assert_int_equal(seen, 15);
            first[v.step[0]]++;
            jitters++;
        }
        assert_true(v.brightness >= 0.6f && v.brightness <= 1.4f && v.contrast >= 0.6f && v.contrast <= 1.4f);
        assert_true(v.saturation >= 0.6f && v.saturation <= 1.4f);
        bright += (double)v.brightness;
        assert_true(v.hue >= 0 && v.hue < 256 && (v.hue <= 26 || v.hue >= 256 - 26));
        hues[v.hue]++;
        blurs += v.sigma > 0;
        sigma += (double)v.sigma;
        assert_true(v.sigma == 0.0f || (v.sigma >= 0.1f && v.sigma <= 2.0f));
        erased += v.erase_height > 0;
        assert_true(v.erase_top + v.erase_height <= 32 && v.erase_left + v.erase_width <= 32);
        assert_true(v.erase_height * v.erase_width <= 0.45 * 1024);
        assert_true(v.cut_top >= 0 && v.cut_left >= 0 && v.cut_height >= 4 && v.cut_height <= 8 && v.cut_width >= 4);
        assert_true(v.cut_top + v.cut_height <= 32 && v.cut_left + v.cut_width <= 32);
    }
    /* torchvision's own rule gives 0.5003 on average (200,000 draws): crops too long to fit are drawn again. */
    assert_true(fabs(area / N - 0.5003) < 0.009);
    assert_true(fabs(wide / N) < 0.01 && fabs(bright / N - 1.0) < 0.009);
    assert_in_range(flips, 9646, 10354);
    assert_in_range(jitters, 15717, 16283);
    assert_in_range(greys, 3717, 4283);
    assert_in_range(blurs, 9646, 10354);
    assert_true(fabs(sigma / blurs - 1.05) < 0.03);
    assert_in_range(erased, 9500, 10354); /* now and then ten tries do not fit */
    for (int k = 0; k < 4; k++)
        assert_in_range(first[k], jitters / 4 - 280, jitters / 4 + 280);
    /* The ends of [-25.5, 25.5] rounded have half a share; the middle has a whole one. */
    assert_in_range(hues[0], N / 51 - 100, N / 51 + 100);
    assert_int_equal(hues[30], 0);
}

/* The same key, the same look; any other, another. A step switched off moves no other. */
static void draws_depend_on_their_key_alone(void **state)
{
    qd_err err = { 0 };
    qd_augment a, b;
    check_ok(qd_augment_find("simclr-imagenet", 3, &a, &err), &err);
    b = a;
    b.flip = b.jitter = b.blur = 0.0f;
    b.crop = QD_CROP_NONE;
    b.size = 0;
    int grey = 0, same = 0;
    for (int k = 0; k < 500; k++) {
        const qd_view v = draw(&a, 7, k, 1), again = draw(&a, 7, k, 1), other = draw(&b, 7, k, 1);
        assert_memory_equal(&v, &again, sizeof v);
        assert_int_equal(v.grey, other.grey);
        assert_true(!other.flip && other.steps == 0 && other.sigma == 0.0f && other.height == 32);
        grey += v.grey;
        const qd_view near[] = { draw(&a, 8, k, 1), draw(&a, 7, k + 1, 1), draw(&a, 7, k, 0) };
        for (int i = 0; i < 3; i++)
            same += near[i].brightness == v.brightness || near[i].contrast == v.contrast;
    }
    assert_true(grey > 50 && same < 3);
    const qd_view far = draw(&a, QD_EPOCHS_MAX - 1, QD_SAMPLES_MAX - 1, 65535);
    assert_true(far.to_h == 224);
}

/* Long and flat pictures end in the middle with a ratio within bounds; a look of them stays inside. */
static void odd_shapes_are_cropped_within(void **state)
{
    static const int shapes[][2] = { { 1, 1 }, { 1, 200 }, { 200, 1 }, { 3, 90 }, { 57, 2 } };
    qd_err err = { 0 };
    qd_augment a;
    qd_view_room *room = NULL;
    float out[3 * 16 * 16];
    check_ok(qd_augment_find("simclr-cifar", 3, &a, &err), &err);
    a.size = 16;
    check_ok(qd_view_room_new(&a, 3, NULL, &room, &err), &err);
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        const int h = shapes[k][0], w = shapes[k][1];
        uint8_t *px = picture(h, w);
        const qd_pixels src = planes(px, 3, h, w);
        check_ok(qd_view_room_fit(room, h, w, &err), &err);
        for (int64_t sample = 0; sample < 50; sample++) {
            const qd_view_key key = { .sample = sample };
            qd_view v;
            qd_view_draw(&v, &a, h, w, &key);
            assert_true(v.top >= 0 && v.left >= 0 && v.height >= 1 && v.width >= 1 && v.top + v.height <= h &&
                        v.left + v.width <= w);
            qd_view_floats(out, &src, &v, room);
            for (int i = 0; i < 3 * 256; i++)
                assert_true(isfinite(out[i]) && fabsf(out[i]) < 3.0f);
        }
        qd_free(px);
    }
    qd_view_room_free(room);
    /* A picture smaller than its crop is shown whole, in zeros. */
    check_ok(qd_augment_find("cifar-supervised", 3, &a, &err), &err);
    a.size = 40;
    const qd_view_key key = { 0 };
    qd_view v;
    qd_view_draw(&v, &a, 20, 40, &key);
    assert_true(v.top == -10 && v.height == 40 && v.left >= -4 && v.left <= 4 && v.width == 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crops_are_torchvisions),        cmocka_unit_test(colours_are_pillows),
        cmocka_unit_test(blur_is_torchvisions),          cmocka_unit_test(large_pictures_too),
        cmocka_unit_test(every_colour_turns_as_pillows), cmocka_unit_test(floats_are_scaled_and_erased),
        cmocka_unit_test(draws_follow_their_laws),       cmocka_unit_test(draws_depend_on_their_key_alone),
        cmocka_unit_test(odd_shapes_are_cropped_within),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
