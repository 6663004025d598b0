/* classify.c - a classifier as jobs use it: opened, asked about the pictures of a data set, its answers counted. */
#include <string.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"
#include "nn/nn.h"

const qd_param sv_classify_rows[] = {
    { .name = "limit",
      .type = QD_PARAM_INT,
      .summary = "Answers are counted on so many pictures, the first of the data set; 0 = on all.",
      .fallback = "0",
      .min = 0,
      .max = 10485760 },
    { .name = "batch",
      .type = QD_PARAM_INT,
      .summary = "How many pictures go through the network together.",
      .fallback = "64",
      .min = 1,
      .max = 1024 },
    { .name = NULL },
};

qd_status sv_classify_open(const char *path, const qd_run *run, sv_classify *out, qd_err *err)
{
    sv_classify c = { 0 };
    qd_role role;
    qd_status st = qd_model_open(path, qd_run_budget(run), &c.model, err);
    if (!st)
        st = qd_zoo_build(c.model, run, &c.graph, &role, err);
    if (!st)
        st = qd_classifier_of(c.graph, &c.net, err);
    if (st) {
        sv_classify_clear(&c);
        return st;
    }
    *out = c;
    return QD_OK;
}

void sv_classify_clear(sv_classify *c)
{
    qd_free(c->logits);
    qd_graph_free(c->graph);
    qd_model_free(c->model);
    memset(c, 0, sizeof *c);
}

int64_t sv_classify_count(const qd_params *p, const qd_dataset *d)
{
    const int64_t limit = qd_params_int(p, "limit");
    return limit > 0 && limit < d->count ? limit : d->count;
}

qd_status sv_classify_answer(sv_classify *c, const qd_dataset *d, const qd_params *p, const char *phase,
                             const qd_run *run, qd_err *err)
{
    const int64_t count = sv_classify_count(p, d);
    qd_pixel_scale scale;
    qd_status st = qd_classifier_fits(&c->net, d, true, err);
    if (!st)
        st = qd_pixel_scale_parse(qd_params_string(p, "mean"), qd_params_string(p, "std"), d->channels, &scale, err);
    if (st)
        return st;
    qd_free(c->logits);
    c->logits = qd_calloc((size_t)count, (size_t)c->net.classes * sizeof *c->logits);
    if (!c->logits)
        return qd_fail(err, QD_E_NOMEM, "no memory for the logits of %lld pictures", (long long)count);
    const qd_classify_job job = {
        .data = d, .count = count, .batch = qd_params_int(p, "batch"), .scale = &scale, .phase = phase
    };
    return qd_classify(&c->net, &job, run, c->logits, &c->seconds, err);
}

sv_accuracy sv_classify_accuracy(const sv_classify *c, const qd_dataset *d, int64_t count, sv_class_count *by_class)
{
    const int64_t classes = c->net.classes;
    int64_t right = 0, among_five = 0;
    for (int64_t k = 0; by_class && k < classes; k++)
        by_class[k] = (sv_class_count){ 0 };
    for (int64_t k = 0; k < count; k++) {
        const int label = qd_dataset_label(d, k);
        const int64_t rank = qd_rank(c->logits + k * classes, classes, label);
        right += rank == 0;
        among_five += rank < 5;
        if (by_class) {
            by_class[label].count++;
            by_class[label].right += rank == 0;
        }
    }
    return (sv_accuracy){ .right = right,
                          .top1 = (double)right / (double)count,
                          .top5 = (double)among_five / (double)count };
}

double sv_classify_agreement(const sv_classify *a, const sv_classify *b, int64_t count)
{
    const int64_t classes = a->net.classes;
    int64_t same = 0;
    for (int64_t k = 0; k < count; k++)
        same += qd_top1(a->logits + k * classes, classes) == qd_top1(b->logits + k * classes, classes);
    return (double)same / (double)count;
}
