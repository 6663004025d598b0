/* optim.c - rules that turn a gradient into a step, learning rates over time, and what is done to gradients and weights beside. */
#include <math.h>
#include <string.h>

#include "nn/nn.h"

/* v = momentum v + g, g with the decay in it; w -= lr v, or lr (g + momentum v) with Nesterov: as PyTorch has it. */
static void sgd_apply(const qd_optim_options *o, int64_t step, double lr, float *w, const float *grad,
                      float *const *slot, int64_t n)
{
    const float momentum = (float)o->momentum, decay = (float)o->weight_decay, rate = (float)lr;
    float *v = slot[0];
    for (int64_t i = 0; i < n; i++) {
        const float g = grad[i] + decay * w[i];
        v[i] = momentum * v[i] + g;
        w[i] -= rate * (o->nesterov ? g + momentum * v[i] : v[i]);
    }
}

const qd_optim qd_optim_sgd = {
    .name = "sgd",
    .summary = "Gradient descent with momentum.",
    .defaults = { .rule = &qd_optim_sgd, .momentum = 0.9 },
    .slots = 1,
    .apply = sgd_apply,
};

/* Kingma and Ba 2015, algorithm 1; decoupled: Loshchilov and Hutter 2019. */
static void adam_step(const qd_optim_options *o, int64_t step, double lr, float *w, const float *grad,
                      float *const *slot, int64_t n, bool decoupled)
{
    const double correct1 = 1.0 - pow(o->beta1, (double)step), correct2 = 1.0 - pow(o->beta2, (double)step);
    const float b1 = (float)o->beta1, b2 = (float)o->beta2, eps = (float)o->eps;
    const float one1 = (float)(1.0 - o->beta1), one2 = (float)(1.0 - o->beta2);
    const float rate = (float)(lr / correct1), root = (float)(1.0 / sqrt(correct2));
    const float shrink = decoupled ? (float)(1.0 - lr * o->weight_decay) : 1.0f;
    const float decay = decoupled ? 0.0f : (float)o->weight_decay;
    float *m = slot[0], *v = slot[1];
    for (int64_t i = 0; i < n; i++) {
        const float at = w[i] * shrink, g = grad[i] + decay * at;
        m[i] = b1 * m[i] + one1 * g;
        v[i] = b2 * v[i] + one2 * g * g;
        w[i] = at - rate * m[i] / (sqrtf(v[i]) * root + eps);
    }
}

static void adam_apply(const qd_optim_options *o, int64_t step, double lr, float *w, const float *grad,
                       float *const *slot, int64_t n)
{
    adam_step(o, step, lr, w, grad, slot, n, false);
}

static void adamw_apply(const qd_optim_options *o, int64_t step, double lr, float *w, const float *grad,
                        float *const *slot, int64_t n)
{
    adam_step(o, step, lr, w, grad, slot, n, true);
}

const qd_optim qd_optim_adam = {
    .name = "adam",
    .summary = "Adam; decay is added to the gradient.",
    .defaults = { .rule = &qd_optim_adam, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8 },
    .slots = 2,
    .apply = adam_apply,
};

const qd_optim qd_optim_adamw = {
    .name = "adamw",
    .summary = "Adam with decoupled decay.",
    .defaults = { .rule = &qd_optim_adamw, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01 },
    .slots = 2,
    .apply = adamw_apply,
};

static double length_of(const float *x, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sqrt(sum);
}

/* colt.md 7.1: trust eta |w| / (|g| + decay |w|), 1 when a length vanishes; the rate goes into the buffer. */
static void lars_apply(const qd_optim_options *o, int64_t step, double lr, float *w, const float *grad,
                       float *const *slot, int64_t n)
{
    const double of_w = length_of(w, n), of_g = length_of(grad, n);
    const double trust = of_w < 1e-15 || of_g < 1e-15 ? 1.0 : o->trust * of_w / (of_g + o->weight_decay * of_w);
    const float rate = (float)(lr * trust), momentum = (float)o->momentum, decay = (float)o->weight_decay;
    float *v = slot[0];
    for (int64_t i = 0; i < n; i++) {
        v[i] = momentum * v[i] + rate * (grad[i] + decay * w[i]);
        w[i] -= v[i];
    }
}

const qd_optim qd_optim_lars = {
    .name = "lars",
    .summary = "Momentum with a rate for each tensor in proportion to its length.",
    .defaults = { .rule = &qd_optim_lars, .momentum = 0.9, .weight_decay = 1e-6, .trust = 1e-3 },
    .slots = 1,
    .by_tensor = true,
    .apply = lars_apply,
};

const qd_optim *const qd_optims[] = { &qd_optim_sgd, &qd_optim_adam, &qd_optim_adamw, &qd_optim_lars, NULL };

const qd_optim *qd_optim_find(const char *name)
{
    for (int k = 0; qd_optims[k]; k++)
        if (strcmp(qd_optims[k]->name, name) == 0)
            return qd_optims[k];
    return NULL;
}

double qd_lr_at(const qd_lr_schedule *s, int64_t step)
{
    double lr = s->lr;
    if (step < s->warmup)
        return s->lr * (double)step / (double)s->warmup;
    switch (s->shape) {
    case QD_LR_CONSTANT:
        break;
    case QD_LR_STEPS:
        for (int k = 0; k < s->n_at; k++)
            if (step >= s->at[k])
                lr *= s->factor;
        break;
    case QD_LR_COSINE: {
        const double whole = (double)(s->total - s->warmup);
        const double done = whole > 0.0 ? fmin(1.0, (double)(step - s->warmup) / whole) : 1.0;
        lr = s->lr_min + 0.5 * (s->lr - s->lr_min) * (1.0 + cos(M_PI * done));
        break;
    }
    }
    return lr;
}

double qd_clip_norm(float *grad, int64_t n, double most)
{
    const double length = length_of(grad, n);
    if (length > most) {
        const float scale = (float)(most / length);
        for (int64_t i = 0; i < n; i++)
            grad[i] *= scale;
    }
    return length;
}

void qd_ema_update(float *average, const float *w, int64_t n, double decay)
{
    const float keep = (float)decay, take = (float)(1.0 - decay);
    for (int64_t i = 0; i < n; i++)
        average[i] = keep * average[i] + take * w[i];
}
