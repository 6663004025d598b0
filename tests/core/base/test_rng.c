/* test_rng.c - Philox against its published vectors; streams that depend on nothing but their name. */
#include "harness/harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* kat_vectors of Random123 1.14, philox4x32 10. */
static void known_answers(void **state)
{
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } rows[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
          { 0xa4093822, 0x299f31d0 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        uint32_t out[4];
        qd_philox(out, rows[k].counter, rows[k].key);
        assert_memory_equal(out, rows[k].out, sizeof out);
    }
}

static void stream_starts_with_block_zero(void **state)
{
    qd_rng r;
    qd_rng_init(&r, 0, 0);
    assert_int_equal(qd_rng_u32(&r), 0x6627e8d5);
    assert_true(qd_rng_u64(&r) == 0xbc57ac4ce169c58dull);
    assert_int_equal(qd_rng_u32(&r), 0x9b00dbd8);
    assert_int_equal(r.index, 4);
}

static void normals_in_any_order(void **state)
{
    float whole[101], part[101];
    qd_rng_normal(whole, 101, 42, QD_STREAM_INIT_NOISE | 7, 0);
    for (size_t from = 0; from <= 101; from++) {
        const size_t n = (101 - from) < 9 ? 101 - from : 9;
        qd_rng_normal(part, n, 42, QD_STREAM_INIT_NOISE | 7, from);
        assert_memory_equal(part, whole + from, n * sizeof *part);
    }
    qd_rng_normal(part, 101, 42, QD_STREAM_INIT_NOISE | 8, 0);
    assert_memory_not_equal(part, whole, sizeof part);
    qd_rng_normal(part, 101, 43, QD_STREAM_INIT_NOISE | 7, 0);
    assert_memory_not_equal(part, whole, sizeof part);
}

static void normals_are_normal(void **state)
{
    enum { N = 1 << 20 };
    static float x[N];
    qd_rng_normal(x, N, 1, 0, 0);
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, lag = 0;
    for (int k = 0; k < N; k++) {
        m1 += x[k];
        m2 += (double)x[k] * x[k];
        m3 += pow(x[k], 3);
        m4 += pow(x[k], 4);
        lag += k ? (double)x[k] * x[k - 1] : 0;
    }
    /* Five standard errors of each moment at this N: sqrt(1, 2, 15, 96, 1) / 1024. */
    assert_true(fabs(m1 / N) < 5 * 1.0 / 1024);
    assert_true(fabs(m2 / N - 1) < 5 * sqrt(2) / 1024);
    assert_true(fabs(m3 / N) < 5 * sqrt(15) / 1024);
    assert_true(fabs(m4 / N - 3) < 5 * sqrt(96) / 1024);
    assert_true(fabs(lag / N) < 5 * 1.0 / 1024);
}

static void uniform_and_below(void **state)
{
    qd_rng r;
    qd_rng_init(&r, 9, 0);
    double sum = 0;
    for (int k = 0; k < 100000; k++) {
        const float u = qd_rng_uniform(&r);
        assert_true(u >= 0 && u < 1);
        sum += u;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 5 * sqrt(1.0 / 12 / 100000));

    int seen[7] = { 0 };
    for (int k = 0; k < 70000; k++)
        seen[qd_rng_below(&r, 7)]++;
    for (int k = 0; k < 7; k++)
        assert_true(abs(seen[k] - 10000) < 5 * 93); /* sqrt(70000 * 1/7 * 6/7) = 92.6 */
    assert_int_equal(qd_rng_below(&r, 1), 0);
    /* A bound for which plain scaling would be visibly wrong: 3 * 2^30 must give all residues of 3 alike. */
    int third[3] = { 0 };
    for (int k = 0; k < 30000; k++)
        third[qd_rng_below(&r, 3u << 30) / (1u << 30)]++;
    for (int k = 0; k < 3; k++)
        assert_true(abs(third[k] - 10000) < 5 * 82);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),        cmocka_unit_test(stream_starts_with_block_zero),
        cmocka_unit_test(normals_in_any_order), cmocka_unit_test(normals_are_normal),
        cmocka_unit_test(uniform_and_below),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
