/* steps.c - steps of activations that learn, block by block in forward order (qncd.md 6.5): LSQ's derivative by the step, the zero and the
 * rounded weights as they are, the block held to what the float network makes.
 *
 * It works on the fake-quant twin of the layout as it stands, whose quantizers within a block become nodes with a step that is an input:
 * with s = zero * d, codes from 0 have x^ = clamp(rne((x + s) / d)) d - s, and the derivative by d that 6.5 gives. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/recon_int.h"

#define LEAST 1e-8f /* of a step (3.1) */

typedef struct steps {
    qd_layout *l;
    const qd_calibration_set *set;
    const qd_steps_options *o;
    const qd_run *run;
    qd_blocks blocks;       /* of the float graph */
    qd_blocks twin_blocks;  /* the same by the twin's ids; their entries are their feeds */
    qd_layout twin;         /* its graph alone counts: there are no layers */
    qd_kept_values kept[2]; /* of the float graph, of the twin */
    bool *learned;          // [quantizers]
    qd_recon_report report;
    int n_learned;
} steps;

static qd_status check(const qd_layout *l, const qd_steps_options *o, qd_err *err)
{
    if (l->n_groups > 0)
        return qd_fail(err, QD_E_INVALID,
                       "steps are learned for ranges that hold at all time steps, not for groups of them");
    if (o->iterations < 1 || o->batch < 1 || !(o->lr > 0.0 && o->lr <= 1.0) || !(o->power >= 1.0 && o->power <= 8.0))
        return qd_fail(
            err, QD_E_INVALID,
            "learning steps needs iterations and a batch of at least 1, lr in (0, 1] and a power of 1 to 8, got %d, "
            "%d, %g and %g",
            o->iterations, o->batch, o->lr, o->power);
    for (int k = 0; k < l->n_quantizers; k++)
        if (!(l->quantizers[k].map.scale > 0.0f))
            return qd_fail(err, QD_E_INVALID, "the value '%s' has no range yet",
                           qd_graph_node(l->graph, l->quantizers[k].value)->name);
    return QD_OK;
}

/* --- the twin --- */

/* The twin of the layout as it stands now; ids are the same each time. */
static qd_status renew_twin(steps *s, qd_err *err)
{
    qd_graph *applied = NULL, *twin = NULL;
    qd_status st = qd_layout_apply(s->l, &applied, err);
    if (!st)
        st = qd_quant_fake_twin(applied, &twin, err);
    if (!st) {
        qd_graph_free((qd_graph *)s->twin.graph);
        s->twin.graph = twin;
        s->twin.input = qd_graph_find(twin, qd_graph_node(s->l->graph, s->l->input)->name);
    }
    qd_graph_free(applied);
    return st;
}

static qd_status twin_of(const steps *s, qd_node_id id, qd_node_id *out, qd_err *err)
{
    const char *name = qd_graph_node(s->l->graph, id)->name;
    *out = qd_graph_find(s->twin.graph, name);
    return *out >= 0 ? QD_OK : qd_fail(err, QD_E_INTERNAL, "the twin has no value '%s'", name);
}

static qd_status make_twin_blocks(steps *s, qd_err *err)
{
    qd_blocks *to = &s->twin_blocks;
    qd_arena_init(&to->arena);
    to->n = s->blocks.n;
    to->block = qd_arena_alloc(&to->arena, ((size_t)to->n + 1) * sizeof *to->block);
    to->cut = qd_arena_alloc(&to->arena, (size_t)qd_graph_size(s->twin.graph) + 1);
    qd_status st = to->block && to->cut ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for %d blocks", to->n);
    for (int k = 0; k < to->n && !st; k++) {
        const qd_block *from = &s->blocks.block[k];
        qd_block *b = &to->block[k];
        *b = *from;
        b->feeds = b->entry = qd_arena_alloc(&to->arena, ((size_t)from->n_feeds + 1) * sizeof *b->feeds);
        b->n_entry = from->n_feeds;
        st = b->feeds ? twin_of(s, from->out, &b->out, err) : qd_fail(err, QD_E_NOMEM, "no memory for a block");
        for (int j = 0; j < from->n_feeds && !st; j++) {
            st = twin_of(s, from->feeds[j], &b->feeds[j], err);
            if (!st)
                to->cut[b->feeds[j]] = true;
        }
        if (!st)
            to->cut[b->out] = true;
    }
    return st;
}

