/* plan.c - compile a graph for fixed shapes, run it, tell what it is made of. */
#include "plan/plan.h"

#include <assert.h>
#include <omp.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "plan/backend.h"
#include "plan/cpu_int.h"

#define MAX_THREADS 1024

/* --- what backends build with --- */

/* Room for one more in a growing array. */
static qd_status grow(void *array, int n, int *room, size_t size, const char *what, qd_err *err)
{
    void **a = array;
    if (n < *room)
        return QD_OK;
    const int more = *room ? *room * 2 : 64;
    void *bigger = qd_realloc(*a, (size_t)more * size);
    if (!bigger)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d %s of a plan", more, what);
    *a = bigger;
    *room = more;
    return QD_OK;
}

qd_status qd_plan_add_value(qd_plan *p, const qd_value *like, qd_value_id *out, qd_err *err)
{
    qd_status st = grow(&p->values, p->n_values, &p->room_values, sizeof(*p->values), "values", err);
    if (!st)
        st = grow(&p->buffers, p->n_buffers, &p->room_buffers, sizeof(*p->buffers), "buffers", err);
    if (st)
        return st;
    p->buffers[p->n_buffers] = (qd_buffer){ .bytes = qd_value_bytes(like), .same_as = -1 };
    p->values[p->n_values] = *like;
    p->values[p->n_values].buffer = p->n_buffers++;
    p->values[p->n_values].constant = NULL;
    *out = p->n_values++;
    return QD_OK;
}

qd_status qd_plan_add_view(qd_plan *p, qd_value_id of, const qd_shape *shape, qd_layout layout, qd_value_id *out,
                           qd_err *err)
{
    qd_status st = grow(&p->values, p->n_values, &p->room_values, sizeof(*p->values), "values", err);
    if (st)
        return st;
    p->values[p->n_values] = p->values[of];
    p->values[p->n_values].shape = *shape;
    p->values[p->n_values].layout = layout;
    *out = p->n_values++;
    return QD_OK;
}

qd_status qd_plan_add_constant(qd_plan *p, const char *name, const qd_tensor *t, qd_value_id *out, qd_err *err)
{
    qd_status st = grow(&p->constants, p->n_constants, &p->room_constants, sizeof(*p->constants), "constants", err);
    if (!st)
        st = grow(&p->values, p->n_values, &p->room_values, sizeof(*p->values), "values", err);
    if (st)
        return st;
    qd_tensor_share(&p->constants[p->n_constants++], t);
    p->values[p->n_values] =
        (qd_value){ .name = name, .dtype = t->dtype, .shape = t->shape, .buffer = -1, .constant = t->data };
    *out = p->n_values++;
    return QD_OK;
}

qd_status qd_plan_add_step(qd_plan *p, const char *name, const char *kind, qd_value_id out, qd_step **step, qd_err *err)
{
    char *kept_name = qd_arena_strdup(&p->small, name), *kept_kind = qd_arena_strdup(&p->small, kind);
    if (!kept_name || !kept_kind)
        return qd_fail(err, QD_E_NOMEM, "no memory for the step '%s'", name);
    qd_status st = grow(&p->steps, p->n_steps, &p->room_steps, sizeof(*p->steps), "steps", err);
    if (st)
        return st;
    *step = &p->steps[p->n_steps++];
    **step = (qd_step){
        .name = kept_name, .kind = kept_kind, .impl = "quantd", .threads = 1, .out = out, .inplace = -1, .scratch = -1
    };
    return QD_OK;
}

void qd_step_reads(qd_step *s, qd_value_id v)
{
    assert(s->n_in < QD_STEP_INPUTS);
    if (v >= 0)
        s->in[s->n_in++] = v;
}

qd_status qd_plan_add_scratch(qd_plan *p, qd_step *s, size_t bytes, qd_err *err)
{
    qd_status st = grow(&p->buffers, p->n_buffers, &p->room_buffers, sizeof(*p->buffers), "buffers", err);
    if (st)
        return st;
    p->buffers[p->n_buffers] = (qd_buffer){ .bytes = bytes, .same_as = -1 };
    s->scratch = p->n_buffers++;
    return QD_OK;
}

