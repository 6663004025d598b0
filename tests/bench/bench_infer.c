/* bench_infer.c - questions about inference, each answered by one JSON line for each shape: medians, everything compared taking turns.
 *
 *   bench_infer attention [--rounds n] [--threads n]     attention in float, and on codes with 8 and 16 bits for the softmax
 *   bench_infer products  [--rounds n] [--threads n]     u8 x s8 against s8 x s8, in oneDNN's convolutions
 *   bench_infer batches FILE [--rounds n] [--threads n] [--most n]   time of one image in batches of 1, 2, 4, .. of a network
 *   bench_infer model FILE [--batch n] [--rounds n] [--threads n]    one call of a network */
#include <math.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "base/mem.h"
#include "base/rng.h"
#include "graph/op.h"
#include "harness/harness.h"
#include "model/model.h"
#include "nn/nn.h"
#include "plan/plan.h"

#define MAX_ROUNDS 101

typedef struct arguments {
    const char *file;
    int rounds, threads, batch, most;
} arguments;

static void die(const char *what, const qd_err *err)
{
    fprintf(stderr, "bench_infer: %s: %s\n", what, err ? err->text : "out of memory");
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds the processor worked for us, on all threads: what other loads disturb least. */
static double worked(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof(*v), by_value);
    return v[n / 2];
}

/* --- a plan with its inputs and outputs --- */

typedef struct runner {
    qd_plan *plan;
    void *value[QD_MAX_INPUTS * 2];
    int n_in, n_all;
} runner;

