/* evaluate_fidelity_table.c - the figures of fidelity: means and extremes of pairs, curves of steps, report.json. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "jobs/fidelity_int.h"

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Mean, least and median of one figure of all pairs; identical pairs have no PSNR and count in none. */
static qd_status put_spread(const sv_fidelity *f, json_t *o, size_t offset, const char *name, int64_t *identical,
                            qd_err *err)
{
    char label[64];
    double *v = qd_calloc((size_t)f->pairs, sizeof *v), sum = 0.0;
    int64_t n = 0;
    if (!v)
        return qd_fail(err, QD_E_NOMEM, "no memory for %lld figures", (long long)f->pairs);
    for (int64_t k = 0; k < f->pairs; k++) {
        const double x = *(const double *)((const char *)&f->pair[k] + offset);
        if (isfinite(x)) {
            v[n++] = x;
            sum += x;
        }
    }
    if (identical)
        *identical = f->pairs - n;
    if (n > 0) {
        qsort(v, (size_t)n, sizeof *v, by_value);
        const double figure[] = { sum / (double)n, v[0], v[(n - 1) / 2], v[n - 1] };
        static const char *const which[] = { "mean", "min", "median", "max" };
        for (int k = 0; k < 4; k++) {
            snprintf(label, sizeof label, "%s_%s", name, which[k]);
            sv_put_figure(o, label, figure[k]);
        }
    }
    qd_free(v);
    return QD_OK;
}

static void moments(const sv_step_sums *s, int side, double *mean, double *std)
{
    *mean = s->sum[side] / (double)s->n;
    *std = sqrt(fmax(s->squares[side] / (double)s->n - *mean * *mean, 0.0));
}

/* The table of steps, and what stands out of it; each row is a point of the job's curves too. */
static json_t *steps_json(const sv_fidelity *f, json_t *figures)
{
    json_t *list = json_array();
    double mean_drift = 0.0, std_drift = 0.0;
    qd_sqnr all = { 0 };
    for (int k = 0; k < f->side[0].options.steps; k++) {
        const sv_step_sums *s = &f->steps[k];
        double mean[2], std[2];
        for (int side = 0; side < 2; side++)
            moments(s, side, &mean[side], &std[side]);
        const double eps_db = qd_sqnr_value_db(&s->eps), x_db = qd_sqnr_value_db(&s->x);
        const double cosine = s->xx > 0.0 && s->yy > 0.0 ? s->xy / sqrt(s->xx) / sqrt(s->yy) : NAN;
        json_array_append_new(list, json_pack("{s:i, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "step", k, "t", s->t,
                                              "eps_sqnr_db", sv_json_number(eps_db), "x_sqnr_db", sv_json_number(x_db),
                                              "x_cosine", sv_json_number(cosine), "mean_float", sv_json_number(mean[0]),
                                              "mean_quantized", sv_json_number(mean[1]), "std_float",
                                              sv_json_number(std[0]), "std_quantized", sv_json_number(std[1])));
        qd_run_metric(&f->t->run, "eps_sqnr_db", s->t, eps_db);
        qd_run_metric(&f->t->run, "x_sqnr_db", s->t, x_db);
        qd_run_metric(&f->t->run, "mean_drift", s->t, mean[1] - mean[0]);
        qd_run_metric(&f->t->run, "std_drift", s->t, std[1] - std[0]);
        all.signal += s->eps.signal;
        all.noise += s->eps.noise;
        mean_drift = fmax(mean_drift, fabs(mean[1] - mean[0]));
        std_drift = fmax(std_drift, fabs(std[1] - std[0]));
    }
    sv_put_figure(figures, "eps_sqnr_db", qd_sqnr_value_db(&all));
    sv_put_figure(figures, "mean_drift_max", mean_drift);
    sv_put_figure(figures, "std_drift_max", std_drift);
    return list;
}

static json_t *pairs_json(const sv_fidelity *f)
{
    json_t *list = json_array();
    for (int64_t k = 0; k < f->pairs; k++) {
        const sv_pair_figures *one = &f->pair[k];
        json_t *o = json_pack("{s:I, s:o}", "sample", (json_int_t)k, "psnr_db", sv_json_number(one->psnr_db));
        sv_put_figure(o, "ssim", one->ssim);
        sv_put_figure(o, "mse", one->mse);
        sv_put_figure(o, "cosine", one->cosine);
        sv_put_figure(o, "feature_distance", one->feature_distance);
        sv_put_figure(o, "feature_cosine", one->feature_cosine);
        json_array_append_new(list, o);
    }
    return list;
}

qd_status sv_fidelity_figures(const sv_fidelity *f, json_t **out, qd_err *err)
{
    static const struct {
        const char *name;
        size_t offset;
    } columns[] = { { "psnr_db", offsetof(sv_pair_figures, psnr_db) },
                    { "ssim", offsetof(sv_pair_figures, ssim) },
                    { "mse", offsetof(sv_pair_figures, mse) },
                    { "cosine", offsetof(sv_pair_figures, cosine) },
                    { "feature_distance", offsetof(sv_pair_figures, feature_distance) },
                    { "feature_cosine", offsetof(sv_pair_figures, feature_cosine) } };
    const sv_drawer *a = &f->side[0], *b = &f->side[1];
    int64_t identical = 0;
    json_t *o = json_pack("{s:s, s:I}", "method", "fidelity", "pairs", (json_int_t)f->pairs), *worst = json_array();
    qd_status st = QD_OK;
    for (size_t k = 0; k < sizeof columns / sizeof columns[0] && !st; k++)
        st = put_spread(f, o, columns[k].offset, columns[k].name, k == 0 ? &identical : NULL, err);
    json_object_set_new(o, "pairs_identical", json_integer(identical));
    for (int k = 0; k < f->n_worst; k++)
        json_array_append_new(worst, json_integer(f->worst[k]));
    json_object_set_new(o, "worst", worst);
    const double float_s = (a->seconds - f->compared_s) / (double)a->drawn, quantized_s = b->seconds / (double)b->drawn;
    sv_put_figure(o, "seconds_per_image_float", float_s);
    sv_put_figure(o, "seconds_per_image_quantized", quantized_s);
    sv_put_figure(o, "speedup", float_s / quantized_s);
    json_object_set_new(o, "seed", json_integer((json_int_t)f->t->run.seed));
    if (f->lens->features)
        json_object_set_new(o, "features", sv_lens_json(f->lens, f->t, f->network));
    json_t *drawn = sv_drawer_json(b);
    json_object_del(drawn, "seconds_per_image");
    json_object_set_new(o, "drawn", drawn);
    if (st)
        json_decref(o);
    else
        *out = o;
    return st;
}

qd_status sv_fidelity_report(const sv_fidelity *f, json_t *figures, qd_err *err)
{
    json_t *steps = steps_json(f, figures), *report = json_copy(figures);
    json_object_set_new(report, "steps", steps);
    json_object_set_new(report, "by_pair", pairs_json(f));
    const qd_status st = sv_evaluate_report(f->t, report, err);
    json_decref(report);
    return st;
}
