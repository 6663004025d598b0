/* test_convert.c - every layout to every other and back, with borders and shifted codes. */
#include "core/plan/plan_case.h"

static void test_there_and_back(void **state)
{
    static const qd_dtype dtypes[] = { QD_U8, QD_I8, QD_F16, QD_F32, QD_I64 };
    const qd_shape shapes[] = { QD_SHAPE(2, 5, 7, 19), QD_SHAPE(3, 17, 4), QD_SHAPE(4, 9), QD_SHAPE(6),
                                QD_SHAPE(2, 1, 3, 3) };
    uint8_t plain[8 * 2 * 5 * 7 * 19], there[8 * 2 * 5 * 12 * 24], back[sizeof(plain)];
    for (int s = 0; s < 5; s++)
        for (int d = 0; d < 5; d++) {
            const qd_value row = { .dtype = dtypes[d], .shape = shapes[s] };
            qd_value last = { .dtype = dtypes[d],
                              .shape = shapes[s],
                              .layout = shapes[s].rank > 2 ? QD_LAYOUT_LAST : QD_LAYOUT_ROW };
            if (shapes[s].rank == 4 && d < 2)
                memcpy(last.border, (const int32_t[]){ 1, 2, 3, 0 }, sizeof(last.border));
            last.shifted = dtypes[d] == QD_I8;
            for (size_t k = 0; k < sizeof(plain); k++)
                plain[k] = (uint8_t)(k * 37 + k / 251);
            memset(back, 0, sizeof(back));
            qd_value_convert(&last, there, &row, plain, 77);
            qd_value_convert(&row, back, &last, there, 0);
            assert_memory_equal(plain, back, qd_value_bytes(&row));
            if (last.border[0])
                assert_int_equal(there[0], 77);
            const qd_value open = {
                .dtype = dtypes[d], .shape = shapes[s], .layout = last.layout, .shifted = last.shifted
            };
            uint8_t *inner = malloc(qd_value_bytes(&open)); /* the border alone comes off */
            qd_value_convert(&open, inner, &last, there, 0);
            memset(back, 0, sizeof(back));
            qd_value_convert(&row, back, &open, inner, 0);
            assert_memory_equal(plain, back, qd_value_bytes(&row));
            free(inner);
        }
}

static void test_channels_last(void **state)
{
    const qd_shape shape = QD_SHAPE(1, 2, 1, 3);
    const qd_value row = { .dtype = QD_F32, .shape = shape },
                   last = { .dtype = QD_F32, .shape = shape, .layout = QD_LAYOUT_LAST };
    const float plain[6] = { 0, 1, 2, 10, 11, 12 }, want[6] = { 0, 10, 1, 11, 2, 12 };
    float got[6], again[6];
    qd_value_convert(&last, got, &row, plain, 0);
    assert_memory_equal(got, want, sizeof(want));
    qd_value_to_float(again, &last, got);
    assert_memory_equal(again, plain, sizeof(plain));
    const qd_value codes = { .dtype = QD_I8, .shape = QD_SHAPE(3), .shifted = true };
    qd_value_to_float(again, &codes, (const uint8_t[]){ 0, 128, 255 });
    assert_memory_equal(again, ((const float[]){ -128, 0, 127 }), 3 * sizeof(float));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_channels_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
