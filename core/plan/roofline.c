/* roofline.c - what this processor can do, measured, and how near a step of a plan comes to it (Williams et al. 2009). */
#include <math.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/par.h"
#include "graph/op.h"
#include "plan/plan.h"

#define CHANNELS                                                                                                       \
    256 /* of the convolution that peaks are taken from: 3 x 3 on 16 x 16, what the U-Nets we run are made of */
#define SIDE 16
#define TRIALS 8
#define OVERHEAD 4.0          /* a step this many times slower than its roof is held back by neither */
#define OVERHEAD_SECONDS 2e-5 /* unless it takes longer than waking threads and starting loops can explain */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- arithmetic --- */

static qd_node_id filled(qd_graph *g, const char *name, qd_dtype dtype, qd_shape shape, qd_status *st, qd_err *err)
{
    qd_tensor t = { 0 };
    if (*st || (*st = qd_tensor_init(&t, dtype, &shape, NULL, err)))
        return -1;
    for (int64_t k = 0; k < qd_tensor_count(&t); k++) {
        if (dtype == QD_F32)
            qd_f32(&t)[k] = 0.01f * (float)(1 + k % 7);
        else
            qd_i8(&t)[k] = (int8_t)(k % 15 - 7);
    }
    const qd_node_id id = qd_graph_const(g, name, &t);
    qd_tensor_clear(&t);
    return id;
}

/* x -> conv, or x -> quantize -> qconv2d. */
static qd_status conv_graph(bool integer, qd_graph **out, qd_err *err)
{
    static const int64_t pads[4] = { 2, 2, 2, 2 }, apart[2] = { 2, 2 };
    const qd_shape x_shape = QD_SHAPE(-1, CHANNELS, SIDE, SIDE), w_shape = QD_SHAPE(CHANNELS, CHANNELS, 3, 3);
    const qd_shape scale_shape = QD_SHAPE(CHANNELS);
    qd_graph *g = NULL;
    qd_status st = qd_graph_new(&g, err);
    if (st)
        return st;
    qd_node_id y, x = qd_graph_input(g, "x", QD_F32, &x_shape);
    const qd_node_id w = filled(g, "w", integer ? QD_I8 : QD_F32, w_shape, &st, err);
    if (integer) {
        const qd_node_id scale = filled(g, "scale", QD_F32, scale_shape, &st, err);
        x = qd_graph_add(g, &qd_op_quantize, "codes", QD_IN(x), QD_ATTRS(QD_FLOAT("scale", 0.01)));
        y = qd_graph_add(
            g, &qd_op_qconv2d, "y", QD_IN(x, w, scale),
            QD_ATTRS(qd_attr_ints("pads", 4, pads), qd_attr_ints("dilation", 2, apart), QD_FLOAT("x_scale", 0.01)));
    } else {
        y = qd_graph_add(g, &qd_op_conv2d, "y", QD_IN(x, w),
                         QD_ATTRS(qd_attr_ints("pads", 4, pads), qd_attr_ints("dilation", 2, apart)));
    }
    qd_graph_output(g, "y", y);
    if (!st)
        st = qd_graph_verify(g, err);
    if (st)
        qd_graph_free(g);
    else
        *out = g;
    return st;
}

/* Multiply-adds a second of the convolution alone: its step, at its best. */
static qd_status measure_conv(bool integer, int threads, double *rate, qd_err *err)
{
    const qd_shape shape = QD_SHAPE(1, CHANNELS, SIDE, SIDE);
    const size_t bytes = (size_t)CHANNELS * SIDE * SIDE * sizeof(float);
    qd_graph *g = NULL;
    qd_plan *p = NULL;
    float *x = NULL, *y = NULL;
    double before = 0.0, best = INFINITY;
    qd_plan_step s = { 0 };
    qd_status st = conv_graph(integer, &g, err);
    if (st)
        goto out;
    const qd_plan_options o = {
        .input_shapes = &shape, .n_inputs = 1, .threads = threads, .backend = &qd_backend_cpu, .profile = true
    };
    st = qd_plan_compile(g, &o, &p, err);
    if (st)
        goto out;
    x = qd_calloc(1, bytes);
    y = qd_calloc(1, bytes);
    if (!x || !y) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to measure convolutions");
        goto out;
    }
    for (int k = 0; k < TRIALS && !st; k++) {
        st = qd_plan_run(p, NULL, (const void *[]){ x }, (void *[]){ y }, err);
        qd_plan_step_at(p, qd_plan_steps(p) - 1, &s);
        if (s.seconds - before > 0.0 && s.seconds - before < best)
            best = s.seconds - before;
        before = s.seconds;
    }
    *rate = (double)s.macs / best;
