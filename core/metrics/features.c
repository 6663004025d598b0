/* features.c - pictures through a network that the user names: the rules of preprocessing, and running it. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/par.h"
#include "metrics/metrics_int.h"
#include "plan/plan.h"

enum { BATCH = 64, SPATIAL_CHANNELS = 7, MAX_OUTPUTS = 3 };

struct qd_features {
    qd_feature_view view; /* its graph is gone, what it said of it stays */
    qd_plan *plan;
    qd_pixel_scale scale;
    qd_pixel_rule pixels;
    qd_resize_rule resize;
    int64_t batch, dim, plane; /* plane: places that features are averaged over */
    int64_t spatial_channels, spatial_all, spatial_plane, classes;
    qd_tensor x;                   // [batch, C, H, W]
    qd_tensor result[MAX_OUTPUTS]; /* as view.graph gives them */
    int n_results;
};

void qd_features_free(qd_features *f)
{
    if (!f)
        return;
    qd_plan_free(f->plan);
    qd_feature_view_clear(&f->view);
    qd_tensor_clear(&f->x);
    for (int k = 0; k < MAX_OUTPUTS; k++)
        qd_tensor_clear(&f->result[k]);
    qd_free(f);
}

qd_feature_sizes qd_features_sizes(const qd_features *f)
{
    return (qd_feature_sizes){ .name = f->view.name,
                               .channels = f->view.channels,
                               .height = f->view.height,
                               .width = f->view.width,
                               .dim = f->dim,
                               .spatial_dim = f->spatial_channels * f->spatial_plane,
                               .classes = f->classes,
                               .batch = f->batch };
}

/* What the outputs are: [N, D] or [N, C, H, W] features, [N, C, H, W] spatial, [N, K] answers. */
static qd_status read_shapes(qd_features *f, const qd_shape *shape, int64_t spatial_channels, qd_err *err)
{
    char text[96];
    const qd_shape *s = &shape[0];
    if ((s->rank != 2 && s->rank != 4) || s->dim[0] != f->batch)
        return qd_fail(err, QD_E_INVALID, "features: '%.100s' is %s; a value [N, D] or [N, C, H, W] is needed",
                       f->view.name, qd_shape_text(s, text, sizeof text));
    f->dim = s->dim[1];
    f->plane = s->rank == 4 ? s->dim[2] * s->dim[3] : 1;
    if (f->view.at_spatial >= 0) {
        s = &shape[f->view.at_spatial];
        if (s->rank != 4 || s->dim[0] != f->batch)
            return qd_fail(err, QD_E_INVALID, "spatial: the value is %s; [N, C, H, W] is needed",
                           qd_shape_text(s, text, sizeof text));
        if (spatial_channels > s->dim[1])
            return qd_fail(err, QD_E_INVALID, "spatial: %lld channels are asked for, the value is %s",
                           (long long)spatial_channels, qd_shape_text(s, text, sizeof text));
        f->spatial_channels = spatial_channels;
        f->spatial_all = s->dim[1];
        f->spatial_plane = s->dim[2] * s->dim[3];
    }
    if (f->view.at_answers >= 0)
        f->classes = shape[f->view.at_answers].dim[1];
    return QD_OK;
}

static qd_status compile(qd_features *f, const qd_feature_options *o, const qd_run *run, qd_err *err)
{
    const qd_graph *g = f->view.graph;
    const qd_shape input = QD_SHAPE(f->batch, f->view.channels, f->view.height, f->view.width);
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(g), sizeof *shapes), out[MAX_OUTPUTS];
    qd_status st = shapes ? qd_graph_shapes(g, &input, 1, shapes, err)
                          : qd_fail(err, QD_E_NOMEM, "no memory for the shapes of %d nodes", qd_graph_size(g));
    f->n_results = qd_graph_outputs(g);
    for (int k = 0; k < f->n_results && !st; k++)
        out[k] = shapes[qd_graph_output_at(g, k)];
    qd_free(shapes);
    if (!st)
        st = read_shapes(f, out, o->spatial_channels > 0 ? o->spatial_channels : SPATIAL_CHANNELS, err);
    if (!st)
        st = qd_tensor_init(&f->x, QD_F32, &input, qd_run_budget(run), err);
    for (int k = 0; k < f->n_results && !st; k++)
        st = qd_tensor_init(&f->result[k], QD_F32, &out[k], qd_run_budget(run), err);
    if (st)
        return st;
    const qd_plan_options po = {
        .input_shapes = &input, .n_inputs = 1, .threads = qd_run_threads(run), .budget = qd_run_budget(run)
    };
    return qd_plan_compile(g, &po, &f->plan, err);
}

