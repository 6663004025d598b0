/* test_gguf.c - weights for others: names as before, floats exact, blocks as ggml defines them, files of strangers refused. */
#include "core/plan/plan_case.h"

#include "base/bytes.h"
#include "base/fs.h"
#include "model/model.h"

/* Layers of every kind of weight: codes of 8 and 4 bits, in groups, halves of a split one, weights alone in 8 bits, floats. */
static const qd_tensor *value_of(const qd_graph *g, const char *name)
{
    const qd_node_id id = qd_graph_find(g, name);
    assert_true(id >= 0);
    return &qd_graph_node(g, id)->value;
}

static qd_node_id codes_const(plan_case *c, const char *name, const qd_shape *shape, int bits)
{
    qd_err err = { 0 };
    qd_tensor t, packed;
    const int64_t most = (1 << (bits - 1)) - 1;
    check_ok(qd_tensor_init(&t, QD_I8, shape, NULL, &err), &err);
    for (int64_t k = 0; k < qd_tensor_count(&t); k++)
        qd_i8(&t)[k] = (int8_t)case_pick(c, -most, most);
    if (bits == 4) {
        check_ok(qd_tensor_pack(&packed, &t, QD_I4, NULL, &err), &err);
        qd_tensor_clear(&t);
        t = packed;
    }
    const qd_node_id id = qd_graph_const(c->g, name, &t);
    qd_tensor_clear(&t);
    return id;
}

/* Scales that a half float holds exactly. */
static qd_node_id scale_const(plan_case *c, const char *name, const qd_shape *shape)
{
    qd_err err = { 0 };
    qd_tensor t;
    check_ok(qd_tensor_init(&t, QD_F32, shape, NULL, &err), &err);
    for (int64_t k = 0; k < qd_tensor_count(&t); k++)
        qd_f32(&t)[k] = (float)case_pick(c, 1, 63) / 256.0f;
    const qd_node_id id = qd_graph_const(c->g, name, &t);
    qd_tensor_clear(&t);
    return id;
}

static qd_node_id layer(plan_case *c, const char *name, qd_node_id codes, const qd_shape *weight, int bits,
                        int64_t group)
{
    char text[3][64];
    const qd_shape scales =
        group ? QD_SHAPE(weight->dim[0], qd_k_scales(weight->dim[1], group)) : QD_SHAPE(weight->dim[0]);
    snprintf(text[0], sizeof text[0], "%s.weight", name);
    snprintf(text[1], sizeof text[1], "%s.wscale", name);
    const qd_node_id w = codes_const(c, text[0], weight, bits), s = scale_const(c, text[1], &scales);
    return qd_graph_add(c->g, &qd_op_qconv2d, name, QD_IN(codes, w, s),
                        QD_ATTRS(QD_FLOAT("x_scale", 0.03), QD_INT("x_zero", 9), QD_INT("group_size", group),
                                 qd_attr_ints("pads", 4,
                                              (const int64_t[]){ weight->dim[2] / 2, weight->dim[2] / 2,
                                                                 weight->dim[2] / 2, weight->dim[2] / 2 })));
}

