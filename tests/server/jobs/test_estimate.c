/* test_estimate.c - what a job would cost: bytes against bits and policy, time against earlier jobs, memory against the limit. */
#include "jobs_common.h"

#include <math.h>

#include "graph/op.h"
#include "jobs/jobs_int.h"

static double at(const json_t *o, const char *first, const char *second)
{
    const json_t *v = json_object_get(json_object_get(o, first), second);
    if (!json_is_number(v))
        fail_msg("no number under %s.%s", first, second);
    return json_number_value(v);
}

static json_t *estimate(place *p, const char *kind, const char *params)
{
    json_t *body = body_of(kind, p->model, params, ""), *o = NULL;
    sv_job_row row = { 0 };
    qd_err err = { 0 };
    char pointer[128];
    check_ok(sv_job_parse(p->store, body, &row, pointer, &err), &err);
    check_ok(sv_job_estimate(p->store, &p->settings, &row, &o, &err), &err);
    sv_job_row_clear(&row);
    json_decref(body);
    return o;
}

static double made(place *p, const char *params)
{
    json_t *o = estimate(p, "quantize", params);
    const double bytes = at(o, "output", "quantized_bytes");
    json_decref(o);
    return bytes;
}

static void bytes_follow_bits_and_policy(void **state)
{
    place p;
    place_open(&p);
    if (!p.model[0])
        skip();
    json_t *o = estimate(&p, "quantize", "{\"method\":\"mse\"}");
    assert_true(at(o, "output", "float_bytes") == 4 * 686769);
    assert_true(at(o, "output", "ratio") > 3 && at(o, "output", "ratio") < 4);
    assert_int_equal(json_array_size(json_object_get(o, "unsupported")), 0);
    json_decref(o);
    const double w8 = made(&p, "{}"), w4 = made(&p, "{\"weight_bits\":4}");
    assert_true(w4 < 0.75 * w8 && w4 > 0.5 * w8);
    assert_true(made(&p, "{\"weight_bits\":4,\"group_size\":32}") > w4);
    assert_true(made(&p, "{\"time_layers\":\"float\"}") > w8);
    assert_true(made(&p, "{\"edge_layers\":\"w8\"}") < w8);
    /* A job that makes no model has no output to tell of. */
    o = estimate(&p, "sample", "{\"steps\":5}");
    assert_true(json_is_null(json_object_get(o, "output")));
    json_decref(o);
    place_close(&p);
}

static void memory_against_the_limit(void **state)
{
    place p;
    place_open(&p);
    if (!p.model[0])
        skip();
    json_t *one = estimate(&p, "sample", "{\"count\":8,\"batch\":1}");
    json_t *many = estimate(&p, "sample", "{\"count\":8,\"batch\":4}");
    assert_true(at(many, "memory", "activation_bytes") == 4 * at(one, "memory", "activation_bytes"));
    assert_true(at(one, "memory", "data_bytes") == 8 * 28 * 28 * 4);
    assert_true(at(one, "memory", "weights_bytes") == 4 * 686769); /* packed, and let go */
    assert_true(json_is_true(json_object_get(json_object_get(one, "memory"), "fits")));
    p.settings.job_memory_bytes = (int64_t)at(one, "memory", "peak_bytes");
    json_decref(many);
    many = estimate(&p, "sample", "{\"count\":8,\"batch\":4}");
    assert_true(json_is_false(json_object_get(json_object_get(many, "memory"), "fits")));
    json_decref(one);
    json_decref(many);
    place_close(&p);
}

