/* test_overlap.c - the same picture in two sets: pixel by pixel, and after JPEG has been at it. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "data/data.h"

enum { SIDE = 16 };

/* n smooth coloured pictures, each of its own seed; `change` moves every third pixel by that much. */
static qd_dataset *make_set(int n, uint64_t seed, int change, int64_t layout)
{
    qd_err err = { 0 };
    qd_tensor images = { 0 };
    qd_dataset *d = NULL;
    const qd_shape planes = QD_SHAPE(n, 3, SIDE, SIDE), woven = QD_SHAPE(n, SIDE, SIDE, 3);
    check_ok(qd_tensor_init(&images, QD_U8, layout ? &woven : &planes, NULL, &err), &err);
    for (int k = 0; k < n; k++) {
        qd_rng r;
        qd_rng_init(&r, seed + (uint64_t)k, 0);
        for (int c = 0; c < 3; c++) {
            int corner[4];
            for (int i = 0; i < 4; i++)
                corner[i] = 20 + (int)qd_rng_below(&r, 200);
            for (int y = 0; y < SIDE; y++)
                for (int x = 0; x < SIDE; x++) {
                    const int top = corner[0] * (SIDE - x) + corner[1] * x,
                              bottom = corner[2] * (SIDE - x) + corner[3] * x;
                    const int v = (top * (SIDE - y) + bottom * y) / (SIDE * SIDE) + ((x ^ y ^ corner[0]) & 15);
                    const int at = layout ? (y * SIDE + x) * 3 + c : (c * SIDE + y) * SIDE + x;
                    qd_u8(&images)[k * 3 * SIDE * SIDE + at] = (uint8_t)(v + ((x + y) % 3 ? 0 : change));
                }
        }
    }
    check_ok(qd_dataset_wrap(&images, NULL, NULL, &d, &err), &err);
    qd_tensor_clear(&images);
    return d;
}

static qd_samples *samples_of(const qd_dataset *d)
{
    qd_err err = { 0 };
    qd_samples *s = NULL;
    check_ok(qd_samples_of(d, &s, &err), &err);
    return s;
}

/* Pictures 40..59 of one set are 0..19 of the other: as they were, interleaved, and changed a little. */
static void twins_are_found(void **state)
{
    qd_err err = { 0 };
    qd_dataset *da = make_set(60, 100, 0, 0), *db = make_set(50, 140, 0, 1), *dc = make_set(50, 140, 3, 0);
    qd_samples *a = samples_of(da), *b = samples_of(db), *c = samples_of(dc);
    const qd_overlap_options exact = { .bits = -1, .max_twins = 100 }, usual = QD_OVERLAP_USUAL;
    for (int threads = 1; threads <= 4; threads += 3) {
        qd_budget budget;
        qd_budget_init(&budget, 1u << 20);
        const qd_run run = { .threads = threads, .budget = &budget };
        qd_overlap o;
        check_ok(qd_samples_overlap(a, b, &exact, &run, &o, &err), &err);
        assert_true(o.exact == 20 && o.near == 0 && o.in_a == 20 && o.in_b == 20 && o.n == 20);
        for (int k = 0; k < 20; k++)
            assert_true(o.twin[k].a == 40 + k && o.twin[k].b == k && o.twin[k].bits == -1);
        qd_overlap_clear(&o);
        check_ok(qd_samples_overlap(a, c, &exact, &run, &o, &err), &err);
        assert_true(o.exact == 0 && o.n == 0);
        qd_overlap_clear(&o);
        check_ok(qd_samples_overlap(a, c, &usual, &run, &o, &err), &err);
        assert_int_equal(o.exact, 0);
        int right = 0;
        for (int64_t k = 0; k < o.n; k++)
            right += o.twin[k].a == o.twin[k].b + 40 && o.twin[k].bits <= usual.bits &&
                     o.twin[k].difference <= usual.difference;
        assert_int_equal(right, 20);
        if (o.near > 30) /* smooth pictures of random colours look alike now and then */
            fail_msg("%lld pairs, of which 20 are twins", (long long)o.near);
        qd_overlap_clear(&o);
        qd_overlap_options few = exact;
        few.max_twins = 3;
        check_ok(qd_samples_overlap(a, b, &few, &run, &o, &err), &err);
        assert_true(o.n == 3 && o.exact == 20);
        qd_overlap_clear(&o);
        assert_int_equal(budget.used_bytes, 0);
    }
    qd_samples_free(a);
    qd_samples_free(b);
    qd_samples_free(c);
    qd_dataset_free(da);
    qd_dataset_free(db);
    qd_dataset_free(dc);
}

static void twins_within_one_set(void **state)
{
    qd_err err = { 0 };
    qd_dataset *d = make_set(30, 500, 0, 0);
    qd_samples *s = samples_of(d);
    qd_overlap o;
    const qd_overlap_options exact = { .bits = -1, .max_twins = 100 };
    memcpy((uint8_t *)d->bytes.data + 7 * d->stride, (uint8_t *)d->bytes.data + 2 * d->stride, (size_t)d->stride);
    memcpy((uint8_t *)d->bytes.data + 20 * d->stride, (uint8_t *)d->bytes.data + 2 * d->stride, (size_t)d->stride);
    check_ok(qd_samples_overlap(s, s, &exact, NULL, &o, &err), &err);
    assert_true(o.exact == 3 && o.n == 3 && o.in_a == 3 && o.in_b == 3);
    assert_true(o.twin[0].a == 2 && o.twin[0].b == 7 && o.twin[1].b == 20 && o.twin[2].a == 7 && o.twin[2].b == 20);
    qd_overlap_clear(&o);
    /* One pixel is enough to be another picture. */
    ((uint8_t *)d->bytes.data)[20 * d->stride + 5] ^= 1;
    check_ok(qd_samples_overlap(s, s, &exact, NULL, &o, &err), &err);
    assert_int_equal(o.exact, 1);
    qd_overlap_clear(&o);
    qd_samples_free(s);
    qd_dataset_free(d);
}

