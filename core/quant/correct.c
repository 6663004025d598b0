/* correct.c - bias correction (Nagel et al., ICCV 2019, 4.2): rounding the weights of a layer moves its output on average by
 * (W^ - W) E[x]; its bias takes that away again. E[x] by channel comes from the calibration set. Zeros of the padding count as any
 * other place, as in the paper. */
#include "base/mem.h"
#include "graph/op.h"
#include "quant/quant_int.h"

/* error[o] = sum of (W^ - W) E[x] over what output o reads. */
static qd_status mean_error(const qd_layout *l, const qd_quant_layer *layer, double *error, qd_err *err)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const qd_tensor *weight = &qd_graph_node(l->graph, n->input[1])->value;
    const int64_t outs = weight->shape.dim[0], in = weight->shape.dim[1];
    const int64_t inner = weight->shape.rank == 4 ? weight->shape.dim[2] * weight->shape.dim[3] : 1;
    const int64_t groups = n->op == &qd_op_conv2d ? qd_node_int(n, "groups") : 1;
    for (int64_t o = 0; o < outs; o++)
        error[o] = 0.0;
    for (int k = 0; k < layer->n_parts; k++) {
        const qd_part *p = &layer->part[k];
        const qd_quantizer *q = &l->quantizers[p->quantizer];
        const int64_t columns = p->codes.shape.dim[1], scales = qd_k_scales(columns, p->group_size);
        qd_tensor codes = { 0 };
        const qd_status st = qd_tensor_unpack(&codes, &p->codes, NULL, err);
        if (st)
            return st;
        for (int64_t o = 0; o < outs; o++) {
            for (int64_t c = 0; c < columns; c++) {
                /* Column c of a grouped layer is channel c of the group its output belongs to. */
                const int64_t channel = groups > 1 ? o / (outs / groups) * columns + c : c;
                const double mean = q->sum[channel] / (double)q->summed;
                const double step = qd_f32(&p->wscale)[o * scales + (p->group_size ? c / p->group_size : 0)];
                for (int64_t i = 0; i < inner; i++) {
                    const double was = qd_f32(weight)[(o * in + p->first + c) * inner + i];
                    error[o] += (qd_i8(&codes)[(o * columns + c) * inner + i] * step - was) * mean;
                }
            }
        }
        qd_tensor_clear(&codes);
    }
    return QD_OK;
}

static qd_status correct(const qd_layout *l, qd_quant_layer *layer, qd_budget *budget, qd_err *err)
{
    const qd_node *n = qd_graph_node(l->graph, layer->id);
    const int64_t outs = qd_graph_node(l->graph, n->input[1])->shape.dim[0];
    const qd_node *old = n->n_inputs > 2 && n->input[2] >= 0 ? qd_graph_node(l->graph, n->input[2]) : NULL;
    const qd_shape shape = QD_SHAPE(outs);
    double *error = qd_calloc((size_t)outs, sizeof *error);
    qd_status st = error ? mean_error(l, layer, error, err)
                         : qd_fail(err, QD_E_NOMEM, "no memory for %lld channels", (long long)outs);
    if (!st)
        st = qd_tensor_init(&layer->bias, QD_F32, &shape, budget, err);
    for (int64_t o = 0; o < outs && !st; o++)
        qd_f32(&layer->bias)[o] = (float)((old ? (double)qd_f32(&old->value)[o] : 0.0) - error[o]);
    qd_free(error);
    return st;
}

qd_status qd_layout_correct_bias(qd_layout *l, const qd_run *run, int *corrected, qd_err *err)
{
    int n = 0;
    for (int k = 0; k < l->n_layers; k++) {
        qd_quant_layer *layer = &l->layers[k];
        const qd_node *node = qd_graph_node(l->graph, layer->id);
        const bool fixed =
            node->n_inputs < 3 || node->input[2] < 0 || qd_graph_node(l->graph, node->input[2])->op == &qd_op_const;
        if (layer->note || !fixed)
            continue;
        qd_status st = qd_run_check(run, err);
        if (!st)
            st = correct(l, layer, qd_run_budget(run), err);
        if (st)
            return st;
        n++;
    }
    *corrected = n;
    return QD_OK;
}
