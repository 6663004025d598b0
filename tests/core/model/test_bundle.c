/* test_bundle.c - graphs travel through files unchanged, down to the last bit of an attribute; strangers' are refused by name. */
#include "harness/harness.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/fs.h"
#include "base/mem.h"
#include "graph/op.h"
#include "model/model.h"

#define PATH_BYTES 1200

static const char *in(const char *dir, const char *name)
{
    static char ring[4][PATH_BYTES];
    static int next;
    char *path = ring[next++ % 4];

    snprintf(path, PATH_BYTES, "%s/%s", dir, name);
    return path;
}

static qd_tensor random_tensor(qd_dtype dtype, const qd_shape *shape, uint64_t seed)
{
    qd_err err = { 0 };
    qd_tensor t = { 0 };
    qd_rng rng;

    qd_rng_init(&rng, seed, 0);
    check_ok(qd_tensor_init(&t, dtype, shape, NULL, &err), &err);
    for (int64_t k = 0; k < qd_tensor_count(&t); k++)
        if (dtype == QD_F32)
            qd_f32(&t)[k] = 0.5f + qd_rng_uniform(&rng);
        else
            qd_i8(&t)[k] = (int8_t)qd_rng_u32(&rng);
    return t;
}

static qd_node_id constant(qd_graph *g, const char *name, qd_dtype dtype, const qd_shape *shape)
{
    qd_tensor t = random_tensor(dtype, shape, strlen(name));
    const qd_node_id id = qd_graph_const(g, name, &t);

    qd_tensor_clear(&t);
    return id;
}

/* A quantized convolution between float layers, with optional inputs left out and every kind of attribute. */
static qd_graph *make_graph(void)
{
    const qd_shape image = QD_SHAPE(-1, 3, 8, 8), weight = QD_SHAPE(5, 3, 3, 3), five = QD_SHAPE(5),
                   time = QD_SHAPE(-1);
    const int64_t pads[] = { 1, 0, 1, 2 }, stride[] = { 2, 1 };
    qd_graph *g = NULL;
    qd_err err = { 0 };

    check_ok(qd_graph_new(&g, &err), &err);
    const qd_node_id x = qd_graph_input(g, "sample", QD_F32, &image);
    qd_graph_input(g, "timestep", QD_F32, &time);
    const qd_node_id w = constant(g, "conv.weight", QD_I8, &weight);
    const qd_node_id s = constant(g, "conv.\"scale\"", QD_F32, &five);
    const qd_node_id q =
        qd_graph_add(g, &qd_op_quantize, "q", QD_IN(x), QD_ATTRS(QD_FLOAT("scale", 0.1), QD_INT("zero", 128)));
    const qd_node_id c = qd_graph_add(g, &qd_op_qconv2d, "conv", QD_IN(q, w, s),
                                      QD_ATTRS(qd_attr_ints("stride", 2, stride), qd_attr_ints("pads", 4, pads),
                                               QD_FLOAT("x_scale", 0.1), QD_INT("x_zero", 128)));
    const qd_node_id b = constant(g, "gn.bias", QD_F32, &five);
    const qd_node_id n =
        qd_graph_add(g, &qd_op_group_norm, "gn", QD_IN(c, -1, b), QD_ATTRS(QD_INT("groups", 5), QD_FLOAT("eps", 1e-6)));
    qd_graph_output(g, "eps", qd_graph_add(g, &qd_op_silu, "act", QD_IN(n), QD_NO_ATTRS));
    qd_graph_output(g, "raw", c);
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static void check_same_graph(const qd_graph *a, const qd_graph *b)
{
    qd_buf x, y;

    qd_buf_init(&x, 0);
    qd_buf_init(&y, 0);
    qd_graph_print(a, &x);
    qd_graph_print(b, &y);
    assert_string_equal(x.data, y.data);
    qd_buf_clear(&x);
    qd_buf_clear(&y);
    assert_int_equal(qd_graph_size(a), qd_graph_size(b));
    for (int k = 0; k < qd_graph_size(a); k++) {
        const qd_node *n = qd_graph_node(a, k), *m = qd_graph_node(b, k);

        assert_int_equal(n->n_inputs, m->n_inputs);
        assert_int_equal(n->n_attrs, m->n_attrs);
        for (int j = 0; j < n->n_attrs; j++) {
            assert_int_equal(n->attr[j].i, m->attr[j].i);
            assert_memory_equal(&n->attr[j].f, &m->attr[j].f, sizeof(double)); /* bit for bit */
        }
        if (n->op == &qd_op_const)
            assert_memory_equal(n->value.data, m->value.data, qd_tensor_bytes(&n->value));
    }
}

static void save_then_open_is_identity(void **state)
{
    qd_err err = { 0 };
    const char *dir = harness_tmp();
    char first[QD_SHA256_HEX], second[QD_SHA256_HEX];
    qd_graph *g = make_graph(), *back = NULL;
    qd_meta *meta = NULL, *got = NULL;

    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_meta_set(meta, "format", "pt", &err), &err); /* reserved: left out */
    check_ok(qd_meta_set(meta, "manifest", "{\"bits\": 8}", &err), &err);
    check_ok(qd_meta_set(meta, "config", "{\"a\": 1}", &err), &err);
    check_ok(qd_bundle_save(in(dir, "a"), g, meta, first, &err), &err);
    check_ok(qd_bundle_open(in(dir, "a"), &back, &got, &err), &err);
    check_same_graph(g, back);
    assert_int_equal(qd_meta_count(got), 2);
    assert_string_equal(qd_meta_find(got, "manifest"), "{\"bits\": 8}");

    check_ok(qd_bundle_save(in(dir, "b"), back, got, second, &err), &err);
    assert_string_equal(first, second);
    qd_graph_free(g);
    qd_graph_free(back);
    qd_meta_free(meta);
    qd_meta_free(got);
}

