/* formats.c - the table of model formats, and opening whatever a path holds. */
#include "model/onnx_int.h"

#include <stdio.h>
#include <string.h>

#include "base/fs.h"

/* --- configurations that travel in a weight file's metadata --- */

static qd_status config_from_meta(const qd_meta *meta, const char *key, qd_config **out, qd_err *err)
{
    const char *text = qd_meta_find(meta, key);
    char origin[64];

    if (!text || *out)
        return QD_OK;
    snprintf(origin, sizeof(origin), "metadata '%s'", key);
    return qd_config_parse(text, strlen(text), origin, out, err);
}

qd_status qd_model_configs_from_meta(qd_model *m, qd_err *err)
{
    qd_status st = config_from_meta(m->meta, "config", &m->config, err);
    return st ? st : config_from_meta(m->meta, "scheduler_config", &m->scheduler, err);
}

/* --- rows --- */

static qd_status bundle_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err)
{
    qd_meta *meta = NULL;
    qd_status st = qd_bundle_load(path, budget, &m->graph, &meta, &m->file_bytes, err);

    if (st)
        return st;
    st = qd_meta_copy(m->meta, meta, err);
    qd_meta_free(meta);
    return st ? st : qd_model_configs_from_meta(m, err);
}

static bool file_sniff(const char *path)
{
    return !qd_fs_is_dir(path) && qd_safetensors_sniff(path);
}

static qd_status file_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err)
{
    qd_status st = qd_safetensors_load(path, budget, &m->weights, m->meta, &m->file_bytes, err);
    return st ? st : qd_model_configs_from_meta(m, err);
}

static qd_status torch_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err)
{
    return qd_torch_open(path, budget, &m->weights, m->meta, &m->file_bytes, err);
}

static const qd_format format_folder = {
    .name = "diffusers",
    .summary =
        "Folder: config.json and *.safetensors (or .bin, .ckpt, .pt) at the top or in unet/, scheduler_config.json, also sharded.",
    .sniff = qd_folder_sniff,
    .load = qd_folder_load,
};
static const qd_format format_bundle = {
    .name = "bundle",
    .file = "model.safetensors",
    .summary = "One file written by quantd: a graph in the metadata, its constants as tensors.",
    .sniff = qd_bundle_sniff,
    .load = bundle_load,
};
static const qd_format format_safetensors = {
    .name = "safetensors",
    .file = "model.safetensors",
    .summary = "One weight file; the configuration as JSON text under the metadata key 'config'.",
    .sniff = file_sniff,
    .load = file_load,
};
static const qd_format format_torch = {
    .name = "torch",
    .file = "model.pt",
    .summary = "One checkpoint of PyTorch (.pt, .pth, .ckpt, .bin): tensors are rebuilt, no code in it is run.",
    .sniff = qd_torch_sniff,
    .load = torch_load,
};

static const qd_format format_onnx_folder = {
    .name = "onnx-folder",
    .summary =
        "Folder: one *.onnx file, its external data beside it, no *.safetensors; scheduler_config.json if there is one.",
    .sniff = qd_onnx_folder_sniff,
    .load = qd_onnx_folder_load,
};
static const qd_format format_onnx = {
    .name = "onnx",
    .file = "model.onnx",
    .summary = "One ONNX file, opset 7 to 21.",
    .sniff = qd_onnx_sniff,
    .load = qd_onnx_load,
};

/* Tried in this order: a bundle is a safetensors file too, and every folder may be one of diffusers. */
const qd_format *const qd_formats[] = {
    &format_onnx_folder, &format_folder, &format_bundle, &format_safetensors, &format_torch, &format_onnx, NULL
};

/* --- opening --- */

const char *qd_model_file_name(const char *path)
{
    for (int k = 0; qd_formats[k]; k++)
        if (qd_formats[k]->file && qd_formats[k]->sniff(path))
            return qd_formats[k]->file;
    return NULL;
}

qd_status qd_model_load_file(const char *path, qd_budget *budget, qd_model *m, qd_err *err)
{
    for (int k = 0; qd_formats[k]; k++)
        if (qd_formats[k]->sniff(path)) {
            m->format = qd_formats[k]->name;
            return qd_formats[k]->load(path, budget, m, err);
        }
    return qd_fail(err, QD_E_UNSUPPORTED,
                   "'%.200s' is in no format we read: a folder in the diffusers layout, a "
                   "safetensors file, a checkpoint of PyTorch, an ONNX file, or a bundle of quantd",
                   qd_base_name(path));
}

qd_status qd_model_open(const char *path, qd_budget *budget, qd_model **out, qd_err *err)
{
    qd_model *m = NULL;
    qd_status st = QD_OK;

    if (!qd_fs_exists(path))
        return qd_fail(err, QD_E_NOT_FOUND, "there is no file or folder '%.200s'", path);
    m = qd_calloc(1, sizeof(*m));
    if (!m)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a model");
    st = qd_meta_new(&m->meta, err);
    if (!st)
        st = qd_model_load_file(path, budget, m, err);
    if (st)
        goto out;
    *out = m;
    m = NULL;
out:
    qd_model_free(m);
    return st;
}

void qd_model_free(qd_model *m)
{
    if (!m)
        return;
    qd_model_free(m->first_stage);
    qd_weights_free(m->context);
    qd_graph_free(m->graph);
    qd_config_free(m->scheduler);
    qd_config_free(m->config);
    qd_weights_free(m->weights);
    qd_meta_free(m->meta);
    qd_free(m);
}
