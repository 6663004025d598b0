/* test_sockets.c - how sockets come, behave badly, die and leave; each is given back exactly once. */
#include <signal.h>

#include "live_common.h"

static const sv_loop_options plain;

static void send_raw(client *c, const void *data, size_t n)
{
    assert_int_equal(send(c->fd, data, n, MSG_NOSIGNAL), (ssize_t)n);
}

static void too_big_is_1009(void **state)
{
    live l;
    client c;
    given g;
    static char text[65537];

    live_start(&l, NULL, plain);
    client_open(&c, &l, &g, NULL, 0);
    memset(text, ' ', sizeof text);
    client_send_as(&c, WSLAY_TEXT_FRAME, text, 65536); /* the largest that is looked at */
    client_expect_error(&c, "malformed", "not JSON");
    client_send_as(&c, WSLAY_TEXT_FRAME, text, 65537);
    client_expect_close(&c, 1009);
    client_free(&c);
    given_wait(&g);
    live_end(&l);
}

/* A client that goes on sending after 1009 was decided still gets the close frame, not a reset connection. */
static void the_close_frame_arrives(void **state)
{
    live l;
    client c;
    given g;
    static uint8_t text[1 << 20];

    live_start(&l, NULL, plain);
    client_open(&c, &l, &g, NULL, 0);
    memset(text, ' ', sizeof text);
    client_send_as(&c, WSLAY_TEXT_FRAME, text, sizeof text);
    client_expect_close(&c, 1009);
    shutdown(c.fd, SHUT_WR);
    given_wait(&g);
    client_free(&c);
    live_end(&l);
}

static void broken_frames_close_with_the_right_code(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        int code;
    } rows[] = {
        { "\x81\x02hi", 4, 1002 },                                 /* a client must mask */
        { "\xc1\x80\0\0\0\0", 6, 1002 },                           /* a reserved bit, no extension was agreed on */
        { "\x83\x80\0\0\0\0", 6, 1002 },                           /* an opcode that does not exist */
        { "\x80\x80\0\0\0\0", 6, 1002 },                           /* goes on with nothing */
        { "\x09\x80\0\0\0\0", 6, 0 },                              /* a ping in pieces; 0 = no code */
        { "\x88\x81\0\0\0\0x", 7, 0 },                             /* a close code of one byte */
        { "\x81\x82\0\0\0\0\xc3\x28", 8, 1007 },                   /* not UTF-8 */
        { "\x81\x83\0\0\0\0\xed\xa0\x80", 9, 1007 },               /* half a surrogate pair */
        { "\x81\xff\0\0\0\0\xff\xff\xff\xff\0\0\0\0x", 15, 1009 }, /* four gigabytes announced */
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        live l;
        client c;
        given g;
        live_start(&l, NULL, plain);
        client_open(&c, &l, &g, NULL, 0);
        send_raw(&c, rows[i].bytes, rows[i].n);
        client_expect_close(&c, rows[i].code);
        given_wait(&g);
        client_free(&c);
        live_end(&l);
    }
}

/* Byte by byte, and in fragments with a ping between: it is one message all the same. */
static void pieces_are_put_together(void **state)
{
    static const char bytes[] = "\x01\x85\0\0\0\0{\"op\""     /* text, not the last */
                                "\x89\x80\0\0\0\0"            /* ping */
                                "\x80\x88\0\0\0\0:\"ping\"}"; /* the rest */
    live l;
    client c;
    given g;

    live_start(&l, NULL, plain);
    client_open(&c, &l, &g, NULL, 0);
    for (size_t i = 0; i < sizeof bytes - 1; i++) {
        send_raw(&c, bytes + i, 1);
        if (i % 5 == 0)
            sleep_ms(1);
    }
    client_expect(&c, "pong", "", "", -1);
    client_free(&c);
    live_end(&l);
}