out:
    qd_free(y);
    qd_free(x);
    qd_plan_free(p);
    qd_graph_free(g);
    return st;
}

/* --- bytes --- */

typedef struct sweep {
    float *a;
    const float *b;
    int64_t each; /* floats of a piece */
    int repeat;
} sweep;

static void sweep_piece(void *ctx, int64_t i)
{
    const sweep *s = ctx;
    float *a = s->a + i * s->each;
    const float *b = s->b + i * s->each;
    for (int r = 0; r < s->repeat; r++) {
#pragma omp simd
        for (int64_t k = 0; k < s->each; k++)
            a[k] = 0.5f * a[k] + b[k];
    }
}

/* Two arrays read, one written: bytes a second. */
static qd_status measure_bytes(int threads, size_t bytes, int repeat, double *rate, qd_err *err)
{
    const int64_t n = (int64_t)(bytes / 2 / sizeof(float)) / threads * threads;
    float *a = qd_alloc_aligned((size_t)n * sizeof(float)), *b = qd_alloc_aligned((size_t)n * sizeof(float));
    qd_status st = a && b ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory to measure memory (%zu bytes)", bytes);
    if (!st) {
        double best = INFINITY;
        sweep s = { .a = a, .b = b, .each = n / threads, .repeat = repeat };
        memset(a, 0, (size_t)n * sizeof(float));
        memset(b, 0, (size_t)n * sizeof(float));
        for (int k = 0; k < TRIALS; k++) {
            const double start = now();
            qd_par_for(threads, threads, sweep_piece, &s);
            best = fmin(best, now() - start);
        }
        *rate = 3.0 * (double)n * sizeof(float) * repeat / best;
    }
    qd_free(a);
    qd_free(b);
    return st;
}

qd_status qd_plan_measure_peaks(int threads, qd_plan_peaks *out, qd_err *err)
{
    const long second = sysconf(_SC_LEVEL2_CACHE_SIZE), third = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const size_t l2 = second > 0 ? (size_t)second : (size_t)512 << 10;
    qd_plan_peaks p = { .threads = threads < 1 ? 1 : threads };
    p.cache_bytes = third > 0 ? (size_t)third / 2 : 2 * l2;
    qd_status st = measure_conv(false, p.threads, &p.f32_macs, err);
    if (!st)
        st = measure_conv(true, p.threads, &p.int8_macs, err);
    if (!st)
        st = measure_bytes(p.threads, (size_t)96 << 20, 1, &p.memory_rate, err);
    if (!st)
        st = measure_bytes(p.threads, l2 / 2 * (size_t)p.threads, 16, &p.cache_rate, err);
    if (!st)
        *out = p;
    return st;
}

/* --- a step against them --- */

const char *qd_plan_bound_name(qd_plan_bound b)
{
    static const char *const names[] = { "compute", "memory", "overhead" };
    return names[b];
}

double qd_plan_least_seconds(const qd_plan_step *s, double took, const qd_plan_peaks *peaks, qd_plan_bound *bound)
{
    const double compute = (double)s->macs / (s->integer ? peaks->int8_macs : peaks->f32_macs);
    const double memory = (double)s->bytes / (s->bytes <= peaks->cache_bytes ? peaks->cache_rate : peaks->memory_rate);
    const double least = fmax(compute, memory);
    *bound = took > OVERHEAD * least && took < OVERHEAD_SECONDS ? QD_BOUND_OVERHEAD
             : compute >= memory                                ? QD_BOUND_COMPUTE
                                                                : QD_BOUND_MEMORY;
    return least;
}
