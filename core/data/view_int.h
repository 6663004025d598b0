/* view_int.h - what looking at pictures is made of: resampling weights and the loops over pixels. */
#ifndef QD_DATA_VIEW_INT_H
#define QD_DATA_VIEW_INT_H

#include "data/data.h"
#include "data/pixel.h"

/* Where the weights of one output pixel begin, and how many there are. */
typedef struct qd_span {
    int first, count;
} qd_span;

/* Room for the weights of one output pixel, when `in` pixels become `out`. */
int qd_resample_taps(qd_filter filter, int in, int out);
/* weight[n][taps], span[n] of output pixels first .. first + n - 1; real[taps] is scratch. */
void qd_resample_weights(int32_t *weight, double *real, qd_span *span, qd_filter filter, int in, int out, int first,
                         int n);

#endif
