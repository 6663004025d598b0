/* test_reporter.c - what an attempt says: thinned, numbered without gaps, stored and published alike. */
#include "jobs_common.h"

#include <math.h>
#include <pthread.h>

#include "jobs/jobs_int.h"

/* Everything the bus carried, in the order it came. */
typedef struct heard {
    pthread_mutex_t lock;
    int n, frames;
    int64_t seq[512];
    char last_type[16];
    uint8_t frame[4096]; /* the last one */
    size_t frame_size;
} heard;

static void on_message(void *ctx, const sv_message *m)
{
    heard *h = ctx;
    pthread_mutex_lock(&h->lock);
    if (h->n < 512)
        h->seq[h->n++] = m->seq;
    snprintf(h->last_type, sizeof h->last_type, "%s", m->type);
    if (m->frame && m->frame_size <= sizeof h->frame) {
        memcpy(h->frame, m->frame, m->frame_size);
        h->frame_size = m->frame_size;
        h->frames++;
    }
    pthread_mutex_unlock(&h->lock);
}

typedef struct scene {
    place p;
    heard heard;
    sv_listener *listener;
    sv_job_row job;
    sv_stop stop;
    sv_reporter *reporter;
    qd_run run;
} scene;

static bool scene_open(scene *s)
{
    char id[40];
    qd_err err = { 0 };
    memset(s, 0, sizeof *s);
    place_open(&s->p);
    if (!s->p.model[0])
        return false;
    pthread_mutex_init(&s->heard.lock, NULL);
    s->listener = sv_bus_listen(s->p.bus, NULL, on_message, &s->heard);
    submit(&s->p, "sample", s->p.model, "{}", "", id);
    check_ok(sv_jobs_claim(s->p.store, "test", sv_now_ms(), 60000, &s->job, &err), &err);
    assert_string_equal(s->job.id, id);
    sv_stop_init(&s->stop);
    check_ok(sv_reporter_new(s->p.store, s->p.bus, &s->job, &s->stop, &s->reporter, &err), &err);
    sv_reporter_attach(s->reporter, &s->run);
    return true;
}

static void scene_close(scene *s)
{
    sv_reporter_free(s->reporter);
    sv_job_row_clear(&s->job);
    sv_bus_unlisten(s->p.bus, s->listener);
    pthread_mutex_destroy(&s->heard.lock);
    place_close(&s->p);
}

/* The stored events of one type (NULL = all), and how many. */
static sv_event_row *stored(scene *s, const char *type, int *n)
{
    sv_event_row *rows = NULL;
    qd_err err = { 0 };
    check_ok(sv_events_read(s->p.store, s->job.id, 0, type, 1000, &rows, n, &err), &err);
    return rows;
}

static int count(scene *s, const char *type)
{
    int n = 0;
    sv_event_row *rows = stored(s, type, &n);
    sv_event_rows_free(rows, n);
    return n;
}

static void progress_is_thinned_but_ends_are_told(void **state)
{
    scene s;
    if (!scene_open(&s))
        skip();
    for (int phase = 0; phase < 3; phase++) {
        const char *names[] = { "load", "calibrate", "save" };
        for (int k = 0; k <= 1000; k++)
            qd_run_progress(&s.run, names[phase], k % 2 ? "layer.a" : NULL, k, 1000);
    }
    int n;
    sv_event_row *rows = stored(&s, "progress", &n);
    assert_in_range(n, 6, 8); /* first and last of three phases, and what half a second may let through */
    json_t *first = json_of(rows[0].data), *last = json_of(rows[n - 1].data);
    assert_string_equal(json_string_value(json_object_get(first, "phase")), "load");
    assert_int_equal(json_integer_value(json_object_get(first, "done")), 0);
    assert_string_equal(json_string_value(json_object_get(last, "phase")), "save");
    assert_int_equal(json_integer_value(json_object_get(last, "done")), 1000);
    assert_int_equal(json_integer_value(json_object_get(last, "eta_s")), 0);
    for (int k = 1; k < n; k++) {
        json_t *a = json_of(rows[k - 1].data), *b = json_of(rows[k].data);
        if (strcmp(json_string_value(json_object_get(a, "phase")), json_string_value(json_object_get(b, "phase"))) !=
            0) {
            assert_int_equal(json_integer_value(json_object_get(a, "done")), 1000);
            assert_int_equal(json_integer_value(json_object_get(b, "done")), 0);
        }
        json_decref(a);
        json_decref(b);
    }
    json_decref(first);
    json_decref(last);
    sv_event_rows_free(rows, n);

    sv_job_row row = { 0 };
    qd_err err = { 0 };
    check_ok(sv_jobs_get(s.p.store, s.job.id, &row, &err), &err);
    assert_string_equal(row.phase, "save");
    assert_int_equal(row.done, 1000);
    sv_job_row_clear(&row);
    scene_close(&s);
}

