/* loader.c - batches of looks at samples, prepared ahead on threads of its own.
 *
 * An epoch is a list of samples. Its batches are cut into pieces of a few pictures; threads take the pieces in order and write each into
 * its batch's slot of a ring, so who does what changes nothing. One mutex guards the counters; pictures are written outside it. */
#include "data/loader_int.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { PIECE = 8, PATIENCE_MS = 50 };

static int pieces_of_batch(const qd_loader *l)
{
    return (l->o.batch + PIECE - 1) / PIECE;
}

static int size_of_batch(const qd_loader *l, int64_t b)
{
    const int64_t left = l->n - b * l->o.batch;
    return (int)(left < l->o.batch ? left : l->o.batch);
}

/* --- one picture, one piece --- */

static const qd_share *part_of(const qd_loader *l, int64_t number, int *index)
{
    int p = l->parts - 1;
    while (p > 0 && number < l->part[p].base)
        p--;
    *index = p;
    return &l->part[p];
}

static qd_status prepare(const qd_loader *l, qd_hand *h, qd_slot *s, int n, int i, int64_t number, qd_err *err)
{
    const size_t size = (size_t)l->channels * (size_t)l->height * (size_t)l->width;
    int which;
    const qd_share *p = part_of(l, number, &which);
    qd_pixels px;
    qd_status st = qd_samples_get(p->samples, number - p->base, &h->hold, &px, err);
    if (st)
        return st;
    if (px.channels == 1 && l->channels == 3) {
        px.channels = 3;
        px.plane = 0;
    }
    st = qd_view_room_fit(h->room, px.height, px.width, err);
    if (st)
        return st;
    for (int v = 0; v < l->o.views; v++) {
        const qd_view_key key = { .seed = l->o.seed, .epoch = l->epoch, .sample = number, .view = v };
        qd_view view;
        st = qd_run_check(l->run, err);
        if (st || atomic_load_explicit(&l->halt, memory_order_relaxed))
            return st; /* what is left over is not wanted */
        qd_view_draw(&view, &l->augment, px.height, px.width, &key);
        qd_view_floats(s->x + ((size_t)v * (size_t)n + (size_t)i) * size, &px, &view, h->room);
    }
    s->label[i] = qd_samples_label(p->samples, number - p->base);
    s->part[i] = which;
    s->sample[i] = number - p->base;
    return QD_OK;
}

/* The pictures of a piece; returns the first that failed, -1 when none did. */
static int64_t prepare_piece(qd_loader *l, qd_hand *h, int64_t piece, qd_err *err)
{
    const int64_t b = piece / pieces_of_batch(l);
    const int n = size_of_batch(l, b), first = (int)(piece % pieces_of_batch(l)) * PIECE;
    qd_slot *s = &l->slot[b % l->slots];
    for (int i = first; i < n && i < first + PIECE; i++) {
        if (atomic_load_explicit(&l->halt, memory_order_relaxed))
            return -1;
        if (prepare(l, h, s, n, i, l->order[b * l->o.batch + i], err))
            return i;
    }
    return -1;
}

/* With the mutex. */
static void finish_piece(qd_loader *l, int64_t piece, int64_t failed, const qd_err *err)
{
    qd_slot *s = &l->slot[piece / pieces_of_batch(l) % l->slots];
    s->done++;
    /* The first of the batch, whichever thread was faster. */
    if (failed >= 0 && (s->failed < 0 || failed < s->failed)) {
        s->failed = failed;
        s->err = *err;
    }
}

/* --- threads --- */

/* With the mutex: is there a piece, and room for its batch? */
static bool may_take(const qd_loader *l)
{
    return l->running && l->next < l->end && l->next / pieces_of_batch(l) < l->given - l->lent + l->slots;
}

