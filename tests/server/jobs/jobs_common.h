/* jobs_common.h - a data folder with a store, a bus and the model that ships, for the tests of server/jobs. */
#ifndef TESTS_JOBS_COMMON_H
#define TESTS_JOBS_COMMON_H

#include "harness/harness.h"

#include <string.h>
#include <time.h>

#include "base/fs.h"
#include "base/mem.h"
#include "jobs/jobs.h"

typedef struct place {
    sv_settings settings;
    sv_store *store;
    sv_bus *bus;
    char model[40]; /* id of the model that ships; "" when it is not in this checkout */
    char data[512];
} place;

/* Small enough for a sanitizer build, large enough to be a real job. */
#define QUICK                                                                                                          \
    "{\"method\":\"mse\",\"steps\":6,\"calibration_samples\":16,\"calibration_steps\":6,\"measure_samples\":1,"        \
    "\"pairs\":2,\"seed\":7}"

static inline void place_model(place *p)
{
    const char *path = harness_source("deploy/models/fmnist-ddpm-unet");
    sv_model_row row = { .created_ms = sv_now_ms() }, added = { 0 };
    qd_err err = { 0 };
    char id[40];
    bool existing;

    if (!qd_fs_exists(path))
        return;
    check_ok(sv_model_inspect(path, &p->settings, &row.format, &row.role, &row.summary, &err), &err);
    sv_id_new(id, "mdl_");
    row.id = qd_strdup(id);
    row.name = qd_strdup("shipped");
    row.sha256 = qd_strdup("0000000000000000000000000000000000000000000000000000000000000000");
    row.path = qd_strdup(path);
    row.job_id = qd_strdup("");
    check_ok(sv_models_add(p->store, &row, &added, &existing, &err), &err);
    snprintf(p->model, sizeof p->model, "%s", added.id);
    sv_model_row_clear(&row);
    sv_model_row_clear(&added);
}

static inline void place_open(place *p)
{
    qd_err err = { 0 };
    memset(p, 0, sizeof *p);
    snprintf(p->data, sizeof p->data, "%s", harness_tmp());
    p->settings = (sv_settings){ .data_dir = p->data,
                                 .workers = 1,
                                 .threads = 1,
                                 .lease_ms = 30000,
                                 .heartbeat_ms = 300,
                                 .job_memory_bytes = 1ll << 30 };
    char *db = qd_fs_join(p->data, "db.sqlite3");
    check_ok(sv_store_open(db, &p->store, &err), &err);
    check_ok(sv_bus_new(&p->bus, &err), &err);
    qd_free(db);
    place_model(p);
}

static inline void place_close(place *p)
{
    sv_store_close(p->store);
    sv_bus_free(p->bus);
}

/* A body with kind, this model and params (JSON text), as text with room for more fields in `more` (",\"priority\":1"). */
static inline json_t *body_of(const char *kind, const char *model, const char *params, const char *more)
{
    char *text = qd_asprintf("{\"kind\":\"%s\",\"model\":\"%s\",\"params\":%s%s}", kind, model, params, more);
    json_t *o = json_loads(text, 0, NULL);
    assert_non_null(o);
    qd_free(text);
    return o;
}

/* Parsed and in the queue; its id into id. */
static inline void submit(place *p, const char *kind, const char *model, const char *params, const char *more,
                          char id[40])
{
    json_t *body = body_of(kind, model, params, more);
    sv_job_row parsed = { 0 }, added = { 0 };
    char pointer[128];
    bool existing;
    qd_err err = { 0 };
    check_ok(sv_job_parse(p->store, body, &parsed, pointer, &err), &err);
    check_ok(sv_jobs_add(p->store, &parsed, NULL, &added, &existing, &err), &err);
    snprintf(id, 40, "%s", added.id);
    sv_job_row_clear(&parsed);
    sv_job_row_clear(&added);
    json_decref(body);
}

static inline void nap_ms(int ms)
{
    const struct timespec t = { ms / 1000, (ms % 1000) * 1000000L };
    nanosleep(&t, NULL);
}

static inline bool is_over(const char *status)
{
    return strcmp(status, "succeeded") == 0 || strcmp(status, "failed") == 0 || strcmp(status, "canceled") == 0 ||
           strcmp(status, "dead") == 0;
}

/* Until the job is over, or (until_running) has been started and has said what it does. */
static inline void wait_for(place *p, const char *id, bool until_running, sv_job_row *out)
{
    qd_err err = { 0 };
    for (int k = 0; k < 6000; k++) {
        sv_job_row_clear(out);
        check_ok(sv_jobs_get(p->store, id, out, &err), &err);
        if (is_over(out->status) || (until_running && strcmp(out->status, "running") == 0 && out->total > 0))
            return;
        nap_ms(20);
    }
    fail_msg("job %s is still %s (%s %lld of %lld) after 120 s", id, out->status, out->phase, (long long)out->done,
             (long long)out->total);
}

static inline json_t *json_of(const char *text)
{
    json_t *o = json_loads(text, 0, NULL);
    if (!o)
        fail_msg("not JSON: '%s'", text);
    return o;
}

#endif