qd_status qd_features_new(const qd_graph *g, const qd_feature_options *o, const qd_run *run, qd_features **out,
                          qd_err *err)
{
    qd_features *f = qd_calloc(1, sizeof *f);
    if (!f)
        return qd_fail(err, QD_E_NOMEM, "no memory for a feature network");
    f->pixels = o->pixels;
    f->resize = o->resize;
    f->batch = o->batch > 0 ? o->batch : BATCH;
    qd_status st = qd_feature_view_open(g, o->features, o->spatial, &f->view, err);
    if (!st)
        st = qd_pixel_scale_parse(o->mean ? o->mean : "0", o->std ? o->std : "1", f->view.channels, &f->scale, err);
    if (!st)
        st = compile(f, o, run, err);
    if (st) {
        qd_features_free(f);
        return st;
    }
    qd_graph_free(f->view.graph); /* the plan has what it needs */
    f->view.graph = NULL;
    *out = f;
    return QD_OK;
}

/* --- preprocessing --- */

/* Where pictures come from: samples, or a data set. */
typedef struct source {
    qd_features *f;
    const float *x; // [n, channels, height, width]; NULL = the set
    const qd_dataset *d;
    const int64_t *image;
    int64_t first;
    int channels, height, width;
} source;

static float unit_of(qd_pixel_rule rule, float x)
{
    switch (rule) {
    case QD_PIXEL_ROUND:
        return nearbyintf(255.0f * fminf(fmaxf(x / 2 + 0.5f, 0.0f), 1.0f)) / 255.0f;
    case QD_PIXEL_TRUNCATE:
        return floorf(fminf(fmaxf(127.5f * (x + 1.0f), 0.0f), 255.0f)) / 255.0f;
    case QD_PIXEL_CLIP:
        return fminf(fmaxf(x / 2 + 0.5f, 0.0f), 1.0f);
    case QD_PIXEL_FLOAT:
        break;
    }
    return x / 2 + 0.5f;
}

/* One channel of a picture, wherever its pixels lie. */
typedef struct channel {
    const uint8_t *codes; /* NULL = floats */
    const float *x;
    int64_t row, column; // from pixel to pixel
    qd_pixel_rule rule;
} channel;

/* A pixel as a number, 0..1 for codes. */
static inline float unit_at(const channel *c, int64_t i, int64_t j)
{
    const int64_t at = i * c->row + j * c->column;
    return c->codes ? (float)c->codes[at] / 255.0f : unit_of(c->rule, c->x[at]);
}

/* Channel c of picture k; grey is every channel. */
static channel channel_of(const source *s, int64_t k, int c)
{
    channel out = { .rule = s->f->pixels };
    c = s->channels == 1 ? 0 : c;
    if (s->x) {
        out.x = s->x + (k * s->channels + c) * s->height * s->width;
        out.row = s->width;
        out.column = 1;
    } else {
        const qd_pixels p = qd_dataset_picture(s->d, s->image ? s->image[k] : s->first + k);
        out.codes = p.data + c * p.plane;
        out.row = p.row;
        out.column = p.column;
    }
    return out;
}

/* One axis of a bilinear resize: neighbours and how much of the second. As torch computes them, in float. */
typedef struct tap {
    int lo, hi;
    float share;
} tap;

static tap tap_of(qd_resize_rule rule, int k, int from, int to)
{
    const float scale = (float)from / (float)to;
    const float at = rule == QD_RESIZE_CORNER ? (float)k * scale : fmaxf(((float)k + 0.5f) * scale - 0.5f, 0.0f);
    tap t = { .lo = (int)at };
    t.lo = t.lo < from - 1 ? t.lo : from - 1;
    t.hi = t.lo < from - 1 ? t.lo + 1 : t.lo;
    t.share = at - (float)t.lo;
    return t;
}

static void resize_channel(float *dst, const source *s, const channel *c)
{
    const qd_feature_view *v = &s->f->view;
    for (int i = 0; i < v->height; i++) {
        const tap row = tap_of(s->f->resize, i, s->height, v->height);
        for (int j = 0; j < v->width; j++) {
            const tap col = tap_of(s->f->resize, j, s->width, v->width);
            const float a = (1.0f - col.share) * unit_at(c, row.lo, col.lo) + col.share * unit_at(c, row.lo, col.hi);
            const float b = (1.0f - col.share) * unit_at(c, row.hi, col.lo) + col.share * unit_at(c, row.hi, col.hi);
            *dst++ = (1.0f - row.share) * a + row.share * b;
        }
    }
}

/* Picture k of a batch, ready for the network. */
static void prepare(void *ctx, int64_t k)
{
    const source *s = ctx;
    const qd_feature_view *v = &s->f->view;
    const int64_t wanted = (int64_t)v->height * v->width;
    float *dst = qd_f32(&s->f->x) + k * v->channels * wanted;
    for (int c = 0; c < v->channels; c++, dst += wanted) {
        const channel from = channel_of(s, k, c);
        if (s->height != v->height || s->width != v->width)
            resize_channel(dst, s, &from);
        else
            for (int64_t i = 0; i < wanted; i++)
                dst[i] = unit_at(&from, i / v->width, i % v->width);
        for (int64_t i = 0; i < wanted; i++)
            dst[i] = (dst[i] - s->f->scale.mean[c]) / s->f->scale.std[c];
    }
}

