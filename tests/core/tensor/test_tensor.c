/* test_tensor.c - shapes that cannot overflow, storage that is counted and paid for, casts that refuse what does not fit. */
#include "harness/harness.h"

#include <math.h>
#include <string.h>

#include "tensor/tensor.h"

static void shapes(void **state)
{
    qd_err err = { 0 };
    int64_t n;
    char text[64], small[8];
    const qd_shape s = QD_SHAPE(2, 3, 4), scalar = qd_shape_of(0, NULL);
    check_ok(qd_shape_count(&s, &n, &err), &err);
    assert_int_equal(n, 24);
    check_ok(qd_shape_count(&scalar, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_string_equal(qd_shape_text(&s, text, sizeof text), "[2, 3, 4]");
    assert_string_equal(qd_shape_text(&scalar, text, sizeof text), "[]");
    assert_string_equal(qd_shape_text(&s, small, sizeof small), "[2, 3, ");

    const qd_shape t = QD_SHAPE(2, 3), u = QD_SHAPE(2, 3, 5);
    assert_true(qd_shape_equal(&s, &s));
    assert_false(qd_shape_equal(&s, &t));
    assert_false(qd_shape_equal(&s, &u));

    const qd_shape negative = QD_SHAPE(2, -1), huge = QD_SHAPE(1ll << 32, 1ll << 32), empty = QD_SHAPE(1ll << 62, 4, 0);
    check_fails(qd_shape_count(&negative, &n, &err), QD_E_INVALID, "[2, -1]", &err);
    check_fails(qd_shape_count(&huge, &n, &err), QD_E_LIMIT, "too many", &err);
    check_ok(qd_shape_count(&empty, &n, &err), &err);
    assert_int_equal(n, 0);
    qd_tensor none = { 0 };
    check_ok(qd_tensor_init(&none, QD_F32, &empty, NULL, &err), &err);
    assert_int_equal(qd_tensor_count(&none), 0);
    qd_tensor_clear(&none);
    const qd_shape rank9 = { .rank = 9 };
    check_fails(qd_shape_count(&rank9, &n, &err), QD_E_INVALID, "rank 9", &err);
}

static void budgets(void **state)
{
    qd_err err = { 0 };
    qd_budget b;
    qd_budget_init(&b, 1000);
    const qd_shape s = QD_SHAPE(10, 20);
    qd_tensor t = { 0 }, u = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, &s, &b, &err), &err);
    assert_int_equal(b.used_bytes, 800);
    assert_int_equal((uintptr_t)t.data % 64, 0);
    for (int k = 0; k < 200; k++)
        assert_true(qd_f32(&t)[k] == 0);
    check_fails(qd_tensor_init(&u, QD_F32, &s, &b, &err), QD_E_LIMIT, "a tensor [10, 20] of f32 needs 800 bytes", &err);
    assert_null(u.storage);

    qd_tensor_share(&u, &t);
    qd_tensor_clear(&t);
    assert_int_equal(b.used_bytes, 800); /* u still holds it */
    assert_null(t.data);
    qd_tensor_clear(&u);
    assert_int_equal(b.used_bytes, 0);
    qd_tensor_clear(&u);

    const qd_shape wide = QD_SHAPE(1ll << 61, 2);
    check_fails(qd_tensor_init(&u, QD_F64, &wide, NULL, &err), QD_E_LIMIT, "does not fit", &err);
}

static void packed_rows(void **state)
{
    qd_err err = { 0 };
    const struct {
        qd_shape shape;
        size_t bytes, six; /* as I4, as I6 */
    } rows[] = {
        { QD_SHAPE(3, 5), 9, 12 },      { QD_SHAPE(3, 4), 6, 9 },      { QD_SHAPE(1), 1, 1 },
        { qd_shape_of(0, NULL), 1, 1 }, { QD_SHAPE(4, 0), 0, 0 },      { QD_SHAPE(2, 3, 3, 3), 28, 42 },
        { QD_SHAPE(0, 4), 0, 0 },       { QD_SHAPE(7, 5, 1), 21, 28 },
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        qd_tensor t;
        check_ok(qd_tensor_init(&t, QD_I4, &rows[k].shape, NULL, &err), &err);
        assert_int_equal(qd_tensor_bytes(&t), rows[k].bytes);
        qd_tensor_clear(&t);
        check_ok(qd_tensor_init(&t, QD_I6, &rows[k].shape, NULL, &err), &err);
        assert_int_equal(qd_tensor_bytes(&t), rows[k].six);
        qd_tensor_clear(&t);
    }
}

