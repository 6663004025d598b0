/* stats_file.c - statistics of features on disk: our safetensors, and the mu.npy and sigma.npy that others publish. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "metrics/stats_int.h"
#include "model/model.h"

#define FORMAT "quantd-features-1"
enum { DIM_MAX = 16384 };

/* --- writing --- */

static qd_status put(qd_weights *w, const char *name, qd_dtype dtype, const qd_shape *shape, const void *data,
                     qd_err *err)
{
    qd_tensor t = { 0 };
    qd_status st = qd_tensor_wrap(&t, dtype, shape, data, NULL, NULL, err);
    if (!st)
        st = qd_weights_add(w, name, &t, err);
    qd_tensor_clear(&t);
    return st;
}

static qd_status put_gauss(qd_weights *w, const char *mean, const char *cov, const qd_gauss *g, qd_err *err)
{
    const qd_shape row = QD_SHAPE(g->dim), square = QD_SHAPE(g->dim, g->dim);
    const qd_status st = put(w, mean, QD_F64, &row, g->mean, err);
    return st ? st : put(w, cov, QD_F64, &square, g->cov, err);
}

static qd_status put_meta(qd_meta *all, const qd_feature_stats *s, const qd_meta *meta, qd_err *err)
{
    char count[32];
    snprintf(count, sizeof count, "%" PRId64, s->count);
    qd_status st = meta ? qd_meta_copy(all, meta, err) : QD_OK;
    if (!st)
        st = qd_meta_set(all, "format", FORMAT, err);
    return st ? st : qd_meta_set(all, "count", count, err);
}

qd_status qd_feature_stats_save(const qd_feature_stats *s, const char *path, const qd_meta *meta, int threads,
                                qd_err *err)
{
    qd_gauss made = { 0 }, made_spatial = { 0 };
    const qd_gauss *g = NULL, *spatial = NULL;
    qd_weights *w = NULL;
    qd_meta *all = NULL;
    qd_inception_score unused;
    double *scores = NULL;
    qd_status st;

    if ((st = qd_weights_new(&w, err)) || (st = qd_meta_new(&all, err)) || (st = put_meta(all, s, meta, err)) ||
        (st = qd_stats_gauss(s, false, threads, &made, &g, err)) || (st = put_gauss(w, "mu", "sigma", g, err)))
        goto out;
    if (s->spatial_dim > 0 && ((st = qd_stats_gauss(s, true, threads, &made_spatial, &spatial, err)) ||
                               (st = put_gauss(w, "mu_s", "sigma_s", spatial, err))))
        goto out;
    if (s->kept > 0) {
        const qd_shape shape = QD_SHAPE(s->kept, s->dim);
        st = put(w, "features", QD_F32, &shape, s->rows, err);
        if (st)
            goto out;
    }
    if (qd_inception_score_of(s, &unused, NULL) == QD_OK) {
        const qd_shape shape = QD_SHAPE(unused.chunks);
        scores = qd_calloc((size_t)unused.chunks, sizeof *scores);
        if (!scores) {
            st = qd_fail(err, QD_E_NOMEM, "no memory for %lld scores", (long long)unused.chunks);
            goto out;
        }
        qd_stats_scores(s, scores);
        st = put(w, "inception_scores", QD_F64, &shape, scores, err);
        if (st)
            goto out;
    }
    st = qd_safetensors_save(path, w, all, NULL, err);
out:
    qd_gauss_clear(&made);
    qd_gauss_clear(&made_spatial);
    qd_meta_free(all);
    qd_weights_free(w);
    qd_free(scores);
    return st;
}

/* --- arrays of numbers, whatever they came in --- */

typedef struct array {
    int rank;
    int64_t dim[2];
    double *value;
} array;

static void array_clear(array *a)
{
    qd_free(a->value);
    memset(a, 0, sizeof *a);
}

/* f32 or f64 at any address. */
static qd_status widen(array *a, const char *name, const void *data, int64_t n, bool is_double, qd_err *err)
{
    a->value = qd_calloc((size_t)n, sizeof *a->value);
    if (!a->value)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld numbers of '%s'", (long long)n, name);
    for (int64_t k = 0; k < n; k++) {
        float narrow;
        if (is_double) {
            memcpy(&a->value[k], (const char *)data + k * 8, 8);
        } else {
            memcpy(&narrow, (const char *)data + k * 4, 4);
            a->value[k] = narrow;
        }
    }
    return QD_OK;
}

