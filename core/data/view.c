/* view.c - one look at a picture: what chance decides about it, and the look itself. */
#include "data/view_int.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/rng.h"

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE, JITTER_STEPS };

/* --- chance --- */

/* Each step draws from its own part of the view's numbers. */
enum { OF_CROP, OF_FLIP, OF_JITTER, OF_GREY, OF_BLUR, OF_ERASE, OF_CUTOUT };
enum { WORDS_OF_STEP = 256, WORDS_OF_VIEW = 16 * WORDS_OF_STEP, TRIES = 10 };

static qd_rng numbers(const qd_view_key *key, int step)
{
    const uint64_t stream = QD_STREAM_AUGMENT | (uint64_t)key->epoch << 32 | (uint64_t)key->sample;
    qd_rng r;
    qd_rng_init(&r, key->seed, stream);
    r.index = (uint64_t)key->view * WORDS_OF_VIEW + (uint64_t)step * WORDS_OF_STEP;
    return r;
}

static double uniform(qd_rng *r, double lo, double hi)
{
    return lo + (hi - lo) * ((double)qd_rng_u32(r) * 0x1p-32);
}

static bool happens(qd_rng *r, float probability)
{
    return uniform(r, 0.0, 1.0) < (double)probability;
}

/* RandomResizedCrop.get_params. */
static void draw_rectangle(qd_view *v, qd_rng *r, const qd_augment *a, int h, int w)
{
    const double least = log((double)a->ratio_min), most = log((double)a->ratio_max);
    for (int k = 0; k < TRIES; k++) {
        const double area = (double)h * w * uniform(r, (double)a->scale_min, (double)a->scale_max);
        const double ratio = exp(uniform(r, least, most));
        const double cw = nearbyint(sqrt(area * ratio)), ch = nearbyint(sqrt(area / ratio));
        if (cw < 1 || cw > w || ch < 1 || ch > h)
            continue;
        v->width = (int)cw;
        v->height = (int)ch;
        v->top = (int)qd_rng_below(r, (uint32_t)(h - v->height + 1));
        v->left = (int)qd_rng_below(r, (uint32_t)(w - v->width + 1));
        return;
    }
    const double is = (double)w / h;
    v->width = is > (double)a->ratio_max ? (int)nearbyint(h * (double)a->ratio_max) : w;
    v->height = is < (double)a->ratio_min ? (int)nearbyint(w / (double)a->ratio_min) : h;
    /* A picture one pixel wide or high rounds to nothing. */
    v->width = v->width < 1 ? 1 : v->width > w ? w : v->width;
    v->height = v->height < 1 ? 1 : v->height > h ? h : v->height;
    v->top = (h - v->height) / 2;
    v->left = (w - v->width) / 2;
}

static void draw_crop(qd_view *v, const qd_augment *a, int h, int w, const qd_view_key *key)
{
    qd_rng r = numbers(key, OF_CROP);
    int out_h, out_w;
    qd_augment_size(a, h, w, &out_h, &out_w);
    v->height = v->to_h = h;
    v->width = v->to_w = w;
    switch (a->crop) {
    case QD_CROP_NONE:
        break;
    case QD_CROP_RESIZED:
        draw_rectangle(v, &r, a, h, w);
        v->to_h = out_h;
        v->to_w = out_w;
        break;
    case QD_CROP_PADDED:
        /* A picture too small even with its zeros gets more of them, evenly: as pad_if_needed. */
        v->height = v->to_h = out_h;
        v->width = v->to_w = out_w;
        v->top = h + 2 * a->pad >= out_h ? (int)qd_rng_below(&r, (uint32_t)(h + 2 * a->pad - out_h + 1)) - a->pad
                                         : (h - out_h) / 2;
        v->left = w + 2 * a->pad >= out_w ? (int)qd_rng_below(&r, (uint32_t)(w + 2 * a->pad - out_w + 1)) - a->pad
                                          : (w - out_w) / 2;
        break;
    case QD_CROP_CENTRE:
        /* Resize(resize), CenterCrop(size): the longer side is cut off to whole pixels. */
        v->to_h = h <= w ? a->resize : (int)((int64_t)a->resize * h / w);
        v->to_w = h <= w ? (int)((int64_t)a->resize * w / h) : a->resize;
        v->at_y = (int)nearbyint((v->to_h - out_h) / 2.0);
        v->at_x = (int)nearbyint((v->to_w - out_w) / 2.0);
        break;
    }
}

static float factor(qd_rng *r, float strength)
{
    return (float)uniform(r, fmax(0.0, 1.0 - (double)strength), 1.0 + (double)strength);
}