/* Both networks go by the same items. */
static qd_status make_kept(steps *s, qd_err *err)
{
    int64_t most = 0;
    for (;;) {
        qd_status st = qd_kept_init(&s->kept[1], &s->twin, &s->twin_blocks, s->set, most, s->run, err);
        if (!st)
            st = qd_kept_init(&s->kept[0], s->l, &s->blocks, s->set, s->kept[1].per_step, s->run, err);
        if (st || s->kept[0].per_step == s->kept[1].per_step)
            return st;
        most = s->kept[0].per_step;
        qd_kept_clear(&s->kept[0]);
        qd_kept_clear(&s->kept[1]);
    }
}

/* --- the graph of a block --- */

typedef struct student {
    steps *s;
    const qd_block *block;                /* of the twin */
    const char (*name)[QD_MAX_NAME + 32]; // [quantizers], of their nodes
    qd_graph *graph;
    int *quantizer;   // [n], of the steps that are inputs
    int n, n_items;   /* steps; inputs before them */
    qd_node_id *step; // [n]
    float *d, *m, *v; // [n]: steps, and Adam's moments
    qd_piece piece;
    qd_replicas replicas;
} student;

/* The quantizer of a fake_quant node that is to learn; -1 = none. */
static int learner(const student *t, const qd_node *n)
{
    if (n->op != &qd_op_fake_quant)
        return -1;
    for (int k = 0; k < t->s->l->n_quantizers; k++)
        if (!t->s->learned[k] && strcmp(t->name[k], n->name) == 0)
            return k;
    return -1;
}

static qd_node_id add(qd_graph *g, const qd_op *op, const char *what, int k, const qd_node_id *in, int n_in,
                      const qd_attr *attrs, int n_attrs)
{
    char name[64];
    snprintf(name, sizeof name, "steps.%s.%d", what, k);
    return qd_graph_add(g, op, name, in, n_in, attrs, n_attrs);
}

/* x^ out of x and a step that is an input. */
static qd_node_id add_learned(student *t, const qd_node *n, int quantizer, const qd_node_id *map, const qd_shape *x)
{
    const qd_shape one = QD_SHAPE(1);
    const int k = t->n++;
    char name[64];
    qd_graph *g = t->graph;
    snprintf(name, sizeof name, "steps.step.%d", k);
    const qd_node_id d = qd_graph_input(g, name, QD_F32, &one);
    t->quantizer[k] = quantizer;
    t->step[k] = d;
    qd_node_id y = map[n->input[0]];
    if (n->n_inputs > 1 && n->input[1] >= 0) {
        qd_attr shape = qd_attr_ints("shape", x->rank, x->dim);
        for (int a = 0; a < x->rank; a++)
            shape.ints[a] = a == 1 ? x->dim[1] : 1;
        const qd_node_id by = add(g, &qd_op_reshape, "divisor", k, QD_IN(map[n->input[1]]), &shape, 1);
        y = add(g, &qd_op_div, "divided", k, QD_IN(y, by), QD_NO_ATTRS);
    }
    const double zero = (double)qd_node_int(n, "zero");
    const qd_attr attrs[] = { QD_INT("bits", qd_node_int(n, "bits")),
                              QD_INT("symmetric", qd_node_int(n, "symmetric")) };
    if (zero == 0.0)
        return add(g, &qd_op_learned_quant, "quant", k, QD_IN(y, d), attrs, 2);
    const qd_node_id shift = add(g, &qd_op_affine, "shift", k, QD_IN(d), QD_ATTRS(QD_FLOAT("mul", zero)));
    y = add(g, &qd_op_add, "shifted", k, QD_IN(y, shift), QD_NO_ATTRS);
    y = add(g, &qd_op_learned_quant, "quant", k, QD_IN(y, d), attrs, 2);
    return add(g, &qd_op_sub, "value", k, QD_IN(y, shift), QD_NO_ATTRS);
}

