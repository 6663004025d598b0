/* backend.h - inside the plan: values with a layout, buffers with a lifetime, steps that run; and what a backend's row says.
 *
 * A backend lowers a graph to steps. A step reads and makes values; a value is a view of a buffer (several values may share one:
 * reshapes cost nothing). memory.c then gives every buffer a place in the arena, and each step is bound to its addresses. */
#ifndef QD_PLAN_BACKEND_H
#define QD_PLAN_BACKEND_H

#include "graph/op.h"
#include "plan/plan.h"

/* How a value lies in memory. ROW: row-major as the shape says. LAST: axis 1 (channels) moved behind all others, so [N, C, H, W]
 * lies as [N][H][W][C]. The two coincide when there is one channel, one pixel, or rank < 3. */
typedef enum qd_layout { QD_LAYOUT_ROW, QD_LAYOUT_LAST } qd_layout;

typedef int32_t qd_value_id; /* -1 = none */

typedef struct qd_value {
    const char *name;
    qd_dtype dtype;
    qd_shape shape; /* logical */
    qd_layout layout;
    bool shifted; /* I8 codes kept as U8: code + 128 */
    int32_t border
        [4]; /* LAST codes of rank 4: rows and columns of the zero code around the image (top, left, bottom, right) */
    int32_t buffer;       /* -1 for constants */
    const void *constant; /* row-major data when it is one */
} qd_value;

/* A stretch of the arena, in use from step `first` to step `last`, both inclusive. */
typedef struct qd_buffer {
    size_t bytes;
    int first, last;
    int32_t same_as; /* merged into that buffer; -1 = its own */
    size_t offset;
} qd_buffer;

#define QD_STEP_INPUTS 8

typedef struct qd_step qd_step;
struct qd_step {
    const char *name, *kind, *impl; /* all live as long as the plan */
    int64_t macs;
    bool integer;        /* its multiply-adds are of codes */
    size_t weight_bytes; /* it reads beside its inputs */
    int threads;
    int n_in;
    qd_value_id in[QD_STEP_INPUTS];
    qd_value_id out;
    int inplace;     /* index of an input whose buffer the output would like to take over; -1 = none */
    int32_t scratch; /* buffer for this step alone; -1 = none */
    void *state;
    qd_status (*bind)(qd_plan *p, qd_step *s, qd_err *err); /* once, when addresses are known; may be NULL */
    qd_status (*run)(qd_plan *p, qd_step *s, qd_err *err);
    void (*free)(void *state); /* may be NULL when the state lives in the plan's arena */
    double seconds;
    int64_t runs;
};

/* A value to be shown once step `after` is done (-1: before the first). */
typedef struct qd_watch {
    int after;
    qd_value_id value;
    qd_node_id node;
} qd_watch;

/* Memory the plan holds outside the arena: packed weights. */
typedef struct qd_packed {
    struct qd_packed *next;
    void *data;
} qd_packed;

struct qd_plan {
    const qd_backend *backend;
    int threads;
    bool profile;
    qd_budget *budget;

    qd_arena small; /* names, states, copied nodes */
    qd_value *values;
    int n_values, room_values;
    qd_buffer *buffers;
    int n_buffers, room_buffers;
    qd_step *steps;
    int n_steps, room_steps;

    qd_tensor *constants; /* shared with the graph, or folded while compiling */
    int n_constants, room_constants;
    qd_packed *packed;
    size_t weight_bytes;

    int n_inputs, n_outputs;
    qd_value_id *inputs, *outputs;

    qd_watch *watches;
    int n_watches;
    void (*observe)(void *ctx, qd_node_id id, const float *data, const qd_shape *shape);
    void *observe_ctx;
    float *observe_data; /* the largest of them, row-major */

    char *arena;
    size_t arena_bytes;
    void *stream; /* oneDNN's, made by the first step that needs it (cpu_dnnl.c) */
};

struct qd_backend {
    const char *name, *summary;
    /* Add the steps that make every output and every observed value: fills inputs, outputs and watches of the plan. */
    qd_status (*lower)(qd_plan *p, const qd_graph *g, const qd_shape *shapes, const qd_plan_options *o, qd_err *err);
};

/* --- plan.c: what backends build with. Each fails with QD_E_NOMEM or QD_E_LIMIT only. --- */

/* A new value in a new buffer, sized by shape, dtype and border. */
qd_status qd_plan_add_value(qd_plan *p, const qd_value *like, qd_value_id *out, qd_err *err);
/* The same bytes under another shape and layout. */
qd_status qd_plan_add_view(qd_plan *p, qd_value_id of, const qd_shape *shape, qd_layout layout, qd_value_id *out,
                           qd_err *err);
/* The value of a constant; the plan keeps a reference to the tensor. */
qd_status qd_plan_add_constant(qd_plan *p, const char *name, const qd_tensor *t, qd_value_id *out, qd_err *err);
/* A step of that kind, zeroed but for the names, out, threads (1) and the -1s. Lent until the next is added. */
qd_status qd_plan_add_step(qd_plan *p, const char *name, const char *kind, qd_value_id out, qd_step **step,
                           qd_err *err);
void qd_step_reads(qd_step *s, qd_value_id v);
/* Scratch of that many bytes for step s. */
qd_status qd_plan_add_scratch(qd_plan *p, qd_step *s, size_t bytes, qd_err *err);
/* Small zeroed memory that lives as long as the plan. */
qd_status qd_plan_small(qd_plan *p, size_t bytes, void **out, qd_err *err);
/* 64-byte aligned memory for packed weights, drawn from the budget, freed with the plan. */
qd_status qd_plan_pack(qd_plan *p, size_t bytes, const char *what, void **out, qd_err *err);
/* A copy of a node that outlives the graph. */
qd_status qd_plan_keep_node(qd_plan *p, const qd_node *n, const qd_node **out, qd_err *err);
qd_status qd_plan_watch(qd_plan *p, qd_node_id node, qd_value_id value, qd_err *err);

/* Address of a value (of the image inside its border: of the border's first byte) and of a step's scratch, once memory is laid. */
void *qd_plan_data(const qd_plan *p, qd_value_id v);
void *qd_plan_scratch(const qd_plan *p, const qd_step *s);

/* --- memory.c --- */

/* Lifetimes from the steps, then in-place wishes, then offsets (64-byte aligned): largest first, each at the lowest place that
 * is free during its whole life. Fills arena_bytes; allocates nothing of the arena itself. */
qd_status qd_plan_lay_memory(qd_plan *p, qd_err *err);
/* The judge of the above: no two buffers that live at the same time share a byte, and every value a step reads was made. */
qd_status qd_plan_check_memory(const qd_plan *p, qd_err *err);

/* --- convert.c --- */

/* dst = src in dst's layout, border and code shift; same shape and dtype. Borders are filled with `border_code`. */
void qd_value_convert(const qd_value *dst, void *to, const qd_value *src, const void *from, int32_t border_code);
/* Row-major floats; codes become the float of the code, i64 the nearest float. */
void qd_value_to_float(float *to, const qd_value *src, const void *from);
/* Bytes of a value with its border. */
size_t qd_value_bytes(const qd_value *v);
/* Do both layouts of that shape lie the same in memory? */
bool qd_layout_same(const qd_shape *s, qd_layout a, qd_layout b);

/* --- ref.c --- */

/* A step that runs the op's own plain forward on row-major values. in[k] -1 for an input left out. */
qd_status qd_plan_add_forward(qd_plan *p, const qd_node *n, const qd_value_id *in, qd_value_id out, int64_t macs,
                              qd_err *err);

#endif
