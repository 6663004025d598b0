/* bench_sd.c - one call of Stable Diffusion's U-Net (859,520,964 parameters, drawn from a seed) in float and in W8A8: seconds, and the most
 * memory the process ever held.
 *
 * Each kind runs in a process of its own, so that VmHWM is its own. No file is read or written. Float: weights are drawn, and let go one by
 * one as the plan packs them. W8A8: each layer's weights are drawn, coded and forgotten before the next, so that the float network
 * is never in memory.
 *
 *   bench_sd [--kind float|w8a8] [--batch n] [--threads n] [--calls n] [--latent side] [--profile]
 *
 * One JSON line for each kind: seconds are the median of the calls after the first. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/rng.h"
#include "graph/op.h"
#include "nn/nn.h"
#include "plan/plan.h"

#define MAX_CALLS 101
#define RANGE 8.0f /* every activation is coded over [-RANGE / 4, 3 RANGE / 4]: speed and memory do not depend on it */
#define TOKENS 77
#define WIDTH 768

/* diffusion_models.md 4.1 */
static const char config[] =
    "{\"_class_name\": \"UNet2DConditionModel\", \"sample_size\": %d, \"in_channels\": 4, \"out_channels\": 4,"
    " \"block_out_channels\": [320, 640, 1280, 1280], \"layers_per_block\": 2, \"cross_attention_dim\": 768,"
    " \"attention_head_dim\": 8, \"norm_eps\": 1e-5}";

