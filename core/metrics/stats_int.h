/* stats_int.h - the inside of statistics of features, for those who make, save and resample them. */
#ifndef QD_METRICS_STATS_INT_H
#define QD_METRICS_STATS_INT_H

#include "metrics/metrics_int.h"

struct qd_feature_stats {
    qd_budget *budget;
    size_t drawn_bytes;
    int64_t count, dim, spatial_dim, classes;
    qd_moments *features, *spatial; /* NULL when read from a file */
    qd_gauss read, read_spatial;    /* what was read; dim 0 = nothing */
    int64_t at_once;                /* pictures in portion: whole batches of the network */
    int64_t keep, kept;
    float *rows;    // [keep, dim]
    float *portion; // [at_once, dim] [at_once, spatial_dim] [at_once, classes]: what the network gives
    /* inception score: the open chunk, and what closed ones gave */
    int64_t chunk, in_chunk, n_scores;
    double *class_sum; // [classes], of probabilities
    double negentropy; // sum of p log p
    double *score;     // [n_scores]
};

/* Their normal distribution: made now (to be cleared) or as it was read (lent). */
qd_status qd_stats_gauss(const qd_feature_stats *s, bool spatial, int threads, qd_gauss *made, const qd_gauss **out,
                         qd_err *err);
/* The scores of all chunks, the open one included: as many as qd_inception_score_of says. */
void qd_stats_scores(const qd_feature_stats *s, double *scores);

#endif