static void packed_codes(void **state)
{
    qd_err err = { 0 };
    qd_tensor codes, packed, back;
    /* The layout itself: low nibble first, a row ends with its byte; six bits follow each other from the low end. */
    const qd_shape small = QD_SHAPE(2, 3);
    check_ok(qd_tensor_init(&codes, QD_I8, &small, NULL, &err), &err);
    memcpy(codes.data, (int8_t[]){ 1, -2, 7, -8, 0, -1 }, 6);
    check_ok(qd_tensor_pack(&packed, &codes, QD_I4, NULL, &err), &err);
    assert_memory_equal(packed.data, ((uint8_t[]){ 0xe1, 0x07, 0x08, 0x0f }), 4);
    qd_tensor_clear(&packed);
    check_ok(qd_tensor_pack(&packed, &codes, QD_I6, NULL, &err), &err);
    assert_memory_equal(packed.data, ((uint8_t[]){ 0x81, 0x7f, 0x00, 0x38, 0xf0, 0x03 }), 6);
    qd_tensor_clear(&packed);
    qd_i8(&codes)[4] = 8;
    check_fails(qd_tensor_pack(&packed, &codes, QD_I4, NULL, &err), QD_E_INVALID, "code 4 is 8, 4 bits hold -8..7",
                &err);
    qd_tensor_clear(&codes);

    /* There and back, for every length of a row. */
    for (int bits = 4; bits <= 6; bits += 2)
        for (int64_t row = 1; row < 40; row++) {
            const qd_shape shape = QD_SHAPE(3, row);
            check_ok(qd_tensor_init(&codes, QD_I8, &shape, NULL, &err), &err);
            for (int64_t k = 0; k < 3 * row; k++)
                qd_i8(&codes)[k] = (int8_t)(k * 7 % (1 << bits) - (1 << (bits - 1)));
            check_ok(qd_tensor_pack(&packed, &codes, bits == 4 ? QD_I4 : QD_I6, NULL, &err), &err);
            assert_int_equal(qd_tensor_bytes(&packed), 3 * (((size_t)row * (size_t)bits + 7) / 8));
            check_ok(qd_tensor_unpack(&back, &packed, NULL, &err), &err);
            assert_int_equal(back.dtype, QD_I8);
            assert_memory_equal(back.data, codes.data, 3 * (size_t)row);
            qd_tensor_clear(&codes);
            qd_tensor_clear(&packed);
            qd_tensor_clear(&back);
        }
}

static void count_release(void *owner)
{
    (*(int *)owner)++;
}

static void wrapped_storage_is_released_once(void **state)
{
    qd_err err = { 0 };
    int released = 0;
    const float data[6] = { 1, 2, 3, 4, 5, 6 };
    const qd_shape s = QD_SHAPE(2, 3);
    qd_tensor t, u, copy;
    check_ok(qd_tensor_wrap(&t, QD_F32, &s, data, &released, count_release, &err), &err);
    assert_ptr_equal(t.data, data);
    assert_int_equal(qd_tensor_bytes(&t), 24);
    assert_int_equal(qd_tensor_count(&t), 6);
    qd_tensor_share(&u, &t);
    qd_tensor_clear(&t);
    assert_int_equal(released, 0);
    check_ok(qd_tensor_copy(&copy, &u, NULL, &err), &err);
    qd_tensor_clear(&u);
    assert_int_equal(released, 1);
    assert_memory_equal(copy.data, data, sizeof data);
    qd_tensor_clear(&copy);
}

