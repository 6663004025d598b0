/* test_gradients.c - the law of every backward rule: it agrees with central differences of the row's own plain forward.
 *
 * Operands lie on a grid whose points are far apart compared with the step of the difference and never near a kink at 0, so that
 * maxima, clips and absolute values do not change sides. Rows whose derivative is a convention (straight through, detach) are held
 * to the function that the convention says they are the derivative of. */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph.h"
#include "graph/op.h"
#include "plan/plan.h"
#include "prop/op_trials.h"

#define SEED 977u
#define TRIALS 12
#define GRID 0.02f  /* distance of any two operand values */
#define STEP 0.004f /* of the difference: a fifth of it */

typedef struct question {
    trial t;
    int n_in, input_at[QD_MAX_INPUTS]; /* operand of each graph input */
    qd_graph *graph;                   /* with gradients */
    qd_plan *forward, *backward;
    float *value[QD_MAX_INPUTS]; /* by operand; f32 ones lie on the grid */
    int64_t count[QD_MAX_INPUTS];
    float *weight, *y; /* the loss is the sum of weight y */
    int64_t n_y;
} question;

/* Rows defined on positive numbers only, or whose slope there is gentle enough to measure. */
static bool positive(const qd_op *op)
{
    return op == &qd_op_sqrt || op == &qd_op_log || op == &qd_op_pow || op == &qd_op_div || op == &qd_op_batch_norm ||
           op == &qd_op_fake_quant || op == &qd_op_learned_quant;
}

/* Distinct grid points in a random order over all operands. */
static void fill(question *q, qd_rng *r)
{
    int64_t total = 0, used = 0;
    for (int k = 0; k < q->t.node.n_inputs; k++)
        total += q->count[k];
    int64_t *order = malloc((size_t)total * sizeof *order);
    assert_non_null(order);
    for (int64_t i = 0; i < total; i++) {
        const int64_t j = pick(r, 0, i);
        order[i] = order[j];
        order[j] = i;
    }
    const bool above = positive(q->t.node.op);
    for (int k = 0; k < q->t.node.n_inputs; k++) {
        for (int64_t i = 0; i < q->count[k]; i++, used++) {
            const double at = (double)order[used] + 0.5 - (above ? -40.0 : floor((double)total / 2.0));
            if (q->t.in[k].dtype == QD_I64)
                ((int64_t *)q->value[k])[i] = pick(r, -1, 5);
            else
                q->value[k][i] = (float)at * GRID;
        }
    }
    free(order);
}

/* Attributes that matter to derivatives and that the makers leave at their defaults. */
static void set_attrs(trial *t, qd_rng *r)
{
    for (int k = 0; k < t->node.n_attrs; k++) {
        qd_attr *a = &t->node.attr[k];
        if (t->node.op == &qd_op_affine)
            a->f = 0.25 * (double)pick(r, -6, 6);
        else if (t->node.op == &qd_op_clip)
            a->f = a->name[0] == 'l' ? -0.2 : 0.3;
        else if (strcmp(a->name, "slope") == 0)
            a->f = 0.3;
        else if (strcmp(a->name, "alpha") == 0 ||
                 (strcmp(a->name, "scale") == 0 && t->node.op->backward == qd_op_attention.backward))
            a->f = 0.25 * (double)pick(r, 1, 6);
        else if (strcmp(a->name, "eps") == 0)
            a->f = 0.05;
        else if (t->node.op == &qd_op_fake_quant && strcmp(a->name, "scale") == 0)
            a->f = 0.11;
        else if (t->node.op == &qd_op_fake_quant && strcmp(a->name, "bits") == 0)
            a->i = pick(r, 2, 6);
    }
}

