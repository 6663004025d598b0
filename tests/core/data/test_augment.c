/* test_augment.c - presets of augmentation, parameters that depart from them, and values that make no sense. */
#include "harness/harness.h"

#include <string.h>

#include "base/mem.h"
#include "data/data.h"

/* Every preset is found, checks for the channels it is for, and is a choice of the parameter. colt.md 3 for the numbers. */
static void presets_are_as_published(void **state)
{
    qd_err err = { 0 };
    qd_augment a;
    int n = 0;
    for (; qd_augment_presets[n].name; n++) {
        assert_string_equal(qd_augment_names[n], qd_augment_presets[n].name);
        check_ok(qd_augment_find(qd_augment_presets[n].name, 3, &a, &err), &err);
        check_ok(qd_augment_check(&a, 3, &err), &err);
        check_ok(qd_augment_find(qd_augment_presets[n].name, 1, &a, &err), &err);
        check_ok(qd_augment_check(&a, 1, &err), &err);
    }
    assert_null(qd_augment_names[n]);
    check_ok(qd_augment_find("simclr-cifar", 3, &a, &err), &err);
    assert_true(a.crop == QD_CROP_RESIZED && a.filter == QD_FILTER_BICUBIC && a.size == 0);
    assert_true(a.scale_min == 0.1f && a.scale_max == 1.0f && a.flip == 0.5f && a.jitter == 0.8f && a.grey == 0.2f);
    assert_true(a.brightness == 0.4f && a.contrast == 0.4f && a.saturation == 0.4f && a.hue == 0.1f && a.blur == 0.0f);
    assert_true(a.scale.mean[0] == 0.485f && a.scale.std[2] == 0.225f);
    check_ok(qd_augment_find("simclr-imagenet", 3, &a, &err), &err);
    assert_true(a.size == 224 && a.scale_min == 0.08f && a.blur == 0.5f && a.sigma_min == 0.1f && a.sigma_max == 2.0f);
    check_fails(qd_augment_find("strong", 3, &a, &err), QD_E_NOT_FOUND, "known: simclr-cifar, simclr-imagenet", &err);
}

static qd_augment read_with(const char *name, double v, const char *preset)
{
    qd_err err = { 0 };
    qd_params *p = NULL;
    qd_augment a;
    check_ok(qd_params_new(qd_augment_params, &p, &err), &err);
    check_ok(qd_params_set_string(p, "augment", preset, &err), &err);
    check_ok(qd_params_set_number(p, name, v, &err), &err);
    check_ok(qd_augment_read(p, 3, &a, &err), &err);
    qd_params_free(p);
    return a;
}

static void parameters_depart_from_presets(void **state)
{
    qd_err err = { 0 };
    qd_params *p = NULL;
    qd_augment a = { 0 }, untouched;
    check_ok(qd_params_new(qd_augment_params, &p, &err), &err);
    check_ok(qd_augment_read(p, 3, &a, &err), &err);
    assert_true(a.crop == QD_CROP_NONE && a.flip == 0.0f);
    check_ok(qd_params_set_string(p, "augment", "simclr-cifar", &err), &err);
    check_ok(qd_params_set_number(p, "augment_flip", 0.0, &err), &err);
    check_ok(qd_params_set_number(p, "augment_grey", 0.3, &err), &err);
    check_ok(qd_augment_read(p, 3, &a, &err), &err);
    assert_true(a.flip == 0.0f && a.grey == 0.3f && a.jitter == 0.8f && a.scale_min == 0.1f);
    check_ok(qd_params_set_number(p, "augment_scale_max", 0.05, &err), &err);
    untouched = a;
    check_fails(qd_augment_read(p, 3, &a, &err), QD_E_INVALID, "augment_scale_min..max is 0.1..0.05", &err);
    assert_memory_equal(&a, &untouched, sizeof a);
    check_fails(qd_params_set_number(p, "augment_hue", 0.6, &err), QD_E_INVALID, "augment_hue", &err);
    qd_params_free(p);

    a = read_with("augment_size", 24, "eval");
    assert_true(a.crop == QD_CROP_CENTRE && a.size == 24 && a.resize == 24);
    a = read_with("augment_size", 300, "eval-imagenet");
    assert_true(a.size == 300 && a.resize == 300);
    a = read_with("augment_blur", 0.5, "simclr-cifar");
    assert_true(a.kernel == 5 && a.sigma_max == 2.0f);
    a = read_with("augment_pad", 2, "cifar-supervised");
    assert_true(a.pad == 2 && a.crop == QD_CROP_PADDED);
}

