/* op_attention.c - softmax(q k^T scale) v for every head: in float, on codes (qncd.md 4.2), and the float that imitates codes. */
#include "graph/op_int.h"

#include <math.h>

#define MAX_WIDTH 16384 /* channels of a head: x 255 x 255 < 2^30, so that two scores differ by less than 2^31 */

/* q [N, T, C], k and v [N, S, C] of any dtype, and heads that divide C. */
static qd_status shapes_infer(const qd_node *n, const qd_operand *in, const qd_dtype dtypes[3], qd_shape *shape,
                              qd_err *err)
{
    static const char *const what[3] = { "q", "k", "v" };
    qd_status st;
    for (int k = 0; k < 3; k++) {
        st = qd_infer_operand(in, k, what[k], dtypes[k], 3, 3, err);
        if (st)
            return st;
    }
    const int64_t *q = in[0].shape.dim, *k = in[1].shape.dim, *v = in[2].shape.dim;
    if (q[0] != k[0] || k[0] != v[0])
        return qd_fail(err, QD_E_INVALID, "q, k, v have batches %lld, %lld, %lld", (long long)q[0], (long long)k[0],
                       (long long)v[0]);
    if (k[1] != v[1])
        return qd_fail(err, QD_E_INVALID, "k has %lld tokens, v has %lld", (long long)k[1], (long long)v[1]);
    if (q[2] != k[2] || k[2] != v[2])
        return qd_fail(err, QD_E_INVALID, "q, k, v have %lld, %lld, %lld channels", (long long)q[2], (long long)k[2],
                       (long long)v[2]);
    st = qd_infer_int(n, "heads", 1, q[2], err);
    if (st)
        return st;
    const int64_t heads = qd_node_int(n, "heads");
    if (q[2] % heads)
        return qd_fail(err, QD_E_INVALID, "%lld heads do not divide %lld channels", (long long)heads, (long long)q[2]);
    *shape = in[0].shape;
    return qd_infer_finite(n, "scale", err);
}

float qd_node_attention_scale(const qd_node *n, int64_t channels)
{
    const double given = qd_node_float(n, "scale");
    return (float)(given != 0.0 ? given : 1.0 / sqrt((double)(channels / qd_node_int(n, "heads"))));
}

static int64_t attention_macs(const qd_node *n, const qd_operand *in, const qd_shape *out)
{
    return qd_sat_mul(qd_sat_mul(2, qd_dims(out, 0, 3)), in[1].shape.dim[1]);
}

#define HEADS                                                                                                          \
    {                                                                                                                  \
        "heads", QD_ATTR_INT, 1, 0, "number of heads"                                                                  \
    }
#define SCALE                                                                                                          \
    {                                                                                                                  \
        "scale", QD_ATTR_FLOAT, 0.0, 0, "factor of the scores; 0 = 1 / sqrt(channels of a head)"                       \
    }
#define SOFTMAX_BITS                                                                                                   \
    {                                                                                                                  \
        "softmax_bits", QD_ATTR_INT, 16, 0, "bits of a softmax weight against the largest of its query: 8, 16"         \
    }

/* --- in float --- */

static qd_status attention_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    *dtype = QD_F32;
    return shapes_infer(n, in, (const qd_dtype[]){ QD_F32, QD_F32, QD_F32 }, shape, err);
}

static void attention_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const int64_t *q = in[0]->shape.dim;
    qd_k_attention(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_f32(in[2]), q[0], q[1], in[1]->shape.dim[1], q[2],
                   qd_node_int(n, "heads"), qd_node_attention_scale(n, q[2]));
}

const qd_op qd_op_attention = {
    .name = "attention",
    .summary = "softmax(q k^T scale) v for every head.",
    .attrs = (const qd_op_attr[]){ HEADS, SCALE, { NULL } },
    .min_inputs = 3,
    .max_inputs = 3,
    .infer = attention_infer,
    .forward = attention_forward,
    .macs = attention_macs,
    .backward = qd_back_attention,
};

/* --- on codes, and in float as if on codes --- */

static qd_status softmax_bits_infer(const qd_node *n, const qd_operand *in, qd_err *err)
{
    const int64_t bits = qd_node_int(n, "softmax_bits"), keys = in[1].shape.dim[1];
    if (bits != 8 && bits != 16)
        return qd_fail(err, QD_E_INVALID, "softmax_bits must be 8 or 16, got %lld", (long long)bits);
    if (qd_node_float(n, "scale") < 0.0)
        return qd_fail(err, QD_E_INVALID, "scale must not be negative, got %g", qd_node_float(n, "scale"));
    if (keys > QD_K_MAX_PRODUCTS)
        return qd_fail(err, QD_E_LIMIT, "%lld tokens to attend to, at most %d have exact sums", (long long)keys,
                       QD_K_MAX_PRODUCTS);
    return QD_OK;
}

