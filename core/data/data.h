/* data.h - samples in, pictures out, archives opened with care. */
#ifndef QD_DATA_DATA_H
#define QD_DATA_DATA_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/mem.h"
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
/* A set made of tensors, shared: images U8 [N, C, H, W], labels NULL or N whole numbers. */
qd_status qd_dataset_wrap(const qd_tensor *images, const qd_tensor *labels, qd_budget *budget, qd_dataset **out,
                          qd_err *err);
void qd_dataset_free(qd_dataset *d);
/* Bytes already read (U8, shared): an IDX pair (labels may be NULL), CIFAR-10 records. */
qd_status qd_idx_parse(const qd_tensor *images, const qd_tensor *labels, qd_budget *budget, qd_dataset **out,
                       qd_err *err);
qd_status qd_cifar_parse(const qd_tensor *records, qd_budget *budget, qd_dataset **out, qd_err *err);

const uint8_t *qd_dataset_pixels(const qd_dataset *d, int64_t k); // [C][H][W]
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

#endif
