/* onnx_file.c - ONNX files on disk: a single one, or a folder with its external data (rows of formats.c). */
#include "model/onnx_int.h"

#include <string.h>

#include "base/fs.h"

#define PROBE_BYTES ((size_t)65536) /* of a file, to recognise it by */

bool qd_onnx_sniff(const char *path)
{
    qd_map m = { 0 };
    if (qd_fs_is_dir(path) || qd_map_open(&m, path, NULL))
        return false;
    const bool yes = m.size && qd_onnx_looks_like(m.data, m.size < PROBE_BYTES ? m.size : PROBE_BYTES);
    qd_map_close(&m);
    return yes;
}

static qd_status load(const char *path, const char *folder, qd_budget *budget, qd_model *m, qd_err *err)
{
    qd_map map = { 0 };
    qd_onnx_file *f = NULL;
    qd_status st = qd_map_open(&map, path, err);
    if (st)
        return st;
    st = qd_onnx_parse(map.data, map.size, folder, budget, &f, err);
    m->file_bytes = map.size;
    qd_map_close(&map);
    if (!st)
        st = qd_onnx_to_graph(f, budget, &m->graph, err);
    if (!st)
        st = qd_meta_copy(m->meta, f->meta, err);
    const char *scheduler = st ? NULL : qd_meta_find(m->meta, "scheduler_config");
    if (scheduler)
        st = qd_config_parse(scheduler, strlen(scheduler), "metadata 'scheduler_config'", &m->scheduler, err);
    qd_onnx_free(f);
    return st ? qd_fail_in(err, st, "%.100s", qd_base_name(path)) : QD_OK;
}

qd_status qd_onnx_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err)
{
    return load(path, NULL, budget, m, err);
}

/* The only *.onnx file of a folder, or of the one folder inside it; both NULL when there is none, or several. */
static qd_status find_in_folder(const char *path, char **folder, char **file, qd_err *err)
{
    int n = 0;
    char *first = NULL;
    *file = NULL;
    *folder = qd_folder_root(path);
    if (!*folder)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a path");
    qd_status st = qd_folder_list(*folder, ".safetensors", &n, &first, err);
    qd_free(first);
    first = NULL;
    if (!st && n) /* weights in our own layout go first */
        n = 0;
    else if (!st)
        st = qd_folder_list(*folder, ".onnx", &n, &first, err);
    if (!st && n == 1) {
        *file = qd_fs_join(*folder, first);
        if (!*file)
            st = qd_fail(err, QD_E_NOMEM, "out of memory for a path");
    }
    qd_free(first);
    if (st || n != 1) {
        qd_free(*folder);
        *folder = NULL;
    }
    return st;
}

bool qd_onnx_folder_sniff(const char *path)
{
    char *folder = NULL, *file = NULL;
    if (!qd_fs_is_dir(path) || find_in_folder(path, &folder, &file, NULL))
        return false;
    const bool yes = file && qd_onnx_sniff(file);
    qd_free(file);
    qd_free(folder);
    return yes;
}

qd_status qd_onnx_folder_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err)
{
    char *folder = NULL, *file = NULL;
    qd_status st = find_in_folder(path, &folder, &file, err);
    if (st)
        return st;
    if (!file)
        return qd_fail(err, QD_E_FORMAT, "'%.100s' has no single *.onnx file", qd_base_name(path));
    st = load(file, folder, budget, m, err);
    if (!st && !m->scheduler)
        st = qd_folder_scheduler(folder, &m->scheduler, err);
    qd_free(file);
    qd_free(folder);
    return st;
}