static plan_case network(void)
{
    qd_err err = { 0 };
    plan_case c = case_new(9);
    const qd_shape three = QD_SHAPE(32, 64, 3, 3), one = QD_SHAPE(32, 64, 1, 1), half = QD_SHAPE(32, 32, 1, 1),
                   odd = QD_SHAPE(5, 64, 1, 1);
    const qd_node_id x = case_input(&c, QD_SHAPE(1, 64, 4, 4)), q = case_quantize(&c, x, false, 9, -1);
    const qd_node_id part =
        qd_graph_add(c.g, &qd_op_slice, "half", QD_IN(q), QD_ATTRS(QD_INT("axis", 1), QD_INT("length", 32)));
    qd_node_id y = layer(&c, "eight", q, &three, 8, 0);
    y = case_binary(&c, &qd_op_add, y, layer(&c, "four", q, &one, 4, 0));
    y = case_binary(&c, &qd_op_add, y, layer(&c, "grouped", q, &three, 4, 32));
    const qd_node_id a = layer(&c, "skip.split0", part, &half, 4, 0), b = layer(&c, "skip.split1", part, &half, 4, 0);
    y = case_binary(&c, &qd_op_add, y, qd_graph_add(c.g, &qd_op_add, "skip", QD_IN(a, b), QD_NO_ATTRS));
    const qd_node_id codes = codes_const(&c, "alone.weight", &odd, 8);
    const qd_shape spread = QD_SHAPE(5, 1, 1, 1);
    const qd_node_id s = scale_const(&c, "alone.wscale", &spread);
    const qd_node_id d = qd_graph_add(c.g, &qd_op_dequantize, "alone.d", QD_IN(codes), QD_ATTRS(QD_FLOAT("scale", 1)));
    const qd_node_id w = qd_graph_add(c.g, &qd_op_mul, "alone.m", QD_IN(d, s), QD_NO_ATTRS);
    case_output(&c, qd_graph_add(c.g, &qd_op_conv2d, "alone", QD_IN(x, w), QD_NO_ATTRS));
    qd_tensor t = { 0 };
    const qd_shape tail = QD_SHAPE(7, 32, 3, 3);
    check_ok(qd_tensor_init(&t, QD_F32, &tail, NULL, &err), &err);
    harness_normal(qd_f32(&t), qd_tensor_count(&t), 3, 0.1f);
    case_output(
        &c, qd_graph_add(c.g, &qd_op_conv2d, "tail", QD_IN(y, qd_graph_const(c.g, "tail.weight", &t)), QD_NO_ATTRS));
    qd_tensor_clear(&t);
    check_ok(qd_graph_verify(c.g, &err), &err);
    return c;
}

static void floats_by_name(void **state)
{
    qd_err err = { 0 };
    plan_case c = network();
    qd_weights *w = NULL;
    check_ok(qd_graph_float_weights(c.g, NULL, &w, &err), &err);
    assert_int_equal(qd_weights_count(w), 6);
    const qd_tensor *eight = qd_weights_find(w, "eight.weight"), *skip = qd_weights_find(w, "skip.weight");
    const qd_tensor *grouped = qd_weights_find(w, "grouped.weight"), *alone = qd_weights_find(w, "alone.weight");
    assert_true(eight && skip && grouped && alone && qd_weights_find(w, "tail.weight") &&
                qd_weights_find(w, "four.weight"));
    for (int64_t k = 0; k < qd_tensor_count(eight); k++)
        assert_true(qd_f32(eight)[k] ==
                    (float)qd_i8(value_of(c.g, "eight.weight"))[k] * qd_f32(value_of(c.g, "eight.wscale"))[k / 576]);
    qd_tensor plain;
    check_ok(qd_tensor_unpack(&plain, value_of(c.g, "grouped.weight"), NULL, &err), &err);
    for (int64_t k = 0; k < qd_tensor_count(grouped); k++)
        assert_true(qd_f32(grouped)[k] ==
                    (float)qd_i8(&plain)[k] * qd_f32(value_of(c.g, "grouped.wscale"))[k / 576 * 2 + k % 576 / 288]);
    qd_tensor_clear(&plain);
    assert_int_equal(skip->shape.dim[1], 64);
    check_ok(qd_tensor_unpack(&plain, value_of(c.g, "skip.split1.weight"), NULL, &err), &err);
    for (int64_t o = 0; o < 32; o++)
        for (int64_t i = 0; i < 32; i++)
            assert_true(qd_f32(skip)[o * 64 + 32 + i] ==
                        (float)qd_i8(&plain)[o * 32 + i] * qd_f32(value_of(c.g, "skip.split1.wscale"))[o]);
    qd_tensor_clear(&plain);
    for (int64_t k = 0; k < qd_tensor_count(alone); k++)
        assert_true(qd_f32(alone)[k] ==
                    (float)qd_i8(value_of(c.g, "alone.weight"))[k] * qd_f32(value_of(c.g, "alone.wscale"))[k / 64]);
    qd_weights_free(w);
    qd_graph_free(c.g);
}

