/* test_ops.c - every operator against PyTorch (golden/graph/make_ops.py), and the words of its refusals. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "graph/graph.h"
#include "graph/op.h"

typedef struct golden_tensor {
    qd_dtype dtype; /* QD_DTYPE_COUNT = left out */
    qd_shape shape;
    const float *data; /* whatever the dtype, as floats */
} golden_tensor;

typedef struct golden_case {
    const char *what, *op;
    double tolerance; /* of the largest value; 0 = exact */
    int n_inputs;
    golden_tensor in[QD_MAX_INPUTS];
    int n_attrs;
    qd_attr attr[QD_MAX_ATTRS];
    golden_tensor out;
} golden_case;

#include "golden/graph/ops_golden.h"

static void fill(qd_tensor *t, const golden_tensor *from)
{
    qd_err err = { 0 };
    check_ok(qd_tensor_init(t, from->dtype, &from->shape, NULL, &err), &err);
    for (int64_t i = 0; i < qd_tensor_count(t); i++) {
        if (t->dtype == QD_F32)
            qd_f32(t)[i] = from->data[i];
        else if (t->dtype == QD_I8)
            qd_i8(t)[i] = (int8_t)from->data[i];
        else if (t->dtype == QD_U8)
            qd_u8(t)[i] = (uint8_t)from->data[i];
        else
            ((int64_t *)t->data)[i] = (int64_t)from->data[i];
    }
}

/* One value, whatever the dtype, as a float. */
static float value_at(const qd_tensor *t, int64_t i)
{
    return t->dtype == QD_F32 ? qd_f32(t)[i] : t->dtype == QD_I8 ? qd_i8(t)[i] : qd_u8(t)[i];
}

static void run_case(const golden_case *c)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_tensor value[QD_MAX_INPUTS] = { 0 }, out = { 0 };
    const qd_tensor *in[QD_MAX_INPUTS] = { 0 };
    qd_node_id ids[QD_MAX_INPUTS];

    check_ok(qd_graph_new(&g, &err), &err);
    for (int k = 0; k < c->n_inputs; k++) {
        char name[16];
        snprintf(name, sizeof name, "in%d", k);
        ids[k] = -1;
        if (c->in[k].dtype == QD_DTYPE_COUNT)
            continue;
        fill(&value[k], &c->in[k]);
        ids[k] = qd_graph_const(g, name, &value[k]);
        in[k] = &value[k];
    }
    const qd_op *op = qd_op_find(c->op);
    assert_non_null(op);
    const qd_node_id id = qd_graph_add(g, op, c->what, ids, c->n_inputs, c->attr, c->n_attrs);
    qd_graph_output(g, "out", id);
    check_ok(qd_graph_verify(g, &err), &err);

    qd_shape shapes[QD_MAX_INPUTS + 1];
    check_ok(qd_graph_shapes(g, NULL, 0, shapes, &err), &err);
    const qd_node *n = qd_graph_node(g, id);
    char a[160], b[160];
    if (!qd_shape_equal(&shapes[id], &c->out.shape) || n->dtype != c->out.dtype)
        fail_msg("%s: %s %s, must be %s %s", c->what, qd_dtype_name(n->dtype), qd_shape_text(&shapes[id], a, sizeof a),
                 qd_dtype_name(c->out.dtype), qd_shape_text(&c->out.shape, b, sizeof b));

    check_ok(qd_tensor_init(&out, n->dtype, &shapes[id], NULL, &err), &err);
    op->forward(n, in, &out);
    double largest = 0.0;
    for (int64_t i = 0; i < qd_tensor_count(&out); i++)
        largest = fmax(largest, fabs((double)c->out.data[i]));
    for (int64_t i = 0; i < qd_tensor_count(&out); i++) {
        const float got = value_at(&out, i), want = c->out.data[i];
        if (!(fabs((double)got - want) <= c->tolerance * largest))
            fail_msg("%s: [%lld] is %.9g, must be %.9g", c->what, (long long)i, (double)got, (double)want);
    }

    qd_tensor_clear(&out);
    for (int k = 0; k < c->n_inputs; k++)
        qd_tensor_clear(&value[k]);
    qd_graph_free(g);
}

