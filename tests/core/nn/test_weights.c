/* test_weights.c - sources of weights: what a file must hold, what chance gives, what costs nothing. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "nn/nn_int.h"

static qd_weights *weights_of(const char *name, qd_dtype dtype, qd_shape shape, const void *data)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_tensor t = { 0 };
    check_ok(qd_weights_new(&w, &err), &err);
    check_ok(qd_tensor_wrap(&t, dtype, &shape, data, NULL, NULL, &err), &err);
    check_ok(qd_weights_add(w, name, &t, &err), &err);
    qd_tensor_clear(&t);
    return w;
}

static qd_weight_source *file_source(const qd_weights *w)
{
    qd_err err = { 0 };
    qd_weight_source *s = NULL;
    check_ok(qd_weight_source_file(w, NULL, &s, &err), &err);
    return s;
}

static void file_is_consumed_once(void **state)
{
    static const float data[6] = { 1, 2, 3, 4, 5, 6 };
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    const qd_shape shape = QD_SHAPE(2, 3), wrong = QD_SHAPE(3, 2);
    qd_weights *w = weights_of("a.weight", QD_F32, shape, data);
    qd_weight_source *s = file_source(w);

    assert_true(qd_weight_source_has(s, "a.weight"));
    assert_false(qd_weight_source_has(s, "a.bias"));
    check_fails(qd_weight_source_used_up(s, &err), QD_E_FORMAT, "'a.weight'", &err);
    check_fails(qd_weight_source_take(s, "a.bias", &shape, QD_INIT_ZERO, 1, &t, &err), QD_E_NOT_FOUND,
                "'a.bias' (wanted: f32 [2, 3])", &err);
    check_fails(qd_weight_source_take(s, "a.weight", &wrong, QD_INIT_ZERO, 1, &t, &err), QD_E_FORMAT,
                "'a.weight' has shape [2, 3], the config asks for [3, 2]", &err);
    assert_null(t.data);
    check_ok(qd_weight_source_take(s, "a.weight", &shape, QD_INIT_ZERO, 1, &t, &err), &err);
    assert_ptr_equal(t.data, data); /* shared, not copied */
    qd_tensor again = { 0 };
    check_fails(qd_weight_source_take(s, "a.weight", &shape, QD_INIT_ZERO, 1, &again, &err), QD_E_INTERNAL, "twice",
                &err);
    check_ok(qd_weight_source_used_up(s, &err), &err);
    qd_tensor_clear(&t);
    qd_weight_source_free(s);
    qd_weights_free(w);
}

static void halves_are_widened(void **state)
{
    static const float want[4] = { 0.5f, -2.0f, 1.0f / 3.0f, 1024.0f };
    static const qd_dtype dtypes[2] = { QD_F16, QD_BF16 };
    qd_err err = { 0 };
    const qd_shape shape = QD_SHAPE(4);
    for (int d = 0; d < 2; d++) {
        uint16_t half[4];
        for (int k = 0; k < 4; k++)
            half[k] = d == 0 ? qd_f32_to_f16(want[k]) : qd_f32_to_bf16(want[k]);
        qd_weights *w = weights_of("x", dtypes[d], shape, half);
        qd_weight_source *s = file_source(w);
        qd_tensor t = { 0 };
        check_ok(qd_weight_source_take(s, "x", &shape, QD_INIT_ZERO, 1, &t, &err), &err);
        assert_int_equal(t.dtype, QD_F32);
        for (int k = 0; k < 4; k++)
            assert_true(qd_f32(&t)[k] == (d == 0 ? qd_f16_to_f32(half[k]) : qd_bf16_to_f32(half[k])));
        qd_tensor_clear(&t);
        qd_weight_source_free(s);
        qd_weights_free(w);
    }
}

static void unaligned_tensors_are_copied(void **state)
{
    _Alignas(8) uint8_t bytes[18] = { 0 };
    const float one = 1.5f;
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    const qd_shape shape = QD_SHAPE(4);
    memcpy(bytes + 2, &one, sizeof(one));
    qd_weights *w = weights_of("x", QD_F32, shape, bytes + 2);
    qd_weight_source *s = file_source(w);
    check_ok(qd_weight_source_take(s, "x", &shape, QD_INIT_ZERO, 1, &t, &err), &err);
    assert_int_equal((uintptr_t)t.data % sizeof(float), 0);
    assert_true(qd_f32(&t)[0] == 1.5f);
    qd_tensor_clear(&t);
    qd_weight_source_free(s);
    qd_weights_free(w);
}

static void only_finite_floats(void **state)
{
    static const int32_t ints[2] = { 1, 2 };
    const float bad[2][2] = { { 1.0f, NAN }, { -INFINITY, 0.0f } };
    static const char *const words[2] = { "'x' holds NaN at element 1", "'x' holds infinity at element 0" };
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    const qd_shape shape = QD_SHAPE(2);
    for (int k = 0; k < 2; k++) {
        qd_weights *w = weights_of("x", QD_F32, shape, bad[k]);
        qd_weight_source *s = file_source(w);
        check_fails(qd_weight_source_take(s, "x", &shape, QD_INIT_ZERO, 1, &t, &err), QD_E_NUMERIC, words[k], &err);
        assert_null(t.data);
        qd_weight_source_free(s);
        qd_weights_free(w);
    }
    const uint16_t inf_half[2] = { 0x3c00, 0x7c00 };
    qd_weights *w = weights_of("x", QD_F16, shape, inf_half);
    qd_weight_source *s = file_source(w);
    check_fails(qd_weight_source_take(s, "x", &shape, QD_INIT_ZERO, 1, &t, &err), QD_E_NUMERIC, "infinity at element 1",
                &err);
    qd_weight_source_free(s);
    qd_weights_free(w);

    w = weights_of("x", QD_I32, shape, ints);
    s = file_source(w);
    check_fails(qd_weight_source_take(s, "x", &shape, QD_INIT_ZERO, 1, &t, &err), QD_E_UNSUPPORTED, "'x' is i32", &err);
    qd_weight_source_free(s);
    qd_weights_free(w);
}