/* Mean over items and space of the sum over channels of |y - target|^power. */
static qd_node_id add_loss(qd_graph *g, qd_node_id y, qd_node_id target, const qd_shape *shape, double power,
                           qd_err *err)
{
    const qd_shape scalar = { .rank = 0 };
    const int64_t flat = -1, axis = 0;
    const double channels = (double)shape->dim[shape->rank == 4 ? 1 : shape->rank - 1];
    qd_tensor p = { 0 };
    if (qd_tensor_init(&p, QD_F32, &scalar, NULL, err)) {
        qd_graph_fail(g, QD_E_NOMEM, "no memory for a loss");
        return -1;
    }
    *qd_f32(&p) = (float)power;
    const qd_node_id exponent = qd_graph_const(g, "steps.power", &p);
    qd_tensor_clear(&p);
    qd_node_id d = add(g, &qd_op_sub, "difference", 0, QD_IN(y, target), QD_NO_ATTRS);
    d = add(g, &qd_op_abs, "size", 0, QD_IN(d), QD_NO_ATTRS);
    d = add(g, &qd_op_pow, "power_of", 0, QD_IN(d, exponent), QD_NO_ATTRS);
    d = add(g, &qd_op_reshape, "flat", 0, QD_IN(d), QD_ATTRS(qd_attr_ints("shape", 1, &flat)));
    d = add(g, &qd_op_mean, "mean", 0, QD_IN(d), QD_ATTRS(qd_attr_ints("axes", 1, &axis), QD_INT("keep", 0)));
    return add(g, &qd_op_affine, "loss", 0, QD_IN(d), QD_ATTRS(QD_FLOAT("mul", channels)));
}

static int count_learners(const student *t)
{
    int n = 0;
    for (qd_node_id id = 0; id < qd_graph_size(t->piece.graph); id++)
        n += learner(t, qd_graph_node(t->piece.graph, id)) >= 0;
    return n;
}

/* The piece with its quantizers learning, and the loss; inputs are those of the piece, the steps, the target. */
static qd_status make_student(student *t, const qd_shape *shapes, const qd_shape *out_shape, qd_graph **out,
                              qd_err *err)
{
    const qd_graph *from = t->piece.graph;
    const int n = qd_graph_size(from);
    qd_node_id *map = qd_calloc((size_t)n + 1, sizeof *map);
    qd_status st = map ? qd_graph_new(&t->graph, err) : qd_fail(err, QD_E_NOMEM, "no memory for %d nodes", n);
    for (qd_node_id id = 0; id < n && !st; id++) {
        const qd_node *node = qd_graph_node(from, id);
        const int k = learner(t, node);
        if (k >= 0)
            map[id] = add_learned(t, node, k, map, &shapes[node->input[0]]);
        else
            qd_graph_copy_node(t->graph, from, id, map);
    }
    if (!st) {
        const qd_node_id target = qd_graph_input(t->graph, "steps.target", QD_F32, out_shape);
        const qd_node_id loss =
            add_loss(t->graph, map[qd_graph_output_at(from, 0)], target, out_shape, t->s->o->power, err);
        qd_graph_output(t->graph, "loss", loss);
        st = qd_graph_verify(t->graph, err);
        if (!st)
            st = qd_graph_gradient(t->graph, loss, t->step, t->n, out, err);
    }
    qd_free(map);
    return st;
}

static qd_status piece_shapes(const qd_graph *g, qd_shape *shapes, qd_err *err)
{
    const int n = qd_graph_inputs(g);
    qd_shape *given = qd_calloc((size_t)n + 1, sizeof *given);
    if (!given)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d inputs", n);
    for (int k = 0; k < n; k++)
        given[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
    const qd_status st = qd_graph_shapes(g, given, n, shapes, err);
    qd_free(given);
    return st;
}

static qd_status student_init(student *t, const qd_tensor *target, qd_err *err)
{
    steps *s = t->s;
    const qd_kept_values *kept = &s->kept[1];
    const int64_t batch = s->o->batch < kept->items ? s->o->batch : kept->items;
    const int replicas = qd_replicas_count(batch, 0);
    qd_graph *g = NULL;
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(s->twin.graph) + 1, sizeof *shapes), *inner = NULL;
    qd_replica_input *in = NULL;
    qd_status st = shapes ? qd_kept_shapes(s->twin.graph, batch / replicas, shapes, err)
                          : qd_fail(err, QD_E_NOMEM, "no memory for %d nodes", qd_graph_size(s->twin.graph));
    const qd_piece_spec spec = { .layout = &s->twin,
                                 .shapes = shapes,
                                 .given = t->block->feeds,
                                 .n_given = t->block->n_feeds,
                                 .wanted = &t->block->out,
                                 .n_wanted = 1,
                                 .weights = QD_PIECE_FLOAT };
    if (!st)
        st = qd_piece_cut(&spec, qd_run_budget(s->run), &t->piece, err);
    if (st)
        goto out;
    const int n = count_learners(t), n_items = t->piece.n_inputs;
    t->n_items = n_items;
    t->quantizer = qd_calloc((size_t)n + 1, sizeof *t->quantizer);
    t->step = qd_calloc((size_t)n + 1, sizeof *t->step);
    t->d = qd_calloc((size_t)n * 3 + 1, sizeof *t->d);
    in = qd_calloc((size_t)(n_items + n) + 1, sizeof *in);
    inner = qd_calloc((size_t)qd_graph_size(t->piece.graph) + 1, sizeof *inner);
    if (!t->quantizer || !t->step || !t->d || !in || !inner) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for %d steps", n);
        goto out;
    }
    if (n == 0)
        goto out;
    st = piece_shapes(t->piece.graph, inner, err);
    if (!st)
        st = make_student(t, inner, &shapes[t->block->out], &g, err);
    if (st)
        goto out;
    t->m = t->d + n;
    t->v = t->m + n;
    for (int k = 0; k < n_items; k++)
        in[k] = (qd_replica_input){ kept->value[QD_NET_FLOAT][t->piece.input[k]].data,
                                    qd_kept_bytes(kept, t->piece.input[k]) };
    for (int k = 0; k < n; k++) {
        t->d[k] = s->l->quantizers[t->quantizer[k]].map.scale;
        in[n_items + k] = (qd_replica_input){ &t->d[k], 0 };
    }
    in[n_items + n] = (qd_replica_input){ target->data, qd_kept_bytes(kept, t->block->out) };
    st = qd_replicas_init(&t->replicas, g, in, replicas, batch, s->run, err);
