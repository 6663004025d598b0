/* loss.c - losses as nodes of the graph that is trained, and the targets they compare with. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "nn/nn.h"

typedef struct builder {
    qd_graph *g;
    const char *name;
} builder;

static const char *label(const builder *b, const char *part, char text[QD_MAX_NAME + 1])
{
    snprintf(text, QD_MAX_NAME + 1, "%s.%s", b->name, part);
    return text;
}

#define NODE(b, part, op, ...)                                                                                         \
    qd_graph_add((b)->g, &qd_op_##op, label((b), (part), (char[QD_MAX_NAME + 1]){ 0 }), QD_IN(__VA_ARGS__), QD_NO_ATTRS)

static qd_node_id affine(const builder *b, const char *part, qd_node_id x, double mul, double add)
{
    char text[QD_MAX_NAME + 1];
    return qd_graph_add(b->g, &qd_op_affine, label(b, part, text), QD_IN(x),
                        QD_ATTRS(QD_FLOAT("mul", mul), QD_FLOAT("add", add)));
}

static qd_node_id sum_last(const builder *b, const char *part, qd_node_id x, bool keep)
{
    char text[QD_MAX_NAME + 1];
    const int64_t axis = -1;
    return qd_graph_add(b->g, &qd_op_sum, label(b, part, text), QD_IN(x),
                        QD_ATTRS(qd_attr_ints("axes", 1, &axis), QD_INT("keep", keep)));
}

static qd_node_id mean_all(const builder *b, const char *part, qd_node_id x, int rank)
{
    char text[QD_MAX_NAME + 1];
    int64_t axes[QD_MAX_RANK];
    for (int k = 0; k < rank; k++)
        axes[k] = k;
    return qd_graph_add(b->g, &qd_op_mean, label(b, part, text), QD_IN(x),
                        QD_ATTRS(qd_attr_ints("axes", rank, axes), QD_INT("keep", 0)));
}

qd_node_id qd_loss_cross_entropy(qd_graph *g, const char *name, qd_node_id logits, qd_node_id target)
{
    const builder b = { g, name };
    const qd_node_id log_p = NODE(&b, "log_p", log_softmax, logits);
    const qd_node_id rows = sum_last(&b, "rows", NODE(&b, "terms", mul, log_p, target), false);
    return affine(&b, "mean", mean_all(&b, "rows_mean", rows, 1), -1.0, 0.0);
}

qd_node_id qd_loss_kl(qd_graph *g, const char *name, qd_node_id student, qd_node_id teacher, double temperature,
                      bool per_class)
{
    const builder b = { g, name };
    const qd_node_id s = affine(&b, "student", student, 1.0 / temperature, 0.0);
    const qd_node_id t = affine(&b, "teacher", teacher, 1.0 / temperature, 0.0);
    const qd_node_id log_q = NODE(&b, "log_q", log_softmax, s), log_p = NODE(&b, "log_p", log_softmax, t);
    const qd_node_id p = NODE(&b, "p", exp, log_p);
    const qd_node_id terms = NODE(&b, "terms", mul, p, NODE(&b, "difference", sub, log_p, log_q));
    const qd_node_id mean =
        per_class ? mean_all(&b, "mean", terms, 2) : mean_all(&b, "mean", sum_last(&b, "rows", terms, false), 1);
    return affine(&b, "scaled", mean, temperature * temperature, 0.0);
}

/* Mean over all elements whatever the rank: the rank is not known to a builder, so flatten first. */
static qd_node_id mean_flat(const builder *b, qd_node_id x)
{
    char text[QD_MAX_NAME + 1];
    const int64_t flat = -1;
    const qd_node_id row =
        qd_graph_add(b->g, &qd_op_reshape, label(b, "flat", text), QD_IN(x), QD_ATTRS(qd_attr_ints("shape", 1, &flat)));
    return mean_all(b, "mean", row, 1);
}

