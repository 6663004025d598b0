/* bench_unet.c - a diffusion U-Net in float, W8A8 and W4A8 against the bare convolutions of oneDNN, all in turn in one run.
 *
 * One JSON line for each model, batch and number of threads: medians over the rounds. The ceiling is the time of the float
 * convolutions alone, each in the layout oneDNN likes best, with nothing in between.
 *
 * W4A8 keeps its weights in 4 bits in the plan; int4_grouped has a scale for every 64 input channels. time layers stay in float.
 *
 *   bench_unet [--rounds n] [--model cifar10|fmnist] [--batch n] [--threads n] [--profile]
 *   bench_unet --write-qdq FILE.onnx     the cifar10 network in W8A8 as ONNX, for other runtimes */
#include <math.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/rng.h"
#include "graph/op.h"
#include "harness/harness.h"
#include "model/export.h"
#include "model/model.h"
#include "nn/nn.h"
#include "plan/plan.h"

#define MAX_ROUNDS 101
#define MAX_CONVS 256
#define RANGE 8.0f /* every activation is coded over [-RANGE / 4, 3 RANGE / 4]: speed does not depend on it */

/* diffusion_models.md 3.1 */
static const char cifar10[] =
    "{\"_class_name\": \"UNet2DModel\", \"sample_size\": 32, \"in_channels\": 3, \"out_channels\": 3,"
    " \"block_out_channels\": [128, 256, 256, 256],"
    " \"down_block_types\": [\"DownBlock2D\", \"AttnDownBlock2D\", \"DownBlock2D\", \"DownBlock2D\"],"
    " \"up_block_types\": [\"UpBlock2D\", \"UpBlock2D\", \"AttnUpBlock2D\", \"UpBlock2D\"], \"layers_per_block\": 2,"
    " \"attention_head_dim\": null, \"downsample_padding\": 0, \"flip_sin_to_cos\": false, \"freq_shift\": 1,"
    " \"norm_eps\": 1e-6, \"norm_num_groups\": 32}";

