/* plan_case.h - random graphs in few words, and the comparison every plan test makes: fast backend against plain loops. */
#ifndef PLAN_CASE_H
#define PLAN_CASE_H

#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "plan/backend.h"
#include "plan/plan.h"

/* A graph being built: nodes are named n0, n1, ...; constants come from a seeded stream. */
typedef struct plan_case {
    qd_graph *g;
    qd_rng rng;
    int names;
    qd_shape inputs[4];
    int n_inputs;
} plan_case;

static inline const char *case_name(plan_case *c)
{
    static char name[32];
    snprintf(name, sizeof(name), "n%d", c->names++);
    return name;
}

static inline plan_case case_new(uint64_t seed)
{
    plan_case c = { .g = NULL };
    qd_err err = { 0 };
    check_ok(qd_graph_new(&c.g, &err), &err);
    qd_rng_init(&c.rng, seed, 0);
    return c;
}

static inline int64_t case_pick(plan_case *c, int64_t lo, int64_t hi)
{
    return lo + (int64_t)qd_rng_below(&c->rng, (uint32_t)(hi - lo + 1));
}

static inline qd_node_id case_input(plan_case *c, qd_shape shape)
{
    qd_shape open = shape;
    c->inputs[c->n_inputs++] = shape;
    open.dim[0] = -1;
    return qd_graph_input(c->g, case_name(c), QD_F32, &open);
}

/* N(mean, scale^2) */
static inline qd_node_id case_const(plan_case *c, qd_shape shape, float mean, float scale)
{
    qd_tensor t = { 0 };
    qd_err err = { 0 };
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    qd_rng_normal(qd_f32(&t), (size_t)qd_tensor_count(&t), c->rng.seed, 77, (uint64_t)c->names << 24);
    for (int64_t k = 0; k < qd_tensor_count(&t); k++)
        qd_f32(&t)[k] = mean + scale * qd_f32(&t)[k];
    const qd_node_id id = qd_graph_const(c->g, case_name(c), &t);
    qd_tensor_clear(&t);
    return id;
}

static inline qd_node_id case_positive(plan_case *c, int64_t n)
{
    qd_tensor t = { 0 };
    qd_err err = { 0 };
    const qd_shape shape = QD_SHAPE(n);
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    for (int64_t k = 0; k < n; k++)
        qd_f32(&t)[k] = 0.25f + qd_rng_uniform(&c->rng);
    const qd_node_id id = qd_graph_const(c->g, case_name(c), &t);
    qd_tensor_clear(&t);
    return id;
}

static inline qd_node_id case_codes(plan_case *c, qd_shape shape)
{
    qd_tensor t = { 0 };
    qd_err err = { 0 };
    check_ok(qd_tensor_init(&t, QD_I8, &shape, NULL, &err), &err);
    for (int64_t k = 0; k < qd_tensor_count(&t); k++)
        qd_i8(&t)[k] = (int8_t)case_pick(c, -128, 127);
    const qd_node_id id = qd_graph_const(c->g, case_name(c), &t);
    qd_tensor_clear(&t);
    return id;
}

#define case_add(c, op, in, ...) qd_graph_add((c)->g, (op), case_name(c), in, __VA_ARGS__)

static inline qd_node_id case_unary(plan_case *c, const qd_op *op, qd_node_id x)
{
    return qd_graph_add(c->g, op, case_name(c), QD_IN(x), QD_NO_ATTRS);
}

static inline qd_node_id case_binary(plan_case *c, const qd_op *op, qd_node_id a, qd_node_id b)
{
    return qd_graph_add(c->g, op, case_name(c), QD_IN(a, b), QD_NO_ATTRS);
}

/* What a convolution looks like; zeros mean 1 where 0 makes no sense. */
typedef struct case_conv_shape {
    int64_t in, out, kernel, stride, groups;
    int64_t pads[4];
    bool no_bias;
} case_conv_shape;

#define CASE_CONV_ATTRS(s)                                                                                             \
    qd_attr_ints("stride", 2, (const int64_t[]){ (s).stride ? (s).stride : 1, (s).stride ? (s).stride : 1 }),          \
        qd_attr_ints("pads", 4, (s).pads), QD_INT("groups", (s).groups ? (s).groups : 1)

