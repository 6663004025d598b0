/* test_loader.c - batches: the same bytes for any number of threads, going on in the middle, unions, weights, cancelling, limits. */
#include "harness/harness.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fs.h"
#include "base/mem.h"
#include "data/data.h"

/* A set of n grey or coloured pictures of 8 x 8, picture k filled with values that tell it; labels k mod classes. */
static qd_dataset *make_set(int n, int channels, int classes)
{
    qd_err err = { 0 };
    qd_tensor images = { 0 }, labels = { 0 };
    qd_dataset *d = NULL;
    const qd_shape shape = QD_SHAPE(n, channels, 8, 8), flat = QD_SHAPE(n);
    check_ok(qd_tensor_init(&images, QD_U8, &shape, NULL, &err), &err);
    check_ok(qd_tensor_init(&labels, QD_I32, &flat, NULL, &err), &err);
    for (int k = 0; k < n; k++) {
        for (int i = 0; i < channels * 64; i++)
            qd_u8(&images)[k * channels * 64 + i] = (uint8_t)(k * 37 + i * 5 + (k >> 3));
        ((int32_t *)labels.data)[k] = k % classes;
    }
    check_ok(qd_dataset_wrap(&images, &labels, NULL, &d, &err), &err);
    qd_tensor_clear(&images);
    qd_tensor_clear(&labels);
    return d;
}

typedef struct fixture {
    qd_dataset *set[2];
    qd_samples *samples[2];
    qd_augment augment;
} fixture;

static fixture make(int first, int second)
{
    qd_err err = { 0 };
    fixture f = { 0 };
    f.set[0] = make_set(first, 3, 4);
    check_ok(qd_samples_of(f.set[0], &f.samples[0], &err), &err);
    if (second) {
        f.set[1] = make_set(second, 1, 2);
        check_ok(qd_samples_of(f.set[1], &f.samples[1], &err), &err);
    }
    check_ok(qd_augment_find("simclr-cifar", 3, &f.augment, &err), &err);
    return f;
}

static void clear(fixture *f)
{
    for (int k = 0; k < 2; k++) {
        qd_samples_free(f->samples[k]);
        qd_dataset_free(f->set[k]);
    }
}

static qd_loader *start(const fixture *f, const qd_loader_options *o, const qd_run *run)
{
    qd_err err = { 0 };
    qd_loader *l = NULL;
    const qd_samples *const parts[] = { f->samples[0], f->samples[1] };
    check_ok(qd_loader_new(parts, f->samples[1] ? 2 : 1, &f->augment, o, run, &l, &err), &err);
    return l;
}

static qd_batch next(qd_loader *l)
{
    qd_err err = { 0 };
    qd_batch b = { 0 };
    check_ok(qd_loader_next(l, &b, &err), &err);
    return b;
}

static void begin(qd_loader *l, int64_t epoch, int64_t batch)
{
    qd_err err = { 0 };
    check_ok(qd_loader_begin(l, epoch, batch, &err), &err);
}

/* Everything a batch says, as one number. */
static uint64_t mark(uint64_t h, const void *data, size_t n)
{
    for (size_t k = 0; k < n; k++)
        h = (h ^ ((const uint8_t *)data)[k]) * 0x100000001b3u;
    return h;
}

static uint64_t mark_batch(uint64_t h, const qd_batch *b)
{
    const size_t n = (size_t)b->n;
    h = mark(h, b->x, n * (size_t)(b->views * b->channels * b->height * b->width) * sizeof *b->x);
    h = mark(h, b->label, n * sizeof *b->label);
    h = mark(h, b->part, n * sizeof *b->part);
    h = mark(h, b->sample, n * sizeof *b->sample);
    const int64_t at[] = { b->epoch, b->index, b->n };
    return mark(h, at, sizeof at);
}

/* --- order --- */

