/* readers.c - the table of data set formats, and what a set can be asked once it is open. */
#include "data/data_int.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/rng.h"

#define SIDE_MAX 8192 /* pixels */

/* CIFAR records have no mark of their own: they come last. */
const qd_data_format *const qd_data_formats[] = { &qd_data_idx, &qd_data_npy, &qd_data_pictures, &qd_data_cifar, NULL };

/* --- life --- */

qd_status qd_dataset_new(const char *format, qd_dataset **out, qd_err *err)
{
    qd_dataset *d = qd_calloc(1, sizeof *d);
    if (!d)
        return qd_fail(err, QD_E_NOMEM, "no memory for a data set");
    d->format = format;
    *out = d;
    return QD_OK;
}

void qd_dataset_free(qd_dataset *d)
{
    if (!d)
        return;
    for (int k = 0; d->class_name && k < d->classes; k++)
        qd_free(d->class_name[k]);
    qd_free(d->class_name);
    qd_tensor_clear(&d->bytes);
    qd_tensor_clear(&d->labels);
    qd_free(d);
}

int32_t *qd_labels_of(const qd_dataset *d)
{
    assert(d->labels.dtype == QD_I32 && d->labels.data);
    return d->labels.data;
}

qd_status qd_dataset_labels(qd_dataset *d, qd_budget *budget, qd_err *err)
{
    const qd_shape shape = QD_SHAPE(d->count);
    return qd_tensor_init(&d->labels, QD_I32, &shape, budget, err);
}

qd_status qd_dataset_check(qd_dataset *d, qd_err *err)
{
    if (d->count < 1)
        return qd_fail(err, QD_E_FORMAT, "the data set has no pictures");
    if (d->channels < 1 || d->channels > QD_MAX_CHANNELS || d->height < 1 || d->height > SIDE_MAX || d->width < 1 ||
        d->width > SIDE_MAX)
        return qd_fail(err, QD_E_LIMIT, "pictures of %d x %d x %d; 1..%d channels and sides of 1..%d are handled",
                       d->channels, d->height, d->width, QD_MAX_CHANNELS, SIDE_MAX);
    const int64_t size = (int64_t)d->channels * d->height * d->width, have = qd_tensor_count(&d->bytes);
    int64_t last;
    if (d->stride < size || d->first < 0 || __builtin_mul_overflow(d->count - 1, d->stride, &last) ||
        __builtin_add_overflow(last, d->first + size, &last) || last > have)
        return qd_fail(err, QD_E_FORMAT, "%lld pictures of %lld bytes do not fit into the %lld bytes there are",
                       (long long)d->count, (long long)size, (long long)have);
    int classes = 0;
    for (int64_t k = 0; d->labels.data && k < d->count; k++) {
        const int32_t label = qd_labels_of(d)[k];
        if (label < 0 || label >= QD_MAX_CLASSES)
            return qd_fail(err, QD_E_FORMAT, "the label of picture %lld is %d; 0..%d are handled", (long long)k, label,
                           QD_MAX_CLASSES - 1);
        classes = label >= classes ? label + 1 : classes;
    }
    if (!d->class_name) /* where names came along they say how many there are */
        d->classes = classes;
    return QD_OK;
}

qd_status qd_dataset_open(const char *path, const qd_data_limits *limits, qd_budget *budget, qd_dataset **out,
                          qd_err *err)
{
    qd_dataset *d = NULL;
    const qd_data_format *const *f = qd_data_formats;
    bool ours = false;
    for (; *f; f++) {
        const qd_status st = (*f)->sniff(path, &ours, err);
        if (st)
            return st;
        if (ours)
            break;
    }
    if (!*f)
        return qd_fail(
            err, qd_fs_exists(path) ? QD_E_FORMAT : QD_E_NOT_FOUND,
            "no data set was found: expected IDX files, NPY or NPZ arrays, CIFAR records, or folders of PNG or JPEG files");
    qd_status st = qd_dataset_new((*f)->name, &d, err);
    if (!st)
        st = (*f)->open(path, limits, budget, d, err);
    if (!st)
        st = qd_dataset_check(d, err);
    if (!st && d->count > limits->max_count)
        st = qd_fail(err, QD_E_LIMIT, "%lld pictures; %lld are the most", (long long)d->count,
                     (long long)limits->max_count);
    if (st) {
        qd_dataset_free(d);
        return st;
    }
    *out = d;
    return QD_OK;
}

/* --- sets made of tensors --- */

