/* test_denoiser.c - networks as predictors: the trained model's trajectory, batches, graphs that are no denoisers. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "diffusion/diffusion.h"
#include "graph/op.h"
#include "nn/nn.h"
#include "plan/plan.h"

#define TINY(more)                                                                                                           \
    "{\"_class_name\":\"UNet2DModel\",\"sample_size\":8,\"in_channels\":1,\"out_channels\":1,\"block_out_channels\":[8,16]," \
    "\"norm_num_groups\":4,\"layers_per_block\":1,\"attention_head_dim\":8,"                                                 \
    "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\"],\"up_block_types\":[\"AttnUpBlock2D\",\"UpBlock2D\"]" more   \
    "}"

static qd_denoiser *new_denoiser(const qd_graph *g, int64_t batch, const qd_backend *backend)
{
    qd_err err = { 0 };
    qd_denoiser *d = NULL;
    check_ok(qd_denoiser_new(g, batch, 1, backend, NULL, &d, &err), &err);
    return d;
}

static void check_trajectory(const char *folder, const char *golden, const char *noise_key, const char *out_key)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_weights *w = NULL;
    qd_schedule *s = NULL;
    qd_role role;
    check_ok(qd_model_open(folder, NULL, &m, &err), &err);
    check_ok(qd_zoo_build(m, NULL, &g, &role, &err), &err);
    check_ok(qd_schedule_open(m->scheduler, &s, &err), &err);
    check_ok(qd_safetensors_open(golden, &w, NULL, &err), &err);
    const qd_tensor *noise = qd_weights_find(w, noise_key), *want = qd_weights_find(w, out_key);
    float *x = qd_alloc_aligned(qd_tensor_bytes(noise));
    const qd_sample_options o = { .steps = 10, .clip = 0 };
    for (int b = 0; qd_backends[b]; b++) {
        /* One image is enough for the plain loops, which are slow. */
        const int64_t batch = qd_backends[b] == &qd_backend_ref ? 1 : noise->shape.dim[0];
        const int64_t n = batch * (qd_tensor_count(noise) / noise->shape.dim[0]);
        qd_denoiser *d = new_denoiser(g, batch, qd_backends[b]);
        const qd_predictor p = qd_denoiser_predictor(d);
        memcpy(x, qd_f32(noise), (size_t)n * sizeof(float));
        check_ok(qd_sampler_find("ddim")->run(s, &o, &p, NULL, NULL, x, &err), &err);
        print_message("  ddim10 on %s\n", qd_backend_name(qd_backends[b]));
        check_close(x, qd_f32(want), n, 1e-3,
                    0.0); /* ten calls, each within 1e-4, the first scaled by 1/sqrt(abar_900) */
        qd_denoiser_free(d);
    }
    qd_free(x);
    qd_schedule_free(s);
    qd_weights_free(w);
    qd_graph_free(g);
    qd_model_free(m);
}

static void repository_trajectory(void **state)
{
    check_trajectory(harness_source("deploy/models/fmnist-ddpm-unet"),
                     harness_source("tests/golden/nn/fmnist.safetensors"), "ddim10_noise", "ddim10_out");
}

static void delivered_trajectory(void **state)
{
    char golden[1024];
    const char *path = harness_data("weights/fmnist-ddpm-unet/golden.safetensors");
    if (!path)
        skip();
    snprintf(golden, sizeof(golden), "%s", path);
    check_trajectory(harness_data("weights/fmnist-ddpm-unet"), golden, "ddim10_noise", "ddim10_out");
}

/* Three images from x_T on, in batches of `batch` on `threads` threads. x: [3, per]. */
static void sample_three(const qd_graph *g, const qd_backend *backend, int64_t batch, int threads, int64_t per,
                         float *x)
{
    qd_err err = { 0 };
    qd_schedule *s = NULL;
    qd_denoiser *d = NULL;
    qd_sample_options o = { .steps = 3, .eta = 1.0, .seed = 17, .clip = -1 };
    check_ok(qd_schedule_open(NULL, &s, &err), &err);
    check_ok(qd_denoiser_new(g, batch, threads, backend, NULL, &d, &err), &err);
    const qd_predictor p = qd_denoiser_predictor(d);
    assert_int_equal(p.batch, batch);
    qd_sample_noise(x, 3, per, o.seed, 0);
    for (o.first_sample = 0; o.first_sample < 3; o.first_sample += batch)
        check_ok(qd_sampler_find("ddim")->run(s, &o, &p, NULL, NULL, x + o.first_sample * per, &err), &err);
    qd_denoiser_free(d);
    qd_schedule_free(s);
}

/* An image is the same bytes alone, in a batch of three, and on two threads. */
static void check_neutral(const qd_graph *g, int64_t per, const qd_backend *const *backends)
{
    const size_t bytes = (size_t)(3 * per) * sizeof(float);
    float *alone = qd_alloc_aligned(bytes), *together = qd_alloc_aligned(bytes), *threads = qd_alloc_aligned(bytes);
    for (int b = 0; backends[b]; b++) {
        print_message("  on %s\n", qd_backend_name(backends[b]));
        sample_three(g, backends[b], 1, 1, per, alone);
        sample_three(g, backends[b], 3, 1, per, together);
        sample_three(g, backends[b], 3, 2, per, threads);
        check_close(together, alone, 3 * per, 0.0, 0.0);
        check_close(threads, together, 3 * per, 0.0, 0.0);
    }
    qd_free(alone);
    qd_free(together);
    qd_free(threads);
}

