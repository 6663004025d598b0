/* test_ws.c - the WebSocket protocol of API.md 4, driven by a client over a socket pair. */
#include "live_common.h"

static const sv_loop_options plain;

static void hello_comes_first(void **state)
{
    live l;
    client c;
    given g;

    live_start(&l, NULL, plain);
    client_open(&c, &l, &g, NULL, 0);
    client_subscribe(&c, "job_1", 0);
    client_expect_error(&c, "hello_first", "hello");
    client_expect_quiet(&c); /* ping needs none */
    client_say(&c,
               "{\"op\":\"hello\",\"features\":[\"binary_samples\",\"telepathy\",\"layers\"],\"token\":\"anything\"}");
    json_t *o = client_json(&c);
    assert_string_equal(json_text(o, "op"), "hello");
    assert_int_equal(strncmp(json_text(o, "session"), "ses_", 4), 0);
    assert_int_equal(strncmp(json_text(o, "generation"), "gen_", 4), 0);
    assert_int_equal(json_array_size(json_object_get(o, "features")), 2);
    json_decref(o);
    assert_int_equal(sv_loop_sockets(l.loop), 1);
    client_free(&c);
    given_wait(&g);
    assert_int_equal(sv_loop_sockets(l.loop), 0);
    live_end(&l);
}

static void nonsense_gets_words_and_the_socket_stays(void **state)
{
    static const struct {
        const char *text, *code, *words;
    } rows[] = {
        { "{\"op\":", "malformed", "not JSON" },
        { "", "malformed", "not JSON" },
        { "[]", "malformed", "\"op\"" },
        { "{\"op\":7}", "malformed", "\"op\"" },
        { "{\"op\":\"ping\",\"op\":\"ping\"}", "malformed", "not JSON" },
        { "{\"op\":\"dance\"}", "malformed", "\"op\" must be" },
        { "{\"op\":\"subscribe\"}", "malformed", "\"job\"" },
        { "{\"op\":\"subscribe\",\"job\":\"\"}", "malformed", "\"job\"" },
        { "{\"op\":\"subscribe\",\"job\":\"0123456789012345678901234567890123456789\"}", "malformed", "\"job\"" },
        { "{\"op\":\"subscribe\",\"job\":\"job_1\",\"after_seq\":-1}", "malformed", "after_seq" },
        { "{\"op\":\"subscribe\",\"job\":\"job_1\",\"after_seq\":1.5}", "malformed", "after_seq" },
        { "{\"op\":\"subscribe\",\"job\":\"job_none\"}", "not_found", "job_none" },
        { "{\"op\":\"cancel\",\"job\":\"job_none\"}", "unsupported", "cancel" },
        { "{\"op\":\"hello\",\"features\":\"all\"}", "malformed", "features" },
        { "{\"op\":\"hello\",\"token\":17}", "malformed", "token" },
        { "{\"op\":\"ack\",\"job\":\"job_1\",\"seq\":\"x\"}", "malformed", "seq" },
    };
    live l;
    client c;
    given g;

    live_start(&l, NULL, plain);
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        client_say(&c, rows[i].text);
        client_expect_error(&c, rows[i].code, rows[i].words);
    }
    client_send_as(&c, WSLAY_BINARY_FRAME, "\0\0\0\1", 4);
    client_expect_error(&c, "malformed", "text messages");
    client_expect_quiet(&c);
    client_free(&c);
    live_end(&l);
}

static void replay_then_live_then_end(void **state)
{
    live l;
    client c;
    given g;

    live_start(&l, NULL, plain);
    const int64_t fence = live_job(&l, "job_1"); /* events 1 and 2 */
    for (int i = 0; i < 500; i++)                /* more than one piece of the log */
        live_say(&l, "job_1", fence, "log", "{\"text\":\"before\"}", NULL);
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_subscribe(&c, "job_1", 0);
    client_expect(&c, "event", "state", "job_1", 1);
    client_expect(&c, "event", "state", "job_1", 2);
    for (int i = 3; i <= 502; i++)
        client_expect(&c, "event", "log", "job_1", i);
    client_expect_quiet(&c);
    live_say(&l, "job_1", fence, "warning", "{\"text\":\"\\u00e9\"}", NULL);
    client_expect(&c, "event", "warning", "job_1", 503);
    live_finish(&l, "job_1", fence);
    client_expect(&c, "event", "state", "job_1", 504);
    client_expect(&c, "end", "end", "job_1", 505);
    /* The subscription ended with the job; asking again replays from any number. */
    client_subscribe(&c, "job_1", 503);
    client_expect(&c, "event", "state", "job_1", 504);
    client_expect(&c, "end", "end", "job_1", 505);
    client_subscribe(&c, "job_1", 505);
    client_expect(&c, "end", "", "job_1", 505);
    client_expect_quiet(&c);
    client_free(&c);
    live_end(&l);
}