static qd_status qattention_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape, qd_err *err)
{
    static const char *const scales[3] = { "q_scale", "k_scale", "v_scale" };
    static const char *const zeros[3] = { "q_zero", "k_zero", "v_zero" };
    qd_dtype codes[3];
    for (int k = 0; k < 3; k++)
        codes[k] = in[k].shape.rank >= 0 && in[k].dtype == QD_I8 ? QD_I8 : QD_U8;
    *dtype = QD_F32;
    qd_status st = shapes_infer(n, in, codes, shape, err);
    if (!st)
        st = softmax_bits_infer(n, in, err);
    for (int k = 0; k < 3 && !st; k++) {
        st = qd_infer_positive(n, scales[k], err);
        if (!st)
            st = qd_infer_int(n, zeros[k], codes[k] == QD_I8 ? -128 : 0, codes[k] == QD_I8 ? 127 : 255, err);
    }
    if (st)
        return st;
    const int64_t width = in[0].shape.dim[2] / qd_node_int(n, "heads");
    if (width > MAX_WIDTH)
        return qd_fail(err, QD_E_LIMIT, "a head of %lld channels, at most %d have exact scores", (long long)width,
                       MAX_WIDTH);
    const float step = qd_node_score_step(n, in[0].shape.dim[2]);
    if (!isfinite(step) || !(step > 0.0f))
        return qd_fail(err, QD_E_INVALID, "q_scale * k_scale * scale is %g, must be finite and > 0", (double)step);
    return QD_OK;
}

float qd_node_score_step(const qd_node *n, int64_t channels)
{
    return (float)qd_node_float(n, "q_scale") * (float)qd_node_float(n, "k_scale") *
           qd_node_attention_scale(n, channels);
}

static void qattention_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const int64_t *q = in[0]->shape.dim;
    const qd_k_head_codes a = { .q = in[0]->data,
                                .k = in[1]->data,
                                .v = in[2]->data,
                                .q_signed = in[0]->dtype == QD_I8,
                                .k_signed = in[1]->dtype == QD_I8,
                                .v_signed = in[2]->dtype == QD_I8,
                                .q_zero = (int32_t)qd_node_int(n, "q_zero"),
                                .k_zero = (int32_t)qd_node_int(n, "k_zero"),
                                .v_zero = (int32_t)qd_node_int(n, "v_zero"),
                                .score_step = qd_node_score_step(n, q[2]),
                                .v_scale = (float)qd_node_float(n, "v_scale"),
                                .softmax_bits = (int)qd_node_int(n, "softmax_bits") };
    qd_k_qattention(qd_f32(out), &a, q[0], q[1], in[1]->shape.dim[1], q[2], qd_node_int(n, "heads"));
}

const qd_op qd_op_qattention = {
    .name = "qattention",
    .summary = "attention on codes: integer scores, softmax in codes, integer sums, result in float.",
    .attrs = (const qd_op_attr[]){ HEADS,
                                   SCALE,
                                   SOFTMAX_BITS,
                                   { "q_scale", QD_ATTR_FLOAT, NAN, 0, "real units of one step of q, > 0" },
                                   { "q_zero", QD_ATTR_INT, 0, 0, "the code of 0.0 in q" },
                                   { "k_scale", QD_ATTR_FLOAT, NAN, 0, "real units of one step of k, > 0" },
                                   { "k_zero", QD_ATTR_INT, 0, 0, "the code of 0.0 in k" },
                                   { "v_scale", QD_ATTR_FLOAT, NAN, 0, "real units of one step of v, > 0" },
                                   { "v_zero", QD_ATTR_INT, 0, 0, "the code of 0.0 in v" },
                                   { NULL } },
    .min_inputs = 3,
    .max_inputs = 3,
    .infer = qattention_infer,
    .forward = qattention_forward,
    .macs = attention_macs,
    .no_gradient = "codes are whole numbers: nothing flows into them",
};

static qd_status fake_attention_infer(const qd_node *n, const qd_operand *in, qd_dtype *dtype, qd_shape *shape,
                                      qd_err *err)
{
    qd_status st = attention_infer(n, in, dtype, shape, err);
    return st ? st : softmax_bits_infer(n, in, err);
}

static void fake_attention_forward(const qd_node *n, const qd_tensor *const *in, qd_tensor *out)
{
    const int64_t *q = in[0]->shape.dim;
    qd_k_fake_attention(qd_f32(out), qd_f32(in[0]), qd_f32(in[1]), qd_f32(in[2]), q[0], q[1], in[1]->shape.dim[1], q[2],
                        qd_node_int(n, "heads"), qd_node_attention_scale(n, q[2]), (int)qd_node_int(n, "softmax_bits"));
}

const qd_op qd_op_fake_attention = {
    .name = "fake_attention",
    .summary = "attention whose softmax weights are rounded to codes, in float.",
    .attrs = (const qd_op_attr[]){ HEADS, SCALE, SOFTMAX_BITS, { NULL } },
    .min_inputs = 3,
    .max_inputs = 3,
    .infer = fake_attention_infer,
    .forward = fake_attention_forward,
    .macs = attention_macs,
    .backward = qd_back_attention, /* straight through the rounding */
};