static void *work(void *ctx)
{
    qd_hand *h = ctx;
    qd_loader *l = h->loader;
    pthread_mutex_lock(&l->mutex);
    while (!l->quit) {
        if (!may_take(l)) {
            pthread_cond_wait(&l->work, &l->mutex);
            continue;
        }
        const int64_t piece = l->next++;
        qd_err err = { 0 };
        l->active++;
        pthread_mutex_unlock(&l->mutex);
        const int64_t failed = prepare_piece(l, h, piece, &err);
        pthread_mutex_lock(&l->mutex);
        l->active--;
        finish_piece(l, piece, failed, &err);
        pthread_cond_signal(&l->ready);
    }
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

/* No piece is under way when this returns. */
static void stop_epoch(qd_loader *l)
{
    pthread_mutex_lock(&l->mutex);
    l->running = false;
    atomic_store(&l->halt, true);
    while (l->active)
        pthread_cond_wait(&l->ready, &l->mutex);
    atomic_store(&l->halt, false);
    l->lent = 0;
    pthread_mutex_unlock(&l->mutex);
}

void qd_loader_free(qd_loader *l)
{
    if (!l)
        return;
    if (l->made) {
        pthread_mutex_lock(&l->mutex);
        l->quit = true;
        atomic_store(&l->halt, true);
        pthread_cond_broadcast(&l->work);
        pthread_mutex_unlock(&l->mutex);
    }
    for (int k = 0; l->hand && k < l->hands; k++) {
        if (l->hand[k].started)
            pthread_join(l->hand[k].thread, NULL);
        qd_view_room_free(l->hand[k].room);
        qd_image_clear(&l->hand[k].hold);
    }
    if (l->made) {
        pthread_mutex_destroy(&l->mutex);
        pthread_cond_destroy(&l->work);
        pthread_cond_destroy(&l->ready);
    }
    for (int k = 0; l->slot && k < l->slots; k++) {
        qd_free(l->slot[k].x);
        qd_free(l->slot[k].label);
        qd_free(l->slot[k].part);
        qd_free(l->slot[k].sample);
    }
    for (int k = 0; k < l->parts; k++) {
        qd_free(l->part[k].chosen);
        qd_free(l->part[k].sums);
        qd_budget_give(l->budget, l->part[k].bytes);
    }
    qd_budget_give(l->budget, l->fixed_bytes);
    qd_budget_give(l->budget, l->order_bytes);
    qd_free(l->order);
    qd_free(l->hand);
    qd_free(l->slot);
    qd_free(l);
}

/* --- making one --- */

static qd_status check_options(const qd_loader_options *o, int parts, qd_err *err)
{
    const struct {
        const char *name;
        int value, lo, hi;
    } rows[] = { { "parts", parts, 1, QD_LOADER_PARTS },
                 { "batch", o->batch, 1, 65536 },
                 { "views", o->views, 1, 16 },
                 { "threads", o->threads, 0, 256 },
                 { "ahead", o->ahead, 1, 64 } };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
        if (rows[k].value < rows[k].lo || rows[k].value > rows[k].hi)
            return qd_fail(err, QD_E_INVALID, "a loader's %s is %d; %d..%d are handled", rows[k].name, rows[k].value,
                           rows[k].lo, rows[k].hi);
    return QD_OK;
}

/* Channels and sizes must come out the same for all. */
static qd_status add_parts(qd_loader *l, const qd_samples *const *part, int parts, qd_err *err)
{
    int64_t base = 0;
    for (int k = 0; k < parts; k++) {
        const qd_samples_info *i = qd_samples_about(part[k]);
        int h, w;
        l->channels = i->channels > l->channels ? i->channels : l->channels;
        qd_augment_size(&l->augment, i->height, i->width, &h, &w);
        if (!h || !w)
            return qd_fail(err, QD_E_INVALID, "params.augment_size is needed: the pictures of part %d have many sizes",
                           k);
        if (k && (h != l->height || w != l->width))
            return qd_fail(err, QD_E_INVALID,
                           "params.augment_size is needed: pictures of part 0 are %d x %d, of part %d %d x %d",
                           l->width, l->height, k, w, h);
        l->height = h;
        l->width = w;
        l->part[k].samples = part[k];
        l->part[k].count = l->part[k].n = i->count;
        l->part[k].base = base;
        base += i->count;
        if (base > QD_SAMPLES_MAX)
            return qd_fail(err, QD_E_LIMIT, "%lld pictures; %lld are the most", (long long)base,
                           (long long)QD_SAMPLES_MAX);
    }
    l->parts = parts;
    for (int k = 0; k < parts; k++) {
        const int channels = qd_samples_about(part[k])->channels;
        if (channels != l->channels && !(channels == 1 && l->channels == 3))
            return qd_fail(err, QD_E_INVALID, "pictures of part %d have %d channels, others have %d", k, channels,
                           l->channels);
    }
    return QD_OK;
}

static qd_status make_slots(qd_loader *l, qd_err *err)
{
    const size_t n = (size_t)l->o.batch;
    size_t size, one;
    char what[160];
    /* At most 2^16 pictures of 16 looks of 4 x 8192 x 8192 floats: within 64 bits. */
    size = (size_t)l->channels * (size_t)l->height * (size_t)l->width * sizeof(float) * (size_t)l->o.views * n;
    one = size + n * (2 * sizeof(int32_t) + sizeof(int64_t));
    snprintf(what, sizeof what,
             "%d batches of %d x %d pictures of %d x %d x %d (smaller batches or fewer ahead need less)", l->slots,
             l->o.batch, l->o.views, l->channels, l->height, l->width);
    const qd_status st = qd_budget_draw(l->budget, one * (size_t)l->slots, what, err);
    if (st)
        return st;
    l->fixed_bytes = one * (size_t)l->slots;
    l->slot = qd_calloc((size_t)l->slots, sizeof *l->slot);
    for (int k = 0; l->slot && k < l->slots; k++) {
        qd_slot *s = &l->slot[k];
        s->x = qd_alloc_aligned(size);
        s->label = qd_calloc(n, sizeof *s->label);
        s->part = qd_calloc(n, sizeof *s->part);
        s->sample = qd_calloc(n, sizeof *s->sample);
        if (!s->x || !s->label || !s->part || !s->sample)
            return qd_fail(err, QD_E_NOMEM, "no memory for %s", what);
    }
    return l->slot ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %s", what);
}

static qd_status make_hands(qd_loader *l, qd_err *err)
{
    qd_status st = QD_OK;
    l->hand = qd_calloc((size_t)l->hands, sizeof *l->hand);
    if (!l->hand)
        return qd_fail(err, QD_E_NOMEM, "no memory for a loader's threads");
    for (int k = 0; k < l->hands && !st; k++) {
        l->hand[k].loader = l;
        st = qd_view_room_new(&l->augment, l->channels, l->budget, &l->hand[k].room, err);
        /* Where sizes are known, what does not fit is refused now. */
        for (int p = 0; p < l->parts && !st; p++) {
            const qd_samples_info *i = qd_samples_about(l->part[p].samples);
            if (i->height)
                st = qd_view_room_fit(l->hand[k].room, i->height, i->width, err);
        }
    }
    for (int k = 0; k < l->o.threads && !st; k++) {
        l->hand[k].started = pthread_create(&l->hand[k].thread, NULL, work, &l->hand[k]) == 0;
        if (!l->hand[k].started)
            st = qd_fail(err, QD_E_NOMEM, "cannot start thread %d of a loader", k + 1);
    }
    return st;
}

static qd_status make_locks(qd_loader *l, qd_err *err)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr))
        return qd_fail(err, QD_E_NOMEM, "no memory for a loader's locks");
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    const bool a = pthread_mutex_init(&l->mutex, NULL) == 0, b = a && pthread_cond_init(&l->work, &attr) == 0;
    l->made = b && pthread_cond_init(&l->ready, &attr) == 0;
    if (!l->made && b)
        pthread_cond_destroy(&l->work);
    if (!l->made && a)
        pthread_mutex_destroy(&l->mutex);
    pthread_condattr_destroy(&attr);
    return l->made ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a loader's locks");
}