static void a_gap_is_read_from_the_log(void **state)
{
    live l;
    client c;
    given g;
    qd_err err = { 0 };

    live_start(&l, NULL, plain);
    const int64_t fence = live_job(&l, "job_1");
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_follow(&c, "job_1");
    live_say(&l, "job_1", fence, "log", "{}", NULL);
    client_expect(&c, "event", "log", "job_1", 3);
    for (int i = 0; i < 5; i++) /* stored, never published */
        check_ok(sv_events_add(l.store, "job_1", fence, 1, "log", "{}", 2000, NULL, &err), &err);
    live_say(&l, "job_1", fence, "warning", "{}", NULL);
    for (int i = 4; i <= 8; i++)
        client_expect(&c, "event", "log", "job_1", i);
    client_expect(&c, "event", "warning", "job_1", 9);
    live_publish(&l, "job_1", 9, "warning", "{}", NULL); /* a copy too many */
    live_publish(&l, "job_1", 4, "log", "{}", NULL);
    client_expect_quiet(&c);
    live_say(&l, "job_1", fence, "log", "{}", NULL);
    client_expect(&c, "event", "log", "job_1", 10);
    client_free(&c);
    live_end(&l);
}

static void a_lost_end_is_found(void **state)
{
    live l;
    client c;
    given g;
    qd_err err = { 0 };
    sv_tuning t = live_tuning();

    t.check_ms = 50;
    live_start(&l, &t, plain);
    const int64_t fence = live_job(&l, "job_1");
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_follow(&c, "job_1");
    check_ok(sv_jobs_finish(l.store, "job_1", fence, "failed", NULL, NULL, 3000, NULL, &err),
             &err); /* and nobody told the bus */
    client_expect(&c, "event", "state", "job_1", 3);
    client_expect(&c, "end", "end", "job_1", 4);
    client_free(&c);
    live_end(&l);
}

static void numbers_from_elsewhere_reset(void **state)
{
    live l;
    client c;
    given g;
    qd_err err = { 0 };

    live_start(&l, NULL, plain);
    const int64_t fence = live_job(&l, "job_1");
    check_ok(sv_jobs_progress(l.store, "job_1", fence, "calibrate", "conv1", 3, 7, &err), &err);
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_subscribe(&c, "job_1", 999);
    json_t *o = client_json(&c);
    assert_string_equal(json_text(o, "type"), "reset");
    assert_int_equal(json_integer_value(json_object_get(o, "seq")), 2);
    const json_t *data = json_object_get(o, "data"), *progress = json_object_get(data, "progress");
    assert_string_equal(json_text(data, "status"), "running");
    assert_string_equal(json_text(progress, "phase"), "calibrate");
    assert_int_equal(json_integer_value(json_object_get(progress, "done")), 3);
    json_decref(o);
    live_say(&l, "job_1", fence, "log", "{}", NULL);
    client_expect(&c, "event", "log", "job_1", 3);
    live_finish(&l, "job_1", fence);
    client_expect(&c, "event", "state", "job_1", 4);
    client_expect(&c, "end", "end", "job_1", 5);
    check_ok(sv_jobs_delete(l.store, "job_1", &err), &err);
    client_subscribe(&c, "job_1", 0);
    client_expect_error(&c, "gone", "job_1");
    client_free(&c);
    live_end(&l);
}

