/* model.h - files in, files out: sniffing, safetensors, diffusers folders, quantized bundles.
 *
 * Everything read here comes from strangers: every size is checked against the file and against limits before it is used, and
 * the words of a refusal name the tensor, the byte, the limit. */
#ifndef QD_MODEL_MODEL_H
#define QD_MODEL_MODEL_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/mem.h"
#include "graph/graph.h"
#include "tensor/tensor.h"

/* --- text that travels with a model: an ordered map of strings (values may be JSON text) --- */
typedef struct qd_meta qd_meta;
qd_status qd_meta_new(qd_meta **out, qd_err *err);
void qd_meta_free(qd_meta *m);
qd_status qd_meta_set(qd_meta *m, const char *key, const char *value, qd_err *err); /* copies; replaces */
qd_status qd_meta_copy(qd_meta *dst, const qd_meta *src, qd_err *err);
const char *qd_meta_find(const qd_meta *m, const char *key); /* lent, NULL when absent */
int qd_meta_count(const qd_meta *m);
void qd_meta_at(const qd_meta *m, int k, const char **key, const char **value);

/* --- named tensors --- */
typedef struct qd_weights qd_weights;
qd_status qd_weights_new(qd_weights **out, qd_err *err);
void qd_weights_free(qd_weights *w);
qd_status qd_weights_add(qd_weights *w, const char *name, const qd_tensor *t,
                         qd_err *err); /* shares storage; names unique */
const qd_tensor *qd_weights_find(const qd_weights *w, const char *name);
int qd_weights_count(const qd_weights *w);
const char *qd_weights_name(const qd_weights *w, int k);
const qd_tensor *qd_weights_at(const qd_weights *w, int k);

/* --- safetensors (diffusion_models.md 1) ---
 * Mapped read: tensors point into the file. Refused with QD_E_FORMAT / QD_E_LIMIT / QD_E_UNSUPPORTED: header over 100 MB, header
 * past the end, header that is not one JSON object with unique keys, unknown dtype, offsets outside the file, overlapping,
 * leaving holes, or not equal to shape x dtype. meta gets `__metadata__` (may be NULL). */
qd_status qd_safetensors_open(const char *path, qd_weights **out, qd_meta *meta, qd_err *err);
/* The same over borrowed bytes that outlive the tensors (for tests and fuzzing). */
qd_status qd_safetensors_parse(const void *data, size_t size, qd_weights **out, qd_meta *meta, qd_err *err);
/* The header lists the tensors in the order given; data starts 64-byte aligned and is laid out by element size, so that every
 * tensor lies on its own alignment. All or nothing. sha256 may be NULL (QD_SHA256_HEX bytes otherwise). Same
 * input, same bytes. */
qd_status qd_safetensors_save(const char *path, const qd_weights *w, const qd_meta *meta, char *sha256_hex,
                              qd_err *err);

/* --- checkpoints of PyTorch (torch.c): .pt, .pth, .ckpt, .bin, as archive or as stream; pickles of protocol 2 to 5 ---
 * No code of a file is ever run. Refused by name: everything its pickle calls for that rebuilds no tensor (QD_E_UNSUPPORTED), what
 * does not lie in its storage or its file (QD_E_FORMAT), what asks for more than it can need (QD_E_LIMIT). Tensors point into the
 * mapped file where they lie plainly, and those of one storage share it.
 * A training file's network is picked by pickle_pick.c; meta (may be NULL) says what came of it under these keys. */
#define QD_TORCH_LAYOUT "torch.layout" /* "zip" or "stream" */
#define QD_TORCH_CHOSEN "torch.chosen" /* path of the dict: "state_dict", "[0]", "" for the file itself */
#define QD_TORCH_PREFIX "torch.prefix" /* was cut off all names; absent when nothing was */
#define QD_TORCH_BESIDE "torch.beside" /* paths of other dicts with tensors; absent when there are none */
qd_status qd_torch_open(const char *path, qd_budget *budget, qd_weights **out, qd_meta *meta, uint64_t *file_bytes,
                        qd_err *err);
/* The same over borrowed bytes that outlive the tensors (for tests and fuzzing). */
qd_status qd_torch_parse(const void *data, size_t size, qd_budget *budget, qd_weights **out, qd_meta *meta,
                         qd_err *err);
/* Does it start like one? Its archive is a zip, which others would unpack. */
bool qd_torch_sniff(const char *path);

/* Codes of few bits (I4, I6), which safetensors has no word for, as U8 [rows, bytes of a row]; any other tensor as it is. A view
 * without a reference of its own. */
qd_tensor qd_weights_as_bytes(const qd_tensor *t);

/* --- configuration files: a JSON object, read with typed getters --- */
typedef struct qd_config qd_config;
qd_status qd_config_parse(const char *text, size_t size, const char *origin, qd_config **out, qd_err *err);
void qd_config_free(qd_config *c);
const char *qd_config_text(const qd_config *c); /* canonical JSON, lent */
/* A copy in which `key` is this list of whole numbers, whatever it was. */
qd_status qd_config_with_ints(const qd_config *c, const char *key, const int64_t *values, int n, qd_config **out,
                              qd_err *err);
bool qd_config_has(const qd_config *c, const char *key); /* present and not null */
/* Absent or null: *out stays as it is (put the default there first). Wrong type or range: QD_E_FORMAT naming key and value. */
qd_status qd_config_int(const qd_config *c, const char *key, int64_t min, int64_t max, int64_t *out, qd_err *err);
qd_status qd_config_number(const qd_config *c, const char *key, double *out, qd_err *err);
qd_status qd_config_bool(const qd_config *c, const char *key, bool *out, qd_err *err);
qd_status qd_config_string(const qd_config *c, const char *key, const char **out, qd_err *err); /* lent */
/* Arrays: at most cap entries; *n is what was there, unchanged when absent. A single value counts as an array of one. */
qd_status qd_config_ints(const qd_config *c, const char *key, int64_t min, int64_t max, int64_t *out, int cap, int *n,
                         qd_err *err);