static void agrees_with_pytorch(void **state)
{
    for (size_t k = 0; k < sizeof golden_cases / sizeof *golden_cases; k++)
        run_case(&golden_cases[k]);
}

/* Every row that computes is judged by at least one golden. */
static void no_row_goes_unjudged(void **state)
{
    for (int k = 0; qd_ops[k]; k++) {
        bool seen = !qd_ops[k]->forward;
        for (size_t c = 0; c < sizeof golden_cases / sizeof *golden_cases; c++)
            seen = seen || strcmp(golden_cases[c].op, qd_ops[k]->name) == 0;
        if (!seen)
            fail_msg("no golden case for operator '%s'", qd_ops[k]->name);
    }
}

static void table_is_sound(void **state)
{
    for (int k = 0; qd_ops[k]; k++) {
        const qd_op *op = qd_ops[k];
        int n_attrs = 0;
        assert_ptr_equal(qd_op_find(op->name), op); /* so names are unique */
        assert_non_null(op->summary);
        assert_true(op->min_inputs <= op->max_inputs && op->max_inputs <= QD_MAX_INPUTS);
        assert_int_equal(op->infer != NULL, op->forward != NULL);
        for (const qd_op_attr *a = op->attrs; a && a->name; a++, n_attrs++)
            assert_non_null(a->summary);
        assert_true(n_attrs <= QD_MAX_ATTRS);
    }
    assert_null(qd_op_find("conv"));
}

/* --- refusals --- */

/* Puts one node with inputs of these shapes into a graph of its own and gives what verify says. */
typedef struct ask {
    qd_graph *g;
    qd_node_id in[QD_MAX_INPUTS];
    int n;
} ask;

static ask ask_new(void)
{
    qd_err err = { 0 };
    ask a = { 0 };
    check_ok(qd_graph_new(&a.g, &err), &err);
    return a;
}

static void ask_input(ask *a, qd_dtype dtype, qd_shape shape)
{
    char name[16];
    snprintf(name, sizeof name, "in%d", a->n);
    a->in[a->n++] = qd_graph_input(a->g, name, dtype, &shape);
}

static qd_status answer(ask *a, const qd_op *op, const qd_attr *attrs, int n_attrs, qd_err *err)
{
    qd_graph_output(a->g, "out", qd_graph_add(a->g, op, "node", a->in, a->n, attrs, n_attrs));
    const qd_status st = qd_graph_verify(a->g, err);
    qd_graph_free(a->g);
    return st;
}

static qd_status ask_conv(int64_t channels, int64_t out, int64_t weight_channels, const qd_attr *attrs, int n_attrs,
                          qd_err *err)
{
    ask a = ask_new();
    ask_input(&a, QD_F32, QD_SHAPE(-1, channels, 8, 8));
    ask_input(&a, QD_F32, QD_SHAPE(out, weight_channels, 3, 3));
    return answer(&a, &qd_op_conv2d, attrs, n_attrs, err);
}

