/* test_zoo.c - from a model on disk to its graph: the trained networks against their golden vectors, files that do not fit. */
#include "run_graph.h"

#include <stdio.h>

#define TINY                                                                                                                \
    "{\"_class_name\":\"UNet2DModel\",\"sample_size\":4,\"in_channels\":1,\"out_channels\":1,\"block_out_channels\":[4,8]," \
    "\"norm_num_groups\":2,\"layers_per_block\":1,\"attention_head_dim\":4,"                                                \
    "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\"],\"up_block_types\":[\"UpBlock2D\",\"UpBlock2D\"]}"

static qd_graph *open_graph(const char *folder)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_role role = QD_ROLE_OTHER;
    check_ok(qd_model_open(folder, NULL, &m, &err), &err);
    check_ok(qd_zoo_build(m, NULL, &g, &role, &err), &err);
    assert_int_equal(role, QD_ROLE_DENOISER);
    qd_model_free(m); /* the graph keeps what it needs */
    return g;
}

static qd_weights *open_golden(const char *path)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    check_ok(qd_safetensors_open(path, &w, NULL, &err), &err);
    return w;
}

/* One call: x, t and eps of `n` images, and values inside. 1e-4 is the agreement the vectors were made for. */
static void check_call(const qd_graph *g, const float *x, const float *t, int64_t n, const float *eps, peek *inside,
                       int n_inside)
{
    float *out = qd_alloc_aligned((size_t)(n * 784) * sizeof(float));
    for (int b = 0; qd_backends[b]; b++) {
        print_message("  on %s\n", qd_backend_name(qd_backends[b]));
        run_graph(g, qd_backends[b], n, (const void *[]){ x, t }, out, inside, n_inside);
        check_close(out, eps, n * 784, 1e-4, 0.0);
    }
    qd_free(out);
}

static peek peek_of(const char *node, const qd_weights *w, const char *key)
{
    const qd_tensor *t = qd_weights_find(w, key);
    assert_non_null(t);
    return (peek){ .name = node, .want = qd_f32(t), .n = qd_tensor_count(t), .tolerance = 1e-4 };
}

/* The model as it lies in the repository, against our own PyTorch. */
static void repository_model(void **state)
{
    static const char *const names[] = { "time_proj", "time_embedding.linear_2", "conv_in", "down_blocks.0.resnets.0",
                                         "mid_block.resnets.1" };
    peek inside[5];
    qd_graph *g = open_graph(harness_source("deploy/models/fmnist-ddpm-unet"));
    qd_weights *w = open_golden(harness_source("tests/golden/nn/fmnist.safetensors"));
    for (int k = 0; k < 5; k++)
        inside[k] = peek_of(names[k], w, names[k]);
    assert_int_equal(qd_graph_param_count(g), 686769);
    check_call(g, qd_f32(qd_weights_find(w, "sample")), qd_f32(qd_weights_find(w, "timestep")), 4,
               qd_f32(qd_weights_find(w, "eps")), inside, 5);
    qd_weights_free(w);
    qd_graph_free(g);
}

/* The same model with the vectors it was delivered with, made by another hand. */
static void delivered_model(void **state)
{
    qd_err err = { 0 };
    const char *path = harness_data("weights/fmnist-ddpm-unet/golden.safetensors");
    if (!path)
        skip();
    qd_weights *w = open_golden(path);
    qd_graph *g = open_graph(harness_data("weights/fmnist-ddpm-unet"));
    qd_tensor t = { 0 };
    check_ok(qd_tensor_cast(&t, qd_weights_find(w, "t"), QD_F32, NULL, &err), &err);
    peek inside[4] = { peek_of("time_proj", w, "sinusoid"), peek_of("time_embedding.linear_2", w, "temb"),
                       peek_of("conv_in", w, "conv_in_out"),
                       peek_of("down_blocks.0.resnets.0", w, "down_blocks.0.resnets.0_out") };
    check_call(g, qd_f32(qd_weights_find(w, "x")), qd_f32(&t), qd_tensor_count(&t), qd_f32(qd_weights_find(w, "eps")),
               inside, 4);
    qd_tensor_clear(&t);
    qd_weights_free(w);
    qd_graph_free(g);
}

/* TINY's tensors, random, as a file would hold them; `without` is left out, `extra` put in. */
static qd_weights *tiny_weights(const char *without, const char *extra)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_graph *g = NULL;
    check_ok(qd_weights_new(&w, &err), &err);
    check_ok(qd_zoo_random(TINY, 3, &g, &err), &err);
    for (int k = 0; k < qd_graph_size(g); k++) {
        const qd_node *n = qd_graph_node(g, k);
        if (!n->value.data)
            continue;
        if (!without || strcmp(n->name, without))
            check_ok(qd_weights_add(w, n->name, &n->value, &err), &err);
        if (extra && strcmp(n->name, "conv_in.bias") == 0)
            check_ok(qd_weights_add(w, extra, &n->value, &err), &err);
    }
    qd_graph_free(g);
    return w;
}

