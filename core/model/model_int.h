/* model_int.h - what the files of this room share: an index of names, the JSON door, readers with a budget. */
#ifndef QD_MODEL_MODEL_INT_H
#define QD_MODEL_MODEL_INT_H

#include "base/mem.h"
#include "model/model.h"

struct json_t;

/* --- names.c: strings in the order they came, found by hash --- */
typedef struct qd_names {
    char **name; // [count]
    int count, capacity;
    uint32_t *slot; // [n_slots] index + 1, 0 = free; n_slots is a power of two, at least twice the capacity
    size_t n_slots;
} qd_names;

void qd_names_clear(qd_names *n);
int qd_names_find(const qd_names *n, const char *name); /* -1 when absent */
/* Copies; the name must be new (asserted) and becomes number count - 1. */
qd_status qd_names_add(qd_names *n, const char *name, qd_err *err);

/* Well-formed UTF-8 (RFC 3629), as JSON wants it. */
bool qd_utf8_valid(const char *s);

/* --- meta.c --- */
void qd_meta_swap(qd_meta *a, qd_meta *b);

/* --- config.c --- */
/* Text to one JSON object with unique keys. Depth and number of values are counted before the library builds anything, since a
 * value costs it some fifty times its two bytes of text. `origin` starts the words of a refusal. Free with json_decref. */
qd_status qd_json_load(const char *text, size_t size, const char *origin, int max_depth, size_t max_values,
                       struct json_t **out, qd_err *err);
/* An object whose values are all strings, read into `out` (QD_E_FORMAT otherwise, or when it is absent). */
qd_status qd_config_string_map(const qd_config *c, const char *key, qd_meta *out, qd_err *err);

/* --- safetensors.c --- */
#define QD_SAFETENSORS_HEADER_MAX 100000000u // bytes of JSON
#define QD_SAFETENSORS_NAME_MAX 512u         // bytes of a tensor's name
#define QD_SAFETENSORS_METADATA "__metadata__"
/* qd_safetensors_open drawing the copies of misaligned tensors from a budget, and telling the size of the file. Either of
 * budget, meta, file_bytes may be NULL. */
qd_status qd_safetensors_load(const char *path, qd_budget *budget, qd_weights **out, qd_meta *meta,
                              uint64_t *file_bytes, qd_err *err);
const char *qd_safetensors_dtype(qd_dtype t); /* "F32"; NULL for what the format does not have */
/* Does the file start like one? Its header as far as `text` reaches, NULL to just know. */
bool qd_safetensors_sniff(const char *path);
bool qd_safetensors_header_has(const char *path, const char *text);

/* --- folder.c --- */
/* Names in `dir` that end in `suffix`: how many, and the first in alphabetical order (qd_free). */
qd_status qd_folder_list(const char *dir, const char *suffix, int *n, char **first, qd_err *err);
/* The folder itself, or the only one inside it, where a packer put one around (qd_free). NULL when out of memory. */
char *qd_folder_root(const char *path);
/* scheduler_config.json of a folder, where there is one. */
qd_status qd_folder_scheduler(const char *dir, qd_config **out, qd_err *err);
bool qd_folder_sniff(const char *path);
qd_status qd_folder_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err);

/* --- bundle.c --- */
bool qd_bundle_sniff(const char *path);
qd_status qd_bundle_load(const char *path, qd_budget *budget, qd_graph **graph, qd_meta **meta, uint64_t *file_bytes,
                         qd_err *err);

/* --- formats.c --- */
/* A single file by the first row that knows it, filling m. */
qd_status qd_model_load_file(const char *path, qd_budget *budget, qd_model *m, qd_err *err);
/* m->config and m->scheduler from the metadata keys "config" and "scheduler_config", where they are present. */
qd_status qd_model_configs_from_meta(qd_model *m, qd_err *err);

const char *qd_base_name(const char *path); /* what follows the last '/' */

#endif