static qd_plan *compile(const qd_graph *g, const question *q)
{
    qd_err err = { 0 };
    qd_plan *p = NULL;
    qd_shape shapes[QD_MAX_INPUTS + 1];
    for (int k = 0; k < qd_graph_inputs(g); k++)
        shapes[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
    const qd_plan_options o = { .input_shapes = shapes, .n_inputs = qd_graph_inputs(g), .backend = &qd_backend_ref };
    check_ok(qd_plan_compile(g, &o, &p, &err), &err);
    return p;
}

/* inputs -> node -> sum(node * weight), and its derivatives by every f32 input. */
static void ask(question *q, qd_rng *r)
{
    qd_err err = { 0 };
    qd_graph *g = NULL;
    qd_node_id in[QD_MAX_INPUTS], wrt[QD_MAX_INPUTS];
    int n_wrt = 0;
    const qd_op *op = q->t.node.op;
    set_attrs(&q->t, r);
    check_ok(qd_graph_new(&g, &err), &err);
    for (int k = 0; k < q->t.node.n_inputs; k++) {
        char name[16];
        snprintf(name, sizeof name, "in%d", k);
        in[k] = -1;
        if (q->t.in[k].shape.rank < 0)
            continue;
        if (op == &qd_op_batch_norm_train && k == 3) { /* the statistics are those of x */
            in[k] = qd_graph_add(g, &qd_op_batch_norm_stats, "stats", QD_IN(in[0]), QD_NO_ATTRS);
            continue;
        }
        in[k] = qd_graph_input(g, name, q->t.in[k].dtype, &q->t.in[k].shape);
        check_ok(qd_shape_count(&q->t.in[k].shape, &q->count[k], &err), &err);
        q->value[k] = calloc((size_t)q->count[k] + 1, 8);
        assert_non_null(q->value[k]);
        q->input_at[q->n_in++] = k;
        if (q->t.in[k].dtype == QD_F32)
            wrt[n_wrt++] = in[k];
    }
    fill(q, r);
    const qd_node_id y = qd_graph_add(g, op, "node", in, q->t.node.n_inputs, q->t.node.attr, q->t.node.n_attrs);
    qd_graph_output(g, "y", y);
    check_ok(qd_graph_verify(g, &err), &err);
    q->forward = compile(g, q);

    qd_shape shapes[QD_MAX_INPUTS], *all = calloc((size_t)qd_graph_size(g), sizeof *all);
    assert_non_null(all);
    for (int k = 0; k < q->n_in; k++)
        shapes[k] = q->t.in[q->input_at[k]].shape;
    check_ok(qd_graph_shapes(g, shapes, q->n_in, all, &err), &err);
    const qd_shape ys = all[y];
    free(all);
    check_ok(qd_shape_count(&ys, &q->n_y, &err), &err);
    q->weight = malloc((size_t)q->n_y * sizeof(float));
    q->y = malloc((size_t)q->n_y * sizeof(float));
    assert_true(q->weight && q->y);
    for (int64_t i = 0; i < q->n_y; i++)
        q->weight[i] = 0.25f * (float)pick(r, 1, 6) * (pick(r, 0, 1) ? 1.0f : -1.0f);

    qd_tensor w = { 0 };
    check_ok(qd_tensor_wrap(&w, QD_F32, &ys, q->weight, NULL, NULL, &err), &err);
    const qd_node_id c = qd_graph_const(g, "weight", &w);
    qd_node_id loss = qd_graph_add(g, &qd_op_mul, "weighted", QD_IN(y, c), QD_NO_ATTRS);
    if (ys.rank > 0) {
        int64_t axes[QD_MAX_RANK];
        for (int k = 0; k < ys.rank; k++)
            axes[k] = k;
        loss = qd_graph_add(g, &qd_op_sum, "loss", QD_IN(loss),
                            QD_ATTRS(qd_attr_ints("axes", ys.rank, axes), QD_INT("keep", 0)));
    }
    check_ok(qd_graph_gradient(g, loss, wrt, n_wrt, &q->graph, &err), &err);
    q->backward = compile(q->graph, q);
    qd_graph_free(g);
    qd_tensor_clear(&w);
}

static void forget(question *q)
{
    for (int k = 0; k < QD_MAX_INPUTS; k++)
        free(q->value[k]);
    free(q->weight);
    free(q->y);
    qd_plan_free(q->forward);
    qd_plan_free(q->backward);
    qd_graph_free(q->graph);
}

/* --- what a straight-through rule is the derivative of --- */

static double attr_of(const question *q, const char *name)
{
    for (int k = 0; k < q->t.node.n_attrs; k++)
        if (strcmp(q->t.node.attr[k].name, name) == 0)
            return q->t.node.attr[k].kind == QD_ATTR_FLOAT ? q->t.node.attr[k].f : (double)q->t.node.attr[k].i;
    return NAN;
}

static double held(double x, double lo, double hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* fake_quant: x / divisor, held in range.  learned_quant (LSQ): s (held(x / s) + c), c the rounding error at the place asked. */
static double straight_through(const question *q, const question *base)
{
    const qd_op *op = q->t.node.op;
    const qd_shape *x = &q->t.in[0].shape;
    const bool is_signed = attr_of(q, "symmetric") != 0.0;
    const double bits = attr_of(q, "bits"), top = pow(2.0, is_signed ? bits - 1 : bits) - 1.0;
    const double bottom = is_signed ? -top - 1.0 : 0.0;
    const int axis = op == &qd_op_fake_quant ? 1 : (int)attr_of(q, "axis");
    const bool each = q->value[1] && q->count[1] > 1;
    int64_t inner = 1;
    for (int k = axis + 1; k < x->rank; k++)
        inner *= x->dim[k];
    double loss = 0.0;
    for (int64_t i = 0; i < q->count[0]; i++) {
        const int64_t c = each ? i / inner % q->count[1] : 0;
        double y;
        if (op == &qd_op_fake_quant) {
            const double s = attr_of(q, "scale"), z = attr_of(q, "zero");
            y = held(q->value[0][i] / (double)(q->value[1] ? q->value[1][c] : 1.0f), (bottom - z) * s, (top - z) * s);
        } else {
            const double s = q->value[1][c], r = q->value[0][i] / s;
            const double r0 = held(base->value[0][i] / (double)base->value[1][c], bottom, top);
            y = s * (held(r, bottom, top) + nearbyint(r0) - r0);
            if (attr_of(q, "pass_all") != 0.0) /* by x as if nothing were held; by s as before */
                y += (q->value[0][i] - base->value[0][i]) *
                     (base->value[0][i] / (double)base->value[1][c] == r0 ? 0.0 : 1.0);
        }
        loss += y * q->weight[i];
    }
    return loss;
}

/* Where the elements of a straight-through row lie: below, in, above the range, as one number. */
static double sides(const question *q)
{
    const bool fake = q->t.node.op == &qd_op_fake_quant, is_signed = attr_of(q, "symmetric") != 0.0;
    const double bits = attr_of(q, "bits"), top = pow(2.0, is_signed ? bits - 1 : bits) - 1.0;
    const double bottom = is_signed ? -top - 1.0 : 0.0, zero = fake ? attr_of(q, "zero") : 0.0;
    const int axis = fake ? 1 : (int)attr_of(q, "axis");
    int64_t inner = 1;
    for (int k = axis + 1; k < q->t.in[0].shape.rank; k++)
        inner *= q->t.in[0].shape.dim[k];
    double sum = 0.0;
    for (int64_t i = 0; i < q->count[0]; i++) {
        const int64_t c = q->count[1] > 1 ? i / inner % q->count[1] : 0;
        const double r =
            q->value[0][i] / (q->value[1] ? (double)q->value[1][c] : 1.0) / (fake ? attr_of(q, "scale") : 1.0);
        sum += (double)(i + 1) * ((r > top - zero) - (r < bottom - zero));
    }
    return sum;
}

static double loss_of(question *q, const question *base)
{
    qd_err err = { 0 };
    const void *in[QD_MAX_INPUTS];
    void *out[1] = { q->y };
    if (q->t.node.op == &qd_op_detach)
        return 0.0;
    if (q->t.node.op == &qd_op_fake_quant || q->t.node.op == &qd_op_learned_quant)
        return straight_through(q, base);
    for (int k = 0; k < q->n_in; k++)
        in[k] = q->value[q->input_at[k]];
    if (q->t.node.op == &qd_op_fake_attention) { /* without the rounding it goes straight through */
        const int64_t *x = q->t.in[0].shape.dim;
        qd_k_attention(q->y, in[0], in[1], in[2], x[0], x[1], q->t.in[1].shape.dim[1], x[2],
                       (int64_t)attr_of(q, "heads"), qd_node_attention_scale(&q->t.node, x[2]));
    } else {
        check_ok(qd_plan_run(q->forward, NULL, in, out, &err), &err);
    }
    double loss = 0.0;
    for (int64_t i = 0; i < q->n_y; i++)
        loss += (double)q->y[i] * q->weight[i];
    return loss;
}

/* Derivative by one element: two differences, of h and 2 h, combined so that the third derivative drops out. */
static double difference(question *q, float *x, const question *base)
{
    const float at = *x;
    double d[2];
    for (int k = 0; k < 2; k++) {
        const float h = k ? STEP * 0.5f : STEP;
        volatile float up = at + h, down = at - h;
        *x = up;
        const double more = loss_of(q, base);
        *x = down;
        const double less = loss_of(q, base);
        d[k] = (more - less) / ((double)up - (double)down);
    }
    *x = at;
    return (4.0 * d[1] - d[0]) / 3.0;
}

/* Would the step take some element over the edge of a quantizer's range? */
static bool crosses_an_edge(question *q, float *x)
{
    const float at = *x;
    if (q->t.node.op != &qd_op_fake_quant && q->t.node.op != &qd_op_learned_quant)
        return false;
    const double here = sides(q);
    *x = at + STEP;
    bool crosses = sides(q) != here;
    *x = at - STEP;
    crosses |= sides(q) != here;
    *x = at;
    return crosses;
}

static void check_trial(const qd_op *op, qd_rng *r)
{
    qd_err err = { 0 };
    question q = { 0 };
    float *grad[QD_MAX_INPUTS] = { 0 };
    const void *in[QD_MAX_INPUTS];
    void *out[QD_MAX_INPUTS + 1];
    do
        trial_make(&q.t, op, r);
    while (q.t.in[0].dtype != QD_F32 && op != &qd_op_embedding);
    ask(&q, r);

    question base = q;
    int n_out = 0;
    out[n_out++] = q.y;
    for (int j = 0; j < q.n_in; j++) {
        const int k = q.input_at[j];
        in[j] = q.value[k];
        if (q.t.in[k].dtype != QD_F32)
            continue;
        out[n_out++] = grad[k] = malloc((size_t)q.count[k] * sizeof(float));
        base.value[k] = malloc((size_t)q.count[k] * sizeof(float));
        assert_true(grad[k] && base.value[k]);
        memcpy(base.value[k], q.value[k], (size_t)q.count[k] * sizeof(float));
    }
    check_ok(qd_plan_run(q.backward, NULL, in, out, &err), &err);
    for (int j = 0; j < q.n_in; j++) {
        const int k = q.input_at[j];
        double most = 0.0;
        if (!grad[k])
            continue;
        for (int64_t i = 0; i < q.count[k]; i++)
            most = fmax(most, fabs((double)grad[k][i]));
        for (int64_t i = 0; i < q.count[k]; i++) {
            if (crosses_an_edge(&q, &q.value[k][i]))
                continue;
            const double want = difference(&q, &q.value[k][i], &base);
            /* Forward results are rounded to 24 bits: about 1e-5 of them after division by the step. */
            if (!(fabs(grad[k][i] - want) <= 2e-3 * (1.0 + most)))
                fail_msg("%s: derivative by element %lld of operand %d is %.7g, central difference %.7g (seed %u)",
                         op->name, (long long)i, k, (double)grad[k][i], want, SEED);
        }
    }
    for (int j = 0; j < q.n_in; j++)
        if (grad[q.input_at[j]]) {
            free(base.value[q.input_at[j]]);
            free(grad[q.input_at[j]]);
        }
    forget(&q);
}

static void rules_agree_with_differences(void **state)
{
    qd_rng r;
    int ruled = 0;
    qd_rng_init(&r, SEED, 1);
    for (int k = 0; qd_ops[k]; k++) {
        const qd_op *op = qd_ops[k];
        if (!op->backward == !op->no_gradient)
            fail_msg("operator '%s' must have either a backward rule or a reason why there is none", op->name);
        if (!op->backward)
            continue;
        ruled++;
        for (int again = 0; again < TRIALS; again++)
            check_trial(op, &r);
    }
    print_message("%d rules\n", ruled);
    assert_true(ruled > 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_agree_with_differences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