static void die(const char *what, const qd_err *err)
{
    fprintf(stderr, "bench_sd: %s: %s\n", what, err ? err->text : "out of memory");
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A line of /proc/self/status in bytes: "VmHWM:" is the most that was ever resident. */
static double status_bytes(const char *key)
{
    char line[256];
    double kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            kib = strtod(line + strlen(key), NULL);
    if (f)
        fclose(f);
    return kib * 1024;
}

/* --- the network in integers --- */

typedef struct rewrite {
    const qd_graph *from; /* its weights are blank pages that nobody reads */
    qd_graph *to;
    qd_node_id *map, *codes; // [nodes of from]
    float *row;              // [longest row of weights]
} rewrite;

/* Rows of weights drawn as PyTorch initialises them, coded by their largest, and forgotten. */
static void draw_codes(rewrite *w, const char *name, const qd_shape *shape, qd_tensor *codes, qd_tensor *scale)
{
    qd_err err = { 0 };
    qd_rng rng;
    uint64_t stream = QD_STREAM_WEIGHTS;
    const qd_shape outs = QD_SHAPE(shape->dim[0]);
    for (const char *c = name; *c; c++)
        stream = (stream * 31 + (uint8_t)*c) & 0xffffffffffffffull;
    qd_rng_init(&rng, 7, QD_STREAM_WEIGHTS | stream);
    if (qd_tensor_init(codes, QD_I8, shape, NULL, &err) || qd_tensor_init(scale, QD_F32, &outs, NULL, &err))
        die("codes", &err);
    const int64_t n = qd_tensor_count(codes) / shape->dim[0];
    const float bound = 1.0f / sqrtf((float)n);
    for (int64_t o = 0; o < shape->dim[0]; o++) {
        float top = 1e-9f;
        for (int64_t k = 0; k < n; k++) {
            w->row[k] = (2.0f * qd_rng_uniform(&rng) - 1.0f) * bound;
            top = fmaxf(top, fabsf(w->row[k]));
        }
        qd_f32(scale)[o] = top / 127.0f;
        for (int64_t k = 0; k < n; k++)
            qd_i8(codes)[o * n + k] = (int8_t)lrintf(w->row[k] * (127.0f / top));
    }
}

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

static qd_node_id integer_layer(rewrite *w, const qd_node *n)
{
    char name[QD_MAX_NAME + 16];
    qd_tensor codes = { 0 }, scale = { 0 };
    qd_attr attrs[QD_MAX_ATTRS];
    int n_attrs = 0;
    draw_codes(w, n->name, &qd_graph_node(w->from, n->input[1])->shape, &codes, &scale);
    for (; n_attrs < n->n_attrs; n_attrs++)
        attrs[n_attrs] = n->attr[n_attrs];
    attrs[n_attrs++] = QD_FLOAT("x_scale", RANGE / 255.0f);
    attrs[n_attrs++] = QD_INT("x_zero", 64);
    attrs[n_attrs++] = QD_INT("group_size", 0);
    const qd_node_id x = codes_of(w, n->input[0]);
    snprintf(name, sizeof(name), "%s.codes", n->name);
    const qd_node_id c = qd_graph_const(w->to, name, &codes);
    snprintf(name, sizeof(name), "%s.scale", n->name);
    const qd_node_id s = qd_graph_const(w->to, name, &scale);
    qd_tensor_clear(&codes);
    qd_tensor_clear(&scale);
    const qd_node_id in[4] = { x, c, s, n->n_inputs > 2 ? w->map[n->input[2]] : -1 };
    return qd_graph_add(w->to, n->op == &qd_op_conv2d ? &qd_op_qconv2d : &qd_op_qlinear, n->name, in, in[3] < 0 ? 3 : 4,
                        attrs, n_attrs);
}

/* Layers of images and tokens become integers; those of the time step stay as they are. */
static qd_graph *integer_graph(const qd_graph *g, const qd_shape *inputs)
{
    qd_err err = { 0 };
    qd_graph *pruned = NULL;
    const int n = qd_graph_size(g);
    int64_t longest = 1;
    qd_shape *shapes = qd_calloc((size_t)n, sizeof(*shapes));
    rewrite w = { .from = g,
                  .map = qd_calloc((size_t)n, sizeof(qd_node_id)),
                  .codes = qd_calloc((size_t)n, sizeof(qd_node_id)) };
    if (!shapes || !w.map || !w.codes || qd_graph_new(&w.to, &err))
        die("graph", NULL);
    if (qd_graph_shapes(g, inputs, qd_graph_inputs(g), shapes, &err))
        die("shapes", &err);
    for (qd_node_id id = 0; id < n; id++)
        if (qd_graph_node(g, id)->op == &qd_op_const && shapes[id].rank > 1)
            longest = fmax(longest, (double)qd_tensor_count(&qd_graph_node(g, id)->value) / (double)shapes[id].dim[0]);
    w.row = qd_alloc((size_t)longest * sizeof(float));
    if (!w.row)
        die("a row of weights", NULL);
    for (qd_node_id id = 0; id < n; id++) {
        const qd_node *node = qd_graph_node(g, id);
        const bool layer = (node->op == &qd_op_conv2d || node->op == &qd_op_linear) && shapes[id].rank > 2;
        w.codes[id] = -1;
        if (layer)
            w.map[id] = integer_layer(&w, node);
        else
            qd_graph_copy_node(w.to, g, id, w.map);
    }
    qd_graph_copy_outputs(w.to, g, w.map);
    if (qd_graph_verify(w.to, &err) || qd_graph_prune(w.to, &pruned, &err))
        die("int8 graph", &err);
    qd_graph_free(w.to);
    qd_free(shapes);
    qd_free(w.row);
    qd_free(w.map);
    qd_free(w.codes);
    return pruned;
}

static qd_graph *build(const char *text, bool drawn)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_config *c = NULL;
    qd_weight_source *weights = NULL;
    const qd_network_kind *kind = qd_network_kind_find("UNet2DConditionModel");
    if (qd_config_parse(text, strlen(text), "config", &c, &err))
        die("config", &err);
    if (drawn ? qd_weight_source_random(7, NULL, &weights, &err) : qd_weight_source_blank(&weights, &err))
        die("weights", &err);
    if (kind->build(c, weights, NULL, &g, &err))
        die("network", &err);
    qd_weight_source_free(weights);
    qd_config_free(c);
    return g;
}

/* --- one line --- */

typedef struct ask {
    bool integer, profile;
    int batch, threads, calls, side;
} ask;

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print_profile(const qd_plan *p)
{
    qd_buf b;
    qd_buf_init(&b, 0);
    qd_plan_print(p, &b);
    fprintf(stderr, "%s", b.data ? (const char *)b.data : "");
    qd_buf_clear(&b);
}

static float *normal(int64_t n, uint64_t stream)
{
    float *x = qd_alloc_aligned((size_t)n * sizeof(float));
    if (!x)
        die("inputs", NULL);
    qd_rng_normal(x, (size_t)n, 7, stream, 0);
    return x;
}