static void floats_survive_exactly(void **state)
{
    const double values[] = {
        0.1, -0.0, 1.0, 1e300, DBL_MIN / 8, DBL_MAX, 1.0 / 3, INFINITY, -INFINITY, 16777217.0, -2
    };
    const qd_shape shape = QD_SHAPE(-1, 2);
    qd_err err = { 0 };
    const char *path = in(harness_tmp(), "a");
    qd_graph *g = NULL, *back = NULL;
    qd_meta *meta = NULL;
    qd_node_id x;
    char name[32];

    check_ok(qd_graph_new(&g, &err), &err);
    x = qd_graph_input(g, "x", QD_F32, &shape);
    for (size_t k = 0; k < sizeof(values) / sizeof(values[0]); k++) {
        snprintf(name, sizeof(name), "clip%zu", k);
        x = qd_graph_add(g, &qd_op_clip, name, QD_IN(x),
                         QD_ATTRS(QD_FLOAT("lo", -INFINITY), QD_FLOAT("hi", values[k])));
    }
    qd_graph_output(g, "y", x);
    check_ok(qd_bundle_save(path, g, NULL, NULL, &err), &err);
    check_ok(qd_bundle_open(path, &back, &meta, &err), &err);
    check_same_graph(g, back);
    qd_graph_free(g);
    qd_graph_free(back);
    qd_meta_free(meta);
}

/* --- strangers' graphs --- */

#define NODES(list) "{\"nodes\":[" list "],\"outputs\":[{\"name\":\"y\",\"node\":0}]}"
#define X "{\"op\":\"input\",\"name\":\"x\",\"dtype\":\"f32\",\"shape\":[-1,3,8,8]}"
#define W "{\"op\":\"const\",\"name\":\"w\"}"

