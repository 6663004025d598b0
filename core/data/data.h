/* data.h - samples in, pictures out, archives opened with care. */
#ifndef QD_DATA_DATA_H
#define QD_DATA_DATA_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/param.h"
#include "base/run.h"
#include "tensor/tensor.h"

/* 8-bit picture, rows top to bottom, channels interleaved: 1 grey, 3 RGB. */
typedef struct qd_image {
    int width, height, channels;
    uint8_t *pixels; /* [height][width][channels]; qd_free */
} qd_image;
void qd_image_clear(qd_image *im);

/* [-1, 1] float planes [channels][h][w] to 8 bit: round(255 * clamp(x / 2 + 0.5, 0, 1)), the diffusers rule. */
qd_status qd_image_from_float(const float *chw, int channels, int h, int w, qd_image *out, qd_err *err);
/* Pictures of one size laid out in rows of `columns`, `gap` grey pixels between. */
qd_status qd_image_grid(const qd_image *images, int n, int columns, int gap, qd_image *out, qd_err *err);
/* Each pixel repeated k x k times. */
qd_status qd_image_zoom(const qd_image *im, int k, qd_image *out, qd_err *err);
/* PNG, same pixels same bytes. Appends to buf. */
qd_status qd_png_encode(const qd_image *im, qd_buf *buf, qd_err *err);
/* 8-bit grey or RGB out of any PNG of at most max_pixels. */
qd_status qd_png_decode(const void *data, size_t size, uint64_t max_pixels, qd_image *out, qd_err *err);

/* The same of any baseline or progressive JPEG, grey or YCbCr. */
qd_status qd_jpeg_decode(const void *data, size_t size, uint64_t max_pixels, qd_image *out, qd_err *err);

/* 10 log10(255^2 / mse); INFINITY for equal pictures. Same sizes (asserted). */
double qd_image_psnr_db(const qd_image *a, const qd_image *b);

/* Unpack tar, tar.gz, tar.xz, tar.zst or zip into an existing empty folder. Only regular files and folders; names with "..",
 * absolute names, links, devices, a single entry or a sum over max_bytes, more than max_entries: refused, naming the entry; on
 * failure the folder is emptied. A single top-level folder is kept as it is. */
typedef struct qd_unpack_limits {
    uint64_t max_bytes;
    int max_entries;
} qd_unpack_limits;
qd_status qd_archive_unpack(const char *archive_path, const char *dest_dir, const qd_unpack_limits *limits,
                            qd_err *err);
/* Does the file start like an archive we open? */
bool qd_archive_sniff(const char *path);
/* Does it hold files? A gzip of anything else starts like an archive too. */
bool qd_archive_has_files(const char *path);

/* --- data sets: pictures of one size with their labels, all in memory or mapped (readers.c) --- */

#define QD_MAX_CHANNELS 4
#define QD_MAX_CLASSES 65536

typedef struct qd_dataset {
    const char *format; /* name of the row of readers.c that read it */
    int64_t count;
    int channels, height, width;
    int classes;       /* labels are 0..classes-1; 0 = there are no labels */
    int64_t left_out;  /* files beside the pictures that are none */
    qd_tensor bytes;   // U8: what the file held, pictures among it
    int64_t first;     // bytes before the first picture
    int64_t stride;    // bytes from picture to picture
    bool interleaved;  /* pictures are [H][W][C]; else [C][H][W] */
    qd_tensor labels;  // I32 [count]; empty without labels
    char **class_name; // [classes]; NULL when the classes have no names
} qd_dataset;

typedef struct qd_data_limits {
    uint64_t max_bytes; /* of everything decompressed */
    int64_t max_count;  /* of pictures */
} qd_data_limits;

/* One row for each way a data set may lie on disk. `open` gets a file or a folder. */
typedef struct qd_data_format {
    const char *name, *summary;
    /* Does this path look like ours? Cheap; fails only where it cannot look. */
    qd_status (*sniff)(const char *path, bool *ours, qd_err *err);
    qd_status (*open)(const char *path, const qd_data_limits *limits, qd_budget *budget, qd_dataset *d, qd_err *err);
} qd_data_format;
extern const qd_data_format *const qd_data_formats[]; /* NULL-terminated */

/* A file, or a folder that an archive was unpacked into; files may be gzipped. Memory is drawn from budget, which must outlive the
 * set. Refused naming file, picture, value and limit: sizes that do not add up, pictures of different sizes, labels of a class no
 * file has. */