static void bytes_that_came_with_the_request_count(void **state)
{
    static const char bytes[] = "\x81\x8d\0\0\0\0{\"op\":\"ping\"}\x81\x8d\0\0\0\0{\"op\"";
    live l;
    client c;
    given g;

    live_start(&l, NULL, plain);
    client_open(&c, &l, &g, bytes, sizeof bytes - 1);
    client_expect(&c, "pong", "", "", -1);
    send_raw(&c, ":\"ping\"}", 8);
    client_expect(&c, "pong", "", "", -1);
    client_free(&c);
    live_end(&l);
}

static void a_polite_close_is_answered(void **state)
{
    live l;
    client c;
    given g;

    live_start(&l, NULL, plain);
    client_open(&c, &l, &g, NULL, 0);
    assert_int_equal(wslay_event_queue_close(c.ctx, 1000, (const uint8_t *)"bye", 3), 0);
    assert_int_equal(wslay_event_send(c.ctx), 0);
    client_expect_close(&c, 1000);
    assert_null(client_next_in(&c, 2000));
    assert_true(c.ended); /* the server is the first to end the connection */
    client_free(&c);
    given_wait(&g);
    live_end(&l);
}

static void stopping_sends_1001(void **state)
{
    live l;
    client polite, deaf;
    given g1, g2, g3;
    int pair[2];

    live_start(&l, NULL, plain);
    client_open(&polite, &l, &g1, NULL, 0);
    client_open(&deaf, &l, &g2, NULL, 0);
    client_expect_quiet(&polite);
    client_expect_quiet(&deaf);
    sv_loop_stop(l.loop);
    client_expect_close(&polite, 1001); /* and answers it; the deaf one never does */
    const int64_t before = sv_now_ms();
    live_stop(&l);
    assert_true(sv_now_ms() - before < 2000);
    assert_int_equal(atomic_load(&g1.closed), 1);
    assert_int_equal(atomic_load(&g2.closed), 1);
    client_free(&polite);
    client_free(&deaf);

    /* Too late: given straight back. */
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    g3.fd = pair[1];
    atomic_init(&g3.closed, 0);
    sv_loop_adopt(l.loop, pair[1], NULL, 0, given_close, &g3);
    assert_int_equal(atomic_load(&g3.closed), 1);
    close(pair[0]);
    live_end(&l);
}

static void a_loop_that_never_ran_gives_back_too(void **state)
{
    qd_err err = { 0 };
    char path[512];
    sv_store *store = NULL;
    sv_bus *bus = NULL;
    sv_loop *loop = NULL;
    given g;
    int pair[2];

    snprintf(path, sizeof path, "%s/quantd.db", harness_tmp());
    check_ok(sv_store_open(path, &store, &err), &err);
    check_ok(sv_bus_new(&bus, &err), &err);
    check_ok(sv_loop_new(&(sv_loop_options){ .bus = bus, .store = store }, &loop, &err), &err);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    g.fd = pair[1];
    atomic_init(&g.closed, 0);
    sv_loop_adopt(loop, pair[1], "x", 1, given_close, &g);
    sv_loop_free(loop);
    assert_int_equal(atomic_load(&g.closed), 1);
    close(pair[0]);

    /* Stopped before it runs: it runs and leaves at once. */
    check_ok(sv_loop_new(&(sv_loop_options){ .bus = bus, .store = store }, &loop, &err), &err);
    sv_loop_stop(loop);
    sv_loop_run(loop);
    sv_loop_free(loop);
    sv_bus_free(bus);
    sv_store_close(store);
}

static bool only_sesame(void *ctx, const char *token)
{
    return token && strcmp(token, "sesame") == 0;
}