out:
    qd_free(inner);
    qd_free(in);
    qd_free(shapes);
    qd_graph_free(g);
    return st;
}

static void student_clear(student *t)
{
    qd_replicas_clear(&t->replicas);
    qd_piece_clear(&t->piece);
    qd_graph_free(t->graph);
    qd_free(t->d);
    qd_free(t->step);
    qd_free(t->quantizer);
}

/* --- learning --- */

static qd_status train(student *t, int number, int done, int total, qd_err *err)
{
    steps *s = t->s;
    const qd_lr_schedule schedule = { .shape = QD_LR_COSINE, .lr = s->o->lr, .total = s->o->iterations };
    for (int64_t step = 0; step < s->o->iterations; step++) {
        double loss;
        const qd_status st = qd_replicas_run(&t->replicas, s->kept[1].items, number, step, &loss, err);
        if (st)
            return qd_fail_in(err, st, "block '%s'", t->block->name);
        for (int k = 0; k < t->n; k++) {
            float grad = 0.0f, *const slot[2] = { &t->m[k], &t->v[k] };
            for (int i = 0; i < t->replicas.n; i++)
                grad += *qd_f32(&t->replicas.replica[i].grad[k]) / (float)t->replicas.n;
            qd_optim_adam.apply(&qd_optim_adam.defaults, step + 1, qd_lr_at(&schedule, step), &t->d[k], &grad, slot, 1);
            t->d[k] = fmaxf(t->d[k], LEAST);
        }
        qd_run_progress(s->run, "steps", t->block->name, (int64_t)done * s->o->iterations + step + 1,
                        (int64_t)total * s->o->iterations);
    }
    return QD_OK;
}

static double mse_of(const qd_tensor *a, const qd_tensor *b)
{
    const int64_t n = qd_tensor_count(a);
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)qd_f32(a)[i] - qd_f32(b)[i];
        sum += d * d;
    }
    return sum / (double)n;
}

/* Learned steps in place of those there were; the other way round when called again. */
static void swap_steps(student *t)
{
    for (int k = 0; k < t->n; k++) {
        qd_quantizer *q = &t->s->l->quantizers[t->quantizer[k]];
        const float was = q->map.scale;
        q->map.scale = t->d[k];
        t->d[k] = was;
        q->sqnr_db = qd_histogram_sqnr_db(q->seen, &q->map);
    }
}