static void a_phase_that_stops_early_still_tells_its_last(void **state)
{
    scene s;
    if (!scene_open(&s))
        skip();
    qd_run_progress(&s.run, "a", NULL, 0, 100);
    qd_run_progress(&s.run, "a", NULL, 37, 100); /* held back */
    assert_int_equal(count(&s, "progress"), 1);
    qd_run_progress(&s.run, "b", NULL, 0, 100);
    int n;
    sv_event_row *rows = stored(&s, "progress", &n);
    assert_int_equal(n, 3);
    assert_non_null(strstr(rows[1].data, "\"done\":37"));
    sv_event_rows_free(rows, n);
    qd_run_progress(&s.run, "b", NULL, 5, 100);
    sv_reporter_flush(s.reporter);
    sv_reporter_flush(s.reporter); /* nothing is waiting any more */
    assert_int_equal(count(&s, "progress"), 4);
    scene_close(&s);
}

static void silence_is_broken_after_a_second(void **state)
{
    scene s;
    if (!scene_open(&s))
        skip();
    sv_reporter_tick(s.reporter, sv_now_ms() + 5000); /* nothing said yet: nothing to repeat */
    assert_int_equal(count(&s, "progress"), 0);
    qd_run_progress(&s.run, "a", "deep.layer", 3, 10);
    sv_reporter_tick(s.reporter, sv_now_ms() + 900);
    assert_int_equal(count(&s, "progress"), 1);
    sv_reporter_tick(s.reporter, sv_now_ms() + 1100);
    int n;
    sv_event_row *rows = stored(&s, "progress", &n);
    assert_int_equal(n, 2);
    assert_non_null(strstr(rows[1].data, "\"layer\":\"deep.layer\""));
    sv_event_rows_free(rows, n);
    /* What the throttle held back comes with the next tick after half a second. */
    qd_run_progress(&s.run, "a", NULL, 4, 10);
    sv_reporter_tick(s.reporter, sv_now_ms() + 600);
    rows = stored(&s, "progress", &n);
    assert_int_equal(n, 3);
    assert_non_null(strstr(rows[2].data, "\"done\":4"));
    sv_event_rows_free(rows, n);
    scene_close(&s);
}

static void other_events_say_what_the_api_says(void **state)
{
    scene s;
    int n;
    if (!scene_open(&s))
        skip();
    qd_run_metric(&s.run, "eps_sqnr_db", 980, 31.5);
    qd_run_metric(&s.run, "bad", 1, (double)NAN);
    qd_run_layer(&s.run, "conv_in", -1, 8, 8, (double)NAN, -1.0, 2.0);
    qd_run_layer(&s.run, "conv_out", 4, 0, 0, 40.0, -1.0, 2.0);
    qd_run_warn(&s.run, "unknown key '%s'", "a\"b");
    sv_event_row *rows = stored(&s, NULL, &n);
    assert_int_equal(n, 7); /* state queued, state running, and these five */
    assert_string_equal(rows[2].type, "metric");
    assert_string_equal(rows[2].data, "{\"name\":\"eps_sqnr_db\",\"step\":980,\"value\":31.5}");
    assert_string_equal(rows[3].data, "{\"name\":\"bad\",\"step\":1,\"value\":null}");
    json_t *layer = json_of(rows[4].data);
    assert_string_equal(rows[4].type, "layer");
    assert_true(json_is_null(json_object_get(layer, "step")) && json_is_null(json_object_get(layer, "sqnr_db")));
    assert_int_equal(json_integer_value(json_object_get(layer, "weight_bits")), 8);
    json_decref(layer);
    layer = json_of(rows[5].data);
    assert_int_equal(json_integer_value(json_object_get(layer, "step")), 4);
    json_decref(layer);
    assert_string_equal(rows[6].type, "warning");
    assert_string_equal(rows[6].data, "{\"message\":\"unknown key 'a\\\"b'\"}");
    sv_event_rows_free(rows, n);
    scene_close(&s);
}

