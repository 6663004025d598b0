/* fuzz_dataset.c - any bytes as a data set: refused, or every picture and label can be read.
 *
 * The first byte chooses: CIFAR records, IDX pictures alone, or IDX pictures and labels, which then begin where the next two
 * (big-endian) say; a JPEG; a NumPy array; a tar file of pictures; or a list, whose kind the second byte chooses. */
#include "fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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

static void check_npy(const uint8_t *data, size_t size)
{
    qd_tensor bytes = view(data, size), t = { 0 };
    qd_err err = { 0 };
    qd_dataset *d = NULL;
    if (qd_npy_parse(&bytes, "fuzz.npy", &t, &err)) {
        must(!t.data && err.text[0]);
    } else if (!qd_dataset_wrap(&t, NULL, NULL, &d, &err)) {
        read_all(d);
    }
    qd_dataset_free(d);
    qd_tensor_clear(&t);
    qd_tensor_clear(&bytes);
}

/* Readers that want a file get one that is nowhere; `end` ends its name. Returns its descriptor, -1 when there is none. */
static int put_file(const uint8_t *data, size_t size, const char *end, char path[64])
{
    const int fd = memfd_create("fuzz", 0);
    if (fd >= 0 && write(fd, data, size) != (ssize_t)size) {
        close(fd);
        return -1;
    }
    snprintf(path, 64, "/proc/self/fd/%d%s", fd, end);
    return fd;
}

static void check_tar(const uint8_t *data, size_t size)
{
    const qd_samples_options o = { .limits = { .max_bytes = 1u << 20, .max_count = 1000 }, .cache_bytes = 1u << 16 };
    char path[64];
    qd_samples *s = NULL;
    qd_err err = { 0 };
    qd_image hold = { 0 };
    qd_pixels p;
    const int fd = put_file(data, size, "", path);
    if (fd < 0)
        return;
    if (qd_samples_open(path, &o, NULL, &s, &err)) {
        must(!s && err.text[0]);
    } else {
        const qd_samples_info *i = qd_samples_about(s);
        must(i->count > 0);
        for (int64_t k = 0; k < i->count; k++) {
            const int label = qd_samples_label(s, k);
            must(i->classes ? label >= 0 && label < i->classes : label == -1);
            must(!qd_samples_get(s, k, &hold, &p, &err) && p.height > 0 && p.width > 0);
        }
    }
    qd_image_clear(&hold);
    qd_samples_free(s);
    close(fd);
}

/* A list's kind goes by its name, so it lies in a file of that name. */
static void check_list(const uint8_t *data, size_t size, int kind)
{
    static const char *const ends[] = { ".jsonl", ".csv", ".txt", ".u16" };
    char path[64] = "/tmp/quantd-fuzz-XXXXXX", named[80];
    qd_list l = { 0 };
    qd_tensor t = { 0 };
    qd_err err = { 0 };
    const int fd = mkstemp(path);
    if (fd < 0)
        return;
    snprintf(named, sizeof named, "%s%s", path, ends[kind & 3]);
    if (write(fd, data, size) == (ssize_t)size && rename(path, named) == 0) {
        if (qd_list_open(named, 1000, &l, &err))
            must(!l.path && err.text[0]);
        else
            for (int64_t k = 0; k < l.count; k++)
                must(l.path[k][0] && (!l.label || (l.label[k] >= 0 && l.label[k] < l.classes)));
        qd_list_clear(&l);
        if (!qd_indices_take(named, 100, 1000, NULL, &t, &err))
            for (int64_t k = 0; k < qd_tensor_count(&t); k++)
                must(((const int64_t *)t.data)[k] >= 0 && ((const int64_t *)t.data)[k] < 100);
        qd_tensor_clear(&t);
    }
    close(fd);
    unlink(path);
    unlink(named);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qd_dataset *d = NULL;
    qd_err err = { 0 };
    qd_budget budget;
    qd_status st;
    if (size < 3)
        return 0;
    const int what = data[0] & 7;
    const size_t at = (size_t)data[1] << 8 | data[2], left = size - 3;
    const uint8_t *body = data + 3;
    if (what >= 3) {
        if (what == 3)
            check_jpeg(body, left);
        else if (what == 4)
            check_npy(body, left);
        else if (what == 5)
            check_tar(body, left);
        else
            check_list(body, left, data[1]);
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