/* Every sample once, in another order each epoch, with its own pixels and label. */
static void epochs_show_everything_once(void **state)
{
    fixture f = make(53, 0);
    qd_err err = { 0 };
    check_ok(qd_augment_find("eval", 3, &f.augment, &err), &err);
    const qd_loader_options o = { .batch = 10, .views = 1, .shuffle = true, .threads = 2, .ahead = 2, .seed = 5 };
    qd_loader *l = start(&f, &o, NULL);
    assert_int_equal(qd_loader_batches(l), 6);
    int64_t order[3][53];
    for (int e = 0; e < 3; e++) {
        bool seen[53] = { false };
        int64_t n = 0;
        begin(l, e, 0);
        for (int k = 0; k < 6; k++) {
            const qd_batch b = next(l);
            assert_true(b.epoch == e && b.index == k && b.n == (k < 5 ? 10 : 3) && b.views == 1);
            assert_true(b.channels == 3 && b.height == 8 && b.width == 8);
            for (int i = 0; i < b.n; i++) {
                const int64_t s = b.sample[i];
                float want[192];
                assert_false(seen[s]);
                seen[s] = true;
                order[e][n++] = s;
                assert_true(b.part[i] == 0 && b.label[i] == s % 4);
                qd_dataset_floats(want, f.set[0], &s, 0, 1, &f.augment.scale);
                assert_memory_equal(want, b.x + (size_t)i * 192, sizeof want);
            }
        }
        assert_int_equal(n, 53);
        assert_int_equal(next(l).n, 0);
        assert_int_equal(next(l).n, 0);
    }
    assert_memory_not_equal(order[0], order[1], sizeof order[0]);
    assert_memory_not_equal(order[1], order[2], sizeof order[0]);
    qd_loader_free(l);

    qd_loader_options straight = o;
    straight.shuffle = false;
    straight.drop_last = true;
    l = start(&f, &straight, NULL);
    assert_int_equal(qd_loader_batches(l), 5);
    begin(l, 0, 0);
    for (int k = 0; k < 5; k++) {
        const qd_batch b = next(l);
        for (int i = 0; i < 10; i++)
            assert_int_equal(b.sample[i], 10 * k + i);
    }
    assert_int_equal(next(l).n, 0);
    qd_loader_free(l);
    clear(&f);
}

/* Where the shuffle puts sample 0 over many epochs: every place has its turn. */
static void shuffles_are_fair(void **state)
{
    fixture f = make(8, 0);
    const qd_loader_options o = { .batch = 8, .views = 1, .shuffle = true, .ahead = 1, .seed = 9 };
    qd_loader *l = start(&f, &o, NULL);
    int at[8] = { 0 };
    for (int e = 0; e < 4000; e++) {
        begin(l, e, 0);
        const qd_batch b = next(l);
        for (int i = 0; i < 8; i++)
            at[i] += b.sample[i] == 0;
    }
    for (int i = 0; i < 8; i++)
        assert_in_range(at[i], 395, 605); /* 500, five standard deviations */
    qd_loader_free(l);
    clear(&f);
}

/* --- the same for any number of threads, from anywhere --- */

static uint64_t hash_run(int threads, int ahead, int batch, int first)
{
    fixture f = make(61, 40);
    const qd_loader_options o = {
        .batch = batch, .views = 2, .shuffle = true, .threads = threads, .ahead = ahead, .seed = 77
    };
    static const int64_t chosen[] = { 39, 3, 5, 5, 0, 17, 20 };
    qd_err err = { 0 };
    qd_loader *l = start(&f, &o, NULL);
    uint64_t h = 14695981039346656037u;
    for (int e = 4; e < 7; e++) {
        check_ok(e == 5 ? qd_loader_choose(l, 1, NULL, 0, &err) : qd_loader_choose(l, 1, chosen, e == 4 ? 0 : 7, &err),
                 &err);
        if (first && e < 6)
            continue; /* begin in the middle of the last epoch */
        begin(l, e, first);
        for (qd_batch b = next(l); b.n; b = next(l))
            if (b.index >= 3 && e == 6)
                h = mark_batch(h, &b);
            else if (e < 6)
                mark_batch(h, &b);
    }
    qd_loader_free(l);
    clear(&f);
    return h;
}