qd_status qd_plan_small(qd_plan *p, size_t bytes, void **out, qd_err *err)
{
    *out = qd_arena_alloc(&p->small, bytes);
    return *out ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %zu bytes of a plan", bytes);
}

qd_status qd_plan_pack(qd_plan *p, size_t bytes, const char *what, void **out, qd_err *err)
{
    qd_packed *link = qd_arena_alloc(&p->small, sizeof(*link));
    if (!link)
        return qd_fail(err, QD_E_NOMEM, "no memory for the packed weights of '%s'", what);
    qd_status st = qd_budget_draw(p->budget, bytes, what, err);
    if (st)
        return st;
    link->data = qd_alloc_aligned(bytes);
    if (!link->data) {
        qd_budget_give(p->budget, bytes);
        return qd_fail(err, QD_E_NOMEM, "no memory for the packed weights of '%s' (%zu bytes)", what, bytes);
    }
    link->next = p->packed;
    p->packed = link;
    p->weight_bytes += bytes;
    *out = link->data;
    return QD_OK;
}

qd_status qd_plan_keep_node(qd_plan *p, const qd_node *n, const qd_node **out, qd_err *err)
{
    qd_node *copy = qd_arena_alloc(&p->small, sizeof(*copy));
    char *name = qd_arena_strdup(&p->small, n->name);
    if (!copy || !name)
        return qd_fail(err, QD_E_NOMEM, "no memory for a copy of node '%s'", n->name);
    *copy = *n;
    copy->name = name;
    copy->value = (qd_tensor){ 0 };
    for (int k = 0; k < copy->n_attrs; k++)
        copy->attr[k].name = n->op->attrs[k].name; /* the row's, which outlives any graph */
    *out = copy;
    return QD_OK;
}

qd_status qd_plan_watch(qd_plan *p, qd_node_id node, qd_value_id value, qd_err *err)
{
    qd_watch *bigger = qd_realloc(p->watches, ((size_t)p->n_watches + 1) * sizeof(*bigger));
    if (!bigger)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d observed values", p->n_watches + 1);
    p->watches = bigger;
    p->watches[p->n_watches++] = (qd_watch){ .after = p->n_steps - 1, .value = value, .node = node };
    return QD_OK;
}

void *qd_plan_data(const qd_plan *p, qd_value_id v)
{
    const qd_value *value = &p->values[v];
    if (value->buffer < 0)
        return (void *)value->constant;
    return p->arena + p->buffers[value->buffer].offset;
}

void *qd_plan_scratch(const qd_plan *p, const qd_step *s)
{
    return s->scratch < 0 ? NULL : p->arena + p->buffers[s->scratch].offset;
}

/* --- compile --- */

static qd_status check_options(const qd_graph *g, const qd_plan_options *o, qd_err *err)
{
    if (o->threads < 0 || o->threads > MAX_THREADS)
        return qd_fail(err, QD_E_INVALID, "threads must be 0..%d, got %d", MAX_THREADS, o->threads);
    if (o->n_inputs != qd_graph_inputs(g))
        return qd_fail(err, QD_E_INVALID, "the graph has %d inputs, shapes were given for %d", qd_graph_inputs(g),
                       o->n_inputs);
    for (int k = 0; k < o->n_inputs; k++)
        for (int j = 0; j < o->input_shapes[k].rank; j++)
            if (o->input_shapes[k].dim[j] < 1)
                return qd_fail(err, QD_E_INVALID, "dim %d of input '%s' is %lld; a plan needs it known and positive", j,
                               qd_graph_node(g, qd_graph_input_at(g, k))->name, (long long)o->input_shapes[k].dim[j]);
    if (o->n_observed && !o->observe)
        return qd_fail(err, QD_E_INVALID, "%d values are to be observed, but there is no callback", o->n_observed);
    for (int k = 0; k < o->n_observed; k++)
        if (o->observed[k] < 0 || o->observed[k] >= qd_graph_size(g))
            return qd_fail(err, QD_E_INVALID, "observed value %d is not one of the graph's %d nodes",
                           (int)o->observed[k], qd_graph_size(g));
    return QD_OK;
}