static void blocks(void **state)
{
    qd_err err = { 0 };
    plan_case c = network();
    const char *path = harness_tmp();
    char file[1400];
    qd_weights *want = NULL, *got = NULL;
    qd_meta *meta = NULL;
    snprintf(file, sizeof file, "%s/a.gguf", path);
    check_ok(qd_graph_float_weights(c.g, NULL, &want, &err), &err);
    check_ok(qd_gguf_save(file, c.g, NULL, "auto", NULL, NULL, &err), &err);
    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_gguf_open(file, NULL, &got, meta, &err), &err);
    assert_string_equal(qd_meta_find(meta, "general.architecture"), "quantd");
    assert_int_equal(qd_weights_count(got), qd_weights_count(want));
    for (int k = 0; k < qd_weights_count(want); k++) {
        const char *name = qd_weights_name(want, k);
        const qd_tensor *a = qd_weights_at(want, k), *b = qd_weights_find(got, name);
        assert_true(qd_shape_equal(&a->shape, &b->shape));
        /* Codes under scales that a half float holds are kept to the bit; floats become 8 bits. */
        if (strcmp(name, "tail.weight") != 0)
            assert_memory_equal(a->data, b->data, qd_tensor_bytes(a));
        else
            check_close(qd_f32(b), qd_f32(a), qd_tensor_count(a), 0, 0.005);
    }
    qd_weights_free(got);

    /* 4 bits for all: half a byte for each weight and 2 bytes for 32. */
    qd_map map;
    check_ok(qd_gguf_save(file, c.g, NULL, "q4_0", NULL, NULL, &err), &err);
    check_ok(qd_map_open(&map, file, &err), &err);
    size_t weights = 0;
    for (int k = 0; k < qd_weights_count(want); k++)
        weights += (size_t)qd_tensor_count(qd_weights_at(want, k));
    assert_true(map.size < weights * 18 / 32 + 2048);
    qd_map_close(&map);
    check_ok(qd_gguf_open(file, NULL, &got, NULL, &err), &err);
    check_close(qd_f32(qd_weights_find(got, "tail.weight")), qd_f32(qd_weights_find(want, "tail.weight")), 7 * 288, 0,
                0.13);
    qd_weights_free(got);
    qd_weights_free(want);
    qd_meta_free(meta);
    qd_graph_free(c.g);
}

static void strangers(void **state)
{
    qd_err err = { 0 };
    plan_case c = network();
    char file[1400];
    qd_weights *w = NULL;
    size_t size;
    char *data;
    snprintf(file, sizeof file, "%s/a.gguf", harness_tmp());
    check_ok(qd_gguf_save(file, c.g, NULL, "auto", NULL, NULL, &err), &err);
    check_ok(qd_fs_take(file, 1 << 24, &data, &size, &err), &err);
    check_fails(qd_gguf_parse("GGUX", 4, NULL, &w, NULL, &err), QD_E_FORMAT, "does not begin with 'GGUF'", &err);
    for (size_t cut = 4; cut < size; cut += cut < 3000 ? 1 : 997) { /* every prefix is refused, none is read past */
        char *part = malloc(cut);
        memcpy(part, data, cut);
        assert_int_not_equal(qd_gguf_parse(part, cut, NULL, &w, NULL, &err), QD_OK);
        assert_null(w);
        err = (qd_err){ 0 };
        free(part);
    }
    qd_rng rng;
    qd_rng_init(&rng, 3, 0);
    for (int k = 0; k < 3000;
         k++) { /* a flipped byte in the header is refused or read, and never followed out of the file */
        const size_t at = qd_rng_below(&rng, 2000);
        const char was = data[at];
        data[at] = (char)qd_rng_u32(&rng);
        if (!qd_gguf_parse(data, size, NULL, &w, NULL, &err))
            qd_weights_free(w);
        w = NULL;
        err = (qd_err){ 0 };
        data[at] = was;
    }
    data[4] = 2;
    check_fails(qd_gguf_parse(data, size, NULL, &w, NULL, &err), QD_E_UNSUPPORTED, "GGUF version 2, want 3", &err);
    qd_free(data);
    qd_graph_free(c.g);
}

typedef struct saving {
    const qd_graph *g;
    const char *path;
} saving;

static qd_status save(void *ctx, qd_err *err)
{
    const saving *s = ctx;
    qd_weights *w = NULL;
    qd_status st = qd_gguf_save(s->path, s->g, NULL, "auto", NULL, NULL, err);
    if (!st)
        st = qd_gguf_open(s->path, NULL, &w, NULL, err);
    qd_weights_free(w);
    return st;
}

static void out_of_memory(void **state)
{
    char path[1400];
    snprintf(path, sizeof path, "%s/a.gguf", harness_tmp());
    plan_case c = network();
    const saving s = { c.g, path };
    print_message("%ld allocations, each failed once\n", harness_run_each_alloc(save, (void *)&s, 5000));
    qd_graph_free(c.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(floats_by_name),
        cmocka_unit_test(blocks),
        cmocka_unit_test(strangers),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
