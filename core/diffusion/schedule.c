/* schedule.c - noise schedules and time step grids (diffusion_models.md 7). */
#include <math.h>
#include <string.h>

#include "diffusion/diffusion.h"

#define MAX_TRAIN_STEPS 10000

void qd_schedule_free(qd_schedule *s)
{
    if (!s)
        return;
    qd_free(s->alpha_bar);
    qd_free(s);
}

static qd_status schedule_new(int train_steps, qd_schedule **out, qd_err *err)
{
    qd_schedule *s = qd_calloc(1, sizeof(*s));
    if (s)
        s->alpha_bar = qd_calloc((size_t)train_steps, sizeof(*s->alpha_bar));
    if (!s || !s->alpha_bar) {
        qd_schedule_free(s);
        return qd_fail(err, QD_E_NOMEM, "out of memory for a schedule of %d steps", train_steps);
    }
    s->train_steps = train_steps;
    s->prediction = QD_PREDICT_EPSILON;
    s->variance = QD_VAR_FIXED_SMALL;
    s->clip_sample = true;
    s->clip_range = 1.0;
    s->set_alpha_to_one = true;
    s->spacing = QD_SPACING_LEADING;
    *out = s;
    return QD_OK;
}

/* betas -> cumprod(1 - beta), in place. */
static void accumulate(double *a, int n)
{
    double product = 1.0;
    for (int k = 0; k < n; k++) {
        product *= 1.0 - a[k];
        a[k] = product;
    }
}

static double cosine_level(double u)
{
    const double c = cos((u + 0.008) / 1.008 * M_PI / 2.0);
    return c * c;
}

qd_status qd_schedule_make(const char *beta_schedule, double beta_start, double beta_end, int train_steps,
                           qd_schedule **out, qd_err *err)
{
    const bool linear = strcmp(beta_schedule, "linear") == 0, scaled = strcmp(beta_schedule, "scaled_linear") == 0;
    if (!linear && !scaled && strcmp(beta_schedule, "squaredcos_cap_v2") != 0)
        return qd_fail(err, QD_E_UNSUPPORTED,
                       "beta_schedule '%s' is not supported; known: linear, scaled_linear, squaredcos_cap_v2",
                       beta_schedule);
    if (train_steps < 1 || train_steps > MAX_TRAIN_STEPS)
        return qd_fail(err, QD_E_INVALID, "num_train_timesteps must be 1..%d, got %d", MAX_TRAIN_STEPS, train_steps);
    if ((linear || scaled) && !(beta_start > 0.0 && beta_start <= beta_end && beta_end < 1.0))
        return qd_fail(err, QD_E_INVALID, "beta_start %g and beta_end %g must satisfy 0 < beta_start <= beta_end < 1",
                       beta_start, beta_end);

    qd_schedule *s = NULL;
    qd_status st = schedule_new(train_steps, &s, err);
    if (st)
        return st;
    for (int k = 0; k < train_steps; k++) {
        const double u = train_steps > 1 ? (double)k / (train_steps - 1) : 0.0;
        if (linear) {
            s->alpha_bar[k] = beta_start + (beta_end - beta_start) * u;
        } else if (scaled) {
            const double root = sqrt(beta_start) + (sqrt(beta_end) - sqrt(beta_start)) * u;
            s->alpha_bar[k] = root * root;
        } else {
            const double ratio = cosine_level((k + 1.0) / train_steps) / cosine_level((double)k / train_steps);
            s->alpha_bar[k] = fmin(1.0 - ratio, 0.999);
        }
    }
    accumulate(s->alpha_bar, train_steps);
    *out = s;
    return QD_OK;
}

static qd_status read_trained(const qd_config *c, int64_t train_steps, qd_schedule **out, qd_err *err)
{
    qd_schedule *s = NULL;
    qd_status st = schedule_new(MAX_TRAIN_STEPS, &s, err);
    if (st)
        return st;
    int n = 0;
    st = qd_config_numbers(c, "trained_betas", s->alpha_bar, MAX_TRAIN_STEPS, &n, err);
    if (st)
        goto out;
    if (n < 1 || n != train_steps) {
        st = qd_fail(err, QD_E_INVALID, "scheduler key 'trained_betas' has %d entries, 'num_train_timesteps' is %lld",
                     n, (long long)train_steps);
        goto out;
    }
    for (int k = 0; k < n; k++)
        if (!(s->alpha_bar[k] > 0.0 && s->alpha_bar[k] < 1.0)) {
            st = qd_fail(err, QD_E_INVALID, "scheduler key 'trained_betas' holds %g at %d; betas lie between 0 and 1",
                         s->alpha_bar[k], k);
            goto out;
        }
    s->train_steps = n;
    accumulate(s->alpha_bar, n);
    *out = s;
    s = NULL;
out:
    qd_schedule_free(s);
    return st;
}

static qd_status read_betas(const qd_config *c, qd_schedule **out, qd_err *err)
{
    const char *name = "linear";
    double start = 1e-4, end = 0.02;
    int64_t steps = 1000;
    qd_status st = qd_config_int(c, "num_train_timesteps", 1, MAX_TRAIN_STEPS, &steps, err);
    if (!st)
        st = qd_config_string(c, "beta_schedule", &name, err);
    if (!st)
        st = qd_config_number(c, "beta_start", &start, err);
    if (!st)
        st = qd_config_number(c, "beta_end", &end, err);
    if (st)
        return st;
    if (qd_config_has(c, "trained_betas"))
        return read_trained(c, steps, out, err);
    return qd_schedule_make(name, start, end, (int)steps, out, err);
}

