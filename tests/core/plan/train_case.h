/* train_case.h - graphs whose derivatives are compared: the fast backend's with the plain loops', one thread's with two threads'. */
#ifndef TRAIN_CASE_H
#define TRAIN_CASE_H

#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "graph/op.h"
#include "plan/backend.h"
#include "plan/plan.h"

enum { MOST = 16 };

/* A graph being made: inputs with their shapes, all of them asked for derivatives. */
typedef struct net {
    qd_graph *g;
    qd_shape shapes[MOST];
    qd_node_id inputs[MOST];
    bool positive[MOST]; /* its values are */
    const char *impl;    /* how the steps asked for begin to say who runs them; NULL = anyone but the plain loops */
    int n;
} net;

static inline qd_node_id input(net *t, qd_shape shape)
{
    char name[16];
    snprintf(name, sizeof name, "in%d", t->n);
    t->shapes[t->n] = shape;
    return t->inputs[t->n++] = qd_graph_input(t->g, name, QD_F32, &shape);
}

static inline net fresh(void)
{
    qd_err err = { 0 };
    net t = { 0 };
    check_ok(qd_graph_new(&t.g, &err), &err);
    return t;
}

static inline int64_t count_of(const qd_shape *s)
{
    int64_t n = 1;
    for (int k = 0; k < s->rank; k++)
        n *= s->dim[k];
    return n;
}

/* Runs d twice, since what a run leaves behind is no part of the next; checks that the steps of `kinds` are there to be judged. */
static inline void run_net(const net *t, const qd_graph *d, const qd_backend *backend, int threads, float *const *in,
                           float **out, const char *const *kinds)
{
    qd_err err = { 0 };
    qd_plan *p = NULL;
    const qd_plan_options o = { .input_shapes = t->shapes, .n_inputs = t->n, .threads = threads, .backend = backend };
    check_ok(qd_plan_compile(d, &o, &p, &err), &err);
    check_ok(qd_plan_check_memory(p, &err), &err);
    for (int k = 0; k <= t->n; k++) {
        const int64_t n = k ? count_of(&t->shapes[k - 1]) : 1;
        out[k] = malloc((size_t)n * sizeof(float));
        assert_non_null(out[k]);
    }
    for (int again = 0; again < 2; again++)
        check_ok(qd_plan_run(p, NULL, (const void *const *)in, (void *const *)out, &err), &err);
    for (; *kinds; kinds++) {
        bool seen = false;
        for (int k = 0; k < qd_plan_steps(p); k++) {
            qd_plan_step s;
            qd_plan_step_at(p, k, &s);
            seen |= strcmp(s.kind, *kinds) == 0 && strcmp(s.impl, "plain loops") != 0 &&
                    (!t->impl || strncmp(s.impl, t->impl, strlen(t->impl)) == 0);
        }
        if (!seen) {
            qd_buf b;
            qd_buf_init(&b, 1 << 20);
            qd_plan_print(p, &b);
            print_message("%.*s", (int)b.size, (const char *)b.data);
            fail_msg("no step '%s'", *kinds);
        }
    }
    qd_plan_free(p);
}

/* Loss: sum of y sin(y), so that the derivative by y is not constant. The fast backend's loss and derivatives agree with those of the
 * plain loops; where own loops make them all (`exact`), one thread and two give the same bytes. Frees the graph. */
static inline void judge_net(net *t, qd_node_id y, int rank, const char *const *kinds, bool exact)
{
    static const char *const none[] = { NULL };
    qd_err err = { 0 };
    qd_graph *d = NULL;
    int64_t axes[QD_MAX_RANK];
    float *in[MOST], *want[MOST + 1], *one[MOST + 1], *two[MOST + 1];
    for (int k = 0; k < rank; k++)
        axes[k] = k;
    const qd_node_id wave = qd_graph_add(t->g, &qd_op_sin, "wave", QD_IN(y), QD_NO_ATTRS);
    const qd_node_id both = qd_graph_add(t->g, &qd_op_mul, "both", QD_IN(y, wave), QD_NO_ATTRS);
    const qd_node_id loss = qd_graph_add(t->g, &qd_op_mean, "loss", QD_IN(both),
                                         QD_ATTRS(qd_attr_ints("axes", rank, axes), QD_INT("keep", 0)));
    qd_graph_output(t->g, "loss", loss);
    check_ok(qd_graph_gradient(t->g, loss, t->inputs, t->n, &d, &err), &err);
    for (int k = 0; k < t->n; k++) {
        in[k] = malloc((size_t)count_of(&t->shapes[k]) * sizeof(float));
        assert_non_null(in[k]);
        harness_normal(in[k], count_of(&t->shapes[k]), 40 + (uint64_t)k, 0.7f);
        for (int64_t i = 0; t->positive[k] && i < count_of(&t->shapes[k]); i++)
            in[k][i] = 0.05f + fabsf(in[k][i]);
    }
    run_net(t, d, &qd_backend_ref, 1, in, want, none);
    run_net(t, d, &qd_backend_cpu, 1, in, one, kinds);
    run_net(t, d, &qd_backend_cpu, 2, in, two, kinds);
    for (int k = 0; k <= t->n; k++) {
        const int64_t n = k ? count_of(&t->shapes[k - 1]) : 1;
        check_close(one[k], want[k], n, 1e-6, 2e-4); /* single-precision sums of up to some thousand terms */
        check_close(two[k], want[k], n, 1e-6, 2e-4);
        if (exact)
            assert_memory_equal(one[k], two[k], (size_t)n * sizeof(float));
        free(want[k]);
        free(one[k]);
        free(two[k]);
        if (k)
            free(in[k - 1]);
    }
    qd_graph_free(d);
    qd_graph_free(t->g);
}
/* oneDNN shares a weight's derivative out by threads: its sums depend on their number. */
#define check_net(t, y, rank, kinds) judge_net(t, y, rank, kinds, false)
#define check_exact(t, y, rank, kinds) judge_net(t, y, rank, kinds, true)
#define KINDS(...) ((const char *const[]){ __VA_ARGS__, NULL })

#endif
