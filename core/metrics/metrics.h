/* metrics.h - figures of merit. */
#ifndef QD_METRICS_METRICS_H
#define QD_METRICS_METRICS_H

#include <stdint.h>

#include "base/err.h"
#include "base/run.h"
#include "data/data.h"
#include "graph/graph.h"

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

/* --- classify.c: a classifier over a data set --- */

/* A graph with one f32 input [N, C, H, W] and logits [N, classes]: the output of that name, or the first with two axes. */
typedef struct qd_classifier {
    const qd_graph *graph; /* lent */
    int output;            /* which output the logits are */
    int channels, height, width;
    int64_t classes;
} qd_classifier;
qd_status qd_classifier_of(const qd_graph *g, qd_classifier *out, qd_err *err);
/* May these pictures go in, and are the labels (if `labelled`, there must be some) among its classes? Words say what differs. */
qd_status qd_classifier_fits(const qd_classifier *c, const qd_dataset *d, bool labelled, qd_err *err);

typedef struct qd_classify_job {
    const qd_dataset *data;
    const int64_t *image; // [count] which pictures; NULL = the first ones
    int64_t count, batch;
    const qd_pixel_scale *scale;
    const char *phase; /* of the progress it reports */
} qd_classify_job;
/* logits [count, classes] of the pictures. *seconds (may be NULL) is the time spent in the network, after one call nobody counts. */
qd_status qd_classify(const qd_classifier *c, const qd_classify_job *job, const qd_run *run, float *logits,
                      double *seconds, qd_err *err);

/* The largest logit, the first of equals; NaN is never the largest. */
int64_t qd_top1(const float *logits, int64_t classes);
/* How many logits come before that of `label`: larger, or equal and earlier; all others when it is NaN. */
int64_t qd_rank(const float *logits, int64_t classes, int64_t label);

#endif
