/* image.c - 8-bit pictures: from network output, side by side, enlarged, compared. */
#include "data/data.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"

#define GAP_GREY 128

void qd_image_clear(qd_image *im)
{
    qd_free(im->pixels);
    *im = (qd_image){ 0 };
}

/* Zeroed pixels of that size. */
static qd_status image_new(int width, int height, int channels, qd_image *out, qd_err *err)
{
    size_t n;
    uint8_t *pixels;

    if (width < 1 || height < 1 || (channels != 1 && channels != 3))
        return qd_fail(err, QD_E_INVALID, "a picture of %d x %d with %d channels; want 1 or 3, at least 1 x 1", width,
                       height, channels);
    if (!qd_mul_size((size_t)width * (size_t)height, (size_t)channels, &n))
        return qd_fail(err, QD_E_LIMIT, "a picture of %d x %d does not fit in memory", width, height);
    pixels = qd_calloc(n, 1);
    if (!pixels)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a picture of %d x %d", width, height);
    *out = (qd_image){ .width = width, .height = height, .channels = channels, .pixels = pixels };
    return QD_OK;
}

qd_status qd_image_from_float(const float *chw, int channels, int h, int w, qd_image *out, qd_err *err)
{
    qd_image im = { 0 };
    qd_status st = image_new(w, h, channels, &im, err);

    if (st)
        return st;
    for (int c = 0; c < channels; c++)
        for (size_t k = 0; k < (size_t)h * (size_t)w; k++) {
            const float x = chw[(size_t)c * (size_t)h * (size_t)w + k];

            /* fmaxf drops a NaN, which so becomes black. */
            im.pixels[k * (size_t)channels + (size_t)c] =
                (uint8_t)nearbyintf(255.0f * fminf(fmaxf(x / 2 + 0.5f, 0.0f), 1.0f));
        }
    *out = im;
    return QD_OK;
}

static void paste(qd_image *to, const qd_image *im, int x, int y)
{
    const size_t row = (size_t)im->width * (size_t)im->channels;

    for (int k = 0; k < im->height; k++)
        memcpy(to->pixels + ((size_t)(y + k) * (size_t)to->width + (size_t)x) * (size_t)to->channels,
               im->pixels + (size_t)k * row, row);
}

qd_status qd_image_grid(const qd_image *images, int n, int columns, int gap, qd_image *out, qd_err *err)
{
    qd_image grid = { 0 };
    int64_t width, height;
    int rows;
    qd_status st;

    if (n < 1 || columns < 1 || gap < 0)
        return qd_fail(err, QD_E_INVALID, "a grid of %d pictures in %d columns with a gap of %d", n, columns, gap);
    for (int k = 1; k < n; k++)
        if (images[k].width != images[0].width || images[k].height != images[0].height ||
            images[k].channels != images[0].channels)
            return qd_fail(err, QD_E_INVALID, "picture %d is %d x %d x %d, the first is %d x %d x %d", k,
                           images[k].width, images[k].height, images[k].channels, images[0].width, images[0].height,
                           images[0].channels);
    if (columns > n)
        columns = n;
    rows = (n - 1) / columns + 1;
    width = (int64_t)columns * images[0].width + (int64_t)(columns - 1) * gap;
    height = (int64_t)rows * images[0].height + (int64_t)(rows - 1) * gap;
    if (width > INT_MAX || height > INT_MAX)
        return qd_fail(err, QD_E_LIMIT, "a grid of %lld x %lld pixels is too large", (long long)width,
                       (long long)height);
    st = image_new((int)width, (int)height, images[0].channels, &grid, err);
    if (st)
        return st;
    memset(grid.pixels, GAP_GREY, (size_t)grid.width * (size_t)grid.height * (size_t)grid.channels);
    for (int k = 0; k < n; k++)
        paste(&grid, &images[k], k % columns * (images[k].width + gap), k / columns * (images[k].height + gap));
    *out = grid;
    return QD_OK;
}

qd_status qd_image_zoom(const qd_image *im, int k, qd_image *out, qd_err *err)
{
    const size_t c = (size_t)im->channels;
    qd_image big = { 0 };
    qd_status st;

    if (k < 1 || k > INT_MAX / im->width || k > INT_MAX / im->height)
        return qd_fail(err, QD_E_INVALID, "cannot enlarge %d x %d by %d", im->width, im->height, k);
    st = image_new(im->width * k, im->height * k, im->channels, &big, err);
    if (st)
        return st;
    for (size_t y = 0; y < (size_t)big.height; y++)
        for (size_t x = 0; x < (size_t)big.width; x++)
            memcpy(big.pixels + (y * (size_t)big.width + x) * c,
                   im->pixels + (y / (size_t)k * (size_t)im->width + x / (size_t)k) * c, c);
    *out = big;
    return QD_OK;
}

double qd_image_psnr_db(const qd_image *a, const qd_image *b)
{
    const size_t n = (size_t)a->width * (size_t)a->height * (size_t)a->channels;
    uint64_t sum = 0; /* exact: a pixel adds at most 2^16 */

    assert(a->width == b->width && a->height == b->height && a->channels == b->channels);
    for (size_t k = 0; k < n; k++) {
        const int d = a->pixels[k] - b->pixels[k];
        sum += (uint64_t)(d * d);
    }
    return sum ? 10.0 * log10(255.0 * 255.0 * (double)n / (double)sum) : INFINITY;
}