qd_status qd_dataset_open(const char *path, const qd_data_limits *limits, qd_budget *budget, qd_dataset **out,
                          qd_err *err);
/* A set made of tensors: images U8 [N, C, H, W], or [N, H, W, C] with C <= 4 < H, or [N, H, W]; shared. F32 images are pixel / 255
 * and are rounded to it; values outside 0..1 are refused. labels NULL or N whole numbers. Safetensors come in this way: their caller
 * opens the file. */
qd_status qd_dataset_wrap(const qd_tensor *images, const qd_tensor *labels, qd_budget *budget, qd_dataset **out,
                          qd_err *err);
void qd_dataset_free(qd_dataset *d);
/* Bytes already read (U8, shared): an IDX pair (labels may be NULL), CIFAR-10 or CIFAR-100 records (fine labels). */
qd_status qd_idx_parse(const qd_tensor *images, const qd_tensor *labels, qd_budget *budget, qd_dataset **out,
                       qd_err *err);
qd_status qd_cifar_parse(const qd_tensor *records, qd_budget *budget, qd_dataset **out, qd_err *err);

const uint8_t *qd_dataset_pixels(const qd_dataset *d, int64_t k); // [C][H][W], or [H][W][C] of an interleaved set
int qd_dataset_label(const qd_dataset *d, int64_t k);             /* -1 = none */
/* Over all pixels, in 0..1; of each channel. */
void qd_dataset_statistics(const qd_dataset *d, double mean[QD_MAX_CHANNELS], double std[QD_MAX_CHANNELS]);

/* What a network wants pictures to be: (pixel / 255 - mean) / std. */
typedef struct qd_pixel_scale {
    int channels;
    float mean[QD_MAX_CHANNELS], std[QD_MAX_CHANNELS];
} qd_pixel_scale;
/* From texts "0.485, 0.456, 0.406": one number for each channel, or one for all. The words begin with params.mean or params.std. */
qd_status qd_pixel_scale_parse(const char *mean, const char *std, int channels, qd_pixel_scale *out, qd_err *err);
/* dst[n][C][H][W] = pictures image[0..n-1] (NULL = first, first + 1, ..). */
void qd_dataset_floats(float *dst, const qd_dataset *d, const int64_t *image, int64_t first, int64_t n,
                       const qd_pixel_scale *scale);
/* n of the set's pictures drawn without return, in rising order; all of them when there are no more. Returns how many. */
int64_t qd_dataset_draw(int64_t *image, const qd_dataset *d, int64_t n, uint64_t seed);

/* An array of a NumPy file (`name` NULL), or of that name out of an NPZ file: mapped where it lies as it is, else within max_bytes.
 * Refused: Fortran order, big-endian, objects and strings. */
qd_status qd_npy_take(const char *path, const char *name, uint64_t max_bytes, qd_budget *budget, qd_tensor *out,
                      qd_err *err);
/* The same of bytes already read (U8, shared); `name` is for words. */
qd_status qd_npy_parse(const qd_tensor *bytes, const char *name, qd_tensor *out, qd_err *err);

/* A picture that lies somewhere, lent: pixel (c, y, x) at data[c plane + y row + x column]. plane 0 repeats grey. */
typedef struct qd_pixels {
    const uint8_t *data;
    int channels, height, width;
    int64_t plane, row, column; // bytes
} qd_pixels;
qd_pixels qd_dataset_picture(const qd_dataset *d, int64_t k);

/* --- augmentation: random looks at a picture (augment.c, view.c, resample.c) ---
 *
 * The steps in their order: crop, flip, colour jitter, grey, blur, scale to floats, erase. Up to the scale all is 8-bit and as
 * torchvision does it on Pillow pictures, bit for bit (colt.md 3): resampling with antialias and 22-bit weights, horizontal pass
 * first, rounded after each pass; blends cut off, not rounded; hue in 8-bit HSV. Blur is torchvision's: a true Gaussian of an
 * odd kernel, edges mirrored, rounded to 8 bits. Erasing comes after the scale and writes 0, the mean colour. */

typedef enum qd_crop {
    QD_CROP_NONE,    /* the picture as it is */
    QD_CROP_RESIZED, /* RandomResizedCrop: a random rectangle, resized to size x size */
    QD_CROP_PADDED,  /* RandomCrop: size x size out of the picture with `pad` zeros around */
    QD_CROP_CENTRE,  /* shorter side resized to `resize`, then size x size out of the middle */
} qd_crop;