qd_status qd_config_numbers(const qd_config *c, const char *key, double *out, int cap, int *n, qd_err *err);
qd_status qd_config_strings(const qd_config *c, const char *key, const char **out, int cap, int *n, qd_err *err);
/* Each top-level key in turn, so that callers can warn about those they do not know. */
int qd_config_count(const qd_config *c);
const char *qd_config_key(const qd_config *c, int k);

/* --- a model as found on disk --- */
#define QD_FIRST_STAGE_MISSING "first_stage.missing" /* in meta: why the one of a pipeline is not there */
typedef struct qd_model {
    const char *format;           /* name of the row of formats.c that read it */
    qd_weights *weights;          /* float weights by their names; NULL when `graph` is set */
    qd_config *config;            /* the network's config.json; NULL when the format has none */
    qd_config *scheduler;         /* scheduler_config.json; NULL when absent */
    qd_graph *graph;              /* formats that carry their own graph (bundles) */
    struct qd_model *first_stage; /* of latent diffusion, from vae/ or vqvae/; NULL when absent */
    qd_weights *context;          /* context.safetensors beside the network: what it can be told; NULL when absent */
    qd_meta *meta;                /* whatever text came along */
    uint64_t file_bytes;          /* size of the weight files */
} qd_model;

typedef struct qd_format {
    const char *name, *summary;
    const char *file; /* what a lone file of it is called in a folder of its own; NULL: it is a folder */
    /* Does this path look like ours? Cheap; never fails. */
    bool (*sniff)(const char *path);
    qd_status (*load)(const char *path, qd_budget *budget, qd_model *m, qd_err *err);
} qd_format;
extern const qd_format *const qd_formats[]; /* NULL-terminated */
/* What the file at `path` should be called, by its bytes: "model.onnx"; NULL when no row knows it. */
const char *qd_model_file_name(const char *path);

/* path: a folder (diffusers layout: config.json or unet/config.json, *.safetensors, scheduler) or a file. */
qd_status qd_model_open(const char *path, qd_budget *budget, qd_model **out, qd_err *err);
void qd_model_free(qd_model *m);

/* --- files for others --- */

/* A graph as an ONNX file of opset 13 or 21: names of inputs, outputs and constants stay. Integer layers become QuantizeLinear and
 * DequantizeLinear around float ones (QDQ); weights of 4 bits travel as INT4 in opset 21, in 8 bits before; a map of fewer
 * than 8 bits is held in its range by a Clip. QD_E_UNSUPPORTED names a node without a counterpart, QD_E_LIMIT a file over 2 GB. */
qd_status qd_onnx_save(const char *path, const qd_graph *g, const char *name, int opset, char *sha256_hex, qd_err *err);
/* The tensors of a graph under the names they had as floats, codes spelled out: the weight of a quantized layer is "<layer>.weight"
 * again, halves of a split one joined. */
qd_status qd_graph_float_weights(const qd_graph *g, qd_budget *budget, qd_weights **out, qd_err *err);
/* The other way: g as somebody computes it who has only those tensors, layers of codes in floats. Names the tensor that is missing
 * or has another shape. */
qd_status qd_graph_with_weights(const qd_graph *g, const qd_weights *weights, qd_budget *budget, qd_graph **out,
                                qd_err *err);
/* The same tensors as GGUF version 3 (gguf.c): weights of layers in blocks, type "q8_0", "q4_0" or "auto" (4 bits where they have them).
 * Codes stay as they are where a block has one scale; the scale becomes a half float. */
qd_status qd_gguf_save(const char *path, const qd_graph *g, const qd_meta *meta, const char *type, qd_budget *budget,
                       char *sha256_hex, qd_err *err);
/* What such a file holds, as floats. parse: over borrowed bytes. meta may be NULL. */
qd_status qd_gguf_open(const char *path, qd_budget *budget, qd_weights **out, qd_meta *meta, qd_err *err);
qd_status qd_gguf_parse(const void *data, size_t size, qd_budget *budget, qd_weights **out, qd_meta *meta, qd_err *err);

/* --- quantized bundle: one safetensors file holding codes, scales and float leftovers; its metadata holds the graph ("graph"),
 * and whatever the caller put into meta (config, scheduler_config, manifest, ..). Loading verifies the graph like any
 * stranger's. The keys "format" and "graph" are the bundle's own: a caller's are left out when saving, and opening gives back
 * the others only, so that saving again gives the same bytes. --- */
#define QD_BUNDLE_FORMAT "quantd-bundle-1"
qd_status qd_bundle_save(const char *path, const qd_graph *g, const qd_meta *meta, char *sha256_hex, qd_err *err);
qd_status qd_bundle_open(const char *path, qd_graph **graph, qd_meta **meta, qd_err *err);
/* The same over borrowed bytes that outlive the graph (for tests and fuzzing). */
qd_status qd_bundle_parse(const void *data, size_t size, qd_graph **graph, qd_meta **meta, qd_err *err);

/* --- ONNX, opset 7 to 21: the graph of a file's bytes, which may go afterwards. External data is refused: it comes with a folder
 * through qd_model_open. Constants are drawn from budget (may be NULL), which must outlive the graph. --- */
qd_status qd_onnx_read(const void *data, size_t size, qd_budget *budget, qd_graph **graph, qd_err *err);

#endif
