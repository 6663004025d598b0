/* test_plan_vs_ref.c - random graphs: the fast backend and plain loops agree, and one thread or two give the same bytes. */
#include "core/plan/plan_case.h"

#define GRAPHS 400
#define POOL 24

/* Images in play, all with the same batch. */
typedef struct image {
    qd_node_id id;
    int64_t c, h, w;
} image;

static image any(plan_case *c, const image *pool, int n)
{
    return pool[case_pick(c, n > 6 ? n - 6 : 0, n - 1)];
}

static int64_t divisor_of(plan_case *c, int64_t n)
{
    int64_t d = case_pick(c, 1, 8);
    while (n % d)
        d--;
    return d;
}

static image grow(plan_case *c, const image *pool, int n)
{
    image x = any(c, pool, n), y = x;
    const int64_t out = case_pick(c, 1, 3) * (case_pick(c, 0, 1) ? 8 : 5);
    switch (case_pick(c, 0, 12)) {
    case 0:
    case 1: {
        const case_conv_shape s = { .in = x.c, .out = out, .kernel = 3, .pads = { 1, 1, 1, 1 } };
        return (image){ case_conv(c, x.id, s), out, x.h, x.w };
    }
    case 2:
        return (image){ case_conv(c, x.id, (case_conv_shape){ .in = x.c, .out = out, .kernel = 1 }), out, x.h, x.w };
    case 3:
        if (x.h < 4 || x.w < 4)
            return x;
        return (image){ case_conv(c, x.id,
                                  (case_conv_shape){
                                      .in = x.c, .out = x.c, .kernel = 3, .stride = 2, .pads = { 0, 0, 1, 1 } }),
                        x.c, (x.h - 2) / 2 + 1, (x.w - 2) / 2 + 1 };
    case 4:
    case 5:
        y.id = case_norm(c, x.id, x.c, divisor_of(c, x.c));
        if (case_pick(c, 0, 1))
            y.id = case_unary(c, &qd_op_silu, y.id);
        return y;
    case 6: {
        const qd_node_id t = case_const(c, QD_SHAPE(1, x.c, 1, 1), 0.0f, 1.0f);
        y.id = case_norm(c, case_binary(c, &qd_op_add, x.id, t), x.c, divisor_of(c, x.c));
        return y;
    }
    case 7:
        for (int k = 0; k < n; k++)
            if (pool[k].h == x.h && pool[k].w == x.w && pool[k].id != x.id && pool[k].c + x.c < 64)
                return (image){ case_concat(c, x.id, pool[k].id), x.c + pool[k].c, x.h, x.w };
        return x;
    case 8:
        for (int k = n - 1; k >= 0; k--)
            if (pool[k].h == x.h && pool[k].w == x.w && pool[k].c == x.c && pool[k].id != x.id) {
                y.id = case_binary(c, &qd_op_add, x.id, pool[k].id);
                return y;
            }
        return x;
    case 9:
        if (x.h * x.w > 100)
            return x;
        return (image){ case_ints(c, &qd_op_upsample, x.id, "factor", CASE_DIMS(2, 2)), x.c, 2 * x.h, 2 * x.w };
    case 10: {
        const int64_t first = case_pick(c, 0, x.c - 1), count = case_pick(c, 1, x.c - first);
        y.id = qd_graph_add(c->g, &qd_op_slice, case_name(c), QD_IN(x.id),
                            QD_ATTRS(QD_INT("axis", 1), QD_INT("start", first), QD_INT("length", count)));
        y.c = count;
        return y;
    }
    case 11: { /* through tokens and back */
        qd_node_id t = case_ints(c, &qd_op_permute, x.id, "perm", CASE_DIMS(0, 2, 3, 1));
        t = case_ints(c, &qd_op_reshape, t, "shape", CASE_DIMS(0, x.h * x.w, x.c));
        t = case_linear(c, t, x.c, x.c);
        t = case_ints(c, &qd_op_reshape, t, "shape", CASE_DIMS(0, x.h, x.w, x.c));
        y.id = case_ints(c, &qd_op_permute, t, "perm", CASE_DIMS(0, 3, 1, 2));
        if (case_pick(c, 0, 1))
            y.id = case_binary(c, &qd_op_add, y.id, x.id);
        return y;
    }
    default: {
        static const qd_op *const acts[] = { &qd_op_silu, &qd_op_relu, &qd_op_sigmoid };
        y.id = case_unary(c, acts[case_pick(c, 0, 2)], x.id);
        return y;
    }
    }
}

static void check_graph(uint64_t seed, bool integer)
{
    plan_case c = case_new(seed);
    const int64_t batch = case_pick(&c, 1, 3);
    image pool[POOL];
    int n = 0;
    pool[n++] = (image){ -1, case_pick(&c, 1, 20), case_pick(&c, 3, 9), case_pick(&c, 3, 9) };
    pool[0].id = case_input(&c, QD_SHAPE(batch, pool[0].c, pool[0].h, pool[0].w));
    const int length = (int)case_pick(&c, 4, POOL - 3);
    for (; n <= length; n++)
        pool[n] = grow(&c, pool, n);
    if (integer) { /* at the end, where a code that flips disturbs one layer only */
        const image x = pool[n - 1];
        const bool symmetric = case_pick(&c, 0, 1);
        const int64_t zero = symmetric ? 0 : 100, pad = case_pick(&c, 0, 1);
        const qd_node_id q =
            case_quantize(&c, x.id, symmetric, zero, case_pick(&c, 0, 1) ? case_positive(&c, x.c) : -1);
        case_output(&c, case_qconv(&c, q, zero,
                                   (case_conv_shape){
                                       .in = x.c, .out = 12, .kernel = 1 + 2 * pad, .pads = { pad, pad, pad, pad } }));
    } else {
        for (int k = 0; k < 3 && n - 1 - k > 0; k++)
            case_output(&c, pool[n - 1 - k].id);
    }
    print_message("seed %llu\n", (unsigned long long)seed);
    case_check(&c, integer ? 2e-2 : 3e-5);
}

static void test_float_graphs(void **state)
{
    for (uint64_t k = 0; k < GRAPHS; k++)
        check_graph(1000 + k, false);
}

static void test_integer_graphs(void **state)
{
    for (uint64_t k = 0; k < GRAPHS / 2; k++)
        check_graph(9000 + k, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float_graphs),
        cmocka_unit_test(test_integer_graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