static void a_sample_is_stored_and_framed(void **state)
{
    scene s;
    qd_err err = { 0 };
    if (!scene_open(&s))
        skip();
    static const char png[] = "not really a png";
    for (int k = 0; k < 2; k++) {
        sv_sample_row row = { .job_id = s.job.id,
                              .kind = (char *)"pair",
                              .path = (char *)"jobs/x/1.png",
                              .mime = (char *)"image/png",
                              .step = 50,
                              .index = k,
                              .width = 64,
                              .height = 32,
                              .psnr_db = k ? (double)NAN : 31.25 };
        check_ok(sv_reporter_sample(s.reporter, 2, &row, png, sizeof png, &err), &err);
    }
    int n;
    sv_event_row *rows = stored(&s, "sample", &n);
    assert_int_equal(n, 2);
    for (int k = 0; k < 2; k++) {
        json_t *o = json_of(rows[k].data);
        char url[128];
        snprintf(url, sizeof url, "/v1/jobs/%s/samples/%d", s.job.id, k);
        assert_string_equal(json_string_value(json_object_get(o, "url")), url);
        assert_true(k ? json_is_null(json_object_get(o, "psnr_db"))
                      : json_real_value(json_object_get(o, "psnr_db")) == 31.25);
        json_decref(o);
    }
    /* u32 kind, u32 n, header, bytes */
    const uint8_t *f = s.heard.frame;
    const size_t m = (size_t)f[4] << 24 | (size_t)f[5] << 16 | (size_t)f[6] << 8 | f[7];
    assert_int_equal(s.heard.frames, 2);
    assert_int_equal(f[3], 2);
    assert_int_equal(s.heard.frame_size, 8 + m + sizeof png);
    assert_memory_equal(f + 8 + m, png, sizeof png);
    json_t *header = json_loadb((const char *)f + 8, m, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(header, "seq")), rows[1].seq);
    assert_string_equal(json_string_value(json_object_get(header, "job")), s.job.id);
    assert_int_equal(json_integer_value(json_object_get(header, "width")), 64);
    json_decref(header);
    sv_event_rows_free(rows, n);
    scene_close(&s);
}

/* Two threads speak at once: what listeners hear is what is stored, in order, without a gap. */
static void *chatter(void *arg)
{
    scene *s = arg;
    for (int k = 0; k < 40; k++)
        qd_run_metric(&s->run, "x", k, k);
    return NULL;
}

static void listeners_hear_the_log_in_order(void **state)
{
    scene s;
    pthread_t a, b;
    if (!scene_open(&s))
        skip();
    sv_reporter_catch_up(s.reporter); /* the claim's own event */
    pthread_create(&a, NULL, chatter, &s);
    pthread_create(&b, NULL, chatter, &s);
    pthread_join(a, NULL);
    pthread_join(b, NULL);
    assert_int_equal(s.heard.n, 81);
    for (int k = 0; k < s.heard.n; k++)
        assert_int_equal(s.heard.seq[k], k + 2); /* 1 was "queued", said by whoever submitted */
    scene_close(&s);
}

static void a_lost_lease_silences_and_stops(void **state)
{
    scene s;
    qd_err err = { 0 };
    if (!scene_open(&s))
        skip();
    /* Somebody else takes the job over. */
    sv_job_row other = { 0 };
    bool cancel;
    check_ok(sv_jobs_heartbeat(s.p.store, s.job.id, s.job.fence, 1, &cancel, &err), &err);
    check_ok(sv_jobs_claim(s.p.store, "other", sv_now_ms(), 60000, &other, &err), &err);
    assert_string_equal(other.id, s.job.id);
    const int before = count(&s, NULL);
    qd_run_metric(&s.run, "x", 1, 1);
    qd_run_progress(&s.run, "a", NULL, 1, 2);
    assert_int_equal(count(&s, NULL), before);
    assert_true(atomic_load(&s.stop.flag));
    assert_int_equal(atomic_load(&s.stop.why), SV_STOP_LOST);
    check_fails(qd_run_check(&s.run, &err), QD_E_CANCELLED, NULL, &err);
    sv_job_row_clear(&other);
    scene_close(&s);
}

static void the_first_reason_to_stop_stays(void **state)
{
    sv_stop stop;
    sv_stop_init(&stop);
    assert_false(atomic_load(&stop.flag));
    sv_stop_raise(&stop, SV_STOP_CANCEL);
    sv_stop_raise(&stop, SV_STOP_SHUTDOWN);
    assert_true(atomic_load(&stop.flag));
    assert_int_equal(atomic_load(&stop.why), SV_STOP_CANCEL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(progress_is_thinned_but_ends_are_told),
        cmocka_unit_test(a_phase_that_stops_early_still_tells_its_last),
        cmocka_unit_test(silence_is_broken_after_a_second),
        cmocka_unit_test(other_events_say_what_the_api_says),
        cmocka_unit_test(a_sample_is_stored_and_framed),
        cmocka_unit_test(listeners_hear_the_log_in_order),
        cmocka_unit_test(a_lost_lease_silences_and_stops),
        cmocka_unit_test(the_first_reason_to_stop_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