static void threads_change_nothing(void **state)
{
    const uint64_t want = hash_run(0, 1, 13, 0);
    for (int threads = 1; threads <= 4; threads *= 2)
        for (int ahead = 1; ahead <= 5; ahead += 2)
            assert_int_equal(hash_run(threads, ahead, 13, 0), want);
    /* Going on at batch 3 of the last epoch, without what came before. */
    for (int threads = 0; threads <= 4; threads += 2)
        assert_int_equal(hash_run(threads, 2, 13, 3), want);
    assert_int_not_equal(hash_run(2, 2, 12, 0), want);
}

/* An epoch given up in the middle leaves nothing behind. */
static void epochs_can_be_given_up(void **state)
{
    fixture f = make(61, 0);
    const qd_loader_options o = { .batch = 7, .views = 2, .shuffle = true, .threads = 3, .ahead = 4, .seed = 1 };
    qd_loader *l = start(&f, &o, NULL), *fresh = start(&f, &o, NULL);
    for (int e = 0; e < 30; e++) {
        begin(l, e, e % 3);
        for (int k = 0; k < e % 4; k++)
            next(l);
    }
    begin(l, 99, 1);
    begin(fresh, 99, 1);
    for (;;) {
        const qd_batch a = next(l), b = next(fresh);
        assert_true(mark_batch(0, &a) == mark_batch(0, &b));
        if (!a.n)
            break;
    }
    begin(l, 100, 0); /* and is freed under way */
    qd_loader_free(l);
    qd_loader_free(fresh);
    clear(&f);
}

/* Two looks at a picture differ, and each is what its key says. */
static void views_are_drawn_by_their_keys(void **state)
{
    fixture f = make(20, 10);
    qd_err err = { 0 };
    const qd_loader_options o = { .batch = 30, .views = 2, .shuffle = true, .threads = 2, .ahead = 1, .seed = 21 };
    qd_loader *l = start(&f, &o, NULL);
    qd_view_room *room = NULL;
    check_ok(qd_view_room_new(&f.augment, 3, NULL, &room, &err), &err);
    check_ok(qd_view_room_fit(room, 8, 8, &err), &err);
    begin(l, 12, 0);
    const qd_batch b = next(l);
    assert_int_equal(b.n, 30);
    int differ = 0;
    for (int i = 0; i < 30; i++) {
        float want[192];
        qd_pixels px = qd_dataset_picture(f.set[b.part[i]], b.sample[i]);
        if (b.part[i]) { /* grey among colours */
            px.channels = 3;
            px.plane = 0;
        }
        assert_int_equal(b.label[i], b.sample[i] % (b.part[i] ? 2 : 4));
        for (int v = 0; v < 2; v++) {
            const qd_view_key key = {
                .seed = 21, .epoch = 12, .sample = b.sample[i] + (b.part[i] ? 20 : 0), .view = v
            };
            qd_view view;
            qd_view_draw(&view, &f.augment, 8, 8, &key);
            qd_view_floats(want, &px, &view, room);
            assert_memory_equal(want, b.x + (v * 30 + i) * 192, sizeof want);
        }
        differ += memcmp(b.x + i * 192, b.x + (30 + i) * 192, sizeof want) != 0;
    }
    assert_true(differ > 25);
    qd_view_room_free(room);
    qd_loader_free(l);
    clear(&f);
}

/* --- what is chosen --- */

