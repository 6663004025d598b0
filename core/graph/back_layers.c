/* back_layers.c - backward rules of convolutions, pools, norms and quantizers. */
#include "graph/op_int.h"

#define ADD(op, ...) qd_back_add(b, &qd_op_##op, QD_IN(__VA_ARGS__), QD_NO_ATTRS)

static qd_node_id input(const qd_backward *b, int k)
{
    return b->node->input[k];
}

static qd_node_id with_attrs(qd_backward *b, const qd_op *op, const qd_node_id *in, int n_in)
{
    return qd_back_add(b, op, in, n_in, b->node->attr, b->node->n_attrs);
}

/* Sum of v over all axes but 1. */
static qd_node_id channel_sum(qd_backward *b, qd_node_id v)
{
    int64_t axes[QD_MAX_RANK] = { 0 };
    const int rank = qd_back_shape(b, v)->rank;
    for (int k = 2; k < rank; k++)
        axes[k - 1] = k;
    return qd_back_add(b, &qd_op_sum, QD_IN(v),
                       QD_ATTRS(qd_attr_ints("axes", rank > 1 ? rank - 1 : 0, axes), QD_INT("keep", 0)));
}

void qd_back_conv2d(qd_backward *b)
{
    if (b->want[0])
        b->dx[0] = with_attrs(b, &qd_op_conv2d_grad_input, QD_IN(b->dy, input(b, 1), input(b, 0)));
    if (b->want[1])
        b->dx[1] = with_attrs(b, &qd_op_conv2d_grad_weight, QD_IN(b->dy, input(b, 0), input(b, 1)));
    if (b->want[2])
        b->dx[2] = channel_sum(b, b->dy);
}

/* It is the derivative by x of a convolution from its result's side: its own derivatives are that convolution and that one's
 * derivative by weight, x and dy having changed places. */
void qd_back_conv_transpose2d(qd_backward *b)
{
    const qd_node *n = b->node;
    const qd_attr attrs[4] = { *qd_node_ints(n, "stride"), *qd_node_ints(n, "pads"), *qd_node_ints(n, "dilation"),
                               QD_INT("groups", qd_node_int(n, "groups")) };
    if (b->want[0]) {
        qd_node_id dx = qd_back_add(b, &qd_op_conv2d, QD_IN(b->dy, input(b, 1)), attrs, 4);
        for (int axis = 2; axis < 4; axis++) { /* output_pad beyond the stride gives the window more places */
            const int64_t want = qd_back_shape(b, input(b, 0))->dim[axis];
            if (dx >= 0 && qd_back_shape(b, dx)->dim[axis] != want)
                dx = qd_back_add(b, &qd_op_slice, QD_IN(dx), QD_ATTRS(QD_INT("axis", axis), QD_INT("length", want)));
        }
        b->dx[0] = dx;
    }
    if (b->want[1])
        b->dx[1] = qd_back_add(b, &qd_op_conv2d_grad_weight, QD_IN(input(b, 0), b->dy, input(b, 1)), attrs, 4);
    if (b->want[2])
        b->dx[2] = channel_sum(b, b->dy);
}

/* --- pools --- */

void qd_back_upsample(qd_backward *b)
{
    const qd_attr *factor = qd_node_ints(b->node, "factor");
    const qd_node_id mean =
        qd_back_add(b, &qd_op_avg_pool, QD_IN(b->dy),
                    QD_ATTRS(qd_attr_ints("kernel", 2, factor->ints), qd_attr_ints("stride", 2, factor->ints)));
    b->dx[0] = qd_back_add(b, &qd_op_affine, QD_IN(mean),
                           QD_ATTRS(QD_FLOAT("mul", (double)(factor->ints[0] * factor->ints[1]))));
}

void qd_back_pool(qd_backward *b)
{
    b->dx[0] = with_attrs(b, b->node->op == &qd_op_max_pool ? &qd_op_max_pool_grad : &qd_op_avg_pool_grad,
                          QD_IN(b->dy, input(b, 0)));
}

void qd_back_global_avg_pool(qd_backward *b)
{
    const int64_t axes[2] = { 2, 3 };
    b->dx[0] = qd_back_add(b, &qd_op_reduce_grad, QD_IN(b->dy, input(b, 0)),
                           QD_ATTRS(qd_attr_ints("axes", 2, axes), QD_INT("mean", 1)));
}

/* --- norms --- */

void qd_back_group_norm(qd_backward *b)
{
    if (b->want[0])
        b->dx[0] = with_attrs(b, &qd_op_group_norm_grad, QD_IN(b->dy, input(b, 0), input(b, 1)));
    if (b->want[1])
        b->dx[1] = with_attrs(b, &qd_op_group_norm_grad_weight, QD_IN(b->dy, input(b, 0)));
    if (b->want[2])
        b->dx[2] = channel_sum(b, b->dy);
}