static void draw_jitter(qd_view *v, const qd_augment *a, const qd_view_key *key)
{
    qd_rng r = numbers(key, OF_JITTER);
    const bool wanted[JITTER_STEPS] = { a->brightness > 0, a->contrast > 0, a->saturation > 0, a->hue > 0 };
    uint8_t order[JITTER_STEPS] = { BRIGHTNESS, CONTRAST, SATURATION, HUE };
    const bool now = happens(&r, a->jitter);
    for (uint32_t k = JITTER_STEPS - 1; k > 0; k--) {
        const uint32_t j = qd_rng_below(&r, k + 1);
        const uint8_t step = order[k];
        order[k] = order[j];
        order[j] = step;
    }
    v->brightness = factor(&r, a->brightness);
    v->contrast = factor(&r, a->contrast);
    v->saturation = factor(&r, a->saturation);
    v->hue = (int)nearbyint(255.0 * uniform(&r, -(double)a->hue, (double)a->hue)) & 255;
    for (int k = 0; now && k < JITTER_STEPS; k++)
        if (wanted[order[k]])
            v->step[v->steps++] = order[k];
}

/* RandomErasing.get_params with its usual area and ratio. */
static void draw_erasing(qd_view *v, const qd_augment *a, int h, int w, const qd_view_key *key)
{
    qd_rng r = numbers(key, OF_ERASE);
    if (!happens(&r, a->erase))
        return;
    for (int k = 0; k < TRIES; k++) {
        const double area = (double)h * w * uniform(&r, 0.02, 0.33), ratio = exp(uniform(&r, log(0.3), log(3.3)));
        const double eh = nearbyint(sqrt(area * ratio)), ew = nearbyint(sqrt(area / ratio));
        if (eh < 1 || ew < 1 || eh >= h || ew >= w)
            continue;
        v->erase_height = (int)eh;
        v->erase_width = (int)ew;
        v->erase_top = (int)qd_rng_below(&r, (uint32_t)(h - v->erase_height + 1));
        v->erase_left = (int)qd_rng_below(&r, (uint32_t)(w - v->erase_width + 1));
        return;
    }
}

static void draw_cutout(qd_view *v, const qd_augment *a, int h, int w, const qd_view_key *key)
{
    qd_rng r = numbers(key, OF_CUTOUT);
    const int y = (int)qd_rng_below(&r, (uint32_t)h), x = (int)qd_rng_below(&r, (uint32_t)w), half = a->cutout / 2;
    const int bottom = y + a->cutout - half, right = x + a->cutout - half;
    v->cut_top = y < half ? 0 : y - half;
    v->cut_left = x < half ? 0 : x - half;
    v->cut_height = (bottom > h ? h : bottom) - v->cut_top;
    v->cut_width = (right > w ? w : right) - v->cut_left;
}

void qd_view_draw(qd_view *v, const qd_augment *a, int h, int w, const qd_view_key *key)
{
    int out_h, out_w;
    assert(key->epoch >= 0 && key->epoch < QD_EPOCHS_MAX && key->sample >= 0 && key->sample < QD_SAMPLES_MAX);
    assert(key->view >= 0 && key->view < 1 << 16 && h > 0 && w > 0);
    *v = (qd_view){ 0 };
    qd_augment_size(a, h, w, &out_h, &out_w);
    draw_crop(v, a, h, w, key);
    qd_rng r = numbers(key, OF_FLIP);
    v->flip = happens(&r, a->flip);
    if (a->jitter > 0)
        draw_jitter(v, a, key);
    r = numbers(key, OF_GREY);
    v->grey = happens(&r, a->grey);
    r = numbers(key, OF_BLUR);
    if (happens(&r, a->blur))
        v->sigma = (float)uniform(&r, (double)a->sigma_min, (double)a->sigma_max);
    if (a->erase > 0)
        draw_erasing(v, a, out_h, out_w, key);
    if (a->cutout > 0)
        draw_cutout(v, a, out_h, out_w, key);
}

/* --- room --- */

struct qd_view_room {
    qd_augment augment;
    const qd_pixel_loops *loops;
    int channels, height, width; // the largest pictures it holds
    qd_budget *budget;
    size_t bytes; // drawn from it
    uint8_t *turned, *half, *rows, *bytes_out, *grey;
    int32_t *weight;
    double *real;
    qd_span *span;
    float *wide, *narrow, *kernel;
    float value[QD_MAX_CHANNELS][256]; // of each byte, scaled
};