static void die(const char *what, const qd_err *err)
{
    fprintf(stderr, "bench_unet: %s: %s\n", what, err ? err->text : "out of memory");
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
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

/* --- the integer twins: ranges fixed, weights by their largest value, shortcuts of a concat split (qncd.md 4.1) --- */

typedef struct rewrite {
    const qd_graph *from;
    qd_graph *to;
    qd_node_id *map, *codes; // [nodes of from]
    int bits;
    int64_t group; /* input channels that share a scale; 0 = all */
} rewrite;

static qd_node_id codes_of(rewrite *w, qd_node_id value)
{
    char name[QD_MAX_NAME];
    if (w->codes[value] < 0) {
        snprintf(name, sizeof(name), "codes%d", (int)value);
        w->codes[value] = qd_graph_add(
            w->to, &qd_op_quantize, name, QD_IN(w->map[value]),
            QD_ATTRS(QD_FLOAT("scale", RANGE / 255.0f), QD_INT("zero", 64), QD_INT("bits", 8), QD_INT("symmetric", 0)));
    }
    return w->codes[value];
}

/* Input channels [first, first + count) of a layer, as an integer layer. */
static qd_node_id integer_part(rewrite *w, const qd_node *n, const char *suffix, qd_node_id value, int64_t first,
                               int64_t count, bool with_bias)
{
    char name[QD_MAX_NAME], other[QD_MAX_NAME + 16];
    qd_err err = { 0 };
    qd_tensor codes = { 0 }, scale = { 0 };
    const qd_tensor *weight = &qd_graph_node(w->from, n->input[1])->value;
    qd_shape shape = weight->shape;
    const int64_t outs = shape.dim[0], ins = shape.dim[1], kernel = qd_tensor_count(weight) / outs / ins;
    const int64_t group = count > w->group ? w->group : 0, scales = qd_k_scales(count, group);
    const int64_t share = (group ? group : count) * kernel, length = count * kernel;
    const qd_shape scale_shape = group ? QD_SHAPE(outs, scales) : QD_SHAPE(outs);
    const float most = (float)((1 << (w->bits - 1)) - 1);
    shape.dim[1] = count;
    if (qd_tensor_init(&codes, QD_I8, &shape, NULL, &err) || qd_tensor_init(&scale, QD_F32, &scale_shape, NULL, &err))
        die("weights", &err);
    for (int64_t k = 0; k < outs * scales; k++) {
        const int64_t o = k / scales, from = k % scales * share,
                      n_share = length - from < share ? length - from : share;
        const float *row = qd_f32(weight) + (o * ins + first) * kernel + from;
        float top = 1e-6f;
        for (int64_t i = 0; i < n_share; i++)
            top = fmaxf(top, fabsf(row[i]));
        qd_f32(&scale)[k] = top / most;
        for (int64_t i = 0; i < n_share; i++)
            qd_i8(&codes)[o * length + from + i] = (int8_t)lrintf(row[i] / top * most);
    }
    if (w->bits == 4) {
        qd_tensor packed;
        if (qd_tensor_pack(&packed, &codes, QD_I4, NULL, &err))
            die("weights", &err);
        qd_tensor_clear(&codes);
        codes = packed;
    }
    qd_attr attrs[QD_MAX_ATTRS];
    int n_attrs = 0;
    for (; n_attrs < n->n_attrs; n_attrs++)
        attrs[n_attrs] = n->attr[n_attrs];
    attrs[n_attrs++] = QD_FLOAT("x_scale", RANGE / 255.0f);
    attrs[n_attrs++] = QD_INT("x_zero", 64);
    attrs[n_attrs++] = QD_INT("group_size", group);
    snprintf(name, sizeof(name), "%s%s", n->name, suffix);
    snprintf(other, sizeof(other), "%s.codes", name);
    const qd_node_id c = qd_graph_const(w->to, other, &codes);
    snprintf(other, sizeof(other), "%s.scale", name);
    const qd_node_id s = qd_graph_const(w->to, other, &scale);
    qd_tensor_clear(&codes);
    qd_tensor_clear(&scale);
    const qd_node_id in[4] = { codes_of(w, value), c, s, with_bias && n->n_inputs > 2 ? w->map[n->input[2]] : -1 };
    return qd_graph_add(w->to, n->op == &qd_op_conv2d ? &qd_op_qconv2d : &qd_op_qlinear, name, in, in[3] < 0 ? 3 : 4,
                        attrs, n_attrs);
}

static qd_graph *to_codes(const qd_graph *g, const qd_shape *shapes, int bits, int64_t group)
{
    qd_err err = { 0 };
    qd_graph *pruned = NULL;
    const int n = qd_graph_size(g);
    rewrite w = { .from = g,
                  .bits = bits,
                  .group = group,
                  .map = qd_calloc((size_t)n, sizeof(qd_node_id)),
                  .codes = qd_calloc((size_t)n, sizeof(qd_node_id)) };
    if (!w.map || !w.codes || qd_graph_new(&w.to, &err))
        die("graph", NULL);
    for (qd_node_id id = 0; id < n; id++) {
        const qd_node *node = qd_graph_node(g, id);
        const bool layer = (node->op == &qd_op_conv2d || node->op == &qd_op_linear) && shapes[id].rank > 2;
        w.codes[id] = -1;
        if (!layer) {
            qd_graph_copy_node(w.to, g, id, w.map);
            continue;
        }
        const qd_node_id x = node->input[0];
        const qd_node *from = qd_graph_node(g, x);
        const qd_shape *weight = &shapes[node->input[1]];
        if (node->op == &qd_op_conv2d && from->op == &qd_op_concat && from->n_inputs == 2 && weight->dim[2] == 1) {
            const int64_t c0 = shapes[from->input[0]].dim[1], c1 = shapes[from->input[1]].dim[1];
            const qd_node_id a = integer_part(&w, node, ".split0", from->input[0], 0, c0, true);
            const qd_node_id b = integer_part(&w, node, ".split1", from->input[1], c0, c1, false);
            w.map[id] = qd_graph_add(w.to, &qd_op_add, node->name, QD_IN(a, b), QD_NO_ATTRS);
        } else {
            w.map[id] = integer_part(&w, node, "", x, 0, weight->dim[1], true);
        }
    }
    qd_graph_copy_outputs(w.to, g, w.map);
    if (qd_graph_verify(w.to, &err) || qd_graph_prune(w.to, &pruned, &err))
        die("int8 graph", &err);
    qd_graph_free(w.to);
    qd_free(w.map);
    qd_free(w.codes);
    return pruned;
}

/* --- the ceiling --- */

typedef struct bare {
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[5];
} bare;

typedef struct ceiling {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    bare convs[MAX_CONVS];
    int n;
} ceiling;

static void check(dnnl_status_t st)
{
    if (st) {
        fprintf(stderr, "bench_unet: oneDNN status %d\n", (int)st);
        exit(1);
    }
}

static dnnl_memory_t filled(ceiling *c, const dnnl_memory_desc_t *md)
{
    dnnl_memory_t m;
    void *data;
    check(dnnl_memory_create(&m, md, c->engine, DNNL_MEMORY_ALLOCATE));
    check(dnnl_memory_get_data_handle(m, &data));
    for (size_t k = 0; k < dnnl_memory_desc_get_size(md) / sizeof(float); k++)
        ((float *)data)[k] = 0.01f * (float)(k % 7);
    return m;
}

static void add_bare(ceiling *c, const qd_conv_shape *s)
{
    const dnnl_dims_t src_dims = { s->n, s->c, s->h, s->w }, weight_dims = { s->o, s->c, s->kh, s->kw };
    const dnnl_dims_t bias_dims = { s->o }, dst_dims = { s->n, s->o, s->oh, s->ow };
    const dnnl_dims_t strides = { s->stride_h, s->stride_w }, before = { s->pad_t, s->pad_l },
                      after = { s->pad_b, s->pad_r };
    dnnl_memory_desc_t src, weight, bias, dst;
    dnnl_convolution_desc_t desc;
    dnnl_primitive_desc_t pd;
    if (c->n == MAX_CONVS)
        die("too many convolutions", NULL);
    bare *b = &c->convs[c->n++];
    check(dnnl_memory_desc_init_by_tag(&src, 4, src_dims, dnnl_f32, dnnl_format_tag_any));
    check(dnnl_memory_desc_init_by_tag(&weight, 4, weight_dims, dnnl_f32, dnnl_format_tag_any));
    check(dnnl_memory_desc_init_by_tag(&bias, 1, bias_dims, dnnl_f32, dnnl_x));
    check(dnnl_memory_desc_init_by_tag(&dst, 4, dst_dims, dnnl_f32, dnnl_format_tag_any));
    check(dnnl_convolution_forward_desc_init(&desc, dnnl_forward_inference, dnnl_convolution_direct, &src, &weight,
                                             &bias, &dst, strides, before, after));
    check(dnnl_primitive_desc_create(&pd, &desc, NULL, c->engine, NULL));
    check(dnnl_primitive_create(&b->primitive, pd));
    const struct {
        int arg;
        dnnl_query_t query;
        int index;
    } memory[] = { { DNNL_ARG_SRC, dnnl_query_src_md, 0 },
                   { DNNL_ARG_WEIGHTS, dnnl_query_weights_md, 0 },
                   { DNNL_ARG_BIAS, dnnl_query_weights_md, 1 },
                   { DNNL_ARG_DST, dnnl_query_dst_md, 0 } };
    for (int k = 0; k < 4; k++) {
        b->args[k].arg = memory[k].arg;
        b->args[k].memory = filled(c, dnnl_primitive_desc_query_md(pd, memory[k].query, memory[k].index));
    }
    check(dnnl_primitive_desc_destroy(pd));
}

static ceiling make_ceiling(const qd_graph *g, const qd_shape *shapes, int threads)
{
    ceiling c = { .n = 0 };
    omp_set_num_threads(threads);
    check(dnnl_engine_create(&c.engine, dnnl_cpu, 0));
    check(dnnl_stream_create(&c.stream, c.engine, dnnl_stream_default_flags));
    for (qd_node_id id = 0; id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        if (n->op != &qd_op_conv2d)
            continue;
        const qd_conv_shape s = qd_node_conv_shape(n, &shapes[n->input[0]], &shapes[n->input[1]], &shapes[id]);
        add_bare(&c, &s);
    }
    return c;
}

static double run_ceiling(ceiling *c, int threads)
{
    omp_set_num_threads(threads);
    const double start = now();
    for (int k = 0; k < c->n; k++) {
        check(dnnl_primitive_execute(c->convs[k].primitive, c->stream, 4, c->convs[k].args));
        check(dnnl_stream_wait(c->stream));
    }
    return now() - start;
}

static void free_ceiling(ceiling *c)
{
    for (int k = 0; k < c->n; k++) {
        for (int j = 0; j < 4; j++)
            dnnl_memory_destroy(c->convs[k].args[j].memory);
        dnnl_primitive_destroy(c->convs[k].primitive);
    }
    dnnl_stream_destroy(c->stream);
    dnnl_engine_destroy(c->engine);
}

/* --- one line --- */

static double run_plan(qd_plan *p, const void *const *in, void *const *out)
{
    qd_err err = { 0 };
    const double start = now();
    if (qd_plan_run(p, NULL, in, out, &err))
        die("run", &err);
    return now() - start;
}

static qd_plan *compile(const qd_graph *g, const qd_shape *inputs, int threads, bool profile)
{
    qd_err err = { 0 };
    qd_plan *p;
    const qd_plan_options o = {
        .input_shapes = inputs, .n_inputs = 2, .threads = threads, .backend = &qd_backend_cpu, .profile = profile
    };
    if (qd_plan_compile(g, &o, &p, &err))
        die("compile", &err);
    return p;
}

static void print_profile(const char *title, const qd_plan *p)
{
    qd_buf b;
    qd_buf_init(&b, 0);
    qd_plan_print(p, &b);
    fprintf(stderr, "%s\n%s", title, b.data ? b.data : "");
    qd_buf_clear(&b);
}

enum { FLOAT, W8, W4, W4_GROUPED, KINDS };
static const char *const kind_names[KINDS] = { "float", "int8", "int4", "int4_grouped" };

static void measure(const char *name, const qd_graph *g, int64_t batch, int threads, int rounds, bool profile)
{
    static double took[KINDS + 1][MAX_ROUNDS]; /* the last: the ceiling */
    qd_err err = { 0 };
    qd_shape inputs[2] = { qd_graph_node(g, qd_graph_input_at(g, 0))->shape, QD_SHAPE(batch) };
    inputs[0].dim[0] = batch;
    int64_t count = 0;
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(g), sizeof(*shapes));
    if (!shapes || qd_shape_count(&inputs[0], &count, &err) || qd_graph_shapes(g, inputs, 2, shapes, &err))
        die("shapes", &err);
    qd_plan *plan[KINDS];
    size_t weights[KINDS], disk[KINDS];
    for (int k = 0; k < KINDS; k++) {
        qd_graph *other = k == FLOAT ? NULL : to_codes(g, shapes, k == W8 ? 8 : 4, k == W4_GROUPED ? 64 : 0);
        plan[k] = compile(other ? other : g, inputs, threads, profile);
        weights[k] = qd_plan_weight_bytes(plan[k]);
        disk[k] = qd_graph_param_bytes(other ? other : g);
        qd_graph_free(other);
    }
    ceiling c = make_ceiling(g, shapes, threads);

    float *x = qd_alloc_aligned((size_t)count * sizeof(float)), *y = qd_alloc_aligned((size_t)count * sizeof(float));
    float *t = qd_alloc_aligned((size_t)batch * sizeof(float));
    if (!x || !y || !t)
        die("inputs", NULL);
    qd_rng_normal(x, (size_t)count, 1, 0, 0);
    for (int64_t k = 0; k < batch; k++)
        t[k] = 500.0f;
    const void *const in[2] = { x, t };
    void *const out[1] = { y };
    for (int r = -1; r < rounds; r++) { /* the first round warms up */
        const int at = r < 0 ? 0 : r;
        for (int k = 0; k < KINDS; k++)
            took[k][at] = run_plan(plan[k], in, out);
        took[KINDS][at] = run_ceiling(&c, threads);
    }
    double mid[KINDS + 1];
    for (int k = 0; k <= KINDS; k++)
        mid[k] = median(took[k], rounds); /* sorts: the first is the best, what a quiet machine would show */
    printf("{\"bench\": \"unet\", \"model\": \"%s\", \"batch\": %d, \"threads\": %d, \"rounds\": %d", name, (int)batch,
           threads, rounds);
    for (int k = 0; k < KINDS; k++) {
        if (profile)
            print_profile(kind_names[k], plan[k]);
        printf(", \"%s_images_per_s\": %.2f, \"%s_ms\": %.3f, \"best_%s_ms\": %.3f, \"%s_weight_bytes\": %zu, "
               "\"%s_constant_bytes\": %zu",
               kind_names[k], (double)batch / mid[k], kind_names[k], mid[k] * 1e3, kind_names[k], took[k][0] * 1e3,
               kind_names[k], weights[k], kind_names[k], disk[k]);
        qd_plan_free(plan[k]);
    }
    printf(", \"ceiling_ms\": %.3f, \"best_ceiling_ms\": %.3f, \"int8_over_float\": %.2f, \"int4_over_int8\": %.2f, "
           "\"int4_grouped_over_int8\": %.2f, \"float_over_ceiling\": %.3f}\n",
           mid[KINDS] * 1e3, took[KINDS][0] * 1e3, mid[FLOAT] / mid[W8], mid[W8] / mid[W4], mid[W8] / mid[W4_GROUPED],
           mid[FLOAT] / mid[KINDS]);
    fflush(stdout);
    free_ceiling(&c);
    qd_free(shapes);
    qd_free(x);
    qd_free(y);
    qd_free(t);
}