typedef enum qd_filter {
    QD_FILTER_BILINEAR,
    QD_FILTER_BICUBIC, /* a = -0.5 */
} qd_filter;

typedef struct qd_augment {
    qd_crop crop;
    qd_filter filter;
    int size;                   // pixels, side of what comes out; 0 = height and width of the picture
    int resize, pad;            // pixels
    float scale_min, scale_max; // RESIZED: part of the picture's area
    float ratio_min, ratio_max; // RESIZED: width / height, drawn evenly in its logarithm
    float flip;                 // probability of a horizontal flip
    float jitter;               // probability of colour jitter; then its four steps in random order:
    float brightness, contrast; // factors from [max(0, 1 - x), 1 + x]
    float saturation;           // the same
    float hue;                  // turn by [-x, x] of the circle, x <= 0.5
    float grey;                 // probability
    float blur;                 // probability
    float sigma_min, sigma_max; // pixels
    int kernel;                 // pixels, odd
    float erase;                // probability of RandomErasing: area 0.02..0.33, ratio 0.3..3.3
    int cutout;                 // side of a square set to 0, its middle anywhere (DeVries & Taylor 2017); 0 = none
    qd_pixel_scale scale;       // of the pixels, at the end
} qd_augment;

/* simclr-cifar, simclr-imagenet, cifar-supervised, imagenet-supervised, eval, eval-imagenet: colt.md 3. */
typedef struct qd_augment_preset {
    const char *name, *summary;
    qd_augment augment; /* scale: mean and deviation of ImageNet for three channels, 0.5 for others */
} qd_augment_preset;
extern const qd_augment_preset qd_augment_presets[]; /* ends with a row whose name is NULL */
extern const char *const qd_augment_names[];         /* the same names, NULL-terminated, as choices of a parameter */

/* For pictures of that many channels. QD_E_NOT_FOUND names what there is. */
qd_status qd_augment_find(const char *name, int channels, qd_augment *out, qd_err *err);
/* Everything within its bounds; colour jitter and grey want 1 or 3 channels. Words begin with params.augment. */
qd_status qd_augment_check(const qd_augment *a, int channels, qd_err *err);

/* Parameter rows: a preset and what departs from it; -1 leaves a value to the preset. For rows of others: QD_AUGMENT_ROWS("eval"). */
#define QD_AUGMENT_NUMBER(name_, max_, words_)                                                                         \
    {                                                                                                                  \
        .name = "augment_" name_, .type = QD_PARAM_NUMBER, .summary = words_ " (-1: as the preset has it).",           \
        .fallback = "-1", .min = -1, .max = max_                                                                       \
    }
#define QD_AUGMENT_INT(name_, max_, words_)                                                                            \
    {                                                                                                                  \
        .name = "augment_" name_, .type = QD_PARAM_INT, .summary = words_ " (-1: as the preset has it).",              \
        .fallback = "-1", .min = -1, .max = max_                                                                       \
    }
#define QD_AUGMENT_ROWS(preset_)                                                                                       \
    { .name = "augment",                                                                                               \
      .type = QD_PARAM_CHOICE,                                                                                         \
      .summary = "How pictures are varied before they are shown.",                                                     \
      .fallback = preset_,                                                                                             \
      .choices = qd_augment_names },                                                                                   \
        QD_AUGMENT_INT("size", 1024, "Side of the pictures shown, in pixels"),                                         \
        QD_AUGMENT_INT("pad", 512, "Zeros around a picture before it is cropped, in pixels"),                          \
        QD_AUGMENT_NUMBER("scale_min", 1, "Smallest part of a picture's area a crop takes"),                           \
        QD_AUGMENT_NUMBER("scale_max", 1, "Largest part of a picture's area a crop takes"),                            \
        QD_AUGMENT_NUMBER("flip", 1, "Probability of a horizontal flip"),                                              \
        QD_AUGMENT_NUMBER("jitter", 1, "Probability of colour jitter"),                                                \
        QD_AUGMENT_NUMBER("brightness", 8, "Brightness factor departs from 1 by up to this"),                          \
        QD_AUGMENT_NUMBER("contrast", 8, "Contrast factor departs from 1 by up to this"),                              \
        QD_AUGMENT_NUMBER("saturation", 8, "Saturation factor departs from 1 by up to this"),                          \
        QD_AUGMENT_NUMBER("hue", 0.5, "Hue turns by up to this part of the circle"),                                   \
        QD_AUGMENT_NUMBER("grey", 1, "Probability of a grey picture"),                                                 \
        QD_AUGMENT_NUMBER("blur", 1, "Probability of a Gaussian blur"),                                                \
        QD_AUGMENT_NUMBER("erase", 1, "Probability that a rectangle is erased"),                                       \
        QD_AUGMENT_INT("cutout", 1024, "Side of a square cut out of every picture, in pixels")