static qd_status check_source(const source *s, int64_t n, qd_err *err)
{
    const qd_feature_view *v = &s->f->view;
    const int64_t size = (int64_t)s->channels * s->height * s->width;
    if (s->channels != v->channels && s->channels != 1)
        return qd_fail(err, QD_E_INVALID, "the pictures have %d channels, the feature network takes %d", s->channels,
                       v->channels);
    if (s->f->resize == QD_RESIZE_NONE && (s->height != v->height || s->width != v->width))
        return qd_fail(err, QD_E_INVALID,
                       "the pictures are %d x %d, the feature network takes %d x %d, and they are not to be resized",
                       s->height, s->width, v->height, v->width);
    for (int64_t k = 0; s->x && k < n * size; k++) /* clipping would make a colour of them */
        if (!isfinite(s->x[k]))
            return qd_fail(err, QD_E_NUMERIC, "pixel %lld of sample %lld is %g", (long long)(k % size),
                           (long long)(k / size), (double)s->x[k]);
    return QD_OK;
}

/* --- running --- */

static void take_features(const qd_features *f, int64_t n, float *features)
{
    const float *v = qd_f32(&f->result[0]);
    for (int64_t k = 0; k < n * f->dim; k++) {
        double sum = 0.0;
        for (int64_t i = 0; i < f->plane; i++)
            sum += *v++;
        features[k] = (float)(sum / (double)f->plane);
    }
}

static void take_spatial(const qd_features *f, int64_t n, float *spatial)
{
    const float *v = qd_f32(&f->result[f->view.at_spatial]);
    const int64_t taken = f->spatial_channels * f->spatial_plane;
    for (int64_t k = 0; k < n; k++)
        memcpy(spatial + k * taken, v + k * f->spatial_all * f->spatial_plane, (size_t)taken * sizeof *v);
}

static void take_probabilities(const qd_features *f, int64_t n, float *dst)
{
    const float *v = qd_f32(&f->result[f->view.at_answers]);
    for (int64_t k = 0; k < n; k++, v += f->classes, dst += f->classes) {
        double sum = 0.0, most = -INFINITY;
        for (int64_t c = 0; c < f->classes; c++)
            most = fmax(most, v[c]);
        for (int64_t c = 0; c < f->classes; c++)
            sum += f->view.softmaxed ? v[c] : exp(v[c] - most);
        for (int64_t c = 0; c < f->classes; c++)
            dst[c] = (float)((f->view.softmaxed ? v[c] : exp(v[c] - most)) / sum);
    }
}

static qd_status run_source(qd_features *f, source s, int64_t n, const qd_run *run, float *features, float *spatial,
                            float *probabilities, qd_err *err)
{
    const void *in[1] = { f->x.data };
    void *out[MAX_OUTPUTS] = { NULL };
    s.f = f;
    qd_status st = check_source(&s, n, err);
    for (int k = 0; k < f->n_results; k++)
        out[k] = f->result[k].data;
    while (n > 0 && !st) {
        const int64_t part = n < f->batch ? n : f->batch;
        /* What a short last batch leaves of the one before it runs along, and nobody looks at it. */
        qd_par_for(qd_run_threads(run), part, prepare, &s);
        st = qd_run_check(run, err);
        if (!st)
            st = qd_plan_run(f->plan, run, in, out, err);
        if (st)
            break;
        if (features) {
            take_features(f, part, features);
            features += part * f->dim;
        }
        if (spatial && f->view.at_spatial >= 0) {
            take_spatial(f, part, spatial);
            spatial += part * f->spatial_channels * f->spatial_plane;
        }
        if (probabilities && f->view.at_answers >= 0) {
            take_probabilities(f, part, probabilities);
            probabilities += part * f->classes;
        }
        if (s.x)
            s.x += part * s.channels * s.height * s.width;
        if (s.image)
            s.image += part;
        s.first += part;
        n -= part;
    }
    return st;
}

qd_status qd_features_of_samples(qd_features *f, const float *x, int64_t n, int channels, int height, int width,
                                 const qd_run *run, float *features, float *spatial, float *probabilities, qd_err *err)
{
    const source s = { .x = x, .channels = channels, .height = height, .width = width };
    return run_source(f, s, n, run, features, spatial, probabilities, err);
}

qd_status qd_features_of_pictures(qd_features *f, const qd_dataset *d, const int64_t *image, int64_t first, int64_t n,
                                  const qd_run *run, float *features, float *spatial, float *probabilities, qd_err *err)
{
    const source s = {
        .d = d, .image = image, .first = first, .channels = d->channels, .height = d->height, .width = d->width
    };
    return run_source(f, s, n, run, features, spatial, probabilities, err);
}
