/* condition.c - what a conditional network is told: contexts from a file, classes from a number (diffusion_models.md 4). */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "diffusion/diffusion.h"
#include "graph/op.h"

#define MAX_CLASSES (1 << 20)

void qd_condition_init(qd_condition *c)
{
    *c = (qd_condition){ .guidance = 1.0 };
}

void qd_condition_clear(qd_condition *c)
{
    qd_tensor_clear(&c->context);
    qd_tensor_clear(&c->null_context);
    qd_tensor_clear(&c->labels);
    qd_tensor_clear(&c->null_labels);
    *c = (qd_condition){ 0 };
}

void qd_condition_share(qd_condition *dst, const qd_condition *src)
{
    dst->guidance = src->guidance;
    qd_tensor_share(&dst->context, &src->context);
    qd_tensor_share(&dst->null_context, &src->null_context);
    qd_tensor_share(&dst->labels, &src->labels);
    qd_tensor_share(&dst->null_labels, &src->null_labels);
}

/* --- to a network --- */

/* What it says at that input, with the condition or without. */
static const qd_tensor *said(const qd_condition *c, const qd_node *n, bool with)
{
    if (strcmp(n->name, "encoder_hidden_states") == 0)
        return with ? &c->context : &c->null_context;
    return with ? &c->labels : &c->null_labels;
}

/* Is t, with rows for samples, what input n takes? Words for the caller's side: what to give. */
static qd_status check_tensor(const qd_node *n, const qd_tensor *t, qd_err *err)
{
    char want[96], have[96];
    qd_shape shape = n->shape;
    shape.dim[0] = t->data ? t->shape.dim[0] : 0;
    const bool numbers = n->shape.rank == 1 && t->dtype == QD_I64;
    if (t->data && t->shape.dim[0] > 0 && qd_shape_equal(&shape, &t->shape) && (numbers || t->dtype == QD_F32))
        return QD_OK;
    size_t at = (size_t)snprintf(want, sizeof(want), "[n");
    for (int k = 1; k < n->shape.rank && at < sizeof(want); k++)
        at += (size_t)snprintf(want + at, sizeof(want) - at, ", %lld", (long long)n->shape.dim[k]);
    if (!t->data)
        return qd_fail(err, QD_E_INVALID, "this denoiser needs %s %s], and none was given", n->name, want);
    return qd_fail(err, QD_E_INVALID, "this denoiser needs %s %s], got %s %s", n->name, want, qd_dtype_name(t->dtype),
                   qd_shape_text(&t->shape, have, sizeof(have)));
}

qd_status qd_condition_check(const qd_condition *c, const qd_node *input, qd_err *err)
{
    const qd_tensor *with = said(c, input, true), *without = said(c, input, false);
    qd_status st = QD_OK;
    if (c->guidance != 0.0)
        st = check_tensor(input, with, err);
    if (st || c->guidance == 1.0)
        return st;
    if (!without->data)
        return input->shape.rank > 1
                   ? QD_OK
                   : qd_fail(err, QD_E_INVALID,
                             "guidance needs the class that stands for no condition, and none was given");
    st = check_tensor(input, without, err);
    if (!st && with->data && without->shape.dim[0] != 1 && without->shape.dim[0] != with->shape.dim[0])
        st =
            qd_fail(err, QD_E_INVALID, "%s of no condition has %lld rows; it must have 1, or %lld as the condition has",
                    input->name, (long long)without->shape.dim[0], (long long)with->shape.dim[0]);
    return st;
}

void qd_condition_fill(const qd_condition *c, const qd_node *input, bool with, int64_t first, int64_t rows, void *data)
{
    const qd_tensor *from = said(c, input, with);
    int64_t each = 1;
    for (int k = 1; k < input->shape.rank; k++)
        each *= input->shape.dim[k];
    for (int64_t i = 0; i < rows * each; i++) {
        double v = 0.0;
        if (from->data) {
            const int64_t at = (first + i / each) % from->shape.dim[0] * each + i % each;
            v = from->dtype == QD_I64 ? (double)((const int64_t *)from->data)[at] : qd_f32(from)[at];
        }
        if (input->dtype == QD_I64)
            ((int64_t *)data)[i] = (int64_t)v;
        else
            ((float *)data)[i] = (float)v;
    }
}