extern const qd_param qd_augment_params[]; /* QD_AUGMENT_ROWS("eval") alone */
/* The preset of the parameters with what departs from it, checked. A size makes a preset without crop resize and centre. */
qd_status qd_augment_read(const qd_params *params, int channels, qd_augment *out, qd_err *err);
/* The size of what comes out for a picture of h x w. */
void qd_augment_size(const qd_augment *a, int h, int w, int *out_h, int *out_w);

/* Everything chance decides about one look. */
typedef struct qd_view {
    int top, left, height, width; // of the crop, pixels of the picture; beyond its edges lies zero
    int to_h, to_w;               // the crop is resized to this ..
    int at_y, at_x;               // .. and seen from here, out_h x out_w of it
    bool flip;
    int steps;                              // of colour jitter, in their order:
    uint8_t step[4];                        // 0 brightness, 1 contrast, 2 saturation, 3 hue
    float brightness, contrast, saturation; // factors
    int hue;                                // added to the 8-bit hue: round(255 x), colt.md 3 (torchvision cuts off)
    bool grey;
    float sigma;                                          // pixels; 0 = no blur
    int erase_top, erase_left, erase_height, erase_width; // pixels of what comes out; height 0 = nothing
    int cut_top, cut_left, cut_height, cut_width;
} qd_view;

/* What a look is drawn from: the same key gives the same look, whatever else was drawn before and on whichever thread. */
typedef struct qd_view_key {
    uint64_t seed;
    int64_t epoch;  // 0 .. 2^24 - 1
    int64_t sample; // 0 .. 2^32 - 1
    int view;       // 0 .. 2^16 - 1
} qd_view_key;
#define QD_EPOCHS_MAX ((int64_t)1 << 24)
#define QD_SAMPLES_MAX ((int64_t)1 << 32)

/* Draw the look of a picture of h x w. Pure; each step has its own numbers, so switching one off moves no other. */
void qd_view_draw(qd_view *v, const qd_augment *a, int h, int w, const qd_view_key *key);

/* Room to look at pictures of up to h x w; one for each thread. Grown, where need be, before qd_view_apply. */
typedef struct qd_view_room qd_view_room;
qd_status qd_view_room_new(const qd_augment *a, int channels, qd_budget *budget, qd_view_room **out, qd_err *err);
void qd_view_room_free(qd_view_room *room);
qd_status qd_view_room_fit(qd_view_room *room, int h, int w, qd_err *err);
/* dst[channels][out_h][out_w]: 8 bits, before scale and erasing; floats, all of it. */
void qd_view_bytes(uint8_t *dst, const qd_pixels *src, const qd_view *v, qd_view_room *room);
void qd_view_floats(float *dst, const qd_pixels *src, const qd_view *v, qd_view_room *room);

/* --- samples: pictures to train on, of one size or many, in memory or not (samples.c, tar.c, list.c) --- */

typedef struct qd_samples qd_samples;
typedef struct qd_samples_info {
    const char *format; /* "folder", "tar", or of the data set */
    int64_t count;
    int64_t left_out;        /* files that are no pictures, or cannot be read */
    int channels;            /* what every picture is given with: 3 as soon as one has colours */
    int height, width;       // pixels; 0 = not all the same
    int classes;             /* labels are 0..classes-1; 0 = there are none */
    char *const *class_name; // [classes]; NULL when the classes have no names
    bool in_memory;          /* nothing is decoded any more */
} qd_samples_info;

typedef struct qd_samples_options {
    qd_data_limits limits;
    const char *list; /* a list file: which pictures, with which labels; NULL = all, labelled by folder or .cls file */
    uint64_t
        cache_bytes; /* decoded pictures stay in memory when all of them take no more and the budget has it; 0 = never */
} qd_samples_options;

/* A folder of PNG and JPEG files with a folder for each class, a tar file of the same (read in place, never unpacked; labels also in
 * NAME.cls beside NAME.jpg), or any data set. Every picture is decoded once to see that it can be: what cannot is left out with a
 * warning, here and never while training. On run's threads. Memory is drawn from run's budget, which must outlive the samples. */
