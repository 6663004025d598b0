/* test_store.c - opening, migrating, refusing; ids; models, submissions, lists, events, samples, artifacts. */
#include "store_common.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/fs.h"
#include "store/store_int.h"

/* --- the file --- */

static void open_close_open(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);

    job_add(s, "job_1", 0);
    check_ok(sv_store_check(s, &err), &err);
    sv_store_close(s);
    sv_store_close(NULL);
    check_ok(sv_store_open(path, &s, &err), &err); /* migrations are not applied twice */
    assert_string_equal(job_status(s, "job_1"), "queued");
    sv_store_close(s);
    check_fails(sv_store_open("/nonexistent/folder/quantd.db", &s, &err), QD_E_IO, "/nonexistent/folder/quantd.db",
                &err);
}

static void script(sv_store *s, const char *sql)
{
    qd_err err = { 0 };
    sv_conn *c;

    check_ok(sv_conn_read(s, &c, &err), &err);
    check_ok(sv_script(c, sql, "test", &err), &err);
    check_ok(sv_conn_end(c, QD_OK, &err), &err);
}

static void other_databases_are_refused(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path), *other = NULL;

    script(s, "PRAGMA user_version = 1000");
    sv_store_close(s);
    check_fails(sv_store_open(path, &other, &err), QD_E_CONFLICT, "newer quantd", &err);

    s = store_fresh(path);
    script(s, "PRAGMA application_id = 5");
    sv_store_close(s);
    check_fails(sv_store_open(path, &other, &err), QD_E_CONFLICT, "another program", &err);

    snprintf(path, sizeof path, "%s/text.db", harness_tmp());
    char text[4096];
    memset(text, 'x', sizeof text);
    check_ok(qd_fs_write(path, text, sizeof text, &err), &err);
    check_fails(sv_store_open(path, &other, &err), QD_E_FORMAT, "not a database", &err);
    assert_null(other);
}

static void damage_is_seen(void **state)
{
    char path[512], id[40];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);

    for (int i = 0; i < 50; i++) {
        snprintf(id, sizeof id, "job_%d", i);
        job_add(s, id, 0);
    }
    script(s, "PRAGMA wal_checkpoint(TRUNCATE)");
    sv_store_close(s);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    const long size = ftell(f);
    for (long at = 3 * 4096; at < size; at += 4096) {
        fseek(f, at + 50, SEEK_SET);
        for (int i = 0; i < 100; i++)
            fputc(0xa5, f);
    }
    fclose(f);
    qd_status st = sv_store_open(path, &s, &err);
    if (!st) {
        st = sv_store_check(s, &err);
        sv_store_close(s);
    }
    assert_int_equal(st, QD_E_FORMAT);
    assert_non_null(strstr(err.text, "damaged"));
}

static void a_full_disk_has_words(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row in = job_words("job_big", NULL), out;
    static char body[2 << 20];

    script(s, "PRAGMA max_page_count = 60");
    memset(body, ' ', sizeof body - 1);
    body[0] = '{', body[sizeof body - 2] = '}';
    in.body = body;
    check_fails(sv_jobs_add(s, &in, NULL, &out, NULL, &err), QD_E_LIMIT, "disk full", &err);
    script(s, "PRAGMA max_page_count = 1000000");
    check_ok(sv_jobs_add(s, &in, NULL, &out, NULL, &err), &err); /* the store has not suffered */
    sv_job_row_clear(&out);
    check_ok(sv_store_check(s, &err), &err);
    sv_store_close(s);
}

static void a_transaction_inside_another_is_our_mistake(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_conn *c, *inner;

    check_ok(sv_conn_write(s, &c, &err), &err);
    check_fails(sv_conn_write(s, &inner, &err), QD_E_INTERNAL, "inside another", &err);
    check_fails(sv_conn_read(s, &inner, &err), QD_E_INTERNAL, "inside another", &err);
    check_ok(sv_conn_end(c, QD_OK, &err), &err);
    sv_store_close(s);
}

/* --- ids --- */