/* --- from a file --- */

/* The first of these names (NULL-terminated) that the file has. */
static const char *find_name(const qd_weights *w, const char *const *names)
{
    for (; *names; names++)
        if (qd_weights_find(w, *names))
            return *names;
    return NULL;
}

/* Tensors of a file that tell something, by their names there: the first one found counts. */
typedef struct source_row {
    const char *what;
    const char *names[4];
    int rank;     /* of the tensor; one less means one row */
    bool numbers; /* may be i64 of rank 1 */
    size_t at;    /* in qd_condition */
} source_row;
static const source_row sources[] = {
    { "a context is [n, tokens, width]",
      { "context", "prompt_embeds", "encoder_hidden_states", NULL },
      3,
      false,
      offsetof(qd_condition, context) },
    { "a context is [n, tokens, width]",
      { "null_context", "negative_prompt_embeds", NULL },
      3,
      false,
      offsetof(qd_condition, null_context) },
    { "class labels are [n, width], or [n] in i64", { "class_labels", NULL }, 2, true, offsetof(qd_condition, labels) },
    { "class labels are [n, width], or [n] in i64",
      { "null_class_labels", NULL },
      2,
      true,
      offsetof(qd_condition, null_labels) },
};
#define N_SOURCES (int)(sizeof(sources) / sizeof(sources[0]))

static qd_status take_tensor(const qd_weights *w, const char *name, const source_row *row, qd_budget *budget,
                             qd_tensor *out, qd_err *err)
{
    char shape[96];
    const qd_tensor *have = qd_weights_find(w, name);
    const bool numbers = row->numbers && have->dtype == QD_I64 && have->shape.rank == 1;
    if (!numbers && have->dtype != QD_F32 && have->dtype != QD_F16 && have->dtype != QD_BF16)
        return qd_fail(err, QD_E_UNSUPPORTED, "tensor '%s' is %s %s; it must be f32, f16 or bf16: %s", name,
                       qd_dtype_name(have->dtype), qd_shape_text(&have->shape, shape, sizeof(shape)), row->what);
    if ((!numbers && have->shape.rank != row->rank && have->shape.rank != row->rank - 1) || qd_tensor_count(have) < 1)
        return qd_fail(err, QD_E_FORMAT, "tensor '%s' has shape %s; %s", name,
                       qd_shape_text(&have->shape, shape, sizeof(shape)), row->what);
    /* Always a copy: the file may be unaligned, and may go. */
    const qd_status st = numbers || have->dtype == QD_F32 ? qd_tensor_copy(out, have, budget, err)
                                                          : qd_tensor_cast(out, have, QD_F32, budget, err);
    if (st)
        return qd_fail_in(err, st, "tensor '%s'", name);
    if (!numbers && out->shape.rank == row->rank - 1) {
        memmove(out->shape.dim + 1, out->shape.dim, (size_t)out->shape.rank * sizeof(out->shape.dim[0]));
        out->shape.dim[0] = 1;
        out->shape.rank++;
    }
    for (int64_t k = 0; !numbers && k < qd_tensor_count(out); k++)
        if (!isfinite(qd_f32(out)[k])) {
            qd_tensor_clear(out);
            return qd_fail(err, QD_E_NUMERIC, "tensor '%s' is not finite at element %lld", name, (long long)k);
        }
    return QD_OK;
}

bool qd_condition_in(const qd_weights *w)
{
    for (int k = 0; k < N_SOURCES; k++)
        if (find_name(w, sources[k].names))
            return true;
    return false;
}

qd_status qd_condition_read(qd_condition *c, const qd_weights *w, qd_budget *budget, qd_err *err)
{
    qd_tensor read[N_SOURCES] = { { 0 } };
    qd_status st = QD_OK;
    if (!qd_condition_in(w))
        return qd_fail(
            err, QD_E_FORMAT,
            "the file has no tensor 'context' (or 'prompt_embeds', or 'encoder_hidden_states'), and no 'class_labels'");
    for (int k = 0; k < N_SOURCES && !st; k++) {
        const char *name = find_name(w, sources[k].names);
        if (name)
            st = take_tensor(w, name, &sources[k], budget, &read[k], err);
    }
    for (int k = 0; k < N_SOURCES; k++) {
        qd_tensor *to = (qd_tensor *)((char *)c + sources[k].at);
        if (!st && read[k].data) {
            qd_tensor_clear(to);
            *to = read[k];
        } else {
            qd_tensor_clear(&read[k]);
        }
    }
    return st;
}

