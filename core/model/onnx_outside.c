/* onnx_outside.c - data of ONNX tensors in other files, which must lie inside the model's own folder. */
#include "model/onnx_tensor.h"

#include <string.h>

#include "base/fs.h"

#define MAX_FILES 64

struct qd_onnx_outside {
    struct {
        const char *location;
        qd_map map;
    } file[MAX_FILES];
    int n;
};

qd_status qd_onnx_outside_new(qd_onnx_outside **out, qd_err *err)
{
    *out = qd_calloc(1, sizeof(**out));
    return *out ? QD_OK : qd_fail(err, QD_E_NOMEM, "out of memory for an ONNX file");
}

void qd_onnx_outside_free(qd_onnx_outside *o)
{
    for (int k = 0; o && k < o->n; k++)
        qd_map_close(&o->file[k].map);
    qd_free(o);
}

/* A relative path of plain names, so that it stays inside the folder. */
static bool location_is_safe(const char *s)
{
    if (!*s || strlen(s) > 512 || strchr(s, '\\'))
        return false;
    for (const char *part = s;;) {
        const size_t n = strcspn(part, "/");
        if (n == 0 || part[0] == '.')
            return false;
        if (!part[n])
            return true;
        part += n + 1;
    }
}

static bool parse_u64(const char *s, uint64_t *out)
{
    uint64_t v = 0;
    if (!*s)
        return false;
    for (; *s; s++)
        if (*s < '0' || *s > '9' || v > (UINT64_MAX - 9) / 10)
            return false;
        else
            v = v * 10 + (uint64_t)(*s - '0');
    *out = v;
    return true;
}

qd_status qd_onnx_place_set(qd_onnx_place *place, const char *tensor, const char *key, const char *value, qd_err *err)
{
    bool ok = true;
    if (strcmp(key, "location") == 0)
        place->location = value;
    else if (strcmp(key, "offset") == 0)
        ok = parse_u64(value, &place->offset);
    else if (strcmp(key, "length") == 0)
        ok = place->has_length = parse_u64(value, &place->length);
    if (!ok)
        return qd_fail(err, QD_E_FORMAT, "tensor '%.150s': external %s '%.40s' is not a whole number", tensor, key,
                       value);
    return QD_OK;
}

static qd_status open_file(qd_onnx_outside *o, const char *folder, const char *tensor, const char *location,
                           qd_err *err)
{
    char *path = qd_fs_join(folder, location);
    if (!path)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a path");
    const qd_status st = qd_map_open(&o->file[o->n].map, path, err);
    qd_free(path);
    if (st == QD_E_NOT_FOUND)
        return qd_fail(err, st, "tensor '%.150s': there is no file '%.200s' in the model's folder", tensor, location);
    if (st)
        return qd_fail(err, st, "tensor '%.150s': the file '%.200s' cannot be read", tensor, location);
    o->file[o->n++].location = location;
    return QD_OK;
}

qd_status qd_onnx_outside_find(qd_onnx_outside *o, const char *folder, const char *tensor, const qd_onnx_place *place,
                               const uint8_t **data, size_t *size, qd_err *err)
{
    const char *location = place->location;
    if (!folder)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "tensor '%.150s' lies in another file ('%.100s'): send the model's folder as an archive", tensor,
                       location);
    if (!location_is_safe(location))
        return qd_fail(err, QD_E_FORMAT, "tensor '%.150s': '%.200s' is not a file inside the model's folder", tensor,
                       location);
    int k = 0;
    while (k < o->n && strcmp(o->file[k].location, location) != 0)
        k++;
    if (k == MAX_FILES)
        return qd_fail(err, QD_E_LIMIT, "tensor '%.150s': external data in more than %d files", tensor, MAX_FILES);
    qd_status st = k == o->n ? open_file(o, folder, tensor, location, err) : QD_OK;
    if (st)
        return st;
    const qd_map *map = &o->file[k].map;
    if (place->offset > map->size || (place->has_length && place->length > map->size - place->offset))
        return qd_fail(err, QD_E_FORMAT, "tensor '%.150s': bytes %llu + %llu are not in '%.100s', which has %zu",
                       tensor, (unsigned long long)place->offset, (unsigned long long)place->length, location,
                       map->size);
    *data = (const uint8_t *)map->data + place->offset;
    *size = place->has_length ? (size_t)place->length : map->size - (size_t)place->offset;
    return QD_OK;
}