static qd_status read_labels(qd_dataset *d, const qd_tensor *labels, qd_budget *budget, qd_err *err)
{
    qd_tensor wide = { 0 };
    if (qd_tensor_count(labels) != d->count)
        return qd_fail(err, QD_E_FORMAT, "%lld labels for %lld pictures", (long long)qd_tensor_count(labels),
                       (long long)d->count);
    if (labels->dtype != QD_U8 && labels->dtype != QD_I8 && labels->dtype != QD_I32 && labels->dtype != QD_I64)
        return qd_fail(err, QD_E_UNSUPPORTED, "labels are %s; u8, i8, i32 and i64 are read",
                       qd_dtype_name(labels->dtype));
    qd_status st = qd_tensor_cast(&wide, labels, QD_I64, budget, err);
    if (st)
        return st;
    st = qd_dataset_labels(d, budget, err);
    for (int64_t k = 0; !st && k < d->count; k++) {
        int64_t v;
        memcpy(&v, (const char *)wide.data + k * (int64_t)sizeof v, sizeof v);
        qd_labels_of(d)[k] = v < 0 || v > INT32_MAX ? -1 : (int32_t)v; /* refused by the check */
    }
    qd_tensor_clear(&wide);
    return st;
}

/* F32 in 0..1 to bytes, as they were divided by 255 once. */
static qd_status from_floats(qd_tensor *bytes, const qd_tensor *images, qd_budget *budget, qd_err *err)
{
    const qd_status st = qd_tensor_init(bytes, QD_U8, &images->shape, budget, err);
    const int64_t n = qd_tensor_count(images);
    for (int64_t i = 0; !st && i < n; i++) {
        float v;
        memcpy(&v, (const char *)images->data + i * (int64_t)sizeof v, sizeof v); /* mapped files need not be aligned */
        if (!(v >= 0.0f && v <= 1.0f)) {
            qd_tensor_clear(bytes);
            return qd_fail(err, QD_E_FORMAT, "value %lld of the images is %g; f32 images are pixel / 255, in 0..1",
                           (long long)i, (double)v);
        }
        qd_u8(bytes)[i] = (uint8_t)nearbyintf(v * 255.0f);
    }
    return st;
}

/* Which axis is which: channels are few. */
static qd_status lay_out(qd_dataset *d, const qd_shape *shape, qd_err *err)
{
    const int64_t *dim = shape->dim;
    for (int k = 1; k < shape->rank; k++)
        if (dim[k] > SIDE_MAX)
            return qd_fail(err, QD_E_LIMIT, "axis %d of the images is %lld; %d is the most", k, (long long)dim[k],
                           SIDE_MAX);
    d->count = dim[0];
    d->interleaved = shape->rank == 4 && dim[1] > QD_MAX_CHANNELS && dim[3] <= QD_MAX_CHANNELS;
    const int high = shape->rank == 3 || d->interleaved ? 1 : 2;
    d->height = (int)dim[high];
    d->width = (int)dim[high + 1];
    d->channels = shape->rank == 3 ? 1 : (int)(d->interleaved ? dim[3] : dim[1]);
    d->stride = (int64_t)d->channels * d->height * d->width;
    return QD_OK;
}

qd_status qd_dataset_fill(qd_dataset *d, const qd_tensor *images, const qd_tensor *labels, qd_budget *budget,
                          qd_err *err)
{
    char text[96];
    if ((images->dtype != QD_U8 && images->dtype != QD_F32) || images->shape.rank < 3 || images->shape.rank > 4)
        return qd_fail(err, QD_E_FORMAT, "images must be u8 or f32 [N, C, H, W], [N, H, W, C] or [N, H, W], got %s %s",
                       qd_dtype_name(images->dtype), qd_shape_text(&images->shape, text, sizeof text));
    qd_status st = lay_out(d, &images->shape, err);
    if (st)
        return st;
    if (images->dtype == QD_F32)
        st = from_floats(&d->bytes, images, budget, err);
    else
        qd_tensor_share(&d->bytes, images);
    if (!st && labels)
        st = read_labels(d, labels, budget, err);
    return st ? st : qd_dataset_check(d, err);
}

qd_status qd_dataset_wrap(const qd_tensor *images, const qd_tensor *labels, qd_budget *budget, qd_dataset **out,
                          qd_err *err)
{
    qd_dataset *d = NULL;
    qd_status st = qd_dataset_new("tensors", &d, err);
    if (!st)
        st = qd_dataset_fill(d, images, labels, budget, err);
    if (st) {
        qd_dataset_free(d);
        return st;
    }
    *out = d;
    return QD_OK;
}

/* --- asking --- */

const uint8_t *qd_dataset_pixels(const qd_dataset *d, int64_t k)
{
    assert(k >= 0 && k < d->count);
    return (const uint8_t *)d->bytes.data + d->first + k * d->stride;
}