static runner runner_new(const qd_graph *g, int64_t batch, int threads)
{
    qd_err err = { 0 };
    qd_shape in[QD_MAX_INPUTS], *shapes = qd_calloc((size_t)qd_graph_size(g), sizeof(*shapes));
    runner r = { .n_in = qd_graph_inputs(g) };
    r.n_all = r.n_in + qd_graph_outputs(g);
    if (!shapes || r.n_in > QD_MAX_INPUTS || r.n_all > 2 * QD_MAX_INPUTS)
        die("shapes", NULL);
    for (int k = 0; k < r.n_in; k++) {
        in[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        if (in[k].rank && in[k].dim[0] < 0)
            in[k].dim[0] = batch;
    }
    if (qd_graph_shapes(g, in, r.n_in, shapes, &err))
        die("shapes", &err);
    for (int k = 0; k < r.n_all; k++) {
        const qd_node_id id = k < r.n_in ? qd_graph_input_at(g, k) : qd_graph_output_at(g, k - r.n_in);
        int64_t count;
        if (qd_shape_count(&shapes[id], &count, &err) || !(r.value[k] = qd_calloc((size_t)count, sizeof(int64_t))))
            die("values", &err);
        if (k < r.n_in && qd_graph_node(g, id)->dtype == QD_F32)
            qd_rng_normal(r.value[k], (size_t)count, 1, 0, (uint64_t)k);
    }
    const qd_plan_options o = {
        .input_shapes = in, .n_inputs = r.n_in, .threads = threads, .backend = &qd_backend_cpu
    };
    if (qd_plan_compile(g, &o, &r.plan, &err))
        die("compile", &err);
    qd_free(shapes);
    return r;
}

static double runner_time(runner *r)
{
    qd_err err = { 0 };
    const double start = now();
    if (qd_plan_run(r->plan, NULL, (const void *const *)r->value, r->value + r->n_in, &err))
        die("run", &err);
    return now() - start;
}

static void runner_free(runner *r)
{
    for (int k = 0; k < r->n_all; k++)
        qd_free(r->value[k]);
    qd_plan_free(r->plan);
}

/* Medians of n runners taking turns; took and work are sorted then. */
static double took[8][MAX_ROUNDS], work[8][MAX_ROUNDS];

static void take_turns(runner *r, int n, int rounds, double *mid)
{
    for (int round = -1; round < rounds; round++) /* the first warms up */
        for (int k = 0; k < n; k++) {
            const double start = worked();
            took[k][round < 0 ? 0 : round] = runner_time(&r[k]);
            work[k][round < 0 ? 0 : round] = worked() - start;
        }
    for (int k = 0; k < n; k++) {
        mid[k] = median(took[k], rounds);
        median(work[k], rounds);
    }
}

/* --- attention --- */

static qd_graph *attention_graph(int64_t tokens, int64_t keys, int64_t heads, int64_t width, int64_t bits)
{
    static const char *const names[3] = { "q", "k", "v" }, *const codes[3] = { "qc", "kc", "vc" };
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_node_id in[3];
    if (qd_graph_new(&g, &err))
        die("graph", &err);
    for (int k = 0; k < 3; k++) {
        const qd_shape shape = QD_SHAPE(-1, k ? keys : tokens, heads * width);
        in[k] = qd_graph_input(g, names[k], QD_F32, &shape);
        if (bits)
            in[k] = qd_graph_add(g, &qd_op_quantize, codes[k], QD_IN(in[k]),
                                 QD_ATTRS(QD_FLOAT("scale", 0.03), QD_INT("zero", 128)));
    }
    qd_graph_output(
        g, "y",
        bits ? qd_graph_add(g, &qd_op_qattention, "attention", in, 3,
                            QD_ATTRS(QD_INT("heads", heads), QD_INT("softmax_bits", bits), QD_FLOAT("q_scale", 0.03),
                                     QD_INT("q_zero", 128), QD_FLOAT("k_scale", 0.03), QD_INT("k_zero", 128),
                                     QD_FLOAT("v_scale", 0.03), QD_INT("v_zero", 128)))
             : qd_graph_add(g, &qd_op_attention, "attention", in, 3, QD_ATTRS(QD_INT("heads", heads))));
    if (qd_graph_verify(g, &err))
        die("graph", &err);
    return g;
}

static void bench_attention(const arguments *a)
{
    /* Stable Diffusion's levels at 64 x 64, its context, and the ddpm-cifar10 U-Net. */
    static const struct {
        int64_t tokens, keys, heads, width;
    } shapes[] = { { 4096, 4096, 8, 40 }, { 1024, 1024, 8, 80 }, { 256, 256, 8, 160 },
                   { 4096, 77, 8, 40 },   { 256, 256, 1, 256 },  { 49, 49, 8, 8 } };
    for (size_t s = 0; s < sizeof(shapes) / sizeof(*shapes); s++) {
        static const int64_t bits[3] = { 0, 8, 16 };
        runner r[3];
        double mid[3];
        const int64_t macs = 2 * shapes[s].tokens * shapes[s].keys * shapes[s].heads * shapes[s].width;
        for (int k = 0; k < 3; k++) {
            qd_graph *g = attention_graph(shapes[s].tokens, shapes[s].keys, shapes[s].heads, shapes[s].width, bits[k]);
            r[k] = runner_new(g, 1, a->threads);
            qd_graph_free(g);
        }
        take_turns(r, 3, a->rounds, mid);
        printf(
            "{\"bench\": \"attention\", \"tokens\": %lld, \"keys\": %lld, \"heads\": %lld, \"width\": %lld, \"threads\": %d, "
            "\"rounds\": %d, \"float_ms\": %.3f, \"softmax8_ms\": %.3f, \"softmax16_ms\": %.3f, \"float_gflops\": %.1f, "
            "\"softmax8_over_float\": %.2f, \"softmax16_over_float\": %.2f, \"float_arena_mb\": %.1f, "
            "\"softmax16_arena_mb\": %.1f}\n",
            (long long)shapes[s].tokens, (long long)shapes[s].keys, (long long)shapes[s].heads,
            (long long)shapes[s].width, a->threads, a->rounds, mid[0] * 1e3, mid[1] * 1e3, mid[2] * 1e3,
            2e-9 * (double)macs / mid[0], mid[0] / mid[1], mid[0] / mid[2],
            1e-6 * (double)qd_plan_arena_bytes(r[0].plan), 1e-6 * (double)qd_plan_arena_bytes(r[2].plan));
        fflush(stdout);
        for (int k = 0; k < 3; k++)
            runner_free(&r[k]);
    }
}

/* --- signs of codes --- */

static void check(dnnl_status_t st)
{
    if (st) {
        fprintf(stderr, "bench_infer: oneDNN status %d\n", (int)st);
        exit(1);
    }
}

typedef struct bare {
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[3];
    char impl[64];
} bare;

static bare bare_new(dnnl_engine_t engine, const qd_conv_shape *s, dnnl_data_type_t src_type)
{
    const dnnl_dims_t src_dims = { s->n, s->c, s->h, s->w }, weight_dims = { s->o, s->c, s->kh, s->kw };
    const dnnl_dims_t dst_dims = { s->n, s->o, s->oh, s->ow };
    const dnnl_dims_t strides = { s->stride_h, s->stride_w }, pads = { s->pad_t, s->pad_l };
    static const int args[3] = { DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST };
    static const dnnl_query_t queries[3] = { dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md };
    dnnl_memory_desc_t src, weight, dst;
    dnnl_convolution_desc_t desc;
    dnnl_primitive_desc_t pd;
    const char *impl = "";
    bare b;
    check(dnnl_memory_desc_init_by_tag(&src, 4, src_dims, src_type, dnnl_nhwc));
    check(dnnl_memory_desc_init_by_tag(&weight, 4, weight_dims, dnnl_s8, dnnl_format_tag_any));
    check(dnnl_memory_desc_init_by_tag(&dst, 4, dst_dims, dnnl_f32, dnnl_nhwc));
    check(dnnl_convolution_forward_desc_init(&desc, dnnl_forward_inference, dnnl_convolution_direct, &src, &weight,
                                             NULL, &dst, strides, pads, pads));
    check(dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL));
    check(dnnl_primitive_create(&b.primitive, pd));
    check(dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &impl));
    snprintf(b.impl, sizeof(b.impl), "%s", impl);
    for (int k = 0; k < 3; k++) {
        b.args[k].arg = args[k];
        check(dnnl_memory_create(&b.args[k].memory, dnnl_primitive_desc_query_md(pd, queries[k], 0), engine,
                                 DNNL_MEMORY_ALLOCATE));
    }
    check(dnnl_primitive_desc_destroy(pd));
    return b;
}