static void choices_and_weights(void **state)
{
    fixture f = make(40, 10);
    qd_err err = { 0 };
    const qd_loader_options o = { .batch = 8, .views = 1, .threads = 1, .ahead = 1, .seed = 3 };
    qd_loader *l = start(&f, &o, NULL);
    qd_batch b = { 0 };
    assert_int_equal(qd_loader_batches(l), 7);
    const int64_t some[] = { 30, 2 }, bad[] = { 1, 40 };
    check_ok(qd_loader_choose(l, 0, some, 2, &err), &err);
    check_ok(qd_loader_choose(l, 1, some, 0, &err), &err);
    begin(l, 0, 0);
    b = next(l);
    assert_true(b.n == 2 && b.sample[0] == 30 && b.sample[1] == 2 && next(l).n == 0);
    check_fails(qd_loader_choose(l, 0, bad, 2, &err), QD_E_INVALID, "sample 40 is chosen of part 0, which has 0..39",
                &err);
    check_ok(qd_loader_choose(l, 0, some, 0, &err), &err);
    assert_int_equal(qd_loader_batches(l), 0);
    begin(l, 1, 0);
    assert_int_equal(next(l).n, 0);

    /* Weights of classes: 0 is left out, 3 comes three times as often as 1. */
    double weight[40];
    int64_t seen[4] = { 0 };
    for (int k = 0; k < 40; k++)
        weight[k] = k % 4 == 0 ? 0.0 : k % 4;
    check_ok(qd_loader_weigh(l, 0, weight, 12000, &err), &err);
    begin(l, 2, 0);
    for (b = next(l); b.n; b = next(l))
        for (int i = 0; i < b.n; i++)
            seen[b.label[i]]++;
    assert_true(seen[0] == 0 && seen[0] + seen[1] + seen[2] + seen[3] == 12000);
    for (int c = 1; c < 4; c++)
        assert_in_range(seen[c], 2000 * c - 250, 2000 * c + 250);
    begin(l, 3, 0);
    const int64_t first = next(l).sample[0];
    begin(l, 2, 0);
    assert_int_not_equal(next(l).sample[0], first); /* true of this seed: other epochs, other draws */

    check_ok(qd_samples_balance(weight, f.samples[0], &err), &err);
    for (int k = 0; k < 40; k++)
        assert_true(weight[k] == 0.1);
    weight[7] = -1.0;
    check_fails(qd_loader_weigh(l, 0, weight, 10, &err), QD_E_INVALID, "weight of sample 7 of part 0 is -1", &err);
    memset(weight, 0, sizeof weight);
    check_fails(qd_loader_weigh(l, 0, weight, 10, &err), QD_E_INVALID, "add up to 0", &err);
    check_ok(qd_loader_weigh(l, 0, NULL, 0, &err), &err);
    assert_int_equal(qd_loader_batches(l), 5);
    qd_loader_free(l);
    clear(&f);
}

/* --- refusals --- */

static void nonsense_is_refused(void **state)
{
    fixture f = make(10, 0);
    qd_err err = { 0 };
    qd_loader *l = NULL;
    qd_batch b = { 0 };
    const qd_samples *const parts[] = { f.samples[0] };
    const qd_loader_options good = { .batch = 2, .views = 1, .threads = 1, .ahead = 1 };
    qd_loader_options o = good;
    o.batch = 0;
    check_fails(qd_loader_new(parts, 1, &f.augment, &o, NULL, &l, &err), QD_E_INVALID, "batch is 0; 1..65536", &err);
    o = good;
    o.views = 17;
    check_fails(qd_loader_new(parts, 1, &f.augment, &o, NULL, &l, &err), QD_E_INVALID, "views is 17", &err);
    o = good;
    o.ahead = 0;
    check_fails(qd_loader_new(parts, 1, &f.augment, &o, NULL, &l, &err), QD_E_INVALID, "ahead is 0", &err);
    check_fails(qd_loader_new(parts, 9, &f.augment, &good, NULL, &l, &err), QD_E_INVALID, "parts is 9", &err);
    qd_augment grey;
    check_ok(qd_augment_find("simclr-cifar", 1, &grey, &err), &err);
    check_fails(qd_loader_new(parts, 1, &grey, &good, NULL, &l, &err), QD_E_INVALID,
                "given for 1 channels; the pictures have 3", &err);
    assert_null(l);
    l = start(&f, &good, NULL);
    check_fails(qd_loader_next(l, &b, &err), QD_E_INVALID, "no epoch", &err);
    check_fails(qd_loader_begin(l, -1, 0, &err), QD_E_INVALID, "epoch -1", &err);
    check_fails(qd_loader_begin(l, 0, 6, &err), QD_E_INVALID, "an epoch of 5 batches cannot begin at batch 6", &err);
    begin(l, 0, 5);
    assert_int_equal(next(l).n, 0);
    qd_loader_free(l);
    clear(&f);
}

