/* test_bus.c - messages reach who listens, live as long as somebody holds them, and stop when they are told to. */
#include "harness/harness.h"

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "live/live.h"

static void note(void *ctx, const sv_message *m)
{
    char *text = ctx;
    snprintf(text + strlen(text), 512 - strlen(text), "%s/%d/%s/%s ", m->job_id, (int)m->seq, m->type, m->envelope);
}

static void the_right_ears_hear(void **state)
{
    qd_err err = { 0 };
    sv_bus *b = NULL;
    char all[512] = "", one[512] = "";

    check_ok(sv_bus_new(&b, &err), &err);
    sv_bus_publish(b, "job_1", 1, "state", "{}", NULL, 0); /* to nobody */
    sv_listener *every = sv_bus_listen(b, NULL, note, all);
    sv_listener *single = sv_bus_listen(b, "job_2", note, one);
    sv_bus_publish(b, "job_1", 2, "log", "{\"a\":1}", NULL, 0);
    sv_bus_publish(b, "job_2", 7, "end", "{}", NULL, 0);
    sv_bus_unlisten(b, every);
    sv_bus_publish(b, "job_2", 8, "log", "{}", NULL, 0);
    assert_string_equal(all, "job_1/2/log/{\"a\":1} job_2/7/end/{} ");
    assert_string_equal(one, "job_2/7/end/{} job_2/8/log/{} ");
    sv_bus_unlisten(b, single);
    sv_bus_unlisten(b, NULL);
    sv_bus_free(b);
}

static void keep(void *ctx, const sv_message *m)
{
    const sv_message **kept = ctx;
    *kept = sv_message_ref(m);
}

static void a_kept_message_outlives_the_bus(void **state)
{
    qd_err err = { 0 };
    sv_bus *b = NULL;
    const sv_message *kept = NULL;
    char frame[] = "frame";

    check_ok(sv_bus_new(&b, &err), &err);
    sv_bus_listen(b, "job_1", keep, &kept);
    sv_bus_publish(b, "job_1", 3, "sample", "{\"x\":2}", frame, sizeof frame);
    memset(frame, 'x', sizeof frame); /* it was copied */
    sv_bus_free(b);
    assert_string_equal(kept->envelope, "{\"x\":2}");
    assert_string_equal(kept->frame, "frame");
    assert_int_equal(kept->frame_size, 6);
    sv_message_unref(kept);
    sv_message_unref(NULL);
}

static void out_of_memory_loses_a_message_and_nothing_else(void **state)
{
    qd_err err = { 0 };
    sv_bus *b = NULL;
    char all[512] = "";

    check_ok(sv_bus_new(&b, &err), &err);
    sv_listener *l = sv_bus_listen(b, NULL, note, all);
    for (long k = 0; k < 4; k++) {
        qd_mem_fault_set(k);
        sv_bus_publish(b, "job_1", 1, "log", "{}", "f", 1);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        assert_int_equal(hit, k < 3);
        assert_string_equal(all, k < 3 ? "" : "job_1/1/log/{} ");
    }
    qd_mem_fault_set(0);
    assert_null(sv_bus_listen(b, NULL, note, all));
    qd_mem_fault_set(-1);
    sv_bus_unlisten(b, l);
    sv_bus_free(b);
}

/* --- threads --- */

enum { PUBLISHERS = 4, MESSAGES = 2000 };

typedef struct storm {
    sv_bus *bus;
    atomic_int heard; /* by the one that listens all the time */
    atomic_int wrong; /* calls after unlisten */
    atomic_bool done;
} storm;

static void count(void *ctx, const sv_message *m)
{
    storm *s = ctx;
    atomic_fetch_add(&s->heard, 1);
    sv_message_unref(sv_message_ref(m));
}

typedef struct brief {
    storm *s;
    atomic_bool on;
} brief;

static void only_while_on(void *ctx, const sv_message *m)
{
    brief *b = ctx;
    if (!atomic_load(&b->on))
        atomic_fetch_add(&b->s->wrong, 1);
}

