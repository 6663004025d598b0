/* op_codebook.c - operator: the nearest row of a table, what a vector-quantized autoencoder decodes from. */
#include "graph/op_int.h"

#include <math.h>

static qd_status codebook_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    qd_status st = qd_infer_operand(in, 0, "x", QD_F32, 2, QD_MAX_RANK, err);
    if (!st)
        st = qd_infer_operand(in, 1, "table", QD_F32, 2, 2, err);
    if (st)
        return st;
    if (in[1].shape.dim[1] != in[0].shape.dim[1])
        return qd_fail(err, QD_E_INVALID, "the table's rows have %lld values, x has %lld channels",
                       (long long)in[1].shape.dim[1], (long long)in[0].shape.dim[1]);
    *shape = in[0].shape;
    *dtype = QD_F32;
    return QD_OK;
}

/* The row of table [rows, width] nearest to x, whose elements lie `stride` apart; the first of equals, and 0 for a NaN. */
static int64_t nearest_row(const float *x, int64_t stride, const float *table, int64_t rows, int64_t width)
{
    float best = INFINITY;
    int64_t row = 0;
    for (int64_t r = 0; r < rows; r++) {
        float d = 0.0f;
        for (int64_t c = 0; c < width; c++) {
            const float v = x[c * stride] - table[r * width + c];
            d += v * v;
        }
        if (d < best) {
            best = d;
            row = r;
        }
    }
    return row;
}

static void codebook_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const qd_shape *s = &in[0]->shape;
    const int64_t width = s->dim[1], places = qd_dims(s, 2, s->rank), rows = in[1]->shape.dim[0];
    for (int64_t i = 0; i < s->dim[0]; i++)
        for (int64_t p = 0; p < places; p++) {
            const int64_t at = i * width * places + p;
            const float *row =
                qd_f32(in[1]) + width * nearest_row(qd_f32(in[0]) + at, places, qd_f32(in[1]), rows, width);
            for (int64_t c = 0; c < width; c++)
                qd_f32(out)[at + c * places] = row[c];
        }
}

static int64_t codebook_macs(const qd_node *n, const qd_operand *in, const qd_shape *out)
{
    return qd_sat_mul(qd_dims(out, 0, out->rank), in[1].shape.dim[0]);
}

const qd_op qd_op_codebook = {
    .name = "codebook",
    .summary = "Each place's channels become the nearest row of a table.",
    .min_inputs = 2,
    .max_inputs = 2,
    .infer = codebook_infer,
    .forward = codebook_forward,
    .macs = codebook_macs,
    .no_gradient = "the nearest row jumps: its derivative is zero or nothing",
};
