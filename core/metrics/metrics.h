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

/* --- features.c: pictures through a network that the user names --- */

/* What becomes of the numbers of a picture before the network reads them. Pictures of data sets are codes 0..255 and become code / 255.
 * Samples x of a diffusion model, about -1..1, become a number u by one of these rules: */
typedef enum qd_pixel_rule {
    QD_PIXEL_ROUND, /* round(255 clamp((x + 1) / 2, 0, 1)) / 255, ties to even: what a PNG file of them holds (diffusers) */
    QD_PIXEL_TRUNCATE, /* floor(clamp(127.5 (x + 1), 0, 255)) / 255: the scripts of latent diffusion (qncd.md 9.2) */
    QD_PIXEL_CLIP,     /* clamp((x + 1) / 2, 0, 1), not rounded */
    QD_PIXEL_FLOAT,    /* (x + 1) / 2: neither clipped nor rounded */
} qd_pixel_rule;
/* Then, where the network wants another size: */
typedef enum qd_resize_rule {
    QD_RESIZE_NONE, /* refuse */
    QD_RESIZE_BILINEAR, /* two neighbours each way, pixel centres at halves, no low-pass filter (torch interpolate, pytorch-fid) */
    QD_RESIZE_CORNER, /* the same with pixel centres at whole numbers (TensorFlow 1, the first Inception graph) */
} qd_resize_rule;
/* A grey picture is then repeated for a network of three channels, and each channel becomes (u - mean) / std. */

typedef struct qd_feature_options {
    /* A node or an output of the graph: [N, D], or [N, C, H, W], which is averaged over space. NULL or "": what the last linear layer
     * before the answers reads; a network without one gives its answers. */
    const char *features;
    const char *
        spatial; /* the same with four axes; its first channels, C H W in order, are a second set (sFID). NULL or "" = none */
    int spatial_channels; /* 0 counts as 7 */
    qd_pixel_rule pixels;
    qd_resize_rule resize;
    const char *mean, *std; /* texts as qd_pixel_scale_parse takes them; NULL = "0" and "1" */
    int64_t batch;          /* pictures in a call of the network; 0 counts as 64 */
} qd_feature_options;

/* The network, compiled. One thread at a time; the graph may go. */
typedef struct qd_features qd_features;
qd_status qd_features_new(const qd_graph *g, const qd_feature_options *o, const qd_run *run, qd_features **out,
                          qd_err *err);
void qd_features_free(qd_features *f);
/* What it reads and gives. name: of the value taken. spatial_dim 0 = none was asked for; classes 0 = it has no answers [N, classes]. */
typedef struct qd_feature_sizes {
    const char *name;            /* lent */
    int channels, height, width; /* of its input */
    int64_t dim, spatial_dim, classes, batch;
} qd_feature_sizes;
qd_feature_sizes qd_features_sizes(const qd_features *f);
/* Samples x [n][channels][height][width] through the rules above. features [n, dim], spatial [n, spatial_dim] and probabilities
 * [n, classes] may each be NULL. QD_E_INVALID where channels or size do not fit. */
qd_status qd_features_of_samples(qd_features *f, const float *x, int64_t n, int channels, int height, int width,
                                 const qd_run *run, float *features, float *spatial, float *probabilities, qd_err *err);
/* The same of pictures image[0..n-1] of a set (NULL = first, first + 1, ..). */
qd_status qd_features_of_pictures(qd_features *f, const qd_dataset *d, const int64_t *image, int64_t first, int64_t n,
                                  const qd_run *run, float *features, float *spatial, float *probabilities,
                                  qd_err *err);

/* --- moments.c: mean and covariance of rows that come one after another --- */

/* Sums are taken in double over blocks of rows fixed by their number, each element in the order of rows: the same bytes for any number
 * of threads and however the rows were dealt out. */
typedef struct qd_moments qd_moments;
qd_status qd_moments_new(int64_t dim, qd_budget *budget, qd_moments **out, qd_err *err);
void qd_moments_free(qd_moments *m);
/* rows [n, dim]. QD_E_NUMERIC names the first that is not finite; then nothing of them was added. */
qd_status qd_moments_add(qd_moments *m, const float *rows, int64_t n, int threads, qd_err *err);

/* A normal distribution. */
typedef struct qd_gauss {
    int64_t count, dim; /* count: of the rows it was made from; 0 = not known. dim 0 = empty */
    double *mean;       // [dim]; qd_free
    double *cov;        // [dim, dim], of the sample: divided by count - 1
} qd_gauss;
void qd_gauss_clear(qd_gauss *g);
/* QD_E_INVALID with fewer than two rows. */
qd_status qd_moments_gauss(const qd_moments *m, int threads, qd_gauss *out, qd_err *err);

/* --- frechet.c --- */

/* |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), qncd.md 9.1: the trace of the root is the sum of the roots of the eigenvalues of
 * C2^(1/2) C1 C2^(1/2). Where LAPACK does not come to an end or the result is not finite, 1e-6 is added to both diagonals and it is
 * tried once more. QD_E_NUMERIC where the root has an imaginary part of
 * 1e-3 or more (of its largest, where that is over 1), or a mean or covariance is not finite. */
qd_status qd_frechet(const qd_gauss *a, const qd_gauss *b, double *out, qd_err *err);

/* --- feature_stats.c: what a set of pictures looks like to the network --- */

