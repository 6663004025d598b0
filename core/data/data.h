/* data.h - samples in, pictures out, archives opened with care. */
#ifndef QD_DATA_DATA_H
#define QD_DATA_DATA_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"

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

#endif