static qd_status check_dims(const array *a, const char *name, qd_err *err)
{
    for (int k = 0; k < a->rank; k++)
        if (a->dim[k] < 1 || a->dim[k] > DIM_MAX)
            return qd_fail(err, QD_E_LIMIT, "'%s' has %lld in axis %d; 1..%d are done", name, (long long)a->dim[k], k,
                           DIM_MAX);
    return QD_OK;
}

/* --- where the arrays come from --- */

/* One of them. */
typedef struct origin {
    const qd_weights *w; /* tensors */
    const char *folder;  /* with mu.npy and so on */
    const char *npz;
    qd_budget *budget;
} origin;

static qd_status find_array(const origin *o, const char *name, qd_tensor *out, qd_err *err)
{
    const uint64_t most = (uint64_t)DIM_MAX * DIM_MAX * 8 + 4096;
    qd_status st = QD_OK;
    if (o->w) {
        const qd_tensor *t = qd_weights_find(o->w, name);
        if (t)
            qd_tensor_share(out, t);
    } else if (o->npz) {
        st = qd_npy_take(o->npz, name, most, o->budget, out, err);
        st = st == QD_E_NOT_FOUND ? QD_OK : st;
    } else {
        char *path = qd_asprintf("%s/%s.npy", o->folder, name);
        if (!path)
            return qd_fail(err, QD_E_NOMEM, "no memory for a path");
        if (qd_fs_exists(path))
            st = qd_npy_take(path, NULL, most, o->budget, out, err);
        qd_free(path);
    }
    return st;
}

/* The array of that name; rank 0 when there is none. */
static qd_status read_array(const origin *o, const char *name, array *a, qd_err *err)
{
    qd_tensor t = { 0 };
    qd_status st = find_array(o, name, &t, err);
    if (st || !t.data)
        goto out;
    if ((t.dtype != QD_F64 && t.dtype != QD_F32) || t.shape.rank < 1 || t.shape.rank > 2) {
        char text[96];
        st = qd_fail(err, QD_E_FORMAT, "'%s' is %s %s; f32 or f64 with one or two axes is needed", name,
                     qd_dtype_name(t.dtype), qd_shape_text(&t.shape, text, sizeof text));
        goto out;
    }
    a->rank = t.shape.rank;
    memcpy(a->dim, t.shape.dim, (size_t)a->rank * sizeof a->dim[0]);
    st = check_dims(a, name, err);
    if (!st)
        st = widen(a, name, t.data, qd_tensor_count(&t), t.dtype == QD_F64, err);
out:
    qd_tensor_clear(&t);
    return st;
}

static qd_status check_gauss(const qd_gauss *g, const char *mean, const char *cov, qd_err *err)
{
    for (int64_t k = 0; k < g->dim; k++)
        if (!isfinite(g->mean[k]))
            return qd_fail(err, QD_E_FORMAT, "number %lld of '%s' is %g", (long long)k, mean, g->mean[k]);
    for (int64_t i = 0; i < g->dim; i++)
        for (int64_t k = 0; k <= i; k++) {
            const double a = g->cov[i * g->dim + k], b = g->cov[k * g->dim + i];
            if (!isfinite(a) || !isfinite(b) || fabs(a - b) > 1e-6 * fmax(1.0, fabs(a)) || (i == k && a < 0))
                return qd_fail(err, QD_E_FORMAT, "'%s' is no covariance: %g and %g at %lld, %lld", cov, a, b,
                               (long long)i, (long long)k);
        }
    return QD_OK;
}

/* dim 0 in *g when neither is there. */
static qd_status read_gauss(const origin *o, const char *mean, const char *cov, qd_gauss *g, qd_err *err)
{
    array m = { 0 }, c = { 0 };
    qd_status st = read_array(o, mean, &m, err);
    if (!st)
        st = read_array(o, cov, &c, err);
    if (!st && (m.rank > 0 || c.rank > 0) &&
        (m.rank != 1 || c.rank != 2 || c.dim[0] != m.dim[0] || c.dim[1] != m.dim[0]))
        st = qd_fail(err, QD_E_FORMAT, "'%s' must be a list of numbers and '%s' a square of as many", mean, cov);
    if (!st && m.rank > 0) {
        *g = (qd_gauss){ .dim = m.dim[0], .mean = m.value, .cov = c.value };
        m.value = c.value = NULL;
        st = check_gauss(g, mean, cov, err);
    }
    array_clear(&m);
    array_clear(&c);
    return st;
}

static qd_status read_scores(qd_feature_stats *s, const qd_tensor *t, qd_err *err)
{
    if (!t)
        return QD_OK;
    if (t->dtype != QD_F64 || t->shape.rank != 1)
        return qd_fail(err, QD_E_FORMAT, "'inception_scores' must be a list of f64");
    s->score = qd_alloc(qd_tensor_bytes(t));
    if (!s->score)
        return qd_fail(err, QD_E_NOMEM, "no memory for scores");
    memcpy(s->score, t->data, qd_tensor_bytes(t));
    s->n_scores = qd_tensor_count(t);
    return QD_OK;
}