qd_status qd_samples_open(const char *path, const qd_samples_options *options, const qd_run *run, qd_samples **out,
                          qd_err *err);
/* A data set as samples; lent, it must outlive them. */
qd_status qd_samples_of(const qd_dataset *d, qd_samples **out, qd_err *err);
void qd_samples_free(qd_samples *s);
const qd_samples_info *qd_samples_about(const qd_samples *s);
int qd_samples_label(const qd_samples *s, int64_t k);        /* -1 = none */
const char *qd_samples_name(const qd_samples *s, int64_t k); /* path within; NULL in a data set */
/* Picture k: lent where it lies in memory, else decoded into *hold, which is replaced (qd_image_clear at the end). Any thread, each
 * with its own hold. */
qd_status qd_samples_get(const qd_samples *s, int64_t k, qd_image *hold, qd_pixels *out, qd_err *err);

/* A list of pictures: JSON objects line by line ("path", "file", "image" or "name"; "label" or "class"), CSV with such a first line
 * or path,label without, or a path and perhaps a label on each line of a text. Labels are whole numbers, or names, which get numbers
 * in their order by bytes. Every line has a label or none has. */
typedef struct qd_list {
    int64_t count;
    char **path;       // [count]
    int32_t *label;    // [count]; NULL = none
    char **class_name; // [classes]; NULL when labels are numbers
    int classes;
} qd_list;
qd_status qd_list_open(const char *path, int64_t max_count, qd_list *out, qd_err *err);
void qd_list_clear(qd_list *l);

/* Whole numbers out of a file as I64 [n]: text with one to a line, NPY, or packed little-endian as the name ends: .u8, .u16, .u32.
 * Every one in 0..below-1 (below 0: any); refused naming the file and the first that is not. */
qd_status qd_indices_take(const char *path, int64_t below, int64_t max_count, qd_budget *budget, qd_tensor *out,
                          qd_err *err);

/* --- loader: batches of looks at samples, epoch after epoch (loader.c) ---
 *
 * What a batch holds depends on the seed, the epoch, its number and what is chosen - never on threads or on what came before. So a run
 * goes on exactly where it stopped with qd_loader_begin(epoch, batch), once the same samples are chosen again. */

typedef struct qd_loader_options {
    int batch;      /* pictures in a batch, 1..65536; the last of an epoch may have fewer */
    int views;      /* looks at each, 1..16 */
    bool shuffle;   /* else in the order of the parts and what is chosen of them */
    bool drop_last; /* no batch with fewer */
    int threads;    /* that prepare batches, 0..256; 0 = qd_loader_next does it itself */
    int ahead;      /* batches prepared before they are asked for, 1..64 */
    uint64_t seed;
} qd_loader_options;

typedef struct qd_batch {
    int64_t epoch, index; // index of this batch in the epoch
    int n, views;         // n = 0: the epoch is over
    int channels, height, width;
    const float *x;        // [views][n][channels][height][width]
    const int32_t *label;  // [n]; -1 = none
    const int32_t *part;   // [n]; of which part a picture is: 0 ID, 1 OOD, ..
    const int64_t *sample; // [n]; its number there
} qd_batch;

#define QD_LOADER_PARTS 8

typedef struct qd_loader qd_loader;
/* Batches out of `parts` samples together (1..QD_LOADER_PARTS), each lent. Grey parts are shown in colours where another has some. All
 * of every part is chosen at first. Memory is drawn from run's budget at once: ahead + 1 batches (+ room for each thread), refused in
 * words that say what would take less. run may be NULL and must outlive the loader; its callbacks are not called. */
qd_status qd_loader_new(const qd_samples *const *part, int parts, const qd_augment *augment,
                        const qd_loader_options *options, const qd_run *run, qd_loader **out, qd_err *err);
void qd_loader_free(qd_loader *l); /* stops the threads */

/* Which samples of a part the next epochs show, and in which order where nothing shuffles; copied. sample NULL = all, n 0 = none. What is
 * chosen counts from the next qd_loader_begin on. */
qd_status qd_loader_choose(qd_loader *l, int part, const int64_t *sample, int64_t n, qd_err *err);
/* Draw `n` samples of a part for each epoch, with return, by their weights [count of the part]: finite, >= 0, not all 0. NULL ends it. */
qd_status qd_loader_weigh(qd_loader *l, int part, const double *weight, int64_t n, qd_err *err);
/* Weights that give every class the same share: 1 / (pictures of its class); 0 without label. weight[count]. */
qd_status qd_samples_balance(double *weight, const qd_samples *s, qd_err *err);
/* Batches of an epoch as now chosen. */
int64_t qd_loader_batches(const qd_loader *l);

