/* feature_stats.c - what a set of pictures looks like to a network: moments, rows kept, scores of its answers. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "metrics/stats_int.h"

enum { CHUNK = 5000, AT_ONCE = 256 };

void qd_feature_stats_free(qd_feature_stats *s)
{
    if (!s)
        return;
    qd_moments_free(s->features);
    qd_moments_free(s->spatial);
    qd_gauss_clear(&s->read);
    qd_gauss_clear(&s->read_spatial);
    qd_free(s->rows);
    qd_free(s->portion);
    qd_free(s->class_sum);
    qd_free(s->score);
    qd_budget_give(s->budget, s->drawn_bytes);
    qd_free(s);
}

/* Memory for `count` floats, drawn from the budget as long as the statistics live. */
static qd_status take_floats(qd_feature_stats *s, int64_t rows, int64_t columns, float **out, qd_err *err)
{
    size_t n, bytes;
    if (!qd_mul_size((size_t)rows, (size_t)columns, &n) || !qd_mul_size(n, sizeof(float), &bytes))
        return qd_fail(err, QD_E_LIMIT, "%lld rows of %lld features are too many", (long long)rows, (long long)columns);
    const qd_status st = qd_budget_draw(s->budget, bytes, "features that are kept", err);
    if (st)
        return st;
    s->drawn_bytes += bytes;
    *out = qd_alloc(bytes);
    return *out ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %zu bytes of features", bytes);
}

qd_status qd_feature_stats_new(const qd_features *f, int64_t keep, int64_t chunk, qd_budget *budget,
                               qd_feature_stats **out, qd_err *err)
{
    const qd_feature_sizes z = qd_features_sizes(f);
    qd_feature_stats *s = qd_calloc(1, sizeof *s);
    qd_status st;
    if (!s)
        return qd_fail(err, QD_E_NOMEM, "no memory for statistics of features");
    s->budget = budget;
    s->dim = z.dim;
    s->spatial_dim = z.spatial_dim;
    s->classes = z.classes;
    s->keep = keep;
    s->chunk = chunk > 0 ? chunk : CHUNK;
    s->at_once = (AT_ONCE + z.batch - 1) / z.batch * z.batch;
    st = qd_moments_new(z.dim, budget, &s->features, err);
    if (!st && z.spatial_dim > 0)
        st = qd_moments_new(z.spatial_dim, budget, &s->spatial, err);
    if (!st)
        st = take_floats(s, keep, z.dim, &s->rows, err);
    if (!st)
        st = take_floats(s, s->at_once, z.dim + z.spatial_dim + z.classes, &s->portion, err);
    s->class_sum = st ? NULL : qd_calloc((size_t)z.classes, sizeof *s->class_sum);
    if (!st && !s->class_sum)
        st = qd_fail(err, QD_E_NOMEM, "no memory for %lld classes", (long long)z.classes);
    if (st)
        qd_feature_stats_free(s);
    else
        *out = s;
    return st;
}

/* --- inception score --- */

/* exp(mean over x of KL(p(y|x) || p(y))) = exp(mean of sum p log p - sum p(y) log p(y)), of the chunk that is open. */
static double score_of_chunk(const qd_feature_stats *s)
{
    double marginal = 0.0;
    for (int64_t c = 0; c < s->classes; c++) {
        const double p = s->class_sum[c] / (double)s->in_chunk;
        marginal += p > 0.0 ? p * log(p) : 0.0;
    }
    return exp(s->negentropy / (double)s->in_chunk - marginal);
}

/* One more score; the list grows by doubling. */
static qd_status close_chunk(qd_feature_stats *s, qd_err *err)
{
    if ((s->n_scores & (s->n_scores - 1)) == 0) {
        const size_t room = s->n_scores ? 2 * (size_t)s->n_scores : 1;
        double *more = qd_realloc(s->score, room * sizeof *more);
        if (!more)
            return qd_fail(err, QD_E_NOMEM, "no memory for %zu scores", room);
        s->score = more;
    }
    s->score[s->n_scores++] = score_of_chunk(s);
    memset(s->class_sum, 0, (size_t)s->classes * sizeof *s->class_sum);
    s->negentropy = 0.0;
    s->in_chunk = 0;
    return QD_OK;
}

static qd_status add_answers(qd_feature_stats *s, const float *p, int64_t n, qd_err *err)
{
    for (int64_t k = 0; k < n; k++, p += s->classes) {
        for (int64_t c = 0; c < s->classes; c++) {
            s->class_sum[c] += p[c];
            s->negentropy += p[c] > 0.0f ? p[c] * log(p[c]) : 0.0;
        }
        if (++s->in_chunk == s->chunk) {
            const qd_status st = close_chunk(s, err);
            if (st)
                return st;
        }
    }
    return QD_OK;
}

void qd_stats_scores(const qd_feature_stats *s, double *scores)
{
    if (s->n_scores > 0)
        memcpy(scores, s->score, (size_t)s->n_scores * sizeof *scores);
    if (s->in_chunk > 0)
        scores[s->n_scores] = score_of_chunk(s);
}

qd_status qd_inception_score_of(const qd_feature_stats *s, qd_inception_score *out, qd_err *err)
{
    const int64_t n = s->n_scores + (s->in_chunk > 0);
    const double last = s->in_chunk > 0 ? score_of_chunk(s) : 0.0;
    double sum = 0.0, squares = 0.0;
    if (n == 0)
        return s->classes == 0
                   ? qd_fail(err, QD_E_UNSUPPORTED, "an inception score needs a network that tells classes apart")
                   : qd_fail(err, QD_E_INVALID, "there are no pictures to score");
    for (int64_t k = 0; k < n; k++)
        sum += k < s->n_scores ? s->score[k] : last;
    for (int64_t k = 0; k < n; k++) {
        const double d = (k < s->n_scores ? s->score[k] : last) - sum / (double)n;
        squares += d * d;
    }
    *out = (qd_inception_score){ .mean = sum / (double)n, .std = sqrt(squares / (double)n), .chunks = n };
    return QD_OK;
}