static inline qd_node_id case_conv(plan_case *c, qd_node_id x, case_conv_shape s)
{
    const int64_t groups = s.groups ? s.groups : 1;
    const qd_node_id w = case_const(c, QD_SHAPE(s.out, s.in / groups, s.kernel, s.kernel), 0.0f,
                                    1.0f / sqrtf((float)(s.in / groups * s.kernel * s.kernel)));
    const qd_node_id b = s.no_bias ? -1 : case_const(c, QD_SHAPE(s.out), 0.0f, 0.3f);
    return qd_graph_add(c->g, &qd_op_conv2d, case_name(c), (qd_node_id[]){ x, w, b }, b < 0 ? 2 : 3,
                        QD_ATTRS(CASE_CONV_ATTRS(s)));
}

static inline qd_node_id case_quantize(plan_case *c, qd_node_id x, bool symmetric, int64_t zero, qd_node_id divisor)
{
    return qd_graph_add(c->g, &qd_op_quantize, case_name(c), (qd_node_id[]){ x, divisor }, divisor < 0 ? 1 : 2,
                        QD_ATTRS(QD_FLOAT("scale", 0.03), QD_INT("zero", symmetric ? 0 : zero), QD_INT("bits", 8),
                                 QD_INT("symmetric", symmetric)));
}

/* An integer layer on codes made with scale 0.03. */
static inline qd_node_id case_qconv(plan_case *c, qd_node_id codes, int64_t zero, case_conv_shape s)
{
    const int64_t groups = s.groups ? s.groups : 1;
    const qd_node_id w = case_codes(c, QD_SHAPE(s.out, s.in / groups, s.kernel, s.kernel));
    const qd_node_id scale = case_positive(c, s.out);
    const qd_node_id b = s.no_bias ? -1 : case_const(c, QD_SHAPE(s.out), 0.0f, 3.0f);
    return qd_graph_add(c->g, &qd_op_qconv2d, case_name(c), (qd_node_id[]){ codes, w, scale, b }, b < 0 ? 3 : 4,
                        QD_ATTRS(CASE_CONV_ATTRS(s), QD_FLOAT("x_scale", 0.03), QD_INT("x_zero", zero)));
}

static inline qd_node_id case_linear(plan_case *c, qd_node_id x, int64_t in, int64_t out)
{
    const qd_node_id w = case_const(c, QD_SHAPE(out, in), 0.0f, 1.0f / sqrtf((float)in));
    const qd_node_id b = case_const(c, QD_SHAPE(out), 0.0f, 0.3f);
    return qd_graph_add(c->g, &qd_op_linear, case_name(c), QD_IN(x, w, b), QD_NO_ATTRS);
}

static inline qd_node_id case_norm(plan_case *c, qd_node_id x, int64_t channels, int64_t groups)
{
    const qd_node_id w = case_const(c, QD_SHAPE(channels), 1.0f, 0.3f),
                     b = case_const(c, QD_SHAPE(channels), 0.0f, 0.3f);
    return qd_graph_add(c->g, &qd_op_group_norm, case_name(c), QD_IN(x, w, b),
                        QD_ATTRS(QD_INT("groups", groups), QD_FLOAT("eps", 1e-5)));
}

static inline qd_node_id case_concat(plan_case *c, qd_node_id a, qd_node_id b)
{
    return qd_graph_add(c->g, &qd_op_concat, case_name(c), QD_IN(a, b), QD_ATTRS(QD_INT("axis", 1)));
}

static inline qd_node_id case_ints(plan_case *c, const qd_op *op, qd_node_id x, const char *attr, int n,
                                   const int64_t *v)
{
    return qd_graph_add(c->g, op, case_name(c), QD_IN(x), QD_ATTRS(qd_attr_ints(attr, n, v)));
}
#define CASE_DIMS(...)                                                                                                 \
    (int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), (const int64_t[])                                     \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static inline void case_output(plan_case *c, qd_node_id id)
{
    char name[32];
    snprintf(name, sizeof(name), "out%d", qd_graph_outputs(c->g));
    qd_graph_output(c->g, name, id);
}

/* Inputs of N(0, 1) and outputs of one graph. */
#define CASE_OUTPUTS 8
typedef struct case_data {
    float *in[4], *out[CASE_OUTPUTS];
    int64_t count[CASE_OUTPUTS];
    int n_in, n_out;
} case_data;