qd_status qd_view_room_new(const qd_augment *a, int channels, qd_budget *budget, qd_view_room **out, qd_err *err)
{
    const qd_status st = qd_augment_check(a, channels, err);
    if (st)
        return st;
    qd_view_room *room = qd_calloc(1, sizeof *room);
    if (!room)
        return qd_fail(err, QD_E_NOMEM, "no memory to vary pictures");
    room->augment = *a;
    room->channels = channels;
    room->budget = budget;
    room->loops = qd_pixel_loops_get();
    /* As qd_dataset_floats: the same bytes give the same floats. */
    for (int c = 0; c < channels; c++)
        for (int v = 0; v < 256; v++)
            room->value[c][v] = ((float)v / 255.0f - a->scale.mean[c]) / a->scale.std[c];
    *out = room;
    return QD_OK;
}

static void empty(qd_view_room *room)
{
    uint8_t *const all = room->turned; /* the one block everything lies in */
    qd_free(all);
    qd_budget_give(room->budget, room->bytes);
    room->turned = NULL;
    room->bytes = 0;
    room->height = room->width = 0;
}

void qd_view_room_free(qd_view_room *room)
{
    if (!room)
        return;
    empty(room);
    qd_free(room);
}

static size_t take(size_t *total, size_t count, size_t size)
{
    const size_t at = *total;
    *total += (count * size + 63) / 64 * 64;
    return at;
}

qd_status qd_view_room_fit(qd_view_room *room, int h, int w, qd_err *err)
{
    const qd_augment *a = &room->augment;
    int out_h, out_w;
    assert(h > 0 && w > 0 && h <= 65535 && w <= 65535);
    if (h <= room->height && w <= room->width)
        return QD_OK;
    h = h > room->height ? h : room->height;
    w = w > room->width ? w : room->width;
    qd_augment_size(a, h, w, &out_h, &out_w);
    const int radius = a->blur > 0 ? a->kernel / 2 : 0;
    if (radius >= out_h || radius >= out_w)
        return qd_fail(err, QD_E_INVALID, "a blur of kernel %d does not fit pictures of %d x %d", a->kernel, out_h,
                       out_w);

    const size_t c = (size_t)room->channels, oh = (size_t)out_h, ow = (size_t)out_w;
    /* Rows of the crop: all of the picture, or more where zeros lie around it. */
    const size_t high = (size_t)h > oh ? (size_t)h : oh;
    const size_t longest = oh > ow ? oh : ow;
    const int side = h > w ? h : w, least = out_h < out_w ? out_h : out_w;
    const size_t taps = (size_t)qd_resample_taps(a->filter, side, least);
    size_t n = 0;
    const size_t turned = take(&n, c * (size_t)h * (size_t)w, 1), half = take(&n, c * high * ow, 1),
                 rows = take(&n, c * high * ow, 1), bytes = take(&n, c * oh * ow, 1), grey = take(&n, oh * ow, 1),
                 weight = take(&n, taps * longest, sizeof(int32_t)), real = take(&n, taps, sizeof(double)),
                 span = take(&n, longest, sizeof(qd_span)),
                 wide = take(&n, radius ? (oh + 2 * (size_t)radius) * (ow + 2 * (size_t)radius) : 0, sizeof(float)),
                 narrow = take(&n, radius ? (oh + 2 * (size_t)radius) * ow : 0, sizeof(float)),
                 kernel = take(&n, 2 * (size_t)radius + 1, sizeof(float));

    const qd_status st = qd_budget_draw(room->budget, n, "room to vary pictures (smaller ones need less)", err);
    if (st)
        return st;
    uint8_t *all = qd_alloc_aligned(n);
    if (!all) {
        qd_budget_give(room->budget, n);
        return qd_fail(err, QD_E_NOMEM, "no memory to vary pictures of %d x %d", h, w);
    }
    empty(room);
    room->bytes = n;
    room->height = h;
    room->width = w;
    room->turned = all + turned;
    room->half = all + half;
    room->rows = all + rows;
    room->bytes_out = all + bytes;
    room->grey = all + grey;
    room->weight = (int32_t *)(void *)(all + weight);
    room->real = (double *)(void *)(all + real);
    room->span = (qd_span *)(void *)(all + span);
    room->wide = (float *)(void *)(all + wide);
    room->narrow = (float *)(void *)(all + narrow);
    room->kernel = (float *)(void *)(all + kernel);
    return QD_OK;
}

/* --- crop, resize, flip --- */