static void alone_or_in_a_batch(void **state)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_model *m = NULL;
    qd_role role;
    check_ok(qd_zoo_random(TINY(""), 5, &g, &err), &err);
    check_neutral(g, 64, qd_backends);
    qd_graph_free(g);

    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &m, &err), &err);
    check_ok(qd_zoo_build(m, NULL, &g, &role, &err), &err);
    check_neutral(g, 784, (const qd_backend *const[]){ &qd_backend_cpu, NULL });
    qd_graph_free(g);
    qd_model_free(m);
}

/* sample + timestep, with these shapes and names, through one affine node. */
static qd_graph *simple_graph(const char *first, qd_shape shape, const char *second, qd_dtype dtype, bool slice)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    const qd_shape vector = QD_SHAPE(-1);
    check_ok(qd_graph_new(&g, &err), &err);
    qd_node_id x = qd_graph_input(g, first, QD_F32, &shape);
    if (second)
        qd_graph_input(g, second, dtype, &vector);
    x = qd_graph_add(g, &qd_op_affine, "half", QD_IN(x), QD_ATTRS(QD_FLOAT("mul", 0.5)));
    if (slice)
        x = qd_graph_add(g, &qd_op_slice, "part", QD_IN(x),
                         QD_ATTRS(QD_INT("axis", 1), QD_INT("start", 0), QD_INT("length", 1)));
    qd_graph_output(g, "eps", x);
    check_ok(qd_graph_verify(g, &err), &err);
    return g;
}

static void graphs_that_are_no_denoisers(void **state)
{
    const struct {
        const char *first, *second, *words;
        qd_shape shape;
        qd_dtype dtype;
        bool slice;
    } rows[] = {
        { "image", "timestep", "'image'", QD_SHAPE(-1, 2, 4, 4), QD_F32, false },
        { "sample", "timestep", "'sample'", QD_SHAPE(-1, 32), QD_F32, false },
        { "sample", NULL, "'timestep'", QD_SHAPE(-1, 2, 4, 4), QD_F32, false },
        { "sample", "timestep", "'timestep'", QD_SHAPE(-1, 2, 4, 4), QD_I32, false },
        { "sample", "context", "'context'", QD_SHAPE(-1, 2, 4, 4), QD_F32, false },
        { "sample", "timestep", "[2, 2, 4, 4] into [2, 1, 4, 4]", QD_SHAPE(-1, 2, 4, 4), QD_F32, true },
    };
    qd_err err = { 0 };
    qd_denoiser *d = NULL;
    for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
        qd_graph *g = simple_graph(rows[k].first, rows[k].shape, rows[k].second, rows[k].dtype, rows[k].slice);
        check_fails(qd_denoiser_new(g, 2, 1, &qd_backend_ref, NULL, &d, &err), QD_E_UNSUPPORTED, rows[k].words, &err);
        assert_null(d);
        qd_graph_free(g);
    }
    for (int dtype = 0; dtype < 2; dtype++) { /* time steps of either kind */
        float x[32], out[32];
        qd_graph *g = simple_graph("sample", QD_SHAPE(-1, 2, 4, 4), "timestep", dtype ? QD_I64 : QD_F32, false);
        check_fails(qd_denoiser_new(g, 0, 1, &qd_backend_ref, NULL, &d, &err), QD_E_INVALID, "batch", &err);
        d = new_denoiser(g, 1, &qd_backend_ref);
        const qd_predictor p = qd_denoiser_predictor(d);
        harness_normal(x, 32, 1, 1.0f);
        check_ok(p.predict(p.ctx, NULL, x, 3, out, &err), &err);
        assert_true(out[5] == 0.5f * x[5]);
        qd_denoiser_free(d);
        d = NULL;
        qd_graph_free(g);
    }
}

static void allocations_fail(void **state)
{
    qd_graph *g = simple_graph("sample", QD_SHAPE(-1, 2, 4, 4), "timestep", QD_F32, false);
    for (long k = 0;; k++) {
        qd_err err = { 0 };
        qd_denoiser *d = NULL;
        qd_mem_fault_set(k);
        const qd_status st = qd_denoiser_new(g, 1, 1, &qd_backend_ref, NULL, &d, &err);
        const bool hit = qd_mem_fault_hit();
        qd_mem_fault_set(-1);
        if (!hit) {
            check_ok(st, &err);
            qd_denoiser_free(d);
            assert_true(k >= 4);
            break;
        }
        check_fails(st, QD_E_NOMEM, NULL, &err);
        assert_null(d);
    }
    qd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(repository_trajectory), cmocka_unit_test(delivered_trajectory),
        cmocka_unit_test(alone_or_in_a_batch),   cmocka_unit_test(graphs_that_are_no_denoisers),
        cmocka_unit_test(allocations_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