void qd_back_layer_norm(qd_backward *b)
{
    if (b->want[0])
        b->dx[0] = with_attrs(b, &qd_op_layer_norm_grad, QD_IN(b->dy, input(b, 0), input(b, 1)));
    if (b->want[1])
        b->dx[1] = with_attrs(b, &qd_op_layer_norm_grad_weight, QD_IN(b->dy, input(b, 0)));
    if (b->want[2])
        b->dx[2] = ADD(sum_like, b->dy, input(b, 2));
}

static qd_node_id row_of(qd_backward *b, qd_node_id two, int row, qd_node_id like)
{
    const qd_node_id one = qd_back_add(b, &qd_op_slice, QD_IN(two),
                                       QD_ATTRS(QD_INT("axis", 0), QD_INT("start", row), QD_INT("length", 1)));
    return ADD(reshape_like, one, like);
}

static qd_node_id scaled(qd_backward *b, qd_node_id v, double mul)
{
    return qd_back_add(b, &qd_op_affine, QD_IN(v), QD_ATTRS(QD_FLOAT("mul", mul)));
}

/* Frozen: statistics are operands like any other. */
void qd_back_batch_norm(qd_backward *b)
{
    const qd_node_id x = input(b, 0), weight = input(b, 1), mean = input(b, 3), var = input(b, 4);
    if (b->want[0]) {
        const qd_node_id zero = scaled(b, mean, 0.0);
        b->dx[0] = with_attrs(b, &qd_op_batch_norm, QD_IN(b->dy, weight, zero, zero, var));
    }
    if (!b->want[1] && !b->want[2] && !b->want[3] && !b->want[4])
        return;
    const qd_node_id sums = with_attrs(b, &qd_op_batch_norm_sums, QD_IN(b->dy, x, mean, var));
    const qd_node_id sum = row_of(b, sums, 0, weight), product = row_of(b, sums, 1, weight);
    b->dx[1] = product;
    b->dx[2] = sum;
    if (!b->want[3] && !b->want[4])
        return;
    const qd_node_id variance =
        qd_back_add(b, &qd_op_affine, QD_IN(var), QD_ATTRS(QD_FLOAT("add", qd_node_float(b->node, "eps"))));
    if (b->want[3])
        b->dx[3] = scaled(b, ADD(div, ADD(mul, weight, sum), ADD(sqrt, variance)), -1.0);
    if (b->want[4])
        b->dx[4] = scaled(b, ADD(div, ADD(mul, weight, product), variance), -0.5);
}

void qd_back_batch_norm_stats(qd_backward *b)
{
    b->dx[0] = ADD(batch_norm_stats_grad, b->dy, input(b, 0), b->id);
}

/* The statistics are those of x: what flows through them is in the derivative by x, in one pass over the batch. */
void qd_back_batch_norm_train(qd_backward *b)
{
    const qd_node_id x = input(b, 0), weight = input(b, 1), stats = input(b, 3);
    const qd_node *made = stats < 0 ? NULL : qd_graph_node(b->graph, stats);
    if (!made || made->op != &qd_op_batch_norm_stats || made->input[0] != x) {
        qd_graph_fail(
            b->graph, QD_E_INVALID,
            "node '%s' (batch_norm_train) is differentiated, so its stats must be the batch_norm_stats of its x",
            b->node->name);
        return;
    }
    const qd_node_id sums = with_attrs(b, &qd_op_batch_norm_train_sums, QD_IN(b->dy, x, stats));
    if (b->want[0])
        b->dx[0] = with_attrs(b, &qd_op_batch_norm_train_grad, QD_IN(b->dy, x, weight, stats, sums));
    if (b->want[1])
        b->dx[1] = row_of(b, sums, 1, weight);
    if (b->want[2])
        b->dx[2] = row_of(b, sums, 0, input(b, 2));
}

/* --- quantizers: straight through --- */

void qd_back_fake_quant(qd_backward *b)
{
    const qd_node_id x = input(b, 0), divisor = input(b, 1);
    const qd_node_id dx = with_attrs(b, &qd_op_fake_quant_grad, QD_IN(b->dy, x, divisor));
    b->dx[0] = dx;
    if (b->want[1]) /* y is x / divisor in range: by divisor -x / divisor^2 */
        b->dx[1] = scaled(b, ADD(div, channel_sum(b, ADD(mul, dx, x)), divisor), -1.0);
}

void qd_back_learned_quant(qd_backward *b)
{
    const qd_node *n = b->node;
    const qd_attr attrs[3] = { QD_INT("bits", qd_node_int(n, "bits")), QD_INT("symmetric", qd_node_int(n, "symmetric")),
                               QD_INT("axis", qd_node_int(n, "axis")) };
    if (b->want[0])
        b->dx[0] = qd_node_int(n, "pass_all")
                       ? b->dy
                       : qd_back_add(b, &qd_op_learned_quant_grad, QD_IN(b->dy, input(b, 0), input(b, 1)), attrs, 3);
    if (b->want[1])
        b->dx[1] = qd_back_add(b, &qd_op_learned_quant_grad_scale, QD_IN(b->dy, input(b, 0), input(b, 1)), attrs, 3);
}