static void ids_are_unique_and_sort(void **state)
{
    char last[40] = "", id[40];

    for (int i = 0; i < 20000; i++) {
        sv_id_new(id, "job_");
        assert_int_equal(strlen(id), 30);
        assert_int_equal(strncmp(id, "job_", 4), 0);
        assert_int_equal(strspn(id + 4, "0123456789ABCDEFGHJKMNPQRSTVWXYZ"), 26);
        if (strcmp(id, last) <= 0)
            fail_msg("%s does not come after %s", id, last);
        memcpy(last, id, sizeof id);
    }
    /* The first ten digits are the clock: decoded, they are now. */
    int64_t ms = 0;
    for (int i = 0; i < 10; i++)
        ms = ms * 32 + (strchr("0123456789ABCDEFGHJKMNPQRSTVWXYZ", id[4 + i]) - "0123456789ABCDEFGHJKMNPQRSTVWXYZ");
    assert_true(llabs(ms - sv_now_ms()) < 2000);
}

/* --- submissions --- */

static void the_same_words_are_the_same_job(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row in = job_words(NULL, "{\"a\":1}"), first, again;
    bool existing = true;

    check_ok(sv_jobs_add(s, &in, "key-1", &first, &existing, &err), &err);
    assert_false(existing);
    assert_int_equal(strlen(first.id), 30);
    assert_string_equal(first.status, "queued");
    assert_int_equal(first.last_seq, 1);
    assert_string_equal(job_log(s, first.id), "state:queued");
    check_ok(sv_jobs_add(s, &in, "key-1", &again, &existing, &err), &err);
    assert_true(existing);
    assert_string_equal(again.id, first.id);
    sv_job_row_clear(&again);
    in.body = W("{\"a\":2}");
    check_fails(sv_jobs_add(s, &in, "key-1", &again, &existing, &err), QD_E_CONFLICT, "Idempotency-Key 'key-1'", &err);
    check_ok(sv_jobs_add(s, &in, "key-2", &again, &existing, &err), &err);
    assert_false(existing);
    sv_job_row_clear(&again);
    /* Kept for 24 h. */
    in.created_ms = 1000 + 24ll * 3600 * 1000;
    check_fails(sv_jobs_add(s, &in, "key-1", &again, &existing, &err), QD_E_CONFLICT, "key-1", &err);
    in.created_ms += 1;
    check_ok(sv_jobs_add(s, &in, "key-1", &again, &existing, &err), &err);
    assert_false(existing);
    sv_job_row_clear(&again);

    /* By its own id, as PUT does. */
    in = job_words("job_mine", "{\"a\":1}");
    check_ok(sv_jobs_add(s, &in, NULL, &again, &existing, &err), &err);
    assert_false(existing);
    sv_job_row_clear(&again);
    check_ok(sv_jobs_add(s, &in, NULL, &again, &existing, &err), &err);
    assert_true(existing);
    sv_job_row_clear(&again);
    in.body = W("{\"a\":3}");
    check_fails(sv_jobs_add(s, &in, NULL, &again, &existing, &err), QD_E_CONFLICT, "id 'job_mine'", &err);
    sv_job_row_clear(&first);
    sv_store_close(s);
}

static void bad_rows_are_refused(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row in = job_words("job_1", "{}"), out;

    in.max_attempts = 0;
    check_fails(sv_jobs_add(s, &in, NULL, &out, NULL, &err), QD_E_INVALID, "max_attempts", &err);
    in = job_words("job_0123456789012345678901234567890123456789", "{}");
    check_fails(sv_jobs_add(s, &in, NULL, &out, NULL, &err), QD_E_INVALID, "at most 39", &err);
    in = job_words("job_1", "{}");
    in.model_id = W("mdl_none");
    check_fails(sv_jobs_add(s, &in, NULL, &out, NULL, &err), QD_E_NOT_FOUND, "mdl_none", &err);
    in = job_words("job_1", "{}");
    in.params = W("{");
    check_fails(sv_jobs_add(s, &in, NULL, &out, NULL, &err), QD_E_INVALID, NULL, &err);
    check_fails(sv_jobs_get(s, "job_1", &out, &err), QD_E_NOT_FOUND, "no job 'job_1'", &err);
    sv_store_close(s);
}