/* --- adding --- */

static qd_status check_network(const qd_feature_stats *s, const qd_features *f, qd_err *err)
{
    const qd_feature_sizes z = qd_features_sizes(f);
    if (!s->features)
        return qd_fail(err, QD_E_INVALID, "nothing can be added to statistics read from a file");
    if (z.dim != s->dim || z.spatial_dim != s->spatial_dim || z.classes != s->classes)
        return qd_fail(err, QD_E_INVALID,
                       "the network gives %lld + %lld features and %lld answers, these statistics have %lld + %lld and "
                       "%lld",
                       (long long)z.dim, (long long)z.spatial_dim, (long long)z.classes, (long long)s->dim,
                       (long long)s->spatial_dim, (long long)s->classes);
    return QD_OK;
}

/* What the network gave for n pictures, n <= at_once, from s->portion. */
static qd_status take_portion(qd_feature_stats *s, int64_t n, int threads, qd_err *err)
{
    const float *features = s->portion, *spatial = features + s->at_once * s->dim,
                *answers = spatial + s->at_once * s->spatial_dim;
    qd_status st = qd_moments_add(s->features, features, n, threads, err);
    if (!st && s->spatial)
        st = qd_moments_add(s->spatial, spatial, n, threads, err);
    if (!st && s->classes > 0)
        st = add_answers(s, answers, n, err);
    if (st)
        return st;
    const int64_t room = s->keep - s->kept, taken = n < room ? n : room;
    if (taken > 0)
        memcpy(s->rows + s->kept * s->dim, features, (size_t)(taken * s->dim) * sizeof *features);
    s->kept += taken > 0 ? taken : 0;
    s->count += n;
    return QD_OK;
}

qd_status qd_feature_stats_add(qd_feature_stats *s, qd_features *f, const float *x, int64_t n, int channels, int height,
                               int width, const qd_run *run, qd_err *err)
{
    qd_status st = check_network(s, f, err);
    if (st)
        return st;
    float *spatial = s->portion + s->at_once * s->dim, *answers = spatial + s->at_once * s->spatial_dim;
    for (int64_t first = 0; first < n && !st; first += s->at_once) {
        const int64_t part = n - first < s->at_once ? n - first : s->at_once;
        st = qd_features_of_samples(f, x + first * channels * height * width, part, channels, height, width, run,
                                    s->portion, spatial, answers, err);
        if (!st)
            st = take_portion(s, part, qd_run_threads(run), err);
    }
    return st;
}

qd_status qd_feature_stats_add_dataset(qd_feature_stats *s, qd_features *f, const qd_dataset *d, const int64_t *image,
                                       int64_t count, const char *phase, const qd_run *run, qd_err *err)
{
    qd_status st = check_network(s, f, err);
    if (st)
        return st;
    float *spatial = s->portion + s->at_once * s->dim, *answers = spatial + s->at_once * s->spatial_dim;
    for (int64_t first = 0; first < count && !st; first += s->at_once) {
        const int64_t part = count - first < s->at_once ? count - first : s->at_once;
        st = qd_features_of_pictures(f, d, image ? image + first : NULL, first, part, run, s->portion, spatial, answers,
                                     err);
        if (!st)
            st = take_portion(s, part, qd_run_threads(run), err);
        if (!st)
            qd_run_progress(run, phase, NULL, first + part, count);
    }
    return st;
}

/* --- asking --- */

int64_t qd_feature_stats_count(const qd_feature_stats *s)
{
    return s->count;
}

int64_t qd_feature_stats_dim(const qd_feature_stats *s)
{
    return s->dim;
}

const float *qd_feature_stats_rows(const qd_feature_stats *s, int64_t *n)
{
    *n = s->kept;
    return s->rows;
}

bool qd_feature_stats_has_spatial(const qd_feature_stats *s)
{
    return s->spatial_dim > 0;
}

qd_status qd_stats_gauss(const qd_feature_stats *s, bool spatial, int threads, qd_gauss *made, const qd_gauss **out,
                         qd_err *err)
{
    const qd_moments *m = spatial ? s->spatial : s->features;
    const qd_gauss *read = spatial ? &s->read_spatial : &s->read;
    qd_status st = QD_OK;
    if (!m && read->dim == 0)
        return qd_fail(err, QD_E_INVALID, "these statistics hold no spatial features");
    if (m)
        st = qd_moments_gauss(m, threads, made, err);
    if (!st)
        *out = m ? made : read;
    return st;
}

static qd_status distance(const qd_feature_stats *a, const qd_feature_stats *b, bool spatial, int threads, double *out,
                          qd_err *err)
{
    qd_gauss made_a = { 0 }, made_b = { 0 };
    const qd_gauss *ga = NULL, *gb = NULL;
    qd_status st = qd_stats_gauss(a, spatial, threads, &made_a, &ga, err);
    if (!st)
        st = qd_stats_gauss(b, spatial, threads, &made_b, &gb, err);
    if (!st)
        st = qd_frechet(ga, gb, out, err);
    qd_gauss_clear(&made_a);
    qd_gauss_clear(&made_b);
    return st;
}

qd_status qd_fid(const qd_feature_stats *a, const qd_feature_stats *b, int threads, double *out, qd_err *err)
{
    return distance(a, b, false, threads, out, err);
}

qd_status qd_sfid(const qd_feature_stats *a, const qd_feature_stats *b, int threads, double *out, qd_err *err)
{
    return distance(a, b, true, threads, out, err);
}
