/* test_onnx_oracles.c - real networks as ONNX files against the answers of PyTorch that came with them. */
#include "onnx_run.h"

#include "nn/nn.h"

static qd_model *open_onnx(const char *relative)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    const char *path = harness_data(relative);
    if (!path)
        return NULL;
    check_ok(qd_model_open(path, NULL, &m, &err), &err);
    return m;
}

/* The golden file beside the model; inputs of another name are stored under `x` and `t`. */
static qd_weights *open_golden(const char *relative)
{
    qd_err err = { 0 };
    qd_weights *w = NULL, *named = NULL;
    check_ok(qd_safetensors_open(harness_data(relative), &w, NULL, &err), &err);
    check_ok(qd_weights_new(&named, &err), &err);
    for (int k = 0; k < qd_weights_count(w); k++)
        check_ok(qd_weights_add(named, qd_weights_name(w, k), qd_weights_at(w, k), &err), &err);
    if (qd_weights_find(w, "x"))
        check_ok(qd_weights_add(named, "sample", qd_weights_find(w, "x"), &err), &err);
    if (qd_weights_find(w, "t"))
        check_ok(qd_weights_add(named, "timestep", qd_weights_find(w, "t"), &err), &err);
    qd_weights_free(w);
    return named;
}

/* tolerance: of the largest output, as the model's README expects. */
static void check_oracle(const char *onnx, const char *golden, double tolerance)
{
    qd_model *m = open_onnx(onnx);
    if (!m)
        skip();
    qd_weights *w = open_golden(golden);
    check_graph(m->graph, qd_backend_find("ref"), w, NULL, NULL, tolerance);
    check_graph(m->graph, NULL, w, NULL, NULL, tolerance);
    qd_weights_free(w);
    qd_model_free(m);
}

static void resnet20(void **state)
{
    check_oracle("weights/cifar10-resnet20/resnet20.onnx", "weights/cifar10-resnet20/golden.safetensors", 1e-5);
}

static void resnet32(void **state)
{
    check_oracle("weights/cifar10-resnet32/resnet32.onnx", "weights/cifar10-resnet32/golden.safetensors", 1e-5);
}

static void dwnet(void **state)
{
    check_oracle("weights/fmnist-dwnet/dwnet.onnx", "weights/fmnist-dwnet/golden.safetensors", 1e-5);
}

static void unet(void **state)
{
    check_oracle("weights/fmnist-ddpm-unet/unet.onnx", "weights/fmnist-ddpm-unet/golden.safetensors", 1e-5);
}

static void layer_norm_unet(void **state)
{
    check_oracle("weights/mnist-ddpm-layernorm-unet/ddpm_mnist.onnx",
                 "weights/mnist-ddpm-layernorm-unet/golden.safetensors", 1e-4);
}

/* The exporter wrote 53 Add, 57 Mul, 70 Reshape and so on; what it meant is what our own builder makes. */
static void unet_is_recognised_as_our_own(void **state)
{
    static const qd_op *const rows[] = { &qd_op_group_norm, &qd_op_silu,   &qd_op_attention, &qd_op_conv2d,
                                         &qd_op_linear,     &qd_op_concat, &qd_op_permute,   &qd_op_upsample };
    qd_err err = { 0 };
    qd_graph *built = NULL;
    qd_role role;
    qd_model *m = open_onnx("weights/fmnist-ddpm-unet/unet.onnx"), *native = NULL;
    if (!m)
        skip();
    check_ok(qd_model_open(harness_data("weights/fmnist-ddpm-unet"), NULL, &native, &err), &err);
    assert_string_equal(native->format, "diffusers"); /* although unet.onnx lies in the folder */
    check_ok(qd_zoo_build(native, NULL, &built, &role, &err), &err);
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        const int slack =
            rows[k] == &qd_op_concat ? 1 : 0; /* sines and cosines of the time step are put together by one */
        assert_int_equal(count_rows(m->graph, rows[k]), count_rows(built, rows[k]) + slack);
    }
    assert_int_equal(qd_graph_param_count(m->graph),
                     qd_graph_param_count(built) + 8); /* frequencies of the time step */
    /* Layer by layer under the same names, which are the weights'. */
    for (qd_node_id id = 0; id < qd_graph_size(built); id++) {
        const qd_node *n = qd_graph_node(built, id);
        if (n->op != &qd_op_conv2d && n->op != &qd_op_linear)
            continue;
        const qd_node_id twin = qd_graph_find(m->graph, n->name);
        if (twin < 0 || qd_graph_node(m->graph, twin)->op != n->op)
            fail_msg("no %s is called '%s'", n->op->name, n->name);
    }
    qd_graph_free(built);
    qd_model_free(native);
    qd_model_free(m);
}

static void check_role(const char *relative, qd_role want)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_role role;
    qd_model *m = open_onnx(relative);
    if (!m)
        skip();
    check_ok(qd_zoo_build(m, NULL, &g, &role, &err), &err);
    assert_int_equal(role, want);
    if (want == QD_ROLE_DENOISER) {
        assert_true(qd_graph_find(g, "sample") >= 0 && qd_graph_find(g, "timestep") >= 0);
        assert_string_equal(qd_graph_output_name(g, 0), "eps");
    }
    qd_graph_free(g);
    qd_model_free(m);
}

static void roles_are_seen(void **state)
{
    check_role("weights/cifar10-resnet20/resnet20.onnx", QD_ROLE_CLASSIFIER);
    check_role("weights/fmnist-dwnet/dwnet.onnx", QD_ROLE_CLASSIFIER);
    check_role("weights/fmnist-ddpm-unet/unet.onnx", QD_ROLE_DENOISER);
    check_role("weights/mnist-ddpm-layernorm-unet/ddpm_mnist.onnx", QD_ROLE_DENOISER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resnet20),        cmocka_unit_test(resnet32),
        cmocka_unit_test(dwnet),           cmocka_unit_test(unet),
        cmocka_unit_test(layer_norm_unet), cmocka_unit_test(unet_is_recognised_as_our_own),
        cmocka_unit_test(roles_are_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
