/* fuse_attention.c - attention takes in what makes its operands: codes are made while they are packed, and linears that read the same
 * value run as one product. */
#include "plan/cpu_int.h"

/* Does nobody but this reader need the value? */
static bool is_own(const qd_fused *f, qd_node_id id)
{
    const qd_node_info *info = &f->info[id];
    return info->uses == 1 && !info->fixed && info->group < 0 && !info->folded.data && !info->view;
}

static bool same_products(const qd_fused *f, qd_node_id a, qd_node_id b)
{
    const qd_node *x = qd_graph_node(f->g, a), *y = qd_graph_node(f->g, b);
    if (x->op != y->op || qd_fused_input(f, a, 0) != qd_fused_input(f, b, 0))
        return false;
    return x->op == &qd_op_linear || (qd_node_float(x, "x_scale") == qd_node_float(y, "x_scale") &&
                                      qd_node_int(x, "x_zero") == qd_node_int(y, "x_zero"));
}

/* A linear that may be one of several in a product: one scale for each output at most, weights a byte or a float each. */
static bool may_merge(const qd_fused *f, qd_node_id id)
{
    const qd_op *op = qd_fused_op(f, id);
    if ((op != &qd_op_linear && op != &qd_op_qlinear) || !is_own(f, id) || !qd_fused_is_product(f, id))
        return false;
    const qd_tensor *weight = &f->info[qd_fused_input(f, id, 1)].folded;
    return op == &qd_op_linear ? weight->dtype == QD_F32
                               : weight->dtype == QD_I8 && qd_node_int(qd_graph_node(f->g, id), "group_size") == 0;
}

void qd_fuse_attention(qd_fused *f, qd_node_id id)
{
    const qd_op *op = qd_fused_op(f, id);
    if (op != &qd_op_attention && op != &qd_op_qattention)
        return;
    qd_group gr = { .kind = QD_GROUP_ATTENTION,
                    .main = id,
                    .end = id,
                    .source = -1,
                    .time = -1,
                    .norm = -1,
                    .up = -1,
                    .quant = -1,
                    .bn = -1,
                    .residual = -1,
                    .act = -1 };
    qd_node_id made[3];
    for (int k = 0; k < 3; k++) {
        gr.code[k] = gr.linear[k] = -1;
        made[k] = qd_fused_input(f, id, k);
        const bool coded = op == &qd_op_qattention && qd_fused_op(f, made[k]) == &qd_op_quantize;
        if (coded && is_own(f, made[k]) && qd_fused_input(f, made[k], 1) < 0) {
            gr.code[k] = made[k];
            made[k] = qd_fused_input(f, made[k], 0);
        }
    }
    const bool kv = may_merge(f, made[1]) && may_merge(f, made[2]) && same_products(f, made[1], made[2]);
    const bool all = kv && may_merge(f, made[0]) && same_products(f, made[0], made[1]);
    for (int k = all ? 0 : 1; k < 3 && kv; k++)
        gr.linear[k] = made[k];
    for (int k = 0; k < 3; k++) {
        if (gr.code[k] >= 0)
            f->info[gr.code[k]].group = f->n_groups;
        if (gr.linear[k] >= 0)
            f->info[gr.linear[k]].group = f->n_groups;
    }
    f->info[id].group = f->n_groups;
    f->groups[f->n_groups++] = gr;
}
