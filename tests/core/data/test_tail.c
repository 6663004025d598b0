/* test_tail.c - long tails: the published counts, the published lists to the number, and splits of our own. */
#include "harness/harness.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "data/data.h"

/* --- counts: colt.md 2.2 --- */

static void counts_are_as_published(void **state)
{
    static const int64_t ten[] = { 4500, 2697, 1617, 969, 581, 348, 208, 125, 75, 45 };
    qd_err err = { 0 };
    int64_t count[365], total = 0;
    check_ok(qd_tail_counts(QD_TAIL_EXPONENTIAL, 10, 4500, 100, 0, count, &err), &err);
    assert_memory_equal(count, ten, sizeof ten);
    check_ok(qd_tail_counts(QD_TAIL_EXPONENTIAL, 100, 450, 100, 0, count, &err), &err);
    assert_true(count[0] == 450 && count[1] == 429 && count[2] == 410 && count[97] == 4 && count[98] == 4 &&
                count[99] == 4);
    for (int c = 0; c < 100; c++)
        total += count[c];
    assert_int_equal(total, 9754);
    /* n_max 500, as the program behind another row of colt.md 8.6 has it. */
    check_ok(qd_tail_counts(QD_TAIL_EXPONENTIAL, 100, 500, 100, 0, count, &err), &err);
    total = 0;
    for (int c = 0; c < 100; c++)
        total += count[c];
    assert_int_equal(total, 10847);
}

/* Ends as asked for, falling, and steeper with more power. */
static void pareto_tails_fall(void **state)
{
    qd_err err = { 0 };
    int64_t flat[100], steep[100], sums[2] = { 0 };
    check_ok(qd_tail_counts(QD_TAIL_PARETO, 100, 1280, 1280.0 / 6, 0.3, flat, &err), &err);
    check_ok(qd_tail_counts(QD_TAIL_PARETO, 100, 1280, 1280.0 / 6, 0.5, steep, &err), &err);
    assert_true(flat[0] == 1280 && steep[0] == 1280 && flat[99] == 6 && steep[99] == 6);
    for (int c = 1; c < 100; c++)
        assert_true(flat[c] <= flat[c - 1] && steep[c] <= steep[c - 1] && steep[c] <= flat[c]);
    for (int c = 0; c < 100; c++) {
        sums[0] += flat[c];
        sums[1] += steep[c];
    }
    assert_true(sums[0] == 13876 && sums[1] == 9298); /* the same in Python */
}

static void counts_that_make_no_sense_are_refused(void **state)
{
    qd_err err = { 0 };
    int64_t count[10] = { 7 };
    check_fails(qd_tail_counts(QD_TAIL_EXPONENTIAL, 1, 100, 10, 0, count, &err), QD_E_INVALID, "of 1 classes", &err);
    check_fails(qd_tail_counts(QD_TAIL_EXPONENTIAL, 10, 100, 0.5, 0, count, &err), QD_E_INVALID, "imbalance is 0.5",
                &err);
    check_fails(qd_tail_counts(QD_TAIL_EXPONENTIAL, 10, 99, 100, 0, count, &err), QD_E_INVALID, "the smallest has none",
                &err);
    check_fails(qd_tail_counts(QD_TAIL_PARETO, 10, 100, 10, 0, count, &err), QD_E_INVALID,
                "power of the Pareto law is 0", &err);
    assert_int_equal(count[0], 7);
}

/* --- splits --- */

/* Samples of labels alone: pictures of one pixel. */
typedef struct fixture {
    qd_dataset *set;
    qd_samples *samples;
} fixture;

static fixture make(const uint8_t *label, int64_t n)
{
    qd_err err = { 0 };
    qd_tensor images = { 0 }, labels = { 0 };
    fixture f = { 0 };
    const qd_shape shape = QD_SHAPE(n, 1, 1, 1), flat = QD_SHAPE(n);
    check_ok(qd_tensor_init(&images, QD_U8, &shape, NULL, &err), &err);
    check_ok(qd_tensor_init(&labels, QD_U8, &flat, NULL, &err), &err);
    memcpy(labels.data, label, (size_t)n);
    check_ok(qd_dataset_wrap(&images, &labels, NULL, &f.set, &err), &err);
    check_ok(qd_samples_of(f.set, &f.samples, &err), &err);
    qd_tensor_clear(&images);
    qd_tensor_clear(&labels);
    return f;
}

static void clear(fixture *f)
{
    qd_samples_free(f->samples);
    qd_dataset_free(f->set);
}