static void conv_refuses(void **state)
{
    qd_err err = { 0 };
    const int64_t zero[2] = { 1, 0 }, huge[2] = { 70000, 1 }, negative[4] = { 0, -1, 0, 0 }, far[2] = { 9, 1 };
    check_ok(ask_conv(4, 6, 4, QD_NO_ATTRS, &err), &err);
    check_fails(ask_conv(4, 6, 3, QD_NO_ATTRS, &err), QD_E_INVALID, "node 'node' (conv2d): weight wants 3 channels",
                &err);
    check_fails(ask_conv(4, 6, 2, QD_ATTRS(QD_INT("groups", 3)), &err), QD_E_INVALID, "3 groups do not divide 4", &err);
    check_fails(ask_conv(4, 5, 2, QD_ATTRS(QD_INT("groups", 2)), &err), QD_E_INVALID,
                "2 groups do not divide 4 input and 5 output", &err);
    check_fails(ask_conv(4, 6, 2, QD_ATTRS(QD_INT("groups", 0)), &err), QD_E_INVALID, "groups must be 1..4, got 0",
                &err);
    check_fails(ask_conv(4, 6, 4, QD_ATTRS(qd_attr_ints("stride", 2, zero)), &err), QD_E_INVALID,
                "stride[1] must be 1..65535, got 0", &err);
    check_fails(ask_conv(4, 6, 4, QD_ATTRS(qd_attr_ints("stride", 2, huge)), &err), QD_E_INVALID,
                "stride[0] must be 1..65535, got 70000", &err);
    check_fails(ask_conv(4, 6, 4, QD_ATTRS(qd_attr_ints("pads", 4, negative)), &err), QD_E_INVALID,
                "pads[1] must be 0..65535, got -1", &err);
    check_fails(ask_conv(4, 6, 4, QD_ATTRS(qd_attr_ints("dilation", 2, far)), &err), QD_E_INVALID,
                "a window of height 19", &err);
    check_fails(ask_conv(4, 6, 4, QD_ATTRS(qd_attr_ints("pads", 2, negative)), &err), QD_E_INVALID,
                "pads has 2 values, must have 4", &err);
}

static qd_status ask_one(const qd_op *op, qd_dtype dtype, qd_shape x, const qd_attr *attrs, int n_attrs, qd_err *err)
{
    ask a = ask_new();
    ask_input(&a, dtype, x);
    return answer(&a, op, attrs, n_attrs, err);
}

static void shape_ops_refuse(void **state)
{
    qd_err err = { 0 };
    const qd_shape x = QD_SHAPE(-1, 6, 4);
    const int64_t twice[3] = { -1, -1, 1 }, keep[4] = { 0, 0, 0, 0 }, wrong[2] = { -1, 5 }, perm[3] = { 0, 1, 1 },
                  few[2] = { 0, 1 };
    const int64_t pads[6] = { 0, 0, INT64_MAX, 0, 0, 0 };
    check_fails(ask_one(&qd_op_reshape, QD_F32, x, QD_NO_ATTRS, &err), QD_E_INVALID, "attribute shape must be given",
                &err);
    check_fails(ask_one(&qd_op_reshape, QD_F32, x, QD_ATTRS(qd_attr_ints("shape", 3, twice)), &err), QD_E_INVALID,
                "shape has -1 at 0 and at 1", &err);
    check_fails(ask_one(&qd_op_reshape, QD_F32, x, QD_ATTRS(qd_attr_ints("shape", 4, keep)), &err), QD_E_INVALID,
                "shape[3] = 0 keeps a dim", &err);
    check_fails(ask_one(&qd_op_reshape, QD_F32, x, QD_ATTRS(qd_attr_ints("shape", 2, wrong)), &err), QD_E_INVALID,
                "cannot take shape [-1, 5]", &err);
    check_fails(ask_one(&qd_op_permute, QD_F32, x, QD_ATTRS(qd_attr_ints("perm", 3, perm)), &err), QD_E_INVALID,
                "axis 1 twice", &err);
    check_fails(ask_one(&qd_op_permute, QD_F32, x, QD_ATTRS(qd_attr_ints("perm", 2, few)), &err), QD_E_INVALID,
                "perm has 2 values, x has rank 3", &err);
    check_fails(ask_one(&qd_op_pad, QD_F32, x, QD_ATTRS(qd_attr_ints("pads", 6, pads)), &err), QD_E_INVALID, "pads[2]",
                &err);
    check_fails(
        ask_one(&qd_op_slice, QD_F32, x, QD_ATTRS(QD_INT("axis", 1), QD_INT("start", 4), QD_INT("length", 3)), &err),
        QD_E_INVALID, "length must be 1..2", &err);
    check_fails(ask_one(&qd_op_slice, QD_F32, x, QD_ATTRS(QD_INT("axis", 1), QD_INT("start", -7)), &err), QD_E_INVALID,
                "start must be -6..5, got -7", &err);
    check_fails(ask_one(&qd_op_slice, QD_F32, x, QD_ATTRS(QD_INT("axis", 3)), &err), QD_E_INVALID,
                "axis must be -3..2, got 3", &err);
    check_fails(ask_one(&qd_op_slice, QD_F32, x, QD_ATTRS(QD_INT("axis", 1), QD_INT("step", 0)), &err), QD_E_INVALID,
                "step must be 1", &err);

    ask a = ask_new();
    ask_input(&a, QD_F32, x);
    ask_input(&a, QD_F32, QD_SHAPE(-1, 2, 5));
    check_fails(answer(&a, &qd_op_concat, QD_NO_ATTRS, &err), QD_E_INVALID, "may differ in axis 1 only", &err);
    a = ask_new();
    ask_input(&a, QD_F32, x);
    ask_input(&a, QD_U8, x);
    check_fails(answer(&a, &qd_op_concat, QD_NO_ATTRS, &err), QD_E_INVALID, "input 1 is u8, must be f32", &err);
}