static void *publisher(void *p)
{
    storm *s = p;
    for (int i = 0; i < MESSAGES; i++)
        sv_bus_publish(s->bus, i % 2 ? "job_1" : "job_2", i + 1, "log", "{}", "frame", 5);
    return NULL;
}

static void *come_and_go(void *p)
{
    storm *s = p;
    while (!atomic_load(&s->done)) {
        brief *b = malloc(sizeof *b);
        b->s = s;
        atomic_init(&b->on, true);
        sv_listener *l = sv_bus_listen(s->bus, "job_1", only_while_on, b);
        sv_bus_unlisten(s->bus, l);
        atomic_store(&b->on, false);
        free(b); /* a call after this is a use after free, too */
    }
    return NULL;
}

static void publishers_and_listeners_in_a_storm(void **state)
{
    qd_err err = { 0 };
    storm s = { 0 };
    pthread_t threads[PUBLISHERS], guests[2];

    check_ok(sv_bus_new(&s.bus, &err), &err);
    sv_listener *l = sv_bus_listen(s.bus, NULL, count, &s);
    for (int i = 0; i < PUBLISHERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, publisher, &s), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&guests[i], NULL, come_and_go, &s), 0);
    for (int i = 0; i < PUBLISHERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&s.done, true);
    for (int i = 0; i < 2; i++)
        pthread_join(guests[i], NULL);
    assert_int_equal(s.heard, PUBLISHERS * MESSAGES);
    assert_int_equal(s.wrong, 0);
    sv_bus_unlisten(s.bus, l);
    sv_bus_free(s.bus);
}

/* --- shapes --- */

static void times_are_rfc_3339(void **state)
{
    char text[32];

    assert_string_equal(sv_time_text(0, text), "1970-01-01T00:00:00.000Z");
    assert_string_equal(sv_time_text(1709210096789, text), "2024-02-29T12:34:56.789Z");
    assert_string_equal(sv_time_text(-1, text), "1969-12-31T23:59:59.999Z");
    assert_string_equal(sv_time_text(253402300799999, text), "9999-12-31T23:59:59.999Z");
    assert_string_equal(sv_time_text(INT64_MAX, text), "9999-12-31T23:59:59.999Z");
}

static void an_envelope_is_the_json_of_the_contract(void **state)
{
    char *text = sv_envelope("job_\"1", 412, 1709210096789, 2, "progress", "{\"done\":31}");
    char *empty = sv_envelope("job_1", 1, 0, 0, "log", "");
    json_t *o = json_loads(text, 0, NULL);

    assert_string_equal(
        empty,
        "{\"seq\":1,\"ts\":\"1970-01-01T00:00:00.000Z\",\"job\":\"job_1\",\"attempt\":0,\"type\":\"log\",\"data\":{}}");
    assert_non_null(o);
    assert_int_equal(json_integer_value(json_object_get(o, "seq")), 412);
    assert_string_equal(json_string_value(json_object_get(o, "job")), "job_\"1");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "data"), "done")), 31);
    json_decref(o);
    qd_free(text);
    qd_free(empty);
}

static void a_frame_is_kind_length_header_bytes(void **state)
{
    size_t size = 0;
    uint8_t *frame = sv_frame_make(2, "{\"a\":1}", "\x89PNG", 4, &size);

    assert_int_equal(size, 4 + 4 + 7 + 4);
    assert_memory_equal(frame, "\0\0\0\2\0\0\0\7{\"a\":1}\x89PNG", size);
    qd_free(frame);
    frame = sv_frame_make(3, "{}", NULL, 0, &size);
    assert_int_equal(size, 10);
    qd_free(frame);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_right_ears_hear),
        cmocka_unit_test(a_kept_message_outlives_the_bus),
        cmocka_unit_test(out_of_memory_loses_a_message_and_nothing_else),
        cmocka_unit_test(publishers_and_listeners_in_a_storm),
        cmocka_unit_test(times_are_rfc_3339),
        cmocka_unit_test(an_envelope_is_the_json_of_the_contract),
        cmocka_unit_test(a_frame_is_kind_length_header_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