static const struct refusal {
    const char *graph;
    qd_status status;
    const char *words;
} refusals[] = {
    { "[]", QD_E_FORMAT, "graph: the text is JSON but not an object" },
    { "{", QD_E_FORMAT, "graph: not JSON" },
    { "{\"nodes\":[{\"attrs\":{\"a\":[[1]]}}]}", QD_E_LIMIT, "nested deeper than 5" },
    { "{}", QD_E_FORMAT, "'nodes' is missing" },
    { "{\"nodes\":[" X "," W "]}", QD_E_FORMAT, "'outputs' must be an array" },
    { "{\"nodes\":[" X "," W "],\"outputs\":[]}", QD_E_INVALID, "no output" },
    { "{\"nodes\":[" X "," W "],\"outputs\":[{\"name\":\"y\",\"node\":2}]}", QD_E_FORMAT, "output 0 must have a name" },
    { "{\"nodes\":[" X "," W "],\"outputs\":[{\"name\":\"y\",\"node\":-1}]}", QD_E_FORMAT,
      "output 0 must have a name" },
    { "{\"nodes\":[" X "," W "],\"outputs\":[7]}", QD_E_FORMAT, "output 0 must have a name" },
    { NODES("3"), QD_E_FORMAT, "graph node 0 '': name must be a string" },
    { NODES("{\"name\":\"a\"}"), QD_E_FORMAT, "graph node 0 'a': op is missing" },
    { NODES("{\"name\":\"a\",\"op\":\"conv9d\"}"), QD_E_UNSUPPORTED, "graph node 0 'a': unknown op 'conv9d'" },
    { NODES("{\"name\":\"\",\"op\":\"relu\"}"), QD_E_FORMAT, "name must be a string of 1..512 bytes" },
    { NODES("{\"op\":\"input\",\"name\":\"x\",\"dtype\":\"f8\",\"shape\":[1]}"), QD_E_FORMAT, "unknown dtype 'f8'" },
    { NODES("{\"op\":\"input\",\"name\":\"x\",\"shape\":[1]}"), QD_E_FORMAT, "unknown dtype '(none)'" },
    { NODES("{\"op\":\"input\",\"name\":\"x\",\"dtype\":\"f32\"}"), QD_E_FORMAT, "shape must be an array" },
    { NODES("{\"op\":\"input\",\"name\":\"x\",\"dtype\":\"f32\",\"shape\":[1,1,1,1,1,1,1,1,1]}"), QD_E_FORMAT,
      "at most 8" },
    { NODES("{\"op\":\"input\",\"name\":\"x\",\"dtype\":\"f32\",\"shape\":[1,-1]}"), QD_E_FORMAT, "dimension 1 is -1" },
    { NODES("{\"op\":\"input\",\"name\":\"x\",\"dtype\":\"f32\",\"shape\":[0]}"), QD_E_FORMAT, "dimension 0 is 0" },
    { NODES("{\"op\":\"input\",\"name\":\"x\",\"dtype\":\"f32\",\"shape\":[99999999999]}"), QD_E_FORMAT,
      "dimension 0 is 99999999999" },
    { NODES("{\"op\":\"input\",\"name\":\"x\",\"dtype\":\"f32\",\"shape\":[1],\"inputs\":[]}"), QD_E_FORMAT,
      "unknown key 'inputs'" },
    { NODES("{\"op\":\"const\",\"name\":\"v\"}"), QD_E_FORMAT,
      "graph node 0 'v': the file has no tensor of that name" },
    { NODES("{\"op\":\"const\",\"name\":\"w\",\"attrs\":{}}"), QD_E_FORMAT, "unknown key 'attrs'" },
    { NODES(W "," W), QD_E_INVALID, "w" },
    { NODES(X), QD_E_FORMAT, "tensor 'w' is used by no node" },
    { NODES("{\"op\":\"input\",\"name\":\"w\",\"dtype\":\"f32\",\"shape\":[1]}"), QD_E_FORMAT,
      "the graph uses 0 of the file's 1 tensors" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"r\"}"), QD_E_FORMAT, "inputs must be an array of at most 8" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"r\",\"inputs\":[0,0,0,0,0,0,0,0,0]}"), QD_E_FORMAT, "at most 8" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"r\",\"inputs\":[2]}"), QD_E_FORMAT, "input 0 must be the number" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"r\",\"inputs\":[-2]}"), QD_E_FORMAT, "an earlier node, or -1" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"r\",\"inputs\":[\"x\"]}"), QD_E_FORMAT, "an earlier node" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"r\",\"inputs\":[-1]}"), QD_E_INVALID, "r" },
    { NODES(X "," W ",{\"op\":\"add\",\"name\":\"r\",\"inputs\":[0]}"), QD_E_INVALID, "r" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"x\",\"inputs\":[0]}"), QD_E_INVALID, "x" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"r\",\"inputs\":[0],\"attrs\":[]}"), QD_E_FORMAT, "attrs must be" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"r\",\"inputs\":[0],\"attrs\":{\"slope\":1}}"), QD_E_FORMAT,
      "graph node 2 'r': op 'relu' has no attribute 'slope'" },
    { NODES(X "," W ",{\"op\":\"conv2d\",\"name\":\"r\",\"inputs\":[0,1],\"attrs\":{\"groups\":1.5}}"), QD_E_FORMAT,
      "attribute 'groups' must be a whole number" },
    { NODES(X "," W ",{\"op\":\"conv2d\",\"name\":\"r\",\"inputs\":[0,1],\"attrs\":{\"stride\":1}}"), QD_E_FORMAT,
      "attribute 'stride' must be an array" },
    { NODES(X "," W ",{\"op\":\"conv2d\",\"name\":\"r\",\"inputs\":[0,1],\"attrs\":{\"stride\":[1]}}"), QD_E_INVALID,
      "stride" },
    { NODES(X "," W ",{\"op\":\"conv2d\",\"name\":\"r\",\"inputs\":[0,1],\"attrs\":{\"stride\":[0,1]}}"), QD_E_INVALID,
      "stride" },
    { NODES(X "," W ",{\"op\":\"affine\",\"name\":\"r\",\"inputs\":[0],\"attrs\":{\"mul\":\"much\"}}"), QD_E_FORMAT,
      "attribute 'mul' must be a number, \"nan\"" },
    { NODES(X "," W ",{\"op\":\"relu\",\"name\":\"r\",\"inputs\":[0],\"note\":1}"), QD_E_FORMAT, "unknown key 'note'" },
};

