/* metrics.h - figures of merit. */
#ifndef QD_METRICS_METRICS_H
#define QD_METRICS_METRICS_H

#include <stdint.h>

/* 10 log10(sum x^2 / sum (x - y)^2) in dB; INFINITY when equal. qncd.md 2. */
double qd_sqnr_db(const float *x, const float *y, int64_t n);
/* The same, accumulated over pieces. */
typedef struct qd_sqnr {
    double signal, noise;
} qd_sqnr;
void qd_sqnr_add(qd_sqnr *s, const float *x, const float *y, int64_t n);
double qd_sqnr_value_db(const qd_sqnr *s);
/* x.y / (|x| |y|); 1 when both are zero, 0 when one is. */
double qd_cosine(const float *x, const float *y, int64_t n);

#endif
