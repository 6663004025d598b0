/* onnx_codes.h - codes in an ONNX graph while it is read: their maps, constants that stay codes, layers of codes. */
#ifndef QD_MODEL_ONNX_CODES_H
#define QD_MODEL_ONNX_CODES_H

#include "model/onnx_int.h"

/* --- onnx_codes.c --- */

/* real = (code - zero) * scale. scale and zero have the rank of the value; index k of axis j uses entry k / repeat[j] where the axis
 * has more than one. */
typedef struct qd_onnx_map {
    qd_tensor scale; // F32, finite and > 0
    qd_tensor zero;  // whole numbers, like scale; data NULL = 0
    int64_t repeat[QD_MAX_RANK];
    int type; /* of the zero point as in the file, 0 = not told */
} qd_onnx_map;

/* From inputs k_scale and k_zero (may be left out) of n, for a value of that shape; attributes axis and block_size. */
qd_status qd_onnx_map_of(const qd_onnx_reader *r, const qd_onnx_node *n, const qd_shape *x, int k_scale, int k_zero,
                         qd_onnx_map *m, qd_err *err);
/* The same from tensors: block 0 = none, axis outside the value = none. */
qd_status qd_onnx_map_from(const qd_tensor *scale, const qd_tensor *zero, const qd_shape *x, int64_t block,
                           int64_t axis, qd_onnx_map *m, qd_err *err);
void qd_onnx_map_clear(qd_onnx_map *m);
bool qd_onnx_map_is_one(const qd_onnx_map *m);                      /* one scale and zero for all */
int64_t qd_onnx_map_at(const qd_onnx_map *m, const int64_t *index); /* which entry of scale and zero */
int64_t qd_onnx_map_zero(const qd_onnx_map *m, int64_t at);         /* of that entry */
int64_t qd_onnx_whole(const qd_tensor *t, int64_t k);               /* element k of I8, U8, I64 */

/* A constant given as codes. Its number has no data until somebody wants floats (qd_onnx_spell). */
struct qd_onnx_coded {
    qd_tensor codes; // I8, U8; I64 for wider ones
    qd_onnx_map map;
    int type; /* of the codes as in the file */
};
void qd_onnx_coded_clear(qd_onnx_coded *c);
const qd_onnx_coded *qd_onnx_coded_in(const qd_onnx_reader *r, const qd_onnx_node *n, int k); /* NULL: not such */
/* c with its axes in another order: axis k is axis perm[k] of c. */
qd_status qd_onnx_coded_turn(qd_onnx_reader *r, const qd_onnx_coded *c, const int64_t *perm, qd_onnx_coded *out,
                             qd_err *err);
/* What the codes mean. */
qd_status qd_onnx_coded_floats(const qd_onnx_reader *r, const qd_onnx_coded *c, qd_tensor *out, qd_err *err);
/* The floats of v, if it is coded. All inputs of n but those whose row looks at the codes itself. */
qd_status qd_onnx_spell(qd_onnx_reader *r, qd_onnx_number *v, qd_err *err);
qd_status qd_onnx_spell_inputs(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err);
/* Operators that leave codes codes: Transpose, Mul by scales. *done when n was one. */
qd_status qd_onnx_move_codes(qd_onnx_reader *r, const qd_onnx_node *n, bool *done, qd_err *err);

qd_node_id qd_onnx_add_quantize(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x,
                                double scale, int64_t zero, int64_t lo, int64_t hi);
qd_node_id qd_onnx_add_dequantize(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id codes,
                                  double scale, int64_t zero);

/* --- onnx_qlayers.c --- */

/* The layer n (Conv, Gemm, MatMul) whose weight, input 1, is coded: made with integers where its x is codes too, else with a weight
 * spelled out from codes. *made -1 with QD_OK: neither fits, take floats. */
qd_status qd_onnx_conv_of_codes(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id *made, qd_err *err);
/* turned: the weight is [O, I]; else [I, O]. bias: a node or -1. */
qd_status qd_onnx_linear_of_codes(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, bool turned,
                                  qd_node_id bias, qd_node_id *made, qd_err *err);

#endif
