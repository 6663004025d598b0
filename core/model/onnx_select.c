/* onnx_select.c - ONNX operators on truth: comparisons, logic, choices. Computed truth is a float, 1 or 0. */
#include "model/onnx_int.h"

#include <string.h>

/* 1 where a < b, else 0: the row `less` says 1/2 for equal ones. */
static qd_node_id is_less(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id a, qd_node_id b)
{
    const qd_node_id less = qd_onnx_two(r, n, "order", &qd_op_less, a, b);
    return qd_onnx_held(r, n, suffix, qd_onnx_affine(r, n, "strict", less, 2.0, -1.0), 0.0, 1.0);
}

/* 1 where a and b differ, else 0; NaN differs from everything. */
static qd_node_id differ(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id a, qd_node_id b)
{
    const qd_node_id less = qd_onnx_two(r, n, "order", &qd_op_less, a, b);
    return qd_onnx_one(r, n, suffix, &qd_op_abs, qd_onnx_affine(r, n, "away", less, 2.0, -1.0));
}

static qd_node_id opposite(qd_onnx_reader *r, const qd_onnx_node *n, const char *suffix, qd_node_id x)
{
    return qd_onnx_affine(r, n, suffix, x, -1.0, 1.0);
}

static qd_status set_truth(qd_onnx_reader *r, const qd_onnx_node *n, qd_node_id id, qd_err *err)
{
    const qd_status st = qd_onnx_set(r, n, 0, id, err);
    if (!st && n->n_outputs > 0 && n->output[0][0])
        r->value[r->names.count - 1].elem_type = QD_ONNX_TYPE_BOOL;
    return st;
}

qd_status qd_onnx_compare(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id a = qd_onnx_floats(r, n, 0), b = qd_onnx_floats(r, n, 1);
    qd_node_id made;
    if (strcmp(n->op, "Less") == 0)
        made = is_less(r, n, NULL, a, b);
    else if (strcmp(n->op, "Greater") == 0)
        made = is_less(r, n, NULL, b, a);
    else if (strcmp(n->op, "LessOrEqual") == 0)
        made = opposite(r, n, NULL, is_less(r, n, "greater", b, a));
    else if (strcmp(n->op, "GreaterOrEqual") == 0)
        made = opposite(r, n, NULL, is_less(r, n, "less", a, b));
    else
        made = opposite(r, n, NULL, differ(r, n, "differ", a, b));
    return set_truth(r, n, made, err);
}

qd_status qd_onnx_logic(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id a = qd_onnx_floats(r, n, 0);
    if (strcmp(n->op, "Not") == 0)
        return set_truth(r, n, opposite(r, n, NULL, a), err);
    const qd_node_id b = qd_onnx_floats(r, n, 1);
    qd_node_id made;
    if (strcmp(n->op, "And") == 0)
        made = qd_onnx_two(r, n, NULL, &qd_op_mul, a, b);
    else if (strcmp(n->op, "Or") == 0)
        made = qd_onnx_two(r, n, NULL, &qd_op_max, a, b);
    else
        made = qd_onnx_one(r, n, NULL, &qd_op_abs, qd_onnx_two(r, n, "difference", &qd_op_sub, a, b));
    return set_truth(r, n, made, err);
}

qd_status qd_onnx_where(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_onnx_number *a = qd_onnx_in(r, n, 1), *b = qd_onnx_in(r, n, 2);
    if (a->dtype != QD_F32 || b->dtype != QD_F32)
        return qd_fail(err, QD_E_UNSUPPORTED, "a computed choice between whole numbers");
    const qd_node_id condition = qd_onnx_floats(r, n, 0), x = qd_onnx_node_of(r, n, 1), y = qd_onnx_node_of(r, n, 2);
    return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_where, QD_IN(condition, x, y), QD_NO_ATTRS), err);
}

/* 1, 0, -1: `less` against zero is 0, 1/2, 1. */
qd_status qd_onnx_sign(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_node_id zero = qd_onnx_number_const(r, n, "zero", 0.0f);
    const qd_node_id less = qd_onnx_two(r, n, "order", &qd_op_less, qd_onnx_floats(r, n, 0), zero);
    return qd_onnx_set(r, n, 0, qd_onnx_affine(r, n, NULL, less, -2.0, 1.0), err);
}

/* Floats, or truth out of floats, of whole numbers or floats. */
qd_status qd_onnx_cast(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const int to = (int)qd_onnx_attr_int(n, "to", 0);
    const qd_onnx_number *x = qd_onnx_in(r, n, 0);
    qd_dtype kept;
    if (!qd_onnx_type_kept(to, &kept))
        return qd_fail(err, QD_E_UNSUPPORTED, "a computed value as %s (type %d)", qd_onnx_type_name(to), to);
    if (to == QD_ONNX_TYPE_BOOL && x->elem_type != QD_ONNX_TYPE_BOOL) {
        const qd_node_id zero = qd_onnx_number_const(r, n, "zero", 0.0f);
        return set_truth(r, n, differ(r, n, NULL, qd_onnx_floats(r, n, 0), zero), err);
    }
    if (to == QD_ONNX_TYPE_BOOL || kept == x->dtype)
        return qd_onnx_alias(r, n, 0, x, err);
    if (kept != QD_F32)
        return qd_fail(err, QD_E_UNSUPPORTED, "a computed value as %s (type %d)", qd_onnx_type_name(to), to);
    return qd_onnx_set(r, n, 0, qd_onnx_floats(r, n, 0), err);
}

/* Trilu of a computed value: what lies above diagonal k, or below it, of the last two axes; zeros elsewhere. */
qd_status qd_onnx_triangle(qd_onnx_reader *r, const qd_onnx_node *n, qd_err *err)
{
    const qd_shape *x = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 0), *again = qd_onnx_shape_of(qd_onnx_in(r, n, 0), 1);
    const bool upper = qd_onnx_attr_int(n, "upper", 1) != 0;
    const qd_tensor *k;
    qd_tensor mask = { 0 };
    qd_status st = qd_onnx_fixed(r, n, 1, &k, err);
    if (st)
        return st;
    const int rank = x->rank;
    if (rank < 2 || x->dim[rank - 2] != again->dim[rank - 2] || x->dim[rank - 1] != again->dim[rank - 1] ||
        (k && (k->dtype != QD_I64 || qd_tensor_count(k) != 1)))
        return qd_fail(err, QD_E_UNSUPPORTED, "a triangle of a value of rank %d, or one that depends on the batch",
                       rank);
    const qd_shape s = QD_SHAPE(x->dim[rank - 2], x->dim[rank - 1]);
    const int64_t given = k ? *(const int64_t *)k->data : 0, most = QD_MAX_ELEMENTS;
    const int64_t diagonal = given < -most ? -most : given > most ? most : given;
    st = qd_tensor_init(&mask, QD_F32, &s, r->budget, err);
    if (st)
        return st;
    for (int64_t i = 0; i < qd_tensor_count(&mask); i++) {
        const int64_t along = i % s.dim[1] - i / s.dim[1];
        qd_f32(&mask)[i] = (upper ? along >= diagonal : along <= diagonal) ? 1.0f : 0.0f;
    }
    const qd_node_id m = qd_onnx_const(r, n, "mask", &mask), zero = qd_onnx_number_const(r, n, "zero", 0.0f);
    qd_tensor_clear(&mask);
    const qd_node_id v = qd_onnx_floats(r, n, 0);
    return qd_onnx_set(r, n, 0, qd_onnx_add(r, n, NULL, &qd_op_where, QD_IN(m, v, zero), QD_NO_ATTRS), err);
}