/* One of `names`, its value from `values`; unknown ones are refused by key and value. */
static qd_status read_choice(const qd_config *c, const char *key, const char *const *names, const int *values, int *out,
                             qd_err *err)
{
    const char *text = NULL;
    qd_status st = qd_config_string(c, key, &text, err);
    if (st || !text)
        return st;
    for (int k = 0; names[k]; k++)
        if (strcmp(names[k], text) == 0) {
            *out = values[k];
            return QD_OK;
        }
    return qd_fail(err, QD_E_UNSUPPORTED, "scheduler key '%s' is '%s', which is not supported", key, text);
}

static qd_status read_habits(const qd_config *c, qd_schedule *s, qd_err *err)
{
    static const char *const predictions[] = { "epsilon", "v_prediction", "sample", NULL };
    static const int prediction_values[] = { QD_PREDICT_EPSILON, QD_PREDICT_V, QD_PREDICT_SAMPLE };
    /* The _log form of fixed_small is the same number by another road. */
    static const char *const variances[] = { "fixed_small", "fixed_small_log", "fixed_large", NULL };
    static const int variance_values[] = { QD_VAR_FIXED_SMALL, QD_VAR_FIXED_SMALL, QD_VAR_FIXED_LARGE };
    static const char *const spacings[] = { "leading", "trailing", "linspace", NULL };
    static const int spacing_values[] = { QD_SPACING_LEADING, QD_SPACING_TRAILING, QD_SPACING_LINSPACE };
    static const char *const refused[] = { "thresholding", "rescale_betas_zero_snr", NULL };

    /* Classes without a key for it have the habit built in. */
    const char *class_name = "DDPMScheduler";
    int64_t offset = 0;
    qd_status st = qd_config_string(c, "_class_name", &class_name, err);
    if (st)
        return st;
    const bool pndm = strcmp(class_name, "PNDMScheduler") == 0;
    const bool dpm = strncmp(class_name, "DPMSolver", 9) == 0;
    s->clip_sample = !pndm && !dpm;
    s->set_alpha_to_one = !pndm;
    int prediction = s->prediction, variance = s->variance;
    int spacing = dpm ? QD_SPACING_LINSPACE : QD_SPACING_LEADING;

    st = read_choice(c, "prediction_type", predictions, prediction_values, &prediction, err);
    /* DPMSolver's variance_type speaks of networks with two outputs; null there, and so absent. */
    if (!st)
        st = read_choice(c, "variance_type", variances, variance_values, &variance, err);
    if (!st)
        st = read_choice(c, "timestep_spacing", spacings, spacing_values, &spacing, err);
    if (!st)
        st = qd_config_bool(c, "clip_sample", &s->clip_sample, err);
    if (!st)
        st = qd_config_number(c, "clip_sample_range", &s->clip_range, err);
    if (!st)
        st = qd_config_int(c, "steps_offset", 0, s->train_steps, &offset, err);
    if (!st)
        st = qd_config_bool(c, "set_alpha_to_one", &s->set_alpha_to_one, err);
    if (st)
        return st;
    if (!(s->clip_range > 0.0 && s->clip_range <= 1e6))
        return qd_fail(err, QD_E_INVALID, "scheduler key 'clip_sample_range' is %g; it must be above 0 and at most 1e6",
                       s->clip_range);
    for (int k = 0; refused[k]; k++) {
        bool on = false;
        st = qd_config_bool(c, refused[k], &on, err);
        if (st)
            return st;
        if (on)
            return qd_fail(err, QD_E_UNSUPPORTED, "scheduler key '%s' is true, which is not supported", refused[k]);
    }
    s->prediction = (qd_prediction)prediction;
    s->variance = (qd_variance)variance;
    s->spacing = (qd_spacing)spacing;
    s->steps_offset = (int)offset;
    return QD_OK;
}

qd_status qd_schedule_open(const qd_config *config, qd_schedule **out, qd_err *err)
{
    if (!config)
        return qd_schedule_make("linear", 1e-4, 0.02, 1000, out, err);
    qd_schedule *s = NULL;
    qd_status st = read_betas(config, &s, err);
    if (st)
        return st;
    st = read_habits(config, s, err);
    if (st) {
        qd_schedule_free(s);
        return st;
    }
    *out = s;
    return QD_OK;
}

qd_status qd_timesteps(const qd_schedule *s, qd_spacing spacing, int steps, int *t, qd_err *err)
{
    const int T = s->train_steps;
    if (steps < 1 || steps > T)
        return qd_fail(err, QD_E_INVALID, "steps must be 1..%d (the model's training steps), got %d", T, steps);
    const int stride = T / steps;
    if (spacing == QD_SPACING_LEADING && (steps - 1) * stride + s->steps_offset >= T)
        return qd_fail(err, QD_E_INVALID,
                       "%d steps with steps_offset %d would start at time step %d, past the last, %d", steps,
                       s->steps_offset, (steps - 1) * stride + s->steps_offset, T - 1);
    for (int k = 0; k < steps; k++) {
        const int back = steps - 1 - k; /* place in the ascending grid */
        const double u = steps > 1 ? (double)back / (steps - 1) : 0.0;
        switch (spacing) {
        case QD_SPACING_LEADING:
            t[k] = back * stride + s->steps_offset;
            break;
        case QD_SPACING_TRAILING:
            t[k] = (int)nearbyint(T - k * ((double)T / steps)) - 1;
            break;
        case QD_SPACING_LINSPACE:
            t[k] = (int)nearbyint(u * (T - 1));
            break;
        case QD_SPACING_QUAD: /* a hair up, or the last entry may truncate to one less */
            t[k] = (int)(u * u * 0.8 * T + 1e-9 * T);
            break;
        }
    }
    return QD_OK;
}