static qd_status build_tiny(const qd_weights *w, qd_graph **g, qd_role *role, qd_err *err)
{
    qd_config *c = NULL;
    qd_status st = qd_config_parse(TINY, strlen(TINY), "test", &c, err);
    const qd_model m = { .weights = (qd_weights *)w, .config = c };
    if (!st)
        st = qd_zoo_build(&m, NULL, g, role, err);
    qd_config_free(c);
    return st;
}

static void every_tensor_has_its_place(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_role role = QD_ROLE_OTHER;

    qd_weights *w = tiny_weights(NULL, NULL);
    check_ok(build_tiny(w, &g, &role, &err), &err);
    qd_graph_free(g);
    qd_weights_free(w);
    g = NULL;

    w = tiny_weights("mid_block.attentions.0.to_k.weight", NULL);
    check_fails(build_tiny(w, &g, &role, &err), QD_E_NOT_FOUND, "'mid_block.attentions.0.to_k.weight'", &err);
    qd_weights_free(w);
    w = tiny_weights(NULL, "mid_block.resnets.2.norm1.bias");
    check_fails(build_tiny(w, &g, &role, &err), QD_E_FORMAT, "'mid_block.resnets.2.norm1.bias'", &err);
    qd_weights_free(w);
    /* Old and new name at once: one of them is left over. */
    w = tiny_weights(NULL, "mid_block.attentions.0.query.bias");
    check_fails(build_tiny(w, &g, &role, &err), QD_E_FORMAT, "'mid_block.attentions.0.query.bias'", &err);
    qd_weights_free(w);
    assert_null(g);
}

static void models_that_are_none(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_role role = QD_ROLE_OTHER;
    qd_model m = { 0 };
    check_fails(qd_zoo_build(&m, NULL, &g, &role, &err), QD_E_UNSUPPORTED, "config.json", &err);
    check_fails(qd_zoo_random("{]", 0, &g, &err), QD_E_FORMAT, NULL, &err);
    check_fails(qd_zoo_random("{\"_class_name\":\"UNet3D\"}", 0, &g, &err), QD_E_UNSUPPORTED, "known: UNet2DModel",
                &err);

    /* A model that brings its graph gets a copy of it, with its role read from the inputs. */
    check_ok(qd_zoo_random(TINY, 3, &m.graph, &err), &err);
    check_ok(qd_zoo_build(&m, NULL, &g, &role, &err), &err);
    assert_int_equal(role, QD_ROLE_DENOISER);
    assert_ptr_not_equal(g, m.graph);
    assert_int_equal(qd_graph_size(g), qd_graph_size(m.graph));
    qd_graph_free(m.graph);
    qd_graph_free(g);
}

static void cancelled(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_role role = QD_ROLE_OTHER;
    atomic_bool flag = true;
    const qd_run run = { .cancel = &flag };
    qd_weights *w = tiny_weights(NULL, NULL);
    const qd_model m = { .weights = w, .config = parse_config(TINY) };
    check_fails(qd_zoo_build(&m, &run, &g, &role, &err), QD_E_CANCELLED, NULL, &err);
    qd_config_free(m.config);
    qd_weights_free(w);
}

/* Each allocation of a build fails in turn: always words, never a leak, never half a graph. */
static void allocations_fail(void **state)
{
    qd_weights *w = tiny_weights(NULL, NULL);
    long k = 0;
    for (;; k++) {
        qd_err err = { 0 };
        qd_graph *g = NULL;
        qd_role role = QD_ROLE_OTHER;
        qd_config *c = parse_config(TINY);
        const qd_model m = { .weights = w, .config = c };
        qd_mem_fault_set(k);
        const qd_status st = qd_zoo_build(&m, NULL, &g, &role, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        qd_config_free(c);
        if (!hit) {
            check_ok(st, &err);
            qd_graph_free(g);
            break;
        }
        check_fails(st, QD_E_NOMEM, NULL, &err);
        assert_null(g);
    }
    assert_true(k > 10);
    qd_weights_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(repository_model),
        cmocka_unit_test(delivered_model),
        cmocka_unit_test(every_tensor_has_its_place),
        cmocka_unit_test(models_that_are_none),
        cmocka_unit_test(cancelled),
        cmocka_unit_test(allocations_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