static qd_graph *load(const char *name)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    if (strcmp(name, "cifar10") == 0) {
        if (qd_zoo_random(cifar10, 1, &g, &err))
            die(name, &err);
        return g;
    }
    qd_model *m = NULL;
    qd_role role;
    if (qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &m, &err) ||
        qd_zoo_build(m, NULL, &g, &role, &err))
        die(name, &err);
    qd_model_free(m);
    return g;
}

static void write_qdq(const char *path)
{
    qd_err err = { 0 };
    qd_graph *g = load("cifar10");
    const qd_shape inputs[2] = { QD_SHAPE(1, 3, 32, 32), QD_SHAPE(1) };
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(g), sizeof(*shapes));
    if (!shapes || qd_graph_shapes(g, inputs, 2, shapes, &err))
        die("shapes", &err);
    qd_graph *codes = to_codes(g, shapes, 8, 0);
    if (qd_onnx_save(path, codes, "cifar10", 13, NULL, &err))
        die(path, &err);
    qd_free(shapes);
    qd_graph_free(codes);
    qd_graph_free(g);
}

int main(int argc, char **argv)
{
    qd_cpu_prepare(argv); /* as the daemon does: the libraries read their settings while they are loaded */
    static const char *const models[] = { "cifar10", "fmnist" };
    const char *only = NULL;
    int rounds = 11, batch = 0, threads = 0;
    bool profile = false;
    for (int k = 1; k < argc; k++) {
        const char *value = k + 1 < argc ? argv[k + 1] : "";
        if (strcmp(argv[k], "--write-qdq") == 0 && *value) {
            write_qdq(value);
            return 0;
        }
        if (strcmp(argv[k], "--profile") == 0)
            profile = true;
        else if (strcmp(argv[k], "--rounds") == 0)
            rounds = atoi(value), k++;
        else if (strcmp(argv[k], "--model") == 0)
            only = value, k++;
        else if (strcmp(argv[k], "--batch") == 0)
            batch = atoi(value), k++;
        else if (strcmp(argv[k], "--threads") == 0)
            threads = atoi(value), k++;
        else
            rounds = 0;
    }
    if (rounds < 1 || rounds > MAX_ROUNDS) {
        fprintf(stderr,
                "usage: bench_unet [--rounds 1..%d] [--model cifar10|fmnist] [--batch n] [--threads n] [--profile]\n",
                MAX_ROUNDS);
        return 2;
    }
    for (size_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
        if (only && strcmp(only, models[m]) != 0)
            continue;
        qd_graph *g = load(models[m]);
        for (int b = 1; b <= 8; b += 7)
            for (int t = 1; t <= 2; t++)
                if ((!batch || batch == b) && (!threads || threads == t))
                    measure(models[m], g, b, t, rounds, profile);
        qd_graph_free(g);
    }
    return 0;
}