static qd_tensor indices(const char *name)
{
    char path[128];
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    snprintf(path, sizeof path, "datasets/cifar10/splits/%s", name);
    const char *full = harness_data(path);
    assert_non_null(full);
    check_ok(qd_indices_take(full, 50000, 50000, NULL, &t, &err), &err);
    return t;
}

static void check_same(const qd_tensor *got, const qd_tensor *want)
{
    assert_int_equal(qd_tensor_count(got), qd_tensor_count(want));
    for (int64_t k = 0; k < qd_tensor_count(got); k++)
        assert_int_equal(((const int64_t *)got->data)[k], ((const int64_t *)want->data)[k]);
}

/* The lists of COLT's authors. Their chance is not ours; but given the order of classes and of the pictures of each class, which two of
 * their lists tell, all three come out number by number. */
static void published_lists_come_out(void **state)
{
    qd_err err = { 0 };
    if (!harness_data("datasets/cifar10/splits/train-labels.u8"))
        skip();
    qd_tensor labels = indices("train-labels.u8"), left_out = indices("valIdxList.u16");
    uint8_t *label = qd_alloc(50000);
    for (int k = 0; k < 50000; k++)
        label[k] = (uint8_t)((const int64_t *)labels.data)[k];
    fixture f = make(label, 50000);
    for (int split = 1; split <= 5; split++) {
        static const char *const kinds[] = { "D_i", "D_b", "S_b" };
        qd_tensor want[3];
        char name[32];
        int64_t of_class[10] = { 0 };
        int order[10];
        for (int k = 0; k < 3; k++) {
            snprintf(name, sizeof name, "split%d_%s.u16", split, kinds[k]);
            want[k] = indices(name);
        }
        assert_true(qd_tensor_count(&want[0]) == 11165 && qd_tensor_count(&want[1]) == 11160 &&
                    qd_tensor_count(&want[2]) == 450);
        for (int64_t k = 0; k < 11165; k++)
            of_class[label[((const int64_t *)want[0].data)[k]]]++;
        for (int c = 0; c < 10; c++) {
            int rank = 0;
            for (int other = 0; other < 10; other++)
                rank += of_class[other] > of_class[c];
            order[rank] = c;
        }
        /* The balanced list goes on where the long tail's smaller classes end. */
        int64_t *sequence = qd_alloc((11165 + 11160) * sizeof *sequence);
        memcpy(sequence, want[0].data, 11165 * sizeof *sequence);
        memcpy(sequence + 11165, want[1].data, 11160 * sizeof *sequence);
        const qd_tail_options o = { .most = 4500,
                                    .imbalance = 100,
                                    .order = order,
                                    .left_out = left_out.data,
                                    .n_left_out = 5000,
                                    .sequence = sequence,
                                    .n_sequence = 11165 + 11160 };
        qd_tail got;
        check_ok(qd_tail_split(f.samples, &o, NULL, &got, &err), &err);
        check_same(&got.tail, &want[0]);
        check_same(&got.balanced, &want[1]);
        check_same(&got.few, &want[2]);
        qd_tail_clear(&got);
        qd_free(sequence);
        for (int k = 0; k < 3; k++)
            qd_tensor_clear(&want[k]);
    }
    clear(&f);
    qd_free(label);
    qd_tensor_clear(&labels);
    qd_tensor_clear(&left_out);
}

static void check_within(const qd_tensor *part, const bool *whole)
{
    for (int64_t k = 0; k < qd_tensor_count(part); k++)
        assert_true(whole[((const int64_t *)part->data)[k]]);
}

