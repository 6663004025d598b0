/* test_roofline.c - peaks that a processor can have, and what holds a step back. */
#include "core/plan/plan_case.h"

#include <time.h>

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void peaks(void **state)
{
    qd_err err = { 0 };
    qd_plan_peaks p = { 0 };
    const double start = seconds();
    check_ok(qd_plan_measure_peaks(1, &p, &err), &err);
    print_message("f32 %.0f, int8 %.0f GMAC/s; memory %.1f, cache %.1f GB/s; %.2f s\n", p.f32_macs * 1e-9,
                  p.int8_macs * 1e-9, p.memory_rate * 1e-9, p.cache_rate * 1e-9, seconds() - start);
    assert_int_equal(p.threads, 1);
    assert_true(p.f32_macs > 1e7 && p.f32_macs < 1e13 && p.int8_macs > 1e7 && p.int8_macs < 1e14);
    assert_true(p.memory_rate > 1e7 && p.memory_rate < 1e12 && p.cache_rate > 1e7 && p.cache_rate < 1e13);
    assert_true(p.cache_bytes >= 65536);
}

static void what_holds_a_step_back(void **state)
{
    const qd_plan_peaks p = {
        .f32_macs = 1e9, .int8_macs = 4e9, .memory_rate = 1e9, .cache_rate = 1e10, .cache_bytes = 1000000
    };
    static const struct {
        qd_plan_step step;
        double took, least;
        qd_plan_bound bound;
    } cases[] = {
        { { .macs = 1000000, .bytes = 100000 }, 2e-3, 1e-3, QD_BOUND_COMPUTE },
        { { .macs = 1000000, .bytes = 100000, .integer = true }, 2e-3, 2.5e-4, QD_BOUND_COMPUTE },
        { { .macs = 1000, .bytes = 900000 }, 2e-4, 9e-5, QD_BOUND_MEMORY },  /* from the cache */
        { { .macs = 1000, .bytes = 2000000 }, 4e-3, 2e-3, QD_BOUND_MEMORY }, /* too much for it */
        { { .macs = 1000, .bytes = 1000 }, 1e-5, 1e-6, QD_BOUND_OVERHEAD },  /* ten times its roof, and short */
        { { .macs = 1000, .bytes = 1000 }, 1e-3, 1e-6, QD_BOUND_COMPUTE },   /* too slow to be overhead */
        { { .macs = 1000000, .bytes = 1000 }, 1.1e-3, 1e-3, QD_BOUND_COMPUTE },
    };
    for (size_t k = 0; k < sizeof(cases) / sizeof(*cases); k++) {
        qd_plan_bound bound;
        const double least = qd_plan_least_seconds(&cases[k].step, cases[k].took, &p, &bound);
        if (fabs(least - cases[k].least) > 1e-9 * cases[k].least || bound != cases[k].bound)
            fail_msg("case %d: %g s, %s", (int)k, least, qd_plan_bound_name(bound));
    }
    assert_string_equal(qd_plan_bound_name(QD_BOUND_MEMORY), "memory");
}

/* What a step says it moves: inputs, packed weights and result. */
static void bytes_of_steps(void **state)
{
    plan_case c = case_new(1);
    const qd_node_id x = case_input(&c, QD_SHAPE(2, 16, 8, 8));
    const qd_node_id y = case_conv(&c, x, (case_conv_shape){ .in = 16, .out = 32, .kernel = 1 });
    const qd_node_id q = case_quantize(&c, y, false, 90, -1);
    case_output(&c,
                case_qconv(&c, q, 90, (case_conv_shape){ .in = 32, .out = 16, .kernel = 3, .pads = { 1, 1, 1, 1 } }));
    qd_plan *p = case_compile(&c, &qd_backend_cpu, 1);
    int seen = 0;
    for (int k = 0; k < qd_plan_steps(p); k++) {
        qd_plan_step s;
        qd_plan_step_at(p, k, &s);
        if (strcmp(s.kind, "conv2d") == 0) {
            const size_t plain = sizeof(float) * (2 * 16 * 64 + 16 * 32 + 2 * 32 * 64);
            assert_true(s.bytes >= plain && s.bytes <= plain + 4096); /* packing may pad */
            assert_false(s.integer);
            assert_int_equal(s.shape.dim[1], 32);
            seen++;
        } else if (strcmp(s.kind, "qconv2d") == 0) {
            assert_true(s.integer && s.bytes >= 2 * 32 * 100 + 32 * 16 * 9 + sizeof(float) * 2 * 16 * 64);
            seen++;
        }
    }
    assert_int_equal(seen, 2);
    qd_plan_free(p);
    qd_graph_free(c.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peaks),
        cmocka_unit_test(what_holds_a_step_back),
        cmocka_unit_test(bytes_of_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
