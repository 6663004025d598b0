/* test_k_norm.c - normalisation: what comes out has mean 0 and variance 1, and the three kernels agree where they meet. */
#include "harness/harness.h"

#include <math.h>

#include "tensor/kernels.h"

enum { N = 2, C = 6, SPACE = 35 };

static void groups_have_mean_0_and_variance_1(void **state)
{
    static float x[N * C * SPACE], y[N * C * SPACE];
    harness_normal(x, N * C * SPACE, 4, 2.0f);
    for (int k = 0; k < N * C * SPACE; k++)
        x[k] += 100.0f;
    qd_k_group_norm(y, x, NULL, NULL, N, C, SPACE, 3, 1e-12f);
    const int width = C / 3 * SPACE;
    for (int g = 0; g < N * 3; g++) {
        double sum = 0.0, squares = 0.0;
        for (int k = 0; k < width; k++) {
            sum += y[g * width + k];
            squares += (double)y[g * width + k] * y[g * width + k];
        }
        assert_true(fabs(sum / width) < 1e-6);
        assert_true(fabs(squares / width - 1.0) < 1e-6);
    }
}

/* One group over one "channel" of everything is a layer norm; with its own statistics a batch norm is an instance norm. */
static void kernels_meet(void **state)
{
    static float x[C * SPACE], a[C * SPACE], b[C * SPACE];
    float w[C], bias[C], mean[C], var[C];
    harness_normal(x, C * SPACE, 6, 1.5f);
    harness_normal(w, C, 7, 1.0f);
    harness_normal(bias, C, 8, 1.0f);
    qd_k_group_norm(a, x, NULL, NULL, 1, C, SPACE, 1, 1e-5f);
    qd_k_layer_norm(b, x, NULL, NULL, 1, C * SPACE, 1e-5f);
    check_close(a, b, C * SPACE, 0, 0);

    for (int c = 0; c < C; c++) {
        double sum = 0.0, squares = 0.0;
        for (int k = 0; k < SPACE; k++)
            sum += x[c * SPACE + k];
        for (int k = 0; k < SPACE; k++)
            squares += pow(x[c * SPACE + k] - sum / SPACE, 2);
        mean[c] = (float)(sum / SPACE);
        var[c] = (float)(squares / SPACE);
    }
    qd_k_group_norm(a, x, w, bias, 1, C, SPACE, C, 1e-5f);
    qd_k_batch_norm(b, x, w, bias, mean, var, 1, C, SPACE, 1e-5f);
    check_close(a, b, C * SPACE, 0, 1e-6); /* mean and var are rounded to float for the batch norm */
}

static void constant_input_gives_the_bias(void **state)
{
    float x[C * 2], y[C * 2], w[C], bias[C];
    for (int k = 0; k < C * 2; k++)
        x[k] = 0.1f;
    for (int c = 0; c < C; c++) {
        w[c] = 3.0f;
        bias[c] = (float)c;
    }
    qd_k_group_norm(y, x, w, bias, 1, C, 2, 2, 1e-6f);
    for (int k = 0; k < C * 2; k++)
        assert_true(y[k] == (float)(k / 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_have_mean_0_and_variance_1),
        cmocka_unit_test(kernels_meet),
        cmocka_unit_test(constant_input_gives_the_bias),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