qd_status qd_loader_new(const qd_samples *const *part, int parts, const qd_augment *augment,
                        const qd_loader_options *options, const qd_run *run, qd_loader **out, qd_err *err)
{
    qd_status st = check_options(options, parts, err);
    if (st)
        return st;
    qd_loader *l = qd_calloc(1, sizeof *l);
    if (!l)
        return qd_fail(err, QD_E_NOMEM, "no memory for a loader");
    l->augment = *augment;
    l->o = *options;
    l->run = run;
    l->budget = qd_run_budget(run);
    l->slots = l->o.threads ? l->o.ahead + 1 : 1;
    l->hands = l->o.threads ? l->o.threads : 1;
    st = make_locks(l, err);
    if (!st)
        st = add_parts(l, part, parts, err);
    if (!st)
        st = qd_augment_check(augment, l->channels, err);
    if (!st)
        st = make_slots(l, err);
    if (!st)
        st = make_hands(l, err);
    if (st) {
        qd_loader_free(l);
        return st;
    }
    *out = l;
    return QD_OK;
}

/* --- taking batches --- */

qd_status qd_loader_begin(qd_loader *l, int64_t epoch, int64_t batch, qd_err *err)
{
    const int64_t n = qd_loader_samples(l), batches = qd_loader_batches(l);
    if (epoch < 0 || epoch >= QD_EPOCHS_MAX)
        return qd_fail(err, QD_E_INVALID, "epoch %lld; 0..%lld are handled", (long long)epoch,
                       (long long)QD_EPOCHS_MAX - 1);
    if (batch < 0 || batch > batches)
        return qd_fail(err, QD_E_INVALID, "an epoch of %lld batches cannot begin at batch %lld", (long long)batches,
                       (long long)batch);
    if (n >= QD_SAMPLES_MAX)
        return qd_fail(err, QD_E_LIMIT, "an epoch of %lld samples; fewer than %lld are handled", (long long)n,
                       (long long)QD_SAMPLES_MAX);
    stop_epoch(l);

    const qd_status st = qd_loader_order(l, epoch, n, err);
    if (st)
        return st;

    pthread_mutex_lock(&l->mutex);
    l->epoch = epoch;
    l->n = n;
    l->batches = batches;
    for (int k = 0; k < l->slots; k++) {
        l->slot[k].done = 0;
        l->slot[k].failed = -1;
    }
    l->next = batch * pieces_of_batch(l);
    l->end = batches * pieces_of_batch(l);
    l->given = batch;
    l->lent = 0;
    l->running = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->mutex);
    return QD_OK;
}

