/* fuzz_http_json.c - any bytes as the body of a job: refused with words and a pointer, or rows that hold together. */
#include "fuzz.h"

#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "http/http_int.h"

/* A database with two models, made once; its file has no name any more. */
static sv_store *shared_store(void)
{
    static sv_store *store;
    char dir[] = "/tmp/quantd-fuzz-XXXXXX", path[64], none[] = "", empty[] = "{}", hash[] = "00", at[] = "models/none",
         format[] = "diffusers", role[] = "denoiser", name[] = "den", bundle[] = "bun",
         quantized[] = "{\"quantized\":true}";
    sv_model_row out = { 0 };
    qd_err err = { 0 };
    bool existing;
    if (store)
        return store;
    must(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/db", dir);
    must(sv_store_open(path, &store, &err) == QD_OK);
    sv_model_row row = { .id = none,
                         .name = name,
                         .sha256 = hash,
                         .path = at,
                         .format = format,
                         .role = role,
                         .summary = empty,
                         .job_id = none,
                         .created_ms = 1 };
    must(sv_models_add(store, &row, &out, &existing, &err) == QD_OK);
    sv_model_row_clear(&out);
    row.name = bundle;
    row.summary = quantized;
    must(sv_models_add(store, &row, &out, &existing, &err) == QD_OK);
    sv_model_row_clear(&out);
    must(qd_fs_remove_tree(dir, &err) == QD_OK);
    return store;
}

static void must_be_object(const char *text)
{
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    must(json_is_object(o));
    json_decref(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sv_store *store = shared_store();
    sv_job_row row = { 0 };
    char pointer[128];
    qd_err err = { 0 };
    if (!sv_json_depth_ok((const char *)data, size, 32))
        return 0;
    json_t *body = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    if (!body)
        return 0;
    memset(pointer, 'x', sizeof pointer);
    const qd_status st = sv_job_parse(store, body, &row, pointer, &err);
    must(memchr(pointer, '\0', sizeof pointer));
    if (st) {
        must(err.text[0] && !row.id && (!pointer[0] || pointer[0] == '/'));
    } else {
        must(!pointer[0] && row.id[0] && sv_kind_find(row.kind) && sv_method_find(sv_kind_find(row.kind), row.method));
        must(row.model_id[0] && row.max_attempts >= 1 && row.time_limit_s >= 1);
        must_be_object(row.body);
        must_be_object(row.params);
        must_be_object(row.metadata);
        sv_job_row_clear(&row);
    }
    json_decref(body);
    return 0;
}