static void a_bad_token_is_1008(void **state)
{
    live l;
    client good, bad;
    given g1, g2;

    live_start(&l, NULL, (sv_loop_options){ .allow = only_sesame });
    client_open(&good, &l, &g1, NULL, 0);
    client_say(&good, "{\"op\":\"hello\",\"token\":\"sesame\"}");
    client_expect(&good, "hello", "", "", -1);
    client_open(&bad, &l, &g2, NULL, 0);
    client_say(&bad, "{\"op\":\"hello\",\"token\":\"open\"}");
    client_say(&bad, "{\"op\":\"ping\"}"); /* not heard any more */
    client_expect_close(&bad, 1008);
    given_wait(&g2);
    client_expect_quiet(&good);
    client_free(&good);
    client_free(&bad);
    live_end(&l);
}

static void silent_peers_are_dropped(void **state)
{
    live l;
    client deaf, healthy;
    given g1, g2;
    sv_tuning t = live_tuning();

    t.ping_ms = 50;
    t.silent_ms = 250;
    live_start(&l, &t, plain);
    client_open(&deaf, &l, &g1, NULL, 0);
    client_open(&healthy, &l, &g2, NULL, 0);
    for (int i = 0; i < 40 && !atomic_load(&g1.closed); i++)
        assert_null(client_next_in(&healthy, 25)); /* answers pings meanwhile */
    assert_int_equal(atomic_load(&g1.closed), 1);
    assert_int_equal(atomic_load(&g2.closed), 0);
    client_expect_quiet(&healthy);
    client_free(&deaf);
    client_free(&healthy);
    live_end(&l);
}

static void more_sockets_than_allowed_get_1013(void **state)
{
    live l;
    client a, b, c;
    given g1, g2, g3;
    sv_tuning t = live_tuning();

    t.sockets_max = 2;
    live_start(&l, &t, plain);
    client_open(&a, &l, &g1, NULL, 0);
    client_expect_quiet(&a);
    client_open(&b, &l, &g2, NULL, 0);
    client_expect_quiet(&b);
    client_open(&c, &l, &g3, NULL, 0);
    uint8_t frame[4] = { 0 }; /* by hand: the client's library does not know 1013, which is younger than RFC 6455 */
    assert_int_equal(recv(c.fd, frame, sizeof frame, MSG_WAITALL), 4);
    assert_int_equal(frame[0], 0x88);
    assert_int_equal(frame[2] << 8 | frame[3], 1013);
    given_wait(&g3);
    client_expect_quiet(&a);
    client_free(&a);
    client_free(&b);
    client_free(&c);
    live_end(&l);
}

/* Pings that are never read cannot pile up answers: the server stops reading instead. */
static void a_flood_of_pings_is_held_back(void **state)
{
    live l;
    client c;
    given g;
    sv_tuning t = live_tuning();
    uint8_t ping[131] = { 0x89, 0x80 | 125 }; /* mask of zeros, 125 bytes of zeros */
    bool stuck = false;

    t.queue_max = 64 << 10;
    live_start(&l, &t, plain);
    client_open(&c, &l, &g, NULL, 0);
    fcntl(c.fd, F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 200000 && !stuck; i++) {
        while (send(c.fd, ping, sizeof ping, MSG_NOSIGNAL) < 0 && !stuck) {
            assert_true(errno == EAGAIN || errno == EWOULDBLOCK);
            struct pollfd f = { .fd = c.fd, .events = POLLOUT };
            stuck = poll(&f, 1, 500) == 0;
        }
    }
    assert_true(stuck);
    client_free(&c);
    given_wait(&g);
    live_end(&l);
}

static void subscriptions_are_limited(void **state)
{
    live l;
    client c;
    given g;
    sv_tuning t = live_tuning();

    t.tracks_max = 3;
    live_start(&l, &t, plain);
    for (int i = 0; i < 4; i++) {
        char id[16];
        snprintf(id, sizeof id, "job_%d", i);
        live_job(&l, id);
    }
    client_open(&c, &l, &g, NULL, 0);
    client_hello(&c, "[]");
    client_subscribe(&c, "job_0", 2);
    client_subscribe(&c, "job_1", 2);
    client_subscribe(&c, "job_2", 2);
    client_expect_quiet(&c);
    client_subscribe(&c, "job_3", 2);
    client_expect_error(&c, "too_many_subscriptions", "unsubscribe");
    client_say(&c, "{\"op\":\"unsubscribe\",\"job\":\"job_1\"}");
    client_subscribe(&c, "job_3", 1);
    client_expect(&c, "event", "state", "job_3", 2);
    client_free(&c);
    live_end(&l);
}