typedef struct qd_feature_stats qd_feature_stats;
/* Empty, for pictures added through f; it keeps nothing of f.
 *
 * keep    rows of features that are kept as they are, for all but the Frechet distances
 * chunk   pictures in a chunk of the inception score; 0 counts as 5000 */
qd_status qd_feature_stats_new(const qd_features *f, int64_t keep, int64_t chunk, qd_budget *budget,
                               qd_feature_stats **out, qd_err *err);
void qd_feature_stats_free(qd_feature_stats *s);
/* Pictures one after another; what was added first is kept. f must be the network it was made for, or one of the same sizes. */
qd_status qd_feature_stats_add(qd_feature_stats *s, qd_features *f, const float *x, int64_t n, int channels, int height,
                               int width, const qd_run *run, qd_err *err);
/* `count` pictures of a set; progress goes to `phase`. */
qd_status qd_feature_stats_add_dataset(qd_feature_stats *s, qd_features *f, const qd_dataset *d, const int64_t *image,
                                       int64_t count, const char *phase, const qd_run *run, qd_err *err);
int64_t qd_feature_stats_count(const qd_feature_stats *s); /* pictures added; 0 = not known */
int64_t qd_feature_stats_dim(const qd_feature_stats *s);
/* The first rows of features, in order of the pictures; *n is how many were kept. Lent. */
const float *qd_feature_stats_rows(const qd_feature_stats *s, int64_t *n); // [*n, dim]
bool qd_feature_stats_has_spatial(const qd_feature_stats *s);

/* Safetensors: mu, sigma (and mu_s, sigma_s) f64, features f32 [kept, dim], inception_scores f64; meta is written beside them. Same
 * statistics, same bytes. */
struct qd_meta;
qd_status qd_feature_stats_save(const qd_feature_stats *s, const char *path, const struct qd_meta *meta, int threads,
                                qd_err *err);
/* Such a file; or mu.npy and sigma.npy (mu_s.npy, sigma_s.npy) in a folder or an NPZ file, as pytorch-fid and guided-diffusion
 * publish them. Nothing can be added to what was read. meta (may be NULL) gets what was written beside. */
qd_status qd_feature_stats_open(const char *path, qd_budget *budget, qd_feature_stats **out, struct qd_meta *meta,
                                qd_err *err);

/* Does the path hold such statistics? Packed ones are unpacked on the way, out of the budget. */
bool qd_feature_stats_sniff(const char *path, qd_budget *budget);

/* Frechet distances of the features and of the spatial values. */
qd_status qd_fid(const qd_feature_stats *a, const qd_feature_stats *b, int threads, double *out, qd_err *err);
qd_status qd_sfid(const qd_feature_stats *a, const qd_feature_stats *b, int threads, double *out, qd_err *err);

/* exp(mean over x of KL(p(y|x) || p(y))) of each chunk; mean over the chunks and their standard deviation (divided by their number).
 * The last chunk may be shorter. QD_E_UNSUPPORTED where the network has no answers. */
typedef struct qd_inception_score {
    double mean, std;
    int64_t chunks;
} qd_inception_score;
qd_status qd_inception_score_of(const qd_feature_stats *s, qd_inception_score *out, qd_err *err);

/* --- spread.c: how sure a FID is --- */

/* From resamples of the rows kept of `generated`, the reference held fixed. */
typedef struct qd_fid_spread {
    double std; /* of the FID over resamples with return, all of that many rows: its standard error */
    double
        infinity; /* the line through FID over 1/N, at 0 (Chong and Forsyth 2020); NAN where there are too few rows */
} qd_fid_spread;
qd_status qd_fid_spread_of(const qd_feature_stats *generated, const qd_feature_stats *reference, int resamples,
                           uint64_t seed, const qd_run *run, qd_fid_spread *out, qd_err *err);

/* --- kid.c, manifold.c: without the assumption of normal features. a [na, dim], b [nb, dim] --- */

/* Unbiased MMD^2 under ((x . y) / dim + 1)^3 (Binkowski 2018), over random subsets of `size` rows of each, drawn without return. size is
 * lowered to what there is; QD_E_INVALID below 2. */
typedef struct qd_kid {
    double mean, std; /* over subsets */
    double error;     /* std / sqrt(subsets) */
    int subsets;
    int64_t size;
} qd_kid;
qd_status qd_kid_of(const float *a, int64_t na, const float *b, int64_t nb, int64_t dim, int subsets, int64_t size,
                    uint64_t seed, const qd_run *run, qd_kid *out, qd_err *err);

/* Improved precision and recall (Kynkaanniemi 2019) and density and coverage (Naeem 2020): balls around each row, reaching to its k-th
 * neighbour of its own set. */
typedef struct qd_manifold {
    double precision, recall; /* shares of generated rows within a real ball, of real rows within a generated ball */
    double density, coverage; /* real balls around a generated row, over k; share of real balls with a generated row */
} qd_manifold;
/* QD_E_INVALID unless both have more than k rows. */
qd_status qd_manifold_of(const float *generated, int64_t n_generated, const float *real, int64_t n_real, int64_t dim,
                         int k, const qd_run *run, qd_manifold *out, qd_err *err);

/* --- likeness.c: a picture and what became of it --- */

/* Structural similarity of two pictures of one size (Wang 2004): Gaussian window of 11 x 11, sigma 1.5, only where it fits whole;
 * K 0.01 and 0.03, range 255; mean over places and channels. On pictures smaller than 11 the window has the largest odd size that fits. */
double qd_ssim(const qd_image *a, const qd_image *b);
double qd_mse(const float *x, const float *y, int64_t n);

#endif