static void quant_ops_refuse(void **state)
{
    qd_err err = { 0 };
    const qd_shape x = QD_SHAPE(-1, 6, 4, 4);
    const qd_attr scale = QD_FLOAT("scale", 0.1);
    check_ok(ask_one(&qd_op_quantize, QD_F32, x, QD_ATTRS(scale, QD_INT("zero", 15), QD_INT("bits", 4)), &err), &err);
    check_fails(ask_one(&qd_op_quantize, QD_F32, x, QD_ATTRS(scale, QD_INT("zero", 16), QD_INT("bits", 4)), &err),
                QD_E_INVALID, "zero must be 0..15, got 16", &err);
    check_fails(ask_one(&qd_op_quantize, QD_F32, x, QD_ATTRS(scale, QD_INT("bits", 9)), &err), QD_E_INVALID,
                "bits must be 2..8, got 9", &err);
    check_ok(ask_one(&qd_op_fake_quant, QD_F32, x, QD_ATTRS(scale, QD_INT("bits", 16)), &err), &err);
    check_fails(ask_one(&qd_op_fake_quant, QD_F32, x, QD_ATTRS(scale, QD_INT("bits", 17)), &err), QD_E_INVALID,
                "bits must be 2..16", &err);
    const double bad[] = { 0.0, -1.0, NAN, INFINITY, 1e39, 1e-50, 1e-40 };
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        check_fails(ask_one(&qd_op_quantize, QD_F32, x, QD_ATTRS(QD_FLOAT("scale", bad[k])), &err), QD_E_INVALID,
                    "scale", &err);
    check_fails(ask_one(&qd_op_dequantize, QD_F32, x, QD_ATTRS(scale), &err), QD_E_INVALID, "codes is f32, must be u8",
                &err);
    check_fails(ask_one(&qd_op_dequantize, QD_I8, x, QD_ATTRS(scale, QD_INT("zero", 128)), &err), QD_E_INVALID,
                "zero must be -128..127", &err);

    /* A divisor is checked as soon as its values are known. */
    qd_tensor divisor = { 0 };
    check_ok(qd_tensor_init(&divisor, QD_F32, &(qd_shape){ 1, { 6 } }, NULL, &err), &err);
    for (int k = 0; k < 6; k++)
        qd_f32(&divisor)[k] = 1.0f - 0.5f * (k == 2) - (k == 4);
    ask a = ask_new();
    ask_input(&a, QD_F32, x);
    a.in[a.n++] = qd_graph_const(a.g, "divisor", &divisor);
    check_fails(answer(&a, &qd_op_quantize, QD_ATTRS(scale), &err), QD_E_INVALID,
                "divisor[4] must be finite and > 0, got 0", &err);
    qd_tensor_clear(&divisor);

    a = ask_new();
    ask_input(&a, QD_U8, QD_SHAPE(-1, 70000));
    ask_input(&a, QD_I8, QD_SHAPE(3, 70000));
    ask_input(&a, QD_F32, QD_SHAPE(3));
    check_fails(answer(&a, &qd_op_qlinear, QD_ATTRS(QD_FLOAT("x_scale", 1)), &err), QD_E_LIMIT,
                "a sum of 70000 products may overflow 32 bits", &err);
    a = ask_new();
    ask_input(&a, QD_U8, QD_SHAPE(-1, 7));
    ask_input(&a, QD_F32, QD_SHAPE(3, 7));
    ask_input(&a, QD_F32, QD_SHAPE(3));
    check_fails(answer(&a, &qd_op_qlinear, QD_ATTRS(QD_FLOAT("x_scale", 1)), &err), QD_E_INVALID,
                "weight is f32, must be i8", &err);
}