static void delete_leaves_a_tombstone(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row row;
    sv_event_row *events = NULL;
    int n = 0;

    job_add(s, "job_1", 0);
    check_fails(sv_jobs_delete(s, "job_1", &err), QD_E_CONFLICT, "queued", &err);
    assert_false(sv_jobs_pruned(s, "job_1"));
    check_ok(sv_jobs_cancel(s, "job_1", 5, &row, &err), &err);
    sv_job_row_clear(&row);
    check_ok(sv_jobs_delete(s, "job_1", &err), &err);
    check_fails(sv_jobs_delete(s, "job_1", &err), QD_E_NOT_FOUND, "job_1", &err);
    check_fails(sv_jobs_get(s, "job_1", &row, &err), QD_E_NOT_FOUND, "was deleted", &err);
    assert_true(sv_jobs_pruned(s, "job_1"));
    assert_false(sv_jobs_pruned(s, "job_2"));
    check_ok(sv_events_read(s, "job_1", 0, NULL, 100, &events, &n, &err), &err);
    assert_int_equal(n, 0);
    sv_event_rows_free(events, n);
    sv_job_row in = job_words("job_1", "{}");
    check_fails(sv_jobs_add(s, &in, NULL, &row, NULL, &err), QD_E_CONFLICT, "not used twice", &err);
    check_ok(sv_store_check(s, &err), &err);
    sv_store_close(s);
}

/* --- lists --- */

