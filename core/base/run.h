/* run.h - what long work needs from its caller: progress, cancel, seed, threads, budget, events. */
#ifndef QD_BASE_RUN_H
#define QD_BASE_RUN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"

/* Zero-initialised it is a valid quiet run: no progress, no cancel, seed 0, one thread, no ceiling. Callbacks come on the
 * thread that does the work and must not block for long. */
typedef struct qd_run {
    void *ctx;
    /* Progress of a phase, e.g. ("calibrate", "down_blocks.1.resnets.0.conv2", 31, 118). item may be NULL. */
    void (*progress)(void *ctx, const char *phase, const char *item, int64_t done, int64_t total);
    /* One point of a curve. */
    void (*metric)(void *ctx, const char *name, int64_t step, double value);
    /* One layer's report row. Unknown figures are NAN; bits 0 = float. step -1 = over all steps. */
    void (*layer)(void *ctx, const char *name, int64_t step, int weight_bits, int activation_bits, double sqnr_db,
                  double lo, double hi);
    void (*warn)(void *ctx, const char *text);
    const atomic_bool *cancel; /* NULL = cannot be cancelled */
    uint64_t seed;
    int threads;       /* 0 counts as 1 */
    qd_budget *budget; /* NULL = no ceiling */
} qd_run;

/* QD_E_CANCELLED with words when the flag is up. run may be NULL everywhere here. */
qd_status qd_run_check(const qd_run *run, qd_err *err);
void qd_run_progress(const qd_run *run, const char *phase, const char *item, int64_t done, int64_t total);
void qd_run_metric(const qd_run *run, const char *name, int64_t step, double value);
void qd_run_layer(const qd_run *run, const char *name, int64_t step, int weight_bits, int activation_bits,
                  double sqnr_db, double lo, double hi);
void qd_run_warn(const qd_run *run, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int qd_run_threads(const qd_run *run);
qd_budget *qd_run_budget(const qd_run *run);

#endif