static void star_follows_every_job(void **state)
{
    live l;
    client c;
    given g;

    live_start(&l, NULL, plain);
    const int64_t one = live_job(&l, "job_1"), two = live_job(&l, "job_2");
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_subscribe(&c, "*", 0);
    client_expect_quiet(&c);
    live_say(&l, "job_1", one, "log", "{}", NULL);
    live_say(&l, "job_2", two, "log", "{}", NULL);
    live_say(&l, "job_1", one, "log", "{}", NULL);
    client_expect(&c, "event", "log", "job_1", 3);
    client_expect(&c, "event", "log", "job_2", 3);
    client_expect(&c, "event", "log", "job_1", 4);
    client_subscribe(&c, "job_2", 2); /* by name as well: its log again, then every event once */
    client_expect(&c, "event", "log", "job_2", 3);
    client_expect_quiet(&c);
    live_say(&l, "job_2", two, "log", "{}", NULL);
    client_expect(&c, "event", "log", "job_2", 4);
    live_finish(&l, "job_2", two);
    client_expect(&c, "event", "state", "job_2", 5);
    client_expect(&c, "end", "end", "job_2", 6);
    live_publish(&l, "job_2", 6, "end", "{}", NULL); /* late copies of an ended job */
    live_publish(&l, "job_2", 5, "state", "{}", NULL);
    client_expect_quiet(&c);
    client_say(&c, "{\"op\":\"unsubscribe\",\"job\":\"*\"}");
    client_expect_quiet(&c);
    live_say(&l, "job_1", one, "log", "{}", NULL);
    client_expect_quiet(&c);
    client_free(&c);
    live_end(&l);
}

static void unsubscribe_is_silence(void **state)
{
    live l;
    client c;
    given g;

    live_start(&l, NULL, plain);
    const int64_t fence = live_job(&l, "job_1");
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_subscribe(&c, "job_1", 1);
    client_expect(&c, "event", "state", "job_1", 2);
    client_say(&c, "{\"op\":\"unsubscribe\",\"job\":\"job_1\"}");
    client_expect_quiet(&c);
    live_say(&l, "job_1", fence, "log", "{}", NULL);
    client_expect_quiet(&c);
    client_free(&c);
    live_end(&l);
}

/* Eight frames, then only events, until the client says what it has seen. */
static void samples_wait_for_acks(void **state)
{
    live l;
    client c;
    given g;
    int events = 0, frames = 0;
    int64_t seq = 0, last_frame = 0;

    live_start(&l, NULL, plain);
    const int64_t fence = live_job(&l, "job_1");
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[\"binary_samples\"]");
    client_follow(&c, "job_1");
    for (int round = 0; round < 2; round++) {
        char text[64];
        for (int i = 0; i < 12; i++)
            seq = live_say(&l, "job_1", fence, "sample", "{\"index\":0}", "kind,n,header,bytes");
        for (events = frames = 0; events < 12;) {
            const told *t = client_next_in(&c, 5000);
            assert_non_null(t);
            if (t->opcode == WSLAY_BINARY_FRAME) {
                assert_memory_equal(t->text, "kind,n,header,bytes", t->size);
                last_frame = seq - 12 + events; /* a frame follows its event */
                frames++;
            } else {
                events++;
            }
        }
        assert_int_equal(frames, 8);
        client_expect_quiet(&c);
        snprintf(text, sizeof text, "{\"op\":\"ack\",\"job\":\"job_1\",\"seq\":%lld}", (long long)last_frame);
        client_say(&c, text);
        client_expect_quiet(&c);
    }
    /* An ack of another job, or of older numbers, opens nothing. */
    for (int i = 0; i < 8; i++)
        seq = live_say(&l, "job_1", fence, "sample", "{}", "frame");
    for (int i = 0; i < 16; i++)
        assert_non_null(client_next_in(&c, 5000));
    client_say(&c, "{\"op\":\"ack\",\"job\":\"job_2\",\"seq\":1000}");
    client_say(&c, "{\"op\":\"ack\",\"job\":\"job_1\",\"seq\":3}");
    client_expect_quiet(&c);
    live_say(&l, "job_1", fence, "sample", "{}", "frame");
    client_expect(&c, "event", "sample", "job_1", seq + 1);
    client_expect_quiet(&c);
    client_free(&c);
    live_end(&l);
}

static void frames_only_for_those_who_asked(void **state)
{
    live l;
    client c;
    given g;

    live_start(&l, NULL, plain);
    const int64_t fence = live_job(&l, "job_1");
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[\"layers\"]");
    client_follow(&c, "job_1");
    live_say(&l, "job_1", fence, "sample", "{}", "frame");
    client_expect(&c, "event", "sample", "job_1", 3);
    client_expect_quiet(&c);
    client_free(&c);
    live_end(&l);
}

