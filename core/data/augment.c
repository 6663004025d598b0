/* augment.c - how pictures are varied before they are shown: presets, and parameters that depart from them. */
#include <assert.h>
#include <string.h>

#include "data/data.h"

/* colt.md 3 gives scale, ratio, strengths and probabilities of the first two and of the probes' training transforms. */
#define SIMCLR                                                                                                         \
    .crop = QD_CROP_RESIZED, .filter = QD_FILTER_BICUBIC, .ratio_min = 3.0f / 4, .ratio_max = 4.0f / 3, .flip = 0.5f,  \
    .jitter = 0.8f, .brightness = 0.4f, .contrast = 0.4f, .saturation = 0.4f, .hue = 0.1f, .grey = 0.2f,               \
    .scale_max = 1.0f

const qd_augment_preset qd_augment_presets[] = {
    { .name = "simclr-cifar",
      .summary =
          "Crop of 10..100 % resized, flip, colour jitter, grey: two views for contrastive training of small pictures.",
      .augment = { SIMCLR, .scale_min = 0.1f } },
    { .name = "simclr-imagenet",
      .summary =
          "Crop of 8..100 % resized to 224, flip, colour jitter, grey, blur: two views for contrastive training.",
      .augment = { SIMCLR, .size = 224, .scale_min = 0.08f, .blur = 0.5f, .sigma_min = 0.1f, .sigma_max = 2.0f,
                   .kernel = 23 } },
    { .name = "cifar-supervised",
      .summary = "Four zeros around, a crop of the old size, flip: for classifiers of small pictures.",
      .augment = { .crop = QD_CROP_PADDED, .pad = 4, .flip = 0.5f } },
    { .name = "imagenet-supervised",
      .summary = "Crop of 8..100 % resized to 224, flip: for classifiers.",
      .augment = { .crop = QD_CROP_RESIZED,
                   .filter = QD_FILTER_BILINEAR,
                   .size = 224,
                   .scale_min = 0.08f,
                   .scale_max = 1.0f,
                   .ratio_min = 3.0f / 4,
                   .ratio_max = 4.0f / 3,
                   .flip = 0.5f } },
    { .name = "eval", .summary = "The pictures as they are.", .augment = { .crop = QD_CROP_NONE } },
    { .name = "eval-imagenet",
      .summary = "Shorter side to 256, the middle 224.",
      .augment = { .crop = QD_CROP_CENTRE, .filter = QD_FILTER_BILINEAR, .resize = 256, .size = 224 } },
    { .name = NULL },
};
const char *const qd_augment_names[] = {
    "simclr-cifar", "simclr-imagenet", "cifar-supervised", "imagenet-supervised", "eval", "eval-imagenet", NULL
};

const qd_param qd_augment_params[] = { QD_AUGMENT_ROWS("eval"), { .name = NULL } };

qd_status qd_augment_find(const char *name, int channels, qd_augment *out, qd_err *err)
{
    static const float mean[] = { 0.485f, 0.456f, 0.406f }, std[] = { 0.229f, 0.224f, 0.225f };
    const qd_augment_preset *p = qd_augment_presets;
    assert(channels >= 1 && channels <= QD_MAX_CHANNELS);
    while (p->name && strcmp(p->name, name) != 0)
        p++;
    if (!p->name) {
        qd_buf known;
        qd_buf_init(&known, 0);
        for (p = qd_augment_presets; p->name; p++)
            qd_buf_addf(&known, "%s%s", known.size ? ", " : "", p->name);
        const qd_status st =
            qd_fail(err, QD_E_NOT_FOUND, "params.augment is '%.80s'; known: %s", name, known.data ? known.data : "");
        qd_buf_clear(&known);
        return st;
    }
    *out = p->augment;
    out->scale.channels = channels;
    for (int c = 0; c < channels; c++) {
        out->scale.mean[c] = channels == 3 ? mean[c] : 0.5f;
        out->scale.std[c] = channels == 3 ? std[c] : 0.5f;
    }
    return QD_OK;
}

static qd_status check_within(const char *name, float v, float lo, float hi, qd_err *err)
{
    if (v >= lo && v <= hi)
        return QD_OK;
    return qd_fail(err, QD_E_INVALID, "params.augment_%s is %g; %g..%g are handled", name, (double)v, (double)lo,
                   (double)hi);
}