static qd_dataset *open_cifar(const char *name)
{
    const qd_data_limits limits = { .max_bytes = 1u << 28, .max_count = 100000 };
    char path[128];
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    snprintf(path, sizeof path, "datasets/cifar10/%s", name);
    const char *full = harness_data(path);
    if (full)
        check_ok(qd_dataset_open(full, &limits, NULL, &d, &err), &err);
    return d;
}

/* CIFAR-10: the long tail went through JPEG, the first 4,000 training pictures did not; the split's list says which are the same.
 * Of the real twins at least 95 % are found, and of what is found at least 95 % are twins. And the sets that must not share
 * a picture do not. */
static void real_leaks_are_found(void **state)
{
    qd_err err = { 0 };
    qd_dataset *tail = open_cifar("jpeg-lt-split1-D_i.bin.gz"), *train = open_cifar("train-4000.bin.gz"),
               *test = open_cifar("test-1000.bin.gz"), *few = open_cifar("jpeg-lt-split1-S_b.bin.gz");
    const char *list = harness_data("datasets/cifar10/splits/split1_D_i.u16");
    if (!tail || !train || !test || !few || !list) {
        qd_dataset_free(tail);
        qd_dataset_free(train);
        qd_dataset_free(test);
        qd_dataset_free(few);
        skip();
    }
    qd_tensor index = { 0 };
    check_ok(qd_indices_take(list, 50000, 20000, NULL, &index, &err), &err);
    const int64_t *number = index.data;
    qd_samples *a = samples_of(tail), *b = samples_of(train), *c = samples_of(test), *s = samples_of(few);
    const qd_run run = { .threads = 2 };
    const qd_overlap_options usual = QD_OVERLAP_USUAL, exact = { .bits = -1, .max_twins = 1000 };
    qd_overlap o;
    check_ok(qd_samples_overlap(a, b, &usual, &run, &o, &err), &err);
    int64_t twins = 0, right = 0;
    for (int64_t k = 0; k < index.shape.dim[0]; k++)
        twins += number[k] < 4000;
    for (int64_t k = 0; k < o.n; k++)
        right += number[o.twin[k].a] == o.twin[k].b;
    print_message("%lld twins, %lld pairs found, %lld of them right\n", (long long)twins, (long long)o.near,
                  (long long)right);
    assert_true(twins > 800 && o.exact == 0);
    assert_true((double)right >= 0.95 * (double)twins && (double)right >= 0.95 * (double)o.near);
    qd_overlap_clear(&o);
    check_ok(qd_samples_overlap(b, c, &exact, &run, &o, &err), &err);
    assert_int_equal(o.exact, 0);
    qd_overlap_clear(&o);
    /* The few-shot set lies in the long tail, picture by picture. */
    check_ok(qd_samples_overlap(a, s, &exact, &run, &o, &err), &err);
    assert_true(o.exact == 450 && o.in_b == 450);
    qd_overlap_clear(&o);
    qd_samples_free(a);
    qd_samples_free(b);
    qd_samples_free(c);
    qd_samples_free(s);
    qd_dataset_free(tail);
    qd_dataset_free(train);
    qd_dataset_free(test);
    qd_dataset_free(few);
    qd_tensor_clear(&index);
}

static qd_status overlap_once(void *ctx, qd_err *err)
{
    qd_samples *const *s = ctx;
    qd_overlap o = { 0 };
    const qd_overlap_options exact = { .bits = -1, .max_twins = 100 };
    const qd_status st = qd_samples_overlap(s[0], s[1], &exact, NULL, &o, err);
    qd_overlap_clear(&o);
    return st;
}

static void failures_are_survived(void **state)
{
    qd_err err = { 0 };
    qd_dataset *d = make_set(10, 1, 0, 0);
    qd_samples *s[] = { samples_of(d), samples_of(d) };
    assert_true(harness_run_each_alloc(overlap_once, s, 50) >= 5);
    const atomic_bool cancel = true;
    qd_budget budget;
    qd_budget_init(&budget, 100);
    const qd_run stop = { .cancel = &cancel }, poor = { .budget = &budget };
    qd_overlap o = { 0 };
    qd_overlap_options with = QD_OVERLAP_USUAL;
    check_fails(qd_samples_overlap(s[0], s[1], &with, &stop, &o, &err), QD_E_CANCELLED, "", &err);
    check_fails(qd_samples_overlap(s[0], s[1], &with, &poor, &o, &err), QD_E_LIMIT, "comparing pictures", &err);
    with.bits = 33;
    check_fails(qd_samples_overlap(s[0], s[1], &with, NULL, &o, &err), QD_E_INVALID, "within 33 bits", &err);
    assert_true(!o.twin && budget.used_bytes == 0);
    qd_samples_free(s[0]);
    qd_samples_free(s[1]);
    qd_dataset_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(twins_are_found),
        cmocka_unit_test(twins_within_one_set),
        cmocka_unit_test(real_leaks_are_found),
        cmocka_unit_test(failures_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