/* A job of its own ran ten seconds: twice the steps take twice as long, and another method has learned nothing. */
static void time_from_earlier_jobs(void **state)
{
    place p;
    sv_job_row row = { 0 };
    qd_err err = { 0 };
    char id[40];
    place_open(&p);
    if (!p.model[0])
        skip();
    json_t *o = estimate(&p, "sample", "{\"steps\":5,\"count\":4}");
    const json_t *seconds = json_object_get(o, "seconds");
    assert_string_equal(json_string_value(json_object_get(seconds, "basis")), "assumed");
    assert_true(at(o, "seconds", "p50") > 0 && at(o, "seconds", "p90") > at(o, "seconds", "p50"));
    const double macs = json_number_value(json_object_get(o, "macs"));
    assert_true(macs > 20 * 1e7);
    json_decref(o);

    for (int k = 0; k < 10; k++) {
        submit(&p, "sample", p.model, "{\"steps\":5,\"count\":4}", "", id);
        check_ok(sv_jobs_claim(p.store, "test", sv_now_ms(), 60000, &row, &err), &err);
        check_ok(sv_jobs_finish(p.store, id, row.fence, "succeeded", "", "", row.started_ms + (k == 4 ? 30000 : 10000),
                                NULL, &err),
                 &err);
        sv_job_row_clear(&row);
    }
    o = estimate(&p, "sample", "{\"steps\":10,\"count\":4}");
    assert_string_equal(json_string_value(json_object_get(json_object_get(o, "seconds"), "basis")), "history");
    assert_true(at(o, "seconds", "jobs") == 10);
    assert_true(fabs(at(o, "seconds", "p50") - 20) < 1e-6 && fabs(at(o, "seconds", "p90") - 60) < 1e-6);
    assert_true(json_number_value(json_object_get(o, "macs")) == 2 * macs);
    json_decref(o);
    o = estimate(&p, "sample", "{\"method\":\"ddpm\"}");
    assert_string_equal(json_string_value(json_object_get(json_object_get(o, "seconds"), "basis")), "assumed");
    json_decref(o);
    place_close(&p);
}

static json_t *weigh(const qd_graph *g)
{
    qd_err err = { 0 };
    json_t *o = json_object();
    const qd_shape shapes[] = { QD_SHAPE(1, 2, 4, 4), QD_SHAPE(1) };
    check_ok(sv_weigh(g, shapes, 2, o, &err), &err);
    return o;
}

static qd_node_id weights(qd_graph *g, const char *name, const qd_shape *shape)
{
    qd_tensor t = { 0 };
    qd_err err = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, shape, NULL, &err), &err);
    const qd_node_id id = qd_graph_const(g, name, &t);
    qd_tensor_clear(&t);
    return id;
}

/* Two convolutions of 1x1, the first reading the picture, the last making the output: 2 -> 3 -> 5 channels on 4x4. */
static void a_small_network_weighed(void **state)
{
    const qd_shape picture = QD_SHAPE(-1, 2, 4, 4), batch = QD_SHAPE(-1);
    const qd_shape first = QD_SHAPE(3, 2, 1, 1), last = QD_SHAPE(5, 3, 1, 1);
    qd_graph *g = NULL;
    qd_err err = { 0 };
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &picture);
    qd_graph_input(g, "timestep", QD_I64, &batch);
    const qd_node_id w1 = weights(g, "w1", &first), w2 = weights(g, "w2", &last);
    const qd_node_id a = qd_graph_add(g, &qd_op_conv2d, "a", QD_IN(x, w1), QD_NO_ATTRS);
    const qd_node_id b = qd_graph_add(g, &qd_op_conv2d, "b", QD_IN(a, w2), QD_NO_ATTRS);
    qd_graph_output(g, "out", b);
    check_ok(qd_graph_verify(g, &err), &err);

    json_t *o = weigh(g);
    json_t *want =
        json_pack("{s{si si} s{si si} s{si si} s{si si} si}", "first", "elements", 6, "rows", 3, "last", "elements", 15,
                  "rows", 5, "time", "elements", 0, "rows", 0, "inner", "elements", 0, "rows", 0, "other_bytes", 0);
    assert_true(json_equal(json_object_get(o, "weights"), want));
    /* At b: its input [3, 4, 4], its result [5, 4, 4], and the time step, which nobody reads. */
    assert_int_equal(json_integer_value(json_object_get(o, "activation_bytes")), (3 + 5) * 16 * 4 + 8);
    json_decref(want);
    json_decref(o);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_follow_bits_and_policy),
        cmocka_unit_test(memory_against_the_limit),
        cmocka_unit_test(time_from_earlier_jobs),
        cmocka_unit_test(a_small_network_weighed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