static void budgets_are_kept(void **state)
{
    fixture f = make(100, 0);
    qd_err err = { 0 };
    qd_budget budget;
    qd_loader *l = NULL;
    const qd_run run = { .budget = &budget };
    const qd_samples *const parts[] = { f.samples[0] };
    const qd_loader_options o = { .batch = 50, .views = 2, .shuffle = true, .threads = 2, .ahead = 2, .seed = 3 };
    const size_t slots = 3 * 50 * (2 * 192 * sizeof(float) + 16);
    qd_budget_init(&budget, slots - 1);
    check_fails(qd_loader_new(parts, 1, &f.augment, &o, &run, &l, &err), QD_E_LIMIT,
                "3 batches of 50 x 2 pictures of 3 x 8 x 8 (smaller batches or fewer ahead need less)", &err);
    assert_int_equal(budget.used_bytes, 0);
    qd_budget_init(&budget, slots + 1000);
    check_fails(qd_loader_new(parts, 1, &f.augment, &o, &run, &l, &err), QD_E_LIMIT, "room to vary pictures", &err);
    assert_int_equal(budget.used_bytes, 0);
    qd_budget_init(&budget, 1u << 20);
    l = start(&f, &o, &run);
    const size_t used = budget.used_bytes;
    assert_true(used > slots);
    for (int e = 0; e < 3; e++) {
        begin(l, e, 0);
        next(l);
        assert_int_equal(budget.used_bytes, used + 800);
    }
    budget.limit_bytes = budget.used_bytes;
    const int64_t some[] = { 1 };
    check_fails(qd_loader_choose(l, 0, some, 1, &err), QD_E_LIMIT, "the choice of samples", &err);
    assert_int_equal(qd_loader_batches(l), 2);
    qd_loader_free(l);
    assert_int_equal(budget.used_bytes, 0);
    clear(&f);
}

/* --- files, cancelling, failing --- */

static void put_png(const char *dir, const char *name, int w, int h, int first)
{
    qd_err err = { 0 };
    qd_buf b;
    char path[1200];
    uint8_t *pixels = qd_alloc((size_t)(w * h * 3));
    assert_non_null(pixels);
    for (int k = 0; k < w * h * 3; k++)
        pixels[k] = (uint8_t)(first + k * 7 + (k * k >> 4));
    const qd_image im = { .width = w, .height = h, .channels = 3, .pixels = pixels };
    qd_buf_init(&b, 0);
    check_ok(qd_png_encode(&im, &b, &err), &err);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    check_ok(qd_fs_write(path, b.data, b.size, &err), &err);
    qd_buf_clear(&b);
    qd_free(pixels);
}

/* Files of many sizes, decoded by the threads; one that vanishes is named by the batch that needs it, and no other. */
static void files_are_decoded_by_threads(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    char name[64], path[1200];
    for (int k = 0; k < 30; k++) {
        snprintf(name, sizeof name, "%02d.png", k);
        put_png(dir, name, 9 + k % 5, 8 + k % 7, k);
    }
    const qd_samples_options so = { .limits = { .max_bytes = 1u << 20, .max_count = 100 } };
    qd_samples_options kept = so;
    kept.cache_bytes = 1u << 20;
    fixture f = { 0 }, cached = { 0 };
    check_ok(qd_samples_open(dir, &so, NULL, &f.samples[0], &err), &err);
    check_ok(qd_samples_open(dir, &kept, NULL, &cached.samples[0], &err), &err);
    check_ok(qd_augment_find("simclr-cifar", 3, &f.augment, &err), &err);
    const qd_loader_options o = { .batch = 10, .views = 2, .threads = 3, .ahead = 2, .seed = 8 };
    qd_loader *l = NULL;
    const qd_samples *const parts[] = { f.samples[0] };
    check_fails(qd_loader_new(parts, 1, &f.augment, &o, NULL, &l, &err), QD_E_INVALID, "params.augment_size is needed",
                &err);
    f.augment.size = 8;
    cached.augment = f.augment;
    l = start(&f, &o, NULL);
    qd_loader *m = start(&cached, &o, NULL);
    begin(l, 0, 0);
    begin(m, 0, 0);
    for (int k = 0; k < 3; k++) {
        const qd_batch a = next(l), b = next(m);
        assert_true(mark_batch(0, &a) == mark_batch(0, &b));
    }
    snprintf(path, sizeof path, "%s/13.png", dir);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/17.png", dir);
    assert_int_equal(unlink(path), 0);
    for (int again = 0; again < 20; again++) {
        qd_batch b = { 0 };
        begin(l, 1, 0);
        assert_int_equal(next(l).n, 10);
        check_fails(qd_loader_next(l, &b, &err), QD_E_NOT_FOUND, "13.png", &err); /* always the first */
        check_fails(qd_loader_next(l, &b, &err), QD_E_NOT_FOUND, "13.png", &err);
    }
    begin(l, 1, 2);
    assert_int_equal(next(l).n, 10);
    qd_loader_free(l);
    qd_loader_free(m);
    clear(&f);
    clear(&cached);
}

