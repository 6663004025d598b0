/* run.c - asking a run whether to stop and telling it what happens; a NULL run or callback is silence. */
#include "base/run.h"

#include <stdarg.h>
#include <stdio.h>

qd_status qd_run_check(const qd_run *run, qd_err *err)
{
    if (run && run->cancel && atomic_load_explicit(run->cancel, memory_order_relaxed))
        return qd_fail(err, QD_E_CANCELLED, "cancelled by request");
    return QD_OK;
}

void qd_run_progress(const qd_run *run, const char *phase, const char *item, int64_t done, int64_t total)
{
    if (run && run->progress)
        run->progress(run->ctx, phase, item, done, total);
}

void qd_run_metric(const qd_run *run, const char *name, int64_t step, double value)
{
    if (run && run->metric)
        run->metric(run->ctx, name, step, value);
}

void qd_run_layer(const qd_run *run, const char *name, int64_t step, int weight_bits, int activation_bits,
                  double sqnr_db, double lo, double hi)
{
    if (run && run->layer)
        run->layer(run->ctx, name, step, weight_bits, activation_bits, sqnr_db, lo, hi);
}

void qd_run_warn(const qd_run *run, const char *fmt, ...)
{
    if (!run || !run->warn)
        return;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    run->warn(run->ctx, text);
}

int qd_run_threads(const qd_run *run)
{
    return run && run->threads > 0 ? run->threads : 1;
}

qd_budget *qd_run_budget(const qd_run *run)
{
    return run ? run->budget : NULL;
}