/* Start an epoch (0 .. 2^24 - 1) at one of its batches; one that is under way is given up. */
qd_status qd_loader_begin(qd_loader *l, int64_t epoch, int64_t batch, qd_err *err);
/* The next batch, lent until the next call for this loader; n = 0 after the last. Stops within a picture's time when run is cancelled. A
 * picture that cannot be read any more fails here, naming it. */
qd_status qd_loader_next(qd_loader *l, qd_batch *out, qd_err *err);

/* --- long tails (tail.c): colt.md 2.2 --- */

typedef enum qd_tail_profile {
    QD_TAIL_EXPONENTIAL, /* floor(most rho^(c / (C - 1))), rho = 1 / imbalance: CIFAR-10-LT, CIFAR-100-LT */
    QD_TAIL_PARETO, /* evenly spaced quantiles of a Pareto law of power alpha held in [most rho, most], rounded down: the shape of
                          * ImageNet-LT; colt.md gives no formula, so lists made elsewhere differ */
} qd_tail_profile;

/* count[rank] of `classes` ranks, the largest first. classes 2..QD_MAX_CLASSES, imbalance >= 1, alpha > 0 (Pareto); the last is at least 1,
 * refused otherwise. */
qd_status qd_tail_counts(qd_tail_profile profile, int classes, int64_t most, double imbalance, double alpha,
                         int64_t *count, qd_err *err);

typedef struct qd_tail_options {
    qd_tail_profile profile;
    int64_t most;     /* pictures of the largest class */
    double imbalance; /* largest class / smallest class: 100 */
    double alpha;     /* Pareto only */
    const int *order; // [classes]: the class of each rank; NULL = by `permute`
    bool permute;     /* without order: classes in an order drawn from the seed, else 0, 1, 2, .. */
    uint64_t seed;
    const int64_t *left_out; // [n_left_out]: pictures never taken (validation)
    int64_t n_left_out;
    const int64_t *
        sequence; // [n_sequence]: pictures of a class are taken as they come in it; NULL = in an order drawn from the seed
    int64_t n_sequence;
} qd_tail_options;

/* Numbers of pictures, class by class: the long tail (D_i), a balanced set of nearly its size (D_b), and as many of each class as the
 * smallest has (S_b). All three take the first pictures of the same order of each class, as the published lists do: so the third lies
 * in both others. */
typedef struct qd_tail {
    qd_tensor tail, balanced, few; // I64 [n]
} qd_tail;
/* Fails naming the class that has too few pictures. */
qd_status qd_tail_split(const qd_samples *s, const qd_tail_options *o, qd_budget *budget, qd_tail *out, qd_err *err);
void qd_tail_clear(qd_tail *t);

/* --- the same picture twice (overlap.c) --- */

typedef struct qd_twin {
    int64_t a, b;
    int bits;         /* of 64 that differ between their difference hashes; -1 = the very same pixels */
    float difference; // of their 8 x 8 grey miniatures, mean of absolute values, in levels of 255
} qd_twin;

typedef struct qd_overlap_options {
    int bits;          /* near twins differ in at most so many of 64 bits, 0..32; -1 = only the very same pixels */
    float difference;  /* .. and by no more levels than this */
    int64_t max_twins; /* kept in the report; all are counted */
} qd_overlap_options;
#define QD_OVERLAP_USUAL ((qd_overlap_options){ .bits = 10, .difference = 6.0f, .max_twins = 10000 })

typedef struct qd_overlap {
    int64_t exact, near; /* pairs */
    int64_t in_a, in_b;  /* pictures of each that have a twin in the other */
    int64_t n;           /* twins kept, sorted by a, then b */
    qd_twin *twin;       // [n]
} qd_overlap;
/* Which pictures of b lie in a too: the OOD pool among the ID pictures, the test set among the training pictures. With a == b, pairs
 * a < b within one. Compares everything with everything on run's threads: 10^9 pairs take some seconds. Hash: Krawetz's dHash of
 * means over 9 x 8 fields. The very same means size, channels and a 128-bit hash of the pixels. */
qd_status qd_samples_overlap(const qd_samples *a, const qd_samples *b, const qd_overlap_options *o, const qd_run *run,
                             qd_overlap *out, qd_err *err);
void qd_overlap_clear(qd_overlap *o);

#endif