static inline case_data case_data_new(const plan_case *c)
{
    case_data d = { .n_in = c->n_inputs, .n_out = qd_graph_outputs(c->g) };
    qd_err err = { 0 };
    int64_t count;
    qd_shape *shapes = malloc(sizeof(*shapes) * (size_t)qd_graph_size(c->g));
    assert_non_null(shapes);
    check_ok(qd_graph_shapes(c->g, c->inputs, c->n_inputs, shapes, &err), &err);
    for (int k = 0; k < d.n_in; k++) {
        check_ok(qd_shape_count(&c->inputs[k], &count, &err), &err);
        d.in[k] = malloc(sizeof(float) * (size_t)count);
        harness_normal(d.in[k], count, c->rng.seed + 1000 + (uint64_t)k, 1.0f);
    }
    assert_true(d.n_out <= CASE_OUTPUTS);
    for (int k = 0; k < d.n_out; k++) {
        check_ok(qd_shape_count(&shapes[qd_graph_output_at(c->g, k)], &d.count[k], &err), &err);
        d.out[k] = malloc(sizeof(float) * (size_t)d.count[k]);
        memset(d.out[k], 0xff, sizeof(float) * (size_t)d.count[k]); /* NaN unless written */
    }
    free(shapes);
    return d;
}

static inline void case_data_clear(case_data *d)
{
    for (int k = 0; k < d->n_in; k++)
        free(d->in[k]);
    for (int k = 0; k < d->n_out; k++)
        free(d->out[k]);
}

static inline qd_plan *case_compile(const plan_case *c, const qd_backend *backend, int threads)
{
    qd_plan *p = NULL;
    qd_err err = { 0 };
    const qd_plan_options o = {
        .input_shapes = c->inputs, .n_inputs = c->n_inputs, .threads = threads, .backend = backend
    };
    check_ok(qd_graph_verify(c->g, &err), &err);
    check_ok(qd_plan_compile(c->g, &o, &p, &err), &err);
    check_ok(qd_plan_check_memory(p, &err), &err);
    return p;
}

static inline void case_run(qd_plan *p, case_data *d)
{
    qd_err err = { 0 };
    check_ok(qd_plan_run(p, NULL, (const void *const *)d->in, (void *const *)d->out, &err), &err);
}

/* The fast backend agrees with plain loops within rel_tol of the largest value, gives the same bytes with two threads, and again
 * when run once more. Frees the graph; the fast plan is handed over when `plan` is given. */
static inline void case_check_plan(plan_case *c, double rel_tol, qd_plan **plan)
{
    case_data want = case_data_new(c), one = case_data_new(c), two = case_data_new(c);
    qd_plan *ref = case_compile(c, &qd_backend_ref, 1), *fast = case_compile(c, &qd_backend_cpu, 1);
    qd_plan *wide = case_compile(c, &qd_backend_cpu, 2);
    qd_graph_free(c->g); /* plans outlive their graph */
    c->g = NULL;
    case_run(ref, &want);
    case_run(fast, &one);
    case_run(wide, &two);
    for (int k = 0; k < want.n_out; k++) {
        check_close(one.out[k], want.out[k], want.count[k], 1e-30, rel_tol);
        assert_memory_equal(one.out[k], two.out[k], sizeof(float) * (size_t)want.count[k]);
    }
    case_run(fast, &two);
    for (int k = 0; k < want.n_out; k++)
        assert_memory_equal(one.out[k], two.out[k], sizeof(float) * (size_t)want.count[k]);
    qd_plan_free(ref);
    qd_plan_free(wide);
    if (plan)
        *plan = fast;
    else
        qd_plan_free(fast);
    case_data_clear(&want);
    case_data_clear(&one);
    case_data_clear(&two);
}

static inline void case_check(plan_case *c, double rel_tol)
{
    case_check_plan(c, rel_tol, NULL);
}

/* How many steps of a plan are of that kind. */
static inline int case_steps(const qd_plan *p, const char *kind)
{
    int n = 0;
    for (int k = 0; k < qd_plan_steps(p); k++) {
        qd_plan_step s;
        qd_plan_step_at(p, k, &s);
        n += strcmp(s.kind, kind) == 0;
    }
    return n;
}

#endif