/* "c b | more": the ids of a page. */
static const char *page(sv_store *s, const sv_list_query *q)
{
    static char text[256];
    qd_err err = { 0 };
    sv_job_row *rows = NULL;
    int n = 0;
    bool more = false;

    text[0] = '\0';
    check_ok(sv_jobs_list(s, q, &rows, &n, &more, &err), &err);
    for (int i = 0; i < n; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s ", rows[i].id);
    strcat(text, more ? "| more" : "|");
    sv_job_rows_free(rows, n);
    return text;
}

static void count_jobs(void *ctx, const char *kind, const char *status, int64_t n)
{
    snprintf((char *)ctx + strlen(ctx), 256 - strlen(ctx), "%s/%s=%d ", kind, status, (int)n);
}

static void lists_filter_and_continue(void **state)
{
    char path[512], counts[256] = "";
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row row, in;
    sv_job_row *rows = NULL;
    int n;
    bool more;

    job_add(s, "zz", 0); /* ids of clients need not sort */
    job_add(s, "mm", 0);
    in = job_words("aa", "{}");
    in.kind = W("quantize");
    check_ok(sv_jobs_add(s, &in, NULL, &row, NULL, &err), &err);
    sv_job_row_clear(&row);
    job_add(s, "kk", 0);
    check_ok(sv_jobs_cancel(s, "mm", 5, &row, &err), &err);
    sv_job_row_clear(&row);

    assert_string_equal(page(s, &(sv_list_query){ .limit = 10 }), "kk aa mm zz |");
    assert_string_equal(page(s, &(sv_list_query){ .limit = 10, .ascending = true }), "zz mm aa kk |");
    assert_string_equal(page(s, &(sv_list_query){ .limit = 2 }), "kk aa | more");
    assert_string_equal(page(s, &(sv_list_query){ .limit = 2, .after = "aa" }), "mm zz |");
    assert_string_equal(page(s, &(sv_list_query){ .limit = 1, .after = "zz", .ascending = true }), "mm | more");
    assert_string_equal(page(s, &(sv_list_query){ .limit = 10, .status = "canceled" }), "mm |");
    assert_string_equal(page(s, &(sv_list_query){ .limit = 10, .status = "queued,canceled", .kind = "sample" }),
                        "kk mm zz |");
    assert_string_equal(page(s, &(sv_list_query){ .limit = 10, .status = "queue" }), "|");
    assert_string_equal(page(s, &(sv_list_query){ .limit = 10, .kind = "quantize" }), "aa |");
    check_ok(sv_jobs_delete(s, "mm", &err), &err); /* a cursor that is deleted still marks its place */
    assert_string_equal(page(s, &(sv_list_query){ .limit = 10, .after = "mm" }), "zz |");
    check_fails(sv_jobs_list(s, &(sv_list_query){ .limit = 10, .after = "xx" }, &rows, &n, &more, &err), QD_E_INVALID,
                "'xx'", &err);
    check_fails(sv_jobs_list(s, &(sv_list_query){ .limit = 0 }, &rows, &n, &more, &err), QD_E_INVALID, "1..1000", &err);
    check_fails(sv_jobs_list(s, &(sv_list_query){ .limit = 1001 }, &rows, &n, &more, &err), QD_E_INVALID, "1001", &err);
    check_ok(sv_jobs_counts(s, count_jobs, counts, &err), &err);
    assert_string_equal(counts, "quantize/queued=1 sample/queued=2 ");
    sv_store_close(s);
}

/* --- models --- */

static sv_model_row model_words(const char *name, const char *sha)
{
    return (sv_model_row){ .name = W(name),
                           .sha256 = W(sha),
                           .path = W("models/x"),
                           .format = W("bundle"),
                           .role = W("denoiser"),
                           .summary = W("{\"params\":7}"),
                           .size_bytes = 123,
                           .created_ms = 77 };
}

static void models_live_and_die(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_model_row in = model_words("unet", "aaaa"), a, b, got, *rows = NULL;
    sv_job_row job, row;
    bool existing = true, last = true, more = true;
    int n = 0;

    check_ok(sv_models_add(s, &in, &a, &existing, &err), &err);
    assert_false(existing);
    assert_int_equal(strncmp(a.id, "mdl_", 4), 0);
    assert_string_equal(a.summary, "{\"params\":7}");
    assert_string_equal(a.job_id, "");
    assert_int_equal(a.size_bytes, 123);
    assert_int_equal(a.created_ms, 77);
    check_ok(sv_models_add(s, &in, &got, &existing, &err), &err);
    assert_true(existing);
    assert_string_equal(got.id, a.id);
    sv_model_row_clear(&got);
    in = model_words("other", "aaaa"); /* the same bytes under another name */
    check_ok(sv_models_add(s, &in, &b, &existing, &err), &err);
    assert_false(existing);
    in = model_words("unet", "bbbb"); /* a newer model of the same name */
    check_ok(sv_models_add(s, &in, &got, &existing, &err), &err);
    char newest[40];
    snprintf(newest, sizeof newest, "%s", got.id);
    sv_model_row_clear(&got);

    check_ok(sv_models_get(s, "unet", &got, &err), &err);
    assert_string_equal(got.id, newest);
    sv_model_row_clear(&got);
    check_ok(sv_models_get(s, a.id, &got, &err), &err);
    assert_string_equal(got.sha256, "aaaa");
    sv_model_row_clear(&got);
    check_fails(sv_models_get(s, "none", &got, &err), QD_E_NOT_FOUND, "'none'", &err);
    check_fails(sv_models_get(s, "", &got, &err), QD_E_NOT_FOUND, NULL, &err);

    check_ok(sv_models_list(s, &(sv_list_query){ .limit = 2 }, &rows, &n, &more, &err), &err);
    assert_int_equal(n, 2);
    assert_true(more);
    assert_string_equal(rows[0].id, newest);
    sv_model_rows_free(rows, n);
    check_ok(sv_models_list(s, &(sv_list_query){ .limit = 2, .after = b.id }, &rows, &n, &more, &err), &err);
    assert_int_equal(n, 1);
    assert_false(more);
    assert_string_equal(rows[0].id, a.id);
    sv_model_rows_free(rows, n);

    job = job_words("job_1", "{}");
    job.model_id = a.id;
    check_ok(sv_jobs_add(s, &job, NULL, &row, NULL, &err), &err);
    sv_job_row_clear(&row);
    check_fails(sv_models_delete(s, a.id, NULL, &last, &err), QD_E_CONFLICT, "1 unfinished job", &err);
    check_ok(sv_jobs_cancel(s, "job_1", 5, &row, &err), &err);
    sv_job_row_clear(&row);
    check_ok(sv_models_delete(s, a.id, NULL, &last, &err), &err);
    assert_false(last); /* "other" has the same bytes */
    assert_true(sv_models_pruned(s, a.id));
    check_ok(sv_models_delete(s, b.id, NULL, &last, &err), &err);
    assert_true(last);
    check_fails(sv_models_delete(s, b.id, NULL, &last, &err), QD_E_NOT_FOUND, b.id, &err);
    sv_model_row_clear(&a);
    sv_model_row_clear(&b);
    sv_store_close(s);
}

/* Names, ids and jobs of their own; bytes may be shared with a model. */
static void datasets_are_a_table_of_their_own(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_model_row in = model_words("same", "aaaa"), model, a, got, *rows;
    sv_job_row job, row;
    bool existing, last, last_of_blob, more;
    int n;

    check_ok(sv_models_add(s, &in, &model, &existing, &err), &err);
    in.id = W("");
    check_ok(sv_datasets_add(s, &in, &a, &existing, &err), &err);
    assert_false(existing);
    assert_int_equal(strncmp(a.id, "dst_", 4), 0);
    check_ok(sv_datasets_get(s, "same", &got, &err), &err);
    assert_string_equal(got.id, a.id);
    sv_model_row_clear(&got);
    check_fails(sv_datasets_get(s, model.id, &got, &err), QD_E_NOT_FOUND, "no data set", &err);
    check_fails(sv_models_get(s, a.id, &got, &err), QD_E_NOT_FOUND, "no model", &err);
    check_ok(sv_datasets_list(s, &(sv_list_query){ .limit = 5 }, &rows, &n, &more, &err), &err);
    assert_int_equal(n, 1);
    assert_string_equal(rows[0].id, a.id);
    sv_model_rows_free(rows, n);

    job = job_words("job_1", "{}");
    job.dataset_id = W("dst_none");
    check_fails(sv_jobs_add(s, &job, NULL, &row, NULL, &err), QD_E_NOT_FOUND, "no data set 'dst_none'", &err);
    job.dataset_id = a.id;
    check_ok(sv_jobs_add(s, &job, NULL, &row, NULL, &err), &err);
    assert_string_equal(row.dataset_id, a.id);
    sv_job_row_clear(&row);
    check_fails(sv_datasets_delete(s, a.id, &last, &last_of_blob, &err), QD_E_CONFLICT, "used by 1 unfinished job",
                &err);
    check_ok(sv_jobs_cancel(s, "job_1", 5, &row, &err), &err);
    sv_job_row_clear(&row);
    check_ok(sv_datasets_delete(s, a.id, &last, &last_of_blob, &err), &err);
    assert_true(last);
    assert_false(last_of_blob); /* the model has the same bytes */
    assert_true(sv_datasets_pruned(s, a.id));
    check_ok(sv_models_delete(s, model.id, &last, &last_of_blob, &err), &err);
    assert_true(last && last_of_blob);
    sv_model_row_clear(&a);
    sv_model_row_clear(&model);
    sv_store_close(s);
}

/* --- what a job leaves --- */

static void samples_and_artifacts(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row job;
    sv_sample_row sample = { .job_id = W("job_1"),
                             .kind = W("pair"),
                             .path = W("a.png"),
                             .mime = W("image/png"),
                             .step = 20,
                             .index = 1,
                             .width = 64,
                             .height = 32,
                             .psnr_db = 31.25 },
                  *samples = NULL;
    sv_artifact_row artifact = { .job_id = W("job_1"),
                                 .name = W("rep\"ort.json"),
                                 .mime = W("application/json"),
                                 .sha256 = W("cafe"),
                                 .path = W("x"),
                                 .size_bytes = 9,
                                 .created_ms = 5 },
                    *artifacts = NULL, one;
    sv_event_row *events = NULL;
    int64_t n = -1, seq = 0;
    int count = 0;

    job_add(s, "job_1", 0);
    check_ok(sv_jobs_claim(s, "w", 2000, 1000, &job, &err), &err);
    check_ok(sv_samples_add(s, job.fence, 1, &sample, "{\"index\":1}", 2100, &n, &seq, &err), &err);
    assert_int_equal(n, 0);
    assert_int_equal(seq, 3);
    sample.psnr_db = NAN;
    check_ok(sv_samples_add(s, job.fence, 1, &sample, "{}", 2100, &n, &seq, &err), &err);
    assert_int_equal(n, 1);
    check_ok(sv_samples_list(s, "job_1", &samples, &count, &err), &err);
    assert_int_equal(count, 2);
    assert_string_equal(samples[0].kind, "pair");
    assert_int_equal(samples[0].step, 20);
    assert_int_equal(samples[0].index, 1);
    assert_int_equal(samples[0].width, 64);
    assert_int_equal(samples[0].height, 32);
    assert_true(samples[0].psnr_db == 31.25);
    assert_true(isnan(samples[1].psnr_db));
    assert_int_equal(samples[1].n, 1);
    sv_sample_rows_free(samples, count);

    check_ok(sv_artifacts_add(s, job.fence, 1, &artifact, &seq, &err), &err);
    assert_int_equal(seq, 5);
    artifact.sha256 = W("beef"); /* made again by a later attempt */
    check_ok(sv_artifacts_add(s, job.fence, 1, &artifact, &seq, &err), &err);
    check_ok(sv_artifacts_list(s, "job_1", &artifacts, &count, &err), &err);
    assert_int_equal(count, 1);
    assert_string_equal(artifacts[0].sha256, "beef");
    assert_int_equal(strncmp(artifacts[0].id, "art_", 4), 0);
    sv_artifact_rows_free(artifacts, count);
    check_ok(sv_artifacts_get(s, "job_1", "rep\"ort.json", &one, &err), &err);
    assert_int_equal(one.size_bytes, 9);
    sv_artifact_row_clear(&one);
    check_fails(sv_artifacts_get(s, "job_1", "none", &one, &err), QD_E_NOT_FOUND, "no artifact 'none'", &err);

    check_ok(sv_events_read(s, "job_1", 4, "artifact", 1, &events, &count, &err), &err);
    assert_int_equal(count, 1);
    assert_int_equal(events[0].seq, 5);
    assert_non_null(strstr(events[0].data, "\"name\":\"rep\\\"ort.json\""));
    assert_non_null(strstr(events[0].data, "\"sha256\":\"cafe\""));
    sv_event_rows_free(events, count);
    check_ok(sv_events_read(s, "job_1", 6, NULL, 10, &events, &count, &err), &err);
    assert_int_equal(count, 0);
    sv_event_rows_free(events, count);
    check_fails(sv_events_add(s, "job_1", job.fence, 1, "log", "not json", 1, &seq, &err), QD_E_INVALID, NULL, &err);
    check_ok(sv_events_add(s, "job_1", -1, 1, "log", "{}", 1, &seq, &err), &err);
    assert_int_equal(seq, 7); /* the refused one left no hole */
    sv_job_row_clear(&job);
    sv_store_close(s);
}

enum { WRITERS = 4, EACH = 100 };

typedef struct writer {
    sv_store *store;
    int64_t fence, numbers[EACH];
    int failures;
} writer;

static void *write_events(void *p)
{
    writer *w = p;

    for (int i = 0; i < EACH; i++)
        if (sv_events_add(w->store, "job_1", w->fence, 1, "log", "{}", 1, &w->numbers[i], NULL))
            w->failures++;
    return NULL;
}

static void numbers_have_no_gaps_under_four_writers(void **state)
{
    char path[512], seen[WRITERS * EACH + 3] = { 0 };
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    sv_job_row job;
    writer writers[WRITERS];
    pthread_t threads[WRITERS];

    job_add(s, "job_1", 0);
    check_ok(sv_jobs_claim(s, "w", 2000, 1000, &job, &err), &err);
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (writer){ .store = s, .fence = i % 2 ? job.fence : -1 };
        assert_int_equal(pthread_create(&threads[i], NULL, write_events, &writers[i]), 0);
    }
    for (int i = 0; i < WRITERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(writers[i].failures, 0);
        for (int k = 0; k < EACH; k++) {
            const int64_t seq = writers[i].numbers[k];
            assert_true(seq >= 3 && seq < (int64_t)sizeof seen);
            assert_int_equal(seen[seq], 0);
            seen[seq] = 1;
        }
    }
    job_log(s, "job_1"); /* checks 1, 2, 3, .. */
    sv_job_row_clear(&job);
    check_ok(sv_jobs_get(s, "job_1", &job, &err), &err);
    assert_int_equal(job.last_seq, 2 + WRITERS * EACH);
    sv_job_row_clear(&job);
    sv_store_close(s);
}