static int clamp(int v, int lo, int hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

/* Columns at_x .. at_x + out_w - 1 of the crop as rows of [channels][out_w], zero beyond the picture's edges. */
static void gather_rows(uint8_t *dst, const qd_pixels *src, const qd_view *v, int out_w)
{
    const int left = v->left + v->at_x, from = clamp(-left, 0, out_w), to = clamp(src->width - left, from, out_w);
    for (int y = 0; y < v->height; y++)
        for (int c = 0; c < src->channels; c++, dst += out_w) {
            const int at = v->top + y;
            memset(dst, 0, (size_t)out_w);
            if (at < 0 || at >= src->height)
                continue;
            const uint8_t *p = src->data + c * src->plane + at * src->row;
            if (src->column == 1 && !v->flip) {
                memcpy(dst + from, p + left + from, (size_t)(to - from));
                continue;
            }
            for (int x = from; x < to; x++)
                dst[v->flip ? out_w - 1 - x : x] = p[(left + x) * src->column];
        }
}

/* The crop as columns of [channels][height]. */
static void gather_columns(uint8_t *dst, const qd_pixels *src, const qd_view *v, const qd_pixel_loops *loops)
{
    const size_t column = (size_t)src->channels * (size_t)v->height;
    for (int c = 0; c < src->channels; c++) {
        const uint8_t *p = src->data + c * src->plane + v->top * src->row + v->left * src->column;
        uint8_t *q = dst + (size_t)c * (size_t)v->height;
        if (src->column == 1) {
            loops->turn(q, column, p, (size_t)src->row, v->height, v->width);
            continue;
        }
        for (int y = 0; y < v->height; y++)
            for (int x = 0; x < v->width; x++)
                q[(size_t)x * column + (size_t)y] = p[y * src->row + x * src->column];
    }
}

/* Pillow's order: horizontal pass, rounded, then vertical. A pass that changes no size is left out, as there. */
static void resize(uint8_t *dst, const qd_pixels *src, const qd_view *v, qd_view_room *room, int out_h, int out_w)
{
    const qd_pixel_loops *loops = room->loops;
    const qd_filter filter = room->augment.filter;
    const size_t c = (size_t)src->channels, column = c * (size_t)v->height, row = c * (size_t)out_w;

    if (v->to_w == v->width) {
        gather_rows(room->rows, src, v, out_w);
    } else {
        const size_t taps = (size_t)qd_resample_taps(filter, v->width, v->to_w);
        gather_columns(room->turned, src, v, loops);
        qd_resample_weights(room->weight, room->real, room->span, filter, v->width, v->to_w, v->at_x, out_w);
        for (int x = 0; x < out_w; x++)
            loops->weigh(room->half + (size_t)(v->flip ? out_w - 1 - x : x) * column,
                         room->turned + (size_t)room->span[x].first * column, column, room->weight + (size_t)x * taps,
                         room->span[x].count, column);
        for (size_t k = 0; k < c; k++)
            loops->turn(room->rows + k * (size_t)out_w, row, room->half + k * (size_t)v->height, column, out_w,
                        v->height);
    }

    const bool whole = v->to_h == v->height;
    const size_t taps = (size_t)qd_resample_taps(filter, v->height, v->to_h), plane = (size_t)out_h * (size_t)out_w;
    if (!whole)
        qd_resample_weights(room->weight, room->real, room->span, filter, v->height, v->to_h, v->at_y, out_h);
    for (int y = 0; y < out_h; y++) {
        const uint8_t *p = room->rows + (size_t)(v->at_y + y) * row;
        if (!whole) {
            /* Scratch: what the horizontal pass no longer needs. */
            loops->weigh(room->half, room->rows + (size_t)room->span[y].first * row, row,
                         room->weight + (size_t)y * taps, room->span[y].count, row);
            p = room->half;
        }
        for (size_t k = 0; k < c; k++)
            memcpy(dst + k * plane + (size_t)y * (size_t)out_w, p + k * (size_t)out_w, (size_t)out_w);
    }
}

/* --- colour --- */

static void jitter(uint8_t *px, const qd_view *v, int channels, size_t plane, qd_view_room *room)
{
    const qd_pixel_loops *loops = room->loops;
    uint8_t *r = px, *g = px + plane, *b = px + 2 * plane;
    for (int k = 0; k < v->steps; k++)
        switch (v->step[k]) {
        case BRIGHTNESS:
            loops->blend_value(px, 0, v->brightness, (size_t)channels * plane);
            break;
        case CONTRAST: {
            const uint8_t *grey = px;
            if (channels == 3) {
                loops->grey(room->grey, r, g, b, plane);
                grey = room->grey;
            }
            const int mean = (int)((double)loops->sum(grey, plane) / (double)plane + 0.5);
            loops->blend_value(px, mean, v->contrast, (size_t)channels * plane);
            break;
        }
        case SATURATION:
            if (channels != 3)
                break;
            loops->grey(room->grey, r, g, b, plane);
            for (int c = 0; c < 3; c++)
                loops->blend(px + (size_t)c * plane, room->grey, v->saturation, plane);
            break;
        case HUE:
            if (channels == 3)
                loops->hue(r, g, b, v->hue, plane);
            break;
        }
}

/* --- blur --- */

/* torchvision's gaussian kernel; what could not move a pixel by 10^-6 is left off its ends. Returns its radius. */
static int gauss(float *kernel, int size, float sigma)
{
    double total = 0.0;
    int radius = size / 2;
    while (radius > 0 && exp(-0.5 * pow(radius / (double)sigma, 2.0)) < 1e-9)
        radius--;
    for (int k = -radius; k <= radius; k++)
        total += exp(-0.5 * pow(k / (double)sigma, 2.0));
    for (int k = -radius; k <= radius; k++)
        kernel[k + radius] = (float)(exp(-0.5 * pow(k / (double)sigma, 2.0)) / total);
    return radius;
}

static int mirror(int k, int n)
{
    k = k < 0 ? -k : k;
    return k >= n ? 2 * (n - 1) - k : k;
}

static void blur(uint8_t *px, int h, int w, float sigma, qd_view_room *room)
{
    const int r = gauss(room->kernel, room->augment.kernel, sigma), wide = w + 2 * r;
    for (int y = 0; y < h + 2 * r; y++) {
        const uint8_t *p = px + (size_t)mirror(y - r, h) * (size_t)w;
        float *q = room->wide + (size_t)y * (size_t)wide;
        for (int x = 0; x < w; x++)
            q[r + x] = (float)p[x];
        for (int x = 0; x < r; x++) {
            q[x] = (float)p[mirror(x - r, w)];
            q[r + w + x] = (float)p[mirror(w + x, w)];
        }
        room->loops->weigh_floats(room->narrow + (size_t)y * (size_t)w, q, 1, room->kernel, 2 * r + 1, (size_t)w);
    }
    float *line = room->wide;
    for (int y = 0; y < h; y++) {
        room->loops->weigh_floats(line, room->narrow + (size_t)y * (size_t)w, (size_t)w, room->kernel, 2 * r + 1,
                                  (size_t)w);
        for (int x = 0; x < w; x++)
            px[(size_t)y * (size_t)w + (size_t)x] = (uint8_t)nearbyintf(line[x] > 255.0f ? 255.0f : line[x]);
    }
}

/* --- all of it --- */

void qd_view_bytes(uint8_t *dst, const qd_pixels *src, const qd_view *v, qd_view_room *room)
{
    int out_h, out_w;
    assert(src->channels == room->channels && src->height <= room->height && src->width <= room->width);
    qd_augment_size(&room->augment, src->height, src->width, &out_h, &out_w);
    const size_t plane = (size_t)out_h * (size_t)out_w;
    resize(dst, src, v, room, out_h, out_w);
    jitter(dst, v, src->channels, plane, room);
    if (v->grey && src->channels == 3) {
        room->loops->grey(room->grey, dst, dst + plane, dst + 2 * plane, plane);
        for (int c = 0; c < 3; c++)
            memcpy(dst + (size_t)c * plane, room->grey, plane);
    }
    for (int c = 0; v->sigma > 0 && c < src->channels; c++)
        blur(dst + (size_t)c * plane, out_h, out_w, v->sigma, room);
}

static void clear(float *dst, int channels, int out_h, int out_w, int top, int left, int h, int w)
{
    for (int c = 0; c < channels; c++)
        for (int y = top; y < top + h; y++)
            memset(dst + ((size_t)c * (size_t)out_h + (size_t)y) * (size_t)out_w + left, 0, (size_t)w * sizeof *dst);
}

void qd_view_floats(float *dst, const qd_pixels *src, const qd_view *v, qd_view_room *room)
{
    int out_h, out_w;
    qd_augment_size(&room->augment, src->height, src->width, &out_h, &out_w);
    const size_t plane = (size_t)out_h * (size_t)out_w;
    qd_view_bytes(room->bytes_out, src, v, room);
    for (int c = 0; c < src->channels; c++) {
        const float *value = room->value[c];
        const uint8_t *p = room->bytes_out + (size_t)c * plane;
        for (size_t i = 0; i < plane; i++)
            dst[(size_t)c * plane + i] = value[p[i]];
    }
    clear(dst, src->channels, out_h, out_w, v->erase_top, v->erase_left, v->erase_height, v->erase_width);
    clear(dst, src->channels, out_h, out_w, v->cut_top, v->cut_left, v->cut_height, v->cut_width);
}
