/* plan.h - a graph with fixed shapes, compiled once, run many times.
 *
 * Compiling fixes the batch, fuses nodes, chooses a layout for every value (channels last on the fast backend), makes oneDNN
 * primitives with packed weights, and lays all activations into one arena. Running allocates nothing. A plan belongs to one
 * thread at a time; constants are shared with the graph, which may be freed before the plan.
 *
 * Weights that are trained are inputs: each run reads them where the caller keeps them and packs them anew, so an optimizer changes
 * them in place. Constants are folded and packed once and never change. */
#ifndef QD_PLAN_PLAN_H
#define QD_PLAN_PLAN_H

#include "base/err.h"
#include "base/run.h"
#include "graph/graph.h"

typedef struct qd_plan qd_plan;
typedef struct qd_backend qd_backend;

extern const qd_backend qd_backend_ref; /* plain loops, no fusion: the judge */
extern const qd_backend qd_backend_cpu; /* oneDNN, OpenBLAS and our own fused loops */
extern const qd_backend *const qd_backends[];
/* QD_KERNELS=ref picks the plain loops; anything else (or unset) the fast ones. */
const qd_backend *qd_backend_default(void);
const qd_backend *qd_backend_find(const char *name);
const char *qd_backend_name(const qd_backend *b);
/* The libraries behind the fast backend, their versions and instruction sets, for `quantd version`. Static storage. */
const char *qd_plan_libraries(void);

typedef struct qd_plan_options {
    const qd_shape *input_shapes; /* one for each graph input, batch filled in */
    int n_inputs;
    int threads;               /* 0 counts as 1 */
    const qd_backend *backend; /* NULL = qd_backend_default() */
    qd_budget *budget;         /* arena and packed weights are drawn from it; may be NULL */

    /* Values to be shown while running, whatever fusion would have done: after each is made, observe(ctx, id, data, shape) gets
     * it as a row-major (NCHW) float array; codes are shown as the float of the code. */
    const qd_node_id *observed;
    int n_observed;
    void (*observe)(void *ctx, qd_node_id id, const float *data, const qd_shape *shape);
    void *observe_ctx;

    bool profile; /* keep the time of every step */
    /* Not NULL: the very graph, which may be taken apart: each weight is let go once it is packed, so that the network is never in
     * memory twice. Whatever comes out, it can then only be freed. */
    qd_graph *take;
    /* Not NULL: only say how many bytes arena and packed weights would take; the arena is not made and *out is left as it was. */
    size_t *needs_bytes;
} qd_plan_options;

qd_status qd_plan_compile(const qd_graph *g, const qd_plan_options *o, qd_plan **out, qd_err *err);
void qd_plan_free(qd_plan *p);

/* inputs and outputs are row-major arrays with the compiled shapes and the graph's dtypes (time steps may be f32 or i64 as declared),
 * in the graph's order. QD_E_CANCELLED when run's flag rises between steps; outputs are then unspecified. run may be NULL. */
qd_status qd_plan_run(qd_plan *p, const qd_run *run, const void *const *inputs, void *const *outputs, qd_err *err);

size_t qd_plan_arena_bytes(const qd_plan *p);
size_t qd_plan_weight_bytes(const qd_plan *p); /* packed copies the plan made */

/* One step of the compiled plan, for `quantd profile` and for tests that ask what was fused. */
typedef struct qd_plan_step {
    const char *name; /* the node it ends at */
    const char *kind; /* "conv", "norm+silu+quantize", ... */
    const char *impl; /* oneDNN's implementation name, or ours */
    qd_shape shape;   /* of what it makes */
    int64_t macs;
    bool integer; /* the multiply-adds are of codes */
    size_t bytes; /* read and written: inputs, weights, result */
    int threads;
    double seconds; /* summed over runs; 0 without profile */
    int64_t runs;
} qd_plan_step;
int qd_plan_steps(const qd_plan *p);
void qd_plan_step_at(const qd_plan *p, int k, qd_plan_step *out);
void qd_plan_print(const qd_plan *p, struct qd_buf *b);

/* --- roofline.c: how fast this processor is, and how near to that a step comes --- */

/* Measured on this many threads: convolutions of a comfortable shape, and reading and writing large and small arrays. */
typedef struct qd_plan_peaks {
    int threads;
    double f32_macs, int8_macs;     // multiply-adds per second
    double memory_rate, cache_rate; // bytes per second, from arrays that do not fit in the cache and such that do
    size_t cache_bytes;             /* what one step may touch and still find in the cache */
} qd_plan_peaks;
/* Takes less than a second. */
qd_status qd_plan_measure_peaks(int threads, qd_plan_peaks *out, qd_err *err);

/* What holds a step back: the arithmetic, the bytes it moves, or neither (waking threads, loops too short for their start). */
typedef enum qd_plan_bound { QD_BOUND_COMPUTE, QD_BOUND_MEMORY, QD_BOUND_OVERHEAD } qd_plan_bound;
const char *qd_plan_bound_name(qd_plan_bound b);
/* The least seconds one run of the step could take by these peaks, every multiply-add done (Winograd's convolutions need fewer); what holds back a run of it that takes `took` seconds. */
double qd_plan_least_seconds(const qd_plan_step *s, double took, const qd_plan_peaks *peaks, qd_plan_bound *bound);

#endif