static qd_status read_rows(qd_feature_stats *s, const qd_tensor *t, qd_err *err)
{
    if (!t)
        return QD_OK;
    if (t->dtype != QD_F32 || t->shape.rank != 2 || t->shape.dim[1] != s->dim)
        return qd_fail(err, QD_E_FORMAT, "'features' must be f32 [pictures, %lld]", (long long)s->dim);
    const size_t bytes = qd_tensor_bytes(t);
    const qd_status st = qd_budget_draw(s->budget, bytes, "features that are kept", err);
    if (st)
        return st;
    s->drawn_bytes += bytes;
    s->rows = qd_alloc(bytes);
    if (!s->rows)
        return qd_fail(err, QD_E_NOMEM, "no memory for %zu bytes of features", bytes);
    memcpy(s->rows, t->data, bytes);
    s->keep = s->kept = t->shape.dim[0];
    for (int64_t k = 0; k < s->kept * s->dim; k++)
        if (!isfinite(s->rows[k]))
            return qd_fail(err, QD_E_FORMAT, "feature %lld of picture %lld is %g", (long long)(k % s->dim),
                           (long long)(k / s->dim), (double)s->rows[k]);
    return QD_OK;
}

static void read_count(qd_feature_stats *s, const qd_meta *meta)
{
    const char *text = qd_meta_find(meta, "count");
    const long long count = text ? strtoll(text, NULL, 10) : 0;
    s->count = count >= s->kept ? count : s->kept;
    s->read.count = s->read_spatial.count = s->count;
}

/* A zip begins so. */
static bool is_npz(const char *path)
{
    uint8_t head[4] = { 0 };
    FILE *f = fopen(path, "rb");
    const bool yes = f && fread(head, 1, 4, f) == 4 && memcmp(head, "PK\3\4", 4) == 0;
    if (f)
        fclose(f);
    return yes;
}

qd_status qd_feature_stats_open(const char *path, qd_budget *budget, qd_feature_stats **out, qd_meta *meta, qd_err *err)
{
    origin o = { 0 };
    qd_weights *w = NULL;
    qd_meta *own = NULL;
    qd_feature_stats *s = qd_calloc(1, sizeof *s);
    qd_status st = s ? qd_meta_new(&own, err) : qd_fail(err, QD_E_NOMEM, "no memory for statistics of features");
    if (st)
        goto out;
    s->budget = o.budget = budget;
    if (qd_fs_is_dir(path))
        o.folder = path;
    else if (is_npz(path))
        o.npz = path;
    else
        st = qd_safetensors_open(path, &w, own, err);
    o.w = w;
    if (st || (st = read_gauss(&o, "mu", "sigma", &s->read, err)) ||
        (st = read_gauss(&o, "mu_s", "sigma_s", &s->read_spatial, err)))
        goto out;
    if (s->read.dim == 0) {
        st = qd_fail(err, QD_E_FORMAT, "there are no statistics of features: 'mu' and 'sigma' are not there");
        goto out;
    }
    s->dim = s->read.dim;
    s->spatial_dim = s->read_spatial.dim;
    if (w && ((st = read_rows(s, qd_weights_find(w, "features"), err)) ||
              (st = read_scores(s, qd_weights_find(w, "inception_scores"), err))))
        goto out;
    read_count(s, own);
    if (meta)
        st = qd_meta_copy(meta, own, err);
    if (st)
        goto out;
    *out = s;
    s = NULL;
out:
    qd_feature_stats_free(s);
    qd_weights_free(w);
    qd_meta_free(own);
    return st;
}

bool qd_feature_stats_sniff(const char *path, qd_budget *budget)
{
    qd_weights *w = NULL;
    qd_tensor mu = { 0 }, sigma = { 0 };
    origin o = { .budget = budget };
    if (qd_fs_is_dir(path))
        o.folder = path;
    else if (is_npz(path))
        o.npz = path;
    else if (qd_safetensors_open(path, &w, NULL, NULL))
        return false;
    o.w = w;
    const bool found = find_array(&o, "mu", &mu, NULL) == QD_OK && mu.data &&
                       find_array(&o, "sigma", &sigma, NULL) == QD_OK && sigma.data;
    qd_tensor_clear(&mu);
    qd_tensor_clear(&sigma);
    qd_weights_free(w);
    return found;
}