/* --- signals --- */

static atomic_int heard;

static void on_signal(void *ctx, int signum)
{
    atomic_store(&heard, signum);
}

static void signals_arrive_on_the_loop(void **state)
{
    live l;

    live_start(&l, NULL, (sv_loop_options){ .on_signal = on_signal });
    kill(getpid(), SIGTERM);
    for (int i = 0; i < 300 && !atomic_load(&heard); i++)
        sleep_ms(10);
    assert_int_equal(atomic_load(&heard), SIGTERM);
    live_end(&l);
}

/* --- many at once --- */

typedef struct teller {
    live *l;
    const char *job;
    int64_t fence;
} teller;

static void *tell(void *p)
{
    teller *t = p;
    char *envelope;
    int64_t seq = 0;

    for (int i = 0; i < 200; i++) {
        if (sv_events_add(t->l->store, t->job, t->fence, 1, "log", "{}", 2000, &seq, NULL))
            abort();
        envelope = sv_envelope(t->job, seq, 2000, 1, "log", "{}");
        sv_bus_publish(t->l->bus, t->job, seq, "log", envelope, NULL, 0);
        qd_free(envelope);
    }
    return NULL;
}

/* Two writers of two jobs, sockets that come and go: the one that stays misses nothing. */
static void everything_at_once(void **state)
{
    live l;
    client stays;
    given g;
    teller tellers[2];
    pthread_t threads[2];
    int64_t next[2] = { 3, 3 };

    live_start(&l, NULL, plain);
    tellers[0] = (teller){ &l, "job_0", live_job(&l, "job_0") };
    tellers[1] = (teller){ &l, "job_1", live_job(&l, "job_1") };
    client_open(&stays, &l, &g, NULL, 0);
    client_hello(&stays, "[]");
    client_subscribe(&stays, "job_0", 2);
    client_subscribe(&stays, "job_1", 2);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, tell, &tellers[i]), 0);
    for (int i = 0; i < 20; i++) {
        client c;
        given gone;
        client_open(&c, &l, &gone, NULL, 0);
        client_say(&c, "{\"op\":\"hello\"}");
        client_subscribe(&c, i % 2 ? "*" : "job_0", 0);
        if (i % 3)
            client_next_in(&c, 100);
        client_free(&c);
        given_wait(&gone);
    }
    while (next[0] < 203 || next[1] < 203) {
        json_t *o = client_json(&stays);
        const int which = strcmp(json_text(o, "job"), "job_1") == 0;
        assert_int_equal(json_integer_value(json_object_get(o, "seq")), next[which]);
        next[which]++;
        json_decref(o);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    client_free(&stays);
    live_end(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(too_big_is_1009),
        cmocka_unit_test(the_close_frame_arrives),
        cmocka_unit_test(broken_frames_close_with_the_right_code),
        cmocka_unit_test(pieces_are_put_together),
        cmocka_unit_test(bytes_that_came_with_the_request_count),
        cmocka_unit_test(a_polite_close_is_answered),
        cmocka_unit_test(stopping_sends_1001),
        cmocka_unit_test(a_loop_that_never_ran_gives_back_too),
        cmocka_unit_test(a_bad_token_is_1008),
        cmocka_unit_test(silent_peers_are_dropped),
        cmocka_unit_test(more_sockets_than_allowed_get_1013),
        cmocka_unit_test(a_flood_of_pings_is_held_back),
        cmocka_unit_test(subscriptions_are_limited),
        cmocka_unit_test(signals_arrive_on_the_loop),
        cmocka_unit_test(everything_at_once),
    };
    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failed test leaves its loop running on a stack that is gone */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