static double bare_time(const bare *b, dnnl_stream_t stream)
{
    const double start = now();
    check(dnnl_primitive_execute(b->primitive, stream, 3, b->args));
    check(dnnl_stream_wait(stream));
    return now() - start;
}

static void bare_free(bare *b)
{
    for (int k = 0; k < 3; k++)
        dnnl_memory_destroy(b->args[k].memory);
    dnnl_primitive_destroy(b->primitive);
}

static void bench_products(const arguments *a)
{
    static const struct {
        int64_t c, o, side, kernel, stride;
    } shapes[] = { { 128, 128, 32, 3, 1 }, { 256, 256, 16, 3, 1 }, { 256, 256, 8, 3, 1 }, { 512, 256, 16, 1, 1 },
                   { 256, 256, 16, 1, 1 }, { 128, 128, 32, 3, 2 }, { 64, 64, 14, 3, 1 } };
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    omp_set_num_threads(a->threads);
    check(dnnl_engine_create(&engine, dnnl_cpu, 0));
    check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    for (size_t k = 0; k < sizeof(shapes) / sizeof(*shapes); k++) {
        const int64_t pad = shapes[k].kernel / 2,
                      out = (shapes[k].side + 2 * pad - shapes[k].kernel) / shapes[k].stride + 1;
        const qd_conv_shape s = { .n = 1,
                                  .c = shapes[k].c,
                                  .h = shapes[k].side,
                                  .w = shapes[k].side,
                                  .o = shapes[k].o,
                                  .oh = out,
                                  .ow = out,
                                  .kh = shapes[k].kernel,
                                  .kw = shapes[k].kernel,
                                  .stride_h = shapes[k].stride,
                                  .stride_w = shapes[k].stride,
                                  .pad_t = pad,
                                  .pad_l = pad };
        bare b[2] = { bare_new(engine, &s, dnnl_u8), bare_new(engine, &s, dnnl_s8) };
        for (int round = -1; round < a->rounds; round++)
            for (int j = 0; j < 2; j++)
                took[j][round < 0 ? 0 : round] = bare_time(&b[j], stream);
        const double u8 = median(took[0], a->rounds), s8 = median(took[1], a->rounds);
        const double macs = (double)(s.o * out * out * s.c * s.kh * s.kw);
        printf(
            "{\"bench\": \"products\", \"channels\": %lld, \"outputs\": %lld, \"side\": %lld, \"kernel\": %lld, \"stride\": %lld, "
            "\"threads\": %d, \"rounds\": %d, \"u8s8_us\": %.1f, \"s8s8_us\": %.1f, \"u8s8_gops\": %.0f, \"s8s8_gops\": %.0f, "
            "\"s8s8_over_u8s8\": %.3f, \"u8s8_impl\": \"%s\", \"s8s8_impl\": \"%s\"}\n",
            (long long)s.c, (long long)s.o, (long long)s.h, (long long)s.kh, (long long)s.stride_h, a->threads,
            a->rounds, u8 * 1e6, s8 * 1e6, 2e-9 * macs / u8, 2e-9 * macs / s8, s8 / u8, b[0].impl, b[1].impl);
        fflush(stdout);
        bare_free(&b[0]);
        bare_free(&b[1]);
    }
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
}