/* --- from a number --- */

int64_t qd_condition_classes(const qd_graph *g)
{
    const qd_node_id labels = qd_graph_find(g, "class_labels");
    for (qd_node_id id = labels + 1; labels >= 0 && id < qd_graph_size(g); id++) {
        const qd_node *n = qd_graph_node(g, id);
        if (n->op == &qd_op_embedding && n->input[0] == labels)
            return qd_graph_node(g, n->input[1])->shape.dim[0];
    }
    return 0;
}

/* Which classes samples show, one after the other: `label`, or all but `spared`. */
static qd_status list_classes(int64_t classes, int64_t label, int64_t spared, qd_tensor *out, qd_budget *budget,
                              qd_err *err)
{
    const bool spare = label < 0 && spared >= 0 && classes > 1;
    const int64_t n = label >= 0 ? 1 : classes - spare;
    const qd_shape shape = QD_SHAPE(n);
    const qd_status st = qd_tensor_init(out, QD_I64, &shape, budget, err);
    if (st)
        return st;
    int64_t *v = out->data;
    for (int64_t k = 0; k < n; k++)
        v[k] = label >= 0 ? label : k + (spare && k >= spared);
    return QD_OK;
}

/* Rows of the table as contexts of one token. */
static qd_status look_up(const qd_tensor *table, const qd_tensor *classes, qd_tensor *out, qd_budget *budget,
                         qd_err *err)
{
    const int64_t n = classes->shape.dim[0], width = table->shape.dim[1];
    const qd_shape shape = QD_SHAPE(n, 1, width);
    const qd_status st = qd_tensor_init(out, QD_F32, &shape, budget, err);
    if (st)
        return st;
    for (int64_t k = 0; k < n; k++)
        memcpy(qd_f32(out) + k * width, qd_f32(table) + ((const int64_t *)classes->data)[k] * width,
               (size_t)width * sizeof(float));
    return QD_OK;
}

qd_status qd_condition_classify(qd_condition *c, const qd_graph *g, const qd_tensor *table, int64_t label,
                                int64_t null_label, qd_budget *budget, qd_err *err)
{
    const bool in_context = table && table->data;
    const int64_t classes = in_context ? table->shape.dim[0] : qd_condition_classes(g);
    qd_tensor shown = { 0 }, spared = { 0 }, rows = { 0 }, null_row = { 0 };
    qd_status st;

    if (classes < 1 || classes > MAX_CLASSES)
        return qd_fail(err, QD_E_INVALID, "this network knows no classes");
    if (label < -1 || label >= classes || null_label < -1 || null_label >= classes)
        return qd_fail(err, QD_E_INVALID, "class %lld is not one of the network's %lld: 0..%lld",
                       (long long)(label < -1 || label >= classes ? label : null_label), (long long)classes,
                       (long long)classes - 1);
    if (null_label < 0 && c->guidance != 1.0)
        null_label = classes - 1;
    st = list_classes(classes, label, null_label, &shown, budget, err);
    if (!st && null_label >= 0)
        st = list_classes(classes, null_label, -1, &spared, budget, err);
    if (!st && in_context)
        st = look_up(table, &shown, &rows, budget, err);
    if (!st && in_context && null_label >= 0)
        st = look_up(table, &spared, &null_row, budget, err);
    if (st)
        goto out;
    if (in_context) {
        qd_tensor_clear(&c->context);
        qd_tensor_clear(&c->null_context);
        c->context = rows;
        c->null_context = null_row;
        rows = null_row = (qd_tensor){ 0 };
    } else {
        qd_tensor_clear(&c->labels);
        qd_tensor_clear(&c->null_labels);
        c->labels = shown;
        c->null_labels = spared;
        shown = spared = (qd_tensor){ 0 };
    }
out:
    qd_tensor_clear(&shown);
    qd_tensor_clear(&spared);
    qd_tensor_clear(&rows);
    qd_tensor_clear(&null_row);
    return st;
}