qd_pixels qd_dataset_picture(const qd_dataset *d, int64_t k)
{
    qd_pixels p = { .data = qd_dataset_pixels(d, k), .channels = d->channels, .height = d->height, .width = d->width };
    p.column = d->interleaved ? d->channels : 1;
    p.row = p.column * d->width;
    p.plane = d->interleaved ? 1 : p.row * d->height;
    return p;
}

int qd_dataset_label(const qd_dataset *d, int64_t k)
{
    assert(k >= 0 && k < d->count);
    return d->labels.data ? qd_labels_of(d)[k] : -1;
}

void qd_dataset_statistics(const qd_dataset *d, double mean[QD_MAX_CHANNELS], double std[QD_MAX_CHANNELS])
{
    const int64_t plane = (int64_t)d->height * d->width;
    const double n = (double)d->count * (double)plane * 255.0;
    for (int c = 0; c < d->channels; c++) {
        uint64_t seen[256] = { 0 };
        double sum = 0.0, squares = 0.0;
        for (int64_t k = 0; k < d->count; k++) {
            const qd_pixels p = qd_dataset_picture(d, k);
            const uint8_t *px = p.data + c * p.plane;
            for (int64_t i = 0; i < plane; i++)
                seen[px[i * p.column]]++;
        }
        for (int v = 0; v < 256; v++) {
            sum += (double)seen[v] * v;
            squares += (double)seen[v] * v * v;
        }
        mean[c] = sum / n;
        std[c] = sqrt(fmax(squares / (n * 255.0) - mean[c] * mean[c], 0.0));
    }
}

/* --- as a network wants them --- */

static qd_status parse_list(const char *name, const char *text, int channels, float *out, qd_err *err)
{
    int n = 0;
    const char *p = text;
    while (*p) {
        char *end;
        const double v = strtod(p, &end);
        if (end == p || !(fabs(v) <= 1e6) || n == QD_MAX_CHANNELS)
            return qd_fail(err, QD_E_INVALID,
                           "params.%s is '%.80s'; expected one number, or %d with commas between: one for each channel",
                           name, text, channels);
        out[n++] = (float)v;
        p = end + strspn(end, " ");
        if (*p == ',')
            p += 1 + strspn(p + 1, " ");
        else if (*p)
            return qd_fail(err, QD_E_INVALID, "params.%s is '%.80s'; numbers need commas between", name, text);
    }
    if (n != 1 && n != channels)
        return qd_fail(err, QD_E_INVALID, "params.%s has %d numbers; the pictures have %d channels", name, n, channels);
    for (int c = n; c < channels; c++)
        out[c] = out[0];
    return QD_OK;
}

qd_status qd_pixel_scale_parse(const char *mean, const char *std, int channels, qd_pixel_scale *out, qd_err *err)
{
    qd_pixel_scale s = { .channels = channels };
    assert(channels >= 1 && channels <= QD_MAX_CHANNELS);
    qd_status st = parse_list("mean", mean, channels, s.mean, err);
    if (!st)
        st = parse_list("std", std, channels, s.std, err);
    for (int c = 0; c < channels && !st; c++)
        if (!(s.std[c] >= 1e-6f))
            st = qd_fail(err, QD_E_INVALID, "params.std has %g for channel %d; at least 1e-6 is needed",
                         (double)s.std[c], c);
    if (!st)
        *out = s;
    return st;
}

void qd_dataset_floats(float *dst, const qd_dataset *d, const int64_t *image, int64_t first, int64_t n,
                       const qd_pixel_scale *scale)
{
    float value[QD_MAX_CHANNELS][256];
    const int64_t plane = (int64_t)d->height * d->width;
    assert(scale->channels == d->channels);
    for (int c = 0; c < d->channels; c++)
        for (int v = 0; v < 256; v++)
            value[c][v] = ((float)v / 255.0f - scale->mean[c]) / scale->std[c];
    for (int64_t k = 0; k < n; k++) {
        const qd_pixels p = qd_dataset_picture(d, image ? image[k] : first + k);
        for (int c = 0; c < d->channels; c++)
            for (int64_t i = 0; i < plane; i++)
                *dst++ = value[c][p.data[c * p.plane + i * p.column]];
    }
}

/* Knuth's selection sampling (TAOCP 3.4.2, algorithm S): every subset is equally likely. */
int64_t qd_dataset_draw(int64_t *image, const qd_dataset *d, int64_t n, uint64_t seed)
{
    qd_rng rng;
    int64_t taken = 0;
    qd_rng_init(&rng, seed, QD_STREAM_SHUFFLE);
    n = n < d->count ? n : d->count;
    for (int64_t k = 0; taken < n; k++) {
        const double u = (double)(qd_rng_u64(&rng) >> 11) * 0x1p-53;
        if ((double)(d->count - k) * u < (double)(n - taken))
            image[taken++] = k;
    }
    return n;
}