/* --- networks --- */

static qd_graph *load(const char *path)
{
    qd_err err = { 0 };
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_role role;
    if (qd_model_open(path, NULL, &m, &err) || qd_zoo_build(m, NULL, &g, &role, &err))
        die(path, &err);
    qd_model_free(m);
    return g;
}

/* Each batch beside batch 1, so that both see the same machine; by processor time. */
static void bench_batches(const arguments *a)
{
    qd_graph *g = load(a->file);
    double least = INFINITY, most = 0.0;
    printf("{\"bench\": \"batches\", \"model\": \"%s\", \"threads\": %d, \"rounds\": %d, \"over_batch_1\": {", a->file,
           a->threads, a->rounds);
    runner one = runner_new(g, 1, a->threads);
    for (int batch = 1; batch <= a->most; batch *= 2) {
        runner r[2] = { one, runner_new(g, batch, a->threads) };
        double mid[2];
        take_turns(r, 2, a->rounds, mid);
        const double each = work[1][a->rounds / 2] / batch / work[0][a->rounds / 2];
        least = fmin(least, each);
        most = fmax(most, each);
        printf("%s\"%d\": %.3f", batch > 1 ? ", " : "", batch, each);
        fflush(stdout);
        runner_free(&r[1]);
    }
    printf("}, \"spread\": %.3f}\n", most / least);
    runner_free(&one);
    qd_graph_free(g);
}

static void bench_model(const arguments *a)
{
    qd_graph *g = load(a->file);
    runner r = runner_new(g, a->batch, a->threads);
    double mid;
    take_turns(&r, 1, a->rounds, &mid);
    printf(
        "{\"bench\": \"model\", \"model\": \"%s\", \"batch\": %d, \"threads\": %d, \"rounds\": %d, \"ms\": %.3f, \"best_ms\": %.3f, \"cpu_ms\": %.3f}\n",
        a->file, a->batch, a->threads, a->rounds, mid * 1e3, took[0][0] * 1e3, work[0][a->rounds / 2] * 1e3);
    runner_free(&r);
    qd_graph_free(g);
}

static const struct {
    const char *name;
    void (*run)(const arguments *a);
    bool file;
} benches[] = { { "attention", bench_attention, false },
                { "products", bench_products, false },
                { "batches", bench_batches, true },
                { "model", bench_model, true } };

int main(int argc, char **argv)
{
    qd_cpu_prepare(argv); /* as the daemon does: the libraries read their settings while they are loaded */
    arguments a = { .rounds = 11, .threads = 1, .batch = 1, .most = 64 };
    size_t which = sizeof(benches) / sizeof(*benches);
    for (size_t k = 0; argc > 1 && k < sizeof(benches) / sizeof(*benches); k++)
        if (strcmp(argv[1], benches[k].name) == 0)
            which = k;
    const bool file = which < sizeof(benches) / sizeof(*benches) && benches[which].file;
    bool wrong = which == sizeof(benches) / sizeof(*benches) || (file && argc < 3);
    a.file = file && !wrong ? argv[2] : NULL;
    for (int k = file ? 3 : 2; k < argc && !wrong; k += 2) {
        int *to = strcmp(argv[k], "--rounds") == 0    ? &a.rounds
                  : strcmp(argv[k], "--threads") == 0 ? &a.threads
                  : strcmp(argv[k], "--batch") == 0   ? &a.batch
                  : strcmp(argv[k], "--most") == 0    ? &a.most
                                                      : NULL;
        if (to && k + 1 < argc)
            *to = atoi(argv[k + 1]);
        wrong = !to || k + 1 == argc || *to < 1;
    }
    if (wrong || a.rounds > MAX_ROUNDS) {
        fprintf(stderr,
                "usage: bench_infer attention|products|batches FILE|model FILE [--rounds 1..%d] [--threads n] "
                "[--batch n] [--most n]\n",
                MAX_ROUNDS);
        return 2;
    }
    benches[which].run(&a);
    return 0;
}