qd_node_id qd_loss_mse(qd_graph *g, const char *name, qd_node_id a, qd_node_id b_)
{
    const builder b = { g, name };
    const qd_node_id d = NODE(&b, "difference", sub, a, b_);
    return mean_flat(&b, NODE(&b, "square", mul, d, d));
}

qd_node_id qd_loss_l1(qd_graph *g, const char *name, qd_node_id a, qd_node_id b_)
{
    const builder b = { g, name };
    return mean_flat(&b, NODE(&b, "size", abs, NODE(&b, "difference", sub, a, b_)));
}

/* x / sqrt(sum x^2 + 1e-24): a row of zeros stays zeros, with a finite derivative. */
static qd_node_id unit_rows(const builder *b, const char *part, qd_node_id x)
{
    char squares[64], sums[64], lengths[64], roots[64], units[64];
    snprintf(squares, sizeof squares, "%s.square", part);
    snprintf(sums, sizeof sums, "%s.sum", part);
    snprintf(lengths, sizeof lengths, "%s.guard", part);
    snprintf(roots, sizeof roots, "%s.length", part);
    snprintf(units, sizeof units, "%s.unit", part);
    const qd_node_id sum = sum_last(b, sums, NODE(b, squares, mul, x, x), true);
    return NODE(b, units, div, x, NODE(b, roots, sqrt, affine(b, lengths, sum, 1.0, 1e-24)));
}

qd_node_id qd_unit_rows(qd_graph *g, const char *name, qd_node_id x)
{
    const builder b = { g, name };
    return unit_rows(&b, "rows", x);
}

qd_node_id qd_loss_cosine(qd_graph *g, const char *name, qd_node_id a, qd_node_id b_)
{
    const builder b = { g, name };
    const qd_node_id both = NODE(&b, "both", mul, unit_rows(&b, "a", a), unit_rows(&b, "b", b_));
    return affine(&b, "distance", mean_all(&b, "mean", sum_last(&b, "rows", both, false), 1), -1.0, 1.0);
}

qd_node_id qd_loss_contrast(qd_graph *g, const char *name, qd_node_id z, qd_node_id target, qd_node_id self, double tau)
{
    char text[QD_MAX_NAME + 1], inner[QD_MAX_NAME + 1];
    const builder b = { g, name };
    const qd_node_id u = unit_rows(&b, "z", z);
    const qd_node_id s = qd_graph_add(g, &qd_op_matmul, label(&b, "similar", text), QD_IN(u, u),
                                      QD_ATTRS(QD_INT("trans_b", 1), QD_FLOAT("alpha", 1.0 / tau)));
    snprintf(inner, sizeof inner, "%.180s.ce", name);
    return qd_loss_cross_entropy(g, inner, NODE(&b, "others", add, s, self), target);
}

/* --- targets --- */

void qd_one_hot(float *dst, const int32_t *class_of, int64_t n, int64_t classes)
{
    memset(dst, 0, (size_t)(n * classes) * sizeof *dst);
    for (int64_t i = 0; i < n; i++)
        dst[i * classes + class_of[i]] = 1.0f;
}

void qd_contrast_self(float *self, int64_t n)
{
    for (int64_t i = 0; i < n * n; i++)
        self[i] = i / n == i % n ? -1e9f : 0.0f; /* exp gives exactly 0 */
}

void qd_contrast_pairs(float *target, int64_t n)
{
    memset(target, 0, (size_t)(n * n) * sizeof *target);
    for (int64_t i = 0; i < n; i++)
        target[i * n + (i + n / 2) % n] = 1.0f;
}

void qd_contrast_labels(float *target, const int32_t *class_of, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t others = 0;
        for (int64_t j = 0; j < n; j++)
            others += j != i && class_of[j] == class_of[i];
        for (int64_t j = 0; j < n; j++)
            target[i * n + j] = j != i && class_of[j] == class_of[i] ? 1.0f / (float)others : 0.0f;
    }
}