static void casts(void **state)
{
    qd_err err = { 0 };
    const qd_shape s = QD_SHAPE(4);
    qd_tensor t, u, v;
    /* From an address no float may have: mapped files give such. */
    char raw[4 * sizeof(float) + 1];
    const float data[4] = { 1.5f, -2.5f, 100.25f, -0.0f };
    memcpy(raw + 1, data, sizeof data);
    check_ok(qd_tensor_wrap(&t, QD_F32, &s, raw + 1, NULL, NULL, &err), &err);

    static const qd_dtype reals[] = { QD_F64, QD_F32, QD_F16, QD_BF16 };
    for (int k = 0; k < 3; k++) { /* bf16 cannot hold 100.25 */
        check_ok(qd_tensor_cast(&u, &t, reals[k], NULL, &err), &err);
        check_ok(qd_tensor_cast(&v, &u, QD_F32, NULL, &err), &err);
        assert_memory_equal(v.data, data, sizeof data);
        qd_tensor_clear(&u);
        qd_tensor_clear(&v);
    }
    check_ok(qd_tensor_cast(&u, &t, QD_I8, NULL, &err), &err);
    assert_memory_equal(u.data, ((const int8_t[]){ 2, -2, 100, 0 }), 4); /* half to even */
    check_fails(qd_tensor_cast(&v, &t, QD_U8, NULL, &err), QD_E_INVALID, "element 1 is -2 and does not fit u8", &err);
    check_fails(qd_tensor_cast(&v, &t, QD_BOOL, NULL, &err), QD_E_UNSUPPORTED, "f32 to bool", &err);
    check_ok(qd_tensor_cast(&v, &u, QD_I64, NULL, &err), &err);
    assert_int_equal(((int64_t *)v.data)[1], -2);
    qd_tensor_clear(&u);
    ((int64_t *)v.data)[3] = 1ll << 40;
    check_fails(qd_tensor_cast(&u, &v, QD_I32, NULL, &err), QD_E_INVALID, "element 3 is 1099511627776", &err);
    qd_tensor_clear(&v);
    qd_tensor_clear(&t);

    const float nan[4] = { 0, NAN, 0, 0 };
    check_ok(qd_tensor_wrap(&t, QD_F32, &s, nan, NULL, NULL, &err), &err);
    check_fails(qd_tensor_cast(&u, &t, QD_I64, NULL, &err), QD_E_INVALID, "does not fit i64", &err);
    qd_tensor_clear(&t);

    /* Two roundings would give the even neighbour here: 1 + 2^-11 + 2^-40 is above the f16 midpoint, its f32 is the midpoint. */
    const double twice[4] = { 1 + 0x1p-11 + 0x1p-40, 1 + 0x1p-11 - 0x1p-40, -1 - 0x1p-11 - 0x1p-40, 1e300 };
    check_ok(qd_tensor_wrap(&t, QD_F64, &s, twice, NULL, NULL, &err), &err);
    check_ok(qd_tensor_cast(&u, &t, QD_F16, NULL, &err), &err);
    assert_memory_equal(u.data, ((const uint16_t[]){ 0x3c01, 0x3c00, 0xbc01, 0x7c00 }), 8);
    qd_tensor_clear(&u);
    qd_tensor_clear(&t);
}

static qd_status make_all(void *ctx, qd_err *err)
{
    const qd_shape s = QD_SHAPE(3, 5);
    qd_budget *b = ctx;
    qd_tensor t = { 0 }, u = { 0 }, v = { 0 };
    qd_status st = qd_tensor_init(&t, QD_F32, &s, b, err);
    if (!st)
        st = qd_tensor_copy(&u, &t, b, err);
    if (!st)
        st = qd_tensor_cast(&v, &u, QD_F16, b, err);
    qd_tensor_clear(&t);
    qd_tensor_clear(&u);
    qd_tensor_clear(&v);
    return st;
}

static void out_of_memory(void **state)
{
    qd_budget b;
    qd_budget_init(&b, 1000);
    assert_int_equal(harness_run_each_alloc(make_all, &b, 20), 6);
    assert_int_equal(b.used_bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes),
        cmocka_unit_test(budgets),
        cmocka_unit_test(packed_rows),
        cmocka_unit_test(packed_codes),
        cmocka_unit_test(wrapped_storage_is_released_once),
        cmocka_unit_test(casts),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