static void other_ops_refuse(void **state)
{
    qd_err err = { 0 };
    const qd_shape x = QD_SHAPE(-1, 6, 4, 4);
    const int64_t two[2] = { 2, 2 }, pads[4] = { 0, 2, 0, 0 };
    check_fails(
        ask_one(&qd_op_max_pool, QD_F32, x,
                QD_ATTRS(qd_attr_ints("kernel", 2, two), qd_attr_ints("stride", 2, two), qd_attr_ints("pads", 4, pads)),
                &err),
        QD_E_INVALID, "pads[1] must be smaller than the kernel's 2, got 2", &err);
    check_fails(ask_one(&qd_op_group_norm, QD_F32, x, QD_ATTRS(QD_INT("groups", 4)), &err), QD_E_INVALID,
                "4 groups do not divide 6 channels", &err);
    check_fails(ask_one(&qd_op_group_norm, QD_F32, x, QD_ATTRS(QD_INT("groups", 2), QD_FLOAT("eps", 0)), &err),
                QD_E_INVALID, "eps must be finite and > 0", &err);
    check_fails(ask_one(&qd_op_clip, QD_F32, x, QD_ATTRS(QD_FLOAT("lo", 1), QD_FLOAT("hi", 0)), &err), QD_E_INVALID,
                "lo must be <= hi", &err);
    check_fails(
        ask_one(&qd_op_timestep, QD_F32, QD_SHAPE(-1), QD_ATTRS(QD_INT("dim", 2), QD_INT("freq_shift", 1)), &err),
        QD_E_INVALID, "freq_shift must be below dim / 2 = 1", &err);
    check_fails(ask_one(&qd_op_upsample, QD_F32, QD_SHAPE(-1, 1 << 20, 1 << 10, 1 << 10),
                        QD_ATTRS(qd_attr_ints("factor", 2, two)), &err),
                QD_E_LIMIT, "the result of shape", &err);

    ask a = ask_new();
    ask_input(&a, QD_F32, x);
    ask_input(&a, QD_F32, QD_SHAPE(6, 3, 4));
    check_fails(answer(&a, &qd_op_add, QD_NO_ATTRS, &err), QD_E_INVALID, "do not broadcast: 4 against 3", &err);
    a = ask_new();
    for (int k = 0; k < 3; k++)
        ask_input(&a, QD_F32, QD_SHAPE(-1, 5, 8));
    check_fails(answer(&a, &qd_op_attention, QD_ATTRS(QD_INT("heads", 3)), &err), QD_E_INVALID,
                "3 heads do not divide 8 channels", &err);
    a = ask_new();
    ask_input(&a, QD_F32, QD_SHAPE(-1, 5, 8));
    ask_input(&a, QD_F32, QD_SHAPE(4, 7));
    check_fails(answer(&a, &qd_op_linear, QD_NO_ATTRS, &err), QD_E_INVALID, "x has 8 features, weight wants 7", &err);
    a = ask_new();
    ask_input(&a, QD_F32, QD_SHAPE(-1, 5, 8));
    ask_input(&a, QD_F32, QD_SHAPE(4, 7));
    check_fails(answer(&a, &qd_op_matmul, QD_NO_ATTRS, &err), QD_E_INVALID, "a has 8 columns, b has 4 rows", &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_pytorch), cmocka_unit_test(no_row_goes_unjudged),
        cmocka_unit_test(table_is_sound),      cmocka_unit_test(conv_refuses),
        cmocka_unit_test(shape_ops_refuse),    cmocka_unit_test(quant_ops_refuse),
        cmocka_unit_test(other_ops_refuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
