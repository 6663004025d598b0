/* test_profile.c - what `quantd profile` writes: a row for every step, sums that agree, JSON that parses. */
#include "harness/harness.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "profile.h"

static qd_graph *network(void)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_tensor t = { 0 };
    const qd_shape image = QD_SHAPE(-1, 8, 16, 16), weight = QD_SHAPE(8, 8, 3, 3);
    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id x = qd_graph_input(g, "x", QD_F32, &image);
    check_ok(qd_tensor_init(&t, QD_F32, &weight, NULL, &err), &err);
    harness_normal(qd_f32(&t), qd_tensor_count(&t), 1, 0.1f);
    const qd_node_id w = qd_graph_const(g, "w", &t);
    qd_tensor_clear(&t);
    const qd_node_id y = qd_graph_add(g, &qd_op_conv2d, "first \"layer\"", QD_IN(x, w),
                                      QD_ATTRS(qd_attr_ints("pads", 4, (const int64_t[]){ 1, 1, 1, 1 })));
    const qd_node_id n =
        qd_graph_add(g, &qd_op_group_norm, "norm", QD_IN(y), QD_ATTRS(QD_INT("groups", 2), QD_FLOAT("eps", 1e-5)));
    qd_graph_output(g, "out", qd_graph_add(g, &qd_op_silu, "act", QD_IN(n), QD_NO_ATTRS));
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static char *profiled(bool json, bool by_time)
{
    qd_err err = { 0 };
    qd_graph *g = network();
    qd_buf b;
    const qd_shape shape = QD_SHAPE(2, 8, 16, 16);
    const sv_profile_options o = { .title = "a network",
                                   .batch = 2,
                                   .runs = 5,
                                   .threads = 1,
                                   .backend = &qd_backend_cpu,
                                   .json = json,
                                   .by_time = by_time };
    qd_buf_init(&b, 0);
    check_ok(sv_profile(g, &shape, 1, &o, &b, &err), &err);
    qd_buf_add(&b, "", 1);
    char *text = strdup(b.data);
    qd_buf_clear(&b);
    qd_graph_free(g);
    return text;
}

static void as_json(void **state)
{
    char *text = profiled(true, true);
    json_error_t e;
    json_t *j = json_loads(text, 0, &e);
    if (!j)
        fail_msg("%s at %d of %s", e.text, e.position, text);
    assert_string_equal(json_string_value(json_object_get(j, "model")), "a network");
    assert_int_equal(json_number_value(json_object_get(j, "batch")), 2);
    const json_t *peaks = json_object_get(j, "peaks"), *steps = json_object_get(j, "steps");
    assert_true(json_number_value(json_object_get(peaks, "f32_macs_per_second")) > 1e7);
    assert_int_equal(json_array_size(steps), 2);
    double seconds = 0.0, before = INFINITY, macs = 0.0;
    for (size_t k = 0; k < json_array_size(steps); k++) {
        const json_t *s = json_array_get(steps, k);
        const double took = json_number_value(json_object_get(s, "seconds"));
        assert_true(took > 0.0 && took <= before); /* slowest first */
        assert_true(json_number_value(json_object_get(s, "bytes")) >= 2 * 2 * 8 * 256 * 4);
        assert_true(json_number_value(json_object_get(s, "roof_seconds")) > 0.0);
        assert_int_equal(json_array_size(json_object_get(s, "shape")), 4);
        macs += json_number_value(json_object_get(s, "macs"));
        seconds += took;
        before = took;
    }
    assert_true(macs == 2.0 * 8 * 8 * 9 * 256);
    assert_true(fabs(seconds - json_number_value(json_object_get(j, "seconds"))) < 1e-9);
    json_decref(j);
    free(text);
}

static void as_a_table(void **state)
{
    char *text = profiled(false, false);
    const char *conv = strstr(text, "first \"layer\""), *norm = strstr(text, "norm+silu");
    if (!conv || !norm || conv > norm)
        fail_msg("steps are missing or out of order: %s", text);
    assert_non_null(strstr(text, "this processor: convolutions"));
    assert_non_null(strstr(text, "100.0  2 steps; the roof is"));
    assert_non_null(strstr(text, "most time beyond the roof:"));
    assert_non_null(strstr(text, "[2, 8, 16, 16]"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(as_json), cmocka_unit_test(as_a_table) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