static void *cancel_soon(void *flag)
{
    usleep(30000);
    atomic_store((atomic_bool *)flag, true);
    return NULL;
}

/* A batch that takes far longer than two seconds is left within a picture's time. */
static void cancelling_does_not_wait(void **state)
{
    for (int threads = 0; threads <= 2; threads++) {
        qd_err err = { 0 };
        fixture f = make(16, 0);
        atomic_bool cancel = false;
        const qd_run run = { .cancel = &cancel };
        struct timespec from, to;
        pthread_t t;
        qd_batch b = { 0 };
        check_ok(qd_augment_find("simclr-imagenet", 3, &f.augment, &err), &err);
        f.augment.size = 256;
        f.augment.blur = 1.0f;
        const qd_loader_options o = { .batch = 4, .views = 16, .shuffle = true, .threads = threads, .ahead = 1 };
        qd_loader *l = start(&f, &o, &run);
        double weight[16];
        for (int k = 0; k < 16; k++)
            weight[k] = 1.0;
        check_ok(qd_loader_weigh(l, 0, weight, 1000000, &err), &err);
        begin(l, 0, 0);
        clock_gettime(CLOCK_MONOTONIC, &from);
        assert_int_equal(pthread_create(&t, NULL, cancel_soon, &cancel), 0);
        qd_status st;
        while (!(st = qd_loader_next(l, &b, &err)))
            assert_true(b.n == 4);
        assert_int_equal(st, QD_E_CANCELLED);
        qd_loader_free(l);
        clock_gettime(CLOCK_MONOTONIC, &to);
        pthread_join(t, NULL);
        assert_true((double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec) < 2.0);
        clear(&f);
    }
}

static qd_status load_once(void *ctx, qd_err *err)
{
    const fixture *f = ctx;
    qd_loader *l = NULL;
    qd_batch b;
    const qd_samples *const parts[] = { f->samples[0], f->samples[1] };
    const qd_loader_options o = { .batch = 8, .views = 2, .shuffle = true, .threads = 0, .ahead = 1 };
    static const int64_t some[] = { 1, 2, 3 };
    qd_status st = qd_loader_new(parts, 2, &f->augment, &o, NULL, &l, err);
    if (!st)
        st = qd_loader_choose(l, 1, some, 3, err);
    if (!st)
        st = qd_loader_begin(l, 0, 0, err);
    if (!st)
        st = qd_loader_next(l, &b, err);
    qd_loader_free(l);
    return st;
}

static void every_failing_allocation_is_survived(void **state)
{
    fixture f = make(20, 10);
    assert_true(harness_run_each_alloc(load_once, &f, 100) > 8);
    clear(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(epochs_show_everything_once),
        cmocka_unit_test(shuffles_are_fair),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(epochs_can_be_given_up),
        cmocka_unit_test(views_are_drawn_by_their_keys),
        cmocka_unit_test(choices_and_weights),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(budgets_are_kept),
        cmocka_unit_test(files_are_decoded_by_threads),
        cmocka_unit_test(cancelling_does_not_wait),
        cmocka_unit_test(every_failing_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