/* Every allocation of ours failing in turn: either it is told, or it did no harm; the database stays sound. */
static void out_of_memory(void **state)
{
    char path[512];
    qd_err err = { 0 };
    sv_store *s = store_fresh(path);
    int told = 0;

    for (long k = 0;; k++) {
        char id[40];
        sv_job_row in, row = { 0 }, *rows = NULL;
        sv_event_row *events = NULL;
        int n = 0, m = 0;
        bool more;

        snprintf(id, sizeof id, "job_%ld", k);
        in = job_words(id, "{}");
        qd_mem_fault_set(k);
        qd_status st = sv_jobs_add(s, &in, "key", &row, NULL, NULL);
        sv_job_row_clear(&row);
        if (!st)
            st = sv_jobs_claim(s, "w", 5000, 1000, &row, NULL);
        if (!st)
            st = sv_jobs_finish(s, row.id, row.fence, "succeeded", NULL, "{}", 6000, NULL, NULL);
        if (!st)
            st = sv_jobs_list(s, &(sv_list_query){ .limit = 5 }, &rows, &n, &more, NULL);
        if (!st)
            st = sv_events_read(s, row.id, 0, NULL, 10, &events, &m, NULL);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        sv_job_row_clear(&row);
        sv_job_rows_free(rows, n);
        sv_event_rows_free(events, m);
        if (st)
            assert_int_equal(st, QD_E_NOMEM);
        told += st != QD_OK;
        script(s, "DELETE FROM jobs");
        if (!hit)
            break;
    }
    assert_true(told > 20);
    check_ok(sv_store_check(s, &err), &err);
    sv_store_close(s);
}