/* y: what the twin's block makes before; after, with what was learned if that is better. */
static qd_status improve(student *t, int number, const qd_tensor *target, qd_tensor *y, qd_err *err)
{
    steps *s = t->s;
    qd_recon_block *row = &s->report.blocks[s->report.n];
    qd_tensor learned = { 0 };
    qd_status st = train(t, number, s->report.n, s->n_learned, err);
    if (st)
        return st;
    *row = (qd_recon_block){ .kind = t->block->kind,
                             .layers = t->n,
                             .iterations = s->o->iterations,
                             .mse_nearest = mse_of(y, target),
                             .settled = NAN,
                             .note = "" };
    memcpy(row->name, t->block->name, sizeof row->name);
    swap_steps(t);
    st = renew_twin(s, err);
    if (!st)
        st = qd_kept_compute(&s->kept[1], QD_NET_FLOAT, &t->block->out, 1, &learned, err);
    if (!st) {
        row->mse_learned = mse_of(&learned, target);
        row->kept_nearest = !(row->mse_learned < row->mse_nearest);
    }
    if (st || row->kept_nearest) {
        swap_steps(t);
        qd_err quiet = { 0 };
        const qd_status back = renew_twin(s, st ? &quiet : err);
        st = st ? st : back;
    } else {
        qd_tensor_clear(y);
        *y = learned;
        learned = (qd_tensor){ 0 };
    }
    qd_tensor_clear(&learned);
    if (!st)
        s->report.n++;
    return st;
}

static qd_status do_block(steps *s, int number, const char (*names)[QD_MAX_NAME + 32], qd_err *err)
{
    const qd_block *b = &s->blocks.block[number], *twin = &s->twin_blocks.block[number];
    qd_tensor target = { 0 }, y = { 0 };
    student t = { .s = s, .block = twin, .name = names };
    qd_status st = qd_kept_compute(&s->kept[0], QD_NET_FLOAT, &b->out, 1, &target, err);
    if (!st)
        st = qd_kept_compute(&s->kept[1], QD_NET_FLOAT, &twin->out, 1, &y, err);
    if (!st && b->n_layers) {
        st = student_init(&t, &target, err);
        if (!st && t.n)
            st = improve(&t, number, &target, &y, err);
        for (int k = 0; k < t.n && !st; k++)
            s->learned[t.quantizer[k]] = true;
        student_clear(&t);
    }
    if (!st) {
        s->kept[0].value[QD_NET_FLOAT][b->out] = target;
        s->kept[1].value[QD_NET_FLOAT][twin->out] = y;
        target = y = (qd_tensor){ 0 };
        qd_kept_drop(&s->kept[0], number);
        qd_kept_drop(&s->kept[1], number);
    }
    qd_tensor_clear(&target);
    qd_tensor_clear(&y);
    return st;
}

static qd_status learn_all(steps *s, qd_err *err)
{
    char(*names)[QD_MAX_NAME + 32] = qd_calloc((size_t)s->l->n_quantizers + 1, sizeof *names);
    s->learned = qd_calloc((size_t)s->l->n_quantizers + 1, sizeof *s->learned);
    s->report.blocks = qd_calloc((size_t)s->blocks.n + 1, sizeof *s->report.blocks);
    qd_status st = names && s->learned && s->report.blocks
                       ? QD_OK
                       : qd_fail(err, QD_E_NOMEM, "no memory for %d quantizers", s->l->n_quantizers);
    for (int k = 0; k < s->l->n_quantizers && !st; k++)
        qd_layout_codes_name(s->l, k, names[k], sizeof names[k]);
    for (int k = 0; k < s->blocks.n; k++)
        s->n_learned += s->blocks.block[k].n_layers > 0;
    for (int k = 0; k < s->blocks.n && !st; k++) {
        st = qd_run_check(s->run, err);
        if (!st)
            st = do_block(s, k, (const char(*)[QD_MAX_NAME + 32]) names, err);
    }
    qd_free(names);
    return st;
}

qd_status qd_layout_learn_steps(qd_layout *l, const qd_calibration_set *set, const qd_steps_options *o,
                                const qd_run *run, qd_recon_report *report, qd_err *err)
{
    steps s = { .l = l, .set = set, .o = o, .run = run };
    qd_status st = check(l, o, err);
    if (st)
        return st;
    st = qd_blocks_find(l, false, &s.blocks, err);
    if (!st)
        st = renew_twin(&s, err);
    if (!st)
        st = make_twin_blocks(&s, err);
    if (!st)
        st = make_kept(&s, err);
    if (!st)
        st = learn_all(&s, err);
    if (!st) {
        qd_recon_report_clear(report);
        *report = s.report;
        s.report = (qd_recon_report){ 0 };
    }
    qd_recon_report_clear(&s.report);
    qd_free(s.learned);
    qd_kept_clear(&s.kept[0]);
    qd_kept_clear(&s.kept[1]);
    qd_blocks_clear(&s.twin_blocks);
    qd_blocks_clear(&s.blocks);
    qd_graph_free((qd_graph *)s.twin.graph);
    return st;
}
