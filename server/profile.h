/* profile.h - a network's time, layer by layer, against what the processor could do: `quantd profile`. */
#ifndef SV_PROFILE_H
#define SV_PROFILE_H

#include "base/bytes.h"
#include "plan/plan.h"

typedef struct sv_profile_options {
    const char *title; /* of the network */
    long batch, runs;
    int threads;
    const qd_backend *backend;
    bool json;
    bool by_time; /* the slowest step first; else in the order they run */
} sv_profile_options;

/* Compiles g for these shapes, runs it on zeros and writes what every step took to *out: a table with its totals, or one JSON object. */
qd_status sv_profile(const qd_graph *g, const qd_shape *shapes, int n_inputs, const sv_profile_options *o, qd_buf *out,
                     qd_err *err);

#endif