/* Our own chance: counts by rank, nothing twice, nothing left out, the few within both; the seed decides and nothing else. */
static void splits_of_our_own(void **state)
{
    enum { N = 4000, CLASSES = 8 };
    static uint8_t label[N];
    static int64_t left_out[N / 10];
    qd_err err = { 0 };
    for (int k = 0; k < N; k++)
        label[k] = (uint8_t)(k % CLASSES);
    for (int k = 0; k < N / 10; k++)
        left_out[k] = 10 * k;
    fixture f = make(label, N);
    qd_tail_options o = {
        .most = 300, .imbalance = 50, .permute = true, .seed = 4, .left_out = left_out, .n_left_out = N / 10
    };
    qd_tail t, again, other;
    check_ok(qd_tail_split(f.samples, &o, NULL, &t, &err), &err);
    check_ok(qd_tail_split(f.samples, &o, NULL, &again, &err), &err);
    o.seed = 5;
    check_ok(qd_tail_split(f.samples, &o, NULL, &other, &err), &err);
    check_same(&t.tail, &again.tail);
    check_same(&t.balanced, &again.balanced);
    assert_memory_not_equal(t.few.data, other.few.data, (size_t)qd_tensor_count(&t.few) * sizeof(int64_t));

    int64_t count[CLASSES], of_class[CLASSES] = { 0 }, total = 0, plain = 0;
    static bool in_tail[N], in_balanced[N];
    check_ok(qd_tail_counts(QD_TAIL_EXPONENTIAL, CLASSES, 300, 50, 0, count, &err), &err);
    for (int64_t k = 0; k < qd_tensor_count(&t.tail); k++) {
        const int64_t s = ((const int64_t *)t.tail.data)[k];
        assert_true(!in_tail[s] && s % 10);
        in_tail[s] = true;
        of_class[label[s]]++;
    }
    for (int64_t k = 0; k < qd_tensor_count(&t.balanced); k++)
        in_balanced[((const int64_t *)t.balanced.data)[k]] = true;
    for (int c = 0; c < CLASSES; c++) {
        bool found = false;
        for (int r = 0; r < CLASSES; r++)
            found |= count[r] == of_class[c];
        assert_true(found);
        total += count[c];
        plain += count[c] == of_class[c];
    }
    assert_true(plain < CLASSES); /* the classes were shuffled, with this seed */
    assert_int_equal(qd_tensor_count(&t.tail), total);
    assert_int_equal(qd_tensor_count(&t.balanced), total / CLASSES * CLASSES);
    assert_int_equal(qd_tensor_count(&t.few), 6 * CLASSES);
    check_within(&t.few, in_tail);
    check_within(&t.few, in_balanced);

    o.permute = false;
    qd_tail_clear(&other);
    check_ok(qd_tail_split(f.samples, &o, NULL, &other, &err), &err);
    memset(of_class, 0, sizeof of_class);
    for (int64_t k = 0; k < qd_tensor_count(&other.tail); k++)
        of_class[label[((const int64_t *)other.tail.data)[k]]]++;
    assert_memory_equal(of_class, count, sizeof count);
    qd_tail_clear(&t);
    qd_tail_clear(&again);
    qd_tail_clear(&other);
    clear(&f);
}

static void splits_that_cannot_be_are_refused(void **state)
{
    static uint8_t label[100];
    qd_err err = { 0 };
    qd_tail t = { 0 };
    for (int k = 0; k < 100; k++)
        label[k] = (uint8_t)(k % 4);
    fixture f = make(label, 100);
    const int twice[] = { 0, 1, 1, 3 };
    const int64_t beyond[] = { 100 };
    qd_tail_options o = { .most = 26, .imbalance = 10 };
    check_fails(qd_tail_split(f.samples, &o, NULL, &t, &err), QD_E_INVALID,
                "class 0 has 25 pictures to take; 26 are wanted", &err);
    o.most = 20;
    o.order = twice;
    check_fails(qd_tail_split(f.samples, &o, NULL, &t, &err), QD_E_INVALID, "has 1 at rank 2", &err);
    o.order = NULL;
    o.left_out = beyond;
    o.n_left_out = 1;
    check_fails(qd_tail_split(f.samples, &o, NULL, &t, &err), QD_E_INVALID, "left out: picture 100; 0..99", &err);
    o.n_left_out = 0;
    qd_budget budget;
    qd_budget_init(&budget, 100);
    check_fails(qd_tail_split(f.samples, &o, &budget, &t, &err), QD_E_LIMIT, "", &err);
    assert_true(!t.tail.data && budget.used_bytes == 0);
    clear(&f);
}

static qd_status split_once(void *ctx, qd_err *err)
{
    const fixture *f = ctx;
    const qd_tail_options o = { .most = 20, .imbalance = 10, .permute = true };
    qd_tail t = { 0 };
    const qd_status st = qd_tail_split(f->samples, &o, NULL, &t, err);
    qd_tail_clear(&t);
    return st;
}

static void every_failing_allocation_is_survived(void **state)
{
    static uint8_t label[100];
    for (int k = 0; k < 100; k++)
        label[k] = (uint8_t)(k % 4);
    fixture f = make(label, 100);
    assert_true(harness_run_each_alloc(split_once, &f, 50) > 8);
    clear(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_are_as_published),
        cmocka_unit_test(pareto_tails_fall),
        cmocka_unit_test(counts_that_make_no_sense_are_refused),
        cmocka_unit_test(published_lists_come_out),
        cmocka_unit_test(splits_of_our_own),
        cmocka_unit_test(splits_that_cannot_be_are_refused),
        cmocka_unit_test(every_failing_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
