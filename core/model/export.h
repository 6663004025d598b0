/* export.h - which tensors of a graph go to others, and how each is spelled out. */
#ifndef QD_MODEL_EXPORT_H
#define QD_MODEL_EXPORT_H

#include <stdio.h>

#include "graph/op.h"
#include "model/model_int.h"

typedef struct qd_export_tensor {
    const char *name; /* lent by the export */
    qd_node_id
        part[2]; /* a constant, or a layer whose codes are spelled out, perhaps both halves of a split one; -1 = none */
    bool layer;  /* the weight of a convolution or linear layer */
} qd_export_tensor;

typedef struct qd_export {
    const qd_graph *graph; /* lent */
    qd_export_tensor *tensor;
    int n;
    qd_names names;
} qd_export;

/* e is cleared when it fails. */
qd_status qd_export_init(qd_export *e, const qd_graph *g, qd_err *err);
void qd_export_clear(qd_export *e);
/* Tensor k as F32 (I64, I32 stay). For weights kept in codes: *bits of a code, *steps (if asked for, as many as elements; qd_free) the
 * scale of each element. Else *bits is 0 and *steps stays. */
qd_status qd_export_make(const qd_export *e, int k, qd_budget *budget, qd_tensor *out, float **steps, int *bits,
                         qd_err *err);

#endif