/* A file with one tensor w [2, 3, 1, 1] and this metadata. */
static void write_file(const char *path, const char *format, const char *graph)
{
    const qd_shape shape = QD_SHAPE(2, 3, 1, 1);
    qd_err err = { 0 };
    qd_tensor t = random_tensor(QD_F32, &shape, 1);
    qd_weights *w = NULL;
    qd_meta *meta = NULL;

    check_ok(qd_weights_new(&w, &err), &err);
    check_ok(qd_meta_new(&meta, &err), &err);
    check_ok(qd_weights_add(w, "w", &t, &err), &err);
    if (format)
        check_ok(qd_meta_set(meta, "format", format, &err), &err);
    if (graph)
        check_ok(qd_meta_set(meta, "graph", graph, &err), &err);
    check_ok(qd_safetensors_save(path, w, meta, NULL, &err), &err);
    qd_tensor_clear(&t);
    qd_weights_free(w);
    qd_meta_free(meta);
}

static void each_rule_refuses(void **state)
{
    const char *path = in(harness_tmp(), "a.safetensors");
    qd_graph *g = NULL;
    qd_meta *meta = NULL;
    qd_err err = { 0 };

    for (size_t k = 0; k < sizeof(refusals) / sizeof(refusals[0]); k++) {
        qd_status st;

        write_file(path, QD_BUNDLE_FORMAT, refusals[k].graph);
        st = qd_bundle_open(path, &g, &meta, &err);
        if (st != refusals[k].status)
            print_error("graph %s\n", refusals[k].graph);
        check_fails(st, refusals[k].status, refusals[k].words, &err);
        assert_null(g);
        assert_null(meta);
    }
    write_file(path, NULL, NODES(X));
    check_fails(qd_bundle_open(path, &g, &meta, &err), QD_E_UNSUPPORTED, "metadata 'format' is '(none)'", &err);
    write_file(path, "quantd-bundle-2", NODES(X));
    check_fails(qd_bundle_open(path, &g, &meta, &err), QD_E_UNSUPPORTED, "is 'quantd-bundle-2', want 'quantd-bundle-1'",
                &err);
    write_file(path, QD_BUNDLE_FORMAT, NULL);
    check_fails(qd_bundle_open(path, &g, &meta, &err), QD_E_FORMAT, "without metadata 'graph'", &err);
    write_file(path, QD_BUNDLE_FORMAT,
               NODES(X "," W ",{\"op\":\"conv2d\",\"name\":\"r\",\"inputs\":[0,1],\"attrs\":{\"groups\":1}}"));
    check_ok(qd_bundle_open(path, &g, &meta, &err), &err); /* the neighbour of all these refusals is fine */
    assert_int_equal(qd_graph_size(g), 3);
    qd_graph_free(g);
    qd_meta_free(meta);
}