static qd_status make_arena(qd_plan *p, qd_err *err)
{
    qd_status st = qd_budget_draw(p->budget, p->arena_bytes, "the activations of a plan", err);
    if (st) {
        p->arena_bytes = 0;
        return st;
    }
    p->arena = qd_alloc_aligned(p->arena_bytes);
    if (!p->arena) {
        qd_budget_give(p->budget, p->arena_bytes);
        st = qd_fail(err, QD_E_NOMEM, "no memory for the activations of a plan (%zu bytes)", p->arena_bytes);
        p->arena_bytes = 0;
        return st;
    }
    /* Touch every page now, on this thread, so that the first run is like the others. */
    memset(p->arena, 0, p->arena_bytes);

    size_t most = 0;
    for (int k = 0; k < p->n_watches; k++) {
        int64_t count = 0;
        st = qd_shape_count(&p->values[p->watches[k].value].shape, &count, err);
        if (st)
            return st;
        if ((size_t)count > most)
            most = (size_t)count;
    }
    void *data = NULL;
    if (most)
        st = qd_plan_pack(p, most * sizeof(float), "the observed values of a plan", &data, err);
    p->observe_data = data;
    return st;
}

qd_status qd_plan_compile(const qd_graph *g, const qd_plan_options *o, qd_plan **out, qd_err *err)
{
    qd_plan *p = NULL;
    qd_shape *shapes = NULL;
    const int callers_threads = omp_get_max_threads();

    assert(!o->take || o->take == g);
    qd_status st = qd_graph_verify(g, err);
    if (!st)
        st = check_options(g, o, err);
    if (st)
        return st;

    p = qd_calloc(1, sizeof(*p));
    shapes = qd_calloc((size_t)qd_graph_size(g) + 1, sizeof(*shapes));
    if (!p || !shapes) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a plan of %d nodes", qd_graph_size(g));
        goto out;
    }
    p->backend = o->backend ? o->backend : qd_backend_default();
    p->threads = o->threads ? o->threads : 1;
    p->profile = o->profile;
    p->budget = o->budget;
    p->observe = o->observe;
    p->observe_ctx = o->observe_ctx;
    qd_arena_init(&p->small);

    st = qd_graph_shapes(g, o->input_shapes, o->n_inputs, shapes, err);
    if (st)
        goto out;
    st = p->backend->lower(p, g, shapes, o, err);
    if (st)
        goto out;
    st = qd_plan_lay_memory(p, err);
    if (st)
        goto out;
    if (o->needs_bytes) {
        *o->needs_bytes = p->arena_bytes + p->weight_bytes;
        goto out;
    }
    st = make_arena(p, err);
    if (st)
        goto out;
    for (int k = 0; k < p->n_steps && !st; k++)
        if (p->steps[k].bind)
            st = p->steps[k].bind(p, &p->steps[k], err);
    if (st)
        goto out;

    *out = p;
    p = NULL;
out:
    omp_set_num_threads(callers_threads);
    qd_plan_free(p);
    qd_free(shapes);
    return st;
}

void qd_plan_free(qd_plan *p)
{
    if (!p)
        return;
    for (int k = 0; k < p->n_steps; k++)
        if (p->steps[k].free && p->steps[k].state)
            p->steps[k].free(p->steps[k].state);
    qd_dnnl_stream_free(p->stream);
    if (p->arena)
        qd_budget_give(p->budget, p->arena_bytes);
    qd_free(p->arena);
    for (qd_packed *link = p->packed; link; link = link->next)
        qd_free(link->data);
    qd_budget_give(p->budget, p->weight_bytes);
    for (int k = 0; k < p->n_constants; k++)
        qd_tensor_clear(&p->constants[k]);
    qd_free(p->constants);
    qd_free(p->values);
    qd_free(p->buffers);
    qd_free(p->steps);
    qd_free(p->watches);
    qd_arena_clear(&p->small);
    qd_free(p);
}