static void nonsense_is_refused(void **state)
{
    qd_err err = { 0 };
    qd_augment good, a;
    check_ok(qd_augment_find("simclr-imagenet", 3, &good, &err), &err);
#define refuse(change, words)                                                                                          \
    do {                                                                                                               \
        a = good;                                                                                                      \
        change;                                                                                                        \
        check_fails(qd_augment_check(&a, 3, &err), QD_E_INVALID, words, &err);                                         \
    } while (0)
    refuse(a.flip = 1.5f, "params.augment_flip is 1.5; 0..1");
    refuse(a.grey = -0.1f, "params.augment_grey");
    refuse(a.hue = 0.0f / 0.0f, "params.augment_hue is");
    refuse(a.scale_min = 0.0f, "params.augment_scale_min");
    refuse(a.ratio_max = 0.1f, "ratio is 0.75..0.1");
    refuse(a.kernel = 4, "a blur of kernel 4");
    refuse(a.sigma_min = 0.0f, "sigma 0..2");
    refuse(a.scale.std[1] = 0.0f, "deviation of channel 1");
    refuse(a.scale.channels = 1, "for 1 channels; the pictures have 3");
    refuse(a.size = 9000, "params.augment_size is 9000");
    refuse((a.crop = QD_CROP_CENTRE, a.resize = 100), "params.augment_size is 224; want 1..100");
    refuse(a.crop = QD_CROP_NONE, "nothing crops");
#undef refuse
    a = good;
    a.scale.channels = 4;
    a.scale.std[3] = 1.0f;
    check_fails(qd_augment_check(&a, 4, &err), QD_E_INVALID, "pictures of 4 channels", &err);

    qd_view_room *room = NULL;
    a = good;
    a.size = 8;
    check_ok(qd_view_room_new(&a, 3, NULL, &room, &err), &err);
    check_fails(qd_view_room_fit(room, 32, 32, &err), QD_E_INVALID, "kernel 23 does not fit pictures of 8 x 8", &err);
    qd_view_room_free(room);
}

static void room_is_drawn_from_the_budget(void **state)
{
    qd_err err = { 0 };
    qd_augment a;
    qd_view_room *room = NULL;
    qd_budget budget;
    qd_budget_init(&budget, 1u << 20);
    check_ok(qd_augment_find("simclr-imagenet", 3, &a, &err), &err);
    check_ok(qd_view_room_new(&a, 3, &budget, &room, &err), &err);
    check_fails(qd_view_room_fit(room, 500, 500, &err), QD_E_LIMIT, "room to vary pictures", &err);
    assert_int_equal(budget.used_bytes, 0);
    a.size = 32;
    a.blur = 0.0f;
    qd_view_room_free(room);
    check_ok(qd_view_room_new(&a, 3, &budget, &room, &err), &err);
    check_ok(qd_view_room_fit(room, 50, 50, &err), &err);
    const size_t used = budget.used_bytes;
    check_ok(qd_view_room_fit(room, 40, 50, &err), &err);
    assert_true(used > 0 && budget.used_bytes == used);
    check_fails(qd_view_room_fit(room, 4000, 50, &err), QD_E_LIMIT, "", &err);
    assert_int_equal(budget.used_bytes, used); /* still what it was */
    qd_view_room_free(room);
    assert_int_equal(budget.used_bytes, 0);
}

static qd_status make_room(void *ctx, qd_err *err)
{
    qd_augment a;
    qd_view_room *room = NULL;
    qd_status st = qd_augment_find("simclr-cifar", 3, &a, err);
    if (!st)
        st = qd_view_room_new(&a, 3, NULL, &room, err);
    if (!st)
        st = qd_view_room_fit(room, 32, 32, err);
    qd_view_room_free(room);
    return st;
}

static void every_failing_allocation_is_survived(void **state)
{
    assert_true(harness_run_each_alloc(make_room, NULL, 10) >= 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(presets_are_as_published),
        cmocka_unit_test(parameters_depart_from_presets),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(room_is_drawn_from_the_budget),
        cmocka_unit_test(every_failing_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