/* One tensor "w" of bytes, and a constant that says what they are. */
static void packed_codes_and_strangers(void **state)
{
    const char *path = in(harness_tmp(), "a.safetensors"), *again = in(harness_tmp(), "b.safetensors");
    const qd_shape nine = QD_SHAPE(3, 3, 3), image = QD_SHAPE(-1, 3);
    char hash[2][QD_SHA256_HEX];
    qd_graph *g = NULL, *back = NULL;
    qd_meta *meta = NULL;
    qd_weights *w = NULL;
    qd_err err = { 0 };

    for (int bits = 4; bits <= 6; bits += 2) {
        qd_tensor codes, packed;
        check_ok(qd_tensor_init(&codes, QD_I8, &nine, NULL, &err), &err);
        for (int k = 0; k < 27; k++)
            qd_i8(&codes)[k] = (int8_t)(k % 16 - 8);
        check_ok(qd_tensor_pack(&packed, &codes, bits == 4 ? QD_I4 : QD_I6, NULL, &err), &err);
        check_ok(qd_graph_new(&g, &err), &err);
        qd_graph_const(g, "w", &packed);
        qd_graph_output(g, "y", qd_graph_input(g, "x", QD_F32, &image));
        check_ok(qd_bundle_save(path, g, NULL, hash[0], &err), &err);

        /* To others it is a tensor of bytes. */
        check_ok(qd_safetensors_open(path, &w, NULL, &err), &err);
        assert_int_equal(qd_weights_find(w, "w")->dtype, QD_U8);
        assert_int_equal(qd_weights_find(w, "w")->shape.dim[1], bits == 4 ? 5 : 7);
        qd_weights_free(w);

        check_ok(qd_bundle_open(path, &back, &meta, &err), &err);
        check_same_graph(g, back);
        check_ok(qd_bundle_save(again, back, NULL, hash[1], &err), &err);
        assert_string_equal(hash[0], hash[1]);
        qd_graph_free(back);
        qd_meta_free(meta);
        back = NULL;
        meta = NULL;
        qd_graph_free(g);
        qd_tensor_clear(&codes);
        qd_tensor_clear(&packed);
    }

    const struct {
        const char *node;
        uint8_t last; /* byte of a row */
        const char *words;
    } cases[] = {
        { "\"dtype\":\"i4\",\"shape\":[2,3]", 0x0f, NULL },
        { "\"dtype\":\"i4\",\"shape\":[2,3]", 0x1f, "graph node 1 'w': the bits past the end of row 0 are not zero" },
        { "\"dtype\":\"i4\",\"shape\":[2,4]", 0x1f, NULL },
        { "\"dtype\":\"i6\",\"shape\":[2,2]", 0x0f, NULL },
        { "\"dtype\":\"i6\",\"shape\":[2,2]", 0x1f, "the bits past the end" },
        { "\"dtype\":\"i4\",\"shape\":[2,5]", 0, "its tensor must be U8 [2, 3]" },
        { "\"dtype\":\"i4\",\"shape\":[3,3]", 0, "its tensor must be U8 [3, 2]" },
        { "\"dtype\":\"i8\",\"shape\":[2,2]", 0, "a constant's dtype can be" },
        { "\"dtype\":\"i4\"", 0, "shape must be an array" },
        { "\"shape\":[2,3]", 0, "a constant's dtype can be" },
        { "\"dtype\":\"i4\",\"shape\":[2,-3]", 0, "shape must be an array" },
        { "\"dtype\":\"i4\",\"shape\":[4611686018427387904,4611686018427387904]", 0, "shape must be an array" },
    };
    for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
        char text[400];
        const qd_shape shape = QD_SHAPE(2, 2);
        qd_tensor t;

        check_ok(qd_tensor_init(&t, QD_U8, &shape, NULL, &err), &err);
        memset(t.data, cases[k].last, 4);
        check_ok(qd_weights_new(&w, &err), &err);
        check_ok(qd_meta_new(&meta, &err), &err);
        check_ok(qd_weights_add(w, "w", &t, &err), &err);
        snprintf(text, sizeof(text), NODES(X ",{\"op\":\"const\",\"name\":\"w\",%s}"), cases[k].node);
        check_ok(qd_meta_set(meta, "format", QD_BUNDLE_FORMAT, &err), &err);
        check_ok(qd_meta_set(meta, "graph", text, &err), &err);
        check_ok(qd_safetensors_save(path, w, meta, NULL, &err), &err);
        qd_tensor_clear(&t);
        qd_weights_free(w);
        qd_meta_free(meta);
        meta = NULL;
        if (cases[k].words) {
            check_fails(qd_bundle_open(path, &back, &meta, &err), QD_E_FORMAT, cases[k].words, &err);
            continue;
        }
        check_ok(qd_bundle_open(path, &back, &meta, &err), &err);
        qd_graph_free(back);
        qd_meta_free(meta);
        back = NULL;
        meta = NULL;
    }
}