static void wait_a_little(qd_loader *l)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += PATIENCE_MS * 1000000L;
    t.tv_sec += t.tv_nsec / 1000000000L;
    t.tv_nsec %= 1000000000L;
    pthread_cond_timedwait(&l->ready, &l->mutex, &t);
}

qd_status qd_loader_next(qd_loader *l, qd_batch *out, qd_err *err)
{
    qd_status st = QD_OK;
    if (!l->running)
        return qd_fail(err, QD_E_INVALID, "no epoch of the loader has begun");
    pthread_mutex_lock(&l->mutex);
    if (l->lent) { /* its slot is free again */
        qd_slot *last = &l->slot[(l->given - 1) % l->slots];
        last->done = 0;
        last->failed = -1;
        l->lent = 0;
        pthread_cond_broadcast(&l->work);
    }
    if (l->given == l->batches) {
        pthread_mutex_unlock(&l->mutex);
        *out = (qd_batch){ .epoch = l->epoch, .index = l->batches, .views = l->o.views };
        return QD_OK;
    }
    qd_slot *s = &l->slot[l->given % l->slots];
    while (s->done < pieces_of_batch(l) && !(st = qd_run_check(l->run, err))) {
        if (l->o.threads) {
            wait_a_little(l);
            continue;
        }
        const int64_t piece = l->next++;
        qd_err words = { 0 };
        const int64_t failed = prepare_piece(l, &l->hand[0], piece, &words);
        finish_piece(l, piece, failed, &words);
    }
    if (!st && s->failed >= 0)
        st = qd_fail(err, s->err.status, "%s", s->err.text);
    if (!st) {
        *out = (qd_batch){ .epoch = l->epoch,
                           .index = l->given,
                           .n = size_of_batch(l, l->given),
                           .views = l->o.views,
                           .channels = l->channels,
                           .height = l->height,
                           .width = l->width,
                           .x = s->x,
                           .label = s->label,
                           .part = s->part,
                           .sample = s->sample };
        l->given++;
        l->lent = 1;
    }
    pthread_mutex_unlock(&l->mutex);
    return st;
}