/* Threads come and go; each took a connection and gave it back. */
static void *one_read(void *p)
{
    sv_job_row row = { 0 };
    if (sv_jobs_get(p, "job_1", &row, NULL))
        abort();
    sv_job_row_clear(&row);
    return NULL;
}

static int open_files(void)
{
    int n = 0;
    for (int fd = 0; fd < 1024; fd++)
        n += dup2(fd, fd) == fd;
    return n;
}

static void connections_end_with_their_threads(void **state)
{
    char path[512];
    sv_store *s = store_fresh(path);
    pthread_t thread;

    job_add(s, "job_1", 0);
    const int before = open_files();
    for (int i = 0; i < 20; i++) {
        assert_int_equal(pthread_create(&thread, NULL, one_read, s), 0);
        pthread_join(thread, NULL);
    }
    assert_true(open_files() <= before + 2); /* SQLite may keep a descriptor for the next one, because of POSIX locks */
    sv_store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(open_close_open),
        cmocka_unit_test(other_databases_are_refused),
        cmocka_unit_test(damage_is_seen),
        cmocka_unit_test(a_full_disk_has_words),
        cmocka_unit_test(a_transaction_inside_another_is_our_mistake),
        cmocka_unit_test(ids_are_unique_and_sort),
        cmocka_unit_test(the_same_words_are_the_same_job),
        cmocka_unit_test(bad_rows_are_refused),
        cmocka_unit_test(delete_leaves_a_tombstone),
        cmocka_unit_test(lists_filter_and_continue),
        cmocka_unit_test(models_live_and_die),
        cmocka_unit_test(datasets_are_a_table_of_their_own),
        cmocka_unit_test(samples_and_artifacts),
        cmocka_unit_test(numbers_have_no_gaps_under_four_writers),
        cmocka_unit_test(out_of_memory),
        cmocka_unit_test(connections_end_with_their_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