qd_status qd_augment_check(const qd_augment *a, int channels, qd_err *err)
{
    const struct {
        const char *name;
        float value, lo, hi;
    } rows[] = {
        { "size", (float)a->size, 0, 8192 },
        { "resize", (float)a->resize, 0, 8192 },
        { "pad", (float)a->pad, 0, 4096 },
        { "flip", a->flip, 0, 1 },
        { "jitter", a->jitter, 0, 1 },
        { "brightness", a->brightness, 0, 8 },
        { "contrast", a->contrast, 0, 8 },
        { "saturation", a->saturation, 0, 8 },
        { "hue", a->hue, 0, 0.5f },
        { "grey", a->grey, 0, 1 },
        { "blur", a->blur, 0, 1 },
        { "erase", a->erase, 0, 1 },
        { "cutout", (float)a->cutout, 0, 8192 },
    };
    const bool colours =
        a->grey > 0 || (a->jitter > 0 && (a->brightness > 0 || a->contrast > 0 || a->saturation > 0 || a->hue > 0));
    qd_status st = QD_OK;
    for (size_t k = 0; k < sizeof rows / sizeof *rows && !st; k++)
        st = check_within(rows[k].name, rows[k].value, rows[k].lo, rows[k].hi, err);
    if (st)
        return st;
    if (a->crop == QD_CROP_RESIZED && (!(a->scale_min > 0) || !(a->scale_min <= a->scale_max) || !(a->scale_max <= 1)))
        return qd_fail(err, QD_E_INVALID,
                       "params.augment_scale_min..max is %g..%g; want 0 < min <= max <= 1, parts of a picture's area",
                       (double)a->scale_min, (double)a->scale_max);
    if (a->crop == QD_CROP_RESIZED && (!(a->ratio_min > 0) || !(a->ratio_min <= a->ratio_max) || !(a->ratio_max < 100)))
        return qd_fail(err, QD_E_INVALID, "a crop's ratio is %g..%g; want 0 < min <= max < 100", (double)a->ratio_min,
                       (double)a->ratio_max);
    if (a->crop == QD_CROP_CENTRE && (a->size < 1 || a->resize < a->size))
        return qd_fail(err, QD_E_INVALID, "params.augment_size is %d; want 1..%d, what pictures are resized to",
                       a->size, a->resize);
    if (a->crop == QD_CROP_NONE && a->size)
        return qd_fail(err, QD_E_INVALID, "params.augment_size is %d and nothing crops or resizes", a->size);
    if (a->blur > 0 && (a->kernel < 1 || a->kernel > 511 || a->kernel % 2 == 0 || !(a->sigma_min > 0) ||
                        !(a->sigma_min <= a->sigma_max) || !(a->sigma_max <= 100)))
        return qd_fail(err, QD_E_INVALID,
                       "a blur of kernel %d, sigma %g..%g; want an odd kernel of 1..511, sigma of 0..100", a->kernel,
                       (double)a->sigma_min, (double)a->sigma_max);
    if (colours && channels != 1 && channels != 3)
        return qd_fail(err, QD_E_INVALID, "params.augment varies colours; pictures of %d channels have none", channels);
    if (a->scale.channels != channels)
        return qd_fail(err, QD_E_INVALID, "mean and deviation are given for %d channels; the pictures have %d",
                       a->scale.channels, channels);
    for (int c = 0; c < channels; c++)
        if (!(a->scale.std[c] >= 1e-6f))
            return qd_fail(err, QD_E_INVALID, "the deviation of channel %d is %g; at least 1e-6 is needed", c,
                           (double)a->scale.std[c]);
    return QD_OK;
}

/* --- from parameters --- */

static void depart(const qd_params *p, const char *name, float *value)
{
    const double v = qd_params_number(p, name);
    if (v >= 0)
        *value = (float)v;
}

static void depart_int(const qd_params *p, const char *name, int *value)
{
    const int64_t v = qd_params_int(p, name);
    if (v >= 0)
        *value = (int)v;
}

qd_status qd_augment_read(const qd_params *params, int channels, qd_augment *out, qd_err *err)
{
    qd_augment a;
    qd_status st = qd_augment_find(qd_params_string(params, "augment"), channels, &a, err);
    if (st)
        return st;
    depart_int(params, "augment_size", &a.size);
    depart_int(params, "augment_pad", &a.pad);
    depart_int(params, "augment_cutout", &a.cutout);
    depart(params, "augment_scale_min", &a.scale_min);
    depart(params, "augment_scale_max", &a.scale_max);
    depart(params, "augment_flip", &a.flip);
    depart(params, "augment_jitter", &a.jitter);
    depart(params, "augment_brightness", &a.brightness);
    depart(params, "augment_contrast", &a.contrast);
    depart(params, "augment_saturation", &a.saturation);
    depart(params, "augment_hue", &a.hue);
    depart(params, "augment_grey", &a.grey);
    depart(params, "augment_blur", &a.blur);
    depart(params, "augment_erase", &a.erase);
    if (a.crop == QD_CROP_NONE && a.size) {
        a.crop = QD_CROP_CENTRE;
        a.filter = QD_FILTER_BILINEAR;
        a.resize = a.size;
    } else if (a.crop == QD_CROP_CENTRE && a.resize < a.size) {
        a.resize = a.size;
    }
    /* A blur a preset does not have is that of simclr-imagenet: SimCLR's kernel is a tenth of the picture. */
    if (a.blur > 0 && !a.kernel) {
        a.kernel = a.size >= 112 ? 23 : 5;
        a.sigma_min = 0.1f;
        a.sigma_max = 2.0f;
    }
    st = qd_augment_check(&a, channels, err);
    if (!st)
        *out = a;
    return st;
}

void qd_augment_size(const qd_augment *a, int h, int w, int *out_h, int *out_w)
{
    *out_h = a->size ? a->size : h;
    *out_w = a->size ? a->size : w;
}