static void measure(const ask *a)
{
    char text[1024];
    double took[MAX_CALLS];
    qd_err err = { 0 };
    qd_plan *plan = NULL;
    const int64_t pixels = (int64_t)a->batch * 4 * a->side * a->side;
    const qd_shape inputs[3] = { QD_SHAPE(a->batch, 4, a->side, a->side), QD_SHAPE(a->batch),
                                 QD_SHAPE(a->batch, TOKENS, WIDTH) };
    float *x = normal(pixels, 1), *context = normal((int64_t)a->batch * TOKENS * WIDTH, 2), *out = normal(pixels, 3);
    float *t = normal(a->batch, 4);
    const void *in[3] = { x, t, context };
    void *outs[1] = { out };

    snprintf(text, sizeof(text), config, a->side);
    const double start = now();
    qd_graph *g = build(text, !a->integer);
    const int64_t parameters = qd_graph_param_count(g);
    if (a->integer) {
        qd_graph *codes = integer_graph(g, inputs);
        qd_graph_free(g);
        g = codes;
    }
    const double built = now();
    const double graph_peak = status_bytes("VmHWM:");
    const qd_plan_options o = { .input_shapes = inputs,
                                .n_inputs = 3,
                                .threads = a->threads,
                                .backend = &qd_backend_cpu,
                                .profile = a->profile,
                                .take = g };
    if (qd_plan_compile(g, &o, &plan, &err))
        die("compile", &err);
    qd_graph_free(g);
    const double compiled = now();
    for (int k = 0; k < a->batch; k++)
        t[k] = 500.0f;
    for (int k = 0; k < a->calls; k++) {
        const double begin = now();
        if (qd_plan_run(plan, NULL, in, outs, &err))
            die("run", &err);
        took[k] = now() - begin;
    }
    for (int64_t k = 0; k < pixels; k++)
        if (!isfinite(out[k]))
            die("an answer that is not finite", NULL);
    const double first = took[0];
    const int n = a->calls > 1 ? a->calls - 1 : 1;
    double *rest = a->calls > 1 ? took + 1 : took;
    qsort(rest, (size_t)n, sizeof(*rest), by_value);
    printf(
        "{\"bench\": \"sd\", \"kind\": \"%s\", \"parameters\": %lld, \"latent\": %d, \"batch\": %d, \"threads\": %d, "
        "\"seconds\": %.3f, \"first_seconds\": %.3f, \"build_seconds\": %.2f, \"compile_seconds\": %.2f, "
        "\"peak_rss_bytes\": %.0f, \"graph_peak_bytes\": %.0f, \"rss_bytes\": %.0f, \"packed_bytes\": %zu, "
        "\"arena_bytes\": %zu, \"cpu\": \"%s\"}\n",
        a->integer ? "w8a8" : "float", (long long)parameters, a->side, a->batch, a->threads, rest[n / 2], first,
        built - start, compiled - built, status_bytes("VmHWM:"), graph_peak, status_bytes("VmRSS:"),
        qd_plan_weight_bytes(plan), qd_plan_arena_bytes(plan), qd_plan_libraries());
    fflush(stdout);
    if (a->profile)
        print_profile(plan);
    qd_plan_free(plan);
    qd_free(x);
    qd_free(context);
    qd_free(out);
    qd_free(t);
}

static void in_a_process_of_its_own(const ask *a)
{
    int status = 0;
    fflush(stdout);
    const pid_t child = fork();
    if (child < 0)
        die(strerror(errno), NULL);
    if (child == 0) {
        measure(a);
        exit(0);
    }
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        die("a measurement failed", NULL);
}

static int number(const char *text, int lowest, int highest)
{
    const long v = strtol(text, NULL, 10);
    if (v < lowest || v > highest) {
        fprintf(stderr, "bench_sd: %s is not within %d..%d\n", text, lowest, highest);
        exit(2);
    }
    return (int)v;
}

int main(int argc, char **argv)
{
    ask a = { .batch = 1, .threads = 2, .calls = 3, .side = 64 };
    const char *kind = NULL;
    qd_cpu_prepare(argv);
    qd_mem_give_back();
    for (int k = 1; k < argc; k++) {
        const char *name = argv[k], *value = k + 1 < argc ? argv[k + 1] : "";
        if (strcmp(name, "--profile") == 0) {
            a.profile = true;
            continue;
        }
        if (strcmp(name, "--kind") == 0)
            kind = value;
        else if (strcmp(name, "--batch") == 0)
            a.batch = number(value, 1, 64);
        else if (strcmp(name, "--threads") == 0)
            a.threads = number(value, 1, 64);
        else if (strcmp(name, "--calls") == 0)
            a.calls = number(value, 1, MAX_CALLS);
        else if (strcmp(name, "--latent") == 0)
            a.side = number(value, 8, 128) / 8 * 8;
        else {
            fprintf(stderr, "bench_sd: unknown option '%s'\n", name);
            return 2;
        }
        k++;
    }
    for (int integer = 0; integer < 2; integer++) {
        a.integer = integer;
        if (!kind || strcmp(kind, integer ? "w8a8" : "float") == 0)
            in_a_process_of_its_own(&a);
    }
    return 0;
}