/* A gap in the bus sends the reader to the log, which has no pictures: they wait for their events. */
static void pictures_survive_a_gap(void **state)
{
    live l;
    client c;
    given g;
    qd_err err = { 0 };
    int64_t seq = 0;

    live_start(&l, NULL, plain);
    const int64_t fence = live_job(&l, "job_1");
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[\"binary_samples\"]");
    client_follow(&c, "job_1");
    for (int i = 0; i < 3; i++) {
        check_ok(sv_events_add(l.store, "job_1", fence, 1, "log", "{}", 2000, NULL, &err), &err); /* nobody is told */
        check_ok(sv_events_add(l.store, "job_1", fence, 1, "sample", "{}", 2000, &seq, &err), &err);
        live_publish(&l, "job_1", seq, "sample", "{}", "picture");
        client_expect(&c, "event", "log", "job_1", seq - 1);
        client_expect(&c, "event", "sample", "job_1", seq);
        const told *t = client_next_in(&c, 5000);
        assert_non_null(t);
        assert_int_equal(t->opcode, WSLAY_BINARY_FRAME);
        assert_string_equal(t->text, "picture");
    }
    client_free(&c);
    live_end(&l);
}

static void progress_is_thinned(void **state)
{
    live l;
    client c;
    given g;
    qd_err err = { 0 };
    int got = 0;
    int64_t seq = 0;

    live_start(&l, NULL, plain);
    const int64_t fence = live_job(&l, "job_1");
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_follow(&c, "job_1");
    for (int i = 0; i < 20; i++)
        check_ok(sv_events_add(l.store, "job_1", fence, 1, "progress", "{}", 2000, NULL, &err), &err);
    for (int i = 0; i < 20; i++) /* at once: storing takes its time */
        live_publish(&l, "job_1", 3 + i, "progress", "{}", NULL);
    while (seq < 22) { /* two at once, and the newest when its time has come */
        seq = client_expect(&c, "event", "progress", "job_1", -1);
        got++;
    }
    assert_int_equal(got, 3);
    /* Of a held one and a later state only the state is left: numbers never step back. */
    for (int i = 0; i < 3; i++)
        check_ok(sv_events_add(l.store, "job_1", fence, 1, "metric", "{}", 2000, NULL, &err), &err);
    check_ok(sv_jobs_finish(l.store, "job_1", fence, "succeeded", NULL, "{}", 3000, NULL, &err), &err);
    for (int i = 0; i < 3; i++)
        live_publish(&l, "job_1", 23 + i, "metric", "{}", NULL);
    live_publish(&l, "job_1", 26, "state", "{}", NULL);
    live_publish(&l, "job_1", 27, "end", "{}", NULL);
    client_expect(&c, "event", "metric", "job_1", 23);
    client_expect(&c, "event", "metric", "job_1", 24);
    client_expect(&c, "event", "state", "job_1", 26);
    client_expect(&c, "end", "end", "job_1", 27);
    client_expect_quiet(&c);
    client_free(&c);
    live_end(&l);
}