static void too_many_nodes_are_refused(void **state)
{
    const char *path = in(harness_tmp(), "a.safetensors");
    qd_graph *g = NULL;
    qd_meta *meta = NULL;
    qd_err err = { 0 };
    qd_buf b;

    qd_buf_init(&b, 0);
    qd_buf_adds(&b, "{\"nodes\":[0");
    for (int k = 0; k < 100000; k++)
        qd_buf_adds(&b, ",0");
    qd_buf_adds(&b, "]}");
    assert_false(b.failed);
    write_file(path, QD_BUNDLE_FORMAT, b.data);
    check_fails(qd_bundle_open(path, &g, &meta, &err), QD_E_LIMIT, "100001 nodes, the limit is 100000", &err);
    qd_buf_clear(&b);
}

static void every_allocation_may_fail(void **state)
{
    qd_err err = { 0 };
    const char *path = in(harness_tmp(), "a");
    qd_graph *g = make_graph();
    long writes = 0, reads = 0;

    for (;; writes++) {
        qd_mem_fault_set(writes);
        const qd_status st = qd_bundle_save(path, g, NULL, NULL, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        if (!hit) {
            check_ok(st, &err);
            break;
        }
        assert_int_equal(st, QD_E_NOMEM);
    }
    for (;; reads++) {
        qd_graph *back = NULL;
        qd_meta *meta = NULL;

        qd_mem_fault_set(reads);
        const qd_status st = qd_bundle_open(path, &back, &meta, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        if (!hit) {
            check_ok(st, &err);
            check_same_graph(g, back);
            qd_graph_free(back);
            qd_meta_free(meta);
            break;
        }
        assert_int_equal(st, QD_E_NOMEM);
        assert_null(back);
        assert_null(meta);
    }
    assert_true(writes > 20 && reads > 20);
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(save_then_open_is_identity), cmocka_unit_test(floats_survive_exactly),
        cmocka_unit_test(packed_codes_and_strangers), cmocka_unit_test(each_rule_refuses),
        cmocka_unit_test(too_many_nodes_are_refused), cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