/* --- run --- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The caller's side of an input or output: plain and row-major. */
static qd_value outside(const qd_value *v)
{
    return (qd_value){ .dtype = v->dtype, .shape = v->shape, .layout = QD_LAYOUT_ROW };
}

static void show(qd_plan *p, int after, int *next)
{
    for (; *next < p->n_watches && p->watches[*next].after == after; ++*next) {
        const qd_watch *w = &p->watches[*next];
        const qd_value *v = &p->values[w->value];
        qd_value_to_float(p->observe_data, v, qd_plan_data(p, w->value));
        p->observe(p->observe_ctx, w->node, p->observe_data, &v->shape);
    }
}

qd_status qd_plan_run(qd_plan *p, const qd_run *run, const void *const *inputs, void *const *outputs, qd_err *err)
{
    const int callers_threads = omp_get_max_threads();
    int next_watch = 0;
    qd_status st = qd_run_check(run, err);

    for (int k = 0; k < p->n_inputs && !st; k++) {
        const qd_value *v = &p->values[p->inputs[k]];
        const qd_value from = outside(v);
        qd_value_convert(v, qd_plan_data(p, p->inputs[k]), &from, inputs[k], 0);
    }
    if (!st)
        show(p, -1, &next_watch);
    for (int k = 0; k < p->n_steps && !st; k++) {
        qd_step *s = &p->steps[k];
        const double start = p->profile ? now() : 0.0;
        st = s->run(p, s, err);
        if (p->profile)
            s->seconds += now() - start;
        s->runs++;
        if (!st)
            show(p, k, &next_watch);
        if (!st)
            st = qd_run_check(run, err);
    }
    for (int k = 0; k < p->n_outputs && !st; k++) {
        const qd_value *v = &p->values[p->outputs[k]];
        const qd_value to = outside(v);
        qd_value_convert(&to, outputs[k], v, qd_plan_data(p, p->outputs[k]), 0);
    }
    omp_set_num_threads(callers_threads);
    return st;
}

/* --- tell --- */

size_t qd_plan_arena_bytes(const qd_plan *p)
{
    return p->arena_bytes;
}

size_t qd_plan_weight_bytes(const qd_plan *p)
{
    return p->weight_bytes;
}

int qd_plan_steps(const qd_plan *p)
{
    return p->n_steps;
}

void qd_plan_step_at(const qd_plan *p, int k, qd_plan_step *out)
{
    assert(k >= 0 && k < p->n_steps);
    const qd_step *s = &p->steps[k];
    *out = (qd_plan_step){ .name = s->name,
                           .kind = s->kind,
                           .impl = s->impl,
                           .shape = p->values[s->out].shape,
                           .macs = s->macs,
                           .integer = s->integer,
                           .bytes = s->weight_bytes + qd_value_bytes(&p->values[s->out]),
                           .threads = s->threads,
                           .seconds = s->seconds,
                           .runs = s->runs };
    for (int j = 0; j < s->n_in; j++)
        out->bytes += qd_value_bytes(&p->values[s->in[j]]);
}

void qd_plan_print(const qd_plan *p, struct qd_buf *b)
{
    qd_buf_addf(b, "plan: backend %s, %d threads, %d steps, arena %zu bytes, packed weights %zu bytes\n",
                p->backend->name, p->threads, p->n_steps, p->arena_bytes, p->weight_bytes);
    for (int k = 0; k < p->n_steps; k++) {
        const qd_step *s = &p->steps[k];
        char shape[96];
        qd_buf_addf(b, "%4d  %-24s %-26s %-20s %-48s", k, s->kind, s->impl,
                    qd_shape_text(&p->values[s->out].shape, shape, sizeof(shape)), s->name);
        if (s->macs)
            qd_buf_addf(b, " %9.2f Mmac", (double)s->macs * 1e-6);
        if (p->profile && s->runs) {
            qd_buf_addf(b, " %8.3f ms", s->seconds / (double)s->runs * 1e3);
            if (s->macs && s->seconds > 0.0)
                qd_buf_addf(b, " %7.1f Gop/s", 2e-9 * (double)s->macs * (double)s->runs / s->seconds);
        }
        qd_buf_adds(b, "\n");
    }
}