/* Who does not read gets events up to the limit, then one reset with the present, then goes on live. */
static void a_slow_reader_gets_one_reset(void **state)
{
    live l;
    client c;
    given g;
    sv_tuning t = live_tuning();
    static char data[4096];
    int64_t newest = 0, expect = 3;
    int resets = 0;

    t.queue_max = 64 << 10;
    t.queue_resume = 16 << 10;
    live_start(&l, &t, plain);
    const int64_t fence = live_job(&l, "job_1");
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_follow(&c, "job_1");
    snprintf(data, sizeof data, "{\"text\":\"%04000d\"}", 0);
    for (int i = 0; i < 300; i++) /* 1.2 MB: the socket holds some 200 kB, the queue 64 kB */
        newest = live_say(&l, "job_1", fence, "log", data, NULL);
    sleep_ms(200);
    for (bool done = false; !done;) {
        json_t *o = client_json(&c);
        const int64_t seq = json_integer_value(json_object_get(o, "seq"));
        if (strcmp(json_text(o, "type"), "reset") == 0) {
            resets++;
            assert_int_equal(seq, newest);
            assert_string_equal(json_text(json_object_get(o, "data"), "status"), "running");
            assert_true(seq > expect);
            expect = seq + 1;
            done = true;
        } else {
            assert_int_equal(seq, expect);
            expect++;
        }
        json_decref(o);
    }
    live_say(&l, "job_1", fence, "log", "{}", NULL);
    client_expect(&c, "event", "log", "job_1", newest + 1);
    client_expect_quiet(&c);
    assert_int_equal(resets, 1);

    /* Behind when the job ends: the reset shows how it ended, and the end comes too. */
    for (int i = 0; i < 300; i++)
        live_say(&l, "job_1", fence, "log", data, NULL);
    live_finish(&l, "job_1", fence);
    sleep_ms(200);
    for (bool done = false; !done;) {
        json_t *o = client_json(&c);
        if (strcmp(json_text(o, "type"), "reset") == 0) {
            assert_string_equal(json_text(json_object_get(o, "data"), "status"), "succeeded");
            done = true;
        }
        json_decref(o);
    }
    client_expect(&c, "end", "", "job_1", newest + 1 + 300 + 2);
    client_expect_quiet(&c);
    client_free(&c);
    live_end(&l);
}

/* A long replay to a slow reader is paced, not cut: every event arrives. */
static void a_long_replay_is_complete(void **state)
{
    live l;
    client c;
    given g;
    sv_tuning t = live_tuning();
    static char data[4096];

    t.queue_max = 64 << 10;
    t.queue_resume = 16 << 10;
    t.rows = 10;
    live_start(&l, &t, plain);
    const int64_t fence = live_job(&l, "job_1");
    snprintf(data, sizeof data, "{\"text\":\"%04000d\"}", 0);
    for (int i = 0; i < 300; i++)
        live_say(&l, "job_1", fence, "log", data, NULL);
    live_finish(&l, "job_1", fence);
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_subscribe(&c, "job_1", 2);
    sleep_ms(200);
    for (int i = 3; i <= 302; i++)
        client_expect(&c, "event", "log", "job_1", i);
    client_expect(&c, "event", "state", "job_1", 303);
    client_expect(&c, "end", "end", "job_1", 304);
    client_free(&c);
    live_end(&l);
}

static qd_status cancel_it(void *ctx, const char *job_id, char **reply_json, qd_err *err)
{
    if (strcmp(job_id, "job_1") != 0)
        return qd_fail(err, QD_E_NOT_FOUND, "there is no job '%s'", job_id);
    *reply_json = qd_strdup("{\"canceled\":true,\"status\":\"canceled\"}");
    return QD_OK;
}

static void cancel_answers(void **state)
{
    live l;
    client c;
    given g;

    live_start(&l, NULL, (sv_loop_options){ .cancel = cancel_it });
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_say(&c, "{\"op\":\"cancel\",\"job\":\"job_1\"}");
    json_t *o = client_json(&c);
    assert_string_equal(json_text(o, "op"), "cancel");
    assert_string_equal(json_text(o, "job"), "job_1");
    assert_string_equal(json_text(o, "status"), "canceled");
    assert_true(json_is_true(json_object_get(o, "canceled")));
    json_decref(o);
    client_say(&c, "{\"op\":\"cancel\",\"job\":\"job_2\"}");
    client_expect_error(&c, "not_found", "job_2");
    client_free(&c);
    live_end(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hello_comes_first),
        cmocka_unit_test(nonsense_gets_words_and_the_socket_stays),
        cmocka_unit_test(replay_then_live_then_end),
        cmocka_unit_test(a_gap_is_read_from_the_log),
        cmocka_unit_test(a_lost_end_is_found),
        cmocka_unit_test(numbers_from_elsewhere_reset),
        cmocka_unit_test(star_follows_every_job),
        cmocka_unit_test(unsubscribe_is_silence),
        cmocka_unit_test(samples_wait_for_acks),
        cmocka_unit_test(frames_only_for_those_who_asked),
        cmocka_unit_test(pictures_survive_a_gap),
        cmocka_unit_test(progress_is_thinned),
        cmocka_unit_test(a_slow_reader_gets_one_reset),
        cmocka_unit_test(a_long_replay_is_complete),
        cmocka_unit_test(cancel_answers),
    };
    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failed test leaves its loop running on a stack that is gone */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