static qd_tensor draw(uint64_t seed, const char *name, qd_init init, int64_t fan_in, int64_t n)
{
    qd_err err = { 0 };
    qd_weight_source *s = NULL;
    qd_tensor t = { 0 };
    const qd_shape shape = QD_SHAPE(n);
    check_ok(qd_weight_source_random(seed, NULL, &s, &err), &err);
    check_ok(qd_weight_source_take(s, name, &shape, init, fan_in, &t, &err), &err);
    check_ok(qd_weight_source_used_up(s, &err), &err);
    qd_weight_source_free(s);
    return t;
}

static void chance_keeps_its_bounds(void **state)
{
    enum { N = 20000 };
    qd_tensor t = draw(7, "a.weight", QD_INIT_UNIFORM, 16, N);
    double lo = 1, hi = -1, sum = 0, square = 0;
    for (int k = 0; k < N; k++) {
        const double x = qd_f32(&t)[k];
        lo = fmin(lo, x);
        hi = fmax(hi, x);
        sum += x;
        square += x * x;
    }
    assert_true(lo >= -0.25 && lo < -0.2495 && hi <= 0.25 && hi > 0.2495);
    assert_true(fabs(sum / N) < 4 * 0.25 / sqrt(3.0 * N)); /* 4 standard errors */
    assert_true(fabs(square / N / (0.25 * 0.25 / 3.0) - 1.0) < 0.03);
    qd_tensor_clear(&t);

    t = draw(7, "e.weight", QD_INIT_NORMAL, 1, N);
    square = 0;
    for (int k = 0; k < N; k++)
        square += (double)qd_f32(&t)[k] * qd_f32(&t)[k];
    assert_true(fabs(square / N - 1.0) < 4 * sqrt(2.0 / N));
    qd_tensor_clear(&t);

    t = draw(7, "n.weight", QD_INIT_ONE, 1, 3);
    assert_true(qd_f32(&t)[0] == 1.0f && qd_f32(&t)[2] == 1.0f);
    qd_tensor_clear(&t);
    t = draw(7, "n.bias", QD_INIT_ZERO, 1, 3);
    assert_true(qd_f32(&t)[0] == 0.0f && qd_f32(&t)[2] == 0.0f);
    qd_tensor_clear(&t);
}

static void chance_follows_seed_and_name(void **state)
{
    qd_tensor a = draw(7, "a.weight", QD_INIT_UNIFORM, 4, 64), same = draw(7, "a.weight", QD_INIT_UNIFORM, 4, 64);
    qd_tensor other_name = draw(7, "b.weight", QD_INIT_UNIFORM, 4, 64),
              other_seed = draw(8, "a.weight", QD_INIT_UNIFORM, 4, 64);
    assert_memory_equal(a.data, same.data, 64 * sizeof(float));
    assert_memory_not_equal(a.data, other_name.data, 64 * sizeof(float));
    assert_memory_not_equal(a.data, other_seed.data, 64 * sizeof(float));
    qd_tensor_clear(&a);
    qd_tensor_clear(&same);
    qd_tensor_clear(&other_name);
    qd_tensor_clear(&other_seed);
}

static void blank_costs_nothing(void **state)
{
    qd_err err = { 0 };
    qd_weight_source *s = NULL;
    qd_tensor t = { 0 };
    const qd_shape shape = QD_SHAPE(1 << 16, 1 << 12); /* 1 GiB, of which one page is read */
    check_ok(qd_weight_source_blank(&s, &err), &err);
    check_ok(qd_weight_source_take(s, "x", &shape, QD_INIT_ONE, 1, &t, &err), &err);
    assert_true(qd_f32(&t)[(1ll << 28) - 1] == 0.0f);
    qd_tensor_clear(&t);
    qd_weight_source_free(s);
}

static void budget_is_kept(void **state)
{
    qd_err err = { 0 };
    qd_budget budget;
    qd_weight_source *s = NULL;
    qd_tensor t = { 0 };
    const qd_shape shape = QD_SHAPE(1000);
    qd_budget_init(&budget, 3000);
    check_ok(qd_weight_source_random(1, &budget, &s, &err), &err);
    check_fails(qd_weight_source_take(s, "big.weight", &shape, QD_INIT_ONE, 1, &t, &err), QD_E_LIMIT, "big.weight",
                &err);
    qd_weight_source_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_is_consumed_once),        cmocka_unit_test(halves_are_widened),
        cmocka_unit_test(unaligned_tensors_are_copied), cmocka_unit_test(only_finite_floats),
        cmocka_unit_test(chance_keeps_its_bounds),      cmocka_unit_test(chance_follows_seed_and_name),
        cmocka_unit_test(blank_costs_nothing),          cmocka_unit_test(budget_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
