/* fuzz_dataset.c - any bytes as a data set: refused, or every picture and label can be read.
 *
 * The first byte chooses: CIFAR records, IDX pictures alone, or IDX pictures and labels, which then begin where the next two
 * (big-endian) say; or a JPEG. */
#include "fuzz.h"

#include <string.h>

#include "base/mem.h"
#include "data/data.h"

static qd_tensor view(const uint8_t *data, size_t size)
{
    qd_tensor t = { 0 };
    const qd_shape shape = QD_SHAPE((int64_t)size);
    must(qd_tensor_wrap(&t, QD_U8, &shape, data, NULL, NULL, NULL) == QD_OK);
    return t;
}

static void read_all(const qd_dataset *d)
{
    double mean[QD_MAX_CHANNELS], std[QD_MAX_CHANNELS];
    int64_t sum = 0;
    must(d->count > 0 && d->channels >= 1 && d->channels <= QD_MAX_CHANNELS);
    for (int64_t k = 0; k < d->count; k++) {
        const int label = qd_dataset_label(d, k);
        must(d->classes ? label >= 0 && label < d->classes : label == -1);
        const uint8_t *p = qd_dataset_pixels(d, k);
        for (int64_t i = 0; i < (int64_t)d->channels * d->height * d->width; i++)
            sum += p[i];
    }
    qd_dataset_statistics(d, mean, std);
    for (int c = 0; c < d->channels; c++)
        must(mean[c] >= 0 && mean[c] <= 1 && std[c] >= 0 && std[c] <= 0.51);
    must(sum >= 0);
}

static void check_jpeg(const uint8_t *data, size_t size)
{
    qd_image im = { 0 };
    qd_err err = { 0 };
    if (qd_jpeg_decode(data, size, 1u << 20, &im, &err)) {
        must(!im.pixels && err.text[0]);
        return;
    }
    must(im.width > 0 && im.height > 0 && (im.channels == 1 || im.channels == 3));
    must((uint64_t)im.width * (uint64_t)im.height <= 1u << 20);
    qd_image_clear(&im);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qd_dataset *d = NULL;
    qd_err err = { 0 };
    qd_budget budget;
    qd_status st;
    if (size < 3)
        return 0;
    const int what = data[0] & 3;
    const size_t at = (size_t)data[1] << 8 | data[2], left = size - 3;
    const uint8_t *body = data + 3;
    if (what == 3) {
        check_jpeg(body, left);
        return 0;
    }
    qd_budget_init(&budget, 1u << 20);
    const size_t first = what == 2 && at < left ? at : left;
    qd_tensor images = view(body, first), labels = view(body + first, left - first);
    if (what == 0)
        st = qd_cifar_parse(&images, &budget, &d, &err);
    else
        st = qd_idx_parse(&images, what == 2 ? &labels : NULL, &budget, &d, &err);
    if (st)
        must(!d && err.text[0]);
    else
        read_all(d);
    qd_dataset_free(d);
    must(budget.used_bytes == 0);
    qd_tensor_clear(&images);
    qd_tensor_clear(&labels);
    return 0;
}
